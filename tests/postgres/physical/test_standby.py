"""A backup taken from a standby; a promotion in the middle of one; the timeline after it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from postgres.physical.tools import ROWS, At, Restored, Room, content, entries, run
from strongroom.errors import StrongroomError
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.physical.label import Label

pytestmark = pytest.mark.xdist_group("physical")  # one worker: its clusters are started once


def wait_for(server: EmbeddedServer, query: str) -> None:
    for _ in range(400):
        if run(server, query)[0]:
            return
        time.sleep(0.05)
    raise AssertionError(f"never true: {query}")


def caught_up(primary: EmbeddedServer, standby: EmbeddedServer) -> None:
    (position,) = run(primary, "SELECT pg_current_wal_lsn()::text")
    wait_for(standby, f"SELECT pg_last_wal_replay_lsn() >= '{position}'")


def test_trap_20_a_standby_is_backed_up_and_its_promotion_is_seen(
    cluster16: EmbeddedServer, folder: Path
) -> None:
    pg = cluster16
    run(pg, "DROP TABLE IF EXISTS rows", f"CREATE TABLE rows AS {ROWS}")
    base = Room(pg, folder / "base")
    report, _ = base.take()
    with Restored(pg, base.reader(report), base.archive, standby=True) as standby:
        caught_up(pg, standby)
        assert run(standby, "SELECT pg_is_in_recovery()") == (True,)
        _from_standby(pg, standby, folder)
        _promoted(standby, folder)
    run(pg, "DROP TABLE rows, more")


def _from_standby(pg: EmbeddedServer, standby: EmbeddedServer, folder: Path) -> None:
    room = Room(standby, folder / "standby")
    # An idle primary does not end its segment: the backup is there, its WAL is awaited.
    run(pg, "CREATE TABLE IF NOT EXISTS more AS SELECT 1 AS n", "CHECKPOINT")
    caught_up(pg, standby)
    report, facts = room.take(room.source(patience=0.1))
    assert facts.from_standby
    assert facts.notes["wal"]["awaited"]
    assert not report.problems
    # One that ends it meanwhile.
    ending = threading.Timer(0.5, lambda: run(pg, "SELECT pg_switch_wal()", "CHECKPOINT"))
    run(pg, "INSERT INTO rows SELECT -n FROM generate_series(1, 10) n")
    caught_up(pg, standby)
    ending.start()
    report, facts = room.take()
    ending.join()
    assert facts.notes["wal"]["awaited"] == []
    reader = room.reader(report)
    assert Label.parse(content(reader, b"data/backup_label")).from_standby
    assert b"data/standby.signal" in entries(reader)
    for segment in room.archive.folder.iterdir():
        assert len(segment.read_bytes()) == facts.wal_segment_size
    with Restored(standby, reader, room.archive) as restored:
        Path(restored.data_directory, "standby.signal").unlink()
        restored.stop()
        restored.start()
        restored.wait_until_writable()
        assert run(restored, "SELECT count(*) FROM rows") == (20010,)
        restored.check_pages()


def _promoted(standby: EmbeddedServer, folder: Path) -> None:
    room = Room(standby, folder / "promoted")

    def promote() -> None:
        assert run(standby, "SELECT pg_promote(true, 30)") == (True,)

    with pytest.raises(StrongroomError, match="promoted during the backup"):
        room.take(progress=At("reading files", promote))
    assert list(room.repository.catalogue.snapshots()) == []
    run(standby, "INSERT INTO rows VALUES (0, 'on timeline 2')")
    report, facts = room.take()
    assert (facts.timeline, facts.from_standby) == (2, False)
    assert "00000002.history" in room.archive.puts
    with Restored(standby, room.reader(report), room.archive) as restored:
        restored.wait_until_writable()
        assert run(restored, "SELECT text FROM rows WHERE n = 0") == ("on timeline 2",)
