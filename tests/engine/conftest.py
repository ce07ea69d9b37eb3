"""The engine's rooms: the same tests over memory and over a local directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from strongroom.storage.base import Storage
from strongroom.storage.local import LocalStorage
from strongroom.storage.memory import MemoryStorage


@pytest.fixture(params=["memory", "local"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage of each kind that needs no server."""
    return MemoryStorage() if request.param == "memory" else LocalStorage(tmp_path / "store")
