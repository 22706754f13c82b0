"""What is recorded of a fit, against what the fit logs itself."""

import math
import types

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.nn import functional

from lightning_tuning._trainer.curves.curve_chance import dropout_of
from lightning_tuning._trainer.curves.curve_values import (
    direction,
    largest_rate,
    mean_over_ranks,
    on_host,
    the_loss,
)
from lightning_tuning.callbacks.loss_curve_diagnosis import LossCurveDiagnosis
from tests.test_contract import fit, trainer_for
from tests.toys import Classifier, Manual


class Losses(Callback):
    def __init__(self):
        self.train, self.val, self.rates = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.train.append(float(outputs["loss"]))

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.val.append(float(trainer.callback_metrics["val_loss"]))


def recorded(module=None, *, settings=None, **trainer):
    callback, seen = LossCurveDiagnosis(**(settings or {})), Losses()
    fit(trainer_for(callback, seen, **trainer), module)
    return callback.result.curves, seen


def test_each_step_and_each_validation_is_recorded():
    curves, seen = recorded(
        Classifier(scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5))
    )
    assert curves.train.steps == tuple(range(12))
    assert curves.train.values == pytest.approx(seen.train)
    assert curves.rates == pytest.approx(seen.rates)
    assert curves.val.name == "val_loss"
    assert curves.val.values == pytest.approx(seen.val)
    assert curves.val.steps == curves.epoch_ends == (5, 11)


def test_the_sanity_check_is_no_point():
    curves, seen = recorded(num_sanity_val_steps=2)
    assert len(curves.val.values) == len(seen.val) == 2


def test_several_validations_an_epoch():
    curves, _ = recorded(val_check_interval=2)
    assert curves.val.steps == (1, 3, 5, 7, 9, 11)


def test_accumulated_batches_are_one_step():
    curves, seen = recorded(accumulate_grad_batches=2)
    pairs = torch.tensor(seen.train).view(-1, 2).sum(1)  # Lightning has divided them by two
    assert curves.train.values == pytest.approx(pairs.tolist())
    assert curves.batch_size == 8
    assert curves.momentum == 0.9


def test_chance_is_known_for_a_loss_of_torch_however_it_is_scaled():
    class Scaled(Classifier):
        def training_step(self, batch, batch_idx):
            return 5 * functional.cross_entropy(self(batch[0]), batch[1])

    plain, _ = recorded()
    scaled, _ = recorded(Scaled())
    assert plain.chance == pytest.approx(math.log(3), rel=0.05)
    assert scaled.chance == pytest.approx(5 * plain.chance)
    assert plain.alike


def test_chance_of_another_loss_is_not_known():
    class Own(Classifier):
        def training_step(self, batch, batch_idx):
            return functional.cross_entropy(self(batch[0]), batch[1]) + self.net[0].weight.norm()

    curves, _ = recorded(Own())
    assert curves.chance is None


def test_a_second_term_that_warms_up_from_nothing_is_seen():
    class WarmsUp(Classifier):
        def training_step(self, batch, batch_idx):
            loss = functional.cross_entropy(self(batch[0]), batch[1])
            return loss + 1e-3 * self.global_step * self.net[0].weight.square().mean()

    curves, _ = recorded(WarmsUp())
    assert curves.chance is None


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_sum_over_batches_of_another_size_is_another_loss(reduction):
    class Whole(Classifier):
        def training_step(self, batch, batch_idx):
            return functional.cross_entropy(self(batch[0]), batch[1], reduction=reduction)

        def validation_step(self, batch, batch_idx):
            inputs, labels = (part[:2] for part in batch)
            loss = functional.cross_entropy(self(inputs), labels, reduction=reduction)
            self.log("val_loss", loss)

    curves, _ = recorded(Whole())
    assert curves.alike == (reduction == "mean")


def test_a_loss_may_be_logged_by_the_short_name_of_its_function():
    class Short(Classifier):
        def validation_step(self, batch, batch_idx):
            self.log_dict({"val_ce": self.loss(batch), "val_acc": 0.5})

    curves, _ = recorded_of(Short())
    assert curves.val.name == "val_ce"


def test_only_the_name_of_the_called_function_counts():
    assert the_loss(["val_rmse"], {"mse_loss"})[0] is None
    assert the_loss(["val_mse"], {"cross_entropy"})[0] is None
    assert the_loss(["val_mse", "x_mse"], {"mse_loss"})[0] is None
    assert the_loss([], {"mse_loss"}) == (None, "no validation logged anything")


def test_a_metric_that_nobody_logs_is_named():
    absent, _ = recorded(settings={"train_metric": "nothing"})
    assert "'nothing' was not logged" in absent.no_train


def test_a_logged_training_metric_is_read_on_logged_steps():
    curves, seen = recorded(settings={"train_metric": "train_loss"}, log_every_n_steps=1)
    assert curves.train.values == pytest.approx(seen.train)


def test_which_validation_loss_is_meant_is_asked_for():
    class Two(Classifier):
        def validation_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.log_dict({"a_loss": loss, "b_loss": loss, "acc": 0.5})

    curves, _ = recorded_of(Two())
    assert curves.val is None
    assert "'a_loss', 'b_loss'" in curves.no_val
    named, _ = recorded_of(Two(), val_metric="b_loss")
    assert named.val.name == "b_loss"
    assert [metric.name for metric in named.metrics] == ["a_loss", "acc"]


def recorded_of(module, **settings):
    callback = LossCurveDiagnosis(**settings)
    fit(trainer_for(callback), module)
    return callback.result.curves, None


def test_several_optimizers_are_counted():
    curves, _ = recorded_of(Manual())
    assert curves.optimizers == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val_acc", True),
        ("valid/F1", True),
        ("val_mse", False),
        ("top1_error", False),
        ("focal_loss", False),
        ("val_accuracy/dataloader_idx_0", True),
        ("x", None),
    ],
)
def test_directions_by_name(name, expected):
    assert direction(name, {}) is expected
    assert direction(name, {name.split("/data")[0]: False}) is False


def test_scalars_come_in_their_order():
    values = [torch.tensor(1.5), torch.tensor([2]), torch.tensor(3.0, dtype=torch.float64)]
    assert on_host(values) == [1.5, 2.0, 3.0]


def test_dropout_is_seen_where_it_is():
    assert not dropout_of(nn.Sequential(nn.Dropout(0.0), nn.LSTM(2, 2)))
    assert dropout_of(nn.Sequential(nn.Linear(2, 2), nn.Dropout2d(0.1)))
    assert dropout_of(nn.TransformerEncoderLayer(8, 2, dropout=0.1))


def test_chance_does_not_depend_on_a_later_accumulation():
    plain, _ = recorded()
    callback = LossCurveDiagnosis()
    fit(trainer_for(callback, GradientAccumulationScheduler({0: 1, 1: 2}), max_epochs=4))
    assert callback.result.curves.chance == pytest.approx(plain.chance, rel=0.05)


def test_targets_are_let_go_once_chance_is_known_and_no_batch_start_is_watched_then():
    held, awake = [], []

    class Looks(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            held.append(len(callback._recorder._calls._steps))
            awake.append(callable(callback.on_train_batch_start))

    callback = LossCurveDiagnosis()
    fit(trainer_for(callback, Looks(), max_epochs=12), Classifier())
    assert max(held) == 40  # so many batches of four targets
    assert held[-1] == 0
    assert all(awake[:40])
    assert not any(awake[43:])  # every third step is measured
    assert callable(callback.on_train_batch_start)
    assert callback.result.curves.chance == pytest.approx(math.log(3), rel=0.05)


def test_a_target_that_the_program_writes_over_is_remembered_as_it_was():
    class Reuses(Classifier):
        def __init__(self):
            super().__init__()
            self.register_buffer("labels", torch.zeros(4, dtype=torch.long))

        def loss(self, batch):
            self.labels.copy_(batch[1])
            return functional.cross_entropy(self(batch[0]), self.labels)

        def on_train_batch_end(self, *_):
            self.labels.zero_()

    assert recorded(Reuses())[0].chance == recorded()[0].chance


def test_learning_rates_do_not_pile_up_beside_a_logged_metric():
    sizes = []

    class Looks(Callback):
        def on_train_batch_end(self, *_):
            sizes.append(len(callback._recorder._rates))

    callback = LossCurveDiagnosis("train_loss")
    fit(trainer_for(callback, Looks()))
    assert set(sizes) == {0}


def test_a_rate_on_a_device_is_looked_at_on_measured_steps_only():
    away = torch.tensor(0.3, device="meta")
    parameter = nn.Parameter(torch.zeros(1))
    both = [{"params": [parameter], "lr": away}, {"params": [nn.Parameter(parameter)], "lr": 0.5}]
    optimizers = [torch.optim.SGD(both, lr=0.1)]
    assert largest_rate(optimizers, before=0.7, due=lambda: False) == 0.7
    assert largest_rate(optimizers, before=0.7, due=lambda: True).shape == ()
    optimizers[0].param_groups[0]["lr"] = torch.tensor(0.3)
    assert largest_rate(optimizers, before=0.7, due=lambda: False) == 0.5


def test_a_metric_is_the_mean_over_the_ranks_that_logged_it():
    class Ranks:
        """Another rank logged 3 at the first and second place, and nothing at the third."""

        root_device = torch.device("cpu")

        def reduce(self, pairs, reduce_op):
            assert reduce_op == "sum"
            return pairs + torch.tensor([[3.0, 3.0, 0.0], [1.0, 1.0, 0.0]])

    trainer = types.SimpleNamespace(world_size=2, strategy=Ranks())
    values = [torch.tensor(1.0), None, None]
    assert mean_over_ranks(trainer, values) == [2.0, 3.0, None]
    trainer.world_size = 1
    assert mean_over_ranks(trainer, values) == [1.0, None, None]
