"""`wal receive`: a server's log as it is written, by the replication protocol, through a slot.

Rule: what is reported as flushed is durable: in the spool, after its fsync returned, or in the
repository, where that was chosen. So a commit that waits for this receiver survives the server, and
a server that shuts down waits for nothing that has not happened. Log is taken without a hole, from
what is durable here and never from where the server happens to be; where the server has lost log
that is wanted, that is put on record for ever, and only then is it gone on behind it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from strongroom.errors import Busy, DatabaseUnreachable, Refused, StrongroomError
from strongroom.format.wal import (
    SegmentName,
    history_name,
    is_segment_size,
    lsn_text,
    parse_history,
    segments,
)
from strongroom.postgres.replication import (
    UNDEFINED_FILE,
    Replication,
    ServerError,
    StoppedWaiting,
    System,
    cannot_connect,
)
from strongroom.postgres.server import Conninfo
from strongroom.postgres.wal.push import Pusher
from strongroom.postgres.wal.resuming import (
    History,
    Place,
    first_missing,
    go_on,
    newest,
    overtaken,
)
from strongroom.postgres.wal.shipping import Cluster, Shipper, Tell
from strongroom.postgres.wal.slots import Slot, awaited, find_slot
from strongroom.postgres.wal.spool import Kept, NoRoom, Spool, Tape, durable_end
from strongroom.progress import Progress
from strongroom.repository.wal import WalListing, WalStore
from strongroom.rules.sizes import parse_size, show_size

UNDEFINED_OBJECT, IN_USE, NOT_READY = "42704", "55006", "55000"
_REPORT = 10.0  # seconds between two reports where nothing happens
_SILENCE = 30.0  # seconds after which a server is asked whether it is there
_LOST = 60.0  # seconds after which it is not
_BATCH = 4 << 20  # bytes that one fsync may cover
_SOON = 0.02  # seconds between two looks at what the repository has
_PAUSES = (0.2, 30.0)
_PATIENCE = 60.0  # seconds for a slot that a receiver before this one still holds
_PARTING = 2.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to receive. `confirm` is what a flush is: "spool" or "repository"; `stop_at` a position
    to end at; `every` seconds pass between two parts; `limit` is what the spool may hold, in bytes.
    """

    slot: str
    create_slot: bool = False
    confirm: str = "spool"
    every: float = 10.0
    limit: int = 4 << 30
    stop_at: int | None = None
    accept_timeline: bool = False
    threads: int = 3


@dataclass(slots=True)
class Received:
    """What came of a run."""

    system_id: int = 0
    timeline: int = 0
    position: int = 0
    size: int = 0
    gaps: list[tuple[int, int, int]] = field(default_factory=list)
    kept: int = 0  # bytes that are in the spool alone
    fault: StrongroomError | None = None  # why they are


class Receiver:
    """Receives the log of one source into one repository."""

    def __init__(
        self,
        source: str,
        conninfo: Conninfo,
        store: WalStore,
        spool: Spool,
        wanted: Wanted,
        *,
        tell: Tell,
        progress: Progress,
        stop: Callable[[], bool],
    ) -> None:
        self._source, self._conninfo, self._store = source, _failover(conninfo), store
        self._spool, self._wanted, self._tell = spool, wanted, tell
        self._progress, self._stop = progress, stop
        self._name = conninfo.parameters.get("application_name", wanted.slot)
        self._pusher = Pusher(store)
        self._shipper = Shipper(
            spool,
            store,
            source,
            every=0.0 if wanted.confirm == "repository" else wanted.every,
            threads=wanted.threads,
            tell=tell,
        )
        self._tape: Tape | None = None
        self._done = Received()
        self._heard = self._reported = 0.0
        self._said = 0

    def run(self) -> Received:
        """Receive until told to stop, or to where it was to end."""
        self._shipper.start()
        try:
            self._keep_on()
            if self._wanted.stop_at is None:
                until = time.monotonic() + _REPORT
                self._done.fault = self._shipper.drain(lambda: time.monotonic() > until)
            else:
                self._done.fault = self._shipper.drain(self._stop)
        except StrongroomError:
            until = time.monotonic() + _REPORT
            self._shipper.drain(lambda: time.monotonic() > until)
            raise
        finally:
            self._shipper.close(_REPORT)
        self._done.kept = self._shipper.held()
        if self._shipper.fault is not None:
            raise self._shipper.fault
        return self._done

    # -- connections -----------------------------------------------------------------------

    def _keep_on(self) -> None:
        pause, connected, began = _PAUSES[0], False, time.monotonic()
        while not self._stop():
            try:
                with Replication(self._conninfo, name=self._name) as replication:
                    replication.stopped = self._must_end
                    system = self._meet(replication)
                    connected, pause = True, _PAUSES[0]
                    if self._receive(replication, system):
                        return
            except StoppedWaiting:
                pass
            except (DatabaseUnreachable, Busy) as fault:
                patient = isinstance(fault, Busy) and time.monotonic() - began < _PATIENCE
                if not connected and not patient:
                    raise cannot_connect(fault) from None
                self._tell("lost", f"{fault.what} Trying again.")
            except ServerError as fault:
                raise StrongroomError(f"The server refused a command: {fault.text}.") from None
            except StrongroomError as fault:
                raise cannot_connect(fault) from None
            finally:
                self._let_go()
            if self._shipper.fault is not None:
                raise self._shipper.fault
            self._wait(pause)
            pause = min(pause * 2, _PAUSES[1])

    def _must_end(self) -> bool:
        return self._stop() or self._shipper.fault is not None

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._must_end():
            time.sleep(0.05)

    def _let_go(self) -> None:
        """No connection: what was written is durable, and goes on to the repository."""
        if self._tape is not None:
            self._tape.close()
            self._note_progress()
        self._shipper.hurry()

    def _meet(self, replication: Replication) -> System:
        """Whose server is it, and may its log be taken?"""
        system = replication.identify()
        self._pusher.check_source(self._source, system.system_id)
        if awaited(replication.show("synchronous_standby_names"), self._name):
            commit = replication.show("synchronous_commit")
            if commit == "remote_apply":
                raise Refused(
                    f"Commits wait until {self._name} has applied them (synchronous_commit ="
                    " remote_apply), and a receiver applies nothing.",
                    means="Nothing was received: every commit would be told as applied where nobody"
                    " can read it.",
                    do=f"Set synchronous_commit = on, or leave {self._name} out of"
                    " synchronous_standby_names.",
                )
            wait = "do not wait" if commit in ("off", "local") else "wait"
            self._tell(
                "synchronous", f"commits {wait} for {self._name}: synchronous_commit = {commit}"
            )
        return system

    # -- where to begin --------------------------------------------------------------------

    def _receive(self, replication: Replication, system: System) -> bool:
        """Follow one connection; whether all that was wanted is here."""
        size = _segment_size(replication)
        cluster = Cluster(system.system_id, size)
        history = self._histories(replication, cluster, system.timeline)
        listing = self._store.listing(system.system_id)
        self._check_timeline(listing, history, system)
        slot = self._slot(replication)
        here = self._here(cluster, history)
        if here is None:
            begin = slot.restart if slot.restart is not None else system.position
            position = self._missing(listing, history, size, begin)
            place = Place(history.at(position), position)
        else:
            self._check_behind(replication, system, here)
            place = go_on(here, history, size)
        where = f"{lsn_text(place.position)} of timeline {place.timeline}"
        self._tell(
            "connected",
            f"{self._source}: system {system.system_id}, receiving from {where} through the slot"
            f" {slot.name}",
            timeline=place.timeline,
            position=lsn_text(place.position),
            slot=slot.name,
        )
        while True:
            try:
                following = self._follow(replication, cluster, place)
            except ServerError as fault:
                place = self._lost(replication, cluster, history, here, place, fault)
                here = place
                continue
            if following is None:
                return True
            timeline, position = following
            self._tell(
                "timeline",
                f"timeline {place.timeline} ended at {lsn_text(position)}; going on on {timeline}",
                timeline=timeline,
                position=lsn_text(position),
            )
            history = self._histories(replication, cluster, replication.identify().timeline)
            here = Place(timeline, position)
            place = Place(timeline, position // size * size)

    def _histories(self, replication: Replication, cluster: Cluster, timeline: int) -> History:
        """Every history file up to the server's timeline, into the repository where it is missing
        (trap 38): PostgreSQL finds the newest timeline by their names, without a hole."""
        system = cluster.system_id
        content = b""
        for number in range(2, timeline + 1):
            name = history_name(number)
            there = self._store.head(system, name)
            if there is not None and there.text is not None and number < timeline:
                continue
            try:
                told, content = replication.history(number)
            except ServerError as fault:
                if number == timeline:
                    raise StrongroomError(
                        f"The server does not give {name}, the history of its own timeline:"
                        f" {fault.text}."
                    ) from None
                self._tell("history", f"the server does not have {name}: {fault.text}")
                continue
            if told != name:
                raise StrongroomError(f"The server gave {told!r} for {name}.")
            self._pusher.put(cluster, name, memoryview(content), self._source)
            if there is None:
                self._tell("history", f"{name} is in the repository", name=name)
        return History(timeline, tuple(parse_history(content)) if timeline > 1 else ())

    def _check_timeline(self, listing: WalListing, history: History, system: System) -> None:
        if self._wanted.accept_timeline:
            return
        known = {number: one.history for number, one in listing.timelines.items()}
        found = overtaken(known, history, system.position)
        if found is not None:
            timeline, left = found
            raise Refused(
                f"This server is on timeline {system.timeline} at {lsn_text(system.position)}; the"
                f" repository holds timeline {timeline}, which went another way at {lsn_text(left)}.",
                means="Nothing was received: this is an old primary that another one has replaced, or"
                " a server that does not follow it.",
                do="Name the present primary in the dsn (several hosts with target_session_attrs ="
                " read-write find it). If this one is right and that timeline was a mistake, give"
                " --accept-timeline.",
            )

    def _slot(self, replication: Replication) -> Slot:
        name = self._wanted.slot
        slot = find_slot(replication, self._conninfo, name)
        if slot is None and self._wanted.create_slot:
            try:
                replication.reserve(name, temporary=False)
            except ServerError as fault:
                raise Refused(
                    f"The server does not make the replication slot {name}: {fault.text}.",
                    do="Raise max_replication_slots of the server (it takes a restart), or remove a"
                    " slot that nobody uses.",
                ) from None
            self._tell("slot", f"made the replication slot {name}", slot=name)
            slot = find_slot(replication, self._conninfo, name)
        if slot is None:
            raise Refused(
                f"The server has no replication slot {name}.",
                means="Nothing was received: without a slot the server would remove log that is not"
                " here yet.",
                do=f"`strongroom wal receive {self._source} --create-slot` makes it and goes on.",
            )
        if slot.lost:
            raise self._lost_slot()
        return slot

    def _lost_slot(self) -> Refused:
        name = self._wanted.slot
        return Refused(
            f"The replication slot {name} is lost: the server removed log that it was to keep"
            " (max_slot_wal_keep_size, idle_replication_slot_timeout).",
            means="Nothing was received. There is a gap between what is here and the oldest log that"
            " the server still has; it is put on record when the log goes on.",
            do=f"`strongroom wal receive {self._source} --drop-slot`, then the same with"
            " --create-slot, then a new backup.",
        )

    def _here(self, cluster: Cluster, history: History) -> Place | None:
        """Up to where the log is durable in the spool; what is left of others goes its way."""
        mine = [one for one in self._spool.kept() if one.system_id == cluster.system_id]
        ends: dict[int, int] = {}
        for one in mine:
            ends[one.segment.timeline] = one.segment.end
            if not one.whole:
                before = self._spool.carry(one.system_id, one.segment)
                length = durable_end(one.read(), one.segment, before)
                ends[one.segment.timeline] = one.segment.start + length
        place = newest(ends, history)
        for one in mine:
            if not one.whole and not (place and self._goes_on(one, place, history)):
                self._tell("left", f"{one.segment} ends where its timeline was left")
                self._shipper.left_behind(one)
        return place

    def _missing(self, listing: WalListing, history: History, size: int, begin: int) -> int:
        """Where to begin without anything in the spool."""
        held, gaps = set(), []
        for timeline, one in listing.timelines.items():
            held |= {(timeline, SegmentName.parse(each.name, size).number) for each in one.segments}
            gaps += [(gap.start, gap.end) for gap in one.gaps if history.holds(timeline)]
        return first_missing(held, gaps, history, size, begin)

    def _goes_on(self, one: Kept, place: Place, history: History) -> bool:
        """Is this the unfinished segment that is gone on with?"""
        begin = go_on(place, history, one.segment.size)
        return (one.segment.timeline, one.segment.start) == (begin.timeline, begin.position)

    def _check_behind(self, replication: Replication, system: System, here: Place) -> None:
        """A primary that has less than it sent has lost what it called durable."""
        if system.timeline != here.timeline or system.position >= here.position:
            return
        what = (
            f"The server is at {lsn_text(system.position)} of timeline {system.timeline}; the log is"
            f" here up to {lsn_text(here.position)}."
        )
        if replication.show("transaction_read_only") == "on" or (
            replication.show("in_hot_standby") == "on"
        ):
            raise DatabaseUnreachable(f"{what} This standby is behind.")
        raise Refused(
            f"{what} It has lost log that it sent.",
            means="Nothing was received, and what is here is kept: what the server writes now on the"
            " same timeline is another history.",
            do="Restore the server from the repository, or let it be promoted to a timeline of its"
            " own.",
        )

    # -- the stream ------------------------------------------------------------------------

    def _follow(
        self, replication: Replication, cluster: Cluster, place: Place
    ) -> tuple[int, int] | None:
        """Take a timeline as it comes; the next one and where it begins, None at the end of all.

        ServerError when the server cannot send it, DatabaseUnreachable when it shuts down.
        """
        segment = SegmentName.holding(place.timeline, place.position, cluster.wal_segment_size)
        self._begin(cluster, segment)
        assert self._tape is not None
        replication.start(place.position, place.timeline, self._wanted.slot)
        self._heard = time.monotonic()
        self._reported, self._said = 0.0, -1
        replication.stopped = lambda: False  # from here on that is looked at every second
        while True:
            if self._is_enough():
                self._flush(replication)
                self._report(replication)
                with suppress(StrongroomError, ServerError):
                    replication.finish(_PARTING)
                return None
            if self._shipper.fault is not None:
                self._flush(replication)
                raise self._shipper.fault
            self._make_room(replication)
            if self._take(replication):
                continue
            self._flush(replication)
            following = replication.ended(self._confirmed())
            if following is None:
                raise DatabaseUnreachable("The server ended the stream: it is shutting down.")
            self._end_timeline(cluster)
            return following

    def _begin(self, cluster: Cluster, segment: SegmentName) -> None:
        """Begin to write at a segment; what came of it before must come again."""
        if self._tape is not None:
            self._tape.close()
        known = b""
        for one in self._spool.kept():
            if (one.system_id, one.segment) == (cluster.system_id, segment):
                data = one.read()
                before = self._spool.carry(one.system_id, segment)
                known = data if one.whole else data[: durable_end(data, segment, before)]
        system = cluster.system_id
        self._tape = Tape(
            self._spool.folder(system),
            segment,
            known,
            lambda done: self._shipper.whole(system, done),
        )
        self._shipper.receiving(system, self._tape)
        self._done.system_id, self._done.timeline = system, segment.timeline

    def _end_timeline(self, cluster: Cluster) -> None:
        """A timeline has ended: what is left of its last segment is all there will be of it."""
        assert self._tape is not None
        self._tape.close()
        self._shipper.receiving(cluster.system_id, None)
        tape, system = self._tape, cluster.system_id
        if tape.flushed > tape.segment.start:
            size = tape.flushed - tape.segment.start
            self._shipper.left_behind(Kept(system, tape.segment, False, tape.path, size))
        else:
            with suppress(FileNotFoundError):
                os.unlink(tape.path)
        self._tape = None

    def _take(self, replication: Replication) -> bool:
        """Take what has come, make it durable, say so; False at the end of the timeline."""
        assert self._tape is not None
        taken, asked, more = 0, False, True
        wait = self._patience()
        while more:
            piece = replication.wal(wait if not taken else 0.0)
            if piece is None:
                return False
            data = piece.data
            if data is not None:
                taken += len(data)
                self._write(replication, piece.start, data)
            if piece.sent:
                self._heard = time.monotonic()
            asked = asked or piece.reply
            more = data is not None and taken < _BATCH
        self._flush(replication)
        self._progress.advance(size=taken)
        self._done.size += taken
        now = time.monotonic()
        silent = now - self._heard
        if silent > _LOST:
            raise DatabaseUnreachable(f"The server has said nothing for {silent:.0f} seconds.")
        due = now - self._reported >= (_SILENCE / 3 if silent > _SILENCE else _REPORT)
        if asked or due or self._confirmed() != self._said:
            self._report(replication, ask=silent > _SILENCE)
        return True

    def _patience(self) -> float:
        """How long to wait for the server: less while the repository owes an answer."""
        assert self._tape is not None
        owed = self._wanted.confirm == "repository" and self._confirmed() < self._tape.flushed
        return _SOON if owed else 1.0

    def _write(self, replication: Replication, start: int, data: memoryview) -> None:
        assert self._tape is not None
        told = False
        while True:
            try:
                self._tape.write(start, data)
                return
            except NoRoom as full:
                start, data = self._tape.position, full.rest
            if not told:
                self._tell("full", "the disk of the spool is full; waiting for room")
                told = True
            self._flush(replication)
            self._pause_reading(replication)
            if self._must_end():
                raise StoppedWaiting

    def _make_room(self, replication: Replication) -> None:
        """Where the spool holds as much as it may, nothing more is read: nothing is ever dropped."""
        told = False
        while self._shipper.held() >= self._wanted.limit and not self._must_end():
            if not told:
                size = show_size(self._wanted.limit)
                self._tell("full", f"the spool holds {size}, its limit; waiting for the repository")
                self._progress.phase("waiting for the repository")
                told = True
            self._pause_reading(replication)

    def _pause_reading(self, replication: Replication) -> None:
        """Read nothing for a while, and let the server know that somebody is there."""
        time.sleep(0.1)
        self._heard = time.monotonic()
        if time.monotonic() - self._reported >= _REPORT:
            self._report(replication)

    def _flush(self, replication: Replication) -> None:
        assert self._tape is not None
        if self._tape.flush():
            self._note_progress()
            if self._wanted.confirm == "repository":
                self._shipper.hurry()

    def _note_progress(self) -> None:
        if self._tape is not None:
            self._done.position = max(self._done.position, self._tape.flushed)

    def _confirmed(self) -> int:
        """Up to where the log is durable, as it was chosen."""
        assert self._tape is not None
        if self._wanted.confirm == "repository":
            return min(self._shipper.durable(), self._tape.flushed)
        return self._tape.flushed

    def _report(self, replication: Replication, *, ask: bool = False) -> None:
        assert self._tape is not None
        confirmed = self._confirmed()
        replication.report(self._tape.position, confirmed, reply=ask)
        self._reported, self._said = time.monotonic(), confirmed

    def _is_enough(self) -> bool:
        assert self._tape is not None
        until = self._wanted.stop_at
        return self._stop() or (until is not None and self._tape.position >= until)

    # -- log that is lost ------------------------------------------------------------------

    def _lost(
        self,
        replication: Replication,
        cluster: Cluster,
        history: History,
        here: Place | None,
        place: Place,
        fault: ServerError,
    ) -> Place:
        """The server cannot send what is wanted: why, and where to go on behind it."""
        replication.drain()
        name = self._wanted.slot
        if fault.state == IN_USE:
            raise Busy(
                f"The replication slot {name} is in use: {fault.text}.",
                do="Stop the receiver that uses it; two cannot share a slot.",
            )
        if fault.state == UNDEFINED_OBJECT:
            raise Refused(
                f"The replication slot {name} went away: {fault.text}.",
                do=f"`strongroom wal receive {self._source} --create-slot` makes it and goes on.",
            )
        if fault.state == NOT_READY and "slot" in fault.text:
            raise self._lost_slot()
        if replication.identify().position < place.position:
            raise DatabaseUnreachable(
                f"The server has no log from {lsn_text(place.position)} on yet: {fault.text}."
            )
        if fault.state != UNDEFINED_FILE:
            raise StrongroomError(
                f"The server does not send the log from {lsn_text(place.position)} of timeline"
                f" {place.timeline}: {fault.text}."
            )
        slot = find_slot(replication, self._conninfo, name)
        if slot is not None and slot.lost:
            raise self._lost_slot()
        size, restart = cluster.wal_segment_size, None if slot is None else slot.restart
        if restart is None or restart // size * size <= place.position:
            raise Refused(
                f"The server has no log from {lsn_text(place.position)} on, although the slot"
                f" {name} is to keep it: {fault.text}.",
                do=f"`strongroom wal receive {self._source} --drop-slot`, then the same with"
                " --create-slot, then a new backup.",
            )
        end = restart // size * size
        start = place.position if here is None else max(here.position, place.position)
        self._on_record(cluster, history, start, end, fault.text)
        self._end_timeline(cluster)
        return Place(history.at(end), end)

    def _on_record(
        self, cluster: Cluster, history: History, start: int, end: int, reason: str
    ) -> None:
        """Put on record what of a stretch is not in the repository either (trap 36)."""
        system, size = cluster.system_id, cluster.wal_segment_size
        for timeline, first, last in history.stretches(start, end):
            begin: int | None = None
            for one in segments(timeline, first, last, size):
                there = self._store.head(system, str(one)) is not None
                if not there and begin is None:
                    begin = max(first, one.start)
                if begin is not None and (there or one.end >= last):
                    until = one.start if there else last
                    why = f"the server removed it before it was received: {reason}"
                    self._store.put_gap(system, timeline, begin, until, why)
                    self._done.gaps.append((timeline, begin, until))
                    self._tell(
                        "gap",
                        f"log is lost for good: {lsn_text(begin)} to {lsn_text(until)} of timeline"
                        f" {timeline}; it is on record. Take a new backup",
                        timeline=timeline,
                        start=lsn_text(begin),
                        end=lsn_text(until),
                        reason=why,
                    )
                    begin = None


def remove_slot(conninfo: Conninfo, name: str) -> bool:
    """Remove a slot; whether there was one."""
    with Replication(_failover(conninfo)) as replication:
        try:
            replication.drop(name)
        except ServerError as fault:
            if fault.state == UNDEFINED_OBJECT:
                return False
            raise Busy(
                f"The replication slot {name} cannot be removed: {fault.text}.",
                do="Stop the receiver that uses it first.",
            ) from None
    return True


def _failover(conninfo: Conninfo) -> Conninfo:
    """Of several hosts the primary is meant, where nothing else was said."""
    hosts = conninfo.parameters.get("host", "") + conninfo.parameters.get("hostaddr", "")
    if "," not in hosts or "target_session_attrs" in conninfo.parameters:
        return conninfo
    more = {**conninfo.parameters, "target_session_attrs": "read-write"}
    return Conninfo(more, conninfo.secrets)


def _segment_size(replication: Replication) -> int:
    text = replication.show("wal_segment_size")
    try:
        size = parse_size(text.removesuffix("B"))
    except ValueError:
        size = 0
    if not is_segment_size(size):
        raise StrongroomError(f"The server does not tell the size of its segments: {text!r}.")
    return size


__all__ = ["Received", "Receiver", "Wanted", "remove_slot"]
