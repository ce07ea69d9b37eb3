"""Which moments can be recovered: tables, the words of verdicts, and a model of recovery itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.format.wal import MadeSpace
from strongroom.rules.recovery import (
    Base,
    Gap,
    Held,
    Log,
    RecordedGap,
    Run,
    Target,
    Verdict,
    can_restore,
    fault_of_base,
    gap_text,
    points,
)

SIZE = 1 << 20
DAY = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return DAY + timedelta(minutes=minutes)


@dataclass(frozen=True)
class Point:
    name: str
    lsn: int
    time: datetime


@dataclass(frozen=True)
class Facts:
    """A segment whose transactions ended between two minutes of the day."""

    last: int | None = None
    first_commit: datetime | None = None
    last_commit: datetime | None = None
    last_end: datetime | None = None
    largest: tuple[int, int] | None = None
    restore_points: tuple[Point, ...] = ()
    spaces: tuple[MadeSpace, ...] = ()
    switched: bool = True
    whole: bool = True


def segment(first: float | None = None, last: float | None = None, **more: object) -> Facts:
    if first is None:
        return Facts(**more)  # type: ignore[arg-type]
    end = first if last is None else last
    return Facts(None, at(first), at(end), at(end), **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Fork:
    timeline: int
    lsn: int


def base(name: str, number: float, minutes: float, timeline: int = 1) -> Base:
    """A backup that began and stopped in one segment."""
    start = int(number * SIZE) + 40
    return Base(name, timeline, start, start + 200, at(minutes))


def one_line(numbers: range, lost: set[int] = frozenset(), **held: object) -> Log:  # type: ignore[assignment]
    """Timeline 1; segment n has a commit in minute n."""
    found = {number: segment(number) for number in numbers if number not in lost}
    return Log(SIZE, {1: Held(found, **held)})  # type: ignore[arg-type]


def forked() -> Log:
    """Timeline 1 has segments 1 to 9 and went on by itself; 2 left it in the middle of 5."""
    first = {number: segment(number) for number in range(1, 10)}
    second = {number: segment(number + 0.5) for number in range(5, 9)}
    fork = [Fork(1, 5 * SIZE + 5000)]
    return Log(SIZE, {1: Held(first), 2: Held(second, history=fork)})


def time(minutes: float, **more: object) -> Target:
    return Target("time", time=at(minutes), **more)  # type: ignore[arg-type]


def text(verdict: Verdict) -> list[str]:
    """A verdict as its reader sees it: these lines are golden."""
    lines = ["YES" if verdict.yes else "NO", *verdict.reasons]
    lines += [f"note: {note}" for note in verdict.notes]
    for word, moment in (("before", verdict.before), ("after", verdict.after)):
        if moment is not None:
            lines.append(f"{word}: {moment:%H:%M:%S.%f}")
    return lines


# -- the choice of a backup --------------------------------------------------------------------


def test_trap_46_a_backup_is_chosen_by_its_stop() -> None:
    early, late = base("early", 1.1, 1), Base("late", 1, 2 * SIZE, 5 * SIZE, at(5))
    log = one_line(range(1, 10))
    # The later one began before minute 3, but it ended after it.
    assert can_restore([early, late], log, time(3)).base == early
    assert can_restore([early, late], log, time(5)).base == late
    lsn = Target("lsn", lsn=4 * SIZE)
    assert can_restore([early, late], log, lsn).base == early
    assert can_restore([late], log, lsn).reasons == (
        "backup late: it ended at 0/500000, after the target",
    )


def test_trap_46_never_a_backup_that_does_not_fit() -> None:
    verdict = can_restore([base("only", 3.1, 3)], one_line(range(1, 10)), time(2))
    assert text(verdict) == [
        "NO",
        "backup only: it ended at 2026-11-23T02:03:00Z, after the target",
        "after: 02:03:00.000000",
    ]


def test_a_backup_during_which_the_clock_was_set_back_begins_its_window_late() -> None:
    """Its own log has a transaction that ended after its stop: recovery to before that ends in it."""
    log = Log(SIZE, {1: Held({7: segment(7), 8: segment(9), 9: segment(6), 10: segment(11)})})
    bases = [Base("back", 1, 7 * SIZE, 9 * SIZE + 8, at(5.5))]
    refused = can_restore(bases, log, time(8))
    assert not refused.yes and "the clock was set back since" in refused.reasons[0]
    assert refused.after == at(9)
    assert can_restore(bases, log, time(9)).yes
    (window,) = points(bases, log).windows
    assert window.start_time == at(9)


def test_trap_47_beyond_the_last_commit() -> None:
    verdict = can_restore([base("a", 1.1, 1)], one_line(range(1, 6)), time(5))
    assert text(verdict) == [
        "NO",
        "backup a: the last transaction of its log ended at 2026-11-23T02:05:00Z, not after the"
        " target",
        "before: 02:04:59.999999",
    ]
    assert can_restore([base("a", 1.1, 1)], one_line(range(1, 6)), time(4.999)).yes
    assert can_restore([base("a", 1.1, 1)], one_line(range(1, 6)), time(5, exclusive=True)).yes
    assert can_restore([base("a", 1.1, 1)], one_line(range(1, 6)), Target("latest")).yes


def test_trap_22_a_backup_without_its_own_log_is_none() -> None:
    whole, torn = base("whole", 1.1, 1), Base("torn", 1, 3 * SIZE, 6 * SIZE, at(6))
    log = one_line(range(1, 10), {4})
    gap = fault_of_base(log, torn)
    assert gap is not None
    assert (gap.first, gap.last) == (4, 4)
    assert text(can_restore([whole, torn], log, time(7))) == [
        "NO",
        "backup torn is not whole: 000000010000000000000004 is missing: not in the repository;"
        " nobody wrote down why",
        "backup whole: the last transaction of its log ended at 2026-11-23T02:03:00Z, not after"
        " the target",
        "before: 02:02:59.999999",
    ]
    assert can_restore([whole, torn], log, time(2.5)).base == whole


def test_trap_49_immediate_stays_on_the_timeline_of_the_backup() -> None:
    verdict = can_restore([base("a", 1.1, 1)], forked(), Target("immediate"))
    assert verdict.yes
    assert verdict.timeline is None
    assert verdict.runs == [Run(1, 1, 1)]


def test_trap_49_a_backup_that_ended_after_the_fork_is_of_another_history() -> None:
    before, after = base("before", 3.1, 3), base("after", 7.1, 7)
    verdict = can_restore([before, after], forked(), time(8.2))
    assert verdict.base == before
    assert verdict.timeline == 2
    assert text(can_restore([after], forked(), time(8.2))) == [
        "NO",
        "backup after: it ended at 0/719A89 of timeline 1, which timeline 2 had left at 0/501388",
        "note: timeline 1 holds this moment too, in another history: --timeline 1",
    ]


def test_segments_after_a_fork_are_those_of_the_new_timeline() -> None:
    """The one in which the fork lies too: the new one begins with a copy of the old one."""
    verdict = can_restore([base("a", 3.1, 3)], forked(), time(7.2))
    assert verdict.runs == [Run(1, 3, 4), Run(2, 5, 7)]
    assert verdict.segments == 5
    old = can_restore([base("a", 3.1, 3)], forked(), time(7.2, timeline=1))
    assert old.runs == [Run(1, 3, 8)]
    assert old.timeline == 1


FORK = 5 * SIZE + 5000


@pytest.mark.parametrize(
    ("target", "told", "read_of"),
    [
        (Target("xid", xid=7, lsn=FORK), 1, [Run(1, 3, 5)]),
        (Target("xid", xid=7, lsn=FORK - 100), 1, [Run(1, 3, 5)]),
        (Target("xid", xid=7, lsn=FORK + 8), 2, [Run(1, 3, 4), Run(2, 5, 5)]),
        (Target("xid", xid=7, lsn=5 * SIZE), 2, [Run(1, 3, 4)]),  # 1's own segment in any case
        (Target("lsn", lsn=FORK - 100), 2, [Run(1, 3, 4), Run(2, 5, 5)]),
        (Target("lsn", lsn=FORK - 100, stop=FORK - 100), 1, [Run(1, 3, 5)]),
        (Target("lsn", lsn=FORK - 8, stop=FORK), 2, [Run(1, 3, 4), Run(2, 5, 5)]),
        (Target("time", time=at(5.2)), 2, [Run(1, 3, 4), Run(2, 5, 5)]),
        (Target("time", time=at(5.2), stop=FORK - 64), 1, [Run(1, 3, 5)]),
    ],
)
def test_a_point_just_before_a_fork_is_recovered_on_its_own_timeline(
    target: Target, told: int, read_of: list[Run]
) -> None:
    verdict = can_restore([base("a", 3.1, 3)], forked(), target)
    assert (verdict.timeline, verdict.runs) == (told, read_of)


def test_the_newer_timeline_serves_where_the_older_one_lacks_the_segment_of_the_fork() -> None:
    log = forked()
    del log.timelines[1].segments[5]  # type: ignore[attr-defined]
    verdict = can_restore([base("a", 3.1, 3)], log, Target("xid", xid=7, lsn=FORK))
    assert (verdict.timeline, verdict.runs) == (2, [Run(1, 3, 4), Run(2, 5, 5)])
    partials = log.timelines[1].partials
    partials[5] = Facts(FORK - 24)  # type: ignore[index]
    assert can_restore([base("a", 3.1, 3)], log, Target("xid", xid=7, lsn=FORK)).timeline == 2
    partials[5] = Facts(FORK)  # type: ignore[index]
    verdict = can_restore([base("a", 3.1, 3)], log, Target("xid", xid=7, lsn=FORK))
    assert (verdict.timeline, verdict.unfinished) == (1, True)
    assert verdict.runs == [Run(1, 3, 5)]


def test_a_timeline_without_its_history_is_recovered_from_its_own_backups() -> None:
    log = Log(SIZE, {3: Held({n: segment(n) for n in range(5, 9)})})
    own, older = base("own", 5.1, 5, timeline=3), base("older", 1.1, 1)
    verdict = can_restore([own, older], log, time(7.5))
    assert verdict.base == own
    assert verdict.timeline is None  # PostgreSQL would not find it by number
    assert not can_restore([older], log, time(7.5)).yes


def test_a_gap_is_named_with_its_reason_and_both_sides() -> None:
    lost = RecordedGap(4 * SIZE, 6 * SIZE, "the slot was lost")
    log = one_line(range(1, 12), {4, 5}, gaps=(lost,))
    bases = [base("old", 1.1, 1), base("new", 8.1, 8)]
    verdict = can_restore(bases, log, time(5.5))
    assert verdict.gap == Gap(1, 4, 5, "the slot was lost")
    assert gap_text(log, verdict.gap) == (
        "000000010000000000000004 to 000000010000000000000005 are missing (2 segments)"
    )
    assert verdict.before == at(3) - timedelta(microseconds=1)
    assert verdict.after == at(8)
    assert can_restore(bases, log, time(9.5)).yes
    found = points(bases, log)
    assert [(w.base, w.start_time, w.until) for w in found.windows] == [
        ("old", at(1), at(3)),
        ("new", at(8), at(11)),
    ]
    assert found.gaps == [Gap(1, 4, 5, "the slot was lost")]


def test_the_newest_state_behind_a_gap_is_not_called_the_latest() -> None:
    log = one_line(range(1, 12), {4})
    assert not can_restore([base("old", 1.1, 1)], log, Target("latest")).yes


def test_a_partial_is_said_to_be_one() -> None:
    log = one_line(range(1, 4), partials={4: None})
    gap = points([base("a", 1.1, 1)], log).windows[0].ends
    assert gap.reason == "only the unfinished .partial of the segment is there"


def test_restore_points_are_found_by_name() -> None:
    facts = segment(3, restore_points=(Point("before-upgrade", 3 * SIZE + 900, at(3)),))
    twice = segment(5, restore_points=(Point("before-upgrade", 5 * SIZE + 900, at(5)),))
    log = Log(SIZE, {1: Held({1: segment(1), 2: segment(2), 3: facts, 4: segment(4)})})
    bases = [base("a", 1.1, 1), base("b", 4.1, 4)]
    verdict = can_restore(bases, log, Target("name", name="before-upgrade"))
    assert verdict.base == bases[0]
    assert verdict.around == (1, 3)
    assert [point.name for _, point in points(bases, log).named] == ["before-upgrade"]
    missing = can_restore(bases, log, Target("name", name="x"))
    assert missing.reasons == ("no restore point is called 'x' on timeline 1",)
    both = Log(SIZE, {1: Held({**log.timelines[1].segments, 5: twice})})
    assert "choose one by --lsn 0/300384, 0/500384" in str(
        can_restore(bases, both, Target("name", name="before-upgrade")).reasons
    )


def test_tablespaces_that_recovery_makes_are_named() -> None:
    """Between the start of the chosen backup and where recovery stops, and outside of the cluster."""
    before, within = MadeSpace(1, SIZE + 50, b"/before"), MadeSpace(2, SIZE + 200, b"/within")
    after, inside = MadeSpace(3, 4 * SIZE, b"/after"), MadeSpace(4, 2 * SIZE, b"")
    log = Log(
        SIZE,
        {
            1: Held(
                {
                    1: segment(1, spaces=(before, within)),
                    2: segment(2, spaces=(inside,)),
                    3: segment(3),
                    4: segment(4, spaces=(after,)),
                }
            )
        },
    )
    only = Base("only", 1, SIZE + 100, SIZE + 300, at(1))
    verdict = can_restore([only], log, time(2))
    assert verdict.spaces == (within,)
    assert verdict.notes == (
        "recovery makes tablespace 2, which the backup has not, where it was made: '/within'",
    )
    assert can_restore([only], log, Target("latest")).spaces == (within, after)


def test_a_position_needs_a_record_that_begins_there_or_after() -> None:
    facts = Facts(last=2 * SIZE + 4000, switched=False)
    log = Log(SIZE, {1: Held({1: segment(1), 2: facts})})
    bases = [base("a", 1.1, 1)]
    assert can_restore(bases, log, Target("lsn", lsn=2 * SIZE + 3976)).yes
    assert not can_restore(bases, log, Target("lsn", lsn=2 * SIZE + 4000)).yes


def test_log_that_breaks_off_is_not_followed() -> None:
    found = {n: segment(n) for n in range(1, 9)} | {4: segment(4, whole=False)}
    verdict = can_restore([base("a", 1.1, 1)], Log(SIZE, {1: Held(found)}), time(6.5))
    assert not verdict.yes
    assert verdict.gap is not None
    assert "breaks off" in verdict.gap.reason


def test_large_transactions_near_by_are_named() -> None:
    found = {n: segment(n, largest=(700, SIZE * 3 // 4)) for n in range(1, 9)}
    verdict = can_restore([base("a", 1.1, 1)], Log(SIZE, {1: Held(found)}), time(4.5))
    assert verdict.large[0][0] == 700


@pytest.mark.parametrize("target", [time(1), Target("latest"), Target("immediate")])
def test_without_a_backup(target: Target) -> None:
    assert can_restore([], one_line(range(3)), target).reasons == (
        "there is no backup to begin with",
    )


def test_an_unknown_timeline() -> None:
    verdict = can_restore([base("a", 1.1, 1)], forked(), time(3, timeline=7))
    assert verdict.reasons == ("nothing is known of timeline 7; there are 1, 2",)


def test_points_on_every_timeline() -> None:
    found = points([base("a", 1.1, 1)], forked())
    assert [(w.timeline, w.start, w.until) for w in found.windows] == [
        (1, SIZE * 11 // 10 + 40 + 200, at(9)),
        (2, 5 * SIZE + 5000, at(8.5)),
    ]


# -- against a model of recovery ---------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Base], Log, dict[int, list[float]]]:
    """A log of one timeline with holes, the minutes of its transactions by segment, backups; the
    clock may have been set back once."""
    turn, back = draw(st.integers(1, 12)), draw(st.sampled_from([0, 0, 1.5, 4]))

    def clock(number: int) -> float:
        return number - back if number >= turn else number

    ends = {
        n: sorted(draw(st.lists(st.floats(clock(n), clock(n) + 0.9), max_size=3)))
        for n in range(1, 12)
    }
    lost = draw(st.sets(st.integers(1, 11), max_size=3))
    held = {
        n: segment(times[0], times[-1]) if times else segment()
        for n, times in ends.items()
        if n not in lost
    }
    bases = []
    for number, start in enumerate(draw(st.lists(st.integers(1, 11), max_size=4))):
        stop = draw(st.integers(start, min(11, start + 2)))
        bases.append(Base(f"b{number}", 1, start * SIZE, stop * SIZE + 8, at(clock(stop) + 0.95)))
    return bases, Log(SIZE, {1: Held(held)}), {n: t for n, t in ends.items() if n not in lost}


def recover(base_: Base, there: dict[int, list[float]], target: datetime) -> bool:
    """What PostgreSQL does, transaction by transaction: does it stop, and after its backup?"""
    number, consistent = base_.start // SIZE, base_.stop // SIZE
    while number in there:
        for minute in there[number]:
            if at(minute) > target:
                return number > consistent
        number += 1
    return False


@settings(max_examples=300, deadline=None)
@given(histories(), st.floats(0, 13))
def test_verdicts_are_what_recovery_would_do(
    history: tuple[list[Base], Log, dict[int, list[float]]], minutes: float
) -> None:
    bases, log, there = history
    target = at(minutes)
    verdict = can_restore(bases, log, Target("time", time=target))
    possible = [one for one in bases if one.stop_time <= target and recover(one, there, target)]
    assert verdict.yes == bool(possible)
    if verdict.yes:
        assert verdict.base in possible
        assert verdict.base is not None
        assert verdict.base.stop_time == max(one.stop_time for one in possible)
        assert verdict.around is not None
        assert any(at(minute) > target for minute in there[verdict.around[1]])
        return
    for moment in (verdict.before, verdict.after):
        if moment is not None:
            assert can_restore(bases, log, Target("time", time=moment)).yes
    for one in points(bases, log).windows:
        assert one.last_target is None or not one.start_time <= target <= one.last_target
