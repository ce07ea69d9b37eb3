"""An artefact as a Source: a tar becomes a tree of files, a dump one file in a tree.

Archives come in any order and the repository's tree wants path order, so that entries wait in a
table on disk while their contents are stored; memory does not grow with their number. The same
table finds a second entry of one name, and a hard link to what is no file.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from strongroom.artefacts.opening import Artefact
from strongroom.artefacts.tar_reading import hostile, read_tar
from strongroom.format.content import whole
from strongroom.format.tree import Entry, Kind, decode_record, encode_record
from strongroom.progress import Progress
from strongroom.repository.ports import Lane, Session, Stored, Taken

_SMALL = 64 * 1024
_BATCH = 2048
_BATCH_SIZE = 8 * 1024 * 1024


class ArtefactSource:
    """A verified artefact under a source's name; see `ports.Source`. Always of kind files."""

    kind = "files"

    def __init__(self, name: str, artefact: Artefact, *, inner: str, mtime_ns: int) -> None:
        self.name = name
        self._artefact, self._inner, self._mtime = artefact, inner, mtime_ns

    def back_up(self, session: Session, *, progress: Progress) -> Taken:
        """Push the content; Damaged or Refused before anything is committed."""
        content = self._artefact.unpack()
        try:
            progress.phase("taking the artefact in")
            if self._artefact.shape.content == "tar":
                taken = self._tree(content.read, session, progress)
            else:
                taken = self._dump(content.read, session, progress)
            content.finish()
        finally:
            content.close()
        return taken

    def settled(self) -> None:
        """Nothing is kept."""

    def _facts(self) -> dict[str, Any]:
        manifest = self._artefact.manifest
        facts: dict[str, Any] = {
            "artefact": self._artefact.name,
            "artefact_sha256": self._artefact.file.sha256,
        }
        if manifest is not None:
            facts["artefact_source"] = dict(manifest.source)
            facts["artefact_snapshot"] = dict(manifest.snapshot)
        return facts

    def _dump(self, read: Callable[[int], bytes], session: Session, progress: Progress) -> Taken:
        stored = _store(iter(lambda: read(1 << 20), b""), session.lane(), progress)
        session.tree.add(Entry(b"", Kind.DIRECTORY, 0o700, mtime_ns=self._mtime))
        session.tree.add(
            Entry(
                self._inner.encode(),
                Kind.FILE,
                0o600,
                mtime_ns=self._mtime,
                size=stored.size,
                content=stored.content,
            )
        )
        progress.advance(files=1)
        facts: Mapping[str, Any] = {**self._facts(), "files": 1, "size": stored.size}
        return Taken(1, stored.size, facts)

    def _tree(self, read: Callable[[int], bytes], session: Session, progress: Progress) -> Taken:
        with tempfile.NamedTemporaryFile(prefix="strongroom-") as place:
            names = _Names(place.name, self._mtime)
            try:
                files = size = 0
                lane = session.lane()
                small = _Small(lane, names)
                for entry, pieces in read_tar(read, self._artefact.limits):
                    if entry.kind is not Kind.FILE:
                        names.add(entry)
                        continue
                    files += 1
                    size += entry.size
                    if not entry.size:
                        names.add(entry)
                    elif entry.size <= _SMALL:
                        small.add(entry, b"".join(pieces))
                        progress.advance(size=entry.size)
                    else:
                        stored = _store(pieces, lane, progress)
                        names.add(replace(entry, content=stored.content))
                    progress.advance(files=1)
                small.flush()
                for path, record in names.settle():
                    session.tree.add_record(path, record)
            finally:
                names.close()
        return Taken(files, size, {**self._facts(), "files": files, "size": size})


def _store(pieces: Iterator[bytes], lane: Lane, progress: Progress) -> Stored:
    writer = lane.content()
    for piece in pieces:
        writer.write(piece)
        progress.advance(size=len(piece))
    return writer.finish()


class _Small:
    """Small files, stored many at a time."""

    def __init__(self, lane: Lane, names: _Names) -> None:
        self._lane, self._names = lane, names
        self._entries: list[Entry] = []
        self._contents: list[bytes] = []
        self._size = 0

    def add(self, entry: Entry, content: bytes) -> None:
        self._entries.append(entry)
        self._contents.append(content)
        self._size += len(content)
        if len(self._entries) >= _BATCH or self._size >= _BATCH_SIZE:
            self.flush()

    def flush(self) -> None:
        if self._entries:
            ids = self._lane.put_small(self._contents)
            for entry, chunk in zip(self._entries, ids, strict=True):
                self._names.add(replace(entry, content=whole(chunk)))
        self._entries, self._contents, self._size = [], [], 0


class _Names:
    """Every entry by its path, on disk."""

    def __init__(self, path: str, mtime_ns: int) -> None:
        self._mtime = mtime_ns
        self._base = sqlite3.connect(path)
        self._base.executescript(
            "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-32768;"
            "CREATE TABLE entry (path BLOB PRIMARY KEY, kind INT, record BLOB) WITHOUT ROWID;"
            "CREATE TABLE link (path BLOB, target BLOB, record BLOB);"
        )

    def add(self, entry: Entry) -> None:
        if entry.kind is Kind.HARDLINK:
            row = (entry.path, entry.target, encode_record(entry))
            self._base.execute("INSERT INTO link VALUES (?, ?, ?)", row)
            return
        self._insert(entry)

    def _insert(self, entry: Entry) -> None:
        try:
            row = (entry.path, int(entry.kind), encode_record(entry))
            self._base.execute("INSERT INTO entry VALUES (?, ?, ?)", row)
        except sqlite3.IntegrityError:
            shown = entry.path[:200].decode("utf-8", "backslashreplace")
            raise hostile(f"it has two entries of the name {shown!r}") from None

    def settle(self) -> Iterator[tuple[bytes, bytes]]:
        """Resolve links, make folders that are only implied, refuse what is below a file."""
        self._links()
        folders = {b""}
        if self._kind(b"") is None:
            self._insert(Entry(b"", Kind.DIRECTORY, 0o700, mtime_ns=self._mtime))
        missing: list[Entry] = []
        above = b""
        for (path,) in self._base.execute("SELECT path FROM entry ORDER BY path"):
            parent = path.rpartition(b"/")[0]
            if parent == above:
                continue
            above = parent
            while parent and parent not in folders:
                kind = self._kind(parent)
                if kind is None:
                    missing.append(Entry(parent, Kind.DIRECTORY, 0o700, mtime_ns=self._mtime))
                elif kind != Kind.DIRECTORY:
                    raise hostile("it has an entry below one that is no folder")
                folders.add(parent)
                parent = parent.rpartition(b"/")[0]
        for entry in missing:
            self._insert(entry)
        yield from self._base.execute("SELECT path, record FROM entry ORDER BY path")

    def _links(self) -> None:
        for path, target, record in self._base.execute("SELECT path, target, record FROM link"):
            first = target
            for _ in range(64):  # a link to a link, as some write them
                row = self._base.execute("SELECT target FROM link WHERE path = ?", (first,))
                further = row.fetchone()
                if further is None:
                    break
                first = further[0]
            found = self._base.execute("SELECT record FROM entry WHERE path = ?", (first,))
            file = found.fetchone()
            of = None if file is None else decode_record(first, file[0])
            if of is None or of.kind not in (Kind.FILE, Kind.HARDLINK):
                raise hostile("it has a hard link to what is no file in it")
            if of.kind is Kind.HARDLINK:
                first = of.target
            entry = decode_record(path, record)
            self._insert(replace(entry, target=first))

    def _kind(self, path: bytes) -> int | None:
        row = self._base.execute("SELECT kind FROM entry WHERE path = ?", (path,)).fetchone()
        return None if row is None else int(row[0])

    def close(self) -> None:
        self._base.close()
