"""What is listed of a data directory, made by hand where a server would not make it so."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from strongroom.errors import Refused
from strongroom.postgres.physical.walk import Listing, Walk


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name in ("base/5", "global", "pg_tblspc", "pg_wal", "pg_xact"):
        (root / name).mkdir(parents=True)
    (root / "PG_VERSION").write_text("15\n")
    (root / "base" / "5" / "1259").write_bytes(b"x")
    return root


def walk(root: Path, major: int = 15) -> tuple[Listing, list[tuple[bytes, str]]]:
    told: list[tuple[bytes, str]] = []
    listing = Walk(
        os.fsencode(root), major=major, catalog_version=1,
        told=lambda path, why: told.append((path, why)),
    ).run()  # fmt: skip
    listing.close()
    return listing, told


def paths(listing: Listing) -> set[bytes]:
    return {found.path for found in listing.files}


def test_trap_9_pg_wal_as_a_link_becomes_a_directory(data: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "wal"
    (data / "pg_wal").rename(elsewhere)
    (elsewhere / "000000010000000000000001").write_bytes(b"x")
    (data / "pg_wal").symlink_to(elsewhere)
    listing, told = walk(data)
    assert told == []
    directories = {entry.path for entry in listing.directories}
    assert {b"data/pg_wal", b"data/pg_wal/archive_status"} <= directories
    assert b"data/pg_wal/summaries" not in directories
    assert not [path for path in paths(listing) if path.startswith(b"pg_wal")]
    listing, _ = walk(data, major=17)
    assert b"data/pg_wal/summaries" in {entry.path for entry in listing.directories}


def test_trap_9_links_of_databases_are_told(data: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (data / "base" / "6").symlink_to(tmp_path / "other")
    _, told = walk(data)
    assert [path for path, _ in told] == [b"data/base/6"]


def test_trap_9_a_tablespace_in_place_is_a_part_of_the_data_directory(data: Path) -> None:
    place = data / "pg_tblspc" / "16400" / "PG_15_1" / "5"
    place.mkdir(parents=True)
    (place / "16384").write_bytes(b"x")
    (place / "t3_16385").write_bytes(b"x")
    listing, _ = walk(data)
    assert listing.tablespaces == []
    assert b"pg_tblspc/16400/PG_15_1/5/16384" in paths(listing)
    assert b"pg_tblspc/16400/PG_15_1/5/t3_16385" not in paths(listing)
    (found,) = [one for one in listing.files if one.name.endswith(b"16384")]
    assert found.relation is not None


def test_trap_9_a_tablespace_elsewhere_has_names_of_its_own(data: Path, tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"sp ace\xff")
    (place / "PG_15_1" / "5").mkdir(parents=True)
    (place / "PG_14_9").mkdir()
    (place / "PG_15_1" / "5" / "16384").write_bytes(b"x")
    (place / "PG_15_1" / "5" / "16385_init").write_bytes(b"")
    (place / "PG_15_1" / "5" / "16385").write_bytes(b"x")
    (place / "PG_14_9" / "7").write_bytes(b"x")
    (data / "pg_tblspc" / "16400").symlink_to(place)
    listing, told = walk(data)
    assert told == []
    (space,) = listing.tablespaces
    assert (space.oid, space.location) == ("16400", os.fsencode(place))
    found = {one.path: one.tree for one in listing.files if one.root.manifest}
    assert found == {
        b"pg_tblspc/16400/PG_15_1/5/16384": b"tablespaces/16400/PG_15_1/5/16384",
        b"pg_tblspc/16400/PG_15_1/5/16385_init": b"tablespaces/16400/PG_15_1/5/16385_init",
    }


def test_trap_9_a_tablespace_whose_disk_is_not_there_is_refused(data: Path, tmp_path: Path) -> None:
    (data / "pg_tblspc" / "16400").symlink_to(tmp_path / "gone")
    with pytest.raises(Refused, match="gone/PG_15_1 of the data directory cannot be read"):
        walk(data)


def test_trap_9_a_tablespace_that_is_dropped_meanwhile_is_recoverys_matter(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "pg_tblspc" / "16400").symlink_to(tmp_path / "gone")
    real = Walk._directory

    def dropped(self: Walk, *given: object) -> None:
        real(self, *given)  # type: ignore[arg-type]
        (data / "pg_tblspc" / "16400").unlink(missing_ok=True)

    monkeypatch.setattr(Walk, "_directory", dropped)
    listing, told = walk(data)
    assert told == []
    assert [space.oid for space in listing.tablespaces] == ["16400"]


def test_what_is_no_file_is_left_out(data: Path) -> None:
    os.mkfifo(data / "fifo")
    (data / "lost+found").mkdir()
    (data / "lost+found" / "x").write_bytes(b"x")
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(data)  # a socket's address is short
        try:
            one.bind("s")
        finally:
            os.chdir(here)
    listing, told = walk(data)
    assert told == []
    assert listing.left_out["special file"] == 2
    assert listing.left_out["mount point's own"] == 1
    assert paths(listing) == {b"PG_VERSION", b"base/5/1259"}


def test_a_data_directory_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        walk(tmp_path / "nowhere")
