"""A session and a reader in memory: chunks in a dict, streams cut every 64 KiB, nothing sealed.

Honest where the ports promise something: order of paths is enforced, buffers are copied,
`reuse` looks, pieces are invalid after the next one is taken, damage is raised by its own entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from strongroom.errors import Damaged, StrongroomError
from strongroom.format import content as contents
from strongroom.format.tree import Entry, decode_record, encode_record
from strongroom.repository.ports import Buffer, Stored, Take

CHUNK = 64 * 1024


class MemoryContent:
    def __init__(self, chunks: dict[bytes, bytes]) -> None:
        self._chunks = chunks
        self._extents: list[contents.Extent] = []
        self._start = 0
        self._buffer = bytearray()

    def feed_from(self, readinto: Callable[[memoryview], int]) -> int:
        room, total = bytearray(100_000), 0
        with memoryview(room) as view:
            while taken := readinto(view):
                self.write(view[:taken])
                total += taken
        return total

    def write(self, data: Buffer) -> None:
        self._buffer += data
        while len(self._buffer) >= CHUNK:
            self._cut(CHUNK)

    def seek(self, offset: int) -> None:
        assert offset >= self._start + len(self._buffer), "a stream cannot be written backwards"
        self._cut(len(self._buffer))
        self._start = offset

    def finish(self, *, size: int | None = None) -> Stored:
        self._cut(len(self._buffer))
        size = self._start if size is None else size
        assert size >= self._start
        rows = self._extents
        whole = len(rows) == 1 and rows[0].length == size
        encoded = contents.whole(rows[0].id) if whole else contents.inline(rows) if rows else b""
        return Stored(encoded if size else b"", b"".join(row.id for row in rows), size)

    def _cut(self, size: int) -> None:
        if size:
            chunk = bytes(self._buffer[:size])
            del self._buffer[:size]
            chunk_id = hashlib.sha256(chunk).digest()
            self._chunks[chunk_id] = chunk
            self._extents.append(contents.Extent(self._start, size, 0, 1, chunk_id))
            self._start += size


class MemoryLane:
    def __init__(self, session: MemorySession) -> None:
        self._session = session

    def put_small(self, buffers: Sequence[Buffer]) -> list[bytes]:
        ids = []
        for buffer in buffers:
            chunk = bytes(buffer)
            assert chunk, "an empty file has no chunk"
            ids.append(hashlib.sha256(chunk).digest())
            self._session.chunks[ids[-1]] = chunk
            self._session.read += len(chunk)
        return ids

    def put_run(self, run: memoryview, lengths: Sequence[int]) -> list[bytes]:
        ends = [*accumulate(lengths, initial=0)]
        assert ends[-1] == len(run)
        return self.put_small([run[at:end] for at, end in pairwise(ends)])

    def content(self) -> MemoryContent:
        self._session.streams += 1
        return MemoryContent(self._session.chunks)


class MemoryTree:
    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes]] = []

    def add(self, entry: Entry) -> bytes:
        record = encode_record(entry)
        self.add_record(entry.path, record)
        return record

    def add_record(self, path: bytes, record: bytes) -> None:
        assert not self.records or self.records[-1][0] < path, "out of order"
        self.records.append((path, record))

    def add_records(self, paths: list[bytes], records: list[bytes]) -> None:
        for path, record in zip(paths, records, strict=True):
            self.add_record(path, record)

    def mark(self) -> bytes:
        return b""

    def adopt(self, mark: bytes) -> bool:
        return False


class MemorySession:
    """`read` counts bytes given as small files, `streams` contents begun, in this session."""

    def __init__(self, chunks: dict[bytes, bytes] | None = None) -> None:
        self.chunks = {} if chunks is None else chunks
        self.tree = MemoryTree()
        self.read = self.streams = 0

    def lane(self) -> MemoryLane:
        return MemoryLane(self)

    def reuse(self, ids: Sequence[bytes]) -> list[bool]:
        return [
            all(one[at : at + 32] in self.chunks for at in range(0, len(one), 32)) for one in ids
        ]


class MemoryReader:
    def __init__(self, session: MemorySession, facts: Mapping[str, Any] | None = None) -> None:
        self.facts: Mapping[str, Any] = facts or {}
        self._chunks = session.chunks
        self._records = session.tree.records

    @classmethod
    def of(cls, entries: Iterable[Entry], chunks: dict[bytes, bytes] | None = None) -> MemoryReader:
        """A snapshot whose entries are given as they are, in any order, however hostile."""
        session = MemorySession(chunks)
        session.tree.records = [(entry.path, encode_record(entry)) for entry in entries]
        return cls(session)

    def entries(self, under: bytes = b"") -> Iterator[Entry]:
        for path, record in self._records:
            if not under or path == under or path.startswith(under + b"/"):
                yield decode_record(path, record)

    def find(self, path: bytes) -> Entry | None:
        return next((entry for entry in self.entries() if entry.path == path), None)

    def stream(self, entry: Entry) -> Iterator[memoryview]:
        at = 0
        for start, piece in self._pieces(entry):
            yield memoryview(bytes(start - at))
            yield piece
            at = start + len(piece)
        yield memoryview(bytes(entry.size - at))

    def contents(
        self, entries: Iterable[Entry]
    ) -> Iterator[tuple[Entry, Iterator[tuple[int, memoryview]]]]:
        for entry in entries:
            yield entry, self._pieces(entry)

    def parts(self, entry: Entry) -> Iterator[Sequence[contents.Extent]]:
        for extent in contents.extents(entry.content, entry.size):
            yield [extent]

    def scatter(
        self, ids: Sequence[bytes], take: Take
    ) -> Callable[[], Mapping[int, StrongroomError]]:
        def run() -> dict[int, StrongroomError]:
            faults: dict[int, StrongroomError] = {}
            for number, chunk_id in enumerate(ids):
                chunk = self._chunks.get(chunk_id)
                if chunk is None or hashlib.sha256(chunk).digest() != chunk_id:
                    faults[number] = Damaged("A chunk's content is not what its id says.")
                    continue
                room = bytearray(chunk)
                take([number], [memoryview(room)])
                room[:] = bytes(len(room))  # what was given is not valid any more
            return faults

        return run

    def _pieces(self, entry: Entry) -> Iterator[tuple[int, memoryview]]:
        for extent in contents.extents(entry.content, entry.size):
            chunk = self._chunks.get(extent.id)
            if chunk is None or hashlib.sha256(chunk).digest() != extent.id:
                raise Damaged("A chunk's content is not what its id says.")
            for i in range(extent.repeats):
                room = bytearray(chunk[extent.offset : extent.offset + extent.length])
                yield extent.start + i * extent.length, memoryview(room)
                room[:] = bytes(len(room))  # what was yielded is not valid any more
