"""What every test may ask for. Rule: only plugins are named here; fixtures live in them."""

from __future__ import annotations

import pytest

pytest_plugins = ["servers"]

SWEEP_SECONDS = 7200


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A sweep is long by design: the time that ends a hanging test would end it without a word."""
    for item in items:
        if item.get_closest_marker("sweep") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SWEEP_SECONDS))
