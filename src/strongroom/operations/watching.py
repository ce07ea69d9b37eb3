"""What is known of everything, as `rules.anomalies` wants it: from the journal, the leases, the log.

Rule: nothing is decided here and nothing is told. What the journal lacks (a backup that was made
before there was a log, or whose leaf rests on a host that is gone) is taken from commit records.
Where a thing cannot be known, for instance the free space of a bucket, nothing is claimed of it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from strongroom.config.model import Configuration, PostgresTable, SourceTable
from strongroom.errors import Damaged, ObjectMissing, StrongroomError, Unreachable
from strongroom.format.run import Run
from strongroom.format.wal import SegmentName, lsn_text, parse_lsn
from strongroom.observe.journal import Journal
from strongroom.operations.retaining import policy_of
from strongroom.operations.scheduling import jobs_of, judge
from strongroom.operations.wal_status import holes
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.fates import Fates
from strongroom.repository.keyring import list_slots
from strongroom.repository.leases import Leases
from strongroom.repository.repository import Repository
from strongroom.repository.wal import Timeline, WalStore
from strongroom.rules.anomalies import SKEW, Failed, Key, Log, Past, SourceState, State
from strongroom.rules.drill import Drilled
from strongroom.rules.retention import Backup, freezes
from strongroom.rules.schedule import Held, Job, Verdict
from strongroom.rules.times import show_time

USED = 20
"""So many of the newest backups of a source are looked at, besides what the journal tells."""
_TYPES = ("backup", "drill", "check", "config", "alert", "schedule", "expire")
_OUTCOMES = ("done", "incomplete", "failed", "refused", "interrupted", "missed")


@dataclass(frozen=True, slots=True)
class Watched:
    """The state, and beside it where each job stands, the times of it that nobody ran, and the runs
    that tell."""

    state: State
    verdicts: Sequence[Verdict] = ()
    passed: Mapping[str, tuple[datetime, ...]] = field(default_factory=dict)
    known: Mapping[str, Sequence[Run]] = field(default_factory=dict)


def state_of(
    repository: Repository,
    journal: Journal,
    configuration: Configuration,
    *,
    now: datetime,
    apart: float | None = None,
) -> State:
    """What is known of every configured source, of the repository and its keys, at `now`.

    Writers' keys are enough. `apart`: seconds by which the store's clock is ahead of ours, where it
    was asked (`clocks.clock_difference`, which puts an object): then it is the one that counts.
    """
    return look(repository, journal, configuration, now=now, apart=apart).state


def look(
    repository: Repository,
    journal: Journal,
    configuration: Configuration,
    *,
    now: datetime,
    apart: float | None = None,
) -> Watched:
    """The state, and what the schedule says."""
    ours = now
    if apart is not None and abs(apart) > SKEW:
        now += timedelta(seconds=apart)
    known = known_runs(journal)
    jobs = jobs_of(configuration)
    leases = Leases(
        repository.catalogue,
        repository.seams,
        host=socket.gethostname(),
        limit=limit(configuration),
    )
    verdicts = judge(repository, jobs, leases, journal=journal, now=now) if jobs else []
    passed = {
        one.job.name: tuple(
            due for due in one.passed if due >= _configured_at(one.job, known["config"])
        )
        for one in verdicts
    }
    running = {one.job.name: one.since for one in verdicts if one.since is not None}
    sources = [
        _source(
            repository,
            configuration,
            name,
            table,
            known,
            now=now,
            missed=passed.get(f"backup.{name}", ()),
            running_since=running.get(f"backup.{name}"),
            ours=ours,
        )
        for name, table in configuration.source.items()
    ]
    free, total = repository.storage.free_space(), repository.storage.total_space()
    state = State(
        sources,
        [_past(run) for run in _checks(in_order(known["check"], now=now))],
        free,
        total,
        _keys(repository),
        configuration.repository.key_age,
        repository.storage.url,
        apart,
        jobs=_failed(verdicts, known),
    )
    return Watched(state, verdicts, passed, known)


def limit(configuration: Configuration) -> timedelta:
    """Without a sign of life for so long, who holds a lease counts as dead."""
    return timedelta(seconds=configuration.schedule.lease.approximate_seconds)


# -- what was done -----------------------------------------------------------------------------


def known_runs(journal: Journal) -> dict[str, list[Run]]:
    """By type, in the order of the log; with what ended on this machine and is not in it yet."""
    found: dict[str, list[Run]] = {}
    for at, type in enumerate(_TYPES):
        found[type] = journal.runs(type=type, refresh=at == 0)
    there = {(run.type, run.run) for runs in found.values() for run in runs}
    for run in journal.pending():
        if run.type in found and (run.type, run.run) not in there:
            found[run.type].append(run)
    return found


def in_order(runs: Iterable[Run], *, now: datetime) -> list[Run]:
    """Runs by their end. One that says it ended in the time to come, because a clock was ahead, is
    put where the log has it: it never stands before what is done from now on."""
    placed: list[Run] = []
    last: datetime | None = None
    for run in runs:
        if run.ended > now:
            ended = now if last is None else last
            run = replace(run, started=ended - (run.ended - run.started), ended=ended)  # noqa: PLW2901
        placed.append(run)
        last = run.ended
    return sorted(placed, key=lambda run: run.ended)


def _past(run: Run) -> Past:
    outcome = next((word for word in _OUTCOMES if word == run.outcome), "failed")
    return Past(run.started, run.ended, outcome, run.size, run.what, run.run)  # type: ignore[arg-type]


def _checks(runs: Sequence[Run]) -> list[Run]:
    """Without those that came to no verdict; damage is not over before a check as deep read all."""
    kept: list[Run] = []
    depth = 0
    for run in runs:
        level = run.detail.get("level")
        deep = level if isinstance(level, int) else 0
        if run.outcome == "done":
            partly = deep < depth or run.detail.get("packs_left") not in (None, 0)
            if not (partly and kept and kept[-1].outcome != "done"):
                kept.append(run)
        elif run.code == Damaged.code:
            depth = deep
            kept.append(run)
    return kept


def _drill(run: Run) -> Past:
    drill = Drilled.from_run(run)
    past = _past(run)
    return past if drill.green or past.outcome != "done" else replace(past, outcome="incomplete")


def _failed(verdicts: Iterable[Verdict], known: Mapping[str, Sequence[Run]]) -> list[Failed]:
    """Jobs whose last time ended badly without a leaf that tells of it, as of a wrong configuration."""
    return [
        Failed(one.job.name, one.last.due, one.last.exit)
        for one in verdicts
        if one.last is not None
        and one.last.outcome == "failed"
        and not any(_is_of(run, one.job, one.last) for run in known.get(one.job.type, ()))
    ]


def _is_of(run: Run, job: Job, held: Held) -> bool:
    """Whether a leaf tells of a time of a job: it says so, or it was run for the job's source then."""
    cause = run.detail.get("job"), run.detail.get("due")
    then = run.source == job.source and run.started >= (held.taken or held.due)
    return then or cause == (job.name, show_time(held.due))


# -- a source ----------------------------------------------------------------------------------


def _source(
    repository: Repository,
    configuration: Configuration,
    name: str,
    table: SourceTable,
    known: Mapping[str, Sequence[Run]],
    *,
    now: datetime,
    missed: tuple[datetime, ...],
    running_since: datetime | None,
    ours: datetime,
) -> SourceState:
    runs = [run for run in known["backup"] if run.source == name]
    listed = _listed(repository, name)
    told = {run.snapshot for run in runs}
    records = _Records(repository, name)
    runs += [
        _of_record(one)
        for each in listed[-USED:]
        if each.id not in told and (one := records.open(each)) is not None
    ]
    backups = in_order(runs, now=now)
    drills = in_order((run for run in known["drill"] if run.source == name), now=now)
    physical = isinstance(table, PostgresTable) and table.method == "physical"
    frozen: tuple[str, ...] = ()
    if not policy_of(configuration, table).says_nothing:
        of = {run.snapshot: run for run in runs}
        frozen = _frozen(repository, name, listed, of, ours=ours, now=now)
        frozen = frozen or _refused(known["expire"], name)
    return SourceState(
        name,
        [_past(run) for run in backups],
        [_drill(run) for run in drills],
        table.promise.rpo,
        table.promise.drill,
        _known_since(repository, name, [*runs, *drills], known["config"]),
        tuple(sorted(missed)),
        running_since,
        _log(repository, name, records, listed, backups) if physical else None,
        _bad_pages(backups),
        frozen,
    )


@dataclass(frozen=True, slots=True)
class _Listed:
    """A commit record as its name and its listing tell."""

    name: str
    id: str
    time: datetime
    stored: datetime | None


def _listed(repository: Repository, source: str) -> list[_Listed]:
    """The backups of a source, oldest first; nothing is opened."""
    found = []
    for entry in repository.storage.list(f"snapshots/{source}/"):
        text, _, id = entry.name.rpartition("/")[2].partition("-")
        with suppress(ValueError):
            time = datetime.strptime(text[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
            stored = entry.modified
            found.append(
                _Listed(
                    entry.name,
                    id,
                    time,
                    None if stored is None else datetime.fromtimestamp(stored, UTC),
                )
            )
    return sorted(found, key=lambda one: one.name)


class _Records:
    """Commit records of a source, each opened once."""

    def __init__(self, repository: Repository, source: str) -> None:
        self._catalogue = repository.catalogue
        self._found: dict[str, Snapshot | None] = {}

    def open(self, listed: _Listed) -> Snapshot | None:
        """None for one that does not open, or was taken away meanwhile."""
        if listed.name not in self._found:
            self._found[listed.name] = None
            with suppress(Damaged, ObjectMissing):
                self._found[listed.name] = self._catalogue.open_snapshot(listed.name)
        return self._found[listed.name]


def _of_record(one: Snapshot) -> Run:
    return Run(
        "backup",
        "",
        one.started,
        one.time,
        one.source,
        outcome="incomplete" if one.problems else "done",
        snapshot=one.id,
        size=one.size,
        problems=one.problems,
    )


def _frozen(
    repository: Repository,
    source: str,
    listed: Sequence[_Listed],
    runs: Mapping[str, Run],
    *,
    ours: datetime,
    now: datetime,
) -> tuple[str, ...]:
    """As `expire` would judge it; `now` is the store's time where it was asked and is another."""
    decided = {
        entry.name.rpartition("/")[0].rpartition("/")[2]
        for entry in repository.storage.list(f"fates/{source}/")
    }
    fates = Fates(repository.catalogue)
    backups = []
    for at, one in enumerate(reversed(listed)):
        run = runs.get(one.id)
        looked_at = at < USED
        if looked_at and one.name.rpartition("/")[2] in decided and fates.of(one.name).hidden:
            continue
        if run is None and looked_at:
            continue  # its record does not open
        backups.append(Backup(one.id, one.time, 0 if run is None else run.size, one.stored))
    ordered = sorted(backups, key=lambda each: (each.born, each.id))
    return freezes(ordered, now=ours, store_now=now)


def _refused(expired: Sequence[Run], source: str) -> tuple[str, ...]:
    """Why the newest `expire` deleted nothing of it: it has asked the store's clock too."""
    for run in reversed(expired):
        if run.source in ("", source):
            frozen = run.detail.get("frozen")
            found = frozen.get(source) if isinstance(frozen, Mapping) else None
            return tuple(map(str, found)) if isinstance(found, list) else ()
    return ()


def _bad_pages(backups: Sequence[Run]) -> int:
    """What the newest backup found on the server's disk."""
    for run in reversed(backups):
        if run.outcome in ("done", "incomplete"):
            found = run.detail.get("bad_pages", 0)
            return found if type(found) is int else 0
    return 0


def _known_since(
    repository: Repository, name: str, runs: Iterable[Run], config: Sequence[Run]
) -> datetime:
    """Since when a source is ours: its first run, or when it was written into the configuration."""
    times = [run.started for run in runs]
    times += [run.ended for run in config if _touches(run, f"source.{name}.")][:1]
    return max(min(times), repository.identity.created) if times else repository.identity.created


def _configured_at(job: Job, config: Sequence[Run]) -> datetime:
    """When the schedule of a job became what it is, as far as the log tells."""
    if job.name.startswith("backup."):
        keys: tuple[str, ...] = (f"source.{job.source}.schedule", f"source.{job.source}.type")
    elif job.name.startswith("drill."):
        keys = ("schedule.drill", f"source.{job.source}.promise.drill")
    else:
        keys = (f"schedule.{job.name}",)
    found = [run.ended for run in config[:1]]
    found += [run.ended for run in config if any(_touches(run, key) for key in (*keys, "timezone"))]
    return max(found, default=datetime.min.replace(tzinfo=UTC))


def _touches(run: Run, prefix: str) -> bool:
    changed = run.detail.get("changed")
    return isinstance(changed, list) and any(str(key).startswith(prefix) for key in changed)


# -- its log -----------------------------------------------------------------------------------


def _log(
    repository: Repository,
    source: str,
    records: _Records,
    listed: Sequence[_Listed],
    backups: Sequence[Run],
) -> Log | None:
    """How far the log of a cluster is archived, and what is missing from the newest base on: older
    holes hurt older moments, and no base backup mends them. None where no log was ever archived."""
    store = WalStore(repository)
    newest = next((one for each in reversed(listed) if (one := records.open(each))), None)
    systems = store.systems(source)
    system, start = (systems[-1] if systems else 0), 0
    if newest is not None and newest.log:
        own = int(newest.log["system_id"])
        system = system or own
        start = parse_lsn(newest.log["start_lsn"]) if own == system else 0
    if not system:
        return None
    listing = store.listing(system)
    if not listing.timelines:
        return None
    times = [run.ended for run in backups[-1:] if run.outcome in ("done", "incomplete")]
    missing: list[str] = []
    for timeline in listing.timelines.values():
        times += _times(timeline)
        names = [
            SegmentName.parse(file.name, file.facts.size if file.facts else file.size)
            for file in timeline.segments
        ]
        missing += [
            f"{lsn_text(hole.start)} to {lsn_text(hole.end)} of timeline {timeline.timeline}"
            + (f": {hole.reason}" if hole.reason else "")
            for hole in holes(names, timeline.gaps)
            if hole.end > start
        ]
    hurt = {name: fault for name, fault in listing.unread.items() if not _out_of_reach(fault)}
    missing += [fault.what for _, fault in sorted(hurt.items())]
    return Log(max(times, default=None), tuple(missing))


def _times(timeline: Timeline) -> list[datetime]:
    """When what is here of a timeline was archived. An idle server has no commits, and its log is
    as new as its last segment."""
    found = [file.archived for file in timeline.segments]
    return [*found, *(one.archived for one in timeline.begun)]


def _out_of_reach(fault: StrongroomError) -> bool:
    return isinstance(fault, Unreachable)


def _keys(repository: Repository) -> list[Key]:
    """What opens the newest epoch."""
    slots = [slot for slot in list_slots(repository.storage) if not slot.damaged]
    newest = max((slot.epoch for slot in slots), default=0)
    found = []
    for slot in slots:
        if slot.epoch == newest:
            with suppress(ValueError):
                made = datetime.fromisoformat(slot.created)
                found.append(Key(slot.label, made if made.tzinfo else made.replace(tzinfo=UTC)))
    return found


__all__ = ["Watched", "in_order", "known_runs", "limit", "look", "state_of"]
