"""WarmupDecay inside real fits."""

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from lightning_tuning import LRRangeTest, WarmupDecay, warmup_decay_schedule
from tests.callbacks.schedule_fits import (
    FakeRangeTest,
    Recorder,
    SaveAfter,
    assert_equal_weights,
    fit,
    same_batches,
    weights,
)
from tests.toys import Classifier, Manual, loader


def rates(total, **settings):
    schedule = warmup_decay_schedule(total, **{"max_lr": 0.2, **settings})
    return [schedule.at(step)[0][0] for step in range(total)]


def seen(recorder):
    return [lr for lr, _ in recorder.first()]


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_steps": 3},
        {"warmup": "exponential", "warmup_steps": 4, "decay": "sqrt", "decay_fraction": 0.5},
        {"warmup_steps": 0, "decay": "step", "milestones": [0.5, 0.9]},
        {"warmup_steps": 2, "cycles": 2},
    ],
)
def test_every_step_has_the_rate_of_the_formula(settings):
    recorder = Recorder()
    fit(None, WarmupDecay(0.2, **settings), recorder)
    assert seen(recorder) == rates(12, **settings)
    assert {momentum for _, momentum in recorder.first()} == {0.9}


def test_the_warm_up_is_a_fraction_of_the_fit():
    callback = WarmupDecay(0.2, warmup_fraction=0.25)
    fit(None, callback)
    assert (callback.result.warmup_steps, callback.result.total_steps) == (3, 12)
    assert callback.findings[0].message == (
        "A linear warm-up of 3 steps and cosine decay over 12 steps with its peak at lr=0.2, "
        "from max_lr."
    )


def test_weights_equal_those_of_torchs_schedulers():
    class Torch(Classifier):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)
            parts = [LinearLR(optimizer, 0.1, 1.0, 4), CosineAnnealingLR(optimizer, 8)]
            scheduler = SequentialLR(optimizer, parts, [4])
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    torchs = weights(fit(Torch()))
    mine = weights(fit(None, WarmupDecay(0.2, warmup_steps=4, warmup_factor=0.1)))
    for name, weight in mine.items():
        assert torch.allclose(weight, torchs[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("adam", [False, True])
def test_momentum_goes_up_where_asked(adam):
    recorder = Recorder()
    module = Classifier(torch.optim.AdamW if adam else None)
    fit(module, WarmupDecay(0.2, start_momentum=0.5, end_momentum=0.98), recorder)
    momenta = [momentum for _, momentum in recorder.first()]
    assert momenta == pytest.approx([0.5 + 0.48 * step / 12 for step in range(12)])


def test_an_optimizer_without_momentum_is_told_where_it_was_asked_for():
    module = Classifier(lambda p: torch.optim.Adagrad(p, lr=0.1))
    callback = WarmupDecay(0.2, start_momentum=0.5, end_momentum=0.98)
    fit(module, callback)
    assert any("neither momentum nor betas" in f.message for f in callback.findings)


def test_the_range_tests_suggestion_is_the_peak():
    callback = WarmupDecay()
    fit(Classifier(groups=(0.1, 0.01)), callback, FakeRangeTest(0.5))
    assert callback.result.max_lr == pytest.approx((0.5, 0.05))


# -------------------------------------------------------------------------------------- resumes


@pytest.mark.parametrize("step", [3, 6, 11])
@pytest.mark.parametrize(
    "settings", [{}, {"cycles": 3}, {"start_momentum": 0.5, "end_momentum": 0.9}]
)
def test_a_resumed_fit_equals_one_without_interruption(step, settings):
    data = {"data": same_batches()}
    one, two = Recorder(), Recorder()
    whole = fit(None, WarmupDecay(0.2, **settings), SaveAfter(step), one, **data)
    resumed = fit(None, WarmupDecay(0.2, **settings), two, ckpt_path="saved.ckpt", **data)
    assert two.values == one.values[step:]
    assert_equal_weights(weights(resumed), weights(whole))


def test_a_late_decay_is_extended_without_a_jump():
    settings = {"warmup_steps": 2, "decay": "linear", "decay_fraction": 0.25}
    fit(None, WarmupDecay(0.2, **settings), SaveAfter(8), max_epochs=2)
    callback, recorder = WarmupDecay(0.2, **settings), Recorder()
    fit(None, callback, recorder, max_epochs=4, ckpt_path="saved.ckpt")
    assert seen(recorder) == rates(24, **settings)[8:]
    assert seen(recorder)[0] == 0.2
    [finding] = [f for f in callback.findings if f.code == "schedule_length_changed"]
    assert (finding.verdict, "lr=0.2 as before" in finding.message) == ("pass", True)


# -------------------------------------------------------------------------------------- plateau


class Told(Classifier):
    """Validates to given figures, one after another."""

    def __init__(self, figures, **settings):
        super().__init__(**settings)
        self.figures = figures

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.figures[self.current_epoch])


FIGURES = [1.0, 0.9, 0.9, 0.9, 0.8, 0.8, 0.8, 0.8]
PLATEAU = {"decay": "plateau", "patience": 1, "factor": 0.5, "warmup_steps": 0}
WITH_VALIDATION = {"max_epochs": 8, "limit_val_batches": 1}


def test_a_plateau_reduces_the_rate_as_torch_does():
    class Torch(Told):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)
            scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"},
            }

    mine, theirs = Recorder(), Recorder()
    callback = WarmupDecay(0.2, **PLATEAU)
    fit(Told(FIGURES), callback, mine, **WITH_VALIDATION)
    fit(Torch(FIGURES), theirs, **WITH_VALIDATION)
    assert seen(mine) == pytest.approx(seen(theirs))
    assert callback.result.reductions == (24, 42)


def test_a_metric_may_rise_and_a_rate_has_a_floor():
    callback, recorder = WarmupDecay(0.2, mode="max", final_factor=0.2, **PLATEAU), Recorder()
    fit(Told([1.0] * 8), callback, recorder, **WITH_VALIDATION)
    assert callback.result.reductions == (18, 30, 42)
    assert seen(recorder)[-1] == pytest.approx(0.04)


# after the last batch of an epoch Lightning would leave the validation out
@pytest.mark.parametrize("step", [20, 27, 39])
def test_a_plateau_is_resumed(step):
    one, two = Recorder(), Recorder()
    settings = {"data": same_batches(), **WITH_VALIDATION}
    whole = fit(Told(FIGURES), WarmupDecay(0.2, **PLATEAU), SaveAfter(step), one, **settings)
    callback = WarmupDecay(0.2, **PLATEAU)
    resumed = fit(Told(FIGURES), callback, two, ckpt_path="saved.ckpt", **settings)
    assert seen(two) == seen(one)[step:]
    assert callback.result.reductions == (24, 42)
    assert_equal_weights(weights(resumed), weights(whole))


def test_a_plateau_needs_no_end():
    callback = WarmupDecay(0.2, **PLATEAU)
    fit(Told(FIGURES), callback, max_epochs=-1, max_time="00:00:00:01", limit_val_batches=0)
    assert callback.result.at(10**6)[0][0] == 0.2
    with pytest.raises(MisconfigurationException, match=r"WarmupDecay\(total_steps=\.\.\.\)"):
        fit(None, WarmupDecay(0.2), max_epochs=-1)


def test_a_metric_that_is_not_there_is_named_with_those_that_are():
    callback = WarmupDecay(0.2, monitor="val_acc", **PLATEAU)
    with pytest.raises(MisconfigurationException, match=r"no metric 'val_acc'.*val_loss"):
        fit(None, callback, limit_val_batches=1)


def test_manual_optimization():
    recorder = Recorder()
    fit(Manual(every=2), WarmupDecay(0.2, warmup_steps=4), recorder)
    assert [values[0][0] for values in recorder.values] == rates(12, warmup_steps=4)
    assert [values[1][0] for values in recorder.values] == rates(12, warmup_steps=4)


def test_a_range_test_before_a_plateau_does_not_count_as_validation():
    callback = WarmupDecay(**PLATEAU)
    test = LRRangeTest(num_steps=40, max_steps=80)
    fit(Told([1.0, 0.9]), test, callback, data=loader(240), max_epochs=2, limit_val_batches=1)
    assert callback.result.reductions == ()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"warmup_fraction": 2.0}, "warmup_fraction=2.0"),
        ({"mode": "least"}, "mode='least'"),
        ({"patience": -1}, "patience=-1"),
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"cooldown": 0.5}, "cooldown=0.5"),
        ({"decay": "plateau", "cycles": 3}, "decay='plateau'"),
    ],
)
def test_wrong_arguments_are_named_at_construction(settings, said):
    with pytest.raises(ValueError, match=said):
        WarmupDecay(0.2, **settings)


def test_a_warm_up_as_long_as_the_fit_is_told():
    callback = WarmupDecay(0.2, warmup_steps=12)
    fit(None, callback)
    [told] = [finding for finding in callback.findings if finding.verdict == "warn"]
    assert "the peak is never reached" in told.message
    fine = WarmupDecay(0.2, cycles=2, decay_fraction=0.5)
    fit(None, fine)
    assert (
        "cosine decay over 12 steps in 2 cycles in the last 0.5 of it" in fine.findings[0].message
    )


def test_a_metrics_name_tells_whether_it_rises():
    class Rises(Told):
        def validation_step(self, batch, batch_idx):
            self.log("val_acc", self.figures[self.current_epoch])

    callback = WarmupDecay(0.2, monitor="val_acc", **PLATEAU)
    fit(Rises([0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4]), callback, **WITH_VALIDATION)
    assert callback.result.reductions == (36, 48)
