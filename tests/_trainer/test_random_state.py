"""Every generator comes back."""

import contextlib
import random

import numpy as np
import torch

from lightning_tuning._trainer.random_state import (
    get_random_state,
    kept_random_state,
    reseed,
    set_random_state,
)


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), *torch.rand(2)  # noqa: NPY002


def test_get_and_set():
    random.gauss(0, 1)  # these keep a second number for the next call
    np.random.randn()  # noqa: NPY002
    state = get_random_state()
    first = draw()
    set_random_state(state)
    assert draw() == first
    set_random_state(state)
    assert draw() == first


def test_kept_after_an_error():
    state = get_random_state()
    with contextlib.suppress(ZeroDivisionError), kept_random_state():
        draw()
        _ = 1 / 0
    after = draw()
    set_random_state(state)
    assert draw() == after


def test_reseed_depends_on_seed_and_number_alone():
    def after(seed, number):
        torch.manual_seed(seed)
        draw()
        reseed(number)
        return draw()

    assert after(1, 2) == after(1, 2)
    assert len({after(1, 2), after(1, 3), after(5, 2)}) == 3


def test_seed_of_torch_comes_back():
    state, seed = get_random_state(), torch.initial_seed()
    reseed(1)
    assert torch.initial_seed() != seed
    set_random_state(state)
    assert torch.initial_seed() == seed


def test_reseed_with_the_largest_seed():
    state = get_random_state()
    torch.manual_seed(2**64 - 2)
    reseed(5)
    assert torch.initial_seed() != 2**64 - 2
    set_random_state(state)
