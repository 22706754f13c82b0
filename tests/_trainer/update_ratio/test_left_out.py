"""Programs that leave a part of the module out, for a reason or by mistake."""

import math

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import UpdateRatioMonitor
from lightning_tuning._trainer.update_ratio.tracked_parameters import TrackedParameters

QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")


class Encoded(LightningModule):
    """Two spirals, which no linear head tells apart unless the encoder learns."""

    def __init__(self, trained=("encoder", "head"), optimizer=torch.optim.Adam, lr=3e-2):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 3), nn.Tanh())
        self.head = nn.Linear(3, 2)
        self.trained, self.optimizer, self.lr = trained, optimizer, lr

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.encoder(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        """Lightning clears gradients before it."""

    def configure_optimizers(self):
        parts = [getattr(self, name) for name in self.trained]
        return self.optimizer([p for part in parts for p in part.parameters()], lr=self.lr)


class Cut(Encoded):
    """The encoder is meant to stay as it is, and no gradient comes there."""

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            codes = self.encoder(batch[0])
        return nn.functional.cross_entropy(self.head(codes), batch[1])


def spirals(n=512):
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(0, 2, (n,), generator=generator)
    radius = torch.rand(n, generator=generator)
    angle = 9 * radius + math.pi * y
    return TensorDataset(torch.stack([radius * angle.cos(), radius * angle.sin()], 1), y)


def fit(module, data=None, epochs=10, **settings):
    seed_everything(1, verbose=False)
    monitor = UpdateRatioMonitor(5)
    trainer = Trainer(
        **dict.fromkeys(QUIET, False),
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[monitor],
        **settings,
    )
    data = data or spirals()
    val = DataLoader(data, 256)
    trainer.fit(module, DataLoader(data, 32, shuffle=True), val)
    return monitor


def verdict(monitor, code):
    [finding] = [finding for finding in monitor.findings if finding.code == code]
    return finding.verdict


def frozen(module):
    module.encoder.requires_grad_(False)
    return module


def trained_before(module):
    """An encoder as training leaves it: not as torch draws it."""
    with torch.no_grad():
        for parameter in module.encoder.parameters():
            parameter.mul_(1.7).add_(0.3)
    return module


def test_an_encoder_that_no_optimizer_got_is_named():
    seed_everything(0, verbose=False)
    monitor = fit(Encoded(trained=("head",)))
    assert verdict(monitor, "frozen_params") == "warn"
    [finding] = [finding for finding in monitor.findings if finding.code == "frozen_params"]
    assert finding.where == "encoder.0.weight"
    assert finding.evidence["tensors"] == 2


@pytest.mark.parametrize(
    "healthy",
    [
        Encoded,
        lambda: trained_before(Encoded(trained=("head",))),
        lambda: trained_before(frozen(Encoded(trained=("head",)))),
    ],
)
def test_what_learns_or_has_learnt_is_not(healthy):
    seed_everything(0, verbose=False)
    assert verdict(fit(healthy()), "frozen_params") == "pass"


def test_what_is_left_out_is_told_apart():
    seed_everything(0, verbose=False)
    found = {}
    for name, module in {
        "fed": Encoded(trained=("head",)),
        "cut": Cut(trained=("head",)),
        "frozen": frozen(Encoded(trained=("head",))),
        "used": trained_before(Encoded(trained=("head",))),
    }.items():
        trainer = Trainer(
            **dict.fromkeys(QUIET, False), accelerator="cpu", max_steps=2, limit_val_batches=0
        )
        trainer.fit(module, DataLoader(spirals(), 32), DataLoader(spirals(), 256))
        tracked = TrackedParameters(trainer, module, None)
        tracked.note_fed()
        left = tracked.left_out()
        assert [one.name for one in left] == ["encoder.0.weight", "encoder.2.weight"]
        found[name] = (left[0].trainable, left[0].fed, tracked.rest_is_fresh(()))
    assert found == {
        "fed": (True, True, True),
        "cut": (True, False, True),
        "frozen": (False, False, True),
        "used": (True, True, False),
    }


class Thaws(Encoded):
    """A frozen encoder that is to learn from the third epoch on."""

    def __init__(self, attribute, of_module=False):
        super().__init__()
        self.attribute, self.of_module = attribute, of_module
        self.encoder.requires_grad_(False)

    def on_train_epoch_start(self):
        if self.current_epoch == 2:
            for one in [self.encoder] if self.of_module else self.encoder.parameters():
                setattr(one, self.attribute, True)


def test_a_thaw_that_nothing_reads_is_a_failure():
    seed_everything(0, verbose=False)
    for module in (Thaws("require_grad"), Thaws("requires_grad", of_module=True)):
        monitor = fit(module, epochs=3)
        [finding] = [finding for finding in monitor.findings if finding.code == "frozen_params"]
        assert finding.verdict == "fail"
        assert finding.where.startswith("encoder")
    assert verdict(fit(Thaws("requires_grad"), epochs=3), "frozen_params") == "pass"


def test_a_freeze_that_nothing_reads_is_a_failure():
    def flagged(trained):
        module = Encoded(trained=trained)
        module.encoder.requires_grad = False
        return module

    seed_everything(0, verbose=False)
    assert verdict(fit(flagged(("encoder", "head")), epochs=3), "frozen_params") == "fail"
    # it is left as it is in another way
    assert verdict(fit(flagged(("head",)), epochs=1), "frozen_params") == "pass"


def test_line_search_on_raw_targets_is_healthy():
    """L-BFGS is done before the first loss is known, and its first step is of any size."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(256, 6, generator=generator)
    y = 150 + 40 * x[:, :1] + 50 * torch.randn(256, 1, generator=generator)

    class Linear(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 1)

        def training_step(self, batch, batch_idx):
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            return None

        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), max_iter=4, line_search_fn="strong_wolfe")

    data = TensorDataset(x.repeat(8, 1), y.repeat(8, 1))
    monitor = fit(Linear(), data, epochs=1)
    assert {finding.verdict for finding in monitor.findings} <= {"pass", "skip"}
    assert "L-BFGS" in next(f for f in monitor.findings if f.code == "update_ratio_high").message
