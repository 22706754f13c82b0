"""CheckpointEnsemble in fits: what it keeps, what it says, and that the fit stays as it is."""

import json
import pathlib
import types

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_tuning import (
    CheckpointEnsemble,
    CyclicalLR,
    EMAWeights,
    EnsembleModule,
    WarmupDecay,
)
from lightning_tuning._trainer.ensembles.member_files import refuse_shards
from tests.callbacks.schedule_fits import SaveAfter, fit, same_batches, weights
from tests.ensembles.test_ensemble_module import batches, validated
from tests.processes import run_on_ranks
from tests.toys import Classifier, Manual, loader


class Told(Classifier):
    """Validates to given figures beside the true ones."""

    def __init__(self, figures=()):
        super().__init__()
        self.figures = figures

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        if self.figures:
            self.log("told", self.figures[self.current_epoch])


def files():
    return sorted(path.name for path in pathlib.Path("ensemble").iterdir())


WITH_VALIDATION = {"limit_val_batches": None, "max_epochs": 6}


@pytest.mark.parametrize(
    ("mode", "kept"),
    [("min", [(3, 0.1), (1, 0.2), (5, 0.4)]), ("max", [(0, 0.9), (2, 0.8), (4, 0.5)])],
)
def test_the_best_are_kept_and_no_more(mode, kept):
    callback = CheckpointEnsemble(k=3, monitor="told", mode=mode, dirpath="ensemble")
    fit(Told([0.9, 0.2, 0.8, 0.1, 0.5, 0.4]), callback, **WITH_VALIDATION)
    assert [(m.epoch, m.score) for m in callback.members] == [
        (e, pytest.approx(s)) for e, s in kept
    ]
    assert len(files()) == 3
    assert all(pathlib.Path(path).exists() for path in callback.paths)


def test_a_figure_that_is_no_number_is_not_kept():
    callback = CheckpointEnsemble(k=2, monitor="told", dirpath="ensemble")
    fit(Told([0.9, float("nan"), 0.8, 0.7, 0.6, 0.5]), callback, **WITH_VALIDATION)
    assert [m.epoch for m in callback.members] == [5, 4]


def test_the_last_are_kept():
    callback = CheckpointEnsemble(collect="last", k=2, dirpath="ensemble")
    trainer = fit(Told(), callback, **WITH_VALIDATION)
    assert [m.step for m in callback.members] == [36, 30]
    saved = torch.load(callback.paths[0], weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in weights(trainer).items())


@pytest.mark.parametrize("module", [Told, lambda: Manual(every=2)])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("schedule", "ends"),
    [
        (lambda: CyclicalLR(0.1, cycle_steps=10), [30, 20, 10]),
        (lambda: WarmupDecay(0.1, warmup_steps=0, cycles=4), [36, 27, 18]),
    ],
)
def test_the_ends_of_cycles_are_kept(module, first, schedule, ends):
    callback = CheckpointEnsemble(collect="cycles", k=3, dirpath="ensemble", judge=False)
    order = (callback, schedule()) if first else (schedule(), callback)
    fit(module(), *order, max_epochs=6)
    steps = [m.step for m in callback.members]
    # under manual optimization Lightning counts the steps of both optimizers
    assert len(steps) == 3
    if module is Told:
        assert steps == ends


def test_weights_that_were_validated_are_kept():
    class Seen(Callback):
        def __init__(self):
            self.weights = {}

        def on_validation_epoch_end(self, trainer, pl_module):
            state = pl_module.state_dict()
            self.weights[trainer.current_epoch] = {k: v.clone() for k, v in state.items()}

    seen, callback = Seen(), CheckpointEnsemble(k=9, dirpath="ensemble", judge=False)
    fit(Told(), EMAWeights(0.5), callback, seen, **WITH_VALIDATION)
    for member in callback.members:
        saved = torch.load(member.path, weights_only=True)["state_dict"]
        assert all(torch.equal(saved[k], v) for k, v in seen.weights[member.epoch].items())


@pytest.mark.parametrize("judge", [True, False])
@pytest.mark.parametrize("collect", ["best", "last"])
def test_the_fit_is_the_same_without_it(collect, judge):
    def run(*callbacks):
        seed_everything(1, verbose=False)
        trainer = fit(Told(), *callbacks, data=loader(shuffle=True), **WITH_VALIDATION)
        return weights(trainer), trainer.callback_metrics, torch.get_rng_state()

    plain = run()
    watched = run(CheckpointEnsemble(collect=collect, k=3, dirpath="ensemble", judge=judge))
    assert all(torch.equal(plain[0][name], watched[0][name]) for name in plain[0])
    assert plain[1] == watched[1]
    assert torch.equal(plain[2], watched[2])


def test_what_it_says_is_what_the_ensemble_module_has():
    callback = CheckpointEnsemble(collect="last", k=3, dirpath="ensemble")
    trainer = fit(Told(), callback, logger=CSVLogger("."), **WITH_VALIDATION)
    result, data = callback.result, loader(4)
    for size in (1, 2, 3):
        paths = [member.path for member in result.members[:size]]
        found = validated(EnsembleModule(Told(), paths), data)["val_loss"]
        assert result.together[size - 1] == pytest.approx(found, rel=1e-6)
    alone = [validated(EnsembleModule(Told(), [m.path]), data)["val_loss"] for m in result.members]
    assert result.alone == pytest.approx(alone, rel=1e-6)
    assert list(result.alone) == sorted(result.alone)
    assert result.gain == pytest.approx(result.alone[0] - result.together[-1])
    assert "An ensemble of 3 has val_loss" in callback.findings[0].message
    folder = pathlib.Path(trainer.log_dir)
    assert json.loads((folder / "checkpoint_ensemble.json").read_text())["gain"] == result.gain
    assert (folder / "checkpoint_ensemble.png").exists()


def test_members_lie_in_the_runs_folder():
    callback = CheckpointEnsemble(k=1)
    trainer = fit(Told(), callback, logger=CSVLogger("."), **WITH_VALIDATION)
    assert pathlib.Path(callback.paths[0]).parent == pathlib.Path(
        trainer.log_dir, "ensemble", "best"
    )
    [finding] = callback.findings
    assert (finding.verdict, finding.message) == (
        "skip",
        "The ensemble was not judged: there is 1 member.",
    )


class Values(LightningModule):
    """A regression whose members lie about the truth."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 1)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch[0])[:, 0], batch[1].float())

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_regression():
    callback = CheckpointEnsemble(collect="last", k=4, combine="mean", dirpath="ensemble")
    fit(Values(), callback, **WITH_VALIDATION)
    x, y = batches(loader(4))
    module, outputs = Values(), []
    for path in callback.paths:
        module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        outputs.append(module(x)[:, 0])
    expected = nn.functional.mse_loss(torch.stack(outputs).mean(0), y.float()).item()
    assert callback.result.together[-1] == pytest.approx(expected, rel=1e-5)
    assert callback.result.disagreement > 0


def test_a_regression_that_is_not_told_to_be_one_is_not_judged():
    callback = CheckpointEnsemble(collect="last", k=3, dirpath="ensemble")
    fit(Values(), callback, **WITH_VALIDATION)
    assert callback.result is None
    assert "combine='mean'" in callback.findings[0].message


def test_members_of_a_fit_that_still_improves_are_told():
    class Slow(Told):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.3)

        def loss(self, batch):
            return super().loss((batch[0], batch[0][:, :3].argmax(1)))

    callback = CheckpointEnsemble(collect="last", k=6, dirpath="ensemble")
    fit(Slow(), callback, data=loader(400), **WITH_VALIDATION)
    [told] = callback.findings
    assert told.code == "ensemble_no_gain"
    assert "the fit was still improving" in told.hint


def test_what_cannot_be_judged_says_why():
    class Apart(Told):
        def validation_step(self, batch, batch_idx):
            outputs = self.net[2](self.net[1](self.net[0](batch[0])))
            self.log("val_loss", nn.functional.cross_entropy(outputs, batch[1]))

    callback = CheckpointEnsemble(dirpath="ensemble")
    fit(Apart(), callback, **WITH_VALIDATION)
    assert "output_of" in callback.findings[0].message

    class Raises(Told):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            if "forward" in vars(self):
                raise RuntimeError("of my own")

    late = CheckpointEnsemble(dirpath="ensemble")
    fit(Raises(), late, **WITH_VALIDATION)
    assert "RuntimeError: of my own" in late.findings[0].message
    blind = CheckpointEnsemble(collect="last", dirpath="ensemble")
    fit(Told(), blind)
    assert "no validation data" in blind.findings[0].message


@pytest.mark.parametrize("step", [14, 20])
@pytest.mark.parametrize("collect", ["best", "last", "cycles"])
def test_it_is_resumed(collect, step):
    def callbacks(folder):
        schedule = [CyclicalLR(0.1, cycle_steps=6)] if collect == "cycles" else []
        return [*schedule, CheckpointEnsemble(collect=collect, k=3, dirpath=folder, judge=False)]

    settings = {"data": same_batches(), **WITH_VALIDATION}
    whole = callbacks("whole")
    fit(Told(), *whole, SaveAfter(step), **settings)
    # a fit that was cut off there has written the same, and no more
    half = callbacks("half")
    fit(Told(), *half, max_steps=step, **{**settings, "max_epochs": 6})
    fit(Told(), SaveAfter(step), *callbacks("half"), max_steps=step, **settings)
    resumed = callbacks("half")
    fit(Told(), *resumed, ckpt_path="saved.ckpt", **settings)
    one, other = whole[-1].members, resumed[-1].members
    assert [(m.step, m.score) for m in one] == [(m.step, m.score) for m in other]
    for mine, theirs in zip(one, other, strict=True):
        a, b = (torch.load(m.path, weights_only=True)["state_dict"] for m in (mine, theirs))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_an_exception_leaves_members_and_no_parts():
    class Breaks(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 20:
                raise RuntimeError("stop")

    callback = CheckpointEnsemble(k=2, dirpath="ensemble")
    with pytest.raises(RuntimeError, match="stop"):
        fit(Told(), callback, Breaks(), **WITH_VALIDATION)
    assert len(callback.paths) == 2
    assert all(name.endswith(".ckpt") for name in files())
    EnsembleModule(Told(), callback.paths)


def test_two_of_them_in_one_trainer():
    two = [CheckpointEnsemble(collect=c, k=2, judge=False) for c in ("best", "last")]
    fit(Told([0.1] * 3 + [0.2] * 3), *two, SaveAfter(30), logger=CSVLogger("."), **WITH_VALIDATION)
    assert len(torch.load("saved.ckpt")["callbacks"]) == 2
    assert not {*two[0].paths} & {*two[1].paths}
    assert all(pathlib.Path(path).exists() for callback in two for path in callback.paths)


def test_what_it_refuses():
    with pytest.raises(MisconfigurationException, match="needs a schedule with cycles"):
        fit(Told(), CheckpointEnsemble(collect="cycles"))
    with pytest.raises(MisconfigurationException, match="no metric 'val_acc'"):
        fit(Told(), CheckpointEnsemble(monitor="val_acc"), **WITH_VALIDATION)
    with pytest.raises(MisconfigurationException, match="ModelParallelStrategy shards them"):
        refuse_shards(types.SimpleNamespace(strategy=ModelParallelStrategy()), "X")


def _on_rank():
    callback = CheckpointEnsemble(k=2, dirpath="ensemble")
    settings = {"strategy": "ddp", "devices": 2, **WITH_VALIDATION, "max_epochs": 3}
    fit(Told(), callback, data=loader(shuffle=True), **settings)
    return callback.paths, callback.result.alone, callback.result.together


def test_ranks_agree():
    one, other = run_on_ranks(_on_rank)
    assert one == other
    assert len(files()) == 2
