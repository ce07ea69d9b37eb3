"""A file of our own beside the one that it will replace."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from strongroom.beside import Beside


@pytest.fixture
def path(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "caches" / "one")


def names(path: bytes) -> list[bytes]:
    return sorted(os.listdir(os.path.dirname(path)))


def content(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def test_it_takes_the_place_of_the_old_one(path: bytes) -> None:
    for data in (b"the old one, longer", b"the new one"):
        file = Beside(path)
        file.write(data)
        file.replace()
        assert content(path) == data
        assert os.stat(path).st_mode & 0o777 == 0o600
    assert names(path) == [b"one"]


@pytest.mark.parametrize("way", ["discarded", "forgotten"])
def test_what_is_not_settled_leaves_nothing(path: bytes, way: str) -> None:
    first = Beside(path)
    first.write(b"old")
    first.replace()
    file = Beside(path)
    file.write(b"new")
    if way == "discarded":
        file.discard()
    del file
    assert content(path) == b"old"
    assert names(path) == [b"one"]


def test_one_writes_at_a_time(path: bytes) -> None:
    first = Beside(path)
    first.write(b"first")
    with pytest.raises(BlockingIOError):
        Beside(path)
    first.replace()
    assert content(path) == b"first"


def test_what_took_its_place_meanwhile_is_not_emptied(
    path: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ends between the second's open and its lock: what is open is the live file then."""
    first, lock = Beside(path), fcntl.flock
    first.write(b"live")

    def late(fd: int, how: int) -> None:
        first.replace()
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(OSError):
        Beside(path)
    assert content(path) == b"live"


def test_a_link_in_its_place_is_refused(path: bytes, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    os.makedirs(os.path.dirname(path))
    os.symlink(tmp_path / "precious", path + b".new")
    with pytest.raises(OSError):
        Beside(path)
    assert (tmp_path / "precious").read_bytes() == b"precious"
