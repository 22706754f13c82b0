"""Exponential moving averages of weights: what an update, a swap, memory and a checkpoint cost.

Run: ``python tests/benchmarks/ema.py [--device cuda]``; ``pip install --no-deps timm ema-pytorch``
for all peers. Contestants have equal models and decay .999, their averages are first compared with
a lerp, then they take turns; reported are medians and ratios of medians of

- update: the averaging of one step; callbacks inside a real fit, by all hooks around a step;
- swap: averaged weights into the model and the training weights back; callbacks by the hooks of
  validation under ``inference_mode``, as the Trainer does;
- memory beyond model and gradients, in models, at rest and while swapped in; on CUDA also the peak
  that an update and a swap add to it, and whether an update does without a wait for the device;
- checkpoint: size in models, and time to write it with Lightning's writer.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import logging
import pathlib
import re
import runpy
import statistics
import tempfile
import timeit
import warnings
from copy import deepcopy
from functools import partial

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, LambdaCallback, WeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_tuning import EMAWeights

DECAY = 0.999
LERP = get_ema_multi_avg_fn(DECAY)
BARE, LIGHTNING = "bare lerp †", "Lightning `EMAWeightAveraging`"
LAYER = nn.TransformerEncoderLayer(512, 8)
MODELS = {
    "300 layers `Linear(16, 16)`": lambda: nn.Sequential(*(nn.Linear(16, 16) for _ in range(300))),
    "8 transformer layers of width 512": lambda: nn.TransformerEncoder(LAYER, 8),
}


class Model(LightningModule):
    """Trains without data: the loss is made of the weights."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return torch.stack([weight.mean() for weight in self.parameters()]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def storages():
    """Address and size of the memory of all tensors that Python holds."""
    gc.collect()
    tensors = [held for held in gc.get_objects() if type(held) in (torch.Tensor, nn.Parameter)]
    return {held.untyped_storage().data_ptr(): held.untyped_storage().nbytes() for held in tensors}


class Contestant:
    """What is asked of all; a kind of contestant has update, swapped and save."""

    def swap(self):
        with self.swapped():
            pass

    def weights(self):
        return [weight.detach().clone() for weight in self.net.parameters()]

    def averages(self):
        with self.swapped():
            averages = self.weights()
        return [average.clone() for average in averages]  # out of inference mode

    def assert_averages(self):
        """Three updates over new weights make of the average before them what lerp does."""
        expected = self.averages()
        for _ in range(3):
            for weight in self.net.parameters():
                weight.data.normal_()
            self.update()
            weights = self.weights()
            torch._foreach_lerp_(expected, weights, 1 - DECAY)
        torch.testing.assert_close(self.averages(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(self.weights(), weights, rtol=0, atol=0)

    def in_models(self, number):
        return f"{number / sum(weight.nbytes for weight in self.net.parameters()):.2f}"

    def measure_memory(self, before):
        self.net.zero_grad()
        held = [storages()]
        with self.swapped():
            held.append(storages())
        known = before.keys() | {w.untyped_storage().data_ptr() for w in self.net.parameters()}
        self.memory = [self.in_models(sum(s[at] for at in s.keys() - known)) for s in held]

    def on_gpu(self):
        cells = {"update without a wait": "failed"}
        for label, action in (("peak of an update", self.update), ("of a swap", self.swap)):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            action()
            cells[label] = self.in_models(torch.cuda.max_memory_allocated() - held)
        torch.cuda.set_sync_debug_mode("error")
        with contextlib.suppress(RuntimeError):
            self.update()
            cells["update without a wait"] = "ok"
        torch.cuda.set_sync_debug_mode("default")
        return cells


class Peer(Contestant):
    """A second model beside the first; evaluating it in place is left to the user's own lines."""

    def __init__(self, net, keeper, average, update):
        self.net, self.keeper, self.average, self.update = net, keeper, average, update
        update()  # the first may be a mere copy

    @contextlib.contextmanager
    def swapped(self):
        kept = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.net.load_state_dict(self.average.state_dict())
        yield
        self.net.load_state_dict(kept)

    def save(self, path):
        state = {"state_dict": self.net.state_dict(), "average": self.keeper.state_dict()}
        TorchCheckpointIO().save_checkpoint(state, path)


class Driven(Contestant):
    """A callback inside a fit, by the hooks through which the optimizer and the Trainer call it."""

    def __init__(self, callback, trainer, module):
        self.net, self.callback, self.where = module.net, callback, (trainer, module)
        self.save = trainer.save_checkpoint

    def update(self):
        optimizer = self.where[0].optimizers[0]
        self.callback.on_before_optimizer_step(*self.where, optimizer)
        for hook in optimizer._optimizer_step_post_hooks.values():
            hook(optimizer, (), {})
        self.callback._latest_update_step = -1  # for Lightning's: a step was made since
        self.callback.on_train_batch_end(*self.where, None, None, 0)

    @contextlib.contextmanager
    def swapped(self):
        with torch.inference_mode():
            self.callback.on_validation_start(*self.where)
            self.callback.on_validation_epoch_start(*self.where)
            yield
            self.callback.on_validation_epoch_end(*self.where)
            self.callback.on_validation_end(*self.where)


def bare(net):
    average = deepcopy(net)
    tensors = [list(model.parameters()) for model in (average, net)]
    update = partial(torch._foreach_lerp_, *tensors, 1 - DECAY)
    return Peer(net, average, average, torch.no_grad()(update))


def averaged_model(net):
    averaged = AveragedModel(net, multi_avg_fn=LERP)
    return Peer(net, averaged, averaged.module, partial(averaged.update_parameters, net))


def timm(net, **settings):
    """Loaded from its file, as all of timm needs torchvision."""
    path = importlib.metadata.distribution("timm").locate_file("timm/utils/model_ema.py")
    ema = runpy.run_path(str(path))["ModelEmaV3"](net, decay=DECAY, **settings)
    return Peer(net, ema, ema.module, partial(ema.update, net))


def ema_pytorch(net, **settings):
    """At every step and without its warm-up; the model is in the checkpoint once."""
    from ema_pytorch import EMA

    settings |= {"update_after_step": 0, "update_every": 1, "include_online_model": False}
    ema = EMA(net, beta=DECAY, min_value=DECAY, **settings)
    return Peer(net, ema, ema.ema_model, ema.update)


ENTRANTS = {
    BARE: bare,
    "**`EMAWeights`**": lambda net: EMAWeights(decay=DECAY, warmup=False),
    LIGHTNING: lambda net: EMAWeightAveraging(decay=DECAY),
    "Lightning `WeightAveraging`, `multi_avg_fn`": lambda net: WeightAveraging(multi_avg_fn=LERP),
    "torch `AveragedModel`, `multi_avg_fn` †": averaged_model,
    "timm `ModelEmaV3` †": timm,
    "timm `ModelEmaV3`, `foreach=False` †": partial(timm, foreach=False),
    "ema-pytorch `EMA` †": ema_pytorch,
    "ema-pytorch `EMA`, `use_foreach=True` †": partial(ema_pytorch, use_foreach=True),
}


def inside_fit(net, callback, device, action):
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    last = LambdaCallback(on_train_batch_end=lambda *given: action(*given[:2]))
    settings = {"max_steps": 1, "accelerator": device, "devices": 1, **dict.fromkeys(off, False)}
    Trainer(callbacks=[callback, last], **settings).fit(Model(net), range(1))


def sample(action, repeats):
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    return timeit.timeit(lambda: ([action() for _ in range(repeats)], wait()), number=1) / repeats


def medians(field, method, rounds, *given):
    """Median seconds of every contestant; they take turns, with samples of some milliseconds."""
    actions = {name: partial(getattr(one, method), *given) for name, one in field.items()}
    repeats = {n: 1 + int(5e-3 / sample(run, 3)) for n, run in actions.items()}
    turns = [{n: sample(run, repeats[n]) for n, run in actions.items()} for _ in range(rounds)]
    return {name: statistics.median(turn[name] for turn in turns) for name in actions}


def print_table(field, device, rounds):
    update, swap = (medians(field, method, rounds) for method in ("update", "swap"))
    with tempfile.NamedTemporaryFile() as file:
        save = medians(field, "save", rounds // 3 + 1, file.name)
        for name, one in field.items():
            one.save(file.name)
            row = {"": name, "update, µs": f"{1e6 * update[name]:.0f}"}
            row[": bare"] = f"{update[name] / update[BARE]:.2f}x"
            row["swap in + out, µs"] = f"{1e6 * swap[name]:.0f}"
            row[": Lightning"] = f"{swap[name] / swap[LIGHTNING]:.3f}x"
            row["extra memory, models"], row["swapped in"] = one.memory
            row["checkpoint, models"] = one.in_models(pathlib.Path(file.name).stat().st_size)
            row["save, ms"] = f"{1e3 * save[name]:.1f}"
            row |= one.on_gpu() if device == "cuda" else {}
            for cells in ([row, ["---"] * len(row)] if name == BARE else []) + [row.values()]:
                print(f"| {' | '.join(cells)} |", flush=True)


def race(names, field, make_net, *settings):
    """Callbacks are measured inside fits: each begins within the one before, the last measures."""
    if not names:
        return print_table(field, *settings)
    name, go_on = names[0], partial(race, names[1:], field, make_net, *settings)
    torch.manual_seed(0)
    before, net = storages(), make_net().to(settings[0])

    def admit(contestant):
        contestant.assert_averages()
        contestant.measure_memory(before)
        field[name] = contestant
        go_on()

    try:
        entrant = ENTRANTS[name](net)
    except ImportError:
        go_on()
        return print(f"| {name} | not installed |")
    if not isinstance(entrant, Callback):
        return admit(entrant)
    return inside_fit(net, entrant, settings[0], lambda *where: admit(Driven(entrant, *where)))


def machine(device):
    cpu = re.search("model name.*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())[1]
    versions = {one.name: f"{one.name} {one.version}" for one in importlib.metadata.distributions()}
    named = [versions[n] for n in ("torch", "lightning", "timm", "ema-pytorch") if n in versions]
    gpu = [torch.cuda.get_device_name()] if device == "cuda" else []
    return ", ".join([cpu, *gpu, f"threads: {torch.get_num_threads()}", *named])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(machine(arguments.device))
    for label, make_net in MODELS.items():
        sizes = [weight.numel() for weight in make_net().parameters()]
        print(f"\n{label}, {len(sizes)} tensors, {sum(sizes) / 1e6:.2f} M parameters:\n")
        race(list(ENTRANTS), {}, make_net, arguments.device, arguments.rounds)
    print("\n† a second model; swap: clone the state_dict, load the average's, load the clone")


if __name__ == "__main__":
    main()
