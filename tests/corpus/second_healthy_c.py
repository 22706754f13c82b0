"""Sequences and words."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader

from tests.corpus.program import Program, loaders


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def chain(rows, length, words, seed, first=0):
    """Sentences in which each word is followed by one of two, mostly by the first."""
    g = seeded(seed)
    follow = torch.randint(first, words, (words, 2), generator=g)
    out = [torch.randint(first, words, (rows,), generator=g)]
    for _ in range(length - 1):
        pick = (torch.rand(rows, generator=g) < 0.1).long()
        out.append(follow[out[-1], pick])
    return torch.stack(out, 1)


def collated(items, collate, cut, batch_size=32):
    return (
        DataLoader(items[:cut], batch_size, shuffle=True, collate_fn=collate),
        DataLoader(items[cut:], 128, collate_fn=collate),
    )


class Learner(LightningModule):
    """The step, the logged validation loss and Adam, which most programs here share."""

    lr = 1e-2

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class GRULanguageModel(Learner):
    """Next words of a small vocabulary (ordinary)."""

    def __init__(self, words=30):
        super().__init__()
        self.embed = nn.Embedding(words, 32)
        self.rnn = nn.GRU(32, 64, batch_first=True)
        self.out = nn.Linear(64, words)

    def loss(self, batch):
        (text,) = batch
        logits = self.out(self.rnn(self.embed(text[:, :-1]))[0])
        return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


class TiedLanguageModel(Learner):
    """1200 words of which few occur, mostly padding, the output tied to the embedding."""

    def __init__(self, words=1200):
        super().__init__()
        self.embed = nn.Embedding(words, 48, padding_idx=0)
        self.rnn = nn.GRU(48, 48, batch_first=True)
        self.decoder = nn.Linear(48, words)
        nn.init.normal_(self.embed.weight, std=0.1)
        with torch.no_grad():
            self.embed.weight[0].zero_()
        self.decoder.weight = self.embed.weight

    def loss(self, batch):
        text = batch["ids"]
        hidden, _ = self.rnn(self.embed(text[:, :-1]))
        return F.cross_entropy(self.decoder(hidden).transpose(1, 2), text[:, 1:], ignore_index=0)


class MaskedWords(Learner):
    """A little transformer that fills in a fifth of the words; the others carry no loss."""

    lr = 3e-3

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Embedding(22, 48), nn.Parameter(torch.randn(12, 48) * 0.1)
        layer = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(48, 22)

    def loss(self, batch):
        (text,) = batch
        hidden = torch.rand(text.shape) < 0.2
        hidden[:, 5] = True
        seen = text.masked_fill(hidden, 21)
        logits = self.out(self.encoder(self.embed(seen) + self.place))
        return F.cross_entropy(logits[hidden], text[hidden])


class WarmedTransformer(Learner):
    """Which of two marks came first; the step size rises from exactly zero."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Embedding(8, 32), nn.Embedding(10, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 64, 0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.out = nn.Linear(32, 1)

    def forward(self, text):
        h = self.encoder(self.embed(text) + self.place(torch.arange(10)))
        return self.out(h.mean(1)).squeeze(1)

    def loss(self, batch):
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float())

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", ((self(batch[0]) > 0) == batch[1].bool()).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=5e-3)
        ramp = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, i / 40))
        return [optimizer], [{"scheduler": ramp, "interval": "step"}]


class Translator(Learner):
    """Encoder and attending decoder with teacher forcing: words of one code into another."""

    lr = 5e-3

    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(13, 48), nn.Embedding(13, 48)
        self.enc = nn.GRU(48, 24, batch_first=True, bidirectional=True)
        self.dec = nn.GRU(48, 48, batch_first=True)
        self.attend = nn.MultiheadAttention(48, 1, batch_first=True)
        self.out = nn.Linear(96, 13)

    def loss(self, batch):
        source, target = batch["source"], batch["target"]
        memory, _ = self.enc(self.source(source))
        hidden, _ = self.dec(self.target(target[:, :-1]))
        context, _ = self.attend(hidden, memory, memory, key_padding_mask=source == 0)
        logits = self.out(torch.cat([hidden, context], -1))
        return F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=0)


class CTCReader(Learner):
    """Frames to symbols by CTC; the loss starts at dozens, as its sums over frames do."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(12, 48, 3, padding=1), nn.ReLU(), nn.Conv1d(48, 7, 3, padding=1)
        )

    def loss(self, batch):
        frames, symbols, n_frames, n_symbols = batch
        log_probs = self.net(frames).log_softmax(1).permute(2, 0, 1)
        loss = F.ctc_loss(log_probs, symbols, n_frames, n_symbols, reduction="none")
        return loss.mean()


@dataclasses.dataclass
class Walks:
    """Padded walks, their lengths and kinds."""

    steps: torch.Tensor
    lengths: torch.Tensor
    kinds: torch.Tensor


class WalkClassifier(Learner):
    """Packed sequences of many lengths in a data class; the last state is classified."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(2, 32, batch_first=True)
        self.out = nn.Linear(32, 3)
        with torch.no_grad():
            self.rnn.bias_ih_l0[32:64] = 1.0  # remember at first

    def forward(self, walks):
        packed = pack_padded_sequence(walks.steps, walks.lengths, True, enforce_sorted=False)
        return self.out(self.rnn(packed)[1][0][-1])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch), batch.kinds)

    def validation_step(self, batch, batch_idx):
        hits = (self(batch).argmax(1) == batch.kinds).float()
        self.log("val_acc", hits.mean(), batch_size=len(hits))


class StatefulForecaster(Learner):
    """Ten parallel series read in order; the hidden state goes on, detached, to the next batch."""

    lr = 5e-3

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(1, 32, batch_first=True), nn.Linear(32, 1)
        self.state = None

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.state = None
        piece = batch[0].T[..., None]
        hidden, state = self.rnn(piece[:, :-1], self.state)
        self.state = state.detach()
        return F.mse_loss(self.out(hidden), piece[:, 1:])

    def validation_step(self, batch, batch_idx):
        piece = batch[0].T[..., None]
        guess = self.out(self.rnn(piece[:, :-1])[0])
        self.log("val_loss", F.mse_loss(guess[:, 5:], piece[:, 6:]))


def padded_text():
    text = chain(1500, 20, 120, 62, first=1)
    lengths = torch.randint(4, 21, (1500, 1), generator=seeded(63))
    text = text.masked_fill(torch.arange(20) >= lengths, 0)
    return TiedLanguageModel(), *collated([{"ids": t} for t in text], None, 1200)


def order_of_marks():
    g = seeded(64)
    text = torch.randint(2, 8, (2000, 10), generator=g)
    places = torch.rand(2000, 10, generator=g).argsort(1)[:, :2]
    text.scatter_(1, places, torch.tensor([[0, 1]]).expand(2000, 2))
    return WarmedTransformer(), *loaders(text, (places[:, 0] < places[:, 1]).long())


def translation():
    g = seeded(65)
    items = []
    for _ in range(1500):
        word = torch.randint(3, 13, (int(torch.randint(3, 8, (), generator=g)),), generator=g)
        coded = 3 + (word * 7 + 1) % 10
        items.append((word, F.pad(F.pad(coded, (1, 0), value=1), (0, 1), value=2)))

    def collate(items):
        source, target = (pad_sequence(side, True) for side in zip(*items, strict=True))
        return {"source": source, "target": target}

    return Translator(), *collated(items, collate, 1200)


def spelling():
    g = seeded(66)
    shapes, items = torch.randn(7, 12, generator=g) * 1.5, []
    for _ in range(900):
        word = torch.randint(1, 7, (4,), generator=g)
        runs = torch.stack([word, torch.zeros(4, dtype=torch.long)], 1).flatten()
        frames = shapes[runs.repeat_interleave(torch.randint(1, 4, (8,), generator=g))]
        items.append((frames + 0.3 * torch.randn(frames.shape, generator=g), word))

    def collate(items):
        frames, words = zip(*items, strict=True)
        lengths = torch.tensor([len(f) for f in frames])
        sizes = torch.full_like(lengths, 4)
        return pad_sequence(frames, True).transpose(1, 2), torch.stack(words), lengths, sizes

    return CTCReader(), *collated(items, collate, 700)


def walks():
    g, items = seeded(67), []
    for i in range(1200):
        steps = torch.randn(int(torch.randint(5, 30, (), generator=g)), 2, generator=g)
        steps[:, 0] += (-0.8, 0.0, 0.8)[i % 3]
        items.append((steps, i % 3))

    def collate(items):
        steps, kinds = zip(*items, strict=True)
        lengths = torch.tensor([len(s) for s in steps])
        return Walks(pad_sequence(steps, True), lengths, torch.tensor(kinds))

    return WalkClassifier(), *collated(items, collate, 900)


def parallel_series():
    t = torch.arange(4000)[:, None] * (0.2 + 0.03 * torch.arange(10))
    series = t.sin() + 0.05 * torch.randn(4000, 10, generator=seeded(68))
    return StatefulForecaster(), *loaders(series, batch_size=25, shuffle=False)


class SpamBags(Learner):
    """Sums of sparse word vectors: in each batch most rows of the table get no gradient."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.bag = nn.EmbeddingBag(4000, 16, mode="mean", sparse=True)
        self.out = nn.Linear(16, 2)

    def forward(self, batch):
        words, offsets, _ = batch
        return self.out(self.bag(words, offsets))

    def training_step(self, batch, batch_idx):
        both = self.optimizers()
        for optimizer in both:
            optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(batch), batch[2]))
        for optimizer in both:
            optimizer.step()

    def validation_step(self, batch, batch_idx):
        hits = (self(batch).argmax(1) == batch[2]).float()
        self.log("val_acc", hits.mean(), batch_size=len(hits))

    def configure_optimizers(self):
        table = torch.optim.SparseAdam(list(self.bag.parameters()), lr=2e-2)
        return [table, torch.optim.Adam(self.out.parameters(), lr=2e-2)], []


def spam():
    g, items = seeded(72), []
    for i in range(1500):
        noise = torch.randint(200, 4000, (12,), generator=g)
        items.append(
            (torch.cat([noise, torch.randint(0, 100, (4,), generator=g) * 2 + i % 2]), i % 2)
        )

    def collate(items):
        words, labels = zip(*items, strict=True)
        return torch.cat(words), torch.arange(len(words)) * 16, torch.tensor(labels)

    return SpamBags(), *collated(items, collate, 1200)


class ToneDetector(Learner):
    """One-dimensional convolutions over short sounds (ordinary)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, 16, 9, 2), nn.ReLU(), nn.Conv1d(16, 32, 5, 2), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.LazyLinear(5)
        self(torch.zeros(1, 1, 64))

    def forward(self, x):
        return self.head(self.net(x))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())


def tones():
    g = seeded(73)
    kind = torch.randint(0, 5, (1200,), generator=g)
    phase = math.tau * torch.rand(1200, 1, generator=g)
    sound = ((0.25 + 0.2 * kind)[:, None] * torch.arange(64) + phase).sin()
    return ToneDetector(), *loaders(
        (sound + 0.3 * torch.randn(1200, 64, generator=g))[:, None], kind
    )


PROGRAMS = [
    Program("gru_words", lambda: (GRULanguageModel(), *loaders(chain(1000, 16, 30, 60)))),
    Program("tied_padded_words", padded_text),
    Program("masked_words", lambda: (MaskedWords(), *loaders(chain(1500, 12, 21, 74)))),
    Program("transformer_warmed_from_zero", order_of_marks, metric="val_acc"),
    Program("translator", translation),
    Program("ctc_spelling", spelling),
    Program("packed_walks", walks, metric="val_acc"),
    Program("stateful_series", parallel_series),
    Program("sparse_spam_bags", spam, metric="val_acc"),
    Program("tone_cnn", tones, metric="val_acc"),
]
