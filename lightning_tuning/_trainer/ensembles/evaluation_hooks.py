"""Letting one module do in an evaluation what another one is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_tuning._trainer.ensembles.averaged_forward import AveragedForward

_STAGES = ("validation", "test", "predict")
_MOMENTS = ("start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end")
_HOOKS = (
    *(f"on_{stage}_{moment}" for stage in _STAGES for moment in _MOMENTS),
    *(f"{stage}_step" for stage in _STAGES),
    *("val_dataloader", "test_dataloader", "predict_dataloader"),
    *("prepare_data", "setup", "teardown", "configure_callbacks"),
    *("transfer_batch_to_device", "on_before_batch_transfer", "on_after_batch_transfer"),
)


def delegated_hooks(
    outer: LightningModule,
    inner: LightningModule,
    around: Callable[[], AveragedForward],
) -> dict[str, Callable[..., Any]]:
    """Return the hooks of an evaluation that a module has, to be called on another one.

    What the inner module logs goes where the outer one's would.

    Args:
        outer: The module that the trainer knows.
        inner: The module that has the hooks, a child of it.
        around: Gives what averages the forward pass during each call.
    """
    return {
        name: _delegated(outer, inner, name, around)
        for name in _HOOKS
        if is_overridden(name, inner, LightningModule) or name == "predict_step"
    }


def _delegated(
    outer: LightningModule,
    inner: LightningModule,
    name: str,
    around: Callable[[], AveragedForward],
) -> Callable[..., Any]:
    hook = getattr(inner, name)

    # Lightning reads the signature
    @functools.wraps(hook)
    def delegated(*args: Any, **kwargs: Any) -> Any:
        inner._current_fx_name = outer._current_fx_name
        try:
            with around() as averaged:
                result = hook(*args, **kwargs)
        finally:
            inner._current_fx_name = None
        if name.endswith("_step") and not averaged.calls:
            raise ValueError(
                f"{type(inner).__name__}.{name} calls neither the module itself nor its only child"
                " with weights, so that no output was averaged; let it call self(...), or name the"
                " part that it calls by output_of"
            )
        return result

    return delegated
