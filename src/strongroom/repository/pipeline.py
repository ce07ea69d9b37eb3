"""From frames to packs: seal on all cores, open again and compare, fill packs, put them.

    submit → [sealing threads] → pack being filled (one for data, one for trees) → [putting threads]

Every queue is bounded, so memory is too. The first fault of any thread ends
the run: it is raised by the next `submit` or by `drain`. What was sealed is
opened and compared before it may be put: a compressor or cipher that corrupts
never ends in a green run.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from blake3 import blake3

from strongroom.errors import Damaged
from strongroom.format import pack, segment
from strongroom.format.frame import FrameOpener, FrameSealer
from strongroom.format.record import FOOTER, RecordKey
from strongroom.format.segment import FRAME_ROW, Segment, SessionRow
from strongroom.storage.base import Storage

PACK_CHUNKS = 65_536  # a pack of tiny files is put early, so that its footer stays small


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
    """A pack that is being filled: sealed frames, and sequence, ids and lengths of each.

    The plain bytes are let go of as soon as they are sealed.
    """

    tree: bool
    size: int = 0
    chunks: int = 0
    sealed: list[bytes] = field(default_factory=list)
    rows: list[tuple[int, bytes, Sequence[int]]] = field(default_factory=list)


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
        self._filling = {tree: _Filling(tree) for tree in (False, True)}
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
        for tree in (False, True):
            with self._lock:
                filling, self._filling[tree] = self._filling[tree], _Filling(tree)
            if filling.rows:
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
        sealed = self._sealer.seal(frame.plain, frame.sequence)
        if frame.sequence % self._reopen_every == 0:
            self._reopen(frame, sealed)
        with self._lock:
            filling = self._filling[frame.tree]
            filling.sealed.append(sealed)
            filling.rows.append((frame.sequence, frame.ids, frame.lengths))
            filling.size += len(sealed)
            filling.chunks += len(frame.lengths)
            full = filling.size >= self._pack_size or filling.chunks >= PACK_CHUNKS
            if full:
                self._filling[frame.tree] = _Filling(frame.tree)
        if full:
            self._packs.put(filling)

    def _reopen(self, frame: Frame, sealed: bytes) -> None:
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
            filling.tree, pack.ZERO_NAME, [], b"".join(ids for _, ids, _ in filling.rows), []
        )
        at = len(self._header)
        for (sequence, _, lengths), sealed in zip(filling.rows, filling.sealed, strict=True):
            rows.frames.append((sequence, at, len(sealed), len(lengths)))
            rows.lengths += lengths
            at += len(sealed)
        data = assemble(
            self._header,
            filling.sealed,
            rows_to_segment(self._session, [rows], zero_name=True),
            tree=filling.tree,
            records=self._records,
            nonce=self._nonce(),
        )
        rows.name = blake3(data).digest()
        self._storage.put(pack.object_name(rows.tree, rows.name), data)
        self._packed(rows, len(data))


def assemble(
    header: bytes,
    frames: Sequence[bytes],
    footer: Segment,
    *,
    tree: bool,
    records: RecordKey,
    nonce: bytes,
) -> bytes:
    """The bytes of a pack."""
    sealed = records.seal(
        FOOTER,
        "trees" if tree else "packs",
        segment.encode(footer),
        nonce=nonce,
        pad=pack.FOOTER_PAD,
    )
    return b"".join((header, *frames, sealed, pack.TRAILER.pack(len(sealed), pack.END)))
