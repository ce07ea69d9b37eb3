"""The example platform as its users have it: its own commands, on an embedded server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from strongroom.errors import StrongroomError
from strongroom.postgres.embedded import EmbeddedServer

ROOT = Path(__file__).resolve().parents[2]
PLATFORM = ROOT / "examples" / "stakazo"
BACKEND = PLATFORM / "backend"
_numbers = count(1)


@dataclass
class House:
    """One database and one vault, and the platform's commands on them."""

    server: EmbeddedServer
    database: str
    vault: Path

    @property
    def environ(self) -> dict[str, str]:
        parts = conninfo_to_dict(self.server.dsn_for(self.database))
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.vault.parent),
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "DB_HOST": str(parts["host"]),
            "DB_PORT": str(parts["port"]),
            "DB_USER": str(parts["user"]),
            "PGPASSWORD": str(parts["password"]),
            "DB_NAME": self.database,
            "VAULT_ROOT": str(self.vault),
        }

    def python(
        self, *words: str, status: int | None = 0, folder: Path = PLATFORM, **environ: str
    ) -> str:
        """Run Python with these words; its stdout."""
        done = subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env=self.environ | environ,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=200,
            check=False,
        )
        if status is not None:
            assert done.returncode == status, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def alembic(self, *words: str) -> str:
        return self.python("-m", "alembic", *words, folder=BACKEND)

    def seed(self, *words: str, status: int | None = 0) -> str:
        return self.python("seed.py", *words, status=status)

    def smoke(self, status: int = 0) -> str:
        return self.python("smoke_tests.py", status=status)

    def rebuild(self) -> str:
        text = "from app.memory_vault.rebuild_index import rebuild; print(rebuild())"
        return self.python("-c", text, folder=BACKEND).strip()

    def ask(self, query: str) -> list[tuple[object, ...]]:
        with self.server.connect(self.database) as connection:
            return list(connection.execute(query).fetchall())

    def do(self, statement: str) -> None:
        with self.server.connect(self.database) as connection:
            connection.execute(statement)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    pytest.importorskip("alembic", reason="alembic is not installed")
    try:
        server = EmbeddedServer(durable=False)
    except StrongroomError as missing:
        pytest.skip(f"no PostgreSQL server can be had: {missing.what}")
    with server:
        yield server


def new_house(server: EmbeddedServer, folder: Path, *, template: str | None = None) -> House:
    database = f"house_{next(_numbers)}"
    of = f" TEMPLATE {template}" if template else ""
    with server.connect() as connection:
        connection.execute(f"CREATE DATABASE {database}{of}")
    return House(server, database, folder / "vault")


@pytest.fixture
def house(server: EmbeddedServer, tmp_path: Path) -> House:
    """An empty database and no vault."""
    return new_house(server, tmp_path)


@pytest.fixture(scope="session")
def lived_in(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> House:
    """A house with everything in it; only copied, never changed."""
    house = new_house(server, tmp_path_factory.mktemp("lived-in"))
    house.seed("--migrate", "--size", "small")
    return house


@pytest.fixture
def copy(server: EmbeddedServer, tmp_path: Path, lived_in: House) -> House:
    """A copy of it to change."""
    copy = new_house(server, tmp_path, template=lived_in.database)
    subprocess.run(["cp", "-a", str(lived_in.vault), str(copy.vault)], check=True)
    return copy
