"""Steps that fail, or that a person stops, leave no trace either."""

import os
import signal

import pytest
import torch
from lightning.pytorch import Callback

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.sandbox import Sandbox
from tests._trainer.probing import (
    Probe,
    assert_same,
    differences,
    outcome,
    run_fit,
    seed,
    use_everything,
)
from tests._trainer.programs import PROGRAMS, Gan, Net, data, loader, scaler

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps:UserWarning"
)


class StopError(Exception):
    pass


def raise_at_step_7(error):
    """Let ``after_step`` raise."""

    def act(box):
        def after_step(step, loss):
            if step == 6:
                raise error

        box.run(10, after_step=after_step)

    return act


def press_at_step_7(box):
    """Press Ctrl-C as a person does, in the middle of a step."""
    box.run(6, after_step=lambda *_: None)
    handle = box.module.layers[2].register_forward_hook(
        lambda *_: os.kill(os.getpid(), signal.SIGINT)
    )
    try:
        box.run(1, after_step=lambda *_: None)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["plain", "two_persistent_workers_random", "gan", "fp16", "lbfgs"])
@pytest.mark.parametrize("error", [StopError, KeyboardInterrupt])
def test_caught_error_changes_nothing(name, error, tmp_path):
    probe = Probe(raise_at_step_7(error()), expected=error)
    assert_same(PROGRAMS[name], tmp_path, probe)
    assert isinstance(probe.caught, error)


def test_caught_ctrl_c_within_a_step_changes_nothing(tmp_path):
    probe = Probe(press_at_step_7, expected=KeyboardInterrupt)
    assert_same(PROGRAMS["plain"], tmp_path, probe)
    assert probe.caught is not None


class Before(Callback):
    """Notes the state of a fit before the probes that follow it."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_start(self, trainer, pl_module):
        notes = outcome(trainer, pl_module, self.folder)
        copied = {"weights": {k: v.clone() for k, v in notes["weights"].items()}}
        self.notes = notes | copied


@pytest.mark.parametrize(
    ("error", "seen"), [(StopError, StopError), (KeyboardInterrupt, SystemExit)]
)
def test_uncaught_error_leaves_all_as_before_the_probe(error, seen, tmp_path):
    before, program = Before(tmp_path), PROGRAMS["accumulation_and_clipping"]
    made = program()
    with pytest.raises(seen):
        run_fit(lambda: made, tmp_path, before, Probe(raise_at_step_7(error())))
    module = made[0]
    now = outcome(module.trainer, module, tmp_path)
    for part in ("seen", "weights", "grads", "modes", "optimizers", "random", "numpy", "torch"):
        assert not differences(before.notes[part], now[part]), part
    assert now["global_step"] == 0


HOOKS = [
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "training_step",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_model_eval",
    "validation_step",
    "on_validation_epoch_end",
    "on_validation_end",
    "transfer_batch_to_device",
]


@pytest.mark.parametrize("hook", HOOKS)
def test_error_in_a_hook_changes_nothing(hook, tmp_path):
    def program():
        module = Net()
        own = getattr(module, hook)

        def failing(*args, **kwargs):
            if not module.trainer.sanity_checking and module.armed:
                torch.set_grad_enabled(False)
                raise StopError
            return own(*args, **kwargs)

        module.armed = False
        setattr(module, hook, failing)
        return module, data(), {"precision": "bf16-mixed"}

    def act(box):
        calls = 0

        def after_step(step, loss):
            box.evaluate(num_batches=1)
            box.module.armed = step == 2

        box.module.armed = hook in HOOKS[:2]
        box.run(8, after_step=after_step)
        return calls

    probe = Probe(act, expected=StopError)
    assert_same(program, tmp_path, probe)
    assert probe.caught is not None


@pytest.mark.parametrize("workers", [0, 2])
def test_error_in_the_data_changes_nothing(workers, tmp_path):
    class Broken(torch.utils.data.Dataset):
        broken = False

        def __len__(self):
            return 18

        def __getitem__(self, index):
            if self.broken and index == 5:
                raise StopError
            return index, torch.full((4,), float(index)), torch.ones(1)

    def program():
        train = torch.utils.data.DataLoader(Broken(), 4, shuffle=True, num_workers=workers)
        return Net(), {"train_dataloaders": train, "val_dataloaders": loader(shuffle=False)}, {}

    def act(box):
        box.trainer.train_dataloader.dataset.broken = True
        box.run(8, after_step=lambda *_: None)

    probe = Probe(act, expected=StopError)
    assert_same(program, tmp_path, probe)
    assert probe.caught is not None


def test_error_between_toggled_optimizers_changes_nothing(tmp_path):
    class Fails(Gan):
        def untoggle_optimizer(self, optimizer):
            if self.armed:
                raise StopError
            super().untoggle_optimizer(optimizer)

    def program():
        module = Fails()
        module.armed = False
        return module, {"train_dataloaders": loader()}, {}

    def act(box):
        box.run(2, after_step=lambda *_: setattr(box.module, "armed", True))

    probe = Probe(act, expected=StopError)
    assert_same(program, tmp_path, probe)
    assert probe.caught is not None


def test_error_between_unscale_and_update_changes_nothing(tmp_path):
    class Fails(Net):
        armed = False

        def on_before_optimizer_step(self, optimizer):
            if self.armed:
                raise StopError

    def program():
        return Fails(), data(), scaler(init_scale=2.0**10)

    def act(box):
        box.run(3, after_step=lambda *_: setattr(box.module, "armed", True))

    probe = Probe(act, expected=StopError)
    assert_same(program, tmp_path, probe)
    assert probe.caught is not None


def test_run_goes_on_after_a_caught_error_and_a_rewind(tmp_path):
    def act(box):
        with pytest.raises(StopError):
            raise_at_step_7(StopError())(box)
        box.rewind()
        first = use_everything(box)
        box.rewind()
        return first == use_everything(box)

    probe = Probe(act)
    assert_same(PROGRAMS["plain"], tmp_path, probe)
    assert probe.result


def test_run_starts_anew_after_a_caught_error_in_a_step(tmp_path):
    def act(box):
        box.module.training_step = _raises
        with pytest.raises(StopError):
            box.run(1, after_step=lambda *_: None)
        del box.module.training_step
        losses = []
        box.run(2, after_step=lambda _, loss: losses.append(loss))
        return len(losses)

    probe = Probe(act)
    assert_same(PROGRAMS["plain"], tmp_path, probe)
    assert probe.result == 2


def _raises(*_):
    raise StopError


def test_ctrl_c_during_the_restore_waits_for_its_end(tmp_path, monkeypatch):
    """Ctrl-C while things are put back is held until they are."""

    def act(box):
        box.run(2, after_step=lambda *_: None)
        own = box._snapshot.restore

        def pressed():
            os.kill(os.getpid(), signal.SIGINT)
            own()

        box._snapshot.restore = pressed

    probe = Probe(act, expected=KeyboardInterrupt)
    assert_same(PROGRAMS["plain"], tmp_path, probe)
    assert probe.caught is not None


def test_ctrl_c_on_entry_leaves_the_trainer_as_it_was(tmp_path, monkeypatch):
    from lightning_tuning._trainer import sandbox

    class Pressed(sandbox.Shield):
        def __init__(self, *args):
            os.kill(os.getpid(), signal.SIGINT)
            super().__init__(*args)

    monkeypatch.setattr(sandbox, "Shield", Pressed)
    probe = Probe(lambda box: None, expected=KeyboardInterrupt)
    assert_same(PROGRAMS["plain"], tmp_path, probe)
    assert probe.caught is not None


def test_a_failing_part_of_the_restore_does_not_keep_back_the_others(tmp_path):
    def act(box):
        box.run(3, after_step=lambda *_: None)
        own = box._batches.close

        def close():
            own()
            raise StopError

        box._batches.close = close

    probe = Probe(act, expected=StopError)
    assert_same(PROGRAMS["plain"], tmp_path, probe)
    assert probe.caught is not None


class Refused(Probe):
    def __init__(self):
        super().__init__(expected=CannotProbeError)


def test_sandbox_is_usable_twice_in_one_fit(tmp_path):
    class Twice(Probe):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            first = self.result
            super().on_train_start(trainer, pl_module)
            assert first == self.result

    assert_same(PROGRAMS["random_from_data_sets_own"], tmp_path, Twice())


def test_nested_sandboxes(tmp_path):
    def act(box):
        box.run(2, after_step=lambda *_: None)
        weights = [p.detach().clone() for p in box.module.parameters()]
        with Sandbox(box.trainer, box.module) as inner:
            inner.run(2, after_step=lambda *_: None)
        return not differences(weights, list(box.module.parameters()))

    probe = Probe(act)
    assert_same(PROGRAMS["random_from_torch"], tmp_path, probe)
    assert probe.result
    seed()
