"""pg_control of real servers, against pg_controldata; and what is damaged is refused."""

from __future__ import annotations

import os
import struct
import subprocess
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.format.wal import SegmentName, lsn_text
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.physical.control import FILE_SIZE, ControlFile, State
from strongroom.postgres.physical.crc import combine, combined, crc32c


def told(server: EmbeddedServer) -> dict[str, str]:
    """What pg_controldata says."""
    program = os.path.join(server.installation.bindir, "pg_controldata")
    said = subprocess.run(
        [program, server.data_directory],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
    ).stdout
    rows = (line.partition(":") for line in said.splitlines())
    return {name.strip(): value.strip() for name, _, value in rows}


def control_of(server: EmbeddedServer) -> bytes:
    with open(os.path.join(server.data_directory, "global", "pg_control"), "rb") as file:
        return file.read()


@pytest.mark.parametrize("major", [15, 16, 17, 18])
def test_real_ones_say_what_pg_controldata_says(major: int, request: pytest.FixtureRequest) -> None:
    server: EmbeddedServer = request.getfixturevalue(f"server{major}")
    data = control_of(server)
    control, said = ControlFile.parse(data), told(server)
    assert len(data) == FILE_SIZE
    assert said == said | {
        "pg_control version number": str(control.version),
        "Catalog version number": str(control.catalog_version),
        "Database system identifier": str(control.system_id),
        "Database cluster state": "in production",
        "Latest checkpoint location": lsn_text(control.checkpoint),
        "Latest checkpoint's REDO location": lsn_text(control.redo),
        "Latest checkpoint's REDO WAL file": str(
            SegmentName.holding(control.timeline, control.redo, control.wal_segment_size)
        ),
        "Latest checkpoint's TimeLineID": str(control.timeline),
        "Latest checkpoint's PrevTimeLineID": str(control.previous_timeline),
        "Latest checkpoint's NextXID": f"{control.next_xid >> 32}:{control.next_xid & 0xFFFFFFFF}",
        "Minimum recovery ending location": lsn_text(control.min_recovery_point),
        "Min recovery ending loc's timeline": str(control.min_recovery_timeline),
        "Backup start location": lsn_text(control.backup_start),
        "Backup end location": lsn_text(control.backup_end),
        "max_connections setting": str(control.max_connections),
        "max_worker_processes setting": str(control.max_worker_processes),
        "max_wal_senders setting": str(control.max_wal_senders),
        "max_prepared_xacts setting": str(control.max_prepared_transactions),
        "max_locks_per_xact setting": str(control.max_locks_per_transaction),
        "Database block size": str(control.block_size),
        "Blocks per segment of large relation": str(control.segment_blocks),
        "WAL block size": str(control.wal_block_size),
        "Bytes per WAL segment": str(control.wal_segment_size),
        "Data page checksum version": str(control.checksum_version),
    }
    assert control.state is State.IN_PRODUCTION
    assert control.time.strftime("%a %b %e %H:%M:%S %Y").split() == (
        said["pg_control last modified"].split()
    )
    assert control.segment_size == 1 << 30


def test_every_flipped_byte_is_seen(server15: EmbeddedServer) -> None:
    data = control_of(server15)
    for at in range(292):
        wrong = bytearray(data)
        wrong[at] ^= 1
        with pytest.raises(ValueError, match=r"."):
            ControlFile.parse(bytes(wrong))


def resummed(data: bytes, at: int, new: bytes) -> bytes:
    body = data[:at] + new + data[at + len(new) : 288]
    return body + struct.pack("<I", crc32c(body)) + data[292:]


def test_what_we_divide_by_is_looked_at(server15: EmbeddedServer) -> None:
    data = control_of(server15)
    for at, new in ((216, b"\0\0\0\0"), (220, b"\0\0\0\0"), (228, b"\1\0\0\0"), (208, bytes(8))):
        with pytest.raises(ValueError, match="pg_control"):
            ControlFile.parse(resummed(data, at, new))


def test_another_segment_size_is_read(server15: EmbeddedServer) -> None:
    data = control_of(server15)
    control = ControlFile.parse(data)
    changed = ControlFile.parse(resummed(data, 228, struct.pack("<I", 64 << 20)))
    assert changed == replace(control, wal_segment_size=64 << 20)
    name = SegmentName.holding(0xA, 0x1_4000_0000, changed.wal_segment_size)
    assert str(name) == "0000000A0000000100000010"


@given(st.binary(max_size=400))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        ControlFile.parse(data)


@given(st.lists(st.binary(max_size=70)))
def test_sums_of_parts_combine(parts: list[bytes]) -> None:
    assert combined((crc32c(part), len(part)) for part in parts) == crc32c(b"".join(parts))


def test_sums_are_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283
    a, b = bytes(range(256)) * 300, b"x" * 8_388_608
    assert combine(crc32c(a), crc32c(b), len(b)) == crc32c(a + b)
