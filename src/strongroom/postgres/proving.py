"""What a restored server is asked before anybody says that it is what was backed up.

Rule of this file: every session overrides what the restored roles and databases would have it load or
do, nothing is said to be good that was not looked at, and whatever a query runs into is Damaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from strongroom.errors import Damaged
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.logical import catalogue
from strongroom.postgres.server import quoted

if TYPE_CHECKING:
    import psycopg

_CALM = (
    "session_preload_libraries=",
    "local_preload_libraries=",
    "default_transaction_read_only=on",
    "statement_timeout=0",
    "lock_timeout=60s",
    "idle_in_transaction_session_timeout=0",
    "client_min_messages=error",
)
_TABLES = (
    "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND n.nspname <> 'information_schema'"
    " AND n.nspname !~ '^pg_' ORDER BY 1, 2"
)
_COLLATIONS = (
    "SELECT quote_ident(collname), collversion, pg_collation_actual_version(oid) FROM pg_collation"
    " WHERE collversion IS NOT NULL AND pg_collation_actual_version(oid) IS NOT NULL"
    " AND collversion <> pg_collation_actual_version(oid)"
)
_DATABASE_COLLATION = (
    "SELECT datcollate, datcollversion, pg_database_collation_actual_version(oid) FROM pg_database"
    " WHERE datname = current_database() AND datcollversion IS NOT NULL"
    " AND datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid)"
)
_NAMED = 5


@contextmanager
def session(
    server: EmbeddedServer, database: str, *, write: bool = False
) -> Iterator[psycopg.Connection[Any]]:
    """A calm session as superuser; Damaged for whatever the server says no to."""
    import psycopg  # noqa: PLC0415  heavy

    calm = [each for each in _CALM if not (write and each.startswith("default_transaction"))]
    options = " ".join(f"-c {each}" for each in calm)
    try:
        with server.connect(database, options=options) as connection:
            yield connection
    except psycopg.Error as fault:
        said = (fault.diag.message_primary if fault.diag else None) or " ".join(str(fault).split())
        raise Damaged(f"In database {database!r} the restored server says: {said}") from None


def databases(server: EmbeddedServer) -> list[str]:
    """Every database that can be entered, but for the templates."""
    with session(server, "postgres") as connection:
        rows = connection.execute(
            "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1"
        )
        return [name for (name,) in rows]


def replayed(server: EmbeddedServer) -> datetime | None:
    """When the last transaction ended that recovery replayed; None when there was none."""
    with session(server, "postgres") as connection:
        row = connection.execute("SELECT pg_last_xact_replay_timestamp()").fetchone()
    moment: datetime | None = row[0] if row else None
    return None if moment is None else moment.astimezone(UTC)


def setting(server: EmbeddedServer, name: str) -> str:
    """One setting of the server."""
    with session(server, "postgres") as connection:
        row = connection.execute("SELECT current_setting(%s, true)", [name]).fetchone()
    return str(row[0]) if row and row[0] is not None else ""


def extensions_lacking(server: EmbeddedServer, names: Iterable[str]) -> list[str]:
    """Extensions that a database has and this machine's PostgreSQL has not; with the database."""
    found = []
    for name in names:
        with session(server, name) as connection:
            rows = connection.execute(
                "SELECT extname FROM pg_extension WHERE extname NOT IN"
                " (SELECT name FROM pg_available_extensions) ORDER BY 1"
            )
            found += [f"{extension} in {name}" for (extension,) in rows]
    return found


def collations_changed(server: EmbeddedServer, names: Iterable[str]) -> list[str]:
    """Collations that this machine has in another version than the indexes were built with."""
    found = []
    whole = server.installation.version[0] >= 15
    for name in names:
        with session(server, name) as connection:
            rows = list(connection.execute(_COLLATIONS))
            rows += list(connection.execute(_DATABASE_COLLATION)) if whole else []
        found += [
            f"{collation} in {name} was {before}, is {after or 'unknown'} here"
            for collation, before, after in rows
        ]
    return found


# -- rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Counted:
    """Rows of a table: as its pages have them, and as an index of it has them (None without one)."""

    database: str
    schema: str
    name: str
    rows: int
    by_index: int | None = None
    recorded: int | None = None

    @property
    def wrong(self) -> str:
        """What contradicts what; "" when all agree."""
        name = f"{self.database}: {quoted(self.schema, self.name)}"
        if self.recorded is not None and self.rows != self.recorded:
            return f"{name} has {self.rows} rows, {self.recorded} were recorded"
        if self.by_index is not None and self.rows != self.by_index:
            return f"{name} has {self.rows} rows in its pages, {self.by_index} in an index"
        return ""

    def as_json(self) -> dict[str, Any]:
        """For a report."""
        body = {"database": self.database, "schema": self.schema, "name": self.name}
        return {**body, "rows": self.rows, "by_index": self.by_index, "recorded": self.recorded}


def count_against(
    server: EmbeddedServer, database: str, recorded: Mapping[tuple[str, str], int]
) -> list[Counted]:
    """Count tables whose rows were recorded when they were backed up; one that is gone has -1."""
    with session(server, database) as connection:
        there = {(schema, name) for schema, name in connection.execute(_TABLES)}
        return [
            Counted(
                database,
                *key,
                catalogue.count_rows(connection, *key) if key in there else -1,
                recorded=rows,
            )
            for key, rows in recorded.items()
        ]


def count_twice(server: EmbeddedServer, database: str) -> list[Counted]:
    """Count every table by its pages, and once more by an index alone where it has one: two reads of
    different files that must agree."""
    found = []
    with session(server, database) as connection:
        for schema, name in list(connection.execute(_TABLES)):
            query = f"SELECT count(*) FROM ONLY {quoted(schema, name)}".encode()
            rows = _scan(connection, query, index=False)
            plan = _scan(connection, b"EXPLAIN " + query, index=True, every=True)
            by_index = None
            if any("Index Only Scan" in line for (line,) in plan):
                by_index = _scan(connection, query, index=True)
            found.append(Counted(database, schema, name, rows, by_index))
    return found


def _scan(
    connection: psycopg.Connection[Any], query: bytes, *, index: bool, every: bool = False
) -> Any:
    for kind in ("indexscan", "indexonlyscan", "bitmapscan"):
        word = "on" if index and kind != "bitmapscan" else "off"
        connection.execute(f"SET enable_{kind} = {word}".encode())
    connection.execute(f"SET enable_seqscan = {'off' if index else 'on'}".encode())
    cursor = connection.execute(query)
    if every:
        return cursor.fetchall()
    row = cursor.fetchone()
    return row[0] if row else -1


# -- PostgreSQL's own checkers -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checked:
    """What a checker found: `lacking` why it could not be run, else `wrong` what it complains of."""

    what: str = ""
    wrong: str = ""
    lacking: str = ""


def amcheck(server: EmbeddedServer, names: Sequence[str], *, full: bool, jobs: int) -> Checked:
    """Run pg_amcheck over every table and B-tree index; `full` looks for each row in each index."""
    major = server.installation.version[0]
    program = os.path.join(server.installation.bindir, "pg_amcheck")
    if not os.access(program, os.X_OK):
        return Checked(lacking=f"pg_amcheck of PostgreSQL {major} is not installed here")
    with session(server, "postgres") as connection:
        query = "SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'"
        if connection.execute(query).fetchone() is None:
            return Checked(lacking=f"the extension amcheck of PostgreSQL {major} is not installed")
    words = ["--install-missing", "--no-password", f"--jobs={jobs}"]
    words += ["--heapallindexed"] if full else []
    words += [f"--host={server.socket_directory}", f"--port={server.port}"]
    words += [f"--username={server.user}", "--maintenance-db=postgres"]
    words += [f"--database={_literally(name)}" for name in names]
    status, said = server.run_beside("pg_amcheck", *words)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if status:
        return Checked(wrong=" | ".join(lines[: 2 * _NAMED])[:1500] or f"exit status {status}")
    deep = ", each row looked for in each index" if full else ""
    return Checked(f"{len(names)} database{'s' * (len(names) != 1)}{deep}: nothing is wrong")


def _literally(name: str) -> str:
    """A pattern that means this name alone."""
    return '"' + name.replace('"', '""') + '"'


def checksums(server: EmbeddedServer) -> Checked:
    """Look at the checksum of every page of a server that was stopped cleanly."""
    program = os.path.join(server.installation.bindir, "pg_checksums")
    if not os.access(program, os.X_OK):
        return Checked(lacking="pg_checksums is not installed here")
    status, said = server.run_beside("pg_checksums", "--check", f"--pgdata={server.data_directory}")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if status:
        bad = [line for line in lines if "checksum verification failed" in line] or lines
        return Checked(wrong=" | ".join(bad[:_NAMED])[:1500])
    scanned = [
        line.partition(":")[2].strip() for line in lines if line.startswith("Blocks scanned")
    ]
    return Checked(f"{scanned[0] if scanned else 'all'} pages: each has the checksum it says")


# -- questions -----------------------------------------------------------------------------------


def ask(server: EmbeddedServer, database: str, query: str) -> Any:
    """The first value that a query answers, read-only; of several statements the last. None for no
    row, NULL, or nothing to answer."""
    with session(server, database) as connection:
        connection.execute('SET search_path = "$user", public')
        cursor = connection.execute(query.encode())
        while cursor.nextset():
            pass
        row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


def as_moment(value: Any) -> datetime | None:
    """What a freshness query answered, as a moment: a bare time is UTC, a date its midnight, a number
    seconds since 1970."""
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        try:
            return datetime.fromtimestamp(float(value), UTC)
        except (ValueError, OverflowError, OSError):
            return None
    if isinstance(value, str):
        try:
            return as_moment(datetime.fromisoformat(value))
        except ValueError:
            return None
    return None


__all__ = [
    "Checked",
    "Counted",
    "amcheck",
    "as_moment",
    "ask",
    "checksums",
    "collations_changed",
    "count_against",
    "count_twice",
    "databases",
    "extensions_lacking",
    "replayed",
    "session",
    "setting",
]
