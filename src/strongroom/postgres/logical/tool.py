"""Child processes of PostgreSQL's client programs: started safely, heard, and always ended.

Rule of this file: argument lists only, the password in the child's environment, every child in a
process group of its own (a Ctrl-C is ours to act on, not theirs), every byte of stderr read, and
no exit status ignored. What a program says is turned into our errors here and nowhere else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType

from strongroom.errors import (
    Busy,
    DatabaseUnreachable,
    Interrupted,
    KeyRefused,
    Refused,
    StrongroomError,
    TargetFull,
)
from strongroom.postgres.logical.verdict import is_noise
from strongroom.postgres.server import Conninfo

PIPE_SIZE = 1 << 20
# The programs move 4 KiB at a time. Whoever answers each of these at once pays a change of
# processes for it: we wait until a good part of the pipe is full (or empty) instead. A pipe that
# is too small for that is served at once.
_BREATH = 0.003
_SMALLEST_PACED = 256 << 10
_MOST_STDERR = 1 << 20
_PATIENCE = 5.0


class Family:
    """All children of one run, so that one fault can end them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: set[Tool] = set()
        self._cancels: list[Callable[[], None]] = []
        self._ended = False

    def add(self, child: Tool) -> None:
        """Take a child in; Interrupted when the run is being ended."""
        with self._lock:
            if not self._ended:
                self._children.add(child)
                return
        child.kill()
        raise Interrupted("The run is being stopped.")

    def remove(self, child: Tool) -> None:
        """Forget a child that has ended."""
        with self._lock:
            self._children.discard(child)

    @contextlib.contextmanager
    def watching(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Call `cancel` when the run is ended meanwhile: it stops a query of our own."""
        with self._lock:
            self._cancels.append(cancel)
        try:
            yield
        finally:
            with self._lock:
                self._cancels.remove(cancel)

    def end(self) -> None:
        """Stop every child and query, and any child that is still to come."""
        with self._lock:
            self._ended = True
            children, cancels = list(self._children), list(self._cancels)
        for child in children:
            child.kill()
        for cancel in cancels:
            cancel()


class Tool:
    """One running client program. A context manager: it has ended on exit, by itself or by us."""

    def __init__(
        self,
        argv: Sequence[str | bytes],
        conninfo: Conninfo,
        family: Family,
        *,
        feed: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = os.path.basename(os.fsdecode(argv[0]))
        self._conninfo = conninfo
        self._family = family
        self._said = bytearray()
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=conninfo.child_environment(),
            pass_fds=tuple(pass_fds),
            process_group=0,
        )
        self._room = min(
            _widened(pipe.fileno())
            for pipe in (self._process.stdin, self._process.stdout)
            if pipe is not None
        )
        self._hasty = False
        if self._process.stdin is not None:
            os.set_blocking(self._process.stdin.fileno(), False)
        self._listener = threading.Thread(target=self._listen, name=self.name, daemon=True)
        self._listener.start()
        family.add(self)

    def __enter__(self) -> Tool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()
        self._listener.join()
        self._family.remove(self)

    def _listen(self) -> None:
        pipe = self._process.stderr
        assert pipe is not None
        with pipe:
            while data := os.read(pipe.fileno(), 1 << 16):
                if len(self._said) < _MOST_STDERR:
                    self._said += data

    def readinto(self, view: memoryview) -> int:
        """Fill `view` from standard output as far as there is; 0 at the end."""
        assert self._process.stdout is not None
        if self._hasty:
            time.sleep(_BREATH)
        taken = os.readv(self._process.stdout.fileno(), [view])
        self._hasty = self._room >= _SMALLEST_PACED and taken < min(len(view), self._room // 4)
        return taken

    def output(self) -> bytes:
        """Return all of standard output."""
        assert self._process.stdout is not None
        return self._process.stdout.read() or b""

    def feed(self, pieces: Iterable[memoryview | bytes]) -> Iterator[int]:
        """Write pieces to standard input, yield the bytes of each; end early if nobody reads.

        A pg_restore that has what it came for stops reading: its exit status is the judge.
        """
        assert self._process.stdin is not None
        descriptor = self._process.stdin.fileno()
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[self._write(descriptor, view) :]
                yield len(piece)
        except BrokenPipeError:
            return

    def _write(self, descriptor: int, view: memoryview) -> int:
        """Write what there is room for; wait for room when there is none."""
        try:
            return os.write(descriptor, view)
        except BlockingIOError:
            if self._room >= _SMALLEST_PACED:
                time.sleep(_BREATH)
            else:
                room = select.poll()
                room.register(descriptor, select.POLLOUT)
                room.poll()
            return 0

    def close_input(self) -> None:
        """Say that there is no more to feed."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def kill(self) -> None:
        """End it: kindly, so that it cancels its query on the server, then by force."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is not None:
                return
            self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_PATIENCE)

    def wait(self) -> tuple[int, str]:
        """Wait for the end; return exit status and everything said on stderr."""
        assert self._process.stdout is not None
        while os.read(self._process.stdout.fileno(), 1 << 16):
            pass
        status = self._process.wait()
        self._listener.join()
        return status, self._said.decode("utf-8", "replace").strip()

    def check(self) -> list[str]:
        """Wait for success; return the warnings. Raises our errors otherwise."""
        status, said = self.wait()
        if status:
            raise tool_error(self.name, status, said, self._conninfo)
        return warnings(said)


def _widened(descriptor: int) -> int:
    """Make a pipe as large as the account may; return how large it is."""
    # More than the system allows an account: the default then does, only slower.
    with contextlib.suppress(OSError):
        return fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)


def warnings(said: str) -> list[str]:
    """The messages on stderr, one string each, hints and details joined to their message."""
    messages: list[str] = []
    for line in said.splitlines():
        if re.match(r"pg_\w+: (detail|hint): ", line) and messages:
            messages[-1] += " " + line.split(": ", 2)[2]
        elif line.startswith("pg_"):
            messages.append(line.split(": ", 1)[-1])
        elif messages:
            messages[-1] += " " + line.strip()
    return messages


_MEANINGS: tuple[tuple[str, type[StrongroomError], str | None], ...] = (
    (r"lock timeout|could not obtain lock", Busy, None),
    (r"conflict with recovery", Busy, "On a standby set max_standby_streaming_delay = -1."),
    (
        r"row-level security",
        Refused,
        "Back up as a role with BYPASSRLS: a dump that leaves rows out is no backup.",
    ),
    (r"server version mismatch", Refused, "Install client tools of the server's version or newer."),
    (
        r"permission denied",
        Refused,
        "GRANT pg_read_all_data to the role that takes the backup.",
    ),
    (r"authentication failed|no password supplied|pg_hba\.conf", KeyRefused, None),
    (r"No space left on device|could not extend file|disk full", TargetFull, None),
    (
        r"could not connect|connection to server|server closed the connection|terminating connection"
        r"|no connection to the server|SSL connection has been closed|recovery mode|shutting down"
        r"|starting up|Connection refused|connection not open"
        r"|snapshot \"[^\"]*\" does not exist|invalid snapshot identifier",
        DatabaseUnreachable,
        None,
    ),
)


def tool_error(name: str, status: int, said: str, conninfo: Conninfo) -> StrongroomError:
    """Say what the end of a client program means."""
    if status < 0 and not said:
        return StrongroomError(f"{name} was killed by signal {-status} on {conninfo.where}.")
    messages = [
        text for text in warnings(said) if not (text.startswith("warning:") or is_noise(text))
    ]
    text = "; ".join(messages[:3]) or said[-400:] or f"exit status {status}"
    what = f"{name} failed on {conninfo.where}: {text}"
    for words, kind, do in _MEANINGS:
        if re.search(words, said):
            return kind(what, do=do)
    return StrongroomError(what)
