"""A fit with EMAWeights that goes on from its own files, or from others."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_tuning import EMAWeights
from tests.callbacks import ema_fits
from tests.callbacks.ema_fits import Do, Normed, copied, load, rescue, same, same_batches
from tests.toys import Classifier, Manual


def fit(*callbacks, **settings):
    return ema_fits.fit(*callbacks, **{"max_epochs": 3, **settings})


class Log(Callback):
    """Notes what a validation found after which step."""

    def __init__(self):
        self.seen = {}

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            values = {k: float(v) for k, v in trainer.callback_metrics.items() if "val" in k}
            self.seen[trainer.global_step] = values


def assert_equal(one, other, path="checkpoint"):
    """Compare two checkpoints entry by entry."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            if key not in ("callbacks", "loops"):
                assert_equal(one[key], other[key], f"{path}[{key!r}]")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{path}[{index}]")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    else:
        assert one == other, path


def saver(path, step, hook="on_validation_end"):
    def save(trainer, _):
        if trainer.global_step == step and not trainer.sanity_checking:
            trainer.save_checkpoint(path)

    return Do(save, hook)


def start_of(seen):
    return Do(lambda t, _: seen.append(copied(t.lightning_module.state_dict())), "on_train_start")


def codes(ema):
    return [finding.code for finding in ema.findings]


CASES = {
    "default": ([{}], {}),
    "decay": ([{"decay": 0.9}], {}),
    "between updates": ([{"decay": 0.9, "every_n_steps": 4}], {}),
    "between updates, all": ([{"decay": 0.9, "every_n_steps": 5, "buffers": "average"}], {}),
    "no start": ([{"update_after_step": 100}], {}),
    "later start": ([{"update_after_step": 8, "decay": 0.9}], {}),
    "started": ([{"update_after_step": 4, "decay": 0.9, "every_n_steps": 4}], {}),
    "no warm-up": ([{"decay": 0.9, "warmup": False}], {}),
    "samples": ([{"half_life": "10 samples", "warmup": False}], {"accumulate_grad_batches": 2}),
    "epochs": ([{"half_life": "0.5 epochs"}], {"accumulate_grad_batches": 4}),
    "epochs, between": (
        [{"half_life": "0.5 epochs", "every_n_steps": 2, "warmup": False}],
        {"accumulate_grad_batches": 4},
    ),
    "averaged buffers": ([{"decay": 0.9, "buffers": "average"}], {}),
    "skipped buffers": ([{"decay": 0.9, "buffers": "skip", "every_n_steps": 4}], {}),
    "host": ([{"decay": 0.9, "device": "cpu"}], {}),
    "bf16": ([{"decay": 0.999, "warmup": False}], {"precision": "bf16-true"}),
    "bf16, all": (
        [{"decay": 0.99, "buffers": "average", "every_n_steps": 4, "device": "cpu"}],
        {"precision": "bf16-true"},
    ),
    "mixed": ([{"decay": 0.9}], {"precision": "bf16-mixed"}),
    "double": ([{"decay": 0.9, "buffers": "average"}], {"precision": "64-true"}),
    "two": ([{"decay": 0.9}, {"decay": 0.5, "every_n_steps": 4}], {}),
    "two in bf16": ([{"decay": 0.9}, {"decay": 0.5}], {"precision": "bf16-true"}),
    "both": ([{"decay": 0.9, "validate": "both"}], {}),
    "raw": ([{"decay": 0.9, "validate": "raw", "after_fit": "raw"}], {}),
    "recalibrated": ([{"decay": 0.9, "recalibrate_batch_norm": True}], {}),
}


def cut_and_whole(make, callbacks, settings, cut):
    """Return the last files of a fit in pieces and of one in a piece, and what they validated."""
    ends, logs = [], []
    for first in ("", cut):
        log, ckpt_path = Log(), None
        if first:
            trainer = fit(*callbacks(), log, cut("cut.ckpt"), module=make(), **settings)
            ckpt_path = "cut.ckpt"
            log.seen = {k: v for k, v in log.seen.items() if k <= load(ckpt_path)["global_step"]}
        emas = callbacks()
        trainer = fit(*emas, log, module=make(), ckpt_path=ckpt_path, **settings)
        trainer.save_checkpoint("end.ckpt")
        ends.append(load("end.ckpt") | {"averages": [ema.average for ema in emas]})
        assert "ema_started_from_weights" not in [code for ema in emas for code in codes(ema)]
        logs.append(log.seen)
    return ends, logs


def epoch_end(path):
    def save(trainer, _):
        if trainer.current_epoch == 0 and not trainer.sanity_checking:
            trainer.save_checkpoint(path)

    return Do(save, "on_validation_end")


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_fit_equals_a_whole_one(case):
    emas, settings = CASES[case]
    ends, logs = cut_and_whole(Normed, lambda: [EMAWeights(**e) for e in emas], settings, epoch_end)
    assert_equal(*ends)
    assert logs[0] == logs[1]
    assert len(logs[0]) == 3


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("ema", [{}, {"every_n_steps": 4}, {"half_life": "9 samples"}])
def test_manual_optimization_of_two_optimizers(every, ema):
    emas = [{**({} if "half_life" in ema else {"decay": 0.9}), **ema}]
    ends, logs = cut_and_whole(
        lambda: Manual(every), lambda: [EMAWeights(**e) for e in emas], {}, epoch_end
    )
    assert_equal(*ends)
    assert logs[0] == logs[1]


@pytest.mark.parametrize("step", [1, 4, 5])
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_before_zero_grad"])
def test_from_the_middle_of_an_epoch(step, hook):
    """With batches that are all the same: a plain loader begins anew."""
    settings = {"decay": 0.9, "every_n_steps": 3}
    ends = []
    for path in (None, "cut.ckpt"):
        module = Classifier()
        trainer = fit(
            EMAWeights(**settings),
            *([] if path else [saver("cut.ckpt", step, hook)]),
            module=module,
            ckpt_path=path,
            data=same_batches(),
            max_epochs=-1,
            max_steps=12,
        )
        trainer.save_checkpoint("end.ckpt")
        ends.append(load("end.ckpt"))
    for name in ("state_dict", "current_model_state", "optimizer_states"):
        assert_equal(ends[0][name], ends[1][name], name)
    if hook == "on_train_batch_end":
        assert ends[0]["ema_weights"] == ends[1]["ema_weights"]


def test_the_files_of_a_finished_fit_go_on():
    settings = {"decay": 0.9, "recalibrate_batch_norm": False, "every_n_steps": 4}
    for kind in ("ema", "raw"):
        whole, path = fit(EMAWeights(**settings)), None
        for epochs in (1, 2, 3):
            ema = EMAWeights(**settings, after_fit=kind)
            keep = Do(lambda trainer, _: trainer.save_checkpoint("kept.ckpt"), "on_train_end")
            part = fit(ema, keep, ckpt_path=path, max_epochs=epochs)
            path = f"{epochs}.ckpt"
            part.save_checkpoint(path)
            assert_equal(load("kept.ckpt"), load(path))
        whole.save_checkpoint("whole.ckpt")
        assert_equal(load("whole.ckpt"), load(path))


def test_recalibrated_statistics_do_not_reach_the_training():
    settings = {"decay": 0.9, "recalibrate_batch_norm": True}
    fit(EMAWeights(**settings), max_epochs=1).save_checkpoint("cut.ckpt")
    whole, again = fit(), fit(EMAWeights(**settings, after_fit="raw"), ckpt_path="cut.ckpt")
    assert same(whole.lightning_module.state_dict(), again.lightning_module.state_dict())


# ----------------------------------------------------------------------- files that lack something


def test_a_file_without_an_average():
    fit(saver("plain.ckpt", 6))
    ema, seen = EMAWeights(0.9), []
    trainer = fit(start_of(seen), ema, ckpt_path="plain.ckpt")
    assert same(seen[0], load("plain.ckpt")["state_dict"])
    assert codes(ema) == ["ema_started_from_weights", "ema_half_life"]
    trainer.save_checkpoint("end.ckpt")
    assert same(load("end.ckpt")["current_model_state"], fit().lightning_module.state_dict())


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_another_number_of_instances(before, after):
    def make(count):
        return [EMAWeights(decay) for decay in (0.9, 0.5, 0.1)[:count]]

    whole = make(before)
    fit(*whole, saver("cut.ckpt", 6))
    resumed = make(after)
    trainer = fit(*resumed, ckpt_path="cut.ckpt")
    for one, other in zip(whole, resumed, strict=False):
        assert same(one.average, other.average)
    started = ["ema_started_from_weights" in codes(ema) for ema in resumed]
    assert started == [place >= before for place in range(after)]
    trainer.save_checkpoint("end.ckpt")
    assert len(load("end.ckpt")["ema_weights"]) == after
    raw = load("end.ckpt")["current_model_state"]
    assert same(raw, fit().lightning_module.state_dict())


CHANGES = [
    ({"decay": 0.9, "warmup": False}, {"decay": 0.5, "warmup": False}),
    ({"decay": 0.9}, {"decay": 0.9, "every_n_steps": 5}),
    ({"decay": 0.9, "every_n_steps": 5}, {"decay": 0.9}),
    ({"decay": 0.9}, {"decay": 0.9, "validate": "both"}),
    ({"decay": 0.9, "validate": "both"}, {"decay": 0.9, "validate": "raw"}),
    ({"decay": 0.9}, {"decay": 0.9, "update_after_step": 100}),
    ({"decay": 0.9, "update_after_step": 100}, {"decay": 0.9, "update_after_step": 2}),
    ({"decay": 0.9}, {"decay": 0.9, "buffers": "average"}),
    ({"decay": 0.9, "buffers": "average"}, {"decay": 0.9, "buffers": "skip"}),
    ({"decay": 0.9, "buffers": "average"}, {"decay": 0.9, "buffers": "copy"}),
    ({"decay": 0.9}, {"half_life": "0.5 epochs"}),
    ({"half_life": "10 samples"}, {"decay": 0.9}),
]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_changed_arguments_keep_both_sets(before, after):
    fit(EMAWeights(**before), saver("cut.ckpt", 6))
    cut, ema, averaged = load("cut.ckpt"), EMAWeights(**after), []

    def look(trainer, _):
        with ema.averaged():
            averaged.append(copied(trainer.lightning_module.state_dict()))

    seen = []
    trainer = fit(ema, start_of(seen), Do(look, "on_train_start"), ckpt_path="cut.ckpt")
    assert same(seen[0], cut["current_model_state"])
    learned = {name for name, _ in Normed().named_parameters()}
    assert all(torch.equal(averaged[0][k], cut["state_dict"][k]) for k in learned)
    assert "ema_started_from_weights" not in codes(ema)
    trainer.save_checkpoint("end.ckpt")
    raw = load("end.ckpt")["current_model_state"]
    assert same(raw, fit().lightning_module.state_dict())


def test_a_changed_decay_is_the_one_that_counts():
    fit(EMAWeights(0.9, warmup=False), saver("cut.ckpt", 6))
    average, states = load("cut.ckpt")["state_dict"], []
    note = Do(
        lambda t, _: states.append(copied(t.lightning_module.state_dict())), "on_train_batch_end"
    )
    fit(note)
    ema = EMAWeights(0.5, warmup=False)
    fit(ema, ckpt_path="cut.ckpt")
    for name, found in ema.average.items():
        expected = average[name]
        for state in states[6:]:
            expected = 0.5 * expected + 0.5 * state[name]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("before", ["32-true", "bf16-true", "64-true"])
@pytest.mark.parametrize("after", ["32-true", "bf16-true", "64-true"])
def test_another_precision(before, after):
    settings = {"decay": 0.9, "buffers": "average"}
    fit(EMAWeights(**settings), saver("cut.ckpt", 6), precision=before)
    kept, seen = load("cut.ckpt"), []
    ema = EMAWeights(**settings)
    look = Do(lambda t, _: seen.append(ema.average), "on_train_start")
    raw = []
    fit(ema, look, start_of(raw), ckpt_path="cut.ckpt", precision=after)
    average = {**kept["state_dict"], **kept["ema_weights"][0]["average"]}
    for name, found in seen[0].items():
        assert found.dtype == (torch.float64 if after == "64-true" else torch.float32)
        tolerance = (
            {"rtol": 0.0, "atol": 0.0} if before != "64-true" else {"rtol": 1e-6, "atol": 1e-6}
        )
        torch.testing.assert_close(found, average[name].to(found.dtype), **tolerance)
    for name, found in raw[0].items():
        assert torch.equal(found, kept["current_model_state"][name].to(found.dtype))


# -------------------------------------------------------- between the file and the first step


def test_a_save_before_the_fit_goes_on_keeps_the_raw_weights():
    fit(EMAWeights(0.9), saver("cut.ckpt", 6))
    hooks = ("on_fit_start", "on_train_start")
    early = Do(lambda trainer, hook: trainer.save_checkpoint(f"{hook}.ckpt"), *hooks)
    fit(early, EMAWeights(0.9), ckpt_path="cut.ckpt")
    for hook in hooks:
        for name in ("state_dict", "current_model_state", "ema_weights"):
            assert_equal(load(f"{hook}.ckpt")[name], load("cut.ckpt")[name])


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start"])
def test_an_error_before_the_fit_goes_on_keeps_the_raw_weights(hook):
    fit(EMAWeights(0.9), saver("cut.ckpt", 6))
    cut, module = load("cut.ckpt"), Normed()

    def fail(trainer, _):
        raise RuntimeError("too early")

    keep = rescue("files", "error")
    ema = EMAWeights(0.9)
    with pytest.raises(RuntimeError, match="too early"):
        fit(Do(fail, hook), ema, keep, module=module, ckpt_path="cut.ckpt")
    assert same(module.state_dict(), cut["current_model_state"])
    if hook == "on_fit_start":  # Lightning has not restored the count of steps: nothing to save
        return
    found = load("files/error.ckpt")
    for name in ("state_dict", "current_model_state", "ema_weights"):
        assert_equal(found[name], cut[name], name)


@pytest.mark.parametrize("after_fit", ["ema", "raw"])
def test_a_fit_that_is_over_already(after_fit):
    """Lightning calls ``on_fit_start`` and ``on_fit_end``, and nothing between them."""
    trainer = fit(EMAWeights(0.9), max_epochs=1)
    trainer.save_checkpoint("end.ckpt")
    end, ema = load("end.ckpt"), EMAWeights(0.9, after_fit=after_fit)
    again = fit(ema, ckpt_path="end.ckpt", max_epochs=1)
    expected = end["state_dict" if after_fit == "ema" else "current_model_state"]
    assert same(again.lightning_module.state_dict(), expected)
    again.save_checkpoint("again.ckpt")
    assert_equal(load("again.ckpt"), end)
