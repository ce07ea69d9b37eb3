"""The way in and the only way out: errors become four lines and an exit status here.

What nobody foresaw is an error too: code "failed", its traceback only with -vv
or STRONGROOM_DEBUG=1. A reader that goes away (`| head`) is no error.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from strongroom.cli.output import Output
from strongroom.cli.signals import convert_signals
from strongroom.errors import Interrupted, StrongroomError, UsageError

# What the words of a failed backup would say wrongly of other verbs.
_BESIDE_BACKUP = {
    "init": "There is no usable repository yet; nothing was backed up.",
    "restore": "What was to be restored is not there, or not complete; the backup is untouched.",
}


def main() -> NoReturn:
    """Run the command line of this process and exit with its status."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
    sys.exit(status)


def run(argv: list[str]) -> int:
    """Run a command line and return its exit status; errors are told, not raised."""
    try:
        convert_signals()
        # numpy's linear algebra starts a thread a core that would spin for nothing here.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        return _call(argv)
    except BrokenPipeError:  # `| head` has seen enough
        _drop_stdout()
        return 0
    except StrongroomError as fault:
        return _fail(argv, fault)
    except KeyboardInterrupt:
        return _fail(argv, Interrupted("Stopped."))
    except Exception as fault:
        return _fail(argv, _unforeseen(fault))


def _call(argv: list[str]) -> int:
    from cyclopts import CycloptsError  # noqa: PLC0415 -- 0.1 s; signals are handled by now

    from strongroom.cli.app import build  # noqa: PLC0415
    from strongroom.cli.flags import verb_first  # noqa: PLC0415

    app, argv = build(), verb_first(argv)
    if not argv:
        app.help_print([])
        return UsageError.exit_status
    try:
        status = app(argv)
    except CycloptsError as fault:
        verb = " ".join(fault.command_chain or ())
        do = f"`strongroom {verb + ' ' if verb else ''}--help` shows how."
        if "requires an argument" in str(fault):
            do += " A value that begins with a dash is written as --flag=VALUE."
        raise UsageError(str(fault), do=do) from None
    return int(status or 0)


def _fail(argv: list[str], fault: StrongroomError) -> int:
    from strongroom.cli.app import LONG  # noqa: PLC0415
    from strongroom.cli.flags import verb_first, wants  # noqa: PLC0415

    argv = verb_first(argv)
    verb = argv[0] if argv else ""
    if verb != "backup" and fault.means == StrongroomError.means:
        fault.means = _BESIDE_BACKUP.get(verb, "The backups in the repository are untouched.")
    if os.environ.get("STRONGROOM_DEBUG") or wants(argv, "-vv", "-vvv"):
        import traceback  # noqa: PLC0415

        traceback.print_exception(fault, file=sys.stderr)
    try:
        Output(json=wants(argv, "--json")).error(fault, long=verb in LONG, verb=verb)
    except BrokenPipeError:
        _drop_stdout()
    return fault.exit_status


def _unforeseen(fault: Exception) -> StrongroomError:
    wrapped = StrongroomError(
        f"An error that nobody foresaw: {type(fault).__name__}: {fault}",
        means="What was committed before is untouched; this run did not finish.",
        do="Run it again with -vv and report the traceback.",
    )
    wrapped.__cause__ = fault
    return wrapped


def _drop_stdout() -> None:
    """Nobody reads stdout any more: keep Python from complaining about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
