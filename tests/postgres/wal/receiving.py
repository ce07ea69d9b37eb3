"""Receivers as processes that can be killed, and servers with small segments to receive from.

Rule: a receiver here is the one that `strongroom wal receive` runs, on a repository in a folder; only
the command line around it is left out, because starting it takes longer than all that it does.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import traceback
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from postgres.wal.room import WHERE, until
from rooms import found, open_room
from strongroom.errors import NotFound, ObjectMissing, StrongroomError
from strongroom.format.wal import SegmentName, WalKind, kind_of, parse_lsn
from strongroom.postgres.embedded import EmbeddedServer, Installation, find_server
from strongroom.postgres.server import Conninfo
from strongroom.postgres.wal.receive import Received, Receiver, Wanted
from strongroom.postgres.wal.records import commits
from strongroom.postgres.wal.spool import Spool
from strongroom.progress import Silent
from strongroom.repository.wal import WalListing, WalStore
from strongroom.storage.base import Storage
from strongroom.storage.local import LocalStorage

MIB = 1 << 20
SLOT = "strongroom_db"
SETTINGS = {
    "archive_mode": "off",
    "synchronous_commit": "on",
    "shared_buffers": "16MB",
    "max_wal_size": "1GB",
    "wal_keep_size": "1GB",  # so that what was received can be compared with what was written
    "wal_recycle": "off",
    "autovacuum": "off",
    "restore_command": "false",
    "log_line_prefix": "",
}
FILL = "INSERT INTO t SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, 400) g"
_PROCESSES = multiprocessing.get_context("forkserver")


@contextlib.contextmanager
def primary(major: int = 16, **settings: str) -> Iterator[EmbeddedServer]:
    """A server with segments of 1 MiB and a table t."""
    try:
        installation = find_server(major)
    except NotFound:
        pytest.skip(f"no PostgreSQL {major} here: {WHERE[major]}")
    with EmbeddedServer(
        installation,
        durable=False,
        settings={**SETTINGS, **settings},
        initdb=["--wal-segsize=1"],
    ) as server:
        with server.connect() as connection:
            connection.execute("SET synchronous_commit = local")
            connection.execute("CREATE TABLE t (a int, b text)")
        yield server


class Copy(EmbeddedServer):
    """Another server on a copy of one that is stopped."""

    def __init__(self, original: EmbeddedServer, signal: str = "", **settings: str) -> None:
        super().__init__(
            Installation(original.installation.version, original._bindir),
            durable=False,
            settings={**original._settings, **settings},
        )
        self._password = original._password
        shutil.copytree(original.data_directory, self.data_directory, symlinks=True)
        if signal:
            Path(self.data_directory, signal).touch()
        self._give(self.data_directory)
        self._configure()
        self._initialised = True


def new_timeline(server: EmbeddedServer) -> None:
    """Stop a server, and let it end a recovery: it goes on on a new timeline."""
    server.stop()
    path = Path(server.data_directory, "recovery.signal")
    path.touch()
    os.chown(path, server._account.uid, server._account.gid)
    server.start()
    until(lambda: one(server, "SELECT NOT pg_is_in_recovery()"))


def crash(server: EmbeddedServer) -> None:
    """kill -9 of all its processes at once."""
    pid = server.pid
    assert pid is not None
    children = psutil.Process(pid).children(recursive=True)
    for process in (pid, *(each.pid for each in children)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    psutil.wait_procs(children, 30)
    server.stop()


def one(server: EmbeddedServer, query: str) -> Any:
    with server.connect() as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def run(server: EmbeddedServer, *statements: str) -> None:
    with server.connect() as connection:
        for each in statements:
            connection.execute(each.encode())


def position(server: EmbeddedServer) -> int:
    return parse_lsn(one(server, "SELECT pg_current_wal_flush_lsn()::text"))


def written(server: EmbeddedServer) -> list[str]:
    """Whole segments of its timeline in pg_wal, before the one that it writes."""
    now = one(server, "SELECT pg_walfile_name(pg_current_wal_lsn())")
    names = os.listdir(os.path.join(server.data_directory, "pg_wal"))
    return sorted(each for each in names if len(each) == 24 and each < now and each[:8] == now[:8])


@contextlib.contextmanager
def writing(server: EmbeddedServer, pause: float = 0.0) -> Iterator[list[int]]:
    """Write from another thread, through everything, until the block ends; the transactions whose
    commit was confirmed. Where nothing is waited for, a pause keeps the log short."""
    stop, confirmed = threading.Event(), list[int]()

    def work() -> None:
        while not stop.wait(0.01):
            with contextlib.suppress(psycopg.Error), server.connect() as connection:
                while not stop.wait(pause):
                    row = connection.execute(
                        f"{FILL} RETURNING pg_current_xact_id()::text"
                    ).fetchone()
                    assert row is not None
                    confirmed.append(int(row[0]))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield confirmed
    finally:
        stop.set()
        thread.join(60)


@dataclass
class Place:
    """A repository in a folder and a spool beside it."""

    root: Path

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def told(self) -> Path:
        return self.root / "told"

    def store(self) -> WalStore:
        return WalStore(open_room(LocalStorage(str(self.root / "repository")), uuid.uuid4().hex))

    @cached_property
    def reading(self) -> tuple[WalStore, int]:
        store = self.store()
        (system,) = store.systems("db")
        return store, system

    def listing(self) -> WalListing:
        store, system = self.reading
        return store.listing(system)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What receivers told, one after the other."""
        if not self.told.exists():
            return []
        lines = self.told.read_text().splitlines()
        return [each for each in map(json.loads, lines) if each["kind"] == kind]

    def start(self, *servers: EmbeddedServer, **wanted: Any) -> Running:
        """Start a receiver and wait until a server streams to it."""
        before = len(self.events("connected"))
        running = Running(self, dsn_of(*servers), wanted)
        until(lambda: len(self.events("connected")) > before or not running.alive)
        assert running.alive, self.told.read_text()
        return running

    def finish(self, *servers: EmbeddedServer, status: int = 0, **wanted: Any) -> None:
        """Receive up to where the server is, until all of it is in the repository."""
        end = position(servers[0]) if "stop_at" not in wanted else wanted.pop("stop_at")
        running = Running(self, dsn_of(*servers), {"stop_at": end, **wanted})
        assert running.wait() == status, self.told.read_text()

    def drain(self, *servers: EmbeddedServer) -> None:
        """What a receiver does when there is no server any more: all of the spool is put."""
        running = Running(self, dsn_of(*servers), {})
        assert running.wait() == 7, self.told.read_text()

    def segment(self, name: str) -> bytes:
        """A segment, or the beginning of it that is there."""
        store, system = self.reading
        try:
            return store.get(system, name)
        except ObjectMissing:
            return store.get_begun(system, name)

    def transactions(self) -> set[int]:
        """Those that committed, as the log in the repository tells."""
        listing = self.listing()
        found: set[int] = set()
        for timeline in listing.timelines.values():
            names = sorted({each.name for each in (*timeline.segments, *timeline.begun)})
            read = [
                (SegmentName.parse(name, MIB), self.segment(name).ljust(MIB, b"\0"))
                for name in names
            ]
            found |= {commit.xid for commit in commits(read)}
        return found

    def assert_is(self, server: EmbeddedServer) -> int:
        """What is in the repository is what the server wrote, byte for byte; how many segments."""
        first = self.first(server)
        names = [each for each in written(server) if each >= first]
        assert names
        for name in names:
            assert self.segment(name) == Path(server.data_directory, "pg_wal", name).read_bytes()
        return len(names)

    def first(self, server: EmbeddedServer) -> str:
        """The first segment that is in the repository, by the name of the server's timeline."""
        timeline = int(one(server, "SELECT pg_walfile_name(pg_current_wal_lsn())")[:8], 16)
        held = self.listing().timelines[timeline]
        forks = held.history or ()
        begun = SegmentName.holding(timeline, forks[-1].lsn, MIB) if forks else None
        return str(begun) if begun else held.segments[0].name


def dsn_of(*servers: EmbeddedServer) -> str:
    """One dsn of several servers."""
    from psycopg.conninfo import conninfo_to_dict, make_conninfo  # noqa: PLC0415

    parts = [conninfo_to_dict(server.dsn) for server in servers]
    hosts = {key: ",".join(str(each[key]) for each in parts) for key in ("host", "port")}
    return make_conninfo("", **{**parts[0], **hosts})


class Running:
    """A receiver in a process of its own."""

    def __init__(self, place: Place, dsn: str, wanted: Mapping[str, Any]) -> None:
        self._process = _PROCESSES.Process(
            target=_receive, args=(Place(place.root), dsn, dict(wanted))
        )
        self._process.start()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def stop(self) -> int:
        """SIGTERM; the status that it ends with."""
        self._process.terminate()
        return self.wait()

    def wait(self) -> int:
        self._process.join(90)
        code = self._process.exitcode
        assert code is not None, "it does not end"
        return code


def _receive(place: Place, dsn: str, wanted: dict[str, Any]) -> None:
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())

    def tell(kind: str, text: str, **facts: object) -> None:
        with place.told.open("a") as file:
            file.write(json.dumps({"kind": kind, "text": text, **facts}) + "\n")

    status = 0
    try:
        receive(place.store(), place.spool, dsn, wanted, tell, asked)
    except StrongroomError as fault:
        tell("error", fault.what, code=fault.code, do=fault.do)
        status = fault.exit_status
    except BaseException:
        tell("error", traceback.format_exc())
        status = 99
    os._exit(status)


def receive(
    store: WalStore,
    spool: Path,
    dsn: str,
    wanted: Mapping[str, Any],
    tell: Any,
    asked: threading.Event,
) -> Received:
    """Receive in this process."""
    with contextlib.closing(Spool(str(spool))) as held:
        how = replace(Wanted(SLOT, create_slot=True, every=0.2), **wanted)
        return Receiver(
            "db",
            Conninfo.parse(dsn),
            store,
            held,
            how,
            tell=tell,
            progress=Silent(),
            stop=asked.is_set,
        ).run()


@contextlib.contextmanager
def new_place() -> Iterator[Place]:
    root = Path(tempfile.mkdtemp(prefix="sr-receive-", dir="/tmp"))
    try:
        found(LocalStorage(str(root / "repository")))
        yield Place(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def is_segment(name: str) -> bool:
    try:
        return kind_of(name) is WalKind.SEGMENT
    except ValueError:
        return False


__all__ = ["Copy", "Place", "Running", "Storage", "new_place", "primary", "receive"]
