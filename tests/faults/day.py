"""The scripted day, a step a process: init, three backups of each kind, keys, check, restore.

A step draws from its own seed, opens the repository by a key file as a new process would, and
says what it did in a `Claims`. Rule: what a step claims must be true of the storage whatever
happens later, and what it did not claim it must not need.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rooms import QUIET, Clock, DictSource, Files, Sparse, as_read, committed, noise, read, seams
from strongroom.errors import AlreadyExists, KeyRefused, NotFound, StorageUnreachable
from strongroom.format.tree import Entry, Kind
from strongroom.keys.keyfile import KeyFileHolder
from strongroom.keys.recovery_code import (
    RecoveryCodeHolder,
    generate_recovery_code,
    parse_recovery_code,
)
from strongroom.operations.back_up import back_up
from strongroom.operations.check import check
from strongroom.operations.initialise import initialise
from strongroom.operations.keys import add_key, remove_key
from strongroom.operations.opening import open_repository
from strongroom.progress import Silent
from strongroom.repository.footers import footers
from strongroom.repository.keyring import Keyring
from strongroom.repository.repository import Repository
from strongroom.storage.base import Storage
from strongroom.storage.memory import MemoryStorage

CANARY = b"CANARY-4711-plain-text-of-a-person"
SECRET, WRITER_SECRET = b"S" * 32, b"W" * 32
CODE = generate_recovery_code(lambda size: b"c" * size)

_VAULT: Files = {
    b"": Entry(b"", Kind.DIRECTORY, 0o755),
    b"audits/" + CANARY: CANARY * 20,
    b"audits/link": Entry(b"", Kind.SYMLINK, target=CANARY),
    b"clips/1.json": b'{"clip": 1}' * 30,
    b"clips/2.json": noise("clip 2", 900),
    b"clips/empty": b"",
    b"model": noise("model", 4000),
    b"sparse": Sparse(50_000, ((20_000, noise("sparse", 1500)),)),
}
_DUMP: Files = {
    b"globals": b"CREATE ROLE app;" * 5,
    b"tables/campaigns": CANARY + noise("campaigns", 3000),
    b"tables/clips": noise("clips", 2500),
}
HELD: Mapping[str, Files] = {
    "files 1": _VAULT,
    "files 2": {**_VAULT, b"clips/3.json": noise("clip 3", 1500), b"model": noise("new", 4000)},
    "files 3": {**_VAULT, b"clips/3.json": noise("clip 3", 1500), b"clips/1.json": b"{}"},
    "postgres 1": _DUMP,
    "postgres 2": {**_DUMP, b"tables/clips": noise("clips", 2500) + noise("more", 900)},
    "postgres 3": {**_DUMP, b"tables/extra": noise("extra", 1200)},
}


@dataclass
class Claims:
    """What steps said: snapshot ids by the content they hold."""

    snapshots: dict[str, str] = field(default_factory=dict)

    def copy(self) -> Claims:
        return Claims(dict(self.snapshots))


Step = Callable[[Storage, Claims, object], None]


def holder(secret: bytes = SECRET) -> KeyFileHolder:
    return KeyFileHolder(secret)


def enter(storage: Storage, seed: object, secret: bytes = SECRET) -> Repository:
    """Open the repository as a new process."""
    return open_repository(storage, [holder(secret)], seams=seams(seed, Clock()), settings=QUIET)


def begin(storage: Storage, claims: Claims, seed: object) -> None:
    del claims
    initialise(
        storage,
        holders={"owner": holder()},
        recovery=(RecoveryCodeHolder(parse_recovery_code(CODE)), CODE),
        seams=seams(seed),
    )


def take(held: str) -> Step:
    def step(storage: Storage, claims: Claims, seed: object) -> None:
        room = enter(storage, seed)
        report = back_up(room, source_of(held), progress=Silent(), labels={"held": held})
        claims.snapshots[report.snapshot.id] = held

    return step


def source_of(held: str) -> DictSource:
    kind = held.split(maxsplit=1)[0]
    facts = {"root": CANARY.decode(), "kind": kind}
    return DictSource({"files": "vault"}.get(kind, "db"), HELD[held], kind=kind, facts=facts)


def look_after(storage: Storage, claims: Claims, seed: object) -> None:
    """Check at level 3: a clean verdict is a claim as well."""
    del claims
    report = check(enter(storage, seed), level=3, progress=Silent())
    if report.findings:
        raise Found(str(report.findings))
    if report.stopped or report.unreached:
        raise StorageUnreachable("Not all could be checked.")


class Found(Exception):
    """`check` named something."""


def bring_back(storage: Storage, claims: Claims, seed: object) -> None:
    """Restore everything that is listed; what is delivered must be what was taken."""
    del claims
    room = enter(storage, seed)
    for snapshot in committed(room):
        assert read(room.open_snapshot(snapshot)) == expected(snapshot.labels["held"])


def give_key(storage: Storage, claims: Claims, seed: object) -> None:
    del claims
    room = enter(storage, seed)
    assert isinstance(room.keys, Keyring)
    add_key(
        storage, room.keys, holder(WRITER_SECRET), label="host", role="writer", seams=seams(seed)
    )


def take_key(storage: Storage, claims: Claims, seed: object) -> None:
    del claims
    room = enter(storage, seed)
    assert isinstance(room.keys, Keyring)
    remove_key(storage, room.keys, "host")


STEPS: dict[str, Step] = {
    "init": begin,
    **{held: take(held) for held in ("files 1", "postgres 1", "files 2", "postgres 2")},
    "key add": give_key,
    **{held: take(held) for held in ("files 3", "postgres 3")},
    "check": look_after,
    "restore": bring_back,
    "key remove": take_key,
}


@functools.cache
def expected(held: str) -> dict[bytes, bytes]:
    return as_read(HELD[held])


@dataclass(frozen=True)
class Morning:
    """What is there before a step."""

    storage: MemoryStorage
    claims: Claims


@functools.cache
def mornings() -> dict[str, Morning]:
    """The day without a fault; what each step finds, and under "night" what the last one leaves."""
    storage, claims = MemoryStorage(), Claims()
    found = {}
    for name, step in STEPS.items():
        found[name] = Morning(storage.fork(), claims.copy())
        step(storage, claims, (name, "day"))
    found["night"] = Morning(storage.fork(), claims.copy())
    return found


# -- after a fault -----------------------------------------------------------------------------


def resume(name: str, storage: MemoryStorage, claims: Claims) -> None:
    """The same command again, by somebody who reads what it says."""
    try:
        STEPS[name](storage, claims, (name, "again"))
    except AlreadyExists:
        assert name == "key add"
        assert enter(storage, "added", WRITER_SECRET).keys.current.role == "writer"
    except NotFound:
        assert name == "key remove"
    except Exception as refused:
        if name != "init" or "strongroom.json" not in storage.objects:
            raise
        assert "There is a repository" in str(refused)


def assert_sound(storage: MemoryStorage, claims: Claims) -> None:
    """I1, I2, I4, I6 and a clean check, asked of what rests."""
    room = enter(storage, "sound")
    listed = {snapshot.id: snapshot for snapshot in committed(room)}
    assert set(claims.snapshots) <= set(listed), "a run was green and its snapshot is not there"
    for snapshot in listed.values():
        assert read(room.open_snapshot(snapshot)) == expected(snapshot.labels["held"])
    report = check(enter(storage, "check"), level=3, progress=Silent())
    assert report.findings == []
    assert_no_plaintext(storage)
    assert stored_twice(room) == {}


def assert_no_plaintext(storage: MemoryStorage) -> None:
    """No canary and no secret anywhere, names included."""
    for name, data in storage.objects.items():
        for plain in (CANARY, CANARY[:12], SECRET, WRITER_SECRET, CODE.encode()):
            assert plain not in data, name
            assert plain not in name.encode(), name


def stored_twice(room: Repository) -> dict[bytes, int]:
    """Chunks that rest in more than one frame, by what the footers of all packs say."""
    places: Counter[bytes] = Counter()
    for rows in footers(room.catalogue, set()):
        ids = bytes(rows.ids)
        places.update({ids[at : at + 32] for at in range(0, len(ids), 32)})
    return {chunk: count for chunk, count in places.items() if count > 1}


def assert_nothing_new(storage: MemoryStorage, claims: Claims) -> None:
    """A further run of what was taken last adds no byte of content (I6)."""
    for kind in ("files", "postgres"):
        mine = [held for held in claims.snapshots.values() if held.startswith(kind)]
        if mine:
            room = enter(storage, ("once more", kind))
            snapshot = back_up(room, source_of(mine[-1]), progress=Silent()).snapshot
            assert (snapshot.new_size, snapshot.stored) == (0, 0)


def small_repository() -> MemoryStorage:
    """About 60 kB that hold every type of object: three snapshots, keys, a crashed run, a prune."""
    storage = mornings()["postgres 2"].storage.fork()
    room = enter(storage, "gc")
    room.catalogue.put_gc("gc/00000001.condemn", {"packs": ["ab" * 32]})
    room.catalogue.put_gc("gc/00000001.done", {})
    return storage


def opens(storage: Storage, secret: bytes) -> bool:
    try:
        enter(storage, "opens", secret)
    except KeyRefused:
        return False
    return True


__all__ = ["STEPS", "Claims", "Found", "Morning", "mornings", "resume"]
