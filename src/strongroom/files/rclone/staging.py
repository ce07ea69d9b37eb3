"""A private folder for what is on its way between a remote and the repository.

It holds plain content, so it is of mode 0700, on the disk of the caches, bounded by who fills it,
and removed at the end. One that a killed run left behind is removed by the next: whoever lives
holds a lock on its folder.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile

from strongroom.errors import ConfigError

_PREFIX = "strongroom-staging-"
_PLAIN = re.compile(r"[A-Za-z0-9/._ -]+")


class Staging:
    """The folder `path`; a context."""

    def __init__(self, folder: str | None) -> None:
        base = folder or tempfile.gettempdir()
        if not _PLAIN.fullmatch(base):
            base = tempfile.gettempdir()  # rclone would read more into such a path
        try:
            os.makedirs(base, mode=0o700, exist_ok=True)
            _sweep(base)
            self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=os.path.abspath(base))
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as fault:
            raise ConfigError(
                f"No staging folder can be made in {base}: {fault.strerror}.",
                do="Name a folder that can be written with --cache-dir or `cache_dir`.",
            ) from None
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._count = 0

    def batch(self) -> str:
        """A new empty folder in it."""
        self._count += 1
        path = os.path.join(self.path, str(self._count))
        os.mkdir(path, 0o700)
        return path

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _sweep(base: str) -> None:
    """Remove what runs that were killed have left."""
    for name in os.listdir(base):
        if not name.startswith(_PREFIX):
            continue
        path = os.path.join(base, name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass  # somebody is at work there
        finally:
            os.close(descriptor)
