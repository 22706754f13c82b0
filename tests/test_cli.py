"""The command line: what it prints, its exit status, and a configuration that is not ours."""

import importlib.util
import json
import logging
import sys

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_tuning.cli import main
from tests.cli_programs import Net

CONFIG = {
    "seed_everything": 3,
    "model": {"class_path": "tests.cli_programs.Net", "init_args": {"width": 12}},
    "data": {"class_path": "tests.cli_programs.Data"},
    "trainer": {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "ckpt_path": None,
}
CHECK = "--checks=[initial_loss_check]"
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    level = logging.getLogger("lightning.pytorch").level
    monkeypatch.setattr(sys, "argv", ["lightning-tuning"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    logging.getLogger("lightning.pytorch").setLevel(level)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return str(path)


def status(*arguments):
    """The exit status, of main or as it left."""
    try:
        return main(list(arguments))
    except SystemExit as left:
        return left.code


def refused(capsys, *arguments):
    """Check that the command was refused in one line; return the line."""
    assert status(*arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1, told
    assert told[0].startswith("lightning-tuning: ")
    return told[0]


def test_a_configuration_of_lightningcli_serves_as_it_is(config, tmp_path):
    """The same file fits with Lightning's own command line and is checked with ours."""
    cli = LightningCLI(Net, args=["fit", "--config", config], subclass_mode_model=True)
    assert cli.trainer.global_step == 12
    assert status("preflight", "--config", config, CHECK) == 0
    told = json.loads((tmp_path / "preflight" / "findings.json").read_text())
    assert [row["code"] for row in told] == ["initial_loss"]


def test_one_that_names_no_class_serves_with_the_class_beside_it(tmp_path):
    plain = {**CONFIG, "model": {"width": 12}, "data": {"batch_size": 6}}
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(plain))
    given = "--model=tests.cli_programs.Net", "--data=tests.cli_programs.Data"
    assert status("preflight", *given, "--config", str(path), CHECK, "--folder=null") == 0


def test_a_module_in_the_current_folder_is_found(tmp_path, config):
    (tmp_path / "own_program.py").write_text("from tests.cli_programs import Net as Own\n")
    arguments = ["--config", config, "--model=own_program.Own", CHECK, "--folder=null"]
    assert status("preflight", *arguments) == 0


def test_what_failed_is_the_exit_status(config, tmp_path):
    arguments = ["--config", config, "--checks=[wiring_check]", "--model.softmax=true"]
    assert status("preflight", *arguments, f"--folder={tmp_path / 'here'}") == 1
    assert "softmax_before_ce" in (tmp_path / "here" / "preflight.html").read_text()


def test_the_range_test_prints_the_number_alone(config, capsys):
    assert status("lr-range-test", "--config", config, "--quiet", "--num_steps=30") in (0, 1)
    printed = capsys.readouterr().out.strip()
    if printed:  # noise alone may leave no suggestion; then the status says so
        assert 1e-7 <= float(printed) <= 10


def test_the_range_test_draws(config, caplog, tmp_path):
    caplog.set_level("INFO")
    arguments = ["--suggestion=valley", "--num_steps=30", "--output=range.png"]
    found = status("lr-range-test", "--config", config, *arguments)
    assert (tmp_path / "range.png").read_bytes().startswith(b"\x89PNG")
    assert found == (0 if "Suggested learning rate" in caplog.text else 1)


def test_fit_knows_the_callbacks_by_their_short_names(config, tmp_path):
    arguments = ["--trainer.callbacks+=OneCycle", "--trainer.callbacks.max_lr=0.1"]
    more = ["--trainer.callbacks+=LossCurveDiagnosis", "--trainer.logger=CSVLogger"]
    logger = [f"--trainer.logger.save_dir={tmp_path}"]
    assert status("fit", "--config", config, *arguments, *more, *logger) == 0
    run = tmp_path / "lightning_logs" / "version_0"
    assert {"one_cycle.png", "findings.json", "config.yaml"} <= {p.name for p in run.iterdir()}


def test_a_check_that_raises_in_a_fit_is_told_without_a_traceback(config, capsys):
    arguments = ["--trainer.callbacks+=WiringCheck", "--trainer.callbacks.on_fail=raise"]
    assert status("fit", "--config", config, *arguments, "--model.softmax=true") == 1
    told = capsys.readouterr().err
    assert "softmax_before_ce" in told
    assert "Traceback" not in told


def test_a_run_is_reported(config, tmp_path, capsys):
    arguments = ["--trainer.callbacks+=LossCurveDiagnosis"]
    arguments += ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=."]
    assert status("fit", "--config", config, *arguments) == 0
    capsys.readouterr()
    run = tmp_path / "lightning_logs" / "version_0"
    assert status("report", str(run)) == 0
    assert "loss_curve_diagnosis" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1


def test_a_schedule_is_drawn_without_training(tmp_path, capsys):
    assert status("schedule", "--total_steps=50", "--max_lr=0.1", "--output=here.png") == 0
    assert capsys.readouterr().out.strip() == "here.png"
    assert (tmp_path / "here.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "command",
    [
        ("one_cycle", "--total_steps=50", "--max_lr=0.1"),
        ("cyclical_lr", "--total_steps=50", "--cycle_steps=25", "--base_lr=0.01", "--max_lr=0.1"),
        ("warmup_decay", "--total_steps=50", "--max_lr=[0.1, 0.2]", "--decay=sqrt"),
    ],
)
def test_each_kind_of_schedule_is_drawn(tmp_path, capsys, command):
    assert status("schedule", *command) == 0
    assert capsys.readouterr().out == "schedule.png\n"
    assert (tmp_path / "schedule.png").stat().st_size > 5000


def test_a_schedule_that_is_not_there_is_refused(capsys):
    said = refused(capsys, "schedule", "two_cycles", "--max_lr=0.1")
    assert "no schedule 'two_cycles'; choose from one_cycle, cyclical_lr, warmup_decay" in said


def test_a_code_is_explained(capsys):
    assert status("explain", "dead_relu") == 0
    told = capsys.readouterr().out
    assert "silent" in told
    assert max(map(len, told.splitlines())) <= 100
    assert "lr_too_high" in refused(capsys, "explain", "lr_to_high")
    assert "one code" in refused(capsys, "explain")


def test_help_and_version(capsys):
    assert status("--help") == status() == 0
    told = capsys.readouterr().out
    for command in ("preflight", "lr-range-test", "schedule", "fit", "report RUN_DIR"):
        assert command in told
    assert status("--version") == 0
    for command in ("preflight", "lr-range-test", "schedule", "report", "fit"):
        assert status(command, "--help") == 0
        assert "usage" in capsys.readouterr().out.lower()


def test_mistakes_are_told_in_one_line(capsys, config):
    assert "'fti'" in refused(capsys, "fti")
    assert "nothing.yaml" in refused(capsys, "preflight", "--config", "nothing.yaml")
    assert "model" in refused(capsys, "preflight")
    assert "wdith" in refused(capsys, "preflight", "--config", config, "--model.wdith=3")
    assert "wiring" in refused(capsys, "preflight", "--config", config, "--checks=[wiring]")
    assert "no_such" in refused(capsys, "fit", "--config", config, "--model=no_such.Module")
    assert "is no folder" in refused(capsys, "report", "nowhere")
    assert "start_lr" in refused(capsys, "lr-range-test", "--config", config, "--start_lr=-1")
    assert "total_steps" in refused(capsys, "schedule", "--total_steps=0", "--max_lr=0.1")
    bad = ["--trainer.callbacks+=OneCycle", "--trainer.callbacks.max_lr=-1"]
    assert "max_lr" in refused(capsys, "fit", "--config", config, *bad)
    nothing = refused(capsys, "preflight", "--config", config, "--trainer.max_epochs=0")
    assert "nothing left to train" in nothing


def test_a_mistake_is_told_with_what_is_expected(capsys, config):
    told = {
        ("preflight", "--config", config, "--checks", "wiring_check"): 'write "[wiring_check]"',
        ("preflight", "--config", config, "--checks", "[wiring]"): "wiring is not a list of wiring",
        ("preflight", "--config", config, "--trainer.max_epochs", "ten"): "max_epochs: ten is not a"
        " whole number",
        ("fit", "--config", config, "--trainer.callbacks+=EMAWeight"): "did you mean EMAWeights",
        ("fit", "--config", config, "--model=tests.cli_programs.Nett"): "no attribute 'Nett'",
        ("schedule", "--max_lr=0.1"): "--total_steps is required",
        ("explain", "lr_suggested"): "nothing to mend",
        ("explain", "dead_rely"): "did you mean dead_relu?",
        ("explain", "xyz"): "no finding has this code",
    }
    for command, expected in told.items():
        said = refused(capsys, *command)
        assert expected in said, command
        assert "Expected a" not in said
        assert "typing" not in said


def test_explain_lists_the_codes(capsys):
    assert status("explain", "--help") == 0
    assert "dead_relu" in capsys.readouterr().out


def test_report_points_to_the_latest_fit(capsys, tmp_path):
    for name in ("lightning_logs/version_0", "preflight"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "findings.json").write_text("[]")
    assert "lightning_logs/version_0?" in refused(capsys, "report", "runs")


def test_without_the_extra_it_says_how_to_install_it(capsys, config, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "jsonargparse" else found(name)
    )
    assert "lightning-tuning[cli]" in refused(capsys, "preflight", "--config", config)
    assert "lightning-tuning[cli]" in refused(capsys, "schedule")


def test_errors_of_the_program_keep_their_traceback(config, tmp_path):
    (tmp_path / "bad_program.py").write_text(
        "from tests.cli_programs import Net\n"
        "class Bad(Net):\n"
        "    def configure_optimizers(self):\n"
        "        raise ValueError('of my own')\n"
    )
    with pytest.raises(ValueError, match="of my own"):
        main(["preflight", "--config", config, "--model=bad_program.Bad", CHECK])
