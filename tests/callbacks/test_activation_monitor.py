"""ActivationMonitor in whole fits: what it writes, finds, and leaves alone."""

import json
import math
import pathlib
import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_tuning import ActivationMonitor
from lightning_tuning._trainer.activations.activation_functions import FunctionCalls
from tests.toys import loader


class Net(LightningModule):
    def __init__(self, net=None, lr=0.05, manual=False, after=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = net or nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        self.lr = lr
        self.automatic_optimization = not manual
        self.after = after or (lambda step, loss: loss)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        loss = self.after(self.global_step, loss)
        self.log("train_loss", loss)
        if not self.automatic_optimization:
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


def fit(module, *callbacks, epochs=5, **settings):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(
        **{**quiet, "accelerator": "cpu", "max_epochs": epochs, **settings},
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, loader())
    return trainer


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


class Watch(Callback):
    """Keeps the outputs of a layer, and counts the hooks of each step."""

    def __init__(self):
        self.hooks = []

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.hooks.append(hooks(pl_module))


def test_the_event_file_holds_what_numpy_counts():
    seen = {}

    class Keep(Callback):
        def on_train_start(self, trainer, pl_module):
            def keep(module, args, output):
                seen.setdefault(trainer.global_step, output.detach().clone())

            self.hook = pl_module.net[0].register_forward_hook(keep)

        def on_train_end(self, trainer, pl_module):
            self.hook.remove()

    monitor = ActivationMonitor(every_n_steps=10)
    trainer = fit(Net(), Keep(), monitor, logger=TensorBoardLogger(".", "run"), log_every_n_steps=1)
    events = EventAccumulator(trainer.logger.log_dir, {"histograms": 0, "scalars": 0}).Reload()
    tags = events.Tags()
    assert {f"{kind}/net.{k}" for kind in ("activations", "gradients") for k in (0, 1, 2)} | {
        f"weight_gradients/net.{k}.weight" for k in (0, 2)
    } == set(tags["histograms"])
    assert {"activation_mean/net.0", "activation_std/net.1"} <= set(tags["scalars"])
    assert "gradient_norm_by_layer/002_net.2" in tags["scalars"]
    assert "activation_monitor/layers" in tags["images"]
    steps = [0, 9, 19, 29]
    for event, step in zip(events.Scalars("activation_std/net.0"), steps, strict=True):
        assert event.step == step
        values = seen[step].double().numpy()
        assert event.value == pytest.approx(values.std(), rel=1e-4)
    for event, step in zip(events.Histograms("activations/net.0"), steps, strict=True):
        values = seen[step].numpy()
        found = event.histogram_value
        assert (event.step, found.num) == (step, values.size)
        assert (found.min, found.max) == pytest.approx((values.min(), values.max()))
        below = [(values <= limit).sum() for limit in found.bucket_limit]
        assert np.abs(np.cumsum(found.bucket) - below).max() <= 1
    folder = pathlib.Path(trainer.logger.log_dir)
    assert (folder / "activation_monitor.png").stat().st_size > 5000
    written = json.loads((folder / "activation_monitor.json").read_text())
    assert [layer["name"] for layer in written["layers"]] == ["net.0", "net.1", "net.2"]


def test_steps_that_are_not_measured_have_no_hooks():
    watch, module = Watch(), Net()
    monitor = ActivationMonitor(every_n_steps=10)
    fit(module, monitor, watch)
    assert [step for step, count in enumerate(watch.hooks) if count] == [0, 9, 19, 29]
    assert hooks(module) == 0
    assert monitor.result.layers[0].steps == (0, 9, 19, 29)


class Counts(torch.overrides.TorchFunctionMode):
    """A mode of the program's own around its optimizer's steps."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


class StepsInMode(Net):
    def __init__(self):
        super().__init__()
        self.mode = Counts()
        self.left = []

    def optimizer_step(self, *args, **kwargs):
        with self.mode:
            super().optimizer_step(*args, **kwargs)
        self.left.append(torch.overrides._get_current_function_mode())


def test_a_mode_of_the_programs_own_stays_on_top():
    alone, watched = StepsInMode(), StepsInMode()
    fit(alone)
    monitor = ActivationMonitor(every_n_steps=1)
    fit(watched, monitor)
    assert watched.mode.seen == alone.mode.seen
    assert {type(mode) for mode in watched.left} == {FunctionCalls}
    assert torch.overrides._get_current_function_mode() is None
    assert len(monitor.result.layers) == 3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_nothing_is_looked_at_after_the_forward_pass(monkeypatch, accumulate):
    seen = []
    own = FunctionCalls.__torch_function__

    def look(self, func, types, args=(), kwargs=None):
        seen.append(func)
        return own(self, func, types, args, kwargs)

    monkeypatch.setattr(FunctionCalls, "__torch_function__", look)
    fit(Net(), ActivationMonitor(every_n_steps=1), accumulate_grad_batches=accumulate)
    assert torch.nn.functional.linear in seen
    for later in (torch.Tensor.add_, torch.Tensor.backward, torch.Tensor.grad.__set__):
        assert later not in seen


class BreaksError(Exception):
    pass


def test_an_exception_in_a_measured_step_leaves_nothing_behind():
    def after(step, loss):
        if step == 7:
            raise BreaksError
        return loss

    module, monitor = Net(after=after), ActivationMonitor(every_n_steps=1)
    with pytest.raises(BreaksError):
        fit(module, monitor)
    assert hooks(module) == 0
    assert torch.overrides._get_current_function_mode_stack() == []
    assert monitor.result.layers[0].steps == tuple(range(7))
    assert len(monitor.findings) == 6


def test_an_exception_reaches_the_person_and_other_callbacks_though_the_log_folder_broke(tmp_path):
    def after(step, loss):
        if step == 7:
            folder = pathlib.Path(trainer.logger.log_dir)
            shutil.rmtree(folder)
            folder.write_text("a file where a folder was")
            raise BreaksError
        return loss

    module, monitor = Net(after=after), ActivationMonitor(every_n_steps=10)
    last, seen = Callback(), []
    last.on_exception = lambda trainer, pl_module, exception: seen.append(type(exception))
    trainer = Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(tmp_path, "run"),
        max_epochs=5,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor, last],
    )
    with (
        pytest.warns(UserWarning, match="ActivationMonitor could not finish"),
        pytest.raises(BreaksError),
    ):
        trainer.fit(module, loader())
    assert seen == [BreaksError]
    assert hooks(module) == 0
    assert monitor.result.layers[0].steps == (0,)
    assert len(monitor.findings) == 6


@pytest.mark.parametrize("value", [torch.zeros(3), {"loss": torch.full((2,), math.nan)}, None])
def test_a_manual_step_may_return_anything(value):
    class Returns(Net):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            return value

    monitor = ActivationMonitor(every_n_steps=1)
    fit(Returns(manual=True), monitor, epochs=1)
    assert len(monitor.result.layers[0].steps) == 6
    assert codes(monitor) == []


def test_double_precision():
    monitor = ActivationMonitor(every_n_steps=1)
    module = Net()
    module.training_step = lambda batch, batch_idx: module.net(batch[0].double()).square().mean()
    fit(module, monitor, epochs=1, precision="64-true")
    assert min(monitor.result.weight_gradients[0].norm) > 0


@pytest.mark.parametrize("settings", [{"manual": True}, {}])
def test_gradients_of_weights_are_those_of_the_optimizer_step(settings):
    norms = []

    class Step(torch.optim.SGD):
        def step(self, closure=None):
            value = closure() if closure is not None else None
            norms.append(float(self.param_groups[0]["params"][0].grad.norm()))
            super().step()
            return value

    module = Net(**settings)
    module.configure_optimizers = lambda: Step(module.parameters(), 0.05)
    monitor = ActivationMonitor(every_n_steps=1)
    fit(module, monitor)
    [found, _] = monitor.result.weight_gradients
    assert found.name == "net.0.weight"
    assert found.norm == pytest.approx(norms, rel=1e-5)


def test_gradients_of_activations_are_not_those_of_the_scaled_loss():
    def gradients(**settings):
        monitor = ActivationMonitor(every_n_steps=1)
        fit(Net(nn.Sequential(nn.Linear(6, 3))), monitor, epochs=1, **settings)
        return np.array(monitor.result.layers[0].gradient_norm)

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plain, half = gradients(), gradients(plugins=MixedPrecision("16-mixed", "cpu", scaler))
    assert half[np.isfinite(half)].size >= 4
    assert half[0] == pytest.approx(plain[0], rel=0.02)


@pytest.mark.parametrize("settings", [{"accumulate_grad_batches": 3}, {"gradient_clip_val": 1e-3}])
def test_accumulation_and_clipping(settings):
    monitor = ActivationMonitor(every_n_steps=1)
    trainer = fit(Net(), monitor, **settings)
    assert len(monitor.result.layers[0].steps) == trainer.global_step
    assert min(monitor.result.weight_gradients[0].norm) > 1e-3


def test_of_lbfgs_the_first_evaluation_of_a_step_is_measured():
    module = Net()
    module.configure_optimizers = lambda: torch.optim.LBFGS(module.parameters(), max_iter=3)
    deviations, monitor = [], ActivationMonitor(every_n_steps=1)

    class First(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            deviations.append(float(pl_module.net[0](batch[0]).detach().std(correction=0)))

    fit(module, First(), monitor, epochs=1)
    layer = monitor.result.layers[0]
    assert layer.std == pytest.approx(deviations, rel=1e-5)
    assert len(layer.gradient_norm) == len(monitor.result.weight_gradients[0].norm) == 6
    assert not [f for f in monitor.findings if f.verdict in ("warn", "fail")]
    assert any("L-BFGS" in f.message for f in monitor.findings)


def codes(monitor):
    return [f.code for f in monitor.findings if f.verdict in ("warn", "fail")]


def deep(activation, layers=8, width=16, std=None):
    parts = [nn.Linear(6, width), activation()]
    for _ in range(layers - 2):
        parts += [nn.Linear(width, width), activation()]
    net = nn.Sequential(*parts, nn.Linear(width, 3))
    for part in net:
        if std is not None and isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
    return net


def test_dead_units_are_found():
    net = deep(nn.ReLU, layers=3)
    nn.init.constant_(net[2].bias, -100.0)
    monitor = ActivationMonitor()
    fit(Net(net, lr=0.01), monitor, epochs=10)
    assert codes(monitor) == ["dead_relu"]
    assert monitor.findings[2].where == "net.3"


def test_gradients_that_vanish_are_found():
    monitor = ActivationMonitor()
    fit(Net(deep(nn.Sigmoid, layers=10), lr=0.01), monitor, epochs=10)
    assert codes(monitor) == ["vanishing_gradients"]


def test_a_fit_that_learns_is_left_in_peace():
    monitor = ActivationMonitor()
    fit(Net(lr=0.3), monitor, epochs=15)
    assert codes(monitor) == []
    assert len(monitor.findings) == 6


@pytest.mark.parametrize("every", [1, 5])
def test_a_nan_is_told_at_once_with_its_layer(every):
    class Bad(nn.Module):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            return x / 0 * 0 if self.calls > 12 else x

    told = []

    class When(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            told.append(len(monitor.findings))

    net = nn.Sequential(nn.Linear(6, 8), Bad(), nn.Linear(8, 3))
    monitor = ActivationMonitor("all", every_n_steps=every)
    fit(Net(net), monitor, When())
    assert codes(monitor) == ["non_finite"]
    first = told.index(1)
    assert first == (12 if every == 1 else 14)
    found = monitor.findings[0]
    assert found.where == ("net.1" if every == 1 else "net.0")
    assert not math.isfinite(monitor.result.layers[0].low[-1])


def test_several_monitors_keep_their_tags_apart():
    monitors = [ActivationMonitor(["Linear"]), ActivationMonitor(["ReLU"], bins=16)]
    trainer = fit(Net(), *monitors, logger=TensorBoardLogger(".", "run"), log_every_n_steps=5)
    tags = EventAccumulator(trainer.logger.log_dir).Reload().Tags()["histograms"]
    assert "activations/net.0" in tags
    assert "activations_2/net.1" in tags
    assert "activations/net.1" not in tags
    assert [layer.name for layer in monitors[1].result.layers] == ["net.1"]


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_module_is_measured_and_not_changed():
    def train(*callbacks):
        torch._dynamo.reset()
        module = Net()
        module.net = torch.compile(module.net, backend="aot_eager")
        fit(module, *callbacks)
        assert hooks(module) == 0
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    monitor = ActivationMonitor(every_n_steps=4)
    assert torch.equal(train(), train(monitor))
    assert [layer.name for layer in monitor.result.layers] == ["net.0", "net.1", "net.2"]
    assert monitor.result.weight_gradients[0].norm[0] > 0
    told = {f.code: f.message for f in monitor.findings}
    assert "compiled" in told["vanishing_gradients"]
    torch._dynamo.reset()


def test_a_pattern_that_fits_nothing_is_refused_before_training():
    with pytest.raises(ValueError, match=r"layers: 'encoder.\*' is neither"):
        fit(Net(), ActivationMonitor(["encoder.*"]))


def test_a_program_without_layers_is_skipped_and_says_so():
    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return x[:, :3] + self.offset

    monitor = ActivationMonitor()
    fit(Net(Offset()), monitor, logger=TensorBoardLogger(".", "run"), log_every_n_steps=1)
    assert monitor.result.layers == ()
    assert [f.verdict for f in monitor.findings] == ["pass"] + ["skip"] * 5
