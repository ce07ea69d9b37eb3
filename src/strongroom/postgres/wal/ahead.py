"""Work done before it is asked for: files that are ready to be archived, segments that come next.

Results live in memory only. What a spool directory remembers survives a restore of the data
directory, and then tells of files that were others (pgBackRest 2.34).
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from strongroom.format.wal import SegmentName, WalKind, kind_of
from strongroom.postgres.wal.directory import DataDirectory, Stamp
from strongroom.postgres.wal.push import Push, Pushed, file_name

READY = ".ready"


class PushAhead:
    """Archives what a server has marked as ready, while it still asks for the first of it.

    A success is told only of the very file that was read: its stamp must still be the same. After
    a fault nothing more is begun ahead until a file goes through again.
    """

    def __init__(self, push: Push, *, workers: int, window: int) -> None:
        self._push, self._window = push, window
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="wal-push")
        self._archives: dict[tuple[tuple[int, int], str], _Archive] = {}
        self._lock = threading.RLock()  # a job that is done at once is told of within it

    def push(self, directory: DataDirectory, path: str, source: str) -> Pushed:
        """Archive one file, as the server asked; durable when this returns."""
        name = file_name(path)
        with self._lock:
            archive = self._archive(directory, source)
            job = archive.claim(name, directory.stamp(path)) or self._submit(archive, path)
            archive.jobs.pop(name, None)
            if not archive.halted:
                self._look(archive, path)
        try:
            done = job.result()
        except BaseException:
            self._halt(archive)
            raise
        archive.halted = False
        return done

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _archive(self, directory: DataDirectory, source: str) -> _Archive:
        key = directory.identity, source
        for old in [one for one, each in self._archives.items() if each.directory.gone]:
            self._archives.pop(old).directory.close()
        if key not in self._archives:
            held = DataDirectory(os.dup(directory.descriptor))
            self._archives[key] = _Archive(held, source)
        return self._archives[key]

    def _submit(self, archive: _Archive, path: str) -> Future[Pushed]:
        return self._pool.submit(self._push, archive.directory, path, archive.source)

    def _look(self, archive: _Archive, path: str) -> None:
        """Begin what comes next, in the order in which the server will ask; lock held."""
        if 2 * len(archive.jobs) > self._window:
            return
        folder, slash, asked = path.rpartition("/")
        names = archive.directory.names(f"{folder}{slash}archive_status")
        ready = {one.removesuffix(READY) for one in names if one.endswith(READY)} - {asked}
        for name in [one for one in archive.jobs if one not in ready]:
            archive.jobs.pop(name)[1].cancel()  # the server does not ask for it any more
        for name in sorted(ready - set(archive.jobs), key=_order):
            if len(archive.jobs) >= self._window:
                return
            place = f"{folder}{slash}{name}"
            stamp = archive.directory.stamp(place)
            if stamp is None or not _is_wal(name):
                continue
            job = self._submit(archive, place)
            archive.jobs[name] = stamp, job
            job.add_done_callback(lambda job, name=name: self._ended(archive, name, job))  # type: ignore[misc]

    def _ended(self, archive: _Archive, name: str, job: Future[Pushed]) -> None:
        if not job.cancelled() and job.exception() is not None:
            # Whoever asks for the file gets the reason of a try of its own.
            with self._lock:
                if archive.jobs.get(name, (None, None))[1] is job:
                    del archive.jobs[name]
            self._halt(archive)

    def _halt(self, archive: _Archive) -> None:
        with self._lock:
            archive.halted = True
            for name, (_, job) in list(archive.jobs.items()):
                if job.cancel():
                    del archive.jobs[name]


class _Archive:
    """One data directory, and what was begun of it: jobs by file name, with the file's stamp."""

    def __init__(self, directory: DataDirectory, source: str) -> None:
        self.directory, self.source = directory, source
        self.jobs: dict[str, tuple[Stamp, Future[Pushed]]] = {}
        self.halted = False

    def claim(self, name: str, stamp: Stamp | None) -> Future[Pushed] | None:
        """The job that was begun for exactly this file, if it did not fail."""
        began, job = self.jobs.get(name, (None, None))
        if job is None or began != stamp or job.cancelled():
            return None
        if job.done() and job.exception() is not None:
            return None
        return job


class FetchAhead:
    """Reads the segments that recovery will ask for next; at most `limit` bytes are kept.

    Only what was read is kept: that a file is not there is asked anew every time.
    """

    def __init__(
        self, get: Callable[[int, str], list[bytes]], *, workers: int, window: int, limit: int
    ) -> None:
        self._get, self._window, self._limit = get, window, limit
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="wal-fetch")
        self._jobs: OrderedDict[tuple[int, str], Future[list[bytes]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, system_id: int, name: str) -> list[bytes]:
        """Read a file, as `WalStore.pieces`."""
        with self._lock:
            job = self._jobs.pop((system_id, name), None)
        data = None
        if job is not None:
            try:
                data = job.result()
            except Exception:  # perhaps it is there by now; else the reason is told below
                data = None
        if data is None:
            data = self._get(system_id, name)
        if kind_of(name) is WalKind.SEGMENT and data:
            self._look(system_id, SegmentName.parse(name, sum(map(len, data))))
        return data

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _look(self, system_id: int, asked: SegmentName) -> None:
        most = min(self._window, self._limit // asked.size)
        wanted, segment = [], asked
        for _ in range(most):
            segment = segment.next()
            wanted.append((system_id, str(segment)))
        with self._lock:
            for key in wanted:
                job = self._jobs.pop(key, None)
                if job is None or (job.done() and _failed(job)):
                    job = self._pool.submit(self._get, *key)
                self._jobs[key] = job
            while len(self._jobs) > most:  # what another timeline, or somebody else, left
                self._jobs.popitem(last=False)[1].cancel()


def _failed(job: Future[list[bytes]]) -> bool:
    return job.cancelled() or job.exception() is not None


def _is_wal(name: str) -> bool:
    try:
        kind_of(name)
    except ValueError:
        return False
    return True


def _order(name: str) -> tuple[bool, str]:
    """History files first, then by name: pgarch.c, ready_file_comparator."""
    return not name.endswith(".history"), name


__all__ = ["FetchAhead", "PushAhead"]
