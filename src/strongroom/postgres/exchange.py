"""One database takes the place of another: by name, in one transaction, and not before it is asked.

Rule of this file: databases are known by their oid as well as by name, so that a run that was
killed can tell what it had done; nothing is dropped but what the caller names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from strongroom.errors import Busy, Damaged, Refused
from strongroom.postgres.logical import catalogue
from strongroom.postgres.logical.target import UNFINISHED
from strongroom.postgres.server import Conninfo, connect, quoted, translated

_WHO = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = %s AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
)
# What a migration would change: columns, of tables that are not PostgreSQL's own.
_DEFINITIONS = (
    "SELECT md5(coalesce(string_agg(concat_ws(':', a.attrelid, a.attnum, a.xmin), ','"
    " ORDER BY a.attrelid, a.attnum), '')) FROM pg_attribute a JOIN pg_class c"
    " ON c.oid = a.attrelid WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')"
    " AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)"
)


class Exchange:
    """The server of `conninfo`, which leads to a maintenance database."""

    def __init__(self, conninfo: Conninfo) -> None:
        self._conninfo = conninfo

    def oids(self, *names: str) -> dict[str, int]:
        """The oid of each of these databases that exists."""
        with connect(self._conninfo) as connection, translated(self._conninfo):
            rows = connection.execute(
                "SELECT datname, oid::bigint FROM pg_database WHERE datname = ANY(%s)",
                [list(names)],
            )
            return dict(rows.fetchall())

    def refuse_unfit(self, name: str) -> None:
        """Refused when the role may not rename or drop this database."""
        if self._conninfo.database == name:
            raise Refused(
                f"{name!r} is the database by which the server is reached; "
                "it cannot be replaced from inside.",
                do="Restore it with `strongroom restore … --to` under another name.",
            )
        with connect(self._conninfo) as connection, translated(self._conninfo):
            row = connection.execute(
                "SELECT pg_has_role(current_user, datdba, 'USAGE'), current_user,"
                " pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s",
                [name],
            ).fetchone()
        if row and not row[0]:
            raise Refused(
                f"The role {row[1]!r} may not replace {name!r}, which belongs to {row[2]!r}.",
                do=f"GRANT {quoted(row[2])} TO {quoted(row[1])}, or use a dsn with another role.",
            )

    def disconnect(self, name: str) -> None:
        """End every connection to a database."""
        with connect(self._conninfo) as connection, translated(self._conninfo):
            connection.execute(_WHO, [name])

    def open(self, name: str) -> None:
        """Let everybody into a database again, where a run was killed while it changed names."""
        with connect(self._conninfo) as connection, translated(self._conninfo):
            if name in self.oids(name):
                _allow(connection, name, "true")

    def drop(self, name: str) -> bool:
        """Drop a database and whoever is connected to it; False when there was none."""
        there = name in self.oids(name)
        with connect(self._conninfo) as connection, translated(self._conninfo):
            connection.execute(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)".encode())
        return there

    def drop_unfinished(self, target: str) -> int:
        """Drop what killed restores into `target` left half-made; return how many."""
        note = f"Unfinished restore of {target} by strongroom: not complete, safe to drop."
        with connect(self._conninfo) as connection, translated(self._conninfo):
            rows = connection.execute(
                "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
                " AND shobj_description(oid, 'pg_database') = %s",
                [UNFINISHED, note],
            ).fetchall()
            for (name,) in rows:
                connection.execute(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)".encode())
        return len(rows)

    def swap(self, name: str, beside: str, old: str) -> bool:
        """`beside` becomes `name`, and what had that name `old`; False when nothing had it.

        Connections to both are ended. Busy when somebody is faster than we are.
        """
        import psycopg  # noqa: PLC0415

        with connect(self._conninfo) as connection, translated(self._conninfo):
            present = name in self.oids(name)
            closed = [name, beside] if present else [beside]
            try:
                for each in closed:
                    _allow(connection, each, "false")
                    connection.execute(_WHO, [each])
                with connection.transaction():
                    if present:
                        _rename(connection, name, old)
                    _rename(connection, beside, name)
            except psycopg.errors.ObjectInUse as error:
                raise Busy(
                    f"{name!r} could not change its name: {error.diag.message_primary}",
                    do="See who is connected with `SELECT * FROM pg_stat_activity`.",
                ) from None
            finally:
                for each in (name, beside, old):
                    with contextlib.suppress(psycopg.Error):
                        _allow(connection, each, "true")
        return present

    def counts(
        self, name: str, tables: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], int | None]:
        """Rows of each table; None for one that is not there."""
        import psycopg  # noqa: PLC0415

        there = self._conninfo.on(name)
        found: dict[tuple[str, str], int | None] = {}
        with connect(there) as connection, translated(there):
            for key in tables:
                try:
                    found[key] = catalogue.count_rows(connection, *key)
                except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                    found[key] = None
        return found

    def check(self, name: str, queries: Sequence[str]) -> list[str]:
        """Run each query, read-only; return what it answered. Damaged for an error, no row, NULL
        or false."""
        import psycopg  # noqa: PLC0415

        there = self._conninfo.on(name)
        told = []
        with connect(there) as connection, translated(there):
            connection.execute("SET default_transaction_read_only = on")
            connection.execute("RESET search_path")
            connection.execute('SET search_path = "$user", public')
            for query in queries:
                try:
                    row = connection.execute(query.encode()).fetchone()
                except psycopg.OperationalError:
                    raise
                except psycopg.Error as error:
                    text = error.diag.message_primary or str(error)
                    raise Damaged(f"The check `{query}` failed: {text}.") from None
                if not row or row[0] is None or row[0] is False:
                    answer = "no row" if not row else "NULL" if row[0] is None else "false"
                    raise Damaged(f"The check `{query}` says {answer}.")
                told.append(f"{query} → {row[0]}")
        return told

    def definitions(self, name: str) -> str:
        """A value that is another one when columns of the database were changed."""
        there = self._conninfo.on(name)
        with connect(there) as connection, translated(there):
            row = connection.execute(_DEFINITIONS.encode()).fetchone()
        return str(row[0]) if row else ""

    def environment(self, name: str) -> dict[str, str]:
        """What leads a child process to a database: libpq's variables and DATABASE_URL.

        The password is in PGPASSWORD alone, which only the same account can read.
        """
        there = self._conninfo.on(name)
        given = there.parameters
        variables = {
            "PGHOST": "host",
            "PGHOSTADDR": "hostaddr",
            "PGPORT": "port",
            "PGUSER": "user",
            "PGSSLMODE": "sslmode",
            "PGSSLROOTCERT": "sslrootcert",
        }
        environment = {name: given[key] for name, key in variables.items() if key in given}
        if "password" in there.secrets:
            environment["PGPASSWORD"] = there.secrets["password"]
        environment["PGDATABASE"] = environment["STRONGROOM_DATABASE"] = name
        environment["DATABASE_URL"] = _url(name, given)
        return environment


def _url(name: str, given: Mapping[str, str]) -> str:
    user = quote(given["user"], safe="") + "@" if "user" in given else ""
    rest = {key: given[key] for key in ("host", "port", "sslmode", "sslrootcert") if key in given}
    query = "?" + urlencode(rest, quote_via=quote) if rest else ""
    return f"postgresql://{user}/{quote(name, safe='')}{query}"


def _allow(connection: Any, name: str, word: str) -> None:
    connection.execute(f"ALTER DATABASE {quoted(name)} ALLOW_CONNECTIONS {word}".encode())


def _rename(connection: Any, name: str, new: str) -> None:
    connection.execute(f"ALTER DATABASE {quoted(name)} RENAME TO {quoted(new)}".encode())
