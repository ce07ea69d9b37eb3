"""Rows of physical backup by the replication protocol: against pg_basebackup, which keeps nothing."""

from __future__ import annotations

import os

from bench.files import fresh
from bench.measure import Row, Run, Side, at_most, paired, run, size_of
from bench.peers import Strongroom
from bench.physical import SETTINGS, fill
from strongroom.postgres.embedded import EmbeddedServer, find_server


def stream(work: str, times: int, scale: float = 1.0) -> list[Row]:
    """Full backup of a cluster by stream, and pg_basebackup of it to /dev/null."""
    from psycopg.conninfo import conninfo_to_dict, make_conninfo  # noqa: PLC0415

    home = f"{work}/cluster"
    fresh(home)
    with EmbeddedServer(
        find_server(15), home, settings=SETTINGS, initdb=["--data-checksums"]
    ) as server:
        fill(server, scale)
        size = (size_of(server.data_directory) - size_of(f"{server.data_directory}/pg_wal")) / 1e9
        parameters = conninfo_to_dict(server.dsn)
        password = os.environ["BENCH_PASSWORD"] = str(parameters.pop("password"))
        dsn = make_conninfo(**{key: str(value) for key, value in parameters.items()})
        ours = Strongroom(
            work,
            '[source.bench]\ntype = "postgres"\nmethod = "physical"\nvia = "stream"\n'
            f'dsn = "{dsn}"\npassword = "env:BENCH_PASSWORD"\n',
        )
        argv = [f"{server.installation.bindir}/pg_basebackup", "-D", "-", "-Ft", "-X", "none"]
        argv += ["--checkpoint=fast", f"--dbname={dsn}"]

        def theirs() -> Run:
            return run(argv, env={"PGPASSWORD": password})

        mine, other = Side("strongroom"), Side("pg_basebackup > /dev/null")
        for _ in range(times):
            ours.init()
            paired(1, (mine, lambda: ours.backup("bench")), (other, theirs))
    fresh(home)
    fresh(ours.repository)
    title = f"physical backup of a {size:.1f} GB cluster, stream, checksums verified"
    return [at_most(title, mine.wall, other.wall, 1.4, "s", other.name)]


__all__ = ["stream"]
