"""Who runs a job at its time: of several hosts exactly one.

    leases/<job>/<utc due>/<n>              the n-th host that took this time, put if absent
    leases/<job>/<utc due>/<n>.<k>          its k-th sign of life
    leases/<job>/<utc due>/<n>.end          how it ended
    leases/<job>/<utc due>/<n>.look-<hex>   somebody looked whether it lives

A host that died gives no sign any more, and the next number is taken. How old a sign is, the store's
clock says: of the sign, and of a look that is put now. A host that was only asleep puts its sign and
then looks for the next number; who takes that puts it and then looks for a sign. So one sees the other,
and gives way.

Rule: nothing here deletes; `old_leases` says what a prune may.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import groupby
from typing import Any

from strongroom.errors import AlreadyExists, Busy, ObjectMissing, Refused
from strongroom.format import record
from strongroom.format.record import canonical
from strongroom.repository.catalogue import Catalogue, utc_text
from strongroom.repository.seams import Seams
from strongroom.storage.base import Entry, Storage

PREFIX = "leases/"
KEPT = timedelta(days=7)
"""So long leases stay after the newest one."""
NOT_RUN = ("early", "yielded")
"""Outcomes of leases under which nothing was run: taken before their time, or from who lives."""
_SLACK = 60.0  # seconds by which a client's clock may be ahead of the store's
_RECENT = 3  # times of a job that are read, besides those without an end
_NAME = re.compile(
    r"leases/([A-Za-z0-9._-]+)/(\d{8}T\d{6}Z)/(\d{6})(?:\.(\d+|end|look-[0-9a-f]{16}))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Lease:
    """A time of a job that this process took."""

    job: str
    due: datetime
    number: int

    @property
    def name(self) -> str:
        """Its object."""
        return f"{PREFIX}{self.job}/{utc_text(self.due)}/{self.number:06d}"


@dataclass(frozen=True, slots=True)
class Told:
    """What is stored of one time of a job: its last lease, the `number`th; under `idle` of them
    nothing was run. `signed`: the store's time of its last sign of life; `taken`: its host's time when
    it was taken."""

    due: datetime
    number: int
    idle: int
    host: str
    signed: float | None
    outcome: str
    exit: int
    ended: datetime | None
    alive: bool
    taken: datetime | None = None


@dataclass(slots=True)
class _Number:
    """The objects of one number of one time."""

    lease: Lease
    signs: list[float | None] = field(default_factory=list)
    taken: bool = False
    ended: bool = False
    last: int = 0

    @property
    def signed(self) -> float | None:
        times = [one for one in self.signs if one is not None]
        return max(times) if times and len(times) == len(self.signs) else None


class Leases:
    """The leases of one repository, as `host` takes them. Without a sign for `limit` a host is dead."""

    def __init__(self, catalogue: Catalogue, seams: Seams, *, host: str, limit: timedelta) -> None:
        self._catalogue, self._storage, self._seams = catalogue, catalogue.storage, seams
        self._host, self._limit = host, limit.total_seconds()

    def of(self, job: str) -> list[Told]:
        """What is stored of a job, the last times and all that have no end; oldest first."""
        entries = list(self._storage.list(f"{PREFIX}{job}/"))
        times = _times(entries)
        # A clock that was ahead may have left times to come: those do not hide the last that came.
        newest = max((entry.modified or float("inf") for entry in entries), default=0.0)
        come = [due for due in sorted(times) if due.timestamp() <= newest + _SLACK]
        recent = {*come[-_RECENT:], *sorted(times)[-_RECENT:]}
        found = []
        for due in sorted(times):
            numbers = times[due]
            if due in recent or not numbers[max(numbers)].ended:
                found.append(self._told(numbers))
        return found

    def take(self, job: str, due: datetime, number: int) -> Lease:
        """Take a time; Busy when somebody else was first, Refused when it has not come yet."""
        lease = Lease(job, due, number)
        body = {
            "job": job,
            "due": due.isoformat(),
            "number": number,
            "host": self._host,
            "writer": self._catalogue.keyset.writer_name,
            "time": self._seams.now().isoformat(),
        }
        try:
            self._put(lease.name, body)
        except AlreadyExists:
            raise _elsewhere(lease) from None
        self._look_again(lease)
        return lease

    def _look_again(self, lease: Lease) -> None:
        """What can only be seen once the lease is put: the store's time of it, and the others'."""
        folder = f"{PREFIX}{lease.job}/{utc_text(lease.due)}/"
        numbers = _times(self._storage.list(folder))[lease.due]
        stored = numbers[lease.number].signed
        if stored is not None and stored + _SLACK < lease.due.timestamp():
            self.end(lease, outcome="early", exit=Refused.exit_status)
            ahead = lease.due.timestamp() - stored
            raise Refused(
                f"The clock of this machine is ahead of the store's: {lease.job} is due in "
                f"{ahead:.0f} s.",
                means="Nothing was run.",
                do="Set the clock of this machine, or of the store.",
            )
        before = numbers.get(lease.number - 1)
        lives = (
            before is not None
            and not before.ended
            and before.signed is not None
            and stored is not None
            and stored - before.signed <= self._limit
        )
        if lives or max(numbers) > lease.number:
            self.end(lease, outcome="yielded", exit=Busy.exit_status)
            raise _elsewhere(lease)

    def last(self, job: str, due: datetime) -> int:
        """The number of the last host that took a time, however long ago; 0 where nobody did."""
        found = _times(self._storage.list(f"{PREFIX}{job}/{utc_text(due)}/"))
        return max(found.get(due, {}), default=0)

    def stored(self, lease: Lease) -> float | None:
        """When a lease was put, in seconds since 1970 by the store's clock; None where it tells none."""
        entry = self._entry(lease.name)
        return None if entry is None else entry.modified

    def sign(self, lease: Lease, count: int) -> bool:
        """Give the `count`th sign of life; False when the lease was lost to another host."""
        self._put(f"{lease.name}.{count}", self._time())
        following = Lease(lease.job, lease.due, lease.number + 1).name
        return self._entry(following) is None

    def end(self, lease: Lease, *, outcome: str, exit: int) -> None:
        """Say how it ended."""
        try:
            self._put(f"{lease.name}.end", {"outcome": outcome, "exit": exit, **self._time()})
        except AlreadyExists:
            return  # the answer to the first put was lost

    # -- reading ---------------------------------------------------------------------------

    def _told(self, numbers: Mapping[int, _Number]) -> Told:
        last = numbers[max(numbers)]
        end = self._open(f"{last.lease.name}.end") if last.ended else {}
        idle = sum(
            self._open(f"{one.lease.name}.end").get("outcome") in NOT_RUN
            for one in numbers.values()
            if one.ended and one is not last
        )
        ended = bool(end)  # one that does not open says nothing
        if not ended:
            alive = self._is_alive(last)
        begun = self._open(last.lease.name)
        return Told(
            last.lease.due,
            last.lease.number,
            idle + (end.get("outcome") in NOT_RUN),
            str(begun.get("host", "")),
            last.signed,
            str(end.get("outcome", "")),
            int(end.get("exit", 0)),
            datetime.fromisoformat(end["time"]) if ended else None,
            alive=not ended and alive,
            taken=datetime.fromisoformat(begun["time"]) if begun else None,
        )

    def _is_alive(self, last: _Number) -> bool:
        """Whether the last sign is younger than the limit. Our own clock may say so: if it is
        wrong, somebody is given more time; that nobody is there only the store's says."""
        signed = last.signed
        if signed is None or self._seams.now().timestamp() - signed <= self._limit:
            return True
        look = f"{last.lease.name}.look-{self._catalogue.token()}"
        self._put(look, self._time())
        seen = self._entry(look)
        return seen is None or seen.modified is None or seen.modified - signed <= self._limit

    def _open(self, name: str) -> dict[str, Any]:
        """A record of a lease; empty where it does not open: then its name alone counts."""
        try:
            _, raw = self._catalogue.records.open(self._storage.get(name), name, record.LEASE)
            body = json.loads(raw)
        except (ValueError, ObjectMissing):
            return {}
        return body if isinstance(body, dict) else {}

    def _entry(self, name: str) -> Entry | None:
        return next((one for one in self._storage.list(name) if one.name == name), None)

    def _put(self, name: str, body: Mapping[str, Any]) -> None:
        catalogue = self._catalogue
        data = catalogue.records.seal(record.LEASE, name, canonical(body), nonce=catalogue.nonce())
        self._storage.put(name, data, if_absent=True)

    def _time(self) -> dict[str, str]:
        return {"time": self._seams.now().isoformat()}


def _elsewhere(lease: Lease) -> Busy:
    return Busy(
        f"Another host runs {lease.job} of {utc_text(lease.due)}.",
        means="It is not run twice.",
        do="Nothing; `strongroom run-due --list` says how it goes.",
    )


def old_leases(storage: Storage) -> list[str]:
    """What a prune may delete: objects older, by the store's times, than the newest by `KEPT`, but
    for those of the last time of each job that has come, and of times to come: a clock that was ahead
    leaves such. The records of a time go as one, its leases last."""
    entries = [
        (match, entry) for entry in storage.list(PREFIX) if (match := _NAME.fullmatch(entry.name))
    ]
    if any(entry.modified is None for _, entry in entries):
        return []
    newest = max((entry.modified or 0.0 for _, entry in entries), default=0.0)
    entries.sort(key=lambda one: one[1].name)
    gone: list[str] = []
    for _, of_job in groupby(entries, key=lambda one: one[0][1]):
        times = {due: list(each) for due, each in groupby(of_job, key=lambda one: one[0][2])}
        come = [due for due in times if _has_come(due, newest + _SLACK)]
        for due in come[:-1]:
            each = times[due]
            if all((entry.modified or 0.0) < newest - KEPT.total_seconds() for _, entry in each):
                gone += sorted((entry.name for _, entry in each), key=len, reverse=True)
    return gone


def _times(entries: Iterable[Entry]) -> dict[datetime, dict[int, _Number]]:
    """The numbers of each time; one whose lease itself is not there does not count."""
    times: dict[datetime, dict[int, _Number]] = {}
    for job, due, number, sign, modified in _parts(entries):
        lease = Lease(job, due, number)
        one = times.setdefault(due, {}).setdefault(number, _Number(lease))
        if sign is None or sign.isdecimal():
            one.signs.append(modified)
        one.taken = one.taken or sign is None
        one.ended = one.ended or sign == "end"
    kept = {
        due: {number: one for number, one in numbers.items() if one.taken}
        for due, numbers in times.items()
    }
    return {due: numbers for due, numbers in kept.items() if numbers}


def _parts(
    entries: Iterable[Entry],
) -> Iterator[tuple[str, datetime, int, str | None, float | None]]:
    for entry in entries:
        match = _NAME.fullmatch(entry.name)
        if match is None:
            continue
        try:
            due = datetime.fromtimestamp(_moment(match[2]), UTC)
        except ValueError:
            continue
        yield match[1], due, int(match[3]), match[4], entry.modified


def _has_come(text: str, now: float) -> bool:
    try:
        return _moment(text) <= now
    except ValueError:
        return False


@lru_cache(4096)
def _moment(text: str) -> float:
    """The time in a name, in seconds since 1970; ValueError where it is none."""
    return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
