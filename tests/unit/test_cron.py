"""Schedules: what is taken, and what is refused with the field that is wrong."""

from __future__ import annotations

import pytest

from strongroom.rules.cron import check_schedule


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
