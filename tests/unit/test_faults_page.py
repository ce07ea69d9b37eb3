"""docs/reference/postgres-faults.md is whole: sixty-six faults, and every test that it names exists."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/postgres-faults.md").read_text("utf-8")
ROWS = {
    int(row[1]): row
    for row in re.finditer(r"^\| (\d+) \| (.+?) \| (.+?) \| ?(.*?) ?\|$", PAGE, re.MULTILINE)
}
NAMED = sorted(set(re.findall(r"`([a-z0-9_/]+\.py)::(test_\w+)`", PAGE)))


def test_every_fault_has_its_row() -> None:
    assert list(ROWS) == list(range(1, 67))


@pytest.mark.parametrize("number", ROWS)
def test_a_fault_is_held_by_a_test_or_said_to_be_open(number: int) -> None:
    here, tests = ROWS[number][3], ROWS[number][4]
    assert tests or "**Open**" in here, ROWS[number][0]
    assert re.sub(r"`[a-z0-9_/]+\.py::test_\w+`(, )?", "", tests) == ""


@cache
def names_in(path: str) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", (ROOT / "tests" / path).read_text("utf-8"), re.M))


@pytest.mark.parametrize(("path", "test"), NAMED)
def test_a_test_on_the_page_exists(path: str, test: str) -> None:
    assert test in names_in(path)


def test_every_test_that_is_named_for_a_fault_is_in_its_rows() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        place = str(path.relative_to(ROOT / "tests"))
        for test in names_in(place):
            if match := re.match(r"test_p(\d+)(?:_to_p(\d+))?_", test):
                numbers = range(int(match[1]), int(match[2] or match[1]) + 1)
                rows = [number for number in numbers if f"{place}::{test}`" in ROWS[number][4]]
                assert rows, f"{place}::{test} is in none of its rows"
