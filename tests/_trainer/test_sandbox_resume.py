"""A resumed fit with a probe equals the resumed fit without it."""

import itertools

import pytest
import torch

from tests._trainer.probing import Probe, assert_same, run_fit
from tests._trainer.programs import PROGRAMS, Manual, Net, data

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}:UserWarning")
    for message in (
        "Using ModelCheckpoint with manual optimization and every_n_train_steps",
        "You're resuming from a checkpoint that ended before the epoch ended",
        "The dirpath has changed from",
    )
]
RESUMED = [
    *("plain", "lbfgs", "fp16", "accumulation_and_clipping", "scheduler_per_step", "manual"),
    *("scheduler_on_plateau", "val_check_interval", "sam_with_closure", "data_module"),
    *("two_persistent_workers_random", "max_steps"),
]


@pytest.mark.parametrize("batches", [3, 5], ids=["mid-epoch", "between epochs"])
@pytest.mark.parametrize("name", RESUMED)
def test_resume_with_a_probe(name, batches, tmp_path):
    program = PROGRAMS[name]
    # epochs have 5 batches; a checkpoint is kept of every step
    run_fit(program, tmp_path / "first", max_epochs=1, save_all=True)
    folder = tmp_path / "first" / "checkpoints"
    steps = {p: torch.load(p, weights_only=False)["global_step"] for p in folder.glob("*.ckpt")}
    wanted = batches if name not in ("accumulation_and_clipping", "data_module") else batches // 2
    path = min(steps, key=lambda p: (abs(steps[p] - wanted), p.name))
    trainer = assert_same(program, tmp_path, ckpt_path=path, save_all=True)
    assert trainer.current_epoch >= 1


def test_resume_from_the_end_of_an_epoch(tmp_path):
    run_fit(PROGRAMS["plain"], tmp_path / "first", max_epochs=1, save_all=True)
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    assert_same(PROGRAMS["plain"], tmp_path, ckpt_path=last, save_all=True)


def test_state_of_a_resumed_optimizer_stays_in_its_tensors(tmp_path):
    """LBFGS keeps lists of tensors; its lists and their tensors must be those from before."""
    run_fit(PROGRAMS["lbfgs"], tmp_path / "first", max_epochs=1)

    def act(box):
        (optimizer,) = box.optimizers
        (state,) = optimizer.state.values()
        before = [t.clone() for t in state["old_dirs"]]
        box.run(3, after_step=lambda *_: None)
        box.rewind()
        (state,) = optimizer.state.values()
        now = state["old_dirs"]
        return len(before) == len(now) and all(map(torch.equal, before, now))

    probe = Probe(act)
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    assert_same(PROGRAMS["lbfgs"], tmp_path, probe, ckpt_path=last)
    assert probe.result


@pytest.mark.parametrize("kind", [Net, Manual])
def test_two_fits_of_one_module(kind, tmp_path):
    """A second fit starts with gradients, metrics and attributes of the first."""
    number = itertools.count()

    def program():
        module = kind()
        run_fit(lambda: (module, data(), {}), tmp_path / f"first{next(number)}")
        return module, data(), {}

    assert_same(program, tmp_path)
