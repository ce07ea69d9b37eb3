"""A prune where objects are gone that tell what is wanted: what it cannot know of must stay.

Refs and index segments are all that a prune goes by. With one of them lost, everything that only it
told of looks like garbage, and is the only copy.
"""

from __future__ import annotations

import pytest

from rooms import committed, expire, new_room, noise, open_room, prune, restore, take, writer_keys
from strongroom.errors import Damaged
from strongroom.progress import Silent
from strongroom.repository.check import Checker
from strongroom.repository.pruning import Pruner, Rules
from strongroom.storage.memory import MemoryStorage

FILES = {b"one": noise("one", 300_000)}
MORE = {**FILES, b"two": noise("two", 50_000)}


def stored() -> MemoryStorage:
    storage = MemoryStorage()
    room = new_room(storage)
    take(room, "vault", FILES)
    take(room, "vault", MORE)
    return storage


def names(storage: MemoryStorage, prefix: str) -> list[str]:
    return sorted(name for name in storage.objects if name.startswith(prefix))


def assert_all_is_there(storage: MemoryStorage) -> None:
    room = open_room(storage, "read")
    assert [restore(room, one) for one in committed(room)] == [FILES, MORE]


@pytest.mark.parametrize("dry_run", [True, False])
def test_nothing_goes_where_refs_of_a_backup_are_lost(dry_run: bool) -> None:
    for lost in names(stored(), "refs/"):
        storage = stored()
        copy = storage.objects.pop(lost)
        before = set(storage.objects)
        pruner = Pruner(open_room(storage, "prune"), rules=Rules(polite=None), progress=Silent())
        with pytest.raises(Damaged, match=lost):
            pruner.plan() if dry_run else pruner.run()
        assert set(storage.objects) == before
        assert_all_is_there(storage)
        storage.objects[lost] = copy
        assert prune(open_room(storage, "again")).dead == 0
        assert_all_is_there(storage)


def test_lost_refs_stand_in_the_way_no_longer_when_their_backup_is_expired() -> None:
    storage = stored()
    room = open_room(storage, "expire")
    first, second = committed(room)
    del storage.objects[f"refs/vault/{first.id}"]
    expire(room, first)
    assert prune(room).swept == [first.name]
    assert restore(open_room(storage, "read"), second) == MORE


def test_lost_refs_are_noticed_at_p2_too() -> None:
    """They vanish while a prune is under way, or it stopped and is gone on with."""
    storage = stored()
    room = open_room(storage, "condemn")
    packs = [name.rsplit("/", 1)[1] for name in names(storage, "packs/")]
    room.catalogue.put_gc("gc/00000001.condemn", {"packs": packs})
    del storage.objects[names(storage, "refs/")[0]]
    with pytest.raises(Damaged):
        prune(open_room(storage, "prune"))
    assert_all_is_there(storage)


@pytest.mark.parametrize("resumed", [False, True])
def test_footers_tell_where_index_segments_are_lost(resumed: bool) -> None:
    """Any of them, and all, with the keys of a writer."""
    segments = names(stored(), "index/")
    assert len(segments) == 2
    for lost in ([segments[0]], [segments[1]], segments):
        storage = stored()
        for name in lost:
            del storage.objects[name]
        if resumed:
            packs = [name.rsplit("/", 1)[1] for name in names(storage, "packs/")]
            open_room(storage, "condemn").catalogue.put_gc("gc/00000001.condemn", {"packs": packs})
        room = open_room(storage, "prune", keyset=writer_keys())
        plan = Pruner(room, rules=Rules(polite=None, together=False), progress=Silent()).plan()
        assert plan.dead == 0
        prune(open_room(storage, "prune", keyset=writer_keys()))
        assert_all_is_there(storage)
        assert Checker(open_room(storage, "check"), progress=Silent()).run(3).findings == []


def test_the_chunks_of_a_moved_frame_are_looked_for_too() -> None:
    """The row of a moved frame stands here, and the segment with its chunk rows is lost."""
    storage = stored()
    room = open_room(storage, "tell")
    for name in names(storage, "index/"):
        rows = room.catalogue.open_index(name)
        rows.frames = rows.frames.copy()
        rows.frames["chunks"] = 0
        rows.ids, rows.lengths = b"", rows.lengths[:0]
        del storage.objects[name]
        room.catalogue.put_index("vault", rows, now=room.seams.now())
    expire(room, committed(room)[0])
    prune(open_room(storage, "prune"))
    (kept,) = committed(room)
    assert restore(open_room(storage, "read"), kept) == MORE
    for name in names(storage, "index/"):  # nothing hangs on the new segments either
        del storage.objects[name]
    assert restore(open_room(storage, "footers"), kept) == MORE
