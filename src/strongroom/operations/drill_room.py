"""The directory of one drill: everything that it makes is below it, and it is gone at the end.

Rule: gone even if the drill is killed. A process of its own waits for the drill to end, for whatever
reason, and deletes the directory then; if that one was killed too, the next drill does it. A living
drill is known by its lock, and by its process id with the time that process was started.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from strongroom.errors import Refused
from strongroom.postgres.embedded import GUARD
from strongroom.rules.sizes import show_size

PREFIX = "strongroom-drill-"
_OWNER = "owner"
_BEGINNING = 60.0  # seconds


def place_for(scratch: str | None) -> str:
    """Where drills make their directories: what was said, else $TMPDIR."""
    return os.path.abspath(scratch or tempfile.gettempdir())


@contextmanager
def drill_room(parent: str) -> Iterator[str]:
    """A new directory below `parent`; the service account may pass through it."""
    path = os.path.join(parent, PREFIX + secrets.token_hex(6))
    sweeper = subprocess.Popen(
        [sys.executable, "-I", "-S", GUARD, "sweep", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert sweeper.stdin is not None
    owner = -1
    try:
        try:
            os.mkdir(path, 0o711)
            owner = os.open(os.path.join(path, _OWNER), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as fault:
            raise Refused(
                f"A drill cannot make its directory in {parent}: {fault.strerror}.",
                do="Name another place with --scratch, or `scratch` of the source's drill.",
            ) from None
        with suppress(OSError):  # a file system without locks: the process id is looked at
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = {"pid": os.getpid(), "started": _started(os.getpid()), "boot": _boot()}
        os.write(owner, json.dumps(mine).encode())
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if owner >= 0:
            os.close(owner)
        with suppress(OSError):
            sweeper.stdin.close()
        sweeper.wait()


def sweep_left(parent: str) -> list[str]:
    """Delete what drills that were killed left below `parent`; return which directories."""
    swept = []
    with suppress(OSError):
        for name in sorted(os.listdir(parent)):
            path = os.path.join(parent, name)
            if name.startswith(PREFIX) and _is_left(path):
                shutil.rmtree(path, ignore_errors=True)
                if not os.path.lexists(path):
                    swept.append(path)
    return swept


def require_room(parent: str, size: int) -> int:
    """Free bytes below `parent`; Refused when `size` bytes have no room there."""
    try:
        free = shutil.disk_usage(parent).free
    except OSError as fault:
        raise Refused(
            f"A drill cannot be made in {parent}: {fault.strerror}.",
            do="Name another place with --scratch, or `scratch` of the source's drill.",
        ) from None
    if free < size:
        raise Refused(
            f"{parent} has {show_size(free)} free; the drill restores up to {show_size(size)}.",
            means="No drill was made; nothing was changed. It counts as a drill that did not happen.",
            do="Name a place with more room with --scratch, or `scratch` of the source's drill.",
        )
    return free


def _is_left(path: str) -> bool:
    """Whether this is a directory of ours whose drill lives no more."""
    try:
        facts = os.lstat(path)
        if facts.st_uid != os.geteuid() or not os.path.isdir(path) or os.path.islink(path):
            return False
        file = os.open(os.path.join(path, _OWNER), os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return _old(facts)
    except OSError:
        return False
    with contextlib.closing(os.fdopen(file, "rb")) as owner:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
        try:
            said = json.loads(owner.read(4096))
            alive = said["boot"] == _boot() and said["started"] == _started(int(said["pid"]))
        except (ValueError, KeyError, TypeError):
            return _old(facts)
    return not alive


def _old(facts: os.stat_result) -> bool:
    """Whether a drill that had not said who it is would have done so by now."""
    return time.time() - facts.st_mtime > _BEGINNING


def _started(pid: int) -> str:
    """When a process was started, in the kernel's ticks; "" when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return ""


def _boot() -> str:
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


__all__ = ["PREFIX", "drill_room", "place_for", "require_room", "sweep_left"]
