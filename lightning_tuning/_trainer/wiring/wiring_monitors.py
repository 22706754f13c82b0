"""What schedulers and callbacks wait for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lightning.pytorch import LightningModule, Trainer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.wiring.topic import Topic
from lightning_tuning.functional.wiring import wiring_monitors as rules
from lightning_tuning.functional.wiring.wiring_monitors import Monitored, MonitorEvidence

_ALL_OR_NONE = (-1, 0)


def measure(probe: Probe) -> MonitorEvidence:
    """Read which metrics are waited for, and which way."""
    return MonitorEvidence(
        schedulers=tuple(_plateaus(probe.trainer)),
        callbacks=tuple(_waiting(probe.box.callbacks)),
    )


def _plateaus(trainer: Trainer) -> Iterator[Monitored]:
    if type(trainer.lightning_module).lr_scheduler_step is not LightningModule.lr_scheduler_step:
        return  # it may hand on the metric's negative
    for config in trainer.lr_scheduler_configs:
        scheduler: object = config.scheduler
        if isinstance(scheduler, ReduceLROnPlateau) and config.monitor is not None:
            yield Monitored(
                name=type(scheduler).__name__,
                monitor=config.monitor,
                mode=scheduler.mode,
                stops=False,
            )


def _waiting(callbacks: Iterable[object]) -> Iterator[Monitored]:
    """Yield callbacks, of Lightning or like its own, that prefer one value of a metric."""
    for callback in callbacks:
        monitor, mode = (getattr(callback, name, None) for name in ("monitor", "mode"))
        keeps_some = getattr(callback, "save_top_k", 1) not in _ALL_OR_NONE
        if isinstance(monitor, str) and mode in ("min", "max") and keeps_some:
            yield Monitored(
                name=type(callback).__name__,
                monitor=monitor,
                mode=mode,
                stops=hasattr(callback, "patience"),
            )


TOPIC = Topic(
    measure=measure,
    rules={
        "lr_decayed_too_fast": rules.lr_decayed_too_fast,
        "metric_wrong": rules.metric_wrong,
    },
)
