"""Keep, release, expire, revive: what is decided of backups. Nothing here deletes anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from strongroom.config.model import Configuration, SourceTable
from strongroom.errors import Busy, NotFound
from strongroom.observe.journal import Journal
from strongroom.operations.browse import Listing, list_snapshots
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.fates import Fate, Fates
from strongroom.repository.repository import Repository
from strongroom.rules.proof import NOTHING, Proof, proved
from strongroom.rules.retention import Backup, Hold, Plan, Policy, plan_retention


@dataclass(frozen=True, slots=True)
class Judged:
    """A source's plan, and the snapshots and fates it is about, by id."""

    source: str
    plan: Plan
    snapshots: Mapping[str, Snapshot]
    fates: Mapping[str, Fate]


def policy_of(configuration: Configuration, table: SourceTable) -> Policy:
    """The retention of a source as it is configured."""
    rules, zone = table.retention, configuration.timezone
    return Policy(
        keep=table.promise.keep,
        last=rules.last,
        hourly=rules.hourly,
        daily=rules.daily,
        weekly=rules.weekly,
        monthly=rules.monthly,
        yearly=rules.yearly,
        pitr=rules.pitr,
        minimum=rules.minimum,
        zone=UTC if zone is None else ZoneInfo(zone),
    )


def judge(
    repository: Repository,
    source: str,
    policy: Policy,
    *,
    physical: bool,
    proof: Proof = NOTHING,
    now: datetime,
    store_now: datetime | None,
) -> Judged:
    """Plan the retention of one source. `proof` is what checks and drills said of its backups.

    `physical`: log can be replayed on its backups, where none of their records tells. Where they do,
    they are right: the source may have been configured otherwise once.

    The start of the next base's recovery is not asked of the facts, which only a reader's key opens:
    the time of the commit, which is a little later, keeps no less.
    """
    listing = list_snapshots(repository, source)
    stored = {
        entry.name: datetime.fromtimestamp(entry.modified, UTC)
        for entry in repository.storage.list(f"snapshots/{source}/")
        if entry.modified is not None
    }
    snapshots = {one.id: one for one in listing.snapshots}
    told = any(one.log for one in listing.snapshots)  # else all are of before records told it
    backups = [
        Backup(
            one.id,
            one.time,
            one.size,
            stored.get(one.name),
            good=one.id not in proof.damaged,
            verified=one.id in proof.verified,
            base=bool(one.log) or (physical and one.kind == "postgres" and not told),
            stop=one.time,
        )
        for one in listing.snapshots
    ]
    fates = {one.id: _fate(listing, one) for one in listing.snapshots}
    holds = [
        Hold(name, None if fate.damaged else fate.held, fate.damaged or fate.why)
        for name, fate in fates.items()
        if fate.damaged or fate.for_good or fate.held is not None
    ]
    plan = plan_retention(backups, policy, now=now, holds=holds, store_now=store_now)
    return Judged(source, plan, snapshots, fates)


def proof_of(journal: Journal) -> Proof:
    """What the audit log tells of checks and drills, as it stands now. Raises why it cannot be read:
    nothing is to be deleted by those who do not know what is verified."""
    journal.refresh()
    return proved(journal.runs(type=("check", "drill"), refresh=False))


def expire(repository: Repository, judged: Judged, *, now: datetime) -> list[Snapshot]:
    """Decide that what may go goes; what somebody else decided of meanwhile stays for this time."""
    fates = Fates(repository.catalogue)
    gone = []
    for row in judged.plan.rows:
        if row.stays:
            continue
        try:
            why = "; ".join(row.reasons)
            fates.decide(judged.fates[row.backup.id], "expire", now=now, why=why)
        except Busy:
            continue
        gone.append(judged.snapshots[row.backup.id])
    return gone


def _fate(listing: Listing, snapshot: Snapshot) -> Fate:
    return listing.fates.get(snapshot.name, Fate(snapshot.name))


def hold(
    repository: Repository, snapshot: Snapshot, *, until: datetime | None, why: str, now: datetime
) -> Fate:
    """Keep a backup until a moment, or for good; one that was expired is a backup again."""
    fates = Fates(repository.catalogue)
    return _still(
        repository,
        fates.decide(
            _open(repository, fates, snapshot.name), "hold", now=now, until=until, why=why
        ),
    )


def release(repository: Repository, snapshot: Snapshot, *, why: str, now: datetime) -> Fate:
    """End a hold; from then on the policy alone decides."""
    fates = Fates(repository.catalogue)
    return fates.decide(_open(repository, fates, snapshot.name), "release", now=now, why=why)


def revive(repository: Repository, snapshot: str, *, now: datetime, why: str = "") -> Fate:
    """Make what was expired a backup again; NotFound when a prune has begun to sweep it."""
    fates = Fates(repository.catalogue)
    fate = _open(repository, fates, snapshot)
    if not fate.expired:  # or a prune took its log while we read it
        return _still(repository, fate)
    return _still(repository, fates.decide(fate, "revive", now=now, why=why))


def _open(repository: Repository, fates: Fates, snapshot: str) -> Fate:
    fate = fates.of(snapshot)
    if fate.swept:
        raise _too_late(snapshot)
    # Of a log that a prune is taking away, parts may be missing.
    return _still(repository, fate) if fate.damaged else fate


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


__all__ = [
    "Judged",
    "expire",
    "hold",
    "judge",
    "policy_of",
    "proof_of",
    "release",
    "revive",
]
