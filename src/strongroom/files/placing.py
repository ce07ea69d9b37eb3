"""Put one entry at its place in an open directory: new, or in the place of what is there.

What replaces something is made under a name of its own in the same directory and renamed, so
that no symlink is ever written through and no file stands half written under its name.
A fact that cannot be set is told and does not undo the entry.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat as modes
from collections.abc import Callable, Iterator

from strongroom.format.tree import Entry, Kind

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_SET_ID = 0o6000
_NODES = {
    Kind.FIFO: modes.S_IFIFO,
    Kind.SOCKET: modes.S_IFSOCK,
    Kind.CHARACTER: modes.S_IFCHR,
    Kind.BLOCK: modes.S_IFBLK,
}
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)

Told = Callable[[bytes, str], None]


def scratch_name() -> bytes:
    """A name that nothing else has."""
    return b".strongroom-" + secrets.token_hex(8).encode()


class Placing:
    """Places entries. `owner` asks for owners to be set; `replace` for what exists to give way.

    `told` hears of a fact that could not be set, as (path, reason). For any thread, if it is.
    """

    def __init__(self, *, owner: bool, replace: bool, told: Told) -> None:
        self.replaces = replace
        self._owner, self._told = owner, told
        self._mine = (os.geteuid(), os.getegid())

    def owner_of(self, entry: Entry) -> tuple[int, int]:
        """The (uid, gid) to set, or (-1, -1) where nothing needs to be or shall be."""
        if not self._owner or (not self.replaces and (entry.uid, entry.gid) == self._mine):
            return -1, -1
        return entry.uid, entry.gid

    def mode_of(self, entry: Entry) -> int:
        """The mode to set: set-id bits only where the owner is the one they were given by."""
        if self._owner or (entry.uid, entry.gid) == self._mine:
            return entry.mode
        return entry.mode & ~_SET_ID

    # -- kinds -----------------------------------------------------------------------------

    def other(self, parent: int, entry: Entry) -> None:
        """Make a symlink, FIFO, socket or device. OSError."""
        name = _name(entry)
        try:
            _make(parent, name, entry)
        except FileExistsError:
            if not self.replaces:
                raise
            scratch = scratch_name()
            _make(parent, scratch, entry)
            with _cleared(parent, scratch):
                self._set_named(parent, scratch, entry)
                self.settle(parent, scratch, name)
        else:
            self._set_named(parent, name, entry)

    def link(self, source: tuple[int, bytes], parent: int, name: bytes) -> bool:
        """Give the file `source` (directory, name) one more name; False where links are not had."""
        at, first = source
        if not modes.S_ISREG(os.stat(first, dir_fd=at, follow_symlinks=False).st_mode):
            raise OSError(errno.EINVAL, "its first name is no regular file")
        try:
            try:
                _link(at, first, parent, name)
            except FileExistsError:
                if not self.replaces:
                    raise
                scratch = scratch_name()
                _link(at, first, parent, scratch)
                with _cleared(parent, scratch):
                    self.settle(parent, scratch, name)
        except OSError as fault:
            if fault.errno in _NO_LINKS:
                return False
            raise
        return True

    def settle(self, parent: int, scratch: bytes, name: bytes) -> None:
        """Give a finished entry its name."""
        if not self.replaces:
            try:
                _link(parent, scratch, parent, name)
            except OSError as fault:
                if fault.errno not in _NO_LINKS:
                    raise
            else:
                os.unlink(scratch, dir_fd=parent)
                return
        os.rename(scratch, name, src_dir_fd=parent, dst_dir_fd=parent)
        with contextlib.suppress(FileNotFoundError):  # stays where both were the same file
            os.unlink(scratch, dir_fd=parent)

    # -- facts -----------------------------------------------------------------------------

    def set_open(self, fd: int, entry: Entry) -> None:
        """Set the facts of an open file or directory: owner, mode, attributes, then times."""
        mode = self.mode_of(entry)
        uid, gid = self.owner_of(entry)
        if uid >= 0 and not self._try(entry, "owner", lambda: os.fchown(fd, uid, gid)):
            mode &= ~_SET_ID
        self._try(entry, "mode", lambda: os.fchmod(fd, mode))
        for name, value in entry.xattrs:
            self._set_xattr(entry, fd, name, value)
        times = (entry.mtime_ns, entry.mtime_ns)
        self._try(entry, "time", lambda: os.utime(fd, ns=times))

    def _set_named(self, parent: int, name: bytes, entry: Entry) -> None:
        """Set the facts of what cannot be opened; its own descriptor stands for it."""
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            itself = b"/proc/self/fd/%d" % handle
            mode = self.mode_of(entry)
            uid, gid = self.owner_of(entry)
            if uid >= 0 and not self._try(
                entry,
                "owner",
                lambda: os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False),
            ):
                mode &= ~_SET_ID
            if entry.kind is not Kind.SYMLINK:
                self._try(entry, "mode", lambda: os.chmod(itself, mode))
            for key, value in entry.xattrs:
                path = b"/proc/self/fd/%d/%s" % (parent, name)
                self._set_xattr(entry, path, key, value)
            times = (entry.mtime_ns, entry.mtime_ns)
            self._try(
                entry,
                "time",
                lambda: os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False),
            )
        finally:
            os.close(handle)

    def _set_xattr(self, entry: Entry, what: int | bytes, name: bytes, value: bytes) -> None:
        follow = isinstance(what, int)
        label = "extended attribute " + name.decode("utf-8", "backslashreplace")
        self._try(entry, label, lambda: os.setxattr(what, name, value, follow_symlinks=follow))

    def _try(self, entry: Entry, fact: str, setting: Callable[[], None]) -> bool:
        try:
            setting()
        except (OSError, OverflowError) as fault:
            code = fault.strerror if isinstance(fault, OSError) else "out of range here"
            self._told(entry.path, f"its {fact} could not be set: {code}")
            return False
        return True


def _name(entry: Entry) -> bytes:
    return entry.path.rpartition(b"/")[2]


def _link(at: int, name: bytes, parent: int, new: bytes) -> None:
    os.link(name, new, src_dir_fd=at, dst_dir_fd=parent, follow_symlinks=False)


def _make(parent: int, name: bytes, entry: Entry) -> None:
    if entry.kind is Kind.SYMLINK:
        os.symlink(entry.target, name, dir_fd=parent)
    else:
        os.mknod(name, _NODES[entry.kind] | 0o600, entry.rdev, dir_fd=parent)


@contextlib.contextmanager
def _cleared(parent: int, scratch: bytes) -> Iterator[None]:
    """Remove what has only a scratch name, if it does not get its own."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch, dir_fd=parent)
        raise
