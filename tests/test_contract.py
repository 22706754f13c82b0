"""What every public callback keeps. A new callback is one line in CALLBACKS."""

import copy
import csv
import dataclasses
import inspect
import json
import pickle
import re
import warnings

import lightning.pytorch.callbacks
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger

import lightning_tuning
from lightning_tuning import (
    ActivationMonitor,
    CheckpointEnsemble,
    CyclicalLR,
    EMAWeights,
    FilterMonitor,
    GradientCheck,
    InitialLossCheck,
    LossCurveDiagnosis,
    LRRangeTest,
    OneCycle,
    OverfitBatchCheck,
    UpdateRatioMonitor,
    WarmupDecay,
    WiringCheck,
)
from tests.processes import run_on_ranks
from tests.toys import Classifier, loader


@dataclasses.dataclass(frozen=True)
class Entry:
    """A callback; the settings the checks give it; settings it must refuse; whether it is passive.

    A passive one (a monitor, a probe) leaves weights, random numbers and logged values as they are.
    """

    cls: type[Callback]
    settings: dict
    refused: dict
    passive: bool

    def make(self):
        return self.cls(**copy.deepcopy(self.settings))


CALLBACKS = [
    Entry(
        ActivationMonitor,
        {"layers": ["Linear", "net.*"], "bins": 16, "every_n_steps": 1},
        {"layers": "some", "gradients": "yes", "bins": 2, "every_n_steps": 0},
        True,
    ),
    Entry(
        CheckpointEnsemble,
        {"k": 2, "dirpath": "ensemble", "judge": False},
        {"collect": "some", "k": 0, "monitor": "", "mode": "least", "combine": "votes"},
        True,
    ),
    Entry(
        LRRangeTest,
        {"num_steps": 20, "max_steps": 120, "apply": False},
        {"start_lr": 0.0, "end_lr": 1e-9, "num_steps": 2, "mode": "cubic", "suggestion": "best"}
        | {"metric_mode": "least", "weight_decays": [-1.0], "momenta": [1.0], "repeats": 0}
        | {"diverge_factor": 1.0, "max_steps": 5, "num_val_batches": 0},
        True,
    ),
    Entry(
        EMAWeights,
        {"decay": 0.9, "validate": "both"},
        {"decay": 1.0, "half_life": "3 weeks", "every_n_steps": 0, "update_after_step": -1}
        | {"buffers": "all", "device": "cuda", "validate": "none", "after_fit": "both"},
        False,
    ),
    Entry(
        FilterMonitor,
        {"layer": "net.0", "image_shape": [2, 3]},
        {"layer": "", "every_n_epochs": 0, "image_shape": [6]},
        True,
    ),
    Entry(
        GradientCheck,
        {"num_entries": 4, "burn_in_steps": 2},
        {"num_entries": 0, "eps": 0.0, "num_samples": 0, "burn_in_steps": -1, "on_fail": "ignore"},
        True,
    ),
    Entry(
        InitialLossCheck,
        {"num_batches": 3, "rtol": 0.4},
        {"expected": "ln 10", "num_batches": 0, "rtol": 0.0, "on_fail": "stop"},
        True,
    ),
    Entry(
        LossCurveDiagnosis,
        {"val_metric": "val_loss"},
        {"train_metric": "", "val_metric": "", "on_fail": "stop"},
        True,
    ),
    Entry(
        OverfitBatchCheck,
        {"num_samples": 8, "max_steps": 20},
        {"num_samples": 0, "max_steps": 0, "target_loss": "low", "lr": 0.0, "on_fail": "stop"},
        True,
    ),
    Entry(
        UpdateRatioMonitor,
        {"every_n_steps": 2, "include": "weight"},
        {"every_n_steps": 0, "include": "*weight"},
        True,
    ),
    Entry(
        WiringCheck,
        {"on_fail": "raise"},
        {"checks": ["no_such_check"], "skip": ["no_such_check"], "on_fail": "stop"},
        True,
    ),
    Entry(
        CyclicalLR,
        {"max_lr": 0.05, "cycle_steps": 4},
        {"max_lr": -1.0, "base_lr": -1.0, "mode": "square", "cycle_steps": 0, "cycle_epochs": -1.0}
        | {"gamma": 2.0, "pct_start": 1.0, "base_momentum": 1.0, "max_momentum": -1.0},
        False,
    ),
    Entry(
        WarmupDecay,
        {"max_lr": 0.05, "warmup_steps": 2},
        {"max_lr": -1.0, "warmup": "slow", "warmup_steps": -1, "warmup_fraction": 2.0}
        | {"warmup_factor": 2.0, "decay": "fast", "decay_fraction": 0.0, "final_factor": 2.0}
        | {"power": 0.0, "factor": 0.0, "milestones": [2.0], "cycles": 0, "cycle_mult": 0.0}
        | {"mode": "least", "patience": -1, "threshold": 1.0, "cooldown": -1}
        | {"start_momentum": 0.5, "total_steps": 0},
        False,
    ),
    Entry(OneCycle, {"max_lr": 0.05}, {"max_lr": -1.0, "pct_start": 2.0, "total_steps": 0}, False),
]

each = pytest.mark.parametrize("entry", CALLBACKS, ids=lambda entry: entry.cls.__name__)


def trainer_for(*callbacks, **settings):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    settings = {**quiet, "max_epochs": 2, "accelerator": "cpu", **settings}
    return Trainer(enable_model_summary=False, callbacks=list(callbacks), **settings)


def fit(trainer, module=None, **settings):
    seed_everything(3, verbose=False)
    trainer.fit(Classifier() if module is None else module, loader(), loader(8), **settings)
    return trainer


def parameters_of(cls):
    return list(inspect.signature(cls).parameters.values())


def test_every_public_callback_is_here():
    public = [getattr(lightning_tuning, name) for name in lightning_tuning.__all__]
    callbacks = {cls for cls in public if isinstance(cls, type) and issubclass(cls, Callback)}
    assert {entry.cls for entry in CALLBACKS} == callbacks


# --------------------------------------------------------------------------------- arguments


@each
def test_every_argument_is_documented_typed_and_by_name(entry):
    args = entry.cls.__doc__.split("Args:")[1].split("\n\n")[0]
    documented = re.findall(r"^        (\w+): ", args, re.MULTILINE)
    parameters = parameters_of(entry.cls)
    assert documented == [parameter.name for parameter in parameters]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[1:])
    assert all(p.annotation is not p.empty for p in parameters)


@each
def test_it_constructs_with_each_documented_argument(entry):
    entry.cls()
    for parameter in parameters_of(entry.cls):
        if parameter.default is not parameter.empty:
            made = entry.cls(**{**entry.settings, parameter.name: parameter.default})
            assert getattr(made, parameter.name) == parameter.default


@each
def test_a_wrong_argument_gives_one_clear_error(entry):
    with pytest.raises(TypeError, match="no_such_argument"):
        entry.cls(**entry.settings, no_such_argument=1)
    for name, value in entry.refused.items():
        with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}")):
            entry.cls(**{**entry.settings, name: value})


@each
def test_a_fit_overwrites_no_argument(entry):
    callback = entry.make()
    before = {p.name: getattr(callback, p.name, None) for p in parameters_of(entry.cls)}
    fit(trainer_for(callback))
    assert {p.name: getattr(callback, p.name, None) for p in parameters_of(entry.cls)} == before


@each
def test_its_name_is_its_own(entry):
    assert not hasattr(lightning.pytorch.callbacks, entry.cls.__name__)
    assert not hasattr(lightning.pytorch.callbacks, entry.make().state_key)
    assert {"log", "log_dict"}.isdisjoint(vars(entry.cls))


# ------------------------------------------------------------------------------------- fits


@each
def test_two_fits_in_a_row(entry):
    callback = entry.make()
    trainer = fit(trainer_for(callback))
    trainer.fit_loop.max_epochs = 3
    fit(trainer, trainer.lightning_module)
    assert trainer.global_step == 18
    first = fit(trainer_for(callback)).lightning_module.state_dict()
    fresh = fit(trainer_for(entry.make())).lightning_module.state_dict()
    assert all(torch.equal(first[name], fresh[name]) for name in first)


@each
def test_fast_dev_run(entry):
    assert fit(trainer_for(entry.make(), fast_dev_run=2)).global_step == 2


@each
def test_validate_test_and_predict_alone_are_left_alone(entry):
    callback, module = entry.make(), Classifier()
    before = copy.deepcopy(module.state_dict())
    trainer = trainer_for(callback)
    trainer.validate(module, loader(), verbose=False)
    trainer.test(module, loader(), verbose=False)
    trainer.predict(module, loader())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    fit(trainer, module)
    assert trainer.global_step == 12


class SaveAfter(Callback):
    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.batches:
            trainer.save_checkpoint("saved.ckpt")


@each
@pytest.mark.parametrize("batches", [3, 6])
def test_resume(entry, batches):
    whole = fit(trainer_for(entry.make(), SaveAfter(batches)))
    again = fit(trainer_for(entry.make()), ckpt_path="saved.ckpt")
    assert again.global_step == 12
    if batches == 6:  # a plain loader starts anew in the middle of an epoch
        expected = whole.lightning_module.state_dict()
        found = again.lightning_module.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    # and its checkpoints serve evaluation
    trainer_for(entry.make()).test(Classifier(), loader(), ckpt_path="saved.ckpt", verbose=False)


@each
def test_pickle_and_deepcopy_before_and_after_a_fit(entry):
    callback = entry.make()
    fit(trainer_for(callback))
    for original in (entry.make(), callback):
        for copied in (pickle.loads(pickle.dumps(original)), copy.deepcopy(original)):
            assert copied.state_dict() == original.state_dict()
            fit(trainer_for(copied))


@each
def test_its_findings_and_result_are_plain(entry):
    callback = entry.make()
    assert callback.findings == ()
    fit(trainer_for(callback))
    assert isinstance(callback.findings, tuple)
    json.dumps([finding.to_dict() for finding in callback.findings])
    if getattr(callback, "result", None) is not None:
        json.loads(callback.result.to_json())
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(callback.result, dataclasses.fields(callback.result)[0].name, None)


# --------------------------------------------------------------------------------- passive ones


LOGGED = ("epoch", "step", "train_loss", "val_loss")


def trace(*callbacks):
    """Return all that a fit leaves: weights, random numbers, and what the program itself logs."""
    trainer = fit(trainer_for(*callbacks, logger=CSVLogger(".", "run"), log_every_n_steps=1))
    with open(f"{trainer.logger.log_dir}/metrics.csv") as file:
        rows = [{name: row[name] for name in LOGGED} for row in csv.DictReader(file)]
    rows = [row for row in rows if row["train_loss"] or row["val_loss"]]
    assert len(rows) == 14
    return trainer.lightning_module.state_dict(), torch.get_rng_state(), rows


@pytest.mark.parametrize(
    "entry", [e for e in CALLBACKS if e.passive], ids=lambda entry: entry.cls.__name__
)
def test_a_passive_one_changes_nothing(entry):
    weights, random, rows = trace()
    with_weights, with_random, with_rows = trace(entry.make())
    assert all(torch.equal(weights[name], with_weights[name]) for name in weights)
    assert torch.equal(random, with_random)
    assert rows == with_rows


# ----------------------------------------------------------------------------- the command line


class Plain(Classifier):
    """What LightningCLI can build without arguments."""

    def __init__(self):
        super().__init__()


def command_line(*args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse and Lightning talk about each other
        return LightningCLI(Plain, args=list(args), run=False, save_config_callback=None)


QUIET = [
    "--trainer.logger=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
]


def assert_made_by(cli, entry):
    [callback] = [c for c in cli.trainer.callbacks if type(c) is entry.cls]
    assert all(getattr(callback, name) == value for name, value in entry.settings.items())
    fit(cli.trainer, cli.model)
    assert cli.trainer.global_step == 6


@each
@pytest.mark.parametrize("module", ["lightning_tuning.", ""])
def test_the_command_line_takes_it(entry, module):
    values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in entry.settings.items()}
    settings = [f"--trainer.callbacks.{k}={v}" for k, v in values.items()]
    name = module + entry.cls.__name__
    assert_made_by(command_line(*QUIET, f"--trainer.callbacks+={name}", *settings), entry)


@each
def test_a_yaml_file_takes_it(entry, tmp_path):
    path = f"lightning_tuning.{entry.cls.__name__}"
    config = {"trainer": {"callbacks": [{"class_path": path, "init_args": entry.settings}]}}
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    assert_made_by(command_line(*QUIET, f"--config={file}"), entry)


# ---------------------------------------------------------------------------------- two processes


@each
@pytest.mark.processes
def test_two_processes(entry):
    def rank():
        callback = entry.make()
        trainer = fit(trainer_for(callback, strategy="ddp", devices=2))
        weights = {k: v.numpy() for k, v in trainer.lightning_module.state_dict().items()}
        told = [finding.to_dict() for finding in callback.findings]
        return trainer.global_step, weights, told

    (steps, weights, told), (_, others, other_told) = run_on_ranks(rank)
    assert steps == 6
    assert all((weights[name] == others[name]).all() for name in weights)
    assert told == other_told


@pytest.mark.processes
def test_a_rank_that_raises_is_heard():
    import os

    def rank():
        if os.environ["LOCAL_RANK"] == "1":
            raise RuntimeError("broken here")
        return 0

    with pytest.raises(AssertionError, match=r"(?s)rank 1.*broken here"):
        run_on_ranks(rank)
