"""Verification of what rests in a repository, and who is hurt by what is damaged.

    L0   every small record opens; every pack that the index names is there and long enough
    L1   every refs resolves; every tree page decodes; every entry's chunks are in the index
    L2   packs are hashed again and compared with their names (needs no key that opens data)
    L3   every frame is opened and the id of every chunk in it recomputed

L1's trees and L3 need a reader's key; with a writer's they are left out and
said to be. The WAL is looked at too (`check_wal.py`), and so is the audit log, of which L2 and L3 read every
object. A finding names the object,
the reason, and the snapshots and files that do not restore because of it; damage
that hurts nobody is said to hurt nobody.

What cannot be reached is no finding: nobody knows whether it is damaged. It is told apart, and
when the store itself stops to answer, so does the check.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from strongroom.errors import (
    Damaged,
    KeyRefused,
    ObjectMissing,
    StorageDenied,
    StrongroomError,
    Unreachable,
)
from strongroom.format import audit as audit_names
from strongroom.format import content as contents
from strongroom.format import keyset as keysets
from strongroom.format import pack as packs
from strongroom.format.content import ID_SIZE
from strongroom.format.frame import FrameOpener
from strongroom.format.keyset import READER
from strongroom.format.segment import Segment
from strongroom.format.tree import Entry
from strongroom.progress import Progress
from strongroom.repository import identity, keyring
from strongroom.repository.audit import AuditLog
from strongroom.repository.catalogue import Catalogue, Refs, Snapshot
from strongroom.repository.check_wal import WalCheck
from strongroom.repository.fates import PREFIX, Fates
from strongroom.repository.footers import footers, read_footer
from strongroom.repository.index import ABSENT, Index
from strongroom.repository.reader import ChunkReader, SnapshotReader
from strongroom.repository.reports import Reports
from strongroom.repository.repository import Repository
from strongroom.storage.base import Buffer, Storage
from strongroom.storage.base import Entry as StoredObject

OUT_OF_REACH = (Unreachable, StorageDenied)
_DEEP = 3
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


@dataclass(frozen=True, slots=True)
class Unreached:
    """An object, or a snapshot whose trees could not be walked, that could not be checked."""

    object: str
    fault: StrongroomError


@dataclass(slots=True)
class Report:
    """What a check looked at and what it found. Sizes in bytes.

    `unreached` could not be checked; `stopped` says why the check came to no end. Findings may
    then blame snapshots that would have turned out not to be hurt. Files of the WAL count as packs.
    `verified` were read and are as written, `spoiled` are not. `whole` are ids of snapshots of which
    everything was read, now or by the checks that `last_verified` remembers, and is as written.
    """

    level: int
    findings: list[Finding] = field(default_factory=list)
    unreached: list[Unreached] = field(default_factory=list)
    stopped: StrongroomError | None = None
    notes: list[str] = field(default_factory=list)
    objects: int = 0
    snapshots: int = 0
    packs_read: int = 0
    packs_left: int = 0
    bytes_read: int = 0
    verified: list[str] = field(default_factory=list)
    spoiled: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)

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
    them from footers. `spoiled` are chunks, as frame row and id, whose bytes are others. `blind`
    says why a segment or a footer could not be reached: what the index lacks may be there yet.
    """

    index: Index
    bad: npt.NDArray[np.bool_]
    unindexed: dict[str, int] = field(default_factory=dict)
    spoiled: set[tuple[int, bytes]] = field(default_factory=set)
    blind: StrongroomError | None = None

    def lacks(self, chunk_id: bytes) -> bool:
        """Is there no good copy of a chunk?"""
        rows = self.index.copies(chunk_id)
        frames = [int(self.index.frame[row]) for row in rows]
        return all(self.bad[frame] or (frame, chunk_id) in self.spoiled for frame in frames)


class Checker:
    """One run of verification."""

    def __init__(self, repository: Repository, *, progress: Progress) -> None:
        self._repository = repository
        self._storage = _Watched(repository.storage)
        keyset, random = repository.keys.current, repository.seams.random
        self._catalogue = Catalogue(self._storage, keyset, random=random)
        self._progress = progress
        self._sizes: dict[str, int] = {}
        self._groups: dict[str, _Group] = {}
        self._snapshots: list[Snapshot] = []
        self._refs: dict[str, Refs] = {}
        self._committed: dict[str, str] = {}  # commit records that marks tell of, by object name
        self._reads = repository.keys.current.reads
        self._bad_packs: dict[str, str] = {}
        self._condemned: frozenset[bytes] = frozenset()
        self._openers: dict[tuple[bytes, bytes], FrameOpener] = {}
        self._void: set[str] = set()
        self._slot_list: list[keyring.SlotInfo] | None = None
        self._wal: WalCheck | None = None

    def run(
        self,
        level: int,
        *,
        budget: Budget | None = None,
        last_verified: Mapping[str, float] | None = None,
    ) -> Report:
        """Check up to `level`; L2 and L3 take packs in the order of `last_verified`, never first."""
        report = Report(level)
        try:
            self._run(report, budget or Budget(), last_verified or {})
        except OUT_OF_REACH as fault:
            if not self._sizes:
                raise
            report.stopped = fault
        report.snapshots = len(self._snapshots)
        return report

    def _run(self, report: Report, budget: Budget, last_verified: Mapping[str, float]) -> None:
        level = report.level
        self._progress.phase("listing objects")
        # All that a snapshot relies on was put before it: listed later, it must be there.
        commits = [entry.name for entry in self._storage.list("snapshots/")]
        self._sizes = {entry.name: entry.size for entry in self._storage.list("")}
        report.objects = len(self._sizes)
        self._records(report, commits)
        self._look_at_wal(report)
        self._look_at_audit(report)
        self._load_groups(report)
        self._pack_sizes(report)
        self._lost_objects(report)
        self._lost_slots(report)
        if level >= 1:
            self._resolve(report)
        if level >= 2:
            self._read_packs(report, level, budget, last_verified)
        if level >= 1:
            self._name_files(report)
        if level >= _DEEP and self._reads:
            # What does not open in a pack that is spoiled is known by frame.
            read = {*report.verified, *report.spoiled, *last_verified}
            report.whole = self._whole(report, read)

    def _miss(self, report: Report, name: str, fault: StrongroomError) -> None:
        """Note what cannot be reached; where the store itself does not answer, that is the end."""
        if self._storage.away is not None:
            raise self._storage.away
        report.unreached.append(Unreached(name, fault))

    # -- L0 --------------------------------------------------------------------------------

    def _records(self, report: Report, commits: Iterable[str]) -> None:
        self._identity(report)
        self._slots(report)
        self._fates(report)
        for name in sorted(commits, key=lambda name: name.rsplit("/", 1)[-1]):
            lost = [name.rsplit("-", 1)[-1]]
            self._try(report, name, self._open_snapshot, hurt=lost)
        openers: dict[str, Callable[[str], object]] = {
            "refs/": self._open_refs,
            "sessions/": self._open_mark,
            "gc/": self._catalogue.open_gc,
        }
        for name in sorted(self._sizes):
            for prefix, opener in openers.items():
                if name.startswith(prefix):
                    self._try(report, name, opener)
            if name.split("/", 1)[0] not in _FOLDERS:
                report.notes.append(f"{name} is not an object of the repository")

    def _fates(self, report: Report) -> None:
        """Decisions about backups: one that does not open keeps its backup for ever."""
        try:
            for fate in Fates(self._catalogue).read().values():
                if fate.damaged:
                    hurt = [fate.snapshot.rsplit("-", 1)[-1]]
                    reason = f"what was decided of {hurt[0]} is damaged: {fate.damaged}"
                    report.findings.append(Finding(0, fate.snapshot, reason, hurt))
        except OUT_OF_REACH as fault:
            self._miss(report, PREFIX, fault)

    def _look_at_wal(self, report: Report) -> None:
        def found(name: str, reason: str) -> None:
            self._bad_packs[name] = reason
            report.findings.append(Finding(0, name, reason))

        def missed(name: str, fault: StrongroomError) -> None:
            self._miss(report, name, fault)

        self._wal = WalCheck(
            self._repository, self._storage, self._sizes, found=found, missed=missed
        )
        self._wal.records()
        report.notes += self._wal.notes

    def _look_at_audit(self, report: Report) -> None:
        """The audit log proves what was done; no backup hangs on it."""
        for name in self._sizes:
            if name.startswith(audit_names.PREFIX) and not audit_names.is_ours(name):
                report.notes.append(f"{name} is not an object of the repository")
        try:
            log = AuditLog(self._repository, storage=self._storage)
            looked = log.verify(every=report.level >= 2)
        except OUT_OF_REACH as fault:
            self._miss(report, audit_names.PREFIX, fault)
            return
        for found in looked.faults:
            report.findings.append(Finding(0, found.object, f"audit log: {found.reason}"))
        if report.level >= 2:
            self._look_at_reports(report)
        for name, unread in looked.unread.items():
            self._miss(report, name, unread)
        report.notes += looked.notes

    def _look_at_reports(self, report: Report) -> None:
        """The reports of drills: each is what its writer signed."""
        reports = Reports(self._repository, storage=self._storage)
        for name in sorted(self._sizes):
            run = audit_names.report_run(name)
            if run is None:
                continue
            try:
                reports.open(reports.get(run))
            except OUT_OF_REACH as fault:
                self._miss(report, name, fault)
            except StrongroomError as fault:
                report.findings.append(Finding(0, name, f"report of a drill: {fault.what}"))

    def _identity(self, report: Report) -> None:
        try:
            identity.load(self._storage)
        except OUT_OF_REACH as fault:
            self._miss(report, identity.NAME, fault)
        except StrongroomError as fault:
            report.findings.append(Finding(0, identity.NAME, fault.what))

    def _slots(self, report: Report) -> None:
        try:
            self._slot_list = keyring.list_slots(self._storage)
        except OUT_OF_REACH as fault:
            self._miss(report, keyring.PREFIX, fault)
            return
        for slot in self._slot_list:
            if slot.damaged:
                report.findings.append(
                    Finding(0, slot.name, "the key object is not what its name says")
                )

    def _open_snapshot(self, name: str) -> None:
        snapshot = self._catalogue.open_snapshot(name)
        if snapshot is not None:
            self._snapshots.append(snapshot)

    def _open_refs(self, name: str) -> None:
        self._refs[name.rsplit("/", 1)[-1]] = self._catalogue.open_refs(name)

    def _open_mark(self, name: str) -> None:
        body = self._catalogue.open_mark(name)
        if name.endswith(".1") and body.get("outcome") == "committed" and "snapshot" in body:
            self._committed[str(body["snapshot"])] = name

    def _try(
        self,
        report: Report,
        name: str,
        opener: Callable[[str], object],
        *,
        hurt: Sequence[str] = (),
    ) -> None:
        try:
            opener(name)
        except (Damaged, KeyError, TypeError, ValueError) as fault:
            report.findings.append(Finding(0, name, _reason(fault), [*hurt]))
        except OUT_OF_REACH as fault:
            self._miss(report, name, fault)
        except ObjectMissing:
            report.notes.append(f"{name} went away during the check")

    def _load_groups(self, report: Report) -> None:
        try:
            self._condemned = self._catalogue.load_condemned().packs
        except Damaged:
            report.notes.append("condemned packs are not known: a record under gc/ is damaged")
        except OUT_OF_REACH:  # named when the records were opened
            report.notes.append("condemned packs are not known: a record under gc/ is out of reach")
        segments: dict[str, dict[str, Segment]] = defaultdict(dict)
        for name in sorted(self._sizes):
            if not name.startswith("index/"):
                continue
            group = name.split("/")[1]
            segments.setdefault(group, {})
            self._try(
                report, name, lambda name: _keep(segments, self._catalogue.open_index(name), name)
            )
        self._pardon_replaced(report, segments)
        for snapshot in self._snapshots:
            segments.setdefault(snapshot.group, {})
        for group, found in segments.items():
            self._groups[group] = self._load_group(report, group, list(found.values()))

    def _pardon_replaced(self, report: Report, segments: Mapping[str, dict[str, Segment]]) -> None:
        """A segment that another one made void holds nothing: it may be damaged."""
        void = {
            old for found in segments.values() for rows in found.values() for old in rows.replaces
        }
        for name in sorted(void & {finding.object for finding in report.findings}):
            report.notes.append(f"{name} is damaged; another segment replaces it")
        report.findings = [found for found in report.findings if found.object not in void]
        report.unreached = [missed for missed in report.unreached if missed.object not in void]
        self._void = void

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
        away = [m.fault for m in report.unreached if m.object.startswith(f"index/{name}/")]

        def miss(pack: str, fault: StrongroomError) -> None:
            away.append(fault)
            self._miss(report, pack, fault)

        if unindexed or self._doubtful(name, index, {rows.name for rows in segments}):
            found = list(footers(self._catalogue, index.told_packs(), unreached=miss))
            index = Index([*segments, *found], condemned=self._condemned)
            report.notes.append(
                f"{len(found)} packs that no segment of {name} lists were looked into"
            )
        bad = np.zeros(index.frames, np.bool_)
        return _Group(index, bad, unindexed, blind=away[0] if away else None)

    def _doubtful(self, name: str, index: Index, opened: set[str]) -> bool:
        """Might the index lack something that no refs can tell of?"""
        snapshots = [snapshot for snapshot in self._snapshots if snapshot.group == name]
        if any(snapshot.id not in self._refs for snapshot in snapshots):
            return True
        stored = {each for each in self._sizes if each.startswith(f"index/{name}/")}
        # A frame that was moved has its chunk rows in another segment: is it there?
        return bool(stored - opened - self._void) or bool(index.hollow().any())

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
        """Snapshots without refs, refs and marks without a snapshot, records that left a gap."""
        told = {finding.object for finding in report.findings}
        told |= {missed.object for missed in report.unreached}
        for snapshot in self._snapshots:
            name = f"refs/{snapshot.source}/{snapshot.id}"
            if snapshot.id not in self._refs and name not in told:
                reason = "the snapshot's refs are missing: a prune would not spare its packs"
                report.findings.append(Finding(0, name, reason))
        self._lost_commits(report)
        committed = {snapshot.name for snapshot in self._snapshots} | set(self._committed)
        for refs in self._refs.values():
            if refs.snapshot not in committed and refs.snapshot not in self._sizes:
                report.notes.append(
                    f"{refs.name} announces {refs.snapshot}, which is not there:"
                    " a run that did not commit, or a snapshot that was removed"
                )
        self._lost_marks(report)
        self._lost_prunes(report)

    def _lost_commits(self, report: Report) -> None:
        """Commit records that are gone although a session's mark says that it put them.

        Who removes a snapshot removes the marks first, so the loss was nobody's will.
        """
        whole = {snapshot.name for snapshot in self._snapshots}
        held = {refs.snapshot for refs in self._refs.values()}
        for name, mark in sorted(self._committed.items()):
            if name in whole or self._stands(report, name) or not self._is_there(report, mark):
                continue
            reason = f"the commit record is gone; {mark} says that the backup was committed. "
            if name in self._sizes:
                reason += "A prune took it for a run that had died: its contents are given up"
            elif name in held:
                reason += (
                    "It cannot be restored, but its refs still hold its contents, and prunes spare"
                    " them: bring the record back from a copy of the repository"
                )
            else:
                reason += (
                    "Its refs are gone too: bring both back from a copy of the repository before"
                    " the next prune"
                )
            report.findings.append(Finding(0, name, reason, [name.rsplit("-", 1)[-1]]))

    def _stands(self, report: Report, name: str) -> bool:
        """Does something else than a tombstone stand at a commit record's name? Look once more."""
        try:
            return self._catalogue.open_snapshot(name) is not None
        except ObjectMissing:
            return False
        except Damaged:
            return True  # a finding of its own
        except OUT_OF_REACH as fault:
            if name not in {missed.object for missed in report.unreached}:
                self._miss(report, name, fault)
            return True

    def _is_there(self, report: Report, name: str) -> bool:
        try:
            self._storage.get(name)
        except ObjectMissing:
            return False
        except OUT_OF_REACH as fault:
            self._miss(report, name, fault)
        return True

    def _lost_marks(self, report: Report) -> None:
        """A mark that is gone costs no backup: at worst what a dead run left is stored again."""
        names = {name for name in self._sizes if name.startswith("sessions/")}
        for session in sorted({name.rsplit(".", 1)[0] for name in names}):
            if f"{session}.0" not in names:
                report.notes.append(f"{session}.0 is gone; no backup hangs on it")

    def _lost_prunes(self, report: Report) -> None:
        """Generations are numbered without a gap and are never deleted."""
        numbers = [int(found[1]) for name in self._sizes if (found := _GENERATION.fullmatch(name))]
        for number in range(1, max(numbers, default=0) + 1):
            name = f"gc/{number:08d}.condemn"
            if name not in self._sizes and not self._is_there(report, name):
                reason = (
                    "the record is gone: nobody knows which packs this prune gave up, and a new"
                    " backup may rely on one that a prune still deletes"
                )
                report.findings.append(Finding(0, name, reason))

    def _lost_slots(self, report: Report) -> None:
        """For every epoch that something was sealed in, a reader's slot must be left.

        Keys that came without a slot say nothing of what slots there should be.
        """
        if self._slot_list is None or not self._repository.keys.slots:
            return
        whole = [slot for slot in self._slot_list if not slot.damaged]
        sealed = {snapshot.epoch for snapshot in self._snapshots}
        for group in self._groups.values():
            sealed |= {session.epoch for session in group.index.sessions}
        for epoch in sorted(sealed - {slot.epoch for slot in whole if slot.role == READER}):
            reason = (
                f"no key slot is left that reads epoch {epoch}: who holds no copy of one cannot"
                " restore what was written in it. `strongroom key add` makes one, with keys that"
                " still open the repository"
            )
            report.findings.append(Finding(0, f"{keyring.PREFIX}{epoch}/", reason))
        if not any(slot.kind == "recovery-code" for slot in whole):
            report.notes.append(
                "no key slot of a recovery code is left: a printed kit opens nothing"
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
                if group.blind is not None:  # nobody knows what stands where we cannot look
                    if lost:
                        self._miss(report, refs.name, group.blind)
                    continue
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
        names += [] if self._wal is None else self._wal.files
        names.sort(key=lambda name: (last_verified.get(name, 0.0), name))
        self._progress.plan(size=sum(self._sizes[name] for name in names), files=len(names))
        self._progress.phase("reading packs")
        left = iter(names)
        report.packs_left = len(names)
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
                    name, verdict = running.pop(job), job.result()
                    if verdict.unreached is not None:
                        self._miss(report, name, verdict.unreached)
                    else:
                        self._judge(report, name, verdict)
                report.packs_left = len(names) - report.packs_read

    def _judge(self, report: Report, name: str, verdict: _PackVerdict) -> None:
        report.packs_read += 1
        self._progress.advance(size=self._sizes[name], files=1)
        if verdict.reason is None:
            report.verified.append(name)
            return
        report.spoiled.append(name)
        if name in self._bad_packs and not verdict.bad:
            return  # said already at L0
        if not verdict.bad:
            aside = "" if name.startswith("wal/") else "; no snapshot is hurt"
            report.findings.append(Finding(verdict.level, name, verdict.reason + aside))
        for bad in verdict.bad:
            bad.group.bad |= bad.lost
            hurt = bad.lost | bad.spoiled
            self._blame(report, verdict.level, name, verdict.reason, bad.group, hurt)

    def _read_pack(self, name: str, deep: bool) -> _PackVerdict:
        if self._wal is not None and name.startswith("wal/"):
            try:
                reason = self._wal.verify(name, deep=deep)
            except StrongroomError as fault:
                return _PackVerdict(2, None, [], unreached=fault)
            return _PackVerdict(3 if deep else 2, reason, [])
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
        except (Damaged, ObjectMissing) as fault:
            return _PackVerdict(2, fault.what, holders)
        except StrongroomError as fault:
            return _PackVerdict(2, None, [], unreached=fault)
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
        kinds = (b"tree", b"extents") if tree else (b"data",)
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
            away: list[StrongroomError] = []
            hurt = list(_hurt_entries(reader, group, away))
            pages = [*_within_reach(reader.damaged_pages(), away)]
            facts = self._facts_fault(reader)
            if isinstance(facts, OUT_OF_REACH):
                away.append(facts)
                facts = None
            blamed = any(snapshot.id in finding.snapshots for finding in report.findings)
            if (hurt or pages or facts is not None) and group.blind is not None and not blamed:
                away.append(group.blind)
            elif hurt or pages or facts is not None:
                self._attach(report, snapshot, hurt, pages, facts)
            if away:  # what could not be walked may be hurt: nobody is acquitted
                self._miss(report, snapshot.name, away[0])
            elif not (hurt or pages or facts is not None):
                for finding in report.findings:
                    if snapshot.id in finding.snapshots:
                        finding.snapshots.remove(snapshot.id)
        for reading in chunks.values():
            reading.close()

    def _whole(self, report: Report, read: Collection[str]) -> list[str]:
        """Ids, the newest first, of the snapshots that rest in packs that were read, and nowhere else."""
        packs_read = set()
        for name in read:
            if name.startswith(("packs/", "trees/")):
                with contextlib.suppress(ValueError):  # no pack of ours
                    packs_read.add(packs.parse_name(name))
        doubtful = {*report.damaged_snapshots, *(missed.object for missed in report.unreached)}
        for group in self._groups.values():
            # Who has no refs is named here as well.
            unread = group.index.frames_outside(packs_read)
            doubtful |= {one.id for one in self._relying(group, unread | group.bad)}
        sound = [
            one
            for one in self._snapshots
            if not doubtful & {one.id, one.name, f"refs/{one.source}/{one.id}"}
            and one.id not in self._groups[one.group].unindexed
        ]
        return [one.id for one in sorted(sound, key=lambda one: one.time, reverse=True)]

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
    "wal", "audit", "probe", "fates", "leases",
}  # fmt: skip


_GENERATION = re.compile(r"gc/([0-9]{8})\.(?:condemn|done)")


class _Watched:
    """The storage, which is not asked any more once it has ceased to answer.

    Each answer that does not come was waited for minutes by the adapter already.
    """

    def __init__(self, inner: Storage) -> None:
        self._inner = inner
        self.away: StrongroomError | None = None
        self.url = inner.url

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        if self.away is not None:
            raise self.away
        try:
            return self._inner.get(name, offset=offset, length=length)
        except OUT_OF_REACH as fault:
            try:  # is it this object alone?
                next(iter(self._inner.list(identity.NAME)), None)
            except StrongroomError:
                self.away = fault
            raise

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return self._inner.list(prefix)

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        self._inner.put(name, data, if_absent=if_absent)

    def delete(self, names: Iterable[str]) -> None:
        self._inner.delete(names)

    def free_space(self) -> int | None:
        return self._inner.free_space()

    def total_space(self) -> int | None:
        return self._inner.total_space()

    def close(self) -> None:
        self._inner.close()


@dataclass(frozen=True, slots=True)
class _PackVerdict:
    level: int
    reason: str | None
    bad: list[_Bad]
    unreached: StrongroomError | None = None


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


def _within_reach(
    pages: Iterable[tuple[bytes, StrongroomError]], away: list[StrongroomError]
) -> Iterator[tuple[bytes, StrongroomError]]:
    """Pages that are damaged; why others cannot be reached goes to `away`."""
    for path, fault in pages:
        if isinstance(fault, OUT_OF_REACH):
            away.append(fault)
        else:
            yield path, fault


def _hurt_entries(
    reader: SnapshotReader, group: _Group, away: list[StrongroomError]
) -> Iterator[bytes]:
    """Paths whose content cannot be had, as far as the tree can be walked.

    Why an extent page cannot be reached goes to `away`.
    """
    batch: list[tuple[bytes, bytes]] = []
    for entry in reader.readable_entries():
        try:
            ids = b"".join(_content_ids(reader, entry))
        except OUT_OF_REACH as fault:
            away.append(fault)
            continue
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
