"""Give back the space of what nothing relies on. Nothing else in the program deletes.

    p0  snapshots that were expired are marked as swept; whoever revives one now comes too late
    p1  read refs, put gc/<g>.condemn           condemned is for ever
    p2  read every refs again, and the index: what they rely on in condemned packs is rescued
    p3  move it, as it is, into new packs; put segments that replace the ones which told of
        the condemned packs; look again that nothing is missing; delete the replaced
    p4  delete the condemned packs, but for those that could not be read whole
    p5  put gc/<g>.done

Needs the catalogue key alone: frames move sealed. Safe beside any number of writers and of other
pruners without locks (docs/format.md 12): a writer announces before it looks, a pruner condemns
before it looks. May die anywhere; the next prune goes on with the generation at p2.

What is merely polite: packs and refs of sessions that have not ended are left alone while they are
young, so that no running backup has to begin again.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from strongroom.errors import AlreadyExists, Busy, Damaged, ObjectMissing
from strongroom.format import pack as packs
from strongroom.format.segment import FRAME_ROW, Segment, SessionRow, joined
from strongroom.progress import Progress
from strongroom.repository.catalogue import Refs
from strongroom.repository.fates import Fate, Fates
from strongroom.repository.footers import footers
from strongroom.repository.leases import old_leases
from strongroom.repository.pipeline import ending
from strongroom.repository.repository import Repository

Pack = tuple[bool, bytes]
Bools = npt.NDArray[np.bool_]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

POLITE = timedelta(days=7)
"""So long a session that has not ended is left alone."""
_SMALL = 8  # packs below this part of a full one are put together, when there are as many
_SEGMENT_CHUNKS = 1 << 20
_LITTLE_SEGMENT = 8192  # chunks; segments below it are put together, when there are several
_HEADER_READ = 64 * 1024


@dataclass(frozen=True, slots=True)
class Rules:
    """What is worth the work. A pack is repacked when less than `live` (0 to 1) of it is relied on.

    `spared`: sources of which nothing is swept, whatever was decided. `polite` is None where sessions
    that have not ended are to be overtaken. `pack_size` in bytes.
    """

    live: float = 0.75
    polite: timedelta | None = POLITE
    pack_size: int = 16 * 1024 * 1024
    together: bool = True
    spared: frozenset[str] = frozenset()


@dataclass(slots=True)
class Pruned:
    """What a prune did, or would do. Sizes in bytes.

    `kept` names what stays because something of it is damaged or lost: packs that could not be read
    whole, snapshots whose commit record is not there.
    """

    generation: int = 0
    resumed: bool = False
    swept: list[str] = field(default_factory=list)
    orphans: int = 0
    packs_before: int = 0
    size_before: int = 0
    dead: int = 0
    dead_size: int = 0
    repacked: int = 0
    repacked_size: int = 0
    moved_size: int = 0
    waste: int = 0
    segments: int = 0
    kept: list[str] = field(default_factory=list)

    @property
    def freed(self) -> int:
        """Bytes of packs that are given back, moved ones counted out."""
        return self.dead_size + self.repacked_size - self.moved_size


@dataclass(slots=True)
class _Rows:
    """The frame rows of a group, of every segment that counts, as columns."""

    group: str
    segments: list[Segment]
    names: list[str]  # everything listed, the void as well
    sessions: list[SessionRow]
    packs: list[Pack]
    key: U64  # session number << 32 | sequence
    pack: I64
    offset: I64
    length: I64
    chunks: I64
    segment: I64
    number: dict[bytes, int]  # of a session

    def live(self, frames: Mapping[bytes, Sequence[tuple[int, int]]]) -> Bools:
        """Mark the rows whose frame stands in a refs."""
        firsts: list[int] = []
        afters: list[int] = []
        for session, held in frames.items():
            number = self.number.get(session)
            if number is not None:
                firsts += [number << 32 | first for first, _ in held]
                afters += [number << 32 | after for _, after in held]
        if not firsts:
            return np.zeros(len(self.key), np.bool_)
        order = np.argsort(np.array(firsts, np.uint64), kind="stable")
        begin = np.array(firsts, np.uint64)[order]
        end = np.array(afters, np.uint64)[order]
        at = np.searchsorted(begin, self.key, "right").astype(np.int64) - 1
        inside: Bools = (at >= 0) & (self.key < end[np.maximum(at, 0)])
        return inside

    def told(self) -> set[Pack]:
        """The packs of which all is told: frames, and the chunks of each."""
        hollow = ~np.isin(self.key, self.key[self.chunks > 0])
        return set(self.packs) - {self.packs[number] for number in self.pack[hollow].tolist()}


class Pruner:
    """One prune of one repository."""

    def __init__(self, repository: Repository, *, rules: Rules, progress: Progress) -> None:
        self._storage, self._catalogue = repository.storage, repository.catalogue
        self._fates = Fates(repository.catalogue)
        self._now = repository.seams.now
        self._rules, self._progress = rules, progress
        self._done = Pruned()

    # -- the whole -------------------------------------------------------------------------

    def plan(self) -> Pruned:
        """What `run` would do; writes nothing."""
        self._progress.phase("reading refs and index")
        swept = {fate.snapshot for fate in self._expired()}
        self._done.swept = sorted(swept)
        refs = [one for one in self._every_refs() if one.snapshot not in swept]
        refs = [one for one in refs if not self._is_orphan(one)]
        self._garbage(refs, self._whole_index(refs, dry_run=True), self._condemned()[1])
        return self._done

    def run(self) -> Pruned:
        """Finish a generation that was begun, or begin one and finish it."""
        newest, condemned, finished = self._condemned()
        if newest and not finished:
            self._done.generation, self._done.resumed = newest, True
            self._finish(newest, condemned)
            newest, condemned, _ = self._condemned()
        self._progress.phase("sweeping expired backups")
        self._sweep()
        self._progress.phase("reading refs and index")
        refs = self._without_orphans(self._every_refs())
        mine = self._garbage(refs, self._whole_index(refs), condemned)
        if mine:
            body = {"packs": sorted(name.hex() for name in mine)}
            try:
                self._catalogue.put_gc(f"gc/{newest + 1:08d}.condemn", body)
            except AlreadyExists:
                raise Busy(
                    "Another prune of this repository has begun at the same time.",
                    means="This one condemned nothing; every backup is as it was.",
                ) from None
            self._done.generation = newest + 1
            self._finish(newest + 1, condemned | mine)
        elif any(name in condemned for _, name in self._packs()):
            self._finish(newest, condemned)  # what could not be read then is tried again
        self._forget_fates()
        self._storage.delete(old_leases(self._storage))
        return self._done

    def _finish(self, generation: int, condemned: frozenset[bytes]) -> None:
        """p2 to p5 of a generation."""
        self._progress.phase("reading refs and index again")
        refs = self._every_refs()
        wanted = _frames(refs)
        here = self._packs()
        index = self._whole_index(refs)
        kept: set[Pack] = set()
        for rows in index.values():
            self._rewrite(rows, rows.live(wanted), condemned, here, kept)
        going = {pack for pack in here if pack[1] in condemned} - kept
        self._assert_safe(wanted, index, going, here)
        self._progress.phase("deleting packs")
        self._storage.delete([packs.object_name(*pack) for pack in sorted(going)])
        self._done.kept += sorted(packs.object_name(*pack) for pack in kept)
        with contextlib.suppress(AlreadyExists):
            self._catalogue.put_gc(f"gc/{generation:08d}.done", {})

    # -- snapshots and refs ----------------------------------------------------------------

    def _expired(self) -> Iterator[Fate]:
        """What is to be swept: expired, not held, and still there in part."""
        now = self._now()
        fates = self._fates.read()
        here = self._told() if fates else set()
        for fate in fates.values():
            spared = fate.snapshot.split("/")[1] in self._rules.spared
            due = fate.expired and not fate.holds(now) and not spared
            if fate.swept or (due and fate.snapshot in here):
                yield fate

    def _sweep(self) -> None:
        """p0: marks, commit record and refs of what is expired, once nobody can revive it."""
        for fate in self._expired():
            if not fate.swept:
                try:
                    fate = self._fates.decide(fate, "sweep", now=self._now())  # noqa: PLW2901
                except Busy:
                    continue
            try:
                self._remove(fate.snapshot)
            except Damaged:  # check names the record; what it relies on stays
                self._done.kept.append(fate.snapshot)
            else:
                self._done.swept.append(fate.snapshot)

    def _remove(self, name: str) -> None:
        """Marks, then the commit record, then the refs: a crash between leaves what is done again.

        A session that has not ended could still put its record, if its answer was lost: then a
        tombstone comes in its place.
        """
        try:
            snapshot = self._catalogue.open_snapshot(name)
            marks = "" if snapshot is None else f"sessions/{snapshot.group}/{snapshot.session}."
        except ObjectMissing:
            marks = self._committed.get(name, "")
        if marks:
            steps = {entry.name for entry in self._storage.list(marks)}
            for step in ("0", "1", "2"):
                self._storage.delete([marks + step])
            self._storage.delete([name])
            if f"{marks}0" in steps and f"{marks}1" not in steps:
                with contextlib.suppress(AlreadyExists):
                    self._catalogue.put_tombstone(name)
        self._storage.delete([_refs_name(name)])

    @cached_property
    def _committed(self) -> Mapping[str, str]:
        """By commit record, the marks (up to the step) of the session that says it put it."""
        found = {}
        for entry in self._storage.list("sessions/"):
            if entry.name.endswith(".1"):
                with contextlib.suppress(ObjectMissing, Damaged):
                    mark = self._catalogue.open_mark(entry.name)
                    found[str(mark.get("snapshot", ""))] = entry.name[:-1]
        return found

    def _forget_fates(self) -> None:
        """Logs of snapshots of which nothing is left, the last decision first."""
        fates = self._fates.read()
        here = self._told()
        for fate in fates.values():
            if fate.snapshot not in here:
                self._storage.delete(self._fates.objects(fate.snapshot))

    def _told(self) -> set[str]:
        """Snapshots of which a commit record or refs are there."""
        here = {entry.name for entry in self._storage.list("snapshots/")}
        return here | {one.snapshot for one in self._refs()}

    def _refs(self) -> list[Refs]:
        found = []
        for entry in self._storage.list("refs/"):
            with contextlib.suppress(ObjectMissing):
                found.append(self._catalogue.open_refs(entry.name))
        return found

    def _every_refs(self) -> list[Refs]:
        """The refs, once it is sure that none is lost: without them a backup looks like garbage.

        Refs are put before the commit record and taken behind it, so that the records are listed
        first.
        """
        listed = [entry.name for entry in self._storage.list("snapshots/")]
        refs = self._refs()
        there = {one.name for one in refs}
        lost = {name: _refs_name(name) for name in listed if _refs_name(name) not in there}
        if not lost:
            return refs
        going = {fate.snapshot for fate in self._expired()}
        for name in sorted(lost.keys() - going):
            with contextlib.suppress(ObjectMissing, Damaged):
                if self._catalogue.open_snapshot(name) is None:
                    continue  # a tombstone
            if any(entry.name == name for entry in self._storage.list(name)):
                raise Damaged(
                    f"{lost[name]} is gone, so that nobody can tell what the backup {name} relies on.",
                    means="Nothing was deleted. Backups and restores go on, of this backup too.",
                    do="Bring the object back from a copy of the repository; without it nothing is "
                    "given back until that backup is expired.",
                )
        return refs

    def _is_orphan(self, one: Refs) -> bool:
        """Whether nobody committed what was announced, and nobody is about to."""
        try:
            if self._catalogue.open_snapshot(one.snapshot) is not None:
                return False
        except ObjectMissing:
            if any(session in self._running for session in one.frames):
                return False
            if one.snapshot not in self._committed:
                return True
            self._done.kept.append(one.snapshot)  # the record is lost: a copy may bring it back
            return False
        except Damaged:
            return False  # it was committed, whatever became of the record
        return True  # a tombstone

    def _without_orphans(self, refs: Iterable[Refs]) -> list[Refs]:
        """Refs without a snapshot go once their writer cannot commit any more."""
        kept = []
        for one in refs:
            if not self._is_orphan(one):
                kept.append(one)
                continue
            try:
                self._catalogue.put_tombstone(one.snapshot)
            except AlreadyExists:
                try:
                    if self._catalogue.open_snapshot(one.snapshot) is not None:
                        kept.append(one)  # it was committed meanwhile
                        continue
                except ObjectMissing:
                    kept.append(one)
                    continue
            self._storage.delete([one.name])
            self._done.orphans += 1
        return kept

    @cached_property
    def _running(self) -> Collection[str]:
        """Sessions (hex) that have begun, not ended, and are young by the store's clock."""
        polite = self._rules.polite
        if polite is None:
            return ()
        young: set[str] = set()
        ended: set[str] = set()
        horizon = (self._now() - polite).timestamp()
        for entry in self._storage.list("sessions/"):
            session, _, step = entry.name.rsplit("/", 1)[-1].partition(".")
            if step != "0":
                ended.add(session)
            elif self._began(entry.name, entry.modified) > horizon:
                young.add(session)
        return young - ended

    def _began(self, name: str, modified: float | None) -> float:
        """When a mark was put, in seconds since 1970: by the store's clock, else by its writer's."""
        if modified is not None:
            return modified
        try:
            return datetime.fromisoformat(self._catalogue.open_mark(name)["started"]).timestamp()
        except (ObjectMissing, Damaged, KeyError, ValueError):
            return float("inf")

    # -- reading ---------------------------------------------------------------------------

    def _condemned(self) -> tuple[int, frozenset[bytes], bool]:
        """The newest generation, every pack that was ever condemned, whether the newest is done."""
        names = [entry.name for entry in self._storage.list("gc/")]
        numbers = [int(name[3:11]) for name in names if name.endswith(".condemn")]
        newest = max(numbers, default=0)
        found = {
            bytes.fromhex(pack)
            for number in numbers
            for pack in self._catalogue.open_gc(f"gc/{number:08d}.condemn")["packs"]
        }
        return newest, frozenset(found), f"gc/{newest:08d}.done" in names

    def _packs(self) -> dict[Pack, int]:
        """Every pack that is there, with its size."""
        found = {}
        for folder in ("packs/", "trees/"):
            for entry in self._storage.list(folder):
                with contextlib.suppress(ValueError):  # a stranger: check names it
                    found[packs.parse_name(entry.name)] = entry.size
        return found

    def _read_index(
        self, beside: Mapping[str, Sequence[Segment]] | None = None
    ) -> dict[str, _Rows]:
        """Every group's index; raises what keeps a segment that counts from being read."""
        for attempt in range(8):
            try:
                return self._read_index_once(beside or {})
            except ObjectMissing:  # another prune replaced it between the list and the get
                if attempt == 7:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _read_index_once(self, beside: Mapping[str, Sequence[Segment]]) -> dict[str, _Rows]:
        groups: dict[str, list[str]] = defaultdict(list, {group: [] for group in beside})
        segments: dict[str, Segment] = {}
        faults: dict[str, Damaged] = {}
        for entry in self._storage.list("index/"):
            groups[entry.name.split("/")[1]].append(entry.name)
            try:
                segments[entry.name] = self._catalogue.open_surely(entry.name)
            except Damaged as fault:
                faults[entry.name] = fault
        void = {old for rows in segments.values() for old in rows.replaces}
        for name, why in faults.items():
            if name not in void:  # what it told of would be taken for garbage
                raise Damaged(
                    f"The index segment {name} is damaged, so that nobody can tell what is relied on.",
                    means="Nothing was deleted. Backups and restores go on: footers say the same.",
                    do="Run a backup, which mends the index; then run the command again.",
                ) from why
        return {
            group: _columns(group, names, [segments[name] for name in names if name in segments
                                           and name not in void] + [*beside.get(group, ())])
            for group, names in groups.items()
        }  # fmt: skip

    def _whole_index(self, refs: Sequence[Refs], *, dry_run: bool = False) -> dict[str, _Rows]:
        """The index, and what footers tell where a segment is gone: refs name a frame that no
        segment tells of, and its pack would be taken for garbage."""
        index = self._read_index()
        lost = _untold(_frames(refs), index)
        if not lost:
            return index
        self._progress.phase("mending the index")
        group = {session: one.group for one in refs for session in one.frames}
        told = {pack[1] for rows in index.values() for pack in rows.told()}
        beside: dict[str, list[Segment]] = defaultdict(list)
        for rows in footers(self._catalogue, told):
            ours = [session.id.hex() for session in rows.sessions if session.id in lost]
            if ours:
                beside[group[ours[0]]].append(rows)
        if dry_run:
            return self._read_index(beside)
        for name, segments in beside.items():
            self._catalogue.put_index(name, joined(segments), now=self._now())
        return self._read_index()

    # -- p1 --------------------------------------------------------------------------------

    def _garbage(
        self, refs: Iterable[Refs], index: Mapping[str, _Rows], condemned: frozenset[bytes]
    ) -> set[bytes]:
        """The packs to condemn: nothing in them is relied on, or too little."""
        wanted = _frames(refs)
        here = self._packs()
        self._done.packs_before, self._done.size_before = len(here), sum(here.values())
        running = self._running
        relied: dict[Pack, int] = dict.fromkeys(here, 0)
        framed: dict[Pack, int] = dict.fromkeys(here, 0)
        told: set[Pack] = set()
        busy: set[Pack] = set()
        for rows in index.values():
            told.update(rows.packs)
            live = rows.live(wanted)
            best = _chosen(rows, _marked(rows.packs, condemned, here))
            sums = _bytes_of(rows, live & best), _bytes_of(rows, np.ones(len(live), np.bool_))
            young = np.array([row.id.hex() in running for row in rows.sessions], np.bool_)
            if young.any():
                session = (rows.key >> np.uint64(32)).astype(np.int64)
                busy.update(rows.packs[n] for n in np.unique(rows.pack[young[session]]).tolist())
            for number, pack in enumerate(rows.packs):
                if pack in here:
                    relied[pack] += int(sums[0][number])
                    framed[pack] += int(sums[1][number])
        untold = here.keys() - told
        busy.update(pack for pack in untold if running and self._is_of(pack, here, running))
        return self._choose(here, relied, framed, busy, condemned)

    def _choose(
        self,
        here: Mapping[Pack, int],
        relied: Mapping[Pack, int],
        framed: Mapping[Pack, int],
        busy: Collection[Pack],
        condemned: frozenset[bytes],
    ) -> set[bytes]:
        done, rules = self._done, self._rules
        mine: set[bytes] = set()
        small: dict[bool, list[Pack]] = {False: [], True: []}
        for pack, size in here.items():
            if pack in busy:
                continue
            if not relied[pack]:
                done.dead, done.dead_size = done.dead + 1, done.dead_size + size
                mine.add(pack[1])
            elif relied[pack] < rules.live * framed[pack] and pack[1] not in condemned:
                self._repack(pack, size, relied[pack], mine)
            elif size * _SMALL < rules.pack_size and pack[1] not in condemned:
                small[pack[0]].append(pack)
            else:
                done.waste += framed[pack] - relied[pack]
        for several in small.values():
            if rules.together and len(several) >= _SMALL:
                for pack in several:
                    self._repack(pack, here[pack], relied[pack], mine)
            else:
                done.waste += sum(framed[pack] - relied[pack] for pack in several)
        return mine - condemned

    def _repack(self, pack: Pack, size: int, relied: int, mine: set[bytes]) -> None:
        done = self._done
        done.repacked, done.repacked_size = done.repacked + 1, done.repacked_size + size
        done.moved_size += relied
        mine.add(pack[1])

    def _is_of(self, pack: Pack, here: Mapping[Pack, int], running: Collection[str]) -> bool:
        """Whether a pack that no segment tells of is a running session's."""
        try:
            head = self._storage.get(packs.object_name(*pack), length=min(here[pack], _HEADER_READ))
            sessions, _ = packs.decode_header(head)
        except (ValueError, ObjectMissing):
            return False
        return any(row.id.hex() in running for row in sessions)

    # -- p3 --------------------------------------------------------------------------------

    def _rewrite(
        self,
        rows: _Rows,
        live: Bools,
        condemned: frozenset[bytes],
        here: Mapping[Pack, int],
        kept: set[Pack],
    ) -> None:
        """Move what lives in condemned packs and tell of it; what could not be moved is `kept`."""
        bad = np.fromiter((pack[1] in condemned for pack in rows.packs), np.bool_, len(rows.packs))
        touched = bad[rows.pack] if len(rows.pack) else np.zeros(0, np.bool_)
        homes = _homes(rows, ~_marked(rows.packs, condemned, here))
        moving = self._move(rows, touched & live & ~np.isin(rows.key, homes.key), here, kept)
        # First, while what makes them void is there.
        void = set(rows.names) - {segment.name for segment in rows.segments}
        self._storage.delete(sorted(void))
        batch = _touched_segments(rows, touched)
        if not batch:
            return
        self._progress.phase("rewriting the index")
        pending: list[Segment] = []
        replaces: list[str] = []
        chunks = 0
        for number in batch:
            old = rows.segments[number]
            pending.append(_told_anew(rows, number, bad, homes, moving, live, kept))
            replaces.append(old.name)
            chunks += len(pending[-1].lengths)
            if chunks >= _SEGMENT_CHUNKS:
                self._replace(rows.group, pending, replaces)
                pending, replaces, chunks = [], [], 0
        self._replace(rows.group, pending, replaces)

    def _replace(self, group: str, segments: Sequence[Segment], names: Sequence[str]) -> None:
        if not names:
            return
        whole = joined(segments, replaces=names)
        if len(whole.frames):
            self._catalogue.put_index(group, _without_unused(whole), now=self._now())
        self._storage.delete(names)
        self._done.segments += len(names)

    def _move(
        self, rows: _Rows, chosen: Bools, here: Mapping[Pack, int], kept: set[Pack]
    ) -> dict[int, tuple[Pack, int]]:
        """Copy frames, as they are, into new packs: key → new pack and offset."""
        order = np.flatnonzero(chosen)
        order = order[np.lexsort((rows.offset[order], rows.pack[order]))]
        places: dict[int, tuple[Pack, int]] = {}
        held = _ChunkRows(rows)
        movers = {tree: _Mover(self, tree, places) for tree in (False, True)}
        done: set[int] = set()
        if len(order):
            self._progress.phase("moving what is relied on")
            self._progress.plan(size=int(rows.length[order].sum()))
        for number in dict.fromkeys(rows.pack[order].tolist()):
            pack = rows.packs[number]
            mine = [row for row in order[rows.pack[order] == number].tolist()
                    if int(rows.key[row]) not in done]  # fmt: skip
            data = self._whole(pack) if pack in here else None
            if data is None:
                if pack in here:
                    kept.add(pack)
                continue
            for row in mine:
                key = int(rows.key[row])
                done.add(key)
                offset, length = int(rows.offset[row]), int(rows.length[row])
                session = rows.sessions[key >> 32]
                movers[pack[0]].add(
                    key, session, memoryview(data)[offset : offset + length], *held.of(key)
                )
            size = sum(int(rows.length[row]) for row in mine)
            self._progress.advance(size=size, stored=size)
        for mover in movers.values():
            mover.flush()
        return places

    def _whole(self, pack: Pack) -> bytes | None:
        """A pack's bytes, if they are what its name says: damage must not get a new name."""
        for _ in range(2):
            try:
                data = self._storage.get(packs.object_name(*pack))
            except ObjectMissing:
                return None
            if blake3(data).digest() == pack[1]:
                return data
        return None

    def put_pack(self, tree: bool, parts: Sequence[bytes | memoryview], footer: Segment) -> bytes:
        """Put a pack of moved frames; return its name."""
        last = ending(
            footer, tree=tree, records=self._catalogue.records, nonce=self._catalogue.nonce()
        )
        data = b"".join((*parts, last))
        name = blake3(data).digest()
        self._storage.put(packs.object_name(tree, name), data)
        return name

    @property
    def pack_size(self) -> int:
        """Bytes at which a pack of moved frames is put."""
        return self._rules.pack_size

    # -- before p4 -------------------------------------------------------------------------

    def _assert_safe(
        self,
        wanted: Mapping[bytes, Sequence[tuple[int, int]]],
        before: Mapping[str, _Rows],
        going: Collection[Pack],
        here: Mapping[Pack, int],
    ) -> None:
        """Whatever was found at p2 is found again in what stays; else nothing is deleted."""
        if not going:
            return
        index = self._read_index()
        there = self._packs()
        for group, old in before.items():
            new = index.get(group)
            had = np.fromiter((pack in here for pack in old.packs), np.bool_, len(old.packs))
            relied = _keys_by_name(old, old.live(wanted) & had[old.pack])
            if new is not None:
                stays = np.fromiter(
                    (pack in there and pack not in going for pack in new.packs),
                    np.bool_,
                    len(new.packs),
                )
                relied -= _keys_by_name(new, new.live(wanted) & stays[new.pack])
            if relied:
                session, number = min(relied)
                raise Damaged(
                    f"After moving, {len(relied)} frames that backups rely on are not found, the"
                    f" first {number} of session {session.hex()}.",
                    means="No pack was deleted and every backup is as it was.",
                    do="Run `strongroom check`; please report this.",
                )


# -- columns -------------------------------------------------------------------------------------


def _columns(group: str, names: list[str], segments: list[Segment]) -> _Rows:
    sessions: dict[bytes, tuple[int, SessionRow]] = {}
    listed: dict[Pack, int] = {}
    keys, where, parts, of = [], [], [], []
    for number, one in enumerate(segments):
        rows = one.frames
        here = [sessions.setdefault(row.id, (len(sessions), row))[0] for row in one.sessions]
        there = [listed.setdefault(pack, len(listed)) for pack in one.packs]
        if not len(rows):
            continue
        session = np.asarray(here, np.uint64)[rows["session"]]
        keys.append(session << np.uint64(32) | rows["sequence"].astype(np.uint64))
        where.append(np.asarray(there, np.int64)[rows["pack"]])
        parts.append(rows)
        of.append(np.full(len(rows), number, np.int64))
    rows = np.concatenate([np.empty(0, FRAME_ROW), *parts])
    return _Rows(
        group,
        segments,
        names,
        [row for _, row in sessions.values()],
        list(listed),
        np.concatenate([np.empty(0, np.uint64), *keys]),
        np.concatenate([np.empty(0, np.int64), *where]),
        rows["offset"].astype(np.int64),
        rows["length"].astype(np.int64),
        rows["chunks"].astype(np.int64),
        np.concatenate([np.empty(0, np.int64), *of]),
        {session: number for session, (number, _) in sessions.items()},
    )


def _frames(refs: Iterable[Refs]) -> dict[bytes, list[tuple[int, int]]]:
    """What several refs name, as ranges that do not overlap, ascending, per session."""
    gathered: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
    for one in refs:
        for session, held in one.frames.items():
            gathered[bytes.fromhex(session)] += [(first, after) for first, after in held]
    return {session: _merged(held) for session, held in gathered.items()}


def _untold(
    wanted: Mapping[bytes, Sequence[tuple[int, int]]], index: Mapping[str, _Rows]
) -> set[bytes]:
    """The sessions of which a frame that refs name is not told, with its chunks, by any segment."""
    known = {group: np.unique(rows.key[rows.chunks > 0]) for group, rows in index.items()}
    lost = set()
    for session, held in wanted.items():
        missing = sum(after - first for first, after in held)
        for group, rows in index.items():
            number = rows.number.get(session)
            if number is not None:
                edges = np.array(held, np.uint64) + np.uint64(number << 32)
                ends = np.searchsorted(known[group], edges)
                missing -= int((ends[:, 1] - ends[:, 0]).sum())
        if missing > 0:
            lost.add(session)
    return lost


def _refs_name(snapshot: str) -> str:
    """The refs that a commit record has."""
    source, rest = snapshot.split("/")[1:]
    return f"refs/{source}/{rest.rpartition('-')[2]}"


def _merged(held: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, after in sorted(held):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], after)
        else:
            merged.append((first, after))
    return merged


def _marked(listed: Sequence[Pack], condemned: frozenset[bytes], here: Mapping[Pack, int]) -> Bools:
    """Mark the packs that nothing may be left in: condemned, or not there."""
    return np.fromiter(
        (pack[1] in condemned or pack not in here for pack in listed), np.bool_, len(listed)
    )


def _chosen(rows: _Rows, spoiled: Bools) -> Bools:
    """Mark one row of each frame: the one that it is read from."""
    worse = spoiled[rows.pack] if len(rows.pack) else np.zeros(0, np.bool_)
    order = np.lexsort((rows.pack, worse, rows.key))
    key = rows.key[order]
    first = np.ones(len(key), np.bool_)
    first[1:] = key[1:] != key[:-1]
    chosen = np.zeros(len(key), np.bool_)
    chosen[order[first]] = True
    return chosen


def _bytes_of(rows: _Rows, chosen: Bools) -> I64:
    """Bytes of the chosen frames, for each pack; a row that stands twice counts once."""
    keys, at = np.unique(
        np.column_stack((rows.key[chosen].astype(np.int64), rows.pack[chosen])),
        axis=0,
        return_index=True,
    )
    lengths = rows.length[chosen][at]
    sums: I64 = np.zeros(len(rows.packs), np.int64)
    if len(keys):
        np.add.at(sums, keys[:, 1], lengths)
    return sums


@dataclass(slots=True)
class _Homes:
    """Frames (keys, ascending) that rest in a pack which stays, and a row of each that says so."""

    key: U64
    row: I64

    def of(self, keys: U64) -> I64:
        """For each key the row of its home, or -1."""
        if not len(self.key):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self.key, keys), len(self.key) - 1)
        return np.where(self.key[at] == keys, self.row[at], -1)


def _homes(rows: _Rows, good: Bools) -> _Homes:
    inside = np.flatnonzero(good[rows.pack]) if len(rows.pack) else np.empty(0, np.int64)
    key, first = np.unique(rows.key[inside], return_index=True)
    return _Homes(key, inside[first])


def _keys_by_name(rows: _Rows, chosen: Bools) -> set[tuple[bytes, int]]:
    return {
        (rows.sessions[key >> 32].id, key & 0xFFFFFFFF)
        for key in np.unique(rows.key[chosen]).tolist()
    }


def _touched_segments(rows: _Rows, touched: Bools) -> list[int]:
    """Segments that tell of a condemned pack, and the little ones where there are several."""
    batch = set(np.unique(rows.segment[touched]).tolist())
    little = [
        number for number, one in enumerate(rows.segments) if len(one.lengths) < _LITTLE_SEGMENT
    ]
    if batch and len(little) > 1:
        batch.update(little)
    return sorted(batch)


class _ChunkRows:
    """The chunks of frames, wherever their rows stand."""

    def __init__(self, rows: _Rows) -> None:
        self._rows = rows
        holding = np.flatnonzero(rows.chunks > 0)
        key, first = np.unique(rows.key[holding], return_index=True)
        self._key, self._row = key, holding[first]
        # Where a row's chunks begin in its segment: rows of a segment stand together, in order.
        before = np.cumsum(rows.chunks) - rows.chunks
        base = np.zeros(len(rows.segments), np.int64)
        numbers, at = np.unique(rows.segment, return_index=True)
        base[numbers] = before[at]
        self._begin = before - base[rows.segment] if len(before) else before

    def of(self, key: int) -> tuple[bytes, npt.NDArray[np.uint32]]:
        """Ids, one after the other, and lengths of the chunks of a frame."""
        at = int(np.searchsorted(self._key, np.uint64(key)))
        if at == len(self._key) or int(self._key[at]) != key:
            return b"", np.empty(0, np.uint32)
        row = int(self._row[at])
        segment = self._rows.segments[int(self._rows.segment[row])]
        first, count = int(self._begin[row]), int(self._rows.chunks[row])
        ids = bytes(segment.ids[first * 32 : (first + count) * 32])
        return ids, segment.lengths[first : first + count]


class _Mover:
    """Fills packs with frames of many sessions."""

    def __init__(self, pruner: Pruner, tree: bool, places: dict[int, tuple[Pack, int]]) -> None:
        self._pruner, self._tree, self._places = pruner, tree, places
        self._frames: list[tuple[int, SessionRow, bytes, bytes, npt.NDArray[np.uint32]]] = []
        self._size = 0

    def add(
        self,
        key: int,
        session: SessionRow,
        sealed: memoryview,
        ids: bytes,
        lengths: npt.NDArray[np.uint32],
    ) -> None:
        self._frames.append((key, session, bytes(sealed), ids, lengths))
        self._size += len(sealed)
        if self._size >= self._pruner.pack_size:
            self.flush()

    def flush(self) -> None:
        if not self._frames:
            return
        sessions = {session.id: session for _, session, *_ in self._frames}
        numbers = {session: number for number, session in enumerate(sessions)}
        header = packs.encode_header(list(sessions.values()))
        at, rows, placed = len(header), [], []
        for key, session, sealed, _, lengths in self._frames:
            rows.append((numbers[session.id], key & 0xFFFFFFFF, 0, at, len(sealed), len(lengths)))
            placed.append((key, at))
            at += len(sealed)
        footer = Segment(
            list(sessions.values()),
            [(self._tree, packs.ZERO_NAME)],
            np.array(rows, FRAME_ROW),
            b"".join(frame[3] for frame in self._frames),
            np.concatenate([frame[4] for frame in self._frames]).astype(np.uint32),
        )
        sealed_frames = [frame[2] for frame in self._frames]
        name = self._pruner.put_pack(self._tree, (header, *sealed_frames), footer)
        for key, offset in placed:
            self._places[key] = (self._tree, name), offset
        self._frames, self._size = [], 0


def _told_anew(
    rows: _Rows,
    number: int,
    bad: Bools,
    homes: _Homes,
    moving: Mapping[int, tuple[Pack, int]],
    live: Bools,
    kept: Collection[Pack],
) -> Segment:
    """A segment without its rows of condemned packs: moved, told of where else it rests, or gone."""
    old = rows.segments[number]
    mine = np.flatnonzero(rows.segment == number)
    frames = old.frames.copy()
    listed: dict[Pack, int] = {pack: at for at, pack in enumerate(old.packs)}
    stays = np.ones(len(frames), np.bool_)
    home = homes.of(rows.key[mine])
    for at in np.flatnonzero(bad[rows.pack[mine]]).tolist():
        row = int(mine[at])
        key = int(rows.key[row])
        place = moving.get(key)
        if home[at] >= 0:
            other = int(home[at])
            place = rows.packs[int(rows.pack[other])], int(rows.offset[other])
        if place is None:
            # What lives and could not be moved keeps its row: its pack stays.
            stays[at] = bool(live[row]) and rows.packs[int(rows.pack[row])] in kept
            continue
        frames["pack"][at] = listed.setdefault(place[0], len(listed))
        frames["offset"][at] = place[1]
    counts = old.frames["chunks"].astype(np.int64)
    chunk_stays = np.repeat(stays, counts)
    ids = np.frombuffer(old.ids, "V32")[chunk_stays].tobytes()
    return Segment(old.sessions, list(listed), frames[stays], ids, old.lengths[chunk_stays])


def _without_unused(whole: Segment) -> Segment:
    """The same without sessions and packs that no row names."""
    frames = whole.frames.copy()
    sessions, session = np.unique(frames["session"], return_inverse=True)
    listed, pack = np.unique(frames["pack"], return_inverse=True)
    frames["session"], frames["pack"] = session, pack
    return Segment(
        [whole.sessions[number] for number in sessions.tolist()],
        [whole.packs[number] for number in listed.tolist()],
        frames,
        whole.ids,
        whole.lengths,
        whole.replaces,
    )


__all__ = ["POLITE", "Pruned", "Pruner", "Rules"]
