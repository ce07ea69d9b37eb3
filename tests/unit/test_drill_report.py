"""The page of a quarter: the checklist of the runbook, its boxes, and a page that is kept filled."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from strongroom.rules.drill import Drilled, Step
from strongroom.rules.drill_report import (
    parse_quarter,
    quarter_of,
    quarter_page,
    quarter_section,
)

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
SOURCES = {"db": "logical", "vault": "files"}
DB = ("restore", "rows", "amcheck", "sql", "smoke", "promise")
VAULT = ("restore", "files", "sample", "promise")
SEED = """\
## Restore Testing Schedule

**Frequency:** Quarterly (Q1, Q2, Q3, Q4)

### Q3 2026 Test Results
*To be completed*

### Q4 2026 Test Results
*To be completed*

---

## Automation
"""


def drill(source: str, names: tuple[str, ...], *, outcome: str = "done", **worse: str) -> Drilled:
    steps = tuple(
        Step(name, worse.get(name, "green"), 500, f"{name} of {source}")  # type: ignore[arg-type]
        for name in names
    )
    return Drilled(
        "ab" * 8, source, NOW, NOW + timedelta(minutes=1), "schedule", outcome, f"drill {source}",
        "c0ffee", NOW - timedelta(days=1), "files", 61_000, 70_000, 14_400, steps, "f" * 64,
    )  # fmt: skip


def boxes(drills: list[Drilled], sources: dict[str, str] = SOURCES) -> str:
    section = quarter_section((2026, 4), drills, sources, UTC)
    return "".join(line[3] for line in section.splitlines() if line.startswith("- ["))


@pytest.mark.parametrize(
    ("drills", "ticked"),
    [
        ([], "        "),
        ([drill("db", DB), drill("vault", VAULT)], "xxxxxxxx"),
        ([drill("db", DB)], "xx  x xx"),
        ([drill("vault", VAULT)], "  xx  xx"),
        ([drill("db", DB, rows="red", outcome="failed"), drill("vault", VAULT)], "  xx  xx"),
        ([drill("db", DB, outcome="interrupted")], "      x "),
        ([drill("db", DB, promise="red", outcome="missed"), drill("vault", VAULT)], "  xx  xx"),
        ([drill("db", DB, rows="amber"), drill("vault", VAULT)], "xxxxxxxx"),
        # A step that was not asked for ticks nothing, and one of several drills is enough.
        ([drill("db", ("restore",)), drill("db", DB), drill("vault", VAULT)], "xxxxxxxx"),
        ([drill("db", ("restore", "rows")), drill("vault", VAULT)], "xxxx xxx"),
    ],
)
def test_a_box_is_ticked_by_green_drills_alone(drills: list[Drilled], ticked: str) -> None:
    assert boxes(drills) == ticked


def test_every_source_that_is_configured_must_be_drilled() -> None:
    drills = [drill("db", DB), drill("vault", VAULT)]
    assert boxes(drills, {**SOURCES, "other": "physical"}) == "  xx  xx"
    text = quarter_section((2026, 4), drills, {**SOURCES, "other": "physical"}, UTC)
    assert "- [ ] Restore PostgreSQL backup to staging (not yet: other)" in text


def test_a_quarter_as_it_was_written_once() -> None:
    drills = [
        drill("db", DB, amcheck="amber"),
        drill("db", DB, rows="red", outcome="failed"),
        drill("vault", (), outcome="interrupted"),
        drill("vault", VAULT),
    ]
    text = quarter_section((2026, 4), drills, SOURCES, UTC)
    golden = Path(__file__).parents[1] / "golden/drill_quarter.md"
    assert text == golden.read_text("utf-8")


def test_the_seeds_page_is_kept_filled_and_nothing_else_of_it_changes() -> None:
    section = quarter_section((2026, 4), [drill("db", DB)], SOURCES, UTC)
    once = quarter_page(SEED, (2026, 4), section)
    assert once.startswith(SEED[: SEED.index("### Q4")])
    assert once.endswith("\n---\n\n## Automation\n")
    assert once.count("*To be completed*") == 1
    assert quarter_page(once, (2026, 4), section) == once
    both = quarter_page(once, (2026, 3), quarter_section((2026, 3), [], SOURCES, UTC))
    assert quarter_page(both, (2026, 4), section) == both
    more = quarter_section((2026, 4), [drill("db", DB), drill("vault", VAULT)], SOURCES, UTC)
    later = quarter_page(both, (2026, 4), more)
    assert later != both
    assert quarter_page(later, (2026, 4), section) == both


@pytest.mark.parametrize("before", ["", "# Ours", "# Ours\n", "# Ours\n\n"])
def test_a_page_without_the_heading_gets_it_at_its_end(before: str) -> None:
    page = quarter_page(before, (2027, 1), quarter_section((2027, 1), [], SOURCES, UTC))
    assert page.startswith(before)
    assert "### Q1 2027 Test Results" in page
    assert quarter_page(page, (2027, 1), quarter_section((2027, 1), [], SOURCES, UTC)) == page


def test_quarters() -> None:
    assert parse_quarter("2026Q4") == parse_quarter("2026-q4") == (2026, 4)
    for wrong in ("2026", "Q4", "2026Q5", "26Q4", "2026Q4 ", "２026Q4"):
        with pytest.raises(ValueError, match="is no quarter"):
            parse_quarter(wrong)
    moment = datetime(2026, 12, 31, 23, 30, tzinfo=UTC)
    assert quarter_of(moment, UTC) == (2026, 4)
    assert quarter_of(moment, ZoneInfo("Europe/Madrid")) == (2027, 1)


def test_what_a_database_says_breaks_no_table() -> None:
    one = drill("db", ("rows",), rows="red", outcome="failed")
    steps = (Step("rows", "red", 1, "a|b <i>\n| c `d` [e](f)"),)
    odd = Drilled(*(getattr(one, name) if name != "steps" else steps for name in one.__slots__))
    (line,) = [
        line
        for line in quarter_section((2026, 4), [odd], SOURCES, UTC).splitlines()
        if line.startswith("- 2026")
    ]
    assert line.endswith(r"a\|b \<i\> \| c \`d\` \[e\](f)")
