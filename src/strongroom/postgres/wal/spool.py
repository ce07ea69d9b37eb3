"""The spool of `wal receive`: log on this machine's disk, from the socket to the repository.

    <spool>/lock                             held by the receiver that uses it
    <spool>/<system>/<segment>.partial       the segment that is being received, as far as it came
    <spool>/<system>/<segment>               whole ones, until they are in the repository

Rule: a position is durable when the fsync that followed its write has returned, never before
(`Tape.flushed`). Files belong to their owner alone: the log in them is not encrypted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from strongroom.errors import Busy, Damaged, Refused, StrongroomError
from strongroom.format.wal import SegmentName, WalKind, kind_of, lsn_text
from strongroom.postgres.wal.records import Carry, read_header, scan_segment

PARTIAL = ".partial"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_SYSTEM = re.compile(r"[0-9a-f]{16}")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class NoRoom(Exception):
    """The disk of the spool is full: `rest` was not written. Never leaves this room."""

    def __init__(self, rest: memoryview) -> None:
        super().__init__("the disk of the spool is full")
        self.rest = rest


@dataclass(frozen=True, slots=True)
class Kept:
    """A file of the spool; `size` bytes of a segment, all of them where it is `whole`."""

    system_id: int
    segment: SegmentName
    whole: bool
    path: str
    size: int

    def read(self) -> bytes:
        """Its content."""
        with _said(self.path), open(self.path, "rb") as file:
            return file.read(self.segment.size)


class Spool:
    """A folder that one receiver uses at a time."""

    def __init__(self, root: str) -> None:
        self.root = root
        with _said(root):
            os.makedirs(root, mode=0o700, exist_ok=True)
            status = os.stat(root)
            if status.st_uid != os.geteuid() or status.st_mode & 0o077:
                raise Refused(
                    f"The spool {root} is not ours alone.",
                    do=f"`chown` it to the account that receives and `chmod 700 {root}`: what is in"
                    " it is not encrypted.",
                )
            self._lock = os.open(os.path.join(root, "lock"), _FILE, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise Busy(
                f"Another receiver uses the spool {root}.",
                means="This one was not started; that one goes on.",
                do="Stop that one first, or name another folder with --spool.",
            ) from None

    def close(self) -> None:
        """Let another receiver use it."""
        os.close(self._lock)

    def folder(self, system_id: int) -> str:
        """Where the log of a system is kept."""
        path = os.path.join(self.root, f"{system_id:016x}")
        with _said(path):
            if not os.path.isdir(path):
                os.mkdir(path, 0o700)
                sync_folder(self.root)
        return path

    def kept(self) -> list[Kept]:
        """What is there, in the order of the log; what is no file of ours is passed over."""
        found = []
        with _said(self.root):
            for folder in filter(_SYSTEM.fullmatch, os.listdir(self.root)):
                for name in os.listdir(os.path.join(self.root, folder)):
                    one = _kept(int(folder, 16), os.path.join(self.root, folder, name), name)
                    if one is not None:
                        found.append(one)
        return sorted(found, key=lambda one: (one.system_id, one.segment))

    def carry(self, system_id: int, segment: SegmentName) -> Carry | None:
        """What the segment before left to one, where it is still here: on the same timeline, or the
        newest that it can come from."""
        earlier = [
            one
            for one in self.kept()
            if one.system_id == system_id
            and one.whole
            and one.segment.number == segment.number - 1
            and one.segment.timeline <= segment.timeline
        ]
        if not earlier:
            return None
        return scan_segment(earlier[-1].read(), earlier[-1].segment)[1]


def durable_end(data: bytes, segment: SegmentName, before: Carry | None) -> int:
    """How many bytes of an unfinished segment are whole records: the rest proves nothing."""
    facts, _ = scan_segment(data.ljust(segment.size, b"\0"), segment, before)
    return min((facts.last or segment.start) - segment.start, len(data))


class Tape:
    """Writes the log of one timeline into the spool, from the start of a segment on.

    `known` is what came of that segment before: the same bytes must come again, and are written
    again. `whole` is told of each segment that is durable under its own name.
    """

    def __init__(
        self,
        folder: str,
        segment: SegmentName,
        known: bytes,
        whole: Callable[[SegmentName], None],
    ) -> None:
        self._folder, self.segment, self._known, self._whole = folder, segment, known, whole
        self.position = self.flushed = segment.start
        self._file, self._stale, self._new = -1, False, True
        self._begin()

    @property
    def path(self) -> str:
        """The file that is being written."""
        return os.path.join(self._folder, f"{self.segment}{PARTIAL}")

    def write(self, start: int, data: memoryview) -> None:
        """Write what came; StrongroomError when it does not follow on what is there, Damaged when
        it is other log than came before, NoRoom."""
        if start != self.position:
            raise StrongroomError(
                f"The server sent log from {lsn_text(start)}; {lsn_text(self.position)} comes next.",
                means="Nothing of it was taken: there would be a hole.",
                do="Run the same command again; it goes on from what is durable.",
            )
        while data:
            at = self.position - self.segment.start
            part = data[: self.segment.size - at]
            self._compare(at, part)
            with _said(self.path):
                if self._stale and at + len(part) > len(self._known):
                    os.ftruncate(self._file, len(self._known))
                    self._stale = False
                try:
                    done = os.pwrite(self._file, part, at)
                except OSError as fault:
                    if fault.errno in _FULL:
                        raise NoRoom(data) from None
                    raise
            self.position += done
            data = data[done:]
            if self.position == self.segment.end:
                self._end()

    def flush(self) -> bool:
        """Make durable what was written; whether there was anything."""
        if self.flushed == self.position:
            return False
        position = self.position
        with _said(self.path):
            os.fdatasync(self._file)
            if self._new:
                sync_folder(self._folder)
                self._new = False
        self.flushed = position
        return True

    def close(self) -> None:
        """Make durable what was written, and let go of the file."""
        if self._file >= 0:
            try:
                self.flush()
            finally:
                os.close(self._file)
                self._file = -1

    def _begin(self) -> None:
        with _said(self.path):
            self._file = os.open(self.path, _FILE, 0o600)
            self._stale = os.fstat(self._file).st_size > len(self._known)
            self._new = True

    def _end(self) -> None:
        """A segment is whole."""
        self.flush()
        with _said(self.path):
            os.close(self._file)
            self._file = -1
            os.rename(self.path, os.path.join(self._folder, str(self.segment)))
            sync_folder(self._folder)
        done, self.segment, self._known = self.segment, self.segment.next(), b""
        self._whole(done)
        self._begin()

    def _compare(self, at: int, part: memoryview) -> None:
        known = memoryview(self._known)[at : at + len(part)]
        if known and known != part[: len(known)]:
            first = next(
                n for n, (one, other) in enumerate(zip(known, part, strict=False)) if one != other
            )
            raise Damaged(
                f"The server's log differs at {lsn_text(self.position + first)} from what it sent"
                " before.",
                means="What was received first is kept in the spool and in the repository; nothing was"
                " overwritten. Another history is written on the same timeline, or one of the two is"
                " damaged.",
                do="Find out which server this is (was it restored, or its log reset?). If it is right,"
                f" move {self.path} away and run the command again; then take a new backup.",
            )


def _kept(system_id: int, path: str, name: str) -> Kept | None:
    """A file of the spool; None when it is none, or too short to say what it is."""
    base = name.removesuffix(PARTIAL)
    try:
        if kind_of(base) is not WalKind.SEGMENT:
            return None
        with open(path, "rb") as file:
            size = read_header(file.read(64)).segment_size
            segment = SegmentName.parse(base, size)
            length = os.fstat(file.fileno()).st_size
    except (ValueError, FileNotFoundError):
        return None
    if name == base and length != size:
        raise Damaged(
            f"{path} has {length:,} bytes; the segment has {size:,}.",
            means="It was not put into the repository; the log before it was.",
            do=f"Find out who changed it; rename it to {name}{PARTIAL} to receive it again.",
        )
    return Kept(system_id, segment, name == base, path, min(length, size))


def sync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    folder = os.open(path, _FOLDER)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _said(path: str) -> Iterator[None]:
    """Faults of the disk in our words. After one nothing more is called durable."""
    try:
        yield
    except OSError as fault:
        raise StrongroomError(
            f"The spool cannot be used: {path}: {fault.strerror}.",
            means="What was reported to the server as durable is; the server keeps the rest.",
            do="Mend the disk or its rights, or name another folder with --spool; then run the same"
            " command again.",
        ) from None


__all__ = ["Kept", "NoRoom", "Spool", "Tape", "durable_end", "sync_folder"]
