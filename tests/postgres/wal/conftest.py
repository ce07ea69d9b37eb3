"""A room for each test; and a still life: the data directory of a server that has stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from postgres.wal.room import WalRoom


@pytest.fixture
def room() -> Iterator[WalRoom]:
    made = WalRoom()
    try:
        made.init()
        yield made
    finally:
        made.close()


@dataclass(frozen=True)
class Still:
    """A data directory whose server has stopped, and the segments in its pg_wal, oldest first."""

    data: str
    segments: list[str]

    def read(self, path: str) -> bytes:
        with open(os.path.join(self.data, path), "rb") as file:
            return file.read()


@pytest.fixture(scope="session")
def still() -> Iterator[Still]:
    """PostgreSQL 16 with four segments, of which nothing was archived."""
    made = WalRoom()
    try:
        with made.server(16, archive_command="false") as server:
            with server.connect() as connection:
                connection.execute("CREATE TABLE t AS SELECT 1 AS a")
                for _ in range(3):
                    connection.execute("INSERT INTO t SELECT generate_series(1, 1000)")
                    connection.execute("SELECT pg_create_restore_point('a point')")
                    connection.execute("SELECT pg_switch_wal()")
            server.stop()
            names = os.listdir(os.path.join(server.data_directory, "pg_wal"))
            segments = sorted(one for one in names if len(one) == 24)
            assert len(segments) >= 4
            yield Still(server.data_directory, segments)
    finally:
        made.close()
