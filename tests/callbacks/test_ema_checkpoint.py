"""What checkpoints of a fit with EMAWeights hold."""

import functools
import pathlib

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_tuning import EMAWeights
from tests.callbacks.ema_fits import Do, Normed, close, copied, fit, load, same, weights_by_step
from tests.toys import loader

weights_by_step = functools.cache(weights_by_step)

HOOKS = [
    *("on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start"),
    *("on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end"),
    *("on_validation_start", "on_validation_epoch_start", "on_validation_batch_start"),
    *("on_validation_batch_end", "on_validation_epoch_end", "on_validation_end", "on_train_end"),
]


def averages_by_step(states, decay=0.9, after=0, every=1):
    """Return what the average should be after each step."""
    average, since, retained, result = states[0], None, 1.0, [states[0]]
    for step, state in enumerate(states[1:], 1):
        if since is None:
            average, since = state, 0 if step > after else None
        else:
            since += 1
            retained *= min(decay, (1 + since) / (10 + since))
            if since % every == 0:
                average = {
                    k: v if "running" in k or "num_" in k else v.lerp(average[k], retained)
                    for k, v in state.items()
                }
                retained = 1.0
        result.append(average)
    return result


def parameters_in(state):
    return {name: value for name, value in state.items() if name.endswith(("weight", "bias"))}


def assert_layout(checkpoint, states, averages, *, both=True, of=dict):
    step = checkpoint["global_step"]
    close(of(checkpoint["state_dict"]), of(averages[step]))
    assert checkpoint["state_dict"].keys() == states[step].keys()
    if both:
        assert same(of(checkpoint["current_model_state"]), of(states[step]))
        assert set(checkpoint["averaging_state"]) == {"n_averaged"}


# ------------------------------------------------------------------------------ kinds of saves


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize(
    ("saves", "count"),
    [
        ({"every_n_train_steps": 1, "save_top_k": -1}, 12),
        ({"every_n_epochs": 1, "save_top_k": -1}, 2),
        ({"every_n_epochs": 1, "save_top_k": -1, "save_on_train_epoch_end": True}, 2),
        ({"every_n_epochs": 1, "save_top_k": -1, "save_on_train_epoch_end": False}, 2),
        ({"save_last": True, "save_top_k": 2, "monitor": "val_loss"}, 3),
        ({"save_last": "link", "save_top_k": 1, "monitor": "train_loss"}, 2),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"after": 2, "every": 3}])
def test_every_file_of_model_checkpoint_holds_both(saves, count, weights_only, settings):
    names = {"after": "update_after_step", "every": "every_n_steps"}
    ema = EMAWeights(0.9, **{names[k]: v for k, v in settings.items()})
    fit(ema, ModelCheckpoint("files", save_weights_only=weights_only, **saves))
    states = weights_by_step()
    averages = averages_by_step(states, **settings)
    files = list(pathlib.Path("files").iterdir())
    assert len(files) == count
    for file in files:
        assert_layout(load(file), states, averages, both=not weights_only)


@pytest.mark.parametrize("validate", ["ema", "raw", "both"])
@pytest.mark.parametrize("place", ["before", "after", "module"])
def test_a_save_in_any_hook_holds_both_and_changes_nothing(place, validate):
    saved = []

    def save(trainer, hook):
        trainer.save_checkpoint("now.ckpt")
        saved.append((hook, load("now.ckpt")))

    saver, ema, module = Do(save, *HOOKS), EMAWeights(0.9, validate=validate), Normed()
    callbacks = {"before": [saver, ema], "after": [ema, saver], "module": [ema]}[place]
    if place == "module":
        for hook in {*HOOKS} - {"on_train_batch_start"}:
            setattr(module, hook, lambda *_, hook=hook: save(module.trainer, hook))
    trainer = fit(*callbacks, module=module, num_sanity_val_steps=0)
    states = weights_by_step(num_sanity_val_steps=0)
    averages = averages_by_step(states)
    assert len(saved) > 80
    for hook, checkpoint in saved:
        began = hook != "on_fit_start" and (hook, place) != ("on_train_start", "before")
        # between forward and step the statistics of BatchNorm are ahead
        of = parameters_in if "backward" in hook or "_before_" in hook else dict
        assert_layout(checkpoint, states, averages, both=began, of=of)
    with ema.averaged():
        close(trainer.lightning_module.state_dict(), averages[-1])
    trainer.save_checkpoint("end.ckpt")
    assert same(load("end.ckpt")["current_model_state"], states[-1])


def test_a_save_between_forward_and_backward():
    class Saving(Normed):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.trainer.save_checkpoint("now.ckpt")
            return loss

    trainer = fit(EMAWeights(0.9, after_fit="raw"), module=Saving())
    assert same(trainer.lightning_module.state_dict(), weights_by_step()[-1])


# ------------------------------------------------------------------------------- after the fit


@pytest.mark.parametrize("settings", [{}, {"buffers": "average"}, {"every_n_steps": 5}])
@pytest.mark.parametrize("after_fit", ["ema", "raw"])
def test_files_after_the_fit_and_after_judging(after_fit, settings):
    ema = EMAWeights(0.9, after_fit=after_fit, **settings)
    trainer = fit(ema)
    module = trainer.lightning_module
    trainer.save_checkpoint("first.ckpt")
    first = load("first.ckpt")
    trainer.validate(module, loader(), verbose=False)
    trainer.test(module, loader(), verbose=False)
    trainer.predict(module, loader())
    trainer.save_checkpoint("second.ckpt")
    second = load("second.ckpt")
    for name in ("state_dict", "current_model_state"):
        assert same(first[name], second[name])
    assert same(first["current_model_state"], weights_by_step()[-1])
    held = first["state_dict" if after_fit == "ema" else "current_model_state"]
    assert same(module.state_dict(), held)
    trainer.save_checkpoint("weights.ckpt", weights_only=True)
    assert same(load("weights.ckpt")["state_dict"], first["state_dict"])


@pytest.mark.parametrize("after_fit", ["ema", "raw"])
def test_a_block_with_the_average_lasts_to_its_end(after_fit):
    ema = EMAWeights(0.9, after_fit=after_fit)
    trainer = fit(ema)
    module = trainer.lightning_module
    with ema.averaged():
        average = copied(module.state_dict())
        trainer.test(module, loader(), verbose=False)
        assert same(module.state_dict(), average)


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("after_fit", ["ema", "raw"])
def test_the_file_of_another_fit_is_not_mixed_with_this_one(after_fit, weights_only):
    """The average of the fit must be neither judged nor saved where a file was loaded since."""
    fit(EMAWeights(0.9), max_epochs=1).save_checkpoint("other.ckpt", weights_only)
    other = load("other.ckpt")["state_dict"]
    seen = []
    look = Do(lambda t, _: seen.append(copied(t.lightning_module.state_dict())), "on_test_end")
    module = Normed()
    trainer = fit(look, EMAWeights(0.9, after_fit=after_fit), module=module)
    trainer.test(module, loader(), ckpt_path="other.ckpt", verbose=False)
    assert same(seen[0], other)
    assert same(module.state_dict(), other)
    trainer.save_checkpoint("saved.ckpt")
    saved = load("saved.ckpt")
    assert same(saved["state_dict"], other)
    mixed = saved.get("current_model_state")
    assert mixed is None or not same(mixed, weights_by_step()[-1])


def test_the_next_fit_of_a_trainer_saves_nothing_of_the_one_before():
    saved = []

    def save(trainer, hook):
        trainer.save_checkpoint("now.ckpt")
        saved.append((load("now.ckpt"), copied(trainer.lightning_module.state_dict())))

    module = Normed()
    trainer = fit(Do(save, "on_fit_start"), EMAWeights(0.9, after_fit="raw"), module=module)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, loader(), loader(8))
    checkpoint, inside = saved[1]
    assert same(checkpoint["state_dict"], inside)


def test_a_trainer_without_the_callback_saves_as_ever():
    module, ema = Normed(), EMAWeights(0.9, after_fit="raw")
    trainer = fit(ema, module=module)
    trainer.callbacks.remove(ema)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, loader(), loader(8))
    trainer.save_checkpoint("plain.ckpt")
    assert same(load("plain.ckpt")["state_dict"], module.state_dict())
