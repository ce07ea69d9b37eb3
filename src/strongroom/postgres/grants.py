"""The least that a role needs to back up a source: as SQL, as lines of pg_hba.conf, as a list to hold it
against. PURE.

Rule: the SQL may be run again, quotes every name, has no password in it, and takes nothing away from
anybody: what a role has beyond its needs is named by the check (`rights.py`), each with its own REVOKE.
What a function is called, and which roles there are, depends on the major version; where that is not
known, the server chooses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from strongroom.errors import UsageError
from strongroom.postgres.server import literal, quoted

Purpose = Literal["logical", "local", "stream", "receive"]
READ_ALL = "pg_read_all_data"  # since 14
SETTINGS = "pg_read_all_settings"
_NEWEST = 10**6
_HEAD: dict[Purpose, str] = {
    "logical": "pg_dump of {0}",
    "local": "the cluster's files, on the database's host",
    "stream": "the whole cluster, by the replication protocol",
    "receive": "its log as it is written (wal receive)",
}


@dataclass(frozen=True, slots=True)
class Needs:
    """What a role is for. `databases` are those that are dumped, `database` the dsn's own.

    `row_security` names databases with tables that have row security; `archives` says whether the
    server archives its log. None, and a `major` of None, for what is not known.
    """

    role: str
    purposes: tuple[Purpose, ...]
    database: str
    databases: tuple[str, ...] = ()
    major: int | None = None
    row_security: tuple[str, ...] = ()
    archives: bool | None = None

    @property
    def replicates(self) -> bool:
        """Whether it needs REPLICATION. A local backup keeps the log that it needs by a slot only where
        nothing is archived: what is not archived yet stays by itself."""
        if {"stream", "receive"} & set(self.purposes):
            return True
        return "local" in self.purposes and self.archives is False

    @property
    def bypasses(self) -> bool:
        """Whether it needs BYPASSRLS: pg_dump refuses to leave rows out."""
        return "logical" in self.purposes and bool(self.row_security)

    @property
    def memberships(self) -> tuple[str, ...]:
        """The roles that it is to be a member of."""
        found = []
        if "logical" in self.purposes and (self.major or _NEWEST) >= 14:
            found.append(READ_ALL)
        if "local" in self.purposes:
            found.append(SETTINGS)
        return tuple(found)

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions that it is to execute, by the names of its major version."""
        if "local" not in self.purposes:
            return ()
        return (*backup_functions(self.major or _NEWEST), "pg_show_all_file_settings()")

    @property
    def connects(self) -> tuple[str, ...]:
        """The databases that it connects to by SQL."""
        found = list(self.databases) if "logical" in self.purposes else []
        return tuple(dict.fromkeys([self.database, *found]))


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, the database to run it in, and what it is for."""

    database: str
    sql: str
    why: str = ""


def backup_functions(major: int) -> tuple[str, str]:
    """What begins and ends a backup, as PostgreSQL calls it."""
    if major >= 15:
        return "pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"
    return "pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"


def statements(wanted: Needs) -> list[Statement]:
    """The SQL, in order; each statement may be run again."""
    found = [Statement(wanted.database, *one) for one in _cluster(wanted)]
    if "local" in wanted.purposes:
        found += [Statement(wanted.database, *one) for one in _local(wanted)]
    if "logical" in wanted.purposes:
        for database in wanted.databases or (wanted.database,):
            found += [Statement(database, *one) for one in _inside(wanted)]
    return found


def script(wanted: Needs, source: str, *, hosts: Sequence[str] = ()) -> str:
    """Everything as a script for psql; `hosts` are where the backup connects from, "" by a socket."""
    named = ", ".join(map(_shown, wanted.databases or (wanted.database,)))
    what = "; ".join(_HEAD[one].format(named) for one in wanted.purposes)
    role = quoted(wanted.role)
    lines = [
        f"-- What role {_shown(wanted.role)} needs to back {_shown(source)} up: {what}.",
        "-- Run it as a superuser, with psql -X -v ON_ERROR_STOP=1; again is fine. No password is in it:",
        f"-- \\password {_shown(role)} asks for one and sends its SCRAM verifier only.",
    ]
    where = None
    for one in statements(wanted):
        if one.database != where:
            where = one.database
            lines += ["", rf"\connect {_reconnect(where)}"]
        if one.why:
            lines.append(f"-- {one.why}")
        lines.append(one.sql)
    lines += ["", "-- In pg_hba.conf, above what is broader; then SELECT pg_reload_conf();"]
    lines += [f"-- {line}" for line in hba_lines(wanted, hosts)]
    return "\n".join(lines) + "\n"


def hba_lines(wanted: Needs, hosts: Sequence[str] = ()) -> list[str]:
    """What pg_hba.conf must let in, and no more: by TLS, but for the loopback; SCRAM."""
    every = [_hba(one) for one in wanted.connects]
    if wanted.replicates and wanted.purposes != ("local",):
        every.append("replication")
    found = []
    for host in hosts or ("ADDRESS/32",):
        loopback = host.startswith(("127.", "::1"))
        kind = "local" if not host else "host" if loopback else "hostssl"
        address = f"{host if '/' in host else _network(host)}  " if host else ""
        found += [f"{kind}  {one}  {_hba(wanted.role)}  {address}scram-sha-256" for one in every]
    return found


# -- the statements ----------------------------------------------------------------------------


def _cluster(wanted: Needs) -> Iterable[tuple[str, str]]:
    role = quoted(wanted.role)
    yield (
        _do(
            f"IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {literal(wanted.role)})"
            f" THEN CREATE ROLE {role} LOGIN; END IF;"
        ),
        "",
    )
    yield f"ALTER ROLE {role} LOGIN INHERIT;", ""
    if wanted.replicates:
        why = "to stream" if wanted.purposes != ("local",) else "for a slot: nothing is archived"
        yield f"ALTER ROLE {role} REPLICATION;", f"REPLICATION {why}"
    if wanted.bypasses:
        named = ", ".join(map(_shown, wanted.row_security))
        yield f"ALTER ROLE {role} BYPASSRLS;", f"tables of {named} have row security"
    for database in wanted.connects:
        yield f"GRANT CONNECT ON DATABASE {quoted(database)} TO {role};", ""
    for group in wanted.memberships:
        grant = f"GRANT {group} TO {role};"
        # From 16 on a grant has options of its own; it need not be possible to become the group.
        newer = f"GRANT {group} TO {role} WITH INHERIT TRUE, SET FALSE;"
        versions = ((16, _NEWEST, newer), (14 if group == READ_ALL else 0, 16, grant))
        yield _by_version(wanted.major, versions), ""


def _local(wanted: Needs) -> Iterable[tuple[str, str]]:
    role = quoted(wanted.role)

    def grant(major: int) -> str:
        named = ", ".join(f"pg_catalog.{one}" for one in backup_functions(major))
        return f"GRANT EXECUTE ON FUNCTION {named} TO {role};"

    yield _by_version(wanted.major, ((15, _NEWEST, grant(15)), (0, 15, grant(14)))), ""
    yield (
        f"GRANT SELECT ON pg_catalog.pg_file_settings TO {role};",
        "which files its configuration is read from: they are in the backup too",
    )
    yield f"GRANT EXECUTE ON FUNCTION pg_catalog.pg_show_all_file_settings() TO {role};", ""


def _inside(wanted: Needs) -> Iterable[tuple[str, str]]:
    name = literal(wanted.role)
    schemas = (
        "FOR one IN SELECT nspname FROM pg_catalog.pg_namespace"
        " WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP"
        f" EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %I TO %I', one.nspname, {name});"
        f" EXECUTE pg_catalog.format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO %I', one.nspname, {name});"
        f" EXECUTE pg_catalog.format('GRANT SELECT ON ALL SEQUENCES IN SCHEMA %I TO %I', one.nspname,"
        f" {name}); END LOOP;"
    )
    if (wanted.major or 0) < 14:
        yield (
            _by_version(wanted.major, ((0, 14, _do(schemas, "one record")),)),
            "before 14, what is made later needs the same again",
        )
    objects = (
        "FOR one IN SELECT oid FROM pg_catalog.pg_largeobject_metadata m WHERE NOT EXISTS (SELECT"
        " FROM pg_catalog.aclexplode(m.lomacl) a JOIN pg_catalog.pg_roles r ON r.oid = a.grantee"
        f" WHERE r.rolname = {name} AND a.privilege_type = 'SELECT') LOOP"
        f" EXECUTE pg_catalog.format('GRANT SELECT ON LARGE OBJECT %s TO %I', one.oid, {name});"
        " END LOOP;"
    )
    yield (
        _do(objects, "one record"),
        "large objects have owners of their own; new ones need it again",
    )


def _by_version(major: int | None, versions: Sequence[tuple[int, int, str]]) -> str:
    """The statement of a major version, or one in which the server chooses. [from, to)"""
    if major is not None:
        return next(sql for least, most, sql in versions if least <= major < most)
    arms = "".join(
        f" IF current_setting('server_version_num')::int / 10000 BETWEEN {least} AND {most - 1}"
        f" THEN EXECUTE {literal(sql)}; END IF;"
        for least, most, sql in versions
    )
    return _do(arms.strip())


def _do(body: str, declared: str = "") -> str:
    """An anonymous block; the tag of its quotes is not in it, whatever names are."""
    number, tag = 0, "$do$"
    while tag in body:
        number, tag = number + 1, f"$do{number}$"
    declare = f"DECLARE {declared}; " if declared else ""
    return f"DO {tag} {declare}BEGIN {body} END {tag};"


# -- names where they are not SQL --------------------------------------------------------------


def _shown(name: str) -> str:
    """A name in a comment, which must not end it."""
    return "".join(char if char.isprintable() else "?" for char in name)


def _reconnect(database: str) -> str:
    """The argument of psql's \\connect; a name is never taken for a connection string."""
    if "\n" in database or "\r" in database:
        raise UsageError(f"The database {database!r} has a line break in its name.")
    value = database.replace("\\", "\\\\").replace("'", "\\'")
    return f"-reuse-previous=on {quoted(f'dbname={chr(39)}{value}{chr(39)}')}"


def _hba(name: str) -> str:
    """A name in pg_hba.conf: in quotes it is never a keyword."""
    if "\n" in name or "\r" in name:
        raise UsageError(f"{name!r} has a line break in it and cannot stand in pg_hba.conf.")
    return quoted(name)


def _network(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


__all__ = ["Needs", "Purpose", "Statement", "hba_lines", "script", "statements"]
