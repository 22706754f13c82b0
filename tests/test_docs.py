"""The pages: nothing public is missing, no link is dead, every example runs."""

import inspect
import pathlib
import re
import shlex
import sys

import lightning.pytorch
import pytest
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lightning_tuning
import lightning_tuning.search
from lightning_tuning.cli import main
from tests.toys import Classifier, loader

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)]
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CHEAP = dict.fromkeys(
    ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
)

of_each_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


def text_of(page):
    """The page's own text, and that of a file that it includes."""
    text = page.read_text()
    for info, _ in FENCE.findall(text):
        if info.startswith("{include}"):
            text += (page.parent / info.split()[1]).read_text()
    return text


def blocks(page, language):
    return [code for info, code in FENCE.findall(text_of(page)) if info.strip() == language]


# ------------------------------------------------------------------------------- what is there


def test_every_public_name_is_in_the_reference():
    page = (DOCS / "reference.md").read_text()
    parts = re.split(r"^\.\. currentmodule:: ([\w.]+)$", page, flags=re.MULTILINE)
    entries: dict[str, list[str]] = {}
    for module, text in zip(parts[1::2], parts[2::2], strict=True):
        found = re.findall(r"^\.\. auto(?:class|function):: (\w+)$", text, re.MULTILINE)
        entries.setdefault(module, []).extend(found)
    for module in (lightning_tuning, lightning_tuning.search):
        assert sorted(entries.pop(module.__name__)) == sorted(module.__all__)
    assert not entries


def test_every_callback_has_a_page():
    public = [getattr(lightning_tuning, name) for name in lightning_tuning.__all__]
    callbacks = [c for c in public if inspect.isclass(c) and issubclass(c, Callback)]
    missing = [c.__module__ for c in callbacks if not page_of(c).exists()]
    assert not missing
    headings = {page_of(c).read_text().split("\n")[0] for c in callbacks}
    assert headings == {f"# {c.__name__}" for c in callbacks}


def page_of(callback):
    return DOCS / "callbacks" / f"{callback.__module__.split('.')[-1]}.md"


def test_every_page_is_in_a_menu():
    index = (DOCS / "index.md").read_text()
    listed = set(
        "\n".join(
            re.sub(r"^:.*$", "", body, flags=re.MULTILINE)
            for info, body in FENCE.findall(index)
            if info == "{toctree}"
        ).split()
    )
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES[1:]}
    assert listed == pages - {"index"}


@of_each_page
def test_links_and_images_lead_somewhere(page):
    text = FENCE.sub("", text_of(page))
    dead = []
    for target in LINK.findall(text):
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path)
        if "://" in target:
            continue
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    assert not dead


def anchors(page):
    """Return the anchors of headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# ------------------------------------------------------------------------------- what runs


class Own(Classifier):
    """Serves its own data, for ``trainer.fit(model)``."""

    def train_dataloader(self):
        return loader(shuffle=True)

    def val_dataloader(self):
        return loader()


class Data(LightningDataModule):
    def train_dataloader(self):
        return loader(shuffle=True)

    def val_dataloader(self):
        return loader()


class CheapTrainer(Trainer):
    """Two epochs at most, on the CPU, without a logger unless the example names one."""

    def __init__(self, **settings):
        settings["max_epochs"] = min(settings.get("max_epochs", 1), 2)
        super().__init__(**{"logger": False, **CHEAP, **settings, "accelerator": "cpu"})


def files_of(page):
    """Return the blocks that begin with a file's name as a comment, by that name."""
    found = {}
    for language in ("python", "yaml"):
        for code in blocks(page, language):
            name = re.match(r"# ([\w/]+\.\w+)\n", code)
            if name:
                found[name[1]] = code
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose modules can be imported, until the test ends."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(lightning.pytorch, "Trainer", CheapTrainer)
    yield tmp_path
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None)
        if file and tmp_path in pathlib.Path(file).parents:
            del sys.modules[name]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page, "python")],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_the_examples_of_a_page_run(page, folder):
    for name, code in files_of(page).items():
        (folder / name).write_text(code)
    names = {
        "__name__": "an_example",
        "Trainer": CheapTrainer,
        "model": Own(),
        "train_loader": loader(shuffle=True),
        "val_loader": loader(),
        "datamodule": Data(),
    }
    for number, code in enumerate(blocks(page, "python")):
        exec(compile(code, f"{page.name}, example {number + 1}", "exec"), names)


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_the_commands_of_the_page_about_them_run(folder, monkeypatch, capsys):
    page = DOCS / "command_line.md"
    for name, code in {**files_of(DOCS / "start.md"), **files_of(page)}.items():
        (folder / name).write_text(code)
    monkeypatch.setattr(sys, "argv", ["lightning-tuning"])
    lines = [line for code in blocks(page, "console") for line in code.splitlines()]
    commands = [line.removeprefix("$ lightning-tuning ") for line in lines if "lightning-" in line]
    for command in commands:
        arguments = shlex.split(command)
        if arguments[0] == "fit":
            arguments.append("--trainer.max_epochs=1")
        assert main(arguments) == 0, command
    assert len(commands) >= 6
    assert "Suggested learning rate" in capsys.readouterr().out
    report = "lightning_logs/version_0/report.html"
    for file in ("preflight/preflight.html", "range.png", "schedule.png", report):
        assert (folder / file).exists()


def tags_of(callbacks):
    """What they write to TensorBoard in a fit."""
    logger = TensorBoardLogger(".")
    settings = {"max_epochs": 3, "accelerator": "cpu", "log_every_n_steps": 1, **CHEAP}
    trainer = Trainer(logger=logger, callbacks=callbacks, **settings)
    trainer.fit(Own(), datamodule=Data())
    sizes = {"images": 0, "histograms": 0, "tensors": 0}
    tags = EventAccumulator(logger.log_dir, sizes).Reload().Tags()
    return {
        tag.removesuffix("/text_summary")
        for kind in ("scalars", "images", "histograms", "tensors")
        for tag in tags[kind]
    } - {"custom_scalars__config__", "epoch", "train_loss", "val_loss"}


def test_the_page_about_tags_has_every_tag():
    page = (DOCS / "logged.md").read_text()
    ensemble = lightning_tuning.CheckpointEnsemble(k=2)
    others = [lightning_tuning.CyclicalLR(), lightning_tuning.WarmupDecay(), ensemble]
    runs = [lightning_tuning.recipe(checks=True), *([other] for other in others)]
    written = set().union(*map(tags_of, runs))
    known = re.findall(r"`([\w<>]+/[\w<>]+)`", page)
    patterns = [re.sub(r"<\w+>", ".+", tag) for tag in known]
    assert len(written) > 30
    assert not {tag for tag in written if not any(re.fullmatch(p, tag) for p in patterns)}
    # and it promises none that nobody writes; this network has no images and no tanh
    unwritten = {p for p in patterns if not any(re.fullmatch(p, tag) for tag in written)}
    elsewhere = {p for p in unwritten if p.startswith("tuning/")}
    assert unwritten - elsewhere <= {"saturated_fraction/.+", "filters/.+", "filter_smoothness/.+"}
