import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch.nn import functional

from lightning_tuning.functional.chance_loss import chance_level, class_frequencies
from lightning_tuning.functional.loss_calls import LOSS_FUNCTIONS, bound_call


def called(name, output, target, **kwargs):
    function = LOSS_FUNCTIONS[name]
    return bound_call(function, [output, target], kwargs, function(output, target, **kwargs))


def labels(count=60, classes=5):
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(classes * 2, (count,), generator=generator)
    return drawn.clamp(max=classes - 1)  # the last class is the most frequent


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({}, ()),
        ({"label_smoothing": 0.2}, ()),
        ({"weight": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])}, ()),
        ({"ignore_index": 2}, ()),
        ({}, (4, 3)),
        ({"reduction": "none"}, ()),
    ],
)
def test_cross_entropy_is_ln_c(settings, shape):
    target = labels(60 * math.prod(shape)).reshape(60, *shape)
    level = chance_level([called("cross_entropy", torch.randn(60, 5, *shape), target, **settings)])
    assert level.uniform == pytest.approx(math.log(5))
    assert level.what == "ln 5"


def test_soft_targets_and_sums():
    output, soft = torch.randn(60, 5), torch.rand(60, 5).softmax(1)
    assert chance_level([called("cross_entropy", output, soft)]).uniform == pytest.approx(
        math.log(5)
    )
    level = chance_level([called("cross_entropy", output, labels(), reduction="sum")])
    assert level.uniform == pytest.approx(60 * math.log(5))


def test_the_prior_is_the_entropy_of_the_labels():
    target = labels()
    level = chance_level([called("cross_entropy", torch.randn(60, 5), target)])
    assert level.prior == pytest.approx(scipy.stats.entropy(np.bincount(target)))
    assert level.low == level.prior
    assert level.high == level.uniform
    again = chance_level([called("nll_loss", torch.randn(60, 5).log_softmax(1), target)])
    assert again.prior == pytest.approx(level.prior)
    assert again.uniform == pytest.approx(math.log(5))


def test_frequencies_count_what_counts():
    target = torch.tensor([0, 0, 1, -100, 2, 2])
    call = called("cross_entropy", torch.randn(6, 3), target)
    assert class_frequencies([call]).tolist() == pytest.approx([0.4, 0.2, 0.4])
    other = called("cross_entropy", torch.randn(6, 3), target.clamp(min=0), ignore_index=2)
    assert class_frequencies([other]).tolist() == pytest.approx([0.75, 0.25, 0.0])


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 4, 4)])
def test_binary_cross_entropy_is_ln_2(shape):
    target = (torch.rand(40, *shape) < 0.2).float()
    level = chance_level(
        [called("binary_cross_entropy_with_logits", torch.randn(40, *shape), target)]
    )
    assert level.uniform == pytest.approx(math.log(2))
    p = target.mean(0).clamp(1e-6, 1 - 1e-6).double()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    assert level.prior == pytest.approx(float(entropy), abs=1e-5)
    probabilities = chance_level([called("binary_cross_entropy", torch.rand(40, *shape), target)])
    assert probabilities.prior == pytest.approx(level.prior, abs=1e-5)
    assert probabilities.uniform == pytest.approx(math.log(2))


def test_squared_and_absolute_errors_have_the_spread_of_the_targets():
    target = torch.randn(200, 3) * 4 + torch.tensor([1.0, 10.0, -5.0])
    squared = chance_level([called("mse_loss", torch.randn(200, 3), target)])
    assert squared.prior == pytest.approx(float(np.var(target.numpy(), axis=0).mean()), rel=1e-5)
    assert squared.uniform == pytest.approx(float((target**2).mean()), rel=1e-5)
    absolute = chance_level([called("l1_loss", torch.randn(200, 3), target)])
    values = target.numpy()
    spread = np.abs(values - np.median(values, axis=0)).mean()
    assert absolute.prior == pytest.approx(float(spread), rel=1e-5)
    assert absolute.uniform == pytest.approx(float(target.abs().mean()), rel=1e-5)


@pytest.mark.parametrize(("p", "margin"), [(1, 1.0), (2, 1.0), (1, 0.5)])
def test_a_margin_is_missed_by_every_other_class(p, margin):
    call = called("multi_margin_loss", torch.randn(60, 5), labels(), p=p, margin=margin)
    assert chance_level([call]).uniform == pytest.approx(margin**p * 4 / 5)


@pytest.mark.parametrize("name", ["cross_entropy", "mse_loss", "smooth_l1_loss"])
def test_batches_together_are_one_batch(name):
    output = torch.randn(60, 5)
    target = labels() if name == "cross_entropy" else torch.randn(60, 5) * 3
    whole = chance_level([called(name, output, target)])
    pairs = zip(output.split(20), target.split(20), strict=True)
    parts = chance_level([called(name, *pair) for pair in pairs])
    assert parts.uniform == pytest.approx(whole.uniform, rel=1e-5)
    assert parts.prior == pytest.approx(whole.prior, rel=1e-5)


def test_the_order_of_samples_and_what_the_model_says_play_no_part():
    order = torch.randperm(60)
    one = chance_level([called("cross_entropy", torch.randn(60, 5), labels())])
    other = chance_level([called("cross_entropy", 100 * torch.randn(60, 5), labels()[order])])
    assert one.uniform == pytest.approx(other.uniform)
    assert one.prior == pytest.approx(other.prior)


def test_sequences_of_different_length():
    calls = [called("mse_loss", torch.randn(4, n), torch.ones(4, n) * n) for n in (3, 5)]
    level = chance_level(calls)
    assert level.uniform == pytest.approx((9 + 25) / 2)


def test_a_loss_without_a_level():
    output = functional.log_softmax(torch.randn(4, 3), 1)
    assert chance_level([called("kl_div", output, torch.rand(4, 3), reduction="batchmean")]) is None


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 5.0, 2.0, 0.5, 3.0])])
def test_no_constant_prediction_is_better_than_the_prior(smoothing, weight):
    target = labels()
    settings = {"label_smoothing": smoothing, "weight": weight}
    level = chance_level([called("cross_entropy", torch.zeros(60, 5), target, **settings)])
    free = torch.zeros(5, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(free.expand(60, 5), target, **settings)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert level.prior == pytest.approx(closure().item(), rel=1e-4)
