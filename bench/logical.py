"""Rows of logical backup and restore: a 1.5 GB database, against PostgreSQL's own tools."""

from __future__ import annotations

import os
import shutil

from bench.files import fresh
from bench.measure import Row, Side, at_most, paired, ratio, run, size_of
from bench.peers import Strongroom
from strongroom.demo.platform import Platform
from strongroom.postgres.embedded import EmbeddedServer, find_server

CLIPS, RUNS, AUDITS = 1_680_000, 1_340_000, 670_000


def logical(work: str, times: int, scale: float = 1.0) -> list[Row]:
    """Backup, restore and second backup of a Stakazo-like database."""
    home = f"{work}/pg"
    fresh(home)
    with EmbeddedServer(find_server(), home) as server:
        platform = filled(server, work, scale)
        with server.connect("bench") as connection:
            row = connection.execute("SELECT pg_database_size('bench')").fetchone()
            size = row[0] / 1e9 if row else 0.0
        rows = _compare(work, times, server, size)
        rows += _second(work, server, platform)
    fresh(home)
    return rows


def filled(server: EmbeddedServer, work: str, scale: float) -> Platform:
    """The example platform on a new database "bench", with its rows."""
    with server.connect() as connection:
        connection.execute("CREATE DATABASE bench")
    platform = Platform(server, "bench", f"{work}/no-vault")
    platform.migrate()
    platform.seed(
        "--database",
        f"--clips={int(CLIPS * scale)}",
        f"--runs={int(RUNS * scale)}",
        f"--audits={int(AUDITS * scale)}",
    )
    return platform


def _strongroom(work: str, server: EmbeddedServer) -> Strongroom:
    from psycopg.conninfo import conninfo_to_dict, make_conninfo  # noqa: PLC0415

    # A password in a dsn is refused by the configuration; it goes by the environment.
    parameters = conninfo_to_dict(server.dsn_for("bench"))
    os.environ["BENCH_PASSWORD"] = str(parameters.pop("password"))
    dsn = make_conninfo(**{key: str(value) for key, value in parameters.items()})
    source = f'[source.bench]\ntype = "postgres"\ndsn = "{dsn}"\npassword = "env:BENCH_PASSWORD"\n'
    return Strongroom(work, source)


def _compare(work: str, times: int, server: EmbeddedServer, size: float) -> list[Row]:
    bindir, dsn = server.installation.bindir, server.dsn_for("bench")
    ours = _strongroom(work, server)
    backup, restore = Side("strongroom"), Side("strongroom")
    dump, piped, back = Side("pg_dump -Fd -j2 -Z0"), Side("pg_dump | gzip"), Side("pg_restore -j2")
    folder = f"{work}/dump"

    def ours_back() -> None:
        with server.connect() as connection:
            connection.execute("DROP DATABASE IF EXISTS bench_back")
        paired(1, (restore, lambda: ours.restore("bench", "bench_back")))

    def theirs_back() -> None:
        with server.connect() as connection:
            connection.execute("DROP DATABASE IF EXISTS bench_back")
            connection.execute("CREATE DATABASE bench_back")
        target = server.dsn_for("bench_back")
        argv = [f"{bindir}/pg_restore", "-j2", f"--dbname={target}", folder]
        paired(1, (back, lambda: run(argv)))

    for _ in range(times):
        fresh(folder)
        argv = [f"{bindir}/pg_dump", "-Fd", "-j2", "-Z0", f"--file={folder}", f"--dbname={dsn}"]
        paired(1, (dump, lambda argv=argv: run(argv)))
        ours.init()
        paired(1, (backup, lambda: ours.backup("bench")))
        theirs_back()
        ours_back()
    script = f"{work}/pipe.py"
    _write_pipe(script)
    paired(1, (piped, lambda: run(["python3", script, f"{bindir}/pg_dump", dsn, f"{work}/d.gz"])))
    shutil.rmtree(folder)
    os.unlink(f"{work}/d.gz")
    title = f"logical backup of a {size:.1f} GB database"
    return [
        at_most(title, backup.wall, dump.wall, 1.5, "s", dump.name),
        ratio(title, backup, piped, 5),
        at_most(
            f"logical restore of a {size:.1f} GB database",
            restore.wall,
            back.wall,
            1.2,
            "s",
            back.name,
        ),
    ]


def _write_pipe(path: str) -> None:
    with open(path, "w") as file:
        file.write(
            "import subprocess, sys\n"
            "dump = subprocess.Popen([sys.argv[1], '--dbname=' + sys.argv[2]],"
            " stdout=subprocess.PIPE)\n"
            "out = open(sys.argv[3], 'wb')\n"
            "zipped = subprocess.run(['gzip'], stdin=dump.stdout, stdout=out)\n"
            "sys.exit(dump.wait() or zipped.returncode)\n"
        )


def _second(work: str, server: EmbeddedServer, platform: Platform) -> list[Row]:
    """What a second backup stores after clustered and after scattered changes."""
    ours = _strongroom(work, server)
    ours.init()
    ours.backup("bench")
    first = size_of(ours.repository)
    platform.seed("--change", "--database")
    ours.backup("bench")
    second = size_of(ours.repository) - first
    platform.seed("--scatter")
    ours.backup("bench")
    third = size_of(ours.repository) - first - second
    fresh(ours.repository)
    title = "second logical backup stores, 1 % appended and the newest 1 % changed"
    return [
        at_most(title, second / 1e6, first / 1e6, 0.03, "MB", "first"),
        Row(
            "logical backup stores after 1 % changed all over one table",
            f"{third / 1e6:.1f} MB",
            f"first {first / 1e6:.1f} MB",
            f"{third / first:.3f} ×",
            "measured",
            None,
        ),
    ]


__all__ = ["filled", "logical"]
