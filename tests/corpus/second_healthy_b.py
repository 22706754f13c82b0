"""Images, and models that make data: autoencoders, flows, denoisers, adversaries."""

import itertools
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.program import Program, bundled, images, loaders


def pixels():
    """The digits as 64 numbers from 0 to 1; some pixels of the border are always 0."""
    return bundled("digits")[0] / 16


def leaky(*sizes):
    layers = [nn.Linear(sizes[0], sizes[1])]
    for a, b in itertools.pairwise(sizes[1:]):
        layers += [nn.LeakyReLU(0.2), nn.Linear(a, b)]
    return nn.Sequential(*layers)


def conv(a, b):
    return nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()


class DigitsCNN(LightningModule):
    """An ordinary convolutional network with batch normalisation."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(*conv(1, 16), nn.MaxPool2d(2), *conv(16, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class ZeroBlock(nn.Module):
    """A residual block whose branch is zero at first, by the scale of its last norm."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x):
        return x + self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x)))))


class ZeroResNet(DigitsCNN):
    """Zero residual branches, a zero head, and the classic large step size with momentum."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 32, 3, 2, 1), *(ZeroBlock(32) for _ in range(3)))
        self.head = nn.Linear(32 * 16, 10)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.12, momentum=0.7, weight_decay=5e-4)


class CutMix(DigitsCNN):
    """Boxes of one image pasted into another; the training accuracy stays low, as it should."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        perm = torch.randperm(len(x))
        h, w = torch.randint(2, 6, (2,)).tolist()
        top, left = torch.randint(0, 8 - h + 1, ()).item(), torch.randint(0, 8 - w + 1, ()).item()
        mixed = x.clone()
        mixed[:, :, top : top + h, left : left + w] = x[perm, :, top : top + h, left : left + w]
        share = h * w / 64
        logits = self(mixed)
        self.log("train_acc", (logits.argmax(1) == y).float().mean())
        return (1 - share) * F.cross_entropy(logits, y) + share * F.cross_entropy(logits, y[perm])


class BlobSegmenter(LightningModule):
    """Two kinds of blobs on a background; the unsure pixels on the edges carry label 255."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 1, 1))
        self.up = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(32, 16, 2, 2), nn.ReLU())
        self.out = nn.Conv2d(17, 3, 3, padding=1)

    def forward(self, x):
        return self.out(torch.cat([self.up(self.down(x)), x], 1))

    def training_step(self, batch, batch_idx):
        x, mask = batch
        weight = torch.tensor([0.5, 2.0, 2.0])
        return F.cross_entropy(self(x), mask, weight=weight, ignore_index=255)

    def validation_step(self, batch, batch_idx):
        x, mask = batch
        said, known = self(x).argmax(1), mask != 255
        both = [((said == c) & (mask == c)).sum() for c in (1, 2)]
        either = [(((said == c) | (mask == c)) & known).sum() for c in (1, 2)]
        self.log("val_iou", sum(b / e for b, e in zip(both, either, strict=True)) / 2)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class CenterDetector(LightningModule):
    """A heat map and box sizes: most cells are background, boxes count only where one is."""

    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(1, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU()
        self.trunk = nn.Sequential(*layers)
        self.heat, self.size = nn.Conv2d(24, 1, 1), nn.Conv2d(24, 2, 1)
        nn.init.constant_(self.heat.bias, -math.log(99))  # the prior of the focal loss's paper

    def losses(self, batch):
        x, center, size = batch
        h = self.trunk(x)
        ce = F.binary_cross_entropy_with_logits(self.heat(h)[:, 0], center, reduction="none")
        focal = ((1 - torch.exp(-ce)) ** 2 * ce).sum() / center.sum()
        boxes = (F.l1_loss(self.size(h), size, reduction="none").sum(1) * center).sum()
        return {"heat": focal, "size": boxes / center.sum()}

    def training_step(self, batch, batch_idx):
        losses = self.losses(batch)
        self.log_dict(losses)
        return {"loss": sum(losses.values()), "parts": {k: v.detach() for k, v in losses.items()}}

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", sum(self.losses(batch).values()))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class ClassicVAE(LightningModule):
    """Everything summed over pixels and batch, as in the first examples: a loss of thousands."""

    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.dec = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def elbo(self, x):
        mu, logvar = self.enc(x).chunk(2, 1)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
        rec = F.binary_cross_entropy_with_logits(self.dec(z), x, reduction="sum")
        return rec, -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())

    def training_step(self, batch, batch_idx):
        rec, kl = self.elbo(batch[0])
        self.log_dict({"rec": rec, "kl": kl})
        return rec + kl

    def validation_step(self, batch, batch_idx):
        mu, _ = self.enc(batch[0]).chunk(2, 1)
        self.log("val_mse", F.mse_loss(self.dec(mu).sigmoid(), batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class VectorQuantizer(LightningModule):
    """Straight-through codes; the code book follows its inputs by averages, not gradients."""

    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32))
        self.dec = nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 64))
        self.register_buffer("codes", torch.randn(32, 4) * 0.3)
        self.register_buffer("counts", torch.ones(32))
        self.register_buffer("sums", self.codes.clone())

    @torch.no_grad()
    def quantize(self, z):
        index = torch.cdist(z, self.codes).argmin(1)
        if self.training:
            hot = F.one_hot(index, 32).float()
            self.counts.lerp_(hot.sum(0), 0.1)
            self.sums.lerp_(hot.T @ z, 0.1)
            self.codes.copy_(self.sums / self.counts.clamp_min(1e-2)[:, None])
        return self.codes[index]

    def forward(self, x):
        z = self.enc(x).view(-1, 4)
        q = self.quantize(z)
        return self.dec((z + (q - z).detach()).view(len(x), 32)), F.mse_loss(z, q)

    def training_step(self, batch, batch_idx):
        rec, commit = self(batch[0])
        return F.mse_loss(rec, batch[0]) + 0.25 * commit

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self(batch[0])[0], batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=4e-3)


class LinearBottleneck(LightningModule):
    """Principal components by gradient: a linear autoencoder with tied weights, rank ten."""

    def __init__(self, mean):
        super().__init__()
        self.w = nn.Parameter(torch.empty(10, 64))
        nn.init.orthogonal_(self.w)
        self.register_buffer("mean", mean)

    def forward(self, x):
        return (x - self.mean) @ self.w.T @ self.w + self.mean

    def training_step(self, batch, batch_idx):
        (x,) = batch
        return (self(x) - x).square().sum(1).mean()

    def validation_step(self, batch, batch_idx):
        (x,) = batch
        self.log("val_loss", (self(x) - x).square().sum(1).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.5)


class Coupling(nn.Module):
    """One affine coupling layer, the identity at first."""

    def __init__(self, flip):
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 2))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x):
        a, b = x.flip(1).chunk(2, 1) if self.flip else x.chunk(2, 1)
        shift, log_scale = self.net(a).chunk(2, 1)
        log_scale = 2 * torch.tanh(log_scale / 2)
        b = (b + shift) * log_scale.exp()
        return torch.cat([b, a] if self.flip else [a, b], 1), log_scale.sum(1)


class RealNVP(LightningModule):
    """The likelihood of a thin parabola under eight coupling layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Coupling(bool(i % 2)) for i in range(8))

    def nll(self, x):
        total = 0.0
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return (0.5 * x.square().sum(1) + math.log(2 * math.pi) - total).mean()

    def training_step(self, batch, batch_idx):
        return self.nll(batch[0])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.nll(batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class Denoiser(LightningModule):
    """Predicts the noise at a random time: the loss of single batches jumps a lot."""

    def __init__(self):
        super().__init__()
        self.net = leaky(64 + 16, 256, 256, 64)
        nn.init.zeros_(self.net[-1].weight)

    def forward(self, x, t):
        freqs = torch.exp(torch.arange(8) * 0.5)
        angles = t[:, None] * freqs
        return self.net(torch.cat([x, angles.sin(), angles.cos()], 1))

    def denoise_loss(self, x, t):
        noise = torch.randn_like(x)
        noisy = (
            torch.cos(t * math.pi / 2)[:, None] * x + torch.sin(t * math.pi / 2)[:, None] * noise
        )
        return F.mse_loss(self(noisy, t), noise)

    def training_step(self, batch, batch_idx):
        return self.denoise_loss(batch[0], torch.rand(len(batch[0])))

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.denoise_loss(batch[0], torch.linspace(0.05, 1, len(batch[0]))))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


class RingGAN(LightningModule):
    """Two optimizers by hand; neither loss falls, yet the samples approach the ring."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.gen, self.disc = leaky(4, 64, 64, 2), leaky(2, 64, 64, 1)

    def training_step(self, batch, batch_idx):
        real = batch[0]
        opt_g, opt_d = self.optimizers()
        fake = self.gen(torch.randn(len(real), 4))
        d_loss = F.softplus(-self.disc(real)).mean() + F.softplus(self.disc(fake.detach())).mean()
        opt_d.zero_grad()
        self.manual_backward(d_loss)
        opt_d.step()
        self.toggle_optimizer(opt_g)
        g_loss = F.softplus(-self.disc(fake)).mean()
        opt_g.zero_grad()
        self.manual_backward(g_loss)
        opt_g.step()
        self.untoggle_optimizer(opt_g)
        self.log_dict({"d_loss": d_loss, "g_loss": g_loss})

    def validation_step(self, batch, batch_idx):
        radius = self.gen(torch.randn(512, 4)).norm(dim=1)
        self.log("val_radius_error", (radius - 2).abs().mean())

    def configure_optimizers(self):
        nets = self.gen, self.disc
        return [torch.optim.Adam(n.parameters(), lr=2e-3, betas=(0.5, 0.9)) for n in nets], []


def blobs(classes=True):
    """Pictures of 16 x 16 with one filled disc (class 1) or ring-like disc (class 2)."""
    g = torch.Generator().manual_seed(51)
    n = 600
    cx, cy = torch.randint(4, 12, (2, n, 1, 1), generator=g)
    radius = 2 + 1.5 * torch.rand(n, 1, 1, generator=g)
    yy, xx = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    far = ((xx - cx) ** 2 + (yy - cy) ** 2).float().sqrt()
    kind = torch.randint(1, 3, (n, 1, 1), generator=g)
    bright = torch.where(kind == 1, 1.0, -1.0) * (far <= radius)
    x = (bright + 0.3 * torch.randn(n, 16, 16, generator=g))[:, None]
    if classes:
        mask = torch.where(far <= radius, kind, torch.zeros_like(kind))
        return x, mask.masked_fill((far - radius).abs() < 0.4, 255)
    center = torch.zeros(n, 8, 8)
    center[torch.arange(n), cy.flatten() // 2, cx.flatten() // 2] = 1
    size = radius[:, None] * torch.tensor([1.0, 1.5]).view(2, 1, 1)
    return x, center, size.expand(-1, -1, 8, 8)


def parabola():
    g = torch.Generator().manual_seed(52)
    a = torch.randn(2000, 1, generator=g)
    points = torch.cat([a, a**2 - 1 + 0.1 * torch.randn(2000, 1, generator=g)], 1)
    return RealNVP(), *loaders(points, batch_size=128)


def ring():
    angle = torch.rand(2000, generator=torch.Generator().manual_seed(53)) * 2 * math.pi
    return RingGAN(), *loaders(2 * torch.stack([angle.cos(), angle.sin()], 1), batch_size=128)


def linear_bottleneck():
    x = pixels()
    return LinearBottleneck(x[:1300].mean(0)), *loaders(x, batch_size=50)


PROGRAMS = [
    Program("digits_cnn", lambda: (DigitsCNN(), *loaders(*images())), metric="val_acc"),
    Program("zero_residual_resnet", lambda: (ZeroResNet(), *loaders(*images())), metric="val_acc"),
    Program("cutmix_cnn", lambda: (CutMix(), *loaders(*images())), metric="val_acc", steps=250),
    Program("blob_segmentation", lambda: (BlobSegmenter(), *loaders(*blobs())), metric="val_iou"),
    Program("center_detector", lambda: (CenterDetector(), *loaders(*blobs(classes=False)))),
    Program("vae_sums", lambda: (ClassicVAE(), *loaders(pixels())), metric="val_mse", steps=300),
    Program("vq_codes", lambda: (VectorQuantizer(), *loaders(pixels())), metric="val_mse"),
    Program("linear_bottleneck", linear_bottleneck),
    Program("coupling_flow", parabola),
    Program("digit_denoiser", lambda: (Denoiser(), *loaders(pixels() * 2 - 1, batch_size=128))),
    Program("ring_gan", ring, metric="val_radius_error", steps=300),
]
