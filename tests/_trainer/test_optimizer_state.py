"""Optimizers: the same groups and parameters, state as before or none."""

import pytest
import torch

from lightning_tuning._trainer.optimizer_state import OptimizerState
from tests._trainer.probing import differences, state_of

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 0.1, amsgrad=True),
    "tensor lr": lambda p: torch.optim.Adam(p, torch.tensor(0.1), capturable=False, foreach=False),
    "lbfgs": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "rprop": lambda p: torch.optim.Rprop(p, 0.1),
}


def parameter_and_optimizer(name):
    parameter = torch.nn.Parameter(torch.ones(3))
    return parameter, OPTIMIZERS[name]([parameter])


def take_steps(parameter, optimizer, number=3):
    def closure():
        optimizer.zero_grad()
        loss = (parameter * torch.arange(1.0, 4.0)).square().sum().cos()
        loss.backward()
        return loss

    for _ in range(number):
        optimizer.step(closure)


def copied(optimizer):
    # a deep copy: state_dict() refers to the tensors themselves
    import copy

    return copy.deepcopy(state_of(optimizer))


@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_and_groups(name, steps_before):
    parameter, optimizer = parameter_and_optimizer(name)
    take_steps(parameter, optimizer, steps_before)
    expected, group = copied(optimizer), optimizer.param_groups[0]
    params = group["params"]
    state = OptimizerState(optimizer)
    for _ in range(2):
        take_steps(parameter, optimizer)
        lr = group["lr"]
        if isinstance(lr, torch.Tensor):
            lr.fill_(7)
        group["lr"] = 5.0
        group["new"] = 1
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]}) if (
            name != "lbfgs"
        ) else None
        group["params"] = [*params]
        state.restore()
        assert not differences(copied(optimizer), expected)
        assert optimizer.param_groups == [group]
        assert optimizer.param_groups[0] is group
        assert group["params"] is params
        assert params[0] is parameter


def test_state_that_did_not_exist_is_dropped():
    parameter, optimizer = parameter_and_optimizer("adam")
    state = OptimizerState(optimizer)
    take_steps(parameter, optimizer)
    state.restore()
    assert len(optimizer.state) == 0
    assert optimizer.state[parameter] == {}


def test_a_scheduler_still_holds_the_group():
    parameter, optimizer = parameter_and_optimizer("sgd")
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    state = OptimizerState(optimizer)
    take_steps(parameter, optimizer)
    state.restore()
    take_steps(parameter, optimizer, 1)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
