"""Make the pictures of TensorBoard: ``python docs/make_screenshots.py``.

It fits a small network with all callbacks, starts TensorBoard and lets a headless Chromium look.
"""

import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_tuning import recipe

IMAGES = pathlib.Path(__file__).parent / "images"
TABS = {"custom_scalars": 1900, "hparams": 500, "images": 1150, "text": 1050, "histograms": 1150}
BROWSER = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--virtual-time-budget=30000"),
)


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum."""
        return x + self.second(functional.relu(self.norm(self.first(x))))


class Digits(LightningModule):
    """A small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 5, padding=2)
        self.blocks = nn.Sequential(*(Block(24) for _ in range(3)))
        self.head = nn.Linear(24, 10)

    def loss(self, batch: list[torch.Tensor], name: str) -> torch.Tensor:
        """Log loss and accuracy of a batch."""
        images, labels = batch
        features = self.blocks(functional.relu(self.stem(images))).mean((2, 3))
        outputs = self.head(features)
        loss = functional.cross_entropy(outputs, labels)
        self.log(f"{name}_loss", loss)
        self.log(f"{name}_accuracy", (outputs.argmax(1) == labels).float().mean())
        return loss

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """Lightning's hook."""
        return self.loss(batch, "train")

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        """Lightning's hook."""
        self.loss(batch, "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Lightning's hook."""
        return torch.optim.AdamW(self.parameters(), 1e-3)


def fit(folder: str) -> None:
    """Fit with all callbacks at their defaults."""
    seed_everything(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = functional.interpolate(images, size=16, mode="bilinear")
    train, val = random_split(TensorDataset(images, torch.tensor(digits.target)), [1437, 360])
    trainer = Trainer(
        max_epochs=6,
        accelerator="cpu",
        callbacks=recipe(checks=True),
        default_root_dir=folder,
        log_every_n_steps=10,
    )
    trainer.fit(Digits(), DataLoader(train, 64, shuffle=True), DataLoader(val, 120))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def look(folder: str) -> None:
    """Take a picture of each tab."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("install Chromium first")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "lightning_logs"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as board:
        try:
            for _ in range(60):
                time.sleep(1)
                try:
                    runs = urllib.request.urlopen(f"{address}/data/runs").read()
                except OSError:
                    continue
                if b"version_" in runs:
                    break
            for tab, height in TABS.items():
                with tempfile.TemporaryDirectory() as profile:
                    file = IMAGES / f"tensorboard_{tab}.png"
                    options = [f"--window-size=1400,{height}", f"--user-data-dir={profile}"]
                    subprocess.run(
                        [browser, *BROWSER, *options, f"--screenshot={file}", f"{address}/#{tab}"],
                        check=True,
                        stderr=subprocess.DEVNULL,
                    )
                print(file)
        finally:
            board.terminate()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        fit(folder)
        look(folder)
