"""A whole cluster as a Source, from anywhere: by the replication protocol alone, 13 to 18.

One thread takes what the server sends and lays it back to back into runs; others hash and seal them
meanwhile. Nothing is kept on a disk of ours, and nothing but the protocol is needed: what the server
does not send (configuration outside the data directory) is not in the snapshot, and its facts say
so. The server judges page checksums; every file must be what PostgreSQL's own manifest says it is.
The order is the server's: tablespaces, the data directory with pg_control last, the manifest, the
stop; then the WAL from start to stop into the archive.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any
from zoneinfo import ZoneInfo

from strongroom.errors import Damaged, StrongroomError
from strongroom.format.content import whole
from strongroom.format.tree import Entry, Kind
from strongroom.postgres.physical import layout
from strongroom.postgres.physical.base_backup import BaseBackup, Member, Part
from strongroom.postgres.physical.control import ControlFile
from strongroom.postgres.physical.crc import combined, crc32c
from strongroom.postgres.physical.facts import (
    CONTROL,
    DATA,
    LABEL,
    MANIFEST,
    MAP,
    TABLESPACES,
    BadPage,
    PhysicalFacts,
    Tablespace,
)
from strongroom.postgres.physical.label import Label, parse_map
from strongroom.postgres.physical.local import default_jobs
from strongroom.postgres.physical.manifest import Manifest
from strongroom.postgres.physical.wal_copy import PATIENCE, WalCopied
from strongroom.postgres.physical.wal_stream import StreamedWal, WalStream
from strongroom.postgres.replication import (
    Notice,
    Replication,
    ServerError,
    StoppedWaiting,
    cannot_connect,
)
from strongroom.postgres.server import Conninfo, ServerFacts
from strongroom.progress import Progress
from strongroom.repository.ports import Lane, Problem, Session, Taken

RUN = 4 * 1024 * 1024
CHUNK = 64 * 1024
_KEPT = frozenset((LABEL, MAP, CONTROL))
_SETTINGS = ("data_checksums", "block_size", "wal_level", "max_connections", "TimeZone")
# The functions of the server that tell of wrong checksums; words may be in any language.
_CHECKSUM = frozenset(("verify_page_checksum", "sendFile", "verify_page_checksums"))
_QUOTED = re.compile('["„“«»\']([^"„“”«»]+)["“”«»\']')
_NUMBERS = re.compile(r"\b[0-9A-F]+\b")


@dataclass(slots=True)
class _File:
    """A file as it comes. Whoever stores the last of its runs ends it."""

    member: Member
    tree: bytes  # its path in the snapshot
    path: bytes  # its path as PostgreSQL writes it
    relation: bool
    ids: list[bytes]
    sums: list[tuple[int, int]]
    left: int
    content: bytes = b""
    crc: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class _Piece:
    """A stretch of a run: which part of which file."""

    file: _File
    number: int
    start: int
    end: int


class _Runs:
    """Runs on their way from the thread that receives to those that store."""

    def __init__(self, count: int) -> None:
        self.free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self.full: queue.SimpleQueue[tuple[memoryview, list[_Piece]] | None] = queue.SimpleQueue()
        self.failed = threading.Event()
        for _ in range(count):
            self.free.put(memoryview(bytearray(RUN)))

    def room(self) -> memoryview:
        """An empty run, when there is one."""
        while not self.failed.is_set():
            with contextlib.suppress(queue.Empty):
                return self.free.get(timeout=0.5)
        raise StoppedWaiting


class _Storing:
    """The threads that hash and seal."""

    def __init__(self, session: Session, runs: _Runs, jobs: int, progress: Progress) -> None:
        self._runs, self._progress = runs, progress
        self._fault: BaseException | None = None
        self._threads = [
            threading.Thread(
                target=self._work, args=(session.lane(),), name="pg-store", daemon=True
            )
            for _ in range(jobs)
        ]

    def __enter__(self) -> _Storing:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        if kind is not None:
            self._runs.failed.set()
        for _thread in self._threads:
            self._runs.full.put(None)
        for thread in self._threads:
            thread.join()
        if self._fault is not None and (kind is None or kind is StoppedWaiting):
            raise self._fault

    def _work(self, lane: Lane) -> None:
        try:
            while (job := self._runs.full.get()) is not None and not self._runs.failed.is_set():
                self._store(lane, *job)
                self._runs.free.put(job[0])
        except BaseException as fault:
            self._fault = fault
            self._runs.failed.set()

    def _store(self, lane: Lane, run: memoryview, pieces: Sequence[_Piece]) -> None:
        lengths: list[int] = []
        counts: list[int] = []
        for piece in pieces:
            size = piece.end - piece.start
            some, rest = divmod(size, CHUNK)
            lengths += [CHUNK] * some + ([rest] if rest else [])
            counts.append(some + (rest > 0))
            piece.file.sums[piece.number] = crc32c(run[piece.start : piece.end]), size
        ids = lane.put_run(run[: pieces[-1].end], lengths) if lengths else []
        for piece, end, count in zip(pieces, accumulate(counts), counts, strict=True):
            piece.file.ids[piece.number] = b"".join(ids[end - count : end])
            self._done(lane, piece.file)
        self._progress.advance(size=sum(lengths))

    def _done(self, lane: Lane, file: _File) -> None:
        with file.lock:
            file.left -= 1
            if file.left:
                return
        ids, size = b"".join(file.ids), file.member.size
        file.content = _content(lane, ids, size, pages=file.relation)
        file.crc = combined(file.sums)
        file.ids = []
        self._progress.advance(files=1)


def _content(lane: Lane, ids: bytes, size: int, *, pages: bool) -> bytes:
    if pages:
        return lane.pages_content(ids, size).content
    return whole(ids) if size else b""


@dataclass
class _Taking:
    """What one backup has brought so far."""

    session: Session
    progress: Progress
    files: list[_File] = field(default_factory=list)
    directories: list[Entry] = field(default_factory=list)
    kept: dict[bytes, bytes] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    spaces: list[str] = field(default_factory=list)

    def told(self, path: bytes, reason: str) -> None:
        """Note what is not as it should be, and tell of it."""
        self.problems.append(Problem(path, reason))
        self.progress.problem(path, reason)


class StreamSource:
    """The cluster that `dsn` leads to, as a source; see `ports.Source`.

    `archive` gets the WAL that is not in it yet; a standby waits up to `patience` seconds for its
    primary to end the last segment. `external` are paths that cannot be had: the facts say so.
    """

    kind = "postgres"

    def __init__(
        self,
        name: str,
        dsn: str,
        *,
        password: str | None = None,
        external: Sequence[str] = (),
        jobs: int | None = None,
        archive: StreamedWal | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.name = name
        self._conninfo = Conninfo.parse(dsn, password=password)
        self._external = tuple(external)
        self._jobs = jobs or default_jobs()
        self._archive, self._patience = archive, patience

    def __repr__(self) -> str:
        return f"<StreamSource {self.name}: {self._conninfo.where}>"

    def settled(self) -> None:
        """The snapshot is committed: nothing is kept from one run to the next."""

    # -- what is there ---------------------------------------------------------------------

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Replication]:
        replication = Replication(self._conninfo)
        try:
            replication.__enter__()
        except StrongroomError as fault:
            raise cannot_connect(fault) from None
        try:
            yield replication
        except BaseException as fault:
            replication.__exit__(type(fault), fault, None)
            raise
        replication.__exit__(None, None, None)

    def probe(self) -> dict[str, Any]:
        """Connect, change nothing: for `source test`."""
        with self._connected() as replication:
            system = replication.identify()
            return {
                "server": _server(replication, system.system_id).as_json(),
                "method": "physical",
                "via": "stream",
                "data_directory": "(by the replication protocol)",
                "system_id": str(system.system_id),
                "timeline": system.timeline,
                "checksums": replication.show("data_checksums") == "on",
            }

    # -- a backup --------------------------------------------------------------------------

    def back_up(self, session: Session, *, progress: Progress) -> Taken:
        """Push the cluster into the session; see `ports.Source`."""
        progress.phase("connecting")
        with self._connected() as replication:
            return self._take(replication, _Taking(session, progress))

    def _take(self, replication: Replication, taking: _Taking) -> Taken:
        progress = taking.progress
        system = replication.identify()
        if self._archive is not None:
            self._archive.expect(system.system_id)
        server = _server(replication, system.system_id)
        slot = self._reserve(replication)
        progress.phase("waiting for a checkpoint")
        backup = BaseBackup(replication)
        backup.begin()
        progress.plan(size=backup.size)
        progress.phase("receiving files")
        self._receive(replication, backup, taking)
        progress.phase("ending the backup")
        backup.finish()
        label, control = _understood(taking, backup, system.system_id)
        _check(taking, Manifest.parse(backup.manifest))
        bad = _bad_pages(taking, replication.notices)
        if backup.damaged and not taking.problems:
            taking.told(DATA, "checksums are wrong on the server, which does not tell where")
        progress.phase("fetching WAL")
        wal = WalStream(
            replication,
            self._archive,
            control,
            slot=None if backup.damaged else slot,  # an error ends temporary slots
            standby=label.from_standby,
            patience=self._patience,
            progress=progress,
        )
        copied = wal.run(label.timeline, label.start, backup.stop)
        facts = self._facts(taking, backup, label, control, server, bad, copied, wal.clock)
        return _tree(taking, backup, facts)

    @staticmethod
    def _reserve(replication: Replication) -> str | None:
        """Keep the WAL from here on; without a slot it is kept as the server's settings say."""
        name = f"strongroom_{os.getpid()}_{replication.process}"
        try:
            replication.reserve(name)
        except ServerError:
            return None  # no slot left: segments are looked for later
        return name

    def _receive(self, replication: Replication, backup: BaseBackup, taking: _Taking) -> None:
        runs = _Runs(2 * self._jobs + 2)
        replication.stopped = runs.failed.is_set
        with _Storing(taking.session, runs, self._jobs, taking.progress):
            receiving = _Receiving(runs, taking)
            for oid, part in backup.parts():
                receiving.take(oid, part, in_place=oid in backup.in_place)
            receiving.flush()
        replication.stopped = lambda: False

    def _facts(
        self,
        taking: _Taking,
        backup: BaseBackup,
        label: Label,
        control: ControlFile,
        server: ServerFacts,
        bad: tuple[BadPage, ...],
        wal: WalCopied,
        clock: datetime,
    ) -> PhysicalFacts:
        sizes: Counter[str] = Counter()
        for file in taking.files:
            one = layout.relation_at(file.path)
            sizes[one.fork.value if one else "other"] += file.member.size
        started = datetime.fromtimestamp(_mtime(taking), UTC)
        notes: dict[str, Any] = {
            "external": "configuration outside the data directory cannot be had by stream",
        }
        if self._external:
            notes["external_missing"] = list(self._external)
        if self._archive is not None:
            notes["wal"] = wal.as_json()
        spaces = {space.oid: space for space in backup.tablespaces}
        told = {space.oid: space for space in parse_map(taking.kept.get(MAP, b""))}
        return PhysicalFacts(
            via="stream",
            server=server.as_json() | {"standby": label.from_standby},
            system_id=control.system_id,
            timeline=label.timeline,
            start_lsn=label.start,
            stop_lsn=backup.stop,
            redo_lsn=label.start,
            checkpoint_lsn=label.checkpoint,
            start_time=_start_time(label, server) or started,
            stop_time=clock,
            backup_label=taking.kept[LABEL],
            tablespace_map=taking.kept.get(MAP, b""),
            wal_segment_size=control.wal_segment_size,
            block_size=control.block_size,
            segment_blocks=control.segment_blocks,
            checksums=bool(control.checksum_version),
            bad_pages=bad,
            from_standby=label.from_standby,
            tablespaces=_by_oid(spaces | told),
            left_out={},
            size_by_kind=dict(sizes),
            notes=notes,
        )


class _Receiving:
    """The thread that takes what the server sends, and lays it into runs."""

    def __init__(self, runs: _Runs, taking: _Taking) -> None:
        self._runs, self._taking = runs, taking
        self._lane = taking.session.lane()
        self._run = runs.room()
        self._at = 0
        self._pieces: list[_Piece] = []

    def take(self, oid: str | None, part: Part, *, in_place: bool = False) -> None:
        """Take one tar."""
        tree, path = DATA, b""
        if oid is not None and in_place:  # its directory comes with the data directory
            path = layout.tablespace_path(oid)
            tree = DATA + b"/" + path
        elif oid is not None:
            tree, path = TABLESPACES + b"/" + oid.encode("ascii"), layout.tablespace_path(oid)
            self._taking.spaces.append(oid)
        for member in part.members():
            where = tree + b"/" + member.name
            if member.kind == b"5":
                self._taking.directories.append(_directory(where, member))
            elif member.kind == b"0":
                below = path + b"/" + member.name if path else member.name
                self._file(where, below, member, part)
            elif not member.name.startswith(layout.TABLESPACE_LINKS + b"/"):
                self._taking.told(where, "it is a symbolic link, which is not in the backup")

    def flush(self) -> None:
        """Hand on the run that is not full."""
        if self._pieces:
            self._runs.full.put((self._run, self._pieces))
            self._run, self._pieces, self._at = self._runs.room(), [], 0

    def _file(self, tree: bytes, path: bytes, member: Member, part: Part) -> None:
        relation = layout.relation_at(path) is not None
        file = _File(member, tree, path, relation, [], [], 0)
        self._taking.files.append(file)
        if tree in _KEPT:
            self._keep(file, part)
        elif not relation and member.size > CHUNK:
            self._stream(file, part)
        elif member.size:
            self._pages(file, part)
        else:
            self._taking.progress.advance(files=1)

    def _pages(self, file: _File, part: Part) -> None:
        """Lay a file into runs. Where it goes on in another one is at a whole chunk of it."""
        size, at = file.member.size, 0
        ends = []
        if RUN - self._at < min(size, CHUNK):
            self.flush()
        room = RUN - self._at
        while at < size:
            step = min(size - at, room if room >= size - at else room // CHUNK * CHUNK)
            at += step
            ends.append(step)
            room = RUN
        file.ids, file.sums = [b""] * len(ends), [(0, 0)] * len(ends)
        file.left = len(ends)
        for number, step in enumerate(ends):
            if number:
                self.flush()
            part.fill(self._run[self._at : self._at + step])
            self._pieces.append(_Piece(file, number, self._at, self._at + step))
            self._at += step

    def _stream(self, file: _File, part: Part) -> None:
        """A long file that is no relation's: logs, mostly. Cut where its content says."""
        content, left, crc = self._lane.content(), file.member.size, 0
        while left:
            piece = part.some(left)
            if not piece:
                raise Damaged("The server ended a tar in the middle.")
            content.write(piece)
            crc = crc32c(piece, crc)
            left -= len(piece)
            self._taking.progress.advance(size=len(piece))
        file.content, file.crc = content.finish().content, crc
        self._taking.progress.advance(files=1)

    def _keep(self, file: _File, part: Part) -> None:
        """A file that we read ourselves, too."""
        if file.member.size > RUN:
            raise Damaged(f"The server sent {file.member.size:,} bytes as {file.path.decode()}.")
        data = bytearray(file.member.size)
        part.fill(memoryview(data))
        self._taking.kept[file.tree] = bytes(data)
        file.content, file.crc = _stored(self._lane, data), crc32c(data)
        self._taking.progress.advance(size=len(data), files=1)


def _stored(lane: Lane, data: bytes | bytearray) -> bytes:
    if not data:
        return b""
    if len(data) <= CHUNK:
        return whole(lane.put_small([data])[0])
    content = lane.content()
    content.write(data)
    return content.finish().content


def _directory(path: bytes, member: Member) -> Entry:
    mtime = member.mtime * 1_000_000_000
    return Entry(path, Kind.DIRECTORY, member.mode, member.uid, member.gid, mtime)


def _server(replication: Replication, system_id: int) -> ServerFacts:
    """What can be known without SQL."""
    settings = {
        name: value
        for name in (*_SETTINGS, "log_timezone", "data_directory_mode")
        if (value := replication.show(name))
    }
    version = replication.show("server_version").split()
    return ServerFacts(
        version[0] if version else str(replication.version // 10000),
        replication.version,
        str(system_id),
        replication.show("in_hot_standby") == "on",
        replication.show("is_superuser") == "on",
        settings,
        (),
    )


def _understood(taking: _Taking, backup: BaseBackup, system_id: int) -> tuple[Label, ControlFile]:
    """Read what recovery begins with; raise when it is not of this backup."""
    try:
        label = Label.parse(taking.kept.get(LABEL, b""))
        control = ControlFile.parse(taking.kept.get(CONTROL, b""))
    except ValueError as fault:
        raise Damaged(f"The backup that the server sent cannot be understood: {fault}.") from None
    if label.start != backup.start or label.incremental or control.system_id != system_id:
        raise Damaged("The server sent the backup_label or the pg_control of another backup.")
    if label.timeline != backup.timeline:
        raise StrongroomError(
            "The timeline of the server changed when the backup began.",
            do="Run the same command again.",
        )
    return label, control


def _check(taking: _Taking, manifest: Manifest) -> None:
    """Is what came what the server says it sent? Every file, by name, size and sum."""
    expected = {file.path: file for file in manifest.files}
    for file in taking.files:
        one = expected.pop(file.path, None)
        if one is None or one.size != file.member.size or one.crc not in (None, file.crc):
            shape = file.path.decode("utf-8", "backslashreplace")
            raise Damaged(
                f"{shape} is not what PostgreSQL's manifest of this backup says.",
                means="No snapshot was written; earlier snapshots are untouched.",
                do="Run the same command again; if it happens again, look at the network's hardware.",
            )
    if expected:
        shape = next(iter(expected)).decode("utf-8", "backslashreplace")
        raise Damaged(
            f"{shape} is in PostgreSQL's manifest of this backup, and was not sent.",
            means="No snapshot was written; earlier snapshots are untouched.",
            do="Run the same command again.",
        )


def _bad_pages(taking: _Taking, notices: Sequence[Notice]) -> tuple[BadPage, ...]:
    """The pages that the server warned of, and a problem for each file that has any."""
    by_path = {file.path: file for file in taking.files}
    pages: dict[bytes, list[BadPage]] = {}
    totals: dict[bytes, int] = {}
    for notice in notices:
        if notice.function not in _CHECKSUM:
            continue
        name = _QUOTED.search(notice.text)
        path = name[1].encode("utf-8", "replace").removeprefix(b"./") if name else b""
        file = by_path.get(path)
        if name is None or file is None:
            continue
        numbers = _NUMBERS.findall(notice.text[name.end() :])
        found = pages.setdefault(file.tree, [])
        if len(numbers) >= 3:
            block, calculated, on_page = int(numbers[0]), int(numbers[1], 16), int(numbers[2], 16)
            found.append(BadPage(file.tree, block, on_page, calculated))
        elif len(numbers) == 1:
            totals[file.tree] = int(numbers[0])
    for tree, found in sorted(pages.items()):
        blocks = ", ".join(str(page.block) for page in found)
        more = totals.get(tree, 0) - len(found)
        tail = f" and {more} more" if more > 0 else ""
        taking.told(
            tree, f"checksums are wrong on the server, kept as they are: block {blocks}{tail}"
        )
    return tuple(page for _, found in sorted(pages.items()) for page in found)


def _start_time(label: Label, server: ServerFacts) -> datetime | None:
    """When the backup began: backup_label has it in the zone of the server's log."""
    with contextlib.suppress(ValueError, KeyError, OSError):
        zone = ZoneInfo(str(server.settings.get("log_timezone", "")))
        return datetime.fromisoformat(label.start_time[:19]).replace(tzinfo=zone).astimezone(UTC)
    return None


def _mtime(taking: _Taking) -> int:
    (label,) = [file for file in taking.files if file.tree == LABEL]
    return label.member.mtime


def _by_oid(spaces: dict[str, Tablespace]) -> tuple[Tablespace, ...]:
    return tuple(one for _, one in sorted(spaces.items(), key=lambda row: int(row[0])))


def _tree(taking: _Taking, backup: BaseBackup, facts: PhysicalFacts) -> Taken:
    """Write the entries. The directories that the server does not send are as its own are."""
    (label,) = [file.member for file in taking.files if file.tree == LABEL]
    mode = 0o750 if label.mode & 0o040 else 0o700
    mtime = label.mtime * 1_000_000_000

    def made(path: bytes) -> Entry:
        return Entry(path, Kind.DIRECTORY, mode, label.uid, label.gid, mtime)

    entries = [made(DATA), *taking.directories]
    if taking.spaces:
        entries.append(made(TABLESPACES))
    entries += (made(TABLESPACES + b"/" + oid.encode("ascii")) for oid in taking.spaces)
    for file in taking.files:
        one = file.member
        entries.append(
            Entry(
                file.tree, Kind.FILE, one.mode, one.uid, one.gid,
                one.mtime * 1_000_000_000, one.size, file.content,
            )
        )  # fmt: skip
    content = _stored(taking.session.lane(), backup.manifest)
    size = len(backup.manifest)
    entries.append(
        Entry(MANIFEST, Kind.FILE, label.mode, label.uid, label.gid, mtime, size, content)
    )
    entries.sort(key=lambda entry: entry.path)
    for entry in entries:
        taking.session.tree.add(entry)
    files = [entry for entry in entries if entry.kind is Kind.FILE]
    total = sum(entry.size for entry in files)
    return Taken(len(files), total, facts.as_json(), tuple(taking.problems), facts.log())


__all__ = ["StreamSource"]
