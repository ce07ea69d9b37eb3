"""Traps that belong to no other file of tests."""

from __future__ import annotations

import json

import pytest

import rooms
from strongroom.errors import ConfigError
from strongroom.format.record import canonical
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.server import Conninfo, connect
from strongroom.repository import identity
from strongroom.storage.memory import MemoryStorage

from .conftest import Databases, quote


def test_trap_25_names_are_postgresqls_own(server16: EmbeddedServer, databases: Databases) -> None:
    """A function of somebody else's that is found before PostgreSQL's would run with our rights."""
    name = databases.make(
        server16,
        sql="CREATE SCHEMA mine; CREATE FUNCTION mine.pg_is_in_recovery() RETURNS bool"
        " LANGUAGE sql AS 'SELECT NULL::bool'",
    )
    with server16.connect() as connection:
        connection.execute(f"ALTER DATABASE {quote(name)} SET search_path = mine, pg_catalog")
    with server16.connect(name) as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (None,)
    dsn = server16.dsn_for(name)
    for asked in (dsn, f"{dsn} options='-c search_path=mine,pg_catalog'"):
        with connect(Conninfo.parse(asked)) as connection:
            assert connection.execute("SHOW search_path").fetchone() == ("pg_catalog",)
            assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)


def test_trap_68_a_newer_repository_is_refused() -> None:
    """Whatever else it says, and whoever signed it: nothing of it is guessed at."""
    storage = MemoryStorage()
    rooms.found(storage)
    body = json.loads(storage.objects[identity.NAME])
    assert identity.load(storage)
    storage.objects[identity.NAME] = canonical(body | {"format": 2, "more": "of it"})
    with pytest.raises(ConfigError, match="format 2"):
        identity.load(storage)
