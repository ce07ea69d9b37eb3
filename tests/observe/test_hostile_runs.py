"""One run, one name in a listing, or one lost answer must not stop what all the others rely on."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from rooms import BIRTH, Clock, drawn, new_room, open_room, seams
from strongroom.errors import (
    AlreadyExists,
    Damaged,
    StorageDenied,
    StorageUnreachable,
    StrongroomError,
)
from strongroom.format import audit as names
from strongroom.format.run import Run
from strongroom.observe import journal as journals
from strongroom.observe.journal import Journal
from strongroom.operations.recording import Recorder, Who
from strongroom.operations.scheduling import run_job
from strongroom.repository.audit import AuditLog
from strongroom.repository.leases import Lease, Leases
from strongroom.rules.cron import Cron
from strongroom.rules.schedule import Job, decide
from strongroom.storage.memory import MemoryStorage


def run(number: int) -> Run:
    return Run("backup", f"{number:016x}", BIRTH, BIRTH, what=f"backup {number}")


@pytest.fixture
def storage() -> MemoryStorage:
    storage = MemoryStorage()
    new_room(storage)
    return storage


def log_of(storage: MemoryStorage, seed: object = "x") -> AuditLog:
    return AuditLog(open_room(storage, seed))


def grow(storage: MemoryStorage, count: int) -> None:
    log = log_of(storage, count)
    for number in range(count):
        log.append(run(number))


def test_bytes_that_are_no_text_are_told_as_they_are(
    storage: MemoryStorage, tmp_path: Path
) -> None:
    """A name on a disk, a user behind sudo: UTF-8 has no such letters, and a leaf is UTF-8."""
    warnings: list[str] = []
    for number, user in enumerate(("jos\udce9", "josé")):
        recorder = Recorder(
            str(tmp_path), Who("db1", user), now=Clock().now, random=drawn(number),
            warn=warnings.append,
        )  # fmt: skip
        with recorder.recorded("read", source="vault", what="get a\udcff") as draft:
            recorder.opened(open_room(storage, number))
            draft.detail = {"pa\udcffth": ["a\udcff"]}
    assert warnings == []
    first, second = (leaf.run for leaf in log_of(storage).entries())
    assert (first.user, second.user) == ("jos\\udce9", "josé")
    assert first.detail == {"pa\\udcffth": ["a\\udcff"]}
    assert log_of(storage).verify().whole


def test_a_run_that_cannot_be_told_does_not_keep_back_the_others(
    storage: MemoryStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason, and whoever made it: it is told, and stays."""
    document = AuditLog._document

    def refuse(self: AuditLog, run: Run, head: object) -> bytes:
        if run.what == "odd":
            raise ValueError("odd")
        return document(self, run, head)  # type: ignore[arg-type]

    monkeypatch.setattr(AuditLog, "_document", refuse)
    journal = Journal(str(tmp_path), log_of(storage))
    for number, what in enumerate(("odd", "even", "last")):
        ticket = journal.outbox.begin(run(number))
        ticket.end(Run("backup", f"{number:016x}", BIRTH, BIRTH, what=what))
        ticket.leave()
    assert journal.flush(BIRTH) == 2
    assert [each.what for _, each in log_of(storage).leaves()] == ["even", "last"]
    assert [each.what for each in journal.pending()] == ["odd"]
    assert len(journal.warnings) == 1


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight leaves a tile: it is the same with 256, and slower."""
    monkeypatch.setattr(names, "TILE", 8)


@pytest.mark.usefixtures("small")
def test_a_name_far_off_makes_no_millions_of_leaves(storage: MemoryStorage) -> None:
    """A store that lies, or anybody who may write to it, puts a name there: nothing else is needed."""
    grow(storage, 20)
    far = 10**12 - 1
    storage.objects[names.tile_name(10**10 - 1)] = b"?"
    storage.objects[names.leaf_name(far)] = b"?"
    assert log_of(storage).size() == 20
    assert log_of(storage).append(run(20)) == 20
    assert [number for number, _ in log_of(storage).leaves(18)] == [18, 19, 20]
    report = log_of(storage).verify()
    assert names.folder(3) in {fault.object for fault in report.faults}
    assert len(report.faults) < 60


@pytest.mark.usefixtures("small")
def test_tiles_between_that_are_gone_are_told_as_one(storage: MemoryStorage) -> None:
    grow(storage, 3 * names.TILE + 1)
    gone = [names.leaf_name(number) for number in range(names.TILE, 2 * names.TILE)]
    for name in [*gone, names.tile_name(1)]:
        del storage.objects[name]
    report = log_of(storage).verify()
    assert [(fault.object, fault.reason) for fault in report.faults] == [
        (names.folder(1), "leaves 8 to 15 are gone")
    ]
    with pytest.raises((Damaged, StrongroomError)):
        list(log_of(storage).leaves())


@pytest.mark.parametrize("fault", [AlreadyExists, StorageDenied])
def test_a_sign_of_life_that_cannot_be_put_stops_no_backup(
    storage: MemoryStorage, fault: type[StrongroomError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`AlreadyExists`: the answer to the first put was lost. Only another host's lease stops it."""
    room = open_room(storage, "host")
    due = BIRTH - timedelta(minutes=5)
    leases = Leases(
        room.catalogue, seams("leases", Clock(BIRTH)), host="a", limit=timedelta(minutes=20)
    )
    job = Job("backup.db", (("backup", "db"),), Cron.parse("55 9 * * *"), BIRTH.tzinfo)  # type: ignore[arg-type]
    verdict = decide(job, now=BIRTH, began=due - timedelta(days=1), runs=[], held=[])
    put = leases._put
    answers: list[bool] = []

    def fail(name: str, body: dict[str, object]) -> None:
        if name.endswith((".1", ".end")):
            raise fault("no")
        put(name, body)

    monkeypatch.setattr(leases, "_put", fail)

    def backup(argv: object, verdict: object, sign: object, every: float, /) -> int:
        answers.append(sign())  # type: ignore[operator]
        answers.append(sign())  # type: ignore[operator]
        put(Lease(job.name, verdict.due, 2).name, {"host": "b"})  # type: ignore[attr-defined]
        answers.append(sign())  # type: ignore[operator]
        return 0

    assert run_job(leases, verdict, backup, limit=timedelta(minutes=20)) == 0  # type: ignore[arg-type]
    assert answers == [True, True, False]
    before = replace(verdict, due=verdict.due - timedelta(days=1))
    quick = run_job(leases, before, lambda *_: 0, limit=timedelta(minutes=20))
    assert quick == 0  # its end could not be put, and it is done all the same


@pytest.mark.usefixtures("small")
def test_a_long_log_is_read_some_at_a_time_and_gone_on_with(
    storage: MemoryStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read before the store failed is there; nothing is read twice, and nothing is left out."""
    grow(storage, 20)
    monkeypatch.setattr(journals, "_BATCH", 3)
    read = AuditLog._read_leaf
    numbers: list[int] = []

    def fail(self: AuditLog, number: int) -> object:
        numbers.append(number)
        if number == 10 and numbers.count(10) == 1:
            raise StorageUnreachable("no")
        return read(self, number)

    monkeypatch.setattr(AuditLog, "_read_leaf", fail)
    journal = Journal(str(tmp_path), log_of(storage))
    assert [each.what for each in journal.runs()] == [f"backup {number}" for number in range(9)]
    assert "the newest runs are unknown" in journal.warnings[0]
    assert [each.what for each in journal.runs()] == [f"backup {number}" for number in range(20)]
    assert numbers.count(0) == 1
    journal.close()
    del storage.objects[names.leaf_name(19)], storage.objects[names.checkpoint_name(20)]
    again = Journal(str(tmp_path), log_of(storage))
    assert [each.what for each in again.runs()] == [f"backup {number}" for number in range(19)]
    assert "it was cut" in " ".join(again.warnings).lower()
