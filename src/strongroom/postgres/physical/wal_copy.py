"""The WAL that a backup needs, into the archive of WAL, where it is not there yet.

Archiving may lag, or not be set up at all; a backup is good only with every segment from its start
to its stop. Whole segments only: one that is still being written has the name of the one that will
be archived and not its bytes (trap 20). On a primary pg_backup_stop has ended the last segment; a
standby must wait until its primary has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from strongroom.errors import NotFound, StrongroomError
from strongroom.format.wal import SegmentName, history_name, segments
from strongroom.progress import Progress

PAUSE = 0.5
PATIENCE = 60.0


class WalArchive(Protocol):
    """Where the WAL of a source rests: what a backup asks of it."""

    def expect(self, system_id: int) -> None:
        """Refused when what rests there is another system's."""

    def has(self, system_id: int, name: str) -> bool:
        """Is a file of that name there?"""

    def take(self, data_directory: bytes, name: str) -> None:
        """Take a file of pg_wal under its name; durable on return. The same content again is fine;
        another content raises, NotFound when the file is gone by now."""


@dataclass
class WalCopied:
    """What became of the segments: copied, there already, not to be had yet."""

    copied: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    awaited: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """For the notes of a snapshot."""
        return {
            "copied": len(self.copied),
            "there": len(self.there),
            "awaited": list(self.awaited),
        }


class WalCopy:
    """Copies the segments of one backup. `replayed` is how far a standby has come, None on a
    primary."""

    def __init__(
        self,
        archive: WalArchive,
        data_directory: bytes,
        *,
        system_id: int,
        segment_size: int,
        replayed: Callable[[], int] | None = None,
        patience: float = PATIENCE,
        progress: Progress,
    ) -> None:
        self._archive, self._directory, self._system_id = archive, data_directory, system_id
        self._segment_size, self._replayed = segment_size, replayed
        self._patience, self._progress = patience, progress

    def run(self, timeline: int, start: int, stop: int) -> WalCopied:
        """Copy what is missing from `start` up to `stop`; StrongroomError when it is lost."""
        found = WalCopied()
        if timeline > 1:
            self._small(history_name(timeline), found)
        until = time.monotonic() + self._patience
        for segment in segments(timeline, start, stop, self._segment_size):
            if self._archive.has(self._system_id, str(segment)):
                found.there.append(str(segment))
            elif not self._whole(segment, until):
                found.awaited.append(str(segment))
            else:
                self._segment(segment, found)
        return found

    def _whole(self, segment: SegmentName, until: float) -> bool:
        """Is the whole of a segment written? Waits for a standby's primary, for a while."""
        if self._replayed is None or self._replayed() >= segment.end:
            return True
        self._progress.phase(f"waiting for the primary to end WAL segment {segment}")
        while time.monotonic() < until:
            time.sleep(PAUSE)
            if self._replayed() >= segment.end:
                return True
            if self._archive.has(self._system_id, str(segment)):
                return True
        return False

    def _segment(self, segment: SegmentName, found: WalCopied) -> None:
        name = str(segment)
        if self._size(name) == segment.size and self._taken(name):
            found.copied.append(name)
        elif self._archive.has(self._system_id, name):
            found.there.append(name)  # archived in the meantime, and recycled by the server
        else:
            raise StrongroomError(
                f"The WAL segment {name}, which the backup needs, is neither in pg_wal any more"
                " nor in the archive.",
                do="Let the role make a replication slot (REPLICATION), raise wal_keep_size, or"
                " set archiving up; then run the same command again.",
            )

    def _small(self, name: str, found: WalCopied) -> None:
        if self._archive.has(self._system_id, name):
            found.there.append(name)
        elif self._size(name) and self._taken(name):
            found.copied.append(name)

    def _taken(self, name: str) -> bool:
        try:
            self._archive.take(self._directory, name)
        except NotFound:
            return False
        return True

    def _size(self, name: str) -> int:
        try:
            return os.stat(os.path.join(self._directory, b"pg_wal", name.encode("ascii"))).st_size
        except FileNotFoundError:
            return 0


__all__ = ["WalArchive", "WalCopied", "WalCopy"]
