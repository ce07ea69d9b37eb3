"""What every fault is injected into: the engine with small windows, so that a day takes 0.3 s."""

from __future__ import annotations

import pytest

from strongroom.repository import session as sessions


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept buffers of 64 KiB: nothing here is larger."""
    monkeypatch.setattr(sessions, "WINDOW", 64 * 1024)
