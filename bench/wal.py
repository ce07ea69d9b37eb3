"""Rows of WAL: 500 segments of pgbench archived and fetched again, against pgBackRest's async.

The commands are run one after another by a shell, as PostgreSQL does, in the data directory of a
server that has stopped; all of them are marked as ready. Ours asks a daemon, theirs a process that
it leaves behind. Both sides: zstd at level 1, encryption, two workers, a local repository.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence

from bench.measure import (
    Row,
    Run,
    Side,
    adopt_orphans,
    at_most,
    fresh,
    missing,
    ratio,
    ratio_cpu,
    reaped,
    spent,
)
from bench.peers import OURS
from strongroom.errors import NotFound
from strongroom.postgres.embedded import EmbeddedServer, find_server

SEGMENTS = 500
ENTER = "for name in $NAMES; do"
_STATUS = "pg_wal/archive_status/$name"
# What is archived is marked as done, as the server does; else both sides would look at it again.
PUSH = ENTER + f' %s "pg_wal/$name" || exit 1; mv {_STATUS}.ready {_STATUS}.done; done'
# As recovery does: what was delivered is taken away before the next is asked for. A second try,
# because two processes that pgBackRest 2.45 leaves behind may trip over each other's files.
_GET = '%s "$name" pg_wal/RECOVERYXLOG'
FETCH = ENTER + f" {_GET} || {_GET} || exit 1; rm pg_wal/RECOVERYXLOG; done"
_SETTINGS = {
    "archive_mode": "on",
    "archive_command": "false",
    "max_wal_size": "64MB",  # checkpoints often: most of it is images of pages, as it is in real logs
    "min_wal_size": "32MB",
    "checkpoint_completion_target": "0.1",
    "wal_keep_size": "200GB",
    "wal_recycle": "off",
}


def wal(work: str, times: int, scale: float = 1.0) -> list[Row]:
    """Push and fetch of 500 segments, and what the client alone takes."""
    if shutil.which("pgbackrest") is None:
        return [missing("WAL push and fetch", "pgbackrest")]
    try:
        installation = find_server(15)  # Debian's pgBackRest knows none that is newer
    except NotFound:
        return [missing("WAL push and fetch", "PostgreSQL 15")]
    count = max(8, int(SEGMENTS * scale))
    with EmbeddedServer(installation, fresh(f"{work}/pg"), durable=False, settings=_SETTINGS) as pg:
        names = _fill(pg, count)
        data = pg.data_directory
        pg.stop()
        rows = _compare(work, times, data, names)
    fresh(f"{work}/pg")
    return rows


def _fill(pg: EmbeddedServer, count: int) -> list[str]:
    """Run pgbench until so many segments are whole; their names."""
    pgbench = os.path.join(pg.installation.bindir, "pgbench")
    subprocess.run([pgbench, "-i", "-q", "-s", "40", pg.dsn], check=True, capture_output=True)
    status = f"{pg.data_directory}/pg_wal/archive_status"
    while len(os.listdir(status)) < count:
        argv = [pgbench, "-n", "-c", "8", "-j", "2", "-T", "10", pg.dsn]
        subprocess.run(argv, check=True, capture_output=True)
    return sorted(name.removesuffix(".ready") for name in os.listdir(status))[:count]


def _compare(work: str, times: int, data: str, names: Sequence[str]) -> list[Row]:
    adopt_orphans()
    sides = _Ours(work, data), _PgBackRest(work, data)
    push = [Side("strongroom"), Side("pgBackRest")]
    fetch = [Side("strongroom"), Side("pgBackRest")]
    client: list[float] = []
    for _ in range(times):
        for number, side in enumerate(sides):
            side.make()
            _mark(data, names)
            _warm(data, names)
            push[number].runs.append(_run(data, names, PUSH % side.push, side))
            fetch[number].runs.append(_run(data, names, FETCH % (side.fetch, side.fetch), side))
            if number == 0:
                with side.running():
                    client += _client(data, side.fetch)
            side.remove()
    size = f"{len(names)} segments"
    start = statistics.median(client) * 1000
    return [
        ratio(f"WAL push, {size}", push[0], push[1], 1.0),
        ratio_cpu(f"WAL push, {size}", push[0], push[1], 1.0),
        ratio(f"WAL fetch, {size}", fetch[0], fetch[1], 1.0),
        ratio_cpu(f"WAL fetch, {size}", fetch[0], fetch[1], 1.0),
        at_most("WAL client, start to end", start, 60.0, 1.0, "ms", "target"),
    ]


def _client(data: str, fetch: str) -> list[float]:
    """Seconds that a client takes for a question whose answer takes no time: a file that is absent."""
    found = []
    for _ in range(20):
        began = time.perf_counter()
        subprocess.run([*fetch.split(), "00000009.history", "x"], cwd=data, check=False)
        found.append(time.perf_counter() - began)
    return found


def _run(data: str, names: Sequence[str], script: str, side: _Ours | _PgBackRest) -> Run:
    """Wall time of the commands; CPU time of them and of whatever works for them."""
    environ = {**os.environ, "NAMES": " ".join(names)}
    with side.running() as helper:
        before = reaped(), spent(helper) if helper else 0.0
        began = time.perf_counter()
        subprocess.run(["sh", "-c", script], cwd=data, env=environ, check=True)
        wall = time.perf_counter() - began
        warm = spent(helper) - before[1] if helper else 0.0
        clients = reaped() - before[0]
        if helper:
            print(f"  of {warm + clients:.2f} s CPU the clients have {clients:.2f}")
            return Run(wall, clients + warm, 0)
    return Run(wall, reaped() - before[0], 0)


def _mark(data: str, names: Sequence[str]) -> None:
    for name in names:
        with open(f"{data}/pg_wal/archive_status/{name}.ready", "w"):
            pass


def _warm(data: str, names: Sequence[str]) -> None:
    """Both sides find the segments where a server that writes them leaves them: in the cache."""
    for name in names:
        with open(f"{data}/pg_wal/{name}", "rb") as file:
            while file.read(1 << 20):
                pass


class _Ours:
    def __init__(self, work: str, data: str) -> None:
        self._work, self._config = f"{work}/ours", f"{work}/ours/strongroom.toml"
        del data
        end = f"--config {self._config} --socket {work}/ours/wal.sock"
        self.push = f"{OURS}-wal push --source bench {end}"
        self.fetch = f"{OURS}-wal fetch {end}"
        self._daemon = [OURS, "wal", "daemon", *end.split()]

    def make(self) -> None:
        os.makedirs(fresh(self._work))
        with open(self._config, "w") as file:
            file.write(
                f'[repository]\nurl = "{self._work}/repository"\nkey_file = "{self._work}/key"\n'
                '[source.bench]\ntype = "postgres"\ndsn = "postgresql://nobody@/none"\n'
            )
        argv = [OURS, "init", "--config", self._config, "--kit", f"{self._work}/kit"]
        subprocess.run(argv, check=True, capture_output=True)

    def remove(self) -> None:
        fresh(self._work)

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        with subprocess.Popen(self._daemon, stderr=subprocess.PIPE) as daemon:
            assert daemon.stderr is not None
            assert daemon.stderr.readline().startswith(b"listening")
            try:
                yield daemon.pid
            finally:
                daemon.send_signal(signal.SIGTERM)


class _PgBackRest:
    def __init__(self, work: str, data: str) -> None:
        self._work, self._data = f"{work}/theirs", data
        self._base = f"pgbackrest --config={self._work}/pgbackrest.conf --stanza=bench"
        self.push = f"{self._base} archive-push"
        self.fetch = f"{self._base} archive-get"

    def make(self) -> None:
        for name in ("repository", "spool", "lock", "log"):
            os.makedirs(fresh(f"{self._work}/{name}"))
        with open(f"{self._work}/pgbackrest.conf", "w") as file:
            file.write(
                f"[global]\nrepo1-path={self._work}/repository\nrepo1-cipher-type=aes-256-cbc\n"
                f"repo1-cipher-pass=bench\nspool-path={self._work}/spool\n"
                f"lock-path={self._work}/lock\nlog-path={self._work}/log\n"
                "archive-async=y\ncompress-type=zst\ncompress-level=1\nprocess-max=2\n"
                "archive-get-queue-max=256MiB\nlog-level-console=error\n"
                f"[bench]\npg1-path={self._data}\n"
            )
        subprocess.run([*self._base.split(), "--no-online", "stanza-create"], check=True)

    def remove(self) -> None:
        fresh(self._work)

    @contextlib.contextmanager
    def running(self) -> Iterator[int]:
        yield 0
        # The process that it leaves behind ends by itself a moment after the last segment.
        while any(os.scandir(f"{self._work}/lock")):
            time.sleep(0.1)
        time.sleep(0.3)  # and its lock goes before it does
