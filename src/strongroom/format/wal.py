"""Names and positions in PostgreSQL's write-ahead log, and what a segment was found to hold. PURE.

A position (LSN) is a byte offset in the log, an int here and `X/X` in text. Timelines are
hexadecimal in the names of files (pgBackRest 2.22 read them as decimal from timeline 10 on), and
decimal inside a history file.
Source: PostgreSQL src/include/access/xlog_internal.h.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

MIB = 1024 * 1024
DEFAULT_SEGMENT_SIZE = 16 * MIB
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""PostgreSQL counts microseconds from here."""

_SEGMENT = re.compile(r"[0-9A-F]{24}")
_PARTIAL = re.compile(r"[0-9A-F]{24}\.partial")
_LABEL = re.compile(r"[0-9A-F]{24}\.[0-9A-F]{8}\.backup")
_HISTORY = re.compile(r"[0-9A-F]{8}\.history")
_DECIMAL = re.compile(r"[0-9]{1,10}")
_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


class WalKind(StrEnum):
    """The sorts of files that PostgreSQL archives."""

    SEGMENT = "segment"
    PARTIAL = "partial"
    LABEL = "label"
    HISTORY = "history"


def kind_of(name: str) -> WalKind:
    """What a file in pg_wal is by its name; ValueError when PostgreSQL archives no such file."""
    for pattern, kind in (
        (_SEGMENT, WalKind.SEGMENT),
        (_HISTORY, WalKind.HISTORY),
        (_PARTIAL, WalKind.PARTIAL),
        (_LABEL, WalKind.LABEL),
    ):
        if pattern.fullmatch(name):
            return kind
    raise ValueError(f"not the name of a WAL file: {name!r}")


def parse_lsn(text: str) -> int:
    """Read `X/X`; ValueError when it is not a position."""
    if not isinstance(text, str):
        raise ValueError(f"not a position in the WAL: {text!r}")
    match = _LSN.fullmatch(text.strip())
    if not match:
        raise ValueError(f"not a position in the WAL: {text!r}")
    return int(match[1], 16) << 32 | int(match[2], 16)


def lsn_text(lsn: int) -> str:
    """Write a position as PostgreSQL does."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def is_segment_size(size: int) -> bool:
    """Whether segments may have so many bytes: a power of two from 1 MiB to 1 GiB."""
    return MIB <= size <= 1024 * MIB and not size & (size - 1)


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """One segment of one timeline; `number` counts segments from the start of the log."""

    timeline: int
    number: int
    size: int = DEFAULT_SEGMENT_SIZE

    @classmethod
    def parse(cls, name: str, size: int = DEFAULT_SEGMENT_SIZE) -> SegmentName:
        """Read 24 hexadecimal digits (a suffix such as `.partial` is passed over)."""
        if not _SEGMENT.fullmatch(name.partition(".")[0]):
            raise ValueError(f"not the name of a WAL segment: {name!r}")
        if not is_segment_size(size):
            raise ValueError(f"not a size of WAL segments: {size}")
        per_log = (1 << 32) // size
        log, low = int(name[8:16], 16), int(name[16:24], 16)
        if low >= per_log:
            raise ValueError(f"not a segment of {size} bytes: {name!r}")
        return cls(int(name[:8], 16), log * per_log + low, size)

    @classmethod
    def holding(cls, timeline: int, lsn: int, size: int = DEFAULT_SEGMENT_SIZE) -> SegmentName:
        """The segment that holds the byte at `lsn`."""
        return cls(timeline, lsn // size, size)

    @classmethod
    def before(cls, timeline: int, lsn: int, size: int = DEFAULT_SEGMENT_SIZE) -> SegmentName:
        """The segment that holds the last byte before `lsn`: where log up to `lsn` ends."""
        return cls(timeline, max(lsn - 1, 0) // size, size)

    @property
    def start(self) -> int:
        """Position of its first byte."""
        return self.number * self.size

    @property
    def end(self) -> int:
        """Position of the first byte after it."""
        return self.start + self.size

    def next(self) -> SegmentName:
        """The one after it on the same timeline."""
        return SegmentName(self.timeline, self.number + 1, self.size)

    def __str__(self) -> str:
        log, low = divmod(self.number, (1 << 32) // self.size)
        return f"{self.timeline:08X}{log:08X}{low:08X}"


def segments(timeline: int, start: int, stop: int, size: int) -> Iterator[SegmentName]:
    """The segments that hold the bytes from `start` up to, not including, `stop`."""
    for number in range(start // size, (max(stop, start + 1) - 1) // size + 1):
        yield SegmentName(timeline, number, size)


@dataclass(frozen=True, slots=True)
class Fork:
    """A line of a history file: `timeline` was left for the next one at `lsn`."""

    timeline: int
    lsn: int
    reason: str


def history_name(timeline: int) -> str:
    """The name of the file that tells how a timeline came to be."""
    return f"{timeline:08X}.history"


def parse_history(text: bytes) -> list[Fork]:
    """Read a history file, oldest fork first; ValueError when it is not one."""
    forks: list[Fork] = []
    for raw in text.decode("utf-8", "replace").splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        parts = line.split(None, 2)
        if len(parts) < 2 or not _DECIMAL.fullmatch(parts[0]):
            raise ValueError(f"not a line of a history file: {line!r}")
        fork = Fork(int(parts[0]), parse_lsn(parts[1]), parts[2] if len(parts) > 2 else "")
        if forks and fork.timeline <= forks[-1].timeline:
            raise ValueError("the timelines of a history file do not ascend")
        forks.append(fork)
    return forks


_LEAST, _GREATEST = (datetime.replace(edge, tzinfo=UTC) for edge in (datetime.min, datetime.max))


def moment(microseconds: int) -> datetime:
    """A timestamp of PostgreSQL (microseconds from `EPOCH`) as a moment in UTC.

    One that no calendar of ours holds (its years go to 294276) stays at the calendar's end.
    """
    try:
        return EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return _LEAST if microseconds < 0 else _GREATEST


def microseconds(when: datetime) -> int:
    """Inverse of `moment`."""
    return (when - EPOCH) // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """A name that somebody gave to a position: pg_create_restore_point."""

    name: str  # bytes that are no UTF-8 as surrogates, as in the arguments of a program
    lsn: int  # end of its record
    time: datetime


@dataclass(frozen=True, slots=True)
class MadeSpace:
    """A tablespace that was made: its oid, the end of the record that says so, and where it is.

    A location that does not begin with a slash, the empty one, is inside the data directory.
    """

    oid: int
    lsn: int
    location: bytes


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """What a segment holds, found when it was archived. Times are UTC, sizes in bytes.

    `first` is where the first record begins that begins in this segment (None where a record goes
    through all of it), `last` where the last whole record ends: the rest is padding, or begins a
    record that the next segment ends, as long as the segment is `whole`. Commit times need not
    ascend: `first_commit` and `last_commit` are the least and the greatest. Recovery to a time stops
    at the first commit or abort after it: `last_end` is the greatest time of either. `largest` is
    the transaction that wrote most into this segment: (xid, bytes). `forks` are the timelines that
    were left here for the next one. `spaces`: recovery makes them again, at their very places.
    """

    timeline: int
    start: int
    size: int
    first: int | None = None
    last: int | None = None
    first_commit: datetime | None = None
    last_commit: datetime | None = None
    last_end: datetime | None = None
    commits: int = 0
    aborts: int = 0
    largest: tuple[int, int] | None = None
    restore_points: Sequence[RestorePoint] = ()
    forks: Sequence[Fork] = ()
    spaces: Sequence[MadeSpace] = ()
    switched: bool = False  # ended early by a switch: pg_switch_wal, archive_timeout, a backup
    whole: bool = True  # False: the log breaks off before the end; a timeline's end, or damage

    def as_json(self) -> dict[str, Any]:
        """As JSON values; positions and times as text."""
        body: dict[str, Any] = {
            "timeline": self.timeline,
            "start": lsn_text(self.start),
            "size": self.size,
            "first": None if self.first is None else lsn_text(self.first),
            "last": None if self.last is None else lsn_text(self.last),
            "first_commit": _time_text(self.first_commit),
            "last_commit": _time_text(self.last_commit),
            "last_end": _time_text(self.last_end),
            "commits": self.commits,
            "aborts": self.aborts,
            "largest": list(self.largest) if self.largest else None,
            "restore_points": [
                [_name_hex(point.name), lsn_text(point.lsn), point.time.isoformat()]
                for point in self.restore_points
            ],
            "forks": [[fork.timeline, lsn_text(fork.lsn), fork.reason] for fork in self.forks],
            "switched": self.switched,
            "whole": self.whole,
        }
        if self.spaces:
            body["spaces"] = [
                [space.oid, lsn_text(space.lsn), space.location.hex()] for space in self.spaces
            ]
        return body

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> SegmentFacts:
        """Inverse of `as_json`; KeyError, ValueError, TypeError when it is something else."""
        return SegmentFacts(
            timeline=_whole_number(body["timeline"]),
            start=parse_lsn(body["start"]),
            size=_whole_number(body["size"]),
            first=None if body["first"] is None else parse_lsn(body["first"]),
            last=None if body["last"] is None else parse_lsn(body["last"]),
            first_commit=_time(body["first_commit"]),
            last_commit=_time(body["last_commit"]),
            last_end=_time(body["last_end"]),
            commits=_whole_number(body["commits"]),
            aborts=_whole_number(body["aborts"]),
            largest=_pair(body["largest"]),
            restore_points=tuple(
                RestorePoint(_name(name), parse_lsn(lsn), datetime.fromisoformat(time))
                for name, lsn, time in body["restore_points"]
            ),
            forks=tuple(
                Fork(_whole_number(timeline), parse_lsn(lsn), str(reason))
                for timeline, lsn, reason in body["forks"]
            ),
            spaces=tuple(
                MadeSpace(_whole_number(oid), parse_lsn(lsn), bytes.fromhex(location))
                for oid, lsn, location in body.get("spaces", ())
            ),
            switched=bool(body["switched"]),
            whole=bool(body["whole"]),
        )


def _time_text(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _whole_number(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"not a whole number: {value!r}")
    return value


def _pair(value: Sequence[object] | None) -> tuple[int, int] | None:
    if value is None:
        return None
    xid, count = value
    return _whole_number(xid), _whole_number(count)


def _name_hex(name: str) -> str:
    """A name as JSON in UTF-8 can hold it, whatever its bytes are."""
    return name.encode("utf-8", "surrogateescape").hex()


def _name(text: str) -> str:
    return bytes.fromhex(text).decode("utf-8", "surrogateescape")


__all__ = [
    "DEFAULT_SEGMENT_SIZE",
    "EPOCH",
    "Fork",
    "MadeSpace",
    "RestorePoint",
    "SegmentFacts",
    "SegmentName",
    "WalKind",
    "history_name",
    "is_segment_size",
    "kind_of",
    "lsn_text",
    "microseconds",
    "moment",
    "parse_history",
    "parse_lsn",
    "segments",
]
