"""All checks in one go before a fit."""

import copy
import html.parser
import json

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch.nn import functional

import lightning_tuning
from lightning_tuning import (
    ChecksFailedError,
    InitialLossCheck,
    LRRangeTest,
    OverfitBatchCheck,
    preflight,
)
from tests.processes import run_on_ranks
from tests.toys import Classifier, Manual, loader

QUIET = dict.fromkeys(("enable_checkpointing", "enable_progress_bar"), False)
QUICK = ("initial_loss_check", "gradient_check")
ALL = [
    "wiring_check",
    "initial_loss_check",
    "overfit_batch_check",
    "gradient_check",
    "lr_range_test",
]


class Softmaxed(Classifier):
    """Softmax before a loss that takes it itself."""

    def forward(self, inputs):
        return self.net(inputs).softmax(1)


class Noted(Callback):
    """Notes the loss of each batch."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item() if outputs else None)


def trainer_for(**settings):
    settings = {"max_epochs": 2, "logger": False, "accelerator": "cpu", **QUIET, **settings}
    return Trainer(enable_model_summary=False, **settings)


def fitted(*, with_preflight, module=Classifier, **settings):
    """Fit, after a preflight or not; everything that the fit led to."""
    seed_everything(5, verbose=False)
    noted = Noted()
    trainer = trainer_for(callbacks=[noted], **settings)
    model, train, val = module(), loader(shuffle=True), loader()
    if with_preflight:
        result = preflight(trainer, model, train, val, folder=None)
        assert [f for f in result.findings if f.check == "lr_range_test"]
    trainer.fit(model, train, val)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    states = copy.deepcopy([optimizer.state_dict()["state"] for optimizer in trainer.optimizers])
    return noted.losses, metrics, model.state_dict(), states, torch.rand(1).item()


@pytest.mark.parametrize("module", [Classifier, Manual])
def test_a_fit_after_it_is_the_fit_without_it_bit_for_bit(module):
    plain = fitted(with_preflight=False, module=module)
    probed = fitted(with_preflight=True, module=module)
    assert plain[0] == probed[0]
    assert plain[1] == probed[1]
    assert all(torch.equal(plain[2][name], probed[2][name]) for name in plain[2])
    assert repr(plain[3]) == repr(probed[3])
    assert plain[4] == probed[4]


def test_the_trainer_and_its_loggers_see_nothing(tmp_path):
    noted, logger = Noted(), CSVLogger(tmp_path / "logs")
    trainer = trainer_for(callbacks=[noted], logger=logger)
    preflight(trainer, Classifier(), loader(), loader(), checks=list(QUICK), folder=None)
    assert noted.losses == []
    assert noted in trainer.callbacks
    assert trainer.loggers == [logger]
    assert trainer.global_step == 0
    assert not (tmp_path / "logs").exists()


def test_all_checks_speak_in_their_order():
    result = preflight(trainer_for(), Classifier(), loader(), loader(), folder=None)
    assert list(dict.fromkeys(f.check for f in result.findings)) == ALL
    assert list(result.seconds) == ALL
    assert set(result.results) == set(ALL[1:])
    assert result.learning_rate == result.results["lr_range_test"].suggestion


def test_a_fault_is_told_with_what_to_do(caplog):
    caplog.set_level("INFO")
    result = preflight(
        trainer_for(), Softmaxed(), loader(), loader(), checks=["wiring_check"], folder=None
    )
    assert result.verdict == "fail"
    [finding] = [f for f in result.findings if f.code == "softmax_before_ce"]
    table = result.summary()
    assert max(map(len, table.splitlines())) <= 100
    words = " ".join(table.split())
    assert "softmax_before_ce" in words
    assert "fail" in words
    assert " ".join(finding.hint.split()[:3]) in words
    assert table.splitlines()[0].startswith("preflight: ")


def test_raising_is_asked_for_and_comes_after_the_report(tmp_path):
    trainer = trainer_for(default_root_dir=tmp_path)
    with pytest.raises(ChecksFailedError, match="softmax_before_ce"):
        preflight(
            trainer, Softmaxed(), loader(), loader(), checks=["wiring_check"], on_fail="raise"
        )
    assert (tmp_path / "preflight" / "preflight.html").exists()
    trainer.fit(Softmaxed(), loader(), loader())
    assert trainer.global_step == 12


class Tags(html.parser.HTMLParser):
    """Notes the tags of a page, and what they refer to."""

    def __init__(self):
        super().__init__()
        self.tags, self.sources = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]


def test_the_report_holds_all_in_one_file(tmp_path):
    trainer = trainer_for(default_root_dir=tmp_path)
    result = preflight(
        trainer,
        Classifier(),
        loader(),
        loader(),
        checks=[InitialLossCheck(num_batches=2), OverfitBatchCheck(8, max_steps=30), LRRangeTest()],
    )
    page = Tags()
    page.feed((tmp_path / "preflight" / "preflight.html").read_text())
    assert page.tags.count("img") == 2
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "script" not in page.tags
    told = json.loads((tmp_path / "preflight" / "findings.json").read_text())
    assert [row["code"] for row in told] == [finding.code for finding in result.findings]


def test_nothing_is_written_without_a_folder(tmp_path):
    trainer = trainer_for(default_root_dir=tmp_path)
    preflight(trainer, Classifier(), loader(), loader(), checks=list(QUICK), folder=None)
    assert list(tmp_path.rglob("*")) == []


def test_data_modules_serve_as_well():
    class Data(LightningDataModule):
        def train_dataloader(self):
            return loader()

        val_dataloader = train_dataloader

    result = preflight(
        trainer_for(), Classifier(), datamodule=Data(), checks=list(QUICK), folder=None
    )
    assert result.verdict == "pass"


def test_the_module_serves_its_own_data():
    class Own(Classifier):
        def train_dataloader(self):
            return loader()

        val_dataloader = train_dataloader

    result = preflight(trainer_for(), Own(), checks=list(QUICK), folder=None)
    assert [f.verdict for f in result.findings] == ["pass", "pass"]


@pytest.mark.parametrize("checks", [["wiring"], [], "wiring_check"])
def test_a_wrong_list_is_refused(checks):
    with pytest.raises(ValueError, match=r"checks=.*wiring_check"):
        preflight(trainer_for(), Classifier(), loader(), checks=checks, folder=None)


def test_a_wrong_answer_to_failures_is_refused():
    with pytest.raises(ValueError, match="on_fail"):
        preflight(trainer_for(), Classifier(), loader(), on_fail="stop")


def test_a_trainer_that_has_nothing_left_to_do_is_refused():
    with pytest.raises(MisconfigurationException, match="nothing left to train"):
        preflight(trainer_for(max_epochs=0), Classifier(), loader(), loader(), folder=None)


def test_fast_dev_run_is_not_checked(tmp_path):
    trainer = trainer_for(fast_dev_run=True, default_root_dir=tmp_path)
    result = preflight(trainer, Classifier(), loader(), loader(), checks=list(QUICK))
    assert result.verdict == "skip"


def test_an_error_of_the_program_leaves_trainer_and_module_ready_for_a_fit():
    class Breaks(Classifier):
        broken = True

        def training_step(self, batch, batch_idx):
            if self.broken:
                functional.linear(batch[0], torch.zeros(2, 2))
            return super().training_step(batch, batch_idx)

    trainer, module = trainer_for(), Breaks()
    before = copy.deepcopy(module.state_dict())
    result = preflight(trainer, module, loader(), loader(), checks=["wiring_check"], folder=None)
    assert "step_raised" in {f.code for f in result.findings if f.verdict == "fail"}
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    module.broken = False
    trainer.fit(module, loader(), loader())
    assert trainer.global_step == 12


@pytest.mark.processes
def test_all_ranks_find_the_same(tmp_path):
    def on_a_rank():
        trainer = trainer_for(strategy="ddp", devices=2, default_root_dir=tmp_path)
        result = preflight(trainer, Softmaxed(), loader(), loader(), checks=list(QUICK))
        return [(f.code, f.verdict, f.message) for f in result.findings]

    first, second = run_on_ranks(on_a_rank)
    assert first
    assert first == second
    assert (tmp_path / "preflight" / "preflight.html").exists()


@pytest.mark.parametrize("call", [lightning_tuning.preflight, lightning_tuning.lr_range_test])
def test_a_module_in_the_trainers_place_is_told(call):
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
    with pytest.raises(MisconfigurationException, match=r"trainer=Classifier.*comes first"):
        call(Classifier(), trainer)
