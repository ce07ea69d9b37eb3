"""Two real writers and the real pruner on a tiny repository, and what must always hold.

    before    S0 holds X and was expired; S1 lives; both lean on one pack, so that it is repacked
    writers   back up X again, through operations.back_up, with every thread of the pipeline
    pruner    condemns whatever no refs names, moves what lives, deletes the rest
    deciders  expire S0 by a policy, hold it, revive it: who was told that it stays has it for good

Rule: the invariant is asked of the storage itself, after every operation that could break it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from interleaving import Body, Choose, ScheduledStorage, Stage

from rooms import (
    Clock,
    DictSource,
    committed,
    drawn,
    expire,
    new_room,
    noise,
    open_room,
    prune,
    reader_keys,
    restore,
    take,
    writer_keys,
)
from strongroom.errors import Busy, Damaged, NotFound, Overtaken
from strongroom.format import keyset as keysets
from strongroom.format import record, segment
from strongroom.format.keyset import Keyset
from strongroom.operations.back_up import back_up
from strongroom.operations.retaining import expire as expire_by_plan
from strongroom.operations.retaining import hold, judge, revive
from strongroom.progress import Silent
from strongroom.repository import session as sessions
from strongroom.repository.catalogue import Catalogue, Snapshot
from strongroom.repository.check import Checker
from strongroom.repository.footers import footers
from strongroom.repository.repository import Repository
from strongroom.rules.retention import Policy
from strongroom.storage.faulty import flip
from strongroom.storage.memory import MemoryStorage

X, Z, Y = (noise(name, 700) for name in "xzy")
HELD: Mapping[str, Mapping[bytes, bytes]] = {
    "before": {b"a": X},
    "kept": {b"a": Z},
    "one": {b"a": X},
    "two": {b"a": X, b"b": Y},
    "late": {b"a": X, b"b": Z},
}
SOURCES = {"before": "vault", "kept": "vault", "one": "one", "two": "two", "late": "late"}
RESTARTS = 3  # what may be started anew in the place of actors that died


class Broken(AssertionError):
    """The invariant does not hold."""


@functools.cache
def alive() -> dict[str, bytes]:
    """The same before S0 was expired."""
    storage = MemoryStorage()
    room = new_room(storage, "start")
    run_backup(room, "before")
    run_backup(room, "kept")
    return dict(storage.objects)


@functools.cache
def start() -> dict[str, bytes]:
    """The objects of the repository before anybody acts."""
    storage = MemoryStorage(alive())
    room = open_room(storage, "expire")
    expire(room, committed(room)[0])
    return dict(storage.objects)


@functools.cache
def oldest() -> Snapshot:
    """S0."""
    return committed(open_room_of(MemoryStorage(alive()), reader_keys(), seed="look"))[0]


def expired() -> str:
    """The commit record of S0."""
    return oldest().name


def run_backup(room: Repository, held: str) -> str:
    """Back up what `held` names; return the name of its commit record."""
    source = DictSource(SOURCES[held], HELD[held], facts={"of": "a test"})
    return back_up(room, source, progress=Silent(), group="g", labels={"held": held}).snapshot.name


@functools.cache
def spoiled() -> dict[str, bytes]:
    """The same with a bit flipped in every index segment."""
    objects = dict(start())
    for name in sorted(name for name in objects if name.startswith("index/")):
        objects[name] = flip(objects[name], 700)
    return objects


@dataclass
class World:
    """One run's storage, actors and invariant. `bodies` name the actors: "one" and "two" back up,
    "prune", "revive", "hold", "expire".

    `spoil` damages the index first: writers mend it, and a prune that comes before that refuses.
    `alive`: S0 was not expired yet. `promised`: somebody was told that S0 stays.
    """

    bodies: tuple[str, ...] = ("one", "two", "prune")
    polite: bool = False
    spoil: bool = False
    alive: bool = False
    promised: bool = False
    storage: MemoryStorage = field(default_factory=MemoryStorage)
    restarts: int = 0
    # What was found whole once need not be read again: equal storages restore equally.
    seen: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        objects = alive() if self.alive else spoiled() if self.spoil else start()
        self.storage.objects.update(objects)

    def run(self, choose: Choose) -> Stage:
        """Run once; Broken when the invariant fails at any moment or at the end."""
        bodies = [self._body(name, number) for number, name in enumerate(self.bodies)]
        stage = Stage(self.storage, bodies, after=self._after, again=self._again)
        self._names = dict(enumerate(self.bodies))
        try:
            stage.run(choose)
            self._end()
        except Broken as broken:
            lines = "\n".join(
                f"{n} {self._names[n]} {v} {o} {f.name}" for n, v, o, f in stage.trace
            )
            raise Broken(f"{broken}\nafter\n{lines}") from None
        return stage

    def _body(self, name: str, number: int) -> Body:
        def act(storage: ScheduledStorage) -> None:
            keys = writer_keys()  # a prune needs no key that opens data either
            room = open_room_of(storage, keys, seed=(name, number))
            if name == "prune":
                refusals = (Busy, *([Damaged] if self.spoil else []))
                with contextlib.suppress(*refusals):
                    prune(room, polite=timedelta(days=7) if self.polite else None)
                return
            if name == "revive":
                with contextlib.suppress(Busy, NotFound):
                    revive(room, expired(), now=room.seams.now())
                    self.promised = self.promised or "expire" not in self.bodies
                return
            if name == "hold":
                with contextlib.suppress(Busy, NotFound):
                    hold(room, oldest(), until=None, why="the auditor asked", now=room.seams.now())
                    self.promised = True
                return
            if name == "expire":
                one = Policy(last=1)
                now = room.seams.now()
                judged = judge(room, "vault", one, physical=False, now=now, store_now=None)
                expire_by_plan(room, judged, now=now)
                return
            try:
                run_backup(room, name)
            except Overtaken:  # five times in a row: loud, and nothing was committed
                return

        return act

    def _again(self, actor: int) -> Body | None:
        """Whoever died is started again, as a new process."""
        self.restarts += 1
        if self.restarts > RESTARTS:
            return None
        name, number = self._names[actor], len(self._names)
        self._names[number] = name
        return self._body(name, number)

    # -- what must hold ------------------------------------------------------------------------

    def _after(self, verb: str, name: str) -> None:
        """A committed snapshot can only lose something by its own commit, a delete or a new index."""
        if verb == "delete" or (verb == "put" and name.startswith(("snapshots/", "index/"))):
            self.assert_whole()

    def assert_whole(self) -> None:
        """Every frame that a committed snapshot relies on rests in a pack that is there."""
        objects = self.storage.objects
        there = {
            bytes.fromhex(n.rsplit("/", 1)[-1]) for n in objects if n[:6] in ("packs/", "trees/")
        }
        rests: set[tuple[str, int]] = set()
        parts = {
            n: index_rows(n, d)
            for n, d in objects.items()
            if n.startswith("index/") and (not self.spoil or d != spoiled().get(n))
        }
        void = {old for _, replaces in parts.values() for old in replaces}
        if self.spoil and {n for n in objects if n in spoiled() and n[:6] == "index/"} - void:
            rests |= footer_rows(objects)  # nobody has mended the index yet
        for name, (rows, _) in parts.items():
            if name not in void:
                rests |= {key for key, pack in rows if pack in there}
        for name, data in objects.items():
            if name.startswith("snapshots/") and is_snapshot(name, data):
                source, snapshot = name.split("/")[1], name.rsplit("-", 1)[-1]
                refs = objects.get(f"refs/{source}/{snapshot}")
                if refs is None:
                    raise Broken(f"{name} is committed and has no refs")
                lacking = relied(f"refs/{source}/{snapshot}", refs) - rests
                if lacking:
                    raise Broken(f"{name} lacks {sorted(lacking)}")

    def _end(self) -> None:
        """Everything restores, byte for byte; so it does after one more prune and backup of all."""
        self.assert_whole()
        state = hash((self.promised, frozenset(self.storage.objects.items())))
        if state in self.seen:
            return
        self.assert_restores()
        for number in range(2):
            prune(open_room(self.storage, ("last prune", number)))
            self.assert_restores()
        run_backup(open_room(self.storage, "late"), "late")
        self.assert_restores()
        self.assert_checked()
        self.seen.add(state)

    def assert_restores(self) -> None:
        """Read every snapshot through the real read path."""
        room = open_room_of(self.storage, reader_keys(), seed="read")
        if self.promised and expired() not in [snapshot.name for snapshot in committed(room)]:
            raise Broken(f"{expired()} is no backup any more, and somebody was told that it stays")
        for snapshot in committed(room):
            expected = HELD[snapshot.labels["held"]]
            try:
                found = restore(room, snapshot)
            except Exception as fault:
                raise Broken(f"{snapshot.name} does not restore: {fault}") from None
            if found != expected:
                raise Broken(f"{snapshot.name} restores to something else")

    def assert_checked(self) -> None:
        """`check` has nothing to say."""
        report = Checker(open_room(self.storage, "check"), progress=Silent()).run(3)
        if report.findings:
            raise Broken(str(report.findings))


def open_room_of(storage: object, keys: Keyset, *, seed: object) -> Repository:
    """Open without reading strongroom.json, which nobody changes here."""
    room = open_room(MemoryStorage(start()), seed, keyset=keys, clock=Clock())
    room.storage = storage  # type: ignore[assignment]
    room.catalogue = Catalogue(storage, keys, random=room.seams.random)  # type: ignore[arg-type]
    return room


@functools.cache
def records() -> record.RecordKey:
    return record.RecordKey(reader_keys().repository, reader_keys().catalogue_key)


@functools.lru_cache(4096)
def index_rows(name: str, data: bytes) -> tuple[list[tuple[tuple[str, int], bytes]], list[str]]:
    """(session, sequence) and pack of every frame row, and what the segment replaces."""
    rows = segment.decode(records().open(data, name, record.INDEX)[1])
    listed = [
        ((rows.sessions[row["session"]].id.hex(), int(row["sequence"])), rows.packs[row["pack"]][1])
        for row in rows.frames
    ]
    return listed, rows.replaces


def footer_rows(objects: Mapping[str, bytes]) -> set[tuple[str, int]]:
    """(session, sequence) of every frame that the footer of a pack tells of."""
    rooms = {name: data for name, data in objects.items() if name[:6] in ("packs/", "trees/")}
    catalogue = Catalogue(MemoryStorage(rooms), reader_keys(), random=drawn(0))
    return {
        (rows.sessions[row["session"]].id.hex(), int(row["sequence"]))
        for rows in footers(catalogue, set())
        for row in rows.frames
    }


@functools.lru_cache(4096)
def is_snapshot(name: str, data: bytes) -> bool:
    return records().open(data, name, record.SNAPSHOT, record.TOMBSTONE)[0] == record.SNAPSHOT


@functools.lru_cache(4096)
def relied(name: str, data: bytes) -> set[tuple[str, int]]:
    """The frames that a refs names."""
    frames = Catalogue(MemoryStorage({name: data}), reader_keys(), random=drawn(0)).open_refs(name)
    return {
        (session, number)
        for session, held in frames.frames.items()
        for first, after in held
        for number in range(first, after)
    }


def make_repeatable(patch: pytest.MonkeyPatch) -> None:
    """HPKE draws its own randomness: seal each session's key once, so that names are the same."""
    seal = keysets.seal_session_key
    kept: dict[tuple[bytes, bytes], bytes] = {}

    def sealing(keyset: Keyset, session: bytes, key: bytes) -> bytes:
        if (session, key) not in kept:
            kept[session, key] = seal(keyset, session, key)
        return kept[session, key]

    patch.setattr(keysets, "seal_session_key", sealing)
    patch.setattr(sessions, "WINDOW", 64 * 1024)


Mutate = Callable[[pytest.MonkeyPatch], None]
__all__ = ["Broken", "World", "make_repeatable", "take"]
