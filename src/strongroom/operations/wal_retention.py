"""Which log is needed no more: what ends before the start of the oldest backup that is there.

A backup that was expired and not swept yet is there: it may be brought back. Where it cannot be
told what every backup needs, nothing goes. What a run that has not ended will need, it says only when it
commits: until then log stays that was stored since it began, or a day before (a standby begins at its
last restartpoint).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from strongroom.errors import KeyRefused, StrongroomError
from strongroom.format.wal import lsn_text, parse_lsn
from strongroom.postgres.physical.facts import PhysicalFacts, is_physical
from strongroom.repository.catalogue import DamagedRecord, Snapshot
from strongroom.repository.pruning import POLITE
from strongroom.repository.repository import Repository
from strongroom.repository.wal import WalStore
from strongroom.storage.base import Storage

_BEFORE = 86400.0  # the longest checkpoint_timeout there is


@dataclass(slots=True)
class WalPruned:
    """Files and bytes that went, or would; from where the log of each system is kept; why nothing
    was touched, if so."""

    files: int = 0
    size: int = 0
    kept_from: dict[str, str] = field(default_factory=dict)
    skipped: str = ""

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(slots=True)
class _Need:
    start: int
    segment_size: int


def prune_wal(repository: Repository, *, dry_run: bool) -> WalPruned:
    """Delete the log that no backup needs; run behind the sweep of expired backups."""
    done = WalPruned()
    store = WalStore(repository)
    systems = store.systems()
    if not systems:
        return done
    try:
        needs = _needs(repository)
    except StrongroomError as fault:
        done.skipped = fault.what
        return done
    began = _began(repository.storage)
    for system in systems:
        need = needs.get(system)
        if need is None:  # nothing can be recovered with it yet, and nobody knows from where
            continue
        done.kept_from[str(system)] = lsn_text(need.start)
        files = [
            entry
            for entry in store.older(system, need.start, need.segment_size)
            if began is None or (entry.modified is not None and entry.modified < began - _BEFORE)
        ]
        done.files += len(files)
        done.size += sum(entry.size for entry in files)
        if files and not dry_run:
            store.forget(system, files)
    return done


def _began(storage: Storage) -> float | None:
    """When the oldest run that may still commit began, by the store's clock; 0.0 where the store does
    not tell; None without one. Who has not ended for so long that a prune gives him up does not count,
    beside the newest mark: no client's clock is asked.
    """
    begun: dict[str, float] = {}
    ended: set[str] = set()
    newest = 0.0
    for entry in storage.list("sessions/"):
        session, _, step = entry.name.rpartition(".")
        newest = max(newest, entry.modified or 0.0)
        if step == "0":
            begun[session] = entry.modified or 0.0
        else:
            ended.add(session)
    horizon = newest - POLITE.total_seconds()
    young = [at for session, at in begun.items() if session not in ended and not 0 < at < horizon]
    return min(young, default=None)


def _needs(repository: Repository) -> dict[int, _Need]:
    """From where each system's log is needed, by the backups that are there."""
    needs: dict[int, _Need] = {}
    for snapshot in repository.catalogue.snapshots():
        if isinstance(snapshot, DamagedRecord):
            raise StrongroomError(f"{snapshot.name} does not open: what it needs is not known.")
        found = _told(snapshot) if snapshot.log else _read(repository, snapshot)
        if found is not None:
            system, start, size = found
            need = needs.setdefault(system, _Need(start, size))
            need.start = min(need.start, start)
    return needs


def _told(snapshot: Snapshot) -> tuple[int, int, int]:
    log = snapshot.log
    try:
        return int(log["system_id"]), parse_lsn(log["start_lsn"]), int(log["wal_segment_size"])
    except (KeyError, ValueError):
        raise StrongroomError(f"{snapshot.name} says of no log that can be understood.") from None


def _read(repository: Repository, snapshot: Snapshot) -> tuple[int, int, int] | None:
    """From the facts of a backup that was made before its record told."""
    if snapshot.kind != "postgres":
        return None
    if not repository.keys.current.reads:
        raise KeyRefused(
            f"Which log {snapshot.name} needs is read with a reader's key only.",
            do="Prune with a reader's key, until backups of before this version are gone.",
        )
    body = repository.open_snapshot(snapshot).facts
    if not is_physical(body):
        return None
    try:
        facts = PhysicalFacts.from_json(body)
    except ValueError as fault:
        raise StrongroomError(f"{snapshot.name} cannot be understood: {fault}.") from None
    return facts.system_id, facts.start_lsn, facts.wal_segment_size


__all__ = ["WalPruned", "prune_wal"]
