"""What rules about layers are given, and what they saw."""

from __future__ import annotations

import dataclasses

from lightning_tuning.functional.activations.activation_result import ActivationResult
from lightning_tuning.functional.fit_course import FitCourse


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationEvidence:
    """A fit that was watched.

    Attributes:
        result: What was measured.
        course: How the training loss went.
        step: The place on the axis of ``self.log``.
        gradients: Whether gradients were measured.
        compiled: Whether a part of the program is compiled, where gradients with respect to
            activations are not to be had.
    """

    result: ActivationResult
    course: FitCourse
    step: int = 0
    gradients: bool = True
    compiled: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Symptom:
    """What one rule saw.

    Attributes:
        code: Of the finding.
        said: The numbers, without a full stop.
        hint: What to do.
        where: The layer.
        numbers: Evidence.
        is_there: Whether it is large enough to spoil a fit.
        exact: Whether it needs no other sign that the fit goes badly.
        missing: Why it can't be judged.
    """

    code: str
    said: str = ""
    hint: str = ""
    where: str = ""
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)
    is_there: bool = False
    exact: bool = False
    missing: str = ""
