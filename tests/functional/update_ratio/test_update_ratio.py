import json
import math

import numpy as np
import pytest
from torch import nn

from lightning_tuning.functional.update_ratio.update_history import (
    MOST_ROWS,
    UpdateHistory,
    UpdateRow,
)
from lightning_tuning.functional.update_ratio.update_ratio import (
    UpdateRatioResult,
    log10_ratio,
    matrix,
    parameter_kind,
    summary,
)


def row(step, ratios, weights=None, **settings):
    places = range(len(ratios))
    defaults = {
        "log10_ratios": dict(zip(places, ratios, strict=True)),
        "weight_norms": dict(zip(places, weights or [1.0] * len(ratios), strict=True)),
        "update_norms": {i: 10 ** ratios[i] for i in places},
        "gradient_norms": dict.fromkeys(places, 1.0),
        "before_clipping": (2.0,),
        "after_clipping": (1.0,),
        "learning_rates": (0.1,),
    }
    return UpdateRow(step=step, **defaults | settings)


def test_the_ratio_of_norms_is_that_of_a_scaled_step():
    assert log10_ratio(0.003, 3.0) == pytest.approx(-3)
    # scale of both does not matter
    assert log10_ratio(3e-20, 3e-17) == pytest.approx(-3)
    assert log10_ratio(0.0, 1.0) == -math.inf
    for update, weight in ((1.0, 0.0), (math.nan, 1.0), (1.0, math.inf), (math.inf, 1.0)):
        assert math.isnan(log10_ratio(update, weight))


def test_the_summary_takes_matrices_that_moved():
    ratios = [-1.0, -2.0, -3.0, -4.0, -9.0, -math.inf, math.nan]
    kinds = ["weight"] * 4 + ["bias", "weight", "weight"]
    expected = np.quantile([-1, -2, -3, -4], [0.1, 0.5, 0.9])
    assert list(summary(ratios, kinds).values()) == pytest.approx(expected)
    # their order does not matter
    assert summary(ratios[::-1], kinds[::-1]) == summary(ratios, kinds)
    assert summary([-1.0], ["bias"]) == {}


class RMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(nn.init.ones_(nn.Linear(1, 4).weight[:, 0].detach()))


@pytest.mark.parametrize(
    ("layer", "kinds"),
    [
        (nn.Linear(3, 2), ["weight", "bias"]),
        (nn.Conv2d(3, 2, 3), ["weight", "bias"]),
        (nn.BatchNorm2d(3), ["norm", "norm"]),
        (nn.LayerNorm(3), ["norm", "norm"]),
        (RMSNorm(), ["norm"]),
        (nn.Embedding(3, 2), ["embedding"]),
        (nn.PReLU(), ["scalar"]),
        (nn.PReLU(4), ["vector"]),
        (nn.LSTM(2, 3), ["weight", "weight", "bias", "bias"]),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), ["bias", "vector", "weight"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_kinds(layer, kinds):
    owners = {id(p): m for m in layer.modules() for p in m.parameters(recurse=False)}
    found = [parameter_kind(n, p, owners[id(p)]) for n, p in layer.named_parameters()]
    assert found == kinds


def test_history_becomes_a_result():
    history = UpdateHistory()
    history.add(row(3, [-3.0, -2.0], weights=[1.0, 0.0]))
    # a tensor and a group that were added later
    later = row(7, [-3.0, -2.0, -1.0], learning_rates=(0.1, 0.01), after_clipping=(2.0,))
    history.add(later)
    result = history.result(["a", "b", "c"], ["weight", "weight", "bias"])
    assert result.steps == (3, 7)
    assert result.kinds == ("weight", "zero_init", "bias")
    assert result.log10_ratios[0][:2] == (-3.0, -2.0)
    assert math.isnan(result.log10_ratios[0][2])
    assert result.learning_rates[1] == (0.1, 0.01)
    assert result.clip_coefficients.tolist() == [0.5, 1.0]
    assert result.clipped_share == 0.5
    assert json.loads(result.to_json())["log10_ratios"] == [[-3, -2, None], [-3, -2, -1]]


def test_a_long_history_is_thinned_evenly():
    history = UpdateHistory()
    for step in range(5 * MOST_ROWS):
        history.add(row(step, [-3.0]))
    steps = [r.step for r in history.rows]
    assert len(steps) <= MOST_ROWS
    assert set(np.diff(steps)) == {8}
    assert steps[0] == 0
    assert steps[-1] > 5 * MOST_ROWS - 16


def test_an_empty_result_is_one_too():
    result = UpdateHistory().result(["a"], ["weight"])
    assert isinstance(result, UpdateRatioResult)
    assert result.clipped_share is None
    assert matrix(result.log10_ratios).shape == (0, 0)
    assert result.plot().axes
