"""Rules about parameters, gradients, steps and modes: closed forms and borders."""

import dataclasses

import pytest
import torch
from torch import nn

from lightning_tuning.functional.unread_flags import UnreadFlag
from lightning_tuning.functional.untouched import untouched
from lightning_tuning.functional.wiring.wiring_flow import (
    LostGradients,
    SameUnits,
    Updates,
    no_grad_flow,
    weights_not_updating,
    zero_init,
)
from lightning_tuning.functional.wiring.wiring_modes import (
    TrainingModes,
    ValidationModes,
    eval_mode_in_training,
    train_mode_in_validation,
)
from lightning_tuning.functional.wiring.wiring_parameters import (
    Frozen,
    NotHeld,
    Rescue,
    frozen_params,
    params_not_in_optimizer,
)
from lightning_tuning.functional.wiring.wiring_raises import Raised, hint, step_raised
from lightning_tuning.functional.wiring.wiring_steps import (
    Accumulation,
    Clearings,
    accumulation_unscaled,
    missing_zero_grad,
)

HELPS, DOES_NOT = Rescue(ordinary=0.02, changed=0.6), Rescue(ordinary=0.02, changed=0.2)


def verdict(rule, evidence, **changes):
    [finding] = rule(dataclasses.replace(evidence, **changes))
    return finding.verdict


def test_a_rescue_must_learn_much_more():
    assert not Rescue(ordinary=0.0, changed=0.24).helps
    assert Rescue(ordinary=0.0, changed=0.25).helps
    assert not Rescue(ordinary=0.1, changed=0.29).helps
    assert "broke down" in Rescue(ordinary=float("-inf"), changed=0.9).told("so")


def test_parameters_in_no_optimizer():
    healthy = NotHeld(
        missing=(), unregistered=(), behind=(), held_and_reached=4, twice=(), losses_for_nobody=0,
        fresh=False, rescue=None,
    )  # fmt: skip
    rule = params_not_in_optimizer
    assert verdict(rule, healthy) == "pass"
    assert verdict(rule, healthy, missing=("a",)) == "pass"
    assert verdict(rule, healthy, missing=("a",), rescue=DOES_NOT) == "pass"
    assert verdict(rule, healthy, missing=("a",), rescue=HELPS) == "warn"
    better = Rescue(ordinary=0.7, changed=0.85)
    assert verdict(rule, healthy, missing=("a",), rescue=better) == "pass"
    assert verdict(rule, healthy, missing=("a",), rescue=better, fresh=True) == "warn"
    assert verdict(rule, healthy, missing=("a",), behind=("a",)) == "fail"
    assert verdict(rule, healthy, missing=("a",), losses_for_nobody=1) == "fail"
    assert verdict(rule, healthy, missing=("a",), held_and_reached=0) == "fail"
    assert verdict(rule, healthy, missing=("a",), unregistered=("a",)) == "fail"
    assert verdict(rule, healthy, twice=("b",)) == "pass"


def test_frozen_parameters():
    frozen = Frozen(names=("a",), numbers=3, share=0.5, rescue=None, unread=())
    assert verdict(frozen_params, frozen) == "pass"
    assert verdict(frozen_params, frozen, rescue=DOES_NOT) == "pass"
    assert verdict(frozen_params, frozen, rescue=HELPS) == "warn"
    flag = UnreadFlag(
        where="a", attribute="require_grad", value=True, contradicted=1, of_module=False
    )
    assert verdict(frozen_params, frozen, names=(), unread=(flag,)) == "fail"


def test_gradients_that_end():
    lost = LostGradients(
        names=("a",), cuts=("argmax",), deliberate=False, mixed=False, fresh=True, felt=True,
        steps=20, ordinary=0.3, rescue=None,
    )  # fmt: skip
    assert verdict(no_grad_flow, lost) == "fail"
    assert verdict(no_grad_flow, lost, felt=False) == "pass"
    assert verdict(no_grad_flow, lost, mixed=True) == "fail"
    assert verdict(no_grad_flow, lost, mixed=True, fresh=False) == "pass"
    assert verdict(no_grad_flow, lost, mixed=True, ordinary=0.6) == "pass"
    assert verdict(no_grad_flow, lost, mixed=True, ordinary=None) == "pass"
    assert verdict(no_grad_flow, lost, deliberate=True) == "pass"
    assert verdict(no_grad_flow, lost, deliberate=True, rescue=HELPS) == "warn"
    medium = Rescue(ordinary=0.3, changed=0.9)
    assert verdict(no_grad_flow, lost, deliberate=True, rescue=medium) == "warn"
    assert verdict(no_grad_flow, lost, deliberate=True, rescue=medium, fresh=False) == "pass"
    assert no_grad_flow(None)[0].verdict == "skip"


def test_weights_that_stay():
    moving = Updates(
        no_step=False, idle=(), cleared=(), undone=(), rate_zero=(), all_rate_zero=False, stuck=(),
        all_stuck=False, trains_badly=False, steps=20, rescue=None,
    )  # fmt: skip
    rule = weights_not_updating
    assert verdict(rule, moving) == "pass"
    assert verdict(rule, moving, no_step=True) == "fail"
    for name in ("idle", "cleared", "undone"):
        assert verdict(rule, moving, **{name: ("a",)}) == "fail"
    assert verdict(rule, moving, rate_zero=("a",)) == "pass"
    assert verdict(rule, moving, rate_zero=("a",), rescue=HELPS) == "warn"
    assert verdict(rule, moving, rate_zero=("a",), all_rate_zero=True) == "fail"
    assert verdict(rule, moving, stuck=("a",), all_stuck=True) == "pass"
    assert verdict(rule, moving, stuck=("a",), all_stuck=True, trains_badly=True) == "warn"


def test_units_that_stay_the_same():
    units = SameUnits(same=(), dead=(), started=("a",), steps=20, spread=0.0, rescue=None)
    assert verdict(zero_init, units) == "pass"
    assert verdict(zero_init, units, same=("a",)) == "fail"
    assert verdict(zero_init, units, dead=("a",)) == "fail"
    assert verdict(zero_init, units, rescue=HELPS) == "warn"
    assert verdict(zero_init, units, rescue=DOES_NOT) == "pass"


def test_gradients_of_the_step_before():
    clearings = Clearings(optimizers=("SGD", "Adam"), old=(None, 0.0), steps=(1, 20))
    assert verdict(missing_zero_grad, clearings) == "pass"
    assert verdict(missing_zero_grad, clearings, old=(None, 0.39)) == "pass"
    assert verdict(missing_zero_grad, clearings, old=(None, 0.4)) == "fail"
    assert verdict(missing_zero_grad, clearings, old=(None, None)) == "skip"


def test_batches_that_add_up():
    many = Accumulation(manual=True, batches=4, slope=1.0, rescue=HELPS)
    assert verdict(accumulation_unscaled, many) == "warn"
    assert verdict(accumulation_unscaled, many, slope=None) == "warn"
    assert verdict(accumulation_unscaled, many, slope=0.25) == "pass"
    assert verdict(accumulation_unscaled, many, rescue=DOES_NOT) == "pass"
    assert verdict(accumulation_unscaled, many, batches=1) == "pass"
    assert verdict(accumulation_unscaled, many, manual=False) == "pass"


def test_modes_in_training():
    right = TrainingModes(norms=(), dropouts=(), off_from="net", after_validation=(), steps=8)
    assert verdict(eval_mode_in_training, right) == "pass"
    for name in ("norms", "dropouts", "after_validation"):
        assert verdict(eval_mode_in_training, right, **{name: ("net.1",)}) == "fail"


def test_modes_in_validation():
    right = ValidationModes(dropouts=(), norms=(), changed=0.0, changed_name="", on_purpose="")
    rule = train_mode_in_validation
    assert verdict(rule, right) == "pass"
    assert verdict(rule, right, dropouts=("a",)) == "pass"
    assert verdict(rule, right, dropouts=("a",), changed=0.1, changed_name="val_loss") == "fail"
    assert verdict(rule, right, dropouts=("a",), changed=None) == "fail"
    assert verdict(rule, right, norms=("a",)) == "fail"
    assert verdict(rule, right, norms=("a",), on_purpose="many passes") == "pass"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("mat1 and mat2 shapes cannot be multiplied (8x16 and 32x10)", "expects 32"),
        ("Target 9 is out of bounds.", "A label is 9"),
        ("index out of range in self", "num_embeddings"),
        ("Trying to backward through the graph a second time", "detach"),
        ("something else", "by hand"),
    ],
)
def test_an_error_has_a_hint(text, word):
    assert word in hint(text)
    raised = Raised(kind="RuntimeError", text=text, batches=4)
    assert verdict(step_raised, raised) == "fail"
    assert verdict(step_raised, raised, surroundings=True) == "skip"
    assert verdict(step_raised, raised, kind="") == "pass"


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(20, 30), nn.Conv2d(3, 8, 3), nn.LSTM(4, 16), nn.BatchNorm1d(4)],
)
def test_a_layer_is_untouched_until_it_is_trained(layer):
    assert untouched(layer)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(30):
        for parameter in layer.parameters():
            parameter.grad = torch.randn_like(parameter) + 0.5
        optimizer.step()
    assert untouched(layer) is False


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("shape", [(200, 6), (40, 16), (3000, 64)])
@pytest.mark.parametrize(
    "draw",
    [
        lambda table: nn.init.normal_(table, std=0.02),
        lambda table: nn.init.uniform_(table, -0.1, 0.1),
        nn.init.xavier_uniform_,
        nn.init.kaiming_normal_,
    ],
)
def test_a_table_of_any_scale_is_untouched_until_it_is_trained(kind, shape, draw):
    torch.manual_seed(0)
    layer = kind(*shape)
    draw(layer.weight)
    layer.weight.data[0] = 0  # for padding
    assert untouched(layer)
    assert untouched(layer.double())
    true = torch.randn(shape[0], 2).double() @ torch.randn(2, 30).double()
    optimizer = torch.optim.Adam(layer.parameters(), lr=float(layer.weight.detach().std()) / 5)
    out = torch.randn(shape[1], 30).double()
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.mse_loss(layer.weight @ out, true).backward()
        optimizer.step()
    assert untouched(layer) is False


def test_a_random_table_is_hardly_ever_taken_for_a_trained_one():
    torch.manual_seed(1)
    told = []
    for _ in range(300):
        layer = nn.Embedding(40, 8)
        nn.init.normal_(layer.weight, std=0.1)
        told.append(untouched(layer))
    assert told.count(False) <= 6


def test_what_cannot_be_told_is_none():
    assert untouched(nn.Identity()) is None
    weight = nn.Linear(4, 4, bias=False)
    assert untouched(weight) is None
