"""Rows of open: from the start of the process to the answer of the first query, whatever the size.

Beside it what opening is instead of: the same cluster restored to the same moment, started and asked.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from bench.files import fresh
from bench.measure import Row, missing, size_of
from bench.peers import OURS, Strongroom
from bench.physical import configured, fill
from strongroom.errors import NotFound
from strongroom.postgres.embedded import EmbeddedServer, find_server

SIZES = {"2 GB": 0, "10 GB": 8}  # of the cluster: how many more tables like its largest there are
_SCALE = 1.15  # as `physical.fill` takes it
LIMIT = 3.0
_QUERY = "SELECT vector[1] FROM features WHERE id = 4711"
_ARCHIVING = (
    "wal_level = replica",
    "max_wal_senders = 3",
    "archive_mode = on",
    "archive_command = '/bin/true'",  # what is left in pg_wal is pushed by us
    "wal_keep_size = '4GB'",
)
_SETTINGS = {
    "shared_buffers": "256MB",
    "autovacuum": "off",
    "max_wal_size": "16GB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}


def open_(work: str, times: int, sizes: Sequence[str] = ("2 GB",)) -> list[Row]:
    """Open clusters of some sizes."""
    try:
        installation = find_server(15)
    except NotFound:
        return [missing("open to the first query", "PostgreSQL 15")]
    rows = []
    for size in sizes:
        home = fresh(f"{work}/cluster")
        try:
            rows += _one(work, times, size, EmbeddedServer(installation, home, settings=_SETTINGS))
        finally:
            for path in (home, f"{work}/strongroom", f"{work}/restored"):
                fresh(path)
    return rows


def _one(work: str, times: int, size: str, server: EmbeddedServer) -> list[Row]:
    with server:
        make(work, server, SIZES[size])
    opened: list[float] = []
    for _ in range(times):
        began = time.perf_counter()
        _ask("open", "bench", "--sql", _QUERY, work=work)
        opened.append(time.perf_counter() - began)
    began = time.perf_counter()
    _ask("open", "bench", "--restore", "--sql", _QUERY, work=work)
    restored = time.perf_counter() - began
    value = statistics.median(opened)
    return [
        Row(
            f"open to first query, {size} cluster",
            f"{value:.2f} s",
            f"restored whole {restored:.1f} s",
            f"{restored / value:.1f} ×",
            f"≤ {LIMIT:.0f} s",
            value <= LIMIT,
        )
    ]


def make(work: str, server: EmbeddedServer, copies: int) -> None:
    """A filled cluster, its backup, and some log behind it."""
    fill(server, _SCALE)
    with server.connect() as connection:
        for number in range(copies):
            connection.execute(f"CREATE TABLE features_{number} AS TABLE features".encode())
    ours = Strongroom(work, configured(server))
    ours.init()
    with server.connect() as connection:
        for setting in _ARCHIVING:
            connection.execute(f"ALTER SYSTEM SET {setting}".encode())
    server.stop()
    server.start()
    ours.backup("bench")
    with server.connect() as connection:
        connection.execute("UPDATE features SET clip = clip + 1 WHERE id % 1000 = 7")
        connection.execute("CREATE TABLE later AS SELECT generate_series(1, 1000) AS n")
        row = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
        assert row is not None
    for name in sorted(os.listdir(f"{server.data_directory}/pg_wal")):
        if len(name) == 24 and name <= row[0]:
            _ask(
                "wal",
                "push",
                "--source",
                "bench",
                f"pg_wal/{name}",
                work=work,
                cwd=server.data_directory,
            )
    print(f"  {size_of(server.data_directory) / 1e9:.2f} GB", file=sys.stderr, flush=True)


def _ask(*words: str, work: str, cwd: str | None = None) -> bytes:
    """Run our command; what it says on stdout."""
    environ = os.environ | {
        "STRONGROOM_PASSPHRASE": "bench",
        "STRONGROOM_CONFIG": f"{work}/strongroom.toml",
        "XDG_CACHE_HOME": f"{work}/cache",
    }
    return subprocess.run(
        [OURS, *words], env=environ, cwd=cwd, check=True, stdout=subprocess.PIPE
    ).stdout


__all__ = ["open_"]
