"""backup_manifest: ours comes home, PostgreSQL's is read, damage is seen."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.physical.crc import crc32c
from strongroom.postgres.physical.manifest import File, Manifest, WalRange

PATHS = st.binary(min_size=1, max_size=30) | st.text(min_size=1, max_size=10).map(
    lambda text: text.encode("utf-8", "surrogatepass")
)
FILES = st.builds(
    File.summed,
    PATHS,
    st.integers(0, 1 << 40),
    st.integers(0, 4_000_000_000),
    st.integers(0, 0xFFFFFFFF),
)
U64 = st.integers(0, (1 << 64) - 1)
RANGES = st.builds(WalRange, st.integers(1, 0xFFFFFFFF), U64, U64)


@given(st.lists(FILES), st.lists(RANGES), st.none() | U64)
def test_out_and_home(files: list[File], ranges: list[WalRange], system: int | None) -> None:
    manifest = Manifest(tuple(files), tuple(ranges), system)
    assert Manifest.parse(manifest.encode()) == manifest


def example() -> bytes:
    files = (File.summed(b"base/5/1", 8192, 1_700_000_000, 7), File(b"\xff", 0, 0))
    return Manifest(files, (WalRange(1, 1 << 24, 2 << 24),), 77).encode()


def test_the_bytes() -> None:
    assert example().split(b'"Manifest-Checksum"')[0].decode() == (
        '{ "PostgreSQL-Backup-Manifest-Version": 2,\n"System-Identifier": 77,\n"Files": [\n'
        '{ "Path": "base/5/1", "Size": 8192, "Last-Modified": "2023-11-14 22:13:20 GMT",'
        ' "Checksum-Algorithm": "CRC32C", "Checksum": "07000000" },\n'
        '{ "Encoded-Path": "ff", "Size": 0, "Last-Modified": "1970-01-01 00:00:00 GMT" }\n],\n'
        '"WAL-Ranges": [\n{ "Timeline": 1, "Start-LSN": "0/1000000", "End-LSN": "0/2000000" }\n],\n'
    )


def test_every_flipped_byte_is_seen() -> None:
    text = example()
    for at in range(len(text) - 1):
        wrong = bytearray(text)
        wrong[at] ^= 1
        with pytest.raises(ValueError, match=r"."):
            Manifest.parse(bytes(wrong))


@given(st.binary())
def test_noise_is_no_manifest(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Manifest.parse(text)


def test_postgresqls_own_is_read(server: EmbeddedServer, tmp_path: Path) -> None:
    target = tmp_path / "base"
    subprocess.run(
        [
            os.path.join(server.installation.bindir, "pg_basebackup"),
            f"--dbname={server.dsn}", f"--pgdata={target}", "--checkpoint=fast",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    manifest = Manifest.parse((target / "backup_manifest").read_bytes())
    assert (manifest.system_id is None) == (server.installation.version[0] < 17)
    for file in manifest.files:
        data = (target / os.fsdecode(file.path)).read_bytes()
        assert (len(data), crc32c(data)) == (file.size, file.crc), file.path
    assert manifest.ranges[0].start < manifest.ranges[0].end
    # What we write of the same values is what PostgreSQL reads.
    (target / "backup_manifest").write_bytes(manifest.encode())
    program = os.path.join(server.installation.bindir, "pg_verifybackup")
    subprocess.run([program, "-n", str(target)], check=True, capture_output=True)
