"""A repository that is open: what sources, sinks and operations ask of the engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Protocol

from strongroom.errors import Damaged, KeyRefused
from strongroom.format import keyset as keysets
from strongroom.format import pack
from strongroom.format.chunker import Chunker
from strongroom.format.keyset import Keyset
from strongroom.progress import Progress
from strongroom.repository.catalogue import Catalogue, Condemned, Snapshot
from strongroom.repository.footers import footers
from strongroom.repository.identity import Identity
from strongroom.repository.index import Index
from strongroom.repository.mending import mend
from strongroom.repository.reader import ChunkReader, SnapshotReader
from strongroom.repository.seams import Seams, Settings
from strongroom.repository.session import WriteSession
from strongroom.storage.base import Storage


class Keys(Protocol):
    """The keys that were opened (`keyring.Keyring`)."""

    @property
    def current(self) -> Keyset:
        """The newest epoch's."""

    @property
    def keysets(self) -> Mapping[int, Keyset]:
        """Every epoch's."""

    @property
    def slots(self) -> Mapping[int, str]:
        """The key slot that opened each epoch; empty for keys that came without one."""


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
                self._readers[group] = ChunkReader(
                    self.storage, self.keys.keysets, loader.load, search=loader.search
                )
            return self._readers[group]

    # -- writing ---------------------------------------------------------------------------

    def begin(
        self, group: str, *, progress: Progress, chunker: Chunker | None = None
    ) -> WriteSession:
        """Steps w1 and w2: mark the session, list gc, read the index, then list the packs.

        What a crashed run of the group left without an index is taken up first, and an index that
        lost segments is mended; the session's `warnings` say so.
        """
        seams, catalogue = self.seams, self.catalogue
        session = seams.random(16)
        started = seams.now()
        unfinished = catalogue.unfinished(group)
        mark = {"started": started.isoformat(), "writer": self.keys.current.writer_name}
        catalogue.put_mark(group, session.hex(), 0, mark)
        condemned = catalogue.load_condemned()
        index, lost = catalogue.read_index(group, condemned=condemned.packs)
        warnings = []
        if lost:
            progress.phase("mending the index")
            rows = self.settings.index_rows
            warnings.append(mend(catalogue, group, index, lost, now=seams.now(), rows=rows))
            index, _ = catalogue.read_index(group, condemned=condemned.packs)
        if unfinished:
            if self._adopt(group, index, condemned, unfinished):
                index, _ = catalogue.read_index(group, condemned=condemned.packs)
            for crashed in unfinished:
                catalogue.put_adopted(group, crashed, by=session.hex())
        gone = self._gone(index, condemned)
        if gone:  # what rested in them is stored anew
            index, _ = catalogue.read_index(group, condemned=condemned.packs | gone)
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
            warnings=warnings,
        )

    def _gone(self, index: Index, condemned: Condemned) -> frozenset[bytes]:
        """Packs that the index counts on and that the storage does not hold, or not whole.

        A backup that relied on them would be green and not restore.
        """
        sizes = {
            entry.name: entry.size
            for prefix in ("packs/", "trees/")
            for entry in self.storage.list(prefix)
        }
        return frozenset(
            raw
            for (tree, raw), end in index.extents().items()
            if raw not in condemned.packs
            and sizes.get(pack.object_name(tree, raw), 0) < end + pack.TRAILER.size
            and index.frames_in(tree, raw).any()
        )

    def _adopt(self, group: str, index: Index, condemned: Condemned, unfinished: set[str]) -> int:
        """Index the packs that unfinished sessions of the group put and did not come to index.

        Returns how many there were.
        """
        known = index.told_packs() | condemned.packs
        found = 0
        for rows in footers(self.catalogue, known):
            if all(row.id.hex() in unfinished for row in rows.sessions):
                self.catalogue.put_index(group, rows, now=self.seams.now())
                found += 1
        return found


class _IndexLoader:
    """Reads a group's index, and again only when its segments are others.

    Reading must not depend on the index alone: every pack's footer tells what is in it. They are
    read where a segment is damaged, and when `search` was called.
    """

    def __init__(self, catalogue: Catalogue, group: str) -> None:
        self._catalogue, self._group = catalogue, group
        self._names: list[str] = []
        self._index: Index | None = None
        self._thorough = False

    def load(self) -> Index:
        """The index as it is now."""
        names = self._catalogue.index_names(self._group)
        if self._index is None or names != self._names:
            self._index = self._read()
            self._names = names
        return self._index

    def search(self) -> Index:
        """The index as it is now, with what only footers tell."""
        self._thorough, self._index = True, None
        return self.load()

    def _read(self) -> Index:
        try:
            condemned = self._catalogue.load_condemned().packs
        except Damaged:  # a reader only prefers other packs; check names the record
            condemned = frozenset()
        index, lost = self._catalogue.read_index(self._group, condemned=condemned)
        if not lost and not self._thorough:
            return index
        self._thorough = True  # check names the segment
        told = list(footers(self._catalogue, index.told_packs()))
        return self._catalogue.read_index(self._group, condemned=condemned, beside=told)[0]


__all__ = ["Repository", "Seams", "Settings"]
