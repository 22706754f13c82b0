"""Healthy programs: sequences, with padding, masks, memories and alignments."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

from tests.corpus.healthy_shared import loaders, rows
from tests.corpus.program import Program


def integers(high, shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def counting(count=1024, length=12, vocabulary=20):
    """Sentences that count on from a random start, by 1 or by 3."""
    start, stride = integers(vocabulary, (count, 1)), 1 + 2 * integers(2, (count, 1), seed=1)
    return (start + stride * torch.arange(length)) % vocabulary


class TiedLM(LightningModule):
    """N(0, 1) embeddings that are also the output layer: the first loss is far above ln 20."""

    def __init__(self, vocabulary=20, width=32, length=12):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        self.block = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.out = nn.Linear(width, vocabulary, bias=False)
        self.out.weight = self.tokens.weight
        self.register_buffer("mask", torch.full((length, length), float("-inf")).triu(1))

    def forward(self, ids):
        n = ids.shape[1]
        x = self.tokens(ids) + self.positions[:n]
        return self.out(self.block(x, src_mask=self.mask[:n, :n]))

    def loss(self, ids):
        logits = self(ids[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch[0])
        self.log("ppl", loss.exp(), prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch[0]))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class MaskedLM(LightningModule):
    """Looks both ways on purpose; masks are drawn afresh, in validation too; -100 elsewhere."""

    def __init__(self, vocabulary=20, width=32):
        super().__init__()
        self.mask_id = vocabulary
        self.embed = nn.Embedding(vocabulary + 1, width)
        self.pos = nn.Embedding(12, width)
        self.encoder = nn.TransformerEncoderLayer(
            width, 4, 64, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, vocabulary)

    def loss(self, ids):
        masked = torch.rand(ids.shape, device=ids.device) < 0.15
        labels = ids.masked_fill(~masked, -100)
        x = self.embed(ids.masked_fill(masked, self.mask_id)) + self.pos.weight
        logits = self.head(self.encoder(x))
        return F.cross_entropy(logits.transpose(1, 2), labels)

    def training_step(self, batch, batch_idx):
        return self.loss(batch[0])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class Tagger(LightningModule):
    """Bidirectional LSTM over packed sentences; a dict batch made by a collate function."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 16, padding_idx=0)
        self.lstm = nn.LSTM(16, 24, batch_first=True, bidirectional=True)
        self.tag = nn.Linear(48, 3)
        self.criterion = nn.CrossEntropyLoss(ignore_index=-1)

    def forward(self, words, lengths):
        packed = pack_padded_sequence(
            self.embedding(words), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        out, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.tag(out)

    def training_step(self, batch, batch_idx):
        logits = self(batch["words"], batch["lengths"])
        return self.criterion(logits.reshape(-1, 3), batch["tags"].reshape(-1))

    def validation_step(self, batch, batch_idx):
        right = self(batch["words"], batch["lengths"]).argmax(-1) == batch["tags"]
        acc = right.sum() / (batch["tags"] >= 0).sum()
        self.log("val_acc", acc, batch_size=len(right))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def collate_sentences(sentences):
    words, tags = zip(*sentences, strict=True)
    return {
        "words": pad_sequence(words, batch_first=True),
        "tags": pad_sequence(tags, batch_first=True, padding_value=-1),
        "lengths": torch.tensor([len(w) for w in words]),
    }


def make_tagger():
    data = []
    for i, n in enumerate(integers(10, (600,)).tolist()):
        words = 1 + integers(29, (n + 3,), seed=i)
        after = torch.cat([words[1:], words.new_zeros(1)])
        data.append((words, (words > 15).long() + (after > 15)))
    train = DataLoader(data[:450], 32, shuffle=True, collate_fn=collate_sentences)
    return Tagger(), train, DataLoader(data[450:], 64, collate_fn=collate_sentences)


class CTC(LightningModule):
    """Log-probabilities, time first, 16 frames for 3 or 4 letters: not near ln 6 at first."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(8, 32, 3, padding=1)
        self.gru = nn.GRU(32, 24, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(48, 6)
        self.ctc = nn.CTCLoss(zero_infinity=True)

    def loss(self, batch):
        signal, letters = batch
        h = F.relu(self.conv(signal.transpose(1, 2))).transpose(1, 2)
        logp = self.fc(self.gru(h)[0]).log_softmax(-1).transpose(0, 1)
        frames = torch.full((len(signal),), logp.shape[0])
        return self.ctc(logp, letters, frames, (letters > 0).sum(1))

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_ctc", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def make_ctc():
    letters = 1 + integers(5, (512, 4))
    letters[::3, 3] = 0  # every third word has only three letters
    signal = F.one_hot(letters, 6).float().repeat_interleave(4, 1) @ rows(6, 8, seed=1)
    return CTC(), *loaders(signal + 0.3 * rows(512, 16 * 8, seed=2).view(512, 16, 8), letters)


class AddingGRU(LightningModule):
    """Adds the two marked numbers of ten; the other inputs are mostly zeros and do not matter."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(2, 32, batch_first=True)
        self.linear = nn.Linear(32, 1)

    def forward(self, x):
        _, h = self.gru(x)
        return self.linear(h[-1])

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.MSELoss()(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_mse", F.mse_loss(self(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def make_adding():
    values = rows(1024, 10)
    marks = torch.zeros(1024, 10)
    marks.scatter_(1, integers(5, (1024, 1)), 1.0)
    marks.scatter_(1, 5 + integers(5, (1024, 1), seed=1), 1.0)
    return AddingGRU(), *loaders(torch.stack([values, marks], 2), (values * marks).sum(1)[:, None])


class IdentityRNN(LightningModule):
    """Recurrent weights start as the identity matrix, biases at zero (Le et al., 2015)."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(1, 24, nonlinearity="relu", batch_first=True)
        nn.init.eye_(self.rnn.weight_hh_l0)
        nn.init.zeros_(self.rnn.bias_hh_l0)
        nn.init.zeros_(self.rnn.bias_ih_l0)
        self.head = nn.Linear(24, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self.head(self.rnn(x)[0][:, -1])[:, 0], y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logit = self.head(self.rnn(x)[0][:, -1])[:, 0]
        self.log("val_loss", F.binary_cross_entropy_with_logits(logit, y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def make_identity_rnn():
    x = rows(1024, 10)
    return IdentityRNN(), *loaders(x.unsqueeze(-1), (x.sum(1) > 0).float())


class BagOfWords(LightningModule):
    """Sparse gradients: most rows of the table have none, and SparseAdam takes the others."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.bag = nn.EmbeddingBag(2000, 8, mode="mean", sparse=True, padding_idx=0)
        self.out = nn.Linear(8, 2)

    def forward(self, words):
        return self.out(self.bag(words))

    def training_step(self, batch, batch_idx):
        words, label = batch
        loss = F.cross_entropy(self(words), label)
        for opt in self.optimizers():
            opt.zero_grad()
        self.manual_backward(loss)
        for opt in self.optimizers():
            opt.step()

    def validation_step(self, batch, batch_idx):
        words, label = batch
        self.log("val_acc", (self(words).argmax(1) == label).float().mean())

    def configure_optimizers(self):
        return [
            torch.optim.SparseAdam(self.bag.parameters(), lr=0.05),
            torch.optim.Adam(self.out.parameters(), lr=0.02),
        ]


def make_bag_of_words():
    label = integers(2, (1500,))
    common, topical = 1 + integers(500, (1500, 8)), 500 + integers(60, (1500, 4), seed=1)
    words = torch.cat([common, topical + 600 * label[:, None]], 1)
    words[:, 6:8] = 0  # padding
    return BagOfWords(), *loaders(words, label)


class Persistence(LightningModule):
    """Forecasts the change since the last value; starts as the naive forecast, head at zero."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 16, 5)
        self.fc = nn.Linear(16 * 16, 1)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, past):
        last = past[:, -1:]
        h = F.relu(self.conv((past - last).unsqueeze(1)))
        return last + self.fc(h.flatten(1))

    def training_step(self, batch, batch_idx):
        past, following = batch
        return F.mse_loss(self(past), following)

    def validation_step(self, batch, batch_idx):
        past, following = batch
        self.log("val_mse", F.mse_loss(self(past), following))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def make_forecast():
    t = torch.arange(1100.0)
    series = 0.005 * t + torch.sin(t / 2) + 0.5 * torch.sin(t / 5) + 0.05 * rows(1100, 1)[:, 0]
    windows = series.unfold(0, 21, 1)
    return Persistence(), *loaders(windows[:, :20], windows[:, 20:])


# seeds 0 to 2                   metric            untrained             trained
# causal_lm_tied                 val_loss          29.2 to 31.9          0.0829 to 0.0945
# masked_lm                      val_loss          3.28 to 3.38          0.108 to 0.164
# lstm_tagger_padded             val_acc           0.238 to 0.311        1 to 1
# ctc                            val_ctc           4.63 to 5.06          0.0455 to 0.0958
# gru_adding                     val_mse           2.08 to 2.21          0.00863 to 0.00979
# identity_rnn                   val_loss          0.677 to 0.699        0.137 to 0.178
# sparse_embeddings              val_acc           0.509 to 0.581        1 to 1
# forecast_from_last_value       val_mse           0.132 to 0.132        0.00714 to 0.00745
PROGRAMS = [
    Program("causal_lm_tied", lambda: (TiedLM(), *loaders(counting())), steps=200),
    Program("masked_lm", lambda: (MaskedLM(), *loaders(counting())), steps=250),
    Program("lstm_tagger_padded", make_tagger, metric="val_acc"),
    Program("ctc", make_ctc, metric="val_ctc"),
    Program("gru_adding", make_adding, metric="val_mse", steps=250),
    Program("identity_rnn", make_identity_rnn, steps=150),
    Program("sparse_embeddings", make_bag_of_words, metric="val_acc"),
    Program("forecast_from_last_value", make_forecast, metric="val_mse"),
]
