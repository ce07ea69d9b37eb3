"""A file of this program's own, written beside the one that it will replace.

One process at a time writes it. What never takes the place of the old one leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref


class Beside:
    """The new file, open at `fd` for reading and writing, empty and 0600; OSError where it cannot be.

    BlockingIOError while another process writes it.
    """

    def __init__(self, path: bytes) -> None:
        self._path, self._new = path, path + b".new"
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self.fd = os.open(self._new, flags, 0o600)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held the lock may have renamed the file meanwhile: what is open is the old one now.
            if not os.path.samestat(os.fstat(self.fd), os.stat(self._new, follow_symlinks=False)):
                raise BlockingIOError(errno.EAGAIN, "another run has just ended")
            os.fchmod(self.fd, 0o600)
            os.ftruncate(self.fd, 0)
        except OSError:
            os.close(self.fd)
            raise
        # One that is never settled is let go of like any object, and leaves nothing behind.
        self._end = weakref.finalize(self, _throw_away, self.fd, self._new)

    def write(self, data: bytes) -> None:
        """Write all of `data` at the file's position."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.fd, rest) :]

    def replace(self) -> None:
        """Take the place of the old one, and close it."""
        os.rename(self._new, self._path)
        self._end.detach()
        os.close(self.fd)

    def discard(self) -> None:
        """Remove it, if it has not replaced the old one."""
        self._end()


def _throw_away(fd: int, path: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.close(fd)


__all__ = ["Beside"]
