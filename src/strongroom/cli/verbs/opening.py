"""open: a running server of a moment, without restoring it."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from strongroom import wiring
from strongroom.cli.desk import Desk
from strongroom.cli.flags import Everywhere
from strongroom.cli.names import show_text
from strongroom.cli.places import parse_place
from strongroom.cli.progress import listening
from strongroom.cli.verbs.recovery import NO_TARGET, OpeningFlags, TargetFlags, found_at
from strongroom.errors import Interrupted, UsageError
from strongroom.progress import Progress
from strongroom.rules.sizes import show_seconds

if TYPE_CHECKING:
    from strongroom.operations.points import Cluster
    from strongroom.postgres.sandbox import Sandbox

_DEFAULT, _OPENING = Everywhere(), OpeningFlags()
_LOOK = 0.1  # seconds between two looks at a server that nobody waits for


def open_cluster(
    place: str,
    /,
    *,
    exec_: Annotated[str | None, Parameter(name="--exec")] = None,
    sql: str | None = None,
    database: str | None = None,
    target: TargetFlags = NO_TARGET,
    opening: OpeningFlags = _OPENING,
    everywhere: Everywhere = _DEFAULT,
) -> int:
    """Run a cluster as it was, for reading and writing, without restoring it.

    What is read is fetched from the repository as it is read; what is written goes to a scratch
    directory. Without --exec or --sql the server runs until Ctrl-C. Nothing of it is kept.

    Parameters
    ----------
    place
        SOURCE@T; T is a time, or an id for the end of that backup. Without T the newest state.
    exec_
        Run this command with PGHOST, PGPORT, PGUSER and PGDATABASE set, and close; its exit status is
        ours. No shell reads it.
    sql
        Run this SQL through psql, and close.
    database
        Which database, where the cluster has several.
    """
    from strongroom.operations.can_restore import target_text  # noqa: PLC0415
    from strongroom.operations.open_cluster import words_of  # noqa: PLC0415
    from strongroom.operations.recovering import opened  # noqa: PLC0415

    began = wiring.steady()
    if exec_ is not None and sql is not None:
        raise UsageError("--exec and --sql both say what to run.", do="Give one of them.")
    argv = None if exec_ is None else words_of(exec_)
    desk = Desk(everywhere)
    how = opening.how(desk)
    source = parse_place(place).source
    with (
        desk.recorded("read", source=source, what=f"open {place}") as run,
        desk.repository() as repository,
    ):
        cluster, found = found_at(desk, repository, place, target)
        assert found.verdict.base is not None
        run.of(cluster.snapshots[found.verdict.base.id])
        run.detail["target"] = target_text(found.verdict.target)
        with ExitStack() as stack:
            with listening(desk.output) as shown:
                phases = _Phases(shown, began)
                sandbox = stack.enter_context(
                    opened(
                        repository, cluster, found.verdict, how=how, jobs=desk.jobs, progress=phases
                    )
                )
            status, body = _use(desk, cluster, sandbox, argv, sql, database, phases)
        fault = getattr(sandbox, "damage", None)
        if fault is not None and status == 0:
            fault.means = "What was asked may be missing from the answer; other tables are whole."
            fault.do = "`strongroom check --read-data` names what is damaged."
            return desk.output.finish("open", body, fault)
        run.detail["exit"] = status  # of what was run in it: the opening itself is done
    desk.output.event("result", {"verb": "open", "exit": status, **body})
    return status


def _use(
    desk: Desk,
    cluster: Cluster,
    sandbox: Sandbox,
    argv: list[str] | None,
    sql: str | None,
    database: str | None,
    phases: _Phases,
) -> tuple[int, dict[str, Any]]:
    """Let it be used, until the command or the person is done."""
    from strongroom.operations.open_cluster import environment, psql, run  # noqa: PLC0415
    from strongroom.operations.table import only_database  # noqa: PLC0415

    configured = desk.configuration.source.get(cluster.source)
    name = database or wiring.database_of(configured) or only_database(sandbox)
    seconds = phases.seconds()
    environ = environment(sandbox, name, desk.environ)
    facts = {
        "source": cluster.source,
        "dsn": f"host={sandbox.socket_directory} port={sandbox.port} user={sandbox.user}"
        f" dbname={name}",
        "environment": {key: value for key, value in environ.items() if key.startswith("PG")},
        "seconds": round(seconds, 3),
        "phases": phases.told,
    }
    given = None if sql is None else os.fsencode(sql) + b"\n"
    if sql is not None:
        argv = psql(sandbox)
    if argv is None:
        desk.output.event("open", facts)
        _show(desk, cluster, sandbox, seconds, environ)
        _wait(sandbox)
        return 0, facts
    desk.output.note(f"open in {show_seconds(seconds)}")
    # With --json stdout is for lines of JSON: an answer is kept for the last of them, what a command
    # says goes to stderr.
    stdout = None
    if desk.output.json:
        stdout = subprocess.PIPE if sql is not None else 2
    status, said = run(argv, environ, given=given, stdout=stdout)
    if sql is None:
        return status, facts
    return min(status, 1), facts | {"output": said}


def _show(
    desk: Desk, cluster: Cluster, sandbox: Sandbox, seconds: float, environ: dict[str, str]
) -> None:
    major, minor = sandbox.installation.version
    variables = " ".join(f"{key}={environ[key]}" for key in ("PGHOST", "PGPORT", "PGUSER"))
    desk.output.lines(
        (
            f"{show_text(cluster.source)}: PostgreSQL {major}.{minor} open in"
            f" {show_seconds(seconds)}; thrown away when this ends (Ctrl-C)",
            f"  {variables} psql {show_text(environ['PGDATABASE'])}",
        )
    )
    desk.output.stdout.flush()


def _wait(sandbox: Sandbox) -> None:
    """Until somebody says that it is enough."""
    try:
        while sandbox.running:
            time.sleep(_LOOK)
    except Interrupted:
        return
    raise sandbox.ended()


class _Phases:
    """Passes progress on, and keeps when each phase began."""

    def __init__(self, progress: Progress, began: float) -> None:
        self._progress, self._began = progress, began
        self.told: dict[str, float] = {}

    def seconds(self) -> float:
        """Since the beginning."""
        return wiring.steady() - self._began

    def phase(self, name: str) -> None:
        self.told[name] = round(self.seconds(), 3)
        self._progress.phase(name)

    def plan(self, *, size: int = 0, files: int = 0) -> None:
        self._progress.plan(size=size, files=files)

    def advance(self, *, size: int = 0, files: int = 0, stored: int = 0) -> None:
        self._progress.advance(size=size, files=files, stored=stored)

    def problem(self, path: bytes, reason: str) -> None:
        self._progress.problem(path, reason)


__all__ = ["open_cluster"]
