"""The same words for a database: test, back up, look, restore under another name, replace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.conftest import Desk, on_terminal
from strongroom.errors import StrongroomError
from strongroom.postgres.embedded import EmbeddedServer

pytestmark = pytest.mark.xdist_group(
    "acceptance-postgres"
)  # one worker: what it sets up is used by all

CONFIG = """\
[repository]
url = "{repository}"
passphrase = "env:STRONGROOM_PASSPHRASE"

[source.shop]
type = "postgres"
dsn = "host={host} port={port} user={user} dbname=shop sslmode=disable"
password = "env:DATABASE_PASSWORD"
promise = {{ rpo = "24h", rto = "4h", keep = "30d" }}
"""
ROWS = 500


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    try:
        server = EmbeddedServer(durable=False)
    except StrongroomError as missing:
        pytest.skip(f"no PostgreSQL server can be had: {missing.what}")
    with server, server.connect() as connection:
        connection.execute("CREATE DATABASE shop")
        with server.connect("shop") as shop:
            shop.execute("CREATE TABLE orders (id bigint PRIMARY KEY, note text NOT NULL)")
            shop.execute(
                "INSERT INTO orders SELECT n, 'order ' || n FROM generate_series(1, %s) n", [ROWS]
            )
            shop.execute("CREATE SCHEMA other")
            shop.execute("CREATE TABLE other.thing AS SELECT 1 AS a")
        yield server


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, server: EmbeddedServer) -> Path:
    """A repository with one backup of the database; every test only reads it."""
    desk = machine(tmp_path_factory.mktemp("shop"), server)
    desk.run("init", "--quiet")
    desk.run("backup", "shop")
    return desk.repository


@pytest.fixture
def shop(tmp_path: Path, server: EmbeddedServer, repository: Path) -> Desk:
    """A machine with the database configured, and one backup of it."""
    return machine(tmp_path, server, repository)


def machine(root: Path, server: EmbeddedServer, repository: Path | None = None) -> Desk:
    desk = Desk(root)
    desk.repository = repository or desk.repository
    desk.environ["DATABASE_PASSWORD"] = password_of(server)
    desk.config.write_text(
        CONFIG.format(
            repository=desk.repository,
            host=server.socket_directory,
            port=server.port,
            user=server.user,
        )
    )
    return desk


def password_of(server: EmbeddedServer) -> str:
    with server.connect() as connection:
        return connection.info.password


def count(server: EmbeddedServer, database: str, table: str = "orders") -> int:
    with server.connect(database) as connection:
        (rows,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone() or (-1,)
    return int(rows)


def databases(server: EmbeddedServer) -> set[str]:
    with server.connect() as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


def test_source_test_says_what_would_be_used(shop: Desk) -> None:
    report = shop.run("source", "test", "shop", "--json").document["report"]
    assert report["databases"] == ["shop"]
    assert report["pg_dump"]["version"]


def test_ls_shows_the_folders_of_a_database(shop: Desk) -> None:
    top = shop.run("ls", "shop", "--json").document["entries"]
    assert [(e["path"], e["kind"]) for e in top] == [
        ("databases", "directory"),
        ("globals.sql", "stream"),
    ]
    assert shop.run("ls", "shop:databases").text.split()[-1] == "databases/shop"
    assert "databases/shop/schema.dump" in shop.run("ls", "shop:databases/shop").text


def test_what_is_not_in_a_backup_is_named(shop: Desk, server: EmbeddedServer) -> None:
    """A role that may read the rows and no more: passwords of roles are left out, and told."""
    with server.connect() as connection:
        connection.execute("CREATE ROLE poor LOGIN PASSWORD 'poor'")
    with server.connect("shop") as connection:
        connection.execute("GRANT USAGE ON SCHEMA other TO poor")
        for schema in ("public", "other"):
            connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO poor")
    text = shop.config.read_text().replace(f"user={server.user}", "user=poor")
    shop.config.write_text(text)
    shop.repository = shop.root / "of-the-poor"
    environ = {"DATABASE_PASSWORD": "poor", "STRONGROOM_REPOSITORY": str(shop.repository)}
    shop.run("init", "--quiet", env=environ)
    done = shop.run("backup", "shop", status=3, env=environ)
    assert "skipped: globals.sql: role passwords are not included" in done.stderr
    done = shop.run("backup", "shop", "--json", status=3, env=environ)
    assert [e["path"] for e in done.events if e["type"] == "problem"] == ["globals.sql"]


def test_there_and_back_under_another_name(shop: Desk, server: EmbeddedServer) -> None:
    entries = shop.run("ls", "shop", "--recursive", "--json").document["entries"]
    assert any(entry["kind"] == "stream" for entry in entries)
    plan = shop.run("restore", "shop", "--to", "copy_one", "--dry-run", "--json").result["plan"]
    assert (plan["target"], plan["rows"]) == ("copy_one", ROWS + 1)
    assert "copy_one" not in databases(server)
    result = shop.run("restore", "shop", "--to", "copy_one", "--json").result
    assert result["facts"]["verified"] is True
    assert count(server, "copy_one") == ROWS


def test_an_existing_database_is_not_replaced_by_itself(shop: Desk, server: EmbeddedServer) -> None:
    shop.run("restore", "shop", "--to", "copy_two")
    with server.connect("copy_two") as connection:
        connection.execute("DELETE FROM orders")
    shop.run("restore", "shop", "--to", "copy_two", status=4)
    refused = shop.run("restore", "shop", "--to", "copy_two", "--replace", status=4)
    assert "--yes" in refused.error_lines[2]
    assert count(server, "copy_two") == 0
    shop.run("restore", "shop", "--to", "copy_two", "--replace", "--yes")
    assert count(server, "copy_two") == ROWS


def test_the_name_is_typed_on_a_terminal(shop: Desk, server: EmbeddedServer) -> None:
    shop.run("restore", "shop", "--to", "copy_three")
    words = ["restore", "shop", "--to", "copy_three", "--replace"]
    status, shown = on_terminal(shop, words, [b"copy_four\n"])
    assert status == 4, shown
    status, shown = on_terminal(shop, words, [b"copy_three\n"])
    assert status == 0, shown


def test_a_subset(shop: Desk, server: EmbeddedServer) -> None:
    shop.run("restore", "shop", "--to", "part_one", "--table", "public.orders")
    assert count(server, "part_one") == ROWS
    shop.run("restore", "shop", "--to", "part_two", "--schema", "other")
    assert count(server, "part_two", "other.thing") == 1
    with server.connect("part_two") as connection:
        found = connection.execute("SELECT to_regclass('public.orders')").fetchone()
    assert found == (None,)


def test_a_server_named_by_a_libpq_string(shop: Desk, server: EmbeddedServer) -> None:
    to = f"host={server.socket_directory} port={server.port} user={server.user} dbname=copy_five"
    shop.config.unlink()
    environ = {
        "STRONGROOM_REPOSITORY": str(shop.repository),
        "PGPASSWORD": shop.environ["DATABASE_PASSWORD"],
    }
    shop.run("restore", "shop", "--to", to, env=environ)
    assert count(server, "copy_five") == ROWS


@pytest.mark.parametrize(
    "to", ["postgresql://u:hunter2@h/d", "host=h password=hunter2 dbname=d", "host=h"]
)
def test_targets_that_are_refused(shop: Desk, to: str) -> None:
    done = shop.run("restore", "shop", "--to", to, status=2)
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("name", ["-d", "--file=x", "quo'te\"d", "new\nline", "ñ" * 31, " "])
def test_hostile_database_names_work_or_are_refused(
    shop: Desk, server: EmbeddedServer, name: str
) -> None:
    done = shop.run("restore", "shop", f"--to={name}", status=None)
    assert done.status in (0, 2, 4), done.stderr
    if done.status == 0:
        assert count(server, name) == ROWS
    else:
        assert name not in databases(server)


def test_flags_of_files_do_not_apply(shop: Desk) -> None:
    done = shop.run("restore", "shop", "--to", "x", "--path", "a", status=2)
    assert "--path" in done.error_lines[0]


def test_a_wrong_password_and_a_server_that_is_not_there(shop: Desk) -> None:
    done = shop.run("backup", "shop", status=8, env={"DATABASE_PASSWORD": "hunter2"})
    assert "hunter2" not in done.stderr
    text = shop.config.read_text()
    shop.config.write_text(text.replace("port=", "port=1"))
    done = shop.run("source", "test", "shop", status=7)
    assert done.code == "database-unreachable"
    assert len(shop.run("list", "--json").document["snapshots"]) == 1
