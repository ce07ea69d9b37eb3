"""Read one file of any size into a lane, holes as holes, twice if it changes meanwhile."""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import Callable
from typing import NamedTuple

from strongroom.kernel import KEY_SIZE, open_to_read, pack_stat, pack_xattrs
from strongroom.repository.ports import ContentWriter, Lane, Stored

# Up to here a file is one whole chunk, read side by side with others. The engine's chunker never
# cuts before 256 KiB, so that a file that grows past this size keeps no other chunks than before.
SMALL_FILE = 256 * 1024

Advance = Callable[[int], None]


class NotRegularError(Exception):
    """The name stands for something that is no regular file (any more)."""


class Streamed(NamedTuple):
    """Content that was read: `steady` if the file did not change between the looks at it."""

    stored: Stored
    packed: bytes
    xattrs: bytes
    steady: bool


def read_stream(lane: Lane, dirfd: int, name: bytes, advance: Advance) -> Streamed:
    """Read `name` in the open directory; once more if it changed or the disk stumbled.

    Reads no further than the size it began with, so that a file that grows for ever ends.
    `advance` hears of bytes of the first attempt. OSError, NotRegularError.
    """
    try:
        first = _attempt(lane, dirfd, name, advance)
        if first.steady:
            return first
    except OSError as fault:
        if fault.errno != errno.EIO:
            raise
    return _attempt(lane, dirfd, name, lambda size: None)


def _attempt(lane: Lane, dirfd: int, name: bytes, advance: Advance) -> Streamed:
    fd = open_to_read(dirfd, name)
    try:
        facts = os.fstat(fd)
        if not modes.S_ISREG(facts.st_mode):
            raise NotRegularError
        writer = lane.content()
        try:
            end = _pour(writer, fd, facts, advance)
        except OSError:
            writer.finish()  # gives the engine its buffer back; what was stored is garbage
            raise
        stored = writer.finish(size=end)
        packed = pack_stat(os.fstat(fd))
        steady = packed[:KEY_SIZE] == pack_stat(facts)[:KEY_SIZE] and end == facts.st_size
        return Streamed(stored, packed, pack_xattrs(fd), steady)
    finally:
        os.close(fd)


def _pour(writer: ContentWriter, fd: int, facts: os.stat_result, advance: Advance) -> int:
    """Feed the data of a file; return its logical end."""
    size, at = facts.st_size, 0
    sparse = facts.st_blocks * 512 < size
    while at < size:
        start, stop = _next_data(fd, at, size) if sparse else (at, size)
        if start > at:
            advance(start - at)
        if start >= size:
            break
        writer.seek(start)
        run = _DataRun(fd, start, stop, advance)
        writer.feed_from(run.readinto)
        at = run.at
        if at < stop:  # it shrank while being read
            return at
    return size


class _DataRun:
    """The bytes of [at, stop) of a descriptor, for `feed_from`."""

    def __init__(self, fd: int, at: int, stop: int, advance: Advance) -> None:
        self.at = at
        self._fd, self._stop, self._advance = fd, stop, advance

    def readinto(self, room: memoryview) -> int:
        left = self._stop - self.at
        if not left:
            return 0
        taken = os.preadv(self._fd, [room[:left]], self.at)
        self.at += taken
        self._advance(taken)
        return taken


def _next_data(fd: int, at: int, size: int) -> tuple[int, int]:
    """Where the next data at or after `at` begins and ends; (size, size) if there is none."""
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
        return start, min(size, os.lseek(fd, start, os.SEEK_HOLE))
    except OSError as fault:
        if fault.errno == errno.ENXIO:
            return size, size
        if fault.errno == errno.EINVAL:  # a file system that does not tell
            return at, size
        raise
