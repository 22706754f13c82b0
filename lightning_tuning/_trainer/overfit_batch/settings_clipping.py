"""What becomes of gradients between the backward pass and the step, and a run without it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class GradientsBeforeStep:
    """Notes by how much a program shrinks its gradients, whoever does it.

    It looks after all hooks and Lightning's own clipping, just before the optimizer uses them. A
    hook on a parameter itself counts as part of its gradient.

    Args:
        trainer: A trainer within a sandbox, on one device and without a loss scaler.
        undo: Whether the gradients are put back as they came from the backward pass.
    """

    def __init__(self, trainer: Trainer, *, undo: bool = False) -> None:
        self._plugin: Any = trainer.precision_plugin
        self._module = trainer.lightning_module
        self._undo = undo
        self._came: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._shares: list[Tensor] = []

    def __enter__(self) -> GradientsBeforeStep:
        for parameter in self._module.parameters():
            if parameter.requires_grad:
                hook: Any = parameter.register_post_accumulate_grad_hook
                self._handles.append(hook(self._keep))
        clip = self._plugin._clip_gradients

        def clip_and_look(module: nn.Module, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            clip(module, optimizer, *args, **kwargs)
            self._look(optimizer)

        self._plugin._clip_gradients = clip_and_look
        return self

    def __exit__(self, *_: object) -> None:
        del self._plugin._clip_gradients
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._came = {}

    def share(self) -> float:
        """Return the median of what was left of the gradients' norm; 1 where nothing tells."""
        return float(torch.stack(self._shares).median()) if self._shares else 1.0

    def _keep(self, parameter: Tensor) -> None:
        if parameter.grad is not None and not parameter.grad.is_sparse:
            self._came[id(parameter)] = parameter.grad.detach().clone()

    @torch.no_grad()
    def _look(self, optimizer: Any) -> None:
        pairs = [
            (p.grad, self._came[id(p)])
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None and id(p) in self._came
        ]
        if not pairs:
            return
        now, came = (
            torch.stack([g.float().norm() for g in side]) for side in zip(*pairs, strict=True)
        )
        self._shares.append(now.norm() / came.norm().clamp_min(1e-30))
        if self._undo:
            for gradient, old in pairs:
                gradient.copy_(old)
