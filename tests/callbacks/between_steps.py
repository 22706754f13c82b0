"""A fit in which nothing but its first steps is measured, and what monitors do after them."""

import functools

from lightning.pytorch import Callback

from lightning_tuning import (
    ActivationMonitor,
    FilterMonitor,
    LossCurveDiagnosis,
    UpdateRatioMonitor,
)
from lightning_tuning._trainer.curves.step_rates import StepRates
from lightning_tuning._trainer.resting_hooks import _EACH_BATCH


def monitors(every_n_steps):
    """All four, for a `Classifier`, measuring seldom."""
    return [
        UpdateRatioMonitor(every_n_steps),
        ActivationMonitor(every_n_steps=every_n_steps),
        FilterMonitor("net.0", image_shape=[2, 3]),
        LossCurveDiagnosis(),
    ]


class Between(Callback):
    """Runs the monitors' hooks of batches after the third one inside of a context.

    Args:
        context: Makes it; it is to raise where something waits for a device.

    Attributes:
        calls: How many hooks ran in it.
        settings: Of a trainer, for a fit of 96 steps that is to be much longer.
    """

    def __init__(self, context):
        self.context, self.calls = context, 0
        self.settings = {"max_epochs": -1, "max_steps": 20_000, "log_every_n_steps": 1000}

    def watch(self, monkeypatch):
        for cls in (UpdateRatioMonitor, ActivationMonitor, FilterMonitor, LossCurveDiagnosis):
            for name in _EACH_BATCH:
                if name in vars(cls):
                    monkeypatch.setattr(cls, name, self._inside(getattr(cls, name)))
        # what a hook of the optimizer calls
        read = StepRates.read
        inside = self._inside(lambda rates, trainer: read(rates))
        monkeypatch.setattr(StepRates, "read", lambda rates: inside(rates, rates._trainer))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx >= 95:
            trainer.should_stop = True

    def _inside(self, original):
        @functools.wraps(original)
        def run(monitor, trainer, *args, **kwargs):
            if trainer.fit_loop.total_batch_idx < 3:
                return original(monitor, trainer, *args, **kwargs)
            self.calls += 1
            with self.context():
                return original(monitor, trainer, *args, **kwargs)

        return run
