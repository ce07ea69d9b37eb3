"""The compiled kernel and its Python twins: same answers, and the promises that both make."""

from __future__ import annotations

import errno
import os
import random
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom import kernel

compiled_only = pytest.mark.skipif(
    not kernel.COMPILED, reason="no compiled kernel here: the twins are all there is"
)
MASK = 0xFFF00000


@pytest.fixture
def dirfd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def reference(data: bytes, mask: int) -> list[int]:
    """The definition, written as slowly as it reads."""
    gear = [int(value) for value in kernel.gear()]
    found = []
    for i in range(31, len(data)):
        h = sum(gear[data[i - j]] << j for j in range(32)) & 0xFFFFFFFF
        if not h & mask:
            found.append(i + 1)
    return found


def offsets(packed: bytes) -> list[int]:
    return [value for (value,) in struct.iter_unpack("<I", packed)]


@pytest.mark.parametrize("call", [kernel.candidates, kernel.candidates_twin])
@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 158, 159, 160, 161, 3000])
def test_candidates_are_the_definition(call, size) -> None:
    data = random.Random(size).randbytes(size)
    for mask in (0, 0x80000000, 0xF8000000):
        assert offsets(call(data, mask)) == reference(data, mask)


def test_candidates_agree_across_runs_of_the_twin_and_lanes_of_the_kernel() -> None:
    data = random.Random(7).randbytes((1 << 20) + 77)
    for size in (len(data), 1 << 20, (1 << 20) + 31, (1 << 20) + 32, (1 << 20) + 33):
        assert kernel.candidates(data[:size], MASK) == kernel.candidates_twin(data[:size], MASK)


@given(st.binary(max_size=600), st.integers(0, 600))
def test_a_stream_may_be_cut_anywhere(data: bytes, cut: int) -> None:
    cut = min(cut, len(data))
    mask = 0xE0000000
    overlap = max(0, cut - 31)
    first = offsets(kernel.candidates(data[:cut], mask))
    second = [at + overlap for at in offsets(kernel.candidates(data[overlap:], mask))]
    assert first + second == offsets(kernel.candidates(data, mask))


def test_candidates_refuse_what_32_bits_do_not_hold() -> None:
    for call in (kernel.candidates, kernel.candidates_twin):
        with pytest.raises(ValueError, match="32 bits"):
            call(b"x", 1 << 32)


def populate(root: Path) -> None:
    (root / "a").write_bytes(b"one")
    (root / "b-empty").write_bytes(b"")
    (root / "directory").mkdir()
    os.symlink("nowhere", root / "link")
    os.mkfifo(root / "pipe")
    (root / "a.b").write_bytes(bytes(1000))
    os.setxattr(root / "a", "user.colour", b"green")
    os.utime(root / "a", ns=(1, -5_000_000_001))
    for byte in set(range(1, 256)) - {ord("/"), ord(".")}:
        Path(os.fsdecode(os.fsencode(root) + b"/" + bytes([byte]) + b"~")).write_bytes(b"n")


@pytest.mark.parametrize("scan", [kernel.scan_dir, kernel.scan_dir_twin])
def test_scan_lists_every_name_sorted_with_its_own_facts(scan, tmp_path, dirfd) -> None:
    populate(tmp_path)
    names, kinds, keys, extras, failed = scan(dirfd)
    assert names == sorted(os.listdir(os.fsencode(tmp_path)))
    assert failed == []
    for i, name in enumerate(names):
        facts = os.lstat(os.path.join(os.fsencode(tmp_path), name))
        key = keys[i * kernel.KEY_SIZE : (i + 1) * kernel.KEY_SIZE]
        extra = extras[i * kernel.EXTRA_SIZE : (i + 1) * kernel.EXTRA_SIZE]
        assert key + extra == kernel.pack_stat(facts)
        assert kinds[i] == stat.S_IFMT(facts.st_mode) >> 12
    assert scan(dirfd)[0] == names  # the descriptor's own position does not matter


@pytest.mark.parametrize("scan", [kernel.scan_dir, kernel.scan_dir_twin])
def test_scan_refuses_what_is_no_directory(scan, tmp_path) -> None:
    (tmp_path / "f").write_bytes(b"")
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    with pytest.raises(OSError):
        scan(fd)
    os.close(fd)
    with pytest.raises(OSError):
        scan(fd)


def test_times_past_64_bits_stay_at_the_end(tmp_path) -> None:
    (tmp_path / "f").write_bytes(b"")
    facts = list(os.stat(tmp_path / "f"))
    fake = os.stat_result(facts, {"st_mtime_ns": 1 << 80, "st_ctime_ns": -(1 << 80), "st_rdev": 0,
                                  "st_blocks": 0})  # fmt: skip
    fields = kernel.STAT.unpack(kernel.pack_stat(fake))
    assert fields[7] == (1 << 63) - 1
    assert fields[8] == -(1 << 63)


READERS = [kernel.read_files, kernel.read_files_twin]


@pytest.mark.parametrize("read", READERS)
def test_read_takes_whole_files_with_facts_and_attributes(read, tmp_path, dirfd) -> None:
    populate(tmp_path)
    buffer = bytearray(5000)
    names = [b"a", b"directory", b"b-empty", b"link", b"pipe", b"gone", b"a.b"]
    rows = read(dirfd, names, buffer, 2000)
    assert [row[0] for row in rows] == [
        0, kernel.NOT_REGULAR, 0, errno.ELOOP, kernel.NOT_REGULAR, errno.ENOENT, 0,
    ]  # fmt: skip
    for name, (status, offset, length, facts, xattrs) in zip(names, rows, strict=True):
        if status:
            assert (length, facts, xattrs) == (0, b"", b"")
            continue
        assert (
            bytes(buffer[offset : offset + length]) == (tmp_path / os.fsdecode(name)).read_bytes()
        )
        assert facts == kernel.pack_stat(os.stat(tmp_path / os.fsdecode(name)))
    assert kernel.unpack_xattrs(rows[0][4]) == (((b"user.colour", b"green"),), [])
    assert rows[2][4] == b""


@pytest.mark.parametrize("read", READERS)
def test_read_stops_where_the_next_file_would_not_fit(read, tmp_path, dirfd) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 100)
    rows = read(dirfd, [b"a", b"b", b"c"], bytearray(250), 100)
    assert [row[:3] for row in rows] == [(0, 0, 100), (0, 100, 100)]
    (tmp_path / "d").write_bytes(b"d" * 101)
    assert read(dirfd, [b"d"], bytearray(250), 100)[0][0] == kernel.TOO_LARGE
    with pytest.raises(ValueError, match="larger than the limit"):
        read(dirfd, [b"a"], bytearray(100), 100)


@pytest.mark.parametrize("read", READERS)
def test_read_goes_by_the_end_of_the_file_and_not_by_its_size(read) -> None:
    dirfd = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    buffer = bytearray(1 << 16)
    ((status, _, length, _, _),) = read(dirfd, [b"status"], buffer, 1 << 15)  # says size 0
    os.close(dirfd)
    assert status == 0
    assert buffer[:length].startswith(b"Name:")


@pytest.mark.parametrize("write", [kernel.write_files, kernel.write_files_twin])
def test_write_creates_whole_files_and_touches_nothing_that_exists(write, tmp_path, dirfd) -> None:
    (tmp_path / "there").write_bytes(b"old")
    os.symlink("elsewhere", tmp_path / "link")
    specs = [
        (b"new", b"content", 0o4750, os.getuid(), os.getgid(), -1_500_000_001),
        (b"there", b"x", 0o600, -1, -1, 0),
        (b"link", b"x", 0o600, -1, -1, 0),
        (b"empty", memoryview(b""), 0o600, -1, -1, 1_700_000_000_123_456_789),
    ]
    results = write(dirfd, specs)
    exists = (kernel.OPEN, errno.EEXIST)
    assert results == [(kernel.DONE, 0), exists, exists, (kernel.DONE, 0)]
    facts = os.stat(tmp_path / "new")
    assert (stat.S_IMODE(facts.st_mode), facts.st_mtime_ns) == (0o4750, -1_500_000_001)
    assert (tmp_path / "new").read_bytes() == b"content"
    assert (tmp_path / "there").read_bytes() == b"old"
    assert not (tmp_path / "elsewhere").exists()
    assert os.stat(tmp_path / "empty").st_mtime_ns == 1_700_000_000_123_456_789


@pytest.mark.parametrize("write", [kernel.write_files, kernel.write_files_twin])
def test_write_that_fails_leaves_no_half_file(write) -> None:
    """/dev/full cannot be created anew, so a file size limit stands in for a full disk."""
    script = (
        "import os, resource, signal, sys, tempfile\n"
        "from strongroom import kernel\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "d = tempfile.mkdtemp(); fd = os.open(d, os.O_RDONLY)\n"
        f"r = kernel.{write.__name__}(fd, [(b'big', bytes(9000), 0o600, -1, -1, 0),"
        " (b'ok', b'1', 0o600, -1, -1, 0)])\n"
        "print(r, os.listdir(d)); os.unlink(d + '/ok'); os.rmdir(d)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"[({kernel.WRITE}, {errno.EFBIG}), ({kernel.DONE}, 0)] ['ok']\n"


@compiled_only
@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 400), st.integers(0, 900))
def test_both_read_alike(tmp_path_factory, contents, limit, extra) -> None:
    root = tmp_path_factory.mktemp("alike")
    names = []
    for i, content in enumerate(contents):
        (root / str(i)).write_bytes(content)
        names.append(str(i).encode())
    fd = os.open(root, os.O_RDONLY)
    one, two = bytearray(limit + 1 + extra), bytearray(limit + 1 + extra)
    rows = kernel.read_files(fd, names, one, limit)
    assert rows == kernel.read_files_twin(fd, names, two, limit)
    used = sum(row[2] for row in rows)
    assert one[:used] == two[:used]
    os.close(fd)


def test_attributes_that_cannot_be_read_are_named() -> None:
    packed = struct.pack("<H", 6) + b"user.a" + struct.pack("<I", 2) + b"xy"
    packed += struct.pack("<H", 6) + b"user.b" + struct.pack("<II", 0xFFFFFFFF, errno.EACCES)
    assert kernel.unpack_xattrs(packed) == (((b"user.a", b"xy"),), [(b"user.b", errno.EACCES)])


def test_the_environment_forces_the_twins() -> None:
    script = "from strongroom import kernel; print(kernel.COMPILED, kernel.tune_allocator())"
    environment = dict(os.environ, STRONGROOM_NO_KERNEL="1")
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == "False"
    assert done.stdout.split()[1] == str(kernel.tune_allocator())


# -------------------------------------------------------------------- archive blocks


def blocks(contents: list[bytes]) -> bytes:
    return b"".join(struct.pack("<BI", 0, len(content)) + content for content in contents)


@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(0, 60), st.integers(0, 500))
def test_joined_blocks_agree_and_keep_the_content(contents, most, cut) -> None:
    data = blocks(contents)[:cut]
    out, used, rest, ended = kernel.join_blocks(data, most)
    assert (out, used, rest, ended) == kernel.join_blocks_twin(data, most)
    assert ended or len(data) - used < kernel.BLOCK_HEAD
    assert kernel.join_blocks(out, 0)[1:] == (len(out), rest, ended)

    def payload(joined: bytes) -> bytes:
        at, found = 0, b""
        while len(joined) - at >= kernel.BLOCK_HEAD:
            (length,) = struct.unpack_from("<xI", joined, at)
            found += joined[at + 5 : at + 5 + length]
            at += 5 + length
        return found

    assert payload(out) == payload(data[:used])


@pytest.mark.parametrize("call", [kernel.join_blocks, kernel.join_blocks_twin])
def test_blocks_are_joined_up_to_a_size_and_end_at_an_empty_one(call) -> None:
    data = blocks([b"aa", b"bb", b"cc", b"", b"not a block"])
    assert call(data, 4) == (blocks([b"aabb", b"cc", b""]), 26, 0, True)
    assert call(data[:19], 9) == (blocks([b"aabb"]) + data[14:19], 19, 2, False)
    assert call(data[:18], 9) == (blocks([b"aabb"]), 14, 0, False)
    for wrong in ((b"\1\2\0\0\0aa", 9), (data, -1)):
        with pytest.raises(ValueError, match="length"):
            call(*wrong)
