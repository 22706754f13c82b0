"""Ranges of hyperparameters, how they are narrowed and widened, and who wins."""
