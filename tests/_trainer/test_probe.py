"""Experiments before a fit: each from the same start, and none leaves a trace."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lightning_tuning._trainer.errors import CannotProbeError
from lightning_tuning._trainer.ordinary_run import ordinary_run
from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.probe_results import StepError
from tests._trainer.probing import assert_same
from tests._trainer.programs import PROGRAMS
from tests.corpus.program import some
from tests.toys import Classifier, Manual, loader

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "Found .* module.s. in eval mode:UserWarning",
        "You defined a `validation_step` but have no `val_dataloader`:UserWarning",
        "Your `val_dataloader`'s sampler has shuffling enabled:UserWarning",
        "`training_step` returned `None`:UserWarning",
        "train_dataloader yielded None:UserWarning",
        "Trying to infer the `batch_size` from an ambiguous collection:UserWarning",
        "Using ModelCheckpoint with manual optimization and every_n_train_steps:UserWarning",
    )
]


class Act(Callback):
    """Does something in a probe when training starts."""

    def __init__(self, act):
        self.act = act
        self.result = None
        self.caught = None

    def on_train_start(self, trainer, pl_module):
        try:
            with Probe(trainer, pl_module) as probe:
                self.result = self.act(probe)
        except CannotProbeError as error:
            self.caught = error


def use_everything(probe):
    """Steps in all modes, runs, validation, and steps after a few steps of training."""
    [batch, *_] = probe.batches(2)
    losses = [probe.step(batch, mode=mode).loss for mode in ("live", "silent", "eval")]
    losses.append(probe.step(batch, backward=True, seed=3).loss)
    run = probe.run(3)
    probe.run(2, batches=[batch], schedules=False)
    if probe.trainer.enable_validation:
        probe.validate(num_batches=1)
    probe.settle(2)
    probe.step(batch)
    return losses, run


@pytest.mark.parametrize("name", some(PROGRAMS, every=3))
def test_it_changes_nothing(name, tmp_path):
    assert_same(PROGRAMS[name], tmp_path, Act(use_everything))


def probed(module, act, data=None):
    """What ``act`` returns inside a fit of the module."""
    callback = Act(act)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", enable_model_summary=False, callbacks=[callback], **quiet
    )
    trainer.fit(module, data or loader(), loader(8))
    if callback.caught is not None:
        raise callback.caught
    return callback.result


class Noisy(Classifier):
    """Dropout, BatchNorm and a count of its steps."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.net = nn.Sequential(
            nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)
        )
        self.count = 0

    def training_step(self, batch, batch_idx):
        self.count += 1
        return self.loss(batch) + 0.0 * self.count


def test_a_step_always_starts_from_the_same_state():
    def act(probe):
        [batch] = probe.batches(1)
        first = probe.step(batch, backward=True)
        others = [probe.step(batch, mode=m).loss for m in ("live", "eval", "silent", "live")]
        seeded = [probe.step(batch, seed=s).loss for s in (1, 2, 1)]
        return first.loss, others, seeded, probe.module.count

    first, (live, evaluated, silent, again), (one, two, one_again), count = probed(Noisy(), act)
    assert torch.equal(first, live)
    assert torch.equal(first, again)
    assert torch.equal(one, one_again)
    assert not torch.equal(one, two)
    assert len({float(loss) for loss in (live, evaluated, silent)}) == 3
    assert count == 0


def test_a_silent_step_is_the_loss_without_dropout():
    module = Noisy()
    expected = module.eval().loss  # of the weights before the fit
    module.train()

    def act(probe):
        [batch] = probe.batches(1)
        silent = probe.step(batch, mode="silent").loss
        evaluated = probe.step(batch, mode="eval").loss
        probe.module.eval()
        by_hand = expected(batch.data).detach()
        probe.module.net[1].train()
        return silent, evaluated, by_hand, expected(batch.data).detach()

    silent, evaluated, by_hand, with_batch_statistics = probed(module, act)
    assert torch.equal(evaluated, by_hand)
    assert torch.equal(silent, with_batch_statistics)


def test_a_run_is_the_training_that_a_fit_would_do():
    def act(probe):
        return probe.run(5).losses

    class Losses(Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen.append(float(outputs["loss"]))

    losses = Losses()
    callback = Act(act)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(
        max_steps=5,
        accelerator="cpu",
        enable_model_summary=False,
        callbacks=[callback, losses],
        **quiet,
    )
    trainer.fit(Classifier(), loader(), loader(8))
    assert callback.result == pytest.approx(losses.seen, abs=0)


@pytest.mark.parametrize("cls", [Noisy, Manual])
def test_runs_start_alike_and_can_be_told_apart(cls):
    def freeze(probe):
        return lambda: [g.update(lr=0.0) for o in probe.box.optimizers for g in o.param_groups]

    def act(probe):
        batches = probe.batches(2)
        plain = probe.run(4)
        frozen = probe.run(4, prepare=freeze(probe))
        zeroed = probe.run(4, change=lambda data: [torch.zeros_like(data[0]), data[1]])
        fixed = probe.run(60, batches=batches, judged_by=batches)
        return plain, probe.run(4), frozen, zeroed, fixed

    plain, again, frozen, zeroed, fixed = probed(cls(), act)
    assert plain == again
    assert plain.before == frozen.before == frozen.after
    assert plain.after < plain.before
    assert zeroed.losses != plain.losses
    assert fixed.after < 0.8 * fixed.before
    assert not plain.error


def test_schedulers_go_by_steps_unless_told_otherwise():
    def scheduler(optimizer):
        made = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 2))
        return {"scheduler": made, "interval": "step"}

    def act(probe):
        return probe.run(6).losses, probe.run(6, schedules=False).losses

    still = [next(iter(loader()))] * 6
    data = torch.utils.data.DataLoader(still, batch_size=None)
    module = Classifier(scheduler=scheduler)
    module.configure_optimizers = lambda: {
        "optimizer": (made := torch.optim.SGD(module.parameters(), lr=0.1)),
        "lr_scheduler": scheduler(made),
    }
    with_them, without = probed(module, act, data)
    assert with_them[:3] == without[:3]
    assert len(set(with_them[2:])) == 1
    assert len(set(without)) == 6


def test_batches_are_read_once_for_all_checks_of_a_fit():
    class Counting(torch.utils.data.Dataset):
        reads = 0

        def __len__(self):
            return 12

        def __getitem__(self, index):
            type(self).reads += 1
            return torch.full((6,), float(index)), index % 3

    counts = []

    class Reads(Callback):
        def on_train_start(self, trainer, pl_module):
            for asked in (2, 2, 1):
                with Probe(trainer, pl_module) as probe:
                    before = Counting.reads
                    assert len(probe.batches(asked)) == asked
                    counts.append(Counting.reads - before)

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", enable_model_summary=False, callbacks=[Reads()], **quiet
    )
    trainer.fit(Classifier(), torch.utils.data.DataLoader(Counting(), 4), loader(8))
    assert counts[0] >= 8
    assert counts[1:] == [0, 0]


def test_an_error_of_the_program_tells_the_losses_it_had_called():
    class Raising(Classifier):
        def loss(self, batch):
            super().loss(batch)
            raise ZeroDivisionError("of my own")

    def act(probe):
        [batch] = probe.batches(1)
        with pytest.raises(
            StepError, match="training_step raised ZeroDivisionError: of my own"
        ) as e:
            probe.step(batch)
        return [call.name for call in e.value.calls]

    module = Raising()
    module.validation_step = None
    callback = Act(act)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[callback], **quiet)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, loader())
    assert callback.result == ["cross_entropy"]


def test_validation_is_always_the_same():
    one, other = probed(
        Noisy(), lambda probe: [probe.validate(num_batches=2)["val_loss"] for _ in range(2)]
    )
    assert torch.equal(one, other)


def test_a_run_that_breaks_down_says_what_the_program_said():
    class Fragile(Classifier):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            if float(loss.detach()) > 1e3 or not torch.isfinite(loss):
                raise ArithmeticError("too much")
            return loss

    def act(probe):
        return probe.run(50)

    run = probed(Fragile(), lambda probe: probe.run(50, prepare=lambda: raise_rate(probe)))
    assert "ArithmeticError: too much" in run.error
    assert run.after != run.after
    assert not probed(Fragile(), act).error


def raise_rate(probe):
    for optimizer in probe.box.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 1e4


@pytest.mark.parametrize(("rate", "badly"), [(0.1, False), (1e-9, True)])
def test_a_program_that_does_not_learn_trains_badly(rate, badly):
    inputs = torch.randn(96, 6)
    data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long())
    module = Classifier(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate))
    found = probed(module, ordinary_run, torch.utils.data.DataLoader(data, 16))
    assert found.trains_badly is badly
    assert found.chance == pytest.approx(0.69, abs=0.05)
    assert len(found.run.losses) == 100


def test_with_several_optimizers_nobody_can_tell():
    found = probed(Manual(), ordinary_run)
    assert not found.judgeable
    assert not found.trains_badly
