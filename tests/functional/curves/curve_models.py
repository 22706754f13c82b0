"""Curves of known truth, drawn from several models."""

import math

import numpy as np

from lightning_tuning.functional.curves.loss_curves import Curve, Curves

STEPS = 600
CHANCE = math.log(10)


def ar1(n, phi, sd, generator):
    values = np.zeros(n)
    for i in range(1, n):
        values[i] = phi * values[i - 1] + generator.normal(0, sd * np.sqrt(1 - phi**2))
    return values


def with_noise(mean, generator, *, relative=0.08, phi=0.0):
    """A loss above zero whose noise grows with its level."""
    return mean * np.exp(ar1(len(mean), phi, relative, generator) - relative**2 / 2)


def curves(train, *, val=None, rates=None, chance=CHANCE, metric=None, batch_size=32, **others):
    n = len(train)
    every = n // 15
    ends = tuple(range(every - 1, n, every))
    train = tuple(float(v) for v in train)
    known = {}
    if val is not None:
        known["val"] = Curve(name="val_loss", steps=ends, values=tuple(float(v) for v in val))
    if metric is not None:
        values = tuple(float(v) for v in metric)
        acc = Curve(name="val_acc", steps=ends, values=values, higher_is_better=True)
        known["metrics"] = (acc,)
    return Curves(
        train=Curve(name="loss", steps=tuple(range(n)), values=train),
        rates=tuple(np.ones(n) * 0.1 if rates is None else rates),
        highs=train,
        steps=n,
        epoch_ends=ends,
        chance=chance,
        chance_high=chance,
        **{"alike": True, **others},
        batch_size=batch_size,
        **known,
    )


def at_ends(mean):
    """The values at the ends of fifteen epochs."""
    return np.asarray(mean)[len(mean) // 15 - 1 :: len(mean) // 15]


def exponential(generator, *, floor=0.1, scale=80.0, n=STEPS):
    return floor + (CHANCE - floor) * np.exp(-np.arange(n) / scale)


def power_law(generator, *, floor=0.1, n=STEPS):
    return floor + (CHANCE - floor) * (1 + np.arange(n) / 20) ** -0.7


def healthy(kind, generator):
    """One of many healthy fits."""
    floor = generator.uniform(0.02, 0.8)
    noise = generator.uniform(0.03, 0.3)
    phi = generator.choice([0.0, 0.3])
    n = int(generator.choice([45, 150, 600, 1500]))
    scale = n * generator.uniform(0.05, 0.4)
    mean = {
        "exponential": lambda: exponential(generator, floor=floor, scale=scale, n=n),
        "power law": lambda: power_law(generator, floor=floor, n=n),
        "late start": lambda: (
            floor + (CHANCE - floor) / (1 + np.exp((np.arange(n) - 0.3 * n) / (0.06 * n)))
        ),
        "rests early": lambda: exponential(generator, floor=floor, scale=n / 30, n=n),
        "mild overfitting": lambda: exponential(generator, floor=0.01, scale=n / 8, n=n),
        "small batches": lambda: exponential(generator, floor=floor, scale=n / 12, n=n),
    }[kind]()
    few = kind == "small batches"
    train = with_noise(mean, generator, relative=0.6 if few else noise, phi=phi)
    gap = generator.uniform(0, 0.15)
    end = at_ends(mean) + gap * (CHANCE - at_ends(mean))
    if kind == "mild overfitting":
        end = end + np.linspace(0, 0.1, len(end))
    val = end * np.exp(generator.normal(0, 0.02, len(end)))
    return curves(train, val=val, batch_size=2 if few else 32)


HEALTHY = (
    *("exponential", "power law", "late start", "rests early", "mild overfitting"),
    "small batches",
)


def broken(kind, generator):
    """A fit with a fault, and the codes that name it."""
    n, steps = STEPS, np.arange(STEPS)
    noise = generator.uniform(0.02, 0.1)

    def draw(mean, val=None, **others):
        mean = np.asarray(mean, float)
        smooth = at_ends(mean) if val is None else np.asarray(val)
        val = smooth * np.exp(generator.normal(0, 0.005, len(smooth)))
        return curves(with_noise(mean, generator, relative=noise), val=val, **others)

    share = steps / n
    if kind == "creeps":
        return draw(CHANCE * (1 - generator.uniform(0.06, 0.2) * share)), {"lr_too_low"}
    if kind == "at chance":
        return draw(np.full(n, CHANCE)), {"no_learning"}
    if kind == "jumps":
        mean = CHANCE * (1.03 + generator.uniform(3, 50) * np.exp(-steps / 30) * (steps > 0))
        return draw(mean), {"lr_too_high"}
    if kind == "stays high":
        level = generator.uniform(1.3, 2.0)
        swings = ar1(n, 0.95, generator.uniform(0.25, 0.4), generator)
        mean = level + (CHANCE - level) * np.exp(-steps / 10) + swings
        return draw(np.maximum(mean, 0.2)), {"lr_too_high", "loss_oscillation"}
    if kind == "by heart":
        # nothing but noise: training falls, validation never beats chance
        mean = CHANCE * (1 - generator.uniform(0.4, 0.9) * share)
        return draw(mean, val=CHANCE * np.linspace(1.01, 1.3, 15)), {"overfitting"}
    if kind == "pure noise":
        mean = CHANCE * (1 - generator.uniform(0.02, 0.06) * share)
        return draw(mean, val=CHANCE * np.linspace(1.0, 1.02, 15)), {"no_learning"}
    if kind == "harder data":
        mean = exponential(generator, scale=15)
        val = at_ends(mean) + CHANCE * np.linspace(generator.uniform(0.6, 3), 0.4, 15)
        return draw(mean, val=val, metric=np.linspace(0.7, 0.9, 15)), {"train_val_mismatch"}
    if kind == "overconfident":
        mean = exponential(generator, floor=0.001, scale=30)
        val = at_ends(exponential(generator, floor=0.35, scale=30))
        val = val + generator.uniform(0.15, 0.25) * np.maximum(at_ends(share) - 0.3, 0)
        return draw(mean, val=val, metric=np.full(15, 0.89)), {"overfitting"}
    if kind == "stopped":
        mean = CHANCE * (1 - generator.uniform(0.35, 0.55) * share**3)
        return draw(mean), {"underfitting"}
    if kind == "diverges":
        mean = exponential(generator, scale=40) + 5 * np.maximum(share - 0.5, 0) ** 2 * 20
        return draw(mean), {"loss_diverging"}
    if kind == "overfits":
        mean = exponential(generator, floor=0.01, scale=60)
        fall = exponential(generator, floor=0.9, scale=50)
        val = at_ends(fall) + generator.uniform(0.6, 2) * np.maximum(at_ends(share) - 0.25, 0)
        return draw(mean, val=val), {"overfitting"}
    if kind == "other data":
        mean = exponential(generator, scale=40)
        return draw(mean, val=np.linspace(2.4, 3.2, 15)), {"train_val_mismatch"}
    if kind == "decays":
        rates = 0.1 * 0.93**steps
        gone = np.cumsum(rates) / rates.sum()
        mean = CHANCE * (1 - generator.uniform(0.15, 0.5) * gone)
        return draw(mean, rates=rates), {"lr_decayed_too_fast"}
    if kind == "rests high":
        level = CHANCE * generator.uniform(0.78, 0.9)
        mean = level + (CHANCE - level) * np.exp(-steps / 20)
        return draw(mean, metric=np.linspace(0.1, 0.3, 15)), {"underfitting"}
    if kind == "hockey stick":
        mean = exponential(generator, scale=60) + CHANCE * 30 * np.exp(-steps / 80)
        return draw(mean), {"loss_not_at_chance"}
    if kind == "spikes":
        level = 1.2
        made = draw(level + (CHANCE - level) * np.exp(-steps / 30))
        values = np.asarray(made.train.values)
        values[generator.choice(np.arange(200, n), 6, replace=False)] = 15.0
        return curves(values, val=made.val.values), {"loss_spikes"}
    if kind == "beyond chance":
        # some answers are still right, with logits that are far too large
        swings = 8 * np.abs(ar1(n, 0.9, 1.0, generator)) * (share > 0.4)
        return draw(exponential(generator, scale=30) + swings, metric=np.full(15, 0.88)), {
            "lr_too_high",
            "loss_diverging",
        }
    if kind == "overfits and rests":
        mean = exponential(generator, floor=1e-7, scale=25)
        late = np.clip((at_ends(share) - 0.15) / 0.25, 0, 1)
        fall = at_ends(exponential(generator, floor=0.85, scale=20))
        return draw(mean, val=fall + generator.uniform(0.4, 0.6) * late), {"overfitting"}
    if kind == "outliers":
        # two examples of sixty batches, met once an epoch
        made = draw(exponential(generator, scale=40))
        values = np.asarray(made.train.values)
        for first in range(0, n, 60):
            values[first + generator.choice(60, 2, replace=False)] = generator.uniform(40, 300)
        return curves(values, val=np.full(15, 3.0)), {"loss_spikes"}
    if kind == "outliers of a good fit":
        made = draw(exponential(generator, floor=0.02, scale=40))
        values = np.asarray(made.train.values)
        for first in range(0, n, 60):
            values[first + generator.choice(60, 2, replace=False)] = generator.uniform(40, 300)
        return curves(values, val=made.val.values), {"loss_spikes"}
    if kind == "tossed":
        noisy = with_noise(exponential(generator, floor=0.9, scale=30), generator, relative=0.7)
        val = 0.9 * np.exp(generator.normal(0, 0.35, 15))
        return curves(noisy, val=val, batch_size=2), {"batch_noise", "loss_oscillation"}
    assert kind == "small batch"
    mean = np.full(n, 1.7) + (CHANCE - 1.7) * np.exp(-steps / 10)
    noisy = with_noise(mean, generator, relative=0.5)
    return curves(noisy, val=at_ends(mean), batch_size=1), {"batch_noise"}


BROKEN = (
    *("creeps", "at chance", "jumps", "stays high", "diverges", "overfits", "other data"),
    *("by heart", "pure noise", "harder data", "overconfident", "stopped"),
    *("decays", "rests high", "hockey stick", "spikes", "small batch"),
    *("beyond chance", "overfits and rests", "outliers", "outliers of a good fit"),
    "tossed",
)


def rates_of(kinds, draw, judge, repeats, seed=0):
    """The share of draws of each kind for which ``judge`` is true."""
    shares = {}
    for number, kind in enumerate(kinds):
        generator = np.random.default_rng([seed, number])
        shares[kind] = sum(judge(draw(kind, generator)) for _ in range(repeats)) / repeats
    return shares
