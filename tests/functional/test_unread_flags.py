"""Which attributes somebody took for ``requires_grad``, and how they are told."""

import pytest

from lightning_tuning.functional.unread_flags import UnreadFlag, meant_requires_grad, told


@pytest.mark.parametrize(
    "name",
    [
        *("require_grad", "required_grad", "requiresgrad", "requires_gradient", "requires_grad"),
        *(
            "require_gradients",
            "requries_grad",
            "requires_Grad",
            "requires_grads",
            "requires_grad_",
        ),
    ],
)
def test_what_was_meant_is_known(name):
    assert meant_requires_grad(name)


@pytest.mark.parametrize(
    "name",
    [
        *("require_backward_grad_sync", "requires_grad_sync", "requires_graph", "retains_grad"),
        *("requires_gather", "enable_grad", "grad", "training", "compute_grad", "needs_grad"),
    ],
)
def test_other_names_are_not_meant(name):
    assert not meant_requires_grad(name)


def test_flags_are_told_with_their_place():
    weight = UnreadFlag(
        where="a.weight", attribute="require_grad", value=True, contradicted=1, of_module=False
    )
    assert told((weight, weight)).startswith("a.weight (and 1 more): require_grad=True")
    assert "stays frozen" in told((weight,))
    whole = UnreadFlag(
        where="", attribute="requires_grad", value=False, contradicted=3, of_module=True
    )
    assert "the whole module: requires_grad=False" in told((whole,))
    assert "3 of its parameters learn on" in told((whole,))
