"""This machine's clock against the store's, by an object that is put, listed and taken away."""

from __future__ import annotations

from strongroom.errors import Damaged
from strongroom.repository.seams import Seams
from strongroom.storage.base import Storage


def clock_difference(storage: Storage, seams: Seams) -> float | None:
    """Seconds by which the store is ahead (negative: behind); None where it tells no time.

    Damaged when the store does not give back what was just put.
    """
    token = seams.random(8).hex()
    name = f"probe/{token}/clock"
    before = seams.now().timestamp()
    storage.put(name, token.encode())
    after = seams.now().timestamp()
    try:
        found = [entry for entry in storage.list(f"probe/{token}/") if entry.name == name]
        if storage.get(name) != token.encode() or not found:
            raise Damaged("The store does not give back what was just put.")
    finally:
        storage.delete([name])
    told = found[0].modified
    if told is None:
        return None
    if told > after:
        return told - after
    # A store may cut its times to seconds.
    return min(0.0, told + 1.0 - before)
