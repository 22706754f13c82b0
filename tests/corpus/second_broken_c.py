"""Broken programs of a second hand: parameters, gradients and initial weights."""

import copy

import lightning as L
import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.corpus.program import images, loaders, pair, standardized


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Classifier(L.LightningModule):
    """Any network under cross-entropy."""

    def __init__(self, network, lr=3e-3, optimizer=torch.optim.Adam):
        super().__init__()
        self.network, self.lr, self.optimizer_class = network, lr, optimizer

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        scores = self(x)
        self.log("val_loss", F.cross_entropy(scores, y))
        self.log("val_acc", (scores.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return self.optimizer_class([p for p in self.parameters() if p.requires_grad], lr=self.lr)


class Experts(nn.Module):
    """A gate over eight small experts of one number."""

    def __init__(self, container):
        super().__init__()
        self.gate = nn.Linear(1, 8)
        self.experts = container(
            nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 4)) for _ in range(8)
        )

    def forward(self, x):
        parts = torch.stack([expert(x) for expert in self.experts], -1)
        return (parts * self.gate(x).softmax(-1).unsqueeze(1)).sum(-1)


def experts(broken):
    x = 2 * torch.rand(1200, 1, generator=seeded(21)) - 1
    y = (x[:, 0] * 4).floor().long() % 4
    return Classifier(Experts(list if broken else nn.ModuleList), 2e-2), *loaders(x * 1.7, y)


class TwoPartAutoencoder(L.LightningModule):
    """An encoder, a decoder and the optimizer of one or of both."""

    def __init__(self, train_decoder):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 12))
        self.decoder = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 64))
        self.train_decoder = train_decoder

    def reconstruct(self, batch):
        flat = batch[0].flatten(1)
        return F.mse_loss(self.decoder(self.encoder(flat)), flat)

    def training_step(self, batch, batch_idx):
        return {"loss": self.reconstruct(batch)}

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", self.reconstruct(batch))

    def configure_optimizers(self):
        groups = [{"params": self.encoder.parameters()}]
        if self.train_decoder:
            groups.append({"params": self.decoder.parameters()})
        return torch.optim.Adam(groups, lr=3e-3)


class BagOfWords(nn.Module):
    """The mean of word vectors, and a linear layer on it."""

    def __init__(self, freeze):
        super().__init__()
        vectors = torch.randn(200, 6)
        self.words = nn.Embedding.from_pretrained(vectors, freeze=freeze)
        self.out = nn.Linear(6, 4)

    def forward(self, ids):
        return self.out(self.words(ids).mean(1))


def frozen_words(broken):
    topic = torch.randint(4, (1600,), generator=seeded(22))
    ids = torch.randint(200, (1600, 12), generator=seeded(23))
    own = torch.rand(1600, 12, generator=seeded(24)) < 0.5
    ids = torch.where(own, ids // 4 * 4 + topic[:, None], ids)
    return Classifier(BagOfWords(freeze=broken), 2e-2), *loaders(ids, topic)


def frozen_filters(broken):
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(1, 6, 3, stride=2))
    net.add_module("act1", nn.ReLU())
    net.add_module("conv2", nn.Conv2d(6, 12, 3))
    net.add_module("act2", nn.ReLU())
    net.add_module("flat", nn.Flatten())
    net.add_module("fc", nn.Linear(12, 10))
    if broken:
        for name, parameter in net.named_parameters():
            parameter.requires_grad = name.startswith("fc")
    return Classifier(net, 1e-2), *loaders(*images())


class Codebook(nn.Module):
    """The nearest of 32 vectors, straight through or not."""

    def __init__(self, straight_through):
        super().__init__()
        self.straight_through = straight_through
        self.codes = nn.Parameter(torch.randn(32, 8))
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
        self.readout = nn.Linear(8, 10)

    def forward(self, image):
        z = self.encoder(image)
        affinity = z @ self.codes.T - self.codes.square().sum(1) / 2
        hard = F.one_hot(affinity.argmax(-1), 32).float()
        if self.straight_through:
            soft = affinity.softmax(-1)
            hard = hard + soft - soft.detach()
        return self.readout(hard @ self.codes)


class Rounded(nn.Module):
    """Activations of three bits between the layers."""

    def __init__(self, quantize):
        super().__init__()
        self.quantize = quantize
        self.front = nn.Linear(13, 8)
        self.back = nn.Linear(8, 3)

    def forward(self, x):
        return self.back(self.quantize(4 * torch.tanh(self.front(x))) / 4)


def through(x):
    return x + (x.round() - x).detach()


class Metric(L.LightningModule):
    """A triplet loss on embeddings of digits; how often is the positive nearer?"""

    def __init__(self, cut):
        super().__init__()
        self.cut = cut
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU())
        self.neck = nn.Linear(64, 4, bias=False)

    def embed(self, image):
        features = self.trunk(image)
        if self.cut:
            features = torch.tensor(features.tolist())
        return F.normalize(self.neck(features), dim=1)

    def distances(self, batch):
        anchor, positive, negative = (self.embed(image) for image in batch)
        return (anchor - positive).square().sum(1), (anchor - negative).square().sum(1)

    def training_step(self, batch, batch_idx):
        near, far = self.distances(batch)
        return F.relu(near - far + 0.5).mean()

    def validation_step(self, batch, batch_idx):
        near, far = self.distances(batch)
        self.log("val_loss", F.relu(near - far + 0.5).mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def triplets(broken):
    image, label = images()
    g = seeded(25)
    rows = torch.arange(len(label))
    other = torch.stack([rows[label == y][torch.randint(150, (), generator=g)] for y in label])
    wrong = torch.stack([rows[label != y][torch.randint(1500, (), generator=g)] for y in label])
    return Metric(cut=broken), *loaders(image, image[other], image[wrong])


class ByHand(L.LightningModule):
    """Manual optimization with a schedule by epochs, of which nothing depends on the batches."""

    def __init__(self, step):
        super().__init__()
        self.automatic_optimization = False
        self.step = step
        self.net = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 1))

    def training_step(self, batch, batch_idx):
        opt = self.optimizers()
        opt.zero_grad()
        x, y = batch
        loss = F.binary_cross_entropy_with_logits(self.net(x)[:, 0], y.float())
        self.manual_backward(loss)
        if self.step:
            opt.step()
        self.log("bce", loss, prog_bar=True)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_bce", F.binary_cross_entropy_with_logits(self.net(x)[:, 0], y.float()))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class WarmedUp(Classifier):
    """Linear warm-up over the first twenty steps."""

    def __init__(self, factor):
        super().__init__(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        )
        self.factor = factor

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.factor)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Averaged(Classifier):
    """Keeps a running average of the weights and uses it from then on."""

    def __init__(self, in_place):
        super().__init__(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)), 1e-2)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.in_place = in_place

    def on_train_batch_end(self, outputs, batch, batch_idx):
        for mean, now in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(now.detach(), 0.0 if self.in_place else 0.1)
            if self.in_place:
                now.data.copy_(mean)


def small_cnn():
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(96, 10)),
    )


def cnn_set_to(value):
    def make(broken):
        net = small_cnn()
        if broken:
            for module in net.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.constant_(module.weight, value)
                    nn.init.zeros_(module.bias)
        return Classifier(net, 5e-3), *loaders(*images())

    return make


class TinyGRU(nn.Module):
    """A GRU over the columns of a digit."""

    def __init__(self, init=None):
        super().__init__()
        self.cell = nn.GRU(8, 32, batch_first=True)
        self.fc = nn.Linear(32, 10)
        for p in self.parameters() if init else ():
            init(p)

    def forward(self, image):
        return self.fc(self.cell(image.squeeze(1).transpose(1, 2))[0][:, -1])


def constant_gru(broken):
    init = (lambda p: nn.init.constant_(p, 0.05)) if broken else None
    return Classifier(TinyGRU(init), 1e-2), *loaders(*images())


def unit_normal(broken):
    net = nn.Sequential(nn.Flatten())
    for width in (64, 96, 96):
        net += nn.Sequential(nn.Linear(width, 96), nn.ReLU())
    net.append(nn.Linear(96, 10))
    if broken:
        net.apply(lambda m: nn.init.normal_(m.weight) if isinstance(m, nn.Linear) else None)
    return Classifier(net, 2e-3), *loaders(*images())


def quiet_cnn(broken):
    net = small_cnn()
    if broken:
        for p in net.parameters():
            nn.init.uniform_(p, -1e-3, 1e-3)
    return Classifier(net, 0.1, torch.optim.SGD), *loaders(*images())


class Mentions(nn.Module):
    """Which of thirty words comes after three others, with tied embeddings."""

    def __init__(self, std):
        super().__init__()
        self.embed = nn.Embedding(30, 48)
        self.mix = nn.Linear(3 * 48, 48)
        nn.init.normal_(self.embed.weight, std=std)

    def forward(self, ids):
        return F.linear(self.mix(self.embed(ids).flatten(1)), self.embed.weight)


def loud_words(broken):
    ids = torch.randint(30, (1600, 3), generator=seeded(26))
    follows = torch.randperm(30, generator=seeded(27))
    return Classifier(Mentions(6.0 if broken else 0.15), 5e-3), *loaders(ids, follows[ids[:, 2]])


PAIRS = [
    pair("experts_in_a_list", experts, "params_not_in_optimizer", metric="val_acc"),
    pair(
        "decoder_left_out",
        lambda broken: (TwoPartAutoencoder(not broken), *loaders(*images())),
        "params_not_in_optimizer",
        metric="val_mse",
    ),
    pair("pretrained_by_chance", frozen_words, "frozen_params"),
    pair("only_fc_trains", frozen_filters, "frozen_params", metric="val_acc"),
    pair(
        "nearest_code",
        lambda broken: (Classifier(Codebook(not broken), 1e-2), *loaders(*images())),
        "no_grad_flow",
    ),
    pair(
        "three_bits",
        lambda broken: (
            Classifier(Rounded(torch.round if broken else through), 1e-2),
            *loaders(*standardized("wine")),
        ),
        "no_grad_flow",
        steps=100,
    ),
    pair("triplet_of_lists", triplets, "no_grad_flow"),
    pair(
        "step_forgotten",
        lambda broken: (ByHand(not broken), *loaders(*standardized("breast_cancer"))),
        "weights_not_updating",
        metric="val_bce",
    ),
    pair(
        "warm_up_floor",
        lambda broken: (
            WarmedUp(lambda step: min(1, step // 2000 if broken else (step + 1) / 20)),
            *loaders(*images()),
        ),
        "weights_not_updating",
        "lr_too_low",
    ),
    pair(
        "average_copied_back",
        lambda broken: (Averaged(broken), *loaders(*standardized("iris"), batch_size=16)),
        "weights_not_updating",
    ),
    pair("filters_of_zero", cnn_set_to(0.0), "zero_init", "bad_init_scale"),
    pair("filters_of_a_tenth", cnn_set_to(0.1), "zero_init", "bad_init_scale"),
    pair("constant_gru", constant_gru, "zero_init", "bad_init_scale"),
    pair("unit_normal_mlp", unit_normal, "bad_init_scale", "loss_not_at_chance"),
    pair("whispering_cnn", quiet_cnn, "bad_init_scale", "vanishing_gradients"),
    pair("loud_embedding", loud_words, "bad_init_scale", "loss_not_at_chance", steps=80),
]
