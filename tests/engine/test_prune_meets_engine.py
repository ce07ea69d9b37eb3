"""What a prune does to readers, writers and check: frames move, packs go, nobody is hurt."""

from __future__ import annotations

import pytest

from rooms import (
    DictSource,
    committed,
    each,
    expire,
    fill,
    new_room,
    noise,
    open_room,
    prune,
    restore,
    take,
)
from strongroom.errors import Overtaken
from strongroom.format.tree import Entry, Kind
from strongroom.operations.back_up import back_up
from strongroom.operations.check import check
from strongroom.progress import Silent
from strongroom.repository.check import Checker
from strongroom.repository.ports import Taken
from strongroom.repository.repository import Repository
from strongroom.storage.base import Storage
from strongroom.storage.memory import MemoryStorage

# "gone" fills frames of its own: a frame is what garbage is counted in.
OLD = {b"a": noise("a", 100_000), b"gone": noise("gone", 2_500_000)}
NEW = {b"a": OLD[b"a"], b"b": noise("b", 50_000)}


def forget(room: Repository, index: int = 0) -> None:
    expire(room, committed(room)[index])


def assert_sound(storage: Storage) -> None:
    report = Checker(open_room(storage, "check"), progress=Silent()).run(3)
    assert report.findings == []


def test_a_prune_moves_what_lives_and_takes_the_rest(storage: Storage) -> None:
    room = new_room(storage)
    take(room, "vault", OLD)
    kept = take(room, "vault", NEW).snapshot
    forget(room)
    before = sum(entry.size for entry in storage.list("packs/"))
    assert prune(open_room(storage, "prune")).generation == 1
    assert sum(entry.size for entry in storage.list("packs/")) < before - 1_000_000
    assert_sound(storage)
    assert restore(open_room(storage, "new"), kept) == NEW
    again = take(open_room(storage, "later"), "vault", NEW).snapshot
    assert again.new_size == 0  # what was moved is a dedup target again
    assert prune(open_room(storage, "prune 2")).generation == 0  # nothing is left to do
    assert restore(open_room(storage, "last"), kept) == NEW
    assert_sound(storage)


def test_a_reader_finds_frames_that_are_moved_while_it_reads(storage: Storage) -> None:
    room = new_room(storage)
    take(room, "vault", OLD)
    kept = take(room, "vault", NEW).snapshot
    reader = room.open_snapshot(kept)
    flow = each(reader)  # its index is the old one
    forget(room)
    prune(open_room(storage, "prune"))
    assert {entry.path: fill(entry.size, pieces) for entry, pieces in flow} == NEW


def test_a_reader_finds_the_other_copy_when_a_prune_takes_one() -> None:
    """Two writers side by side stored the same; the one whose copy the reader chose is expired."""
    for loser in (0, 1):
        storage = MemoryStorage()
        room = new_room(storage)
        both = [open_room(storage, seed).begin("vault", progress=Silent()) for seed in "ab"]
        for number, session in enumerate(both):
            DictSource("vault", NEW).back_up(session, progress=Silent())
            facts = {"writer": number}
            session.commit("vault", "files", Taken(2, 0, facts), labels={})
        first, second = committed(room)
        kept = (second, first)[loser]
        reader = room.open_snapshot(kept)
        reader.find(b"a")
        expire(room, (first, second)[loser])
        prune(open_room(storage, "prune"))
        assert {entry.path: fill(entry.size, pieces) for entry, pieces in each(reader)} == NEW
        assert_sound(storage)


def test_condemned_packs_are_no_dedup_targets(storage: Storage) -> None:
    room = new_room(storage)
    take(room, "vault", OLD)
    packs = [entry.name.rsplit("/", 1)[-1] for entry in storage.list("packs/")]
    room.catalogue.put_gc("gc/00000001.condemn", {"packs": packs})
    again = take(open_room(storage, "later"), "vault", OLD).snapshot
    assert again.new_size > 200_000
    assert restore(room, again) == OLD


@pytest.mark.parametrize("moment", ["before the content", "before the commit"])
def test_a_run_that_is_overtaken_does_not_commit(storage: Storage, moment: str) -> None:
    room = new_room(storage)
    take(room, "vault", OLD)
    forget(room)
    session = open_room(storage, "overtaken").begin("vault", progress=Silent())
    if moment == "before the content":
        prune(open_room(storage, "prune"))
    taken = DictSource("vault", OLD).back_up(session, progress=Silent())
    if moment == "before the commit":
        prune(open_room(storage, "prune"))
    with pytest.raises(Overtaken):
        session.commit("vault", "files", taken, labels={})
    session.abandon()
    assert committed(room) == []
    report = back_up(open_room(storage, "again"), DictSource("vault", OLD), progress=Silent())
    assert restore(open_room(storage, "read"), report.snapshot) == OLD
    assert_sound(storage)


def test_back_up_begins_again_when_it_is_overtaken() -> None:
    storage = MemoryStorage()
    take(new_room(storage), "vault", OLD)
    forget(open_room(storage, "forget"))

    class Slow(DictSource):
        """Meets a prune in its first run, between content and commit."""

        def back_up(self, session: object, *, progress: object) -> Taken:
            taken = super().back_up(session, progress=progress)  # type: ignore[arg-type]
            if self.runs == 1:
                prune(open_room(storage, "prune"))
            return taken

    room = open_room(storage, "later")
    report = back_up(room, Slow("vault", OLD), progress=Silent())
    assert report.attempts == 2
    assert restore(room, report.snapshot) == OLD
    assert_sound(storage)


def test_a_sleeper_whose_refs_were_dropped_cannot_commit() -> None:
    """A tombstone stands where its snapshot would: w6 fails loudly, however late it comes."""
    storage = MemoryStorage()
    room = new_room(storage)
    session = room.begin("vault", progress=Silent())
    taken = DictSource("vault", OLD).back_up(session, progress=Silent())
    put = storage.put

    def sleep_before_w6(name: str, data: bytes, *, if_absent: bool = False) -> None:
        if name.startswith("snapshots/"):
            storage.put = put  # type: ignore[method-assign]
            prune(open_room(storage, "prune"))
        put(name, data, if_absent=if_absent)

    storage.put = sleep_before_w6  # type: ignore[method-assign]
    with pytest.raises(Overtaken):
        session.commit("vault", "files", taken, labels={})
    assert committed(room) == []


def test_an_index_that_tells_of_swept_packs_is_no_damage() -> None:
    """A run whose packs were condemned before it indexed them leaves rows that hurt nobody."""
    storage = MemoryStorage()
    room = new_room(storage)
    session = room.begin("vault", progress=Silent())
    session.tree.add(Entry(b"x", Kind.FIFO))
    lane = session.lane()
    lane.put_small([noise("x", 2000)])
    lane.flush()
    session._pipeline.drain()
    prune(open_room(storage, "prune"))
    session.abandon()
    assert len(list(storage.list("index/"))) == 1
    assert list(storage.list("packs/")) == []
    assert_sound(storage)
    kept = take(open_room(storage, "later"), "vault", NEW).snapshot
    assert restore(open_room(storage, "read"), kept) == NEW
    report = check(open_room(storage, "check"), level=3, progress=Silent())
    assert report.findings == []


def test_keys_are_those_of_the_index_that_gave_the_place(storage: Storage) -> None:
    """A frame that was fetched before it was swept must not be taken for another session's."""
    room = new_room(storage)
    gone = take(room, "vault", {b"gone": noise("gone", 2000)}, facts={"n": 1}).snapshot
    kept = take(open_room(storage, "kept"), "vault", NEW, facts={"n": 2}).snapshot
    chunks = room.chunk_reader("vault")
    old = chunks._index
    row = next(row for row in range(old.frames) if old.session(row).id.hex() == gone.session)
    place = old.place(row)
    name = f"{'trees' if place.tree else 'packs'}/{place.pack.hex()[:2]}/{place.pack.hex()}"
    sealed = storage.get(name, offset=place.offset, length=place.length)
    ids = [chunk for chunk, _, _ in old.chunks_in(row)]
    wanted = chunks._wanted(ids)
    storage.delete([gone.name])
    prune(open_room(storage, "prune"))
    chunks._index = chunks._load_index()  # another thread has looked again meanwhile
    kind = b"tree" if place.tree else b"data"
    chunks._open(kind, memoryview(sealed), place, row, wanted)
    assert wanted.faults == {}
    assert restore(room, kept) == NEW
