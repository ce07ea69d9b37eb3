"""From frames to packs: seal on all cores, open again and compare, fill packs, put them.

    submit → [sealing threads] → pack being filled (one for data, one for trees) → [putting threads]

Every queue is bounded, so memory is too. The first fault of any thread ends
the run: it is raised by the next `submit` or by `drain`. What was sealed is
opened and compared before it may be put: a compressor or cipher that corrupts
never ends in a green run.
"""

from __future__ import annotations

import mmap
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from blake3 import blake3

from strongroom.errors import Damaged
from strongroom.format import pack, segment
from strongroom.format.frame import TAG, FrameOpener, FrameSealer
from strongroom.format.record import FOOTER, RecordKey
from strongroom.format.segment import FRAME_ROW, Segment, SessionRow
from strongroom.storage.base import Storage

PACK_CHUNKS = 65_536  # a pack of tiny files is put early, so that its footer stays small
# A frame of so many chunks, and so small ones, holds small files. (Sixteen are a frame of
# PostgreSQL's pages, too, which pack a fifth faster the other way.)
TIGHT_CHUNKS, TIGHT_SIZE = 16, 48 * 1024
_SLACK = 8 * 1024 * 1024  # for the frame that makes a pack full, and the footer


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame to seal: its chunks one after the other, their ids and lengths."""

    tree: bool
    sequence: int
    plain: bytes
    ids: bytes
    lengths: Sequence[int]


@dataclass(slots=True)
class PackRows:
    """What the index must know of a pack that was put."""

    tree: bool
    name: bytes
    frames: list[tuple[int, int, int, int]]  # sequence, offset, length, chunks
    ids: bytes
    lengths: list[int]


@dataclass(slots=True)
class _Filling:
    """A pack that is being filled, in a buffer that is kept for the next one.

    Frames are sealed where they will rest: a place is reserved, then filled by the thread that
    reserved it. `sealing` counts the places that are not filled yet; a frame that fails keeps its
    place for ever, so that its pack is never put. Rows are sequence, offset, length, ids, lengths.
    """

    tree: bool
    buffer: mmap.mmap
    used: int
    chunks: int = 0
    sealing: int = 0
    closed: bool = False
    rows: list[tuple[int, int, int, bytes, Sequence[int]]] = field(default_factory=list)


def rows_to_segment(
    session: SessionRow, packs: Sequence[PackRows], *, zero_name: bool = False
) -> Segment:
    """The index rows of packs that hold frames of one session only."""
    rows = [
        (0, sequence, number, offset, length, chunks)
        for number, rows in enumerate(packs)
        for sequence, offset, length, chunks in rows.frames
    ]
    lengths = [length for rows in packs for length in rows.lengths]
    return Segment(
        sessions=[session],
        packs=[(rows.tree, pack.ZERO_NAME if zero_name else rows.name) for rows in packs],
        frames=np.array(rows, FRAME_ROW),
        ids=b"".join(rows.ids for rows in packs),
        lengths=np.array(lengths, np.uint32),
    )


class Pipeline:
    """The threads behind one session."""

    def __init__(
        self,
        storage: Storage,
        *,
        session: SessionRow,
        key: bytes,
        records: RecordKey,
        nonce: Callable[[], bytes],
        level: int,
        pack_size: int,
        sealers: int,
        putters: int,
        reopen_every: int,
        packed: Callable[[PackRows, int], None],
    ) -> None:
        self._storage, self._session, self._records, self._nonce = storage, session, records, nonce
        self._sealer = FrameSealer(session.id, key, level=level)
        self._opener = FrameOpener(session.id, key)
        self._pack_size, self._reopen_every, self._packed = pack_size, reopen_every, packed
        self._header = pack.encode_header([session])
        self._filling: dict[bool, _Filling] = {}
        self._free: list[mmap.mmap] = []
        self._lock = threading.Lock()
        self._frames: queue.Queue[Frame | None] = queue.Queue(2 * sealers + 2)
        self._packs: queue.Queue[_Filling | None] = queue.Queue(1)
        self._fault: BaseException | None = None
        self._closed = False
        self._sealers = [threading.Thread(target=self._seal, daemon=True) for _ in range(sealers)]
        self._putters = [threading.Thread(target=self._put, daemon=True) for _ in range(putters)]
        for thread in (*self._sealers, *self._putters):
            thread.start()

    def submit(self, frame: Frame) -> None:
        """Take a frame; waits while the threads behind are busy."""
        if sum(frame.lengths) != len(frame.plain):  # places in it follow from the lengths alone
            raise AssertionError("a frame's chunks are not what its lengths say")
        self._raise()
        self._frames.put(frame)

    def drain(self) -> None:
        """Return when everything submitted is durable; packs that are not full are put as they are."""
        self._frames.join()
        with self._lock:
            filled, self._filling = list(self._filling.values()), {}
        for filling in filled:
            if not filling.sealing:
                self._packs.put(filling)
        self._packs.join()
        self._raise()

    def close(self) -> None:
        """End the threads. What was submitted and not drained may be lost. Again: no matter."""
        if self._closed:
            return
        self._closed = True
        for _ in self._sealers:
            self._frames.put(None)
        for thread in self._sealers:
            thread.join()
        for _ in self._putters:
            self._packs.put(None)
        for thread in self._putters:
            thread.join()

    def _raise(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _seal(self) -> None:
        while (frame := self._frames.get()) is not None:
            try:
                # After a fault the queue is emptied without work, so that nobody waits for ever.
                if self._fault is None:
                    self._seal_one(frame)
            except BaseException as fault:  # carried to the thread that drives the session
                self._fault = self._fault or fault
            finally:
                self._frames.task_done()

    def _seal_one(self, frame: Frame) -> None:
        count = len(frame.lengths)
        tight = count >= TIGHT_CHUNKS and len(frame.plain) < count * TIGHT_SIZE
        packed = self._sealer.compress(frame.plain, tight=tight)
        filling, place = self._reserve(frame, len(packed) + TAG)
        self._sealer.seal_into(packed, frame.sequence, place)
        if frame.sequence % self._reopen_every == 0:
            self._reopen(frame, place)
        place.release()
        with self._lock:
            filling.sealing -= 1
            complete = filling.closed and not filling.sealing
        if complete:
            self._packs.put(filling)

    def _reserve(self, frame: Frame, length: int) -> tuple[_Filling, memoryview]:
        """A place of `length` bytes in the pack that is being filled; close the pack when full."""
        complete = None
        with self._lock:
            filling = self._filling.get(frame.tree)
            if filling is not None and filling.used + length > len(filling.buffer):
                filling.closed = True
                complete = None if filling.sealing else filling
                filling = None
            if filling is None:
                filling = self._filling[frame.tree] = self._begin(frame.tree, length)
            offset = filling.used
            filling.rows.append((frame.sequence, offset, length, frame.ids, frame.lengths))
            filling.used += length
            filling.chunks += len(frame.lengths)
            filling.sealing += 1
            full = filling.used - len(self._header) >= self._pack_size
            if full or filling.chunks >= PACK_CHUNKS:
                filling.closed = True
                del self._filling[frame.tree]
        if complete is not None:
            self._packs.put(complete)
        return filling, memoryview(filling.buffer)[offset : offset + length]

    def _begin(self, tree: bool, length: int) -> _Filling:
        """An empty pack with room for a frame of `length` bytes; called with the lock held."""
        header = self._header
        size = max(self._pack_size, len(header) + length) + _SLACK
        at = next((at for at, kept in enumerate(self._free) if len(kept) >= size), None)
        buffer = mmap.mmap(-1, size) if at is None else self._free.pop(at)
        buffer[: len(header)] = header
        return _Filling(tree, buffer, len(header))

    def _reopen(self, frame: Frame, sealed: memoryview) -> None:
        try:
            same = self._opener.open(sealed, frame.sequence) == frame.plain
        except ValueError:
            same = False
        if not same:
            raise Damaged(
                "What was compressed and sealed does not open to what it was.",
                means="Nothing of it was stored and no snapshot was written; earlier snapshots"
                " are untouched, but this machine's memory, CPU or libraries corrupt data.",
                do="Test the machine's memory; then run the same command again.",
            )

    def _put(self) -> None:
        while (filling := self._packs.get()) is not None:
            try:
                if self._fault is None:
                    self._put_one(filling)
            except BaseException as fault:  # carried to the thread that drives the session
                self._fault = self._fault or fault
            finally:
                self._packs.task_done()

    def _put_one(self, filling: _Filling) -> None:
        rows = PackRows(
            filling.tree, pack.ZERO_NAME, [], b"".join(row[3] for row in filling.rows), []
        )
        for sequence, offset, length, _, lengths in filling.rows:
            rows.frames.append((sequence, offset, length, len(lengths)))
            rows.lengths += lengths
        last = ending(
            rows_to_segment(self._session, [rows], zero_name=True),
            tree=filling.tree,
            records=self._records,
            nonce=self._nonce(),
        )
        whole = _appended(filling.buffer, filling.used, last)
        rows.name = blake3(whole).digest()
        self._storage.put(pack.object_name(rows.tree, rows.name), whole)
        size = len(whole)
        whole.release()
        with self._lock:
            self._free.append(filling.buffer)
        self._packed(rows, size)


def _appended(buffer: mmap.mmap, used: int, last: bytes) -> memoryview:
    """The first `used` bytes and `last`, in the buffer if there is room."""
    total = used + len(last)
    if total > len(buffer):  # a great many tiny chunks
        larger = mmap.mmap(-1, total)
        with memoryview(buffer) as view:
            larger[:used] = view[:used]
        buffer = larger
    buffer[used:total] = last
    return memoryview(buffer)[:total]


def ending(footer: Segment, *, tree: bool, records: RecordKey, nonce: bytes) -> bytes:
    """What stands behind the last frame of a pack: its footer, sealed, and the trailer."""
    sealed = records.seal(
        FOOTER,
        "trees" if tree else "packs",
        segment.encode(footer),
        nonce=nonce,
        pad=pack.FOOTER_PAD,
    )
    return sealed + pack.TRAILER.pack(len(sealed), pack.END)
