"""Spans of time as people write them in promises: "24h", "30d", "12 months", "1h 30min".

A month and a year are calendar spans (twelve months before 29 February is 28
February), everything shorter is exact. A bare "m" is refused: in one file it
would be read as minutes by some and as months by others, and a backup kept for
twelve minutes instead of twelve months is not found out until it is needed.
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_MONTHS = {"month": 1, "y": 12}
_SPELLINGS = {
    "s": ("s", "sec", "secs", "second", "seconds"),
    "min": ("min", "mins", "minute", "minutes"),
    "h": ("h", "hour", "hours"),
    "d": ("d", "day", "days"),
    "w": ("w", "week", "weeks"),
    "month": ("mo", "month", "months"),
    "y": ("y", "year", "years"),
}
_UNIT_OF = {word: unit for unit, words in _SPELLINGS.items() for word in words}
_PART = re.compile(r"\s*(\d{1,9})\s*([a-z]+)\s*", re.ASCII)
_MEAN_MONTH = 2629746  # seconds in a twelfth of the mean Gregorian year


@dataclass(frozen=True, slots=True)
class Duration:
    """A span: whole calendar months and exact seconds beside them."""

    months: int = 0
    seconds: int = 0

    @property
    def approximate_seconds(self) -> int:
        """Length in seconds, a month counted as a twelfth of a mean year."""
        return self.months * _MEAN_MONTH + self.seconds

    def before(self, moment: datetime) -> datetime:
        """The moment this span earlier; a day that month does not have becomes its last."""
        month = moment.year * 12 + moment.month - 1 - self.months
        year, month = divmod(month, 12)
        if year < 1:
            raise ValueError("before the year 1")
        day = min(moment.day, calendar.monthrange(year, month + 1)[1])
        try:
            return moment.replace(year=year, month=month + 1, day=day) - timedelta(
                seconds=self.seconds
            )
        except OverflowError:
            raise ValueError("before the year 1") from None

    def after(self, moment: datetime, zone: tzinfo = UTC) -> datetime:
        """The moment this span later, in UTC: months by the calendar of `zone`, then seconds.

        A day that month does not have becomes the first moment of the next one, so that what is
        promised for twelve months from 29 February is never a day short of them.
        """
        local = moment.astimezone(zone)
        year, month = divmod(local.year * 12 + local.month - 1 + self.months, 12)
        try:
            if local.day <= calendar.monthrange(year, month + 1)[1]:
                local = local.replace(year=year, month=month + 1, day=local.day)
            else:
                year, month = divmod(year * 12 + month + 1, 12)
                local = datetime(year, month + 1, 1, tzinfo=zone)
            return local.astimezone(UTC) + timedelta(seconds=self.seconds)
        except (ValueError, OverflowError, IndexError):
            raise ValueError("after the year 9999") from None

    def __str__(self) -> str:
        """The span as it would be written: "12 months", "1d 12h"."""
        parts = [f"{self.months} month{'s' * (self.months != 1)}"] if self.months else []
        left = self.seconds
        for unit in ("d", "h", "min", "s"):
            count, left = divmod(left, _SECONDS[unit])
            parts += [f"{count}{unit}"] if count else []
        return " ".join(parts) or "0s"


def parse_duration(text: str) -> Duration:
    """Read a span; ValueError with a sentence that says what is wrong and what would be right."""
    rest = text.strip().lower()
    if not rest:
        raise ValueError('a span of time such as "24h", "30d" or "12 months" is missing')
    months = seconds = 0
    while rest:
        part = _PART.match(rest)
        if part is None:
            raise ValueError(f'"{text}" is not a span of time; write it like "24h" or "12 months"')
        count, word = int(part[1]), part[2]
        if word == "m":
            raise ValueError(
                f'"{text}" can be read in two ways: write "{count}min" or "{count} months"'
            )
        unit = _UNIT_OF.get(word)
        if unit is None:
            raise ValueError(f'"{word}" is no unit of time; there are s, min, h, d, w, months, y')
        months += count * _MONTHS.get(unit, 0)
        seconds += count * _SECONDS.get(unit, 0)
        rest = rest[part.end() :]
    if not (months or seconds):
        raise ValueError(f'"{text}" is no time at all')
    return Duration(months, seconds)
