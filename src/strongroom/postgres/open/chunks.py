"""Chunks at hand: a cache bounded by bytes, one fetch for whoever wants a chunk at the same time.

A chunk is delivered verified (its id recomputed) or as its error; errors are not kept, the next
reader tries again. What rests in the same frame as a wanted chunk, and near it in the file, is
opened with it anyway and kept too.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from strongroom.errors import Damaged, StrongroomError
from strongroom.repository.reader import SnapshotReader

Chunk = bytes | StrongroomError


class _Flight:
    """One fetch under way."""

    __slots__ = ("done", "found")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.found: dict[bytes, Chunk] = {}


class Chunks:
    """The chunks of one snapshot. Safe for threads."""

    def __init__(self, snapshot: SnapshotReader, limit: int) -> None:
        self._snapshot, self._limit = snapshot, limit
        self._held: OrderedDict[bytes, bytes] = OrderedDict()
        self._size = 0
        self._flying: dict[bytes, _Flight] = {}
        self._lock = threading.Lock()
        self.fetched = 0  # bytes of chunks that were opened
        self.wanted = 0  # bytes of those of them that somebody waited for

    def get(self, chunk: bytes) -> bytes | None:
        """A chunk that is at hand."""
        held = self._held.get(chunk)
        if held is not None:
            try:  # noqa: SIM105  this is read from a hot path
                self._held.move_to_end(chunk)
            except KeyError:  # put out of the cache this very moment
                pass
        return held

    def fetch(self, ids: Iterable[bytes], beside: Sequence[bytes] = ()) -> dict[bytes, Chunk]:
        """Wait for chunks; of those `beside`, what costs no further frame is kept for later."""
        found: dict[bytes, Chunk] = {}
        mine: list[bytes] = []
        others: list[tuple[bytes, _Flight]] = []
        flight = _Flight()
        with self._lock:
            for chunk in dict.fromkeys(ids):
                held = self._held.get(chunk)
                if held is not None:
                    found[chunk] = held
                elif (other := self._flying.get(chunk)) is not None:
                    others.append((chunk, other))
                else:
                    mine.append(chunk)
                    self._flying[chunk] = flight
        if mine:
            found |= self._bring(mine, beside, flight)
        for chunk, other in others:
            other.done.wait()
            found[chunk] = other.found.get(chunk) or _lost(chunk)
        return found

    def _bring(
        self, mine: list[bytes], beside: Sequence[bytes], flight: _Flight
    ) -> dict[bytes, Chunk]:
        wanted, along = list(mine), list[bytes]()
        try:
            near = [chunk for chunk in dict.fromkeys(beside) if chunk not in self._held]
            if near:
                along = self._snapshot.together(mine, near)
            with self._lock:
                along = [chunk for chunk in along if chunk not in self._flying]
                self._flying.update(dict.fromkeys(along, flight))
            wanted += along

            def take(numbers: Sequence[int], parts: Sequence[memoryview]) -> None:
                for number, part in zip(numbers, parts, strict=True):
                    flight.found[wanted[number]] = bytes(part)

            faults = self._snapshot.bring(wanted, take)
            for number, fault in faults.items():
                flight.found[wanted[number]] = fault
        except StrongroomError as fault:
            for chunk in wanted:
                flight.found.setdefault(chunk, fault)
        finally:
            with self._lock:
                for chunk in wanted:
                    self._flying.pop(chunk, None)
                    got = flight.found.get(chunk)
                    if isinstance(got, bytes) and chunk not in self._held:
                        self._held[chunk] = got
                        self._size += len(got)
                        self.fetched += len(got)
                while self._size > self._limit and self._held:
                    self._size -= len(self._held.popitem(last=False)[1])
            flight.done.set()
        return {chunk: flight.found.get(chunk) or _lost(chunk) for chunk in mine}


def _lost(chunk: bytes) -> StrongroomError:
    return Damaged(f"The chunk {chunk.hex()} could not be had.")


__all__ = ["Chunk", "Chunks"]
