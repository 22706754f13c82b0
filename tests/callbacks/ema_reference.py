"""What an average of weights must be: the recursion in float64, over the steps that really ran."""

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from torch.distributed.tensor import DTensor

from lightning_tuning import EMAWeights
from tests.toys import loader


def decay_at(step, decay, warmup=True):
    """Return the decay of one update, ``step`` steps since the average began."""
    if step == 0:
        return 0.0
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


def local(tensor):
    """Return what lies in this process."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def precise(tensor):
    return local(tensor).to(torch.complex128 if tensor.is_complex() else torch.float64, copy=True)


class Recursion(Callback):
    """Follows every optimizer by itself; after each batch ``ema`` must have the same averages.

    A step counts if it changed a weight: a scaler may let an optimizer run and skip its update.
    In validation the module must hold the averages bit for bit, and afterwards the weights.
    """

    def __init__(self, ema, *, decay=None, every=1, after=0, rtol=1e-5, atol=1e-6, judges=True):
        self.ema = ema
        self.decay = ema.decay if decay is None else decay
        self.every, self.after = every, after
        self.tolerance = {"rtol": rtol, "atol": atol}
        self.judges = judges
        self.averages, self.own, self.paths = {}, {}, {}
        self.steps, self.since, self.kept = {}, {}, {}
        self.compared = self.judged = 0
        self.held = None

    def on_train_start(self, trainer, pl_module):
        self.paths = {id(p): name for name, p in pl_module.named_parameters()}
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self.after_step)
            self.steps[id(optimizer)], self.kept[id(optimizer)] = 0, 1.0
        self.note(pl_module)

    def note(self, module):
        self.own = {name: local(p).clone() for name, p in module.named_parameters()}

    def parameters(self, optimizer):
        """Return those of an optimizer; a shared one belongs to the first that holds it."""
        first = {}
        for other in self.trainer.optimizers:
            for group in other.param_groups:
                for p in group["params"]:
                    first.setdefault(id(p), other)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        return {self.paths[id(p)]: p for p in held if first[id(p)] is optimizer}

    @torch.no_grad()
    def after_step(self, optimizer, args, kwargs):
        key, held = id(optimizer), self.parameters(optimizer)
        if all(torch.equal(local(p), self.own[name]) for name, p in held.items()):
            return
        self.own.update({name: local(p).clone() for name, p in held.items()})
        self.steps[key] += 1
        if self.steps[key] <= self.after:
            return
        since = self.since[key] = self.since.get(key, -1) + 1
        self.kept[key] *= decay_at(since, self.decay, self.ema.warmup) if since else 1.0
        for name, weight in held.items():
            if name not in self.averages:
                self.averages[name] = precise(weight)
            elif since % self.every == 0:
                kept = self.kept[key]
                self.averages[name] = kept * self.averages[name] + (1 - kept) * precise(weight)
        if since % self.every == 0:
            self.kept[key] = 1.0

    def setup(self, trainer, pl_module, stage):
        self.trainer = trainer

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        found = self.ema.average
        own = {name for name, _ in pl_module.named_parameters()}
        self.note(pl_module)
        for name in own & set(found) - set(self.averages):
            # where only the device knows that no step has counted: the weights themselves
            assert torch.equal(found[name].to(self.own[name]), self.own[name])
        for name, expected in self.averages.items():
            value = precise(found[name]).to(expected.device)
            torch.testing.assert_close(value, expected, **self.tolerance)
            self.compared += 1

    def on_validation_start(self, trainer, pl_module):
        average = self.ema.average
        self.held = {n: average.get(n, w) for n, w in self.own.items()}
        if trainer.sanity_checking or not self.judges or self.ema.validate == "raw":
            self.held = self.own

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        for name, p in pl_module.named_parameters():
            # what FSDP2 has gathered for an earlier batch is no shard
            if self.held and local(p).shape == self.held[name].shape:
                judged = torch.equal(local(p), self.held[name].to(p.device, p.dtype))
                assert judged, f"{name} is judged wrongly"
                self.judged += 1

    def on_validation_end(self, trainer, pl_module):
        for name, p in pl_module.named_parameters():
            assert not self.own or torch.equal(local(p), self.own[name]), f"{name} is not back"


def trainer_for(*callbacks, **settings):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    settings = {**quiet, "max_epochs": 2, "accelerator": "cpu", "devices": 1, **settings}
    return Trainer(enable_model_summary=False, callbacks=list(callbacks), **settings)


def fit(module, *callbacks, data=None, val=None, seed=3, ckpt_path=None, **settings):
    """Fit from a seed; return the trainer."""
    trainer = trainer_for(*callbacks, **settings)
    seed_everything(seed, verbose=False)
    val = loader(8) if val is None else val
    trainer.fit(module, loader() if data is None else data, val, ckpt_path=ckpt_path)
    return trainer


def weights_of(module):
    return {name: local(value).clone() for name, value in module.state_dict().items()}


def differing(one, other):
    """Return the paths whose values are not the same bit for bit."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def settings(ema=None, reference=None, **others):
    """Return the arguments of a fit; those of the callback and of the reference beside them."""
    return {"ema": ema or {}, "reference": reference or {}, **others}


class Steps(Callback):
    """Notes raw weights and what was logged after every batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        logged = {k: v.clone() for k, v in trainer.logged_metrics.items() if "val" not in k}
        self.seen.append((weights_of(pl_module), logged))


def run_program(make, *, averaged):
    torch.manual_seed(5)
    module, chosen = make()
    ema, reference, steps = chosen.pop("ema"), chosen.pop("reference"), Steps()
    made = []
    if averaged:
        ema = EMAWeights(**{"decay": 0.8, "after_fit": "raw", **ema})
        made = [ema, Recursion(ema, every=ema.every_n_steps, **reference)]
    own = chosen.pop("callbacks", [])
    if any(isinstance(callback, EarlyStopping) for callback in own):
        chosen["num_sanity_val_steps"] = 0
    fit(module, *made, *own, steps, **chosen)
    return steps.seen, weights_of(module), torch.get_rng_state(), made


def assert_recursion_and_same_training(make):
    """Run a program with the callback, compared with the recursion, and without it."""
    seen, weights, random, (_, recursion) = run_program(make, averaged=True)
    assert recursion.compared > 3
    assert recursion.judged > 1
    others, other_weights, other_random, _ = run_program(make, averaged=False)
    assert len(seen) == len(others)
    torch.testing.assert_close(seen, others, rtol=0, atol=0)
    torch.testing.assert_close(weights, other_weights, rtol=0, atol=0)
    assert torch.equal(random, other_random)
