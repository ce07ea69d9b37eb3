"""Vaults of odd shapes, and targets that stand in the way: nothing is left out without a word."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

from acceptance.conftest import STRONGROOM, Desk, Done, tree_of

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


def test_every_entry_that_is_not_written_is_named(filled: Desk) -> None:
    filled.run("backup", "vault")
    out, elsewhere = filled.root / "out", filled.root / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "audits").symlink_to(elsewhere)
    done = filled.run("restore", "vault", "--to", "out", "--force", "--json", status=3)
    names = {f"audits/{number:02}.json" for number in range(20)}
    told = {event["path"] for event in done.events if event["type"] == "problem"}
    assert told == {"audits", *names}
    assert {problem["path"] for problem in done.result["problems"]} == told
    assert list(elsewhere.iterdir()) == []
    text = filled.run("restore", "vault", "--to", "out", "--force", "-v", status=3)
    assert all(f"skipped: {name}: not written: " in text.stderr for name in names)
    assert "21 things" in text.error_lines[0]


def test_folders_that_their_owner_closed_are_restored_in_place(
    filled: Desk, without_rights: Callable[..., Done]
) -> None:
    filled.run("backup", "vault")
    before = tree_of(filled.vault)
    (filled.vault / "audits/00.json").write_text("spoilt")
    (filled.vault / "audits/01.json").unlink()
    (filled.vault / "audits").chmod(0o555)
    (filled.vault / "ml_features").chmod(0)
    without_rights("restore", "vault", "--in-place")
    assert tree_of(filled.vault) == before


def test_facts_that_cannot_be_set_are_counted(filled: Desk) -> None:
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("only root gives files away, and setpriv takes that right")
    for number in range(5):
        os.chown(filled.vault / f"audits/{number:02}.json", 4000, 4000)
    filled.run("backup", "vault")
    bound = [setpriv, "--bounding-set=-chown", STRONGROOM]
    done = filled.run("restore", "vault", "--to", "out", status=3, program=bound)
    line = "skipped: audits/00.json: its owner could not be set: Operation not permitted"
    assert f"{line} (and so with 4 more)" in done.stderr


def test_a_target_that_cannot_be_made_is_refused(filled: Desk) -> None:
    filled.run("backup", "vault")
    (filled.root / "dangling").symlink_to("nowhere")
    for place in ("/proc/restored", "dangling", "dangling/below"):
        done = filled.run("restore", "vault", "--to", place, status=4)
        assert done.code == "refused"


@pytest.mark.parametrize("kind", ["packs", "trees"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_backup_does_not_rely_on_what_is_not_there(filled: Desk, kind: str, how: str) -> None:
    """A green backup restores, whatever happened to the repository before it."""
    filled.run("backup", "vault")
    for pack in [path for path in (filled.repository / kind).rglob("?" * 64) if path.is_file()]:
        pack.chmod(0o600)
        data = pack.read_bytes()
        pack.unlink()
        if how == "cut":
            pack.write_bytes(data[: len(data) // 3])
    filled.run("check", status=9)
    filled.run("backup", "vault")
    filled.run("restore", "vault", "--to", "out")
    assert tree_of(filled.root / "out") == tree_of(filled.vault)
