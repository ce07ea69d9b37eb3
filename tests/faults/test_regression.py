"""PostgreSQL's regression database, and a small zoo, backed up in every way and compared by pg_dumpall."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from postgres import regression
from postgres.cluster_room import ClusterRoom, cluster_room
from strongroom.postgres.embedded import EmbeddedServer, find_server

pytestmark = pytest.mark.xdist_group("regression")
ZOO = Path(__file__).parents[1] / "postgres/zoo.sql"
SETTINGS = {"max_prepared_transactions": "5", "allow_in_place_tablespaces": "on"}


def program(server: EmbeddedServer, name: str, *words: str) -> str:
    """Run a client of the server's own version to a good end; what it said."""
    found = os.path.join(server.installation.bindir, name)
    if not os.access(found, os.X_OK):
        found = os.path.join(find_server(server.installation.version[0]).bindir, name)
    environ = {
        "PATH": os.environ["PATH"],
        "PGHOST": server.socket_directory,
        "PGPORT": str(server.port),
        "PGUSER": server.user,
        "PGPASSWORD": server._password,
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run([found, *words], env=environ, capture_output=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")[-4000:]
    return done.stdout.decode("utf-8", "surrogateescape")


def told(dump: str) -> list[str]:
    """A dump without the words that are another in each."""
    return [
        line for line in dump.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))
    ]


def looked_at(cluster: ClusterRoom, source: str, before: str) -> None:
    """Restore, recover, and compare: the same by pg_dumpall, and PostgreSQL finds no fault in it."""
    target = cluster.folder(f"of {source}")
    cluster.run("restore", source, "--to", str(target))
    program(cluster.server, "pg_verifybackup", "--no-parse-wal", str(target))
    with cluster.opened(target, allow_in_place_tablespaces="on") as restored:
        found = told(program(restored, "pg_dumpall", "--no-sync"))
        assert found == told(before), difference(told(before), found)
        program(
            restored, "pg_amcheck", "--all", "--install-missing", "--heapallindexed",
            "--parent-check",
        )  # fmt: skip
        restored.stop()
        program(restored, "pg_checksums", "--check", "--pgdata", str(target))


def difference(one: list[str], other: list[str]) -> str:
    left, right = set(one) - set(other), set(other) - set(one)
    return f"gone: {sorted(left)[:10]}; new: {sorted(right)[:10]}"


def emptied(cluster: ClusterRoom) -> None:
    """Recovery empties unlogged tables; both sides are compared without their rows."""
    databases = "SELECT datname FROM pg_database WHERE datallowconn AND datname <> 'template0'"
    with cluster.server.connect() as connection:
        names = [name for (name,) in connection.execute(databases).fetchall()]
    for name in names:
        with cluster.server.connect(name) as connection:
            tables = connection.execute(
                "SELECT oid::regclass::text FROM pg_class WHERE relpersistence = 'u'"
                " AND relkind = 'r'"
            ).fetchall()
            for (table,) in tables:
                connection.execute(f"TRUNCATE {table} RESTART IDENTITY".encode())


def whole(cluster: ClusterRoom, sources: tuple[str, ...]) -> None:
    emptied(cluster)
    before = program(cluster.server, "pg_dumpall", "--no-sync")
    for source in sources:
        cluster.run("backup", source)
    cluster.archived()
    for source in sources:
        looked_at(cluster, source, before)


def test_a_zoo_is_the_same_by_pg_dumpall() -> None:
    for cluster in cluster_room(15, "--data-checksums", **SETTINGS):
        cluster.sql("CREATE ROLE zoo_owner", "CREATE ROLE zoo_reader", "CREATE DATABASE zoo")
        with cluster.server.connect("zoo") as connection:
            connection.execute(ZOO.read_bytes())
        whole(cluster, ("db",))


@pytest.fixture
def work() -> Iterator[Path]:
    """Where the server's account may write."""
    with tempfile.TemporaryDirectory(prefix="strongroom-regress-") as name:
        path = Path(name)
        path.chmod(0o777)
        yield path


@pytest.mark.sweep
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("major", [15, 18])
def test_the_regression_database(major: int, work: Path) -> None:
    """Physical, local and streamed, by pg_dumpall; logical by pg_dump beside what PostgreSQL's own
    pg_dump and pg_restore make of it: columns of children and rows move alike in both."""
    sql = regression.sources(major, work / "source")
    for cluster in cluster_room(major, "--data-checksums", **SETTINGS):
        ran = regression.populate(cluster.server, sql, work)
        assert len(ran) > 200
        with cluster.server.connect() as connection:
            for (table,) in connection.execute(
                "SELECT spcname FROM pg_tablespace WHERE oid > 16383"
            ).fetchall():
                print("a tablespace is left:", table)
        whole(cluster, ("db", "far"))
        logical(cluster, work)


def logical(cluster: ClusterRoom, work: Path) -> None:
    logical_is_the_same(cluster, regression.DATABASE, work)


def logical_is_the_same(cluster: ClusterRoom, database: str, work: Path | None = None) -> None:
    """Restore a logical backup into another server; beside what pg_dump and pg_restore make of it,
    where there is a place for their archive, else beside the original."""
    server = cluster.server
    config = cluster.room.config
    part = config.read_text().split("[source.db]")[1].split("[source.far]")[0]
    config.write_text(
        config.read_text()
        + "\n[source.rows]"
        + part.replace("dbname=postgres", f"dbname={database}")
        .replace('method = "physical"\n', "")
        .replace('via = "local"\n', "")
    )
    cluster.run("backup", "rows")
    with EmbeddedServer(
        server.installation, durable=False, tcp=True, settings={"max_locks_per_transaction": "512"}
    ) as other:
        to = f"postgresql://{other.user}@127.0.0.1:{other.port}/{database}"
        said = cluster.run("restore", "rows", "--to", to, env={"PGPASSWORD": other._password})
        assert "restored and verified" in said
        ours = told(program(other, "pg_dump", "--no-sync", database))
        if work is None:
            theirs = told(program(server, "pg_dump", "--no-sync", database))
        else:
            archive = str(work / "archive")
            program(server, "pg_dump", "--format=custom", "--no-sync", "-f", archive, database)
            with other.connect() as connection:
                connection.execute("CREATE DATABASE theirs TEMPLATE template0")
            program(other, "pg_restore", "--dbname=theirs", archive)
            theirs = told(program(other, "pg_dump", "--no-sync", "theirs"))
        assert sorted(ours) == sorted(theirs), difference(theirs, ours)
