import math

import numpy as np
import pytest
import scipy.optimize
import torch

from lightning_tuning.functional.gradient.gradient_check import (
    FunctionGradient,
    GradientCheckResult,
    ParameterGradient,
    band,
    limit,
    relative_error,
)
from lightning_tuning.functional.gradient.gradient_findings import said
from lightning_tuning.functional.gradient.gradient_slopes import (
    centred,
    choose_entries,
    compare,
    crosses_kink,
)
from lightning_tuning.functional.gradient.gradient_winners import Winners, same

# -------------------------------------------------------------------------------- relative error


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.99, -1.0, 2.0, 3.0])
def test_relative_error_of_a_factor(factor):
    closed_form = abs(factor - 1) / max(abs(factor), 1)
    assert relative_error(factor * 0.3, 0.3) == pytest.approx(closed_form)


def test_relative_error_is_that_of_math_isclose():
    generator = np.random.default_rng(0)
    for a, n in generator.normal(size=(200, 2)):
        error = relative_error(a, n)
        assert math.isclose(a, n, rel_tol=error * 1.000001)
        assert not math.isclose(a, n, rel_tol=error * 0.999999)


def test_relative_error_has_no_side_and_no_unit():
    generator = np.random.default_rng(1)
    for a, n in generator.normal(size=(50, 2)):
        error = relative_error(a, n)
        assert relative_error(n, a) == error
        assert relative_error(-a * 1e-8, -n * 1e-8) == pytest.approx(error)
        assert 0 <= error <= 2


def test_relative_error_at_the_edges():
    assert relative_error(0.0, 0.0) == 0
    assert relative_error(0.0, 1e-300) == 1
    assert relative_error(math.nan, 1.0) == math.inf == relative_error(1.0, math.inf)
    assert relative_error(1.0, 1.1, noise=0.2) == 0
    assert relative_error(1.0, 2.0, noise=0.2) == pytest.approx(0.4)


def test_the_bands_are_those_of_cs231n():
    assert band(1e-7) == "fine"
    assert band(1.1e-7) == band(1e-4) == "with kinks only"
    assert band(1.1e-4) == band(1e-2) == "doubtful"
    assert band(1.1e-2) == band(math.inf) == "wrong"
    # errors build up on the way
    assert band(0.02, depth=30) == "doubtful"
    assert [limit(depth) for depth in (1, 10, 20)] == [0.01, 0.01, 0.02]


# --------------------------------------------------------------------------------------- slopes


class Given:
    """A function of one tensor, and the gradient that is claimed for it."""

    resolution = 2.0**-52

    def __init__(self, function, point, gradient):
        self.function, self.point = function, point
        self.gradients = gradient.reshape(1, -1)

    def moved(self, entries, changes):
        moved = self.point.clone()
        moved[entries] += changes
        return self.function(moved)

    def values(self, entries, changes):
        return self.moved(entries, changes).reshape(1)

    def winners(self, entries, changes):
        with Winners() as seen:
            self.moved(entries, changes)
        return seen.winners


def generator():
    return torch.Generator().manual_seed(0)


def point(size=6):
    return torch.randn(size, generator=generator(), dtype=torch.float64)


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def test_a_centred_difference_is_exact_for_a_parabola():
    x = point()
    surface = Given(lambda x: (3 * x**2).sum(), x, 6 * x)
    slope = centred(surface, torch.tensor([2]), torch.ones(1, dtype=torch.float64), 0.5)
    assert slope.numeric == pytest.approx(6 * float(x[2]), rel=1e-12)
    assert slope.error == 0


def test_a_centred_difference_is_that_of_scipy():
    x = point()
    surface = Given(rosenbrock, x, torch.from_numpy(scipy.optimize.rosen_der(x.numpy())))
    forward = scipy.optimize.approx_fprime(x.numpy(), scipy.optimize.rosen, 1e-7)
    for entry in range(len(x)):
        slope = centred(surface, torch.tensor([entry]), torch.ones(1, dtype=torch.float64), 1e-5)
        assert slope.numeric == pytest.approx(forward[entry], rel=1e-3, abs=1e-3)
        assert slope.error < 1e-7


def test_a_slope_turns_with_its_direction():
    x, entries = point(), torch.arange(6)
    surface = Given(rosenbrock, x, torch.from_numpy(scipy.optimize.rosen_der(x.numpy())))
    one = centred(surface, entries, point(), 1e-5)
    other = centred(surface, entries, -2 * point(), 1e-5)
    assert other.numeric == pytest.approx(-2 * one.numeric, rel=1e-6)


@pytest.mark.parametrize("entry", range(6))
def test_one_wrong_entry_is_found(entry):
    x = point()
    gradient = torch.from_numpy(scipy.optimize.rosen_der(x.numpy()))
    right = compare(
        Given(rosenbrock, x, gradient), torch.arange(6), 1e-5, generator(), closely=True
    )
    assert right.slope.error < 1e-6
    gradient[entry] *= 1.5
    wrong = compare(
        Given(rosenbrock, x, gradient), torch.arange(6), 1e-5, generator(), closely=True
    )
    assert wrong.slope.error == pytest.approx(1 / 3, rel=1e-3)
    assert (wrong.entries, wrong.kinks) == (6, 0)


def test_an_entry_on_a_kink_is_left_out_and_counted():
    x = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    surface = Given(lambda x: x.relu().sum(), x, (x > 0).double())
    found = compare(surface, torch.arange(3), 1e-5, generator(), closely=True)
    assert (found.entries, found.kinks) == (2, 1)
    assert found.slope.error < 1e-9


def test_a_step_that_crosses_a_kink_is_made_smaller():
    x = torch.tensor([1e-6], dtype=torch.float64)
    surface = Given(lambda x: x.relu().sum(), x, torch.ones(1, dtype=torch.float64))
    found = compare(surface, torch.arange(1), 1e-5, generator(), closely=True)
    assert (found.entries, found.kinks) == (1, 0)


@pytest.mark.parametrize(
    "kinked",
    [
        torch.relu,
        torch.abs,
        torch.nn.functional.leaky_relu,
        lambda x: x.clamp(min=0),
        lambda x: torch.maximum(x, -x),
        lambda x: torch.stack([x, -2 * x]).max(0).values,
        lambda x: torch.stack([x, -2 * x]).amax(0),
        lambda x: torch.stack([x, -2 * x]).max(),
        lambda x: torch.where(x > 0, x, 3 * x),
        lambda x: torch.stack([x, -x]).sort(0).values,
        lambda x: torch.nn.functional.max_pool1d(torch.stack([x, -x]).reshape(1, 1, 2), 2),
        lambda x: torch.nn.functional.hinge_embedding_loss(x + 1, -torch.ones(1)),
        lambda x: torch.nn.functional.hardswish(x - 3),
        lambda x: x.clone().relu_(),
    ],
)
def test_winners_tell_of_a_kink(kinked):
    def surface(at):
        at = torch.tensor([at], dtype=torch.float64)
        return Given(lambda x: kinked(x).sum(), at, torch.ones(1))

    one = torch.ones(1, dtype=torch.float64)
    assert crosses_kink(surface(0.0), torch.arange(1), one, 1e-3)
    assert not crosses_kink(surface(0.5), torch.arange(1), one, 1e-3)


def test_winners_of_what_is_smooth_are_always_the_same():
    with Winners() as one:
        point().tanh().softmax(0).log().sum()
    with Winners() as other:
        (-point()).tanh().softmax(0).log().sum()
    assert same(one.winners, other.winners)


def test_half_of_the_entries_are_where_a_gradient_arrives():
    gradients = torch.zeros(1, 5000)
    gradients[0, 4000:4600] = 1.0
    chosen = choose_entries(gradients, 10, generator())
    assert len(set(chosen.tolist())) == 10
    assert int((gradients[0, chosen] != 0).sum()) >= 5
    assert int((gradients[0, chosen] == 0).sum()) >= 1
    assert choose_entries(gradients[:, :4], 10, generator()).tolist() == [0, 1, 2, 3]
    assert torch.equal(chosen, choose_entries(gradients, 10, generator()))


# -------------------------------------------------------------------------- results and findings


def parameter(name, error, **settings):
    given = {"analytic": 1.0, "numeric": 1.0 - error, "entries": 4} | settings
    return ParameterGradient(name=name, error=error, **given)


def result(*parameters, functions=(), **settings):
    return GradientCheckResult(parameters=parameters, functions=tuple(functions), **settings)


def test_a_result_survives_json():
    wrong = FunctionGradient(name="F", outcome="differs", error=math.inf, parameters=("a", "b"))
    one = result(parameter("a", 0.5, kinks=3), functions=[wrong], num_samples=3)
    assert GradientCheckResult.from_json(one.to_json()) == one
    assert one.errors == {"a": 0.5}
    assert one.kinks == 3


def codes(found):
    return [(finding.code, finding.verdict) for finding in found]


def test_agreement_passes():
    good = FunctionGradient(name="F", outcome="agrees")
    assert codes(said(result(parameter("a", 1e-9)))) == [("gradient_checked", "pass")]
    assert codes(said(result(parameter("a", 1e-9), functions=[good]))) == [
        ("gradient_checked", "pass")
    ]


def test_a_difference_without_a_wrong_function_is_no_fault():
    [skip, passed] = said(result(parameter("a", 1.0), parameter("b", 1e-9)))
    assert (skip.code, skip.verdict, skip.where) == ("gradient_not_checked", "skip", "a")
    assert passed.evidence["parameters"] == 1


def test_a_wrong_function_names_the_parameter_that_shows_it():
    wrong = FunctionGradient(
        name="Sine", outcome="differs", error=2.0, parameters=("near", "far"), analytic=-1.0
    )
    [finding] = said(result(parameter("near", 1e-9), parameter("far", 2.0), functions=[wrong]))
    assert (finding.code, finding.verdict, finding.where) == ("wrong_gradient", "fail", "far")
    assert "Sine.backward" in finding.message
    [finding] = said(result(parameter("near", 2.0), parameter("far", 2.0), functions=[wrong]))
    assert finding.where == "near"


def test_between_the_bands_it_warns():
    small = FunctionGradient(name="F", outcome="differs", error=5e-3, parameters=("a",))
    assert codes(said(result(parameter("a", 5e-3), functions=[small])))[0] == (
        "wrong_gradient",
        "warn",
    )


def test_what_was_not_checked_says_why():
    off = FunctionGradient(name="Round", outcome="by design", reason="it jumps")
    found = said(result(functions=[off], unchecked="float32 only"))
    assert codes(found) == [("gradient_not_checked", "skip")] * 2
    assert "it jumps" in found[0].message
    assert "float32 only" in found[1].message
    [tiny] = said(result(parameter("a", 0.0, analytic=1e-20, numeric=0.0)))
    assert tiny.verdict == "skip"
