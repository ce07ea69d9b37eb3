"""A PostgreSQL database as a Sink: definitions, data side by side, then what hangs on the data.

Rule of this file: a restore fills a new database under a name that says "unfinished" (`target.py`),
counts every table and compares it with what was counted in the backup's own snapshot, and only then
gives it the name that was asked for. What fails in between leaves nothing behind but the message.

    pre-data (schema.dump)  →  data of every stream, largest first  →  post-data (schema.dump, -j)
    →  owner, rights, settings  →  ANALYZE  →  counts, sequences, inventory  →  the name
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from strongroom.errors import Damaged, NotFound, Refused, StrongroomError
from strongroom.format.tree import Entry
from strongroom.postgres.clients import Client, Clients
from strongroom.postgres.logical import archive, catalogue, names
from strongroom.postgres.logical.roles import apply_roles, plan_roles
from strongroom.postgres.logical.source import FACTS_FORMAT, default_jobs
from strongroom.postgres.logical.target import Target, exists, leftovers
from strongroom.postgres.logical.tool import Family, Tool, tool_error
from strongroom.postgres.logical.verdict import Complaint, complaints
from strongroom.postgres.server import (
    Conninfo,
    ServerFacts,
    connect,
    quoted,
    server_facts,
    translated,
)
from strongroom.progress import Progress
from strongroom.repository.ports import Outcome, Problem, SnapshotReader

if TYPE_CHECKING:
    import psycopg

# Index builds sort in memory up to this; PostgreSQL's default of 64 MB sorts on disk much earlier.
_MAINTENANCE_MEMORY = "256MB"
_LEFT_BEHIND = (
    "The unfinished database was dropped; every other database of the server is as it was."
)


@dataclass(frozen=True, slots=True)
class Subset:
    """The part to restore: whole schemas, and tables as (schema, name). Empty means everything."""

    schemas: tuple[str, ...] = ()
    tables: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.schemas or self.tables)

    @classmethod
    def parse(cls, schemas: Sequence[str] = (), tables: Sequence[str] = ()) -> Subset:
        """Make a subset from words as typed: `table`, `schema.table`, `"odd.schema"."odd table"`.

        A table without a schema is in `public`.
        """
        return cls(tuple(schemas), tuple(_parse_table(text) for text in tables))


@dataclass
class _Run:
    """What one restore knows: the backup, the target, and what has gone wrong so far."""

    snapshot: SnapshotReader
    progress: Progress
    database: str
    facts: Mapping[str, Any]
    client: Client
    server: ServerFacts
    target: Target
    tablespaces: bool
    selection: archive.Selection | None = None
    family: Family = field(default_factory=Family)
    problems: list[Problem] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def problem(self, where: str, reason: str) -> None:
        """Remember a part that is not as it was."""
        path = where.encode("utf-8", "surrogateescape")
        self.problems.append(Problem(path, reason))
        self.progress.problem(path, reason)

    @property
    def tables(self) -> list[Mapping[str, Any]]:
        """The recorded tables that this restore brings back."""
        chosen = self.selection
        return [
            table
            for table in self.facts["tables"]
            if chosen is None or (table["schema"], table["name"]) in chosen.relations
        ]


class LogicalSink:
    """Restores one database of a logical backup into `target` on the server of `dsn`.

    `dsn` leads to a maintenance database (`postgres` when it names none) with a role that may
    create databases. `database` says which one of the backup when it has several. An existing
    `target` is refused unless `replace`; it is then swapped in one transaction, after the new one
    is verified, and dropped. `subset` restores a part; `global_objects` creates missing roles
    first; `owner` and `privileges` False leave everything to the restoring role. `locale` stands
    in for the recorded one where the target's machine lacks it. `keep_failed` keeps a failed
    restore's database for a look instead of dropping it.
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
        self._conninfo = conninfo if named else conninfo.on("postgres")
        self._target = target
        self._database = database
        self._replace = replace
        self._subset = subset or Subset()
        self._global_objects = global_objects
        self._owner = owner
        self._privileges = privileges
        self._analyze = analyze
        self._locale = locale
        self._keep_failed = keep_failed
        self._jobs = jobs or default_jobs()
        self._clients = clients

    def __repr__(self) -> str:
        return f"<LogicalSink {self._target!r} on the server of {self._conninfo.where}>"

    # -- before ----------------------------------------------------------------------------

    def preflight(self, snapshot: SnapshotReader) -> Mapping[str, Any]:
        """Check that the restore can be carried out; see `ports.Sink`."""
        return self._look(snapshot)[0]

    def _look(self, snapshot: SnapshotReader) -> tuple[dict[str, Any], Client, ServerFacts]:
        source = snapshot.facts
        name, facts = choose_database(source, self._database)
        names.check_database_name(self._target)
        with connect(self._conninfo) as connection, translated(self._conninfo):
            server = server_facts(connection)
            self._refuse_server(connection, server, source)
            present = exists(connection, self._target)
            users = _users_of(connection, self._target) if present else []
            self._refuse_target(present, users)
            missing = {
                "extensions": _missing_extensions(connection, facts),
                "roles": _missing(connection, "SELECT rolname FROM pg_roles", facts["roles"]),
                "tablespaces": _missing(
                    connection, "SELECT spcname FROM pg_tablespace", facts["tablespaces"]
                ),
            }
            free = _free_space(connection)
            left = leftovers(connection)
        if missing["extensions"]:
            raise Refused(
                "The target server lacks extensions that the backup needs: "
                + ", ".join(missing["extensions"])
                + ".",
                do="Install their packages on the target server, then run the same command again.",
            )
        clients = self._clients or Clients.found()
        tool = int(str(source["pg_dump"]).split(".", 1)[0])
        client = clients.choose("restore", server=server.major, archive=tool)
        tables = [t for t in facts["tables"] if self._may_be_wanted(t)]
        plan = {
            "database": name,
            "target": self._target,
            "replaces": present,
            "open_connections": users,
            "server": server.version,
            "pg_restore": client.text,
            "tables": len(tables),
            "rows": sum(t["rows"] for t in tables),
            "size": facts["size"] if not self._subset else sum(t["size"] for t in tables),
            "free": free,
            "roles_missing": missing["roles"],
            "roles_created": self._global_objects,
            "tablespaces_missing": missing["tablespaces"],
            "leftovers": left,
        }
        if free is not None and free < plan["size"]:
            raise Refused(
                f"The target server has {free} bytes free and the restore needs about "
                f"{plan['size']}: the old database, if any, stays until the new one is verified.",
                do="Free space on the server, or drop what is not needed there.",
            )
        return plan, client, server

    def _refuse_server(
        self, connection: psycopg.Connection[Any], server: ServerFacts, source: Mapping[str, Any]
    ) -> None:
        recorded = int(source["server"]["version_number"]) // 10000
        if server.major < recorded:
            raise Refused(
                f"The backup is of PostgreSQL {recorded}, the target server is {server.major}: "
                "an older server does not understand it.",
                do=f"Restore into PostgreSQL {recorded} or newer.",
            )
        if server.standby:
            raise Refused("The target server is a standby: nothing can be restored there.")
        row = connection.execute(
            "SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
        if not row or not row[0]:
            raise Refused(
                f"The role may not create databases on the server of {self._conninfo.where}.",
                do="ALTER ROLE … CREATEDB, or restore with another role.",
            )

    def _refuse_target(self, present: bool, users: Sequence[str]) -> None:
        if not present:
            return
        if self._conninfo.database == self._target:
            raise Refused(
                f"The dsn of the target leads to {self._target!r} itself, which is to be replaced.",
                do="Give the dsn of another database of the server, such as postgres.",
            )
        if not self._replace:
            connected = f" Connected to it: {', '.join(users)}." if users else ""
            raise Refused(
                f"A database {self._target!r} exists on the target server.{connected}",
                do="Restore under another name, or pass --replace: the old one is dropped only "
                "after the new one is complete and verified.",
            )

    def _may_be_wanted(self, table: Mapping[str, Any]) -> bool:
        key = (table["schema"], table["name"])
        wanted = self._subset
        return not wanted or key[0] in wanted.schemas or key in wanted.tables

    # -- restore ---------------------------------------------------------------------------

    def restore(self, snapshot: SnapshotReader, *, progress: Progress) -> Outcome:
        """Write, verify, and give the name; see `ports.Sink`."""
        progress.phase("checking the target")
        plan, client, server = self._look(snapshot)
        name, facts = choose_database(snapshot.facts, self._database)
        target = Target(self._conninfo, self._target)
        keeps_tablespaces = not plan["tablespaces_missing"]
        run = _Run(snapshot, progress, name, facts, client, server, target, keeps_tablespaces)
        entries = {e.path: e for e in snapshot.entries(names.database_path(name))}
        if names.schema_path(name) not in entries:
            raise Damaged(f"The snapshot has no definitions of database {name!r}.")
        for tablespace in plan["tablespaces_missing"]:
            run.problem(
                tablespace, "tablespace is missing on the target; its tables are in the default"
            )
        if self._global_objects:
            self._restore_roles(run)
        target.create(facts, locale=self._locale)
        try:
            size = self._fill(run, entries)
            self._finish(run)
        except BaseException as fault:
            run.family.end()
            self._clean_up(target, fault)
            raise
        rows = sum(t["rows"] for t in run.tables)
        outcome = {
            "database": self._target,
            "replaced": plan["replaces"],
            "tables": len(run.tables),
            "rows": rows,
            "verified": True,
            "pg_restore": client.text,
            **run.notes,
        }
        return Outcome(len(entries), size, tuple(run.problems), outcome)

    def _clean_up(self, target: Target, fault: BaseException) -> None:
        """Drop the half-made database; say in the error what state things are in."""
        if self._keep_failed:
            state = f"The unfinished database was kept as {target.unfinished!r}: do not trust it."
        else:
            try:
                target.drop()
                state = _LEFT_BEHIND
            except StrongroomError as second:
                state = (
                    f"The unfinished database {target.unfinished!r} could not be dropped "
                    f"({second.what}); every other database is as it was."
                )
        if isinstance(fault, StrongroomError):
            fault.means = state

    def _fill(self, run: _Run, entries: Mapping[bytes, Entry]) -> int:
        """Definitions, data, and what hangs on the data; return the bytes that were read."""
        progress = run.progress
        schema = entries[names.schema_path(run.database)]
        data = self._data_entries(run, entries, schema)
        with _spooled(run.snapshot, schema) as definitions:
            self._select(run, definitions)
            chosen = [entry for entry in data if self._is_wanted(run, entry)]
            progress.plan(size=schema.size + sum(e.size for e in chosen), files=1 + len(chosen))
            progress.advance(size=schema.size, files=1)
            progress.phase("definitions")
            self._run_definitions(run, definitions, "pre-data", jobs=1)
            progress.phase("data")
            self._load_all(run, chosen)
            progress.phase("indexes and constraints")
            self._run_definitions(run, definitions, "post-data", jobs=self._jobs)
        return schema.size + sum(entry.size for entry in chosen)

    def _data_entries(
        self, run: _Run, entries: Mapping[bytes, Entry], schema: Entry
    ) -> list[Entry]:
        expected = int(run.facts["streams"])
        if len(entries) != expected:
            raise Damaged(
                f"The snapshot holds {len(entries)} streams of database {run.database!r}, "
                f"and {expected} were written."
            )
        rest = [entry for entry in entries.values() if entry.path != schema.path]
        return sorted(rest, key=lambda entry: (-entry.size, entry.path))

    def _select(self, run: _Run, definitions: int) -> None:
        if not self._subset:
            return
        contents = archive.read_contents(os.pread(definitions, os.fstat(definitions).st_size, 0))
        chosen = self._subset
        known = {(e.namespace, e.tag) for e in contents.entries if e.is_relation}
        wanted = {key for key in known if key[0] in chosen.schemas} | set(chosen.tables)
        absent = sorted(set(chosen.tables) - known)
        absent += [(s, "*") for s in chosen.schemas if not any(key[0] == s for key in known)]
        if absent:
            listed = ", ".join(quoted(*key) for key in absent)
            raise NotFound(f"The backup of {run.database!r} has no {listed}.")
        run.selection = archive.select(contents, wanted)

    def _is_wanted(self, run: _Run, entry: Entry) -> bool:
        """Say whether a data stream can hold rows of the selection, as far as its path tells."""
        if run.selection is None or b"/tables/" not in entry.path:
            return True
        paths = {names.table_path(run.database, *key) for key in run.selection.relations}
        return entry.path in paths

    def _argv(self, run: _Run, section: str) -> list[str | bytes]:
        settings = {"synchronous_commit": "off", "maintenance_work_mem": _MAINTENANCE_MEMORY}
        conninfo = run.target.conninfo.with_settings(**settings)
        argv: list[str | bytes] = [
            run.client.program,
            f"--dbname={conninfo.public()}",
            "--no-password",
            "--format=custom",
            f"--section={section}",
        ]
        if not self._owner:
            argv.append("--no-owner")
        if not self._privileges:
            argv.append("--no-privileges")
        if not run.tablespaces:
            argv.append("--no-tablespaces")
        return argv

    def _run_definitions(self, run: _Run, definitions: int, section: str, *, jobs: int) -> None:
        argv = [*self._argv(run, section), f"--jobs={jobs}"]
        with contextlib.ExitStack() as stack:
            descriptors = [definitions]
            if run.selection is not None:
                listed = stack.enter_context(_list_file(run.selection.ids))
                descriptors.append(listed)
                argv.append(f"--use-list=/proc/self/fd/{listed}")
            argv.append(f"/proc/self/fd/{definitions}")
            tool = stack.enter_context(
                Tool(argv, run.target.conninfo, run.family, pass_fds=descriptors)
            )
            status, said = tool.wait()
        self._judge(run, section, status, said)

    def _judge(self, run: _Run, section: str, status: int, said: str) -> None:
        """Turn what pg_restore said into problems, or into the end of the restore."""
        found = self._complaints(run, status, said)
        if any(not item.command for item in found):
            raise tool_error("pg_restore", status, said, run.target.conninfo)
        hard = [item for item in found if not item.about_rights]
        if hard and self._is_the_end(section, hard):
            raise StrongroomError(
                f"Restoring the {section} failed with {len(hard)} errors, the first: {hard[0]}.",
                do="Mend the cause on the target server, then run the same command again.",
            )
        for item in found:
            run.problem(section, str(item))

    def _complaints(self, run: _Run, status: int, said: str) -> list[Complaint]:
        """What matters of what pg_restore said; raises when its status is not explained by it."""
        found = complaints(said)
        if status not in (0, 1) or (status == 1 and not found):
            raise tool_error("pg_restore", status, said, run.target.conninfo)
        return [item for item in found if not item.harmless]

    def _is_the_end(self, section: str, hard: Sequence[Complaint]) -> bool:
        """Rows can be delivered without an index or a view; into a new database they are.

        An existing database is never given up for one that lacks something; and a part may do
        without functions and views that need what was left out.
        """
        if section == "post-data":
            return self._replace
        return not self._subset or any("CREATE TABLE" in item.command for item in hard)

    # -- data ------------------------------------------------------------------------------

    def _load_all(self, run: _Run, entries: Sequence[Entry]) -> None:
        waiting: queue.SimpleQueue[Entry] = queue.SimpleQueue()
        for entry in entries:
            waiting.put(entry)
        with ThreadPoolExecutor(self._jobs, "pg-restore") as pool:
            workers = [pool.submit(self._load_some, run, waiting) for _ in range(self._jobs)]
            _wait_for(workers, run)

    def _load_some(self, run: _Run, waiting: queue.SimpleQueue[Entry]) -> None:
        while True:
            try:
                entry = waiting.get_nowait()
            except queue.Empty:
                return
            self._load(run, entry)

    def _load(self, run: _Run, entry: Entry) -> None:
        """Feed one stream to one pg_restore."""
        pieces: Iterator[memoryview | bytes] = run.snapshot.stream(entry)
        argv = self._argv(run, "data")
        with contextlib.ExitStack() as stack:
            descriptors = []
            if run.selection is not None:
                head, contents = _head(pieces)
                ids = archive.data_for(contents, run.selection.relations)
                if not ids:
                    run.progress.advance(size=entry.size, files=1)
                    return
                listed = stack.enter_context(_list_file(ids))
                descriptors.append(listed)
                argv.append(f"--use-list=/proc/self/fd/{listed}")
                pieces = _after(head, pieces)
            tool = stack.enter_context(
                Tool(argv, run.target.conninfo, run.family, feed=True, pass_fds=descriptors)
            )
            fed = 0
            for size in tool.feed(pieces):
                fed += size
                run.progress.advance(size=size)
            tool.close_input()
            status, said = tool.wait()
        run.progress.advance(size=entry.size - fed, files=1)
        self._judge_data(run, entry, status, said)

    def _judge_data(self, run: _Run, entry: Entry, status: int, said: str) -> None:
        found = self._complaints(run, status, said)
        if any(not item.about_rights for item in found):
            raise tool_error("pg_restore", status, said, run.target.conninfo)
        for item in found:
            run.problem(os.fsdecode(entry.path), str(item))

    # -- after -----------------------------------------------------------------------------

    def _finish(self, run: _Run) -> None:
        for text in run.target.dress(run.facts, owner=self._owner):
            run.problem(self._target, text)
        if self._analyze:
            run.progress.phase("statistics")
            self._spread_tables(run, _analyze_table)
        run.progress.phase("verifying")
        self._verify(run)
        run.progress.phase("naming")
        for text in run.target.take_name(replace=self._replace):
            run.problem(self._target, f"the replaced database could not be dropped: {text}")

    def _verify(self, run: _Run) -> None:
        """Compare with what was recorded; Damaged when rows or objects are missing."""
        counts = self._spread_tables(run, _count_table)
        wrong = [
            f"{quoted(t['schema'], t['name'])} has {counts.get((t['schema'], t['name']), 'no')} "
            f"rows instead of {t['rows']}"
            for t in run.tables
            if counts.get((t["schema"], t["name"])) != t["rows"]
        ]
        if wrong:
            raise Damaged(
                f"{len(wrong)} tables do not have the rows that the backup recorded: "
                + "; ".join(wrong[:5])
                + ".",
            )
        with connect(run.target.conninfo) as connection, translated(run.target.conninfo):
            _check_sequences(connection, run)
            if run.selection is None:
                _check_inventory(connection, run)

    def _spread_tables(self, run: _Run, work: Any) -> dict[tuple[str, str], int]:
        """Do `work(connection, schema, name)` for every table, largest first, on `jobs` threads."""
        waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        for table in sorted(run.tables, key=lambda t: -int(t["size"])):
            waiting.put((table["schema"], table["name"]))
        done: dict[tuple[str, str], int] = {}

        def some() -> None:
            with connect(run.target.conninfo) as connection, translated(run.target.conninfo):
                while True:
                    try:
                        key = waiting.get_nowait()
                    except queue.Empty:
                        return
                    done[key] = work(connection, *key)

        with ThreadPoolExecutor(self._jobs, "pg-verify") as pool:
            _wait_for([pool.submit(some) for _ in range(self._jobs)], run)
        return done

    def _restore_roles(self, run: _Run) -> None:
        entry = run.snapshot.find(names.GLOBALS)
        if entry is None:
            run.problem("globals.sql", "the backup holds no roles")
            return
        run.progress.phase("roles")
        text = b"".join(bytes(p) for p in run.snapshot.stream(entry)).decode("utf-8")
        with connect(self._conninfo) as connection, translated(self._conninfo):
            present = [n for (n,) in connection.execute("SELECT rolname FROM pg_roles")]
            plan = plan_roles(text, present)
            failed = apply_roles(connection, plan)
        run.notes["roles_created"] = list(plan.created)
        run.notes["roles_kept"] = list(plan.existing)
        for reason in failed:
            run.problem("globals.sql", reason)


def choose_database(source: Mapping[str, Any], wanted: str | None) -> tuple[str, Mapping[str, Any]]:
    """Return name and facts of the database to restore out of a snapshot's facts."""
    if source.get("method") != "logical" or source.get("format") != FACTS_FORMAT:
        raise Refused(
            "The snapshot is no logical PostgreSQL backup that this version reads.",
            do="Choose a snapshot of a logical source, or use a newer strongroom.",
        )
    databases: Mapping[str, Any] = source["databases"]
    if wanted is None and len(databases) == 1:
        wanted = next(iter(databases))
    if wanted is None or wanted not in databases:
        listed = ", ".join(repr(name) for name in databases)
        raise NotFound(
            f"The snapshot has no database {wanted!r}." if wanted else "Which database?",
            do=f"Name one of: {listed}.",
        )
    return wanted, databases[wanted]


def _missing_extensions(connection: psycopg.Connection[Any], facts: Mapping[str, Any]) -> list[str]:
    wanted = [name for name, _ in facts["extensions"]]
    return _missing(connection, "SELECT name FROM pg_available_extensions", wanted)


def _missing(connection: psycopg.Connection[Any], query: str, wanted: Collection[str]) -> list[str]:
    here = {name for (name,) in connection.execute(query.encode())}
    return sorted(set(wanted) - here)


def _users_of(connection: psycopg.Connection[Any], database: str) -> list[str]:
    rows = connection.execute(
        "SELECT format('process %%s: %%s %%s', pid, usename, application_name)"
        " FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend' ORDER BY pid",
        [database],
    )
    return [text.strip() for (text,) in rows]


def _free_space(connection: psycopg.Connection[Any]) -> int | None:
    """Free bytes where the server's data is, when it is on this machine and may be looked at."""
    if connection.info.hostaddr not in ("", "127.0.0.1", "::1"):
        return None
    row = connection.execute("SELECT current_setting('data_directory', true)").fetchone()
    try:
        return shutil.disk_usage(row[0]).free if row and row[0] else None
    except OSError:
        return None


def _analyze_table(connection: psycopg.Connection[Any], schema: str, name: str) -> int:
    connection.execute(f"ANALYZE {quoted(schema, name)}".encode())
    return 0


_count_table = catalogue.count_rows


def _check_sequences(connection: psycopg.Connection[Any], run: _Run) -> None:
    """A sequence may be ahead of the snapshot, which it ignores; behind it would repeat values."""
    here = {(s["schema"], s["name"]): s for s in catalogue.sequence_values(connection)}
    for recorded in run.facts["sequences"]:
        key = (recorded["schema"], recorded["name"])
        if run.selection is not None and key not in run.selection.relations:
            continue
        found = here.get(key)
        if found is None:
            raise Damaged(f"Sequence {quoted(*key)} is missing after the restore.")
        ahead = (found["value"] - recorded["value"]) * (1 if recorded["increment"] > 0 else -1)
        if ahead < 0 or (ahead == 0 and recorded["called"] and not found["called"]):
            run.problem(
                quoted(*key), f"sequence stands at {found['value']}, not {recorded['value']}"
            )


def _check_inventory(connection: psycopg.Connection[Any], run: _Run) -> None:
    found = catalogue.inventory(connection)
    found["large_objects"] = catalogue.large_objects(connection)[0]
    wanted = {**run.facts["inventory"], "large_objects": run.facts["large_objects"]}
    wrong = [
        f"{found.get(kind, 0)} {kind.replace('_', ' ')} instead of {count}"
        for kind, count in wanted.items()
        if found.get(kind, 0) != count
    ]
    if not wrong:
        return
    if not run.problems:
        raise Damaged(f"The restored database has {', '.join(wrong)}.")
    run.problem(run.target.name, "after the problems above it has " + ", ".join(wrong))


def _wait_for(workers: Sequence[Future[None]], run: _Run) -> None:
    """Return when all are done; the first fault ends the others and is raised."""
    try:
        done, _ = wait(workers, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
    except BaseException:
        run.family.end()
        wait(workers)
        raise


@contextlib.contextmanager
def _spooled(snapshot: SnapshotReader, entry: Entry) -> Iterator[int]:
    """Yield a descriptor of an anonymous file in memory that holds the whole stream.

    pg_restore needs a seekable archive to work in parallel; definitions are small, and so never
    touch a disk.
    """
    descriptor = os.memfd_create("strongroom-definitions")
    try:
        for piece in snapshot.stream(entry):
            view = memoryview(piece)
            while view:
                view = view[os.write(descriptor, view) :]
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _list_file(ids: Sequence[int]) -> Iterator[int]:
    """Yield a descriptor of a list for `pg_restore --use-list`."""
    descriptor = os.memfd_create("strongroom-list")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.writelines(b"%d;\n" % number for number in ids)
        yield descriptor
    finally:
        os.close(descriptor)


def _head(pieces: Iterator[memoryview | bytes]) -> tuple[bytes, archive.Contents]:
    """Read as much of a stream as its table of contents needs; return those bytes and it."""
    head = b""
    for piece in pieces:
        head += bytes(piece)
        try:
            return head, archive.read_contents(head)
        except archive.CutShortError:
            continue
    raise Damaged("A data stream of the backup ends before its table of contents.")


def _after(head: bytes, rest: Iterator[memoryview | bytes]) -> Iterator[memoryview | bytes]:
    yield head
    yield from rest


_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


def _parse_table(text: str) -> tuple[str, str]:
    parts, at = [], 0
    while match := _PART.match(text, at):
        parts.append(match[2] or match[1].replace('""', '"'))
        at = match.end() + 1
        if match.end() == len(text):
            return _pair(["public", *parts] if len(parts) == 1 else parts, text)
        if text[match.end()] != ".":
            break
    raise _no_table(text)


def _pair(parts: Sequence[str], text: str) -> tuple[str, str]:
    if len(parts) != 2:
        raise _no_table(text)
    return parts[0], parts[1]


def _no_table(text: str) -> Refused:
    return Refused(
        f"{text!r} is no table.", do='Write table, schema.table or "odd schema"."odd table".'
    )
