"""What goes in comes out: contents of every shape, trees of every height, over real storages."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rooms import (
    DictSource,
    Sparse,
    as_read,
    each,
    fill,
    new_room,
    noise,
    open_room,
    read,
    restore,
    take,
)
from strongroom.errors import Overtaken
from strongroom.format import content as contents
from strongroom.format.chunker import FixedChunker
from strongroom.format.tree import Entry, Kind
from strongroom.operations.back_up import back_up
from strongroom.progress import Progress, Silent
from strongroom.repository import session as sessions
from strongroom.repository.ports import Session, Taken
from strongroom.repository.seams import Settings
from strongroom.repository.session import INLINE_EXTENTS
from strongroom.storage.base import Storage
from strongroom.storage.memory import MemoryStorage

KIB = 1024

# The room's chunker cuts between 1 and 64 KiB.
SHAPES: dict[bytes, bytes | Sparse] = {
    b"empty": b"",
    b"one byte": b"x",
    b"smallest": noise("smallest", KIB),
    b"smallest and one": noise("smallest", KIB + 1),
    b"largest of zeros": bytes(64 * KIB),
    b"largest and one": bytes(64 * KIB + 1),
    b"repeats": bytes(1000 * KIB),
    b"repeats and a tail": bytes(640 * KIB) + b"tail",
    b"noise": noise("noise", 700 * KIB),
    b"hole in front": Sparse(9000, ((5000, b"behind the hole" * 20),)),
    b"hole behind": Sparse(900_000, ((0, b"before the hole"),)),
    b"only a hole": Sparse(1 << 20, ()),
    b"holes between": Sparse(
        400 * KIB, tuple((at * 40 * KIB, noise(at, 3000)) for at in range(1, 9))
    ),
    b"the same twice 1": noise("same", 200 * KIB),
    b"the same twice 2": noise("same", 200 * KIB),
    bytes(byte for byte in range(1, 256) if byte != 0x2F): b"a name of every byte",
}


def test_contents_of_all_shapes(storage: Storage) -> None:
    room = new_room(storage)
    snapshot = take(room, "vault", SHAPES).snapshot
    assert restore(room, snapshot) == as_read(SHAPES)
    assert restore(open_room(storage, "another process"), snapshot) == as_read(SHAPES)
    assert snapshot.files == len(SHAPES)
    assert snapshot.size == sum(map(len, as_read(SHAPES).values()))


def test_shapes_are_encoded_as_the_format_says(storage: Storage) -> None:
    room = new_room(storage)
    reader = room.open_snapshot(take(room, "vault", SHAPES).snapshot)
    tags = {entry.path: entry.content[:1] for entry in reader.entries()}
    assert tags[b"empty"] == tags[b"only a hole"][:0] == b""
    assert tags[b"one byte"] == tags[b"largest of zeros"] == contents.WHOLE
    assert tags[b"noise"] == contents.PAGED
    assert tags[b"repeats"] == contents.EXTENTS
    entry = reader.find(b"repeats")
    assert entry is not None
    assert len(list(reader.extents(entry))) == 2  # a run of equal chunks, and the odd last one


def test_stream_fills_holes_with_zeros(storage: Storage) -> None:
    room = new_room(storage)
    reader = room.open_snapshot(take(room, "vault", SHAPES).snapshot)
    for path, content in as_read(SHAPES).items():
        entry = reader.find(path)
        assert entry is not None
        assert b"".join(reader.stream(entry)) == content


@pytest.mark.parametrize("count", [INLINE_EXTENTS, INLINE_EXTENTS + 1, 64, 65, 1024, 1025, 5000])
def test_many_extents_are_paged(count: int) -> None:
    room = new_room(MemoryStorage())
    parts = tuple((number * 8, number.to_bytes(4, "little")) for number in range(count))
    content = Sparse(count * 8, parts)
    snapshot = take(room, "vault", {b"file": content}).snapshot
    assert restore(room, snapshot) == {b"file": content.flat}
    entry = room.open_snapshot(snapshot).find(b"file")
    assert entry is not None
    assert (entry.content[:1] == contents.PAGED) == (count > INLINE_EXTENTS)


def test_a_changed_extent_changes_one_page() -> None:
    storage = MemoryStorage()
    room = new_room(storage)
    parts = {number * 8: number.to_bytes(4, "little") for number in range(5000)}
    take(room, "vault", {b"file": Sparse(40_000, tuple(parts.items()))})
    parts[2000 * 8] = b"new!"
    changed = take(room, "vault", {b"file": Sparse(40_000, tuple(parts.items()))})
    assert changed.snapshot.new_size < 1200 * contents.ROW_SIZE


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["write", "seek", "feed"]), st.integers(0, 150 * KIB), st.booleans()
        ),
        max_size=12,
    )
)
def test_any_way_of_writing_a_stream(steps: list[tuple[str, int, bool]]) -> None:
    """Writes, kept-buffer reads and holes in any order give the bytes that a file would hold."""
    room = new_room(MemoryStorage())
    expected = bytearray()

    def push(session: Session) -> Entry:
        stream = session.lane().content()
        for number, (step, size, zeros) in enumerate(steps):
            data = bytes(size) if zeros else noise(number, size)
            if step == "seek":
                stream.seek(len(expected) + size)
                expected.extend(bytes(size))
                continue
            expected.extend(data)
            if step == "write":
                stream.write(data)
            else:
                assert stream.feed_from(pieces_of(data)) == size
        with pytest.raises(ValueError):
            stream.seek(len(expected) - 1)
        stored = stream.finish(size=len(expected))
        return Entry(b"file", Kind.FILE, size=stored.size, content=stored.content)

    snapshot = back_up(room, Pushing(push), progress=Silent()).snapshot
    assert restore(room, snapshot) == {b"file": bytes(expected)}


def pieces_of(data: bytes) -> Callable[[memoryview], int]:
    """A `readinto` that gives a little at a time, as a pipe does."""
    rest = memoryview(data)

    def readinto(room: memoryview) -> int:
        nonlocal rest
        step = min(len(room), len(rest), 30_011)
        room[:step], rest = rest[:step], rest[step:]
        return step

    return readinto


class Pushing:
    """A source that is a function which gives one entry, or several."""

    name, kind = "vault", "files"

    def __init__(self, push: Callable[[Session], Entry | list[Entry]]) -> None:
        self._push = push

    def back_up(self, session: Session, *, progress: Progress) -> Taken:
        del progress
        found = self._push(session)
        for entry in found if isinstance(found, list) else [found]:
            session.tree.add(entry)
        return Taken(1, 0)

    def settled(self) -> None:
        """Nothing to keep."""


def test_pages_of_a_database_are_cut_where_they_lie() -> None:
    room = new_room(MemoryStorage())
    data = noise("pages", 640 * KIB)
    session = room.begin("db", progress=Silent(), chunker=FixedChunker())
    stream = session.lane().content()
    stream.write(data)
    stored = stream.finish()
    session.tree.add(Entry(b"base/1", Kind.STREAM, size=stored.size, content=stored.content))
    snapshot = session.commit("db", "postgres", Taken(1, len(data)), labels={})
    reader = room.open_snapshot(snapshot)
    assert read(reader) == {b"base/1": data}
    (entry,) = reader.entries()
    assert [extent.start for extent in reader.extents(entry)] == list(range(0, 640 * KIB, 64 * KIB))


# -- trees -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "levels"), [(0, 0), (1, 0), (64, 0), (1025, 1), (5000, 1), (100_000, 2)]
)
def test_trees_of_every_height(count: int, levels: int) -> None:
    room = new_room(MemoryStorage())

    def push(_: Session) -> list[Entry]:
        return [Entry(b"d/%07d" % number, Kind.FIFO, uid=number) for number in range(count)]

    snapshot = back_up(room, Pushing(push), progress=Silent()).snapshot
    assert snapshot.root.entries == count
    assert snapshot.root.levels >= levels
    reader = room.open_snapshot(snapshot)
    assert [(entry.path, entry.uid) for entry in reader.entries()] == [
        (b"d/%07d" % number, number) for number in range(count)
    ]
    for number in range(0, count, max(1, count // 50)):
        found = reader.find(b"d/%07d" % number)
        assert found is not None
        assert found.uid == number
    assert reader.find(b"d/9999999") is None
    assert reader.find(b"") is None


def test_one_changed_entry_of_many_costs_a_few_pages() -> None:
    storage = MemoryStorage()
    room = new_room(storage)
    files = {b"d/%05d" % number: b"%d" % number for number in range(20_000)}
    take(room, "vault", files)
    before = sum(map(len, storage.objects.values()))
    again = take(room, "vault", files | {b"d/10000": b"changed", b"d/10000a": b"new"})
    assert again.snapshot.new_size < 300 * KIB
    assert sum(map(len, storage.objects.values())) - before < 60 * KIB


TREE = {
    b"a": b"1",
    b"a-b": b"2",  # sorts between "a" and what is below it
    b"a.txt": b"3",
    b"a/1": b"4",
    b"a/1/2": b"5",
    b"a/\xff": b"6",
    b"a0": b"7",
    b"b": b"8",
}


@pytest.mark.parametrize(
    ("under", "expected"),
    [
        (b"", sorted(TREE)),
        (b"a", [b"a", b"a/1", b"a/1/2", b"a/\xff"]),
        (b"a/1", [b"a/1", b"a/1/2"]),
        (b"a-", []),
        (b"b", [b"b"]),
        (b"zz", []),
    ],
)
@pytest.mark.parametrize("crowd", [0, 3000])
def test_entries_below_a_path(under: bytes, expected: list[bytes], crowd: int) -> None:
    room = new_room(MemoryStorage())
    others = {b"a/x%05d" % number: b"" for number in range(crowd)}
    reader = room.open_snapshot(take(room, "vault", TREE | others).snapshot)
    found = [entry.path for entry in reader.entries(under) if entry.path not in others]
    assert found == expected
    for path, content in TREE.items():
        entry = reader.find(path)
        assert entry is not None
        assert b"".join(reader.stream(entry)) == content


def test_the_order_of_a_tree_is_kept_by_the_engine() -> None:
    session = new_room(MemoryStorage()).begin("vault", progress=Silent())
    session.tree.add(Entry(b"b", Kind.FIFO))
    for path in (b"b", b"a"):
        with pytest.raises(ValueError):
            session.tree.add(Entry(path, Kind.FIFO))
    session.abandon()


def test_entries_of_every_kind_keep_their_facts(storage: Storage) -> None:
    room = new_room(storage)
    entries = {
        b"": Entry(b"", Kind.DIRECTORY, 0o2755, 1, 2, -1),
        b"block": Entry(b"", Kind.BLOCK, 0o660, rdev=(8 << 8) + 1),
        b"hard": Entry(b"", Kind.HARDLINK, target=b"file"),
        b"link": Entry(b"", Kind.SYMLINK, target=b"\xff" * 4000, mtime_ns=1 << 62),
        b"socket": Entry(b"", Kind.SOCKET, xattrs=((b"user.x", b"\0" * 60_000),)),
    }
    reader = room.open_snapshot(take(room, "vault", {**entries, b"file": b"x"}).snapshot)
    for path, entry in entries.items():
        found = reader.find(path)
        assert found is not None
        assert (found.kind, found.mode, found.mtime_ns, found.target, found.rdev, found.xattrs) == (
            entry.kind,
            entry.mode,
            entry.mtime_ns,
            entry.target,
            entry.rdev,
            entry.xattrs,
        )


# -- reading -----------------------------------------------------------------------------------


def test_pieces_that_are_not_taken_to_the_end(storage: Storage) -> None:
    """A sink may leave an entry whenever it likes; the next ones are whole."""
    room = new_room(storage)
    files = {b"%02d" % number: noise(number, 300 * KIB) for number in range(12)}
    files[b"03"] = bytes(9000 * KIB)
    reader = room.open_snapshot(take(room, "vault", files).snapshot)
    for number, (entry, pieces) in enumerate(each(reader)):
        if number % 3 == 0:
            continue
        if number % 3 == 1:
            offset, piece = next(iter(pieces))
            assert files[entry.path][offset : offset + len(piece)] == piece
            continue
        assert fill(entry.size, pieces) == files[entry.path]


def test_one_reader_serves_many_threads() -> None:
    room = new_room(MemoryStorage(), settings=Settings(pack_size=256 * KIB))
    files = {b"%03d" % number: noise(number, 20 * KIB) for number in range(200)}
    reader = room.open_snapshot(take(room, "vault", files).snapshot)
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: read(reader), range(16)))
    assert all(result == files for result in results)


def test_facts_and_labels_come_back(storage: Storage) -> None:
    room = new_room(storage)
    facts = {"tables": {"clips": [1, 2, None]}, "ä": "\U0001f5c4", "big": "x" * 3_000_000}
    source = DictSource("vault", {b"a": b"1"}, facts=facts)
    snapshot = back_up(room, source, progress=Silent(), labels={"why": "test"}).snapshot
    again = open_room(storage, "again")
    (listed,) = again.catalogue.snapshots()
    assert listed == snapshot
    assert again.open_snapshot(snapshot).facts == facts
    assert snapshot.labels == {"why": "test"}
    assert source.committed == 1


# -- lanes -------------------------------------------------------------------------------------


def test_lanes_side_by_side_store_each_content_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "WINDOW", 256 * KIB)
    room = new_room(MemoryStorage(), settings=Settings(pack_size=512 * KIB))
    shared = [noise(("shared", number), 3000) for number in range(200)]
    large = noise("large", 2000 * KIB)

    def run(session: Session, number: int) -> list[Entry]:
        lane = session.lane()
        own = [noise((number, each), 1500) for each in range(100)]
        ids = lane.put_small(shared + own)
        stream = lane.content()
        stream.write(large)
        stored = stream.finish()
        names = [b"%d/%04d" % (number, each) for each in range(len(ids))]
        found = [
            Entry(name, Kind.FILE, size=len(data), content=contents.whole(chunk))
            for name, data, chunk in zip(names, shared + own, ids, strict=True)
        ]
        return [
            *found,
            Entry(b"%d/large" % number, Kind.FILE, size=stored.size, content=stored.content),
        ]

    def push(session: Session) -> list[Entry]:
        with ThreadPoolExecutor(4) as threads:
            parts = list(threads.map(lambda number: run(session, number), range(4)))
        return [entry for part in parts for entry in part]

    snapshot = back_up(room, Pushing(push), progress=Silent()).snapshot
    unique = 200 * 3000 + 4 * 100 * 1500 + 2000 * KIB
    assert unique < snapshot.new_size < 1.1 * unique
    result = restore(room, snapshot)
    for number in range(4):
        assert result[b"%d/large" % number] == large
        assert result[b"%d/0007" % number] == shared[7]
        assert result[b"%d/0250" % number] == noise((number, 50), 1500)


def test_buffers_may_be_reused_on_return() -> None:
    room = new_room(MemoryStorage())

    def push(session: Session) -> list[Entry]:
        lane, found = session.lane(), []
        buffer = bytearray(3000)
        for number in range(50):
            buffer[:] = noise(number, 3000)
            ids = lane.put_small([memoryview(buffer)[:1000], memoryview(buffer)[1000:]])
            found += [
                Entry(
                    b"%02d/%d" % (number, part), Kind.FILE, size=size, content=contents.whole(one)
                )
                for part, (one, size) in enumerate(zip(ids, (1000, 2000), strict=True))
            ]
        return found

    result = restore(room, back_up(room, Pushing(push), progress=Silent()).snapshot)
    for number in range(50):
        whole = result[b"%02d/0" % number] + result[b"%02d/1" % number]
        assert whole == noise(number, 3000)


# -- deduplication -----------------------------------------------------------------------------


def test_a_second_run_stores_nothing_new(storage: Storage) -> None:
    room = new_room(storage)
    take(room, "vault", SHAPES)
    packs = {entry.name for entry in storage.list("packs/")}
    trees = {entry.name for entry in storage.list("trees/")}
    again = take(open_room(storage, "later"), "vault", SHAPES).snapshot
    assert (again.new_size, again.stored) == (0, 0)
    assert {entry.name for entry in storage.list("packs/")} == packs
    assert {entry.name for entry in storage.list("trees/")} == trees


def test_groups_share_and_sources_do_not(storage: Storage) -> None:
    room = new_room(storage)
    files = {b"a": noise("a", 50 * KIB)}
    one = back_up(room, DictSource("one", files), progress=Silent(), group="both").snapshot
    two = back_up(room, DictSource("two", files), progress=Silent(), group="both").snapshot
    alone = back_up(room, DictSource("alone", files), progress=Silent()).snapshot
    assert (one.new_size > 0, two.new_size, alone.new_size > 0) == (True, 0, True)
    for snapshot in (one, two, alone):
        assert restore(room, snapshot) == files


def test_reuse_says_what_is_here_and_keeps_it_relied_on(storage: Storage) -> None:
    room = new_room(storage)
    kept: dict[bytes, bytes] = {}

    def first(session: Session) -> list[Entry]:
        lane, found = session.lane(), []
        for name in (b"a", b"b"):
            stream = lane.content()
            stream.write(noise(name, 200 * KIB))
            stored = stream.finish()
            entry = Entry(name, Kind.FILE, size=stored.size, content=stored.content)
            kept[name] = stored.ids
            found.append(entry)
        return found

    snapshot = back_up(room, Pushing(first), progress=Silent()).snapshot
    entries = {entry.path: entry for entry in room.open_snapshot(snapshot).entries()}

    def second(session: Session) -> list[Entry]:
        absent = bytes(32)
        asked = [kept[b"a"], kept[b"b"] + absent, b"", absent]
        assert session.reuse(asked) == [True, False, True, False]
        assert session.reuse([]) == []
        return [entries[b"a"]]

    again = back_up(room, Pushing(second), progress=Silent()).snapshot
    assert restore(room, again) == {b"a": noise(b"a", 200 * KIB)}
    refs = room.catalogue.open_refs(f"refs/vault/{again.id}")
    assert snapshot.session in refs.frames


def test_runs_that_are_overtaken_are_taken_again() -> None:
    room = new_room(MemoryStorage())
    calls = []

    def push(_: Session) -> Entry:
        calls.append(1)
        if len(calls) < 3:
            raise Overtaken("A prune, in a test.")
        return Entry(b"a", Kind.FIFO)

    report = back_up(room, Pushing(push), progress=Silent())
    assert (report.attempts, len(calls)) == (3, 3)
