"""How far a source's WAL is archived, and what is amiss with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from strongroom.format.wal import SegmentName, lsn_text
from strongroom.format.walfile import Conflict, Gap, WalFile
from strongroom.repository.repository import Repository
from strongroom.repository.wal import Begun, Timeline, WalStore


@dataclass(frozen=True, slots=True)
class Hole:
    """Log between segments that are here: [start, end). `reason` where it is on record."""

    start: int
    end: int
    reason: str | None = None

    def body(self) -> dict[str, Any]:
        """As JSON values."""
        return {"start": lsn_text(self.start), "end": lsn_text(self.end), "reason": self.reason}


@dataclass(frozen=True, slots=True)
class TimelineStatus:
    """One timeline: [start, end) is what its whole segments span, holes in between included."""

    timeline: int
    segments: int
    start: int
    end: int
    last: str | None
    last_archived: datetime | None
    last_commit: datetime | None
    holes: Sequence[Hole]
    conflicts: Sequence[Conflict]
    partials: Sequence[str]
    received: int  # where the log ends that was received as it was written; 0 where none was

    def body(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "timeline": self.timeline,
            "segments": self.segments,
            "start": lsn_text(self.start),
            "end": lsn_text(self.end),
            "last": self.last,
            "last_archived": _text(self.last_archived),
            "last_commit": _text(self.last_commit),
            "holes": [hole.body() for hole in self.holes],
            "conflicts": [conflict.body() for conflict in self.conflicts],
            "partials": list(self.partials),
            "received": lsn_text(self.received) if self.received else None,
        }


@dataclass(frozen=True, slots=True)
class SystemStatus:
    """One system; `unread` says which objects could not be read, and why."""

    system_id: int
    timelines: Sequence[TimelineStatus]
    unread: dict[str, str]

    @property
    def amiss(self) -> bool:
        """Whether somebody should look at it."""
        return bool(self.unread) or any(one.holes or one.conflicts for one in self.timelines)

    def body(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "system_id": str(self.system_id),
            "timelines": [one.body() for one in self.timelines],
            "unread": self.unread,
        }


def wal_status(repository: Repository, source: str) -> list[SystemStatus]:
    """The systems that a source has been, oldest first; needs no reader's key."""
    store = WalStore(repository)
    found = []
    for system_id in store.systems(source):
        listing = store.listing(system_id)
        timelines = [_timeline(one) for one in listing.timelines.values()]
        unread = {name: fault.what for name, fault in sorted(listing.unread.items())}
        found.append(SystemStatus(system_id, timelines, unread))
    return found


def _timeline(timeline: Timeline) -> TimelineStatus:
    files = list(timeline.segments)
    names = [_name(each) for each in files]
    times = [each.facts.last_commit for each in files if each.facts is not None]
    return TimelineStatus(
        timeline.timeline,
        segments=len(files),
        start=names[0].start if names else 0,
        end=names[-1].end if names else 0,
        last=files[-1].name if files else None,
        last_archived=max((each.archived for each in files), default=None),
        last_commit=max((one for one in times if one is not None), default=None),
        holes=holes(names, timeline.gaps),
        conflicts=timeline.conflicts,
        partials=[each.name for each in timeline.partials],
        received=max((_received(each) for each in timeline.begun), default=0),
    )


def holes(names: Sequence[SegmentName], gaps: Sequence[Gap]) -> list[Hole]:
    """What is missing between segments of one timeline, in order, and gaps that are on record."""
    found = [
        Hole(
            before.end,
            after.start,
            next(
                (gap.reason for gap in gaps if gap.start < after.start and before.end < gap.end),
                None,
            ),
        )
        for before, after in pairwise(names)
        if before.end < after.start
    ]
    covered = [(one.start, one.end) for one in names] + [(one.start, one.end) for one in found]
    found += [
        Hole(gap.start, gap.end, gap.reason)
        for gap in gaps
        if not any(start <= gap.start and gap.end <= end for start, end in covered)
    ]
    return sorted(found, key=lambda hole: hole.start)


def _received(begun: Begun) -> int:
    facts = begun.facts
    return 0 if facts is None else facts.start + begun.end


def _name(file: WalFile) -> SegmentName:
    return SegmentName.parse(file.name, file.facts.size if file.facts else file.size)


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
