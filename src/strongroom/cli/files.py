"""Files that a command writes for a person: whole or not there, and readable by their owner only."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable

from strongroom.errors import AlreadyExists, StorageFull, StrongroomError


def write_file(path: str, pieces: Iterable[bytes | memoryview], *, force: bool) -> None:
    """Write beside the target and move it there when it is whole and durable."""
    half = f"{path}.{os.getpid()}.part"
    try:
        with open(half, "xb", opener=_private) as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if not force:
            open(path, "xb", opener=_private).close()  # the name is ours, or somebody else's
        os.replace(half, path)
    except FileExistsError:
        raise AlreadyExists(f"{path} exists.", do="Name another file, or give --force.") from None
    except OSError as fault:
        kind = StorageFull if fault.errno in (errno.ENOSPC, errno.EDQUOT) else StrongroomError
        raise kind(
            f"{path} cannot be written: {fault.strerror}.",
            means="The repository is untouched; no part of the file was left.",
            do="Name another place with `-o`, and run it again.",
        ) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(half)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
