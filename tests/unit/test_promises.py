"""Verdicts with reasons: promises against what is there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from strongroom.rules.durations import Duration
from strongroom.rules.promises import judge

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
DAY = Duration(seconds=86400)


@pytest.mark.parametrize(
    ("age", "rpo", "rto", "word", "missed", "says"),
    [
        (None, DAY, None, "none", True, "no backup"),
        (None, None, None, "none", False, "no backup"),
        (timedelta(hours=24), DAY, None, "kept", False, "at most 1d may be lost: kept"),
        (timedelta(hours=24, seconds=1), DAY, None, "late", True, "may be lost: missed"),
        (timedelta(days=40), None, None, "open", False, "nothing is promised"),
        (timedelta(days=30), Duration(months=1), None, "kept", False, "1 month may be lost: kept"),
        (timedelta(days=32), Duration(months=1), None, "late", True, "1 month may be lost: missed"),
        (timedelta(hours=1), None, DAY, "kept", False, "not measured"),
        (timedelta(seconds=-5), DAY, None, "kept", False, "kept"),
    ],
)
def test_verdicts(
    age: timedelta | None,
    rpo: Duration | None,
    rto: Duration | None,
    word: str,
    missed: bool,
    says: str,
) -> None:
    newest = None if age is None else NOW - age
    verdict = judge(newest, rpo=rpo, rto=rto, now=NOW)
    assert (verdict.word, verdict.missed) == (word, missed)
    assert says in "; ".join(verdict.reasons)
