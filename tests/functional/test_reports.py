"""Findings of several checks as a table and as a page, and a run read back."""

import itertools
import json

import pytest

from lightning_tuning import Finding, read_run
from lightning_tuning.functional.html_report import Picture, html_report
from lightning_tuning.functional.preflight import in_context
from lightning_tuning.functional.report_table import as_table, overall, rows

PNG = b"\x89PNG\r\n\x1a\n rest"


def finding(verdict="fail", check="wiring_check", code="zero_init", **settings):
    settings = {"message": f"It says {verdict}.", "hint": "", **settings}
    return Finding(check=check, code=code, verdict=verdict, **settings)


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [
        ("pass fail warn", "fail"),
        ("skip pass", "pass"),
        ("skip skip", "skip"),
        ("", "skip"),
        ("pass warn skip", "warn"),
    ],
)
def test_the_verdict_on_all_does_not_depend_on_their_order(verdicts, worst):
    found = [finding(verdict) for verdict in verdicts.split()]
    assert {overall(order) for order in itertools.permutations(found)} == {worst}


def test_what_failed_has_rows_and_the_rest_one_row_for_each_check():
    found = [
        finding("pass"),
        finding("fail", where="net.0", hint="Draw it."),
        finding("skip", code="dead_relu"),
        finding("pass", "initial_loss_check", "initial_loss", message="2.3 of 2.3."),
    ]
    assert rows(found) == [
        ("zero_init", "fail", "net.0: It says fail.", "Draw it."),
        ("wiring_check", "pass", "1 passed. Not checked: dead_relu.", ""),
        ("initial_loss_check", "pass", "2.3 of 2.3.", ""),
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_table_keeps_to_its_width_and_loses_no_word(width):
    message = "The weights of " + "a_long_name." * 12 + "weight are all the same number, 0.25."
    found = [finding("warn", message=message, hint="Draw the weights at random. " * 4)]
    table = as_table(found, title="preflight", width=width)
    assert max(map(len, table.splitlines())) <= width
    start, end = table.splitlines()[2].split(" ")[:2], table.splitlines()[2].split(" ")[2:]
    first = sum(map(len, start)) + 2
    column = "".join(line[first : first + len(end[0])].strip() for line in table.splitlines()[3:])
    assert column.replace(" ", "") == message.replace(" ", "")


NASTY = "<script>alert('x')</script> & \"quoted\" <b>"


def test_names_of_the_program_are_escaped_everywhere():
    found = finding(message=NASTY, hint=NASTY, where=NASTY, check="a<i>check")
    page = html_report(
        [found], [Picture(check="a<i>check", caption=NASTY, png=PNG)], title=NASTY, intro=NASTY
    )
    assert "<script" not in page
    assert "<i>" not in page
    assert "<b>" not in page
    assert page.count("&lt;script&gt;") >= 6


def test_a_run_is_read_back(tmp_path):
    told = [finding("warn", step=3, evidence={"share": 0.5}), finding("pass", "one_cycle")]
    (tmp_path / "findings.json").write_text(json.dumps([each.to_dict() for each in told]))
    for name in ("one_cycle", "update_ratio_monitor", "filters_net.0", "of_somebody_else"):
        (tmp_path / f"{name}.png").write_bytes(PNG)
    run = read_run(tmp_path)
    assert run.findings == tuple(told)
    assert run.verdict == "warn"
    assert [picture.check for picture in run.pictures] == [
        "filter_monitor",
        "one_cycle",
        "update_ratio_monitor",
    ]
    assert run.to_html().count("<img") == 3
    assert run.summary().startswith(f"{tmp_path.name}: 1 warned, 1 passed")


def test_a_folder_without_a_run_is_refused_with_the_one_that_may_be_meant(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"holds no findings.json$"):
        read_run(tmp_path)
    inner = tmp_path / "version_0"
    inner.mkdir()
    (inner / "findings.json").write_text("[]")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*version_0"):
        read_run(tmp_path)


def test_the_page_explains_what_speaks():
    loud = Finding(check="a", code="dead_relu", verdict="warn", message="m")
    quiet = Finding(check="a", code="zero_init", verdict="pass", message="m")
    page = html_report([loud, quiet], title="t")
    assert '<a href="#dead_relu">' in page
    assert '<dt id="dead_relu">' in page
    assert "LeakyReLU" in page
    assert 'id="zero_init"' not in page
    assert "What it means" not in html_report([quiet], title="t")


def test_hints_of_a_preflight_know_of_each_other():
    def of(code, verdict, hint):
        return Finding(check="c", code=code, verdict=verdict, message=code, hint=hint)

    far = of("loss_not_at_chance", "warn", "Smaller weights.")
    raw = of("unnormalized_input", "warn", "Standardise.")
    rate = of("lr_suggested", "pass", "Try 0.1.")
    assert in_context([far, rate]) == (far, rate)
    told = in_context([raw, far, rate])
    assert told[0] == raw
    assert told[1].hint.startswith("Mend unnormalized_input first")
    assert told[2] == rate
    assert in_context([of("zero_init", "fail", "x"), rate])[1].hint.startswith("Mend the faults")
