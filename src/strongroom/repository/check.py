"""Verification of what rests in a repository, and who is hurt by what is damaged.

    L0   every small record opens; every pack that the index names is there and long enough
    L1   every refs resolves; every tree page decodes; every entry's chunks are in the index
    L2   packs are hashed again and compared with their names (needs no key that opens data)
    L3   every frame is opened and the id of every chunk in it recomputed

L1's trees and L3 need a reader's key; with a writer's they are left out and
said to be. A finding names the object, the reason, and the snapshots and files
that do not restore because of it; damage that hurts nobody is said to hurt nobody.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from strongroom.errors import Damaged, KeyRefused, ObjectMissing, StrongroomError
from strongroom.format import content as contents
from strongroom.format import keyset as keysets
from strongroom.format import pack as packs
from strongroom.format.content import ID_SIZE
from strongroom.format.frame import FrameOpener
from strongroom.format.segment import Segment
from strongroom.format.tree import Entry
from strongroom.progress import Progress
from strongroom.repository import identity, keyring
from strongroom.repository.catalogue import DamagedRecord, Refs, Snapshot
from strongroom.repository.index import ABSENT, Index
from strongroom.repository.reader import ChunkReader, SnapshotReader
from strongroom.repository.repository import Repository, footers, read_footer

FILES_NAMED = 1000  # a finding names so many files of a snapshot; the rest is counted


@dataclass(slots=True)
class Finding:
    """Something that is not as it was written.

    `snapshots` are ids that do not restore whole because of it; `files` maps a
    snapshot id to raw paths; `files_affected` counts them all.
    """

    level: int
    object: str
    reason: str
    snapshots: list[str] = field(default_factory=list)
    files: dict[str, list[bytes]] = field(default_factory=dict)
    files_affected: int = 0


@dataclass(slots=True)
class Report:
    """What a check looked at and what it found. Sizes in bytes."""

    level: int
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    objects: int = 0
    snapshots: int = 0
    packs_read: int = 0
    packs_left: int = 0
    bytes_read: int = 0
    verified: list[str] = field(default_factory=list)

    @property
    def damaged_snapshots(self) -> list[str]:
        """Ids of every snapshot that does not restore whole."""
        return sorted({name for finding in self.findings for name in finding.snapshots})


@dataclass(frozen=True, slots=True)
class Budget:
    """Where L2 and L3 stop: bytes read, or a call that says that time is up."""

    size: int | None = None
    expired: Callable[[], bool] = lambda: False


@dataclass(slots=True)
class _Group:
    """One group's index and what is known to be bad in it.

    `unindexed` counts, per snapshot id, frames that no index segment tells of; `index` may know
    them from footers. `spoiled` are chunks, as frame row and id, whose bytes are others.
    """

    index: Index
    bad: npt.NDArray[np.bool_]
    unindexed: dict[str, int] = field(default_factory=dict)
    spoiled: set[tuple[int, bytes]] = field(default_factory=set)

    def lacks(self, chunk_id: bytes) -> bool:
        """Is there no good copy of a chunk?"""
        rows = self.index.copies(chunk_id)
        frames = [int(self.index.frame[row]) for row in rows]
        return all(self.bad[frame] or (frame, chunk_id) in self.spoiled for frame in frames)


class Checker:
    """One run of verification."""

    def __init__(self, repository: Repository, *, progress: Progress) -> None:
        self._repository = repository
        self._storage = repository.storage
        self._catalogue = repository.catalogue
        self._progress = progress
        self._sizes: dict[str, int] = {}
        self._groups: dict[str, _Group] = {}
        self._snapshots: list[Snapshot] = []
        self._refs: dict[str, Refs] = {}
        self._reads = repository.keys.current.reads
        self._bad_packs: dict[str, str] = {}
        self._condemned: frozenset[bytes] = frozenset()
        self._openers: dict[tuple[bytes, bytes], FrameOpener] = {}

    def run(
        self,
        level: int,
        *,
        budget: Budget | None = None,
        last_verified: Mapping[str, float] | None = None,
    ) -> Report:
        """Check up to `level`; L2 and L3 take packs in the order of `last_verified`, never first."""
        report = Report(level)
        self._progress.phase("listing objects")
        self._sizes = {entry.name: entry.size for entry in self._storage.list("")}
        report.objects = len(self._sizes)
        self._records(report)
        self._load_groups(report)
        self._pack_sizes(report)
        self._lost_objects(report)
        if level >= 1:
            self._resolve(report)
        if level >= 2:
            self._read_packs(report, level, budget or Budget(), last_verified or {})
        if level >= 1:
            self._name_files(report)
        report.snapshots = len(self._snapshots)
        return report

    # -- L0 --------------------------------------------------------------------------------

    def _records(self, report: Report) -> None:
        self._identity(report)
        for slot in keyring.list_slots(self._storage):
            if slot.damaged:
                report.findings.append(
                    Finding(0, slot.name, "the key object is not what its name says")
                )
        for found in self._catalogue.snapshots():
            if isinstance(found, DamagedRecord):
                lost = found.name.rsplit("-", 1)[-1]
                report.findings.append(Finding(0, found.name, found.reason, [lost]))
            else:
                self._snapshots.append(found)
        openers: dict[str, Callable[[str], object]] = {
            "refs/": self._open_refs,
            "sessions/": self._catalogue.open_mark,
            "gc/": self._catalogue.open_gc,
        }
        for name in sorted(self._sizes):
            for prefix, opener in openers.items():
                if name.startswith(prefix):
                    self._try(report, name, opener)
            if name.split("/", 1)[0] not in _FOLDERS:
                report.notes.append(f"{name} is not an object of the repository")

    def _identity(self, report: Report) -> None:
        try:
            identity.load(self._storage)
        except StrongroomError as fault:
            report.findings.append(Finding(0, identity.NAME, fault.what))

    def _open_refs(self, name: str) -> None:
        self._refs[name.rsplit("/", 1)[-1]] = self._catalogue.open_refs(name)

    def _try(self, report: Report, name: str, opener: Callable[[str], object]) -> None:
        try:
            opener(name)
        except (Damaged, KeyError, TypeError, ValueError) as fault:
            report.findings.append(Finding(0, name, _reason(fault)))
        except ObjectMissing:
            report.notes.append(f"{name} went away during the check")

    def _load_groups(self, report: Report) -> None:
        try:
            self._condemned = self._catalogue.load_condemned().packs
        except Damaged:
            report.notes.append("condemned packs are not known: a record under gc/ is damaged")
        segments: dict[str, dict[str, Segment]] = defaultdict(dict)
        for name in sorted(self._sizes):
            if not name.startswith("index/"):
                continue
            group = name.split("/")[1]
            segments.setdefault(group, {})
            self._try(
                report, name, lambda name: _keep(segments, self._catalogue.open_index(name), name)
            )
        for snapshot in self._snapshots:
            segments.setdefault(snapshot.group, {})
        for group, found in segments.items():
            self._groups[group] = self._load_group(report, group, list(found.values()))

    def _load_group(self, report: Report, name: str, segments: list[Segment]) -> _Group:
        """Join a group's segments; where they lack something, ask the footers of other packs."""
        index = Index(segments, condemned=self._condemned)
        unindexed = {
            snapshot.id: missing
            for snapshot in self._snapshots
            if snapshot.group == name
            and snapshot.id in self._refs
            and (missing := index.unknown(self._refs[snapshot.id].frames))
        }
        if unindexed or self._doubtful(name, index, len(segments)):
            known = {pack for _, pack in index.packs}
            found = list(footers(self._catalogue, known))
            index = Index([*segments, *found], condemned=self._condemned)
            report.notes.append(
                f"{len(found)} packs that no segment of {name} lists were looked into"
            )
        return _Group(index, np.zeros(index.frames, np.bool_), unindexed)

    def _doubtful(self, name: str, index: Index, opened: int) -> bool:
        """Might the index lack something that no refs can tell of?"""
        snapshots = [snapshot for snapshot in self._snapshots if snapshot.group == name]
        if any(snapshot.id not in self._refs for snapshot in snapshots):
            return True
        stored = sum(object_name.startswith(f"index/{name}/") for object_name in self._sizes)
        # A frame that was moved has its chunk rows in another segment: is it there?
        hollow = not np.bincount(index.frame, minlength=index.frames).all()
        return opened < stored or hollow

    def _pack_sizes(self, report: Report) -> None:
        for group in self._groups.values():
            for (tree, raw), end in group.index.extents().items():
                name = packs.object_name(tree, raw)
                size = self._sizes.get(name)
                if size is None:
                    reason = "the pack is missing"
                elif size < end + packs.TRAILER.size:
                    reason = f"the pack has {size} bytes; the index knows of {end}"
                else:
                    continue
                bad = group.index.frames_in(tree, raw)
                if size is None and not bad.any():
                    continue  # swept; its frames rest elsewhere
                if size is not None:
                    bad &= group.index.frame_ends() > size
                elif raw in self._condemned and not any(self._relying(group, bad)):
                    group.bad |= bad
                    continue  # swept; a run that was overtaken indexed it all the same
                group.bad |= bad
                self._bad_packs[name] = reason
                self._blame(report, 0, name, reason, group, bad)

    def _lost_objects(self, report: Report) -> None:
        """Snapshots without refs, and refs that point at a snapshot that is not there."""
        for snapshot in self._snapshots:
            if snapshot.id not in self._refs:
                name = f"refs/{snapshot.source}/{snapshot.id}"
                if not any(finding.object == name for finding in report.findings):
                    reason = "the snapshot's refs are missing: a prune would not spare its packs"
                    report.findings.append(Finding(0, name, reason))
        committed = {snapshot.name for snapshot in self._snapshots}
        for refs in self._refs.values():
            if refs.snapshot not in committed and refs.snapshot not in self._sizes:
                report.notes.append(
                    f"{refs.name} announces {refs.snapshot}, which is not there:"
                    " a run that did not commit, or a snapshot that was removed"
                )

    def _blame(
        self,
        report: Report,
        level: int,
        name: str,
        reason: str,
        group: _Group,
        bad: npt.NDArray[np.bool_],
    ) -> None:
        hurt = [snapshot.id for snapshot in self._relying(group, bad)] if bad.any() else []
        report.findings.append(Finding(level, name, reason, hurt))

    def _relying(self, group: _Group, bad: npt.NDArray[np.bool_]) -> Iterator[Snapshot]:
        """The snapshots whose refs name a bad frame."""
        spoiled = group.index.references(bad)
        for snapshot in self._snapshots:
            refs = self._refs.get(snapshot.id)
            if self._groups[snapshot.group] is not group:
                continue
            if refs is None or any(
                _overlap(held, spoiled.get(bytes.fromhex(session), []))
                for session, held in refs.frames.items()
            ):
                yield snapshot

    # -- L1 --------------------------------------------------------------------------------

    def _resolve(self, report: Report) -> None:
        self._progress.phase("resolving refs and trees")
        for snapshot in self._snapshots:
            refs = self._refs.get(snapshot.id)
            group = self._groups[snapshot.group]
            missing = group.unindexed.get(snapshot.id)
            if refs is not None and missing:
                lost = group.index.unknown(refs.frames)
                reason = f"{missing} frames that it relies on are in no index segment"
                reason += (
                    f", {lost} of them in no pack's footer" if lost else "; footers tell of them"
                )
                report.findings.append(Finding(1, refs.name, reason, [snapshot.id] if lost else []))
        if not self._reads:
            report.notes.append("trees were not opened: these keys only write")

    # -- L2, L3 ----------------------------------------------------------------------------

    def _read_packs(
        self,
        report: Report,
        level: int,
        budget: Budget,
        last_verified: Mapping[str, float],
    ) -> None:
        deep = level >= 3 and self._reads
        if level >= 3 and not deep:
            report.notes.append("frames were not opened: these keys only write")
        names = [name for name in self._sizes if name.startswith(("packs/", "trees/"))]
        names.sort(key=lambda name: (last_verified.get(name, 0.0), name))
        self._progress.plan(size=sum(self._sizes[name] for name in names), files=len(names))
        self._progress.phase("reading packs")
        left = iter(names)
        with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
            running: dict[Future[_PackVerdict], str] = {}
            stopped = False
            while True:
                while not stopped and len(running) < 4:
                    stopped = budget.expired() or (
                        budget.size is not None and report.bytes_read >= budget.size
                    )
                    name = None if stopped else next(left, None)
                    if name is None:
                        break
                    running[pool.submit(self._read_pack, name, deep)] = name
                    report.bytes_read += self._sizes[name]
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for job in done:
                    self._judge(report, running.pop(job), job.result())
        report.packs_left = len(names) - report.packs_read

    def _judge(self, report: Report, name: str, verdict: _PackVerdict) -> None:
        report.packs_read += 1
        self._progress.advance(size=self._sizes[name], files=1)
        if verdict.reason is None:
            report.verified.append(name)
            return
        if name in self._bad_packs and not verdict.bad:
            return  # said already at L0
        if not verdict.bad:
            report.findings.append(
                Finding(verdict.level, name, verdict.reason + "; no snapshot is hurt")
            )
        for bad in verdict.bad:
            bad.group.bad |= bad.lost
            hurt = bad.lost | bad.spoiled
            self._blame(report, verdict.level, name, verdict.reason, bad.group, hurt)

    def _read_pack(self, name: str, deep: bool) -> _PackVerdict:
        try:
            tree, raw = packs.parse_name(name)
        except ValueError:
            return _PackVerdict(2, "the name is not a pack's", [])
        holders = [
            _Bad(group, rows, np.zeros_like(rows))
            for group in self._groups.values()
            if (rows := group.index.frames_in(tree, raw)).any()
        ]
        try:
            data = self._storage.get(name)
        except StrongroomError as fault:
            return _PackVerdict(2, fault.what, holders)
        whole = blake3(data).digest() == raw
        if whole and not deep:
            return _PackVerdict(2, None, [])
        if not self._reads:
            return _PackVerdict(2, "its bytes are not what its name says", holders)
        tried = [self._open_frames(data, tree, held.group, held.lost) for held in holders]
        bad = [found for found in tried if (found.lost | found.spoiled).any()]
        if not whole:
            return _PackVerdict(2, "its bytes are not what its name says", bad)
        if not holders:
            return self._unindexed(name, data)
        return _PackVerdict(3, "frames do not open to what they were" if bad else None, bad)

    def _unindexed(self, name: str, data: bytes) -> _PackVerdict:
        """A pack that no index names: garbage of a crashed run, but its footer must open."""
        try:
            read_footer(self._storage, self._catalogue, name, len(data))
        except ValueError as fault:
            return _PackVerdict(3, str(fault), [])
        return _PackVerdict(3, None, [])

    def _open_frames(
        self, data: bytes, tree: bool, group: _Group, rows: npt.NDArray[np.bool_]
    ) -> _Bad:
        """Open the marked frames and recompute every id; return what fails."""
        index, view = group.index, memoryview(data)
        bad = _Bad(group, np.zeros_like(rows), np.zeros_like(rows))
        keyset = self._repository.keys.current
        kinds = (b"tree", b"extents") if tree else (b"data", b"page")
        keys = [keysets.chunk_key(keyset.id_key, kind) for kind in kinds]
        for row in np.flatnonzero(rows).tolist():
            place = index.place(row)
            sealed = view[place.offset : place.offset + place.length]
            try:
                plain = memoryview(self._opener(index, row).open(sealed, place.sequence))
            except ValueError:
                bad.lost[row] = True
                continue
            for chunk_id, offset, length in index.chunks_in(row):
                part = plain[offset : offset + length]
                if not any(blake3(part, key=key).digest() == chunk_id for key in keys):
                    group.spoiled.add((row, chunk_id))
                    bad.spoiled[row] = True
        return bad

    def _opener(self, index: Index, row: int) -> FrameOpener:
        known = index.session(row)
        opener = self._openers.get((known.id, known.sealed_key))
        if opener is not None:
            return opener
        keyset = self._repository.keys.keysets.get(known.epoch)
        if keyset is None:
            raise KeyRefused(f"No key of epoch {known.epoch} is at hand.")
        key = keysets.open_session_key(keyset, known.id, known.sealed_key)
        opener = self._openers[known.id, known.sealed_key] = FrameOpener(known.id, key)
        return opener

    # -- files -----------------------------------------------------------------------------

    def _name_files(self, report: Report) -> None:
        """Walk the trees: name the files whose chunks are bad, and the pages that do not open.

        Refs name frames, and a frame holds what no file needs any more, or what rests elsewhere
        too: only the walk tells whether a snapshot is hurt.
        """
        if not self._reads:
            return
        chunks = {name: self._chunk_reader(group) for name, group in self._groups.items()}
        for snapshot in self._snapshots:
            group = self._groups[snapshot.group]
            reader = SnapshotReader(snapshot, chunks[snapshot.group])
            hurt = list(_hurt_entries(reader, group))
            pages = list(reader.damaged_pages())
            facts = self._facts_fault(reader)
            if hurt or pages or facts is not None:
                self._attach(report, snapshot, hurt, pages, facts)
                continue
            for finding in report.findings:
                if snapshot.id in finding.snapshots:
                    finding.snapshots.remove(snapshot.id)
        for reading in chunks.values():
            reading.close()

    def _chunk_reader(self, group: _Group) -> ChunkReader:
        """A reader that has read nothing yet: what rests is verified, not what was remembered."""
        return ChunkReader(self._storage, self._repository.keys.keysets, lambda: group.index)

    def _facts_fault(self, reader: SnapshotReader) -> StrongroomError | None:
        try:
            _ = reader.facts
        except StrongroomError as fault:
            return fault
        except ValueError as fault:
            return Damaged(f"The facts of the snapshot do not decode: {fault}.")
        return None

    def _attach(
        self,
        report: Report,
        snapshot: Snapshot,
        hurt: list[bytes],
        pages: list[tuple[bytes, StrongroomError]],
        facts: StrongroomError | None,
    ) -> None:
        blamed = [finding for finding in report.findings if snapshot.id in finding.snapshots]
        if not blamed:
            reasons = [f"a tree page from {path!r} on: {fault.what}" for path, fault in pages]
            reasons += [f"{len(hurt)} files lack chunks"] if hurt else []
            reasons += [facts.what] if facts is not None else []
            blamed = [Finding(1, snapshot.name, "; ".join(reasons), [snapshot.id])]
            report.findings += blamed
        for finding in blamed:
            named = hurt + [path + b"..." for path, _ in pages]
            finding.files[snapshot.id] = named[:FILES_NAMED]
            finding.files_affected += len(named)


_FOLDERS = {
    "strongroom.json", "keys", "packs", "trees", "index", "refs", "snapshots", "sessions", "gc",
    "wal", "audit", "probe",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _PackVerdict:
    level: int
    reason: str | None
    bad: list[_Bad]


@dataclass(frozen=True, slots=True)
class _Bad:
    """Frames of one group that do not open, and those that hold chunks which are others."""

    group: _Group
    lost: npt.NDArray[np.bool_]
    spoiled: npt.NDArray[np.bool_]


def _keep(segments: dict[str, dict[str, Segment]], rows: Segment, name: str) -> None:
    segments[name.split("/")[1]][name] = rows


def _reason(fault: Exception) -> str:
    return fault.what if isinstance(fault, StrongroomError) else f"it does not decode: {fault}"


def _overlap(held: Iterable[Sequence[int]], spoiled: Sequence[Sequence[int]]) -> bool:
    """Do two lists of [first, after last) ranges meet?"""
    return any(begin < end and first < after for begin, after in held for first, end in spoiled)


def _hurt_entries(reader: SnapshotReader, group: _Group) -> Iterator[bytes]:
    """Paths whose content cannot be had, as far as the tree can be walked."""
    batch: list[tuple[bytes, bytes]] = []
    for entry in reader.readable_entries():
        try:
            ids = b"".join(_content_ids(reader, entry))
        except (StrongroomError, ValueError):
            yield entry.path
            continue
        batch.append((entry.path, ids))
        if len(batch) >= 4096:
            yield from _hurt_in(batch, group)
            batch = []
    yield from _hurt_in(batch, group)


def _content_ids(reader: SnapshotReader, entry: Entry) -> Iterator[bytes]:
    yield from contents.page_ids(entry.content)
    for extent in reader.extents(entry):
        yield extent.id


def _hurt_in(batch: list[tuple[bytes, bytes]], group: _Group) -> Iterator[bytes]:
    if not batch:
        return
    every = b"".join(ids for _, ids in batch)
    rows = group.index.find(every)
    doubtful = rows == ABSENT
    doubtful[~doubtful] = group.bad[group.index.frame[rows[~doubtful]]]
    if group.spoiled:
        names = {chunk_id for _, chunk_id in group.spoiled}
        doubtful |= [every[at : at + ID_SIZE] in names for at in range(0, len(every), ID_SIZE)]
    lost = np.zeros_like(doubtful)
    for number in np.flatnonzero(doubtful).tolist():
        lost[number] = group.lacks(every[number * ID_SIZE : (number + 1) * ID_SIZE])
    owner = np.repeat(np.arange(len(batch)), [len(ids) // ID_SIZE for _, ids in batch])
    for number in np.unique(owner[lost]).tolist():
        yield batch[number][0]
