"""The overlay of an opened cluster is a file system: whatever is done to it, it is as a real directory."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from strongroom.format.content import Extent
from strongroom.format.tree import Entry, Kind
from strongroom.postgres.open.extents import Extents
from strongroom.postgres.open.overlay import BLOCK, EXCHANGE, NO_REPLACE, Node, Overlay, Unloaded
from strongroom.postgres.open.scratch import ScratchFiles

paths = st.sampled_from([b"a", b"b", b"c", b"a/a", b"a/b", b"b/a", b"a/a/a"])
places = st.one_of(
    st.integers(0, 6 * BLOCK),
    st.sampled_from([BLOCK * k + d for k in range(6) for d in (-1, 0, 1) if BLOCK * k + d >= 0]),
)


class Room:
    """An overlay whose chunks are in a dictionary."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="sr-overlay-")
        self.scratch = ScratchFiles(self.folder)
        self.overlay = Overlay(self.scratch, owner=(0, 0), now=lambda: 1)
        self.chunks: dict[bytes, bytes] = {}
        self.rows: dict[bytes, list[Extent]] = {}

    def close(self) -> None:
        self.scratch.close()
        shutil.rmtree(self.folder)

    def base(self, path: bytes, pieces: list[tuple[int, bytes, int]], tail: int = 0) -> bytes:
        """A file of the backup: pieces of (hole before, bytes, repeats); returns what is in it."""
        content, rows = b"", []
        for hole, data, repeats in pieces:
            content += bytes(hole)
            chunk = len(self.chunks).to_bytes(32, "big")
            self.chunks[chunk] = b"xx" + data
            rows.append(Extent(len(content), len(data), 2, repeats, chunk))
            content += data * repeats
        content += bytes(tail)
        above, _, name = path.rpartition(b"/")
        entry = Entry(path, Kind.FILE, 0o600, size=len(content), content=b"\x01")
        self.overlay.place(self.overlay.folder(above), name, entry)
        self.rows[path] = rows
        return content

    def read(self, node: Node, offset: int = 0, size: int | None = None) -> bytes:
        size = node.size if size is None else size
        try:
            pieces = self.overlay.plan(node, offset, size)
        except Unloaded:
            assert node.entry is not None
            node.extents = Extents(self.rows[node.entry.path])
            pieces = self.overlay.plan(node, offset, size)
        found = b""
        for piece in pieces:
            if piece.id is None:
                part = self.overlay.scratch(node, piece)
            else:
                part = self.chunks[piece.id][piece.place : piece.place + piece.length]
            assert len(part) == piece.length
            found += part
        return found

    def write(self, node: Node, offset: int, data: bytes) -> None:
        for begin, end in self.overlay.lacking(node, offset, len(data)):
            self.overlay.fill(node, begin, self.read(node, begin, end - begin))
        self.overlay.write(node, offset, data)


def refusal(act: Callable[[], object]) -> int:
    """0, or why it was refused."""
    try:
        act()
    except OSError as fault:
        assert fault.errno
        return fault.errno
    return 0


class AsADirectory(RuleBasedStateMachine):
    """Every operation on both; the answers and the trees stay the same."""

    def __init__(self) -> None:
        super().__init__()
        self.room = Room()
        self.real = os.fsencode(tempfile.mkdtemp(prefix="sr-real-"))
        self.held: dict[int, Node] = {}

    def teardown(self) -> None:
        for fd in self.held:
            os.close(fd)
        self.room.close()
        shutil.rmtree(self.real)

    @initialize(
        files=st.lists(
            st.tuples(
                paths,
                st.lists(
                    st.tuples(
                        st.sampled_from([0, 0, 1, BLOCK, 5000]),
                        st.binary(min_size=1, max_size=40).flatmap(
                            lambda seed: st.sampled_from([1, 511, BLOCK, 3 * BLOCK + 7]).map(
                                lambda size: (seed * (size // len(seed) + 1))[:size]
                            )
                        ),
                        st.sampled_from([1, 1, 1, 3]),
                    ),
                    max_size=4,
                ),
                st.sampled_from([0, 100, BLOCK]),
            ),
            max_size=3,
        )
    )
    def plant(self, files: list[tuple[bytes, list[tuple[int, bytes, int]], int]]) -> None:
        for path, pieces, tail in files:
            target = self.path(path)
            with contextlib.suppress(OSError):
                if os.path.lexists(target):
                    continue
                os.makedirs(os.path.dirname(target), exist_ok=True)
                content = self.room.base(path, pieces, tail)
                with open(target, "wb") as file:
                    file.write(content)

    def path(self, path: bytes) -> bytes:
        return os.path.join(self.real, path)

    def ours(self, path: bytes) -> tuple[Node, bytes]:
        """The directory above, as the kernel would have found it, and the name."""
        above, _, name = path.rpartition(b"/")
        node = self.room.overlay.root
        for part in above.split(b"/") if above else ():
            child = self.room.overlay.child(node, part)
            if child is None:
                raise OSError(errno.ENOENT, "")
            node = child
        if node.children is None:
            raise OSError(errno.ENOTDIR, "")
        return node, name

    def file(self, path: bytes) -> Node:
        folder, name = self.ours(path)
        node = self.room.overlay.child(folder, name)
        if node is None:
            raise OSError(errno.ENOENT, "")
        if node.children is not None:
            raise OSError(errno.EISDIR, "")
        return node

    def both(self, ours: Callable[[], object], real: Callable[[], object]) -> None:
        assert refusal(ours) == refusal(real)

    @rule(path=paths)
    def create(self, path: bytes) -> None:
        self.both(
            lambda: self.room.overlay.create(*self.ours(path), 0o600, 0, 0),
            lambda: os.close(os.open(self.path(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
        )

    @rule(path=paths)
    def mkdir(self, path: bytes) -> None:
        self.both(
            lambda: self.room.overlay.mkdir(*self.ours(path), 0o700, 0, 0),
            lambda: os.mkdir(self.path(path)),
        )

    @rule(path=paths)
    def unlink(self, path: bytes) -> None:
        self.both(
            lambda: self.room.overlay.unlink(*self.ours(path)), lambda: os.unlink(self.path(path))
        )

    @rule(path=paths)
    def rmdir(self, path: bytes) -> None:
        self.both(
            lambda: self.room.overlay.rmdir(*self.ours(path)), lambda: os.rmdir(self.path(path))
        )

    @rule(old=paths, new=paths)
    def link(self, old: bytes, new: bytes) -> None:
        def ours() -> None:
            folder, name = self.ours(old)
            node = self.room.overlay.child(folder, name)
            if node is None:
                raise OSError(errno.ENOENT, "")
            above, to = self.ours(new)
            # The kernel looks at the new name before it says that directories have one name only.
            if self.room.overlay.child(above, to) is not None:
                raise OSError(errno.EEXIST, "")
            self.room.overlay.link(node, above, to)

        self.both(ours, lambda: os.link(self.path(old), self.path(new)))

    @rule(old=paths, new=paths)
    def rename(self, old: bytes, new: bytes) -> None:
        if new.startswith(old + b"/") or old.startswith(new + b"/"):
            return  # the kernel refuses it before it asks

        def ours() -> None:
            source, target = self.ours(old), self.ours(new)
            self.room.overlay.rename(*source, *target)

        self.both(ours, lambda: os.rename(self.path(old), self.path(new)))

    @rule(path=paths, offset=places, data=st.binary(min_size=1, max_size=8), many=places)
    def write(self, path: bytes, offset: int, data: bytes, many: int) -> None:
        data = (data * (many // len(data) + 1))[: many + 1]

        def real() -> None:
            fd = os.open(self.path(path), os.O_WRONLY)
            try:
                os.pwrite(fd, data, offset)
            finally:
                os.close(fd)

        self.both(lambda: self.room.write(self.file(path), offset, data), real)

    @rule(path=paths, size=places)
    def truncate(self, path: bytes, size: int) -> None:
        self.both(
            lambda: self.room.overlay.truncate(self.file(path), size),
            lambda: os.truncate(self.path(path), size),
        )

    @rule(path=paths, offset=places, size=st.integers(1, 3 * BLOCK))
    def allocate(self, path: bytes, offset: int, size: int) -> None:
        def real() -> None:
            fd = os.open(self.path(path), os.O_WRONLY)
            try:
                os.posix_fallocate(fd, offset, size)
            finally:
                os.close(fd)

        self.both(lambda: self.room.overlay.allocate(self.file(path), offset, size, 0), real)

    @rule(path=paths, offset=places, size=places)
    def read(self, path: bytes, offset: int, size: int) -> None:
        with contextlib.suppress(OSError), open(self.path(path), "rb") as file:
            file.seek(offset)
            assert self.room.read(self.file(path), offset, size) == file.read(size)

    @rule(path=paths)
    def hold(self, path: bytes) -> None:
        """A file that is open is there although no name leads to it."""
        with contextlib.suppress(OSError):
            node = self.file(path)
            fd = os.open(self.path(path), os.O_RDONLY)
            node.known += 1
            self.held[fd] = node

    @rule()
    def let_go(self) -> None:
        for fd, node in self.held.items():
            assert self.room.read(node) == os.pread(fd, 1 << 20, 0)
            os.close(fd)
            self.room.overlay.forget(node.id, 1)
        self.held.clear()

    @invariant()
    def the_same(self) -> None:
        ours: dict[bytes, bytes | None] = {}

        def walk(node: Node, path: bytes) -> None:
            for name, child in (node.children or {}).items():
                below = path + b"/" + name
                ours[below] = None if child.children is not None else self.room.read(child)
                walk(child, below)

        walk(self.room.overlay.root, b"")
        real: dict[bytes, bytes | None] = {}
        for parent, folders, files in os.walk(self.real):
            for name in folders:
                real[os.path.join(parent, name)[len(self.real) :]] = None
            for name in files:
                path = os.path.join(parent, name)
                with open(path, "rb") as file:
                    real[path[len(self.real) :]] = file.read()
        assert ours == real


AsADirectory.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestAsADirectory = AsADirectory.TestCase


pieces = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 1, BLOCK, 5000]),
        st.sampled_from([1, 511, BLOCK, 2 * BLOCK, 3 * BLOCK + 7]).map(
            lambda size: (bytes(range(1, 252)) * (size // 251 + 1))[:size]
        ),
        st.sampled_from([1, 1, 1, 3]),
    ),
    min_size=1,
    max_size=3,
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), places, places),
        st.tuples(st.just("truncate"), places, places),
        st.tuples(st.just("allocate"), places, places),
    ),
    min_size=1,
    max_size=12,
)


@given(base=pieces, tail=st.sampled_from([0, 100, BLOCK]), steps=steps)
@settings(max_examples=400, deadline=None)
def test_content_is_that_of_a_file(
    base: list[tuple[int, bytes, int]], tail: int, steps: list[tuple[str, int, int]]
) -> None:
    room = Room()
    try:
        model = bytearray(room.base(b"f", base, tail))
        node = room.overlay.find(b"f")
        assert node is not None
        for number, (what, first, second) in enumerate(steps):
            if what == "write":
                data = bytes([0xF0 + number % 16]) * (second % (2 * BLOCK + 3) + 1)
                room.write(node, first, data)
                model.extend(bytes(max(0, first - len(model))))
                model[first : first + len(data)] = data
            elif what == "truncate":
                room.overlay.truncate(node, first)
                del model[first:]
                model.extend(bytes(first - len(model)))
            else:
                room.overlay.allocate(node, first, second + 1, 0)
                model.extend(bytes(max(0, first + second + 1 - len(model))))
            assert node.size == len(model)
            assert room.read(node, first, second) == bytes(model[first : first + second])
            assert room.read(node) == bytes(model)
    finally:
        room.close()


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    room.close()


def test_a_block_that_is_written_whole_needs_nothing_of_the_base(room: Room) -> None:
    room.base(b"f", [(0, b"ab" * 50_000, 1)])
    node = room.overlay.find(b"f")
    assert node is not None
    assert room.overlay.lacking(node, 8192, 8192) == []
    assert room.overlay.lacking(node, 8192, 100) == [(8292, 12288)]
    assert room.overlay.lacking(node, 100, 8192) == [(0, 100), (8292, 12288)]
    room.overlay.write(node, 8192, b"n" * 8192)  # its extents were never asked for
    assert node.extents is None
    assert room.read(node) == b"ab" * 4096 + b"n" * 8192 + (b"ab" * 50_000)[16384:]


def test_what_a_file_grows_by_after_it_was_cut_is_zeros(room: Room) -> None:
    room.base(b"f", [(0, b"x" * 20_000, 1)])
    node = room.overlay.find(b"f")
    assert node is not None
    room.overlay.truncate(node, 10_000)
    room.overlay.truncate(node, 30_000)
    assert room.read(node) == b"x" * 10_000 + bytes(20_000)
    room.write(node, 12_000, b"y")
    assert room.read(node) == b"x" * 10_000 + bytes(2_000) + b"y" + bytes(17_999)


def test_flags_of_rename(room: Room) -> None:
    overlay, root = room.overlay, room.overlay.root
    one, two = (overlay.create(root, name, 0o600, 0, 0) for name in (b"one", b"two"))
    with pytest.raises(OSError, match="there is one"):
        overlay.rename(root, b"one", root, b"two", NO_REPLACE)
    overlay.rename(root, b"one", root, b"two", EXCHANGE)
    assert overlay.child(root, b"one") is two
    assert overlay.child(root, b"two") is one


def test_scratch_has_no_names_and_gives_room_back(room: Room) -> None:
    node = room.overlay.create(room.overlay.root, b"f", 0o600, 0, 0)
    room.overlay.write(node, 0, bytes(range(256)) * 64)
    assert os.listdir(room.folder) == []
    assert room.scratch.used() >= 16384
    node.known = 1  # open
    room.overlay.unlink(room.overlay.root, b"f")
    assert room.read(node) == bytes(range(256)) * 64
    room.overlay.forget(node.id, 1)
    assert room.scratch.used() == 0
    assert node.id not in room.overlay.nodes


def test_modes_are_files_and_directories(room: Room) -> None:
    room.base(b"d/f", [(0, b"x", 1)])
    folder, file = room.overlay.find(b"d"), room.overlay.find(b"d/f")
    assert folder is not None
    assert file is not None
    assert stat.S_ISDIR(folder.mode)
    assert file.mode == stat.S_IFREG | 0o600
