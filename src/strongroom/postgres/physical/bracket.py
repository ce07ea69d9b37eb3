"""The server's side of a backup: the connection between pg_backup_start and pg_backup_stop.

Rule of this file: the connection that began a backup is held to its end, for the server gives the
backup up with it; it is asked at intervals, so that nothing on the way takes it for dead and a loss
is known early. Never the exclusive mode, which PostgreSQL 15 removed. A slot of the session's own
keeps the WAL from being recycled, where the role may make one. Source: PostgreSQL backup.sgml
("Making a Base Backup Using the Low Level API"), xlogfuncs.c, xlog.c (do_pg_backup_stop).
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from strongroom.errors import Refused, StrongroomError
from strongroom.format.wal import parse_lsn
from strongroom.postgres.physical.label import Label
from strongroom.postgres.server import Conninfo, ServerFacts, connect, interrupt, server_facts
from strongroom.postgres.server import translated as _translated

if TYPE_CHECKING:
    import psycopg

LABEL = "strongroom"
HEARTBEAT = 10.0
_PREREQUISITE = "55000"
_SEARCHED = ("data_directory", "config_file", "hba_file", "ident_file", "stats_temp_directory")


@dataclass(frozen=True, slots=True)
class Stopped:
    """How a backup ended, by the server: its stop, and what must go into the copy as it is."""

    lsn: int
    time: datetime
    backup_label: bytes
    tablespace_map: bytes
    label: Label


class Bracket:
    """One backup in the eyes of the server. A context manager; left without `stop` it is given up.

    `start` may wait for a checkpoint. `check` raises when the backup is lost already.
    """

    def __init__(self, conninfo: Conninfo, *, heartbeat: float = HEARTBEAT) -> None:
        self.conninfo = conninfo
        self.start_lsn = 0
        self.start_time = datetime.now(UTC)
        self.slot: str | None = None
        self._heartbeat = heartbeat
        self._over = threading.Event()
        self._lost: StrongroomError | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Bracket:
        self._connection: psycopg.Connection[Any] = connect(self.conninfo)
        try:
            with _translated(self.conninfo):
                self.server: ServerFacts = server_facts(self._connection)
                if self._connection.info.server_version >= 140000:
                    self._connection.execute("SET idle_session_timeout = 0")
        except BaseException:
            self._connection.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if kind is not None:
            interrupt(self._connection)
        if self._thread is not None:
            self._thread.join()
        self._connection.close()

    @property
    def process(self) -> int:
        """The server process that the backup hangs on."""
        return self._connection.info.backend_pid

    def settings(self) -> dict[str, str]:
        """Where the server says its files are; what the role may not see is missing."""
        with _translated(self.conninfo):
            rows = self._connection.execute(
                "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(_SEARCHED)]
            ).fetchall()
        return {name: setting for name, setting in rows if setting}

    def configuration_files(self) -> list[str]:
        """The files that the server's configuration is read from, as far as the role may see."""
        files = {path for name, path in self.settings().items() if name.endswith("_file") and path}
        import psycopg  # noqa: PLC0415

        with (
            contextlib.suppress(psycopg.errors.InsufficientPrivilege),
            _translated_but_rights(self),
        ):
            rows = self._connection.execute("SELECT DISTINCT sourcefile FROM pg_file_settings")
            files |= {path for (path,) in rows.fetchall() if path}
        return sorted(files)

    def started_at(self) -> tuple[float, int]:
        """When the server began to run, in seconds since 1970, and the port it listens on."""
        row = self._ask(
            "SELECT extract(epoch FROM pg_postmaster_start_time())::float8,"
            " current_setting('port')::int"
        )
        return float(row[0]), int(row[1])

    def begin(self) -> None:
        """Let the server begin a backup: a checkpoint, at once."""
        self._reserve()
        call = "pg_backup_start(%s, true)"
        if self._connection.info.server_version < 150000:
            call = "pg_start_backup(%s, true, false)"
        lsn, when = self._call(f"SELECT {call}::text, clock_timestamp()", [LABEL])
        self.start_lsn, self.start_time = parse_lsn(lsn), when.astimezone(UTC)
        self._thread = threading.Thread(target=self._keep, name="pg-backup", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise when the server has given the backup up, or cannot be asked."""
        if self._lost is not None:
            raise self._lost

    def end(self) -> Stopped:
        """End the backup; the WAL up to its stop is written out by then, and on a primary switched."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self.check()
        call = "pg_backup_stop(false)"
        if self._connection.info.server_version < 150000:
            call = "pg_stop_backup(false, false)"
        with _translated(self.conninfo):  # a location's bytes are whatever they are: not converted
            self._connection.execute("SET client_encoding = 'SQL_ASCII'")
        lsn, label, spaces, when = self._call(
            "SELECT textsend(lsn::text), textsend(labelfile), textsend(spcmapfile),"
            f" clock_timestamp() FROM {call}",
            [],
        )
        try:
            parsed = Label.parse(label)
        except ValueError as fault:
            raise StrongroomError(f"The server gave no usable backup_label: {fault}.") from None
        if parsed.start != self.start_lsn or parsed.incremental:
            raise StrongroomError("The server gave the backup_label of another backup.")
        return Stopped(parse_lsn(lsn.decode()), when.astimezone(UTC), label, spaces or b"", parsed)

    def replayed(self) -> int:
        """How far a standby has come in the log it replays."""
        (distance,) = self._ask("SELECT (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint")
        return int(distance or 0)

    # -- within ----------------------------------------------------------------------------

    def _reserve(self) -> None:
        """Keep the WAL from here on; without a slot it is kept as the server's settings say."""
        import psycopg  # noqa: PLC0415

        name = f"strongroom_{os.getpid()}_{self.process}"
        # A right that is not given, or no slot left, is no reason: segments are looked for later.
        with contextlib.suppress(psycopg.DatabaseError):
            self._connection.execute(
                "SELECT pg_create_physical_replication_slot(%s, true, true)", [name]
            )
            self.slot = name

    def _ask(self, query: str) -> tuple[Any, ...]:
        with _translated(self.conninfo):
            row = self._connection.execute(query.encode()).fetchone()
        assert row is not None
        return tuple(row)

    def _call(self, query: str, values: list[Any]) -> tuple[Any, ...]:
        """Begin or end: what these refuse has reasons of its own."""
        import psycopg  # noqa: PLC0415

        with _translated(self.conninfo):
            try:
                row = self._connection.execute(query.encode(), values).fetchone()
            except psycopg.errors.InsufficientPrivilege as fault:
                raise _no_right(self._connection.info.server_version, str(fault)) from None
            except psycopg.Error as fault:
                if fault.sqlstate == _PREREQUISITE:
                    raise _not_now(str(fault)) from None
                raise
        assert row is not None
        return tuple(row)

    def _keep(self) -> None:
        """Ask at intervals, so that the connection lives, and a promotion is seen."""
        standby = self.server.standby
        while not self._over.wait(self._heartbeat):
            try:
                (recovering,) = self._ask("SELECT pg_is_in_recovery()")
            except StrongroomError as fault:
                fault.what = f"The connection that holds the backup was lost. {fault.what}"
                self._lost = fault
                return
            if standby and not recovering:
                self._lost = _promoted()
                return


@contextlib.contextmanager
def _translated_but_rights(bracket: Bracket) -> Any:
    import psycopg  # noqa: PLC0415

    try:
        yield
    except psycopg.errors.InsufficientPrivilege:
        raise
    except psycopg.Error as error:
        with _translated(bracket.conninfo):
            raise error


def _no_right(version: int, text: str) -> Refused:
    functions = "pg_backup_start(text, boolean), pg_backup_stop(boolean)"
    if version < 150000:
        functions = "pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean)"
    return Refused(
        f"The role may not take a physical backup: {' '.join(text.split())}.",
        do=f"GRANT EXECUTE ON FUNCTION {functions} TO the role, in the database of the dsn.",
    )


def _promoted() -> StrongroomError:
    return StrongroomError(
        "The standby was promoted during the backup, which cannot be recovered from therefore.",
        do="Run the same command again: the server is a primary now.",
    )


def _not_now(text: str) -> StrongroomError:
    if "promoted" in text:
        return _promoted()
    return Refused(
        f"The server cannot be backed up as it is: {' '.join(text.split())}.",
        do="A physical backup needs wal_level = replica, and on a standby full_page_writes = on"
        " at the primary.",
    )


__all__ = ["Bracket", "Stopped"]
