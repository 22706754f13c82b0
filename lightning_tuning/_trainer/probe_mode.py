"""The modes of a module in a single step."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import LightningModule

from lightning_tuning._trainer.forward_only import silence

Mode = Literal["live", "silent", "eval"]
"""As in training; without dropout and with BatchNorm by the batch; as in evaluation."""


def set_mode(module: LightningModule, mode: Mode) -> None:
    """Put a module that is in training mode into another."""
    if mode == "eval":
        module.eval()
    elif mode == "silent":
        silence(module)
