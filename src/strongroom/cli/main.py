"""The way in and the only way out: errors become four lines and an exit status here.

What nobody foresaw is an error too: code "failed", its traceback only with -vv
or STRONGROOM_DEBUG=1. A reader that goes away (`| head`) is no error.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # PostgreSQL starts `wal push` for every segment: no import that can wait
if TYPE_CHECKING:
    from typing import NoReturn

    from strongroom.errors import StrongroomError

# What the words of a failed backup would say wrongly of other verbs.
_BESIDE_BACKUP = {
    "init": "There is no usable repository yet; nothing was backed up.",
    "restore": "What was to be restored is not there, or not complete; the backup is untouched.",
}


def main() -> NoReturn:
    """Run the command line of this process and exit with its status."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    argv = sys.argv[1:]
    if argv[:2] == ["wal", "fetch"]:
        _fetch(argv)
    if argv[:1] == ["wal"] and (status := _quick(argv)) is not None:
        os._exit(status)
    status = run(argv)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
    sys.exit(status)


def _fetch(argv: list[str]) -> NoReturn:
    """Run `wal fetch`. PostgreSQL takes any status up to 125 for the end of the log and opens the
    database: not even a broken installation may end in one, as Python itself would."""
    status = 201
    try:
        quick = _quick(argv)
        status = run(argv) if quick is None else quick
    except BaseException as fault:
        os.write(2, f"strongroom: {type(fault).__name__}: {fault}\n".encode("ascii", "replace"))
    finally:
        os._exit(status)


def _quick(argv: list[str]) -> int | None:
    from strongroom.cli.wal_client import quick  # noqa: PLC0415

    return quick(argv)


def run(argv: list[str]) -> int:
    """Run a command line and return its exit status; errors are told, not raised."""
    from strongroom.cli.signals import convert_signals  # noqa: PLC0415
    from strongroom.errors import Interrupted, StrongroomError  # noqa: PLC0415

    try:
        convert_signals()
        # numpy's linear algebra starts a thread a core that would spin for nothing here.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        return _call(argv)
    except BrokenPipeError as fault:
        _drop_stdout()
        if argv[:1] == ["wal"]:  # nobody reads what these print: something else broke
            return _fail(argv, _unforeseen(fault))
        return 0  # `| head` has seen enough
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
    from strongroom.errors import UsageError  # noqa: PLC0415

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
    from strongroom.cli.flags import given, verb_first, wants  # noqa: PLC0415
    from strongroom.cli.output import last_words  # noqa: PLC0415
    from strongroom.errors import StrongroomError  # noqa: PLC0415

    argv = verb_first(argv)
    verb = argv[0] if argv else ""
    if verb != "backup" and fault.means == StrongroomError.means:
        fault.means = _BESIDE_BACKUP.get(verb, "The backups in the repository are untouched.")
    if os.environ.get("STRONGROOM_DEBUG") or wants(argv, "-vv", "-vvv"):
        import traceback  # noqa: PLC0415

        traceback.print_exception(fault, file=sys.stderr)
    try:
        words = next((one for one in (verb, " ".join(argv[:2])) if one in LONG), verb)
        log = given(argv, "--log-format") or os.environ.get("STRONGROOM_LOG_FORMAT")
        output = last_words(json=wants(argv, "--json"), log=log)
        output.error(fault, long=words in LONG, verb=words)
    except BrokenPipeError:
        _drop_stdout()
    return _status(argv, fault.exit_status)


def _status(argv: list[str], status: int) -> int:
    """The exit status, as those commands may have it that PostgreSQL runs."""
    from strongroom.postgres.wal.client import fetch_status, push_status  # noqa: PLC0415

    if argv[:2] == ["wal", "push"]:
        return push_status(status)
    return fetch_status(status) if argv[:2] == ["wal", "fetch"] else status


def _unforeseen(fault: Exception) -> StrongroomError:
    from strongroom.errors import StrongroomError  # noqa: PLC0415

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
