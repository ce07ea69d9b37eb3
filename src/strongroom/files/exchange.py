"""One tree takes the place of another by name; and what stands there is compared with its backup.

Rule of this file: nothing is copied and nothing removed. Where the kernel can exchange two names at
once it does; otherwise there is an instant without either, and a run that is stopped in it finds
both trees under names that it knows.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

from strongroom.errors import Damaged, Refused, StrongroomError
from strongroom.files.source import shown
from strongroom.format.tree import Kind
from strongroom.progress import Progress
from strongroom.repository.ports import SnapshotReader

_AT_FDCWD, _EXCHANGE = -100, 2
_NAMED = 5
_BLOCK = 1 << 20


def identity(path: bytes) -> list[int] | None:
    """Device and inode of a path, which it keeps when it is renamed; None when nothing is there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    return [found.st_dev, found.st_ino]


def put_in_place(staging: bytes, path: bytes, old: bytes, *, new: list[int]) -> None:
    """`staging`, whose `identity` is `new`, becomes `path`, and what stood there `old`.

    May be called again after it was cut off: it goes on where it was. StrongroomError where it
    cannot be done.
    """
    try:
        if identity(path) != new:
            if os.path.lexists(path) and not _exchange(staging, path):
                os.rename(path, old)
            if os.path.lexists(staging) and not os.path.lexists(path):
                os.rename(staging, path)
        if os.path.lexists(staging) and not os.path.lexists(old):
            os.rename(staging, old)
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as fault:
        hint = ""
        if fault.errno in (errno.EBUSY, errno.EXDEV):
            hint = "It is a mount point: restore with `strongroom restore SOURCE --in-place`."
        raise StrongroomError(
            f"{shown(staging)!r} cannot take the place of {shown(path)!r}: {fault.strerror}.",
            **({"do": hint} if hint else {}),
        ) from None


def _exchange(a: bytes, b: bytes) -> bool:
    """Exchange two names at once; False where kernel or file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if rename(_AT_FDCWD, a, _AT_FDCWD, b, _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code))


def refuse_unfit(path: bytes) -> None:
    """Refused when a tree cannot be given another name."""
    above = os.path.dirname(path)
    if os.path.ismount(path):
        raise Refused(
            f"{shown(path)!r} is a mount point, which cannot be exchanged by name.",
            do="Restore into it with `strongroom restore SOURCE --in-place`.",
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise Refused(
            f"Nothing can be renamed in {shown(above)!r} by this user.",
            do="Run it as the owner of that folder.",
        )


def names_only_in(old: bytes, new: bytes) -> list[bytes]:
    """Top-level names of `old` that `new` has not; OSError when one of them cannot be listed."""
    return sorted(set(os.listdir(old)) - set(os.listdir(new)))


def compare_with_backup(
    root: bytes, reader: SnapshotReader, *, progress: Progress
) -> tuple[int, int]:
    """Read every file below `root` and compare it with the backup, whose chunks are verified.

    Return how many files there are and how many the backup does not know; Damaged when one is
    missing or different.
    """
    wrong: list[str] = []
    known: set[bytes] = set()
    linked = 0

    def files() -> Iterator[object]:
        nonlocal linked
        for entry in reader.entries():
            known.add(entry.path)
            if entry.kind == Kind.FILE:
                yield entry
                continue
            if not os.path.lexists(os.path.join(root, entry.path)):
                wrong.append(f"{shown(entry.path)!r} is missing")
            elif entry.kind == Kind.SYMLINK:
                if os.readlink(os.path.join(root, entry.path)) != entry.target:
                    wrong.append(f"{shown(entry.path)!r} leads elsewhere")
            elif entry.kind == Kind.HARDLINK:
                linked += 1

    count = 0
    for entry, pieces in reader.contents(files()):  # type: ignore[arg-type]
        count += 1
        try:
            with open(os.path.join(root, entry.path), "rb") as file:
                if os.fstat(file.fileno()).st_size != entry.size:
                    wrong.append(f"{shown(entry.path)!r} has another size")
                    continue
                for offset, piece in pieces:
                    if os.pread(file.fileno(), len(piece), offset) != piece:
                        wrong.append(f"{shown(entry.path)!r} has other bytes")
                        break
        except OSError as fault:
            wrong.append(f"{shown(entry.path)!r}: {fault.strerror}")
        progress.advance(size=entry.size, files=1)
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise Damaged(
            f"{len(wrong)} files are not as backed up: {'; '.join(wrong[:_NAMED])}{more}."
        )
    strange = 0
    for parent, _, names in os.walk(root):
        below = os.path.relpath(parent, root)
        strange += sum(os.path.normpath(os.path.join(below, name)) not in known for name in names)
    return count + linked, strange
