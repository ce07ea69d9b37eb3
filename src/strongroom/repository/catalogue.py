"""The small records of a repository: what is named where, sealed, signed and opened again.

    index/<group>/<utc>-<id>              segments
    refs/<source>/<snapshot>              the frames that one snapshot relies on
    snapshots/<source>/<utc>-<snapshot>   the commit record, or a tombstone in its place
    sessions/<group>/<id>.<n>             marks: 0 opened, 1 closed, 2 taken up by another session
    gc/<generation>.condemn · .done       what a prune gave up

Lists and gets race with a prune that replaces index segments; whoever meets a
name that has gone lists again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from strongroom.errors import (
    AlreadyExists,
    Damaged,
    ObjectMissing,
    StorageUnreachable,
    StrongroomError,
)
from strongroom.format import record, segment
from strongroom.format.keyset import Keyset
from strongroom.format.record import RecordKey, canonical
from strongroom.format.segment import Segment
from strongroom.repository.index import Index
from strongroom.repository.signing import open_document, sign_document
from strongroom.storage.base import Storage

INDEX_PAD = 4096
_RELISTS = 8
_SNAPSHOT_DOMAIN = b"strongroom snapshot 1"


def utc_text(moment: datetime) -> str:
    """A moment as it stands in object names: sortable, to the second, UTC."""
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


@dataclass(frozen=True, slots=True)
class Root:
    """The root page of a tree: chunk id, levels of index pages above the entry pages, entries."""

    id: bytes
    levels: int
    entries: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A committed backup, as its record tells. Times are aware, UTC; sizes in bytes."""

    id: str
    source: str
    kind: str
    group: str
    session: str
    epoch: int
    started: datetime
    time: datetime
    root: Root
    facts: bytes  # Entry.content of the facts document
    facts_size: int
    files: int
    size: int
    new_size: int
    stored: int
    problems: int
    writer: str
    labels: Mapping[str, str] = field(default_factory=dict)
    log: Mapping[str, str] = field(default_factory=dict)
    """Of a physical backup: `system_id`, `start_lsn`, `wal_segment_size`; else empty."""

    @property
    def name(self) -> str:
        """The object that commits it."""
        return snapshot_name(self.source, self.time, self.id)

    def body(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {
            "id": self.id,
            "source": self.source,
            "kind": self.kind,
            "group": self.group,
            "session": self.session,
            "epoch": self.epoch,
            "started": self.started.isoformat(),
            "time": self.time.isoformat(),
            "root": [self.root.id.hex(), self.root.levels, self.root.entries],
            "facts": [self.facts.hex(), self.facts_size],
            "files": self.files,
            "size": self.size,
            "new_size": self.new_size,
            "stored": self.stored,
            "problems": self.problems,
            "writer": self.writer,
            "labels": dict(self.labels),
            **({"log": dict(self.log)} if self.log else {}),
        }

    @staticmethod
    def from_body(body: Mapping[str, Any]) -> Snapshot:
        """Inverse of `body`."""
        fields = dict(body)
        root_id, levels, entries = fields["root"]
        facts, facts_size = fields["facts"]
        fields["root"] = Root(bytes.fromhex(root_id), levels, entries)
        fields["facts"], fields["facts_size"] = bytes.fromhex(facts), facts_size
        for moment in ("started", "time"):
            fields[moment] = datetime.fromisoformat(fields[moment])
        # A later program may have signed more fields than this one knows.
        known = {field.name for field in dataclasses.fields(Snapshot)}
        return Snapshot(**{name: value for name, value in fields.items() if name in known})


def snapshot_name(source: str, time: datetime, snapshot: str) -> str:
    """The object name of a commit record."""
    return f"snapshots/{source}/{utc_text(time)}-{snapshot}"


@dataclass(frozen=True, slots=True)
class Refs:
    """The frames that a snapshot relies on: ranges of sequence numbers per session id (hex).

    `snapshot` is the object name at which it is or will be committed.
    """

    name: str
    snapshot: str
    group: str
    frames: Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Condemned:
    """What the prunes have given up so far."""

    generations: frozenset[str]
    packs: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class DamagedRecord:
    """A record that does not open: object name and reason."""

    name: str
    reason: str


class Catalogue:
    """Reads and writes the records of one repository with the catalogue key of one epoch."""

    def __init__(
        self,
        storage: Storage,
        keyset: Keyset,
        *,
        random: Callable[[int], bytes],
    ) -> None:
        self.storage = storage
        self.keyset = keyset
        self._random = random
        self.records = RecordKey(keyset.repository, keyset.catalogue_key)

    def nonce(self) -> bytes:
        """Twelve fresh random bytes."""
        return self._random(12)

    def token(self, size: int = 8) -> str:
        """A fresh random name part."""
        return self._random(size).hex()

    # -- index -----------------------------------------------------------------------------

    def put_index(self, group: str, rows: Segment, *, now: datetime) -> str:
        """Store an index segment; return its object name."""
        name = f"index/{group}/{utc_text(now)}-{self.token()}"
        body = segment.encode(rows)
        data = self.records.seal(record.INDEX, name, body, nonce=self.nonce(), pad=INDEX_PAD)
        self.storage.put(name, data, if_absent=True)
        return name

    def open_index(self, name: str) -> Segment:
        """Read one index segment; Damaged when it does not open."""
        _, body = self._get(name, record.INDEX)
        try:
            rows = segment.decode(body)
        except ValueError as fault:
            raise _damaged(name, str(fault)) from None
        rows.name = name
        return rows

    def index_names(self, group: str) -> list[str]:
        """The index segments of a group, oldest first."""
        return sorted(entry.name for entry in self.storage.list(f"index/{group}/"))

    def load_index(self, group: str, *, condemned: frozenset[bytes]) -> Index:
        """Read the index of a group; raises what keeps a segment from being read."""
        index, faults = self.read_index(group, condemned=condemned)
        for fault in faults.values():
            raise fault
        return index

    def read_index(
        self, group: str, *, condemned: frozenset[bytes], beside: Sequence[Segment] = ()
    ) -> tuple[Index, dict[str, StrongroomError]]:
        """Read the index of a group, a segment at a time, and what is told `beside` it.

        Returns it as far as it opens, and for each segment that does not the reason; one that
        another segment replaces may be as it likes. Starts over when a prune replaces segments
        between the list and the gets.
        """
        for attempt in range(_RELISTS + 1):
            found = _OpenSegments(self, self.index_names(group))
            try:
                index = Index(itertools.chain(found, beside), condemned=condemned)
            except ObjectMissing:
                if attempt == _RELISTS:
                    raise
                continue
            lost = {n: f for n, f in found.faults.items() if n not in index.replaced}
            return index, lost
        raise AssertionError("unreachable: the last attempt returns or raises")

    def open_surely(self, name: str) -> Segment:
        """Read one index segment; before it is called damaged or out of reach, a second time.

        A bit may flip on the way too, and what follows from a damaged segment is much work.
        """
        try:
            return self.open_index(name)
        except (Damaged, StorageUnreachable):
            return self.open_index(name)

    def committed_refs(self, group: str) -> Iterator[Refs | None]:
        """Yield what each snapshot of a group relies on, None where nobody can tell any more."""
        for snapshot in self.snapshots():
            if isinstance(snapshot, Snapshot) and snapshot.group == group:
                try:
                    yield self.open_refs(f"refs/{snapshot.source}/{snapshot.id}")
                except (Damaged, ObjectMissing, KeyError):
                    yield None

    # -- garbage collection ----------------------------------------------------------------

    def load_condemned(self) -> Condemned:
        """Read every condemnation. Condemned is for ever."""
        generations: set[str] = set()
        packs: set[bytes] = set()
        for entry in self.storage.list("gc/"):
            if not entry.name.endswith(".condemn"):
                continue
            body = self.open_gc(entry.name)
            generations.add(entry.name)
            packs.update(bytes.fromhex(name) for name in body["packs"])
        return Condemned(frozenset(generations), frozenset(packs))

    def open_gc(self, name: str) -> dict[str, Any]:
        """Read a prune's record."""
        return self._json(name, record.GC)

    def put_gc(self, name: str, body: Mapping[str, Any]) -> None:
        """Store a prune's record, if nobody else holds the name."""
        data = self.records.seal(record.GC, name, canonical(body), nonce=self.nonce())
        self.storage.put(name, data, if_absent=True)

    # -- refs, snapshots, marks ------------------------------------------------------------

    def put_refs(self, refs: Refs, source: str) -> None:
        """Announce what a snapshot will rely on."""
        body = {"snapshot": refs.snapshot, "group": refs.group, "frames": refs.frames}
        data = self.records.seal(record.REFS, refs.name, canonical(body), nonce=self.nonce())
        self.storage.put(refs.name, data, if_absent=True)

    def open_refs(self, name: str) -> Refs:
        """Read what one snapshot relies on."""
        body = self._json(name, record.REFS)
        return Refs(name, body["snapshot"], body["group"], body["frames"])

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """Commit: sign and store the snapshot, if no tombstone stands in its place."""
        name = snapshot.name
        raw = sign_document(self.keyset, _SNAPSHOT_DOMAIN, snapshot.body())
        if self._verified(name, raw) != snapshot:
            raise _damaged(name, "it does not read as it was made; it was not stored")
        data = self.records.seal(record.SNAPSHOT, name, raw, nonce=self.nonce())
        self.storage.put(name, data, if_absent=True)

    def open_snapshot(self, name: str) -> Snapshot | None:
        """Read and verify a commit record; None for a tombstone; Damaged when it does not hold."""
        kind, raw = self._get(name, record.SNAPSHOT, record.TOMBSTONE)
        return None if kind == record.TOMBSTONE else self._verified(name, raw)

    def _verified(self, name: str, raw: bytes) -> Snapshot:
        """The snapshot in a commit record whose signature holds; Damaged when it does not."""
        try:
            snapshot = Snapshot.from_body(open_document(self.keyset, _SNAPSHOT_DOMAIN, raw))
        except (ValueError, KeyError, TypeError) as fault:
            raise _damaged(name, f"its signature or content does not hold ({fault})") from None
        if snapshot.name != name:
            raise _damaged(name, "it belongs under another name")
        return snapshot

    def snapshots(self, source: str | None = None) -> Iterator[Snapshot | DamagedRecord]:
        """Yield every snapshot (of one source), oldest first, and what does not open."""
        prefix = f"snapshots/{source}/" if source else "snapshots/"
        names = [entry.name for entry in self.storage.list(prefix)]
        for name in sorted(names, key=lambda name: name.rsplit("/", 1)[-1]):
            try:
                snapshot = self.open_snapshot(name)
            except Damaged as fault:
                yield DamagedRecord(name, fault.what)
            except ObjectMissing:
                continue  # expired between the list and the get
            else:
                if snapshot is not None:
                    yield snapshot

    def put_tombstone(self, name: str) -> None:
        """Make sure that nothing can be committed as `name` any more."""
        data = self.records.seal(record.TOMBSTONE, name, b"{}", nonce=self.nonce())
        self.storage.put(name, data, if_absent=True)

    def put_mark(self, group: str, session: str, step: int, body: Mapping[str, Any]) -> None:
        """Store a session mark: step 0 opens, step 1 closes."""
        name = f"sessions/{group}/{session}.{step}"
        data = self.records.seal(record.MARK, name, canonical(body), nonce=self.nonce())
        self.storage.put(name, data, if_absent=True)

    def put_adopted(self, group: str, session: str, *, by: str) -> None:
        """Note that what an unfinished session left is indexed now."""
        name = f"sessions/{group}/{session}.2"
        data = self.records.seal(record.MARK, name, canonical({"by": by}), nonce=self.nonce())
        with contextlib.suppress(AlreadyExists):
            self.storage.put(name, data, if_absent=True)

    def open_mark(self, name: str) -> dict[str, Any]:
        """Read a session mark."""
        return self._json(name, record.MARK)

    def marks(self, group: str) -> dict[str, set[str]]:
        """The steps of every session of a group, as its marks tell."""
        steps: dict[str, set[str]] = {}
        for entry in self.storage.list(f"sessions/{group}/"):
            session, _, step = entry.name.rsplit("/", 1)[-1].partition(".")
            steps.setdefault(session, set()).add(step)
        return steps

    def unfinished(self, group: str) -> set[str]:
        """Sessions of a group that opened, did not close and were not taken up: crashed, or running."""
        return {session for session, seen in self.marks(group).items() if seen == {"0"}}

    # -- records ---------------------------------------------------------------------------

    def _get(self, name: str, *kinds: bytes) -> tuple[bytes, bytes]:
        data = self.storage.get(name)
        try:
            return self.records.open(data, name, *kinds)
        except ValueError as fault:
            raise _damaged(name, str(fault)) from None

    def _json(self, name: str, kind: bytes) -> dict[str, Any]:
        _, body = self._get(name, kind)
        try:
            document = json.loads(body)
        except ValueError as fault:
            raise _damaged(name, str(fault)) from None
        if not isinstance(document, dict):
            raise _damaged(name, "it is not a document")
        return document


class _OpenSegments:
    """The index segments that open, one at a time; those that do not are noted in `faults`.

    An object that cannot be reached is one of these only while the store itself answers.
    """

    def __init__(self, catalogue: Catalogue, names: Sequence[str]) -> None:
        self._catalogue, self._names = catalogue, names
        self.faults: dict[str, StrongroomError] = {}

    def __iter__(self) -> Iterator[Segment]:
        for name in self._names:
            try:
                yield self._catalogue.open_surely(name)
            except Damaged as fault:
                self.faults[name] = fault
            except StorageUnreachable as fault:
                next(iter(self._catalogue.storage.list(name)), None)  # raises when nothing answers
                self.faults[name] = fault


def _damaged(name: str, reason: str) -> Damaged:
    return Damaged(f"The object {name} is damaged: {reason}.")
