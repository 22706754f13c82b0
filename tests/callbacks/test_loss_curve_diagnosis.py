"""Whole fits: what is said, shown, resumed, and left as it was."""

import json
import math
import pathlib

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_tuning import ChecksFailedError, LossCurveDiagnosis
from tests.test_contract import SaveAfter, fit, trainer_for
from tests.toys import Classifier, Manual, loader


def train(module, callback, *, samples=96, **trainer):
    seed_everything(1, verbose=False)
    data = loader(samples, 8, shuffle=True, features=6, classes=3)
    runner = trainer_for(callback, **trainer)
    runner.fit(module, data, loader(48, 48))
    return {f.code: f for f in callback.findings}


class Turns(Classifier):
    """Its loss is no number from a step on."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        return loss * float("nan") if self.global_step >= self.step else loss


def test_random_labels_and_a_tiny_rate_are_named():
    def tiny(parameters):
        return torch.optim.SGD(parameters, lr=1e-7)

    found = train(Classifier(optimizer=tiny), LossCurveDiagnosis(), max_epochs=10)
    assert {found[code].verdict for code in ("no_learning", "lr_too_low")} & {"warn"}
    assert found["non_finite"].verdict == "pass"


def test_a_loss_that_turns_to_nan_is_told_at_once():
    callback = LossCurveDiagnosis()

    class Sees(Callback):
        at = None

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if callback.findings and self.at is None:
                self.at = trainer.global_step

    sees = Sees()
    fit(trainer_for(callback, sees, max_epochs=10, log_every_n_steps=5), Turns(7))
    [finding] = [f for f in callback.findings if f.code == "non_finite"]
    assert (finding.verdict, finding.step) == ("fail", 7)
    assert sees.at <= 15


def test_it_raises_where_asked():
    with pytest.raises(ChecksFailedError, match="non_finite"):
        fit(trainer_for(LossCurveDiagnosis(on_fail="raise")), Turns(3))


def test_ctrl_c_shows_what_is_known():
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 8:
                raise KeyboardInterrupt

    callback = LossCurveDiagnosis()
    with pytest.raises(SystemExit):
        fit(trainer_for(callback, Stop()))
    assert callback.result.curves.steps >= 7
    assert len(callback.findings) == 15


def test_a_resumed_fit_goes_on_with_its_curve():
    whole = LossCurveDiagnosis()
    fit(trainer_for(whole, SaveAfter(6)))
    again = LossCurveDiagnosis()
    fit(trainer_for(again), ckpt_path="saved.ckpt")
    assert again.result.curves.train == whole.result.curves.train
    assert again.result.curves.rates == whole.result.curves.rates
    assert again.result.curves.chance == pytest.approx(whole.result.curves.chance)


def test_it_works_without_validation_and_with_hand_made_steps():
    callback = LossCurveDiagnosis()
    fit(trainer_for(callback, limit_val_batches=0))
    codes = {f.code: f.verdict for f in callback.findings}
    assert codes["overfitting"] == "skip"
    fit(trainer_for(callback), Manual())
    assert {f.verdict for f in callback.findings} <= {"pass", "skip"}


def test_figure_findings_and_files_are_written():
    callback = LossCurveDiagnosis()
    trainer = fit(trainer_for(callback, logger=TensorBoardLogger(".", "run")))
    folder = pathlib.Path(trainer.log_dir)
    assert (folder / "loss_curve_diagnosis.png").stat().st_size > 1000
    written = json.loads((folder / "loss_curve_diagnosis.json").read_text())
    assert written["curves"]["train"]["values"] == list(callback.result.curves.train.values)
    told = json.loads((folder / "findings.json").read_text())
    assert [f["code"] for f in told] == [f.code for f in callback.findings]
    events = EventAccumulator(str(folder)).Reload()
    [image] = events.Images("loss_curve_diagnosis/curve")
    assert image.step == trainer.global_step == 12
    assert "loss_curve_diagnosis/findings/text_summary" in events.Tags()["tensors"]


def test_two_in_one_trainer_keep_their_own_state():
    first, second = LossCurveDiagnosis(), LossCurveDiagnosis(val_metric="other")
    fit(trainer_for(first, second, SaveAfter(6)))
    assert first.result.curves.val is not None
    assert "other" in second.result.curves.no_val
    keys = set(torch.load("saved.ckpt", weights_only=True)["callbacks"])
    assert {first.state_key, second.state_key} <= keys


def test_a_resumed_fit_knows_that_the_loss_was_no_number_before():
    fit(trainer_for(LossCurveDiagnosis(), SaveAfter(6)), Turns(4))
    again = LossCurveDiagnosis()
    fit(trainer_for(again), Turns(0), ckpt_path="saved.ckpt")
    [finding] = [f for f in again.findings if f.code == "non_finite"]
    assert finding.step == 4


def test_chance_is_looked_for_again_where_the_checkpoint_does_not_know_it():
    class Odd(Classifier):
        def training_step(self, batch, batch_idx):
            return self.loss(batch) + self.net[0].weight.norm()

    fit(trainer_for(LossCurveDiagnosis(), SaveAfter(6)), Odd())
    again = LossCurveDiagnosis()
    fit(trainer_for(again), Classifier(), ckpt_path="saved.ckpt")
    assert again.result.curves.chance == pytest.approx(math.log(3), rel=0.1)


def test_the_exception_of_the_fit_is_not_replaced(monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    class Breaks(Classifier):
        def training_step(self, batch, batch_idx):
            if self.global_step == 3:
                raise ValueError("the program's own")
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr("lightning_tuning.callbacks.loss_curve_diagnosis.report", full)
    callback = LossCurveDiagnosis()
    with (
        pytest.raises(ValueError, match="the program's own"),
        pytest.warns(UserWarning, match="could not finish after the exception: OSError: no space"),
    ):
        fit(trainer_for(callback), Breaks())
    assert callback._recorder is None
