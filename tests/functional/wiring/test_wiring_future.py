import pytest
import torch

from lightning_tuning.functional.sequence_reach import Reach, ahead, last_is_no_input, shift
from lightning_tuning.functional.wiring.wiring_future import FutureEvidence, future_leakage


def reach(inputs, targets, length=6):
    places = range(length)
    return Reach(
        length=length,
        inputs={s: frozenset(inputs(s)) for s in places},
        targets={s: frozenset(targets(s)) for s in places},
    )


def next_one(s):
    return [s - 1] if s else []


def test_a_causal_model_knows_no_target():
    found = ahead(reach(lambda s: range(s, 5), next_one))
    assert (found.steps, found.tested, found.known) == (1, 5 - 1, 0)


def test_a_model_that_looks_both_ways_knows_all():
    found = ahead(reach(lambda s: range(5) if s < 5 else [], next_one))
    assert (found.steps, found.known, found.tested) == (1, 4, 4)


def test_two_steps_ahead():
    found = ahead(reach(lambda s: range(s, 4), lambda s: [s - 2] if s > 1 else []))
    assert (found.steps, found.known) == (2, 0)


def test_a_prompt_is_no_target():
    found = ahead(reach(lambda s: range(s, 5), lambda s: [s - 1] if s > 1 else []))
    assert (found.steps, found.known, found.tested) == (1, 0, 3)


def test_first_outputs_that_do_not_count():
    """An autoencoder whose first two outputs are left out is not ahead of anything."""
    assert ahead(reach(lambda _: range(4), lambda s: [s - 2] if s > 1 else [])) is None


def test_an_autoencoder_is_not_ahead():
    found = ahead(reach(lambda _: range(6), lambda s: [s]))
    assert found.steps == 0
    assert not found.causal
    assert not last_is_no_input(reach(lambda _: range(6), lambda s: [s]))


def test_a_start_token_in_front():
    both_ways = reach(lambda s: range(6) if s < 5 else [], lambda s: [s])
    assert last_is_no_input(both_ways)
    assert ahead(both_ways).known == 5
    causal = reach(lambda s: range(s + 1, 6), lambda s: [s])
    assert ahead(causal).known == 0


def test_a_causal_copy():
    found = ahead(reach(lambda s: range(s, 6), lambda s: [s]))
    assert found.causal
    assert found.known == found.tested == 6


def test_each_place_by_itself_has_no_memory():
    assert not ahead(reach(lambda s: [s], lambda s: [s])).causal


@pytest.mark.parametrize(
    "targets",
    [
        lambda _: [],
        lambda _: range(6),
        lambda s: [s // 2],
        lambda s: [s + 1],
        lambda s: [s - 1] if s in (1, 2, 3, 4) else [],  # a valid convolution's middle
    ],
)
def test_what_does_not_predict_itself(targets):
    assert ahead(reach(lambda _: range(6), targets)) is None


def test_shift():
    x = torch.rand(3, 8, 2, generator=torch.Generator().manual_seed(0))
    assert shift(x[:, :-1], x[:, 1:]) == 1
    assert shift(x[:, :-2], x[:, 2:]) == 2
    assert shift(x[:, :-1], x[:, 1:, 0]) == 1
    assert shift(x[:, :-1], x[:, 1:, 1:]) == 1
    assert shift(x, x) == 0
    assert shift(x, x.flip(1)) is None
    tokens = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    ignored = torch.cat([tokens[:, 1:], torch.full((2, 1), -100)], 1)
    assert shift(tokens, ignored) == 1
    assert shift(tokens, torch.full_like(tokens, -100)) is None
    assert shift(tokens.float(), tokens) is None


@pytest.mark.parametrize(
    ("evidence", "verdict"),
    [
        (FutureEvidence(steps=1, tested=4, known=4), "fail"),
        (FutureEvidence(steps=1, tested=4, known=3), "pass"),
        (FutureEvidence(steps=1, tested=4, known=0), "pass"),
        (FutureEvidence(tested=5, known=5, copies=True), "fail"),
        (FutureEvidence(why_not="no sequence"), "skip"),
    ],
)
def test_verdicts(evidence, verdict):
    [finding] = future_leakage(evidence)
    assert finding.verdict == verdict
    assert finding.code == "future_leakage"
