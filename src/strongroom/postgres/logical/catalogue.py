"""What a database holds, asked inside one snapshot: tables, sequences, large objects, roles.

Rule of this file: only objects that pg_dump would dump are named; catalogues and temporary tables
never are, and the members of extensions belong to the extension, which brings them back itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from strongroom.postgres.logical.plan import Table
from strongroom.postgres.server import quoted

if TYPE_CHECKING:
    import psycopg

_USER_SCHEMA = (
    "n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')"
    " AND n.nspname NOT LIKE 'pg\\_temp\\_%' AND n.nspname NOT LIKE 'pg\\_toast\\_temp\\_%'"
)


def _not_member(catalogue: str, column: str) -> str:
    return (
        f"NOT EXISTS (SELECT FROM pg_depend x WHERE x.classid = '{catalogue}'::regclass"
        f" AND x.objid = {column} AND x.deptype = 'e')"
    )


_TABLES = (
    "SELECT n.nspname, c.relname, c.relpersistence = 'u', c.relkind::text,"
    f" NOT ({_not_member('pg_class', 'c.oid')})"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    f" WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND {_USER_SCHEMA}"
    " ORDER BY 1, 2"
)
_SIZES = (
    "SELECT n.nspname, c.relname, pg_table_size(c.oid)"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    f" WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND {_USER_SCHEMA}"
)
_FREEZABLE = (
    "SELECT n.nspname, c.relname"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " LEFT JOIN pg_am a ON a.oid = c.relam"
    f" WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND {_USER_SCHEMA}"
    f" AND {_not_member('pg_class', 'c.oid')} AND coalesce(a.amname, 'heap') = 'heap'"
    " AND has_table_privilege(c.oid, 'TRUNCATE')"
    " AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.contype = 'f' AND k.confrelid = c.oid)"
    " AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid)"
)
_SEQUENCES = (
    "SELECT n.nspname, c.relname, s.seqincrement"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " JOIN pg_sequence s ON s.seqrelid = c.oid"
    f" WHERE c.relpersistence <> 't' AND {_USER_SCHEMA} AND {_not_member('pg_class', 'c.oid')}"
    " ORDER BY 1, 2"
)
# One number per kind of object: what is missing after a restore shows, whatever kind it is. Only
# kinds are counted that a dump and a restore keep one to one, on every version alike.
_INVENTORY = {
    "schemas": f"SELECT count(*) FROM pg_namespace n WHERE {_USER_SCHEMA}"
    " AND n.nspname <> 'public'"
    f" AND {_not_member('pg_namespace', 'n.oid')}",
    "views": "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    f" WHERE c.relkind = 'v' AND c.relpersistence <> 't' AND {_USER_SCHEMA}"
    f" AND {_not_member('pg_class', 'c.oid')}",
    "materialized_views": "SELECT count(*) FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    f" WHERE c.relkind = 'm' AND {_USER_SCHEMA} AND {_not_member('pg_class', 'c.oid')}",
    "foreign_tables": "SELECT count(*) FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    f" WHERE c.relkind = 'f' AND {_USER_SCHEMA} AND {_not_member('pg_class', 'c.oid')}",
    "indexes": "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE (i.indisvalid OR c.relkind = 'p') AND i.indisready AND c.relpersistence <> 't'"
    f" AND {_USER_SCHEMA} AND {_not_member('pg_class', 'c.oid')}",
    "constraints": "SELECT count(*) FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE k.contype IN ('p', 'u', 'f', 'x', 'c') AND c.relpersistence <> 't'"
    " AND (k.contype <> 'f' OR k.conparentid = 0)"
    f" AND {_USER_SCHEMA} AND {_not_member('pg_class', 'c.oid')}",
    "triggers": "SELECT count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    f" WHERE NOT t.tgisinternal AND c.relpersistence <> 't' AND {_USER_SCHEMA}"
    f" AND {_not_member('pg_class', 'c.oid')}",
    "rules": "SELECT count(*) FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    f" WHERE r.rulename <> '_RETURN' AND {_USER_SCHEMA} AND {_not_member('pg_class', 'c.oid')}",
    "policies": "SELECT count(*) FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid"
    f" WHERE {_not_member('pg_class', 'c.oid')}",
    "functions": "SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
    # Constructors of range types are internal dependants of their type.
    f" WHERE {_USER_SCHEMA} AND NOT EXISTS (SELECT FROM pg_depend x"
    " WHERE x.classid = 'pg_proc'::regclass AND x.objid = p.oid AND x.deptype IN ('e', 'i'))",
    "types": "SELECT count(*) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace"
    " LEFT JOIN pg_class c ON c.oid = t.typrelid"
    " WHERE (t.typtype IN ('e', 'd', 'r') OR c.relkind = 'c')"
    f" AND {_USER_SCHEMA} AND {_not_member('pg_type', 't.oid')}",
    "event_triggers": "SELECT count(*) FROM pg_event_trigger e"
    f" WHERE {_not_member('pg_event_trigger', 'e.oid')}",
    "publications": "SELECT count(*) FROM pg_publication",
    "statistics_objects": "SELECT count(*) FROM pg_statistic_ext",
    "extensions": "SELECT count(*) FROM pg_extension",
}
_ROLES = (
    "SELECT r.rolname FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid"
    " WHERE s.refclassid = 'pg_authid'::regclass"
    " AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " UNION SELECT pg_get_userbyid(c.relowner) FROM pg_class c"
    f" JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_USER_SCHEMA}"
    " UNION SELECT pg_get_userbyid(p.proowner) FROM pg_proc p"
    f" JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {_USER_SCHEMA}"
    " UNION SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
    " ORDER BY 1"
)
_TABLESPACES = (
    "SELECT spcname FROM pg_tablespace WHERE oid IN (SELECT reltablespace FROM pg_class"
    " WHERE reltablespace <> 0) AND spcname <> 'pg_global'"
    " UNION SELECT spcname FROM pg_tablespace t JOIN pg_database d ON d.dattablespace = t.oid"
    " WHERE datname = current_database() AND spcname <> 'pg_default' ORDER BY 1"
)


# What a database that was just made has none of. Objects of initdb have OIDs below 16384; what
# belongs to an extension is counted as the extension.
_OBJECTS = {
    "relations": "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't'"
    f" AND {_USER_SCHEMA} AND {_not_member('pg_class', 'c.oid')}",
    "schemas": f"SELECT count(*) FROM pg_namespace n WHERE {_USER_SCHEMA}"
    " AND n.nspname <> 'public'"
    f" AND {_not_member('pg_namespace', 'n.oid')}",
    "functions": "SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
    f" WHERE {_USER_SCHEMA} AND {_not_member('pg_proc', 'p.oid')}",
    "types": "SELECT count(*) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace"
    " LEFT JOIN pg_class c ON c.oid = t.typrelid"
    " WHERE (t.typrelid = 0 OR c.relkind = 'c') AND t.typcategory <> 'A'"
    f" AND {_USER_SCHEMA} AND {_not_member('pg_type', 't.oid')}",
    "collations": "SELECT count(*) FROM pg_collation c JOIN pg_namespace n"
    f" ON n.oid = c.collnamespace WHERE {_USER_SCHEMA} AND {_not_member('pg_collation', 'c.oid')}",
    "extensions": "SELECT count(*) FROM pg_extension WHERE extname <> 'plpgsql'",
    "large_objects": "SELECT count(*) FROM pg_largeobject_metadata",
    "publications": "SELECT count(*) FROM pg_publication",
    "default_privileges": "SELECT count(*) FROM pg_default_acl",
    "subscriptions": "SELECT count(subdbid) FROM pg_subscription WHERE subdbid ="
    " (SELECT oid FROM pg_database WHERE datname = current_database())",
    **{
        kind: f"SELECT count(*) FROM {catalogue} o WHERE o.oid >= 16384"
        f" AND {_not_member(catalogue, 'o.oid')}"
        for kind, catalogue in {
            "operators": "pg_operator",
            "operator_classes": "pg_opclass",
            "operator_families": "pg_opfamily",
            "conversions": "pg_conversion",
            "casts": "pg_cast",
            "transforms": "pg_transform",
            "languages": "pg_language",
            "access_methods": "pg_am",
            "event_triggers": "pg_event_trigger",
            "foreign_data_wrappers": "pg_foreign_data_wrapper",
            "foreign_servers": "pg_foreign_server",
            "text_search_configurations": "pg_ts_config",
            "text_search_dictionaries": "pg_ts_dict",
            "text_search_parsers": "pg_ts_parser",
            "text_search_templates": "pg_ts_template",
        }.items()
    },
}


def user_objects(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """Count whatever a new database does not have, by kind; empty for an empty database."""
    query = "SELECT " + ", ".join(f"({count})" for count in _OBJECTS.values())
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return {kind: n for kind, n in zip(_OBJECTS, map(int, row), strict=True) if n}


def lockable_tables(connection: psycopg.Connection[Any]) -> tuple[list[Table], list[str]]:
    """Tables with rows of their own, sizes still 0, and the SQL names of all that must not change.

    Sizes are asked later, under locks: pg_table_size would wait for whoever rewrites a table.
    """
    tables, names = [], []
    for schema, name, unlogged, kind, member in connection.execute(_TABLES.encode()):
        if kind == "r":
            tables.append(Table(schema, name, 0, unlogged, member))
        if not member:
            names.append(quoted(schema, name))
    return tables, names


def with_sizes(
    connection: psycopg.Connection[Any], tables: Sequence[Table], *, encoding: str
) -> list[Table]:
    """The same tables with their sizes (heap, TOAST and maps, in bytes) and what may stand apart.

    pg_dump reads the names it is given in the encoding of the database; ours are UTF-8, so that in
    another encoding only ASCII names may be given.
    """
    sizes = {(s, n): size for s, n, size in connection.execute(_SIZES.encode())}
    any_name = encoding in ("UTF8", "SQL_ASCII")
    return [
        replace(
            t,
            size=sizes.get((t.schema, t.name)) or 0,
            apart=not t.extension and (any_name or (t.schema + t.name).isascii()),
        )
        for t in tables
    ]


def count_rows(connection: psycopg.Connection[Any], schema: str, name: str) -> int:
    """Count the rows of one table, without those of its children."""
    query = f"SELECT count(*) FROM ONLY {quoted(schema, name)}"
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def freezable_tables(connection: psycopg.Connection[Any]) -> Iterator[tuple[str, str]]:
    """Yield the tables that may be emptied before their rows come in: what an extension made has
    rows of its own already, and what others refer to, or what fires on it, does not let us."""
    yield from connection.execute(_FREEZABLE.encode()).fetchall()


def large_objects(connection: psycopg.Connection[Any]) -> tuple[int, int]:
    """Count large objects and the bytes of the table that holds all of them."""
    row = connection.execute(
        "SELECT (SELECT count(*) FROM pg_largeobject_metadata),"
        " pg_table_size('pg_catalog.pg_largeobject')"
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1]) if row[0] else 0


def sequence_values(connection: psycopg.Connection[Any]) -> Iterator[dict[str, Any]]:
    """Yield every sequence with its last value, whether it was called, and its increment."""
    names = connection.execute(_SEQUENCES.encode()).fetchall()
    for start in range(0, len(names), 100):
        batch = names[start : start + 100]
        query = " UNION ALL ".join(
            f"SELECT {number}, last_value, is_called FROM {quoted(schema, name)}"
            for number, (schema, name, _) in enumerate(batch)
        )
        for number, value, called in sorted(connection.execute(query.encode()).fetchall()):
            schema, name, increment = batch[number]
            yield {
                "schema": schema,
                "name": name,
                "value": value,
                "called": called,
                "increment": increment,
            }


def inventory(connection: psycopg.Connection[Any]) -> dict[str, int]:
    """Count the objects of every kind that a restore must bring back one to one."""
    query = "SELECT " + ", ".join(f"({count})" for count in _INVENTORY.values())
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return dict(zip(_INVENTORY, map(int, row), strict=True))


def roles_named(connection: psycopg.Connection[Any]) -> list[str]:
    """Roles that own something, may do something, or are named by a policy of this database."""
    return [name for (name,) in connection.execute(_ROLES.encode())]


def tablespaces_named(connection: psycopg.Connection[Any]) -> list[str]:
    """Tablespaces other than the default that this database uses."""
    return [name for (name,) in connection.execute(_TABLESPACES.encode())]
