"""A command of somebody's, run against a server that was opened for it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import FrameType

from strongroom.errors import NotFound, StrongroomError, UsageError
from strongroom.postgres.sandbox import Sandbox


def environment(sandbox: Sandbox, database: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment in which libpq finds the opened server, and nothing that names another."""
    kept = {name: value for name, value in environ.items() if not name.startswith("PG")}
    return kept | {
        "PGHOST": sandbox.socket_directory,
        "PGPORT": str(sandbox.port),
        "PGUSER": sandbox.user,
        "PGDATABASE": database,
    }


def words_of(command: str) -> list[str]:
    """A command line as words; no shell reads it. UsageError."""
    try:
        words = shlex.split(command)
    except ValueError as fault:
        raise UsageError(f"--exec: {fault}.", do="Quote it as a shell would have it.") from None
    if not words or not words[0]:
        raise UsageError("--exec names no command.")
    return words


def psql(sandbox: Sandbox) -> list[str]:
    """psql that runs what it is given on stdin, with nobody's settings."""
    beside = os.path.join(sandbox.installation.bindir, "psql")
    program = beside if os.access(beside, os.X_OK) else shutil.which("psql")
    if program is None:
        raise NotFound("There is no psql here.", do="Install PostgreSQL's client programs.")
    return [program, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"]


def run(
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    given: bytes | None = None,
    stdout: int | None = None,
) -> tuple[int, str]:
    """Run a command in the foreground, with what it is `given` on stdin: its status as a
    shell would tell it, and what it said where `stdout` is a pipe.

    What the terminal sends to both is the command's to answer; a SIGTERM to us is passed on.
    """
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
    }
    try:
        try:
            stdin = None if given is None else subprocess.PIPE
            process = subprocess.Popen(list(argv), env=dict(environ), stdin=stdin, stdout=stdout)
        except (OSError, ValueError) as fault:
            why = getattr(fault, "strerror", None) or str(fault)
            raise StrongroomError(
                f"`{shlex.join(argv)}` cannot be run: {why}.",
                means="The opened server was closed; the repository is as it was.",
                do="Correct the command; no shell reads it.",
            ) from None
        for number in early:
            process.send_signal(number)
        said, _ = process.communicate(given)
        status = process.returncode
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    text = (said or b"").decode("utf-8", "replace")
    return (status if status >= 0 else 128 - status), text


__all__ = ["environment", "psql", "run", "words_of"]
