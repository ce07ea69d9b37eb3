"""What the simulations share."""

from __future__ import annotations

import functools

import pytest

from strongroom.format import keyset


@pytest.fixture
def verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signature that held over the same bytes is not reckoned again: a year in seconds."""
    monkeypatch.setattr(keyset, "_verify", functools.lru_cache(100_000)(keyset._verify))
