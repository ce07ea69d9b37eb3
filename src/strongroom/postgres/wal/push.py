"""archive_command: one file of pg_wal into the repository, looked at before it is taken.

Rule: what is returned from is durable; whatever is in doubt is refused, because the server then
keeps the file and says so in its log. A file is taken only if it is of this server: the system
identifier, the sizes, the page magic and the position in its header agree with pg_control, with its
name, and with what the source has in the repository.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from strongroom.errors import Refused, StrongroomError, UsageError, WalConflict
from strongroom.format.wal import SegmentFacts, SegmentName, WalKind, kind_of, parse_history
from strongroom.postgres.wal.directory import DataDirectory
from strongroom.postgres.wal.records import Carry, read_header, scan_segment
from strongroom.repository.wal import SUMMARY_FILES, Put, WalStore

SMALL = 1024 * 1024  # bytes; history and label files have some hundred
_CARRIES = 256  # what so many segments left to the next one is kept


@dataclass(frozen=True, slots=True)
class Pushed:
    """A file that is durable in the repository, and whether it was there before."""

    name: str
    put: Put


class Identity(Protocol):
    """What tells whose a segment is, and how long; pg_control says it, and so does a server."""

    @property
    def system_id(self) -> int: ...
    @property
    def wal_segment_size(self) -> int: ...


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
    """Takes files into one repository. Safe for many threads.

    One that `lasts` sums up what it has stored, now and then, so that listings need not read all.
    """

    def __init__(
        self, store: WalStore, *, accept_system: bool = False, lasts: bool = False
    ) -> None:
        self._store, self._accept, self._lasts = store, accept_system, lasts
        self._stored: Counter[tuple[int, int]] = Counter()
        self._known: set[tuple[str, int]] = set()
        self._lock = threading.Lock()
        self._carries = _Carries()

    def push(self, directory: DataDirectory, path: str, source: str) -> Pushed:
        """Take the file at `path` in a data directory; durable when this returns."""
        control = directory.control()
        self.check_source(source, control.system_id)
        name, data, facts = self._taken(directory, path, control)
        put = self._store.put(control.system_id, name, memoryview(data), facts=facts)
        if self._lasts and put is Put.STORED:
            self._sum_up(control.system_id, int(name[:8], 16))
        return Pushed(name, put)

    def examine(self, directory: DataDirectory, path: str, source: str) -> None:
        """Look at everything that `push` looks at, and store nothing: raises what it would."""
        control = directory.control()
        self._check_system(source, control.system_id)
        name, data, _ = self._taken(directory, path, control)
        if self._store.holds(control.system_id, name, memoryview(data)) is False:
            raise WalConflict(f"{name} rests in the repository with other content.")

    def _taken(
        self, directory: DataDirectory, path: str, control: Identity
    ) -> tuple[str, bytes, SegmentFacts | None]:
        """The file at `path`, looked at: its name, its content, and what a segment holds."""
        name = file_name(path)
        kind = kind_of(name)
        if kind not in (WalKind.SEGMENT, WalKind.PARTIAL):
            data = directory.read(path, SMALL)
            _check_small(name, kind, data)
            return name, data, None
        segment = _segment(name, control)
        with self._carries.of(control.system_id, segment, kind) as leave:
            data = directory.read(path, control.wal_segment_size)
            _check_segment(name, data, control, directory.major())
            before = self._before(directory, path, control, segment)
            facts, carry = scan_segment(data, segment, before)
            leave(carry)
        return name, data, facts

    def put(
        self,
        control: Identity,
        name: str,
        data: memoryview,
        source: str,
        *,
        major: int = 0,
        earlier: Callable[[SegmentName], Carry | None] | None = None,
    ) -> Pushed:
        """Take a file that a server sent; durable when this returns.

        `major` is not looked at when it is 0; `earlier` says what the segment before left to the
        one that it is asked of, where nobody has seen that one here.
        """
        kind = kind_of(file_name(name))
        self.check_source(source, control.system_id)
        facts = None
        if kind in (WalKind.SEGMENT, WalKind.PARTIAL):
            segment = _segment(name, control)
            with self._carries.of(control.system_id, segment, kind) as leave:
                _check_segment(name, data, control, major)
                last = SegmentName(segment.timeline, max(segment.number - 1, 0), segment.size)
                known, before = self._carries.left_by(control.system_id, last)
                if not known and earlier is not None:
                    before = earlier(segment)
                facts, carry = scan_segment(data, segment, before)
                leave(carry)
        else:
            _check_small(name, kind, bytes(data))
        return Pushed(name, self._store.put(control.system_id, name, data, facts=facts))

    def _sum_up(self, system_id: int, timeline: int) -> None:
        """In a thread of its own: nobody waits for it, and nothing is lost where it fails."""
        with self._lock:
            self._stored[system_id, timeline] += 1
            due = self._stored[system_id, timeline] % SUMMARY_FILES == 1
        if due:
            call = partial(self._store.summarise, system_id, timeline)
            threading.Thread(target=_quietly, args=(call,), daemon=True).start()

    def _before(
        self, directory: DataDirectory, path: str, control: Identity, segment: SegmentName
    ) -> Carry | None:
        """What the segment before left to this one; that is read again where nobody has seen it."""
        if not segment.number:
            return None
        earlier = SegmentName(segment.timeline, segment.number - 1, segment.size)
        known, carry = self._carries.left_by(control.system_id, earlier)
        if known:
            return carry
        folder, slash, _ = path.rpartition("/")
        try:
            data = directory.read(f"{folder}{slash}{earlier}", segment.size)
            _check_segment(str(earlier), data, control, directory.major())
        except StrongroomError:  # removed or recycled by now
            return None
        return scan_segment(data, earlier)[1]

    def check_source(self, source: str, system_id: int) -> None:
        """A source is one system, until somebody says that it has become another one."""
        if (source, system_id) in self._known:
            return
        with self._lock:
            if not self._check_system(source, system_id):
                self._store.bind(source, system_id)
            self._known.add((source, system_id))

    def _check_system(self, source: str, system_id: int) -> bool:
        """Whether a source is known as this system; Refused when it is another."""
        systems = self._store.systems(source)
        if systems and system_id not in systems and not self._accept:
            raise Refused(
                f"The source {source} is system {systems[-1]}; this server is system {system_id}.",
                means="Nothing was archived, and the server keeps its WAL: mixed with the other"
                " system's it would make both unrecoverable.",
                do="If the cluster was made anew or upgraded, run this once: `strongroom backup"
                f" {source} --accept-system`. If not, name the right source in archive_command.",
            )
        return system_id in systems


def _quietly(call: Callable[[], object]) -> None:
    with suppress(StrongroomError):
        call()


class _Carries:
    """What segments leave to the next ones, while several of them are read side by side."""

    def __init__(self) -> None:
        self._left: OrderedDict[tuple[int, str], Carry | None] = OrderedDict()
        self._reading: set[tuple[int, str]] = set()
        self._changed = threading.Condition()

    @contextmanager
    def of(
        self, system_id: int, segment: SegmentName, kind: WalKind
    ) -> Iterator[Callable[[Carry | None], None]]:
        """While a segment is read; the call that is yielded tells what it leaves."""
        key = system_id, str(segment)
        whole = kind is WalKind.SEGMENT

        def leave(carry: Carry | None) -> None:
            if whole:
                with self._changed:
                    self._left[key] = carry
                    while len(self._left) > _CARRIES:
                        self._left.popitem(last=False)

        with self._changed:
            if whole:
                self._reading.add(key)
        try:
            yield leave
        finally:
            with self._changed:
                self._reading.discard(key)
                self._changed.notify_all()

    def left_by(self, system_id: int, segment: SegmentName) -> tuple[bool, Carry | None]:
        """Whether it is known what a segment left, and what; waits for one that is being read."""
        key = system_id, str(segment)
        with self._changed:
            self._changed.wait_for(lambda: key in self._left or key not in self._reading)
            return key in self._left, self._left.get(key)


def _segment(name: str, control: Identity) -> SegmentName:
    try:
        return SegmentName.parse(name, control.wal_segment_size)
    except ValueError as fault:
        raise _foreign(name, str(fault)) from None


def _check_segment(name: str, data: bytes | memoryview, control: Identity, major: int) -> None:
    size = control.wal_segment_size
    if len(data) != size:
        raise _foreign(name, f"it has {len(data):,} bytes; segments of this server have {size:,}")
    try:
        header = read_header(data)
    except ValueError as fault:
        raise _foreign(name, str(fault)) from None
    segment = _segment(name, control)
    if header.system_id != control.system_id:
        raise _foreign(
            name, f"it is of system {header.system_id}; this server is {control.system_id}"
        )
    if major and header.major != major:
        raise _foreign(name, f"it was written by PostgreSQL {header.major}; this is {major}")
    if header.segment_size != size:
        raise _foreign(name, f"it was written with segments of {header.segment_size:,} bytes")
    if header.start != segment.start:
        raise _foreign(name, "its first page belongs elsewhere in the log")
    # The first segment of a timeline begins with a copy of its parent's: an older one is right.
    if not 0 < header.timeline <= segment.timeline:
        raise _foreign(name, f"its first page is of timeline {header.timeline}")


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

__all__ = ["Identity", "Push", "Pushed", "Pusher", "file_name"]
