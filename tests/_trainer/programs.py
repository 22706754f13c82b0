"""Training programs of all kinds, for a probe to disturb.

Each returns a module, the arguments of ``fit`` and the settings of its trainer.
"""

import collections
import random
import warnings

import numpy as np
import torch
import torchmetrics
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

PROGRAMS = {}


def program(make):
    PROGRAMS[make.__name__] = make
    return make


class Points(Dataset):
    """Numbered points of a plane to which ``noise()`` is added."""

    def __init__(self, length=18, noise=None):
        generator = torch.Generator().manual_seed(5)
        self.inputs = torch.randn(length, 4, generator=generator)
        self.targets = self.inputs.sum(1, keepdim=True)
        self.noise = noise
        self.served = 0
        self.own = np.random.default_rng(4)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        self.served += 1
        noise = {
            None: lambda: 0.0,
            "torch": lambda: torch.randn(4),
            "own": lambda: torch.from_numpy(self.own.normal(size=4)).float(),
            "python": lambda: random.random() + np.random.rand(),  # noqa: NPY002
        }[self.noise]()
        return index, self.inputs[index] + noise, self.targets[index]


class Net(LightningModule):
    """BatchNorm, dropout, a metric, and a list of the samples that it saw."""

    def __init__(self, optimizer=None):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1)
        )
        self.metric = torchmetrics.MeanSquaredError()
        self.val_metric = torchmetrics.MeanAbsoluteError()
        self.seen = []
        self.make_optimizer = optimizer or (lambda p: torch.optim.Adam(p, lr=0.01))

    def forward(self, inputs):
        return self.layers(inputs)

    def loss(self, batch):
        ids, inputs, targets = batch
        self.seen.append(ids.tolist())
        outputs = self(inputs)
        self.metric(outputs.float(), targets)
        return nn.functional.mse_loss(outputs, targets)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("train_mse", self.metric)
        return loss

    def validation_step(self, batch, batch_idx):
        ids, inputs, targets = batch
        self.seen.append(ids.tolist())
        outputs = self(inputs)
        self.val_metric(outputs.float(), targets)
        self.log("val_mae", self.val_metric)
        self.log("val_loss", nn.functional.mse_loss(outputs, targets))

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


def loader(noise=None, length=18, **settings):
    settings = {"batch_size": 4, "shuffle": True} | settings
    return DataLoader(Points(length, noise), **settings)


def data(val_length=10, **settings):
    return {
        "train_dataloaders": loader(**settings),
        "val_dataloaders": loader(length=val_length, shuffle=False),
    }


@program
def plain():
    return Net(), data(), {}


@program
def no_validation():
    return Net(), {"train_dataloaders": loader()}, {}


class ShapedByHand(Net):
    """A lazy layer that has its shape, but becomes a plain one in its first forward pass only."""

    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that lazy layers are new
            self.layers[0] = nn.LazyLinear(8)
        self.layers[0].initialize_parameters(torch.zeros(1, 4))


@program
def lazy_layer_that_has_its_shape():
    return ShapedByHand(), {"train_dataloaders": loader()}, {}


@program
def two_workers():
    return Net(), data(num_workers=2), {}


@program
def two_workers_random():
    return Net(), data(num_workers=2, noise="torch"), {}


@program
def two_persistent_workers_random():
    return Net(), data(num_workers=2, noise="own", persistent_workers=True), {}


@program
def random_from_torch():
    return Net(), data(noise="torch"), {}


@program
def random_from_python_and_numpy():
    return Net(), data(noise="python"), {}


@program
def random_from_data_sets_own():
    return Net(), data(noise="own"), {}


@program
def loader_generator():
    return Net(), data(generator=torch.Generator().manual_seed(1), noise="torch"), {}


@program
def worker_init_fn():
    def init(number):
        torch.manual_seed(number)

    return Net(), data(num_workers=1, noise="torch", worker_init_fn=init), {}


class StatefulSampler(Sampler):
    """Starts each pass where its own counter stands, in an order of its own generators."""

    def __init__(self, length):
        self.length = length
        self.passes = 0
        self.own = np.random.default_rng(8)
        self.weights = torch.ones(length)

    def __iter__(self):
        self.passes += 1
        for index in self.own.permutation(self.length):
            self.weights[index] += 1
            yield int(index + self.passes + self.weights.sum()) % self.length

    def __len__(self):
        return self.length


@program
def sampler_with_state():
    return Net(), data(sampler=StatefulSampler(18), shuffle=False), {}


@program
def accumulation_and_clipping():
    return Net(), data(), {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}


@program
def bf16_mixed():
    return Net(), data(), {"precision": "bf16-mixed"}


@program
def bf16_true():
    class Half(Net):
        def loss(self, batch):
            ids, inputs, targets = batch
            return super().loss((ids, inputs.bfloat16(), targets))

        validation_step = None

    Half.validation_step = LightningModule.validation_step
    return Half(), {"train_dataloaders": loader()}, {"precision": "bf16-true"}


def scaler(**settings):
    scaler = torch.amp.GradScaler("cpu", **settings)
    return {"plugins": MixedPrecision("16-mixed", "cpu", scaler=scaler)}


@program
def fp16():
    return Net(), data(), scaler(init_scale=2.0**10, growth_interval=3)


@program
def fp16_with_overflow():
    # the first steps overflow, and the scale falls
    return Net(), data(), scaler(init_scale=2.0**30) | {"gradient_clip_val": 1.0}


class Stream(IterableDataset):
    """Points without a length, in an order of its own; its position is an attribute."""

    def __init__(self):
        self.points = Points(18, "own")
        self.position = 0
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        self.position = 0
        return self

    def __next__(self):
        if self.position == 18:
            raise StopIteration
        self.position += 1
        return self.points[(self.position * 5 + self.passes) % 18]


@program
def iterable():
    train = DataLoader(Stream(), batch_size=4)
    return Net(), {"train_dataloaders": train}, {}


@program
def iterable_with_workers():
    train = DataLoader(Stream(), batch_size=4, num_workers=2)
    return Net(), {"train_dataloaders": train}, {}


@program
def dict_of_loaders():
    class Two(Net):
        def training_step(self, batch, batch_idx):
            other = self.loss(batch["b"])
            return super().training_step(batch["a"], batch_idx) + other

    loaders = {"a": loader(), "b": loader(length=10, generator=torch.Generator().manual_seed(2))}
    return Two(), {"train_dataloaders": loaders}, {}


@program
def data_module():
    class Data(LightningDataModule):
        def __init__(self):
            super().__init__()
            self.transferred = []
            self.made = 0

        def setup(self, stage):
            self.points = Points(18, "own")

        def train_dataloader(self):
            self.made += 1
            return DataLoader(self.points, 4, shuffle=True)

        def val_dataloader(self):
            self.made += 1
            return DataLoader(self.points, 4)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            ids, inputs, targets = batch
            self.transferred.append(ids)
            return ids, inputs * len(self.transferred), targets

        def state_dict(self):
            return {"transferred": self.transferred, "served": self.points.served, "m": self.made}

    settings = {"check_val_every_n_epoch": 2, "reload_dataloaders_every_n_epochs": 1}
    return Net(), {"datamodule": Data()}, settings


class Manual(Net):
    """One optimizer stepped by hand, with a scheduler stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=0.5)
        optimizer.step()
        self.lr_schedulers().step()
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7)]


@program
def manual():
    return Manual(), data(), {}


@program
def manual_fp16():
    class Scaled(Manual):
        def clip_gradients(self, *args, **kwargs):
            pass

    return Scaled(), data(), scaler(init_scale=2.0**10)


class Gan(LightningModule):
    """Two optimizers that are toggled; no loss is returned."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2))
        self.critic = nn.utils.spectral_norm(nn.Linear(4, 1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        ids, inputs, _ = batch
        self.seen.append(ids.tolist())
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        loss = -self.critic(self.generator(torch.randn_like(inputs))).mean()
        self.manual_backward(loss)
        first.step()
        first.zero_grad()
        self.untoggle_optimizer(first)
        with second.toggle_model():
            loss = self.critic(self.generator(inputs).detach()).mean() - self.critic(inputs).mean()
            self.manual_backward(loss)
            second.step()
            second.zero_grad()
        self.log("critic", loss)

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters(), 0.01),
            torch.optim.RMSprop(self.critic.parameters(), 0.01),
        ]


@program
def gan():
    return Gan(), {"train_dataloaders": loader()}, {}


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimization: the user calls two steps of its own."""

    def __init__(self, params):
        super().__init__(params, {"rho": 0.05})
        self.base = torch.optim.SGD(self.param_groups, lr=0.05, momentum=0.9)

    @torch.no_grad()
    def first_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old"] = p.data.clone()
                p.add_(p.grad, alpha=group["rho"])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = self.state[p]["old"]
        self.base.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        loss = closure()
        self.first_step()
        closure()
        self.second_step()
        return loss


@program
def sam_with_closure():
    return Net(Sam), data(), {}


@program
def sam_by_hand():
    class ByHand(Manual):
        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            self.manual_backward(self.loss(batch))
            optimizer.first_step()
            self.manual_backward(self.loss(batch))
            optimizer.second_step()

        def configure_optimizers(self):
            return Sam(self.parameters())

    return ByHand(), data(), {}


@program
def lbfgs():
    return Net(lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3)), data(), {}


class Plain:
    """Keeps state in slots."""

    __slots__ = ("__weakref__", "count", "history")

    def __init__(self):
        self.count = 0
        self.history = []


class Attributes(Net):
    """State in plain Python attributes, all of which the loss depends on."""

    def __init__(self):
        super().__init__()
        self.plain_list = []
        self.counter = 0
        self.deque = collections.deque(maxlen=3)
        self.array = np.zeros(3)
        self.tensor = torch.zeros(2)
        self.part_of_tensor = torch.zeros(4)[1:3]
        self.stretched = torch.zeros(1).expand(3)
        self.lists = {"a": [1]}
        self.metrics = [torchmetrics.MeanMetric()]
        self.random = random.Random(1)
        self.numpy_random = np.random.RandomState(1)
        self.bits = np.random.PCG64(1)
        self.sobol = torch.quasirandom.SobolEngine(2, scramble=True, seed=1)
        self.slots = Plain()
        self.group = {1, 2}
        self.tally = collections.Counter()
        self.bytes = bytearray(b"ab")
        self.tokens = np.array(["a", None], dtype=object)
        with torch.inference_mode():
            self.inference = torch.zeros(2)
        self.hparams_like = Config(rate=1)
        self.call = self.slots.history.append
        self.register_buffer("buffer", torch.zeros(1).expand(3))
        self.register_buffer("queue", torch.zeros(2, 3), persistent=False)

    def training_step(self, batch, batch_idx):
        self.plain_list.append(batch_idx)
        self.counter += 1
        self.deque.append(batch_idx)
        self.array += 0.01
        self.tensor.add_(0.01)
        self.part_of_tensor.add_(0.01)
        self.stretched[0] += 0.01
        self.lists["a"].append(batch_idx)
        self.lists.setdefault("b", []).append(1)
        self.metrics[0].update(float(self.counter))
        self.slots.count += 1
        self.group.add(batch_idx + 10)
        self.tally[batch_idx] += 1
        self.bytes[0] = (self.bytes[0] + 1) % 256
        self.tokens[1] = self.counter
        with torch.inference_mode():
            self.inference.add_(0.01)
        self.hparams_like["rate"] += 0.01
        self.hparams_like.changes += 1
        self.call(batch_idx)
        self.buffer = self.buffer + 0.01
        self.queue.copy_(torch.roll(self.queue, 1, 0))
        self.queue[0] = self.counter
        self.created = getattr(self, "created", 0) + 1
        loss = super().training_step(batch, batch_idx)
        return loss * (1 + 0.01 * self.summary())

    def summary(self):
        return (
            sum(self.plain_list)
            + self.counter
            + sum(self.deque)
            + float(self.array.sum() + self.tensor.sum() + self.stretched.sum())
            + float(self.part_of_tensor.sum() + self.inference.sum() + self.queue.sum())
            + sum(map(len, self.lists.values()))
            + float(self.metrics[0].compute())
            + self.random.random()
            + self.numpy_random.rand()
            + self.bits.random_raw() / 2**64
            + float(self.sobol.draw().sum())
            + self.slots.count
            + len(self.slots.history)
            + len(self.group)
            + sum(self.tally.values())
            + self.bytes[0]
            + self.tokens[1]
            + self.hparams_like["rate"]
            + self.hparams_like.changes
            + self.created
        )

    def state_of_interest(self):
        return [self.plain_list, self.lists, list(self.deque), sorted(self.group), self.created]


class Config(dict):
    """A dict with attributes."""

    changes = 0


@program
def attributes():
    return Attributes(), data(), {}


@program
def own_scaler_and_averaged_copy():
    class Own(Manual):
        def __init__(self):
            super().__init__()
            self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
            self.averages = [torch.optim.swa_utils.AveragedModel(nn.Linear(4, 1))]

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(self.scaler.scale(loss))
            self.scaler.step(optimizer)
            self.scaler.update()
            self.averages[0].update_parameters(nn.Linear(4, 1))
            self.log("scale", self.scaler.get_scale())
            self.log("averaged", self.averages[0].n_averaged.float())

    return Own(), data(), {}


@program
def parameters_outside_the_module():
    class Outside(Net):
        def __init__(self):
            super().__init__()
            self.extra = [nn.Parameter(torch.ones(1))]

        def loss(self, batch):
            return super().loss(batch) * self.extra[0].square()

        def configure_optimizers(self):
            return torch.optim.Adam([*self.parameters(), *self.extra], 0.01)

        def state_of_interest(self):
            return [self.extra[0], self.extra[0].grad]

    return Outside(), data(), {"accumulate_grad_batches": 2}


@program
def experiment_of_logger():
    class Draws(Net):
        def training_step(self, batch, batch_idx):
            self.logger.log_metrics({"drawn": float(batch_idx)})
            self.logger.experiment.log_metrics({"drawn_too": 1.0}, step=batch_idx)
            path = self.logger.log_dir + "/" + self.logger.version
            assert path
            assert self.trainer.log_dir
            return super().training_step(batch, batch_idx)

    return Draws(), data(), {}


@program
def scheduler_per_step():
    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    return Scheduled(), data(), {}


@program
def scheduler_on_plateau():
    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss", "interval": "epoch"},
            }

    return Scheduled(), data(), {}


@program
def frozen_and_tied():
    class Tied(Net):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight
            self.layers[0].requires_grad_(False)
            self.layers[1].eval()

        def forward(self, inputs):
            return self.layers(self.second(self.first(inputs)))

        def on_train_epoch_start(self):
            self.layers[1].eval()

    return Tied(), data(), {}


@program
def unfreezes_itself():
    class Unfreezes(Net):
        def on_train_batch_start(self, batch, batch_idx):
            self.layers[0].requires_grad_(batch_idx > 2)

    module = Unfreezes()
    module.layers[0].requires_grad_(False)
    return module, data(), {}


@program
def sparse_gradients():
    class Sparse(Net):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(18, 4, sparse=True)

        def loss(self, batch):
            ids, inputs, targets = batch
            return super().loss((ids, inputs + self.table(ids), targets))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Sparse(), {"train_dataloaders": loader()}, {"accumulate_grad_batches": 2}


@program
def complex_parameters():
    class Complex(Net):
        def __init__(self):
            super().__init__()
            self.turn = nn.Parameter(torch.randn(4, dtype=torch.complex64))

        def forward(self, inputs):
            return self.layers((inputs * self.turn).abs())

    return Complex(), data(), {}


@program
def hooks_make_what_steps_need():
    class Late(Net):
        def on_train_start(self):
            self.factor = torch.ones(1)

        def on_train_epoch_start(self):
            self.outputs = []

        def training_step(self, batch, batch_idx):
            self.outputs.append(batch_idx)
            return super().training_step(batch, batch_idx) * self.factor * len(self.outputs)

        def on_train_epoch_end(self):
            self.log("outputs", float(len(self.outputs)))

    return Late(), data(), {}


@program
def epochs_that_end_early():
    class Early(Net):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx >= 3 else None

    return Early(), data(), {"accumulate_grad_batches": 2}


@program
def steps_without_a_loss():
    class Sometimes(Net):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    return Sometimes(), data(), {}


@program
def batches_of_none():
    def collate(samples):
        batch = torch.utils.data.default_collate(samples)
        return None if int(batch[0][0]) % 3 == 0 else batch

    return Net(), {"train_dataloaders": loader(collate_fn=collate)}, {}


@program
def max_steps():
    return Net(), data(), {"max_steps": 7, "max_epochs": -1}


@program
def overfit_batches():
    return Net(), data(shuffle=False), {"overfit_batches": 2}


@program
def limit_train_batches():
    return Net(), data(), {"limit_train_batches": 2, "limit_val_batches": 1}


@program
def val_check_interval():
    return Net(), data(), {"val_check_interval": 2}


@program
def compiled():
    class Compiled(Net):
        def __init__(self):
            super().__init__()
            self.fast = torch.compile(nn.Linear(4, 4), backend="eager")

        def forward(self, inputs):
            return self.layers(self.fast(inputs))

    return Compiled(), data(), {}


@program
def parametrized():
    class Parametrized(Net):
        def __init__(self):
            super().__init__()
            self.spectral = parametrizations.spectral_norm(nn.Linear(4, 4))
            self.weighted = parametrizations.weight_norm(nn.Linear(4, 4))
            self.old_spectral = nn.utils.spectral_norm(nn.Linear(4, 4))

        def forward(self, inputs):
            return self.layers(self.old_spectral(self.weighted(self.spectral(inputs))))

    return Parametrized(), data(), {}


def scale_gradient(parameter):
    parameter.grad.mul_(1.01)


@program
def hooks_added_on_the_way():
    class Hooks(Net):
        calls = ()

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.layers[0].register_forward_hook(lambda *_: _[2] * 1.01)
            self.layers[4].weight.register_hook(lambda grad: grad * 1.01)
            self.layers[0].weight.register_post_accumulate_grad_hook(scale_gradient)
            self.layers[0].weight.steps = getattr(self.layers[0].weight, "steps", 0) + 1
            return loss * self.layers[0].weight.steps

    return Hooks(), data(), {}


@program
def averaging_callback():
    return Net(), data(), {"callbacks": [StochasticWeightAveraging(0.01, swa_epoch_start=1)]}


@program
def asks_the_trainer():
    class Asks(Net):
        def training_step(self, batch, batch_idx):
            steps = self.trainer.estimated_stepping_batches + self.trainer.num_training_batches
            self.log("asked", float(steps + self.trainer.global_step + self.global_step))
            self.example_input_array = batch[1]
            return super().training_step(batch, batch_idx)

    return Asks(), data(), {"profiler": "simple"}


class Wrapper:
    """A loader around a loader, as prefetchers are."""

    def __init__(self, inner):
        self.inner = inner
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        for ids, inputs, targets in self.inner:
            yield ids, inputs * self.passes, targets

    def __len__(self):
        return len(self.inner)


@program
def loader_around_loader():
    inner = loader(num_workers=1, persistent_workers=True, noise="torch")

    class Closes(Net):
        def on_fit_end(self):
            # Lightning stops only workers of loaders that it sees
            inner._iterator._shutdown_workers()
            inner._iterator = None

    return Closes(), {"train_dataloaders": Wrapper(inner)}, {}


@program
def changes_validation_batches():
    class InPlace(Net):
        def validation_step(self, batch, batch_idx):
            batch[1].mul_(0.5)
            super().validation_step(batch, batch_idx)

    return InPlace(), data(), {}


@program
def shuffled_random_validation():
    validation = loader(noise="own", generator=torch.Generator().manual_seed(9))
    settings = {"check_val_every_n_epoch": 2}
    return Net(), {"train_dataloaders": loader(), "val_dataloaders": validation}, settings


@program
def several_validation_loaders():
    class Several(Net):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)

    loaders = [loader(length=10), loader(length=6)]
    return Several(), {"train_dataloaders": loader(), "val_dataloaders": loaders}, {}


@program
def own_optimizer_step():
    class Warmup(Net):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (1 + self.trainer.global_step)
            optimizer.step(closure=optimizer_closure)

    return Warmup(), data(), {}
