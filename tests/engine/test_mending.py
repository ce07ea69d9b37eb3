"""An index that lost segments: the next backup goes on and mends it, deleting and overwriting nothing.

Rule: the storage under every backup here refuses what an ordinary backup needs no right to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

import numpy as np
import pytest

from rooms import (
    BIRTH,
    Clock,
    DictSource,
    committed,
    expire,
    found,
    new_room,
    noise,
    open_room,
    prune,
    restore,
    take,
    writer_keys,
)
from strongroom.errors import Damaged, StorageDenied, StorageUnreachable
from strongroom.format import segment
from strongroom.format.segment import Segment
from strongroom.operations.back_up import Report, back_up
from strongroom.progress import Silent
from strongroom.repository.check import Checker
from strongroom.repository.check import Report as Checked
from strongroom.storage.base import Buffer, Entry
from strongroom.storage.faulty import Crash, Fault, FaultyStorage, Plan, flip
from strongroom.storage.memory import MemoryStorage

MIB = 1 << 20
HOURS = itertools.count(1)
FIRST = {b"one": noise("one", MIB), b"two": noise("two", MIB), b"three": noise("three", MIB)}
SECOND = {b"one": FIRST[b"one"], b"four": noise("four", MIB)}
THIRD = {**SECOND, b"five": noise("five", 3000)}

HOW: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda data: flip(data, 700),
    "cut": lambda data: data[:-1],
    "empty": lambda data: b"",
    "another's": lambda data: b"SRM1indx" + bytes(4096),
}


class WriteOnce:
    """A storage for a writer: nothing is deleted, no name is put twice. It keeps what was read.

    `away` names objects that cannot be reached, or everything for "".
    """

    def __init__(self, inner: MemoryStorage, away: str | None = None) -> None:
        self.inner, self.away, self.url = inner, away, inner.url
        self.read: list[str] = []

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        del if_absent
        self.inner.put(name, data, if_absent=True)

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self.read.append(name)
        if self.away is not None and name.startswith(self.away):
            raise StorageUnreachable(f"cannot reach {name}: Input/output error")
        return self.inner.get(name, offset=offset, length=length)

    def list(self, prefix: str) -> Iterator[Entry]:
        if self.away == "":
            raise StorageUnreachable("cannot reach anything")
        return self.inner.list(prefix)

    def delete(self, names: Iterable[str]) -> None:
        raise StorageDenied("a writer deletes nothing")

    def free_space(self) -> int | None:
        return None

    def total_space(self) -> int | None:
        return None

    def close(self) -> None:
        """Nothing to release."""


def stored() -> MemoryStorage:
    storage = MemoryStorage()
    room = new_room(storage)
    take(room, "vault", FIRST)
    take(room, "vault", SECOND)
    return storage


def segments(storage: MemoryStorage) -> list[str]:
    return [entry.name for entry in storage.list("index/")]


def write(storage: MemoryStorage | WriteOnce, files: dict[bytes, bytes], seed: object) -> Report:
    """Back up as a host that cannot read, delete or overwrite."""
    under = WriteOnce(storage) if isinstance(storage, MemoryStorage) else storage
    inner = under.inner
    later = Clock(BIRTH + timedelta(hours=next(HOURS)))
    room = open_room(inner, seed, keyset=writer_keys(), clock=later)
    room.storage = room.catalogue.storage = under
    return back_up(room, DictSource("vault", files), progress=Silent())


def check(storage: MemoryStorage) -> Checked:
    return Checker(open_room(storage, "check"), progress=Silent()).run(3)


def assert_restores(storage: MemoryStorage, *expected: dict[bytes, bytes]) -> None:
    room = open_room(storage, "read")
    snapshots = committed(room)
    assert len(snapshots) == len(expected)
    for snapshot, files in zip(snapshots, expected, strict=True):
        assert restore(room, snapshot) == files


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("which", ["first", "last", "all"])
def test_the_next_backup_mends_the_index(how: str, which: str) -> None:
    storage = stored()
    names = segments(storage)
    lost = {"first": names[:1], "last": names[-1:], "all": names}[which]
    for name in lost:
        storage.objects[name] = HOW[how](storage.objects[name])
    assert {finding.object for finding in check(storage).findings} >= set(lost)
    report = write(storage, SECOND, "mending")
    (warning,) = report.warnings
    assert all(name in warning for name in lost)
    assert "is mended" in warning
    assert report.snapshot.new_size == 0, "what the lost segment told of was stored again"
    checked = check(storage)
    assert checked.findings == []
    for name in lost:
        assert any(name in note and "replaces it" in note for note in checked.notes)
    assert_restores(storage, FIRST, SECOND, SECOND)
    under = WriteOnce(storage)
    again = write(under, THIRD, "after")
    assert again.warnings == ()
    assert not any(name.startswith(("packs/", "trees/")) for name in under.read)
    assert_restores(storage, FIRST, SECOND, SECOND, THIRD)


def test_only_packs_that_no_good_segment_tells_of_are_looked_into() -> None:
    storage = stored()
    room = open_room(storage, "look")
    first, *others = segments(storage)
    known = {pack.hex() for name in others for _, pack in room.catalogue.open_index(name).packs}
    told = {pack.hex() for _, pack in room.catalogue.open_index(first).packs}
    storage.objects[first] = flip(storage.objects[first], 700)
    under = WriteOnce(storage)
    write(under, SECOND, "mending")
    read = {name.rsplit("/", 1)[-1] for name in under.read if name[:6] in ("packs/", "trees/")}
    assert read == told
    assert not read & known


def test_what_nothing_tells_of_is_not_called_mended() -> None:
    """The segment stays a finding while earlier backups rely on what neither it nor a footer tells."""
    storage = stored()
    (first, *_) = segments(storage)
    pack = max(
        (n for n in storage.objects if n.startswith("packs/")),
        key=lambda n: len(storage.objects[n]),
    )
    data = storage.objects[pack]
    storage.objects[first] = flip(storage.objects[first], 700)
    storage.objects[pack] = flip(data, 8 * (len(data) - 300))
    hurt = check(storage).damaged_snapshots
    assert hurt != []
    report = write(storage, FIRST, "mending")
    assert "strongroom check" in report.warnings[0]
    assert report.snapshot.new_size > 0
    room = open_room(storage, "read")
    assert restore(room, committed(room)[-1]) == FIRST
    checked = check(storage)
    assert first in {finding.object for finding in checked.findings}
    count = len(segments(storage))
    assert write(storage, FIRST, "again").warnings != ()
    assert len(segments(storage)) == count, "the same was told twice"
    storage.objects[pack] = data  # brought back from a copy
    assert "is mended" in write(storage, FIRST, "at last").warnings[0]
    assert check(storage).findings == []


def test_a_bit_that_flips_on_the_way_makes_nothing_void() -> None:
    storage = stored()
    before = {name: storage.objects[name] for name in segments(storage)}
    plain = FaultyStorage(storage.fork())
    room = open_room(plain, "run")
    back_up(room, DictSource("vault", SECOND), progress=Silent())
    reads = [
        at for at, one in enumerate(plain.trace, 1) if one.verb == "get" and one.name in before
    ]
    assert len(reads) == len(before)
    for at in reads:
        again = storage.fork()
        faulty = FaultyStorage(again, Plan(Fault.FLIP, at, place=4711))
        report = back_up(open_room(faulty, "run"), DictSource("vault", SECOND), progress=Silent())
        assert faulty.happened
        assert report.warnings == ()
        assert check(again).notes == check(storage).notes


def test_a_segment_out_of_reach_is_told_anew_and_a_store_out_of_reach_is_not() -> None:
    storage = stored()
    (first, *_) = segments(storage)
    report = write(WriteOnce(storage, away=first), SECOND, "mending")
    assert first in report.warnings[0]
    assert report.snapshot.new_size == 0
    assert_restores(storage, FIRST, SECOND, SECOND)
    assert check(storage).findings == []
    reading = open_room(storage, "read")
    reading.storage = reading.catalogue.storage = WriteOnce(storage, away=first)
    assert restore(reading, committed(reading)[0]) == FIRST
    with pytest.raises(StorageUnreachable):
        write(WriteOnce(storage, away=""), SECOND, "no store")


def test_packs_of_another_group_stay_another_groups() -> None:
    storage = stored()
    take(open_room(storage, "else"), "else", {b"x": noise("else", 5000)})
    other = open_room(storage, "look").catalogue.load_index("else", condemned=frozenset())
    for name in segments(storage):
        if name.startswith("index/vault/"):
            storage.objects[name] = b""
    write(storage, SECOND, "mending")
    mine = open_room(storage, "look").catalogue.load_index("vault", condemned=frozenset())
    assert len(mine) > 0
    assert not {pack for _, pack in mine.packs} & {pack for _, pack in other.packs}
    assert write(storage, {b"x": noise("else", 5000)}, "own").snapshot.new_size > 5000


def test_a_crash_anywhere_while_mending_leaves_a_repository_that_mends() -> None:
    storage = stored()
    for name in segments(storage):
        storage.objects[name] = flip(storage.objects[name], 700)
    trace = FaultyStorage(storage.fork())
    back_up(open_room(trace, "run"), DictSource("vault", THIRD), progress=Silent())
    for at in range(1, len(trace.trace) + 1):
        for fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
            hit = storage.fork()
            with pytest.raises(Crash):
                back_up(
                    open_room(FaultyStorage(hit, Plan(fault, at)), "run"),
                    DictSource("vault", THIRD),
                    progress=Silent(),
                )
            report = write(hit, THIRD, "again")
            assert check(hit).findings == []
            room = open_room(hit, "read")
            assert restore(room, report.snapshot) == THIRD
            assert restore(room, committed(room)[0]) == FIRST


def test_two_that_mend_at_once_tell_it_twice_and_harm_nothing() -> None:
    storage = stored()
    for name in segments(storage):
        storage.objects[name] = b""
    rooms = [open_room(storage.fork(), seed, keyset=writer_keys()) for seed in "ab"]
    for room in rooms:
        take(room, "vault", SECOND)
    for room in rooms:
        assert isinstance(room.storage, MemoryStorage)
        storage.objects.update(room.storage.objects)
    assert check(storage).findings == []
    assert_restores(storage, FIRST, SECOND, SECOND, SECOND)
    assert write(storage, SECOND, "c").snapshot.new_size == 0


def test_the_next_prune_takes_the_damaged_segment_away() -> None:
    storage = stored()
    lost = segments(storage)[0]
    storage.objects[lost] = flip(storage.objects[lost], 700)
    room = open_room(storage, "prune")
    with pytest.raises(Damaged):  # what it told of would be taken for garbage
        prune(room)
    write(storage, THIRD, "mending")
    expire(room, committed(room)[0])
    prune(room)
    assert lost not in storage.objects
    assert check(storage).findings == []
    assert_restores(storage, SECOND, THIRD)


def test_chunk_rows_of_moved_frames_are_found_again() -> None:
    """A segment may tell that a frame rests here too and leave its chunks to another, which is lost."""
    storage = stored()
    room = open_room(storage, "move")
    names = segments(storage)
    moved = []
    for name in names:
        rows = room.catalogue.open_index(name)
        frames = rows.frames.copy()
        frames["chunks"] = 0
        moved.append(Segment(rows.sessions, rows.packs, frames, b"", np.empty(0, np.uint32)))
    room.catalogue.put_index("vault", segment.joined(moved), now=room.seams.now())
    assert check(storage).findings == []
    for name in names:
        storage.objects[name] = flip(storage.objects[name], 700)
    assert check(storage).damaged_snapshots == []
    assert_restores(storage, FIRST, SECOND)
    report = write(storage, SECOND, "mending")
    assert "is mended" in report.warnings[0]
    assert report.snapshot.new_size == 0
    assert check(storage).findings == []
    assert_restores(storage, FIRST, SECOND, SECOND)


def test_segments_are_joined_as_if_each_were_read() -> None:
    storage = stored()
    room = open_room(storage, "join")
    parts = [room.catalogue.open_index(name) for name in segments(storage)]
    one = segment.decode(segment.encode(segment.joined(parts, replaces=["index/vault/x"])))
    assert one.replaces == ["index/vault/x"]
    index = room.catalogue.load_index("vault", condemned=frozenset())
    other = MemoryStorage()
    found(other)
    room.catalogue.storage = other
    room.catalogue.put_index("vault", one, now=room.seams.now())
    again = room.catalogue.load_index("vault", condemned=frozenset())
    assert len(again) == len(index) > 50
    for row in range(len(index)):
        chunk = index.chunks.id(row)
        (there,) = again.find(chunk).tolist()
        assert again.place(int(again.frame[there])) == index.place(int(index.frame[row]))
        assert (again.offset[there], again.length[there]) == (index.offset[row], index.length[row])
