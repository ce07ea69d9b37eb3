"""From the spool into the repository, beside the receiving: nobody who waits for a flush waits for it.

Whole segments go oldest first, several at a time; when none is left, what came of the unfinished one
goes as a part, now and then, so that the loss of this machine loses little. The spool is the
queue: what is not in the repository is still on disk, also after a crash.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from strongroom.errors import StorageFull, StorageUnreachable, StrongroomError
from strongroom.format.wal import SegmentName, lsn_text
from strongroom.format.walfile import Part
from strongroom.postgres.wal.push import Pusher
from strongroom.postgres.wal.records import scan_segment
from strongroom.postgres.wal.spool import Kept, Spool, Tape, durable_end, sync_folder
from strongroom.repository.wal import WalStore

_FIRST_PAUSE, _LAST_PAUSE = 0.5, 30.0
Tell = Callable[..., None]
"""tell(kind, text, **facts): what happened, for a person and for a program."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Whose log it is."""

    system_id: int
    wal_segment_size: int


@dataclass(slots=True)
class _Current:
    """The segment that is being received; up to `sent` bytes of it are in the repository."""

    system_id: int
    tape: Tape
    segment: SegmentName | None = None
    sent: int = 0


class Shipper:
    """Puts what a spool holds into the repository, in threads of its own, until it is closed.

    `every` is the time between two parts, in seconds. `fault` is what ended it.
    """

    def __init__(
        self,
        spool: Spool,
        store: WalStore,
        source: str,
        *,
        every: float,
        threads: int,
        tell: Tell,
    ) -> None:
        self._spool, self._store, self._source = spool, store, source
        self._pusher = Pusher(store, lasts=True)
        self._every, self._tell = every, tell
        self._changed = threading.Condition()
        self._waiting: list[Kept] = []
        self._busy: list[Kept] = []
        self._put: list[Kept] = []
        self._current: _Current | None = None
        self._last_part = 0.0
        self._parts_of: set[tuple[int, str]] = set()
        self._closing = self._draining = self._hurry = False
        self._pause = self._resume = 0.0
        self._abandoned: set[str] = set()
        self.away: StrongroomError | None = None
        self.fault: StrongroomError | None = None
        for one in spool.kept():
            if one.size:
                self._waiting.append(one)
                self._parts_of.add((one.system_id, str(one.segment)))
        self._threads = [
            threading.Thread(target=self._work, name=f"wal-ship-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    # -- what the receiver says and asks ---------------------------------------------------

    def receiving(self, system_id: int, tape: Tape | None) -> None:
        """From now on this is being written: it is no whole file, nor one that was left behind."""
        with self._changed:
            self._current = None
            if tape is not None:
                self._take_out(system_id, tape.segment)
                self._current = _Current(system_id, tape, tape.segment)
            self._changed.notify_all()

    def left_behind(self, one: Kept) -> None:
        """A segment that never gets whole: its timeline was left, or the log behind it is lost."""
        with self._changed:
            self._abandoned.add(one.path)
            if all(each.path != one.path for each in self._waiting):
                self._waiting.append(one)
                self._waiting.sort(key=lambda each: (each.system_id, each.segment))
            self._changed.notify_all()

    def whole(self, system_id: int, segment: SegmentName) -> None:
        """A segment is durable in the spool."""
        path = os.path.join(self._spool.folder(system_id), str(segment))
        with self._changed:
            self._waiting.append(Kept(system_id, segment, True, path, segment.size))
            self._changed.notify_all()

    def hurry(self) -> None:
        """Do not wait with the next part."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()

    def held(self) -> int:
        """Bytes that are in the spool alone."""
        with self._changed:
            return sum(one.size for one in (*self._waiting, *self._busy))

    def durable(self) -> int:
        """Up to where the log that is being received is in the repository."""
        with self._changed:
            current = self._current
            if current is None:
                return 0
            left = [
                one.segment.start
                for one in (*self._waiting, *self._busy)
                if one.system_id == current.system_id and one.whole
            ]
            if left:
                return min(left)
            segment = current.tape.segment
            return segment.start + (current.sent if segment == current.segment else 0)

    def drain(self, stop: Callable[[], bool]) -> StrongroomError | None:
        """Put everything, the last part too; the fault that keeps it from being put."""
        with self._changed:
            self._draining, self._pause = True, 0.0
            self.away = None
            self._changed.notify_all()
            while self.fault is None and self.away is None and not self._empty() and not stop():
                self._changed.wait(0.2)
            return self.fault or self.away

    def close(self, timeout: float) -> None:
        """Finish what is under way, for so many seconds, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        until = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    # -- the threads -----------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._next()) is not None:
            done = False
            try:
                job()
                done = True
            except (StorageUnreachable, StorageFull) as fault:
                self._is_away(fault)
            except StrongroomError as fault:
                self._failed(fault)
            except Exception as fault:
                self._failed(StrongroomError(f"Unforeseen: {type(fault).__name__}: {fault}"))
            if done:
                self._is_back()

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            while True:
                if self.fault is not None or self._closing:
                    return None
                if not self._pause or time.monotonic() >= self._resume:
                    if self._waiting:
                        one = self._waiting.pop(0)
                        self._busy.append(one)
                        return lambda: self._put_one(one)
                    if not self._busy and (job := self._part_job()) is not None:
                        return job
                self._changed.wait(0.1 if self._pause else min(1.0, max(0.05, self._every / 4)))

    def _part_job(self) -> Callable[[], None] | None:
        """What came of the unfinished segment since the last part, when it is time."""
        current = self._current
        if current is None:
            return None
        segment, flushed = current.tape.segment, current.tape.flushed
        if not segment.start <= flushed < segment.end:  # it is just becoming whole
            return None
        if segment != current.segment:
            current.segment, current.sent = segment, 0
        end = flushed - segment.start
        due = time.monotonic() >= self._last_part + self._every
        if end <= current.sent or not (due or self._hurry or self._draining):
            return None
        one = Kept(current.system_id, segment, False, current.tape.path, end)
        self._busy.append(one)
        return lambda: self._put_part(one, current)

    def _put_one(self, one: Kept) -> None:
        try:
            if one.whole:
                self._put_whole(one)
            else:
                self._put_left(one)
        except BaseException:
            with self._changed:
                self._busy.remove(one)
                self._waiting.insert(0, one)
                self._waiting.sort(key=lambda each: (each.system_id, each.segment))
            raise
        with self._changed:
            self._busy.remove(one)
            if one.whole:
                self._put.append(one)
            self._changed.notify_all()
        self._sweep()

    def _put_whole(self, one: Kept) -> None:
        name = str(one.segment)
        pushed = self._pusher.put(
            Cluster(one.system_id, one.segment.size),
            name,
            memoryview(one.read()),
            self._source,
            earlier=lambda segment: self._spool.carry(one.system_id, segment),
        )
        if (one.system_id, name) in self._parts_of:
            with suppress(StrongroomError):  # they cost room, and no more
                self._store.drop_parts(one.system_id, name)
            self._parts_of.discard((one.system_id, name))
        self._tell("segment", f"{name} is in the repository", name=name, put=str(pushed.put))

    def _put_left(self, one: Kept) -> None:
        """What came of a segment before goes as one part, as far as it proves itself; where it
        never gets whole, that leaves the spool."""
        if self._store.head(one.system_id, str(one.segment)) is None:
            before = self._spool.carry(one.system_id, one.segment)
            size = durable_end(one.read()[: one.size], one.segment, before)
            self._store_part(replace(one, size=size), 0)
        if one.path in self._abandoned:
            with suppress(OSError):
                os.unlink(one.path)
                sync_folder(os.path.dirname(one.path))

    def _put_part(self, one: Kept, current: _Current) -> None:
        try:
            sent = current.sent
            self._store_part(one, sent)
        except StrongroomError:
            if not os.path.exists(one.path):  # it became whole meanwhile, and goes as that
                return
            raise
        finally:
            with self._changed:
                self._busy.remove(one)
        with self._changed:
            if current.segment == one.segment:
                current.sent = one.size
            self._last_part, self._hurry = time.monotonic(), False
            self._changed.notify_all()

    def _store_part(self, one: Kept, sent: int) -> None:
        data = one.read()[: one.size]
        if len(data) <= sent:
            return
        self._pusher.check_source(self._source, one.system_id)
        before = self._spool.carry(one.system_id, one.segment)
        facts, _ = scan_segment(data.ljust(one.segment.size, b"\0"), one.segment, before)
        part = Part(str(one.segment), sent, len(data))
        self._parts_of.add((one.system_id, part.segment))
        self._store.put_part(one.system_id, part, memoryview(data)[sent:], facts=facts)
        until = lsn_text(one.segment.start + len(data))
        self._tell("part", f"{part.segment} up to {until} is in the repository", part=str(part))

    def _sweep(self) -> None:
        """Remove what is in the repository, but for the last: the next one may need what it left."""
        with self._changed:
            left = (*self._waiting, *self._busy)
            needed = {(one.system_id, one.segment.number - 1) for one in left}
            newest = max((one.segment for one in self._put), default=None)
            gone = [
                one
                for one in self._put
                if one.segment != newest and (one.system_id, one.segment.number) not in needed
            ]
            self._put = [one for one in self._put if one not in gone]
        for one in gone:
            with suppress(OSError):
                os.unlink(one.path)

    # -- faults ----------------------------------------------------------------------------

    def _is_away(self, fault: StrongroomError) -> None:
        with self._changed:
            first = self.away is None and not self._pause
            self._pause = min(_LAST_PAUSE, (self._pause or _FIRST_PAUSE / 2) * 2)
            self._resume = time.monotonic() + self._pause
            self.away = fault
            self._changed.notify_all()
        if first:
            self._tell("away", f"the repository cannot be reached, the spool fills: {fault.what}")

    def _is_back(self) -> None:
        with self._changed:
            was, self._pause, self.away = self.away, 0.0, None
        if was is not None:
            self._tell("back", "the repository can be reached again")

    def _failed(self, fault: StrongroomError) -> None:
        with self._changed:
            self.fault = self.fault or fault
            self._changed.notify_all()

    # -- within ----------------------------------------------------------------------------

    def _empty(self) -> bool:
        if self._waiting or self._busy:
            return False
        current = self._current
        if current is None:
            return True
        end = current.tape.flushed - current.tape.segment.start
        return end <= (current.sent if current.segment == current.tape.segment else 0)

    def _take_out(self, system_id: int, segment: SegmentName) -> None:
        self._waiting = [
            one
            for one in self._waiting
            if one.whole or one.system_id != system_id or one.segment != segment
        ]


__all__ = ["Cluster", "Shipper", "Tell"]
