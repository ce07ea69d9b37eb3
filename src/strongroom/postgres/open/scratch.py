"""Written bytes on a local disk: a sparse file for each node, without a name.

A file has no name from the moment it is made, so that whatever kills this process, nothing is left.
"""

from __future__ import annotations

import os
import resource

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class ScratchFiles:
    """See `overlay.Scratch`; `folder` must be there."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._files: dict[int, int] = {}
        _raise_limit()

    def read(self, node: int, offset: int, size: int) -> bytes:
        """Bytes; shorter at the end."""
        fd = self._files.get(node)
        return b"" if fd is None else os.pread(fd, size, offset)

    def write(self, node: int, offset: int, data: bytes | memoryview) -> None:
        """Keep bytes."""
        fd = self._files.get(node)
        if fd is None:
            fd = self._make(node)
        view = memoryview(data)
        while view:
            done = os.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done

    def truncate(self, node: int, size: int) -> None:
        """What is behind is zeros from now on."""
        fd = self._files.get(node)
        if fd is not None and os.fstat(fd).st_size > size:
            os.ftruncate(fd, size)

    def drop(self, node: int) -> None:
        """Give its room back."""
        fd = self._files.pop(node, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Drop everything."""
        for node in list(self._files):
            self.drop(node)

    def used(self) -> int:
        """Bytes on the disk."""
        return sum(os.fstat(fd).st_blocks * 512 for fd in list(self._files.values()))

    def _make(self, node: int) -> int:
        path = os.path.join(self.folder, str(node))
        fd = os.open(path, _NEW, 0o600)
        os.unlink(path)
        return self._files.setdefault(node, fd)


def _raise_limit() -> None:
    """A descriptor for every file that is written to: as many as this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


__all__ = ["ScratchFiles"]
