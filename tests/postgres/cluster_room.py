"""A cluster that archives into a repository, with sources over it, and everything done by commands."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from postgres.wal.room import WalRoom, program, ready, until
from strongroom.postgres.embedded import EmbeddedServer

_CONFIG = """\
[repository]
url = "{room.repository}"
key_file = "{room.key}"

[source.db]
type = "postgres"
dsn = "host={host} port={port} user={user} dbname=postgres"
password = "file:{room.root}/password"
method = "physical"
via = "local"

[source.far]
type = "postgres"
dsn = "host={host} port={port} user={user} dbname=postgres"
password = "file:{room.root}/password"
method = "physical"
via = "stream"
"""
SETTINGS = {"wal_level": "replica", "max_wal_senders": "5", "full_page_writes": "on"}


class ClusterRoom:
    """`db` is the cluster on its own host, `far` the same by stream."""

    def __init__(self, room: WalRoom, server: EmbeddedServer) -> None:
        self.room, self.server, self.root = room, server, room.root
        parts = {key: str(value) for key, value in conninfo_to_dict(server.dsn).items()}
        password = room.root / "password"
        password.write_text(parts.pop("password"))
        password.chmod(0o600)
        os.chown(password, room.account.uid, room.account.gid)
        self.environ = {
            "XDG_CACHE_HOME": str(room.root / "cache"),
            "STRONGROOM_PROGRAM": program(),
            "STRONGROOM_WAL_SOCKET": str(room.socket),
        }
        room.config.write_text(_CONFIG.format(room=room, **parts))
        room.daemon()

    def run(self, *words: str, status: int = 0, env: dict[str, str] | None = None) -> str:
        """Run a command as the server's account; what it said."""
        _, stdout, stderr = self.room.run(
            *words, "--config", str(self.room.config), status=status,
            env=self.environ | (env or {}),
        )  # fmt: skip
        return stdout.decode() + stderr

    def json(self, *words: str, status: int = 0) -> dict[str, Any]:
        """The same with --json: the document, or the result."""
        words = (*words, "--config", str(self.room.config), "--json")
        said = self.room.run(*words, status=status, env=self.environ)[1]
        whole = said if said.startswith(b"{\n") else said.splitlines()[-1]
        found: dict[str, Any] = json.loads(whole)
        return found

    def snapshots(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.json("list")["snapshots"]
        return found

    def sql(self, *statements: str) -> Any:
        """The first row of the last statement, if it has any."""
        with self.server.connect() as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
            return cursor.fetchone() if cursor.description else None

    def now(self) -> str:
        moment: datetime = self.sql("SELECT clock_timestamp()")[0]
        return moment.isoformat()

    def archived(self) -> str:
        """End the segment and wait until everything is archived; its name."""
        name: str = self.sql("SELECT pg_walfile_name(pg_switch_wal())")[0]
        until(lambda: not ready(self.server))
        return name

    def object_of(self, name: str) -> Path:
        """Where a file of the WAL rests."""
        (found,) = self.room.repository.rglob(name)
        return found

    def folder(self, name: str) -> Path:
        return self.root / name

    @contextlib.contextmanager
    def opened(self, data: Path, *, recovers: bool = True, **settings: str) -> Iterator[Restored]:
        """A server on a restored directory, as its owner starts it."""
        with Restored(self.server, data, settings) as restored:
            if recovers:
                with restored.connect() as connection:
                    until(
                        lambda: (
                            connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
                        )
                    )
            yield restored


class Restored(EmbeddedServer):
    """A server on a directory that was restored, with the settings that came with it."""

    def __init__(self, original: EmbeddedServer, data: Path, settings: dict[str, str]) -> None:
        super().__init__(original.installation, tcp=True)
        self._password = original._password
        self._initialised = True
        self._data, self._more = data, settings

    @property
    def data_directory(self) -> str:
        return str(self._data)

    def _arguments(self) -> list[str]:
        words = {
            "unix_socket_directories": self.socket_directory,
            "port": str(self.port),
            "fsync": "off",
            **self._more,
        }
        return [word for key, value in words.items() for word in ("-c", f"{key}={value}")]


def cluster_room(major: int, *initdb: str, **settings: str) -> Iterator[ClusterRoom]:
    """One, for a fixture."""
    room = WalRoom()
    try:
        room.init()
        with room.server(major, initdb=initdb, **SETTINGS | settings) as server:
            yield ClusterRoom(room, server)
    finally:
        room.close()
