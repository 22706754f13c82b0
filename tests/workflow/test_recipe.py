"""The callbacks that one begins with."""

import inspect

import pytest
from lightning.pytorch import Callback, Trainer

import lightning_tuning
from lightning_tuning import recipe
from tests.toys import Classifier, loader

QUIET = dict.fromkeys(
    ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)
SWITCHES = list(inspect.signature(recipe).parameters)


def names(**switches):
    return [type(callback).__name__ for callback in recipe(**switches)]


def test_it_is_a_list_of_its_own_at_every_call():
    first, second = recipe(), recipe()
    assert not {id(callback) for callback in first} & {id(callback) for callback in second}
    first.pop()
    assert len(recipe()) == len(second)


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_keyword_switches_its_callbacks(switch):
    on, off = names(**{switch: True}), names(**{switch: False})
    gone = [name for name in on if name not in off]
    assert len(gone) == (4 if switch == "checks" else 1)
    if switch != "checks":
        word = gone[0].lower().removesuffix("weights")
        assert word == switch.replace("_", "")


INSTEAD = {"CyclicalLR", "WarmupDecay", "CheckpointEnsemble"}
"""Schedules other than the recommended one, and what is taken where it is wanted."""


def test_all_of_it_together_are_all_other_callbacks():
    callbacks = {
        name
        for name in lightning_tuning.__all__
        if inspect.isclass(getattr(lightning_tuning, name))
        and issubclass(getattr(lightning_tuning, name), Callback)
    }
    assert set(names(checks=True)) == callbacks - INSTEAD


def test_it_fits(tmp_path):
    callbacks = recipe()
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", callbacks=callbacks, default_root_dir=tmp_path, **QUIET
    )
    trainer.fit(Classifier(), loader(), loader())
    assert all(callback.findings for callback in callbacks)
    assert "val_loss" in trainer.callback_metrics
