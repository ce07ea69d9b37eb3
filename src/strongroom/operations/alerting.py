"""Tell what is wrong, once, by every channel that wants it, and write down who took it.

What is open follows from leaves of type `alert` in the audit log: what was raised, who took it, how
often it was tried, that it is over. So a lost journal changes nothing, and whichever host looks next
goes on where the last one stopped. Before anything is told, a lease of the job `alerts` is taken and
the log is read again: of several hosts one tells.

Rule: an alert counts as told only when a channel took it. A host that dies between that and its leaf
lets another one tell it again; nothing that was to be told is lost.

A host that cannot open the repository has no log: it keeps that one alert in a file of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from strongroom.config.model import Configuration
from strongroom.errors import Busy, Refused, StrongroomError, Unreachable
from strongroom.format.run import Run, one_line
from strongroom.observe.telling import Announced, Delivery, tell
from strongroom.operations.watching import Watched, known_runs, limit, look
from strongroom.repository.leases import Lease, Leases
from strongroom.repository.repository import Repository
from strongroom.rules.anomalies import (
    SKEW,
    Action,
    Condition,
    Severity,
    Told,
    alerting,
    conditions,
    out_of_reach,
)
from strongroom.rules.messages import Message, Word, compose
from strongroom.rules.times import show_time

if TYPE_CHECKING:
    from strongroom.observe.channels.web import Ping
    from strongroom.observe.journal import Journal
    from strongroom.operations.recording import Recorder

JOB = "alerts"
_LEAST = timedelta(minutes=5)  # a channel may need so long to answer
_NAMED = 20
"""So many missed times of a job have a leaf each; the last of these stands for all before it."""
_FILE = "repository-alert.json"


@dataclass(frozen=True, slots=True)
class Carried:
    """What came of it: what is wrong now, what was done, by whom it was taken, or why not.

    `open` are the alerts that were raised and are not over; `missed` how many missed times were
    written down; `pinged` that a dead man's switch heard that all is well, `unheard` why one did not;
    `elsewhere` that another host is telling.
    """

    wrong: tuple[Condition, ...] = ()
    actions: tuple[Action, ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    open: tuple[Told, ...] = ()
    missed: int = 0
    pinged: bool = False
    unheard: tuple[str, ...] = ()
    elsewhere: bool = False

    @property
    def well(self) -> bool:
        """Nothing critical is wrong, and everything could be told."""
        critical = any(one.severity == "critical" for one in self.wrong)
        return not critical and not any(one.tried for one in self.open)

    @property
    def faults(self) -> tuple[str, ...]:
        """Why a channel did not take something."""
        told = (one.fault for one in self.deliveries if one.fault)
        return tuple(dict.fromkeys((*told, *self.unheard)))


def carry_out(
    repository: Repository,
    journal: Journal,
    configuration: Configuration,
    channels: Sequence[Announced],
    *,
    now: datetime,
    host: str,
    recorder: Recorder,
    pings: Sequence[Ping] = (),
) -> Carried:
    """Look at everything at `now`, tell what is to be told, write down what was told and missed.

    `host` is who tells; `recorder` must have the repository opened. Without channels missed times are
    written down, and nothing else. Nothing is put where nothing is to be told. The clock of `now` is
    believed unless the storage's contradicts it.
    """
    recorder.notice()
    round = _Round(repository, journal, configuration, channels, host, recorder)
    carried = round.go(now)
    pinged, unheard = False, []
    for ping in pings if carried.well else ():
        try:
            ping.ping()
            pinged = True
        except StrongroomError as fault:
            unheard.append(fault.what)
    return replace(carried, pinged=pinged, unheard=tuple(unheard))


def open_alerts(journal: Journal) -> list[Told]:
    """The alerts that were raised and are not over, the oldest first."""
    return list(_fold(known_runs(journal)["alert"]).values())


def wanted(channels: Sequence[Announced], condition: Condition) -> bool:
    """Whether anybody is told of so serious a thing at first, not only when all others fail."""
    first = [one for one in channels if not one.escalation] or channels
    return any(condition.severity == "critical" or one.level == "warning" for one in first)


@dataclass(slots=True)
class _Round:
    repository: Repository
    journal: Journal
    configuration: Configuration
    channels: Sequence[Announced]
    host: str
    recorder: Recorder
    deliveries: list[Delivery] = field(default_factory=list)
    missed: int = 0
    apart: float | None = None

    def go(self, now: datetime) -> Carried:
        seen = self._look(now)
        wrong, actions = self._todo(seen, now)
        if not actions and not _unwritten(seen):
            return self._result(seen, wrong, ())
        with self._alone() as ahead:
            if ahead is None:
                return self._result(seen, wrong, (), elsewhere=True)
            # Another host may have told it since, and by the storage's clock it may be another thing.
            self.apart = -ahead.total_seconds()
            seen = self._look(now)
            wrong, actions = self._todo(seen, now)
            now = self._by_storage(now)
            self._write_missed(seen)
            self._tell(seen, actions, now)
        seen = replace(seen, known=known_runs(self.journal))
        return self._result(seen, wrong, actions)

    def _look(self, now: datetime) -> Watched:
        seen = look(self.repository, self.journal, self.configuration, now=now, apart=self.apart)
        return replace(seen, state=replace(seen.state, host=self.host))

    @property
    def _off(self) -> float:
        """Seconds by which the storage's clock is ahead of ours, where ours is not believed; else 0."""
        return self.apart if self.apart is not None and abs(self.apart) > SKEW else 0.0

    def _by_storage(self, now: datetime) -> datetime:
        """The time, by the storage's clock where ours is not believed."""
        return now + timedelta(seconds=self._off)

    def _todo(self, seen: Watched, now: datetime) -> tuple[list[Condition], list[Action]]:
        wrong = conditions(seen.state, now=now)
        if not self.channels:
            return wrong, []
        mine = [each for each in self._open(seen).values() if self._judges(each.key)]
        told = [each for each in wrong if wanted(self.channels, each) and self._judges(each.key)]
        return wrong, alerting(mine, told, now=self._by_storage(now))

    def _judges(self, key: str) -> bool:
        """Whether this host may find it wrong, or over. Its clock is each host's own; and by one that is
        wrong deletion is frozen here and nowhere else, of which the clock tells enough."""
        if key.startswith("clock/"):
            return key == f"clock/{self.host}"
        return not (self._off and key.startswith("deletion-frozen/"))

    def _open(self, seen: Watched) -> dict[str, Told]:
        return _fold(seen.known["alert"])

    def _result(
        self,
        seen: Watched,
        wrong: Sequence[Condition],
        actions: Sequence[Action],
        *,
        elsewhere: bool = False,
    ) -> Carried:
        return Carried(
            tuple(wrong),
            tuple(actions),
            tuple(self.deliveries),
            tuple(self._open(seen).values()),
            self.missed,
            elsewhere=elsewhere,
        )

    # -- one of several hosts ----------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[timedelta | None]:
        """Hold the lease; by how much our clock is ahead of the storage's; None if another holds it."""
        leases = Leases(
            self.repository.catalogue,
            self.repository.seams,
            host=self.host,
            limit=max(limit(self.configuration), _LEAST),
        )
        lease = self._take(leases)
        if lease is None:
            yield None
            return
        outcome = "interrupted"
        try:
            stored = leases.stored(lease)
            clock = self.repository.seams.now()
            yield timedelta() if stored is None else clock - datetime.fromtimestamp(stored, UTC)
            outcome = "done"
        finally:
            leases.end(lease, outcome=outcome, exit=0 if outcome == "done" else 130)

    def _take(self, leases: Leases) -> Lease | None:
        """Leases are of the day, so that a prune takes old ones; where our clock is ahead, of the day
        on which the repository was made. Whoever holds one of whatever day is alone."""
        made = _day(self.repository.identity.created)
        for due in dict.fromkeys((max(made, _day(self.repository.seams.now())), made)):
            if any(one.alive for one in leases.of(JOB)):
                return None
            try:
                lease = leases.take(JOB, due, leases.last(JOB, due) + 1)
            except Busy:
                return None
            except Refused:
                continue
            if any(one.alive and one.due < due for one in leases.of(JOB)):
                leases.end(lease, outcome="yielded", exit=Busy.exit_status)
                return None
            return lease
        return None

    # -- telling -----------------------------------------------------------------------------

    def _tell(self, seen: Watched, actions: Sequence[Action], now: datetime) -> None:
        before = self._open(seen)
        messages, told = [], []
        for asked in actions:
            alert = before.get(asked.key) or Told(asked.key, now, host=self.host)
            alert = replace(alert, condition=asked.condition or alert.condition)
            unwanted = asked.word == "resolve" and not wanted(self.channels, _condition(alert))
            action = replace(asked, word="drop") if unwanted else asked
            message = _message(action, alert, now, self.repository.storage.url)
            told.append((action, alert))
            messages += [message] if message is not None else []
        escalated = frozenset(
            action.key
            for action, alert in told
            if action.word == "escalate" or _worn(action, alert)
        )
        self.deliveries = (
            tell(messages, self.channels, escalated=escalated, at=now, host=self.host)
            if messages
            else []
        )
        for action, alert in told:
            mine = [one for one in self.deliveries if one.key == action.key]
            self._write(action, after(action, alert, mine, now), mine)

    def _write(self, action: Action, alert: Told, deliveries: Sequence[Delivery]) -> None:
        taken = any(not one.fault for one in deliveries)
        body = _body(action.word, alert, deliveries)
        condition = _condition(alert)
        with self.recorder.recorded(
            "alert",
            source=condition.source,
            what=f"{_SAID[action.word]} {condition.what}",
            trigger="schedule",
        ) as draft:
            over = action.word == "drop" or (action.word == "resolve" and taken)
            draft.detail |= {**body, "state": "over" if over else "open"}
            draft.exit = 0 if taken or action.word == "drop" else Unreachable.exit_status

    # -- what was missed ---------------------------------------------------------------------

    def _write_missed(self, seen: Watched) -> None:
        for job, dues in _unwritten(seen).items():
            source = next(one.job.source for one in seen.verdicts if one.job.name == job)
            for at, due in enumerate(dues[:_NAMED]):
                first = dues[-1] if at == _NAMED - 1 else due
                count = len(dues) - at if at == _NAMED - 1 else 1
                said = f"{job} of {show_time(due)}: nobody ran it"
                if count > 1:
                    said += f", nor {count - 1} times before"
                with self.recorder.recorded(
                    "schedule", source=source, what=said, trigger="schedule"
                ) as draft:
                    draft.exit, draft.missed = 10, True
                    draft.detail |= {
                        "job": job,
                        "due": show_time(due),
                        "first": show_time(first),
                        "count": count,
                    }
                self.missed += 1


_SAID = {
    "raise": "told:",
    "retry": "told:",
    "escalate": "told everybody:",
    "remind": "told again:",
    "resolve": "told that it is over:",
    "drop": "over before anybody was told:",
}


def _day(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def _unwritten(seen: Watched) -> dict[str, list[datetime]]:
    """By job the missed times that no leaf tells of, the last first."""
    spans: dict[str, list[tuple[datetime, datetime]]] = {}
    for run in seen.known["schedule"]:
        with contextlib.suppress(KeyError, ValueError, TypeError):
            first, last = (datetime.fromisoformat(run.detail[key]) for key in ("first", "due"))
            spans.setdefault(run.detail["job"], []).append((first, last))
    found = {}
    for job, dues in seen.passed.items():
        told = spans.get(job, [])
        new = [due for due in dues if not any(first <= due <= last for first, last in told)]
        if new:
            found[job] = sorted(new, reverse=True)
    return found


# -- one alert ---------------------------------------------------------------------------------


def _message(action: Action, alert: Told, now: datetime, place: str) -> Message | None:
    """What to say; None for what ends without a word."""
    words: Mapping[str, Word] = {"remind": "remind", "resolve": "resolve"}
    if action.word == "drop":
        return None
    word: Word = words.get(action.word) or ("raise" if alert.sent is None else "remind")
    return compose(
        word,
        _condition(alert),
        at=now,
        since=alert.raised,
        host=alert.host,
        repository=place,
    )


def _worn(action: Action, alert: Told) -> bool:
    """Whether its end could not be told so often that everybody is told."""
    return action.word == "resolve" and alert.tried >= 3


def after(action: Action, alert: Told, deliveries: Sequence[Delivery], now: datetime) -> Told:
    """The alert once it was tried to tell it."""
    if action.word == "drop":
        return alert
    if any(not one.fault for one in deliveries):
        return replace(alert, sent=now, tried=0, last_try=now)
    return replace(alert, tried=alert.tried + 1, last_try=now)


def _condition(alert: Told) -> Condition:
    """What it is about; of a leaf that does not tell, its key."""
    if alert.condition is not None:
        return alert.condition
    kind, _, source = alert.key.partition("/")
    return Condition(kind, source, "critical", alert.key)


def _body(word: str, alert: Told, deliveries: Iterable[Delivery]) -> dict[str, Any]:
    condition = _condition(alert)
    return {
        "word": word,
        "key": alert.key,
        "raised": alert.raised.isoformat(),
        "sent": _text(alert.sent),
        "tried": alert.tried,
        "last_try": _text(alert.last_try),
        "host": alert.host,
        "kind": condition.kind,
        "severity": condition.severity,
        "part": condition.part,
        "said": one_line(condition.what),
        "reasons": [one_line(each) for each in condition.reasons],
        "do": condition.do,
        "channels": {one.channel: one.fault for one in deliveries},
    }


def _told(body: Mapping[str, Any], source: str) -> Told:
    """Inverse of `_body`; ValueError, KeyError, TypeError for what is none."""
    severity: Severity = "warning" if body["severity"] == "warning" else "critical"
    reasons = tuple(str(each) for each in body["reasons"])
    return Told(
        str(body["key"]),
        datetime.fromisoformat(body["raised"]),
        _time(body["sent"]),
        int(body["tried"]),
        _time(body["last_try"]),
        Condition(
            str(body["kind"]),
            source,
            severity,
            str(body["said"]),
            reasons,
            str(body["do"]),
            str(body["part"]),
        ),
        str(body["host"]),
    )


def _fold(runs: Iterable[Run]) -> dict[str, Told]:
    """By key what is open after these leaves."""
    found: dict[str, Told] = {}
    for run in runs:
        with contextlib.suppress(KeyError, ValueError, TypeError):
            told = _told(run.detail, run.source)
            found.pop(told.key, None)
            if run.detail["state"] == "open":
                found[told.key] = told
    return dict(sorted(found.items(), key=lambda pair: (pair[1].raised, pair[0])))


def _text(moment: datetime | None) -> str:
    return "" if moment is None else moment.isoformat()


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


# -- a repository that cannot be opened ----------------------------------------------------------


def tell_of_repository(
    folder: str,
    channels: Sequence[Announced],
    *,
    fault: str,
    now: datetime,
    host: str,
    place: str,
) -> list[Delivery]:
    """Tell that this host cannot open the repository, or, with "", that it can again.

    What was told is kept in a file below `folder`; where that cannot be written, it is told each time.
    """
    path = os.path.join(folder, _FILE)
    before = _kept(path)
    if before is None and not fault:
        return []
    found = [out_of_reach(host, fault)] if fault else []
    deliveries: list[Delivery] = []
    for action in alerting([] if before is None else [before], found, now=now):
        alert = before or Told(action.key, now, host=host)
        alert = replace(alert, condition=action.condition or alert.condition)
        message = _message(action, alert, now, place)
        worn = action.word == "escalate" or _worn(action, alert)
        if message is not None and channels:
            every = frozenset([action.key] if worn else [])
            deliveries = tell([message], channels, escalated=every, at=now, host=host)
        alert = after(action, alert, deliveries, now)
        taken = any(not one.fault for one in deliveries)
        if action.word == "drop" or (action.word == "resolve" and taken):
            with contextlib.suppress(OSError):
                os.unlink(path)
        elif channels:
            _keep(path, _body(action.word, alert, deliveries))
    return deliveries


def _kept(path: str) -> Told | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(path) as file:
        return _told(json.load(file), "")
    return None


def _keep(path: str, body: Mapping[str, Any]) -> None:
    half = f"{path}.{os.getpid()}.part"
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(half, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            json.dump(dict(body), file)
        os.replace(half, path)


__all__ = ["Carried", "carry_out", "open_alerts", "tell_of_repository", "wanted"]
