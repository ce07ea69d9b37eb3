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
from strongroom.format import tree

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
        (dirfd, b"new", 0o4750, os.getuid(), os.getgid(), -1_500_000_001),
        (dirfd, b"there", 0o600, -1, -1, 0),
        (dirfd, b"link", 0o600, -1, -1, 0),
        (dirfd, b"empty", 0o600, -1, -1, 1_700_000_000_123_456_789),
    ]
    results = write(specs, [b"content", b"x", b"x", memoryview(b"")])
    exists = (kernel.OPEN, errno.EEXIST)
    assert results == [(kernel.DONE, 0), exists, exists, (kernel.DONE, 0)]
    facts = os.stat(tmp_path / "new")
    assert (stat.S_IMODE(facts.st_mode), facts.st_mtime_ns) == (0o4750, -1_500_000_001)
    assert (tmp_path / "new").read_bytes() == b"content"
    assert (tmp_path / "there").read_bytes() == b"old"
    assert not (tmp_path / "elsewhere").exists()
    assert os.stat(tmp_path / "empty").st_mtime_ns == 1_700_000_000_123_456_789


@pytest.mark.parametrize("write", [kernel.write_files, kernel.write_files_twin])
def test_what_a_file_is_born_with_is_put_right(write, tmp_path, dirfd) -> None:
    """By a umask that takes more than it should, and for root by a directory that gives its group."""
    me = os.geteuid(), os.getegid()
    specs = [(dirfd, b"open", 0o2666, -1, -1, 0), (dirfd, b"mine", 0o640, *me, 0)]
    if not me[0]:
        os.chown(tmp_path, 0, 1)
        os.chmod(tmp_path, 0o2755)
    before = os.umask(0o077)
    try:
        assert write(specs, [b"1", b"2"]) == [(kernel.DONE, 0)] * 2
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "open").st_mode) == 0o2666
    facts = os.stat(tmp_path / "mine")
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid) == (0o640, *me)
    with pytest.raises(ValueError):
        write(specs, [b"1"])


@pytest.mark.parametrize("write", [kernel.write_files, kernel.write_files_twin])
def test_write_that_fails_leaves_no_half_file(write) -> None:
    """/dev/full cannot be created anew, so a file size limit stands in for a full disk."""
    script = (
        "import os, resource, signal, sys, tempfile\n"
        "from strongroom import kernel\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "d = tempfile.mkdtemp(); fd = os.open(d, os.O_RDONLY)\n"
        f"r = kernel.{write.__name__}([(fd, b'big', 0o600, -1, -1, 0),"
        " (fd, b'ok', 0o600, -1, -1, 0)], [bytes(9000), b'1'])\n"
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


# -- columns -------------------------------------------------------------------------------

U64 = st.integers(0, 2**64 - 1)
MODES = st.sampled_from([0o100644, 0o104755, 0o040755, 0o120777, 0o010600, 0o100000])
KEYS = st.builds(
    kernel.KEY.pack,
    MODES, st.sampled_from([1, 1, 1, 2]), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1),
    U64, U64, st.one_of(st.integers(0, 50), U64), st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
)  # fmt: skip


@compiled_only
@given(st.lists(KEYS, max_size=12), st.integers(0, 12), st.integers(0, 60), st.integers(0, 200))
def test_both_follow_a_run_alike(keys, start, limit, room) -> None:
    column, start = b"".join(keys), min(start, len(keys))
    fields = (column, start, len(keys), limit, room)
    assert kernel.plain_run(*fields) == kernel.plain_run_twin(*fields)


@pytest.mark.parametrize("run", [kernel.plain_run, kernel.plain_run_twin])
def test_a_run_ends_at_what_is_not_plain_or_has_no_room(run) -> None:
    def key(mode=0o100644, links=1, size=10, mtime=5, ctime=7):
        return kernel.KEY.pack(mode, links, 0, 0, 0, 1, size, mtime, ctime)

    plain = key()
    assert run(plain * 5, 1, 4, 10, 1000) == (4, 30, 7)
    assert run(plain * 5, 0, 5, 9, 1000) == (0, 0, -(1 << 63))
    assert run(plain * 5, 0, 5, 10, 25) == (2, 20, 7)
    for odd in (key(mode=0o040755), key(links=2), key(size=11), key(mode=0o120777)):
        assert run(plain * 2 + odd, 0, 3, 10, 1000)[0] == 2
    assert run(plain + key(mtime=9), 0, 2, 10, 1000)[2] == 9
    for start, stop in ((-1, 1), (0, 2)):
        with pytest.raises(ValueError, match="not so many"):
            run(plain, start, stop, 10, 10)


@compiled_only
@given(
    st.lists(st.tuples(KEYS, st.one_of(st.just(b""), st.binary(max_size=40))), max_size=8),
    st.binary(max_size=3), st.binary(max_size=30),
)  # fmt: skip
def test_both_encode_records_alike(rows, lead, tail) -> None:
    column, ids = b"".join(key for key, _ in rows), [one for _, one in rows]
    records = kernel.plain_records(column, lead, ids, tail)
    assert records == kernel.plain_records_twin(column, lead, ids, tail)
    with pytest.raises(ValueError, match="one key for each"):
        kernel.plain_records(column, lead, [*ids, b""], tail)


@given(KEYS, st.one_of(st.just(b""), st.binary(min_size=32, max_size=32)), st.booleans())
def test_a_record_from_columns_is_a_record(key, chunk_id, attributes) -> None:
    mode, _, uid, gid, _, _, size, mtime, _ = kernel.KEY.unpack(key)
    xattrs = ((b"security.selinux", b"label"), (b"user.a", b"")) if attributes else ()
    content = b"\x01" + chunk_id if chunk_id else b""
    tail = tree.encode_xattrs(xattrs) if xattrs else b""
    fields = (mode & 0o7777, uid, gid, mtime, size, content)
    entry = tree.Entry(b"f", tree.Kind.FILE, *fields, xattrs=xattrs)
    for encode in (kernel.plain_records, kernel.plain_records_twin):
        assert encode(key, b"\x01", [chunk_id], tail) == [tree.encode_record(entry)]


PATHS = st.lists(st.sampled_from([b"a", b"b/", b"/", b"folder/", b"a.b"]), max_size=5).map(b"".join)


@compiled_only
@given(st.lists(st.tuples(PATHS, st.binary(max_size=20)), max_size=12))
def test_both_encode_pages_alike(rows) -> None:
    paths, records = [path for path, _ in rows], [record for _, record in rows]
    assert kernel.encode_page(paths, records) == kernel.encode_page_twin(paths, records)


@pytest.mark.parametrize("encode", [kernel.encode_page, kernel.encode_page_twin])
def test_a_page_refuses_what_its_fields_do_not_hold(encode) -> None:
    assert len(encode([b"p" * 0xFFFF], [b"r"])) == 8 + 0xFFFF + 1
    with pytest.raises(ValueError, match="too long"):
        encode([b"p" * 0x10000], [b"r"])
    with pytest.raises(ValueError):
        encode([b"p"], [])


def keys_of(root: Path, names: list[bytes]) -> bytes:
    stats = [os.lstat(os.path.join(os.fsencode(root), name)) for name in names]
    return b"".join(kernel.pack_stat(facts)[: kernel.KEY_SIZE] for facts in stats)


PLAIN_READERS = [kernel.read_plain, kernel.read_plain_twin]


def plain_files(root: Path, count: int) -> list[bytes]:
    for i in range(count):
        (root / f"{i:04}").write_bytes(b"%d" % i * (i % 40))
    return [b"%04d" % i for i in range(count)]


@pytest.mark.parametrize("read", PLAIN_READERS)
def test_plain_files_lie_back_to_back(read, tmp_path, dirfd) -> None:
    names = plain_files(tmp_path, 600)  # more than the kernel reads between looks at signals
    content = [(tmp_path / os.fsdecode(name)).read_bytes() for name in names]
    keys, buffer = keys_of(tmp_path, names), bytearray(1 << 17)
    whole = b"".join(content)
    assert read(dirfd, names, keys, 0, buffer, b"") == (600, len(whole))
    assert buffer[: len(whole)] == whole
    rest = b"".join(content[501:])
    assert read(dirfd, names, keys, 501, buffer, b"") == (600, len(rest))
    assert buffer[: len(rest)] == rest
    assert read(dirfd, names, keys, 600, buffer, b"") == (600, 0)
    exact = memoryview(buffer)[: len(whole)]  # one byte is needed to see the end of the last
    assert read(dirfd, names, keys, 0, exact, b"") == (599, len(whole) - len(content[-1]))
    with pytest.raises(ValueError, match="one key for each"):
        read(dirfd, names, keys[1:], 0, buffer, b"")


@pytest.mark.parametrize("read", PLAIN_READERS)
@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"longer than it was"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"same"),
        lambda path: os.utime(path, ns=(0, 0)),
        lambda path: os.chmod(path, 0o600),
        lambda path: os.link(path, path.with_name("other")),
        lambda path: os.setxattr(path, "user.colour", b"green"),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), os.symlink("0001", path)),
        lambda path: (path.unlink(), path.write_bytes(b"2" * 4)),
    ],
)
def test_plain_reading_stops_at_whatever_is_not_as_it_was(read, change, tmp_path, dirfd) -> None:
    for i in range(4):
        (tmp_path / f"{i:04}").write_bytes(b"%d" % i * 4)
        os.utime(tmp_path / f"{i:04}", ns=(0, 1))
    names = [b"%04d" % i for i in range(4)]
    keys = keys_of(tmp_path, names)
    change(tmp_path / "0002")
    buffer = bytearray(1000)
    assert read(dirfd, names, keys, 0, buffer, b"") == (2, 8)
    assert buffer[:8] == b"00001111"
    assert read(dirfd, names, keys, 3, buffer, b"") == (4, 4)


@pytest.mark.parametrize("read", PLAIN_READERS)
def test_plain_reading_may_expect_attributes(read, tmp_path, dirfd) -> None:
    names = plain_files(tmp_path, 3)
    for name in names[:2]:
        os.setxattr(tmp_path / os.fsdecode(name), "user.label", b"same")
    label = kernel.pack_xattrs(os.fsencode(tmp_path / "0000"))
    keys = keys_of(tmp_path, names)
    assert read(dirfd, names, keys, 0, bytearray(200), label)[0] == 2
    assert read(dirfd, names, keys, 0, bytearray(200), b"")[0] == 0
    assert read(dirfd, names, keys, 2, bytearray(200), b"")[0] == 3


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


# -- checksums of pages ----------------------------------------------------------------------

PAGE = 8192


def page_sum(page: bytes, block: int) -> int:
    """The definition, written as slowly as it reads."""
    sums = list(kernel._SUM_BASES)
    data = page[:8] + b"\0\0" + page[10:]
    rows = [struct.unpack_from("<32I", data, at) for at in range(0, len(data), 128)]
    for row in [*rows, (0,) * 32, (0,) * 32]:
        for lane, value in enumerate(row):
            mixed = sums[lane] ^ value
            sums[lane] = mixed * 16777619 & 0xFFFFFFFF ^ mixed >> 17
    whole = block
    for value in sums:
        whole ^= value
    return whole % 65535 + 1


def summed(pages: bytes, size: int, first: int) -> bytes:
    """The same pages with good checksums."""
    out = bytearray(pages)
    for number in range(len(pages) // size):
        at = number * size
        sum_ = page_sum(bytes(out[at : at + size]), first + number & 0xFFFFFFFF)
        out[at + 8 : at + 10] = sum_.to_bytes(2, "little")
    return bytes(out)


both = pytest.mark.parametrize("call", [kernel.page_checksums, kernel.page_checksums_twin])


@both
@pytest.mark.parametrize("size", [128, 1024, PAGE])
def test_trap_12_checksums_of_pages_are_the_definition_and_count_the_block(call, size) -> None:
    noise = random.Random(size).randbytes(3 * size)
    for first in (0, 1, 131072, 0xFFFFFFFE):
        good = summed(noise, size, first)
        assert call(good, size, first) == []
        assert call(memoryview(bytearray(good)), size, first) == []
        # The same bytes as another gigabyte of the relation are not good: no block is assumed.
        assert len(call(good, size, first ^ 0x40000)) == 3


@both
def test_a_page_of_zeros_has_no_checksum_and_one_bit_makes_it_bad(call) -> None:
    pages = bytearray(4 * 1024)
    assert call(pages, 1024, 7) == []
    pages[2 * 1024 + 1023] = 1
    (row,) = call(pages, 1024, 7)
    assert row == (2, 0, page_sum(bytes(pages[2048:3072]), 9))


@both
def test_every_flipped_bit_of_a_page_is_seen(call) -> None:
    good = summed(random.Random(3).randbytes(256), 128, 5)
    for bit in range(8 * 256):
        pages = bytearray(good)
        pages[bit // 8] ^= 1 << bit % 8
        assert [row[0] for row in call(pages, 128, 5)] == [bit // 1024]


@given(st.binary(max_size=4096), st.integers(1, 6), st.integers(0, 0xFFFFFFFF))
def test_checksums_agree_with_the_twin(data: bytes, blocks: int, first: int) -> None:
    size = 128 * blocks
    data = data[: len(data) // size * size]
    found = kernel.page_checksums(data, size, first)
    assert found == kernel.page_checksums_twin(data, size, first)


def test_checksums_agree_across_runs_of_the_twin() -> None:
    pages = random.Random(9).randbytes(128 * 1100)
    found = kernel.page_checksums(pages, 128, 77)
    assert found == kernel.page_checksums_twin(pages, 128, 77)
    assert len(found) > 1000


@both
def test_what_is_no_row_of_pages_is_refused(call) -> None:
    for data, size, first in (
        (b"x" * 100, 100, 0), (b"x" * 129, 128, 0), (b"x" * 128, 0, 0), (b"x" * 128, 128, 1 << 32)
    ):  # fmt: skip
        with pytest.raises(ValueError, match="whole pages"):
            call(data, size, first)
