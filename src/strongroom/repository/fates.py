"""What was decided of each backup: held, released, expired, revived, swept. A log a snapshot.

    fates/<source>/<utc>-<snapshot>/<n>     the n-th decision, put if absent

Numbers run from 1 without a gap, so that of two who decide at once exactly one succeeds, and the
other has to look again: nobody expires what was held a moment ago, and nobody revives what a prune
has begun to sweep. A decision deletes nothing; only a prune does, and only what it could mark
as swept. Decisions are signed by whoever made them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from strongroom.errors import AlreadyExists, Busy, Damaged, ObjectMissing
from strongroom.format import record
from strongroom.repository.catalogue import Catalogue
from strongroom.repository.signing import open_document, sign_document

PREFIX = "fates/"
_DOMAIN = b"strongroom fate 1"
_NAME = re.compile(r"fates/([A-Za-z0-9._-]+)/([0-9A-Z]+-[A-Za-z0-9]+)/(\d{6})", re.ASCII)

Act = Literal["hold", "release", "expire", "revive", "sweep"]
_ACTS = ("hold", "release", "expire", "revive", "sweep")


@dataclass(frozen=True, slots=True)
class Fate:
    """Where a snapshot stands after `steps` decisions; `snapshot` is its object name.

    `held`: until when it is held, if it is; `for_good` where that has no end. `since`: when the last
    decision was made, by its writer's clock. `damaged`: a decision does not open, so nothing is done.
    """

    snapshot: str
    steps: int = 0
    expired: bool = False
    swept: bool = False
    held: datetime | None = None
    for_good: bool = False
    why: str = ""
    by: str = ""
    since: datetime | None = None
    damaged: str = ""

    @property
    def hidden(self) -> bool:
        """Whether it is no backup any more, as far as a list goes."""
        return (self.expired or self.swept) and not self.damaged

    def holds(self, now: datetime) -> bool:
        """Whether somebody keeps it now; who cannot read the log must not delete."""
        return bool(self.damaged) or self.for_good or (self.held is not None and now < self.held)


class Fates:
    """The decisions of one repository."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def read(self, source: str | None = None) -> dict[str, Fate]:
        """By snapshot (object name), every one of which something was decided."""
        prefix = f"{PREFIX}{source}/" if source else PREFIX
        names = sorted(entry.name for entry in self._catalogue.storage.list(prefix))
        found: dict[str, Fate] = {}
        for name in names:
            match = _NAME.fullmatch(name)
            if match is None:
                continue
            snapshot = f"snapshots/{match[1]}/{match[2]}"
            before = found.get(snapshot, Fate(snapshot))
            after = self._step(before, name, int(match[3]))
            if after is not None:
                found[snapshot] = after
        return found

    def of(self, snapshot: str) -> Fate:
        """The fate of one snapshot."""
        source, rest = _parts(snapshot)
        fate = Fate(snapshot)
        for entry in sorted(self._catalogue.storage.list(f"{PREFIX}{source}/{rest}/"), key=_name):
            match = _NAME.fullmatch(entry.name)
            if match is not None:
                fate = self._step(fate, entry.name, int(match[3])) or fate
        return fate

    def decide(
        self,
        fate: Fate,
        act: Act,
        *,
        now: datetime,
        until: datetime | None = None,
        why: str = "",
    ) -> Fate:
        """Put the next decision after `fate`; Busy when somebody else decided meanwhile."""
        if fate.damaged:
            raise Damaged(
                f"What was decided of {fate.snapshot} does not open: {fate.damaged}.",
                means="The backup stays; nothing was decided.",
                do="Bring the object back from a copy of the repository, or leave the backup.",
            )
        body: dict[str, Any] = {
            "snapshot": fate.snapshot,
            "number": fate.steps + 1,
            "act": act,
            "until": None if until is None else until.isoformat(),
            "why": why,
            "time": now.isoformat(),
            "epoch": self._catalogue.keyset.epoch,
            "writer": self._catalogue.keyset.writer_name,
        }
        name = _object(fate.snapshot, fate.steps + 1)
        raw = sign_document(self._catalogue.keyset, _DOMAIN, body)
        data = self._catalogue.records.seal(record.FATE, name, raw, nonce=self._catalogue.nonce())
        try:
            self._catalogue.storage.put(name, data, if_absent=True)
        except AlreadyExists:
            raise Busy(
                f"Somebody else decided of {fate.snapshot} at the same time.",
                means="Nothing was changed here.",
                do="Look at `strongroom list --expired` and run the command again.",
            ) from None
        return _after(fate, body)

    def objects(self, snapshot: str) -> list[str]:
        """The objects of a log, the last decision first; for a prune, when nothing else is left."""
        source, rest = _parts(snapshot)
        found = self._catalogue.storage.list(f"{PREFIX}{source}/{rest}/")
        return sorted((entry.name for entry in found), reverse=True)

    def _step(self, fate: Fate, name: str, number: int) -> Fate | None:
        if fate.damaged:
            return fate
        try:
            data = self._catalogue.storage.get(name)
            if number != fate.steps + 1:
                return replace(fate, damaged=f"decision {fate.steps + 1} is missing")
            _, raw = self._catalogue.records.open(data, name, record.FATE)
            body = open_document(self._catalogue.keyset, _DOMAIN, raw)
            if (body["snapshot"], body["number"]) != (fate.snapshot, number):
                raise ValueError("it belongs under another name")
            return _after(fate, body)
        except ObjectMissing:
            return None  # a prune took the whole log between the list and the get
        except (ValueError, KeyError, TypeError) as fault:
            return replace(fate, damaged=f"{name}: {fault}")


def _after(fate: Fate, body: dict[str, Any]) -> Fate:
    act = body["act"]
    if act not in _ACTS:
        raise ValueError(f"it decides {act!r}, which this version does not know")
    made = replace(
        fate,
        steps=int(body["number"]),
        why=str(body["why"]),
        by=str(body["writer"]),
        since=datetime.fromisoformat(body["time"]),
    )
    if act == "hold":  # what is held is a backup again
        until = None if body["until"] is None else datetime.fromisoformat(body["until"])
        return replace(made, held=until, for_good=until is None, expired=False)
    if act == "release":
        return replace(made, held=None, for_good=False)
    if act == "expire":
        return replace(made, expired=True)
    if act == "revive":
        return replace(made, expired=False)
    return replace(made, swept=True)


def hidden(fates: Iterable[Fate]) -> frozenset[str]:
    """Snapshots that are no backups any more."""
    return frozenset(fate.snapshot for fate in fates if fate.hidden)


def _object(snapshot: str, number: int) -> str:
    source, rest = _parts(snapshot)
    return f"{PREFIX}{source}/{rest}/{number:06}"


def _parts(snapshot: str) -> tuple[str, str]:
    _, source, rest = snapshot.split("/")
    return source, rest


def _name(entry: Any) -> str:
    return str(entry.name)


__all__ = ["Act", "Fate", "Fates", "hidden"]
