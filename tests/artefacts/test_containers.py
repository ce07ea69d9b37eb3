"""Each container, by itself, against the program that everybody has."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import pyrage
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rooms
from artefacts.conftest import FILES, Desk
from strongroom.artefacts.gzipping import BLOCK, GzipReader, GzipWriter, _quick_is_near
from strongroom.artefacts.sealing import (
    AgeReader,
    AgeWriter,
    OpensslReader,
    OpensslWriter,
    identities,
    new_key,
    passphrase,
    recipients,
)
from strongroom.artefacts.tar_reading import Limits, read_tar
from strongroom.artefacts.tar_writing import header, write_tar
from strongroom.errors import Damaged, KeyRefused, Refused
from strongroom.format.tree import Entry, Kind
from strongroom.progress import Silent

KEY = new_key(bytes(range(32)))
PLAIN = rooms.noise("plain", BLOCK + 77) + b"a line that compresses\n" * 60_000


def zipped(data: bytes, step: int = 100_003, **how: int) -> bytes:
    out = bytearray()
    writer = GzipWriter(out.extend, threads=2, **how)
    for at in range(0, len(data), step):
        writer.write(data[at : at + step])
    writer.finish()
    return bytes(out)


def drained(read: object, step: int = 65_537) -> bytes:
    return b"".join(iter(lambda: read(step), b""))  # type: ignore[operator]


def test_gunzip_reads_it() -> None:
    data = zipped(PLAIN, mtime=1_764_000_000)
    assert subprocess.run(["gunzip"], check=False, input=data, capture_output=True).stdout == PLAIN
    assert data[4:8] == (1_764_000_000).to_bytes(4, "little")
    assert data == zipped(PLAIN, 999_983, mtime=1_764_000_000)


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_sizes_around_a_block(size: int) -> None:
    plain = PLAIN[:size]
    data = zipped(plain)
    assert subprocess.run(["gunzip"], check=False, input=data, capture_output=True).stdout == plain
    assert drained(GzipReader(io.BytesIO(data).read).read) == plain


def test_every_kind_of_block_is_near_to_gzip() -> None:
    """One after the other in one stream, so that each looks back into another library's block."""
    chance = random.Random(7)
    actions = (b"publish", b"rank", b"render", b"retry", b"review")
    rows = b"".join(
        b'{"action": "%s", "target": "https://cdn.stakazo.example/clips/%d/master.m3u8", '
        b'"score": 0.%d, "ok": true}, '
        % (chance.choice(actions), chance.randrange(10**6), chance.randrange(1000))
        for _ in range(15_000)
    )
    prose = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
    noise = rooms.noise("block", 2 * BLOCK)
    for plain in (noise, rows, prose, noise[: BLOCK // 3] + rows + prose + noise + rows):
        data = zipped(plain)
        gunzip = subprocess.run(["gunzip"], check=False, input=data, capture_output=True)
        assert gunzip.stdout == plain
        gzip = subprocess.run(["gzip", "-6"], check=False, input=plain, capture_output=True)
        assert len(data) < 1.1 * len(gzip.stdout)
    with memoryview(noise[:BLOCK]) as block:
        assert _quick_is_near(block)
    with memoryview(rows[:BLOCK]) as block:
        assert not _quick_is_near(block)


def test_members_are_one_and_rubbish_is_refused() -> None:
    two = subprocess.run(["gzip", "-c"], check=False, input=b"one", capture_output=True).stdout
    assert drained(GzipReader(io.BytesIO(two + zipped(b"two")).read).read) == b"onetwo"
    for bad in (two + b"rubbish", two[:-1], two + bytes(8), b"", b"plain"):
        with pytest.raises(Damaged):
            drained(GzipReader(io.BytesIO(bad).read).read)


def test_openssl_reads_it_and_we_read_openssl(tmp_path: Path) -> None:
    key, sealed, plain = tmp_path / "key", tmp_path / "sealed", tmp_path / "plain"
    key.write_bytes(KEY)
    for size in (0, 15, 16, 17, 100_000):
        out = bytearray()
        writer = OpensslWriter(out.extend, passphrase(KEY), b"8 bytes!")
        writer.write(PLAIN[:size])
        writer.finish()
        sealed.write_bytes(out)
        line = ["openssl", "enc", "-aes-256-cbc", "-d", "-salt", "-pbkdf2"]
        argv = [*line, "-in", sealed, "-out", plain, "-pass", f"file:{key}"]
        subprocess.run(argv, check=True)
        assert plain.read_bytes() == PLAIN[:size]
        theirs = [*line[:3], *line[4:], "-in", plain, "-out", sealed, "-pass", f"file:{key}"]
        subprocess.run(theirs, check=True)
        with sealed.open("rb") as file:
            assert drained(OpensslReader(file.read, passphrase(KEY)).read) == PLAIN[:size]


def test_wrong_key_of_openssl_never_gives_the_content() -> None:
    out = bytearray()
    writer = OpensslWriter(out.extend, passphrase(KEY), b"8 bytes!")
    writer.write(PLAIN)
    writer.finish()
    for number in range(8):
        other = new_key(bytes([number]) * 32)
        try:
            found = drained(OpensslReader(io.BytesIO(out).read, passphrase(other)).read)
        except KeyRefused:
            continue
        assert found != PLAIN  # one padding in 256 looks right; what is inside does not


def test_age_reads_it_and_we_read_age(tmp_path: Path) -> None:
    if shutil.which("age") is None:
        pytest.skip("age is not installed (Debian: apt-get install age)")
    identity, sealed = tmp_path / "identity", tmp_path / "sealed"
    subprocess.run(["age-keygen", "-o", identity], check=True, capture_output=True)
    argv = ["age-keygen", "-y", identity]
    to = subprocess.run(argv, check=False, capture_output=True, text=True).stdout.strip()
    out = bytearray()
    writer = AgeWriter(out.extend, recipients([to]))
    writer.write(PLAIN)
    writer.finish()
    sealed.write_bytes(out)
    opened = subprocess.run(["age", "-d", "-i", identity, sealed], check=False, capture_output=True)
    assert opened.stdout == PLAIN
    theirs = subprocess.run(["age", "-r", to], check=False, input=PLAIN, capture_output=True).stdout
    keys = identities(identity.read_bytes())
    reader = AgeReader(io.BytesIO(theirs).read, keys)
    assert drained(reader.read) == PLAIN
    reader.close()
    reader = AgeReader(io.BytesIO(theirs[:-5]).read, keys)
    with pytest.raises(Damaged):
        drained(reader.read)


def test_a_fault_behind_age_is_raised_and_no_thread_stays() -> None:
    def full(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    identity = pyrage.x25519.Identity.generate()
    writer = AgeWriter(full, recipients([str(identity.to_public())]))
    with pytest.raises(Exception, match=r"No space left|age could not"):
        for _ in range(50):
            writer.write(bytes(1 << 20))
        writer.finish()
    writer.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "age"]


# -- tar -----------------------------------------------------------------------------------------


def archive(desk: Desk) -> bytes:
    out = bytearray()
    reader = desk.repository.open_snapshot(desk.snapshot)
    assert write_tar(reader, out.extend, progress=Silent()) == []
    return bytes(out)


def test_tar_extracts_it(desk: Desk, tmp_path: Path) -> None:
    data = archive(desk)
    target = tmp_path / "extracted"
    target.mkdir()
    done = subprocess.run(
        ["tar", "xf", "-", "-C", target], check=False, input=data, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    for path, content in FILES.items():
        place = os.fsencode(target) + b"/" + path
        if isinstance(content, Entry):
            continue
        with open(place, "rb") as file:
            assert file.read() == rooms.flat(content)
        assert os.stat(place).st_mtime_ns == 1_234_567_890_123
    assert os.path.samefile(target / "z-hard", target / "audits/1.json")
    assert os.readlink(target / "link") == "audits/1.json"
    assert os.stat(target / "audits").st_mtime_ns == 1_500_000_000_000_000_007
    assert data == archive(desk)


def test_we_read_what_we_write(desk: Desk) -> None:
    found = {}
    for entry, pieces in read_tar(io.BytesIO(archive(desk)).read, Limits(1 << 24)):
        found[entry.path] = (entry, b"".join(pieces))
    assert sorted(found) == sorted(FILES)
    for path, content in FILES.items():
        entry, data = found[path]
        if isinstance(content, Entry):
            assert (entry.kind, entry.target) == (content.kind, content.target)
        else:
            assert data == rooms.flat(content)
            assert (entry.mode, entry.uid, entry.gid) == (0o640, 7, 8)
            assert entry.mtime_ns == 1_234_567_890_123


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_we_read_what_others_write(form: int) -> None:
    out = io.BytesIO()
    long = "d/" * 60 + "x" * (20 if form == tarfile.USTAR_FORMAT else 150)
    with tarfile.open(fileobj=out, mode="w", format=form) as file:
        for name, content in (("./a/b", b"one"), (long, b"two" * 1000)):
            info = tarfile.TarInfo(name)
            info.size, info.uid = len(content), 1000
            file.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("l")
        link.type, link.linkname = tarfile.SYMTYPE, "../elsewhere"
        file.addfile(link)
    items = [
        (entry.path, b"".join(pieces), entry.target)
        for entry, pieces in read_tar(io.BytesIO(out.getvalue()).read, Limits(1 << 20))
    ]
    assert items == [
        (b"a/b", b"one", b""),
        (long.encode(), b"two" * 1000, b""),
        (b"l", b"", b"../elsewhere"),
    ]


@pytest.mark.parametrize(
    "form", ["--format=gnu", "--format=pax", "--format=pax --sparse-version=0.1"]
)
def test_sparse_archives_of_gnu_are_refused_with_the_way_out(form: str, tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    argv = ["tar", *form.split(), "--sparse", "-cf", "-", "holes"]
    archive = subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True).stdout
    with pytest.raises(Refused, match="sparse") as refused:
        list(read_tar(io.BytesIO(archive).read, Limits(1 << 22)))
    assert "without --sparse" in refused.value.do
    argv.remove("--sparse")
    plain = [word for word in argv if not word.startswith("--sparse-version")]
    archive = subprocess.run(plain, cwd=tmp_path, check=True, capture_output=True).stdout
    items = [b"".join(pieces) for _, pieces in read_tar(io.BytesIO(archive).read, Limits(1 << 22))]
    assert items == [bytes(1 << 20) + b"end"]


def test_a_bomb_is_bounded() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        info = tarfile.TarInfo("zeros")
        info.size = 8 << 20
        file.addfile(info, io.BytesIO(bytes(8 << 20)))
    with pytest.raises(Refused, match="more than"):
        for _, pieces in read_tar(io.BytesIO(out.getvalue()).read, Limits(1 << 20)):
            for _ in pieces:
                pass


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=4096))
def test_rubbish_is_refused_and_nothing_else(data: bytes) -> None:
    try:
        for _, pieces in read_tar(io.BytesIO(data).read, Limits(1 << 20)):
            for _ in pieces:
                pass
    except (Damaged, Refused):
        pass


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, 511), value=st.integers(0, 255), rest=st.binary(max_size=8))
def test_a_header_of_any_bytes_is_read_or_refused(at: int, value: int, rest: bytes) -> None:
    block = bytearray(header(Entry(b"name", Kind.FILE, 0o644, size=3)))
    block[at : at + 1 + len(rest)] = bytes([value]) + rest
    block = block[:512].ljust(512, b"\0")
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    data = bytes(block) + b"abc".ljust(512, b"\0") + bytes(1024)
    try:
        for entry, pieces in read_tar(io.BytesIO(data).read, Limits(1 << 20)):
            assert b".." not in entry.path.split(b"/") and not entry.path.startswith(b"/")
            for _ in pieces:
                pass
    except (Damaged, Refused):
        pass
