"""What the average is, where it is used, and each fault of Lightning's own callback."""

import importlib.metadata

import lightning.pytorch.callbacks as lightning_callbacks
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn

from lightning_tuning import EMAWeights
from tests.callbacks.ema_fits import rescue
from tests.toys import Classifier, loader


def trainer_for(*callbacks, **settings):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    settings = {**quiet, "max_epochs": 2, "accelerator": "cpu", **settings}
    return Trainer(enable_model_summary=False, callbacks=list(callbacks), **settings)


def fit(*callbacks, module=None, train=None, **settings):
    seed_everything(3, verbose=False)
    trainer = trainer_for(*callbacks, **settings)
    data = loader() if train is None else train
    trainer.fit(Classifier() if module is None else module, data, loader(8))
    return trainer


class Steps(Callback):
    """Notes the weights after each optimizer step."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if len(self.weights) < trainer.global_step:
            self.weights.append([p.detach().clone() for p in pl_module.parameters()])


def recursion(weights, decay=0.999, warmup=True):
    average = [w.double() for w in weights[0]]
    for step, values in enumerate(weights[1:], 1):
        d = min(decay, (1 + step) / (10 + step)) if warmup else decay
        average = [d * a + (1 - d) * w for a, w in zip(average, values, strict=True)]
    return average


@pytest.mark.parametrize(
    "settings",
    [{}, {"decay": 0.5}, {"decay": 0.9, "warmup": False}, {"half_life": 3, "warmup": False}],
)
def test_the_average_follows_the_recursion(settings):
    steps, ema = Steps(), EMAWeights(**settings)
    module = fit(steps, ema).lightning_module
    decay = 0.5 ** (1 / 3) if "half_life" in settings else settings.get("decay", 0.999)
    expected = recursion(steps.weights, decay, settings.get("warmup", True))
    for found, value in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), value.float(), rtol=1e-5, atol=1e-6)


def test_arguments_exclude_each_other():
    with pytest.raises(ValueError, match=r"decay=0.9 and half_life=3: give one of them"):
        EMAWeights(0.9, half_life=3)


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [({"warmup": False}, "warn"), ({}, "pass"), ({"half_life": "0.5 epochs"}, "pass")],
)
def test_the_half_life_is_compared_with_the_fit(settings, verdict):
    ema = EMAWeights(**settings)
    fit(ema)
    [found] = ema.findings
    assert (found.code, found.verdict) == ("ema_half_life", verdict)
    assert found.evidence["length"] == 12


def test_average_is_empty_before_it_begins():
    ema = EMAWeights()
    assert ema.average == {}
    with ema.averaged():
        pass
    fit(ema)
    assert set(ema.average) == {name for name, _ in Classifier().named_parameters()}


# ------------------------------------------------ faults of Lightning's own callback, one by one


class Ours:
    """The callback under test, made with the arguments of the other."""

    @staticmethod
    def make(decay=0.999, start=0, **settings):
        return EMAWeights(decay, update_after_step=start, **settings)


class Lightnings:
    @staticmethod
    def make(decay=0.999, start=0):
        kind = lightning_callbacks.EMAWeightAveraging
        return kind(decay=decay, update_starting_at_step=start)


def theirs_has_it(fault):
    """Whether the installed version of the other is the one whose faults are listed."""
    if not importlib.metadata.version("lightning").startswith("2.6."):
        pytest.skip("the faults are those of Lightning 2.6")
    return fault(Lightnings)


class Validated(Callback):
    """Notes the weights that validation sees."""

    def __init__(self):
        self.weights = []

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.weights.append([p.detach().clone() for p in pl_module.parameters()])


def validates_initial_weights(kind):
    seen, steps = Validated(), Steps()
    fit(kind.make(start=1000), seen, steps, num_sanity_val_steps=0, max_epochs=1)
    return not all(map(torch.equal, seen.weights[0], steps.weights[-1]))


def loses_weights_when_it_never_starts(kind):
    steps = Steps()
    module = fit(kind.make(start=1000), steps).lightning_module
    return not all(map(torch.equal, steps.weights[-1], module.parameters()))


class WithBuffers(Classifier):
    """Counts its batches, and keeps a mask."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("mask", torch.tensor([True, False]))

    def training_step(self, batch, batch_idx):
        self.seen += 1
        return super().training_step(batch, batch_idx)


def averages_integers(kind):
    return fit(kind.make(0.5), module=WithBuffers()).lightning_module.seen != 12


def bfloat16_is_stuck(kind):
    class Half(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    steps = Steps()
    made = kind.make(0.9999, **({"warmup": False} if kind is Ours else {}))
    module = fit(made, steps, module=Half(), precision="bf16-true", max_epochs=20).lightning_module
    expected = recursion(steps.weights, 0.9999, warmup=False)
    average = made.average if kind is Ours else dict(module.named_parameters())
    begun = torch.cat([w.flatten().double() for w in steps.weights[0]])
    moved = torch.cat([a.detach().flatten().double() for a in average.values()]) - begun
    right = torch.cat([e.flatten() for e in expected]) - begun
    return bool((moved - right).norm() > 0.1 * right.norm())


class FailsInValidation(Classifier):
    def validation_step(self, batch, batch_idx):
        if self.trainer.current_epoch == 1:
            raise RuntimeError("in validation")
        super().validation_step(batch, batch_idx)


def error_in_validation_exchanges_files(kind):
    steps = Steps()
    settings = {"module": FailsInValidation(), "enable_checkpointing": True}
    with pytest.raises(RuntimeError, match="in validation"):
        fit(kind.make(0.5), steps, rescue(".", "error"), **settings)
    raw = torch.load("error.ckpt", weights_only=True)["current_model_state"]
    return not all(map(torch.equal, raw.values(), steps.weights[-1]))


def a_file_after_the_fit_lacks_raw_weights(kind):
    steps = Steps()
    fit(kind.make(0.5), steps).save_checkpoint("after.ckpt")
    raw = torch.load("after.ckpt", weights_only=True).get("current_model_state", {})
    return not raw or not all(map(torch.equal, raw.values(), steps.weights[-1]))


class Regression(Classifier):
    """Learns a linear map from far away."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 1)
        nn.init.constant_(self.net.weight, 3.0)

    def loss(self, batch):
        inputs, _ = batch
        target = inputs.sum(1, keepdim=True)
        return nn.functional.mse_loss(self(inputs), target)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02)


def a_short_fit_is_judged_by_its_beginning(kind):
    judged = fit(kind.make(), module=Regression(), max_epochs=33).callback_metrics["val_loss"]
    plain = fit(module=Regression(), max_epochs=33).callback_metrics["val_loss"]
    return bool(judged > plain + 0.1)


FAULTS = [
    validates_initial_weights,
    loses_weights_when_it_never_starts,
    averages_integers,
    bfloat16_is_stuck,
    error_in_validation_exchanges_files,
    a_file_after_the_fit_lacks_raw_weights,
    a_short_fit_is_judged_by_its_beginning,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_that_lightnings_callback_has(fault):
    assert not fault(Ours)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_check_of_a_fault_finds_it(fault):
    assert theirs_has_it(fault)
