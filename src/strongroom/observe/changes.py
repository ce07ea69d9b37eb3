"""Whether a configuration is another one than when this machine last ran with it.

Rule: no value is kept, here or in the log, only hashes of them; of a secret's reference only its kind.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

_NAMED = 20


@dataclass(frozen=True, slots=True)
class Configured:
    """A configuration: the file it is in, and by key a hash of each value."""

    path: str
    values: Mapping[str, str]

    @property
    def hash(self) -> str:
        """One hash for all of it, 32 hex."""
        return digest(json.dumps(dict(self.values), sort_keys=True))


def digest(text: str) -> str:
    """Hash of a text, 32 hex."""
    return blake3(b"strongroom configuration\n" + text.encode()).hexdigest(16)


@dataclass(frozen=True, slots=True)
class Change:
    """A configuration that was not seen before, or is not what it was."""

    place: str
    now: Configured
    before: Configured | None

    @staticmethod
    def since(folder: str, configured: Configured) -> Change | None:
        """Compare with what was noted below `folder`; None where nothing changed."""
        place = os.path.join(folder, f"configuration-{digest(configured.path)[:16]}.json")
        if not os.access(folder, os.W_OK):
            return None  # what was told could not be noted, and would be told by every run
        before = None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(place) as file:
            before = Configured(configured.path, dict(json.load(file)["values"]))
        if before is not None and before.values == configured.values:
            return None
        return Change(place, configured, before)

    @property
    def keys(self) -> list[str]:
        """The keys whose values are others, came or went."""
        if self.before is None:
            return []
        old, new = self.before.values, self.now.values
        return sorted(key for key in {*old, *new} if old.get(key) != new.get(key))

    @property
    def what(self) -> str:
        """The change in a line."""
        if self.before is None:
            return f"the configuration {self.now.path} is in use on this host"
        return f"the configuration {self.now.path} changed: {', '.join(self.keys[:_NAMED])}"

    @property
    def detail(self) -> dict[str, Any]:
        """The change as JSON values."""
        return {
            "path": self.now.path,
            "hash": self.now.hash,
            "before": "" if self.before is None else self.before.hash,
            "changed": self.keys,
        }

    def noted(self) -> None:
        """It is in the log: do not tell it again."""
        half = f"{self.place}.{os.getpid()}.part"
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self.place), mode=0o700, exist_ok=True)
            with open(half, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                json.dump({"version": 1, "values": dict(self.now.values)}, file)
            os.replace(half, self.place)


__all__ = ["Change", "Configured", "digest"]
