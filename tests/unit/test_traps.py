"""docs/reference/postgres-traps.md is whole: seventy traps, and every test that it names exists."""

from __future__ import annotations

import re

import pytest

from held_pages import HeldPage, every_test, names_in

PAGE = HeldPage("docs/reference/postgres-traps.md")


def test_every_trap_has_its_row() -> None:
    assert list(PAGE.rows) == list(range(1, 71))


@pytest.mark.parametrize("number", PAGE.rows)
def test_a_trap_is_held_by_a_test_or_said_to_be_open(number: int) -> None:
    here, tests = PAGE.rows[number][3], PAGE.rows[number][4]
    assert tests or "**Open**" in here or here.startswith("n/a: "), PAGE.rows[number][0]
    assert PAGE.names_only_tests(number)


@pytest.mark.parametrize(("path", "test"), PAGE.named)
def test_a_test_on_the_page_exists(path: str, test: str) -> None:
    assert test in names_in(path)


@pytest.mark.parametrize(("path", "test"), [one for one in PAGE.named if "trap" in one[1]])
def test_a_test_that_is_named_for_a_trap_is_in_its_row(path: str, test: str) -> None:
    numbers = re.match(r"test_traps?_((?:\d+_(?:and_)?)+)", test)
    assert numbers
    for number in re.findall(r"\d+", numbers[1]):
        assert f"{path}::{test}`" in PAGE.rows[int(number)][4], f"not in the row of trap {number}"


def test_every_test_that_is_named_for_a_trap_is_on_the_page() -> None:
    """A new one belongs into the row of its trap, which then is not open any more."""
    found = {one for one in every_test() if re.match(r"test_traps?_\d", one[1])}
    assert sorted(found - set(PAGE.named)) == []
