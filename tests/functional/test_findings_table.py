import pytest

from lightning_tuning.findings import ChecksFailedError, Finding
from lightning_tuning.functional.findings_table import as_markdown, as_text, worst_first


def finding(verdict="fail", code="zero_init", **settings):
    settings = {"check": "wiring_check", "message": "Of 3 rows 3 are the same.", **settings}
    return Finding(verdict=verdict, code=code, **settings)


MANY = [
    finding("pass", "broadcast_mismatch"),
    finding("skip", "metric_wrong", message="Nothing is logged."),
    finding("warn", "lr_too_low", message="word " * 60, hint="Take ten times as much."),
    finding("pass", "single_logit_softmax"),
    finding("fail", where="net.0.weight", hint="Draw them at random."),
]


def test_the_worst_comes_first():
    assert [f.verdict for f in worst_first(MANY)] == ["fail", "warn", "skip", "pass", "pass"]


def test_loud_ones_are_told_in_full_and_the_others_named():
    lines = as_text(MANY).splitlines()
    assert lines[0] == "wiring_check: 1 failed, 1 warned, 1 not checked, 2 passed"
    assert lines[1].split() == [
        *("fail", "zero_init", "net.0.weight:", "Of", "3", "rows", "3", "are", "the", "same."),
        *("->", "Draw", "them", "at", "random."),
    ]
    assert lines[-2:] == ["skip  metric_wrong", "pass  broadcast_mismatch, single_logit_softmax"]
    assert "Nothing is logged." not in as_text(MANY)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_line_is_too_long_and_no_word_is_lost(width):
    text = as_text(MANY, width=width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert text.split().count("word") == 60


def test_a_place_that_the_message_names_is_not_told_twice():
    text = as_text([finding(where="net.0.weight", message="net.0.weight is zero.")])
    assert text.count("net.0.weight") == 1


def test_few_are_all_told_in_full():
    text = as_text([finding("skip", message="There is no loss."), finding("pass")])
    assert "There is no loss." in text
    assert "Of 3 rows" in text


def test_markdown_has_a_line_for_each_whatever_the_program_is_called():
    made = [finding("pass"), finding(where="a_b\n_c", message="x<y\n*_2*", hint="Do `it`.")]
    lines = as_markdown(made).splitlines()
    assert lines[0] == r"- **fail** `zero_init` `a_b _c`: x&lt;y \*\_2\* → *Do \`it\`.*"
    assert lines[1].startswith("- **pass** `zero_init`")
    assert len(lines) == 2


def test_one_exception_tells_all_that_failed():
    error = ChecksFailedError(
        [finding(where="net.0", hint="Draw them."), finding(code="lr_too_low")]
    )
    assert error.findings[0].where == "net.0"
    assert str(error).startswith("2 checks failed:")
    assert "zero_init net.0: Of 3 rows 3 are the same. Draw them." in str(error)
    assert "lr_too_low" in str(error)
    assert "One check" in str(ChecksFailedError([finding()]))
