"""What goes in comes out: every kind of entry, every name, holes, links and attributes."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from files.conftest import Vault
from files.double import MemoryReader
from strongroom.files.compare import compare_trees
from strongroom.files.sink import FileSink
from strongroom.format.tree import Kind
from strongroom.progress import Silent

DEEP = 4096


def same(a: Path, b: Path) -> None:
    assert compare_trees(os.fsencode(a), os.fsencode(b)) == []


def posix_acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ACL = posix_acl((1, 6, 0xFFFFFFFF), (2, 7, 1234), (4, 4, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF),
                (32, 0, 0xFFFFFFFF))  # fmt: skip


def furnish(root: Path) -> None:
    """One of everything."""
    (root / "a").mkdir()
    (root / "a-b").write_bytes(b"before a/x, after a")
    (root / "a" / "x").write_bytes(b"x" * 100)
    (root / "a!").write_bytes(b"")
    (root / "big").write_bytes(os.urandom(700_001))
    (root / "set-id").write_bytes(b"#!")
    os.chown(root / "set-id", 1234, 4321)
    os.chmod(root / "set-id", 0o6751)
    os.symlink("a/x", root / "link")
    os.symlink(b"/nowhere/\xff", os.fsencode(root / "dangling"))
    os.lchown(root / "link", 7, 8)
    os.link(root / "a" / "x", root / "other-name")
    os.link(root / "a" / "x", root / "a" / "0-first")
    os.mkfifo(root / "pipe", 0o640)
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(root)  # a socket's path may have 107 bytes
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 70000))
    os.setxattr(root / "a", "user.on-directory", b"\0\xff")
    os.setxattr(root / "a-b", "user.note", b"v" * 3000)
    os.setxattr(root / "a-b", "system.posix_acl_access", ACL)
    os.setxattr(root / "a", "system.posix_acl_default", ACL)
    capability = struct.pack("<IIIII", 0x02000001, 0x2000, 0, 0, 0)
    os.setxattr(root / "big", "security.capability", capability)
    os.setxattr(root / "link", "trusted.on-symlink", b"1", follow_symlinks=False)
    os.utime(root / "a-b", ns=(5, 1_234_567_890_123_456_789))
    os.utime(root / "big", ns=(5, -86_400_000_000_001))
    os.utime(root / "link", ns=(5, 987_654_321), follow_symlinks=False)
    os.chmod(root / "a", 0o1555)
    os.utime(root / "a", ns=(0, 77))
    os.chmod(root, 0o751)


def test_one_of_everything(vault: Vault, restore) -> None:
    furnish(vault.root)
    taken, session = vault.back_up()
    assert taken.problems == ()
    target, outcome = restore(MemoryReader(session))
    assert outcome.problems == ()
    same(vault.root, target)
    again, second = vault.back_up()
    assert (again.files, again.size) == (taken.files, taken.size)
    assert second.tree.records == session.tree.records
    assert again.facts["unchanged"] >= taken.facts["entries"] - 3  # the root and two link names


def test_names_of_every_byte(vault: Vault, restore) -> None:
    root = os.fsencode(vault.root)
    for byte in set(range(1, 256)) - {ord("/")}:
        os.mkdir(root + b"/d" + bytes([byte]))
        for name in (bytes([byte]) + b"f", b"-", b"n" * 255):
            fd = os.open(root + b"/d" + bytes([byte]) + b"/" + name, os.O_CREAT | os.O_WRONLY)
            os.write(fd, bytes([byte]))
            os.close(fd)
    for name in ("é", "é", " trailing ", "a\nb", "\x1b[31m", "\u202egnp", "A", "a"):
        (vault.root / name).write_text(name)
    taken, session = vault.back_up()
    target, outcome = restore(MemoryReader(session))
    assert (taken.problems, outcome.problems) == ((), ())
    same(vault.root, target)


@pytest.fixture
def deep_room() -> Iterator[Path]:
    """A place of its own, for pytest cannot clear away what is deeper than Python recurses."""
    room = tempfile.mkdtemp()
    yield Path(room)
    subprocess.run(["rm", "-rf", "--", room], check=True)


def test_a_path_of_4096_directories(deep_room: Path, restore) -> None:
    vault = Vault(deep_room / "vault", deep_room / "cache")
    vault.root.mkdir()
    fd = os.open(vault.root, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir(b"d", dir_fd=fd)
        deeper = os.open(b"d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    with os.fdopen(os.open(b"bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd), "wb") as file:
        file.write(b"here")
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    taken, session = vault.back_up()
    assert (taken.files, taken.facts["entries"], taken.problems) == (1, DEEP + 2, ())
    target, outcome = restore(MemoryReader(session), deep_room / "restored")
    assert outcome.problems == ()
    same(vault.root, target)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_after_a_deep_path_the_walk_comes_back(vault: Vault, restore) -> None:
    """Directories that were let go on the way down are opened again on the way up."""
    path = vault.root
    for depth in range(100):
        for name in ("0", "z", "zz-dir"):
            (path / name).mkdir() if "dir" in name else (path / name).write_text(str(depth))
        (path / "zz-dir" / "leaf").write_text("leaf")
        path /= "m"
        path.mkdir()
    taken, session = vault.back_up()
    assert (taken.files, taken.problems) == (300, ())
    target, _ = restore(MemoryReader(session))
    same(vault.root, target)


def test_a_sparse_terabyte_is_quick_and_stays_sparse(vault: Vault, restore) -> None:
    size = 1 << 40
    with open(vault.root / "sparse", "wb") as file:
        file.truncate(size)
        for at in (0, 1 << 30, (1 << 39) + 4096):
            file.seek(at)
            file.write(b"data" * 2000)
    with open(vault.root / "nothing", "wb") as file:
        file.truncate(size)
    taken, session = vault.back_up()
    assert (taken.problems, taken.size) == ((), 2 * size)
    assert sum(map(len, session.chunks.values())) < 1 << 20
    target, outcome = restore(MemoryReader(session))
    assert outcome.problems == ()
    for name in ("sparse", "nothing"):
        facts = os.stat(target / name)
        assert facts.st_size == size
        assert facts.st_blocks * 512 <= max(os.stat(vault.root / name).st_blocks * 512, 4096)
    with open(target / "sparse", "rb") as file:
        for at in (0, 1 << 30, (1 << 39) + 4096):
            file.seek(at)
            assert file.read(8000) == b"data" * 2000
            assert file.read(100).strip(b"\0") == b""


def test_a_small_sparse_file_keeps_its_bytes(vault: Vault, restore) -> None:
    with open(vault.root / "holes", "wb") as file:
        file.seek(100_000)
        file.write(b"end")
        file.truncate(200_000)
    _, session = vault.back_up()
    target, _ = restore(MemoryReader(session))
    same(vault.root, target)


def test_links_to_names_outside_the_tree(vault: Vault, restore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"shared")
    for name in ("one", "two", "three"):
        os.link(outside, vault.root / name)
    taken, session = vault.back_up()
    assert (taken.files, taken.size) == (1, 6)
    target, outcome = restore(MemoryReader(session))
    assert outcome.files == 3
    assert len({os.stat(target / name).st_ino for name in ("one", "two", "three")}) == 1
    assert os.stat(target / "one").st_nlink == 3
    assert outside.read_bytes() == b"shared"


def test_links_after_their_first_name_went_away(vault: Vault, restore) -> None:
    """The record of the old first name must not be taken for the new one's."""
    (vault.root / "a").write_bytes(b"content")
    os.link(vault.root / "a", vault.root / "b")
    os.link(vault.root / "a", vault.root / "c")
    vault.back_up()
    os.unlink(vault.root / "a")
    taken, session = vault.back_up()
    kinds = {path: record[0] for path, record in session.tree.records}
    assert kinds == {b"": Kind.DIRECTORY, b"b": Kind.FILE, b"c": Kind.HARDLINK}
    target, _ = restore(MemoryReader(session))
    same(vault.root, target)
    assert taken.problems == ()


def test_chosen_paths_bring_their_parents_and_their_links(vault: Vault, restore) -> None:
    furnish(vault.root)
    _, session = vault.back_up()
    target, outcome = restore(MemoryReader(session), paths=[b"other-name", b"a/x", b"a/x", b"pipe"])
    assert outcome.problems == ()
    assert sorted(os.listdir(target)) == ["a", "other-name", "pipe"]
    assert os.listdir(target / "a") == ["x"]
    assert (target / "other-name").read_bytes() == b"x" * 100
    assert os.path.samefile(target / "other-name", target / "a" / "x")
    assert stat.S_IMODE(os.stat(target / "a").st_mode) == 0o1555
    assert os.stat(target / "a").st_mtime_ns == 77


names = st.binary(min_size=1, max_size=12).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
)
trees = st.recursive(
    st.one_of(
        st.binary(max_size=400),
        st.builds(lambda n, b: bytes([b]) * n, st.integers(260_000, 300_000), st.integers(0, 255)),
        st.tuples(st.just("link"), names),
        st.just("fifo"),
    ),
    lambda children: st.dictionaries(names, children, max_size=5),
    max_leaves=25,
)


def build(root: bytes, tree: object) -> None:
    assert isinstance(tree, dict)
    for name, node in tree.items():
        path = root + b"/" + name
        if isinstance(node, dict):
            os.mkdir(path)
            build(path, node)
        elif isinstance(node, bytes):
            with open(path, "wb") as file:
                file.write(node)
        elif node == "fifo":
            os.mkfifo(path)
        else:
            os.symlink(node[1], path)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(names, trees, max_size=6), st.booleans())
def test_any_tree(tree: dict[bytes, object], second_time: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        vault = Vault(Path(scratch) / "vault", Path(scratch) / "cache")
        vault.root.mkdir()
        build(os.fsencode(vault.root), tree)
        taken, session = vault.back_up()
        if second_time:
            taken, session = vault.back_up()
            assert session.read == session.streams == 0
        target = Path(scratch) / "restored"
        outcome = FileSink(os.fsencode(target)).restore(MemoryReader(session), progress=Silent())
        assert (taken.problems, outcome.problems) == ((), ())
        same(vault.root, target)


def test_the_same_with_the_twins(tmp_path: Path) -> None:
    """The whole way again without the compiled kernel."""
    environment = dict(os.environ, STRONGROOM_NO_KERNEL="1")
    this = os.path.abspath(__file__)
    if os.environ.get("STRONGROOM_NO_KERNEL"):
        pytest.skip("this is the run without the compiled kernel")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
         f"--basetemp={tmp_path}/t", this, "-k", "everything or every_byte or chosen or links"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_compare_tells_every_difference(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for root in (a, b):
        root.mkdir()
        for name in ("bytes", "mode", "time", "size", "xattr", "kind", "linked", "linked2"):
            (root / name).write_bytes(b"1")
        os.symlink("1", root / "target")
    assert all("times" in what for _, what in compare_trees(os.fsencode(a), os.fsencode(b)))
    (b / "bytes").write_bytes(b"2")
    os.chmod(b / "mode", 0o611)
    (b / "size").write_bytes(b"11")
    os.setxattr(b / "xattr", "user.x", b"")
    os.unlink(b / "kind")
    os.mkdir(b / "kind")
    os.unlink(b / "linked2")
    os.link(b / "linked", b / "linked2")
    os.unlink(b / "target")
    os.symlink("2", b / "target")
    (a / "left").write_bytes(b"")
    (b / "right").write_bytes(b"")
    os.chown(b / "time", 5, 5)
    for root in (a, b):
        for name in [*os.listdir(root), "."]:
            os.utime(root / name, ns=(1, 1), follow_symlinks=False)
    os.utime(b / "time", ns=(1, 2))
    found = dict(compare_trees(os.fsencode(a), os.fsencode(b)))
    assert found == {
        b"bytes": "content",
        b"kind": "kinds file and directory",
        b"left": "only in the left one",
        b"linked2": "which names are the same file",
        b"mode": "modes 644 and 611",
        b"right": "only in the right one",
        b"size": "sizes 1 and 2",
        b"target": "symlink targets",
        b"time": "times 1 and 2",
        b"xattr": "extended attributes",
    }
    with pytest.raises(OSError) as caught:
        compare_trees(b"/no/such", os.fsencode(b))
    assert caught.value.errno == errno.ENOENT
