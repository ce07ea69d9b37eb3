"""Into an existing, empty database: it stays the one it is, and never looks whole when it is not."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from postgres.conftest import Databases, names_on, quote
from postgres.keeping import DoubleKeeper
from postgres.test_failures import ROWS, After, kept_rows, mortal, source
from strongroom.errors import Busy, Damaged, DatabaseUnreachable, Refused, StrongroomError
from strongroom.postgres.compare import compare_databases
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.logical.catalogue import user_objects
from strongroom.postgres.logical.inplace import MARK
from strongroom.postgres.logical.sink import LogicalSink, Subset
from strongroom.progress import Silent

__all__ = ["mortal"]

_IDENTITY = (
    "SELECT oid, pg_get_userbyid(datdba), datacl::text, datconnlimit,"
    " shobj_description(oid, 'pg_database'),"
    " (SELECT array_agg(setconfig ORDER BY setrole) FROM pg_db_role_setting WHERE setdatabase = d.oid)"
    " FROM pg_database d WHERE datname = %s"
)


def identity(server: EmbeddedServer, name: str) -> tuple[object, ...] | None:
    with server.connect() as connection:
        return connection.execute(_IDENTITY, [name]).fetchone()


def objects(server: EmbeddedServer, name: str) -> dict[str, int]:
    with server.connect(name) as connection:
        return user_objects(connection)


@contextmanager
def tenant(server: EmbeddedServer, databases: Databases) -> Iterator[tuple[str, str]]:
    """A role that may make no database, the one it was handed, and nothing else to connect to."""
    made = databases.name(server)
    with server.connect() as connection:
        connection.execute("CREATE ROLE tenant LOGIN PASSWORD 't'")
        connection.execute(f"CREATE DATABASE {quote(made)} OWNER tenant CONNECTION LIMIT 9")
        connection.execute(f"COMMENT ON DATABASE {quote(made)} IS 'rented'")
        connection.execute(f"ALTER DATABASE {quote(made)} SET work_mem = '9MB'")
        connection.execute("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
    try:
        yield made, psycopg.conninfo.make_conninfo(server.dsn, user="tenant", password="t")
    finally:
        databases.close()
        with server.connect() as connection:
            connection.execute("GRANT CONNECT ON DATABASE postgres TO PUBLIC; DROP ROLE tenant")


@pytest.mark.parametrize("major", [16, 18])
def test_a_tenant_without_createdb_restores_into_what_it_was_handed(
    major: int, databases: Databases, request: pytest.FixtureRequest
) -> None:
    server: EmbeddedServer = request.getfixturevalue(f"server{major}")
    sql = (
        f"{ROWS.format(500)}; CREATE VIEW v AS SELECT id FROM t; CREATE SCHEMA s;"
        "CREATE TABLE s.u (t_id int REFERENCES t, n serial); INSERT INTO s.u VALUES (3), (4);"
        "CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1';"
        "CREATE TYPE mood AS ENUM ('good'); SELECT lo_from_bytea(4711, 'abc')"
    )
    origin = databases.make(server, sql=sql)
    kept = DoubleKeeper().keep(source(server, origin)).snapshot
    with tenant(server, databases) as (made, dsn):
        before, names = identity(server, made), names_on(server)
        sink = LogicalSink(dsn, made, owner=False, privileges=False, jobs=2)
        plan = sink.preflight(kept)
        assert (plan["in_place"], plan["replaces"]) == (True, False)
        outcome = sink.restore(kept, progress=Silent())
        assert outcome.problems == ()
        assert (outcome.facts["in_place"], outcome.facts["verified"]) == (True, True)
        assert identity(server, made) == before
        assert names_on(server) == names
        with server.connect(made) as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (500,)
            assert connection.execute("SELECT sum(t_id) FROM s.u").fetchone() == (7,)
            assert connection.execute("SELECT lo_get(4711)").fetchone() == (b"abc",)
            owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname IN ('public', 's')"
            assert connection.execute(owners).fetchall() == [("tenant",)]
            assert connection.execute("SELECT to_regnamespace(%s)", [f'"{MARK}"']).fetchone() == (
                None,
            )
        with pytest.raises(Refused, match=r"exists on the target server\. It holds \d+ relations"):
            sink.preflight(kept)
        with pytest.raises(Refused, match="may not create databases"):
            LogicalSink(dsn, made, replace=True).preflight(kept)
        # No replacing by this role, and no way around it by what failed.
        assert identity(server, made) == before


@pytest.mark.parametrize("major", [16, 18])
def test_the_zoo_comes_back_in_place_and_goes_again_when_the_proof_fails(
    major: int, databases: Databases, request: pytest.FixtureRequest
) -> None:
    server: EmbeddedServer = request.getfixturevalue(f"server{major}")
    zoo = databases.zoo(server)
    kept = DoubleKeeper().keep(source(server, zoo)).snapshot
    (facts,) = kept.facts["databases"].values()
    target = databases.make(server)
    names = names_on(server)
    facts["tables"][0]["rows"] += 1
    with pytest.raises(Damaged) as caught:
        LogicalSink(server.dsn, target, jobs=2).restore(kept, progress=Silent())
    # The archive can drop the database it was made of, which is on this server.
    assert names_on(server) == names
    # Default privileges of a role that stand in no schema belong to no object that could be dropped.
    left = objects(server, target)
    assert left in ({}, {"schemas": 1, "default_privileges": left.get("default_privileges")})
    assert ("is empty again" if not left else "default privileges") in caught.value.means
    facts["tables"][0]["rows"] -= 1
    target = databases.make(server)
    before = identity(server, target)
    outcome = LogicalSink(server.dsn, target, jobs=2).restore(kept, progress=Silent())
    assert outcome.problems == ()
    assert identity(server, target) == before
    # Rights, comment and settings of the database itself are its own and not the backup's.
    found = compare_databases(server.dsn_for(zoo), server.dsn_for(target))
    assert [text for text in found if not text.startswith(("setting ", "database "))] == []


def test_a_part_goes_into_an_empty_database(server16: EmbeddedServer, databases: Databases) -> None:
    kept = kept_rows(server16, databases, f"{ROWS.format(10)}; CREATE TABLE u AS SELECT 1 AS a")
    target = databases.make(server16)
    sink = LogicalSink(server16.dsn_for(target), target, subset=Subset.parse(tables=["u"]))
    sink.restore(kept, progress=Silent())
    assert objects(server16, target) == {"relations": 1}


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("CREATE TABLE mine ()", "1 relations"),
        ("CREATE VIEW mine AS SELECT 1 AS a", "1 relations"),
        ("CREATE SEQUENCE mine", "1 relations"),
        ("CREATE SCHEMA mine", "1 schemas"),
        ("CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'", "1 functions"),
        ("CREATE TYPE mine AS ENUM ('a')", "1 types"),
        ("CREATE TYPE mine AS (a int)", "1 types"),
        ("CREATE DOMAIN mine AS int", "1 types"),
        ("SELECT lo_from_bytea(0, 'mine')", "1 large objects"),
        ("CREATE CAST (int4 AS json) WITH INOUT", "1 casts"),
        ("CREATE PUBLICATION mine", "1 publications"),
        ("CREATE TEXT SEARCH CONFIGURATION mine (COPY = simple)", "1 text search configurations"),
        ("CREATE FOREIGN DATA WRAPPER mine", "1 foreign data wrappers"),
        ('CREATE COLLATION mine FROM "C"', "1 collations"),
    ],
)
def test_nothing_that_holds_anything_is_filled(
    sql: str, kind: str, server16: EmbeddedServer, databases: Databases
) -> None:
    kept = kept_rows(server16, databases, ROWS.format(10))
    target = databases.make(server16, sql=sql)
    before = objects(server16, target)
    with pytest.raises(Refused, match=rf"exists on the target server\. It holds {kind}"):
        LogicalSink(server16.dsn, target).restore(kept, progress=Silent())
    assert objects(server16, target) == before


def test_another_encoding_or_no_right_to_create_is_refused(
    server16: EmbeddedServer, databases: Databases
) -> None:
    kept = kept_rows(server16, databases, ROWS.format(10))
    latin = databases.name(server16)
    with server16.connect() as connection:
        connection.execute(
            f"CREATE DATABASE {quote(latin)} TEMPLATE template0 ENCODING 'LATIN1'"
            " LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    with pytest.raises(Refused, match="in LATIN1 and the backup in UTF8"):
        LogicalSink(server16.dsn, latin).restore(kept, progress=Silent())
    target = databases.make(server16)
    with pytest.raises(Refused, match="keeps its locale"):
        LogicalSink(server16.dsn, target, locale="C").restore(kept, progress=Silent())
    with tenant(server16, databases) as (_, dsn):
        with pytest.raises(Refused, match="may not create"):
            LogicalSink(dsn, target).restore(kept, progress=Silent())
        assert objects(server16, target) == {}


def test_what_is_unfinished_says_so_and_is_never_filled_again(
    server16: EmbeddedServer, databases: Databases
) -> None:
    kept = kept_rows(server16, databases, ROWS.format(10))
    (facts,) = kept.facts["databases"].values()
    facts["tables"][0]["rows"] = 11
    target = databases.make(server16)
    with pytest.raises(Damaged) as caught:
        LogicalSink(server16.dsn, target, keep_failed=True).restore(kept, progress=Silent())
    assert "holds an unfinished restore: do not use it" in caught.value.means
    with pytest.raises(Refused, match="holds an unfinished restore") as refused:
        LogicalSink(server16.dsn, target).preflight(kept)
    assert MARK in refused.value.do
    facts["tables"][0]["rows"] = 10
    LogicalSink(server16.dsn, target, replace=True).restore(kept, progress=Silent())
    assert objects(server16, target) == {"relations": 1}


def test_of_two_at_once_one_is_told_and_the_other_goes_on(
    server16: EmbeddedServer, databases: Databases
) -> None:
    kept = kept_rows(server16, databases, ROWS.format(3000))
    target = databases.make(server16)
    told: list[StrongroomError] = []
    second = LogicalSink(server16.dsn, target)

    def come_second() -> None:
        with pytest.raises((Busy, Refused)) as caught:
            second.restore(kept, progress=Silent())
        told.append(caught.value)

    def strike() -> None:
        thread = threading.Thread(target=come_second)
        thread.start()
        thread.join()

    outcome = LogicalSink(server16.dsn, target).restore(kept, progress=After(100_000, strike))
    assert outcome.problems == ()
    assert [fault.means for fault in told] == ["Nothing was changed."]


def test_a_stranger_s_object_is_never_dropped(
    server16: EmbeddedServer, databases: Databases
) -> None:
    kept = kept_rows(server16, databases, ROWS.format(3000))
    (facts,) = kept.facts["databases"].values()
    facts["tables"][0]["rows"] = 1
    target = databases.make(server16)

    def stranger() -> None:
        with server16.connect(target) as connection:
            connection.execute("CREATE TABLE mine AS SELECT 7 AS a")

    with pytest.raises(Damaged) as caught:
        LogicalSink(server16.dsn, target).restore(kept, progress=After(100_000, stranger))
    assert "What could not be dropped: 1 relations" in caught.value.means
    with server16.connect(target) as connection:
        assert connection.execute("SELECT a FROM mine").fetchone() == (7,)
        assert connection.execute("SELECT to_regclass('t')").fetchone() == (None,)


def test_a_server_that_dies_leaves_the_mark(mortal: EmbeddedServer) -> None:
    mortal.connect().execute("CREATE DATABASE d")
    mortal.connect().execute("CREATE DATABASE target")
    mortal.connect("d").execute(ROWS.format(30000))
    kept = DoubleKeeper().keep(source(mortal, "d")).snapshot
    strike = After(5_000_000, lambda: os.kill(mortal.pid or 0, signal.SIGQUIT))
    with pytest.raises(DatabaseUnreachable) as caught:
        LogicalSink(mortal.dsn, "target").restore(kept, progress=strike)
    assert "do not use it. It could not be emptied" in caught.value.means
    mortal.stop()
    mortal.start()
    with pytest.raises(Refused, match="holds an unfinished restore"):
        LogicalSink(mortal.dsn, "target").preflight(kept)
