"""run-due, serve."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from strongroom import wiring
from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.measuring import measured, served
from strongroom.cli.names import show_text
from strongroom.cli.output import error_body
from strongroom.cli.records import show_moment
from strongroom.cli.telling import Teller
from strongroom.cli.watch import Watch
from strongroom.errors import (
    Busy,
    Damaged,
    Incomplete,
    KeyRefused,
    NotFound,
    Refused,
    StrongroomError,
    Unreachable,
    UsageError,
)
from strongroom.rules.schedule import Job, State, Verdict, worst
from strongroom.rules.times import show_time

if TYPE_CHECKING:
    from strongroom.observe.metrics import Board
    from strongroom.repository.leases import Leases
    from strongroom.repository.repository import Repository

_POLL = 300.0  # seconds: so often `serve` looks whether a job's host died, or clocks were set
PROMISE_MISSED = 10
_AGAIN = 60.0  # seconds after which it looks again when the repository did not answer
_KINDS = (UsageError, Incomplete, Refused, NotFound, Busy, Unreachable, KeyRefused, Damaged)
_DEFAULT = Everywhere()


def run_due(
    job: Annotated[list[str] | None, Parameter(negative=())] = None,
    /,
    *,
    dry_run: bool = False,
    list: bool = False,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Run what is due now, one after the other, and end; for cron and timers.

    Several hosts may do this: each job runs on one of them. A job whose time passed while nobody
    looked runs once, unless `catch_up` says otherwise. The exit status is the worst of the jobs'.

    Parameters
    ----------
    job
        Only these, as --list names them, or a source for its backup; "all" is every one.
    dry_run
        Only say what would run, and why.
    list
        Say of every job where it stands and when it comes next.
    """
    desk = Desk(everywhere)
    jobs = chosen(jobs_of(desk), job or [])
    if dry_run or list:
        with desk.repository() as repository:
            desk.recorder.opened(repository)
            verdicts = _judge(desk, repository, jobs)
        shown = verdicts if list else [one for one in verdicts if one.runs]
        desk.output.event(
            "result", {"verb": "run-due", "exit": 0, "jobs": [*map(verdict_body, shown)]}
        )
        _show(desk, shown, listing=list)
        return 0
    teller = Teller(desk)
    with Watch(wiring.steady) as watch:
        with teller.about_repository():
            done = [*_run_all(desk, jobs, watch, teller, grace=0.0)]
        watch.check()
    if not done:
        desk.output.note("nothing is due")
    status = worst(one["exit"] for one in done)
    fault = _fault(done, status)
    if fault is not None:
        return desk.output.finish("run-due", {"jobs": done}, fault)
    desk.output.event("result", {"verb": "run-due", "exit": status, "jobs": done})
    return status


def serve(*, everywhere: Everywhere = _DEFAULT) -> int:
    """Run every job at its time, until stopped.

    SIGTERM lets a running job go on for `grace` and then stops it in order; SIGHUP reads the
    configuration again. A job that fails, or a repository that cannot be reached, stops nothing.
    """
    desk = Desk(everywhere)
    jobs = jobs_of(desk)
    teller = Teller(desk)
    with served(desk) as board, Watch(wiring.steady) as watch:
        desk.output.note(f"serving {len(jobs)} jobs")
        while watch.stop is None:
            if watch.hangup:
                watch.hangup = False
                desk = _read_again(desk, everywhere)
                teller = Teller(desk)
            grace = float(desk.configuration.schedule.grace.approximate_seconds)
            pause = _POLL
            try:
                jobs = jobs_of(desk)
                with teller.about_repository():
                    for _ in _run_all(desk, jobs, watch, teller, grace=grace, board=board):
                        continue
                now = desk.now
                times = [(each.cron.next(now, each.zone) - now).total_seconds() for each in jobs]
                limit = desk.configuration.schedule.lease.approximate_seconds / 2
                pause = max(0.5, min([_POLL, limit, *times]))
            except StrongroomError as fault:
                desk.output.error_lines(fault)
                desk.output.event("fault", {"error": error_body(fault)})
                pause = _AGAIN
            if watch.stop is None and not watch.hangup:
                watch.wait(pause)
    desk.output.note("stopped")
    desk.output.event("result", {"verb": "serve", "exit": 0})
    return 0


def jobs_of(desk: Desk) -> list[Job]:
    """The configured jobs; UsageError when there is none."""
    from strongroom.operations.scheduling import jobs_of as configured  # noqa: PLC0415 -- numpy

    jobs = configured(desk.configuration)
    if not jobs:
        raise UsageError(
            "Nothing is scheduled.",
            do='Write `schedule = "0 2 * * *"` into a source of strongroom.toml, or `check` or '
            "`expire` under [schedule].",
        )
    return jobs


def chosen(jobs: Sequence[Job], names: Sequence[str]) -> list[Job]:
    """The jobs that are named; NotFound for a name that is none."""
    if not names or "all" in names:
        return [*jobs]
    known = {job.name: job for job in jobs}
    known |= {job.source: job for job in jobs if job.source and job.source not in known}
    for name in names:
        if name not in known:
            raise NotFound(
                f"No job is called {name!r}; there are: {', '.join(job.name for job in jobs)}.",
                do="`strongroom run-due --list` shows them.",
            )
    return [*{known[name].name: known[name] for name in names}.values()]


# -- running -----------------------------------------------------------------------------------


def _leases(desk: Desk, repository: Repository) -> Leases:
    from strongroom.repository.leases import Leases  # noqa: PLC0415 -- numpy behind it

    return Leases(
        repository.catalogue, repository.seams, host=socket.gethostname(), limit=_limit(desk)
    )


def _limit(desk: Desk) -> timedelta:
    return timedelta(seconds=desk.configuration.schedule.lease.approximate_seconds)


def _judge(desk: Desk, repository: Repository, jobs: Sequence[Job]) -> list[Verdict]:
    from strongroom.operations.scheduling import judge  # noqa: PLC0415 -- numpy behind it

    return judge(
        repository, jobs, _leases(desk, repository), journal=desk.recorder.journal, now=desk.now
    )


def _run_all(
    desk: Desk,
    jobs: Sequence[Job],
    watch: Watch,
    teller: Teller,
    *,
    grace: float,
    board: Board | None = None,
) -> Iterator[dict[str, Any]]:
    """Run what is due, judged anew after each job; yield a document for each that was tried.

    What is wrong is told when a time was missed, after each job, and where there is nothing to do.
    """
    tried: set[str] = set()
    with _opened(desk) as repository:
        teller.opened(repository)
        if not repository.identity.capabilities.put_if_absent:
            desk.output.warning(
                "this store cannot tell which of two hosts was first: let one host alone run jobs"
            )
        while watch.stop is None:
            verdicts = _judge(desk, repository, jobs)
            measured(desk, repository, board, fresh=bool(tried))
            if not tried:
                for one in verdicts:
                    if one.state in (State.MISSED, State.OVERRUN):
                        desk.output.warning(f"{one.job.name}: {'; '.join(one.reasons)}")
                if any(one.passed for one in verdicts):
                    teller.tell(repository)
            todo = [one for one in verdicts if one.runs and one.job.name not in tried]
            if not todo:
                if not tried:
                    teller.tell(repository, ping=True)
                return
            tried.add(todo[0].job.name)
            done = _run_one(desk, repository, todo[0], watch, grace)
            teller.tell(repository, ping=True)
            yield done


@contextmanager
def _opened(desk: Desk) -> Iterator[Repository]:
    """The repository, opened anew: keys and addresses may have changed since the last time."""
    storage = wiring.open_storage(desk.configuration, desk.environ)
    try:
        yield wiring.open_repository(storage, desk.holders(), jobs=desk.jobs)
    finally:
        storage.close()


def _run_one(
    desk: Desk, repository: Repository, verdict: Verdict, watch: Watch, grace: float
) -> dict[str, Any]:
    from strongroom.operations.scheduling import outcome_of, run_job  # noqa: PLC0415 -- numpy

    leases = _leases(desk, repository)
    name = verdict.job.name
    desk.output.event("job", verdict_body(verdict))
    desk.output.note(f"{name}: {'; '.join(verdict.reasons)}")
    fault: StrongroomError | None = None

    def run(argv: Sequence[str], about: Verdict, sign: Callable[[], bool], every: float) -> int:
        return watch.run(
            [*argv, *_handed_on(desk.flags)],
            environ={
                **desk.environ,
                "STRONGROOM_TRIGGER": about.trigger,
                "STRONGROOM_JOB": about.job.name,
                "STRONGROOM_DUE": show_time(about.due),
            },
            stdout=_stdout(desk),
            grace=grace,
            sign=sign,
            every=every,
        )

    try:
        status = run_job(leases, verdict, run, limit=_limit(desk))
    except Busy as busy:
        desk.output.note(f"{name}: {busy.what}")
        status, outcome = 0, "elsewhere"
    except StrongroomError as raised:
        fault, status, outcome = raised, raised.exit_status, "failed"
        desk.output.error_lines(fault)
    else:
        outcome = outcome_of(status)
        desk.output.note(f"{name}: {outcome}" + (f", exit {status}" if status else ""))
    body: dict[str, Any] = {"job": name, "due": verdict.due.isoformat(), "outcome": outcome}
    body |= {"exit": status, "trigger": verdict.trigger, "try": verdict.number}
    if fault is not None:
        body["error"] = error_body(fault)
    desk.output.event("job-end", body)
    return body


def _stdout(desk: Desk) -> int | None:
    """Where a job's result goes that is for people: not between lines of JSON."""
    if desk.output.log == "json":
        return subprocess.DEVNULL
    return 2 if desk.output.json else None


def _fault(done: Sequence[dict[str, Any]], status: int) -> StrongroomError | None:
    """The failure of several jobs as one, of the kind of the worst; each was told when it ended."""
    if status in (0, PROMISE_MISSED):
        return None
    bad = [f"{one['job']} (exit {one['exit']})" for one in done if one["exit"] == status]
    kinds = {kind.exit_status: kind for kind in _KINDS}
    return kinds.get(status, StrongroomError)(
        f"{len(bad)} of {len(done)} jobs ended badly: {', '.join(bad)}.",
        means="What each means is said above; the other jobs did what they were to do.",
        do="Mend what is said above; `strongroom run-due --list` says when each is tried again.",
    )


def _handed_on(flags: Everywhere) -> list[str]:
    """The flags with which a job finds what we found."""
    words = []
    for value, flag in (
        (flags.repository, "--repository"),
        (flags.config, "--config"),
        (flags.passphrase_file, "--passphrase-file"),
        (flags.key_file, "--key-file"),
        (flags.recovery_code_file, "--recovery-code-file"),
        (flags.cache_dir, "--cache-dir"),
        (flags.jobs, "--jobs"),
        (flags.log_format, "--log-format"),
    ):
        if value is not None:
            words.append(f"{flag}={value}")
    return words + ["--quiet"] * flags.quiet


def _read_again(desk: Desk, everywhere: Everywhere) -> Desk:
    """The configuration as it is now; where it has faults, the one that was."""
    fresh = Desk(everywhere)
    try:
        jobs = jobs_of(fresh)
    except StrongroomError as fault:
        desk.output.error_lines(fault)
        desk.output.note("the configuration has faults; the one before stays")
        return desk
    desk.output.note(f"configuration read again: {len(jobs)} jobs")
    return fresh


# -- words -------------------------------------------------------------------------------------


def verdict_body(one: Verdict) -> dict[str, Any]:
    """A verdict for JSON."""
    return {
        "job": one.job.name,
        "source": one.job.source,
        "schedule": one.job.cron.text,
        "commands": [[*step] for step in one.job.steps],
        "state": one.state.value,
        "due": one.due.isoformat(),
        "next": one.next.isoformat(),
        "missed": len(one.missed),
        "reasons": [*one.reasons],
    }


def _show(desk: Desk, verdicts: Sequence[Verdict], *, listing: bool) -> None:
    if listing:
        rows = [
            [
                one.job.name,
                one.job.cron.text,
                one.state.value,
                show_moment(one.next),
                show_text("; ".join(one.reasons)),
            ]
            for one in sorted(verdicts, key=lambda one: one.next)
        ]
        desk.output.table(["job", "schedule", "state", "next", "why"], rows)
        return
    for one in verdicts:
        for step in one.job.steps:
            words = " ".join(step)
            desk.output.line(f"would run `strongroom {words}`: {show_text('; '.join(one.reasons))}")
    if not verdicts:
        desk.output.note("nothing is due")
