"""A session and a snapshot in memory: the engine's promise and nothing else.

Honest where sources and sinks could cheat themselves: one thread per lane is checked, the tree must
ascend, buffers are overwritten after use, content is cut into odd pieces when read, and a lane that
was never finished leaves nothing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from strongroom.errors import NotFound
from strongroom.format import content as contents
from strongroom.format.tree import Entry, decode_record, encode_record
from strongroom.repository.ports import Buffer, Stored, Taken

WINDOW = 300_000


class DoubleContent:
    def __init__(self, session: DoubleSession, lane: DoubleLane) -> None:
        self._session, self._lane = session, lane
        self._data = bytearray()
        self._window = bytearray(WINDOW)

    def feed_from(self, readinto: Callable[[memoryview], int]) -> int:
        self._lane.check_thread()
        total = 0
        view = memoryview(self._window)
        while taken := readinto(view):
            assert 0 < taken <= WINDOW
            self._data += view[:taken]
            view[:taken] = b"\xa5" * taken
            total += taken
        return total

    def write(self, data: Buffer) -> None:
        self._lane.check_thread()
        self._data += data

    def seek(self, offset: int) -> None:
        assert offset >= len(self._data)
        self._data += bytes(offset - len(self._data))

    def finish(self, *, size: int | None = None) -> Stored:
        self._lane.check_thread()
        data = bytes(self._data)
        chunk_id = sha256(data).digest()
        self._session.chunks[chunk_id] = data
        content = contents.whole(chunk_id) if data else b""
        return Stored(content, chunk_id if data else b"", len(data))


class DoubleLane:
    def __init__(self, session: DoubleSession) -> None:
        self._session = session
        self._thread: int | None = None

    def check_thread(self) -> None:
        me = threading.get_ident()
        self._thread = self._thread or me
        assert self._thread == me, "a lane was used by two threads"

    def put_small(self, buffers: Sequence[Buffer]) -> list[bytes]:
        ids = []
        for buffer in buffers:
            data = bytes(buffer)
            ids.append(sha256(data).digest())
            self._session.chunks[ids[-1]] = data
        return ids

    def content(self) -> DoubleContent:
        return DoubleContent(self._session, self)


class DoubleTree:
    def __init__(self) -> None:
        self.records: list[tuple[bytes, bytes]] = []

    def add(self, entry: Entry) -> bytes:
        record = encode_record(entry)
        self.add_record(entry.path, record)
        return record

    def add_record(self, path: bytes, record: bytes) -> None:
        assert not self.records or path > self.records[-1][0], "the tree does not ascend"
        self.records.append((path, record))


@dataclass
class DoubleSession:
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    tree: DoubleTree = field(default_factory=DoubleTree)

    def lane(self) -> DoubleLane:
        return DoubleLane(self)

    def reuse(self, ids: Sequence[bytes]) -> list[bool]:
        return [False] * len(ids)

    def opened(self, taken: Taken) -> DoubleSnapshot:
        facts = json.loads(json.dumps(taken.facts))
        return DoubleSnapshot(facts, dict(self.chunks), list(self.tree.records))


@dataclass
class DoubleSnapshot:
    facts: Mapping[str, Any]
    chunks: dict[bytes, bytes]
    records: list[tuple[bytes, bytes]]

    def entries(self, under: bytes = b"") -> Iterator[Entry]:
        for path, record in self.records:
            if not under or path == under or path.startswith(under + b"/"):
                yield decode_record(path, record)

    def find(self, path: bytes) -> Entry | None:
        return next((entry for entry in self.entries() if entry.path == path), None)

    def data(self, path: bytes) -> bytes:
        entry = self.find(path)
        if entry is None:
            raise NotFound(f"No {path!r}.")
        return b"".join(bytes(piece) for piece in self.stream(entry))

    def stream(self, entry: Entry) -> Iterator[memoryview]:
        for extent in contents.extents(entry.content, entry.size):
            data = self.chunks[extent.id]
            for at in range(0, len(data), 77_777):
                yield memoryview(data)[at : at + 77_777]

    def contents(
        self, entries: Iterable[Entry]
    ) -> Iterator[tuple[Entry, Iterator[tuple[int, memoryview]]]]:
        for entry in entries:
            yield entry, enumerate(self.stream(entry))
