"""The gradient check on whole programs: what it finds, what it lets be, what it leaves behind."""

import copy
import json

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning.callbacks.gradient_check import GradientCheck
from lightning_tuning.findings import ChecksFailedError
from tests._trainer.probing import differences, run_fit
from tests._trainer.programs import PROGRAMS as ODD_PROGRAMS
from tests.corpus.program import QUIET, some
from tests.corpus.test_broken import PAIRS
from tests.corpus.test_healthy import PROGRAMS
from tests.functional.gradient.gradient_check_functions import BY_DESIGN, RIGHT, WRONG
from tests.processes import run_on_ranks

BROKEN = {broken.name: (broken, repaired) for broken, repaired in PAIRS}
WRONG_GRADIENTS = ["sine_backward", "swish_backward", "linear_backward"]


def data(samples=24, batch_size=8):
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(samples, 6, generator=generator)
    labels = torch.randint(3, (samples,), generator=generator)
    return DataLoader(TensorDataset(inputs, labels), batch_size)


class Program(LightningModule):
    """A classifier around the network that a test gives."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Call(nn.Module):
    """Applies a Function, the second argument being a weight of its own."""

    def __init__(self, cls, count=1):
        super().__init__()
        self.cls = cls
        self.weight = nn.Parameter(torch.rand(8) + 0.5) if count == 2 else None

    def forward(self, x):
        out = self.cls.apply(x) if self.weight is None else self.cls.apply(x, self.weight)
        return out[0] + out[1] if isinstance(out, tuple) else out


class Recurrent(nn.Module):
    def __init__(self, cls):
        super().__init__()
        self.into, self.back, self.out = nn.Linear(1, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.cls = cls

    def forward(self, x):
        state = x.new_zeros(len(x), 8)
        for column in x.unbind(1):
            state = self.cls.apply(self.into(column[:, None]) + self.back(state))
        return self.out(state)


class BiasOnly(torch.autograd.Function):
    """x @ w.T + b; the bias gets the mean where it should get the sum."""

    @staticmethod
    def forward(ctx, x, w, b):
        ctx.save_for_backward(x, w)
        return x @ w.T + b

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w, grad.T @ x, grad.mean(0)


class OwnLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 6) / 3), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return BiasOnly.apply(x, self.weight, self.bias)


def between(*parts):
    return nn.Sequential(nn.Linear(6, 8), *parts, nn.Linear(8, 3))


def deep(cls):
    layers = [part for _ in range(12) for part in (nn.Linear(8, 8), nn.Tanh())]
    return between(*layers, Call(cls), nn.Linear(8, 8), nn.Tanh())


def checked(module, loader=None, **settings):
    own = {key: settings.pop(key) for key in list(settings) if key in ("on_fail", "num_samples")}
    check = GradientCheck(**own)
    torch.manual_seed(0)
    trainer = Trainer(**QUIET | {"max_steps": 1} | settings, callbacks=[check])
    trainer.fit(module, data() if loader is None else loader)
    return check


def faults(check):
    return [f for f in check.findings if f.verdict in ("fail", "warn")]


def seeded(make, *args):
    torch.manual_seed(1)
    return Program(make(*args))


# ------------------------------------------------------------------------------- what it finds


@pytest.mark.parametrize("name", sorted(set(WRONG) - {"pole", "incoming_ignored"}))
def test_it_finds_a_wrong_function_and_names_a_parameter_behind_it(name):
    cls, count = WRONG[name]
    check = checked(seeded(between, Call(cls, count)))
    [fault] = faults(check)
    assert (fault.code, fault.verdict) == ("wrong_gradient", "fail")
    assert fault.evidence["function"] == cls.__name__
    behind = {"net.1.weight"} if count == 2 else {"net.0.weight", "net.0.bias"}
    assert fault.where in behind
    if name not in ("leak_forgotten", "second_input_none"):  # small; no gradient at all
        assert check.result.errors[fault.where] > 1e-2


@pytest.mark.parametrize("name", WRONG_GRADIENTS)
@pytest.mark.filterwarnings("ignore")
def test_it_finds_those_of_the_corpus_and_passes_their_twins(name):
    for program, expected in zip(BROKEN[name], (["fail"], []), strict=True):
        torch.manual_seed(0)
        module, train, _ = program.make()
        check = checked(module, train, **program.trainer)
        assert [f.verdict for f in faults(check)] == expected
    assert check.findings[0].code == "gradient_checked"


def test_it_finds_one_in_a_deep_network():
    [fault] = faults(checked(seeded(deep, WRONG["factor"][0])))
    assert fault.evidence["function"] == "Factor"
    assert fault.where.startswith("net.23")


@pytest.mark.parametrize(("functions", "name"), [(WRONG, "sign"), (RIGHT, "sine")])
def test_it_looks_into_a_recurrent_network(functions, name):
    found = faults(checked(seeded(Recurrent, functions[name][0])))
    assert [f.where for f in found] == (["net.into.bias"] if functions is WRONG else [])


def test_it_finds_a_wrong_bias_and_nothing_else():
    check = checked(Program(nn.Sequential(OwnLinear(), nn.Tanh(), nn.Linear(8, 3))))
    [fault] = faults(check)
    assert fault.where == "net.0.bias" == fault.evidence["parameters"]
    assert fault.evidence["input"] == 2
    assert check.result.errors["net.0.weight"] < 1e-6


class ByHand(Program):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def test_it_finds_one_under_manual_optimization():
    for functions, name, expected in ((WRONG, "factor", 1), (RIGHT, "cube", 0)):
        check = checked(ByHand(between(Call(functions[name][0]))))
        assert len(faults(check)) == expected
        assert len(check.result.parameters) == 4


class SingleOnly(Program):
    def training_step(self, batch, batch_idx):
        assert self.net[0].weight.dtype == torch.float32, "no other precision"
        return super().training_step(batch, batch_idx)


def test_it_finds_one_where_the_program_runs_in_single_precision_only():
    check = checked(SingleOnly(between(Call(WRONG["sign"][0]))))
    [fault] = faults(check)
    assert fault.where in ("net.0.weight", "net.0.bias")
    assert check.result.unchecked.startswith("the program does not run in double precision (")
    assert "no other precision" in check.result.unchecked
    assert not faults(checked(SingleOnly(between(Call(RIGHT["sine"][0])))))


# ----------------------------------------------------------------------------- what it lets be


@pytest.mark.parametrize("program", some(PROGRAMS), ids=lambda program: program.name)
@pytest.mark.filterwarnings("ignore")
def test_a_healthy_program_gives_no_alarm(program):
    torch.manual_seed(0)
    module, train, _ = program.make()
    check = checked(module, train, **program.trainer, limit_train_batches=20)
    assert not faults(check)
    assert check.result is not None


@pytest.mark.parametrize("name", sorted(set(BY_DESIGN) - {"nearest_code", "clipping"}))
def test_a_function_that_is_meant_otherwise_gives_no_alarm(name):
    cls, count = BY_DESIGN[name]
    check = checked(seeded(between, Call(cls, count)))
    assert not faults(check)
    assert [f.outcome for f in check.result.functions] == ["by design"]


class Hooked(Program):
    def __init__(self, net):
        super().__init__(net)
        net[2].register_full_backward_hook(lambda module, into, out: (0.5 * into[0],))
        net[2].weight.register_hook(lambda grad: 0.1 * grad)


def test_hooks_that_change_gradients_are_no_fault():
    check = checked(Hooked(between(nn.Tanh())))
    assert not faults(check)
    assert any("hooked" in f.message for f in check.findings)


def test_parameters_pass_with_small_errors_in_double_precision():
    check = checked(seeded(between, nn.Tanh()), num_samples=2)
    assert max(check.result.errors.values()) < 1e-6
    assert list(check.result.errors) == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    assert (check.result.num_samples, check.result.step) == (2, 10)
    [passed] = check.findings
    assert passed.evidence["entries"] == 16 + 8 + 16 + 3


# -------------------------------------------------------------------------- what it leaves behind


def plain_and_checked(program, folder, **settings):
    _, plain = run_fit(program, folder / "plain", **settings)
    check = GradientCheck(burn_in_steps=4)
    _, found = run_fit(program, folder / "checked", check, **settings)
    # the one file it writes
    left = {key: value for key, value in found.items() if not key.endswith("findings.json")}
    return check, differences(plain, left)


@pytest.mark.parametrize("name", some(ODD_PROGRAMS, every=6))
@pytest.mark.filterwarnings("ignore")
def test_a_fit_is_bit_for_bit_the_same(name, tmp_path):
    check, found = plain_and_checked(ODD_PROGRAMS[name], tmp_path)
    assert not found
    assert not faults(check)


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize("at", [2, 6, 9])
def test_an_exception_in_the_middle_leaves_nothing(error, at):
    module = Program(between(nn.BatchNorm1d(8), nn.Tanh()))
    before = copy.deepcopy(module.state_dict())
    random, own = torch.get_rng_state(), module.training_step
    calls = []

    def breaking(batch, batch_idx):
        calls.append(batch[0].dtype)
        if len(calls) == at:
            raise error
        return own(batch, batch_idx)

    module.__dict__["training_step"] = breaking
    check = GradientCheck(burn_in_steps=4)
    trainer = Trainer(**QUIET | {"max_steps": 1})
    seen = {}

    class Watch(GradientCheck):
        def on_train_start(self, trainer, pl_module):
            torch.set_rng_state(random)
            try:
                check.on_train_start(trainer, pl_module)
            except (KeyboardInterrupt, Stop) as caught:
                seen["caught"] = type(caught)
            seen["state"] = copy.deepcopy(pl_module.state_dict())
            seen["random"] = torch.get_rng_state()
            seen["default"] = torch.get_default_dtype()
            seen["optimizer"] = trainer.optimizers[0].state_dict()["state"]

    trainer.callbacks.insert(0, Watch())
    trainer.fit(module, data())
    assert len(calls) > at
    assert seen.get("caught") is (None if error is ValueError else error)
    assert all(torch.equal(seen["state"][name], value) for name, value in before.items())
    assert torch.equal(seen["random"], random)
    assert seen["default"] == torch.float32
    assert not seen["optimizer"]


# ------------------------------------------------------------------------------- as a callback


def test_it_raises_once_if_told_so():
    with pytest.raises(ChecksFailedError, match=r"wrong_gradient net\.0") as caught:
        checked(Program(between(Call(WRONG["sign"][0]))), on_fail="raise")
    assert [f.code for f in caught.value.findings] == ["wrong_gradient"]
    checked(Program(between(Call(RIGHT["sine"][0]))), on_fail="raise")


def test_it_skips_a_resume_and_fast_dev_run(tmp_path):
    check = checked(Program(between(nn.Tanh())), fast_dev_run=1)
    assert [f.verdict for f in check.findings] == ["skip"]
    assert check.result is None
    module = Program(between(nn.Tanh()))
    trainer = Trainer(**QUIET | {"max_steps": 2})
    trainer.fit(module, data())
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    check = GradientCheck()
    trainer = Trainer(**QUIET | {"max_steps": 3}, callbacks=[check])
    trainer.fit(module, data(), ckpt_path=tmp_path / "saved.ckpt")
    assert [f.verdict for f in check.findings] == ["skip"]
    assert "step 2" in check.findings[0].message


def test_the_findings_are_in_the_runs_folder(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="log")
    check = checked(Program(between(Call(WRONG["sign"][0]))), logger=logger)
    [written] = json.loads((tmp_path / "log" / "findings.json").read_text())
    assert written == check.findings[0].to_dict()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_entries", 0),
        ("eps", 0.0),
        ("eps", float("nan")),
        ("num_samples", 0),
        ("burn_in_steps", -1),
        ("on_fail", "ignore"),
    ],
)
def test_a_bad_argument_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        GradientCheck(**{name: value})


@pytest.mark.processes
def test_two_processes_check_each_function():
    def rank():
        found = []
        for cls in (WRONG["sign"][0], RIGHT["sine"][0]):
            check = checked(Program(between(Call(cls))), strategy="ddp", devices=2)
            found.append([(f.code, f.verdict, f.where) for f in check.findings])
        return found

    one, other = run_on_ranks(rank)
    assert one == other
    assert [verdict for _, verdict, _ in one[0]] == ["fail", "skip"]
    assert {verdict for _, verdict, _ in one[1]} == {"pass", "skip"}


@pytest.mark.gpu
def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    [fault] = faults(checked(Program(between(Call(WRONG["factor"][0]))), accelerator="cuda"))
    assert fault.where.startswith("net.0")
    assert not faults(checked(Program(between(Call(RIGHT["cube"][0]))), accelerator="cuda"))
