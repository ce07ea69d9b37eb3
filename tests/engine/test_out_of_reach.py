"""What a check cannot reach is no damage: it is told apart, and is no clean verdict either."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from rooms import committed, new_room, noise, open_room, take
from strongroom.errors import StorageDenied, StorageUnreachable, StrongroomError
from strongroom.progress import Silent
from strongroom.repository.check import Checker, Report
from strongroom.storage.base import Entry
from strongroom.storage.faulty import Fault, FaultyStorage, Plan, flip
from strongroom.storage.memory import MemoryStorage

FILES = {b"one": noise("one", 300_000), b"two": noise("two", 300_000)}
FAULTS: dict[str, Callable[[str], StrongroomError]] = {
    "unreachable": lambda name: StorageUnreachable(f"cannot read {name}: no answer in time"),
    "denied": lambda name: StorageDenied(f"cannot read {name}: 403 AccessDenied"),
}


class Away(MemoryStorage):
    """Some objects cannot be read; or from a moment on nothing can."""

    def __init__(self, objects: dict[str, bytes], out: set[str], why: str = "unreachable") -> None:
        super().__init__(objects)
        self.out, self.why, self.gone_after, self.asked = out, why, 1 << 30, 0

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self.asked += 1
        if name in self.out or self.asked > self.gone_after:
            raise FAULTS[self.why](name)
        return super().get(name, offset=offset, length=length)

    def list(self, prefix: str) -> Iterator[Entry]:
        if self.asked > self.gone_after:
            raise FAULTS[self.why](prefix)
        return super().list(prefix)


def stored() -> MemoryStorage:
    storage = MemoryStorage()
    room = new_room(storage)
    take(room, "vault", FILES)
    take(room, "vault", {**FILES, b"three": noise("three", 300_000)})
    return storage


def look(storage: MemoryStorage) -> Report:
    room = open_room(stored(), "check")
    room.storage = storage
    return Checker(room, progress=Silent()).run(3)


@pytest.mark.parametrize("why", FAULTS)
def test_one_object_of_each_sort_out_of_reach(why: str) -> None:
    objects = stored().objects
    for name in objects:
        report = look(Away(objects, {name}, why))
        assert report.findings == [], name
        assert report.stopped is None, name
        missed = {missed.object for missed in report.unreached}
        # A snapshot whose trees rest in the pack could not be walked either.
        assert name in missed, name
        assert missed - {name} <= {n for n in objects if n.startswith("snapshots/")}, name
        if name.startswith(("packs/", "trees/")):
            assert report.packs_left == 1
            assert name not in report.verified
        if name.startswith("trees/"):
            assert missed > {name}


def test_damage_beside_it_is_found_and_named() -> None:
    objects = stored().objects
    packs = sorted(name for name in objects if name.startswith("packs/"))
    for pack in packs:
        hurt = dict(objects)
        hurt[pack] = flip(hurt[pack], 8 * 2000)
        alone = look(MemoryStorage(hurt))
        for out in (name for name in objects if name != pack and name.startswith("packs/")):
            report = look(Away(hurt, {out}))
            assert [finding.object for finding in report.findings] == [pack]
            assert report.damaged_snapshots == alone.damaged_snapshots
            missed = {missed.object for missed in report.unreached}
            assert out in missed
            # Facts rest in one of the packs: then the snapshot itself was not all looked at.
            assert all(name.startswith("snapshots/") for name in missed - {out})


def test_a_snapshot_that_could_not_be_walked_is_not_acquitted() -> None:
    """Refs blame it for a pack; only its trees could tell that no file needs what is lost there."""
    objects = stored().objects
    pack = next(name for name in objects if name.startswith("packs/"))
    del objects[pack]
    trees = {name for name in objects if name.startswith("trees/")}
    report = look(Away(objects, trees))
    (finding,) = [one for one in report.findings if one.object == pack]
    assert finding.snapshots != []
    assert {missed.object for missed in report.unreached} >= trees


@pytest.mark.parametrize("why", FAULTS)
def test_a_store_that_ceases_to_answer_stops_the_check(why: str) -> None:
    objects = stored().objects
    whole = Away(objects, set())
    look(whole)
    for moment in range(0, whole.asked, 3):
        storage = Away(objects, set(), why)
        storage.gone_after = moment
        report = look(storage)
        assert report.findings == []
        assert isinstance(report.stopped, StrongroomError)
        assert storage.asked <= moment + 5, "a store that is away was asked again and again"


def test_a_listing_that_fails_is_the_error_itself() -> None:
    storage = stored()
    with pytest.raises(StorageUnreachable):
        look(FaultyStorage(storage, Plan(Fault.TIMEOUT, 1)))  # type: ignore[arg-type]


def test_a_pack_that_is_gone_is_damage() -> None:
    storage = stored()
    pack = max(
        (n for n in storage.objects if n.startswith("packs/")),
        key=lambda n: len(storage.objects[n]),
    )
    del storage.objects[pack]
    report = look(storage)
    assert [finding.object for finding in report.findings] == [pack]
    assert report.damaged_snapshots == sorted(one.id for one in committed(open_room(storage, 1)))
    assert report.unreached == []


def test_where_we_cannot_look_nothing_is_called_lost() -> None:
    """A segment and a pack that it alone tells of, both out of reach."""
    objects = stored().objects
    segments = {name for name in objects if name.startswith("index/")}
    for pack in (name for name in objects if name.startswith(("packs/", "trees/"))):
        report = look(Away(objects, {*segments, pack}))
        assert report.findings == []
        assert {missed.object for missed in report.unreached} > {*segments, pack}
