"""Averages of weights: closed forms, torch's own average, and the greedy choice."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from lightning_tuning import soup
from tests.toys import Classifier, loader

QUIET = dict.fromkeys(
    ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)


class One(LightningModule):
    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(value)))


def of(value):
    return lambda model: -abs(model.weight.item() - value)


def test_a_uniform_soup_is_torchs_average():
    members = []
    for seed in range(4):
        torch.manual_seed(seed)
        members.append(nn.Linear(3, 2))
    theirs = AveragedModel(members[0])
    for member in members:
        theirs.update_parameters(member)

    class Around(LightningModule):
        def __init__(self, net):
            super().__init__()
            self.net = net

    template = Around(nn.Linear(3, 2))
    before = template.net.weight.clone()
    made = soup(template, [Around(member) for member in members])
    torch.testing.assert_close(made.model.net.weight, theirs.module.weight)
    assert made.members == (0, 1, 2, 3)
    assert torch.equal(template.net.weight, before)


def test_a_greedy_soup_keeps_what_does_not_harm():
    # from the best one on: 4.5 alone; with 6 it is 5.25, with 3 it is 4.5
    made = soup(One(0), [One(3), One(9), One(4.5), One(6)], score=of(5))
    assert made.scores == (-2.0, -4.0, -0.5, -1.0)
    assert made.members == (2, 3)
    assert made.model.weight.item() == 5.25
    assert made.score == -0.25


def test_a_greedy_soup_is_never_worse_than_its_best_member():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        values = torch.randn(5, generator=generator).tolist()
        made = soup(One(0), [One(v) for v in values], score=of(0.3))
        assert made.score >= max(made.scores)


class Normed(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def test_statistics_of_batch_norm_are_measured_anew():
    members = [Normed() for _ in range(2)]
    for number, member in enumerate(members):
        nn.init.constant_(member.net[0].bias, 10.0 * number)
    with pytest.raises(ValueError, match=r"loader=None.*BatchNorm"):
        soup(Normed(), members)
    made = soup(Normed(), members, loader=loader())
    update_bn(loader(), made.model)
    again = made.model.net[1].running_mean.clone()
    torch.testing.assert_close(
        soup(Normed(), members, loader=loader()).model.net[1].running_mean, again
    )
    assert made.model.net[1].running_mean.mean() > 4.0


def test_by_a_trainers_validation_from_checkpoints():
    paths = []
    trainer = Trainer(max_epochs=1, accelerator="cpu", **QUIET)
    module = Classifier()
    for epoch in range(3):
        trainer.fit_loop.max_epochs = epoch + 1
        trainer.fit(module, loader(), loader(8))
        paths.append(f"{epoch}.ckpt")
        trainer.save_checkpoint(paths[-1])
    judge = Trainer(accelerator="cpu", **QUIET)

    def score(model):
        return -judge.validate(model, loader(), verbose=False)[0]["val_loss"]

    made = soup(Classifier(), paths, score=score)
    assert made.score >= max(made.scores)
    assert score(made.model) == pytest.approx(made.score)
    with pytest.raises(ValueError, match=r"members=\[\]"):
        soup(Classifier(), [])
