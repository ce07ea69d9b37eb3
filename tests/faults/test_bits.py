"""One bit flipped in every byte, a cut at every length, objects removed, swapped, rolled back.

For each: `check` names the object and exactly those snapshots that then really do not restore;
what is restored is right or refused, never wrong. The truth is found by restoring.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from day import HELD, enter, expected, holder, small_repository

from rooms import QUIET, Clock, committed, read, seams, take
from strongroom.errors import StrongroomError
from strongroom.operations.opening import open_repository
from strongroom.progress import Silent
from strongroom.repository.check import Checker, Report
from strongroom.repository.identity import Identity
from strongroom.repository.keyring import Keyring
from strongroom.repository.repository import Repository
from strongroom.storage.faulty import flip
from strongroom.storage.memory import MemoryStorage


@dataclass(frozen=True)
class Whole:
    """The repository before any damage, opened once: keys and identity are at hand."""

    objects: dict[str, bytes]
    identity: Identity
    keys: Keyring
    snapshots: dict[str, str]  # id → what it holds
    marks: dict[str, str]  # id → the mark that says that it was committed


@functools.cache
def whole() -> Whole:
    storage = small_repository()
    room = enter(storage, "whole")
    assert isinstance(room.keys, Keyring)
    snapshots = {snapshot.id: snapshot.labels["held"] for snapshot in committed(room)}
    marks = {one.id: f"sessions/{one.group}/{one.session}.1" for one in committed(room)}
    return Whole(dict(storage.objects), room.identity, room.keys, snapshots, marks)


def reopen(storage: MemoryStorage, seed: object = "again") -> Repository:
    """A fresh process that has opened the repository before the damage."""
    return Repository(
        storage, whole().identity, whole().keys, seams=seams(seed, Clock()), settings=QUIET
    )


def truth(storage: MemoryStorage) -> list[str]:
    """The snapshots that do not restore; AssertionError when one restores to something else."""
    room = reopen(storage)
    listed = {snapshot.id: snapshot for snapshot in committed(room)}
    lost = []
    for snapshot, held in whole().snapshots.items():
        if snapshot not in listed:
            lost.append(snapshot)
            continue
        try:
            found = read(room.open_snapshot(listed[snapshot]))
        except StrongroomError as fault:
            assert fault.exit_status in (5, 9)
            lost.append(snapshot)
            continue
        assert found == expected(held), "a wrong byte was restored"
    return sorted(lost)


def judge(damage: dict[str, bytes | None], *, must_name: bool = True) -> Report:
    """Apply damage; compare what `check` says with the truth."""
    storage = MemoryStorage()
    storage.objects.update(whole().objects)
    for name, data in damage.items():
        if data is None:
            del storage.objects[name]
        else:
            storage.objects[name] = data
    report = Checker(reopen(storage), progress=Silent()).run(3)
    named = {finding.object for finding in report.findings}
    if must_name:
        assert named & set(damage), f"not named: {report.findings} {report.notes}"
    lost = truth(storage)
    # A commit record that is gone altogether is named by its session's mark; without that the
    # refs alone tell of it, as of a run that did not commit.
    ids = [
        name.rsplit("-", 1)[-1] for name, data in damage.items() if data is None and is_commit(name)
    ]
    gone = [one for one in ids if whole().marks[one] in damage]
    assert report.damaged_snapshots == [one for one in lost if one not in gone], report.findings
    for finding in report.findings:
        for snapshot, paths in finding.files.items():
            assert_files(storage, snapshot, paths)
    return report


def is_commit(name: str) -> bool:
    return name.startswith("snapshots/")


def assert_files(storage: MemoryStorage, snapshot: str, paths: list[bytes]) -> None:
    """The files that a finding names are those that do not restore, where the tree can be read."""
    if any(path.endswith(b"...") for path in paths):
        return
    room = reopen(storage)
    (record,) = [one for one in committed(room) if one.id == snapshot]
    reader = room.open_snapshot(record)
    lost = []
    for entry, pieces in reader.contents(reader.entries()):
        try:
            for _ in pieces:
                continue
        except StrongroomError:
            lost.append(entry.path)
    assert sorted(paths) == lost


def flips(name: str, every: int = 1) -> Iterator[dict[str, bytes | None]]:
    data = whole().objects[name]
    for at in range(0, len(data), every):
        yield {name: flip(data, 8 * at + at * 5 % 8)}


def cuts(name: str, every: int = 1) -> Iterator[dict[str, bytes | None]]:
    data = whole().objects[name]
    for length in range(0, len(data), every):
        yield {name: data[:length]}


def longer(name: str) -> Iterator[dict[str, bytes | None]]:
    data = whole().objects[name]
    for more in (1, 16, 4096):
        yield {name: data + bytes(more)}
        yield {name: data + data[-more:]}


NAMES = [f"object {number:02d}" for number in range(26)]


def named(number: str) -> str:
    """Objects by number, as their names hold hashes that are others in every run."""
    return sorted(whole().objects)[int(number.split()[1])]


Record = Callable[[str, object], None]
Ways = Callable[[str], Iterator[dict[str, bytes | None]]]


def test_the_small_repository_is_small_and_holds_every_type() -> None:
    objects = whole().objects
    assert sum(map(len, objects.values())) < 90_000
    assert len(objects) == len(NAMES)
    assert {name.split("/")[0] for name in objects} == {
        "strongroom.json", "keys", "packs", "trees", "index", "refs", "snapshots", "sessions", "gc",
    }  # fmt: skip
    storage = MemoryStorage()
    storage.objects.update(objects)
    assert Checker(reopen(storage), progress=Silent()).run(3).findings == []
    assert truth(storage) == []
    assert len(whole().snapshots) == 3


@pytest.mark.parametrize("number", NAMES)
def test_a_sample_of_flips_and_cuts(number: str) -> None:
    name = named(number)
    drawn = random.Random(number)
    ways = [*flips(name), *cuts(name)]
    for damage in [*drawn.sample(ways, min(30, len(ways))), *longer(name)]:
        judge(damage)


@pytest.mark.parametrize("number", NAMES)
def test_every_object_removed(number: str) -> None:
    name = named(number)
    storage = MemoryStorage()
    storage.objects.update(whole().objects)
    del storage.objects[name]
    # Nothing names a key slot, a mark or the end of a prune but itself: docs/format.md, chapter 14.
    report = judge({name: None}, must_name=False)
    if name.startswith(("keys/", "sessions/")) or name.endswith(".done"):
        assert report.findings == []
    else:
        assert name in {finding.object for finding in report.findings} or is_told_of(name, report)


def is_told_of(name: str, report: Report) -> bool:
    """An index segment that is gone is named by the refs that nothing else resolves."""
    return name.startswith("index/") and report.findings != []


def test_every_two_objects_swapped() -> None:
    objects = whole().objects
    pairs = list(itertools.combinations(sorted(objects), 2))
    for one, other in random.Random("pairs").sample(pairs, 150):
        judge({one: objects[other], other: objects[one]})


def test_identity_and_keys_that_are_damaged_open_nothing_wrong() -> None:
    """Opening anew, from the damaged objects: it works as ever, or is refused with its reason."""
    for name in (n for n in whole().objects if n.startswith(("keys/", "strongroom"))):
        for damage in itertools.chain(flips(name, 7), cuts(name, 41)):
            storage = MemoryStorage()
            storage.objects.update({**whole().objects, **{k: v for k, v in damage.items() if v}})
            try:
                room = open_repository(storage, [holder()], seams=seams("x"))
            except StrongroomError as fault:
                assert fault.exit_status in (2, 5, 8, 9)
                continue
            assert room.keys.current == whole().keys.current
            assert room.identity == whole().identity


def test_the_store_rolled_back_to_every_earlier_state() -> None:
    """Objects are written once, so an older state is a run that stopped: whole, if shorter."""
    storage = MemoryStorage()
    states: list[dict[str, bytes]] = []
    put = storage.put

    def remember(name: str, data: bytes, *, if_absent: bool = False) -> None:
        put(name, data, if_absent=if_absent)
        states.append(dict(storage.objects))

    made = ("strongroom.json", "keys/")
    storage.objects.update({n: d for n, d in whole().objects.items() if n.startswith(made)})
    storage.put = remember  # type: ignore[method-assign]
    room = reopen(storage)
    for held in ("files 1", "files 2"):
        take(room, "vault", HELD[held])
    assert len(states) > 10
    for number, state in enumerate(states):
        older = MemoryStorage()
        older.objects.update(state)
        assert Checker(reopen(older), progress=Silent()).run(3).findings == []
        snapshots = committed(reopen(older))
        for snapshot, held in zip(snapshots, ("files 1", "files 2"), strict=False):
            assert read(reopen(older).open_snapshot(snapshot)) == expected(held)
        again = reopen(older, ("rolled back", number))
        report = take(again, "vault", HELD["files 2"])
        assert read(again.open_snapshot(report.snapshot)) == expected("files 2")


def sweep(ways: Iterator[dict[str, bytes | None]]) -> tuple[int, list[str]]:
    count, failures = 0, []
    for damage in ways:
        count += 1
        try:
            judge(damage)
        except KeyboardInterrupt:
            raise
        except BaseException as failure:
            ((name, data),) = damage.items()
            where = next(
                (at for at, (a, b) in enumerate(zip(whole().objects[name], data or b"", strict=False))
                 if a != b), len(data or b""),
            )  # fmt: skip
            failures.append(f"{name} at {where}: {type(failure).__name__}: {failure}"[:400])
    return count, failures


@pytest.mark.sweep
@pytest.mark.usefixtures("without_threads")
@pytest.mark.parametrize("number", NAMES)
def test_every_flip_and_every_cut(number: str, record_property: Record) -> None:
    name = named(number)
    count, failures = sweep(itertools.chain(flips(name), cuts(name), longer(name)))
    record_property("faults", (f"flips and cuts of {name.split('/')[0]}", count))
    assert not failures, "\n".join(failures[:20])


@pytest.mark.sweep
@pytest.mark.usefixtures("without_threads")
def test_every_pair_swapped(record_property: Record) -> None:
    objects, count = whole().objects, 0
    for one, other in itertools.combinations(sorted(objects), 2):
        judge({one: objects[other], other: objects[one]})
        count += 1
    for one, other in itertools.permutations(sorted(objects), 2):
        if objects[one] != objects[other]:
            judge({one: objects[other]})
            count += 1
    record_property("faults", ("objects swapped or standing in for another", count))


@pytest.mark.sweep
@pytest.mark.usefixtures("without_threads")
def test_every_two_objects_removed(record_property: Record) -> None:
    count = 0
    for one, other in itertools.combinations(sorted(whole().objects), 2):
        judge({one: None, other: None}, must_name=False)
        count += 1
    record_property("faults", ("pairs of objects removed", count))
