"""Workers that ask at the same moment, or are killed at the worst one."""

import threading
import time

import optuna
from lightning.pytorch import Trainer
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler

from lightning_tuning._trainer import trial_pruning
from lightning_tuning.search import workers as module
from lightning_tuning.search.workers import WORKER, Workers, sign_of_life
from tests.search.programs import Bowl, data

LR = {"lr": FloatDistribution(1e-5, 1.0, log=True)}


def study_of(storage):
    return optuna.create_study(
        storage=storage, study_name="one", sampler=RandomSampler(seed=0), load_if_exists=True
    )


def test_two_that_draw_the_same_point_at_the_same_moment():
    storage = optuna.storages.InMemoryStorage()
    # it has its number, and is about to draw
    early = study_of(storage).ask()
    late = []

    def ask():
        late.append(Workers(study_of(storage), 8, retries=1, stale_after=60.0).next(LR))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.3)
    assert not late
    value = early._suggest("lr", LR["lr"])
    sign_of_life(early)
    early.set_user_attr(WORKER, ["elsewhere", 1, "1"])
    asking.join(30)
    [trial] = late
    assert trial.params["lr"] != value
    trials = study_of(storage).trials
    assert [t.user_attrs.get("kind") for t in trials] == [None, "surplus", None]
    assert trials[1].params["lr"] == value


def test_one_that_was_killed_before_it_said_who_it_is(monkeypatch):
    monkeypatch.setattr(module, "_DRAWING", 1.0)
    storage = optuna.storages.InMemoryStorage()
    killed = study_of(storage).ask(LR)
    trial = Workers(study_of(storage), 1, retries=1, stale_after=3600.0).next(LR)
    assert trial.params == killed.params
    assert trial.user_attrs["retry_of"] == 0
    assert [t.state.name for t in study_of(storage).trials] == ["FAIL", "RUNNING"]


def test_signs_of_life_come_within_an_epoch(monkeypatch):
    monkeypatch.setattr(trial_pruning, "_EVERY", -1.0)
    signs = []
    callback = trial_pruning.TrialPruning(
        "val_loss", "min", lambda *_: False, lambda: signs.append(time.monotonic())
    )
    trainer = Trainer(
        accelerator="cpu", logger=False, max_epochs=1, callbacks=[callback],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Bowl(0.1), *data())
    assert len(signs) == 4
    monkeypatch.setattr(trial_pruning, "_EVERY", 60.0)
    trainer.fit(Bowl(0.1), *data())
    assert len(signs) == 4
