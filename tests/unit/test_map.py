"""docs/map.md leads somewhere: every path on it exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "map.md").read_text("utf-8")
PATHS = sorted(set(re.findall(r"`([a-z_/.0-9]+(?:/|\.py|\.md|\.toml|\.c))`", TEXT)))


@pytest.mark.parametrize("path", PATHS)
def test_a_path_on_the_map_exists(path: str) -> None:
    outside = (
        "tests/",
        "docs/",
        "src/",
        "examples/",
        "ops/",
        "scripts/",
        "recover.py",
        "pyproject.toml",
    )
    assert (ROOT / path if path.startswith(outside) else ROOT / "src/strongroom" / path).exists()


def test_every_room_is_on_the_map() -> None:
    rooms = [path.name for path in (ROOT / "src/strongroom").iterdir() if path.is_dir()]
    for room in rooms:
        assert re.search(rf"\b{room}\b", TEXT) or room == "__pycache__", room
