"""docs/reference/postgres-faults.md is whole: sixty-six faults, and every test that it names exists."""

from __future__ import annotations

import re

import pytest

from held_pages import HeldPage, every_test, names_in

PAGE = HeldPage("docs/reference/postgres-faults.md")


def test_every_fault_has_its_row() -> None:
    assert list(PAGE.rows) == list(range(1, 67))


@pytest.mark.parametrize("number", PAGE.rows)
def test_a_fault_is_held_by_a_test_or_said_to_be_open(number: int) -> None:
    here, tests = PAGE.rows[number][3], PAGE.rows[number][4]
    assert tests or "**Open**" in here, PAGE.rows[number][0]
    assert PAGE.names_only_tests(number)


@pytest.mark.parametrize(("path", "test"), PAGE.named)
def test_a_test_on_the_page_exists(path: str, test: str) -> None:
    assert test in names_in(path)


def test_every_test_that_is_named_for_a_fault_is_in_its_rows() -> None:
    for path, test in every_test():
        if match := re.match(r"test_p(\d+)(?:_to_p(\d+))?_", test):
            numbers = range(int(match[1]), int(match[2] or match[1]) + 1)
            rows = [number for number in numbers if f"{path}::{test}`" in PAGE.rows[number][4]]
            assert rows, f"{path}::{test} is in none of its rows"
