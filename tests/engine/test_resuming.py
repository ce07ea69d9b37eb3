"""A run that was stopped is taken up again: what was durable is not uploaded a second time."""

from __future__ import annotations

import threading

import pytest

from rooms import QUIET, DictSource, committed, new_room, noise, open_room, restore, take
from strongroom.errors import Interrupted, StorageFull
from strongroom.operations.back_up import back_up
from strongroom.progress import Silent
from strongroom.repository import session as sessions
from strongroom.repository.check import Checker
from strongroom.repository.ports import Session, Taken
from strongroom.repository.seams import Settings
from strongroom.storage.base import Storage
from strongroom.storage.faulty import Crash, Fault, FaultyStorage, Plan
from strongroom.storage.memory import MemoryStorage
from strongroom.storage.metered import MeteredStorage

MIB = 1 << 20
SMALL_PACKS = Settings(sealers=1, putters=1, pack_size=MIB)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "WINDOW", 256 * 1024)


def uploaded(storage: MeteredStorage) -> int:
    return storage.totals()["put"].size


FILES = {b"%02d" % number: noise(number, MIB // 2) for number in range(16)}


class Stopping(DictSource):
    """A source that is stopped after `after` files."""

    after = 10

    def back_up(self, session: Session, *, progress: object) -> Taken:
        some = dict(sorted(self.files.items())[: self.after])
        DictSource(self.name, some).back_up(session, progress=Silent())
        raise Interrupted("Stopped by SIGINT.")


def test_an_interrupted_run_is_taken_up(storage: Storage) -> None:
    new_room(storage)
    metered = MeteredStorage(storage)
    room = open_room(metered, "first", settings=SMALL_PACKS)
    with pytest.raises(Interrupted):
        back_up(room, Stopping("vault", FILES), progress=Silent())
    first = uploaded(metered)
    assert first > 4 * MIB
    snapshot = take(open_room(metered, "second", settings=SMALL_PACKS), "vault", FILES).snapshot
    # One frame, of at most 1 MiB, was not full yet when the run was stopped.
    assert uploaded(metered) - first < 3 * MIB + MIB + 64 * 1024
    assert restore(room, snapshot) == FILES


def test_an_interruption_between_two_statements_stores_nothing_wrong() -> None:
    """A signal's exception may come up anywhere. A chunk half noted must never be indexed."""
    storage = MemoryStorage()
    new_room(storage)

    def stopped_at(step: int) -> None:
        room = open_room(storage, ("stopped", step))
        session = room.begin("vault", progress=Silent())
        lane = session.lane()
        filler, add = lane._data, lane._data.add
        calls = []

        def interrupted(chunk_id: bytes, buffer: bytes) -> None:
            calls.append(1)
            if len(calls) == step:
                filler._pieces.append(buffer)  # and the signal comes before the id is noted
                raise Interrupted("Stopped by SIGTERM.")
            add(chunk_id, buffer)

        filler.add = interrupted  # type: ignore[method-assign]
        with pytest.raises(Interrupted):
            lane.put_small([noise((step, number), 3000) for number in range(5)])
        session.abandon()

    for step in range(1, 6):
        stopped_at(step)
    files = {b"%d/%d" % (s, n): noise((s, n), 3000) for s in range(1, 6) for n in range(5)}
    snapshot = take(open_room(storage, "later"), "vault", files).snapshot
    assert restore(open_room(storage, "read"), snapshot) == files
    assert Checker(open_room(storage, "check"), progress=Silent()).run(3).findings == []


def test_a_crash_leaves_packs_that_the_next_run_adopts(storage: Storage) -> None:
    """Dead before any index was put, so only the footers tell what is there (I6)."""
    new_room(storage)
    clean = FaultyStorage(storage)
    crash_at_index(storage, clean)
    metered = MeteredStorage(storage)
    snapshot = take(open_room(metered, "second", settings=SMALL_PACKS), "vault", FILES).snapshot
    assert snapshot.new_size == 0
    assert uploaded(metered) < 64 * 1024
    assert restore(open_room(storage, "read"), snapshot) == FILES
    again = MeteredStorage(storage)
    third = take(open_room(again, "third", settings=SMALL_PACKS), "vault", FILES).snapshot
    assert third.new_size == 0
    assert again.totals()["get"].operations < 12  # adopted once, not by every later run


def crash_at_index(storage: Storage, faulty: FaultyStorage) -> None:
    """Run a backup that dies where it would put its first index segment."""
    put = faulty.put

    def dying(name: str, data: bytes, *, if_absent: bool = False) -> None:
        if name.startswith("index/"):
            raise Crash(name)
        put(name, data, if_absent=if_absent)

    faulty.put = dying  # type: ignore[method-assign]
    with pytest.raises(Crash):
        take(open_room(faulty, "first", settings=SMALL_PACKS), "vault", FILES)
    assert list(storage.list("index/")) == []
    assert list(storage.list("packs/")) != []


def test_torn_and_foreign_packs_are_not_adopted() -> None:
    storage = MemoryStorage()
    new_room(storage)
    crash_at_index(storage, FaultyStorage(storage))
    names = [entry.name for entry in storage.list("packs/")]
    storage.objects[names[0]] = storage.objects[names[0]][:-1]
    storage.objects[names[1]] = b""
    storage.objects["packs/README"] = b"somebody was here"
    storage.objects["packs/00/not-hex"] = b"and here"
    snapshot = take(open_room(storage, "second", settings=SMALL_PACKS), "vault", FILES).snapshot
    assert MIB < snapshot.new_size < 3 * MIB
    assert restore(open_room(storage, "read"), snapshot) == FILES


def test_packs_of_a_run_of_another_group_are_left_alone() -> None:
    storage = MemoryStorage()
    new_room(storage)
    crash_at_index(storage, FaultyStorage(storage))
    crashed = storage.fork()
    other = take(open_room(storage, "other", settings=SMALL_PACKS), "other", FILES).snapshot
    assert other.new_size >= 8 * MIB
    assert other.session not in str(crashed.objects)


def test_the_index_is_flushed_on_the_way() -> None:
    """By rows, so that a run killed after hours resumes from the index, without any footer."""
    storage = MemoryStorage()
    new_room(storage)
    room = open_room(
        storage, "rows", settings=Settings(sealers=1, putters=1, pack_size=MIB // 4, index_rows=20)
    )
    take(room, "vault", FILES)
    assert len(list(storage.list("index/"))) > 5


def test_the_index_is_flushed_by_time() -> None:
    storage = MemoryStorage()
    room = new_room(storage)
    ticks = iter(range(0, 10_000_000, 200))
    seams = sessions.Seams(room.seams.now, lambda: float(next(ticks)), room.seams.random)
    room.seams = seams
    room.settings = Settings(sealers=1, putters=1, pack_size=MIB // 4, index_seconds=300)
    take(room, "vault", FILES)
    assert len(list(storage.list("index/"))) >= 4


def sweep_room() -> MemoryStorage:
    storage = MemoryStorage()
    take(new_room(storage), "vault", {b"a": noise("a", 3000)})
    return storage


LATER = {b"a": noise("a", 3000), b"b": noise("b", 9000)}


@pytest.mark.parametrize("fault", [Fault.EIO, Fault.RESET_AFTER])
def test_a_lost_answer_to_the_commit_is_looked_after(fault: Fault) -> None:
    """If the record is there, the run is green; if it is not, it is red and says so."""
    storage = sweep_room()
    trace = FaultyStorage(storage.fork())
    take(open_room(trace, "day"), "vault", LATER)
    at = next(n for n, op in enumerate(trace.trace, 1) if op.name.startswith("snapshots/"))
    faulty = FaultyStorage(storage, Plan(fault, at))
    attempt(faulty, green=fault is Fault.RESET_AFTER)
    assert faulty.happened
    assert len(committed(open_room(storage, "read"))) == (2 if fault is Fault.RESET_AFTER else 1)


def attempt(storage: Storage, *, green: bool) -> None:
    if green:
        take(open_room(storage, "day"), "vault", LATER)
        return
    with pytest.raises(Exception, match="Input/output"):
        take(open_room(storage, "day"), "vault", LATER)


def test_a_commit_of_which_nobody_knows_says_so() -> None:
    storage = sweep_room()
    trace = FaultyStorage(storage.fork())
    take(open_room(trace, "day"), "vault", LATER)
    at = next(n for n, op in enumerate(trace.trace, 1) if op.name.startswith("snapshots/"))
    with pytest.raises(Exception, match="connection reset") as caught:
        take(
            open_room(FaultyStorage(storage, Plan(Fault.RESET_AFTER, at, lasting=True)), "day"),
            "vault",
            LATER,
        )
    assert "No snapshot was written" not in caught.value.means


def test_a_closing_mark_that_cannot_be_put_does_not_turn_a_run_red() -> None:
    storage = sweep_room()
    trace = FaultyStorage(storage.fork())
    take(open_room(trace, "day"), "vault", LATER)
    assert trace.trace[-1].name.startswith("sessions/")
    faulty = FaultyStorage(storage, Plan(Fault.ENOSPC, len(trace.trace)))
    source = DictSource("vault", LATER)
    snapshot = back_up(open_room(faulty, "day"), source, progress=Silent()).snapshot
    assert faulty.happened
    assert source.committed == 1
    assert restore(open_room(storage, "read"), snapshot) == LATER
    assert take(open_room(storage, "later"), "vault", LATER).snapshot.new_size == 0


def test_a_full_disk_ends_every_lane_and_says_so() -> None:
    storage = MemoryStorage()
    new_room(storage)
    settings = Settings(sealers=2, putters=2, pack_size=MIB // 4)
    faulty = FaultyStorage(storage, Plan(Fault.ENOSPC, 8, lasting=True))
    with pytest.raises(StorageFull):
        take(open_room(faulty, "full", settings=settings), "vault", FILES)
    snapshot = take(open_room(storage, "room again", settings=QUIET), "vault", FILES).snapshot
    assert restore(open_room(storage, "read"), snapshot) == FILES


def test_abandoning_never_raises_and_ends_the_threads() -> None:
    before = threading.active_count()
    for at in range(2, 12):
        storage = MemoryStorage()
        new_room(storage)
        faulty = FaultyStorage(storage, Plan(Fault.EIO, at, lasting=True))
        with pytest.raises(Exception, match="Input/output"):
            take(open_room(faulty, at), "vault", LATER)
    assert threading.active_count() <= before
