"""The rules have tests of their own; this is about the callback that applies them."""

import json
import pathlib

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional

from lightning_tuning import ChecksFailedError, WiringCheck
from lightning_tuning._trainer.wiring.wiring import TOPICS
from lightning_tuning.findings import CODES
from tests.toys import Classifier, loader

NAMED_BY_THE_ISSUE = {
    *("softmax_before_ce", "sigmoid_before_bce_logits", "single_logit_softmax", "loss_detached"),
    *("loss_sign_flipped", "loss_reduction_sum", "broadcast_mismatch", "wrong_num_classes"),
    *("output_range_mismatch", "missing_zero_grad", "accumulation_unscaled"),
    *("eval_mode_in_training", "train_mode_in_validation", "params_not_in_optimizer"),
    *("frozen_params", "no_grad_flow", "weights_not_updating", "zero_init", "bad_init_scale"),
    *("batch_leakage", "dims_scrambled", "future_leakage", "nan_in_data", "constant_input"),
    *("unnormalized_input", "unshuffled_data", "class_imbalance", "train_val_mismatch"),
    *("missing_nonlinearity", "dropout_too_high", "input_ignored"),
}


class Probabilities(Classifier):
    """Softmax before cross-entropy."""

    def loss(self, batch):
        return functional.cross_entropy(self(batch[0]).softmax(1), batch[1])


def check(module, callback, **settings):
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar"), False)
    settings = {"max_epochs": 1, "logger": False, **quiet, **settings}
    trainer = Trainer(
        accelerator="cpu", enable_model_summary=False, callbacks=[callback], **settings
    )
    trainer.fit(module, loader(), loader(8))
    return callback


def test_every_rule_that_was_asked_for_is_there():
    names = [name for topic in TOPICS for name in topic.rules]
    # two topics look for what makes a metric wrong
    assert len(names) == len(set(names)) + 1
    assert NAMED_BY_THE_ISSUE <= set(names) <= CODES


def test_each_rule_answers():
    callback = check(Classifier(), WiringCheck())
    assert {f.code for f in callback.findings} >= NAMED_BY_THE_ISSUE
    assert [f for f in callback.findings if f.verdict in ("warn", "fail")] == []
    assert all(f.message.endswith(".") for f in callback.findings)
    skips = [f for f in callback.findings if f.verdict == "skip"]
    assert all(len(f.message) > 20 for f in skips), "a skip says why"


def test_a_rule_can_be_chosen_or_left_out():
    one = check(Probabilities(), WiringCheck(["softmax_before_ce"]))
    assert {(f.code, f.verdict) for f in one.findings} == {("softmax_before_ce", "fail")}
    without = check(Probabilities(), WiringCheck(skip=["softmax_before_ce"]))
    codes = {f.code for f in without.findings}
    assert "softmax_before_ce" not in codes
    assert "zero_init" in codes
    assert check(Probabilities(), WiringCheck([])).findings == ()


def test_it_stops_the_fit_where_it_was_told_to():
    with pytest.raises(ChecksFailedError, match="softmax_before_ce"):
        check(Probabilities(), WiringCheck(on_fail="raise"))
    assert check(Classifier(), WiringCheck(on_fail="raise")).findings


@pytest.mark.parametrize("name", ["checks", "skip"])
@pytest.mark.parametrize("value", [["no_such_rule"], "zero_init"])
def test_a_wrong_name_is_one_clear_error(name, value):
    with pytest.raises(ValueError, match=f"{name}=.* must be a list of rules; there are acc"):
        WiringCheck(**{name: value})


def test_a_program_that_does_not_run_is_told_so():
    class Raising(Classifier):
        def loss(self, batch):
            return functional.cross_entropy(self(batch[0]), batch[1][:2])

    callback = WiringCheck()
    with pytest.raises(ValueError, match="batch_size"):  # the fit's own step says it too
        check(Raising(), callback, num_sanity_val_steps=0)
    failed = [f for f in callback.findings if f.verdict == "fail"]
    assert [f.code for f in failed] == ["step_raised"]
    assert "ValueError" in failed[0].message


def test_the_findings_lie_in_the_runs_folder():
    callback = check(Probabilities(), WiringCheck(), logger=CSVLogger(".", "run"))
    [file] = pathlib.Path().glob("run/*/findings.json")
    assert json.loads(file.read_text()) == [f.to_dict() for f in callback.findings]


def test_resumed_fits_are_left_alone():
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    first = Trainer(accelerator="cpu", max_epochs=1, **quiet)
    first.fit(Classifier(), loader(), loader(8))
    first.save_checkpoint("one.ckpt")
    callback = WiringCheck()
    again = Trainer(accelerator="cpu", max_epochs=2, callbacks=[callback], **quiet)
    again.fit(Classifier(), loader(), loader(8), ckpt_path="one.ckpt")
    assert [f.verdict for f in callback.findings] == ["skip"]
    assert again.global_step == 12
