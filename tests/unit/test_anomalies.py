"""rules/anomalies.py: what is wrong, and what is told of it: once, and once that it is over."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.rules.anomalies import (
    MANNERS,
    Action,
    Condition,
    Key,
    Log,
    Past,
    SourceState,
    State,
    Told,
    alerting,
    conditions,
)
from strongroom.rules.durations import Duration, parse_duration

NOW = datetime(2026, 11, 26, 3, 0, tzinfo=UTC)
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)


def run(days_ago: float, *, minutes: float = 10, **more: object) -> Past:
    started = NOW - days_ago * DAY - HOUR
    facts = {"outcome": "done", "size": 1000} | more
    return Past(started, started + minutes * MINUTE, **facts)  # type: ignore[arg-type]


USUAL = tuple(run(days) for days in range(8, 0, -1))


def found(**facts: object) -> list[Condition]:
    source = SourceState("db", **({"backups": (*USUAL, run(0))} | facts))  # type: ignore[arg-type]
    return conditions(State([source]), now=NOW)


def test_a_quiet_night() -> None:
    assert found(rpo=parse_duration("24h")) == []


@pytest.mark.parametrize(
    ("facts", "key", "says"),
    [
        ({"backups": (*USUAL, run(0, outcome="failed", what="disk full"))},
         "backup-failed/db", "disk full"),
        ({"backups": (*USUAL, run(1, outcome="failed"), run(0, outcome="interrupted"))},
         "backup-failed/db", "2 in a row; the last good one is of 2026-11-25T02:10:00Z"),
        ({"backups": (run(0, outcome="failed"),)}, "backup-failed/db", "none was good yet"),
        ({"backups": (*USUAL, run(0, outcome="incomplete", what="3 files"))},
         "backup-partial/db", "3 files"),
        ({"missed": (NOW - HOUR,)}, "backup-missed/db", "due 2026-11-26T02:00:00Z"),
        ({"backups": USUAL, "rpo": parse_duration("24h")}, "backup-late/db", "began 1 d 1 h ago"),
        ({"backups": (), "rpo": parse_duration("24h"), "known_since": NOW - 2 * DAY},
         "backup-late/db", "none was made for 2 d"),
        ({"backups": (*USUAL, run(0, size=499))}, "size/db", "499 B, where 1000 B is the mean of 7"),
        ({"backups": (*USUAL, run(0, size=1501))}, "size/db", "1.5 KiB"),
        ({"backups": (*USUAL, run(0, minutes=21))}, "duration/db", "21 min 00 s, where 10 min 00 s"),
        ({"running_since": NOW - 21 * MINUTE}, "duration/db/running", "21 min 00 s so far"),
        ({"log": Log(NOW - 2 * HOUR), "rpo": parse_duration("1h")}, "wal-stale/db", "01:00:00Z"),
        ({"log": Log(None), "rpo": parse_duration("1h")}, "wal-stale/db", "nothing is archived"),
        ({"log": Log(NOW, ("0/3000000 to 0/4000000: lost",))}, "wal-gap/db", "lost"),
        ({"bad_pages": 2}, "page-corruption/db", "server's disk"),
        ({"frozen": ("the clock has jumped",)}, "deletion-frozen/db", "the clock has jumped"),
        ({"drills": (run(1, outcome="failed", what="row counts differ"),)},
         "drill-failed/db", "row counts differ"),
        ({"drills": (run(40),), "drill_every": parse_duration("1 month")},
         "drill-overdue/db", "the last green one was 2026-10-17"),
        ({"drill_every": parse_duration("1 month"), "known_since": NOW - 40 * DAY},
         "drill-overdue/db", "none was green yet"),
    ],
)  # fmt: skip
def test_what_is_wrong(facts: dict[str, object], key: str, says: str) -> None:
    (condition,) = found(**facts)
    assert condition.key == key
    assert says in "; ".join(condition.reasons), condition
    assert condition.what.endswith(".") and condition.do


@pytest.mark.parametrize(
    "facts",
    [
        {"backups": (*USUAL, run(0, size=501))},
        {"backups": (*USUAL, run(0, size=1500))},
        {"backups": (*USUAL, run(0, minutes=20))},
        {"backups": (run(2), run(1), run(0, size=1, minutes=500))},  # two are not usual yet
        {"backups": (*(run(d, minutes=0.01) for d in (3, 2, 1)), run(0, minutes=0.05))},
        {"backups": (*USUAL, run(1, outcome="failed"), run(0))},
        {"running_since": NOW - 19 * MINUTE},
        {"log": Log(NOW - 59 * MINUTE), "rpo": parse_duration("1h")},
        {"backups": USUAL, "rpo": parse_duration("24h"), "log": Log(NOW)},  # the log carries it
        {"drills": (run(20),), "drill_every": parse_duration("1 month")},
        {"drill_every": parse_duration("1 month"), "known_since": NOW - 20 * DAY},
    ],
)
def test_what_is_not(facts: dict[str, object]) -> None:
    assert found(**facts) == []


def test_the_storage_the_check_and_the_keys() -> None:
    state = State(
        [],
        checks=[run(1, outcome="failed", what="1 pack is damaged")],
        free=19,
        total=100,
        keys=[Key("old", NOW - 100 * DAY), Key("new", NOW - DAY)],
        key_age=parse_duration("90d"),
        place="/backups",
    )
    keys = [each.key for each in conditions(state, now=NOW)]
    assert keys == ["check-failed", "key-age/old", "space"]
    assert "19 B of 100 B are free (19%" in conditions(state, now=NOW)[2].reasons[0]
    assert conditions(replace(state, free=20, checks=[], keys=[]), now=NOW) == []
    (low,) = conditions(replace(state, free=4, checks=[], keys=[]), now=NOW)
    assert low.severity == "critical"


# -- telling -----------------------------------------------------------------------------------

WRONG = Condition("backup-failed", "db", "critical", "The backup of db failed.")


def act(told: Told | None, condition: Condition | None, now: datetime = NOW) -> list[str]:
    actions = alerting(
        [] if told is None else [told], [] if condition is None else [condition], now=now
    )
    return [action.word for action in actions]


def test_an_alert_is_raised_once_reminded_daily_and_resolved_once() -> None:
    assert act(None, WRONG) == ["raise"]
    sent = Told(WRONG.key, NOW, sent=NOW)
    assert act(sent, WRONG, NOW + 23 * HOUR) == []
    assert act(sent, WRONG, NOW + 24 * HOUR) == ["remind"]
    assert act(sent, None) == ["resolve"]
    assert act(None, None) == []


def test_what_no_channel_took_is_tried_again_ever_slower_and_escalates() -> None:
    told, words, now = Told(WRONG.key, NOW, tried=1, last_try=NOW), [], NOW
    while now < NOW + 6 * HOUR:
        now += MINUTE
        for word in act(told, WRONG, now):
            words.append((word, int((now - NOW) / MINUTE)))
            told = replace(told, tried=told.tried + 1, last_try=now)
    assert words[:3] == [("retry", 1), ("retry", 3), ("escalate", 7)]
    assert [minutes for _, minutes in words[3:]] == [15, 31, 63, 123, 183, 243, 303]


def test_what_ended_before_anybody_heard_of_it_is_dropped() -> None:
    assert act(Told(WRONG.key, NOW, tried=2, last_try=NOW), None) == ["drop"]


def test_a_resolution_that_no_channel_took_is_tried_again() -> None:
    told = Told(WRONG.key, NOW, sent=NOW, tried=1, last_try=NOW)
    assert act(told, None, NOW + MINUTE / 2) == []
    assert act(told, None, NOW + MINUTE) == ["resolve"]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_whatever_comes_and_goes(nights: list[tuple[bool, bool]]) -> None:
    """Raised and resolved in turn, never twice, whether or not the channel is up that minute."""
    told: dict[str, Told] = {}
    heard: list[str] = []
    now = NOW
    for wrong, up in [*nights, *[(nights[-1][0], True)] * 3]:
        now += 2 * HOUR  # longer than any pause
        for action in alerting(told.values(), [WRONG] if wrong else [], now=now):
            told, heard = carry(action, told, heard, up=up, now=now)
    firsts = [word for word in heard if word != "remind"]
    assert firsts == [("raise", "resolve")[at % 2] for at in range(len(firsts))]
    assert bool(told) == nights[-1][0] == (len(firsts) % 2 == 1)


def carry(
    action: Action, told: dict[str, Told], heard: list[str], *, up: bool, now: datetime
) -> tuple[dict[str, Told], list[str]]:
    """What whoever carries actions out has to keep."""
    before = told.get(action.key, Told(action.key, now))
    if action.word == "drop":
        return {}, heard
    if not up:
        return {action.key: replace(before, tried=before.tried + 1, last_try=now)}, heard
    word = "raise" if action.word in ("raise", "retry", "escalate") else action.word
    if word == "raise" and before.sent is not None:
        word = "remind"
    if word == "resolve":
        return {}, [*heard, word]
    return {action.key: replace(before, sent=now, tried=0, last_try=None)}, [*heard, word]


def test_manners_are_what_the_page_says() -> None:
    assert (MANNERS.remind, MANNERS.retry, MANNERS.slowest, MANNERS.escalate_after) == (
        DAY, MINUTE, HOUR, 3,
    )  # fmt: skip
    assert Duration(seconds=86400).before(NOW) == NOW - DAY


@pytest.mark.parametrize("days", [-300, -2, 2, 40, 4000])
def test_a_clock_that_jumped_is_one_thing_that_is_wrong(days: int) -> None:
    """Judged by the store's clock nothing is late; set right, nothing is left to tell."""
    source = SourceState(
        "db",
        (*USUAL, run(0)),
        (run(5),),
        rpo=parse_duration("26h"),
        drill_every=parse_duration("30d"),
    )
    key = Key("k", NOW - 80 * DAY)
    state = State([source], keys=(key,), key_age=parse_duration("90d"), apart=-days * 86400.0)
    (only,) = conditions(state, now=NOW + days * DAY)
    assert only.key == "clock"
    assert "it is 2026-11-26T03:00:00Z there" in only.reasons[0]
    assert conditions(replace(state, apart=0.5), now=NOW) == []
    assert conditions(replace(state, apart=None), now=NOW) == []
