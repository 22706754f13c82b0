"""Time of a gradient check per checked entry, beside ``torch.autograd.gradcheck``.

    python tests/benchmarks/gradient_check.py

Both check the loss of the same float64 module on the same three examples in the same entries (a few
of every parameter tensor, as numbers of their own that are written into the tensor). Ours is the
callback's whole check, hand-written Functions, rewinding and kinks included, without the burn-in;
gradcheck is called once for each tensor, with what it needs to check a backward and no more. Its
fast mode compares one random projection instead of entries and is shown beside it.
"""

from __future__ import annotations

import argparse
import copy
import functools
import logging
import statistics
import time
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning._trainer.gradient import gradient_measurement
from lightning_tuning.callbacks.gradient_check import GradientCheck

ENTRIES = 16


class Classifier(LightningModule):
    """A module around a network, with a loss and an optimizer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Gru(nn.Module):
    """A recurrent network over rows."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(16, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x[:, 0])[0][:, -1])


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(256, 256),
        nn.Tanh(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for width, into in ((16, 1), (32, 16), (32, 32)):
        layers += [nn.Conv2d(into, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def deep_mlp() -> nn.Module:
    blocks = [part for _ in range(30) for part in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 64), *blocks, nn.Linear(64, 10))


def data() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, 1, 16, 16, generator=generator)
    return DataLoader(TensorDataset(inputs, torch.randint(10, (32,), generator=generator)), 3)


def ours(module: Classifier) -> float:
    """Return seconds per entry of the callback's check."""
    check = GradientCheck(num_entries=ENTRIES, burn_in_steps=0)
    own = gradient_measurement.measure_gradients
    seconds: list[float] = []

    def timed(*args: object) -> object:
        start = time.perf_counter()
        result = own(*args)
        seconds.append(time.perf_counter() - start)
        return result

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(
        **quiet, enable_model_summary=False, accelerator="cpu", max_steps=1, callbacks=[check]
    )
    import lightning_tuning.callbacks.gradient_check as place

    place.measure_gradients = timed
    try:
        trainer.fit(module, data())
    finally:
        place.measure_gradients = own
    assert check.findings[0].verdict == "pass", check.findings
    return seconds[0] / sum(p.entries for p in check.result.parameters)


def gradchecks(module: Classifier, *, fast: bool) -> float:
    """Return seconds per entry of gradcheck, on the same number of entries of each tensor."""
    module = copy.deepcopy(module).double().train()
    inputs, labels = next(iter(data()))
    batch = (inputs.double(), labels)
    entries, start = 0, time.perf_counter()
    for name, parameter in module.named_parameters():
        places = torch.randperm(parameter.numel())[:ENTRIES]
        base = parameter.detach().flatten()

        loss = functools.partial(_loss, module, batch, name, places, base)
        values = base[places].clone().requires_grad_()
        assert torch.autograd.gradcheck(
            loss, (values,), fast_mode=fast, check_undefined_grad=False, nondet_tol=1e-9, rtol=1e-3
        )
        entries += len(places)
    return (time.perf_counter() - start) / entries


def _loss(
    module: Classifier,
    batch: tuple[Tensor, ...],
    name: str,
    places: Tensor,
    base: Tensor,
    values: Tensor,
) -> Tensor:
    moved = base.index_put((places,), values).view_as(module.get_parameter(name))
    return torch.func.functional_call(_Step(module), {f"module.{name}": moved}, (batch,))


class _Step(nn.Module):
    """``training_step`` as a forward."""

    def __init__(self, module: Classifier) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.module.training_step(batch, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print("| network | gradcheck, ms an entry | ours / gradcheck | ours / gradcheck fast_mode |")
    print("|---|---|---|---|")
    for make in (mlp, cnn, Gru, deep_mlp):
        torch.manual_seed(0)
        module = Classifier(make())
        times: dict[str, list[float]] = {"ours": [], "gradcheck": [], "fast": []}
        for _ in range(arguments.repeats):
            times["ours"].append(ours(copy.deepcopy(module)))
            times["gradcheck"].append(gradchecks(module, fast=False))
            times["fast"].append(gradchecks(module, fast=True))
        median = {name: statistics.median(values) for name, values in times.items()}
        print(
            f"| {make.__name__} | {1000 * median['gradcheck']:.2f} "
            f"| {median['ours'] / median['gradcheck']:.2f} "
            f"| {median['ours'] / median['fast']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
