"""Setting rates of groups, optimizers, schedulers and modules, in ratio."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from torch.optim import lr_scheduler as schedulers

from lightning_tuning._trainer.learning_rates import (
    GroupRates,
    apply_learning_rate,
    rate_attributes,
    rates_of,
    set_module_rate,
)
from tests.toys import Classifier, Manual, OwnScheduler, Rates, WithOwnScheduler, loader


def sgd(lr=0.1):
    return lambda params: torch.optim.SGD(params, lr=lr, momentum=0.9)


class Apply(Callback):
    """Applies a rate at the start, as the range test does."""

    def __init__(self, rate, which=None):
        self.rate, self.which = rate, which

    def on_train_start(self, trainer, pl_module):
        rates = rates_of(trainer, self.which)
        self.unknown = apply_learning_rate(trainer, rates, self.rate)


def fit(module, *callbacks):
    rates = Rates()
    trainer = Trainer(
        max_epochs=3,
        callbacks=[*callbacks, rates],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(module, loader(), loader())
    return rates.seen


SCHEDULERS = {
    "none": None,
    "step": lambda o: schedulers.StepLR(o, 2),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.5),
    "lambda": lambda o: schedulers.LambdaLR(o, lambda epoch: 1 / (epoch + 1)),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 3),
    "warm_restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 2),
    "linear": schedulers.LinearLR,
    "constant": schedulers.ConstantLR,
    "polynomial": lambda o: schedulers.PolynomialLR(o, 3),
    "plateau": lambda o: {
        "scheduler": schedulers.ReduceLROnPlateau(o, patience=0),
        "monitor": "train_loss",
    },
    "sequential": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, total_iters=2), schedulers.StepLR(o, 1)], [2]
    ),
    "chained": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)]
    ),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_applied_rate_is_as_if_built_with_it(make, interval):
    def built(optimizer):
        made = make(optimizer)
        made = made if isinstance(made, dict) else {"scheduler": made}
        return {**made, "interval": interval}

    scheduler = None if make is None else built
    expected = fit(Classifier(optimizer=sgd(0.02), scheduler=scheduler))
    apply = Apply(0.02)
    seen = fit(Classifier(optimizer=sgd(0.5), scheduler=scheduler), apply)
    assert apply.unknown == []
    for one, other in zip(seen, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("kind", ["one_cycle", "cyclic"])
def test_peaks_of_torch_cycles_are_scaled(kind):
    def make(peak):
        def scheduler(optimizer):
            if kind == "one_cycle":
                made = schedulers.OneCycleLR(optimizer, max_lr=peak, total_steps=18)
            else:
                made = schedulers.CyclicLR(optimizer, peak / 10, peak, step_size_up=4)
            return {"scheduler": made, "interval": "step"}

        return scheduler

    expected = fit(Classifier(optimizer=sgd(0.02), scheduler=make(0.02)))
    seen = fit(Classifier(optimizer=sgd(0.5), scheduler=make(0.5)), Apply(0.02))
    for one, other in zip(seen, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


def test_groups_keep_their_ratio_to_the_largest():
    seen = fit(Classifier(optimizer=sgd(), groups=(0.03, 0.3)), Apply(0.5))
    assert seen[0] == [pytest.approx(0.05), 0.5]


def test_several_optimizers_together_or_one_by_name():
    assert fit(Manual(), Apply(1.0))[0] == [1.0, pytest.approx(0.1)]
    assert fit(Manual(), Apply(1.0, "AdamW"))[0] == [0.1, 1.0]
    assert fit(Manual(), Apply(1.0, 0))[0] == [1.0, 0.01]


def test_a_wrong_optimizer_is_named_with_the_choices():
    with pytest.raises(MisconfigurationException, match=r"optimizer='Adam'.*'SGD'"):
        fit(Manual(), Apply(1.0, "Adam"))


def test_zero_rates_are_refused():
    with pytest.raises(MisconfigurationException, match="positive rate"):
        fit(Classifier(optimizer=sgd(0.0)), Apply(1.0))


def test_a_frozen_group_stays_at_zero():
    assert fit(Classifier(optimizer=sgd(), groups=(0.0, 0.3)), Apply(0.5))[0] == [0.0, 0.5]


def test_an_unknown_scheduler_is_named():
    apply = Apply(0.5)
    fit(WithOwnScheduler(scheduler=OwnScheduler), apply)
    assert apply.unknown == ["OwnScheduler"]


def test_weight_decay_keeps_groups_without_any():
    params = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW(
        [
            {"params": params[:1], "weight_decay": 0.0},
            {"params": params[1:], "weight_decay": 0.1},
        ],
        lr=0.1,
    )
    GroupRates([optimizer]).set_weight_decay(0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.5]


def test_weight_decay_is_set_everywhere_where_none_has_any():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    GroupRates([optimizer]).set_weight_decay(0.5)
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_momentum_is_beta1_for_adam():
    adam = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    GroupRates([adam, sgd]).set_momentum(0.7)
    assert adam.param_groups[0]["betas"] == (0.7, 0.999)
    assert sgd.param_groups[0]["momentum"] == 0.7


def test_what_an_optimizer_does_not_know_is_refused():
    rates = GroupRates([torch.optim.Adagrad([torch.nn.Parameter(torch.ones(1))], lr=0.1)])
    with pytest.raises(MisconfigurationException, match=r"momenta=0.7.*Adagrad"):
        rates.set_momentum(0.7)


def test_tensor_rates_are_filled_in_place():
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=rate, foreach=False)
    GroupRates([optimizer]).set(0.25)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.25


class OwnFormula(torch.optim.lr_scheduler.LRScheduler):
    """Computes the rate from a peak of its own, whatever ``base_lrs`` say."""

    def get_lr(self):
        return [0.3 / (self.last_epoch + 1) for _ in self.base_lrs]


def test_a_scheduler_with_a_formula_of_its_own_is_named():
    apply = Apply(0.5)
    fit(Classifier(optimizer=sgd(), scheduler=OwnFormula), apply)
    assert apply.unknown == ["OwnFormula"]


class WithRate(Classifier):
    def __init__(self, lr=0.1, backbone_lr=0.01):
        super().__init__(optimizer=sgd(lr))
        self.save_hyperparameters()
        self.lr = lr


def rates(*values, others=()):
    """Rates of optimizers with one group each."""
    made = [sgd(lr)([torch.nn.Parameter(torch.ones(1))]) for lr in (*values, *others)]
    return GroupRates(made[: len(values)], others=made[len(values) :])


def test_the_module_attribute_and_hparams_are_set():
    module = WithRate()
    assert set_module_rate(module, 0.5, rates(0.1)) is None
    assert (module.lr, module.hparams["lr"]) == (0.5, 0.5)
    assert module.hparams["backbone_lr"] == 0.01


def test_an_attribute_that_matches_a_smaller_group_keeps_its_ratio():
    module = WithRate(lr=0.01)
    set_module_rate(module, 0.5, rates(0.1, 0.01))
    assert module.lr == pytest.approx(0.05)


def test_an_attribute_from_which_the_rate_is_computed_is_scaled_with_doubt():
    module = WithRate(lr=0.1)
    doubt = set_module_rate(module, 0.8, rates(0.4))
    assert module.lr * 4 == pytest.approx(0.8)
    assert "lr=0.1" in doubt


def test_the_rate_of_an_optimizer_that_was_not_swept_is_left_alone():
    module = WithRate(lr=0.1)
    assert set_module_rate(module, 0.5, rates(0.001, others=(0.1,))) is None
    assert module.lr == 0.1


def test_a_property_is_set_through_its_setter():
    class WithProperty(Classifier):
        inner = 0.1

        @property
        def lr(self):
            return self.inner

        @lr.setter
        def lr(self, value):
            self.inner = value

    module = WithProperty()
    set_module_rate(module, 0.5, rates(0.1))
    assert module.inner == 0.5


def test_without_an_attribute_there_is_nothing_to_set():
    assert rate_attributes(Classifier()) == []
