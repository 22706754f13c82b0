import pytest
import torch
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from lightning_tuning._trainer.gradient.gradient_recorder import FunctionRecorder, is_hand_written
from lightning_tuning.functional.gradient.gradient_function import check_call


class Cube(Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return factor * x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.factor * grad * ctx.saved_tensors[0] ** 2, None


class Later(Function):
    @staticmethod
    def forward(x, w):
        return x * w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad * w, grad * x


class Inherits(Cube):
    pass


cube = Cube.apply  # as many programs do it


def weights():
    return {name: torch.randn(3, requires_grad=True) for name in "ab"}


def recorded(step):
    given = weights()
    with FunctionRecorder({id(w): name for name, w in given.items()}) as recorder:
        step(**given)
    return recorder.calls


def test_it_sees_arguments_cotangents_and_the_parameters_behind():
    kept = {}

    def step(a, b):
        kept["a"] = a.detach().clone()
        (5 * cube(a * 2, 4.0) * b).sum().backward()

    [call] = recorded(step)
    assert call.function is Cube
    assert torch.equal(call.args[0], 2 * kept["a"])
    assert call.args[1] == 4.0
    assert (call.wanted, call.reached) == ((0,), (("a",),))
    assert len(call.cotangents) == 1


def test_the_nearest_parameter_comes_first():
    [call] = recorded(lambda a, b: cube((a.sin().cos() + b) * b, 1.0).sum().backward())
    assert call.reached == (("b", "a"),)


def test_each_argument_has_the_parameters_behind_it():
    [call] = recorded(lambda a, b: Later.apply(a * 2, b).sum().backward())
    assert call.wanted == (0, 1)
    assert call.reached == (("a",), ("b",))


def test_an_argument_without_a_gradient_is_not_wanted():
    [call] = recorded(lambda a, b: Later.apply(a.detach(), b).sum().backward())
    assert (call.wanted, call.reached) == ((1,), (("b",),))


@pytest.mark.parametrize("reentrant", [False, True])
def test_it_sees_into_a_checkpoint(reentrant):
    def step(a, b):
        checkpoint(lambda x: cube(x, 1.0), a, use_reentrant=reentrant).sum().backward()

    assert [call.function for call in recorded(step)] == [Cube]


def test_an_inherited_one_and_one_made_within_the_step():
    def step(a, b):
        class Local(Cube):
            @staticmethod
            def forward(ctx, x, factor):
                return Cube.forward(ctx, x, factor)

        (Inherits.apply(a, 1.0) + Local.apply(b, 1.0)).sum().backward()

    assert sorted(call.function.__name__ for call in recorded(step)) == ["Inherits", "Local"]


def test_what_gets_no_gradient_is_not_noted():
    assert not recorded(lambda a, b: cube(a, 1.0).detach())

    def without_graph(a, b):
        with torch.no_grad():
            cube(a, 1.0)

    assert not recorded(without_graph)


def test_a_few_of_many_equal_calls():
    def step(a, b):
        sum(cube(a, 1.0).sum() for _ in range(50)).backward()

    assert 1 < len(recorded(step)) < 10


def test_functions_under_torch_func_are_let_be():
    def step(a, b):
        def loss(x):
            return Later.apply(x, x).sum()

        assert torch.func.grad(loss)(a.detach()).shape == (3,)
        cube(b, 1.0).sum().backward()

    calls = recorded(step)
    assert calls[-1].function is Cube
    assert all(check_call(call).outcome in ("agrees", "not checked") for call in calls)


def test_a_custom_op_of_torch_library():
    @torch.library.custom_op("gradient_check_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    twice.register_autograd(lambda ctx, grad: 2 * grad)
    [call] = recorded(lambda a, b: twice(a).sum().backward())
    assert "twice" in call.function.__name__


def test_torchs_own_are_not_hand_written():
    assert is_hand_written(Cube)
    assert not is_hand_written(torch.utils.checkpoint.CheckpointFunction)
    assert not is_hand_written(torch.nn.modules._functions.SyncBatchNorm)


def test_the_classes_are_as_before_even_after_an_error():
    before = [dict(vars(cls)) for cls in (Cube, Later, Inherits)]

    def use():
        assert vars(Cube)["forward"] is not before[0]["forward"]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), FunctionRecorder({}):
        use()
    assert [dict(vars(cls)) for cls in (Cube, Later, Inherits)] == before
    assert "__init_subclass__" not in vars(Function)
