"""What a role may do, held against what it needs: what is missing, and what it has beyond.

Rule: what is explicit is looked at, each thing where it is granted, so that each has its own REVOKE: what
the role is by itself, what it is a member of, what it owns, what was granted to it or to everybody, in
every database where it has anything. Asked of the catalogues alone; nothing is tried.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from strongroom.errors import StrongroomError
from strongroom.postgres.grants import READ_ALL, Needs, backup_functions, statements
from strongroom.postgres.server import Conninfo, connect, literal, quoted, translated

if TYPE_CHECKING:
    import psycopg

_NAMED = 5  # of things that are alike
_EXPIRES_SOON = timedelta(days=14)
_PRIVILEGE = "{privilege}"
_WHY = {
    "pg_write_all_data": "it may change every row",
    "pg_execute_server_program": "it may run programs as the server's account",
    "pg_write_server_files": "it may write files as the server's account",
    "pg_read_server_files": "it may read files as the server's account",
    "pg_signal_backend": "it may end other sessions",
    "pg_database_owner": "it is the owner of a database",
}


@dataclass(frozen=True, slots=True)
class Right:
    """A right that is missing, or one too many: what it is, the statement that puts it right, and the
    database to run that in."""

    kind: Literal["missing", "excess"]
    what: str
    sql: str
    database: str

    def as_json(self) -> dict[str, str]:
        """JSON values."""
        return {"kind": self.kind, "what": self.what, "sql": self.sql, "database": self.database}


@dataclass(slots=True)
class Rights:
    """What was found. `unread` are databases that could not be looked into, each with the reason."""

    role: str
    superuser: bool = False
    passwords: bool = True  # whether it may read the verifiers of passwords
    found: list[Right] = field(default_factory=list)
    unread: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[Right]:
        """What it needs and has not."""
        return [one for one in self.found if one.kind == "missing"]

    @property
    def excess(self) -> list[Right]:
        """What it has and does not need."""
        return [one for one in self.found if one.kind == "excess"]


def look(conninfo: Conninfo, wanted: Needs, *, now: datetime) -> Rights:
    """Look at a role in every database where it counts. Raises what `connect` does."""
    conninfo = conninfo.on(wanted.database)
    with translated(conninfo), connect(conninfo, statement_timeout=20) as connection:
        looking = _Looking(connection, wanted, Rights(wanted.role))
        if not looking.role(now):
            return looking.rights
        looking.inside(wanted.database)
        others = looking.other_databases()
    for database in others:
        try:
            with (
                translated(conninfo),
                connect(conninfo.on(database), statement_timeout=20) as connection,
            ):
                _Looking(connection, wanted, looking.rights).inside(database)
        except StrongroomError as fault:
            looking.rights.unread[database] = fault.what
    return looking.rights


@dataclass(frozen=True, slots=True)
class Premises:
    """What decides which rights are needed."""

    major: int
    user: str
    superuser: bool
    archives: bool
    address: str | None  # ours, as the server sees it; None by a socket
    databases: tuple[str, ...]
    row_security: tuple[str, ...]
    data_directory: str | None
    slots: tuple[str, ...]

    @property
    def near(self) -> bool:
        """Whether the server is on this machine, as it sees it."""
        return self.address is None or self.address.startswith(("127.", "::1"))


@dataclass(frozen=True, slots=True)
class Asked:
    """What a role needs, by what its server says; or why that could not be asked."""

    needs: Needs
    premises: Premises | None
    away: StrongroomError | None


def ask(conninfo: Conninfo, databases: Sequence[str], *, every: bool = False) -> Premises:
    """Ask a server for the premises; `every` is all of its databases. Raises what `connect` does."""
    with translated(conninfo), connect(conninfo, statement_timeout=20) as connection:
        row = _one(
            connection,
            "SELECT current_setting('server_version_num')::int / 10000, current_user::text,"
            " current_setting('is_superuser') = 'on', current_setting('archive_mode') <> 'off',"
            " host(inet_client_addr()),"
            " (SELECT setting FROM pg_settings WHERE name = 'data_directory')",
        )
        if every:
            names = connection.execute(
                "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1"
            )
            databases = [name for (name,) in names.fetchall()]
        slots = connection.execute(
            "SELECT slot_name::text FROM pg_replication_slots WHERE slot_type = 'physical' ORDER BY 1"
        ).fetchall()
    chosen = tuple(databases) or (conninfo.database,)
    secured = []
    for database in chosen:
        with contextlib.suppress(StrongroomError), _connected(conninfo.on(database)) as connection:
            if _one(connection, f"SELECT EXISTS ({_SECURED})")[0]:
                secured.append(database)
    major, user, superuser, archives, address, directory = row
    return Premises(
        major,
        user,
        superuser,
        archives,
        address,
        chosen,
        tuple(secured),
        directory or None,
        tuple(name for (name,) in slots),
    )


@contextlib.contextmanager
def _connected(conninfo: Conninfo) -> Iterator[psycopg.Connection[Any]]:
    with translated(conninfo), connect(conninfo, statement_timeout=20) as connection:
        yield connection


class _Looking:
    """One connection's look; what it finds goes into `rights`."""

    def __init__(self, connection: psycopg.Connection[Any], wanted: Needs, rights: Rights) -> None:
        self._connection, self._wanted, self.rights = connection, wanted, rights
        self._name = quoted(wanted.role)
        self._literal = literal(wanted.role)
        self._major = connection.info.server_version // 10000
        self._logical = "logical" in wanted.purposes

    # -- of the cluster --------------------------------------------------------------------

    def role(self, now: datetime) -> bool:
        """What it is by itself, and what it is a member of; False when there is nothing more to say."""
        row = self._connection.execute(
            "SELECT oid = 10, rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolreplication,"
            " rolbypassrls,"
            " CASE WHEN isfinite(rolvaliduntil) THEN rolvaliduntil END FROM pg_roles WHERE rolname = %s",
            [self._wanted.role],
        ).fetchone()
        if row is None:
            self._missing("there is no such role", statements(self._wanted)[0].sql)
            return False
        first, login, superuser, makes_roles, makes_databases, replicates, bypasses, until = row
        self.rights.superuser = superuser
        if not login:
            self._missing("it may not log in", f"ALTER ROLE {self._name} LOGIN;")
        self._expiry(until, now)
        if first:  # it has everything, for ever, and nothing can be taken away from it
            self._excess(
                "it is the superuser that initdb made",
                "-- make a role of its own by what `strongroom source grants` prints",
            )
            return True
        if superuser:
            self._excess("it is a superuser", f"ALTER ROLE {self._name} NOSUPERUSER;")
        if makes_roles:
            self._excess("CREATEROLE: it may make roles", f"ALTER ROLE {self._name} NOCREATEROLE;")
        if makes_databases:
            self._excess("CREATEDB: it may make databases", f"ALTER ROLE {self._name} NOCREATEDB;")
        for has, needs, word, what in (
            (replicates, self._wanted.replicates, "REPLICATION", "it may stream the whole cluster"),
            (bypasses, self._wanted.bypasses, "BYPASSRLS", "row security does not bind it"),
        ):
            if has and not needs:
                self._excess(f"{word}: {what}", f"ALTER ROLE {self._name} NO{word};")
            elif needs and not has and not superuser:
                self._missing(word, f"ALTER ROLE {self._name} {word};")
        self._memberships(superuser)
        return True

    def _expiry(self, until: datetime | None, now: datetime) -> None:
        if until is None:
            return
        sql = f"ALTER ROLE {self._name} VALID UNTIL 'infinity';"
        if until <= now:
            self._missing(f"its password is not valid since {until.astimezone(UTC):%Y-%m-%d}", sql)
        elif until - now < _EXPIRES_SOON:
            self.rights.warnings.append(
                f"its password is valid until {until.astimezone(UTC):%Y-%m-%d %H:%M} UTC only"
            )

    def _memberships(self, superuser: bool) -> None:
        grants = self._connection.execute(
            "SELECT g.rolname::text, m.admin_option, m.grantor::regrole::text FROM pg_auth_members m"
            " JOIN pg_roles r ON r.oid = m.member JOIN pg_roles g ON g.oid = m.roleid"
            " WHERE r.rolname = %s ORDER BY 1",
            [self._wanted.role],
        ).fetchall()
        for group, admin, grantor in grants:
            by = f" GRANTED BY {grantor}" if self._major >= 16 else ""
            if group not in self._wanted.memberships:
                why = _WHY.get(group, "it has all the rights of that role")
                self._excess(
                    f"member of {group}: {why}",
                    f"REVOKE {quoted(group)} FROM {self._name}{by};",
                )
            elif admin:
                self._excess(
                    f"it may give {group} to others",
                    f"REVOKE ADMIN OPTION FOR {quoted(group)} FROM {self._name}{by};",
                )
        if superuser:
            return
        for group in self._wanted.memberships:
            (uses,) = self._ask("pg_has_role({0}, " + literal(group) + ", 'USAGE')")
            if not uses:
                sql = next(
                    one.sql for one in statements(self._wanted) if f"GRANT {group}" in one.sql
                )
                self._missing(f"the rights of {group}", sql)

    def other_databases(self) -> list[str]:
        """The databases to look into besides: what is dumped, and where it owns or was granted things."""
        rows = self._connection.execute(
            "SELECT DISTINCT d.datname FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid"
            " JOIN pg_roles r ON r.oid = s.refobjid"
            " WHERE s.refclassid = 'pg_authid'::regclass AND r.rolname = %s AND d.datallowconn",
            [self._wanted.role],
        ).fetchall()
        every = [*self._wanted.connects, *sorted(name for (name,) in rows)]
        return [name for name in dict.fromkeys(every) if name != self._wanted.database]

    # -- of one database -------------------------------------------------------------------

    def inside(self, database: str) -> None:
        """What it may do in the database of the connection."""
        if not self.rights.superuser:
            self._needs(database)
        self._owned(database)
        self._granted(database)

    def _needs(self, database: str) -> None:
        wanted = self._wanted
        if database in wanted.connects:
            (may,) = self._ask("has_database_privilege({0}, current_database(), 'CONNECT')")
            if not may:
                sql = f"GRANT CONNECT ON DATABASE {quoted(database)} TO {self._name};"
                self._missing(f"CONNECT on {database}", sql)
        if "local" in wanted.purposes and database == wanted.database:
            for function in backup_functions(self._major):
                name = literal("pg_catalog." + function)
                (may,) = self._ask("has_function_privilege({0}, " + name + ", 'EXECUTE')")
                if not may:
                    sql = f"GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {self._name};"
                    self._missing(f"EXECUTE on {function}", sql, database)
        if self._logical and database in (wanted.databases or (wanted.database,)):
            self._reads(database)

    def _reads(self, database: str) -> None:
        (self.rights.passwords,) = self._ask("has_table_privilege({0}, 'pg_authid', 'SELECT')")
        names = self._names(_UNREADABLE)
        if names:
            sql = next(
                (one.sql for one in statements(self._wanted) if READ_ALL in one.sql),
                f"GRANT SELECT ON {', '.join(names[:_NAMED])} TO {self._name};",
            )
            self._missing(f"it may not read {_some(names)}", sql, database)
        objects = self._names(_UNREADABLE_OBJECTS)
        if objects:
            sql = next(one.sql for one in statements(self._wanted) if "LARGE OBJECT" in one.sql)
            self._missing(f"it may not read {len(objects):,} large objects", sql, database)

    def _owned(self, database: str) -> None:
        rows = self._connection.execute(
            "SELECT pg_describe_object(s.classid, s.objid, s.objsubid) FROM pg_shdepend s"
            " JOIN pg_roles r ON r.oid = s.refobjid"
            " WHERE s.refclassid = 'pg_authid'::regclass AND s.deptype = 'o' AND r.rolname = %s"
            " AND (s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
            "      OR s.dbid = 0 AND %s) ORDER BY 1",
            [self._wanted.role, database == self._wanted.database],
        ).fetchall()
        names = [text for (text,) in rows if text is not None]
        if names:
            self._excess(
                f"it owns {_some(names)}",
                f"REASSIGN OWNED BY {self._name} TO CURRENT_USER;",
                database,
            )

    def _granted(self, database: str) -> None:
        """What was granted to it, or to everybody, beyond its needs."""
        query = _ACL.format(parameters=_PARAMETERS if self._major >= 15 else "")
        rows = self._connection.execute(
            query.encode(),
            {"role": self._wanted.role, "cluster": database == self._wanted.database},
        ).fetchall()
        found: dict[tuple[str, str, str], list[str]] = {}
        for what, place, privilege, public, grantor, name in rows:
            if not public and self._needed(what, name, privilege):
                continue
            who = "PUBLIC" if public else self._name
            found.setdefault((what, who, grantor or ""), []).append(f"{privilege}\0{place}")
        for (what, who, grantor), grants in found.items():
            for privilege, places in _by_privilege(grants).items():
                self._too_much(what, who, grantor, privilege, places, database)

    def _too_much(
        self,
        what: str,
        who: str,
        grantor: str,
        privilege: str,
        places: list[str],
        database: str,
    ) -> None:
        everybody = " (as everybody may)" if who == "PUBLIC" else ""
        if what == "DEFAULT":
            sql = " ".join(
                f"{place.replace(_PRIVILEGE, privilege)} FROM {who};" for place in places
            )
            self._excess(f"{privilege} on what will be made", sql, database)
            return
        sql = " ".join(f"REVOKE {privilege} ON {what} {place} FROM {who};" for place in places)
        if what == "COLUMN":
            sql = " ".join(
                f"REVOKE {privilege} ({column}) ON TABLE {table} FROM {who};"
                for table, column in (place.split("\1") for place in places)
            )
            places = [place.replace("\1", ".") for place in places]
        if grantor:  # a superuser revokes what the owner granted, and nothing else
            sql = f"SET ROLE {grantor}; {sql} RESET ROLE;"
        self._excess(f"{privilege} on {what.lower()} {_some(places)}{everybody}", sql, database)

    def _needed(self, what: str, name: str, privilege: str) -> bool:
        """Whether a grant to the role is one of those that are printed for it."""
        if privilege == "CONNECT":
            return True
        if "local" in self._wanted.purposes and (
            (what == "ROUTINE" and privilege == "EXECUTE" and name in _LOCAL_FUNCTIONS)
            or (what == "TABLE" and privilege == "SELECT" and name == "pg_file_settings")
        ):
            return True
        reads = privilege == "SELECT" or (privilege == "USAGE" and what == "SCHEMA")
        return self._logical and reads

    # -- telling ---------------------------------------------------------------------------

    def _missing(self, what: str, sql: str, database: str = "") -> None:
        self.rights.found.append(Right("missing", what, sql, database or self._wanted.database))

    def _excess(self, what: str, sql: str, database: str = "") -> None:
        self.rights.found.append(Right("excess", what, sql, database or self._wanted.database))

    def _ask(self, expression: str) -> tuple[Any, ...]:
        return _one(self._connection, "SELECT " + expression.format(self._literal))

    def _names(self, query: str) -> list[str]:
        text = query.replace("{role}", self._literal)
        return [name for (name,) in self._connection.execute(text.encode()).fetchall()]


def _by_privilege(grants: Iterable[str]) -> dict[str, list[str]]:
    """Places by the privileges that were granted on them."""
    places: dict[str, list[str]] = {}
    for grant in grants:
        privilege, place = grant.split("\0")
        places.setdefault(place, []).append(privilege)
    found: dict[str, list[str]] = {}
    for place, privileges in places.items():
        found.setdefault(", ".join(sorted(privileges)), []).append(place)
    return found


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _one(connection: psycopg.Connection[Any], query: str) -> tuple[Any, ...]:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return tuple(row)


_OURS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
_LOCAL_FUNCTIONS = frozenset(
    {"pg_backup_start", "pg_backup_stop", "pg_start_backup", "pg_stop_backup"}
    | {"pg_show_all_file_settings"}
)
_SECURED = (
    "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    f" WHERE c.relkind IN ('r', 'p') AND c.relrowsecurity AND {_OURS}"
)
_UNREADABLE = f"""
SELECT format('%I.%I', n.nspname, c.relname)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'S', 'm') AND {_OURS}
   AND NOT (CASE WHEN c.relkind = 'S' THEN has_sequence_privilege({{role}}, c.oid, 'SELECT')
                 ELSE has_table_privilege({{role}}, c.oid, 'SELECT') END
            AND has_schema_privilege({{role}}, n.oid, 'USAGE'))
 ORDER BY 1
"""
_UNREADABLE_OBJECTS = """
SELECT m.oid::text FROM pg_largeobject_metadata m
 WHERE NOT pg_has_role({role}, m.lomowner, 'USAGE')
   AND NOT EXISTS (SELECT FROM aclexplode(m.lomacl) a WHERE a.privilege_type = 'SELECT'
                      AND (a.grantee = 0 OR pg_has_role({role}, a.grantee, 'USAGE')))
 ORDER BY 1
"""
# Everything that carries grants: kind, how a REVOKE names it, owner, grants, whether what everybody may
# do counts, plain name. Each row is a privilege of the role, or one to write that everybody has.
_PARAMETERS = """
  UNION ALL SELECT 'PARAMETER', quote_ident(p.parname), 10, p.paracl, true, p.parname::text
    FROM pg_parameter_acl p WHERE %(cluster)s"""
_ACL = """
WITH held(what, place, owner, acl, shared, name) AS (
  SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
         format('%%I.%%I', n.nspname, c.relname), c.relowner, c.relacl,
         n.nspname !~ '^pg_' AND n.nspname <> 'information_schema', c.relname::text
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relacl IS NOT NULL
  UNION ALL SELECT 'COLUMN', format(E'%%I.%%I\\x01%%I', n.nspname, c.relname, a.attname), c.relowner,
         a.attacl, n.nspname !~ '^pg_' AND n.nspname <> 'information_schema', c.relname::text
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE a.attacl IS NOT NULL AND NOT a.attisdropped
  UNION ALL SELECT 'SCHEMA', quote_ident(n.nspname), n.nspowner, n.nspacl, true, n.nspname::text
    FROM pg_namespace n WHERE n.nspacl IS NOT NULL
  UNION ALL SELECT 'DATABASE', quote_ident(d.datname), d.datdba, d.datacl, true, d.datname::text
    FROM pg_database d WHERE d.datacl IS NOT NULL AND %(cluster)s
  UNION ALL SELECT 'ROUTINE', p.oid::regprocedure::text, p.proowner, p.proacl, false, p.proname::text
    FROM pg_proc p WHERE p.proacl IS NOT NULL
  UNION ALL SELECT 'LANGUAGE', quote_ident(l.lanname), l.lanowner, l.lanacl, false, l.lanname::text
    FROM pg_language l WHERE l.lanacl IS NOT NULL
  UNION ALL SELECT 'FOREIGN DATA WRAPPER', quote_ident(f.fdwname), f.fdwowner, f.fdwacl, false,
         f.fdwname::text FROM pg_foreign_data_wrapper f WHERE f.fdwacl IS NOT NULL
  UNION ALL SELECT 'FOREIGN SERVER', quote_ident(s.srvname), s.srvowner, s.srvacl, true,
         s.srvname::text FROM pg_foreign_server s WHERE s.srvacl IS NOT NULL
  UNION ALL SELECT 'TABLESPACE', quote_ident(t.spcname), t.spcowner, t.spcacl, true, t.spcname::text
    FROM pg_tablespace t WHERE t.spcacl IS NOT NULL AND %(cluster)s
  UNION ALL SELECT 'TYPE', format('%%I.%%I', n.nspname, t.typname), t.typowner, t.typacl, false,
         t.typname::text
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.typacl IS NOT NULL
  UNION ALL SELECT 'LARGE OBJECT', m.oid::text, m.lomowner, m.lomacl, true, m.oid::text
    FROM pg_largeobject_metadata m WHERE m.lomacl IS NOT NULL
  UNION ALL SELECT 'DEFAULT', format('ALTER DEFAULT PRIVILEGES FOR ROLE %%I%%s REVOKE {{privilege}} ON %%s',
         pg_get_userbyid(d.defaclrole), coalesce(' IN SCHEMA ' || quote_ident(n.nspname), ''),
         CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'ROUTINES'
              WHEN 'T' THEN 'TYPES' WHEN 'n' THEN 'SCHEMAS' ELSE 'LARGE OBJECTS' END),
         d.defaclrole, d.defaclacl, true, ''
    FROM pg_default_acl d LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace{parameters}
)
SELECT h.what, h.place, a.privilege_type, a.grantee = 0,
       CASE WHEN a.grantor <> h.owner THEN a.grantor::regrole::text END, h.name
  FROM held h, aclexplode(h.acl) a
 WHERE (a.grantee = (SELECT oid FROM pg_roles WHERE rolname = %(role)s) AND a.grantee <> h.owner)
    OR (a.grantee = 0 AND h.shared AND h.name !~ '^pg_' AND h.name <> 'information_schema'
        AND a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'CREATE', 'MAINTAIN',
                                 'SET', 'ALTER SYSTEM')
        AND (h.what <> 'DEFAULT'))
 ORDER BY 1, 2, 3
"""

__all__ = ["Asked", "Premises", "Right", "Rights", "ask", "look"]
