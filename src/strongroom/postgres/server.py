"""One PostgreSQL server as we meet it: how to connect, what it is, what its errors mean.

Rule of this file: every connection of the program is opened here, with `search_path` pinned to
pg_catalog (CVE-2026-55769 is what happens otherwise), a name that shows in pg_stat_activity, and
keep-alives; every psycopg error leaves as one of `strongroom.errors`. A password never gets into
an argument list, a repr, a log or an error: `Conninfo` keeps it apart from all that may be shown.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from strongroom.errors import (
    Busy,
    ConfigError,
    DatabaseUnreachable,
    KeyRefused,
    Refused,
    StrongroomError,
)

if TYPE_CHECKING:
    import psycopg

OLDEST_SUPPORTED = 13
_SECRET = ("password", "sslpassword")
_CONNECT = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "6",
}
_REFUSALS = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "pg_hba.conf rejects",
    "is not permitted to log in",
)


@dataclass(frozen=True, slots=True, repr=False)
class Conninfo:
    """A connection string taken apart, secrets kept aside.

    `parameters` may be shown; `secrets` may not. A database name is always a quoted value of its
    own, so that libpq never expands it into another connection string (CVE-2026-86862).
    """

    parameters: Mapping[str, str]
    secrets: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, dsn: str, *, password: str | None = None) -> Conninfo:
        """Take a libpq connection string or URI apart; ConfigError when it is not one.

        `password` is one that was configured beside the string; it wins over one inside.
        """
        import psycopg  # noqa: PLC0415  heavy: only what meets a server pays for it
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

        try:
            parsed = conninfo_to_dict(dsn)
        except psycopg.ProgrammingError:
            # libpq's message quotes the string, password and all: it must not be passed on.
            raise ConfigError(
                "The dsn is neither a libpq connection string nor a postgresql:// URI.",
                do="Write it like postgresql://user@host:5432/database or "
                "host=… dbname=…; percent-encode special characters in a URI.",
            ) from None
        given = {key: str(value) for key, value in parsed.items() if value is not None}
        if password is not None:
            given["password"] = password
        return cls(
            {key: value for key, value in given.items() if key not in _SECRET},
            {key: given[key] for key in _SECRET if key in given},
        )

    def __repr__(self) -> str:
        return f"<Conninfo {self.public()}>"

    @property
    def database(self) -> str:
        """The database that this connects to, libpq's defaults included."""
        chosen = self.parameters.get("dbname") or os.environ.get("PGDATABASE")
        return chosen or self.parameters.get("user") or os.environ.get("PGUSER") or "postgres"

    @property
    def where(self) -> str:
        """Say in words where this leads: for messages."""
        host = self.parameters.get("host") or self.parameters.get("hostaddr")
        host = host or os.environ.get("PGHOST") or "the local socket"
        port = self.parameters.get("port") or os.environ.get("PGPORT") or "5432"
        return f"database {self.database!r} at {host} port {port}"

    def on(self, database: str) -> Conninfo:
        """The same server, another database."""
        return Conninfo({**self.parameters, "dbname": database}, self.secrets)

    def with_settings(self, **settings: str) -> Conninfo:
        """The same, with session settings for whoever connects by it (names and plain values)."""
        options = self.parameters.get("options", "")
        options += "".join(f" -c {name}={value}" for name, value in settings.items())
        return Conninfo({**self.parameters, "options": options.strip()}, self.secrets)

    def public(self) -> str:
        """The connection string without its secrets: fit for arguments and messages."""
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415

        return make_conninfo(**{**self.parameters, "dbname": self.database})

    def text(self, **more: str) -> str:
        """The whole connection string, secrets included: for libpq in this process only.

        `more` are parameters to add; those of `_CONNECT` are there unless given otherwise.
        """
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415

        given = {**_CONNECT, **self.parameters, **self.secrets, "dbname": self.database}
        return make_conninfo(**{**given, **more})

    def child_environment(self) -> dict[str, str]:
        """The environment of a client tool: ours, and the password where only it can see it.

        A child's environment can be read by the same account and root alone, as its memory can;
        its argument list by everybody.
        """
        if "sslpassword" in self.secrets:
            raise ConfigError(
                "A dsn with sslpassword cannot be handed to pg_dump without showing it.",
                do="Use a client key without a passphrase, readable by this account only.",
            )
        environment = dict(os.environ)
        environment.update(PGAPPNAME="strongroom", PGCONNECT_TIMEOUT="30", LC_ALL="C.UTF-8")
        # gettext's own override, and a second opinion on the encoding that names are written in.
        for name in ("LANGUAGE", "PGCLIENTENCODING"):
            environment.pop(name, None)
        if "password" in self.secrets:
            environment["PGPASSWORD"] = self.secrets["password"]
        return environment


def is_near(conninfo: Conninfo) -> bool:
    """Whether a connection stays on this machine: a socket, or the loopback, for every host of it."""
    given = conninfo.parameters
    if given.get("service") or os.environ.get("PGSERVICE"):
        return False  # where that leads is written elsewhere
    hosts = given.get("hostaddr") or given.get("host") or os.environ.get("PGHOST") or ""
    return all(
        not host or host.startswith(("/", "@", "127.")) or host in ("::1", "localhost")
        for host in hosts.split(",")
    )


def connect(
    conninfo: Conninfo, *, lock_timeout: float = 0, statement_timeout: float = 0
) -> psycopg.Connection[Any]:
    """Open an autocommit connection; timeouts in seconds, 0 for none.

    Raises DatabaseUnreachable, KeyRefused or Refused.
    """
    import psycopg  # noqa: PLC0415

    asked = conninfo.parameters.get("options", "")
    options = (
        f"{asked} -c search_path=pg_catalog -c client_min_messages=error"
        f" -c lock_timeout={int(lock_timeout * 1000)}"
        f" -c statement_timeout={int(statement_timeout * 1000)}"
        " -c idle_in_transaction_session_timeout=0"
    )
    with translated(conninfo):
        connection = psycopg.connect(
            conninfo.text(
                application_name="strongroom", client_encoding="UTF8", options=options.strip()
            ),
            autocommit=True,
            prepare_threshold=None,
        )
    version = connection.info.server_version
    if version // 10000 < OLDEST_SUPPORTED:
        connection.close()
        raise Refused(
            f"The server of {conninfo.where} is PostgreSQL {version // 10000}; "
            f"the oldest that is supported is {OLDEST_SUPPORTED}.",
            do="Upgrade the server, or dump it with its own pg_dump and back up that file.",
        )
    if version >= 170000:
        connection.execute("SET transaction_timeout = 0")
    return connection


def connect_replication(conninfo: Conninfo, name: str = "strongroom") -> psycopg.Connection[Any]:
    """Open a connection for physical replication; no SQL is spoken on it.

    `name` is what the server calls it: in pg_stat_replication and synchronous_standby_names.
    Raises DatabaseUnreachable, KeyRefused or Refused.
    """
    import psycopg  # noqa: PLC0415

    with translated(conninfo):
        connection = psycopg.connect(
            conninfo.text(replication="true", application_name=name, client_encoding="SQL_ASCII"),
            autocommit=True,
            prepare_threshold=None,
        )
    if connection.info.server_version // 10000 < OLDEST_SUPPORTED:
        connection.close()
        raise Refused(
            f"The server of {conninfo.where} is older than PostgreSQL {OLDEST_SUPPORTED}.",
            do="Upgrade the server, or dump it with its own pg_dump and back up that file.",
        )
    return connection


def interrupt(connection: psycopg.Connection[Any]) -> None:
    """End whatever a connection is doing, from another thread."""
    import psycopg  # noqa: PLC0415

    # A server that is gone has nothing left to cancel; why it is gone is told elsewhere.
    with contextlib.suppress(psycopg.Error):
        connection.cancel_safe(timeout=5)


@contextlib.contextmanager
def translated(conninfo: Conninfo) -> Iterator[None]:
    """Turn psycopg's errors into ours, once, at this edge."""
    import psycopg  # noqa: PLC0415

    try:
        yield
    except psycopg.Error as error:
        raise translate(error, conninfo) from None


def translate(error: psycopg.Error, conninfo: Conninfo) -> StrongroomError:
    """Say what a psycopg error means for us."""
    text = " ".join(str(error).split())
    state = error.sqlstate or ""
    used_password = bool(error.pgconn and error.pgconn.status and error.pgconn.used_password)
    if state.startswith("28") or any(words in text for words in _REFUSALS):
        return _refused(text, conninfo)
    if not state and used_password and "FATAL" in text and "does not exist" not in text:
        return _refused(text, conninfo)
    if state == "42501":
        return Refused(
            f"The role may not do this on {conninfo.where}: {text}.",
            do="GRANT pg_read_all_data to the role for backups; "
            "a restore needs CREATEDB and the right to create what is restored.",
        )
    if state == "55P03":
        return Busy(f"A lock was not had in time on {conninfo.where}: {text}.")
    if state in ("57014", "40001"):
        return Busy(
            f"The server cancelled a statement on {conninfo.where}: {text}.",
            do="On a standby set max_standby_streaming_delay = -1 or hot_standby_feedback = on; "
            "then run the same command again.",
        )
    if not state or state[:2] in ("08", "57", "3D", "53"):
        return DatabaseUnreachable(f"No connection to {conninfo.where}: {text}.")
    return StrongroomError(f"PostgreSQL refused a statement on {conninfo.where}: {text} ({state}).")


def _refused(text: str, conninfo: Conninfo) -> KeyRefused:
    return KeyRefused(
        f"{conninfo.where} refused the credentials: {text}.".replace("database", "Database", 1),
        means="Nothing was read or written; the repository is untouched.",
        do="Check user and password of the dsn, and pg_hba.conf of the server.",
    )


def quoted(*names: str) -> str:
    """A qualified SQL name, each part quoted: `quoted(schema, table)`."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def literal(value: str) -> str:
    """A SQL string literal that is right whatever standard_conforming_strings is."""
    doubled = value.replace("'", "''")
    if "\\" in doubled:
        return " E'" + doubled.replace("\\", "\\\\") + "'"
    return f"'{doubled}'"


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a server is. `version_number` is server_version_num; sizes in bytes.

    `collations` are the versions of libraries (provider, version) by which its databases sort, where
    it tells: from PostgreSQL 15 on, by SQL.
    """

    version: str
    version_number: int
    system_identifier: str | None
    standby: bool
    superuser: bool
    settings: Mapping[str, str]
    databases: tuple[str, ...]
    collations: tuple[tuple[str, str], ...] = ()

    @property
    def major(self) -> int:
        """The major version."""
        return self.version_number // 10000

    def as_json(self) -> dict[str, Any]:
        """JSON values for the facts of a snapshot."""
        return {
            "version": self.version,
            "version_number": self.version_number,
            "system_identifier": self.system_identifier,
            "standby": self.standby,
            "settings": dict(self.settings),
            "collations": [list(one) for one in self.collations],
        }


_SETTINGS = (
    "data_checksums",
    "block_size",
    "wal_level",
    "max_connections",
    "shared_preload_libraries",
    "TimeZone",
    "default_text_search_config",
)


def server_facts(connection: psycopg.Connection[Any]) -> ServerFacts:
    """Ask a server what it is."""
    version, number, standby, superuser = _one(
        connection,
        "SELECT current_setting('server_version'), current_setting('server_version_num')::int,"
        " pg_is_in_recovery(), current_setting('is_superuser') = 'on'",
    )
    (allowed,) = _one(
        connection,
        "SELECT has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')",
    )
    identifier = None
    if allowed:
        (identifier,) = _one(connection, "SELECT system_identifier::text FROM pg_control_system()")
    settings = connection.execute(
        "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(_SETTINGS)]
    ).fetchall()
    databases = connection.execute(
        "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1"
    ).fetchall()
    return ServerFacts(
        version.split()[0],
        number,
        identifier,
        standby,
        superuser,
        dict(settings),
        tuple(name for (name,) in databases),
        _collations(connection) if number >= 150000 else (),
    )


def _collations(connection: psycopg.Connection[Any]) -> tuple[tuple[str, str], ...]:
    rows = connection.execute(
        "SELECT DISTINCT datlocprovider::text, datcollversion FROM pg_database"
        " WHERE datcollversion IS NOT NULL ORDER BY 1, 2"
    )
    return tuple(rows.fetchall())


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What one database is, as far as a new one has to be made like it."""

    name: str
    owner: str
    encoding: str
    collate: str
    ctype: str
    provider: str  # c libc, i ICU, b builtin
    locale: str | None
    collation_version: str | None
    tablespace: str
    connection_limit: int
    size: int
    comment: str | None
    settings: tuple[tuple[str | None, str, str], ...]  # (role or None, name, value)
    privileges: tuple[tuple[str, str, bool], ...]  # (grantee or "", privilege, grantable)
    public_may: tuple[str, ...]
    extensions: tuple[tuple[str, str], ...]  # (name, version)

    def as_json(self) -> dict[str, Any]:
        """JSON values for the facts of a snapshot."""
        return {
            "name": self.name,
            "owner": self.owner,
            "encoding": self.encoding,
            "collate": self.collate,
            "ctype": self.ctype,
            "provider": self.provider,
            "locale": self.locale,
            "collation_version": self.collation_version,
            "tablespace": self.tablespace,
            "connection_limit": self.connection_limit,
            "size": self.size,
            "comment": self.comment,
            "settings": [list(row) for row in self.settings],
            "privileges": [list(row) for row in self.privileges],
            "public_may": list(self.public_may),
            "extensions": [list(row) for row in self.extensions],
        }


def database_facts(connection: psycopg.Connection[Any]) -> DatabaseFacts:
    """Ask the database of a connection what it is."""
    version = connection.info.server_version
    provider = "datlocprovider::text" if version >= 150000 else "'c'"
    locale = "datlocale" if version >= 170000 else "daticulocale" if version >= 150000 else "NULL"
    collation = "datcollversion" if version >= 150000 else "NULL"
    row = _one(
        connection,
        "SELECT datname, pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate,"
        f" datctype, {provider}, {locale}, {collation}, t.spcname, datconnlimit,"
        " pg_database_size(d.oid), shobj_description(d.oid, 'pg_database')"
        " FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace"
        " WHERE datname = current_database()",
    )
    extensions = connection.execute("SELECT extname, extversion FROM pg_extension ORDER BY 1")
    rest = (
        _database_settings(connection),
        _database_privileges(connection),
        _public_privileges(connection),
        tuple(extensions.fetchall()),
    )
    return DatabaseFacts(*(*row, *rest))


def _database_settings(
    connection: psycopg.Connection[Any],
) -> tuple[tuple[str | None, str, str], ...]:
    rows = connection.execute(
        "SELECT r.rolname, split_part(c, '=', 1), substr(c, strpos(c, '=') + 1)"
        " FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase"
        " LEFT JOIN pg_roles r ON r.oid = s.setrole, unnest(setconfig) c"
        " WHERE d.datname = current_database() AND (s.setrole = 0 OR r.rolname IS NOT NULL)"
        " ORDER BY 1 NULLS FIRST, 2"
    )
    return tuple(rows.fetchall())


def _database_privileges(
    connection: psycopg.Connection[Any],
) -> tuple[tuple[str, str, bool], ...]:
    """Explicit grants to roles other than the owner."""
    rows = connection.execute(
        "SELECT r.rolname, a.privilege_type, a.is_grantable"
        " FROM pg_database d, aclexplode(d.datacl) a JOIN pg_roles r ON r.oid = a.grantee"
        " WHERE d.datname = current_database() AND a.grantee <> d.datdba ORDER BY 1, 2"
    )
    return tuple(rows.fetchall())


def _public_privileges(connection: psycopg.Connection[Any]) -> tuple[str, ...]:
    """What everybody may do with the database: CONNECT and TEMPORARY unless revoked."""
    rows = connection.execute(
        "SELECT a.privilege_type FROM pg_database d,"
        " aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a"
        " WHERE d.datname = current_database() AND a.grantee = 0 ORDER BY 1"
    )
    return tuple(privilege for (privilege,) in rows.fetchall())


def _one(connection: psycopg.Connection[Any], query: str) -> tuple[Any, ...]:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return tuple(row)
