"""The usual mistakes of training programs, looked for before the first step."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.verdict import OnFail, reason_to_skip, settle
from lightning_tuning._trainer.wiring.topic import judge
from lightning_tuning._trainer.wiring.wiring import TOPICS
from lightning_tuning.findings import Finding
from lightning_tuning.functional import checks as arguments
from lightning_tuning.functional.wiring.wiring_finding import wiring

_RULES = tuple(dict.fromkeys(name for topic in TOPICS for name in topic.rules))


class WiringCheck(Callback):
    """Looks for the mistakes that training programs really have, before the first step.

    The program itself is tried, not its attributes: real training steps are watched as they call
    losses, layers, ``backward`` and optimizers, and repeated with one thing changed (an example
    exchanged, the input of a later position, the batch doubled). What follows exactly from such an
    experiment may fail; a statistic only warns, and only where a short training goes badly and
    goes much better without the suspected fault. Everything is put back bit for bit. It is skipped
    on resume and under ``fast_dev_run``.

    Args:
        checks: Names of the rules to apply, such as ``["broadcast_mismatch", "zero_init"]``; None
            for all. Each has the name of the code that it may find.
        skip: Names of rules to leave out.
        on_fail: ``"warn"`` only tells; ``"raise"`` stops the fit with a
            :class:`~lightning_tuning.ChecksFailedError`.

    Raises:
        ValueError: There is no rule of that name, or another argument is out of its range.

    Attributes:
        findings: One or more for each rule.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(
        ...     callbacks=[WiringCheck(skip=["class_imbalance"])],
        ...     logger=False,
        ...     enable_checkpointing=False,
        ... )
    """

    def __init__(
        self,
        checks: Sequence[str] | None = None,
        *,
        skip: Sequence[str] = (),
        on_fail: OnFail = "warn",
    ) -> None:
        _refuse_unknown("checks", checks or ())
        _refuse_unknown("skip", skip)
        arguments.choice("on_fail", on_fail, ("warn", "raise"))
        self.checks = checks
        self.skip = skip
        self.on_fail: OnFail = on_fail
        self.findings: tuple[Finding, ...] = ()

    def checked_before_fit(self) -> bool:
        """Tells checks from other callbacks."""
        return True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the fit before."""
        if stage == "fit":
            self.findings = ()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check; all states are restored and data are set up at this moment."""
        settle(trainer, self, self.examine(trainer, pl_module))

    def examine(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Finding, ...]:
        """Return what there is to say of a program in ``on_train_start``; nothing is shown."""
        reason = reason_to_skip(trainer)
        findings: tuple[Finding, ...] = ()
        if reason is None:
            wanted = set(_RULES if self.checks is None else self.checks)
            try:
                with Probe(trainer, pl_module) as probe:
                    findings = judge(probe, TOPICS, wanted - set(self.skip))
            except CannotProbeError as error:
                reason = str(error)
        if reason is not None:
            findings = wiring("skip", "step_raised", f"Nothing was checked: {reason}.")
        return findings


def _refuse_unknown(argument: str, names: Sequence[str]) -> None:
    unknown = set(names) - set(_RULES)
    if isinstance(names, str) or unknown:
        raise ValueError(
            f"{argument}={names!r} must be a list of rules; there are {', '.join(sorted(_RULES))}"
        )
