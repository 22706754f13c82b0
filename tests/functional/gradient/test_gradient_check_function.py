"""Hand-written Functions by themselves, next to torch's own gradcheck."""

import pytest
import torch
from torch.autograd import Function

from lightning_tuning.functional.gradient.gradient_alone import FunctionCall
from lightning_tuning.functional.gradient.gradient_function import check_call, check_calls
from tests.functional.gradient.gradient_check_functions import BY_DESIGN, RIGHT, WRONG, function

ALL = {**RIGHT, **WRONG, **BY_DESIGN}


def arguments(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    given = [torch.randn(6, 5, generator=generator) for _ in range(count)]
    # a second argument such as a step size is positive
    return [x.abs() + 0.1 if k else x for k, x in enumerate(given)]


def called(cls, args, starved_names=(), scale=1.0):
    outputs = cls.apply(*args)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(5)
    grads = tuple(scale * torch.randn(out.shape, generator=generator) for out in outputs)
    wanted = tuple(range(len(args)))
    return FunctionCall(
        function=cls,
        args=tuple(args),
        wanted=wanted,
        cotangents=grads,
        reached=tuple((f"p{k}",) for k in wanted),
    )


def check(name, seed=0, scale=1.0):
    cls, count = ALL[name]
    return check_call(called(cls, arguments(count, seed), scale=scale), starved=["p1"])


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_one_agrees(name):
    found = check(name)
    assert found.outcome == "agrees"
    assert found.error < 1e-6


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_one_differs(name):
    for seed in range(3):
        found = check(name, seed)
        assert found.outcome == "differs", found
        assert found.error > 0.01


@pytest.mark.parametrize("name", BY_DESIGN)
def test_one_that_is_meant_otherwise_is_let_be(name):
    for seed in range(3):
        found = check(name, seed)
        assert found.outcome == "by design", found
        assert found.reason


@pytest.mark.parametrize("name", [*RIGHT, *WRONG])
def test_gradcheck_is_of_one_mind(name):
    cls, count = ALL[name]
    args = [x.double().requires_grad_() for x in arguments(count)]
    agrees = torch.autograd.gradcheck(
        cls.apply, args, raise_exception=False, check_undefined_grad=False, nondet_tol=1.0
    )
    assert agrees == (check(name).outcome == "agrees")


@pytest.mark.parametrize("name", ["factor", "sine", "rounding", "half_a_relu"])
@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_the_scale_of_the_loss_makes_no_difference(name, scale):
    one, other = check(name), check(name, scale=scale)
    assert one.outcome == other.outcome
    assert other.error == pytest.approx(one.error, abs=1e-4)


def test_the_error_of_a_factor_is_one_less_it():
    assert check("factor").error == pytest.approx(1 / 3, rel=1e-5)
    assert check("half_a_relu").error == pytest.approx(1 / 2, rel=1e-5)
    assert check("sign").error == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize("name", ["relu", "half_a_relu", "leak_forgotten"])
def test_inputs_that_lie_on_the_kink_are_left_out(name):
    cls, _ = ALL[name]
    [x] = arguments(1)
    x[:3] = 0
    found = check_call(called(cls, [x]))
    assert found.outcome == ("agrees" if name in RIGHT else "differs")
    assert found.kinks >= 1


def single(x):
    return (x.float() @ torch.eye(5)).sin()


@pytest.mark.parametrize(("factor", "outcome"), [(1.0, "agrees"), (0.5, "differs")])
def test_one_that_computes_in_single_precision(factor, outcome):
    cls = function("Single", single, lambda g, x: factor * g * x.cos().to(g))
    assert check_call(called(cls, arguments(1))).outcome == outcome
    back = function("Back", lambda x: single(x).to(x), lambda g, x: factor * g * x.cos())
    assert check_call(called(back, arguments(1))).outcome == outcome


class OnlySingle(Function):
    @staticmethod
    def forward(ctx, x):
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return -grad * ctx.saved_tensors[0].cos()


class Noisy(Function):
    count = 0

    @staticmethod
    def forward(ctx, x):
        Noisy.count += 1
        return x * Noisy.count

    @staticmethod
    def backward(ctx, grad):
        return grad


class Raises(Function):
    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("only in the right place")


def test_one_that_takes_single_precision_only_is_checked_there():
    found = check_call(called(OnlySingle, arguments(1)))
    assert found.outcome == "differs"
    assert found.error > 1.5


def test_what_cannot_be_checked_says_why():
    assert "not the same" in check_call(called(Noisy, arguments(1))).reason
    assert "only in the right place" in check_call(called(Raises, arguments(1))).reason
    huge = torch.zeros(1).expand(2**25)
    cls, _ = RIGHT["sine"]
    call = FunctionCall(function=cls, args=(huge,), wanted=(0,), cotangents=(huge,), reached=((),))
    assert "large" in check_call(call).reason


def test_one_that_draws_random_numbers_draws_the_same():
    class Dropout(Function):
        @staticmethod
        def forward(ctx, x):
            mask = torch.rand_like(x) < 0.5
            ctx.save_for_backward(mask)
            return x * mask

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0]

    state = torch.get_rng_state()
    call = called(Dropout, arguments(1))
    torch.set_rng_state(state)
    assert check_call(call).outcome == "agrees"
    assert torch.equal(torch.get_rng_state(), state)


def test_one_that_writes_in_place():
    class Double(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mark_dirty(x)
            return x.mul_(2)

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    [x] = arguments(1)
    kept = x.clone()
    call = FunctionCall(function=Double, args=(x,), wanted=(0,), cotangents=(x,), reached=((),))
    assert check_call(call).outcome == "agrees"
    assert torch.equal(x, kept)


def test_a_function_that_runs_a_function_may_approximate():
    class Implicit(Function):
        @staticmethod
        def forward(ctx, f, x):
            return f(x)

        @staticmethod
        def backward(ctx, grad):
            return None, 0.8 * grad

    [x] = arguments(1)
    call = FunctionCall(
        function=Implicit, args=(torch.sin, x), wanted=(1,), cotangents=(x,), reached=((),)
    )
    assert check_call(call).outcome == "by design"


def test_no_gradient_for_an_argument_is_a_detach_where_its_parameters_learn_otherwise():
    cls, count = WRONG["second_input_none"]
    call = called(cls, arguments(count))
    assert check_call(call, starved=["p1"]).outcome == "differs"
    assert check_call(call, starved=[]).outcome == "by design"


def test_of_several_calls_the_worst_counts_unless_one_tells_of_a_design():
    right, wrong = RIGHT["elu"][0], WRONG["negative_only"][0]
    positive = called(wrong, [torch.rand(4, 4) + 0.5])
    negative = called(wrong, [-torch.rand(4, 4) - 0.5])
    assert check_call(positive).outcome == "agrees"
    [found] = check_calls([positive, negative, positive], eps=1e-5)
    assert (found.outcome, found.calls) == ("differs", 3)
    both = check_calls([called(right, arguments(1)), negative], eps=1e-5)
    assert [one.outcome for one in both] == ["agrees", "differs"]
