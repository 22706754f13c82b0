"""Between measured steps no monitor asks a tensor for its value, which is what waits for a GPU.

`test_monitors_gpu.py` has CUDA itself watch over it; this does it on any machine, by what Python
can ask of a tensor, and by the operations whose result's shape or value the host must know.
"""

import contextlib
import operator

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils._python_dispatch import TorchDispatchMode

from tests.callbacks.between_steps import Between, monitors
from tests.toys import Classifier, Manual, loader

ASKING = (
    *("item", "tolist", "cpu", "numpy", "nonzero", "is_nonzero", "equal", "unique"),
    *("__bool__", "__float__", "__int__", "__index__", "__contains__", "__iter__", "__array__"),
)
_WAITING = (
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
)


class WaitsError(Exception):
    pass


class Refuses(TorchDispatchMode):
    """Refuses operations of torch that wait for their device, also where its own code asks."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if name in _WAITING or by_mask:
            raise WaitsError(name)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def nobody_asks():
    def refuse(name):
        def asked(self, *given, **named):
            raise WaitsError(name)

        return asked

    with pytest.MonkeyPatch.context() as patch:
        for name in ASKING:
            patch.setattr(torch.Tensor, name, refuse(name), raising=False)
        patch.setattr(torch, "equal", refuse("equal"))
        with Refuses():
            yield


def fit(module, callbacks, **settings):
    trainer = Trainer(
        **settings,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    trainer.fit(module, loader(samples=96), loader())


def test_asking_is_seen():
    value = torch.ones(1)
    methods = map(operator.methodcaller, ("item", "tolist", "cpu"))
    for ask in (float, bool, int, list, *methods, lambda tensor: torch.equal(tensor, tensor)):
        with nobody_asks(), pytest.raises(WaitsError):
            ask(value)
    assert float(value) == 1.0


@pytest.mark.parametrize(
    "ask",
    [
        lambda value: value[value > 0],
        lambda value: value.masked_select(value > 0),
        lambda value: torch.where(value > 0),
        lambda value: torch.repeat_interleave(value, value.long()),
        lambda value: torch.add(value, value, alpha=value[0]),
    ],
)
def test_asking_within_torch_is_seen(ask):
    with nobody_asks(), pytest.raises(WaitsError):
        ask(torch.ones(1))


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (Classifier, {}),
        (Classifier, {"precision": "bf16-mixed"}),
        (Classifier, {"gradient_clip_val": 0.1}),
        (Manual, {}),
    ],
)
def test_no_step_in_between_asks_for_a_value(module, settings, monkeypatch):
    between = Between(nobody_asks)
    between.watch(monkeypatch)
    fit(module(), [*monitors(1000), between], **between.settings, **settings)
    assert between.calls > 150


@pytest.mark.filterwarnings("ignore:.*could not finish after the exception")
def test_a_measured_step_asks(monkeypatch):
    """So the test above can fail."""
    between = Between(nobody_asks)
    between.watch(monkeypatch)
    with pytest.raises(WaitsError):
        fit(Classifier(), [*monitors(10), between], **between.settings)
