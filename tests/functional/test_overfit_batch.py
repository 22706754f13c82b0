"""The floor of losses, and the rules that read a tiny batch."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from lightning_tuning.functional.loss_calls import bound_call
from lightning_tuning.functional.overfit_batch import OverfitBatchResult, OverfitRun, target_of
from lightning_tuning.functional.overfit_batch_findings import (
    OverfitEvidence,
    batch_overfitted,
    input_heeded,
)
from lightning_tuning.functional.overfit_batch_floor import floor_level, levels
from lightning_tuning.functional.settings_findings import (
    CODES,
    Rescue,
    SettingsEvidence,
    settings_findings,
)

FACTORS = (1.0, 10.0, 0.1, 100.0, 0.01, 1000.0, 0.001)


def call(function, output, target, **options):
    return bound_call(function, [output, target], options, function(output, target, **options))


def entropy(*probabilities):
    return -sum(p * math.log(p) for p in probabilities if p)


@pytest.mark.parametrize(
    ("function", "target", "options", "floor"),
    [
        (F.cross_entropy, torch.tensor([0, 1]), {}, 0.0),
        (F.cross_entropy, torch.tensor([0, -100]), {}, 0.0),
        (F.cross_entropy, torch.tensor([0, 1]), {"label_smoothing": 0.3}, entropy(0.8, 0.1, 0.1)),
        (F.cross_entropy, torch.tensor([[0.5, 0.5, 0.0]] * 2), {}, math.log(2)),
        (F.nll_loss, torch.tensor([0, 1]), {}, 0.0),
        (F.multi_margin_loss, torch.tensor([0, 1]), {}, 0.0),
        (F.mse_loss, torch.randn(2, 3), {}, 0.0),
        (F.l1_loss, torch.randn(2, 3), {}, 0.0),
        (F.binary_cross_entropy_with_logits, torch.full((2, 3), 0.25), {}, entropy(0.25, 0.75)),
        (F.poisson_nll_loss, torch.ones(2, 3), {}, None),
    ],
)
def test_the_floor_of_a_loss(function, target, options, floor):
    found = floor_level(call(function, torch.zeros(2, 3), target, **options))
    assert found == (None if floor is None else pytest.approx(floor, abs=1e-5))


def test_no_output_is_below_the_floor():
    generator = torch.Generator().manual_seed(1)
    weight, positive = torch.tensor([0.2, 1.0, 3.0]), torch.tensor([0.3, 1.0, 5.0])
    soft = torch.rand(4, 3, generator=generator).softmax(1)
    cases = [
        (F.cross_entropy, soft, {"weight": weight, "label_smoothing": 0.1}),
        (F.cross_entropy, torch.tensor([0, 1, 2, 1]), {"weight": weight, "label_smoothing": 0.2}),
        (F.binary_cross_entropy_with_logits, soft, {"pos_weight": positive}),
    ]
    for function, target, options in cases:
        output = torch.zeros(4, 3, requires_grad=True)
        optimizer = torch.optim.Adam([output], lr=0.05)
        for _ in range(600):
            optimizer.zero_grad()
            loss = function(output, target, **options)
            loss.backward()
            optimizer.step()
        floor = floor_level(call(function, output.detach(), target, **options))
        assert floor == pytest.approx(loss.item(), rel=2e-3)
        assert floor <= loss.item() + 1e-6


def test_examples_with_one_input_and_two_labels_share_an_output():
    twice = call(F.cross_entropy, torch.zeros(4, 2), torch.tensor([0, 1, 0, 0]))
    floor = floor_level(twice, groups=torch.tensor([0, 0, 1, 2]))
    assert floor == pytest.approx(math.log(2) / 2, abs=1e-5)
    values = call(F.mse_loss, torch.zeros(2, 1), torch.tensor([[0.0], [2.0]]))
    assert floor_level(values, groups=torch.tensor([0, 0])) == pytest.approx(1.0)


def test_a_weighted_sum_of_losses_has_levels_and_other_sums_have_none():
    output = torch.zeros(2, 1, requires_grad=True)
    target = torch.tensor([[1.0], [3.0]])

    def step(total):
        calls = [
            bound_call(F.mse_loss, [output, target], {}, one),
            bound_call(F.l1_loss, [output, target], {}, two),
        ]
        total.backward(retain_graph=True)
        return levels(calls, total.item())

    one, two = F.mse_loss(output, target), F.l1_loss(output, target)
    assert step(one + 3 * two) == pytest.approx((1.0 + 3 * 1.0, 0.0))
    one, two = F.mse_loss(output, target), F.l1_loss(output, target)
    assert step(one + two + output.exp().sum()) is None
    one, two = F.mse_loss(output, target), F.l1_loss(output, target)
    assert step(one - two) is None


def evidence(reached, *, runs=FACTORS, chance=2.0, floor=0.0, **changes):
    done = tuple(
        OverfitRun(rate=0.1 * factor, factor=factor, losses=(2.5, reached)) for factor in runs
    )
    result = OverfitBatchResult(
        samples=20,
        chance=chance,
        floor=floor,
        target=target_of(start=2.5, chance=chance, floor=floor),
        runs=done,
    )
    given = {"trains_badly": True, "parameters": 1000, "values": 20, "features": 64}
    return OverfitEvidence(result=result, **given | changes)


@pytest.mark.parametrize(
    ("given", "verdict", "code"),
    [
        (evidence(0.05), "pass", "batch_overfitted"),
        (evidence(1.9), "fail", "cannot_overfit_batch"),
        (evidence(1.3), "skip", "overfit_not_judged"),
        (evidence(1.9, trains_badly=False), "skip", "overfit_not_judged"),
        (evidence(1.9, judgeable=False), "skip", "overfit_not_judged"),
        (evidence(1.9, runs=FACTORS[:3]), "skip", "overfit_not_judged"),
        (evidence(1.9, parameters=30), "skip", "overfit_not_judged"),
        (evidence(1.9, features=3), "skip", "overfit_not_judged"),
        (evidence(1.99, features=3), "fail", "cannot_overfit_batch"),
        (evidence(1.9, setting="lr_too_low"), "skip", "overfit_not_judged"),
        (evidence(1.9, ignored=True), "skip", "overfit_not_judged"),
        (evidence(1.9, asked=True, trains_badly=False), "fail", "cannot_overfit_batch"),
        (evidence(2.0, chance=None, floor=None), "skip", "overfit_not_judged"),
        (evidence(2.499, chance=None, floor=None), "warn", "cannot_overfit_batch"),
        (evidence(0.05, judgeable=False), "skip", "overfit_not_judged"),
        (evidence(math.nan), "skip", "overfit_not_judged"),
    ],
)
def test_what_a_tiny_batch_says(given, verdict, code):
    [finding] = batch_overfitted(given)
    assert (finding.verdict, finding.code) == (verdict, code)


def test_the_rate_that_worked_is_named():
    given = evidence(1.9, runs=(1.0, 10.0))
    slow, fast = given.result.runs
    worked = dataclasses.replace(fast, losses=(2.5, 0.01))
    result = dataclasses.replace(given.result, runs=(slow, worked))
    [finding] = batch_overfitted(dataclasses.replace(given, result=result))
    assert "at a learning rate of 1, not at 0.1" in finding.message


def test_an_input_that_is_ignored():
    zeroed = OverfitRun(rate=0.1, factor=1.0, losses=(2.5, 1.9), zeroed=True)
    for reached, ignored, verdict in [(1.9, True, "fail"), (0.05, False, "pass"), (1.9, 0, "skip")]:
        given = evidence(reached, ignored=bool(ignored))
        result = dataclasses.replace(given.result, zeroed=zeroed)
        [finding] = input_heeded(dataclasses.replace(given, result=result))
        assert (finding.verdict, finding.code) == (verdict, "input_ignored")


def test_a_result_survives_json_and_can_be_drawn():
    result = evidence(0.05).result
    broken = OverfitRun(rate=1.0, factor=10.0, losses=(2.5, math.inf), error="ValueError: no")
    result = dataclasses.replace(result, runs=(*result.runs, broken), zeroed=result.runs[0])
    again = OverfitBatchResult.from_json(result.to_json())
    assert again.runs[:-1] == result.runs[:-1]
    assert math.isnan(again.runs[-1].losses[1])
    assert again.plot().axes[0].get_xlabel() == "step"


def rescue(code, *progress):
    return Rescue(code=code, change="something else", progress=progress)


def loud(given):
    return [finding.code for finding in settings_findings(given) if finding.verdict == "warn"]


def test_a_setting_is_named_where_another_one_helps_twice():
    assert loud(SettingsEvidence(progress=(0.01, 0.0), rescues=(rescue(CODES[0], 0.5, 0.4),))) == [
        CODES[0]
    ]
    for quiet in [
        SettingsEvidence(progress=(0.01,), rescues=(rescue(CODES[0], 0.25),)),
        SettingsEvidence(progress=(0.01,), rescues=(rescue(CODES[0], 0.5),)),
        SettingsEvidence(progress=(0.01, 0.0), rescues=(rescue(CODES[0], 0.5, 0.2),)),
        SettingsEvidence(progress=(0.01, 0.2), rescues=(rescue(CODES[0], 0.5, 0.4),)),
        SettingsEvidence(progress=(0.8,)),
        SettingsEvidence(progress=(0.0,), reason="a reason"),
    ]:
        assert loud(quiet) == []
        codes = [finding.code for finding in settings_findings(quiet)]
        assert codes == [*CODES, "lr_decayed_too_fast"]


def test_betas_in_the_wrong_order_are_named_however_it_trains():
    for betas in [(0.999, 0.9), (0.99, 0.95)]:
        given = SettingsEvidence(progress=(0.8,), betas=((0.9, 0.999), betas))
        assert loud(given) == ["momentum_too_high"]
        assert loud(dataclasses.replace(given, reason="a reason")) == ["momentum_too_high"]
    for betas in [(0.9, 0.999), (0.99, 0.999), (0.99, 0.99), (0.95, 0.9), (0.9, 0.5)]:
        assert loud(SettingsEvidence(progress=(0.8,), betas=(betas,))) == []
