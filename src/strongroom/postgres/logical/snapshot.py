"""The one moment that a logical backup shows: an exported snapshot, held open to the end.

Rule of this file: one connection begins a read-only repeatable-read transaction, exports its
snapshot, locks every table against being changed or dropped, and stays until all is done. Every
pg_dump imports that snapshot, every count is taken in it. If the connection is lost the backup
fails: nobody may be told that parts from two moments are one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from strongroom.errors import Busy, Refused
from strongroom.postgres.logical import catalogue
from strongroom.postgres.logical.plan import Table
from strongroom.postgres.server import (
    Conninfo,
    DatabaseFacts,
    ServerFacts,
    connect,
    database_facts,
    interrupt,
    server_facts,
    translated,
)

if TYPE_CHECKING:
    import psycopg

_LOCK_BATCH = 200
_ATTEMPTS = 5
_HEARTBEAT = 5.0


@dataclass
class HeldSnapshot:
    """An exported snapshot of one database and what was seen in it. A context manager."""

    conninfo: Conninfo
    lock_timeout: float
    id: str = ""
    server: ServerFacts = field(init=False)
    database: DatabaseFacts = field(init=False)
    tables: list[Table] = field(default_factory=list)
    large_objects: tuple[int, int] = (0, 0)
    _connection: psycopg.Connection[Any] = field(init=False)

    def __enter__(self) -> HeldSnapshot:
        self._connection = connect(self.conninfo)
        try:
            with translated(self.conninfo):
                self._take()
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
        self._connection.close()

    @property
    def process(self) -> int:
        """The server process that holds the snapshot."""
        return self._connection.info.backend_pid

    def interrupt(self) -> None:
        """End whatever the connection is doing, from another thread."""
        interrupt(self._connection)

    def _take(self) -> None:
        self.server = server_facts(self._connection)
        for attempt in range(1, _ATTEMPTS + 1):
            if self._begin(last=attempt == _ATTEMPTS):
                break
        self.database = database_facts(self._connection)
        self.tables = catalogue.with_sizes(
            self._connection, self.tables, encoding=self.database.encoding
        )
        self.large_objects = catalogue.large_objects(self._connection)

    def _begin(self, *, last: bool) -> bool:
        """Export and lock; False when a table vanished in between and it is to be tried again."""
        import psycopg  # noqa: PLC0415

        connection = self._connection
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # Row security must be an error, never a filter: a dump without some rows is no backup.
        connection.execute("SET LOCAL row_security = off")
        row = connection.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        self.id = row[0]
        self.tables, names = catalogue.lockable_tables(connection)
        connection.execute(f"SET LOCAL lock_timeout = {int(self.lock_timeout * 1000)}".encode())
        try:
            self._lock(names)
        except psycopg.errors.UndefinedTable:
            connection.execute("ROLLBACK")
            if last:
                raise Busy(
                    f"Tables of {self.conninfo.where} were dropped faster than they could be locked.",
                    do="Run the same command again when no migration is running.",
                ) from None
            return False
        connection.execute("SET LOCAL lock_timeout = 0")
        return True

    def _lock(self, names: Sequence[str]) -> None:
        import psycopg  # noqa: PLC0415

        for start in range(0, len(names), _LOCK_BATCH):
            batch = names[start : start + _LOCK_BATCH]
            statement = "LOCK TABLE ONLY " + ", ONLY ".join(batch) + " IN ACCESS SHARE MODE"
            try:
                self._connection.execute(statement.encode())
            except psycopg.errors.LockNotAvailable:
                raise self._blocked(batch) from None
            except psycopg.errors.InsufficientPrivilege as error:
                raise Refused(
                    f"The role may not read everything in {self.conninfo.where}: {error}",
                    do="GRANT pg_read_all_data TO the role that takes the backup.",
                ) from None

    def _blocked(self, names: Sequence[str]) -> Busy:
        """Name who holds the lock, as far as the server tells."""
        with connect(self.conninfo) as other:
            rows = other.execute(
                "SELECT DISTINCT l.relation::regclass::text, l.pid,"
                " coalesce(nullif(a.application_name, ''), a.usename, '?')"
                " FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid"
                " WHERE l.granted AND l.mode = 'AccessExclusiveLock' AND l.locktype = 'relation'"
                " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                " AND l.relation > 16383 LIMIT 5"
            ).fetchall()
        holders = "; ".join(f"{table} by process {pid} ({who})" for table, pid, who in rows)
        return Busy(
            f"A table of {self.conninfo.where} stayed locked for {self.lock_timeout:g} s: "
            + (holders or f"one of {', '.join(names[:3])} …"),
            do="Wait for the migration or maintenance that holds the lock, or end it, "
            "then run the same command again.",
        )

    def look(self, finished: threading.Event, *, counted: Callable[[], None]) -> dict[str, Any]:
        """Count everything in the snapshot, then watch the connection until `finished`.

        `counted` is called when the counts are done. Raises DatabaseUnreachable when the
        connection is lost: the snapshot may be gone for dumps that are still to start.
        """
        with translated(self.conninfo):
            seen = self._counts()
            counted()
            while not finished.wait(_HEARTBEAT):
                self._connection.execute("SELECT 1")
            self._connection.execute("SELECT 1")
        return seen

    def _counts(self) -> dict[str, Any]:
        connection = self._connection
        return {
            "tables": [
                {
                    "schema": t.schema,
                    "name": t.name,
                    "size": t.size,
                    "rows": catalogue.count_rows(connection, t.schema, t.name),
                }
                for t in self.tables
                if not t.extension and not (t.unlogged and self.server.standby)
            ],
            "sequences": list(catalogue.sequence_values(connection)),
            "inventory": catalogue.inventory(connection),
            "roles": catalogue.roles_named(connection),
            "tablespaces": catalogue.tablespaces_named(connection),
        }
