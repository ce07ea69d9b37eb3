"""Every storage operation of a WAL file's put fails in every way, once and for good.

What was reported durable is there and whole; the same put again, by the next process, ends well
and says SAME exactly where the first had taken effect (trap 27, trap 28). And one bit flipped in
every byte, a cut at every length: `check` names the object, `get` refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from rooms import found, new_room, noise, open_room, writer_keys
from strongroom.errors import Damaged, StrongroomError, WalConflict
from strongroom.format import walfile
from strongroom.format.wal import SegmentFacts
from strongroom.progress import Silent
from strongroom.repository.check import Checker
from strongroom.repository.wal import Put, WalStore
from strongroom.storage.base import Storage
from strongroom.storage.faulty import (
    CRASHES,
    ERRORS,
    Crash,
    Fault,
    FaultyStorage,
    Plan,
    applies,
    flip,
)
from strongroom.storage.memory import MemoryStorage

Record = Callable[[str, object], None]
SYSTEM = 7_300_000_000_000_000_001
NAME = "00000001000000000000000A"
PLACE = walfile.object_name(SYSTEM, NAME)
DATA = memoryview(noise("wal", 3000) + bytes(2_000_000))
OTHER = memoryview(noise("other wal", 3000))
KINDS = [
    *((fault, False) for fault in sorted(CRASHES - {Fault.TORN_VISIBLE}, key=lambda f: f.name)),
    *((fault, lasting) for fault in sorted(ERRORS, key=lambda f: f.name) for lasting in (0, 1)),
]


def morning(*, taken: memoryview | None) -> MemoryStorage:
    storage = MemoryStorage()
    found(storage)
    if taken is not None:
        WalStore(open_room(storage, "before")).put(SYSTEM, NAME, taken)
    return storage


def enter(storage: Storage, seed: object, *, atomic: bool = True) -> WalStore:
    room = open_room(storage, seed)
    if not atomic:
        can = replace(room.identity.capabilities, put_if_absent=False)
        room.identity = replace(room.identity, capabilities=can)
    return WalStore(room)


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("taken", ["nothing", "the same", "another"])
def test_put_is_durable_exactly_when_it_is_reported(taken: str, atomic: bool) -> None:
    before = {"nothing": None, "the same": DATA, "another": OTHER}[taken]
    clean = FaultyStorage(morning(taken=before))
    store = enter(clean, "clean", atomic=atomic)
    first = len(clean.trace)
    try:
        store.put(SYSTEM, NAME, DATA)
    except WalConflict:
        assert before is OTHER
    operations = clean.trace[first:]
    assert operations
    for at, operation in enumerate(operations, first + 1):
        for fault, lasting in KINDS:
            if applies(fault, operation.verb):
                inject(before, Plan(fault, at, bool(lasting), place=at * 37), atomic)


def inject(before: memoryview | None, plan: Plan, atomic: bool) -> None:
    storage = morning(taken=before)
    faulty = FaultyStorage(storage, plan)
    reported = False
    try:
        enter(faulty, "clean", atomic=atomic).put(SYSTEM, NAME, DATA)
        reported = True
    except (Crash, StrongroomError):
        pass
    assert faulty.happened
    stands = storage.objects.get(PLACE)
    whole = stands is not None
    assert whole or not reported
    if before is OTHER:
        assert not reported
        with pytest.raises(WalConflict):
            enter(storage, "again", atomic=atomic).put(SYSTEM, NAME, DATA)
        assert enter(storage, "read").get(SYSTEM, NAME) == OTHER
        return
    again = enter(storage, "again", atomic=atomic).put(SYSTEM, NAME, DATA)
    assert again is (Put.SAME if whole else Put.STORED), plan
    if whole:
        assert storage.objects[PLACE] == stands  # nothing was put in its place
    assert enter(storage, "read").get(SYSTEM, NAME) == DATA
    report = Checker(open_room(storage, "check"), progress=Silent()).run(3)
    assert report.findings == []


# -- bytes -------------------------------------------------------------------------------------

SMALL = memoryview(noise("small", 300))
HISTORY = memoryview(b"1\t0/3000000\tno recovery target specified\n")


def small() -> MemoryStorage:
    """A file of each sort, a gap, a conflict, a binding, a summary."""
    storage = MemoryStorage()
    store = WalStore(new_room(storage))
    facts = SegmentFacts(1, 0xA000000, 16 << 20)
    store.put(SYSTEM, NAME, SMALL, facts=facts)
    store.put(SYSTEM, "00000002.history", HISTORY)
    store.summarise(SYSTEM, 1, least=1)
    store.put_gap(SYSTEM, 1, 0xB000000, 0xC000000, "lost")
    store.bind("db", SYSTEM)
    with pytest.raises(WalConflict):
        store.put(SYSTEM, NAME, OTHER)
    return storage


def test_the_small_wal_holds_every_sort_and_is_no_stranger() -> None:
    storage = small()
    sorts = [walfile.parse_object(one).sort for one in storage.objects if one.startswith("wal/")]
    assert sorted(sorts) == ["conflicts", "file", "file", "gaps", "sources", "summaries"]
    report = Checker(open_room(storage, "check"), progress=Silent()).run(3)
    assert report.findings == []
    assert [note for note in report.notes if "wal/" in note and "conflict" not in note] == []


SORTS = ["file", "gaps", "conflicts", "sources", "summaries"]


@pytest.mark.usefixtures("without_threads")
@pytest.mark.parametrize("sort", SORTS)
def test_flips_and_cuts_are_named_and_refused(sort: str) -> None:
    spoil(sort, 11)


@pytest.mark.sweep
@pytest.mark.usefixtures("without_threads")
@pytest.mark.parametrize("sort", SORTS)
def test_every_flip_and_every_cut_is_named_and_refused(sort: str, record_property: Record) -> None:
    record_property("faults", (f"flips and cuts of wal {sort}", spoil(sort, 1)))


def spoil(sort: str, every: int) -> int:
    """Damage objects of one sort in each way: `check` names the object, `get` refuses it."""
    whole, count = small(), 0
    for name in [one for one in whole.objects if one.startswith("wal/")]:
        if walfile.parse_object(name).sort != sort:
            continue
        data = whole.objects[name]
        ways = [flip(data, 8 * at + at * 5 % 8) for at in range(0, len(data), every)]
        ways += [data[:length] for length in range(0, len(data), every)]
        ways += [data + b"\0", data + data[-16:]]
        storage = whole.fork()
        room = open_room(storage, "damaged")
        store = WalStore(room)
        for damaged in ways:
            storage.objects[name] = damaged
            if sort == "file":
                with pytest.raises(Damaged):
                    store.get(SYSTEM, name.rsplit("/", 1)[-1])
            report = Checker(room, progress=Silent()).run(3)
            assert name in {finding.object for finding in report.findings}
        count += len(ways)
    return count


def test_a_file_that_is_gone_is_missed_where_a_summary_tells_of_it() -> None:
    storage = small()
    del storage.objects[PLACE]
    report = Checker(open_room(storage, "check"), progress=Silent()).run(0)
    assert [finding.object for finding in report.findings] == [PLACE]
    assert "gone" in report.findings[0].reason


def test_what_is_checked_at_each_level() -> None:
    """L0: there and as long as it was; L2: bytes and signature, without a reader's key; L3: opens."""
    storage = small()
    data = storage.objects[PLACE]
    for damaged, level in ((data[:-1], 0), (flip(data, 8 * len(data) - 9), 2)):
        storage.objects[PLACE] = damaged
        for keys in (None, writer_keys()):
            for run in (0, 1, 2, 3):
                room = open_room(storage, "check", keyset=keys)
                findings = Checker(room, progress=Silent()).run(run).findings
                named = [finding.object for finding in findings if finding.level <= run]
                assert (PLACE in named) == (run >= level), (run, level)
