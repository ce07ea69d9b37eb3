"""What a check proves: whole backups when all was read, and by budget once a round is complete."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from rooms import (
    BIRTH,
    Clock,
    committed,
    expire,
    new_room,
    noise,
    open_room,
    prune,
    take,
    writer_keys,
)
from strongroom.errors import StorageUnreachable
from strongroom.operations.check import check
from strongroom.progress import Silent
from strongroom.repository.check import Report
from strongroom.storage.faulty import FaultyStorage, flip
from strongroom.storage.memory import MemoryStorage


@pytest.fixture
def stored() -> tuple[MemoryStorage, list[str]]:
    """Three backups; the first two share a pack, each has packs of its own."""
    storage = MemoryStorage()
    room = new_room(storage)
    shared = {"shared": noise("shared", 300_000)}
    for number in range(3):
        more = shared if number < 2 else {}
        back_up(storage, number, **more)
    return storage, [one.id for one in committed(room)]


def back_up(storage: MemoryStorage, number: int, **more: bytes) -> None:
    """The backup of a day; its files are those given and one of its own."""
    files = {name.encode(): content for name, content in more.items()}
    room = open_room(storage, number, clock=Clock(BIRTH + timedelta(days=number)))
    take(room, "vault", {**files, b"own": noise(number, 300_000)})


def run(storage: object, seed: object = "check", **how: object) -> Report:
    room = open_room(storage, seed)  # type: ignore[arg-type]
    return check(room, level=how.pop("level", 3), progress=Silent(), **how)  # type: ignore[arg-type]


def packs_of(storage: MemoryStorage) -> list[str]:
    return sorted(name for name in storage.objects if name.startswith(("packs/", "trees/")))


def test_a_check_of_everything_proves_every_backup(
    stored: tuple[MemoryStorage, list[str]],
) -> None:
    storage, ids = stored
    assert run(storage).whole == ids[::-1]
    assert run(storage, level=1).whole == []
    writer = open_room(storage, "writer", keyset=writer_keys())
    assert check(writer, level=3, progress=Silent()).whole == []  # it opens nothing
    expire(open_room(storage, "expire"), committed(open_room(storage, "look"))[0])
    prune(open_room(storage, "prune"))
    assert run(storage).whole == ids[:0:-1]


def test_damage_takes_the_proof_from_who_relies_on_it_and_nobody_else(
    stored: tuple[MemoryStorage, list[str]],
) -> None:
    storage, ids = stored
    for name in packs_of(storage):
        spoiled = storage.fork()
        spoiled.objects[name] = flip(spoiled.objects[name], 4 * len(spoiled.objects[name]))
        report = run(spoiled)
        assert report.spoiled == [name]
        assert {*report.whole} == {*ids} - {*report.damaged_snapshots}
        del spoiled.objects[name]
        report = run(spoiled)
        assert report.damaged_snapshots
        assert {*report.whole} == {*ids} - {*report.damaged_snapshots}


def test_what_could_not_be_reached_proves_nothing(stored: tuple[MemoryStorage, list[str]]) -> None:
    storage, ids = stored
    for prefix in ("packs/", "trees/", "refs/", "index/", "snapshots/"):
        name = min(name for name in storage.objects if name.startswith(prefix))
        report = run(Away(storage, name))
        assert report.findings == []
        assert len(report.whole) < len(ids), name


class Away(FaultyStorage):
    """A store of which one object cannot be read."""

    def __init__(self, inner: MemoryStorage, name: str) -> None:
        super().__init__(inner)
        self._name = name

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        if name == self._name:
            raise StorageUnreachable(f"{name} does not answer.")
        return super().get(name, offset=offset, length=length)


def test_a_round_of_small_budgets_proves_what_it_came_round_to(
    stored: tuple[MemoryStorage, list[str]], tmp_path: Path
) -> None:
    storage, ids = stored
    state = str(tmp_path / "verified.json")
    proved: list[list[str]] = []
    while not proved or len(proved[-1]) < 3:
        proved.append(run(storage, len(proved), size=1, state=state).whole)
        assert len(proved) < 10
    assert len(proved) > 1 and proved[0] == []
    # A new backup is none of them before its own packs were read.
    back_up(storage, 3)
    assert run(storage, "again", size=0, state=state).whole == ids[::-1]
    assert len(run(storage, "again", state=state).whole) == 4
    Path(state).unlink()
    assert run(storage, "lost", size=1, state=state).whole == []


def test_what_was_found_spoiled_is_not_remembered_as_read(
    stored: tuple[MemoryStorage, list[str]], tmp_path: Path
) -> None:
    """A later check that does not come so far must not take the word of one before the damage."""
    storage, _ = stored
    state = str(tmp_path / "verified.json")
    run(storage, state=state)
    (name, *_) = packs_of(storage)
    whole = storage.objects[name]
    storage.objects[name] = flip(whole, 4 * len(whole))
    hurt = run(storage, state=state).damaged_snapshots
    assert hurt and name not in json.loads(Path(state).read_text())
    report = run(storage, size=0, state=state)
    assert report.findings == [] and not {*hurt} & {*report.whole}
    storage.objects[name] = whole
    assert {*hurt} <= {*run(storage, size=1, state=state).whole}
