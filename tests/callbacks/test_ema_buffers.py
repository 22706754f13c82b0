"""Buffers beside the averaged weights: copied, averaged or left, and what validation writes."""

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_tuning import EMAWeights
from tests.callbacks.ema_reference import decay_at, differing, fit, weights_of
from tests.toys import Classifier

FLOATS = ["net.1.running_mean", "net.1.running_var", "level"]
INTEGERS = ["net.1.num_batches_tracked", "seen"]


class Normed(Classifier):
    """BatchNorm; a counter that it replaces; a level that steps write; one that validation writes.

    Without running statistics in validation: what it computes is asserted elsewhere.
    """

    def __init__(self, **settings):
        super().__init__(**settings)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("level", torch.zeros(2))
        self.register_buffer("judged", torch.zeros(()))
        self.register_buffer("passing", torch.ones(()), persistent=False)
        self.register_buffer("nothing", None)

    def training_step(self, batch, batch_idx):
        self.seen = self.seen + 1
        self.level.mul_(0.5).add_(batch_idx)
        self.passing.add_(1)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.judged.add_(1)
        super().validation_step(batch, batch_idx)


class Follow(Callback):
    """Computes what the averages of buffers must be, in float64."""

    def __init__(self, ema):
        self.ema, self.average, self.steps, self.at_step = ema, {}, -1, {}
        self.judged = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps += 1
        decay = decay_at(self.steps, self.ema.decay)
        for name, buffer in pl_module.named_buffers():
            if self.steps % self.ema.every_n_steps == 0:
                self.at_step[name] = buffer.clone()
            if self.steps == 0:
                self.average[name] = buffer.double()
            self.average[name] = decay * self.average[name] + (1 - decay) * buffer.double()

    def on_validation_batch_start(self, trainer, pl_module, *args):
        if not trainer.sanity_checking and not self.judged:
            self.judged.append({name: buffer.clone() for name, buffer in pl_module.named_buffers()})


def run(**settings):
    module, ema = Normed(), EMAWeights(0.8, **settings)
    follow = Follow(ema)
    fit(module, ema, follow, max_epochs=1)
    return module, ema, follow


@pytest.mark.parametrize("buffers", ["copy", "skip"])
def test_they_are_the_modules_own(buffers):
    module, _, follow = run(buffers=buffers)
    fit(plain := Normed(), max_epochs=1)
    found = dict(module.named_buffers())
    for name, value in plain.named_buffers():
        assert torch.equal(found[name], value), name
        if name != "judged":
            assert torch.equal(follow.judged[0][name], value), name
    # two batches of the sanity check and two of validation
    assert module.judged == 4
    assert module.seen == 6


@pytest.mark.parametrize("every", [1, 4])
def test_average(every):
    module, ema, follow = run(buffers="average", every_n_steps=every)
    own = dict(module.named_buffers())
    for name in FLOATS:
        if every == 1:
            torch.testing.assert_close(
                follow.judged[0][name].double(), follow.average[name], rtol=1e-5, atol=1e-5
            )
            assert torch.equal(own[name], follow.judged[0][name])
        assert not torch.equal(follow.judged[0][name], follow.at_step[name])
    for name in INTEGERS:
        assert torch.equal(own[name], follow.at_step[name]), name
        assert torch.equal(follow.judged[0][name], follow.at_step[name]), name
    assert set(FLOATS) < set(ema.average)


def test_copies_are_as_old_as_the_average():
    module, _, follow = run(every_n_steps=4)
    for name, value in follow.at_step.items():
        if name != "judged":
            assert torch.equal(follow.judged[0][name], value), name
            assert torch.equal(dict(module.named_buffers())[name], value), name


def test_skipped_ones_are_the_modules_whenever_it_is_judged():
    _, _, follow = run(every_n_steps=4, buffers="skip")
    assert follow.judged[0]["seen"] == 6


@pytest.mark.parametrize("buffers", ["copy", "average", "skip"])
@pytest.mark.parametrize("every", [1, 4])
def test_training_is_the_same(buffers, every):
    module = Normed()
    ema = EMAWeights(0.8, buffers=buffers, every_n_steps=every, after_fit="raw")
    fit(module, ema, max_epochs=3)
    fit(plain := Normed(), max_epochs=3)
    different = differing(weights_of(module), weights_of(plain))
    # what validation writes into a set of buffers stays in that set
    assert different == (
        [] if (buffers, every) in {("copy", 1), ("skip", 1), ("skip", 4)} else ["judged"]
    )


@pytest.mark.parametrize("delay", [0, 2])
def test_average_of_what_the_module_registers_late(delay):
    """A buffer that is None at first, and is there later, does not stop the fit."""

    class Late(Normed):
        def training_step(self, batch, batch_idx):
            if self.nothing is None:
                self.nothing = torch.ones(2)
            return super().training_step(batch, batch_idx)

    ema = EMAWeights(0.8, buffers="average", update_after_step=delay)
    fit(module := Late(), ema)
    assert torch.equal(module.nothing, torch.ones(2))


def test_buffer_that_the_module_takes_away():
    class Drops(Normed):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 3:
                self.passing = None
            elif self.trainer.global_step < 3:
                self.passing.add_(1)
            self.seen = self.seen + 1
            return Classifier.training_step(self, batch, batch_idx)

    fit(module := Drops(), EMAWeights(0.8, buffers="average"))
    assert module.passing is None


def test_buffer_that_changes_its_shape():
    class Grows(Normed):
        def training_step(self, batch, batch_idx):
            self.level = torch.cat([self.level, self.level[:1]])
            return Classifier.training_step(self, batch, batch_idx)

    fit(module := Grows(), EMAWeights(0.8, buffers="average"))
    assert len(module.level) == 14


@pytest.mark.parametrize("settings", [{}, {"every_n_steps": 4}, {"buffers": "average"}])
def test_buffer_that_validation_replaces(settings):
    """Training goes on with its own: no step is lost from the count, no level is averaged."""

    class Replaces(Normed):
        def validation_step(self, batch, batch_idx):
            self.seen = self.seen + 100
            self.level = self.level + 0
            super().validation_step(batch, batch_idx)

    fit(module := Replaces(), EMAWeights(0.8, after_fit="raw", **settings), max_epochs=3)
    fit(plain := Replaces(), max_epochs=3)
    assert module.seen % 100 == plain.seen % 100 == 18
    assert torch.equal(module.level, plain.level)


class Deep(Normed):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.4)

    def forward(self, inputs):
        return self.net(self.dropout(inputs))


@pytest.mark.parametrize("after_fit", ["ema", "raw"])
@pytest.mark.parametrize("buffers", ["copy", "average", "skip"])
def test_recalibration(after_fit, buffers):
    module = Deep()
    settings = {"buffers": buffers, "after_fit": after_fit}
    ema = EMAWeights(0.8, recalibrate_batch_norm=True, **settings)
    before = {}

    class Before(Callback):
        def on_train_end(self, trainer, pl_module):
            before.update(weights_of(pl_module))

    fit(module, Before(), ema)
    raw = weights_of(module) if after_fit == "raw" else before
    assert not differing({n: raw[n] for n in FLOATS[:2]}, {n: before[n] for n in FLOATS[:2]})
    with ema.averaged():
        averaged = Deep()
        averaged.load_state_dict(weights_of(module))
    # the statistics of the averaged weights' own activations, without dropout
    found = weights_of(averaged)
    torch.optim.swa_utils.update_bn(loader_of_inputs(), averaged.net.train())
    expected = weights_of(averaged)
    for name in FLOATS[:2]:
        torch.testing.assert_close(found[name], expected[name])
        assert not torch.equal(found[name], raw[name])
    assert [f.code for f in ema.findings][-1] == "batch_norm_recalibrated"
    assert ema.findings[-1].verdict == "pass"


def loader_of_inputs():
    from tests.toys import loader

    return [batch[0] for batch in loader()]
