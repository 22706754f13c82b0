"""Programs whose networks start in a state from which they do not train."""

import itertools

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.corpus.broken_losses import on
from tests.corpus.program import images, pair, standardized


class Base(LightningModule):
    """Trains whatever ``self.net`` a subclass builds."""

    lr = 0.1

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def mlp(*widths, activation=nn.ReLU):
    layers = [nn.Flatten()]
    for a, b in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


class ZeroInit(Base):
    def __init__(self, broken=False):
        super().__init__()
        self.net = mlp(64, 64, 32, 10)
        for name, param in self.net.named_parameters():
            if broken or name.endswith("bias"):
                nn.init.zeros_(param)


class ConstantInit(Base):
    """All units of a layer alike, for ever."""

    lr = 0.03

    def __init__(self, broken=False):
        super().__init__()
        self.net = mlp(64, 32, 16, 10, activation=nn.Tanh)
        if broken:
            self.net.apply(self.init_weights)

    @staticmethod
    def init_weights(m):
        if isinstance(m, nn.Linear):
            nn.init.constant_(m.weight, 0.05)
            nn.init.constant_(m.bias, 0.0)


class WideInit(Base):
    """Normal weights of deviation 1 instead of He's."""

    lr = 0.02

    def __init__(self, broken=False):
        super().__init__()
        self.net = mlp(64, 128, 128, 10)
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                if broken:
                    nn.init.normal_(layer.weight)
                else:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


class TinyInit(Base):
    """Deviation 0.001 in six layers: nothing arrives."""

    lr = 0.05

    def __init__(self, broken=False):
        super().__init__()
        self.net = mlp(64, 64, 64, 64, 64, 10)
        for layer in self.net[1::2]:
            if broken:
                nn.init.normal_(layer.weight, std=0.001)
            else:
                nn.init.kaiming_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class NegativeBias(Base):
    def __init__(self, broken=False):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
        for m in self.net.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.constant_(m.bias, -10.0 if broken else 0.01)


class DeadRegression(LightningModule):
    """The hidden units' biases all say no."""

    def __init__(self, broken=False):
        super().__init__()
        self.l1 = nn.Linear(10, 64)
        self.l2 = nn.Linear(64, 64)
        self.l3 = nn.Linear(64, 1)
        torch.nn.init.constant_(self.l2.bias, -8.0 if broken else 0.0)

    def forward(self, x):
        return self.l3(torch.relu(self.l2(torch.relu(self.l1(x))))).squeeze(-1)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_mse", F.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


class SaturatedTanh(Base):
    lr = 0.03

    def __init__(self, broken=False):
        super().__init__()
        self.net = mlp(64, 64, 32, 32, 10, activation=nn.Tanh)
        gain = 20.0 if broken else 5 / 3
        for layer in list(self.net[1::2])[:-1]:
            nn.init.xavier_normal_(layer.weight, gain=gain)


class SaturatedSigmoid(Base):
    """Raw pixels, 0 to 255, into sigmoids."""

    def __init__(self, broken=False):
        super().__init__()
        self.scale = 255.0 if broken else 1.0
        self.net = mlp(64, 48, 24, 10, activation=nn.Sigmoid)

    def forward(self, x):
        return self.net(x * self.scale)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class DeepSigmoid(Base):
    def __init__(self, broken=False):
        super().__init__()
        activation = nn.Sigmoid if broken else nn.SELU
        self.net = mlp(64, 32, 32, 32, 32, 32, 32, 32, 10, activation=activation)
        self.lr = 0.03


class DeepTanhRNN(Base):
    """Sixty-four pixels one by one through a recurrence that forgets."""

    lr = 0.02

    def __init__(self, broken=False):
        super().__init__()
        self.rnn, self.fc = nn.RNN(1, 64, batch_first=True), nn.Linear(64, 10)
        if broken:
            nn.init.normal_(self.rnn.weight_hh_l0, std=0.01)
        else:
            nn.init.orthogonal_(self.rnn.weight_hh_l0)

    def forward(self, x):
        return self.fc(self.rnn(x.flatten(1).unsqueeze(-1) * 0.3)[1][-1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class ExplodingRNN(Base):
    """A ReLU recurrence whose matrix doubles its state at each of eight rows."""

    lr = 0.02

    def __init__(self, broken=False):
        super().__init__()
        self.rnn = nn.RNN(8, 32, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(32, 10)
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(torch.eye(32) * (2.0 if broken else 1.0))

    def forward(self, x):
        return self.head(self.rnn(x.squeeze(1))[0][:, -1])


class ExplodingResiduals(Base):
    """Sixteen residual branches without normalisation, each as large as the stream or larger."""

    lr = 0.02

    def __init__(self, broken=False):
        super().__init__()
        self.stem, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(16))
        for block in self.blocks:
            nn.init.normal_(block.weight, std=0.5 if broken else 0.05)

    def forward(self, x):
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = x + F.relu(block(x))
        return self.head(x)


def progression():
    x, y = standardized("diabetes")
    return x, (y - y.mean()) / y.std()


PAIRS = [
    pair("zero_init", on(ZeroInit, images), "zero_init"),
    pair("constant_init", on(ConstantInit, images), "zero_init", "bad_init_scale"),
    pair("wide_init", on(WideInit, images), "bad_init_scale", "loss_not_at_chance",
         "exploding_gradients"),
    pair("tiny_init", on(TinyInit, images), "bad_init_scale", "vanishing_gradients"),
    pair("negative_bias_cnn", on(NegativeBias, images), "dead_relu"),
    pair("negative_bias_mlp", on(DeadRegression, progression), "dead_relu", metric="val_mse"),
    pair("saturated_tanh", on(SaturatedTanh, images), "saturated_activations", "bad_init_scale"),
    pair("saturated_sigmoid", on(SaturatedSigmoid, images), "saturated_activations",
         "unnormalized_input"),
    pair("deep_sigmoid", on(DeepSigmoid, images), "vanishing_gradients"),
    pair("forgetful_rnn", on(DeepTanhRNN, images), "vanishing_gradients", "bad_init_scale",
         steps=200),
    pair("exploding_rnn", on(ExplodingRNN, images), "exploding_gradients", "bad_init_scale",
         "loss_not_at_chance"),
    pair("exploding_residuals", on(ExplodingResiduals, images), "exploding_gradients",
         "bad_init_scale", "loss_not_at_chance"),
]  # fmt: skip
