"""A cluster backed up by the replication protocol alone, and started again from the snapshot."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo
from psycopg.pq import ConnStatus, PGconn

from postgres.physical.streams import StreamRoom
from postgres.physical.test_standby import caught_up
from postgres.physical.tools import ROWS, At, Restored, Room, cluster, content, entries, run
from strongroom.errors import DatabaseUnreachable, KeyRefused, Refused, StrongroomError
from strongroom.operations.back_up import Report
from strongroom.postgres.embedded import EmbeddedServer, service_account
from strongroom.postgres.physical.facts import PhysicalFacts
from strongroom.postgres.physical.manifest import Manifest
from strongroom.postgres.physical.stream import StreamSource

pytestmark = pytest.mark.xdist_group("physical")  # one worker: its clusters are started once


@pytest.fixture
def room(pg: EmbeddedServer, folder: Path) -> StreamRoom:
    return StreamRoom(pg, folder)


def test_trap_5_a_streamed_backup_recovers_and_postgresql_agrees(
    pg: EmbeddedServer, room: StreamRoom, folder: Path
) -> None:
    """Tablespaces first, the data directory last; unlogged and temporary relations; odd names."""
    space = folder / "a space"
    space.mkdir(mode=0o700)
    os.chown(space, service_account().uid, service_account().gid)
    Path(pg.data_directory, "od\n é").write_bytes(b"odd")
    os.chown(Path(pg.data_directory, "od\n é"), service_account().uid, -1)
    run(
        pg,
        f"CREATE TABLESPACE aside LOCATION '{space}'",
        f"CREATE TABLE rows AS {ROWS}",
        f"CREATE TABLE aside TABLESPACE aside AS {ROWS}",
        f"CREATE UNLOGGED TABLE unlogged AS {ROWS}",
        "CREATE INDEX ON rows (text)",
        "SELECT lo_from_bytea(4711, 'large')",
    )
    try:
        with pg.connect() as held:
            held.execute(f"CREATE TEMP TABLE temporary AS {ROWS}")
            (temporary,) = held.execute("SELECT pg_relation_filepath('temporary')").fetchone() or ()
            (unlogged,) = held.execute("SELECT pg_relation_filepath('unlogged')").fetchone() or ()
            report, facts = room.take()
        run(pg, "INSERT INTO rows VALUES (-1, 'later')")
        _look(room, report, facts, temporary, unlogged)
        with Restored(pg, room.reader(report), room.archive) as restored:
            restored.wait_until_writable()
            assert run(restored, "SELECT count(*), min(n) FROM rows") == (20000, 1)
            assert run(restored, "SELECT count(*) FROM aside") == (20000,)
            assert run(restored, "SELECT count(*) FROM unlogged") == (0,)
            assert run(restored, "SELECT lo_get(4711)") == (b"large",)
            restored.check_pages()
    finally:
        run(pg, "DROP TABLE rows, aside, unlogged", "SELECT lo_unlink(4711)")
        run(pg, "DROP TABLESPACE aside")
        Path(pg.data_directory, "od\n é").unlink()


def _look(
    room: StreamRoom, report: Report, facts: PhysicalFacts, temporary: str, unlogged: str
) -> None:
    assert not report.problems
    assert facts.via == "stream"
    assert facts.start_lsn < facts.stop_lsn
    assert facts.start_time <= facts.stop_time
    assert facts.checksums
    assert len(facts.tablespaces) == 1
    assert not facts.notes["wal"]["awaited"]
    assert facts.notes["wal"]["copied"] == len(room.archive.puts) > 0
    reader = room.reader(report)
    found = entries(reader)
    assert b"data/od\n \xc3\xa9" in found
    assert b"data/" + temporary.encode() not in found
    assert b"data/" + unlogged.encode() not in found
    assert b"data/" + unlogged.encode() + b"_init" in found
    assert content(reader, b"data/backup_label") == facts.backup_label
    assert content(reader, b"data/tablespace_map") == facts.tablespace_map
    manifest = Manifest.parse(content(reader, b"data/backup_manifest"))
    assert manifest.ranges[0].end == facts.stop_lsn
    assert not [path for path in found if path.startswith(b"data/pg_wal/0")]


def test_what_psycopg_receives_is_what_the_kernel_receives(
    pg: EmbeddedServer, room: StreamRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where libpq cannot be told, nothing but the way is another one."""
    run(pg, f"CREATE TABLE received AS {ROWS}", "CHECKPOINT")
    try:
        first, _ = room.take()
        monkeypatch.setattr("strongroom.postgres.replication.receiving", lambda _: None)
        second, _ = room.take()
    finally:
        run(pg, "DROP TABLE received")
    both = [
        {
            path: (entry.size, entry.content)
            for path, entry in entries(room.reader(report)).items()
            if path.startswith(b"data/base/")
        }
        for report in (first, second)
    ]
    assert both[0] == both[1]
    assert len(both[0]) > 100


def test_an_interrupted_backup_goes_on_where_it_was_by_deduplication(
    cluster16: EmbeddedServer, folder: Path
) -> None:
    pg = cluster16
    run(pg, f"CREATE TABLE rows AS {ROWS}", "CHECKPOINT")
    try:
        room = StreamRoom(pg, folder)
        first, _ = room.take()
        second, facts = room.take()
        assert second.snapshot.stored < first.snapshot.stored / 4
        assert facts.notes["wal"]["copied"] > 0
    finally:
        run(pg, "DROP TABLE rows")


def test_the_walsender_is_terminated(cluster16: EmbeddedServer, folder: Path) -> None:
    room = StreamRoom(cluster16, folder)
    stop = At(
        "receiving files",
        lambda: run(
            cluster16,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_replication",
            "SELECT pg_sleep(0.5)",
        ),
    )
    with pytest.raises(StrongroomError) as caught:
        room.take(progress=stop)
    assert stop.done
    assert "No snapshot was written" in caught.value.means
    room.take()  # and the next one is whole


def test_a_role_without_replication_is_told(pg: EmbeddedServer, room: StreamRoom) -> None:
    run(pg, "CREATE ROLE plain LOGIN PASSWORD 'plain'")
    try:
        dsn = f"host=127.0.0.1 port={pg.port} user=plain password=plain dbname=postgres"
        with pytest.raises(Refused) as caught:
            room.take(room.source(dsn=dsn))
        assert "REPLICATION" in caught.value.do
    finally:
        run(pg, "DROP ROLE plain")


def test_a_role_that_pg_hba_does_not_let_in_is_told(
    cluster16: EmbeddedServer, folder: Path
) -> None:
    pg = cluster16
    hba = Path(pg.data_directory, "pg_hba.conf")
    before = hba.read_bytes()
    hba.write_bytes(b"local all all scram-sha-256\nhost all all all scram-sha-256\n")
    run(pg, "SELECT pg_reload_conf()", "SELECT pg_sleep(0.2)")
    try:
        with pytest.raises(KeyRefused) as caught:
            StreamRoom(pg, folder).take()
        assert "host replication" in caught.value.do
    finally:
        hba.write_bytes(before)
        run(pg, "SELECT pg_reload_conf()", "SELECT pg_sleep(0.2)")


def test_a_server_of_wal_level_minimal_is_told(folder: Path) -> None:
    with (
        cluster(16, wal_level="minimal", max_wal_senders="0") as pg,
        pytest.raises(Refused) as caught,
    ):
        StreamRoom(pg, folder).take()
    assert "max_wal_senders" in caught.value.do


def test_p47_walsenders_that_others_use_up_are_told(folder: Path) -> None:
    with cluster(16, max_wal_senders="1") as pg:
        dsn = make_conninfo(pg.dsn_for("postgres", tcp=True), replication="true")
        other = PGconn.connect(dsn.encode())
        assert other.status == ConnStatus.OK, other.error_message
        try:
            with pytest.raises(Refused) as caught:
                StreamRoom(pg, folder).take()
        finally:
            other.finish()
        assert "no room for a replication connection" in caught.value.what
        assert "max_wal_senders" in caught.value.do


def test_trap_13_damaged_pages_are_told_and_the_backup_is_there(folder: Path) -> None:
    with cluster(16) as pg:
        run(pg, f"CREATE TABLE rows AS {ROWS}", "CHECKPOINT")
        (name,) = run(pg, "SELECT pg_relation_filepath('rows')")
        pg.stop()
        with open(Path(pg.data_directory, name), "r+b") as file:
            for block in range(3, 13):
                file.seek(block * 8192 + 4000)
                file.write(b"damage")
        pg.start()
        report, facts = StreamRoom(pg, folder).take()
    (problem,) = report.problems
    assert problem.path == b"data/" + name.encode()
    assert "block 3" in problem.reason
    assert "and 5 more" in problem.reason
    assert [page.block for page in facts.bad_pages] == [3, 4, 5, 6, 7]
    page = facts.bad_pages[0]
    assert 0 < page.found < 65536
    assert page.found != page.expected


def test_a_server_that_is_killed_leaves_nothing_and_the_next_backup_is_whole(folder: Path) -> None:
    with cluster(18) as pg:
        run(pg, f"CREATE TABLE rows AS {ROWS}", "CHECKPOINT")
        room = StreamRoom(pg, folder)
        stop = At("receiving files", lambda: pg.stop(immediate=True))
        with pytest.raises(DatabaseUnreachable):
            room.take(progress=stop)
        pg.start()
        report, _ = room.take()
        with Restored(pg, room.reader(report), room.archive) as restored:
            restored.wait_until_writable()
            assert run(restored, "SELECT count(*) FROM rows") == (20000,)


def test_trap_20_a_standby_is_backed_up_by_stream(cluster16: EmbeddedServer, folder: Path) -> None:
    pg = cluster16
    run(pg, f"CREATE TABLE rows AS {ROWS}")
    base = StreamRoom(pg, folder / "base")
    report, _ = base.take()
    try:
        with Restored(pg, base.reader(report), base.archive, standby=True) as standby:
            run(pg, "INSERT INTO rows VALUES (-1)", "CHECKPOINT")
            caught_up(pg, standby)
            room = StreamRoom(standby, folder / "standby")
            report, facts = room.take(room.source(patience=0.1))
            assert facts.from_standby
            assert facts.notes["wal"]["awaited"]  # an idle primary does not end its segment
            switch = At("fetching WAL", lambda: run(pg, "SELECT pg_switch_wal()"))
            report, facts = room.take(progress=switch)
            assert not facts.notes["wal"]["awaited"]
            with pytest.raises(StrongroomError):
                room.take(
                    progress=At("receiving files", lambda: run(standby, "SELECT pg_promote()"))
                )
            copy = Restored(pg, room.reader(report), room.archive)
            Path(
                copy.data_directory, "standby.signal"
            ).unlink()  # as the standby's directory has it
            with copy as restored:
                restored.wait_until_writable()
                assert run(restored, "SELECT min(n) FROM rows") == (-1,)
            report, facts = room.take()
            assert facts.timeline == 2
            assert "00000002.history" in room.archive.puts
            assert not facts.notes["wal"]["awaited"]
    finally:
        run(pg, "DROP TABLE rows")


@pytest.mark.parametrize("archived", [True, False])
def test_log_that_is_gone_from_the_server(
    cluster16: EmbeddedServer, folder: Path, monkeypatch: pytest.MonkeyPatch, archived: bool
) -> None:
    """No hindrance if it is archived; the time of the backup's stop is the server's even then."""
    room = StreamRoom(cluster16, folder)
    kept = Path(cluster16.data_directory, "pg_wal")

    def take_away() -> None:
        (now,) = run(cluster16, "SELECT pg_walfile_name(pg_current_wal_lsn())")
        for name in sorted(one.name for one in kept.iterdir() if len(one.name) == 24):
            if name <= now:
                if archived:
                    (room.archive.folder / name).write_bytes((kept / name).read_bytes())
                (kept / name).rename(kept.parent / f"away-{name}")

    monkeypatch.setattr(StreamSource, "_reserve", lambda self, replication: None)
    (before,) = run(cluster16, "SELECT clock_timestamp()")
    try:
        if archived:
            _, facts = room.take(progress=At("fetching WAL", take_away))
            assert before < facts.stop_time <= run(cluster16, "SELECT clock_timestamp()")[0]
            assert facts.notes["wal"]["there"]
        else:
            with pytest.raises(StrongroomError, match="neither on the server"):
                room.take(progress=At("fetching WAL", take_away))
            assert list(room.repository.catalogue.snapshots()) == []
    finally:
        for path in kept.parent.glob("away-*"):
            path.rename(kept / path.name.removeprefix("away-"))


@pytest.mark.parametrize("major", [15, 18])  # up to 15 it is in the data directory's tar
def test_a_tablespace_in_place_is_a_part_of_the_data_directory(major: int, folder: Path) -> None:
    with cluster(major, allow_in_place_tablespaces="on") as pg:
        run(
            pg, "CREATE TABLESPACE here LOCATION ''", f"CREATE TABLE rows TABLESPACE here AS {ROWS}"
        )
        (path,) = run(pg, "SELECT pg_relation_filepath('rows')")
        room = StreamRoom(pg, folder)
        report, facts = room.take()
        assert facts.tablespaces == ()
        found = entries(room.reader(report))
        assert b"data/" + path.encode() in found
        assert not [one for one in found if one.startswith(b"tablespaces")]
        with Restored(pg, room.reader(report), room.archive) as restored:
            restored.wait_until_writable()
            assert run(restored, "SELECT count(*) FROM rows") == (20000,)


def test_a_file_that_the_server_cannot_send_is_not_called_a_lacking_right(
    cluster16: EmbeddedServer, folder: Path
) -> None:
    closed, long = (Path(cluster16.data_directory, name) for name in ("closed", "x" * 120))
    closed.mkdir(mode=0o000)
    try:
        if os.geteuid() == 0:
            with pytest.raises(Refused, match="cannot read a file"):
                StreamRoom(cluster16, folder).take()
        closed.rmdir()
        long.touch()
        with pytest.raises(Refused, match="cannot send a file") as caught:
            StreamRoom(cluster16, folder).take()
        assert 'via = "local"' in caught.value.do
    finally:
        for path in (closed, long):
            path.is_dir() and path.rmdir()
            path.unlink(missing_ok=True)


@pytest.mark.sweep
def test_p7_a_promotion_in_the_middle_ends_a_streamed_backup(
    cluster16: EmbeddedServer, folder: Path
) -> None:
    base = Room(cluster16, folder / "base")
    report, _ = base.take()
    with Restored(cluster16, base.reader(report), base.archive, standby=True) as standby:
        caught_up(cluster16, standby)
        room = StreamRoom(standby, folder / "standby")
        promote = At("receiving files", lambda: run(standby, "SELECT pg_promote(true, 30)"))
        with pytest.raises(StrongroomError) as caught:
            room.take(room.source(patience=0.1), progress=promote)
        assert promote.done, caught.value
        assert list(room.repository.catalogue.snapshots()) == []
        _, facts = room.take()
        assert facts.timeline == 2


@pytest.mark.sweep
def test_p3_a_walsender_that_is_killed_takes_the_backup_with_it(folder: Path) -> None:
    with cluster(16) as pg:
        room = StreamRoom(pg, folder)

        def kill() -> None:
            (pid,) = run(pg, "SELECT pid FROM pg_stat_replication")
            os.kill(pid, signal.SIGKILL)

        with pytest.raises(DatabaseUnreachable):
            room.take(progress=At("receiving files", kill))
        assert list(room.repository.catalogue.snapshots()) == []
        pg.start()
        report, _ = room.take()
        assert not report.problems
