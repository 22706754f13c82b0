"""The raw and the averaged weights of one module: which are in it, and where the others lie."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_tuning._trainer.averaging.exchange import Exchange
from lightning_tuning._trainer.shards import local_part, reshard, whole_tensor
from lightning_tuning._trainer.uninterrupted import Uninterrupted

Which = Literal["raw", "ema"]


class TwoSets:
    """Puts one of two sets of weights into a module.

    Args:
        module: The module.
        own: The set that it holds now.
        exchange: Makes what puts the other set in.
    """

    def __init__(
        self,
        module: LightningModule,
        *,
        own: Which,
        exchange: Callable[[], Exchange],
    ) -> None:
        self.module = module
        self.own: Which = own
        self._make = exchange
        self._active: Exchange | None = None

    @property
    def inside(self) -> Which:
        """The set that the module holds now."""
        if self._active is None:
            return self.own
        return "ema" if self.own == "raw" else "raw"

    @property
    def has_buffers(self) -> bool:
        """Whether buffers are exchanged too."""
        return (self._active or self._make()).has_buffers

    @property
    def copies(self) -> bool:
        """Whether an exchange writes into the module's memory, not to its pointers."""
        return (self._active or self._make()).copies

    def put(self, which: Which) -> None:
        """Put a set into the module, if it is not there."""
        if which == self.inside:
            return
        # what is in the module and what is noted of it must not fall apart
        with Uninterrupted():
            if self._active is None:
                exchange = self._make()
                exchange.put_in()
                self._active = exchange
            else:
                self._active.put_back()
                self._active = None

    @contextlib.contextmanager
    def using(self, which: Which) -> Iterator[None]:
        """Put a set into the module for the time of a block."""
        before = self.inside
        try:
            self.put(which)
            yield
        finally:
            self.put(before)

    def values(self, which: Which) -> dict[str, Tensor]:
        """Return what differs of a set, by path; local shards of sharded weights."""
        exchange = self._active or self._make()
        return exchange.own_values() if which == self.own else exchange.other_values()

    def whole_averages(self, *, everything: bool) -> dict[str, Tensor]:
        """Return averages on the host, gathered; all processes must call it.

        Args:
            everything: All of them, or those alone that are more precise than the module's tensors.
        """
        exchange = self._active or self._make()
        rows = zip(exchange.other_values().items(), exchange.tensors, strict=True)
        return {
            name: whole_tensor(average, like=own)
            for (name, average), own in rows
            if everything or average.dtype != own.dtype
        }

    def settled(self) -> TwoSets:
        """Return the same two sets, with those that are not in the module in host memory."""
        outside: Which = "raw" if self.inside == "ema" else "ema"
        values = {name: value.detach().cpu() for name, value in self.values(outside).items()}
        return named_sets(self.module, own=self.inside, others=values)


def named_sets(module: LightningModule, *, own: Which, others: dict[str, Tensor]) -> TwoSets:
    """Return two sets of weights, one in the module and one given by paths.

    Args:
        module: The module.
        own: The set that it holds.
        others: The other set.
    """

    def exchange() -> Exchange:
        reshard(module)
        found = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        # a buffer may have been taken away or resized since
        alike = {
            name: tensor
            for name, tensor in found.items()
            if name in others and local_part(tensor).shape == others[name].shape
        }
        return Exchange(module, alike, others)

    return TwoSets(module, own=own, exchange=exchange)
