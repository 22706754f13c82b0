"""Parameters that no optimizer trains, as rules about what a few real steps have shown."""

from __future__ import annotations

import dataclasses
import math

from lightning_tuning.findings import Finding
from lightning_tuning.functional import unread_flags
from lightning_tuning.functional.unread_flags import UnreadFlag
from lightning_tuning.functional.wiring.wiring_finding import wiring

_TELLS = 0.25
"""A training that takes away less of the loss proves nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rescue:
    """How a program trained as it is, and with a suspected fault removed.

    Attributes:
        ordinary: Share of the loss that its steps took away.
        changed: The same with the fault removed.
        steps: How many steps both took.
    """

    ordinary: float
    changed: float
    steps: int = 100

    @property
    def helps(self) -> bool:
        """Whether the change made a program train that did not.

        Example:
            >>> Rescue(ordinary=0.01, changed=0.7).helps, Rescue(ordinary=0.01, changed=0.1).helps
            (True, False)
        """
        return self.changed >= _TELLS and self.changed >= self.ordinary + 0.2

    @property
    def halves(self) -> bool:
        """Whether the change leaves at most half of the loss that the program has without it.

        Example:
            >>> Rescue(ordinary=0.6, changed=0.8).halves, Rescue(ordinary=0.6, changed=0.7).halves
            (True, False)
        """
        return self.changed >= _TELLS and self.leaves_at_most(0.5)

    @property
    def may_help(self) -> bool:
        """Whether more steps might show that the change helps: it learns twice as much of little.

        Example:
            >>> [Rescue(ordinary=0.04, changed=share).may_help for share in (0.1, 0.05)]
            [True, False]
        """
        return not self.helps and self.changed >= max(2 * self.ordinary, 0.02)

    def leaves_at_most(self, share: float) -> bool:
        """Whether the change leaves no more than a share of the loss that was left without it.

        Example:
            >>> rescue = Rescue(ordinary=0.5, changed=0.72)
            >>> rescue.leaves_at_most(0.6), rescue.leaves_at_most(0.5)
            (True, False)
        """
        return 1 - self.changed <= share * (1 - self.ordinary)

    def told(self, how: str) -> str:
        """Put both in words.

        Example:
            >>> Rescue(ordinary=0.01, changed=0.7).told("unfrozen")
            '100 steps took away 1% of the loss, but 70% unfrozen'
        """
        if math.isinf(self.ordinary):
            start = f"training broke down within {self.steps} steps, but they took away"
        elif self.ordinary <= 0:
            start = f"{self.steps} steps did not lower the loss, but took away"
        else:
            start = f"{self.steps} steps took away {self.ordinary:.0%} of the loss, but"
        return f"{start} {self.changed:.0%} {how}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NotHeld:
    """Parameters with a gradient that no optimizer holds.

    Attributes:
        missing: Their names.
        unregistered: Those among them that the module does not know.
        behind: Those in layers that nobody trained yet and that take in what trained layers make.
        held_and_reached: How many parameters that an optimizer holds got a gradient.
        twice: Names of parameters that two optimizers hold.
        losses_for_nobody: Backward passes that reached no parameter of any optimizer.
        fresh: Whether nobody has trained any of the missing ones.
        rescue: Training with the missing ones given to the optimizer; None where not tried.
    """

    missing: tuple[str, ...]
    unregistered: tuple[str, ...]
    behind: tuple[str, ...]
    held_and_reached: int
    twice: tuple[str, ...]
    losses_for_nobody: int
    fresh: bool
    rescue: Rescue | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen:
    """Parameters that the training step uses and that take no gradient.

    Attributes:
        names: Their names.
        numbers: How many numbers they have together.
        share: The share of these among all numbers that the step uses.
        rescue: Training with them unfrozen; None where not tried.
        unread: Attributes that were to freeze or to thaw, and did not.
    """

    names: tuple[str, ...]
    numbers: int
    share: float
    rescue: Rescue | None
    unread: tuple[UnreadFlag, ...]


def params_not_in_optimizer(evidence: NotHeld) -> tuple[Finding, ...]:
    """Judge parameters that get a gradient and that no optimizer holds."""
    code = "params_not_in_optimizer"
    missing = evidence.missing
    if evidence.unregistered:
        names = evidence.unregistered
        return wiring(
            "fail",
            code,
            f"{listed(names)}: a gradient comes, but the module does not know of what is in plain "
            "lists, dicts or tensors, and no optimizer holds it: it never learns.",
            hint="Register them: nn.ModuleList or nn.ModuleDict instead of a plain list or dict, "
            "nn.Parameter for single tensors.",
            where=names[0],
            parameters=len(names),
        )
    reason = _reason(evidence)
    if missing and reason:
        names = evidence.behind or missing
        return wiring(
            "fail",
            code,
            f"{listed(names)}: a gradient comes, but no optimizer holds what it is for{reason}.",
            hint="Give them to an optimizer in configure_optimizers, or freeze them by "
            "requires_grad_(False) if they are not to learn.",
            where=names[0],
            parameters=len(missing),
        )
    if missing and evidence.rescue is not None and _is_missed(evidence, evidence.rescue):
        return wiring(
            "warn",
            code,
            f"{listed(missing)}: in no optimizer; {evidence.rescue.told('with them in one')}.",
            hint="Give them to an optimizer in configure_optimizers.",
            where=missing[0],
            parameters=len(missing),
            progress=evidence.rescue.ordinary,
            progress_with_them=evidence.rescue.changed,
        )
    if missing:
        text = f"{len(missing)} parameters are left out of the optimizers; the program learns so."
        return wiring("pass", code, text, parameters=len(missing))
    return wiring("pass", code, "The optimizers hold every parameter that gets a gradient.")


def _is_missed(evidence: NotHeld, rescue: Rescue) -> bool:
    """Whether training what is missing makes so much of a difference that it was meant to be."""
    return rescue.helps or (evidence.fresh and rescue.halves)


def _reason(evidence: NotHeld) -> str:
    if not evidence.held_and_reached:
        return ", and none of what the optimizers hold gets one"
    if evidence.losses_for_nobody:
        return ": a loss goes backward and nothing of what it reaches is trained"
    if evidence.twice:
        return f", while two optimizers hold {evidence.twice[0]}"
    if evidence.behind:
        return "; they come after layers that are trained, and start from random weights"
    return ""


def frozen_params(evidence: Frozen) -> tuple[Finding, ...]:
    """Judge parameters without ``requires_grad``."""
    code = "frozen_params"
    if evidence.unread:
        return wiring(
            "fail",
            code,
            unread_flags.told(evidence.unread),
            hint=unread_flags.HINT,
            where=evidence.unread[0].where,
            flags=len(evidence.unread),
        )
    if not evidence.names:
        return wiring("pass", code, "No parameter that the training step uses is frozen.")
    rescue = evidence.rescue
    if rescue is not None and rescue.helps:
        return wiring(
            "warn",
            code,
            f"{listed(evidence.names)}: requires_grad=False for {evidence.share:.0%} of all "
            f"weights; {rescue.told('unfrozen')}.",
            hint="Set requires_grad and give them to the optimizer, or load trained weights.",
            where=evidence.names[0],
            parameters=len(evidence.names),
            share=evidence.share,
            progress=rescue.ordinary,
            progress_unfrozen=rescue.changed,
        )
    text = f"{len(evidence.names)} parameters are frozen ({evidence.share:.0%} of all weights)."
    return wiring("pass", code, text, parameters=len(evidence.names), share=evidence.share)


def listed(names: tuple[str, ...]) -> str:
    """Name a few, and how many more there are.

    Example:
        >>> listed(("a", "b", "c", "d"))
        'a, b and 2 more'
    """
    if len(names) <= 3:
        return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
    return f"{', '.join(names[:2])} and {len(names) - 2} more"
