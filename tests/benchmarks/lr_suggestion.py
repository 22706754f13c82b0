"""Regret of training at a suggested learning rate: ours, Lightning's, torch-lr-finder's, fastai's.

Run: ``python tests/benchmarks/lr_suggestion.py --cache /tmp/lr_cache``; the peers other than
Lightning come with ``pip install --no-deps torch-lr-finder fastai`` and are left out without it.

For every task, optimizer and seed each tool suggests a rate; then the task is trained for 200 steps
at exactly this rate, constant and as the peak of ``torch.optim.lr_scheduler.OneCycleLR``, in
another data order than the tool saw. Regret is ``(val - best) / (val at init - best)``, cut to
[0, 1], where best is the lowest of a half-decade grid of rates trained in the same way; no
suggestion and a non-finite loss count as 1.

"tuned" are all tasks of ``lr_tasks.py``, on which our rule was developed; "held out" are those of
``lr_tasks_held_out.py``, which took no part in it. The grid and the peers are cached by a hash of
the task, ours never are; empty the cache after a change of a peer's version.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import itertools
import json
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lr_tasks
import lr_tasks_held_out
import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.tuner import Tuner
from lr_tasks import Task
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning import lr_range_test

STEPS = 200
GRID = [10 ** (k / 2) for k in range(-12, 3)]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": functools.partial(torch.optim.SGD, momentum=0.9),
    "AdamW": torch.optim.AdamW,
}
SCHEDULES = ("constant", "one_cycle")
SPLITS = {"tuned": lr_tasks.tasks, "held_out": lr_tasks_held_out.tasks}
OURS = "ours: auto"
# a rule's name -> (its rate, the training steps it took)
Suggestions = dict[str, tuple[float | None, int]]


# Training -----------------------------------------------------------------------------------------


def batches(task: Task, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    size = min(task.batch_size, len(task.x))
    while True:
        order = torch.randperm(len(task.x), generator=generator)
        for rows in order[: len(order) // size * size].split(size):
            yield task.x[rows], task.y[rows]


@torch.no_grad()
def val_loss(task: Task, model: torch.nn.Module) -> float:
    model.eval()
    return float(task.loss(model(task.val_x), task.val_y))


def train(task: Task, optimizer: str, schedule: str, seed: int, lr: float | None) -> float:
    """Return the validation loss after :data:`STEPS` steps, infinite where training broke down."""
    if lr is None or not 0 < lr < math.inf:
        return math.inf
    torch.manual_seed(1000 + seed)
    model = task.make_model(seed)
    stepper = OPTIMIZERS[optimizer](model.parameters(), lr=lr, fused=True)
    cycle = OneCycleLR(stepper, lr, total_steps=STEPS) if schedule == "one_cycle" else None
    for x, y in itertools.islice(batches(task, 1000 + seed), STEPS):
        stepper.zero_grad()
        loss = task.loss(model(x), y)
        if not math.isfinite(loss.item()):
            return math.inf
        loss.backward()
        stepper.step()
        if cycle is not None:
            cycle.step()
    value = val_loss(task, model)
    return value if math.isfinite(value) else math.inf


# Suggestions --------------------------------------------------------------------------------------


class Module(LightningModule):
    """A task as a person would write it for Lightning."""

    def __init__(self, task: Task, optimizer: str, seed: int) -> None:
        super().__init__()
        self.model = task.make_model(seed)
        self.loss, self.optimizer, self.lr = task.loss, optimizer, 1e-3

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.optimizer](self.parameters(), lr=self.lr)


def loader(task: Task, seed: int) -> DataLoader[Any]:
    """Return the same batches in the same order to every tool."""
    generator = torch.Generator().manual_seed(seed)
    data = TensorDataset(task.x, task.y)
    size = min(task.batch_size, len(data))
    return DataLoader(data, size, shuffle=True, drop_last=True, generator=generator)


def quiet_trainer(folder: str) -> Trainer:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet: dict[str, Any] = dict.fromkeys(off, False)
    return Trainer(max_steps=STEPS, accelerator="cpu", default_root_dir=folder, **quiet)


def ours(task: Task, optimizer: str, seed: int) -> Suggestions:
    with tempfile.TemporaryDirectory() as folder:
        module = Module(task, optimizer, seed)
        result = lr_range_test(quiet_trainer(folder), module, loader(task, seed))
    swept = sum(len(sweep.losses) for sweep in result.sweeps)
    found: Suggestions = {OURS: (result.suggestion, result.num_steps)}
    for rule in ("valley", "steepest", "minimum", "slide"):
        found[f"ours: {rule}"] = result.suggestions.get(rule), swept
    return found


def lightning(task: Task, optimizer: str, seed: int) -> Suggestions:
    with tempfile.TemporaryDirectory() as folder:
        tuner = Tuner(quiet_trainer(folder))
        finder = tuner.lr_find(Module(task, optimizer, seed), loader(task, seed))
    assert finder is not None
    return {"Lightning": (finder.suggestion(), len(finder.results["loss"]))}


def torch_lr_finder(task: Task, optimizer: str, seed: int) -> Suggestions:
    from matplotlib.figure import Figure
    from torch_lr_finder import LRFinder

    model = task.make_model(seed)
    finder = LRFinder(model, OPTIMIZERS[optimizer](model.parameters(), lr=1e-7), task.loss)
    finder.range_test(loader(task, seed), end_lr=10, num_iter=100)
    try:
        rate = float(finder.plot(ax=Figure().subplots())[1])
    except (RuntimeError, ValueError):  # too few points
        rate = None
    return {"torch-lr-finder": (rate, len(finder.history["loss"]))}


@functools.cache
def fastai_functions() -> dict[str, Callable[..., tuple[float, Any]]]:
    """Take fastai's rules from its source file, so that its dependencies need not be there."""
    spec = importlib.util.find_spec("fastai")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "callback" / "schedule.py").read_text())
    names = ("valley", "slide", "minimum", "steep")
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in names]
    scope: dict[str, Any] = {"np": np, "torch": torch, "to_np": lambda values: values.numpy()}
    exec(compile(tree, "fastai/callback/schedule.py", "exec"), scope)
    return {name: scope[name] for name in names}


def fastai(task: Task, optimizer: str, seed: int) -> Suggestions:
    """Sweep as fastai's ``lr_find`` does: 100 steps, debiased EMA, ends at 4x the best loss."""
    functions = fastai_functions()
    model = task.make_model(seed)
    stepper = OPTIMIZERS[optimizer](model.parameters(), lr=1e-7)
    rates: list[float] = []
    losses: list[Tensor] = []
    average, best = torch.tensor(0.0), math.inf
    data = itertools.chain.from_iterable(itertools.repeat(loader(task, seed)))
    for step, (x, y) in enumerate(itertools.islice(data, 100)):
        stepper.param_groups[0]["lr"] = rate = 1e-7 * (10 / 1e-7) ** (step / 100)
        stepper.zero_grad()
        loss = task.loss(model(x), y)
        loss.backward()
        stepper.step()
        average = torch.lerp(loss.detach(), average, 0.98)
        rates.append(rate)
        losses.append(average / (1 - 0.98 ** (step + 1)))
        best = min(best, losses[-1].item())
        if losses[-1].item() > 4 * best:
            break
    kept, curve = torch.tensor(rates[10:-5]), torch.tensor(losses[10:-5])
    end = int((~curve.isnan()).cumprod(0).sum())

    def suggest(rule: Callable[..., tuple[float, Any]]) -> float | None:
        try:
            return float(rule(kept[:end], curve[:end], 100)[0])
        except (IndexError, RuntimeError, ValueError):  # too few points
            return None

    return {f"fastai {name}": (suggest(rule), len(losses)) for name, rule in functions.items()}


PEERS = {"lightning": lightning, "torch_lr_finder": torch_lr_finder, "fastai": fastai}


# Bookkeeping --------------------------------------------------------------------------------------


def fingerprint(task: Task) -> str:
    """Hash what the task is: its data, its model and what that computes, its loss."""
    model = task.make_model(0)
    with torch.no_grad():
        output = model.eval()(task.val_x)
    tensors = [task.x, task.y, task.val_x, task.val_y, output, *model.state_dict().values()]
    digest = hashlib.sha256(f"{model}{task.batch_size}{task.loss(output, task.val_y)}".encode())
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def judged(
    tool: Callable[[Task, str, int], Suggestions], task: Task, optimizer: str, seed: int
) -> dict[str, dict[str, Any]]:
    """Return for each rule of a tool its rate, its steps, and what training at the rate gives."""
    torch.manual_seed(seed)
    noise = io.StringIO()
    with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
        found = tool(task, optimizer, seed)
    return {
        rule: {"lr": lr, "steps": steps}
        | {schedule: train(task, optimizer, schedule, seed, lr) for schedule in SCHEDULES}
        for rule, (lr, steps) in found.items()
    }


def regret(value: float, start: float, grid: list[float]) -> float:
    if not math.isfinite(value):
        return 1.0
    best = min(grid)
    return min(max((value - best) / max(start - best, 1e-12), 0.0), 1.0)


def records(
    split: str, task: Task, seeds: list[int], rules: set[str], cache: Path
) -> list[dict[str, Any]]:
    """Measure what the cache lacks; return a row for each optimizer, seed and rule."""
    path = cache / f"{task.name}-{fingerprint(task)}.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    rows = []
    for optimizer, seed in itertools.product(OPTIMIZERS, seeds):
        known = stored.setdefault(f"{optimizer}/{seed}", {})
        if not known:
            known["start"] = val_loss(task, task.make_model(seed))
            known["grid"] = {
                s: [train(task, optimizer, s, seed, lr) for lr in GRID] for s in SCHEDULES
            }
        for name, tool in PEERS.items():
            if name in rules and name not in known:
                known[name] = judged(tool, task, optimizer, seed)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(stored))
        temporary.replace(path)
        found = judged(ours, task, optimizer, seed) if "ours" in rules else {}
        for name in PEERS:
            found |= known.get(name, {})
        where = {"split": split, "task": task.name, "optimizer": optimizer, "seed": seed}
        for rule, entry in found.items():
            regrets = {s: regret(entry[s], known["start"], known["grid"][s]) for s in SCHEDULES}
            rows.append({**where, "rule": rule, **entry, **regrets})
    return rows


# The report ---------------------------------------------------------------------------------------

COLUMNS = [(o, s) for s in SCHEDULES for o in (*OPTIMIZERS, "both")] + [("both", "pooled")]


def spread(rows: list[dict[str, Any]], optimizer: str, schedule: str) -> tuple[float, ...]:
    """Return median, 90th percentile and mean of the regrets."""
    schedules = SCHEDULES if schedule == "pooled" else (schedule,)
    chosen = [r for r in rows if optimizer in ("both", r["optimizer"])]
    values = [r[s] for r in chosen for s in schedules]
    return float(np.median(values)), float(np.percentile(values, 90)), float(np.mean(values))


def table(rows: list[dict[str, Any]]) -> str:
    """Return Markdown: a row for each rule; cells are median / 90th percentile / mean."""
    by_rule: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_rule.setdefault(row["rule"], []).append(row)
    heads = [f"{s.replace('_', '-')}, {o}" for o, s in COLUMNS]
    lines = ["| " + " | ".join(["rule", "runs", "no rate", "steps", *heads]) + " |"]
    lines.append("|" + "---|" * (len(heads) + 4))
    cells = {rule: [spread(part, *c) for c in COLUMNS] for rule, part in by_rule.items()}
    for rule, part in by_rule.items():
        none = sum(row["lr"] is None for row in part)
        counts = [rule, str(len(part)), str(none), f"{np.mean([r['steps'] for r in part]):.0f}"]
        numbers = [" / ".join(f"{v:.3f}" for v in cell) for cell in cells[rule]]
        lines.append("| " + " | ".join(counts + numbers) + " |")
    peers = [cells[rule] for rule in cells if not rule.startswith("ours")]
    if OURS in cells and peers:
        ratios = []
        for column, own in enumerate(cells[OURS]):
            best = [min(peer[column][i] for peer in peers) for i in range(3)]
            pairs = zip(own, best, strict=True)
            ratios.append(" / ".join(f"{a / b:.2f}" if b > 0 else "-" for a, b in pairs))
        lines.append("| " + " | ".join([f"{OURS} / best peer", "", "", "", *ratios]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", choices=[*SPLITS, "all"], default="all")
    parser.add_argument("--tasks", nargs="+", help="names; all of the split by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rules", default="ours,peers", help="run these; cached peers show anyway")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir(), "lr_suggestion"))
    parser.add_argument("--json", type=Path, help="write every single regret to this file")
    arguments = parser.parse_args()
    rules = set(arguments.rules.split(","))
    if not rules <= {"ours", "peers"}:
        parser.error(f"--rules {arguments.rules}: choose of ours,peers")
    if "peers" in rules:
        rules |= {name for name in PEERS if importlib.util.find_spec(name) is not None}
    chosen = [
        (split, task)
        for split in (SPLITS if arguments.split == "all" else [arguments.split])
        for task in SPLITS[split]()
        if not arguments.tasks or task.name in arguments.tasks
    ]
    if not chosen:
        parser.error(f"--tasks: there is none of {arguments.tasks} in --split {arguments.split}")
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (split, task) in enumerate(chosen, 1):
        begin = time.perf_counter()
        rows += records(split, task, arguments.seeds, rules, arguments.cache)
        took = time.perf_counter() - begin
        print(f"{number}/{len(chosen)} {task.name}: {took:.0f} s", file=sys.stderr, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    for name in ("torch", "lightning", "torch-lr-finder", "fastai"):
        try:
            print(f"{name} {importlib.metadata.version(name)}", end="; ")
        except importlib.metadata.PackageNotFoundError:  # noqa: PERF203
            print(f"{name} is not installed and left out", end="; ")
    print("cells: median / 90th percentile / mean of regret")
    for split in SPLITS:
        part = [row for row in rows if row["split"] == split]
        if part:
            tasks = len({row["task"] for row in part})
            print(f"\n{split.replace('_', ' ')}: {tasks} tasks\n\n{table(part)}")


if __name__ == "__main__":
    main()
