"""A cluster backed up on its own host while it works, and started again from the snapshot."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from postgres.physical.tools import ROWS, At, Restored, Room, content, entries, run, with_rows
from strongroom.errors import ConfigError, DatabaseUnreachable, Refused, StrongroomError
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.physical.control import ControlFile
from strongroom.postgres.physical.local import read_control
from strongroom.postgres.physical.manifest import Manifest

pytestmark = pytest.mark.xdist_group("physical")  # one worker: its clusters are started once


def check_indexes(connection: psycopg.Connection[Any]) -> None:
    """Every heap row in every index, where this installation has amcheck."""
    if not connection.execute(
        "SELECT FROM pg_available_extensions WHERE name = 'amcheck'"
    ).fetchone():
        return
    connection.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
    connection.execute(
        "SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = c.relam"
        " WHERE amname = 'btree' AND relkind = 'i' AND relpersistence = 'p'"
    )


def path_of(server: EmbeddedServer, table: str) -> str:
    """A table's first file, below the data directory."""
    return str(run(server, f"SELECT pg_relation_filepath('{table}')")[0])


def on_disk(server: EmbeddedServer, path: str) -> str:
    return os.path.join(server.data_directory, path)


# -- there and back ----------------------------------------------------------------------------


def test_traps_2_3_22_a_backup_under_load_recovers_and_postgresql_agrees(
    each: EmbeddedServer, folder: Path
) -> None:
    """pg_verifybackup, pg_checksums, amcheck; and no half transaction."""
    room = Room(each, folder)
    rows = with_rows(each)
    tables = next(rows)
    run(
        tables,
        "DROP TABLE IF EXISTS accounts",
        "CREATE TABLE accounts AS SELECT n AS id, 1000 AS money FROM generate_series(1, 3000) n",
    )
    over = threading.Event()

    def work() -> None:
        with tables.connect() as connection:
            while not over.is_set():
                connection.execute(
                    "WITH gone AS (UPDATE accounts SET money = money - 1 WHERE id % 2 = 0)"
                    " UPDATE accounts SET money = money + 1 WHERE id % 2 = 1"
                )

    worker = threading.Thread(target=work)
    worker.start()
    try:
        report, facts = room.take()
    finally:
        over.set()
        worker.join()
    assert not report.problems
    assert (facts.via, facts.checksums, facts.bad_pages) == ("local", True, ())
    assert facts.start_lsn < facts.stop_lsn
    assert facts.start_time < facts.stop_time
    reader = room.reader(report)
    assert content(reader, b"data/backup_label") == facts.backup_label
    run(tables, "INSERT INTO rows VALUES (-1, 'later')")  # not in the backup
    with Restored(tables, reader, room.archive) as restored:
        restored.wait_until_writable()
        with restored.connect() as connection:
            assert connection.execute("SELECT count(*), min(n) FROM rows").fetchone() == (20000, 1)
            assert connection.execute("SELECT sum(money) FROM accounts").fetchone() == (3_000_000,)
            check_indexes(connection)
        restored.check_pages()
    run(tables, "DROP TABLE accounts, rows")


def test_trap_7_what_belongs_to_the_server_alone_is_left_out(
    tables: EmbeddedServer, room: Room
) -> None:
    with tables.connect() as connection:
        connection.execute("SELECT pg_create_physical_replication_slot('mine', true)")
        inside = Path(on_disk(tables, ""))
        (inside / "pg_stat_tmp" / "x").write_bytes(b"x")
        (inside / "backup_label.old").write_bytes(b"kept")
        (inside / "base" / "pgsql_tmp").mkdir()
        (inside / "base" / "pgsql_tmp" / "pgsql_tmp1.0").write_bytes(b"x" * 100)
        odd = inside / os.fsdecode(b"odd \xff\n name")
        odd.write_bytes(b"somebody's")
        try:
            report, facts = room.take()
        finally:
            for path in (
                inside / "pg_stat_tmp" / "x",
                inside / "backup_label.old",
                inside / "base" / "pgsql_tmp" / "pgsql_tmp1.0",
                odd,
            ):
                path.unlink()
            (inside / "base" / "pgsql_tmp").rmdir()
            connection.execute("SELECT pg_drop_replication_slot('mine')")
    reader = room.reader(report)
    found = entries(reader)
    for name in (b"pg_wal", b"pg_replslot", b"pg_stat_tmp", b"pg_notify", b"pg_subtrans"):
        below = [path for path in found if path.startswith(b"data/" + name + b"/")]
        assert b"data/" + name in found
        assert [path for path in below if found[path].size] == []
    assert b"data/pg_wal/archive_status" in found
    assert (b"data/pg_wal/summaries" in found) == (tables.installation.version[0] >= 17)
    assert not [path for path in found if b"pgsql_tmp" in path or b"postmaster" in path]
    assert not [path for path in found if b"pg_internal.init" in path]
    assert content(reader, b"data/backup_label.old") == b"kept"
    assert content(reader, b"data/odd \xff\n name") == b"somebody's"
    assert facts.left_out["passed over"] >= 3
    with Restored(tables, reader, room.archive) as restored:
        restored.wait_until_writable()
        assert run(restored, "SELECT count(*) FROM pg_replication_slots") == (0,)


def test_trap_8_unlogged_and_temporary_relations(tables: EmbeddedServer, room: Room) -> None:
    run(tables, f"CREATE UNLOGGED TABLE loose AS {ROWS}", "CREATE INDEX ON loose (n)", "CHECKPOINT")
    with tables.connect() as session:
        session.execute(f"CREATE TEMPORARY TABLE fleeting AS {ROWS}".encode())
        row = session.execute("SELECT pg_relation_filepath('fleeting')").fetchone()
        report, facts = room.take()
    reader = room.reader(report)
    found = entries(reader)
    loose = path_of(tables, "loose").encode()
    assert row
    assert b"data/" + row[0].encode() not in found
    assert b"data/" + loose not in found
    assert b"data/" + loose + b"_init" in found
    assert facts.left_out["unlogged relation"] >= 2
    assert facts.left_out["temporary relation"] >= 1
    with Restored(tables, reader, room.archive) as restored:
        restored.wait_until_writable()
        run(restored, "INSERT INTO loose VALUES (1, 'works')")
        assert run(restored, "SELECT count(*) FROM loose") == (1,)
    run(tables, "DROP TABLE loose")


def test_trap_9_tablespaces_are_taken_once_and_links_are_not_followed(
    tables: EmbeddedServer, room: Room, folder: Path
) -> None:
    beside = folder / "a place"
    inside = Path(on_disk(tables, "inside"))
    secret = folder / "secret"
    secret.write_bytes(b"not the cluster's")
    link = Path(on_disk(tables, "link"))
    link.symlink_to(secret)
    for place in (beside, inside):
        place.mkdir(mode=0o700)
        os.chown(place, os.stat(tables.data_directory).st_uid, -1)
    other = beside / "PG_9.6_201608131"  # of the version before an upgrade
    other.mkdir()
    (other / "1").write_bytes(b"x")
    run(tables, f"CREATE TABLESPACE beside LOCATION '{beside}'")
    run(tables, f"CREATE TABLESPACE inside LOCATION '{inside}'")
    run(tables, f"CREATE TABLE one TABLESPACE beside AS {ROWS}")
    run(tables, f"CREATE TABLE two TABLESPACE inside AS {ROWS}")
    try:
        report, facts = room.take()
        reader = room.reader(report)
        found = entries(reader)
        assert {space.location for space in facts.tablespaces} == {
            os.fsencode(beside),
            os.fsencode(inside),
        }
        assert [path for path in found if path.startswith(b"data/inside/")] == []
        assert not [path for path in found if b"PG_9.6" in path]
        assert b"data/link" not in found
        (problem,) = report.problems
        assert problem.path == b"data/link"
        last = os.fsencode(path_of(tables, "one"))[-12:]
        (name,) = {path for path in found if path.endswith(last)}
        assert name.startswith(b"tablespaces/")
        with Restored(tables, reader, room.archive) as restored:
            restored.wait_until_writable()
            for table in ("one", "two"):
                assert run(restored, f"SELECT count(*) FROM {table}") == (20000,)
                where = on_disk(restored, path_of(restored, table))
                assert os.path.realpath(where).startswith(restored.directory)
    finally:
        link.unlink()
        run(tables, "DROP TABLE IF EXISTS one, two")
        run(tables, "DROP TABLESPACE beside")
        run(tables, "DROP TABLESPACE inside")
        inside.rmdir()


# -- files change while they are read ----------------------------------------------------------


def test_traps_10_11_files_that_vanish_grow_and_shrink(pg: EmbeddedServer, folder: Path) -> None:
    room = Room(pg, folder)
    for table in ("goes", "grows", "shrinks"):
        run(pg, f"CREATE TABLE {table} AS {ROWS}")
    run(pg, "CHECKPOINT")
    gone = path_of(pg, "goes").encode()

    def change() -> None:
        run(pg, "DROP TABLE goes")
        run(pg, f"INSERT INTO grows {ROWS}", "DELETE FROM shrinks WHERE n > 10")
        run(pg, "VACUUM (TRUNCATE) shrinks", "CHECKPOINT")
        assert os.path.getsize(on_disk(pg, path_of(pg, "shrinks"))) < 20000
        assert (
            not os.path.getsize(on_disk(pg, gone.decode()))
            if os.path.exists(on_disk(pg, gone.decode()))
            else True
        )

    report, facts = room.take(progress=At("reading files", change))
    assert not report.problems
    assert facts.notes["shrunk"] >= 1
    reader = room.reader(report)
    manifest = Manifest.parse(content(reader, b"data/backup_manifest"))
    listed = {file.path: file for file in manifest.files}
    found = entries(reader)
    assert {
        path[5:] for path, entry in found.items() if path[:5] == b"data/" and entry.kind == 1
    } - {b"backup_manifest"} == set(listed)
    with Restored(pg, reader, room.archive) as restored:
        restored.wait_until_writable()
        assert run(restored, "SELECT count(*) FROM grows") == (40000,)
        assert run(restored, "SELECT count(*) FROM shrinks") == (10,)
        assert run(restored, "SELECT to_regclass('goes')") == (None,)
        restored.check_pages()
    run(pg, "DROP TABLE grows, shrinks")


def test_trap_10_a_file_that_vanished_leaves_no_row_behind(
    pg: EmbeddedServer, folder: Path
) -> None:
    room = Room(pg, folder)
    extra = [Path(on_disk(pg, name)) for name in ("aaa", "bbb", "ccc")]
    for path in extra:
        path.write_bytes(path.name.encode())
    report, facts = room.take(progress=At("reading files", extra[1].unlink))
    extra[0].unlink()
    extra[2].unlink()
    reader = room.reader(report)
    listed = {file.path for file in Manifest.parse(content(reader, b"data/backup_manifest")).files}
    assert {b"aaa", b"ccc"} <= listed
    assert b"bbb" not in listed
    assert b"data/bbb" not in entries(reader)
    assert facts.notes["vanished"] == 1
    assert content(reader, b"data/ccc") == b"ccc"


def test_trap_6_pg_control_is_read_last(pg: EmbeddedServer, folder: Path) -> None:
    room = Room(pg, folder)
    before, _ = read_control(os.fsencode(pg.data_directory))
    report, _ = room.take(
        progress=At("reading pg_control", lambda: run(pg, "SELECT pg_switch_wal()", "CHECKPOINT"))
    )
    kept = ControlFile.parse(content(room.reader(report), b"data/global/pg_control"))
    assert kept.checkpoint > before.checkpoint
    now, _ = read_control(os.fsencode(pg.data_directory))
    assert kept.checkpoint == now.checkpoint


def test_trap_6_pg_control_is_read_again_while_it_is_written(
    pg: EmbeddedServer, folder: Path
) -> None:
    _, good = read_control(os.fsencode(pg.data_directory))
    (folder / "global").mkdir()
    path = folder / "global" / "pg_control"
    path.write_bytes(good[:100] + b"\xff" * 8 + good[108:])
    mend = threading.Timer(0.1, lambda: path.write_bytes(good))
    mend.start()
    control, data = read_control(os.fsencode(folder))
    mend.join()
    assert (control.system_id, data) == (ControlFile.parse(good).system_id, good)
    path.write_bytes(good[:100])
    with pytest.raises(StrongroomError, match="pg_control of the server is not readable"):
        read_control(os.fsencode(folder))


# -- pages ---------------------------------------------------------------------------------------


def test_trap_13_bad_pages_are_told_and_the_backup_is_kept(
    tables: EmbeddedServer, room: Room
) -> None:
    path = on_disk(tables, path_of(tables, "rows"))
    with open(path, "r+b") as file:
        good = file.read()
        file.seek(3 * 8192 + 5000)
        file.write(bytes([good[3 * 8192 + 5000] ^ 1]))
        file.seek(7 * 8192)  # an LSN far in the future: others take this page for a new one
        file.write(b"\xff\xff\xff\x7f")
    try:
        report, facts = room.take()
        again, facts_again = room.take()
    finally:
        with open(path, "r+b") as file:
            file.write(good)
    assert [page.block for page in facts.bad_pages] == [3, 7]
    assert {page.path for page in facts.bad_pages} == {b"data/" + path_of(tables, "rows").encode()}
    (found,) = (page.found for page in facts.bad_pages if page.block == 3)
    assert found == int.from_bytes(good[3 * 8192 + 8 : 3 * 8192 + 10], "little")
    (problem,) = report.problems
    assert "block 3, 7" in problem.reason
    # Bytes are kept as they are on the server, and the next backup tells of them again.
    stored = content(room.reader(report), facts.bad_pages[0].path)
    assert stored[3 * 8192 + 5000] == good[3 * 8192 + 5000] ^ 1
    assert facts_again.bad_pages == facts.bad_pages
    assert len(again.problems) == 1


# -- the server --------------------------------------------------------------------------------


def test_trap_1_the_backup_ends_with_its_connection(pg: EmbeddedServer, folder: Path) -> None:
    room = Room(pg, folder)

    def kill() -> None:
        run(
            pg,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'strongroom'",
        )

    with pytest.raises(DatabaseUnreachable):
        room.take(progress=At("reading files", kill))
    assert list(room.repository.catalogue.snapshots()) == []
    report, _ = room.take()
    assert not report.problems


def test_another_servers_data_directory_is_refused(
    pg: EmbeddedServer, cluster16: EmbeddedServer, folder: Path
) -> None:
    room = Room(pg, folder)
    with pytest.raises(Refused, match="is not the data directory of the server"):
        room.take(room.source(data_directory=cluster16.data_directory))
    with pytest.raises(Refused, match="cannot be read"):
        room.take(room.source(data_directory="/nowhere"))


def test_a_role_without_rights_is_told_what_it_needs(pg: EmbeddedServer, folder: Path) -> None:
    room = Room(pg, folder)
    run(pg, "CREATE ROLE lowly LOGIN PASSWORD 'lowly'")
    dsn = psycopg.conninfo.make_conninfo(pg.dsn, user="lowly", password="lowly")
    try:
        source = room.source(data_directory=pg.data_directory)
        source._conninfo = type(source._conninfo).parse(dsn)
        with pytest.raises(Refused) as caught:
            room.take(source)
        assert "GRANT EXECUTE ON FUNCTION pg_backup_start" in caught.value.do
        run(pg, "GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean) TO lowly")
        run(pg, "GRANT EXECUTE ON FUNCTION pg_backup_stop(boolean) TO lowly")
        report, _ = room.take(source)  # no slot, no settings: enough all the same
        assert not report.problems
        source = room.source()
        source._conninfo = type(source._conninfo).parse(dsn)
        with pytest.raises(ConfigError, match="where its data directory is"):
            room.take(source)
    finally:
        run(pg, "DROP OWNED BY lowly", "DROP ROLE lowly")


# -- configuration -----------------------------------------------------------------------------


def test_trap_24_configuration_outside_is_kept(pg: EmbeddedServer, folder: Path) -> None:
    extra = folder / "etc" / "postgresql"
    (extra / "conf.d").mkdir(parents=True)
    (extra / "conf.d" / "more.conf").write_text("# more\n")
    (extra / "link").symlink_to(extra / "conf.d" / "more.conf")
    absent = str(folder / "absent")
    room = Room(pg, folder, external=[str(extra), absent])
    inside = Path(on_disk(pg, "postgresql.conf"))
    text = inside.read_text()
    included = folder / "included.conf"
    included.write_text("work_mem = '5MB'\n")
    included.chmod(0o644)
    inside.write_text(f"{text}include '{included}'\n")
    try:
        report, facts = room.take()
    finally:
        inside.write_text(text)
    reader = room.reader(report)
    found = [path for path in entries(reader) if path.startswith(b"config/")]
    assert set(facts.external) == {
        os.fsencode(path) for path in (extra / "conf.d" / "more.conf", extra / "link", included)
    }
    assert {b"/" + path[7:] for path in found} >= set(facts.external)
    assert content(reader, b"config" + os.fsencode(included)) == b"work_mem = '5MB'\n"
    assert [problem.path for problem in report.problems] == [b"config" + absent.encode()]
