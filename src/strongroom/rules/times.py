"""The moment a person means, or a refusal that shows every reading of what was written.

    2026-11-23T02:13:05+01:00      ISO 8601 with its offset (or Z), seconds and fractions optional
    02:13, 02:13:05                today in the configured zone
    20 minutes ago, 1h 30min ago   counted back from now

Nothing is guessed, because a restore to the wrong hour looks like a success:
a time without an offset, one that the clock showed twice (end of summer time)
or never (its beginning), and one that has not come yet are refused, each with
the words that would be accepted. `now` is an argument.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

from strongroom.errors import UsageError
from strongroom.rules.durations import parse_duration

_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?", re.ASCII)
_ISO = re.compile(
    r"\d{4}-\d{2}-\d{2}(?:[Tt ]\d{2}:?\d{2}(?::?\d{2}(?:[.,]\d{1,9})?)?"
    r"(?:[Zz]|[+-]\d{2}(?::?\d{2}(?::?\d{2})?)?)?)?",
    re.ASCII,
)
FORMS = (
    'an ISO 8601 time with its offset (2026-11-23T02:13:05Z), HH:MM of today, or "20 minutes ago"'
)


def read_time(text: str, *, now: datetime, zone: tzinfo) -> datetime:
    """Return the moment in UTC that `text` names; UsageError with every reading when unsure.

    `now` is aware; `zone` is the zone in which a bare clock time is meant.
    """
    words = text.strip()
    lower = words.lower()
    clock = _CLOCK.fullmatch(words)
    if clock:
        moment = _clock_today(words, clock, now, zone)
    elif lower.endswith("ago") and lower[:-3].strip():
        moment = _ago(words, lower[:-3], now)
    elif _ISO.fullmatch(words):
        moment = _iso(words, zone)
    else:
        raise _refuse(f'"{text}" is not a time that can be understood', f"Write {FORMS}.")
    if moment > now:
        raise _future(words, moment, now, zone, clock is not None)
    return moment


def show_time(moment: datetime) -> str:
    """`moment` in UTC, as it may be given back: 2026-11-23T01:13:05Z, fractions only if any."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _ago(words: str, span: str, now: datetime) -> datetime:
    try:
        return parse_duration(span).before(now).astimezone(UTC)
    except ValueError as fault:
        raise _refuse(f'"{words}" is not a time: {fault}', f"Write {FORMS}.") from None


def _clock_today(words: str, clock: re.Match[str], now: datetime, zone: tzinfo) -> datetime:
    today = now.astimezone(zone).date()
    try:
        naive = datetime(
            today.year, today.month, today.day, int(clock[1]), int(clock[2]), int(clock[3] or 0)
        )
    except ValueError:
        raise _refuse(f'"{words}" is no time of a day', f"Write {FORMS}.") from None
    return _in_zone(words, naive, zone)


def _iso(words: str, zone: tzinfo) -> datetime:
    try:
        moment = datetime.fromisoformat(words.upper().replace(",", "."))
    except ValueError:
        raise _refuse(f'"{words}" is no date or time that exists', f"Write {FORMS}.") from None
    if moment.tzinfo is not None:
        return _utc(words, moment)
    readings = [moment.replace(tzinfo=UTC), *_readings(moment, zone)]
    raise _refuse(f'"{words}" does not say in which zone it is meant', _choose(readings))


def _in_zone(words: str, naive: datetime, zone: tzinfo) -> datetime:
    """The one moment at which clocks of `zone` showed `naive`."""
    readings = _readings(naive, zone)
    if len(readings) == 1:
        return _utc(words, readings[0])
    if readings[0].timestamp() > readings[1].timestamp():  # a gap: each reading lands beyond it
        raise _refuse(
            f'"{words}" did not exist on {naive.date()} in {zone}: clocks jumped over it',
            _choose([reading.astimezone(UTC).astimezone(zone) for reading in readings]),
        )
    raise _refuse(
        f'"{words}" happened twice on {naive.date()} in {zone}: clocks went back',
        _choose(readings),
    )


def _readings(naive: datetime, zone: tzinfo) -> list[datetime]:
    first, second = naive.replace(tzinfo=zone, fold=0), naive.replace(tzinfo=zone, fold=1)
    return [first] if first.utcoffset() == second.utcoffset() else [first, second]


def _utc(words: str, moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except (OverflowError, ValueError):
        raise _refuse(f'"{words}" is out of range', f"Write {FORMS}.") from None


def _future(
    words: str, moment: datetime, now: datetime, zone: tzinfo, was_clock: bool
) -> UsageError:
    readings = [moment]
    if was_clock:
        readings = [moment.astimezone(zone) - timedelta(days=1), moment.astimezone(zone)]
    shown = " or ".join(_both(reading) for reading in readings)
    what = f'"{words}" is in the future: {_both(readings[-1])}; it is {show_time(now)} now'
    if was_clock:
        return _refuse(what, f"Yesterday's is {_both(readings[0])}: write it with its offset.")
    return _refuse(what, f"Write a time that has come; this was read as {shown}.")


def _both(moment: datetime) -> str:
    """A moment as written in its own zone and in UTC."""
    local, utc = moment.isoformat(), show_time(moment)
    return utc if moment.utcoffset() == timedelta(0) else f"{local} ({utc})"


def _choose(readings: list[datetime]) -> str:
    distinct = list(dict.fromkeys(_both(reading) for reading in readings))
    return "Write one of " + " or ".join(distinct) + "."


def _refuse(what: str, do: str) -> UsageError:
    return UsageError(what + ".", do=do)
