"""What a drill is worth: verdicts, the leaf, the moment that is drawn."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.format.run import Run
from strongroom.rules.drill import (
    EXIT,
    OUTCOME,
    Drilled,
    Span,
    Step,
    detail_of,
    draw_moment,
    draw_one,
    judge,
)

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def steps(**verdicts: str) -> list[Step]:
    return [Step(name, verdict, 5, f"{name} said") for name, verdict in verdicts.items()]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given_", "verdict"),
    [
        ([], "incomplete"),
        (steps(restore="green", starts="green"), "green"),
        (steps(restore="green", collations="amber"), "amber"),
        (steps(restore="green", promise="red"), "missed"),
        (steps(restore="green", collations="amber", promise="red"), "missed"),
        (steps(restore="green", rows="red", promise="red"), "red"),
        (steps(restore="red", starts="skipped"), "red"),
        (steps(restore="green", amcheck="skipped"), "incomplete"),
        (steps(restore="green", amcheck="skipped", promise="red"), "incomplete"),
        ([*steps(restore="green"), Step("freshness", "skipped", demanded=False)], "green"),
        ([Step("freshness", "skipped", demanded=False)], "incomplete"),
        (steps(promise="red"), "incomplete"),
    ],
)
def test_a_verdict_is_never_better_than_its_worst_step(given_: list[Step], verdict: str) -> None:
    assert judge(given_) == verdict
    assert (EXIT[verdict] == 0) == (verdict in ("green", "amber"))  # type: ignore[index]


def leaf(outcome: str, detail: dict[str, object], **more: object) -> Run:
    run = Run("drill", "0" * 16, NOW, NOW + timedelta(minutes=3), source="db", outcome=outcome)
    body = run.as_json() | {"detail": detail} | more
    return Run.from_json(body)


def test_a_leaf_comes_back_as_it_was_written() -> None:
    done = [*steps(restore="green", collations="amber"), Step("sql", "skipped", demanded=False)]
    detail = detail_of(
        done,
        at=NOW,
        kind="physical",
        restore_ms=1234,
        total_ms=5678,
        target_seconds=14400,
        report="ab",
    )
    drilled = Drilled.from_run(leaf("done", detail, snapshot="c0ffee"))
    assert drilled.steps == tuple(done)
    assert (drilled.at, drilled.kind, drilled.restore_ms, drilled.total_ms) == (
        NOW,
        "physical",
        1234,
        5678,
    )
    assert (drilled.target_seconds, drilled.report, drilled.snapshot) == (14400, "ab", "c0ffee")
    assert drilled.verdict == "amber" and drilled.green and drilled.verifies
    assert drilled.notes == ("collations: collations said",)


@pytest.mark.parametrize(
    "outcome", ["failed", "interrupted", "incomplete", "refused", "later-word"]
)
def test_green_steps_do_not_make_a_run_green_that_did_not_end_well(outcome: str) -> None:
    detail = detail_of(
        steps(restore="green"), at=NOW, kind="files", restore_ms=1, total_ms=2, target_seconds=None,
        report="",
    )  # fmt: skip
    drilled = Drilled.from_run(leaf(outcome, detail))
    assert not drilled.green and not drilled.verifies


def test_a_promise_missed_verifies_the_backup_and_is_not_green() -> None:
    detail = detail_of(
        steps(restore="green", promise="red"), at=NOW, kind="files", restore_ms=1, total_ms=2,
        target_seconds=1, report="",
    )  # fmt: skip
    drilled = Drilled.from_run(leaf(OUTCOME["missed"], detail))
    assert drilled.verdict == "missed" and drilled.verifies and not drilled.green


@pytest.mark.parametrize(
    "detail",
    [
        {},
        {"steps": None, "at": 7, "restore_ms": "1", "total_ms": -1, "target_seconds": True},
        {"steps": [1, {}, {"name": "rows", "verdict": "splendid"}], "at": "2026-11-25T12:00:00"},
    ],
)
def test_a_leaf_that_lacks_things_is_read_and_never_green(detail: dict[str, object]) -> None:
    drilled = Drilled.from_run(leaf("done", detail))
    assert not drilled.green
    assert (drilled.at, drilled.restore_ms, drilled.total_ms, drilled.target_seconds) == (None,) * 4


def test_only_a_drill_is_one() -> None:
    with pytest.raises(ValueError, match="no drill"):
        Drilled.from_run(Run("backup", "0" * 16, NOW, NOW))


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(-5, 500)), min_size=1, max_size=6),
    st.integers(0, 2**128 - 1),
)
def test_a_moment_that_is_drawn_lies_in_a_span(parts: list[tuple[int, int]], number: int) -> None:
    spans = [
        Span(NOW + timedelta(hours=at), NOW + timedelta(hours=at, microseconds=size))
        for at, size in parts
    ]
    if all(span.last < span.first for span in spans):
        with pytest.raises(ValueError, match="no moment"):
            draw_moment(spans, number)
        return
    moment = draw_moment(spans, number)
    assert any(span.first <= moment <= span.last for span in spans)


def test_each_moment_is_as_likely_as_any_other() -> None:
    spans = [
        Span(NOW, NOW + timedelta(microseconds=2)),
        Span(NOW + timedelta(days=1), NOW + timedelta(days=1)),
    ]
    drawn = [draw_moment(spans, number) for number in range(8)]
    assert drawn[:4] == [
        *(NOW + timedelta(microseconds=n) for n in range(3)),
        NOW + timedelta(days=1),
    ]
    assert drawn[4:] == drawn[:4]
    assert [draw_one("abc", number) for number in range(4)] == list("abca")
    with pytest.raises(ValueError, match="nothing"):
        draw_one([], 1)
