"""The moment that is meant, or a refusal with every reading."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from strongroom.errors import UsageError
from strongroom.rules.times import read_time, show_time

MADRID = ZoneInfo("Europe/Madrid")
NOW = datetime(2026, 11, 23, 15, 0, tzinfo=UTC)  # 16:00 in Madrid
FALL = datetime(2026, 10, 25, 12, 0, tzinfo=UTC)  # clocks went 03:00 → 02:00 that night
SPRING = datetime(2026, 3, 29, 12, 0, tzinfo=UTC)  # clocks went 02:00 → 03:00 that night


@pytest.mark.parametrize(
    ("text", "now", "means"),
    [
        ("2026-11-23T02:13:05+01:00", NOW, "2026-11-23T01:13:05Z"),
        ("2026-11-23 02:13:05+0100", NOW, "2026-11-23T01:13:05Z"),
        ("2026-11-23T01:13:05Z", NOW, "2026-11-23T01:13:05Z"),
        ("2026-11-23t01:13z", NOW, "2026-11-23T01:13:00Z"),
        ("2026-11-23T01:13:05.25Z", NOW, "2026-11-23T01:13:05.250000Z"),
        ("2026-11-23T01:13:05,25Z", NOW, "2026-11-23T01:13:05.250000Z"),
        ("2026-11-22T23:30-05:30", NOW, "2026-11-23T05:00:00Z"),
        ("02:13", NOW, "2026-11-23T01:13:00Z"),
        ("2:13", NOW, "2026-11-23T01:13:00Z"),
        ("02:13:05", NOW, "2026-11-23T01:13:05Z"),
        ("16:00", NOW, "2026-11-23T15:00:00Z"),
        ("20 minutes ago", NOW, "2026-11-23T14:40:00Z"),
        ("1h 30min ago", NOW, "2026-11-23T13:30:00Z"),
        ("2 days ago", NOW, "2026-11-21T15:00:00Z"),
        ("1 month ago", NOW, "2026-10-23T15:00:00Z"),
        ("20 Minutes Ago", NOW, "2026-11-23T14:40:00Z"),
        ("2026-10-25T02:30+02:00", FALL, "2026-10-25T00:30:00Z"),
        ("2026-10-25T02:30+01:00", FALL, "2026-10-25T01:30:00Z"),
        ("01:30", FALL, "2026-10-24T23:30:00Z"),
        ("03:30", FALL, "2026-10-25T02:30:00Z"),
    ],
)
def test_reads(text: str, now: datetime, means: str) -> None:
    assert show_time(read_time(text, now=now, zone=MADRID)) == means


@pytest.mark.parametrize(
    ("text", "now", "what", "do"),
    [
        # The clock showed it twice: both readings, each with its offset and in UTC.
        ("02:30", FALL, "happened twice", ["02:30:00+02:00", "02:30:00+01:00", "00:30:00Z"]),
        # It never showed it.
        ("02:30", SPRING, "did not exist", ["01:30:00+01:00", "03:30:00+02:00"]),
        # No offset: UTC and the configured zone are both shown.
        ("2026-11-23T02:13:05", NOW, "which zone", ["2026-11-23T02:13:05Z", "02:13:05+01:00"]),
        ("2026-11-23", NOW, "which zone", ["2026-11-23T00:00:00Z", "00:00:00+01:00"]),
        ("2026-10-25T02:30", FALL, "which zone", ["02:30:00+02:00", "02:30:00+01:00"]),
        # Not yet.
        ("16:01", NOW, "future", ["2026-11-22T16:01:00+01:00"]),
        ("2026-11-23T15:00:01Z", NOW, "future", ["2026-11-23T15:00:01Z"]),
        ("2027-01-01T00:00:00+01:00", NOW, "future", ["2026-12-31T23:00:00Z"]),
        # No time at all.
        ("24:00", NOW, "no time of a day", ["ISO 8601"]),
        ("12:60", NOW, "no time of a day", ["ISO 8601"]),
        ("2026-02-30T00:00:00Z", NOW, "no date", ["ISO 8601"]),
        ("yesterday", NOW, "cannot|not a time", ["20 minutes ago"]),
        ("20 m ago", NOW, "two ways", ["ISO 8601"]),
        ("ago", NOW, "not a time", ["ISO 8601"]),
        ("9000 years ago", NOW, "year 1", ["ISO 8601"]),
        ("0001-01-01T00:00:00+14:00", NOW, "out of range", ["ISO 8601"]),
        ("1764000000", NOW, "not a time", ["ISO 8601"]),
        ("2026-W48-1", NOW, "not a time", ["ISO 8601"]),
        ("", NOW, "not a time", ["ISO 8601"]),
    ],
)
def test_refuses_with_every_reading(text: str, now: datetime, what: str, do: list[str]) -> None:
    with pytest.raises(UsageError, match=what) as refused:
        read_time(text, now=now, zone=MADRID)
    for reading in do:
        assert reading in refused.value.do
    assert refused.value.exit_status == 2


def test_a_reading_that_is_offered_is_accepted() -> None:
    with pytest.raises(UsageError) as refused:
        read_time("02:30", now=FALL, zone=MADRID)
    offered = [word for word in refused.value.do.split() if word.startswith("2026")]
    moments = {read_time(word, now=FALL, zone=MADRID) for word in offered}
    assert len(moments) == 2
