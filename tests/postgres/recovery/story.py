"""A cluster with a ledger of its own commits, backed up while it worked, and its whole log."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from postgres.physical.tools import Room, cluster
from strongroom.format.wal import parse_lsn
from strongroom.operations.back_up import Report
from strongroom.postgres.embedded import EmbeddedServer, service_account
from strongroom.postgres.physical.facts import PhysicalFacts
from strongroom.postgres.recovery.settings import Recovery
from strongroom.postgres.recovery.sink import PhysicalSink
from strongroom.postgres.sandbox import Sandbox
from strongroom.progress import Silent


@dataclass(frozen=True)
class Commit:
    """A row of the ledger: its transaction, when and where that ended."""

    number: int
    xid: int
    time: datetime
    lsn: int  # the end of its record


class Story:
    """Ledger rows 1 to 10, a backup, rows 11 to 20, a restore point, rows 21 to 30, a last row."""

    def __init__(self, major: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sr-story-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.space = self.folder / "space with %f and spaces"
        wal = self.folder / "wal"
        wal.mkdir()
        account = service_account()
        for path in (wal, self.folder):
            os.chown(path, account.uid, account.gid)
        self.space.mkdir(mode=0o700)
        os.chown(self.space, account.uid, account.gid)
        self.server: EmbeddedServer = cluster(
            major,
            archive_mode="on",
            archive_command=f'test -f "{wal}/%f" || (cp %p "{wal}/.%f" && mv "{wal}/.%f" "{wal}/%f")',
            track_commit_timestamp="on",
            max_prepared_transactions="3",
        )
        self.server.start()
        self.commits: list[Commit] = []
        self._tell()

    def _tell(self) -> None:
        with self.server.connect() as connection:
            connection.execute(f"CREATE TABLESPACE aside LOCATION '{self.space}'")
            connection.execute("CREATE TABLE ledger (n int PRIMARY KEY)")
            connection.execute("CREATE TABLE far (n int) TABLESPACE aside")
            connection.execute("INSERT INTO far SELECT generate_series(1, 5000)")
            connection.execute("CREATE UNLOGGED TABLE gone AS SELECT 1 AS n")
        self._rows(10)
        self.room = Room(self.server, self.folder)
        self.report: Report
        self.report, self.facts = self.room.take()
        self._rows(10)
        with self.server.connect() as connection:
            connection.execute("SELECT pg_create_restore_point('half-way')")
        self._rows(11)
        with self.server.connect() as connection:
            row = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
        assert row is not None
        self.last = self.room.archive.folder / row[0]
        for _ in range(2400):
            if self.last.exists() and self.last.stat().st_size == 16 << 20:
                return
            time.sleep(0.05)
        raise AssertionError("the log is not archived")

    def _rows(self, count: int) -> None:
        with self.server.connect() as connection:
            for _ in range(count):
                row = connection.execute(
                    "INSERT INTO ledger SELECT count(*) + 1 FROM ledger"
                    " RETURNING n, pg_current_xact_id()::text::int"
                ).fetchone()
                assert row is not None
                facts = connection.execute(
                    "SELECT pg_xact_commit_timestamp(%s::text::xid), pg_current_wal_insert_lsn()",
                    (row[1],),
                ).fetchone()
                assert facts is not None
                self.commits.append(Commit(row[0], row[1], facts[0], parse_lsn(facts[1])))

    def fetch(self, name: str) -> bytes | None:
        """A file of the log, as a sandbox asks for it."""
        try:
            return (self.room.archive.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def close(self) -> None:
        self.server.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def sandbox(self) -> Sandbox:
        """One to be entered: it starts by `recover`."""
        made = Sandbox(self.server.installation.version[0], self.fetch)
        spaces = {}
        for space in self.facts.tablespaces:
            spaces[space.location] = os.fsencode(os.path.join(made.directory, "space"))
        sink = PhysicalSink(os.fsencode(made.data_directory), spaces=spaces, owner=made.owner)
        sink.restore(self.room.reader(self.report), progress=Silent())
        return made

    def ledger_at(self, recovery: Recovery) -> list[int]:
        """What the ledger holds when recovery has come to its end."""
        sandbox = self.sandbox()
        try:
            sandbox.recover(recovery, progress=Silent())
            with sandbox.connect() as connection:
                assert connection.execute("SELECT count(*) FROM far").fetchone() == (5000,)
                assert connection.execute("SHOW archive_mode").fetchone() == ("off",)
                rows = connection.execute("SELECT n FROM ledger ORDER BY n").fetchall()
            return [n for (n,) in rows]
        finally:
            sandbox.close()


def facts_of(report: Report, room: Room) -> PhysicalFacts:
    return PhysicalFacts.from_json(room.reader(report).facts)


Make = Callable[[int], Story]
