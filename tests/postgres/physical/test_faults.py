"""The cases P1 to P36 of the physical backup on its own host: what breaks, and what changes."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postgres.physical.tools import ROWS, At, Restored, Room, cluster, content, run
from strongroom.errors import DatabaseUnreachable, Refused, StrongroomError
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.physical import reading

pytestmark = pytest.mark.xdist_group("physical")  # one worker: its clusters are started once


@pytest.fixture(scope="module")
def mortal() -> Iterator[EmbeddedServer]:
    """A server of this file alone, which is killed in every way."""
    with cluster(16) as server:
        run(server, f"CREATE TABLE rows AS {ROWS}", "CHECKPOINT")
        yield server


def crash(server: EmbeddedServer) -> None:
    """SIGKILL to the postmaster: no word to anybody."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()


def crash_writer(server: EmbeddedServer) -> None:
    """SIGKILL to the background writer: the server drops all of its sessions and recovers."""
    (pid,) = run(
        server, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'"
    )
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)


def stop_at_once(server: EmbeddedServer) -> None:
    server.stop(immediate=True)


@pytest.mark.parametrize("way", [crash, crash_writer, stop_at_once])
def test_p1_to_p6_a_server_that_dies_ends_the_backup_and_the_next_resumes(
    mortal: EmbeddedServer, folder: Path, way: Callable[[EmbeddedServer], None]
) -> None:
    room = Room(mortal, folder)
    with pytest.raises(DatabaseUnreachable):
        room.take(progress=At("reading pg_control", lambda: way(mortal)))
    assert list(room.repository.catalogue.snapshots()) == []
    mortal.start()
    report, _ = room.take()
    assert report.snapshot.new_size < report.snapshot.size / 10
    assert not report.problems


def test_p5_a_server_that_comes_back_meanwhile_has_no_such_backup(
    mortal: EmbeddedServer, folder: Path
) -> None:
    """A restart between start and stop: the copy spans two lives and must not be kept."""
    room = Room(mortal, folder)

    def restart() -> None:
        mortal.stop()
        mortal.start()

    with pytest.raises(DatabaseUnreachable):
        room.take(progress=At("reading pg_control", restart))
    assert list(room.repository.catalogue.snapshots()) == []


def test_p25_to_p36_a_busy_day_in_the_middle(pg: EmbeddedServer, folder: Path) -> None:
    room = Room(pg, folder)
    run(
        pg,
        f"CREATE TABLE kept AS {ROWS}",
        "CREATE INDEX ON kept USING hash (n)",
        "CREATE INDEX ON kept USING brin (n)",
        "CREATE TABLE boxes AS SELECT point(n, n) AS p, ARRAY[n, n % 7] AS a"
        " FROM generate_series(1, 3000) n",
        "CREATE INDEX ON boxes USING gist (p)",
        "CREATE INDEX ON boxes USING gin (a)",
        f"CREATE TABLE emptied AS {ROWS}",
        f"CREATE TABLE again AS {ROWS}",
        "SELECT lo_from_bytea(4242, repeat('large ', 1000)::bytea)",
        "CHECKPOINT",
    )
    with pg.connect() as connection:  # P25: prepared, and committed after the restore
        connection.execute("BEGIN; INSERT INTO kept VALUES (-5, 'prepared')")
        connection.execute("PREPARE TRANSACTION 'later'")

    def day() -> None:
        run(pg, "CREATE DATABASE by_log STRATEGY wal_log")  # P30
        run(pg, "CREATE DATABASE by_file STRATEGY file_copy")
        with pg.connect("by_file") as connection:
            connection.execute("CREATE TABLE here AS SELECT 1 AS n")
        run(pg, "TRUNCATE emptied", "INSERT INTO emptied VALUES (1, 'one')")  # P29
        run(pg, "DROP TABLE again", "CREATE TABLE again AS SELECT 7 AS n")
        run(pg, "DELETE FROM kept WHERE n > 15000", "VACUUM (TRUNCATE) kept")  # P35
        run(pg, "UPDATE boxes SET p = point(0, 0) WHERE p[0] < 100", "CHECKPOINT")

    try:
        report, _ = room.take(progress=At("reading files", day))
        with Restored(pg, room.reader(report), room.archive) as restored:
            restored.wait_until_writable()
            assert run(restored, "SELECT count(*), sum(n) FROM kept WHERE n > 0") == (
                15000,
                15000 * 15001 // 2,
            )
            assert run(restored, "COMMIT PREPARED 'later'") is None
            assert run(restored, "SELECT text FROM kept WHERE n = -5") == ("prepared",)
            assert run(restored, "SELECT * FROM emptied") == (1, "one")
            assert run(restored, "SELECT n FROM again") == (7,)
            assert run(restored, "SELECT length(lo_get(4242))") == (6000,)
            # P26, P36: every index and the visibility map agree with the heap.
            for plan in ("on", "off"):
                run(restored, f"ALTER DATABASE postgres SET enable_seqscan = {plan}")
                assert run(restored, "SELECT count(*) FROM kept WHERE n = 777") == (1,)
                query = "SELECT count(*) FROM boxes WHERE p <@ box '((0,0),(0,0))'"
                assert run(restored, query) == (99,)
                assert run(restored, "SELECT count(*) FROM boxes WHERE a @> ARRAY[77]") == (1,)
            for database in ("by_log", "by_file"):
                with restored.connect(database) as connection:
                    connection.execute("SELECT count(*) FROM pg_class")
            with restored.connect("by_file") as connection:
                assert connection.execute("SELECT n FROM here").fetchone() == (1,)
            restored.check_pages()
    finally:
        run(pg, "ROLLBACK PREPARED 'later'", "DROP DATABASE IF EXISTS by_log")
        run(pg, "DROP DATABASE IF EXISTS by_file")
        run(pg, "DROP TABLE kept, boxes, emptied, again", "SELECT lo_unlink(4242)")


def test_p33_wal_level_minimal_is_refused(folder: Path) -> None:
    settings = {"wal_level": "minimal", "max_wal_senders": "0"}
    with cluster(15, **settings) as server:
        room = Room(server, folder)
        with pytest.raises(Refused, match="cannot be backed up as it is") as caught:
            room.take()
        assert "wal_level" in caught.value.do


def test_a_disk_that_cannot_be_read_fails_the_backup(
    pg: EmbeddedServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(pg, folder)

    def broken(fd: int, view: memoryview, at: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(reading, "_fill", broken)
        with pytest.raises(Refused, match="Input/output error"):
            room.take()
    assert list(room.repository.catalogue.snapshots()) == []


def test_what_is_not_essential_and_cannot_be_read_is_told(
    pg: EmbeddedServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(pg, folder)
    real = reading.open_to_read

    def refused(dirfd: int, name: bytes) -> int:
        if name == b"pg_hba.conf":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(dirfd, name)

    monkeypatch.setattr(reading, "open_to_read", refused)
    report, _ = room.take()
    assert [problem.path for problem in report.problems] == [b"data/pg_hba.conf"]
    assert content(room.reader(report), b"data/postgresql.conf")


def test_a_pg_control_of_another_cluster_in_the_middle_is_no_backup(
    pg: EmbeddedServer, cluster16: EmbeddedServer, folder: Path
) -> None:
    room = Room(pg, folder)
    path = Path(pg.data_directory, "global", "pg_control")
    good = path.read_bytes()
    other = Path(cluster16.data_directory, "global", "pg_control").read_bytes()
    try:
        with pytest.raises(StrongroomError, match="another cluster's"):
            room.take(progress=At("reading pg_control", lambda: path.write_bytes(other)))
    finally:
        path.write_bytes(good)
    assert list(room.repository.catalogue.snapshots()) == []
