"""A data directory as `archive_command` and `restore_command` see it: held open, names relative to it.

The server's working directory is its data directory. It is held by a descriptor, so that a daemon
works in the directory that its client was started in, whatever name leads to it by now.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from strongroom.errors import NotFound, Refused, StrongroomError
from strongroom.postgres.physical.control import FILE_SIZE, ControlFile

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_TRIES, _PAUSE = 20, 0.05

Stamp = tuple[int, int, int, int, int]
"""What tells one content of a file from another: device, inode, size, mtime, ctime."""


class DataDirectory:
    """A data directory; `descriptor` is ours from here on."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        status = os.fstat(descriptor)
        self.identity = status.st_dev, status.st_ino

    @staticmethod
    def here() -> DataDirectory:
        """The working directory of this process."""
        return DataDirectory(os.open(".", _FOLDER))

    def close(self) -> None:
        """Let go of it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    @property
    def gone(self) -> bool:
        """Whether it was removed."""
        return os.fstat(self.descriptor).st_nlink == 0

    def control(self) -> ControlFile:
        """Read pg_control; Refused when this is no data directory."""
        for attempt in range(_TRIES):
            try:
                data = self.read("global/pg_control", FILE_SIZE)
                return ControlFile.parse(data)
            except NotFound:
                raise Refused(
                    "The working directory is not the data directory of a server.",
                    do="Let PostgreSQL run this command, or change to the data directory first.",
                ) from None
            except ValueError as fault:
                # The server writes it in place: what was read may be half of the old one.
                if attempt == _TRIES - 1:
                    raise Refused(f"pg_control cannot be understood: {fault}.") from None
                time.sleep(_PAUSE)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def major(self) -> int:
        """The major version in PG_VERSION."""
        text = self.read("PG_VERSION", 64)
        try:
            return int(text.split(b".")[0])
        except ValueError:
            raise Refused("PG_VERSION in the data directory holds no version.") from None

    def read(self, path: str, limit: int) -> bytes:
        """A file of at most `limit` bytes; NotFound, Refused."""
        with self.opened(path) as file:
            # A file is read in one piece; what is asked for beyond its end costs a page or two.
            size = min(os.fstat(file).st_size, limit)
            parts = [os.read(file, size + 1)]
            while parts[-1] and sum(map(len, parts)) <= limit:
                parts.append(os.read(file, 65536))
        data = parts[0] if len(parts) <= 2 and not parts[-1] else b"".join(parts)
        if len(data) > limit:
            raise Refused(f"{path} is longer than {limit:,} bytes.")
        return data

    def stamp(self, path: str) -> Stamp | None:
        """What tells its content from another; None when it is not there."""
        try:
            status = os.stat(path, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return self.stamp(path) is not None

    def names(self, folder: str) -> list[str]:
        """The names in a folder; none when it is not there."""
        try:
            below = os.open(folder, _FOLDER, dir_fd=self.descriptor)
        except FileNotFoundError:
            return []
        try:
            return os.listdir(below)
        finally:
            os.close(below)

    @contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """A file, opened for reading; NotFound when it is not there."""
        try:
            file = os.open(path, _FILE, dir_fd=self.descriptor)
        except FileNotFoundError:
            raise NotFound(f"There is no file {path} in the data directory.") from None
        except OSError as fault:
            raise StrongroomError(
                f"{path} cannot be read: {fault.strerror}.",
                means="Nothing was archived or delivered; the server keeps what it has.",
                do="Mend the rights of the file; PostgreSQL tries again by itself.",
            ) from None
        try:
            yield file
        finally:
            os.close(file)


__all__ = ["DataDirectory", "Stamp"]
