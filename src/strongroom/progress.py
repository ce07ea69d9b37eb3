"""How work that can be slow tells of itself: counts, never text for a terminal.

The engine and the ends call; terminal, JSON and metrics listen. Methods may be
called from any thread and must return at once.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Listener to one run."""

    def plan(self, *, size: int = 0, files: int = 0) -> None:
        """Add to what the whole run is expected to move: bytes of source or target, files."""

    def advance(self, *, size: int = 0, files: int = 0, stored: int = 0) -> None:
        """Add to what is done: bytes of source or target, files, bytes put into storage."""

    def phase(self, name: str) -> None:
        """Say what the run does or waits for now, in a few words ("scanning", "post-data")."""

    def problem(self, path: bytes, reason: str) -> None:
        """Tell of a part that was skipped; the run goes on and ends incomplete."""


class Silent:
    """Progress that nobody listens to."""

    def plan(self, *, size: int = 0, files: int = 0) -> None:
        """Ignore."""

    def advance(self, *, size: int = 0, files: int = 0, stored: int = 0) -> None:
        """Ignore."""

    def phase(self, name: str) -> None:
        """Ignore."""

    def problem(self, path: bytes, reason: str) -> None:
        """Ignore."""
