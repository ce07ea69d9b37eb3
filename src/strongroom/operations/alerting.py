"""What is wrong is told, once, and so is its end: judged from the repository, noted in its audit log.

Rule: of several hosts one tells, under a lease; what another has told stands in the log. Nothing here
changes what came of a run, and what no channel took is tried again by whoever looks next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

from strongroom.config.model import Configuration
from strongroom.errors import Busy, Refused, StrongroomError
from strongroom.observe.journal import Journal
from strongroom.observe.telling import Announced, tell
from strongroom.operations.clocks import clock_difference
from strongroom.operations.recording import Recorder
from strongroom.operations.watching import state_of
from strongroom.repository.leases import Leases
from strongroom.repository.repository import Repository
from strongroom.rules.alerts import Open, Step, after, step_of
from strongroom.rules.anomalies import Action, Condition, Told, alerting, conditions
from strongroom.rules.messages import Word, compose

JOB = "alerts"
UNREACHABLE = "repository-unreachable"
LOCAL = "alerts.json"
_CLOCKS = "clocks.json"
_LOOK_AGAIN = timedelta(hours=1)
_LIMIT = timedelta(minutes=5)  # who tells and gives no sign for so long is dead


@dataclass(frozen=True, slots=True)
class Announcement:
    """What is wrong now, and what was told of it just now."""

    found: Sequence[Condition] = ()
    steps: Sequence[Step] = ()

    @property
    def well(self) -> bool:
        """Whether nothing critical is wrong: then who listens for a sign of life gets one."""
        return all(one.severity != "critical" for one in self.found)


def open_alerts(journal: Journal) -> dict[str, Open]:
    """What was raised and is not over, by key, as the log has it."""
    runs = journal.runs(type="alert", refresh=False)
    return after(step for run in runs if (step := step_of(run)) is not None)


def found_now(
    repository: Repository,
    journal: Journal,
    configuration: Configuration,
    *,
    now: datetime,
    folder: str | None = None,
) -> list[Condition]:
    """Everything that is wrong at `now`, worst first. `folder`: where it is kept how far the clocks
    are apart; without one that is not looked at."""
    state = state_of(repository, journal, configuration, now=now)
    if folder is not None:
        state = replace(state, apart=_apart(repository, folder, now))
    return conditions(state, now=now)


def _apart(repository: Repository, folder: str, now: datetime) -> float | None:
    """How far the clocks are apart, looked at about once an hour, since it puts an object."""
    path = os.path.join(folder, _CLOCKS)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(path) as file:
        body = json.load(file)
        if timedelta() <= now - datetime.fromisoformat(body["at"]) < _LOOK_AGAIN:
            return None if body["apart"] is None else float(body["apart"])
    apart = None
    with contextlib.suppress(StrongroomError):
        apart = clock_difference(repository.storage, repository.seams)
    with contextlib.suppress(OSError), open(path, "w", opener=_private) as file:
        json.dump({"at": now.isoformat(), "apart": apart}, file)
    return apart


def carry_out(
    repository: Repository,
    journal: Journal,
    configuration: Configuration,
    channels: Sequence[Announced],
    *,
    now: datetime,
    host: str,
    recorder: Recorder,
) -> Announcement:
    """Judge, and tell what is to be told. `recorder` has this repository open."""
    folder = recorder.folder
    found = found_now(repository, journal, configuration, now=now, folder=folder)
    if not channels or not _due(journal, found, now):
        return Announcement(found)
    leases = Leases(repository.catalogue, repository.seams, host=host, limit=_LIMIT)
    with _alone(leases, now) as alone:
        if not alone:
            return Announcement(found)
        journal.refresh()  # what another host told meanwhile
        before = open_alerts(journal)
        actions = alerting([one.told for one in before.values()], found, now=now)
        place = repository.storage.url
        steps = _told(actions, before, channels, now=now, host=host, place=place)
        for step in steps:
            note(recorder, step)
    return Announcement(found, steps)


def note(recorder: Recorder, step: Step) -> None:
    """Put a step into the audit log."""
    what = f"{step.word}: {step.condition.what}"
    with recorder.recorded("alert", source=step.condition.source, what=what) as draft:
        draft.detail |= step.detail()
        if not step.taken:
            draft.exit = 7


def _due(journal: Journal, found: Sequence[Condition], now: datetime) -> list[Action]:
    told = [one.told for one in open_alerts(journal).values()]
    return alerting(told, found, now=now)


@contextlib.contextmanager
def _alone(leases: Leases, now: datetime) -> Iterator[bool]:
    """Hold the lease of telling, where nobody else does."""
    due = now.replace(microsecond=0)
    if any(one.alive for one in leases.of(JOB)):
        yield False
        return
    try:
        lease = leases.take(JOB, due, 1)
    except Busy:
        yield False
        return
    except Refused:  # our clock is ahead, which is one of the things to tell
        yield True
        return
    try:
        yield True
    finally:
        leases.end(lease, outcome="done", exit=0)


def _told(
    actions: Iterable[Action],
    before: Mapping[str, Open],
    channels: Sequence[Announced],
    *,
    now: datetime,
    host: str,
    place: str,
) -> list[Step]:
    """Tell, and say what became of it."""
    rows = []
    messages, escalated = [], set()
    last_resort = {one.channel.name for one in channels if one.escalation}
    for action in actions:
        one = before.get(action.key)
        condition = action.condition or (one.condition if one is not None else None)
        assert condition is not None  # what has gone was raised before
        raised = now if one is None else one.told.raised
        rows.append((action, condition, raised))
        if action.word == "drop":
            continue
        if action.word == "escalate" or (one is not None and one.channels & last_resort):
            escalated.add(action.key)
        word: Word = "raise"
        if action.word in ("remind", "resolve"):
            word = action.word
        elif one is not None and one.told.sent is not None:
            word = "remind"
        messages.append(compose(word, condition, at=now, since=raised, host=host, repository=place))
    deliveries = tell(messages, channels, escalated=frozenset(escalated), at=now, host=host)
    steps = []
    for action, condition, raised in rows:
        mine = [each for each in deliveries if each.key == action.key]
        sent = tuple(each.channel for each in mine if not each.fault)
        faults = {each.channel: each.fault for each in mine if each.fault}
        steps.append(Step(action.word, condition, raised, now, sent, faults))
    return steps


# -- a repository that does not answer ---------------------------------------------------------


def unreachable(place: str, fault: StrongroomError) -> Condition:
    """The condition of a repository that does not open."""
    return Condition(
        UNREACHABLE,
        "",
        "critical",
        f"The repository does not open: {fault.what}",
        (place, "no backup can be made, none restored, and nothing else is looked at meanwhile"),
        "`strongroom doctor` says where it fails.",
    )


def carry_out_here(
    found: Sequence[Condition],
    channels: Sequence[Announced],
    *,
    now: datetime,
    host: str,
    place: str,
    recorder: Recorder,
) -> list[Step]:
    """The same for what cannot be asked of the repository, noted on this machine."""
    path = os.path.join(recorder.folder, LOCAL)
    if not channels or (not found and not os.path.exists(path)):
        return []
    os.makedirs(recorder.folder, mode=0o700, exist_ok=True)
    with open(path, "a+", opener=_private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        before = _read(file.read())
        actions = alerting([one.told for one in before.values()], found, now=now)
        steps = _told(actions, before, channels, now=now, host=host, place=place)
        left = after(steps, before)
        file.seek(0)
        file.truncate()
        json.dump([_body(one) for one in left.values()], file)
        file.flush()
        if not left:
            os.unlink(path)
    return steps


def _body(one: Open) -> dict[str, Any]:
    told = one.told
    step = Step("raise", one.condition, told.raised, told.raised, tuple(sorted(one.channels)))
    return {
        "source": one.condition.source,
        "step": step.detail(),
        "told": [
            None if told.sent is None else told.sent.isoformat(),
            told.tried,
            None if told.last_try is None else told.last_try.isoformat(),
        ],
    }


def _read(text: str) -> dict[str, Open]:
    """What a file says is open; what cannot be read was never told."""
    found: dict[str, Open] = {}
    with contextlib.suppress(ValueError, KeyError, TypeError):
        for body in json.loads(text or "[]"):
            raised = datetime.fromisoformat(body["step"]["raised"])
            leaf = SimpleNamespace(source=body["source"], ended=raised, detail=body["step"])
            step = step_of(leaf)
            if step is None:
                continue
            sent, tried, last = body["told"]
            told = Open(step.condition, _told_of(step, sent, tried, last), frozenset(step.sent))
            found[step.key] = told
    return found


def _told_of(step: Step, sent: str | None, tried: int, last: str | None) -> Told:
    return Told(
        step.key,
        step.raised,
        None if sent is None else datetime.fromisoformat(sent),
        int(tried),
        None if last is None else datetime.fromisoformat(last),
    )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


__all__ = [
    "Announcement",
    "carry_out",
    "carry_out_here",
    "found_now",
    "open_alerts",
    "unreachable",
]
