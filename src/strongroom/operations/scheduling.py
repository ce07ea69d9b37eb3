"""The jobs of a configuration, where each stands, and running one under a lease."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Protocol
from zoneinfo import ZoneInfo

from strongroom.config.model import Configuration
from strongroom.errors import Damaged, ObjectMissing, StrongroomError
from strongroom.repository.leases import Lease, Leases, Told
from strongroom.repository.repository import Repository
from strongroom.rules.cron import Cron
from strongroom.rules.schedule import Held, History, Job, PastRun, Verdict, plan

BACKUP = "backup."
_LOOKED_AT = 20  # commit records of a source that are opened to find the last good one
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
        jobs.append(job("expire", table.expire, ["expire"], ["prune"], type="prune"))
    jobs += [job("job." + name, each.cron, each.argv) for name, each in table.job.items()]
    return jobs


@dataclass(frozen=True, slots=True)
class Commit:
    """A committed backup as a run."""

    started: datetime
    outcome: str


class Commits:
    """What the commit records tell of the past: backups that left something, and no others."""

    def __init__(self, repository: Repository) -> None:
        self._catalogue = repository.catalogue

    def runs(
        self,
        source: str | None = None,
        type: str | None = None,
        since: datetime | None = None,
    ) -> list[PastRun]:
        """The newest backup of a source; nothing is known of other types."""
        if source is None or type != "backup":
            return []
        names = sorted(entry.name for entry in self._catalogue.storage.list(f"snapshots/{source}/"))
        for name in reversed(names[-_LOOKED_AT:]):
            with suppress(Damaged, ObjectMissing):
                one = self._catalogue.open_snapshot(name)
                if one is not None and (since is None or one.started >= since):
                    return [Commit(one.started, "incomplete" if one.problems else "done")]
        return []


def judge(
    repository: Repository,
    jobs: Iterable[Job],
    leases: Leases,
    *,
    history: History | None = None,
    now: datetime,
) -> list[Verdict]:
    """Where each job stands; those that are to run now come first."""
    jobs = list(jobs)
    past = Commits(repository) if history is None else history
    runs = {
        job.name: past.runs(source=job.source or None, type=job.type) for job in jobs if job.type
    }
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
    )


class Runner(Protocol):
    """Runs one command line of this program."""

    def __call__(
        self, argv: Sequence[str], verdict: Verdict, sign: Callable[[], bool], every: float, /
    ) -> int:
        """Run it and return its exit status. `sign` is to be called every so many seconds; it
        answers False when the run is to be stopped."""


def run_job(leases: Leases, verdict: Verdict, run: Runner, *, limit: timedelta) -> int:
    """Take the lease of a job that is to run, run its steps until one fails, end the lease.

    Busy when another host was first; Refused when our clock is ahead.
    """
    lease = leases.take(verdict.job.name, verdict.due, verdict.number)
    signs = _Signs(leases, lease)
    status, outcome = 130, "interrupted"
    try:
        for step in verdict.job.steps:
            status = run(step, verdict, signs.give, limit.total_seconds() / 4)
            if status not in (0, 10):
                break
        outcome = outcome_of(status)
    finally:
        if not signs.lost:
            with suppress(
                StrongroomError
            ):  # the job is what it is; without an end the lease runs out
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
