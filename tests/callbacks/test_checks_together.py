"""All checks before a fit in one trainer."""

import itertools
import json
import pathlib

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional

from lightning_tuning import (
    ChecksFailedError,
    GradientCheck,
    InitialLossCheck,
    OverfitBatchCheck,
    WiringCheck,
)
from tests.toys import Classifier, loader

QUIET = dict.fromkeys(("enable_checkpointing", "enable_progress_bar"), False)


class Halved(torch.autograd.Function):
    """The square, with half of its gradient."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x


class Broken(Classifier):
    """Softmax before cross-entropy, and a wrong gradient."""

    def loss(self, batch):
        hidden = Halved.apply(self.net[1](self.net[0](batch[0])))
        return functional.cross_entropy(self.net[2](hidden).softmax(1), batch[1])


def checks(**settings):
    return [
        InitialLossCheck(num_batches=3, **settings),
        OverfitBatchCheck(num_samples=8, max_steps=40, **settings),
        GradientCheck(num_entries=4, burn_in_steps=2, **settings),
        WiringCheck(**settings),
    ]


def fit(callbacks, module=None, **settings):
    seed_everything(3, verbose=False)
    settings = {"max_epochs": 2, "logger": False, "accelerator": "cpu", **QUIET, **settings}
    trainer = Trainer(enable_model_summary=False, callbacks=list(callbacks), **settings)
    trainer.fit(module or Classifier(), loader(shuffle=True), loader(8))
    return trainer


def left_by(callbacks, name):
    trainer = fit(callbacks, logger=CSVLogger(name, "run"), log_every_n_steps=1)
    rows = pathlib.Path(trainer.logger.log_dir, "metrics.csv").read_text()
    return trainer.lightning_module.state_dict(), torch.get_rng_state(), rows


def test_the_fit_is_as_without_them():
    weights, random, rows = left_by([], "without")
    with_weights, with_random, with_rows = left_by(checks(), "with")
    assert all(torch.equal(weights[name], with_weights[name]) for name in weights)
    assert torch.equal(random, with_random)
    assert rows == with_rows


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[9::12])
def test_the_order_does_not_matter(order):
    expected = checks()
    fit(expected, Broken())
    given = checks()
    fit([given[i] for i in order], Broken())
    for one, other in zip(expected, given, strict=True):
        assert [(f.code, f.verdict) for f in one.findings] == [
            (f.code, f.verdict) for f in other.findings
        ]


def test_one_exception_lists_what_all_found():
    with pytest.raises(ChecksFailedError) as caught:
        fit(checks(on_fail="raise"), Broken())
    found = {(f.check, f.code) for f in caught.value.findings}
    assert ("wiring_check", "softmax_before_ce") in found
    assert ("gradient_check", "wrong_gradient") in found


def test_everything_stands_in_one_file_and_in_tensorboard():
    callbacks = checks()
    trainer = fit(callbacks, Broken(), logger=TensorBoardLogger(".", "run"))
    folder = pathlib.Path(trainer.log_dir)
    entries = json.loads((folder / "findings.json").read_text())
    assert entries == [f.to_dict() for c in callbacks for f in c.findings]
    events = EventAccumulator(str(folder))
    events.Reload()
    for check in ("initial_loss_check", "overfit_batch_check", "gradient_check", "wiring_check"):
        assert f"{check}/findings/text_summary" in events.Tags()["tensors"]


def test_two_of_a_kind_live_in_one_trainer():
    some, others = WiringCheck(["zero_init"]), WiringCheck(skip=["zero_init"])
    first, second = InitialLossCheck(num_batches=2), InitialLossCheck(expected=1.1)
    fit([some, first, others, second])
    assert {f.code for f in some.findings} == {"zero_init"}
    assert "zero_init" not in {f.code for f in others.findings}
    assert len(first.result.terms[0].losses) == 2
    assert second.result.terms[0].what == "the expected 1.1"


def test_no_batch_is_kept_once_the_fit_goes_on():
    from lightning_tuning._trainer.probe import _READ

    trainer = fit(checks())
    assert trainer.fit_loop._combined_loader not in _READ
