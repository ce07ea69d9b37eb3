"""Which segments of WAL a backup copies into the archive, and which it waits for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from postgres.physical.tools import FolderArchive
from strongroom.errors import StrongroomError
from strongroom.postgres.physical import wal_copy
from strongroom.postgres.physical.wal_copy import WalCopied, WalCopy
from strongroom.progress import Silent

MIB = 1 << 20
NAMES = [f"0000000200000000{number:08X}" for number in range(8)]


def copied(
    tmp_path: Path, *, start: int, stop: int, archive: FolderArchive | None = None, **how: object
) -> WalCopied:
    archive = archive or FolderArchive(tmp_path / "archive")
    copy = WalCopy(
        archive, os.fsencode(tmp_path), system_id=7, segment_size=MIB,
        progress=Silent(), **how,  # type: ignore[arg-type]
    )  # fmt: skip
    return copy.run(2, start, stop)


@pytest.fixture
def pg_wal(tmp_path: Path) -> Path:
    path = tmp_path / "pg_wal"
    path.mkdir()
    for number, name in enumerate(NAMES):
        (path / name).write_bytes(bytes([number]) * MIB)
    (path / "00000002.history").write_bytes(b"1\t0/3000000\treason\n")
    return path


@pytest.mark.parametrize(
    ("start", "stop", "numbers"),
    [
        (1 * MIB + 40, 1 * MIB + 80, [1]),
        (1 * MIB + 40, 3 * MIB + 1, [1, 2, 3]),
        (1 * MIB + 40, 3 * MIB, [1, 2]),  # trap 21: a stop at a boundary needs no next segment
        (2 * MIB, 2 * MIB, [2]),
    ],
)
def test_traps_21_22_from_the_start_to_the_stop(
    tmp_path: Path, pg_wal: Path, start: int, stop: int, numbers: list[int]
) -> None:
    found = copied(tmp_path, start=start, stop=stop)
    assert found.copied == ["00000002.history", *(NAMES[number] for number in numbers)]
    for number in numbers:
        assert (tmp_path / "archive" / NAMES[number]).read_bytes() == bytes([number]) * MIB


def test_what_is_there_is_not_copied_again(tmp_path: Path, pg_wal: Path) -> None:
    archive = FolderArchive(tmp_path / "archive")
    copied(tmp_path, start=MIB, stop=2 * MIB, archive=archive)
    (pg_wal / NAMES[1]).unlink()  # recycled
    found = copied(tmp_path, start=MIB, stop=3 * MIB, archive=archive)
    assert (found.there, found.copied) == (["00000002.history", NAMES[1]], [NAMES[2]])


def test_trap_22_a_segment_that_is_lost_fails_the_backup(tmp_path: Path, pg_wal: Path) -> None:
    (pg_wal / NAMES[2]).unlink()
    with pytest.raises(StrongroomError, match=NAMES[2]):
        copied(tmp_path, start=MIB, stop=4 * MIB)
    (pg_wal / NAMES[2]).write_bytes(b"short")
    with pytest.raises(StrongroomError, match=NAMES[2]):
        copied(tmp_path, start=MIB, stop=4 * MIB)


def test_trap_20_a_standby_waits_until_its_primary_ended_the_segment(
    tmp_path: Path, pg_wal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_copy, "PAUSE", 0.001)
    come = iter([3 * MIB - 1, 3 * MIB - 1, 3 * MIB])
    found = copied(tmp_path, start=2 * MIB, stop=2 * MIB + 5, replayed=lambda: next(come))
    assert found.copied[1:] == [NAMES[2]]
    found = copied(
        tmp_path, start=3 * MIB, stop=3 * MIB + 5, replayed=lambda: 4 * MIB - 1, patience=0.01
    )
    # Never a part of a segment under the name of the whole.
    assert (found.copied, found.awaited) == ([], [NAMES[3]])
    assert not (tmp_path / "archive" / NAMES[3]).exists()
    assert found.as_json() == {"copied": 0, "there": 1, "awaited": [NAMES[3]]}
