"""Where content is cut into chunks.

Cuts matter to deduplication only: a reader never needs to know them. A chunker
is a parameter of the engine; `begin` gives the cutter of one stream.

`ContentChunker` works in two stages, because a rolling hash with a secret table
is linear and gives its secret away (Truong et al., "Breaking and Fixing
Content-Defined Chunking", 2025): a public Gear hash over 32 bytes *proposes* an
offset about every 32 KiB, and BLAKE3 keyed with the repository's secret over the
64 bytes before it *selects* the real ones. What is seen of the cuts says as
much about the key as a few bits of a pseudo-random function do.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

from blake3 import blake3

from strongroom import kernel

KIB = 1024
MIB = 1024 * KIB

PROPOSAL_MASK = 0xFFFE0000  # 15 high bits: one offset in 32,768
_PROPOSAL_EVERY = 32 * KIB
_WINDOW = 64
_OFFSET = struct.Struct("<I")
_GEAR_WINDOW = 32
_SCAN = 256 * KIB  # proposals are asked for in such steps, so that little is scanned in vain


class Cutter(Protocol):
    """The chunker of one stream."""

    def cut(self, window: memoryview, *, final: bool) -> list[int]:
        """Return the ends of the chunks that lie whole in `window`, ascending.

        `window` starts where the last returned chunk ended. With `final`, the
        last end is the window's own end. Otherwise what lies after the last end
        is offered again, with more behind it.
        """


class Chunker(Protocol):
    """A way to cut streams; `largest` is the longest chunk in bytes that it makes."""

    @property
    def largest(self) -> int:
        """Longest chunk in bytes."""

    def begin(self) -> Cutter:
        """Return the cutter of a new stream."""


@dataclass(frozen=True, slots=True)
class FixedChunker:
    """Chunks of one size, aligned to the start of the stream: 64 KiB for PostgreSQL pages."""

    size: int = 64 * KIB

    @property
    def largest(self) -> int:
        """Longest chunk in bytes."""
        return self.size

    def begin(self) -> Cutter:
        """Return the chunker itself: it has no state."""
        return self

    def cut(self, window: memoryview, *, final: bool) -> list[int]:
        """Cut at every multiple of the size."""
        ends = list(range(self.size, len(window) + 1, self.size))
        if final and len(window) > (ends[-1] if ends else 0):
            ends.append(len(window))
        return ends


@dataclass(frozen=True, slots=True)
class ContentChunker:
    """Keyed content-defined chunks: sizes in bytes, `key` 32 secret bytes.

    The key has a say only where `average` − `smallest` is several times the distance of proposals.
    """

    key: bytes
    smallest: int = 256 * KIB
    average: int = 1 * MIB
    largest: int = 4 * MIB

    def begin(self) -> Cutter:
        """Return the cutter of a new stream."""
        return _ContentCutter(self)

    @property
    def threshold(self) -> int:
        """A proposal is selected when the first 4 bytes of its keyed hash are below this."""
        return (1 << 32) * _PROPOSAL_EVERY // (self.average - self.smallest)


class _ContentCutter:
    """Remembers how far beyond the last cut it has looked, so as not to look twice."""

    def __init__(self, chunker: ContentChunker) -> None:
        self._chunker = chunker
        self._looked = 0

    def cut(self, window: memoryview, *, final: bool) -> list[int]:
        ends: list[int] = []
        start, total = 0, len(window)
        while True:
            end = self._next(window, start)
            if end is None:
                break
            ends.append(end)
            start, self._looked = end, 0
        if final and start < total:
            ends.append(total)
        return ends

    def _next(self, window: memoryview, start: int) -> int | None:
        """The end of the chunk that begins at `start`, or None if the window does not hold it."""
        limit = min(start + self._chunker.largest, len(window))
        at = start + max(self._chunker.smallest, self._looked)
        while at < limit:
            stop = min(at + _SCAN, limit)
            end = self._select(window, at, stop)
            if end is not None:
                return end
            at = stop
        self._looked = max(self._looked, limit - start)
        return limit if limit == start + self._chunker.largest else None

    def _select(self, window: memoryview, at: int, stop: int) -> int | None:
        """The first selected proposal in (at, stop]."""
        base = at - _GEAR_WINDOW + 1
        key, threshold = self._chunker.key, self._chunker.threshold
        found = kernel.candidates(window[base:stop], PROPOSAL_MASK)
        for (proposal,) in _OFFSET.iter_unpack(found):
            end: int = base + proposal
            digest = blake3(window[end - _WINDOW : end], key=key).digest(4)
            if int.from_bytes(digest, "little") < threshold:
                return end
        return None
