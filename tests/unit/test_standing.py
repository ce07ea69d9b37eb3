"""rules/standing.py: the verdict on a source, from what is recoverable, proved and promised."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.rules.durations import parse_duration
from strongroom.rules.standing import (
    PROOF_HOLDS,
    Gap,
    Known,
    Proof,
    Span,
    Took,
    gaps_between,
    joined,
    stand,
)

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
GREEN = Proof(NOW - 3 * DAY, "drill", at=NOW - 4 * DAY)
GOOD = Known(
    "db",
    "logical",
    backups=3,
    moments=[NOW - 30 * DAY, NOW - 2 * DAY, NOW - 20 * HOUR],
    proofs=[GREEN],
    took=Took(30.0, "drill", NOW - 3 * DAY),
    rpo=parse_duration("24h"),
    rto=parse_duration("4h"),
)


def test_all_is_well() -> None:
    found = stand(GOOD, now=NOW)
    assert (found.word, found.missed, found.reasons) == ("ok", False, ())
    assert (found.first, found.until) == (NOW - 30 * DAY, NOW - 20 * HOUR)
    assert (found.rpo_seconds, found.rto_seconds) == (20 * 3600.0, 30.0)
    assert found.proved == GREEN
    assert found.failed is None
    assert found.drilled == GREEN.ended


@pytest.mark.parametrize(
    ("changed", "word", "missed", "says"),
    [
        ({"moments": [NOW - 25 * HOUR]}, "missed", True, "1 d 1 h would be lost now; at most 1d is"),
        ({"moments": [NOW - 24 * HOUR]}, "ok", False, ""),
        ({"moments": []}, "none", True, "there is no backup"),
        ({"moments": [], "rpo": None, "rto": None}, "none", False, "there is no backup"),
        ({"moments": [], "unusable": ["backup 77: WAL …3F is missing"]}, "none", True, "…3F"),
        ({"moments": [NOW - 90 * DAY], "rpo": None}, "ok", False, ""),
        ({"rpo": None, "rto": None}, "ok", False, ""),
        ({"proofs": []}, "unproved", False, "nobody has proved"),
        ({"proofs": [], "moments": [NOW - 25 * HOUR]}, "missed", True, "would be lost"),
        ({"proofs": [Proof(NOW - PROOF_HOLDS, "check")]}, "ok", False, ""),
        ({"proofs": [Proof(NOW - PROOF_HOLDS - HOUR, "check")]}, "unproved", False, "100 days"),
        # a slow drill proves, and misses the promise
        ({"proofs": [Proof(NOW - DAY, "drill", "slow")], "took": Took(14401.0, "drill", NOW)},
         "missed", True, "a drill took 4 h 00 min; 4h is promised"),
        ({"took": Took(14400.0, "restore", NOW)}, "ok", False, ""),
        ({"took": None}, "ok", False, ""),  # not measured is not missed; the line says so
        # the newest word counts, and an old green one does not hide it
        ({"proofs": [GREEN, Proof(NOW - HOUR, "drill", "red", what="it did not start")]},
         "missed", True, "was red: it did not start"),
        ({"proofs": [GREEN, Proof(NOW - HOUR, "drill", "red", what="x")], "rto": None},
         "unproved", False, "the newest drill was red: x"),
        ({"proofs": [GREEN, Proof(NOW - HOUR, "drill", "incomplete", what="no room")]},
         "unproved", False, "incomplete: no room"),
        ({"proofs": [GREEN, Proof(NOW - HOUR, "check", "red", what="1 of its backups is damaged")]},
         "unproved", False, "the newest check was red"),
        ({"proofs": [Proof(NOW - HOUR, "drill", "red"), GREEN]}, "ok", False, ""),
        # drills that were promised
        ({"drill_every": parse_duration("30d")}, "ok", False, ""),
        ({"drill_every": parse_duration("2d")}, "missed", True, "one every 2d is promised"),
        ({"drill_every": parse_duration("30d"), "proofs": [Proof(NOW - DAY, "check")],
          "since": NOW - 31 * DAY}, "missed", True, "no drill was green yet"),
        ({"drill_every": parse_duration("30d"), "proofs": [Proof(NOW - DAY, "check")],
          "since": NOW - 29 * DAY}, "ok", False, ""),
        # what is due
        ({"due": NOW - HOUR}, "ok", False, ""),
        ({"missed": [NOW - DAY, NOW - 2 * HOUR]}, "overdue", False, "was due 2026-11-26 10:00Z and"),
        ({"missed": [NOW - HOUR], "proofs": []}, "overdue", False, "nobody has proved"),
        ({"missed": [NOW - HOUR], "moments": [NOW - 2 * DAY]}, "missed", True, "did not run"),
    ],
)  # fmt: skip
def test_verdicts(changed: dict[str, object], word: str, missed: bool, says: str) -> None:
    found = stand(replace(GOOD, **changed), now=NOW)  # type: ignore[arg-type]
    assert (found.word, found.missed) == (word, missed)
    assert says in "; ".join(found.reasons)
    assert bool(found.reasons) == (word != "ok")


def test_a_cluster() -> None:
    spans = [Span(NOW - 9 * DAY, NOW - 5 * DAY), Span(NOW - 4 * DAY, NOW - HOUR)]
    gaps = gaps_between(spans, [(NOW - 5 * DAY, "the slot was lost")])
    found = stand(replace(GOOD, moments=[], spans=spans, gaps=gaps), now=NOW)
    assert (found.first, found.until, found.word) == (NOW - 9 * DAY, NOW - HOUR, "ok")
    assert found.gaps == (Gap(NOW - 5 * DAY, NOW - 4 * DAY, "the slot was lost"),)
    assert (found.gap_seconds, found.rpo_seconds) == (86400.0, 3600.0)


def test_a_clock_that_was_set_back_loses_nothing() -> None:
    assert stand(replace(GOOD, moments=[NOW + HOUR]), now=NOW).rpo_seconds == 0.0


MOMENTS = st.integers(0, 500).map(lambda minutes: NOW + timedelta(minutes=minutes))
SPANS = st.lists(st.tuples(MOMENTS, MOMENTS).map(sorted).map(lambda two: Span(*two)), max_size=8)


@given(SPANS, MOMENTS)
def test_joined_spans_hold_the_same_moments(spans: list[Span], moment: datetime) -> None:
    found = joined(spans)
    assert any(one.first <= moment <= one.last for one in found) == any(
        one.first <= moment <= one.last for one in spans
    )
    assert all(before.last < after.first for before, after in pairwise(found))
    assert all(gap.seconds > 0 for gap in gaps_between(found))
    assert joined(found) == found


@given(
    moments=st.lists(st.integers(0, 2000), max_size=5),
    proofs=st.lists(
        st.tuples(st.integers(0, 4000), st.sampled_from(["green", "slow", "incomplete", "red"])),
        max_size=4,
    ),
    rpo=st.sampled_from([None, "1h", "24h"]),
    took=st.sampled_from([None, 10.0, 90000.0]),
)
def test_ok_is_only_what_was_proved_and_keeps_its_promises(
    moments: list[int], proofs: list[tuple[int, str]], rpo: str | None, took: float | None
) -> None:
    known = replace(
        GOOD,
        moments=sorted(NOW - timedelta(hours=hours) for hours in moments),
        proofs=sorted(
            (Proof(NOW - timedelta(hours=hours), "drill", word) for hours, word in proofs),  # type: ignore[arg-type]
            key=lambda one: one.ended,
        ),
        rpo=None if rpo is None else parse_duration(rpo),
        took=None if took is None else Took(took, "restore", NOW),
    )
    found = stand(known, now=NOW)
    if found.word == "ok":
        assert known.moments and known.proofs[-1].proves
        assert rpo is None or known.moments[-1] >= parse_duration(rpo).before(NOW)
        assert took != 90000.0
    assert (found.word == "none") == (not moments)
    assert found.missed == (found.word in ("missed", "none"))
