"""What can be recovered of a cluster: its physical backups and its log, as `rules.recovery` sees them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strongroom.errors import NotFound, ObjectMissing
from strongroom.format import walfile
from strongroom.format.wal import SegmentFacts, SegmentName, WalKind, kind_of
from strongroom.operations.browse import list_snapshots
from strongroom.postgres.physical.facts import PhysicalFacts, is_physical
from strongroom.postgres.wal.fetch import furthest
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.repository import Repository
from strongroom.repository.wal import Timeline, WalListing, WalStore
from strongroom.rules.recovery import Base, Held, Log, Points, RecordedGap, points


@dataclass(frozen=True, slots=True)
class Cluster:
    """A source's physical backups of one system, with the log that is there."""

    source: str
    system_id: int
    store: WalStore
    bases: Sequence[Base]
    log: Log
    snapshots: Mapping[str, Snapshot]
    facts: Mapping[str, PhysicalFacts]
    notes: Sequence[str]

    def wal(self, name: str, *, unfinished: bool = True) -> bytes:
        """A file of the log; of a segment that is not there what came of it, filled up with zeros.

        ObjectMissing when there is none of it; without `unfinished` when it is not there whole.
        """
        try:
            return self.store.get(self.system_id, name)
        except ObjectMissing:
            if kind_of(name) is not WalKind.SEGMENT or not unfinished:
                raise
            found = furthest(
                SegmentName.parse(name, self.log.segment_size),
                partial=lambda: self.store.get(self.system_id, name + ".partial"),
                begun=lambda: self.store.get_begun(self.system_id, name),
            )
            if found is None:
                raise
            return found

    @property
    def major(self) -> int:
        """The major version of its server."""
        newest = max(self.facts.values(), key=lambda facts: facts.stop_time)
        return int(newest.server["version_number"]) // 10000


def is_cluster(repository: Repository, source: str) -> bool:
    """Is the newest backup of a source a physical one? NotFound when it has none."""
    snapshots = list_snapshots(repository, source).snapshots
    if not snapshots:
        raise NotFound(f"There is no backup of {source} in {repository.storage.url}.")
    newest = snapshots[-1]
    return newest.kind == "postgres" and is_physical(repository.open_snapshot(newest).facts)


def look(repository: Repository, source: str, *, backup: str | None = None) -> Cluster:
    """Gather what there is of the system that a backup is of, the newest of the source without one;
    NotFound without a physical backup."""
    facts: dict[str, PhysicalFacts] = {}
    snapshots: dict[str, Snapshot] = {}
    notes: list[str] = []
    for snapshot in list_snapshots(repository, source).snapshots:
        if snapshot.kind != "postgres":
            continue
        body = repository.open_snapshot(snapshot).facts
        if is_physical(body):
            try:
                facts[snapshot.id] = PhysicalFacts.from_json(body)
            except ValueError as fault:
                notes.append(f"backup {snapshot.id[:12]} cannot be understood: {fault}")
            else:
                snapshots[snapshot.id] = snapshot
    if not facts:
        raise NotFound(
            f"There is no physical backup of {source} in {repository.storage.url}.",
            do="Moments belong to clusters: `strongroom list` shows what else there is. For a database,"
            ' set method = "physical", archive its WAL (docs/how-to/archive-wal.md) and back it up.',
        )
    newest = max(facts, key=lambda one: (snapshots[one].time, one))
    system_id = facts[backup if backup in facts else newest].system_id
    for other in sorted({one.system_id for one in facts.values()} - {system_id}):
        mine = [one for one in facts if facts[one].system_id == other]
        last = max(mine, key=lambda one: (snapshots[one].time, one))
        notes.append(
            f"{source} was another system too, {other}; its last backup is of"
            f" {facts[last].stop_time:%Y-%m-%dT%H:%M:%SZ}: --backup {last[:12]} looks at that one"
        )
    facts = {name: one for name, one in facts.items() if one.system_id == system_id}
    store = WalStore(repository)
    listing = store.listing(system_id)
    if listing.unread:
        notes.append(
            f"{len(listing.unread)} objects of the log could not be read:"
            f" {next(iter(listing.unread.values())).what}"
        )
    size = next(iter(facts.values())).wal_segment_size
    bases = [_base(name, one, snapshots[name]) for name, one in facts.items()]
    return Cluster(
        source, system_id, store, bases, log_of(listing, size), snapshots, facts, tuple(notes)
    )


def all_points(cluster: Cluster) -> Points:
    """Windows, gaps and names."""
    return points(cluster.bases, cluster.log)


def _base(name: str, facts: PhysicalFacts, snapshot: Snapshot) -> Base:
    return Base(
        name,
        facts.timeline,
        facts.start_lsn,
        facts.stop_lsn,
        facts.stop_time,
        snapshot.size,
    )


def log_of(listing: WalListing, size: int) -> Log:
    """A listing as `rules.recovery` sees it; `size` is that of a segment."""
    damaged = []
    for object_name, fault in listing.unread.items():
        place = walfile.parse_object(object_name)
        if place.sort == "file" and kind_of(place.name) is WalKind.SEGMENT:
            damaged.append((SegmentName.parse(place.name, size), fault.what.rstrip(".")))
    return Log(
        size,
        {
            number: _held(
                one, size, [(name, why) for name, why in damaged if name.timeline == number]
            )
            for number, one in listing.timelines.items()
        },
    )


def without(cluster: Cluster, name: SegmentName, why: str) -> Cluster:
    """The cluster as it is to be recovered when a segment turns out not to be what it should be."""
    held = cluster.log.timelines[name.timeline]
    number = name.number
    made = dataclasses.replace(
        held,
        segments={each: facts for each, facts in held.segments.items() if each != number},
        partials={each: facts for each, facts in held.partials.items() if each != number},
        begun=held.begun - {number},
        gaps=(*held.gaps, RecordedGap(name.start, name.end, why)),
    )
    log = Log(cluster.log.segment_size, {**cluster.log.timelines, name.timeline: made})
    return dataclasses.replace(cluster, log=log)


def _held(timeline: Timeline, size: int, damaged: Sequence[tuple[SegmentName, str]]) -> Held:
    segments: dict[int, SegmentFacts | None] = {
        SegmentName.parse(file.name, size).number: file.facts
        for file in timeline.segments
        if file.size == size
    }
    begun = {
        SegmentName.parse(one.name, size).number: one.facts
        for one in timeline.begun
        if one.facts is not None and one.facts.last is not None
    }
    begun = {number: facts for number, facts in begun.items() if number not in segments}
    segments |= begun
    return Held(
        segments,
        timeline.history,
        (
            *(RecordedGap(name.start, name.end, why) for name, why in damaged),
            *(RecordedGap(gap.start, gap.end, gap.reason) for gap in timeline.gaps),
        ),
        {SegmentName.parse(file.name, size).number: file.facts for file in timeline.partials},
        frozenset(begun),
    )


__all__ = ["Cluster", "all_points", "is_cluster", "log_of", "look", "without"]
