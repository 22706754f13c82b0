"""The parameters that a monitor follows, by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from lightning_tuning._trainer.update_ratio.update_norms import norms, real_part_of, stacked
from lightning_tuning._trainer.wiring.owners import Owned, owned_tensors
from lightning_tuning.functional.untouched import untouched
from lightning_tuning.functional.update_ratio.update_evidence import LeftOut
from lightning_tuning.functional.update_ratio.update_ratio import parameter_kind

_LAYERS = 16
_VALUES = 2**20
"""Of so many layers and values at most it is found out whether they were trained before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracked:
    """A parameter that is followed.

    Attributes:
        name: Its path.
        kind: What it is.
        eps: The relative spacing of its numbers.
        group: The index of its parameter group, counted over all optimizers.
        weight_decay: Of that group.
        trainable: Whether it takes gradients.
        shape: Its shape.
    """

    name: str
    kind: str
    eps: float
    group: int
    weight_decay: float
    trainable: bool
    shape: tuple[int, ...]


class TrackedParameters:
    """Names what the optimizers hold.

    Args:
        trainer: A trainer in ``on_train_start``.
        module: Its module.
        include: A regular expression that is to be found in a name; None for all.

    Raises:
        ValueError: No parameter has such a name.

    Attributes:
        known: What is followed, in the module's order; what is added during the fit comes last.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, include: str | None) -> None:
        self._trainer = trainer
        self._include = re.compile(include or "")
        self._owned = owned_tensors(module)
        self._order = {key: place for place, key in enumerate(self._owned)}
        self._places: dict[nn.Parameter, int | None] = {}
        self.known: list[Tracked] = []
        self.update()
        self._outside = self._others()
        self._norms_outside = self._norms_of(self._outside)
        self._fed: set[str] = set()
        if include is not None and not self.known and not any(map(is_lazy, module.parameters())):
            held = ", ".join(sorted(self._name(p, 0) for p in self._places)[:3])
            raise ValueError(
                f"include={include!r} is found in no name of a parameter that an optimizer holds,"
                f" such as {held}"
            )

    def update(self) -> None:
        """Take in what was added to the optimizers; of lazy layers what was called by now."""
        groups = [group for o in self._trainer.optimizers for group in o.param_groups]
        new = [
            (parameter, number, float(group.get("weight_decay", 0.0)))
            for number, group in enumerate(groups)
            for parameter in group["params"]
            if parameter not in self._places and not is_lazy(parameter)
        ]
        new.sort(key=lambda entry: self._order.get(id(entry[0]), len(self._order)))
        for parameter, number, decay in new:
            self._add(parameter, number, decay)

    def wanted(self, parameter: nn.Parameter) -> bool:
        """Whether a parameter is followed."""
        if parameter not in self._places:
            self.update()
        return self._places[parameter] is not None

    def by_row(self, parameter: nn.Parameter) -> bool:
        """Whether it is an embedding."""
        place = self._places[parameter]
        return place is not None and self.known[place].kind == "embedding"

    def place(self, parameter: nn.Parameter) -> int:
        """Return its index."""
        place = self._places[parameter]
        assert place is not None
        return place

    def ids(self, places: Collection[int]) -> set[int]:
        """Return the ids of the parameters with these indices."""
        return {id(p) for p, place in self._places.items() if place in places}

    def fresh(self) -> bool | None:
        """Whether the weights look as if nobody had trained them; None where that can't be told.

        A few layers tell. Those whose weights are spread over processes are not looked at.
        """
        return _untrained(owned for owned in self._owned.values() if owned.tensor in self._places)

    def rest_is_fresh(self, idle: Iterable[int]) -> bool | None:
        """Tell the same of what is left out, and of tensors that the optimizers hold for nothing.

        Args:
            idle: The indices of these.
        """
        paths = {self.known[place].name for place in idle}
        outside = {id(owned.tensor) for owned in self._outside}
        return _untrained(
            owned for key, owned in self._owned.items() if key in outside or owned.path in paths
        )

    def note_fed(self) -> None:
        """See what has a gradient that no optimizer takes; validation begins by clearing it."""
        self._fed |= {owned.path for owned in self._outside if owned.tensor.grad is not None}

    def left_out(self) -> tuple[LeftOut, ...]:
        """Return the matrices in no optimizer, but those that take gradients and have changed.

        All matrices that take part in another way, such as by a moving average, have changed.
        """
        now = self._norms_of(self._outside)
        return tuple(
            LeftOut(
                name=owned.path,
                shape=tuple(owned.tensor.shape),
                trainable=owned.tensor.requires_grad,
                fed=owned.path in self._fed,
            )
            for owned in self._outside
            if owned.tensor not in self._places
            and now.get(owned.path) == self._norms_outside.get(owned.path)
        )

    def _others(self) -> list[Owned]:
        return [
            owned
            for owned in self._owned.values()
            if owned.tensor not in self._places
            and owned.registered
            and not is_lazy(owned.tensor)
            and owned.tensor.dim() > 1
            and owned.tensor.is_floating_point()
            and not isinstance(owned.tensor, DTensor)
            and self._include.search(owned.path)
        ]

    @torch.no_grad()
    def _norms_of(self, outside: Sequence[Owned]) -> dict[str, float]:
        # who freezes a trunk may have one of billions of numbers, and nothing moves it
        chosen = [owned for owned in outside if owned.tensor.requires_grad]
        if not chosen:
            return {}
        parts = norms([real_part_of(owned.tensor.detach()) for owned in chosen])
        found = stacked(parts, chosen[0].tensor.device).tolist()
        return {owned.path: norm for owned, norm in zip(chosen, found, strict=True)}

    def _add(self, parameter: nn.Parameter, group: int, weight_decay: float) -> None:
        name = self._name(parameter, group)
        owned = self._owned.get(id(parameter))
        if not self._include.search(name):
            self._places[parameter] = None
            return
        self._places[parameter] = len(self.known)
        self.known.append(
            Tracked(
                name=name,
                kind=parameter_kind(name, parameter, owned.layer if owned else None),
                eps=torch.finfo(parameter.dtype).eps,
                group=group,
                weight_decay=weight_decay,
                trainable=parameter.requires_grad,
                shape=tuple(parameter.shape),
            )
        )

    def _name(self, parameter: nn.Parameter, group: int) -> str:
        owned = self._owned.get(id(parameter))
        return f"(group {group}, number {len(self._places)})" if owned is None else owned.path


def _untrained(among: Iterable[Owned]) -> bool | None:
    layers = {
        id(owned.layer): owned.layer
        for owned in among
        if owned.tensor.dim() > 1
        and owned.tensor.numel() <= _VALUES
        and not isinstance(owned.tensor, DTensor)
    }
    chosen = list(layers.values())[:: max(1, len(layers) // _LAYERS)]
    answers = [answer for answer in map(untouched, chosen) if answer is not None]
    return sum(answers) > len(answers) / 2 if answers else None
