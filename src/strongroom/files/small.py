"""Small files of one directory on their way: one by one with all care, or many at a stroke.

`Singles` are read so that whatever is wrong with one is known. A `Block` is a run of
new plain files, handled as columns; where one of them is not what the scan said, it
falls out of the block and goes the careful way, between those before and behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from strongroom.files.reading import SMALL_FILE
from strongroom.kernel import EXTRA_SIZE, KEY_SIZE, FileRead, read_files, read_plain

BLOCK_MIN = 8  # below, a block costs more than it saves

_SIZES = struct.Struct("<32xQ16x")  # the size in a KEY


def sizes_of(keys: bytes) -> list[int]:
    """Return the sizes in a column of KEYs."""
    return [size for (size,) in _SIZES.iter_unpack(keys)]


class Pending:
    """A path that will be an entry once its content is stored; `gone` if it will not be."""

    __slots__ = (
        "content",
        "gone",
        "ids",
        "name",
        "packed",
        "path",
        "size",
        "steady",
        "streamed",
        "target",
        "xattrs",
    )

    def __init__(self, path: bytes, name: bytes, packed: bytes) -> None:
        self.path, self.name, self.packed = path, name, packed
        self.content = self.ids = self.target = self.xattrs = b""
        self.size = 0
        self.steady = True
        self.gone = self.streamed = False


class Singles:
    """Files to be read with care. `rows` tell of the first of `items`; offsets are into `view`."""

    def __init__(self) -> None:
        self.fd = -1
        self.items: list[Pending] = []
        self.rows: list[FileRead] = []
        self.view = memoryview(b"")

    def read(self, room: memoryview) -> int:
        """See `ahead.Part`."""
        self.view = room
        if len(room) <= SMALL_FILE:  # files before these grew; the caller reads them
            return -1
        self.rows = read_small(self.fd, [item.name for item in self.items], room)
        if len(self.rows) < len(self.items):
            return -1
        _, offset, length, *_ = self.rows[-1]
        return offset + length


Odd = tuple[int, int, FileRead | None]  # number in the block; where it begins; what was read of it


class Block:
    """Neighbours that are new, small, plain files, and as the scan had found them.

    After reading, `odd` are those that were not, ascending; all the others lie in `view`, one
    directly behind the other but for what was read of the odd. `ids` are filled in by the caller.
    """

    __slots__ = (
        "fd", "ids", "keys", "names", "newest", "odd", "paths", "pending", "view", "xattrs",
    )  # fmt: skip

    def __init__(
        self, names: list[bytes], paths: list[bytes], keys: bytes, newest: int, xattrs: bytes
    ) -> None:
        self.fd = -1
        self.names, self.paths, self.keys = names, paths, keys
        self.newest, self.xattrs = newest, xattrs  # latest mtime or ctime; packed, of each of them
        self.ids: list[bytes] = []
        self.pending: list[Pending] = []  # beside `odd`
        self.view = memoryview(b"")
        self.odd: list[Odd] = [(number, 0, None) for number in range(len(names))]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, room: memoryview) -> int:
        """See `ahead.Part`."""
        self.view, self.odd = room, []
        at, used = 0, 0
        while True:
            at, more = read_plain(self.fd, self.names, self.keys, at, room[used:], self.xattrs)
            used += more
            if at == len(self.names):
                return used
            row = None
            if len(room) - used > SMALL_FILE:
                row = next(iter(read_small(self.fd, [self.names[at]], room[used:])), None)
            self.odd.append((at, used, row))
            used += row[2] if row else 0
            at += 1

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Yield [start, stop) of the even ones before each of the odd ones and after the last, and
        where they begin in `view`; empty runs too."""
        start = begin = 0
        for number, at, row in self.odd:
            yield start, number, begin
            start, begin = number + 1, at + (row[2] if row else 0)
        yield start, len(self.names), begin

    def key_of(self, start: int, stop: int) -> bytes:
        """The KEYs of [start, stop)."""
        return self.keys[start * KEY_SIZE : stop * KEY_SIZE]

    def single(self, number: int) -> Pending:
        """One of them, to be taken with care."""
        packed = self.key_of(number, number + 1) + bytes(EXTRA_SIZE)
        return Pending(self.paths[number], self.names[number], packed)


def read_small(fd: int, names: list[bytes], view: memoryview) -> list[FileRead]:
    """Read small files with care; see `kernel.read_files`."""
    return read_files(fd, names, view, SMALL_FILE)
