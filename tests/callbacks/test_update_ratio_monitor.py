import json
import math
import pathlib

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_tuning import UpdateRatioMonitor
from lightning_tuning._trainer.fit_losses import fit_losses
from tests.processes import run_on_ranks
from tests.toys import Classifier, Manual, loader

ALL = (
    *("non_finite", "weights_not_updating", "frozen_params", "update_ratio_low"),
    *("update_ratio_high", "clip_too_small", "lr_decayed_too_fast", "weight_decay_too_high"),
)


def fit(module, *callbacks, data=None, **settings):
    seed_everything(1, verbose=False)
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = Trainer(
        **quiet | {"accelerator": "cpu", "max_epochs": 2} | settings, callbacks=list(callbacks)
    )
    trainer.fit(module, data or loader(), loader(8))
    return trainer


class Reference(Callback):
    """Weights around each step, from outside: before the batch and after it."""

    def __init__(self):
        self.ratios = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = [p.detach().clone() for p in pl_module.parameters()]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pairs = zip(pl_module.parameters(), self.before, strict=True)
        self.ratios.append([float((p.detach() - b).norm() / b.norm()) for p, b in pairs])


def ratios_of(monitor):
    return 10 ** np.array(monitor.result.log10_ratios)


def adamw(ps):
    return torch.optim.AdamW(ps, lr=0.01, weight_decay=0.1)


def lbfgs(ps):
    return torch.optim.LBFGS(ps, lr=0.1, max_iter=3)


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        (Classifier, {}),
        (lambda: Classifier(adamw), {"gradient_clip_val": 0.1}),
        (lambda: Classifier(lbfgs), {}),
        (lambda: Classifier(adamw), {"precision": "bf16-mixed"}),
        (lambda: Classifier(adamw), {"precision": "64-true"}),
        (Manual, {}),
    ],
)
def test_ratios_are_those_seen_from_outside(module, settings):
    monitor, reference = UpdateRatioMonitor(1), Reference()
    fit(module(), monitor, reference, **settings)
    assert monitor.result.steps == tuple(range(12))
    np.testing.assert_allclose(ratios_of(monitor), reference.ratios, rtol=2e-3)
    assert sorted(f.code for f in monitor.findings) == sorted(ALL)
    assert {f.verdict for f in monitor.findings} <= {"pass", "skip"}


class Counted(torch.overrides.TorchFunctionMode):
    """A mode of the program's own, which sees every function of torch that is called."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **kwargs or {})


def test_a_mode_of_the_program_does_not_see_the_measuring():
    calls = []
    for every_n_steps in (1, 1000):
        with Counted() as mode:
            fit(Classifier(adamw), UpdateRatioMonitor(every_n_steps))
        calls.append(mode.calls)
    assert calls[0] > 100
    # what is left is the end of each batch, where the program's own parts are looked through
    assert (calls[0] - calls[1]) / 12 < 5


def test_accumulated_batches_are_one_step():
    monitor = UpdateRatioMonitor(1)
    fit(Classifier(), monitor, accumulate_grad_batches=3)
    assert monitor.result.steps == (0, 1, 2, 3)
    assert np.isfinite(monitor.result.log10_ratios).all()


def test_norms_before_and_after_clipping():
    monitor = UpdateRatioMonitor(1)
    fit(Classifier(), monitor, gradient_clip_val=0.3)
    before, after = (
        np.array(x)[:, 0] for x in (monitor.result.before_clipping, monitor.result.after_clipping)
    )
    np.testing.assert_allclose(after, np.minimum(before, 0.3), rtol=1e-4)
    assert monitor.result.clipped_share == pytest.approx(np.mean(before > 0.3))


class Raw(Manual):
    """Steps of the optimizers themselves, which Lightning does not see; the second is slower."""

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers(use_pl_optimizer=False)
        self.manual_backward(self.loss(batch))
        first.step()
        if batch_idx % 2:
            second.step()
        for optimizer in (first, second):
            optimizer.zero_grad()


def test_optimizers_that_lightning_does_not_see():
    monitor, reference = UpdateRatioMonitor(1), Reference()
    fit(Raw(), monitor, reference)
    measured, expected = ratios_of(monitor), np.array(reference.ratios)
    np.testing.assert_allclose(measured[:, :2], expected[:, :2], rtol=2e-3)
    np.testing.assert_allclose(measured[1::2, 2:], expected[1::2, 2:], rtol=2e-3)
    assert np.isnan(measured[::2, 2:]).all()


class Overflows(Classifier):
    """Its gradients overflow in the third batch."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        return loss * (math.inf if batch_idx == 2 else 1.0)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_loss_scaler_skips_is_none(fused):
    monitor = UpdateRatioMonitor(1)
    module = Overflows(lambda ps: torch.optim.Adam(ps, lr=0.01, fused=fused))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    from lightning.pytorch.plugins import MixedPrecision

    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    fit(module, monitor, plugins=[plugin], max_epochs=1)
    ratios = np.array(monitor.result.log10_ratios)
    assert np.isnan(ratios[2]).all()
    assert np.isfinite(np.delete(ratios, 2, axis=0)).all()
    plain = UpdateRatioMonitor(1)
    fit(Classifier(), plain, max_epochs=1)
    assert monitor.result.before_clipping[0][0] == pytest.approx(
        plain.result.before_clipping[0][0], rel=0.05
    )


class Stuck(Classifier):
    """Its optimizer leaves the first layer alone."""

    def configure_optimizers(self):
        frozen = [*self.net[0].parameters()]

        class Lazy(torch.optim.SGD):
            def step(self, closure=None):
                result = closure()
                kept = [p.detach().clone() for p in frozen]
                super().step()
                with torch.no_grad():
                    for p, value in zip(frozen, kept, strict=True):
                        p.copy_(value)
                return result

        return Lazy(self.parameters(), lr=0.1)


def test_weights_that_stand_still_are_a_failure():
    monitor = UpdateRatioMonitor()
    fit(Stuck(), monitor)
    [finding] = [f for f in monitor.findings if f.verdict == "fail"]
    assert finding.code == "weights_not_updating"
    assert finding.where == "net.0.weight"


class Breaks(Classifier):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        return loss * math.nan if batch_idx == 3 else loss


def test_nan_is_said_at_once(capsys):
    class Listens(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            heard.append([f.code for f in monitor.findings])

    heard, monitor = [], UpdateRatioMonitor(1)
    fit(Breaks(), monitor, Listens(), max_epochs=1)
    assert heard[2] == []
    assert heard[3] == heard[5] == ["non_finite"]
    assert sorted(f.code for f in monitor.findings) == sorted(ALL)


@pytest.mark.parametrize(
    ("optimizer", "code"),
    [
        (lambda ps: torch.optim.SGD(ps, lr=1e-7), "update_ratio_low"),
        (lambda ps: torch.optim.Adam(ps, lr=30.0), "update_ratio_high"),
    ],
)
def test_a_rate_far_off_is_named(optimizer, code):
    monitor = UpdateRatioMonitor()
    data = loader(240, 8)
    fit(Classifier(optimizer), monitor, data=data, max_epochs=5)
    assert [f.code for f in monitor.findings if f.verdict == "warn"] == [code]


class Lazy(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))


@pytest.mark.parametrize("include", [None, "weight"])
def test_lazy_layers_are_followed_from_their_first_step(include):
    monitor = UpdateRatioMonitor(1, include=include)
    fit(Lazy(), monitor)
    assert "net.0.weight" in monitor.result.names
    assert monitor.result.steps[0] == 0
    assert np.isfinite(monitor.result.log10_ratios).all()


def test_include_takes_a_part():
    monitor = UpdateRatioMonitor(1, include=r"net\.2|bias")
    fit(Classifier(), monitor)
    assert monitor.result.names == ("net.0.bias", "net.2.weight", "net.2.bias")
    with pytest.raises(ValueError, match=r"include='encoder'.*net\.0\.bias"):
        fit(Classifier(), UpdateRatioMonitor(include="encoder"))


class Interrupts(Callback):
    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if trainer.global_step == 4:
            raise RuntimeError("stop here")


def test_nothing_is_left_behind_by_an_error():
    module, monitor = Classifier(), UpdateRatioMonitor(1)
    with pytest.raises(RuntimeError, match="stop here"):
        fit(module, monitor, Interrupts())
    [optimizer] = [module.trainer.optimizers[0]]
    assert not optimizer._optimizer_step_post_hooks
    assert len(monitor.result.steps) == 4
    assert sorted(f.code for f in monitor.findings) == sorted(ALL)


class LateSecond(Manual):
    """The second optimizer steps on every fifth batch, the first one among them."""

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        loss = self.loss(batch)
        self.manual_backward(loss)
        first.step()
        if batch_idx % 5 == 0:
            second.step()
        self.zero_grad()


def test_an_optimizer_that_rarely_steps_is_waited_for():
    monitor, other = UpdateRatioMonitor(8), UpdateRatioMonitor(8, include=r"net\.2")
    module = LateSecond()
    fit(module, monitor, other, data=loader(160), max_epochs=1)
    assert monitor.result.steps == (0, 7, 10, 15, 23, 25, 31, 35, 39)
    ratios = np.array(monitor.result.log10_ratios)
    late = [name.startswith("net.2") for name in monitor.result.names]
    stepped = np.array(monitor.result.steps) % 5 == 0
    assert (np.isfinite(ratios[:, late]).all(axis=1) == stepped).all()
    assert np.isfinite(ratios[~stepped][:, ~np.array(late)]).all()
    assert not any(o._optimizer_step_post_hooks for o in module.trainer.optimizers)


def test_nobody_waits_for_ever():
    class Looks(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            hooks.append([len(o._optimizer_step_post_hooks) for o in trainer.optimizers])

    hooks = []
    fit(Manual(every=1000), UpdateRatioMonitor(200), Looks(), data=loader(400), max_epochs=1)
    assert hooks[1] == hooks[50] == [0, 1]
    assert hooks[52] == hooks[99] == [0, 0]


def test_clipping_under_several_evaluations_is_not_known():
    monitor = UpdateRatioMonitor(1)
    fit(Classifier(lbfgs), monitor)
    assert np.isnan(monitor.result.before_clipping).all()
    assert np.isfinite(monitor.result.after_clipping).all()


def test_a_second_fit_is_judged_alone():
    monitor = UpdateRatioMonitor(1)
    trainer = fit(Classifier(), monitor)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(Classifier(), loader(), loader(8))
    assert len(fit_losses(trainer).read(trainer)[1]) == len(monitor.result.steps) == 6


def test_findings_and_pictures_lie_on_the_axis_of_the_scalars(tmp_path):
    logger, monitor = TensorBoardLogger(tmp_path), UpdateRatioMonitor(1)
    trainer = fit(Manual(), monitor, logger=logger)
    assert trainer.global_step == 24
    assert {finding.step for finding in monitor.findings} == {12}
    events = EventAccumulator(logger.log_dir).Reload()
    [text] = events.Tensors("update_ratio_monitor/findings/text_summary")
    assert text.step == 12
    assert events.Images("update_ratio_map/all")[-1].step == 11


def test_between_measured_steps_nothing_hangs_on_the_optimizer():
    class Looks(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            hooks.append(len(optimizer._optimizer_step_post_hooks))

    hooks = []
    fit(Classifier(), UpdateRatioMonitor(4), Looks())
    assert hooks == [1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]


def test_what_is_logged(tmp_path):
    monitor = UpdateRatioMonitor(3)
    logger = TensorBoardLogger(tmp_path, name="run")
    fit(Classifier(), monitor, logger=logger, gradient_clip_val=0.5)
    events = EventAccumulator(logger.log_dir).Reload()
    tags = set(events.Tags()["scalars"])
    names = monitor.result.names
    expected = {f"update_ratio/{name}" for name in names}
    expected |= {f"update_ratio_summary/{x}" for x in ("median", "low", "high", "target")}
    expected |= {f"gradient_norm/{x}_clipping" for x in ("before", "after")}
    assert expected <= tags
    for i, name in enumerate(names):
        logged = events.Scalars(f"update_ratio/{name}")
        assert [e.step for e in logged] == [0, 2, 5, 8, 11] == list(monitor.result.steps)
        assert [e.value for e in logged] == pytest.approx(
            [r[i] for r in monitor.result.log10_ratios]
        )
    medians = [e.value for e in events.Scalars("update_ratio_summary/median")]
    weights = [[r[0], r[2]] for r in monitor.result.log10_ratios]
    assert medians == pytest.approx(np.median(weights, axis=1))
    assert "update_ratio_map/all" in events.Tags()["images"]
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert (pathlib.Path(logger.log_dir) / "findings.json").exists()


def test_the_result_as_json_and_picture():
    monitor = UpdateRatioMonitor(2)
    fit(Classifier(), monitor)
    read = json.loads(monitor.result.to_json())
    assert read["names"] == list(monitor.result.names)
    assert np.allclose(read["log10_ratios"], monitor.result.log10_ratios)
    [ratio_map, norms, _] = monitor.result.plot().axes
    assert [label.get_text() for label in ratio_map.get_yticklabels()] == read["names"]
    assert norms.get_ylabel() == "gradient norm"


class Tied(Classifier):
    """Both layers share their weight; the rest is frozen, held by the optimizer."""

    def __init__(self):
        super().__init__(features=6, classes=6)
        self.net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        self.net[2].weight = self.net[0].weight
        self.net[2].bias.requires_grad_(False)


def test_tied_weights_count_once_and_frozen_ones_never():
    monitor = UpdateRatioMonitor(1)
    fit(Tied(), monitor)
    assert monitor.result.names == ("net.0.weight", "net.0.bias", "net.2.bias")
    assert np.isnan([r[2] for r in monitor.result.log10_ratios]).all()
    assert {f.verdict for f in monitor.findings} <= {"pass", "skip"}


class Sharded(Classifier):
    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        for layer in (self.net[0], self.net[2], self):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])


@pytest.mark.processes
def test_norms_over_shards_are_those_of_whole_tensors():
    from lightning.pytorch.strategies import ModelParallelStrategy

    def rank():
        monitor = UpdateRatioMonitor(1)
        strategy = ModelParallelStrategy(process_group_backend="gloo")
        settings = {"strategy": strategy, "devices": 2, "use_distributed_sampler": False}
        fit(Sharded(), monitor, **settings)
        return monitor.result

    first, second = run_on_ranks(rank)
    assert first == second
    alone = UpdateRatioMonitor(1)
    fit(Classifier(), alone)
    np.testing.assert_allclose(first.log10_ratios, alone.result.log10_ratios, atol=1e-3)
    np.testing.assert_allclose(first.before_clipping, alone.result.before_clipping, rtol=1e-4)


@pytest.mark.processes
def test_ranks_of_ddp_agree():
    def rank():
        monitor = UpdateRatioMonitor(1)
        fit(Classifier(), monitor, strategy="ddp", devices=2)
        return monitor.result, [f.to_dict() for f in monitor.findings]

    first, second = run_on_ranks(rank)
    assert first == second
