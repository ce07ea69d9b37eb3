"""Run a configured command: argv as it is, no shell, its output kept for when it fails."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO

from strongroom.errors import Refused, StrongroomError

_TAIL = 4096
_PATIENCE = 10.0


def run_command(
    argv: Sequence[str],
    *,
    environ: Mapping[str, str],
    cwd: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
    below: Sequence[str] = (),
) -> None:
    """Run to the end; StrongroomError when it cannot be run or does not end with 0.

    Output goes to a file and not through a pipe: a service that a command starts keeps its ends
    open. Where we are stopped, so is the command and what it started. `below`: a program that runs it
    as long as its own standard input, a pipe, stays open.
    """
    shown = shlex.join(argv)
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                [*below, *argv],
                cwd=cwd,
                env=dict(environ),
                stdin=subprocess.PIPE if below else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (OSError, ValueError) as fault:
            why = getattr(fault, "strerror", None) or str(fault)
            raise StrongroomError(f"`{shown}` cannot be run: {why}.") from None
        try:
            status = process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            if process.stdin is not None:
                process.stdin.close()
        said = _tail(output)
    for line in said:
        tell(line)
    if status:
        how = f"exit status {status}" if status > 0 else f"signal {-status}"
        last = f": {' | '.join(said[-3:])}" if said else ", and said nothing"
        raise StrongroomError(f"`{shown}` ended with {how}{last}.")


def refuse_unknown(commands: Iterable[tuple[Sequence[str], str | None]]) -> None:
    """Refused when a command, of words and folder, could not be started."""
    for argv, cwd in commands:
        if cwd is not None and not os.path.isdir(cwd):
            raise Refused(
                f"The folder {cwd!r} of `{shlex.join(argv)}` is not there.",
                do="Correct `cwd` in the configuration.",
            )
        program = argv[0]
        if "/" in program and not os.path.isabs(program):
            program = os.path.join(cwd or os.curdir, program)
        if shutil.which(program) is None:
            raise Refused(
                f"`{argv[0]}` is no program that can be run here.",
                do="Correct the command in the configuration, or $PATH.",
            )


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
            return
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(output: IO[bytes]) -> list[str]:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - _TAIL))
    text = output.read().decode("utf-8", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
