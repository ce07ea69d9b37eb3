"""Spans of time and amounts of bytes: what is read, what is shown, what is refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.rules.durations import Duration, parse_duration
from strongroom.rules.sizes import parse_size, show_seconds, show_size

HOUR, DAY = 3600, 86400


@pytest.mark.parametrize(
    ("text", "months", "seconds"),
    [
        ("24h", 0, DAY),
        ("4h", 0, 4 * HOUR),
        ("30d", 0, 30 * DAY),
        ("31d", 0, 31 * DAY),
        ("12 months", 12, 0),
        ("1 month", 1, 0),
        ("2 years", 24, 0),
        ("1y 6mo", 18, 0),
        ("1h 30min", 0, 90 * 60),
        ("1h30min", 0, 90 * 60),
        ("90 Seconds", 0, 90),
        ("2w", 0, 14 * DAY),
        ("  5 minutes ", 0, 300),
    ],
)
def test_reads(text: str, months: int, seconds: int) -> None:
    assert parse_duration(text) == Duration(months, seconds)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is missing"),
        ("30", "not a span"),
        ("d30", "not a span"),
        ("30 fortnights", "no unit"),
        ("12m", 'write "12min" or "12 months"'),
        ("0h", "no time at all"),
        ("-3h", "not a span"),
        ("1.5h", "not a span"),
        ("٣h", "not a span"),
        ("1h,30min", "not a span"),
        ("9999999999h", "not a span"),
    ],
)
def test_refuses(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_duration(text)


@given(months=st.integers(0, 400), seconds=st.integers(0, 10**8))
def test_what_is_shown_reads_back(months: int, seconds: int) -> None:
    span = Duration(months, seconds)
    if months or seconds:
        assert parse_duration(str(span)) == span


@pytest.mark.parametrize(
    ("moment", "span", "earlier"),
    [
        ("2026-03-31T12:00", Duration(months=1), "2026-02-28T12:00"),
        ("2028-02-29T12:00", Duration(months=12), "2027-02-28T12:00"),
        ("2026-01-15T00:00", Duration(months=1), "2025-12-15T00:00"),
        ("2026-01-15T00:00", Duration(seconds=DAY), "2026-01-14T00:00"),
        ("2026-03-31T12:00", Duration(1, DAY), "2026-02-27T12:00"),
    ],
)
def test_counts_back(moment: str, span: Duration, earlier: str) -> None:
    at = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    assert span.before(at) == datetime.fromisoformat(earlier).replace(tzinfo=UTC)


@pytest.mark.parametrize("span", [Duration(months=12 * 3000), Duration(seconds=10**11)])
def test_before_the_calendar_is_refused(span: Duration) -> None:
    with pytest.raises(ValueError, match="year 1"):
        span.before(datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GiB", 5 << 30),
        ("5GB", 5 * 10**9),
        ("5G", 5 << 30),
        ("1.5 MiB", 3 << 19),
        ("512", 512),
        ("512B", 512),
        ("2kb", 2000),
    ],
)
def test_reads_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "5 parsecs", "-1", "5iB", "1e3"])
def test_refuses_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="not an amount"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (20 << 30, "20.0 GiB"),
        (500 << 40, "500 TiB"),
    ],
)
def test_shows_sizes(size: int, shown: str) -> None:
    assert show_size(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.42, "0.4 s"),
        (12.3, "12 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (100 * HOUR, "4 d 4 h"),
    ],
)
def test_shows_seconds(seconds: float, shown: str) -> None:
    assert show_seconds(seconds) == shown
