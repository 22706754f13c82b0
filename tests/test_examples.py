"""The examples without a callback of their own keep the claims that they print."""

import json
import pathlib
import runpy
import sys

import pytest

from lightning_tuning.cli import main

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


def example(name):
    """Return what the file defines; one of cells has run then."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name)


def loud(findings):
    return {finding.code for finding in findings if finding.verdict in ("warn", "fail")}


def test_broken_to_tuned():
    """Each step finds its mistakes, and the network ends far from where it began."""
    after = example("broken_to_tuned")
    assert after["before"]["val_acc"] < 0.15
    assert loud(after["checked"].findings) == {
        "softmax_before_ce",
        "params_not_in_optimizer",
        "train_mode_in_validation",
    }
    assert loud(after["start"].findings) == {"loss_not_at_chance"}
    assert loud(after["tiny"].findings) == {"lr_too_low"}
    assert "batch_overfitted" in {f.code for f in after["tiny"].findings if f.verdict == "pass"}
    assert 1e-3 < after["found"].suggestion < 0.06
    accuracies = [fit["val_acc"] for fit in after["grid"]]
    assert accuracies[2] > 0.85  # at the suggested rate
    assert max(accuracies[0], accuracies[4]) < 0.5  # far below and above it
    assert "lr_too_low" in loud(after["curves"].findings)
    assert after["tuned"]["val_acc"] > 0.97


def test_regression(capsys):
    """Raw targets are learnt once the rate is large; scaled ones at any usual rate."""
    found = example("regression")["main"]()
    mean, raw, raw_tuned, scaled, scaled_tuned = found.values()
    assert raw > 1.5 * mean
    assert max(raw_tuned, scaled, scaled_tuned) < 0.9 * mean
    assert "the mean for everyone" in capsys.readouterr().out


def test_sequence(tmp_path):
    """The recommended callbacks bring the loss nearer to that of the rule itself."""
    after = example("sequence")
    plain, tuned = after["main"]()
    assert tuned - after["floor"]() < 0.5 * (plain - after["floor"]())
    assert (tmp_path / "lightning_logs" / "version_1" / "findings.json").exists()


def test_two_optimizers():
    """Everything runs; averaged weights are better; what two losses can't tell is skipped."""
    findings, found = example("two_optimizers")["main"]()
    assert loud(findings) == set()
    verdicts = {(f.check, f.code): f.verdict for f in findings}
    assert verdicts["update_ratio_monitor", "weights_not_updating"] == "pass"
    assert verdicts["loss_curve_diagnosis", "lr_too_high"] == "skip"
    assert found["off_circle"] < found["off_circle_raw"] < 0.1


def test_the_command_line(monkeypatch, tmp_path):
    """One file serves the check and the fit."""
    monkeypatch.setattr(sys, "argv", ["lightning-tuning"])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    config = str(EXAMPLES / "cli.yaml")
    assert main(["preflight", "--config", config, "--checks=[wiring_check]"]) == 0
    assert main(["fit", "--config", config]) == 0
    run = tmp_path / "lightning_logs" / "version_0"
    told = json.loads((run / "findings.json").read_text())
    assert [row["code"] for row in told if row["verdict"] in ("warn", "fail")] == []
    [accuracy] = json.loads((run / "loss_curve_diagnosis.json").read_text())["curves"]["metrics"]
    assert accuracy["values"][-1] > 0.95
    assert main(["report", str(run)]) == 0


def test_cyclical_lr(capsys):
    """Each cycle ends at a lower loss than it has after its peak."""
    peaks, ends = example("cyclical_lr")["main"]()
    assert all(end < peak for peak, end in zip(peaks, ends, strict=True))
    assert "cycle 4: validation loss" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_warmup_decay():
    """The longer fit, which goes on from the plateau of the shorter one, ends no worse."""
    short, longer = example("warmup_decay")["main"]()
    assert longer < short + 0.01
    assert max(short, longer) < 0.15


def test_checkpoint_ensemble():
    """Snapshots together have a lower loss than the best of them on data that nobody has seen."""
    alone, together = example("checkpoint_ensemble")["main"]()
    assert len(alone) == 6
    assert together["test_loss"] < min(member["test_loss"] for member in alone)


def test_ensemble_module(capsys):
    """The ensemble is better than its members on average, and the same after a file."""
    alone, together = example("ensemble_module")["main"]()
    assert together < sum(alone) / len(alone)
    told = capsys.readouterr().out.split("together: ")[1]
    assert told.split(", loaded from one file: ")[1].strip() == told.split(",")[0]


@pytest.mark.filterwarnings("ignore")
def test_search(tmp_path):
    """Each stage nears the best, and the winner's fits together classify most digits."""
    result, found = example("search")["main"]()
    widths = [stage.space["lr"].high / stage.space["lr"].low for stage in result.stages]
    assert widths[1] < widths[0]
    assert found["test_accuracy"] > 0.95
    assert (tmp_path / "search" / "search.yaml").read_text() == result.to_yaml()
