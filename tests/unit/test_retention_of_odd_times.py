"""rules/retention.py where clocks and sizes are odd for longer than one look: what is wanted stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.rules.durations import parse_duration
from strongroom.rules.retention import DOUBT, Backup, Policy, plan_retention

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
BEGIN = datetime(2026, 10, 1, 2, tzinfo=UTC)
MONTH = Policy(keep=parse_duration("30d"))


def made(at: datetime, size: int = 1000, **more: object) -> Backup:
    return Backup(f"{at:%Y%m%d%H%M}", at, size, **more)  # type: ignore[arg-type]


def daily(count: int, begin: datetime = BEGIN, **more: object) -> list[Backup]:
    return [made(begin + DAY * number, **more) for number in range(count)]


def ids(backups: list[Backup]) -> set[str]:
    return {each.id for each in backups}


def stays(here: list[Backup], policy: Policy, now: datetime) -> set[str]:
    return {row.backup.id for row in plan_retention(here, policy, now=now).rows if row.stays}


@pytest.mark.parametrize(
    "policy", [Policy(daily=14), Policy(last=14), Policy(weekly=3), Policy(hourly=20)]
)
def test_a_copied_repository_keeps_what_the_original_would(policy: Policy) -> None:
    """All of it was stored on the day of the copy, in any order: days are not that day alone."""
    taken = daily(40)
    copied = taken[-1].time + HOUR
    copy = [
        replace(each, stored=copied + timedelta(seconds=number * 7 % 40))
        for number, each in enumerate(taken)
    ]
    for days in range(1, 20):  # and it goes on in the copy
        taken.append(made(BEGIN + DAY * (39 + days)))
        copy.append(replace(taken[-1], stored=taken[-1].time))
        now = taken[-1].time + HOUR
        kept = stays(copy, policy, now)
        assert kept >= stays(taken, policy, now)
        copy = [each for each in copy if each.id in kept]


def test_a_base_whose_writer_had_an_old_clock_opens_no_recovery_window() -> None:
    taken = daily(20, base=True)
    now = taken[-1].time + HOUR
    odd = made(datetime(1970, 1, 2, tzinfo=UTC), base=True, stored=now - 2 * HOUR)
    policy = Policy(pitr=parse_duration("7d"))
    assert stays([*taken, odd], policy, now) >= stays(taken, policy, now)


@pytest.mark.parametrize("days", [20, 60, 365])
@pytest.mark.parametrize("more", [1, 3, 10])
def test_a_backup_behind_a_clock_jump_does_not_undo_the_jump(days: int, more: int) -> None:
    """Client and store are one machine: its clock jumps, and the next backups are made with it."""
    taken = daily(60)
    after = daily(more, taken[-1].time + DAY * days)
    now = after[-1].time + HOUR
    plan = plan_retention([*taken, *after], MONTH, now=now, store_now=now)
    assert plan.goes == ()
    assert "the clock has jumped" in plan.frozen[0]
    # Whoever looked and left it so is not asked for ever.
    after = daily(DOUBT.days + 2, after[0].time)
    plan = plan_retention([*taken, *after], MONTH, now=after[-1].time + HOUR)
    assert plan.frozen == ()


@pytest.mark.parametrize("step", [HOUR, DAY])
def test_small_backups_are_not_usual_as_soon_as_there_are_a_few(step: timedelta) -> None:
    """An empty disk was mounted over the data, and nobody looks for a fortnight."""
    taken = [made(BEGIN + step * number) for number in range(60)]
    policy = Policy(last=7, keep=parse_duration("2d"))
    here, at = taken, taken[-1].time
    while at + step < taken[-1].time + DOUBT:
        at += step
        here = [*here, made(at, 10)]
        plan = plan_retention(here, policy, now=at + timedelta(minutes=5))
        assert plan.goes == ()
        assert "were usual" in plan.frozen[0]
    back = [*here, made(at + step, 900)]
    assert plan_retention(back, policy, now=at + step).frozen == ()


def weekdays(hour: int) -> bool:
    return (BEGIN + HOUR * hour).weekday() < 5


PATTERNS: dict[str, Callable[[int], bool]] = {
    "daily": lambda hour: hour % 24 == 0,
    "weekdays": lambda hour: hour % 24 == 0 and weekdays(hour),
    "working hours": lambda hour: 6 <= hour % 24 <= 16 and weekdays(hour),
    "sundays": lambda hour: hour % 168 == 0,
}


@settings(max_examples=4, deadline=None)
@given(
    st.sampled_from(sorted(PATTERNS)),
    st.builds(
        Policy,
        keep=st.integers(15, 40).map(lambda days: parse_duration(f"{days}d")),
        last=st.integers(1, 4),
        daily=st.integers(0, 7),
        weekly=st.integers(0, 5),
        monthly=st.integers(0, 3),
    ),
    st.integers(0, 50),
)
def test_no_ordinary_habit_freezes(pattern: str, policy: Policy, minutes: int) -> None:
    """Nights, weekends, and days thinned out by the policy itself, once there was time to see them."""
    here: list[Backup] = []
    for hour in range(24 * 64):
        at = BEGIN + HOUR * hour
        if PATTERNS[pattern](hour):
            here.append(made(at + timedelta(minutes=minutes * (hour % 3))))
        if hour % 120 == 20 and hour > 24 * 35:
            plan = plan_retention(here, policy, now=at)
            assert plan.frozen == (), (at, plan.frozen)
            here = [row.backup for row in plan.rows if row.stays]
