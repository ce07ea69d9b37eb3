"""docs/reference/postgres-traps.md is whole: seventy traps, and every test that it names exists."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/postgres-traps.md").read_text("utf-8")
ROWS = {
    int(row[1]): row
    for row in re.finditer(r"^\| (\d+) \| (.+?) \| (.+?) \| ?(.*?) ?\|$", PAGE, re.MULTILINE)
}
NAMED = sorted(set(re.findall(r"`([a-z0-9_/]+\.py)::(test_\w+)`", PAGE)))


def test_every_trap_has_its_row() -> None:
    assert list(ROWS) == list(range(1, 71))


@pytest.mark.parametrize("number", ROWS)
def test_a_trap_is_held_by_a_test_or_said_to_be_open(number: int) -> None:
    here, tests = ROWS[number][3], ROWS[number][4]
    assert tests or "**Open**" in here or here.startswith("n/a: "), ROWS[number][0]
    assert re.sub(r"`[a-z0-9_/]+\.py::test_\w+`(, )?", "", tests) == ""


@cache
def names_in(path: str) -> set[str]:
    return set(re.findall(r"^def (test_\w+)", (ROOT / "tests" / path).read_text("utf-8"), re.M))


@pytest.mark.parametrize(("path", "test"), NAMED)
def test_a_test_on_the_page_exists(path: str, test: str) -> None:
    assert test in names_in(path)


@pytest.mark.parametrize(("path", "test"), [one for one in NAMED if "trap" in one[1]])
def test_a_test_that_is_named_for_a_trap_is_in_its_row(path: str, test: str) -> None:
    numbers = re.match(r"test_traps?_((?:\d+_(?:and_)?)+)", test)
    assert numbers
    for number in re.findall(r"\d+", numbers[1]):
        assert f"{path}::{test}`" in ROWS[int(number)][4], f"not in the row of trap {number}"


def test_every_test_that_is_named_for_a_trap_is_on_the_page() -> None:
    """A new one belongs into the row of its trap, which then is not open any more."""
    found = {
        (str(path.relative_to(ROOT / "tests")), test)
        for path in (ROOT / "tests").rglob("test_*.py")
        for test in names_in(str(path.relative_to(ROOT / "tests")))
        if re.match(r"test_traps?_\d", test)
    }
    assert sorted(found - set(NAMED)) == []
