"""The programs that only look odd do train.

``python -m tests.corpus.test_healthy`` writes the table above each list of programs afresh.
"""

import importlib
import pathlib
import re

import pytest
from lightning import seed_everything
from lightning.pytorch import Trainer

from tests.corpus.program import QUIET, cost, fit, some

FILES = (
    "losses",
    "regression",
    "generative",
    "pairs",
    "networks",
    "frozen",
    "sequences",
    "data",
    "steps",
    "optimizers",
)
PROGRAMS = [
    program
    for file in FILES
    for program in importlib.import_module(f"tests.corpus.healthy_{file}").PROGRAMS
]


def untrained(program, seed=0):
    """The metric before any step; without validation data, of the first batch."""
    seed_everything(seed, verbose=False)
    module, _, val = program.make()
    if val is None:
        return fit(program, steps=1, seed=seed)
    trainer = Trainer(**QUIET | program.trainer)
    trainer.validate(module, val, verbose=False)
    return float(trainer.callback_metrics[program.metric])


@pytest.mark.parametrize("program", some(PROGRAMS), ids=lambda program: program.name)
def test_trains(program):
    before, after = untrained(program), fit(program)
    if program.metric.endswith("acc"):
        assert 1 - after < (1 - before) / 2
    else:
        assert cost(program, after) < before - 0.35 * abs(before)


def test_the_corpus_is_healthy_and_has_one_name_for_each():
    assert not any(program.codes or program.error for program in PROGRAMS)
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS) >= 45


def measured(program, seeds=range(3)):
    """A line of the table: the metric untrained and trained, least and greatest of three seeds."""
    line = f"# {program.name:31}{program.metric:18}"
    for measure in (untrained, fit):
        values = [measure(program, seed=seed) for seed in seeds]
        line += f"{f'{min(values):.3g} to {max(values):.3g}':22}"
    return line.rstrip()


def write_tables():
    for file in FILES:
        module = importlib.import_module(f"tests.corpus.healthy_{file}")
        head = f"# {'seeds 0 to 2':31}{'metric':18}{'untrained':22}trained"
        table = "\n".join([head, *map(measured, module.PROGRAMS)])
        path = pathlib.Path(module.__file__)
        text = re.sub(
            r"(?:^#.*\n)*^PROGRAMS =", f"{table}\nPROGRAMS =", path.read_text(), flags=re.M
        )
        path.write_text(text)


if __name__ == "__main__":
    write_tables()
