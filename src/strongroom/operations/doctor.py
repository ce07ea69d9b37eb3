"""Look at preconditions one by one: each is ok, a warning or a failure, with cause and remedy.

No failure hides another: what one check raises is its finding, and the next goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from strongroom.errors import StrongroomError
from strongroom.operations.clocks import clock_difference
from strongroom.repository.repository import Seams
from strongroom.rules.sizes import show_size
from strongroom.storage.base import Storage

State = Literal["ok", "warn", "FAIL"]
CLOCK_WARN, CLOCK_FAIL = 60.0, 900.0  # seconds
ROOM_WARN, ROOM_FAIL = 5 << 30, 256 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One precondition: what was looked at, how it stands, what was found, what to do."""

    item: str
    state: State
    what: str
    do: str = ""

    def as_json(self) -> Mapping[str, str]:
        """JSON values."""
        return {"item": self.item, "state": self.state, "what": self.what, "do": self.do}


Verdict = tuple[State, str, str]


def look(item: str, probe: Callable[[], Verdict | str]) -> Finding:
    """Carry out one check; an error is its finding."""
    try:
        found = probe()
    except StrongroomError as fault:
        return Finding(item, "FAIL", fault.what, fault.do)
    except (OSError, ValueError) as fault:  # a check must not end the others
        return Finding(item, "FAIL", f"{type(fault).__name__}: {fault}", "Run it again with -vv.")
    if isinstance(found, str):
        return Finding(item, "ok", found)
    return Finding(item, *found)


def check_room(storage: Storage) -> Verdict | str:
    """Free space where the repository rests."""
    free = storage.free_space()
    if free is None:
        return "the store does not tell how much room it has"
    text = f"{show_size(free)} free"
    if free < ROOM_FAIL:
        return "FAIL", text, "Free space, or move the repository to a larger disk."
    if free < ROOM_WARN:
        return "warn", text, "Free space before the next backups need it."
    return text


def check_clock(storage: Storage, seams: Seams) -> Verdict | str:
    """This machine's clock against the store's."""
    apart = clock_difference(storage, seams)
    if apart is None:
        return "writes, reads, lists, deletes; the store tells no time"
    if abs(apart) < CLOCK_WARN:
        return "writes, reads, lists, deletes; clocks agree"
    return (
        "FAIL" if abs(apart) >= CLOCK_FAIL else "warn",
        f"this machine's clock and the store's are {abs(apart):,.0f} s apart",
        "Set this machine's clock by NTP (`timedatectl set-ntp true`); signed requests and "
        "restores to a time depend on it.",
    )


def check_folder(path: str) -> Verdict | str:
    """That a folder can be made and written to."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    probe = os.path.join(path, f".doctor-{os.getpid()}")
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, b"x")
    finally:
        os.close(descriptor)
        os.unlink(probe)
    room = os.statvfs(path)
    return f"{path} can be written, {show_size(room.f_bavail * room.f_frsize)} free"
