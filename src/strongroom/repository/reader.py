"""The one read path: look up → coalesced ranged gets → open → recompute ids → in order.

A reader serves many threads. Work is taken in batches of consecutive content;
while one batch is being used the next ones are fetched and opened by a pool,
so memory is bounded by a few batches. A chunk that cannot be had is delivered
as its error, so that one damaged frame costs only the entries that need it.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from strongroom.errors import Damaged, KeyRefused, NotFound, ObjectMissing, StrongroomError
from strongroom.format import content as contents
from strongroom.format import keyset as keysets
from strongroom.format import tree as trees
from strongroom.format.content import ID_SIZE, Extent
from strongroom.format.frame import FrameOpener
from strongroom.format.keyset import Keyset
from strongroom.format.pack import object_name
from strongroom.format.tree import Entry
from strongroom.repository.catalogue import Root, Snapshot
from strongroom.repository.index import ABSENT, Index, Place
from strongroom.storage.base import Storage

BATCH_SIZE = 8 * 1024 * 1024
BATCH_ITEMS = 2048
BATCHES_AHEAD = 3
GAP = 64 * 1024  # bytes between two frames that are rather read than asked for apart
RANGE = 4 * 1024 * 1024  # longest coalesced get: short enough that opening runs in parallel
CACHED_FRAMES = 48 * 1024 * 1024

_WHOLE = 1 + ID_SIZE

Chunk = memoryview | StrongroomError
Opened = bytes | dict[int, bytes]  # a frame's chunks, or only those that are wanted, by offset
_SPOILED = "A chunk's content is not what its id says."


@dataclass(slots=True)
class _Item:
    """Some of an entry's extents, in order; `ids` chunk ids to fetch for them."""

    entry: Entry
    first: bool
    extents: Sequence[Extent]
    fault: StrongroomError | None = None
    whole: bool = False  # one chunk is the entry's whole content


class ChunkReader:
    """Fetches chunks by id through one index."""

    def __init__(
        self,
        storage: Storage,
        keysets_by_epoch: Mapping[int, Keyset],
        load_index: Callable[[], Index],
        *,
        search: Callable[[], Index] | None = None,
        parallel: int | None = None,
    ) -> None:
        """Read through `load_index`; `search` gives a fuller index where that lacks a chunk."""
        self._search = search
        self._storage = storage
        self._keysets = keysets_by_epoch
        self._load_index = load_index
        self._index = load_index()
        self._openers: dict[bytes, FrameOpener] = {}
        self._lock = threading.Lock()
        self._frames: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._cached = 0
        workers = parallel or max(2, os.cpu_count() or 2)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="fetch")

    def close(self) -> None:
        """End the pool."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def fetch(self, kind: bytes, ids: Sequence[bytes]) -> Callable[[], list[Chunk]]:
        """Start fetching; the returned call waits and gives a chunk or an error for each id."""
        wanted = self._wanted(ids)
        frames = sorted(wanted.frames.items(), key=lambda item: _order(item[1]))
        jobs = [
            self._pool.submit(self._open_run, kind, run, wanted)
            for run in _runs([(row, place) for row, place in frames])
        ]
        return lambda: self._gather(kind, ids, wanted, jobs)

    def get(self, kind: bytes, chunk_id: bytes) -> memoryview:
        """Fetch one chunk now."""
        (chunk,) = self.fetch(kind, [chunk_id])()
        if isinstance(chunk, StrongroomError):
            raise chunk
        return chunk

    # -- steps -----------------------------------------------------------------------------

    def _wanted(self, ids: Sequence[bytes]) -> _Wanted:
        index = self._index
        rows = index.find(b"".join(ids))
        if (rows == ABSENT).any():
            with self._lock:  # written since this reader looked
                if self._index is index:
                    self._index = self._load_index()
            index = self._index
            rows = index.find(b"".join(ids))
        if (rows == ABSENT).any() and self._search is not None:
            with self._lock:  # the segment that told of it is lost
                if self._search is not None:
                    search, self._search = self._search, None
                    self._index = search()
            index = self._index
            rows = index.find(b"".join(ids))
        return _Wanted(index, ids, rows)

    def _open_run(
        self, kind: bytes, run: Sequence[tuple[int, Place]], wanted: _Wanted
    ) -> dict[int, Opened | StrongroomError]:
        """Get a run of neighbouring frames and open and verify each."""
        result: dict[int, Opened | StrongroomError] = {}
        missing = []
        for row, place in run:
            cached = self._cache_get(place)
            if cached is None:
                missing.append((row, place))
            else:
                self._verify(kind, cached, row, wanted)
                result[row] = _hold(cached, wanted.needs[row])
        if not missing:
            return result
        first, last = missing[0][1], missing[-1][1]
        name = object_name(first.tree, first.pack)
        try:
            length = last.offset + last.length - first.offset
            data = memoryview(self._storage.get(name, offset=first.offset, length=length))
        except ObjectMissing as fault:
            return result | self._moved(kind, missing, wanted, fault)
        except StrongroomError as fault:
            return result | dict.fromkeys((row for row, _ in missing), fault)
        for row, place in missing:
            at = place.offset - first.offset
            result[row] = self._open(kind, data[at : at + place.length], place, row, wanted)
        return result

    def _moved(
        self,
        kind: bytes,
        frames: Sequence[tuple[int, Place]],
        wanted: _Wanted,
        fault: ObjectMissing,
    ) -> dict[int, Opened | StrongroomError]:
        """A prune may have moved frames since the index was read: look once more."""
        with self._lock:
            self._index = index = self._load_index()
        result: dict[int, Opened | StrongroomError] = {}
        for row, place in frames:
            result[row] = fault
            now = index.frame_row(place.session, place.sequence)
            if now == ABSENT or (moved := index.place(now)).pack == place.pack:
                continue
            name = object_name(moved.tree, moved.pack)
            try:
                data = self._storage.get(name, offset=moved.offset, length=moved.length)
            except StrongroomError as again:
                result[row] = again
            else:
                result[row] = self._open(kind, memoryview(data), moved, row, wanted)
        return result

    def _open(
        self, kind: bytes, sealed: memoryview, place: Place, row: int, wanted: _Wanted
    ) -> Opened | StrongroomError:
        try:
            plain = self._opener(place).open(sealed, place.sequence)
        except StrongroomError as fault:
            return fault
        except ValueError as fault:
            return Damaged(
                f"A frame in {object_name(place.tree, place.pack)}"
                f" at {place.offset} is damaged: {fault}."
            )
        self._verify(kind, plain, row, wanted)
        self._cache_put(place, plain)
        return _hold(plain, wanted.needs[row])

    def _verify(self, kind: bytes, plain: bytes, row: int, wanted: _Wanted) -> None:
        """Recompute the ids of the chunks that are wanted from a frame."""
        key = self._key(kind)
        view = memoryview(plain)
        for chunk_id, offset, length in wanted.needs[row]:
            if blake3(view[offset : offset + length], key=key).digest() != chunk_id:
                wanted.spoiled.add(chunk_id)

    def _gather(
        self,
        kind: bytes,
        ids: Sequence[bytes],
        wanted: _Wanted,
        jobs: Sequence[Future[dict[int, Opened | StrongroomError]]],
    ) -> list[Chunk]:
        frames: dict[int, Opened | StrongroomError] = {}
        for job in jobs:
            frames.update(job.result())
        chunks: list[Chunk] = []
        for chunk_id, place in zip(ids, wanted.places, strict=True):
            if place is None:
                chunks.append(Damaged(f"The chunk {chunk_id.hex()} is not in the index."))
                continue
            row, offset, length = place
            opened = frames[row]
            if isinstance(opened, StrongroomError):
                chunks.append(self._elsewhere(kind, chunk_id, wanted.frames[row], opened))
            elif chunk_id in wanted.spoiled:
                spoiled = Damaged(_SPOILED)
                chunks.append(self._elsewhere(kind, chunk_id, wanted.frames[row], spoiled))
            else:
                chunks.append(_cut(opened, offset, length))
        return chunks

    def _elsewhere(
        self, kind: bytes, chunk_id: bytes, tried: Place, fault: StrongroomError
    ) -> Chunk:
        """Another copy of a chunk whose frame cannot be had: writers side by side make some."""
        if not isinstance(fault, Damaged | ObjectMissing):
            return fault
        index = self._index
        for row in index.copies(chunk_id):
            frame, offset, length = index.frame[row], index.offset[row], index.length[row]
            place = index.place(int(frame))
            if (place.session, place.sequence) == (tried.session, tried.sequence):
                continue
            wanted = _Wanted(index, [chunk_id], np.array([row]))
            plain = self._open_run(kind, [(int(frame), place)], wanted)[int(frame)]
            if not isinstance(plain, StrongroomError) and not wanted.spoiled:
                return _cut(plain, int(offset), int(length))
        return fault

    # -- keys and cache --------------------------------------------------------------------

    def _key(self, kind: bytes) -> bytes:
        keyset = next(iter(self._keysets.values()))
        return keysets.chunk_key(keyset.id_key, kind)

    def _opener(self, place: Place) -> FrameOpener:
        opener = self._openers.get(place.session)
        if opener is None:
            row = self._index.frame_row(place.session, place.sequence)
            known = self._index.session(row)
            keyset = self._keysets.get(known.epoch)
            if keyset is None:
                raise KeyRefused(f"No key of epoch {known.epoch} is at hand.")
            key = keysets.open_session_key(keyset, known.id, known.sealed_key)
            opener = self._openers[place.session] = FrameOpener(known.id, key)
        return opener

    def _cache_get(self, place: Place) -> bytes | None:
        with self._lock:
            plain = self._frames.get((place.session, place.sequence))
            if plain is not None:
                self._frames.move_to_end((place.session, place.sequence))
            return plain

    def _cache_put(self, place: Place, plain: bytes) -> None:
        with self._lock:
            if self._frames.setdefault((place.session, place.sequence), plain) is plain:
                self._cached += len(plain)
            while self._cached > CACHED_FRAMES:
                _, old = self._frames.popitem(last=False)
                self._cached -= len(old)


_Need = tuple[bytes, int, int]  # id, offset in the frame, length


class _Wanted:
    """What a fetch needs: frames, the chunks in each, and for each id its place."""

    def __init__(
        self, index: Index, ids: Sequence[bytes], chunk_rows: npt.NDArray[np.int64]
    ) -> None:
        self.frames: dict[int, Place] = {}
        self.needs: dict[int, list[_Need]] = {}
        self.spoiled: set[bytes] = set()  # found not to be what their ids say
        self.places: list[tuple[int, int, int] | None] = [None] * len(ids)
        found = np.flatnonzero(chunk_rows != ABSENT)
        rows = chunk_rows[found]
        columns = (found, index.frame[rows], index.offset[rows], index.length[rows])
        for number, row, offset, length in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            if row not in self.frames:
                self.frames[row] = index.place(row)
                self.needs[row] = []
            self.needs[row].append((ids[number], offset, length))
            self.places[number] = (row, offset, length)


def _hold(plain: bytes, needs: Sequence[_Need]) -> Opened:
    """What of a frame is kept until it is used: where little of it is wanted, only that.

    In an old repository a batch may want one small chunk from each of thousands of frames.
    """
    if sum(length for _, _, length in needs) * 2 < len(plain):
        return {offset: plain[offset : offset + length] for _, offset, length in needs}
    return plain


def _cut(opened: Opened, offset: int, length: int) -> memoryview:
    if isinstance(opened, dict):
        return memoryview(opened[offset])
    return memoryview(opened)[offset : offset + length]


def _order(place: Place) -> tuple[bytes, int]:
    return place.pack, place.offset


def _runs(frames: Sequence[tuple[int, Place]]) -> Iterator[list[tuple[int, Place]]]:
    """Group neighbouring frames of one pack, so that one get brings them all."""
    run: list[tuple[int, Place]] = []
    for row, place in frames:
        if run:
            first, last = run[0][1], run[-1][1]
            near = place.pack == last.pack and place.offset <= last.offset + last.length + GAP
            if not near or place.offset + place.length - first.offset > RANGE:
                yield run
                run = []
        run.append((row, place))
    if run:
        yield run


class SnapshotReader:
    """One snapshot, opened for reading; see `ports.SnapshotReader`."""

    def __init__(self, record: Snapshot, chunks: ChunkReader) -> None:
        self.record = record
        self._chunks = chunks
        self._facts: Mapping[str, Any] | None = None

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the source said of itself when it was backed up."""
        if self._facts is None:
            document = Entry(
                b"", trees.Kind.STREAM, size=self.record.facts_size, content=self.record.facts
            )
            self._facts = json.loads(b"".join(self.stream(document)))
        return self._facts

    # -- entries ---------------------------------------------------------------------------

    def entries(self, under: bytes = b"") -> Iterator[Entry]:
        """Yield entries in raw path order; with `under`, that entry and everything below it."""
        return self._walk(under)

    def find(self, path: bytes) -> Entry | None:
        """Return one entry."""
        for _, page_id in self._pages(path, path):
            for found, raw in self._records(page_id):
                if found == path:
                    return trees.decode_record(found, raw)
        return None

    def damaged_pages(self) -> Iterator[tuple[bytes, StrongroomError]]:
        """Try every page; yield (first path it should hold, error) for those that do not open."""
        yield from self._damaged(self.record.root, b"")

    def readable_entries(self) -> Iterator[Entry]:
        """Yield the entries of every page that opens, skipping those that do not."""
        for _, page_id in self._readable_pages(self.record.root.id, self.record.root.levels):
            try:
                for path, raw in trees.decode_page(self._chunks.get(b"tree", page_id)):
                    yield trees.decode_record(path, raw)
            except (StrongroomError, ValueError):
                continue  # `damaged_pages` names it

    def _readable_pages(self, page_id: bytes, level: int) -> Iterator[tuple[bytes, bytes]]:
        if not level:
            yield b"", page_id
            return
        try:
            rows = trees.decode_index(self._chunks.get(b"tree", page_id))
        except (StrongroomError, ValueError):
            return
        for child, _, _ in rows:
            yield from self._readable_pages(child, level - 1)

    def extents(self, entry: Entry) -> Iterator[Extent]:
        """Yield an entry's extents, reading its extent pages; ValueError, Damaged when it cannot."""
        for part in self._extent_parts(entry):
            yield from part

    def _damaged(self, root: Root, first: bytes) -> Iterator[tuple[bytes, StrongroomError]]:
        stack = [(root.id, root.levels, first)]
        while stack:
            page_id, level, path = stack.pop()
            try:
                page = self._chunks.get(b"tree", page_id)
                if level:
                    rows = trees.decode_index(page)
                    stack += [(row[0], level - 1, row[2]) for row in reversed(rows)]
                else:
                    for found, raw in trees.decode_page(page):
                        trees.decode_record(found, raw)
            except StrongroomError as fault:
                yield path, fault
            except ValueError as fault:
                yield path, Damaged(f"A tree page does not decode: {fault}.")

    def _walk(self, under: bytes) -> Iterator[Entry]:
        low = under
        high = under + b"0" if under else None  # "0" follows "/"
        below = under + b"/"
        for _, page_id in self._pages(low, high):
            for path, raw in self._records(page_id):
                if not under or path == under or path.startswith(below):
                    yield trees.decode_record(path, raw)

    def _records(self, page_id: bytes) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from trees.decode_page(self._chunks.get(b"tree", page_id))
        except ValueError as fault:
            raise Damaged(f"A tree page does not decode: {fault}.") from None

    def _pages(self, low: bytes, high: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Yield (first path, id) of the entry pages that can hold paths from low to high."""
        root = self.record.root
        yield from self._pages_below(root.id, root.levels, b"", low, high)

    def _pages_below(
        self, page_id: bytes, level: int, first: bytes, low: bytes, high: bytes | None
    ) -> Iterator[tuple[bytes, bytes]]:
        if not level:
            yield first, page_id
            return
        try:
            rows = trees.decode_index(self._chunks.get(b"tree", page_id))
        except ValueError as fault:
            raise Damaged(f"A tree index does not decode: {fault}.") from None
        for number, (child, _, begins) in enumerate(rows):
            follows = rows[number + 1][2] if number + 1 < len(rows) else None
            if follows is not None and follows <= low:
                continue
            if high is not None and begins > high:
                break
            yield from self._pages_below(child, level - 1, begins, low, high)

    # -- content ---------------------------------------------------------------------------

    def stream(self, entry: Entry) -> Iterator[memoryview]:
        """Yield the content in order, holes as zeros."""
        at = 0
        for _, pieces in self.contents([entry]):
            for start, piece in pieces:
                yield from _zeros(start - at)
                yield piece
                at = start + len(piece)
        yield from _zeros(entry.size - at)

    def contents(
        self, entries: Iterable[Entry]
    ) -> Iterator[tuple[Entry, Iterator[tuple[int, memoryview]]]]:
        """Yield each entry with its pieces (logical offset, bytes), in order; see `ports`."""
        flow = _Flow(self._chunks, self._items(entries))
        return flow.entries()

    def _items(self, entries: Iterable[Entry]) -> Iterator[_Item]:
        """Entries as items of bounded size."""
        for entry in entries:
            content = entry.content
            if len(content) == _WHOLE and content[:1] == contents.WHOLE:  # as most entries are
                extent = Extent(0, entry.size, 0, 1, content[1:])
                yield _Item(entry, True, (extent,), whole=True)
                continue
            first = True
            try:
                for part in self._extent_parts(entry):
                    yield _Item(entry, first, part)
                    first = False
            except StrongroomError as fault:
                yield _Item(entry, first, (), fault)
                continue
            except ValueError as fault:
                yield _Item(entry, first, (), Damaged(f"An entry does not decode: {fault}."))
                continue
            if first:
                yield _Item(entry, True, ())

    def _extent_parts(self, entry: Entry) -> Iterator[Sequence[Extent]]:
        pages = contents.page_ids(entry.content)
        if not pages:
            yield from _parts(contents.extents(entry.content, entry.size))
            return
        end = 0
        for at in range(0, len(pages), 64):
            for page in self._chunks.fetch(b"extents", pages[at : at + 64])():
                if isinstance(page, StrongroomError):
                    raise page
                rows = list(contents.unpack_rows(page))
                if rows and (rows[0].start < end or rows[-1].end > entry.size):
                    raise ValueError("extents overlap or reach past the end")
                end = rows[-1].end if rows else end
                yield from _parts(rows)


def _parts(extents: Sequence[Extent]) -> Iterator[Sequence[Extent]]:
    """Cut a list of extents so that each part is about a batch of bytes at most."""
    part: list[Extent] = []
    size = 0
    for extent in extents:
        if part and size + extent.length > BATCH_SIZE:
            yield part
            part, size = [], 0
        part.append(extent)
        size += extent.length
    if part:
        yield part


_ZEROS = memoryview(bytes(1024 * 1024))


def _zeros(count: int) -> Iterator[memoryview]:
    while count > 0:
        yield _ZEROS[: min(count, len(_ZEROS))]
        count -= len(_ZEROS)


class _Flow:
    """Batches under way, and the item that is being used."""

    def __init__(self, chunks: ChunkReader, items: Iterator[_Item]) -> None:
        self._chunks = chunks
        self._items = items
        self._ahead: deque[tuple[list[_Item], Callable[[], list[Chunk]]]] = deque()
        self._now: deque[tuple[_Item, list[Chunk]]] = deque()

    def entries(self) -> Iterator[tuple[Entry, Iterator[tuple[int, memoryview]]]]:
        while (pair := self._next()) is not None:
            item, chunks = pair
            if not item.first:
                continue  # the rest of an entry whose pieces were not all taken
            if item.whole and isinstance(chunks[0], memoryview):
                if len(chunks[0]) == item.entry.size:
                    yield item.entry, iter(((0, chunks[0]),))
                    continue
                chunks = [Damaged("A chunk is not as long as the entry that it is the whole of.")]
            yield item.entry, self._pieces(item, chunks)

    def _pieces(self, item: _Item, chunks: list[Chunk]) -> Iterator[tuple[int, memoryview]]:
        while True:
            if item.fault is not None:
                raise item.fault
            for extent, chunk in zip(item.extents, chunks, strict=True):
                if isinstance(chunk, StrongroomError):
                    raise chunk
                yield from _repeat(extent, chunk)
            follower = self._peek()
            if follower is None or follower[0].first:
                return
            item, chunks = self._now.popleft()

    def _peek(self) -> tuple[_Item, list[Chunk]] | None:
        while not self._now:
            self._advance()
            if not self._ahead:
                return None
            items, wait = self._ahead.popleft()
            self._advance()
            chunks = wait()
            at = 0
            for item in items:
                count = len(item.extents)
                self._now.append((item, chunks[at : at + count]))
                at += count
        return self._now[0]

    def _next(self) -> tuple[_Item, list[Chunk]] | None:
        return self._now.popleft() if self._peek() is not None else None

    def _advance(self) -> None:
        """Keep a few batches under way."""
        while len(self._ahead) < BATCHES_AHEAD:
            batch = self._batch()
            if not batch:
                return
            ids = [extent.id for item in batch for extent in item.extents]
            self._ahead.append((batch, self._chunks.fetch(b"data", ids)))

    def _batch(self) -> list[_Item]:
        batch: list[_Item] = []
        size = 0
        while size < BATCH_SIZE and len(batch) < BATCH_ITEMS:
            item = next(self._items, None)
            if item is None:
                break
            batch.append(item)
            size += item.entry.size if item.whole else sum(x.length for x in item.extents)
        return batch


def _repeat(extent: Extent, chunk: memoryview) -> Iterator[tuple[int, memoryview]]:
    piece = chunk[extent.offset : extent.offset + extent.length]
    if len(piece) != extent.length:
        raise Damaged("An extent reaches past the end of its chunk.")
    for number in range(extent.repeats):
        yield extent.start + number * extent.length, piece


def require(entry: Entry | None, path: bytes) -> Entry:
    """Return the entry, or NotFound."""
    if entry is None:
        raise NotFound(f"The snapshot holds nothing at {path!r}.")
    return entry


__all__ = ["ID_SIZE", "ChunkReader", "SnapshotReader", "require"]
