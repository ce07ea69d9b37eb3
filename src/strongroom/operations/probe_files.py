"""Look at a tree of files without reading it: what would be taken, and what could not be."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

from strongroom.errors import NotFound, Refused
from strongroom.files.patterns import Patterns
from strongroom.files.walk import Walk

_NAMED = 20
_REGULAR = stat.S_IFREG >> 12


def probe_files(
    root: bytes,
    *,
    include: Sequence[bytes] = (),
    exclude: Sequence[bytes] = (),
    one_file_system: bool = False,
) -> dict[str, Any]:
    """Count entries, files and bytes that a backup would take, as JSON values.

    `unreadable` counts files and folders that this user may not read; the first are named in
    `problems`. NotFound or Refused when the root itself cannot be had.
    """
    told: list[tuple[bytes, str]] = []
    patterns = Patterns(include, exclude)
    counts = {"entries": 0, "files": 0, "size": 0, "unreadable": 0}
    descriptor = _open(root)
    try:
        walk = Walk(
            descriptor, lambda path, why: told.append((path, why)), patterns, one_file_system
        )
        for run in walk.runs():
            for number in range(run.start, run.stop):
                counts["entries"] += 1
                if run.kinds[number] == _REGULAR:
                    _look(run.fd, run.prefix, run.names[number], counts, told)
    finally:
        os.close(descriptor)
    counts["unreadable"] = len(told)
    unmatched = [pattern.decode("utf-8", "backslashreplace") for pattern in patterns.unmatched()]
    problems = [f"{path.decode('utf-8', 'backslashreplace')}: {why}" for path, why in told[:_NAMED]]
    return {**counts, "problems": problems, "include_without_match": unmatched}


def _look(
    folder: int, prefix: bytes, name: bytes, counts: dict[str, int], told: list[tuple[bytes, str]]
) -> None:
    try:
        size = os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
    except OSError as fault:
        told.append((prefix + name, fault.strerror or "it cannot be looked at"))
        return
    counts["files"] += 1
    counts["size"] += size
    if not os.access(name, os.R_OK, dir_fd=folder, effective_ids=True):
        told.append((prefix + name, os.strerror(13)))


def _open(root: bytes) -> int:
    shown = root.decode("utf-8", "backslashreplace")
    try:
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(
            f"The folder {shown} does not exist.",
            do="Check the path in the configuration, and that its file system is mounted.",
        ) from None
    except OSError as fault:
        raise Refused(
            f"The folder {shown} cannot be read: {fault.strerror}.",
            do="Run as a user who may read it, or correct the path in the configuration.",
        ) from None
