"""What is wrong with a part is told and never ends the run; what is unchanged is not read."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from files.conftest import Vault, unprivileged
from files.double import MemoryReader, MemorySession
from strongroom import kernel
from strongroom.errors import NotFound, Refused
from strongroom.files import reading, small, taking
from strongroom.files.change_cache import MARGIN_NS
from strongroom.files.reading import SMALL_FILE
from strongroom.format.tree import Entry, Kind, encode_plain_file, encode_record
from strongroom.progress import Silent


def paths(session: MemorySession) -> list[bytes]:
    return [path for path, _ in session.tree.records]


def contents_of(session: MemorySession, path: bytes) -> bytes:
    reader = MemoryReader(session)
    entry = reader.find(path)
    assert entry is not None
    return b"".join(map(bytes, reader.stream(entry)))


# -- the change cache ----------------------------------------------------------------------


def test_unchanged_files_are_not_read_and_changed_ones_are(vault: Vault) -> None:
    for folder in "abc":
        (vault.root / folder).mkdir()
        for name in range(30):
            (vault.root / folder / f"{name:02}").write_bytes(f"{folder}{name}".encode())
    first, _ = vault.back_up()
    assert first.facts["unchanged"] == 0
    again, session = vault.back_up()
    assert (session.read, again.facts["unchanged"]) == (0, 94)  # the root too
    (vault.root / "b" / "07").write_bytes(b"other")
    (vault.root / "b" / "new").write_bytes(b"new")
    os.unlink(vault.root / "c" / "11")
    third, session = vault.back_up()
    assert session.read == len(b"other") + len(b"new")
    assert contents_of(session, b"b/07") == b"other"
    assert b"c/11" not in paths(session)
    assert third.files == 90
    assert third.problems == ()


def test_size_and_mtime_may_lie_but_ctime_does_not(vault: Vault) -> None:
    file = vault.root / "f"
    file.write_bytes(b"old")
    facts = os.stat(file)
    vault.back_up()
    time.sleep(0.02)
    file.write_bytes(b"new")
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    _, session = vault.back_up()
    assert contents_of(session, b"f") == b"new"


def test_a_file_touched_within_the_margin_is_read_again(vault: Vault) -> None:
    file = vault.root / "f"
    file.write_bytes(b"1")
    touched = os.stat(file).st_ctime_ns
    vault.now = touched + MARGIN_NS
    vault.back_up()
    _, session = vault.back_up()
    assert session.read == 1  # exactly the margin is not older than the margin
    vault.now = touched + MARGIN_NS + 1
    _, session = vault.back_up()
    assert session.read == 1
    _, session = vault.back_up()
    assert session.read == 0


def test_the_cache_is_replaced_only_when_the_snapshot_is_settled(vault: Vault) -> None:
    (vault.root / "f").write_bytes(b"1")
    vault.back_up(settle=False)
    assert os.listdir(vault.cache) == []
    source = vault.source()
    source.back_up(MemorySession(vault.chunks), progress=Silent())
    second = MemorySession(vault.chunks)
    source.back_up(second, progress=Silent())  # overtaken, and run again on the same object
    assert second.read == 1
    source.settled()
    (name,) = os.listdir(vault.cache)
    assert stat.S_IMODE(os.stat(vault.cache / name).st_mode) == 0o600
    _, session = vault.back_up()
    assert session.read == 0


def test_a_chunk_that_the_repository_lost_is_stored_anew(vault: Vault) -> None:
    (vault.root / "d").mkdir()
    (vault.root / "big").write_bytes(os.urandom(SMALL_FILE + 1))
    (vault.root / "d" / "lost").write_bytes(b"lost")
    (vault.root / "d" / "held").write_bytes(b"held")
    vault.back_up()
    for chunk_id, chunk in list(vault.chunks.items()):
        if chunk != b"held":
            del vault.chunks[chunk_id]
    taken, session = vault.back_up()
    assert (session.read, session.streams, taken.problems) == (0, 2, ())
    assert contents_of(session, b"d/lost") == b"lost"
    assert contents_of(session, b"big") == (vault.root / "big").read_bytes()
    _, session = vault.back_up()
    assert session.streams == 0


@pytest.mark.parametrize("harm", ["flip", "cut", "foreign", "readable", "symlink", "garbage"])
def test_a_cache_that_is_not_sound_is_no_cache(vault: Vault, harm: str) -> None:
    for name in range(50):
        (vault.root / str(name)).write_bytes(str(name).encode())
    vault.back_up()
    (cache,) = [vault.cache / name for name in os.listdir(vault.cache)]
    data = bytearray(cache.read_bytes())
    if harm == "flip":
        for at in range(0, len(data), 97):
            flipped = bytearray(data)
            flipped[at] ^= 1
            cache.write_bytes(flipped)
            taken, session = vault.back_up(settle=False)
            assert taken.files == 50
            assert session.read > 0
        return
    if harm == "cut":
        cache.write_bytes(data[: len(data) // 2])
    elif harm == "foreign":
        session = MemorySession(vault.chunks)
        vault.source().__class__(
            "vault", os.fsencode(vault.root), repository="r2", cache_dir=os.fsencode(vault.cache)
        ).back_up(session, progress=Silent())
        assert session.read > 0
        return
    elif harm == "readable":
        os.chmod(cache, 0o644)
    elif harm == "symlink":
        os.rename(cache, vault.cache / "elsewhere")
        os.symlink("elsewhere", cache)
    else:
        cache.write_bytes(os.urandom(5000))
    taken, session = vault.back_up()
    assert (taken.files, taken.problems) == (50, ())
    assert session.read > 0


def test_a_cache_that_cannot_be_written_does_not_end_the_run(vault: Vault) -> None:
    (vault.root / "f").write_bytes(b"1")
    vault.cache.write_bytes(b"a file where the directory should be")
    taken, _ = vault.back_up()
    assert (taken.files, taken.problems) == (1, ())
    assert "not written" in taken.facts["change_cache"]


def test_many_entries_cross_blocks_and_slices(vault: Vault) -> None:
    """More names than a slice and a block of the cache hold, in one directory and in many."""
    (vault.root / "one").mkdir()
    fd = os.open(vault.root / "one", os.O_RDONLY)
    specs = [(fd, b"%05d" % i, 0o600, -1, -1, 0) for i in range(5000)]
    kernel.write_files(specs, [b"%d" % i for i in range(5000)])
    os.close(fd)
    for i in range(300):
        (vault.root / f"d{i}").mkdir()
        (vault.root / f"d{i}" / "f").write_bytes(b"x")
    taken, session = vault.back_up()
    assert (taken.files, taken.problems) == (5300, ())
    again, second = vault.back_up()
    assert second.read == 0
    assert second.tree.records == session.tree.records
    assert (again.files, again.size) == (taken.files, taken.size)
    for i in range(0, 5000, 500):
        (vault.root / "one" / f"{i:05}").write_bytes(b"changed")
    third, last = vault.back_up()
    assert last.read == 10 * len(b"changed")
    assert third.facts["unchanged"] == again.facts["unchanged"] - 10
    _, last = vault.back_up()
    assert last.read == 0


# -- parts that are wrong --------------------------------------------------------------------


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch):
    """Do something between the scan and the reading of small files, a number of times."""

    def arrange(action, times: int = 1) -> None:
        left = [times]

        def reads(*arguments):
            if left[0]:
                left[0] -= 1
                action()
            return kernel.read_files(*arguments)

        monkeypatch.setattr(small, "read_files", reads)

    return arrange


def test_a_file_that_changed_once_is_read_again_and_is_fine(vault: Vault, between) -> None:
    (vault.root / "f").write_bytes(b"before")
    between(lambda: (vault.root / "f").write_bytes(b"after!"))
    taken, session = vault.back_up()
    assert taken.problems == ()
    assert contents_of(session, b"f") == b"after!"


def test_a_file_that_keeps_changing_is_taken_and_told(vault: Vault, between) -> None:
    (vault.root / "f").write_bytes(b"0")
    (vault.root / "g").write_bytes(b"steady")
    numbers = iter(range(9))
    between(lambda: (vault.root / "f").write_bytes(b"%d" % next(numbers) * 7), times=2)
    taken, session = vault.back_up()
    assert [problem.path for problem in taken.problems] == [b"f"]
    assert "changed while" in taken.problems[0].reason
    assert contents_of(session, b"f") == b"1" * 7
    _, session = vault.back_up()
    assert session.read == 7  # and it is not taken for unchanged


@pytest.mark.parametrize("size", [10, SMALL_FILE + 10])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("vanish", "vanished"),
        ("symlink", "replaced"),
        ("fifo", "replaced"),
        ("directory", "replaced"),
    ],
)
def test_a_file_that_is_gone_when_it_is_to_be_read(
    vault: Vault, monkeypatch, size: int, wrong: str, says: str
) -> None:
    file = vault.root / "f"
    file.write_bytes(bytes(size))
    (vault.root / "g").write_bytes(b"steady")
    look = taking.Taking._look

    def replace(self, fd, path, *rest):
        if path == b"f":
            file.unlink()
            if wrong == "symlink":
                os.symlink("g", file)
            elif wrong == "fifo":
                os.mkfifo(file)
            elif wrong == "directory":
                file.mkdir()
        look(self, fd, path, *rest)

    monkeypatch.setattr(taking.Taking, "_look", replace)
    taken, session = vault.back_up()
    assert [problem.path for problem in taken.problems] == [b"f"]
    assert says in taken.problems[0].reason
    assert paths(session) == [b"", b"g"]


def test_the_second_name_of_a_file_stands_in_for_the_first(vault: Vault, monkeypatch) -> None:
    (vault.root / "a").write_bytes(b"content")
    for name in "bc":
        os.link(vault.root / "a", vault.root / name)
    look = taking.Taking._look

    def vanish(self, fd, path, *rest):
        if path == b"a":
            os.unlink(vault.root / "a")
        look(self, fd, path, *rest)

    monkeypatch.setattr(taking.Taking, "_look", vanish)
    taken, session = vault.back_up()
    assert [problem.path for problem in taken.problems] == [b"a"]
    entries = {entry.path: entry for entry in MemoryReader(session).entries()}
    assert contents_of(session, b"b") == b"content"
    assert (entries[b"c"].kind, entries[b"c"].target) == (Kind.HARDLINK, b"b")


@pytest.mark.parametrize("shape", ["grows", "shrinks", "fits"])
def test_a_large_file_that_changes_while_it_is_read(vault: Vault, monkeypatch, shape) -> None:
    file = vault.root / "f"
    file.write_bytes(b"a" * (3 * SMALL_FILE))
    pour, calls = reading._pour, []

    def changing(writer, fd, facts, advance):
        calls.append(1)
        if shape == "shrinks" and len(calls) == 1:
            os.truncate(file, SMALL_FILE * 2)
        end = pour(writer, fd, facts, advance)
        if shape == "grows":
            with open(file, "ab") as more:
                more.write(b"more")
        return end

    monkeypatch.setattr(reading, "_pour", changing)
    taken, session = vault.back_up()
    if shape == "grows":
        assert len(calls) == 2
        assert "changed while" in taken.problems[0].reason
        assert len(contents_of(session, b"f")) == 3 * SMALL_FILE + 4
    else:
        assert taken.problems == ()
        assert contents_of(session, b"f") == file.read_bytes()


def test_files_written_to_all_the_time(vault: Vault) -> None:
    """A thread that appends, truncates, renames and removes: nothing raises, the rest is right."""
    for i in range(200):
        (vault.root / f"still{i:03}").write_bytes(b"%d" % i * 50)
    stop = threading.Event()

    def disturb() -> None:
        i = 0
        while not stop.is_set():
            i += 1
            busy = vault.root / f"busy{i % 7}"
            with open(busy, "ab") as file:
                file.write(os.urandom(50_000 * (i % 3)))
            if i % 5 == 0:
                os.truncate(busy, 10)
            if i % 11 == 0:
                os.rename(busy, vault.root / "renamed")
            if i % 13 == 0 and (vault.root / "renamed").exists():
                os.unlink(vault.root / "renamed")

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(15):
            taken, session = vault.back_up()
            assert not [p for p in taken.problems if p.path.startswith(b"still")]
            for i in (0, 99, 199):
                assert contents_of(session, b"still%03d" % i) == b"%d" % i * 50
            for entry in MemoryReader(session).entries():
                if entry.kind is Kind.FILE:
                    assert len(contents_of(session, entry.path)) == entry.size
    finally:
        stop.set()
        thread.join()


def test_a_disk_that_stumbles_is_asked_once_more(vault: Vault, monkeypatch) -> None:
    (vault.root / "f").write_bytes(b"x")
    (vault.root / "g").write_bytes(b"y")
    failing = {b"f": 1, b"g": 9}

    def reads(fd, names, buffer, limit):
        rows = []
        for name, row in zip(names, kernel.read_files(fd, names, buffer, limit), strict=True):
            failing[name] -= 1
            rows.append((errno.EIO, 0, 0, b"", b"") if failing[name] >= 0 else row)
        return rows

    monkeypatch.setattr(small, "read_files", reads)
    taken, session = vault.back_up()
    assert [(p.path, p.reason) for p in taken.problems] == [
        (b"g", "it cannot be read: Input/output error")
    ]
    assert contents_of(session, b"f") == b"x"


def test_a_fifo_is_recorded_and_never_waited_for(vault: Vault) -> None:
    os.mkfifo(vault.root / "pipe")
    taken, session = vault.back_up()
    assert taken.problems == ()
    assert paths(session) == [b"", b"pipe"]


def test_what_may_not_be_read_is_told(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)
    for above in tmp_path.parents:
        if not os.stat(above).st_mode & 0o001:  # pytest's own folders are private
            os.chmod(above, 0o755)

    def body() -> None:
        vault = Vault(tmp_path / "vault", tmp_path / "cache")
        vault.root.mkdir()
        for name in ("fine", "secret", "large"):
            (vault.root / name).write_bytes(b"x" * (SMALL_FILE + 1 if name == "large" else 1))
        (vault.root / "closed").mkdir()
        (vault.root / "closed" / "inside").write_bytes(b"x")
        (vault.root / "nameless").mkdir()
        (vault.root / "nameless" / "f").write_bytes(b"x")
        for name in ("secret", "large", "closed"):
            os.chmod(vault.root / name, 0)
        os.chmod(vault.root / "nameless", 0o444)
        taken, session = vault.back_up()
        told = {problem.path: problem.reason for problem in taken.problems}
        assert set(told) == {b"secret", b"large", b"closed", b"nameless/f"}, told
        assert all("Permission denied" in reason for reason in told.values()), told
        assert paths(session) == [b"", b"closed", b"fine", b"nameless"]
        again, _ = vault.back_up()
        assert len(again.problems) == 4  # told every time, not only the first
        os.chmod(vault.root, 0)
        with pytest.raises(Refused, match="cannot be read"):
            vault.back_up()
        os.chmod(vault.root, 0o700)
        os.chmod(vault.root / "closed", 0o700)
        os.chmod(vault.root / "nameless", 0o700)

    unprivileged(body)


def test_a_root_that_is_not_there_or_no_directory(vault: Vault) -> None:
    (vault.root / "f").write_bytes(b"x")
    vault.root = vault.root / "f"
    with pytest.raises(Refused, match="Not a directory"):
        vault.back_up()
    vault.root = vault.root.parent / "nothing"
    with pytest.raises(NotFound, match="does not exist"):
        vault.back_up()


def test_a_root_that_has_become_empty_is_told(vault: Vault) -> None:
    taken, _ = vault.back_up()
    assert taken.problems == ()
    (vault.root / "f").write_bytes(b"x")
    vault.back_up()
    os.unlink(vault.root / "f")
    taken, session = vault.back_up()
    assert "mounted" in taken.problems[0].reason
    assert paths(session) == [b""]


def test_patterns_choose_and_a_missing_include_is_told(vault: Vault) -> None:
    for name in ("audits/2026/a.json", "audits/skip.tmp", "other/x", "ml/deep/er/m", "top"):
        (vault.root / name).parent.mkdir(parents=True, exist_ok=True)
        (vault.root / name).write_bytes(b"x")
    taken, session = vault.back_up(
        include=[b"audits/", b"ml/deep/", b"gone/"], exclude=[b"*.tmp", b"er/"]
    )
    assert paths(session) == [
        b"",
        b"audits",
        b"audits/2026",
        b"audits/2026/a.json",
        b"ml",
        b"ml/deep",
    ]
    assert [(p.path, "include" in p.reason) for p in taken.problems] == [(b"gone/", True)]
    _, session = vault.back_up()
    assert b"other/x" in paths(session)


def test_mount_points_and_loops(vault: Vault) -> None:
    """A bind mount of the tree within itself ends; another file system is left out when asked."""
    libc = ctypes.CDLL(None, use_errno=True)
    loop, other = vault.root / "loop", vault.root / "other"
    loop.mkdir()
    other.mkdir()
    (vault.root / "f").write_bytes(b"x")
    bind = libc.mount(os.fsencode(vault.root), os.fsencode(loop), None, 4096, None)
    tmpfs = libc.mount(b"none", os.fsencode(other), b"tmpfs", 0, b"size=1m")
    if bind or tmpfs:
        pytest.skip("no right to mount here")
    try:
        (other / "on-it").write_bytes(b"y")
        taken, session = vault.back_up()
        assert [(p.path, "within itself" in p.reason) for p in taken.problems] == [(b"loop", True)]
        assert b"other/on-it" in paths(session)
        taken, session = vault.back_up(one_file_system=True)
        assert b"other/on-it" not in paths(session)
        assert b"other" in paths(session)
        assert taken.facts["mounts_left_out"] == ["other"]
    finally:
        libc.umount2(os.fsencode(loop), 2)
        libc.umount2(os.fsencode(other), 2)


def test_attributes_that_cannot_be_read_are_told_every_time(vault: Vault, monkeypatch) -> None:
    (vault.root / "f").write_bytes(b"x")
    packed = b"\x06\x00user.q\xff\xff\xff\xff\x0d\x00\x00\x00"

    def reads(*arguments):
        return [(*row[:4], packed) for row in kernel.read_files(*arguments)]

    monkeypatch.setattr(small, "read_files", reads)
    for _ in range(2):
        taken, session = vault.back_up()
        assert [p.path for p in taken.problems] == [b"f"]
        assert "user.q" in taken.problems[0].reason
        assert session.read == 1


@given(
    st.integers(0, 0o7777), st.integers(0, 2**32 - 1), st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**64 - 1), st.binary(max_size=60),
)  # fmt: skip
def test_the_short_way_to_a_record_is_the_long_one(mode, owner, mtime, size, content) -> None:
    fields = (mode, owner, owner, mtime, size, content)
    assert encode_plain_file(*fields) == encode_record(Entry(b"f", Kind.FILE, *fields))
