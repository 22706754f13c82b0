"""Numbers in the data that are none."""

from __future__ import annotations

import dataclasses
import math

from lightning_tuning.findings import Finding
from lightning_tuning.functional.wiring.wiring_finding import wiring


@dataclasses.dataclass(frozen=True, kw_only=True)
class NonFinite:
    """What is not finite in the first batch that holds such values.

    Attributes:
        where: The place of the tensor in the batch.
        batch: The number of the batch.
        share: Of its values that are not finite.
        loss: The loss on that batch.
        loss_without: The loss on it with zeros in their place.
    """

    where: str
    batch: int
    share: float
    loss: float
    loss_without: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataEvidence:
    """What reading some batches came to.

    Attributes:
        batches: So many were read.
        floats: Whether they hold floating-point tensors.
        non_finite: What is not finite; None where all is.
    """

    batches: int
    floats: bool
    non_finite: NonFinite | None = None


def nan_in_data(evidence: DataEvidence) -> tuple[Finding, ...]:
    """Judge NaN and infinite values: they must make the loss so, which is finite without them."""
    code = "nan_in_data"
    if not evidence.floats:
        return wiring("skip", code, "There are no floating-point data.")
    found = evidence.non_finite
    if found is None:
        return wiring("pass", code, f"All values of {evidence.batches} batches are finite.")
    said = f"{found.share:.3%} of {found.where} in batch {found.batch} are NaN or infinite"
    numbers = {"share": found.share, "batch": found.batch, "loss": found.loss}
    if math.isfinite(found.loss) or not math.isfinite(found.loss_without):
        return wiring(
            "pass",
            code,
            f"{said}, and the loss is {found.loss:.3g}.",
            hint="",
            where=found.where,
            **numbers,
        )
    return wiring(
        "fail",
        code,
        f"{said}, and so is its loss; with zeros in their place it is {found.loss_without:.3g}.",
        hint="Leave these examples out, or fill the gaps in the Dataset.",
        where=found.where,
        loss_without=found.loss_without,
        **numbers,
    )
