"""The range test inside and before a fit."""

import copy
import json
import math

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import LRRangeResult, LRRangeTest, OneCycle, lr_range_test
from tests.processes import run_on_ranks
from tests.toys import Classifier, Manual, OwnScheduler, Rates, WithOwnScheduler


def sgd(lr=0.123, **settings):
    return lambda params: torch.optim.SGD(params, lr=lr, momentum=0.9, **settings)


def learnable(batch_size=16, samples=320, *, shuffle=True):
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(samples, 6, generator=generator)
    labels = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
    return DataLoader(TensorDataset(inputs, labels), batch_size, shuffle=shuffle)


def held_out():
    return learnable(64, shuffle=False)


def trainer_for(*callbacks, **settings):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    settings = {
        **quiet,
        "max_epochs": 1,
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
        **settings,
    }
    return Trainer(enable_model_summary=False, callbacks=list(callbacks), **settings)


def fit(module, *callbacks, data=None, **settings):
    torch.manual_seed(3)
    trainer = trainer_for(*callbacks, **settings)
    trainer.fit(module, learnable() if data is None else data, held_out())
    return trainer


class Calls(Classifier):
    """Counts what the range test runs; in a list that nobody restores."""

    def __init__(self, log, **settings):
        super().__init__(**settings)
        self.log_of_calls = log.append

    def training_step(self, batch, batch_idx):
        self.log_of_calls(("train", float(self.optimizers().param_groups[0]["lr"])))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.log_of_calls(("val", len(batch[0])))
        return super().validation_step(batch, batch_idx)


# ------------------------------------------------------------------------------ what it measures


@pytest.mark.parametrize("suggestion", ["auto", "valley", "steepest", "minimum", "slide"])
def test_it_finds_a_rate_at_which_the_module_learns(suggestion):
    test = LRRangeTest(suggestion=suggestion)
    trainer = fit(Classifier(optimizer=sgd()), test, max_epochs=3)
    result = test.result
    assert 1e-4 < result.suggestion < 3
    assert result.suggested_by == suggestion
    assert result.suggestion == result.suggestions[suggestion]
    low, high = result.lr_range
    assert low <= result.suggestion <= high
    assert result.num_steps <= 300
    assert [f.code for f in test.findings] == ["lr_suggested"]
    if suggestion == "auto":
        assert trainer.callback_metrics["val_loss"] < 0.6


def test_the_sweep_has_exact_rates_and_no_double_first_step():
    calls = []
    fit(
        Calls(calls, optimizer=sgd()),
        LRRangeTest(1e-5, end_lr=1e-2, num_steps=31, suggestion="valley", apply=False),
        limit_train_batches=1,
    )
    seen = [rate for kind, rate in calls if kind == "train"][:31]
    expected = [1e-5 * 1000 ** (k / 30) for k in range(31)]
    assert seen == pytest.approx(expected, rel=1e-12)


def test_it_counts_optimizer_steps_under_accumulation():
    calls = []
    test = LRRangeTest(num_steps=12, end_lr=1e-3, suggestion="valley", apply=False)
    fit(Calls(calls, optimizer=sgd()), test, accumulate_grad_batches=4, limit_train_batches=4)
    assert len(test.result.sweeps[0].rates) == 12
    rates = [rate for kind, rate in calls if kind == "train"]
    assert len(rates) == 12 * 4 + 4
    assert rates[0] == rates[3] != rates[4]


def test_a_short_loader_is_cycled():
    test = LRRangeTest(num_steps=50, suggestion="valley")
    fit(Classifier(optimizer=sgd()), test, data=learnable(samples=48))
    assert len(test.result.sweeps[0].rates) > 20


def test_the_loss_is_the_mean_of_the_accumulated_batches():
    """With one batch repeated, accumulation changes nothing."""

    def losses(accumulate):
        test = LRRangeTest(num_steps=20, suggestion="valley", apply=False)
        inputs, labels = learnable(samples=16).dataset.tensors
        same = TensorDataset(inputs.repeat(3, 1), labels.repeat(3))
        data = DataLoader(same, 16, shuffle=False)
        fit(Classifier(optimizer=sgd()), test, data=data, accumulate_grad_batches=accumulate)
        return test.result.sweeps[0].losses

    assert losses(3) == pytest.approx(losses(1), rel=1e-5)


@pytest.mark.parametrize("which", [None, "AdamW", 0])
def test_several_optimizers_under_manual_optimization(which):
    test = LRRangeTest(num_steps=40, suggestion="valley", optimizer=which)
    rates = Rates()
    fit(Manual(), test, rates)
    suggestion = test.result.suggestion
    expected = {
        None: [suggestion, suggestion / 10],
        "AdamW": [0.1, suggestion],
        0: [suggestion, 0.01],
    }
    assert rates.seen[0] == pytest.approx(expected[which])


class Opposed(Manual):
    """Two parts with a loss each, at odds with each other."""

    def training_step(self, batch, batch_idx):
        for sign, optimizer in zip((1, -1), self.optimizers(), strict=True):
            loss = sign * self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train_loss", loss)


def test_opposed_losses_are_left_alone_unless_one_is_named():
    test, rates = LRRangeTest(num_steps=40, suggestion="valley"), Rates()
    fit(Opposed(), test, rates)
    [finding] = test.findings
    assert (finding.code, finding.verdict) == ("lr_curve_not_measured", "skip")
    assert "optimizer=0" in finding.message
    assert test.result is None
    assert rates.seen[0] == [0.1, 0.01]
    named = LRRangeTest(num_steps=40, suggestion="valley", optimizer=0)
    fit(Opposed(), named)
    assert named.result is not None


def test_groups_keep_their_ratio():
    test, rates = LRRangeTest(suggestion="valley"), Rates()
    fit(Classifier(optimizer=sgd(), groups=(0.01, 0.1)), test, rates)
    assert rates.seen[0] == pytest.approx([test.result.suggestion / 10, test.result.suggestion])


def test_a_validation_metric_is_measured_at_each_rate():
    calls = []
    test = LRRangeTest(
        1e-4, num_steps=15, metric="val_loss", num_val_batches=2, suggestion="valley", apply=False
    )
    fit(Calls(calls, optimizer=sgd()), test, limit_train_batches=1, limit_val_batches=0.5)
    steps = len(test.result.sweeps[0].losses)
    assert [kind for kind, _ in calls][: 3 * steps] == ["train", "val", "val"] * steps
    assert test.result.metric == "val_loss"
    assert test.result.losses[0] != test.result.losses[-1]


def test_auto_works_on_a_validation_metric_to_maximise():
    class WithAccuracy(Classifier):
        def validation_step(self, batch, batch_idx):
            inputs, labels = batch
            self.log("val_acc", (self(inputs).argmax(1) == labels).float().mean())

    test = LRRangeTest(num_steps=50, metric="val_acc", metric_mode="max")
    fit(WithAccuracy(optimizer=sgd()), test)
    assert 1e-4 < test.result.suggestion < 5


def test_an_unknown_metric_is_named_with_the_choices():
    with pytest.raises(
        MisconfigurationException, match=r"metric='val_acc'.*'val_loss'.*train_loss"
    ):
        fit(Classifier(), LRRangeTest(metric="val_acc"))


def test_without_validation_data_a_validation_metric_is_skipped():
    test = LRRangeTest(metric="val_loss")
    fit(Classifier(), test, limit_val_batches=0)
    assert [(f.code, f.verdict) for f in test.findings] == [("lr_curve_not_measured", "skip")]
    assert "validation data" in test.findings[0].message


def test_one_sweep_for_each_weight_decay_and_momentum_and_order():
    test = LRRangeTest(
        num_steps=30,
        suggestion="valley",
        weight_decays=[0.0, 1e-2],
        momenta=[0.5, 0.9],
        repeats=2,
    )
    trainer = fit(Classifier(optimizer=sgd(weight_decay=0.3)), test)
    settings = [(s.weight_decay, s.momentum, s.order) for s in test.result.sweeps]
    assert settings == [(d, m, o) for d in (0.0, 1e-2) for m in (0.5, 0.9) for o in (0, 1)]
    assert test.result.weight_decay in (0.0, 1e-2)
    assert test.result.momentum in (0.5, 0.9)
    group = trainer.optimizers[0].param_groups[0]
    assert (group["weight_decay"], group["momentum"]) == (0.3, 0.9)


def test_repeats_see_other_orders_and_the_same_ones_each_time():
    def sweeps():
        test = LRRangeTest(num_steps=20, end_lr=1e-5, suggestion="valley", repeats=3)
        fit(Classifier(optimizer=sgd()), test)
        return [sweep.losses for sweep in test.result.sweeps]

    first = sweeps()
    assert len(set(first)) == 3
    assert sweeps() == first


def test_strong_weight_decay_is_judged_worse():
    test = LRRangeTest(suggestion="valley", weight_decays=[1e-4, 30.0])
    fit(Classifier(optimizer=sgd()), test)
    assert test.result.weight_decay == 1e-4


# ------------------------------------------------------------------------------ curves of no use


def finding_of(module, **settings):
    rates = Rates()
    test = LRRangeTest(**settings)
    fit(module, test, rates)
    assert test.result.suggestion is None
    assert rates.seen[0] == [0.123]
    [finding] = test.findings
    return finding


class NoGradient(Classifier):
    def loss(self, batch):
        return super().loss(batch).detach() + 0 * sum(p.sum() for p in self.parameters())


class NanLoss(Classifier):
    def loss(self, batch):
        return super().loss(batch) * math.nan


class BreaksAt(Classifier):
    """Its loss becomes infinite at the given step."""

    def on_train_start(self):
        self.steps = 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return super().training_step(batch, batch_idx) * (math.inf if self.steps > 4 else 1)


@pytest.mark.parametrize("suggestion", ["auto", "valley"])
def test_a_flat_curve_gives_no_suggestion(suggestion):
    finding = finding_of(NoGradient(optimizer=sgd()), suggestion=suggestion)
    assert (finding.code, finding.verdict) == ("lr_curve_flat", "skip")


@pytest.mark.parametrize("suggestion", ["auto", "valley"])
def test_a_loss_that_is_nan_at_once_fails(suggestion):
    finding = finding_of(NanLoss(optimizer=sgd()), suggestion=suggestion)
    assert (finding.code, finding.verdict) == ("non_finite", "fail")


@pytest.mark.parametrize("suggestion", ["auto", "valley"])
def test_too_few_points_give_no_suggestion(suggestion):
    finding = finding_of(BreaksAt(optimizer=sgd()), suggestion=suggestion)
    assert finding.code == "lr_curve_too_short"


class RaisesOnNan(Classifier):
    """As torch.distributions does when weights have become NaN."""

    def loss(self, batch):
        output = self(batch[0])
        if not output.isfinite().all():
            raise ValueError("expected finite values")
        return (output**2).exp().mean()


def test_an_error_that_divergence_causes_ends_the_sweep():
    test = LRRangeTest(suggestion="minimum")
    fit(RaisesOnNan(optimizer=sgd()), test, limit_train_batches=0.1)
    assert test.result.suggestion is not None
    assert len(test.result.sweeps[0].rates) < 100


class RaisesAt(Classifier):
    def __init__(self, error, **settings):
        super().__init__(**settings)
        self.error = error

    def training_step(self, batch, batch_idx):
        if batch_idx == 7:
            raise self.error
        return super().training_step(batch, batch_idx)


def test_any_other_error_is_the_persons_own_and_leaves_the_weights():
    module = RaisesAt(RuntimeError("mine"), optimizer=sgd())
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="mine"):
        fit(module, LRRangeTest())
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_ctrl_c_leaves_the_weights():
    module = RaisesAt(KeyboardInterrupt(), optimizer=sgd())
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(SystemExit):
        fit(module, LRRangeTest())
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


# ---------------------------------------------------------------------------- when it does not run


def test_it_skips_itself_on_resume_and_keeps_the_result(tmp_path):
    test = LRRangeTest(num_steps=30)
    trainer = fit(Classifier(optimizer=sgd()), test)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again, rates = LRRangeTest(num_steps=30), Rates()
    resumed = trainer_for(again, rates, max_epochs=2)
    resumed.fit(
        Classifier(optimizer=sgd()), learnable(), held_out(), ckpt_path=tmp_path / "last.ckpt"
    )
    assert [(f.code, f.verdict) for f in again.findings] == [("lr_curve_not_measured", "skip")]
    assert "step 20" in again.findings[0].message
    assert again.result == test.result
    assert rates.seen[0] == [test.result.suggestion]


def test_it_skips_itself_under_fast_dev_run():
    test, rates = LRRangeTest(), Rates()
    fit(Classifier(optimizer=sgd()), test, rates, fast_dev_run=True)
    assert "fast_dev_run" in test.findings[0].message
    assert test.result is None
    assert rates.seen == [[0.123]]


def test_data_that_can_be_read_only_once_are_left_alone():
    class Stream(torch.utils.data.IterableDataset):
        def __init__(self, data):
            self.data = iter(data)

        def __iter__(self):
            return self.data

    stream = DataLoader(Stream(learnable()), batch_size=None)
    test = LRRangeTest()
    trainer = fit(Classifier(optimizer=sgd()), test, data=stream)
    assert "only once" in test.findings[0].message
    assert trainer.global_step == 20


# ---------------------------------------------------------------------------------------- apply


class WithRate(Classifier):
    def __init__(self, lr=0.123):
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


def test_apply_sets_optimizer_and_module():
    test, rates, module = LRRangeTest(), Rates(), WithRate()
    fit(module, test, rates)
    assert {tuple(seen) for seen in rates.seen} == {(test.result.suggestion,)}
    assert module.hparams.lr == test.result.suggestion


def test_without_apply_nothing_is_set():
    test, rates, module = LRRangeTest(apply=False), Rates(), WithRate()
    fit(module, test, rates)
    assert {tuple(seen) for seen in rates.seen} == {(0.123,)}
    assert module.hparams.lr == 0.123


def test_a_scheduler_that_cannot_be_told_is_named_in_a_warning():
    test, rates = LRRangeTest(num_steps=30), Rates()
    with pytest.warns(UserWarning, match="OwnScheduler"):
        fit(WithOwnScheduler(optimizer=sgd(), scheduler=OwnScheduler), test, rates)
    assert [f.code for f in test.findings] == ["lr_suggested", "lr_not_applied"]
    assert rates.seen[0] == [test.result.suggestion]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("apply", [False, True])
def test_one_cycle_takes_the_suggestion(reverse, apply):
    test, cycle = LRRangeTest(num_steps=40, apply=apply), OneCycle()
    callbacks = [cycle, test] if reverse else [test, cycle]
    fit(Classifier(optimizer=sgd()), *callbacks)
    assert cycle.result.max_lr == (test.result.suggestion,)


@pytest.mark.parametrize("reverse", [False, True])
def test_one_cycle_leaves_the_optimizer_that_was_not_swept(reverse):
    test, cycle = LRRangeTest(num_steps=40, optimizer="AdamW"), OneCycle()
    fit(Manual(), *([cycle, test] if reverse else [test, cycle]))
    assert cycle.result.max_lr == (0.1, test.result.suggestion)


def test_two_tests_in_one_trainer(tmp_path):
    tests = [LRRangeTest(num_steps=30, suggestion="valley", optimizer=i) for i in (0, 1)]
    trainer = fit(Manual(), *tests, logger=CSVLogger(tmp_path))
    assert [test.result.optimizer for test in tests] == [0, 1]
    written = {path.name for path in (tmp_path / "lightning_logs" / "version_0").iterdir()}
    assert {"lr_range_test_0.json", "lr_range_test_1.json"} <= written
    assert trainer.global_step > 0


def test_a_scheduled_accumulation_is_measured():
    calls = []
    fit(
        Calls(calls, optimizer=sgd()),
        GradientAccumulationScheduler({0: 4}),
        LRRangeTest(num_steps=12, end_lr=1e-3, suggestion="valley", apply=False),
        limit_train_batches=4,
    )
    assert [kind for kind, _ in calls].count("train") == 12 * 4 + 4


class SetsItsOwnRate(Classifier):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.param_groups[0]["lr"] = 0.01
        optimizer.step(closure=optimizer_closure)


def test_a_module_that_sets_the_rate_itself_is_not_measured():
    test = LRRangeTest()
    fit(SetsItsOwnRate(optimizer=sgd()), test)
    assert [f.code for f in test.findings] == ["lr_curve_not_measured"]
    assert "itself" in test.findings[0].message


def test_auto_says_when_the_sweep_ends_too_low():
    test = LRRangeTest(end_lr=1e-2)
    fit(Classifier(optimizer=sgd()), test)
    assert "lr_at_sweep_border" in [f.code for f in test.findings]


def test_a_fit_that_is_not_measured_forgets_the_result_before():
    test = LRRangeTest(num_steps=30)
    fit(Classifier(optimizer=sgd()), test)
    fit(SetsItsOwnRate(optimizer=sgd()), test)
    assert test.result is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight_decays": 0.01},
        {"momenta": 0.9},
        {"momenta": ["a"]},
        {"num_steps": 60.0},
        {"start_lr": "1e-7"},
        {"diverge_factor": None},
        {"optimizer": 1.5},
        {"metric": None},
        {"num_steps": 300, "max_steps": 310},
    ],
)
def test_a_wrong_type_gives_one_clear_error(wrong):
    with pytest.raises(ValueError, match=f"{list(wrong)[-1]}="):
        LRRangeTest(**wrong)


# -------------------------------------------------------------------------------------- reporting


def test_tensorboard_and_the_run_folder_get_figure_and_findings(tmp_path):
    test = LRRangeTest(num_steps=40)
    trainer = fit(Classifier(optimizer=sgd()), test, logger=TensorBoardLogger(tmp_path))
    folder = trainer.log_dir
    events = EventAccumulator(folder, size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["lr_range_test/curve"]
    assert "lr_range_test/findings/text_summary" in events.Tags()["tensors"]
    with open(f"{folder}/lr_range_test.json") as file:
        assert LRRangeResult.from_json(file.read()) == test.result
    with open(f"{folder}/lr_range_test.png", "rb") as file:
        assert file.read(4) == b"\x89PNG"
    with open(f"{folder}/findings.json") as file:
        assert [f["code"] for f in json.load(file)] == ["lr_suggested"]


def test_another_logger_gets_the_files(tmp_path):
    trainer = fit(
        Classifier(optimizer=sgd()), LRRangeTest(num_steps=40), logger=CSVLogger(tmp_path)
    )
    assert (tmp_path / "lightning_logs" / "version_0" / "lr_range_test.png").exists()
    assert trainer.logged_metrics


def test_without_a_logger_nothing_is_written(tmp_path):
    test = LRRangeTest(num_steps=40)
    fit(Classifier(optimizer=sgd()), test, default_root_dir=tmp_path)
    assert test.result is not None
    assert list(tmp_path.iterdir()) == []


def test_the_bar_is_shown_where_the_trainer_shows_one(capsys):
    fit(Classifier(optimizer=sgd()), LRRangeTest(num_steps=20), enable_progress_bar=True)
    assert "Learning-rate range test" in capsys.readouterr().err
    fit(Classifier(optimizer=sgd()), LRRangeTest(num_steps=20))
    assert "Learning-rate range test" not in capsys.readouterr().err


# ------------------------------------------------------------------------------ before a fit


def test_the_function_measures_what_the_callback_does():
    test = LRRangeTest(apply=False)
    fit(Classifier(optimizer=sgd()), test)
    module = Classifier(optimizer=sgd())
    torch.manual_seed(3)
    trainer = trainer_for(num_sanity_val_steps=2)
    result = lr_range_test(trainer, module, learnable(), held_out())
    assert result.sweeps == test.result.sweeps
    assert result.suggestion == test.result.suggestion


class Setup(Classifier):
    """Makes a layer and an attribute when it is set up."""

    def setup(self, stage):
        self.head = nn.Linear(3, 3)
        self.times = [*getattr(self, "times", []), stage]

    def forward(self, inputs):
        return self.head(super().forward(inputs))


@pytest.mark.parametrize("module", [Classifier, Setup])
def test_a_fit_after_the_function_is_as_without_it(module, tmp_path):
    def run(*, probe):
        torch.manual_seed(3)
        trainer = trainer_for(
            logger=CSVLogger(tmp_path, name=str(probe)), num_sanity_val_steps=2, log_every_n_steps=1
        )
        data, net = learnable(), module(optimizer=sgd())
        if probe:
            before = copy.deepcopy(net.state_dict())
            lr_range_test(trainer, net, data, held_out())
            assert list(net.state_dict()) == list(before)
            assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
        trainer.fit(net, data, held_out())
        with open(f"{trainer.log_dir}/metrics.csv") as file:
            return file.read(), net.state_dict(), trainer.global_step, torch.get_rng_state()

    plain, probed = run(probe=False), run(probe=True)
    assert plain[0] == probed[0]
    assert all(
        torch.equal(a, b) for a, b in zip(plain[1].values(), probed[1].values(), strict=True)
    )
    assert plain[2] == probed[2]
    assert torch.equal(plain[3], probed[3])


def test_the_persons_callbacks_and_loggers_see_nothing_of_it(tmp_path):
    seen = []

    class Spy(Callback):
        def setup(self, trainer, pl_module, stage):
            seen.append(stage)

    trainer = trainer_for(Spy(), logger=TensorBoardLogger(tmp_path))
    lr_range_test(trainer, Classifier(optimizer=sgd()), learnable(), held_out())
    assert seen == []
    assert list(tmp_path.iterdir()) == []
    assert isinstance(trainer.callbacks[0], Spy)
    assert isinstance(trainer.logger, TensorBoardLogger)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_true_precision_leaves_the_module_as_it_was(precision):
    module = Classifier(optimizer=sgd())
    before = copy.deepcopy(module.state_dict())
    lr_range_test(trainer_for(precision=precision), module, learnable(), held_out())
    for name, value in module.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_the_modules_own_callbacks_see_nothing_of_it(tmp_path):
    class WithCheckpoint(Classifier):
        def configure_callbacks(self):
            return [checkpoint]

    checkpoint = ModelCheckpoint()
    trainer = trainer_for(logger=CSVLogger(tmp_path), enable_checkpointing=True)
    module, data = WithCheckpoint(optimizer=sgd()), learnable()
    lr_range_test(trainer, module, data, held_out())
    assert checkpoint.dirpath is None
    trainer.fit(module, data, held_out())
    assert checkpoint.dirpath.startswith(trainer.log_dir)


def test_an_attribute_that_is_no_rate_of_the_optimizer_is_doubted():
    class Ignores(WithRate):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=5e-4)

    result = lr_range_test(trainer_for(), Ignores(), learnable(), held_out(), apply=True)
    assert "lr_not_applied" in [f.code for f in result.findings]


def test_the_function_sets_the_attribute_inside_a_compiled_module():
    module = WithRate()
    compiled = torch.compile(module, backend="eager")
    result = lr_range_test(trainer_for(), compiled, learnable(), held_out(), apply=True)
    assert module.hparams.lr == result.suggestion


def test_a_data_module():
    class Data(LightningDataModule):
        def train_dataloader(self):
            return learnable()

        def val_dataloader(self):
            return held_out()

    result = lr_range_test(trainer_for(), Classifier(optimizer=sgd()), datamodule=Data())
    assert result.suggestion is not None


def test_the_function_sets_the_modules_attribute_on_request():
    module = WithRate()
    result = lr_range_test(trainer_for(), module, learnable(), held_out(), apply=True)
    assert module.hparams.lr == result.suggestion
    module = WithRate()
    lr_range_test(trainer_for(), module, learnable(), held_out())
    assert module.hparams.lr == 0.123


def test_the_function_refuses_to_set_what_is_not_there():
    with pytest.raises(MisconfigurationException, match="Classifier has none"):
        lr_range_test(trainer_for(), Classifier(), learnable(), held_out(), apply=True)


def test_a_trainer_that_is_used_up_is_refused():
    trainer = fit(Classifier(optimizer=sgd()))
    with pytest.raises(MisconfigurationException, match="nothing left to train"):
        lr_range_test(trainer, Classifier(optimizer=sgd()), learnable(), held_out())


def test_an_error_leaves_trainer_and_module_ready_for_a_fit():
    module = RaisesAt(RuntimeError("mine"), optimizer=sgd())
    trainer, data = trainer_for(), learnable()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="mine"):
        lr_range_test(trainer, module, data, held_out())
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    trainer.fit(Classifier(optimizer=sgd()), data, held_out())
    assert trainer.global_step == 20


def test_data_that_can_be_read_only_once_are_an_error_for_the_function():
    class Once:
        def __init__(self):
            self.data = iter(learnable())

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.data)

    with pytest.raises(MisconfigurationException, match="only once"):
        lr_range_test(trainer_for(), Classifier(optimizer=sgd()), Once(), held_out())


@pytest.mark.parametrize("value", ["valey", "AUTO"])
def test_wrong_settings_are_named(value):
    with pytest.raises(ValueError, match=f"suggestion='{value}'"):
        lr_range_test(trainer_for(), Classifier(), suggestion=value)


# --------------------------------------------------------------------------------- several ranks


def sweep_on_a_rank():
    test = LRRangeTest(num_steps=40, repeats=2)
    trainer = trainer_for(test, strategy="ddp", devices=2)
    torch.manual_seed(3)
    trainer.fit(Classifier(optimizer=sgd()), learnable(), held_out())
    return test.result.to_json()


@pytest.mark.processes
def test_every_rank_gets_the_same_result():
    first, second = run_on_ranks(sweep_on_a_rank)
    assert first == second
    assert LRRangeResult.from_json(first).suggestion is not None
