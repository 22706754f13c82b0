"""What a training program of the corpus is, and how one is trained."""

import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Callable

import sklearn.datasets
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

Parts = tuple[LightningModule, DataLoader, DataLoader | None]
HIGHER_IS_BETTER = ("acc", "f1", "iou", "auroc", "r2")
QUIET = {
    "accelerator": "cpu",
    "max_epochs": -1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "check_val_every_n_epoch": 10**9,
}


@dataclasses.dataclass(frozen=True)
class Program:
    """One training program as a person would write it.

    ``make`` builds the module and its loaders, the same data at every call; the weights come from
    the global seed. ``trainer`` holds arguments that the program's author gives to the Trainer,
    ``codes`` the acceptable diagnoses (none: the program is healthy), ``metric`` the logged value
    that tells how well it trained and ``steps`` the batches that suffice to tell. ``error`` is
    what the program's own failure says, where it does not run at all.
    """

    name: str
    make: Callable[[], Parts]
    trainer: dict = dataclasses.field(default_factory=dict)
    codes: frozenset[str] = frozenset()
    metric: str = "val_loss"
    note: str = ""
    steps: int = 150
    error: str = ""


class StopAfter(Callback):
    """Ends the fit after a number of batches, however many optimizers step in each."""

    def __init__(self, batches):
        self.left = batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.left -= 1
        if self.left <= 0:
            trainer.should_stop = True


def some(programs, every=8):
    """Every eighth of them, which is enough for each run of the tests; all with CORPUS_FULL."""
    return list(programs) if os.environ.get("CORPUS_FULL") else list(programs)[::every]


def fit(program, steps=None, seed=0):
    """Train for ``steps`` batches, then validate; the program's metric as it was logged."""
    torch.manual_seed(seed)
    module, train, val = program.make()
    stop = StopAfter(program.steps if steps is None else steps)
    trainer = Trainer(**QUIET | program.trainer, callbacks=[stop])
    with warnings.catch_warnings():
        # Lightning's own remarks about things that some programs do wrong on purpose
        for text in (
            ".*does not have many workers",
            "Found .* module.* in eval mode",
            "You defined a `validation_step` but have no `val_dataloader`",
            "The number of training batches",
            "Using a target size",
        ):
            warnings.filterwarnings("ignore", text)
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        trainer.fit(module, train, val)
        if val is not None:
            trainer.validate(module, val, verbose=False)
    return float(trainer.callback_metrics[program.metric])


def cost(program, value):
    """The metric as something to be minimised; infinite when it is not a number."""
    if math.isnan(value):
        return math.inf
    return -value if program.metric.endswith(HIGHER_IS_BETTER) else value


def pair(name, make, *codes, trainer=None, repaired=None, **settings):
    """A broken program and its repaired twin; ``make`` is told which of the two it makes.

    ``repaired`` holds the twin's arguments for the Trainer where those are the fault.
    """
    trainer = trainer or {}
    broken = Program(name, lambda: make(True), trainer=trainer, codes=frozenset(codes), **settings)
    twin = dataclasses.replace(
        broken,
        name=f"{name}_repaired",
        make=lambda: make(False),
        trainer=trainer if repaired is None else repaired,
        codes=frozenset(),
        error="",
    )
    return broken, twin


@functools.cache
def bundled(name):
    """One of scikit-learn's small sets as raw tensors, in a fixed random order."""
    inputs, targets = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(3))
    targets = torch.as_tensor(targets)
    targets = targets.long() if name != "diabetes" else targets.float()
    return torch.as_tensor(inputs).float()[order], targets[order]


def standardized(name):
    """The same with features of mean 0 and deviation 1."""
    inputs, targets = bundled(name)
    return (inputs - inputs.mean(0)) / inputs.std(0).clamp_min(1e-6), targets


def images():
    """The digits as 1 x 8 x 8 images of mean 0 and deviation 1, and their labels."""
    inputs, labels = bundled("digits")
    return ((inputs - inputs.mean()) / inputs.std()).view(-1, 1, 8, 8), labels


def loaders(*tensors, batch_size=32, val_batch_size=128, shuffle=True):
    """Loaders of the first three quarters and of the rest."""
    cut = len(tensors[0]) * 3 // 4
    train = TensorDataset(*(t[:cut] for t in tensors))
    val = TensorDataset(*(t[cut:] for t in tensors))
    return (
        DataLoader(train, batch_size, shuffle=shuffle, drop_last=True),
        DataLoader(val, val_batch_size),
    )
