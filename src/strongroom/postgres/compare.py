"""Are two databases the same? Every row, definition, sequence and large object is looked at.

Rule of this file: it shares nothing with the dump and the restore that it judges. Rows are hashed
by the servers (128 bits a row, summed, so that order does not matter and repeats count); definitions
are read from the catalogues as PostgreSQL itself writes them. An answer is a list of differences in
words, empty when there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from strongroom.postgres.server import Conninfo, connect, quoted, translated

if TYPE_CHECKING:
    import psycopg

_MOST = 50
# Whatever changes how a value is written as text must be the same on both sides.
_PINNED = (
    "SET datestyle = 'ISO, YMD'; SET intervalstyle = 'iso_8601'; SET timezone = 'UTC';"
    " SET extra_float_digits = 3; SET bytea_output = 'hex'; SET row_security = off;"
    " SET default_transaction_read_only = on"
)
_USER = (
    "n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')"
    " AND n.nspname NOT LIKE 'pg\\_temp\\_%' AND n.nspname NOT LIKE 'pg\\_toast\\_temp\\_%'"
)
_ACL = "(SELECT array_agg(a::text ORDER BY a::text) FROM unnest({}) a)"
# Each query yields (name, description) of one kind of object.
_DEFINITIONS = {
    "schema": "SELECT n.nspname, format('owner %s, rights %s, %s', pg_get_userbyid(nspowner),"
    f" {_ACL.format('nspacl')}, obj_description(n.oid, 'pg_namespace'))"
    f" FROM pg_namespace n WHERE {_USER} AND n.nspname <> 'public'",
    "relation": "SELECT format('%I.%I', n.nspname, relname), format('%s %s owner %s, rights %s,"
    " options %s, row security %s %s, partition %s of %s, identity %s, comment %s', relkind,"
    f" relpersistence, pg_get_userbyid(relowner), {_ACL.format('relacl')},"
    " reloptions, relrowsecurity, relforcerowsecurity, pg_get_expr(relpartbound, c.oid),"
    " (SELECT array_agg(inhparent::regclass::text ORDER BY inhseqno) FROM pg_inherits"
    " WHERE inhrelid = c.oid), relreplident, obj_description(c.oid, 'pg_class'))"
    f" FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE {_USER}"
    " AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND relpersistence <> 't'",
    "column": "SELECT format('%I.%I.%I', n.nspname, relname, attname), format('%s %s %s default %s"
    " collation %s identity %s generated %s storage %s local %s rights %s comment %s', rank() OVER"
    " (PARTITION BY attrelid ORDER BY attnum), format_type(atttypid, atttypmod), attnotnull,"
    " pg_get_expr(adbin, adrelid), attcollation::regcollation, attidentity, attgenerated,"
    f" attstorage, attislocal, {_ACL.format('attacl')},"
    " col_description(attrelid, attnum)) FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid"
    " JOIN pg_namespace n ON n.oid = relnamespace LEFT JOIN pg_attrdef ON adrelid = attrelid AND"
    f" adnum = attnum WHERE attnum > 0 AND NOT attisdropped AND {_USER}"
    " AND relkind IN ('r', 'p', 'v', 'm', 'f', 'c') AND relpersistence <> 't'",
    "index": "SELECT indexrelid::regclass::text, format('%s valid %s clustered %s',"
    " pg_get_indexdef(indexrelid), indisvalid, indisclustered) FROM pg_index JOIN pg_class c"
    f" ON c.oid = indrelid JOIN pg_namespace n ON n.oid = relnamespace WHERE {_USER}"
    " AND relpersistence <> 't'",
    "constraint": "SELECT format('%s %I', conrelid::regclass, conname), format('%s validated %s"
    " inherited %s', pg_get_constraintdef(k.oid), convalidated, coninhcount)"
    " FROM pg_constraint k JOIN pg_class c ON c.oid = conrelid JOIN pg_namespace n ON"
    f" n.oid = relnamespace WHERE {_USER} AND contype IN ('p', 'u', 'f', 'x', 'c')",
    "trigger": "SELECT format('%s %I', tgrelid::regclass, tgname), format('%s enabled %s',"
    " pg_get_triggerdef(t.oid), tgenabled) FROM pg_trigger t WHERE NOT tgisinternal",
    "rule": "SELECT format('%s %I', ev_class::regclass, rulename), pg_get_ruledef(r.oid)"
    " FROM pg_rewrite r JOIN pg_class c ON c.oid = ev_class JOIN pg_namespace n"
    f" ON n.oid = relnamespace WHERE {_USER}",
    "policy": "SELECT format('%s %I', polrelid::regclass, polname), format('%s %s %s %s %s',"
    " polcmd, polpermissive, polroles::regrole[], pg_get_expr(polqual, polrelid),"
    " pg_get_expr(polwithcheck, polrelid)) FROM pg_policy",
    "function": "SELECT p.oid::regprocedure::text, format('%s owner %s rights %s', CASE prokind"
    " WHEN 'a' THEN 'aggregate' ELSE pg_get_functiondef(p.oid) END, pg_get_userbyid(proowner),"
    f" {_ACL.format('proacl')}) FROM pg_proc p"
    f" JOIN pg_namespace n ON n.oid = pronamespace WHERE {_USER}",
    "type": "SELECT format('%I.%I', n.nspname, typname), format('%s base %s not null %s default %s"
    " labels %s checks %s', typtype, format_type(typbasetype, typtypmod), typnotnull, typdefault,"
    " (SELECT array_agg(enumlabel ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid),"
    " (SELECT array_agg(pg_get_constraintdef(k.oid) ORDER BY 1) FROM pg_constraint k"
    " WHERE contypid = t.oid AND contype = 'c')) FROM pg_type t JOIN pg_namespace n"
    f" ON n.oid = typnamespace WHERE {_USER} AND typtype IN ('e', 'd', 'r', 'm')",
    "extension": "SELECT extname::text, extversion FROM pg_extension",
    "event trigger": "SELECT evtname::text, format('%s %s %s', evtevent, evtfoid::regproc,"
    " evtenabled) FROM pg_event_trigger",
    "publication": "SELECT pubname::text, format('%s %s %s', puballtables, pubinsert,"
    " (SELECT array_agg(prrelid::regclass::text ORDER BY 1) FROM pg_publication_rel"
    " WHERE prpubid = p.oid)) FROM pg_publication p",
    "statistics": "SELECT stxname::text, pg_get_statisticsobjdef(oid) FROM pg_statistic_ext",
    "default rights": "SELECT format('%s %s %s', pg_get_userbyid(defaclrole),"
    f" defaclnamespace::regnamespace, defaclobjtype), {_ACL.format('defaclacl')}::text"
    " FROM pg_default_acl",
    "large object": "SELECT oid::text, format('owner %s, rights %s, comment %s, content %s',"
    f" pg_get_userbyid(lomowner), {_ACL.format('lomacl')},"
    " obj_description(oid, 'pg_largeobject'), md5(lo_get(oid))) FROM pg_largeobject_metadata",
    "setting": "SELECT format('%s %s', coalesce(r.rolname, '(all)'), split_part(c, '=', 1)), c"
    " FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase"
    " LEFT JOIN pg_roles r ON r.oid = setrole, unnest(setconfig) c"
    " WHERE datname = current_database()",
    "database": "SELECT 'itself', format('%s %s %s owner %s limit %s rights %s comment %s',"
    " pg_encoding_to_char(encoding), datcollate, datctype, pg_get_userbyid(datdba), datconnlimit,"
    f" {_ACL.format('datacl')}, shobj_description(oid, 'pg_database')) FROM pg_database"
    " WHERE datname = current_database()",
}
_TABLES = (
    "SELECT n.nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
    " WHERE (relkind = 'r' OR relkind = 'm' AND relispopulated) AND relpersistence <> 't'"
    f" AND {_USER} ORDER BY 1, 2"
)
_SEQUENCES = (
    "SELECT n.nspname, relname, format('%s %s %s %s %s %s %s', seqtypid::regtype, seqstart,"
    " seqincrement, seqmin, seqmax, seqcache, seqcycle) FROM pg_sequence JOIN pg_class c"
    " ON c.oid = seqrelid JOIN pg_namespace n ON n.oid = relnamespace"
    f" WHERE relpersistence <> 't' AND {_USER} ORDER BY 1, 2"
)


def compare_databases(
    dsn_a: str, dsn_b: str, *, definitions: bool = True, rows: bool = True
) -> list[str]:
    """Return every difference between two databases in words, at most 50; none: they are the same.

    `definitions` should be False when the servers differ in major version: they write some
    definitions differently. Raises DatabaseUnreachable, KeyRefused or Refused.
    """
    a, b = Conninfo.parse(dsn_a), Conninfo.parse(dsn_b)
    differences: list[str] = []
    with connect(a) as one, connect(b) as other, translated(a):
        one.execute(_PINNED)
        other.execute(_PINNED)
        for kind, name, first, second in _differing(one, other, definitions, rows):
            differences.append(f"{kind} {name}: {_short(first)} against {_short(second)}")
            if len(differences) == _MOST:
                break
    return differences


def _differing(
    one: psycopg.Connection[Any], other: psycopg.Connection[Any], definitions: bool, rows: bool
) -> Iterator[tuple[str, str, str | None, str | None]]:
    if definitions:
        for kind, query in _DEFINITIONS.items():
            yield from _pairs(kind, _definitions(one, query), _definitions(other, query))
    yield from _pairs("sequence", _sequences(one), _sequences(other))
    if rows:
        yield from _pairs("rows of", table_digests(one), table_digests(other))


def _pairs(
    kind: str, a: dict[str, str], b: dict[str, str]
) -> Iterator[tuple[str, str, str | None, str | None]]:
    for name in sorted(a.keys() | b.keys()):
        if a.get(name) != b.get(name):
            yield kind, name, a.get(name), b.get(name)


def _definitions(connection: psycopg.Connection[Any], query: str) -> dict[str, str]:
    return {str(name): str(text) for name, text in connection.execute(query.encode())}


def _sequences(connection: psycopg.Connection[Any]) -> dict[str, str]:
    found = {}
    for schema, name, text in connection.execute(_SEQUENCES.encode()).fetchall():
        query = f"SELECT last_value, is_called FROM {quoted(schema, name)}"
        row = connection.execute(query.encode()).fetchone()
        found[quoted(schema, name)] = f"{text} at {row}"
    return found


def table_digests(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Return for every table and filled materialized view its row count and a digest of its rows."""
    return {
        quoted(schema, name): _digest(connection, quoted(schema, name))
        for schema, name in connection.execute(_TABLES.encode()).fetchall()
    }


def _digest(connection: psycopg.Connection[Any], table: str) -> str:
    query = (
        "SELECT count(*), coalesce(sum(hashtextextended(t::text, 1)::numeric), 0),"
        f" coalesce(sum(hashtextextended(t::text, 2)::numeric), 0) FROM ONLY {table} t"
    )
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return f"{row[0]} rows, digest {int(row[1]):x}.{int(row[2]):x}"


def _short(text: str | None) -> str:
    if text is None:
        return "nothing"
    return text if len(text) <= 300 else text[:297] + "…"
