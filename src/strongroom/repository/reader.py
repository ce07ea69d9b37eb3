"""The one read path: look up → coalesced ranged gets → open → recompute ids → in order.

A reader serves many threads. Work is taken in batches of consecutive content;
while one batch is being used the next ones are fetched and opened by a pool,
so memory is bounded by a few batches. A chunk that cannot be had is delivered
as its error, so that one damaged frame costs only the entries that need it.
What needs no order is scattered instead: whoever opened a frame hands its chunks
on at once, while they are in the processor's cache, and nothing is kept.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
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
from strongroom.repository.index import ABSENT, Index, Place, Session
from strongroom.repository.ports import Buffer, Take
from strongroom.storage.base import Storage

BATCH_SIZE = 8 * 1024 * 1024
BATCH_ITEMS = 2048
BATCHES_AHEAD = 3
PAGES = 32  # tree pages in one fetch of a walk
GAP = 64 * 1024  # bytes between two frames that are rather read than asked for apart
RANGE = 4 * 1024 * 1024  # longest coalesced get: short enough that opening runs in parallel
CACHED_FRAMES = 48 * 1024 * 1024

_WHOLE = 1 + ID_SIZE

Chunk = memoryview | StrongroomError
_NOTHING = memoryview(b"")
_SPOILED = "A chunk's content is not what its id says."


@dataclass(slots=True)
class _Item:
    """Some of an entry's extents, in order; `ids` chunk ids to fetch for them."""

    entry: Entry
    first: bool
    extents: Sequence[Extent]
    fault: StrongroomError | None = None


_Part = Entry | _Item  # an entry of which one chunk is the whole content, as most are, or a part


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
        self._data_key = self._key(b"data")
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
        jobs = [self._pool.submit(self._open_run, kind, run, wanted) for run in _runs(frames)]
        return lambda: self._gather(kind, wanted, jobs)

    def scatter(
        self, kind: bytes, ids: Sequence[bytes], take: Take
    ) -> Callable[[], dict[int, StrongroomError]]:
        """Start fetching; `take` gets chunks from the pool's threads as their frames are opened.

        The returned call waits for all and gives the errors of those that cannot be had.
        """
        wanted = self._wanted(ids, take)
        frames = sorted(wanted.frames.items(), key=lambda item: _order(item[1]))
        jobs = [self._pool.submit(self._open_run, kind, run, wanted) for run in _runs(frames)]
        return lambda: self._scattered(kind, wanted, take, jobs)

    def bring(self, kind: bytes, ids: Sequence[bytes], take: Take) -> dict[int, StrongroomError]:
        """What `scatter` does, on the thread that asks."""
        wanted = self._wanted(ids, take)
        frames = sorted(wanted.frames.items(), key=lambda item: _order(item[1]))
        for run in _runs(frames):
            self._open_run(kind, run, wanted)
        return self._scattered(kind, wanted, take, ())

    def together(self, ids: Sequence[bytes], near: Sequence[bytes]) -> list[bytes]:
        """Which of the chunks `near` rest in a frame with one of `ids`."""
        index = self._index
        rows = index.find(b"".join((*ids, *near)))
        frames = np.where(rows == ABSENT, ABSENT, index.frame[np.maximum(rows, 0)].astype(np.int64))
        with_them = np.isin(frames[len(ids) :], frames[: len(ids)]) & (rows[len(ids) :] != ABSENT)
        return [near[number] for number in np.flatnonzero(with_them).tolist()]

    def get(self, kind: bytes, chunk_id: bytes) -> memoryview:
        """Fetch one chunk now."""
        (chunk,) = self.fetch(kind, [chunk_id])()
        if isinstance(chunk, StrongroomError):
            raise chunk
        return chunk

    # -- steps -----------------------------------------------------------------------------

    def _wanted(self, ids: Sequence[bytes], take: Take | None = None) -> _Wanted:
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
        return _Wanted(index, ids, rows, take)

    def _open_run(self, kind: bytes, run: Sequence[tuple[int, Place]], wanted: _Wanted) -> None:
        """Get a run of neighbouring frames, open each and take from it what is wanted."""
        missing = []
        for row, place in run:
            cached = self._cache_get(place)
            if cached is None:
                missing.append((row, place))
            else:
                self._take(kind, cached, row, wanted)
        if not missing:
            return
        first, last = missing[0][1], missing[-1][1]
        name = object_name(first.tree, first.pack)
        try:
            length = last.offset + last.length - first.offset
            data = memoryview(self._storage.get(name, offset=first.offset, length=length))
        except ObjectMissing as fault:
            self._moved(kind, missing, wanted, fault)
            return
        except StrongroomError as fault:
            for row, _ in missing:
                wanted.miss(row, fault)
            return
        for row, place in missing:
            at = place.offset - first.offset
            self._open(kind, data[at : at + place.length], place, row, wanted)

    def _moved(
        self,
        kind: bytes,
        frames: Sequence[tuple[int, Place]],
        wanted: _Wanted,
        fault: ObjectMissing,
    ) -> None:
        """A prune may have moved frames since the index was read: look once more."""
        with self._lock:
            self._index = index = self._load_index()
        for row, place in frames:
            now = index.frame_row(place.session, place.sequence)
            if now == ABSENT or (moved := index.place(now)).pack == place.pack:
                wanted.miss(row, fault)
                continue
            name = object_name(moved.tree, moved.pack)
            try:
                data = self._storage.get(name, offset=moved.offset, length=moved.length)
            except StrongroomError as again:
                wanted.miss(row, again)
            else:
                self._open(kind, memoryview(data), moved, row, wanted)

    def _open(
        self, kind: bytes, sealed: memoryview, place: Place, row: int, wanted: _Wanted
    ) -> None:
        try:
            plain = self._opener(wanted.index.session(row)).open(sealed, place.sequence)
        except StrongroomError as fault:
            wanted.miss(row, fault)
        except ValueError as fault:
            what = f"A frame in {object_name(place.tree, place.pack)} at {place.offset}"
            wanted.miss(row, Damaged(f"{what} is damaged: {fault}."))
        else:
            if self._take(kind, plain, row, wanted):
                self._cache_put(place, plain)

    def _take(self, kind: bytes, plain: bytes, row: int, wanted: _Wanted) -> bool:
        """Cut the chunks that are wanted out of a frame and recompute their ids.

        In an old repository a batch may want one small chunk from each of thousands of frames:
        where little of a frame is wanted, only that is kept until it is used. True if others may
        want the frame: of what is scattered nobody does, once all of it was taken.
        """
        key, ids, needs = self._key(kind), wanted.ids, wanted.needs[row]
        size = sum([length for _, _, length in needs])
        view = memoryview(plain)
        numbers: list[int] = []
        parts: list[memoryview] = []
        for number, offset, length in needs:
            part = view[offset : offset + length]
            if blake3(part, key=key).digest() != ids[number]:
                wanted.faults[number] = row, Damaged(_SPOILED)
            else:
                numbers.append(number)
                parts.append(part)
        if wanted.take is not None:
            wanted.take(numbers, parts)
            return size < len(plain)
        sparse = size * 2 < len(plain)
        for number, part in zip(numbers, parts, strict=True):
            wanted.chunks[number] = memoryview(bytes(part)) if sparse else part
        return True

    def _gather(self, kind: bytes, wanted: _Wanted, jobs: Sequence[Future[None]]) -> list[Chunk]:
        for job in jobs:
            job.result()
        for number, (row, fault) in wanted.faults.items():
            tried = wanted.frames[row]
            wanted.chunks[number] = self._elsewhere(kind, wanted.ids[number], tried, fault)
        for number, fault in wanted.absent.items():
            wanted.chunks[number] = fault
        return wanted.chunks

    def _scattered(
        self, kind: bytes, wanted: _Wanted, take: Take, jobs: Sequence[Future[None]]
    ) -> dict[int, StrongroomError]:
        futures.wait(jobs)  # all of them, whatever comes of one: they use what the caller holds
        for job in jobs:
            job.result()
        faults = dict(wanted.absent)
        for number, (row, fault) in wanted.faults.items():
            chunk = self._elsewhere(kind, wanted.ids[number], wanted.frames[row], fault)
            if isinstance(chunk, StrongroomError):
                faults[number] = chunk
            else:
                take([number], [chunk])
        return faults

    def _elsewhere(
        self, kind: bytes, chunk_id: bytes, tried: Place, fault: StrongroomError
    ) -> Chunk:
        """Another copy of a chunk whose frame cannot be had: writers side by side make some."""
        if not isinstance(fault, Damaged | ObjectMissing):
            return fault
        index = self._index
        for row in index.copies(chunk_id):
            place = index.place(int(index.frame[row]))
            if (place.session, place.sequence) == (tried.session, tried.sequence):
                continue
            wanted = _Wanted(index, [chunk_id], np.array([row]))
            self._open_run(kind, [(int(index.frame[row]), place)], wanted)
            if not wanted.faults:
                return wanted.chunks[0]
        return fault

    # -- keys and cache --------------------------------------------------------------------

    def data_id(self, data: Buffer) -> bytes:
        """The id that a chunk of these bytes has in this repository."""
        return blake3(data, key=self._data_key).digest()

    def _key(self, kind: bytes) -> bytes:
        keyset = next(iter(self._keysets.values()))
        return keysets.chunk_key(keyset.id_key, kind)

    def _opener(self, known: Session) -> FrameOpener:
        opener = self._openers.get(known.id)
        if opener is None:
            keyset = self._keysets.get(known.epoch)
            if keyset is None:
                raise KeyRefused(f"No key of epoch {known.epoch} is at hand.")
            key = keysets.open_session_key(keyset, known.id, known.sealed_key)
            opener = self._openers[known.id] = FrameOpener(known.id, key)
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


_Need = tuple[int, int, int]  # which of the ids, offset in the frame, length


class _Wanted:
    """What a fetch needs: frames, the chunks in each; and what it found for each id."""

    def __init__(
        self,
        index: Index,
        ids: Sequence[bytes],
        chunk_rows: npt.NDArray[np.int64],
        take: Take | None = None,
    ) -> None:
        self.ids = ids
        self.index = index
        self.take = take
        self.frames: dict[int, Place] = {}
        self.needs: dict[int, list[_Need]] = {}
        self.chunks: list[Chunk] = [_NOTHING] * len(ids)
        self.faults: dict[int, tuple[int, StrongroomError]] = {}  # id: frame, why it cannot be had
        self.absent: dict[int, StrongroomError] = {
            number: Damaged(f"The chunk {ids[number].hex()} is not in the index.")
            for number in np.flatnonzero(chunk_rows == ABSENT).tolist()
        }
        found = np.flatnonzero(chunk_rows != ABSENT)
        rows = chunk_rows[found]
        columns = (found, index.frame[rows], index.offset[rows], index.length[rows])
        last, needs = None, []
        for number, row, offset, length in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            if row != last:
                if row not in self.frames:
                    self.frames[row] = index.place(row)
                    self.needs[row] = []
                last, needs = row, self.needs[row]
            needs.append((number, offset, length))

    def miss(self, row: int, fault: StrongroomError) -> None:
        """Note that a frame cannot be had."""
        for number, _, _ in self.needs[row]:
            self.faults[number] = row, fault


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
        for page in self._ahead(page_id for _, page_id in self._pages(low, high)):
            try:
                entries = trees.decode_entries(page)
            except ValueError as fault:
                raise Damaged(f"A tree page does not decode: {fault}.") from None
            if under:
                entries = [e for e in entries if e.path == under or e.path.startswith(below)]
            yield from entries

    def _ahead(self, page_ids: Iterator[bytes]) -> Iterator[memoryview]:
        """Fetch pages before they are asked for; a page that cannot be had raises at its turn."""
        waiting: deque[Callable[[], list[Chunk]]] = deque()
        while True:
            while len(waiting) < 2 and (ids := list(islice(page_ids, PAGES))):
                waiting.append(self._chunks.fetch(b"tree", ids))
            if not waiting:
                return
            for page in waiting.popleft()():
                if isinstance(page, StrongroomError):
                    raise page
                yield page

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

    def parts(self, entry: Entry) -> Iterator[Sequence[Extent]]:
        """Yield an entry's extents, a batch of bytes at most at a time; ValueError, Damaged."""
        return self._extent_parts(entry)

    def scatter(
        self, ids: Sequence[bytes], take: Take
    ) -> Callable[[], Mapping[int, StrongroomError]]:
        """Start fetching chunks in no order; see `ports`."""
        return self._chunks.scatter(b"data", ids, take)

    def bring(self, ids: Sequence[bytes], take: Take) -> Mapping[int, StrongroomError]:
        """Fetch chunks now, on this thread; `take` and the answer are those of `scatter`."""
        return self._chunks.bring(b"data", ids, take)

    def together(self, ids: Sequence[bytes], near: Sequence[bytes]) -> list[bytes]:
        """Which of the chunks `near` cost no further frame once those of `ids` are fetched."""
        return self._chunks.together(ids, near)

    def chunk_id(self, data: Buffer) -> bytes:
        """The id that a chunk of these bytes has here."""
        return self._chunks.data_id(data)

    def contents(
        self, entries: Iterable[Entry]
    ) -> Iterator[tuple[Entry, Iterator[tuple[int, memoryview]]]]:
        """Yield each entry with its pieces (logical offset, bytes), in order; see `ports`."""
        flow = _Flow(self._chunks, self._items(entries))
        return flow.entries()

    def _items(self, entries: Iterable[Entry]) -> Iterator[_Part]:
        """Entries as items of bounded size."""
        for entry in entries:
            content = entry.content
            if len(content) == _WHOLE and content[:1] == contents.WHOLE:
                yield entry
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
    """Batches under way, and the one that is being used."""

    def __init__(self, chunks: ChunkReader, items: Iterator[_Part]) -> None:
        self._chunks = chunks
        self._items = items
        self._ahead: deque[tuple[list[_Part], Callable[[], list[Chunk]]]] = deque()
        self._now: Iterator[_Part] = iter(())
        self._now_chunks: Iterator[Chunk] = iter(())
        self._next: _Part | None = None  # looked at and not yet used

    def entries(self) -> Iterator[tuple[Entry, Iterator[tuple[int, memoryview]]]]:
        while (part := self._peek()) is not None:
            self._next = None
            if isinstance(part, Entry):
                yield part, self._whole(part, next(self._now_chunks))
            elif part.first:
                yield part.entry, self._pieces(part, self._chunks_of(part))
            else:
                self._chunks_of(part)  # the rest of an entry whose pieces were not all taken

    @staticmethod
    def _whole(entry: Entry, chunk: Chunk) -> Iterator[tuple[int, memoryview]]:
        if isinstance(chunk, StrongroomError):
            return _raising(chunk)
        if len(chunk) != entry.size:
            what = "A chunk is not as long as the entry that it is the whole of."
            return _raising(Damaged(what))
        return iter(((0, chunk),))

    def _pieces(self, item: _Item, chunks: list[Chunk]) -> Iterator[tuple[int, memoryview]]:
        while True:
            if item.fault is not None:
                raise item.fault
            for extent, chunk in zip(item.extents, chunks, strict=True):
                if isinstance(chunk, StrongroomError):
                    raise chunk
                yield from _repeat(extent, chunk)
            follower = self._peek()
            if follower is None or isinstance(follower, Entry) or follower.first:
                return
            self._next = None
            item, chunks = follower, self._chunks_of(follower)

    def _chunks_of(self, item: _Item) -> list[Chunk]:
        return list(islice(self._now_chunks, len(item.extents)))

    def _peek(self) -> _Part | None:
        """The next part, of this batch or of one that is under way."""
        while self._next is None:
            self._next = next(self._now, None)
            if self._next is None:
                self._advance()
                if not self._ahead:
                    return None
                parts, wait = self._ahead.popleft()
                self._advance()
                self._now, self._now_chunks = iter(parts), iter(wait())
        return self._next

    def _advance(self) -> None:
        """Keep a few batches under way."""
        while len(self._ahead) < BATCHES_AHEAD:
            batch, ids = self._batch()
            if not batch:
                return
            self._ahead.append((batch, self._chunks.fetch(b"data", ids)))

    def _batch(self) -> tuple[list[_Part], list[bytes]]:
        """The next parts, and the ids of their chunks in the same order."""
        batch: list[_Part] = []
        ids: list[bytes] = []
        size = 0
        for part in self._items:
            batch.append(part)
            if isinstance(part, Entry):
                ids.append(part.content[1:])
                size += part.size
            else:
                ids += [extent.id for extent in part.extents]
                size += sum(extent.length for extent in part.extents)
            if size >= BATCH_SIZE or len(batch) >= BATCH_ITEMS:
                break
        return batch, ids


def _raising(fault: StrongroomError) -> Iterator[tuple[int, memoryview]]:
    raise fault
    yield  # makes this raise when it is asked for a piece


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
