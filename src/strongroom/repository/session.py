"""The one write path: cut → id → known? → frame → pack → index → refs → snapshot.

A session is one run of one writer, with a fresh key of its own. Its steps are
those of the protocol in docs/format.md:

    w1 mark   w2 list gc, then index   w3 packs, index   w4 refs = announce
    w5 list gc again: was anything that I rely on condemned?   w6 snapshot = commit

A snapshot exists only when its record does; a crash before that leaves garbage
that the next run of the same source takes up again.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import accumulate, pairwise
from operator import lt

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from strongroom.errors import (
    AlreadyExists,
    Damaged,
    ObjectMissing,
    Overtaken,
    StrongroomError,
)
from strongroom.format import content as contents
from strongroom.format import keyset as keysets
from strongroom.format import tree as trees
from strongroom.format.chunker import Chunker
from strongroom.format.content import ID_SIZE, Extent
from strongroom.format.frame import FRAME_SIZE
from strongroom.format.keyset import Keyset
from strongroom.format.record import canonical
from strongroom.format.segment import Segment, SessionRow
from strongroom.progress import Progress
from strongroom.repository.catalogue import Catalogue, Condemned, Refs, Root, Snapshot
from strongroom.repository.index import ABSENT, IdSet, Index, ranges
from strongroom.repository.pipeline import Frame, PackRows, Pipeline, rows_to_segment
from strongroom.repository.ports import Buffer, Stored, Taken
from strongroom.repository.seams import Seams, Settings
from strongroom.storage.base import Storage

WINDOW = 8 * 1024 * 1024
INLINE_EXTENTS = 16
PAGE_CHUNK = 64 * 1024  # eight pages of PostgreSQL; docs/decisions/0011
_EXTENTS_MIN, _EXTENTS_MAX, _EXTENTS_MASK = 64, 1024, 0xFF
# About 256 entries a page; three quarters of the entries are spared the hash that may end one.
_PAGE_MIN, _PAGE_MAX, _PAGE_BYTES = 192, 1024, 256 * 1024
_MARK = struct.Struct("<32sIQ")
_PAGE_THRESHOLD = (1 << 32) // 64
_PAGE_TOP = _PAGE_THRESHOLD >> 24


class WriteSession:
    """One run of writing; see `ports.Session`. Make one with `Repository.begin`."""

    def __init__(
        self,
        storage: Storage,
        catalogue: Catalogue,
        keyset: Keyset,
        *,
        group: str,
        index: Index,
        condemned: Condemned,
        session: bytes,
        chunker: Chunker,
        settings: Settings,
        seams: Seams,
        progress: Progress,
        started: datetime,
        warnings: Sequence[str] = (),
    ) -> None:
        self.warnings = tuple(warnings)  # what a person should know of the repository
        self.id = session
        self.group = group
        self.started = started
        self._catalogue, self._keyset, self._seams = catalogue, keyset, seams
        self._settings, self._progress = settings, progress
        self._index, self._condemned, self._chunker = index, condemned, chunker
        key = seams.random(32)
        self._row = SessionRow(session, keyset.epoch, seal_session_key(keyset, session, key))
        self._keys = {kind: keysets.chunk_key(keyset.id_key, kind) for kind in CHUNK_KINDS}
        self._sequence = itertools.count()
        self._last_sequence = 0
        self._fresh = IdSet()
        self._relied = np.zeros(index.frames, np.bool_)
        self._own_packs: set[bytes] = set()
        self._unindexed: list[PackRows] = []
        self._index_lock = threading.Lock()
        self._indexed_at = seams.steady()
        self._lanes: list[WriteLane] = []
        self._lanes_lock = threading.Lock()
        self.stored = 0
        self.new_size = 0
        self._pipeline = Pipeline(
            storage,
            session=self._row,
            key=key,
            records=catalogue.records,
            nonce=catalogue.nonce,
            level=settings.level,
            pack_size=settings.pack_size,
            sealers=settings.sealers,
            putters=settings.putters,
            reopen_every=settings.reopen_every,
            packed=self._packed,
        )
        self._closed = False
        self.tree = TreeWriter(self, self.lane(), keysets.chunk_key(keyset.id_key, b"tree page"))

    # -- for sources -----------------------------------------------------------------------

    def lane(self) -> WriteLane:
        """Open one more way in; one per thread."""
        lane = WriteLane(self, self._chunker)
        with self._lanes_lock:
            self._lanes.append(lane)
        return lane

    def reuse(self, ids: Sequence[bytes]) -> list[bool]:
        """For each concatenation of ids: is all of it here? True records the reliance."""
        rows = self._index.find(b"".join(ids))
        present = self._index.usable(rows)
        counts = np.fromiter((len(one) // ID_SIZE for one in ids), np.int64, len(ids))
        owner = np.repeat(np.arange(len(ids)), counts)
        missing = np.bincount(owner[~present], minlength=len(ids))
        whole = missing == 0
        self._rely(rows[whole[owner]])
        result: list[bool] = whole.tolist()
        return result

    # -- for lanes -------------------------------------------------------------------------

    def key(self, kind: bytes) -> bytes:
        """The key under which chunks of a kind get their ids."""
        return self._keys[kind]

    def known(self, ids: bytes) -> npt.NDArray[np.bool_]:
        """For each id: need it not be stored? Records the reliance on what is found."""
        if not len(self._index.chunks):
            return self._fresh.known(ids)
        rows = self._index.find(ids)
        usable = self._index.usable(rows)
        self._rely(rows[usable])
        return usable | self._fresh.known(ids)

    def claim(self, chunk_id: bytes, owner: object) -> bool:
        """True for the one lane that is to store this chunk."""
        return self._fresh.claim(chunk_id, owner)

    def claim_all(self, ids: Sequence[bytes], owner: object) -> bool:
        """True if all of these chunks were new, and are to be stored by the caller."""
        return self._fresh.claim_all(ids, owner)

    def submit(self, tree: bool, plain: bytes, ids: bytes, lengths: Sequence[int]) -> None:
        """Hand a full frame on."""
        self._fresh.settle()
        sequence = next(self._sequence)
        self._pipeline.submit(Frame(tree, sequence, plain, ids, lengths))
        with self._lanes_lock:
            self.new_size += len(plain)
            self._last_sequence = max(self._last_sequence, sequence + 1)

    def _rely(self, chunk_rows: npt.NDArray[np.int64]) -> None:
        if len(chunk_rows):
            self._relied[self._index.frame[chunk_rows]] = True

    # -- commit ----------------------------------------------------------------------------

    def commit(
        self, source: str, kind: str, taken: Taken, *, labels: Mapping[str, str]
    ) -> Snapshot:
        """Steps w3 to w6. Overtaken when a prune condemned what this run relies on."""
        facts = self.lane().content()
        facts.write(canonical(dict(taken.facts)))
        document = facts.finish()
        root = self.tree.finish()
        self._settle()
        snapshot = Snapshot(
            id=self._catalogue.token(),
            source=source,
            kind=kind,
            group=self.group,
            session=self.id.hex(),
            epoch=self._keyset.epoch,
            started=self.started,
            time=self._seams.now(),
            root=root,
            facts=document.content,
            facts_size=document.size,
            files=taken.files,
            size=taken.size,
            new_size=self.new_size,
            stored=self.stored,
            problems=len(taken.problems),
            writer=self._keyset.writer_name,
            labels=labels,
            log=taken.log,
        )
        frames = self._index.references(self._relied)
        if self._last_sequence:
            frames[self.id] = ranges(np.arange(self._last_sequence))
        refs = Refs(
            f"refs/{source}/{snapshot.id}",
            snapshot.name,
            self.group,
            {session.hex(): held for session, held in frames.items()},
        )
        self._catalogue.put_refs(refs, source)
        self._look_again()
        self._put_snapshot(snapshot)
        # The snapshot is there: a mark that cannot be put makes the next run look for packs
        # without an index, and must not turn this run into a failed one.
        with contextlib.suppress(StrongroomError):
            self._close("committed", snapshot=snapshot.name)
        return snapshot

    def _put_snapshot(self, snapshot: Snapshot) -> None:
        """w6. A store may carry a put out and lose the answer, so a fault is followed by a look."""
        try:
            self._catalogue.put_snapshot(snapshot)
        except AlreadyExists:
            raise Overtaken("A prune gave this run up for dead and closed its place.") from None
        except StrongroomError as fault:
            try:
                there = self._catalogue.open_snapshot(snapshot.name)
            except ObjectMissing:
                raise fault from None
            except StrongroomError:
                fault.means = (
                    "Nobody knows whether the snapshot was written; earlier ones are safe."
                )
                fault.do = "See `strongroom list`, then run the same command again; it resumes."
                raise fault from None
            if there != snapshot:
                raise

    def _look_again(self) -> None:
        """w5: whoever announced before looking is either rescued or sees the condemnation here."""
        now = self._catalogue.load_condemned()
        relied = {name for _, name in self._index.packs_of(self._relied)} | self._own_packs
        lost = (now.packs - self._condemned.packs) & relied
        if lost:
            raise Overtaken(f"A prune condemned {len(lost)} packs that this run relies on.")

    def _settle(self) -> None:
        """w3: everything durable, then the index that tells of it."""
        for lane in self._lanes:
            lane.flush()
        self._finish_packs()

    def _finish_packs(self) -> None:
        self._pipeline.drain()
        with self._index_lock:
            self._put_index()

    def _packed(self, rows: PackRows, size: int) -> None:
        with self._index_lock:
            self.stored += size
            self._own_packs.add(rows.name)
            self._unindexed.append(rows)
            count = sum(len(pending.lengths) for pending in self._unindexed)
            late = self._seams.steady() - self._indexed_at >= self._settings.index_seconds
            if count >= self._settings.index_rows or late:
                self._put_index()
        self._progress.advance(stored=size)

    def _put_index(self) -> None:
        if not self._unindexed:
            return
        rows: Segment = rows_to_segment(self._row, self._unindexed)
        self._catalogue.put_index(self.group, rows, now=self._seams.now())
        self._unindexed = []
        self._indexed_at = self._seams.steady()

    # -- end -------------------------------------------------------------------------------

    def abandon(self) -> None:
        """End without a snapshot; what is durable is indexed, so that the next run uses it again.

        Never raises: it is called when something else has gone wrong already.
        """
        if self._closed:
            return
        # Frames that are not full stay behind: whoever filled them was stopped anywhere, with a
        # chunk half noted, or still runs in a thread of its own.
        # Where this fails, the mark stays open and the next run looks for packs without an index.
        try:
            with contextlib.suppress(Exception):
                self._finish_packs()
                self._close("abandoned")
        finally:
            self._closed = True
            self._pipeline.close()

    def _close(self, outcome: str, **more: str) -> None:
        self._closed = True
        self._pipeline.close()
        body = {"outcome": outcome, "time": self._seams.now().isoformat(), **more}
        self._catalogue.put_mark(self.group, self.id.hex(), 1, body)


CHUNK_KINDS = (b"data", b"extents", b"tree")


def seal_session_key(keyset: Keyset, session: bytes, key: bytes) -> bytes:
    """Seal, and open again where the keys at hand can: all that is stored hangs on this key."""
    sealed = keysets.seal_session_key(keyset, session, key)
    if keyset.reads and keysets.open_session_key(keyset, session, sealed) != key:
        raise Damaged(
            "The session's key does not open to what was sealed.",
            means="Nothing was stored; earlier snapshots are untouched.",
            do="Test the machine's memory; then run the same command again.",
        )
    return sealed


class WriteLane:
    """One thread's way in; see `ports.Lane`."""

    def __init__(self, session: WriteSession, chunker: Chunker) -> None:
        self._session = session
        self._chunker = chunker
        self._data = _FrameFiller(session, tree=False)
        self._meta = _FrameFiller(session, tree=True)
        self._window: bytearray | None = None

    def put_small(self, buffers: Sequence[Buffer]) -> list[bytes]:
        """Store each buffer as one whole chunk; return the ids in order."""
        return self.put_chunks(b"data", buffers)

    def put_chunks(self, kind: bytes, buffers: Sequence[Buffer]) -> list[bytes]:
        """Store each buffer as one chunk of `kind`."""
        key = self._session.key(kind)
        ids = [blake3(buffer, key=key).digest() for buffer in buffers]
        known = self._session.known(b"".join(ids)).tolist()
        filler = self._data if kind == b"data" else self._meta
        claim = self._session.claim
        for chunk_id, buffer, here in zip(ids, buffers, known, strict=True):
            if not here and claim(chunk_id, object()):
                filler.add(chunk_id, buffer)
        filler.keep()
        return ids

    def put_run(self, run: memoryview, lengths: Sequence[int]) -> list[bytes]:
        """Store chunks that lie back to back in `run`, as `put_small` would; return the ids."""
        key, ends = self._session.key(b"data"), [*accumulate(lengths, initial=0)]
        ids = [blake3(run[at:end], key=key).digest() for at, end in pairwise(ends)]
        known = self._session.known(b"".join(ids))
        if not known.any() and self._session.claim_all(ids, object()):
            self._data.add_run(ids, run, lengths, ends)
        else:
            claim = self._session.claim
            for number, here in enumerate(known.tolist()):
                if not here and claim(ids[number], object()):
                    self._data.add(ids[number], run[ends[number] : ends[number + 1]])
        self._data.keep()
        return ids

    def put_pages(self, run: memoryview) -> bytes:
        """Store `run` in pieces of PAGE_CHUNK bytes, the last as it is; return the ids, joined."""
        whole, rest = divmod(len(run), PAGE_CHUNK)
        lengths = [PAGE_CHUNK] * whole + ([rest] if rest else [])
        return b"".join(self.put_run(run, lengths))

    def pages_content(self, ids: bytes, size: int) -> Stored:
        """The content of `size` bytes that `put_pages` returned these ids for, in order."""
        count = len(ids) // ID_SIZE
        if count != -(-size // PAGE_CHUNK):
            raise ValueError("the ids are not those of so many bytes")
        extents: list[Extent] = []
        for number in range(count):
            start = number * PAGE_CHUNK
            length = min(PAGE_CHUNK, size - start)
            _lengthen(extents, ids[number * ID_SIZE : (number + 1) * ID_SIZE], start, length)
        content, more = self.encode(extents, size)
        return Stored(content, b"".join([ids, *more]), size)

    def encode(self, extents: Sequence[Extent], size: int) -> tuple[bytes, list[bytes]]:
        """The content that these extents make, and the ids of the chunks that hold them, if any."""
        if not size:
            return b"", []
        if len(extents) == 1 and extents[0][:4] == (0, size, 0, 1):
            return contents.whole(extents[0].id), []
        if len(extents) <= INLINE_EXTENTS:
            return contents.inline(extents), []
        pages = [contents.pack_rows(page) for page in _extent_pages(extents)]
        ids = self.put_chunks(b"extents", pages)
        return contents.paged(ids), ids

    def content(self) -> WriteContent:
        """Begin a stream."""
        window, self._window = self._window, None
        if window is None:
            window = bytearray(max(WINDOW, 2 * self._chunker.largest))
        return WriteContent(self, self._chunker, window)

    def give_back(self, window: bytearray) -> None:
        """Keep the window of a finished stream for the next one."""
        self._window = window

    def flush(self) -> None:
        """Hand on what is not a full frame yet."""
        self._data.close()
        self._meta.close()


class _FrameFiller:
    """Collects new chunks into frames."""

    def __init__(self, session: WriteSession, *, tree: bool) -> None:
        self._session, self._tree = session, tree
        self._pieces: list[Buffer] = []
        self._ids: list[bytes] = []
        self._lengths: list[int] = []
        self._size = 0

    def add(self, chunk_id: bytes, buffer: Buffer) -> None:
        size = len(buffer)
        if self._size + size > FRAME_SIZE and self._size:
            self.close()
        self._pieces.append(buffer)
        self._ids.append(chunk_id)
        self._lengths.append(size)
        self._size += size

    def add_run(
        self, ids: list[bytes], run: memoryview, lengths: Sequence[int], ends: list[int]
    ) -> None:
        """Add what `add` would one by one; chunk i is run[ends[i] : ends[i + 1]]."""
        at, count = 0, len(ids)
        while at < count:
            stop = bisect_right(ends, ends[at] + FRAME_SIZE - self._size) - 1
            if stop <= at and self._size:
                self.close()
                continue
            stop = min(max(stop, at + 1), count)
            self._pieces.append(run[ends[at] : ends[stop]])
            self._ids += ids[at:stop]
            self._lengths += lengths[at:stop]
            self._size += ends[stop] - ends[at]
            at = stop

    def keep(self) -> None:
        """Copy what is still a view: its buffer is about to be used again."""
        if len(self._pieces) > 1 or (self._pieces and not isinstance(self._pieces[0], bytes)):
            self._pieces = [b"".join(self._pieces)]

    def close(self) -> None:
        if not self._ids:
            return
        self.keep()
        plain = self._pieces[0]
        self._session.submit(self._tree, bytes(plain), b"".join(self._ids), self._lengths)
        self._pieces, self._ids, self._lengths, self._size = [], [], [], 0


class WriteContent:
    """One stream being cut; see `ports.ContentWriter`."""

    def __init__(self, lane: WriteLane, chunker: Chunker, window: bytearray) -> None:
        self._lane, self._chunker = lane, chunker
        self._cutter = chunker.begin()
        self._buffer = window
        self._view = memoryview(window)
        self._fill = 0
        self._start = 0  # logical offset of the window's first byte
        self._extents: list[Extent] = []
        self._ids: list[bytes] = []

    def feed_from(self, readinto: Callable[[memoryview], int]) -> int:
        """Call `readinto` until it returns 0; return the bytes taken."""
        total = 0
        while taken := readinto(self._view[self._fill :]):
            self._fill += taken
            total += taken
            if self._fill == len(self._view):
                self._cut(final=False)
        return total

    def write(self, data: Buffer) -> None:
        """Take `data`."""
        view = memoryview(data).cast("B")
        at = 0
        while at < len(view):
            step = min(len(view) - at, len(self._view) - self._fill)
            self._view[self._fill : self._fill + step] = view[at : at + step]
            self._fill += step
            at += step
            if self._fill == len(self._view):
                self._cut(final=False)

    def seek(self, offset: int) -> None:
        """Leave a hole up to `offset`."""
        if offset < self._start + self._fill:
            raise ValueError("a stream cannot be written backwards")
        if offset == self._start + self._fill:
            return
        self._cut(final=True)
        self._cutter = self._chunker.begin()
        self._start = offset

    def finish(self, *, size: int | None = None) -> Stored:
        """End the stream."""
        self._cut(final=True)
        end = self._start
        size = end if size is None else size
        if size < end:
            raise ValueError("a stream cannot be shorter than what was written")
        content = self._encode(size)
        self._view.release()
        self._lane.give_back(self._buffer)
        return Stored(content, b"".join(self._ids), size)

    def _cut(self, *, final: bool) -> None:
        window = self._view[: self._fill]
        ends = self._cutter.cut(window, final=final)
        pieces, begin = [], 0
        for end in ends:
            pieces.append(window[begin:end])
            begin = end
        if pieces:
            for chunk_id, piece in zip(self._lane.put_chunks(b"data", pieces), pieces, strict=True):
                self._extend(chunk_id, len(piece))
        rest = self._fill - begin
        if begin and rest:
            self._view[:rest] = self._view[begin : self._fill]
        self._fill = rest

    def _extend(self, chunk_id: bytes, length: int) -> None:
        if _lengthen(self._extents, chunk_id, self._start, length):
            self._ids.append(chunk_id)
        self._start += length

    def _encode(self, size: int) -> bytes:
        content, ids = self._lane.encode(self._extents, size)
        self._ids += ids
        return content


def _lengthen(extents: list[Extent], chunk_id: bytes, start: int, length: int) -> bool:
    """Add a chunk to a content; False where it repeats the one before."""
    last = extents[-1] if extents else None
    if last and last.id == chunk_id and last.length == length and last.end == start:
        extents[-1] = last._replace(repeats=last.repeats + 1)
        return False
    extents.append(Extent(start, length, 0, 1, chunk_id))
    return True


def _extent_pages(extents: Sequence[Extent]) -> list[Sequence[Extent]]:
    """Cut a long list where the chunk ids say so: a changed chunk changes one page."""
    pages, begin = [], 0
    for at, extent in enumerate(extents, 1):
        size = at - begin
        chosen = size >= _EXTENTS_MIN and not extent.id[0] & _EXTENTS_MASK
        if chosen or size >= _EXTENTS_MAX:
            pages.append(extents[begin:at])
            begin = at
    if begin < len(extents):
        pages.append(extents[begin:])
    return pages


class TreeWriter:
    """The tree being written; see `ports.Tree`."""

    def __init__(self, session: WriteSession, lane: WriteLane, page_key: bytes) -> None:
        self._session, self._lane, self._page_key = session, lane, page_key
        self._root: Root | None = None
        self._ids: list[bytes] = []
        self._last: bytes | None = None
        self._paths: list[bytes] = []  # of the page being filled
        self._records: list[bytes] = []
        self._bytes = 0
        self._rows: list[tuple[bytes, int, bytes]] = []
        self.entries = 0

    def add(self, entry: trees.Entry) -> bytes:
        """Add an entry; return its encoded record."""
        record = trees.encode_record(entry)
        self.add_record(entry.path, record)
        return record

    def add_record(self, path: bytes, record: bytes) -> None:
        """Add an entry that was encoded before."""
        if self._last is not None and path <= self._last:
            raise ValueError(f"tree entries out of order: {path!r} after {self._last!r}")
        self._last = path
        self._paths.append(path)
        self._records.append(record)
        self._bytes += len(path) + len(record)
        size = len(self._paths)
        # Long paths and attributes must not make a page longer than a frame may be.
        full = size >= _PAGE_MAX or self._bytes >= _PAGE_BYTES
        if full or (size >= _PAGE_MIN and self._ends_page(path)):
            self._close_page()

    def add_records(self, paths: list[bytes], records: list[bytes]) -> None:
        """Add neighbours; only where a page may end is there something to be looked at for each."""
        at = 0
        while at < len(paths):
            stop, ends = self._front(paths, at)
            if not self._extend(paths[at:stop], records[at:stop]):
                self.add_record(paths[at], records[at])
                at += 1
                continue
            at = stop
            if ends:
                self._close_page()

    def _front(self, paths: list[bytes], at: int) -> tuple[int, bool]:
        """Where the page stops if it goes on with paths[at:], by number alone; does it end there?"""
        held, count, ends_page = len(self._paths) - at, len(paths), self._ends_page
        free = _PAGE_MIN - 1 - held
        if free > at:
            return min(count, free), False
        last = min(count, _PAGE_MAX - held)
        for number in range(at, last):
            if ends_page(paths[number]):
                return number + 1, True
        return last, last + held >= _PAGE_MAX

    def _extend(self, paths: list[bytes], records: list[bytes]) -> bool:
        """Add entries that the page has room for; False, and none added, if a look at each is due."""
        size = sum(map(len, paths)) + sum(map(len, records))
        first = self._last is None or self._last < paths[0]
        if self._bytes + size >= _PAGE_BYTES or not first or not all(map(lt, paths, paths[1:])):
            return False
        self._last = paths[-1]
        self._paths += paths
        self._records += records
        self._bytes += size
        return True

    def finish(self) -> Root:
        """Store what is left, and the index pages above it; return the root."""
        if self._root is None:
            if self._paths or not self._rows:
                self._close_page()
            rows, levels = self._rows, 0
            while len(rows) > 1:
                rows = self._index_level(rows)
                levels += 1
            self._root = Root(rows[0][0], levels, self.entries)
        return self._root

    def mark(self) -> bytes:
        """The root and the ids of all pages, for `adopt`."""
        root = self.finish()
        return _MARK.pack(root.id, root.levels, root.entries) + b"".join(self._ids)

    def adopt(self, mark: bytes) -> bool:
        """Be the tree of an earlier run whose every page is still here."""
        ids = mark[_MARK.size :]
        if self._last is not None or not ids or len(ids) % ID_SIZE:
            return False
        if not self._session.reuse([ids])[0]:
            return False
        self._root = Root(*_MARK.unpack_from(mark))
        self._ids = [ids]
        return True

    def _ends_page(self, path: bytes) -> bool:
        # The last byte alone tells whether the little-endian u32 is below _PAGE_THRESHOLD, 2**26.
        return blake3(path, key=self._page_key).digest(4)[3] < _PAGE_TOP

    def _close_page(self) -> None:
        paths, page = self._paths, trees.encode_page(self._paths, self._records)
        self._paths, self._records, self._bytes = [], [], 0
        (page_id,) = self._lane.put_chunks(b"tree", [page])
        self._ids.append(page_id)
        self._rows.append((page_id, len(paths), paths[0] if paths else b""))
        self.entries += len(paths)

    def _index_level(
        self, rows: Sequence[tuple[bytes, int, bytes]]
    ) -> list[tuple[bytes, int, bytes]]:
        above, group, size = [], [], 0
        for row in rows:
            group.append(row)
            size += len(row[2])
            full = len(group) >= _PAGE_MAX or (len(group) > 1 and size >= _PAGE_BYTES)
            if full or (len(group) >= _PAGE_MIN and self._ends_page(row[2])):
                above.append(self._index_page(group))
                group, size = [], 0
        if group:
            above.append(self._index_page(group))
        return above

    def _index_page(self, group: Sequence[tuple[bytes, int, bytes]]) -> tuple[bytes, int, bytes]:
        (page_id,) = self._lane.put_chunks(b"tree", [trees.encode_index(group)])
        self._ids.append(page_id)
        return page_id, sum(row[1] for row in group), group[0][2]


__all__ = ["ABSENT", "WriteContent", "WriteLane", "WriteSession", "seal_session_key"]
