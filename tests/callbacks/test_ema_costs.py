"""What EMAWeights costs: one copy of the parameters, no wait for the device, no new graphs."""

import gc
import weakref

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_tuning import EMAWeights
from tests.callbacks.ema_reference import Recursion, differing, fit, weights_of
from tests.callbacks.test_ema_overflow import Overflows, fp16
from tests.toys import Classifier, Manual, loader


def large():
    module = Classifier()
    module.net = nn.Sequential(nn.Linear(6, 5000), nn.ReLU(), nn.Linear(5000, 3))
    return module


def bytes_held():
    """Return the bytes of all storages that Python can see."""
    gc.collect()
    storages = {}
    for obj in gc.get_objects():
        if issubclass(type(obj), torch.Tensor):
            storage = obj.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return sum(storages.values())


class Measure(Callback):
    def __init__(self):
        self.bytes = {}

    def note(self, name):
        self.bytes[name] = bytes_held()

    def on_train_batch_end(self, trainer, pl_module, *args):
        pl_module.zero_grad(set_to_none=True)
        self.note(f"step {trainer.global_step}")

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.note("validation end")

    def on_validation_batch_start(self, trainer, pl_module, *args):
        if not trainer.sanity_checking:
            self.note("validation")

    def on_fit_end(self, trainer, pl_module):
        self.note("fit end")


def measure(*callbacks, module=None, **settings):
    gc.collect()
    gc.freeze()  # what is there already is left out, and need not be walked through
    before = bytes_held()
    module, measured = module or large(), Measure()
    try:
        fit(module, *callbacks, measured, max_epochs=1, limit_train_batches=3, **settings)
    finally:
        gc.unfreeze()
    return {name: value - before for name, value in measured.bytes.items()}, module


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
@pytest.mark.parametrize("settings", [{}, {"every_n_steps": 2}, {"validate": "both"}])
def test_memory(settings, precision):
    plain, module = measure(precision=precision)
    copy = sum(p.nbytes for p in module.parameters())
    del module
    found, _ = measure(EMAWeights(0.9, **settings), precision=precision)
    extra = {name: (found[name] - plain[name]) / copy for name in plain}
    assert extra == dict.fromkeys(plain, pytest.approx(1, abs=0.03))


def test_memory_before_a_delayed_start():
    plain, _ = measure()
    found, _ = measure(EMAWeights(0.9, update_after_step=2))
    copy = plain["step 3"] / 4
    assert found["step 2"] - plain["step 2"] < 0.01 * copy


def test_memory_in_half_precision():
    """The average in float32 is two copies of the weights, and room to convert one chunk."""
    plain, module = measure(precision="bf16-true")
    copy = sum(p.nbytes for p in module.parameters())
    del module
    found, _ = measure(EMAWeights(0.9), precision="bf16-true")
    assert (found["step 3"] - plain["step 3"]) / copy < 4.1


def test_next_fit_holds_nothing_of_the_one_before():
    ema = EMAWeights(0.9)
    module = large()
    fit(module, ema)
    average = weakref.ref(ema._weights.sets)
    weight = weakref.ref(module.net[0].weight)
    seen = []

    class Look(Callback):
        def on_fit_start(self, trainer, pl_module):
            gc.collect()
            seen.append((average(), weight()))

    del module
    fit(Classifier(), ema, Look())
    assert seen == [(None, None)]


def test_trainer_and_module_are_freed_with_the_callback():
    ema, module = EMAWeights(0.9), large()
    trainer = fit(module, ema)
    weight = weakref.ref(module.net[0].weight)
    optimizers = [weakref.ref(o) for o in trainer.optimizers]
    assert not trainer.optimizers[0]._optimizer_step_post_hooks
    del ema, module, trainer
    gc.collect()
    assert weight() is None
    assert [o() for o in optimizers] == [None]


class NoSync(TorchDispatchMode):
    """Fails where a tensor's value is read on the host, or copied to another device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in {
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.nonzero,
            torch.ops.aten.equal,
            torch.ops.aten.is_nonzero,
        }, f"{func} waits for the device"
        self.calls.append(func)
        return func(*args, **(kwargs or {}))


def watch(monkeypatch):
    """Run the callback's own hooks of a step under the mode; return what they called."""
    from lightning_tuning._trainer.averaging.averages import Averages

    calls = []

    def watched(original):
        def run(*args, **kwargs):
            mode = NoSync()
            mode.calls = calls
            with mode:
                return original(*args, **kwargs)

        return run

    for name in ("_after_step", "before_step"):
        monkeypatch.setattr(Averages, name, watched(getattr(Averages, name)))
    return calls


@pytest.mark.parametrize(
    "settings",
    [{}, {"every_n_steps": 2}, {"buffers": "average"}, {"half_life": "9 samples"}],
)
@pytest.mark.parametrize("module", [Classifier, Manual])
def test_a_step_reads_no_value(settings, module, monkeypatch):
    calls = watch(monkeypatch)
    fit(module(), EMAWeights(**settings))
    assert torch.ops.aten._foreach_lerp_.Scalar in calls


@pytest.mark.parametrize("settings", [{}, {"every_n_steps": 2}, {"half_life": "9 samples"}])
def test_a_step_that_the_device_may_skip_reads_no_value(settings, monkeypatch):
    calls = watch(monkeypatch)
    fit(Overflows(2, 5), EMAWeights(**settings), plugins=fp16())
    assert torch.ops.aten._foreach_lerp_ in {call.overloadpacket for call in calls}


@pytest.mark.parametrize("precision", ["bf16-true", "32-true"])
def test_an_update_is_one_operation(precision, monkeypatch):
    """However many tensors there are."""
    calls = watch(monkeypatch)
    module = Classifier()
    module.net.extend([nn.Linear(3, 3) for _ in range(10)])
    fit(module, EMAWeights(0.9), max_epochs=1, precision=precision)
    names = [str(call) for call in calls]
    assert names.count("aten._foreach_lerp_.Scalar") == 5
    # all else is the start: one copy of each tensor, and room for conversions
    assert len(set(names) - {"aten._foreach_lerp_.Scalar", "aten._foreach_copy_.default"}) < 8
    lerp = [i for i, name in enumerate(names) if "lerp" in name]
    assert lerp[-1] - lerp[0] == 4 * (2 if precision == "bf16-true" else 1)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_module(backend):
    """Its validation judges the average, and no exchange of weights makes a new graph."""

    def run(*callbacks):
        torch._dynamo.reset()
        graphs = torch._dynamo.utils.counters
        graphs.clear()
        module = Compiled()
        compiled = torch.compile(module, backend=backend)
        fit(compiled, *callbacks, data=loader(), val=loader(8), max_epochs=4)
        return module, dict(graphs["stats"])

    ema = EMAWeights(0.8, after_fit="raw")
    recursion = Recursion(ema)
    validated = Validated(ema)
    module, graphs = run(ema, recursion, validated)
    assert recursion.judged
    assert recursion.compared
    other, other_graphs = run()
    assert graphs["unique_graphs"] == other_graphs["unique_graphs"]
    assert not differing(weights_of(module), weights_of(other))
    assert validated.logged == validated.computed
    torch._dynamo.reset()


class Compiled(Classifier):
    """Logs outside of the graph: torch 2.13 can't trace Lightning's log."""

    log = torch.compiler.disable(Classifier.log)


class Validated(Callback):
    """Computes outside of the compiled graph what the average's loss is."""

    def __init__(self, ema):
        self.ema, self.logged, self.computed = ema, [], []

    def on_validation_epoch_end(self, trainer, pl_module):
        if trainer.sanity_checking:
            return
        module = Classifier()
        module.load_state_dict(self.ema.average)
        losses = torch.stack([module.loss(batch) for batch in loader(8)])
        self.computed.append(pytest.approx(losses.mean().item(), rel=1e-6))

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.logged.append(trainer.callback_metrics["val_loss"].item())
