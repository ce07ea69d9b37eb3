"""A whole cluster as a Source, read on its own host: PostgreSQL 13 to 18, while it runs.

The order is what makes the copy one that recovers: pg_backup_start; list; read everything; pg_control
last; pg_backup_stop, whose backup_label goes into the copy byte for byte; the WAL from start to stop
into the archive. Nothing is written on the server's side. Every backup is a whole one: what is
skipped as unchanged (`changes.py`) relies on chunks that are here already.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any

from strongroom.errors import ConfigError, Damaged, Refused, StrongroomError
from strongroom.format.content import whole
from strongroom.format.tree import Entry, Kind
from strongroom.postgres.physical import changes, external, layout
from strongroom.postgres.physical.bracket import Bracket, Stopped
from strongroom.postgres.physical.changes import Context, Kept, LastBackup, ThisBackup
from strongroom.postgres.physical.control import FILE_SIZE, ControlFile
from strongroom.postgres.physical.crc import crc32c
from strongroom.postgres.physical.facts import (
    DATA,
    LABEL,
    MANIFEST,
    MAP,
    TABLESPACES,
    BadPage,
    PhysicalFacts,
    Tablespace,
)
from strongroom.postgres.physical.label import parse_map
from strongroom.postgres.physical.layout import Fork
from strongroom.postgres.physical.manifest import File, Manifest, WalRange
from strongroom.postgres.physical.pages import OddPage, bad_page, judge
from strongroom.postgres.physical.reading import FileRead, Pages, Reading
from strongroom.postgres.physical.wal_copy import PATIENCE, WalArchive, WalCopied, WalCopy
from strongroom.postgres.physical.walk import FileFound, Listing, Walk
from strongroom.postgres.server import Conninfo
from strongroom.progress import Progress
from strongroom.repository.ports import Lane, Problem, Session, Taken

_CONTROL_LOOKS = 100
_CONTROL_PAUSE = 0.02
_REUSE_BATCH = 256
_NAMED_BAD_PAGES = 1000
_SAME_START_SECONDS = 60.0


def default_jobs() -> int:
    """Threads that read when nothing is configured: one for each core, eight at most."""
    return max(1, min(8, os.cpu_count() or 1))


def find_data_directory(told: str | None, configured: str | None) -> bytes:
    """The data directory: what is configured, else what the server says; ConfigError for neither."""
    chosen = configured or told
    if not chosen:
        raise ConfigError(
            "The server does not tell this role where its data directory is.",
            do="GRANT pg_read_all_settings to the role, or write `data_directory` under the source.",
        )
    return os.path.realpath(os.fsencode(chosen))


def is_local(dsn: str, *, password: str | None = None, data_directory: str | None = None) -> bool:
    """Can the cluster that `dsn` leads to be read here? Raises what connecting raises."""
    with Bracket(Conninfo.parse(dsn, password=password)) as bracket:
        told = data_directory or bracket.settings().get("data_directory")
        if not told:
            return False
        try:
            directory = os.path.realpath(os.fsencode(told))
            control, _ = read_control(directory)
            _check_same(directory, control, bracket)
        except Refused:
            return False
    return True


def check_directory(conninfo: Conninfo, data_directory: str) -> None:
    """Refused where a data directory cannot be read, or is not that of the server that answers."""
    directory = os.path.realpath(os.fsencode(data_directory))
    with Bracket(conninfo) as bracket:
        control, _ = read_control(directory)
        _check_same(directory, control, bracket)


@dataclass
class _Run:
    """What the threads of one backup share."""

    session: Session
    progress: Progress
    bracket: Bracket
    directory: bytes
    control: ControlFile
    problems: list[Problem] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    files: list[tuple[FileFound, int, Kept]] = field(default_factory=list)  # without their ids
    counts: Counter[str] = field(default_factory=Counter)
    written: ThisBackup | None = None
    trusted_before: int = 0
    believed: frozenset[int] = frozenset()  # devices
    doubt: str = ""  # why nothing was taken as unchanged

    def told(self, path: bytes, reason: str) -> None:
        """Note what is not in the backup, and tell of it."""
        with self.lock:
            self.problems.append(Problem(path, reason))
        self.progress.problem(path, reason)

    def keeps(self, found: FileFound) -> bool:
        """May what is stored of this file be believed at the next backup?"""
        return (
            found.relation is not None
            and found.relation.fork is Fork.MAIN
            and found.device in self.believed
            and found.changed < self.trusted_before
        )

    def took(self, one: FileRead) -> None:
        """A file is read."""
        if one.lost:
            self.told(one.found.tree, one.lost)
            return
        if one.kept is None:
            self.counts["vanished"] += 1
            return
        if self.written is not None and self.keeps(one.found) and not one.shrunk:
            self.written.add(one.found.path, one.kept)
        with self.lock:
            self.files.append((one.found, one.size, replace(one.kept, ids=b"")))
            if one.shrunk:
                self.counts["shrunk"] += 1

    def same(self, found: FileFound, kept: Kept) -> None:
        """A file is as it was."""
        self.files.append((found, found.size, replace(kept, ids=b"")))
        if found.size:
            self.counts["unchanged"] += 1
        self.progress.advance(size=found.size, files=1)
        if self.written is not None and self.keeps(found):
            self.written.add(found.path, kept)


class LocalSource:
    """The cluster that `dsn` leads to, as a source; see `ports.Source`.

    `data_directory` is needed where the role may not ask for it. `external` are paths of
    configuration to keep besides those that the server names. `cache_dir` holds the change cache of
    `repository` (its id); without it every file is read. `archive` gets the WAL that is not in it
    yet; a standby waits up to `patience` seconds for its primary to end the last segment.
    """

    kind = "postgres"

    def __init__(
        self,
        name: str,
        dsn: str,
        *,
        password: str | None = None,
        data_directory: str | None = None,
        external: Sequence[str] = (),
        jobs: int | None = None,
        cache_dir: bytes | None = None,
        repository: str = "",
        archive: WalArchive | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.name = name
        self._conninfo = Conninfo.parse(dsn, password=password)
        self._configured = data_directory
        self._external = tuple(os.fsencode(path) for path in external)
        self._jobs = jobs or default_jobs()
        self._cache_dir, self._repository = cache_dir, repository
        self._archive, self._patience = archive, patience
        self._written: ThisBackup | None = None

    def __repr__(self) -> str:
        return f"<LocalSource {self.name}: {self._conninfo.where}>"

    def settled(self) -> None:
        """The snapshot is committed: the new change cache replaces the old one."""
        if self._written is not None:
            self._written.replace()
            self._written = None

    def _drop(self) -> None:
        if self._written is not None:
            self._written.discard()
            self._written = None

    # -- what is there ---------------------------------------------------------------------

    def probe(self) -> dict[str, Any]:
        """Connect, look at the data directory, change nothing: for `source test`."""
        with Bracket(self._conninfo) as bracket:
            directory, control = self._find(bracket)
            return {
                "server": bracket.server.as_json(),
                "method": "physical",
                "via": "local",
                "data_directory": directory.decode("utf-8", "backslashreplace"),
                "system_id": str(control.system_id),
                "timeline": control.timeline,
                "checksums": bool(control.checksum_version),
            }

    def _find(self, bracket: Bracket) -> tuple[bytes, ControlFile]:
        """The data directory of this very server, and its pg_control."""
        settings = bracket.settings()
        directory = find_data_directory(settings.get("data_directory"), self._configured)
        control, _ = read_control(directory)
        _check_same(directory, control, bracket)
        return directory, control

    # -- a backup --------------------------------------------------------------------------

    def back_up(self, session: Session, *, progress: Progress) -> Taken:
        """Push the cluster into the session; see `ports.Source`."""
        self._drop()
        progress.phase("connecting")
        try:
            with Bracket(self._conninfo) as bracket:
                directory, control = self._find(bracket)
                return self._take(_Run(session, progress, bracket, directory, control))
        except BaseException:
            self._drop()
            raise

    def _take(self, run: _Run) -> Taken:
        bracket, control, phase = run.bracket, run.control, run.progress.phase
        if self._archive is not None:
            self._archive.expect(control.system_id)
        kept = self._external_files(run)
        now = changes.clocks()
        phase("waiting for a checkpoint")
        bracket.begin()
        phase("listing files")
        listing = self._list(run)
        try:
            context = _begin_to_believe(run, listing, now)
            self._read_all(listing, context, run)
            phase("reading pg_control")
            last_control, data = read_control(run.directory)
            if last_control.system_id != control.system_id:
                raise StrongroomError("pg_control became another cluster's during the backup.")
            phase("ending the backup")
            stopped = bracket.end()
            self._check_stop(stopped, bracket, last_control)
            wal = self._copy_wal(stopped, run)
            if run.written is not None:
                run.written.finish(replace(context, stop_lsn=stopped.lsn))
            return self._tree(listing, data, stopped, kept, wal, run)
        finally:
            listing.close()

    def _external_files(self, run: _Run) -> external.External:
        said = [os.fsencode(path) for path in run.bracket.configuration_files()]
        return external.keep(
            self._external, said, inside=run.directory, lane=run.session.lane(), told=run.told
        )

    @staticmethod
    def _list(run: _Run) -> Listing:
        emptied = set(layout.EMPTIED)
        statistics = run.bracket.settings().get("stats_temp_directory")
        if statistics and not os.path.isabs(statistics):
            emptied.add(os.path.normpath(os.fsencode(statistics)))
        return Walk(
            run.directory,
            major=run.bracket.server.major,
            catalog_version=run.control.catalog_version,
            told=run.told,
            emptied=frozenset(emptied),
        ).run()

    def _read_all(self, listing: Listing, context: Context, run: _Run) -> None:
        """Read what has changed."""
        control = run.control
        files = [found for found in listing.files if found.path != layout.CONTROL_FILE]
        run.progress.plan(size=sum(found.size for found in files), files=len(files))
        cache, whose = self._cache(run.directory)
        self._written = run.written = ThisBackup(cache, whose)
        last = LastBackup(cache, whose)
        try:
            if last.context is None:
                run.doubt = run.doubt or "there is no change cache"
            elif not run.doubt:
                start = run.bracket.start_lsn
                run.doubt = changes.doubt(last.context, context, start_lsn=start)
            if not run.doubt:
                run.progress.phase("looking for what has not changed")
                files = _unlike(files, last, run)
        finally:
            last.close()
        run.progress.phase("reading files")
        pages = Pages(control.block_size, control.segment_blocks, bool(control.checksum_version))
        reading = Reading(files, pages, progress=run.progress, done=run.took)
        self._threads(reading, run)

    def _threads(self, reading: Reading, run: _Run) -> None:
        lanes = [run.session.lane() for _ in range(self._jobs)]
        with ThreadPoolExecutor(self._jobs, "pg-read") as pool:
            try:
                pending = {pool.submit(reading.work, lane) for lane in lanes}
                while pending:
                    done, pending = wait(pending, timeout=1.0, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    run.bracket.check()
            except BaseException:
                reading.stop()
                raise

    def _cache(self, directory: bytes) -> tuple[bytes | None, bytes]:
        whose = changes.identity(self._repository, self.name, directory)
        if self._cache_dir is None:
            return None, whose
        name = self.name.encode() + b"." + whose[:8].hex().encode() + b".physical"
        return os.path.join(self._cache_dir, name), whose

    @staticmethod
    def _check_stop(stopped: Stopped, bracket: Bracket, control: ControlFile) -> None:
        label = stopped.label
        if label.timeline != control.timeline and not label.from_standby:
            raise StrongroomError(
                f"The backup began on timeline {label.timeline} and pg_control is on"
                f" {control.timeline}.",
                do="Run the same command again.",
            )
        if label.from_standby and control.min_recovery_timeline not in (0, label.timeline):
            raise StrongroomError(
                "The primary of the standby changed its timeline during the backup.",
                do="Run the same command again.",
            )
        if label.from_standby != bracket.server.standby:
            raise StrongroomError(
                "The server changed between standby and primary during the backup.",
                do="Run the same command again.",
            )

    def _copy_wal(self, stopped: Stopped, run: _Run) -> WalCopied | None:
        if self._archive is None:
            return None
        run.progress.phase("copying WAL")
        copy = WalCopy(
            self._archive,
            run.directory,
            system_id=run.control.system_id,
            segment_size=run.control.wal_segment_size,
            replayed=run.bracket.replayed if run.bracket.server.standby else None,
            patience=self._patience,
            progress=run.progress,
        )
        return copy.run(stopped.label.timeline, stopped.label.start, stopped.lsn)

    # -- the snapshot ----------------------------------------------------------------------

    def _tree(
        self,
        listing: Listing,
        control: bytes,
        stopped: Stopped,
        kept: external.External,
        wal: WalCopied | None,
        run: _Run,
    ) -> Taken:
        bad = self._bad_pages(stopped, run)
        root = next(entry for entry in listing.directories if entry.path == DATA)
        ours = _Ours(run.session.lane(), root, stopped)
        (found,) = [one for one in listing.files if one.path == layout.CONTROL_FILE]
        ours.add(found.tree, control, like=found)
        ours.add(LABEL, stopped.backup_label)
        if stopped.tablespace_map:
            ours.add(MAP, stopped.tablespace_map)
        ours.add(MANIFEST, _manifest(ours.files, stopped, run))
        entries = [*listing.directories, *ours.entries, *kept.entries]
        if listing.tablespaces:
            entries.append(Entry(TABLESPACES, Kind.DIRECTORY, 0o700, root.uid, root.gid))
        entries += (one.entry(size, what.content) for one, size, what in run.files)
        entries.sort(key=lambda entry: entry.path)
        for entry in entries:
            run.session.tree.add(entry)
        facts = self._facts(listing, stopped, kept.paths, bad, wal, run)
        files = [entry for entry in entries if entry.kind is Kind.FILE]
        size = sum(entry.size for entry in files)
        return Taken(len(files), size, facts.as_json(), tuple(run.problems), facts.log())

    @staticmethod
    def _bad_pages(stopped: Stopped, run: _Run) -> tuple[BadPage, ...]:
        """Judge the pages that did not fit, and tell of each file that has bad ones."""
        odd = [(found.tree, page) for found, _, kept in run.files for page in kept.odd]
        by_file: dict[bytes, list[OddPage]] = {}
        start = stopped.label.start
        for path, page in judge(odd, start=start, stop=stopped.lsn):
            by_file.setdefault(path, []).append(page)
        for path, pages in sorted(by_file.items()):
            blocks = ", ".join(str(page.block) for page in pages[:5])
            more = f" and {len(pages) - 5} more" if len(pages) > 5 else ""
            run.told(
                path,
                f"checksums are wrong on the server, kept as they are: block {blocks}{more}",
            )
        return tuple(
            bad_page(path, page) for path, pages in sorted(by_file.items()) for page in pages
        )

    @staticmethod
    def _facts(
        listing: Listing,
        stopped: Stopped,
        outside: tuple[bytes, ...],
        bad: tuple[BadPage, ...],
        wal: WalCopied | None,
        run: _Run,
    ) -> PhysicalFacts:
        bracket, control = run.bracket, run.control
        sizes: Counter[str] = Counter()
        for found, size, _ in run.files:
            sizes[found.relation.fork.value if found.relation else "other"] += size
        notes: dict[str, Any] = dict(run.counts)
        if run.doubt:
            notes["all_read"] = run.doubt
        if run.written is not None and run.written.fault:
            notes["change_cache"] = run.written.fault
        if wal is not None:
            notes["wal"] = wal.as_json()
        if len(bad) > _NAMED_BAD_PAGES:
            notes["bad_pages"] = len(bad)
        return PhysicalFacts(
            via="local",
            server=bracket.server.as_json(),
            system_id=control.system_id,
            timeline=stopped.label.timeline,
            start_lsn=stopped.label.start,
            stop_lsn=stopped.lsn,
            redo_lsn=stopped.label.start,
            checkpoint_lsn=stopped.label.checkpoint,
            start_time=bracket.start_time,
            stop_time=stopped.time,
            backup_label=stopped.backup_label,
            tablespace_map=stopped.tablespace_map,
            wal_segment_size=control.wal_segment_size,
            block_size=control.block_size,
            segment_blocks=control.segment_blocks,
            checksums=bool(control.checksum_version),
            bad_pages=bad[:_NAMED_BAD_PAGES],
            from_standby=stopped.label.from_standby,
            tablespaces=_all_tablespaces(listing, stopped.tablespace_map),
            external=outside,
            left_out=dict(listing.left_out),
            size_by_kind=dict(sizes),
            notes=notes,
        )


class _Ours:
    """Small files of the copy that are not as they are on the server, or come last."""

    def __init__(self, lane: Lane, root: Entry, stopped: Stopped) -> None:
        self._lane, self._root = lane, root
        self._mtime = int(stopped.time.timestamp()) * 1_000_000_000
        self.entries: list[Entry] = []
        self.files: list[File] = []

    def add(self, path: bytes, data: bytes, *, like: FileFound | None = None) -> None:
        """Store one; `like` gives it the facts of a file, otherwise it is the data directory's
        owner's."""
        if len(data) <= 64 * 1024:
            content = whole(self._lane.put_small([data])[0])
        else:
            stream = self._lane.content()
            stream.write(data)
            content = stream.finish().content
        if like is None:
            root = self._root
            mode = 0o640 if root.mode & 0o050 else 0o600
            entry = Entry(
                path, Kind.FILE, mode, root.uid, root.gid, self._mtime, len(data), content
            )
        else:
            entry = like.entry(len(data), content)
        self.entries.append(entry)
        modified = entry.mtime_ns // 1_000_000_000
        self.files.append(File.summed(path[len(DATA) + 1 :], len(data), modified, crc32c(data)))


def _manifest(ours: Sequence[File], stopped: Stopped, run: _Run) -> bytes:
    files = [
        File.summed(found.path, size, found.entry(0, b"").mtime_ns // 1_000_000_000, kept.crc)
        for found, size, kept in run.files
    ]
    files = sorted([*files, *ours], key=lambda file: file.path)
    ranges = (WalRange(stopped.label.timeline, stopped.label.start, stopped.lsn),)
    system_id = run.control.system_id if run.bracket.server.major >= 17 else None
    return Manifest(files, ranges, system_id).encode()


def _all_tablespaces(listing: Listing, spaces: bytes) -> tuple[Tablespace, ...]:
    """Those that were listed and those that the server told: one may have come or gone since."""
    told = {space.oid: space for space in parse_map(spaces)}
    listed = {space.oid: space for space in listing.tablespaces}
    return tuple(one for _, one in sorted((listed | told).items(), key=lambda row: int(row[0])))


def _unlike(files: Sequence[FileFound], last: LastBackup, run: _Run) -> list[FileFound]:
    """The files that must be read; the others are taken as they were, where all of them is here."""
    todo: list[FileFound] = []
    some: list[tuple[FileFound, Kept]] = []

    def settle() -> None:
        here = run.session.reuse([kept.ids for _, kept in some])
        for (found, kept), good in zip(some, here, strict=True):
            if good:
                run.same(found, kept)
            else:
                todo.append(found)
        some.clear()

    for found in files:
        if not run.keeps(found) or last.key(found.path) != found.key:
            todo.append(found)
            continue
        kept = last.find(found.path)
        if kept is None or kept.key != found.key:
            todo.append(found)
            continue
        some.append((found, kept))
        if len(some) >= _REUSE_BATCH:
            settle()
    settle()
    return todo


def _begin_to_believe(run: _Run, listing: Listing, called: tuple[str, int, int]) -> Context:
    """What the change cache says of this backup, and which files may stand in it at all.

    `called` is what the clocks said before pg_backup_start was called.
    """
    standby, control = run.bracket.server.standby, run.control
    (boot, ahead, wall), (_, ahead_now, _) = called, changes.clocks()
    run.trusted_before = wall - (changes.MARGIN_STANDBY_NS if standby else changes.MARGIN_NS)
    run.doubt = _skew(run.directory, wall, standby=standby)
    if abs(ahead_now - ahead) > changes.STEP_NS:
        run.doubt = "the clock was set meanwhile"
    if not run.doubt:  # a mount below a root is another device, and not believed
        run.believed = frozenset(
            root.device for root in listing.roots if changes.is_believed(root.path)
        )
    sizes = control.block_size, control.segment_blocks
    return Context(control.system_id, control.timeline, boot, ahead, wall, 0, *sizes)


def _skew(directory: bytes, called: int, *, standby: bool) -> str:
    """Is the file system's clock not ours? pg_control has just been written by the checkpoint."""
    written = os.stat(os.path.join(directory, layout.CONTROL_FILE)).st_mtime_ns
    ahead = written > time.time_ns() + changes.STEP_NS
    behind = not standby and written < called - changes.STEP_NS
    return "the file system's clock is not this machine's" if ahead or behind else ""


def read_control(directory: bytes) -> tuple[ControlFile, bytes]:
    """Read pg_control, again while it is being written (trap 6); Damaged if it never fits."""
    path = os.path.join(directory, layout.CONTROL_FILE)
    for attempt in range(_CONTROL_LOOKS):
        if attempt:
            time.sleep(_CONTROL_PAUSE)
        try:
            with open(path, "rb") as file:
                data = file.read(FILE_SIZE)
            return ControlFile.parse(data), data
        except ValueError as fault:
            why = str(fault)
        except OSError as fault:
            raise Refused(
                f"The data directory {directory.decode('utf-8', 'backslashreplace')} cannot be"
                f" read: {fault.strerror}.",
                means="No snapshot was written; earlier snapshots are untouched.",
                do="Run on the database's host, as the account of the server or as root; from"
                ' elsewhere set via = "stream".',
            ) from None
    raise Damaged(
        f"pg_control of the server is not readable: {why}.",
        means="No snapshot was written. The cluster would not start again as it is.",
        do="Do not stop the server; look at its log and its disk.",
    )


def _check_same(directory: bytes, control: ControlFile, bracket: Bracket) -> None:
    """Is this the data directory of the server that answers? A clone has the same identifier."""
    told = bracket.server.system_identifier
    started, port = bracket.started_at()
    try:
        with open(os.path.join(directory, b"postmaster.pid"), "rb") as file:
            lines = file.read().split(b"\n")
        its_start, its_port = int(lines[2]), int(lines[3])
    except (OSError, ValueError, IndexError):
        its_start, its_port = 0, 0
    same = (told is None or int(told) == control.system_id) and port == its_port
    if not same or abs(its_start - started) > _SAME_START_SECONDS:
        shape = directory.decode("utf-8", "backslashreplace")
        raise Refused(
            f"{shape} is not the data directory of the server at {bracket.conninfo.where}.",
            means="No snapshot was written; earlier snapshots are untouched.",
            do='Correct `dsn` or `data_directory`; for a server on another host set via = "stream".',
        )


__all__ = ["LocalSource", "check_directory", "find_data_directory", "is_local", "read_control"]
