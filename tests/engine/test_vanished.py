"""Objects that nothing names but themselves, gone: what can be told of them from what remains."""

from __future__ import annotations

import pytest
from blake3 import blake3

from rooms import committed, expire, new_room, noise, open_room, prune, restore, take
from strongroom.format.record import canonical
from strongroom.progress import Silent
from strongroom.repository.check import Checker, Report
from strongroom.repository.keyring import Keyring
from strongroom.storage.faulty import Crash, Fault, FaultyStorage, Plan
from strongroom.storage.memory import MemoryStorage

FILES = {b"one": noise("one", 30_000)}


def stored() -> MemoryStorage:
    storage = MemoryStorage()
    room = new_room(storage)
    take(room, "vault", FILES)
    take(room, "vault", {**FILES, b"two": noise("two", 30_000)})
    return storage


def look(storage: MemoryStorage, level: int = 0) -> Report:
    return Checker(open_room(storage, "check"), progress=Silent()).run(level)


def names(storage: MemoryStorage, prefix: str) -> list[str]:
    return sorted(name for name in storage.objects if name.startswith(prefix))


@pytest.mark.parametrize("level", [0, 3])
def test_a_commit_record_that_vanished_is_named_with_what_is_lost(level: int) -> None:
    storage = stored()
    snapshot = committed(open_room(storage, "list"))[0]
    record = storage.objects.pop(snapshot.name)
    (finding,) = look(storage, level).findings
    assert (finding.object, finding.snapshots) == (snapshot.name, [snapshot.id])
    assert "bring the record back" in finding.reason
    assert prune(open_room(storage, "prune")).kept == [snapshot.name]
    storage.objects[snapshot.name] = record  # as the finding says: from a copy
    assert look(storage, 3).findings == []
    assert restore(open_room(storage, "read"), snapshot) == FILES


def test_a_commit_record_and_its_refs_that_vanished_are_named() -> None:
    storage = stored()
    snapshot = committed(open_room(storage, "list"))[1]
    del storage.objects[snapshot.name], storage.objects[f"refs/vault/{snapshot.id}"]
    (finding,) = look(storage).findings
    assert (finding.object, finding.snapshots) == (snapshot.name, [snapshot.id])
    assert "refs are gone too" in finding.reason


def test_a_commit_record_that_is_given_up_is_swept_like_any_other() -> None:
    storage = stored()
    room = open_room(storage, "give up")
    snapshot = committed(room)[1]
    del storage.objects[snapshot.name]
    expire(room, snapshot)
    assert prune(room).swept == [snapshot.name]
    assert look(storage, 3).findings == []
    assert names(storage, "fates/") == []


def test_a_backup_that_is_expired_or_swept_is_not_missed() -> None:
    storage = stored()
    room = open_room(storage, "expire")
    expire(room, committed(room)[0])
    assert look(storage, 3).findings == []
    prune(open_room(storage, "prune"))
    assert look(storage, 3).findings == []
    assert len(names(storage, "snapshots/")) == len(names(storage, "refs/")) == 1
    assert names(storage, "fates/") == []


def test_a_prune_that_stops_anywhere_is_no_loss_and_is_finished_by_the_next() -> None:
    """Every operation of it, before and after its effect; then nothing unreachable is left."""
    before = stored()
    kept = take(open_room(before, "third"), "vault", {b"three": noise("three", 9000)}).snapshot
    for snapshot in committed(open_room(before, "list")):
        if snapshot != kept:
            expire(open_room(before, "expire"), snapshot)
    quiet = FaultyStorage(before.fork())
    prune(open_room(quiet, "prune"))
    steps = len(quiet.trace)
    assert steps > 30
    for at in range(2, steps + 1):
        for fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
            storage = before.fork()
            with pytest.raises(Crash):
                prune(open_room(FaultyStorage(storage, Plan(fault, at)), "prune"))
            assert restore(open_room(storage, "read"), kept) == {b"three": noise("three", 9000)}
            assert look(storage, 3).findings == [], (at, fault)
            prune(open_room(storage, "again"))
            assert look(storage, 3).findings == [], (at, fault)
            assert restore(open_room(storage, "read"), kept) == {b"three": noise("three", 9000)}
            assert names(storage, "fates/") == []
            assert len(names(storage, "refs/")) == len(names(storage, "snapshots/")) == 1
            last = prune(open_room(storage, "last"))
            assert (last.waste, last.dead, last.repacked, last.kept) == (0, 0, 0, [])


def test_a_run_that_did_not_commit_is_only_noted() -> None:
    storage = stored()
    before = set(storage.objects)
    trace = FaultyStorage(storage.fork())
    take(open_room(trace, "run"), "vault", {b"x": b"y"})
    commit = next(n for n, op in enumerate(trace.trace, 1) if op.name.startswith("snapshots/"))
    with pytest.raises(Crash):
        crashing = FaultyStorage(storage, Plan(Fault.CRASH_BEFORE, commit))
        take(open_room(crashing, "run"), "vault", {b"x": b"y"})
    assert any(name.startswith("refs/") for name in set(storage.objects) - before)
    report = look(storage, 3)
    assert report.findings == []
    assert any("a run that did not commit" in note for note in report.notes)


def test_a_mark_that_vanished_costs_no_backup() -> None:
    for gone in names(stored(), "sessions/"):
        storage = stored()
        del storage.objects[gone]
        report = look(storage, 3)
        assert report.findings == []
        assert any(gone in note for note in report.notes) == gone.endswith(".0")
        take(open_room(storage, "next"), "vault", FILES)
        assert look(storage, 3).findings == []


def test_a_record_of_a_prune_that_vanished_leaves_a_gap() -> None:
    storage = stored()
    for number in range(3):
        room = open_room(storage, ("prune", number))
        expire(room, take(room, "vault", {b"x": noise(number, 9000)}).snapshot)
        assert prune(room).generation == number + 1
    assert look(storage).findings == []
    for number in (1, 2, 3):
        hit = storage.fork()
        del hit.objects[f"gc/{number:08d}.condemn"]
        (finding,) = look(hit).findings
        assert finding.object == f"gc/{number:08d}.condemn"
        del hit.objects[f"gc/{number:08d}.done"]
        assert [one.object for one in look(hit).findings] == (
            [f"gc/{number:08d}.condemn"] if number < 3 else []
        ), "the last generation, gone without a trace, is what nothing can tell of"


def slot_object(role: str, kind: str) -> tuple[str, bytes]:
    """A key slot as far as a check looks at it without a secret."""
    body = {
        "body": "",
        "created": "2026-07-01T10:00:00Z",
        "epoch": 1,
        "kind": kind,
        "label": kind,
        "parameters": {},
        "role": role,
        "version": 1,
    }
    data = canonical(body)
    return f"keys/1/{blake3(data).hexdigest(16)}.json", data


def test_the_last_slot_that_reads_is_missed() -> None:
    storage = stored()
    reader, writer = slot_object("reader", "recovery-code"), slot_object("writer", "keyfile")
    storage.objects.update([reader, writer])
    room = open_room(storage, "check")
    room.keys = Keyring(room.keys.keysets, {1: reader[0]})
    report = Checker(room, progress=Silent()).run(0)
    assert (report.findings, report.notes) == ([], [])
    del storage.objects[reader[0]]
    report = Checker(room, progress=Silent()).run(0)
    assert [finding.object for finding in report.findings] == ["keys/1/"]
    assert any("recovery code" in note for note in report.notes)
