"""Files of the WAL in the repository: put, get, compare, list; races, roles, stores without
put-if-absent."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rooms import BIRTH, expire, new_room, noise, open_room, prune, reader_keys, take, writer_keys
from strongroom.errors import (
    Damaged,
    KeyRefused,
    NotFound,
    ObjectMissing,
    UsageError,
    WalConflict,
)
from strongroom.format import frame, walfile
from strongroom.format import keyset as keysets
from strongroom.format.frame import FRAME_SIZE
from strongroom.format.keyset import Keyset
from strongroom.format.wal import Fork, RestorePoint, SegmentFacts
from strongroom.format.walfile import Part
from strongroom.operations.stats import stats
from strongroom.operations.wal_retention import prune_wal
from strongroom.progress import Silent
from strongroom.repository.check import Checker
from strongroom.repository.keyring import Keyring
from strongroom.repository.repository import Repository
from strongroom.repository.wal import Put, WalStore
from strongroom.storage.base import Buffer
from strongroom.storage.memory import MemoryStorage

SYSTEM = 0x6A5B_4C3D_2E1F_0001
FIRST = "000000010000000000000001"


def segment(seed: object, size: int = 3 * FRAME_SIZE) -> memoryview:
    """A segment that was switched early: log, then zeros."""
    return memoryview(noise(seed, size // 3) + bytes(size - size // 3))


def name(number: int, timeline: int = 1) -> str:
    return f"{timeline:08X}00000000{number:08X}"


FACTS = SegmentFacts(
    1,
    0x1000000,
    0x1000000,
    first=0x1000028,
    last=0x1FFFFF0,
    first_commit=BIRTH,
    last_commit=datetime(2026, 7, 2, tzinfo=UTC),
    commits=3,
    largest=(741, 90_000),
    restore_points=(RestorePoint("before", 0x1000400, BIRTH),),
    switched=True,
)


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def store(storage: MemoryStorage) -> WalStore:
    return WalStore(new_room(storage))


def test_a_segment_comes_back_as_it_was(store: WalStore, storage: MemoryStorage) -> None:
    data = segment("one")
    assert store.put(SYSTEM, FIRST, data, facts=FACTS) is Put.STORED
    assert store.get(SYSTEM, FIRST) == data
    head = store.head(SYSTEM, FIRST)
    assert head is not None
    assert (head.size, head.facts, len(head.frames)) == (len(data), FACTS, 3)
    (there,) = [one for one in storage.objects if one.startswith("wal/")]
    assert there == f"wal/{SYSTEM:016x}/00000001/{FIRST}"
    assert bytes(data[:32]) not in storage.objects[there]


@pytest.mark.parametrize(
    "kind",
    [
        FIRST,
        f"{FIRST}.partial",
        f"{FIRST}.00000028.backup",
        "00000002.history",
    ],
)
def test_trap_30_every_name_that_postgresql_archives(store: WalStore, kind: str) -> None:
    assert store.put(SYSTEM, kind, memoryview(b"1\t0/3000000\tno reason\n")) is Put.STORED
    assert store.get(SYSTEM, kind) == b"1\t0/3000000\tno reason\n"


@pytest.mark.parametrize(
    "kind",
    ["", "x", FIRST.lower() + "z", FIRST + ".ready", "../" + FIRST, FIRST[:8], FIRST + ".gz"],
)
def test_trap_30_other_names_are_refused(store: WalStore, kind: str) -> None:
    for call in (
        lambda: store.put(SYSTEM, kind, memoryview(b"x")),
        lambda: store.get(SYSTEM, kind),
    ):
        with pytest.raises(UsageError):
            call()


def test_an_empty_file(store: WalStore) -> None:
    assert store.put(SYSTEM, "00000002.history", memoryview(b"")) is Put.STORED
    assert store.get(SYSTEM, "00000002.history") == b""


def test_trap_27_the_same_content_again_is_fine_and_stored_once(
    store: WalStore, storage: MemoryStorage
) -> None:
    data = segment("one")
    store.put(SYSTEM, FIRST, data)
    before = dict(storage.objects)
    assert store.put(SYSTEM, FIRST, data, facts=FACTS) is Put.SAME
    assert storage.objects == before


def test_trap_27_other_content_is_refused_and_remembered(
    store: WalStore, storage: MemoryStorage
) -> None:
    store.put(SYSTEM, FIRST, segment("one"))
    for _ in range(3):
        with pytest.raises(WalConflict) as told:
            store.put(SYSTEM, FIRST, segment("two"))
    assert told.value.exit_status == 9
    assert FIRST in told.value.what
    assert store.get(SYSTEM, FIRST) == segment("one")
    (conflict,) = store.listing(SYSTEM).timelines[1].conflicts
    assert (conflict.name, conflict.size, conflict.writer) == (FIRST, 3 * FRAME_SIZE, "origin")
    assert len([one for one in storage.objects if "/conflicts/" in one]) == 1


def test_trap_27_a_file_that_is_damaged_at_rest_is_not_called_the_same(
    store: WalStore, storage: MemoryStorage
) -> None:
    store.put(SYSTEM, FIRST, segment("one"))
    place = walfile.object_name(SYSTEM, FIRST)
    storage.objects[place] = storage.objects[place][:-1]
    with pytest.raises(Damaged) as told:
        store.put(SYSTEM, FIRST, segment("one"))
    assert not isinstance(told.value, WalConflict)
    assert place in told.value.do
    del storage.objects[place]
    assert store.put(SYSTEM, FIRST, segment("one")) is Put.STORED


def test_a_writer_archives_and_compares_and_does_not_read(storage: MemoryStorage) -> None:
    reader = WalStore(new_room(storage))
    writer = WalStore(open_room(storage, "writer", keyset=writer_keys()))
    assert writer.put(SYSTEM, FIRST, segment("one"), facts=FACTS) is Put.STORED
    assert writer.put(SYSTEM, FIRST, segment("one")) is Put.SAME
    with pytest.raises(WalConflict):
        writer.put(SYSTEM, FIRST, segment("two"))
    with pytest.raises(KeyRefused):
        writer.get(SYSTEM, FIRST)
    with pytest.raises(KeyRefused):  # absent or not: a writer cannot tell a restore anything
        writer.get(SYSTEM, name(7))
    head = writer.head(SYSTEM, FIRST)
    assert head is not None
    assert (head.writer, head.facts) == ("host-a", FACTS)
    assert reader.get(SYSTEM, FIRST) == segment("one")


def test_absent_is_told_from_everything_else(store: WalStore) -> None:
    with pytest.raises(ObjectMissing):
        store.get(SYSTEM, FIRST)
    assert store.head(SYSTEM, FIRST) is None


def test_a_repository_that_is_gone_is_not_a_file_that_is_absent(
    store: WalStore, storage: MemoryStorage
) -> None:
    """A disk that was unmounted under a daemon, a bucket that was emptied."""
    del storage.objects["strongroom.json"]
    with pytest.raises(NotFound) as told:
        store.get(SYSTEM, FIRST)
    assert not isinstance(told.value, ObjectMissing)


def test_a_file_does_not_stand_in_for_another(store: WalStore, storage: MemoryStorage) -> None:
    store.put(SYSTEM, FIRST, segment("one"))
    store.put(SYSTEM, name(2), segment("two"))
    one, two = walfile.object_name(SYSTEM, FIRST), walfile.object_name(SYSTEM, name(2))
    storage.objects[one], storage.objects[two] = storage.objects[two], storage.objects[one]
    with pytest.raises(Damaged):
        store.get(SYSTEM, FIRST)
    with pytest.raises(Damaged):
        store.head(SYSTEM, name(2))


def test_frames_do_not_stand_in_for_others(store: WalStore, storage: MemoryStorage) -> None:
    """A store that swaps two frames of one length within an object, and a record that is old."""
    store.put(SYSTEM, FIRST, memoryview(bytes(4 * FRAME_SIZE)))
    place = walfile.object_name(SYSTEM, FIRST)
    data = storage.objects[place]
    head = store.head(SYSTEM, FIRST)
    assert head is not None
    size = head.frames[0]
    assert set(head.frames) == {size}
    storage.objects[place] = data[: -2 * size] + data[-size:] + data[-2 * size : -size]
    with pytest.raises(Damaged):
        store.get(SYSTEM, FIRST)


# -- races -------------------------------------------------------------------------------------


class Meeting(MemoryStorage):
    """Every put of a WAL file waits until two have come to it."""

    def __init__(self) -> None:
        super().__init__()
        self.barrier = threading.Barrier(2)

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        if name.startswith("wal/") and "conflicts" not in name:
            with suppress(threading.BrokenBarrierError):
                self.barrier.wait(5)
        super().put(name, data, if_absent=if_absent)


def race(storage: MemoryStorage, rooms: list[Repository], contents: list[memoryview]) -> list[str]:
    """Put each content under the same name at once; what came of each."""
    outcomes: list[str] = [""] * len(rooms)

    def run(number: int) -> None:
        try:
            outcomes[number] = WalStore(rooms[number]).put(SYSTEM, FIRST, contents[number])
        except WalConflict:
            outcomes[number] = "conflict"

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(rooms))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_two_writers_with_the_same_content() -> None:
    storage = Meeting()
    rooms = [new_room(storage, "one"), open_room(storage, "two", keyset=writer_keys())]
    assert sorted(race(storage, rooms, [segment("a"), segment("a")])) == ["same", "stored"]
    assert WalStore(rooms[0]).get(SYSTEM, FIRST) == segment("a")


def test_two_writers_with_different_content() -> None:
    storage = Meeting()
    rooms = [new_room(storage, "one"), open_room(storage, "two", keyset=writer_keys())]
    outcomes = race(storage, rooms, [segment("a"), segment("b")])
    assert sorted(outcomes) == ["conflict", "stored"]
    won = segment("ab"[outcomes.index("stored")])
    assert WalStore(rooms[0]).get(SYSTEM, FIRST) == won


class Careless(MemoryStorage):
    """A store that cannot refuse a second put: the later one stands."""

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        del if_absent
        super().put(name, data)


def careless(storage: MemoryStorage, seed: object) -> Repository:
    room = open_room(storage, seed) if storage.objects else new_room(storage, seed)
    can = replace(room.identity.capabilities, put_if_absent=False)
    room.identity = replace(room.identity, capabilities=can)
    return room


def test_a_store_without_put_if_absent_is_looked_at_first() -> None:
    storage = Careless()
    store = WalStore(careless(storage, "one"))
    assert store.put(SYSTEM, FIRST, segment("a")) is Put.STORED
    assert store.put(SYSTEM, FIRST, segment("a")) is Put.SAME
    with pytest.raises(WalConflict):
        store.put(SYSTEM, FIRST, segment("b"))
    assert store.get(SYSTEM, FIRST) == segment("a")


def test_a_store_without_put_if_absent_is_looked_at_again() -> None:
    """Another writer's put comes between our put and its answer: ours is not called stored."""
    storage = Careless()
    ours, theirs = careless(storage, "one"), careless(storage, "two")
    put = storage.put

    def overtaken(name: str, data: Buffer, *, if_absent: bool = False) -> None:
        put(name, data, if_absent=if_absent)
        storage.put = put  # type: ignore[method-assign]
        storage.objects.pop(name)  # theirs looked when ours was not there yet
        WalStore(theirs).put(SYSTEM, FIRST, segment("b"))

    storage.put = overtaken  # type: ignore[method-assign]
    with pytest.raises(WalConflict):
        WalStore(ours).put(SYSTEM, FIRST, segment("a"))


# -- listings ----------------------------------------------------------------------------------


def test_a_listing_tells_what_is_there_by_timeline(store: WalStore) -> None:
    for number in (1, 2, 4):
        store.put(SYSTEM, name(number), segment(number), facts=FACTS if number == 1 else None)
    store.put(SYSTEM, name(4) + ".partial", segment("p"))
    store.put(SYSTEM, name(4, 0xA), segment("t"))  # trap 23: timelines are hexadecimal
    store.put(SYSTEM, "0000000A.history", memoryview(b"1\t0/4000100\tpromoted\n"))
    store.put(SYSTEM, name(2) + ".00000028.backup", memoryview(b"START WAL LOCATION: 0/2000028\n"))
    store.put(SYSTEM + 1, name(1), segment("another system"))
    store.put_gap(SYSTEM, 1, 0x3000000, 0x4000000, "the slot was lost")
    listing = store.listing(SYSTEM)
    assert list(listing.timelines) == [1, 10]
    one, ten = listing.timelines[1], listing.timelines[10]
    assert [each.name for each in one.segments] == [name(1), name(2), name(4)]
    assert [each.facts for each in one.segments] == [FACTS, None, None]
    assert [each.name for each in one.partials] == [name(4) + ".partial"]
    assert [each.text for each in one.labels] == [b"START WAL LOCATION: 0/2000028\n"]
    assert one.history is None
    assert ten.history == [Fork(1, 0x4000100, "promoted")]
    (gap,) = one.gaps
    assert (gap.start, gap.end, gap.reason) == (0x3000000, 0x4000000, "the slot was lost")
    assert list(store.listing(SYSTEM, 10).timelines) == [10]
    assert store.systems() == [SYSTEM, SYSTEM + 1]
    assert listing.unread == {}


class Counting(MemoryStorage):
    """Counts the gets of WAL files."""

    gets = 0

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        with suppress(ValueError):
            self.gets += walfile.parse_object(name).sort == "file"
        return super().get(name, offset=offset, length=length)


def test_summaries_spare_a_listing_the_heads_and_are_never_the_truth() -> None:
    storage = Counting()
    store = WalStore(new_room(storage))
    for number in range(1, 9):
        store.put(SYSTEM, name(number), memoryview(bytes(number)), facts=FACTS)
    assert store.summarise(SYSTEM, 1) == 0  # so few are not worth one
    assert store.summarise(SYSTEM, 1, least=4) == 8
    assert store.summarise(SYSTEM, 1, least=4) == 0
    whole = store.listing(SYSTEM)
    storage.gets = 0
    store.put(SYSTEM, name(9), memoryview(b"9"))
    del storage.objects[walfile.object_name(SYSTEM, name(3))]
    files = store.listing(SYSTEM).timelines[1].segments
    assert storage.gets == 1  # the ninth's head
    assert [each.name for each in files] == [name(number) for number in (1, 2, 4, 5, 6, 7, 8, 9)]
    kept = [each for each in whole.timelines[1].segments if each.name != name(3)]
    assert [*files[:-1]] == kept
    (summary,) = [one for one in storage.objects if "/summaries/" in one]
    storage.objects[summary] = storage.objects[summary][:-1]
    damaged = store.listing(SYSTEM)
    assert list(damaged.timelines[1].segments) == files
    assert list(damaged.unread) == [summary]


def test_what_cannot_be_read_is_said(store: WalStore, storage: MemoryStorage) -> None:
    store.put(SYSTEM, name(1), segment(1))
    store.put(SYSTEM, name(2), segment(2))
    place = walfile.object_name(SYSTEM, name(1))
    storage.objects[place] = storage.objects[place][:500]
    storage.objects["wal/README"] = b"a stranger"
    listing = store.listing(SYSTEM)
    assert [each.name for each in listing.timelines[1].segments] == [name(2)]
    assert list(listing.unread) == [place]


def test_whose_log_it_is(store: WalStore) -> None:
    assert store.systems("db") == []
    store.bind("db", SYSTEM + 5)
    store.bind("db", SYSTEM)
    store.bind("db", SYSTEM)
    store.bind("other", SYSTEM + 7)
    assert store.systems("db") == [SYSTEM + 5, SYSTEM]
    assert store.systems() == []


def test_trap_41_the_zeros_behind_a_switch_cost_nothing(
    store: WalStore, storage: MemoryStorage
) -> None:
    size = 16 * 1024 * 1024
    store.put(SYSTEM, FIRST, memoryview(noise("little", 4000) + bytes(size - 4000)))
    assert len(storage.objects[walfile.object_name(SYSTEM, FIRST)]) < 16 * 1024


# -- what is sealed is opened again ------------------------------------------------------------


def test_what_does_not_open_again_is_not_stored(
    store: WalStore, storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = frame.FrameSealer.seal

    def corrupt(self: frame.FrameSealer, plain: Buffer, sequence: int, **how: bool) -> bytes:
        changed = bytearray(plain)
        changed[7] ^= 1
        return seal(self, bytes(changed), sequence, **how)

    monkeypatch.setattr(frame.FrameSealer, "seal", corrupt)
    with pytest.raises(Damaged):
        store.put(SYSTEM, FIRST, segment("one"))
    assert not [one for one in storage.objects if one.startswith("wal/")]


def next_epoch() -> Keyset:
    """The keys of the epoch after the rooms', by the same admin."""
    keys = reader_keys()
    assert keys.admin_private is not None
    message = keysets._certified(keys.repository, 2, keys.writer_name, keys.signing_public)
    certificate = Ed25519PrivateKey.from_private_bytes(keys.admin_private).sign(message)
    return replace(keys, epoch=2, catalogue_key=bytes(range(32)), certificate=certificate)


def test_keys_of_the_next_epoch(storage: MemoryStorage) -> None:
    """With both epochs' keys all is as ever; without the older it is asked for, not called damage."""
    WalStore(new_room(storage)).put(SYSTEM, FIRST, segment("one"))
    room = open_room(storage, "later", keyset=next_epoch())
    room.keys = Keyring({1: reader_keys(), 2: next_epoch()})
    store = WalStore(room)
    assert store.get(SYSTEM, FIRST) == segment("one")
    assert store.put(SYSTEM, FIRST, segment("one")) is Put.SAME
    assert store.put(SYSTEM, name(2), segment("two")) is Put.STORED
    head = store.head(SYSTEM, name(2))
    assert head is not None
    assert head.epoch == 2
    room.keys = Keyring({2: next_epoch()})
    with pytest.raises(KeyRefused):
        WalStore(room).get(SYSTEM, FIRST)


def test_trap_60_the_log_of_the_oldest_backup_that_is_there_stays(
    store: WalStore, storage: MemoryStorage
) -> None:
    """From the segment in the middle of which it began; of each system by itself; on every timeline."""
    other = SYSTEM + 1
    history = memoryview(b"1\t0/4000000\tno reason\n")
    files = [name(number) for number in range(1, 7)] + [name(number, 2) for number in (2, 4, 5)]
    for system in (SYSTEM, other):
        for file in (*files, name(2) + ".00000028.backup", name(1, 3) + ".partial"):
            store.put(system, file, segment((system, file)))
        store.put(system, "00000002.history", history)
    store.put_gap(SYSTEM, 1, 0x1000000, 0x1000100, "lost")
    store.summarise(SYSTEM, 1, least=1)
    room = open_room(storage, "backups")
    logs = [
        {"system_id": str(SYSTEM), "start_lsn": start, "wal_segment_size": str(1 << 24)}
        for start in ("0/2000028", "0/4000028", "0/5000000")
    ]
    taken = [
        take(room, "db", {b"n": bytes([number])}, kind="postgres", log=log).snapshot
        for number, log in enumerate(logs)
    ]
    writer = open_room(storage, "prune", keyset=writer_keys())
    assert prune_wal(writer, dry_run=False).files == 2  # segment 1, and the part of timeline 3
    expire(room, taken[0])
    assert prune_wal(writer, dry_run=False).files == 0  # it may come back
    prune(writer)
    planned = prune_wal(writer, dry_run=True)
    done = prune_wal(writer, dry_run=False)
    assert planned == done and done.kept_from == {str(SYSTEM): "0/4000028"}
    left = {
        one.rsplit("/", 1)[-1] for one in storage.objects if one.startswith(f"wal/{SYSTEM:016x}")
    }
    assert {one for one in left if len(one) == 24} == {
        *(name(number) for number in (4, 5, 6)), name(4, 2), name(5, 2),
    }  # fmt: skip
    assert "00000002.history" in left and name(2) + ".00000028.backup" not in left
    listing = store.listing(SYSTEM)
    assert len(listing.timelines[1].gaps) == 1 and not listing.unread
    assert len(store.listing(other).timelines[1].segments) == 6  # nobody knows what needs it
    assert Checker(room, progress=Silent()).run(3).findings == []


def test_the_log_of_a_backup_that_has_not_ended_stays() -> None:
    """It began before the only one that is there, and will commit behind it."""
    time = [1_800_000_000.0]
    storage = MemoryStorage(now=lambda: time[0])
    store = WalStore(new_room(storage))
    store.put(SYSTEM, FIRST, segment("long before"))
    time[0] += 90_000
    running = open_room(storage, "long").begin("standby", progress=Silent())
    for number in (2, 3, 4):
        time[0] += 600
        store.put(SYSTEM, name(number), segment(number))
    log = {"system_id": str(SYSTEM), "start_lsn": "0/4000028", "wal_segment_size": str(1 << 24)}
    take(open_room(storage, "short"), "db", {b"n": b"1"}, kind="postgres", log=log)
    writer = open_room(storage, "prune", keyset=writer_keys())
    assert prune_wal(writer, dry_run=False).files == 1
    assert store.head(SYSTEM, name(2))
    running.abandon()
    assert prune_wal(writer, dry_run=False).files == 2
    # One that died stands in the way for no longer than a prune waits for it.
    open_room(storage, "dies").begin("standby", progress=Silent())
    store.put(SYSTEM, name(1, 2), segment("another"))
    assert prune_wal(writer, dry_run=False).files == 0
    time[0] += 8 * 86400
    take(open_room(storage, "later"), "db", {b"n": b"2"}, kind="postgres", log=log)
    assert prune_wal(writer, dry_run=False).files == 1


def test_who_cannot_tell_what_a_backup_needs_deletes_no_log(
    store: WalStore, storage: MemoryStorage
) -> None:
    store.put(SYSTEM, FIRST, segment("one"))
    take(open_room(storage, "old"), "db", {b"n": b"1"}, kind="postgres")
    writer = open_room(storage, "prune", keyset=writer_keys())
    assert "reader's key" in prune_wal(writer, dry_run=False).skipped
    assert store.get(SYSTEM, FIRST)


def test_a_prune_leaves_the_wal_alone_and_stats_count_it(
    store: WalStore, storage: MemoryStorage
) -> None:
    store.put(SYSTEM, FIRST, segment("one"))
    store.put(SYSTEM, name(2), segment("two"))
    store.summarise(SYSTEM, 1, least=1)
    store.bind("db", SYSTEM)
    room = open_room(storage, "prune")
    take(room, "vault", {b"a": b"a"})
    before = {one: data for one, data in storage.objects.items() if one.startswith("wal/")}
    prune(room)
    assert {one: data for one, data in storage.objects.items() if one.startswith("wal/")} == before
    assert Checker(room, progress=Silent()).run(3).notes == []
    counted = stats(room)
    files = [
        len(data) for one, data in before.items() if one.rsplit("/", 1)[-1] in (FIRST, name(2))
    ]
    assert (counted.wal_files, counted.wal_size) == (2, sum(files))
    assert counted.objects["wal"] == 4


# -- segments that are not whole yet -----------------------------------------------------------


def put_parts(store: WalStore, data: memoryview, *ends: tuple[int, int]) -> None:
    for start, end in ends:
        facts = replace(FACTS, last=FACTS.start + end, whole=False)
        store.put_part(SYSTEM, Part(FIRST, start, end), data[start:end], facts=facts)


def test_parts_of_a_segment_join(storage: MemoryStorage, store: WalStore) -> None:
    data = segment("parts")
    with pytest.raises(ObjectMissing):
        store.get_begun(SYSTEM, FIRST)
    put_parts(
        store, data, (0, 1000), (1000, 2500), (1000, 2500), (0, 900), (900, 4000), (5000, 6000)
    )
    assert store.get_begun(SYSTEM, FIRST) == bytes(data[:4000])
    (begun,) = store.listing(SYSTEM).timelines[1].begun
    assert (begun.name, begun.end) == (FIRST, 4000)
    assert begun.facts is not None
    assert begun.facts.last == FACTS.start + 4000
    report = Checker(open_room(storage, "check"), progress=Silent()).run(3)
    assert (report.findings, report.notes) == ([], [])
    # Once the segment is there, they are of no use, and go.
    assert not store.listing(SYSTEM).timelines[1].segments
    store.drop_parts(SYSTEM, FIRST)
    assert store.get_begun(SYSTEM, FIRST) == bytes(data[:4000])
    store.put(SYSTEM, FIRST, data, facts=FACTS)
    assert store.listing(SYSTEM).timelines[1].begun == []
    store.drop_parts(SYSTEM, FIRST)
    assert [one.name for one in storage.list("wal/") if "parts/" in one.name] == []


def test_other_bytes_for_a_part_are_refused(store: WalStore) -> None:
    put_parts(store, segment("one"), (0, 1000))
    with pytest.raises(WalConflict):
        put_parts(store, segment("other"), (0, 1000))
    (conflict,) = store.listing(SYSTEM).timelines[1].conflicts
    assert conflict.name == FIRST


@pytest.mark.parametrize("byte", [30, 700, -5])
def test_a_damaged_part_is_named(storage: MemoryStorage, store: WalStore, byte: int) -> None:
    put_parts(store, segment("parts"), (0, 1000))
    (place,) = [one.name for one in storage.list("wal/") if "parts/" in one.name]
    data = bytearray(storage.get(place))
    data[byte] ^= 1
    storage.delete([place])
    storage.put(place, data)
    with pytest.raises((Damaged, KeyRefused)):
        store.get_begun(SYSTEM, FIRST)
    report = Checker(open_room(storage, "check"), progress=Silent()).run(3)
    assert [each.object for each in report.findings] == [place]


def test_names_of_parts() -> None:
    part = Part(FIRST, 16, 4096)
    assert str(part) == f"{FIRST}-00000010-00001000"
    assert Part.parse(str(part)) == part
    place = walfile.place_of("parts", SYSTEM, str(part))
    assert walfile.parse_object(place).sort == "parts"
    for bad in (f"{FIRST}-00001000-00000010", f"{FIRST}-10-20", f"{FIRST}"):
        with pytest.raises(ValueError, match="part"):
            Part.parse(bad)
    with pytest.raises(ValueError, match="not the name"):
        walfile.parse_object(place.replace("/00000001/", "/00000002/"))
