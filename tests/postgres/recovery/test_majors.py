"""The majors that the other tests leave out: backed up in both ways, recovered, and looked at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from postgres.old_servers import server_of
from postgres.physical.streams import StreamRoom
from postgres.physical.tools import SETTINGS, FolderArchive, Room, run
from strongroom.postgres import sandbox as sandboxes
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.physical.control import FILE_SIZE, ControlFile
from strongroom.postgres.recovery.settings import Recovery
from strongroom.postgres.recovery.sink import PhysicalSink
from strongroom.postgres.sandbox import Sandbox
from strongroom.progress import Silent

sweep = pytest.mark.sweep


@pytest.mark.parametrize(
    "major", [pytest.param(13, marks=sweep), pytest.param(14, marks=sweep), 17]
)
def test_backed_up_both_ways_and_recovered(
    major: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation = server_of(major)
    monkeypatch.setattr(sandboxes, "find_server", server_of)
    more = {"summarize_wal": "on"} if major >= 17 else {}
    server = EmbeddedServer(
        installation,
        tcp=True,
        durable=False,
        settings=SETTINGS | {"full_page_writes": "on"} | more,
        initdb=["--data-checksums"],
    )
    with server:
        run(server, "CREATE TABLE t AS SELECT generate_series(1, 5000) AS a")
        run(server, "CREATE UNLOGGED TABLE u AS SELECT 1 AS a", "CHECKPOINT")
        with server.connect() as connection:
            connection.execute("BEGIN; INSERT INTO t VALUES (-1); PREPARE TRANSACTION 'open'")
        with open(os.path.join(server.data_directory, "global/pg_control"), "rb") as file:
            control = ControlFile.parse(file.read(FILE_SIZE))
        (blocks,) = run(server, "SHOW wal_segment_size")
        assert f"{control.wal_segment_size >> 20}MB" == blocks
        rooms = [Room(server, folder / "local"), StreamRoom(server, folder / "stream")]
        taken = [room.take() for room in rooms]
        run(server, "INSERT INTO t VALUES (0)", "SELECT pg_switch_wal()")
        for room in rooms:
            for path in Path(server.data_directory, "pg_wal").iterdir():
                if len(path.name) == 24:
                    (room.archive.folder / path.name).write_bytes(path.read_bytes())
    for room, (report, facts) in zip(rooms, taken, strict=True):
        assert facts.server["version_number"] // 10000 == major
        assert not report.problems
        made = Sandbox(major, _fetch(room.archive))
        try:
            sink = PhysicalSink(os.fsencode(made.data_directory), owner=made.owner)
            sink.restore(room.reader(report), progress=Silent())
            made.recover(Recovery(), progress=Silent())
            assert run(made, "SELECT count(*), min(a) FROM t") == (5001, 0)
            assert run(made, "SELECT count(*) FROM u") == (0,)
            assert run(made, "COMMIT PREPARED 'open'") is None
            assert run(made, "SELECT min(a) FROM t") == (-1,)
        finally:
            made.close()


def _fetch(archive: FolderArchive) -> sandboxes.Fetch:
    def fetch(name: str) -> bytes | None:
        path = archive.folder / name
        return path.read_bytes() if path.exists() else None

    return fetch
