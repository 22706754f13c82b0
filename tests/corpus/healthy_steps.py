"""Healthy programs: training steps that look odd."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.healthy_shared import digits, loaders, rows
from tests.corpus.program import Program


class Terms(LightningModule):
    """Several terms in a dict; beside them, losses under no_grad that only measure."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU())
        self.heads = nn.ModuleDict({"digit": nn.Linear(48, 10), "pixels": nn.Linear(48, 64)})

    def forward(self, x):
        h = self.encoder(x)
        return {name: head(h) for name, head in self.heads.items()}

    def losses(self, x, y):
        out = self(x)
        return {
            "digit": F.cross_entropy(out["digit"], y),
            "pixels": 0.5 * F.mse_loss(out["pixels"], x.flatten(1)),
            "sparsity": 1e-4 * self.encoder(x).abs().sum(1).mean(),
        }

    def training_step(self, batch, batch_idx):
        x, y = batch
        terms = self.losses(x, y)
        with torch.no_grad():
            out = self(x)
            self.log("mse", F.mse_loss(out["digit"].softmax(1), F.one_hot(y, 10).float()))
            self.log("ce_of_probabilities", F.cross_entropy(out["digit"].softmax(1), y))
        return {"loss": sum(terms.values()), "terms": {k: v.detach() for k, v in terms.items()}}

    def validation_step(self, batch, batch_idx):
        x, y = batch
        terms = self.losses(x, y)
        self.log_dict({f"val_{k}": v for k, v in terms.items()})
        self.log("val_loss", sum(terms.values()))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class TupleForward(LightningModule):
    """Forward returns logits, an auxiliary prediction and features; the parts have weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.aux = nn.Linear(192, 2)
        self.main = nn.Linear(192, 10)

    def forward(self, x):
        features = self.conv(x).flatten(1)
        return self.main(features), self.aux(features), features

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits, even, _ = self(x)
        return F.cross_entropy(logits, y) + 0.3 * F.cross_entropy(even, y % 2)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits, *_ = self(x)
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class PseudoLabels(LightningModule):
    """Goes to eval mode inside the step, to label its own second view, and back to train."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10)
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.eval()
        with torch.no_grad():
            confidence, guess = self.net(x).softmax(1).max(1)
        self.train()
        noisy = self.net(x + 0.2 * torch.randn_like(x))
        extra = F.cross_entropy(noisy, guess, reduction="none")
        return F.cross_entropy(self.net(x), y) + (extra * (confidence > 0.9)).mean()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class ActorCritic(LightningModule):
    """A bandit with states: the policy's loss is about 0 at first and has no meaning by itself."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.Tanh())
        self.actor, self.critic = nn.Linear(32, 4), nn.Linear(32, 1)

    def reward(self, state, action):
        return (state[:, :4].argmax(1) == action).float() - 0.25

    def training_step(self, batch, batch_idx):
        (state,) = batch
        h = self.body(state)
        policy = torch.distributions.Categorical(logits=self.actor(h))
        action = policy.sample()
        value = self.critic(h).squeeze(-1)
        advantage = self.reward(state, action) - value
        actor_loss = -(policy.log_prob(action) * advantage.detach()).mean()
        loss = actor_loss + 0.5 * advantage.pow(2).mean() - 0.003 * policy.entropy().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        best = self.actor(self.body(batch[0])).argmax(1)
        self.log("val_regret", 0.75 - self.reward(batch[0], best).mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-2)


class Adversarial(LightningModule):
    """FGSM: the gradient by the inputs first, then the loss on the perturbed ones."""

    def __init__(self, eps=0.05):
        super().__init__()
        self.eps = eps
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = x.detach().clone().requires_grad_(True)
        clean = F.cross_entropy(self.net(x), y)
        (direction,) = torch.autograd.grad(clean, x)
        attacked = (x + self.eps * direction.sign()).clamp(0, 1).detach()
        return F.cross_entropy(self.net(attacked), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self.net(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class BatchStatistics(LightningModule):
    """BatchNorm without running statistics: the batch counts, in validation too."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(16, track_running_stats=False)
        self.b = nn.Linear(256, 10)

    def forward(self, x):
        return self.b(F.relu(self.bn(self.a(x))).flatten(1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def on_digits(module):
    return lambda: (module(), *loaders(*digits()))


# seeds 0 to 2                   metric            untrained             trained
# loss_dict_and_metrics          val_loss          2.44 to 2.47          0.311 to 0.327
# tuple_forward_two_tasks        val_acc           0.0867 to 0.104       0.942 to 0.956
# pseudo_labels_eval_in_step     val_acc           0.0778 to 0.149       0.92 to 0.929
# actor_critic                   val_regret        0.574 to 0.625        0.0703 to 0.0977
# adversarial_fgsm               val_acc           0.0778 to 0.149       0.922 to 0.938
# batch_statistics               val_acc           0.0689 to 0.111       0.958 to 0.976
PROGRAMS = [
    Program("loss_dict_and_metrics", on_digits(Terms)),
    Program("tuple_forward_two_tasks", on_digits(TupleForward), metric="val_acc"),
    Program("pseudo_labels_eval_in_step", on_digits(PseudoLabels), metric="val_acc"),
    Program("actor_critic", lambda: (ActorCritic(), *loaders(rows(1024, 6))), metric="val_regret"),
    Program("adversarial_fgsm", on_digits(Adversarial), metric="val_acc"),
    Program("batch_statistics", on_digits(BatchStatistics), metric="val_acc"),
]
