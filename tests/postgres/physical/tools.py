"""Clusters to back up, snapshots written out again, and servers started on them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import rooms
from strongroom.format.tree import Entry, Kind
from strongroom.operations.back_up import Report, back_up
from strongroom.postgres.embedded import EmbeddedServer, Installation, find_server, service_account
from strongroom.postgres.physical.facts import PhysicalFacts
from strongroom.postgres.physical.local import LocalSource
from strongroom.progress import Progress, Silent
from strongroom.repository.reader import SnapshotReader
from strongroom.repository.repository import Repository
from strongroom.storage.memory import MemoryStorage

SETTINGS = {
    "shared_buffers": "16MB",
    "max_connections": "15",
    "max_wal_senders": "5",
    "autovacuum": "off",
    "wal_level": "replica",
    "max_prepared_transactions": "5",
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
}


def cluster(major: int, *initdb: str, **settings: str) -> EmbeddedServer:
    """A cluster with checksums, to be entered."""
    return EmbeddedServer(
        find_server(major),
        tcp=True,
        durable=False,
        settings=SETTINGS | {"full_page_writes": "on"} | settings,
        initdb=["--data-checksums", *initdb],
    )


class FolderArchive:
    """Archived WAL as files of a folder: what restore_command copies from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.puts: list[str] = []

    def expect(self, system_id: int) -> None:
        pass

    def take(self, data_directory: bytes, name: str) -> None:
        data = Path(os.fsdecode(data_directory), "pg_wal", name).read_bytes()
        path = self.folder / name
        if path.exists():
            assert path.read_bytes() == data
        path.write_bytes(data)
        path.chmod(0o644)
        self.puts.append(name)

    def has(self, system_id: int, name: str) -> bool:
        del system_id
        return (self.folder / name).exists()


class Room:
    """A repository in memory, and the source of one cluster with its cache and archive."""

    def __init__(self, server: EmbeddedServer, folder: Path, **how: Any) -> None:
        self.server = server
        self.repository: Repository = rooms.new_room(MemoryStorage(), settings=rooms.QUIET)
        self.archive = FolderArchive(folder / "wal")
        self.cache = folder / "cache"
        self.how = how

    def source(self, **how: Any) -> LocalSource:
        given: dict[str, Any] = {
            "jobs": 2,
            "cache_dir": os.fsencode(self.cache),
            "repository": "room",
            "archive": self.archive,
        }
        return LocalSource("db", self.server.dsn, **given | self.how | how)

    def take(
        self, source: LocalSource | None = None, progress: Progress | None = None
    ) -> tuple[Report, PhysicalFacts]:
        source = source or self.source()
        report = back_up(self.repository, source, progress=progress or Silent())
        return report, PhysicalFacts.from_json(self.reader(report).facts)

    def reader(self, report: Report) -> SnapshotReader:
        return self.repository.open_snapshot(report.snapshot)


def entries(reader: SnapshotReader) -> dict[bytes, Entry]:
    return {entry.path: entry for entry in reader.entries()}


def content(reader: SnapshotReader, path: bytes) -> bytes:
    entry = reader.find(path)
    assert entry is not None, path
    return b"".join(bytes(piece) for piece in reader.stream(entry))


def write_out(reader: SnapshotReader, target: bytes, spaces: Mapping[str, bytes]) -> None:
    """Write a snapshot's cluster into `target`, each tablespace where `spaces` says."""
    account = service_account()
    for entry in reader.entries():
        top, _, rest = entry.path.partition(b"/")
        if top == b"data":
            path = os.path.join(target, rest) if rest else target
        elif top == b"tablespaces" and rest:
            oid, _, below = rest.partition(b"/")
            path = os.path.join(spaces[oid.decode()], below)
        else:
            continue
        if entry.kind is Kind.DIRECTORY:
            os.makedirs(path, exist_ok=True)
        else:
            with open(path, "wb") as file:
                for piece in reader.stream(entry):
                    file.write(piece)
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
        os.chmod(path, entry.mode)
        os.chown(path, account.uid, account.gid)
    for oid, location in spaces.items():
        os.symlink(location, os.path.join(target, b"pg_tblspc", oid.encode()))


class Restored(EmbeddedServer):
    """A server on a snapshot that was written out, to be entered; recovers with `archive`.

    Tablespaces go below its own directory: the original's locations may be on this machine. As a
    `standby` it follows the original, and does not end recovery by itself.
    """

    def __init__(
        self,
        original: EmbeddedServer,
        reader: SnapshotReader,
        archive: FolderArchive,
        *,
        standby: bool = False,
    ) -> None:
        following = {"primary_conninfo": original.dsn_for("postgres", tcp=True)}
        super().__init__(
            # Where the original's account can reach it already: not another copy of the programs.
            Installation(original.installation.version, original._bindir),
            durable=False,
            tcp=True,
            settings=(following if standby else {})
            | {
                "archive_mode": "off",
                "restore_command": f"cp {archive.folder}/%f %p",
                "recovery_target_timeline": "latest",
            },
        )
        self._password = original._password
        self.facts = PhysicalFacts.from_json(reader.facts)
        spaces = {}
        for space in self.facts.tablespaces:
            location = os.fsencode(os.path.join(self.directory, f"space-{space.oid}"))
            os.mkdir(location, 0o700)
            os.chown(location, service_account().uid, service_account().gid)
            spaces[space.oid] = location
        write_out(reader, os.fsencode(self.data_directory), spaces)
        self.verify()
        if spaces:
            lines = [b"%s %s\n" % (oid.encode(), where) for oid, where in spaces.items()]
            Path(self.data_directory, "tablespace_map").write_bytes(b"".join(lines))
        signal = "standby.signal" if standby else "recovery.signal"
        Path(self.data_directory, signal).touch()
        self._configure()
        self._initialised = True

    def program(self, name: str, *words: str) -> str:
        """Run one of PostgreSQL's programs of this version to a good end; what it said."""
        path = os.path.join(self.installation.bindir, name)
        if not os.access(path, os.X_OK):
            path = os.path.join(find_server(self.installation.version[0]).bindir, name)
        done = subprocess.run([path, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def verify(self) -> None:
        """PostgreSQL's own judgement of the files."""
        self.program("pg_verifybackup", "--no-parse-wal", self.data_directory)

    def wait_until_writable(self) -> None:
        with self.connect() as connection:
            for _ in range(600):
                row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
                if row == (False,):
                    return
                connection.execute("SELECT pg_sleep(0.05)")
        raise AssertionError("recovery does not end")

    def check_pages(self) -> None:
        """Stop, and let PostgreSQL look at every checksum."""
        self.stop()
        self.program("pg_checksums", "--check", "--pgdata", self.data_directory)


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


class At(Silent):
    """Progress that does something once, when a phase begins."""

    def __init__(self, phase: str, do: Callable[[], object]) -> None:
        self._phase, self._do = phase, do
        self.done = False

    def phase(self, name: str) -> None:
        if name == self._phase and not self.done:
            self.done = True
            self._do()


ROWS = "SELECT n, md5(n::text) AS text FROM generate_series(1, 20000) n"


def run(server: EmbeddedServer, *statements: str) -> Any:
    """Run statements; the first row of the last, if it has any."""
    with server.connect() as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchone() if cursor.description else None


def with_rows(server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """The server with a table "rows" and its index."""
    run(server, "DROP TABLE IF EXISTS rows", f"CREATE TABLE rows AS {ROWS}")
    run(server, "CREATE INDEX ON rows (text)", "VACUUM rows", "CHECKPOINT")
    yield server
    run(server, "DROP TABLE rows")
