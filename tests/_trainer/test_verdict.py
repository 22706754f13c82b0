"""What becomes of findings: one exception for all checks, the same on all ranks."""

import json
import os
import pathlib
import types

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from lightning_tuning import ChecksFailedError, Finding
from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.verdict import settle
from lightning_tuning._trainer.wiring.topic import Topic, judge
from lightning_tuning.functional.wiring.wiring_finding import wiring
from tests.processes import run_on_ranks
from tests.toys import Classifier, loader


def finding(verdict, code="zero_init", **settings):
    settings = {"check": "wiring_check", "message": "Seen.", **settings}
    return Finding(verdict=verdict, code=code, **settings)


class Says(Callback):
    """A check that finds what it was told to."""

    def __init__(self, *findings, on_fail="warn"):
        self.told = findings
        self.on_fail = on_fail
        self.findings = ()

    @property
    def state_key(self):
        return str(id(self))

    def checked_before_fit(self):
        return True

    def on_train_start(self, trainer, pl_module):
        settle(trainer, self, self.told)


def fit(*callbacks, **settings):
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar"), False)
    settings = {"max_epochs": 1, "logger": False, "accelerator": "cpu", **quiet, **settings}
    trainer = Trainer(enable_model_summary=False, callbacks=list(callbacks), **settings)
    trainer.fit(Classifier(), loader(), loader(8))
    return trainer


def test_one_exception_lists_what_all_checks_found():
    first = Says(finding("fail"), finding("warn", "lr_too_low"), on_fail="raise")
    second = Says(finding("pass"), on_fail="warn")
    third = Says(finding("fail", "broadcast_mismatch"), on_fail="raise")
    with pytest.raises(ChecksFailedError) as caught:
        fit(first, second, third)
    assert [f.code for f in caught.value.findings] == ["zero_init", "broadcast_mismatch"]
    assert second.findings[0].verdict == "pass"


def test_the_last_check_raises_for_the_others_too():
    with pytest.raises(ChecksFailedError, match="zero_init"):
        fit(Says(finding("fail"), on_fail="raise"), Says(finding("pass")))


@pytest.mark.parametrize("verdict", ["warn", "skip", "pass"])
def test_only_a_failure_stops_the_fit(verdict):
    assert fit(Says(finding(verdict), on_fail="raise")).global_step == 6
    assert fit(Says(finding("fail"))).global_step == 6


def test_all_checks_write_into_one_file():
    fit(Says(finding("fail")), Says(finding("pass", "lr_too_low")), logger=CSVLogger(".", "run"))
    [file] = pathlib.Path().glob("run/*/findings.json")
    assert [entry["code"] for entry in json.loads(file.read_text())] == ["zero_init", "lr_too_low"]


@pytest.mark.processes
def test_ranks_agree_on_the_worst():
    def rank():
        mine = "fail" if os.environ["LOCAL_RANK"] == "1" else "pass"
        check = Says(finding(mine), finding("pass", "lr_too_low"))
        fit(check, devices=2, strategy="ddp")
        return [(f.code, f.verdict) for f in check.findings]

    one, other = run_on_ranks(rank)
    assert one == other == [("zero_init", "fail"), ("lr_too_low", "pass")]


class NoProbe:
    """What rules are judged in, here without a program."""

    trainer = types.SimpleNamespace(world_size=1)

    def rewind(self):
        pass

    def __str__(self):
        return "it"


def test_a_topic_is_measured_once_and_only_where_a_rule_wants_it():
    measured = []

    def topic(name, *codes):
        def measure(probe):
            measured.append(name)
            return probe

        rules = {c: lambda evidence, c=c: wiring("pass", c, f"{evidence} is fine.") for c in codes}
        return Topic(measure=measure, rules=rules)

    topics = [topic("a", "zero_init", "lr_too_low"), topic("b", "broadcast_mismatch")]
    found = judge(NoProbe(), topics, {"zero_init", "lr_too_low"})
    assert measured == ["a"]
    assert [(f.code, f.message) for f in found] == [
        ("zero_init", "it is fine."),
        ("lr_too_low", "it is fine."),
    ]


def test_what_cannot_be_measured_is_a_skip_with_the_reason():
    def measure(probe):
        raise CannotProbeError("there is no loss")

    found = judge(NoProbe(), [Topic(measure=measure, rules={"zero_init": wiring})], {"zero_init"})
    assert [(f.verdict, f.code, f.message) for f in found] == [
        ("skip", "zero_init", "Not checked: there is no loss.")
    ]
