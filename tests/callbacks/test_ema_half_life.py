"""How fast the average of EMAWeights forgets, against closed forms, and a range test beside it."""

import math

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_tuning import EMAWeights, LRRangeTest, OneCycle
from tests.callbacks.ema_reference import differing, fit, weights_of
from tests.toys import Classifier, Manual, loader


class Jump(LightningModule):
    """Its weight is 0 for the first step and 1 from the second on: the average shows the decay."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.steps = 0

    def training_step(self, batch, batch_idx):
        return self.weight.sum() * 0

    def validation_step(self, batch, batch_idx):
        """Lightning wants one where it is given data."""

    def on_before_optimizer_step(self, optimizer):
        with torch.no_grad():
            self.weight.fill_(float(self.steps > 0))
        self.steps += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Remaining(Callback):
    """Notes the share of the first weight after each batch."""

    def __init__(self, ema):
        self.ema, self.seen = ema, []

    def on_train_batch_end(self, trainer, pl_module, *args):
        average = self.ema.average
        self.seen.append(1 - average["weight"].item() if average else math.nan)


def shares(ema=None, module=None, **settings):
    ema = EMAWeights(warmup=False, **(ema or {}))
    remaining = Remaining(ema)
    fit(module or Jump(), ema, remaining, limit_val_batches=0, **settings)
    return remaining.seen


def halved(batches, half_life):
    return [0.5 ** (batch / half_life) for batch in range(batches)]


# 6 batches of 4 samples in an epoch
CASES = {
    "steps": ({"half_life": 3}, {}, 3),
    "steps as text": ({"half_life": "3 steps"}, {}, 3),
    "samples": ({"half_life": "10 samples"}, {}, 2.5),
    "epochs": ({"half_life": "0.5 epochs"}, {}, 3),
    "epochs of fewer batches": ({"half_life": "2 epochs"}, {"limit_train_batches": 2}, 4),
    "decay": ({"decay": 0.5}, {}, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_half_life(name):
    ema, settings, half_life = CASES[name]
    seen = shares(ema, **settings)
    assert seen == pytest.approx(halved(len(seen), half_life), rel=1e-12)


@pytest.mark.parametrize("half_life", ["8 samples", "0.3333333333333333 epochs"])
def test_half_life_under_accumulation(half_life):
    """A step that accumulated fewer batches forgets less: 4, then 2 in each epoch."""
    seen = shares({"half_life": half_life}, accumulate_grad_batches=4)
    steps = [seen[i] for i in (3, 5, 9, 11)]
    assert steps == pytest.approx([0.5 ** (b / 2) for b in (0, 2, 6, 8)], rel=1e-12)


def test_half_life_in_steps_under_accumulation():
    seen = shares({"half_life": 2}, accumulate_grad_batches=4)
    assert [seen[i] for i in (3, 5, 9, 11)] == pytest.approx(halved(4, 2), rel=1e-12)


def test_samples_of_a_loader_without_batch_size():
    class Whole(IterableDataset):
        def __iter__(self):
            yield from ([x, y] for x, y in loader())

    seen = shares({"half_life": "8 samples"}, data=DataLoader(Whole(), batch_size=None))
    assert seen == pytest.approx(halved(12, 2), rel=1e-12)


def test_epochs_without_length():
    class Endless(IterableDataset):
        def __iter__(self):
            yield from loader().dataset

    with pytest.raises(MisconfigurationException, match=r"0\.5 epochs"):
        shares({"half_life": "0.5 epochs"}, data=DataLoader(Endless(), 4))


@pytest.mark.parametrize("every", [2, 3, 5])
@pytest.mark.parametrize("after", [0, 2])
def test_schedules_agree_where_weights_are_constant(every, after):
    """On a weight that is constant since the first step, each n gives the same at its updates."""
    seldom = shares(
        {"decay": 0.9, "every_n_steps": every, "update_after_step": after}, max_epochs=4
    )
    always = shares({"decay": 0.9, "update_after_step": after}, max_epochs=4)
    assert math.isnan(always[after - 1]) == (after > 0)
    for index in range(after, 24, every):
        assert seldom[index] == pytest.approx(always[index], rel=1e-12)
    between = set(range(after, 24)) - set(range(after, 24, every))
    assert all(seldom[i] == seldom[i - 1] for i in between)


def test_warmup_values():
    ema = EMAWeights(0.999, warmup=True)
    remaining = Remaining(ema)
    fit(Jump(), ema, remaining, limit_val_batches=0)
    decays = [b / a for a, b in zip(remaining.seen, remaining.seen[1:], strict=False)]
    assert decays == pytest.approx([(1 + t) / (10 + t) for t in range(1, 12)], rel=1e-12)


@pytest.mark.parametrize("warmup", [True, False])
def test_half_life_longer_than_the_fit(warmup):
    ema = EMAWeights(half_life=13, warmup=warmup)
    fit(Classifier(), ema)
    [finding] = ema.findings
    assert finding.verdict == ("pass" if warmup else "warn")
    fit(Classifier(), ema := EMAWeights(half_life=12, warmup=warmup))
    assert ema.findings[0].verdict == "pass"


def test_ramp():
    """Of a weight that grows by 1 a step, the average lags d / (1 - d) behind in the long run."""

    class Ramp(Jump):
        def on_before_optimizer_step(self, optimizer):
            with torch.no_grad():
                self.weight.fill_(float(self.steps))
            self.steps += 1

    ema = EMAWeights(0.5, warmup=False)
    fit(module := Ramp(), ema, max_epochs=10)
    # after 60 steps, exactly: 59 - (1 - 0.5**59)
    assert module.weight.item() == pytest.approx(58, rel=1e-15)


class Save(Callback):
    def on_train_batch_end(self, trainer, pl_module, *args):
        self.raw = weights_of(pl_module)


def range_test():
    return LRRangeTest(num_steps=20, max_steps=120, apply=False)


@pytest.mark.parametrize("module", [Classifier, Manual])
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("order", [0, 1])
def test_beside_a_range_test(module, after, order):
    """Steps of the range test are none of the fit: bit for bit the same with and without it."""
    if module is Manual:
        # one optimizer alone can be tested; so it steps two layers
        module = Stepped
    settings = {"update_after_step": after, "buffers": "average"}
    plain = EMAWeights(0.8, **settings)
    fit(one := module(), plain)
    ema = EMAWeights(0.8, **settings)
    callbacks = [ema, range_test()] if order else [range_test(), ema]
    fit(other := module(), *callbacks)
    assert not differing(weights_of(one), weights_of(other))
    assert not differing(plain.average, ema.average)
    assert ema._weights._entry["tracks"] == plain._weights._entry["tracks"]


class Stepped(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


def test_beside_a_range_test_that_applies_its_rate_and_a_schedule():
    ema = EMAWeights(0.8)
    fit(module := Classifier(), ema, LRRangeTest(num_steps=20, max_steps=120), OneCycle())
    assert not differing(weights_of(module), ema.average)
    assert ema._weights._entry["tracks"][0]["since"] == 11


def test_half_life_in_samples_beside_a_range_test():
    """Nor do its batches count."""
    settings = {"half_life": "12 samples", "warmup": False}
    fit(one := Classifier(), EMAWeights(**settings))
    fit(other := Classifier(), range_test(), EMAWeights(**settings))
    fit(last := Classifier(), EMAWeights(**settings), range_test())
    assert not differing(weights_of(one), weights_of(other))
    assert not differing(weights_of(one), weights_of(last))
