"""Vaults of odd shapes, and targets that stand in the way: nothing is left out without a word."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from acceptance.conftest import Desk, Done, tree_of

KIB = 1024


def test_files_of_middling_size_in_many_folders(desk: Desk) -> None:
    """Together they fill the buffer of one reading to the brim, folder after folder."""
    for at in range(120):
        folder = desk.vault / f"{at:03}"
        folder.mkdir()
        (folder / "middling.bin").write_bytes(os.urandom(80 * KIB + at))
    desk.run("init", "--quiet")
    desk.run("backup", "vault")
    desk.run("restore", "vault", "--to", "out")
    assert tree_of(desk.root / "out") == tree_of(desk.vault)
