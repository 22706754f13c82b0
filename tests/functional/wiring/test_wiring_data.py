import dataclasses
import math

import pytest
import torch

from lightning_tuning.functional.rescue import Trained
from lightning_tuning.functional.wiring.wiring_data import DataEvidence, NonFinite, nan_in_data
from lightning_tuning.functional.wiring.wiring_dropout import DropoutEvidence, dropout_too_high
from lightning_tuning.functional.wiring.wiring_imbalance import ImbalanceEvidence, class_imbalance
from lightning_tuning.functional.wiring.wiring_order import (
    OrderEvidence,
    target_order,
    unshuffled_data,
)
from lightning_tuning.functional.wiring.wiring_validation_data import (
    ValidationEvidence,
    data_shift,
    train_val_mismatch,
)

BAD = Trained(before=2.3, after=2.3)


def nan(loss, without):
    found = NonFinite(where="batch[0]", batch=3, share=0.1, loss=loss, loss_without=without)
    return nan_in_data(DataEvidence(batches=9, floats=True, non_finite=found))[0]


def test_nan_that_makes_the_loss_so_fails():
    finding = nan(math.nan, 0.7)
    assert (finding.verdict, finding.where) == ("fail", "batch[0]")
    assert "10.000%" in finding.message
    assert nan(math.inf, 0.7).verdict == "fail"


def test_nan_that_is_dealt_with_or_not_to_blame_passes():
    assert nan(0.7, 0.7).verdict == "pass"
    assert nan(math.nan, math.nan).verdict == "pass"
    assert nan_in_data(DataEvidence(batches=9, floats=True))[0].verdict == "pass"
    assert nan_in_data(DataEvidence(batches=9, floats=False))[0].verdict == "skip"


def dropout(highest, without=0.2, trained=BAD):
    evidence = DropoutEvidence(highest=highest, trained=trained, without=without)
    return dropout_too_high(evidence)[0].verdict


def test_high_dropout_warns_where_leaving_it_out_is_much_better():
    assert dropout(0.7) == "warn"
    assert dropout(0.69) == "pass"
    assert dropout(0.9, without=2.2) == "pass"
    assert dropout(0.9, trained=Trained(before=2.3, after=0.5)) == "pass"
    assert dropout(0.9, without=None) == "pass"
    assert dropout(None) == "pass"


ORDERS = {
    "blocks": (torch.arange(4).repeat_interleave(30), True),
    "blocks of two, as floats": (torch.tensor([0.0, 1.0]).repeat_interleave(30), True),
    "one class only": (torch.zeros(60).long(), True),
    "rising": (torch.linspace(-1, 5, 60), True),
    "falling": (torch.linspace(9, 5, 60), True),
    "alternating": (torch.arange(3).repeat(30), False),
    "random": (torch.randn(300, generator=torch.Generator().manual_seed(0)), False),
    "waves": (torch.linspace(0, 60, 400).sin(), False),
    "random classes": (torch.randint(5, (300,), generator=torch.Generator().manual_seed(0)), False),
    "few": (torch.arange(20.0), False),
}


@pytest.mark.parametrize("name", ORDERS)
def test_orders(name):
    targets, is_sorted = ORDERS[name]
    assert target_order(targets).is_sorted == is_sorted


def order(at_random, trained=BAD, targets=ORDERS["blocks"][0]):
    evidence = OrderEvidence(order=target_order(targets), in_order=trained, at_random=at_random)
    return unshuffled_data(evidence)[0].verdict


def test_a_sorted_order_warns_where_a_random_one_is_much_better():
    assert order(0.5) == "warn"
    assert order(2.2) == "pass"
    assert order(0.01, trained=Trained(before=2.3, after=0.2)) == "pass"
    assert order(0.5, targets=ORDERS["alternating"][0]) == "pass"
    assert unshuffled_data(OrderEvidence(order=None))[0].verdict == "skip"


def test_a_file_order_warns_though_it_trains():
    blocks = ORDERS["blocks"][0]
    noise = torch.randn(len(blocks), 3, generator=torch.Generator().manual_seed(0))
    good = Trained(before=2.0, after=0.5)

    def verdict(inputs, at_random, trained=good, targets=blocks):
        found = target_order(targets, inputs)
        evidence = OrderEvidence(order=found, in_order=trained, at_random=at_random)
        return unshuffled_data(evidence)[0].verdict

    assert verdict(noise, 0.24) == "warn"
    assert verdict(noise + 2 * blocks[:, None], 0.24) == "warn"
    assert verdict(noise, 0.26) == "pass"
    assert verdict(noise, 0.01, trained=Trained(before=2.0, after=0.19)) == "pass"
    # a recording, where neighbours look alike
    assert verdict(noise.cumsum(0), 0.01) == "pass"
    assert verdict(None, 0.01) == "pass"
    rising = torch.linspace(-1, 5, 120)
    assert verdict(noise, 0.24, targets=rising) == "warn"
    assert verdict(noise, 0.01, targets=rising + 0.1 * noise[:, 0]) == "pass"
    assert verdict(torch.cat([noise, rising[:, None]], 1), 0.01, targets=rising) == "pass"


def imbalance(**changes):
    values = {
        "examples": 1000,
        "rare": 0.01,
        "rare_count": 10,
        "recall": 0.0,
        "recall_weighted": 0.8,
        "common_weighted": 0.8,
    }
    return class_imbalance(ImbalanceEvidence(**values | changes))[0].verdict


def test_a_rare_class_warns_where_only_weights_find_it():
    assert imbalance() == "warn"
    assert imbalance(recall=0.3) == "pass"
    assert imbalance(recall_weighted=0.4) == "pass"
    assert imbalance(common_weighted=0.4) == "pass"
    assert imbalance(recall_weighted=0.6, common_weighted=0.6) == "pass"
    assert imbalance(rare=0.06) == "pass"
    assert imbalance(rare_count=4) == "pass"
    assert imbalance(remedy="weight") == "pass"
    assert imbalance(recall=None) == "pass"
    assert imbalance(examples=0) == "skip"


def mismatch(val_mean=3.0, val_std=1.0, count=100, **changes):
    shift = data_shift(
        "w", mean=[0.0], std=[1.0], val_mean=[val_mean], val_std=[val_std], count=count
    )
    values = {
        "what": "cross_entropy",
        "before": 2.5,
        "after": 4.0,
        "mapped": 0.4,
        "train_before": 2.3,
        "train_after": 0.3,
    }
    return train_val_mismatch(ValidationEvidence(shifts=(shift,), **values | changes))[0].verdict


def test_shifted_validation_data_warn_where_the_shift_does_harm():
    assert mismatch() == "warn"
    assert mismatch(val_mean=0.0, val_std=255.0) == "warn"
    assert mismatch(val_mean=0.0, val_std=0.1) == "warn"
    assert mismatch(train_before=None, train_after=None) == "warn"
    # at another scale the loss starts higher
    assert mismatch(before=30.0, after=15.0) == "warn"
    # it gets better, yet far less than it would
    assert mismatch(after=1.7) == "warn"


def test_a_remedy_that_makes_validation_much_better_warns():
    values = {"what": "x", "before": 2.3, "after": 4.0, "train_before": 2.3, "train_after": 0.3}
    found = ValidationEvidence(remedy="mirrored", mapped=0.4, **values)
    [finding] = train_val_mismatch(found)
    assert (finding.verdict, "mirrored" in finding.message) == ("warn", True)
    [finding] = train_val_mismatch(dataclasses.replace(found, mapped=3.0))
    assert finding.verdict == "skip"


def test_a_shift_without_harm_passes():
    assert mismatch(val_mean=0.9) == "pass"
    assert mismatch(val_mean=0.0, val_std=1.5) == "pass"
    assert mismatch(count=10) == "pass"
    assert mismatch(after=0.4) == "pass"
    assert mismatch(mapped=3.0) == "pass"
    assert mismatch(mapped=math.nan) == "pass"
    assert mismatch(train_after=2.2) == "pass"
    assert train_val_mismatch(ValidationEvidence())[0].verdict == "skip"
