"""Recovery to random targets shows exactly the transactions up to there: none less, none more."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from postgres import waldump
from postgres.ledger import SEGMENT, Ledger, Target, assert_prefix, files_of_log
from postgres.ledger_room import LedgerRoom
from postgres.wal.room import WHERE, WalRoom, ready, until
from postgres.waldump import Line
from strongroom.errors import NotFound
from strongroom.format.wal import SegmentName
from strongroom.postgres.embedded import find_server
from strongroom.postgres.wal.records import scan_segment
from strongroom.repository.wal import WalStore

pytestmark = pytest.mark.xdist_group("ledger")
SEED = 20261126


def live(major: int, seed: int, transactions: int) -> Iterator[LedgerRoom]:
    """A cluster's life: work, two backups, names, a promotion in the middle, work and a backup."""
    try:
        installation = find_server(major)
    except NotFound:
        pytest.skip(f"no PostgreSQL {major} here: {WHERE[major]}")
    room = WalRoom()
    try:
        room.init()
        room.daemon()
        life = LedgerRoom(room, installation, seed)
        with life.server() as server:
            ledger = Ledger(server, seed)
            ledger.open()
            ledger.work(transactions // 4)
            life.back_up(server)
            ledger.work(transactions)
            ledger.point("a name")
            ledger.work(transactions)
            life.back_up(server)
            ledger.work(transactions)
            ledger.point("another name")
            ledger.work(transactions // 2)
            life.close(ledger, server, 1)
        # Somebody recovers to a moment of the past, and work goes on from there.
        (past,) = life.targets(random.Random(seed), 1, 1)
        with life.recovered(past, life.archiving()) as server:
            ledger = Ledger(server, seed, after=1_000_000)
            ledger.settle()
            ledger.work(transactions // 2)
            life.back_up(server)
            ledger.work(transactions // 2)
            ledger.point("a name of the second timeline")
            ledger.work(transactions // 4)
            life.close(ledger, server, 2)
        yield life
    finally:
        room.close()


@pytest.fixture(scope="module")
def life16() -> Iterator[LedgerRoom]:
    yield from live(16, SEED, 40)


def recover(life: LedgerRoom, dice: random.Random, count: int) -> None:
    """Recover to random targets on both timelines; each shows its prefix, and no other."""
    told = 0
    for timeline, share in ((1, count - count // 2), (2, count // 2)):
        books = life.books[timeline]
        for target in life.targets(dice, share, timeline):
            way = dice.choice([life.recovered, life.opened])
            with way(target) as server:
                assert_prefix(server.dsn, books, target)
                other = replace(target, exclusive=not target.exclusive)
                if books.prefix(other) != books.prefix(target):
                    told += 1
                    with pytest.raises(AssertionError):
                        assert_prefix(server.dsn, books, other)
    assert told or count < 20


def test_a_ledger_is_recovered_to_its_prefix(life16: LedgerRoom) -> None:
    recover(life16, random.Random(SEED), 4)


def test_the_index_of_the_log_knows_every_commit(life16: LedgerRoom) -> None:
    """As it was archived by many processes side by side, across the borders of segments too."""
    with life16.repository() as repository:
        listing = WalStore(repository).listing(life16.system_id)
    assert not listing.unread
    for timeline, books in life16.books.items():
        held = listing.timelines[timeline].segments
        assert held
        for file in held:
            name, facts = SegmentName.parse(file.name, SEGMENT), file.facts
            assert facts is not None
            own = timeline == 1 or name.start >= life16.forks[timeline]
            ends = [
                line for line in books.lines if line.is_end and name.start < line.end <= name.end
            ]
            if not own:  # begins with its parent's log; what a record there began is not known
                ends = [line for line in ends if line.lsn >= name.start]
            times = [line.time for line in ends if not line.aborted]
            assert (facts.commits, facts.aborts) == (len(times), len(ends) - len(times)), str(name)
            assert facts.last_commit == max(times, default=None)
            assert facts.last_end == max((line.time for line in ends), default=None)
            assert facts.whole


@pytest.fixture(scope="module")
def forked() -> Iterator[tuple[LedgerRoom, list[Line]]]:
    """A transaction that is prepared, three others, and a timeline that begins after the second."""
    room = WalRoom()
    try:
        room.init()
        room.daemon()
        life = LedgerRoom(room, find_server(16), SEED)
        with life.server() as server:
            with server.connect() as connection:
                connection.execute("CREATE TABLE t (a int)")
                life.back_up(server)
                connection.execute("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'open'")
                for number in (2, 3, 4):
                    connection.execute("INSERT INTO t VALUES (%s)", (number,))
                connection.execute("COMMIT PREPARED 'open'")
                connection.execute("SELECT pg_switch_wal()")
            until(lambda: not ready(server))
            wal = os.path.join(server.data_directory, "pg_wal")
            files = [SegmentName.parse(name, SEGMENT) for name in files_of_log(server)]
            lines = list(waldump.dump(16, wal, [files[0], files[-1]]))
            begins = next(n for n, line in enumerate(lines) if line.what == "PREPARE")
        ends = [line for line in lines[begins:] if line.is_end]
        with life.recovered(Target("xid", xid=ends[1].xid), life.archiving()) as server:
            with server.connect() as connection:
                connection.execute("INSERT INTO t VALUES (5)")
                connection.execute("SELECT pg_switch_wal()")
            until(lambda: not ready(server))
        yield life, ends
    finally:
        room.close()


@pytest.mark.parametrize(
    "kind",
    ["time", "lsn", *(pytest.param(one, marks=pytest.mark.sweep) for one in ("xid", "partial"))],
)
def test_a_prepared_transaction_just_before_a_fork(
    forked: tuple[LedgerRoom, list[Line]], kind: str
) -> None:
    """PostgreSQL would look for it in the file of the older timeline, and not start on the newer."""
    life, (first, second, *_) = forked
    target = Target("xid", xid=first.xid, timeline=2)
    if kind == "lsn":
        target = Target("lsn", lsn=second.lsn, exclusive=True, timeline=2)
    elif kind in {"time", "partial"}:
        target = Target("time", time=first.time, timeline=2)
    if kind == "partial":  # a primary that is lost leaves no more of its last segment
        name = str(SegmentName.holding(1, first.lsn, SEGMENT))
        with life.repository() as repository:
            store = WalStore(repository)
            data = store.get(life.system_id, name)
            facts = scan_segment(data, SegmentName.parse(name, SEGMENT))[0]
            store.put(life.system_id, name + ".partial", memoryview(data), facts=facts)
        (at_rest,) = life.room.repository.rglob(name)
        os.chown(f"{at_rest}.partial", at_rest.stat().st_uid, -1)
        at_rest.unlink()
    for way in (life.recovered, life.opened) if kind in {"time", "partial"} else (life.recovered,):
        with way(target) as server, server.connect() as connection:
            assert connection.execute("SELECT * FROM t").fetchall() == [(2,)]
            connection.execute("COMMIT PREPARED 'open'")


@pytest.mark.sweep
@pytest.mark.parametrize("major", [15, 16, 18])
def test_a_ledger_is_recovered_to_every_prefix(
    major: int, record_property: Callable[[str, object], None]
) -> None:
    """A new seed for each run, which a failure shows."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    for life in live(major, seed, 150):
        recover(life, random.Random(seed), 56)
    record_property("faults", (f"targets of recovery on {major}", 56))
