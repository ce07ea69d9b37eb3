"""Recovery to random targets shows exactly the transactions up to there: none less, none more."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from postgres.ledger import Ledger, assert_prefix
from postgres.ledger_room import LedgerRoom
from postgres.wal.room import WHERE, WalRoom
from strongroom.errors import NotFound
from strongroom.postgres.embedded import find_server

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
        yield life
    finally:
        room.close()


@pytest.fixture(scope="module")
def life16() -> Iterator[LedgerRoom]:
    yield from live(16, SEED, 60)


def recover(life: LedgerRoom, dice: random.Random, count: int) -> int:
    seen = set()
    for target in life.targets(dice, count, 1):
        with life.recovered(target) as server:
            seen.add(assert_prefix(server.dsn, life.books[1], target))
    return len(seen)


def test_a_ledger_is_recovered_to_its_prefix(life16: LedgerRoom) -> None:
    assert recover(life16, random.Random(SEED), 8) > 4


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
