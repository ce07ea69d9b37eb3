"""Configuration that lives outside the data directory (trap 24): Debian keeps it in /etc/postgresql.

It is in no base backup, and a restored cluster does not start as it did without it. Taken are the
files that the server says it reads, as far as the role may ask, and the paths that are configured;
a folder with everything below it.
"""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from strongroom.format.content import whole
from strongroom.format.tree import Entry, Kind
from strongroom.kernel import open_to_read
from strongroom.postgres.physical.facts import CONFIG
from strongroom.repository.ports import Lane

_LARGEST = 64 * 1024 * 1024
_SMALL = 256 * 1024


@dataclass(frozen=True, slots=True)
class External:
    """What was kept: its entries, and the absolute paths of the files."""

    entries: tuple[Entry, ...]
    paths: tuple[bytes, ...]


def keep(
    asked: Iterable[bytes],
    said: Iterable[bytes],
    *,
    inside: bytes,
    lane: Lane,
    told: Callable[[bytes, str], None],
) -> External:
    """Store files outside the data directory `inside`.

    `asked` are configured paths, absolute: one that is not to be had is told. `said` are the
    server's own. Each file is kept by the path it was named by, its links followed.
    """
    entries: dict[bytes, Entry] = {}
    named = dict.fromkeys(asked, True) | dict.fromkeys(said, True)
    for path in sorted(named):
        for file in _below(path, told):
            real = os.path.realpath(file)
            if real != inside and not real.startswith(inside + b"/"):
                _keep_one(file, lane, told, entries)
    kept = tuple(b"/" + path[len(CONFIG) + 1 :] for path in sorted(entries))
    folders = {CONFIG} if entries else set()
    for path in entries:
        while path := os.path.dirname(path):
            folders.add(path)
    more = [_folder(path) for path in folders]
    return External((*more, *entries.values()), kept)


def _folder(path: bytes) -> Entry:
    try:
        facts = os.stat(b"/" + path[len(CONFIG) + 1 :])
    except OSError:
        return Entry(path, Kind.DIRECTORY, 0o755)
    return Entry(
        path,
        Kind.DIRECTORY,
        facts.st_mode & 0o7777,
        facts.st_uid,
        facts.st_gid,
        facts.st_mtime_ns,
    )


def _below(path: bytes, told: Callable[[bytes, str], None]) -> Iterator[bytes]:
    """The files that a path stands for."""
    if not os.path.isdir(path):
        yield path
        return

    def failed(fault: OSError) -> None:
        told(_place(fault.filename or path), f"it cannot be read: {fault.strerror}")

    for folder, _, names in os.walk(path, onerror=failed):
        yield from (os.path.join(folder, name) for name in sorted(names))


def _place(path: bytes) -> bytes:
    return CONFIG + os.path.normpath(b"/" + path.lstrip(b"/"))


def _keep_one(
    path: bytes, lane: Lane, told: Callable[[bytes, str], None], entries: dict[bytes, Entry]
) -> None:
    place = _place(path)
    try:
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_to_read(root, os.path.realpath(path))
        finally:
            os.close(root)
        try:
            facts = os.fstat(fd)
            if not modes.S_ISREG(facts.st_mode) or facts.st_size > _LARGEST:
                told(place, "it is no file of configuration: not regular, or larger than 64 MiB")
                return
            data = _read(fd)
        finally:
            os.close(fd)
    except OSError as fault:
        told(place, f"it cannot be read: {fault.strerror}")
        return
    entries[place] = Entry(
        place,
        Kind.FILE,
        facts.st_mode & 0o7777,
        facts.st_uid,
        facts.st_gid,
        facts.st_mtime_ns,
        len(data),
        _stored(data, lane),
    )


def _read(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _stored(data: bytes, lane: Lane) -> bytes:
    if not data:
        return b""
    if len(data) <= _SMALL:
        return whole(lane.put_small([data])[0])
    content = lane.content()
    content.write(data)
    return content.finish().content


__all__ = ["External", "keep"]
