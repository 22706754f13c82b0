"""Healthy trainings of many kinds that a suspicious tool may wrongly alarm about (sixth set)."""

import math

import sklearn.datasets
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.optim import LBFGS, SGD, Adam, AdamW, RMSprop, SparseAdam
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from tests.corpus.program import Program, bundled, images, loaders, standardized


def draw(seed):
    return torch.Generator().manual_seed(seed)


def mlp(*sizes, act=nn.ReLU):
    layers = [nn.Linear(sizes[0], sizes[1])]
    for i in range(1, len(sizes) - 1):
        layers += [act(), nn.Linear(sizes[i], sizes[i + 1])]
    return nn.Sequential(*layers)


def warm_cosine(optimizer, total, warm=1):
    def factor(step):
        return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * min(1, step / total)))

    return [optimizer], [{"scheduler": LambdaLR(optimizer, factor), "interval": "step"}]


def pretrain(net, inputs, targets, steps):
    optimizer = Adam(net.parameters(), 3e-3)
    for _ in range(steps):
        pick = torch.randint(len(inputs), (128,))
        optimizer.zero_grad()
        F.cross_entropy(net(inputs[pick]), targets[pick]).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


def moons(count, noise):
    points, _ = sklearn.datasets.make_moons(count, noise=noise, random_state=4)
    points = torch.as_tensor(points).float()
    return (points - points.mean(0)) / points.std(0)


def averaged(net, decay):
    return AveragedModel(net, avg_fn=get_ema_avg_fn(decay)).requires_grad_(False)


def noisy(pictures):
    return pictures + 0.5 * torch.randn_like(pictures)


class Fit(LightningModule):
    """What most have in common; ``plan`` makes the optimizer, ``other`` holds what few need."""

    def __init__(self, net, plan, loss=F.cross_entropy, log="train_loss", acc="", **other):
        super().__init__()
        self.net, self.plan, self.loss, self.log_as, self.acc = net, plan, loss, log, acc
        self.augment, self.special = other.get("augment", nn.Identity()), other.get("objective")
        self.slow = averaged(net, 0.98) if other.get("average") else None
        self.each = {"on_step": False, "on_epoch": True} if other.get("by_epoch") else {}

    def objective(self, batch):
        if self.special:
            return self.special(self, batch)
        inputs = self.augment(batch[0]) if self.training else batch[0]
        return self.loss(self.net(inputs), batch[1])

    def training_step(self, batch, _):
        loss = self.objective(batch)
        self.log(self.log_as, loss, **self.each)
        return loss

    def validation_step(self, batch, _):
        self.log("val_loss", self.objective(batch), batch_size=len(batch[0]))
        if self.acc:
            self.log(self.acc, (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def on_train_batch_end(self, *_):
        if self.slow:
            self.slow.update_parameters(self.net)

    def configure_optimizers(self):
        return self.plan([p for p in self.parameters() if p.requires_grad])


class Residual(nn.Module):
    def __init__(self, body, scale):
        super().__init__()
        self.body, self.scale = body, nn.Parameter(scale)

    def forward(self, x):
        return x + self.scale * self.body(x)


def resnet_onecycle():
    def layers():
        return [nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]

    blocks = [Residual(nn.Sequential(*layers(), *layers()), torch.ones(1)) for _ in range(5)]
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(2))
    net.extend([nn.Flatten(), nn.Linear(64, 10)])

    def plan(params):
        optimizer = SGD(params, 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        return [optimizer], [{"scheduler": OneCycleLR(optimizer, 0.1, 336), "interval": "step"}]

    return Fit(net, plan, acc="val_acc"), *loaders(*images())


def layerscale_deep():
    bodies = [nn.Sequential(nn.LayerNorm(48), mlp(48, 96, 48, act=nn.GELU)) for _ in range(10)]
    blocks = [Residual(body, torch.full((48,), 1e-4)) for body in bodies]
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), *blocks, nn.Linear(48, 10))
    fit = Fit(net, lambda p: warm_cosine(AdamW(p, 4e-3), 12 * 42, warm=60), acc="val/acc")
    return fit, *loaders(*images())


class Attention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


def rezero_transformer():
    net = nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 32))  # eight rows of pixels are the tokens
    for _ in range(3):
        for body in (Attention(32, 4, batch_first=True), mlp(32, 64, 32)):
            net.append(Residual(body, torch.zeros(1)))
    net.extend([nn.Flatten(), nn.Linear(256, 10)])
    fit = Fit(net, lambda p: warm_cosine(Adam(p, 5e-3), 12 * 42), log="train/loss", acc="val/acc")
    return fit, *loaders(*images())


class LoRA(nn.Module):
    def __init__(self, base, rank):
        super().__init__()
        self.base, self.down = base, nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def lora_adapters():
    pictures, labels = images()
    net = pretrain(mlp(64, 128, 128, 10), pictures.flatten(1), labels, 250)
    net = nn.Sequential(*(LoRA(part, 8) if isinstance(part, nn.Linear) else part for part in net))
    fit = Fit(net, lambda p: AdamW(p, 3e-3), log="ft_loss", acc="val_acc")
    return fit, *loaders(pictures.transpose(2, 3).flatten(1), labels)


def frozen_backbone():
    pictures, labels = images()
    old = labels < 5
    body = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten()]
    pretrain(nn.Sequential(*body, nn.Linear(512, 5)), pictures[old], labels[old], 100)
    fit = Fit(nn.Sequential(*body, nn.Linear(512, 5)), Adam, log="loss", acc="acc", by_epoch=True)
    return fit, *loaders(pictures[~old], labels[~old] - 5)


def short_finetuning():
    pictures, labels = images()
    net = pretrain(mlp(64, 128, 10), pictures.flatten(1)[:900], labels[:900], 150)
    fit = Fit(net.requires_grad_(True), lambda p: AdamW(p, 3e-4), acc="val_acc", augment=noisy)
    return fit, *loaders(pictures.flatten(1), labels)


def tiny_batches():
    g = draw(11)
    labels = torch.randint(2, (2400,), generator=g)
    inputs = torch.randn(2400, 12, generator=g) + 0.3 * (2 * labels[:, None] - 1)
    fit = Fit(nn.Linear(12, 2), lambda p: SGD(p, 0.01), log="loss")
    return fit, *loaders(inputs, labels, batch_size=4)


def noisy_labels():
    pictures, labels = images()
    wrong = torch.rand(len(labels), generator=draw(5)) < 0.3
    wrong[len(labels) * 3 // 4 :] = False
    labels = torch.where(wrong, torch.randint(10, labels.shape, generator=draw(6)), labels)
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    net.append(nn.Linear(144, 10))
    fit = Fit(net, lambda p: Adam(p, 3e-3), acc="val_acc", augment=noisy)
    return fit, *loaders(pictures, labels)


def dropout_augmented():
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10),
    )  # fmt: skip
    fit = Fit(net, lambda p: RMSprop(p, 1e-3), acc="val_acc", augment=noisy)
    return fit, *loaders(*images())


class Gan(LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.gen, self.disc = mlp(4, 48, 48, 2), mlp(2, 64, 64, 1, act=nn.SiLU)
        self.slow = averaged(self.gen, 0.99)

    def training_step(self, batch, _):
        opt_g, opt_d = self.optimizers()
        real = batch[0].clone().requires_grad_(True)
        fake, score = self.gen(torch.randn(len(real), 4)), self.disc(real)
        slope = torch.autograd.grad(score.sum(), real, create_graph=True)[0]
        d_loss = F.softplus(-score).mean() + F.softplus(self.disc(fake.detach())).mean()
        opt_d.zero_grad()
        self.manual_backward(d_loss + 0.1 * slope.square().sum(1).mean())
        opt_d.step()
        g_loss = F.softplus(-self.disc(fake)).mean()
        opt_g.zero_grad()
        self.manual_backward(g_loss)
        opt_g.step()
        self.slow.update_parameters(self.gen)
        self.log_dict({"d_loss": d_loss, "g_loss": g_loss})

    def validation_step(self, batch, _):
        real, fake = batch[0], self.slow(torch.randn(len(batch[0]), 4, generator=draw(0)))
        within = torch.cdist(real, real).mean() + torch.cdist(fake, fake).mean()
        self.log("val_energy", 2 * torch.cdist(real, fake).mean() - within)

    def configure_optimizers(self):
        return [Adam(net.parameters(), 2e-3, (0.0, 0.9)) for net in (self.gen, self.disc)], []


def gan_moons():
    return Gan(), *loaders(moons(4000, 0.1), batch_size=100, val_batch_size=1000)


def vae_digits():
    def objective(fit, batch):
        mean, logvar = fit.net[0](batch[0]).chunk(2, 1)
        logits = fit.net[1](mean + torch.randn_like(mean) * (0.5 * logvar).exp())
        recon = F.binary_cross_entropy_with_logits(logits, batch[0], reduction="none").sum(1)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(1)
        return (recon + kl * (min(1.0, fit.global_step / 200) if fit.training else 1)).mean()

    net = nn.Sequential(mlp(64, 128, 16), mlp(8, 128, 64))
    fit = Fit(net, lambda p: Adam(p, 3e-3), log="neg_elbo", objective=objective)
    return fit, *loaders(bundled("digits")[0] / 16)


def denoiser_moons():
    def objective(fit, batch):
        x, g = batch[0], None if fit.training else draw(1)
        t, noise = torch.rand(len(x), 1, generator=g), torch.randn(x.shape, generator=g)
        keep, waves = torch.cos(t * math.pi / 2), t * torch.arange(1, 9) * math.pi
        mixed = torch.cat([keep * x + (1 - keep**2).sqrt() * noise, waves.sin(), waves.cos()], 1)
        return F.mse_loss((fit.net if fit.training else fit.slow)(mixed), noise)

    net, plan = mlp(18, 96, 96, 96, 2, act=nn.SiLU), lambda p: warm_cosine(Adam(p, 0.01), 30 * 35)
    fit = Fit(net, plan, log="eps_mse", objective=objective, average=True)
    return fit, *loaders(moons(6000, 0.05), batch_size=128, val_batch_size=1500)


def mean_teacher():
    def objective(fit, batch):
        pictures, labels = batch
        logits, goal = fit.net(noisy(pictures)), fit.slow(noisy(pictures)).softmax(1)
        known = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        agreement = F.mse_loss(logits.softmax(1), goal)
        return known / (labels >= 0).sum().clamp_min(1) + 3 * agreement

    pictures, labels = images()
    place = torch.arange(len(labels))  # a fifth of what is trained on has labels
    labels = labels.masked_fill((place < 1347) & (place % 5 > 0), -1)
    net = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    net, plan = net.append(mlp(288, 64, 10)), lambda p: warm_cosine(Adam(p, 3e-3), 30 * 21)
    fit = Fit(net, plan, acc="val_acc", objective=objective, average=True)
    return fit, *loaders(pictures, labels, batch_size=64)


def contrastive_digits():
    def objective(fit, batch):
        a, b = (F.normalize(fit.net(noisy(batch[0])), dim=1) for _ in range(2))
        logits, same = a @ b.T / 0.2, torch.arange(len(a))
        return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2

    fit = Fit(mlp(64, 128, 32), lambda p: AdamW(p, 5e-3), log="info_nce", objective=objective)
    return fit, *loaders(images()[0].flatten(1), batch_size=75, val_batch_size=75)


def distilled_student():
    def objective(fit, batch):
        logits, goal = fit.net(batch[0]) / 4, F.softmax(fit.teacher(batch[0]) / 4, 1)
        soft = F.kl_div(F.log_softmax(logits, 1), goal, reduction="batchmean")
        return 0.7 * 16 * soft + 0.3 * F.cross_entropy(logits * 4, batch[1])

    inputs, labels = images()
    data = loaders(inputs.flatten(1), labels)
    fit = Fit(mlp(64, 32, 10), lambda p: Adam(p, 5e-3), acc="val_acc", objective=objective)
    fit.teacher = pretrain(mlp(64, 256, 256, 10), *data[0].dataset.tensors, 200)
    return fit, *data


def policy_bandit():
    def objective(fit, batch):
        choice = torch.distributions.Categorical(logits=fit.net(batch[0]))
        action = choice.sample()
        reward = (action == batch[1]).float()
        gain = reward - fit.baseline
        if fit.training:
            fit.baseline = 0.95 * fit.baseline + 0.05 * reward.mean().item()
            fit.log("reward", reward.mean())
        return -(gain * choice.log_prob(action) + 0.01 * choice.entropy()).mean()

    (inputs, labels), plan = images(), lambda p: Adam(p, 2e-3)
    fit = Fit(mlp(64, 64, 10), plan, log="policy_loss", acc="val_acc", objective=objective)
    fit.baseline = 0.1
    return fit, *loaders(inputs.flatten(1), labels, batch_size=64)


class Accumulating(Fit):
    def training_step(self, batch, index):
        loss, optimizer = self.objective(batch), self.optimizers()
        self.manual_backward(loss / 4)
        if (index + 1) % 4 == 0:
            self.clip_gradients(optimizer, gradient_clip_val=5.0, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()
            self.lr_schedulers().step()
        self.log("mse", loss)


def manual_accumulation():
    x, y = sklearn.datasets.make_friedman1(3200, noise=1.0, random_state=2)
    x, y = torch.as_tensor(x).float() * 2 - 1, (torch.as_tensor(y).float() - 14.4) / 5
    fit = Accumulating(mlp(10, 64, 64, 1), lambda p: warm_cosine(Adam(p, 0.02), 480), F.mse_loss)
    fit.automatic_optimization = False
    return fit, *loaders(x, y[:, None], batch_size=25)


def sparse_words():
    g = draw(9)
    topics = torch.softmax(torch.randn(4, 400, generator=g) - torch.arange(1, 401).log(), 1)
    labels = torch.randint(4, (12000,), generator=g)
    words = torch.multinomial(topics[labels], 12, replacement=True, generator=g)
    net = nn.EmbeddingBag(400, 4, mode="sum", sparse=True)
    nn.init.zeros_(net.weight)
    fit = Fit(net, lambda p: warm_cosine(SparseAdam(p, 0.03), 560), acc="val_acc", by_epoch=True)
    return fit, *loaders(words, labels, batch_size=64)


def lstm_language():
    def objective(fit, batch):
        embed, cell, head = fit.net
        return F.cross_entropy(head(cell(embed(batch[0]))[0]).transpose(1, 2), batch[1])

    g = draw(12)  # each of six symbols depends on the two before it
    table, text = torch.softmax(2 * torch.randn(36, 6, generator=g), 1), torch.zeros(1200, 2).long()
    for _ in range(24):
        row = table[text[:, -2] * 6 + text[:, -1]]
        text = torch.cat([text, torch.multinomial(row, 1, generator=g)], 1)
    net = nn.Sequential(nn.Embedding(6, 16), nn.LSTM(16, 48, batch_first=True), nn.Linear(48, 6))
    fit = Fit(net, lambda p: warm_cosine(Adam(p, 0.01), 12 * 36), log="nll", objective=objective)
    return fit, *loaders(text[:, 1:-1], text[:, 2:], batch_size=25)


def heavy_tails():
    g = draw(13)
    x, chi = torch.randn(6000, 4, generator=g), torch.randn(6000, 2, generator=g).norm(dim=1)
    y = 2 * torch.sin(x[:, 0]) + x[:, 1] + 0.7 * torch.randn(6000, generator=g) / chi
    net = mlp(4, 48, 48, 1).apply(lambda m: weight_norm(m) if isinstance(m, nn.Linear) else m)

    def plan(params):
        optimizer = SGD(params, 0.06, momentum=0.9, weight_decay=1e-4)
        return [optimizer], [MultiStepLR(optimizer, [7, 10], 0.1)]

    return Fit(net, plan, F.huber_loss), *loaders(x, y[:, None], batch_size=50)


def early_stopping():
    fit = Fit(mlp(30, 32, 2), Adam, acc="val_acc")
    fit.configure_callbacks = lambda: EarlyStopping("val_loss", patience=10)
    return fit, *loaders(*standardized("breast_cancer"))


def lbfgs_wine():
    def objective(fit, batch):
        return F.cross_entropy(fit.net(batch[0]), batch[1]) + 0.01 * fit.net.weight.square().sum()

    net, plan = nn.Linear(13, 3), lambda p: LBFGS(p, 1, 5, line_search_fn="strong_wolfe")
    return Fit(net, plan, objective=objective), *loaders(*standardized("wine"), batch_size=133)


def flow_moons():
    def objective(fit, batch):
        x, logdet = batch[0] * 4, 2 * math.log(4)
        for part in fit.net:
            scale, shift = part(x[:, :1]).unbind(1)
            scale = 2 * torch.tanh(scale / 2)
            x = torch.stack([x[:, 1] * scale.exp() + shift, x[:, 0]], 1)
            logdet = logdet + scale
        return (0.5 * (x**2).sum(1) + math.log(2 * math.pi) - logdet).mean()

    net = nn.Sequential(*(mlp(1, 48, 48, 2) for _ in range(6)))
    for part in net:
        nn.init.zeros_(part[-1].weight)
    fit = Fit(net, lambda p: warm_cosine(Adam(p, 6e-3), 24 * 30), log="nll", objective=objective)
    return fit, *loaders(moons(8000, 0.08) / 8, batch_size=200, val_batch_size=2000)


def diabetes_linear():
    x, y = standardized("diabetes")
    fit = Fit(nn.Linear(10, 1), lambda p: SGD(p, 0.03, weight_decay=0.01), F.mse_loss, log="mse")
    return fit, *loaders(x, (y[:, None] - y.mean()) / y.std(), batch_size=33)


def program(make, epochs, metric="val_loss", **trainer):
    return Program("sixth_" + make.__name__, make, {"max_epochs": epochs} | trainer, metric=metric)


PROGRAMS = [
    program(resnet_onecycle, 8, "val_acc"),
    program(layerscale_deep, 12, "val/acc"),
    program(rezero_transformer, 12, "val/acc"),
    program(lora_adapters, 15, "val_acc"),
    program(frozen_backbone, 20, "acc"),
    program(short_finetuning, 4, "val_acc"),
    program(tiny_batches, 3),
    program(noisy_labels, 12, "val_acc"),
    program(dropout_augmented, 20, "val_acc"),
    program(gan_moons, 30, "val_energy"),
    program(vae_digits, 30),
    program(denoiser_moons, 30),
    program(mean_teacher, 30, "val_acc"),
    program(contrastive_digits, 30),
    program(distilled_student, 20, "val_acc"),
    program(policy_bandit, 40, "val_acc"),
    program(manual_accumulation, 20),
    program(sparse_words, 4),
    program(lstm_language, 12, gradient_clip_val=1.0),
    program(heavy_tails, 12, gradient_clip_val=1.0),
    program(early_stopping, 100, check_val_every_n_epoch=1),
    program(lbfgs_wine, 12),
    program(flow_moons, 24),
    program(diabetes_linear, 20),
]
