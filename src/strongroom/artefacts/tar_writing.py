"""A tar archive (POSIX pax, IEEE Std 1003.1) of a snapshot's tree, in path order.

Names are raw bytes in the ustar header where they fit, else in pax records; times keep their
nanoseconds, attributes stand as SCHILY.xattr.NAME. Sockets have no place in a tar: they are told.
The archive of a snapshot is the same bytes each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache

from strongroom.format.tree import Entry, Kind
from strongroom.progress import Progress
from strongroom.repository.ports import Problem, SnapshotReader

BLOCK = 512
_MANY = 1024 * 1024  # handed on at once
_ZEROS = memoryview(bytes(_MANY))
_TYPES = {
    Kind.FILE: b"0",
    Kind.STREAM: b"0",
    Kind.HARDLINK: b"1",
    Kind.SYMLINK: b"2",
    Kind.CHARACTER: b"3",
    Kind.BLOCK: b"4",
    Kind.DIRECTORY: b"5",
    Kind.FIFO: b"6",
}
_OCTAL_7, _OCTAL_11 = 8**7, 8**11

Out = Callable[[bytes | bytearray | memoryview], object]


def write_tar(snapshot: SnapshotReader, out: Out, *, progress: Progress) -> list[Problem]:
    """Write every entry of a snapshot; return what a tar cannot hold. Damaged when content is."""
    problems: list[Problem] = []
    later: list[Entry] = []
    gather = _Gather(out)

    def wanted() -> Iterator[Entry]:
        for entry in snapshot.entries():
            if entry.kind is Kind.SOCKET:
                problems.append(Problem(entry.path, "a tar archive holds no sockets"))
                progress.problem(entry.path, "a tar archive holds no sockets")
            elif entry.kind is Kind.HARDLINK and entry.target > entry.path:
                later.append(entry)  # its first name has to stand before it
            else:
                yield entry

    for entry, pieces in snapshot.contents(wanted()):
        gather.add(header(entry))
        if entry.kind in (Kind.FILE, Kind.STREAM):
            at = 0
            for start, piece in pieces:
                gather.zeros(start - at)
                gather.add(piece)
                at = start + len(piece)
            gather.zeros(entry.size - at + -entry.size % BLOCK)
            progress.advance(size=entry.size, files=1)
    for entry in later:
        gather.add(header(entry))
    gather.zeros(2 * BLOCK)
    gather.flush()
    return problems


class _Gather:
    """Hands on many bytes at once."""

    def __init__(self, out: Out) -> None:
        self._out, self._held = out, bytearray()

    def add(self, data: bytes | memoryview) -> None:
        self._held += data
        if len(self._held) >= _MANY:
            self.flush()

    def zeros(self, count: int) -> None:
        while count > 0:
            self.add(_ZEROS[:count])
            count -= len(_ZEROS)

    def flush(self) -> None:
        held, self._held = self._held, bytearray()
        self._out(held)


def header(entry: Entry) -> bytes:
    """The blocks in front of an entry's content: pax records where needed, and the ustar header."""
    records: list[tuple[bytes, bytes]] = []
    path, kind = entry.path or b".", entry.kind
    if kind is Kind.DIRECTORY:
        path += b"/"
    prefix, name = (b"", path) if len(path) <= 100 else _split(path)
    if not name:
        records.append((b"path", path))
        name = path[:100]
    link = b""
    if kind in (Kind.SYMLINK, Kind.HARDLINK):
        link = entry.target
        if len(link) > 100:
            records.append((b"linkpath", link))
            link = link[:100]
    uid = _number(b"uid", entry.uid, _OCTAL_7, records)
    gid = _number(b"gid", entry.gid, _OCTAL_7, records)
    size = 0
    if kind in (Kind.FILE, Kind.STREAM):
        size = _number(b"size", entry.size, _OCTAL_11, records)
    seconds, rest = divmod(entry.mtime_ns, 1_000_000_000)
    if rest or not 0 <= seconds < _OCTAL_11:
        records.append((b"mtime", _decimal(entry.mtime_ns)))
        seconds = min(max(seconds, 0), _OCTAL_11 - 1)
    for attribute, text in entry.xattrs:
        # As GNU tar writes them: a `=` would end the key.
        escaped = attribute.replace(b"%", b"%25").replace(b"=", b"%3D")
        records.append((b"SCHILY.xattr." + escaped, text))
    if any(key in (b"path", b"linkpath") and not _is_utf8(text) for key, text in records):
        records.insert(0, (b"hdrcharset", b"BINARY"))
    owner = _owner(entry.mode, uid, gid)
    main = _block(name, owner, size, seconds, _rest(_TYPES[kind], link, entry.rdev, prefix))
    if not records:
        return main
    body = b"".join([_record(key, value) for key, value in records])
    return b"".join((_front(len(body)), body, bytes(-len(body) % BLOCK), main))


def _number(key: bytes, value: int, limit: int, records: list[tuple[bytes, bytes]]) -> int:
    """A number as its field takes it: what does not fit stands in a record."""
    if value < limit:
        return value
    records.append((key, b"%d" % value))
    return 0


def _split(path: bytes) -> tuple[bytes, bytes]:
    """A long path as (prefix, name) of a ustar header; no name when it does not fit."""
    if len(path) <= 256:
        cut = path.rfind(b"/", 0, min(156, len(path) - 1))
        if cut > 0 and len(path) - cut - 1 <= 100:
            return path[:cut], path[cut + 1 :]
    return b"", b""


# Three parts of a header are the same for many entries; their sums of bytes are kept with them.
_Part = tuple[bytes, int]


@lru_cache(256)
def _front(size: int) -> bytes:
    """The header of pax records that are `size` bytes."""
    return _block(b"././@PaxHeader", _owner(0o644, 0, 0), size, 0, _rest(b"x", b"", 0, b""))


@lru_cache(1024)
def _owner(mode: int, uid: int, gid: int) -> _Part:
    part = b"%07o\0%07o\0%07o\0" % (mode, uid, gid)
    return part, sum(part)


@lru_cache(1024)
def _rest(kind: bytes, link: bytes, rdev: int, prefix: bytes) -> _Part:
    """What stands behind the checksum."""
    part = b"%s%sustar\00000%s%07o\0%07o\0%s" % (
        kind,
        link.ljust(100, b"\0"),
        bytes(64),
        os.major(rdev) % _OCTAL_7,
        os.minor(rdev) % _OCTAL_7,
        prefix.ljust(167, b"\0"),
    )
    return part, sum(part)


def _block(name: bytes, owner: _Part, size: int, mtime: int, rest: _Part) -> bytes:
    numbers = b"%011o\0%011o\0" % (size, mtime)
    # Eight spaces stand for the checksum itself.
    total = sum(name) + owner[1] + sum(numbers) + 8 * 32 + rest[1]
    return b"%s%s%s%06o\0 %s" % (name.ljust(100, b"\0"), owner[0], numbers, total, rest[0])


def _record(key: bytes, value: bytes) -> bytes:
    """One pax record; its length counts its own digits."""
    size = len(key) + len(value) + 3
    length = size + len(str(size))
    length = size + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _decimal(ns: int) -> bytes:
    sign, ns = (b"-", -ns) if ns < 0 else (b"", ns)
    whole, rest = divmod(ns, 1_000_000_000)
    return sign + b"%d.%09d" % (whole, rest)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
