"""What the role of a backup may not read, before a backup finds out."""

from __future__ import annotations

from dataclasses import dataclass

from strongroom.postgres.server import Conninfo, connect

_NAMED = 5
_UNREADABLE = """
select format('%I.%I', n.nspname, c.relname)
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p', 'S', 'm')
   and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
   and not (case when c.relkind = 'S'
                 then pg_catalog.has_sequence_privilege(c.oid, 'SELECT')
                 else pg_catalog.has_table_privilege(c.oid, 'SELECT') end
            and pg_catalog.has_schema_privilege(n.oid, 'USAGE'))
 order by 1
"""


@dataclass(frozen=True, slots=True)
class Rights:
    """How many tables and sequences may not be read, the first of them, and whether all may."""

    superuser: bool
    unreadable: int
    first: tuple[str, ...]


def rights(dsn: str, database: str, password: str | None) -> Rights:
    """Look at one database. Raises DatabaseUnreachable, KeyRefused or Refused."""
    conninfo = Conninfo.parse(dsn, password=password).on(database)
    with connect(conninfo, statement_timeout=60) as connection:
        rows = connection.execute(_UNREADABLE).fetchall()
        found = connection.execute(
            "select rolsuper from pg_catalog.pg_roles where rolname = current_user"
        ).fetchone()
    names = tuple(str(row[0]) for row in rows)
    return Rights(bool(found and found[0]), len(names), names[:_NAMED])
