"""The jobs of a configuration, where each stands, and running one under a lease."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Protocol
from zoneinfo import ZoneInfo

from strongroom.config.model import Configuration
from strongroom.errors import Damaged, ObjectMissing, Refused, StrongroomError
from strongroom.observe.journal import Journal
from strongroom.repository.leases import Lease, Leases, Told
from strongroom.repository.repository import Repository
from strongroom.rules.cron import Cron
from strongroom.rules.schedule import Held, Job, PastRun, Verdict, plan, worst

BACKUP, DRILL = "backup.", "drill."
_LOOKED_AT = 20  # commit records of a source that are opened to find the last good one
_GOES_ON = (0, 10, Refused.exit_status)  # what one step refuses is no fault of the next
_OUTCOMES = {0: "done", 10: "done", 3: "incomplete", 4: "refused"}


def jobs_of(configuration: Configuration) -> list[Job]:
    """Every job that is configured; those of a zone's hours are of `timezone`, else UTC."""
    table = configuration.schedule
    zone: tzinfo = UTC if configuration.timezone is None else ZoneInfo(configuration.timezone)

    def job(name: str, cron: str, *steps: Sequence[str], type: str = "", source: str = "") -> Job:
        lines = tuple(tuple(step) for step in steps)
        read = Cron.parse(cron)
        return Job(name, lines, read, zone, type=type, source=source, catch_up=table.catch_up)

    jobs = [
        job(BACKUP + name, each.schedule, ["backup", name], type="backup", source=name)
        for name, each in configuration.source.items()
        if each.schedule is not None
    ]
    if table.check is not None:
        budget = f"{table.check_budget.approximate_seconds}s"
        step = ["check", "--read-data", "--budget", budget]
        jobs.append(job("check", table.check, step, type="check"))
    if table.expire is not None:
        # In this order: what goes this time can be brought back until the next.
        jobs.append(job("expire", table.expire, ["prune"], ["expire"], type="expire"))
    if table.drill is not None:
        jobs += [
            job(
                DRILL + name,
                table.drill,
                ["drill", "run", name, "--at", "random"],
                type="drill",
                source=name,
            )
            for name, each in configuration.source.items()
            if each.promise.drill is not None
        ]
    jobs += [job("job." + name, each.cron, each.argv) for name, each in table.job.items()]
    return jobs


@dataclass(frozen=True, slots=True)
class Commit:
    """A committed backup as a run."""

    started: datetime
    outcome: str


class History:
    """What was done, as the journal tells; and of backups the newest commit record.

    The leaf of a backup may rest on a host that is gone, or the backup be older than the log: it is
    there all the same, and is not to be made again.
    """

    def __init__(self, repository: Repository, journal: Journal | None) -> None:
        self._catalogue, self._journal = repository.catalogue, journal
        if journal is not None:
            journal.refresh()

    def runs(self, source: str | None, type: str) -> Sequence[PastRun]:
        """The runs of a source, of a type, as far as they serve a schedule."""
        told = [] if self._journal is None else self._journal.runs(source, type, refresh=False)
        if type == "backup" and source is not None:
            return [*told, *self._newest(source)]
        # What somebody runs by hand may be less: a check of names alone, a prune that only looks.
        return [run for run in told if run.trigger != "manual"]

    def _newest(self, source: str) -> list[PastRun]:
        names = sorted(entry.name for entry in self._catalogue.storage.list(f"snapshots/{source}/"))
        for name in reversed(names[-_LOOKED_AT:]):
            with suppress(Damaged, ObjectMissing):
                one = self._catalogue.open_snapshot(name)
                if one is not None:
                    return [Commit(one.started, "incomplete" if one.problems else "done")]
        return []


def judge(
    repository: Repository,
    jobs: Iterable[Job],
    leases: Leases,
    *,
    journal: Journal | None = None,
    now: datetime,
) -> list[Verdict]:
    """Where each job stands; those that are to run now come first."""
    jobs = list(jobs)
    past = History(repository, journal)
    runs = {job.name: past.runs(job.source or None, job.type) for job in jobs if job.type}
    held = {job.name: [_held(one) for one in leases.of(job.name)] for job in jobs}
    return plan(jobs, now=now, began=repository.identity.created, runs=runs, held=held)


def _held(told: Told) -> Held:
    return Held(
        told.due,
        number=told.number,
        tries=told.number - told.idle,
        host=told.host,
        alive=told.alive,
        outcome=told.outcome,
        exit=told.exit,
        ended=told.ended,
        taken=told.taken,
    )


class Runner(Protocol):
    """Runs one command line of this program."""

    def __call__(
        self, argv: Sequence[str], verdict: Verdict, sign: Callable[[], bool], every: float, /
    ) -> int:
        """Run it and return its exit status. `sign` is to be called every so many seconds; it
        answers False when the run is to be stopped."""


def run_job(leases: Leases, verdict: Verdict, run: Runner, *, limit: timedelta) -> int:
    """Take the lease of a job that is to run, run its steps until one fails, end the lease;
    the status is the worst of theirs.

    Busy when another host was first; Refused when our clock is ahead.
    """
    lease = leases.take(verdict.job.name, verdict.due, verdict.number)
    signs = _Signs(leases, lease)
    status, outcome = 130, "interrupted"
    statuses = []
    try:
        for step in verdict.job.steps:
            statuses.append(run(step, verdict, signs.give, limit.total_seconds() / 4))
            if statuses[-1] not in _GOES_ON:
                break
        status = worst(statuses)
        outcome = outcome_of(status)
    finally:
        if not signs.lost:
            # The job is what it is; without an end its lease runs out.
            with suppress(StrongroomError):
                leases.end(lease, outcome=outcome, exit=status)
    return status


def outcome_of(status: int) -> str:
    """The word for an exit status."""
    if status in (130, 143) or status < 0:
        return "interrupted"
    return _OUTCOMES.get(status, "failed")


class _Signs:
    """Signs of life of one lease; a store that does not answer is no reason to stop."""

    def __init__(self, leases: Leases, lease: Lease) -> None:
        self._leases, self._lease = leases, lease
        self._count, self.lost = 0, False

    def give(self) -> bool:
        self._count += 1
        try:
            self.lost = not self._leases.sign(self._lease, self._count)
        except StrongroomError:  # nobody took it from us, as far as is known
            return True
        return not self.lost
