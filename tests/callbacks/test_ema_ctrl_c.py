"""Ctrl-C while EMAWeights exchanges the two sets of weights."""

import signal

import pytest

from lightning_tuning import EMAWeights
from lightning_tuning._trainer.averaging import exchange
from tests.callbacks import ema_fits
from tests.callbacks.ema_fits import (
    Do,
    assert_untouched,
    copied,
    load,
    same,
    same_batches,
    trainer_for,
    whole,
)
from tests.toys import Classifier


def fit(*callbacks, **settings):
    return ema_fits.fit(*callbacks, data=same_batches(), **settings)


EXCHANGES = [("ema", call) for call in (1, 4, 5, 8)]
EXCHANGES += [("both", call) for call in (1, 4, 5, 10, 13, 20, 29, 40)]


@pytest.mark.parametrize(("validate", "call"), EXCHANGES)
def test_ctrl_c_in_the_middle_of_an_exchange(validate, call, monkeypatch):
    """A validation exchanges 4 tensors, and exchanges them back."""
    armed, calls = [], []

    def set_memory(tensor, value):
        calls.extend(armed[:1])
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        original(tensor, value)

    original = exchange._set_memory
    monkeypatch.setattr(exchange, "_set_memory", set_memory)
    ema, module = EMAWeights(0.9, validate=validate), Classifier()
    arm = Do(lambda trainer, _: armed.append(1), "on_train_epoch_end")
    trainer = trainer_for(arm, ema, num_sanity_val_steps=0)
    with pytest.raises(SystemExit):
        fit(module=module, trainer=trainer)
    assert_untouched(ema, module, trainer.optimizers, whole(decay=0.9)[trainer.global_step])


@pytest.mark.parametrize("interrupted_at", [(2,), (4,), (6,), (8,), (2, 6)])
def test_ctrl_c_in_the_middle_of_an_exchange_of_casts(interrupted_at, monkeypatch):
    put, calls = exchange._put, []

    def interrupted_put(tensor, value):
        calls.append(1)
        if len(calls) in interrupted_at:
            signal.raise_signal(signal.SIGINT)
        return put(tensor, value)

    monkeypatch.setattr(exchange, "_put", interrupted_put)
    ema, module = EMAWeights(0.9), Classifier()
    trainer = trainer_for(ema, num_sanity_val_steps=0, precision="bf16-true")
    with pytest.raises(SystemExit):
        fit(module=module, trainer=trainer)
    raw = copied(module.state_dict())
    trainer.save_checkpoint("saved.ckpt")
    assert same(load("saved.ckpt")["current_model_state"], raw)
    assert not same(load("saved.ckpt")["state_dict"], raw)


def test_ctrl_c_while_a_block_begins(monkeypatch):
    ema, module = EMAWeights(0.9, after_fit="raw"), Classifier()
    fit(ema, module=module)
    raw = copied(module.state_dict())
    original = exchange._set_memory

    def set_memory(tensor, value):
        monkeypatch.setattr(exchange, "_set_memory", original)
        signal.raise_signal(signal.SIGINT)
        original(tensor, value)

    monkeypatch.setattr(exchange, "_set_memory", set_memory)
    with pytest.raises(KeyboardInterrupt), ema.averaged():
        pass
    assert same(module.state_dict(), raw)
    assert same(ema.average, whole(decay=0.9)[12][1])
