"""YES or NO to a target, with the transactions around it as the log itself tells them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from strongroom.errors import Damaged, NotFound, ObjectMissing, StrongroomError
from strongroom.format.wal import SegmentName
from strongroom.operations.points import Cluster, without
from strongroom.postgres.recovery.sink import free_at
from strongroom.postgres.wal.records import Commit, commits, scan_segment
from strongroom.rules.recovery import (
    Target,
    Verdict,
    can_restore,
    gap_text,
    lsn_text,
    newest_timeline,
    path_to,
    position_on,
    show,
)
from strongroom.rules.sizes import show_size

_NEAR = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict, and the ends of transactions around the target: the last that is in, and the next
    that is not; `large` those near by that wrote most."""

    verdict: Verdict
    last: Commit | None = None
    next: Commit | None = None
    large: Sequence[Commit] = ()


def answer(cluster: Cluster, target: Target, *, backup: str | None = None) -> Answer:
    """Can it be recovered? A segment that is read for the answer and is damaged counts as missing."""
    while True:
        try:
            return _answer(cluster, target, backup)
        except _Unusable as found:
            cluster = without(cluster, found.name, found.fault.what.rstrip("."))


def _answer(cluster: Cluster, target: Target, backup: str | None) -> Answer:
    if target.kind == "xid" and target.lsn is None:
        target = _find_transaction(cluster, target)
    verdict = can_restore(cluster.bases, cluster.log, target, backup=backup)
    try:
        stop = _stops_before_fork(cluster, verdict)
    except (StrongroomError, ValueError):
        stop = None  # what cannot be read is told below
    if stop is not None:
        target = dataclasses.replace(target, stop=stop)
        verdict = can_restore(cluster.bases, cluster.log, target, backup=backup)
    verdict = dataclasses.replace(verdict, notes=(*cluster.notes, *verdict.notes))
    if not verdict.yes or verdict.around is None or target.kind in {"immediate", "latest"}:
        return Answer(verdict)
    timeline, number = verdict.around
    position = position_on(path_to(cluster.log, timeline), target)
    last: Commit | None = None
    following: Commit | None = None
    near: list[Commit] = []
    try:
        for commit in _around(cluster, timeline, number, unfinished=verdict.unfinished):
            near.append(commit)
            if commit.aborted:
                continue
            if following is None and not _is_in(commit, target, position):
                following = commit
            elif following is None:
                last = commit
    except (StrongroomError, ValueError) as fault:
        why = f"the transactions around it cannot be told: {fault}"
        return Answer(dataclasses.replace(verdict, notes=(*verdict.notes, why)))
    large = [one for one in near if one.bytes >= 1 << 20]
    large.sort(key=lambda one: -one.bytes)
    return Answer(verdict, last, following, large[:3])


class _Unusable(Exception):
    """A segment that recovery would want is damaged."""

    def __init__(self, name: SegmentName, fault: Damaged) -> None:
        super().__init__(str(name))
        self.name, self.fault = name, fault


def room_for(answered: Answer, path: bytes) -> tuple[Answer, int]:
    """The answer when the cluster is to go to a directory, and the free bytes there."""
    verdict, free = answered.verdict, free_at(path)
    size = verdict.base.size if verdict.base is not None else 0
    if size <= free:
        return answered, free
    why = f"there is room for {show_size(free)} where it is to go, and it has {show_size(size)}"
    refused = dataclasses.replace(verdict, yes=False, reasons=(why,), gap=None)
    return Answer(refused), free


def require(answered: Answer, cluster: Cluster) -> Verdict:
    """The verdict, if it is YES; NotFound with its reasons and what is nearest."""
    verdict = answered.verdict
    if verdict.yes:
        return verdict
    what = f"{target_text(verdict.target)} of {cluster.source} cannot be recovered"
    reasons = [reason for reason in verdict.reasons if reason][:3]
    if verdict.gap is not None:
        gap = f"{gap_text(cluster.log, verdict.gap)}: {verdict.gap.reason}"
        if not any(gap in reason for reason in reasons):
            reasons.append(gap)
    raise NotFound(
        f"{what}: {'; '.join(reasons)}.",
        means="Nothing was changed. " + nearest_text(verdict),
        do=f"`strongroom points {cluster.source} --gaps` shows what can be recovered.",
    )


def nearest_text(verdict: Verdict) -> str:
    """What is nearest, in a sentence."""
    found = []
    if verdict.before is not None:
        found.append(f"before it {show(verdict.before)}")
    if verdict.after is not None:
        found.append(f"after it {show(verdict.after)}")
    return f"Nearest {', '.join(found)}." if found else "No other time is near."


def target_text(target: Target) -> str:
    """A target in words."""
    match target.kind:
        case "time":
            assert target.time is not None
            words = f"the state at {show(target.time)}"
        case "lsn":
            words = f"the state at position {lsn_text(target.lsn or 0)}"
        case "xid":
            words = f"the state with transaction {target.xid}"
        case "name":
            words = f"the state at the restore point {target.name!r}"
        case "immediate":
            words = "the state at the end of a backup"
        case _:
            words = "the newest state"
    return words + (f" on timeline {target.timeline}" if target.timeline else "")


def _is_in(commit: Commit, target: Target, position: int | str | None) -> bool:
    """Is a transaction part of the state at the target?"""
    if target.time is not None and target.kind == "time":
        return commit.time < target.time or (commit.time == target.time and not target.exclusive)
    if not isinstance(position, int):
        return True
    if target.kind == "lsn" and not target.exclusive:
        return commit.lsn_start <= position
    return commit.lsn_end <= position and not (
        target.kind == "xid" and target.exclusive and commit.lsn_end == position
    )


def _around(
    cluster: Cluster, timeline: int, number: int, *, unfinished: bool = False
) -> Iterator[Commit]:
    """The ends of transactions in the segment where recovery stops, and those around it."""
    way = path_to(cluster.log, timeline)
    found = []
    for each in range(max(0, number - _NEAR), number + 2):
        if way.there(each) or (unfinished and each == number):
            name = SegmentName(way.timeline_of(each), each, cluster.log.segment_size)
            found.append((name, _get(cluster, name)))
        elif each < number:
            found.clear()
        else:
            break
    return commits(found, aborts=True)


def _stops_before_fork(cluster: Cluster, verdict: Verdict) -> int | None:
    """Where the record begins that recovery to a time or a position stops at, if a timeline is left
    behind it in the same segment; None everywhere else."""
    target, size = verdict.target, cluster.log.segment_size
    if not verdict.yes or verdict.timeline is None or verdict.around is None:
        return None
    way, number = path_to(cluster.log, verdict.timeline), verdict.around[1]
    # A position at a segment's end is met by the first record of the next one.
    at = (number, number + 1) if target.kind == "lsn" else (number,)
    forks = [begins for _, begins in way.pieces[1:] if begins // size in at]
    if not forks or target.kind not in {"time", "lsn"}:
        return None
    if target.kind == "time":
        for commit in _around(cluster, verdict.around[0], number):
            if not _is_in(commit, target, None):
                return commit.lsn_start if commit.lsn_start < forks[-1] else None
        return None
    for fork in forks:
        name = SegmentName(way.timeline_of(fork // size), fork // size, size)
        # Without the 8 bytes before the fork, which are not all padding, the last record there is not
        # whole: it begins where the log then ends.
        cut = memoryview(_get(cluster, name))[: fork - 8 - name.start]
        last = scan_segment(cut, name)[0].last
        if last is not None and target.lsn is not None and target.lsn <= last:
            return max(last, target.lsn)
    return None


def _find_transaction(cluster: Cluster, target: Target) -> Target:
    """Where a transaction ended: read in the log itself, from its end backwards."""
    timeline = target.timeline or newest_timeline(cluster.log, cluster.bases)
    way = path_to(cluster.log, timeline)
    first = min((base.start for base in cluster.bases), default=0) // cluster.log.segment_size
    data: tuple[SegmentName, bytes] | None = None
    for number in sorted((n for n in way.numbers() if n >= first), reverse=True):
        name = SegmentName(way.timeline_of(number), number, cluster.log.segment_size)
        mine = data if data is not None and data[0] == name else (name, _get(cluster, name))
        earlier = SegmentName(way.timeline_of(number - 1), number - 1, cluster.log.segment_size)
        carry = None
        data = None
        if way.there(number - 1):
            data = earlier, _get(cluster, earlier)
            carry = scan_segment(data[1], earlier)[1]
        for commit in commits([mine], carry, aborts=True):
            if commit.xid == target.xid:
                return dataclasses.replace(target, lsn=commit.lsn_end, time=commit.time)
    return target


def _get(cluster: Cluster, name: SegmentName) -> bytes:
    try:
        return cluster.wal(str(name))
    except ObjectMissing:
        raise NotFound(f"The WAL segment {name} went away while it was looked for.") from None
    except Damaged as fault:
        raise _Unusable(name, fault) from None


__all__ = ["Answer", "answer", "nearest_text", "require", "room_for", "target_text"]
