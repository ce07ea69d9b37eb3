"""The index in memory: columns, not objects. Ten million chunks take about half a gigabyte.

`ChunkColumns` maps ids to numbers by a sorted column of 64-bit prefixes;
`FrameTable` tells where each frame rests; `Index` is both, built from decoded
segments, with what a prune condemned or replaced already left out of account.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from strongroom.format.segment import FRAME_ROW, ID, Segment

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

ABSENT = -1
_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")


def split(ids: bytes | bytearray | memoryview) -> list[U64]:
    """Concatenated ids as their four 64-bit words, a column each."""
    words = np.frombuffer(ids, "<u8").reshape(-1, ID // 8)
    return [np.ascontiguousarray(words[:, number]) for number in range(ID // 8)]


class ChunkColumns:
    """Ids, sorted by their first word, each with its numbers. `find` is vectorised."""

    def __init__(
        self,
        words: list[U64],
        columns: list[U32] | None = None,
        *,
        last: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Take the lists empty as they are sorted, so that only one column is held twice.

        Of equal ids, those marked in `last` stand behind the others.
        """
        columns = columns or []
        if last is None or not last.any():
            order = np.argsort(words[0], kind="stable")
        else:
            order = np.lexsort((last, words[0]))
        self._words = [words.pop(0)[order] for _ in range(ID // 8)]
        self.columns = [columns.pop(0)[order] for _ in range(len(columns))]
        self._first = self._words[0]

    def __len__(self) -> int:
        return len(self._first)

    def joined(self, words: list[U64]) -> list[U64]:
        """These ids and others, as columns of words, in no order."""
        return [
            np.concatenate((ours, theirs)) for ours, theirs in zip(self._words, words, strict=True)
        ]

    def id(self, row: int) -> bytes:
        """The id in a row."""
        return b"".join(column[row].tobytes() for column in self._words)

    def copies(self, chunk_id: bytes) -> list[int]:
        """Every row that has this id, in the order of preference."""
        words = np.frombuffer(chunk_id, "<u8")
        low, high = (int(np.searchsorted(self._first, words[0], side)) for side in _SIDES)
        same = np.ones(high - low, np.bool_)
        for number in range(1, ID // 8):
            same &= self._words[number][low:high] == words[number]
        rows: list[int] = (np.flatnonzero(same) + low).tolist()
        return rows

    def find(self, ids: bytes | memoryview) -> I64:
        """For each id its row here, or ABSENT."""
        wanted = np.frombuffer(ids, "<u8").reshape(-1, ID // 8)
        if not len(self._first):
            return np.full(len(wanted), ABSENT, np.int64)
        at = np.searchsorted(self._first, wanted[:, 0])
        result = np.full(len(wanted), ABSENT, np.int64)
        open_rows = np.arange(len(wanted))
        while len(open_rows):
            here = at[open_rows]
            inside = here < len(self._first)
            open_rows, here = open_rows[inside], here[inside]
            same_prefix = self._first[here] == wanted[open_rows, 0]
            open_rows, here = open_rows[same_prefix], here[same_prefix]
            same = np.ones(len(here), np.bool_)
            for number in range(1, ID // 8):
                same &= self._words[number][here] == wanted[open_rows, number]
            result[open_rows[same]] = here[same]
            open_rows = open_rows[~same]
            at[open_rows] += 1
        return result


class IdSet:
    """The ids that a run stores anew: a small dict in front of sorted runs that merge as they grow.

    Many threads may claim. A claim that races with `settle` can be lost, which
    stores one chunk twice and harms nothing.
    """

    RECENT = 1 << 17

    def __init__(self) -> None:
        self._recent: dict[bytes, object] = {}
        self._settling: dict[bytes, object] = {}
        self._runs: list[ChunkColumns] = []
        self._lock = threading.Lock()

    def known(self, ids: bytes) -> npt.NDArray[np.bool_]:
        """For each id: does it stand in a sorted run? (`claim` looks at the recent ones.)"""
        result = np.zeros(len(ids) // ID, np.bool_)
        for run in self._runs:
            result |= run.find(ids) != ABSENT
        return result

    def claim(self, chunk_id: bytes, owner: object) -> bool:
        """Add an id; False if it was there. `owner` is a fresh object that nobody else claims with."""
        if chunk_id in self._settling:
            return False
        return self._recent.setdefault(chunk_id, owner) is owner

    def claim_all(self, ids: Sequence[bytes], owner: object) -> bool:
        """Claim all of the ids at one stroke if all are new; False, and none claimed, otherwise.

        Two that race may both be told True, which stores a chunk twice and harms nothing.
        """
        recent = self._recent
        if self._settling or not recent.keys().isdisjoint(ids) or len(set(ids)) < len(ids):
            return False
        recent.update(dict.fromkeys(ids, owner))
        return True

    def settle(self) -> None:
        """Move recent ids into a sorted run when there are many."""
        if len(self._recent) < self.RECENT or not self._lock.acquire(blocking=False):
            return
        try:
            # Merging millions takes seconds: until the new runs stand, the old ones must answer.
            self._settling, self._recent = self._recent, {}
            words, runs = split(b"".join(list(self._settling))), [*self._runs]
            while runs and len(runs[-1]) <= len(words[0]):
                words = runs.pop().joined(words)
            self._runs = [*runs, ChunkColumns(words)]
            self._settling = {}
        finally:
            self._lock.release()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a frame rests: pack (tree?, name), byte range, its session and sequence number."""

    tree: bool
    pack: bytes
    offset: int
    length: int
    session: bytes
    sequence: int


@dataclass(frozen=True, slots=True)
class Session:
    """A session as the index knows it."""

    id: bytes
    epoch: int
    sealed_key: bytes


class Index:
    """Every chunk that is in reach, and where it rests.

    `condemned` holds pack names that are no dedup target; `replaced` the names of segments that
    others make void. `find` gives chunk rows; `frame`, `offset` and `length` are columns over those
    rows; a chunk whose only frames rest in condemned packs is found with `usable` False.
    """

    def __init__(
        self, segments: Iterable[Segment], *, condemned: frozenset[bytes] = frozenset()
    ) -> None:
        builder = _Builder()
        for segment in segments:
            builder.add(segment)
        builder.drop_replaced()
        self.sessions = builder.sessions
        self.packs = builder.packs
        self.replaced = builder.void
        self._frames = builder.frames()
        self._condemned = np.fromiter(
            (name in condemned for _, name in self.packs), np.bool_, len(self.packs)
        )
        self._by_frame: I64 | None = None
        self._settle_frames()
        self._settle_chunks(builder)

    def _settle_frames(self) -> None:
        """Keep one row per (session, sequence): one that rests in a pack that is not condemned."""
        rows = self._frames
        spoiled = self._condemned[rows["pack"]] if len(rows) else np.zeros(0, np.bool_)
        key = rows["session"].astype(np.uint64) << np.uint64(32) | rows["sequence"]
        order = np.lexsort((spoiled, key))
        key, rows, spoiled = key[order], rows[order], spoiled[order]
        first = np.ones(len(key), np.bool_)
        first[1:] = key[1:] != key[:-1]
        self._frame_keys: U64 = key[first]
        self._frames = rows[first]
        self.frame_usable: npt.NDArray[np.bool_] = ~spoiled[first]
        self._every = rows  # all rows, moved frames included: prune and check want them

    def _settle_chunks(self, builder: _Builder) -> None:
        offset, length = builder.places()
        frame = builder.chunk_frames(self._frame_keys)
        spoiled = None if self.frame_usable.all() else ~self.frame_usable[frame]
        columns = [frame, offset, length]
        del frame, offset, length
        self.chunks = ChunkColumns(builder.words(), columns, last=spoiled)

    def __len__(self) -> int:
        return len(self.chunks)

    @property
    def frame(self) -> U32:
        """Frame row of each chunk row."""
        return self.chunks.columns[0]

    @property
    def offset(self) -> U32:
        """Offset of each chunk in its opened frame, in bytes."""
        return self.chunks.columns[1]

    @property
    def length(self) -> U32:
        """Length of each chunk in bytes."""
        return self.chunks.columns[2]

    @property
    def frames(self) -> int:
        """How many frames are known."""
        return len(self._frames)

    def copies(self, chunk_id: bytes) -> list[int]:
        """Every chunk row of an id; those that may be relied on come first."""
        return self.chunks.copies(chunk_id)

    def find(self, ids: bytes | memoryview) -> I64:
        """For each id its chunk row, or ABSENT."""
        return self.chunks.find(ids)

    def usable(self, chunk_rows: I64) -> npt.NDArray[np.bool_]:
        """For each result of `find`: can it be relied on by a new snapshot?"""
        result = np.zeros(len(chunk_rows), np.bool_)
        found = chunk_rows != ABSENT
        result[found] = self.frame_usable[self.frame[chunk_rows[found]]]
        return result

    def place(self, frame_row: int) -> Place:
        """Where a frame rests."""
        row = self._frames[frame_row]
        tree, pack = self.packs[int(row["pack"])]
        return Place(
            tree,
            pack,
            int(row["offset"]),
            int(row["length"]),
            self.sessions[int(row["session"])].id,
            int(row["sequence"]),
        )

    def session(self, frame_row: int) -> Session:
        """The session that sealed a frame."""
        return self.sessions[int(self._frames[frame_row]["session"])]

    def frame_row(self, session: bytes, sequence: int) -> int:
        """The frame's row, or ABSENT."""
        for number, known in enumerate(self.sessions):
            if known.id == session:
                key = np.uint64(number) << np.uint64(32) | np.uint64(sequence)
                at = int(np.searchsorted(self._frame_keys, key))
                if at < len(self._frame_keys) and self._frame_keys[at] == key:
                    return at
        return ABSENT

    def packs_of(self, frame_rows: npt.NDArray[np.bool_]) -> set[tuple[bool, bytes]]:
        """The packs in which the marked frames rest."""
        return {self.packs[number] for number in np.unique(self._frames["pack"][frame_rows])}

    def told_packs(self) -> set[bytes]:
        """Names of the packs of which all is known: frames, and the chunks in each.

        The row of a frame that was moved may stand here while its chunk rows stood elsewhere.
        """
        told = np.zeros(len(self.packs), np.bool_)
        told[self._every["pack"]] = True
        told[self._frames["pack"][self.hollow()]] = False
        return {self.packs[number][1] for number in np.flatnonzero(told).tolist()}

    def hollow(self) -> npt.NDArray[np.bool_]:
        """Mark the frames of which no chunk is known."""
        hollow: npt.NDArray[np.bool_] = np.bincount(self.frame, minlength=self.frames) == 0
        return hollow

    def references(self, frame_rows: npt.NDArray[np.bool_]) -> dict[bytes, list[list[int]]]:
        """The marked frames as ranges [first, after last) of sequence numbers, per session id."""
        keys = self._frame_keys[frame_rows]
        found: dict[bytes, list[list[int]]] = {}
        for number in np.unique(keys >> np.uint64(32)):
            inside = keys[keys >> np.uint64(32) == number] & np.uint64(0xFFFFFFFF)
            found[self.sessions[int(number)].id] = ranges(inside.astype(np.int64))
        return found

    def frames_in(self, tree: bool, pack: bytes) -> npt.NDArray[np.bool_]:
        """Mark the frames that are read from a pack."""
        result = np.zeros(len(self._frames), np.bool_)
        for number, known in enumerate(self.packs):
            if known == (tree, pack):
                result |= self._frames["pack"] == number
        return result

    def frames_outside(self, packs: Collection[tuple[bool, bytes]]) -> npt.NDArray[np.bool_]:
        """Mark the frames that are read from none of these packs, as (tree, name)."""
        outside = np.fromiter((known not in packs for known in self.packs), np.bool_)
        marked: npt.NDArray[np.bool_] = outside[self._frames["pack"]]
        return marked

    def frame_ends(self) -> I64:
        """For each frame the byte after it, in its pack."""
        ends: I64 = self._frames["offset"].astype(np.int64) + self._frames["length"]
        return ends

    def chunks_in(self, frame_row: int) -> list[tuple[bytes, int, int]]:
        """Id, offset and length of every chunk of a frame."""
        if self._by_frame is None:
            self._by_frame = np.argsort(self.frame, kind="stable")
        ordered = self._by_frame
        low = int(np.searchsorted(self.frame, frame_row, "left", ordered))
        high = int(np.searchsorted(self.frame, frame_row, "right", ordered))
        rows = ordered[low:high]
        return [
            (self.chunks.id(row), int(self.offset[row]), int(self.length[row]))
            for row in rows.tolist()
        ]

    def unknown(self, frames: Mapping[str, Sequence[Sequence[int]]]) -> int:
        """How many frames of a refs are not in this index."""
        missing = 0
        numbers = {session.id.hex(): number for number, session in enumerate(self.sessions)}
        for session, held in frames.items():
            for first, after in held:
                wanted = after - first
                number = numbers.get(session)
                if number is not None:
                    low = np.uint64(number) << np.uint64(32)
                    edges = np.array([first, after], np.uint64) + low
                    begin, end = np.searchsorted(self._frame_keys, edges)
                    wanted -= int(end - begin)
                missing += wanted
        return missing

    def extents(self) -> dict[tuple[bool, bytes], int]:
        """For each pack, the byte after the last frame that is known in it."""
        ends: dict[tuple[bool, bytes], int] = {}
        rows = self._every
        stop = np.zeros(len(self.packs), np.int64)
        np.maximum.at(
            stop, rows["pack"], rows["offset"].astype(np.int64) + rows["length"].astype(np.int64)
        )
        for number, pack in enumerate(self.packs):
            ends[pack] = int(stop[number])
        return ends


def ranges(ascending: I64) -> list[list[int]]:
    """Ascending numbers as [first, after last) ranges."""
    if not len(ascending):
        return []
    breaks = np.flatnonzero(np.diff(ascending) != 1)
    starts = ascending[np.concatenate(([0], breaks + 1))]
    ends = ascending[np.concatenate((breaks, [len(ascending) - 1]))] + 1
    return [[int(start), int(end)] for start, end in zip(starts, ends, strict=True)]


@dataclass(slots=True)
class _Part:
    """One segment's columns."""

    frames: npt.NDArray[np.void]
    words: list[U64]
    lengths: U32


class _Builder:
    """Joins segments: numbers sessions and packs across them."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.packs: list[tuple[bool, bytes]] = []
        self._session_numbers: dict[bytes, int] = {}
        self._pack_numbers: dict[tuple[bool, bytes], int] = {}
        self._parts: dict[str, _Part] = {}
        self.void: set[str] = set()

    def add(self, segment: Segment) -> None:
        """Take a segment's columns; the bytes that it was decoded from can go."""
        rows = segment.frames.copy()
        if len(rows):
            sessions = [
                self._session(row.id, row.epoch, row.sealed_key) for row in segment.sessions
            ]
            rows["session"] = np.asarray(sessions, np.uint32)[rows["session"]]
            packs = [self._pack(pack) for pack in segment.packs]
            rows["pack"] = np.asarray(packs, np.uint32)[rows["pack"]]
        part = _Part(rows, split(segment.ids), segment.lengths.astype(np.uint32))
        self._parts[segment.name or f"#{len(self._parts)}"] = part
        self.void.update(segment.replaces)

    def drop_replaced(self) -> None:
        """Leave out the segments that another one makes void, and join the others."""
        parts = [part for name, part in self._parts.items() if name not in self.void]
        self._parts = {}
        self._frames = [part.frames for part in parts]
        self._lengths = [part.lengths for part in parts]
        self._words = [[part.words[number] for part in parts] for number in range(4)]

    def _session(self, session: bytes, epoch: int, sealed_key: bytes) -> int:
        number = self._session_numbers.setdefault(session, len(self.sessions))
        if number == len(self.sessions):
            self.sessions.append(Session(session, epoch, sealed_key))
        return number

    def _pack(self, pack: tuple[bool, bytes]) -> int:
        number = self._pack_numbers.setdefault(pack, len(self.packs))
        if number == len(self.packs):
            self.packs.append(pack)
        return number

    def frames(self) -> npt.NDArray[np.void]:
        self._frames = [np.concatenate(self._frames)] if self._frames else [np.empty(0, FRAME_ROW)]
        return self._frames[0]

    def chunk_frames(self, frame_keys: U64) -> U32:
        """For each chunk the row of its frame among the sorted `frame_keys`."""
        rows = self._frames[0]
        keys = rows["session"].astype(np.uint64) << np.uint64(32) | rows["sequence"]
        return np.repeat(np.searchsorted(frame_keys, keys).astype(np.uint32), rows["chunks"])

    def places(self) -> tuple[U32, U32]:
        """Offset and length of each chunk in its frame."""
        lengths = np.concatenate(self._lengths) if self._lengths else np.empty(0, np.uint32)
        self._lengths = []
        counts = self._frames[0]["chunks"].astype(np.int64)
        firsts = np.cumsum(counts) - counts
        # The running sum wraps at 2³², and so does the difference: a frame is far smaller.
        begin = np.cumsum(lengths, dtype=np.uint32)
        begin -= lengths
        holding = counts > 0
        begin -= np.repeat(begin[firsts[holding]], counts[holding])
        return begin, lengths

    def words(self) -> list[U64]:
        """The ids as columns of words; the builder lets go of them."""
        return [
            np.concatenate(column) if column else np.empty(0, np.uint64)
            for column in (self._take(number) for number in range(len(self._words)))
        ]

    def _take(self, number: int) -> list[U64]:
        column, self._words[number] = self._words[number], []
        return column
