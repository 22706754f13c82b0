import pytest
import torch

from lightning_tuning.functional.batch_links import Comparison, Reach, comparison, differs, links
from lightning_tuning.functional.layouts import exchanges_sizes, mixes_positions
from lightning_tuning.functional.loss_calls import bound_call
from lightning_tuning.functional.wiring.wiring_examples import (
    ExampleEvidence,
    batch_leakage,
    dims_scrambled,
)


def verdicts(evidence):
    return [rule(evidence)[0].verdict for rule in (batch_leakage, dims_scrambled)]


def evidence(tested=7, leaking=7, strangers=0, reached=6, **more):
    return ExampleEvidence(
        tested=tested, leaking=leaking, strangers=strangers, reached=reached, **more
    )


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (evidence(), ["fail", "pass"]),
        (evidence(strangers=4), ["pass", "fail"]),
        (evidence(strangers=3), ["fail", "pass"]),
        (evidence(reshaped=True), ["pass", "fail"]),
        (evidence(leaking=0, reached=0), ["pass", "pass"]),
        (evidence(leaking=4), ["pass", "pass"]),
        (evidence(leaking=5), ["fail", "pass"]),
        (evidence(tested=2, leaking=1), ["pass", "pass"]),
        (evidence(tested=2, leaking=2), ["fail", "pass"]),
        (evidence(leaking=0, reached=0, mixed_classes="head"), ["pass", "fail"]),
        (evidence(tested=0, leaking=0, why_not="no targets"), ["skip", "skip"]),
    ],
)
def test_verdicts(seen, expected):
    assert verdicts(seen) == expected


def test_messages_say_the_numbers():
    [finding] = batch_leakage(evidence(leaking=5))
    assert "5 of 7 examples reach up to 6 others" in finding.message
    assert finding.evidence == {"tested": 7, "leaking": 5, "reached": 6}
    [finding] = dims_scrambled(evidence(leaking=0, mixed_classes="net.2"))
    assert finding.where == "net.2"


def call(function, output, target, **options):
    return bound_call(function, [output, target], options, function(output, target, **options))


def test_rounding_is_no_difference():
    one = torch.tensor([1.0, float("nan"), float("inf"), 0.0])
    other = torch.tensor([1.0 + 1e-7, float("nan"), float("inf"), 1e-3])
    assert differs(one, other).tolist() == [False, False, False, True]
    assert differs(torch.tensor([1, 2]), torch.tensor([1, 3])).tolist() == [False, True]


def reached(function, outputs, targets, **options):
    one, other = (
        comparison(call(function, output, target, **options))
        for output, target in zip(outputs, targets, strict=True)
    )
    return one.reached(other)


def test_class_scores_are_one_output():
    scores = torch.zeros(3, 4, 5)
    changed = scores.clone()
    changed[1, 2, 3] = 1.0
    labels = torch.zeros(3, 5, dtype=torch.long)
    other = labels.clone()
    other[2, 0] = 1
    output, target = reached(torch.nn.functional.cross_entropy, [scores, changed], [labels, other])
    assert output.nonzero().tolist() == [[1, 3]]
    assert target.nonzero().tolist() == [[2, 0]]


def test_probabilities_as_targets_are_one_target():
    scores, target = torch.zeros(3, 4), torch.full((3, 4), 0.25)
    other = target.clone()
    other[1] = torch.tensor([1.0, 0, 0, 0])
    _, changed = reached(torch.nn.functional.cross_entropy, [scores, scores], [target, other])
    assert changed.tolist() == [False, True, False]


def test_similarities_pair_examples_up():
    similar = Comparison(output=torch.zeros(7, 7), target=torch.zeros(7, 7))
    assert similar.pairs_up(7)
    assert Comparison(output=torch.zeros(14, 14), target=torch.zeros(14), class_dim=1).pairs_up(7)
    assert Comparison(output=torch.zeros(7, 1), target=torch.zeros(7)).pairs_up(7)
    assert not Comparison(output=torch.zeros(7, 3), target=torch.zeros(7), class_dim=1).pairs_up(7)


def rows(*numbers, of=4):
    return torch.tensor([i in numbers for i in range(of)])


def test_links_need_a_target_that_is_another_examples_alone():
    leaking = [Reach(outputs=(rows(0, 1, 2, 3),), targets=(rows(j),)) for j in range(4)]
    foreign, own = links(leaking)
    assert torch.equal(foreign[0], ~torch.eye(4, dtype=torch.bool))
    assert own.all()
    alone = [Reach(outputs=(rows(j),), targets=(rows(j),)) for j in range(4)]
    assert not links(alone)[0].any()
    strangers = [Reach(outputs=(rows((j + 1) % 4),), targets=(rows(j),)) for j in range(4)]
    foreign, own = links(strangers)
    assert foreign[0].sum() == 4
    assert not own.any()


def test_mixed_targets_are_no_links():
    """In mixup the output is compared with the labels of both examples that went in."""
    mixed = [
        Reach(outputs=(rows(j, 3 - j), rows(j, 3 - j)), targets=(rows(j), rows(3 - j)))
        for j in range(4)
    ]
    assert not links(mixed)[0].any()


def test_shared_targets_and_no_targets_are_no_links():
    whole = rows(0, 1, 2, 3)
    assert not links([Reach(outputs=(whole,), targets=(whole,)) for _ in range(4)])[0].any()
    none = [Reach(outputs=(whole,), targets=(rows(),)) for _ in range(4)]
    assert not links(none)[0].any()


def test_scores_from_one_position_or_from_a_whole_dimension():
    source = torch.arange(2 * 6 * 4).view(2, 6, 4)  # examples, channels, positions
    mixed = {"shape": source.shape, "channel_dim": 1, "class_dim": 1}
    assert not mixes_positions(source, **mixed)
    assert not mixes_positions(source.permute(0, 2, 1).reshape(-1, 6), **mixed)
    assert not mixes_positions(source.view(2, 2, 3, 4).permute(0, 3, 1, 2).reshape(-1, 3), **mixed)
    assert not mixes_positions(source.reshape(12, 4), **mixed)  # a softmax over positions
    assert mixes_positions(source.reshape(-1, 6), **mixed)
    assert mixes_positions(source.reshape(-1, 3), **mixed)
    one_channel = torch.arange(8).view(8, 1)
    assert not mixes_positions(
        one_channel.view(2, 4), shape=torch.Size((8, 1)), channel_dim=1, class_dim=1
    )


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((7, 8, 3), (8, 7, 3), True),
        ((7, 8, 3), (7, 3, 8), True),
        ((7, 1, 8), (7, 8), False),
        ((7, 8, 3), (56, 3), False),
        ((7, 8, 8), (7, 8, 8), False),
    ],
)
def test_reshapes_like_a_transpose(before, after, expected):
    assert exchanges_sizes(before, after) == expected
