"""Schedules: five fields as crontab(5) has them, and the moments they name in a time zone.

A field is `*`, a number, a range `a-b`, either with a step `/n`, or several of these with commas;
months and weekdays may have their English names. 0 and 7 are Sunday. Where neither day field begins
with `*`, a day that either names will do; else it must be in both, as in cron(8).

When clocks change, nothing is left out and nothing happens twice. After the model of Debian's cron:

1. A schedule of certain hours ("0 2 * * *", "*/15 1-3 * * *", "0 */6 * * *") comes once for each
   local time it names. A time that clocks show twice counts when it comes first. A time that they jump over
   counts as the first minute after the jump; several that fall there are one.
2. A schedule of every hour ("*" or 0-23) comes whenever clocks show a time it names: in both of two
   hours of the same name, and not in an hour that is left out, since no time passed in it.

Debian asks whether hour or minute begin with `*`, so that it leaves out "0 */12 * * *" where clocks
jump at midnight, and takes a change of more than three hours for a correction; here neither, so
that nothing is lost where a zone leaves out a whole day (Apia, 30 December 2011).

`now` is an argument; moments come back in UTC, on the minute.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: at for at, name in enumerate(_MONTHS, 1)}),
    ("day of the week", 0, 7, {name: at for at, name in enumerate(_WEEKDAYS)}),
)
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_DAY = timedelta(days=1)
_NEAR = 2  # days around a moment in whose local dates it may stand, after any change of clocks
_HORIZON = 41 * 366  # days: 29 February on a given weekday, over a year 2100 without one


@dataclass(frozen=True, slots=True)
class Cron:
    """A schedule that was read. `either`: a day that one of both day fields names will do."""

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    either: bool

    @staticmethod
    def parse(text: str) -> Cron:
        """Read five fields; ValueError says which is wrong, or that the time can never come."""
        fields = text.split()
        if len(fields) != len(_FIELDS):
            raise ValueError('must have five fields, as in crontab: "0 2 * * *" is daily at 02:00')
        sets = [
            _field(field, name, low, high, words)
            for field, (name, low, high, words) in zip(fields, _FIELDS, strict=True)
        ]
        days, months = sets[2], sets[3]
        either = not fields[2].startswith("*") and not fields[4].startswith("*")
        # Where either will do, a weekday always comes.
        if not either and not any(min(days) <= _LONGEST[month - 1] for month in months):
            raise ValueError("names days that no month of it has")
        return Cron(
            " ".join(fields),
            tuple(sorted(sets[0])),
            tuple(sorted(sets[1])),
            frozenset(days),
            frozenset(months),
            frozenset(day % 7 for day in sets[4]),
            either,
        )

    @property
    def every_hour(self) -> bool:
        """Whether it follows the hours as they pass (rule 2)."""
        return len(self.hours) == 24

    def next(self, after: datetime, zone: tzinfo) -> datetime:
        """The first moment later than `after`; OverflowError beyond the year 9999."""
        return next(self._forward(after, zone))

    def previous(self, at: datetime, zone: tzinfo) -> datetime:
        """The last moment not later than `at`; OverflowError before the year 1."""
        return next(self.backward(at, zone))

    def between(self, after: datetime, until: datetime, zone: tzinfo) -> Iterator[datetime]:
        """Every moment later than `after` and not later than `until`, in order."""
        for moment in self._forward(after, zone):
            if moment > until:
                return
            yield moment

    def _forward(self, after: datetime, zone: tzinfo) -> Iterator[datetime]:
        first, last = after.astimezone(zone).date() - _NEAR * _DAY, after.astimezone(UTC)
        found: list[datetime] = []
        for number in range(_HORIZON):
            day = first + number * _DAY
            if self._on(day):
                for moment in self._of_day(day, zone):
                    heapq.heappush(found, moment)
            # No zone is a whole day off UTC: what later dates bring is later than this.
            while found and found[0] < _utc_midnight(day):
                moment = heapq.heappop(found)
                if moment > last:
                    last = moment
                    yield moment
        raise OverflowError("no such moment within forty years")

    def backward(self, at: datetime, zone: tzinfo) -> Iterator[datetime]:
        """Every moment not later than `at`, the last one first."""
        first, limit = at.astimezone(zone).date() + _NEAR * _DAY, at.astimezone(UTC)
        found: set[datetime] = set()
        for number in range(_HORIZON):
            day = first - number * _DAY
            if self._on(day):
                found.update(self._of_day(day, zone))
            sure = {moment for moment in found if moment >= _utc_midnight(day + _DAY)}
            found -= sure
            yield from sorted((moment for moment in sure if moment <= limit), reverse=True)
        raise OverflowError("no such moment within forty years")

    def _on(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        named, weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return named or weekday if self.either else named and weekday

    def _of_day(self, day: date, zone: tzinfo) -> Iterator[datetime]:
        for hour in self.hours:
            for minute in self.minutes:
                first, second = _readings(datetime.combine(day, time(hour, minute)), zone)
                if first > second:  # no clock showed it
                    if not self.every_hour:
                        yield _jump(second, first, zone)
                    continue
                yield first
                if self.every_hour and second > first:
                    yield second


def check_schedule(text: str) -> None:
    """ValueError, which says which field, for what is no schedule or can never come."""
    Cron.parse(text)


def _readings(local: datetime, zone: tzinfo) -> tuple[datetime, datetime]:
    """The moments that a local time means by the clock before and after a change (PEP 495)."""
    first = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    return first, local.replace(tzinfo=zone, fold=1).astimezone(UTC)


def _jump(before: datetime, after: datetime, zone: tzinfo) -> datetime:
    """The first moment after the change of clocks between two moments."""
    offset = after.astimezone(zone).utcoffset()
    low, high = 0, int((after - before).total_seconds())
    while high - low > 1:
        middle = (low + high) // 2
        if (before + timedelta(seconds=middle)).astimezone(zone).utcoffset() == offset:
            high = middle
        else:
            low = middle
    return before + timedelta(seconds=high)


def _utc_midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _field(text: str, name: str, low: int, high: int, words: dict[str, int]) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        if span == "*":
            begin, end = low, high
        else:
            begin = _number(first, name, low, high, words)
            end = _number(last, name, low, high, words) if dash else begin
            if slash and not dash:
                raise ValueError(
                    f'has a step without a range in its {name}; write "*/n" or "a-b/n"'
                )
        if end < begin:
            raise ValueError(f"has a range that runs backwards in its {name}")
        stride = _number(step, name, 1, high, {}) if slash else 1
        found.update(range(begin, end + 1, stride))
    return found


def _number(text: str, name: str, low: int, high: int, words: dict[str, int]) -> int:
    if text.lower() in words:
        return words[text.lower()]
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and low <= int(text) <= high):
        raise ValueError(f"has something in its {name} that is not {low} to {high}")
    return int(text)
