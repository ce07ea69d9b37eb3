"""A restore writes beneath its target and nowhere else, and tells what is not as it was."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import resource
import shutil
import stat
import threading
import time
from pathlib import Path

import pytest

from files.conftest import Vault, unprivileged
from files.double import MemoryReader, MemorySession
from strongroom.errors import NotFound, Refused, TargetFull
from strongroom.files import beneath
from strongroom.files.compare import compare_trees
from strongroom.files.reading import SMALL_FILE
from strongroom.files.sink import FileSink
from strongroom.files.walk import open_below
from strongroom.format.content import Extent, inline, whole
from strongroom.format.tree import Entry, Kind
from strongroom.progress import Silent

CHUNK = b"hostile content"
CHUNK_ID = hashlib.sha256(CHUNK).digest()
CHUNKS = {CHUNK_ID: CHUNK}
ROOT = Entry(b"", Kind.DIRECTORY, 0o755)


def file(path: bytes, **fields: object) -> Entry:
    given = {"mode": 0o644, "size": len(CHUNK), "content": whole(CHUNK_ID), **fields}
    return Entry(path, Kind.FILE, **given)  # type: ignore[arg-type]


def directory(path: bytes) -> Entry:
    return Entry(path, Kind.DIRECTORY, 0o755)


def symlink(path: bytes, target: bytes) -> Entry:
    return Entry(path, Kind.SYMLINK, 0o777, target=target)


def hardlink(path: bytes, target: bytes) -> Entry:
    return Entry(path, Kind.HARDLINK, target=target)


def everything_below(path: Path) -> set[str]:
    return {os.path.join(at, name) for at, dirs, files in os.walk(path) for name in dirs + files}


HOSTILE = {
    "dot-dot": [file(b"../out")],
    "dot-dot inside": [directory(b"a"), file(b"a/../../out")],
    "absolute": [file(b"/tmp/strongroom-out")],
    "zero byte": [file(b"a\0b")],
    "empty component": [directory(b"a"), file(b"a//b")],
    "dot": [file(b"./a")],
    "trailing slash": [file(b"a/")],
    "below a symlink": [symlink(b"a", b"../outside"), file(b"a/out")],
    "below a symlink to above": [symlink(b"a", b".."), file(b"a/out")],
    "directory then symlink": [directory(b"a"), symlink(b"a", b"../outside"), file(b"a")],
    "symlink then directory": [symlink(b"a", b"../outside"), directory(b"a"), file(b"a/out")],
    "symlink then file": [symlink(b"a", b"../outside/sentinel"), file(b"a")],
    "below a file": [file(b"a"), file(b"a/b")],
    "below nothing": [file(b"no/such")],
    "link to dot-dot": [hardlink(b"a", b"../outside/sentinel")],
    "link to absolute": [hardlink(b"a", b"/etc/passwd")],
    "link through a symlink": [symlink(b"a", b"../outside"), hardlink(b"b", b"a/sentinel")],
    "link to a symlink": [symlink(b"a", b"../outside/sentinel"), hardlink(b"b", b"a")],
    "link to nothing": [hardlink(b"b", b"nothing")],
    "link to itself": [hardlink(b"b", b"b")],
    "link below a symlink": [
        symlink(b"a", b"../outside"), file(b"f"), hardlink(b"a/out", b"f"),
    ],
    "root as a file": [file(b"")],
    "a huge name": [file(b"n" * 256)],
    "content past its end": [file(b"a", size=3, content=inline([Extent(0, 15, 0, 1, CHUNK_ID)]))],
    "content shorter than it says": [file(b"a", size=99)],
    "more content than a small file": [file(b"a", size=SMALL_FILE * 2)],
    "symlink with a zero byte": [symlink(b"a", b"x\0y")],
    "symlink to nothing": [symlink(b"a", b"")],
}  # fmt: skip


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_trees_stay_inside_and_are_told(tmp_path: Path, case: str, force: bool) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "sentinel").write_bytes(b"untouched")
    target = tmp_path / "target"
    if force:
        target.mkdir()
        (target / "there").write_bytes(b"before")
    before = everything_below(tmp_path)
    entries = HOSTILE[case] if case == "root as a file" else [ROOT, *HOSTILE[case]]
    reader = MemoryReader.of([*entries, file(b"good")], CHUNKS)
    sink = FileSink(os.fsencode(target), force=force)
    outcome = sink.restore(reader, progress=Silent())
    assert outcome.problems or (case == "symlink then file" and force), case
    assert (target / "good").read_bytes() == CHUNK
    grown = everything_below(tmp_path) - before
    assert all(name.startswith(os.fspath(target)) for name in grown)
    assert (outside / "sentinel").read_bytes() == b"untouched"
    assert os.stat(outside / "sentinel").st_nlink == 1
    assert not os.path.exists("/tmp/strongroom-out")
    assert not [name for name in grown if ".strongroom-" in name]


@pytest.mark.parametrize("opening", ["openat2", "components"])
def test_a_directory_is_opened_through_no_symlink(tmp_path: Path, opening: str) -> None:
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    os.symlink("../outside", tmp_path / "root" / "link")
    os.symlink("../../outside", tmp_path / "root" / "a" / "link")
    root = os.open(tmp_path / "root", os.O_RDONLY)
    how = beneath.open_beneath(root) if opening == "openat2" else open_below
    if opening == "openat2" and how is open_below:
        pytest.skip("this kernel has no openat2")
    below = beneath.Beneath(root, how)
    assert os.path.samestat(
        os.fstat(below.directory(b"a/b")), os.stat(tmp_path / "root" / "a" / "b")
    )
    for path in (b"link", b"a/link", b"link/x", b"a/none"):
        with pytest.raises(OSError):
            below.directory(path)
    below.close()
    os.close(root)


def test_a_swapper_does_not_lead_the_restore_outside(tmp_path: Path) -> None:
    """Someone swaps directories of the target for symlinks all the while."""
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    entries = [ROOT]
    for i in range(60):
        entries.append(directory(b"d%02d" % i))
        entries += [file(b"d%02d/f%02d" % (i, j), xattrs=((b"user.x", b"y"),)) for j in range(5)]
        entries += [file(b"d%02d/g%02d" % (i, j)) for j in range(5)]
        entries.append(hardlink(b"d%02d/h" % i, b"d%02d/g00" % i))
    reader = MemoryReader.of(sorted(entries, key=lambda entry: entry.path), CHUNKS)
    stop, swaps = threading.Event(), [0]

    def swap() -> None:
        while not stop.is_set():
            for i in range(60):
                with contextlib.suppress(OSError):
                    os.rename(target / f"d{i:02}", target / f"moved{i}")
                    os.symlink(outside, target / f"d{i:02}")
                    swaps[0] += 1
            time.sleep(0)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        while swaps[0] < 300:
            sink = FileSink(os.fsencode(target), force=True)
            outcome = sink.restore(reader, progress=Silent())
            assert os.listdir(outside) == []
            assert stat.S_IMODE(os.stat(outside).st_mode) == 0o755
            shutil.rmtree(target, ignore_errors=True)
    finally:
        stop.set()
        thread.join()
    assert os.listdir(outside) == []
    assert isinstance(outcome.problems, tuple)


# -- where to ---------------------------------------------------------------------------------


def simple(vault: Vault) -> MemoryReader:
    (vault.root / "d").mkdir()
    (vault.root / "d" / "f").write_bytes(b"from the snapshot")
    (vault.root / "big").write_bytes(b"b" * (SMALL_FILE + 1))
    os.symlink("d", vault.root / "link")
    os.mkfifo(vault.root / "pipe")
    os.link(vault.root / "d" / "f", vault.root / "zlink")
    taken, session = vault.back_up()
    return MemoryReader(session, taken.facts)


def test_preflight_plans_and_changes_nothing(vault: Vault, tmp_path: Path) -> None:
    reader = simple(vault)
    target = tmp_path / "not" / "there" / "yet"
    plan = FileSink(os.fsencode(target)).preflight(reader)
    assert (plan["files"], plan["size"]) == (2, 17 + SMALL_FILE + 1)
    assert (plan["exists"], plan["replaces"]) == (False, False)
    assert not (tmp_path / "not").exists()
    chosen = FileSink(os.fsencode(target), paths=[b"d/"]).preflight(reader)
    assert (chosen["files"], chosen["size"]) == (1, 17)
    with pytest.raises(NotFound, match="no/such"):
        FileSink(os.fsencode(target), paths=[b"no/such"]).preflight(reader)
    with pytest.raises(NotFound):
        FileSink(os.fsencode(target), paths=[b"../x"]).preflight(reader)
    (tmp_path / "file").write_bytes(b"")
    for place in ("file", "file/below"):
        with pytest.raises(Refused):
            FileSink(os.fsencode(tmp_path / place)).preflight(reader)


def test_a_target_that_holds_anything_is_refused_without_force(vault: Vault, tmp_path) -> None:
    reader = simple(vault)
    target = tmp_path / "full"
    target.mkdir()
    (target / "x").write_bytes(b"mine")
    for call in ("preflight", "restore"):
        sink = FileSink(os.fsencode(target))
        with pytest.raises(Refused, match="not empty"):
            sink.preflight(reader) if call == "preflight" else sink.restore(
                reader, progress=Silent()
            )
    assert os.listdir(target) == ["x"]


def test_force_replaces_what_has_the_same_name_and_leaves_the_rest(
    vault, tmp_path, restore
) -> None:
    reader = simple(vault)
    target, outside = tmp_path / "merged", tmp_path / "outside"
    (target / "d").mkdir(parents=True)
    outside.write_bytes(b"untouched")
    (target / "mine").write_bytes(b"mine")
    os.link(outside, target / "big")  # a link: writing into it would write outside
    os.symlink(outside, target / "d" / "f")
    (target / "link").write_bytes(b"in the way")
    (target / "pipe").write_bytes(b"in the way")
    os.symlink(outside, target / "zlink")
    _, outcome = restore(reader, target, force=True)
    assert outcome.problems == ()
    assert outside.read_bytes() == b"untouched"
    assert os.stat(outside).st_nlink == 1
    assert (target / "mine").read_bytes() == b"mine"
    os.unlink(target / "mine")
    os.utime(target, ns=(0, os.stat(vault.root).st_mtime_ns))
    assert compare_trees(os.fsencode(vault.root), os.fsencode(target)) == []
    _, outcome = restore(reader, target, force=True)  # and over itself, links included
    assert outcome.problems == ()
    assert compare_trees(os.fsencode(vault.root), os.fsencode(target)) == []


def test_force_does_not_turn_a_directory_into_a_file_or_back(vault, tmp_path, restore) -> None:
    reader = simple(vault)
    target, outside = tmp_path / "merged", tmp_path / "outside"
    outside.mkdir()
    (target / "big").mkdir(parents=True)
    (target / "big" / "precious").write_bytes(b"x")
    os.symlink(outside, target / "d")
    _, outcome = restore(reader, target, force=True)
    assert {problem.path for problem in outcome.problems} >= {b"big", b"d"}
    assert (target / "big" / "precious").exists()
    assert os.listdir(outside) == []


def test_the_source_itself_only_in_place(vault: Vault, tmp_path: Path) -> None:
    reader = simple(vault)
    (vault.root / "d" / "f").write_bytes(b"changed since")
    with pytest.raises(Refused, match="source itself"):
        FileSink(os.fsencode(vault.root), force=True).preflight(reader)
    os.symlink(vault.root, tmp_path / "alias")
    with pytest.raises(Refused, match="source itself"):
        FileSink(os.fsencode(tmp_path / "alias"), force=True).preflight(reader)
    outcome = FileSink(os.fsencode(vault.root), in_place=True).restore(reader, progress=Silent())
    assert outcome.problems == ()
    assert (vault.root / "d" / "f").read_bytes() == b"from the snapshot"
    assert (vault.root / "zlink").samefile(vault.root / "d" / "f")


# -- what goes wrong --------------------------------------------------------------------------


def test_damaged_files_are_named_and_not_there_and_the_rest_is(vault: Vault, restore) -> None:
    (vault.root / "small").write_bytes(b"small")
    (vault.root / "small-link").hardlink_to(vault.root / "small")
    (vault.root / "large").write_bytes(os.urandom(SMALL_FILE * 2))
    (vault.root / "noted").write_bytes(b"with attribute")
    os.setxattr(vault.root / "noted", "user.x", b"1")
    (vault.root / "fine").write_bytes(b"fine")
    _, session = vault.back_up()
    for chunk_id, chunk in list(session.chunks.items()):
        if chunk != b"fine":
            session.chunks[chunk_id] = chunk[:-1] + bytes([chunk[-1] ^ 1])
    target, outcome = restore(MemoryReader(session))
    assert os.listdir(target) == ["fine"]
    named = {problem.path for problem in outcome.problems}
    assert named == {b"small", b"large", b"noted", b"small-link"}
    assert outcome.facts["damaged"] == 4
    assert (outcome.files, outcome.size) == (1, 4)


def test_a_full_disk_says_how_things_stand(vault: Vault, tmp_path: Path) -> None:
    target = tmp_path / "small-disk"
    target.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(target), b"tmpfs", 0, b"size=2m"):
        pytest.skip("no right to mount here")
    try:
        for i in range(20):
            (vault.root / f"f{i:02}").write_bytes(os.urandom(200_000 if i % 2 else 300_000))
        _, session = vault.back_up()
        with pytest.raises(TargetFull, match="full") as caught:
            FileSink(os.fsencode(target)).restore(MemoryReader(session), progress=Silent())
        assert "files" in caught.value.means
        for name in os.listdir(target):
            assert (target / name).read_bytes() == (vault.root / name).read_bytes()
    finally:
        libc.umount2(os.fsencode(target), 2)


def test_without_rights_facts_are_told_once_for_all(vault: Vault, tmp_path: Path) -> None:
    for i in range(50):
        path = vault.root / f"f{i:02}"
        path.write_bytes(b"x")
        os.chown(path, 1, 1)
        os.chmod(path, 0o6755)
    os.mknod(vault.root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(vault.root / "f00", "trusted.x", b"1")
    _, session = vault.back_up()
    os.chmod(tmp_path, 0o777)
    for above in tmp_path.parents:
        if not os.stat(above).st_mode & 0o001:  # pytest's own folders are private
            os.chmod(above, 0o755)

    def body() -> None:
        target = tmp_path / "restored"
        reader = MemoryReader(session)
        outcome = FileSink(os.fsencode(target)).restore(reader, progress=Silent())
        reasons = {problem.reason for problem in outcome.problems}
        assert len(outcome.problems) <= 4, outcome.problems
        assert any("owner" in reason and "more" in reason for reason in reasons), reasons
        assert any("trusted.x" in reason for reason in reasons), reasons
        assert any(p.path == b"null" and "not written" in p.reason for p in outcome.problems)
        assert sorted(os.listdir(target)) == [f"f{i:02}" for i in range(50)]
        for name in os.listdir(target):
            assert stat.S_IMODE(os.stat(target / name).st_mode) == 0o755  # not somebody's set-id
        quiet = FileSink(os.fsencode(tmp_path / "quiet"), owner=False)
        outcome = quiet.restore(reader, progress=Silent())
        assert not any("owner" in problem.reason for problem in outcome.problems)

    unprivileged(body)


def test_directories_without_rights_are_filled_first(vault: Vault, tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)
    for above in tmp_path.parents:
        if not os.stat(above).st_mode & 0o001:  # pytest's own folders are private
            os.chmod(above, 0o755)

    def body() -> None:
        mine = Vault(tmp_path / "mine", tmp_path / "cache2")
        (mine.root / "d" / "e").mkdir(parents=True)
        (mine.root / "d" / "e" / "f").write_bytes(b"x")
        os.chmod(mine.root / "d" / "e", 0o500)
        os.chmod(mine.root / "d", 0o500)
        _, session = mine.back_up()
        target = tmp_path / "restored"
        outcome = FileSink(os.fsencode(target)).restore(MemoryReader(session), progress=Silent())
        assert outcome.problems == ()
        assert compare_trees(os.fsencode(mine.root), os.fsencode(target)) == []
        for root in (mine.root, target):
            os.chmod(root / "d", 0o700)
            os.chmod(root / "d" / "e", 0o700)

    unprivileged(body)


def test_owner_false_leaves_owners_and_set_id_alone(vault: Vault, restore) -> None:
    (vault.root / "f").write_bytes(b"x")
    os.chown(vault.root / "f", 1, 1)
    os.chmod(vault.root / "f", 0o4755)
    _, session = vault.back_up()
    target, outcome = restore(MemoryReader(session), owner=False)
    facts = os.stat(target / "f")
    assert (facts.st_uid, stat.S_IMODE(facts.st_mode)) == (os.geteuid(), 0o755)
    assert outcome.problems == ()


def test_few_descriptors_are_enough(vault: Vault, tmp_path: Path) -> None:
    """2,000 directories of one file each, and large files, with 400 descriptors."""
    for i in range(40):
        (vault.root / f"large{i}").write_bytes(b"%d" % i * SMALL_FILE)
    for i in range(2000):
        (vault.root / f"d{i}").mkdir()
        (vault.root / f"d{i}" / "f").write_bytes(b"%d" % i)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(500, hard), hard))
    before = len(os.listdir("/proc/self/fd"))
    try:
        _, session = vault.back_up()
        target = tmp_path / "restored"
        outcome = FileSink(os.fsencode(target)).restore(MemoryReader(session), progress=Silent())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert outcome.problems == ()
    assert compare_trees(os.fsencode(vault.root), os.fsencode(target)) == []
    assert len(os.listdir("/proc/self/fd")) <= before


def test_something_that_appears_in_the_target_meanwhile_is_told(vault: Vault, tmp_path) -> None:
    (vault.root / "f").write_bytes(b"x")
    _, session = vault.back_up()
    target = tmp_path / "restored"

    class Meddled(MemoryReader):
        def scatter(self, ids, take):
            (target / "stranger").write_bytes(b"!")
            return super().scatter(ids, take)

    outcome = FileSink(os.fsencode(target)).restore(Meddled(session), progress=Silent())
    assert any("somebody else" in problem.reason for problem in outcome.problems)


def test_a_session_that_is_empty(tmp_path: Path) -> None:
    reader = MemoryReader(MemorySession())
    outcome = FileSink(os.fsencode(tmp_path / "t")).restore(reader, progress=Silent())
    assert (outcome.files, outcome.problems) == (0, ())
