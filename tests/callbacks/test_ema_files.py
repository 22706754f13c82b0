"""Who reads the checkpoints of EMAWeights: Lightning, its callbacks, modules of all kinds."""

import os

import lightning.pytorch.callbacks as lightning_callbacks
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from torch import nn

from lightning_tuning import EMAWeights
from tests.callbacks.ema_fits import (
    Do,
    Normed,
    close,
    copied,
    fit,
    load,
    same,
    trainer_for,
    weights_by_step,
)
from tests.toys import Classifier, loader


def test_other_readers_get_the_average():
    ema = EMAWeights(0.9)
    trainer = fit(ema, module=Normed())
    trainer.save_checkpoint("saved.ckpt")
    average = copied(trainer.lightning_module.state_dict())
    assert same(Normed.load_from_checkpoint("saved.ckpt").state_dict(), average)
    plain = trainer_for()
    plain.test(module := Normed(), loader(), ckpt_path="saved.ckpt", verbose=False)
    assert same(module.state_dict(), average)
    resumed = fit(ckpt_path="saved.ckpt", max_epochs=3)
    assert resumed.global_step == 18


@pytest.mark.parametrize("validate", ["ema", "raw", "both"])
def test_a_fresh_trainer_validates_what_it_is_told(validate):
    fit(EMAWeights(0.9), max_epochs=1).save_checkpoint("saved.ckpt")
    checkpoint = load("saved.ckpt")
    expected = {}
    for name in ("state_dict", "current_model_state"):
        module = Normed()
        module.load_state_dict(checkpoint[name])
        expected[name] = trainer_for().validate(module, loader(8), verbose=False)[0]["val_loss"]
    trainer, module = trainer_for(EMAWeights(0.9, validate=validate)), Normed()
    [found] = trainer.validate(module, loader(8), ckpt_path="saved.ckpt", verbose=False)
    first = expected["current_model_state" if validate == "raw" else "state_dict"]
    both = {"val_loss_raw": expected["current_model_state"]} if validate == "both" else {}
    assert found == {"val_loss": first, **both}
    assert same(module.state_dict(), checkpoint["state_dict"])


class Tied(Classifier):
    """An embedding and its output layer share 160 kB; a frozen layer holds as much."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(200, 200), nn.Linear(200, 200)
        self.decode.weight = self.encode.weight
        self.frozen = nn.Linear(200, 200).requires_grad_(False)
        self.net = nn.Sequential(
            nn.Linear(6, 200), self.encode, self.frozen, self.decode, nn.Linear(200, 3)
        )

    def configure_optimizers(self):
        return self.make_optimizer([p for p in self.parameters() if p.requires_grad])


@pytest.mark.parametrize("after_fit", [None, "ema", "raw"])
def test_tied_and_frozen_weights_are_saved_once(after_fit):
    def save(trainer, hook):
        trainer.save_checkpoint("saved.ckpt")

    saver = Do(save, "on_validation_epoch_end")
    trainer = fit(EMAWeights(0.9, after_fit=after_fit or "ema"), saver, module=Tied())
    if after_fit:
        trainer.save_checkpoint("saved.ckpt")
    momentum, raw, averaged, frozen = 1, 1, 1, 1
    assert os.path.getsize("saved.ckpt") < 160_000 * (momentum + raw + averaged + frozen) + 80_000
    averaged = Tied()
    averaged.load_state_dict(load("saved.ckpt")["state_dict"])
    assert averaged.encode.weight is averaged.decode.weight
    again = fit(EMAWeights(0.9), module=Tied(), ckpt_path="saved.ckpt", max_epochs=3)
    assert again.lightning_module.encode.weight is again.lightning_module.decode.weight


class Filtered(Tied):
    """Keeps the frozen layer out of its files, as people do with large backbones."""

    def __init__(self):
        super().__init__()
        self.strict_loading = False

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if "net" in name and "2." not in name}


class Renamed(Normed):
    """Changes the names in its files, and changes them back."""

    def on_save_checkpoint(self, checkpoint):
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {f"my.{name}": value for name, value in state.items()}
        checkpoint["mine"] = 5

    def on_load_checkpoint(self, checkpoint):
        assert checkpoint["mine"] == 5
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name[3:]: value for name, value in state.items()}


class Assigned(Normed):
    """Takes up the tensors of a file themselves, as people do with large models."""

    def load_state_dict(self, state, strict=True, assign=False):
        return super().load_state_dict(state, strict=strict, assign=True)


@pytest.mark.parametrize("make", [Filtered, Renamed, Assigned])
def test_modules_with_files_of_their_own(make):
    whole = fit(EMAWeights(0.9), module=make(), max_epochs=1)
    whole.save_checkpoint("saved.ckpt")
    whole = fit(EMAWeights(0.9), module=make())
    again = fit(EMAWeights(0.9), module=make(), ckpt_path="saved.ckpt")
    found, expected = again.lightning_module, whole.lightning_module
    assert same(dict(found.named_parameters()), dict(expected.named_parameters()))


# ------------------------------------------------------------- with callbacks of Lightning's own


needs_theirs = pytest.mark.skipif(
    not hasattr(lightning_callbacks, "EMAWeightAveraging"), reason="it came with Lightning 2.6"
)


def theirs_for(**settings):
    return lightning_callbacks.EMAWeightAveraging(decay=0.9, **settings)


@needs_theirs
def test_ours_goes_on_in_lightnings():
    fit(EMAWeights(0.9), max_epochs=1).save_checkpoint("ours.ckpt")
    states = weights_by_step()
    seen, theirs = [], theirs_for()

    def look(trainer, hook):
        average = copied(theirs._average_model.module.state_dict())
        seen.append((copied(trainer.lightning_module.state_dict()), average))

    fit(theirs, Do(look, "on_train_start"), ckpt_path="ours.ckpt").save_checkpoint("theirs.ckpt")
    raw, average = seen[0]
    assert same(raw, states[6])
    assert same(average, load("ours.ckpt")["state_dict"])
    assert load("theirs.ckpt")["averaging_state"]["n_averaged"] == 12


@needs_theirs
@pytest.mark.parametrize("start", [0, 3, 100])
def test_lightnings_goes_on_in_ours(start):
    def save(trainer, hook):
        trainer.save_checkpoint("theirs.ckpt")

    theirs = theirs_for(update_starting_at_step=start)
    fit(theirs, Do(save, "on_train_epoch_end"), module=Classifier(), max_epochs=1)
    states, ema, seen = weights_by_step(Classifier), EMAWeights(0.9, warmup=False), []

    look = Do(
        lambda t, _: seen.append((copied(t.lightning_module.state_dict()), ema.average)),
        "on_train_start",
    )
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        trainer = fit(ema, look, module=Classifier(), ckpt_path="theirs.ckpt")
    assert same(seen[0][0], states[6])
    expected = load("theirs.ckpt")["state_dict"] if start < 100 else states[7]
    assert all(torch.equal(v, expected[k]) for k, v in seen[0][1].items())
    assert bool(seen[0][1]) == (start < 100)
    skipped = 7 if start == 100 else 6
    for state in states[1 + skipped :]:
        expected = {k: v.lerp(expected[k], 0.9) for k, v in state.items()}
    close(trainer.lightning_module.state_dict(), expected)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_search_for_the_rate_does_not_change_the_start(resumed):
    """It saves and loads a file of its own inside ``on_fit_start``."""
    fit(EMAWeights(0.9), max_epochs=1).save_checkpoint("saved.ckpt")
    ema, seen = EMAWeights(0.9), []

    def look(trainer, hook):
        seen.append(copied(trainer.lightning_module.state_dict()))

    class Searched(Normed):
        lr = 0.1

    finder = LearningRateFinder(num_training_steps=4, min_lr=1e-6, max_lr=1e-2, update_attr=False)
    path = "saved.ckpt" if resumed else None
    fit(finder, ema, Do(look, "on_train_start"), module=Searched(), ckpt_path=path)
    assert same(seen[0], weights_by_step()[6 if resumed else 0])
    assert "ema_started_from_weights" not in [finding.code for finding in ema.findings]
