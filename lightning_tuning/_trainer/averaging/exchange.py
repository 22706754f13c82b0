"""Two sets of values for the same tensors of a module, one of them in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_tuning._trainer.shards import is_sharded, local_part, reshard

Buffers = dict[str, Tensor | None]
_set_memory = torch.Tensor.data.__set__  # type: ignore[attr-defined]


class Exchange:
    """Puts other values into tensors of a module, and the module's own back.

    Where it can, it exchanges the memory that the tensors point to and copies nothing. Optimizers,
    DDP and compiled graphs hold the tensors, not their memory, and see the exchange. Sharded
    weights (FSDP2), which keep their memory elsewhere too, and weights whose other values lie on
    another device are exchanged entry by entry.

    Args:
        module: The module.
        tensors: Parameters or buffers of it, by path.
        others: The other values, by the same paths; in the tensors' precision or another, on their
            device or another; the local shard of a sharded tensor.

    Attributes:
        names: The paths.
        tensors: The module's tensors.
    """

    def __init__(
        self, module: nn.Module, tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]
    ) -> None:
        self.names = list(tensors)
        self.tensors = list(tensors.values())
        self._others = [others[name] for name in self.names]
        self._own: list[Tensor] = []
        self._slots = _slots_of_buffers(module, tensors)
        self._sharded = module if is_sharded(module) else None
        self._rnns = [m for m in module.modules() if isinstance(m, nn.RNNBase)]
        self._all_point = all(
            _can_point(tensor, other) and tensor.dtype == other.dtype
            for tensor, other in zip(self.tensors, self._others, strict=True)
        )

    @property
    def is_in(self) -> bool:
        """Whether the other values are in the module now."""
        return bool(self._own)

    @property
    def copies(self) -> bool:
        """Whether entries are exchanged, not pointers."""
        pairs = zip(self.tensors, self._others, strict=True)
        return not self._all_point and not all(_can_point(*pair) for pair in pairs)

    @property
    def has_buffers(self) -> bool:
        """Whether buffers are among the tensors."""
        return bool(self._slots)

    def put_in(self) -> None:
        """Put the other values into the module."""
        with torch.inference_mode(False), torch.no_grad():
            self._free_gathered()
            if self._all_point:
                self._own = [tensor.data for tensor in self.tensors]
                _point(self.tensors, self._others)
            else:
                self._own = _put_all(self.tensors, self._others)
            self._compact()

    def put_back(self) -> None:
        """Put the module's own values back, into the tensors that had them."""
        with torch.inference_mode(False), torch.no_grad():
            self._free_gathered()
            if self._all_point:
                _point(self.tensors, self._own)
            else:
                for tensor, own in zip(self.tensors, self._own, strict=True):
                    _put(tensor, own)
            for buffers, key, tensor in self._slots:
                # the module may have replaced it meanwhile
                buffers[key] = tensor
            self._own = []

    def own_values(self) -> dict[str, Tensor]:
        """Return the module's own values, wherever they are; local shards of sharded ones."""
        own = self._own or [local_part(tensor).detach() for tensor in self.tensors]
        return dict(zip(self.names, own, strict=True))

    def other_values(self) -> dict[str, Tensor]:
        """Return the other values, wherever they are; local shards of sharded ones."""
        values = self._others
        if self.is_in:
            # where entries were exchanged, what was the other's memory holds the own values now
            values = [
                local_part(tensor).detach() if other is own else other
                for tensor, other, own in zip(self.tensors, self._others, self._own, strict=True)
            ]
        return dict(zip(self.names, values, strict=True))

    def _free_gathered(self) -> None:
        if self._sharded is not None:
            reshard(self._sharded)

    def _compact(self) -> None:
        # cuDNN wants all weights of a recurrent layer in one piece
        for rnn in self._rnns:
            rnn.flatten_parameters()


def _slots_of_buffers(
    module: nn.Module, tensors: Mapping[str, Tensor]
) -> list[tuple[Buffers, str, Tensor]]:
    wanted = {id(t): t for t in tensors.values() if not isinstance(t, nn.Parameter)}
    if not wanted:
        return []
    return [
        (owner._buffers, key, buffer)
        for owner in module.modules()
        for key, buffer in owner._buffers.items()
        if buffer is not None and id(buffer) in wanted
    ]


def _point(tensors: list[Tensor], values: list[Tensor]) -> None:
    deque(map(_set_memory, tensors, values), maxlen=0)


def _put_all(tensors: list[Tensor], values: list[Tensor]) -> list[Tensor]:
    own: list[Tensor] = []
    try:
        for tensor, value in zip(tensors, values, strict=True):
            own.append(_put(tensor, value))
    except BaseException:
        # out of memory in the middle must not leave a mixture
        for tensor, value in zip(tensors, own, strict=False):
            _put(tensor, value)
        raise
    return own


def _put(tensor: Tensor, value: Tensor) -> Tensor:
    """Give a tensor other values; return its own, in memory of the value's where that serves."""
    if _can_point(tensor, value):
        own = tensor.data
        tensor.data = value.to(tensor.dtype)
        return own
    local = local_part(tensor)
    own = local.to(value.device, copy=True)
    local.copy_(value)
    return value.copy_(own) if value.dtype == own.dtype else own


def _can_point(tensor: Tensor, value: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) and type(value) is Tensor
    return plain and tensor.device == value.device and tensor.layout == torch.strided
