"""A PostgreSQL database as a Sink: definitions, data side by side, then what hangs on the data.

Rule of this file: a restore fills a new database under a name that says "unfinished" (`target.py`),
counts every table and compares it with what was counted in the backup's own snapshot, and only then
gives it the name that was asked for. What fails in between leaves nothing behind but the message.

    pre-data (schema.dump)  →  data of every stream, largest first, and what can be built on it
    (`pipeline.py`)  →  the rest of post-data (schema.dump, -j)  →  owner, rights, settings
    →  ANALYZE and counts where they are still to do, sequences, inventory  →  the name
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strongroom.errors import Damaged, StrongroomError
from strongroom.format.tree import Entry
from strongroom.postgres.clients import Clients
from strongroom.postgres.logical import loading, names, pipeline, verifying
from strongroom.postgres.logical.inplace import InPlace
from strongroom.postgres.logical.order import Order, Run
from strongroom.postgres.logical.preflight import choose_database, look, reachable
from strongroom.postgres.logical.roles import apply_roles, plan_roles
from strongroom.postgres.logical.source import default_jobs
from strongroom.postgres.logical.subset import Subset
from strongroom.postgres.logical.target import Target
from strongroom.postgres.server import Conninfo, connect, translated
from strongroom.progress import Progress
from strongroom.repository.ports import Outcome, SnapshotReader

__all__ = ["LogicalSink", "Subset"]


class LogicalSink:
    """Restores one database of a logical backup into `target` on the server of `dsn`.

    `dsn` leads to a maintenance database (`postgres` when it names none) with a role that may
    create databases. `database` says which one of the backup when it has several. An existing
    `target` is filled in place when it is empty, stays the database it is, and needs no other right
    than to create in it (`inplace.py`). One that is not empty is refused unless `replace`; it is
    then swapped in one transaction, after the new one is verified, and dropped. `subset` restores a
    part; `global_objects` creates missing roles first; `owner` and `privileges` False leave
    everything to the restoring role. `locale` stands in for the recorded one where the target's
    machine lacks it. `keep_failed` keeps a failed restore's database for a look instead of dropping
    it.
    """

    def __init__(
        self,
        dsn: str,
        target: str,
        *,
        password: str | None = None,
        database: str | None = None,
        replace: bool = False,
        subset: Subset | None = None,
        global_objects: bool = False,
        owner: bool = True,
        privileges: bool = True,
        analyze: bool = True,
        locale: str | None = None,
        keep_failed: bool = False,
        jobs: int | None = None,
        clients: Clients | None = None,
    ) -> None:
        conninfo = Conninfo.parse(dsn, password=password)
        named = "dbname" in conninfo.parameters
        self._order = Order(
            conninfo if named else conninfo.on("postgres"),
            target,
            database,
            replace,
            subset or Subset(),
            global_objects,
            owner,
            privileges,
            analyze,
            locale,
            keep_failed,
            jobs or default_jobs(),
            clients,
        )

    def __repr__(self) -> str:
        order = self._order
        return f"<LogicalSink {order.target!r} on the server of {order.conninfo.where}>"

    def preflight(self, snapshot: SnapshotReader) -> Mapping[str, Any]:
        """Check that the restore can be carried out; see `ports.Sink`."""
        return look(reachable(self._order), snapshot)[0]

    def restore(self, snapshot: SnapshotReader, *, progress: Progress) -> Outcome:
        """Write, verify, and give the name; see `ports.Sink`."""
        progress.phase("checking the target")
        order = reachable(self._order)
        plan, client, server = look(order, snapshot)
        name, facts = choose_database(snapshot.facts, order.database)
        target = _target(order, in_place=plan["in_place"])
        lacking = plan["tablespaces_missing"]
        run = Run(order, snapshot, progress, name, facts, client, server, target, not lacking)
        entries = _streams(run)
        for tablespace in lacking:
            run.problem(tablespace, "tablespace is missing; its tables are in the default one")
        if order.global_objects:
            _restore_roles(run)
        target.create(facts, locale=order.locale)
        try:
            size = _fill(run, entries)
            _finish(run)
        except BaseException as fault:
            run.family.end()
            _clean_up(run, fault)
            raise
        outcome = {
            "database": order.target,
            "replaced": plan["replaces"],
            "in_place": plan["in_place"],
            "tables": len(run.tables),
            "rows": sum(t["rows"] for t in run.tables),
            "verified": True,
            "pg_restore": client.text,
            **run.notes,
        }
        return Outcome(len(entries), size, tuple(run.problems), outcome)


def _target(order: Order, *, in_place: bool) -> Target | InPlace:
    if in_place:
        return InPlace(order.conninfo.on(order.target))
    return Target(order.conninfo, order.target)


def _streams(run: Run) -> dict[bytes, Entry]:
    """The streams of the database by path; Damaged when one is missing."""
    entries = {e.path: e for e in run.snapshot.entries(names.database_path(run.database))}
    expected = int(run.facts["streams"])
    if len(entries) != expected or names.schema_path(run.database) not in entries:
        raise Damaged(
            f"The snapshot holds {len(entries)} streams of database {run.database!r}, "
            f"and {expected} were written."
        )
    return entries


def _restore_roles(run: Run) -> None:
    """Make the roles that are missing on the target's server."""
    entry = run.snapshot.find(names.GLOBALS)
    if entry is None:
        run.problem("globals.sql", "the backup holds no roles")
        return
    run.progress.phase("roles")
    text = b"".join(bytes(piece) for piece in run.snapshot.stream(entry)).decode("utf-8")
    conninfo = run.order.conninfo
    with connect(conninfo) as connection, translated(conninfo):
        present = [name for (name,) in connection.execute("SELECT rolname FROM pg_roles")]
        plan = plan_roles(text, present)
        failed = apply_roles(connection, plan)
    run.notes["roles_created"] = list(plan.created)
    run.notes["roles_kept"] = list(plan.existing)
    for reason in failed:
        run.problem("globals.sql", reason)


def _fill(run: Run, entries: Mapping[bytes, Entry]) -> int:
    """Definitions, data, and what hangs on the data; return the bytes that were read."""
    progress = run.progress
    schema = entries[names.schema_path(run.database)]
    rest = [entry for entry in entries.values() if entry.path != schema.path]
    rest.sort(key=lambda entry: (-entry.size, entry.path))
    with loading.spooled(run.snapshot, schema) as definitions:
        run.target.learn(loading.contents_of(definitions))
        loading.select(run, definitions)
        chosen = [entry for entry in rest if loading.is_wanted(run, entry)]
        size = schema.size + sum(entry.size for entry in chosen)
        progress.plan(size=size, files=1 + len(chosen))
        progress.advance(size=schema.size, files=1)
        progress.phase("definitions")
        loading.run_definitions(run, definitions, "pre-data", jobs=1)
        run.freezable = run.target.freezable()
        progress.phase("data")
        left = pipeline.load_and_build(run, chosen, definitions)
        progress.phase("indexes and constraints")
        loading.run_definitions(run, definitions, "post-data", jobs=run.order.jobs, ids=left)
    return size


def _finish(run: Run) -> None:
    """Owner and settings, statistics, the proof, and the name."""
    order = run.order
    for text in run.target.dress(run.facts, owner=order.owner):
        run.problem(order.target, text)
    run.progress.phase("verifying")
    verifying.verify(run)
    run.progress.phase("naming")
    for text in run.target.take_name(replace=order.replace):
        run.problem(order.target, f"the replaced database could not be dropped: {text}")


def _clean_up(run: Run, fault: BaseException) -> None:
    """Drop the half-made database, or what was put into it; say what state things are in."""
    state = run.target.abandon(keep=run.order.keep_failed)
    if isinstance(fault, StrongroomError):
        fault.means = state
