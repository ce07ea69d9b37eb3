"""What the local directory promises beyond the contract: durability, rights, links, leftovers.

Rule: real files, real kills, real full disks. Where the machine does not allow one, the test is
skipped with the reason.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from strongroom.errors import (
    AlreadyExists,
    ObjectMissing,
    StorageDenied,
    StorageFull,
    StorageUnreachable,
)
from strongroom.storage import local
from strongroom.storage.local import TEMPORARIES, LocalStorage

MIB = 1 << 20


def temporaries(root: Path) -> list[str]:
    return sorted(os.listdir(root / TEMPORARIES))


# -- durable when `put` returns --------------------------------------------------


class Syscalls:
    """The order of what reached the kernel, seen by wrapping `os` for one test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, str]] = []
        for verb in ("fsync", "write", "link", "rename", "mkdir", "unlink"):
            monkeypatch.setattr(local.os, verb, self._watched(verb, getattr(os, verb)))

    def _watched(self, verb: str, real: Callable[..., object]) -> Callable[..., object]:
        def watched(*args: object, **named: object) -> object:
            of = args[0]
            path = os.readlink(f"/proc/self/fd/{of}") if isinstance(of, int) else str(of)
            self.seen.append((verb, path))
            return real(*args, **named)

        return watched


@pytest.mark.parametrize(("if_absent", "naming"), [(True, "link"), (False, "rename")])
def test_file_then_name_then_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, if_absent: bool, naming: str
) -> None:
    """The name appears only after the bytes are on disk, and the put returns only after the
    name is; every new directory is on disk in its parent before anything is named in it."""
    storage = LocalStorage(tmp_path / "deep" / "repository")
    calls = Syscalls(monkeypatch)
    storage.put("packs/ab/object", b"x" * 100, if_absent=if_absent)
    seen, root = calls.seen, str(tmp_path / "deep" / "repository")
    order = [
        ("fsync", str(tmp_path)),  # deep exists
        ("fsync", str(tmp_path / "deep")),  # repository exists
        ("fsync", root),  # packs exists
        ("fsync", f"{root}/packs"),  # ab exists
        ("fsync", f"{root}/{TEMPORARIES}/{os.getpid()}.0"),
        (naming, f"{os.getpid()}.0"),
        ("fsync", f"{root}/packs/ab"),
    ]
    places = [seen.index(call) for call in order]
    assert places == sorted(places), seen
    written = seen.index(("write", order[4][1]))
    assert written < places[4]


def test_directories_are_settled_once_per_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second put into a directory costs two fsyncs; another process settles it for itself."""
    LocalStorage(tmp_path).put("packs/ab/first", b"x")
    storage = LocalStorage(tmp_path)
    calls = Syscalls(monkeypatch)
    storage.put("packs/ab/second", b"x")
    assert Counter(verb for verb, _ in calls.seen)["fsync"] == 4
    calls.seen.clear()
    storage.put("packs/ab/third", b"x")
    assert Counter(verb for verb, _ in calls.seen)["fsync"] == 2


def test_delete_is_made_durable_once_per_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    for name in ("a/1", "a/2", "b/1"):
        storage.put(name, b"x")
    calls = Syscalls(monkeypatch)
    storage.delete(["a/1", "b/1", "a/2"])
    assert sorted(path for verb, path in calls.seen if verb == "fsync") == [
        str(tmp_path / "a"),
        str(tmp_path / "b"),
    ]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EIO, StorageUnreachable),
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.ESTALE, StorageUnreachable),
    ],
)
def test_failed_fsync_of_the_file_is_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    """fsync is called once; then the object is absent and nothing is left behind."""
    storage = LocalStorage(tmp_path)
    storage.put("a", b"old")
    tried: list[int] = []

    def failing(file: int) -> None:
        tried.append(file)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(local.os, "fsync", failing)
        for name in ("a", "b"):
            with pytest.raises(expected):
                storage.put(name, b"new", if_absent=name == "b")
    assert len(tried) == 2
    assert storage.get("a") == b"old"
    assert [entry.name for entry in storage.list("")] == ["a"]
    assert temporaries(tmp_path) == []


def test_failed_fsync_of_the_directory_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("dir/a", b"x")
    real = os.fsync

    def failing(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(file)

    monkeypatch.setattr(local.os, "fsync", failing)
    with pytest.raises(StorageUnreachable, match="Input/output error"):
        storage.put("dir/b", b"x", if_absent=True)


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take any part of a write; 0 < part."""
    real = os.write
    monkeypatch.setattr(local.os, "write", lambda file, data: real(file, data[:1013]))
    storage = LocalStorage(tmp_path)
    data = random.Random(1).randbytes(20_000)
    storage.put("a", data, if_absent=True)
    assert storage.get("a") == data


def shapes(data: bytes) -> dict[str, bytes | memoryview]:
    """The same bytes where they can be written from as they are, and where they can not."""
    whole, shifted = mmap.mmap(-1, len(data)), mmap.mmap(-1, len(data) + 7)
    whole[:], shifted[7:] = data, data
    return {"bytes": data, "aligned": memoryview(whole), "odd": memoryview(shifted)[7:]}


@pytest.mark.parametrize("shape", ["bytes", "aligned", "odd"])
@pytest.mark.parametrize("more", [0, 1, 4095, 4096, 5 * 1024 * 1024 + 13])
def test_large_objects_past_the_page_cache(tmp_path: Path, shape: str, more: int) -> None:
    storage = LocalStorage(tmp_path)
    data = random.Random(more).randbytes(local.DIRECT_FROM + more)
    storage.put("a", shapes(data)[shape])
    assert storage.get("a") == data


@pytest.mark.parametrize("refused", ["flag", "every write", "short", "short by an odd length"])
def test_a_file_system_that_wants_no_direct_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """Nothing is written twice or left out, whatever becomes of the direct part."""
    control, write = fcntl.fcntl, os.write

    def fcntl_(file: int, command: int, argument: int = 0) -> int:
        if refused == "flag" and command == fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct writes")
        return control(file, command, argument)

    def write_(file: int, data: memoryview) -> int:
        if control(file, fcntl.F_GETFL) & os.O_DIRECT:
            if refused == "every write":
                raise OSError(errno.EINVAL, "blocks of 64 KiB")
            data = data[: 8192 if refused == "short" else len(data)]
            if refused == "short by an odd length":
                control(file, fcntl.F_SETFL, control(file, fcntl.F_GETFL) & ~os.O_DIRECT)
                return write(file, data[:5000])
        return write(file, data)

    monkeypatch.setattr(local.fcntl, "fcntl", fcntl_)
    monkeypatch.setattr(local.os, "write", write_)
    storage = LocalStorage(tmp_path)
    data = random.Random(3).randbytes(local.DIRECT_FROM + 10_000)
    for name, shape in shapes(data).items():
        storage.put(name, shape)
        assert storage.get(name) == data


def test_a_full_disk_met_by_a_direct_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "full")

    storage = LocalStorage(tmp_path)
    storage.put("there", b"is a repository")
    monkeypatch.setattr(local.os, "write", full)
    with pytest.raises(StorageFull):
        storage.put("a", bytes(local.DIRECT_FROM))
    assert [entry.name for entry in storage.list("")] == ["there"]
    assert list((tmp_path / TEMPORARIES).iterdir()) == []


def test_short_reads_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    data = random.Random(2).randbytes(20_000)
    storage.put("a", data)
    real = os.pread
    monkeypatch.setattr(local.os, "pread", lambda f, n, at: real(f, min(n, 1013), at))
    assert storage.get("a") == data
    assert storage.get("a", offset=7, length=15_000) == data[7:15_007]
    assert storage.get("a", offset=19_000, length=15_000) == data[19_000:]


# -- rights, links, foreign things ------------------------------------------------


def test_files_and_directories_are_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        LocalStorage(tmp_path / "repository").put("packs/ab/object", b"x", if_absent=True)
    finally:
        os.umask(old)
    for folder, _, files in os.walk(tmp_path / "repository"):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        for file in files:
            assert stat.S_IMODE(os.stat(os.path.join(folder, file)).st_mode) == 0o600


def test_reading_never_creates_anything(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "absent")
    assert list(storage.list("")) == []
    with pytest.raises(ObjectMissing):
        storage.get("strongroom.json")
    storage.delete(["a/b"])
    assert storage.free_space()
    storage.close()
    assert os.listdir(tmp_path) == []


def test_repository_may_be_reached_through_a_link(tmp_path: Path) -> None:
    """Where the repository lies is the administrator's choice; what lies in it is not."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "repository").symlink_to(tmp_path / "disk")
    LocalStorage(tmp_path / "repository").put("a", b"x")
    assert (tmp_path / "disk" / "a").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["packs/object", "packs/ab/object", "link"])
def test_links_inside_are_refused(tmp_path: Path, name: str) -> None:
    """Whoever can write into the repository must not make us write, read or delete elsewhere."""
    outside = tmp_path / "outside"
    (outside / "ab").mkdir(parents=True)
    for place in ("object", "ab/object"):
        (outside / place).write_bytes(b"precious")
    root = tmp_path / "repository"
    root.mkdir()
    (root / "packs").symlink_to(outside)
    (root / "link").symlink_to(outside / "object")
    storage = LocalStorage(root)
    with pytest.raises(StorageDenied) as denied:
        storage.get(name)
    assert "symbolic link" in denied.value.do
    if name != "link":
        for call in (
            lambda: storage.put(name, b"evil"),
            lambda: storage.put(name, b"evil", if_absent=True),
            lambda: storage.delete([name]),
            lambda: list(storage.list("packs/")),
        ):
            with pytest.raises(StorageDenied):
                call()
    with pytest.raises(StorageDenied):
        list(storage.list(""))
    assert (outside / "object").read_bytes() == b"precious"
    assert (outside / "ab" / "object").read_bytes() == b"precious"


def test_put_over_a_link_replaces_the_link(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"precious")
    root = tmp_path / "repository"
    root.mkdir()
    (root / "a").symlink_to(tmp_path / "outside")
    storage = LocalStorage(root)
    with pytest.raises(AlreadyExists):
        storage.put("a", b"evil", if_absent=True)
    storage.put("a", b"new")
    assert (tmp_path / "outside").read_bytes() == b"precious"
    assert storage.get("a") == b"new"


def test_foreign_things_are_not_objects(tmp_path: Path) -> None:
    """lost+found, temporaries and names that no object can have stay out of listings; a fifo
    under an object's name does not hang anybody."""
    storage = LocalStorage(tmp_path)
    storage.put("a/b", b"x")
    (tmp_path / "lost+found").mkdir(mode=0)
    (tmp_path / "a" / "b~").write_bytes(b"")
    (tmp_path / "a" / "with space").write_bytes(b"")
    (tmp_path / TEMPORARIES / "123.4").write_bytes(b"half")
    with open(os.path.join(os.fsencode(tmp_path), b"a", b"\xff\xfe"), "wb"):
        pass
    assert [entry.name for entry in storage.list("")] == ["a/b"]
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ObjectMissing):
        storage.get("fifo")
    with pytest.raises(StorageDenied):
        list(storage.list(""))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes things for others")
def test_what_root_makes_belongs_to_whom_the_repository_belongs_to(tmp_path: Path) -> None:
    root = tmp_path / "store"
    root.mkdir()
    os.chown(root, 1234, 4321)
    storage = LocalStorage(root)
    storage.put("a/b/small", b"x", if_absent=True)
    storage.put("a/large", bytes(3 << 20))
    made = [root / "a", root / "a/b", root / "a/b/small", root / "a/large", root / TEMPORARIES]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(1234, 4321)}
    own = LocalStorage(tmp_path / "own")
    own.put("a", b"x")
    assert (tmp_path / "own" / "a").stat().st_uid == 0


def test_denied_by_the_file_system(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        root = tmp_path
        root.chmod(0o500)
        with pytest.raises(StorageDenied):
            LocalStorage(root / "new").put("a", b"x")
        root.chmod(0o700)
        return
    script = (
        "import os, sys\n"
        "from strongroom.storage.local import LocalStorage\n"
        "from strongroom.errors import StorageDenied\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "storage, denied = LocalStorage(sys.argv[1]), 0\n"
        "for call in (lambda: storage.put('a', b'x'), lambda: storage.get('a'),\n"
        "             lambda: list(storage.list('')), lambda: storage.delete(['a'])):\n"
        "    try: call()\n"
        "    except StorageDenied as error: denied += 'Permission denied' in error.what\n"
        "sys.exit(0 if denied == 4 else 1)\n"
    )
    LocalStorage(tmp_path / "private").put("a", b"x")
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "private")], check=True)


# -- leftovers --------------------------------------------------------------------


def test_stale_temporaries_go_and_fresh_ones_stay(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a", b"x")
    for name, age in (("1.0", 90_000), ("2.0", 80_000), ("lock", 90_000)):
        path = tmp_path / TEMPORARIES / name
        path.write_bytes(b"half")
        then = time.time() - age
        os.utime(path, (then, then))
    LocalStorage(tmp_path).get("a")
    assert temporaries(tmp_path) == ["1.0", "2.0", "lock"]  # a reader changes nothing
    LocalStorage(tmp_path).put("b", b"x")
    assert temporaries(tmp_path) == ["2.0", "lock"]
    LocalStorage(tmp_path, now=lambda: time.time() + 90_000).put("c", b"x")
    assert temporaries(tmp_path) == ["lock"]


def test_temporary_of_another_host_with_our_number_is_respected(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a", b"x")
    foreign = tmp_path / TEMPORARIES / f"{os.getpid()}.1"
    foreign.write_bytes(b"somebody's half")
    storage.put("b", b"y", if_absent=True)
    assert storage.get("b") == b"y"
    assert foreign.read_bytes() == b"somebody's half"


def test_answer_to_a_link_that_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS may carry out a link, lose the answer, repeat it and then say that the name exists."""
    real = os.link

    def repeated(*args: object, **named: object) -> None:
        real(*args, **named)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(local.os, "link", repeated)
    storage = LocalStorage(tmp_path)
    storage.put("a", b"ours", if_absent=True)
    with pytest.raises(AlreadyExists):
        storage.put("a", b"theirs", if_absent=True)
    assert storage.get("a") == b"ours"
    assert temporaries(tmp_path) == []


def test_no_descriptors_leak(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a/b", b"x")

    def everything() -> None:
        storage.put("c/d", b"x")
        with pytest.raises(AlreadyExists):
            storage.put("a/b", b"x", if_absent=True)
        with pytest.raises(ObjectMissing):
            storage.get("a/b/c")
        storage.get("a/b")
        next(storage.list(""))
        storage.delete(["c/d", "x/y"])

    everything()
    gc.collect()  # what other tests left open may be closed at any moment
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        everything()
    assert len(os.listdir("/proc/self/fd")) <= before
    storage.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2


# -- kill -9 in the middle of a put --------------------------------------------------

_WRITER = """
import sys
from strongroom.storage.local import LocalStorage
storage, number = LocalStorage(sys.argv[1]), int(sys.argv[2])
while True:
    number += 1
    size = (number * 2654435761) % 3_000_000
    storage.put(f"packs/{number % 3:02x}/{number:06d}", number.to_bytes(4, "big") * (size // 4),
                if_absent=number % 2 == 0)
    storage.put("same", number.to_bytes(4, "big") * (size // 4))
    print(number, flush=True)
"""


def test_killed_in_the_middle_of_puts(tmp_path: Path) -> None:
    """After each SIGKILL: what was acknowledged is there, everything that is there is whole, and
    a name that is overwritten again and again holds one whole version."""
    root, acknowledged, dice = tmp_path / "repository", 0, random.Random(3)
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(root), str(acknowledged)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        said = [child.stdout.readline()]
        time.sleep(dice.random() * 0.25)
        child.send_signal(signal.SIGKILL)
        said += child.stdout.read().split("\n")
        child.wait()
        child.stdout.close()
        acknowledged = max(int(line) for line in said if line.strip())
        _assert_everything_is_whole(LocalStorage(root), acknowledged)
        for name in [
            f"packs/{n % 3:02x}/{n:06d}" for n in range(acknowledged + 1, acknowledged + 3)
        ]:
            LocalStorage(root).delete(
                [name]
            )  # in flight when killed: whole or absent, may be either
    assert acknowledged >= 12
    later = LocalStorage(root, now=lambda: time.time() + 100_000)
    later.put("next", b"")
    assert temporaries(root) == []


def _assert_everything_is_whole(storage: LocalStorage, acknowledged: int) -> None:
    names = [entry.name for entry in storage.list("packs/")]
    numbers = sorted(int(name[-6:]) for name in names)
    assert numbers[:acknowledged] == list(range(1, acknowledged + 1))
    assert len(numbers) <= acknowledged + 1
    for name in names:
        _assert_whole(storage.get(name), int(name[-6:]))
    same = storage.get("same")
    _assert_whole(same, int.from_bytes(same[:4], "big")) if same else None


def _assert_whole(data: bytes, number: int) -> None:
    size = (number * 2654435761) % 3_000_000
    assert data == number.to_bytes(4, "big") * (size // 4)


def test_racing_processes(tmp_path: Path) -> None:
    """Of several processes that create the same names, each name has one winner, who knows it."""
    script = (
        "import sys\n"
        "from strongroom.storage.local import LocalStorage\n"
        "from strongroom.errors import AlreadyExists\n"
        "storage = LocalStorage(sys.argv[1]); sys.stdin.readline()\n"
        "for n in range(60):\n"
        "    try: storage.put(f'a/{n}', sys.argv[2].encode() * 1000, if_absent=True); print(n)\n"
        "    except AlreadyExists: pass\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "r"), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    outputs: dict[int, str] = {}

    def talk(number: int) -> None:
        outputs[number] = children[number].communicate("go\n", timeout=60)[0]

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [child.returncode for child in children] == [0, 0, 0]
    storage = LocalStorage(tmp_path / "r")
    won = {number: {int(line) for line in outputs[number].split()} for number in range(3)}
    assert sorted(name for names in won.values() for name in names) == list(range(60))
    for number, names in won.items():
        assert all(storage.get(f"a/{n}") == str(number).encode() * 1000 for n in names)


# -- full and read-only disks --------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 4 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=64", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"this machine allows no mount: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk(small_disk: Path) -> None:
    """A put that does not fit leaves nothing, and what fits afterwards is stored."""
    storage = LocalStorage(small_disk / "repository")
    storage.put("first", b"1" * MIB)
    for if_absent in (True, False):
        with pytest.raises(StorageFull, match="No space left") as full:
            storage.put("big", b"2" * (5 * MIB), if_absent=if_absent)
        assert full.value.exit_status == 7
        assert "Free space" in full.value.do
    with pytest.raises(StorageFull):
        storage.put("first", b"3" * (5 * MIB))
    assert storage.get("first") == b"1" * MIB
    assert [entry.name for entry in storage.list("")] == ["first"]
    assert temporaries(small_disk / "repository") == []
    free = storage.free_space()
    assert free is not None
    assert 2 * MIB < free <= 3 * MIB
    storage.put("second", b"4" * (2 * MIB), if_absent=True)


def test_no_inodes_left(small_disk: Path) -> None:
    storage = LocalStorage(small_disk)
    with pytest.raises(StorageFull):
        for number in range(100):
            storage.put(f"a/{number}", b"")
    whole = list(storage.list(""))
    assert 40 < len(whole) < 64
    storage.delete([whole[0].name])
    storage.put("a/again", b"")


def test_read_only_disk(small_disk: Path) -> None:
    LocalStorage(small_disk).put("a", b"x")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    storage = LocalStorage(small_disk)
    for call in (lambda: storage.put("b", b"x"), lambda: storage.delete(["a"])):
        with pytest.raises(StorageDenied) as denied:
            call()
        assert "read-only" in denied.value.do
    assert storage.get("a") == b"x"


def test_mount_inside_the_repository(small_disk: Path, tmp_path: Path) -> None:
    """A directory on another file system cannot take an atomic rename; that is said clearly."""
    root = tmp_path / "repository"
    (root / "packs").mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(small_disk), str(root / "packs")], check=True)
    try:
        storage = LocalStorage(root)
        for if_absent in (True, False):
            with pytest.raises(StorageUnreachable) as refused:
                storage.put("packs/a", b"x", if_absent=if_absent)
            assert "one file system" in refused.value.do
        assert temporaries(root) == []
    finally:
        subprocess.run(["umount", "-l", str(root / "packs")], check=True)


def test_listing_is_fast_and_reads_only_what_it_must(tmp_path: Path) -> None:
    """2,000 objects in 20 directories: the one directory asked for costs one scan."""
    storage = LocalStorage(tmp_path)
    storage.put("packs/00/0", b"")
    for folder in range(20):
        (tmp_path / "packs" / f"{folder:02x}").mkdir(exist_ok=True)
        for number in range(100):
            (tmp_path / "packs" / f"{folder:02x}" / f"{number}").touch()
    scanned: list[str] = []
    real = storage._scan

    def watched(folder: str, start: str) -> object:
        scanned.append(folder)
        return real(folder, start)

    storage._scan = watched  # type: ignore[method-assign,assignment]
    assert len(list(storage.list("packs/03/"))) == 100
    assert scanned == ["packs/03"]
    scanned.clear()
    assert len(list(storage.list("packs/0"))) == 1600
    assert len(scanned) == 17
