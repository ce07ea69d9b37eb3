"""The embedded server: private, mortal, clean."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import psycopg
import pytest

from strongroom.errors import NotFound, Refused
from strongroom.postgres import embedded
from strongroom.postgres.embedded import EmbeddedServer, find_server


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except FileNotFoundError:
        return False


def all_command_lines() -> bytes:
    lines = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            lines.append(file.read())
    return b"\n".join(lines)


def wait_until_gone(pid: int, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def test_runs_under_an_unprivileged_account_and_leaves_nothing() -> None:
    with EmbeddedServer(durable=False) as server:
        pid = server.pid
        assert pid is not None
        assert os.stat(f"/proc/{pid}").st_uid != 0
        assert os.stat(server.directory).st_mode & 0o777 == 0o700
        assert server.connect().execute("SELECT 1").fetchone() == (1,)
        directory = server.directory
    assert not alive(pid)
    assert not os.path.exists(directory)


def test_password_is_asked_for_and_not_shown() -> None:
    with EmbeddedServer(durable=False, tcp=True) as server:
        secret = psycopg.conninfo.conninfo_to_dict(server.dsn)["password"]
        assert str(secret) not in repr(server)
        for dsn in (server.dsn_for("postgres"), server.dsn_for("postgres", tcp=True)):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(dsn, password="wrong")
        assert str(secret).encode() not in all_command_lines()


def test_survives_a_crash_with_its_rows() -> None:
    with EmbeddedServer() as server:
        server.connect().execute("CREATE TABLE kept AS SELECT 7 AS seven")
        server.stop(immediate=True)
        server.start()
        assert server.connect().execute("SELECT seven FROM kept").fetchone() == (7,)


def test_dies_with_its_owner_even_by_kill_nine() -> None:
    script = (
        "import os, signal, sys\n"
        "from strongroom.postgres.embedded import EmbeddedServer\n"
        "server = EmbeddedServer(durable=False).__enter__()\n"
        "print(server.pid, server.directory, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    pid, directory = done.stdout.decode().split()
    wait_until_gone(int(pid))
    deadline = time.monotonic() + 10
    while os.path.exists(directory) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(directory)


def test_long_directories_get_a_short_socket(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = f"/tmp/strongroom-long-{os.getpid()}"
    deep = os.path.join(base, "d" * 90)
    os.makedirs(deep, mode=0o755)
    try:
        with EmbeddedServer(directory=os.path.join(deep, "server"), durable=False) as server:
            assert server.connect().execute("SELECT 1").fetchone() == (1,)
            socket_directory = server.socket_directory
            assert len(socket_directory) < 80
        assert not os.path.exists(socket_directory)
        assert os.listdir(deep) == []
    finally:
        os.rmdir(deep)
        os.rmdir(base)


def test_a_directory_with_something_in_it_is_refused(tmp_path: os.PathLike[str]) -> None:
    with open(os.path.join(tmp_path, "mine"), "w"):
        pass
    with pytest.raises(Refused, match="not empty"):
        EmbeddedServer(directory=os.fspath(tmp_path)).start()
    assert os.listdir(tmp_path) == ["mine"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands over to another account")
def test_programs_below_a_closed_directory_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    real = embedded._enterable
    installation = find_server(18)
    monkeypatch.setattr(
        embedded,
        "_enterable",
        lambda path, account: path != installation.bindir and real(path, account),
    )
    with EmbeddedServer(installation, durable=False) as server:
        assert server.connect().execute("SELECT 1").fetchone() == (1,)
        assert os.readlink(f"/proc/{server.pid}/exe").startswith(server.directory)


def test_a_version_that_is_not_there_is_named() -> None:
    with pytest.raises(NotFound, match="PostgreSQL 9 server"):
        find_server(9)
