"""What is wrong now, judged from the past: conditions with their reasons. PURE.

    backup-failed     the newest backup run of a source did not succeed
    backup-partial    it succeeded, and something was skipped
    backup-missed     its time came and nobody ran it
    backup-late       the newest backup is older than the promise allows (rpo)
    size              the newest backup's size is more than half off the usual
    duration          it took, or takes, more than twice the usual time
    space             less than a fifth of the storage is free
    wal-stale         log was not archived for longer than the promise allows
    wal-gap           log is missing: moments cannot be recovered
    page-corruption   pages of the newest backup have wrong checksums on the server
    drill-failed      the newest drill was not green
    drill-overdue     no green drill for longer than promised
    check-failed      the newest check found damage
    deletion-frozen   the retention deletes nothing, and why
    key-age           a key is older than it should be
    job-failed        a job that runs by itself ended badly, and no other condition says so
    clock             a host's clock and the storage's contradict each other
    repository        a host cannot open the repository

Ages are those by the store's clock, where it tells: a clock that jumped is one thing that is wrong, and
makes nothing else late or overdue.
A condition has a key that stays the same as long as it lasts, so that it is told once and resolved
once. The usual is the mean of up to seven successful runs before the newest, and needs three.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from strongroom.rules.durations import Duration
from strongroom.rules.sizes import show_seconds, show_size
from strongroom.rules.times import show_time

Severity = Literal["critical", "warning"]
Outcome = Literal["done", "incomplete", "failed", "refused", "interrupted", "missed"]

USUAL, LEAST = 7, 3
SIZE_OFF = 0.5
TIMES_USUAL = 2.0
SPACE_LEFT = 0.2
SKEW = 3600.0  # seconds
_NOISE = 5.0  # seconds: below it, twice the usual time is chance


@dataclass(frozen=True, slots=True)
class Past:
    """A run that has ended; times aware, size in bytes as it was at the source."""

    started: datetime
    ended: datetime
    outcome: Outcome
    size: int = 0
    what: str = ""
    run: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended - self.started).total_seconds()

    @property
    def good(self) -> bool:
        """Whether a backup came of it."""
        return self.outcome in ("done", "incomplete")


@dataclass(frozen=True, slots=True)
class Log:
    """How far the log of a cluster is archived: the newest moment that is, and what is missing."""

    until: datetime | None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceState:
    """What is known of one source. Runs are in order of their end."""

    name: str
    backups: Sequence[Past] = ()
    drills: Sequence[Past] = ()
    rpo: Duration | None = None
    drill_every: Duration | None = None
    known_since: datetime | None = None
    missed: tuple[datetime, ...] = ()
    running_since: datetime | None = None
    log: Log | None = None
    bad_pages: int = 0
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Key:
    """A key that opens the repository, and when it was made."""

    label: str
    created: datetime


@dataclass(frozen=True, slots=True)
class Failed:
    """A job that ended badly, at its time `due`; nothing else tells of it."""

    job: str
    due: datetime
    exit: int


@dataclass(frozen=True, slots=True)
class State:
    """What is known of everything. `free` and `total` are bytes of the storage, where it tells.

    `apart`: seconds by which the store's clock is ahead of that of `host` (negative: behind), where it
    tells.
    """

    sources: Sequence[SourceState] = ()
    checks: Sequence[Past] = ()
    free: int | None = None
    total: int | None = None
    keys: Sequence[Key] = ()
    key_age: Duration | None = None
    place: str = "the storage"
    apart: float | None = None
    host: str = ""
    jobs: Sequence[Failed] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is wrong: `what` in a sentence, why it is thought, what to do about it."""

    kind: str
    source: str
    severity: Severity
    what: str
    reasons: tuple[str, ...] = ()
    do: str = ""
    part: str = field(default="")

    @property
    def key(self) -> str:
        """The same as long as it lasts."""
        return "/".join(each for each in (self.kind, self.source, self.part) if each)


def conditions(state: State, *, now: datetime) -> list[Condition]:
    """Everything that is wrong now, worst first; `now` by our clock."""
    wrong = state.apart is not None and abs(state.apart) > SKEW
    if state.apart is not None and wrong:
        now += timedelta(seconds=state.apart)
    found = [
        *(_clock(state, now) if wrong else ()),
        *(each for source in state.sources for each in _of_source(source, now)),
        *_of_storage(state, now),
    ]
    return sorted(found, key=lambda each: (each.severity != "critical", each.key))


def _clock(state: State, now: datetime) -> Iterator[Condition]:
    apart = state.apart or 0.0
    yield Condition(
        "clock",
        "",
        "critical",
        f"The clocks of {state.host or 'this machine'} and of the storage are "
        f"{show_seconds(abs(apart))} apart.",
        (
            f"it is {_show(now)} there, and {_show(now - timedelta(seconds=apart))} here",
            "jobs are not begun, and nothing is deleted, as long as that is so",
        ),
        "Set the clock of this machine: `timedatectl`, `chronyc tracking`.",
        state.host,
    )


def _of_source(source: SourceState, now: datetime) -> Iterator[Condition]:
    yield from _outcome(source)
    yield from _promise(source, now)
    yield from _deviations(source, now)
    yield from _log(source, now)
    yield from _drills(source, now)
    if source.bad_pages:
        yield Condition(
            "page-corruption",
            source.name,
            "critical",
            f"{source.bad_pages} pages of {source.name} have wrong checksums.",
            ("the newest backup found them on the server's disk; they are backed up as they are",),
            "Find them with `strongroom list --json`, check the disk and its memory, and restore them"
            " from an older backup.",
        )
    if source.frozen:
        yield Condition(
            "deletion-frozen",
            source.name,
            "critical",
            f"Nothing of {source.name} is deleted any more: something is odd.",
            source.frozen,
            "`strongroom expire --dry-run` says what; find out why before anything else.",
        )


def _outcome(source: SourceState) -> Iterator[Condition]:
    if not source.backups:
        return
    newest = source.backups[-1]
    if newest.outcome == "incomplete":
        yield Condition(
            "backup-partial",
            source.name,
            "warning",
            f"The backup of {source.name} left something out.",
            tuple(filter(None, (newest.what,))),
            f"`strongroom backup {source.name}` names every part that it skips.",
        )
    elif not newest.good:
        failed = 0
        for run in reversed(source.backups):
            if run.good:
                break
            failed += 1
        since = [run for run in source.backups if run.good]
        last = f"the last good one is of {_show(since[-1].ended)}" if since else "none was good yet"
        yield Condition(
            "backup-failed",
            source.name,
            "critical",
            f"The backup of {source.name} failed.",
            tuple(filter(None, (newest.what, f"{failed} in a row; {last}"))),
            f"Run `strongroom backup {source.name}` by hand and read what it says.",
        )


def _promise(source: SourceState, now: datetime) -> Iterator[Condition]:
    if source.missed:
        times = ", ".join(_show(each) for each in source.missed[-3:])
        yield Condition(
            "backup-missed",
            source.name,
            "critical",
            f"A backup of {source.name} was due and nobody ran it.",
            (f"due {times}",),
            "Is the scheduler running? `strongroom run-due --dry-run` says what is due.",
        )
    good = [run for run in source.backups if run.good]
    newest = good[-1].started if good else None
    if source.rpo is None:
        return
    since = newest or source.known_since
    if since is not None and since < source.rpo.before(now) and source.log is None:
        age = show_seconds((now - since).total_seconds())
        yield Condition(
            "backup-late",
            source.name,
            "critical",
            f"More of {source.name} could be lost than is promised.",
            (
                f"the newest backup began {age} ago" if newest else f"none was made for {age}",
                f"promised: at most {source.rpo}",
            ),
            f"`strongroom backup {source.name}`",
        )


def _deviations(source: SourceState, now: datetime) -> Iterator[Condition]:
    good = [run for run in source.backups if run.good]
    if not good:
        return
    newest, before = good[-1], good[-USUAL - 1 : -1]
    if len(before) >= LEAST:
        usual = sum(run.size for run in before) / len(before)
        if usual and abs(newest.size - usual) > SIZE_OFF * usual:
            off = (newest.size - usual) / usual
            yield Condition(
                "size",
                source.name,
                "critical" if off < 0 else "warning",
                f"The newest backup of {source.name} is {abs(off):.0%} "
                f"{'smaller' if off < 0 else 'larger'} than usual.",
                (f"{show_size(newest.size)}, where {show_size(int(usual))} is the mean of "
                 f"{len(before)} before",),
                f"`strongroom diff {source.name} {'ID' if len(good) < 2 else 'OLDER'} latest` says"
                " what came or went.",
            )  # fmt: skip
        yield from _duration(source, newest, before)
    if source.running_since is not None and len(good) >= LEAST:
        usual = _mean(run.seconds for run in good[-USUAL:])
        taken = (now - source.running_since).total_seconds()
        if taken > max(TIMES_USUAL * usual, usual + _NOISE):
            yield Condition(
                "duration",
                source.name,
                "warning",
                f"The backup of {source.name} takes longer than twice the usual time.",
                (f"{show_seconds(taken)} so far, where {show_seconds(usual)} is usual",),
                "Look at what it waits for; it may be left to run.",
                "running",
            )


def _duration(source: SourceState, newest: Past, before: Sequence[Past]) -> Iterator[Condition]:
    usual = _mean(run.seconds for run in before)
    if newest.seconds > max(TIMES_USUAL * usual, usual + _NOISE):
        yield Condition(
            "duration",
            source.name,
            "warning",
            f"The newest backup of {source.name} took more than twice the usual time.",
            (f"{show_seconds(newest.seconds)}, where {show_seconds(usual)} is the mean of "
             f"{len(before)} before",),
            "Did the source grow, or is its disk, the network or the storage slow?",
        )  # fmt: skip


def _log(source: SourceState, now: datetime) -> Iterator[Condition]:
    log = source.log
    if log is None:
        return
    if log.missing:
        yield Condition(
            "wal-gap",
            source.name,
            "critical",
            f"Log of {source.name} is missing: moments cannot be recovered.",
            log.missing,
            f"`strongroom points {source.name} --gaps`; take a base backup now.",
        )
    span = source.rpo
    if span is not None and (log.until is None or log.until < span.before(now)):
        until = "nothing is archived" if log.until is None else f"archived until {_show(log.until)}"
        yield Condition(
            "wal-stale",
            source.name,
            "critical",
            f"The log of {source.name} is not archived as promised.",
            (until, f"promised: at most {span} may be lost"),
            f"`strongroom wal status {source.name}` and the server's log say why.",
        )


def _drills(source: SourceState, now: datetime) -> Iterator[Condition]:
    if source.drills and source.drills[-1].outcome != "done":
        newest = source.drills[-1]
        yield Condition(
            "drill-failed",
            source.name,
            "critical",
            f"The restore drill of {source.name} was not green.",
            tuple(filter(None, (newest.what,))),
            "`strongroom drill report` has every step of it.",
        )
    if source.drill_every is None:
        return
    green = [run.ended for run in source.drills if run.outcome == "done"]
    since = green[-1] if green else source.known_since
    if since is not None and since < source.drill_every.before(now):
        last = f"the last green one was {_show(since)}" if green else "none was green yet"
        yield Condition(
            "drill-overdue",
            source.name,
            "warning",
            f"Nobody has proved for too long that {source.name} restores.",
            (last, f"promised: every {source.drill_every}"),
            f"`strongroom drill run {source.name}`",
        )


def _of_storage(state: State, now: datetime) -> Iterator[Condition]:
    if state.free is not None and state.total and state.free < SPACE_LEFT * state.total:
        yield Condition(
            "space",
            "",
            "critical" if state.free < SPACE_LEFT / 4 * state.total else "warning",
            f"{state.place} is filling up.",
            (f"{show_size(state.free)} of {show_size(state.total)} are free "
             f"({state.free / state.total:.0%}; {SPACE_LEFT:.0%} are wanted)",),
            "Make room, or keep fewer backups: `strongroom expire --dry-run`, `strongroom prune`.",
        )  # fmt: skip
    if state.checks and state.checks[-1].outcome != "done":
        yield Condition(
            "check-failed",
            "",
            "critical",
            "The newest check did not find everything as it was written.",
            tuple(filter(None, (state.checks[-1].what,))),
            "`strongroom check --read-data` names the backups that are hurt.",
        )
    for job in state.jobs:
        yield Condition(
            "job-failed",
            "",
            "critical",
            f"The job {job.job} failed.",
            (f"its time was {_show(job.due)}; it ended with exit status {job.exit}",),
            "Run its command by hand and read what it says: `strongroom run-due --list`.",
            job.job,
        )
    if state.key_age is not None:
        for key in state.keys:
            if key.created < state.key_age.before(now):
                yield Condition(
                    "key-age",
                    "",
                    "warning",
                    f"The key {key.label} is older than {state.key_age}.",
                    (f"made {_show(key.created)}",),
                    "`strongroom key add` a new one, then `strongroom key remove` this one.",
                    key.label,
                )


def out_of_reach(host: str, what: str) -> Condition:
    """A host cannot open the repository: nothing is backed up from there."""
    return Condition(
        "repository",
        "",
        "critical",
        f"{host} cannot open the repository.",
        (what,),
        "`strongroom doctor` says what is wrong.",
        host,
    )


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _show(moment: datetime) -> str:
    return show_time(moment.replace(microsecond=0))


# -- what is told ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Told:
    """An alert that was raised and not resolved: since when, and what became of telling it.

    `sent`: when a channel took it last; None as long as none did. `tried`: attempts since then.
    `condition` is what was told, `host` who told it first.
    """

    key: str
    raised: datetime
    sent: datetime | None = None
    tried: int = 0
    last_try: datetime | None = None
    condition: Condition | None = None
    host: str = ""


Word = Literal["raise", "retry", "escalate", "remind", "resolve", "drop"]


@dataclass(frozen=True, slots=True)
class Action:
    """What to do about one alert now. `condition` is None where it has gone."""

    word: Word
    key: str
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class Manners:
    """When to repeat. What no channel took is tried again after `retry`, twice as long each time up
    to `slowest`, and from `escalate_after` attempts on by every channel there is."""

    remind: timedelta = timedelta(hours=24)
    retry: timedelta = timedelta(minutes=1)
    slowest: timedelta = timedelta(hours=1)
    escalate_after: int = 3


MANNERS = Manners()


def alerting(
    open_alerts: Iterable[Told],
    found: Iterable[Condition],
    *,
    now: datetime,
    manners: Manners = MANNERS,
) -> list[Action]:
    """What to tell, given what was told: each condition once, a reminder a day, its end once.

    What ended before anybody could be told of it is dropped: there is nothing to resolve.
    """
    told = {each.key: each for each in open_alerts}
    actions = []
    here = set()
    for condition in found:
        here.add(condition.key)
        before = told.get(condition.key)
        word = _word(before, now, manners)
        if word is not None:
            actions.append(Action(word, condition.key, condition))
    for key, before in told.items():
        if key in here:
            continue
        if before.sent is None:
            actions.append(Action("drop", key))
        elif _may_try(before, now, manners):
            actions.append(Action("resolve", key))
    return actions


def _word(before: Told | None, now: datetime, manners: Manners) -> Word | None:
    if before is None:
        return "raise"
    if before.sent is None or before.tried:
        if not _may_try(before, now, manners):
            return None
        return "escalate" if before.tried >= manners.escalate_after else "retry"
    # A time to come is of a clock that was set back since.
    return "remind" if abs(now - before.sent) >= manners.remind else None


def _may_try(before: Told, now: datetime, manners: Manners) -> bool:
    if not before.tried or before.last_try is None:
        return True
    pause = min(manners.retry * (1 << min(before.tried - 1, 20)), manners.slowest)
    return abs(now - before.last_try) >= pause


__all__ = [
    "Action",
    "Condition",
    "Failed",
    "Key",
    "Log",
    "Manners",
    "Past",
    "SourceState",
    "State",
    "Told",
    "alerting",
    "conditions",
    "out_of_reach",
]
