"""Where every source stands: built from the repository, the journal and the configuration.

Rule: it opens what it has not seen yet, and nothing else. Commit records, and the few facts of a
physical backup that its windows follow from, never change: they are kept on this machine, below the
journal (`records.json`), and a listing says which are still there. Losing the file costs time.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any, Literal
from zoneinfo import ZoneInfo

from strongroom.config.model import Configuration, Promise
from strongroom.errors import Damaged, KeyRefused, ObjectMissing, StrongroomError
from strongroom.observe.journal import Journal
from strongroom.operations.points import log_of
from strongroom.operations.watching import state_of
from strongroom.postgres.physical.facts import PhysicalFacts, is_physical
from strongroom.repository.catalogue import DamagedRecord, Snapshot
from strongroom.repository.fates import Fates
from strongroom.repository.repository import Repository
from strongroom.repository.wal import WalStore
from strongroom.rules.anomalies import SourceState, State
from strongroom.rules.cron import Cron
from strongroom.rules.drill import Drilled
from strongroom.rules.proof import checked, proved
from strongroom.rules.recovery import Base, Window, points
from strongroom.rules.standing import (
    Known,
    Proof,
    Span,
    Standing,
    Took,
    gaps_between,
    joined,
    stand,
)

RECORDS = "records.json"
_VERSION = 1
_AT_ONCE = 8  # records that are read side by side


@dataclass(frozen=True, slots=True)
class Survey:
    """Every source as it stands at `now`, by name; what alerts are judged by; and the newest backup
    of each."""

    now: datetime
    standings: Sequence[Standing]
    state: State
    newest: Mapping[str, Snapshot] = field(default_factory=dict)
    damaged: Sequence[DamagedRecord] = ()
    notes: Sequence[str] = ()


def survey(
    repository: Repository,
    journal: Journal,
    configuration: Configuration,
    *,
    now: datetime,
    source: str | None = None,
    folder: str | None = None,
) -> Survey:
    """Look at every source that is configured or has a backup, or at one of them. `folder`: where
    what was read before is kept; without one, all is read."""
    records = _Records(repository, None if folder is None else os.path.join(folder, RECORDS))
    backups, damaged = records.read(source)
    for name in configured_names(configuration, source):
        backups.setdefault(name, [])
    state = state_of(repository, journal, configuration, now=now)
    told = {one.name: one for one in state.sources}
    past = _Past(journal)
    notes: list[str] = []
    since = repository.identity.created
    sources = [
        _Source(name, backups[name], told.get(name, SourceState(name, known_since=since)))
        for name in sorted(backups)
    ]
    standings = [
        stand(_known(one, records, repository, past, configuration, notes), now=now)
        for one in sources
    ]
    records.save()
    newest = {name: found[-1] for name, found in backups.items() if found}
    return Survey(now, standings, state, newest, damaged, notes)


def configured_names(configuration: Configuration, source: str | None) -> list[str]:
    """The configured sources, or the one that is asked for."""
    return [name for name in configuration.source if source in (None, name)]


# -- what is known of one source ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    backups: Sequence[Snapshot]
    state: SourceState


def _known(
    source: _Source,
    records: _Records,
    repository: Repository,
    past: _Past,
    configuration: Configuration,
    notes: list[str],
) -> Known:
    name, backups = source.name, source.backups
    table = configuration.source.get(name)
    promise = Promise() if table is None else table.promise
    hurt = past.damaged & {each.id for each in backups}
    whole = [each for each in backups if each.id not in hurt]
    unusable = [f"backup {each[:12]}: a check found it damaged" for each in sorted(hurt)]
    moments = [each.time for each in whole if not each.log]
    spans: list[Span] = []
    why: list[tuple[datetime, str]] = []
    clusters = [each for each in whole if each.log]
    if clusters:
        try:
            windows, bad = _windows(repository, records, clusters)
        except KeyRefused:
            notes.append(f"{name}: only who can read backups can tell what lies between them")
            moments = sorted([*moments, *(each.time for each in clusters)])
        else:
            spans = joined(Span(one.start_time, one.until) for one in windows)
            why = [(one.until, one.ends.reason) for one in windows]
            unusable += [f"backup {each[:12]}: {text}" for each, text in sorted(bad.items())]
    began = backups[-1].started if backups else repository.identity.created
    kind = "" if not backups else "physical" if backups[-1].log else _KINDS[backups[-1].kind]
    return Known(
        name,
        kind,
        backups=len(backups),
        moments=moments,
        spans=spans,
        gaps=gaps_between(spans, why),
        unusable=unusable,
        proofs=past.proofs(name, backups),
        took=past.took(name),
        rpo=promise.rpo,
        rto=promise.rto,
        drill_every=promise.drill,
        since=source.state.known_since,
        missed=source.state.missed,
        due=None if table is None else _due(table.schedule, began, configuration),
    )


_KINDS = {"postgres": "logical", "files": "files"}


def _due(schedule: str | None, began: datetime, configuration: Configuration) -> datetime | None:
    if schedule is None:
        return None
    zone: tzinfo = UTC if configuration.timezone is None else ZoneInfo(configuration.timezone)
    return Cron.parse(schedule).next(began, zone)


def _windows(
    repository: Repository, records: _Records, clusters: Sequence[Snapshot]
) -> tuple[Sequence[Window], Mapping[str, str]]:
    """The windows of the system that the newest backup is of, and its backups that do not restore."""
    newest = clusters[-1]
    mine = [each for each in clusters if each.log["system_id"] == newest.log["system_id"]]
    bases, bad = [], {}
    for each in mine:
        try:
            bases.append(records.base(each))
        except KeyRefused:
            raise
        except (StrongroomError, ValueError) as fault:
            bad[each.id] = getattr(fault, "what", str(fault))
    listing = WalStore(repository).listing(int(newest.log["system_id"]))
    found = points(bases, log_of(listing, int(newest.log["wal_segment_size"])))
    return found.windows, {**found.bad, **bad}


# -- what was done -----------------------------------------------------------------------------


class _Past:
    """What the journal tells of drills, checks and restores; it was refreshed a moment ago."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._checks = journal.runs(type="check", refresh=False)
        self._drills = [Drilled.from_run(run) for run in journal.runs(type="drill", refresh=False)]
        self.damaged = proved(self._checks).damaged

    def proofs(self, name: str, backups: Sequence[Snapshot]) -> list[Proof]:
        """Drills of a source, and checks that read all of its newest backup, by their end."""
        found = [_drilled(each) for each in self._drills if each.source == name]
        ids = {each.id for each in backups}
        for run in self._checks:
            whole, hurt = checked(run)
            then = [each.id for each in backups if each.time <= run.started]
            if mine := ids & hurt:
                what = f"{len(mine)} of its backups are damaged"
                found.append(Proof(run.ended, "check", "red", what=what))
            elif then and then[-1] in whole:
                found.append(Proof(run.ended, "check"))
        return sorted(found, key=lambda one: one.ended)

    def took(self, name: str) -> Took | None:
        """How long the newest drill took that restored it, else the newest restore of all of it."""
        for each in reversed(self._drills):
            if each.source == name and each.verifies and each.restore_ms is not None:
                return Took(each.restore_ms / 1000, "drill", each.ended)
        for run in reversed(self._journal.runs(name, "restore", refresh=False)):
            if run.outcome in ("done", "incomplete") and run.detail.get("whole") is True:
                return Took((run.ended - run.started).total_seconds(), "restore", run.ended)
        return None


def _drilled(drill: Drilled) -> Proof:
    words: Mapping[str, Literal["green", "slow", "incomplete", "red"]] = {
        "green": "green",
        "amber": "green",
        "missed": "slow",
        "incomplete": "incomplete",
    }
    at = drill.at if drill.verifies else None
    return Proof(drill.ended, "drill", words.get(drill.verdict, "red"), at, drill.what)


# -- records -----------------------------------------------------------------------------------


class _Records:
    """Commit records, of which those are opened that were not seen before."""

    def __init__(self, repository: Repository, path: str | None) -> None:
        self._repository, self._path = repository, path
        self._id = repository.identity.id.hex()
        self._bodies: dict[str, Any] = {}
        self._bases: dict[str, Any] = {}
        self._changed = False
        if path is not None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(path) as file:
                body = json.load(file)
                if (body["version"], body["repository"]) == (_VERSION, self._id):
                    self._bodies, self._bases = dict(body["records"]), dict(body["bases"])

    def read(self, source: str | None) -> tuple[dict[str, list[Snapshot]], list[DamagedRecord]]:
        """The backups of each source, oldest first, without those that were expired."""
        catalogue = self._repository.catalogue
        prefix = f"snapshots/{source}/" if source else "snapshots/"
        names = sorted(entry.name for entry in catalogue.storage.list(prefix))
        fates = Fates(catalogue).read(source)
        if source is None:
            there = set(names)
            for gone in [name for name in self._bodies if name not in there]:
                del self._bodies[gone]
                self._changed = True
        found: dict[str, list[Snapshot]] = {}
        damaged = []
        for name, one in self._opened(names):
            if isinstance(one, DamagedRecord):
                damaged.append(one)
            elif one is not None and not (name in fates and fates[name].hidden):
                found.setdefault(one.source, []).append(one)
        for each in found.values():
            each.sort(key=lambda snapshot: snapshot.time)
        return found, damaged

    def _opened(
        self, names: Sequence[str]
    ) -> Iterator[tuple[str, Snapshot | DamagedRecord | None]]:
        unseen = []
        for name in names:
            if name not in self._bodies:
                unseen.append(name)
                continue
            body = self._bodies[name]
            try:
                one = None if body is None else Snapshot.from_body(body)
            except (ValueError, KeyError, TypeError):
                unseen.append(name)
            else:
                yield name, one
        if not unseen:
            return
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            yield from zip(unseen, pool.map(self._open, unseen), strict=True)

    def _open(self, name: str) -> Snapshot | DamagedRecord | None:
        try:
            one = self._repository.catalogue.open_snapshot(name)
        except Damaged as fault:
            return DamagedRecord(name, fault.what)
        except ObjectMissing:
            return None
        self._bodies[name] = None if one is None else one.body()
        self._changed = True
        return one

    def base(self, snapshot: Snapshot) -> Base:
        """What recovery begins with; ValueError when its facts cannot be understood."""
        found = self._bases.get(snapshot.id)
        if not isinstance(found, dict):
            body = self._repository.open_snapshot(snapshot).facts
            if not is_physical(body):
                raise ValueError("its facts are of no physical backup")
            facts = PhysicalFacts.from_json(body)
            found = {
                "timeline": facts.timeline,
                "start": facts.start_lsn,
                "stop": facts.stop_lsn,
                "stop_time": facts.stop_time.isoformat(),
            }
            self._bases[snapshot.id] = found
            self._changed = True
        stop_time = datetime.fromisoformat(found["stop_time"])
        return Base(
            snapshot.id, found["timeline"], found["start"], found["stop"], stop_time, snapshot.size
        )

    def save(self) -> None:
        """Keep what was read, where that can be done."""
        if self._path is None or not self._changed:
            return
        ids = {body["id"] for body in self._bodies.values() if isinstance(body, dict)}
        body = {
            "version": _VERSION,
            "repository": self._id,
            "records": self._bodies,
            "bases": {name: one for name, one in self._bases.items() if name in ids},
        }
        replace_private(self._path, body)


def replace_private(path: str, body: Any) -> None:
    """Replace a small file of JSON that costs only time when it is lost, where that can be done."""
    half = f"{path}.{os.getpid()}.part"
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(half, "w", opener=_private) as file:
            json.dump(body, file)
        os.replace(half, path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


__all__ = ["RECORDS", "Survey", "configured_names", "replace_private", "survey"]
