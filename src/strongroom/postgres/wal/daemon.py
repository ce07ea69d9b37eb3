"""The warm process behind `wal push` and `wal fetch`: an open repository at a unix socket.

It serves its own user and root, and questions of its own configuration only; any other is told to do
the work itself. A daemon that dies takes nothing with it: nothing is durable in it, and its clients
do the work themselves.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import stat
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from typing import Protocol

from strongroom.errors import Busy, ConfigError, StorageUnreachable, StrongroomError, UsageError
from strongroom.postgres.wal.client import (
    DIRECT,
    MAGIC,
    QUESTION_LIMIT,
    fetch_status,
    peer_uid,
    push_status,
    socket_name,
)
from strongroom.postgres.wal.directory import DataDirectory
from strongroom.postgres.wal.fetch import Fetcher
from strongroom.postgres.wal.push import Push

STANDBY = "standby.signal"
_SIGN_OF_LIFE = 5.0
_CLIENTS = 64
_RIGHTS = socket.SOL_SOCKET, socket.SCM_RIGHTS


@dataclass(frozen=True, slots=True)
class Question:
    """What a client asks: of which configuration and source, and to do what."""

    verb: str  # push or fetch
    configuration: str
    repository: str
    source: str
    name: str  # of the file, to fetch
    path: str
    flags: frozenset[str]  # partial, standby, alone

    def fields(self) -> list[str]:
        """As they are sent."""
        flags = ",".join(sorted(self.flags))
        return [
            self.verb,
            self.configuration,
            self.repository,
            self.source,
            self.name,
            self.path,
            flags,
        ]

    @staticmethod
    def read(body: bytes) -> Question:
        """Inverse of `fields`; ValueError."""
        verb, configuration, repository, source, name, path, flags = (
            os.fsdecode(field) for field in body.split(b"\0")
        )
        chosen = frozenset(filter(None, flags.split(",")))
        return Question(verb, configuration, repository, source, name, path, chosen)


class Served(Protocol):
    """What the daemon knows of its configuration."""

    def ours(self, question: Question) -> bool:
        """Whether the question is of the configuration that was read, and that still stands."""

    def source(self, name: str) -> str:
        """The source that is meant; UsageError when there is none or more than one."""


class Daemon:
    """Answers at one socket."""

    def __init__(
        self,
        served: Served,
        *,
        push: Push,
        fetcher: Fetcher,
        explain: Callable[[StrongroomError], str],
        tell: Callable[[str], None],
    ) -> None:
        self._served, self._push, self._fetcher = served, push, fetcher
        self._explain, self._tell = explain, tell
        self._pool = ThreadPoolExecutor(_CLIENTS, thread_name_prefix="wal-client")

    def serve(self, listener: socket.socket, *, idle: float | None = None) -> None:
        """Serve until an exception ends it, or for `idle` seconds nobody asked."""
        listener.settimeout(idle)
        with contextlib.suppress(TimeoutError):
            while True:
                channel, _ = listener.accept()
                threading.Thread(target=self._talk, args=(channel,), daemon=True).start()

    # -- one client ------------------------------------------------------------------------

    def _talk(self, channel: socket.socket) -> None:
        with channel, contextlib.suppress(OSError):
            channel.settimeout(_SIGN_OF_LIFE)
            if peer_uid(channel) not in (0, os.geteuid()):
                return
            asked = _receive(channel)
            if asked is None:
                return
            question, directory = asked
            try:
                channel.settimeout(60.0)
                self._answer(channel, question, directory)
            finally:
                directory.close()

    def _answer(self, channel: socket.socket, question: Question, directory: DataDirectory) -> None:
        if not self._served.ours(question):
            _reply(channel, DIRECT, "")
            return
        job = self._pool.submit(self._carry_out, question, directory)
        gone = False
        while True:
            try:
                status, said = job.result(_SIGN_OF_LIFE)
                break
            except Late:
                if not gone:
                    try:
                        channel.sendall(b".")
                    except OSError:  # it was killed; the work is finished all the same
                        gone = True
        if not gone:
            _reply(channel, status, said)

    def _carry_out(self, question: Question, directory: DataDirectory) -> tuple[int, str]:
        fetching = question.verb == "fetch"
        limit = fetch_status if fetching else push_status
        try:
            if fetching:
                return self._fetch(question, directory)
            self._push(directory, question.path, self._served.source(question.source))
        except StrongroomError as fault:
            said = self._explain(fault)
            self._tell(said)
            return limit(fault.exit_status), said
        except Exception as fault:
            said = f"strongroom: an error that nobody foresaw: {type(fault).__name__}: {fault}"
            self._tell(said)
            return limit(1), said
        return 0, ""

    def _fetch(self, question: Question, directory: DataDirectory) -> tuple[int, str]:
        try:
            return answer_fetch(self._fetcher, directory, question)
        except StorageUnreachable as fault:
            if may_ask_again(directory, question.flags):
                return 1, self._explain(fault)
            raise


def answer_fetch(fetcher: Fetcher, directory: DataDirectory, question: Question) -> tuple[int, str]:
    """The exit status of a fetch that came to an answer, and what to say."""
    found = fetcher.fetch(
        directory, question.name, question.path, partial="partial" in question.flags
    )
    return (0, "") if found else (1, "")


def may_ask_again(directory: DataDirectory, flags: frozenset[str]) -> bool:
    """Whether a fault of the way there may be told as "not there": a standby asks again for ever."""
    return "standby" in flags and directory.exists(STANDBY)


def listen(path: str) -> socket.socket:
    """Listen at a socket for our own user; Busy when a daemon answers there, ConfigError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if not path.startswith("@"):
            _clear(path)
        before = os.umask(0o177)
        try:
            listener.bind(socket_name(path))
        finally:
            os.umask(before)
        listener.listen(_CLIENTS)
    except OSError as fault:
        listener.close()
        raise ConfigError(
            f"The socket {path} cannot be made: {fault.strerror}.",
            do="Name another with --socket; its folder must exist and be ours.",
        ) from None
    except BaseException:
        listener.close()
        raise
    return listener


def _clear(path: str) -> None:
    """Remove the socket of a daemon that died; Busy when one lives."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(
                f"{path} is there and is no socket.", do="Name another with --socket."
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fsencode(path))
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise Busy(
        f"A daemon answers at {path} already.",
        means="This one was not started; that one goes on.",
        do="Stop it first, or name another socket with --socket.",
    )


def _receive(channel: socket.socket) -> tuple[Question, DataDirectory] | None:
    """Read a question and the directory that came with it."""
    data, rights, _, _ = channel.recvmsg(
        QUESTION_LIMIT, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for level, kind, content in rights:
        if (level, kind) == _RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    try:
        if len(descriptors) != 1:
            return None
        while len(data) < 8 or len(data) < 8 + int.from_bytes(data[4:8], "little"):
            more = channel.recv(QUESTION_LIMIT) if len(data) < QUESTION_LIMIT else b""
            if not more:
                return None
            data += more
        if data[:4] != MAGIC:
            return None
        try:
            question = Question.read(data[8 : 8 + int.from_bytes(data[4:8], "little")])
        except ValueError:
            return None
        held = DataDirectory(descriptors.pop())
        return question, held
    finally:
        for left in descriptors:
            os.close(left)


def _reply(channel: socket.socket, status: int, said: str) -> None:
    text = said.encode("utf-8", "backslashreplace")
    channel.sendall(b"=" + bytes([status]) + len(text).to_bytes(4, "little") + text)


class OneConfiguration:
    """A configuration as it was read: its file, the repository named beside it, its sources."""

    def __init__(self, path: str | None, repository: str, sources: Mapping[str, bool]) -> None:
        self._path = None if path is None else os.path.realpath(path)
        self._stamp = _file_stamp(self._path)
        self._repository, self._sources = repository, sources

    def ours(self, question: Question) -> bool:
        """Whether a question is of this configuration, and it was not changed since."""
        same = (question.configuration, question.repository) == (self._path or "", self._repository)
        return same and _file_stamp(self._path) == self._stamp

    def source(self, name: str) -> str:
        """The source that is meant."""
        return choose_source(self._sources, name)


def choose_source(sources: Mapping[str, bool], name: str) -> str:
    """The source `name`, or the only one that is backed up physically.

    `sources` are the configured databases; True for those that are backed up physically.
    """
    if name:
        if name not in sources:
            known = ", ".join(sources) or "none"
            raise UsageError(
                f"No database is configured as source {name!r}; configured: {known}.",
                do="Name one of these with --source, or add it to strongroom.toml.",
            )
        return name
    physical = [one for one, chosen in sources.items() if chosen]
    if len(physical) != 1:
        what = "Several sources are" if physical else "No source is"
        raise UsageError(
            f"{what} a database that is backed up physically: whose WAL is this?",
            do="Name the source in archive_command: strongroom wal push --source NAME %p",
        )
    return physical[0]


def _file_stamp(path: str | None) -> tuple[int, int, int] | None:
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


__all__ = ["Daemon", "OneConfiguration", "Question", "choose_source", "listen"]
