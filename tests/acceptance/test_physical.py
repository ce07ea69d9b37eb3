"""A whole cluster by the command: test, back up, look, and a second time with nothing changed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.conftest import Desk
from strongroom.errors import StrongroomError
from strongroom.postgres.embedded import EmbeddedServer

pytestmark = pytest.mark.xdist_group(
    "acceptance-physical"
)  # one worker: what it sets up is used by all

CONFIG = """\
[repository]
url = "{repository}"
passphrase = "env:STRONGROOM_PASSPHRASE"

[source.cluster]
type = "postgres"
method = "physical"
dsn = "host={host} port={port} user={user} dbname=postgres sslmode=disable"
password = "env:DATABASE_PASSWORD"
external = ["{external}"]
"""


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    try:
        server = EmbeddedServer(durable=False, initdb=["--data-checksums"])
    except StrongroomError as missing:
        pytest.skip(f"no PostgreSQL server can be had: {missing.what}")
    with server, server.connect() as connection:
        connection.execute("CREATE TABLE orders AS SELECT n FROM generate_series(1, 1000) n")
        connection.execute("CHECKPOINT")
        yield server


@pytest.fixture
def cluster(tmp_path: Path, server: EmbeddedServer) -> Desk:
    desk = Desk(tmp_path)
    with server.connect() as connection:
        desk.environ["DATABASE_PASSWORD"] = connection.info.password
    external = tmp_path / "outside.conf"
    external.write_text("# outside\n")
    desk.config.write_text(
        CONFIG.format(
            repository=desk.repository,
            host=server.socket_directory,
            port=server.port,
            user=server.user,
            external=external,
        )
    )
    desk.run("init", "--quiet")
    return desk


def test_there_look_and_again(cluster: Desk, server: EmbeddedServer, tmp_path: Path) -> None:
    report = cluster.run("source", "test", "cluster", "--json").document["report"]
    assert report["via"] == "local"
    assert report["data_directory"] == os.path.realpath(server.data_directory)
    assert report["checksums"]

    time.sleep(2.2)
    first = cluster.run("backup", "cluster", "--json").result["backups"][0]
    assert first["problems"] == []
    second = cluster.run("backup", "cluster", "--json").result["backups"][0]
    assert second["snapshot"]["size"] == pytest.approx(first["snapshot"]["size"], rel=0.01)
    assert second["snapshot"]["new_size"] < first["snapshot"]["new_size"] / 20

    assert len(cluster.run("list", "--json").document["snapshots"]) == 2
    assert "cluster" in cluster.run("status").text
    top = cluster.run("ls", "cluster", "--json").document["entries"]
    assert [entry["path"] for entry in top] == ["config", "data"]
    outside = f"cluster:config{tmp_path}/outside.conf"
    cluster.run("get", outside, "-o", str(tmp_path / "got"))
    assert (tmp_path / "got").read_text() == "# outside\n"
    cluster.run("check", "--read-data")
    label = cluster.run("get", "cluster:data/backup_label", "-o", "-").text
    assert "BACKUP METHOD: streamed" in label
    # The WAL from its start is in the repository, by the name that PostgreSQL archives it under.
    named = label.split("(file ")[1].split(")")[0]
    found = [path.name for path in (cluster.repository / "wal").rglob("*") if path.is_file()]
    assert named in found


def test_a_server_that_is_not_here(cluster: Desk) -> None:
    more = 'method = "physical"\nvia = "local"\ndata_directory = "/nowhere"'
    text = cluster.config.read_text().replace('method = "physical"', more)
    cluster.config.write_text(text)
    done = cluster.run("backup", "cluster", status=4)
    assert "/nowhere" in done.error_lines[0]


def test_a_path_that_is_not_absolute_is_refused(cluster: Desk) -> None:
    cluster.config.write_text(cluster.config.read_text().replace('external = ["/', 'external = ["'))
    done = cluster.run("config", "check", status=2)
    assert "source.cluster.external" in done.text
