"""Make the database's index of the vault say what the files say.

    python -c "from app.memory_vault.rebuild_index import rebuild; rebuild()"

Every file is read and hashed; then one transaction adds, changes and removes the rows that differ.
So a second run changes nothing, a run that fails changes nothing, and readers see the old index or
the new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.memory_vault.storage import NotThere, Storage, storage
from app.settings import make_engine

_LARGEST_DOCUMENT = 1024 * 1024
_LARGEST_ID = 2**63
_FRESH = """
CREATE TEMPORARY TABLE fresh (LIKE vault_files INCLUDING DEFAULTS) ON COMMIT DROP
"""
_REMOVE = """
DELETE FROM vault_files v WHERE NOT EXISTS (SELECT FROM fresh f WHERE f.path = v.path)
"""
_UPSERT = """
INSERT INTO vault_files AS v SELECT * FROM fresh
ON CONFLICT (path) DO UPDATE SET folder = excluded.folder, size = excluded.size,
    sha256 = excluded.sha256, modified = excluded.modified, campaign_id = excluded.campaign_id
 WHERE (v.folder, v.size, v.sha256, v.modified, v.campaign_id) IS DISTINCT FROM
    (excluded.folder, excluded.size, excluded.sha256, excluded.modified, excluded.campaign_id)
RETURNING (v.xmax = 0) AS added
"""

Row = tuple[bytes, str, int, bytes, datetime, int | None]


@dataclass(frozen=True, slots=True)
class Counts:
    """What a rebuild did: rows in the index now, and how many of them it touched."""

    files: int
    added: int
    changed: int
    removed: int


def rebuild(vault: Storage = storage) -> Counts:
    """Rebuild the index from the files of the vault; return what changed."""
    engine = make_engine()
    try:
        with engine.begin() as connection:
            cursor = connection.connection.cursor()
            # Two rebuilds at once would each remove what the other found.
            cursor.execute("LOCK TABLE vault_files IN SHARE ROW EXCLUSIVE MODE")
            cursor.execute(_FRESH)
            files = _copy(cursor, rows(vault))
            cursor.execute(_REMOVE)
            removed = cursor.rowcount
            cursor.execute(_UPSERT)
            added = [new for (new,) in cursor.fetchall()]
            return Counts(files, added.count(True), added.count(False), removed)
    finally:
        engine.dispose()


def rows(vault: Storage) -> Iterator[Row]:
    """The index as it should be, in the order of the paths."""
    for name in vault.list_files():
        try:
            facts, digest = vault.measure(name)
            campaign = _campaign_of(vault, name, facts.size)
        except NotThere:  # deleted since it was listed
            continue
        folder = name.partition("/")[0]
        yield os.fsencode(name), folder, facts.size, digest, facts.modified, campaign


def _copy(cursor: Any, found: Iterator[Row]) -> int:
    files = 0
    with cursor.copy("COPY fresh FROM STDIN") as copy:
        for row in found:
            copy.write_row(row)
            files += 1
    return files


def _campaign_of(vault: Storage, name: str, size: int) -> int | None:
    """The campaign that a document belongs to, when it says one."""
    if not name.endswith(".json") or size > _LARGEST_DOCUMENT:
        return None
    try:
        document = json.loads(vault.read(name))
    except (ValueError, RecursionError):
        return None
    found = document.get("campaign_id") if isinstance(document, dict) else None
    whole = isinstance(found, int) and not isinstance(found, bool)
    return found if whole and -_LARGEST_ID <= found < _LARGEST_ID else None


if __name__ == "__main__":
    print(rebuild())
