"""What goes wrong: it is said, it ends in the right error, and nothing half is left looking whole."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from postgres.conftest import Databases, names_on
from postgres.double import DoubleSession, DoubleSnapshot
from postgres.keeping import DoubleKeeper
from strongroom.errors import (
    Busy,
    Damaged,
    DatabaseUnreachable,
    Incomplete,
    KeyRefused,
    Refused,
    StrongroomError,
)
from strongroom.format.tree import Entry
from strongroom.postgres import embedded
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.logical import snapshot as snapshots
from strongroom.postgres.logical.sink import LogicalSink
from strongroom.postgres.logical.source import LogicalSource
from strongroom.postgres.logical.target import UNFINISHED
from strongroom.progress import Silent

ROWS = (
    "CREATE TABLE t (id int PRIMARY KEY, pad text);"
    "INSERT INTO t SELECT i, repeat(md5(i::text), 40) FROM generate_series(1, {}) i"
)


def source(server: EmbeddedServer, database: str, **options: Any) -> LogicalSource:
    return LogicalSource("db", server.dsn_for(database), **{"jobs": 2, **options})


def back_up(of: LogicalSource, progress: Silent | None = None) -> DoubleSession:
    session = DoubleSession()
    of.back_up(session, progress=progress or Silent())
    return session


class After(Silent):
    """Progress that does something once, when this much has been moved."""

    def __init__(self, size: int, then: Callable[[], None]) -> None:
        self._left, self._then = size, then
        self._lock = threading.Lock()

    def advance(self, *, size: int = 0, files: int = 0, stored: int = 0) -> None:
        with self._lock:
            before, self._left = self._left, self._left - size
        if before > 0 >= self._left:
            self._then()


@pytest.fixture
def mortal() -> Iterator[EmbeddedServer]:
    """A server that a test may kill."""
    with EmbeddedServer(embedded.find_server(), durable=False) as server:
        yield server


def children() -> set[str]:
    """Command names of our own children that still run."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                head, _, rest = file.read().rpartition(b")")
        except OSError:
            continue
        if int(rest.split()[1]) == os.getpid():
            found.add(head.partition(b"(")[2].decode())
    return found


def test_a_wrong_password_is_exit_8_and_is_not_repeated(server18: EmbeddedServer) -> None:
    dsn = psycopg.conninfo.make_conninfo(server18.dsn_for("postgres", tcp=True), password="hunter2")
    with pytest.raises(KeyRefused) as caught:
        back_up(LogicalSource("db", dsn))
    assert caught.value.exit_status == 8
    assert "hunter2" not in str(caught.value) + repr(caught.value.__cause__)
    assert "refused the credentials" in caught.value.what


def test_no_server_is_exit_7() -> None:
    with pytest.raises(DatabaseUnreachable) as caught:
        back_up(LogicalSource("db", "host=127.0.0.1 port=1 dbname=x user=u"))
    assert caught.value.exit_status == 7


def test_a_database_that_is_not_there_is_never_a_connection_string(
    server18: EmbeddedServer,
) -> None:
    dsn = psycopg.conninfo.make_conninfo(server18.dsn, dbname="host=evil.invalid user=x")
    with pytest.raises(DatabaseUnreachable, match=r'"host=evil\.invalid user=x" does not'):
        back_up(LogicalSource("db", dsn))


def test_the_password_is_in_no_argument_list(
    server18: EmbeddedServer, databases: Databases
) -> None:
    made = databases.make(server18, sql=ROWS.format(20000))
    dsn = server18.dsn_for(made)
    secret = str(psycopg.conninfo.conninfo_to_dict(dsn)["password"]).encode()
    seen: list[bytes] = []

    def look() -> None:
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    seen.append(file.read())
            except OSError:
                continue

    kept = back_up(LogicalSource("db", dsn, jobs=2), After(1_000_000, look))
    assert any(b"pg_dump" in line and made.encode() in line for line in seen)
    assert not any(secret in line for line in seen)
    assert not any(secret in chunk for chunk in kept.chunks.values())


@pytest.mark.parametrize("how", ["server", "pg_dump's backend", "snapshot's backend"])
def test_a_death_in_the_middle_of_a_backup(
    how: str, mortal: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_HEARTBEAT", 0.05)
    mortal.connect().execute("CREATE DATABASE d")
    mortal.connect("d").execute(ROWS.format(60000))

    def strike() -> None:
        if how == "server":
            os.kill(mortal.pid or 0, signal.SIGQUIT)
            return
        pattern = "COPY %" if how.startswith("pg_dump") else "%"
        with mortal.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'd'"
                " AND backend_type = 'client backend' AND query LIKE %s"
                " AND (query LIKE 'COPY%%' OR application_name = 'strongroom' AND state LIKE 'idle in%%')",
                [pattern],
            )
        time.sleep(0.5 if how.startswith("snapshot") else 0)

    with pytest.raises(DatabaseUnreachable):
        back_up(source(mortal, "d"), After(5_000_000, strike))
    assert not {name for name in children() if name.startswith("pg_")}


def test_a_locked_table_is_named_with_who_holds_it(
    server16: EmbeddedServer, databases: Databases
) -> None:
    made = databases.make(server16, sql=ROWS.format(10))
    with server16.connect(made, application_name="the migration") as held:
        held.execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        with pytest.raises(
            Busy, match=r"stayed locked for 0\.3 s: public\.t by process \d+ \(the migration\)"
        ):
            back_up(source(server16, made, lock_timeout=0.3))
        assert time.monotonic() - began < 5
        held.execute("ROLLBACK")


def test_tables_dropped_while_the_snapshot_is_taken_are_no_failure(
    server16: EmbeddedServer, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = databases.make(server16, sql=ROWS.format(10) + "; CREATE TABLE doomed ()")
    listed = snapshots.catalogue.lockable_tables
    calls = []

    def listing(connection: psycopg.Connection[Any]) -> Any:
        found = listed(connection)
        if not calls:
            with server16.connect(made) as other:
                other.execute("DROP TABLE doomed")
        calls.append(1)
        return found

    monkeypatch.setattr(snapshots.catalogue, "lockable_tables", listing)
    back_up(source(server16, made))
    assert len(calls) == 2


def test_row_security_that_would_hide_rows_is_refused(
    server16: EmbeddedServer, databases: Databases
) -> None:
    made = databases.make(server16, sql=ROWS.format(10))
    with server16.connect(made) as connection:
        connection.execute(
            "CREATE ROLE limited LOGIN PASSWORD 'l'; GRANT SELECT ON t TO limited;"
            "ALTER TABLE t ENABLE ROW LEVEL SECURITY"
        )
    try:
        dsn = psycopg.conninfo.make_conninfo(server16.dsn_for(made), user="limited", password="l")
        with pytest.raises(StrongroomError, match="row-level security"):
            back_up(LogicalSource("db", dsn, global_objects=False))
        with server16.connect(made) as connection:
            connection.execute("REVOKE ALL ON t FROM limited")
        with pytest.raises(Refused) as caught:
            back_up(LogicalSource("db", dsn, global_objects=False))
        assert "pg_read_all_data" in caught.value.do
    finally:
        databases.close()
        with server16.connect() as connection:
            connection.execute("DROP ROLE limited")


def test_ctrl_c_ends_every_child(server18: EmbeddedServer, databases: Databases) -> None:
    made = databases.make(server18, sql=ROWS.format(60000))
    pressed = After(3_000_000, lambda: os.kill(os.getpid(), signal.SIGINT))
    # Who runs the tests in the background may have them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            back_up(source(server18, made), pressed)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not {name for name in children() if name.startswith("pg_")}
    with server18.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        deadline = time.monotonic() + 10
        while connection.execute(query, [made]).fetchone() != (0,):
            assert time.monotonic() < deadline
            time.sleep(0.05)


# -- restoring -----------------------------------------------------------------------------


def kept_rows(server: EmbeddedServer, databases: Databases, sql: str) -> DoubleSnapshot:
    made = databases.make(server, sql=sql)
    kept = DoubleKeeper().keep(source(server, made)).snapshot
    assert isinstance(kept, DoubleSnapshot)
    return kept


def test_a_damaged_stream_leaves_the_old_database_and_nothing_else(
    server18: EmbeddedServer, databases: Databases
) -> None:
    kept = kept_rows(server18, databases, ROWS.format(5000))
    target = databases.make(server18, sql="CREATE TABLE mine AS SELECT 1 AS a")
    before = names_on(server18)

    class Rotten(DoubleSnapshot):
        def stream(self, entry: Entry) -> Iterator[memoryview]:
            for number, piece in enumerate(super().stream(entry)):
                if entry.path.endswith(b"main.dump") and number == 10:
                    raise Damaged("A chunk does not match its id.")
                yield piece

    rotten = Rotten(kept.facts, kept.chunks, kept.records)
    with pytest.raises(Damaged, match="does not match") as caught:
        LogicalSink(server18.dsn, target, replace=True).restore(rotten, progress=Silent())
    assert "every other database" in caught.value.means
    assert names_on(server18) == before
    with server18.connect(target) as connection:
        assert connection.execute("SELECT a FROM mine").fetchone() == (1,)


def test_a_stream_that_is_missing_or_cut_is_no_success(
    server18: EmbeddedServer, databases: Databases
) -> None:
    kept = kept_rows(server18, databases, ROWS.format(5000))
    before = names_on(server18)
    less = DoubleSnapshot(kept.facts, kept.chunks, kept.records[1:])
    with pytest.raises(Damaged, match="streams"):
        LogicalSink(server18.dsn, "x").restore(less, progress=Silent())

    class Cut(DoubleSnapshot):
        def stream(self, entry: Entry) -> Iterator[memoryview]:
            pieces = list(super().stream(entry))
            yield from pieces[: len(pieces) // 2] if entry.path.endswith(b"main.dump") else pieces

    with pytest.raises(StrongroomError, match="pg_restore failed"):
        LogicalSink(server18.dsn, "x").restore(
            Cut(kept.facts, kept.chunks, kept.records), progress=Silent()
        )
    assert names_on(server18) == before


def test_the_server_dies_during_a_restore(mortal: EmbeddedServer) -> None:
    mortal.connect().execute("CREATE DATABASE d")
    mortal.connect("d").execute(ROWS.format(30000))
    kept = DoubleKeeper().keep(source(mortal, "d")).snapshot
    strike = After(5_000_000, lambda: os.kill(mortal.pid or 0, signal.SIGQUIT))
    with pytest.raises(DatabaseUnreachable) as caught:
        LogicalSink(mortal.dsn, "back").restore(kept, progress=strike)
    assert "could not be dropped" in caught.value.means
    mortal.stop()
    mortal.start()
    left = names_on(mortal) - {"postgres", "template0", "template1", "d"}
    assert all(name.startswith(UNFINISHED) for name in left)
    plan = LogicalSink(mortal.dsn, "back").preflight(kept)
    assert set(plan["leftovers"]) == left
    assert LogicalSink(mortal.dsn, "back").restore(kept, progress=Silent()).problems == ()


def test_a_failed_restore_is_kept_when_asked_for(
    server18: EmbeddedServer, databases: Databases
) -> None:
    kept = kept_rows(server18, databases, ROWS.format(10))
    (facts,) = kept.facts["databases"].values()
    facts["tables"][0]["rows"] = 11
    with pytest.raises(Damaged) as caught:
        LogicalSink(server18.dsn, "x", keep_failed=True).restore(kept, progress=Silent())
    match = re.search(f"{UNFINISHED}[0-9a-f]+", caught.value.means)
    assert match
    databases.name(server18, match[0])
    assert match[0] in names_on(server18)
    assert "x" not in names_on(server18)


def test_a_constraint_that_does_not_hold_is_a_problem_but_never_replaces(
    server16: EmbeddedServer, databases: Databases
) -> None:
    """A corrupt source has rows that its constraint forbids: they are delivered, and it is said."""
    sql = (
        "CREATE FUNCTION fine(i int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT true';"
        "CREATE TABLE t AS SELECT 1 AS a; ALTER TABLE t ADD CHECK (fine(a)) NOT VALID;"
        "CREATE TABLE u (a int); CREATE TABLE p (a int PRIMARY KEY);"
        "ALTER TABLE u ADD FOREIGN KEY (a) REFERENCES p; SET session_replication_role = replica;"
        "INSERT INTO u VALUES (7)"
    )
    kept = kept_rows(server16, databases, sql)
    target = databases.name(server16)
    outcome = LogicalSink(server16.dsn, target).restore(kept, progress=Silent())
    assert any("violates foreign key constraint" in p.reason for p in outcome.problems)
    assert any("constraints instead of" in p.reason for p in outcome.problems)
    before = names_on(server16)
    with pytest.raises(StrongroomError, match="post-data failed"):
        LogicalSink(server16.dsn, target, replace=True).restore(kept, progress=Silent())
    assert names_on(server16) == before
    assert Incomplete.exit_status == 3


def test_missing_extensions_are_named_before_anything_is_changed(
    server16: EmbeddedServer, databases: Databases
) -> None:
    kept = kept_rows(server16, databases, ROWS.format(10))
    (facts,) = kept.facts["databases"].values()
    facts["extensions"].append(["postgis", "3.4"])
    with pytest.raises(Refused, match="postgis") as caught:
        LogicalSink(server16.dsn, "x").preflight(kept)
    assert caught.value.exit_status == 4


def test_settings_that_load_code_are_not_restored(
    server16: EmbeddedServer, databases: Databases
) -> None:
    kept = kept_rows(server16, databases, ROWS.format(10))
    (facts,) = kept.facts["databases"].values()
    facts["settings"] += [[None, "session_preload_libraries", "evil"], [None, "work_mem", "5MB"]]
    target = databases.name(server16)
    outcome = LogicalSink(server16.dsn, target).restore(kept, progress=Silent())
    assert [p.reason.split(" = ")[0] for p in outcome.problems] == [
        "setting session_preload_libraries"
    ]
    with server16.connect(target) as connection:
        assert connection.execute("SHOW work_mem").fetchone() == ("5MB",)


def test_a_role_without_createdb_is_refused(server16: EmbeddedServer, databases: Databases) -> None:
    kept = kept_rows(server16, databases, ROWS.format(10))
    with server16.connect() as connection:
        connection.execute("CREATE ROLE poor LOGIN PASSWORD 'p'")
    try:
        dsn = psycopg.conninfo.make_conninfo(server16.dsn, user="poor", password="p")
        with pytest.raises(Refused, match="may not create databases"):
            LogicalSink(dsn, "x").preflight(kept)
    finally:
        with server16.connect() as connection:
            connection.execute("DROP ROLE poor")


def test_an_unknown_locale_is_refused_and_another_may_stand_in(
    server16: EmbeddedServer, databases: Databases
) -> None:
    kept = kept_rows(server16, databases, ROWS.format(10))
    (facts,) = kept.facts["databases"].values()
    facts["collate"] = facts["ctype"] = "xx_XX.UTF-8"
    before = names_on(server16)
    with pytest.raises(Refused, match="xx_XX"):
        LogicalSink(server16.dsn, "x").restore(kept, progress=Silent())
    assert names_on(server16) == before
    target = databases.name(server16)
    LogicalSink(server16.dsn, target, locale="C").restore(kept, progress=Silent())
