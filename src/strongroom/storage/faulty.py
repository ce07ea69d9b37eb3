"""Goes wrong at a chosen operation, so that every line after it can be tested.

Rule: the faults are those that real stores and machines show, and a dead
process stays dead: after a crash every further operation crashes too, from
whichever thread. What is then on `inner` is what the next process finds.

Operations are counted from 1 in the order in which they begin: one per put
and get, one per page of a listing, one per name deleted. `trace` tells what
they were, so that a clean run shows a sweep where there is something to break.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from strongroom.errors import StorageDenied, StorageFull, StorageUnreachable, StrongroomError
from strongroom.storage.base import Buffer, Entry, Storage, check_name


class Crash(BaseException):
    """The process died here. Not an Exception: nothing but a test may catch it."""


class Fault(Enum):
    """What goes wrong."""

    CRASH_BEFORE = "dies before the operation has any effect"
    CRASH_AFTER = "dies when the operation has had its effect and before it returns"
    TORN = "dies in the middle of a put; the store shows nothing, `on_torn` may leave debris"
    TORN_VISIBLE = "dies in the middle of a put, and the store breaks its promise: part is there"
    TRUNCATED = "a put is acknowledged, but only part of it is stored"
    EIO = "input/output error, no effect"
    ENOSPC = "no space left on device, no effect"
    TIMEOUT = "no answer in time, no effect"
    SLOW_DOWN = "503 SlowDown until patience ended, no effect"
    DENIED = "403 AccessDenied, no effect"
    RESET_AFTER = "connection reset when the operation has had its effect"
    FLIP = "a get returns one flipped bit"
    SHORT = "a get returns fewer bytes than it should"
    LIST_EMPTY = "a listing succeeds and is empty"
    LIST_MISSING_ONE = "a listing lacks one entry"
    LIST_DUPLICATED = "a listing shows one entry twice"
    LIST_REVERSED = "a listing comes in descending order"
    LIST_STALE = "a listing shows the store as it was `depth` puts and deletes ago"


ERRORS = frozenset(
    {Fault.EIO, Fault.ENOSPC, Fault.TIMEOUT, Fault.SLOW_DOWN, Fault.DENIED, Fault.RESET_AFTER}
)
CRASHES = frozenset({Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.TORN, Fault.TORN_VISIBLE})
LISTS = frozenset(fault for fault in Fault if fault.name.startswith("LIST_"))
_PUT_ONLY = frozenset({Fault.TORN, Fault.TORN_VISIBLE, Fault.TRUNCATED})
_GET_ONLY = frozenset({Fault.FLIP, Fault.SHORT})


def applies(fault: Fault, verb: str) -> bool:
    """Tell whether `fault` can happen to `verb` ("put", "get", "list", "delete")."""
    if fault in _PUT_ONLY:
        return verb == "put"
    if fault in _GET_ONLY:
        return verb == "get"
    return verb == "list" if fault in LISTS else True


@dataclass(frozen=True, slots=True)
class Plan:
    """`fault` happens at operation `at` (from 1; 0 never), and, if `lasting`, at every later one
    that it can happen to.

    `place` is what the fault is aimed at: the bit that flips, the bytes that are kept of a torn or
    short object, the entry of a listing that is lost or doubled; always taken modulo what is there.
    `depth` is how many puts and deletes a stale listing lags behind.
    """

    fault: Fault = Fault.EIO
    at: int = 0
    lasting: bool = False
    place: int = 0
    depth: int = 1


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a trace: its verb and the name, or the prefix of a listing."""

    verb: str
    name: str


class FaultyStorage:
    """`inner`, with the fault of `plan`.

    `on_torn(name, part)` is called for TORN with the bytes that had been written, so that a test
    can leave what its store leaves (a local directory: a temporary). `page` is the number of
    entries per operation of a listing. `happened` is set once the fault has been injected.
    """

    def __init__(
        self,
        inner: Storage,
        plan: Plan = Plan(),
        *,
        on_torn: Callable[[str, bytes], None] | None = None,
        page: int = 1000,
    ) -> None:
        self._inner = inner
        self._plan = plan
        self._on_torn = on_torn
        self._page = page
        self._lock = threading.Lock()
        self._dead = False
        self._history: list[tuple[str, Entry | None]] = []
        self.trace: list[Operation] = []
        self.happened = False

    @property
    def url(self) -> str:
        """Return the address of what is wrapped."""
        return self._inner.url

    @property
    def dead(self) -> bool:
        """Whether the process has crashed."""
        return self._dead

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        """Store, unless it goes wrong."""
        check_name(name)
        fault = self._begin("put", name)
        self._fail_before(fault, name)
        if fault in _PUT_ONLY:
            self._tear(fault, name, bytes(data), if_absent)
            return
        before = self._entry(name)
        self._inner.put(name, data, if_absent=if_absent)
        self._remember(name, before)
        self._fail_after(fault, name)

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Read, unless it goes wrong."""
        check_name(name)
        fault = self._begin("get", name)
        self._fail_before(fault, name)
        found = self._inner.get(name, offset=offset, length=length)
        self._fail_after(fault, name)
        if fault is Fault.FLIP and found:
            return flip(found, self._plan.place)
        if fault is Fault.SHORT and found:
            return found[: self._plan.place % len(found)]
        return found

    def list(self, prefix: str) -> Iterator[Entry]:
        """List, unless it goes wrong; each page is an operation of its own."""
        source = iter(self._inner.list(prefix))
        more = True
        while more:
            fault = self._begin("list", prefix)
            self._fail_before(fault, prefix)
            if fault in LISTS:
                # What a listing lies about concerns all that is left of it, as one page.
                yield from self._lie(fault, prefix, [*source])
                return
            entries = [*itertools.islice(source, self._page)]
            more = len(entries) == self._page
            self._fail_after(fault, prefix)
            yield from entries

    def delete(self, names: Iterable[str]) -> None:
        """Delete one by one, unless it goes wrong on the way."""
        for name in names:
            check_name(name)
            fault = self._begin("delete", name)
            self._fail_before(fault, name)
            before = self._entry(name)
            self._inner.delete([name])
            self._remember(name, before)
            self._fail_after(fault, name)

    def free_space(self) -> int | None:
        """Ask; never goes wrong."""
        return self._inner.free_space()

    def total_space(self) -> int | None:
        """Ask; never goes wrong."""
        return self._inner.total_space()

    def close(self) -> None:
        """Close what is wrapped."""
        self._inner.close()

    def _begin(self, verb: str, name: str) -> Fault | None:
        """Count an operation and return what goes wrong with it."""
        with self._lock:
            if self._dead:
                raise Crash(f"{verb} {name} after the process died")
            self.trace.append(Operation(verb, name))
            number, plan = len(self.trace), self._plan
            due = number == plan.at or (plan.lasting and 0 < plan.at < number)
            if not due or not applies(plan.fault, verb):
                return None
            self.happened = True
            return plan.fault

    def _fail_before(self, fault: Fault | None, name: str) -> None:
        if fault is Fault.CRASH_BEFORE:
            self._die(name)
        if fault in _RAISED:
            raise _RAISED[fault](name, self.url)

    def _fail_after(self, fault: Fault | None, name: str) -> None:
        if fault is Fault.CRASH_AFTER:
            self._die(name)
        if fault is Fault.RESET_AFTER:
            raise StorageUnreachable(f"cannot reach {name} at {self.url}: connection reset by peer")

    def _die(self, name: str) -> None:
        self._dead = True
        raise Crash(name)

    def _tear(self, fault: Fault | None, name: str, data: bytes, if_absent: bool) -> None:
        part = data[: self._plan.place % len(data)] if data else b""
        if fault is Fault.TORN:
            if self._on_torn is not None:
                self._on_torn(name, part)
        else:
            before = self._entry(name)
            self._inner.put(name, part, if_absent=if_absent)
            self._remember(name, before)
        if fault is not Fault.TRUNCATED:
            self._die(name)

    # -- listings that lie ------------------------------------------------------

    def _entry(self, name: str) -> Entry | None:
        """Return what a listing shows of `name` now; only asked where a stale one may be due."""
        if self._plan.fault is not Fault.LIST_STALE:
            return None
        return next((e for e in self._inner.list(name) if e.name == name), None)

    def _remember(self, name: str, before: Entry | None) -> None:
        if self._plan.fault is Fault.LIST_STALE:
            with self._lock:
                self._history.append((name, before))

    def _lie(self, fault: Fault | None, prefix: str, entries: _Entries) -> _Entries:
        spot = self._plan.place % len(entries) if entries else 0
        if fault is Fault.LIST_EMPTY:
            return []
        if fault is Fault.LIST_MISSING_ONE:
            return entries[:spot] + entries[spot + 1 :]
        if fault is Fault.LIST_DUPLICATED:
            return entries[: spot + 1] + entries[spot:]
        if fault is Fault.LIST_REVERSED:
            return sorted(entries, key=lambda entry: entry.name, reverse=True)
        return self._stale(prefix, entries)

    def _stale(self, prefix: str, entries: _Entries) -> _Entries:
        shown = {entry.name: entry for entry in entries}
        with self._lock:
            undone = self._history[-self._plan.depth :] if self._plan.depth else []
        for name, before in reversed(undone):
            if not name.startswith(prefix):
                continue
            if before is None:
                shown.pop(name, None)
            else:
                shown[name] = before
        return [shown[name] for name in sorted(shown)]


_Entries = list[Entry]


def flip(data: bytes, bit: int) -> bytes:
    """Return `data` with bit number `bit` (modulo its length in bits) inverted."""
    changed = bytearray(data)
    bit %= len(changed) * 8
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


_RAISED: dict[Fault | None, Callable[[str, str], StrongroomError]] = {
    Fault.EIO: lambda name, url: StorageUnreachable(
        f"cannot reach {name} at {url}: Input/output error"
    ),
    Fault.ENOSPC: lambda name, url: StorageFull(
        f"cannot store {name} at {url}: No space left on device"
    ),
    Fault.TIMEOUT: lambda name, url: StorageUnreachable(
        f"cannot reach {name} at {url}: no answer in time"
    ),
    Fault.SLOW_DOWN: lambda name, url: StorageUnreachable(
        f"cannot reach {name} at {url}: the store is overloaded: 503 SlowDown"
    ),
    Fault.DENIED: lambda name, url: StorageDenied(
        f"cannot reach {name} at {url}: refused: 403 AccessDenied"
    ),
}
