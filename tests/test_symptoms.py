"""Every finding that may speak is explained, and what is explained may be found."""

import ast
import pathlib

import pytest

import lightning_tuning
from lightning_tuning import explain
from lightning_tuning.findings import CODES
from lightning_tuning.functional.symptoms import known_symptoms

PACKAGE = pathlib.Path(lightning_tuning.__file__).parent
# these tell of a measurement, or why there is none
QUIET = {
    *("initial_loss", "gradient_checked", "gradient_not_checked", "batch_overfitted"),
    *("overfit_not_judged", "lr_suggested", "lr_curve_flat", "lr_curve_not_measured"),
    *("lr_curve_too_short", "batch_norm_recalibrated", "ema_not_both", "ema_not_judging"),
    *("metric_apart_from_loss", "ensemble_judged", "search_winner"),
}


def test_all_codes_but_those_that_never_speak_are_explained():
    assert set(known_symptoms()) == CODES - QUIET


def test_those_that_are_not_explained_never_speak():
    loud = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                given = [*node.args, *(word.value for word in node.keywords)]
                values = {a.value for a in given if isinstance(a, ast.Constant)}
                if values & {"warn", "fail"}:
                    loud |= values & CODES
    assert loud > {"lr_too_low", "overfitting"}
    assert not loud & QUIET


def test_each_explanation_says_who_finds_it():
    checks = ["search", *(name for name in lightning_tuning.__all__ if name[0].isupper())]
    for code, text in known_symptoms().items():
        assert len(text) > 60, code
        assert any(f"{name}" in text.rpartition("*")[0] for name in checks), code


def test_a_misspelt_code_is_corrected():
    assert explain("lr_too_high") == known_symptoms()["lr_too_high"]
    with pytest.raises(ValueError, match=r"code='lr_to_high'.*lr_too_high"):
        explain("lr_to_high")
