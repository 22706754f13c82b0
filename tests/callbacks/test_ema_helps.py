"""On a noisy task, the averaged weights are better than the raw ones."""

import importlib.util
import statistics

import pytest

from tests.conftest import ROOT


def example():
    spec = importlib.util.spec_from_file_location("ema_example", ROOT / "examples" / "ema.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_averaged_weights_validate_better_over_five_seeds():
    found = [example().fit(seed, max_epochs=4) for seed in range(1, 6)]
    averaged = [values["val_loss"] for values in found]
    raw = [values["val_loss_raw"] for values in found]
    assert statistics.mean(averaged) < statistics.mean(raw) - 0.03
    assert sum(a < r for a, r in zip(averaged, raw, strict=True)) >= 4
