"""archive_command: one file of pg_wal into the repository, looked at before it is taken.

Rule: what is returned from is durable; whatever is in doubt is refused, because the server then
keeps the file and says so in its log. A file is taken only if it is of this server: the system
identifier, the sizes, the page magic and the position in its header agree with pg_control, with its
name, and with what the source has in the repository.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

from strongroom.errors import Refused, UsageError
from strongroom.format.wal import SegmentFacts, SegmentName, WalKind, kind_of, parse_history
from strongroom.postgres.physical.control import ControlFile
from strongroom.postgres.wal.directory import DataDirectory
from strongroom.repository.wal import Put, WalStore

SMALL = 1024 * 1024  # bytes; history and label files have some hundred
_LONG_HEADER = struct.Struct("<HHIQIxxxxQII")
_LONG = 2
MAGICS = {0xD106: 13, 0xD10D: 14, 0xD110: 15, 0xD113: 16, 0xD116: 17, 0xD118: 18}


@dataclass(frozen=True, slots=True)
class Pushed:
    """A file that is durable in the repository, and whether it was there before."""

    name: str
    put: Put


def file_name(path: str) -> str:
    """The name of the file at `path`; UsageError when PostgreSQL archives no such file."""
    name = path.rsplit("/", 1)[-1]
    try:
        kind_of(name)
    except ValueError:
        raise UsageError(
            f"{path!r} is no file that PostgreSQL archives.",
            do="Write archive_command = 'strongroom wal push %p'.",
        ) from None
    return name


class Pusher:
    """Takes files into one repository. Safe for many threads."""

    def __init__(self, store: WalStore, *, accept_system: bool = False) -> None:
        self._store, self._accept = store, accept_system
        self._known: set[tuple[str, int]] = set()
        self._lock = threading.Lock()

    def push(self, directory: DataDirectory, path: str, source: str) -> Pushed:
        """Take the file at `path` in a data directory; durable when this returns."""
        name = file_name(path)
        kind = kind_of(name)
        control = directory.control()
        self._check_source(source, control.system_id)
        if kind in (WalKind.SEGMENT, WalKind.PARTIAL):
            data = directory.read(path, control.wal_segment_size)
            _check_segment(name, data, control, directory.major())
            facts = self._facts(directory, path, name, data, control)
        else:
            data = directory.read(path, SMALL)
            _check_small(name, kind, data)
            facts = None
        put = self._store.put(control.system_id, name, memoryview(data), facts=facts)
        return Pushed(name, put)

    def _facts(
        self, directory: DataDirectory, path: str, name: str, data: bytes, control: ControlFile
    ) -> SegmentFacts | None:
        return None

    def _check_source(self, source: str, system_id: int) -> None:
        """A source is one system, until somebody says that it has become another one."""
        if (source, system_id) in self._known:
            return
        with self._lock:
            systems = self._store.systems(source)
            if systems and system_id not in systems and not self._accept:
                raise Refused(
                    f"The source {source} is system {systems[-1]}; this server is system"
                    f" {system_id}.",
                    means="Nothing was archived, and the server keeps its WAL: mixed with the other"
                    " system's it would make both unrecoverable.",
                    do="If the cluster was made anew or upgraded, run this once in its data"
                    f" directory: `strongroom wal push --source {source} --accept-system"
                    " pg_wal/FILE`. If not, name the right source in archive_command.",
                )
            if system_id not in systems:
                self._store.bind(source, system_id)
            self._known.add((source, system_id))


def _check_segment(name: str, data: bytes, control: ControlFile, major: int) -> None:
    size = control.wal_segment_size
    if len(data) != size:
        raise _foreign(name, f"it has {len(data):,} bytes; segments of this server have {size:,}")
    magic, info, timeline, address, _, system_id, segment_size, _ = _LONG_HEADER.unpack_from(data)
    segment = SegmentName.parse(name, size)
    if not info & _LONG or MAGICS.get(magic, major) != major:
        raise _foreign(name, f"it does not begin as WAL of PostgreSQL {major} does")
    if system_id != control.system_id:
        raise _foreign(name, f"it is of system {system_id}; this server is {control.system_id}")
    if segment_size != size:
        raise _foreign(name, f"it was written with segments of {segment_size:,} bytes")
    if address != segment.start:
        raise _foreign(name, "its first page belongs elsewhere in the log")
    # The first segment of a timeline begins with a copy of its parent's: an older one is right.
    if not 0 < timeline <= segment.timeline:
        raise _foreign(name, f"its first page is of timeline {timeline}")


def _check_small(name: str, kind: WalKind, data: bytes) -> None:
    if kind is WalKind.LABEL:
        if b"START WAL LOCATION: " not in data:
            raise _foreign(name, "it tells of no backup")
        return
    try:
        forks = parse_history(data)
    except ValueError as fault:
        raise _foreign(name, str(fault)) from None
    if not forks or forks[-1].timeline >= int(name[:8], 16):
        raise _foreign(name, "it does not tell where its timeline comes from")


def _foreign(name: str, reason: str) -> Refused:
    return Refused(
        f"{name} was not archived: {reason}.",
        means="Nothing was stored; the server keeps the file and tries again.",
        do="Find out who put the file there; `pg_waldump` shows what is in it.",
    )


Push = Callable[[DataDirectory, str, str], Pushed]

__all__ = ["Push", "Pushed", "Pusher", "file_name"]
