"""The audit log: each run once, in one order, and whoever tampers with it is found out.

Sampled: whole fault sweeps and every order of writers are behind the `sweep` marker.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from rooms import (
    ALL,
    BIRTH,
    QUIET,
    Clock,
    found,
    new_room,
    open_room,
    prune,
    reader_keys,
    seams,
    take,
    writer_keys,
)
from strongroom.errors import Damaged, StorageUnreachable, StrongroomError
from strongroom.format import audit as names
from strongroom.format import merkle, record
from strongroom.format.record import RecordKey
from strongroom.format.run import Run, one_line
from strongroom.progress import Silent
from strongroom.repository import audit
from strongroom.repository.audit import AuditLog, Report
from strongroom.repository.check import Checker
from strongroom.repository.identity import encode
from strongroom.repository.keyring import Keyring
from strongroom.repository.repository import Repository
from strongroom.storage.base import Buffer
from strongroom.storage.faulty import (
    CRASHES,
    ERRORS,
    LISTS,
    Crash,
    Fault,
    FaultyStorage,
    Plan,
    applies,
)
from strongroom.storage.memory import MemoryStorage


def run(number: int, **how: Any) -> Run:
    moment = BIRTH + timedelta(hours=number)
    what = {"source": "vault", "host": "db1", "user": "root", "what": f"backup {number}"} | how
    return Run("backup", f"{number:016x}", moment, moment + timedelta(minutes=3), **what)


@pytest.fixture
def little_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of four leaves: borders come often."""
    monkeypatch.setattr(names, "TILE", 4)


def filled(count: int, storage: MemoryStorage | None = None) -> tuple[MemoryStorage, Repository]:
    storage = storage or MemoryStorage()
    room = new_room(storage)
    log = AuditLog(room)
    for number in range(count):
        assert log.append(run(number)) == number
    return storage, room


def again(storage: MemoryStorage, **how: Any) -> AuditLog:
    """The log as another process finds it."""
    return AuditLog(open_room(storage, "again", **how))


def runs(storage: MemoryStorage) -> list[str]:
    return [each.what for _, each in again(storage).leaves()]


# -- growing ---------------------------------------------------------------------------------


def test_runs_come_back_in_order_with_the_name_of_who_signed_them() -> None:
    storage, _ = filled(3)
    log = again(storage, keyset=writer_keys())
    assert log.append(run(3, detail={"why": "grün", "ratio": 0.5, "times": [BIRTH]})) == 3
    told = list(log.leaves())
    assert [number for number, _ in told] == [0, 1, 2, 3]
    assert [each.writer for _, each in told] == ["origin"] * 3 + ["host-a"]
    assert all(each.same(run(number)) for number, each in told[:3])
    assert told[3][1].detail == {"why": "grün", "ratio": "0.5", "times": [BIRTH.isoformat()]}
    assert log.verify().whole


def test_nothing_yet() -> None:
    _, room = filled(0)
    report = AuditLog(room).verify()
    assert report.whole
    assert (report.size, report.roots) == (0, {0: merkle.EMPTY})
    assert list(AuditLog(room).leaves()) == []


def test_an_append_is_two_small_puts_and_one_get_however_long_the_log_is() -> None:
    storage, _ = filled(300)
    faulty = FaultyStorage(storage)
    room = open_room(storage, "next")
    log = AuditLog(room, storage=faulty)
    log.append(run(300))
    assert [operation.verb for operation in faulty.trace] == ["list", "list", "get", "put", "put"]
    assert (
        max(len(storage.objects[each.name]) for each in faulty.trace if each.verb == "put") < 4096
    )
    log.append(run(301))
    assert [operation.verb for operation in faulty.trace[5:]] == ["put", "put"]


@pytest.mark.usefixtures("little_tiles")
def test_tiles_are_written_at_borders_and_by_the_next_one_if_they_were_not() -> None:
    storage, _ = filled(9)
    assert [each.name for each in storage.list(names.TILES)] == [names.tile_name(n) for n in (0, 1)]
    kept = dict(storage.objects)
    storage.delete([names.tile_name(0)])
    assert again(storage).verify().whole  # a tile only spares reading
    again(storage).append(run(9))
    assert names.tile_name(0) in storage.objects
    assert len(kept) + 2 == len(storage.objects)
    report = again(storage).verify(every=False)
    assert report.whole
    assert report.size == 10


def test_a_long_log_is_read_from_tiles() -> None:
    storage, room = filled(520)
    faulty = FaultyStorage(storage)
    log = AuditLog(room, storage=faulty)
    assert len(list(log.leaves())) == 520
    assert sum(each.verb == "get" for each in faulty.trace) == 2 + 8
    before = len(faulty.trace)
    assert [number for number, _ in log.leaves(518)] == [518, 519]
    assert sum(each.verb == "get" for each in faulty.trace[before:]) == 2
    report = log.verify(every=False)
    assert report.whole
    root = merkle.root(merkle.leaf_hash(leaf.document) for leaf in log.entries())
    assert report.roots[520] == root


@pytest.mark.usefixtures("little_tiles")
def test_many_writers_at_once_get_numbers_of_their_own_without_a_gap() -> None:
    storage = MemoryStorage()
    found(storage)
    given: list[int] = []

    def write(who: int) -> None:
        log = AuditLog(open_room(storage, who, keyset=writer_keys(f"host-{who}")))
        given.extend(log.append(run(100 * who + number)) for number in range(12))

    threads = [threading.Thread(target=write, args=(who,)) for who in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(given) == list(range(72))
    assert len(set(runs(storage))) == 72
    assert again(storage).verify().whole


def test_what_a_later_program_wrote_is_passed_over() -> None:
    body = run(1).as_json()
    later = {**body, "type": "levitate", "mood": "good", "outcome": "splendid"}
    assert replace(Run.from_json(later), type="backup", outcome="done") == run(1)
    for wrong in ({"version": 2}, {"exit": "0"}, {"size": 1.5}, {"what": None}, {"detail": []}):
        with pytest.raises((ValueError, TypeError)):
            Run.from_json({**body, **wrong})
    assert one_line("a\nb\x1b[2J\u202e  c") == "a b [2J c"
    assert len(one_line("x" * 5000)) == 400


# -- tampering -------------------------------------------------------------------------------


def reasons(report: Report) -> str:
    return "; ".join(f"{fault.object}: {fault.reason}" for fault in report.faults)


SIZE = 11  # two tiles of four, and three leaves


def leaf(number: int) -> str:
    return names.leaf_name(number)


def edit(objects: dict[str, bytes], number: int) -> None:
    data = bytearray(objects[leaf(number)])
    data[-40] ^= 1
    objects[leaf(number)] = bytes(data)


def drop(objects: dict[str, bytes], number: int) -> None:
    del objects[leaf(number)]


def swap(objects: dict[str, bytes], number: int) -> None:
    other = (number + 3) % SIZE
    objects[leaf(number)], objects[leaf(other)] = objects[leaf(other)], objects[leaf(number)]


def double(objects: dict[str, bytes], number: int) -> None:
    objects[leaf((number + 1) % SIZE)] = objects[leaf(number)]


@pytest.mark.usefixtures("little_tiles")
@pytest.mark.parametrize("tamper", [edit, drop, swap, double], ids=lambda each: each.__name__)
@pytest.mark.parametrize("tiles", [True, False], ids=["with tiles", "without tiles"])
def test_who_has_the_store_and_no_key_is_found_out(
    tamper: Callable[[dict[str, bytes], int], None], tiles: bool
) -> None:
    storage, _ = filled(SIZE)
    if not tiles:
        storage.delete([names.tile_name(0), names.tile_name(1)])
    for number in range(SIZE):
        other = storage.fork()
        tamper(other.objects, number)
        report = again(other).verify()
        told = {fault.object for fault in report.faults}
        named = leaf((number + 1) % SIZE) if tamper is double else leaf(number)
        if tamper is drop and number == SIZE - 1:  # the newest: only the checkpoint tells of it
            named = names.checkpoint_name(SIZE)
        assert named in told, (tamper, number)


@pytest.mark.usefixtures("little_tiles")
def test_a_tile_or_a_checkpoint_that_was_changed_is_found() -> None:
    storage, _ = filled(SIZE)
    for name in [*storage.objects]:
        if name.startswith((names.TILES, names.CHECKPOINTS)):
            other = storage.fork()
            other.objects[name] = other.objects[name][:-1] + b"?"
            report = again(other).verify()
            assert [fault.object for fault in report.faults] == [name]
            assert runs(other) == runs(storage)


@pytest.mark.usefixtures("little_tiles")
def test_a_tail_that_was_cut_is_found_by_the_checkpoints() -> None:
    storage, _ = filled(SIZE)
    for cut in range(1, SIZE):
        other = storage.fork()
        other.delete([leaf(number) for number in range(SIZE - cut, SIZE)])
        other.delete([names.tile_name(tile) for tile in range((SIZE - cut) // 4, 3)])
        report = again(other).verify(every=False)
        assert "it was cut" in reasons(report), cut
        log = again(other)
        log.append(run(77))  # the log goes on, and who appends is told
        assert "had other leaves once" in log.warnings[0]
        assert "the log was rewritten" in reasons(again(other).verify(every=False))


@pytest.mark.usefixtures("little_tiles")
def test_an_older_state_of_all_of_it_is_found_by_a_pin_and_by_nothing_else() -> None:
    storage, _ = filled(6)
    older = storage.fork()
    log = again(storage)
    log.append(run(6))
    pin = log.checkpoint()
    assert again(older).verify().whole  # nothing in the store can tell
    report = again(older).verify([pin])
    assert "an older state" in reasons(report)
    grown = again(older)
    for number in range(8, 12):
        grown.append(run(number))
    assert again(older).verify().whole
    assert "the log was rewritten" in reasons(again(older).verify([pin]))
    assert again(storage).verify([pin]).whole


def test_a_pin_is_text_that_anybody_can_keep_and_nobody_can_change() -> None:
    _, room = filled(5)
    log = AuditLog(room)
    pin = log.checkpoint()
    lines = pin.note.split("\n")
    assert lines[:2] == [f"strongroom/audit/{room.identity.id.hex()}", "5"]
    assert log.read_pin(pin.note) == pin
    witness = pin.note + "— witness.example/w1 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
    assert log.read_pin(witness).root == pin.root
    for wrong in (
        pin.note.replace("\n5\n", "\n4\n"),
        pin.note.replace("writer origin", "writer nobody"),
        pin.note.replace("— ", "- "),
        pin.note.split("\n\n")[0],
        pin.note[:-30] + "\n",
        "",
        "a\n" * 100_000,
    ):
        with pytest.raises(Damaged):
            log.read_pin(wrong)
    elsewhere = reader_keys(bytes(16))
    other = names.sign_checkpoint(elsewhere, 0, (), BIRTH)
    with pytest.raises(Damaged, match="another log"):
        log.read_pin(other.note)


class Hostile:
    """Somebody with the catalogue key (any writer's host), writing what he likes."""

    def __init__(self, storage: MemoryStorage) -> None:
        self.storage = storage
        keys = reader_keys()
        self.records = RecordKey(keys.repository, keys.catalogue_key)

    def put(self, number: int, document: bytes) -> None:
        name = leaf(number)
        self.storage.objects[name] = self.records.seal(
            record.AUDIT_LEAF, name, document, nonce=bytes(12)
        )

    def document(self, number: int) -> bytes:
        name = leaf(number)
        return self.records.open(self.storage.objects[name], name, record.AUDIT_LEAF)[1]


@pytest.mark.usefixtures("little_tiles")
def test_who_has_the_catalogue_key_too_cannot_write_in_anothers_name() -> None:
    storage, _ = filled(3)
    hostile = Hostile(storage)
    hostile.put(1, hostile.document(1).replace(b"backup 1", b"backup 9"))
    assert "the signature is not the writer's" in reasons(again(storage).verify())
    storage, _ = filled(3)
    hostile = Hostile(storage)
    hostile.put(1, hostile.document(2))
    hostile.put(2, hostile.document(1))
    assert "in the place of leaf" in reasons(again(storage).verify())
    storage, _ = filled(3)
    hostile = Hostile(storage)
    hostile.put(3, hostile.document(2))
    assert "it is leaf 2, in the place of leaf 3" in reasons(again(storage).verify())


def test_a_writer_of_another_repository_forges_nothing() -> None:
    storage, room = filled(3)
    elsewhere = replace(
        writer_keys_of(bytes(16)),
        catalogue_key=reader_keys().catalogue_key,
    )
    foreign = AuditLog(room)
    foreign._head = foreign.find_head()
    foreign._keyset = elsewhere
    assert foreign.append(run(3)) == 3
    report = again(storage).verify()
    assert "certificate is not the repository's" in reasons(report)


def writer_keys_of(repository: bytes) -> Any:
    from strongroom.format import keyset as keysets  # noqa: PLC0415

    return keysets.for_writer(reader_keys(repository), "intruder", random=seams("other").random)


@pytest.mark.usefixtures("little_tiles")
def test_a_writer_who_rewrites_his_own_leaf_contradicts_the_next_one() -> None:
    storage, room = filled(3)
    mine = AuditLog(room)
    head = audit.Head(1, mine.leaf(1).before)
    Hostile(storage).put(1, mine._document(run(1, outcome="failed", writer="origin"), head))
    assert f"{leaf(2)}: it was written behind other leaves" in reasons(again(storage).verify())


# -- going wrong -----------------------------------------------------------------------------


@pytest.mark.usefixtures("little_tiles")
@pytest.mark.parametrize("size", [3, 4, pytest.param(0, marks=pytest.mark.sweep)])
def test_dying_at_every_operation_loses_nothing_that_was_answered_and_doubles_nothing(
    size: int,
) -> None:
    storage, _ = filled(size)
    clean = FaultyStorage(storage.fork())
    append(clean, run(90))
    assert len(clean.trace) >= 5
    faults = sorted(CRASHES | ERRORS | LISTS | {Fault.FLIP, Fault.SHORT}, key=str)
    for fault, at in itertools.product(faults, range(1, len(clean.trace) + 1)):
        if not applies(fault, clean.trace[at - 1].verb) or fault is Fault.TORN_VISIBLE:
            continue
        inner = storage.fork()
        faulty = FaultyStorage(inner, Plan(fault, at, place=13))
        try:
            append(faulty, run(90))
            answered = True
        except (Crash, StrongroomError):
            answered = False
        there = sum(each == "backup 90" for each in runs(inner))
        assert there == 1 if answered else there <= 1, (fault, at)
        if not there:
            append(inner, run(90))
        append(inner, run(91))
        assert sorted(runs(inner)) == sorted([f"backup {n}" for n in [*range(size), 90, 91]])
        assert again(inner).verify().whole, (fault, at)


def append(storage: Any, one: Run) -> None:
    AuditLog(open_room(storage, "appending"), storage=storage).append(one)


@pytest.mark.usefixtures("little_tiles")
def test_an_answer_that_was_lost_is_looked_for() -> None:
    storage, _ = filled(2)
    faulty = FaultyStorage(storage, Plan(Fault.RESET_AFTER, 4))
    log = AuditLog(open_room(storage, "x"), storage=faulty)
    assert log.append(run(2)) == 2  # the put is the fourth operation; it had its effect
    assert faulty.happened
    assert runs(storage) == ["backup 0", "backup 1", "backup 2"]


class Twice(MemoryStorage):
    """Puts again when an answer is lost, as adapters do, and reports what the second says."""

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        super().put(name, data, if_absent=if_absent)
        super().put(name, data, if_absent=if_absent)


def test_a_put_that_meets_itself_is_no_other_writer() -> None:
    storage = MemoryStorage()
    found(storage)
    twice = Twice(storage.objects)
    log = AuditLog(open_room(twice, "x"))
    assert [log.append(run(0)), log.append(run(1))] == [0, 1]
    assert runs(twice) == ["backup 0", "backup 1"]


@pytest.mark.usefixtures("little_tiles")
def test_behind_a_newest_leaf_that_is_damaged_the_log_goes_on_by_its_checkpoint() -> None:
    storage, _ = filled(6)
    edit(storage.objects, 5)
    again(storage).append(run(6))
    report = again(storage).verify()
    assert [fault.object for fault in report.faults] == [leaf(5)]
    storage.delete([names.checkpoint_name(7)])
    edit(storage.objects, 6)
    with pytest.raises(Damaged, match="newest leaf"):
        again(storage).append(run(7))


def test_what_is_out_of_reach_is_not_called_tampered() -> None:
    storage, room = filled(4)
    faulty = FaultyStorage(storage, Plan(Fault.TIMEOUT, 5))
    report = AuditLog(room, storage=faulty).verify()
    assert report.faults == []
    assert list(report.unread) == [leaf(1)]
    assert not report.whole
    with pytest.raises(StorageUnreachable):
        list(AuditLog(room, storage=FaultyStorage(storage, Plan(Fault.TIMEOUT, 4))).leaves())


def test_reading_goes_on_behind_what_is_damaged_if_that_is_wanted() -> None:
    storage, _ = filled(5)
    edit(storage.objects, 2)
    missed: list[int] = []
    log = again(storage)
    told = log.entries(missed=lambda number, fault: missed.append(number))
    assert [each.number for each in told] == [0, 1, 3, 4]
    assert missed == [2]
    with pytest.raises(Damaged):
        list(log.leaves())


# -- a store that cannot refuse --------------------------------------------------------------


class Overwriting(MemoryStorage):
    """Takes every put; `meanwhile` is called between a look and the put that follows it."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        super().__init__(objects)
        self.meanwhile: Callable[[], None] = lambda: None

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        del if_absent
        call, self.meanwhile = self.meanwhile, lambda: None
        call()
        super().put(name, data)


def weak_room() -> tuple[Overwriting, Callable[[object], AuditLog]]:
    keyset = reader_keys()
    storage = MemoryStorage()
    found(storage)
    room = open_room(storage, "weak")
    weak = replace(room.identity, capabilities=replace(ALL, put_if_absent=False))
    assert keyset.admin_private is not None
    place = Overwriting({"strongroom.json": encode(weak, keyset.admin_private)})

    def log(seed: object) -> AuditLog:
        return AuditLog(
            Repository(place, weak, Keyring({1: keyset}), seams=seams(seed), settings=QUIET)
        )

    return place, log


def test_without_put_if_absent_one_writer_after_the_other_is_safe() -> None:
    place, log = weak_room()
    assert [log(number).append(run(number)) for number in range(5)] == [0, 1, 2, 3, 4]
    assert log("v").verify().whole
    first, second = log("first"), log("second")
    assert first.append(run(5)) == 5
    second._head = audit.Head(5, first.leaf(5).before)  # looked a moment ago
    assert second.append(run(6)) == 6
    assert len(place.objects) == 1 + 2 * 7


def test_without_put_if_absent_two_in_the_same_moment_are_not() -> None:
    """The honest limit, in docs/format.md: the earlier was answered, and is gone."""
    place, log = weak_room()
    place.meanwhile = lambda: log("one").append(run(1)) and None
    assert log("two").append(run(2)) == 0
    assert [each.what for _, each in log("three").leaves()] == ["backup 2"]
    assert "rewritten" in reasons(log("four").verify())  # and the log says that something was lost


# -- check and prune -------------------------------------------------------------------------


def test_check_looks_at_the_log_and_prune_leaves_it() -> None:
    storage, room = filled(3)
    take(room, "vault", {b"a": b"content"})
    assert Checker(room, progress=Silent()).run(3).findings == []
    before = {name for name in storage.objects if name.startswith("audit/")}
    prune(room)
    assert before <= set(storage.objects)
    edit(storage.objects, 1)
    storage.objects["audit/else"] = b""
    report = Checker(room, progress=Silent()).run(0)
    assert [(each.level, each.object) for each in report.findings] == [(0, leaf(1))]
    assert "audit/else is not an object of the repository" in report.notes


def test_check_with_a_writers_keys_looks_too() -> None:
    storage, _ = filled(2)
    drop(storage.objects, 0)
    room = open_room(storage, "w", keyset=writer_keys(), clock=Clock())
    report = Checker(room, progress=Silent()).run(0)
    assert [each.object for each in report.findings] == [leaf(0)]
