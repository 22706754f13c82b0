"""A PostgreSQL server of its own, where Debian's package and a driver are installed."""

import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import tempfile

import pytest


@pytest.fixture
def postgresql():
    """The address of an empty database, for SQLAlchemy."""
    pytest.importorskip("psycopg")
    tools = max(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
    # it refuses to run for the system's administrator
    user = "postgres" if os.getuid() == 0 else None
    place = tempfile.mkdtemp(dir="/tmp")
    if user is not None:
        os.chown(place, pwd.getpwnam(user).pw_uid, -1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(tool, *arguments):
        command = [str(tools / tool), *arguments]
        subprocess.run(command, check=True, user=user, cwd=place, stdout=subprocess.DEVNULL)

    run("initdb", "-D", f"{place}/data", "-A", "trust", "-U", "search")
    options = f"-p {port} -k {place} -c listen_addresses=127.0.0.1 -c fsync=off"
    run("pg_ctl", "-D", f"{place}/data", "-l", f"{place}/log", "-o", options, "-w", "start")
    try:
        run("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "search", "search")
        yield f"postgresql+psycopg://search@127.0.0.1:{port}/search"
    finally:
        run("pg_ctl", "-D", f"{place}/data", "-m", "immediate", "stop")
        shutil.rmtree(place, ignore_errors=True)
