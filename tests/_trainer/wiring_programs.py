"""A small learner for the wiring check's topics, and what they say about one."""

import warnings

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_tuning._trainer.probe import Probe
from lightning_tuning._trainer.wiring.topic import judge
from tests.corpus.program import QUIET


def clusters(count=256, features=8, classes=4):
    """Points about a few centres, and the number of the centre."""
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(count) % classes
    centres = 1.5 * torch.randn(classes, features, generator=generator)
    x = centres[y] + 0.5 * torch.randn(count, features, generator=generator)
    return (x - x.mean(0)) / x.std(0), y


class Learner(LightningModule):
    """Trains the network that ``make`` gives, by SGD with momentum."""

    def __init__(self, make, *, lr=0.1, loss=F.cross_entropy):
        super().__init__()
        torch.manual_seed(0)
        self.net, self.lr, self.loss = make(), lr, loss

    def prepare(self, x):
        return x

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(self.prepare(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(self.net(self.prepare(batch[0])), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Judge(Callback):
    """Measures topics before the first step, and ends the fit there."""

    def __init__(self, topics):
        self.topics = topics
        self.findings = ()
        self.same = None

    def on_train_start(self, trainer, pl_module):
        before = _state(trainer, pl_module)
        with Probe(trainer, pl_module) as probe:
            wanted = [code for topic in self.topics for code in topic.rules]
            self.findings = judge(probe, self.topics, wanted)
        after = _state(trainer, pl_module)
        self.same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        trainer.should_stop = True
        trainer.fit_loop.max_epochs = 0


def _state(trainer, module):
    tensors = [t.detach().clone() for t in module.state_dict().values()]
    return [*tensors, torch.get_rng_state()]


def judged(topics, module, data=None, val=None, **loader):
    """The callback that has judged a module on data (tensors, or a loader)."""
    if not isinstance(data, DataLoader):
        tensors = clusters() if data is None else data
        data = DataLoader(TensorDataset(*tensors), **{"batch_size": 16, "shuffle": True} | loader)
    if val is not None and not isinstance(val, DataLoader):
        val = DataLoader(TensorDataset(*val), batch_size=64)
    judge_ = Judge(topics)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        Trainer(**QUIET | {"max_epochs": 1, "limit_train_batches": 400}, callbacks=[judge_]).fit(
            module, data, val
        )
    return judge_


def alarms_of(topics, module, data=None, val=None, **loader):
    """The codes of what is called wrong."""
    found = judged(topics, module, data, val, **loader).findings
    codes = {code for topic in topics for code in topic.rules}
    assert {finding.code for finding in found} == codes, "each rule must speak"
    return sorted({f.code for f in found if f.verdict in ("warn", "fail")})


def parts_unchanged(topics, module, data=None, val=None, **loader):
    """Whether weights, buffers and random numbers are the same bits after a measurement."""
    return judged(topics, module, data, val, **loader).same
