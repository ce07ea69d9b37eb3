"""What a store can do, found out by doing it once, at `init`.

Rule: believe nothing that a store announces. A store may accept a conditional
create and carry it out unconditionally, or check the condition without
holding the name meanwhile; both lose a commit, so both are tried.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from strongroom.errors import AlreadyExists, ObjectMissing, StorageDenied
from strongroom.storage.base import Capabilities, Storage

_RACES = 3
_RACERS = 4


def probe(storage: Storage, *, token: str, prefix: str = "probe") -> Capabilities:
    """Return what `storage` can do, using objects below `prefix/token/` that are deleted again.

    `token` is any name part that nobody else uses, such as 16 random hex digits. Where the
    credentials may not delete, a dozen tiny objects stay behind.
    """
    place = f"{prefix}/{token}"
    used: list[str] = []
    try:
        return Capabilities(
            put_if_absent=_refuses_second(storage, place, used) and _one_wins(storage, place, used),
            read_after_write=_shows_writes(storage, place, used),
            list_sorted=_lists_in_order(storage, place, used),
        )
    finally:
        _clean(storage, used)


def _refuses_second(storage: Storage, place: str, used: list[str]) -> bool:
    name = f"{place}/second"
    used.append(name)
    first, second = f"first {place}".encode(), f"second {place}".encode()
    storage.put(name, first, if_absent=True)
    try:
        storage.put(name, second, if_absent=True)
    except AlreadyExists:
        return storage.get(name) == first
    return False


def _one_wins(storage: Storage, place: str, used: list[str]) -> bool:
    return all(_race(storage, f"{place}/race{number}", used) for number in range(_RACES))


def _race(storage: Storage, name: str, used: list[str]) -> bool:
    """Let several threads create `name` at the same moment; is the only winner's object there?"""
    used.append(name)
    start = threading.Barrier(_RACERS)
    contents = [f"racer {number} of {name}".encode() for number in range(_RACERS)]

    def run(content: bytes) -> bool:
        start.wait(timeout=30)
        try:
            storage.put(name, content, if_absent=True)
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(_RACERS) as threads:
        won = list(threads.map(run, contents))
    return won.count(True) == 1 and storage.get(name) == contents[won.index(True)]


def _shows_writes(storage: Storage, place: str, used: list[str]) -> bool:
    name = f"{place}/seen"
    used.append(name)
    storage.put(name, b"seen")
    try:
        read = storage.get(name) == b"seen"
    except ObjectMissing:
        return False
    listed = any(entry.name == name and entry.size == 4 for entry in storage.list(f"{place}/"))
    if not (read and listed):
        return False
    try:
        storage.delete([name])
    except StorageDenied:
        return True  # a writer need not delete; what it cannot do it will not rely on
    return all(entry.name != name for entry in storage.list(f"{place}/"))


def _lists_in_order(storage: Storage, place: str, used: list[str]) -> bool:
    # "-" sorts before "/" and "A" before "a"; put in an order that is not the sorted one.
    names = [f"{place}/order/{leaf}" for leaf in ("b", "a/z", "a-1", "B", "a.2", "9")]
    for name in names:
        used.append(name)
        storage.put(name, b"")
    return [entry.name for entry in storage.list(f"{place}/order/")] == sorted(names)


def _clean(storage: Storage, used: list[str]) -> None:
    try:
        storage.delete(used)
    except StorageDenied:
        return  # promised in `probe`: without the right to delete they stay
