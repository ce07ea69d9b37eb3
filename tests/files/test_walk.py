"""Listing ahead changes nothing that the walk yields, and holds no more than it may."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from strongroom.files import walk
from strongroom.files.patterns import Patterns
from strongroom.files.walk import Walk


def furnish(root: Path) -> None:
    for outer in range(9):
        for inner in ("a", "a-b", "a.b", "z"):
            folder = root / f"d{outer}" / inner / "deep"
            folder.mkdir(parents=True)
            (folder / "file").write_bytes(b"")
        (root / f"d{outer}-file").write_bytes(b"")
    deep = root / "deep"
    for _ in range(150):
        deep.mkdir()
        (deep / "sibling").mkdir()
        (deep / "zibling").mkdir()
        deep = deep / "next"


def walked(
    root: Path, *, patterns: Patterns | None = None, most: int = 1 << 30
) -> tuple[list[bytes], list[tuple[bytes, str]]]:
    """The paths of the runs, at most so many runs, and what was told."""
    told: list[tuple[bytes, str]] = []
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        runs = Walk(fd, lambda *what: told.append(what), patterns or Patterns()).runs()
        paths: list[bytes] = []
        for _, run in zip(range(most), runs, strict=False):
            assert os.fstat(run.fd)
            paths += [run.prefix + name for name in run.names[run.start : run.stop]]
        runs.close()
        return paths, told
    finally:
        os.close(fd)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_walk_is_the_same_with_and_without(tmp_path: Path, monkeypatch) -> None:
    furnish(tmp_path)
    ahead, told = walked(tmp_path)
    assert ahead == sorted(ahead)
    assert len(ahead) == sum(len(dirs) + len(files) for _, dirs, files in os.walk(tmp_path))
    assert told == []
    some = Patterns([b"d3/", b"deep/"], [b"z/"])
    chosen = walked(tmp_path, patterns=some)
    monkeypatch.setattr(walk, "ALL_AHEAD", 0)
    assert walked(tmp_path)[0] == ahead
    assert walked(tmp_path, patterns=some) == chosen


@pytest.mark.parametrize("most", [0, 1, 2, 7, 40, 1 << 30])
def test_no_descriptor_outlives_a_walk(tmp_path: Path, most: int) -> None:
    furnish(tmp_path)
    before = descriptors()
    walked(tmp_path, most=most)
    assert descriptors() == before


def test_what_is_open_is_bounded_however_deep_the_tree(tmp_path: Path) -> None:
    furnish(tmp_path)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    before, highest = descriptors(), 0
    for _ in Walk(fd, lambda *what: None).runs():
        highest = max(highest, descriptors() - before)
    os.close(fd)
    assert 0 < highest <= walk.OPEN_DIRECTORIES + 2 * walk.ALL_AHEAD + 2


def test_a_large_directory_is_listed_in_its_turn(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(walk, "_LARGE", 1)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "f").write_bytes(b"")
    monkeypatch.setattr(walk, "_open_ahead", None)
    assert walked(tmp_path) == ([b"a", b"b", b"b/f"], [])


def test_a_directory_that_vanished_is_told_in_its_place(tmp_path: Path, monkeypatch) -> None:
    for name in "abcde":
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(b"")
    scan = walk.scan_dir

    def replace(fd: int):
        listing = scan(fd)
        if listing[0] == list(map(str.encode, "abcde")):
            os.rename(tmp_path / "b", tmp_path / "elsewhere")
            os.unlink(tmp_path / "d" / "f")
            os.rmdir(tmp_path / "d")
            os.symlink("a", tmp_path / "d")
        return listing

    monkeypatch.setattr(walk, "scan_dir", replace)
    paths, told = walked(tmp_path)
    assert [path for path, _ in told] == [b"b", b"d"]
    assert all("left out" in why for _, why in told)
    assert b"a/f" in paths
    assert b"e/f" in paths
    assert b"d/f" not in paths
