"""Running several sets of weights of one module."""
