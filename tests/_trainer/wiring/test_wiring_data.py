"""Each fault of the data in a minimal program, its healthy twin, and idioms that stay silent."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_tuning._trainer.wiring import (
    wiring_data,
    wiring_imbalance,
    wiring_order,
    wiring_validation_data,
)
from lightning_tuning._trainer.wiring.data_leaves import leaves
from tests._trainer.wiring_programs import Learner, alarms_of, clusters, judged, parts_unchanged

NAN, ORDER = [wiring_data.TOPIC], [wiring_order.TOPIC]
IMBALANCE, VALIDATION = [wiring_imbalance.TOPIC], [wiring_validation_data.TOPIC]


def net(outputs=4, inputs=8):
    return lambda: nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))


def with_gap(value, row=100):
    x, y = clusters()
    x = x.clone()
    x[row, 3] = value
    return x, y


class Filled(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()()

    def forward(self, x):
        return self.net(torch.nan_to_num(x, posinf=0.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_the_data_of_a_later_batch(value):
    found = judged(NAN, Learner(net()), with_gap(value, row=250), shuffle=False).findings
    assert [(f.code, f.verdict, f.where) for f in found] == [("nan_in_data", "fail", "batch[0]")]
    assert found[0].evidence["batch"] == 15
    assert alarms_of(NAN, Learner(net()), with_gap(0.0)) == []


def test_nan_among_the_targets():
    x, y = clusters()
    y = y.float()[:, None]
    gone = y.clone()
    gone[7] = float("nan")
    assert alarms_of(NAN, Learner(net(1), loss=F.mse_loss), (x, gone)) == ["nan_in_data"]
    assert alarms_of(NAN, Learner(net(1), loss=F.mse_loss), (x, y)) == []


def test_nan_that_the_program_deals_with():
    assert alarms_of(NAN, Learner(Filled), with_gap(float("nan"))) == []

    def masked(output, target):
        return F.mse_loss(output[~target.isnan()], target[~target.isnan()])

    x, y = clusters()
    y = y.float()[:, None].clone()
    y[7] = float("nan")
    assert alarms_of(NAN, Learner(net(1), loss=masked), (x, y)) == []


def test_a_loss_that_is_nan_of_itself_is_not_the_data():
    def broken(output, target):
        return (output * 0 - 1).log().mean()

    assert alarms_of(NAN, Learner(net(), loss=broken), with_gap(float("nan"))) == []


def test_leaves_of_any_structure():
    batch = {"a": [torch.zeros(1), (torch.ones(2), "text")], "b": torch.zeros(3)}
    assert [path for path, _ in leaves(batch)] == [
        *("batch['a'][0]", "batch['a'][1][0]", "batch['b']"),
    ]


def by_class():
    x, y = clusters(640)
    order = y.argsort(stable=True)
    return (x + 1.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3)))[order], y[
        order
    ]


def test_examples_sorted_by_class():
    assert alarms_of(ORDER, Learner(net(), lr=0.05), by_class(), shuffle=False) == [
        "unshuffled_data"
    ]
    assert alarms_of(ORDER, Learner(net(), lr=0.05), by_class(), shuffle=True) == []


def test_a_file_in_its_order_that_trains_all_the_same():
    # several passes over blocks: learnt, and forgotten in part each time
    x, y = clusters(640)
    x = x + 0.8 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    order = y.argsort(stable=True)
    data = x[order], y[order]
    [finding] = judged(ORDER, Learner(net(), lr=0.02), data, shuffle=False).findings
    assert (finding.code, finding.verdict) == ("unshuffled_data", "warn")
    assert finding.evidence["loss_after"] < 0.6
    assert alarms_of(ORDER, Learner(net(), lr=0.02), data, shuffle=True) == []
    # at small steps nothing is forgotten
    assert alarms_of(ORDER, Learner(net(), lr=0.001), data, shuffle=False) == []


def by_value():
    x, _ = clusters(640)
    y = torch.sin(x[:, :1]) + x[:, 1:2]
    order = y.flatten().argsort()
    return x[order], y[order]


def test_examples_sorted_by_value():
    program = lambda: Learner(net(1), lr=0.05, loss=F.mse_loss)  # noqa: E731
    assert alarms_of(ORDER, program(), by_value(), shuffle=False) == ["unshuffled_data"]
    assert alarms_of(ORDER, program(), by_value(), shuffle=True) == []


def series():
    t = torch.arange(1500.0)
    values = torch.sin(t / 20) + t / 1500
    return torch.stack([values[i : i + 12] for i in range(1400)]), values[12:1412, None]


class Stream(IterableDataset):
    def __iter__(self):
        x, y = by_class()
        yield from zip(x, y, strict=True)


def test_orders_that_stay_silent():
    forecast = Learner(net(1, 12), lr=0.02, loss=F.mse_loss)
    assert alarms_of(ORDER, forecast, series(), shuffle=False) == []
    assert alarms_of(ORDER, Learner(net()), clusters(), shuffle=False) == []
    stream = DataLoader(Stream(), batch_size=16)
    assert alarms_of(ORDER, Learner(net()), stream) == []
    # what is sorted in each batch only
    x, y = clusters()
    assert alarms_of(ORDER, Learner(net()), (x, y), shuffle=False, batch_size=4) == []


def rare(distance, share=100, count=3000):
    generator = torch.Generator().manual_seed(5)
    y = (torch.arange(count) % share == 7).long()[torch.randperm(count, generator=generator)]
    x = torch.randn(count, 8, generator=generator) + distance * y[:, None]
    return x, y


def test_a_rare_class_that_drowns():
    data = rare(0.8)
    weight = torch.tensor([0.01, 0.99])
    plain = Learner(net(2), lr=0.01)
    weighed = Learner(net(2), lr=0.01, loss=lambda o, t: F.cross_entropy(o, t, weight=weight))
    assert alarms_of(IMBALANCE, plain, data, batch_size=64) == ["class_imbalance"]
    assert alarms_of(IMBALANCE, weighed, data, batch_size=64) == []


@pytest.mark.parametrize(("weight", "codes"), [(1.0, ["class_imbalance"]), (60.0, [])])
def test_weights_that_weigh_nothing_are_no_remedy(weight, codes):
    x, y = rare(0.8)
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weight))
    program = Learner(net(1), lr=0.01, loss=loss)
    assert alarms_of(IMBALANCE, program, (x, y.float()[:, None]), batch_size=64) == codes


def test_a_rare_class_that_is_learnt_or_cannot_be():
    assert alarms_of(IMBALANCE, Learner(net(2), lr=0.05), rare(2.0, share=22), batch_size=64) == []
    assert alarms_of(IMBALANCE, Learner(net(2), lr=0.01), rare(0.0), batch_size=64) == []


def test_a_rare_positive_among_logits():
    x, y = rare(0.8)
    data = x, y.float()[:, None]
    loss = F.binary_cross_entropy_with_logits
    assert alarms_of(IMBALANCE, Learner(net(1), lr=0.01, loss=loss), data, batch_size=64) == [
        "class_imbalance"
    ]
    # of several labels each may be rare
    several = x, torch.cat([data[1]] * 3, 1)
    assert alarms_of(IMBALANCE, Learner(net(3), lr=0.01, loss=loss), several, batch_size=64) == []


class OtherTransform(Learner):
    """Validation pictures are scaled in another way."""

    def __init__(self, *args, transform, **settings):
        super().__init__(*args, **settings)
        self.transform = transform

    def validation_step(self, batch, batch_idx):
        super().validation_step((self.transform(batch[0]), batch[1]), batch_idx)


@pytest.mark.parametrize("transform", [lambda x: 20 * x + 60, lambda x: 3 - x, lambda x: 0.01 * x])
def test_validation_data_of_another_scale(transform):
    program = OtherTransform(net(), lr=0.05, transform=transform)
    assert alarms_of(VALIDATION, program, clusters(), clusters(64)) == ["train_val_mismatch"]


def test_validation_data_that_stay_silent():
    x, y = clusters()
    noisy = lambda x: x + 0.3 * torch.randn_like(x)  # noqa: E731
    program = OtherTransform(net(), lr=0.05, transform=noisy)
    assert alarms_of(VALIDATION, program, (x, y), clusters(64)) == []
    # one class only, which shifts the means
    one = x[y == 0], y[y == 0]
    assert alarms_of(VALIDATION, Learner(net(), lr=0.05), (x, y), one) == []
    # a shift that does no harm
    normed = lambda: nn.Sequential(nn.LayerNorm(8), *net()())  # noqa: E731
    scaled = OtherTransform(normed, lr=0.05, transform=lambda x: 20 * x)
    assert alarms_of(VALIDATION, scaled, (x, y), clusters(64)) == []


def test_without_validation_data_it_is_skipped():
    [finding] = judged(VALIDATION, Learner(net())).findings
    assert (finding.verdict, finding.code) == ("skip", "train_val_mismatch")


class Counted(TensorDataset):
    """Counts what it has handed out, and draws from the global generator."""

    served = 0

    def __getitem__(self, index):
        self.served += 1
        x, y = super().__getitem__(index)
        return x + 0.01 * torch.randn_like(x), y


def test_nothing_is_left_behind():
    dataset = Counted(*by_class())
    loader = DataLoader(dataset, 16)
    topics = [*NAN, *ORDER, *IMBALANCE, *VALIDATION]
    assert parts_unchanged(topics, Learner(net(), lr=0.05), loader, clusters(64))
    assert dataset.served == 0
