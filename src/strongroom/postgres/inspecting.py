"""What `doctor` asks a server, by one connection: facts for `rules/preconditions.py`, and no verdict.

Rule: what a role may not see is left out of the facts, and hinders nothing else. Nothing is changed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from strongroom.errors import DatabaseUnreachable, KeyRefused, StrongroomError
from strongroom.postgres.replication import Replication
from strongroom.postgres.server import Conninfo, connect, is_near, translated
from strongroom.postgres.wal.slots import ask_slot
from strongroom.rules.preconditions import Connection, Server, SlotFacts

if TYPE_CHECKING:
    import psycopg

_SETTINGS = (
    "archive_command", "archive_library", "archive_mode", "archive_timeout", "data_checksums",
    "data_directory", "fsync", "full_page_writes", "idle_replication_slot_timeout",
    "ignore_checksum_failure", "ignore_invalid_pages", "max_replication_slots", "max_wal_senders",
    "ssl_min_protocol_version", "wal_level", "zero_damaged_pages",
)  # fmt: skip
_SECONDS = 5.0  # for each statement, and to connect


@dataclass(frozen=True, slots=True)
class ArchiverCounts:
    """pg_stat_archiver: counts since the statistics were reset; times aware."""

    archived: int = 0
    last_archived: str | None = None
    last_archived_time: datetime | None = None
    failed: int = 0
    last_failed: str | None = None
    last_failed_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Inspected:
    """What a server said. `apart` is how far its clock is ahead, within `doubt`, both in seconds.

    `refused` says why nothing but the replication protocol was spoken. `stale` are collations of another
    version than the library's, `missing` extensions without files.
    """

    server: Server
    connection: Connection
    databases: tuple[str, ...] = ()
    apart: float | None = None
    doubt: float = 0.0
    system: str | None = None
    archiver: ArchiverCounts = ArchiverCounts()
    slot: SlotFacts | None = None
    stale: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()
    refused: str = ""

    @property
    def data_directory(self) -> str | None:
        """Where its files are, where that was told."""
        return self.server.settings.get("data_directory") or None


def inspect(
    conninfo: Conninfo,
    *,
    slot: str,
    databases: Sequence[str] = (),
    now: Callable[[], datetime],
    streams: bool = False,
) -> Inspected:
    """Ask a server. `streams`: where SQL is refused, what the replication protocol tells will do.

    Raises what `connect` does.
    """
    quick = Conninfo(
        {"connect_timeout": str(int(_SECONDS)), **conninfo.parameters}, conninfo.secrets
    )
    try:
        with (
            translated(conninfo),
            connect(quick, statement_timeout=_SECONDS, lock_timeout=_SECONDS) as connection,
        ):
            return _Inspecting(quick, connection, slot, databases, now).run()
    except (KeyRefused, DatabaseUnreachable) as fault:
        if not streams:
            raise
        try:
            return _by_replication(quick, fault.what)
        except StrongroomError:
            raise fault from None


class _Inspecting:
    """One connection's questions."""

    def __init__(
        self,
        conninfo: Conninfo,
        connection: psycopg.Connection[Any],
        slot: str,
        databases: Sequence[str],
        now: Callable[[], datetime],
    ) -> None:
        self._conninfo, self._connection, self._now = conninfo, connection, now
        self._slot, self._databases = slot, tuple(databases)
        self._version = connection.info.server_version

    def run(self) -> Inspected:
        apart, doubt = self._clock()
        server = self._server()
        every = self._rows(
            "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1"
        )
        names = tuple(name for (name,) in every)
        chosen = names if self._databases == ("*",) else self._databases
        identifier = self._rows("SELECT system_identifier::text FROM pg_control_system()")
        counts = self._rows(
            "SELECT archived_count, last_archived_wal, last_archived_time, failed_count,"
            " last_failed_wal, last_failed_time FROM pg_stat_archiver"
        )
        installed = self._rows(
            "SELECT e.extname, e.extversion, a.name IS NOT NULL FROM pg_extension e"
            " LEFT JOIN pg_available_extensions a ON a.name = e.extname ORDER BY 1"
        )
        return Inspected(
            server,
            self._transport(),
            chosen or (self._conninfo.database,),
            apart,
            doubt,
            identifier[0][0] if identifier else None,
            ArchiverCounts(*counts[0]) if counts else ArchiverCounts(),
            self._slot_facts(server),
            tuple(name for (name,) in self._stale()),
            tuple(name for name, _, there in installed if not there),
            tuple(f"{name} {version}" for name, version, _ in installed if name != "plpgsql"),
        )

    def _clock(self) -> tuple[float, float]:
        before = self._now().timestamp()
        ((told,),) = self._rows("SELECT extract(epoch FROM clock_timestamp())::float8")
        after = self._now().timestamp()
        return float(told) - (before + after) / 2, (after - before) / 2

    def _server(self) -> Server:
        settings = dict(self._settings())
        ((version, standby),) = self._rows(
            "SELECT current_setting('server_version'), pg_is_in_recovery()"
        )
        senders = self._rows("SELECT count(*) FROM pg_stat_replication")
        slots = self._rows("SELECT count(*) FROM pg_replication_slots")
        return Server(
            str(version).split()[0],
            self._version // 10000,
            standby,
            settings,
            senders[0][0] if senders else 0,
            slots[0][0] if slots else 0,
        )

    def _settings(self) -> list[tuple[str, str]]:
        found = self._connection.execute(
            "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(_SETTINGS)]
        ).fetchall()
        return [(name, setting) for name, setting in found if setting is not None]

    def _transport(self) -> Connection:
        rows = self._rows(
            "SELECT version, cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl"
        )
        version, cipher = rows[0] if rows else (None, "")
        least = self._rows(
            "SELECT setting FROM pg_settings WHERE name = 'ssl_min_protocol_version'"
        )
        info = self._connection.info
        near = info.host.startswith(("/", "@")) or info.hostaddr.startswith(("127.", "::1"))
        return Connection(
            near,
            version,
            cipher or "",
            _mode(self._conninfo),
            _least(self._conninfo),
            least[0][0] if least and version else "",
        )

    def _slot_facts(self, server: Server) -> SlotFacts | None:
        try:
            found = ask_slot(self._conninfo, self._slot)
        except StrongroomError:
            return None
        if found is None:
            return None
        return SlotFacts(
            found.name,
            found.active,
            found.status,
            found.held,
            found.limit,
            found.trouble,
            server.settings.get("idle_replication_slot_timeout", "0"),
        )

    def _stale(self) -> list[tuple[str]]:
        if self._version < 150000:
            return []
        return self._rows(
            "SELECT format('database %I (%s, now %s)', datname, datcollversion,"
            " pg_database_collation_actual_version(oid)) FROM pg_database WHERE datallowconn"
            " AND datcollversion <> pg_database_collation_actual_version(oid)"
            " UNION ALL SELECT format('collation %I (%s, now %s)', collname, collversion,"
            " pg_collation_actual_version(oid)) FROM pg_collation"
            " WHERE collversion <> pg_collation_actual_version(oid) ORDER BY 1 LIMIT 5"
        )

    def _rows(self, query: str) -> list[Any]:
        """The rows of a question; none where the role may not ask it."""
        import psycopg  # noqa: PLC0415

        with contextlib.suppress(
            psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable
        ):
            return self._connection.execute(query.encode()).fetchall()
        return []


def _by_replication(conninfo: Conninfo, refused: str) -> Inspected:
    """As much as the replication protocol tells: a role that may do nothing else is enough to stream."""
    version: str | None = "TLSv1.3"
    demanding = Conninfo(
        {**conninfo.parameters, "ssl_min_protocol_version": "TLSv1.3"}, conninfo.secrets
    )
    try:
        replication = _entered(demanding)
    except DatabaseUnreachable:
        replication, version = _entered(conninfo), "TLSv1.2 or older"
    with contextlib.closing(replication._connection):
        if not replication._pq.ssl_in_use:
            version = None
        settings = {name: replication.show(name) for name in _SETTINGS}
        major = replication.version // 10000
        return Inspected(
            Server(
                replication.show("server_version").split()[0],
                major,
                replication.show("in_hot_standby") == "on",
                {name: value for name, value in settings.items() if value},
            ),
            Connection(
                is_near(conninfo),
                version,
                "",
                _mode(conninfo),
                _least(conninfo),
                settings["ssl_min_protocol_version"] if version else "",
            ),
            system=str(replication.identify().system_id),
            refused=refused,
        )


def _entered(conninfo: Conninfo) -> Replication:
    return Replication(conninfo).__enter__()


def _mode(conninfo: Conninfo) -> str:
    return conninfo.parameters.get("sslmode") or os.environ.get("PGSSLMODE") or "prefer"


def _least(conninfo: Conninfo) -> str:
    given = conninfo.parameters.get("ssl_min_protocol_version")
    return given or os.environ.get("PGSSLMINPROTOCOLVERSION") or "TLSv1.2"


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """What can be seen of a data directory on this machine. Sizes in bytes; `ready` counts the files that
    wait to be archived."""

    owner: int
    account: str
    log: int
    free: int
    total: int
    ready: tuple[str, ...]
    segments: tuple[str, ...]


def look_at_files(directory: str) -> LocalFiles | None:
    """Look at pg_wal; None where there is none to be seen from here."""
    try:
        owner = os.stat(directory).st_uid
        wal = os.path.join(directory, "pg_wal")
        room = os.statvfs(wal)
        names = sorted(os.listdir(wal))
        waiting = sorted(os.listdir(os.path.join(wal, "archive_status")))
        log = sum(_sizes(wal, names))
    except OSError:
        return None
    try:
        account = pwd.getpwuid(owner).pw_name
    except KeyError:
        account = f"uid {owner}"
    return LocalFiles(
        owner,
        account,
        log,
        room.f_bavail * room.f_frsize,
        room.f_blocks * room.f_frsize,
        tuple(name.removesuffix(".ready") for name in waiting if name.endswith(".ready")),
        tuple(name for name in names if len(name) == 24),
    )


def _sizes(folder: str, names: Sequence[str]) -> Iterator[int]:
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # recycled or removed meanwhile
            yield os.stat(os.path.join(folder, name)).st_size


__all__ = ["ArchiverCounts", "Inspected", "LocalFiles", "inspect", "look_at_files"]
