"""Data that the healthy programs share."""

import functools

import torch
from sklearn import datasets
from torch.utils.data import DataLoader, TensorDataset


@functools.cache
def digits():
    """Images of shape (1797, 1, 8, 8) from 0 to 1, and their labels, in a random order."""
    images, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return images[order], torch.tensor(labels)[order]


@functools.cache
def table(name):
    """Features and targets of one of scikit-learn's tables, standardised, in a random order."""
    inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(inputs, dtype=torch.float32)[order]
    inputs = (inputs - inputs.mean(0)) / inputs.std(0).clamp(min=1e-6)
    return inputs, torch.tensor(targets)[order]


def rows(count, features, seed=0):
    """Standard normal numbers, the same ones at every call."""
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def loaders(*tensors, batch_size=64, val=0.25):
    """A shuffled training loader, and a loader of the last quarter for validation."""
    cut = int(len(tensors[0]) * (1 - val))
    train = TensorDataset(*(t[:cut] for t in tensors))
    held_out = TensorDataset(*(t[cut:] for t in tensors))
    return DataLoader(train, batch_size, shuffle=True), DataLoader(held_out, 128)
