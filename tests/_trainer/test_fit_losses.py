"""The record of training losses is what training_step returned, one number a step."""

import os

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_tuning._trainer import fit_losses as record
from tests.processes import run_on_ranks


class Returns(LightningModule):
    """Its step returns what a function of the batch's number says."""

    def __init__(self, told, automatic=True):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.told = told
        self.automatic_optimization = automatic

    def training_step(self, batch, batch_idx):
        value = self.told(batch_idx)
        if not self.automatic_optimization:
            self.optimizers().step()
            return value
        return None if value is None else value + 0 * self.weight

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Keeps(Callback):
    def on_fit_start(self, trainer, pl_module):
        record.forget_losses(trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        record.fit_losses(trainer).note(trainer, outputs)
        record.fit_losses(trainer).note(trainer, outputs)

    def on_train_end(self, trainer, pl_module):
        steps, losses = record.fit_losses(trainer).read(trainer)
        self.steps, self.losses = list(steps), list(losses)


def recorded(told, batches=9, automatic=True, **settings):
    keeps = Keeps()
    trainer = Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", **settings},
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[keeps],
    )
    trainer.fit(Returns(told, automatic), DataLoader(range(batches), batch_size=1))
    return keeps.steps, keeps.losses


def test_one_number_for_each_step():
    steps, losses = recorded(lambda n: torch.tensor(float(n)))
    assert (steps, losses) == (list(range(9)), [float(n) for n in range(9)])


def test_a_step_over_several_batches_has_their_mean_and_the_last_group_too():
    steps, losses = recorded(lambda n: torch.tensor(float(n)), accumulate_grad_batches=4)
    assert steps == [0, 1, 2]
    assert losses == pytest.approx([1.5, 5.5, 8.0])


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_without_a_loss_leaves_nothing_for_the_next_step():
    told = lambda n: None if n in (3, 7) else torch.tensor(1.0)  # noqa: E731
    _, losses = recorded(told, accumulate_grad_batches=4)
    assert losses == pytest.approx([1.0, 1.0, 1.0])
    steps, losses = recorded(lambda n: None if n == 2 else torch.tensor(float(n)), batches=4)
    assert (steps, losses) == ([0, 1, 3], [0.0, 1.0, 3.0])


def test_a_buffer_that_the_module_writes_again_is_not_shared():
    buffer = torch.zeros(())
    _, losses = recorded(buffer.fill_, automatic=False)
    assert losses == [float(n) for n in range(9)]


def test_what_is_no_number_is_no_loss():
    assert recorded(lambda n: torch.ones(4), automatic=False) == ([], [])


def test_many_are_kept_together(monkeypatch):
    monkeypatch.setattr(record, "_HELD", 4)
    steps, losses = recorded(lambda n: torch.tensor(float(n)), batches=10, max_epochs=2)
    assert steps == list(range(20))
    assert losses == [float(n) for n in range(10)] * 2


def _on_two_ranks():
    rank = int(os.environ["LOCAL_RANK"])
    _, losses = recorded(lambda n: torch.tensor(float(n + 10 * rank)), strategy="ddp", devices=2)
    return losses


def test_ranks_have_their_mean():
    one, two = run_on_ranks(_on_two_ranks)
    assert one == two == [n + 5.0 for n in range(len(one))]
    assert len(one) == 5
