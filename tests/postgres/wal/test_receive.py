"""`wal receive` against real servers: what it confirms is durable, whatever is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from postgres.wal.room import WalRoom, until
from strongroom.postgres.embedded import EmbeddedServer

RECEIVED = {"archive_mode": "off", "wal_keep_size": "1GB"}


def position(server: EmbeddedServer) -> str:
    with server.connect() as connection:
        row = connection.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
    assert row is not None
    return str(row[0])


def segments(server: EmbeddedServer) -> list[str]:
    """Whole segments in pg_wal, up to where the server writes."""
    with server.connect() as connection:
        row = connection.execute("SELECT pg_walfile_name(pg_current_wal_lsn())").fetchone()
    assert row is not None
    names = os.listdir(os.path.join(server.data_directory, "pg_wal"))
    return sorted(one for one in names if len(one) == 24 and one < row[0])


@pytest.mark.parametrize("major", [15, 16, 18])
def test_what_is_received_is_what_the_server_wrote(room: WalRoom, major: int) -> None:
    with room.server(major, **RECEIVED) as server:
        room.point_at(server)
        process = room.receiver("--partial-every", "0.5")
        with server.connect() as connection:
            connection.execute("CREATE TABLE t (a int, b text)")
            for _ in range(3):
                connection.execute(
                    "INSERT INTO t SELECT g, repeat(md5(g::text), 30)"
                    " FROM generate_series(1, 3000) g"
                )
                connection.execute("SELECT pg_switch_wal()")
            connection.execute("INSERT INTO t SELECT 7, 'last'")
        end = position(server)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, room.said
        room.run(*room.receive_words("--stop-at", end))
        for name in segments(server)[-3:]:
            room.fetch(server.data_directory, name, "fetched")
            mine = Path(server.data_directory, "pg_wal", name).read_bytes()
            assert Path(server.data_directory, "fetched").read_bytes() == mine
    status, _, said = room.run("check", "--read-data", "--config", str(room.config))
    assert status == 0, said
    until(lambda: True)
