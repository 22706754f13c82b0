"""OneCycle inside real fits."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    LearningRateMonitor,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, IterableDataset

from lightning_tuning import OneCycle, one_cycle
from lightning_tuning._trainer import media_loggers
from tests.callbacks.schedule_fits import (
    FakeRangeTest,
    Recorder,
    SaveAfter,
    assert_equal_weights,
    fit,
    same_batches,
    weights,
)
from tests.toys import Classifier, Manual, loader


class Memory(Logger):
    """A logger that keeps what it is given, in this process."""

    def __init__(self):
        super().__init__()
        self.metrics = []

    name, version = "memory", "0"

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, dict(metrics)))

    def of(self, name):
        return [(step, metrics[name]) for step, metrics in self.metrics if name in metrics]


def cycle(total, *, steps=None, **settings):
    return [one_cycle(step, total, **settings) for step in range(steps or total)]


# ---------------------------------------------------------------- the schedule that a fit follows


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"anneal_strategy": "linear", "pct_start": 0.5},
        {"three_phase": True, "div_factor": 5.0, "final_div_factor": 10.0},
    ],
)
def test_every_step_has_the_rate_of_the_formula(settings):
    recorder = Recorder()
    fit(None, OneCycle(0.2, **settings), recorder)
    assert recorder.first() == cycle(12, max_lr=0.2, **settings)


def test_weights_equal_those_of_torchs_scheduler():
    class Torch(Classifier):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=13)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    mine = fit(None, OneCycle(0.2, total_steps=13))
    assert_equal_weights(weights(mine), weights(fit(Torch())))


def test_adams_first_beta_is_cycled():
    recorder = Recorder()
    module = Classifier(lambda p: torch.optim.AdamW(p, betas=(0.9, 0.97)))
    trainer = fit(module, OneCycle(0.2), recorder)
    assert recorder.first() == cycle(12, max_lr=0.2)
    assert trainer.optimizers[0].param_groups[0]["betas"][1] == 0.97


def test_groups_with_lists():
    recorder, callback = Recorder(), OneCycle([0.2, 0.02], base_momentum=[0.8, 0.7])
    fit(Classifier(groups=(0.1, 0.01)), callback, recorder)
    expected = zip(
        cycle(12, max_lr=0.2, base_momentum=0.8),
        cycle(12, max_lr=0.02, base_momentum=0.7),
        strict=True,
    )
    assert recorder.values == [list(values) for values in expected]


def test_one_rate_is_for_all_groups_as_in_torch():
    recorder = Recorder()
    fit(Classifier(groups=(0.1, 0.01)), OneCycle(0.2), recorder)
    assert all(one == other for one, other in recorder.values)


def test_without_a_rate_each_groups_own_is_the_peak():
    callback = OneCycle()
    fit(Classifier(groups=(0.1, 0.01)), callback)
    assert callback.result.max_lr == (0.1, 0.01)


def test_a_list_that_does_not_fit_the_groups_is_named():
    with pytest.raises(ValueError, match=r"max_lr=.* has 3 values for 2 parameter groups"):
        fit(Classifier(groups=(0.1, 0.01)), OneCycle([1.0, 2.0, 3.0]))


def test_momentum_stays_on_request():
    recorder = Recorder()
    fit(None, OneCycle(0.2, cycle_momentum=False), recorder)
    assert {momentum for _, momentum in recorder.first()} == {0.9}


def test_an_optimizer_without_momentum_has_its_rate_cycled_and_is_told():
    recorder, callback = Recorder(), OneCycle(0.2)
    fit(Classifier(lambda p: torch.optim.Adagrad(p, lr=0.1)), callback, recorder)
    assert [lr for lr, _ in recorder.first()] == [lr for lr, _ in cycle(12, max_lr=0.2)]
    assert any("neither momentum nor betas" in f.message for f in callback.findings)


@pytest.mark.parametrize("batches", [6, 7])
def test_accumulation(batches):
    recorder, callback = Recorder(), OneCycle(0.2)
    data = loader(samples=4 * batches)
    trainer = fit(None, callback, recorder, data=data, accumulate_grad_batches=3)
    assert callback.result.total_steps == trainer.global_step == 2 * -(-batches // 3)
    formula = cycle(trainer.global_step, max_lr=0.2)
    step_of_batch = [
        epoch * -(-batches // 3) + batch // 3 for epoch in range(2) for batch in range(batches)
    ]
    assert recorder.first() == [formula[step] for step in step_of_batch]


def test_accumulation_that_changes_between_epochs():
    callback = OneCycle(0.2)
    scheduler = GradientAccumulationScheduler({0: 1, 1: 2, 3: 4})
    trainer = fit(None, callback, scheduler, max_epochs=4, data=loader(samples=28))
    assert callback.result.total_steps == trainer.global_step == 7 + 4 + 4 + 2


@pytest.mark.parametrize("settings", [{"max_steps": 7}, {"max_steps": 7, "max_epochs": -1}])
def test_max_steps(settings):
    callback = OneCycle(0.2)
    fit(None, callback, **{"max_epochs": 3, **settings})
    assert callback.result.total_steps == 7


def test_past_total_steps_the_last_rate_stays():
    recorder = Recorder()
    fit(None, OneCycle(0.2, total_steps=5), recorder)
    assert recorder.first()[4:] == [cycle(5, max_lr=0.2)[-1]] * 8


def test_a_capturable_optimizers_tensor_rate_is_written_in_place():
    rate = torch.tensor(0.01)
    recorder = Recorder()
    module = Classifier(lambda p: torch.optim.Adam(p, lr=rate, foreach=False, capturable=False))
    trainer = fit(module, OneCycle(0.2), recorder)
    assert trainer.optimizers[0].param_groups[0]["lr"] is rate
    expected = [lr for lr, _ in cycle(12, max_lr=0.2)]
    assert [lr for lr, _ in recorder.first()] == pytest.approx(expected, rel=1e-6)


def test_a_fused_optimizer():
    recorder = Recorder()
    fit(Classifier(lambda p: torch.optim.AdamW(p, fused=True)), OneCycle(0.2), recorder)
    assert recorder.first() == cycle(12, max_lr=0.2)


def test_a_compiled_module():
    class Silent(Classifier):
        def training_step(self, batch, batch_idx):
            return self.loss(batch)  # torch 2.13 cannot trace Lightning's self.log

    recorder = Recorder()
    fit(torch.compile(Silent(), backend="eager"), OneCycle(0.2), recorder)
    assert recorder.first() == cycle(12, max_lr=0.2)


def test_groups_added_in_the_middle_keep_their_own_rate():
    class Unfreezes(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[2].parameters(), lr=0.1, momentum=0.9)

        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.optimizers().add_param_group({"params": self.net[0].parameters(), "lr": 0.3})

    recorder = Recorder()
    fit(Unfreezes(), OneCycle(0.2), recorder)
    assert recorder.first() == cycle(12, max_lr=0.2)
    assert {values[1] for values in recorder.values[6:]} == {(0.3, 0.9)}


# ------------------------------------------------------------------------- manual optimization


@pytest.mark.parametrize("every", [1, 2])
def test_manual_optimization_advances_with_each_batch(every):
    recorder, callback = Recorder(), OneCycle([0.2, 0.05])
    trainer = fit(Manual(every=every), callback, recorder)
    expected = zip(cycle(12, max_lr=0.2), cycle(12, max_lr=0.05), strict=True)
    assert recorder.values == [list(values) for values in expected]
    # what the module's own self.lr_schedulers() returns is left alone
    assert trainer.lr_scheduler_configs == []


def test_manual_optimization_with_a_length_counts_each_optimizers_steps():
    recorder = Recorder()
    trainer = fit(Manual(every=3), OneCycle(0.2, total_steps=9), recorder)
    formula = cycle(9, steps=13, max_lr=0.2)
    assert [values[0] for values in recorder.values] == formula[:12]
    assert [values[1] for values in recorder.values] == [formula[i // 3] for i in range(12)]
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in trainer.optimizers)


def test_manual_optimization_with_max_steps():
    callback = OneCycle(0.2)
    recorder = Recorder()
    fit(Manual(), callback, recorder, max_steps=8)  # Lightning counts both optimizers
    assert callback.result.total_steps == len(recorder.values) == 4


@pytest.mark.parametrize("total_steps", [None, 10])
@pytest.mark.parametrize("batches", [2, 6, 8])  # gradients in the making are not saved
def test_manual_optimization_resumes_bit_for_bit(total_steps, batches):
    callback = OneCycle(0.2, total_steps=total_steps)
    whole = fit(Manual(every=2), callback, SaveAfter(batches), data=same_batches())
    resumed = fit(
        Manual(every=2),
        OneCycle(0.2, total_steps=total_steps),
        data=same_batches(),
        ckpt_path="saved.ckpt",
    )
    assert_equal_weights(weights(resumed), weights(whole))


# --------------------------------------------------------------------------- steps that AMP skips


class Overflows(Classifier):
    """An infinite loss on batches 2 and 3, so that the scaler skips their optimizer steps."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if self.global_step in (2, 3) else loss


def test_a_step_that_amp_skips_counts_as_lightning_counts_it():
    recorder, callback = Recorder(), OneCycle(0.2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    trainer = fit(Overflows(), callback, recorder, plugins=precision)
    assert scaler.get_scale() < 4.0  # steps were skipped
    assert callback.result.total_steps == trainer.global_step == 12
    assert recorder.first() == cycle(12, max_lr=0.2)


def test_amp_may_skip_the_very_first_step_without_torchs_warning():
    class First(Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if self.global_step == 0 else loss

    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    callback = OneCycle(0.2)
    # torch's warning would be an error here
    trainer = fit(First(), callback, plugins=MixedPrecision("16-mixed", "cpu", scaler=scaler))
    assert callback.result.total_steps == trainer.global_step


# ------------------------------------------------------------------------------------- the length


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(6), 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"max_epochs": -1}, "without end"),
        ({"max_epochs": None, "max_time": "00:00:01:00"}, "max_time"),
        ({"data": DataLoader(Endless(), 4)}, "no length"),
    ],
)
def test_a_fit_without_a_known_end_asks_for_total_steps(settings, reason):
    with pytest.raises(MisconfigurationException, match=rf"{reason}.*total_steps="):
        fit(None, OneCycle(0.2), **settings)


def test_an_endless_loader_with_a_length_or_max_steps():
    recorder = Recorder()
    data = DataLoader(Endless(), 4)
    fit(None, OneCycle(0.2, total_steps=5), recorder, data=data, limit_train_batches=3)
    assert recorder.first() == cycle(5, steps=6, max_lr=0.2)
    callback = OneCycle(0.2)
    fit(None, callback, data=data, max_steps=4)
    assert callback.result.total_steps == 4


# ------------------------------------------------------------------------ resume, three ways


@pytest.mark.parametrize("step", [3, 6, 11])
@pytest.mark.parametrize("max_lr", [0.2, None])
def test_a_resume_goes_on_with_the_rates_of_the_uninterrupted_fit(step, max_lr):
    fit(None, OneCycle(max_lr), SaveAfter(step))
    callback, recorder = OneCycle(max_lr), Recorder()
    fit(None, callback, recorder, ckpt_path="saved.ckpt")
    assert recorder.first() == cycle(12, max_lr=max_lr or 0.1)[step:]
    assert callback.result.total_steps == 12
    assert "schedule_length_changed" not in {f.code for f in callback.findings}


@pytest.mark.parametrize("batches", [2, 7, 13])
def test_a_resume_in_the_middle_of_an_accumulation(batches):
    settings = {"data": loader(samples=28), "accumulate_grad_batches": 3}
    fit(None, OneCycle(0.2), SaveAfter(batches), **settings)
    callback = OneCycle(0.2)
    resumed = fit(None, callback, ckpt_path="saved.ckpt", **settings)
    assert callback.result.total_steps == resumed.global_step == 6
    assert callback.state_dict()["steps"] == [6]


@pytest.mark.parametrize("step", [4, 6])
def test_resume_in_the_middle_of_an_epoch_gives_the_same_weights_bit_for_bit(step):
    settings = {"data": same_batches()}
    whole = fit(None, OneCycle(0.2), SaveAfter(step), **settings)
    resumed = fit(None, OneCycle(0.2), ckpt_path="saved.ckpt", **settings)
    assert_equal_weights(weights(resumed), weights(whole))


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end", "on_train_end"])
def test_resume_from_checkpoints_of_every_hook(hook):
    class Save(Callback):
        pass

    def save(self, trainer, pl_module):
        if not trainer.sanity_checking and trainer.current_epoch <= 1:
            trainer.save_checkpoint("hook.ckpt")

    setattr(Save, hook, save)
    trainer = fit(None, OneCycle(0.2), Save(), limit_val_batches=1)
    callback, recorder = OneCycle(0.2), Recorder()
    if hook == "on_train_end":
        trainer.save_checkpoint("hook.ckpt")
    step = torch.load("hook.ckpt")["global_step"]
    fit(
        None,
        callback,
        recorder,
        ckpt_path="hook.ckpt",
        limit_val_batches=1,
        max_epochs=2 if step < 12 else 3,
    )
    total = 12 if step < 12 else 18
    assert callback.result.total_steps == total
    assert recorder.first() == cycle(total, max_lr=0.2)[step:]


@pytest.mark.parametrize(("epochs", "longer"), [(2, 4), (4, 3)])
def test_a_resume_of_another_length_follows_the_cycle_of_that_length(epochs, longer):
    saver = SaveAfter(12)
    fit(None, OneCycle(0.2), saver, max_epochs=epochs)
    callback, recorder = OneCycle(0.2), Recorder()
    fit(None, callback, recorder, max_epochs=longer, ckpt_path="saved.ckpt")
    # the very rates of a fit of that length from the beginning
    assert recorder.first() == cycle(6 * longer, max_lr=0.2)[12:]
    [finding] = [f for f in callback.findings if f.code == "schedule_length_changed"]
    assert finding.evidence == {"before": 6 * epochs, "total_steps": 6 * longer, "step": 12}


def test_a_checkpoint_made_without_it_resumes_with_a_whole_cycle_of_what_is_left():
    fit(None, SaveAfter(3), max_epochs=1)
    callback, recorder = OneCycle(), Recorder()
    fit(None, callback, recorder, ckpt_path="saved.ckpt", max_epochs=2)
    assert callback.result.total_steps == 9
    assert recorder.first() == cycle(9, max_lr=0.1)


def test_a_checkpoint_made_with_another_scheduler_resumes_with_it():
    def step_lr(optimizer):
        return torch.optim.lr_scheduler.StepLR(optimizer, 1)

    fit(Classifier(scheduler=step_lr), SaveAfter(3), max_epochs=1)
    recorder = Recorder()
    fit(None, OneCycle(0.2), recorder, ckpt_path="saved.ckpt", max_epochs=2)
    assert recorder.first() == cycle(9, max_lr=0.2)


@pytest.mark.parametrize("scheduler", [None, "StepLR"])
def test_a_checkpoint_made_with_it_resumes_without(scheduler):
    fit(None, OneCycle(0.2), SaveAfter(3))
    assert torch.load("saved.ckpt")["lr_schedulers"] == []
    assert set(torch.load("saved.ckpt")["optimizer_states"][0]["param_groups"][0]) == set(
        torch.optim.SGD([torch.zeros(1)]).state_dict()["param_groups"][0]
    )
    make = None
    if scheduler:
        make = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)  # noqa: E731
    recorder = Recorder()
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint.*OneCycle"):
        trainer = fit(Classifier(scheduler=make), recorder, ckpt_path="saved.ckpt")
    # the optimizer's saved rate goes on, and the module's scheduler starts anew
    rate = cycle(12, max_lr=0.2)[3][0]
    assert recorder.first()[0][0] == rate
    if scheduler:
        assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 2


def test_a_saved_peak_is_kept_and_a_given_one_wins():
    fit(None, OneCycle(0.2), SaveAfter(3))
    kept, given = OneCycle(), OneCycle(0.4)
    fit(None, kept, ckpt_path="saved.ckpt")
    fit(None, given, ckpt_path="saved.ckpt")
    assert kept.result.max_lr == (0.2,)
    assert given.result.max_lr == (0.4,)


# -------------------------------------------------------------------------------- the range test


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("apply", [True, False])
def test_the_range_tests_suggestion_is_the_peak_in_any_order(first, apply):
    test, callback, recorder = FakeRangeTest(0.5, apply), OneCycle(), Recorder()
    order = (test, callback) if first else (callback, test)
    fit(Classifier(groups=(0.1, 0.01)), *order, recorder)
    assert test.seen == [(0.1, 0.9), (0.01, 0.9)]  # the person's own settings were tested
    assert callback.result.max_lr == pytest.approx((0.5, 0.05))
    expected = [lr for lr, _ in cycle(12, max_lr=0.5)]
    assert [lr for lr, _ in recorder.first()] == pytest.approx(expected)
    assert "from the range test" in callback.findings[0].message


def test_a_given_rate_wins_over_the_range_test_and_says_so():
    callback = OneCycle(0.2)
    fit(None, FakeRangeTest(0.5), callback)
    assert callback.result.max_lr == (0.2,)
    assert "the range test suggested 0.5" in callback.findings[0].message


def test_a_range_test_without_a_suggestion_leaves_the_own_rate():
    callback = OneCycle()
    fit(None, FakeRangeTest(None), callback)
    assert callback.result.max_lr == (0.1,)


def test_a_module_that_sets_the_rate_in_on_train_start_is_heard():
    class Sets(Classifier):
        def on_train_start(self):
            self.optimizers().param_groups[0]["lr"] = 0.7

    callback = OneCycle()
    fit(Sets(), callback)
    assert callback.result.max_lr == (0.7,)


# ------------------------------------------------------------------------------ what is logged


@pytest.mark.parametrize("interval", ["step", "epoch", None])
@pytest.mark.parametrize("before", [True, False])
def test_learning_rate_monitor_logs_the_right_values(interval, before):
    logger, monitor = Memory(), LearningRateMonitor(interval, log_momentum=True)
    callbacks = (monitor, OneCycle(0.2)) if before else (OneCycle(0.2), monitor)
    fit(None, *callbacks, logger=logger, log_every_n_steps=1)
    steps = [0, 6] if interval == "epoch" else range(12)
    formula = cycle(12, max_lr=0.2)
    assert logger.of("lr-SGD") == [(step, formula[step][0]) for step in steps]
    assert logger.of("lr-SGD-momentum") == [(step, formula[step][1]) for step in steps]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_learning_rate_monitor_beside_a_range_test(order):
    logger = Memory()
    test = FakeRangeTest(0.5)
    callbacks = [LearningRateMonitor("step"), OneCycle(), test]
    fit(None, *(callbacks[i] for i in order), logger=logger, log_every_n_steps=1)
    assert [lr for _, lr in logger.of("lr-SGD")] == [lr for lr, _ in cycle(12, max_lr=0.5)]


def test_a_preview_goes_to_the_logger_before_the_first_step(monkeypatch):
    logger, shown = TensorBoardLogger("."), []
    recorder = Recorder()

    def write_png(writer, tag, png, step):
        shown.append((writer, tag, step, len(recorder.values)))
        return True

    monkeypatch.setattr(media_loggers, "write_png", write_png)
    fit(None, OneCycle(0.2), recorder, logger=logger)
    assert shown == [(logger.experiment, "one_cycle/schedule", 0, 0)]


def test_the_figure_lies_in_the_folder_of_any_logger(tmp_path):
    fit(None, OneCycle(0.2), logger=CSVLogger("."))
    [file] = tmp_path.rglob("*.png")
    assert file.name == "one_cycle.png"


def test_no_figure_is_drawn_where_nothing_is_logged(monkeypatch):
    from lightning_tuning import plots as module

    monkeypatch.setattr(module, "plot_schedule", lambda schedule: pytest.fail("drawn"))
    fit(None, OneCycle(0.2), logger=False)
    fit(None, OneCycle(0.2), fast_dev_run=2)


# ------------------------------------------------------- schedulers of the module, and no optimizer


def plateau(optimizer):
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)


class WithPlateau(Classifier):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau(optimizer), "monitor": "train_loss"},
        }


def warm_up(optimizer):
    return torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=4)


def torchs(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (lambda: Classifier(scheduler=warm_up), "LinearLR"),
        (lambda: Classifier(scheduler=torchs), "OneCycleLR"),
        (WithPlateau, "ReduceLROnPlateau"),
    ],
)
def test_a_scheduler_of_the_module_is_refused_or_replaced(module, name):
    with pytest.raises(
        MisconfigurationException, match=rf"{name}.*one_cycle=False.*replace_scheduler=True"
    ):
        fit(module(), OneCycle(0.2))
    callback, recorder = OneCycle(replace_scheduler=True), Recorder()
    fit(module(), callback, recorder)
    assert recorder.first() == cycle(12, max_lr=0.1)  # its base rate, not what it made of it
    [finding] = [f for f in callback.findings if f.code == "schedule_replaced"]
    assert name in finding.message


def test_under_manual_optimization_a_scheduler_is_never_dropped():
    class Steps(Manual):
        def configure_optimizers(self):
            optimizers = super().configure_optimizers()
            return optimizers, [warm_up(optimizers[0])]

    with pytest.raises(MisconfigurationException, match=r"LinearLR.*training_step"):
        fit(Steps(), OneCycle(0.2, replace_scheduler=True))


def test_a_module_without_optimizer_is_refused():
    class NoOptimizer(Classifier):
        def configure_optimizers(self):
            return None

    with (
        pytest.warns(UserWarning, match="no optimizer"),
        pytest.raises(MisconfigurationException, match="needs an optimizer"),
    ):
        fit(NoOptimizer(), OneCycle(0.2))


# ---------------------------------------------------------------------- ends of fits, good and bad


def test_a_second_fit_has_a_cycle_of_its_own():
    callback, recorder = OneCycle(0.2), Recorder()
    trainer = fit(None, callback, recorder)
    assert trainer.lr_scheduler_configs == []
    trainer.fit_loop.max_epochs = 5
    trainer.fit(trainer.lightning_module, loader(), loader(4))
    assert recorder.first() == cycle(12, max_lr=0.2) + cycle(18, max_lr=0.2)
    fit(None, callback, recorder)
    assert recorder.first()[30:] == cycle(12, max_lr=0.2)


@pytest.mark.parametrize("module", [Classifier, Manual])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_behind(module, error):
    class Breaks(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 3:
                raise error

    callback = OneCycle(0.2, total_steps=12)
    trainer = Trainer(
        callbacks=[callback, Breaks()],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    module = module()
    with pytest.raises((error, SystemExit)):
        trainer.fit(module, loader(), loader(4))
    assert trainer.lr_scheduler_configs == []
    assert callback.state_dict()["steps"][0] == 3
    for optimizer in trainer.optimizers:
        assert not optimizer._optimizer_step_post_hooks
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == rate
    copy.deepcopy(callback)


def test_a_checkpoint_saved_after_an_exception_or_the_fit_has_the_progress():
    trainer = fit(None, OneCycle(0.2))
    trainer.save_checkpoint("after.ckpt")
    state = torch.load("after.ckpt")["callbacks"]["OneCycle"]
    assert state == {"steps": [12], "total_steps": 12, "max_lr": [0.2]}
