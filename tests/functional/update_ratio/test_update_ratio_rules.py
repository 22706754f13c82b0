import math

import numpy as np
import pytest

from lightning_tuning.functional.fit_course import fit_course
from lightning_tuning.functional.unread_flags import UnreadFlag
from lightning_tuning.functional.update_ratio.update_evidence import LeftOut, UpdateEvidence
from lightning_tuning.functional.update_ratio.update_exact_rules import (
    newly_non_finite,
)
from lightning_tuning.functional.update_ratio.update_ratio import UpdateRatioResult
from lightning_tuning.functional.update_ratio.update_ratio_rules import update_findings
from tests.functional.update_ratio.test_update_ratio import row

CODES = {
    *("non_finite", "weights_not_updating", "frozen_params", "update_ratio_low"),
    *("update_ratio_high", "clip_too_small", "lr_decayed_too_fast", "weight_decay_too_high"),
}
FLAT = [2.3] * 400
LEARNT = list(np.linspace(2.3, 0.1, 400))

LEVEL = [2.3, *np.linspace(2.3, 1.4, 99), *[1.4] * 300]
EARLY = [*np.linspace(2.3, 0.2, 30), *[0.2] * 370]
QUARTER = list(np.linspace(2.3, 1.8, 400))
HALF = list(np.linspace(2.3, 1.25, 400))
SHRUNK = {
    "weight_decays": (0.1,) * 3,
    "weights": np.geomspace(1, 0.2, 20)[:, None],
    "rates": 0.01,
}


def left_out(*shapes, trainable=True, fed=False):
    return tuple(
        LeftOut(name=f"x{i}", shape=shape, trainable=trainable, fed=fed)
        for i, shape in enumerate(shapes)
    )


def evidence(ratios=-3.0, losses=LEARNT, **changes):
    """A fit of 400 steps and 20 measurements of three matrices."""
    rows, tensors = 20, 3
    ratios = np.broadcast_to(np.asarray(ratios, dtype=float), (rows, tensors))
    weights = np.broadcast_to(np.asarray(changes.pop("weights", 1.0)), (rows, tensors))
    gradients = np.broadcast_to(np.asarray(changes.pop("gradients", 1.0)), (rows, tensors))
    rates = np.broadcast_to(np.asarray(changes.pop("rates", 0.1))[..., None], (rows, 1))
    after = changes.pop("after", 1.0)

    def plain(array):
        return tuple(map(tuple, array.tolist()))

    result = UpdateRatioResult(
        steps=tuple(range(0, 400, 20)),
        names=("a", "b", "c"),
        kinds=changes.pop("kinds", ("weight",) * 3),
        log10_ratios=plain(ratios),
        weight_norms=plain(weights),
        update_norms=plain(10.0**ratios * weights),
        gradient_norms=plain(gradients),
        before_clipping=((1.0,),) * rows,
        after_clipping=((after,),) * rows,
        learning_rates=plain(rates),
    )
    defaults = {
        "fresh": True,
        "eps": (1.2e-7,) * 3,
        "groups": (0,) * 3,
        "weight_decays": (0.0,) * 3,
        "trainable": (True,) * 3,
        "shapes": ((4, 2), (4, 4), (2, 4)),
        "left_out": (),
        "rest_fresh": True,
        "unread": (),
        "scale_free": False,
        "steps": 400,
        "at": 400,
    }
    course = fit_course(losses, reason=changes.pop("reason", ""))
    settings = defaults | changes
    return UpdateEvidence(result=result, course=course, losses=tuple(losses), **settings)


def loud(*args, **settings):
    findings = update_findings(evidence(*args, **settings))
    assert {f.code for f in findings} == CODES
    return {f.code: f for f in findings if f.verdict in ("warn", "fail")}


def said(code, *args, **settings):
    [finding] = [f for f in update_findings(evidence(*args, **settings)) if f.code == code]
    return finding


WARM_UP = np.linspace(-6, -2.5, 20)[:, None]
COSINE = np.log10(1e-2 * np.cos(np.linspace(0, 1.57, 20)) ** 2 + 1e-12)[:, None]


@pytest.mark.parametrize(
    "healthy",
    [
        {},
        {"ratios": -1.5},
        {"ratios": WARM_UP},
        {"ratios": COSINE, "rates": np.cos(np.linspace(0, 1.57, 20)) ** 2 + 1e-9},
        {"ratios": -5.5, "fresh": False},  # fine-tuning
        {"ratios": -6.0, "fresh": False, "losses": FLAT},  # converged before
        {"ratios": -5.5, "fresh": None, "losses": FLAT},
        {"ratios": -6.0, "losses": FLAT, "steps": 30},
        {"ratios": -2.5, "losses": FLAT},  # a GAN with one loss, noise for labels
        {"ratios": -0.5, "weights": np.geomspace(1, 30, 20)[:, None]},  # L-BFGS, raw targets
        {"ratios": -6.0, "losses": FLAT, "reason": "several optimizers"},
        {"ratios": -6.0, "losses": [-x for x in LEARNT]},
        {"ratios": [-7.0, -5.0, -2.5], "losses": FLAT},  # vanishing gradients are another fault
        {"after": 0.01},  # Adam does not mind
        {"after": 0.01, "ratios": -5.0},
        {"rates": np.repeat([1.0, 0.1, 0.01], [8, 6, 6])},
        {"losses": EARLY, "rates": np.repeat([1.0, 1e-3], [2, 18])},
        {"weight_decays": (0.1,) * 3, "weights": np.geomspace(1, 0.2, 20)[:, None]},
        {"losses": LEVEL, **SHRUNK, "scale_free": True},  # batch norm makes up for it
        {"losses": [*np.linspace(2.3, 0.05, 99), *[0.05] * 301], **SHRUNK},
        {"losses": LEVEL, **SHRUNK, "weight_decays": (0.0,) * 3},
        {"gradients": [1.0, 1.0, 0.0], "ratios": [-3.0, -3.0, -math.inf]},
        {"gradients": [1.0, math.nan, math.nan], "ratios": [-3.0, math.nan, math.nan]},
        {"left_out": left_out((4, 2), (4, 4), (2, 4), fed=True), "losses": FLAT},  # a teacher
        {"left_out": left_out(*[(9, 9)] * 3), "losses": FLAT, "rest_fresh": False},
        {"left_out": left_out(*[(9, 9)] * 3), "losses": LEVEL},
        {"left_out": left_out(*[(9, 9)] * 3, trainable=False), "losses": QUARTER},
        {"left_out": left_out(*[(9, 9)] * 3, trainable=False), "losses": FLAT, "rest_fresh": None},
        {"left_out": left_out(*[(9, 9)] * 2, fed=True), "losses": LEVEL},
        {"left_out": left_out(*[(9, 9)] * 3, fed=True), "losses": HALF},
        {"kinds": ("zero_init", "bias", "norm"), "ratios": -8.0, "losses": FLAT},
    ],
)
def test_healthy_fits_are_quiet(healthy):
    assert loud(**healthy) == {}


@pytest.mark.parametrize(
    ("code", "broken"),
    [
        ("update_ratio_low", {"ratios": -5.0, "losses": FLAT}),
        ("update_ratio_low", {"ratios": WARM_UP - 3, "losses": FLAT}),
        (
            "update_ratio_high",
            {"ratios": -1.2, "losses": FLAT, "weights": np.geomspace(1, 50, 20)[:, None]},
        ),
        (
            "update_ratio_high",
            {
                "ratios": np.repeat([0.5, -2.0], [2, 18])[:, None],
                "losses": [2.3] + [500.0] * 10 + [1.5] * 389,
                "weights": np.repeat([1.0, 12.0], [1, 19])[:, None],
            },
        ),
        ("clip_too_small", {"ratios": -5.0, "losses": FLAT, "after": 1e-3}),
        ("lr_decayed_too_fast", {"losses": FLAT, "rates": 0.5 ** np.arange(0, 40, 2)}),
        ("lr_decayed_too_fast", {"losses": LEVEL, "rates": np.repeat([1.0, 1e-3], [2, 18])}),
        (
            "lr_decayed_too_fast",
            {
                "losses": [*np.linspace(2.0, 1.0, 100), *([0.95] * 300)],
                "rates": np.repeat([1.0, 1e-3], [6, 14]),
            },
        ),
        (
            "weight_decay_too_high",
            {
                "losses": FLAT,
                "weight_decays": (0.5,) * 3,
                "weights": np.geomspace(1, 1e-3, 20)[:, None],
                "ratios": -1.5,
            },
        ),
        ("weight_decay_too_high", {"losses": FLAT, "weight_decays": (20.0,) * 3, "rates": 0.005}),
        ("weight_decay_too_high", {"losses": LEVEL, **SHRUNK}),
        (
            "frozen_params",
            {
                "losses": FLAT,
                "gradients": [math.nan, math.nan, 1.0],
                "ratios": [math.nan, math.nan, -3.0],
            },
        ),
        ("frozen_params", {"losses": FLAT, "left_out": left_out(*[(9, 9)] * 3)}),
        ("frozen_params", {"losses": FLAT, "left_out": left_out(*[(9, 9)] * 3, trainable=False)}),
        ("frozen_params", {"losses": LEVEL, "left_out": left_out(*[(9, 9)] * 3, fed=True)}),
        ("frozen_params", {"losses": QUARTER, "left_out": left_out(*[(9, 9)] * 3)}),
    ],
)
def test_faults_are_named_once(code, broken):
    assert set(loud(**broken)) == {code}
    finding = loud(**broken)[code]
    assert finding.verdict == "warn"
    assert finding.hint
    # and the same symptoms in a fit that goes well are none
    assert code not in loud(**broken | {"losses": [2.3, *LEARNT[100:]]})


def test_standing_still_in_spite_of_a_gradient_is_a_failure():
    stuck = loud(ratios=[-3.0, -math.inf, -3.0])["weights_not_updating"]
    assert stuck.verdict == "fail"
    assert stuck.where == "b"
    # a single step that moved it is enough
    ratios = np.full((20, 3), -3.0)
    ratios[:-1, 1] = -math.inf
    assert loud(ratios=ratios) == {}


@pytest.mark.parametrize(
    "excused",
    [
        {"gradients": [1.0, 1e-9, 1.0]},  # rounding: a bias before BatchNorm
        {"rates": 0.0},
        {"gradients": [1.0, 0.0, 1.0]},
        {"eps": (1.2e-7, 0.0078, 1.2e-7), "gradients": [1.0, 0.1, 1.0]},  # bfloat16
    ],
)
def test_a_step_that_rounding_takes_is_no_failure(excused):
    ratios = [-math.inf] * 3 if excused.get("rates") == 0.0 else [-3.0, -math.inf, -3.0]
    assert "weights_not_updating" not in loud(ratios=ratios, **excused)


def test_who_can_not_know_says_so():
    low = said("update_ratio_low", -6.0, FLAT, reason="several optimizers may differ")
    assert low.verdict == "skip"
    assert "several optimizers" in low.message
    grown = {"weights": np.geomspace(1, 50, 20)[:, None]}
    high = said("update_ratio_high", -1.0, [-x for x in FLAT], **grown)
    assert high.verdict == "skip"
    assert "negative" in high.message


def test_nothing_measured():
    empty = UpdateRatioResult(
        **dict.fromkeys(("steps", "log10_ratios", "weight_norms", "update_norms"), ()),
        **dict.fromkeys(("gradient_norms", "before_clipping", "after_clipping"), ()),
        learning_rates=(),
        names=("a", "b", "c"),
        kinds=("weight",) * 3,
    )
    base = evidence()
    findings = update_findings(UpdateEvidence(**vars_of(base) | {"result": empty}))
    assert {f.code for f in findings} == CODES
    assert {f.verdict for f in findings} == {"skip"}


def vars_of(base):
    return {name: getattr(base, name) for name in base.__dataclass_fields__}


def test_weights_that_become_nan_are_named_with_the_step():
    names = ["a", "b", "c"]
    good, nan = row(0, [-3.0] * 3), math.nan
    broken = row(7, [-3.0, nan, nan], update_norms={0: 0.1, 1: nan, 2: nan})
    [finding] = newly_non_finite([good, broken], names, at=7)
    assert (finding.verdict, finding.where, finding.step) == ("fail", "b", 7)
    assert finding.evidence["tensors"] == 2
    assert newly_non_finite([good, good], names, at=7) == ()
    # already broken when the step began: it happened since the last measurement
    since = row(9, [nan] * 3, weights=[nan] * 3, update_norms=dict.fromkeys(range(3), nan))
    [finding] = newly_non_finite([good, since], names, at=9)
    assert "after step 0" in finding.message
    # infinities that were there from the start are a mask
    mask = row(0, [nan], weights=[math.inf], update_norms={0: nan})
    assert newly_non_finite([mask], names, at=1) == ()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_quantiles_over_what_was_driven_are_those_of_numpy(share):
    generator = np.random.default_rng(0)
    ratios = generator.normal(-3, 1, (20, 3))
    ratios[3, 1] = -math.inf
    gradients = np.where(generator.random((20, 3)) < 0.3, 0.0, 1.0)
    gradients[5] = 0.0
    found = evidence(ratios, gradients=gradients).quantile(share)
    for place, value in enumerate(found):
        known = np.maximum(ratios[place][gradients[place] > 0], -20.0)
        expected = np.quantile(known, share) if len(known) else np.nan
        np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_a_flag_that_nothing_reads_fails_however_the_fit_goes():
    flag = UnreadFlag(
        where="a", attribute="require_grad", value=True, contradicted=1, of_module=False
    )
    finding = said("frozen_params", unread=(flag,))
    assert (finding.verdict, finding.where) == ("fail", "a")
