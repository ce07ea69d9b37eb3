"""What is written at one stroke: many small files, or parts of a few large ones.

A batch is filled by the thread that walks the tree. Its contents are taken on the threads of
the reader, as they are opened and while they are in the processor's cache, several at a time;
what comes of it is looked at by the first thread again, when all of it is there.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping, Sequence

from strongroom.errors import Damaged, StrongroomError
from strongroom.files.placing import NEW, Placing, scratch_name
from strongroom.format.content import WHOLE, Extent
from strongroom.format.tree import Entry
from strongroom.kernel import DONE, OPEN, FileSpec, write_files
from strongroom.repository.ports import SnapshotReader

GOOD = (DONE, 0)
_TAKEN = (OPEN, errno.EEXIST)
_EMPTY = memoryview(b"")
_LENGTH = "its chunk is not as long as the file."

Faults = Mapping[int, StrongroomError]


class Small:
    """Files of one chunk each, or of none: a batch holds the one kind or the other.

    `results` tells what did not go well, of `write_files`, by number; `told` what else could not
    be set.
    """

    def __init__(self, placing: Callable[[Callable[[bytes, str], None]], Placing]) -> None:
        self.entries: list[Entry] = []
        self.size = 0
        self.directories: list[int] = []
        self.results: dict[int, tuple[int, int]] = {}
        self.told: list[tuple[bytes, str]] = []
        self._ids: list[bytes] = []
        self._specs: list[FileSpec] = []
        self._attributed: set[int] = set()
        self._faults: dict[int, StrongroomError] = {}
        self._placing = placing(lambda path, why: self.told.append((path, why)))
        self._waiting: Callable[[], Faults] = lambda: self._faults

    def directory(self, fd: int) -> int:
        """Keep a descriptor until the batch is closed."""
        self.directories.append(fd)
        return fd

    def add(self, entry: Entry, spec: FileSpec) -> None:
        """One more file; its content is one chunk, or nothing."""
        if entry.content:
            self._ids.append(entry.content[1:])
        if entry.xattrs:
            self._attributed.add(len(self.entries))
        self.entries.append(entry)
        self._specs.append(spec)
        self.size += entry.size

    def start(self, snapshot: SnapshotReader) -> None:
        """Ask for the contents."""
        if self._ids:
            self._waiting = snapshot.scatter(self._ids, self._take)
        else:
            self._take(range(len(self.entries)), [_EMPTY] * len(self.entries))

    def wait(self) -> Faults:
        """Wait until every file is written, or has a result or a fault."""
        found = self._waiting()
        return {**self._faults, **found} if found or self._faults else {}

    def close(self) -> None:
        """Let go of the directories."""
        while self.directories:
            os.close(self.directories.pop())

    def _take(self, numbers: Sequence[int], chunks: Sequence[memoryview]) -> None:
        entries, specs = self.entries, self._specs
        if self._attributed or [entries[n].size for n in numbers] != [len(c) for c in chunks]:
            numbers, chunks = self._plain(numbers, chunks)
        results = write_files([specs[number] for number in numbers], chunks)
        if results.count(GOOD) == len(results):
            return
        for number, chunk, result in zip(numbers, chunks, results, strict=True):
            if result == _TAKEN and self._placing.replaces:
                self._place(number, chunk)
            elif result != GOOD:
                self.results[number] = result

    def _plain(
        self, numbers: Sequence[int], chunks: Sequence[memoryview]
    ) -> tuple[list[int], list[memoryview]]:
        """Those that need nothing but the common way; the others are dealt with."""
        kept: list[tuple[int, memoryview]] = []
        for number, chunk in zip(numbers, chunks, strict=True):
            if len(chunk) != self.entries[number].size:
                self._faults[number] = Damaged(_LENGTH)
            elif number in self._attributed:
                self._place(number, chunk)
            else:
                kept.append((number, chunk))
        return [number for number, _ in kept], [chunk for _, chunk in kept]

    def _place(self, number: int, chunk: memoryview) -> None:
        entry, parent = self.entries[number], self._specs[number][0]
        try:
            large = Large(entry, parent)
            try:
                large.write(0, chunk)
                large.settle(self._placing)
            finally:
                large.discard()
        except OSError as fault:
            self.results[number] = OPEN, fault.errno or errno.EIO


class Large:
    """A file that is written in parts, under a name of its own. OSError.

    `fault` is the first thing that went wrong.
    """

    def __init__(self, entry: Entry, parent: int) -> None:
        self.entry = entry
        self.fault: Exception | None = None
        self._parent = os.dup(parent)
        self._scratch = scratch_name()
        try:
            self.fd = os.open(self._scratch, NEW, 0o600, dir_fd=parent)
        except OSError:
            os.close(self._parent)
            raise

    def put(self, extent: Extent, chunk: memoryview) -> None:
        """Write a chunk where it belongs; Damaged when it is not what the extent says."""
        entry = self.entry
        piece = chunk[extent.offset : extent.offset + extent.length]
        if len(piece) != extent.length or (entry.content[:1] == WHOLE and len(chunk) != entry.size):
            raise Damaged(_LENGTH)
        if extent.end > entry.size:
            raise Damaged("a piece reaches outside its file.")
        for number in range(extent.repeats):
            self.write(extent.start + number * extent.length, piece)

    def write(self, at: int, data: memoryview) -> None:
        """Write some bytes."""
        while data:
            put = os.pwrite(self.fd, data, at)
            data, at = data[put:], at + put

    def settle(self, placing: Placing) -> None:
        """All of it is written: what is not covered is a hole; set its facts, give it its name."""
        if os.fstat(self.fd).st_size != self.entry.size:
            os.ftruncate(self.fd, self.entry.size)
        placing.set_open(self.fd, self.entry)
        fd, self.fd = self.fd, -1
        os.close(fd)
        placing.settle(self._parent, self._scratch, self.entry.path.rpartition(b"/")[2])
        self._scratch = b""

    def discard(self) -> None:
        """Let go of it; without a name it is removed."""
        if self.fd >= 0:
            os.close(self.fd)
        if self._scratch:
            with contextlib.suppress(OSError):
                os.unlink(self._scratch, dir_fd=self._parent)
        if self._parent >= 0:
            os.close(self._parent)
        self.fd = self._parent = -1
        self._scratch = b""


class Parts:
    """Parts of large files. `ends` are the files whose last part is here or was before."""

    def __init__(self) -> None:
        self.size = 0
        self.ends: list[Large] = []
        self._ids: list[bytes] = []
        self._spots: list[tuple[Large, Extent]] = []
        self._waiting: Callable[[], Faults] = dict

    def add(self, large: Large, extents: Sequence[Extent]) -> None:
        """Some more of a file."""
        for extent in extents:
            self._ids.append(extent.id)
            self._spots.append((large, extent))
            self.size += extent.length * extent.repeats

    def files(self) -> dict[Large, int]:
        """The files of which something is here, each with the bytes."""
        found = dict.fromkeys(self.ends, 0)
        for large, extent in self._spots:
            found[large] = found.get(large, 0) + extent.length * extent.repeats
        return found

    def start(self, snapshot: SnapshotReader) -> None:
        """Ask for the contents."""
        if self._ids:
            self._waiting = snapshot.scatter(self._ids, self._take)

    def wait(self) -> None:
        """Wait until everything is written, or its file has a fault."""
        for number, fault in self._waiting().items():
            large = self._spots[number][0]
            large.fault = large.fault or fault

    def _take(self, numbers: Sequence[int], chunks: Sequence[memoryview]) -> None:
        for number, chunk in zip(numbers, chunks, strict=True):
            large, extent = self._spots[number]
            if large.fault is None:
                try:
                    large.put(extent, chunk)
                except (OSError, Damaged) as fault:
                    large.fault = fault
