import pytest

from lightning_tuning.functional.wiring.wiring_inputs import (
    InputEvidence,
    constant_input,
    input_ignored,
)


@pytest.mark.parametrize(
    ("evidence", "ignored", "constant"),
    [
        (InputEvidence(examples=7), "pass", "pass"),
        (InputEvidence(examples=7, ignored=True), "fail", "pass"),
        (InputEvidence(examples=7, constant=True), "pass", "fail"),
        (InputEvidence(examples=7, ignored=True, constant=True), "fail", "fail"),
        (InputEvidence(why_not="no target"), "skip", "skip"),
    ],
)
def test_verdicts(evidence, ignored, constant):
    assert input_ignored(evidence)[0].verdict == ignored
    assert constant_input(evidence)[0].verdict == constant
    assert input_ignored(evidence)[0].code == "input_ignored"
    assert constant_input(evidence)[0].code == "constant_input"
