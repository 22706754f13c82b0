"""The checks before a fit name what is broken, and are silent on what is not.

``CORPUS_FULL=1 pytest tests/corpus/test_checks.py`` takes all programs; the table is
that of ``python -m tests.corpus.confusion``.
"""

import pytest

from lightning_tuning import GradientCheck, InitialLossCheck, OverfitBatchCheck, WiringCheck
from tests.corpus.confusion import alarms, modules, spoken
from tests.corpus.program import some

NAMES = ("broken", "second_broken", "third_broken", "fourth_broken")
PAIRS = [pair for name in NAMES for module in modules(name) for pair in module.PAIRS]
HEALTHY = [
    program
    for name in ("healthy", "second_healthy", "third_healthy", "fourth_healthy")
    for module in modules(name)
    for program in getattr(module, "PROGRAMS", [])
]
SEEN = some([pair for module in modules("fourth_broken") for pair in module.PAIRS], every=4)
pytestmark = pytest.mark.filterwarnings("ignore")


def said(program):
    checks = [InitialLossCheck(), OverfitBatchCheck(), GradientCheck(), WiringCheck()]
    return alarms(spoken(program, checks)[0])


@pytest.mark.parametrize("broken", [b for b, _ in SEEN], ids=lambda program: program.name)
def test_the_fault_is_named(broken):
    assert {finding.code for finding in said(broken)} & broken.codes


@pytest.mark.parametrize(
    "program",
    some([*HEALTHY, *(repaired for _, repaired in PAIRS)], every=80),
    ids=lambda program: program.name,
)
def test_nothing_is_said_of_a_healthy_program(program):
    assert said(program) == []


def test_every_program_has_a_name_of_its_own():
    programs = [*HEALTHY, *(program for pair in PAIRS for program in pair)]
    assert len({program.name for program in programs}) == len(programs) > 800
