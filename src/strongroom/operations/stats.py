"""How much rests in a repository, and what deduplication and compression made of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from strongroom.format import walfile
from strongroom.operations.browse import list_snapshots
from strongroom.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts, and sizes in bytes. `source_size` sums what every snapshot holds, as it was at the
    source; `unique_size` is what of it was new when it was stored; `stored_size` what rests, of
    which `wal_size` are `wal_files` files of the WAL."""

    objects: dict[str, int]
    sizes: dict[str, int]
    snapshots: int
    source_size: int
    unique_size: int
    stored_size: int
    wal_files: int
    wal_size: int
    free: int | None


def stats(repository: Repository) -> Stats:
    """Count everything once; needs no key that opens data."""
    objects: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    wal_files = wal_size = 0
    for entry in repository.storage.list(""):
        folder = entry.name.split("/", 1)[0]
        objects[folder] += 1
        sizes[folder] += entry.size
        if folder == "wal" and _is_wal_file(entry.name):
            wal_files += 1
            wal_size += entry.size
    snapshots = list_snapshots(repository).snapshots
    return Stats(
        objects=dict(sorted(objects.items())),
        sizes=dict(sorted(sizes.items())),
        snapshots=len(snapshots),
        source_size=sum(snapshot.size for snapshot in snapshots),
        unique_size=sum(snapshot.new_size for snapshot in snapshots),
        stored_size=sum(sizes.values()),
        wal_files=wal_files,
        wal_size=wal_size,
        free=repository.storage.free_space(),
    )


def _is_wal_file(name: str) -> bool:
    try:
        return walfile.parse_object(name).sort == "file"
    except ValueError:
        return False
