"""A repository that is open: what sources, sinks and operations ask of the engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Protocol

from strongroom.errors import Damaged, KeyRefused, ObjectMissing
from strongroom.format import keyset as keysets
from strongroom.format import pack, record, segment
from strongroom.format.chunker import Chunker
from strongroom.format.keyset import Keyset
from strongroom.format.segment import Segment
from strongroom.progress import Progress
from strongroom.repository.catalogue import Catalogue, Condemned, Snapshot
from strongroom.repository.identity import Identity
from strongroom.repository.index import Index
from strongroom.repository.reader import ChunkReader, SnapshotReader
from strongroom.repository.session import Seams, Settings, WriteSession
from strongroom.storage.base import Storage


class Keys(Protocol):
    """The keys that were opened (`keyring.Keyring`)."""

    @property
    def current(self) -> Keyset:
        """The newest epoch's."""

    @property
    def keysets(self) -> Mapping[int, Keyset]:
        """Every epoch's."""


class Repository:
    """One repository, opened with the keys of a role."""

    def __init__(
        self,
        storage: Storage,
        identity: Identity,
        keys: Keys,
        *,
        seams: Seams,
        settings: Settings | None = None,
    ) -> None:
        if identity.admin_public != keys.current.admin_public:
            raise Damaged(
                "The repository's identity was signed by another admin than these keys know.",
                means="Somebody replaced strongroom.json; nothing was read or written.",
                do="Bring strongroom.json back from a copy of the repository.",
            )
        self.storage, self.identity, self.keys = storage, identity, keys
        self.seams = seams
        self.settings = settings or Settings(sealers=max(2, os.cpu_count() or 2))
        self.catalogue = Catalogue(storage, keys.current, random=seams.random)
        self._readers: dict[str, ChunkReader] = {}
        self._readers_lock = threading.Lock()

    # -- reading ---------------------------------------------------------------------------

    def open_snapshot(self, snapshot: Snapshot) -> SnapshotReader:
        """Open one snapshot for reading; KeyRefused for keys that only write."""
        if not self.keys.current.reads:
            raise KeyRefused(
                "These keys can write backups but not read them.",
                means="The repository is untouched; its contents need a reader's key.",
                do="Open the repository with a reader's passphrase, key file or recovery code.",
            )
        return SnapshotReader(snapshot, self.chunk_reader(snapshot.group))

    def chunk_reader(self, group: str) -> ChunkReader:
        """The reader of the chunks of one group; one per group, however many snapshots are open."""
        with self._readers_lock:
            if group not in self._readers:
                loader = _IndexLoader(self.catalogue, group)
                self._readers[group] = ChunkReader(self.storage, self.keys.keysets, loader.load)
            return self._readers[group]

    # -- writing ---------------------------------------------------------------------------

    def begin(
        self, group: str, *, progress: Progress, chunker: Chunker | None = None
    ) -> WriteSession:
        """Steps w1 and w2: mark the session, list gc, then read the index.

        What a crashed run of the group left without an index is taken up first.
        """
        seams, catalogue = self.seams, self.catalogue
        session = seams.random(16)
        started = seams.now()
        unfinished = catalogue.unfinished(group)
        mark = {"started": started.isoformat(), "writer": self.keys.current.writer_name}
        catalogue.put_mark(group, session.hex(), 0, mark)
        condemned = catalogue.load_condemned()
        index = catalogue.load_index(group, condemned=condemned.packs)
        if unfinished:
            if self._adopt(group, index, condemned, unfinished):
                index = catalogue.load_index(group, condemned=condemned.packs)
            for crashed in unfinished:
                catalogue.put_adopted(group, crashed, by=session.hex())
        key = keysets.chunk_key(self.keys.current.id_key, b"chunker")
        return WriteSession(
            self.storage,
            catalogue,
            self.keys.current,
            group=group,
            index=index,
            condemned=condemned,
            session=session,
            chunker=chunker or self.identity.chunker(key),
            settings=self.settings,
            seams=seams,
            progress=progress,
            started=started,
        )

    def _adopt(self, group: str, index: Index, condemned: Condemned, unfinished: set[str]) -> int:
        """Index the packs that unfinished sessions of the group put and did not come to index.

        Returns how many there were.
        """
        known = {name for _, name in index.packs} | condemned.packs
        found = 0
        for folder in ("packs", "trees"):
            for entry in self.storage.list(f"{folder}/"):
                tree, name = pack.parse_name(entry.name)
                if name in known:
                    continue
                rows = self._footer_of(entry.name, entry.size, tree, name, unfinished)
                if rows is not None:
                    self.catalogue.put_index(group, rows, now=self.seams.now())
                    found += 1
        return found

    def _footer_of(
        self, object_name: str, size: int, tree: bool, name: bytes, sessions: set[str]
    ) -> Segment | None:
        """The index rows of a pack whose every session is one of `sessions`, else None."""
        try:
            rows = read_footer(self.storage, self.catalogue, object_name, size)
        except (ValueError, ObjectMissing):
            return None  # a torn or foreign pack is no use as a target; check names it
        if any(row.id.hex() not in sessions for row in rows.sessions):
            return None
        rows.packs = [(tree, name)]
        return rows


class _IndexLoader:
    """Reads a group's index, and again only when its segments are others."""

    def __init__(self, catalogue: Catalogue, group: str) -> None:
        self._catalogue, self._group = catalogue, group
        self._names: list[str] = []
        self._index: Index | None = None

    def load(self) -> Index:
        """The index as it is now."""
        names = self._catalogue.index_names(self._group)
        if self._index is None or names != self._names:
            condemned = self._catalogue.load_condemned().packs
            self._index = self._catalogue.load_index(self._group, condemned=condemned)
            self._names = names
        return self._index


_TAIL = 64 * 1024


def read_footer(storage: Storage, catalogue: Catalogue, name: str, size: int) -> Segment:
    """Read the footer of a pack of `size` bytes; ValueError when it does not open."""
    tail = storage.get(name, offset=max(0, size - _TAIL), length=min(size, _TAIL))
    if len(tail) < pack.TRAILER.size:
        raise ValueError("the pack is cut short")
    length, end = pack.TRAILER.unpack(tail[-pack.TRAILER.size :])
    if end != pack.END or length > size:
        raise ValueError("the pack does not end as packs do")
    total = length + pack.TRAILER.size
    if total > len(tail):
        tail = storage.get(name, offset=size - total, length=total)
    return open_footer(catalogue, name, tail[-total : -pack.TRAILER.size])


def open_footer(catalogue: Catalogue, name: str, sealed: bytes | memoryview) -> Segment:
    """Open a pack's footer; ValueError when it is damaged."""
    _, body = catalogue.records.open(sealed, name.split("/", 1)[0], record.FOOTER)
    return segment.decode(body)


__all__ = ["Repository", "Seams", "Settings", "open_footer", "read_footer"]
