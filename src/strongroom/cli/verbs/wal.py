"""wal push, wal fetch, wal receive, wal daemon, wal status.

The first two are asked of the daemon by `cli/wal_client.py` before this module is imported; what
comes here is done here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing, nullcontext, suppress
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from strongroom import wiring
from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_text
from strongroom.cli.output import error_lines
from strongroom.cli.progress import listening
from strongroom.cli.records import show_moment
from strongroom.cli.signals import collect_signals
from strongroom.cli.wal_client import helper_words, socket_path
from strongroom.errors import StorageUnreachable, StrongroomError, UsageError
from strongroom.format.wal import WalKind, lsn_text, parse_lsn
from strongroom.progress import Silent
from strongroom.rules.sizes import parse_size, show_size

if TYPE_CHECKING:
    from strongroom.operations.wal_status import SystemStatus, TimelineStatus

PROMISE_MISSED = 10

_DEFAULT = Everywhere()
_WINDOW = 16
_QUIET_EVENTS = frozenset({"segment", "part"})
_ALARMS = frozenset({"gap", "away", "full", "lost"})


def push(
    path: str,
    /,
    *,
    source: str | None = None,
    socket: str | None = None,
    accept_system: bool = False,
    dry_run: bool = False,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Archive one file of the WAL: archive_command = 'strongroom wal push %p'.

    Exit status 0 only when the file is durable in the repository, never one above 125. The same
    file again is fine; other content under the same name is refused, status 9.

    Parameters
    ----------
    path
        The file, relative to the data directory, which is the working directory.
    source
        Whose WAL it is; may be left out where one source is backed up physically.
    socket
        Where the daemon listens, instead of $STRONGROOM_WAL_SOCKET or /run/strongroom/wal.sock.
    accept_system
        Once, by hand: the source is another system from now on (made anew, or upgraded).
    dry_run
        Say whether it could be archived, and why not; a tiny object is put and deleted again.
    """
    from strongroom.operations.try_push import try_push  # noqa: PLC0415
    from strongroom.postgres.wal.daemon import choose_source  # noqa: PLC0415
    from strongroom.postgres.wal.directory import DataDirectory  # noqa: PLC0415
    from strongroom.postgres.wal.push import Pusher, file_name  # noqa: PLC0415
    from strongroom.repository.wal import WalStore  # noqa: PLC0415

    del socket  # the client asked there
    file_name(path)
    desk = Desk(everywhere)
    whose = choose_source(wiring.wal_sources(desk.configuration), source or "")
    directory = DataDirectory.here()
    with desk.repository() as repository:
        if dry_run:
            try_push(repository, directory, path, whose, accept_system=accept_system)
        else:
            Pusher(WalStore(repository), accept_system=accept_system).push(directory, path, whose)
    return 0


def fetch(
    name: str,
    path: str,
    /,
    *,
    partial: bool = False,
    standby: bool = False,
    alone: bool = False,
    source: str | None = None,
    socket: str | None = None,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Deliver one file of the WAL: restore_command = 'strongroom wal fetch %f %p'.

    Exit status 0: delivered, verified. 1: the repository was asked and does not hold it, which
    PostgreSQL takes for the end of the log. 126 or more: anything else (200 and the usual status;
    143 when it was stopped), upon which PostgreSQL stops instead of opening the database.

    Where no daemon listens, the first one leaves a process behind that reads ahead for those that
    follow, and ends when nobody has asked for half a minute.

    Parameters
    ----------
    name
        The file that is wanted, as PostgreSQL calls it.
    path
        Where to put it, relative to the data directory, which is the working directory.
    partial
        Where a segment is not there, deliver its .partial filled up with zeros: after the primary
        is lost, this is the last log there is.
    standby
        A storage that cannot be reached is status 1 while standby.signal is there: a standby asks
        again for ever, and would stop for good upon any other status.
    alone
        Leave no process behind.
    source
        Not needed: the data directory says which system it is.
    socket
        Where the daemon listens, instead of $STRONGROOM_WAL_SOCKET or /run/strongroom/wal.sock.
    """
    from strongroom.postgres.wal.daemon import may_ask_again  # noqa: PLC0415
    from strongroom.postgres.wal.directory import DataDirectory  # noqa: PLC0415
    from strongroom.postgres.wal.fetch import Fetcher, check_name  # noqa: PLC0415
    from strongroom.repository.wal import WalStore  # noqa: PLC0415

    del socket, source
    kind = check_name(name)
    desk = Desk(everywhere)
    directory = DataDirectory.here()
    try:
        with desk.repository() as repository:
            found = Fetcher(WalStore(repository)).fetch(directory, name, path, partial=partial)
    except StorageUnreachable as fault:
        if not may_ask_again(directory, frozenset(["standby"] if standby else [])):
            raise
        desk.output.error_lines(fault)
        return 1
    if found and not alone and kind is WalKind.SEGMENT:
        _leave_helper()
    return 0 if found else 1


def _leave_helper() -> None:
    """Start the process that answers the fetches that follow. One that runs already wins."""
    words = helper_words(sys.argv[1:])
    if words is None:
        return
    with suppress(OSError):  # what was asked for is delivered: without help the next is slower
        subprocess.Popen(
            words,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def daemon(
    *,
    socket: str | None = None,
    ahead: Annotated[int, Parameter(validator=None)] = _WINDOW,
    idle: float | None = None,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Keep the repository open for `wal push` and `wal fetch`, and work ahead of them.

    It runs until it is stopped, as the user that runs PostgreSQL. Without it both do the same,
    each opening the repository anew.

    Parameters
    ----------
    socket
        Where to listen, instead of $STRONGROOM_WAL_SOCKET or /run/strongroom/wal.sock.
    ahead
        How many files to archive, or to read, before they are asked for.
    idle
        End after so many seconds without a question.
    """
    from strongroom.postgres.wal.daemon import listen  # noqa: PLC0415

    desk = Desk(everywhere)
    path = socket_path(socket, desk.environ.get("STRONGROOM_WAL_SOCKET"))
    with desk.repository() as repository:
        serving = wiring.wal_daemon(
            repository,
            desk.configuration,
            path=desk.loaded.path,
            environ=desk.environ,
            ahead=max(0, ahead),
            explain=_explain,
            tell=desk.output.note,
        )
        listener = listen(path)
        try:
            desk.output.note(f"listening at {path}")
            serving.serve(listener, idle=idle)
        finally:
            listener.close()
            with suppress(FileNotFoundError):
                os.unlink(path)
    return 0


def receive(
    source: str,
    /,
    *,
    create_slot: bool = False,
    drop_slot: bool = False,
    confirm: Literal["spool", "repository"] = "spool",
    spool: str | None = None,
    spool_limit: str = "4GiB",
    partial_every: Annotated[float, Parameter(validator=Number(gt=0))] = 10.0,
    stop_at: str | None = None,
    accept_timeline: bool = False,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Receive the WAL of a source as it is written, through a replication slot.

    It runs until it is stopped by SIGTERM or SIGINT, and ends with 0 then: everything that came is
    durable and reported. What is received is synced to a spool on this machine and put into the
    repository beside that, unfinished segments too. Named in synchronous_standby_names it is what
    commits wait for. Exit status 10: log was lost before it was received, which is on record.

    Parameters
    ----------
    source
        The source, as it is called in strongroom.toml; its role needs REPLICATION.
    create_slot
        Make the replication slot where there is none: the server keeps its log from then on.
    drop_slot
        Remove the replication slot and end: the server keeps nothing for us any more.
    confirm
        What counts as durable for the server: the synced spool, or the repository alone, which
        makes commits wait for it but needs nothing of this machine.
    spool
        Folder of our own for what is not in the repository yet, instead of
        ~/.local/state/strongroom/wal/SOURCE. The log in it is not encrypted.
    spool_limit
        How much the spool may hold while the repository cannot be reached. Then nothing more is
        read, and the server keeps its log.
    partial_every
        Seconds after which what came of an unfinished segment is put into the repository.
    stop_at
        End when the log is here up to this position, X/X, and all of it is in the repository.
    accept_timeline
        The server is the right one although the repository holds a newer timeline that went
        another way before.
    """
    from strongroom.postgres.wal.receive import Wanted, remove_slot  # noqa: PLC0415
    from strongroom.postgres.wal.spool import Spool  # noqa: PLC0415

    desk = Desk(everywhere)
    table = desk.source_table(source)
    conninfo, slot = wiring.wal_place(source, table, desk.environ)
    if drop_slot:
        if create_slot:
            raise UsageError("--create-slot and --drop-slot are two commands.", do="Give one.")
        there = remove_slot(conninfo, slot)
        desk.output.line(f"{slot}: {'removed' if there else 'there was none'}")
        return desk.output.finish("wal receive", {"slot": slot, "dropped": there}, None)
    limit, until = _limit(spool_limit), _position(stop_at)

    def wanted(name: str) -> Wanted:
        return Wanted(
            name,
            create_slot=create_slot,
            confirm=confirm,
            every=partial_every,
            limit=limit,
            stop_at=until,
            accept_timeline=accept_timeline,
            threads=max(2, min(desk.jobs or 3, 16)),
        )

    def tell(kind: str, text: str, **facts: object) -> None:
        desk.output.event(kind, {"text": text, **facts})
        if not desk.output.json and (kind not in _QUIET_EVENTS or desk.output.verbosity):
            (desk.output.warning if kind in _ALARMS else desk.output.note)(text)

    place = spool or os.path.join(desk.state_dir, "wal", source)
    with desk.repository() as repository, closing(Spool(place)) as held:
        asked = collect_signals()
        shown = desk.output.json or desk.output.stderr.isatty()
        with listening(desk.output) if shown else nullcontext(Silent()) as progress:
            received = wiring.receiver(
                source,
                table,
                repository=repository,
                spool=held,
                wanted=wanted,
                environ=desk.environ,
                tell=tell,
                progress=progress,
                stop=asked.is_set,
            ).run()
    position = lsn_text(received.position)
    desk.output.line(
        f"{source}: received {show_size(received.size)}, up to {position} of timeline"
        f" {received.timeline}"
    )
    body = {
        "source": source,
        "system_id": str(received.system_id),
        "timeline": received.timeline,
        "position": position,
        "size": received.size,
        "spool": place,
        "spool_held": received.kept,
        "gaps": [
            {"timeline": timeline, "start": lsn_text(start), "end": lsn_text(end)}
            for timeline, start, end in received.gaps
        ],
    }
    fault = received.fault
    if fault is not None and until is None:  # it was stopped: what is in the spool waits there
        desk.output.note(f"{show_size(received.kept)} wait in the spool {place}: {fault.what}")
        fault = None
    status = desk.output.finish("wal receive", body, fault)
    return status or (PROMISE_MISSED if received.gaps else 0)


def _limit(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as fault:
        raise UsageError(f"--spool-limit: {fault}.", do="Write it like 4GiB.") from None


def _position(text: str | None) -> int | None:
    try:
        return None if text is None else parse_lsn(text)
    except ValueError as fault:
        raise UsageError(f"--stop-at: {fault}.", do="Write it like 0/3000148.") from None


def status(source: str, /, *, everywhere: Everywhere = _DEFAULT) -> int:
    """Say how far the WAL of a source is archived, and what is amiss.

    Holes between segments, files that were offered with other content, objects that cannot be read,
    and, where the server can be reached, how far it is ahead and whether its archiver fails. Exit
    status 10 when anything is amiss, or nothing is archived at all.

    Parameters
    ----------
    source
        The source, as it is called in strongroom.toml.
    """
    from strongroom.operations.wal_status import wal_status  # noqa: PLC0415 -- numpy behind it

    desk = Desk(everywhere)
    table = desk.source_table(source)
    with desk.repository() as repository:
        systems = wal_status(repository, source)
    archiver, away = wiring.ask_archiver(table, desk.environ)
    slot = None if away is not None else wiring.ask_slot(source, table, desk.environ)
    newest = max((one for each in systems for one in each.timelines), key=_newest, default=None)
    lag = None
    if archiver is not None:
        here = 0 if newest is None else max(newest.end, newest.received)
        lag = max(0, archiver.written - here)
    desk.output.document(
        "wal",
        {
            "source": source,
            "systems": [one.body() for one in systems],
            "server": None if archiver is None else archiver.body(),
            "slot": None if slot is None else slot.body(),
            "server_error": None if away is None else away.what,
            "lag": lag,
        },
    )
    for each in systems:
        desk.output.lines(_system_lines(each, source))
    if not systems:
        desk.output.line(f"{source}: no WAL was archived yet")
    if archiver is not None and lag is not None:
        last = f"the server archived {archiver.last_archived or 'nothing'} last; "
        desk.output.line(
            f"{source}: {last if archiver.last_archived or slot is None else ''}"
            f"{show_size(lag)} of its log are not in the repository yet"
        )
        if slot is not None:
            reads = "is read" if slot.active else "is not read by anybody now"
            desk.output.line(f"{source}: the replication slot {slot.name} {reads}")
            if slot.trouble is not None:
                desk.output.warning(f"replication slot {slot.name}: {slot.trouble}")
        if archiver.failing:
            desk.output.warning(
                f"archiving fails: {archiver.last_failed} at {archiver.last_failed_time}"
            )
        if archiver.mode == "off" and slot is None:
            desk.output.warning("archive_mode is off: the server archives nothing")
    elif away is not None:
        desk.output.note(f"{source}: the server was not asked: {away.what}")
    amiss = not systems or any(each.amiss for each in systems)
    amiss = amiss or (slot is not None and slot.trouble is not None)
    return PROMISE_MISSED if amiss or (archiver is not None and archiver.failing) else 0


def _newest(timeline: TimelineStatus) -> tuple[int, int]:
    return timeline.timeline, timeline.end


def _system_lines(system: SystemStatus, source: str) -> list[str]:
    lines = []
    for one in system.timelines:
        span = f"{lsn_text(one.start)} to {lsn_text(one.end)}" if one.segments else "no segment"
        line = f"{source}: system {system.system_id} timeline {one.timeline}: {span}"
        line += f", {one.segments:,} segments"
        if one.received:
            line += f", and received up to {lsn_text(one.received)}"
        if one.last_commit is not None:
            line += f", last commit {show_moment(one.last_commit)}"
        if one.last_archived is not None:
            line += f", archived {show_moment(one.last_archived)}"
        lines.append(line)
        for hole in one.holes:
            reason = show_text(hole.reason) if hole.reason else "nobody recorded why"
            lines.append(f"  missing: {lsn_text(hole.start)} to {lsn_text(hole.end)}: {reason}")
        lines += [
            f"  conflict: {each.name}: other content was offered {show_moment(each.seen)}"
            f" by {show_text(each.writer)}"
            for each in one.conflicts
        ]
    lines += [f"  unread: {show_text(what)}" for what in system.unread.values()]
    return lines


def _explain(fault: StrongroomError) -> str:
    return "\n".join(error_lines(fault))
