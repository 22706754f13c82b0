"""What became of each parameter in a few real steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lightning_tuning._trainer.wiring.gradient_ledger import Account, Row
from lightning_tuning._trainer.wiring.owners import Owned
from lightning_tuning._trainer.wiring.uses import DELIBERATE, Uses


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fate:
    """What became of one parameter.

    Attributes:
        name: Its path; ``"(unregistered 1)"`` and so on where the module does not know it.
        parameter: It itself.
        registered: Whether the module knows it.
        layer: Path of the layer it belongs to.
        fresh: Whether its layer was never trained, see
            :func:`~lightning_tuning.functional.untouched.untouched`.
        holders: How many of the fit's optimizers hold it.
        called: Whether the training step used it.
        guarded: Whether it did so under ``no_grad`` only.
        reached: Whether a backward pass reached it.
        passes: How many did.
        fed: Whether one brought a gradient that is not zero.
        used: Whether a step found a gradient that is not zero.
        moved_by_step: Whether it differed from its start just after a step.
        moved: Whether it differs at the end.
        lr: The largest learning rate it had.
        uniform: Whether all its rows were the same at the start.
        spread: How much the rows differ at the end, over the distance that they moved.
        behind: Whether its layer takes in what an optimizer's parameters have made.
        on_data: Whether its layer takes in something that nothing trained has made.
        cuts: Functions that end its gradient.
    """

    name: str
    parameter: Tensor
    registered: bool
    layer: str
    fresh: bool | None
    holders: int
    called: bool
    guarded: bool
    reached: bool
    passes: int
    fed: bool
    used: bool
    moved_by_step: bool
    moved: bool
    lr: float
    uniform: bool
    spread: float
    behind: bool
    on_data: bool
    cuts: frozenset[str]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FateReader:
    """Puts together what is known of each parameter.

    Attributes:
        held: What the optimizers hold.
        fed: The ids of what a backward pass reached.
        uses: The calls of one step.
        fresh: Whether each layer was untouched before the steps, by the parameter's path.
    """

    held: Sequence[nn.Parameter]
    fed: set[int]
    uses: Uses
    fresh: Mapping[str, bool | None]

    def fate(self, name: str, owned: Owned, account: Account, row: Row) -> Fate:
        """Return what became of one parameter."""
        key = id(owned.tensor)
        taken_in = self.uses.inputs(owned.layer)
        trained = self.fed & {id(p) for p in self.held}
        lost = row.fed is False and key in self.uses.used
        return Fate(
            name=name,
            parameter=owned.tensor,
            registered=owned.registered,
            layer=owned.layer_path,
            fresh=self.fresh[name],
            holders=sum(p is owned.tensor for p in self.held),
            called=key in self.uses.used,
            guarded=not self.uses.used.get(key, True),
            reached=account.calls > 0,
            passes=account.calls,
            **row._asdict(),
            lr=account.lr,
            behind=any(source & trained for source in taken_in),
            on_data=any(not source & trained for source in taken_in),
            cuts=self._cuts(owned.tensor, connected=account.calls > 0) if lost else frozenset(),
        )

    def _cuts(self, parameter: Tensor, *, connected: bool) -> frozenset[str]:
        """Return what ends a gradient; where one of zeros came, no detach did."""
        cuts = frozenset(self.uses.cuts_of(parameter))
        return cuts - DELIBERATE or cuts if connected else cuts
