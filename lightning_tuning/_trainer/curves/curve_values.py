"""What a module has logged, as numbers on the host."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torchmetrics import Metric

from lightning_tuning._trainer.groups import momentum_of

_HIGHER = (
    *("acc", "accuracy", "f1", "fbeta", "auc", "auroc", "auprc", "map", "precision", "recall"),
    *("iou", "dice", "jaccard", "r2", "psnr", "ssim", "bleu", "rouge", "score", "reward"),
    *("return", "specificity", "sensitivity", "kappa", "mcc", "ndcg", "mrr", "top1", "top5"),
)
_LOWER = (
    *("loss", "err", "error", "mse", "rmse", "mae", "mape", "wer", "cer", "fid", "ppl"),
    *("perplexity", "nll", "bce", "ce", "elbo", "crps", "ece", "brier", "kl"),
)
_STAGES = {"train", "training", "val", "valid", "validation", "step", "epoch"}
_SHORT = {
    "mse_loss": ("mse",),
    "l1_loss": ("mae", "l1"),
    "cross_entropy": ("ce", "xent", "nll"),
    "nll_loss": ("nll",),
    "binary_cross_entropy": ("bce",),
    "binary_cross_entropy_with_logits": ("bce",),
    "huber_loss": ("huber",),
    "smooth_l1_loss": ("huber",),
}
"""How people call what these functions return when they log it."""


def validation_values(trainer: Trainer) -> dict[str, float]:
    """Return what the validation that ends has logged, with one transfer; on_validation_end."""
    results = trainer._results
    if results is None:
        return {}
    found = {k: v for k, v in results.metrics(False)["callback"].items() if isinstance(v, Tensor)}
    scalars = {name: value for name, value in found.items() if value.numel() == 1}
    return dict(zip(scalars, on_host(list(scalars.values())), strict=True))


def known_directions(trainer: Trainer) -> dict[str, bool]:
    """Return which way the metrics of torchmetrics are better; on_validation_end."""
    found = {}
    for entry in (trainer._results or {}).values():
        metric = getattr(entry, "value", None)
        if isinstance(metric, Metric) and isinstance(metric.higher_is_better, bool):
            found[entry.meta.name] = metric.higher_is_better
    return found


def direction(name: str, known: Mapping[str, bool]) -> bool | None:
    """Return whether higher values of a metric are better; None where its name does not tell.

    Example:
        >>> direction("val_acc", {}), direction("val/top1_error", {}), direction("val_x", {})
        (True, False, None)
    """
    name = name.partition("/dataloader_idx_")[0]
    if name in known:
        return known[name]
    words = _words(name)
    if any(word in _LOWER or word.endswith("loss") for word in words):
        return False
    if any(word in _HIGHER for word in words):
        return True
    return None


def _stem(name: str) -> tuple[str, ...]:
    return tuple(word for word in _words(name) if word not in _STAGES)


def _words(name: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in name.lower()).split()


def the_loss(
    names: Sequence[str], functions: Collection[str], trained: Collection[str] = ()
) -> tuple[str | None, str]:
    """Return which validation metric is the loss, or why that is not known.

    Args:
        names: What validation has logged.
        functions: The loss functions of torch that both training and validation call.
        trained: What training has logged. The one name of validation that differs from one of
            these by the stage alone is the loss, if no other could be.

    Example:
        >>> the_loss(["val_acc", "val_mse"], ["mse_loss"])
        ('val_mse', '')
        >>> the_loss(["recon/val", "psnr/val"], [], ["recon/train"])
        ('recon/val', '')
    """
    if not names:
        return None, "no validation logged anything"
    losses = ["val_loss"] if "val_loss" in names else [n for n in names if "loss" in n.lower()]
    if not losses and len(functions) == 1:
        short = _SHORT.get(next(iter(functions)), ())
        losses = [name for name in names if any(word in short for word in _words(name))]
    if not losses:
        stems = {_stem(name) for name in trained if set(_words(name)) & _STAGES}
        twins = [name for name in names if direction(name, {}) is not True]
        losses = [name for name in twins if _stem(name) in stems]
    if len(losses) == 1:
        return losses[0], ""
    told = ", ".join(map(repr, losses or names))
    return None, f"validation logs {told}: name the loss with val_metric="


def largest_rate(
    optimizers: Sequence[Optimizer], *, before: float | Tensor, due: Callable[[], bool]
) -> float | Tensor:
    """Return the largest learning rate; one that lies on a device stays there.

    Args:
        optimizers: Those of the fit.
        before: What it was before, which stands for a rate on a device until one is due.
        due: Tells whether this step is measured.
    """
    if len(optimizers) == 1 and len(groups := optimizers[0].param_groups) == 1:
        # at every step; what usually is there is the faster answer
        rate = groups[0].get("lr")
        if type(rate) is float:
            return rate
    found = [group["lr"] for o in optimizers for group in o.param_groups if "lr" in group]
    if not any(isinstance(rate, Tensor) for rate in found):
        return float(max(found, default=0.0))
    away = [rate for rate in found if _is_away(rate)]
    if away and not due():
        return before
    here = max((float(rate) for rate in found if not _is_away(rate)), default=0.0)
    if not away:
        return here
    return torch.stack([rate.reshape(()).to(away[0].device) for rate in away]).amax().clamp(here)


def largest_momentum(optimizers: Sequence[Optimizer]) -> float:
    """Return the largest momentum, or Adam's beta1; 0 where there is none."""
    groups = [group for o in optimizers for group in o.param_groups]
    return max((momentum_of(group) for group in groups), default=0.0)


def _is_away(rate: float | Tensor) -> bool:
    return isinstance(rate, Tensor) and rate.device.type != "cpu"


def mean_over_ranks(trainer: Trainer, values: Sequence[Tensor | None]) -> list[float | None]:
    """Return scalars as means over the ranks that know them; all ranks must call it alike."""
    numbers = on_host([0.0 if value is None else value for value in values])
    known = [float(value is not None) for value in values]
    if trainer.world_size > 1 and values:
        pairs = torch.tensor([numbers, known], device=trainer.strategy.root_device)
        numbers, known = trainer.strategy.reduce(pairs, reduce_op="sum").tolist()
    return [n / k if k else None for n, k in zip(numbers, known, strict=True)]


def on_host(values: Sequence[float | Tensor]) -> list[float]:
    """Return scalars as numbers; one transfer for each device they lie on."""
    found = [0.0 if isinstance(value, Tensor) else value for value in values]
    away = {place: value for place, value in enumerate(values) if isinstance(value, Tensor)}
    for device in {value.device for value in away.values()}:
        places = [place for place, value in away.items() if value.device == device]
        stacked = torch.stack([away[place].detach().reshape(()).float() for place in places])
        for place, number in zip(places, stacked.tolist(), strict=True):
            found[place] = number
    return found


def accumulated(trainer: Trainer) -> int:
    """Return how many batches an optimizer step takes now; 1 where the module steps itself."""
    automatic = trainer.lightning_module.automatic_optimization
    return int(vars(trainer)["accumulate_grad_batches"]) if automatic else 1


def examples_in_a_step(trainer: Trainer) -> int | None:
    """Return the examples in an optimizer step; None where that is not known."""
    loader = trainer.train_dataloader
    size = getattr(loader, "batch_size", None) if isinstance(loader, DataLoader) else None
    if isinstance(loader, DataLoader) and size is None:
        size = getattr(loader.batch_sampler, "batch_size", None)
    return size * accumulated(trainer) * trainer.world_size if isinstance(size, int) else None
