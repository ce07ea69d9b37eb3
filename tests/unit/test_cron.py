"""Schedules: what is taken and what is refused; the moments they name, against two oracles.

`croniter` knows the fields, in UTC. Changes of clocks are walked minute by minute, as a daemon that
looks at the clock would: Debian's rule, with nothing of ours in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.rules.cron import Cron, check_schedule


@pytest.mark.parametrize(
    "text",
    [
        "0 2 * * *",
        "0 3 1 * *",
        "*/15 8-18 * * mon-fri",
        "0,30 0-23/2 1,15 JAN,jul sun",
        "  0\t2 * * 7 ",
        "0 0 29 2 *",
        "0 0 30 2,3 *",
        "0 0 31 2 mon",
        "59 23 31 12 0",
    ],
)
def test_taken(text: str) -> None:
    check_schedule(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "five fields"),
        ("0 2 * *", "five fields"),
        ("0 2 * * * root", "five fields"),
        ("@daily", "five fields"),
        ("60 2 * * *", "minute"),
        ("0 24 * * *", "hour"),
        ("0 2 0 * *", "day of the month"),
        ("0 2 * 13 *", "month"),
        ("0 2 * * 8", "day of the week"),
        ("0 2 * mon *", "month"),
        ("-1 2 * * *", "minute"),
        ("٣ 2 * * *", "minute"),
        ("0 5-2 * * *", "backwards"),
        ("*/0 * * * *", "minute"),
        ("5/10 * * * *", "step without a range"),
        ("0, 2 * * *", "minute"),
        ("1e1 2 * * *", "minute"),
        ("0 0 31 2,4,6 *", "no month"),
        ("0 0 30 feb *", "no month"),
        ("9" * 5000 + " 2 * * *", "minute"),
    ],
)
def test_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_schedule(text)


# -- moments -----------------------------------------------------------------------------------

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
# A zone, and a day (UTC) around which its clocks change.
CHANGES = [
    ("Europe/Madrid", "2026-03-29"),
    ("Europe/Madrid", "2026-10-25"),
    ("America/New_York", "2026-03-08"),
    ("America/New_York", "2026-11-01"),
    ("Australia/Lord_Howe", "2026-10-03"),  # half an hour
    ("Australia/Lord_Howe", "2026-04-04"),
    ("Pacific/Apia", "2011-12-30"),  # a day that was not
    ("Africa/Casablanca", "2026-02-15"),  # back for Ramadan
    ("Africa/Casablanca", "2026-03-22"),
    ("Asia/Beirut", "2026-03-28"),  # at midnight
    ("Asia/Beirut", "2026-10-24"),  # at midnight, back over it
    ("America/Havana", "2026-03-08"),
    ("America/Scoresbysund", "2024-03-31"),
    ("Asia/Kathmandu", "2026-05-05"),  # none
]


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    pair = st.lists(number, min_size=2, max_size=2, unique=True).map(sorted)
    span = pair.map(lambda two: f"{two[0]}-{two[1]}")
    step = st.tuples(st.just("*") | span, st.integers(2, 6)).map(lambda two: f"{two[0]}/{two[1]}")
    part = number.map(str) | span | step
    return st.just("*") | part | st.lists(part, min_size=2, max_size=3).map(",".join)


MINUTES, HOURS, DAYS, WEEKDAYS = field(0, 59), field(0, 23), field(1, 28), field(0, 6)
STARS = st.just("*")


def schedules(
    days: st.SearchStrategy[str], weekdays: st.SearchStrategy[str]
) -> st.SearchStrategy[str]:
    return st.tuples(MINUTES, HOURS, days, STARS, weekdays).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(
    text=schedules(DAYS, WEEKDAYS), start=st.datetimes(datetime(2000, 1, 1), datetime(2060, 1, 1))
)
def test_fields_are_read_as_croniter_reads_them(text: str, start: datetime) -> None:
    start = start.replace(tzinfo=UTC)
    cron = Cron.parse(text)
    # With its "bug": cron(8) asks whether a day field begins with "*", whatever follows.
    other = croniter(text, start, implement_cron_bug=True)
    moment = start
    for _ in range(3):
        moment = cron.next(moment, UTC)
        assert moment == other.get_next(datetime)
    before = cron.previous(start, UTC)
    assert before <= start < cron.next(before, UTC)
    assert cron.previous(before, UTC) == before


def expanded(text: str, low: int, high: int) -> set[int]:
    found = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        begin, end = (low, high) if span == "*" else (int(first), int(last or first))
        found |= {value for value in range(begin, end + 1) if (value - begin) % int(step or 1) == 0}
    return found


def walked(text: str, zone: ZoneInfo, first: datetime, last: datetime) -> Iterator[datetime]:
    """A daemon that looks at the clock every minute, and remembers up to where it has come."""
    texts = text.split()
    limits = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]
    sets = [expanded(one, *limit) for one, limit in zip(texts, limits, strict=True)]
    either = texts[2][0] != "*" != texts[4][0]
    every_hour = len(sets[1]) == 24

    def named(local: datetime) -> bool:
        if local.minute not in sets[0] or local.hour not in sets[1]:
            return False
        days = local.day in sets[2], local.isoweekday() % 7 in sets[4]
        return any(days) if either else all(days)

    moment = first - 3 * 24 * HOUR
    come = moment.astimezone(zone).replace(tzinfo=None)
    while moment <= last:
        shown = moment.astimezone(zone).replace(tzinfo=None)
        due = named(shown) if every_hour else False
        while not every_hour and come < shown:
            come += MINUTE
            due = due or named(come)
        if due and moment > first:
            yield moment
        moment += MINUTE


@pytest.mark.parametrize(("name", "day"), CHANGES)
@settings(max_examples=5, deadline=None)
@given(text=schedules(STARS, STARS) | schedules(DAYS, WEEKDAYS))
def test_where_clocks_change_nothing_is_left_out_and_nothing_comes_twice(
    name: str, day: str, text: str
) -> None:
    zone, noon = ZoneInfo(name), datetime.fromisoformat(day).replace(tzinfo=UTC) + 12 * HOUR
    first, last = noon - 26 * HOUR, noon + 26 * HOUR
    cron = Cron.parse(text)
    found = list(cron.between(first, last, zone))
    assert found == list(walked(text, zone, first, last))
    back, at = [], last
    for _ in found[-3:]:
        back.append(cron.previous(at, zone))
        at = back[-1] - timedelta(microseconds=1)
    assert back[::-1] == found[-3:]


@pytest.mark.parametrize(
    ("text", "name", "day", "local"),
    [
        ("30 2 * * *", "Europe/Madrid", "2026-03-29", ["03:00+0200"]),
        ("30 2 * * *", "Europe/Madrid", "2026-10-25", ["02:30+0200"]),
        ("0,30 2 * * *", "Europe/Madrid", "2026-03-29", ["03:00+0200"]),
        ("*/20 2 * * *", "Europe/Madrid", "2026-03-29", ["03:00+0200"]),
        ("0 */12 * * *", "Asia/Beirut", "2026-03-29", ["01:00+0300", "12:00+0300"]),
        ("0 2 * * *", "Australia/Lord_Howe", "2026-10-04", ["02:30+1100"]),
        ("0 2 * * *", "Pacific/Apia", "2011-12-31", ["00:00+1400", "02:00+1400"]),
        ("0 3 30 12 *", "Pacific/Apia", "2011-12-31", ["00:00+1400"]),
    ],
)
def test_the_days_that_people_ask_about(text: str, name: str, day: str, local: list[str]) -> None:
    zone = ZoneInfo(name)
    begin = datetime.fromisoformat(day).replace(tzinfo=zone)
    end = begin.replace(hour=23, minute=59)
    moments = Cron.parse(text).between(begin.astimezone(UTC) - MINUTE, end, zone)
    assert [moment.astimezone(zone).strftime("%H:%M%z") for moment in moments] == local


def test_every_hour_is_an_hour_apart_when_clocks_change() -> None:
    for day in ("2026-03-29", "2026-10-25"):
        begin = datetime.fromisoformat(day).replace(tzinfo=UTC)
        found = list(
            Cron.parse("0 * * * *").between(begin, begin + 24 * HOUR, ZoneInfo("Europe/Madrid"))
        )
        assert found == [begin + number * HOUR for number in range(1, 25)]


def test_a_day_that_both_fields_name() -> None:
    """As in cron(8): either of two day fields, both where one begins with "*"."""
    begin = datetime(2026, 11, 1, tzinfo=UTC)
    month = begin + timedelta(days=29)
    days = [one.day for one in Cron.parse("0 12 13 * fri").between(begin, month, UTC)]
    assert days == [6, 13, 20, 27]
    days = [one.day for one in Cron.parse("0 12 */2 * mon").between(begin, month, UTC)]
    assert days == [9, 23]
    with pytest.raises(ValueError, match="no month"):
        Cron.parse("0 0 30 2 */2")


def test_a_moment_forty_years_away_is_found() -> None:
    cron = Cron.parse("0 0 29 2 */7")  # a Sunday, over the year 2100
    found = cron.next(datetime(2088, 3, 1, tzinfo=UTC), UTC)
    assert found == datetime(2128, 2, 29, tzinfo=UTC)
    assert cron.previous(found - MINUTE, UTC) == datetime(2088, 2, 29, tzinfo=UTC)
