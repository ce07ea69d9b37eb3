"""A server that goes through everything that leaves a mark in its log, and the log that it archived.

In segments of 1 MiB, so that there are many borders: pgbench, prepared transactions, savepoints,
rows and records larger than segments, restore points, switches, a crash, a record whose end was
lost, and a promotion.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psycopg

from strongroom.format.wal import SegmentName, WalKind, kind_of
from strongroom.postgres.embedded import EmbeddedServer, find_server

POINTS = ["before the crash", "nach dem Ümzug", "x" * 63]


@dataclass
class Recorded:
    """The archive of a server that is gone."""

    major: int
    directory: str  # as archived, in a directory for pg_waldump
    size: int
    system_id: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    said: dict[str, int] = field(default_factory=dict)  # what the server said: name to position
    names: dict[int, str] = field(default_factory=dict)  # position to pg_walfile_name

    def segments(self, timeline: int) -> list[SegmentName]:
        found = [
            SegmentName.parse(name, self.size)
            for name in self.files
            if kind_of(name) is WalKind.SEGMENT
        ]
        return sorted(one for one in found if one.timeline == timeline)


class Recorder:
    """Drives a server whose archive is a directory."""

    def __init__(self, major: int, size: int) -> None:
        self.size = size
        self.server = EmbeddedServer(
            find_server(major),
            durable=False,
            settings={
                "archive_mode": "on",
                "synchronous_commit": "on",  # what is committed is written before a crash
                "full_page_writes": "on",
                "wal_level": "replica",
                "max_prepared_transactions": "5",
                "shared_buffers": "16MB",
                "min_wal_size": f"{max(2 * size >> 20, 32)}MB",
                "max_wal_size": "1GB",
                "autovacuum": "off",
                "track_commit_timestamp": "on",
            },
            initdb=[f"--wal-segsize={size >> 20}"],
        )
        self.archive = os.path.join(self.server.directory, "archive")
        self.own(self.archive, os.mkdir)
        self.server._settings["archive_command"] = (
            f"cp %p {self.archive}/%f.new && mv {self.archive}/%f.new {self.archive}/%f"
        )

    def own(self, path: str, make: Callable[[str], object]) -> None:
        """Make something that belongs to the server."""
        make(path)
        account = self.server._account
        os.chown(path, account.uid, account.gid)

    def run(self, *statements: str) -> None:
        with self.server.connect() as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def ask(self, question: str) -> str:
        with self.server.connect() as connection:
            row = connection.execute(question.encode()).fetchone()
        assert row
        return str(row[0])

    def pgbench(self, *arguments: str) -> None:
        program = os.path.join(self.server._bindir, "pgbench")
        done = subprocess.run(
            [program, *arguments, self.server.dsn], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def position(self) -> int:
        return int(self.ask("SELECT pg_current_wal_lsn() - '0/0'"))

    def archived(self) -> None:
        """Close the segment, and wait until it is in the archive."""
        # A switch of an empty segment is none, and what its name is changed in version 17.
        name = self.ask(
            "SELECT pg_walfile_name(pg_logical_emit_message(false, 'not', 'empty')), pg_switch_wal()"
        )
        self.wait(lambda: os.path.exists(os.path.join(self.archive, name)))

    def wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not done():
            assert time.monotonic() < deadline, "the server did not come to it"
            time.sleep(0.05)

    def crash(self, *, lose: bool = False) -> None:
        """Kill the server and start it again; `lose` what was written last, as if it never came."""
        current = self.ask("SELECT pg_walfile_name(pg_current_wal_lsn())")
        self.server.stop(immediate=True)
        if lose:
            os.unlink(os.path.join(self.server.data_directory, "pg_wal", current))
        self.server.start()

    def promote(self) -> None:
        """Recover to the end of the log, as after a restore, onto a new timeline."""
        self.server.stop()
        data = self.server.data_directory
        with open(os.path.join(data, "postgresql.auto.conf"), "a", encoding="utf-8") as file:
            file.write(f"restore_command = 'cp {self.archive}/%f %p'\n")
        self.own(os.path.join(data, "recovery.signal"), lambda path: open(path, "x").close())
        self.server.start()
        self.wait(lambda: self.ask("SELECT pg_is_in_recovery()") == "False")

    def taken(self, directory: str) -> Recorded:
        """Stop, and copy what was archived."""
        system_id = int(self.ask("SELECT system_identifier FROM pg_control_system()"))
        self.server.stop()
        shutil.copytree(self.archive, directory)
        recorded = Recorded(self.server.installation.version[0], directory, self.size, system_id)
        for name in sorted(os.listdir(directory)):
            with open(os.path.join(directory, name), "rb") as file:
                recorded.files[name] = file.read()
        return recorded


@contextlib.contextmanager
def recorder(major: int, size: int) -> Iterator[Recorder]:
    made = Recorder(major, size)
    try:
        made.server.start()
        yield made
    finally:
        made.server.close()


def transactions(made: Recorder) -> None:
    """Every way in which a transaction may end."""
    made.run(
        "CREATE TABLE t (id serial PRIMARY KEY, what text)",
        "INSERT INTO t (what) SELECT repeat('x', 50) FROM generate_series(1, 500)",
        "BEGIN; INSERT INTO t (what) VALUES ('gone'); ROLLBACK",
        "BEGIN; SAVEPOINT a; INSERT INTO t (what) VALUES ('a'); SAVEPOINT b;"
        "INSERT INTO t (what) VALUES ('b'); ROLLBACK TO b; INSERT INTO t (what) VALUES ('c'); COMMIT",
        "BEGIN; INSERT INTO t (what) VALUES ('p'); SAVEPOINT a; INSERT INTO t (what) VALUES ('q');"
        "CREATE TABLE gone_with_it (a int); PREPARE TRANSACTION 'one'",
        "BEGIN; INSERT INTO t (what) VALUES ('r'); CREATE TABLE never (a int);"
        "PREPARE TRANSACTION 'two'",
        "COMMIT PREPARED 'one'",
        "ROLLBACK PREPARED 'two'",
        # Statistics of a table that is dropped stand in the commit record from version 15 on.
        "BEGIN; SELECT count(*) FROM gone_with_it; DROP TABLE gone_with_it;"
        "PREPARE TRANSACTION 'three'",
        "COMMIT PREPARED 'three'",
        "BEGIN; CREATE TABLE aborted (a text); INSERT INTO aborted VALUES ('x'); ROLLBACK",
    )
    many = "".join(
        f"SAVEPOINT s{i}; INSERT INTO t (what) VALUES (repeat('{i}', 900));" for i in range(150)
    )
    made.run(f"BEGIN; {many} COMMIT", f"BEGIN; {many} ROLLBACK")


def everything(major: int, directory: str) -> Recorded:
    """A whole life in small segments."""
    with recorder(major, 1 << 20) as made:
        said: dict[str, int] = {}
        made.pgbench("-i", "-s", "1", "-q")
        made.pgbench("-c", "3", "-t", "100", "-n")
        transactions(made)
        made.run(
            "CREATE TABLE large (what text); ALTER TABLE large ALTER what SET STORAGE EXTERNAL",
            "BEGIN; INSERT INTO large SELECT repeat(md5(i::text), 100000) FROM generate_series(1, 2) i;"
            "COMMIT",
            # One record that goes through several segments, and one that belongs to nobody.
            "SELECT pg_logical_emit_message(true, 'large', repeat('y', 2700000))",
            "SELECT pg_logical_emit_message(false, 'nobody''s', repeat('z', 1500000))",
        )
        said[POINTS[0]] = _point(made, POINTS[0])
        outside = os.path.join(made.server.directory, "out, side")
        made.own(outside, os.mkdir)
        made.run(f"CREATE TABLESPACE outside LOCATION '{outside}'", "DROP TABLESPACE outside")
        made.run("CHECKPOINT")
        _run_into_a_crash(made)
        said[POINTS[1]] = _point(made, POINTS[1])
        made.archived()
        made.archived()
        made.run("SELECT pg_logical_emit_message(true, 'lost', repeat('l', 2500000))")
        made.crash(lose=True)
        made.pgbench("-c", "2", "-t", "50", "-n")
        positions = [made.position() for _ in range(2)]
        names = {at: made.ask(f"SELECT pg_walfile_name('0/0'::pg_lsn + {at})") for at in positions}
        made.promote()
        made.pgbench("-c", "2", "-t", "50", "-n")
        said[POINTS[2]] = _point(made, POINTS[2])
        transactions_after = "BEGIN; INSERT INTO large VALUES (repeat('n', 1500000)); COMMIT"
        made.run(transactions_after)
        made.archived()
        recorded = made.taken(directory)
        recorded.said, recorded.names = said, names
        return recorded


def _point(made: Recorder, name: str) -> int:
    return int(made.ask(f"SELECT pg_create_restore_point('{name}') - '0/0'"))


def _run_into_a_crash(made: Recorder) -> None:
    with made.server.connect() as connection:
        connection.execute(
            "BEGIN; INSERT INTO t (what) SELECT 'never' FROM generate_series(1, 900)"
        )
        made.run("INSERT INTO t (what) VALUES ('beside it')")
        made.crash()
        with contextlib.suppress(psycopg.Error):
            connection.execute("SELECT 1")
