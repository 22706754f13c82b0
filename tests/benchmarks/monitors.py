"""What the monitors cost, side by side in one run with what a user would write instead.

``python tests/benchmarks/monitors.py [--parts fit between step activations parameters layers]``

- fit: whole fits with all monitors at their defaults against the same fits without them, both with
  TensorBoard and validation, from ``trainer.fit`` to its end; the two at the same time, in seconds
  of the processor.
- between: what a step that is not measured costs: the median time in Lightning's calls of all
  callbacks in a step, and in hooks of the optimizer, with all monitors at their defaults and
  without.
- step: UpdateRatioMonitor + ActivationMonitor on every step, against TensorBoard's
  ``add_histogram`` per layer as users write it (weights, their gradients, activations, their
  gradients), ``wandb.watch(log="all", log_freq=1)`` offline (weights and their gradients only), and
  the hook of fastai's ``ActivationStats(with_hist=True)`` (activations only, nothing written). What
  counts is the time of a step beyond that of the plain fit.
- activations: the same two ways to look at activations alone, nothing written by either:
  ``ActivationMonitor(gradients=False)`` on every step against fastai's hook; and against the least
  that NumPy takes for sums, squares, silent units and one histogram, which nobody can use so.
- parameters, layers: the same two monitors over 1M, 25M, 125M parameters, and 10, 100, 1000 layers.

Contestants take turns; figures are medians of ``--rounds`` turns, ratios those of medians. Seconds
of the processor stand beside those of the clock, since they say more on a machine with others on
it. Peers that are not installed are left out; wandb may lie in a folder given by ``--path``.
"""

import argparse
import ast
import collections
import contextlib
import importlib.metadata
import io
import itertools
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer import call
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_tuning

DEFAULTS = ("UpdateRatioMonitor", "ActivationMonitor", "FilterMonitor", "LossCurveDiagnosis")
EACH_STEP = DEFAULTS[:2]
WARM_UP = 5


# ------------------------------------------------------------------------------------ programs


class Program(LightningModule):
    def __init__(self, net, lr=1e-3, outputs=10):
        super().__init__()
        self.net, self.lr = net, lr

    def step(self, batch, name):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log(name, loss)
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train_loss")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val_loss")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Transformer(nn.Module):
    """Each row of an image is a token."""

    def __init__(self, width=64, depth=4):
        super().__init__()
        self.embed = nn.Linear(32, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, images):
        return self.head(self.body(self.embed(images[:, 0])).mean(1))


def blocks(depth, width, first, last=10):
    layers = [nn.Flatten(), nn.Linear(first, width), nn.ReLU()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, last))


def cnn():
    widths, layers = (1, 32, 64, 128, 128), []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 5 if before == 1 else 3, 2, 1)]
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(10))


def digits(size=32):
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    images = nn.functional.interpolate(images, size=size, mode="bilinear") if size != 8 else images
    return TensorDataset(images, torch.tensor(data.target))


PROGRAMS = {
    "perceptron of 4 layers, digits": (lambda: blocks(4, 128, 64), 8),
    "CNN": (cnn, 32),
    "transformer of 4 blocks": (Transformer, 32),
}


def monitors(names, **settings):
    found = [getattr(lightning_tuning, name, None) for name in names]
    return [monitor(**settings) for monitor in found if monitor is not None]


# ---------------------------------------------------------------------------------------- peers


class AddHistograms(Callback):
    """What tutorials show: a histogram of each tensor, at each step."""

    def on_fit_start(self, trainer, pl_module):
        self.outputs, self.gradients, self.handles = {}, {}, []
        for name, layer in pl_module.net.named_modules():
            if not list(layer.children()):
                self.handles += [
                    layer.register_forward_hook(self.keep(self.outputs, name)),
                    layer.register_full_backward_hook(self.keep(self.gradients, name)),
                ]

    def keep(self, kept, name):
        def hook(layer, _, output):
            kept[name] = (output[0] if isinstance(output, tuple) else output).detach().cpu()

        return hook

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        writer, step = trainer.logger.experiment, trainer.global_step
        for name, weight in pl_module.named_parameters():
            writer.add_histogram(f"weights/{name}", weight.detach().cpu(), step)
            writer.add_histogram(f"weight_gradients/{name}", weight.grad.cpu(), step)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        writer, step = trainer.logger.experiment, trainer.global_step
        for kind, kept in (("activations", self.outputs), ("gradients", self.gradients)):
            for name, value in kept.items():
                writer.add_histogram(f"{kind}/{name}", value, step)

    def on_train_end(self, trainer, pl_module):
        for handle in self.handles:
            handle.remove()


class FastaiStats(Callback):
    """fastai's own hook on the same layers; its file is read, as fastai needs much to import."""

    def __init__(self):
        path = importlib.metadata.distribution("fastai").locate_file("fastai/callback/hook.py")
        tree = ast.parse(path.read_text())
        [cls] = [n for n in tree.body if getattr(n, "name", "") == "ActivationStats"]
        [hook] = [n for n in cls.body if getattr(n, "name", "") == "hook"]
        names = {}
        exec(compile(ast.Module([hook], []), str(path), "exec"), names)
        self.measure = names["hook"]
        self.with_hist, self.stats, self.stored = True, [], {}

    def hook_multi_ouput(self, outputs):
        return [self.measure(self, None, None, o) for o in outputs if isinstance(o, torch.Tensor)]

    def on_fit_start(self, trainer, pl_module):
        self.handles = [
            layer.register_forward_hook(self.keep(name))
            for name, layer in pl_module.net.named_modules()
            if not list(layer.children())
        ]

    def keep(self, name):
        def hook(layer, inputs, output):
            self.stored[name] = self.measure(self, layer, inputs, output)

        return hook

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.stats.append(self.stored)
        self.stored = {}

    def on_train_end(self, trainer, pl_module):
        for handle in self.handles:
            handle.remove()


class BareSums(Callback):
    """The least that can be counted of each layer: a bound for all others, and no tool."""

    def on_fit_start(self, trainer, pl_module):
        self.kept, self.found = [], []
        self.handles = [
            layer.register_forward_hook(lambda _layer, _inputs, output: self.kept.append(output))
            for layer in pl_module.net.modules()
            if not list(layer.children())
        ]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        arrays = [out.detach().numpy() for out in self.kept if isinstance(out, torch.Tensor)]
        self.kept.clear()
        sizes = [array.size for array in arrays]
        flat = np.concatenate([array.ravel() for array in arrays])
        starts = np.cumsum([0, *sizes[:-1]])
        sums = np.add.reduceat(flat, starts), np.add.reduceat(flat * flat, starts)
        silent = [(array <= 0).all(0) for array in arrays]
        bins = np.clip((4 * (flat + 8)).astype(np.int32), 0, 63)
        bins += np.repeat(64 * np.arange(len(arrays), dtype=np.int32), sizes)
        self.found.append((*sums, silent, np.bincount(bins, minlength=64 * len(arrays))))

    def on_train_end(self, trainer, pl_module):
        for handle in self.handles:
            handle.remove()


class Watch(Callback):
    """``wandb.watch`` and the call of ``log`` that makes it write."""

    def __init__(self):
        import wandb

        os.environ.update(WANDB_SILENT="true", WANDB_DIR=tempfile.mkdtemp(dir="."))
        self.wandb = wandb

    def on_fit_start(self, trainer, pl_module):
        self.run = self.wandb.init(mode="offline", reinit="finish_previous")
        self.run.watch(pl_module.net, log="all", log_freq=1)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.run.log({"step": trainer.global_step})

    def on_train_end(self, trainer, pl_module):
        self.run.unwatch(pl_module.net)

    def teardown(self, trainer, pl_module, stage):
        self.run.finish()


PEERS = {
    "TensorBoard `add_histogram`": AddHistograms,
    '`wandb.watch(log="all")`': Watch,
    "fastai `ActivationStats`": FastaiStats,
}


# ---------------------------------------------------------------------------------------- times


class Clock(Callback):
    """Seconds by the clock and of the processor, from the end of the warm-up to the last batch.

    What waits to be written to TensorBoard at its end is written within that time.
    """

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step in (WARM_UP, trainer.max_steps) and trainer.logger is not None:
            trainer.logger.experiment.flush()
        now = time.perf_counter(), time.process_time()
        if trainer.global_step == WARM_UP:
            self.begin = now
        self.end, self.steps = now, trainer.global_step - WARM_UP

    def seconds(self):
        return [(end - begin) / self.steps for begin, end in zip(self.begin, self.end, strict=True)]


def fit(make, size, callbacks, steps, *, batch_size=32, data=None, validate=False, written=True):
    """Return seconds of the whole fit, and of a step: by the clock and of the processor."""
    seed_everything(1, verbose=False)
    data = digits(size) if data is None else data
    module = Program(make())
    with torch.no_grad():
        module.net(data[:2][0])
    clock = Clock()
    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    folder = tempfile.mkdtemp(dir=".")
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=TensorBoardLogger(folder) if written else False,
        callbacks=[*callbacks, clock],
        **dict.fromkeys(quiet, False),
    )
    loaders = [DataLoader(data, batch_size, shuffle=True, drop_last=True)]
    loaders += [DataLoader(data, 256)] if validate else []
    begin = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.fit(module, *loaders)
    end = time.perf_counter(), time.process_time()
    shutil.rmtree(folder)
    return [late - early for early, late in zip(begin, end, strict=True)], clock.seconds()


def turns(contestants, rounds):
    """Return medians (clock, processor) by name; each round runs all of them."""
    seen = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants) if number % 2 == 0 else list(contestants)[::-1]
        for name in order:
            seen[name].append(contestants[name]())
    return {name: [statistics.median(v) for v in zip(*s, strict=True)] for name, s in seen.items()}


def table(*rows):
    first, *others = rows
    for row in (first, ["---"] * len(first), *others):
        print(f"| {' | '.join(row)} |", flush=True)
    print()


def whole_fits(arguments):
    rows = [("whole fit", "steps", "plain, s", "all monitors, s", ": plain", "of each pair")]
    for name, (make, size) in PROGRAMS.items():
        if arguments.only not in name:
            continue
        step = fit(make, size, [], 40)[1][1]
        steps = max(100, int(arguments.seconds / step))
        pairs = [together(name, steps, swapped=turn % 2 > 0) for turn in range(arguments.rounds)]
        plain, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = sorted(with_all / without for without, with_all in pairs)
        each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        middle = f"{statistics.median(ratios):.3f}x"
        rows.append((name, str(steps), f"{plain:.1f}", f"{ours:.1f}", middle, each))
    table(*rows)


def together(name, steps, *, swapped):
    """Return seconds of the processor of a plain fit and of one with all monitors.

    Both run at the same time, each on a core, so that a machine that is now fast and now slow is
    as fast for both; the cores are swapped from turn to turn.
    """
    command = [sys.executable, __file__, "--fit", name, str(steps)]
    running = [
        subprocess.Popen(
            [*command, kind, str(core)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for core, kind in enumerate(("plain", "all")[:: -1 if swapped else 1])
    ]
    for process in running:
        process.stdout.readline()  # it has warmed up
    for process in running:
        process.stdin.write("\n")
        process.stdin.flush()
    seconds = [float(process.communicate()[0]) for process in running]
    return seconds[::-1] if swapped else seconds


def one_fit(name, steps, kind, core):
    """One of two fits that run together."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) % os.cpu_count()})
    make, size = PROGRAMS[name]
    fit(make, size, monitors(DEFAULTS), 60, validate=True)
    print("ready", flush=True)
    sys.stdin.readline()
    callbacks = monitors(DEFAULTS) if kind == "all" else []
    print(fit(make, size, callbacks, int(steps), validate=True)[0][1], flush=True)


class Hooked(Callback):
    """Times what hooks of the optimizers take; stands behind all other callbacks."""

    def __init__(self, seen):
        self.seen = seen

    def on_train_start(self, trainer, pl_module):
        for optimizer in trainer.optimizers:
            hooks = optimizer._optimizer_step_post_hooks
            for key, hook in hooks.items():
                hooks[key] = timed(hook, self.seen["hooks of the optimizer"])


def timed(function, seconds):
    def run(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - begin)

    return run


def microseconds_of_calls(make, size, callbacks, steps):
    """Return what Lightning's rounds of callbacks in a step take, the sum of their medians."""
    seen = collections.defaultdict(list)
    original = call._call_callback_hooks

    def rounds(trainer, name, *args, **kwargs):
        timed(original, seen[name])(trainer, name, *args, **kwargs)

    call._call_callback_hooks = rounds
    try:
        fit(make, size, [*callbacks, Hooked(seen)], steps, validate=True)
    finally:
        call._call_callback_hooks = original
    often = (times for times in seen.values() if len(times) > 0.9 * steps)
    return 1e6 * sum(map(statistics.median, often))


def between_steps(arguments):
    rows = [("steps that are not measured", "plain, µs", "all monitors, µs", "more, µs")]
    for name, (make, size) in PROGRAMS.items():
        if arguments.only not in name:
            continue
        step = fit(make, size, [], 40)[1][1]
        steps = max(300, int(arguments.seconds / step / 4))
        turn = [
            [microseconds_of_calls(make, size, made, steps) for made in ([], monitors(DEFAULTS))]
            for _ in range(arguments.rounds)
        ]
        plain, ours = (statistics.median(times) for times in zip(*turn, strict=True))
        rows.append((name, f"{plain:.1f}", f"{ours:.1f}", f"{ours - plain:.1f}"))
    table(*rows)


def every_step(arguments):
    compare({"monitors": lambda: monitors(EACH_STEP, every_n_steps=1)}, PEERS, arguments)


def activations_alone(arguments):
    name = "fastai `ActivationStats`"
    settings = {"every_n_steps": 1, "gradients": False}
    ours = {"ActivationMonitor": lambda: monitors(EACH_STEP[1:], **settings)}
    bound = {"NumPy's sums and a histogram alone": BareSums}
    compare(ours, {name: PEERS[name], **bound}, arguments, written=False)


def compare(ours, peers, arguments, **settings):
    entrants, [our_name] = dict(ours), ours
    for name, make in peers.items():
        try:
            make()
        except ImportError:
            print(f"{name}: not installed\n")
            continue
        entrants[name] = lambda make=make: [make()]
    for label, (make, size) in {
        **PROGRAMS,
        "perceptron of 10 layers": (lambda: blocks(10, 256, 64), 8),
    }.items():
        if arguments.only not in label:
            continue
        contestants = {
            name: lambda made=made, m=make, s=size: fit(m, s, made(), arguments.steps, **settings)[
                1
            ]
            for name, made in {"plain": list, **entrants}.items()
        }
        found = turns(contestants, arguments.rounds)
        plain, ours = found["plain"], found[our_name]
        rows = [(label, "a step, ms", "beyond plain, ms", f": {our_name}", "processor")]
        for name, times in found.items():
            beyond = [t - p for t, p in zip(times, plain, strict=True)]
            ratios = [b / (o - p) for b, o, p in zip(beyond, ours, plain, strict=True)]
            cells = [
                f"{1e3 * times[0]:.2f}",
                f"{1e3 * beyond[0]:.2f}",
                *[f"{r:.1f}x" for r in ratios],
            ]
            rows.append((name, *(cells if name != "plain" else [cells[0], "", "", ""])))
        table(*rows)


def scaling(arguments, title, programs, unit):
    rows = [(title, "plain step, ms", "beyond plain, ms", f"processor, {unit}")]
    for name, (make, features, count) in programs.items():
        data = TensorDataset(torch.randn(64, features), torch.randint(10, (64,)))
        settings = {"data": data, "batch_size": 8}
        found = turns(
            {
                "plain": lambda m=make, s=settings: fit(m, 0, [], 25, **s)[1],
                "ours": lambda m=make, s=settings: fit(
                    m, 0, monitors(EACH_STEP, every_n_steps=1), 25, **s
                )[1],
            },
            arguments.rounds,
        )
        plain, ours = found["plain"], found["ours"]
        beyond = [o - p for o, p in zip(ours, plain, strict=True)]
        cells = f"{1e3 * plain[0]:.1f}", f"{1e3 * beyond[0]:.1f}", f"{1e9 * beyond[1] / count:.3g}"
        rows.append((name, *cells))
    table(*rows)


def over_parameters(arguments):
    programs = {}
    for width in (350, 1765, 3950):
        count = sum(w.numel() for w in blocks(9, width, 64).parameters())
        make = lambda width=width: blocks(9, width, 64)  # noqa: E731
        programs[f"{count / 1e6:.1f} M parameters, 9 layers"] = (make, 64, count)
    scaling(arguments, "both monitors on every step", programs, "ns a parameter")


def over_layers(arguments):
    programs = {
        f"{depth} layers of 32": (lambda depth=depth: blocks(depth, 32, 64), 64, 1e3 * depth)
        for depth in (10, 100, 1000)
    }
    scaling(arguments, "both monitors on every step", programs, "µs a layer")


PARTS = {
    "fit": whole_fits,
    "between": between_steps,
    "step": every_step,
    "activations": activations_alone,
    "parameters": over_parameters,
    "layers": over_layers,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument(
        "--seconds", type=float, default=20, help="of the processor, for a plain fit"
    )
    parser.add_argument("--steps", type=int, default=60, help="of a fit with peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="programs whose names contain this")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--path", default="", help="a folder where wandb lies")
    parser.add_argument("--fit", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.path:
        sys.path.append(arguments.path)
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if arguments.fit:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            one_fit(*arguments.fit)
        return
    there = [name for name in DEFAULTS if hasattr(lightning_tuning, name)]
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, threads:"
        f" {arguments.threads}, torch {torch.__version__}; monitors: {', '.join(there)}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for part in arguments.parts:
            PARTS[part](arguments)


if __name__ == "__main__":
    main()
