"""Keep, release, expire, revive: what is decided of backups. Nothing here deletes anything."""

from __future__ import annotations

from datetime import datetime

from strongroom.errors import NotFound
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.fates import Fate, Fates
from strongroom.repository.repository import Repository


def hold(
    repository: Repository, snapshot: Snapshot, *, until: datetime | None, why: str, now: datetime
) -> Fate:
    """Keep a backup until a moment, or for good; one that was expired is a backup again."""
    fates = Fates(repository.catalogue)
    return _still(
        repository, fates.decide(_open(fates, snapshot.name), "hold", now=now, until=until, why=why)
    )


def release(repository: Repository, snapshot: Snapshot, *, why: str, now: datetime) -> Fate:
    """End a hold; from then on the policy alone decides."""
    fates = Fates(repository.catalogue)
    return fates.decide(_open(fates, snapshot.name), "release", now=now, why=why)


def revive(repository: Repository, snapshot: str, *, now: datetime, why: str = "") -> Fate:
    """Make what was expired a backup again; NotFound when a prune has begun to sweep it."""
    fates = Fates(repository.catalogue)
    fate = _open(fates, snapshot)
    if not fate.expired:
        return fate
    return _still(repository, fates.decide(fate, "revive", now=now, why=why))


def _open(fates: Fates, snapshot: str) -> Fate:
    fate = fates.of(snapshot)
    if fate.swept:
        raise _too_late(snapshot)
    return fate


def _still(repository: Repository, fate: Fate) -> Fate:
    """The same, once it is sure that no prune took the backup, log and all, meanwhile."""
    if not any(entry.name == fate.snapshot for entry in repository.storage.list(fate.snapshot)):
        raise _too_late(fate.snapshot)
    return fate


def _too_late(snapshot: str) -> NotFound:
    return NotFound(
        f"A prune has swept {snapshot}: it cannot be brought back.",
        means="What it alone relied on is given back; other backups are as they were.",
    )


__all__ = ["hold", "release", "revive"]
