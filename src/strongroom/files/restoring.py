"""One run of restoring files: entries come in path order, contents in whatever order they come.

Contents are asked for in batches, ahead of need, and written by whoever opened them. Hard links
wait until every first name is there; directories get their modes and times last, from the
leaves up, so that nothing written afterwards changes them. What is wrong with one entry is
noted and the rest goes on; a full disk ends the run.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from strongroom.errors import Damaged, ObjectMissing, StrongroomError, TargetFull
from strongroom.files.batches import Large, Parts, Small
from strongroom.files.beneath import Beneath, start_writing_back
from strongroom.files.noting import Noted
from strongroom.files.placing import Placing, Told
from strongroom.files.reading import SMALL_FILE
from strongroom.files.walk import reason
from strongroom.format.content import ID_SIZE, WHOLE
from strongroom.format.tree import Entry, Kind
from strongroom.kernel import DONE, MODE, OPEN, OWNER, TIMES, WRITE
from strongroom.progress import Progress
from strongroom.repository.ports import SnapshotReader

BATCH_FILES = 4096
BATCH_DIRECTORIES = 32  # each is a descriptor
BATCH_SIZE = 16 * 1024 * 1024
BATCH_LARGE = 16  # each is two
BATCHES_AHEAD = 3
EARLY = 8 * 1024 * 1024  # of this much of a file in one batch, the disk is told at once

_NO_RIGHTS_NEEDED = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FACTS = {OWNER: "owner", MODE: "mode", TIMES: "time"}
_NO_NAMES = (b"", b".", b"..")
_CONTENT = (Kind.FILE, Kind.STREAM)
_WHOLE = 1 + ID_SIZE


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
        self._owner = owner
        self._placing = self._placing_for(self.noted.fact)
        self._metadata: list[Entry] = []
        self._links: list[Entry] = []
        self._failed: set[bytes] = set()
        self._plain: bytes | None = None  # a directory whose path was looked at
        self._small, self._empty = Small(self._placing_for), Small(self._placing_for)
        self._parts = Parts()
        self._open: dict[Large, None] = {}
        self._facts: dict[tuple[int, int, int], tuple[int, int, int]] = {}
        self._at: tuple[Small | None, bytes, int] = None, b"", -1
        self._running: deque[Small | Parts] = deque()

    def _placing_for(self, told: Told) -> Placing:
        return Placing(owner=self._owner, replace=self._replace, told=told)

    # -- entries ---------------------------------------------------------------------------

    def add(self, entries: Iterable[Entry]) -> None:
        """Write entries, or ask for what is to be written; their directories come before them."""
        for entry in entries:
            parent, _, name = entry.path.rpartition(b"/")
            if parent != self._plain or name in _NO_NAMES or b"\0" in name or not parent:
                if not self._is_acceptable(entry):
                    continue
                self._plain = parent
            try:
                self._place(entry, parent, name)
            except ValueError as fault:
                self._failed.add(entry.path)
                self.noted.one(entry.path, f"refused: {fault}")
            except OSError as fault:
                self._not_written(entry, fault.errno or errno.EIO)

    def _is_acceptable(self, entry: Entry) -> bool:
        path = entry.path
        fault = fault_of_path(path) if path else ""
        if not path and entry.kind is not Kind.DIRECTORY:
            fault = "refused: the root is no directory"
        if fault:
            self._failed.add(path)
            self.noted.one(path, fault)
        return not fault

    def _place(self, entry: Entry, parent: bytes, name: bytes) -> None:
        kind = entry.kind
        if kind in _CONTENT:
            size, content = entry.size, entry.content
            if size <= SMALL_FILE and len(content) == _WHOLE and content[:1] == WHOLE:
                self._gather(self._small, entry, parent, name)
            elif not size and not content:
                self._gather(self._empty, entry, parent, name)
            else:
                self._place_large(entry, parent)
        elif kind is Kind.DIRECTORY:
            self._place_directory(entry)
        elif kind is Kind.HARDLINK:
            self._links.append(entry)
        else:
            self._placing.other(self._beneath.directory(parent), entry)
            self.others += 1

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

    def _parent(self, entry: Entry) -> int:
        return self._beneath.directory(entry.path.rpartition(b"/")[0])

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

    def _damaged(self, entry: Entry, fault: StrongroomError) -> None:
        if not isinstance(fault, Damaged | ObjectMissing):
            raise fault
        self._failed.add(entry.path)
        self.damaged += 1
        self.noted.one(entry.path, f"damaged, and not written: {fault.what}")

    # -- small files -----------------------------------------------------------------------

    def _gather(self, batch: Small, entry: Entry, parent: bytes, name: bytes) -> None:
        at, of, fd = self._at
        if at is not batch or of != parent:
            fd = batch.directory(os.dup(self._beneath.directory(parent)))
            self._at = batch, parent, fd
        key = (entry.uid, entry.gid, entry.mode)
        facts = self._facts.get(key)
        if facts is None:
            facts = self._facts[key] = self._placing.mode_of(entry), *self._placing.owner_of(entry)
        batch.add(entry, (fd, name, *facts, entry.mtime_ns))
        if (
            batch.size >= BATCH_SIZE
            or len(batch.entries) >= BATCH_FILES
            or len(batch.directories) >= BATCH_DIRECTORIES
        ):
            self._hand_on_small()

    def _hand_on_small(self) -> None:
        full = self._small, self._empty
        self._small, self._empty = Small(self._placing_for), Small(self._placing_for)
        self._at = None, b"", -1
        for batch in full:
            if batch.entries:
                self._hand_on(batch)

    def _finish_small(self, batch: Small) -> None:
        faults = batch.wait()
        for path, why in batch.told:
            self.noted.fact(path, why)
        if not faults and not batch.results:
            self.files += len(batch.entries)
            self.size += batch.size
            self._progress.advance(size=batch.size, files=len(batch.entries))
            return
        for number, entry in enumerate(batch.entries):
            step, code = batch.results.get(number, (DONE, 0))
            if number in faults:
                self._damaged(entry, faults[number])
            elif step in (OPEN, WRITE):
                self._not_written(entry, code)
            else:
                if step != DONE:
                    why = f"its {_FACTS[step]} could not be set: {reason(code)}"
                    self.noted.fact(entry.path, why)
                self._written(entry)

    # -- large files -----------------------------------------------------------------------

    def _place_large(self, entry: Entry, parent: bytes) -> None:
        large = Large(entry, self._beneath.directory(parent))
        self._open[large] = None
        try:
            for extents in self._snapshot.parts(entry):
                self._parts.add(large, extents)
                if self._parts.size >= BATCH_SIZE:
                    self._hand_on_parts()
        except (Damaged, ObjectMissing) as fault:
            large.fault = fault
        except ValueError as fault:
            large.fault = Damaged(f"An entry does not decode: {fault}.")
        self._parts.ends.append(large)
        if len(self._parts.ends) >= BATCH_LARGE:
            self._hand_on_parts()

    def _hand_on_parts(self) -> None:
        batch, self._parts = self._parts, Parts()
        self._hand_on(batch)

    def _finish_parts(self, batch: Parts) -> None:
        batch.wait()
        for large, size in batch.files().items():
            if size >= EARLY and large.fault is None:
                start_writing_back(large.fd)
        for large in batch.ends:
            self._end(large)

    def _end(self, large: Large) -> None:
        entry = large.entry
        try:
            if large.fault is not None:
                raise large.fault
            large.settle(self._placing)
        except StrongroomError as fault:
            self._damaged(entry, fault)
        except OSError as fault:
            self._not_written(entry, fault.errno or errno.EIO)
        else:
            self._written(entry)
        finally:
            del self._open[large]
            large.discard()

    # -- batches ---------------------------------------------------------------------------

    def _hand_on(self, batch: Small | Parts) -> None:
        self._running.append(batch)
        batch.start(self._snapshot)
        while len(self._running) > BATCHES_AHEAD:
            self._finish_batch()

    def _finish_batch(self) -> None:
        batch = self._running[0]
        if isinstance(batch, Small):
            self._finish_small(batch)
            batch.close()
        else:
            self._finish_parts(batch)
        self._running.popleft()

    # -- the end ---------------------------------------------------------------------------

    def flush(self) -> None:
        """Wait until every file given so far is written."""
        self._hand_on_small()
        self._hand_on_parts()
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

    def made(self) -> list[bytes]:
        """The paths of the root and of every directory that was made."""
        return sorted({b"", *(entry.path for entry in self._metadata)})

    def set_directories(self) -> None:
        """Set the facts of directories, the deepest first."""
        for entry in sorted(self._metadata, key=lambda entry: entry.path, reverse=True):
            try:
                self._placing.set_open(self._beneath.directory(entry.path), entry)
            except OSError as fault:
                self._not_written(entry, fault.errno or errno.EIO)
        self._metadata.clear()

    def close(self) -> None:
        """Let go of files and directories, whatever happened; what is not whole goes."""
        for batch in self._running:
            with contextlib.suppress(StrongroomError, OSError):
                batch.wait()
        for batch in (*self._running, self._small, self._empty):
            if isinstance(batch, Small):
                batch.close()
        self._running.clear()
        while self._open:
            self._open.popitem()[0].discard()
        self._beneath.close()


def _why(code: int) -> str:
    if code == errno.ELOOP:
        return "a symlink stands in its way and is not followed"
    if code == errno.ENOTDIR:
        return "what should be its directory is none"
    if code == errno.EEXIST:
        return "something of that name is there already"
    return reason(code)
