"""restore."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from strongroom import wiring
from strongroom.cli.desk import Desk, ask
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import path_fields, show_name, show_text
from strongroom.cli.places import clean_path
from strongroom.cli.points import chosen
from strongroom.cli.progress import listening
from strongroom.cli.records import ID_SHOWN, show_moment, snapshot_body
from strongroom.cli.verbs.recovery import (
    NO_TARGET,
    WHOLE_CLUSTER,
    ClusterFlags,
    TargetFlags,
)
from strongroom.cli.verbs.source import describe
from strongroom.config.model import FilesTable, PostgresTable
from strongroom.config.secrets import has_password
from strongroom.errors import Damaged, Incomplete, Interrupted, Refused, StrongroomError, UsageError
from strongroom.files.rclone.tool import is_remote
from strongroom.rules.sizes import show_seconds, show_size

if TYPE_CHECKING:
    from strongroom.repository.catalogue import Snapshot
    from strongroom.repository.ports import Outcome, Sink
    from strongroom.repository.repository import Repository

PROBLEMS_IN_RESULT = 1000
_FILES = Group("Files", sort_key=20)
_DATABASES = Group("Databases", sort_key=21)
_RUNBOOK = Group("Runbook", sort_key=22)
_DEFAULT = Everywhere()


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class FileFlags:
    """How a tree of files is restored."""

    path: Annotated[list[str] | None, Parameter(alias="-p", group=_FILES)] = None
    """Only this path and what is below it; may be given several times."""
    force: Annotated[bool, Parameter(group=_FILES)] = False
    """Restore into a folder that is not empty; what else is in it stays."""
    in_place: Annotated[bool, Parameter(group=_FILES)] = False
    """Bring the folder of the source itself back to the backup."""

    def given(self) -> list[str]:
        """The flags that were given."""
        names = {"--path": self.path, "--force": self.force, "--in-place": self.in_place}
        return [name for name, value in names.items() if value]


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class DatabaseFlags:
    """How a database is restored."""

    database: Annotated[str | None, Parameter(group=_DATABASES)] = None
    """Which database, where the backup holds several."""
    schema: Annotated[list[str] | None, Parameter(group=_DATABASES)] = None
    """Only this schema; may be given several times."""
    table: Annotated[list[str] | None, Parameter(group=_DATABASES)] = None
    """Only this table, schema.table; may be given several times."""
    globals: Annotated[bool, Parameter(group=_DATABASES)] = False
    """Create roles that are missing on the server first."""
    locale: Annotated[str | None, Parameter(group=_DATABASES)] = None
    """A locale in place of the recorded one, where the server lacks that."""
    replace: Annotated[bool, Parameter(group=_DATABASES)] = False
    """Replace an existing database; it goes only when the new one is complete and verified. With
    a target of rclone: delete there what the backup does not have, when all else is there."""
    yes: Annotated[bool, Parameter(group=_DATABASES)] = False
    """With --replace: do not ask for its name."""

    def given(self) -> list[str]:
        """The flags that were given."""
        names = {
            "--database": self.database,
            "--schema": self.schema,
            "--table": self.table,
            "--globals": self.globals,
            "--locale": self.locale,
            "--replace": self.replace,
        }
        return [name for name, value in names.items() if value]


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class RunbookFlags:
    """How the whole procedure is carried out."""

    runbook: Annotated[bool, Parameter(group=_RUNBOOK)] = False
    """Bring back what the source itself is, as a checklist: stop services, verify, safety backup,
    restore beside, migrate, verify, change names, start services, measure."""
    resume: Annotated[bool, Parameter(group=_RUNBOOK)] = False
    """Go on with the run that did not come to its end."""
    start_over: Annotated[bool, Parameter(group=_RUNBOOK)] = False
    """Give that run up and begin anew."""
    no_safety_backup: Annotated[bool, Parameter(group=_RUNBOOK)] = False
    """Do not back up the present database first."""
    drop_first: Annotated[bool, Parameter(group=_RUNBOOK)] = False
    """Drop the present database before the restore, for want of room; needs its safety backup."""
    drop_old: Annotated[bool, Parameter(group=_RUNBOOK)] = False
    """Give up what finished runs kept of before, and do nothing else."""

    @property
    def anew(self) -> bool:
        """Whether all of it is done, so that its time tells something."""
        return not (self.resume or self.drop_old)

    def given(self) -> list[str]:
        """The flags beside --runbook that were given."""
        names = {
            "--resume": self.resume,
            "--start-over": self.start_over,
            "--no-safety-backup": self.no_safety_backup,
            "--drop-first": self.drop_first,
            "--drop-old": self.drop_old,
        }
        return [name for name, value in names.items() if value]


_ALL_FILES, _WHOLE_DATABASE, _NO_RUNBOOK = FileFlags(), DatabaseFlags(), RunbookFlags()


def restore(
    source: str,
    /,
    *,
    to: str | None = None,
    backup: Annotated[str | None, Parameter(alias="-b")] = None,
    at: str | None = None,
    no_owner: bool = False,
    dry_run: bool = False,
    files: FileFlags = _ALL_FILES,
    databases: DatabaseFlags = _WHOLE_DATABASE,
    target: TargetFlags = NO_TARGET,
    cluster: ClusterFlags = WHOLE_CLUSTER,
    runbook: RunbookFlags = _NO_RUNBOOK,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Restore a backup, and verify what was written.

    Parameters
    ----------
    source
        The source whose backup it is; it need not be configured here.
    to
        Where to: a new folder, or rclone:remote:path for one in a cloud; for a database its new
        name, or that of an empty one which then stays the one it is, or a libpq URL or
        "key=value" string with that dbname (a password belongs in $PGPASSWORD or ~/.pgpass); for a
        cluster, backed up physically, a data directory.
    backup
        Which backup: the beginning of its id, `latest` or `oldest`. Otherwise the newest.
    at
        The newest backup not after this time: 2026-11-23T02:13:05Z, 02:13, "20 minutes ago". A
        cluster is recovered to that very time.
    no_owner
        Leave everything to the user, or the role, who restores.
    dry_run
        Check everything that can be checked and say what would be done; change nothing.
    """
    desk = Desk(everywhere)
    if runbook.runbook:
        from strongroom.cli.verbs.runbook import Wanted, run_book  # noqa: PLC0415

        wanted = Wanted(source, to, backup, at, dry_run, not no_owner, files, databases, runbook)
        with desk.recorded("restore", source=source, what=f"restore {source} in place") as run:
            run.nothing, run.detail = dry_run, {"runbook": True, "whole": runbook.anew}
            return run_book(desk, wanted, run)
    if runbook.given():
        raise UsageError(f"{runbook.given()[0]} goes with --runbook.", do="Give both.")
    what = f"restore {source} to {to or 'itself'}"
    with (
        desk.recorded("restore", source=source, what=what) as run,
        desk.repository() as repository,
    ):
        run.nothing = dry_run
        if _is_cluster(repository, source, (files, databases), (target, cluster)):
            from strongroom.cli.verbs.recovery import Wanted as OfCluster  # noqa: PLC0415
            from strongroom.cli.verbs.recovery import restore_cluster  # noqa: PLC0415

            owner = not no_owner
            whole = OfCluster(source, to, at, backup, owner, dry_run, target, cluster)
            return restore_cluster(desk, repository, whole, run)
        snapshot = chosen(desk, repository, source, backup=backup, at=at)
        run.of(snapshot)
        remote = _remote(desk, snapshot, to, files)
        _refuse_foreign(snapshot, files, databases, remote=remote is not None)
        if remote is not None:
            if databases.replace and not databases.yes and not dry_run:
                _confirm(desk, remote, "folder")
            sink = _remote_sink(desk, remote, files, replace=databases.replace)
        elif snapshot.kind != "postgres":
            sink = _file_sink(desk, snapshot, to, files, owner=not no_owner)
        else:
            if databases.replace and not databases.yes and not dry_run:
                _confirm(desk, _target(desk, snapshot, to).database)
            sink = _database_sink(desk, snapshot, to, databases, owner=not no_owner)
        if dry_run:
            from strongroom.operations.restore import plan  # noqa: PLC0415

            return _tell_plan(desk, snapshot, plan(repository, snapshot, sink))
        from strongroom.operations.restore import restore as bring_back  # noqa: PLC0415

        desk.output.note(
            f"Restoring backup {snapshot.id[:ID_SHOWN]} of {show_text(snapshot.source)}, "
            f"{show_moment(snapshot.time)}"
        )
        began = wiring.steady()
        try:
            with listening(desk.output) as progress:
                outcome = bring_back(repository, snapshot, sink, progress=progress)
        except Interrupted as fault:
            if fault.means == Interrupted.means:
                fault.means = "The target is not complete; the backup is untouched."
            fault.do = "Run the same command again"
            if snapshot.kind != "postgres":
                fault.do += ", into a new target or with --force"
            fault.do += "."
            raise
        run.files, run.size = outcome.files, outcome.size
        part = files.path or databases.schema or databases.table
        run.problems, run.detail["whole"] = len(outcome.problems), not part
        return _tell_outcome(desk, snapshot, outcome, wiring.steady() - began)


def _is_cluster(
    repository: Repository,
    source: str,
    of_others: tuple[FileFlags, DatabaseFlags],
    of_clusters: tuple[TargetFlags, ClusterFlags],
) -> bool:
    """Is a cluster restored? UsageError when flags of another kind were given with it."""
    from strongroom.operations.points import is_cluster  # noqa: PLC0415

    cluster = is_cluster(repository, source)
    foreign = [flag for flags in (of_others if cluster else of_clusters) for flag in flags.given()]
    if foreign:
        raise UsageError(
            f"{source} is {'' if cluster else 'not '}backed up physically; {', '.join(foreign)} "
            f"{'do' if len(foreign) > 1 else 'does'} not apply to it.",
            do="`strongroom restore --help` shows which flags belong to which kind"
            + (", `strongroom table --help` how to have one table." if cluster else "."),
        )
    return cluster


def _refuse_foreign(
    snapshot: Snapshot, files: FileFlags, databases: DatabaseFlags, *, remote: bool
) -> None:
    """UsageError for flags that belong to the other kind of backup."""
    foreign = files.given() if snapshot.kind == "postgres" else databases.given()
    if remote:
        foreign = [flag for flag in foreign if flag != "--replace"]
    if foreign:
        raise UsageError(
            f"{snapshot.source} is a backup of kind {snapshot.kind}; "
            f"{', '.join(foreign)} {'do' if len(foreign) > 1 else 'does'} not apply to it.",
            do="`strongroom restore --help` shows which flags belong to which kind.",
        )


def _remote(desk: Desk, snapshot: Snapshot, to: str | None, flags: FileFlags) -> str | None:
    """The target in a cloud, if the files go there."""
    if snapshot.kind == "postgres":
        return None
    if to is not None:
        return to if is_remote(to) else None
    table = desk.configuration.source.get(snapshot.source) if flags.in_place else None
    return table.path if isinstance(table, FilesTable) and is_remote(table.path) else None


def _remote_sink(desk: Desk, remote: str, flags: FileFlags, *, replace: bool) -> Sink:
    return wiring.remote_sink(
        remote,
        configuration=desk.configuration,
        environ=desk.environ,
        cache_dir=desk.cache_dir,
        paths=[clean_path(path) for path in flags.path or ()],
        force=flags.force or flags.in_place,
        replace=replace,
    )


def _file_sink(
    desk: Desk, snapshot: Snapshot, to: str | None, flags: FileFlags, *, owner: bool
) -> Sink:
    if flags.in_place:
        table = desk.source_table(snapshot.source)
        if to is not None or isinstance(table, PostgresTable):
            raise UsageError(
                "--in-place restores into the folder of the source itself.",
                do="Give --in-place or --to, not both.",
            )
        to = table.path
    if not to:
        raise UsageError("Where to?", do="Give `--to FOLDER`, a new one.")
    return wiring.file_sink(
        os.fsencode(to),
        paths=[clean_path(path) for path in flags.path or ()],
        force=flags.force,
        in_place=flags.in_place,
        owner=owner,
    )


def _target(desk: Desk, snapshot: Snapshot, to: str | None) -> wiring.DatabaseTarget:
    if not to:
        raise UsageError("Where to?", do="Give `--to NAME`, a new or an empty database.")
    if has_password(to):
        raise UsageError(
            "A password on the command line is seen by everybody on this machine.",
            do="Take it out of --to; put it into $PGPASSWORD or ~/.pgpass, and change it.",
        )
    table = desk.configuration.source.get(snapshot.source)
    return wiring.find_target(to, table if isinstance(table, PostgresTable) else None)


def _database_sink(
    desk: Desk, snapshot: Snapshot, to: str | None, flags: DatabaseFlags, *, owner: bool
) -> Sink:
    return wiring.database_sink(
        _target(desk, snapshot, to),
        environ=desk.environ,
        database=flags.database,
        schemas=flags.schema or (),
        tables=flags.table or (),
        global_objects=flags.globals,
        owner=owner,
        locale=flags.locale,
        replace=flags.replace,
        jobs=desk.jobs,
    )


def _confirm(desk: Desk, database: str, kind: str = "database") -> None:
    """Have the name typed, by a person who is there."""
    if not desk.may_ask():
        raise Refused(
            f"--replace gives up what the {kind} {database!r} holds now; nobody is there to ask.",
            do="If that is what you want, add --yes.",
        )
    shown = show_name(database)
    if ask(f"This replaces the {kind} {shown}. Type its name to go on: ") != database:
        raise Refused("The name that was typed is another one.", do="Run it again and type it.")


def _tell_plan(desk: Desk, snapshot: Snapshot, plan: Mapping[str, Any]) -> int:
    desk.output.line(
        f"Would restore backup {snapshot.id[:ID_SHOWN]} of {show_text(snapshot.source)}, "
        f"{show_moment(snapshot.time)}:"
    )
    desk.output.lines(describe(plan))
    body = {"dry_run": True, "snapshot": snapshot_body(snapshot), "plan": dict(plan)}
    return desk.output.finish("restore", body, None)


def _tell_outcome(desk: Desk, snapshot: Snapshot, outcome: Outcome, seconds: float) -> int:
    rate = show_size(outcome.size / max(seconds, 1e-9))
    desk.output.line(
        f"{show_text(snapshot.source)}: restored and verified {outcome.files:,} files, "
        f"{show_size(outcome.size)} in {show_seconds(seconds)} ({rate}/s)"
    )
    desk.output.lines(describe(outcome.facts))
    body = {
        "dry_run": False,
        "snapshot": snapshot_body(snapshot),
        "files": outcome.files,
        "size": outcome.size,
        "seconds": round(seconds, 3),
        "problems": _problems(outcome),
        "facts": dict(outcome.facts),
    }
    return desk.output.finish("restore", body, _verdict(outcome, snapshot.kind))


_HINTS = {
    "files": "what is not written is not there. Owners and devices need root (or --no-owner); "
    "attributes need a file system that knows them.",
    "postgres": "the rows are all there. Owners and rights need their roles (--globals makes them, "
    "--no-owner does without); the rest has to be mended by hand.",
}


def _verdict(outcome: Outcome, kind: str) -> StrongroomError | None:
    """Damage weighs more than what could not be set."""
    damaged = int(outcome.facts.get("damaged", 0))
    if damaged:
        return Damaged(
            f"{damaged} file{'s' * (damaged != 1)} of the backup could not be had whole.",
            means="Everything else was restored and verified; nothing wrong was written.",
        )
    count = len(outcome.problems)
    if not count:
        return None
    return Incomplete(
        f"The restore is complete but for {count} thing{'s' * (count != 1)} "
        f"that {'are' if count != 1 else 'is'} not as in the backup.",
        do=f"Read the list above: {_HINTS.get(kind, 'it names everything.')}",
    )


def _problems(outcome: Outcome) -> Sequence[Mapping[str, Any]]:
    return [
        {**path_fields(problem.path), "reason": problem.reason}
        for problem in outcome.problems[:PROBLEMS_IN_RESULT]
    ]
