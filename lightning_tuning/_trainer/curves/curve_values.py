"""What a module has logged, as numbers on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics import Metric

_HIGHER = (
    *("acc", "accuracy", "f1", "fbeta", "auc", "auroc", "auprc", "map", "precision", "recall"),
    *("iou", "dice", "jaccard", "r2", "psnr", "ssim", "bleu", "rouge", "score", "reward"),
    *("return", "specificity", "sensitivity", "kappa", "mcc", "ndcg", "mrr", "top1", "top5"),
)
_LOWER = (
    *("loss", "err", "error", "mse", "rmse", "mae", "mape", "wer", "cer", "fid", "ppl"),
    *("perplexity", "nll", "bce", "ce", "elbo", "crps", "ece", "brier", "kl"),
)


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
    words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
    if any(word in _LOWER or word.endswith("loss") for word in words):
        return False
    if any(word in _HIGHER for word in words):
        return True
    return None


def on_host(values: Sequence[Tensor]) -> list[float]:
    """Bring scalars to the host; one transfer for each device they lie on."""
    found = [0.0] * len(values)
    for device in {value.device for value in values}:
        places = [i for i, value in enumerate(values) if value.device == device]
        stacked = torch.stack([values[i].detach().reshape(()).float() for i in places])
        for place, number in zip(places, stacked.tolist(), strict=True):
            found[place] = number
    return found
