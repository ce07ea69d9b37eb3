"""What is due now, what was missed, what runs too long: verdicts with reasons, from values.

A job has a time, again and again. A time is served by a run that began at it or later and left
something (done, incomplete), or by a lease of it that ended for good. Of the times that nobody
served, only the last is made up for, and only once: ten nights without a backup need one backup.

    due       its time has come, at most an hour ago
    catch-up  its time passed while nobody looked, or whoever took it died: it runs now
    missed    the same, where `catch_up` is "none": it waits for the next time
    running   somebody runs it; `overrun` where its next time has come meanwhile
    waiting   everything was served

Never two of one source at once: what is due while its source runs waits until that ends.
A client's clock alone decides nothing: the leases are put, and judged, by the store's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo
from enum import Enum
from typing import Literal, Protocol

from strongroom.rules.cron import Cron
from strongroom.rules.times import show_time

CatchUp = Literal["once", "none"]

ON_TIME = timedelta(hours=1)
"""So late a run still is on time: a timer, another job before it."""
ATTEMPTS = 3
"""So often one time is tried, where whoever took it died, was stopped, or reached nothing."""
AGAIN_AFTER = timedelta(minutes=10)
"""So long after a try that reached nothing the next one waits."""
_NOT_RUN = ("early", "yielded")  # outcomes of leases under which nothing was run
_AGAIN = (6, 7)  # exit statuses that may be another in a while: busy, unreachable
_LEFT_SOMETHING = ("done", "incomplete")
_COUNTED = 1000  # missed times are counted so far, and not further

# What may run by itself. A backup has the `schedule` of its source.
VERBS: tuple[tuple[str, ...], ...] = (
    ("check",),
    ("doctor",),
    ("drill", "report"),
    ("drill", "run"),
    ("expire",),
    ("export",),
    ("list",),
    ("prune",),
    ("repository", "stats"),
    ("source", "test"),
    ("status",),
    ("wal", "status"),
)
# From the best to the worst: a run of several jobs ends with the worst of theirs.
_STATUSES = (0, 10, 3, 6, 4, 5, 7, 8, 2, 9, 1)


class PastRun(Protocol):
    """A run as the audit log has it; what is asked of it here."""

    @property
    def started(self) -> datetime:
        """When it began."""

    @property
    def outcome(self) -> str:
        """done, incomplete, failed, refused, interrupted, missed."""


@dataclass(frozen=True, slots=True)
class Job:
    """Something that happens by itself. `steps` are command lines of this program without its name.

    `type` is that of the runs which serve it, "" where only its leases tell.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    cron: Cron
    zone: tzinfo
    type: str = ""
    source: str = ""
    catch_up: CatchUp = "once"


@dataclass(frozen=True, slots=True)
class Held:
    """What the leases say of one time of a job: the last of `number` takings, `tries` of which ran.

    `alive`: a sign of life came lately, by the store's clock; `outcome` and `exit` once it ended;
    `taken` and `ended` by the clock of its host.
    """

    due: datetime
    number: int = 1
    tries: int = 1
    host: str = ""
    alive: bool = False
    outcome: str = ""
    exit: int = 0
    ended: datetime | None = None
    taken: datetime | None = None

    @property
    def final(self) -> bool:
        """Whether this time is not to be tried again."""
        if self.alive or self.tries >= ATTEMPTS:
            return not self.alive
        return self.outcome not in ("", "interrupted", *_NOT_RUN) and self.exit not in _AGAIN


class State(Enum):
    """Where a job stands."""

    DUE = "due"
    CATCH_UP = "catch-up"
    MISSED = "missed"
    RUNNING = "running"
    OVERRUN = "overrun"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where a job stands, and why. `due` is the time that it is about, `number` that of the lease to
    take; `missed` are times that nobody served, the last first, and will not be made up for; `tried`
    that somebody took `due` already; `since` when the run began that goes on; `last` is the newest time
    that ended."""

    job: Job
    state: State
    due: datetime
    next: datetime
    reasons: tuple[str, ...]
    number: int = 1
    missed: tuple[datetime, ...] = ()
    tried: bool = False
    since: datetime | None = None
    last: Held | None = None

    @property
    def runs(self) -> bool:
        """Whether it is to run now."""
        return self.state in (State.DUE, State.CATCH_UP)

    @property
    def passed(self) -> tuple[datetime, ...]:
        """Times that passed while nobody ran it, the last first, whether or not it runs now for them."""
        late = self.state is State.CATCH_UP and not self.tried
        return (self.due, *self.missed) if late else self.missed

    @property
    def trigger(self) -> str:
        """What the run says of its cause."""
        return "catch-up" if self.state is State.CATCH_UP else "schedule"


def plan(
    jobs: Iterable[Job],
    *,
    now: datetime,
    began: datetime,
    runs: Mapping[str, Sequence[PastRun]],
    held: Mapping[str, Sequence[Held]],
) -> list[Verdict]:
    """Judge every job: those that are to run first, what is due longest in front.

    `runs` and `held` are by the name of the job; nothing was due before `began`.
    """
    verdicts = [
        replace(
            decide(
                job, now=now, began=began, runs=runs.get(job.name, ()), held=held.get(job.name, ())
            ),
            last=max(
                (one for one in held.get(job.name, ()) if one.outcome),
                key=lambda one: one.due,
                default=None,
            ),
        )
        for job in jobs
    ]
    busy = {one.job.source: one.job.name for one in verdicts if _is_running(one)} | {"": ""}
    for at, one in enumerate(verdicts):
        other = busy.get(one.job.source, "")
        if one.runs and other not in ("", one.job.name):
            reasons = (f"{other} works on {one.job.source}: never two of one source at once",)
            verdicts[at] = replace(one, state=State.WAITING, reasons=reasons)
    return sorted(verdicts, key=lambda one: (not one.runs, one.due, one.job.name))


def decide(
    job: Job,
    *,
    now: datetime,
    began: datetime,
    runs: Sequence[PastRun],
    held: Sequence[Held],
) -> Verdict:
    """Judge one job; `began` is when the repository was made."""
    due = job.cron.previous(now, job.zone)
    following = job.cron.next(now, job.zone)
    running = max((one for one in held if one.alive), key=lambda one: one.due, default=None)
    if running is not None:
        return _running(job, running, now, due, following)
    served, why = _served(job, runs, held, now, began)
    unserved = list(
        itertools.islice(
            itertools.takewhile(lambda at: at > served, job.cron.backward(now, job.zone)),
            _COUNTED,
        )
    )
    if not unserved:
        return Verdict(job, State.WAITING, due, following, (why,))
    before = next((one for one in held if one.due == due), None)
    number = 1 if before is None else before.number + 1
    missed = tuple(unserved[1:])
    reasons = [*_before(before), *_counted(missed)]
    if (
        before is not None
        and before.exit in _AGAIN
        and before.ended is not None
        and before.ended <= now < before.ended + AGAIN_AFTER
    ):
        reasons.append(f"tried again from {show_time(before.ended + AGAIN_AFTER)} on")
        return Verdict(
            job, State.WAITING, due, following, tuple(reasons), number, missed, tried=True
        )
    if now - due <= ON_TIME and before is None:
        said = f"its time was {show_time(due)}"
        return Verdict(job, State.DUE, due, following, (said, *reasons), number, missed)
    said = f"its time {show_time(due)} passed and nobody ran it"
    if before is not None:
        said = f"the time of {show_time(due)} is tried again"
    if job.catch_up == "none" and now - due > ON_TIME:
        said += '; catch_up is "none"'
        return Verdict(
            job, State.MISSED, due, following, (said, *_counted(missed)), number, (due, *missed)
        )
    return Verdict(
        job, State.CATCH_UP, due, following, (said, *reasons), number, missed, before is not None
    )


def worst(statuses: Iterable[int]) -> int:
    """The worst of several exit statuses; one that is not known here is worse than all others."""
    return max(
        statuses,
        key=lambda one: _STATUSES.index(one) if one in _STATUSES else len(_STATUSES),
        default=0,
    )


def check_argv(argv: Sequence[str]) -> None:
    """ValueError for a command line that is not to run by itself."""
    if not any(tuple(argv[: len(verb)]) == verb for verb in VERBS):
        known = ", ".join(" ".join(verb) for verb in VERBS)
        raise ValueError(
            f"must begin with a verb that may run by itself: {known}; "
            "a source is backed up by its own `schedule`"
        )
    if any("\0" in word for word in argv):
        raise ValueError("has a word with a zero byte")


def _is_running(one: Verdict) -> bool:
    return one.state in (State.RUNNING, State.OVERRUN)


def _running(job: Job, running: Held, now: datetime, due: datetime, following: datetime) -> Verdict:
    where = f" on {running.host}" if running.host else ""
    said = f"the run of {show_time(running.due)} goes on{where}"
    if due <= running.due or now < running.due:
        return Verdict(
            job, State.RUNNING, running.due, following, (said,), tried=True, since=running.taken
        )
    reasons = (
        said,
        f"longer than its period: the time of {show_time(due)} waits until it ends",
    )
    return Verdict(
        job, State.OVERRUN, running.due, following, reasons, tried=True, since=running.taken
    )


def _served(
    job: Job, runs: Sequence[PastRun], held: Sequence[Held], now: datetime, began: datetime
) -> tuple[datetime, str]:
    """Up to when every time was served, and by what."""
    served, why = began, f"nothing was due since the repository was made at {show_time(began)}"
    good = [run.started for run in runs if run.outcome in _LEFT_SOMETHING and run.started <= now]
    if good and max(good) > served:
        served, why = max(good), f"served by the run of {show_time(max(good))}"
    final = [one for one in held if one.final and one.due <= now]
    last = max(final, key=lambda one: one.due, default=None)
    if last is not None and last.due > served:
        how = last.outcome or "without an end"
        served, why = last.due, f"the time of {show_time(last.due)} was served: {how}"
        if last.tries >= ATTEMPTS:
            why += f", after {last.tries} tries"
    return served, why


def _before(held: Held | None) -> list[str]:
    if held is None:
        return []
    where = f" on {held.host}" if held.host else ""
    if held.outcome == "early":
        return [f"the clock{where} was ahead of the store's"]
    if held.outcome == "yielded":
        return [f"try {held.number}{where} gave way to another host"]
    if not held.outcome:
        return [f"try {held.number}{where} gave no sign of life for too long"]
    return [f"try {held.number}{where} ended: {held.outcome}, exit {held.exit}"]


def _counted(missed: Sequence[datetime]) -> list[str]:
    if not missed:
        return []
    more = "at least " if len(missed) >= _COUNTED - 1 else ""
    s = "s" * (len(missed) != 1)
    return [f"{more}{len(missed)} earlier time{s} passed too, the first {show_time(missed[-1])}"]
