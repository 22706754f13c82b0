"""Learning rate and momentum at each step, by torch's own schedulers."""

import warnings

import torch


def followed(make, steps, *, lr=0.3, momentum=0.5, groups=1):
    """Return ((LR, momentum), ...) of each step under ``make(optimizer)``."""
    params = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(groups)]
    optimizer = torch.optim.SGD(params, lr=lr, momentum=momentum)
    values = []
    with warnings.catch_warnings():
        # a scheduler is stepped here without an optimizer step
        warnings.simplefilter("ignore", UserWarning)
        scheduler = make(optimizer)
        for _ in range(steps):
            values.append([(g["lr"], g["momentum"]) for g in optimizer.param_groups])
            scheduler.step()
    return values
