"""A tree of files as a Source: walk, compare with the last run, read what is new.

Nothing that is wrong with a part ends the run: it is told as a Problem, and the
rest is taken. Entries go into the tree in path order; contents are gathered for
many files before they are handed on, so that Python works per batch.

A file is taken as unchanged only if its facts (kernel.KEY) are those of the last
run, were old enough then (change_cache: the same-second rule), and the session
says that every chunk of it is still there.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable

from strongroom.errors import NotFound, Refused
from strongroom.files.change_cache import MARGIN_NS, LastRun, Memory, ThisRun, identity
from strongroom.files.patterns import Patterns
from strongroom.files.taking import Taking
from strongroom.files.walk import Walk
from strongroom.progress import Progress
from strongroom.repository.ports import Session, Taken

_ROOT_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK


def shown(path: bytes) -> str:
    """A raw path as text that JSON holds: what is not UTF-8 stands as `\\xNN`."""
    return path.decode("utf-8", "backslashreplace")


class FileSource:
    """The files below `root`, configured under `name`; see `ports.Source`.

    `include` and `exclude` are patterns (docs/reference/files.md). `cache_dir` holds the change
    cache of `repository` (its id); without it every file is read. `clock` gives nanoseconds since
    1970. `one_file_system` takes mount points as empty directories. `root` itself may be a symlink;
    nothing below it is followed.
    """

    kind = "files"

    def __init__(
        self,
        name: str,
        root: bytes,
        *,
        include: Iterable[bytes] = (),
        exclude: Iterable[bytes] = (),
        cache_dir: bytes | None = None,
        repository: str = "",
        one_file_system: bool = False,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.name = name
        self._root = root
        self._include, self._exclude = tuple(include), tuple(exclude)
        Patterns(self._include, self._exclude)  # a pattern that cannot be read is said now
        self._one_file_system = one_file_system
        self._clock = clock
        whose = identity(repository, name, os.path.abspath(root))
        self._memory = Memory(cache_dir, f"{name}.{whose[:8].hex()}.files".encode(), whose)

    def back_up(self, session: Session, *, progress: Progress) -> Taken:
        """Push the tree into `session`; NotFound or Refused when the root cannot be had at all."""
        before = self._clock() - MARGIN_NS
        root = self._open_root()
        try:
            with self._memory.run(session.tree) as (last, new):
                taking = Taking(
                    session, progress, root=root, last=last, new=new, trusted_before=before
                )
                try:
                    return self._take(taking, progress, root, last, new)
                finally:
                    taking.close()
        finally:
            os.close(root)

    def settled(self) -> None:
        """The snapshot is committed: the new change cache replaces the old one."""
        self._memory.settle()

    def _open_root(self) -> int:
        shape = f"{shown(self._root)!r}"
        try:
            return os.open(self._root, _ROOT_FLAGS)
        except OSError as fault:
            if fault.errno == errno.ENOENT:
                raise NotFound(
                    f"The root {shape} of source {self.name} does not exist.",
                    means="No snapshot was written; earlier snapshots are untouched.",
                    do="Check the path in the configuration, and that its file system is mounted.",
                ) from None
            raise Refused(
                f"The root {shape} of source {self.name} cannot be read: {fault.strerror}.",
                means="No snapshot was written; earlier snapshots are untouched.",
                do="Run as a user who may read it, or correct the path in the configuration.",
            ) from None

    def _take(
        self, taking: Taking, progress: Progress, root: int, last: LastRun, new: ThisRun
    ) -> Taken:
        patterns = Patterns(self._include, self._exclude)
        walk = Walk(root, taking.told, patterns, self._one_file_system)
        progress.phase("reading files")
        progress.plan(size=last.size, files=last.files)
        entries = 0
        for run in walk.runs():
            if not entries:
                taking.take_root(walk.root_stat)
            entries += run.stop - run.start
            taking.take(run)
        if not entries:
            taking.take_root(walk.root_stat)
            if last.files:
                taking.told(b"", "the root is empty and was not in the last run: is it mounted?")
        taking.finish()
        for pattern in patterns.unmatched():
            taking.told(pattern, "nothing in the source answers to this include pattern")
        new.finish(files=taking.files, size=taking.size)
        if taking.same:
            self._memory.drop()  # the old cache says it all
        facts = {
            "root": shown(os.path.abspath(self._root)),
            "include": [shown(pattern) for pattern in self._include],
            "exclude": [shown(pattern) for pattern in self._exclude],
            "entries": taking.entries,
            "files": taking.files,
            "size": taking.size,
            "unchanged": taking.unchanged,
            "mounts_left_out": [shown(path) for path in walk.mounts],
        }
        if new.fault:
            facts["change_cache"] = new.fault
        return Taken(taking.files, taking.size, facts, tuple(taking.problems))
