"""Parent of one embedded server: it lives as long as its own parent, and cleans up after both.

Run as a script, never imported: `python -I -S embedded_guard.py UID GID REMOVE ARGV…`. Standard
input is a pipe that only the owner holds: when it closes, for whatever reason, kill -9 included,
the server is stopped, and the directories in REMOVE (joined by ":") are deleted unless the owner
said "k" (keep) before.

Rule of this file: it knows no PostgreSQL beyond the meaning of three signals, and imports nothing
of the package, so that it starts in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
# Fast shutdown, immediate shutdown, and what the kernel does to those that answer neither.
_STEPS = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))


def _exec(uid: int, gid: int, argv: list[str]) -> None:
    """Become the server; never returns."""
    os.setsid()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # After setuid, which would clear it: the server must not outlive even a killed guard.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGQUIT), 0, 0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.umask(0o077)
    os.execv(argv[0], argv)  # noqa: S606


def _ended(pid: int, within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.01)
    return False


def _stop(pid: int) -> None:
    for number, patience in _STEPS:
        os.kill(pid, number)
        if _ended(pid, patience):
            return


def _watch(pid: int, wake: int) -> bool:
    """Return when the owner is gone or the server has ended: is everything to be deleted?"""
    said = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            if os.waitpid(pid, os.WNOHANG)[0]:
                return False
        if 0 in ready:
            data = os.read(0, 4096)
            said += data
            if not data:
                _stop(pid)
                return b"k" not in said


def main(argv: list[str]) -> int:
    """Start the server, wait for the end of either side, clean up."""
    uid, gid, remove, command = int(argv[0]), int(argv[1]), argv[2], argv[3:]
    # The owner's terminal must not stop the server: the owner decides, by closing the pipe.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pid = os.fork()
    if pid == 0:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        try:
            _exec(uid, gid, command)
        finally:
            os._exit(127)
    if _watch(pid, wake_read):
        for directory in filter(None, remove.split(":")):
            shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
