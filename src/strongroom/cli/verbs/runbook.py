"""restore --runbook: the seed's procedure as a checklist."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from strongroom import wiring
from strongroom.cli.desk import Desk, ask
from strongroom.cli.names import show_name, show_text
from strongroom.cli.points import chosen
from strongroom.cli.progress import listening
from strongroom.cli.records import ID_SHOWN, show_moment, snapshot_body
from strongroom.config.model import FilesTable, PostgresTable, SourceTable
from strongroom.errors import Incomplete, Refused, StrongroomError, UsageError
from strongroom.files.rclone.tool import is_remote
from strongroom.rules.sizes import show_seconds

if TYPE_CHECKING:
    from strongroom.cli.verbs.restore import DatabaseFlags, FileFlags, RunbookFlags
    from strongroom.operations.recording import Draft
    from strongroom.operations.runbook import Journal, Record
    from strongroom.operations.runbook_cloud import CloudRunbook
    from strongroom.operations.runbook_database import DatabaseRunbook
    from strongroom.operations.runbook_vault import VaultRunbook
    from strongroom.repository.catalogue import Snapshot
    from strongroom.repository.repository import Repository
    from strongroom.rules.runbook import Book, Step

    Procedure = DatabaseRunbook | VaultRunbook | CloudRunbook

PROMISE_MISSED = 10
_MARKS = {"pending": "[ ]", "running": "[…]", "done": "[x]", "skipped": "[-]", "failed": "[!]"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for."""

    source: str
    to: str | None
    backup: str | None
    at: str | None
    dry_run: bool
    owner: bool
    files: FileFlags
    databases: DatabaseFlags
    flags: RunbookFlags


@dataclass(frozen=True, slots=True)
class _Run:
    """What every word of a runbook has at hand; `last` is the run before, finished or not."""

    desk: Desk
    wanted: Wanted
    table: SourceTable
    repository: Repository
    journal: Journal
    last: Record | None
    told: Draft

    @property
    def unfinished(self) -> Record | None:
        """The run before, if it did not come to its end."""
        return self.last if self.last is not None and self.last.finished is None else None

    def choose(self) -> Snapshot:
        """The backup that is asked for."""
        return _choose(self.desk, self.wanted, self.repository)

    def procedure(self, snapshot: Snapshot) -> Procedure:
        """What restores it."""
        return _procedure(self.desk, self.wanted, self.table, self.repository, snapshot)


def run_book(desk: Desk, wanted: Wanted, told: Draft) -> int:
    """Begin a run, go on with one, or give up what runs kept."""
    from strongroom.operations.runbook import Journal  # noqa: PLC0415

    table = desk.source_table(wanted.source)
    _refuse_words(wanted, table)
    with desk.repository() as repository:
        journal = Journal(
            os.path.join(
                desk.cache_dir,
                "runbook",
                f"{repository.identity.id.hex()}-{wanted.source}.json",
            )
        )
        if wanted.dry_run:
            return _dry_run(_Run(desk, wanted, table, repository, journal, journal.load(), told))
        with journal.held():
            run = _Run(desk, wanted, table, repository, journal, journal.load(), told)
            if wanted.flags.drop_old:
                return _drop_old(run)
            return _resume(run) if wanted.flags.resume else _begin(run)


def _refuse_words(wanted: Wanted, table: SourceTable) -> None:
    flags = wanted.flags
    if wanted.to is not None:
        raise UsageError(
            "--runbook brings back the source itself, under its own name.",
            do="Leave out --to; without --runbook it restores anywhere.",
        )
    foreign = wanted.files.given()
    if isinstance(table, FilesTable):
        foreign += wanted.databases.given()
        foreign += ["--drop-first"] * flags.drop_first
        foreign += ["--no-safety-backup"] * flags.no_safety_backup
    elif wanted.databases.schema or wanted.databases.table or wanted.databases.replace:
        foreign += ["--schema, --table and --replace"]
    if foreign:
        raise UsageError(
            f"{', '.join(foreign)} cannot be given with --runbook of {wanted.source}.",
            do="A runbook restores the whole source, and keeps what was there before.",
        )
    if flags.resume and (flags.start_over or flags.drop_first or flags.no_safety_backup):
        raise UsageError("--resume goes on as the run was begun.", do="Give --resume alone.")
    if flags.drop_first and flags.no_safety_backup:
        raise UsageError(
            "--drop-first without a safety backup would leave no way back.",
            do="Give one of the two.",
        )


# -- begin, resume, drop ---------------------------------------------------------------------


def _begin(run: _Run) -> int:
    from strongroom.operations.runbook import Record  # noqa: PLC0415

    desk, wanted, last = run.desk, run.wanted, run.unfinished
    if last is not None and not wanted.flags.start_over:
        raise _refuse_unfinished(last)
    snapshot = run.choose()
    procedure = run.procedure(snapshot)
    moment = desk.now
    facts = _facts(procedure, wanted, last, moment)
    drop_first = wanted.flags.drop_first
    procedure.preflight(facts, drop_first=drop_first, ours=last is not None)
    if drop_first and not wanted.databases.yes:
        _confirm(desk, facts["name"])
    if last is not None:
        desk.output.note(f"Giving up the run of {show_moment(last.began)}.")
        procedure.forget(last)
    book = procedure.book(facts, safety=not wanted.flags.no_safety_backup, drop_first=drop_first)
    record = Record(
        secrets.token_hex(4),
        wanted.source,
        snapshot.kind,
        snapshot.id,
        moment,
        book,
        facts,
        list(run.last.kept) if run.last is not None else [],
    )
    return _carry_out(desk, procedure, record, run, snapshot)


def _facts(
    procedure: Procedure, wanted: Wanted, last: Record | None, moment: Any
) -> dict[str, Any]:
    """Names of a new run, and what it has to know of `last`, the one that is given up."""
    facts = procedure.names(moment)
    facts["drop_first"] = wanted.flags.drop_first
    if last is not None and (last.facts.get("drop_first") or last.facts.get("in_place")):
        torn = last.book.condition == "between"
        if torn and (safety := last.facts.get("torn") or last.facts.get("safety")):
            # What stands under the name is no state that anybody wants back.
            facts["torn"] = facts["safety"] = safety
    return facts


def _resume(run: _Run) -> int:
    from strongroom.operations import browse  # noqa: PLC0415

    desk, wanted, last = run.desk, run.wanted, run.unfinished
    if last is None:
        raise Refused(
            f"There is no run of {wanted.source} to go on with.",
            do="Leave out --resume to begin one.",
        )
    snapshot = browse.find_snapshot(run.repository, wanted.source, backup=last.snapshot)
    given = wanted.backup is not None or wanted.at is not None
    if given and run.choose().id != last.snapshot:
        raise UsageError(
            f"The run that is to go on restores backup {last.snapshot[:ID_SHOWN]}.",
            do="Leave out --backup and --at, or begin anew with --start-over.",
        )
    procedure = run.procedure(snapshot)
    last.book = last.book.resumed()
    procedure.settle(last)
    desk.output.note(f"Going on with the run of {show_moment(last.began)}.")
    return _carry_out(desk, procedure, last, run, snapshot)


def _drop_old(run: _Run) -> int:
    from strongroom.operations import browse  # noqa: PLC0415

    desk, last = run.desk, run.last
    if run.unfinished is not None:
        raise _refuse_unfinished(run.unfinished)
    dropped = []
    if last is not None and last.kept:
        snapshot = browse.find_snapshot(run.repository, run.wanted.source, backup=last.snapshot)
        procedure = run.procedure(snapshot)
        for name in list(last.kept):
            if procedure.drop_kept(name):
                dropped.append(name)
                desk.output.line(f"dropped {show_name(name)}")
            last.kept.remove(name)
            run.journal.save(last)
    if not dropped:
        desk.output.line("nothing is kept of before")
    return desk.output.finish("restore", {"runbook": True, "dropped": dropped}, None)


def _refuse_unfinished(last: Record) -> Refused:
    step = last.book.resumed().next
    begun = last.book.next
    failed = begun is not None and begun.state == "failed"
    why = f": {begun.told}" if begun is not None and failed else ""
    return Refused(
        f"A run of {last.source}, begun {show_moment(last.began)}, did not come to its end; it "
        f"stopped at “{begun.title if begun else step.title if step else ''}”{why}",
        means="Nothing was changed by this command; "
        + {
            "untouched": f"{last.facts['name']} is as it was.",
            "between": f"{last.facts['name']} may be neither the old nor the new.",
            "whole": f"{last.facts['name']} is restored; services may not be up.",
        }[last.book.condition],
        do=f"Go on: `strongroom restore {last.source} --runbook --resume`. "
        f"Or begin anew: `strongroom restore {last.source} --runbook --start-over`."
        + ("" if last.book.condition == "untouched" else f" {_way_back(last)}"),
    )


def _way_back(record: Record) -> str:
    from strongroom.operations import (  # noqa: PLC0415
        runbook_cloud,
        runbook_database,
        runbook_vault,
    )

    if record.facts.get("in_place"):
        return runbook_cloud.way_back(record)
    if record.kind == "files":
        return runbook_vault.way_back(record)
    return runbook_database.way_back(record)


# -- what is restored, by whom ---------------------------------------------------------------


def _choose(desk: Desk, wanted: Wanted, repository: Repository) -> Snapshot:
    """The backup that is named, else the newest that is no safety backup of a runbook.

    A safety backup is of what was to be replaced: nobody means it by "the newest".
    """
    from strongroom.operations import browse  # noqa: PLC0415
    from strongroom.operations.runbook_database import SAFETY_LABEL  # noqa: PLC0415

    found = chosen(desk, repository, wanted.source, backup=wanted.backup, at=wanted.at)
    word = wanted.backup in (None, "latest")
    if not word or SAFETY_LABEL not in found.labels:
        return found
    listed = browse.list_snapshots(repository, wanted.source).snapshots
    for snapshot in reversed(listed):
        if snapshot.time <= found.time and SAFETY_LABEL not in snapshot.labels:
            desk.output.note(
                f"Passing over {found.id[:ID_SHOWN]}, a safety backup; --backup would name it."
            )
            return snapshot
    return found


def _procedure(
    desk: Desk, wanted: Wanted, table: SourceTable, repository: Repository, snapshot: Snapshot
) -> Procedure:
    told = desk.output.note if desk.flags.verbose else _silent
    if isinstance(table, PostgresTable):
        flags = wanted.databases
        return wiring.database_runbook(
            table,
            snapshot,
            repository=repository,
            environ=desk.environ,
            tell=told,
            database=flags.database,
            global_objects=flags.globals,
            owner=wanted.owner,
            locale=flags.locale,
            jobs=desk.jobs,
        )
    if is_remote(table.path):
        return wiring.cloud_runbook(
            table,
            snapshot,
            repository=repository,
            configuration=desk.configuration,
            environ=desk.environ,
            cache_dir=desk.cache_dir,
            tell=told,
            jobs=desk.jobs,
        )
    return wiring.vault_runbook(
        table,
        snapshot,
        repository=repository,
        environ=desk.environ,
        tell=told,
        owner=wanted.owner,
    )


def _silent(line: str) -> None:
    del line


def _confirm(desk: Desk, name: str) -> None:
    """Have the name typed before a database is dropped, by a person who is there."""
    if not desk.may_ask():
        raise Refused(
            f"--drop-first drops {name!r} before it is restored; nobody is there to ask.",
            do="If that is what you want, add --yes.",
        )
    if ask(f"This drops {show_name(name)} first. Type its name to go on: ") != name:
        raise Refused("The name that was typed is another one.", do="Run it again and type it.")


# -- carrying out, and telling ---------------------------------------------------------------


def _dry_run(run: _Run) -> int:
    desk, wanted, last = run.desk, run.wanted, run.unfinished
    if last is not None and not (wanted.flags.resume or wanted.flags.start_over):
        raise _refuse_unfinished(last)
    if last is not None and wanted.flags.resume:
        book, facts = last.book.resumed(), last.facts
        snapshot = chosen(desk, run.repository, wanted.source, backup=last.snapshot, at=None)
    else:
        snapshot = run.choose()
        procedure = run.procedure(snapshot)
        facts = _facts(procedure, wanted, last, desk.now)
        drop_first = wanted.flags.drop_first
        procedure.preflight(facts, drop_first=drop_first, ours=last is not None)
        book = procedure.book(
            facts, safety=not wanted.flags.no_safety_backup, drop_first=drop_first
        )
    desk.output.line(f"Would restore {_title(snapshot)} as {show_name(facts['name'])}:")
    for step in book.steps:
        desk.output.line(_line(book, step))
        desk.output.lines(f"           $ {show_text(text)}" for text in step.commands)
    rto = run.table.promise.rto
    body = {
        "dry_run": True,
        "runbook": True,
        "snapshot": snapshot_body(snapshot),
        "steps": [step.body() for step in book.steps],
        "rto_seconds": None if rto is None else rto.approximate_seconds,
    }
    return desk.output.finish("restore", body, None)


def _carry_out(
    desk: Desk, procedure: Procedure, record: Record, run: _Run, snapshot: Snapshot
) -> int:
    from strongroom.operations.runbook import Work, carry_out  # noqa: PLC0415
    from strongroom.rules.promises import measure  # noqa: PLC0415

    journal = run.journal
    run.told.of(snapshot)
    run.told.detail |= {"target": str(record.facts["name"]), "run": record.run}
    name = show_name(record.facts["name"])
    desk.output.line(f"Restoring {_title(snapshot)} as {name}")
    for step in record.book.steps:
        if step.over:
            desk.output.line(_line(record.book, step))

    def tell(record: Record, step: Step) -> None:
        desk.output.event("step", step.body())
        if step.state == "running":
            desk.output.note(f"{_number(record.book, step)} {step.title} …")
        else:
            desk.output.line(_line(record.book, step))
            desk.output.stdout.flush()

    warnings: list[str] = []

    def warn(text: str) -> None:
        warnings.append(text)
        desk.output.warning(text)

    journal.save(record)
    try:
        with listening(desk.output) as progress:
            carry_out(
                Work(record, journal, progress, warn),
                procedure.actions(),
                advice=procedure.advice,
                tell=tell,
                now=wiring.now,
                steady=wiring.steady,
            )
    except StrongroomError as fault:
        for step in record.book.steps:
            if step.state == "pending":
                desk.output.line(_line(record.book, step))
        return desk.output.finish("restore", _body(record, snapshot, warnings), fault)
    assert record.finished is not None
    measured = measure(record.began, procedure.rto, now=record.finished)
    desk.output.line(f"{name} is restored and verified: {measured.text}")
    if record.kept:
        kept = ", ".join(map(show_name, record.kept))
        desk.output.line(
            f"Kept of before: {kept}; `strongroom restore {record.source} --runbook --drop-old` "
            "gives it up"
        )
    desk.output.line(_way_back(record))
    run.told.detail |= {"safety": str(record.facts.get("safety") or ""), "kept": list(record.kept)}
    body = {**_body(record, snapshot, warnings), "missed": measured.missed}
    problems = record.facts.get("problems") or []
    if problems:
        for text in problems:
            desk.output.warning(text)
        count = len(problems)
        lacking = Incomplete(
            f"The restore is complete but for {count} thing{'s' * (count != 1)} "
            f"that {'are' if count != 1 else 'is'} not as in the backup."
        )
        return desk.output.finish("restore", body, lacking)
    if measured.missed:
        run.told.missed, run.told.exit = True, PROMISE_MISSED
        desk.output.event("result", {"verb": "restore", "exit": PROMISE_MISSED, **body})
        return PROMISE_MISSED
    return desk.output.finish("restore", body, None)


def _body(record: Record, snapshot: Snapshot, warnings: list[str]) -> dict[str, Any]:
    return {
        "dry_run": False,
        "runbook": True,
        "run": record.run,
        "snapshot": snapshot_body(snapshot),
        "target": record.facts["name"],
        "condition": record.book.condition,
        "steps": [step.body() for step in record.book.steps],
        "began": record.began.isoformat(),
        "finished": None if record.finished is None else record.finished.isoformat(),
        "seconds": None
        if record.finished is None
        else round((record.finished - record.began).total_seconds(), 3),
        "safety_backup": record.facts.get("safety"),
        "kept": list(record.kept),
        "warnings": list(warnings),
        "problems": record.facts.get("problems") or [],
    }


def _title(snapshot: Snapshot) -> str:
    return (
        f"backup {snapshot.id[:ID_SHOWN]} of {show_text(snapshot.source)}, "
        f"{show_moment(snapshot.time)},"
    )


def _number(book: Book, step: Step) -> str:
    return f"{book.steps.index(step) + 1}/{len(book.steps)}"


def _line(book: Book, step: Step) -> str:
    number = [each.key for each in book.steps].index(step.key) + 1
    took = show_seconds(step.seconds) if step.state in ("done", "failed") else ""
    told = f"  {show_text(step.told)}" if step.told else ""
    head = f"{_MARKS[step.state]} {number:>2}  {show_text(step.title)}"
    return f"{head:<60} {took:>9}{told}".rstrip()
