"""New plain files are taken in blocks: the same snapshot, and the same care, as one by one."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from files.conftest import Vault
from files.double import MemoryReader, MemorySession
from rooms import new_room
from strongroom import kernel
from strongroom.files import small, taking
from strongroom.files.change_cache import MARGIN_NS
from strongroom.files.reading import SMALL_FILE
from strongroom.files.source import FileSource
from strongroom.format.tree import Kind
from strongroom.operations.back_up import back_up
from strongroom.progress import Silent
from strongroom.storage.memory import MemoryStorage

NEVER = 1 << 40


def fill(root: Path, files: int) -> None:
    for number in range(files):
        (root / f"{number:04}").write_bytes(b"%d," % number * (number % 50))


def contents(session: MemorySession) -> dict[bytes, bytes]:
    reader = MemoryReader(session)
    return {
        entry.path: b"".join(map(bytes, reader.stream(entry)))
        for entry in reader.entries()
        if entry.kind is Kind.FILE
    }


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[taking.Block]:
    """The blocks that are made."""
    made: list[taking.Block] = []

    def note(self, fd, block, size):
        made.append(block)
        read_block(self, fd, block, size)

    read_block = taking.Taking._read_block
    monkeypatch.setattr(taking.Taking, "_read_block", note)
    return made


@pytest.fixture
def before_block(monkeypatch: pytest.MonkeyPatch):
    """Do something between the scan and the reading of the first block."""

    def arrange(action) -> None:
        left = [action]

        def reads(*arguments):
            if left:
                left.pop()()
            return kernel.read_plain(*arguments)

        monkeypatch.setattr(small, "read_plain", reads)

    return arrange


def root_of(root: Path, least: int) -> object:
    """The root of the tree of `root`, with blocks of at least so many files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taking, "BLOCK_MIN", least)
        source = FileSource("vault", os.fsencode(root), clock=lambda: 1 << 62)
        report = back_up(new_room(MemoryStorage()), source, progress=Silent())
        assert not report.problems
        return report.snapshot.root


SPECS = st.lists(
    st.tuples(
        st.sampled_from(["", "a/", "a/b/", "a-b/", "z" * 200 + "/"]),
        st.integers(0, 2000),
        st.sampled_from(
            ["file"] * 12 + ["empty", "link", "directory", "symlink", "large", "xattr"]
        ),
    ),
    min_size=1,
    max_size=60,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(SPECS, st.integers(0, 300))
def test_the_tree_is_the_one_that_single_files_make(tmp_path_factory, specs, more) -> None:
    root = tmp_path_factory.mktemp("root")
    for number, (folder, name, what) in enumerate(specs):
        path = root / folder / f"{name:04}-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if what == "directory":
            path.mkdir()
        elif what == "symlink":
            os.symlink("nowhere", path)
        else:
            size = {"empty": 0, "large": SMALL_FILE + 1}.get(what, 1 + name)
            path.write_bytes(random.Random(number % 9).randbytes(size))
        if what == "link":
            os.link(path, path.with_name(path.name + "~"))
        elif what == "xattr":
            os.setxattr(path, "user.label", b"%d" % (number % 2))
    (root / "many").mkdir()
    fill(root / "many", more)
    assert root_of(root, 1) == root_of(root, 8) == root_of(root, NEVER)


def test_blocks_cross_batches_and_slices(vault: Vault, blocks) -> None:
    (vault.root / "one").mkdir()
    fd = os.open(vault.root / "one", os.O_RDONLY)
    specs = [(fd, b"%05d" % i, 0o600, -1, -1, 0) for i in range(5000)]
    kernel.write_files(specs, [b"%d" % i for i in range(5000)])
    os.close(fd)
    (vault.root / "two").mkdir()
    for number in range(40):  # more than one buffer
        (vault.root / "two" / f"{number:02}").write_bytes(os.urandom(SMALL_FILE - number))
    taken, session = vault.back_up()
    assert (taken.files, taken.problems) == (5040, ())
    assert sum(map(len, blocks)) == 5040
    found = contents(session)
    assert all(found[b"one/%05d" % i] == b"%d" % i for i in range(5000))
    assert found[b"two/39"] == (vault.root / "two" / "39").read_bytes()
    again, second = vault.back_up()
    assert (again.facts["unchanged"], second.tree.records) == (5043, session.tree.records)


@pytest.mark.parametrize("harm", ["write", "grow", "huge", "shrink", "touch", "same-facts"])
def test_a_file_that_changes_falls_out_of_its_block(
    vault: Vault, blocks, before_block, harm: str
) -> None:
    fill(vault.root, 60)
    odd = vault.root / "0030"
    before = os.stat(odd)

    def change() -> None:
        if harm == "write":
            odd.write_bytes(b"!" * before.st_size)
        elif harm == "grow":
            odd.write_bytes(b"!" * 100_000)
        elif harm == "huge":
            odd.write_bytes(b"!" * (SMALL_FILE + 1))
        elif harm == "shrink":
            odd.write_bytes(b"")
        elif harm == "touch":
            os.utime(odd, ns=(1, 1))
        else:  # another file with the same size and times; its inode and ctime tell
            odd.unlink()
            odd.write_bytes(b"!" * before.st_size)
            os.utime(odd, ns=(before.st_atime_ns, before.st_mtime_ns))

    before_block(change)
    taken, session = vault.back_up()
    assert (len(blocks), [number for number, *_ in blocks[0].odd]) == (1, [30])
    assert (taken.files, taken.problems) == (60, ())
    assert contents(session) == {
        os.fsencode(path.name): path.read_bytes() for path in vault.root.iterdir()
    }
    again, session = vault.back_up()
    assert session.read == 0
    assert again.facts["unchanged"] >= 60  # the folder itself may have changed


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("vanish", "vanished"),
        ("symlink", "replaced"),
        ("fifo", "replaced"),
        ("directory", "replaced"),
    ],
)
def test_what_is_gone_from_a_block_is_told(
    vault: Vault, blocks, before_block, wrong: str, says: str
) -> None:
    fill(vault.root, 20)

    def replace() -> None:
        for name in ("0000", "0007", "0019"):
            odd = vault.root / name
            odd.unlink()
            if wrong == "symlink":
                os.symlink("0001", odd)
            elif wrong == "fifo":
                os.mkfifo(odd)
            elif wrong == "directory":
                odd.mkdir()

    before_block(replace)
    taken, session = vault.back_up()
    told = {problem.path: problem.reason for problem in taken.problems}
    assert set(told) == {b"0000", b"0007", b"0019"}
    assert all(says in reason for reason in told.values())
    assert taken.files == len(contents(session)) == 17
    assert len(blocks) == 1


def test_a_file_of_a_block_that_keeps_changing_is_told(
    vault: Vault, before_block, monkeypatch
) -> None:
    fill(vault.root, 20)
    numbers = iter(range(9))
    before_block(lambda: (vault.root / "0003").write_bytes(b"x"))

    def reads(*arguments):
        (vault.root / "0003").write_bytes(b"%d" % next(numbers) * 7)
        return kernel.read_files(*arguments)

    monkeypatch.setattr(small, "read_files", reads)
    taken, session = vault.back_up()
    assert [problem.path for problem in taken.problems] == [b"0003"]
    assert "changed while" in taken.problems[0].reason
    assert contents(session)[b"0003"] == b"1" * 7


def test_a_batch_that_a_grown_file_fills_leaves_its_blocks_to_the_caller(
    vault: Vault, blocks, monkeypatch
) -> None:
    (vault.root / "a").mkdir()
    (vault.root / "b").mkdir()
    (vault.root / "a" / "single").write_bytes(b"single")
    fill(vault.root / "b", 30)
    read = small.Singles.read
    monkeypatch.setattr(small.Singles, "read", lambda self, room: read(self, room) and -1)
    taken, session = vault.back_up()
    assert (taken.files, taken.problems) == (31, ())
    assert len(blocks[0].odd) == 30
    assert contents(session)[b"b/0029"] == b"29," * 29


def test_the_same_second_rule_holds_within_a_block(vault: Vault, blocks) -> None:
    fill(vault.root, 20)
    for number in range(20):
        os.utime(vault.root / f"{number:04}", ns=(0, 0))
    vault.now = (1 << 62) + MARGIN_NS
    os.utime(vault.root / "0007", ns=(0, 1 << 62))
    vault.back_up()
    _, session = vault.back_up()
    assert session.read == 2 * 7  # that one is read again, all the others are known
    assert len(blocks) == 1


def test_attributes_that_all_files_have_are_learned(vault: Vault, blocks, monkeypatch) -> None:
    """As on a machine with labels on every file: the first blocks are odd, the others are not."""
    monkeypatch.setattr(taking, "SINGLY", 1)
    for folder in range(12):
        (vault.root / f"{folder:02}").mkdir()
        fill(vault.root / f"{folder:02}", 400)
        for path in (vault.root / f"{folder:02}").iterdir():
            os.setxattr(path, "user.label", b"same")
    taken, session = vault.back_up()
    assert (taken.files, taken.problems) == (4800, ())
    assert blocks[0].odd
    assert blocks[-1].xattrs
    assert not blocks[-1].odd
    files = [entry for entry in MemoryReader(session).entries() if entry.kind is Kind.FILE]
    assert {entry.xattrs for entry in files} == {((b"user.label", b"same"),)}
    _, second = vault.back_up()
    assert (second.read, second.tree.records) == (0, session.tree.records)


def test_where_every_file_is_odd_no_more_blocks_are_made(vault: Vault, blocks) -> None:
    for folder in range(40):
        (vault.root / f"{folder:02}").mkdir()
        fill(vault.root / f"{folder:02}", 100)
        for number in range(100):
            path = vault.root / f"{folder:02}" / f"{number:04}"
            os.setxattr(path, "user.number", b"%d" % number)
    taken, session = vault.back_up()
    assert (taken.files, taken.problems) == (4000, ())
    assert len(blocks) < 40
    for entry in MemoryReader(session).entries():
        if entry.kind is Kind.FILE:
            assert entry.xattrs == ((b"user.number", b"%d" % int(entry.path[-4:])),)


def test_facts_are_those_of_the_files(vault: Vault, blocks) -> None:
    fill(vault.root, 12)
    for number in range(12):
        os.chmod(vault.root / f"{number:04}", 0o4700 + number)
        os.utime(vault.root / f"{number:04}", ns=(0, -number * 10**9 - 1))
    _, session = vault.back_up()
    assert len(blocks) == 1
    for entry in MemoryReader(session).entries():
        facts = os.lstat(vault.root / os.fsdecode(entry.path))
        assert entry.mode == stat.S_IMODE(facts.st_mode)
        assert (entry.uid, entry.gid) == (facts.st_uid, facts.st_gid)
        assert entry.mtime_ns == facts.st_mtime_ns
