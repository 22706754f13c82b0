"""A GAN under manual optimization: averaged weights, watched steps, and what can't be judged."""

import math

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import EMAWeights, LossCurveDiagnosis, UpdateRatioMonitor, preflight


def network(inputs, outputs):
    return nn.Sequential(
        nn.Linear(inputs, 64),
        nn.LeakyReLU(0.2),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, outputs),
    )


class Gan(LightningModule):
    """Learns points on a circle of radius 1."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = network(4, 2), network(2, 1)

    def training_step(self, batch, batch_idx):
        generator, critic = self.optimizers()
        real, made = batch[0], self.generator(torch.randn(len(batch[0]), 4))
        for_real, for_made = self.critic(real), self.critic(made.detach())
        loss = bce(for_real, torch.ones_like(for_real)) + bce(for_made, torch.zeros_like(for_made))
        critic.zero_grad()
        self.manual_backward(loss)
        critic.step()
        judged = self.critic(made)
        generator.zero_grad()
        self.manual_backward(bce(judged, torch.ones_like(judged)))
        generator.step()

    def validation_step(self, batch, batch_idx):
        noise = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
        made = self.generator(noise)
        self.log("off_circle", (made.norm(dim=1) - 1).abs().mean())

    def configure_optimizers(self):
        settings = {"lr": 1e-3, "betas": (0.5, 0.9)}
        parts = self.generator, self.critic
        return [torch.optim.Adam(part.parameters(), **settings) for part in parts]


def main(seed=1, max_epochs=40):
    seed_everything(seed, verbose=False)
    angles = torch.rand(2048) * 2 * math.pi
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    train, val = DataLoader(TensorDataset(circle), 64, shuffle=True), DataLoader(range(1))
    average, ratios = EMAWeights(0.99, validate="both"), UpdateRatioMonitor()
    curves = LossCurveDiagnosis()
    names = "logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"
    settings = {"max_epochs": max_epochs, "accelerator": "cpu", **dict.fromkeys(names, False)}
    wiring = preflight(Trainer(**settings), Gan(), train, val, checks=["wiring_check"], folder=None)
    trainer = Trainer(callbacks=[average, ratios, curves], **settings)
    trainer.fit(Gan(), train, val)

    findings = [*wiring.findings, *ratios.findings, *curves.findings]
    for reason in dict.fromkeys(told.message for told in findings if told.verdict == "skip"):
        print("not judged:", reason)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print(f"off the circle: {found['off_circle']:.3f} averaged, {found['off_circle_raw']:.3f} raw")
    return findings, found


if __name__ == "__main__":
    main()
