"""Look at preconditions side by side: facts are gathered here, `rules/preconditions.py` judges them.

Rule: no check hides another. What one raises is its finding; one that hangs is `unknown` when its time is
over, with what it had found until then. Nothing is changed: what a store can do is found out by tiny objects
that are deleted again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from strongroom.errors import StorageDenied, StrongroomError
from strongroom.operations.clocks import clock_difference
from strongroom.repository.keyring import SlotInfo
from strongroom.repository.repository import Repository, Seams
from strongroom.rules import preconditions as rules
from strongroom.rules.preconditions import Finding, Holder, JobState, Unscheduled
from strongroom.rules.sizes import show_size
from strongroom.storage.base import Capabilities, Storage

if TYPE_CHECKING:
    from strongroom.format.run import Run
    from strongroom.observe.journal import Journal
    from strongroom.repository.audit import AuditLog
    from strongroom.rules.schedule import Verdict

Probe = Callable[[], Iterable[Finding]]
KIT_ACT = "test-kit"


@dataclass(frozen=True, slots=True)
class Check:
    """Something to look at: the item that is named when it raises or hangs, and what looks."""

    item: str
    probe: Probe


@dataclass(slots=True)
class _Running:
    """A check that has begun."""

    check: Check
    found: list[Finding] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        item = self.check.item
        try:
            for finding in self.check.probe():
                self.found.append(finding)
        except StrongroomError as fault:
            self.found.append(Finding(item, "failed", fault.what, fault.do))
        except Exception as fault:  # whatever it is: it must not end the others
            text = f"{type(fault).__name__}: {fault}"
            self.found.append(Finding(item, "failed", text, "Run it again with -vv."))
        finally:
            self.over.set()


class Examination:
    """The checks of one run. `hung` names those whose time was over."""

    def __init__(
        self, checks: Sequence[Check], *, seconds: float, steady: Callable[[], float]
    ) -> None:
        self._checks, self._seconds, self._steady = checks, seconds, steady
        self.hung: list[str] = []

    def findings(self) -> Iterator[Finding]:
        """Carry all checks out at once, and yield what they find in their order."""
        running = [_Running(check) for check in self._checks]
        for one in running:
            threading.Thread(target=one.run, name=one.check.item, daemon=True).start()
        until = self._steady() + self._seconds
        for one in running:
            done = one.over.wait(max(0.0, until - self._steady()))
            yield from list(one.found)
            if not done:
                self.hung.append(one.check.item)
                yield Finding(
                    one.check.item,
                    "unknown",
                    f"it did not answer within {self._seconds:g} s",
                    "Run it again, with --timeout for more; look whether disk and network answer.",
                )


class Opened:
    """The repository, for the checks that need it: one opens it, the others wait."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._repository: Repository | None = None

    def give(self, repository: Repository | None) -> None:
        """It is open; None when it cannot be opened."""
        self._repository = repository
        self._ready.set()

    def get(self) -> Repository | None:
        """Wait for it."""
        self._ready.wait()
        return self._repository


# -- storage -----------------------------------------------------------------------------------


def look_at_room(storage: Storage) -> Iterator[Finding]:
    """Free space where the repository rests."""
    free, total = storage.free_space(), storage.total_space()
    yield rules.room("repository room", free, total, place="the store: ")


def look_at_storage(storage: Storage, opened: Opened, seams: Seams) -> Iterator[Finding]:
    """Writes, reads, lists, deletes; its clock; what it can do, against what `init` found."""
    deletes = True
    try:
        apart = clock_difference(storage, seams)
    except StorageDenied:
        # A writer need not delete; whether it may write at all is another matter.
        storage.put(f"probe/{seams.random(8).hex()}/written", b"")
        apart, deletes = None, False
    can = "writes, reads, lists, deletes" if deletes else "writes, reads, lists; may not delete"
    found = rules.clock("repository storage", apart, "the store")
    yield found if found.verdict != "ok" else Finding(found.item, "ok", f"{can}; {found.what}")
    repository = opened.get()
    if repository is None:
        return
    recorded = repository.identity.capabilities
    now = recorded
    if deletes:
        from strongroom.storage.probe import probe  # noqa: PLC0415

        now = probe(storage, token=seams.random(8).hex())
    yield rules.capabilities(_words(now), _words(recorded), probed=deletes)


def _words(found: Capabilities) -> Mapping[str, bool]:
    return {
        "put_if_absent": found.put_if_absent,
        "read_after_write": found.read_after_write,
        "list_sorted": found.list_sorted,
    }


# -- keys --------------------------------------------------------------------------------------


def holders_of(slots: Iterable[SlotInfo]) -> list[Holder]:
    """Key slots, as the rules see them."""
    return [
        Holder(
            one.label,
            one.kind,
            one.role,
            None if one.damaged else datetime.fromisoformat(one.created),
            one.damaged,
        )
        for one in slots
    ]


def look_at_keys(
    slots: Sequence[SlotInfo], *, limit: timedelta | None, now: datetime
) -> Iterator[Finding]:
    """Who opens the repository, and how old the keys are; `limit` is how old they may become."""
    holders = holders_of(slots)
    yield rules.holders(holders)
    yield rules.key_ages(holders, now=now, limit=limit or rules.KEY_AGE)


# -- what happened -----------------------------------------------------------------------------


def look_at_log(log: AuditLog, journal: Journal) -> Iterator[Finding]:
    """Whether the audit log is whole."""
    report = log.verify(every=False)
    faults = [f"{one.object}: {one.reason}" for one in report.faults]
    faults += journal.verify(report)
    yield rules.audit(report.size, faults, [fault.what for fault in report.unread.values()])


def look_at_kit(slots: Sequence[SlotInfo], journal: Journal, *, now: datetime) -> Iterator[Finding]:
    """When the recovery kit was tried last."""
    tried = [
        run.ended
        for run in journal.runs(type="key", refresh=False)
        if run.detail.get("act") == KIT_ACT and run.outcome == "done"
    ]
    found = rules.kit(holders_of(slots), max(tried, default=None), now=now)
    if found is not None:
        yield found


def look_at_channels(
    names: Sequence[str], pings: Sequence[str], journal: Journal, *, now: datetime
) -> Iterator[Finding]:
    """Who is told, and when each last took a test."""
    tried: dict[str, datetime] = {}
    for run in journal.runs(type="notify", refresh=False):
        for name in _taken(run):
            tried[name] = max(run.ended, tried.get(name, run.ended))
    yield rules.channels(names, pings, tried, now=now)


def _taken(run: Run) -> list[str]:
    found = run.detail.get("taken", [])
    return [str(name) for name in found] if isinstance(found, list) else []


def look_at_schedule(
    verdicts: Sequence[Verdict],
    last: Mapping[str, tuple[datetime | None, str]],
    without: Mapping[str, timedelta | None],
    journal: Journal,
    *,
    now: datetime,
) -> Iterator[Finding]:
    """Whether something runs the jobs. `last`: when each ran last, and on which host; `without` are the
    sources that have no schedule, with what is promised of them."""
    jobs = [
        JobState(one.job.name, one.state.value, one.due, *last.get(one.job.name, (None, "")))
        for one in verdicts
    ]
    unscheduled = []
    for name, rpo in without.items():
        runs = journal.runs(name, "backup", refresh=False)
        good = [run.ended for run in runs if run.outcome in ("done", "incomplete")]
        unscheduled.append(Unscheduled(name, max(good, default=None), rpo))
    yield rules.schedule(jobs, unscheduled, now=now)


# -- this machine ------------------------------------------------------------------------------


def look_at_folder(item: str, path: str) -> Finding:
    """Whether a folder of ours can be written, or made; it is not made here."""
    there = path
    while not os.path.lexists(there) and there != os.path.dirname(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        return Finding(
            item,
            "failed",
            f"{path} cannot be made: {there} is no folder",
            "Move it, or name another.",
        )
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            item,
            "failed",
            f"{path} cannot be written by this account",
            f"Give it the right (`chown`, `chmod u+rwx {there}`), or name another folder.",
        )
    facts = os.statvfs(there)
    free = facts.f_bavail * facts.f_frsize
    made = "can be written" if there == path else "can be made"
    if free < rules.ROOM_FAIL:
        return rules.room(item, free, None, place=f"{path} ")
    return rules.ok(item, f"{path} {made}, {show_size(free)} free")


def look_at_mounting() -> Iterator[Finding]:
    """As `open` looks before it begins."""
    from strongroom.postgres.open.server import NoFuse, require_device  # noqa: PLC0415

    reason = None
    try:
        require_device()
    except NoFuse as fault:
        reason = fault.reason
    yield rules.mounting(reason)


__all__ = ["Check", "Examination", "Finding", "Opened"]
