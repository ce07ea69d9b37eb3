"""Look into a repository: which snapshots, what is in one, one file of it, what changed."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from strongroom.errors import NotFound, UsageError
from strongroom.format.tree import Entry, Kind
from strongroom.repository.catalogue import DamagedRecord, Snapshot
from strongroom.repository.fates import Fate, Fates
from strongroom.repository.reader import SnapshotReader
from strongroom.repository.repository import Repository

Change = Literal["added", "removed", "changed", "metadata"]


@dataclass(frozen=True, slots=True)
class Listing:
    """Snapshots, oldest first, the commit records that do not open, and what was decided: by
    object name. Those that were expired are no snapshots any more, and listed apart."""

    snapshots: list[Snapshot]
    damaged: list[DamagedRecord]
    expired: list[Snapshot]
    fates: Mapping[str, Fate]


@dataclass(frozen=True, slots=True)
class Difference:
    """One path that two snapshots do not agree on."""

    path: bytes
    change: Change
    before: Entry | None
    after: Entry | None


def list_snapshots(repository: Repository, source: str | None = None) -> Listing:
    """Every snapshot of a source, or of all."""
    found = list(repository.catalogue.snapshots(source))
    # Read behind the snapshots: what is swept between the two is then known to be going.
    fates = Fates(repository.catalogue).read(source)
    listing = Listing([], [], [], fates)
    for one in found:
        if isinstance(one, DamagedRecord):
            listing.damaged.append(one)
        elif one.name in fates and fates[one.name].hidden:
            listing.expired.append(one)
        else:
            listing.snapshots.append(one)
    listing.snapshots.sort(key=lambda snapshot: snapshot.time)
    listing.expired.sort(key=lambda snapshot: snapshot.time)
    return listing


def find_snapshot(
    repository: Repository,
    source: str,
    *,
    backup: str | None = None,
    at: datetime | None = None,
) -> Snapshot:
    """The snapshot that is meant: an id or a unique prefix of one, `latest`, `oldest`, or the
    newest not after `at`. NotFound, UsageError for a prefix of several."""
    snapshots = list_snapshots(repository, source).snapshots
    if not snapshots:
        raise NotFound(f"There is no snapshot of {source} in {repository.storage.url}.")
    if at is not None:
        return _not_after(snapshots, source, at)
    if backup in (None, "latest"):
        return snapshots[-1]
    if backup == "oldest":
        return snapshots[0]
    found = [snapshot for snapshot in snapshots if snapshot.id.startswith(str(backup))]
    if len(found) > 1:
        ids = ", ".join(snapshot.id for snapshot in found[:5])
        raise UsageError(f"{backup!r} is the beginning of {len(found)} snapshot ids: {ids}.")
    if not found:
        raise NotFound(f"No snapshot of {source} has an id that begins with {backup!r}.")
    return found[0]


def find_expired(repository: Repository, source: str, backup: str) -> Snapshot:
    """The expired snapshot that an id or a unique beginning of one means; NotFound, UsageError."""
    found = [one for one in list_snapshots(repository, source).expired if one.id.startswith(backup)]
    if len(found) > 1:
        ids = ", ".join(one.id for one in found[:5])
        raise UsageError(f"{backup!r} is the beginning of {len(found)} ids: {ids}.")
    if not found:
        raise NotFound(
            f"No expired backup of {source} has an id that begins with {backup!r}.",
            do="`strongroom list --expired` shows those that can still be brought back.",
        )
    return found[0]


def _not_after(snapshots: list[Snapshot], source: str, at: datetime) -> Snapshot:
    before = [snapshot for snapshot in snapshots if snapshot.time <= at]
    if before:
        return before[-1]
    oldest = snapshots[0].time.isoformat(timespec="seconds")
    raise NotFound(
        f"There is no snapshot of {source} from {at.isoformat(timespec='seconds')} or before;"
        f" the oldest is of {oldest}."
    )


def ls(reader: SnapshotReader, path: bytes = b"", *, recursive: bool = False) -> Iterator[Entry]:
    """Yield what is at `path`: the entry itself if it is no directory, else what is in it."""
    path = path.strip(b"/")
    found = reader.find(path) if path else None
    if found is not None and found.kind is not Kind.DIRECTORY:
        yield found
        return
    empty, folder = True, b""
    depth = path.count(b"/") + 1 if path else 0
    for entry in reader.entries(path):
        empty = False
        if entry.path == path:
            continue
        if recursive or entry.path.count(b"/") == depth:
            yield entry
        elif entry.kind is Kind.STREAM:  # no entry of a database says that it has a folder
            above = b"/".join(entry.path.split(b"/", depth + 1)[: depth + 1])
            if above != folder:
                folder = above
                yield Entry(above, Kind.DIRECTORY, 0o700)
    if path and empty:
        raise NotFound(f"The snapshot holds nothing at {path.decode(errors='backslashreplace')}.")


def get(reader: SnapshotReader, path: bytes) -> tuple[Entry, Iterator[memoryview]]:
    """One file's entry and its bytes, in order; hard links are followed to their content."""
    entry = reader.find(path.strip(b"/"))
    if entry is not None and entry.kind is Kind.HARDLINK:
        entry = reader.find(entry.target)
    if entry is None:
        shown = path.decode(errors="backslashreplace")
        raise NotFound(f"The snapshot holds nothing at {shown}.")
    if entry.kind not in (Kind.FILE, Kind.STREAM):
        shown = path.decode(errors="backslashreplace")
        raise UsageError(
            f"{shown} is a {entry.kind.name.lower()}, not a file.",
            do="`strongroom restore … --path` brings back directories and everything else.",
        )
    return entry, reader.stream(entry)


def diff(before: SnapshotReader, after: SnapshotReader) -> Iterator[Difference]:
    """Yield every path on which two snapshots do not agree, in path order."""
    tagged = heapq.merge(
        ((entry.path, 0, entry) for entry in before.entries()),
        ((entry.path, 1, entry) for entry in after.entries()),
        key=lambda row: row[:2],
    )
    held: Entry | None = None
    for path, side, entry in tagged:
        if held is not None and (side == 0 or held.path != path):
            yield Difference(held.path, "removed", held, None)
            held = None
        if side == 0:
            held = entry
        elif held is None:
            yield Difference(path, "added", None, entry)
        else:
            change = _change(held, entry)
            if change is not None:
                yield Difference(path, change, held, entry)
            held = None
    if held is not None:
        yield Difference(held.path, "removed", held, None)


def _change(before: Entry, after: Entry) -> Change | None:
    if before == after:
        return None
    same = (before.kind, before.size, before.content, before.target) == (
        after.kind,
        after.size,
        after.content,
        after.target,
    )
    return "metadata" if same else "changed"
