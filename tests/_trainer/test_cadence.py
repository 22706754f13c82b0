"""Which steps of a fit are measured when nobody says it."""

import itertools

import pytest
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, IterableDataset

from lightning_tuning._trainer.cadence import Cadence, epochs_between_readings
from tests.toys import Classifier, Manual, loader


class Endless(IterableDataset):
    def __iter__(self):
        data = loader().dataset
        return (data[i % len(data)] for i in itertools.count())


class Asks(Callback):
    def on_train_start(self, trainer, pl_module):
        self.every = Cadence(trainer, None).every_n_steps
        self.epochs = epochs_between_readings(trainer)
        trainer.should_stop = True


def asked(train=None, module=None, **settings):
    asks = Asks()
    trainer = Trainer(
        **settings,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[asks],
    )
    trainer.fit(module or Classifier(), loader() if train is None else train, loader())
    return asks.every, asks.epochs


@pytest.mark.parametrize(
    ("settings", "every", "epochs"),
    [
        ({"max_epochs": 1}, 1, 1),  # 6 steps an epoch
        ({"max_steps": 400}, 20, 1),  # twenty points
        ({"max_steps": 1000}, 50, 2),
        ({"max_steps": 5000}, 50, 9),  # a hundred
        ({"max_steps": 5001}, 51, 9),
        ({"max_epochs": 30_000}, 1800, 300),
        ({"max_epochs": 100}, 30, 1),
        ({"max_epochs": 101}, 30, 2),
        ({"max_epochs": 30_000, "accumulate_grad_batches": 3}, 600, 300),
        ({"max_steps": 5000, "log_every_n_steps": 1}, 50, 9),
        ({"max_steps": 100, "log_every_n_steps": 1}, 1, 1),
        ({"max_steps": 4000, "log_every_n_steps": 500}, 200, 7),
        ({"max_epochs": -1}, 50, 1),  # nobody knows how long
    ],
)
def test_between_twenty_and_a_hundred_points(settings, every, epochs):
    assert asked(**settings) == (every, epochs)


def test_a_loader_without_length():
    assert asked(DataLoader(Endless(), 4), max_epochs=3) == (50, 1)
    assert asked(DataLoader(Endless(), 4), max_steps=30_000) == (300, 1)


def test_batches_count_where_the_module_steps():
    assert asked(module=Manual(every=2), max_epochs=5000) == (300, 50)
