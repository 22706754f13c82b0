"""Healthy programs: autoencoders, generators and representation learning."""

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.healthy_shared import digits, loaders, rows
from tests.corpus.program import Program


class VAE(LightningModule):
    """The textbook's ELBO: sums over pixels, latents AND the batch; samples in validation too."""

    def __init__(self, latent=6):
        super().__init__()
        self.enc = nn.Linear(64, 64)
        self.mu, self.logvar = nn.Linear(64, latent), nn.Linear(64, latent)
        self.dec = nn.Sequential(nn.Linear(latent, 64), nn.ReLU(), nn.Linear(64, 64), nn.Sigmoid())

    def forward(self, x):
        h = F.relu(self.enc(x))
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return self.dec(z), mu, logvar

    def elbo(self, batch):
        x = batch[0].flatten(1)
        recon, mu, logvar = self(x)
        bce = F.binary_cross_entropy(recon, x, reduction="sum")
        kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        return bce + kld

    def training_step(self, batch, batch_idx):
        return self.elbo(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.elbo(batch) / len(batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class AnnealedVAE(LightningModule):
    """Two-dimensional latent; the weight of the KL term is 0 at the first step."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 48), nn.Tanh(), nn.Linear(48, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, 12))

    def step(self, x, beta):
        mean, log_std = self.encoder(x).chunk(2, dim=1)
        z = torch.distributions.Normal(mean, log_std.exp())
        kl = torch.distributions.kl_divergence(z, torch.distributions.Normal(0.0, 1.0)).sum(1)
        recon = ((self.decoder(z.rsample()) - x) ** 2).sum(1)
        return (recon + beta * kl).mean(), recon.mean()

    def training_step(self, batch, batch_idx):
        beta = min(1.0, self.global_step / 200) * 0.1
        loss, recon = self.step(batch[0], beta)
        self.log_dict({"loss": loss, "recon": recon, "beta": beta})
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_recon", self.step(batch[0], 0.0)[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Bottleneck(LightningModule):
    """Eight numbers for 64 pixels: its error keeps a floor."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ELU(), nn.Linear(48, 8))
        self.decode = nn.Sequential(nn.Linear(8, 48), nn.ELU(), nn.Linear(48, 64))

    def training_step(self, batch, batch_idx):
        x, _ = batch
        return F.mse_loss(self.decode(self.encode(x)), x.flatten(1))

    def validation_step(self, batch, batch_idx):
        x, _ = batch
        self.log("val_mse", F.mse_loss(self.decode(self.encode(x)), x.flatten(1)))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class LinearAutoencoder(LightningModule):
    """PCA by gradient descent: two linear layers and nothing between, on purpose."""

    def __init__(self):
        super().__init__()
        self.down = nn.Linear(20, 3, bias=False)
        self.up = nn.Linear(3, 20, bias=False)

    def training_step(self, batch, batch_idx):
        (x,) = batch
        return ((self.up(self.down(x)) - x) ** 2).mean()

    def validation_step(self, batch, batch_idx):
        (x,) = batch
        self.log("val_mse", F.mse_loss(self.up(self.down(x)), x))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-2)


class Denoiser(LightningModule):
    """Fresh noise on each input, in validation too."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 1, 3, padding=1),
        )

    def denoise(self, batch):
        clean = batch[0]
        noisy = clean + 0.4 * torch.randn_like(clean)
        return F.mse_loss(self.net(noisy), clean)

    def training_step(self, batch, batch_idx):
        return self.denoise(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.denoise(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def energy_distance(a, b):
    return 2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()


def make_ring():
    angle = 2 * math.pi * torch.rand(2048, generator=torch.Generator().manual_seed(0))
    points = torch.stack([2 + torch.cos(angle), torch.sin(angle)], 1)
    return loaders(points + 0.1 * rows(2048, 2))


class GAN(LightningModule):
    """Two optimizers by hand; the discriminator sees detached samples."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
        self.critic = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def training_step(self, batch, batch_idx):
        (real,) = batch
        opt_g, opt_d = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4, device=self.device))
        d_real, d_fake = self.critic(real), self.critic(fake.detach())
        d_loss = F.binary_cross_entropy_with_logits(d_real, torch.ones_like(d_real))
        d_loss = d_loss + F.binary_cross_entropy_with_logits(d_fake, torch.zeros_like(d_fake))
        opt_d.zero_grad()
        self.manual_backward(d_loss)
        opt_d.step()
        d_fake = self.critic(fake)
        g_loss = F.binary_cross_entropy_with_logits(d_fake, torch.ones_like(d_fake))
        opt_g.zero_grad()
        self.manual_backward(g_loss)
        opt_g.step()
        self.log_dict({"g_loss": g_loss, "d_loss": d_loss})

    def validation_step(self, batch, batch_idx):
        fake = self.generator(torch.randn(len(batch[0]), 4, device=self.device))
        self.log("val_distance", energy_distance(batch[0], fake))

    def configure_optimizers(self):
        betas = (0.5, 0.99)
        return [
            torch.optim.Adam(self.generator.parameters(), lr=2e-3, betas=betas),
            torch.optim.Adam(self.critic.parameters(), lr=5e-3, betas=betas),
        ], []


class WGAN(LightningModule):
    """Weight clipping, the generator on each third batch; both losses are differences."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.G = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
        self.D = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1))

    def training_step(self, batch, batch_idx):
        real = batch[0]
        g, d = self.optimizers()
        noise = torch.randn(len(real), 2, device=self.device)
        self.toggle_optimizer(d)
        with torch.no_grad():
            fake = self.G(noise)
        d.zero_grad()
        self.manual_backward(self.D(fake).mean() - self.D(real).mean())
        d.step()
        for p in self.D.parameters():
            p.data.clamp_(-0.1, 0.1)
        self.untoggle_optimizer(d)
        if batch_idx % 3 == 2:
            self.toggle_optimizer(g)
            g.zero_grad()
            self.manual_backward(-self.D(self.G(noise)).mean())
            g.step()
            self.untoggle_optimizer(g)

    def validation_step(self, batch, batch_idx):
        fake = self.G(torch.randn(len(batch[0]), 2, device=self.device))
        self.log("val_distance", energy_distance(batch[0], fake))

    def configure_optimizers(self):
        return (
            torch.optim.RMSprop(self.G.parameters(), lr=5e-3),
            torch.optim.RMSprop(self.D.parameters(), lr=5e-3),
        )


class Coupling(nn.Module):
    def __init__(self, flip):
        super().__init__()
        self.flip = flip
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 2))
        nn.init.zeros_(self.net[-1].weight)  # the identity at first
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x):
        a, b = x.flip(1).chunk(2, 1) if self.flip else x.chunk(2, 1)
        s, t = self.net(a).chunk(2, 1)
        return torch.cat([a, b * s.exp() + t], 1), s.squeeze(1)


class Flow(LightningModule):
    """RealNVP: no targets, exact negative log likelihood."""

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList(Coupling(i % 2 == 1) for i in range(6))

    def nll(self, x):
        logdet = 0.0
        for step in self.steps:
            x, ld = step(x)
            logdet = logdet + ld
        return (0.5 * (x**2).sum(1) + math.log(2 * math.pi) - logdet).mean()

    def training_step(self, batch, batch_idx):
        return self.nll(batch[0])

    def validation_step(self, batch, batch_idx):
        self.log("val_nll", self.nll(batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Diffusion(LightningModule):
    """Predicts the noise: targets are drawn in the step and the loss has a floor."""

    def __init__(self, levels=50):
        super().__init__()
        self.levels = levels
        self.register_buffer("alpha_bar", torch.cumprod(1 - torch.linspace(1e-3, 0.15, levels), 0))
        self.time = nn.Embedding(levels, 16)
        self.eps = nn.Sequential(nn.Linear(18, 64), nn.SiLU(), nn.Linear(64, 2))

    def loss(self, x0):
        t = torch.randint(self.levels, (len(x0),), device=x0.device)
        noise = torch.randn_like(x0)
        a = self.alpha_bar[t, None]
        xt = a.sqrt() * x0 + (1 - a).sqrt() * noise
        return F.mse_loss(self.eps(torch.cat([xt, self.time(t)], 1)), noise)

    def training_step(self, batch, batch_idx):
        return self.loss(batch[0])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def low_rank(factors):
    mixing = rows(factors, 20 if factors == 3 else 12, seed=5)
    return loaders(rows(1024, factors) @ mixing + 0.05 * rows(1024, mixing.shape[1], seed=1))


def on_digits(module):
    return lambda: (module(), *loaders(*digits()))


# seeds 0 to 2                   metric            untrained             trained
# vae_elbo_summed                val_loss          44.2 to 45.8          25.3 to 25.6
# vae_annealed                   val_recon         29 to 31.1            0.21 to 0.51
# autoencoder_bottleneck         val_mse           0.229 to 0.249        0.0263 to 0.0267
# linear_autoencoder             val_mse           3.51 to 4.02          0.00266 to 0.00274
# denoising_autoencoder          val_loss          0.198 to 0.295        0.0355 to 0.0363
# gan                            val_distance      2.6 to 3.24           0.0461 to 0.072
# wgan_clipped                   val_distance      2.46 to 2.82          0.0721 to 0.0811
# realnvp                        val_nll           4.27 to 4.27          1.51 to 1.63
# diffusion                      val_loss          0.908 to 1.01         0.327 to 0.372
PROGRAMS = [
    Program(
        "vae_elbo_summed",
        on_digits(VAE),
        steps=200,
        note="the loss grows with the batch, on purpose",
    ),
    Program("vae_annealed", lambda: (AnnealedVAE(), *low_rank(2)), metric="val_recon"),
    Program("autoencoder_bottleneck", on_digits(Bottleneck), metric="val_mse", steps=200),
    Program("linear_autoencoder", lambda: (LinearAutoencoder(), *low_rank(3)), metric="val_mse"),
    Program("denoising_autoencoder", on_digits(Denoiser)),
    Program("gan", lambda: (GAN(), *make_ring()), metric="val_distance", steps=300),
    Program("wgan_clipped", lambda: (WGAN(), *make_ring()), metric="val_distance", steps=300),
    Program("realnvp", lambda: (Flow(), *make_ring()), metric="val_nll", steps=200),
    Program("diffusion", lambda: (Diffusion(), *make_ring()), steps=200),
]
