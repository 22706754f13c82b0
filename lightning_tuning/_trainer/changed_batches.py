"""Batches that a probe may change without changing the person's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_tuning._trainer.batches import ProbeBatch


def copied(batch: ProbeBatch) -> ProbeBatch:
    """Return a batch with copies of its tensors."""
    return changed(batch, lambda data: apply_to_collection(data, Tensor, torch.clone))


def changed(batch: ProbeBatch, change: Callable[[Any], Any] | None) -> ProbeBatch:
    """Return a batch with other data; the same batch where there is no change."""
    return batch if change is None else batch._replace(data=change(copy.copy(batch.data)))
