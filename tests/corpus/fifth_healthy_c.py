"""Healthy whole fits, a fifth blind set, last third: generators, sequences and odd loops."""

import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn, optim
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests.corpus.program import Program, images, loaders


def rng(seed):
    return torch.Generator().manual_seed(seed)


class Task(LightningModule):
    """Everything follows from ``compute_loss``."""

    learning_rate = 1e-3

    def training_step(self, batch, batch_idx):
        return self.compute_loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.compute_loss(batch))

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), lr=self.learning_rate)


class GAN(LightningModule):
    """Two players with a hinge loss; judged by the energy distance to the true points."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        sn = parametrizations.spectral_norm
        self.generator = nn.Sequential(
            *(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        )
        self.critic = nn.Sequential(
            *(sn(nn.Linear(2, 64)), nn.LeakyReLU(0.2), sn(nn.Linear(64, 64)), nn.LeakyReLU(0.2)),
            nn.Linear(64, 1),
        )

    def training_step(self, batch, batch_idx):
        (real,) = batch
        opt_g, opt_d = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4))
        d_loss = (
            F.relu(1 - self.critic(real)).mean() + F.relu(1 + self.critic(fake.detach())).mean()
        )
        opt_d.zero_grad()
        self.manual_backward(d_loss)
        opt_d.step()
        self.toggle_optimizer(opt_g)
        g_loss = -self.critic(self.generator(torch.randn(len(real), 4))).mean()
        opt_g.zero_grad()
        self.manual_backward(g_loss)
        opt_g.step()
        self.untoggle_optimizer(opt_g)
        self.log_dict({"g_loss": g_loss.detach(), "d_loss": d_loss.detach()})

    def validation_step(self, batch, batch_idx):
        (real,) = batch
        fake = self.generator(torch.randn(len(real), 4, generator=rng(0)))
        within = torch.cdist(real, real).mean() + torch.cdist(fake, fake).mean()
        self.log("val_loss", 2 * torch.cdist(real, fake).mean() - within)

    def configure_optimizers(self):
        g = optim.Adam(self.generator.parameters(), lr=5e-4, betas=(0.5, 0.9))
        return g, optim.Adam(self.critic.parameters(), lr=1e-3, betas=(0.5, 0.9))


def mixture_gan():
    angle = torch.randint(0, 4, (2400,), generator=rng(526)) * math.pi / 2
    points = torch.stack([angle.cos(), angle.sin()], 1)
    points = points * 1.3 + 0.15 * torch.randn(2400, 2, generator=rng(527))
    return GAN(), *loaders(points, batch_size=60, val_batch_size=600)


class VAE(LightningModule):
    def __init__(self, latent=8, warmup=200):
        super().__init__()
        self.save_hyperparameters()
        self.enc = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2 * latent))
        self.dec = nn.Sequential(nn.Linear(latent, 64), nn.ReLU(), nn.Linear(64, 64))

    def elbo(self, x):
        mu, logvar = self.enc(x).chunk(2, 1)
        z = mu + torch.randn_like(mu) * (logvar / 2).exp()
        rec = F.mse_loss(self.dec(z), x, reduction="none").sum(1).mean() / 2
        kl = (mu.square() + logvar.exp() - 1 - logvar).sum(1).mean() / 2
        return rec, kl

    def training_step(self, batch, batch_idx):
        rec, kl = self.elbo(batch[0].flatten(1))
        beta = min(1.0, self.global_step / self.hparams.warmup)
        self.log_dict({"rec": rec, "kl": kl, "beta": beta})
        return rec + beta * kl

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", sum(self.elbo(batch[0].flatten(1))))

    def configure_optimizers(self):
        return optim.Adam(self.parameters(), 1e-3)


class SimCLR(Task):
    """Two noisy, shifted views of an image find each other among the batch."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        self.projector = nn.Linear(64, 16)
        self.log_scale = nn.Parameter(torch.tensor(math.log(5.0)))

    def view(self, x):
        x = x.roll(int(torch.randint(-1, 2, ())), 3)
        x = x * (torch.rand_like(x) > 0.2) + 0.3 * torch.randn_like(x)
        return F.normalize(self.projector(self.encoder(x)), dim=1)

    def compute_loss(self, batch):
        a, b = self.view(batch[0]), self.view(batch[0])
        logits = self.log_scale.exp() * a @ b.T
        own = torch.arange(len(a), device=a.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class Sentences(IterableDataset):
    """A stream of character sequences by a Markov chain; new ones at each pass unless fixed."""

    def __init__(self, count, seed, fixed=False):
        self.count, self.generator, self.seed, self.fixed = count, rng(seed), seed, fixed
        self.chain = (2.5 * torch.randn(20, 20, generator=rng(528))).softmax(1)

    def __iter__(self):
        if self.fixed:
            self.generator.manual_seed(self.seed)
        state = torch.randint(0, 20, (self.count,), generator=self.generator)
        walk = [state]
        for _ in range(16):
            state = self.chain[state].multinomial(1, generator=self.generator).squeeze(1)
            walk.append(state)
        yield from torch.stack(walk, 1)


class TinyGPT(LightningModule):
    """The output weights are the input embedding."""

    def __init__(self, vocab=20, width=32):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(16, width)
        for table in (self.wte, self.wpe):
            nn.init.normal_(table.weight, std=0.02)
        self.block = nn.TransformerEncoderLayer(
            *(width, 4, 64, 0.0), activation="gelu", batch_first=True, norm_first=True
        )
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        self.lm_head.weight = self.wte.weight

    def shared_step(self, tokens):
        x, target = tokens[:, :-1], tokens[:, 1:]
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        h = self.wte(x) + self.wpe.weight[: x.shape[1]]
        h = self.ln_f(self.block(h, src_mask=causal, is_causal=True))
        return F.cross_entropy(self.lm_head(h).flatten(0, 1), target.flatten())

    def training_step(self, batch, batch_idx):
        return self.shared_step(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.shared_step(batch))

    def configure_optimizers(self):
        decay = [p for p in self.parameters() if p.dim() > 1]
        rest = [p for p in self.parameters() if p.dim() < 2]
        groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        adamw = optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
        schedule = optim.lr_scheduler.LambdaLR(adamw, lambda step: min(1.0, (step + 1) / 40))
        return {"optimizer": adamw, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def tiny_gpt():
    train, val = Sentences(1280, 529), Sentences(512, 530, fixed=True)
    return TinyGPT(), DataLoader(train, 32), DataLoader(val, 128)


class Reverser(LightningModule):
    """Writes a sequence backwards; sees the true last symbol while it learns."""

    def __init__(self):
        super().__init__()
        self.symbols = nn.Embedding(9, 24)
        self.reader = nn.GRU(24, 64, batch_first=True)
        self.writer = nn.GRU(24, 64, batch_first=True)
        self.linear = nn.Linear(64, 8)

    def nll(self, batch):
        (source,) = batch
        target = source.flip(1)
        start = torch.full_like(target[:, :1], 8)
        _, state = self.reader(self.symbols(source))
        out, _ = self.writer(self.symbols(torch.cat([start, target[:, :-1]], 1)), state)
        return F.cross_entropy(self.linear(out).transpose(1, 2), target)

    def training_step(self, batch, batch_idx):
        loss = self.nll(batch)
        self.log("nll", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.nll(batch))

    def configure_optimizers(self):
        adam = optim.Adam(self.parameters(), lr=5e-3)
        return [adam], [optim.lr_scheduler.StepLR(adam, 1, 0.85)]


class MaskedAutoencoder(Task):
    """Half of the 2 x 2 patches is hidden; the loss is on these only."""

    def __init__(self, dim=32):
        super().__init__()
        self.patch_embed = nn.Linear(4, dim)
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(16, dim) * 0.2)
        layer = nn.TransformerEncoderLayer(dim, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.pixels = nn.Linear(dim, 4)

    def compute_loss(self, batch):
        patches = F.unfold(batch[0], 2, stride=2).transpose(1, 2)
        hidden = torch.rand(patches.shape[:2]).argsort(1) < 8
        tokens = torch.where(hidden[..., None], self.mask_token, self.patch_embed(patches))
        return F.mse_loss(
            self.pixels(self.blocks(tokens + self.pos_embed))[hidden], patches[hidden]
        )

    def configure_optimizers(self):
        return optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.05)


class BinaryCodes(Task):
    """A denoising autoencoder whose code is -1 or 1; the gradient passes straight through."""

    learning_rate = 2e-3

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.Tanh())
        self.decode = nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 64))

    def compute_loss(self, batch):
        clean = batch[0].flatten(1)
        soft = self.encode(clean + 0.4 * torch.randn_like(clean))
        bits = soft + (torch.where(soft > 0, 1.0, -1.0) - soft).detach()
        return F.mse_loss(self.decode(bits), clean)


class Ratings(LightningModule):
    """Factors of users and films by sparse gradients, their biases by dense ones."""

    def __init__(self, users=120, films=80, rank=4):
        super().__init__()
        self.automatic_optimization = False
        self.user, self.film = (nn.Embedding(n, rank, sparse=True) for n in (users, films))
        self.user_bias, self.film_bias = nn.Embedding(users, 1), nn.Embedding(films, 1)
        for factors in (self.user, self.film):
            nn.init.normal_(factors.weight, std=0.1)
        for bias in (self.user_bias, self.film_bias):
            nn.init.zeros_(bias.weight)

    def mse(self, batch):
        u, f, rating = batch
        bias = (self.user_bias(u) + self.film_bias(f)).squeeze(1)
        user, film = self.user(u), self.film(f)
        penalty = user.square().sum(1).mean() + film.square().sum(1).mean()
        return F.mse_loss((user * film).sum(1) + bias, rating), penalty

    def training_step(self, batch, batch_idx):
        mse, penalty = self.mse(batch)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(mse + 0.02 * penalty)
        for optimizer in self.optimizers():
            optimizer.step()
        return mse.detach()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.mse(batch)[0])

    def configure_optimizers(self):
        biases = [*self.user_bias.parameters(), *self.film_bias.parameters()]
        factors = [self.user.weight, self.film.weight]
        return optim.SparseAdam(factors, lr=5e-3), optim.Adam(biases, lr=5e-3)


def ratings():
    g = rng(531)
    u, f = torch.randint(0, 120, (7000,), generator=g), torch.randint(0, 80, (7000,), generator=g)
    a, b = torch.randn(120, 2, generator=g) / 1.5, torch.randn(80, 2, generator=g)
    rating = (a[u] * b[f]).sum(1) + 0.4 * torch.randn(80, generator=g)[f]
    return Ratings(), *loaders(u, f, rating + 0.3 * torch.randn(7000, generator=g), batch_size=64)


class Experts(Task):
    """The best of six experts per row, with a loss that balances their load."""

    learning_rate = 2e-3

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(64, 6)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)) for _ in range(6)
        )

    def compute_loss(self, batch):
        x, y = batch[0].flatten(1), batch[1]
        gate = self.router(x).softmax(1)
        weight, chosen = gate.max(1)
        out = x.new_zeros(len(x), 10)
        for k, expert in enumerate(self.experts):
            rows = (chosen == k).nonzero().squeeze(1)
            if len(rows):
                out = out.index_add(0, rows, weight[rows, None] * expert(x[rows]))
        load = F.one_hot(chosen, 6).float().mean(0)
        return F.cross_entropy(out, y) + 0.02 * 6 * (load * gate.mean(0)).sum()


class NeuralODE(Task):
    """A learnt field, integrated by twenty Euler steps, carries points along a spiral."""

    learning_rate = 3e-3

    def __init__(self):
        super().__init__()
        self.field = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))

    def compute_loss(self, batch):
        state, path = batch
        error = 0.0
        for step in range(20):
            state = state + 0.1 * self.field(state)
            error = error + F.mse_loss(state, path[:, step])
        return error / 20


def spirals():
    start = torch.randn(600, 2, generator=rng(533))
    turn = torch.tensor([[-0.2, 1.5], [-1.5, -0.2]])
    path = torch.stack([start @ torch.matrix_exp(turn * 0.1 * (i + 1)) for i in range(20)], 1)
    return NeuralODE(), *loaders(start, path + 0.05 * torch.randn(path.shape, generator=rng(534)))


class Speech(Task):
    """Letters last two to four noisy frames each; where they are is not told."""

    learning_rate = 5e-3

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 32, 3, padding=1)
        self.gru = nn.GRU(32, 24, batch_first=True, bidirectional=True)
        self.proj = nn.Linear(48, 7)
        self.ctc = nn.CTCLoss()

    def compute_loss(self, batch):
        frames, letters, n_frames, n_letters = batch
        h, _ = self.gru(self.conv(frames.transpose(1, 2)).relu().transpose(1, 2))
        return self.ctc(self.proj(h).log_softmax(-1).transpose(0, 1), letters, n_frames, n_letters)


def speech():
    g = rng(535)
    sound = torch.randn(6, 8, generator=g)
    frames, texts, lengths = torch.zeros(800, 20, 8), torch.zeros(800, 5).long(), []
    for row in range(800):
        n = int(torch.randint(3, 6, (), generator=g))
        text = torch.randint(0, 6, (n,), generator=g)
        said = sound[text.repeat_interleave(torch.randint(2, 5, (n,), generator=g))]
        texts[row, :n], frames[row, : len(said)] = text + 1, said
        lengths.append((len(said), n))
    frames = frames + 0.3 * torch.randn(frames.shape, generator=g)
    return Speech(), *loaders(frames, texts, *torch.tensor(lengths).T, batch_size=20)


def symbols():
    return loaders(torch.randint(0, 8, (4000, 5), generator=rng(536)), batch_size=40)


class Collocation(IterableDataset):
    def __iter__(self):
        for _ in range(25):
            yield torch.rand(64, 1) * 4


class Oscillator(LightningModule):
    """u'' + 0.4 u' + 4 u = 0 with u(0) = 1 and u'(0) = 0, without any data."""

    def __init__(self):
        super().__init__()
        self.u = nn.Sequential(
            *(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
        )

    def forward(self, t):
        return 1 + (1 - torch.exp(-t)) ** 2 * self.u(t / 2 - 1)

    def training_step(self, t, batch_idx):
        t = t.requires_grad_()
        x = self(t)
        dx = torch.autograd.grad(x.sum(), t, create_graph=True)[0]
        ddx = torch.autograd.grad(dx.sum(), t, create_graph=True)[0]
        return (ddx + 0.4 * dx + 4 * x).square().mean()

    def validation_step(self, batch, batch_idx):
        t, truth = batch
        self.log("val_loss", F.mse_loss(self(t), truth))

    def configure_optimizers(self):
        adam = optim.Adam(self.parameters(), lr=5e-3)
        return [adam], [optim.lr_scheduler.ExponentialLR(adam, 0.95)]


def oscillator():
    t = torch.linspace(0, 4, 101)[:, None]
    w = math.sqrt(4 - 0.04)
    truth = torch.exp(-0.2 * t) * (torch.cos(w * t) + 0.2 / w * torch.sin(w * t))
    val = DataLoader(TensorDataset(t, truth), 101)
    return Oscillator(), DataLoader(Collocation(), batch_size=None), val


def healthy(name, make, epochs, metric="val_loss", **trainer):
    return Program(f"fifth_{name}", make, trainer={"max_epochs": epochs} | trainer, metric=metric)


PROGRAMS = [
    healthy("mixture_gan", mixture_gan, 25),
    healthy("vae_kl_warmup", lambda: (VAE(), *loaders(*images())), 15),
    healthy(
        "simclr", lambda: (SimCLR(), *loaders(*images(), batch_size=64, val_batch_size=64)), 15
    ),
    healthy("tiny_gpt", tiny_gpt, 12, gradient_clip_val=1.0),
    healthy("reverser_seq2seq", lambda: (Reverser(), *symbols()), 8, gradient_clip_val=1.0),
    healthy("masked_autoencoder", lambda: (MaskedAutoencoder(), *loaders(*images())), 10),
    healthy("binary_codes", lambda: (BinaryCodes(), *loaders(*images())), 20),
    healthy("ratings_sparse", ratings, 10),
    healthy("experts", lambda: (Experts(), *loaders(*images())), 10),
    healthy("spiral_ode", spirals, 15),
    healthy("speech_ctc", speech, 12, gradient_clip_val=5.0),
    healthy("oscillator_physics", oscillator, 35),
]
