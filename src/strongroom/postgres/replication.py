"""The replication protocol: commands, what they answer, and the streams that follow.

Rule of this file: libpq is asked without ever holding this thread in it, so that a signal, or a
thread that has failed, ends the wait; every error leaves as one of `strongroom.errors`. Source:
PostgreSQL protocol.sgml (Streaming Replication Protocol), walsender.c, basebackup.c.
"""

from __future__ import annotations

import re
import select
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from strongroom import kernel
from strongroom.errors import DatabaseUnreachable, KeyRefused, Refused, StrongroomError
from strongroom.format.wal import lsn_text, microseconds, parse_lsn
from strongroom.postgres.libpq import receiving
from strongroom.postgres.server import Conninfo, connect_replication, translated

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

_WAIT = 1000  # milliseconds between two looks at whether to go on
_COPY_DATA = 0x64  # d
_DATA = struct.Struct("!cQQq")
_KEEPALIVE = struct.Struct("!cQqB")
_STATUS = struct.Struct("!cQQQqB")
_NOTHING = memoryview(b"")
_IDENTIFIER = re.compile(r"[a-z0-9_]{1,63}")

DATA_CORRUPTED = "XX001"
UNDEFINED_FILE = "58P01"

Row = tuple[bytes | None, ...]


class ServerError(Exception):
    """What the server answered instead: SQLSTATE and its words. Never leaves this room."""

    def __init__(self, state: str, text: str) -> None:
        super().__init__(f"{text} ({state})")
        self.state, self.text = state, text


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the server said beside its answer. `function` is where in its source."""

    text: str
    function: str


@dataclass(frozen=True, slots=True)
class System:
    """What IDENTIFY_SYSTEM tells."""

    system_id: int
    timeline: int
    position: int


@dataclass(frozen=True, slots=True)
class WalData:
    """A piece of the log: where it begins, how far the server has it, the server's clock (µs since
    2000). Without `data` a sign of life; `reply` asks for an answer at once."""

    start: int
    end: int
    sent: int
    data: memoryview | None
    reply: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """What came of a copy: bytes laid into a buffer, what did not fit of the last message, and a
    message that is no data, or that the copy has ended."""

    used: int
    rest: memoryview = _NOTHING
    other: memoryview | None = None
    ended: bool = False


class Replication:
    """One connection that speaks the replication protocol. A context manager."""

    def __init__(self, conninfo: Conninfo, *, name: str = "strongroom") -> None:
        self.conninfo, self._name = conninfo, name
        self.notices: list[Notice] = []
        self.stopped: Callable[[], bool] = lambda: False

    def __enter__(self) -> Replication:
        self._connection = connect_replication(self.conninfo, self._name)
        self._pq = self._connection.pgconn
        self._pq.notice_handler = self._noticed
        self._poll = select.poll()
        self._poll.register(self._pq.socket, select.POLLIN)
        self._libpq = receiving(self._pq) if kernel.copy_data is not None else None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    @property
    def version(self) -> int:
        """server_version_num."""
        return self._pq.server_version

    @property
    def process(self) -> int:
        """The server process at the other end."""
        return self._pq.backend_pid

    # -- commands that answer with rows ----------------------------------------------------

    def show(self, name: str) -> str:
        """A setting of the server, "" where it has none of that name or does not tell."""
        try:
            rows = self.ask(f"SHOW {name}")
        except ServerError:
            return ""
        return (rows[0][0] or b"").decode("utf-8", "replace")

    def identify(self) -> System:
        """Which system this is, on which timeline, and how far."""
        system, timeline, position, *_ = self.ask("IDENTIFY_SYSTEM")[0]
        assert system is not None
        assert timeline is not None
        assert position is not None
        return System(int(system), int(timeline), parse_lsn(position.decode()))

    def history(self, timeline: int) -> tuple[str, bytes]:
        """The history file of a timeline: name and content."""
        name, content = self.ask(f"TIMELINE_HISTORY {int(timeline)}")[0]
        return (name or b"").decode("ascii"), content or b""

    def reserve(self, name: str, *, temporary: bool = True) -> None:
        """Make a physical slot that keeps the log from here on."""
        how = " TEMPORARY" if temporary else ""
        self.ask(f"CREATE_REPLICATION_SLOT {_identifier(name)}{how} PHYSICAL RESERVE_WAL")

    def drop(self, name: str) -> None:
        """Remove a slot; the server keeps nothing for it any more."""
        self.ask(f"DROP_REPLICATION_SLOT {_identifier(name)}")

    def ask(self, command: str) -> list[Row]:
        """Run a command that ends at once; its last rows."""
        self.send(command)
        rows: list[Row] = []
        try:
            while (result := self.result()) is not None:
                if result.ntuples:
                    rows = rows_of(result)
        except ServerError:
            self.drain()  # what ends the answer comes after the error
            raise
        return rows

    # -- the steps that commands are made of ----------------------------------------------

    def send(self, command: str) -> None:
        """Begin a command."""
        with translated(self.conninfo):
            self._pq.send_query(command.encode("utf-8"))
            self._flush()

    def result(self) -> PGresult | None:
        """The next result of a command; None after the last. ServerError, DatabaseUnreachable."""
        from psycopg.pq import DiagnosticField, ExecStatus  # noqa: PLC0415

        with translated(self.conninfo):
            while self._pq.is_busy():
                self._wait()
                self._pq.consume_input()
            result = self._pq.get_result()
        if result is None or result.status != ExecStatus.FATAL_ERROR:
            return result
        state = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
        text = " ".join(_text(result.error_message).split())
        if not state or state.startswith("57P"):
            raise self._lost(text)
        raise ServerError(state, text)

    def drain(self) -> None:
        """Take what is left of a command."""
        while self.result() is not None:
            pass

    def message(self, timeout: float | None = None) -> memoryview | None:
        """The next message of a copy, None at its end; `bytes` of length 0 when `timeout` passed.

        It is valid until the next call.
        """
        get, consume = self._pq.get_copy_data, self._pq.consume_input
        until = None if timeout is None else time.monotonic() + timeout
        with translated(self.conninfo):
            while True:
                size, data = get(1)
                if size > 0:
                    return data
                if size < 0:
                    return None
                consume()
                size, data = get(1)
                if size > 0:
                    return data
                if size < 0:
                    return None
                if until is not None and time.monotonic() >= until:
                    return memoryview(b"")
                self._wait(until)
                consume()

    def receive(self, into: memoryview, *, typed: bool) -> Received:
        """Lay the data of a copy into a buffer until it is full, or something else has come.

        `typed`: messages begin with a letter, `d` for data. Not for use after the copy has ended.
        """
        if self._libpq is None:
            return self._received(into, typed=typed)
        while True:
            used, rest, other, state = kernel.copy_data(
                self._libpq, self._pq.socket, into, typed, _WAIT
            )
            if state == kernel.COPY_FAILED:
                self._failed()
            if self.stopped():
                raise StoppedWaiting
            ended = state == kernel.COPY_ENDED
            if used or other is not None or ended:
                return Received(
                    used, memoryview(rest), None if other is None else memoryview(other), ended
                )

    def _received(self, into: memoryview, *, typed: bool) -> Received:
        found = self.message()
        if found is None:
            return Received(0, ended=True)
        if typed and found[0] != _COPY_DATA:
            return Received(0, other=found)
        data = found[1:] if typed else found
        used = min(len(data), len(into))
        into[:used] = data[:used]
        return Received(used, data[used:])

    def _failed(self) -> NoReturn:
        from psycopg import OperationalError  # noqa: PLC0415

        with translated(self.conninfo):
            raise OperationalError(f"receiving copy data failed: {self._pq.get_error_message()}")

    # -- the log ---------------------------------------------------------------------------

    def start(self, position: int, timeline: int, slot: str | None = None) -> None:
        """Let the server send the log from a position of a timeline."""
        from psycopg.pq import ExecStatus  # noqa: PLC0415

        held = f"SLOT {_identifier(slot)} " if slot else ""
        self.send(f"START_REPLICATION {held}PHYSICAL {lsn_text(position)} TIMELINE {int(timeline)}")
        result = self.result()
        if result is None or result.status != ExecStatus.COPY_BOTH:
            raise StrongroomError(f"The server does not send the log from {lsn_text(position)}.")

    def wal(self, timeout: float) -> WalData | None:
        """The next piece of the log; one without anything when `timeout` passed; None at the end of
        the timeline."""
        found = self.message(timeout)
        if found is None:
            return None
        if not found:
            return WalData(0, 0, 0, None)
        kind = bytes(found[:1])
        if kind == b"w":
            _, start, end, sent = _DATA.unpack_from(found)
            return WalData(start, end, sent, found[_DATA.size :])
        if kind == b"k":
            _, end, sent, reply = _KEEPALIVE.unpack_from(found)
            return WalData(0, end, sent, None, bool(reply))
        raise StrongroomError(f"The server sent an unknown message in the log: {kind!r}.")

    def ended(self, flushed: int) -> tuple[int, int] | None:
        """After `wal` told the end, and all is durable: the timeline that follows this one and where
        it begins; None where the server ends the stream because it is shutting down. ServerError
        where it has lost the log that it was to send."""
        from psycopg.pq import ExecStatus  # noqa: PLC0415

        found = None
        while (result := self.result()) is not None:
            if result.status in (ExecStatus.COPY_IN, ExecStatus.COPY_BOTH):
                self.report(flushed, flushed)
                with translated(self.conninfo):
                    self._pq.put_copy_end()
                    self._flush()
            elif result.ntuples:
                timeline, start = rows_of(result)[0][:2]
                found = int(timeline or b""), parse_lsn((start or b"").decode())
        return found

    def finish(self, timeout: float) -> None:
        """End the stream in order, so that the server has read what was reported last."""
        with translated(self.conninfo):
            self._pq.put_copy_end()
            self._flush()
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if self.wal(max(0.0, until - time.monotonic())) is None:
                break

    def report(self, written: int, flushed: int, *, reply: bool = False) -> None:
        """Tell how far the log is written and durable here. What is applied is what is durable."""
        now = microseconds(datetime.now(UTC))
        with translated(self.conninfo):
            self._pq.put_copy_data(_STATUS.pack(b"r", written, flushed, flushed, now, int(reply)))
            self._flush()

    # -- within ----------------------------------------------------------------------------

    def _flush(self) -> None:
        while self._pq.flush():
            select.select([], [self._pq.socket], [], 1.0)

    def _wait(self, until: float | None = None) -> None:
        wait = (
            _WAIT if until is None else max(0, min(_WAIT, int((until - time.monotonic()) * 1000)))
        )
        self._poll.poll(wait)
        if self.stopped():
            raise StoppedWaiting

    def _lost(self, text: str) -> DatabaseUnreachable:
        where = self.conninfo.where
        return DatabaseUnreachable(
            f"The connection to {where} was lost: {text or 'it was closed'}."
        )

    def _noticed(self, result: PGresult) -> None:
        from psycopg.pq import DiagnosticField  # noqa: PLC0415

        text = _text(result.error_field(DiagnosticField.MESSAGE_PRIMARY) or b"")
        function = _text(result.error_field(DiagnosticField.SOURCE_FUNCTION) or b"")
        self.notices.append(Notice(text, function))


class StoppedWaiting(BaseException):
    """Another thread has failed and told us to stop."""


def rows_of(result: PGresult) -> list[Row]:
    """The rows of a result."""
    return [
        tuple(result.get_value(row, column) for column in range(result.nfields))
        for row in range(result.ntuples)
    ]


def quoted(text: str) -> str:
    """A string of the replication grammar."""
    return "'" + text.replace("'", "''") + "'"


def cannot_connect(error: StrongroomError) -> StrongroomError:
    """Say what keeps us from replication, where the server's words tell. They may be in any
    language; names of settings and rights are not."""
    text = error.what
    if "max_wal_senders" in text:
        return Refused(
            f"The server has no room for a replication connection: {text}",
            do="Raise max_wal_senders of the server (0 turns replication off; it needs wal_level ="
            " replica) and start it again; then run the same command again.",
        )
    if "replication role" in text or "REPLICATION" in text or "WAL sender" in text:
        return Refused(
            f"The role may not use the replication protocol: {text}",
            do="ALTER ROLE … REPLICATION, on the server; then run the same command again.",
        )
    if isinstance(error, KeyRefused) and "pg_hba" in text:
        error.do = (
            'Add a line "host replication ROLE ADDRESS scram-sha-256" to pg_hba.conf of the server'
            ' ("all" does not cover replication) and reload it.'
        )
    return error


def _identifier(name: str) -> str:
    if not _IDENTIFIER.fullmatch(name):
        raise ValueError(f"not the name of a replication slot: {name!r}")
    return name


def _text(raw: Any) -> str:
    return bytes(raw).decode("utf-8", "replace") if raw else ""


__all__ = [
    "DATA_CORRUPTED",
    "UNDEFINED_FILE",
    "Notice",
    "Received",
    "Replication",
    "ServerError",
    "StoppedWaiting",
    "System",
    "WalData",
    "cannot_connect",
    "quoted",
    "rows_of",
]
