"""Read the files of a backup on several threads, a run of one file at a time.

The largest files come first and every thread takes the next run of whatever file is open, so that
one file of a gigabyte keeps all of them busy. What goes into the engine is exactly what was summed
and looked at: a run is read, its pages looked at, its CRC taken, and then handed on.

A file that vanished is left out; what a file has grown by is not read; what it has become shorter by
is zeros in a relation's file (as PostgreSQL's own tools write it: recovery cuts it off), and missing
in any other.
"""

from __future__ import annotations

import errno
import os
import stat as modes
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from strongroom.errors import Refused
from strongroom.format.content import whole
from strongroom.kernel import open_to_read
from strongroom.postgres.physical.changes import Kept
from strongroom.postgres.physical.crc import combined, crc32c
from strongroom.postgres.physical.pages import OddPage, look
from strongroom.postgres.physical.walk import FileFound, files_by_size
from strongroom.progress import Progress
from strongroom.repository.ports import Lane

RUN = 4 * 1024 * 1024
SMALL = 256 * 1024


@dataclass(frozen=True, slots=True)
class Pages:
    """How a cluster's pages are laid out, and whether they have checksums."""

    block_size: int
    segment_blocks: int
    checksums: bool


@dataclass(slots=True)
class FileRead:
    """A file being read. When `done`, `size` and `kept` say what was stored of it."""

    found: FileFound
    runs: int
    left: int
    size: int
    ids: list[bytes]
    sums: list[tuple[int, int]]
    odd: list[OddPage] = field(default_factory=list)
    fd: int = -1
    vanished: bool = False
    lost: str = ""
    shrunk: bool = False
    kept: Kept | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Reading:
    """The threads of one backup share it; each calls `work` with a lane of its own.

    `done` is called by any thread, once for each file.
    """

    def __init__(
        self,
        files: Sequence[FileFound],
        pages: Pages,
        *,
        progress: Progress,
        done: Callable[[FileRead], None],
    ) -> None:
        self._pages, self._progress, self._done = pages, progress, done
        self._jobs = self._plan(list(files))
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let the threads end at their next run."""
        self._stopped.set()

    def _plan(self, files: list[FileFound]) -> Iterator[tuple[FileRead, int]]:
        for found in files_by_size(files):
            runs = max(1, -(-found.size // RUN)) if found.relation else 1
            one = FileRead(found, runs, runs, found.size, [b""] * runs, [(0, 0)] * runs)
            for number in range(runs):
                yield one, number

    def work(self, lane: Lane) -> None:
        """Take runs until none is left, or another thread has failed."""
        window = memoryview(bytearray(RUN))
        try:
            while not self._stopped.is_set():
                with self._lock:
                    job = next(self._jobs, None)
                if job is None:
                    return
                self._take(*job, lane, window)
        except BaseException:
            self.stop()
            raise

    def _take(self, one: FileRead, number: int, lane: Lane, window: memoryview) -> None:
        if self._opened(one):
            try:
                if one.found.relation is not None:
                    self._read_run(one, number, lane, window)
                elif one.size <= SMALL:
                    self._read_small(one, lane, window)
                else:
                    self._read_stream(one, lane)
            except OSError as fault:
                self._lose(one, fault)
        with one.lock:
            one.left -= 1
            last = not one.left
        if last:
            self._finish(one, lane)

    def _opened(self, one: FileRead) -> bool:
        with one.lock:
            if one.fd < 0 and not one.vanished and not one.lost:
                try:
                    one.fd = open_to_read(one.found.root.fd, one.found.name)
                    if not modes.S_ISREG(os.fstat(one.fd).st_mode):
                        raise OSError(errno.ENOENT, "it is no regular file any more")
                    if one.runs > 1:
                        os.posix_fadvise(one.fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                except OSError as fault:
                    self._lose(one, fault)
            return one.fd >= 0 and not one.lost

    def _lose(self, one: FileRead, fault: OSError) -> None:
        if fault.errno in (errno.ENOENT, errno.ELOOP):
            one.vanished = True
        elif one.found.essential:
            shape = one.found.path.decode("utf-8", "backslashreplace")
            raise Refused(
                f"{shape} of the data directory cannot be read: {fault.strerror}.",
                means="No snapshot was written; earlier snapshots are untouched.",
                do="Run as the account of the server or as root; an input/output error is the"
                " disk's: look at the kernel's log.",
            ) from None
        else:
            one.lost = f"it cannot be read: {fault.strerror}"

    def _read_run(self, one: FileRead, number: int, lane: Lane, window: memoryview) -> None:
        at = number * RUN
        run = window[: min(RUN, one.size - at)]
        got = _fill(one.fd, run, at)
        if got < len(run):
            run[got:] = bytes(len(run) - got)
            one.shrunk = True
        if self._pages.checksums and got:
            self._look(one, run, at)
        one.sums[number] = crc32c(run), len(run)
        if run:
            one.ids[number] = lane.put_pages(run)
        self._progress.advance(size=len(run))

    def _look(self, one: FileRead, run: memoryview, at: int) -> None:
        size, relation, fd = self._pages.block_size, one.found.relation, one.fd
        assert relation is not None
        block = at // size

        def reread(number: int) -> bytes:
            return os.pread(fd, size, at + number * size)

        first = relation.segment * self._pages.segment_blocks + block & 0xFFFFFFFF
        odd = look(run, size, block=block, first=first, reread=reread)
        if odd:
            with one.lock:
                one.odd += odd

    def _read_small(self, one: FileRead, lane: Lane, window: memoryview) -> None:
        run = window[: one.size]
        run = run[: _fill(one.fd, run, 0)]
        one.size = len(run)
        one.sums[0] = crc32c(run), len(run)
        if run:
            (one.ids[0],) = lane.put_small([run])
        self._progress.advance(size=len(run))

    def _read_stream(self, one: FileRead, lane: Lane) -> None:
        at = crc = 0

        def readinto(view: memoryview) -> int:
            nonlocal at, crc
            got = os.preadv(one.fd, [view[: one.found.size - at]], at) if view else 0
            crc = crc32c(view[:got], crc)
            at += got
            self._progress.advance(size=got)
            return got

        content = lane.content()
        content.feed_from(readinto)
        stored = content.finish()
        one.size = stored.size
        one.kept = Kept(one.found.key, crc, stored.content, stored.ids, ())

    def _finish(self, one: FileRead, lane: Lane) -> None:
        if one.fd >= 0:
            os.close(one.fd)
            one.fd = -1
        if not one.vanished and not one.lost and one.kept is None:
            ids = b"".join(one.ids)
            if one.found.relation is not None:
                stored = lane.pages_content(ids, one.size)
                content, ids = stored.content, stored.ids
            else:
                content = whole(ids) if one.size else b""
            odd = tuple(sorted(one.odd, key=lambda page: page.block))
            one.kept = Kept(one.found.key, combined(one.sums), content, ids, odd)
        one.ids = []
        self._progress.advance(files=1)
        self._done(one)


def _fill(fd: int, view: memoryview, at: int) -> int:
    total = 0
    while total < len(view) and (got := os.preadv(fd, [view[total:]], at + total)):
        total += got
    return total


__all__ = ["FileRead", "Pages", "Reading"]
