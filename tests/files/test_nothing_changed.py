"""Where nothing has changed the last tree is the tree; where anything has, nothing of it is lost.

Over the real engine: what is passed over while all is as it was has to be there in the end.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from rooms import new_room
from strongroom.files.compare import compare_trees
from strongroom.files.sink import FileSink
from strongroom.files.source import FileSource
from strongroom.operations.back_up import back_up
from strongroom.operations.restore import restore
from strongroom.progress import Silent
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.repository import Repository
from strongroom.storage.memory import MemoryStorage


class Place:
    """A vault, a repository and a clock that says that everything was long ago."""

    def __init__(self, tmp_path: Path) -> None:
        self.root, self.cache, self.out = (tmp_path / name for name in ("root", "cache", "out"))
        self.root.mkdir()
        self.repository: Repository = new_room(MemoryStorage())

    def back_up(self) -> tuple[Snapshot, int]:
        source = FileSource(
            "vault",
            os.fsencode(self.root),
            cache_dir=os.fsencode(self.cache),
            repository="room",
            clock=lambda: time.time_ns() + 60_000_000_000,
        )
        report = back_up(self.repository, source, progress=Silent())
        assert not report.problems
        reader = self.repository.open_snapshot(report.snapshot)
        return report.snapshot, int(reader.facts["unchanged"])

    def same(self, snapshot: Snapshot) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        restore(self.repository, snapshot, FileSink(os.fsencode(self.out)), progress=Silent())
        assert compare_trees(os.fsencode(self.root), os.fsencode(self.out)) == []


def fill(root: Path, files: int) -> None:
    for number in range(files):
        folder = root / f"d{number % 7}" / f"e{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"f{number:05}").write_bytes(b"%d," % number * (number % 400))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    fill(place.root, 1500)
    return place


def test_the_tree_of_the_last_run_is_taken_as_it_is(place: Place) -> None:
    first, _ = place.back_up()
    second, unchanged = place.back_up()
    third, _ = place.back_up()  # and the cache is still of use
    assert second.root == first.root == third.root
    assert unchanged == first.root.entries
    assert (second.files, second.size) == (first.files, first.size)
    assert third.new_size == 0
    place.same(third)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "d0/e0/f00000").write_bytes(b"changed"),
        lambda root: (root / "d6/e2/zzz").write_bytes(b"the very last"),
        lambda root: (root / "a").write_bytes(b"the very first"),
        lambda root: (root / "d3/e1/f00010").unlink(),
        lambda root: shutil.rmtree(root / "d6"),
        lambda root: shutil.rmtree(root / "d0"),
        lambda root: os.rename(root / "d3", root / "d31"),
        lambda root: os.utime(root, ns=(5, 5)),
        lambda root: os.chmod(root / "d5", 0o700),
        lambda root: [(root / "d4/e0/f00018").unlink(), (root / "d4/e0/f00018a").touch()],
    ],
)
def test_any_change_is_in_the_next_snapshot(place: Place, change) -> None:
    first, _ = place.back_up()
    change(place.root)
    second, unchanged = place.back_up()
    assert second.root.id != first.root.id
    assert 0 < unchanged < second.root.entries + 600
    place.same(second)
    place.same(place.back_up()[0])


def test_what_the_repository_has_lost_is_read_again(place: Place) -> None:
    first, _ = place.back_up()
    room = Place.__new__(Place)
    room.__dict__.update(place.__dict__)
    room.repository = new_room(MemoryStorage())  # same ids, other storage: nothing is there
    second, _ = room.back_up()
    assert second.size == first.size
    room.same(second)


def test_a_long_run_of_random_changes(place: Place) -> None:
    chance = random.Random(5)
    place.back_up()
    for _ in range(12):
        paths = sorted(path for path in place.root.rglob("*") if path.is_file())
        for path in chance.sample(paths, chance.choice((0, 0, 1, 3))):
            chance.choice(
                (
                    path.unlink,
                    lambda path=path: path.write_bytes(chance.randbytes(chance.randrange(3000))),
                    lambda path=path: path.with_name(path.name + "x").write_bytes(b"new"),
                    lambda path=path: os.chmod(path, 0o640),
                )
            )()
        place.same(place.back_up()[0])
