"""Fits with and without a probe, and what is compared of them."""

import random

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.distributed.tensor import DTensor

from lightning_tuning._trainer.sandbox import Sandbox
from lightning_tuning._trainer.shards import reshard


def use_everything(box):
    """Steps, validation, another data order, and steps again."""
    losses = []

    def note(step, loss):
        losses.append(loss.item())
        if step == 2 and box.trainer.enable_validation:
            box.evaluate(num_batches=2)

    box.run(7, after_step=note)
    box.rewind(order=1)
    box.run(3, after_step=note)
    box.rewind()
    box.run(2, after_step=note)
    box.run(1, after_step=note)
    return losses


class Probe(Callback):
    """Runs ``act`` in a sandbox when training starts; catches ``expected`` errors."""

    def __init__(self, act=use_everything, expected=()):
        self.act = act
        self.expected = expected
        self.result = None
        self.caught = None

    def on_train_start(self, trainer, pl_module):
        try:
            with Sandbox(trainer, pl_module) as box:
                self.result = self.act(box)
        except self.expected as error:
            self.caught = error


def seed(number=3):
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002
    torch.manual_seed(number)


def run_fit(program, folder, *callbacks, ckpt_path=None, save_all=False, **settings):
    """Fit a program from its seed; return the trainer and all that the fit left."""
    seed()
    folder.mkdir(parents=True, exist_ok=True)
    module, data, own_settings = program()
    checkpoint = ModelCheckpoint(
        folder / "checkpoints",
        save_last=True,
        every_n_train_steps=1 if save_all else 4,
        save_top_k=-1 if save_all else 1,
    )
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": CSVLogger(folder, name="", version="log"),
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    own_callbacks = own_settings.pop("callbacks", [])
    trainer = Trainer(
        callbacks=[*callbacks, *own_callbacks, checkpoint], **defaults | own_settings | settings
    )
    trainer.fit(module, ckpt_path=ckpt_path, **data)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # rank 0 writes the files that all read
    return trainer, outcome(trainer, module, folder)


def outcome(trainer, module, folder):
    """All that a fit leaves: weights, optimizers, generators, counters, metrics, files."""
    # whether FSDP2 still holds gathered weights beside the shards is not what training leaves
    reshard(module)
    return {
        "seen": [list(ids) for ids in getattr(module, "seen", [])],
        "logged": dict(trainer.logged_metrics),
        "callback_metrics": dict(trainer.callback_metrics),
        "progress_bar_metrics": dict(trainer.progress_bar_metrics),
        "weights": dict(module.state_dict()),
        "grads": [p.grad for p in module.parameters()],
        "modes": [m.training for m in module.modules()],
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "optimizers": [state_of(o) for o in trainer.optimizers],
        "global_step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "random": random.getstate(),
        "numpy": np.random.get_state()[1],  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "seed": torch.initial_seed(),
        "extra": module.state_of_interest() if hasattr(module, "state_of_interest") else None,
        **files(folder),
    }


def state_of(optimizer):
    return {k: v for k, v in optimizer.state_dict().items() if k in ("state", "param_groups")}


def files(folder):
    """Return the contents of all files of a run, the folder's own name left out of them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".ckpt":
            content = torch.load(path, weights_only=False)
            found[str(path.relative_to(folder))] = without(content, str(folder))
        elif path.is_file() and "events.out" not in path.name:
            found[str(path.relative_to(folder))] = path.read_text()
    return found


def without(content, folder):
    if isinstance(content, dict):
        return {without(k, folder): without(v, folder) for k, v in content.items()}
    if isinstance(content, list | tuple):
        return [without(v, folder) for v in content]
    return content.replace(folder, "") if isinstance(content, str) else content


def differences(one, other, where=""):
    """Return the paths at which two nested structures differ by a bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if same_bits(one, other) else [where]
    if isinstance(one, np.ndarray):
        return [] if one.tobytes() == other.tobytes() else [where]
    if type(one) is not type(other):
        return [f"{where}: {one!r} != {other!r}"]
    if isinstance(one, dict):
        if list(one) != list(other):
            return [f"{where}: keys {list(one)} != {list(other)}"]
        return [d for k in one for d in differences(one[k], other[k], f"{where}/{k}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{where}: {len(one)} != {len(other)} entries"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}/{i}")]
    if isinstance(one, float) and one != one:
        return [] if other != other else [where]
    return [] if one == other else [f"{where}: {one!r} != {other!r}"]


def same_bits(one, other):
    if nn.parameter.is_lazy(one) or nn.parameter.is_lazy(other):
        return nn.parameter.is_lazy(one) and nn.parameter.is_lazy(other)
    one, other = (dense(t.detach()) for t in (one, other))
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)))


def dense(tensor):
    tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return tensor.to_dense() if tensor.layout != torch.strided else tensor


def assert_same(program, folder, probe=None, ckpt_path=None, **settings):
    """Assert that a fit with a probe equals the fit without it; return the probe's trainer."""
    _, plain = run_fit(program, folder / "plain", ckpt_path=ckpt_path, **settings)
    probe = probe or Probe()
    trainer, probed = run_fit(program, folder / "probed", probe, ckpt_path=ckpt_path, **settings)
    assert probe.result is not None or probe.caught is not None, "the probe did not run"
    found = differences(plain, probed)
    assert not found, found
    return trainer
