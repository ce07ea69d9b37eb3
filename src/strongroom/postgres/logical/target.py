"""The database that is restored into: made beside, filled, verified, and only then given its name.

Rule of this file: until everything is verified the database has a name that says it is unfinished,
and whatever stood under the wanted name is untouched. The change of names is one transaction. A
run that fails drops what it made; it never drops anything else.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from strongroom.errors import Busy, Refused, StrongroomError
from strongroom.postgres.logical import catalogue
from strongroom.postgres.logical.archive import Contents
from strongroom.postgres.server import Conninfo, connect, literal, quoted, translated

if TYPE_CHECKING:
    import psycopg

UNFINISHED = "strongroom-unfinished-"
_OLD = "strongroom-replaced-"
# A restored database must not load code into every session because a backup says so.
_NEVER_SET = ("session_preload_libraries", "local_preload_libraries", "shared_preload_libraries")


class Target:
    """One database in the making. `conninfo` is of a maintenance database on the same server."""

    marks = 0

    def __init__(self, conninfo: Conninfo, name: str) -> None:
        self._maintenance = conninfo
        self.name = name
        self.unfinished = UNFINISHED + secrets.token_hex(6)
        self.conninfo = conninfo.on(self.unfinished)

    def create(self, facts: Mapping[str, Any], *, locale: str | None) -> None:
        """Create the unfinished database with the encoding and locale of the source."""
        import psycopg  # noqa: PLC0415

        with connect(self._maintenance) as connection, translated(self._maintenance):
            statement = create_statement(
                self.unfinished, facts, locale=locale, version=connection.info.server_version
            )
            try:
                connection.execute(statement.encode())
            except (
                psycopg.errors.InvalidParameterValue,
                psycopg.errors.WrongObjectType,
                psycopg.errors.FeatureNotSupported,
            ) as error:
                raise Refused(
                    f"The target server cannot make a database like the source: {error}",
                    do="Install the locale on the target's machine, or name another one to use "
                    "in its place (text sorts differently then).",
                ) from None
            note = f"Unfinished restore of {self.name} by strongroom: not complete, safe to drop."
            connection.execute(
                f"COMMENT ON DATABASE {quoted(self.unfinished)} IS {literal(note)}".encode()
            )

    def learn(self, contents: Contents) -> None:
        """Need nothing of the archive: what is made goes as a whole."""

    def freezable(self) -> frozenset[tuple[str, str]]:
        """The tables whose rows may come in frozen: nobody else has seen them, and we made them."""
        with connect(self.conninfo) as connection, translated(self.conninfo):
            return frozenset(catalogue.freezable_tables(connection))

    def abandon(self, *, keep: bool) -> str:
        """Drop the unfinished database unless `keep`; say what state things are in."""
        if keep:
            return f"The unfinished database was kept as {self.unfinished!r}: do not trust it."
        try:
            self._drop()
        except StrongroomError as second:
            return (
                f"The unfinished database {self.unfinished!r} could not be dropped "
                f"({second.what}); every other database is as it was."
            )
        return (
            "The unfinished database was dropped; every other database of the server is as it was."
        )

    def _drop(self) -> None:
        """Drop the unfinished database if it is there."""
        with connect(self._maintenance) as connection, translated(self._maintenance):
            statement = f"DROP DATABASE IF EXISTS {quoted(self.unfinished)} WITH (FORCE)"
            connection.execute(statement.encode())

    def dress(self, facts: Mapping[str, Any], *, owner: bool) -> list[str]:
        """Give the database its owner, rights, settings and comment; return what failed."""
        failed = []
        with connect(self.conninfo) as connection:
            for statement in dress_statements(self.unfinished, facts, owner=owner):
                failed += _attempt(connection, statement)
            for role, name, value in facts["settings"]:
                failed += _set(connection, self.unfinished, role, name, value)
        return failed

    def take_name(self, *, replace: bool) -> list[str]:
        """Give the finished database its name; return what could not be cleaned up.

        With `replace` the old one is renamed away in the same transaction and dropped after it.
        """
        with connect(self._maintenance) as connection, translated(self._maintenance):
            # Whatever the cluster's default: a name that was told of must outlive a crash, and with
            # it all that was written before.
            connection.execute("SET synchronous_commit = on")
            old = _OLD + secrets.token_hex(6) if replace and exists(connection, self.name) else None
            with _closed(connection, self.name) if old else contextlib.nullcontext():
                self._rename(connection, old)
            return _attempt(connection, f"DROP DATABASE {quoted(old)} WITH (FORCE)") if old else []

    def _rename(self, connection: psycopg.Connection[Any], old: str | None) -> None:
        import psycopg  # noqa: PLC0415

        try:
            with connection.transaction():
                if old:
                    connection.execute(_renaming(self.name, old))
                connection.execute(_renaming(self.unfinished, self.name))
        except psycopg.errors.ObjectInUse as error:
            raise Busy(
                f"{self.name!r} could not be replaced: {error}",
                means="The restore is complete and verified but was dropped; "
                "the existing database is untouched.",
                do="Stop whoever uses the database, then run the same command again.",
            ) from None
        except psycopg.errors.DuplicateDatabase:
            raise Refused(
                f"A database {self.name!r} was made by somebody else meanwhile."
            ) from None


def _renaming(old: str, new: str) -> bytes:
    return f"ALTER DATABASE {quoted(old)} RENAME TO {quoted(new)}".encode()


@contextlib.contextmanager
def _closed(connection: psycopg.Connection[Any], name: str) -> Iterator[None]:
    """Keep everybody out of a database while its name changes; open it again if that fails."""
    connection.execute(f"ALTER DATABASE {quoted(name)} ALLOW_CONNECTIONS false".encode())
    try:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = %s AND backend_type = 'client backend'",
            [name],
        )
        yield
    except BaseException:
        connection.execute(f"ALTER DATABASE {quoted(name)} ALLOW_CONNECTIONS true".encode())
        raise


def exists(connection: psycopg.Connection[Any], name: str) -> bool:
    """Say whether there is a database of this name."""
    query = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = %s)"
    row = connection.execute(query, [name]).fetchone()
    return bool(row and row[0])


def leftovers(connection: psycopg.Connection[Any]) -> list[str]:
    """Databases that earlier runs left behind: killed restores, replaced ones still in use."""
    rows = connection.execute(
        "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
        " OR starts_with(datname, %s) ORDER BY 1",
        [UNFINISHED, _OLD],
    )
    return [name for (name,) in rows]


def create_statement(
    name: str, facts: Mapping[str, Any], *, locale: str | None, version: int
) -> str:
    """CREATE DATABASE for a database like the recorded one; `version` is the target's."""
    parts = [f"CREATE DATABASE {quoted(name)} TEMPLATE template0"]
    parts.append(f"ENCODING {literal(facts['encoding'])}")
    if locale is not None:
        return " ".join([*parts, f"LC_COLLATE {literal(locale)} LC_CTYPE {literal(locale)}"])
    parts.append(f"LC_COLLATE {literal(facts['collate'])} LC_CTYPE {literal(facts['ctype'])}")
    if facts["provider"] == "i":
        parts.append(f"LOCALE_PROVIDER icu ICU_LOCALE {literal(facts['locale'])}")
    elif facts["provider"] == "b":
        parts.append(f"LOCALE_PROVIDER builtin BUILTIN_LOCALE {literal(facts['locale'])}")
    elif version >= 150000:
        parts.append("LOCALE_PROVIDER libc")
    return " ".join(parts)


def dress_statements(name: str, facts: Mapping[str, Any], *, owner: bool) -> Iterator[str]:
    """Yield what gives a database its owner, rights, limit and comment."""
    database = quoted(name)
    if owner:
        yield f"ALTER DATABASE {database} OWNER TO {quoted(facts['owner'])}"
    comment = "NULL" if facts["comment"] is None else literal(facts["comment"])
    yield f"COMMENT ON DATABASE {database} IS {comment}"
    yield f"ALTER DATABASE {database} CONNECTION LIMIT {int(facts['connection_limit'])}"
    for privilege in {"CONNECT", "TEMPORARY"} - set(facts["public_may"]):
        yield f"REVOKE {privilege} ON DATABASE {database} FROM PUBLIC"
    if "CREATE" in facts["public_may"]:
        yield f"GRANT CREATE ON DATABASE {database} TO PUBLIC"
    for role, privilege, grantable in facts["privileges"]:
        if privilege in ("CREATE", "CONNECT", "TEMPORARY"):
            option = " WITH GRANT OPTION" if grantable else ""
            yield f"GRANT {privilege} ON DATABASE {database} TO {quoted(role)}{option}"


def _set(
    connection: psycopg.Connection[Any], database: str, role: str | None, name: str, value: str
) -> list[str]:
    """Record one setting of the database, or of a role in it.

    The value is set in this session first and taken over from there: lists such as search_path
    then need no parsing by us.
    """
    import psycopg  # noqa: PLC0415

    if name.lower() in _NEVER_SET:
        return [f"setting {name} = {value!r} was not restored: it loads code into every session"]
    whose = f"ROLE {quoted(role)} IN DATABASE" if role is not None else "DATABASE"
    head = f"ALTER {whose} {quoted(database)} SET {quoted_parameter(name)}"
    try:
        with connection.transaction():
            connection.execute("SELECT set_config(%s, %s, true)", [name, value])
            connection.execute(f"{head} FROM CURRENT".encode())
    except psycopg.Error:
        return _attempt(connection, f"{head} TO {literal(value)}")
    return []


def quoted_parameter(name: str) -> str:
    """A setting's name as SQL: each part of an extension's setting quoted for itself."""
    return quoted(*name.split("."))


def _attempt(connection: psycopg.Connection[Any], statement: str) -> list[str]:
    import psycopg  # noqa: PLC0415

    try:
        connection.execute(statement.encode())
    except psycopg.OperationalError as error:
        if error.sqlstate is None:
            raise
        return [f"{error.diag.message_primary} ({statement})"]
    except psycopg.Error as error:
        return [f"{error.diag.message_primary} ({statement})"]
    return []
