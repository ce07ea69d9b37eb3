"""Row of plain restore: a `.sql.gz` put back by us, against `gunzip -c | psql`.

    python -m bench.plain DSN FILE.sql.gz      puts one file into an empty database

The password of the server comes in the environment (PGPASSWORD), for both sides alike.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys

from bench.logical import filled
from bench.measure import Row, Side, at_most, fresh, paired, ratio, run
from strongroom.postgres.embedded import EmbeddedServer, find_server
from strongroom.postgres.plain.executor import PlainRestore

MOST_MEMORY = 300e6
_PSQL = (
    "import subprocess, sys\n"
    "zipped = subprocess.Popen(['gunzip', '-c', sys.argv[3]], stdout=subprocess.PIPE)\n"
    "put = subprocess.run([sys.argv[1], '-X', '-q', '-v', 'ON_ERROR_STOP=1', sys.argv[2]],"
    " stdin=zipped.stdout)\n"
    "sys.exit(zipped.wait() or put.returncode)\n"
)


def plain(work: str, times: int, scale: float = 1.0) -> list[Row]:
    """Restore of the `.sql.gz` of a Stakazo-like database; both end with the same rows."""
    from psycopg.conninfo import conninfo_to_dict, make_conninfo  # noqa: PLC0415

    home, script, path = f"{work}/plain-pg", f"{work}/psql.py", f"{work}/plain.sql.gz"
    fresh(home)
    with open(script, "w") as file:
        file.write(_PSQL)
    with EmbeddedServer(find_server(), home) as server:
        filled(server, work, scale)
        with server.connect("bench") as connection:
            row = connection.execute("SELECT pg_database_size('bench')").fetchone()
        bindir = server.installation.bindir
        dump = [f"{bindir}/pg_dump", server.dsn_for("bench")]
        with open(path, "wb") as packed, subprocess.Popen(dump, stdout=subprocess.PIPE) as text:
            subprocess.run(["gzip", "-6"], stdin=text.stdout, stdout=packed, check=True)
        parameters = {k: str(v) for k, v in conninfo_to_dict(server.dsn_for("back")).items()}
        env = {"PGPASSWORD": parameters.pop("password")}
        dsn = make_conninfo(**parameters)
        ours, theirs = Side("strongroom"), Side("gunzip | psql")
        for _ in range(times):
            for side, argv in (
                (theirs, [sys.executable, script, f"{bindir}/psql", dsn, path]),
                (ours, [sys.executable, "-m", "bench.plain", dsn, path]),
            ):
                with server.connect() as connection:
                    connection.execute("DROP DATABASE IF EXISTS back")
                    connection.execute("CREATE DATABASE back")
                paired(1, (side, lambda argv=argv: run(argv, env=env)))
    fresh(home)
    os.unlink(path)
    title = f"restore of the .sql.gz of a {row[0] / 1e9 if row else 0:.1f} GB database"
    memory = at_most(f"{title}: peak memory", ours.peak / 1e6, MOST_MEMORY / 1e6, 1, "MB", "limit")
    return [ratio(title, ours, theirs, 1.0), memory]


def main(dsn: str, path: str) -> None:
    """Put one file back, as an import does: decompressed on a thread, verified at the end."""
    try:
        from zlib_ng.gzip_ng_threaded import open as opened  # noqa: PLC0415
    except ImportError:
        opened = gzip.open
    with opened(path, "rb") as file:
        PlainRestore(dsn, password=os.environ["PGPASSWORD"]).run(file.read)


__all__ = ["plain"]

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
