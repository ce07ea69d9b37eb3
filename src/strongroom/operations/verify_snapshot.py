"""Read one snapshot whole and open every chunk of it: what does not verify is named."""

from __future__ import annotations

from strongroom.errors import Damaged
from strongroom.progress import Progress
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.ports import SnapshotReader
from strongroom.rules.sizes import show_size

_NAMED = 5


def verify_snapshot(reader: SnapshotReader, snapshot: Snapshot, progress: Progress) -> str:
    """Read everything of a snapshot; Damaged with names when something does not verify."""
    progress.phase("reading and verifying the backup")
    progress.plan(size=snapshot.size, files=snapshot.files)
    damaged = []
    entries = 0
    for entry, pieces in reader.contents(reader.entries()):
        entries += 1
        try:
            for _, piece in pieces:
                progress.advance(size=len(piece))
        except Damaged:
            damaged.append(repr(entry.path.decode("utf-8", "replace")))
        progress.advance(files=1)
    if damaged:
        more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
        raise Damaged(
            f"The backup {snapshot.id[:12]} is damaged in {', '.join(damaged[:_NAMED])}{more}.",
            do="Choose another backup of `strongroom list` with --backup and --start-over.",
        )
    return f"{entries:,} entries, {show_size(snapshot.size)} read and verified"
