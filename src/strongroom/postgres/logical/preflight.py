"""Can this restore be carried out? Everything that can be known before anything is changed.

Rule of this file: nothing here writes; every refusal says what to do about it.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from strongroom.errors import (
    DatabaseUnreachable,
    KeyRefused,
    NotFound,
    Refused,
    StrongroomError,
    UsageError,
)
from strongroom.postgres.clients import Client, Clients
from strongroom.postgres.logical import names
from strongroom.postgres.logical.inplace import refuse_unfit
from strongroom.postgres.logical.order import Order
from strongroom.postgres.logical.source import FACTS_FORMAT
from strongroom.postgres.logical.target import exists, leftovers
from strongroom.postgres.server import ServerFacts, connect, server_facts, translated
from strongroom.repository.ports import SnapshotReader

if TYPE_CHECKING:
    import psycopg


def look(order: Order, snapshot: SnapshotReader) -> tuple[dict[str, Any], Client, ServerFacts]:
    """Check everything that can be checked without a change; return plan, pg_restore, server."""
    source = snapshot.facts
    name, facts = choose_database(source, order.database)
    names.check_database_name(order.target)
    with connect(order.conninfo) as connection, translated(order.conninfo):
        server = server_facts(connection)
        _refuse_server(order, connection, server, source)
        present = exists(connection, order.target)
        users = _users_of(connection, order.target) if present else []
        in_place = present and not order.replace
        differs = _look_inside(order, facts, users) if in_place else []
        if not in_place:
            _refuse_making(order, connection, present)
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
    clients = order.clients or Clients.found()
    tool = int(str(source["pg_dump"]).split(".", 1)[0])
    client = clients.choose("restore", server=server.major, archive=tool)
    tables = [t for t in facts["tables"] if _may_be_wanted(order, t)]
    plan = {
        "database": name,
        "target": order.target,
        "replaces": present and order.replace,
        "in_place": in_place,
        "locale_kept": differs,
        "open_connections": users,
        "server": server.version,
        "pg_restore": client.text,
        "tables": len(tables),
        "rows": sum(t["rows"] for t in tables),
        "size": facts["size"] if not order.subset else sum(t["size"] for t in tables),
        "free": free,
        "roles_missing": missing["roles"],
        "roles_created": order.global_objects,
        "tablespaces_missing": missing["tablespaces"],
        "leftovers": left,
    }
    # A restored database has no dead rows: half of the recorded size is certainly needed.
    if free is not None and free < plan["size"] // 2:
        raise Refused(
            f"The target server has {free} bytes free and the restore needs up to "
            f"{plan['size']}: the old database, if any, stays until the new one is verified.",
            do="Free space on the server, or drop what is not needed there.",
        )
    return plan, client, server


def _refuse_server(
    order: Order,
    connection: psycopg.Connection[Any],
    server: ServerFacts,
    source: Mapping[str, Any],
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


def _refuse_making(order: Order, connection: psycopg.Connection[Any], present: bool) -> None:
    """Refuse when a database has to be made beside the others and cannot be."""
    row = connection.execute(
        "SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user"
    ).fetchone()
    if not row or not row[0]:
        raise Refused(
            f"The role may not create databases on the server of {order.conninfo.where}.",
            do="ALTER ROLE … CREATEDB, or restore with another role; or have an empty database "
            "made for it, and restore into that.",
        )
    if present and order.conninfo.database == order.target:
        raise Refused(
            f"The dsn of the target leads to {order.target!r} itself, which is to be replaced.",
            do="Give the dsn of another database of the server, such as postgres.",
        )


def _look_inside(order: Order, facts: Mapping[str, Any], users: Sequence[str]) -> list[str]:
    """Refuse an existing database that is not to be replaced, unless it is empty and fit."""
    there = order.conninfo.on(order.target)
    with connect(there) as connection, translated(there):
        return refuse_unfit(connection, facts, locale=order.locale, users=users)


def reachable(order: Order) -> Order:
    """The same order, by way of the target itself where nothing else of the server may be entered.

    Services that hand out one database often let nobody into `postgres`.
    """
    try:
        connect(order.conninfo).close()
    except (DatabaseUnreachable, KeyRefused, Refused) as fault:
        if "authentication failed" in fault.what or "no password" in fault.what:
            raise  # a wrong password is not tried twice
        direct = order.conninfo.on(order.target)
        try:
            connect(direct).close()
        except StrongroomError:
            pass
        else:
            return replace(order, conninfo=direct)
        raise
    return order


def _may_be_wanted(order: Order, table: Mapping[str, Any]) -> bool:
    key = (table["schema"], table["name"])
    wanted = order.subset
    return not wanted or key[0] in wanted.schemas or key in wanted.tables


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
    listed = ", ".join(repr(name) for name in databases)
    if wanted is None:
        raise UsageError(
            f"The snapshot holds several databases: {listed}. Which one?",
            do="Name it with --database.",
        )
    if wanted not in databases:
        raise NotFound(f"The snapshot has no database {wanted!r}.", do=f"Name one of: {listed}.")
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
        " FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"
        " AND pid <> pg_backend_pid() ORDER BY pid",
        [database],
    )
    return [text.strip() for (text,) in rows]


def _free_space(connection: psycopg.Connection[Any]) -> int | None:
    """Free bytes where the server's data is, when it is on this machine and may be looked at.

    Only over a socket of this machine: 127.0.0.1 may be a tunnel to another one.
    """
    if connection.info.hostaddr:
        return None
    # current_setting would be an error for roles that may not know; the view shows them nothing.
    row = connection.execute(
        "SELECT setting FROM pg_settings WHERE name = 'data_directory'"
    ).fetchone()
    try:
        return shutil.disk_usage(row[0]).free if row and row[0] else None
    except OSError:
        return None
