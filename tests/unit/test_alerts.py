"""Steps of alerts: what is open after them, and that a leaf gives back what was put."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.rules.alerts import WORDS, Step, after, step_of
from strongroom.rules.anomalies import Condition, Told

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)
LATE = Condition("backup-late", "db", "critical", "It is late.", ("very",), "Run it.", "part")
DOWN = {"mail": "it does not answer"}


@dataclass(frozen=True)
class Leaf:
    source: str
    ended: datetime
    detail: dict[str, Any] = field(default_factory=dict)


def step(word: str, minutes: int = 0, *, taken: bool = True) -> Step:
    sent, faults = (("mail",), {}) if taken else ((), DOWN)
    return Step(word, LATE, NOON, NOON + timedelta(minutes=minutes), sent, faults)  # type: ignore[arg-type]


KEY = LATE.key


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([step("raise")], Told(KEY, NOON, sent=NOON)),
        ([step("raise", 0, taken=False)], Told(KEY, NOON, None, 1, NOON)),
        (
            [step("raise", 0, taken=False), step("retry", 1, taken=False)],
            Told(KEY, NOON, None, 2, NOON + timedelta(minutes=1)),
        ),
        (
            [step("raise", 0, taken=False), step("escalate", 5)],
            Told(KEY, NOON, NOON + timedelta(minutes=5)),
        ),
        ([step("raise"), step("remind", 9)], Told(KEY, NOON, NOON + timedelta(minutes=9))),
        (
            [step("raise"), step("resolve", 9, taken=False)],
            Told(KEY, NOON, NOON, 1, NOON + timedelta(minutes=9)),
        ),
        ([step("raise"), step("resolve", 9, taken=False), step("resolve", 10)], None),
        ([step("raise"), step("resolve", 9)], None),
        ([step("raise", taken=False), step("drop", 9)], None),
        ([step("resolve", 9, taken=False)], None),
    ],
)
def test_what_is_open_after_steps(steps: list[Step], told: Told | None) -> None:
    found = after(steps)
    if told is None:
        assert found == {}
    else:
        assert found[KEY].told == told
        assert found[KEY].condition == LATE


def test_who_took_it_is_known_as_long_as_it_lasts() -> None:
    boss = Step("escalate", LATE, NOON, NOON, ("boss",))
    assert after([step("raise", taken=False), boss, step("remind")])[KEY].channels == {
        "boss",
        "mail",
    }


def test_what_no_channel_wants_counts_as_sent() -> None:
    """Where every channel hears of critical things only, a warning is not tried for ever."""
    quiet = Step("raise", LATE, NOON, NOON)
    assert after([quiet])[KEY].told.sent == NOON


words = st.text(max_size=20)
conditions = st.builds(
    Condition, words, words, st.sampled_from(["critical", "warning"]), words,
    st.lists(words, max_size=3).map(tuple), words, words,
)  # fmt: skip
moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


@given(
    st.builds(
        Step, st.sampled_from(WORDS), conditions, moments, moments,
        st.lists(words, max_size=3).map(tuple), st.dictionaries(words, words, max_size=3),
    )
)  # fmt: skip
def test_a_leaf_gives_back_its_step(one: Step) -> None:
    assert step_of(Leaf(one.condition.source, one.at, one.detail())) == one


@pytest.mark.parametrize("key", sorted(step("raise").detail()))
def test_a_leaf_that_is_none_is_passed_over(key: str) -> None:
    body = step("raise").detail()
    del body[key]
    if key != "key":
        assert step_of(Leaf("db", NOON, body)) is None
    assert step_of(Leaf("db", NOON, body | {"word": "sing"})) is None
