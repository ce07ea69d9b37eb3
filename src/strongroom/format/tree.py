"""Trees: what a snapshot holds, as entries sorted by raw path, cut into pages.

    page      entry …                                         one chunk of kind "tree"
    entry     shared u16 ‖ rest u16 ‖ record length u32 ‖ rest of path ‖ record
    record    kind u8 ‖ flags u8 ‖ mode u16 ‖ uid u32 ‖ gid u32 ‖ mtime i64 ns ‖ size u64
              ‖ content length u32 ‖ content ‖ [target u16+bytes] ‖ [rdev u64] ‖ [xattrs]
    xattrs    count u16 ‖ (name u16+bytes ‖ value u32+bytes) …
    index     (page id 32 ‖ entries u32 ‖ first path u16+bytes) …    one chunk of kind "tree"

`shared` bytes are taken from the front of the previous path in the page; a page
starts with shared 0. A page ends after an entry whose keyed path hash says so,
so that the same neighbours give the same page whatever else changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from strongroom import kernel

_HEAD = struct.Struct("<BBHIIqQI")
_STEP = struct.Struct("<HHI")
_U16, _U32, _U64 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_INDEX_ROW = struct.Struct("<32sIH")

_TARGET, _RDEV, _XATTRS = 1, 2, 4
MAX_PATH = 0xFFFF
_PLAIN_FILE = b"\1\0"  # kind and flags of a FILE without attributes: most entries are such


class Kind(IntEnum):
    """What an entry is."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    HARDLINK = 4  # another name for the FILE entry whose path is `target`
    FIFO = 5
    CHARACTER = 6
    BLOCK = 7
    SOCKET = 8
    STREAM = 9  # named bytes that are no file of a file system: a dump, a document


_FILE = Kind.FILE  # an enum's lookups are slow


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing in a tree. `mode` holds permission bits only (0o7777); times in nanoseconds since
    1970; `target` is a symlink's text or a hard link's first path; paths are raw bytes without a
    leading slash, b"" being the root directory itself."""

    path: bytes
    kind: Kind
    mode: int = 0o600
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    content: bytes = b""
    target: bytes = b""
    rdev: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class _Draft:
    """An Entry of a plain file while it may still be written to; its class is changed after.

    A frozen class sets each of its fields by a call: four times as slow, for most entries.
    """

    __slots__ = tuple(Entry.__dataclass_fields__)

    def __init__(
        self, path: bytes, mode: int, uid: int, gid: int, mtime_ns: int, size: int, content: bytes
    ) -> None:
        self.path, self.kind, self.mode, self.uid, self.gid = path, _FILE, mode, uid, gid
        self.mtime_ns, self.size, self.content = mtime_ns, size, content
        self.target, self.rdev, self.xattrs = b"", 0, ()


def encode_record(entry: Entry) -> bytes:
    """Encode everything of an entry but its path."""
    flags = 0
    tail = b""
    if entry.target:
        flags |= _TARGET
        tail += _U16.pack(len(entry.target)) + entry.target
    if entry.rdev:
        flags |= _RDEV
        tail += _U64.pack(entry.rdev)
    if entry.xattrs:
        flags |= _XATTRS
        tail += encode_xattrs(entry.xattrs)
    head = _HEAD.pack(
        entry.kind,
        flags,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_ns,
        entry.size,
        len(entry.content),
    )
    return head + entry.content + tail


def encode_xattrs(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Encode attributes as they stand at the end of a record."""
    return _U16.pack(len(pairs)) + b"".join(
        _U16.pack(len(name)) + name + _U32.pack(len(value)) + value for name, value in pairs
    )


def encode_plain_file(
    mode: int, uid: int, gid: int, mtime_ns: int, size: int, content: bytes
) -> bytes:
    """Encode what `encode_record` would of a FILE without attributes: most entries are such."""
    return _HEAD.pack(Kind.FILE, 0, mode, uid, gid, mtime_ns, size, len(content)) + content


def decode_record(path: bytes, record: bytes) -> Entry:
    """Decode what `encode_record` made; ValueError when it is not that."""
    try:
        kind, flags, mode, uid, gid, mtime, size, length = _HEAD.unpack_from(record)
        at = _HEAD.size + length
        content = record[_HEAD.size : at]
        target, rdev = b"", 0
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        if flags & _TARGET:
            target, at = _take16(record, at)
        if flags & _RDEV:
            (rdev,) = _U64.unpack_from(record, at)
            at += 8
        if flags & _XATTRS:
            xattrs, at = _take_xattrs(record, at)
        if at != len(record):
            raise ValueError("record length")
        return Entry(path, Kind(kind), mode, uid, gid, mtime, size, content, target, rdev, xattrs)
    except (struct.error, ValueError) as fault:
        raise ValueError(f"tree entry does not decode: {fault}") from None


def _take16(record: bytes, at: int) -> tuple[bytes, int]:
    (length,) = _U16.unpack_from(record, at)
    end = at + 2 + length
    return record[at + 2 : end], end


def _take_xattrs(record: bytes, at: int) -> tuple[tuple[tuple[bytes, bytes], ...], int]:
    (count,) = _U16.unpack_from(record, at)
    at += 2
    pairs = []
    for _ in range(count):
        name, at = _take16(record, at)
        (length,) = _U32.unpack_from(record, at)
        at += 4
        pairs.append((name, record[at : at + length]))
        at += length
    return tuple(pairs), at


def encode_page(paths: list[bytes], records: list[bytes]) -> bytes:
    """Encode entries, ascending, as one page."""
    return kernel.encode_page(paths, records)


def decode_page(page: bytes | memoryview) -> Iterator[tuple[bytes, bytes]]:
    """Yield (path, record) of a page; ValueError when it is cut short or out of order."""
    data = bytes(page)
    at, end, previous = 0, len(data), b""
    first = True
    while at < end:
        try:
            shared, rest, length = _STEP.unpack_from(data, at)
        except struct.error:
            raise ValueError("tree page is cut short") from None
        at += _STEP.size
        path = previous[:shared] + data[at : at + rest]
        at += rest
        record = data[at : at + length]
        at += length
        if at > end or shared > len(previous) or not (first or path > previous):
            raise ValueError("tree page is cut short or out of order")
        yield path, record
        previous, first = path, False


def decode_entries(page: bytes | memoryview) -> list[Entry]:
    """Decode a page and its records at one stroke; ValueError when either is not what it should."""
    data = bytes(page)
    at, end, previous = 0, len(data), b""
    entries: list[Entry] = []
    step_size, head_size, step, head = _STEP.size, _HEAD.size, _STEP.unpack_from, _HEAD.unpack_from
    while at + step_size <= end:
        shared, rest, length = step(data, at)
        begin = at + step_size
        body = begin + rest
        at = body + length
        path = previous[:shared] + data[begin:body]
        if at > end or shared > len(previous) or not (path > previous or not entries):
            raise ValueError("tree page is cut short or out of order")
        if length >= head_size and data[body : body + 2] == _PLAIN_FILE:
            _, _, mode, uid, gid, mtime, size, held = head(data, body)
            if held != length - head_size:
                raise ValueError("tree entry does not decode: record length")
            content = data[body + head_size : at]
            draft: Any = _Draft(path, mode, uid, gid, mtime, size, content)
            draft.__class__ = Entry
            entries.append(draft)
        else:
            entries.append(decode_record(path, data[body:at]))
        previous = path
    if at != end:
        raise ValueError("tree page is cut short")
    return entries


def encode_index(rows: Iterable[tuple[bytes, int, bytes]]) -> bytes:
    """Encode (page id, entries in it, first path) rows as an index page."""
    return b"".join(
        _INDEX_ROW.pack(page_id, count, len(first)) + first for page_id, count, first in rows
    )


def decode_index(page: bytes | memoryview) -> list[tuple[bytes, int, bytes]]:
    """Decode what `encode_index` made."""
    data, at, rows = bytes(page), 0, []
    while at < len(data):
        try:
            page_id, count, length = _INDEX_ROW.unpack_from(data, at)
        except struct.error:
            raise ValueError("tree index is cut short") from None
        at += _INDEX_ROW.size
        rows.append((page_id, count, data[at : at + length]))
        at += length
    if at != len(data):
        raise ValueError("tree index is cut short")
    return rows
