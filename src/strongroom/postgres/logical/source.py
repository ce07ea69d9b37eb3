"""A PostgreSQL database as a Source: pg_dump streams side by side, straight into the engine.

Rule of this file: all streams show one moment (`snapshot.py`), none touches a disk on its way, and
a stream counts only when its pg_dump has ended well. Definitions (pre-data and post-data) are one
stream, each large table is one, the middling ones go in groups, the rest in "main" (`plan.py`).
Not compressed by pg_dump: the engine finds the bytes it knows and compresses the others.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from strongroom.errors import NotFound, StrongroomError
from strongroom.format.tree import Entry, Kind
from strongroom.postgres.clients import Client, Clients
from strongroom.postgres.logical import names
from strongroom.postgres.logical.plan import Stream, plan_streams
from strongroom.postgres.logical.snapshot import HeldSnapshot
from strongroom.postgres.logical.tool import Family, Tool
from strongroom.postgres.server import Conninfo, ServerFacts, connect, server_facts
from strongroom.progress import Progress
from strongroom.repository.ports import Lane, Problem, Session, Taken

FACTS_FORMAT = 1
LOCK_TIMEOUT = 60.0


def default_jobs() -> int:
    """Streams at a time when nothing is configured: one for each core, four at most."""
    return max(1, min(4, os.cpu_count() or 1))


@dataclass
class _Run:
    """What the threads of one backup share."""

    session: Session
    progress: Progress
    family: Family = field(default_factory=Family)
    entries: list[Entry] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, path: bytes, reason: str) -> None:
        """Note what is not in the backup, and tell of it."""
        self.problems.append(Problem(path, reason))
        self.progress.problem(path, reason)

    lock: threading.Lock = field(default_factory=threading.Lock)


class LogicalSource:
    """One database, or several of one server, as a source.

    `databases` names them; empty means the one of the dsn, `("*",)` every one that accepts
    connections. Each database is its own moment: PostgreSQL has no snapshot across databases.
    `unlogged` False leaves out the contents of unlogged tables (always so on a standby, which does
    not have them). `global_objects` False leaves out roles and tablespaces.
    """

    kind = "postgres"

    def __init__(
        self,
        name: str,
        dsn: str,
        *,
        password: str | None = None,
        databases: Sequence[str] = (),
        jobs: int | None = None,
        clients: Clients | None = None,
        global_objects: bool = True,
        role_passwords: bool = True,
        unlogged: bool = True,
        lock_timeout: float = LOCK_TIMEOUT,
    ) -> None:
        self.name = name
        self._conninfo = Conninfo.parse(dsn, password=password)
        self._databases = tuple(databases)
        self._jobs = jobs or default_jobs()
        self._clients = clients
        self._global_objects = global_objects
        self._role_passwords = role_passwords
        self._unlogged = unlogged
        self._lock_timeout = lock_timeout

    def __repr__(self) -> str:
        return f"<LogicalSource {self.name}: {self._conninfo.where}>"

    def settled(self) -> None:
        """Nothing is kept between runs: the engine knows every byte it has."""

    def probe(self) -> dict[str, Any]:
        """Connect and say what would be backed up with which tools: for `source test`."""
        clients = self._clients or Clients.found()
        with connect(self._conninfo) as connection:
            server = server_facts(connection)
        report: dict[str, Any] = {
            "server": server.as_json(),
            "databases": list(self._chosen(server)),
            "passed_over": clients.passed_over("dump", server=server.major),
        }
        client = clients.choose("dump", server=server.major)
        report["pg_dump"] = {"version": client.text, "program": client.program}
        return report

    def back_up(self, session: Session, *, progress: Progress) -> Taken:
        """Dump everything into the session; see `ports.Source`."""
        clients = self._clients or Clients.found()
        run = _Run(session, progress)
        progress.phase("connecting")
        with connect(self._conninfo) as connection:
            server = server_facts(connection)
        client = clients.choose("dump", server=server.major)
        facts: dict[str, Any] = {
            "format": FACTS_FORMAT,
            "method": "logical",
            "taken_at": datetime.now(UTC).isoformat(),
            "server": server.as_json(),
            "pg_dump": client.text,
            "passed_over": clients.passed_over("dump", server=server.major),
            "databases": {},
        }
        with ThreadPoolExecutor(self._jobs + 1, "pg-dump") as pool:
            try:
                for database in self._chosen(server):
                    conninfo = self._conninfo.on(database)
                    facts["databases"][database] = self._dump_database(conninfo, client, run, pool)
                if self._global_objects:
                    facts["globals"] = self._dump_globals(clients, server, run)
            finally:
                run.family.end()
        for entry in sorted(run.entries, key=lambda entry: entry.path):
            session.tree.add(entry)
        facts["warnings"] = run.warnings
        size = sum(entry.size for entry in run.entries)
        return Taken(len(run.entries), size, facts, tuple(run.problems))

    def _chosen(self, server: ServerFacts) -> tuple[str, ...]:
        if not self._databases:
            return (self._conninfo.database,)
        if self._databases == ("*",):
            return server.databases
        missing = [name for name in self._databases if name not in server.databases]
        if missing:
            raise NotFound(
                f"The server of {self._conninfo.where} has no database "
                + ", ".join(repr(name) for name in missing)
                + " that accepts connections.",
            )
        return self._databases

    def _dump_database(
        self, conninfo: Conninfo, client: Client, run: _Run, pool: ThreadPoolExecutor
    ) -> dict[str, Any]:
        run.progress.phase("taking the snapshot")
        with HeldSnapshot(conninfo, self._lock_timeout) as held:
            streams = plan_streams(
                held.tables, jobs=self._jobs, large_objects=held.large_objects[1]
            )
            run.progress.plan(size=sum(s.weight for s in streams), files=len(streams))
            run.progress.phase(f"dumping {conninfo.database}")
            dumps = [
                _Dump(stream, path, self._argv(client, conninfo, held, stream), conninfo)
                for path, stream in zip(_paths(conninfo.database, streams), streams, strict=True)
            ]
            seen = self._run_all(held, dumps, run, pool)
        return self._database_facts(held, streams, seen)

    def _run_all(
        self, held: HeldSnapshot, dumps: Sequence[_Dump], run: _Run, pool: ThreadPoolExecutor
    ) -> dict[str, Any]:
        """Run the dumps on `jobs` threads and the counts on one more; return the counts."""
        waiting: queue.SimpleQueue[_Dump] = queue.SimpleQueue()
        for dump in dumps:
            waiting.put(dump)
        finished = threading.Event()
        lanes = [run.session.lane() for _ in range(min(self._jobs, len(dumps)))]
        workers: list[Future[None]] = [pool.submit(_work, waiting, lane, run) for lane in lanes]
        counting = pool.submit(held.look, finished, counted=lambda: None)
        try:
            _wait_for(workers, counting)
            finished.set()
            return counting.result()
        except BaseException:
            run.family.end()
            finished.set()
            held.interrupt()
            # Our cause first; what the others say while they are being stopped is its echo.
            wait(workers)
            wait([counting])
            raise

    def _argv(
        self, client: Client, conninfo: Conninfo, held: HeldSnapshot, stream: Stream
    ) -> list[str | bytes]:
        argv = [
            client.program,
            f"--dbname={conninfo.public()}",
            "--no-password",
            "--format=custom",
            "--compress=0",
            f"--snapshot={held.id}",
            f"--lock-wait-timeout={int(self._lock_timeout * 1000)}",
            "--quote-all-identifiers",
        ]
        if held.server.standby or not self._unlogged:
            argv.append("--no-unlogged-table-data")
        if stream.kind == "schema":
            return [*argv, "--section=pre-data", "--section=post-data"]
        argv.append("--section=data")
        if stream.kind == "main":
            named = _named_elsewhere(held, stream)
            return [*argv, *(f"--exclude-table-data={names.pattern(*key)}" for key in named)]
        chosen = (f"--table={names.pattern(t.schema, t.name)}" for t in stream.tables)
        return [*argv, "--strict-names", *chosen]

    def _database_facts(
        self, held: HeldSnapshot, streams: Sequence[Stream], seen: Mapping[str, Any]
    ) -> dict[str, Any]:
        left_out = [
            {"schema": t.schema, "name": t.name, "reason": "unlogged"}
            for t in held.tables
            if t.unlogged and (held.server.standby or not self._unlogged)
        ]
        absent = {(row["schema"], row["name"]) for row in left_out}
        return {
            **held.database.as_json(),
            **seen,
            "tables": [t for t in seen["tables"] if (t["schema"], t["name"]) not in absent],
            "large_objects": held.large_objects[0],
            "streams": len(streams),
            "left_out": left_out,
        }

    def _dump_globals(self, clients: Clients, server: ServerFacts, run: _Run) -> dict[str, Any]:
        """Take roles and tablespaces; a reason not to becomes a Problem, never an end."""
        run.progress.phase("roles and tablespaces")
        passwords = self._role_passwords
        try:
            client = clients.choose("globals", server=server.major)
            try:
                text = self._globals_text(client, run, passwords=passwords)
            except StrongroomError as fault:
                if not passwords:
                    raise
                passwords = False
                text = self._globals_text(client, run, passwords=False)
                run.problem(names.GLOBALS, f"role passwords are not included: {fault.what}")
        except StrongroomError as fault:
            run.problem(names.GLOBALS, f"not included: {fault.what}")
            return {"included": False, "role_passwords": False}
        content = run.session.lane().content()
        content.write(text)
        stored = content.finish()
        run.entries.append(
            Entry(names.GLOBALS, Kind.STREAM, size=stored.size, content=stored.content)
        )
        run.progress.plan(size=stored.size, files=1)
        run.progress.advance(size=stored.size, files=1)
        return {"included": True, "role_passwords": passwords, "pg_dumpall": client.text}

    def _globals_text(self, client: Client, run: _Run, *, passwords: bool) -> bytes:
        argv = [
            client.program,
            f"--dbname={self._conninfo.public()}",
            "--no-password",
            "--globals-only",
            "--quote-all-identifiers",
        ]
        if not passwords:
            argv.append("--no-role-passwords")
        with Tool(argv, self._conninfo, run.family) as tool:
            text = tool.output()
            run.warnings += tool.check()
        return text


@dataclass(frozen=True, slots=True)
class _Dump:
    """One stream to take: where it goes and the command that makes it."""

    stream: Stream
    path: bytes
    argv: Sequence[str | bytes]
    conninfo: Conninfo


def _work(waiting: queue.SimpleQueue[_Dump], lane: Lane, run: _Run) -> None:
    while True:
        try:
            dump = waiting.get_nowait()
        except queue.Empty:
            return
        _take(dump, lane, run)


def _take(dump: _Dump, lane: Lane, run: _Run) -> None:
    """Move one pg_dump's output into the engine; nothing counts before its exit status is 0."""
    progress = run.progress
    with Tool(dump.argv, dump.conninfo, run.family) as tool:
        content = lane.content()

        def readinto(view: memoryview) -> int:
            taken = tool.readinto(view)
            progress.advance(size=taken)
            return taken

        content.feed_from(readinto)
        said = tool.check()
        stored = content.finish()
    # The plan was made from sizes on disk, which dead rows and free space swell.
    progress.plan(size=stored.size - dump.stream.weight)
    progress.advance(files=1)
    entry = Entry(dump.path, Kind.STREAM, size=stored.size, content=stored.content)
    with run.lock:
        run.entries.append(entry)
        run.warnings += [text for text in said if text not in run.warnings]


def _wait_for(workers: Sequence[Future[None]], counting: Future[dict[str, Any]]) -> None:
    """Return when all workers are done; raise the first fault of any, the counts included."""
    pending: set[Future[Any]] = {*workers, counting}
    while any(worker in pending for worker in workers):
        done, pending = wait(pending, return_when=FIRST_EXCEPTION, timeout=1.0)
        for future in done:
            future.result()


def _paths(database: str, streams: Sequence[Stream]) -> list[bytes]:
    paths, group = [], 0
    for stream in streams:
        if stream.kind == "schema":
            paths.append(names.schema_path(database))
        elif stream.kind == "main":
            paths.append(names.main_path(database))
        elif stream.kind == "table":
            table = stream.tables[0]
            paths.append(names.table_path(database, table.schema, table.name))
        else:
            group += 1
            paths.append(names.group_path(database, group))
    return paths


def _named_elsewhere(held: HeldSnapshot, main: Stream) -> list[tuple[str, str]]:
    inside = {(t.schema, t.name) for t in main.tables}
    every = [(t.schema, t.name) for t in held.tables]
    return [key for key in every if key not in inside]
