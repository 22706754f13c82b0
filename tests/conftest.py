"""What every test gets: one thread, quiet Lightning, its own folder, a check of what it left."""

import gc
import logging
import multiprocessing
import os
import pathlib
import signal
import threading
import time

import pytest
import torch

# set before Lightning imports it: older versions of the two talk about each other
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True, scope="session")
def _quiet():
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    os.environ.setdefault("MPLBACKEND", "Agg")
    # forked ranks of two-process tests meet over the loopback device
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _children() -> set[int]:
    tasks = pathlib.Path("/proc/self/task")
    if not tasks.exists():
        return {child.pid for child in multiprocessing.active_children() if child.pid}
    return {
        int(pid) for task in tasks.glob("*/children") for pid in task.read_text().split() if pid
    }


def _files() -> set[str]:
    found = set()
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if not f.startswith(".") and f != "__pycache__"]
        found.update(os.path.join(folder, name) for name in names)
    return found


@pytest.fixture(autouse=True)
def _leaves_nothing(tmp_path, monkeypatch):
    """Run each test in a folder of its own; fail it if it leaves files elsewhere or processes."""
    files, children = _files(), _children()
    # what is there already is not looked through again: a collection takes 0.3 s with torch loaded
    gc.freeze()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    # a background shell starts Python with Ctrl-C ignored, and Lightning ignores it after the first
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)
    gc.collect()
    _let_writers_finish()
    monkeypatch.undo()
    left = {pid for pid in _children() - children if not _is_helper(pid)}
    assert not left, f"processes left behind: {left}"
    assert _files() <= files, f"files left behind: {_files() - files}"


def _let_writers_finish() -> None:
    """Wait until TensorBoard's threads have written what they hold, by paths of this folder."""
    ends = time.monotonic() + 5
    for thread in threading.enumerate():
        if type(thread).__name__ == "_AsyncWriterThread":
            while thread.is_alive() and thread._queue.unfinished_tasks and time.monotonic() < ends:
                time.sleep(0.01)


def _is_helper(pid: int) -> bool:
    """Whether the process serves Python's own multiprocessing and ends with it."""
    try:
        command = pathlib.Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return True
    return any(name in command for name in ("resource_tracker", "forkserver", "compile_worker"))
