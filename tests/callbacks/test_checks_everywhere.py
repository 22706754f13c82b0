"""The checks before a fit where Lightning runs: precisions, compiled parts, ranks, odd data."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, IterableDataset

from lightning_tuning import GradientCheck, InitialLossCheck, OverfitBatchCheck, WiringCheck
from tests.processes import run_on_ranks
from tests.toys import Classifier, Manual, loader

QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)


def checks():
    return [
        InitialLossCheck(num_batches=3),
        OverfitBatchCheck(num_samples=8, max_steps=40),
        GradientCheck(num_entries=4, burn_in_steps=2),
        WiringCheck(),
    ]


def fit(callbacks, make=Classifier, data=None, **settings):
    seed_everything(3, verbose=False)
    settings = {"max_epochs": 1, "accelerator": "cpu", **QUIET, **settings}
    trainer = Trainer(enable_model_summary=False, callbacks=callbacks, **settings)
    trainer.fit(make(), loader(shuffle=True) if data is None else data, loader(8))
    return trainer


def assert_quiet_and_undisturbed(**settings):
    callbacks = checks()
    checked = fit(callbacks, **settings).lightning_module.state_dict()
    plain = fit([], **settings).lightning_module.state_dict()
    assert all(torch.equal(plain[name], checked[name]) for name in plain)
    loud = [f for c in callbacks for f in c.findings if f.verdict in ("warn", "fail")]
    assert loud == []
    return callbacks


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_precisions(precision):
    assert_quiet_and_undisturbed(precision=precision)


SETTINGS = {
    "accumulation": {"accumulate_grad_batches": 2},
    "clipping": {"gradient_clip_val": 0.5},
    "manual optimization": {"make": Manual},
    "parameter groups": {"make": lambda: Classifier(groups=(0.1, 0.01))},
    "lbfgs": {"make": lambda: Classifier(optimizer=lambda p: torch.optim.LBFGS(p, lr=0.1))},
    "fewer batches": {"limit_train_batches": 2},
    "overfit_batches": {"overfit_batches": 1},
    "max_steps": {"max_steps": 3, "max_epochs": -1},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader")
def test_settings_of_the_trainer(name):
    assert_quiet_and_undisturbed(**SETTINGS[name])


class Stream(IterableDataset):
    def __iter__(self):
        yield from loader().dataset


class Named(Classifier):
    """Takes batches as dicts."""

    def loss(self, batch):
        return super().loss((batch["inputs"], batch["labels"]))


def as_dicts():
    def collate(examples):
        inputs, labels = torch.utils.data.default_collate(examples)
        return {"inputs": inputs, "labels": labels, "names": [str(i) for i in range(len(labels))]}

    return DataLoader(loader().dataset, 4, shuffle=True, collate_fn=collate)


class OnDicts(Named):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", Classifier.loss(self, batch))


@pytest.mark.parametrize(
    "settings",
    [
        {"data": DataLoader(Stream(), 4)},
        {"data": as_dicts(), "make": OnDicts},
        {"data": DataLoader(loader().dataset, 1, shuffle=True)},
        {"data": DataLoader(loader().dataset, 24)},
    ],
    ids=["a stream", "dicts", "one example a batch", "one batch"],
)
def test_data(settings):
    assert_quiet_and_undisturbed(**settings)


class WithEager(Classifier):
    """A part of it is compiled."""

    def __init__(self):
        super().__init__()
        self.compiled = torch.compile(self.net, backend="eager")

    def forward(self, inputs):
        return self.compiled(inputs)


def test_a_compiled_part():
    callbacks = assert_quiet_and_undisturbed(make=WithEager)
    # what a graph would hide is seen, since nothing is compiled meanwhile
    assert "softmax_before_ce" in {f.code for f in callbacks[3].findings if f.verdict == "pass"}


class Sharded(Classifier):
    def configure_model(self):
        fully_shard(self.net[0])
        fully_shard(self.net)


@pytest.mark.processes
@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes(sharded):
    def rank():
        import warnings

        warnings.simplefilter("ignore")
        strategy = "ddp"
        if sharded:
            strategy = ModelParallelStrategy(
                data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
            )
        make = Sharded if sharded else Classifier
        callbacks = checks()
        trainer = fit(callbacks, make=make, devices=2, strategy=strategy)
        told = [(f.check, f.code, f.verdict, f.message) for c in callbacks for f in c.findings]
        return trainer.global_step, told

    (steps, told), (_, others) = run_on_ranks(rank)
    assert steps == 3
    assert told == others
    assert not [entry for entry in told if entry[2] in ("warn", "fail")]
    wiring = [entry for entry in told if entry[0] == "wiring_check"]
    assert all("several processes" in entry[3] for entry in wiring)


class Net(LightningModule):
    """Larger, for a device."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()),
            *(nn.Dropout(0.3), nn.Linear(16 * 36, 10)),
        )

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_on_a_device(precision):
    images = torch.randn(256, 1, 8, 8)
    data = torch.utils.data.TensorDataset(images, (images.mean((1, 2, 3)) > 0).long())
    callbacks = checks()
    fit(
        callbacks,
        make=Net,
        data=DataLoader(data, 32, shuffle=True),
        accelerator="gpu",
        devices=1,
        precision=precision,
    )
    loud = [f for c in callbacks for f in c.findings if f.verdict in ("warn", "fail")]
    assert loud == []
