"""Drive the demo: embedded PostgreSQL, real commands, a verdict that is earned row by row."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

from strongroom.demo.platform import Platform, find_platform
from strongroom.errors import Damaged, StrongroomError
from strongroom.files.compare import compare_trees
from strongroom.postgres.compare import compare_databases
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.sandbox import Restored

_TABLES = (
    "SELECT format('SELECT count(*) FROM ONLY %I', relname) FROM pg_class"
    " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
)

_CONFIG = """\
[repository]
url = "{work}/repository"
passphrase = "env:STRONGROOM_PASSPHRASE"

[source.stakazo-db]
type = "postgres"
dsn = "{dsn}"
password = "env:STAKAZO_DB_PASSWORD"
method = "logical"
promise = {{ rpo = "24h", rto = "4h", keep = "30d" }}

[source.stakazo-cluster]
type = "postgres"
dsn = "{dsn}"
password = "env:STAKAZO_DB_PASSWORD"
method = "physical"
via = "local"
data_directory = "{data}"
promise = {{ rto = "4h" }}

[source.memory-vault]
type = "files"
path = "{work}/memory_vault"
include = ["ml_features/", "audits/", "campaign_history/", "clips_metadata/", "orchestrator_runs/"]
promise = {{ rpo = "31d", rto = "24h", keep = "12 months" }}
"""


@dataclass
class Verdict:
    """What the demo measured. Seconds and bytes; `differences` is empty when all is well."""

    seconds: dict[str, float] = field(default_factory=dict)
    backups: dict[str, dict[str, int]] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    rows: int = 0
    clips: dict[str, int] = field(default_factory=dict)  # before, deleted, back
    drills: dict[str, dict[str, Any]] = field(default_factory=dict)  # by source: verdict, steps
    files: int = 0
    repository: int = 0


class Demo:
    """One run in a directory of its own."""

    def __init__(self, work: str, say: Callable[[str], None], *, scale: float = 1.0) -> None:
        self._work = work
        self._say = say
        self._vault = f"{work}/memory_vault"
        self._size = f"--size={scale}"
        self.verdict = Verdict()
        self._env = {
            **os.environ,
            "STRONGROOM_PASSPHRASE": "correct horse battery staple",
            "STRONGROOM_CONFIG": f"{work}/strongroom.toml",
            "XDG_CACHE_HOME": f"{work}/cache",
        }

    def run(self) -> Verdict:
        """Do it all."""
        find_platform(os.environ)  # before a server is started
        # The demo itself archives, by the command that archive_command would be: `wal push`.
        server = EmbeddedServer(settings={"archive_mode": "on", "archive_command": ""})
        with server:
            platform = Platform(server, "stakazo", self._vault)
            self._prepare(server, platform)
            self._command("init")
            for day in ("first", "second"):
                if day == "second":
                    self._change(platform)
                for source in ("stakazo-db", "memory-vault"):
                    self._back_up(source, day)
            self._restore()
            self._compare(server)
            self._smoke_test(server)
            self._bad_delete(server)
            self._drill()
            self._status()
        self.verdict.repository = _size(f"{self._work}/repository")
        return self.verdict

    def _prepare(self, server: EmbeddedServer, platform: Platform) -> None:
        from psycopg.conninfo import conninfo_to_dict, make_conninfo  # noqa: PLC0415

        major, minor = server.installation.version
        with self._timed(f"the platform on an embedded PostgreSQL {major}.{minor}", "prepare"):
            with server.connect() as connection:
                connection.execute("CREATE DATABASE stakazo")
            platform.migrate()
            platform.seed(self._size)
            with server.connect("stakazo") as connection:
                size = connection.execute("SELECT pg_database_size('stakazo')").fetchone()
        self._say(
            f"    database {_mb(size[0] if size else 0)}, vault {_files(self._vault):,} files,"
            f" {_mb(_size(self._vault))}"
        )
        parts = conninfo_to_dict(server.dsn_for("stakazo"))
        password = parts.pop("password", None)
        if password is not None:
            self._env["STAKAZO_DB_PASSWORD"] = str(password)
        dsn = make_conninfo("", **{key: value for key, value in parts.items() if value})
        text = _CONFIG.format(work=self._work, dsn=dsn, data=server.data_directory)
        if password is None:
            text = text.replace('password = "env:STAKAZO_DB_PASSWORD"\n', "")
        with open(f"{self._work}/strongroom.toml", "w", encoding="utf-8") as file:
            file.write(text)

    def _change(self, platform: Platform) -> None:
        with self._timed("a day's work: 2 % of the clips, 2 % of the files", "change"):
            platform.seed("--change")

    def _back_up(self, source: str, day: str) -> None:
        result = self._command("backup", source, key=f"backup {source}, {day}")
        snapshot = result["backups"][0]["snapshot"]
        figures = {name: int(snapshot[name]) for name in ("size", "new_size", "stored")}
        self.verdict.backups[f"{source}, {day}"] = figures
        kept = max(0, figures["size"] - figures["new_size"])
        self._say(
            f"    {_mb(figures['size'])} in the source, {_mb(figures['new_size'])} new,"
            f" {_mb(figures['stored'])} stored; deduplication saved {_mb(kept)}"
        )

    def _restore(self) -> None:
        self._command("restore", "stakazo-db", "--to", "stakazo_restored", key="restore database")
        target = f"{self._work}/restored_vault"
        self._command("restore", "memory-vault", "--to", target, key="restore vault")

    def _compare(self, server: EmbeddedServer) -> None:
        with self._timed("comparing every row and every file", "compare"):
            found = compare_databases(server.dsn_for("stakazo"), server.dsn_for("stakazo_restored"))
            self.verdict.differences += [str(one) for one in found]
            trees = compare_trees(
                os.fsencode(f"{self._work}/memory_vault"),
                os.fsencode(f"{self._work}/restored_vault"),
            )
            self.verdict.differences += [str(one) for one in trees]
            self.verdict.rows = _rows(server, "stakazo_restored")
        self.verdict.files = _files(f"{self._work}/restored_vault")

    def _smoke_test(self, server: EmbeddedServer) -> None:
        with self._timed("the platform's smoke tests on what was restored", "smoke tests"):
            restored = Platform(server, "stakazo_restored", f"{self._work}/restored_vault")
            self.verdict.differences += restored.smoke_test()

    def _bad_delete(self, server: EmbeddedServer) -> None:
        """The 02:13 question: every clip is deleted, and the cluster goes back to just before."""
        cluster = "stakazo-cluster"
        with server.connect() as connection:  # it was compared, and the cluster is backed up whole
            connection.execute("DROP DATABASE stakazo_restored WITH (FORCE)")
        self._back_up(cluster, "physical")
        title = "DELETE FROM clips, by mistake; and the platform goes on"
        with self._timed(title, "bad delete"), server.connect("stakazo") as connection:
            first = str(_value(connection, "SELECT pg_walfile_name(pg_current_wal_lsn())"))
            clips = int(_value(connection, "SELECT count(*) FROM clips"))
            moment = _value(connection, "SELECT clock_timestamp()")
            connection.execute("DELETE FROM clips")
            connection.execute("DELETE FROM audits")
            connection.execute("SELECT pg_switch_wal()")
            left = int(_value(connection, "SELECT count(*) FROM clips"))
        self._say(f"    {clips:,} clips before, {left:,} after")
        with self._daemon():
            self._archive(server, [name for name in _ready(server) if name >= first], cluster)
            back = self._go_back(server, cluster, moment.astimezone(UTC).isoformat())
        self._say(f"    {back:,} clips: the rows are back")
        self.verdict.clips = {"before": clips, "deleted": clips - left, "back": back}
        if not (back == clips > left):
            self.verdict.differences.append(f"{back} of {clips} clips came back")

    def _drill(self) -> None:
        """The full test: every source restored to a moment that is drawn, into something throw-away."""
        result = self._command("drill", "run", "--all", key="drills")
        for drill in result["drills"]:
            source = drill["source"]
            done = [step for step in drill["steps"] if step["verdict"] != "skipped"]
            self.verdict.drills[source] = {"verdict": drill["verdict"], "steps": done}
            self._say(f"    {source}: {drill['chosen']}")
            for step in done:
                took = f"{step['ms'] / 1000:6.1f} s"
                self._say(f"      {step['verdict']:5} {took}  {step['name']}: {step['what']}")
            if drill["verdict"] not in ("green", "amber"):
                self.verdict.differences.append(f"the drill of {source} is {drill['verdict']}")

    def _status(self) -> None:
        """The last word: what can be recovered, and what of it was just proved."""
        self._say("$ strongroom status")
        began = time.monotonic()
        process = self._start("status")
        self.verdict.seconds["status"] = time.monotonic() - began
        for line in process.stdout.decode().splitlines():
            self._say(f"    {line}")
            if line.startswith(("UNPROVED", "OVERDUE", "MISSED", "NONE")):
                self.verdict.differences.append(f"status: {line}")
        if process.returncode:
            self.verdict.differences.append(f"status ended with {process.returncode}")

    def _go_back(self, server: EmbeddedServer, cluster: str, when: str) -> int:
        """Restore to a moment, let PostgreSQL recover, and count the clips."""
        self._command("can-restore", cluster, "--at", when, key="can-restore")
        # Beside the server's own: its account, which PostgreSQL runs as, must reach it.
        target = f"{server.directory}/restored_cluster"
        self._command("restore", cluster, "--at", when, "--to", target, key="restore cluster")
        self._say("* PostgreSQL recovers to that moment, and is asked")
        began = time.monotonic()
        with Restored(target, self._fetch_for(target)) as restored:
            self._say("$ psql stakazo -c 'SELECT count(*) FROM clips'")
            with restored.connect("stakazo") as connection:
                back = int(_value(connection, "SELECT count(*) FROM clips"))
        self.verdict.seconds["recover"] = time.monotonic() - began
        self._say(f"    {self.verdict.seconds['recover']:.1f} s")
        return back

    @contextmanager
    def _daemon(self) -> Iterator[None]:
        """The warm process that `wal push` asks."""
        socket = f"{self._work}/wal.sock"
        words = ["wal", "daemon", "--socket", socket]
        self._say(f"$ strongroom {' '.join(words)} &")
        process = subprocess.Popen(
            [sys.executable, "-m", "strongroom", *words], env=self._env, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        try:
            process.stderr.readline()  # it listens, or has ended and says why below
            self._env["STRONGROOM_WAL_SOCKET"] = socket
            yield
        finally:
            self._env.pop("STRONGROOM_WAL_SOCKET", None)
            process.terminate()
            process.communicate()

    def _archive(self, server: EmbeddedServer, names: Sequence[str], source: str) -> None:
        """What archive_command does, for each segment."""
        self._say(f"$ strongroom wal push %p --source {source}    # {len(names)} segments")
        began = time.monotonic()
        for name in names:
            done = self._start(
                "wal", "push", f"pg_wal/{name}", "--source", source, cwd=server.data_directory
            )
            if done.returncode:
                raise Damaged(f"wal push {name}: {done.stderr.decode(errors='replace')}")
        self.verdict.seconds["wal push"] = time.monotonic() - began
        self._say(f"    {self.verdict.seconds['wal push']:.1f} s")

    def _fetch_for(self, target: str) -> Callable[[str], bytes | None]:
        """Run `wal fetch` for a server whose own account may not read this demo's repository."""

        def fetch(name: str) -> bytes | None:
            place = os.path.join(self._work, "fetched")
            done = self._start("wal", "fetch", name, place, cwd=target)
            if done.returncode == 1:
                return None
            if done.returncode:
                raise Damaged(f"wal fetch {name} failed: {done.stderr.decode(errors='replace')}")
            with open(place, "rb") as file:
                data = file.read()
            os.unlink(place)
            return data

        return fetch

    def _start(self, *words: str, cwd: str | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "strongroom", *words],
            env=self._env,
            cwd=cwd,
            capture_output=True,
            check=False,
        )

    def _command(self, *words: str, key: str | None = None) -> dict[str, Any]:
        """Run a real command in a process of its own; return the result document."""
        self._say(f"$ strongroom {' '.join(words)}")
        began = time.monotonic()
        process = self._start("--json", *words)
        seconds = time.monotonic() - began
        if process.returncode:
            raise Damaged(
                f"`strongroom {' '.join(words)}` ended with {process.returncode}:\n"
                + process.stderr.decode(errors="replace")
                + process.stdout.decode(errors="replace")[-2000:]
            )
        self.verdict.seconds[key or words[0]] = seconds
        self._say(f"    {seconds:.1f} s")
        return _result(process.stdout)

    @contextmanager
    def _timed(self, title: str, key: str) -> Iterator[None]:
        self._say(f"* {title}")
        began = time.monotonic()
        yield
        self.verdict.seconds[key] = time.monotonic() - began
        self._say(f"    {self.verdict.seconds[key]:.1f} s")


def run(*, keep: str | None = None, scale: float = 1.0, say: Callable[[str], None]) -> Verdict:
    """Run the demo, in `keep` if given (left behind), else in a directory that is removed."""
    work = keep or tempfile.mkdtemp(prefix="strongroom-demo-")
    os.makedirs(work, exist_ok=True)
    try:
        verdict = Demo(os.path.realpath(work), say, scale=scale).run()
    finally:
        if keep is None:
            shutil.rmtree(work, ignore_errors=True)
    return verdict


def report(verdict: Verdict) -> Sequence[str]:
    """The closing lines."""
    sums = {
        name: sum(figures[name] for figures in verdict.backups.values())
        for name in ("size", "new_size", "stored")
    }
    lines = [""]
    lines += [f"{seconds:8.1f} s  {title}" for title, seconds in verdict.seconds.items()]
    lines += [
        f"{sum(verdict.seconds.values()):8.1f} s  in all",
        "",
        f"{len(verdict.backups)} backups of {_mb(sums['size'])} rest in {_mb(verdict.repository)}.",
    ]
    if verdict.differences:
        lines.append(f"DIFFERENT in {len(verdict.differences)} places:")
        lines += [f"  {one}" for one in verdict.differences[:20]]
    else:
        clips = verdict.clips
        lines += [
            f"SAME: every one of {verdict.rows:,} rows and {verdict.files:,} files came back.",
            f"{clips['deleted']:,} clips were deleted by mistake; restored to just before,"
            f" {clips['back']:,} of {clips['before']:,} are there.",
        ]
    drilled = [f"{source} {drill['verdict']}" for source, drill in verdict.drills.items()]
    lines += [f"Drilled: {', '.join(drilled)}; `strongroom drill report` has the signed reports."]
    return lines


def verify(verdict: Verdict) -> None:
    """Damaged when anything differs."""
    if verdict.differences:
        raise Damaged(
            f"The restore differs from the source in {len(verdict.differences)} places.",
            do="This is a bug in Strongroom: please report it with the lines above.",
        )


def _result(said: bytes) -> dict[str, Any]:
    """The one document of a short command, or the last line of a long one."""
    text = said if said.startswith(b"{\n") else said.splitlines()[-1]
    result: dict[str, Any] = json.loads(text)
    return result


def _value(connection: Any, query: str) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def _ready(server: EmbeddedServer) -> list[str]:
    """What the server waits to see archived, oldest first."""
    names = os.listdir(os.path.join(server.data_directory, "pg_wal/archive_status"))
    return sorted(name.removesuffix(".ready") for name in names if name.endswith(".ready"))


def _rows(server: EmbeddedServer, database: str) -> int:
    with server.connect(database) as connection:
        queries = [query for (query,) in connection.execute(_TABLES).fetchall()]
        return sum(int((connection.execute(query).fetchone() or (0,))[0]) for query in queries)


def _files(path: str) -> int:
    return sum(len(names) for _, _, names in os.walk(path))


def _size(path: str) -> int:
    return sum(
        os.lstat(os.path.join(folder, name)).st_size
        for folder, _, names in os.walk(path)
        for name in names
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


__all__ = ["Demo", "StrongroomError", "Verdict", "report", "run", "verify"]
