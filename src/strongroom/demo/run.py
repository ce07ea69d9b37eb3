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
from typing import Any

from strongroom.demo.platform import Platform, find_platform
from strongroom.errors import Damaged, StrongroomError
from strongroom.files.compare import compare_trees
from strongroom.postgres.compare import compare_databases
from strongroom.postgres.embedded import EmbeddedServer

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
        server = EmbeddedServer()
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
        text = _CONFIG.format(work=self._work, dsn=dsn)
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

    def _command(self, *words: str, key: str | None = None) -> dict[str, Any]:
        """Run a real command in a process of its own; return the result document."""
        self._say(f"$ strongroom {' '.join(words)}")
        began = time.monotonic()
        process = subprocess.run(
            [sys.executable, "-m", "strongroom", "--json", *words],
            env=self._env,
            capture_output=True,
            check=False,
        )
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
        f"Four backups of {_mb(sums['size'])} rest in {_mb(verdict.repository)}.",
    ]
    if verdict.differences:
        lines.append(f"DIFFERENT in {len(verdict.differences)} places:")
        lines += [f"  {one}" for one in verdict.differences[:20]]
    else:
        lines.append(
            f"SAME: every one of {verdict.rows:,} rows and {verdict.files:,} files came back."
        )
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
