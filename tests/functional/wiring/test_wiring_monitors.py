"""Which way a metric gets better, by its name, and who waits for the other way."""

import pytest

from lightning_tuning.functional.wiring.wiring_monitors import (
    Monitored,
    MonitorEvidence,
    better_when,
    lr_decayed_too_fast,
    metric_wrong,
)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("val_loss", "min"), ("val/loss_epoch", "min"), ("Validation-Error", "min")),
        *(("val.rmse", "min"), ("test_ppl", "min"), ("wer", "min")),
        *(("val_loss/dataloader_idx_0", "min"), ("LOSS", "min")),
        *(("val_acc", "max"), ("val/Accuracy", "max"), ("f1", "max"), ("val_f1score", "max")),
        *(("val_mAP50-95", "max"), ("r2", "max"), ("auroc1", "max"), ("top5_acc", "max")),
        *(("neg_loss", None), ("minus_val_loss", None), ("val_acc_error", None)),
        ("dice_loss", None),
        *(("loss_reduction", None), ("accident", None), ("lossless", None), ("score", None)),
        *(("conf1", None), ("layer2", None), ("inverse_rmse", None), ("", None)),
    ],
)  # fmt: skip
def test_a_name_tells_which_way_is_better(name, mode):
    assert better_when(name) == mode


def verdicts(*, schedulers=(), callbacks=()):
    evidence = MonitorEvidence(schedulers=schedulers, callbacks=callbacks)
    [rate], [metric] = lr_decayed_too_fast(evidence), metric_wrong(evidence)
    return rate.verdict, metric.verdict


def test_the_other_way_fails():
    right = Monitored(name="A", monitor="val_loss", mode="min", stops=False)
    wrong = Monitored(name="A", monitor="val_loss", mode="max", stops=False)
    unknown = Monitored(name="A", monitor="val_reward", mode="min", stops=True)
    assert verdicts() == ("skip", "pass")
    assert verdicts(schedulers=(right, unknown), callbacks=(right, unknown)) == ("pass", "pass")
    assert verdicts(schedulers=(right, wrong)) == ("fail", "pass")
    assert verdicts(callbacks=(right, wrong)) == ("skip", "fail")


def test_what_comes_of_it_is_told():
    stops = Monitored(name="EarlyStopping", monitor="val_acc", mode="min", stops=True)
    [finding] = metric_wrong(MonitorEvidence(schedulers=(), callbacks=(stops,)))
    assert "EarlyStopping(monitor='val_acc', mode='min')" in finding.message
    assert "stops" in finding.message
    assert "mode='max'" in finding.hint
    keeps = Monitored(name="ModelCheckpoint", monitor="val_acc", mode="min", stops=False)
    [finding] = metric_wrong(MonitorEvidence(schedulers=(), callbacks=(keeps,)))
    assert "worst" in finding.message
