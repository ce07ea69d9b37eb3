"""A role made by exactly the printed SQL backs up by every method, and can do no more; what a role has
beyond its needs is found, and the statement that is told takes it away."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from postgres.conftest import Databases, quote
from postgres.keeping import DoubleKeeper, EngineKeeper
from postgres.old_servers import server_of
from strongroom.errors import KeyRefused, StrongroomError
from strongroom.format.wal import parse_lsn
from strongroom.postgres.embedded import EmbeddedServer, service_account
from strongroom.postgres.grants import Needs, Purpose, hba_lines, script, statements
from strongroom.postgres.logical.source import LogicalSource
from strongroom.postgres.physical.local import LocalSource
from strongroom.postgres.physical.stream import StreamSource
from strongroom.postgres.replication import Replication
from strongroom.postgres.rights import Rights, ask, look
from strongroom.postgres.server import Conninfo, connect
from strongroom.postgres.wal.receive import Receiver, Wanted
from strongroom.postgres.wal.spool import Spool
from strongroom.progress import Silent
from strongroom.repository.wal import WalStore

ROLE = "back\"up; 'of' -- \\x $do$"
NOW = datetime(2026, 11, 26, tzinfo=UTC)


class Granted:
    """A server, and a role that is made by what is printed for it."""

    def __init__(self, server: EmbeddedServer, database: str, name: str = ROLE) -> None:
        self.server, self.database, self.name = server, database, name
        self.role = quote(name)

    def wanted(self, *purposes: Purpose, known: bool = True) -> Needs:
        asked = ask(Conninfo.parse(self.server.dsn_for(self.database)), [self.database])
        logical = "logical" in purposes
        return Needs(
            self.name,
            purposes,
            self.database,
            (self.database,) if logical else (),
            major=asked.major if known else None,
            row_security=asked.row_security if logical else (),
            archives=asked.archives if known else None,
        )

    def grant(self, wanted: Needs) -> None:
        for one in statements(wanted):
            with self.server.connect(one.database) as connection:
                connection.execute(one.sql.encode())

    def look(self, *purposes: Purpose) -> Rights:
        return look(self.conninfo(), self.wanted(*purposes), now=NOW)

    def conninfo(self, database: str | None = None, *, tcp: bool = False) -> Conninfo:
        """As the role; a superuser gives it its password."""
        with self.server.connect() as connection:
            connection.execute(f"ALTER ROLE {self.role} PASSWORD 'of the test'".encode())
        base = Conninfo.parse(self.server.dsn_for(database or self.database, tcp=tcp))
        return Conninfo({**base.parameters, "user": self.name}, {"password": "of the test"})

    def run(self, *sql: str) -> None:
        with self.server.connect(self.database) as connection:
            for one in sql:
                connection.execute(one.format(role=self.role).encode())

    def drop(self) -> None:
        found = [self.database, "postgres"]
        with self.server.connect() as connection:
            row = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [self.name])
            if row.fetchone() is None:
                return
        for database in found:
            with self.server.connect(database) as connection:
                connection.execute(f"DROP OWNED BY {self.role} CASCADE".encode())
        self.run("DROP ROLE {role}")


@pytest.fixture
def granted(server: EmbeddedServer, databases: Databases) -> Iterator[Granted]:
    yield from _granted(server, databases)


@pytest.fixture
def granted18(server18: EmbeddedServer, databases: Databases) -> Iterator[Granted]:
    """The newest, for what does not differ between them."""
    yield from _granted(server18, databases)


def _granted(server: EmbeddedServer, databases: Databases) -> Iterator[Granted]:
    made = Granted(server, databases.make(server, "shop; \"of\" 'many' \\ goods"))
    made.run(
        "CREATE TABLE customer (a int); INSERT INTO customer VALUES (1)",
        'CREATE SCHEMA "odd, schema"; CREATE TABLE "odd, schema"."odd \'table" (a serial)',
        "CREATE TABLE secured (a int); ALTER TABLE secured ENABLE ROW LEVEL SECURITY",
        "SELECT lo_from_bytea(777, 'large')",
    )
    yield made
    made.drop()


# What no role for backups may do, whatever it is for.
FORBIDDEN = (
    "INSERT INTO customer VALUES (2)",
    "UPDATE customer SET a = 3",
    "DELETE FROM customer",
    "TRUNCATE customer",
    "DROP TABLE customer",
    "CREATE TABLE mine (a int)",
    "CREATE SCHEMA mine",
    "SELECT lo_put(777, 0, 'other')",
    "SELECT lo_unlink(777)",
    "SELECT setval('\"odd, schema\".\"odd ''table_a_seq\"', 7)",
    "CREATE ROLE other",
    "CREATE DATABASE other",
    "COPY customer FROM PROGRAM 'echo 1'",
    "COPY customer TO '/tmp/never'",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT pg_switch_wal()",
    "SELECT pg_create_restore_point('never')",
    "SELECT pg_reload_conf()",
    "SELECT pg_promote()",
    "ALTER SYSTEM SET work_mem = '1MB'",
    "SET ROLE postgres",
    "SET ROLE pg_write_all_data",
    "ALTER ROLE {role} SUPERUSER",
    "ALTER ROLE {role} CREATEDB",
)


def refused(granted: Granted, *more: str) -> None:
    with connect(granted.conninfo()) as connection:
        connection.execute("SET search_path = public")
        for sql in (*FORBIDDEN, *more):
            with pytest.raises(
                (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidParameterValue)
            ):
                connection.execute(sql.format(role=granted.role).encode())
                raise AssertionError(sql)


@pytest.mark.parametrize("known", [True, pytest.param(False, marks=pytest.mark.sweep)])
def test_a_logical_backup_and_no_more(granted: Granted, known: bool) -> None:
    wanted = granted.wanted("logical", known=known)
    assert wanted.row_security == (granted.database,)
    granted.grant(wanted)
    granted.grant(wanted)
    rights = granted.look("logical")
    assert rights.found == [] and not rights.unread
    conninfo = granted.conninfo()
    source = LogicalSource("db", conninfo.text(), jobs=1)
    kept = DoubleKeeper().keep(source)
    assert kept.problems == []
    assert kept.snapshot.facts["globals"]["role_passwords"] is True
    assert kept.snapshot.facts["databases"][granted.database]["large_objects"] == 1
    refused(granted, "SELECT pg_backup_start('never')" if granted.server.installation.version[0] > 14
            else "SELECT pg_start_backup('never', true, false)")  # fmt: skip
    with pytest.raises((KeyRefused, StrongroomError)), Replication(conninfo):
        raise AssertionError("it may replicate")


def test_what_is_missing_is_named_with_what_gives_it(granted18: Granted) -> None:
    """Each missing right alone, taken from a role that had all: the statement that is told brings it back."""
    wanted = granted18.wanted("logical")
    granted18.grant(wanted)
    for taken in (
        "ALTER ROLE {role} NOLOGIN",
        "ALTER ROLE {role} NOBYPASSRLS",
        "REVOKE pg_read_all_data FROM {role}",
        "REVOKE SELECT ON LARGE OBJECT 777 FROM {role}",
        "ALTER ROLE {role} VALID UNTIL '2026-11-01'",
        f"REVOKE CONNECT ON DATABASE {quote(granted18.database)} FROM PUBLIC, {{role}}",
    ):
        granted18.run(taken)
        rights = look(Conninfo.parse(granted18.server.dsn), wanted, now=NOW)
        assert rights.missing and not rights.excess, taken
        for one in rights.missing:
            with granted18.server.connect(one.database) as connection:
                connection.execute(one.sql.encode())
        assert granted18.look("logical").found == [], taken
    granted18.run("DROP OWNED BY {role}", "DROP ROLE {role}")
    (none,) = look(Conninfo.parse(granted18.server.dsn), wanted, now=NOW).found
    assert none.kind == "missing" and "no such role" in none.what


def test_the_cluster_by_its_files_and_no_more(granted: Granted) -> None:
    if os.geteuid() not in (0, service_account().uid):
        pytest.skip("the data directory is another account's")
    granted.grant(granted.wanted("local"))
    granted.grant(granted.wanted("local", known=False))
    assert granted.look("local").found == []
    source = LocalSource("db", granted.conninfo().text(), jobs=1)
    assert source.probe()["via"] == "local"
    kept = EngineKeeper().keep(source)
    assert kept.problems == []
    assert kept.snapshot.facts["method"] == "physical"
    refused(granted, "SELECT count(*) FROM customer", "SELECT lo_get(777)")


def test_the_cluster_by_stream_and_no_more(granted: Granted, tmp_path: Path) -> None:
    granted.grant(granted.wanted("stream", "receive"))
    assert granted.look("stream", "receive").found == []
    conninfo = granted.conninfo(tcp=True)
    source = StreamSource("db", conninfo.text(), jobs=1)
    assert source.probe()["via"] == "stream"
    keeper = EngineKeeper()
    assert keeper.keep(source).problems == []
    _receive(granted, conninfo, keeper, tmp_path)
    refused(granted, "SELECT count(*) FROM customer", "SELECT lo_get(777)")


def _receive(granted: Granted, conninfo: Conninfo, keeper: EngineKeeper, folder: Path) -> None:
    """`wal receive --create-slot --stop-at` as the role."""
    granted.run("INSERT INTO customer VALUES (2)", "SELECT pg_switch_wal()")
    with granted.server.connect() as connection:
        row = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    assert row is not None
    stop = parse_lsn(row[0])
    wanted = Wanted("strongroom_test", create_slot=True, stop_at=stop, threads=1)
    store = WalStore(keeper.repository)
    with closing(Spool(str(folder / "spool"))) as spool:
        received = Receiver(
            "db", conninfo, store, spool, wanted,
            tell=lambda kind, text, **facts: None, progress=Silent(), stop=lambda: False,
        ).run()  # fmt: skip
    assert received.position >= stop and received.fault is None and not received.gaps
    with Replication(conninfo) as replication:
        replication.drop("strongroom_test")


# What is granted beyond; a word of how it is told; and whether it stays when the role is for streaming.
EXCESS = (
    ("ALTER ROLE {role} SUPERUSER", "superuser"),
    ("ALTER ROLE {role} CREATEROLE", "CREATEROLE"),
    ("ALTER ROLE {role} CREATEDB", "CREATEDB"),
    ("ALTER ROLE {role} REPLICATION", "REPLICATION"),
    ("GRANT pg_write_all_data TO {role}", "change every row"),
    ("GRANT pg_execute_server_program TO {role}", "run programs"),
    ("GRANT pg_read_server_files TO {role}", "read files"),
    ("GRANT pg_monitor TO {role} WITH ADMIN OPTION", "member of pg_monitor"),
    ("GRANT pg_read_all_data TO {role} WITH ADMIN OPTION", "give pg_read_all_data to others"),
    ("GRANT INSERT, UPDATE ON customer TO {role}", "INSERT, UPDATE on table public.customer"),
    ("GRANT UPDATE (a) ON customer TO {role}", "UPDATE on column public.customer.a"),
    ("GRANT DELETE ON customer TO PUBLIC", "as everybody may"),
    ("GRANT CREATE ON SCHEMA \"odd, schema\" TO {role}", "CREATE on schema \"odd, schema\""),
    ("GRANT CREATE ON SCHEMA public TO PUBLIC", "CREATE on schema public (as everybody may)"),
    ("GRANT USAGE ON SEQUENCE \"odd, schema\".\"odd 'table_a_seq\" TO {role}", "USAGE on sequence"),
    ("GRANT UPDATE ON LARGE OBJECT 777 TO {role}", "UPDATE on large object 777"),
    ("GRANT EXECUTE ON FUNCTION pg_read_file(text) TO {role}", "EXECUTE on routine pg_read_file(text)"),
    ("GRANT CREATE ON TABLESPACE pg_default TO {role}", "CREATE on tablespace pg_default"),
    ("ALTER DEFAULT PRIVILEGES GRANT INSERT ON TABLES TO {role}", "INSERT on what will be made"),
    ("CREATE TABLE owned (a int); ALTER TABLE owned OWNER TO {role}", "owns table"),
)  # fmt: skip


def test_every_right_too_many_is_found_and_told_how_to_take_away(granted: Granted) -> None:
    granted.grant(granted.wanted("logical"))
    more = [("GRANT CREATE ON DATABASE {database} TO {role}", "CREATE on database")]
    if granted.server.installation.version[0] >= 15:
        more.append(("GRANT SET ON PARAMETER log_min_messages TO {role}", "SET on parameter"))
    given = (*EXCESS, *more)
    for sql, _ in given:
        granted.run(sql.replace("{database}", quote(granted.database)))
    with (
        granted.server.connect() as elsewhere
    ):  # in a database that the source has nothing to do with
        elsewhere.execute("CREATE TABLE other_place (a int)")
        elsewhere.execute(f"GRANT INSERT ON other_place TO {granted.role}".encode())
    try:
        rights = granted.look("logical")
        assert rights.superuser and not rights.missing
        for sql, word in given:
            assert any(word in one.what for one in rights.excess), (sql, rights.found)
        assert any(
            "other_place" in one.what and one.database == "postgres" for one in rights.excess
        )
        for one in rights.excess:
            with granted.server.connect(one.database) as connection:
                connection.execute(one.sql.encode())
        assert granted.look("logical").found == []
    finally:
        with granted.server.connect() as elsewhere:
            elsewhere.execute("DROP TABLE other_place")
    # What one role needs is too much for another.
    assert {"BYPASSRLS", "member of pg_read_all_data"} <= {
        one.what.partition(":")[0] for one in granted.look("stream").excess
    }


def test_a_grant_by_somebody_else_is_revoked_as_theirs(granted18: Granted) -> None:
    granted18.grant(granted18.wanted("logical"))
    granted18.run(
        "CREATE ROLE middle; GRANT middle TO postgres",
        "GRANT INSERT ON customer TO middle WITH GRANT OPTION",
        "SET ROLE middle; GRANT INSERT ON customer TO {role}; RESET ROLE",
    )
    try:
        (found,) = granted18.look("logical").excess
        granted18.run(found.sql)
        assert granted18.look("logical").found == []
    finally:
        granted18.run("DROP OWNED BY middle", "DROP ROLE middle")


def test_the_lines_of_pg_hba_let_in_by_tls_and_nothing_else(tls15: EmbeddedServer) -> None:
    """Exactly the lines that are printed, and the superuser's: the role comes in by TLS and SCRAM."""
    granted = Granted(tls15, "postgres", "backup")
    wanted = granted.wanted("stream")
    granted.grant(wanted)
    hba = Path(tls15.data_directory, "pg_hba.conf")
    before = hba.read_text()
    lines = ["local all postgres scram-sha-256", *hba_lines(wanted, ["0.0.0.0/0"])]
    assert lines[1:] == [
        'hostssl  "postgres"  "backup"  0.0.0.0/0  scram-sha-256',
        'hostssl  replication  "backup"  0.0.0.0/0  scram-sha-256',
    ]
    try:
        hba.write_text("\n".join(lines) + "\n")
        granted.run("SELECT pg_reload_conf()")
        conninfo = granted.conninfo(tcp=True)
        safe = Conninfo({**conninfo.parameters, "sslmode": "require"}, conninfo.secrets)
        with connect(safe) as connection:
            row = connection.execute("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            assert row.fetchone() == ("TLSv1.3",)
        with Replication(safe) as replication:
            assert replication.identify().timeline == 1
        for other in (conninfo, safe.on("template1")):  # without TLS; another database
            with pytest.raises(KeyRefused, match=r"pg_hba\.conf"):
                connect(other)
    finally:
        hba.write_text(before)
        granted.run("SELECT pg_reload_conf()")
        granted.drop()


def test_a_script_is_for_psql_whatever_names_are(server18: EmbeddedServer) -> None:
    psql = os.path.join(server18.installation.bindir, "psql")
    if not os.access(psql, os.X_OK):
        psql = shutil.which("psql") or ""
    if not psql:
        pytest.skip("no psql here: `apt-get install postgresql-client`")
    name = "a 'b' \"c\" \\d :e =f"
    with server18.connect() as connection:
        connection.execute(f"CREATE DATABASE {quote(name)}")
    try:
        granted = Granted(server18, name)
        text = script(granted.wanted("logical"), "shop\n\\! touch /tmp/never")
        for _ in range(2):
            done = subprocess.run(
                [psql, "-X", "-v", "ON_ERROR_STOP=1", "-d", server18.dsn],
                input=text.encode(), capture_output=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr.decode()
        assert granted.look("logical").found == []
        granted.drop()
    finally:
        with server18.connect() as connection:
            connection.execute(f"DROP DATABASE {quote(name)}")


@pytest.mark.sweep
@pytest.mark.parametrize("major", [13, 14])
def test_names_of_older_majors(major: int) -> None:
    """13 has no pg_read_all_data, both call a backup's functions otherwise."""
    with EmbeddedServer(server_of(major), durable=False, tcp=True) as old:
        granted = Granted(old, "postgres")
        granted.run("CREATE TABLE customer (a int)", "SELECT lo_from_bytea(777, 'large')")
        for known in (True, False):
            granted.grant(granted.wanted("logical", known=known))
        rights = granted.look("logical")
        assert rights.missing == [] and rights.passwords is (major >= 14)
        # What everybody may: it was so by default until 15, and is told.
        assert [one.what for one in rights.excess] == ["CREATE on schema public (as everybody may)"]
        source = LogicalSource("db", granted.conninfo().text(), jobs=1, role_passwords=major >= 14)
        assert DoubleKeeper().keep(source).problems == []
        granted.drop()
        for known in (True, False):
            granted.grant(granted.wanted("local", known=known))
        assert granted.look("local").missing == []
        taken = EngineKeeper().keep(LocalSource("db", granted.conninfo().text(), jobs=1))
        assert taken.problems == []
        granted.grant(granted.wanted("stream"))
        conninfo = granted.conninfo(tcp=True)
        assert EngineKeeper().keep(StreamSource("db", conninfo.text(), jobs=1)).problems == []
