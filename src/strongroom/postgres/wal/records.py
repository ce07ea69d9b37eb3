"""What a WAL segment holds, read from its own bytes: commits, names, switches, who wrote how much.

Rule of this file: bytes are judged, never trusted. `kernel.scan_wal` walks the records and ends
where PostgreSQL's recovery would end; whatever the bytes are, an answer comes back, and facts that
stop early say so (`SegmentFacts.whole`). PostgreSQL 13 to 18, written by little-endian machines.

Exact are all positions, counts and times. Approximate is who wrote how much: a subtransaction's
bytes are added to its transaction only where a record in the same segment says whose it is (a
commit or abort, or the assignment that PostgreSQL writes for every 64 of them); and what is written
outside of transactions (checkpoints, hint bits, most of a vacuum) is nobody's.

A record that goes over the end of a segment is told of where it ends, which takes what the scan
before carried over. Without it (segments come out of order, or one is missing) a commit that lies
across the border is told of by neither side; `commits` over consecutive segments misses none.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from strongroom import kernel
from strongroom.format.wal import (
    Fork,
    MadeSpace,
    RestorePoint,
    SegmentFacts,
    SegmentName,
    moment,
)

_MAGICS = {
    0xD106: 13,
    0xD10D: 14,
    0xD110: 15,
    0xD113: 16,
    0xD116: 17,
    0xD118: 18,
}
_LONG_HEADER = struct.Struct("<HHIQIxxxxQII")
_LONG = 2
_SHUTDOWN, _RESTORE_POINT, _END_OF_RECOVERY, _OVERWRITE = 0x00, 0x70, 0x90, 0xD0
_SPACE_MADE = 0x500  # of another manager than those
_NAME_SIZE = 64
_TURN = struct.Struct("<qII")  # a time or position, this timeline, the one before


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What the first page of a segment says of it: whose it is, and where it belongs."""

    major: int  # of the server that wrote it
    timeline: int  # may be an older one than the segment's: its beginning was copied at a fork
    start: int
    system_id: int
    segment_size: int
    page_size: int


def read_header(data: bytes | bytearray | memoryview) -> SegmentHeader:
    """Read the long header; ValueError when it is none of a PostgreSQL from 13 to 18."""
    if len(data) < _LONG_HEADER.size:
        raise ValueError("too short to be a WAL segment")
    fields = _LONG_HEADER.unpack_from(data)
    magic, info, timeline, start, _, system_id, size, page = fields
    if magic not in _MAGICS or not info & _LONG:
        raise ValueError("not the beginning of a WAL segment of PostgreSQL 13 to 18")
    if size & (size - 1) or not size or page & (page - 1) or not page or start % size:
        raise ValueError("the header of the WAL segment contradicts itself")
    return SegmentHeader(_MAGICS[magic], timeline, start, system_id, size, page)


@dataclass(frozen=True, slots=True)
class Carry:
    """The beginning of a record that the next segment ends: what `scan_segment` wants there."""

    position: int  # where the next segment begins
    state: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Commit:
    """The end of a transaction. Recovery compares `lsn_start` with a target position.

    `bytes` are those that it wrote into the segments that were read, up to this record.
    """

    xid: int
    time: datetime
    lsn_start: int
    lsn_end: int
    bytes: int
    aborted: bool = False


def scan_segment(
    data: bytes | bytearray | memoryview, name: SegmentName, before: Carry | None = None
) -> tuple[SegmentFacts, Carry | None]:
    """Say what a segment holds, and what it leaves to the next one.

    `before` is what the segment before this one left; one that does not fit is passed over. What
    is no segment of this name has no records: `first` and `last` are None and `whole` is False.
    """
    if not _is(data, name):
        return SegmentFacts(name.timeline, name.start, name.size, whole=False), None
    counts, notes, _, _, state = kernel.scan_wal(data, name.start, _state(before, name))
    first, last, whole, switched, commits, aborts, least, greatest, end, largest, most = counts
    facts = SegmentFacts(
        timeline=name.timeline,
        start=name.start,
        size=name.size,
        first=first or None,
        last=last or None,
        first_commit=moment(least) if commits else None,
        last_commit=moment(greatest) if commits else None,
        last_end=moment(end) if commits or aborts else None,
        commits=commits,
        aborts=aborts,
        largest=(largest, most) if largest else None,
        restore_points=tuple(_restore_points(notes)),
        forks=tuple(_forks(notes)),
        spaces=tuple(_spaces(notes)),
        switched=bool(switched),
        whole=bool(whole),
    )
    return facts, Carry(name.end, state) if state else None


def commits(
    segments: Iterable[tuple[SegmentName, bytes | bytearray | memoryview]],
    before: Carry | None = None,
    *,
    aborts: bool = False,
) -> Iterator[Commit]:
    """Yield the commits, and with `aborts` these too, of consecutive segments in log order.

    Log order is the order in which recovery meets them; their times need not ascend. What a
    subtransaction wrote counts for its transaction, in whichever of the segments it was.
    ValueError for bytes that are not the segment of their name.
    """
    written: dict[int, int] = {}
    parts: dict[int, set[int]] = {}
    for name, data in segments:
        if not _is(data, name):
            raise ValueError(f"these bytes are not the WAL segment {name}")
        carried = _state(before, name)
        _, notes, ends, writers, state = kernel.scan_wal(data, name.start, carried, detail=True)
        if carried and any(info == _OVERWRITE for info, *_ in notes):
            # It was lost in a crash, and its transaction with it; the number may be used again.
            written.pop(kernel.wal_state_writer(carried), None)
        before = Carry(name.end, state) if state else None
        for xid, top, count in kernel.wal_writers(writers):
            written[xid] = written.get(xid, 0) + count
            if top:
                parts.setdefault(top, set()).add(xid)
        for start, end, time, xid, aborted in kernel.wal_ends(ends):
            size = sum(written.get(one, 0) for one in {xid, *parts.get(xid, ())})
            if not aborted:  # one that aborts may be part of another, which still has to end
                for one in {xid, *parts.pop(xid, ())}:
                    written.pop(one, None)
            if aborts or not aborted:
                yield Commit(xid, moment(time), start, end, size, bool(aborted))


def _is(data: bytes | bytearray | memoryview, name: SegmentName) -> bool:
    """Whether the bytes say that they are the segment of this name."""
    try:
        header = read_header(data)
    except ValueError:
        return False
    sizes = header.segment_size == name.size and len(data) <= name.size
    return sizes and header.start == name.start and header.timeline <= name.timeline


def _state(before: Carry | None, name: SegmentName) -> bytes:
    return before.state if before is not None and before.position == name.start else b""


def _restore_points(notes: list[tuple[int, int, int, bytes]]) -> Iterator[RestorePoint]:
    for info, _, end, main in notes:
        if info == _RESTORE_POINT and len(main) >= 8 + _NAME_SIZE:
            raw = main[8 : 8 + _NAME_SIZE].split(b"\0", 1)[0]
            time = int.from_bytes(main[:8], "little", signed=True)
            yield RestorePoint(raw.decode("utf-8", "surrogateescape"), end, moment(time))


def _forks(notes: list[tuple[int, int, int, bytes]]) -> Iterator[Fork]:
    """Where a server went on on a new timeline: the first record that it wrote there says it."""
    for info, start, _, main in notes:
        if info in {_SHUTDOWN, _END_OF_RECOVERY} and len(main) >= _TURN.size:
            _, timeline, left = _TURN.unpack_from(main)
            if timeline > left:
                yield Fork(left, start, "")


def _spaces(notes: list[tuple[int, int, int, bytes]]) -> Iterator[MadeSpace]:
    for what, _, end, main in notes:
        if what == _SPACE_MADE and len(main) >= 5:
            oid = int.from_bytes(main[:4], "little")
            yield MadeSpace(oid, end, main[4:].split(b"\0", 1)[0])


__all__ = ["Carry", "Commit", "SegmentHeader", "commits", "read_header", "scan_segment"]
