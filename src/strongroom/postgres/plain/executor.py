"""A plain dump put into a database over libpq: one connection, constant memory, no psql.

Rule of this file: every statement goes to the server alone, by the extended protocol, which takes
one statement at a time: what we took for one can never be two there. The policy (`policy.py`)
decides before a statement is sent; the first refusal or error ends the run, and the message says
the line and what state the database is in. Rows go in large buffers while the next are decompressed.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from strongroom.errors import Damaged, DatabaseUnreachable, Refused, StrongroomError
from strongroom.postgres.logical.target import Target, exists
from strongroom.postgres.plain import policy
from strongroom.postgres.plain.lexer import (
    MAX_STATEMENT,
    CutShortSQLError,
    Lexer,
    RefusedSQLError,
    Rows,
    RowsEnd,
    Statement,
)
from strongroom.postgres.server import Conninfo, connect, quoted, translated
from strongroom.progress import Progress, Silent

if TYPE_CHECKING:
    import psycopg

Read = Callable[[int], bytes]
PIECE = 1 << 20
_AHEAD = 4
# As the logical restore has them: rows are lost with the unfinished database or not at all.
_SETTINGS = {
    "synchronous_commit": "off",
    "maintenance_work_mem": "256MB",
    "check_function_bodies": "off",
}
# Settings that a newer pg_dump sets and an older server does not know: psql goes on without them.
_NEW_SETTINGS = frozenset(
    (b"transaction_timeout", b"default_table_access_method", b"default_with_oids", b"row_security")
)
# Whose functions can run programs or reach files of the server.
_RIGHTS = (
    "SELECT current_user::text, current_setting('is_superuser') = 'on', EXISTS (SELECT FROM pg_roles"
    " WHERE rolname IN ('pg_execute_server_program', 'pg_write_server_files',"
    " 'pg_read_server_files') AND pg_has_role(current_user, oid, 'MEMBER'))"
)
_LEFT = (
    "WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'"
    " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.deptype = 'e' AND d.classid = '{0}'::regclass"
    " AND d.objid = x.oid)"
)
_OCCUPIED = " + ".join(
    (
        "(SELECT count(*) FROM pg_class x JOIN pg_namespace n ON n.oid = relnamespace "
        + _LEFT.format("pg_class")
        + ")",
        "(SELECT count(*) FROM pg_proc x JOIN pg_namespace n ON n.oid = pronamespace "
        + _LEFT.format("pg_proc")
        + ")",
        "(SELECT count(*) FROM pg_type x JOIN pg_namespace n ON n.oid = typnamespace "
        + _LEFT.format("pg_type")
        + ")",
        "(SELECT count(*) FROM pg_namespace n WHERE n.nspname NOT LIKE 'pg\\_%'"
        " AND n.nspname NOT IN ('information_schema', 'public'))",
        "(SELECT count(*) FROM pg_largeobject_metadata)",
        "(SELECT count(*) FROM pg_event_trigger)",
    )
)


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore of a plain dump did. `tables` is rows by the name written in the dump."""

    statements: int
    size: int
    tables: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """All rows that came in by COPY."""
        return sum(self.tables.values())


@dataclass
class _Run:
    """What one run has done so far."""

    statements: int = 0
    size: int = 0
    line: int = 0
    tables: dict[bytes, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class PlainRestore:
    """Restores plain dumps into one existing database.

    `trust` allows statements that pg_dump does not write; COPY to and from programs and files,
    ALTER SYSTEM, LOAD and backslash commands are refused all the same. `code` allows what acts
    outside the database (`policy.power`), and a role that may run programs on the server for a dump
    that is not `vouched` for. `owner` and `privileges`
    False leave out who owns what and who may do what. `occupied` True allows a database that is
    not empty. `verify` counts every table afterwards.
    """

    def __init__(
        self,
        dsn: str,
        *,
        password: str | None = None,
        trust: bool = False,
        code: bool = False,
        vouched: bool = True,
        owner: bool = True,
        privileges: bool = True,
        occupied: bool = False,
        verify: bool = True,
        max_statement: int = MAX_STATEMENT,
    ) -> None:
        self._conninfo = Conninfo.parse(dsn, password=password)
        self._trust = trust
        self._code = code or trust
        self._vouched = vouched
        self._left_out = {"owner": not owner, "privileges": not privileges, "": False}
        self._occupied = occupied
        self._verify = verify
        self._max_statement = max_statement

    def __repr__(self) -> str:
        return f"<PlainRestore {self._conninfo.where}>"

    def run(self, read: Read, *, progress: Progress | None = None) -> Restored:
        """Run the dump that `read(most)` gives, b"" at its end; what `read` raises, it raises.

        Raises Refused for what is not run, Damaged for a dump that is cut short or whose rows are
        not all there afterwards, StrongroomError for what the server does not take.
        """
        progress = progress or Silent()
        run = _Run()
        conninfo = self._conninfo.with_settings(**_SETTINGS)
        with connect(conninfo) as connection:
            # A dump sets the path that it was written for; without one no bare name is found.
            path = '"$user", public' if self._trust else ""
            connection.execute("SELECT set_config('search_path', %s, false)", [path])
            self._preflight(connection, run)
            try:
                progress.phase("restoring")
                with _Ahead(read) as pieces:
                    self._stream(connection, pieces, run, progress)
                if self._verify:
                    progress.phase("verifying")
                    _verify(connection, run)
                _flush(connection)
            except StrongroomError as fault:
                fault.means = _state(run)
                raise
        tables = {name.decode("utf-8", "replace"): rows for name, rows in run.tables.items()}
        return Restored(run.statements, run.size, tables, tuple(run.notes))

    def _preflight(self, connection: psycopg.Connection[Any], run: _Run) -> None:
        with translated(self._conninfo):
            row = connection.execute(f"SELECT {_OCCUPIED}".encode()).fetchone()
            rights = connection.execute(_RIGHTS.encode()).fetchone()
        if row and row[0] and not self._occupied:
            raise Refused(
                f"{self._conninfo.where} is not empty: {row[0]} objects are in it.".replace(
                    "database", "Database", 1
                ),
                do="Restore into a new database, or say that objects in it may be added to.",
            )
        role, superuser, reaching = rights or ("", False, False)
        if (superuser or reaching) and not (self._vouched or self._code):
            raise Refused(
                f"Nobody vouches for the dump, and what is in it would run as {role!r}, who may run "
                "programs or reach files on the server.",
                do="Restore as a role with CREATEDB and nothing else (with --no-owner); or, if you "
                "know who wrote the dump, --trust-code.",
            )
        if superuser:
            run.notes.append(
                "restored as a superuser: functions of the dump ran with all rights on the server"
            )

    def _stream(
        self,
        connection: psycopg.Connection[Any],
        pieces: Iterator[bytes],
        run: _Run,
        progress: Progress,
    ) -> None:
        from psycopg import pq  # noqa: PLC0415

        lexer = Lexer(limit=self._max_statement)
        wire = _Wire(connection.pgconn, pq)
        table = b""
        lines = 0

        def act(event: Statement | Rows | RowsEnd) -> None:
            nonlocal table, lines
            if isinstance(event, Rows):
                wire.rows(event.data)
                lines += event.lines
            elif isinstance(event, RowsEnd):
                taken = wire.end_rows(run.line)
                if taken != lines:
                    raise Damaged(
                        f"Line {event.line}: {lines} rows of {_text(table)} were sent and the "
                        f"server took {taken}."
                    )
                run.tables[table] = run.tables.get(table, 0) + taken
            else:
                run.line = event.line
                self._judge(event)
                if self._left_out[policy.about_rights(event.tokens)]:
                    return
                wire.statement(event, run)
                run.statements += 1
                if event.copies:
                    table, lines = policy.table_of(event.tokens), 0
                elif connection.pgconn.parameter_status(b"standard_conforming_strings") != (
                    b"on" if lexer.standard else b"off"
                ):
                    raise Refused(
                        f"Line {event.line}: the dump changed how strings are read by a way "
                        "that pg_dump does not take."
                    )

        try:
            for piece in pieces:
                for event in lexer.feed(piece):
                    act(event)
                run.size += len(piece)
                progress.advance(size=len(piece))
            for event in lexer.finish():
                act(event)
        except CutShortSQLError as fault:
            wire.abandon("the dump is cut short")
            raise Damaged(
                f"The dump is not complete: {fault}.", do="Take another copy of the dump."
            ) from None
        except RefusedSQLError as fault:
            wire.abandon("the dump is refused")
            raise Refused(
                f"The dump is refused at {fault}.",
                do="Do not give this dump to psql. Dump again with the newest pg_dump.",
            ) from None
        except BaseException:
            wire.abandon("the restore was stopped")
            raise
        if wire.in_transaction:
            raise Damaged("The dump ends inside a transaction that it began.")

    def _judge(self, statement: Statement) -> None:
        why = policy.never(statement.tokens)
        do = "Do not give this dump to psql. Dump again with the newest pg_dump."
        if why is None and not self._trust:
            why = policy.strange(statement.tokens)
            do = "If you know who wrote the dump and trust it, allow foreign statements (trust)."
        if why is None and not self._code:
            why = policy.power(statement.tokens)
            do = "If you know who wrote it and want that to run on this server, add --trust-code."
        if why is None and self._trust and statement.tokens[0] == b"set":
            why = _encoding_set(statement.tokens)
        if why is not None:
            raise Refused(f"The dump is refused at line {statement.line}: {why}.", do=do)


def _encoding_set(found: tuple[bytes, ...]) -> str | None:
    if policy.setting_of(found) == b"client_encoding":
        return policy.encoding_fault(found[3])
    return None


class _Wire:
    """libpq, as little of it as is needed."""

    def __init__(self, connection: Any, pq: Any) -> None:
        self._connection, self._pq = connection, pq
        # psycopg's own way makes libpq keep, and move about, all that the server has not taken yet.
        connection.nonblocking = 0
        self._copying = False

    @property
    def in_transaction(self) -> bool:
        return bool(self._connection.transaction_status != self._pq.TransactionStatus.IDLE)

    def statement(self, statement: Statement, run: _Run) -> None:
        """Run one; after a COPY the server waits for rows."""
        # No parameters, but the extended protocol: the server takes one statement, never two.
        result = self._connection.exec_params(statement.text, None)
        status = self._pq.ExecStatus(result.status)
        if status == self._pq.ExecStatus.COPY_IN:
            self._copying = True
            if not statement.copies:
                raise Refused(f"Line {statement.line}: the server asks for rows out of turn.")
            return
        good = (self._pq.ExecStatus.COMMAND_OK, self._pq.ExecStatus.TUPLES_OK)
        if status in good and not statement.copies:
            return
        if self._unknown_setting(statement, result):
            run.notes.append(f"the server does not know {_text(statement.tokens[1])}")
            return
        raise self._error(result, statement.line, statement.text)

    def _unknown_setting(self, statement: Statement, result: Any) -> bool:
        state = result.error_field(self._pq.DiagnosticField.SQLSTATE)
        return state == b"42704" and policy.setting_of(statement.tokens) in _NEW_SETTINGS

    def rows(self, data: memoryview) -> None:
        """Send rows; libpq blocks while the server is busy with those before."""
        import psycopg  # noqa: PLC0415

        try:
            self._connection.put_copy_data(data)
        except psycopg.OperationalError as error:
            self._copying = False
            raise DatabaseUnreachable(f"The connection was lost: {error}") from None

    def end_rows(self, line: int) -> int:
        """Say that these were all; return how many rows the server took."""
        self._copying = False
        self._connection.put_copy_end()
        taken, fault = 0, None
        while (result := self._connection.get_result()) is not None:
            if result.status == self._pq.ExecStatus.COMMAND_OK:
                taken = int(result.command_tuples or 0)
            else:
                fault = result
        if fault is not None:
            raise self._error(fault, line, b"COPY")
        return taken

    def abandon(self, why: str) -> None:
        """End a COPY that is under way so that nothing of it stays."""
        import psycopg  # noqa: PLC0415

        if not self._copying:
            return
        self._copying = False
        try:
            self._connection.put_copy_end(why.encode())
            while self._connection.get_result() is not None:
                pass
        except psycopg.Error:
            self._connection.finish()

    def _error(self, result: Any, line: int, text: bytes) -> StrongroomError:
        field_of = self._pq.DiagnosticField
        state = _text(result.error_field(field_of.SQLSTATE) or b"")
        said = _text(result.error_field(field_of.MESSAGE_PRIMARY) or result.error_message or b"")
        context = _text(result.error_field(field_of.CONTEXT) or b"").split("\n")[0][:200]
        words = " ".join(_text(text[:120]).split()[:6])
        what = f"Line {line}: the server refused {words!r}: {said.strip()}"
        what += f" ({context})." if context else "."
        if not state or state[:2] in ("08", "57"):
            return DatabaseUnreachable(what)
        return StrongroomError(
            what,
            do="Mend the cause (a missing role or extension, rights, room on disk) and restore "
            "again into an empty database.",
        )


class _Ahead:
    """Reads ahead on a thread of its own, a few pieces: decompression goes on while rows are sent."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._queue: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)

    def __enter__(self) -> Iterator[bytes]:
        self._thread.start()
        return self._pieces()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                time.sleep(0.001)
        self._thread.join()

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                piece = self._read(PIECE)
                self._queue.put(piece)
                if not piece:
                    return
        except BaseException as fault:
            self._queue.put(fault)

    def _pieces(self) -> Iterator[bytes]:
        while piece := self._queue.get():
            if isinstance(piece, BaseException):
                raise piece
            yield piece


def _verify(connection: psycopg.Connection[Any], run: _Run) -> None:
    """Count the rows of every table that came in."""
    pgconn = connection.pgconn
    wrong = []
    for name, rows in run.tables.items():
        result = pgconn.exec_params(b"SELECT count(*) FROM ONLY " + name, None)
        found = result.get_value(0, 0) if result.ntuples else None
        if found is None or int(found) != rows:
            wrong.append(f"{_text(name)} has {_text(found or b'no')} rows instead of {rows}")
    if wrong:
        raise Damaged(
            f"{len(wrong)} tables do not have the rows that the dump holds: "
            + "; ".join(wrong[:5])
            + "."
        )


def _flush(connection: psycopg.Connection[Any]) -> None:
    """Make durable what was committed without waiting: one commit that waits, and writes."""
    connection.execute("SET synchronous_commit = on")
    connection.execute("CREATE TEMPORARY TABLE strongroom_flush ()")


def _state(run: _Run) -> str:
    if not run.statements:
        return "Nothing was changed: no statement of the dump was run."
    return (
        f"{run.statements} statements up to line {run.line} were run and stay in the database: "
        "it is not complete. Drop it before you try again; every other database is as it was."
    )


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def restore_plain(
    read: Read,
    dsn: str,
    target: str,
    *,
    password: str | None = None,
    replace: bool = False,
    trust: bool = False,
    code: bool = False,
    vouched: bool = True,
    owner: bool = True,
    privileges: bool = True,
    encoding: str = "UTF8",
    progress: Progress | None = None,
) -> Restored:
    """Restore a plain dump as the new database `target`: made beside, filled, verified, then named.

    `dsn` is of a maintenance database. `replace` lets it take the place of an existing one, which
    stays as it is until the new one is complete. A run that fails drops what it made. Raises as
    `PlainRestore.run` does; Refused when `target` exists and may not be replaced.
    """
    conninfo = Conninfo.parse(dsn, password=password)
    made = Target(conninfo, target)
    with connect(conninfo) as connection, translated(conninfo):
        if exists(connection, target) and not replace:
            raise Refused(
                f"A database {target!r} exists already.",
                do="Restore under another name, or say that it may be replaced.",
            )
        row = connection.execute(
            "SELECT datcollate, datctype FROM pg_database WHERE datname = 'template0'"
        ).fetchone()
    assert row is not None
    facts = {"encoding": encoding, "collate": row[0], "ctype": row[1], "provider": "c"}
    made.create(facts, locale=None)
    inside = conninfo.on(made.unfinished)
    secret = conninfo.secrets.get("password")
    restore = PlainRestore(
        inside.public(),
        password=secret,
        trust=trust,
        code=code,
        vouched=vouched,
        owner=owner,
        privileges=privileges,
    )
    try:
        done = restore.run(read, progress=progress)
        with connect(inside) as connection, translated(inside):
            connection.execute(f"COMMENT ON DATABASE {quoted(made.unfinished)} IS NULL".encode())
        left = made.take_name(replace=replace)
    except BaseException as fault:
        state = made.abandon(keep=False)
        if isinstance(fault, StrongroomError):
            fault.means = state
        raise
    return Restored(done.statements, done.size, done.tables, (*done.notes, *left))
