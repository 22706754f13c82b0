"""EMAWeights in training programs of all kinds: the recursion, judged by it, training untouched."""

import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
)
from torch import nn
from torch.utils.data import IterableDataset

from lightning_tuning import EMAWeights, OneCycle
from tests.callbacks.ema_reference import assert_recursion_and_same_training, fit, settings
from tests.toys import Classifier, Manual, loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist:UserWarning"),
]

PROGRAMS = {}


def program(make):
    PROGRAMS[make.__name__] = make
    return make


@program
def plain():
    return Classifier(), settings()


@program
def long_and_without_warmup():
    return Classifier(), settings(ema={"decay": 0.99, "warmup": False}, max_epochs=5)


@program
def accumulation():
    # 6 batches: groups of 4 and 2
    return Classifier(), settings(accumulate_grad_batches=4, max_epochs=3)


@program
def accumulation_scheduler():
    schedule = GradientAccumulationScheduler({0: 1, 1: 4})
    return Classifier(), settings(callbacks=[schedule])


@program
def validation_within_an_accumulation():
    return Classifier(), settings(accumulate_grad_batches=4, val_check_interval=3)


@program
def two_optimizers_at_two_rates():
    return Manual(every=4), settings()


class Bare(Manual):
    """Steps torch's optimizers, of which Lightning knows nothing."""

    def optimizers(self, use_pl_optimizer=True):
        return super().optimizers(use_pl_optimizer=False)


@program
def bare_optimizers():
    return Bare(every=4), settings()


class SharesOne(Manual):
    """Both optimizers hold and step the last bias."""

    def configure_optimizers(self):
        first = torch.optim.SGD([*self.net[0].parameters(), self.net[2].bias], lr=0.1)
        return [first, torch.optim.AdamW(self.net[2].parameters(), lr=0.01)]


class Gan(Manual):
    """One of two optimizers at a time, a different number of steps in each batch."""

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        for optimizer, times in ((first, batch_idx % 3), (second, 1)):
            for _ in range(times):
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()
                self.untoggle_optimizer(optimizer)


@program
def gan():
    return Gan(), settings()


@program
def lbfgs():
    optimizer = torch.optim.LBFGS
    return Classifier(lambda p: optimizer(p, lr=0.1, max_iter=3)), settings()


class Tied(Classifier):
    def __init__(self, **others):
        super().__init__(features=8, classes=8, **others)
        self.net[2].weight = self.net[0].weight


@program
def tied():
    data = {"data": loader(features=8), "val": loader(8, features=8)}
    return Tied(), settings(**data)


class Frozen(Classifier):
    def configure_optimizers(self):
        self.net[0].requires_grad_(False)
        return self.make_optimizer(self.net[2].parameters())


@program
def frozen():
    return Frozen(), settings()


class WithBackbone(Classifier):
    def __init__(self):
        super().__init__()
        self.backbone, self.net = self.net[0], nn.Sequential(nn.ReLU(), self.net[2])

    def forward(self, inputs):
        return self.net(self.backbone(inputs))

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)


@program
def backbone_finetuning():
    joins = BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False)
    return WithBackbone(), settings(callbacks=[joins], max_epochs=3)


class Sparse(Classifier):
    def __init__(self, make):
        super().__init__(optimizer=make)
        self.net = nn.Sequential(nn.Embedding(9, 3, sparse=True))

    def forward(self, inputs):
        return self.net((inputs[:, 0].abs() * 4).long().clamp(max=8))


@program
def sparse_sgd():
    return Sparse(lambda p: torch.optim.SGD(p, lr=0.1)), settings()


@program
def sparse_adam():
    return Sparse(lambda p: torch.optim.SparseAdam(list(p), lr=0.1)), settings()


@program
def every_3():
    every = {"every_n_steps": 3}
    return Classifier(), settings(ema=every, max_epochs=4)


@program
def delayed():
    late = {"update_after_step": 7}
    return Classifier(), settings(ema=late, reference={"after": 7}, val_check_interval=2)


class Recurrent(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.LSTM(6, 3, num_layers=2, bidirectional=True)

    def forward(self, inputs):
        return self.net(inputs[None])[0][0]


@program
def recurrent():
    return Recurrent(), settings()


class ChannelsLast(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4, 3))
        self.to(memory_format=torch.channels_last)

    def forward(self, inputs):
        return self.net(inputs[:, :, None, None].expand(-1, -1, 3, 3))


@program
def channels_last():
    return ChannelsLast(), settings()


class Clipped(Classifier):
    """Clips weights as WGAN does, after each batch."""

    def on_train_batch_start(self, batch, batch_idx):
        for p in self.parameters():
            p.data = p.data.clamp(-0.2, 0.2)


@program
def clipped_by_data():
    return Clipped(), settings()


class Endless(IterableDataset):
    def __iter__(self):
        yield from loader().dataset


@program
def iterable():
    data = torch.utils.data.DataLoader(Endless(), 4)
    return Classifier(), settings(data=data, max_steps=9, max_epochs=-1, val_check_interval=4)


@program
def one_cycle():
    return Classifier(), settings(callbacks=[OneCycle(max_lr=0.1)])


@program
def early_stopping():
    stop = EarlyStopping("val_loss", patience=1, min_delta=10.0)
    return Classifier(), settings(callbacks=[stop], max_epochs=9)


@program
def gradient_clipping():
    return Classifier(), settings(gradient_clip_val=0.1)


@program
def on_the_host():
    return Classifier(), settings(ema={"device": "cpu"})


@pytest.mark.parametrize("name", PROGRAMS)
def test_recursion_and_training(name):
    assert_recursion_and_same_training(PROGRAMS[name])


def test_parameter_shared_by_two_optimizers():
    """It goes with the first that holds it, which steps seldomer here than the other."""
    module = SharesOne(every=1)
    ema = EMAWeights(0.8)
    fit(module, ema)
    assert set(ema.average) == {name for name, _ in module.named_parameters()}
