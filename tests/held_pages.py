"""Pages whose rows name the tests that hold them: `| number | what | here | file::test, … |`."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


class HeldPage:
    """One such page. `rows` by number, as matches whose group 3 is what is done and 4 the tests;
    `named` are all tests on it, as (file, test)."""

    def __init__(self, path: str) -> None:
        text = (ROOT / path).read_text("utf-8")
        self.rows = {
            int(row[1]): row
            for row in re.finditer(
                r"^\| (\d+) \| (.+?) \| (.+?) \| ?(.*?) ?\|$", text, re.MULTILINE
            )
        }
        self.named = sorted(set(re.findall(r"`([a-z0-9_/]+\.py)::(test_\w+)`", text)))

    def names_only_tests(self, number: int) -> bool:
        """Whether the last cell of a row holds nothing but tests."""
        return re.sub(r"`[a-z0-9_/]+\.py::test_\w+`(, )?", "", self.rows[number][4]) == ""


@cache
def names_in(path: str) -> frozenset[str]:
    """The tests of a file, which is named from tests/."""
    text = (ROOT / "tests" / path).read_text("utf-8")
    return frozenset(re.findall(r"^def (test_\w+)", text, re.MULTILINE))


def every_test() -> list[tuple[str, str]]:
    """All tests there are, as (file, test)."""
    paths = (str(path.relative_to(ROOT / "tests")) for path in (ROOT / "tests").rglob("test_*.py"))
    return [(path, test) for path in paths for test in sorted(names_in(path))]
