"""Parent of one embedded server: it lives as long as its own parent, and cleans up after both.

Run as a script, never imported: `python -I -S embedded_guard.py UID GID REMOVE MOUNT NET ARGV…`.
Standard input is a pipe that only the owner holds: when it closes, for whatever reason, kill -9
included, the server is stopped, and the directories in REMOVE (joined by ":") are deleted unless the
owner said "k" (keep) before; "q" stops the server as a crash would. With NET "apart" the server gets
a network of its own in which nobody is, where the kernel lets it.

Two more ways, for a drill: `… sweep DIRECTORY` deletes a directory once its owner is gone, and
`… command NET ARGV…` runs a command, and ends it and all that it started when it or its owner ends.

Rule of this file: it knows no PostgreSQL beyond the meaning of three signals, and imports nothing
of the package, so that it starts in milliseconds.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress

TYPE_CHECKING = False  # typing itself would cost the start its time
if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# Fast shutdown, immediate shutdown, and what the kernel does to those that answer neither.
_STEPS = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))


_NEWNS, _NEWUSER, _NEWNET = 0x20000, 0x10000000, 0x40000000
_NOSUID, _NODEV, _NOATIME, _BIND, _REC, _PRIVATE = 2, 4, 1024, 4096, 16384, 1 << 18
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_MOUNT_SETATTR, _AT_FDCWD, _RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
# Of the kernel's page cache for this mount: how much is read ahead, which share may wait to be written
# (1 % is what file systems in user space get: a server that writes much sleeps most of the time).
_TUNING = {"read_ahead_kb": b"1024"}


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def _mount(spec: str, uid: int, gid: int) -> None:
    """Give this process a file system of its own to serve from; the owner gets its device."""
    import socket  # noqa: PLC0415  not needed otherwise

    number, directory = spec.split(":", 1)
    with socket.socket(fileno=int(number)) as owner:
        try:
            device = _mounted(directory, uid, gid)
        except OSError as fault:
            owner.sendall(f"{fault.errno} {fault.filename}".encode())
            os._exit(126)
        socket.send_fds(owner, [b"0 "], [device])
        os.close(device)
    os.chdir(directory)


def _mounted(directory: str, uid: int, gid: int) -> int:
    libc, path = ctypes.CDLL(None, use_errno=True), directory + "/mount"

    def check(result: int, what: str) -> None:
        if result:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), what)

    def mount(source: str, target: str, kind: str, flags: int, words: str = "") -> None:
        arguments = (os.fsencode(word) for word in (source, target, kind))
        check(libc.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(words)), "mount")

    def read_only(target: str, attr: _MountAttr, flags: int) -> None:
        size = ctypes.c_size_t(ctypes.sizeof(attr))
        name = os.fsencode(target)
        libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, name, flags, ctypes.byref(attr), size)

    root = os.geteuid() == 0
    user, group = os.geteuid(), os.getegid()
    check(libc.unshare(_NEWNS if root else _NEWNS | _NEWUSER), "unshare")
    if not root:
        _map_myself(user, group)
    mount("none", "/", "", _REC | _PRIVATE)
    # From inside: the kernel wants device and mount to be of one user namespace.
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    # Descriptors: what is mounted over a place from here on may hide the way to them.
    kept = {"/dev/shm": "/dev/shm", directory: f"/proc/self/fd/{_descriptor(directory)}"}  # noqa: S108
    kept |= _private_places(directory, mount, root=root)
    kept = {each: source for each, source in kept.items() if os.path.isdir(each)}
    for each, source in kept.items():
        mount(source, each, "", _BIND)
    words = f"fd={device},rootmode=40000,user_id={uid},group_id={gid},default_permissions"
    words += ",allow_other" if root else ""
    mount("strongroom", path, "fuse.strongroom", _NOSUID | _NODEV | _NOATIME, words)
    _tune(path)
    read_only("/", _MountAttr(set=_READ_ONLY), _RECURSIVE)  # from Linux 5.12 on
    for each in (*kept, path):
        read_only(each, _MountAttr(clear=_READ_ONLY), 0)
    return device


def _map_myself(user: int, group: int) -> None:
    """In a new user namespace, be who we were."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _apart() -> bool:
    """Leave the network, where that may be done; sockets of files are reached as before."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_NEWNET if user == 0 else _NEWNET | _NEWUSER):
        return False
    if user:
        _map_myself(user, group)
    return True


def _raise_loopback() -> None:
    """In a network of one's own, let a command reach what it starts itself."""
    import fcntl  # noqa: PLC0415  not needed otherwise
    import socket  # noqa: PLC0415
    import struct  # noqa: PLC0415

    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_:
        fcntl.ioctl(any_, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


def _descriptor(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _private_places(directory: str, mount: Callable[..., None], *, root: bool) -> dict[str, str]:
    """Where the log makes tablespaces, and what the server gets there instead of the machine's.

    A place that is not there is made on top of the machine's directories, in memory, for the server
    alone.
    """
    folder, found = directory + "/places", {}
    for number in range(len(os.listdir(folder)) // 2 if os.path.isdir(folder) else 0):
        with open(f"{folder}/{number}.at", "rb") as file:
            location = os.fsdecode(file.read())
        found[location] = f"/proc/self/fd/{_descriptor(f'{folder}/{number}')}"
    for number, location in enumerate(found):
        above = location
        while not os.path.lexists(above):
            above = os.path.dirname(above)
        if above == location:
            continue
        if (
            above == "/"
        ):  # what is mounted there is not below our root: the machine's would be written
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), f"a private {location}")
        over = f"{folder}/{number}.over"
        os.mkdir(over)
        mount("tmpfs", over, "tmpfs", _NOSUID | _NODEV, "mode=755")
        for name in ("upper", "work"):
            os.mkdir(f"{over}/{name}")
        words = f"lowerdir={_word(above)},upperdir={_word(over)}/upper,workdir={_word(over)}/work"
        mount("overlay", above, "overlay", 0, words + ("" if root else ",userxattr"))
        os.makedirs(location)
    return found


def _word(path: str) -> str:
    """A path as a mount option can hold it."""
    return "".join("\\" + char if char in "\\,:" else char for char in path)


def _tune(path: str) -> None:
    """Let the kernel keep more; where that is not ours to set, it does with less."""
    with suppress(OSError), open("/proc/self/mountinfo") as lines:
        devices = [words[2] for words in map(str.split, lines) if words[4] == path]
        for name, value in _TUNING.items():
            with suppress(OSError), open(f"/sys/class/bdi/{devices[-1]}/{name}", "wb") as file:
                file.write(value)


def _exec(uid: int, gid: int, mount: str, net: str, argv: list[str]) -> None:
    """Become the server; never returns."""
    os.setsid()
    if net:
        _apart()
    if mount:
        _mount(mount, uid, gid)
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
            if b"q" in data:
                os.kill(pid, signal.SIGQUIT)
            if not data:
                _stop(pid)
                return b"k" not in said


def _children() -> list[int]:
    """Everything below this process that has not been waited for."""
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        pid = waiting.pop()
        with suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
            below = [int(word) for word in file.read().split()]
            found += below
            waiting += below
    return found


def _end_all() -> None:
    """End what is below this process, and what comes to be below it by that."""
    for _ in range(500):
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        left = _children()
        if not left:
            return
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _command(net: str, argv: list[str]) -> int:
    """Run a command as long as its owner lives; its exit status, as a shell tells it."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake = _waking()
    pid = os.fork()
    if pid == 0:
        try:
            _reset()
            if net and _apart():
                _raise_loopback()
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.execvp(argv[0], argv)  # noqa: S606
        except OSError as fault:
            os.write(2, f"{argv[0]}: {fault.strerror}\n".encode())
        finally:
            os._exit(127)
    status: int | None = None
    while status is None:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            with suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    if ended[0] == pid:
                        status = os.waitstatus_to_exitcode(ended[1])
        if 0 in ready and status is None and not os.read(0, 4096):
            status = -int(signal.SIGKILL)
    _end_all()
    return status if status >= 0 else 128 - status


def _sweep(directory: str) -> int:
    """Wait until the owner is gone, and delete what it left; a server there may still be ending."""
    while data := os.read(0, 4096):
        if b"k" in data:
            return 0
    for _ in range(300):
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.lexists(directory):
            break
        time.sleep(0.1)
    return 0


def _waking() -> int:
    """A descriptor that can be read when a child has ended. The owner's terminal stops nothing here:
    the owner decides, by closing the pipe."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return wake_read


def _reset() -> None:
    """In a child: signals as they are for everybody."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def main(argv: list[str]) -> int:
    """Start the server, wait for the end of either side, clean up."""
    if argv[0] == "command":
        return _command(argv[1], argv[2:])
    wake_read = _waking()
    if argv[0] == "sweep":
        return _sweep(argv[1])
    uid, gid, remove, mount, net, command = int(argv[0]), int(argv[1]), *argv[2:5], argv[5:]
    pid = os.fork()
    if pid == 0:
        _reset()
        try:
            _exec(uid, gid, mount, net, command)
        finally:
            os._exit(127)
    if mount:
        os.close(int(mount.partition(":")[0]))
    if _watch(pid, wake_read):
        for directory in filter(None, remove.split(":")):
            shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
