"""One run of restoring files: entries come in path order, contents ahead of need.

Small files are gathered and created a batch at a time, beside the reading. Hard links wait
until every first name is there; directories get their modes and times last, from the
leaves up, so that nothing written afterwards changes them. What is wrong with one entry is
noted and the rest goes on; a full disk ends the run.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache

from strongroom.errors import Damaged, ObjectMissing, TargetFull
from strongroom.files.beneath import Beneath
from strongroom.files.noting import Noted
from strongroom.files.placing import Pieces, Placing
from strongroom.files.reading import SMALL_FILE
from strongroom.files.walk import reason
from strongroom.format.tree import Entry, Kind
from strongroom.kernel import DONE, MODE, OPEN, OWNER, TIMES, WRITE, FileSpec, write_files
from strongroom.progress import Progress
from strongroom.repository.ports import SnapshotReader

BATCH_FILES = 512
BATCH_DIRECTORIES = 32  # each is a descriptor
BATCH_SIZE = 4 * 1024 * 1024
BATCHES_AHEAD = 4
WRITERS = 2

_NO_RIGHTS_NEEDED = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT)
_GOOD = (DONE, 0)
_FACTS = {OWNER: "owner", MODE: "mode", TIMES: "time"}
_NO_NAMES = (b"", b".", b"..")
_EMPTY = memoryview(b"")
_CONTENT = (Kind.FILE, Kind.STREAM)

_Group = tuple[int, list[FileSpec], list[Entry]]  # directory, specs, the entries they are for


def fault_of_path(path: bytes) -> str:
    """Say what is wrong with a path of a tree, or nothing."""
    framed = b"/%b/" % path
    if b"//" in framed or b"/./" in framed or b"/../" in framed:
        return "refused: its path is not a plain one"
    if b"\0" in path:
        return "refused: its name holds a zero byte"
    return ""


class Restoring:
    """One run below the open directory `root`; `add` what is wanted, in path order, then `finish`.

    `files` and `size` count contents written, `linked` further names of them and `linked_size` their
    bytes, `directories` and `others` the rest; `noted` holds what is not as it was.
    """

    def __init__(
        self,
        snapshot: SnapshotReader,
        root: int,
        progress: Progress,
        *,
        owner: bool,
        replace: bool,
    ) -> None:
        self.files = self.size = self.damaged = 0
        self.directories = self.others = self.linked = self.linked_size = 0
        self.noted = Noted(progress)
        self._snapshot, self._progress, self._replace = snapshot, progress, replace
        self._beneath = Beneath(root)
        self._placing = Placing(owner=owner, replace=replace, told=self.noted.fact)
        self._metadata: list[Entry] = []
        self._links: list[Entry] = []
        self._failed: set[bytes] = set()
        self._group: _Group | None = None
        self._group_of = b""
        self._batch: list[_Group] = []
        self._batched = self._batched_size = 0
        self._facts: dict[tuple[int, int, int], tuple[int, int, int]] = {}
        self._pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
        self._running: deque[tuple[Future[list[list[tuple[int, int]]]], list[_Group]]] = deque()

    # -- entries ---------------------------------------------------------------------------

    def add(self, entries: Iterable[Entry]) -> None:
        """Write entries; their directories come before them."""
        for entry, pieces in self._snapshot.contents(self._acceptable(entries)):
            try:
                self._place(entry, pieces)
            except (Damaged, ObjectMissing) as fault:
                self._failed.add(entry.path)
                self.damaged += 1
                self.noted.one(entry.path, f"damaged, and not written: {fault.what}")
            except ValueError as fault:
                self._failed.add(entry.path)
                self.noted.one(entry.path, f"refused: {fault}")
            except OSError as fault:
                self._not_written(entry, fault.errno or errno.EIO)

    def _acceptable(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        plain = None  # a directory whose path was looked at
        for entry in entries:
            path = entry.path
            parent, _, name = path.rpartition(b"/")
            if parent and parent == plain and name not in _NO_NAMES and b"\0" not in name:
                yield entry
                continue
            fault = fault_of_path(path) if path else ""
            if not path and entry.kind is not Kind.DIRECTORY:
                fault = "refused: the root is no directory"
            if fault:
                self._failed.add(path)
                self.noted.one(path, fault)
            else:
                plain = parent
                yield entry

    def _place(self, entry: Entry, pieces: Pieces) -> None:
        kind = entry.kind
        if kind in _CONTENT:
            self._place_file(entry, pieces)
        elif kind is Kind.DIRECTORY:
            self._place_directory(entry)
        elif kind is Kind.HARDLINK:
            self._links.append(entry)
        else:
            self._placing.other(self._parent(entry), entry)
            self.others += 1

    def _parent(self, entry: Entry) -> int:
        return self._beneath.directory(entry.path.rpartition(b"/")[0])

    def _place_directory(self, entry: Entry) -> None:
        if entry.path:
            name = entry.path.rpartition(b"/")[2]
            try:
                os.mkdir(name, 0o700, dir_fd=self._parent(entry))
            except FileExistsError:
                if not self._replace:
                    raise
                self._let_in(entry.path)
            self.directories += 1
        self._metadata.append(entry)

    def _let_in(self, path: bytes) -> None:
        """Make sure that `path` is a directory (OSError), and let its owner write into it.

        The mode that the backup has for it is set at the end, like that of every directory.
        """
        above, _, name = path.rpartition(b"/")
        handle = os.open(name, _NO_RIGHTS_NEEDED, dir_fd=self._beneath.directory(above))
        try:
            mode = os.fstat(handle).st_mode
            if mode & 0o700 != 0o700:
                with contextlib.suppress(PermissionError):  # another's: then it stays as it is
                    os.chmod(b"/proc/self/fd/%d" % handle, mode & 0o7777 | 0o700)
        finally:
            os.close(handle)
        self._beneath.directory(path)

    def _place_file(self, entry: Entry, pieces: Pieces) -> None:
        if entry.size <= SMALL_FILE and not entry.xattrs:
            gathered = [(offset, _kept(piece)) for offset, piece in pieces]
            offset, data = gathered[0] if gathered else (0, _EMPTY)
            if not offset and len(data) == entry.size and len(gathered) < 2:
                self._gather(entry, data)
                return
            pieces = gathered
        self._placing.file(self._parent(entry), entry, pieces)
        self._written(entry)

    def _written(self, entry: Entry) -> None:
        self.files += 1
        self.size += entry.size
        self._progress.advance(size=entry.size, files=1)

    def _not_written(self, entry: Entry, code: int) -> None:
        if code in _FULL:
            raise self._full(entry.path, code)
        self._failed.add(entry.path)
        self.noted.one(entry.path, f"not written: {_why(code)}")

    def _full(self, path: bytes, code: int) -> TargetFull:
        shown = path.decode("utf-8", "backslashreplace")
        return TargetFull(
            f"The target is full ({reason(code)}): {shown!r} could not be written.",
            means=f"{self.files:,} files ({self.size:,} bytes) stand whole at the target, the rest"
            " is missing; no file is half written. Times and modes of directories are not set yet."
            " The repository is untouched.",
            do="Free space at the target, or choose another, and run the restore again; into the"
            " same directory it needs --force.",
        )

    # -- small files -----------------------------------------------------------------------

    def _gather(self, entry: Entry, data: memoryview) -> None:
        parent, _, name = entry.path.rpartition(b"/")
        group = self._group
        if group is None or parent != self._group_of:
            group = (os.dup(self._beneath.directory(parent)), [], [])
            self._group, self._group_of = group, parent
            self._batch.append(group)
        of = (entry.uid, entry.gid, entry.mode)
        facts = self._facts.get(of)
        if facts is None:
            facts = self._facts[of] = self._placing.mode_of(entry), *self._placing.owner_of(entry)
        group[1].append((name, data, *facts, entry.mtime_ns))
        group[2].append(entry)
        self._batched += 1
        self._batched_size += len(data)
        full = self._batched >= BATCH_FILES or self._batched_size >= BATCH_SIZE
        if full or len(self._batch) > BATCH_DIRECTORIES:
            self._hand_on()

    def _hand_on(self) -> None:
        batch, self._batch, self._group = self._batch, [], None
        self._batched = self._batched_size = 0
        if batch:
            self._running.append((self._pool.submit(_write, batch), batch))
        while len(self._running) > BATCHES_AHEAD or (self._running and self._running[0][0].done()):
            self._finish_batch()

    def _finish_batch(self) -> None:
        job, batch = self._running.popleft()
        try:
            for (fd, specs, entries), results in zip(batch, job.result(), strict=True):
                self._finish_group(fd, specs, entries, results)
        finally:
            for fd, _, _ in batch:
                os.close(fd)

    def _finish_group(
        self,
        fd: int,
        specs: list[FileSpec],
        entries: list[Entry],
        results: list[tuple[int, int]],
    ) -> None:
        if results.count(_GOOD) == len(results):
            size = sum([entry.size for entry in entries])
            self.files += len(entries)
            self.size += size
            self._progress.advance(size=size, files=len(entries))
            return
        for spec, entry, (step, code) in zip(specs, entries, results, strict=True):
            if step == OPEN and code == errno.EEXIST and self._replace:
                self._place_again(fd, entry, spec[1])
                continue
            if step in (OPEN, WRITE):
                self._not_written(entry, code)
                continue
            if step != DONE:
                why = f"its {_FACTS[step]} could not be set: {reason(code)}"
                self.noted.fact(entry.path, why)
            self._written(entry)

    def _place_again(self, fd: int, entry: Entry, data: bytes | bytearray | memoryview) -> None:
        """Something of that name was there, and shall give way."""
        try:
            self._placing.file(fd, entry, [(0, memoryview(data))] if data else [])
        except OSError as fault:
            self._not_written(entry, fault.errno or errno.EIO)
        else:
            self._written(entry)

    # -- the end ---------------------------------------------------------------------------

    def flush(self) -> None:
        """Wait until every file given so far is written."""
        self._hand_on()
        while self._running:
            self._finish_batch()

    def link(self) -> None:
        """Give files their other names; where that cannot be, the content stands once more."""
        self.flush()
        is_file = lru_cache(1024)(self._is_file)
        stand_in: dict[bytes, bytes] = {}
        for entry in self._links:
            target = stand_in.get(entry.target, entry.target)
            try:
                if fault_of_path(entry.target) or not is_file(entry.target):
                    self.noted.one(
                        entry.path, "refused: it is linked to what is no file of the tree"
                    )
                elif target in self._failed or not self._place_link(entry, target):
                    self._copy(entry)
                    stand_in[entry.target] = entry.path
            except FileNotFoundError:  # its first name is not among what is restored
                self._copy(entry)
                stand_in[entry.target] = entry.path
            except OSError as fault:
                self._not_written(entry, fault.errno or errno.EIO)
        self._links.clear()

    def _is_file(self, path: bytes) -> bool:
        found = self._snapshot.find(path)
        return found is not None and found.kind is Kind.FILE

    def _place_link(self, entry: Entry, target: bytes) -> bool:
        parent, _, first = target.rpartition(b"/")
        at = os.dup(self._beneath.directory(parent))
        try:
            name = entry.path.rpartition(b"/")[2]
            if not self._placing.link((at, first), self._parent(entry), name):
                self.noted.fact(entry.path, "a copy, as the target does not take hard links")
                return False
            self.linked_size += os.stat(first, dir_fd=at, follow_symlinks=False).st_size
        finally:
            os.close(at)
        self.linked += 1
        self._progress.advance(files=1)
        return True

    def _copy(self, entry: Entry) -> None:
        found = self._snapshot.find(entry.target)
        if found is not None:
            self.add([replace(found, path=entry.path)])
            self.flush()

    def set_directories(self) -> None:
        """Set the facts of directories, the deepest first."""
        for entry in sorted(self._metadata, key=lambda entry: entry.path, reverse=True):
            try:
                self._placing.set_open(self._beneath.directory(entry.path), entry)
            except OSError as fault:
                self._not_written(entry, fault.errno or errno.EIO)
        self._metadata.clear()

    def close(self) -> None:
        """Let go of threads and directories, whatever happened."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        open_groups = [group for _, batch in self._running for group in batch] + self._batch
        for fd, _, _ in open_groups:
            os.close(fd)
        self._running.clear()
        self._batch = []
        self._beneath.close()


def _kept(piece: memoryview) -> memoryview:
    """What a piece holds, for longer than until the next one is taken."""
    return piece if isinstance(piece.obj, bytes) else memoryview(bytes(piece))


def _write(batch: list[_Group]) -> list[list[tuple[int, int]]]:
    return [write_files(fd, specs) for fd, specs, _ in batch]


def _why(code: int) -> str:
    if code == errno.ELOOP:
        return "a symlink stands in its way and is not followed"
    if code == errno.ENOTDIR:
        return "what should be its directory is none"
    if code == errno.EEXIST:
        return "something of that name is there already"
    return reason(code)
