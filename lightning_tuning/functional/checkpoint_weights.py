"""The two sets of weights in a checkpoint of a fit with an average."""

from __future__ import annotations

import os
import pathlib
import pickle
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_tuning.functional.checks import at_least, choice

ENTRIES = "ema_weights"
"""Key of a checkpoint: what each ``EMAWeights`` of the trainer needs for an exact resume."""


def checkpoint_weights(
    path: str | os.PathLike[str],
    which: Literal["ema", "raw"] = "ema",
    *,
    index: int = 0,
    weights_only: bool = True,
) -> dict[str, Tensor]:
    """Return one set of weights of a checkpoint, as a ``state_dict`` on the host.

    Checkpoints of ``EMAWeights`` and of Lightning's ``WeightAveraging`` callbacks hold two.

    Args:
        path: The checkpoint, one file.
        which: ``"ema"`` for the averaged weights, ``"raw"`` for those that were trained. A
            checkpoint without an average has raw ones alone.
        index: Which of several ``EMAWeights``, in the order of the trainer's callbacks.
        weights_only: Load tensors and plain values alone (see ``torch.load``). A file that you
            don't trust must not be loaded otherwise.

    Returns:
        The weights by name, for ``module.load_state_dict``.

    Raises:
        ValueError: It is a sharded checkpoint, or does not hold those weights, or more than
            tensors and plain values.

    Example:
        >>> import tempfile
        >>> file = tempfile.mktemp()
        >>> averaged, raw = {"w": torch.ones(1)}, {"w": torch.zeros(1)}
        >>> torch.save({"state_dict": averaged, "current_model_state": raw}, file)
        >>> checkpoint_weights(file, "raw")
        {'w': tensor([0.])}
        >>> os.remove(file)
    """
    choice("which", which, ("ema", "raw"))
    at_least("index", index, 0)
    checkpoint = _load(path, weights_only=weights_only)
    averaged = "current_model_state" in checkpoint
    raw = checkpoint["current_model_state"] if averaged else checkpoint["state_dict"]
    if which == "raw":
        return dict(raw)
    entries = checkpoint.get(ENTRIES, [{}] if averaged else [])
    if index >= len(entries):
        count = len(entries) or "no"
        raise ValueError(
            f"index={index}: the checkpoint {os.fspath(path)!r} holds {count} averaged set of"
            " weights; take those that it has with which='raw'"
        )
    if index == 0:
        return dict(checkpoint["state_dict"])
    return {**raw, **entries[index]["average"]}


def saved_weights(path: str | os.PathLike[str], *, weights_only: bool = True) -> dict[str, Tensor]:
    """Return the weights that a checkpoint was made for: averaged where there is an average.

    Args:
        path: The checkpoint, one file.
        weights_only: Load tensors and plain values alone.

    Raises:
        ValueError: See :func:`checkpoint_weights`.
    """
    return dict(_load(path, weights_only=weights_only)["state_dict"])


def _load(path: str | os.PathLike[str], *, weights_only: bool) -> dict[str, Any]:
    if pathlib.Path(path).is_dir():
        raise ValueError(
            f"path={os.fspath(path)!r} is a sharded checkpoint; make one file of it with"
            " `python -m lightning.pytorch.utilities.consolidate_checkpoint`"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only)
    except pickle.UnpicklingError as error:
        if not weights_only:
            raise
        raise ValueError(
            f"path={os.fspath(path)!r} holds more than tensors and plain values (hyperparameters,"
            " say); if you trust it, give weights_only=False"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"path={os.fspath(path)!r} is not a checkpoint of a Lightning trainer")
    return checkpoint
