"""Who sees which weights of EMAWeights, hook by hook, inside a fit and after it."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, callbacks

from lightning_tuning import EMAWeights
from tests.callbacks.ema_reference import Recursion, differing, fit, trainer_for, weights_of
from tests.toys import Classifier, Manual, loader

EVALUATION = ["start", "epoch_start", "batch_start", "batch_end", "epoch_end"]


class Watched(Classifier):
    """Notes what it holds in each of its own hooks."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def note(self, name):
        self.seen.setdefault(name, []).append(weights_of(self))

    def training_step(self, batch, batch_idx):
        self.note("training_step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.note("validation_step")
        super().validation_step(batch, batch_idx)

    def test_step(self, batch, batch_idx):
        self.note("test_step")
        super().test_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        self.note("predict_step")
        return super().predict_step(batch, batch_idx)


def _noting(name):
    def hook(self, *args, **kwargs):
        self.note(name)

    return hook


for _stage in ("validation", "test", "predict"):
    for _name in (*EVALUATION, "end"):
        _hook = f"on_{_stage}_{_name}"
        setattr(Watched, _hook, _noting(_hook))
for _hook in ("on_train_batch_end", "on_train_epoch_end", "on_train_end", "on_fit_end"):
    setattr(Watched, _hook, _noting(_hook))


def hooks_of(stage):
    return [f"on_{stage}_{name}" for name in EVALUATION] + [f"{stage}_step"]


class Expected(Callback):
    """Notes both sets of weights at the end of each epoch's training, before validation."""

    def __init__(self, ema):
        self.ema = ema
        self.raw, self.average = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.is_last_batch:
            self.raw.append(weights_of(pl_module))
            self.average.append(self.ema.average)


def watched(validate="ema", **settings):
    module, ema = Watched(), EMAWeights(0.8, validate=validate)
    expected = Expected(ema)
    settings = {"num_sanity_val_steps": 0, **settings}
    trainer = fit(module, ema, expected, **settings)
    return trainer, module, expected


def assert_seen(module, hooks, values):
    """Each hook has seen each of the values, as often as the others."""
    for hook in hooks:
        found = module.seen[hook]
        times = len(found) // len(values)
        assert times >= 1, hook
        for index, seen in enumerate(found):
            assert not differing(seen, values[index // times]), hook


@pytest.mark.parametrize("validate", ["ema", "raw"])
def test_hooks_of_validation(validate):
    _, module, expected = watched(validate)
    values = expected.average if validate == "ema" else expected.raw
    assert differing(expected.average[0], expected.raw[0])
    assert_seen(module, hooks_of("validation"), values)
    assert_seen(module, ["on_train_epoch_end"], expected.raw)


def test_training_sees_its_own_weights():
    _, module, _ = watched()
    steps, ends = module.seen["training_step"], module.seen["on_train_batch_end"]
    assert len(steps) == 12
    # what one batch leaves is what the next one finds, over validation too
    assert all(not differing(a, b) for a, b in zip(ends, steps[1:], strict=False))


@pytest.mark.parametrize("stage", ["validation", "test", "predict"])
@pytest.mark.parametrize("after_fit", ["ema", "raw"])
def test_evaluation_after_the_fit(stage, after_fit):
    module, ema = Watched(), EMAWeights(0.8, after_fit=after_fit)
    expected = Expected(ema)
    trainer = fit(module, ema, expected)
    left = expected.average if after_fit == "ema" else expected.raw
    assert not differing(weights_of(module), left[-1])
    module.seen.clear()
    if stage == "predict":
        trainer.predict(module, loader())
    else:
        {"validation": trainer.validate, "test": trainer.test}[stage](
            module, loader(), verbose=False
        )
    assert_seen(module, hooks_of(stage), expected.average[-1:])
    assert not differing(weights_of(module), left[-1])


@pytest.mark.parametrize("validate", ["ema", "raw", "both"])
def test_values_logged(validate):
    """Validation logs what plain modules with those weights get."""
    module, ema = Classifier(), EMAWeights(0.8, validate=validate)
    trainer = fit(module, ema, max_epochs=1)
    logged = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val")}
    plain = {}
    average = ema.average
    with ema.averaged():
        assert not differing(weights_of(module), average)
    fit(raw := Classifier(), max_epochs=1)
    for name, weights in (("ema", average), ("raw", weights_of(raw))):
        other = Classifier()
        other.load_state_dict(weights)
        [values] = trainer_for().validate(other, loader(8), verbose=False)
        plain[name] = values["val_loss"]
    assert plain["ema"] != plain["raw"]
    first = "raw" if validate == "raw" else "ema"
    expected = {"val_loss": plain[first]}
    if validate == "both":
        expected["val_loss_raw"] = plain["raw"]
    assert {k: v.item() for k, v in logged.items()} == expected


def test_other_trainer_and_other_module_are_left_alone():
    module, ema = Classifier(), EMAWeights(0.8)
    fit(module, ema)
    other = Watched()
    before = weights_of(other)
    trainer_for(ema).validate(other, loader(8), verbose=False)
    assert_seen(other, hooks_of("validation"), [before])


def test_no_validation():
    module, ema = Classifier(), EMAWeights(0.8)
    recursion = Recursion(ema)
    fit(module, ema, recursion, limit_val_batches=0)
    assert not differing(weights_of(module), ema.average)
    assert recursion.compared == 12 * 4


def test_two_fits_in_a_row():
    """The second fit begins with the weights that the first has left, and with no average."""
    module, ema = Classifier(), EMAWeights(0.8)
    trainer = fit(module, ema)
    recursion = Recursion(ema)
    trainer.callbacks.append(recursion)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, loader(), loader(8))
    assert trainer.global_step == 24
    assert recursion.compared == 12 * 4
    assert not differing(weights_of(module), ema.average)


class Inside(Callback):
    """Uses the second's average in validation."""

    def __init__(self, ema):
        self.ema = ema
        self.seen = []

    def on_validation_end(self, trainer, pl_module):
        before = weights_of(pl_module)
        with self.ema.averaged():
            self.seen.append((weights_of(pl_module), self.ema.average))
        assert not differing(before, weights_of(pl_module))


def test_two_with_their_own_decays():
    fast, slow = EMAWeights(0.5), EMAWeights(0.95, warmup=False)
    references = [Recursion(fast), Recursion(slow, judges=False)]
    references[1].on_validation_batch_start = lambda *_: None  # the first's average is judged
    inside = Inside(slow)
    module = Classifier()
    fit(module, fast, slow, *references, inside, num_sanity_val_steps=0)
    assert [r.compared for r in references] == [48, 48]
    assert len(inside.seen) == 2
    assert not any(differing(*pair) for pair in inside.seen)
    assert not differing(weights_of(module), fast.average)
    with slow.averaged():
        assert not differing(weights_of(module), slow.average)
        assert differing(slow.average, inside.seen[0][0])
    assert not differing(weights_of(module), fast.average)
    assert [f.code for f in slow.findings] == ["ema_not_judging", "ema_half_life"]


def test_averaged_inside_training_and_validation():
    class Uses(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            self.use(pl_module)

        on_validation_batch_end = on_train_batch_end

        def use(self, module):
            before, average = weights_of(module), ema.average
            with ema.averaged():
                assert not differing(weights_of(module), average)
                with ema.averaged():
                    assert not differing(ema.average, average)
            assert not differing(weights_of(module), before)

    ema = EMAWeights(0.8)
    recursion = Recursion(ema)
    fit(Classifier(), ema, recursion, Uses(), num_sanity_val_steps=0)
    assert recursion.judged


@pytest.mark.parametrize("stage", ["training_step", "validation_step", "on_validation_end"])
def test_error_leaves_the_raw_weights(stage):
    class Breaks(Watched):
        pass

    def broken(self, *_):
        if self.trainer.global_step > 7:
            raise RuntimeError("broken here")

    original = getattr(Watched, stage)
    setattr(Breaks, stage, lambda self, *args: (broken(self), original(self, *args))[1])
    module, ema = Breaks(), EMAWeights(0.8)
    with pytest.raises(RuntimeError, match="broken here"):
        fit(module, ema, num_sanity_val_steps=0)
    assert not differing(weights_of(module), module.seen["on_train_batch_end"][-1])
    with ema.averaged():
        assert differing(weights_of(module), module.seen["on_train_batch_end"][-1])


# older versions of Lightning have the first alone
OTHERS = ["StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging"]


@pytest.mark.parametrize("name", [name for name in OTHERS if hasattr(callbacks, name)])
@pytest.mark.parametrize("first", [True, False])
def test_other_averages_are_refused(name, first):
    other = getattr(callbacks, name)(**({"swa_lrs": 0.1} if name.startswith("S") else {}))
    pair = [EMAWeights(), other] if first else [other, EMAWeights()]
    with pytest.raises(MisconfigurationException, match=rf"{name} and EMAWeights"):
        fit(Classifier(), *pair)


def test_manual_module_after_delay_that_is_never_reached():
    module, ema = Manual(), EMAWeights(0.8, update_after_step=100)
    fit(module, ema)
    fit(other := Manual())
    assert not differing(weights_of(module), weights_of(other))
    assert ema.average == {}
    assert [f.code for f in ema.findings][-1] == "ema_not_started"
    assert torch.is_tensor(module.net[0].weight)
