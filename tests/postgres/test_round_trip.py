"""From a real server into a repository and back, on three major versions."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from postgres.conftest import Databases, names_on, quote
from postgres.keeping import DoubleKeeper, EngineKeeper, Keeper
from strongroom.errors import Damaged, NotFound, Refused, StrongroomError, UsageError
from strongroom.postgres.compare import compare_databases
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.logical import names
from strongroom.postgres.logical.sink import LogicalSink, Subset
from strongroom.postgres.logical.source import LogicalSource
from strongroom.progress import Silent
from strongroom.repository.ports import Outcome, SnapshotReader


class Heard(Silent):
    """Progress that adds up."""

    def __init__(self) -> None:
        self.planned = self.moved = self.files_planned = self.files_done = 0
        self.phases: list[str] = []
        self._lock = threading.Lock()

    def plan(self, *, size: int = 0, files: int = 0) -> None:
        with self._lock:
            self.planned += size
            self.files_planned += files

    def advance(self, *, size: int = 0, files: int = 0, stored: int = 0) -> None:
        with self._lock:
            self.moved += size
            self.files_done += files

    def phase(self, name: str) -> None:
        self.phases.append(name)


def source(server: EmbeddedServer, database: str, **options: Any) -> LogicalSource:
    return LogicalSource("db", server.dsn_for(database), **{"jobs": 2, **options})


def restore(
    server: EmbeddedServer, snapshot: SnapshotReader, target: str, **options: Any
) -> Outcome:
    sink = LogicalSink(server.dsn, target, **{"jobs": 2, **options})
    return sink.restore(snapshot, progress=Silent())


@pytest.fixture(params=["double", "engine"])
def keeper(request: pytest.FixtureRequest) -> Keeper:
    return DoubleKeeper() if request.param == "double" else EngineKeeper()


def test_everything_comes_back(
    server: EmbeddedServer, databases: Databases, keeper: Keeper
) -> None:
    zoo = databases.zoo(server)
    kept = keeper.keep(source(server, zoo))
    assert kept.problems == []
    target = databases.name(server)
    outcome = restore(server, kept.snapshot, target)
    assert outcome.problems == ()
    assert outcome.facts["verified"] is True
    assert compare_databases(server.dsn_for(zoo), server.dsn_for(target)) == []
    with server.connect(target) as connection:
        row = connection.execute("SELECT nextval('zoo.odd_sequence'), lo_get(424243)").fetchone()
        without = connection.execute(  # case P56: a planner that knows nothing of what is there
            "SELECT array_agg(oid::regclass::text) FROM pg_class WHERE relkind = 'r'"
            " AND relnamespace = 'zoo'::regnamespace AND reltuples < 0"
        ).fetchone()
        assert without == (None,)
    with server.connect(zoo) as connection:
        assert connection.execute("SELECT nextval('zoo.odd_sequence'), ''::bytea").fetchone() == row


def test_facts_are_those_of_the_snapshot(server16: EmbeddedServer, databases: Databases) -> None:
    zoo = databases.zoo(server16)
    facts = DoubleKeeper().keep(source(server16, zoo)).snapshot.facts
    database = facts["databases"][zoo]
    rows = {(t["schema"], t["name"]): t["rows"] for t in database["tables"]}
    with server16.connect(zoo) as connection:
        for (schema, name), count in rows.items():
            query = f"SELECT count(*) FROM ONLY {quote(schema)}.{quote(name)}"
            assert connection.execute(query.encode()).fetchone() == (count,)
    assert rows["zoo", "animal"] == 1
    assert ("zoo", "measured") not in rows
    assert database["large_objects"] == 2
    assert {"zoo_owner", "zoo_reader", "postgres"} <= set(database["roles"])
    assert ["plpgsql", "1.0"] in database["extensions"]
    assert facts["server"]["version"].startswith("16.")
    assert facts["server"]["system_identifier"].isdigit()
    assert facts["pg_dump"] == "18.6"
    assert "pg_dump 16.14: CVE-2026-19385" in facts["passed_over"]


def test_large_tables_are_streams_of_their_own_and_progress_adds_up(
    server18: EmbeddedServer, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strongroom.postgres.logical.plan.SMALLEST_ALONE", 200_000)
    monkeypatch.setattr("strongroom.postgres.logical.plan.SMALLEST_GROUPED", 20_000)
    zoo = databases.zoo(server18)
    heard = Heard()
    keeper = EngineKeeper()
    session = keeper.repository.begin("db", progress=heard)
    taken = source(server18, zoo, jobs=4).back_up(session, progress=heard)
    snapshot = keeper.repository.open_snapshot(session.commit("db", "postgres", taken, labels={}))
    paths = [entry.path for entry in snapshot.entries()]
    assert names.table_path(zoo, "zoo", "big") in paths
    assert names.group_path(zoo, 1) in paths
    assert heard.planned == heard.moved == taken.size
    assert heard.files_planned == heard.files_done == len(paths)
    target = databases.name(server18)
    heard = Heard()
    LogicalSink(server18.dsn, target, jobs=2).restore(snapshot, progress=heard)
    assert heard.planned == heard.moved
    assert heard.files_planned == heard.files_done
    assert compare_databases(server18.dsn_for(zoo), server18.dsn_for(target)) == []
    with server18.connect(target) as connection:
        # Its rows came in frozen: all pages are marked but those where one batch met the next.
        query = "SELECT relallvisible > relpages / 2 FROM pg_class WHERE oid = 'zoo.big'::regclass"
        assert connection.execute(query).fetchone() == (True,)
    part = databases.name(server18)
    restore(server18, snapshot, part, subset=Subset.parse(tables=["zoo.big", "zoo.measured_2025"]))
    with server18.connect(part) as connection:
        row = connection.execute("SELECT count(*) FROM zoo.big").fetchone()
        assert row == (60000,)


def test_what_cannot_be_built_while_others_load_is_said_and_never_replaces(
    server16: EmbeddedServer, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strongroom.postgres.logical.plan.SMALLEST_ALONE", 50_000)
    monkeypatch.setattr("strongroom.postgres.logical.plan.SMALLEST_GROUPED", 20_000)
    sql = (
        "CREATE FUNCTION same(i int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT i';"
        "CREATE TABLE t AS SELECT i AS a FROM generate_series(1, 20000) i;"
        "CREATE UNIQUE INDEX twice ON t (same(a)); CREATE INDEX fine ON t (a);"
        "CREATE TABLE u AS TABLE t; ALTER TABLE u ADD PRIMARY KEY (a);"
        "CREATE INDEX other ON u (a DESC); CREATE STATISTICS st ON a, (a % 7) FROM u;"
        "CREATE OR REPLACE FUNCTION same(i int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 0'"
    )
    made = databases.make(server16, sql=sql)
    kept = DoubleKeeper().keep(source(server16, made)).snapshot
    assert len(list(kept.entries())) > 3
    target = databases.name(server16)
    heard = Heard()
    sink = LogicalSink(server16.dsn, target, jobs=2)
    problems = sink.restore(kept, progress=heard).problems
    assert "could not create unique index" in problems[0].reason
    assert "indexes instead of 4" in problems[1].reason
    with server16.connect(target) as connection:
        query = "SELECT indexname FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
        found = [name for (name,) in connection.execute(query)]
        assert found == ["fine", "other", "u_pkey"]
        assert connection.execute("SELECT count(*) FROM pg_stats_ext").fetchone() == (1,)
        query = (
            "SELECT count(*) FROM pg_stats WHERE schemaname = 'public' AND n_distinct IS NOT NULL"
        )
        assert (connection.execute(query).fetchone() or (0,))[0] >= 2
    with pytest.raises(StrongroomError, match="could not create unique index"):
        restore(server16, kept, target, replace=True)
    with server16.connect(target) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (20000,)


@pytest.mark.parametrize("old", [15, 16])
def test_into_a_newer_major(
    old: int, server18: EmbeddedServer, databases: Databases, request: pytest.FixtureRequest
) -> None:
    older: EmbeddedServer = request.getfixturevalue(f"server{old}")
    zoo = databases.zoo(older)
    kept = DoubleKeeper().keep(source(older, zoo))
    target = databases.name(server18)
    assert restore(server18, kept.snapshot, target).problems == ()
    a, b = older.dsn_for(zoo), server18.dsn_for(target)
    assert compare_databases(a, b, definitions=False) == []


def test_an_older_server_is_refused(
    server15: EmbeddedServer, server18: EmbeddedServer, databases: Databases
) -> None:
    made = databases.make(server18, sql="CREATE TABLE t AS SELECT 1 AS a")
    kept = DoubleKeeper().keep(source(server18, made))
    with pytest.raises(Refused, match="PostgreSQL 18, the target server is 15"):
        restore(server15, kept.snapshot, databases.name(server15))


def test_unlogged_contents_can_be_left_out(server16: EmbeddedServer, databases: Databases) -> None:
    made = databases.make(
        server16, sql="CREATE UNLOGGED TABLE u AS SELECT 1 AS a; CREATE TABLE t AS SELECT 1 AS a"
    )
    kept = DoubleKeeper().keep(source(server16, made, unlogged=False))
    facts = kept.snapshot.facts["databases"][made]
    assert facts["left_out"] == [{"schema": "public", "name": "u", "reason": "unlogged"}]
    target = databases.name(server16)
    restore(server16, kept.snapshot, target)
    with server16.connect(target) as connection:
        row = connection.execute("SELECT (SELECT count(*) FROM u), (SELECT count(*) FROM t)")
        assert row.fetchone() == (0, 1)


def test_temporary_tables_are_not_backed_up(server16: EmbeddedServer, databases: Databases) -> None:
    made = databases.make(server16, sql="CREATE TABLE t AS SELECT 1 AS a")
    with server16.connect(made) as connection:
        connection.execute("CREATE TEMPORARY TABLE gone AS SELECT 1 AS a")
        kept = DoubleKeeper().keep(source(server16, made))
    listed = [t["name"] for t in kept.snapshot.facts["databases"][made]["tables"]]
    assert listed == ["t"]


def test_several_databases_and_the_choice_of_one(
    server16: EmbeddedServer, databases: Databases
) -> None:
    one = databases.make(server16, sql="CREATE TABLE t AS SELECT 1 AS a")
    two = databases.make(server16, sql="CREATE TABLE t AS SELECT 2 AS a")
    kept = EngineKeeper().keep(source(server16, "postgres", databases=[one, two]))
    target = databases.name(server16)
    with pytest.raises(UsageError, match="Which one"):
        restore(server16, kept.snapshot, target)
    restore(server16, kept.snapshot, target, database=two)
    with server16.connect(target) as connection:
        assert connection.execute("SELECT a FROM t").fetchone() == (2,)
    with pytest.raises(NotFound, match="'nowhere'"):
        source(server16, "postgres", databases=["nowhere"]).probe()


def test_the_second_dump_stores_what_changed(
    server18: EmbeddedServer, databases: Databases
) -> None:
    made = databases.make(
        server18,
        sql="CREATE TABLE t (id int PRIMARY KEY, a text, v float4[]);"
        "INSERT INTO t SELECT i, md5(i::text), ARRAY[random(), random(), random()]"
        " FROM generate_series(1, 400000) i;"
        "CREATE TABLE s AS SELECT i AS a FROM generate_series(1, 10000) i",
    )
    keeper = EngineKeeper()
    first = keeper.keep(source(server18, made))
    again = keeper.keep(source(server18, made))
    with server18.connect(made) as connection:
        connection.execute("DELETE FROM t WHERE id > 399000")
        connection.execute(
            "INSERT INTO t SELECT i, md5(i::text), ARRAY[1.5] FROM generate_series(399001, 404000) i"
        )
    changed = keeper.keep(source(server18, made))
    assert first.stored > 5_000_000
    assert again.stored < first.stored * 0.08
    assert changed.stored < first.stored * 0.20  # one chunk of 1 MiB is a lot of a small table


def test_a_moment_is_one_while_others_write(
    server: EmbeddedServer, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Money moves between two tables all the time: its sum must be the same in any backup."""
    monkeypatch.setattr("strongroom.postgres.logical.plan.SMALLEST_ALONE", 100_000)
    monkeypatch.setattr("strongroom.postgres.logical.plan.SMALLEST_GROUPED", 10_000)
    made = databases.make(
        server,
        sql="CREATE TABLE a (id int PRIMARY KEY, m int, pad text);"
        "CREATE TABLE b (LIKE a INCLUDING ALL);"
        "CREATE SEQUENCE moves;"
        "INSERT INTO a SELECT i, 1000, repeat('x', 300) FROM generate_series(1, 3000) i;"
        "INSERT INTO b SELECT i, 1000, repeat('y', 300) FROM generate_series(1, 3000) i",
    )
    stop = threading.Event()
    moved = [0]

    def move() -> None:
        with server.connect(made) as connection:
            while not stop.is_set():
                connection.execute(
                    "WITH n AS (SELECT (1 + random() * 2999)::int AS i, nextval('moves')),"
                    " x AS (UPDATE a SET m = m - 1 FROM n WHERE id = i)"
                    " UPDATE b SET m = m + 1 FROM n WHERE id = 3001 - i"
                )
                moved[0] += 1

    thread = threading.Thread(target=move)
    thread.start()
    try:
        before = moved[0]
        kept = DoubleKeeper().keep(source(server, made))
        assert moved[0] > before + 5
    finally:
        stop.set()
        thread.join()
    assert len(list(kept.snapshot.entries())) >= 4
    target = databases.name(server)
    restore(server, kept.snapshot, target)
    with server.connect(target) as connection:
        row = connection.execute("SELECT (SELECT sum(m) FROM a), (SELECT sum(m) FROM b)").fetchone()
    assert row is not None
    assert row[0] + row[1] == 6_000_000
    assert row[0] != 3_000_000


HOSTILE = ["-d", "host=evil port=1", "--file=/x", "q\"uo'te\\", "a b.c*?|$", "ä" * 31, "%d%s;--"]


@pytest.mark.parametrize("major", [15, 18])
def test_hostile_names(
    major: int,
    databases: Databases,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As database, schema, table and role; each table in a stream that has to name it."""
    monkeypatch.setattr("strongroom.postgres.logical.plan.SMALLEST_ALONE", 1)
    monkeypatch.setattr("strongroom.postgres.logical.plan.SMALLEST_GROUPED", 1)
    server: EmbeddedServer = request.getfixturevalue(f"server{major}")
    hostile = [*HOSTILE, "new\nline; SELECT 1/0; --"]
    sql = ""
    for name in hostile:
        q = quote(name)
        sql += f"CREATE ROLE {q}; CREATE SCHEMA {q}; CREATE TABLE {q}.{q} AS SELECT 1 AS {q};"
        sql += f"ALTER TABLE {q}.{q} OWNER TO {q}; COMMENT ON TABLE {q}.{q} IS '{len(name)}';"
    pairs = [("host=evil port=1", "-d"), ("--file=/x", "q\"uo'te\\"), ("ä" * 31, "%d%s;--")]
    try:
        for name, target in pairs if major == 18 else pairs[:1]:
            made = databases.make(server, name, sql)
            kept = DoubleKeeper().keep(source(server, made))
            assert kept.problems == []
            assert restore(server, kept.snapshot, databases.name(server, target)).problems == ()
            dsns = (server.dsn_for(made), server.dsn_for(target))
            assert compare_databases(*dsns) == []
            sql = "CREATE TABLE t AS SELECT 1 AS a"
        with pytest.raises(Refused, match="control characters"):
            restore(server, kept.snapshot, "new\nline")
    finally:
        databases.close()
        with server.connect() as connection:
            for name in hostile:
                connection.execute(f"DROP ROLE IF EXISTS {quote(name)}")


def test_roles_and_memberships_come_back_on_another_server(
    server16: EmbeddedServer, server18: EmbeddedServer, databases: Databases
) -> None:
    with server16.connect() as connection:
        connection.execute(
            "CREATE ROLE \"app'\" LOGIN PASSWORD 'pw;\"' CONNECTION LIMIT 4; CREATE ROLE app_group;"
            'GRANT app_group TO "app\'"; ALTER ROLE "app\'" SET search_path = \'a\', "b c"'
        )
    made = databases.make(
        server16, sql='CREATE TABLE t AS SELECT 1 AS a; ALTER TABLE t OWNER TO "app\'"'
    )
    kept = DoubleKeeper().keep(source(server16, made))
    try:
        plan = LogicalSink(server18.dsn, "nothing").preflight(kept.snapshot)
        assert plan["roles_missing"] == ["app'"]
        without = restore(server18, kept.snapshot, databases.name(server18))
        assert ['role "app\'" does not exist' in p.reason for p in without.problems] == [True]
        target = databases.name(server18)
        outcome = restore(server18, kept.snapshot, target, global_objects=True)
        assert outcome.problems == ()
        assert set(outcome.facts["roles_created"]) == {"app'", "app_group"}
        assert "postgres" in outcome.facts["roles_kept"]
        with server18.connect(target) as connection:
            row = connection.execute(
                "SELECT r.rolcanlogin, r.rolconnlimit, r.rolconfig,"
                " pg_has_role('app''', 'app_group', 'USAGE'),"
                " (SELECT tableowner FROM pg_tables WHERE tablename = 't'), a.rolpassword LIKE 'SCRAM%%'"
                " FROM pg_roles r JOIN pg_authid a USING (rolname) WHERE rolname = 'app'''"
            ).fetchone()
        assert row == (True, 4, ['search_path=a, "b c"'], True, "app'", True)
    finally:
        databases.close()
        for one in (server16, server18):
            with one.connect() as connection:
                connection.execute('DROP ROLE IF EXISTS "app\'", app_group')


def test_a_backup_without_superuser_has_no_role_passwords(
    server16: EmbeddedServer, databases: Databases
) -> None:
    made = databases.make(server16, sql="CREATE TABLE t AS SELECT 1 AS a")
    with server16.connect() as connection:
        connection.execute("CREATE ROLE backup LOGIN PASSWORD 'b'")
    try:
        # pg_read_all_data would read pg_authid too, and with it the passwords.
        with server16.connect(made) as connection:
            connection.execute("GRANT SELECT ON t TO backup")
        dsn = f"{server16.dsn_for(made)} user=backup password=b"
        kept = DoubleKeeper().keep(LogicalSource("db", dsn, jobs=1))
        (problem,) = kept.problems
        assert problem.path == b"globals.sql"
        assert "role passwords are not included" in problem.reason
        assert b"CREATE ROLE" in kept.snapshot.data(b"globals.sql")  # type: ignore[attr-defined]
        quiet = DoubleKeeper().keep(LogicalSource("db", dsn, jobs=1, role_passwords=False))
        assert quiet.problems == []
        restore(server16, quiet.snapshot, databases.name(server16))
    finally:
        databases.close()
        with server16.connect() as connection:
            connection.execute("DROP ROLE backup")


def test_a_part_comes_back_with_what_it_needs(
    server16: EmbeddedServer, databases: Databases, keeper: Keeper
) -> None:
    zoo = databases.zoo(server16)
    kept = keeper.keep(source(server16, zoo))
    target = databases.name(server16)
    subset = Subset.parse(["other schema"], ["zoo.measured", "zoo.egg", "zoo.kinds"])
    restore(server16, kept.snapshot, target, subset=subset)
    with server16.connect(target) as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1, 2"
        ).fetchall()
        assert [name for _, name in tables] == [
            'Odd "Table".*$',
            "egg",
            "kinds",
            "measured",
            "measured_2025",
            "measured_2026",
            "measured_2026_0",
            "measured_2026_1",
            "measured_rest",
        ]
        assert connection.execute("SELECT count(*) FROM zoo.measured").fetchone() == (12000,)
        assert connection.execute("SELECT nextval('zoo.egg_id_seq')").fetchone() == (51,)
        keys = "SELECT count(*) FROM pg_constraint WHERE contype = 'f'"
        assert connection.execute(keys).fetchone() == (0,)
    with pytest.raises(NotFound, match='no "zoo"\\."nowhere"'):
        restore(
            server16,
            kept.snapshot,
            databases.name(server16),
            subset=Subset((), (("zoo", "nowhere"),)),
        )


def test_an_existing_database_is_replaced_only_when_asked(
    server: EmbeddedServer, databases: Databases
) -> None:
    made = databases.make(server, sql="CREATE TABLE t AS SELECT 1 AS a")
    kept = DoubleKeeper().keep(source(server, made))
    target = databases.make(server, sql="CREATE TABLE mine AS SELECT 1 AS a")
    with server.connect(target) as held:
        with pytest.raises(
            Refused, match=r"exists on the target server\. Connected to it: process"
        ):
            restore(server, kept.snapshot, target)
        with pytest.raises(Refused, match="leads to"):
            LogicalSink(server.dsn_for(target), target, replace=True).preflight(kept.snapshot)
        before = names_on(server)
        assert restore(server, kept.snapshot, target, replace=True).facts["replaced"] is True
        assert names_on(server) == before
        held.close()
    with server.connect(target) as connection:
        assert connection.execute("SELECT a FROM t").fetchone() == (1,)
        assert connection.execute("SELECT to_regclass('mine')").fetchone() == (None,)


def test_compare_sees_every_kind_of_difference(
    server16: EmbeddedServer, databases: Databases
) -> None:
    """The judge of the other tests must be able to condemn."""
    a, b = databases.zoo(server16), databases.zoo(server16)
    dsns = (server16.dsn_for(a), server16.dsn_for(b))
    assert compare_databases(*dsns) == []
    changes = {
        "UPDATE zoo.kinds SET real8 = 1 WHERE id = 1000": "rows of",
        "INSERT INTO zoo.no_columns DEFAULT VALUES": "rows of",
        "ALTER TABLE zoo.kinds ALTER flag SET DEFAULT true": "column",
        "DROP INDEX zoo.partly": "index",
        "ALTER TABLE zoo.booked DROP CONSTRAINT booked_room_check": "constraint",
        "ALTER TABLE zoo.empty_table DISABLE TRIGGER stamped": "trigger",
        "DROP POLICY mine ON zoo.kinds": "policy",
        "REVOKE SELECT ON zoo.kinds FROM zoo_reader": "relation",
        "ALTER SEQUENCE zoo.odd_sequence RESTART": "sequence",
        "SELECT lo_put(424243, 0, 'x')": "large object",
        "ALTER TYPE zoo.mood ADD VALUE 'mad'": "type",
        "ALTER FUNCTION zoo.twice VOLATILE": "function",
        "DROP EVENT TRIGGER watch": "event trigger",
        "ALTER PUBLICATION published DROP TABLE zoo.measured": "publication",
    }
    with server16.connect(b) as connection:
        connection.execute("SET search_path = pg_catalog")
        for change, kind in changes.items():
            connection.execute(change.encode())
            found = compare_databases(*dsns, rows=kind == "rows of")
            kinds = {difference.split(" ", 1)[0] for difference in found}
            assert kind.split(" ", 1)[0] in kinds, change


def test_rows_that_are_missing_after_a_restore_are_noticed(
    server16: EmbeddedServer, databases: Databases
) -> None:
    made = databases.make(server16, sql="CREATE TABLE t AS SELECT 1 AS a; CREATE SEQUENCE s")
    kept = DoubleKeeper().keep(source(server16, made))
    before = names_on(server16)
    target = databases.name(server16)
    facts = kept.snapshot.facts["databases"][made]
    facts["tables"][0]["rows"] = 2
    with pytest.raises(Damaged, match="has 1 rows instead of 2") as caught:
        restore(server16, kept.snapshot, target)
    assert "was dropped" in caught.value.means
    facts["tables"][0]["rows"] = 1
    facts["inventory"]["indexes"] = 1
    with pytest.raises(Damaged, match="0 indexes instead of 1"):
        restore(server16, kept.snapshot, target)
    facts["inventory"]["indexes"] = 0
    facts["sequences"][0]["name"] = "other"
    with pytest.raises(Damaged, match="Sequence"):
        restore(server16, kept.snapshot, target)
    assert names_on(server16) == before


def test_a_standby_is_a_source(server18: EmbeddedServer, databases: Databases) -> None:
    sql = "CREATE TABLE t AS SELECT 1 AS a; CREATE UNLOGGED TABLE u AS SELECT 1 AS a"
    with EmbeddedServer(server18.installation, durable=False) as standby:
        with standby.connect() as connection:
            connection.execute("CREATE DATABASE d")
        with standby.connect("d") as connection:
            connection.execute(sql)
        standby.stop()
        with open(os.path.join(standby.data_directory, "standby.signal"), "wb"):
            pass
        standby.start()
        kept = DoubleKeeper().keep(source(standby, "d"))
    facts = kept.snapshot.facts
    assert facts["server"]["standby"] is True
    assert [t["name"] for t in facts["databases"]["d"]["left_out"]] == ["u"]
    target = databases.name(server18)
    restore(server18, kept.snapshot, target)
    with server18.connect(target) as connection:
        assert connection.execute("SELECT a FROM t").fetchone() == (1,)
