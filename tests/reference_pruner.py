"""A prune by the letter of docs/format.md, for tests: slow, complete, and able to leave steps out.

    p1 read refs, put gc/<g>.condemn      p2 read every refs again: what they rely on is rescued
    p3 put index segments that name the ones they replace, delete the old
    p4 delete packs that were not rescued p5 put gc/<g>.done      resumed: from p2

It condemns whatever no refs names, also what a running session has just put: it is as rude as
the protocol allows, because politeness must not be what keeps the writers safe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from blake3 import blake3

from strongroom.errors import AlreadyExists, Damaged
from strongroom.format import pack as packs
from strongroom.format.segment import FRAME_ROW, Segment, SessionRow
from strongroom.repository.catalogue import Catalogue, Refs
from strongroom.repository.pipeline import ending
from strongroom.repository.repository import Repository

Pack = tuple[bool, bytes]
FrameKey = tuple[bytes, int]  # session id, sequence


@dataclass(frozen=True)
class Skips:
    """Steps of the protocol that are left out, to see that somebody notices."""

    second_refs: bool = False  # p2 believes what p1 read
    fresh_index: bool = False  # p2 resolves refs through the index that p1 read
    tombstones: bool = False  # orphan refs are dropped although their writer may commit yet


@dataclass
class Frame:
    """A frame as the index tells: where it rests and the chunks in it."""

    place: tuple[Pack, int, int] = ((False, b""), 0, 0)
    chunks: list[tuple[bytes, int]] = field(default_factory=list)
    others: list[tuple[Pack, int, int]] = field(default_factory=list)


@dataclass
class GroupIndex:
    """Every segment of a group, joined; `names` are all that were read, the void ones too."""

    names: list[str] = field(default_factory=list)
    sessions: dict[bytes, SessionRow] = field(default_factory=dict)
    frames: dict[FrameKey, Frame] = field(default_factory=dict)


@dataclass
class Plan:
    """What p2 decided: packs to delete, frames to move out of them first."""

    delete: set[Pack] = field(default_factory=set)
    move: dict[str, list[FrameKey]] = field(default_factory=dict)
    drop: dict[str, set[FrameKey]] = field(default_factory=dict)
    index: dict[str, GroupIndex] = field(default_factory=dict)


class Pruner:
    """One pruner."""

    def __init__(
        self,
        repository: Repository,
        *,
        skips: Skips = Skips(),
        forget_orphans: bool = True,
    ) -> None:
        self._storage = repository.storage
        self._catalogue: Catalogue = repository.catalogue
        self._now = repository.seams.now
        self._skips = skips
        self._forget_orphans = forget_orphans

    def run(self) -> int:
        """Finish a generation that was begun, or begin one and finish it; return its number."""
        generation, condemned, done = self._generations()
        if generation and not done:
            plan = self._look(condemned, self._read_refs(), self._read_index())
        else:
            generation += 1
            refs = self._read_refs()
            if self._forget_orphans:
                refs = self._drop_orphans(refs)
            index = self._read_index()
            mine = self._garbage(refs, index) - condemned
            body = {"packs": sorted(name.hex() for name in mine)}
            self._catalogue.put_gc(f"gc/{generation:08d}.condemn", body)
            if not self._skips.second_refs:
                refs = self._read_refs()
            if not self._skips.fresh_index:
                index = self._read_index()
            plan = self._look(condemned | mine, refs, index)
        self._carry_out(plan)
        self._catalogue.put_gc(f"gc/{generation:08d}.done", {})
        return generation

    # -- reading ---------------------------------------------------------------------------

    def _generations(self) -> tuple[int, set[bytes], bool]:
        """The newest generation, every pack that was ever condemned, whether the newest is done."""
        names = [entry.name for entry in self._storage.list("gc/")]
        numbers = [int(name[3:11]) for name in names if name.endswith(".condemn")]
        newest = max(numbers, default=0)
        condemned = {
            bytes.fromhex(pack)
            for number in numbers
            for pack in self._catalogue.open_gc(f"gc/{number:08d}.condemn")["packs"]
        }
        return newest, condemned, f"gc/{newest:08d}.done" in names

    def _read_refs(self) -> list[Refs]:
        return [self._catalogue.open_refs(entry.name) for entry in self._storage.list("refs/")]

    def _drop_orphans(self, refs: Iterable[Refs]) -> list[Refs]:
        """Refs without a snapshot go once their writer cannot commit any more."""
        committed = {entry.name for entry in self._storage.list("snapshots/")}
        kept = []
        for one in refs:
            if one.snapshot in committed and self._is_snapshot(one.snapshot):
                kept.append(one)
                continue
            try:
                if one.snapshot not in committed and not self._skips.tombstones:
                    self._catalogue.put_tombstone(one.snapshot)
            except AlreadyExists:
                kept.append(one)
                continue
            self._storage.delete([one.name])
        return kept

    def _is_snapshot(self, name: str) -> bool:
        return self._catalogue.open_snapshot(name) is not None

    def _read_index(self) -> dict[str, GroupIndex]:
        """Read every group's index; frames that were moved have their newer place first."""
        groups: dict[str, GroupIndex] = defaultdict(GroupIndex)
        segments: dict[str, Segment] = {}
        damaged: dict[str, Damaged] = {}
        for entry in self._storage.list("index/"):
            try:
                segments[entry.name] = self._catalogue.open_index(entry.name)
            except Damaged as fault:
                damaged[entry.name] = fault
            groups[entry.name.split("/")[1]].names.append(entry.name)
        void = {old for rows in segments.values() for old in rows.replaces}
        for name, fault in damaged.items():
            if name not in void:  # what it told of would be taken for garbage
                raise fault
        for name, rows in segments.items():
            if name not in void:
                _join(groups[name.split("/")[1]], rows)
        return groups

    # -- deciding --------------------------------------------------------------------------

    def _garbage(self, refs: Iterable[Refs], index: Mapping[str, GroupIndex]) -> set[bytes]:
        """Packs that hold something which no refs names, whether or not the index knows them."""
        live = _live(refs)
        held: dict[bytes, set[FrameKey]] = {}
        for folder in ("packs/", "trees/"):
            for entry in self._storage.list(folder):
                held[packs.parse_name(entry.name)[1]] = set()
        for group in index.values():
            for key, frame in group.frames.items():
                for (_, name), _, _ in (frame.place, *frame.others):
                    if name in held:
                        held[name].add(key)
        return {name for name, keys in held.items() if not keys or keys - live}

    def _look(
        self, condemned: set[bytes], refs: Iterable[Refs], index: dict[str, GroupIndex]
    ) -> Plan:
        """p2: what of the condemned packs is relied on is moved out, and then the packs go."""
        live = _live(refs)
        here = {
            packs.parse_name(entry.name)
            for folder in ("packs/", "trees/")
            for entry in self._storage.list(folder)
        }
        plan = Plan(index=index)
        plan.delete = {pack for pack in here if pack[1] in condemned}
        for name, group in index.items():
            plan.move[name], plan.drop[name] = [], set()
            for key, frame in group.frames.items():
                good = [at for at in (frame.place, *frame.others) if at[0][1] not in condemned]
                if good:
                    frame.place, frame.others = good[0], []
                    continue
                rests = [at for at in (frame.place, *frame.others) if at[0] in here]
                if key in live and rests:
                    frame.place, frame.others = rests[0], []
                    plan.move[name].append(key)
                else:
                    plan.drop[name].add(key)
        return plan

    # -- acting ----------------------------------------------------------------------------

    def _carry_out(self, plan: Plan) -> None:
        for name, group in plan.index.items():
            if plan.move[name] or plan.drop[name]:
                self._move(group, plan.move[name])
                kept = {key: f for key, f in group.frames.items() if key not in plan.drop[name]}
                segment = _segment(group.sessions, kept, replaces=group.names)
                self._catalogue.put_index(name, segment, now=self._now())
                self._storage.delete(group.names)
        self._storage.delete([packs.object_name(*pack) for pack in sorted(plan.delete)])

    def _move(self, group: GroupIndex, keys: list[FrameKey]) -> None:
        """Copy frames, as they are, into new packs; note the new place beside the old."""
        for tree in (False, True):
            mine = [key for key in keys if group.frames[key].place[0][0] == tree]
            if not mine:
                continue
            sessions = {session: group.sessions[session] for session, _ in mine}
            header = packs.encode_header(list(sessions.values()))
            sealed, moved, at = [], {}, len(header)
            for key in mine:
                frame = group.frames[key]
                (was_tree, name), offset, length = frame.place
                old = packs.object_name(was_tree, name)
                sealed.append(self._storage.get(old, offset=offset, length=length))
                moved[key] = Frame(((tree, packs.ZERO_NAME), at, length), frame.chunks)
                at += length
            last = ending(
                _segment(sessions, moved),
                tree=tree,
                records=self._catalogue.records,
                nonce=self._catalogue.nonce(),
            )
            data = b"".join((header, *sealed, last))
            pack = tree, blake3(data).digest()
            self._storage.put(packs.object_name(*pack), data)
            for key, now in moved.items():
                group.frames[key].others.append((pack, *now.place[1:]))


def _join(group: GroupIndex, rows: Segment) -> None:
    chunk = 0
    for row in rows.sessions:
        group.sessions[row.id] = row
    for row in rows.frames:
        key = rows.sessions[row["session"]].id, int(row["sequence"])
        place = rows.packs[row["pack"]], int(row["offset"]), int(row["length"])
        known = group.frames.get(key)
        if known is None:
            known = group.frames[key] = Frame(place)
        elif place != known.place and place not in known.others:
            known.others.append(place)
        chunks = []
        for _ in range(int(row["chunks"])):
            chunks.append((bytes(rows.ids[chunk * 32 : chunk * 32 + 32]), int(rows.lengths[chunk])))
            chunk += 1
        known.chunks = known.chunks or chunks


def _live(refs: Iterable[Refs]) -> set[FrameKey]:
    return {
        (bytes.fromhex(session), number)
        for one in refs
        for session, held in one.frames.items()
        for first, after in held
        for number in range(first, after)
    }


def _segment(
    sessions: Mapping[bytes, SessionRow],
    frames: Mapping[FrameKey, Frame],
    *,
    replaces: Iterable[str] = (),
) -> Segment:
    """Frames as rows; one that was moved has a row for its chunks and one for its new place."""
    listed = sorted({session for session, _ in frames})
    places = [
        (key, at, frame.chunks if at == frame.place else [])
        for key, frame in frames.items()
        for at in (frame.place, *frame.others)
    ]
    names = sorted({at[0] for _, at, _ in places})
    rows = [
        (listed.index(session), number, names.index(pack), offset, length, len(chunks))
        for (session, number), (pack, offset, length), chunks in places
    ]
    chunks = [chunk for _, _, held in places for chunk in held]
    return Segment(
        [sessions[session] for session in listed],
        names,
        np.array(rows, FRAME_ROW),
        b"".join(chunk_id for chunk_id, _ in chunks),
        np.array([length for _, length in chunks], np.uint32),
        list(replaces),
    )
