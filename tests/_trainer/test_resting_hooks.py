"""Hooks that have nothing to do are passed over, and nobody but Lightning notices."""

import copy
import functools
import pickle

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer import call

from lightning_tuning import (
    ActivationMonitor,
    FilterMonitor,
    LossCurveDiagnosis,
    UpdateRatioMonitor,
)
from lightning_tuning._trainer import resting_hooks
from lightning_tuning._trainer.resting_hooks import RestingHooks
from tests.toys import Classifier, Manual, loader

MONITORS = (UpdateRatioMonitor, ActivationMonitor, FilterMonitor, LossCurveDiagnosis)
STEPS, DUE = 24, (0, 7, 15, 23)
IN_A_STEP = {
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
}


class StopError(Exception):
    pass


class Watches(Callback):
    """Notes at the end of each batch what Lightning would call of its neighbours."""

    def __init__(self, stop_at=None, error=StopError, copy_at=None):
        self.stop_at, self.error, self.copy_at = stop_at, error, copy_at
        self.seen, self.copies = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        others = [c for c in trainer.callbacks if isinstance(c, MONITORS)]
        self.seen.append(
            {type(c): {h for h in IN_A_STEP if callable(getattr(c, h))} for c in others}
        )
        if trainer.global_step == self.copy_at:
            self.copies = [copy.deepcopy(c) for c in others]
            self.copies += [pickle.loads(pickle.dumps(c)) for c in others]
        if trainer.global_step == self.stop_at:
            raise self.error


def fit(*callbacks, module=None, **settings):
    trainer = Trainer(
        **{"max_steps": STEPS, **settings},
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module or Classifier(), loader(), loader())
    return trainer


def four(**settings):
    measured = {"every_n_steps": 8, **settings}
    return [
        UpdateRatioMonitor(**measured),
        ActivationMonitor(**measured),
        FilterMonitor(image_shape=[2, 3]),
        LossCurveDiagnosis(),
    ]


def all_awake(callbacks):
    names = resting_hooks._EACH_BATCH
    return all(callable(getattr(c, n)) and n not in vars(c) for c in callbacks for n in names)


def test_between_measured_steps_only_what_has_to_is_called():
    # before the others, it sees what is awake during a step; behind them, what is left of it
    during, watched = Watches(), four()
    fit(during, *watched)
    start = "on_train_batch_start"
    for step, awake in enumerate(during.seen):
        measured = step in DUE
        assert ("on_before_optimizer_step" in awake[UpdateRatioMonitor]) == measured
        assert ("on_train_batch_end" in awake[ActivationMonitor]) == measured
        assert all((start in awake[kind]) == measured for kind in MONITORS[:2])
        assert awake[LossCurveDiagnosis] == {start, "on_train_batch_end"}
        if step:
            assert awake[FilterMonitor] == set()
    assert len(during.seen) == STEPS
    assert all_awake(watched)


@pytest.mark.parametrize("every", [1, 2, 3, 8, None])
@pytest.mark.parametrize(
    "settings", [{}, {"accumulate_grad_batches": 4, "max_steps": 12}, {"module": Manual}]
)
@pytest.mark.parametrize("backwards", [False, True])
def test_what_is_measured_is_the_same_without_rests(every, settings, backwards, monkeypatch):
    def fitted(*callbacks):
        module = settings.get("module", Classifier)()
        rest = {name: value for name, value in settings.items() if name != "module"}
        fit(*callbacks, module=module, **rest)

    def some():
        return four(every_n_steps=every)[:: -1 if backwards else 1]

    rested = some()
    fitted(*rested)
    monkeypatch.setattr(resting_hooks, "_are_passed_over", lambda: False)
    watches, awake = Watches(), some()
    fitted(watches, *awake)
    assert all(len(hooks) == len(IN_A_STEP) for step in watches.seen for hooks in step.values())
    for one, other in zip(rested, awake, strict=True):
        assert one.result.to_json() == other.result.to_json()
        assert one.findings == other.findings


@pytest.mark.parametrize("first", range(4))
def test_each_alone_and_in_any_order_knows_all_losses(first):
    order = four()
    order = [order[first], *order[:first], *order[first + 1 :]]
    fit(*order)
    known = four()
    fit(*known)
    by_type = {type(c): c for c in order}
    for callback in known:
        assert callback.findings == by_type[type(callback)].findings
    alone = four()[first]
    fit(alone)
    assert alone.findings == by_type[type(alone)].findings


@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 3, 8])
def test_an_interrupted_fit_leaves_all_awake(error, at):
    watched = four()
    with pytest.raises((error, SystemExit)):
        fit(*watched, Watches(stop_at=at, error=error))
    assert all_awake(watched)


def test_copies_from_the_middle_of_a_fit_are_awake():
    watches = Watches(copy_at=3)
    fit(*four(), watches)
    assert len(watches.copies) == 8
    assert all_awake(watches.copies)


def test_hooks_that_a_person_writes_never_rest():
    called = []

    class Mine(UpdateRatioMonitor):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            called.append("step")
            super().on_before_optimizer_step(trainer, pl_module, optimizer)

        def on_after_backward(self, trainer, pl_module):
            called.append("backward")

    monitor, patched = Mine(8), ActivationMonitor(every_n_steps=8)
    original = patched.on_before_backward
    patched.on_before_backward = lambda *given: (called.append("patched"), original(*given))
    fit(monitor, patched)
    assert {name: called.count(name) for name in called} == dict.fromkeys(
        ("step", "backward", "patched"), STEPS
    )
    assert len(monitor.result.steps) == len(DUE)


@pytest.mark.parametrize("kind", MONITORS)
def test_nobody_relies_on_a_callback_that_may_not_be_called(kind):
    class Forgets(kind):
        def on_train_batch_end(self, trainer, pl_module, *given):
            pass

    class Holds(Callback):
        def __init__(self):
            self.inner = kind()

        def on_fit_start(self, trainer, pl_module):
            self.inner.on_fit_start(trainer, pl_module)

        def on_train_start(self, trainer, pl_module):
            self.inner.on_train_start(trainer, pl_module)

        def teardown(self, trainer, pl_module, stage):
            self.inner.teardown(trainer, pl_module, stage)

    for other in (Forgets, Holds):
        monitors = four()
        fit(other(), *monitors)
        assert monitors[0].result.steps == DUE
        assert monitors[1].result.measured == len(DUE)


def test_a_callback_inside_another_one_is_awake():
    class Holds(Callback):
        def __init__(self, inner):
            self.inner = inner

    def passing(name):
        return lambda self, *given, **named: getattr(self.inner, name)(*given, **named)

    for name in (*IN_A_STEP, "setup", "on_train_start", "on_train_end", "teardown"):
        setattr(Holds, name, passing(name))
    inner, known = UpdateRatioMonitor(8), UpdateRatioMonitor(8)
    fit(Holds(inner))
    fit(known)
    assert inner.result.to_json() == known.result.to_json()


def test_a_lightning_that_would_call_them_is_told_apart(monkeypatch):
    assert resting_hooks._are_passed_over()

    def calls_all(trainer, hook_name, *given):
        for callback in trainer.callbacks:
            getattr(callback, hook_name)(trainer, None, *given)

    monkeypatch.setattr(call, "_call_callback_hooks", calls_all)
    resting_hooks._are_passed_over.cache_clear()
    callback = Callback()
    trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    RestingHooks(trainer, callback)
    assert all_awake([callback])
    resting_hooks._are_passed_over.cache_clear()


@functools.cache
def names_of_hooks():
    return [name for name in dir(Callback) if name.startswith("on_")]


def test_only_hooks_of_batches_rest():
    assert set(resting_hooks._EACH_BATCH) <= set(names_of_hooks())
    assert all(
        "batch" in n or "backward" in n or "step" in n or "zero" in n
        for n in resting_hooks._EACH_BATCH
    )
