"""A throw-away server on a restored directory: it recovers, is asked, and is gone.

Rule: it can reach nothing of the original's. It listens on a socket of its own that only its account
enters, archives nothing, follows nobody, loads no library that the original preloads, and reads no
setting of the original's: its configuration is ours alone. The WAL is handed to it by this process,
name by name, so that neither the repository nor a key is known to the account that it runs as.
"""

from __future__ import annotations

import os
import re
import shlex
import struct
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from strongroom.errors import Damaged, DatabaseUnreachable, NotFound, StrongroomError
from strongroom.format.wal import SegmentName
from strongroom.postgres.embedded import EmbeddedServer, Installation, find_server
from strongroom.postgres.physical.control import FILE_SIZE, ControlFile
from strongroom.postgres.recovery.settings import (
    RECOVERY_SIGNAL,
    STANDBY_SIGNAL,
    Recovery,
    command,
    quoted,
)
from strongroom.progress import Progress

Fetch = Callable[[str], bytes | None]
"""A file of the WAL by its name, None when it surely is nowhere; StrongroomError in every doubt."""

_AHEAD = 4
_DOUBT = 255  # above 125: recovery stops instead of taking it for the log's end
_PAUSE = 0.02
_HBA = "local all all trust\n"
_SCRIPT = """\
#!/bin/sh
printf '%s %s\\n' "$1" "$2" > {ask} || exit 255
read -r status < {answer} || exit 255
exit "$status"
"""


class Sandbox(EmbeddedServer):
    """One throw-away server; `directory` as for an EmbeddedServer, `parent` where a temporary one is.

    Fill `data_directory` first (a `PhysicalSink` without recovery, owned by `owner`), then `recover`.
    """

    def __init__(
        self,
        major: int,
        fetch: Fetch,
        *,
        directory: str | None = None,
        parent: str | None = None,
        settings: Mapping[str, str] | None = None,
        ahead: int = _AHEAD,
    ) -> None:
        super().__init__(
            _installation(major), directory, durable=False, settings=settings, parent=parent
        )
        self._deliverer = _Deliverer(fetch, self, ahead)
        self._initialised = True

    @property
    def owner(self) -> tuple[int, int]:
        """Whom the files must belong to."""
        return self._account.uid, self._account.gid

    def recover(self, recovery: Recovery, *, progress: Progress) -> None:
        """Start it and wait until recovery came to its end.

        Damaged when PostgreSQL does not come to the target; DatabaseUnreachable when it does not
        start.
        """
        control = ControlFile.parse(self._read("global/pg_control", FILE_SIZE))
        self._deliverer.start(control.wal_segment_size)
        self._own("postgresql.auto.conf", b"")
        for signal in (RECOVERY_SIGNAL, STANDBY_SIGNAL):  # a backup of a standby has its own
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self.data_directory, signal.decode()))
        self._own(recovery.signal.decode(), b"")
        self._write_configuration(recovery, control)
        self.user = next(iter(superusers(self._read)), self.user)
        self._guard = self._launch()
        progress.phase("recovering")
        self._wait_for_recovery(recovery)

    @property
    def running(self) -> bool:
        """Whether the server has not ended by itself."""
        return self._guard is not None and self._guard.poll() is None

    def ended(self) -> StrongroomError:
        """Why it runs no more."""
        return self._fault()

    def close(self) -> None:
        """Stop the server and remove everything."""
        self.stop(immediate=True)
        super().close()
        self._deliverer.close()

    def _read(self, name: str, size: int) -> bytes:
        """The beginning of a file of the data directory; OSError."""
        with open(os.path.join(self.data_directory, name), "rb") as file:
            return file.read(size)

    def deliver(self, path: str, data: bytes) -> None:
        """Put a file of the log where the server asked for it: relative to the data directory."""
        target = os.path.join(self.data_directory, path)
        scratch = target + ".strongroom"
        with suppress(FileNotFoundError):
            os.unlink(scratch)
        self.give(scratch, data)
        os.rename(scratch, target)

    def _own(self, name: str, content: bytes) -> None:
        """Write a file of the data directory anew."""
        path = os.path.join(self.data_directory, name)
        with suppress(FileNotFoundError):
            os.unlink(path)
        self.give(path, content)

    def give(self, path: str, content: bytes) -> None:
        """Write a file that belongs to the server's account."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(content)
            os.fchown(fd, *self.owner)

    def _write_configuration(self, recovery: Recovery, control: ControlFile) -> None:
        folder = self.directory
        values = {
            "data_directory": self.data_directory,
            "hba_file": os.path.join(folder, "hba.conf"),
            "ident_file": os.path.join(folder, "ident.conf"),
            "listen_addresses": "",
            "port": str(self.port),
            "unix_socket_directories": self.socket_directory,
            "unix_socket_permissions": "0700",
            "log_destination": "stderr",
            "logging_collector": "off",
            "lc_messages": "C",
            "archive_mode": "off",
            "hot_standby": "on" if recovery.action == "pause" or recovery.standby else "off",
            "shared_buffers": "128MB",
            "max_wal_size": "16GB",
            "checkpoint_timeout": "1h",
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
            "autovacuum": "off",
            # A subscription of the original's would take changes out of somebody's slot.
            "max_logical_replication_workers": "0",
            "max_connections": str(max(20, control.max_connections)),
            "max_worker_processes": str(max(8, control.max_worker_processes)),
            "max_wal_senders": str(control.max_wal_senders),
            "max_prepared_transactions": str(control.max_prepared_transactions),
            "max_locks_per_transaction": str(control.max_locks_per_transaction),
        }
        if self.installation.version[0] >= 15:
            # It asks for pages whose images are in the log just ahead of it, and are not read.
            values["recovery_prefetch"] = "off"
        values |= dict(recovery.settings())
        values["restore_command"] = self._fetch_command()
        values |= self._settings
        lines = [f"{name} = {quoted(value)}\n" for name, value in values.items()]
        files = {
            "sandbox.conf": "".join(lines),
            "hba.conf": _HBA,
            "ident.conf": "",
        }
        for name, text in files.items():
            self._keep(name, text)

    def _keep(self, name: str, text: str) -> None:
        path = os.path.join(self.directory, name)
        with suppress(FileNotFoundError):
            os.unlink(path)
        self.give(path, text.encode())

    def _fetch_command(self) -> str:
        """restore_command that asks us; its script is written."""
        pipes = {
            name: shlex.quote(os.path.join(self.directory, name)) for name in ("ask", "answer")
        }
        self._keep("fetch", _SCRIPT.format(**pipes))
        return command(["/bin/sh", os.path.join(self.directory, "fetch"), "%f", "%p"])

    def _arguments(self) -> list[str]:
        return ["-c", f"config_file={os.path.join(self.directory, 'sandbox.conf')}"]

    def _wait_for_recovery(self, recovery: Recovery) -> None:
        import psycopg  # noqa: PLC0415  heavy

        guard = self._guard
        assert guard is not None
        while guard.poll() is None:
            try:
                with psycopg.connect(self.dsn, autocommit=True) as connection:
                    row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
            except psycopg.OperationalError as fault:
                if re.search(r'role ".*" (does not exist|is not permitted)', str(fault)):
                    found = superusers(self._read)
                    self.user = (
                        found[(found.index(self.user) + 1) % len(found)]
                        if self.user in found
                        else "postgres"
                    )
                time.sleep(_PAUSE)
                continue
            if recovery.action == "pause" or recovery.standby or (row and row[0] is False):
                return
            time.sleep(_PAUSE)
        raise self._fault()

    def _fault(self) -> StrongroomError:
        """Why it ended: what was not delivered, else what the server said last."""
        if self._deliverer.fault is not None:
            return self._deliverer.fault
        with open(self.log_path, "rb") as log:
            said = log.read()
        kept = _keep_log(said)
        if b"recovery ended before configured recovery target" in said:
            return Damaged(
                "PostgreSQL came to the end of the log before the target.",
                means="The verdict was wrong, or log vanished since; nothing of yours was touched.",
                do="`strongroom points SOURCE --gaps` shows what there is."
                + (f" What the server said is in {kept}." if kept else ""),
            )
        return DatabaseUnreachable(
            f"The throw-away server ended: {self._log_tail()}",
            means="Nothing of yours was touched; the repository is as it was.",
            do=f"Read all that it said in {kept}." if kept else "Make room in $TMPDIR for its log.",
        )


class Restored(Sandbox):
    """A server on a directory that `strongroom restore` made, with the settings that came with it.

    Only where it listens is ours, who may come in, and who runs the command that fetches its log.
    """

    def __init__(self, data: str, fetch: Fetch) -> None:
        with open(os.path.join(data, "PG_VERSION"), encoding="ascii") as file:
            major = int(file.read())
        super().__init__(major, fetch, ahead=0)
        self._data, self._words = data, list[str]()

    @property
    def data_directory(self) -> str:
        """The restored directory; it stays."""
        return self._data

    def start(self) -> EmbeddedServer:
        """Start it and wait until it has recovered."""
        control = ControlFile.parse(self._read("global/pg_control", FILE_SIZE))
        self._deliverer.start(control.wal_segment_size)
        self._keep("hba.conf", _HBA)
        values = {
            "listen_addresses": "",
            "port": str(self.port),
            "unix_socket_directories": self.socket_directory,
            "hba_file": os.path.join(self.directory, "hba.conf"),
            "restore_command": self._fetch_command(),
        }
        self._words = [word for row in values.items() for word in ("-c", "=".join(row))]
        self.user = next(iter(superusers(self._read)), self.user)
        self._guard = self._launch()
        self._wait_for_recovery(Recovery())
        return self

    def _arguments(self) -> list[str]:
        return self._words


class _Deliverer:
    """Answers the server's restore_command, through two pipes that its script writes and reads."""

    def __init__(self, fetch: Fetch, sandbox: Sandbox, ahead: int) -> None:
        self._fetch, self._sandbox, self._window = fetch, sandbox, ahead
        self.fault: StrongroomError | None = None
        self.delivered: list[str] = []
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: OrderedDict[str, Future[bytes | None]] = OrderedDict()
        self._pipes: tuple[int, int] | None = None
        self._size = 0
        self._thread: threading.Thread | None = None

    def start(self, segment_size: int) -> None:
        if self._thread is not None:
            return
        self._size = segment_size
        self._pool = ThreadPoolExecutor(max(1, self._window), thread_name_prefix="sandbox-wal")
        pipes = []
        for name in ("ask", "answer"):
            path = os.path.join(self._sandbox.directory, name)
            os.mkfifo(path, 0o600)
            os.chown(path, *self._sandbox.owner)
            pipes.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        self._pipes = pipes[0], pipes[1]
        self._thread = threading.Thread(target=self._serve, daemon=True, name="sandbox-wal")
        self._thread.start()

    def close(self) -> None:
        if self._thread is None or self._pipes is None or self._pool is None:
            return
        os.write(self._pipes[0], b"\n")
        self._thread.join()
        self._thread = None
        self._pool.shutdown(cancel_futures=True)
        for pipe in self._pipes:
            os.close(pipe)

    def _serve(self) -> None:
        assert self._pipes is not None
        ask, answer = self._pipes
        waiting = b""
        while True:
            waiting += os.read(ask, 4096)
            line, newline, rest = waiting.partition(b"\n")
            if not newline:
                continue
            waiting = rest
            if not line:
                return
            name, _, path = line.decode("ascii", "replace").partition(" ")
            os.write(answer, b"%d\n" % self._deliver(name, path))

    def _deliver(self, name: str, path: str) -> int:
        try:
            data = self._get(name)
            if data is None:
                return 1
            self._sandbox.deliver(path, data)
        except StrongroomError as fault:
            self.fault = fault
            return _DOUBT
        except OSError as fault:
            self.fault = StrongroomError(f"WAL cannot be delivered: {fault.strerror}.")
            return _DOUBT
        self.delivered.append(name)
        return 0

    def _get(self, name: str) -> bytes | None:
        assert self._pool is not None
        known = self._ahead.pop(name, None)
        for after in self._next(name):
            if after not in self._ahead:
                self._ahead[after] = self._pool.submit(self._fetch, after)
        while len(self._ahead) > 2 * self._window:
            self._ahead.popitem(last=False)[1].cancel()
        found = known.result() if known is not None else None
        return self._fetch(name) if found is None else found

    def _next(self, name: str) -> Iterator[str]:
        if len(name) != 24:
            return
        with suppress(ValueError):
            segment = SegmentName.parse(name, self._size)
            for _ in range(self._window):
                segment = segment.next()
                yield str(segment)


def _keep_log(said: bytes) -> str | None:
    """Where the log of a server that failed stays; the server's own directory goes."""
    with suppress(OSError):
        fd, path = tempfile.mkstemp(prefix="strongroom-server-", suffix=".log")
        with open(fd, "wb") as file:
            file.write(said)
        return path
    return None


def _installation(major: int) -> Installation:
    try:
        return find_server(major)
    except NotFound:
        raise NotFound(
            f"No server programs of PostgreSQL {major} are on this machine.",
            means="A physical backup is opened by its own major version; nothing was changed.",
            do=f"Install them (`apt-get install postgresql-{major}`) and run the command again.",
        ) from None


# -- who may do everything ---------------------------------------------------------------------

_PAGE = 8192
_LINE_POINTER = struct.Struct("<I")
_BOOTSTRAP = 10
_MAP_MAGIC, _AUTHID = 0x592717, 1260


def superusers(read: Callable[[str, int], bytes]) -> list[str]:
    """Names of superusers, the first one's first, read from the pages of pg_authid.

    `read` gives the beginning of a file of the data directory, or an OSError. Rows of the past may be
    among them: whoever uses a name finds out.
    """
    try:
        pages = read(f"global/{_authid_file(read)}", 64 * _PAGE)
    except OSError:
        return []
    found: dict[str, int] = {}
    for at in range(0, len(pages) - _PAGE + 1, _PAGE):
        for oid, name, superuser in _roles(pages[at : at + _PAGE]):
            if superuser:
                found[name] = oid
    return sorted(found, key=lambda name: (found[name] != _BOOTSTRAP, name))


def _authid_file(read: Callable[[str, int], bytes]) -> int:
    """The file that pg_authid is in, as global/pg_filenode.map says."""
    try:
        raw = read("global/pg_filenode.map", 4096)
        magic, count = struct.unpack_from("<ii", raw)
        if magic == _MAP_MAGIC:
            for number in range(count):
                oid, node = struct.unpack_from("<II", raw, 8 + 8 * number)
                if oid == _AUTHID:
                    return int(node)
    except (OSError, struct.error):
        pass
    return _AUTHID


def _roles(page: bytes) -> Iterator[tuple[int, str, bool]]:
    lower = int.from_bytes(page[12:14], "little")
    for at in range(24, min(lower, _PAGE), 4):
        (pointer,) = _LINE_POINTER.unpack_from(page, at)
        offset, flags, length = pointer & 0x7FFF, pointer >> 15 & 3, pointer >> 17
        if flags != 1 or length < 24 or offset + length > _PAGE:
            continue
        start = offset + page[offset + 22]
        row = page[start : offset + length]
        if len(row) > 69:
            name = row[4:68].split(b"\0", 1)[0].decode("utf-8", "replace")
            yield int.from_bytes(row[:4], "little"), name, bool(row[68])


__all__ = ["Fetch", "Sandbox", "superusers"]
