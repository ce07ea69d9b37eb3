"""Fill a new folder from a feed of entries in any order, each with its content.

For archives, which have no order and cannot be looked into. The folder must be empty or not be
there. Every directory is opened beneath it and through no symlink, every file is made anew: what
the feed names twice, or below what is no directory, ends the run. Links come when every file is
there, facts of directories last.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator

from strongroom.errors import Refused, TargetFull
from strongroom.files.beneath import Beneath
from strongroom.files.noting import Noted
from strongroom.files.placing import NEW, Placing
from strongroom.files.restoring import fault_of_path
from strongroom.files.source import shown
from strongroom.format.tree import Entry, Kind
from strongroom.kernel import sync_file_system
from strongroom.progress import Progress
from strongroom.repository.ports import Outcome

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT)


def check_target(target: bytes) -> None:
    """Refused when the target holds anything, or cannot be made."""
    try:
        names = os.listdir(target)
    except FileNotFoundError:
        return
    except OSError as fault:
        raise Refused(f"The target {shown(target)!r} cannot be used: {fault.strerror}.") from None
    if names:
        raise Refused(
            f"The target {shown(target)!r} is not empty.", do="Choose another directory, a new one."
        )


def fill(
    target: bytes,
    feed: Iterable[tuple[Entry, Iterator[bytes]]],
    *,
    owner: bool,
    devices: bool,
    progress: Progress,
) -> Outcome:
    """Write a feed into `target`. Refused for an entry that leads anywhere else.

    Without `devices` they are left out and told. Owners are set where `owner` says so.
    """
    target = os.path.abspath(target)
    check_target(target)
    try:
        os.makedirs(target, mode=0o700, exist_ok=True)
        root = os.open(target, _FLAGS)
    except OSError as fault:
        raise Refused(f"The target {shown(target)!r} cannot be made: {fault.strerror}.") from None
    try:
        return _Filling(root, owner=owner, devices=devices, progress=progress).run(feed)
    finally:
        os.close(root)


class _Filling:
    def __init__(self, root: int, *, owner: bool, devices: bool, progress: Progress) -> None:
        self._root, self._progress, self._devices = root, progress, devices
        self._noted = Noted(progress)
        self._beneath = Beneath(root)
        self._placing = Placing(owner=owner, replace=False, told=self._noted.fact)
        self._directories: dict[bytes, Entry] = {}
        self._links: list[Entry] = []
        self._files = self._size = 0

    def run(self, feed: Iterable[tuple[Entry, Iterator[bytes]]]) -> Outcome:
        try:
            for entry, pieces in feed:
                self._one(entry, pieces)
            for entry in self._links:
                self._guarded(entry, iter(()))
            # From the leaves up: nothing that is written afterwards changes a directory's time.
            for path in sorted(self._directories, reverse=True):
                self._facts_of(self._directories[path])
            self._progress.phase("syncing the target")
            sync_file_system(self._root)
        finally:
            self._beneath.close()
        return Outcome(self._files, self._size, self._noted.conclude())

    def _one(self, entry: Entry, pieces: Iterator[bytes]) -> None:
        fault = fault_of_path(entry.path) if entry.path else ""
        if fault or (not entry.path and entry.kind is not Kind.DIRECTORY):
            raise self._hostile(entry, fault or "its root is no directory")
        if entry.kind is Kind.HARDLINK:
            self._links.append(entry)
        elif entry.kind in (Kind.CHARACTER, Kind.BLOCK) and not self._devices:
            self._noted.one(entry.path, "a device, left out; --devices makes it")
        else:
            self._guarded(entry, pieces)

    def _guarded(self, entry: Entry, pieces: Iterator[bytes]) -> None:
        try:
            self._place(entry, pieces)
        except OSError as fault:
            if fault.errno in _FULL:
                raise TargetFull(f"The target is full: {shown(entry.path)!r}.") from None
            if fault.errno in (errno.EEXIST, errno.ELOOP, errno.ENOTDIR, errno.EXDEV):
                raise self._hostile(entry, fault.strerror or "") from None
            self._noted.one(entry.path, f"not written: {fault.strerror}")

    def _place(self, entry: Entry, pieces: Iterator[bytes]) -> None:
        if entry.kind is Kind.DIRECTORY:
            if self._directories.get(entry.path, _IMPLIED) is not _IMPLIED:
                raise self._hostile(entry, "named twice")
            if entry.path:
                self._make_folder(entry.path)
            self._directories[entry.path] = entry
            return
        parent, _, name = entry.path.rpartition(b"/")
        if parent:
            self._make_folder(parent)
        at = self._beneath.directory(parent)
        if entry.kind is Kind.FILE:
            self._file(at, name, entry, pieces)
        elif entry.kind is Kind.HARDLINK:
            self._link(name, parent, entry)
        else:
            self._placing.other(at, entry)

    def _make_folder(self, path: bytes) -> None:
        """A directory, and those above it that the feed did not name (yet)."""
        if path in self._directories:
            return
        parent, _, name = path.rpartition(b"/")
        if parent:
            self._make_folder(parent)
        os.mkdir(name, 0o700, dir_fd=self._beneath.directory(parent))
        self._directories[path] = _IMPLIED

    def _file(self, at: int, name: bytes, entry: Entry, pieces: Iterator[bytes]) -> None:
        fd = os.open(name, NEW, 0o600, dir_fd=at)
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
                self._progress.advance(size=len(piece))
            self._placing.set_open(fd, entry)
        finally:
            os.close(fd)
        self._files += 1
        self._size += entry.size
        self._progress.advance(files=1)

    def _link(self, name: bytes, parent: bytes, entry: Entry) -> None:
        above, _, first = entry.target.rpartition(b"/")
        at = os.dup(self._beneath.directory(above))
        try:
            if not self._placing.link((at, first), self._beneath.directory(parent), name):
                self._noted.one(entry.path, "not written: links cannot be made here")
                return
        except FileNotFoundError:
            raise self._hostile(entry, "a hard link to what is no file in it") from None
        finally:
            os.close(at)
        self._files += 1

    def _facts_of(self, entry: Entry) -> None:
        if entry is _IMPLIED:
            return
        fd = os.dup(self._beneath.directory(entry.path))
        try:
            self._placing.set_open(fd, entry)
        finally:
            os.close(fd)

    def _hostile(self, entry: Entry, why: str) -> Refused:
        return Refused(
            f"The archive is refused at {shown(entry.path)!r}: {why}.",
            means="What was written before it stands in the target; nothing stands outside of it.",
            do="Remove the target, and do not trust the archive.",
        )


_IMPLIED = Entry(b"", Kind.DIRECTORY, 0o700)

__all__ = ["check_target", "fill"]
