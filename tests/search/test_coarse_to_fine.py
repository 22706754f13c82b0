"""Whole searches: that they find what is there, lose nothing, and go on where they were."""

import json
import multiprocessing
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import optuna
import pytest
import torch
import yaml

from lightning_tuning import EnsembleModule
from lightning_tuning.search import Stage, coarse_to_fine
from tests.processes import run_on_ranks
from tests.search.programs import (
    BEST,
    QUIET,
    SPACE,
    STAGES,
    Bowl,
    data,
    search,
    serve_grpc,
    slowly,
    worker,
)
from tests.toys import Classifier, loader

# many small trials: few workers for the loader, an older folder, a short epoch
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def studies(place="found/search.log", name="search"):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(place))
    return {s.study_name: optuna.load_study(study_name=s.study_name, storage=storage)
            for s in storage.get_all_studies() if s.study_name.startswith(name)}  # fmt: skip


# ------------------------------------------------------------------------------ what it finds


@pytest.mark.parametrize("sampler", ["random", "sobol", "tpe", "gp", "grid"])
def test_each_sampler_comes_near_the_best_and_each_stage_nearer(sampler):
    stages = [
        Stage(trials=9, epochs=1, sampler=sampler, prune=False),
        Stage(trials=9, epochs=1, sampler=sampler, prune=False),
    ]
    result = search(stages=stages, repeats=1, widenings=0)
    assert BEST / 3 < result.best_params["lr"] < 3 * BEST
    first, second = (stage.space["lr"] for stage in result.stages[:2])
    assert second.high / second.low < first.high / first.low
    assert second.low < BEST < second.high
    assert [len(stage.trials) for stage in result.stages] == [9, 9, 2]


def test_a_best_value_on_the_border_is_told_and_passed():
    result = search(space={"lr": (1e-6, 1e-3)}, stages=[Stage(trials=8, epochs=1, sampler="sobol")])
    told = [finding for finding in result.findings if finding.code == "best_at_border"]
    assert "at the high end of its range (0.001)" in told[0].message
    assert told[0].verdict == "pass"
    # the last stage was run again, on a range that reaches farther
    assert len(result.stages) == 3
    assert result.stages[1].space["lr"].high > 1e-2
    assert result.best_params["lr"] > 1e-3
    alone = search(space={"lr": (1e-6, 1e-3)}, widenings=0, name="other",
                   stages=[Stage(trials=8, epochs=1, sampler="sobol")])  # fmt: skip
    assert [f.verdict for f in alone.findings if f.code == "best_at_border"] == ["warn"]


def test_a_metric_that_rises():
    result = search(monitor="val/score", mode="max")
    assert BEST / 10 < result.best_params["lr"] < 10 * BEST
    assert result.best_value == max(
        t.value for t in result.stages[-1].trials if t.params == result.best_params
    )


def test_differences_within_the_noise_of_seeds_are_a_tie():
    noisy = search(lambda lr: Bowl(lr, noise=30.0), repeats=3)
    assert [f.verdict for f in noisy.findings if f.code == "search_tie"] == ["warn"]
    sure = search(lambda lr: Bowl(lr, noise=1e-6), repeats=3, name="sure",
                  stages=[Stage(trials=6, epochs=1, sampler="grid")], widenings=0)  # fmt: skip
    assert "beyond the noise of seeds" in sure.findings[0].message


def test_what_comes_of_trials_is_told():
    def odd(lr):
        return Bowl(lr, nan_above=0.1, fails_above=0.5)

    result = search(odd, stages=[Stage(trials=16, epochs=1, sampler="grid", prune=False)])
    states = [trial.state for trial in result.stages[0].trials]
    assert states.count("crashed") == 1
    assert states.count("diverged") == 2
    [crashed] = [trial for trial in result.stages[0].trials if trial.state == "crashed"]
    assert crashed.error == "RuntimeError: of my own"
    [told] = [finding for finding in result.findings if finding.code == "search_trials_failed"]
    assert "2 diverged, 1 crashed" in told.message
    assert "of my own" in told.message
    assert 0 < result.diverged < 1


def test_a_search_in_which_nothing_works_says_why():
    with pytest.raises(RuntimeError, match=r"stage-1: no trial.*\(6 crashed\).*of my own"):
        search(lambda lr: Bowl(lr, fails_above=0.0))


def test_a_mistake_of_the_program_is_told_soon():
    with pytest.raises(RuntimeError, match=r"\(3 crashed\).*'val_lost'"):
        search(monitor="val_lost")
    with pytest.raises(RuntimeError, match=r"\(3 crashed\).*TypeError"):
        search(lambda lr: Bowl(lr, depth=3), name="other")
    # it goes on once that is mended
    states = [trial.state for trial in search(name="other").stages[0].trials]
    assert states == ["crashed"] * 3 + ["complete"] * 3


def test_bad_trials_end_early():
    stages = [Stage(trials=20, epochs=6, sampler="random")]
    result = search(stages=stages, repeats=1)
    trials = result.stages[0].trials
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned
    assert all(1 < len(trial.curve) < 6 for trial in pruned)
    whole = [trial for trial in trials if trial.state == "complete"]
    assert {len(trial.curve) for trial in whole} == {6}
    assert min(t.value for t in pruned) > min(t.value for t in whole)


def test_part_of_an_epoch():
    class Counts(Bowl):
        steps = 0

        def on_train_end(self):
            Counts.steps = self.trainer.global_step

    search(Counts, stages=[Stage(trials=2, epochs=0.5)], repeats=1, finalists=1)
    assert Counts.steps == 2


# ------------------------------------------------------------------------- what it leaves behind


def test_files_and_the_winner_as_a_configuration(tmp_path):
    def bowl(lr, width):
        return Bowl(lr, width)

    result = search(bowl, {"lr": (1e-4, 1.0), "width": [4, 8]})
    for trial in result.stages[0].trials:
        name = pathlib.Path(trial.checkpoint).name
        assert name == f"trial-{trial.number:04d}-val_loss={trial.value:.4g}.ckpt"
        assert pathlib.Path(trial.checkpoint).exists()
    told = yaml.safe_load((tmp_path / "found" / "search.yaml").read_text())
    assert told == {"model": {"init_args": dict(result.best_params)}}
    assert json.loads((tmp_path / "found" / "search.json").read_text())["monitor"] == "val_loss"
    assert (tmp_path / "found" / "search.png").stat().st_size > 10_000
    assert "best val_loss" in result.summary()
    assert set(result.stages[0].importances) <= {"lr", "width"}


def test_members_go_straight_into_an_ensemble():
    def make(lr):
        return Classifier(lambda p: torch.optim.SGD(p, lr=lr))

    result = coarse_to_fine(
        make, lambda: (loader(), loader(8)), {"lr": (1e-3, 1.0)}, [Stage(trials=3, epochs=1)],
        trainer=QUIET, repeats=3, finalists=1, folder="found",
    )  # fmt: skip
    assert len(result.checkpoints) == 3
    ensemble = EnsembleModule(make(**result.best_params), result.checkpoints)
    assert ensemble.num_members == 3
    assert len({float(ensemble.member(i)["net.0.weight"].sum()) for i in range(3)}) == 1


def test_a_range_test_sets_the_first_range():
    def make(lr):
        return Classifier(lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9))

    result = coarse_to_fine(
        make, lambda: (loader(240, 16), loader(48)), {"lr": (1e-9, 1e3)},
        [Stage(trials=3, epochs=1)], range_test="lr", trainer=QUIET, repeats=1, folder="found",
        widenings=0,
    )  # fmt: skip
    range_ = result.stages[0].space["lr"]
    assert 1e-9 < range_.low < range_.high < 1e3


# -------------------------------------------------------------------------- resumed, and shared


def test_a_search_that_is_done_is_read_again(monkeypatch):
    first = search()
    monkeypatch.setattr(Bowl, "training_step", lambda *_: pytest.fail("trained again"))
    again = search()
    assert again.best_params == first.best_params
    assert again.stages == first.stages


def test_the_same_seed_gives_the_same_search():
    stages = [Stage(trials=4, epochs=1, sampler=s) for s in ("random", "tpe")]
    one = search(stages=stages, folder="one")
    two = search(stages=stages, folder="two")
    other = search(stages=stages, folder="three", seed=1)
    params = [[t.params for s in r.stages for t in s.trials] for r in (one, two, other)]
    assert params[0] == params[1] != params[2]
    # each stage draws points of its own, and begins with the best of the one before
    assert len({t["lr"] for t in params[0][:8]}) == 7
    assert not {t["lr"] for t in params[0][:8]} & {t["lr"] for t in params[2][:8]}


def test_the_best_of_a_stage_is_tried_again():
    result = search(repeats=1)
    first, second = result.stages[:2]
    best = min(first.trials, key=lambda trial: trial.value)
    assert second.trials[0].params == best.params


def test_another_search_of_that_name_is_refused():
    search(widenings=0)
    for other in (
        {"space": {"lr": (1e-4, 1.0)}},
        {"seed": 3},
        {"monitor": "val/score"},
        {"stages": [STAGES[0], Stage(trials=7, epochs=1)]},
    ):
        with pytest.raises(ValueError, match="name='search': the storage has a search"):
            search(**{"widenings": 0, **other})
    search(space={"lr": (1e-4, 1.0)}, name="other", widenings=0)
    # the last candidates may be repeated more often
    assert len(search(widenings=0, repeats=3).stages[-1].trials) == 6


class Accuracy(Bowl):
    def validation_step(self, batch, batch_idx):
        self.log("val_acc", -(torch.log10(torch.tensor(self.lr / BEST)) ** 2))


def test_the_metrics_name_tells_its_mode():
    result = search(Accuracy, monitor="val_acc", stages=[Stage(trials=8, epochs=1)], widenings=0)
    assert result.mode == "max"
    assert BEST / 10 < result.best_params["lr"] < 10 * BEST


class Lucky(Bowl):
    """The first trial of all is better than what it is again."""

    fits = 0

    def on_fit_start(self):
        Lucky.fits += 1

    def validation_step(self, batch, batch_idx):
        self.log("lucky", -5.0 if Lucky.fits == 1 else 1.0 + Lucky.fits / 100)


def test_an_earlier_trial_that_was_better_is_told():
    result = search(Lucky, monitor="lucky", widenings=0)
    [told] = [f for f in result.findings if f.code == "search_passed_better"]
    assert "had lucky -5" in told.message


def test_one_line_for_each_trial(monkeypatch):
    told = []
    module = sys.modules["lightning_tuning.search.search_run"]
    monkeypatch.setattr(module, "rank_zero_info", told.append)
    search(repeats=1, finalists=1, widenings=0)
    lines = [line for line in told if ", trial " in line]
    assert len(lines) == 6 + 5 + 1
    assert lines[0].startswith("stage-1, trial 0 of 6: complete ")
    assert "lr=" in lines[0]


SCRIPT = """
import os, sys, warnings
sys.path.insert(0, {path!r})
warnings.simplefilter("ignore")
from lightning_tuning.search import Stage
from tests.search.programs import search, slowly
search(slowly, stages=[Stage(trials=6, epochs=1, prune=False)], retries={retries})
"""


def in_a_trial(process):
    """Stop a process, and let it go on where it is not in the middle of its third trial."""
    if not pathlib.Path("found/search.log").exists():
        return False
    os.kill(process.pid, signal.SIGSTOP)
    trials = next(iter(studies().values())).trials if studies() else []
    done = [t for t in trials if t.state.is_finished()]
    running = [t for t in trials if t.state.name == "RUNNING" and "seed" in t.user_attrs]
    if len(done) >= 2 and running:
        return True
    os.kill(process.pid, signal.SIGCONT)
    return False


@pytest.mark.processes
@pytest.mark.parametrize("retries", [0, 1])
def test_after_kill_9_it_goes_on_and_loses_nothing(retries):
    root = str(pathlib.Path(__file__).parent.parent.parent)
    code = SCRIPT.format(path=root, retries=retries)
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 100
    while not in_a_trial(process):
        assert time.monotonic() < deadline, "no trial was met while it ran"
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = studies()["search/stage-1"].trials
    result = search(slowly, stages=[Stage(trials=6, epochs=1, prune=False)], retries=retries)
    trials = result.stages[0].trials
    lost = [trial for trial in trials if trial.state == "lost"]
    assert len(lost) == 1
    whole = [trial for trial in trials if trial.state == "complete"]
    assert len(whole) == (6 if retries else 5)
    # what was done before is still there, and what was lost has been tried again
    kept = {t.number: t.params for t in before if t.state.name == "COMPLETE"}
    assert kept.items() <= {t.number: t.params for t in whole}.items()
    assert (lost[0].params in [t.params for t in whole]) is bool(retries)


class Interrupted(Bowl):
    fits = 0

    def on_fit_start(self):
        Interrupted.fits += 1

    def training_step(self, batch, batch_idx):
        if Interrupted.fits == 3:
            raise KeyboardInterrupt
        return super().training_step(batch, batch_idx)


def test_after_ctrl_c_the_same_process_goes_on():
    stages = [Stage(trials=5, epochs=1, prune=False)]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        search(Interrupted, stages=stages)
    result = search(Interrupted, stages=stages)
    trials = result.stages[0].trials
    [lost] = [trial for trial in trials if trial.state == "lost"]
    whole = [trial for trial in trials if trial.state == "complete"]
    assert len(whole) == 5
    assert lost.params in [trial.params for trial in whole]


class TakenForLost(Bowl):
    """Others mark its second trial as lost, as they would after a long silence."""

    epochs = 0

    def on_train_epoch_end(self):
        TakenForLost.epochs += 1
        if TakenForLost.epochs == 3 + 1:
            study = studies()["search/stage-1"]
            running = study.trials[-1]
            study._storage.set_trial_user_attr(running._trial_id, "kind", "lost")
            study.tell(running.number, state=optuna.trial.TrialState.FAIL)


def test_a_trial_that_others_took_for_lost_is_left_to_them():
    with pytest.warns(UserWarning, match="took a trial of this one for lost"):
        result = search(TakenForLost, stages=[Stage(trials=4, epochs=3, prune=False)])
    states = [trial.state for trial in result.stages[0].trials]
    assert states == ["complete", "lost", "complete", "complete", "complete"]
    # it ended at its next validation
    assert TakenForLost.epochs == 3 + 2 + 3 * 3 + 4 * 3


@pytest.mark.processes
def test_several_processes_share_the_trials():
    context = multiprocessing.get_context("fork")
    with context.Pool(3) as pool:
        answers = [pool.apply_async(worker) for _ in range(3)]
        found = [answer.get(120) for answer in answers]
    assert len({process for process, _, _ in found}) == 3
    assert all(best == found[0][1] for _, best, _ in found)
    stage = studies()["search/stage-1"]
    whole = [t for t in stage.trials if t.state.name == "COMPLETE"]
    assert len(whole) == 8
    assert len({t.user_attrs["worker"][1] for t in whole}) > 1
    assert len({t.params["lr"] for t in whole}) == 8
    # together they are faster than one after another
    spans = [(t.datetime_start, t.datetime_complete) for t in whole]
    assert any(a < d and c < b for (a, b) in spans for (c, d) in spans if (a, b) != (c, d))


def _on_rank():
    stages = [Stage(trials=8, epochs=4)]
    settings = {"trainer": {**QUIET, "strategy": "ddp", "devices": 2}, "repeats": 1}
    result = search(stages=stages, **settings)
    return dict(result.best_params), [
        (t.number, t.state, t.value, t.curve) for s in result.stages for t in s.trials
    ]


@pytest.mark.processes
def test_ranks_of_a_trial_agree_and_are_pruned_together():
    one, other = run_on_ranks(_on_rank)
    assert one == other
    assert "pruned" in {state for _, state, _, _ in one[1]}


def test_a_database():
    search(storage="sqlite:///found.db")
    study = optuna.load_study(study_name="search/stage-1", storage="sqlite:///found.db")
    assert len(study.trials) == 6


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore:GrpcStorageProxy is experimental")
def test_a_grpc_proxy():
    """A server in front of a storage; the worker knows the server alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = multiprocessing.get_context("spawn").Process(target=serve_grpc, args=(port,))
    serve.start()
    try:
        proxy = optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=port)
        proxy.wait_server_ready(timeout=60)
        result = search(storage=proxy)
        assert [len(stage.trials) for stage in result.stages][:2] == [6, 5]
        assert "search/stage-1" in studies("behind.log")
    finally:
        serve.kill()
        serve.join()


@pytest.mark.processes
def test_tasks_of_a_slurm_job_array_are_workers():
    root = str(pathlib.Path(__file__).parent.parent.parent)
    code = SCRIPT.format(path=root, retries=1)
    tasks = []
    for task in range(2):
        slurm = {
            "SLURM_JOB_ID": f"7{task}",
            "SLURM_JOB_NAME": "search",
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_NTASKS": "1",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NODEID": "0",
        }
        command = [sys.executable, "-c", code]
        tasks.append(subprocess.Popen(command, env={**os.environ, **slurm}))
    assert [task.wait(200) for task in tasks] == [0, 0]
    whole = [t for t in studies()["search/stage-1"].trials if t.state.name == "COMPLETE"]
    assert len(whole) == 6
    assert {t.user_attrs["worker"][1] for t in whole} == {task.pid for task in tasks}


@pytest.mark.processes
@pytest.mark.skipif(
    not list(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb")), reason="needs PostgreSQL"
)
def test_processes_on_a_postgresql_database(postgresql):
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        found = [a.get(200) for a in [pool.apply_async(worker, (postgresql,)) for _ in range(2)]]
    assert found[0][1] == found[1][1]
    study = optuna.load_study(study_name="search/stage-1", storage=postgresql)
    whole = [t for t in study.trials if t.state.name == "COMPLETE"]
    assert len(whole) == len({t.params["lr"] for t in whole}) == 8
    assert len({t.user_attrs["worker"][1] for t in whole}) == 2


# ---------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"space": {"rate": (0.1, 1.0)}}, "'rate', which neither make_model nor make_data takes"),
        ({"mode": "least"}, "mode='least'"),
        ({"repeats": 0}, "repeats=0"),
        ({"range_test": "width"}, "range_test='width'"),
    ],
)
def test_wrong_arguments_are_named(settings, said):
    with pytest.raises(ValueError, match=said):
        search(**settings)
    with pytest.raises(ValueError, match=r"stages=\(\)"):
        coarse_to_fine(Bowl, data, SPACE, ())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trials": 0}, "trials=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 1.5}, "epochs=1.5"),
        ({"sampler": "best"}, "sampler='best'"),
        ({"keep": 0.0}, "keep=0.0"),
    ],
)
def test_a_wrong_stage_is_named(settings, said):
    with pytest.raises(ValueError, match=said):
        Stage(**{"trials": 1, "epochs": 1, **settings})


def test_without_optuna_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"lightning-tuning\[search\]"):
        search()


def test_nothing_of_it_is_imported_with_the_package():
    code = "import sys, lightning_tuning.search; assert 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
