import json
import math
import pathlib

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional

from lightning_tuning import ChecksFailedError, InitialLossCheck
from tests.toys import Classifier, loader


class WithPenalty(Classifier):
    """Adds the squared weights to the loss."""

    def __init__(self, *, felt=True):
        super().__init__()
        self.penalty = 0.01
        self.felt = felt

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        squares = sum(p.square().sum() for p in self.parameters())
        return loss + self.penalty * squares if self.felt else loss


class Hinge(Classifier):
    """Weston and Watkins' loss by hand: C - 1 at chance."""

    def loss(self, batch):
        inputs, target = batch
        scores = self(inputs)
        margins = (scores - scores.gather(1, target[:, None]) + 1).clamp(min=0)
        return margins.sum(1).mean() - 1


class Scaled(Classifier):
    """Logits that are too large, and a rate that can't make them smaller."""

    def __init__(self):
        super().__init__(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-9))

    def forward(self, inputs):
        return 1000 * self.net(inputs)


class Dropping(Classifier):
    """Nearly all is dropped, and the rest made large."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.Dropout(0.999))


def check(module, callback=None, *, validated=True, **settings):
    callback = callback or InitialLossCheck()
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar"), False)
    settings = {"max_epochs": 1, "logger": False, **quiet, **settings}
    trainer = Trainer(
        accelerator="cpu", enable_model_summary=False, callbacks=[callback], **settings
    )
    trainer.fit(module, loader(), loader(8) if validated else None)
    return callback


def verdicts(callback):
    return [(finding.verdict, finding.code) for finding in callback.findings]


def test_a_classifier_starts_at_ln_3():
    callback = check(Classifier())
    assert verdicts(callback) == [("pass", "initial_loss")]
    [term] = callback.result.terms
    assert term.high == pytest.approx(math.log(3))
    assert "ln 3" in callback.findings[0].message


def test_its_number_is_the_mean_over_the_first_batches():
    module = Classifier()
    with torch.no_grad():
        losses = torch.stack([module.loss(batch) for batch in loader()])
    [term] = check(Classifier(), InitialLossCheck(num_batches=100)).result.terms
    assert term.mean == pytest.approx(float(losses.mean()))
    assert term.stderr == pytest.approx(float(losses.std() / len(losses) ** 0.5))
    [two] = check(Classifier(), InitialLossCheck(num_batches=2)).result.terms
    assert two.mean == pytest.approx(float(losses[:2].mean()))


def test_dropout_is_off():
    assert verdicts(check(Dropping())) == [("pass", "initial_loss")]


def test_logits_that_are_far_too_large_are_a_warning():
    callback = check(Scaled())
    assert verdicts(callback) == [("warn", "loss_not_at_chance")]
    assert callback.result.progress < 0.1
    assert callback.findings[0].evidence["mean"] > 10 * math.log(3)


def test_an_unknown_loss_says_how_to_give_the_level():
    callback = check(Hinge())
    assert verdicts(callback) == [("skip", "initial_loss")]
    assert "expected=" in callback.findings[0].hint
    assert verdicts(check(Hinge(), InitialLossCheck(expected=2.0))) == [("pass", "initial_loss")]


def test_a_level_that_is_given_and_missed_fails_and_may_stop_the_fit():
    assert verdicts(check(Hinge(), InitialLossCheck(expected=0.2))) == [
        ("fail", "loss_not_at_chance")
    ]
    with pytest.raises(ChecksFailedError, match="loss_not_at_chance") as caught:
        check(Hinge(), InitialLossCheck(expected=0.2, on_fail="raise"))
    assert len(caught.value.findings) == 1


def test_regularization_must_be_felt():
    name = InitialLossCheck(regularization="penalty")
    callback = check(WithPenalty(), name)
    assert verdicts(callback) == [("pass", "initial_loss"), ("pass", "initial_loss")]
    none, once, ten = callback.result.regularized
    assert ten - none == pytest.approx(10 * (once - none), rel=1e-4)
    # what is compared with chance is the loss of the data alone
    assert callback.result.terms[0].mean == pytest.approx(check(Classifier()).result.terms[0].mean)
    callback = check(WithPenalty(felt=False), InitialLossCheck(regularization="penalty"))
    assert verdicts(callback) == [("pass", "initial_loss"), ("fail", "regularization_not_felt")]


def test_the_strength_is_as_before_afterwards():
    module = WithPenalty()
    check(module, InitialLossCheck(regularization="penalty"))
    assert module.penalty == 0.01


@pytest.mark.parametrize("name", ["no_such_thing", "net", "hparams.nothing"])
def test_a_wrong_name_is_one_clear_error(name):
    with pytest.raises(MisconfigurationException, match=f"regularization='{name}'"):
        check(WithPenalty(), InitialLossCheck(regularization=name))


def test_it_is_skipped_where_there_is_nothing_to_check():
    callback = check(Classifier(), fast_dev_run=True)
    assert verdicts(callback) == [("skip", "initial_loss")]
    assert "fast_dev_run" in callback.findings[0].message


class NoLoss(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)

    def training_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Raising(Classifier):
    def loss(self, batch):
        raise ZeroDivisionError("of my own")


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_without_a_loss_or_with_an_error():
    callback = InitialLossCheck()
    check(NoLoss(), callback, validated=False)
    assert "training_step gave no loss" in callback.findings[0].message
    with pytest.raises(ZeroDivisionError, match="of my own"):  # the fit's own step says it too
        check(Raising(), callback, num_sanity_val_steps=0)
    assert "ZeroDivisionError: of my own" in callback.findings[0].message
    assert callback.findings[0].verdict == "skip"


class Nan(Classifier):
    def loss(self, batch):
        return functional.cross_entropy(self(batch[0]) * math.nan, batch[1])


def test_a_loss_that_is_no_number_fails():
    assert verdicts(check(Nan())) == [("fail", "non_finite")]


def test_the_findings_lie_in_the_runs_folder():
    callback = check(Classifier(), logger=CSVLogger(".", "run"))
    [file] = pathlib.Path().glob("run/*/findings.json")
    assert json.loads(file.read_text()) == [f.to_dict() for f in callback.findings]
