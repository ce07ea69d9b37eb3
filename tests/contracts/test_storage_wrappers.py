"""The wrappers and the probe: what they count, break and find out.

Rule: each fault is shown to happen where it was planned and nowhere else, because the sweeps
believe that it does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from strongroom.errors import (
    AlreadyExists,
    ObjectMissing,
    StorageDenied,
    StorageFull,
    StorageUnreachable,
)
from strongroom.storage.base import Buffer, Capabilities, Entry
from strongroom.storage.faulty import (
    CRASHES,
    ERRORS,
    LISTS,
    Crash,
    Fault,
    FaultyStorage,
    Operation,
    Plan,
    applies,
    flip,
)
from strongroom.storage.local import TEMPORARIES, LocalStorage
from strongroom.storage.memory import MemoryStorage
from strongroom.storage.metered import Count, MeteredStorage
from strongroom.storage.probe import probe

DAY: list[Callable[[FaultyStorage], object]] = [
    lambda storage: storage.put("a", b"first object", if_absent=True),
    lambda storage: storage.put("b", b"second object", if_absent=True),
    lambda storage: storage.get("a"),
    lambda storage: list(storage.list("")),
    lambda storage: storage.delete(["a", "b"]),
]
TRACE = [
    *(Operation("put", "a"), Operation("put", "b"), Operation("get", "a"), Operation("list", "")),
    *(Operation("delete", "a"), Operation("delete", "b")),
]


def run_day(storage: FaultyStorage) -> BaseException | None:
    """Do the day up to its first fault and return it."""
    try:
        for step in DAY:
            step(storage)
    except (Crash, StorageUnreachable, StorageFull, StorageDenied) as stopped:
        return stopped
    return None


def test_trace_of_a_clean_day() -> None:
    storage = FaultyStorage(MemoryStorage())
    assert run_day(storage) is None
    assert storage.trace == TRACE
    assert not storage.happened


@pytest.mark.parametrize("fault", sorted(CRASHES, key=lambda fault: fault.name))
@pytest.mark.parametrize("at", range(1, len(TRACE) + 1))
def test_crash_at_every_operation(fault: Fault, at: int) -> None:
    """A crash before leaves nothing of its operation, a crash after all of it, torn a part; and
    whoever goes on afterwards, from whichever thread, does nothing more."""
    inner = MemoryStorage()
    storage = FaultyStorage(inner, Plan(fault, at, place=5))
    stopped = run_day(storage)
    if not applies(fault, TRACE[at - 1].verb):
        assert stopped is None
        assert not storage.happened
        return
    assert isinstance(stopped, Crash)
    assert storage.dead
    clean = MemoryStorage()
    with_effect = at if fault is Fault.CRASH_AFTER else at - 1
    run_day(FaultyStorage(clean, Plan(Fault.CRASH_BEFORE, with_effect + 1)))
    expected = dict(clean.objects)
    if fault is Fault.TORN_VISIBLE:
        expected[TRACE[at - 1].name] = [b"first", b"secon"][at - 1]
    assert inner.objects == expected
    for step in DAY:
        with ThreadPoolExecutor(1) as threads, pytest.raises(Crash):
            threads.submit(step, storage).result()
    assert inner.objects == expected


ERROR_TYPES = {
    Fault.EIO: StorageUnreachable,
    Fault.ENOSPC: StorageFull,
    Fault.TIMEOUT: StorageUnreachable,
    Fault.SLOW_DOWN: StorageUnreachable,
    Fault.DENIED: StorageDenied,
    Fault.RESET_AFTER: StorageUnreachable,
}


def test_every_error_is_named() -> None:
    assert set(ERROR_TYPES) == ERRORS


@pytest.mark.parametrize("fault", ERROR_TYPES)
@pytest.mark.parametrize("at", range(1, len(TRACE) + 1))
def test_error_once_and_from_then_on(fault: Fault, at: int) -> None:
    for lasting in (False, True):
        inner = MemoryStorage()
        storage = FaultyStorage(inner, Plan(fault, at, lasting=lasting))
        stopped = run_day(storage)
        assert type(stopped) is ERROR_TYPES[fault]
        assert len(storage.trace) == at
        clean = MemoryStorage()
        effect = at if fault is Fault.RESET_AFTER else at - 1
        run_day(FaultyStorage(clean, Plan(Fault.CRASH_BEFORE, effect + 1)))
        assert inner.objects == clean.objects
        if lasting:
            with pytest.raises(ERROR_TYPES[fault]):
                storage.put("later", b"")
        else:
            storage.put("later", b"")
            assert inner.get("later") == b""


def test_reset_after_a_create_leaves_the_object() -> None:
    storage = FaultyStorage(MemoryStorage(), Plan(Fault.RESET_AFTER, 1))
    with pytest.raises(StorageUnreachable):
        storage.put("a", b"x", if_absent=True)
    with pytest.raises(AlreadyExists):
        storage.put("a", b"x", if_absent=True)


@pytest.mark.parametrize("bit", [0, 7, 8, 95, 96, 1000])
def test_one_flipped_bit(bit: int) -> None:
    inner = MemoryStorage({"a": b"first object"})
    storage = FaultyStorage(inner, Plan(Fault.FLIP, 1, place=bit))
    wrong = storage.get("a")
    differing = [x ^ y for x, y in zip(wrong, b"first object", strict=True) if x != y]
    assert len(differing) == 1
    assert differing[0].bit_count() == 1
    assert wrong == flip(b"first object", bit)
    assert flip(wrong, bit) == b"first object"
    assert storage.get("a") == b"first object"
    assert inner.get("a") == b"first object"


def test_short_get_and_truncated_put() -> None:
    storage = FaultyStorage(MemoryStorage({"a": b"first object"}), Plan(Fault.SHORT, 1, place=5))
    assert storage.get("a") == b"first"
    assert storage.get("a") == b"first object"
    inner = MemoryStorage()
    storage = FaultyStorage(inner, Plan(Fault.TRUNCATED, 1, place=3))
    storage.put("a", b"first object", if_absent=True)
    assert inner.get("a") == b"fir"


@pytest.mark.parametrize("fault", sorted(LISTS, key=lambda fault: fault.name))
def test_listings_that_lie(fault: Fault) -> None:
    inner = MemoryStorage(dict.fromkeys("abcd", b"x"))
    told = {
        Fault.LIST_EMPTY: "",
        Fault.LIST_MISSING_ONE: "acd",
        Fault.LIST_DUPLICATED: "abbcd",
        Fault.LIST_REVERSED: "dcba",
        Fault.LIST_STALE: "abcd",
    }
    storage = FaultyStorage(inner, Plan(fault, 1, place=5))
    assert "".join(entry.name for entry in storage.list("")) == told[fault]
    assert "".join(entry.name for entry in storage.list("")) == "abcd"


def test_stale_listing() -> None:
    """It hides the last puts, shows the last deleted, and shows the old size of the replaced."""
    for depth, told in enumerate(
        [{"b": 9, "c": 3}, {"a": 1, "b": 9, "c": 3}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2}]
    ):
        inner = MemoryStorage({"a": b"1", "b": b"22"})
        storage = FaultyStorage(inner, Plan(Fault.LIST_STALE, 4, depth=depth))
        storage.put("c", b"333")
        storage.put("b", b"999999999")
        storage.delete(["a"])
        assert {entry.name: entry.size for entry in storage.list("")} == told
        assert sorted(entry.name for entry in storage.list("")) == ["b", "c"]


def test_each_page_of_a_listing_is_an_operation() -> None:
    inner = MemoryStorage({f"{number}": b"" for number in range(7)})
    storage = FaultyStorage(inner, Plan(Fault.EIO, 2), page=3)
    taken = []
    with pytest.raises(StorageUnreachable):
        for entry in storage.list(""):
            taken.append(entry.name)
    assert taken == ["0", "1", "2"]
    storage = FaultyStorage(inner, page=3)
    assert len(list(storage.list(""))) == 7
    assert storage.trace == [Operation("list", "")] * 3
    storage = FaultyStorage(inner, Plan(Fault.LIST_EMPTY, 3), page=3)
    assert [entry.name for entry in storage.list("")] == list("012345")


def test_torn_put_may_leave_what_the_store_leaves(tmp_path: Path) -> None:
    """On a directory: half a temporary, which no listing shows and which goes in a day."""
    inner = LocalStorage(tmp_path)
    inner.put("kept", b"x")

    def debris(name: str, part: bytes) -> None:
        (tmp_path / TEMPORARIES / "1.1").write_bytes(part)

    storage = FaultyStorage(inner, Plan(Fault.TORN, 1, place=4), on_torn=debris)
    with pytest.raises(Crash):
        storage.put("a", b"first object", if_absent=True)
    assert (tmp_path / TEMPORARIES / "1.1").read_bytes() == b"firs"
    assert [entry.name for entry in LocalStorage(tmp_path).list("")] == ["kept"]
    with pytest.raises(ObjectMissing):
        LocalStorage(tmp_path).get("a")


def test_a_crash_is_not_swallowed_by_handlers_of_errors() -> None:
    assert not issubclass(Crash, Exception)


# -- metered -----------------------------------------------------------------------------------


def test_counts_per_verb() -> None:
    storage = MeteredStorage(MemoryStorage())
    storage.put("a", b"12345")
    storage.put("b", memoryview(b"123"), if_absent=True)
    before = storage.totals()
    with pytest.raises(AlreadyExists):
        storage.put("b", b"1234567", if_absent=True)
    storage.get("a", offset=1, length=2)
    with pytest.raises(ObjectMissing):
        storage.get("absent")
    assert len(list(storage.list(""))) == 2
    going = storage.list("")
    next(going)
    going.close()  # type: ignore[attr-defined]
    storage.delete(iter(["a", "absent"]))
    assert storage.totals() == {
        "put": Count(operations=2, size=8, failures=1),
        "get": Count(operations=1, size=2, failures=1),
        "list": Count(operations=2, entries=3),
        "delete": Count(operations=2),
    }
    assert storage.totals()["put"] - before["put"] == Count(failures=1)


def test_counts_from_many_threads() -> None:
    storage = MeteredStorage(MemoryStorage())
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: storage.put(f"{number}", b"xy"), range(500)))
    assert storage.totals()["put"] == Count(operations=500, size=1000)


# -- the probe finds out what stores hide --------------------------------------------------------


class Deaf(MemoryStorage):
    """Accepts a conditional create and ignores the condition."""

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        super().put(name, data)


class Careless(MemoryStorage):
    """Looks, waits for the others, and then stores: every racer wins."""

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        if if_absent and name in self.objects:
            raise AlreadyExists(name)
        if "race" in name:
            threading.Event().wait(0.05)
        super().put(name, data)


class Replacing(MemoryStorage):
    """Refuses the second create, and stores it all the same."""

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        taken = name in self.objects
        super().put(name, data)
        if if_absent and taken:
            raise AlreadyExists(name)


class Blind(MemoryStorage):
    """Does not list what was put since the last listing."""

    shown: frozenset[str] = frozenset()

    def list(self, prefix: str) -> Iterator[Entry]:
        entries = [*super().list(prefix)]
        yield from [entry for entry in entries if entry.name in self.shown]
        self.shown = frozenset(self.objects)


class Unsorted(MemoryStorage):
    def list(self, prefix: str) -> Iterator[Entry]:
        yield from reversed([*super().list(prefix)])


class Keeping(MemoryStorage):
    """Lets nobody delete, as a writer's credentials should not."""

    def delete(self, names: object) -> None:
        raise StorageDenied("no")


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (MemoryStorage, Capabilities(True, True, True)),
        (Deaf, Capabilities(False, True, True)),
        (Careless, Capabilities(False, True, True)),
        (Replacing, Capabilities(False, True, True)),
        (Unsorted, Capabilities(True, True, False)),
        (Keeping, Capabilities(True, True, True)),
    ],
)
def test_probe(kind: type[MemoryStorage], found: Capabilities) -> None:
    storage = kind()
    assert probe(storage, token="t0") == found
    left = [name for name in storage.objects if not name.startswith("probe/t0/")]
    assert left == []
    assert bool(storage.objects) is (kind is Keeping)


def test_probe_finds_late_listings() -> None:
    assert not probe(Blind(), token="t0").read_after_write


@pytest.mark.parametrize("at", range(1, 30))
def test_probe_cleans_up_when_it_fails(at: int) -> None:
    inner = MemoryStorage()
    storage = FaultyStorage(inner, Plan(Fault.ENOSPC, at))
    try:
        probe(storage, token="t0")
    except StorageFull:
        if storage.trace[at - 1].verb == "delete":
            return  # the fault itself kept the probe from cleaning up
    assert inner.objects == {}
