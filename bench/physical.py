"""Rows of physical backup: a whole cluster by its files, against pgBackRest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace

from bench.files import fresh
from bench.measure import (
    Row,
    Run,
    Side,
    at_most,
    missing,
    paired,
    ratio,
    ratio_cpu,
    run,
    size_of,
)
from bench.peers import Strongroom
from strongroom.postgres.embedded import EmbeddedServer, find_server

PGBENCH_SCALE, FLOAT_ROWS, JSON_ROWS = 60, 2_000_000, 500_000
LEVEL, PROCESSES = 1, 2
SETTINGS = {"shared_buffers": "256MB", "autovacuum": "off", "max_wal_size": "4GB"}


def physical(work: str, times: int, scale: float = 1.0) -> list[Row]:
    """Full backup of a cluster on its own host, and the next after a little has changed."""
    home = f"{work}/cluster"
    fresh(home)
    with EmbeddedServer(
        find_server(15), home, settings=SETTINGS, initdb=["--data-checksums"]
    ) as server:
        fill(server, scale)
        rows = _compare(work, times, server, scale)
    fresh(home)
    return rows


def fill(server: EmbeddedServer, scale: float) -> None:
    """pgbench's tables, rows with arrays of floats, JSON documents: some 1.8 GB."""
    pgbench = os.path.join(server.installation.bindir, "pgbench")
    run([pgbench, "-i", "-q", f"--scale={max(1, int(PGBENCH_SCALE * scale))}", server.dsn])
    with server.connect() as connection:
        connection.execute("SELECT setseed(0.5)")
        connection.execute(
            "CREATE TABLE features AS SELECT n AS id, n % 1000 AS clip,"
            " ARRAY(SELECT random() + n * 0 FROM generate_series(1, 42)) AS vector"
            f" FROM generate_series(1, {int(FLOAT_ROWS * scale)}) n"
        )
        connection.execute(
            "CREATE TABLE documents AS SELECT n AS id, jsonb_build_object('id', n, 'title',"
            " md5(n::text), 'score', random(), 'tags', jsonb_build_array(n % 7, n % 11, n % 13),"
            " 'channel', 'channel ' || n % 100) AS body"
            f" FROM generate_series(1, {int(JSON_ROWS * scale)}) n"
        )
        connection.execute("ALTER TABLE features ADD PRIMARY KEY (id)")
        connection.execute("VACUUM (ANALYZE, FREEZE)")
        connection.execute("CHECKPOINT")


class PgBackRest:
    """pgBackRest from PATH: zstd, encrypted, its page checksums on; archiving is not measured."""

    name = "pgBackRest"

    def __init__(self, work: str, server: EmbeddedServer) -> None:
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

        self.repository = f"{work}/pgbackrest"
        self._config = f"{work}/pgbackrest.conf"
        self._password = str(conninfo_to_dict(server.dsn)["password"])
        self._log = f"{work}/pgbackrest-state"
        os.makedirs(self._log, exist_ok=True)
        with open(self._config, "w") as file:
            file.write(
                f"[global]\nrepo1-path={self.repository}\nrepo1-cipher-type=aes-256-cbc\n"
                "repo1-cipher-pass=bench\ncompress-type=zst\n"
                f"compress-level={LEVEL}\nprocess-max={PROCESSES}\nstart-fast=y\n"
                "archive-check=n\nlog-level-file=off\nlog-level-console=warn\n"
                f"lock-path={self._log}\nspool-path={self._log}\n\n"
                f"[bench]\npg1-path={server.data_directory}\npg1-user=postgres\n"
                f"pg1-socket-path={server.socket_directory}\npg1-port={server.port}\n"
            )

    @staticmethod
    def present() -> bool:
        return shutil.which("pgbackrest") is not None

    def init(self) -> None:
        fresh(self.repository)
        os.makedirs(self.repository, mode=0o750)
        self._run("stanza-create")

    def backup(self, kind: str) -> Run:
        return self._run("backup", f"--type={kind}")

    def restore(self, target: str, *more: str) -> Run:
        """Into a directory of the same owner, which it asks for."""
        if not os.path.isdir(target):
            os.makedirs(target, mode=0o700)
        return self._run("restore", f"--pg1-path={target}", "--type=immediate", *more)

    def _run(self, *words: str) -> Run:
        argv = ["pgbackrest", f"--config={self._config}", "--stanza=bench", *words]
        return run(argv, env={"PGPASSWORD": self._password})


def configured(server: EmbeddedServer) -> str:
    """The source `bench`: this server, by its files; its password goes into the environment."""
    from psycopg.conninfo import conninfo_to_dict, make_conninfo  # noqa: PLC0415

    parameters = conninfo_to_dict(server.dsn)
    os.environ["BENCH_PASSWORD"] = str(parameters.pop("password"))
    dsn = make_conninfo(**{key: str(value) for key, value in parameters.items()})
    return (
        f'[source.bench]\ntype = "postgres"\nmethod = "physical"\nvia = "local"\ndsn = "{dsn}"\n'
        'password = "env:BENCH_PASSWORD"\n'
    )


def _restores(
    work: str,
    ours: Strongroom,
    theirs: PgBackRest,
    empty: tuple[Side, Side],
    delta: tuple[Side, Side],
    between: Callable[[], None],
) -> None:
    """Restore into an empty directory; then `between`, which takes another backup, over it."""
    here, there = f"{work}/restored", f"{work}/restored-theirs"
    fresh(here)
    fresh(there)
    paired(
        1,
        (empty[0], lambda: ours.restore("bench", here, "--immediate")),
        (empty[1], lambda: theirs.restore(there)),
    )
    between()
    paired(
        1,
        (delta[0], lambda: ours.restore("bench", here, "--immediate", "--delta")),
        (delta[1], lambda: theirs.restore(there, "--delta")),
    )
    fresh(here)
    fresh(there)


NEWEST, SCATTERED = "the newest", "all over it"


def _change(server: EmbeddedServer, which: str, rows: int) -> None:
    """Change 1 % of one table's rows; the pages reach the disk."""
    chosen = f"id > {rows - rows // 100}" if which == NEWEST else "id % 100 = 7"
    with server.connect() as connection:
        connection.execute(f"UPDATE features SET clip = clip + 1 WHERE {chosen}".encode())
        connection.execute("CHECKPOINT")
        connection.execute("SELECT pg_sleep(3)")  # what is older than a tick may be believed


def _compare(work: str, times: int, server: EmbeddedServer, scale: float) -> list[Row]:
    size = (size_of(server.data_directory) - size_of(f"{server.data_directory}/pg_wal")) / 1e9
    full_title = f"physical backup of a {size:.1f} GB cluster, local, checksums verified"
    titles = {
        which: f"physical backup after 1 % of one table's rows changed, {which}"
        for which in (NEWEST, SCATTERED)
    }
    if not PgBackRest.present():
        return [missing(title, "pgbackrest") for title in (full_title, *titles.values())]
    ours, theirs = Strongroom(work, configured(server)), PgBackRest(work, server)
    full, theirs_full = Side("strongroom"), Side("pgBackRest")
    again = {which: (Side("strongroom"), Side("pgBackRest incr")) for which in titles}
    empty = Side("strongroom"), Side("pgBackRest restore")
    delta = Side("strongroom"), Side("pgBackRest restore --delta")
    stored: dict[str, tuple[int, int]] = {}

    def next_of(which: str) -> None:
        one, other = again[which]
        before = size_of(ours.repository), size_of(theirs.repository)
        _change(server, which, int(FLOAT_ROWS * scale))
        paired(1, (one, lambda: ours.backup("bench")), (other, lambda: theirs.backup("incr")))
        after = size_of(ours.repository), size_of(theirs.repository)
        stored[which] = after[0] - before[0], after[1] - before[1]

    for _ in range(times):
        ours.init()
        theirs.init()
        paired(
            1,
            (full, lambda: ours.backup("bench")),
            (theirs_full, lambda: theirs.backup("full")),
        )
        _restores(work, ours, theirs, empty, delta, lambda: next_of(NEWEST))
        next_of(SCATTERED)
    fresh(ours.repository)
    fresh(theirs.repository)
    scattered = ratio(titles[SCATTERED], *again[SCATTERED], 3)
    restored, again_title = f"restore of a {size:.1f} GB cluster", titles[NEWEST]
    rows = []
    for title, sides, target in (
        (full_title, (full, theirs_full), 1.5),
        (again_title, again[NEWEST], 3),
        (restored, empty, 1.8),
        (f"{restored} --delta, 1 % of one table's rows changed", delta, 1.5),
    ):
        rows += [ratio(title, *sides, target), ratio_cpu(title, *sides, target)]
    # Nearly every chunk of 64 KiB has a changed row then: what is stored is the whole table.
    rows.append(replace(scattered, target="measured", met=None))
    for which, (mine, others) in stored.items():
        title = f"{titles[which]}: stored"
        rows.append(at_most(title, mine / 1e6, others / 1e6, 1.05, "MB", "pgBackRest"))
    return rows


__all__ = ["PgBackRest", "configured", "fill", "physical"]
