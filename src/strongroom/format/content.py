"""How an entry says which chunks are its bytes.

    empty     b""
    whole     01 ‖ id                          one chunk is the whole content
    extents   02 ‖ row …                       ascending by start; uncovered ranges are holes
    paged     03 ‖ id …                        each id is a chunk of kind "extents" that holds rows
    row       start u64 ‖ length u32 ‖ offset u32 ‖ repeats u32 ‖ id 32    (little endian, 52 bytes)

A row covers [start, start + length·repeats): `repeats` times `length` bytes
from `offset` of the chunk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

ID_SIZE = 32
WHOLE, EXTENTS, PAGED = b"\x01", b"\x02", b"\x03"
_ROW = struct.Struct("<QIII32s")
ROW_SIZE = _ROW.size


class Extent(NamedTuple):
    """A run of content: `repeats` times `length` bytes from `offset` of chunk `id`."""

    start: int
    length: int
    offset: int
    repeats: int
    id: bytes

    @property
    def end(self) -> int:
        """First logical byte after the run."""
        return self.start + self.length * self.repeats


def whole(chunk_id: bytes) -> bytes:
    """Content that is exactly one chunk."""
    return WHOLE + chunk_id


def pack_rows(extents: Iterable[Extent]) -> bytes:
    """Encode rows, without a tag: what an "extents" chunk holds."""
    return b"".join([_ROW.pack(*extent) for extent in extents])


def unpack_rows(rows: bytes | memoryview) -> Iterator[Extent]:
    """Decode rows; ValueError when they are not in order or cut short."""
    if len(rows) % ROW_SIZE:
        raise ValueError("extent rows are cut short")
    end = 0
    for fields in _ROW.iter_unpack(rows):
        extent = Extent(*fields)
        if extent.start < end or not extent.length or not extent.repeats:
            raise ValueError("extent rows are out of order")
        end = extent.end
        yield extent


def inline(extents: Iterable[Extent]) -> bytes:
    """Content that lists its extents in the entry."""
    return EXTENTS + pack_rows(extents)


def paged(ids: Iterable[bytes]) -> bytes:
    """Content whose extents stand in chunks of their own."""
    return PAGED + b"".join(ids)


def page_ids(content: bytes) -> list[bytes]:
    """The ids of the extent pages of paged content, else nothing."""
    if content[:1] != PAGED:
        return []
    body = content[1:]
    if not body or len(body) % ID_SIZE:
        raise ValueError("extent page list is cut short")
    return [body[i : i + ID_SIZE] for i in range(0, len(body), ID_SIZE)]


def extents(content: bytes, size: int) -> list[Extent]:
    """The extents of content that is not paged; `size` is the entry's."""
    tag, body = content[:1], content[1:]
    if not tag:
        return []
    if tag == WHOLE and len(body) == ID_SIZE:
        return [Extent(0, size, 0, 1, body)]
    if tag == EXTENTS:
        rows = list(unpack_rows(body))
        if rows and rows[-1].end > size:
            raise ValueError("extents reach past the end of the entry")
        return rows
    raise ValueError("unknown content")
