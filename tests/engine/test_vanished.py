"""Objects that nothing names but themselves, gone: what can be told of them from what remains."""

from __future__ import annotations

import pytest
from blake3 import blake3

from reference_pruner import Pruner
from rooms import committed, expire, new_room, noise, open_room, restore, take
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
    assert "before the next prune" in finding.reason
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


def test_after_a_prune_it_is_said_that_the_contents_are_given_up() -> None:
    storage = stored()
    snapshot = committed(open_room(storage, "list"))[1]
    del storage.objects[snapshot.name]
    Pruner(open_room(storage, "prune")).run()
    (finding,) = look(storage).findings
    assert (finding.object, finding.snapshots) == (snapshot.name, [snapshot.id])
    assert "given up" in finding.reason


def test_a_snapshot_that_was_removed_is_not_missed() -> None:
    storage = stored()
    room = open_room(storage, "expire")
    expire(room, committed(room)[0])
    report = look(storage, 3)
    assert report.findings == []
    assert any("a snapshot that was removed" in note for note in report.notes)
    Pruner(open_room(storage, "prune")).run()
    assert look(storage, 3).findings == []


def test_a_removal_that_stops_anywhere_is_no_loss() -> None:
    for at in (1, 2, 3):
        for fault in (Fault.CRASH_BEFORE, Fault.CRASH_AFTER):
            storage = stored()
            snapshot = committed(open_room(storage, "list"))[0]
            room = open_room(FaultyStorage(storage, Plan(fault, at + 1)), "expire")
            with pytest.raises(Crash):
                expire(room, snapshot)
            assert look(storage, 3).findings == []
            expire(open_room(storage, "again"), snapshot)
            assert look(storage, 3).findings == []


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
        Pruner(open_room(storage, ("prune", number))).run()
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
