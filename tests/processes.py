"""Functions on several ranks, each a forked process on the CPU."""

import multiprocessing
import os
import pathlib
import pickle
import socket
import tempfile
import time
import traceback

SECONDS = 120


def run_on_ranks(fn, world_size=2):
    """Run ``fn()`` on every rank of a group and return the ranks' values in order.

    In ``fn``, ``Trainer(accelerator="cpu", devices=world_size, strategy="ddp")`` joins the group:
    the variables by which Lightning knows its rank are set. Values travel as pickles in files.

    Raises:
        AssertionError: A rank raised or did not end; it holds that rank's traceback.
    """
    context = multiprocessing.get_context("fork")
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder, str(rank)) for rank in range(world_size)]
        ranks = [
            context.Process(target=_rank, args=(fn, rank, world_size, port, file))
            for rank, file in enumerate(files)
        ]
        for process in ranks:
            process.start()
        try:
            _join(ranks, files)
        finally:
            for process in ranks:
                process.kill()
                process.join()
                process.close()
        answers = [_read(file) for file in files]
    errors = [f"rank {rank}:\n{error}" for rank, (_, error) in enumerate(answers) if error]
    assert not errors, "\n".join(errors)
    return [value for value, _ in answers]


def _join(ranks, files):
    """Wait for all ranks; once one has failed, the others wait for it in vain."""
    end = time.monotonic() + SECONDS
    while any(process.is_alive() for process in ranks) and time.monotonic() < end:
        time.sleep(0.02)
        ended = [file for file, process in zip(files, ranks, strict=True) if not process.is_alive()]
        if any(_read(file)[1] for file in ended):
            return


def _read(file):
    if not file.exists():
        return None, "no answer: it was killed, or did not end in time"
    return pickle.loads(file.read_bytes())


def _rank(fn, rank, world_size, port, file):
    os.environ |= {
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
    }
    try:
        answer = pickle.dumps((fn(), None))
    except BaseException:
        answer = pickle.dumps((None, traceback.format_exc()))
    file.write_bytes(answer)
    # the parent's fixtures and exit handlers are not this process's
    os._exit(0)


def _free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
