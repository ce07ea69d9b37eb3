"""The write-ahead log in the repository: one sealed, signed object for each file.

Rule: `put` returns when the file is durable, and never takes the place of another one. What rests
under a name is compared by the keyed hash of its content, so that writers, who open nothing, can
tell the same file from another; and before it is called the same, it is read whole.

Names of objects and their bytes: `format/walfile.py`. Nothing here needs an index: a file is found
by its name alone. Summaries spare a listing the reading of many heads; they are a cache.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from blake3 import blake3

from strongroom.errors import (
    AlreadyExists,
    Damaged,
    KeyRefused,
    ObjectMissing,
    StrongroomError,
    UsageError,
    WalConflict,
)
from strongroom.format import keyset as keysets
from strongroom.format import record, walfile
from strongroom.format.frame import FRAME_SIZE, FrameOpener, FrameSealer
from strongroom.format.keyset import Keyset
from strongroom.format.record import RecordKey, canonical
from strongroom.format.segment import SessionRow
from strongroom.format.wal import (
    Fork,
    SegmentFacts,
    SegmentName,
    WalKind,
    lsn_text,
    parse_history,
)
from strongroom.format.walfile import Conflict, Gap, Opened, Part, WalFile, WalHead
from strongroom.repository import identity
from strongroom.repository.catalogue import INDEX_PAD
from strongroom.repository.repository import Repository
from strongroom.repository.session import seal_session_key
from strongroom.repository.signing import open_document, sign_document
from strongroom.storage.base import Entry, Storage

HEAD_READ = 8192  # bytes that hold a header and a record, but for very many restore points
SUMMARY_FILES = 256  # files that are worth a summary; one has at most four times as many
_READERS = 8
_T = TypeVar("_T")


class Put(StrEnum):
    """What came of a put that returned: the file is durable either way."""

    STORED = "stored"
    SAME = "same"  # it was there already, with this content


@dataclass(frozen=True, slots=True)
class Begun:
    """A segment that is not here whole: its parts hold it up to `end`, in bytes from its start.

    `facts` are those of what is here.
    """

    name: str
    end: int
    archived: datetime
    facts: SegmentFacts | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """What the repository holds of one timeline; each list by name."""

    timeline: int
    segments: Sequence[WalFile] = ()
    partials: Sequence[WalFile] = ()
    begun: Sequence[Begun] = ()
    labels: Sequence[WalFile] = ()
    history: Sequence[Fork] | None = None
    gaps: Sequence[Gap] = ()
    conflicts: Sequence[Conflict] = ()


@dataclass(frozen=True, slots=True)
class WalListing:
    """What the repository holds of one system's log, by timeline.

    `unread` are objects that are there but could not be read, each with the reason: a listing
    with one of these knows less than there is.
    """

    system_id: int
    timelines: Mapping[int, Timeline]
    unread: Mapping[str, StrongroomError] = field(default_factory=dict)


class WalStore:
    """Puts and gets files of the WAL. Safe for many threads."""

    def __init__(self, repository: Repository, *, storage: Storage | None = None) -> None:
        self._storage = storage or repository.storage
        self._keyset = repository.keys.current
        self._keysets = repository.keys.keysets
        self._seams, self._settings = repository.seams, repository.settings
        self._atomic = repository.identity.capabilities.put_if_absent
        self._records = {
            epoch: RecordKey(keyset.repository, keyset.catalogue_key)
            for epoch, keyset in self._keysets.items()
        }
        self._digest_key = keysets.chunk_key(self._keyset.id_key, b"wal")

    # -- files -----------------------------------------------------------------------------

    def put(
        self, system_id: int, name: str, data: memoryview, *, facts: SegmentFacts | None = None
    ) -> Put:
        """Store a file as PostgreSQL archives it; it is durable when this returns.

        WalConflict when other content rests under its name; whatever else is raised, nobody knows
        whether it was stored, and the same put again finds out.
        """
        place = _object_name(system_id, name)
        digest = blake3(data, key=self._digest_key).digest()
        if not self._atomic and (found := self._there(place)) is not None:
            return self._compare(place, found, digest, len(data))
        sealed = self._seal(place, system_id, name, data, digest, facts)
        try:
            self._storage.put(place, sealed, if_absent=True)
        except AlreadyExists:
            return self._compare(place, self._storage.get(place), digest, len(data))
        if not self._atomic:  # another writer may have been in between: whose file rests there?
            self._compare(place, self._storage.get(place), digest, len(data))
        return Put.STORED

    def get(self, system_id: int, name: str) -> bytes:
        """Read a file, verified whole.

        ObjectMissing when it is not there and the repository is; KeyRefused for keys that only
        write.
        """
        return b"".join(self.pieces(system_id, name))

    def pieces(self, system_id: int, name: str) -> list[bytes]:
        """As `get`; the file in the pieces that it rests in, which nobody has to join to write it."""
        place = _object_name(system_id, name)
        if not self._keyset.reads:
            raise KeyRefused(
                "These keys can archive WAL but not read it.",
                means="The repository is untouched; what is in it needs a reader's key.",
                do="Open the repository with a reader's passphrase, key file or recovery code.",
            )
        try:
            data = self._storage.get(place)
        except ObjectMissing:
            identity.load(self._storage)  # NotFound: it is not the file alone that is not there
            raise
        # Its frames authenticate, and the record has the hash of what they hold: that of the
        # sealed bytes is for those who cannot open them.
        opened, head = self._decode(place, data)
        if len(data) != walfile.length_of(head, opened.frames_at):
            raise _damaged(place, "it is not as long as its record says")
        return self.open(place, opened, head, data)

    def open(self, place: str, opened: Opened, head: WalHead, data: bytes) -> list[bytes]:
        """Open the frames of an object that is as its record says; Damaged when they do not."""
        session = opened.session
        pieces, at, view = [], opened.frames_at, memoryview(data)
        digest = blake3(key=self._digest_key)
        try:
            key = keysets.open_session_key(
                self._epoch(session.epoch), session.id, session.sealed_key
            )
            opener = FrameOpener(session.id, key)
            for number, length in enumerate(head.frames):
                pieces.append(opener.open(view[at : at + length], number))
                digest.update(pieces[-1])
                at += length
        except ValueError as fault:
            raise _damaged(place, str(fault)) from None
        if sum(map(len, pieces)) != head.size or digest.digest() != head.digest:
            raise _damaged(place, "its content is not what its record says")
        return pieces

    # -- parts of a segment that is not whole yet ------------------------------------------

    def put_part(
        self, system_id: int, part: Part, data: memoryview, *, facts: SegmentFacts | None = None
    ) -> None:
        """Store bytes of a segment that is still being written; durable when this returns.

        `facts` are those of the segment up to the end of the part. Parts are what there is when a
        server is lost; once the segment itself is here they are of no use (`drop_parts`).
        """
        if len(data) != part.end - part.start:
            raise ValueError(f"{part} has {len(data)} bytes")
        place = walfile.place_of("parts", system_id, str(part))
        digest = blake3(data, key=self._digest_key).digest()
        sealed = self._seal(place, system_id, str(part), data, digest, facts)
        with contextlib.suppress(AlreadyExists):
            self._storage.put(place, sealed, if_absent=True)
            return
        self._compare(place, self._storage.get(place), digest, len(data))

    def get_begun(self, system_id: int, segment: str) -> bytes:
        """As much of a segment as parts hold; ObjectMissing when there is none."""
        entries = [entry.name for entry in self._storage.list(_part_prefix(system_id, segment))]
        parts = [Part.parse(place.name) for place in map(_place, entries) if place is not None]
        chain = _chain(parts)
        if not chain:
            identity.load(self._storage)  # NotFound: it is not the parts alone that are not there
            raise ObjectMissing(f"No part of {segment} is in the repository.")
        whole = bytearray()
        for part in chain:
            place = walfile.place_of("parts", system_id, str(part))
            data = self._storage.get(place)
            opened, head = self._whole(place, data)
            del whole[part.start :]
            whole += b"".join(self.open(place, opened, head, data))
        return bytes(whole)

    def drop_parts(self, system_id: int, segment: str) -> None:
        """Remove the parts of a segment that is here whole; one that must stay costs room only."""
        if self.head(system_id, segment) is not None:
            entries = self._storage.list(_part_prefix(system_id, segment))
            self._storage.delete([entry.name for entry in entries])

    def head(self, system_id: int, name: str) -> WalHead | None:
        """What a file is, without reading it; None when it is not there. Needs no reader's key."""
        place = _object_name(system_id, name)
        try:
            return self.read_head(place)[1]
        except ObjectMissing:
            return None

    def holds(self, system_id: int, name: str, data: memoryview) -> bool | None:
        """Whether a file rests here with this content; None when none of that name does."""
        head = self.head(system_id, name)
        if head is None:
            return None
        digest = blake3(data, key=self._digest_key).digest()
        return (head.digest, head.size) == (digest, len(data))

    def conflicts(self, system_id: int, name: str) -> list[Conflict]:
        """What was offered under the name of a file with other content, and refused."""
        prefix = f"{walfile.folder(system_id, int(name[:8], 16))}conflicts/{name}-"
        return self._documents(
            self._storage.list(prefix), record.WAL_CONFLICT, Conflict.from_body, {}
        )

    def read_head(self, place: str) -> tuple[int, WalHead]:
        """How long an object must be, and what it is; ObjectMissing, Damaged."""
        data = self._storage.get(place, offset=0, length=HEAD_READ)
        try:
            end = walfile.needed(data)
        except ValueError as fault:
            raise _damaged(place, str(fault)) from None
        if end > len(data):
            data = self._storage.get(place, offset=0, length=end)
        opened, head = self._decode(place, data)
        return walfile.length_of(head, opened.frames_at), head

    def verify(self, place: str, data: bytes, *, deep: bool) -> WalHead:
        """Verify an object that was read whole; `deep` opens it too. Damaged, KeyRefused."""
        opened, head = self._whole(place, data)
        if deep:
            self.open(place, opened, head, data)
        return head

    # -- what there is ---------------------------------------------------------------------

    def systems(self, source: str | None = None) -> list[int]:
        """The systems whose log is here; those that a source was said to be, oldest first."""
        if source is not None:
            found = [self._json(name, record.WAL_SOURCE) for name in self._sources(source)]
            found.sort(key=lambda body: str(body["since"]))
            return [int(body["system_id"]) for body in found]
        places = (_place(entry.name) for entry in self._storage.list(walfile.PREFIX))
        return sorted({place.system_id for place in places if place and place.sort != "sources"})

    def bind(self, source: str, system_id: int) -> None:
        """Note that a source is this system; again is fine."""
        name = f"{walfile.SOURCES}{source}/{walfile.system_text(system_id)}"
        body = {
            "source": source,
            "system_id": str(system_id),
            "since": self._seams.now().isoformat(),
            "writer": self._keyset.writer_name,
        }
        with contextlib.suppress(AlreadyExists):
            self._storage.put(name, self._sealed(record.WAL_SOURCE, name, body), if_absent=True)

    def listing(self, system_id: int, timeline: int | None = None) -> WalListing:
        """What is here of a system's log, or of one timeline of it."""
        prefix = f"{walfile.PREFIX}{walfile.system_text(system_id)}/"
        if timeline is not None:
            prefix = walfile.folder(system_id, timeline)
        found = _Found()
        for entry in self._storage.list(prefix):
            if (place := _place(entry.name)) is not None:
                found.add(place, entry)
        unread: dict[str, StrongroomError] = {}
        timelines = {}
        for number in sorted(found.timelines):
            files = self._files(system_id, number, found, unread)
            of = defaultdict(list)
            for each in files:
                of[each.kind].append(each)
            timelines[number] = Timeline(
                number,
                segments=of[WalKind.SEGMENT],
                partials=of[WalKind.PARTIAL],
                begun=self._begun(found.parts[number], found.files[number], unread),
                labels=of[WalKind.LABEL],
                history=_history(of[WalKind.HISTORY], unread, system_id),
                gaps=self._documents(found.gaps[number], record.WAL_GAP, Gap.from_body, unread),
                conflicts=self._documents(
                    found.conflicts[number], record.WAL_CONFLICT, Conflict.from_body, unread
                ),
            )
        return WalListing(system_id, timelines, unread)

    def put_gap(self, system_id: int, timeline: int, start: int, end: int, reason: str) -> None:
        """Record that the log from `start` up to `end` is nowhere; it stays on record for ever."""
        if end <= start:
            raise ValueError(f"a gap ends after it begins: {lsn_text(start)} to {lsn_text(end)}")
        gap = Gap(timeline, start, end, reason, self._seams.now(), self._keyset.writer_name)
        name = gap.name_in(system_id, self._seams.random(4).hex())
        self._storage.put(name, self._sealed(record.WAL_GAP, name, gap.body()), if_absent=True)

    def summarise(self, system_id: int, timeline: int, *, least: int = SUMMARY_FILES) -> int:
        """Put summaries of files that none tells of, where there are `least`; return how many files.

        Losing one costs a listing its time. Who removes files removes the summaries that name
        them first: one that names a file which is not there tells of a loss.
        """
        found = _Found()
        for entry in self._storage.list(walfile.folder(system_id, timeline)):
            if (place := _place(entry.name)) is not None:
                found.add(place, entry)
        unread: dict[str, StrongroomError] = {}
        told = self._told(found.summaries[timeline], unread)
        left = {name: entry for name, entry in found.files[timeline].items() if name not in told}
        if len(left) < least:
            return 0
        files = self._read_files(system_id, left, unread)
        done = 0
        while len(files) - done >= least:
            batch = files[done : done + 4 * SUMMARY_FILES]
            self._put_summary(system_id, timeline, batch)
            done += len(batch)
        return done

    def older(self, system_id: int, before: int, segment_size: int) -> list[Entry]:
        """The files of a system, on every timeline, of which no byte is at or behind `before`.

        Segments, parts of them and labels. Histories, gaps and conflicts stay for ever.
        """
        found = []
        for entry in self._storage.list(f"{walfile.PREFIX}{walfile.system_text(system_id)}/"):
            place = _place(entry.name)
            if place is None or place.sort not in ("file", "parts"):
                continue
            if place.name.endswith(".history"):
                continue
            if SegmentName.parse(place.name[:24], segment_size).end <= before:
                found.append(entry)
        return found

    def forget(self, system_id: int, files: Sequence[Entry]) -> None:
        """Delete files that `older` gave; only for a prune. First the summaries that name them.

        Oldest first, so that what is left when it stops is without a hole.
        """
        last: dict[int, str] = {}
        for entry in files:
            place = walfile.parse_object(entry.name)
            last[place.timeline] = max(last.get(place.timeline, ""), place.name)
        for timeline, name in last.items():
            below = f"{walfile.folder(system_id, timeline)}summaries/"
            self._storage.delete(
                sorted(
                    entry.name
                    for entry in self._storage.list(below)
                    if entry.name.removeprefix(below)[:24] <= name
                )
            )
        self._storage.delete(sorted((entry.name for entry in files), key=_position))

    # -- sealing ---------------------------------------------------------------------------

    def _seal(
        self,
        place: str,
        system_id: int,
        name: str,
        data: memoryview,
        digest: bytes,
        facts: SegmentFacts | None,
    ) -> bytes:
        """The object of a file. Each is a session of its own, so that no nonce repeats."""
        keyset, random = self._keyset, self._seams.random
        session, key = random(16), random(32)
        row = SessionRow(session, keyset.epoch, seal_session_key(keyset, session, key))
        header = walfile.encode_header(row)
        frames = self._frames(FrameSealer(session, key, level=self._settings.level), row, key, data)
        small = name.endswith((".history", ".backup"))
        head = WalHead(
            name=name,
            system_id=system_id,
            timeline=int(name[:8], 16),
            size=len(data),
            digest=digest,
            archived=self._seams.now(),
            frames=tuple(map(len, frames)),
            hash=walfile.outer_hash(header, frames),
            epoch=keyset.epoch,
            writer=keyset.writer_name,
            facts=facts,
            text=bytes(data) if small and len(data) <= walfile.TEXT_LIMIT else None,
        )
        signed = sign_document(keyset, walfile.DOMAIN, head.body())
        sealed = self._records[keyset.epoch].seal(
            record.WAL, place, signed, nonce=random(12), pad=walfile.RECORD_PAD
        )
        whole = walfile.encode(header, sealed, frames)
        if self._whole(place, whole)[1] != head:
            raise _corrupts(name)
        return whole

    def _frames(
        self, sealer: FrameSealer, row: SessionRow, key: bytes, data: memoryview
    ) -> list[bytes]:
        """Seal in pieces of a frame, and open again what was sealed."""
        opener, frames = FrameOpener(row.id, key), []
        for number, at in enumerate(range(0, len(data), FRAME_SIZE)):
            plain = bytes(data[at : at + FRAME_SIZE])
            sealed = sealer.seal(plain, number)
            if number % self._settings.reopen_every == 0:
                try:
                    same = opener.open(sealed, number) == plain
                except ValueError:
                    same = False
                if not same:
                    raise _corrupts("a part of it")
            frames.append(sealed)
        return frames

    def _there(self, place: str) -> bytes | None:
        try:
            return self._storage.get(place)
        except ObjectMissing:
            return None

    def _compare(self, place: str, found: bytes, digest: bytes, size: int) -> Put:
        """SAME, or WalConflict, which is recorded too."""
        try:
            _, head = self._whole(place, found)
        except Damaged as fault:
            raise Damaged(
                fault.what,
                means="What was archived first is damaged; nothing was overwritten, and the server"
                " keeps its own file.",
                do=f"Remove the object {place} from the storage: the next try stores it anew.",
            ) from None
        if (head.digest, head.size) == (digest, size):
            return Put.SAME
        where = walfile.parse_object(place)
        file = Part.parse(where.name).segment if where.sort == "parts" else where.name
        conflict = Conflict(file, digest, size, self._seams.now(), self._keyset.writer_name)
        name = conflict.name_in(where.system_id)
        with contextlib.suppress(StrongroomError):  # a record that fails must not hide the conflict
            sealed = self._sealed(record.WAL_CONFLICT, name, conflict.body())
            self._storage.put(name, sealed, if_absent=True)
        raise WalConflict(
            f"{where.name} rests in the repository with other content"
            f" (archived {head.archived.isoformat(timespec='seconds')} by {head.writer})."
        )

    # -- opening ---------------------------------------------------------------------------

    def _epoch(self, epoch: int) -> Keyset:
        keyset = self._keysets.get(epoch)
        if keyset is None:
            raise KeyRefused(f"No key of epoch {epoch} is at hand.")
        return keyset

    def _decode(self, place: str, data: bytes | memoryview) -> tuple[Opened, WalHead]:
        """Header and record of an object, its signature verified; Damaged."""
        try:
            opened = walfile.decode(data)
            epoch, raw = self._open_record(place, opened)
            head = WalHead.from_body(open_document(self._epoch(epoch), walfile.DOMAIN, raw))
            sort = walfile.parse_object(place).sort
            if walfile.place_of(sort, head.system_id, head.name) != place:
                raise ValueError("it belongs under another name")
            if not head.epoch == epoch == opened.session.epoch:
                raise ValueError("its header and its record are of different epochs")
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            raise _damaged(place, str(fault)) from None
        return opened, head

    def _open_record(self, place: str, opened: Opened) -> tuple[int, bytes]:
        """The record of an object, and of which epoch it is: nothing seals what the header says."""
        claimed = opened.session.epoch
        for epoch in sorted(self._records, key=lambda epoch: (epoch != claimed, -epoch)):
            with contextlib.suppress(ValueError):
                return epoch, self._records[epoch].open(opened.record, place, record.WAL)[1]
        self._epoch(claimed)  # KeyRefused: another key might open it
        raise ValueError("the record does not open")

    def _whole(self, place: str, data: bytes) -> tuple[Opened, WalHead]:
        """As `_decode`, of an object that was read whole and whose bytes are those that were put."""
        opened, head = self._decode(place, data)
        if not walfile.holds(opened, head, data):
            raise _damaged(place, "its bytes are not what its record says")
        return opened, head

    # -- records beside the files ----------------------------------------------------------

    def _sealed(self, kind: bytes, name: str, body: object, *, pad: int = record.PAD) -> bytes:
        key = self._records[self._keyset.epoch]
        return key.seal(kind, name, canonical(body), nonce=self._seams.random(12), pad=pad)

    def open_record(self, name: str) -> dict[str, Any]:
        """Read a record beside the files; Damaged, ObjectMissing."""
        return self._json(name, _KINDS[walfile.parse_object(name).sort])

    def _json(self, name: str, kind: bytes) -> dict[str, Any]:
        data = self._storage.get(name)
        for epoch in sorted(self._records, reverse=True):
            try:
                _, body = self._records[epoch].open(data, name, kind)
                document = json.loads(body)
            except ValueError:
                continue
            if isinstance(document, dict):
                return document
        raise _damaged(name, "the record does not open")

    def read_summary(self, name: str) -> list[WalFile]:
        """What a summary says; Damaged, ObjectMissing."""
        body = self._json(name, record.WAL_SUMMARY)
        try:
            return [WalFile.from_row(row) for row in body["files"]]
        except (ValueError, KeyError, TypeError) as fault:
            raise _damaged(name, str(fault)) from None

    def _sources(self, source: str) -> Iterator[str]:
        for entry in self._storage.list(f"{walfile.SOURCES}{source}/"):
            if _place(entry.name) is not None:
                yield entry.name

    def _documents(
        self,
        entries: Iterable[Entry],
        kind: bytes,
        read: Callable[[Mapping[str, Any]], _T],
        unread: dict[str, StrongroomError],
    ) -> list[_T]:
        found = []
        for entry in entries:
            try:
                found.append(read(self._json(entry.name, kind)))
            except ObjectMissing:
                continue
            except StrongroomError as fault:
                unread[entry.name] = fault
            except (ValueError, KeyError, TypeError) as fault:
                unread[entry.name] = _damaged(entry.name, str(fault))
        return found

    # -- listings --------------------------------------------------------------------------

    def _files(
        self, system_id: int, timeline: int, found: _Found, unread: dict[str, StrongroomError]
    ) -> list[WalFile]:
        """Every file of a timeline, by name: from summaries, where they fit, else from its head."""
        entries = found.files[timeline]
        told = self._told(found.summaries[timeline], unread)
        known = {
            name: told[name]
            for name, entry in entries.items()
            if name in told and told[name].stored == entry.size
        }
        left = {name: entry for name, entry in entries.items() if name not in known}
        known.update((each.name, each) for each in self._read_files(system_id, left, unread))
        return [known[name] for name in sorted(known)]

    def _begun(
        self,
        entries: Mapping[str, Entry],
        files: Mapping[str, Entry],
        unread: dict[str, StrongroomError],
    ) -> list[Begun]:
        """Segments of which there are parts alone."""
        parts = defaultdict(list)
        for name in entries:
            part = Part.parse(name)
            if part.segment not in files:
                parts[part.segment].append(part)
        found = []
        for segment in sorted(parts):
            if not (chain := _chain(parts[segment])):
                continue
            place = entries[str(chain[-1])].name
            try:
                _, head = self.read_head(place)
            except ObjectMissing:
                continue
            except StrongroomError as fault:
                unread[place] = fault
                continue
            found.append(Begun(segment, chain[-1].end, head.archived, head.facts))
        return found

    def _told(
        self, summaries: Iterable[Entry], unread: dict[str, StrongroomError]
    ) -> dict[str, WalFile]:
        rows: dict[str, WalFile] = {}
        for entry in summaries:
            try:
                rows.update((each.name, each) for each in self.read_summary(entry.name))
            except ObjectMissing:
                continue
            except StrongroomError as fault:
                unread[entry.name] = fault
        return rows

    def _read_files(
        self, system_id: int, entries: Mapping[str, Entry], unread: dict[str, StrongroomError]
    ) -> list[WalFile]:
        """Read the heads of files, many at a time; by name."""
        if not entries:
            return []

        def read(name: str) -> WalFile | None:
            place = entries[name].name
            try:
                _, head = self.read_head(place)
            except ObjectMissing:
                return None
            except StrongroomError as fault:
                unread[place] = fault
                return None
            return WalFile(
                name, entries[name].size, head.size, head.archived, head.facts, head.text
            )

        names = sorted(entries)
        with ThreadPoolExecutor(min(_READERS, len(names))) as pool:
            return [each for each in pool.map(read, names) if each is not None]

    def _put_summary(self, system_id: int, timeline: int, files: Sequence[WalFile]) -> None:
        token = self._seams.random(4).hex()
        place = walfile.folder(system_id, timeline)
        name = f"{place}summaries/{files[0].name}-{files[-1].name}-{token}"
        body = {"files": [each.row() for each in files]}
        sealed = self._sealed(record.WAL_SUMMARY, name, body, pad=INDEX_PAD)
        self._storage.put(name, sealed, if_absent=True)


_KINDS = {
    "gaps": record.WAL_GAP,
    "conflicts": record.WAL_CONFLICT,
    "summaries": record.WAL_SUMMARY,
    "sources": record.WAL_SOURCE,
}


class _Found:
    """The objects of one system's log, sorted out by what they are."""

    def __init__(self) -> None:
        self.files: dict[int, dict[str, Entry]] = defaultdict(dict)
        self.parts: dict[int, dict[str, Entry]] = defaultdict(dict)
        self.gaps: dict[int, list[Entry]] = defaultdict(list)
        self.conflicts: dict[int, list[Entry]] = defaultdict(list)
        self.summaries: dict[int, list[Entry]] = defaultdict(list)
        self.timelines: set[int] = set()

    def add(self, place: walfile.Place, entry: Entry) -> None:
        self.timelines.add(place.timeline)
        if place.sort == "file":
            self.files[place.timeline][place.name] = entry
        elif place.sort == "parts":
            self.parts[place.timeline][place.name] = entry
        elif place.sort == "gaps":
            self.gaps[place.timeline].append(entry)
        elif place.sort == "conflicts":
            self.conflicts[place.timeline].append(entry)
        elif place.sort == "summaries":
            self.summaries[place.timeline].append(entry)


def _position(name: str) -> tuple[str, str]:
    """Order of the log, whatever the timeline."""
    last = name.rsplit("/", 1)[-1]
    return last[8:], last


def _place(name: str) -> walfile.Place | None:
    """What an object is; None for strangers, which `check` names."""
    try:
        return walfile.parse_object(name)
    except ValueError:
        return None


def _history(
    files: Sequence[WalFile], unread: dict[str, StrongroomError], system_id: int
) -> list[Fork] | None:
    """The forks that led to a timeline; None where no history file is here."""
    for each in files:
        try:
            if each.text is None:
                raise ValueError("it is longer than any history file")
            return parse_history(each.text)
        except ValueError as fault:
            place = walfile.object_name(system_id, each.name)
            unread[place] = _damaged(place, str(fault))
    return None


def _object_name(system_id: int, name: str) -> str:
    try:
        return walfile.object_name(system_id, name)
    except ValueError as fault:
        raise UsageError(f"PostgreSQL archives no such file: {fault}.") from None


def _part_prefix(system_id: int, segment: str) -> str:
    try:
        return walfile.part_prefix(system_id, segment)
    except ValueError as fault:
        raise UsageError(f"PostgreSQL archives no such file: {fault}.") from None


def _chain(parts: Iterable[Part]) -> list[Part]:
    """Parts that join from a segment's start on, as far as they go."""
    chain: list[Part] = []
    left, at = set(parts), 0
    while fits := [part for part in left if part.start <= at < part.end]:
        best = max(fits, key=lambda part: (part.end, part.start))
        chain.append(best)
        left.remove(best)
        at = best.end
    return chain


def _damaged(place: str, reason: str) -> Damaged:
    return Damaged(f"The object {place} is damaged: {reason}.")


def _corrupts(what: str) -> Damaged:
    return Damaged(
        f"What was compressed and sealed of {what} does not open to what it was.",
        means="It was not stored; the server keeps its own file, but this machine's memory, CPU or"
        " libraries corrupt data.",
        do="Test the machine's memory; PostgreSQL tries again by itself.",
    )


__all__ = ["Begun", "Put", "Timeline", "WalListing", "WalStore"]
