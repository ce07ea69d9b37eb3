"""Thirty daily backups under pgbench: bytes stored, against pgBackRest's file incrementals.

pgBackRest 2.45 knows no block incrementals; of a table that was written to it stores each file of
up to 1 GB whole. The log is left out on both sides: ours keeps it in the repository too. A day is so
many transactions of pgbench, each of which changes a page anywhere in one table. The same days are
stored with other sizes of chunks, in a program that differs in nothing else (docs/decisions/0012).
"""

from __future__ import annotations

import os
import statistics
import sys
import time

from bench.files import fresh
from bench.measure import Row, at_most, missing, run, size_of
from bench.peers import Strongroom
from bench.physical import SETTINGS, PgBackRest, configured
from strongroom.postgres.embedded import EmbeddedServer, find_server

DAYS, SCALE, TRANSACTIONS = 30, 20, 1000
SIZES = 32, 64, 128  # KiB of a chunk; 64 is ours
_OTHER = (
    "import sys; import strongroom.repository.session as s; s.PAGE_CHUNK = {} * 1024;"
    "from strongroom.cli.main import main; main()"
)


def daily(work: str, times: int, scale: float = 1.0) -> list[Row]:
    """One row for the bytes of thirty days; and what other sizes of chunks would have made of it."""
    del times
    home = f"{work}/cluster"
    fresh(home)
    with EmbeddedServer(
        find_server(15), home, settings=SETTINGS, initdb=["--data-checksums"]
    ) as server:
        rows = _days(work, server, max(1, int(SCALE * scale)), TRANSACTIONS)
    fresh(home)
    return rows


def _days(work: str, server: EmbeddedServer, scale: int, transactions: int) -> list[Row]:
    pgbench = os.path.join(server.installation.bindir, "pgbench")
    run([pgbench, "-i", "-q", f"--scale={scale}", server.dsn])
    size = (size_of(server.data_directory) - size_of(f"{server.data_directory}/pg_wal")) / 1e6
    title = f"{DAYS} daily backups of {size:.0f} MB, {transactions} transactions a day"
    if not PgBackRest.present():
        return [missing(title, "pgbackrest")]
    ours = {}
    for chunk in SIZES:
        place = f"{work}/chunks-{chunk}"
        program = [sys.executable, "-c", _OTHER.format(chunk)]
        ours[chunk] = Strongroom(place, configured(server), program)
        ours[chunk].init()
    theirs = PgBackRest(work, server)
    theirs.init()
    seconds: dict[int, list[float]] = {chunk: [] for chunk in SIZES}
    for day in range(DAYS):
        if day:
            run([pgbench, "-n", "-c", "4", "-t", str(transactions // 4), server.dsn])
        with server.connect() as connection:
            connection.execute("CHECKPOINT")
        time.sleep(1.1)  # what is older than a tick may be believed
        theirs.backup("incr" if day else "full")
        for chunk, side in ours.items():
            seconds[chunk].append(side.backup("bench").cpu)
    stored = {chunk: size_of(side.repository, "wal") / 1e6 for chunk, side in ours.items()}
    others = size_of(theirs.repository) / 1e6
    rows = [
        at_most(f"{title}: stored, without the log", stored[64], others, 0.3, "MB", theirs.name)
    ]
    for chunk, side in ours.items():
        index = size_of(f"{side.repository}/index") / 1e6
        first, later = seconds[chunk][0], statistics.median(seconds[chunk][1:])
        cpu = f"{first:.2f} + {later:.2f} s CPU"
        rows.append(
            Row(f"{title}: chunks of {chunk} KiB", f"{stored[chunk]:.1f} MB", cpu,
                f"{index:.2f} MB", "measured", None)
        )  # fmt: skip
        fresh(side.work)
    fresh(theirs.repository)
    return rows


__all__ = ["daily"]
