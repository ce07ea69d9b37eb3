"""A cluster backed up by the replication protocol alone, and started again from the snapshot."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from postgres.physical.streams import StreamRoom
from postgres.physical.tools import ROWS, At, Restored, content, entries, run
from strongroom.errors import DatabaseUnreachable, KeyRefused, Refused, StrongroomError
from strongroom.postgres.embedded import EmbeddedServer, service_account
from strongroom.postgres.physical.manifest import Manifest

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


def _look(room: StreamRoom, report, facts, temporary: str, unlogged: str) -> None:  # type: ignore[no-untyped-def]
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


def test_p_the_walsender_is_terminated(cluster16: EmbeddedServer, folder: Path) -> None:
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
    assert not list(room.repository.snapshots())
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
