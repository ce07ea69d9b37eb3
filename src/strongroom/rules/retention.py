"""Which backups of a source stay, which may go, and why: a plan that is computed before it is done.

    keep      every backup, until so long after it was made ("30d", "12 months")
    last      the newest n
    hourly … yearly   the newest of each of the last n hours, days, weeks, months, years that have one
    pitr      every moment of so long ago until now stays recoverable: the physical backups that takes
    minimum   so many verified backups stay, whatever the rest says
    holds     a backup that somebody keeps until a day, or for good

One rule is enough for a backup to stay. Without any, everything stays. Days and months are those of
the policy's zone; months follow the calendar, and a day that a month does not have counts as the
first of the next, so that nothing is kept a day short of its promise.

Nothing goes on the word of one clock. A backup is as young as the later of two times says: the one
that its writer signed, and the one at which the store took it. Where the times contradict each
other, where `now` has jumped away from them, or where the newest backup has shrunk to half, the plan
is *frozen*: what would go stays, and the plan says so, because what deletes old backups
when the new ones are empty is an attack, or about to be an accident.

A backup that was found damaged (not good) fills no place that a good one could fill: where there are
enough good ones it stays for its `keep` and its holds only.
"""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo

from strongroom.rules.durations import Duration
from strongroom.rules.sizes import show_size
from strongroom.rules.times import show_time

SKEW = timedelta(hours=1)
"""By how much two clocks may differ before nothing is deleted."""
SHRUNK = 0.5
"""A newest backup below this part of the ones before it freezes deletion."""
DOUBT = timedelta(days=14)
"""So long a drop in size, or a pause, freezes deletion, however many backups follow it."""
_BEFORE = 7  # how many backups before one tell what is usual, or those of `_PATTERN`, if more
_PATTERN = timedelta(days=15)  # holds two weekends
_LATE = 3.0  # times the usual interval without a backup: the clock jumped, or backups stopped


@dataclass(frozen=True, slots=True)
class Backup:
    """What retention knows of a backup. `time` is its writer's, `stored` the store's, if it tells.

    `good`: nothing of it was found damaged. `verified`: a drill restored it, or a check read it whole.
    `base`: it is physical, and log can be replayed on it from its stop, the moment `stop`.
    """

    id: str
    time: datetime
    size: int
    stored: datetime | None = None
    good: bool = True
    verified: bool = False
    base: bool = False
    stop: datetime | None = None

    @property
    def born(self) -> datetime:
        """The later of its times."""
        return self.time if self.stored is None else max(self.time, self.stored)


@dataclass(frozen=True, slots=True)
class Hold:
    """Somebody keeps a backup: until a moment, or for good where `until` is None."""

    backup: str
    until: datetime | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules of one source; a count of 0 is no rule."""

    keep: Duration | None = None
    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    pitr: Duration | None = None
    minimum: int = 1
    zone: tzinfo = UTC

    @property
    def says_nothing(self) -> bool:
        """Whether there is no rule by which a backup could go."""
        counts = (self.last, self.hourly, self.daily, self.weekly, self.monthly, self.yearly)
        return self.keep is None and self.pitr is None and not any(counts)


@dataclass(frozen=True, slots=True)
class Row:
    """One backup of a plan: whether it stays, and the reasons, most binding first.

    `until`: when it goes as far as is known today; None while a rule without a date keeps it.
    """

    backup: Backup
    stays: bool
    reasons: tuple[str, ...]
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows, oldest first, and why nothing may be deleted, if so."""

    rows: tuple[Row, ...]
    frozen: tuple[str, ...] = ()

    @property
    def goes(self) -> tuple[Backup, ...]:
        """What may go."""
        return tuple(row.backup for row in self.rows if not row.stays)


@dataclass(slots=True)
class _Case:
    backup: Backup
    reasons: list[str] = field(default_factory=list)
    until: datetime | None = None
    open_end: bool = False
    places: set[str] = field(default_factory=set)

    def place(self, rule: str, reason: str) -> None:
        """It fills a place of a rule that counts; one of each is reason enough."""
        if rule not in self.places:
            self.places.add(rule)
            self.stay(reason)

    def stay(self, reason: str, until: datetime | None = None) -> None:
        self.reasons.append(reason)
        if until is None:
            self.open_end = True
        elif self.until is None or until > self.until:
            self.until = until


def _show(moment: datetime) -> str:
    """A moment to the second, UTC."""
    return show_time(moment.replace(microsecond=0))


def plan_retention(
    backups: Iterable[Backup],
    policy: Policy,
    *,
    now: datetime,
    holds: Iterable[Hold] = (),
    store_now: datetime | None = None,
) -> Plan:
    """Judge every backup of one source.

    `now` is this machine's clock, `store_now` the store's where it tells; both are aware.
    """
    ordered = sorted(backups, key=lambda each: (each.born, each.time, each.id))
    cases = [_Case(each) for each in ordered]
    # The earlier of the two clocks: one that is ahead makes nothing older.
    judged = now if store_now is None else min(now, store_now)
    _hold(cases, holds, judged)
    if policy.says_nothing:
        for case in cases:
            case.stay("no retention is configured: everything stays")
    elif replace(policy, pitr=None).says_nothing and not any(each.base for each in ordered):
        for case in cases:
            case.stay("pitr is for physical backups, of which there is none: everything stays")
    _keep(cases, policy, judged)
    _count(cases, policy)
    _recover(cases, policy, judged)
    _at_least(cases, policy)
    frozen = freezes(ordered, now=now, store_now=store_now)
    return Plan(tuple(_row(case, policy, frozen) for case in cases), frozen)


def _row(case: _Case, policy: Policy, frozen: Sequence[str]) -> Row:
    if case.reasons:
        return Row(case.backup, True, tuple(case.reasons), None if case.open_end else case.until)
    why = _over(case.backup, policy)
    if frozen:
        return Row(case.backup, True, (f"nothing is deleted now; otherwise it would go: {why}",))
    return Row(case.backup, False, (why,))


def _over(backup: Backup, policy: Policy) -> str:
    if policy.keep is None:
        return "no rule keeps it" if backup.good else "it is damaged, and no rule needs it"
    return f"its {policy.keep} ended {_show(policy.keep.after(backup.born, policy.zone))}"


# -- the rules ---------------------------------------------------------------------------------


def _hold(cases: Iterable[_Case], holds: Iterable[Hold], now: datetime) -> None:
    of: dict[str, list[Hold]] = {}
    for hold in holds:
        of.setdefault(hold.backup, []).append(hold)
    for case in cases:
        for hold in of.get(case.backup.id, ()):
            why = f": {hold.why}" if hold.why else ""
            if hold.until is None:
                case.stay(f"held for good{why}")
            elif now < hold.until:
                case.stay(f"held until {_show(hold.until)}{why}", hold.until)


def _keep(cases: Iterable[_Case], policy: Policy, now: datetime) -> None:
    if policy.keep is None:
        return
    for case in cases:
        until = policy.keep.after(case.backup.born, policy.zone)
        if now < until:
            case.stay(f"promised for {policy.keep}, until {_show(until)}", until)


def _best_first(cases: Sequence[_Case]) -> list[_Case]:
    """The newest first, those that are damaged behind all others. Cases come oldest first."""
    newest = list(reversed(cases))
    return sorted(newest, key=lambda case: not case.backup.good)


def _count(cases: Sequence[_Case], policy: Policy) -> None:
    """By both times of a backup: in a repository that was copied to another store, all were stored
    on the same day."""
    _places(_best_first(cases), policy, lambda one: one.born, "")
    by_writer = sorted(cases, key=lambda case: (case.backup.time, case.backup.id))
    _places(_best_first(by_writer), policy, lambda one: one.time, ", by its writer's clock")


def _places(
    best: Sequence[_Case], policy: Policy, clock: Callable[[Backup], datetime], told: str
) -> None:
    for at, case in enumerate(best[: policy.last], 1):
        case.place("last", f"last {at} of {policy.last}{told}")
    for word, count, period in _periods(policy):
        seen: dict[str, int] = {}
        for case in best:
            name = period(clock(case.backup).astimezone(policy.zone))
            if name in seen or len(seen) == count:
                continue
            seen[name] = len(seen) + 1
            case.place(word, f"{word} {seen[name]} of {count}: the last of {name}{told}")


def _periods(policy: Policy) -> list[tuple[str, int, Callable[[datetime], str]]]:
    return [
        ("hourly", policy.hourly, lambda at: f"{at:%Y-%m-%dT%H}h{at:%z}"),
        ("daily", policy.daily, lambda at: f"{at:%Y-%m-%d}"),
        ("weekly", policy.weekly, lambda at: f"{at:%G-W%V}"),
        ("monthly", policy.monthly, lambda at: f"{at:%Y-%m}"),
        ("yearly", policy.yearly, lambda at: f"{at:%Y}"),
    ]


def _recover(cases: Sequence[_Case], policy: Policy, now: datetime) -> None:
    """Every base whose log is in the window, and the one that the window's first moment begins on."""
    if policy.pitr is None:
        return
    opens = policy.pitr.before(now)
    before: _Case | None = None
    bases = [case for case in cases if case.backup.base]
    for case in [case for case in bases if case.backup.good] or bases:
        backup = case.backup
        stop = backup.stop or backup.time
        # As young as the store says, too: a writer whose clock is behind opens no window.
        if max(stop, backup.stored or stop) <= opens:
            before = case
        else:
            until = policy.pitr.after(backup.born, policy.zone)
            case.stay(f"any moment of {policy.pitr} is recoverable with it", until)
    if before is not None:
        before.stay(f"the base from which {_show(opens)} is recovered")


def _at_least(cases: Sequence[_Case], policy: Policy) -> None:
    """The newest verified ones; as long as too few are verified, the newest of the others as well."""
    least = max(1, policy.minimum)
    newest = _best_first(cases)
    good = [case for case in newest if case.backup.good]
    _fill(
        [case for case in good if case.backup.verified], least, f"never fewer than {least} verified"
    )
    _fill(good, least, f"never fewer than {least}, and fewer are verified")
    _fill(newest, least, f"never fewer than {least}, and fewer are not damaged")


def _fill(newest: Sequence[_Case], least: int, reason: str) -> None:
    kept = sum(bool(case.reasons) for case in newest)
    for case in newest:
        if kept >= least:
            return
        if not case.reasons:
            case.stay(reason)
            kept += 1


# -- the freeze --------------------------------------------------------------------------------


def freezes(
    ordered: Sequence[Backup], *, now: datetime, store_now: datetime | None = None
) -> tuple[str, ...]:
    """Why nothing may be deleted; empty when it may. `ordered` is oldest first."""
    found: list[str] = []
    if store_now is not None and abs(now - store_now) > SKEW:
        found.append(f"this machine's clock says {_show(now)}, the store's {_show(store_now)}")
    ahead = [each for each in ordered if each.time > now + SKEW]
    if ahead:
        found.append(
            f"{len(ahead)} backups are from the future, the newest {ahead[-1].id} of "
            f"{_show(ahead[-1].time)}; it is {_show(now)}"
        )
    early = [each for each in ordered if each.stored and each.time > each.stored + SKEW]
    if early and not ahead:
        one = early[-1]
        assert one.stored is not None
        found.append(f"backup {one.id} says {_show(one.time)}, and was stored {_show(one.stored)}")
    good = [each for each in ordered if each.good]
    found += [*_late(good, now), *_shrunk(good, now)]
    return tuple(found)


def _late(good: Sequence[Backup], now: datetime) -> list[str]:
    """No backup for much longer than usual: backups stopped, or the clock jumped ahead.

    One that is made after a jump does not make the jump undone: a pause that ended lately counts.
    """
    ends = [*(each.born for each in good), now]
    steps = [_step(before, after) for before, after in itertools.pairwise(good)]
    for at in reversed(range(3, len(ends))):
        begin, end = ends[at - 1], ends[at]
        if end < now - DOUBT:
            break
        # What is usual tell the others: nights and weekends come again, a jump does not.
        first = min(bisect.bisect_left(ends, begin - _PATTERN), at - _BEFORE)
        usual = max([*steps[max(0, first) : at - 1], *steps[at:]])
        if end - begin <= max(_LATE * usual, SKEW):
            continue
        span = Duration(0, max(1, int(usual.total_seconds())))
        if at == len(good):
            return [
                f"the newest backup is of {_show(begin)}, and one is made about every {span}: "
                "backups have stopped, or the clock has jumped"
            ]
        return [
            f"none was made between {_show(begin)} and {_show(end)}, where one is made about every "
            f"{span}: backups had stopped, or the clock has jumped"
        ]
    return []


def _step(before: Backup, after: Backup) -> timedelta:
    """From one to the next; in a copied repository, all of which was stored at once, by the writers'."""
    written = after.time - before.time
    return max(after.born - before.born, written if written <= _PATTERN else timedelta())


def _shrunk(good: Sequence[Backup], now: datetime) -> list[str]:
    """The newest has shrunk, beside what was usual before any backup of late: others that are as
    small do not make it usual at once."""
    if len(good) < 2:
        return []
    usual = 0.0
    for at in reversed(range(1, len(good))):
        if at < len(good) - 1 and good[at].born < now - DOUBT:
            break
        usual = max(usual, statistics.median([one.size for one in good[max(0, at - _BEFORE) : at]]))
    newest = good[-1]
    if newest.size >= SHRUNK * usual:
        return []
    return [
        f"the newest backup {newest.id} has {show_size(newest.size)}, where "
        f"{show_size(int(usual))} were usual"
    ]


__all__ = ["Backup", "Hold", "Plan", "Policy", "Row", "freezes", "plan_retention"]
