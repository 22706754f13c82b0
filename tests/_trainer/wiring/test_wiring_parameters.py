"""Parameters that no optimizer trains: what is found, and what stays silent."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning._trainer.wiring.wiring_parameters import TOPIC
from tests._trainer.probing import assert_same
from tests._trainer.programs import PROGRAMS
from tests._trainer.small_programs import Base, Judges, found

pytestmark = pytest.mark.filterwarnings("ignore")


def verdicts(make, **settings):
    return {code: f.verdict for code, f in found(TOPIC, make, **settings).items()}


class Listed(Base):
    def __init__(self, hidden):
        super().__init__(nn.Linear(10, 16))
        layers = [nn.Linear(16, 4)]
        self.layers = layers if hidden else nn.ModuleList(layers)

    def forward(self, x):
        return self.layers[0](F.relu(self.net(x)))


def test_layers_in_a_plain_list_are_found_and_named():
    finding = found(TOPIC, lambda: Listed(hidden=True))["params_not_in_optimizer"]
    assert (finding.verdict, finding.where) == ("fail", "layers[0].weight")
    assert verdicts(lambda: Listed(hidden=False))["params_not_in_optimizer"] == "pass"


class Split(Base):
    """A trunk and a head; the optimizer gets some of them."""

    def __init__(self, held, width=32):
        super().__init__(nn.Linear(10, width), nn.ReLU())
        self.head = nn.Linear(width, 4)
        self.held = held

    def forward(self, x):
        return self.head(self.net(x))

    def configure_optimizers(self):
        parts = [getattr(self, name) for name in self.held]
        return torch.optim.Adam([p for part in parts for p in part.parameters()], lr=1e-2)


def test_a_head_left_out_is_found_and_a_trunk_left_out_is_not():
    finding = found(TOPIC, lambda: Split(["net"]))["params_not_in_optimizer"]
    assert (finding.verdict, finding.where) == ("fail", "head.weight")
    assert verdicts(lambda: Split(["net", "head"]))["params_not_in_optimizer"] == "pass"
    assert verdicts(lambda: Split(["head"], width=256))["params_not_in_optimizer"] == "pass"


def test_a_random_trunk_is_missed_where_it_would_halve_the_loss():
    finding = found(TOPIC, lambda: Split(["head"], width=48))["params_not_in_optimizer"]
    assert (finding.verdict, finding.where) == ("warn", "net.0.weight")
    assert 0.5 < finding.evidence["progress"] < 0.75


class Narrow(Base):
    """A trunk of two units, from which nothing can be read unless it learns."""

    def __init__(self, frozen=False, held=True):
        super().__init__(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 2), nn.Tanh())
        self.head = nn.Linear(2, 4)
        with torch.no_grad():
            self.net[0].weight[:, :2] *= 0.02
        self.net.requires_grad_(not frozen)
        self.held = held

    def forward(self, x):
        return self.head(self.net(x))

    def configure_optimizers(self):
        part = self if self.held else self.head
        parameters = [p for p in part.parameters() if p.requires_grad]
        return torch.optim.Adam(parameters, lr=3e-2)


def test_a_trunk_is_missed_where_nothing_is_learnt_without_it():
    finding = found(TOPIC, lambda: Narrow(held=False))["params_not_in_optimizer"]
    assert (finding.verdict, finding.where) == ("warn", "net.0.weight")
    assert finding.evidence["progress"] < 0.1 < finding.evidence["progress_with_them"]


class Codec(Base):
    """An autoencoder of correlated numbers, whose decoder alone learns much of them."""

    def __init__(self, held):
        super().__init__(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 4))
        self.decoder = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 10))
        mix = torch.randn(10, 10, generator=torch.Generator().manual_seed(3))
        self.register_buffer("mix", mix * torch.tensor([1.0] * 4 + [0.1] * 6)[:, None])
        self.held = held

    def training_step(self, batch, batch_idx):
        x = batch[0] @ self.mix
        return F.mse_loss(self.decoder(self.net(x)), x)

    def configure_optimizers(self):
        part = self if self.held else self.decoder
        return torch.optim.Adam(part.parameters(), lr=3e-3)


def test_an_encoder_left_out_is_missed_where_some_is_learnt_without_it():
    finding = found(TOPIC, lambda: Codec(held=False))["params_not_in_optimizer"]
    assert (finding.verdict, finding.where) == ("warn", "net.0.weight")
    assert 0.1 < finding.evidence["progress"] < 0.5
    assert verdicts(lambda: Codec(held=True))["params_not_in_optimizer"] == "pass"


def test_a_frozen_trunk_counts_only_where_nothing_is_learnt():
    finding = found(TOPIC, lambda: Narrow(frozen=True))["frozen_params"]
    assert (finding.verdict, finding.where) == ("warn", "net.0.weight")
    assert verdicts(Narrow)["frozen_params"] == "pass"

    class Features(Split):
        def __init__(self):
            super().__init__(["head"], width=256)
            self.net.requires_grad_(False)

    assert verdicts(Features)["frozen_params"] == "pass"


def test_an_optimizer_of_copies_is_found():
    class Copies(Base):
        def configure_optimizers(self):
            return torch.optim.Adam(copy.deepcopy(self.net).parameters(), lr=1e-2)

    finding = found(TOPIC, Copies)["params_not_in_optimizer"]
    assert finding.verdict == "fail"
    assert "none of what the optimizers hold" in finding.message


class Adversarial(Base):
    """A generator and a critic; ``held`` are the networks of the two optimizers."""

    automatic_optimization = False

    def __init__(self, held):
        super().__init__(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 10))
        self.critic = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))
        self.held = held

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        pair = optimizers if isinstance(optimizers, list) else [optimizers, None]
        fake = self.net(torch.randn(len(batch[0]), 4))
        scores = F.softplus(-self.critic(batch[0])) + F.softplus(self.critic(fake.detach()))
        self._step(pair[1], scores.mean())
        self._step(pair[0], F.softplus(-self.critic(fake)).mean())

    def _step(self, optimizer, loss):
        if optimizer is not None:
            optimizer.zero_grad()
        self.manual_backward(loss)
        if optimizer is not None:
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(getattr(self, n).parameters(), lr=1e-3) for n in self.held]


def test_both_networks_of_a_gan_need_an_optimizer():
    code = "params_not_in_optimizer"
    assert found(TOPIC, lambda: Adversarial(["critic", "critic"]))[code].where == "net.0.weight"
    assert found(TOPIC, lambda: Adversarial(["net"]))[code].where == "critic.0.weight"
    assert verdicts(lambda: Adversarial(["net", "critic"]))[code] == "pass"


class Flagged(Base):
    """A trunk and a head; ``flag`` is what somebody sets to freeze or to thaw the trunk."""

    def __init__(self, flag, *, frozen=False, at="start"):
        super().__init__(nn.Linear(10, 64), nn.ReLU())
        self.head = nn.Linear(64, 4)
        self.net.requires_grad_(not frozen)
        self.flag, self.at = flag, at
        if at == "start":
            flag(self.net)

    def forward(self, x):
        return self.head(self.net(x))

    def on_train_batch_start(self, batch, batch_idx):
        if self.at == "batch" and batch_idx == 2:
            self.flag(self.net)


def each(name, value):
    """What sets an attribute of all parameters of a module."""
    return lambda net: [setattr(p, name, value) for p in net.parameters()]


def whole(name, value):
    return lambda net: setattr(net, name, value)


class Configured(nn.Linear):
    """An option of its own, by which it is called or not."""

    def __init__(self, requires_grad):
        super().__init__(10, 64)
        self.requires_grad = requires_grad


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: Flagged(each("require_grad", True), frozen=True), "net.0.weight"),
        (lambda: Flagged(each("require_grad", True), frozen=True, at="batch"), "net.0.weight"),
        (lambda: Flagged(each("required_gradient", False)), "net.0.weight"),
        (lambda: Flagged(whole("requires_grad", True), frozen=True), "net"),
        (lambda: Flagged(whole("requires_grad", False)), "net"),
        (lambda: Flagged(whole("require_grad", False)), "net"),
    ],
)
def test_a_flag_that_nothing_reads_is_found(make, where):
    finding = found(TOPIC, make)["frozen_params"]
    assert (finding.verdict, finding.where) == ("fail", where)
    assert "requires_grad_(" in finding.hint


class Reads(Flagged):
    """Lets no gradient in where its own option says so."""

    def forward(self, x):
        with torch.set_grad_enabled(self.net.requires_grad):
            hidden = self.net(x)
        return self.head(hidden)


def with_configured(requires_grad, frozen):
    program = Flagged(lambda net: None)
    program.net[0] = Configured(requires_grad).requires_grad_(not frozen)
    return program


@pytest.mark.parametrize(
    "make",
    [
        lambda: Flagged(each("requires_grad", True), frozen=True),
        lambda: Flagged(each("requires_grad", False)),
        lambda: Flagged(each("require_grad", True)),
        lambda: Flagged(each("require_grad", "yes"), frozen=True),
        lambda: Flagged(whole("requires_grad", True)),
        lambda: Flagged(whole("requires_grad", False), frozen=True),
        lambda: Flagged(whole("require_backward_grad_sync", True), frozen=True),
        lambda: Reads(whole("requires_grad", False)),
        lambda: with_configured(requires_grad=True, frozen=True),
        lambda: with_configured(requires_grad=False, frozen=False),
    ],
)
def test_a_flag_that_agrees_or_is_read_is_silent(make):
    assert verdicts(make)["frozen_params"] == "pass"


def test_a_flag_turned_on_and_off_between_two_optimizers_is_silent():
    class Toggles(Adversarial):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            self.critic.requires_grad = False

    assert verdicts(lambda: Toggles(["net", "critic"]))["frozen_params"] == "pass"


class Perceptual(Base):
    """Compares outputs in the features of another network, whose gradients nobody wants."""

    def __init__(self):
        super().__init__(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 10))
        self.features = nn.Sequential(nn.Linear(10, 16), nn.ReLU())

    def loss(self, batch):
        x = batch[0]
        y = self(x)
        return F.mse_loss(self.features(y), self.features(x)) + F.mse_loss(y, x)

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), lr=1e-2)


class HiddenTeacher(Base):
    def __init__(self):
        super().__init__()
        self.teacher = [nn.Linear(10, 4)]

    def loss(self, batch):
        with torch.no_grad():
            soft = self.teacher[0](batch[0]).softmax(1)
        return super().loss(batch) + 0.1 * F.cross_entropy(self(batch[0]), soft)


class Collocation(Base):
    """Points that take gradients and are no parameters."""

    def __init__(self):
        super().__init__(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
        self.points = torch.linspace(0, 1, 20)[:, None].requires_grad_()

    def loss(self, batch):
        value = self(self.points)
        (slope,) = torch.autograd.grad(value.sum(), self.points, create_graph=True)
        return (slope - self.points.cos()).square().mean() + value[0].square().mean()

    def validation_step(self, batch, batch_idx):
        pass


@pytest.mark.parametrize("make", [Perceptual, HiddenTeacher, Collocation])
def test_what_is_not_to_be_trained_is_silent(make):
    assert set(verdicts(make).values()) == {"pass"}


@pytest.mark.parametrize("name", ["attributes", "gan", "parameters_outside_the_module"])
def test_it_leaves_no_trace(name, tmp_path):
    assert_same(PROGRAMS[name], tmp_path, Judges((TOPIC,), ends=False))
