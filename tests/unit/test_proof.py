"""rules/proof.py: which backups are verified, by what the log tells; the newest word counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from strongroom.format.run import Run
from strongroom.rules.drill import OUTCOME, Step, Verdict, detail_of
from strongroom.rules.proof import proved

THEN = datetime(2026, 7, 1, tzinfo=UTC)


def run(type: str, *, outcome: str = "done", snapshot: str = "", **detail: Any) -> Run:
    return Run(type, "0" * 16, THEN, THEN, outcome=outcome, snapshot=snapshot, detail=detail)


def check(*whole: str, hurt: tuple[str, ...] = ()) -> Run:
    return run(
        "check",
        outcome="failed" if hurt else "done",
        whole=[*whole],
        damaged_snapshots=[*hurt],
    )


def drill(snapshot: str, verdict: Verdict) -> Run:
    steps = {
        "green": [Step("restore", "green")],
        "amber": [Step("restore", "green"), Step("amcheck", "amber", what="not installed")],
        "missed": [Step("restore", "green"), Step("promise", "red")],
        "incomplete": [Step("restore", "green"), Step("smoke", "skipped")],
        "red": [Step("restore", "red")],
    }[verdict]
    told = detail_of(
        steps, at=THEN, kind="logical", restore_ms=1, total_ms=2, target_seconds=None, report=""
    )
    return run("drill", outcome=OUTCOME[verdict], snapshot=snapshot, **told)


@pytest.mark.parametrize(
    ("runs", "verified", "damaged"),
    [
        ([], "", ""),
        ([check("a", "b")], "ab", ""),
        ([run("backup", snapshot="a")], "", ""),
        (
            [run("check", level=1, damaged_snapshots=[])],
            "",
            "",
        ),  # the structure alone, or of before
        ([check("a", hurt=("b",))], "a", "b"),
        ([check("a", "b"), check("a", hurt=("b",))], "a", "b"),
        ([check("a", hurt=("b",)), check("a", "b")], "ab", ""),  # a copy brought the pack back
        ([check("a", hurt=("b",)), check("a")], "a", "b"),  # nobody looked at b again
        ([drill("a", "green")], "a", ""),
        ([drill("a", "amber")], "a", ""),
        ([drill("a", "missed")], "a", ""),  # it took too long, and it restores
        ([drill("a", "incomplete")], "", ""),
        ([drill("a", "red")], "", ""),
        ([check("a"), drill("a", "red")], "", ""),
        ([check("a"), drill("a", "incomplete")], "a", ""),
        ([drill("a", "red"), drill("a", "green")], "a", ""),
        ([check("a"), run("drill", outcome="interrupted", snapshot="a")], "a", ""),
        ([run("drill", outcome="done", snapshot="a")], "", ""),  # no steps: nothing was looked at
        ([run("check", whole="abc", damaged_snapshots={"a": 1})], "", ""),  # of another program
        ([run("check", whole=["a", 7, None])], "a", ""),
    ],
)
def test_the_newest_word_counts(runs: list[Run], verified: str, damaged: str) -> None:
    found = proved(runs)
    assert found.verified == frozenset(verified)
    assert found.damaged == frozenset(damaged)


def test_the_order_is_that_of_the_log_whatever_clocks_say() -> None:
    late = Run("check", "1" * 16, THEN, THEN + timedelta(days=9), detail={"whole": ["a"]})
    early = Run("check", "2" * 16, THEN, THEN, detail={"damaged_snapshots": ["a"]})
    assert proved([late, early]).damaged == {"a"}
