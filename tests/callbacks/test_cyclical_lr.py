"""CyclicalLR inside real fits."""

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim.lr_scheduler import CyclicLR
from torch.utils.data import DataLoader, IterableDataset

from lightning_tuning import CyclicalLR, LRRangeTest, OneCycle, cyclical_lr
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


def cycles(steps, length, **settings):
    settings = {"base_lr": 0.05, "max_lr": 0.2, **settings}
    return [cyclical_lr(step, length, **settings) for step in range(steps)]


@pytest.mark.parametrize(
    ("settings", "length"),
    [({"cycle_steps": 5}, 5), ({"cycle_epochs": 0.5}, 3), ({}, 3), ({"cycle_epochs": 2}, 12)],
)
def test_every_step_has_the_rate_of_the_formula(settings, length):
    callback, recorder = CyclicalLR(0.2, base_lr=0.05, **settings), Recorder()
    fit(None, callback, recorder)
    assert recorder.first() == cycles(12, length)
    assert callback.result.cycle_steps == length


def test_an_epoch_is_counted_in_optimizer_steps():
    callback = CyclicalLR(0.2, cycle_epochs=1)
    fit(None, callback, data=loader(samples=28), accumulate_grad_batches=3)
    assert callback.result.cycle_steps == 3
    assert callback.result.cycle_ends == (3, 6)


def test_weights_equal_those_of_torchs_scheduler():
    class Torch(Classifier):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            scheduler = CyclicLR(optimizer, 0.05, 0.2, 2, 3, mode="triangular2")
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    callback = CyclicalLR(0.2, base_lr=0.05, mode="triangular2", cycle_steps=5, pct_start=0.4)
    torchs = weights(fit(Torch()))
    for name, weight in weights(fit(None, callback)).items():
        assert torch.allclose(weight, torchs[name], rtol=1e-6, atol=1e-7)


def test_the_range_of_a_range_test_is_that_of_the_cycles():
    test, callback = FakeRangeTest(0.5), CyclicalLR()
    fit(Classifier(groups=(0.1, 0.01)), callback, test)
    assert callback.result.max_lr == pytest.approx((1.0, 0.1))
    assert callback.result.base_lr == pytest.approx((0.1, 0.01))
    assert "from the range test's lr_range" in callback.findings[0].message


def test_a_real_range_test_gives_its_range():
    test, callback = LRRangeTest(num_steps=40, max_steps=120), CyclicalLR()
    fit(None, test, callback, data=loader(samples=240), max_epochs=1)
    assert test.result.suggestion is not None
    if test.result.lr_range is not None:
        assert (callback.result.base_lr[0], callback.result.max_lr[0]) == pytest.approx(
            test.result.lr_range
        )
    else:
        assert callback.result.max_lr == pytest.approx((test.result.suggestion,))


@pytest.mark.parametrize(
    ("settings", "low", "high"),
    [
        ({}, (0.025, 0.0025), (0.1, 0.01)),
        ({"max_lr": 0.4}, (0.1, 0.1), (0.4, 0.4)),
        ({"max_lr": [0.4, 0.2], "base_lr": 0.1}, (0.1, 0.1), (0.4, 0.2)),
        ({"base_lr": [0.01, 0.001]}, (0.01, 0.001), (0.1, 0.01)),
    ],
)
def test_without_a_range_the_bounds_are_given_or_a_factor_of_four_apart(settings, low, high):
    callback = CyclicalLR(**settings)
    fit(Classifier(groups=(0.1, 0.01)), callback)
    assert callback.result.base_lr == pytest.approx(low)
    assert callback.result.max_lr == pytest.approx(high)


def test_a_lower_bound_above_the_optimizers_own_rate_is_refused():
    with pytest.raises(ValueError, match=r"base_lr=.* must not lie above max_lr"):
        fit(None, CyclicalLR(base_lr=0.3))


@pytest.mark.parametrize("step", [4, 6, 11])
@pytest.mark.parametrize("settings", [{"max_lr": 0.2, "cycle_steps": 5}, {}, {"cycle_epochs": 1}])
def test_a_resumed_fit_equals_one_without_interruption(step, settings):
    data = {"data": same_batches()}
    whole_run, resumed_run = Recorder(), Recorder()
    whole = fit(None, CyclicalLR(**settings), SaveAfter(step), whole_run, **data)
    resumed = fit(None, CyclicalLR(**settings), resumed_run, ckpt_path="saved.ckpt", **data)
    assert resumed_run.first() == whole_run.first()[step:]
    assert_equal_weights(weights(resumed), weights(whole))


def test_a_longer_fit_makes_more_cycles_of_the_same_length():
    fit(None, CyclicalLR(0.2, base_lr=0.05), SaveAfter(12))
    callback, recorder = CyclicalLR(0.2, base_lr=0.05), Recorder()
    fit(None, callback, recorder, max_epochs=4, ckpt_path="saved.ckpt")
    assert callback.result.cycle_ends == (3, 6, 9, 12, 15, 18, 21, 24)
    assert recorder.first() == cycles(24, 3)[12:]
    assert {finding.code for finding in callback.findings} == {"schedule_resolved"}


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(6), 0


def test_a_fit_without_an_end_needs_the_length_of_a_cycle_in_steps():
    endless = {"data": DataLoader(Endless(), 4), "limit_train_batches": None}
    with pytest.raises(MisconfigurationException, match=r"CyclicalLR\(cycle_steps=\.\.\.\)"):
        fit(None, CyclicalLR(0.2), max_epochs=-1)
    with pytest.raises(MisconfigurationException, match="give cycle_steps"):
        fit(None, CyclicalLR(0.2, cycle_epochs=1), max_steps=8, **endless)
    recorder = Recorder()
    fit(None, CyclicalLR(0.2, base_lr=0.05, cycle_steps=4), recorder, max_steps=9, **endless)
    assert recorder.first() == cycles(9, 4)


def test_manual_optimization_advances_with_each_batch():
    recorder = Recorder()
    fit(Manual(every=2), CyclicalLR(0.2, base_lr=0.05, cycle_steps=4), recorder)
    assert recorder.values == [[value, value] for value in cycles(12, 4)]


def test_momentum_stays_on_request():
    recorder = Recorder()
    fit(None, CyclicalLR(0.2, cycle_momentum=False), recorder)
    assert {momentum for _, momentum in recorder.first()} == {0.9}


def test_two_schedules_and_two_lengths_are_refused():
    with pytest.raises(MisconfigurationException, match="beside another schedule callback"):
        fit(None, CyclicalLR(0.2), OneCycle(0.1))
    with pytest.raises(ValueError, match="cycle_steps=5 and cycle_epochs=1"):
        CyclicalLR(0.2, cycle_steps=5, cycle_epochs=1)


def test_a_fit_shorter_than_a_cycle_is_told():
    callback = CyclicalLR(0.2, cycle_epochs=10)
    fit(None, callback)
    [told] = [finding for finding in callback.findings if finding.verdict == "warn"]
    assert "ends before its first cycle of 60" in told.message
