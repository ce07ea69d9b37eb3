"""A tar archive (POSIX pax, IEEE Std 1003.1) of a snapshot's tree, in path order.

Names are raw bytes in the ustar header where they fit, else in pax records; times keep their
nanoseconds, attributes stand as SCHILY.xattr.NAME. Sockets have no place in a tar: they are told.
The archive of a snapshot is the same bytes each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from strongroom.format.tree import Entry, Kind
from strongroom.progress import Progress
from strongroom.repository.ports import Problem, SnapshotReader

BLOCK = 512
_MANY = 4 * 1024 * 1024  # handed on at once
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

Out = Callable[[bytes], object]


def write_tar(snapshot: SnapshotReader, out: Out, *, progress: Progress) -> list[Problem]:
    """Write every entry of a snapshot; return what a tar cannot hold. Damaged when content is."""
    problems: list[Problem] = []
    later: list[Entry] = []
    gather = bytearray()

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
        gather += header(entry)
        if entry.kind in (Kind.FILE, Kind.STREAM):
            _content(entry, pieces, gather, out)
            progress.advance(size=entry.size, files=1)
        if len(gather) >= _MANY:
            out(bytes(gather))
            gather.clear()
    for entry in later:
        gather += header(entry)
    gather += bytes(2 * BLOCK)
    out(bytes(gather))
    return problems


def _content(
    entry: Entry, pieces: Iterator[tuple[int, memoryview]], gather: bytearray, out: Out
) -> None:
    at = 0
    for start, piece in pieces:
        _zeros(start - at, gather, out)
        gather += piece
        at = start + len(piece)
        if len(gather) >= _MANY:
            out(bytes(gather))
            gather.clear()
    _zeros(entry.size - at + -entry.size % BLOCK, gather, out)


def _zeros(count: int, gather: bytearray, out: Out) -> None:
    while count > 0:
        some = min(count, _MANY)
        gather += bytes(some)
        count -= some
        if len(gather) >= _MANY:
            out(bytes(gather))
            gather.clear()


def header(entry: Entry) -> bytes:
    """The blocks in front of an entry's content: pax records where needed, and the ustar header."""
    records: list[tuple[bytes, bytes]] = []
    path = entry.path or b"."
    if entry.kind is Kind.DIRECTORY:
        path += b"/"
    prefix, name = _split(path)
    if not name:
        records.append((b"path", path))
        prefix, name = b"", path[:100]
    link = b""
    if entry.kind in (Kind.SYMLINK, Kind.HARDLINK):
        link = entry.target
        if len(link) > 100:
            records.append((b"linkpath", link))
            link = link[:100]
    size = entry.size if entry.kind in (Kind.FILE, Kind.STREAM) else 0
    numbers: list[int] = []
    for key, value, limit in (
        (b"uid", entry.uid, _OCTAL_7),
        (b"gid", entry.gid, _OCTAL_7),
        (b"size", size, _OCTAL_11),
    ):
        if value >= limit:
            records.append((key, b"%d" % value))
        numbers.append(value if value < limit else 0)
    seconds, rest = divmod(entry.mtime_ns, 1_000_000_000)
    if rest or not 0 <= seconds < _OCTAL_11:
        records.append((b"mtime", _decimal(entry.mtime_ns)))
        seconds = min(max(seconds, 0), _OCTAL_11 - 1)
    for attribute, text in entry.xattrs:
        # As GNU tar writes them: a `=` would end the key.
        escaped = attribute.replace(b"%", b"%25").replace(b"=", b"%3D")
        records.append((b"SCHILY.xattr." + escaped, text))
    if any(not _is_utf8(text) for key, text in records if key in (b"path", b"linkpath")):
        records.insert(0, (b"hdrcharset", b"BINARY"))
    major, minor = (os.major(entry.rdev) % _OCTAL_7, os.minor(entry.rdev) % _OCTAL_7)
    main = _block(
        name, prefix, link, _TYPES[entry.kind], entry.mode, numbers, seconds, major, minor
    )
    if not records:
        return main
    body = b"".join(_record(key, value) for key, value in records)
    return _front(len(body)) + body + bytes(-len(body) % BLOCK) + main


@lru_cache(256)
def _front(size: int) -> bytes:
    """The header of pax records that are `size` bytes: the same for most entries."""
    return _block(b"././@PaxHeader", b"", b"", b"x", 0o644, (0, 0, size), 0, 0, 0)


def _split(path: bytes) -> tuple[bytes, bytes]:
    """A path as (prefix, name) of a ustar header; no name when it does not fit."""
    if len(path) <= 100:
        return b"", path
    if len(path) <= 256:
        cut = path.rfind(b"/", 0, min(156, len(path) - 1))
        if cut > 0 and len(path) - cut - 1 <= 100:
            return path[:cut], path[cut + 1 :]
    return b"", b""


def _block(
    name: bytes,
    prefix: bytes,
    link: bytes,
    kind: bytes,
    mode: int,
    numbers: Sequence[int],
    mtime: int,
    major: int,
    minor: int,
) -> bytes:
    uid, gid, size = numbers
    block = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0        %s%sustar\00000%s%07o\0%07o\0%s" % (
        name.ljust(100, b"\0"),
        mode,
        uid,
        gid,
        size,
        mtime,
        kind,
        link.ljust(100, b"\0"),
        bytes(64),
        major,
        minor,
        prefix.ljust(167, b"\0"),
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


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
