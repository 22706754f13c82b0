"""An error or Ctrl-C at every place of a fit with EMAWeights, and of what comes after it."""

import contextlib

import pytest
import torch

from lightning_tuning import EMAWeights
from tests.callbacks import ema_fits
from tests.callbacks.ema_fits import (
    Do,
    assert_untouched,
    copied,
    load,
    rescue,
    same,
    same_batches,
    trainer_for,
    whole,
)
from tests.toys import Classifier, Manual, loader


def fit(*callbacks, **settings):
    return ema_fits.fit(*callbacks, data=same_batches(), **settings)


class BrokenError(Exception):
    pass


class Breaks:
    """Raises at the n-th call after it was armed."""

    def __init__(self, error=BrokenError, calls=1):
        self.error, self.calls, self.step = error, calls, None

    def __call__(self, trainer, hook=None):
        if not trainer.sanity_checking:
            self.calls -= 1
            if self.calls == 0:
                self.step = trainer.global_step
                raise self.error


@contextlib.contextmanager
def interrupted(error):
    # Lightning makes SystemExit of it
    with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
        yield


IN_FIT = {
    "training_step": 4,
    "configure_gradient_clipping": 3,
    "optimizer_step": 3,
    "on_before_zero_grad": 4,
    "on_before_backward": 2,
    "on_after_backward": 3,
    "on_before_optimizer_step": 5,
    "on_train_batch_start": 4,
    "on_train_batch_end": 4,
    "on_train_epoch_start": 2,
    "on_train_epoch_end": 1,
    "on_validation_start": 1,
    "on_validation_epoch_start": 1,
    "on_validation_batch_start": 2,
    "validation_step": 2,
    "on_validation_batch_end": 2,
    "on_validation_epoch_end": 2,
    "on_validation_end": 1,
    "on_validation_model_eval": 1,
    "on_validation_model_train": 1,
    "on_validation_model_zero_grad": 1,
    "on_save_checkpoint": 2,
    "state_dict": 2,
    "transfer_batch_to_device": 9,
}
OF_MODULES_ALONE = {
    *("training_step", "configure_gradient_clipping", "optimizer_step", "validation_step"),
    *("on_validation_model_eval", "on_validation_model_train", "on_validation_model_zero_grad"),
    *("transfer_batch_to_device", "state_dict"),
}


def broken_module(hook, breaks, make=Classifier, *, late=False):
    """Return a module that breaks before, or after, what it does in a hook."""

    def own(self, *args, **kwargs):
        if not late and self._trainer:
            breaks(self.trainer)
        result = getattr(make, hook)(self, *args, **kwargs)
        if late and self._trainer:
            breaks(self.trainer)
        return result

    return type("Broken", (make,), {hook: own})()


PLACES = [("before", hook, 0) for hook in IN_FIT if hook not in OF_MODULES_ALONE]
PLACES += [("after", hook, 1) for hook in IN_FIT if hook not in OF_MODULES_ALONE]
PLACES += [("module", hook, index % 2) for index, hook in enumerate(IN_FIT)]
SETTINGS = [
    (BrokenError, {"decay": 0.9}),
    (KeyboardInterrupt, {"decay": 0.9, "validate": "both", "every_n_steps": 2}),
]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used")
@pytest.mark.parametrize(("place", "hook", "kind"), PLACES)
def test_an_error_in_a_fit_leaves_each_set_where_it_belongs(place, hook, kind):
    """The file saved because of it goes on as if nothing had happened."""
    error, settings = SETTINGS[kind]
    breaks, ema = Breaks(error, IN_FIT[hook]), EMAWeights(**settings)
    keep = Do(lambda trainer, _: trainer.save_checkpoint("kept.ckpt"), "on_validation_end")
    saves = rescue("error", "error")
    breaker = Do(breaks, hook)
    callbacks = {"before": [breaker, ema], "after": [ema, breaker], "module": [ema]}[place]
    module = broken_module(hook, breaks) if place == "module" else Classifier()
    trainer = trainer_for(*callbacks, keep, saves, num_sanity_val_steps=0)
    with interrupted(error):
        fit(module=module, trainer=trainer)
    steps = whole(**settings)
    at = steps[breaks.step]
    assert_untouched(ema, module, trainer.optimizers, at)
    saved = load("error/error.ckpt")
    assert same(saved["current_model_state"], at[0])
    assert same(saved["state_dict"], at[1])
    again = EMAWeights(**settings, after_fit="raw")
    resumed = fit(again, module=Classifier(), ckpt_path="error/error.ckpt")
    # Lightning's own resume skips an epoch that was interrupted at its very start
    end = 6 if hook == "on_train_epoch_start" else 12
    assert resumed.global_step == end
    assert same(resumed.lightning_module.state_dict(), steps[end][0])
    assert same(again.average, steps[end][1])


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt])
def test_an_error_right_after_a_step(error):
    """Both sets have made the step, although Lightning has not counted it."""
    breaks, ema = Breaks(error, 3), EMAWeights(0.9)
    module = broken_module("optimizer_step", breaks, late=True)
    trainer = trainer_for(ema)
    with interrupted(error):
        fit(module=module, trainer=trainer)
    assert_untouched(ema, module, trainer.optimizers, whole(decay=0.9)[3])


@pytest.mark.parametrize("place", ["before", "after", "module"])
@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_end", "on_fit_end"])
@pytest.mark.parametrize(("after_fit", "error"), [("ema", BrokenError), ("raw", KeyboardInterrupt)])
def test_an_error_at_either_end_of_a_fit(hook, place, error, after_fit):
    breaks, ema = Breaks(error), EMAWeights(0.9, after_fit=after_fit)
    breaker = Do(breaks, hook)
    callbacks = {"before": [breaker, ema], "after": [ema, breaker], "module": [ema]}[place]
    module = broken_module(hook, breaks) if place == "module" else Classifier()
    saves = rescue("error", "error")
    trainer = trainer_for(*callbacks, saves, num_sanity_val_steps=0)
    with interrupted(error):
        fit(module=module, trainer=trainer)
    raw, average = whole(decay=0.9)[0 if "start" in hook else 12]
    over = hook == "on_fit_end" or (hook == "on_train_end" and place != "before")
    assert same(module.state_dict(), average if over and after_fit == "ema" else raw)
    trainer.save_checkpoint("saved.ckpt")
    assert same(load("saved.ckpt")["state_dict"], average)
    if "end" in hook:  # before the first step ModelCheckpoint saves nothing
        for path in ("saved.ckpt", "error/error.ckpt"):
            assert same(load(path)["state_dict"], average)
            assert same(load(path)["current_model_state"], raw)
    assert all(not optimizer._optimizer_step_post_hooks for optimizer in trainer.optimizers)


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt])
def test_an_error_while_statistics_are_recalibrated(error):
    class Normed(Classifier):
        def __init__(self):
            super().__init__()
            self.net.insert(1, torch.nn.BatchNorm1d(8))

        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 12:
                breaks(self.trainer)
            return super().training_step(batch, batch_idx)

    breaks = Breaks(calls=0)
    steps = whole(Normed, decay=0.9)
    breaks = Breaks(error, calls=3)
    ema, module = EMAWeights(0.9, recalibrate_batch_norm=True), Normed()
    trainer = trainer_for(ema)
    with interrupted(error):
        fit(module=module, trainer=trainer)
    raw, average = steps[12]
    assert same(module.state_dict(), raw)
    assert same({k: v for k, v in ema.average.items() if k in average}, average)
    trainer.save_checkpoint("saved.ckpt")
    assert same(load("saved.ckpt")["current_model_state"], raw)
    assert all(torch.equal(load("saved.ckpt")["state_dict"][k], v) for k, v in average.items())


# ------------------------------------------------------------------------------- after the fit

JUDGING = {"validate": "validation", "test": "test", "predict": "predict"}
PARTS = ("on_{}_start", "on_{}_batch_start", "{}_step", "on_{}_epoch_end", "on_{}_end")


@pytest.mark.parametrize(("after_fit", "error"), [("ema", KeyboardInterrupt), ("raw", BrokenError)])
@pytest.mark.parametrize("method", JUDGING)
def test_an_error_while_the_model_is_judged_after_the_fit(method, after_fit, error):
    ema, module = EMAWeights(0.9, after_fit=after_fit, validate="both"), Classifier()
    trainer = fit(ema, module=module)
    raw, average = whole(decay=0.9)[12]
    breaks = {}
    for part in PARTS:
        hook = part.format(JUDGING[method])
        breaks[hook] = Breaks(error, calls=2 if "batch" in hook or "step" in hook else 1)
        own = getattr(Classifier, hook)

        def broken(*args, hook=hook, own=own):
            breaks[hook](trainer)
            return own(module, *args)

        setattr(module, hook, broken)
        with interrupted(error):
            getattr(trainer, method)(module, loader(8))
        delattr(module, hook)
        assert same(module.state_dict(), average if after_fit == "ema" else raw)
        assert same(ema.average, average)
        trainer.save_checkpoint("saved.ckpt")
        assert same(load("saved.ckpt")["current_model_state"], raw)


@pytest.mark.parametrize("validate", ["ema", "raw", "both"])
def test_a_fresh_trainer_that_fails_keeps_the_weights_of_the_file(validate):
    fit(EMAWeights(0.9), module=Classifier()).save_checkpoint("saved.ckpt")
    breaks = Breaks(calls=2)
    module = broken_module("validation_step", breaks)
    with pytest.raises(BrokenError):
        trainer_for(EMAWeights(0.9, validate=validate)).validate(
            module, loader(8), ckpt_path="saved.ckpt"
        )
    assert same(module.state_dict(), load("saved.ckpt")["state_dict"])


@pytest.mark.parametrize("hook", ["training_step", "validation_step", "on_validation_end"])
def test_the_next_fit_with_the_same_callback(hook):
    breaks, ema = Breaks(calls=1), EMAWeights(0.9, validate="both")
    trainer = trainer_for(ema, num_sanity_val_steps=0)
    with pytest.raises(BrokenError):
        fit(module=broken_module(hook, breaks), trainer=trainer)
    other = fit(ema, module=Classifier())
    other.save_checkpoint("saved.ckpt")
    raw, average = whole(decay=0.9)[12]
    assert same(load("saved.ckpt")["current_model_state"], raw)
    assert same(load("saved.ckpt")["state_dict"], average)


# ------------------------------------------------------------------------------ other settings

OTHERS = {
    "two": ([{"decay": 0.9}, {"decay": 0.5}], Classifier, {}),
    "bf16": ([{"decay": 0.9}], Classifier, {"precision": "bf16-true"}),
    "bf16 on the host": ([{"decay": 0.9, "device": "cpu"}], Classifier, {"precision": "bf16-true"}),
    "manual": ([{"decay": 0.9}], Manual, {}),
    "no start": ([{"decay": 0.9, "update_after_step": 50}], Classifier, {}),
}


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used")
@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("hook", ["training_step", "validation_step"])
def test_a_rescued_file_goes_on_exactly(case, hook):
    settings, make, trainer_settings = OTHERS[case]
    ends = []
    for calls in (0, 2):
        saves = rescue("error", "error")
        path = None
        if calls:
            emas = [EMAWeights(**each, validate="both") for each in settings]
            with pytest.raises(BrokenError):
                fit(
                    *(*emas, saves),
                    module=broken_module(hook, Breaks(calls=calls), make),
                    num_sanity_val_steps=0,
                    **trainer_settings,
                )
            path = "error/error.ckpt"
        emas = [EMAWeights(**each, after_fit="raw") for each in settings]
        trainer = fit(*emas, module=make(), ckpt_path=path, **trainer_settings)
        ends.append((copied(trainer.lightning_module.state_dict()), *(e.average for e in emas)))
    assert trainer.global_step >= 12
    assert all(same(one, other) for one, other in zip(*ends, strict=True))
