"""Real servers archive into the repository and recover from it, while everything is killed.

Rule: what the server holds as archived (its .done files, its own log) is compared with what rests
in the repository, byte for byte, through `wal fetch`.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from postgres.wal.room import WalRoom, done, program, ready, until
from strongroom.postgres.embedded import EmbeddedServer

FILL = "INSERT INTO t SELECT g, repeat(md5(g::text), 30) FROM generate_series(1, 3000) g"


@contextlib.contextmanager
def writing(server: EmbeddedServer) -> Iterator[None]:
    """Write into the server from another thread, through its crashes, until the block ends."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            with contextlib.suppress(psycopg.Error), server.connect() as connection:
                while not stop.is_set():
                    connection.execute(FILL)
                    connection.execute("SELECT pg_switch_wal()")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def assert_archived(room: WalRoom, server: EmbeddedServer) -> int:
    """Everything that the server holds as archived is in the repository as it is in pg_wal."""
    names = [one for one in done(server) if len(one) == 24]
    assert names
    for name in names:
        room.fetch(server.data_directory, name, "fetched")
        mine = Path(server.data_directory, "pg_wal", name).read_bytes()
        place = Path(server.data_directory, "fetched")
        assert place.read_bytes() == mine, name
        place.unlink()
    return len(names)


def pushes() -> list[int]:
    """Processes of `wal push` that run now."""
    found = []
    for each in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            argv = Path("/proc", str(int(each)), "cmdline").read_bytes().split(b"\0")
            if b"push" in argv and b"wal" in argv:
                found.append(int(each))
    return found


@pytest.mark.parametrize(
    "major",
    [pytest.param(15, marks=pytest.mark.sweep), 16, pytest.param(18, marks=pytest.mark.sweep)],
)
def test_trap_28_nothing_is_lost_whatever_is_killed(room: WalRoom, major: int) -> None:
    """kill -9 of server, push and daemon at random moments; then every segment is there."""
    drawn = random.Random(major)
    daemon = room.daemon()
    with room.server(major) as server:
        with server.connect() as connection:
            connection.execute("CREATE TABLE t (a int, b text)")
        with writing(server):
            for round_ in range(3):
                time.sleep(drawn.uniform(0.2, 0.6))
                match round_:
                    case 0:
                        for pid in pushes():
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(pid, signal.SIGKILL)
                    case 1:
                        daemon.kill()
                        daemon.wait()
                        daemon = room.daemon()
                    case 2:
                        pid = server.pid
                        assert pid is not None
                        children = psutil.Process(pid).children(recursive=True)
                        os.kill(pid, signal.SIGKILL)
                        server.stop()
                        psutil.wait_procs(children, 30)  # they hold its shared memory
                        server.start()
        until(lambda: not ready(server), 120)
        assert assert_archived(room, server) >= 4
        with server.connect() as connection:
            connection.execute("CHECKPOINT")
    status, _, said = room.run("check", "--read-data", "--config", str(room.config))
    assert status == 0, said


# -- a store that goes away --------------------------------------------------------------------


@pytest.mark.sweep
def test_a_store_that_is_away_stops_nothing_for_good() -> None:
    """S3 down: every push fails, the server keeps its WAL; S3 back: all of it is archived."""
    server_of = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def store() -> object:
        running = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        running.start()
        return running

    running = store()
    endpoint = f"http://127.0.0.1:{port}"
    request = urllib.request.Request(f"{endpoint}/bucket", method="PUT")
    urllib.request.urlopen(request, timeout=30).close()
    secret = "env:MOTO"
    extra = (
        f'[repository.s3]\nendpoint = "{endpoint}"\nregion = "us-east-1"\n'
        f'access_key_id = "{secret}"\nsecret_access_key = "{secret}"\n'
    )
    room = WalRoom("s3://bucket/wal", extra)
    room.environ["MOTO"] = "moto"
    try:
        room.init()
        room.daemon()
        with room.server(16) as server:
            with server.connect() as connection:
                connection.execute("CREATE TABLE t (a int, b text)")
                connection.execute(FILL)
                connection.execute("SELECT pg_switch_wal()")
                until(lambda: len(done(server)) >= 1)
                running.stop()  # type: ignore[attr-defined]
                for _ in range(3):
                    connection.execute(FILL)
                    connection.execute("SELECT pg_switch_wal()")
                until(lambda: failed(connection) > 0, 240)
                waiting = ready(server)
                assert len(waiting) >= 3
                running = store()
                until(lambda: not ready(server), 240)
                assert set(waiting) <= set(done(server))
            assert_archived(room, server)
    finally:
        running.stop()  # type: ignore[attr-defined]
        room.close()


def failed(connection: psycopg.Connection[tuple[int]]) -> int:
    row = connection.execute("SELECT failed_count FROM pg_stat_archiver").fetchone()
    assert row is not None
    return row[0]


# -- recovery ----------------------------------------------------------------------------------


class Recovery:
    """A copy of a data directory that recovers from the archive, as its server's account."""

    def __init__(self, room: WalRoom, server: EmbeddedServer, copy: Path) -> None:
        self.room, self.server, self.copy = room, server, copy
        words = " ".join([program(), *room.words("fetch"), "%f", "%p"])
        with open(copy / "postgresql.auto.conf", "a") as file:
            file.write(f"restore_command = '{words}'\narchive_mode = 'off'\n")
            file.write(f"unix_socket_directories = '{room.root}'\n")
            file.write("recovery_target_timeline = 'latest'\n")
        (copy / "recovery.signal").touch()
        (copy / "postmaster.pid").unlink(missing_ok=True)
        own(room, copy)

    def start(self) -> subprocess.Popen[bytes]:
        account = self.room.account
        root = os.geteuid() == 0
        with open(self.room.root / "recovery.log", "ab") as log:
            process = subprocess.Popen(
                [os.path.join(self.server._bindir, "postgres"), "-D", str(self.copy)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.room.environ,
                user=account.uid if root else None,
                group=account.gid if root else None,
                extra_groups=[] if root else None,
            )
        self.room.started.append(process)
        return process

    @property
    def log(self) -> str:
        return (self.room.root / "recovery.log").read_text()

    def promoted(self) -> bool:
        return "archive recovery complete" in self.log


def own(room: WalRoom, folder: Path) -> None:
    for path, _, names in os.walk(folder):
        for each in [path, *(os.path.join(path, one) for one in names)]:
            os.chown(each, room.account.uid, room.account.gid, follow_symlinks=False)


def base(room: WalRoom, server: EmbeddedServer) -> Path:
    """A copy of the data directory as it is while the server is stopped; its log left out."""
    server.stop()
    copy = room.root / "copy"
    shutil.copytree(server.data_directory, copy, symlinks=True)
    shutil.rmtree(copy / "pg_wal")
    (copy / "pg_wal").mkdir(mode=0o700)
    server.start()
    return copy


@pytest.mark.parametrize("way", ["daemon", "direct"])
def test_trap_42_and_45_recovery_takes_all_and_stops_at_doubt(room: WalRoom, way: str) -> None:
    """Segments, a timeline's history, prefetch across them; a damaged one stops it for good."""
    if way == "daemon":
        room.daemon("--ahead", "4")
    with room.server(16) as server:
        with server.connect() as connection:
            connection.execute("CREATE TABLE t (a int, b text)")
        copy = base(room, server)
        with server.connect() as connection:
            for _ in range(4):
                connection.execute(FILL)
                connection.execute("SELECT pg_switch_wal()")
            connection.execute("INSERT INTO t VALUES (-1, 'the last')")
            connection.execute("SELECT pg_switch_wal()")
        until(lambda: not ready(server), 120)
        names = [one for one in done(server) if len(one) == 24]
        (stored,) = room.repository.glob(f"wal/*/00000001/{names[-2]}")
        whole = stored.read_bytes()
        damaged = bytearray(whole)
        damaged[-30] ^= 1
        stored.write_bytes(damaged)
        recovery = Recovery(room, server, copy)
        first = recovery.start()
        assert first.wait(120) != 0  # FATAL: it does not open the database without its last log
        assert "could not restore file" in recovery.log
        assert "is damaged" in recovery.log
        assert not recovery.promoted()
        stored.write_bytes(whole)
        recovery.start()
        until(recovery.promoted, 120)
        until(lambda: rows(room, server) == [(12_001,)], 30)
        seen = [one for one in os.listdir(copy / "pg_wal") if "strongroom" in one]
        assert seen == []


def rows(room: WalRoom, server: EmbeddedServer) -> list[tuple[int]]:
    """The rows of the copy."""
    dsn = psycopg.conninfo.make_conninfo(server.dsn, host=str(room.root))
    try:
        with psycopg.connect(dsn) as connection:
            return connection.execute("SELECT count(*) FROM t").fetchall()
    except psycopg.OperationalError:
        return []
