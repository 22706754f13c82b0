"""A topic of the wiring check: one measurement, and the rules that read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.probe import Probe
from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring

Rule = Callable[[Any], tuple[Finding, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topic:
    """What is measured together.

    Attributes:
        measure: Experiments with the program; what they return is what the rules get.
        rules: Pure functions by the code that they may find; each returns at least one finding.
    """

    measure: Callable[[Probe], Any]
    rules: Mapping[str, Rule]


def judge(probe: Probe, topics: Iterable[Topic], wanted: Collection[str]) -> tuple[Finding, ...]:
    """Measure each topic that a wanted rule reads, and apply those rules.

    A topic that can't be measured gives a skip with the reason for each of its rules.
    """
    findings: list[Finding] = []
    for topic in topics:
        rules = {name: rule for name, rule in topic.rules.items() if name in wanted}
        if not rules:
            continue
        if probe.trainer.world_size > 1:
            # what one process sees decides which steps come next, and all must take the same
            for name in rules:
                findings += wiring("skip", name, "Not checked: there are several processes.")
            continue
        try:
            probe.rewind()
            evidence = topic.measure(probe)
        except CannotProbeError as error:
            for name in rules:
                findings += wiring("skip", name, f"Not checked: {error}.")
            continue
        for rule in rules.values():
            findings += rule(evidence)
    return tuple(findings)
