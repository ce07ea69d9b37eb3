"""How long restores took here, kept beside the caches: what the next one may be expected to take."""

from __future__ import annotations

import json
import os
from contextlib import suppress

from strongroom.cli.desk import Desk

_FILE = "restores.jsonl"
_KEPT = 20
_LEAST = 1 << 20  # bytes: a smaller restore measures its own beginning and end only


def remember(desk: Desk, source: str, size: int, seconds: float) -> None:
    """Note a restore that came to its end; losing the note costs an estimate only."""
    if size < _LEAST or seconds <= 0:
        return
    with suppress(OSError):
        os.makedirs(desk.cache_dir, mode=0o700, exist_ok=True)
        rows = [*_rows(desk), {"source": source, "size": size, "seconds": round(seconds, 3)}]
        path = os.path.join(desk.cache_dir, _FILE)
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows[-_KEPT:])
        os.replace(path + ".new", path)


def expected(desk: Desk, source: str, size: int) -> float | None:
    """Seconds that so many bytes take at the rate of the slowest of the last restores measured:
    this source's where there are any."""
    rows = _rows(desk)
    mine = [row for row in rows if row["source"] == source] or rows
    rates = [row["size"] / row["seconds"] for row in mine[-3:]]
    return size / min(rates) if rates else None


def _rows(desk: Desk) -> list[dict]:  # type: ignore[type-arg]
    try:
        with open(os.path.join(desk.cache_dir, _FILE), encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return [row for row in rows if row["seconds"] > 0 and row["size"] > 0 and row["source"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


__all__ = ["expected", "remember"]
