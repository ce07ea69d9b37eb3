"""Which moments can be recovered, from which backup, over which log; and why not. PURE.

What PostgreSQL does with a target is what decides here (xlogrecovery.c, recoveryStopsBefore and
recoveryStopsAfter): recovery to a time stops at the first commit or abort that is later, and ends
in an error when the log ends first; one to a position stops at the first record that begins there
or after; and none may stop before the end of the backup that it began with. So a backup is chosen
by its *stop*, and a target needs a record behind it.

A segment in which a timeline was left for another is read from the newer one, which begins with a
copy of it; so is everything after. Positions are ints, times aware, segments counted from the
start of the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Literal, Protocol

_LEAST_RECORD = 24  # bytes: no record is shorter than its header
_LARGE = 64 * 1024 * 1024
_TICK = timedelta(microseconds=1)


class NamedPoint(Protocol):
    """pg_create_restore_point: `lsn` is the end of its record."""

    @property
    def name(self) -> str: ...
    @property
    def lsn(self) -> int: ...
    @property
    def time(self) -> datetime: ...


class Made(Protocol):
    """A tablespace that the log makes; `format.wal.MadeSpace` is one. `lsn`: the end of its record."""

    @property
    def oid(self) -> int: ...
    @property
    def lsn(self) -> int: ...
    @property
    def location(self) -> bytes: ...


class Facts(Protocol):
    """What is known of a segment; `format.wal.SegmentFacts` is one."""

    @property
    def last(self) -> int | None: ...
    @property
    def first_commit(self) -> datetime | None: ...
    @property
    def last_commit(self) -> datetime | None: ...
    @property
    def last_end(self) -> datetime | None: ...
    @property
    def largest(self) -> tuple[int, int] | None: ...
    @property
    def restore_points(self) -> Sequence[NamedPoint]: ...
    @property
    def spaces(self) -> Sequence[Made]: ...
    @property
    def switched(self) -> bool: ...
    @property
    def whole(self) -> bool: ...


class Left(Protocol):
    """A timeline was left for the next one at a position; `format.wal.Fork` is one."""

    @property
    def timeline(self) -> int: ...
    @property
    def lsn(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Base:
    """A physical backup."""

    id: str
    timeline: int
    start: int
    stop: int
    stop_time: datetime
    size: int = 0


@dataclass(frozen=True, slots=True)
class RecordedGap:
    """Log that is nowhere, and why, as it was written down when it was lost."""

    start: int
    end: int
    reason: str


@dataclass(frozen=True, slots=True)
class Held:
    """What is there of one timeline; `segments` by number, None where nothing is known of one.

    `history` is None where the file is not there (timeline 1 has none and needs none). `begun` are
    those of which the beginning alone is there, as it was received: their facts are not `whole`.
    """

    segments: Mapping[int, Facts | None] = field(default_factory=dict)
    history: Sequence[Left] | None = None
    gaps: Sequence[RecordedGap] = ()
    partials: Mapping[int, Facts | None] = field(default_factory=dict)
    begun: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Log:
    """The log of one system."""

    segment_size: int
    timelines: Mapping[int, Held]


@dataclass(frozen=True, slots=True)
class Target:
    """Where recovery is to end. One of the values is set, by `kind`; a transaction is given by the
    position and time of its end, once that was found.

    `timeline` None is the newest. `exclusive` leaves out what happened at the very moment. `stop`:
    where the record begins that recovery to a time or a position stops at, if somebody looked.
    """

    kind: Literal["time", "lsn", "xid", "name", "immediate", "latest"]
    time: datetime | None = None
    lsn: int | None = None
    xid: int | None = None
    name: str | None = None
    timeline: int | None = None
    exclusive: bool = False
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive segments of one timeline, first and last included."""

    timeline: int
    first: int
    last: int

    @property
    def count(self) -> int:
        """How many."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Gap:
    """Segments of a timeline that are not there; `last` None: nor is anything after them."""

    timeline: int
    first: int
    last: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a timeline every moment of which can be recovered.

    From the stop of `base`, or from where the timeline begins if that is later, up to `until`: the
    last commit. A time can be given that is before `last_target`; `ends` says what comes then.
    """

    timeline: int
    base: str
    bases: int
    start: int
    start_time: datetime
    end: int
    until: datetime
    last_target: datetime | None
    ends: Gap


@dataclass(frozen=True, slots=True)
class Points:
    """Everything that can be recovered, and what cannot."""

    windows: Sequence[Window]
    gaps: Sequence[Gap]
    named: Sequence[tuple[int, NamedPoint]]  # with its timeline, oldest first
    bad: Mapping[str, str]  # backups that cannot be recovered by themselves, and why
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Can it be recovered? With the reasons; of a NO, what is nearest on both sides.

    `timeline` is what PostgreSQL is told (None: the backup's own). `around` is the segment in which
    recovery stops, `large` transactions with much log there or next to it: xid, bytes. `unfinished`:
    of the last segment its beginning alone is there, as a `.partial` or as it was received.
    `spaces` are tablespaces outside of the data directory that recovery makes again, at the very
    places that they had (those of the last segment may lie behind the target).
    """

    yes: bool
    target: Target
    reasons: Sequence[str]
    base: Base | None = None
    timeline: int | None = None
    runs: Sequence[Run] = ()
    around: tuple[int, int] | None = None  # timeline, segment
    large: Sequence[tuple[int, int]] = ()
    gap: Gap | None = None
    before: datetime | None = None  # the last moment before the target that can be recovered
    after: datetime | None = None
    spaces: Sequence[Made] = ()
    notes: Sequence[str] = ()
    unfinished: bool = False

    @property
    def segments(self) -> int:
        """How many are replayed."""
        return sum(run.count for run in self.runs)


class _Path:
    """A timeline with those that it comes from: (timeline, where it begins), oldest first."""

    def __init__(self, log: Log, timeline: int, pieces: Sequence[tuple[int, int]]) -> None:
        self.log, self.timeline, self.pieces = log, timeline, pieces
        self._reach: dict[int, int] | None = None

    def timeline_of(self, number: int) -> int:
        """Whose file PostgreSQL reads for a segment."""
        found = self.pieces[0][0]
        for timeline, begins in self.pieces:
            if begins // self.log.segment_size <= number:
                found = timeline
        return found

    def left_at(self, timeline: int) -> int | None:
        """Where a timeline on the way is left; None for the last one."""
        for (one, _), (_, begins) in pairwise(self.pieces):
            if one == timeline:
                return begins
        return None

    def holds(self, timeline: int) -> bool:
        """Is a timeline on the way?"""
        return any(one == timeline for one, _ in self.pieces)

    def there(self, number: int) -> bool:
        """Is a segment in the repository?"""
        held = self.log.timelines.get(self.timeline_of(number))
        return held is not None and number in held.segments

    def begun(self, number: int) -> bool:
        """Is the beginning of a segment all that is there of it?"""
        held = self.log.timelines.get(self.timeline_of(number))
        return held is not None and number in held.begun

    def facts(self, number: int) -> Facts | None:
        """What is known of a segment."""
        held = self.log.timelines.get(self.timeline_of(number))
        return None if held is None else held.segments.get(number)

    def last_there(self, number: int) -> int:
        """The last of the consecutive segments from one that is there; `number` - 1 if it is not."""
        if self._reach is None:
            self._reach = {}
            for each in reversed(self.numbers()):
                self._reach[each] = each if self._breaks(each) else self._reach.get(each + 1, each)
        return self._reach.get(number, number - 1)

    def _breaks(self, number: int) -> bool:
        """Does the log break off inside a segment?"""
        facts = self.facts(number)
        return facts is not None and not facts.whole

    def numbers(self) -> list[int]:
        """Every segment of the way that is there, ascending."""
        found: set[int] = set()
        for timeline, _ in self.pieces:
            held = self.log.timelines.get(timeline)
            if held is not None:
                found.update(n for n in held.segments if self.timeline_of(n) == timeline)
        return sorted(found)

    def runs(self, first: int, last: int) -> list[Run]:
        """Segments as they are asked for."""
        runs: list[Run] = []
        for number in range(first, last + 1):
            timeline = self.timeline_of(number)
            if runs and runs[-1].timeline == timeline:
                runs[-1] = Run(timeline, runs[-1].first, number)
            else:
                runs.append(Run(timeline, number, number))
        return runs

    def gap_after(self, last: int) -> Gap:
        """What is missing after a segment, and why."""
        first = last + 1
        timeline = self.timeline_of(first)
        if self.begun(first):
            return Gap(timeline, first, first, "only the beginning of the segment was received")
        if self.there(first):
            why = "the log breaks off inside the segment before it"
            return Gap(timeline, first, first, why)
        later = [number for number in self.numbers() if number > last]
        end = later[0] - 1 if later else None
        return Gap(timeline, first, end, self._reason(timeline, first, end))

    def _reason(self, timeline: int, first: int, last: int | None) -> str:
        held, size = self.log.timelines.get(timeline, Held()), self.log.segment_size
        until = (first if last is None else last) + 1
        for gap in held.gaps:
            if gap.start < until * size and gap.end > first * size:
                return gap.reason
        if first in held.partials:
            return "only the unfinished .partial of the segment is there"
        if last is None:
            return "no later log is in the repository"
        return "not in the repository; nobody wrote down why"


def path_to(log: Log, timeline: int) -> _Path:
    """The way to a timeline, as its history says; only itself where that is not there."""
    held = log.timelines.get(timeline)
    forks = list(held.history or ()) if held is not None else []
    pieces = []
    begins = 0
    for fork in forks:
        pieces.append((fork.timeline, begins))
        begins = fork.lsn
    return _Path(log, timeline, (*pieces, (timeline, begins)))


def newest_timeline(log: Log, bases: Sequence[Base] = ()) -> int:
    """The one with the greatest number, as PostgreSQL takes for "latest"."""
    return max([1, *log.timelines, *(base.timeline for base in bases)])


def fault_of_base(log: Log, base: Base) -> Gap | None:
    """What a backup lacks to be recovered at all: log from its start to its stop (trap 22)."""
    way = _Path(log, base.timeline, ((base.timeline, 0),))
    first, last = base.start // log.segment_size, max(base.stop - 1, 0) // log.segment_size
    for number in range(first, last + 1):
        if not way.there(number) or (way.begun(number) and _end(way, number) < base.stop):
            return way.gap_after(number - 1)
    return None


# -- points ------------------------------------------------------------------------------------


def points(bases: Sequence[Base], log: Log) -> Points:
    """Say what can be recovered, on every timeline."""
    bad = {}
    for base in bases:
        if (gap := fault_of_base(log, base)) is not None:
            bad[base.id] = f"{gap_text(log, gap)}: {gap.reason}"
    good = [base for base in bases if base.id not in bad]
    timelines = sorted({*log.timelines, *(base.timeline for base in bases)})
    windows: list[Window] = []
    gaps: list[Gap] = []
    named: list[tuple[int, NamedPoint]] = []
    notes: list[str] = []
    for timeline in timelines:
        way = path_to(log, timeline)
        held = log.timelines.get(timeline, Held())
        if timeline > 1 and held.history is None:
            notes.append(
                f"the history file of timeline {timeline} is not in the repository: it can be"
                " recovered from backups of its own only"
            )
        windows += _windows(way, good, way.pieces[-1][1])
        gaps += _gaps(way)
        named += [
            (timeline, point)
            for _, facts in sorted(held.segments.items())
            if facts is not None
            for point in facts.restore_points
            if point.lsn > way.pieces[-1][1]
        ]
    return Points(windows, gaps, named, bad, notes)


def _windows(way: _Path, good: Sequence[Base], begins: int) -> list[Window]:
    """The windows of a way from where `begins` says: each backup's reach, joined where they meet."""
    reached: dict[int, list[Base]] = {}
    for base in sorted(good, key=lambda base: base.stop):
        if _why_not_from(way, base) is None:
            last = way.last_there(base.start // way.log.segment_size)
            reached.setdefault(last, []).append(base)
    windows = []
    for last, bases in sorted(reached.items()):
        base = bases[0]
        end = _end(way, last)
        if end <= begins or (begins and way.timeline_of(last) != way.timeline):
            continue
        start = max(base.stop, begins)
        ends = _last_end(way, start, last)
        commit = _last_commit(way, start, last)
        since = max(base.stop_time, _last_end_within(way, base) or base.stop_time)
        if begins > base.stop:
            since = max(
                since, _last_commit(way, base.stop, begins // way.log.segment_size - 1) or since
            )
        until = max(since, commit or since)
        target = None if ends is None or ends - _TICK < since else ends - _TICK
        gap = way.gap_after(last)
        windows.append(
            Window(way.timeline, base.id, len(bases), start, since, end, until, target, gap)
        )
    return windows


def _gaps(way: _Path) -> list[Gap]:
    """What is missing between segments of a timeline's own stretch."""
    size, begins = way.log.segment_size, way.pieces[-1][1]
    held = way.log.timelines.get(way.timeline, Held())
    numbers = sorted(number for number in held.segments if number >= begins // size)
    found = []
    if begins and numbers and numbers[0] != begins // size:
        found.append(way.gap_after(begins // size - 1))
    for one, other in pairwise(numbers):
        if other != one + 1:
            found.append(way.gap_after(one))
    return found


def _end(way: _Path, last: int) -> int:
    """Where the last whole record of a segment ends, as far as that is known."""
    facts = way.facts(last)
    if facts is None or facts.switched or facts.last is None:
        return (last + 1) * way.log.segment_size
    return facts.last


def _last_end(way: _Path, start: int, last: int) -> datetime | None:
    """The greatest time of a commit or abort from `start` on: the last time to recover to."""
    times = [
        facts.last_end
        for number in range(start // way.log.segment_size, last + 1)
        if (facts := way.facts(number)) is not None and facts.last_end is not None
    ]
    return max(times, default=None)


def _last_end_within(way: _Path, base: Base) -> datetime | None:
    """The same in the log of a backup itself: later than its stop where the clock was set back."""
    return _last_end(way, base.start, base.stop // way.log.segment_size - 1)


def _last_commit(way: _Path, start: int, last: int) -> datetime | None:
    times = [
        facts.last_commit
        for number in range(start // way.log.segment_size, last + 1)
        if (facts := way.facts(number)) is not None and facts.last_commit is not None
    ]
    return max(times, default=None)


def _why_not_from(way: _Path, base: Base) -> str | None:
    """Why a way cannot begin with a backup (trap 49); None when it can."""
    if not way.holds(base.timeline):
        return (
            f"it is of timeline {base.timeline}, which timeline {way.timeline} does not come from"
        )
    left = way.left_at(base.timeline)
    if left is not None and base.stop > left:
        return (
            f"it ended at {lsn_text(base.stop)} of timeline {base.timeline}, which timeline"
            f" {way.timeline} had left at {lsn_text(left)}"
        )
    return None


# -- can it be recovered? ----------------------------------------------------------------------


def can_restore(
    bases: Sequence[Base], log: Log, target: Target, *, backup: str | None = None
) -> Verdict:
    """Can this be recovered? `backup` is the one to begin with, if it matters."""
    wanted = [base for base in bases if backup in (None, base.id)]
    wanted.sort(key=lambda base: (base.stop_time, base.stop), reverse=True)
    if not wanted:
        return Verdict(False, target, ("there is no backup to begin with",))
    if target.kind == "immediate":
        return _immediate(wanted, log, target)
    timeline = target.timeline or newest_timeline(log, bases)
    known = {*log.timelines, *(base.timeline for base in bases)}
    if timeline not in known:
        have = ", ".join(map(str, sorted(known)))
        return Verdict(
            False, target, (f"nothing is known of timeline {timeline}; there are {have}",)
        )
    way = path_to(log, timeline)
    verdict = _on_older(way, target, _on(way, wanted, target))
    notes = (*verdict.notes, *_elsewhere(bases, log, target, timeline))
    return _with(verdict, bases, log, notes)


def _immediate(wanted: Sequence[Base], log: Log, target: Target) -> Verdict:
    """The end of a backup, and no further: on its own timeline."""
    reasons = []
    for base in wanted:
        if target.timeline not in (None, base.timeline):
            reasons.append(f"backup {_id(base)}: it is of timeline {base.timeline}")
            continue
        gap = fault_of_base(log, base)
        if gap is None:
            first, last = _span(log, base)
            return Verdict(
                True,
                target,
                (f"backup {_id(base)} with its own log, up to {lsn_text(base.stop)}",),
                base,
                None,
                [Run(base.timeline, first, last)],
                (base.timeline, last),
            )
        reasons.append(f"backup {_id(base)} is not whole: {gap_text(log, gap)}: {gap.reason}")
    return Verdict(False, target, reasons)


def _span(log: Log, base: Base) -> tuple[int, int]:
    return base.start // log.segment_size, max(base.stop - 1, 0) // log.segment_size


def _on(way: _Path, wanted: Sequence[Base], target: Target) -> Verdict:
    """Try the backups on one timeline, the nearest before the target first."""
    reasons: list[str] = []
    first_gap: Gap | None = None
    position = position_on(way, target)
    if isinstance(position, str):
        return Verdict(False, target, (position,))
    for base in wanted:
        why = _why_not_from(way, base)
        if why is None:
            why = _too_late(base, target, position)
        if why is not None:
            reasons.append(f"backup {_id(base)}: {why}")
            continue
        first, stop = _span(way.log, base)
        last = way.last_there(first)
        if last < stop or (last == stop and way.begun(last) and _end(way, last) < base.stop):
            last = min(last, stop - 1)
            gap = way.gap_after(max(last, first - 1))
            first_gap = first_gap or gap
            reasons.append(
                f"backup {_id(base)} is not whole: {gap_text(way.log, gap)}: {gap.reason}"
            )
            continue
        found = _stops(way, base, last, target, position)
        if isinstance(found, int):
            return _yes(way, base, found, target)
        gap = way.gap_after(last)
        first_gap = first_gap or gap
        reasons.append(f"backup {_id(base)}: {found}")
    return Verdict(False, target, tuple(reasons), timeline=way.timeline, gap=first_gap)


def _on_older(way: _Path, target: Target, found: Verdict) -> Verdict:
    """The same point on the timeline that it lies on, where its log is there.

    The segment of a fork is read from the newer timeline. Where recovery stops in it before the
    fork, PostgreSQL looks in the older one's file for what a transaction prepared there wrote, and
    does not start. What is replayed is the same.
    """
    end = position_on(way, target) if target.kind in {"xid", "name"} else None
    if target.stop is not None:
        end = target.stop + 1
    if not found.yes or found.base is None or not isinstance(end, int):
        return found
    for (timeline, _), (_, left) in pairwise(way.pieces):
        if end <= left:
            number = (end - 1) // way.log.segment_size
            older = path_to(way.log, timeline)
            if way.timeline_of(number) == timeline or _why_not_from(older, found.base) is not None:
                return found
            first = found.base.start // way.log.segment_size
            held = way.log.timelines.get(timeline, Held())
            whole = number in held.segments and number not in held.begun
            begun = held.segments.get(number), held.partials.get(number)
            if all(older.there(each) for each in range(first, number)) and (
                whole or any(_reaches(facts, end) for facts in begun)
            ):
                return replace(_yes(older, found.base, number, target), unfinished=not whole)
            return found
    return found


def _reaches(facts: Facts | None, end: int) -> bool:
    """Does an unfinished segment hold the record that ends, or begins, there?"""
    return facts is not None and facts.last is not None and facts.last >= end


def position_on(way: _Path, target: Target) -> int | str | None:
    """The position of a target that has one; None for a time or the end; why there is none."""
    if target.kind in {"lsn", "xid"}:
        if target.lsn is None:
            return f"transaction {target.xid} did not end in the log that is there"
        return target.lsn
    if target.kind != "name":
        return None
    found = {
        point.lsn
        for number in way.numbers()
        if (facts := way.facts(number)) is not None
        for point in facts.restore_points
        if point.name == target.name
    }
    if len(found) == 1:
        return found.pop()
    if found:
        places = ", ".join(lsn_text(lsn) for lsn in sorted(found))
        return (
            f"{len(found)} restore points are called {target.name!r}: choose one by --lsn {places}"
        )
    return f"no restore point is called {target.name!r} on timeline {way.timeline}"


def _too_late(base: Base, target: Target, position: int | None) -> str | None:
    """Why a backup ended too late for a target (trap 46)."""
    if position is not None and position < base.stop:
        return f"it ended at {lsn_text(base.stop)}, after the target"
    if target.kind == "time" and target.time is not None and base.stop_time > target.time:
        return f"it ended at {show(base.stop_time)}, after the target"
    return None


def _stops(way: _Path, base: Base, last: int, target: Target, position: int | None) -> int | str:
    """The segment in which recovery from a backup stops, or why it does not."""
    size = way.log.segment_size
    if target.kind == "latest":
        gap = way.gap_after(last)
        if gap.last is None:
            return last
        return f"{gap_text(way.log, gap)}, and there is later log: {gap.reason}"
    end = _end(way, last)
    if position is not None:
        at_end = target.kind == "lsn"  # a record must begin there; of the others it ends there
        limit = end - _LEAST_RECORD if at_end else end
        if position > limit:
            return f"its log ends at {lsn_text(end)}, before {lsn_text(position)}"
        return max(position - (0 if at_end else 1), 0) // size
    assert target.time is not None
    unknown = 0
    within = _last_end_within(way, base)
    if within is not None and within > target.time:
        return (
            f"PostgreSQL would stop before its end: a transaction in it ended at"
            f" {show(within)}, and the clock was set back since"
        )
    for number in range(base.stop // size, last + 1):
        facts = way.facts(number)
        if facts is None:
            unknown += 1
        elif facts.last_end is not None and (
            facts.last_end > target.time or (target.exclusive and facts.last_end >= target.time)
        ):
            return number
    found = _last_end(way, base.stop, last)
    if found is None:
        why = "no transaction ended in its log after it"
    else:
        why = f"the last transaction of its log ended at {show(found)}, not after the target"
    if unknown:
        why += f"; nothing is known of {unknown} of its segments"
    return why


def _yes(way: _Path, base: Base, last: int, target: Target) -> Verdict:
    first, stop = _span(way.log, base)
    last = max(last, stop)
    large: dict[int, int] = {}
    for number in range(max(first, last - 1), last + 2):
        facts = way.facts(number)
        if facts is not None and facts.largest is not None and facts.largest[1] >= _large(way.log):
            xid, size = facts.largest
            large[xid] = large.get(xid, 0) + size
    notes = []
    held = way.log.timelines.get(way.timeline)
    told: int | None = way.timeline
    if way.timeline > 1 and (held is None or held.history is None):
        told = None  # PostgreSQL refuses a timeline by number whose history it does not find
        notes.append(f"the history file of timeline {way.timeline} is not in the repository")
    spaces = _spaces(way, base, last)
    notes += [
        f"recovery makes tablespace {space.oid}, which the backup has not, where it was made:"
        f" {space.location.decode('utf-8', 'backslashreplace')!r}"
        for space in spaces
    ]
    runs = way.runs(first, last)
    chain = " → ".join(str(run.timeline) for run in runs)
    reasons = [
        f"backup {_id(base)} ended at {show(base.stop_time)}, {lsn_text(base.stop)}",
        f"{sum(run.count for run in runs)} segments of log from there are in the repository"
        f" (timeline {chain})",
    ]
    return Verdict(
        True,
        target,
        tuple(reasons),
        base,
        told,
        runs,
        (way.timeline_of(last), last),
        tuple(sorted(large.items(), key=lambda row: -row[1])),
        spaces=spaces,
        notes=tuple(notes),
        unfinished=way.begun(last),
    )


def _spaces(way: _Path, base: Base, last: int) -> tuple[Made, ...]:
    """Tablespaces that are made again on the way; those in the data directory need no place."""
    return tuple(
        space
        for number in range(base.start // way.log.segment_size, last + 1)
        if (facts := way.facts(number)) is not None
        for space in facts.spaces
        if space.lsn > base.start and space.location.startswith(b"/")
    )


def _large(log: Log) -> int:
    return min(_LARGE, log.segment_size // 2)


def _elsewhere(bases: Sequence[Base], log: Log, target: Target, timeline: int) -> list[str]:
    """The same moment on timelines that this one does not come from: after an accidental promotion
    the other one is often meant (trap 49)."""
    if target.kind != "time" or target.timeline is not None or target.time is None:
        return []
    found = []
    way = path_to(log, timeline)
    for other in sorted({*log.timelines, *(base.timeline for base in bases)} - {timeline}):
        left = way.left_at(other)
        that = path_to(log, other)
        verdict = _on(that, sorted(bases, key=lambda base: base.stop, reverse=True), target)
        if not verdict.yes or verdict.around is None or verdict.around[0] != other:
            continue
        if left is None or verdict.around[1] > left // log.segment_size:
            found.append(
                f"timeline {other} holds this moment too, in another history: --timeline {other}"
            )
    return found


def _with(verdict: Verdict, bases: Sequence[Base], log: Log, notes: Sequence[str]) -> Verdict:
    """A verdict with its notes, and of a NO the nearest times."""
    before = after = None
    if not verdict.yes and verdict.target.kind == "time" and verdict.target.time is not None:
        way = path_to(log, verdict.timeline or newest_timeline(log, bases))
        good = [base for base in bases if fault_of_base(log, base) is None]
        before, after = nearest(_windows(way, good, 0), verdict.target.time)
    return replace(verdict, before=before, after=after, notes=tuple(notes))


def nearest(windows: Sequence[Window], moment: datetime) -> tuple[datetime | None, datetime | None]:
    """The last moment not after one, and the first not before it, that can be recovered."""
    before = [
        min(window.last_target or window.start_time, moment)
        for window in windows
        if window.last_target is not None and window.start_time <= moment
    ]
    after = [
        max(window.start_time, moment)
        for window in windows
        if window.last_target is not None and window.last_target >= moment
    ]
    return max(before, default=None), min(after, default=None)


# -- words -------------------------------------------------------------------------------------


def segment_text(log: Log, timeline: int, number: int) -> str:
    """The name of a segment's file."""
    high, low = divmod(number, (1 << 32) // log.segment_size)
    return f"{timeline:08X}{high:08X}{low:08X}"


def gap_text(log: Log, gap: Gap) -> str:
    """Name what is missing."""
    first = segment_text(log, gap.timeline, gap.first)
    if gap.last is None:
        return f"{first} and what follows is missing"
    if gap.last == gap.first:
        return f"{first} is missing"
    last = segment_text(log, gap.timeline, gap.last)
    return f"{first} to {last} are missing ({gap.last - gap.first + 1} segments)"


def lsn_text(lsn: int) -> str:
    """A position as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def show(moment: datetime) -> str:
    """A moment in UTC to the microsecond, as far as it has any."""
    offset = moment.utcoffset()
    assert offset is not None
    return (moment - offset).replace(tzinfo=None).isoformat(sep="T") + "Z"


def _id(base: Base) -> str:
    return base.id[:12]


__all__ = [
    "Base",
    "Gap",
    "Held",
    "Log",
    "Points",
    "RecordedGap",
    "Run",
    "Target",
    "Verdict",
    "Window",
    "can_restore",
    "fault_of_base",
    "gap_text",
    "lsn_text",
    "nearest",
    "newest_timeline",
    "path_to",
    "points",
    "position_on",
    "segment_text",
    "show",
]
