"""The WAL that a streamed backup needs, into the archive of WAL, by the same connection.

Whole segments only, as in `wal_copy`. On a primary the end of the backup has ended the last segment;
a standby cannot end one, so that its primary is waited for, for a while, and what is missing then is
told as awaited (trap 20): archiving brings it, and until then the backup is not good.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Protocol

from strongroom.errors import StrongroomError
from strongroom.format.wal import SegmentName, history_name, moment, segments
from strongroom.postgres.physical.control import ControlFile
from strongroom.postgres.physical.wal_copy import WalCopied
from strongroom.postgres.replication import UNDEFINED_FILE, Replication, ServerError, WalData
from strongroom.progress import Progress

_LOOK = 1.0  # seconds between two signs of life of ours
_ENOUGH = 30.0  # seconds without anything at all, for what is there already


class StreamedWal(Protocol):
    """Where the WAL of a source rests: what a streamed backup asks of it."""

    def expect(self, system_id: int) -> None:
        """Refused when what rests there is another system's."""

    def has(self, system_id: int, name: str) -> bool:
        """Is a file of that name there?"""

    def put(self, control: ControlFile, name: str, data: memoryview) -> None:
        """Take a file under its name; durable on return. The same content again is fine; another
        content raises."""


class WalStream:
    """Fetches the segments of one backup. `slot` keeps them on the server until they are here."""

    def __init__(
        self,
        replication: Replication,
        archive: StreamedWal | None,
        control: ControlFile,
        *,
        slot: str | None,
        standby: bool,
        patience: float,
        progress: Progress,
    ) -> None:
        self._replication, self._archive, self._control = replication, archive, control
        self._slot, self._standby = slot, standby
        self._patience, self._progress = patience, progress
        self._clock: datetime | None = None

    @property
    def clock(self) -> datetime:
        """The server's, when it began to send: the end of the backup was before."""
        if self._clock is None:
            raise StrongroomError("The server does not say what time it is.")
        return self._clock

    def run(self, timeline: int, start: int, stop: int) -> WalCopied:
        """Fetch what is missing from `start` up to `stop`; StrongroomError when it is lost."""
        found, archive = WalCopied(), self._archive
        size, system = self._control.wal_segment_size, self._control.system_id
        wanted = list(segments(timeline, start, stop, size))
        missing: list[SegmentName] = []
        if archive is not None:
            if timeline > 1:
                self._history(timeline, found)
            missing = [one for one in wanted if not archive.has(system, str(one))]
            found.there += [str(one) for one in wanted if one not in missing]
        first = missing[0] if missing else wanted[-1]
        try:
            self._replication.start(first.start, timeline, self._slot)
            self._fetch(first, missing, found)
        except ServerError as fault:
            self._gone(fault, missing, found)
            if self._clock is None:
                self._ask_clock()
        return found

    def _fetch(self, first: SegmentName, missing: list[SegmentName], found: WalCopied) -> None:
        """Take the log as it comes, from the beginning of `first` to the end of the last one."""
        segment, at = first, 0
        room = memoryview(bytearray(segment.size))
        wanted = {str(one) for one in missing}
        began = heard = time.monotonic()
        while wanted or self._clock is None:
            piece = self._replication.wal(_LOOK)
            if piece is None:  # the timeline ended here: its last segment is another one's
                self._replication.result()  # raises the reason, if it is another one
                break
            heard = self._heard(piece, heard)
            data = piece.data
            if data is not None and piece.start != segment.start + at:
                raise StrongroomError("The server sent a piece of the log that was not asked for.")
            while data:
                part, data = data[: segment.size - at], data[segment.size - at :]
                room[at : at + len(part)] = part
                at += len(part)
                if at == segment.size:
                    self._whole(segment, room, wanted, found)
                    segment, at = segment.next(), 0
            if piece.reply or data is None:
                self._replication.report(segment.start + at, segment.start)
            if data is None and self._enough(segment, wanted, began, heard):
                break
        found.awaited += sorted(wanted)

    def _ask_clock(self) -> None:
        """What was archived may be gone from the server; where it writes now it sends, and its time.

        Nothing is reported as written: nothing of that is kept.
        """
        self._replication.drain()
        system = self._replication.identify()
        try:
            self._replication.start(system.position, system.timeline)
        except ServerError as fault:
            raise StrongroomError(f"The server does not send its log: {fault.text}.") from None
        self._replication.report(0, 0, reply=True)
        began = time.monotonic()
        while self._clock is None and time.monotonic() - began < _ENOUGH:
            piece = self._replication.wal(_LOOK)
            if piece is None:
                break
            self._heard(piece, began)

    def _heard(self, piece: WalData, before: float) -> float:
        if not piece.sent:
            return before
        if self._clock is None:
            self._clock = moment(piece.sent)
        return time.monotonic()

    def _enough(self, segment: SegmentName, wanted: set[str], began: float, heard: float) -> bool:
        """Nothing came just now. Is there anything to wait for?"""
        now = time.monotonic()
        if self._standby and wanted:
            self._progress.phase(f"waiting for the primary to end WAL segment {segment}")
            return now - began > self._patience
        return now - heard > _ENOUGH

    def _whole(
        self, segment: SegmentName, room: memoryview, wanted: set[str], found: WalCopied
    ) -> None:
        name = str(segment)
        if name in wanted and self._archive is not None:
            self._archive.put(self._control, name, room)
            found.copied.append(name)
            wanted.discard(name)
        self._replication.report(segment.end, segment.end)

    def _history(self, timeline: int, found: WalCopied) -> None:
        assert self._archive is not None
        name = history_name(timeline)
        if self._archive.has(self._control.system_id, name):
            found.there.append(name)
            return
        try:
            told, content = self._replication.history(timeline)
        except ServerError as fault:
            raise StrongroomError(
                f"The server does not give {name}, which the backup needs: {fault.text}."
            ) from None
        if told != name:
            raise StrongroomError(f"The server gave {told!r} for {name}.")
        self._archive.put(self._control, name, memoryview(content))
        found.copied.append(name)

    def _gone(self, fault: ServerError, missing: list[SegmentName], found: WalCopied) -> None:
        """The log cannot be had. Was it archived in the meantime?"""
        system = self._control.system_id
        left = [one for one in missing if str(one) not in found.copied]
        lost = [one for one in left if not (self._archive and self._archive.has(system, str(one)))]
        if lost:
            why = "" if fault.state == UNDEFINED_FILE else f" ({fault.text})"
            raise StrongroomError(
                f"The WAL segment {lost[0]}, which the backup needs, is neither on the server any"
                f" more nor in the archive{why}.",
                do="Leave a replication slot free (max_replication_slots), raise wal_keep_size, or"
                " set archiving up; then run the same command again.",
            )
        found.there += [str(one) for one in left]


__all__ = ["StreamedWal", "WalStream"]
