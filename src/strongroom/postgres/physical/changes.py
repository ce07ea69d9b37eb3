"""Which files of relations are as they were at the last backup, so that they need not be read.

Only ever a saving of time, and only where it is certain. A main fork is taken as unchanged if its
facts (kernel.KEY: inode, size, mtime, ctime and the rest, to the nanosecond) are those of the last
backup. All else, free space maps first of all (trap 16), is read every time. Why that is enough:

*   Every write sets mtime and ctime before its bytes can be seen. What was written after the last
    listing bears another time, as long as clocks do not stand still or go back (below).
*   A key is kept only if it is older by MARGIN than the moment at which pg_backup_start was called
    (trap 14, the tick of the file system's clock; the coarsest in use is 2 s). The checkpoint of
    pg_backup_start waits for every write that had begun, so that a write which set its time before
    and came late with its bytes, has come before the file was read. On a standby there may be no
    checkpoint to wait for: MARGIN_STANDBY instead, longer than a write hangs.
*   A crash of the machine may keep bytes and lose the time they were written at: another boot, and
    nothing is believed. The same for another host.
*   A clock that was set back could give the same time again: the wall clock is compared with the
    one that only goes forward (trap 15). The file system's clock is seen in pg_control, which the
    checkpoint has just written; file systems of other machines are never believed.
*   Another timeline or system, or a server that has less log than at the last backup, has another
    history (restore, rewind, a snapshot rolled back): nothing is believed (trap 15).

    file      magic 8 ‖ length u32 ‖ digest 32 ‖ context (JSON) ‖ row …
    row       length u32 ‖ digest 32 ‖ payload              digests are BLAKE3
    payload   path length u16 ‖ path ‖ KEY ‖ crc u32 ‖ odd pages u16 ‖ content length u32 ‖ content
              ‖ (block u32, found u16, expected u16, lsn u64) … ‖ ids
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from blake3 import blake3

from strongroom.beside import Beside
from strongroom.kernel import KEY_SIZE
from strongroom.postgres.physical.pages import OddPage

MARGIN_NS = 2_000_000_000
MARGIN_STANDBY_NS = 60_000_000_000
STEP_NS = 1_000_000_000

_MAGIC = b"SRPHYS01"
_HEAD = struct.Struct("<8sI32s")
_ROW = struct.Struct("<I32s")
_LENGTH = struct.Struct("<H")
_FACTS = struct.Struct("<IHI")
_ODD = struct.Struct("<IHHQ")

_LOCAL = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "tmpfs", "xfs", "zfs")
)
"""File systems of this machine, whose times come from its clock."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What was stored of a file."""

    key: bytes
    crc: int
    content: bytes
    ids: bytes
    odd: tuple[OddPage, ...]


@dataclass(frozen=True, slots=True)
class Context:
    """When and of what a backup was taken. `ahead` is wall clock less the clock since boot."""

    system_id: int
    timeline: int
    boot: str
    ahead: int
    wall: int
    stop_lsn: int
    block_size: int
    segment_blocks: int


def clocks() -> tuple[str, int, int]:
    """This boot's id ("" where the system does not tell), wall clock less boot clock, wall clock."""
    boot = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", "rb") as file:
        boot = file.read().decode("ascii", "replace").strip()
    wall = time.time_ns()
    since = time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
    return boot, wall - since, wall


def doubt(last: Context, now: Context, *, start_lsn: int) -> str:
    """Why nothing of the last backup may be believed; "" if it may. `now.stop_lsn` is not used."""
    if not now.boot or last.boot != now.boot:
        return "the machine was started anew since"
    if now.ahead < last.ahead - STEP_NS or now.wall < last.wall:
        return "the clock was set back since"
    if (last.system_id, last.timeline) != (now.system_id, now.timeline):
        return "the cluster is on another timeline"
    if start_lsn < last.stop_lsn:
        return "the server has less log than then"
    if (last.block_size, last.segment_blocks) != (now.block_size, now.segment_blocks):
        return "the files are laid out otherwise"
    return ""


def file_system_of(path: bytes, mounts: bytes | None = None) -> str:
    """The type of the file system that holds a path without links; "" when it is not known."""
    if mounts is None:
        try:
            with open("/proc/self/mountinfo", "rb") as file:
                mounts = file.read()
        except OSError:
            return ""
    best, kind = b"", ""
    for line in mounts.splitlines():
        fields, _, rest = line.partition(b" - ")
        point = _unescaped(fields.split(b" ")[4]) if fields.count(b" ") >= 4 else b""
        inside = path == point or path.startswith(point.rstrip(b"/") + b"/")
        if point and inside and len(point) >= len(best):  # the last one mounted lies on top
            best, kind = point, rest.split(b" ", 1)[0].decode("ascii", "replace")
    return kind


def _unescaped(text: bytes) -> bytes:
    for code, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        text = text.replace(code, byte)
    return text


def is_believed(path: bytes) -> bool:
    """Do the times of files below `path` come from this machine's clock?"""
    return file_system_of(path) in _LOCAL


def identity(repository: str, source: str, root: bytes) -> bytes:
    """What a cache is for."""
    parts = (repository.encode(), source.encode(), root)
    return blake3(b"".join(struct.pack("<I", len(part)) + part for part in parts)).digest()


class LastBackup:
    """What the last backup kept; empty where there is no cache, or none that is ours."""

    def __init__(self, path: bytes | None, whose: bytes) -> None:
        self.context: Context | None = None
        self._rows: dict[bytes, tuple[int, int]] = {}
        self._map: mmap.mmap | None = None
        if path is not None:
            with contextlib.suppress(OSError, ValueError, TypeError, struct.error):
                self._open(path, whose)

    def _open(self, path: bytes, whose: bytes) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            facts = os.fstat(fd)
            if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
                return
            self._map = data = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        magic, length, digest = _HEAD.unpack_from(data)
        body = data[_HEAD.size : _HEAD.size + length]
        if magic != _MAGIC or blake3(whose + body).digest() != digest:
            return
        context = Context(**json.loads(body))
        at = _HEAD.size + length
        while at + _ROW.size + _LENGTH.size <= len(data):
            (size, _) = _ROW.unpack_from(data, at)
            at += _ROW.size
            if at + size > len(data):
                break
            (named,) = _LENGTH.unpack_from(data, at)
            self._rows[data[at + 2 : at + 2 + named]] = at, size
            at += size
        self.context = context

    def key(self, path: bytes) -> bytes | None:
        """The key of a file, not verified: a cheap first look."""
        found = self._rows.get(path)
        if found is None or self._map is None:
            return None
        at = found[0] + 2 + len(path)
        return self._map[at : at + KEY_SIZE]

    def find(self, path: bytes) -> Kept | None:
        """What was kept of a file; None when nothing was, or the cache is damaged there."""
        found = self._rows.get(path)
        if found is None or self._map is None:
            return None
        at, size = found
        payload = self._map[at : at + size]
        (_, digest) = _ROW.unpack_from(self._map, at - _ROW.size)
        if blake3(payload).digest() != digest:
            return None
        return _unpacked(payload)

    def close(self) -> None:
        """Let go of the file."""
        if self._map is not None:
            self._map.close()
            self._map = None


def _unpacked(payload: bytes) -> Kept:
    (named,) = _LENGTH.unpack_from(payload)
    at = 2 + named
    key = payload[at : at + KEY_SIZE]
    at += KEY_SIZE
    crc, count, length = _FACTS.unpack_from(payload, at)
    at += _FACTS.size
    content = payload[at : at + length]
    at += length
    odd = [OddPage(*_ODD.unpack_from(payload, at + n * _ODD.size)) for n in range(count)]
    return Kept(key, crc, content, payload[at + count * _ODD.size :], tuple(odd))


def _packed(path: bytes, kept: Kept) -> Iterator[bytes]:
    yield _LENGTH.pack(len(path)) + path + kept.key
    yield _FACTS.pack(kept.crc, len(kept.odd), len(kept.content)) + kept.content
    for page in kept.odd:
        yield _ODD.pack(page.block, page.found, page.expected, page.lsn)
    yield kept.ids


class ThisBackup:
    """The cache that this backup writes beside the old one. Safe for many threads.

    Faults of the cache's own disk end the cache, never the backup; `fault` says what happened.
    """

    def __init__(self, path: bytes | None, whose: bytes) -> None:
        self.fault = ""
        self._whose = whose
        self._file: Beside | None = None
        self._lock = threading.Lock()
        if path is not None:
            self._guarded(lambda: self._begin(path))

    def _begin(self, path: bytes) -> None:
        self._file = Beside(path)
        # The context is known at the end; rows come behind the room that is left for it.
        os.lseek(self._file.fd, _ROOM, os.SEEK_SET)

    def add(self, path: bytes, kept: Kept) -> None:
        """Keep a file."""
        if self._file is None or len(path) > 0xFFFF or len(kept.odd) > 0xFFFF:
            return
        payload = b"".join(_packed(path, kept))
        row = _ROW.pack(len(payload), blake3(payload).digest()) + payload
        with self._lock:
            if (file := self._file) is not None:
                self._guarded(lambda: file.write(row))

    def finish(self, context: Context) -> None:
        """Say what it is of. Not yet in the place of the old one."""
        if (file := self._file) is None:
            return
        body = json.dumps(asdict(context)).encode().ljust(_ROOM - _HEAD.size)
        head = _HEAD.pack(_MAGIC, len(body), blake3(self._whose + body).digest()) + body
        if len(head) != _ROOM:
            raise AssertionError("the context of a change cache has outgrown its room")
        self._guarded(lambda: _put(file, head))

    def replace(self) -> None:
        """Take the place of the old one: the snapshot is committed."""
        if self._file is not None:
            self._guarded(self._file.replace)
            self._file = None

    def discard(self) -> None:
        """Throw it away, if it has not replaced the old one."""
        if self._file is not None:
            self._file.discard()
            self._file = None

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as fault:
            self.fault = f"the change cache was not written: {fault.strerror}"
            self.discard()


_ROOM = 1024


def _put(file: Beside, head: bytes) -> None:
    os.pwrite(file.fd, head, 0)


__all__ = [
    "MARGIN_NS",
    "MARGIN_STANDBY_NS",
    "Context",
    "Kept",
    "LastBackup",
    "ThisBackup",
    "clocks",
    "doubt",
    "identity",
    "is_believed",
]
