"""Files of a cluster on their way home: in pieces, many at once, only what is not there already.

Every folder is opened beneath its root and through no link; every piece is verified before it is
written (`ports.SnapshotReader.scatter`). A piece that cannot be had ends the restore: a cluster with
a hole in it must not start.
"""

from __future__ import annotations

import os
import stat as modes
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from strongroom.errors import Damaged, StrongroomError
from strongroom.format.content import Extent
from strongroom.format.tree import Entry
from strongroom.kernel import start_writing
from strongroom.progress import Progress
from strongroom.repository.ports import SnapshotReader

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BATCH = 16 * 1024 * 1024
_BATCHES = 3
_COMPARE = 4 * 1024 * 1024
_AHEAD = 64
_VECTOR = 512  # pieces in one write
_WORTH_STARTING = 1024 * 1024  # less is left to the sync at the end

Owner = tuple[int, int]


class Folders:
    """Folders below a root, kept open. For one thread."""

    def __init__(self, root: bytes) -> None:
        self.path = root
        self.root = os.open(root, _FOLDER)
        self._open: dict[bytes, int] = {b"": self.root}

    def of(self, path: bytes) -> int:
        """A descriptor of a folder; OSError when it is none, or a link."""
        fd = self._open.get(path)
        if fd is None:
            above, _, name = path.rpartition(b"/")
            fd = self._open[path] = os.open(name, _FOLDER, dir_fd=self.of(above))
        return fd

    def forget(self, path: bytes) -> None:
        """A folder is gone, with all below it."""
        for one in [each for each in self._open if each == path or each.startswith(path + b"/")]:
            os.close(self._open.pop(one))

    def close(self) -> None:
        """Close them all."""
        while self._open:
            os.close(self._open.popitem()[1])


def remove(folder: int, name: bytes) -> None:
    """Remove whatever is of a name, with all below it, through no link."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        below = os.open(name, _FOLDER, dir_fd=folder)
        try:
            for one in os.listdir(below):
                remove(below, os.fsencode(one))
        finally:
            os.close(below)
        os.rmdir(name, dir_fd=folder)


def make_folder(folder: int, name: bytes) -> None:
    """Make a folder where there is none; what else is of its name gives way."""
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:
        if not modes.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            remove(folder, name)
            os.mkdir(name, 0o700, dir_fd=folder)


class File:
    """A file that is being written."""

    __slots__ = ("closed", "entry", "fd", "name", "old", "waiting")

    def __init__(self, entry: Entry, folder: int, *, delta: bool) -> None:
        self.entry, self.name = entry, entry.path.rpartition(b"/")[2]
        self.waiting, self.closed = 0, False
        self.fd, self.old = _open(folder, self.name, delta=delta)

    def write(self, at: int, pieces: Sequence[memoryview]) -> None:
        """Write pieces that follow each other."""
        left = list(pieces)
        while left:
            done = os.pwritev(self.fd, left, at)
            at += done
            while left and done >= len(left[0]):
                done -= len(left.pop(0))
            if left and done:
                left[0] = left[0][done:]

    def finish(self, owner: Owner | None) -> None:
        """All of it is written: set its length and facts, and close it."""
        entry = self.entry
        if os.fstat(self.fd).st_size != entry.size:
            os.ftruncate(self.fd, entry.size)
        if owner is not None:
            os.fchown(self.fd, *owner)
        os.fchmod(self.fd, entry.mode)
        os.utime(self.fd, ns=(entry.mtime_ns, entry.mtime_ns))
        self.close()

    def close(self) -> None:
        """Let go of it."""
        if not self.closed:
            self.closed = True
            os.close(self.fd)


def _open(folder: int, name: bytes, *, delta: bool) -> tuple[int, int]:
    """A descriptor, and how long the file was that is there already."""
    if delta:
        with suppress(OSError):
            fd = os.open(name, _OLD, dir_fd=folder)
            facts = os.fstat(fd)
            if modes.S_ISREG(facts.st_mode) and facts.st_nlink == 1:
                return fd, facts.st_size
            os.close(fd)
        remove(folder, name)
    return os.open(name, _NEW, 0o600, dir_fd=folder), 0


class Writer:
    """Writes files; `written` and `kept` count bytes that were fetched and that were there."""

    def __init__(
        self,
        snapshot: SnapshotReader,
        progress: Progress,
        *,
        delta: bool,
        jobs: int,
        owner: Callable[[Entry], Owner | None],
    ) -> None:
        self._snapshot, self._progress, self._delta = snapshot, progress, delta
        self._owner, self._jobs = owner, jobs
        self._running: deque[_Batch] = deque()
        self._opened: set[File] = set()
        self.written = self.kept = 0

    def write(self, files: Iterable[tuple[Entry, int]]) -> None:
        """Write entries, each into an open folder; StrongroomError, OSError."""
        batch = _Batch()
        try:
            with ThreadPoolExecutor(self._jobs, thread_name_prefix="compare") as pool:
                for file, extents, last in self._needs(files, pool):
                    batch.add(file, extents)
                    if last:
                        batch.ends.append(file)
                    if batch.size >= _BATCH or len(batch.ends) >= _VECTOR:
                        self._start(batch)
                        batch = _Batch()
            self._start(batch)
            while self._running:
                self._settle()
        finally:
            for running in self._running:  # they use what is about to be closed
                with suppress(Exception):
                    running.wait()
            self._running.clear()
            while self._opened:
                self._opened.pop().close()

    def _needs(
        self, files: Iterable[tuple[Entry, int]], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[File, Sequence[Extent], bool]]:
        """What must be fetched of each file; comparing goes on ahead."""
        ahead: deque[tuple[File, Future[list[Extent]] | Sequence[Extent], bool]] = deque()
        for entry, folder in files:
            file = File(entry, folder, delta=self._delta)
            self._opened.add(file)
            parts = self._parts(file)
            if file.old:
                parts = iter(self._without_holes(file, list(parts)))
            for extents, last in parts:
                if file.old:
                    ahead.append((file, pool.submit(self._differing, file, extents), last))
                else:
                    ahead.append((file, extents, last))
                while len(ahead) > _AHEAD:
                    yield _result(ahead.popleft())
        while ahead:
            yield _result(ahead.popleft())

    def _without_holes(
        self, file: File, parts: list[tuple[Sequence[Extent], bool]]
    ) -> list[tuple[Sequence[Extent], bool]]:
        """The same; a file with holes is written anew, since an older one may have bytes there."""
        covered = sum(one.length * one.repeats for extents, _ in parts for one in extents)
        if covered != file.entry.size:
            os.ftruncate(file.fd, 0)
            file.old = 0
        return parts

    def _parts(self, file: File) -> Iterator[tuple[Sequence[Extent], bool]]:
        """The extents of a file, about as many at a time as are compared at once."""
        if not file.entry.content:
            yield (), True
            return
        part: list[Extent] = []
        size = 0
        try:
            for extents in self._snapshot.parts(file.entry):
                for extent in extents:
                    if size >= _COMPARE:
                        yield part, False
                        part, size = [], 0
                    part.append(extent)
                    size += extent.length * extent.repeats
        except ValueError as fault:
            raise Damaged(f"{shown(file.entry.path)} has no list of its pieces: {fault}.") from None
        yield part, True

    def _differing(self, file: File, extents: Sequence[Extent]) -> list[Extent]:
        """Those whose bytes are not there."""
        found = []
        for extent in extents:
            size = extent.length * extent.repeats
            if extent.end > file.old or extent.repeats != 1 or extent.offset:
                found.append(extent)
                continue
            data = os.pread(file.fd, size, extent.start)
            if len(data) == size and self._snapshot.chunk_id(data) == extent.id:
                self.kept += size
                self._progress.advance(size=size)
            else:
                found.append(extent)
        return found

    def _start(self, batch: _Batch) -> None:
        while len(self._running) >= _BATCHES:
            self._settle()
        batch.start(self._snapshot)
        self._running.append(batch)

    def _settle(self) -> None:
        batch = self._running.popleft()
        faults = list(batch.wait())
        batch.start_writing()
        for extent_file, fault in faults:
            what = f"{shown(extent_file.entry.path)} cannot be restored: {fault.what}"
            raise type(fault)(what, means=_NOT_STARTED, do=fault.do)
        self.written += batch.size
        self._progress.advance(size=batch.size, files=len(batch.ends))
        for file in batch.ends:
            file.finish(self._owner(file.entry))
            self._opened.discard(file)


_NOT_STARTED = (
    "The target has no pg_control and cannot be started by mistake; the repository is as it was."
)


def _result(
    row: tuple[File, Future[list[Extent]] | Sequence[Extent], bool],
) -> tuple[File, Sequence[Extent], bool]:
    file, extents, last = row
    return file, extents.result() if isinstance(extents, Future) else extents, last


class _Batch:
    """Pieces of files that are fetched together; `ends` are the files that end in it."""

    def __init__(self) -> None:
        self.size = 0
        self.ends: list[File] = []
        self._ids: list[bytes] = []
        self._spots: list[tuple[File, Extent]] = []
        self._waiting: Callable[[], Mapping[int, StrongroomError]] = dict

    def add(self, file: File, extents: Sequence[Extent]) -> None:
        for extent in extents:
            self._ids.append(extent.id)
            self._spots.append((file, extent))
            self.size += extent.length * extent.repeats

    def start(self, snapshot: SnapshotReader) -> None:
        if self._ids:
            self._waiting = snapshot.scatter(self._ids, self._take)

    def start_writing(self) -> None:
        """Let the disk work while the next batches are decoded."""
        ranges: dict[File, tuple[int, int]] = {}
        for file, extent in self._spots:
            start, end = ranges.get(file, (extent.start, extent.end))
            ranges[file] = min(start, extent.start), max(end, extent.end)
        for file, (start, end) in ranges.items():
            if end - start >= _WORTH_STARTING:
                start_writing(file.fd, start, end - start)

    def wait(self) -> Iterator[tuple[File, StrongroomError]]:
        for number, fault in self._waiting().items():
            yield self._spots[number][0], fault

    def _take(self, numbers: Sequence[int], chunks: Sequence[memoryview]) -> None:
        """Write chunks; those that follow each other in their file at one stroke."""
        run: list[memoryview] = []
        start = end = -1
        current: File | None = None
        for number, chunk in zip(numbers, chunks, strict=True):
            file, extent = self._spots[number]
            piece = chunk[extent.offset : extent.offset + extent.length]
            if len(piece) != extent.length or extent.end > file.entry.size:
                raise Damaged(f"A piece of {shown(file.entry.path)} is not as long as it says.")
            if file is not current or extent.start != end or len(run) >= _VECTOR:
                if current is not None and run:
                    current.write(start, run)
                current, start, run = file, extent.start, []
            run += [piece] * extent.repeats
            end = extent.end
        if current is not None and run:
            current.write(start, run)


def shown(path: bytes) -> str:
    """A path for people."""
    return path.decode("utf-8", "backslashreplace")


__all__ = ["File", "Folders", "Owner", "Writer", "make_folder", "remove", "shown"]
