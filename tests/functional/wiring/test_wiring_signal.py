import dataclasses

import pytest

from lightning_tuning.functional.rescue import Trained
from lightning_tuning.functional.signal_sizes import (
    InputScale,
    LayerSignal,
    Rectified,
    Recurrence,
    Signal,
    Squashed,
    input_scale,
)
from lightning_tuning.functional.wiring import wiring_signal as rules
from lightning_tuning.functional.wiring.wiring_signal import SignalEvidence

BAD = Trained(before=2.4, after=2.3, chance=2.3)
GOOD = Trained(before=2.4, after=0.2, chance=2.3)


def layer(name="a", output=1.0, spread=None, gradient=1.0):
    return LayerSignal(
        name=name, output=output, spread=output if spread is None else spread, gradient=gradient
    )


def verdicts(evidence):
    names = [
        *("unnormalized_input", "dead_relu", "saturated_activations"),
        *("bad_init_scale", "vanishing_gradients", "exploding_gradients"),
    ]
    return {name: getattr(rules, name)(evidence)[0].verdict for name in names}


def alarms(evidence):
    return [name for name, verdict in verdicts(evidence).items() if verdict in ("warn", "fail")]


def rescaled(signal, trained=BAD, loss=0.5):
    return SignalEvidence(signal=signal, trained=trained, rescaled=loss)


ODD = {
    "dead_relu": Signal(layers=(layer(),), rectified=(Rectified(after="a", dead=0.5, units=8),)),
    "saturated_activations": Signal(layers=(layer(),), squashed=(Squashed(after="a", flat=0.6),)),
    "bad_init_scale": Signal(layers=(layer(output=11.0), layer("b"))),
    "vanishing_gradients": Signal(
        layers=(layer(gradient=1e-4), layer("b"), layer("c", gradient=1.0))
    ),
    "exploding_gradients": Signal(
        layers=(layer(gradient=1e4), layer("b"), layer("c", gradient=1.0))
    ),
}


@pytest.mark.parametrize("code", ODD)
def test_a_symptom_with_a_cure_gives_its_code_alone(code):
    assert alarms(rescaled(ODD[code])) == [code]


@pytest.mark.parametrize("code", ODD)
def test_a_symptom_alone_is_no_alarm(code):
    assert alarms(rescaled(ODD[code], loss=2.25)) == []
    assert alarms(rescaled(ODD[code], loss=None)) == []
    assert alarms(rescaled(ODD[code], trained=GOOD, loss=0.001)) == []


def test_a_cure_without_a_symptom_is_no_alarm():
    assert alarms(rescaled(Signal(layers=(layer(), layer("b"))))) == []


def test_faint_layers_but_not_a_faint_head_are_odd():
    assert Signal(layers=(layer(), layer("b", output=0.01), layer("c"))).symptom()
    assert not Signal(layers=(layer(), layer("b"), layer("c", output=1e-6))).symptom()
    assert not Signal(layers=(layer(), layer("b", output=0.0), layer("c"))).symptom()


def test_large_logits_are_odd_without_a_loud_layer():
    assert alarms(rescaled(Signal(layers=(layer(),), logits=30.0))) == ["bad_init_scale"]
    assert Signal(layers=(layer(),), logits=9.0).symptom() == ""


def test_large_data_make_large_outputs_that_are_not_odd():
    scale = InputScale(name="a", size=100.0, offset=0.0, unequal=1.0)
    assert Signal(inputs=(scale,), layers=(layer(output=500.0),)).symptom() == ""


def test_the_data_are_blamed_before_the_network():
    scale = InputScale(name="a", size=100.0, offset=0.0, unequal=1.0)
    signal = dataclasses.replace(ODD["saturated_activations"], inputs=(scale,))
    evidence = SignalEvidence(signal=signal, trained=BAD, standardised=0.4, rescaled=0.1)
    assert alarms(evidence) == ["unnormalized_input"]
    assert alarms(dataclasses.replace(evidence, standardised=2.2)) == ["saturated_activations"]


def test_a_dead_relu_behind_tiny_weights_is_a_matter_of_the_weights():
    dead = (Rectified(after="a", dead=0.7, units=8),)
    tiny = Signal(layers=(layer(output=0.2, spread=1e-4), layer("b")), rectified=dead)
    assert tiny.symptom() == "bad_init_scale"
    biased = Signal(layers=(layer(output=8.0, spread=0.1), layer("b")), rectified=dead)
    assert biased.symptom() == "dead_relu"


def test_a_zero_gradient_is_not_a_vanishing_one():
    layers = (layer(gradient=0.0), layer("b"), layer("c"))
    assert Signal(layers=layers).slope is None
    [finding] = rules.vanishing_gradients(rescaled(Signal(layers=layers)))
    assert finding.verdict == "skip"


def test_a_recurrent_matrix_forgets_by_its_norm_and_the_steps():
    assert Recurrence(name="w", norm=0.5, steps=10).memory == pytest.approx(0.5**10)
    assert Recurrence(name="w", norm=2.0, steps=10**6).memory > 1e300
    forgetful = Signal(layers=(layer(),), recurrences=(Recurrence(name="w", norm=0.1, steps=9),))
    assert alarms(rescaled(forgetful)) == ["vanishing_gradients"]
    assert Signal(recurrences=(Recurrence(name="w", norm=1.1, steps=99),)).symptom() == ""


def test_what_is_not_there_is_skipped():
    found = verdicts(SignalEvidence(signal=Signal(), trained=GOOD))
    assert set(found.values()) == {"skip"}


@pytest.mark.parametrize(
    ("mean", "std", "is_odd"),
    [
        ([0.0, 0.0], [1.0, 1.0], False),
        ([0.5, 0.5], [0.3, 0.3], False),
        ([120.0, 120.0], [70.0, 80.0], True),
        ([0.0, 0.0, 0.0], [1.0, 1.0, 1e3], True),
        ([1000.0, 1001.0], [1.0, 1.0], True),
        ([0.0, 0.0], [1e-3, 1e-3], True),
        ([0.0, 1.0, 0.0], [1.0, 0.0, 1.0], False),
    ],
)
def test_scales_of_data(mean, std, is_odd):
    assert input_scale("a", mean, std).is_odd == is_odd


def test_constants_have_no_scale():
    assert input_scale("a", [5.0, 7.0], [0.0, 0.0]) is None
