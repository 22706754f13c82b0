"""Settings that the program hides: a clipping, a schedule or a momentum of its own making."""

import functools

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning._trainer.overfit_batch import settings_rescue
from lightning_tuning._trainer.overfit_batch.settings_clipping import GradientsBeforeStep
from lightning_tuning._trainer.probe import Probe
from lightning_tuning.functional.settings_findings import settings_findings

pytestmark = pytest.mark.filterwarnings("ignore")


class Settings(Callback):
    """Asks before the first step; weights, hooks and schedulers must stay."""

    def on_train_start(self, trainer, pl_module):
        weights = [p.clone() for p in pl_module.parameters()]
        schedules = [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs]
        with Probe(trainer, pl_module) as probe:
            found = settings_findings(settings_rescue.measure(probe, own_targets=False))
        self.alarms = {f.code: f for f in found if f.verdict in ("warn", "fail")}
        assert all(map(torch.equal, weights, pl_module.parameters()))
        assert schedules == [c.scheduler.state_dict() for c in trainer.lr_scheduler_configs]
        assert "_clip_gradients" not in vars(trainer.precision_plugin)
        assert not any(p._post_accumulate_grad_hooks for p in pl_module.parameters())
        trainer.should_stop = True


class Net(LightningModule):
    def __init__(self, factor=None, interval="step", momentum=0.9, lr=0.05, adjust=None):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.factor, self.interval = factor, interval
        self.momentum, self.lr, self.adjust = momentum, lr, adjust

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def on_before_optimizer_step(self, optimizer):
        if self.adjust is not None:
            self.adjust(self.net.parameters())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.lr, momentum=self.momentum)
        if self.factor is None:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.factor)
        return [optimizer], [{"scheduler": schedule, "interval": self.interval}]


def alarms(module, *, samples=256, max_steps=1000, **settings):
    seed_everything(1, verbose=False)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 16, generator=generator)
    labels = (inputs @ torch.randn(16, 4, generator=generator)).argmax(1)
    check = Settings()
    trainer = Trainer(
        accelerator="cpu", max_epochs=-1, max_steps=max_steps, logger=False, callbacks=[check],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **settings,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(inputs, labels), 32, shuffle=True))
    return check.alarms


def clipping(limit):
    return functools.partial(nn.utils.clip_grad_value_, clip_value=limit)


def test_a_clipping_in_a_hook_of_the_module():
    assert set(alarms(Net(adjust=clipping(1e-6)))) == {"clip_too_small"}
    assert alarms(Net(adjust=clipping(0.01))) == {}
    # the same gradients with a rate that fits them
    assert alarms(Net(adjust=clipping(1e-6), lr=1e3)) == {}


@pytest.mark.parametrize("max_steps", [-1, 300, 1000])
def test_a_schedule_that_stays_at_zero(max_steps):
    found = alarms(Net(lambda step: min(1, (step + 1) // 600)), max_steps=max_steps)
    assert set(found) == {"lr_too_low"}
    assert found["lr_too_low"].verdict == ("fail" if max_steps == 300 else "warn")
    assert found["lr_too_low"].evidence["steps_at_zero"] == (300 if max_steps == 300 else 599)


def test_a_schedule_that_counts_steps_for_epochs():
    # 16 steps an epoch; three decades are gone after 20
    tenth = lambda count: 0.1 ** (count // 5)  # noqa: E731
    found = alarms(Net(tenth), samples=512)
    assert "lr_decayed_too_fast" in found
    assert "Let the schedule decay" in found["lr_too_low"].hint
    assert found["lr_decayed_too_fast"].evidence["steps_alive"] == 20
    # in epochs it is spread over the fit; nothing is known without an end, or of few epochs
    assert alarms(Net(tenth, "epoch"), samples=512) == {}
    assert "lr_decayed_too_fast" not in alarms(Net(tenth), samples=512, max_steps=-1)
    assert "lr_decayed_too_fast" not in alarms(Net(tenth), samples=512, max_steps=70)


@pytest.mark.parametrize("max_steps", [-1, 1000])
@pytest.mark.parametrize(
    ("factor", "interval"),
    [
        (lambda step: min(1.0, step / 500), "step"),
        (lambda step: min(1.0, step / 5), "epoch"),
        (lambda step: float(step >= 50), "step"),
        (lambda step: 0.0 if step == 0 else 0.5, "epoch"),
    ],
)
def test_schedules_that_leave_zero(factor, interval, max_steps):
    assert alarms(Net(factor, interval), samples=512, max_steps=max_steps) == {}


def test_a_module_that_steps_its_own_schedule():
    class Own(Net):
        def lr_scheduler_step(self, scheduler, metric):
            scheduler.step(epoch=self.global_step * 600)

    assert alarms(Own(lambda step: min(1, (step + 1) // 600))) == {}


def test_a_warm_up_longer_than_the_fit():
    warm_up = functools.partial(lambda whole, step: min(1.0, (step + 1) / whole))
    found = alarms(Net(functools.partial(warm_up, 100_000)))
    assert set(found) == {"lr_too_low"}
    assert "in all 1000 steps" in found["lr_too_low"].message
    assert alarms(Net(functools.partial(warm_up, 5000))) == {}
    # absolute rates for an optimizer whose own rate is 1
    assert alarms(Net(lambda step: 0.05, lr=1.0)) == {}


def test_a_momentum_that_swings():
    assert set(alarms(Net(momentum=0.9997, lr=0.1))) == {"momentum_too_high"}
    assert alarms(Net(momentum=0.995, lr=2e-3)) == {}


@pytest.mark.parametrize(("clip", "expected"), [(1e-2, {"clip_too_small"}), (1.0, set())])
def test_a_clipping_that_slows_a_program_which_learns(clip, expected):
    module = Net(lr=0.3)
    assert set(alarms(module, gradient_clip_val=clip)) == expected


@pytest.mark.parametrize(("lr", "expected"), [(8.0, {"lr_too_high"}), (0.3, set())])
def test_a_rate_at_which_a_program_learns_less_than_at_a_lower_one(lr, expected):
    assert set(alarms(Net(lr=lr, momentum=0.0))) == expected


def test_gradients_before_each_step():
    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            seen = GradientsBeforeStep(trainer)
            with Probe(trainer, pl_module) as probe:
                probe.run(3, watch=[seen])
            self.share = seen.share()
            trainer.should_stop = True

    data = DataLoader(TensorDataset(torch.randn(64, 16), torch.zeros(64, dtype=torch.long)), 8)
    for adjust, expected in ((None, 1.0), (lambda ps: [p.grad.mul_(0.25) for p in ps], 0.25)):
        look = Look()
        trainer = Trainer(
            accelerator="cpu", max_steps=1, logger=False, callbacks=[look],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Net(adjust=adjust), data)
        assert look.share == pytest.approx(expected)


class Betas(Net):
    def __init__(self, *betas):
        super().__init__()
        self.betas = betas

    def configure_optimizers(self):
        optimizer = torch.optim.Adam if len(self.betas) == 2 else Three
        return optimizer(self.parameters(), 1e-3, betas=self.betas)


class Three(torch.optim.Adam):
    """An optimizer with a momentum of differences, such as Adan."""

    def __init__(self, parameters, lr, betas):
        super().__init__(parameters, lr, betas=betas[::2])
        for group in self.param_groups:
            group["betas"] = betas

    def step(self, closure=None):
        return closure()


def test_betas_in_the_wrong_order():
    found = alarms(Betas(0.999, 0.9))["momentum_too_high"]
    assert found.verdict == "warn"
    assert "(0.999, 0.9)" in found.message
    assert alarms(Betas(0.9, 0.999)) == {}
    assert "momentum_too_high" not in alarms(Betas(0.99, 0.92, 0.98))
