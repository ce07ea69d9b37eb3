"""A ledger: transactions whose every fact is written down outside of the database as they end.

What a recovery to a target must show is computed from two accounts that are not ours: what the
server itself said of each transaction (its number, pg_xact_commit_timestamp), and the order of the
log as pg_waldump prints it. Then the state that was recovered is compared, exactly: a prefix of the
log, no transaction less and none more (reliability I7).

The rules of stopping are PostgreSQL's (recoveryStopsBefore, recoveryStopsAfter): to a time before
the first commit or abort later than it (exclusive: not earlier than it); to a position after
(exclusive: before) the first record that begins there or behind; to a transaction after (before)
its end; to a name behind its record; immediately before the first record behind the backup.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

import psycopg

from strongroom.format.wal import SegmentName
from strongroom.postgres.embedded import EmbeddedServer

from . import waldump
from .waldump import Line

SETTINGS = {
    "track_commit_timestamp": "on",
    "max_prepared_transactions": "8",
    "max_connections": "20",
    "max_worker_processes": "4",
    "synchronous_commit": "on",  # what was answered is in the log
    "full_page_writes": "on",
    "wal_level": "replica",
    "shared_buffers": "16MB",
    "min_wal_size": "32MB",
    "autovacuum": "off",
    "wal_keep_size": "2GB",  # so that pg_waldump finds all of it
}
SEGMENT = 1 << 20
_SCHEMA = """
CREATE TABLE ledger (id bigint PRIMARY KEY, worker int NOT NULL, touched bigint, what text);
CREATE TABLE chain (worker int PRIMARY KEY, count bigint NOT NULL, digest text NOT NULL);
INSERT INTO chain SELECT w, 0, '' FROM generate_series(0, 9) w;
"""
WORKERS = 3
_KINDS = (
    *("time", "lsn", "xid", "time", "lsn", "xid", "name", "time", "lsn", "xid", "latest"),
    *("time", "lsn", "xid", "immediate"),
)


@dataclass
class Entry:
    """One transaction of the ledger, as its worker knows it."""

    id: int
    worker: int
    xid: int
    ended: Literal["committed", "aborted"]
    touches: int | None = None
    time: datetime | None = None  # as the server says


@dataclass(frozen=True)
class Target:
    """Where to recover to."""

    kind: Literal["time", "lsn", "xid", "name", "immediate", "latest"]
    time: datetime | None = None
    lsn: int | None = None
    xid: int | None = None
    name: str | None = None
    exclusive: bool = False
    timeline: int = 1

    def __str__(self) -> str:
        value = next(one for one in (self.time, self.lsn, self.xid, self.name, "") if one != None)  # noqa: E711
        how = " exclusive" if self.exclusive else ""
        return f"{self.kind} {value}{how} on {self.timeline}"


@dataclass
class State:
    """What a database shows: rows of the ledger, and each worker's running prefix."""

    rows: dict[int, int | None] = field(default_factory=dict)
    chain: dict[int, tuple[int, str]] = field(default_factory=dict)


@dataclass
class Account:
    """The whole ledger as one timeline tells it: entries by transaction, and the log in its order."""

    timeline: int
    entries: dict[int, Entry]
    lines: tuple[Line, ...]
    names: tuple[str, ...]

    def prefix(self, target: Target) -> list[Entry]:
        """The committed entries up to a target, in the order of the log."""
        return [
            entry
            for line in self.lines[: self.stop(target)]
            if line.is_end and not line.aborted and (entry := self.entries.get(line.xid))
        ]

    def stop(self, target: Target) -> int:
        """How many records of the log are applied."""
        for number, line in enumerate(self.lines):
            if target.kind == "time" and line.is_end:
                assert target.time is not None
                if line.time > target.time or (target.exclusive and line.time == target.time):
                    return number
            if target.kind == "lsn" and target.lsn is not None and line.lsn >= target.lsn:
                return number + (not target.exclusive)
            if target.kind == "immediate" and target.lsn is not None and line.lsn >= target.lsn:
                return number
            if target.kind == "xid" and line.is_end and line.xid == target.xid:
                return number + (not target.exclusive)
            if target.kind == "name" and line.what == "RESTORE_POINT" and line.rest == target.name:
                return number + 1
        assert target.kind == "latest", f"the log ends before {target}"
        return len(self.lines)

    def expected(self, target: Target) -> State:
        """What the database must show."""
        state = State()
        for entry in self.prefix(target):
            state.rows[entry.id] = None
            if entry.touches is not None:
                state.rows[entry.touches] = entry.id
            count, digest = state.chain.get(entry.worker, (0, ""))
            digest = hashlib.md5(f"{digest}{entry.id}".encode()).hexdigest()
            state.chain[entry.worker] = (count + 1, digest)
        return state

    def targets(
        self, dice: random.Random, count: int, stops: Sequence[tuple[int, datetime]]
    ) -> list[Target]:
        """Random targets behind the first backup, all kinds in turn, half of them exclusive.

        `stops` are the positions and times where backups on the way to this timeline ended.
        """
        after, after_time = stops[0]
        lines = [line for line in self.lines if line.lsn >= after]
        ends = [line for line in lines if line.is_end]
        latest = max(line.time for line in ends)
        found: list[Target] = []
        while len(found) < count:
            kind = _KINDS[len(found) % len(_KINDS)]
            exclusive = dice.random() < 0.5
            line = dice.choice(ends[1:])
            if kind == "time":
                tick = timedelta(
                    microseconds=dice.choice([0, 0, 0, -1, 1, dice.randrange(-999, 999)])
                )
                time = line.time + tick
                if not after_time < time < latest:
                    continue
                found.append(Target("time", time=time, exclusive=exclusive, timeline=self.timeline))
            elif kind == "lsn":
                some = dice.choice([line, dice.choice(lines[1:-1])])
                lsn = some.lsn + dice.choice([0, 0, 0, -1, 1, 8])
                found.append(Target("lsn", lsn=lsn, exclusive=exclusive, timeline=self.timeline))
            elif kind == "xid":
                found.append(
                    Target("xid", xid=line.xid, exclusive=exclusive, timeline=self.timeline)
                )
            elif kind == "name":
                names = [one.rest for one in lines if one.what == "RESTORE_POINT"]
                names = [name for name in names if name in self.names]
                found.append(Target("name", name=dice.choice(names), timeline=self.timeline))
            elif kind == "immediate":
                lsn, _ = stops[-1]  # of the newest backup, which is what is meant
                found.append(Target("immediate", lsn=lsn, timeline=self.timeline))
            else:
                found.append(Target("latest", timeline=self.timeline))
        return found


class Ledger:
    """Writes the ledger into a server, from several connections at once."""

    def __init__(self, server: EmbeddedServer, seed: int, *, after: int = 0) -> None:
        self.server, self.seed = server, seed
        self.entries: list[Entry] = []
        self.names: list[str] = []
        self._next = after
        self._lock = threading.Lock()
        self._faults: list[BaseException] = []

    def open(self) -> None:
        with self.server.connect() as connection:
            connection.execute(_SCHEMA)

    def settle(self) -> None:
        """Roll back what a recovery left prepared: it holds locks that the workers would wait for."""
        with self.server.connect() as connection:
            for (name,) in connection.execute("SELECT gid FROM pg_prepared_xacts").fetchall():
                connection.execute(f"ROLLBACK PREPARED '{name}'")

    def work(self, transactions: int) -> None:
        """So many transactions of each worker, side by side."""
        threads = [
            threading.Thread(target=self._worker, args=(worker, transactions))
            for worker in range(WORKERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._faults:
            raise self._faults[0]

    def point(self, name: str) -> None:
        """Give the place a name."""
        with self.server.connect() as connection:
            connection.execute("SELECT pg_create_restore_point(%s)", (name,))
        self.names.append(name)

    def close(self) -> None:
        """Ask the server when each transaction was committed."""
        with self.server.connect() as connection:
            rows = connection.execute(
                "SELECT x::text::bigint, pg_xact_commit_timestamp(x) FROM unnest(%s::xid[]) x",
                ([str(entry.xid) for entry in self.entries if entry.ended == "committed"],),
            ).fetchall()
        times = dict(rows)
        for entry in self.entries:
            entry.time = times.get(entry.xid)

    def _number(self) -> int:
        with self._lock:
            self._next += 1
            return self._next

    def _worker(self, worker: int, transactions: int) -> None:
        dice = random.Random(f"{self.seed} {worker} {self._next}")
        mine = [
            entry.id
            for entry in self.entries
            if entry.worker == worker and entry.ended == "committed"
        ]
        try:
            with self.server.connect() as connection:
                for _ in range(transactions):
                    entry = self._one(connection, worker, dice, mine)
                    if entry.ended == "committed":
                        mine.append(entry.id)
                    with self._lock:
                        self.entries.append(entry)
        except BaseException as fault:
            self._faults.append(fault)

    def _one(
        self, connection: psycopg.Connection[Any], worker: int, dice: random.Random, mine: list[int]
    ) -> Entry:
        number = self._number()
        touches = dice.choice(mine) if mine and dice.random() < 0.3 else None
        run = connection.execute
        run("BEGIN")
        run(
            "INSERT INTO ledger VALUES (%s, %s, NULL, repeat(md5(%s::text), %s))",
            (number, worker, number, dice.choice([0, 1, 10, 100, 600])),
        )
        run(
            "UPDATE chain SET count = count + 1, digest = md5(digest || %s::text) WHERE worker = %s",
            (number, worker),
        )
        if touches is not None:
            run("UPDATE ledger SET touched = %s WHERE id = %s", (number, touches))
        for _ in range(dice.choice([0, 0, 0, 1, 3])):
            run("SAVEPOINT s")
            run("INSERT INTO ledger VALUES (%s, 0)", (-self._number(),))
            run("ROLLBACK TO s")
        for _ in range(dice.choice([0, 0, 0, 0, 70])):  # more than a backend keeps to itself
            run("SAVEPOINT s")
            run("UPDATE ledger SET worker = worker WHERE id = %s", (number,))
        if dice.random() < 0.05:
            run(f"CREATE TABLE made_{number} AS SELECT {number} AS id")
        row = run("SELECT pg_current_xact_id()::text::bigint").fetchone()
        assert row
        ended: Literal["committed", "aborted"] = "committed" if dice.random() < 0.8 else "aborted"
        if dice.random() < 0.15:
            run(f"PREPARE TRANSACTION 'p{number}'")
            end = "COMMIT PREPARED" if ended == "committed" else "ROLLBACK PREPARED"
            run(f"{end} 'p{number}'")
        else:
            run("COMMIT" if ended == "committed" else "ROLLBACK")
        return Entry(number, worker, int(row[0]), ended, touches if ended == "committed" else None)


def account(
    ledger: Ledger,
    directory: str,
    log: Sequence[tuple[int, str, str]],
    before: Account | None = None,
) -> Account:
    """Close the books. `log` is what recovery reads: (timeline, first segment, last segment) each."""
    major = ledger.server.installation.version[0]
    lines: list[Line] = []
    for timeline, first, last in log:
        names = [SegmentName.parse(one, SEGMENT) for one in (first, last)]
        # A timeline's first segment begins with a copy of what its parent had there.
        lines = [line for line in lines if line.lsn < names[0].start]
        lines += [
            line
            for line in waldump.dump(major, directory, names, f"--timeline={timeline}")
            if not lines or line.lsn > lines[-1].lsn
        ]
    mine = {entry.xid: entry for entry in ledger.entries}
    assert len(mine) == len(ledger.entries)
    by_xid = {line.xid: line for line in lines if line.is_end}
    for entry in ledger.entries:
        line = by_xid[entry.xid]
        assert line.aborted == (entry.ended == "aborted"), entry
        assert entry.ended == "aborted" or line.time == entry.time, entry
    entries = {**(before.entries if before else {}), **mine}
    names_ = (*(before.names if before else ()), *ledger.names)
    return Account(log[-1][0], entries, tuple(lines), names_)


def shown(dsn: str) -> State:
    """What a database shows."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = dict(connection.execute("SELECT id, touched FROM ledger").fetchall())
        chain = {
            worker: (count, digest)
            for worker, count, digest in connection.execute("SELECT * FROM chain").fetchall()
            if count
        }
        # The same by the index, which recovery must have brought to the same place.
        connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        ids = [row[0] for row in connection.execute("SELECT id FROM ledger ORDER BY id")]
    assert ids == sorted(rows)
    return State(rows, chain)


def assert_prefix(dsn: str, books: Account, target: Target) -> int:
    """The database shows exactly what was committed up to the target; how many transactions."""
    want, have = books.expected(target), shown(dsn)
    missing = sorted(want.rows.keys() - have.rows.keys())
    surplus = sorted(have.rows.keys() - want.rows.keys())
    assert not missing, f"{target}: transactions {missing[:9]} are missing"
    assert not surplus, f"{target}: transactions {surplus[:9]} should not be there"
    assert have == want, f"{target}: the rows are there, and not what they were"
    return len(want.rows)


def files_of_log(server: EmbeddedServer) -> list[str]:
    """The segments in pg_wal that the server has finished or is at, ascending."""
    with server.connect() as connection:
        row = connection.execute("SELECT pg_walfile_name(pg_current_wal_lsn())").fetchone()
    assert row
    names = os.listdir(os.path.join(server.data_directory, "pg_wal"))
    return sorted(name for name in names if len(name) == 24 and name <= row[0])
