"""What a probe measures, and what it refuses to measure."""

import io
import itertools
import warnings

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_tuning._trainer.errors import CannotProbeError
from tests._trainer.probing import Probe, assert_same, run_fit
from tests._trainer.programs import PROGRAMS, Manual, Net, Points, Stream, data, loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning"),
    pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning"),
    pytest.mark.filterwarnings(
        "ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps:UserWarning"
    ),
]


def losses_of(box, num_steps):
    losses = []
    box.run(num_steps, after_step=lambda _, loss: losses.append(loss.item()))
    return losses


def probe_result(program, folder, act, **settings):
    probe = Probe(act)
    run_fit(program, folder, probe, max_steps=1, limit_val_batches=1, **settings)
    return probe.result


def seen_by(box, order, num_steps=5):
    box.rewind(order=order)
    start = len(box.module.seen)
    losses_of(box, num_steps)
    return box.module.seen[start:]


REPEATABLE = [
    *("plain", "two_workers_random", "random_from_python_and_numpy", "random_from_data_sets_own"),
    *("loader_generator", "sampler_with_state", "iterable", "manual", "fp16", "lbfgs", "gan"),
    *("dict_of_loaders", "data_module", "attributes", "two_persistent_workers_random"),
]


@pytest.mark.parametrize("name", REPEATABLE)
@pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`:UserWarning")
def test_rewind_repeats(name, tmp_path):
    def act(box):
        first = losses_of(box, 7)
        box.rewind()
        again = losses_of(box, 4) + losses_of(box, 3)
        box.rewind(order=2)
        other = losses_of(box, 7)
        box.rewind(order=2)
        assert first == again
        assert other == losses_of(box, 7)
        return len({*first, *other}) > 8 or name == "iterable"

    assert probe_result(PROGRAMS[name], tmp_path, act)


@pytest.mark.parametrize("name", ["plain", "loader_generator", "sampler_with_state"])
def test_another_order_is_another_order(name, tmp_path):
    def act(box):
        return [seen_by(box, order) for order in (0, 1, 1, 2, 0)]

    zero, one, one_again, two, zero_again = probe_result(PROGRAMS[name], tmp_path, act)
    assert zero == zero_again
    assert one == one_again
    assert len({str(ids) for ids in (zero, one, two)}) == 3
    for ids in (zero, one, two):
        assert name == "sampler_with_state" or sorted(itertools.chain(*ids)) == list(range(18))


def test_another_order_of_numpys_and_pythons_generators(tmp_path):
    import random

    import numpy as np

    class Shuffled(torch.utils.data.Sampler):
        def __iter__(self):
            order = np.random.permutation(18).tolist()  # noqa: NPY002
            random.shuffle(order)
            return iter(order)

        def __len__(self):
            return 18

    def program():
        return Net(), data(sampler=Shuffled(), shuffle=False), {}

    def act(box):
        return [seen_by(box, order) for order in (1, 1, 2)]

    one, again, two = probe_result(program, tmp_path, act)
    assert one == again != two


class Line(Net):
    """One weight, so that losses can be computed by hand."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Linear(1, 1, bias=False)
        self.layers.weight.data.fill_(2.0)

    def training_step(self, batch, batch_idx):
        return (self.layers(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    validation_step = None


def by_hand(inputs, batch_size, accumulate, num_steps):
    """Losses of plain SGD on w * x = 0, from w = 2 with rate 0.1; passes start anew."""
    weight, losses = 2.0, []
    while len(losses) < num_steps:
        batches = inputs.split(batch_size)
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]
            losses.append(sum((weight * x).square().mean().item() for x in window) / len(window))
            gradient = sum((2 * weight * x * x).mean().item() for x in window) / accumulate
            weight -= 0.1 * gradient
    return losses[:num_steps]


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_losses_and_steps_equal_those_by_hand(accumulate, tmp_path):
    """5 batches a pass, so a pass ends within a window; the last window is a short one."""
    inputs = torch.arange(1.0, 11.0).unsqueeze(1) / 10

    def program():
        train = DataLoader(TensorDataset(inputs, torch.zeros(10, 1)), 2)
        module = Line()
        module.steps = 0
        module.on_before_optimizer_step = lambda _: setattr(module, "steps", module.steps + 1)
        return module, {"train_dataloaders": train}, {"accumulate_grad_batches": accumulate}

    def act(box):
        return losses_of(box, 9), box.module.steps, box.trainer.global_step

    losses, steps, global_step = probe_result(program, tmp_path, act)
    assert losses == pytest.approx(by_hand(inputs, 2, accumulate, 9))
    assert steps == global_step == 9


def test_losses_of_manual_optimization_equal_those_by_hand(tmp_path):
    inputs = torch.arange(1.0, 11.0).unsqueeze(1) / 10

    class ByHand(Line):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx) / 2)
            if batch_idx % 2:
                self.optimizers().step()
                self.optimizers().zero_grad()

    def program():
        # 10 batches a pass: a window never goes over a pass's end
        train = DataLoader(TensorDataset(inputs, torch.zeros(10, 1)), 1)
        return ByHand(), {"train_dataloaders": train}, {}

    losses = probe_result(program, tmp_path, lambda box: losses_of(box, 7))
    # what was sent backward was divided by two
    assert losses == pytest.approx([loss / 2 for loss in by_hand(inputs, 1, 2, 7)])


def test_fp16_losses_are_unscaled(tmp_path):
    def act(box):
        recorded = []
        box.run(3, after_step=lambda _, loss: recorded.append(loss.item()))
        return recorded

    losses = probe_result(PROGRAMS["manual_fp16"], tmp_path, act)
    assert max(losses) < 20


def test_run_ends_when_told_and_calls_before_each_step(tmp_path):
    def act(box):
        calls = []
        box.run(
            9,
            before_step=lambda step: calls.append(("before", step)),
            after_step=lambda step, _: calls.append(("after", step)) or step == 1,
        )
        return calls

    calls = probe_result(PROGRAMS["plain"], tmp_path, act)
    assert calls == [("before", 0), ("after", 0), ("before", 1), ("after", 1)]


def test_evaluate_reads_the_same_batches_each_time(tmp_path):
    def act(box):
        first = box.evaluate(num_batches=2)
        again = box.evaluate(num_batches=2)
        losses_of(box, 2)
        trained = box.evaluate(num_batches=2)
        box.rewind(order=1)
        rewound = box.evaluate(num_batches=2)
        assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in again.items()}
        assert first["val_loss"] == rewound["val_loss"]
        assert first["val_loss"] != trained["val_loss"]
        return set(first)

    for name in ("plain", "changes_validation_batches"):
        assert probe_result(PROGRAMS[name], tmp_path / name, act) == {"val_loss", "val_mae"}


def test_evaluate_does_not_change_the_steps_that_follow(tmp_path):
    """The first reading of the validation data draws from the data set's own generator."""

    def program():
        points = Points(18, "own")
        loaders = (DataLoader(points, 4), DataLoader(points, 4))
        return Net(), dict(zip(("train_dataloaders", "val_dataloaders"), loaders, strict=True)), {}

    def act(box):
        without = losses_of(box, 4)
        box.rewind()
        box.evaluate(num_batches=2)
        return without == losses_of(box, 4)

    assert probe_result(program, tmp_path, act)


def test_evaluate_without_validation_data_is_refused(tmp_path):
    def act(box):
        losses_of(box, 2)
        with pytest.raises(CannotProbeError, match="no validation data"):
            box.evaluate(num_batches=1)
        return True

    assert_same(PROGRAMS["no_validation"], tmp_path, Probe(act))


def test_optimizer_state_that_did_not_exist_is_dropped(tmp_path):
    def act(box):
        losses_of(box, 2)
        assert box.optimizers[0].state
        box.rewind()
        return len(box.optimizers[0].state)

    assert probe_result(PROGRAMS["plain"], tmp_path, act) == 0


def test_callbacks_and_loggers_see_nothing(tmp_path):
    def act(box):
        losses_of(box, 3)
        box.evaluate(num_batches=1)
        return [type(c).__name__ for c in box.trainer.callbacks]

    def program():
        module, fit, _ = PROGRAMS["plain"]()
        return module, fit, {"logger": TensorBoardLogger(tmp_path / "board")}

    assert probe_result(program, tmp_path, act) == ["LossRecorder"]
    written = [path for path in (tmp_path / "board").rglob("*") if path.is_file()]
    assert len([path for path in written if "events" in path.name]) == 1


def test_schedulers_warn_as_without_a_probe(tmp_path):
    """torch warns when a scheduler steps before its optimizer; a probe's steps don't count."""

    class Wrong(Manual):
        def training_step(self, batch, batch_idx):
            if batch_idx == 0 and self.trainer.current_epoch == 0:
                self.lr_schedulers().step()
            return super().training_step(batch, batch_idx)

    def warned(folder, *callbacks):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run_fit(lambda: (Wrong(), data(), {}), folder, *callbacks)
        return [w for w in caught if "lr_scheduler.step()" in str(w.message)]

    assert warned(tmp_path / "plain")
    assert warned(tmp_path / "probed", Probe(lambda box: None))


def test_time_of_the_last_validation_is_put_back(tmp_path):
    def act(box):
        # Lightning 2.5 does not know it yet
        before = vars(box.trainer).get("_last_val_time")
        box.evaluate(num_batches=1)
        box.rewind()
        return vars(box.trainer).get("_last_val_time") == before

    assert probe_result(PROGRAMS["plain"], tmp_path, act)


# ---------------------------------------------------------------------------------- refusals


class OneShot(IterableDataset):
    def __init__(self, source):
        self.source = source

    def __iter__(self):
        return iter(self.source)


def samples():
    return ((i, torch.ones(4), torch.ones(1)) for i in range(40))


def batches():
    return [torch.utils.data.default_collate([s, s]) for s in samples()]


class Reads(IterableDataset):
    def __init__(self):
        self.file = io.StringIO("1\n" * 40)

    def __iter__(self):
        return ((i, torch.ones(4), torch.ones(1)) for i, _ in enumerate(self.file))


class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.more = nn.LazyLinear(2)


class TakesTheIterator(Net):
    def training_step(self, dataloader_iter):
        batch, _, _ = next(dataloader_iter)
        return self.loss(batch)


class HoldsAnIterator(Net):
    def __init__(self, iterator):
        super().__init__()
        self.numbers = {"held": [iterator]}


class LazyForFit(Lazy):
    def configure_optimizers(self):
        return torch.optim.SGD(self.layers.parameters(), lr=0.1)


REFUSED = {
    "generator as loader": (Net, lambda: iter(batches()), "read only once"),
    "generator in a data set": (
        Net,
        lambda: DataLoader(OneShot(samples()), 4),
        "'source'.*OneShot.*read only once",
    ),
    "generator in a data set in a data set": (
        Net,
        lambda: DataLoader(OneShot(OneShot(samples())), 4),
        "'source'.*OneShot.*read only once",
    ),
    "file in a data set": (Net, lambda: DataLoader(Reads(), 4), "'file'.*only once"),
    "sampler": (
        Net,
        lambda: DataLoader(Points(), 2, sampler=iter(range(18))),
        "sampler.*only once",
    ),
    "batch sampler": (
        Net,
        lambda: DataLoader(Points(), batch_sampler=iter([[0, 1], [2, 3], [4, 5], [6, 7]])),
        "sampler.*only once",
    ),
    "lazy parameters": (LazyForFit, loader, "more.weight has no shape yet"),
    "dataloader_iter": (TakesTheIterator, loader, "dataloader_iter"),
    "count in the module": (lambda: HoldsAnIterator(itertools.count()), loader, "count"),
    "iterator over another loader": (
        lambda: HoldsAnIterator(iter(loader())),
        loader,
        "DataLoaderIter.*only once",
    ),
    "generator in the module": (lambda: HoldsAnIterator(samples()), loader, "generator"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor:UserWarning")
@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument:UserWarning")
def test_refusal_says_why_and_changes_nothing(name, tmp_path):
    make, make_loader, reason = REFUSED[name]

    def program():
        return make(), {"train_dataloaders": make_loader()}, {"max_epochs": 1}

    probe = Probe(expected=CannotProbeError)
    assert_same(program, tmp_path, probe)
    assert probe.result is None
    assert probe.caught is not None
    with pytest.raises(CannotProbeError, match=reason):
        raise probe.caught


def test_iterators_that_can_be_put_back_are_not_refused(tmp_path):
    """Workers have copies of a data set's iterator; a log file is no iterator over data."""
    log = io.StringIO()

    class Logs(Net):
        def __init__(self):
            super().__init__()
            self.file = log
            self.own = Stream()

    def program():
        return Logs(), data(), {}

    assert_same(program, tmp_path)


def test_programs_that_never_step_are_refused(tmp_path):
    class Never(Manual):
        def training_step(self, batch, batch_idx):
            self.manual_backward(self.loss(batch))

    class NoLoss(Net):
        def training_step(self, batch, batch_idx):
            return None

    for i, (module, reason) in enumerate([(Never, "optimizer step"), (NoLoss, "a loss")]):
        probe = Probe(lambda box: losses_of(box, 1), expected=CannotProbeError)
        assert_same(lambda module=module: (module(), data(), {}), tmp_path / str(i), probe)
        assert reason in str(probe.caught)


def test_empty_data_are_refused(tmp_path):
    class Empty(IterableDataset):
        passes = 0

        def __iter__(self):
            self.passes += 1
            yield from () if self.passes > 1 else list(samples())

    probe = Probe(lambda box: losses_of(box, 1), expected=CannotProbeError)
    run_fit(lambda: (Net(), {"train_dataloaders": DataLoader(Empty(), 4)}, {}), tmp_path, probe)
    assert "no batch" in str(probe.caught)
