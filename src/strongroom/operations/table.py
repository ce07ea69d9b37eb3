"""One table of a cluster as it was: a throw-away server recovers to the point, and pg_dump reads it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from strongroom.artefacts.gzipping import GzipWriter
from strongroom.errors import AlreadyExists, NotFound, StrongroomError, UsageError
from strongroom.operations.points import Cluster
from strongroom.operations.recovering import Opening, opened
from strongroom.postgres.clients import Clients
from strongroom.postgres.sandbox import Sandbox
from strongroom.progress import Progress
from strongroom.repository.repository import Repository
from strongroom.rules.recovery import Verdict

_PIECE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Taken:
    """What was written: where, its bytes, and which database it came from."""

    path: str
    size: int
    database: str


def take_table(
    repository: Repository,
    cluster: Cluster,
    verdict: Verdict,
    name: str,
    output: str,
    *,
    database: str | None,
    clients: Clients,
    how: Opening,
    jobs: int | None,
    progress: Progress,
) -> Taken:
    """Write one table into a file; AlreadyExists, NotFound when there is no such table."""
    form = _form(output)
    if os.path.lexists(output):
        raise AlreadyExists(f"{output} is there already.", do="Choose another name.")
    client = clients.choose("dump", server=cluster.major)
    scratch = output + ".part"
    with opened(repository, cluster, verdict, how=how, jobs=jobs, progress=progress) as sandbox:
        chosen = database or only_database(sandbox)
        _check(sandbox, chosen, name)
        progress.phase("dumping the table")
        try:
            size = _dump(sandbox, client.program, chosen, name, form, scratch)
            os.link(scratch, output)
        except FileExistsError:
            raise AlreadyExists(f"{output} is there already.") from None
        finally:
            with suppress(FileNotFoundError):
                os.unlink(scratch)
    return Taken(output, size, chosen)


def _form(output: str) -> str:
    for ending in (".sql.gz", ".sql", ".dump"):
        if output.endswith(ending):
            return ending
    raise UsageError(f"{output} says no format.", do="Let its name end in .sql, .sql.gz or .dump.")


def only_database(sandbox: Sandbox) -> str:
    """The one database of a cluster; UsageError with their names when there are several."""
    with sandbox.connect() as connection:
        rows = connection.execute(
            "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate"
            " ORDER BY datname = 'postgres', datname"
        ).fetchall()
    names = [name for (name,) in rows]
    others = [name for name in names if name != "postgres"]
    if len(others) > 1:
        raise UsageError(
            f"The cluster has {len(others)} databases: {', '.join(others[:10])}.",
            do="Name one with --database.",
        )
    return str((others or names)[0])


def _check(sandbox: Sandbox, database: str, name: str) -> None:
    with sandbox.connect() as connection:
        if not connection.execute(
            "SELECT 1 FROM pg_database WHERE datname = %s", (database,)
        ).fetchone():
            raise NotFound(f"There was no database {database!r} then.")
    with sandbox.connect(database) as connection:
        row = connection.execute("SELECT to_regclass(%s)", (name,)).fetchone()
    if row is None or row[0] is None:
        raise NotFound(
            f"There was no table {name} in {database} then.",
            do="Write it as schema.table; `strongroom can-restore` shows which state that is.",
        )


def _dump(sandbox: Sandbox, program: str, database: str, name: str, form: str, path: str) -> int:
    argv = [
        program,
        "--format=custom" if form == ".dump" else "--format=plain",
        "--no-password",
        f"--table={name}",
        "--strict-names",
        f"--host={sandbox.socket_directory}",
        f"--port={sandbox.port}",
        f"--username={sandbox.user}",
        "--dbname",
        _quoted(database),
    ]
    environment = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        assert process.stdout is not None and process.stderr is not None
        gzip = GzipWriter(file.write) if form == ".sql.gz" else None
        write: Callable[[bytes], object] = file.write if gzip is None else gzip.write
        try:
            while piece := process.stdout.read(_PIECE):
                write(piece)
            said = process.stderr.read().decode("utf-8", "replace")
            if process.wait():
                raise StrongroomError(
                    f"pg_dump ended with {process.returncode}: {' '.join(said.split())[-500:]}",
                    means="Nothing was written; the repository is as it was.",
                )
            if gzip is not None:
                gzip.finish()
        finally:
            if gzip is not None:
                gzip.close()
            process.stdout.close()
            process.stderr.close()
            if process.poll() is None:
                process.kill()
            process.wait()
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _quoted(database: str) -> str:
    """As a value of its own, so that libpq expands no name into a connection string."""
    plain = database.replace("\\", "\\\\").replace("'", "\\'")
    return f"dbname='{plain}'"


__all__ = ["Taken", "only_database", "take_table"]
