"""What the tests of EMAWeights' checkpoints and interruptions share."""

import functools
import inspect

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import nn

from lightning_tuning import EMAWeights
from tests.toys import Classifier, loader


class Normed(Classifier):
    """BatchNorm and Dropout, with random numbers that a resumed fit meets again."""

    def __init__(self, **settings):
        super().__init__(**settings)
        layers = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
        self.net = nn.Sequential(*layers)

    def on_train_batch_start(self, batch, batch_idx):
        torch.manual_seed(self.global_step)


class Do(Callback):
    """Does something in some hooks; it is given the trainer and the hook's name."""

    def __init__(self, action, *hooks):
        for hook in hooks:
            setattr(self, hook, lambda trainer, *_, hook=hook, **__: action(trainer, hook))


class SavesOnError(Checkpoint):
    """What ``ModelCheckpoint(save_on_exception=True)`` does, for versions without it."""

    def __init__(self, path):
        self.path = path

    def on_exception(self, trainer, pl_module, exception):
        if trainer.global_step > 0:
            trainer.save_checkpoint(self.path)


def rescue(folder, name):
    """Return a callback that saves ``folder/name.ckpt`` on an error, and nothing else."""
    if "save_on_exception" in inspect.signature(ModelCheckpoint).parameters:
        return ModelCheckpoint(folder, name, every_n_epochs=100, save_on_exception=True)
    return SavesOnError(f"{folder}/{name}.ckpt")


def trainer_for(*callbacks, **settings):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    settings = {**quiet, "max_epochs": 2, "accelerator": "cpu", **settings}
    settings.setdefault("enable_checkpointing", any(isinstance(c, Checkpoint) for c in callbacks))
    return Trainer(callbacks=list(callbacks), **settings)


def fit(*callbacks, module=None, ckpt_path=None, data=None, trainer=None, **settings):
    seed_everything(3, verbose=False)
    trainer = trainer or trainer_for(*callbacks, **settings)
    module = Normed() if module is None else module
    trainer.fit(module, data or loader(), loader(8), ckpt_path=ckpt_path)
    return trainer


def same_batches():
    """The same batch every time: a plain loader starts anew after a resume, which is no matter."""
    return torch.utils.data.DataLoader([loader().dataset[0]] * 24, 4)


def load(path):
    return torch.load(path, weights_only=True)


def copied(state):
    return {name: value.detach().clone() for name, value in state.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one, other):
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6, msg=name)


def weights_by_step(make=Normed, **settings):
    """Return the weights after each step of a fit without the callback."""
    module = make()
    states = [copied(module.state_dict())]

    def note(trainer, hook):
        states.extend([copied(module.state_dict())] if trainer.global_step == len(states) else [])

    fit(Do(note, "on_train_batch_end"), module=module, **settings)
    return states


class Trace(Callback):
    """Notes both sets of weights and the optimizer after each step."""

    def __init__(self, ema):
        self.ema, self.at = ema, {}

    def on_train_start(self, trainer, pl_module):
        self.note(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.note(trainer, pl_module)

    def note(self, trainer, module):
        raw = copied(module.state_dict())
        average = self.ema.average or {k: v for k, v in raw.items() if "weight" in k or "bias" in k}
        self.at[trainer.global_step] = raw, average


@functools.cache
def _whole(make, settings):
    ema = EMAWeights(**dict(settings))
    trace = Trace(ema)
    fit(ema, trace, module=make(), data=same_batches())
    return trace.at


def whole(make=Classifier, **settings):
    """Return what a fit without any error holds after each step."""
    return _whole(make, tuple(settings.items()))


def assert_untouched(ema, module, optimizers, at):
    raw, average = at
    assert same(module.state_dict(), raw)
    assert same(ema.average, average)
    with ema.averaged():
        assert same(dict(module.named_parameters()), average)
    assert same(module.state_dict(), raw)
    for optimizer in optimizers:
        assert not optimizer._optimizer_step_post_hooks
        assert not optimizer._optimizer_step_pre_hooks
