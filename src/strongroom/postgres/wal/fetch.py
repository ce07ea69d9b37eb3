"""restore_command: one file of the WAL out of the repository, whole or not at all.

PostgreSQL takes "not there" for the end of the log and opens the database. So only one answer means
that: the store was asked and does not hold the file. Everything else is raised.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable

from strongroom.errors import Damaged, ObjectMissing, StrongroomError, TargetFull, UsageError
from strongroom.format.wal import SegmentName, WalKind, kind_of
from strongroom.postgres.wal.directory import DataDirectory
from strongroom.repository.wal import WalStore

_SUFFIX = ".strongroom"
_STALE_AFTER = 3600.0
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_serial = itertools.count()

Get = Callable[[int, str], list[bytes]]


def check_name(name: str) -> WalKind:
    """What a file is; UsageError when PostgreSQL asks for no such file."""
    try:
        return kind_of(name)
    except ValueError:
        raise UsageError(
            f"{name!r} is no file of the WAL.",
            do="Write restore_command = 'strongroom wal fetch %f %p'.",
        ) from None


class Fetcher:
    """Delivers files out of one repository; `get` may know some already. Safe for many threads."""

    def __init__(self, store: WalStore, *, get: Get | None = None) -> None:
        self._get, self._begun = get or store.pieces, store.get_begun

    def fetch(
        self, directory: DataDirectory, name: str, path: str, *, partial: bool = False
    ) -> bool:
        """Deliver the file `name` as `path` in a data directory; False when it surely is nowhere.

        `partial`: where a segment is not there, deliver what there is of it, filled up with zeros:
        its `.partial`, or the parts that came while it was written.
        """
        kind = check_name(name)
        control = directory.control()
        try:
            data = self._get(control.system_id, name)
        except ObjectMissing:
            if kind is not WalKind.SEGMENT or not partial:
                return False
            found = furthest(
                SegmentName.parse(name, control.wal_segment_size),
                partial=lambda: b"".join(self._get(control.system_id, name + ".partial")),
                begun=lambda: self._begun(control.system_id, name),
            )
            if found is None:
                return False
            data = [found]
        size = sum(map(len, data))
        if kind is WalKind.SEGMENT and size != control.wal_segment_size:
            raise Damaged(
                f"{name} has {size:,} bytes in the repository; segments of this server have"
                f" {control.wal_segment_size:,}.",
                means="Nothing was delivered: PostgreSQL would stop at a file of another size.",
            )
        deliver(directory, path, data)
        return True


def furthest(
    segment: SegmentName, *, partial: Callable[[], bytes], begun: Callable[[], bytes]
) -> bytes | None:
    """What there is of a segment that is not there whole, filled up; of several what goes furthest.

    `partial` and `begun` get a `.partial` and what was received, or ObjectMissing.
    """
    found = []
    for get in (partial, begun):
        with contextlib.suppress(ObjectMissing):
            found.append(get().ljust(segment.size, b"\0"))
    if len(found) < 2:
        return found[0] if found else None
    from strongroom.postgres.wal.records import scan_segment  # noqa: PLC0415 -- rarely needed

    return max(found, key=lambda data: scan_segment(data, segment)[0].last or 0)


def deliver(directory: DataDirectory, path: str, data: list[bytes]) -> None:
    """Write a file beside `path` and rename it: it appears whole.

    PostgreSQL makes it durable itself when it keeps it (KeepFileRestoredFromArchive).
    """
    folder, slash, name = path.rpartition("/")
    temporary = f"{folder}{slash}{name}.{os.getpid()}-{next(_serial)}{_SUFFIX}"
    here = directory.descriptor
    try:
        _drop_stale(directory, folder)
        file = os.open(temporary, _CREATE, 0o600, dir_fd=here)
        try:
            try:
                for piece in data:
                    view = memoryview(piece)
                    while view:
                        view = view[os.write(file, view) :]
            finally:
                os.close(file)
            os.rename(temporary, path, src_dir_fd=here, dst_dir_fd=here)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=here)
            raise
    except OSError as fault:
        kind = TargetFull if fault.errno in (28, 122) else StrongroomError
        raise kind(
            f"{path} cannot be written: {fault.strerror}.",
            means="Nothing was delivered; the repository is untouched.",
            do="Make room or mend the rights, then start the server again.",
        ) from None


def _drop_stale(directory: DataDirectory, folder: str) -> None:
    """Remove what a process that was killed left behind."""
    for name in directory.names(folder or "."):
        if name.endswith(_SUFFIX):
            place = f"{folder}/{name}" if folder else name
            with contextlib.suppress(OSError):
                modified = os.stat(place, dir_fd=directory.descriptor).st_mtime
                if time.time() - modified > _STALE_AFTER:
                    os.unlink(place, dir_fd=directory.descriptor)


__all__ = ["Fetcher", "deliver"]
