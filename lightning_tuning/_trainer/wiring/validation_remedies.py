"""Ways to bring validation data back to how training data look: pictures turned, ids moved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.probe import Probe, Watch
from lightning_tuning._trainer.wiring.layer_calls import LayerCall, LayerCalls
from lightning_tuning.functional.alignment import TURNS, better_turn, id_offset

_TRAIN_BATCHES = 16
_VAL_BATCHES = 4


def remedies(probe: Probe) -> list[tuple[str, Watch]]:
    """Return what validation data may lack, as far as averages tell: its name, and a context."""
    with contextlib.suppress(CannotProbeError):
        return list(_remedies(probe))
    return []


def _remedies(probe: Probe) -> Iterator[tuple[str, Watch]]:
    pictures, ids = (Pictures(probe.module), Pictures(probe.module)), (Ids(), Ids())
    for batch in probe.batches(_TRAIN_BATCHES):
        probe.step(batch, mode="silent", watch=[pictures[0], ids[0]])
    probe.validate(num_batches=_VAL_BATCHES, watch=[pictures[1], ids[1]])
    for name, mean in pictures[0].means().items():
        other = pictures[1].means().get(name)
        turn = None if other is None else better_turn(mean, other)
        if turn is not None:
            yield f"{turn} where they enter {name}", Pictures(probe.module, {name: TURNS[turn]})
    for key, counts in ids[0].counts.items():
        others = ids[1].counts.get(key)
        offset = 0 if others is None else id_offset(counts, others)
        if offset:
            yield f"and {offset} taken from their ids", Ids({key: offset})


class Pictures(LayerCalls):
    """Averages the pictures that enter a convolution, and may turn them.

    Args:
        module: The network.
        turns: What to do with them, by the name of the layer.
    """

    def __init__(
        self, module: nn.Module, turns: Mapping[str, Callable[[Tensor], Tensor]] | None = None
    ) -> None:
        super().__init__(module, self._look)
        self._turns = dict(turns or {})
        self._seen: dict[str, list[Tensor]] = {}

    def means(self) -> dict[str, Tensor]:
        """Return the average picture at each layer whose pictures all have one size."""
        return {
            name: torch.stack(parts).mean(0).cpu()
            for name, parts in self._seen.items()
            if len({part.shape for part in parts}) == 1
        }

    def _look(self, call: LayerCall, make: Callable[..., Any]) -> Any:
        if call.function != "conv2d" or not call.of_data or call.input.dim() != 4:
            return make()
        if call.name in self._turns:
            return make(given=self._turns[call.name](call.input))
        self._seen.setdefault(call.name, []).append(call.input.detach().float().mean(0))
        return make()


class Ids(TorchFunctionMode):
    """Counts the ids that enter an embedding, and may take an offset from them.

    Ids of padding stay, and those that an offset would make negative or too large.

    Args:
        offsets: By the ``id`` of the embedding's weight.
    """

    def __init__(self, offsets: Mapping[int, int] | None = None) -> None:
        super().__init__()
        self.counts: dict[int, Tensor] = {}
        self._offsets = dict(offsets or {})

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Make the call, with other ids if it is one of an embedding."""
        kwargs = dict(kwargs or {})
        known = getattr(func, "__name__", "") in ("embedding", "embedding_bag")
        # torch.embedding has them the other way round, and is what these call
        if not known or len(args) < 2 or not isinstance(args[1], nn.Parameter):
            return func(*args, **kwargs)
        ids, weight = args[:2]
        padding = args[2] if func.__name__ == "embedding" and len(args) > 2 else None
        padding = kwargs.get("padding_idx", padding)
        key, real = id(weight), ids != (-1 if padding is None else padding)
        if key in self._offsets:
            moved = ids - self._offsets[key]
            ids = torch.where(real & (moved >= 0) & (moved < len(weight)), moved, ids)
        else:
            seen = torch.bincount(ids[real].flatten(), minlength=len(weight)).cpu()
            self.counts[key] = self.counts.get(key, 0) + seen
        return func(ids, weight, *args[2:], **kwargs)
