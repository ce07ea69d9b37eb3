"""Reading ahead: small files are read by a second thread while the first one hashes and encodes.

A `Batch` collects small files of some directories, as many as fit one kept buffer;
`ReadAhead` reads batches in order, a bounded number of them beside the caller. What
a batch could not take, and what has to be read again, is the caller's.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from strongroom.files.reading import SMALL_FILE
from strongroom.kernel import FileRead

Item = TypeVar("Item")

BUFFER = 4 * 1024 * 1024
ROOM = BUFFER + SMALL_FILE + 1  # one call of the kernel wants this much beside what is read
FILES = 512
DIRECTORIES = 64  # each holds a descriptor open
DEPTH = 2

Read = Callable[[int, list[bytes], memoryview], list[FileRead]]


class Group(Generic[Item]):
    """Files of one directory; `fd` is the batch's own. `rows` tell of the first of `items`."""

    __slots__ = ("base", "fd", "items", "names", "rows")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.items: list[Item] = []
        self.names: list[bytes] = []
        self.rows: list[FileRead] = []
        self.base = 0


class Batch(Generic[Item]):
    """Files to be read together; `first` is the caller's own number of the earliest of them."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.groups: list[Group[Item]] = []
        self.buffer = memoryview(b"")
        self._source = -1
        self._files = self._bytes = 0

    def add(self, fd: int, name: bytes, item: Item, size: int) -> None:
        """Add a file of the directory `fd`, which may be closed after this."""
        if fd != self._source:
            self.groups.append(Group(os.dup(fd)))
            self._source = fd
        group = self.groups[-1]
        group.items.append(item)
        group.names.append(name)
        self._files += 1
        self._bytes += size + 1

    def leave(self) -> None:
        """The directory is done with: its descriptor's number may come to mean another."""
        self._source = -1

    def takes(self, size: int) -> bool:
        """Is there room for one more file of `size` bytes?"""
        return (
            self._files < FILES
            and len(self.groups) < DIRECTORIES
            and self._bytes + size + 1 <= BUFFER
        )

    def close(self) -> None:
        """Let go of the directories."""
        for group in self.groups:
            os.close(group.fd)
        self.groups = []


class ReadAhead(Generic[Item]):
    """One thread that reads batches in the order in which they are put."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._under_way: deque[tuple[Batch[Item], Future[None]]] = deque()
        self._buffers = [memoryview(bytearray(ROOM)) for _ in range(DEPTH + 1)]

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def first(self) -> int | None:
        """The `first` of the earliest batch that was put and not taken."""
        return self._under_way[0][0].first if self._under_way else None

    @property
    def full(self) -> bool:
        """Must one be taken before the next is put?"""
        return len(self._under_way) >= DEPTH

    def put(self, batch: Batch[Item]) -> None:
        """Begin to read a batch."""
        batch.buffer = self._buffers.pop()
        self._under_way.append((batch, self._pool.submit(self._fill, batch)))

    def take(self) -> Batch[Item]:
        """Wait for the earliest batch; give it back with `done`."""
        batch, reading = self._under_way[0]
        reading.result()
        self._under_way.popleft()
        return batch

    def done(self, batch: Batch[Item]) -> None:
        """The batch's bytes were used: its buffer is free."""
        batch.close()
        self._buffers.append(batch.buffer)

    def close(self) -> None:
        """End the thread and let go of what is under way."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for batch, _ in self._under_way:
            batch.close()
        self._under_way.clear()

    def _fill(self, batch: Batch[Item]) -> None:
        used = 0
        for group in batch.groups:
            if ROOM - used <= SMALL_FILE:
                break  # files grew; the caller reads the rest
            group.base = used
            group.rows = self._read(group.fd, group.names, batch.buffer[used:])
            if group.rows:
                _, offset, length, *_ = group.rows[-1]
                used += offset + length
            if len(group.rows) < len(group.names):
                break  # a file grew; the caller reads the rest
