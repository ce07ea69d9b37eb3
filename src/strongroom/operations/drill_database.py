"""Drills of databases: a cluster by its files and its log, or databases out of dumps.

Both end as a running server that nobody else reaches, and are asked the same from there on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from strongroom.config.model import PostgresDrill
from strongroom.errors import Damaged, NotFound, Refused
from strongroom.operations.browse import list_snapshots
from strongroom.operations.can_restore import Answer, answer, require, target_text
from strongroom.operations.drilling import (
    Run,
    Said,
    Stage,
    Wanted,
    commands_stage,
    fresh,
    run_commands,
    show,
    some,
)
from strongroom.operations.points import Cluster, all_points, look
from strongroom.operations.recovering import fill, recovery_of, sandbox_for
from strongroom.operations.restore import restore
from strongroom.postgres import proving
from strongroom.postgres.embedded import EmbeddedServer, Installation, find_server
from strongroom.postgres.exchange import Exchange
from strongroom.postgres.logical.sink import LogicalSink
from strongroom.postgres.proving import Counted
from strongroom.postgres.recovery.sink import sorted_otherwise
from strongroom.postgres.sandbox import Sandbox
from strongroom.postgres.server import Conninfo
from strongroom.progress import Progress
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.ports import Outcome
from strongroom.repository.repository import Repository
from strongroom.rules.drill import Kind, Span, draw_moment, draw_one
from strongroom.rules.recovery import Target, Verdict
from strongroom.rules.sizes import show_size

_MANY = 1000  # tables in a report
_TICK = timedelta(microseconds=1)


_Server = TypeVar("_Server", bound=EmbeddedServer)


class DatabaseCourse(Generic[_Server]):
    """What both have in common: the throw-away server, and everything from where it runs on."""

    kind: Kind
    snapshot: Snapshot
    at: datetime
    chosen: str
    size: int

    def __init__(
        self,
        repository: Repository,
        table: PostgresDrill,
        wanted: Wanted,
        *,
        database: str | None,
        checks: Sequence[str],
        run: Run,
        jobs: int | None,
        progress: Progress,
    ) -> None:
        self.repository, self.table, self.wanted = repository, table, wanted
        self.facts: dict[str, Any] = {}
        self._database, self._checks = table.database or database, checks
        self._run, self._jobs, self._progress = run, jobs, progress
        self._names: list[str] = []
        self._server: _Server | None = None

    @property
    def server(self) -> _Server:
        """The throw-away server."""
        assert self._server is not None
        return self._server

    def begin(self, room: str) -> None:
        """Everything will be below this directory."""
        self._room = room

    def close(self) -> None:
        """Stop the server and delete everything that it had."""
        if self._server is not None:
            self._server.close()

    # -- stages ----------------------------------------------------------------------------

    def _questions(self) -> list[Stage]:
        table = self.table
        rows = Stage("rows", self._rows) if table.rows else Stage("rows", None, "turned off")
        newest = table.freshness
        return [
            Stage("isolation", self._isolation),
            Stage("extensions", self._extensions),
            Stage("collations", self._collations),
            rows,
            Stage("amcheck", None, "turned off")
            if table.amcheck == "off"
            else Stage("amcheck", self._amcheck),
            Stage("freshness", lambda: self._freshness(newest))
            if newest is not None
            else Stage("freshness", None, "no query is configured"),
            # Rows and their times as they were backed up; questions as the present schema has it.
            commands_stage("migrate", self._migrations(), self._migrate, awaited=True),
            Stage("sql", self._ask)
            if self._queries()
            else Stage("sql", None, "none is configured"),
            commands_stage("smoke", table.smoke, self._smoke),
        ]

    def _migrations(self) -> list[Any]:
        return [] if self.table.migrate is None else [self.table.migrate]

    def _queries(self) -> list[tuple[str, str, Any]]:
        asked: list[tuple[str, str, Any]] = [(query, query, None) for query in self._checks]
        asked += [(one.name or one.query, one.query, one.expect) for one in self.table.sql]
        return asked + [(name, query, None) for name, query in self.wanted.queries.items()]

    def _started(self) -> None:
        """The server runs: which databases there are, and which one is meant."""
        self._names = proving.databases(self.server)
        major, minor = self.server.installation.version
        self.facts["server"] = f"{major}.{minor}"
        self.facts["databases"] = self._names

    @property
    def _main(self) -> str:
        """The database that queries and commands go to."""
        if self._database in self._names:
            return str(self._database)
        if self.table.database is not None:  # that of the dsn may be there to connect to only
            raise NotFound(f"There was no database {self.table.database!r} then.")
        others = [name for name in self._names if name != "postgres"]
        if len(others) > 1:
            raise Refused(
                f"There are {len(others)} databases: {', '.join(others[:10])}; none is named."
            )
        return (others or self._names)[0]

    def _isolation(self) -> str | Said:
        apart = self.server.is_apart
        self.facts["isolation"] = {
            "network": "own" if apart else "shared" if apart is False else "unknown",
            "socket": True,
            "archiving": proving.setting(self.server, "archive_mode"),
            "listens": proving.setting(self.server, "listen_addresses"),
        }
        wrong = [
            name
            for name, value in (
                ("archive_mode", self.facts["isolation"]["archiving"] not in ("off", "")),
                ("listen_addresses", self.facts["isolation"]["listens"] != ""),
            )
            if value
        ]
        if wrong:
            return Said("red", f"the throw-away server has {' and '.join(wrong)} set")
        rest = "a socket of its own, archiving off, none of the original's settings"
        if apart:
            return f"a network of its own, {rest}"
        return Said("amber", f"no network of its own could be had here; {rest}")

    def _extensions(self) -> str | Said:
        lacking = proving.extensions_lacking(self.server, self._names)
        if lacking:
            return Said("amber", f"not installed on this machine: {some(lacking)}")
        return "all that the databases have are installed here"

    def _collations(self) -> str | Said:
        changed = proving.collations_changed(self.server, self._names)
        if changed:
            return Said("amber", f"{some(changed)}; indexes on text may be sorted otherwise here")
        return "as the databases recorded them"

    def _amcheck(self) -> str | Said:
        asked = self.table.amcheck
        done = proving.amcheck(
            self.server, self._names, full=asked != "quick", jobs=self._jobs or os.cpu_count() or 1
        )
        if done.lacking:
            return Said("amber" if asked is None else "skipped", done.lacking)
        return Said("red", done.wrong) if done.wrong else done.what

    def _counted(self, counted: Sequence[Counted], how: str) -> str | Said:
        largest = sorted(counted, key=lambda one: -one.rows)[:_MANY]
        self.facts["tables"] = [one.as_json() for one in largest]
        wrong = [one.wrong for one in counted if one.wrong]
        if wrong:
            return Said("red", some(wrong))
        rows = sum(one.rows for one in counted)
        return f"{rows:,} rows in {len(counted):,} table{'s' * (len(counted) != 1)}, {how}"

    def _rows(self) -> str | Said:
        raise NotImplementedError

    def _freshness(self, query: str) -> str | Said:
        answered = proving.ask(self.server, self._main, query)
        newest = proving.as_moment(answered)
        if newest is None and answered is not None:
            return Said("red", f"the query answers {answered!r}, which is no time")
        return fresh(newest, self.at, self.table.fresh_within)

    def _ask(self) -> str | Said:
        wrong: list[str] = []
        told: list[str] = []
        for name, query, expected in self._queries():
            try:
                said = proving.ask(self.server, self._main, query)
            except Damaged as fault:
                wrong.append(f"{name}: {fault.what}")
                continue
            told.append(f"{name} → {said}")
            if expected is not None and not _same(said, expected):
                wrong.append(f"{name} answers {said!r}, expected {expected!r}")
            elif expected is None and (said is None or said is False):
                wrong.append(f"{name} answers {'nothing' if said is None else 'false'}")
        self.facts["sql"] = [line[:200] for line in told]
        return Said("red", some(wrong)) if wrong else some([line[:120] for line in told])

    def _environment(self) -> dict[str, str]:
        conninfo = Conninfo.parse(self.server.dsn_for(self._main))
        return Exchange(conninfo).environment(self._main)

    def _migrate(self) -> str | Said:
        return run_commands(
            self._run, self._migrations(), "database", self._main, self._environment(),
            network=self.table.network,
        )  # fmt: skip

    def _smoke(self) -> str | Said:
        return run_commands(
            self._run, self.table.smoke, "database", self._main, self._environment(),
            network=self.table.network,
        )  # fmt: skip


def _same(said: Any, expected: str | int | bool) -> bool:
    """Whether an answer is the expected one, as TOML can write it."""
    if isinstance(expected, bool) or isinstance(said, bool):
        return said is expected or str(said).lower() == str(expected).lower()
    return str(said) == str(expected)


# -- a cluster -----------------------------------------------------------------------------------


class ClusterCourse(DatabaseCourse[Sandbox]):
    """The drill of a physical backup and its log."""

    kind: Kind = "physical"

    def __init__(self, repository: Repository, source: str, *rest: Any, **more: Any) -> None:
        super().__init__(repository, *rest, **more)
        self._cluster = look(repository, source)
        target, backup, self.chosen = choose_point(
            self._cluster, self.wanted, repository.seams.random
        )
        self._answered: Answer = answer(self._cluster, target, backup=backup)
        self._verdict: Verdict = require(self._answered, self._cluster)
        assert self._verdict.base is not None
        self._base = self._cluster.facts[self._verdict.base.id]
        self.snapshot = self._cluster.snapshots[self._verdict.base.id]
        self.at = target.time or self._base.stop_time
        log = min(self._verdict.segments + 8, 1024) * self._base.wal_segment_size
        self.size = int(self.snapshot.size * 1.05) + log
        self.facts |= {
            "target": target_text(target),
            "timeline": self._verdict.timeline,
            "segments": self._verdict.segments,
            "checksums": self._base.checksums,
            "notes": list(self._verdict.notes),
        }

    def stages(self) -> list[Stage]:
        """From finding the programs to the checksums of pages."""
        return [
            Stage("programs", self._programs, essential=True),
            Stage("restore", self._restore, essential=True, awaited=True),
            Stage("recover", self._recover, essential=True, awaited=True),
            Stage("target", self._reached),
            *self._questions(),
            Stage("checksums", self._checksums)
            if self._base.checksums
            else Stage("checksums", None, "the cluster has no checksums"),
        ]

    def _programs(self) -> str | Said:
        try:
            self._server = sandbox_for(self._cluster, self._verdict, scratch=self._room)
        except NotFound as fault:
            return Said("skipped", fault.what)
        self.server.apart = True
        installation = self.server.installation
        version = "{}.{}".format(*installation.version)
        recorded = str(self._base.server.get("version", ""))
        return f"PostgreSQL {version} for a backup of {recorded or 'the same major'}"

    def _restore(self) -> str | Said:
        outcome = fill(
            self.server, self.repository, self._cluster, self._verdict,
            jobs=self._jobs, progress=self._progress,
        )  # fmt: skip
        spaces = len(self._base.tablespaces)
        said = (
            f"{outcome.files:,} files, {show_size(outcome.size)} of backup {self.snapshot.id[:12]}"
        )
        said += f", {spaces} tablespace{'s' * (spaces != 1)} beside it" if spaces else ""
        return _with_problems(said, outcome)

    def _recover(self) -> str | Said:
        recovery = recovery_of(self._verdict)
        self.server.recover(recovery, progress=self._progress)
        self._started()
        return f"it starts, and recovered to {self.facts['target']} over {self._verdict.segments} segments"

    def _reached(self) -> str | Said:
        """Whether what was replayed last is what the log says of the target."""
        last = proving.replayed(self.server)
        target = self._verdict.target
        told = "no transaction was replayed" if last is None else f"replayed up to {show(last)}"
        if target.kind == "latest" and last is not None:
            self.at = max(self.at, last)
        if last is None:
            expected = self._answered.last
            if target.kind == "time" and expected and expected.time > self._base.stop_time:
                return Said("red", f"{told}, and the log has one of {show(expected.time)}")
            return told
        if target.kind == "time":
            assert target.time is not None
            if last > target.time:
                return Said("red", f"{told}, which is after {show(target.time)}")
            expected, following = self._answered.last, self._answered.next
            if expected is not None and last < expected.time:
                return Said("red", f"{told}, and the log has one of {show(expected.time)}")
            if following is not None:
                told += f"; the next one, of {show(following.time)}, is left out"
        return told

    def _collations(self) -> str | Said:
        said = super()._collations()
        other = sorted_otherwise(self._base.server)
        return Said("amber", other["collations"]) if other and isinstance(said, str) else said

    def _rows(self) -> str | Said:
        counted = [one for name in self._names for one in proving.count_twice(self.server, name)]
        twice = sum(one.by_index is not None for one in counted)
        by = (
            f"{twice:,} of them counted by an index too, which agrees"
            if twice
            else "by their pages"
        )
        return self._counted(counted, by)

    def _checksums(self) -> str | Said:
        self.server.stop()
        done = proving.checksums(self.server)
        if done.lacking:
            return Said("amber", done.lacking)
        return Said("red", done.wrong) if done.wrong else done.what


def choose_point(
    cluster: Cluster, wanted: Wanted, random: Callable[[int], bytes]
) -> tuple[Target, str | None, str]:
    """Where recovery is to end, from which backup if that is said, and how it was chosen."""
    if wanted.choice == "given":
        assert wanted.at is not None
        return Target("time", time=wanted.at), None, f"given: {show(wanted.at)}"
    if wanted.choice == "latest":
        return Target("latest"), None, "the newest state"
    if wanted.choice == "oldest":
        oldest = min(cluster.bases, key=lambda base: base.stop_time)
        return Target("immediate"), oldest.id, "the end of the oldest backup"
    windows = [
        window
        for window in all_points(cluster).windows
        if window.last_target is not None and window.last_target > window.start_time
    ]
    number = int.from_bytes(random(32))
    if not windows:
        base = draw_one(sorted(cluster.bases, key=lambda base: base.stop_time), number)
        said = f"drawn out of the ends of {len(cluster.bases)} backups: there is no log after them"
        return Target("immediate"), base.id, said
    spans = [Span(window.start_time, _before(window.last_target)) for window in windows]
    moment = draw_moment(spans, number)
    window = next(
        w for w, span in zip(windows, spans, strict=True) if span.first <= moment <= span.last
    )
    first, last = min(span.first for span in spans), max(span.last for span in spans)
    said = (
        f"drawn out of every moment that can be recovered: {len(spans)} windows, {show(first)} to"
    )
    return Target("time", time=moment, timeline=window.timeline), None, f"{said} {show(last)}"


def _before(moment: datetime | None) -> datetime:
    assert moment is not None
    return moment - _TICK


# -- dumps ---------------------------------------------------------------------------------------


class DumpCourse(DatabaseCourse[EmbeddedServer]):
    """The drill of a logical backup: each of its databases restored into a fresh server."""

    kind: Kind = "logical"

    def __init__(self, repository: Repository, source: str, *rest: Any, **more: Any) -> None:
        super().__init__(repository, *rest, **more)
        self.snapshot, self.chosen = choose_snapshot(
            repository, source, self.wanted, repository.seams.random
        )
        self.at = self.snapshot.time
        self._recorded: Mapping[str, Any] = repository.open_snapshot(self.snapshot).facts
        self._held: Mapping[str, Any] = self._recorded["databases"]
        self._major = int(self._recorded["server"]["version_number"]) // 10000
        self.size = sum(int(one["size"]) for one in self._held.values()) + (256 << 20)

    def stages(self) -> list[Stage]:
        """From an empty server on."""
        return [
            Stage("programs", self._programs, essential=True),
            Stage("server", self._start, essential=True),
            Stage("restore", self._restore, essential=True, awaited=True),
            *self._questions(),
            Stage("checksums", self._checksums),
        ]

    def _programs(self) -> str | Said:
        same, installation = installation_for(self._major)
        if installation is None:
            return Said("skipped", f"no PostgreSQL {self._major} or newer is on this machine")
        version = "{}.{}".format(*installation.version)
        self._server = EmbeddedServer(
            installation,
            durable=False,
            parent=self._room,
            initdb=["--data-checksums"],
            settings={"autovacuum": "off", "max_logical_replication_workers": "0"},
        )
        self._server.apart = True
        if not same:
            said = f"PostgreSQL {self._major} is not on this machine; PostgreSQL {version} is taken"
            return Said("amber", said)
        return f"PostgreSQL {version} for a backup of {self._recorded['server']['version']}"

    def _start(self) -> str | Said:
        self.server.start()
        return "an empty server of our own"

    def _restore(self) -> str | Said:
        outcomes = []
        locales = []
        for name in self._held:
            try:
                outcomes.append(self._restore_one(name, None))
            except Refused as fault:
                if "locale" not in fault.what:
                    raise
                outcomes.append(self._restore_one(name, "C.UTF-8"))
                locales.append(f"{name}: {fault.what}")
        self._started()
        rows = sum(int(outcome.facts["rows"]) for outcome in outcomes)
        tables = sum(int(outcome.facts["tables"]) for outcome in outcomes)
        said = f"{len(outcomes)} database{'s' * (len(outcomes) != 1)}, {tables:,} tables, {rows:,} rows"
        said += f" of backup {self.snapshot.id[:12]}"
        problems = [
            f"{problem.path.decode(errors='replace')}: {problem.reason}"
            for outcome in outcomes
            for problem in outcome.problems
            if "tables are in the default one" not in problem.reason
        ]
        if locales or problems:
            return Said("amber", f"{said}; {some(locales + problems)}")
        return said

    def _restore_one(self, name: str, locale: str | None) -> Outcome:
        sink = LogicalSink(
            self.server.dsn_for("postgres"),
            self._named(name),
            database=name,
            global_objects=True,
            locale=locale,
            jobs=self._jobs,
        )
        return restore(self.repository, self.snapshot, sink, progress=self._progress)

    @staticmethod
    def _named(name: str) -> str:
        """A database that every server has is restored beside the one that is there."""
        return f"drill_{name}" if name in ("postgres", "template1", "template0") else name

    def _started(self) -> None:
        super()._started()
        held = [self._named(name) for name in self._held]
        self._names = [name for name in self._names if name in held]
        self.facts["databases"] = self._names
        if self._database is not None:
            self._database = self._named(self._database)

    def _rows(self) -> str | Said:
        counted = [
            one
            for name, facts in self._held.items()
            for one in proving.count_against(
                self.server,
                self._named(name),
                {(t["schema"], t["name"]): int(t["rows"]) for t in facts["tables"]},
            )
        ]
        return self._counted(counted, "each as many as were counted when it was backed up")

    def _checksums(self) -> str | Said:
        self.server.stop()
        done = proving.checksums(self.server)
        if done.lacking:
            return Said("amber", done.lacking)
        return Said("red", done.wrong) if done.wrong else done.what


def choose_snapshot(
    repository: Repository, source: str, wanted: Wanted, random: Callable[[int], bytes]
) -> tuple[Snapshot, str]:
    """A backup of a source, and how it was chosen; NotFound."""
    found = [one for one in list_snapshots(repository, source).snapshots if one.source == source]
    if not found:
        raise NotFound(f"There is no backup of {source} in {repository.storage.url}.")
    if wanted.choice == "latest":
        return found[-1], "the newest backup"
    if wanted.choice == "oldest":
        return found[0], "the oldest backup"
    if wanted.choice == "random":
        drawn = draw_one(found, int.from_bytes(random(32)))
        return drawn, f"drawn out of {len(found)} backups"
    assert wanted.at is not None
    before = [one for one in found if one.time <= wanted.at]
    if not before:
        raise NotFound(f"No backup of {source} is as old as {show(wanted.at)}.")
    return before[-1], f"the newest not after {show(wanted.at)}"


def installation_for(major: int) -> tuple[bool, Installation | None]:
    """A server of this major, else the newest if that is newer; whether it is of this major."""
    try:
        return True, find_server(major)
    except NotFound:
        pass
    try:
        newest = find_server()
    except NotFound:
        return False, None
    return False, newest if newest.version[0] > major else None


def _with_problems(said: str, outcome: Outcome) -> str | Said:
    if not outcome.problems:
        return said
    named = [
        f"{problem.path.decode(errors='replace')}: {problem.reason}" for problem in outcome.problems
    ]
    return Said("amber", f"{said}; {some(named)}")


__all__ = ["ClusterCourse", "DumpCourse", "choose_point", "choose_snapshot", "installation_for"]
