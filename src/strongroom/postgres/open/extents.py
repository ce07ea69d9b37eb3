"""Which chunks a file's bytes are, by place. PURE.

A file of PostgreSQL is cut every 64 KiB, so that a place is found at once; what is cut otherwise is
found by bisection.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from strongroom.format.content import Extent


class Part(NamedTuple):
    """A run of bytes of a file: `length` bytes from `offset` of chunk `id`, or zeros without one."""

    length: int
    id: bytes | None
    offset: int


class Extents:
    """The extents of one file."""

    __slots__ = ("_rows", "_starts")

    def __init__(self, extents: Iterable[Extent]) -> None:
        self._rows = list(extents)
        self._starts = [row.start for row in self._rows]

    def parts(self, begin: int, end: int) -> Iterator[Part]:
        """What the bytes from begin to end are, in order."""
        rows = self._rows
        at = max(0, bisect_right(self._starts, begin) - 1)
        while begin < end:
            if at >= len(rows):
                yield Part(end - begin, None, 0)
                return
            start, length, offset, repeats, chunk = rows[at]
            if begin < start:  # a hole
                stop = min(start, end)
                yield Part(stop - begin, None, 0)
                begin = stop
                continue
            if begin >= start + length * repeats:
                at += 1
                continue
            inside = (begin - start) % length
            size = min(length - inside, end - begin)
            yield Part(size, chunk, offset + inside)
            begin += size

    def ids(self, begin: int, end: int) -> list[bytes]:
        """The chunks that hold bytes from begin to end."""
        starts = self._starts
        first = max(0, bisect_right(starts, begin) - 1)
        last = bisect_right(starts, end - 1, first)
        return [row.id for row in self._rows[first:last]]
