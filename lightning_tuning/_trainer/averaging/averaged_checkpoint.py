"""Both sets of weights in a checkpoint, in Lightning's own layout.

``state_dict`` holds the averaged weights, ``current_model_state`` the raw ones, as Lightning's
``WeightAveraging`` callbacks write and read them. What an exact resume needs besides stands in
``ema_weights``: one entry for each ``EMAWeights``, in the order of the trainer's callbacks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from lightning_tuning._trainer.averaging.two_sets import TwoSets, Which
from lightning_tuning._trainer.shards import is_sharded
from lightning_tuning.functional.checkpoint_weights import ENTRIES


def add_entry(checkpoint: dict[str, Any], entry: dict[str, Any]) -> None:
    """Add what an exact resume needs; callbacks do so in their order."""
    checkpoint.setdefault(ENTRIES, []).append(entry)


class AveragedCheckpoints:
    """Lets every checkpoint of a trainer hold the averaged weights as its ``state_dict``.

    It answers for the strategy when the trainer asks for the weights, because callbacks are not
    asked where a file holds weights alone (``save_weights_only=True``).

    Args:
        strategy: The trainer's strategy.
        sets: Gives the two sets of weights; None where the module is to be saved as it is.
    """

    def __init__(self, strategy: Strategy, sets: Callable[[], TwoSets | None]) -> None:
        self._strategy = strategy
        self._sets = sets
        # of the class: an earlier fit of this trainer may have left its own answer
        self._original = type(strategy).lightning_module_state_dict
        vars(strategy)["lightning_module_state_dict"] = self._averaged_state

    def close(self) -> None:
        """Let the strategy answer for itself."""
        if vars(self._strategy).get("lightning_module_state_dict") == self._averaged_state:
            del vars(self._strategy)["lightning_module_state_dict"]

    def add_raw_state(self, checkpoint: dict[str, Any], entry: dict[str, Any]) -> None:
        """Add the raw weights, and Lightning's count of updates; all processes must call it."""
        first = entry["tracks"][0] if entry["tracks"] else {"since": None}
        updates = 0 if first["since"] is None else first["since"] + 1 - first["skipped"]
        checkpoint["current_model_state"] = self._state("raw", whole=True)
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(updates)}

    def _averaged_state(self) -> dict[str, Any]:
        return self._state("ema", whole=False)

    def _state(self, which: Which, *, whole: bool) -> dict[str, Any]:
        module, sets = self._strategy.lightning_module, self._sets()
        assert module is not None
        if sets is None or sets.module is not module:
            return self._original(self._strategy)
        with sets.using(which):
            if whole and is_sharded(module):
                return _whole_state(module)
            state = self._original(self._strategy)
            # what is exchanged in place would change under the file's hands
            return _copied(state) if sets.copies else state


def _whole_state(module: LightningModule) -> dict[str, Any]:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(module, options=options)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """Copy tensors to the host; those that share memory share it still."""
    copies: dict[tuple[int, torch.Size], Tensor] = {}

    def copied(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, DTensor):
            return copy.deepcopy(value)
        place = (value.data_ptr(), value.size())
        if place not in copies:
            copies[place] = value.detach().to("cpu", copy=True)
        return copies[place]

    return {name: copied(value) for name, value in state.items()}
