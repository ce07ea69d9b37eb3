"""From a server that archives to a server that was restored to a moment, by commands alone."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from postgres.wal.room import WalRoom, program, ready, until
from strongroom.postgres.embedded import EmbeddedServer

pytestmark = pytest.mark.xdist_group("recovery")  # one worker: the story is lived once

CONFIG = """\
[repository]
url = "{room.repository}"
key_file = "{room.key}"

[source.db]
type = "postgres"
dsn = "host={host} port={port} user={user} dbname=shop"
password = "file:{room.root}/password"
method = "physical"
"""


class Story:
    """A shop whose orders were deleted by mistake."""

    def __init__(self, room: WalRoom, server: EmbeddedServer) -> None:
        self.room, self.server = room, server
        parts = conninfo_to_dict(server.dsn)
        (room.root / "password").write_text(str(parts["password"]))
        os.chmod(room.root / "password", 0o600)
        os.chown(room.root / "password", room.account.uid, room.account.gid)
        self.environ = {
            "XDG_CACHE_HOME": str(room.root / "cache"),
            "STRONGROOM_PROGRAM": program(),
            "STRONGROOM_WAL_SOCKET": str(room.socket),
        }
        text = CONFIG.format(room=room, host=parts["host"], port=parts["port"], user=parts["user"])
        room.config.write_text(text)
        room.daemon()
        with server.connect() as connection:
            connection.execute("CREATE DATABASE shop")
        with server.connect("shop") as connection:
            connection.execute(
                "CREATE TABLE orders AS SELECT g AS n FROM generate_series(1,1000) g"
            )
        self.run("backup", "db")
        with server.connect("shop") as connection:
            connection.execute("INSERT INTO orders SELECT generate_series(1001, 1500)")
            self.before = self.now()
            connection.execute("DELETE FROM orders")
            connection.execute("SELECT pg_create_restore_point('too late')")
            connection.execute("INSERT INTO orders VALUES (-1)")
            self.after = self.now()
            connection.execute("SELECT pg_switch_wal()")
        until(lambda: not ready(server))

    def now(self) -> datetime:
        with self.server.connect() as connection:
            row = connection.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        when: datetime = row[0]
        return when.astimezone(UTC)

    def run(self, *words: str, status: int = 0) -> str:
        _, stdout, stderr = self.room.run(
            *words, "--config", str(self.room.config), status=status,
            env=self.environ,
        )  # fmt: skip
        return stdout.decode() + stderr

    def json(self, *words: str, status: int = 0) -> dict[str, Any]:
        said = self.room.run(
            *words, "--config", str(self.room.config), "--json", status=status,
            env=self.environ,
        )[1]  # fmt: skip
        found: dict[str, Any] = json.loads(
            said if said.startswith(b"{\n") else said.splitlines()[-1]
        )
        return found

    def orders(self, data: Path) -> tuple[int, int]:
        """Start PostgreSQL on a directory as its owner would; how many orders, and the least."""
        restored = Restored(self.server, data)
        try:
            restored.start()
            for _ in range(600):
                with restored.connect() as connection:
                    if connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,):
                        break
                time.sleep(0.05)
            with restored.connect("shop") as connection:
                assert connection.execute("SHOW archive_mode").fetchone() == ("off",)
                row = connection.execute("SELECT count(*), min(n) FROM orders").fetchone()
        finally:
            restored.stop(immediate=True)
        assert row is not None
        return row[0], row[1]


class Restored(EmbeddedServer):
    """A server on a directory that was restored, with the settings that came with it."""

    def __init__(self, original: EmbeddedServer, data: Path) -> None:
        super().__init__(original.installation)
        self._password = original._password
        self._initialised = True
        self._data = data

    @property
    def data_directory(self) -> str:
        return str(self._data)

    def _arguments(self) -> list[str]:
        words = {"unix_socket_directories": self.socket_directory, "port": str(self.port)}
        return [word for key, value in words.items() for word in ("-c", f"{key}={value}")]


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    room = WalRoom()
    try:
        room.init()
        with room.server(16, wal_level="replica", max_wal_senders="3") as server:
            yield Story(room, server)
    finally:
        room.close()


def text(moment: datetime) -> str:
    return moment.isoformat()


def test_the_rows_are_back(story: Story) -> None:
    said = story.run("can-restore", "db", "--at", text(story.before))
    assert said.startswith("YES: the state at ")
    assert "last commit in it" in said
    assert "next one, not in it" in said
    target = story.room.root / "restored 100% 'odd'"
    planned = story.json(
        "restore", "db", "--at", text(story.before), "--to", str(target), "--dry-run"
    )
    assert planned["verdict"]["yes"]
    assert not target.exists()
    done = story.json("restore", "db", "--at", text(story.before), "--to", str(target))
    assert done["facts"]["kept"] == 0
    assert not (target / "strongroom.restoring").exists()
    assert (target / "recovery.signal").exists()
    checker = os.path.join(story.server.installation.bindir, "pg_verifybackup")
    if os.access(checker, os.X_OK):
        subprocess.run([checker, "--no-parse-wal", str(target)], check=True, capture_output=True)
    assert story.orders(target) == (1500, 1)
    # The same directory again, by what differs, to another moment.
    with pytest.raises(AssertionError, match="is not empty"):
        story.run("restore", "db", "--name", "too late", "--to", str(target))
    again = story.json("restore", "db", "--name", "too late", "--to", str(target), "--delta")
    assert again["facts"]["kept"] > 10 * again["facts"]["fetched"] > 0
    # What was restored was measured, and is the estimate.
    assert story.json("can-restore", "db", "--immediate")["expected_seconds"] > 0
    assert story.orders(target) == (0, None)


def test_no_is_status_5_with_the_nearest_times(story: Story) -> None:
    early = story.json("can-restore", "db", "--at", "2026-01-01T00:00:00Z", status=5)
    assert not early["yes"]
    assert early["before"] is None
    assert early["after"] is not None
    said = story.run("restore", "db", "--at", text(story.after), "--to", "/nowhere", status=5)
    assert "cannot be recovered" in said
    assert "Nearest before it" in said


def test_points(story: Story) -> None:
    found = story.json("points", "db", "--gaps")
    (window,) = found["windows"]
    assert window["timeline"] == 1
    assert datetime.fromisoformat(window["from"]) < story.before
    assert datetime.fromisoformat(window["until"]) > story.before
    assert [point["name"] for point in found["restore_points"]] == ["too late"]
    assert found["gaps"] == []
    assert "every moment from" in story.run("points", "db")
    (source,) = story.json("status", "db")["sources"]
    assert (source["kind"], source["verdict"]) == ("physical", "unproved")
    assert source["windows"] == [{name: window[name] for name in ("from", "until")}]
    assert (source["recoverable_until"], source["gaps"]) == (window["until"], [])
    assert story.json("status", "db")["sources"][0]["windows"] == source["windows"], "as remembered"


def test_one_table_as_it_was(story: Story) -> None:
    for name in ("orders.sql.gz", "orders.dump"):
        output = story.room.root / name
        done = story.json("table", f"db@{text(story.before)}", "public.orders", "-o", str(output))
        assert done["database"] == "shop"
        assert output.stat().st_size == done["size"] > 500
    sql = subprocess.run(
        ["gunzip", "-c", str(story.room.root / "orders.sql.gz")], capture_output=True, check=True
    ).stdout
    rows = sql.split(b"FROM stdin;\n", 1)[1].split(b"\\.\n", 1)[0].splitlines()
    assert sorted(map(int, rows)) == list(range(1, 1501))
    missing = story.run(
        "table", "db", "public.none", "-o", str(story.room.root / "x.sql"), status=5
    )
    assert "There was no table public.none" in missing
