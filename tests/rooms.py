"""Small repositories for tests: drawn from a seed, in any storage, with sources that are dicts.

Rule: nothing here replaces a part of the program. Clock and randomness come in through the
engine's own seams; sources and readers use the ports that real ones use.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache

from blake3 import blake3

from strongroom.format import keyset as keysets
from strongroom.format.content import whole
from strongroom.format.keyset import Keyset
from strongroom.format.tree import Entry, Kind
from strongroom.operations.back_up import Report, back_up
from strongroom.operations.browse import list_snapshots
from strongroom.progress import Progress, Silent
from strongroom.repository import identity as identities
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.fates import Fates
from strongroom.repository.identity import Identity
from strongroom.repository.keyring import Keyring
from strongroom.repository.ports import Session, Taken
from strongroom.repository.pruning import Pruned, Pruner, Rules
from strongroom.repository.reader import SnapshotReader
from strongroom.repository.repository import Repository
from strongroom.repository.seams import Seams, Settings
from strongroom.storage.base import Capabilities, Storage

REPOSITORY = bytes(range(16))
BIRTH = datetime(2026, 7, 1, 10, 0, tzinfo=UTC)
ALL = Capabilities(put_if_absent=True, read_after_write=True, list_sorted=True)

# One thread each: what a run does is then the same every time.
QUIET = Settings(sealers=1, putters=1, pack_size=1 << 20)


def drawn(seed: object) -> Callable[[int], bytes]:
    """A source of "random" bytes that is the same for the same seed; safe for threads."""
    stream, at, lock = blake3(repr(seed).encode()), itertools.count(), threading.Lock()

    def random(size: int) -> bytes:
        with lock:
            number = next(at)
        return stream.digest(size, seek=number * 4096)

    return random


def noise(seed: object, size: int) -> bytes:
    """Bytes that do not compress, the same for the same seed."""
    return blake3(repr(seed).encode()).digest(size)


class Clock:
    """A wall clock that goes on by a second whenever it is looked at."""

    def __init__(self, start: datetime = BIRTH) -> None:
        self._start, self._ticks = start, itertools.count(1)

    def now(self) -> datetime:
        return self._start + timedelta(seconds=next(self._ticks))

    def steady(self) -> float:
        return float(next(self._ticks))


def seams(seed: object, clock: Clock | None = None) -> Seams:
    clock = clock or Clock()
    return Seams(now=clock.now, steady=lambda: 0.0, random=drawn(seed))


@cache
def reader_keys(repository: bytes = REPOSITORY) -> Keyset:
    return keysets.generate(repository, 1, "origin", random=drawn((repository, "keys")))


@cache
def writer_keys(name: str = "host-a") -> Keyset:
    return keysets.for_writer(reader_keys(), name, random=drawn((name, "keys")))


def make_identity(
    keyset: Keyset, *, smallest: int = 1024, average: int = 16 * 1024, largest: int = 64 * 1024
) -> Identity:
    return Identity(
        id=keyset.repository,
        created=BIRTH,
        smallest=smallest,
        average=average,
        largest=largest,
        capabilities=ALL,
        admin_public=keyset.admin_public,
    )


def found(storage: Storage, keyset: Keyset | None = None, **sizes: int) -> None:
    """Write strongroom.json: with keysets at hand a repository needs no key slots."""
    keyset = keyset or reader_keys()
    assert keyset.admin_private is not None
    data = identities.encode(make_identity(keyset, **sizes), keyset.admin_private)
    storage.put(identities.NAME, data, if_absent=True)


def open_room(
    storage: Storage,
    seed: object,
    *,
    keyset: Keyset | None = None,
    clock: Clock | None = None,
    settings: Settings = QUIET,
) -> Repository:
    """Open the repository in `storage` as a process that draws from `seed`."""
    return Repository(
        storage,
        identities.load(storage),
        Keyring({1: keyset or reader_keys()}),
        seams=seams(seed, clock),
        settings=settings,
    )


def new_room(
    storage: Storage,
    seed: object = "room",
    *,
    settings: Settings = QUIET,
    clock: Clock | None = None,
    **sizes: int,
) -> Repository:
    """Found a repository in `storage` and open it with a reader's keys."""
    found(storage, **sizes)
    return open_room(storage, seed, settings=settings, clock=clock)


# -- contents --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sparse:
    """A content with holes: (offset, bytes) parts, ascending, in `size` bytes."""

    size: int
    parts: tuple[tuple[int, bytes], ...]

    @property
    def flat(self) -> bytes:
        flat = bytearray(self.size)
        for offset, part in self.parts:
            flat[offset : offset + len(part)] = part
        return bytes(flat)


Content = bytes | Sparse
Files = Mapping[bytes, Content | Entry]


def flat(content: Content | Entry) -> bytes:
    if isinstance(content, Entry):
        return b""
    return content.flat if isinstance(content, Sparse) else content


@dataclass
class DictSource:
    """A source whose files are the values of a dict: bytes, Sparse, or an Entry as it is."""

    name: str
    files: Files
    kind: str = "files"
    small: int = 4096
    facts: Mapping[str, object] = field(default_factory=lambda: {"of": "a test"})
    log: Mapping[str, str] = field(default_factory=dict)
    runs: int = 0
    committed: int = 0

    def back_up(self, session: Session, *, progress: Progress) -> Taken:
        del progress
        self.runs += 1
        size = 0
        lane = session.lane()
        for path in sorted(self.files):
            content = self.files[path]
            if isinstance(content, Entry):
                session.tree.add(replace(content, path=path))
                continue
            size += len(flat(content))
            session.tree.add(self._store(lane, path, content))
        return Taken(len(self.files), size, self.facts, log=self.log)

    def _store(self, lane: object, path: bytes, content: Content) -> Entry:
        kind = Kind.STREAM if self.kind == "postgres" else Kind.FILE
        facts = {"kind": kind, "mode": 0o640, "uid": 7, "gid": 8, "mtime_ns": 1_234_567_890_123}
        if isinstance(content, bytes) and 0 < len(content) <= self.small:
            (chunk,) = lane.put_small([content])  # type: ignore[attr-defined]
            return Entry(path, size=len(content), content=whole(chunk), **facts)  # type: ignore[arg-type]
        stream = lane.content()  # type: ignore[attr-defined]
        parts = content.parts if isinstance(content, Sparse) else ((0, content),)
        for offset, part in parts:
            stream.seek(offset)
            stream.write(part)
        stored = stream.finish(size=content.size if isinstance(content, Sparse) else None)
        return Entry(path, size=stored.size, content=stored.content, **facts)  # type: ignore[arg-type]

    def settled(self) -> None:
        self.committed += 1


def take(repository: Repository, name: str, files: Files, **how: object) -> Report:
    """Back up `files` as source `name`."""
    return back_up(repository, DictSource(name, files, **how), progress=Silent())  # type: ignore[arg-type]


def restore(repository: Repository, snapshot: Snapshot) -> dict[bytes, bytes]:
    """Every file of a snapshot, read through the one read path; raises what it raises."""
    return read(repository.open_snapshot(snapshot))


def read(reader: SnapshotReader) -> dict[bytes, bytes]:
    """Every entry with its bytes, the facts document read as well."""
    _ = reader.facts
    return {entry.path: fill(entry.size, pieces) for entry, pieces in each(reader)}


def each(reader: SnapshotReader) -> Iterator[tuple[Entry, Iterator[tuple[int, memoryview]]]]:
    return reader.contents(reader.entries())


def fill(size: int, pieces: Iterable[tuple[int, memoryview]]) -> bytes:
    flat = bytearray(size)
    for offset, piece in pieces:
        flat[offset : offset + len(piece)] = piece
    assert len(flat) == size
    return bytes(flat)


def as_read(files: Files) -> dict[bytes, bytes]:
    """What `restore` gives for `files`."""
    return {path: flat(content) for path, content in files.items()}


def expire(repository: Repository, snapshot: Snapshot) -> None:
    """Decide that a snapshot may go; a prune takes it."""
    fates = Fates(repository.catalogue)
    fates.decide(fates.of(snapshot.name), "expire", now=repository.seams.now())


def prune(repository: Repository, **rules: object) -> Pruned:
    """Prune as rudely as the protocol allows: what a running session has just put is condemned
    too, because politeness must not be what keeps the writers safe."""
    rude = {"live": 1.0, "polite": None, "pack_size": 1 << 20, "together": False} | rules
    return Pruner(repository, rules=Rules(**rude), progress=Silent()).run()  # type: ignore[arg-type]


def committed(repository: Repository) -> list[Snapshot]:
    """The snapshots that open and are not expired."""
    return list_snapshots(repository).snapshots
