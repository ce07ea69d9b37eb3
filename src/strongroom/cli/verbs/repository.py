"""repository stats."""

from __future__ import annotations

from dataclasses import asdict

from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.rules.sizes import show_size

_DEFAULT = Everywhere()


def stats(*, everywhere: Everywhere = _DEFAULT) -> int:
    """Say how much rests in the repository and what deduplication saved."""
    from strongroom.operations.stats import stats as count  # noqa: PLC0415 -- numpy behind it

    desk = Desk(everywhere)
    with desk.repository() as repository:
        found = count(repository)
        identity = repository.identity
        url = repository.storage.url
    body = {"repository": {"id": identity.id.hex(), "url": url}, **asdict(found)}
    desk.output.document("stats", body)
    rows = [
        (folder, f"{found.objects[folder]:,}", show_size(found.sizes[folder]))
        for folder in found.objects
    ]
    desk.output.table(("OBJECTS", "COUNT", "SIZE"), rows, right=" rr")
    stored = found.stored_size - found.wal_size
    ratio = found.source_size / stored if stored else 0.0
    desk.output.line()
    desk.output.line(
        f"{found.snapshots} backups hold {show_size(found.source_size)}; new of it "
        f"{show_size(found.unique_size)}; stored {show_size(stored)} ({ratio:.1f} : 1)"
    )
    if found.wal_files:
        desk.output.line(f"WAL: {found.wal_files:,} files, stored {show_size(found.wal_size)}")
    if found.free is not None:
        desk.output.line(f"Free in the storage: {show_size(found.free)}")
    return 0
