"""What `doctor` looks at of one database: connection, TLS, clock, rights, tools, settings, log, disk.

Rule: the connection comes first, and without it what needs none is looked at all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from strongroom.config.model import PostgresTable
from strongroom.errors import NotFound, StrongroomError
from strongroom.operations.doctor import Opened
from strongroom.postgres.clients import Clients, faults
from strongroom.postgres.embedded import find_server
from strongroom.postgres.grants import Needs
from strongroom.postgres.inspecting import Inspected, LocalFiles, inspect, look_at_files
from strongroom.postgres.physical.local import check_directory
from strongroom.postgres.rights import Asked, look
from strongroom.postgres.server import Conninfo
from strongroom.postgres.wal.trying import try_command
from strongroom.repository.wal import WalStore
from strongroom.rules import archiving
from strongroom.rules import preconditions as rules
from strongroom.rules.archiving import ArchiveCommand, Archiving, Attempt
from strongroom.rules.preconditions import Finding, Method
from strongroom.rules.sizes import show_size

_TRY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Database:
    """One source: its table, how it is reached, and what wiring knows to ask of it.

    `needs` is `wiring.rights_wanted`; `probe` is `source test`.
    """

    name: str
    table: PostgresTable
    conninfo: Conninfo
    slot: str
    physical: Sequence[str]
    needs: Callable[[], Asked]
    probe: Callable[[], Mapping[str, Any]]
    now: Callable[[], datetime]
    opened: Opened

    @property
    def item(self) -> str:
        """What its findings are called."""
        return f"source {self.name}"


def look_at_database(database: Database) -> Iterator[Finding]:
    """Everything about one database, in order."""
    item, table = database.item, database.table
    physical = table.method == "physical"
    try:
        seen = inspect(
            database.conninfo,
            slot=database.slot,
            databases=table.databases,
            now=database.now,
            streams=physical and table.via != "local",
        )
    except StrongroomError as fault:
        yield Finding(f"{item} connection", "failed", fault.what, fault.do)
        if not physical:
            yield _tools(item, table, None)
        return
    yield from _connection(item, seen)
    yield rules.transfer(item, seen.connection)
    if seen.apart is not None:
        yield rules.clock(f"{item} clock", seen.apart, "the server", doubt=seen.doubt)
    asked = database.needs()
    method = _method(asked.needs)
    yield from _rights(database, asked)
    yield from _readable(database, seen)
    if physical:
        yield from _programs(item, seen.server.major)
    else:
        yield _tools(item, table, seen.server.major)
    yield from rules.durability(item, seen.server)
    yield from _log(database, seen, method)
    if not seen.refused:
        yield rules.collations(item, seen.stale)
        yield rules.extensions(item, seen.missing, seen.extensions)


def _connection(item: str, seen: Inspected) -> Iterator[Finding]:
    kind = "a standby" if seen.server.standby else "a primary"
    text = f"PostgreSQL {seen.server.version} answers, {kind}"
    if seen.refused:
        yield Finding(
            f"{item} connection",
            "warning",
            f"{text}, to the replication protocol alone: {seen.refused}",
            "Let the role in by SQL too (`strongroom source grants` prints the line of pg_hba.conf): rights,"
            " archiver and slot cannot be looked at without it.",
        )
    else:
        yield rules.ok(f"{item} connection", text)


def _method(needs: Needs) -> Method:
    if "logical" in needs.purposes:
        return "logical"
    return "local" if "local" in needs.purposes else "stream"


def _readable(database: Database, seen: Inspected) -> Iterator[Finding]:
    """What `source test` says."""
    try:
        report = database.probe()
    except StrongroomError as fault:
        yield Finding(database.item, "failed", fault.what, fault.do)
        return
    if database.table.method == "physical":
        how = "by its files" if report["via"] == "local" else "by the replication protocol"
        place = report.get("data_directory", "the whole cluster")
        yield rules.ok(database.item, f"{place}, {how}")
    else:
        dump = report["pg_dump"]["version"]
        named = ", ".join(report["databases"])
        yield rules.ok(database.item, f"{named} of {seen.server.version} by pg_dump {dump}")


def _rights(database: Database, wanted: Asked) -> Iterator[Finding]:
    premises, needs = wanted.premises, wanted.needs
    if premises is None:
        reason = "" if wanted.away is None else wanted.away.what
        yield Finding(f"{database.item} rights", "unknown", f"could not be asked: {reason}")
        return
    whose = replace(needs, role=premises.user)
    found = look(database.conninfo, whose, now=database.now())
    missing = [one.what for one in found.missing]
    excess = [one.what for one in found.excess]
    yield rules.rights(database.item, missing, excess, list(found.unread), source=database.name)
    for text in found.warnings:
        yield Finding(
            f"{database.item} password",
            "warning",
            f"of role {premises.user}: {text}",
            "Give it a new one in time: `\\password` in psql, then where `password` leads to.",
        )
    table = database.table
    if (
        not found.passwords
        and table.globals
        and table.role_passwords
        and "logical" in needs.purposes
    ):
        yield Finding(
            f"{database.item} roles",
            "warning",
            "the role may not read password verifiers: roles come back without passwords",
            "Say that this is meant with `role_passwords = false`, or grant pg_read_all_data.",
        )


def _tools(item: str, table: PostgresTable, major: int | None) -> Finding:
    safe: list[tuple[int, int]] = []
    unsafe: list[str] = []
    for one in Clients.found(table.bin_dir).installed:
        found = faults(one.version, "dump")
        if found:
            named = ", ".join(fault.id for fault in found)
            unsafe.append(f"{one.version[0]}.{one.version[1]} ({named})")
        else:
            safe.append(one.version)
    return rules.tools(item, major, safe, unsafe)


def _programs(item: str, major: int) -> Iterator[Finding]:
    """Drills, `open` and `table` start a server of the same major version here."""
    try:
        found = find_server(major)
    except NotFound as fault:
        yield Finding(
            f"{item} programs",
            "warning",
            f"no server programs of PostgreSQL {major} are here: `open`, `table` and drills cannot start one",
            fault.do,
        )
        return
    text = f"PostgreSQL {found.version[0]}.{found.version[1]} in {found.bindir}"
    yield rules.ok(f"{item} programs", f"{text}, for `open`, `table` and drills")


# -- the log -----------------------------------------------------------------------------------


def _log(database: Database, seen: Inspected, method: Method) -> Iterator[Finding]:
    item, table, server = database.item, database.table, seen.server
    receives = seen.slot is not None
    archives = server.settings.get("archive_mode", "off") != "off"
    yield from rules.replication(item, server, method, receives=receives, archives=archives)
    slot = rules.slot(item, seen.slot, source=database.name, wanted=table.slot is not None)
    if slot is not None:
        yield slot
    if method == "logical":
        return
    directory = table.data_directory or seen.data_directory
    files, reason = _files(database, seen, directory)
    yield _room(item, files, reason)
    if "archive_mode" not in server.settings:
        yield Finding(f"{item} archive_command", "unknown", "the role may not ask for settings")
        return
    facts = _archiving(database, seen, directory, files, reason)
    yield archiving.archive_command(item, facts)
    found = archiving.archiver(item, facts)
    if found is not None:
        yield found


def _files(
    database: Database, seen: Inspected, directory: str | None
) -> tuple[LocalFiles | None, str]:
    """The server's files, where they are here and surely its own; or why they cannot be seen."""
    if not seen.connection.near:
        return None, "the server is on another host"
    if directory is None:
        return None, "the role may not ask where they are"
    try:
        check_directory(database.conninfo, directory)
    except StrongroomError as fault:
        return None, fault.what
    return look_at_files(directory), f"{directory} cannot be read by this account"


def _room(item: str, files: LocalFiles | None, reason: str) -> Finding:
    item = f"{item} pg_wal"
    if files is not None:
        place = f"{show_size(files.log)} of log; "
        return rules.room(item, files.free, files.total, place=place)
    return Finding(
        item,
        "unknown",
        f"the room on its disk cannot be seen: {reason}",
        "Run `strongroom doctor` on its host as the server's account, for a role with"
        " pg_read_all_settings.",
    )


def _archiving(
    database: Database,
    seen: Inspected,
    directory: str | None,
    files: LocalFiles | None,
    reason: str,
) -> Archiving:
    settings, counts = seen.server.settings, seen.archiver
    command = archiving.read_archive_command(settings.get("archive_command", ""))
    on = settings["archive_mode"] != "off" and not settings.get("archive_library")
    attempt, not_tried = _attempt(seen, command, directory, files, reason) if on else (None, "")
    systems, stored, conflict = _kept(database, seen)
    timeout = seen.server.number("archive_timeout")
    return Archiving(
        database.name,
        settings["archive_mode"],
        command,
        settings.get("archive_library", ""),
        seen.server.standby,
        database.physical,
        counts.archived,
        counts.last_archived,
        _utc(counts.last_archived_time),
        counts.failed,
        counts.last_failed,
        _utc(counts.last_failed_time),
        None if files is None else len(files.ready),
        seen.system,
        systems,
        stored,
        conflict,
        attempt,
        not_tried,
        timeout,
        receives=seen.slot is not None and seen.slot.active,
    )


def _attempt(
    seen: Inspected,
    command: ArchiveCommand,
    directory: str | None,
    files: LocalFiles | None,
    reason: str,
) -> tuple[Attempt | None, str]:
    if not command.ours:
        return None, ""
    if directory is None or files is None:
        return None, reason
    if seen.server.standby and seen.server.settings.get("archive_mode") != "always":
        return None, "a standby does not archive"
    return try_command(
        command, directory, files, failed=seen.archiver.last_failed, seconds=_TRY_SECONDS
    )


def _kept(database: Database, seen: Inspected) -> tuple[tuple[str, ...], bool | None, str | None]:
    """What the repository has on record: the systems of the source, and of what failed last whether it is
    there, and who offered other content."""
    repository = database.opened.get()
    if repository is None:
        return (), None, None
    store, failed = WalStore(repository), seen.archiver.last_failed
    systems = tuple(map(str, store.systems(database.name)))
    if failed is None or seen.system is None:
        return systems, None, None
    system = int(seen.system)
    stored = store.head(system, failed) is not None
    found = store.conflicts(system, failed)
    who = f"{found[-1].writer} at {found[-1].seen.isoformat(timespec='seconds')}" if found else None
    return systems, stored, who


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC)


__all__ = ["Database", "look_at_database"]
