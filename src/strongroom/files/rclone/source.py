"""A cloud folder as a Source: one listing, then only what is new is fetched, in bounded batches.

A file is taken as unchanged if the listing says of it what it said last time (size, time, id, and
hash where the remote has one at no cost), and the session says that every chunk is still there.
Without a hash its time must have been old enough when it was listed: the same-second rule of
`files.change_cache`. Small files come in batches into a private staging folder, one batch being
fetched while the one before it is stored; large ones, and what a batch did not bring, are read
as streams and hashed on the way.

What vanished, changed after the listing or cannot be read is a Problem. Names are rclone's own
(docs/how-to/back-up-a-cloud-folder.md), and there are no owners or modes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from strongroom.errors import (
    NotFound,
    StorageDenied,
    StorageFull,
    TargetFull,
    Unreachable,
)
from strongroom.files.change_cache import MARGIN_NS, LastRun, Memory, ThisRun, identity
from strongroom.files.patterns import Patterns, Verdict
from strongroom.files.rclone.staging import Staging
from strongroom.files.rclone.tool import PREFIX, Features, Item, Rclone, fault_of, join, shown
from strongroom.files.reading import SMALL_FILE
from strongroom.files.restoring import fault_of_path
from strongroom.format.content import whole
from strongroom.format.tree import MAX_PATH, Entry, Kind, encode_record
from strongroom.kernel import KEY_SIZE
from strongroom.progress import Progress, Silent
from strongroom.repository.ports import Problem, Session, Stored, Taken

BATCH_SIZE = 256 * 1024 * 1024
BATCH_FILES = 4096
LARGE = 64 * 1024 * 1024  # from here on a file is streamed
SINGLY = 100  # so many files of a batch that did not come are tried one by one
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
_GATHER = 4 * 1024 * 1024
_REUSE = 4096
A_SYMLINK = "it is a symlink, which rclone leaves out"
_ODD_NAME = "rclone cannot express its name (it is not UTF-8)"


@dataclass(slots=True)
class _Part:
    """What goes into the tree for one item."""

    entry: Entry
    key: bytes = b""
    ids: bytes = b""
    record: bytes = b""


class RcloneSource:
    """The folder `remote` of an rclone remote, configured under `name`; see `ports.Source`."""

    kind = "files"

    def __init__(
        self,
        name: str,
        remote: str,
        rclone: Rclone,
        *,
        include: Iterable[bytes] = (),
        exclude: Iterable[bytes] = (),
        cache_dir: bytes | None = None,
        repository: str = "",
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.name = name
        self._remote, self._rclone, self._clock = remote, rclone, clock
        self._include, self._exclude = tuple(include), tuple(exclude)
        Patterns(self._include, self._exclude)
        whose = identity(repository, name, os.fsencode(PREFIX + remote))
        self._folder = cache_dir
        self._memory = Memory(cache_dir, f"{name}.{whose[:8].hex()}.remote".encode(), whose)

    def probe(self) -> dict[str, Any]:
        """What a backup would take, as JSON values."""
        features = self._rclone.features(self._remote)
        look = _Look(self._remote, self._include, self._exclude, Silent())
        look.at(self._rclone, features)
        files = [item for item in look.items if not item.directory]
        return {
            "remote": shown(self._remote),
            "rclone": self._rclone.version(),
            "entries": len(look.items),
            "files": len(files),
            "size": sum(max(item.size, 0) for item in files),
            "change_recognition": _recognition(features),
            "problems": [
                f"{problem.path.decode('utf-8', 'backslashreplace')}: {problem.reason}"
                for problem in look.problems[:20]
            ],
            "include_without_match": [
                pattern.decode("utf-8", "backslashreplace") for pattern in look.unmatched()
            ],
        }

    def back_up(self, session: Session, *, progress: Progress) -> Taken:
        """Push everything into the session; faults of the remote as a whole are raised."""
        self._rclone.open()
        started = self._clock()
        progress.phase("listing the remote")
        features = self._rclone.features(self._remote)
        look = _Look(self._remote, self._include, self._exclude, progress)
        look.at(self._rclone, features)
        for pattern in look.unmatched():
            look.told(pattern, "nothing in the source answers to this include pattern")
        folder = None if self._folder is None else os.fsdecode(self._folder)
        with self._memory.run(session.tree) as (last, new):
            if last.files and not look.items:
                look.told(b"", "the remote is empty and was not in the last run")
            with Staging(folder) as staging:
                taking = _Taking(
                    session, progress, self._rclone, self._remote, features, look, staging
                )
                taking.trusted_before = started - MARGIN_NS
                taking.recognise(last)
                taking.fetch()
                taking.emit(new)
        new.finish(files=taking.files, size=taking.size)
        facts = {
            "root": PREFIX + shown(self._remote),
            "remote": features.backend or "rclone",
            "rclone": self._rclone.version(),
            "include": [_text(pattern) for pattern in self._include],
            "exclude": [_text(pattern) for pattern in self._exclude],
            "entries": taking.entries,
            "files": taking.files,
            "size": taking.size,
            "unchanged": taking.unchanged,
            "fetched": taking.fetched,
            "change_recognition": _recognition(features),
        }
        if new.fault:
            facts["change_cache"] = new.fault
        return Taken(taking.files, taking.size, facts, tuple(look.problems))

    def settled(self) -> None:
        """The snapshot is committed: the new change cache replaces the old one."""
        self._memory.settle()


class _Look:
    """The listing, reduced to what is wanted and can be taken; `items` in path order."""

    def __init__(
        self, remote: str, include: Sequence[bytes], exclude: Sequence[bytes], progress: Progress
    ) -> None:
        self.items: list[Item] = []
        self.problems: list[Problem] = []
        self._remote, self._progress = remote, progress
        self._patterns = Patterns(include, exclude)

    def told(self, path: bytes, why: str) -> None:
        """Note a part that is not in the snapshot as it is in the remote."""
        self.problems.append(Problem(path, why))
        self._progress.problem(path, why)

    def unmatched(self) -> list[bytes]:
        """Include patterns that nothing answered to."""
        return self._patterns.unmatched()

    def at(self, rclone: Rclone, features: Features) -> None:
        """List the remote."""
        found, events = rclone.listing(self._remote, hash=features.hash)
        for event in events:
            if event.level in ("error", "critical"):
                self.told(event.object.encode(), f"it cannot be listed: {event.text}")
            elif "symlink" in event.text.lower():
                self.told(event.object.encode(), A_SYMLINK)
        by_path: dict[bytes, Item] = {}
        doubled: dict[bytes, int] = {}
        for item in found:
            path = item.path.encode("utf-8", "surrogatepass")
            fault = fault_of_path(path)
            if fault or len(path) > MAX_PATH:
                self.told(path, fault or f"its path is longer than {MAX_PATH} bytes")
            elif path not in by_path:
                by_path[path] = item
            elif not (item.directory and by_path[path].directory):
                # Google Drive and others know several things of one name.
                doubled[path] = doubled.get(path, 1) + 1
                before = by_path[path]
                newer = item.directory == before.directory and item.mtime_ns > before.mtime_ns
                if newer or item.directory:
                    by_path[path] = item
        for path, count in doubled.items():
            self.told(
                path, f"the remote has {count} things of this name, and one is taken: rclone dedupe"
            )
        self.items = [by_path[path] for path in self._wanted(by_path)]

    def _wanted(self, by_path: dict[bytes, Item]) -> Iterator[bytes]:
        """The paths that the patterns choose, ascending, each with the folders above it."""
        folders: dict[bytes, tuple[Verdict, bool]] = {b"": (self._patterns.root, False)}
        whole = self._patterns.root is Verdict.WHOLE

        def folder(path: bytes) -> tuple[Verdict, bool]:
            if path not in folders:
                above, included = folder(path.rpartition(b"/")[0])
                folders[path] = (
                    (Verdict.SKIP, False)
                    if above is Verdict.SKIP
                    else self._patterns.directory(path, included=included)
                )
            return folders[path]

        chosen = set()
        for path, item in by_path.items():
            if whole:
                chosen.add(path)
            elif item.directory:
                if folder(path)[0] is not Verdict.SKIP:
                    chosen.add(path)
            else:
                above, included = folder(path.rpartition(b"/")[0])
                if above is not Verdict.SKIP and self._patterns.file(path, included=included):
                    chosen.add(path)
        for path in list(chosen):  # remotes without folders list none
            while path := path.rpartition(b"/")[0]:
                if path in by_path and not by_path[path].directory:
                    self.told(path, "it is a file and a folder at once; the folder is taken")
                if path not in by_path or not by_path[path].directory:
                    by_path[path] = Item(path.decode(), -1, 0, directory=True)
                elif path in chosen:
                    break
                chosen.add(path)
        return iter(sorted(chosen))


class _Taking:
    """One run: `recognise`, `fetch`, `emit`."""

    def __init__(
        self,
        session: Session,
        progress: Progress,
        rclone: Rclone,
        remote: str,
        features: Features,
        look: _Look,
        staging: Staging,
    ) -> None:
        self.files = self.size = self.entries = self.unchanged = self.fetched = 0
        self.trusted_before = 0
        self._session, self._progress, self._lane = session, progress, session.lane()
        self._rclone, self._remote, self._features = rclone, remote, features
        self._look, self._staging = look, staging
        self._parts: dict[bytes, _Part] = {}
        self._todo: list[Item] = []
        self._small: list[tuple[Item, int, bytes]] = []
        self._gathered = 0
        self._me = os.geteuid(), os.getegid()

    # -- recognising -----------------------------------------------------------------------

    def recognise(self, last: LastRun) -> None:
        """Take what is as it was; the rest is to do."""
        waiting: list[tuple[Item, bytes, bytes, bytes]] = []
        for item in self._look.items:
            path = item.path.encode("utf-8", "surrogatepass")
            kept = last.find(path)
            if item.directory:
                self._parts[path] = _Part(self._entry(path, item.mtime_ns, kind=Kind.DIRECTORY))
            elif kept is not None and kept[0] == self._key(item):
                waiting.append((item, *kept))
            else:
                self._todo.append(item)
        for start in range(0, len(waiting), _REUSE):
            some = waiting[start : start + _REUSE]
            here = self._session.reuse([ids for *_, ids in some])
            for (item, key, record, ids), good in zip(some, here, strict=True):
                if good:
                    path = item.path.encode("utf-8", "surrogatepass")
                    plain = self._entry(path, item.mtime_ns, size=item.size)
                    self._parts[path] = _Part(plain, key, ids, record)
                    self.unchanged += 1
                else:
                    self._todo.append(item)
        files = sum(not item.directory for item in self._look.items)
        size = sum(max(item.size, 0) for item in self._look.items if not item.directory)
        self._progress.plan(files=files, size=size)
        done = sum(part.entry.size for part in self._parts.values())
        self._progress.advance(files=self.unchanged, size=done)

    def _key(self, item: Item) -> bytes:
        """All that the listing says of a file, as the change cache keeps it."""
        said = f"{item.size}\0{item.mtime_ns}\0{item.hash}\0{item.id}"
        return blake3(said.encode("utf-8", "surrogatepass")).digest(KEY_SIZE)

    def _trusted(self, item: Item) -> bool:
        """Whether a later listing that says the same means the same content."""
        if item.size < 0:
            return False
        if item.hash:
            return True
        precision = self._features.precision
        return precision is not None and 0 < item.mtime_ns < self.trusted_before - precision

    def _entry(
        self,
        path: bytes,
        mtime_ns: int,
        *,
        kind: Kind = Kind.FILE,
        size: int = 0,
        content: bytes = b"",
    ) -> Entry:
        mode = _FILE_MODE if kind is Kind.FILE else _FOLDER_MODE
        uid, gid = self._me
        return Entry(path, kind, mode, uid, gid, mtime_ns, size, content)

    # -- fetching --------------------------------------------------------------------------

    def fetch(self) -> None:
        """Bring what is to do, one batch ahead of what is stored."""
        if not self._todo:
            return
        self._progress.phase("fetching files")
        batches, streams = _cut(self._todo)
        pool = ThreadPoolExecutor(1, thread_name_prefix="rclone")
        try:
            coming: Future[tuple[str, Any]] | None = None
            before: list[Item] = []
            for batch in [*batches, []]:
                following = pool.submit(self._bring, batch) if batch else None
                if coming is not None:
                    folder, result = coming.result()
                    self._land(before, folder, result)
                coming, before = following, batch
            for item in streams:
                self._stream(item)
            self._store()
        except BaseException:
            self._rclone.close()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _bring(self, batch: list[Item]) -> tuple[str, Any]:
        folder = self._staging.batch()
        size = sum(item.size for item in batch)
        return folder, self._rclone.fetch(
            self._remote, [item.path for item in batch], folder, size=size
        )

    def _land(self, batch: list[Item], folder: str, result: Any) -> None:
        """Store what a batch brought, and ask once more for what it did not."""
        missing = [item for item in batch if not self._take(item, folder)]
        shutil.rmtree(folder, ignore_errors=True)
        if not missing:
            return
        if result.status:
            fault = fault_of(result, self._remote)
            if isinstance(fault, StorageFull):
                raise TargetFull(
                    f"There is no room to stage files: {fault.what}",
                    means="No snapshot was written by this run; earlier snapshots are untouched.",
                    do="Free space, or name another folder with --cache-dir.",
                )
            if isinstance(fault, Unreachable):
                raise fault
            if len(missing) == len(batch):
                self._rclone.listing(self._remote, depth=1)  # raises if all of it is gone
        for item in missing[:SINGLY]:
            self._stream(item, said=result.reason_for(item.path))
        for item in missing[SINGLY:]:
            self._lose(item, result.reason_for(item.path) or "it did not come with its batch")

    def _take(self, item: Item, folder: str) -> bool:
        """Store a staged file; False if it is not there."""
        place = os.path.join(folder, item.path)
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        with open(descriptor, "rb", buffering=0) as file:
            facts = os.fstat(descriptor)
            same = facts.st_size == item.size and self._same_time(item, facts.st_mtime_ns)
            now = item
            if not same:
                self._look.told(
                    item.path.encode("utf-8", "surrogatepass"),
                    "it changed after it was listed; what was fetched last is kept",
                )
                now = Item(item.path, -1, facts.st_mtime_ns, directory=False)  # never trusted
            if facts.st_size <= SMALL_FILE:
                self._gather(now, facts.st_mtime_ns if not same else item.mtime_ns, file.read())
            else:
                content = self._lane.content()
                content.feed_from(lambda view: self._count(file.readinto(view) or 0))
                self._keep(now, content.finish(), now.mtime_ns)
        return True

    def _same_time(self, item: Item, staged_ns: int) -> bool:
        precision = self._features.precision
        if precision is None or not item.mtime_ns:
            return True
        return abs(item.mtime_ns - staged_ns) <= max(precision, 1000)

    def _count(self, size: int) -> int:
        self._progress.advance(size=size)
        self.fetched += size
        return size

    def _gather(self, item: Item, mtime_ns: int, data: bytes) -> None:
        self._count(len(data))
        self._small.append((item, mtime_ns, data))
        self._gathered += len(data)
        if self._gathered >= _GATHER or len(self._small) >= _REUSE:
            self._store()

    def _store(self) -> None:
        """Hand small contents on."""
        small, self._small, self._gathered = self._small, [], 0
        ids = iter(self._lane.put_small([data for *_, data in small if data]) if small else ())
        for item, mtime_ns, data in small:
            if data:
                chunk = next(ids)
                self._keep(item, Stored(whole(chunk), chunk, len(data)), mtime_ns)
            else:
                self._keep(item, Stored(b"", b"", 0), mtime_ns)

    def _keep(self, item: Item, stored: Stored, mtime_ns: int) -> None:
        path = item.path.encode("utf-8", "surrogatepass")
        entry = self._entry(path, mtime_ns, size=stored.size, content=stored.content)
        key = self._key(item) if self._trusted(item) else b""
        self._parts[path] = _Part(entry, key, stored.ids)
        self._progress.advance(files=1)

    def _stream(self, item: Item, *, said: str = "") -> None:
        """Read one file as a stream, and hold it against the listing."""
        path = item.path.encode("utf-8", "surrogatepass")
        known = item.hash and self._features.hash
        digest = hashlib.new(self._features.hash or "md5", usedforsecurity=False) if known else None
        content = self._lane.content()
        with self._rclone.reading(join(self._remote, item.path), item.size) as (pipe, finish):

            def take(view: memoryview) -> int:
                count = pipe.readinto(view) or 0  # type: ignore[attr-defined]
                if digest is not None:
                    digest.update(view[:count])
                return self._count(count)

            content.feed_from(take)
            result = finish()
        stored = content.finish()
        if result.status:
            fault = fault_of(result, join(self._remote, item.path))
            if isinstance(fault, NotFound):
                odd = "\N{REPLACEMENT CHARACTER}" in item.path
                self._lose(item, _ODD_NAME if odd else "it vanished before it could be read")
            elif isinstance(fault, Unreachable):
                raise fault
            else:
                why = fault.what if isinstance(fault, StorageDenied) else said or fault.what
                self._lose(item, f"it cannot be read: {why}")
            return
        changed = item.size >= 0 and stored.size != item.size
        changed = changed or (digest is not None and digest.hexdigest() != item.hash.lower())
        if changed:
            self._look.told(path, "it changed after it was listed; what was fetched last is kept")
            item = Item(item.path, -1, item.mtime_ns, directory=False)
        self._keep(item, stored, item.mtime_ns)

    def _lose(self, item: Item, why: str) -> None:
        self._look.told(item.path.encode("utf-8", "surrogatepass"), why)

    # -- into the tree ---------------------------------------------------------------------

    def emit(self, new: ThisRun) -> None:
        """Add everything to the tree, in path order."""
        tree = self._session.tree
        newest = max((item.mtime_ns for item in self._look.items if item.directory), default=0)
        uid, gid = self._me
        tree.add(Entry(b"", Kind.DIRECTORY, 0o700, uid, gid, newest))
        for path, part in sorted(self._parts.items()):
            record = part.record
            if record:
                tree.add_record(path, record)
            else:
                record = tree.add(part.entry) or encode_record(part.entry)
            if part.key:
                new.add(path, part.key, record, part.ids)
            self.entries += 1
            if part.entry.kind is Kind.FILE:
                self.files += 1
                self.size += part.entry.size


def _cut(items: Sequence[Item]) -> tuple[list[list[Item]], list[Item]]:
    """Cut what is to be fetched into bounded batches, and what is to be streamed."""
    batches: list[list[Item]] = []
    streams: list[Item] = []
    room = files = 0
    for item in sorted(items, key=lambda item: item.path):
        plain = "\n" not in item.path and "\r" not in item.path
        if not 0 <= item.size < LARGE or not plain:
            streams.append(item)
            continue
        if not batches or item.size > room or not files:
            batches.append([])
            room, files = BATCH_SIZE, BATCH_FILES
        batches[-1].append(item)
        room, files = room - item.size, files - 1
    return batches, streams


def _recognition(features: Features) -> str:
    """How unchanged files are told, for people."""
    if features.hash:
        return f"size, time and {features.hash}"
    return "size and time" if features.precision is not None else "none: every file is fetched"


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


__all__ = ["RcloneSource"]
