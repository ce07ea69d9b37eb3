"""The database that is restored into, when it exists, is empty, and has to stay the one it is.

Rule of this file: only what is empty of everything is filled; a schema whose name says "unfinished"
stands in it from before the first object until all is verified; a run that fails drops the
archive's own objects, by the archive's own words, and says what is left. The database itself (its
OID, owner, settings, privileges, comment) is never touched: services that hand out databases and no
right to make one need that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from strongroom.errors import Busy, Refused, StrongroomError
from strongroom.postgres.logical.archive import Contents, TocEntry
from strongroom.postgres.logical.catalogue import user_objects
from strongroom.postgres.server import Conninfo, connect, quoted, translated

if TYPE_CHECKING:
    import psycopg

MARK = "strongroom-unfinished"
_LOCK_TIMEOUT = 10.0


# What lives inside a database and nowhere else. Never more than that: an archive also knows how to
# drop the database that it was made of, and on the same server that one is there.
_INSIDE = frozenset(
    (
        *("TABLE", "PARTITIONED TABLE", "FOREIGN TABLE", "VIEW", "MATERIALIZED VIEW", "SEQUENCE"),
        *("TYPE", "SHELL TYPE", "DOMAIN", "SCHEMA", "EXTENSION", "FUNCTION", "PROCEDURE"),
        *("AGGREGATE", "OPERATOR", "OPERATOR CLASS", "OPERATOR FAMILY", "CAST", "TRANSFORM"),
        *("CONVERSION", "COLLATION", "ACCESS METHOD", "PROCEDURAL LANGUAGE", "TEXT SEARCH PARSER"),
        *("TEXT SEARCH TEMPLATE", "TEXT SEARCH DICTIONARY", "TEXT SEARCH CONFIGURATION"),
        *("FOREIGN DATA WRAPPER", "SERVER", "USER MAPPING", "EVENT TRIGGER", "PUBLICATION"),
        *("FK CONSTRAINT", "RULE", "POLICY", "STATISTICS", "SUBSCRIPTION"),
    )
)


class InPlace:
    """An existing, empty database; `conninfo` leads to it."""

    marks = 1

    def __init__(self, conninfo: Conninfo) -> None:
        self.conninfo = conninfo
        self.name = conninfo.database
        self._drops: list[str] = []

    def create(self, facts: Mapping[str, Any], *, locale: str | None) -> None:
        """Put up the mark. Refused when the database is not empty any more, Busy for two at once.

        The mark is made first and the look comes second: of two restores at once one loses here.
        """
        import psycopg  # noqa: PLC0415

        with connect(self.conninfo) as connection, translated(self.conninfo):
            # What the restore commits asynchronously must never outlive its mark in a crash.
            connection.execute("SET synchronous_commit = on")
            try:
                connection.execute(f"CREATE SCHEMA {quoted(MARK)}".encode())
            except (psycopg.errors.DuplicateSchema, psycopg.errors.UniqueViolation):
                raise Busy(
                    f"Another restore into {self.name!r} has begun.",
                    means="Nothing was changed by this run.",
                    do="Wait for it to end. If it was killed, empty the database first.",
                ) from None
            found = _beside_mark(connection)
            if found:
                connection.execute(f"DROP SCHEMA {quoted(MARK)}".encode())
                raise Refused(f"{self.name!r} is not empty any more: it holds {listed(found)}.")

    def learn(self, contents: Contents) -> None:
        """Remember how to undo what is to be restored: dependants before what they need."""
        self._drops = [text for e in reversed(contents.entries) if (text := _drop_statement(e))]

    def dress(self, facts: Mapping[str, Any], *, owner: bool) -> list[str]:
        """Leave the database's own owner, rights and settings; nothing can fail."""
        return []

    def take_name(self, *, replace: bool) -> list[str]:
        """Take the mark down: from now on the database is whole."""
        with connect(self.conninfo) as connection, translated(self.conninfo):
            connection.execute(f"DROP SCHEMA {quoted(MARK)}".encode())
        return []

    def freezable(self) -> frozenset[tuple[str, str]]:
        """None: others may be at work in a database that is there already."""
        return frozenset()

    def abandon(self, *, keep: bool) -> str:
        """Drop what was restored unless `keep`; say what state things are in."""
        if keep:
            return self._unsafe
        try:
            return self._empty()
        except StrongroomError as second:
            return f"{self._unsafe} It could not be emptied ({second.what})."

    @property
    def _unsafe(self) -> str:
        return f"{self.name!r} holds an unfinished restore: do not use it."

    def _empty(self) -> str:
        conninfo = self.conninfo
        with connect(conninfo, lock_timeout=_LOCK_TIMEOUT) as connection, translated(conninfo):
            reasons = _undo(connection, self._drops)
            found = _beside_mark(connection)
            if found:
                why = f" ({reasons[0]})" if reasons else ""
                return f"{self._unsafe} What could not be dropped: {listed(found)}{why}."
            connection.execute(f"DROP SCHEMA IF EXISTS {quoted(MARK)}".encode())
        return f"{self.name!r} is empty again, as it was found; no other database was touched."


def _drop_statement(entry: TocEntry) -> str:
    """The SQL that takes an entry of the archive away again; "" when nothing has to be done."""
    drop = entry.drop.strip()
    if entry.kind not in _INSIDE or not drop or (entry.kind, entry.tag) == ("SCHEMA", "public"):
        return ""
    if entry.kind == "SUBSCRIPTION":
        # Without this the drop would reach out to the publisher and drop the source's own slot.
        return f"ALTER SUBSCRIPTION {quoted(entry.tag)} SET (slot_name = NONE); {drop}"
    return drop


def _beside_mark(connection: psycopg.Connection[Any]) -> dict[str, int]:
    found = user_objects(connection)
    found["schemas"] = found.get("schemas", 0) - 1
    return {kind: count for kind, count in found.items() if count}


def _undo(connection: psycopg.Connection[Any], drops: Sequence[str]) -> list[str]:
    """Drop objects until nothing more can be dropped; return why the rest could not.

    Each in a transaction of its own: one for all would need a lock for every object at once.
    """
    _drop_large_objects(connection)
    waiting, reasons = list(drops), [""]
    while waiting and reasons:
        left, reasons = [], []
        for statement in waiting:
            reason = _drop(connection, statement)
            if reason:
                left.append(statement)
                reasons.append(reason)
        if len(left) == len(waiting):
            break
        waiting = left
    return reasons


def _drop(connection: psycopg.Connection[Any], statement: str) -> str:
    """Run one of the archive's drop statements; return why it failed, "" if there is no need."""
    import psycopg  # noqa: PLC0415

    try:
        connection.execute(statement.encode("utf-8", "surrogateescape"))
    except psycopg.Error as error:
        if error.sqlstate is None:
            raise
        # 42703, 42704, 42883, 42P01, 3F000: what is to be dropped was not made, or is gone.
        absent = ("42703", "42704", "42883", "42P01", "3F000")
        return "" if error.sqlstate in absent else str(error.diag.message_primary)
    return ""


def _drop_large_objects(connection: psycopg.Connection[Any]) -> None:
    """Unlink all large objects, some at a time: there were none when the restore began."""
    unlink = (
        "SELECT count(lo_unlink(oid)) FROM (SELECT oid FROM pg_largeobject_metadata"
        " WHERE pg_has_role(lomowner, 'USAGE') LIMIT 1000) s"
    )
    while (row := connection.execute(unlink).fetchone()) and row[0]:
        pass


def listed(found: Mapping[str, int]) -> str:
    """Objects in words: "2 relations, 1 function"."""
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in found.items())


def refuse_unfit(
    connection: psycopg.Connection[Any],
    facts: Mapping[str, Any],
    *,
    locale: str | None,
    users: Sequence[str],
) -> list[str]:
    """Refuse a database that cannot be filled, or that is not empty; return what will differ.

    `connection` is to the database itself, `users` are the others that are connected to it; `facts`
    are those of the backup.
    """
    row = connection.execute(
        "SELECT datname, pg_encoding_to_char(encoding), datcollate, datctype,"
        " has_database_privilege(oid, 'CREATE'),"
        " coalesce(has_schema_privilege(to_regnamespace('public')::oid, 'CREATE'), false)"
        " FROM pg_database WHERE datname = current_database()"
    ).fetchone()
    assert row is not None
    name, encoding, collate, ctype, may_create, may_use_public = row
    _refuse_full(connection, name, users)
    if encoding != facts["encoding"]:
        raise Refused(
            f"The database {name!r} is in {encoding} and the backup in {facts['encoding']}.",
            do=f"Restore into a new database, or into one made with ENCODING {facts['encoding']}.",
        )
    if locale is not None:
        raise Refused(
            f"The database {name!r} exists and keeps its locale {collate}.",
            do="Leave out --locale, or restore into a new database.",
        )
    in_public = any(table["schema"] == "public" for table in facts["tables"])
    if not may_create or (in_public and not may_use_public):
        lacking = "database" if not may_create else "schema public of database"
        raise Refused(
            f"The role may not create anything in the {lacking} {name!r}.",
            do=f"As its owner: GRANT CREATE ON DATABASE {quoted(name)} TO the role, "
            "and in it GRANT CREATE ON SCHEMA public TO the role.",
        )
    here = {"collate": collate, "ctype": ctype}
    return [f"{k} {v}, not {facts[k]}" for k, v in here.items() if v != facts[k]]


def _refuse_full(connection: psycopg.Connection[Any], name: str, users: Sequence[str]) -> None:
    found = user_objects(connection)
    if not found:
        return
    row = connection.execute("SELECT to_regnamespace(%s) IS NOT NULL", [quoted(MARK)]).fetchone()
    if row and row[0]:
        raise Refused(
            f"The database {name!r} holds an unfinished restore that may be under way, "
            f"or was killed: {listed(found)}.",
            do="If no restore is under way, pass --replace, or empty the database: drop its "
            f"objects and the schema {MARK!r}; then run the same command again.",
        )
    connected = f" Connected to it: {', '.join(users)}." if users else ""
    raise Refused(
        f"A database {name!r} exists on the target server.{connected} It holds {listed(found)}.",
        do="Restore under another name, or pass --replace: the old one is dropped only "
        "after the new one is complete and verified.",
    )
