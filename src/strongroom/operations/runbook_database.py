"""The seed's database restore, step by step: what each step does, and where it leaves things.

Rule of this file: the database in use is not touched before its successor is restored, migrated and
verified beside it; then the names change in one transaction and the old one is kept.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from strongroom.config.model import Command, PostgresRunbook
from strongroom.errors import Damaged, Refused, StrongroomError
from strongroom.operations.back_up import back_up
from strongroom.operations.commands import refuse_unknown
from strongroom.operations.restore import restore
from strongroom.operations.runbook import (
    Action,
    Record,
    Work,
    go_on,
    run_all,
    show_commands,
    stopped,
    untouched_advice,
)
from strongroom.operations.verify_snapshot import verify_snapshot
from strongroom.postgres.exchange import Exchange
from strongroom.postgres.logical.preflight import choose_database
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.ports import Sink, Source
from strongroom.repository.repository import Repository
from strongroom.rules.durations import Duration
from strongroom.rules.promises import measure
from strongroom.rules.runbook import Book, Condition, beside_name, database_book
from strongroom.rules.sizes import show_size

SAFETY_LABEL = "runbook"
_NAMED = 5
# run(argv, cwd, environment beside the program's own)
Run = Callable[[Sequence[str], str | None, Mapping[str, str]], None]


@dataclass(frozen=True)
class DatabaseRunbook:
    """Everything at hand for one database. `sink` makes one for a target, which it replaces when
    told so; `safety` is the source of the database that is in use."""

    repository: Repository
    snapshot: Snapshot
    name: str
    recorded: str | None
    server: Exchange
    sink: Callable[[str, bool], Sink]
    safety: Callable[[], Source]
    table: PostgresRunbook
    run: Run
    rto: Duration | None
    now: Callable[[], datetime]

    def names(self, moment: datetime) -> dict[str, Any]:
        """The names a new run uses."""
        stamp = moment.strftime("%Y%m%d_%H%M%S")
        return {
            "name": self.name,
            "beside": beside_name(self.name, "__restoring"),
            "old": beside_name(self.name, f"__before_{stamp}"),
        }

    def book(self, facts: Mapping[str, Any], *, safety: bool, drop_first: bool) -> Book:
        """The steps of a new run."""
        migrate = self.table.migrate
        target = facts["name"] if drop_first else facts["beside"]
        return database_book(
            name=facts["name"],
            beside=facts["beside"],
            old=facts["old"],
            stop=[shlex.join(argv) for argv in self.table.stop],
            start=[shlex.join(argv) for argv in self.table.start],
            migrate=[] if migrate is None else [show_command(migrate, "database", target)],
            checks=self.table.checks,
            safety=safety,
            drop_first=drop_first,
        )

    def preflight(self, facts: Mapping[str, Any], *, drop_first: bool, ours: bool) -> None:
        """Refused when it can be known that the run would not come to its end; changes nothing.

        `ours` says that what stands under the name beside is of our own earlier run.
        """
        migrate = self.table.migrate
        refuse_unknown([(argv, None) for argv in (*self.table.stop, *self.table.start)])
        refuse_unknown([] if migrate is None else [(migrate.argv, migrate.cwd)])
        self.server.refuse_unfit(facts["name"])
        found = self.server.oids(facts["beside"], facts["old"])
        if not ours and found:
            (first, *_) = found
            raise Refused(
                f"There is a database {first!r} already, which no run of this machine made.",
                do="Look what it is; when it is left over, drop it and run the command again.",
            )
        target = facts["name"] if drop_first else facts["beside"]
        try:
            self.sink(target, True).preflight(self.repository.open_snapshot(self.snapshot))
        except Refused as fault:
            if "free" in fault.what and not drop_first:
                fault.do += (
                    " Or give --drop-first: the database in use is then backed up and dropped "
                    "before the restore."
                )
            raise

    def forget(self, record: Record) -> None:
        """Remove what an unfinished run made beside; nothing that is in use."""
        if record.book.condition != "whole" and "swap" in {s.key for s in record.book.steps}:
            oid = record.facts.get("beside_oid")
            found = self.server.oids(record.facts["name"], record.facts["beside"])
            if found.get(record.facts["name"]) != oid or oid is None:
                self.server.drop(record.facts["beside"])
            self.server.open(record.facts["name"])
        self.server.drop_unfinished(record.facts["beside"])
        self.server.drop_unfinished(record.facts["name"])

    def settle(self, record: Record) -> None:
        """Restore again when the database beside is gone or another one since."""
        book = record.book
        if not record.facts.get("drop_first") and book.condition == "untouched":
            found = self.server.oids(record.facts["beside"]).get(record.facts["beside"])
            if book["restore"].over and found != record.facts.get("beside_oid"):
                record.book = book.undone("create")

    def drop_kept(self, name: str) -> bool:
        """Drop a database that a run kept for a way back."""
        return self.server.drop(name)

    # -- steps -----------------------------------------------------------------------------

    def actions(self) -> dict[str, Action]:
        """What each step does."""
        return {
            "stop": lambda work: run_all(self.run, work, self.table.stop),
            "verify": lambda work: verify_snapshot(
                self.repository.open_snapshot(self.snapshot), self.snapshot, work.progress
            ),
            "safety": self._safety,
            "create": self._create,
            "restore": self._restore,
            "migrate": self._migrate,
            "integrity": self._integrity,
            "swap": self._swap,
            "start": lambda work: run_all(self.run, work, self.table.start),
            "measure": lambda work: measure(work.record.began, self.rto, now=self.now()).text,
        }

    def _safety(self, work: Work) -> str:
        facts = work.record.facts
        if facts["name"] not in self.server.oids(facts["name"]):
            return f"there is no database {facts['name']} now: nothing to save"
        if facts.get("torn"):
            return f"what stands there is half-restored; its safety backup is {facts['torn']}"
        labels = {SAFETY_LABEL: "before-restore", "run": work.record.run}
        report = back_up(self.repository, self.safety(), progress=work.progress, labels=labels)
        lacking = "; ".join(
            f"{problem.path.decode(errors='replace')}: {problem.reason}"
            for problem in report.problems[:_NAMED]
        )
        if lacking and facts.get("drop_first"):
            raise StrongroomError(
                f"The safety backup {report.snapshot.id[:12]} lacks what would be dropped: {lacking}.",
                do="Mend what is named.",
            )
        if lacking:
            work.warn(f"the safety backup lacks {lacking}")
        work.note(safety=report.snapshot.id)
        return f"backup {report.snapshot.id[:12]}, {show_size(report.snapshot.size)}"

    def _create(self, work: Work) -> str:
        facts = work.record.facts
        left = self.server.drop_unfinished(self._target(facts))
        dropped = self.server.drop(self._target(facts))
        parts = [f"dropped {self._target(facts)}"] if dropped else []
        parts += [f"cleared {left} unfinished"] if left else []
        return ", ".join(parts) or "nothing in the way"

    def _restore(self, work: Work) -> str:
        facts = work.record.facts
        target = self._target(facts)
        self.server.drop_unfinished(target)
        outcome = restore(
            self.repository, self.snapshot, self.sink(target, True), progress=work.progress
        )
        work.note(
            beside_oid=self.server.oids(target)[target],
            problems=[f"{p.path.decode(errors='replace')}: {p.reason}" for p in outcome.problems],
        )
        counted = f"{outcome.facts['tables']} tables, {outcome.facts['rows']:,} rows as recorded"
        more = f", {len(outcome.problems)} problems" if outcome.problems else ""
        return counted + more

    def _migrate(self, work: Work) -> str:
        command, facts = self.table.migrate, work.record.facts
        assert command is not None  # the step is skipped otherwise
        target = self._target(facts)
        # What a killed run started may still be at work there.
        self.server.disconnect(target)
        beside = target != facts["name"] and facts["name"] in self.server.oids(facts["name"])
        before = self.server.definitions(facts["name"]) if beside else ""
        argv, environ = fill_in(command, "database", target)
        self.run(argv, command.cwd, {**self.server.environment(target), **environ})
        if beside and self.server.definitions(facts["name"]) != before:
            raise StrongroomError(
                f"The migrations changed {facts['name']!r}, which is in use, and not {target!r}.",
                do="Let the command take its database from $DATABASE_URL, $PGDATABASE or "
                "{database} in its argv or env.",
            )
        return f"in {target}"

    def _integrity(self, work: Work) -> str:
        facts = work.record.facts
        target = self._target(facts)
        _, recorded = choose_database(
            self.repository.open_snapshot(self.snapshot).facts, self.recorded
        )
        tables = {(t["schema"], t["name"]): int(t["rows"]) for t in recorded["tables"]}
        found = self.server.counts(target, tables)
        wrong = [
            f"{schema}.{name} has {'no table' if found[schema, name] is None else found[schema, name]}"
            f" instead of {rows}"
            for (schema, name), rows in tables.items()
            if found[schema, name] != rows
        ]
        if wrong and self.table.migrate is None:
            raise Damaged(f"Rows are not as recorded: {'; '.join(wrong[:_NAMED])}.")
        for text in wrong:
            work.warn(f"after the migrations {text}")
        answers = self.server.check(target, self.table.checks)
        rows = f"{len(tables) - len(wrong)} of {len(tables)} tables as recorded"
        return "; ".join([rows, *answers])

    def _swap(self, work: Work) -> str:
        facts, record = work.record.facts, work.record
        name, beside, old = facts["name"], facts["beside"], facts["old"]
        if self.server.oids(name).get(name) != facts["beside_oid"]:
            if old not in record.kept:
                record.kept.append(old)
            work.note(swapping=True)
            self.server.swap(name, beside, old)
        if old not in self.server.oids(old):
            record.kept = [each for each in record.kept if each != old]
            return f"{name} is the restored database; there was none before"
        return f"{name} is the restored database; the one before is kept as {old}"

    def _target(self, facts: Mapping[str, Any]) -> str:
        return str(facts["name"] if facts.get("drop_first") else facts["beside"])

    # -- what to say -----------------------------------------------------------------------

    def advice(self, record: Record, condition: Condition) -> tuple[str, str]:
        """What state things are in, and how to go on or back."""
        facts = record.facts
        name = facts["name"]
        on, services = go_on(record), stopped(record)
        back = way_back(record)
        if services and facts.get("safety"):
            back += f" Then start the services: {show_commands(self.table.start)}."
        if condition == "untouched":
            return untouched_advice(record, f"The database in use, {name!r},", self.table.start)
        if condition == "between" and not facts.get("drop_first"):
            return (
                f"{name!r} is whole: either still the old database or already the restored one, "
                f"both complete.{services}",
                f"{on} It finds out which.",
            )
        if condition == "between":
            return (
                f"{name!r} is not complete, or not verified.{services} They must not be started.",
                f"{on} {back}",
            )
        return (
            f"{name!r} is the restored and verified database; services may not be up.",
            f"{on} {back}",
        )


def way_back(record: Record) -> str:
    """The command that undoes a run, once something in use was changed."""
    facts = record.facts
    safety, name = facts.get("safety"), facts["name"]
    if safety:
        return (
            f"Go back: `strongroom restore {record.source} --backup {str(safety)[:12]} "
            f"--to {shlex.quote(name)} --replace --yes`."
        )
    if not facts.get("drop_first"):
        return f"The database before is {facts['old']!r}, to be renamed back."
    return "No safety backup was made: there is no way back."


def fill_in(command: Command, word: str, value: str) -> tuple[list[str], dict[str, str]]:
    """Words and environment of a command with `{word}` filled in."""
    mark = "{" + word + "}"
    argv = [part.replace(mark, value) for part in command.argv]
    return argv, {name: text.replace(mark, value) for name, text in command.env.items()}


def show_command(command: Command, word: str, value: str) -> str:
    """A command as it would be typed; of its environment the names only."""
    argv, environ = fill_in(command, word, value)
    names = f"{', '.join(sorted(environ))} set; " if environ else ""
    where = f"{names}in {command.cwd}" if command.cwd else names.rstrip("; ")
    return shlex.join(argv) + (f"  ({where})" if where else "")
