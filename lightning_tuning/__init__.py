"""The craft of training neural networks, as drop-in PyTorch Lightning callbacks."""

from lightning_tuning.findings import Finding

__version__ = "0.1.0"

__all__ = [
    "Finding",
]
