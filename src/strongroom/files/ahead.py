"""Reading ahead: small files are read by a second thread while the first one hashes and encodes.

A `Batch` collects small files of some directories, as many as fit one kept buffer;
`ReadAhead` reads batches in order, a bounded number of them beside the caller. What
a batch could not take, and what has to be read again, is the caller's.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

from strongroom.files.reading import SMALL_FILE

BUFFER = 4 * 1024 * 1024
ROOM = BUFFER + SMALL_FILE + 1  # one call of the kernel wants this much beside what is read
FILES = 1024
DIRECTORIES = 64  # each holds a descriptor open
DEPTH = 2


class Part(Protocol):
    """Files of one directory; `fd` is the batch's own."""

    fd: int

    def read(self, room: memoryview) -> int:
        """Read into `room`, in the reading thread; return the bytes used, -1 if something grew and
        did not fit any more. A part that was not read at all says so by itself."""


P = TypeVar("P", bound=Part)


class Batch(Generic[P]):
    """Files to be read together; `first` is the caller's own number of the earliest of them."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.parts: list[P] = []
        self.buffer = memoryview(b"")
        self._files = self._bytes = 0

    def add(self, fd: int, part: P) -> None:
        """Add a part of the directory `fd`, which may be closed after this."""
        part.fd = os.dup(fd)
        self.parts.append(part)

    def count(self, files: int, size: int) -> None:
        """Some part has so many more files, of `size` bytes in all."""
        self._files += files
        self._bytes += size + files

    def takes(self, files: int, size: int) -> bool:
        """Is there room for more files, of `size` bytes in all?"""
        return (
            self._files + files <= FILES
            and len(self.parts) < DIRECTORIES
            and self._bytes + size + files <= BUFFER
        )

    def close(self) -> None:
        """Let go of the directories."""
        for part in self.parts:
            os.close(part.fd)
        self.parts = []


class ReadAhead(Generic[P]):
    """One thread that reads batches in the order in which they are put."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._under_way: deque[tuple[Batch[P], Future[None]]] = deque()
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

    def put(self, batch: Batch[P]) -> None:
        """Begin to read a batch."""
        batch.buffer = self._buffers.pop()
        self._under_way.append((batch, self._pool.submit(self._fill, batch)))

    def take(self) -> Batch[P]:
        """Wait for the earliest batch; give it back with `done`."""
        batch, reading = self._under_way[0]
        reading.result()
        self._under_way.popleft()
        return batch

    def done(self, batch: Batch[P]) -> None:
        """The batch's bytes were used: its buffer is free."""
        batch.close()
        self._buffers.append(batch.buffer)

    def close(self) -> None:
        """End the thread and let go of what is under way."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for batch, _ in self._under_way:
            batch.close()
        self._under_way.clear()

    def _fill(self, batch: Batch[P]) -> None:
        room = batch.buffer
        for part in batch.parts:
            used = part.read(room)
            if used < 0:
                break  # the caller reads the rest
            room = room[used:]
