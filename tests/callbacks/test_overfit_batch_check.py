"""A minimal program for each code, its healthy twin, and what must stay silent."""

import json

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import ChecksFailedError, OverfitBatchCheck
from tests._trainer.probing import differences, run_fit
from tests._trainer.programs import PROGRAMS


def examples(samples=300, features=24, classes=4):
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(samples, features, generator=generator)
    weights = torch.randn(features, classes, generator=generator)
    return inputs, (inputs @ weights).argmax(1)


class Net(LightningModule):
    """A classifier; ``optimizer`` makes one from parameters, ``scheduler`` from the optimizer."""

    def __init__(self, optimizer=None, scheduler=None, see=lambda x: x, net=None):
        super().__init__()
        hidden = [nn.Linear(24, 64), nn.ReLU(), nn.Dropout(0.2)]
        self.net = net or nn.Sequential(*hidden, nn.Linear(64, 4))
        self.make_optimizer = optimizer or (lambda p: torch.optim.Adam(p, lr=1e-2))
        self.make_scheduler = scheduler
        self.see = see

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(self.see(batch[0])), batch[1])

    def loss(self, output, target):
        return F.cross_entropy(output, target)

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.make_scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Values(Net):
    def loss(self, output, target):
        return F.mse_loss(output, target.float())


def checked(module, *, data=None, check=None, loader=None, logger=False, **settings):
    seed_everything(3, verbose=False)
    check = check or OverfitBatchCheck(max_steps=50)
    loader = loader or DataLoader(TensorDataset(*(data or examples())), 32, shuffle=True)
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[check],
        **settings,
    )
    trainer.fit(module, loader)
    return check


def codes(check):
    return {f.code for f in check.findings if f.verdict in ("warn", "fail")}


def adam(lr, **settings):
    return lambda parameters: torch.optim.Adam(parameters, lr=lr, **settings)


def sgd(lr, **settings):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, **settings)


def decays(factor):
    return lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, factor)


def warms_up(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 5000))


@pytest.mark.parametrize(
    ("code", "broken", "healthy", "settings"),
    [
        ("lr_too_high", adam(3.0), adam(1e-3), {}),
        ("lr_too_low", adam(1e-7), adam(1e-5), {}),
        ("lr_too_low", sgd(1e-6), sgd(1e-3), {}),
        ("weight_decay_too_high", adam(1e-2, weight_decay=5.0), adam(1e-2, weight_decay=0.1), {}),
        ("momentum_too_high", sgd(0.1, momentum=0.999), sgd(0.02, momentum=0.99), {}),
    ],
)
def test_a_setting_that_spoils_the_training(code, broken, healthy, settings):
    assert codes(checked(Net(broken), **settings)) == {code}
    assert codes(checked(Net(healthy), **settings)) == set()


def test_clipping_that_leaves_nothing():
    assert codes(checked(Net(sgd(0.1)), gradient_clip_val=1e-5)) == {"clip_too_small"}
    assert codes(checked(Net(sgd(0.1)), gradient_clip_val=0.1)) == set()


def test_a_schedule_that_leaves_nothing_and_schedules_that_start_low():
    assert codes(checked(Net(scheduler=decays(0.5)))) == {"lr_too_low"}
    assert codes(checked(Net(scheduler=decays(0.999)))) == set()
    assert codes(checked(Net(scheduler=warms_up))) == set()


def test_a_group_with_a_rate_of_its_own():
    def groups(head):
        def make(parameters):
            first, second, *last = parameters
            return torch.optim.SGD([{"params": [first, second]}, {"params": last, "lr": head}], 0.1)

        return make

    check = checked(Net(groups(100.0)))
    assert codes(check) == {"lr_too_high"}
    assert "all parameter groups" in next(f.message for f in check.findings if f.verdict == "warn")
    assert codes(checked(Net(groups(1.0)))) == set()


def test_an_input_that_is_ignored():
    assert codes(checked(Net(see=torch.zeros_like))) == {"input_ignored"}
    check = checked(Net())
    assert codes(check) == set()
    assert check.result.zeroed.reached > 1.0 > check.result.best.reached


def test_a_network_that_is_dead_does_not_ignore_its_input():
    net = Net()
    nn.init.constant_(net.net[0].bias, -1e3)
    assert codes(checked(net)) == {"cannot_overfit_batch"}


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_loss_that_compares_the_wrong_things_cannot_be_overfitted():
    def one():
        return nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 1))

    inputs, labels = examples()
    broadcast = checked(Values(net=one()), data=(inputs, labels))
    assert codes(broadcast) == {"cannot_overfit_batch"}
    assert codes(checked(Values(net=one()), data=(inputs, labels[:, None]))) == set()


def test_what_has_too_little_capacity_is_not_blamed():
    inputs, _ = examples(features=3)
    noise = torch.randn(300, 1, generator=torch.Generator().manual_seed(1))
    linear = nn.Sequential(nn.Linear(3, 64), nn.Linear(64, 1))
    check = checked(Values(net=linear), data=(inputs, noise))
    assert codes(check) == set()
    assert check.findings[0].code == "overfit_not_judged"


def test_another_rate_that_works_is_named():
    check = checked(Net(adam(1e-4)), check=OverfitBatchCheck(max_steps=200))
    assert check.findings[0].verdict == "pass"
    assert check.result.best.factor == 10.0
    assert "not at 0.0001" in check.findings[0].message


def test_lower_rates_are_not_tried_where_the_loss_does_not_move():
    check = checked(Net(adam(1e-9)), check=OverfitBatchCheck(max_steps=30))
    assert [run.factor for run in check.result.runs] == [1.0, 10.0, 100.0, 1000.0]


def test_a_target_of_ones_own():
    passed = checked(Net(), check=OverfitBatchCheck(target_loss=0.5))
    assert passed.findings[0].verdict == "pass"
    with pytest.raises(ChecksFailedError, match="cannot_overfit_batch"):
        checked(Net(), check=OverfitBatchCheck(8, max_steps=5, target_loss=-1.0, on_fail="raise"))


class Padded(LightningModule):
    """Time first, packed, with dropout that nothing turns off."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(6, 32, num_layers=2, dropout=0.5)
        self.head = nn.Linear(32, 3)

    def training_step(self, batch, batch_idx):
        packed = nn.utils.rnn.pack_padded_sequence(batch["x"], batch["n"], enforce_sorted=False)
        state = F.dropout(self.gru(packed)[1][-1], 0.5, training=True)
        return F.cross_entropy(self.head(state), batch["y"])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def pad(items):
    inputs, labels = zip(*items, strict=True)
    lengths = torch.tensor([len(one) for one in inputs])
    return {
        "x": nn.utils.rnn.pad_sequence(list(inputs)),
        "n": lengths,
        "y": torch.stack(labels),
    }


def test_examples_are_collated_as_the_loader_does():
    generator = torch.Generator().manual_seed(2)
    items = [
        (torch.randn(3 + index % 4, 6, generator=generator), torch.tensor(index % 3))
        for index in range(100)
    ]
    check = checked(Padded(), loader=DataLoader(items, 8, shuffle=True, collate_fn=pad))
    assert check.result.samples == 20
    assert check.result.overfitted
    assert codes(check) == set()


class EveryFourth(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx) / 4)
        if (batch_idx + 1) % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()


def test_steps_that_go_by_the_batch_index():
    check = checked(EveryFourth())
    assert check.result.overfitted


class OneOfTwo(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(24, 4)

    def training_step(self, batch, batch_idx):
        loss = sum(F.cross_entropy(self.net(x), y) for x, y in batch.values())
        return loss / len(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def test_several_loaders():
    loader = {name: DataLoader(TensorDataset(*examples()), 32, shuffle=True) for name in "ab"}
    check = checked(OneOfTwo(), loader=loader)
    assert check.result.overfitted
    assert check.result.chance is not None


def test_it_is_skipped_on_resume_and_under_fast_dev_run():
    check = OverfitBatchCheck()
    trainer = Trainer(fast_dev_run=1, accelerator="cpu", callbacks=[check], logger=False)
    trainer.fit(Net(), DataLoader(TensorDataset(*examples()), 32))
    assert [finding.verdict for finding in check.findings] == ["skip"]
    assert check.result is None


def test_files(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="run")
    check = checked(Net(), logger=logger)
    written = (tmp_path / "run" / "overfit_batch_check.json").read_text()
    assert type(check.result).from_json(written) == check.result
    assert (tmp_path / "run" / "overfit_batch_check.png").exists()
    found = json.loads((tmp_path / "run" / "findings.json").read_text())
    assert found[0]["code"] == "batch_overfitted"


@pytest.mark.parametrize("name", sorted(PROGRAMS)[:2])
def test_it_leaves_no_trace(name, tmp_path):
    program = PROGRAMS[name]
    _, plain = run_fit(program, tmp_path / "plain", logger=False)
    check = OverfitBatchCheck(max_steps=20)
    _, with_check = run_fit(program, tmp_path / "check", check, logger=False)
    assert check.result is not None
    assert differences(plain, with_check) == []
