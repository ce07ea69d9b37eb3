"""The journal knows what the log tells, whatever happens to its files; and it remembers what it saw."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rooms import BIRTH, Clock, drawn, new_room, open_room
from strongroom.errors import (
    Damaged,
    Incomplete,
    Interrupted,
    Refused,
    StorageUnreachable,
    StrongroomError,
    UsageError,
)
from strongroom.format import audit as names
from strongroom.format.run import Run
from strongroom.observe.changes import Configured, digest
from strongroom.observe.journal import Journal
from strongroom.observe.outbox import Outbox
from strongroom.operations.recording import Draft, Recorder, Who
from strongroom.repository.audit import AuditLog
from strongroom.repository.repository import Repository
from strongroom.storage.faulty import CRASHES, ERRORS, Crash, Fault, FaultyStorage, Plan, applies
from strongroom.storage.memory import MemoryStorage


def run(number: int, **how: Any) -> Run:
    moment = BIRTH + timedelta(hours=number)
    return Run("backup", f"{number:016x}", moment, moment, **{"what": f"backup {number}"} | how)


@pytest.fixture
def storage() -> MemoryStorage:
    storage = MemoryStorage()
    new_room(storage)
    return storage


def log_of(storage: Any, seed: object = "x") -> AuditLog:
    room = open_room(storage if isinstance(storage, MemoryStorage) else storage._inner, seed)
    return AuditLog(room, storage=storage)


def grow(storage: MemoryStorage, *numbers: int, **how: Any) -> None:
    log = log_of(storage, numbers)
    for number in numbers:
        log.append(run(number, **how))


def whats(journal: Journal, **how: Any) -> list[str]:
    return [each.what for each in journal.runs(**how)]


# -- reading ---------------------------------------------------------------------------------


def test_runs_by_source_type_and_time(storage: MemoryStorage, tmp_path: Path) -> None:
    grow(storage, 0, 1, source="db")
    grow(storage, 2, source="vault")
    log_of(storage).append(Run("restore", "f" * 16, BIRTH, BIRTH, source="db", what="restore"))
    journal = Journal(str(tmp_path / "j"), log_of(storage))
    assert whats(journal) == ["backup 0", "backup 1", "backup 2", "restore"]
    assert whats(journal, source="db") == ["backup 0", "backup 1", "restore"]
    assert whats(journal, source="db", type="restore") == ["restore"]
    assert whats(journal, since=BIRTH + timedelta(hours=1)) == ["backup 1", "backup 2"]
    assert journal.warnings == []


def test_only_what_is_new_is_read(storage: MemoryStorage, tmp_path: Path) -> None:
    grow(storage, *range(20))
    Journal(str(tmp_path), log_of(storage)).runs()
    grow(storage, 20, 21)
    faulty = FaultyStorage(storage)
    journal = Journal(str(tmp_path), log_of(faulty))
    assert len(journal.runs()) == 22
    assert sum(each.verb == "get" for each in faulty.trace) <= 4


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def nonsense(path: Path) -> None:
    path.write_bytes(os.urandom(9000))


def flip(path: Path) -> None:
    data = path.read_bytes()
    at = data.index(b'"what":"backup 1"') + 9
    path.write_bytes(data[:at] + b"X" + data[at + 1 :])


def lose_rows(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("DROP TABLE leaf")


def other_log(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("UPDATE state SET value = '1 0000' WHERE name = 'of'")


@pytest.mark.parametrize("spoil", [cut, nonsense, flip, lose_rows, other_log, os.unlink])
def test_what_is_lost_or_damaged_is_built_again(
    storage: MemoryStorage, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    grow(storage, 0, 1, 2)
    Journal(str(tmp_path), log_of(storage)).runs()
    spoil(tmp_path / "journal.sqlite")
    for _ in range(2):
        journal = Journal(str(tmp_path), log_of(storage))
        assert whats(journal) == ["backup 0", "backup 1", "backup 2"]
        assert journal.warnings == []
        journal.close()


def test_a_folder_that_cannot_be_written_costs_time_only(
    storage: MemoryStorage, tmp_path: Path
) -> None:
    grow(storage, 0, 1)
    (tmp_path / "file").touch()
    journal = Journal(str(tmp_path / "file/below"), log_of(storage))
    assert whats(journal) == ["backup 0", "backup 1"]
    ticket = journal.outbox.begin(run(2))
    ticket.end(run(2))
    assert journal.append(ticket) == 2
    assert whats(journal) == ["backup 0", "backup 1", "backup 2"]


def test_a_log_out_of_reach_leaves_what_is_known(storage: MemoryStorage, tmp_path: Path) -> None:
    grow(storage, 0, 1)
    Journal(str(tmp_path), log_of(storage)).runs()
    away = FaultyStorage(storage, Plan(Fault.TIMEOUT, 1, lasting=True))
    journal = Journal(str(tmp_path), log_of(away))
    assert whats(journal) == ["backup 0", "backup 1"]
    assert "the newest runs are unknown" in journal.warnings[0]


def test_a_damaged_run_is_passed_over_and_told(storage: MemoryStorage, tmp_path: Path) -> None:
    grow(storage, 0, 1, 2)
    storage.objects[names.leaf_name(1)] += b"?"
    journal = Journal(str(tmp_path), log_of(storage))
    assert whats(journal) == ["backup 0", "backup 2"]
    assert "a run is unknown" in journal.warnings[0]
    grow(storage, 3)
    assert whats(journal) == ["backup 0", "backup 2", "backup 3"]


# -- remembering -----------------------------------------------------------------------------


@pytest.mark.parametrize("rewrite", [0, 1, 3], ids=["cut", "as long", "longer"])
@pytest.mark.parametrize("by", ["reading", "appending"])
def test_an_older_state_of_the_log_is_told_and_kept_as_evidence(
    storage: MemoryStorage, tmp_path: Path, rewrite: int, by: str
) -> None:
    grow(storage, 0, 1)
    older = storage.fork()
    grow(storage, 2)
    Journal(str(tmp_path), log_of(storage)).refresh()
    grow(older, *range(50, 50 + rewrite))
    journal = Journal(str(tmp_path), log_of(older))
    if by == "reading":
        assert len(journal.runs()) == 2 + rewrite
    else:
        ticket = journal.outbox.begin(run(9))
        ticket.end(run(9))
        journal.append(ticket)
    assert "is not the one that this machine has seen" in journal.warnings[0]
    grow(older, 60, 61, 62)
    again = Journal(str(tmp_path), log_of(older))
    again.refresh()
    report = log_of(older).verify()
    assert report.whole
    assert len(again.verify(report)) == 1  # whatever comes later


def test_others_who_write_are_no_contradiction(storage: MemoryStorage, tmp_path: Path) -> None:
    for number in range(0, 30, 3):
        grow(storage, number, number + 1)
        journal = Journal(str(tmp_path), log_of(storage))
        ticket = journal.outbox.begin(run(number + 2))
        ticket.end(run(number + 2))
        journal.append(ticket)
        assert journal.warnings == []
        assert journal.verify(log_of(storage).verify()) == []
    assert json.loads((tmp_path / "seen.json").read_text())["last"]["size"] == 30


# -- the outbox ------------------------------------------------------------------------------


def test_a_run_of_a_process_that_lives_is_left_alone(tmp_path: Path) -> None:
    outbox = Outbox(str(tmp_path))
    ticket = outbox.begin(run(1))
    assert list(outbox.left()) == []
    ticket.leave()
    (found,) = outbox.left()
    assert found.found_at(BIRTH).outcome == "interrupted"
    found.done()
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_process_was_killed_is_found(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from datetime import datetime, UTC\n"
        "from strongroom.format.run import Run\n"
        "from strongroom.observe.outbox import Outbox\n"
        "now = datetime(2026, 7, 1, tzinfo=UTC)\n"
        "Outbox(sys.argv[1]).begin(Run('backup', 'a' * 16, now, now, what='backup db'))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == -9
    (found,) = Outbox(str(tmp_path)).left()
    told = found.found_at(BIRTH)
    assert (told.outcome, told.code, told.ended) == ("interrupted", "interrupted", BIRTH)
    assert "its process died" in told.what


def test_files_that_are_none_are_put_aside(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\n")
    torn = {"version": 1, "state": "begun", "run": run(1).as_json()}
    (tmp_path / "c.jsonl").write_text(json.dumps(torn) + '\n{"version": 1, "state": "en')
    (found,) = Outbox(str(tmp_path)).left()
    assert not found.ended
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "a.jsonl.bad",
        "b.jsonl.bad",
        "c.jsonl",
    ]


# -- recording -------------------------------------------------------------------------------


class Machine:
    """A host that runs commands; each is a process of its own."""

    def __init__(self, storage: MemoryStorage, folder: Path) -> None:
        self.storage, self.folder = storage, folder
        self.clock = Clock()
        self.warnings: list[str] = []
        self.configured: Configured | None = None
        self.count = 0
        self.draft = Draft()

    def recorder(self) -> Recorder:
        self.count += 1
        return Recorder(
            str(self.folder),
            Who("db1", "root"),
            now=self.clock.now,
            random=drawn((str(self.folder), self.count)),
            warn=self.warnings.append,
            configured=lambda: self.configured,
        )

    def back_up(self, what: str, storage: Any = None, fault: BaseException | None = None) -> None:
        recorder = self.recorder()
        with recorder.recorded("backup", source="vault", what=what) as self.draft:
            recorder.opened(room_of(storage or self.storage))
            if fault is not None:
                raise fault

    def die(self) -> None:
        """A process that is gone holds no lock."""
        assert self.draft.ticket is not None
        os.close(self.draft.ticket._file)

    def told(self) -> list[Run]:
        return [each for _, each in log_of(self.storage, "told").leaves()]


def room_of(storage: Any) -> Repository:
    if isinstance(storage, FaultyStorage):
        room = open_room(storage._inner, "process")
        room.storage = storage
        return room
    return open_room(storage, "process")


@pytest.fixture
def machine(storage: MemoryStorage, tmp_path: Path) -> Machine:
    return Machine(storage, tmp_path)


def test_how_a_run_ends_is_what_the_log_says(machine: Machine) -> None:
    interrupted = Interrupted("Stopped by SIGTERM.")
    interrupted.exit_status = 143  # type: ignore[misc]
    for fault in (
        None, Incomplete("some"), Refused("no"), Damaged("bits"), interrupted, ValueError("bug"),
        KeyboardInterrupt(), UsageError("words"),
    ):  # fmt: skip
        try:
            machine.back_up("it", fault=fault)
        except BaseException as raised:
            assert raised is fault
    assert [(each.outcome, each.exit, each.code) for each in machine.told()] == [
        ("done", 0, ""),
        ("incomplete", 3, "incomplete"),
        ("refused", 4, "refused"),
        ("failed", 9, "damaged"),
        ("interrupted", 143, "interrupted"),
        ("failed", 1, "failed"),
        ("interrupted", 130, "interrupted"),
    ]
    first = machine.told()[0]
    assert (first.host, first.user, first.source, first.trigger) == (
        "db1",
        "root",
        "vault",
        "manual",
    )
    assert len(first.run) == 16
    assert first.started < first.ended
    assert list((machine.folder / "outbox").iterdir()) == []


def test_what_a_draft_says(machine: Machine) -> None:
    recorder = machine.recorder()
    recorder.opened(open_room(machine.storage, "x"))
    with recorder.recorded("check") as draft:
        draft.size, draft.problems, draft.detail = 7, 2, {"level": 3, "part": 0.25}
    with recorder.recorded("restore", trigger="drill") as draft:
        draft.missed, draft.exit = True, 10
    with recorder.recorded("expire") as draft:
        draft.nothing = True
    with recorder.recorded("backup") as draft:
        draft.dismiss()
        assert list((machine.folder / "outbox").iterdir()) == []
    recorder.tell("schedule", what="missed\nthe window", source="db")
    told = machine.told()
    assert [(each.type, each.outcome, each.exit) for each in told] == [
        ("check", "incomplete", 3), ("restore", "missed", 10), ("schedule", "done", 0),
    ]  # fmt: skip
    assert told[0].detail == {"level": 3, "part": "0.25"}
    assert told[1].trigger == "drill"
    assert told[2].what == "missed the window"


def test_a_run_that_could_not_be_told_is_told_by_the_next_one(machine: Machine) -> None:
    away = FaultyStorage(machine.storage, Plan(Fault.TIMEOUT, 1, lasting=True))
    machine.back_up("first", away)
    machine.back_up("second", away)
    assert machine.told() == []
    assert len(machine.warnings) == 2
    assert "not in the audit log yet" in machine.warnings[0]
    machine.back_up("third")
    assert [each.what for each in machine.told()] == ["first", "second", "third"]
    assert len(machine.warnings) == 2


def test_a_run_whose_repository_did_not_open_is_told_later(machine: Machine) -> None:
    with pytest.raises(StorageUnreachable), machine.recorder().recorded("backup"):
        raise StorageUnreachable("No answer.")
    machine.back_up("next")
    told = machine.told()
    assert [each.outcome for each in told] == ["failed", "done"]
    assert told[0].code == "storage-unreachable"
    assert told[0].what == "backup: No answer."


def test_runs_of_another_repository_at_the_same_place_are_not_told_here(machine: Machine) -> None:
    away = FaultyStorage(machine.storage, Plan(Fault.TIMEOUT, 1, lasting=True))
    machine.back_up("of the old one", away)
    (file,) = (machine.folder / "outbox").iterdir()
    lines = file.read_text().replace(bytes(range(16)).hex(), bytes(16).hex())
    file.write_text(lines)
    machine.back_up("of the new one")
    assert [each.what for each in machine.told()] == ["of the new one"]


def test_a_crash_or_an_error_at_every_operation_tells_each_run_once(
    storage: MemoryStorage, tmp_path: Path
) -> None:
    grow(storage, 0, 1, 2)
    clean = FaultyStorage(storage.fork())
    Machine(storage, tmp_path / "clean").back_up("it", clean)
    plans = [
        Plan(fault, at)
        for fault in sorted(CRASHES | ERRORS - {Fault.EIO, Fault.ENOSPC, Fault.SLOW_DOWN}, key=str)
        for at in range(1, len(clean.trace) + 1)
        if applies(fault, clean.trace[at - 1].verb) and fault is not Fault.TORN_VISIBLE
    ]
    assert len(plans) > 20
    for number, plan in enumerate(plans):
        inner = storage.fork()
        machine = Machine(inner, tmp_path / str(number))
        try:
            machine.back_up("it", FaultyStorage(inner, plan))
        except Crash:
            machine.die()
        machine.back_up("next")
        told = [each.what for each in machine.told()[3:]]
        assert sorted(told) == ["it", "next"], plan
        assert log_of(inner).verify().whole, plan
        assert list((machine.folder / "outbox").iterdir()) == []


def test_a_configuration_that_changed_is_told_with_names_and_no_values(machine: Machine) -> None:
    values = {"repository.url": digest("a"), "source.db.dsn": digest("b")}
    machine.configured = Configured("/etc/strongroom.toml", values)
    machine.back_up("one")
    machine.back_up("two")
    machine.configured = Configured(
        "/etc/strongroom.toml", {**values, "source.db.dsn": digest("c")}
    )
    machine.back_up("three")
    told = machine.told()
    assert [each.type for each in told] == ["config", "backup", "backup", "config", "backup"]
    first, second = told[0], told[3]
    assert second.what.endswith("changed: source.db.dsn")
    assert second.detail["before"] == first.detail["hash"] != second.detail["hash"]
    assert second.detail["changed"] == ["source.db.dsn"]


def test_a_recording_changes_nothing_of_what_a_run_says(machine: Machine) -> None:
    """Not even where nothing can be written at all."""
    machine.folder = machine.folder / "file"
    machine.folder.touch()
    away = FaultyStorage(machine.storage, Plan(Fault.DENIED, 1, lasting=True))
    with pytest.raises(StrongroomError, match="the real reason"):
        machine.back_up("it", away, fault=StrongroomError("the real reason"))
    assert "not in the audit log yet" in machine.warnings[0]
    assert "kept" not in machine.warnings[0]
    assert Draft().detail == {}
