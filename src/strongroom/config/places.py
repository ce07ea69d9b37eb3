"""Where a configuration is looked for. Light: `wal push` asks here before it imports anything."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_NAME = "strongroom.toml"


def search_path(environ: Mapping[str, str]) -> list[str]:
    """Where a file is looked for when none is named."""
    home = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME") or "/", ".config")
    return [
        FILE_NAME,
        os.path.join(home, "strongroom", FILE_NAME),
        os.path.join("/etc/strongroom", FILE_NAME),
    ]
