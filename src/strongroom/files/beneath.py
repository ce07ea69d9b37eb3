"""Open directories beneath a target, through no symlink and no `..`, whoever else is at work there.

Where the kernel has openat2 it holds that promise itself (RESOLVE_BENEATH and
RESOLVE_NO_SYMLINKS); elsewhere every component is opened by its own call with O_NOFOLLOW.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import OrderedDict
from collections.abc import Callable

from strongroom.files.walk import open_below

KEPT_OPEN = 192
STRIDE = 64
_LONGEST = 3500  # well below PATH_MAX, which one call does not pass
_SYS_OPENAT2 = 437  # the same number on every architecture
_BENEATH, _NO_SYMLINKS, _NO_MAGICLINKS = 0x08, 0x04, 0x02
_WRITE_BACK = 2  # SYNC_FILE_RANGE_WRITE
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

OpenBelow = Callable[[int, bytes], int]


class _How(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _openat2() -> OpenBelow:
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.argtypes = [
        ctypes.c_long,
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.POINTER(_How),
        ctypes.c_size_t,
    ]
    syscall.restype = ctypes.c_long
    how = _How(_FLAGS, 0, _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS)

    def open_beneath(root: int, path: bytes) -> int:
        while True:
            fd = syscall(_SYS_OPENAT2, root, path, ctypes.byref(how), ctypes.sizeof(how))
            if fd >= 0:
                return int(fd)
            code = ctypes.get_errno()
            if code not in (errno.EAGAIN, errno.EINTR):
                raise OSError(code, os.strerror(code))

    return open_beneath


def open_beneath(root: int) -> OpenBelow:
    """Return the strictest way of opening directories that works here, tried on `root`."""
    try:
        strict = _openat2()
        os.close(strict(root, b"."))
    except (OSError, AttributeError):  # an older kernel, or a filter that does not know the call
        return open_below
    return strict


class Beneath:
    """Directories below an open directory; keeps the ones used last open. For one thread."""

    def __init__(
        self, root: int, opening: OpenBelow | None = None, *, kept: int = KEPT_OPEN
    ) -> None:
        self.root = root
        self._most = kept
        self._open = opening or open_beneath(root)
        self._kept: OrderedDict[bytes, int] = OrderedDict()

    def directory(self, path: bytes) -> int:
        """Return a descriptor of `path`, valid until the next call. OSError (ELOOP, ENOTDIR …)."""
        if not path:
            return self.root
        fd = self._kept.get(path)
        if fd is not None:
            self._kept.move_to_end(path)
            return fd
        above, fd = self._above(path)
        fd = self._steps(fd, path[len(above) + 1 :] if above else path)
        self._kept[path] = fd
        if len(self._kept) > self._most:
            _, oldest = self._kept.popitem(last=False)
            os.close(oldest)
        return fd

    def close(self) -> None:
        """Close what is kept open; the root belongs to the caller."""
        while self._kept:
            os.close(self._kept.popitem()[1])

    def _above(self, path: bytes) -> tuple[bytes, int]:
        """The nearest directory above that is open, or one STRIDE above, opened for the purpose.

        Whoever comes up from the depth finds such a one again, and never begins at the root.
        """
        for _ in range(STRIDE):
            path = path.rpartition(b"/")[0]
            if not path:
                return b"", self.root
            fd = self._kept.get(path)
            if fd is not None:
                return path, fd
        return path, self.directory(path)

    def _steps(self, fd: int, rest: bytes) -> int:
        """Open a relative path of any length in steps that one call takes."""
        begun = fd
        while True:
            cut = len(rest) if len(rest) <= _LONGEST else rest.rindex(b"/", 0, _LONGEST)
            try:
                deeper = self._open(fd, rest[:cut])
            finally:
                if fd != begun:
                    os.close(fd)
            fd, rest = deeper, rest[cut + 1 :]
            if not rest:
                return fd


def start_writing_back(fd: int) -> None:
    """Let the disk begin with what was written, so that less is left when all is made durable."""
    try:
        start = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):  # a C library without it
        return
    start.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    start(fd, 0, 0, _WRITE_BACK)  # promises nothing, so that nothing is made of its failure
