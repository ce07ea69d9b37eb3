"""`wal push` and `wal fetch` as PostgreSQL runs them: a question to the daemon, where one answers.

Nothing is imported here but what asks: docs/reference/speed.md says what it takes. Any flag that is
not understood here is no mistake, but leads to the command itself.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # behind `signal`, which imports `enum`
import os
import sys

from strongroom.config.places import search_path
from strongroom.postgres.wal.client import DEFAULT_SOCKET, ask

_VALUES = {"--socket": "socket", "--config": "config", "-c": "config", "--source": "source"}
_FLAGS = {"--partial": "partial", "--standby": "standby", "--alone": "alone"}
_WORDS = {"push": 1, "fetch": 2}
HELPER_IDLE = 30  # seconds without a question, upon which it ends


def quick(argv: list[str]) -> int | None:
    """The exit status, where a daemon did the work; None where it is to be done here."""
    asked = _read(argv)
    if asked is None:
        return None
    verb, values, flags, words = asked
    if verb == "push":  # ended by a signal, it would end the archiver too
        _signal.signal(_signal.SIGTERM, lambda *_: os._exit(1))
    environ = os.environ
    fields = [
        verb,
        _configuration(values.get("config") or environ.get("STRONGROOM_CONFIG")),
        environ.get("STRONGROOM_REPOSITORY", ""),
        values.get("source", ""),
        words[0] if verb == "fetch" else "",
        words[-1],
        ",".join(sorted(flags)),
    ]
    answer = ask(socket_path(values.get("socket"), environ.get("STRONGROOM_WAL_SOCKET")), fields)
    if answer is None and verb == "fetch":
        answer = ask(helper_socket(), fields)
    if answer is None:
        return None
    status, said = answer
    if said:
        sys.stderr.write(said.decode("utf-8", "replace") + "\n")
        sys.stderr.flush()
    return status


def socket_path(flag: str | None, variable: str | None) -> str:
    """Where the daemon listens."""
    return flag or variable or DEFAULT_SOCKET


def helper_socket() -> str:
    """Where the process listens that a fetch in this directory leaves behind: a name of the kernel's,
    which nobody has to clear away. Who answers there is looked at all the same."""
    here = os.stat(".")
    return f"@strongroom-wal-{os.geteuid()}-{here.st_dev}-{here.st_ino}"


def helper_words(argv: list[str]) -> list[str] | None:
    """The command of that process; None where a flag stands in the way, or it is not wanted."""
    asked = _read(argv)
    if asked is None or asked[0] != "fetch" or "alone" in asked[2]:
        return None
    configuration = _configuration(asked[1].get("config") or os.environ.get("STRONGROOM_CONFIG"))
    words = [sys.executable, "-m", "strongroom", "wal", "daemon", "--socket", helper_socket()]
    words += ["--idle", str(HELPER_IDLE)]
    return words + (["--config", configuration] if configuration else [])


def _read(argv: list[str]) -> tuple[str, dict[str, str], set[str], list[str]] | None:
    """Verb, flags with a value, flags without, words; None when it is not as simple as that."""
    if len(argv) < 2 or argv[1] not in _WORDS:
        return None
    values: dict[str, str] = {}
    flags, words = set(), []
    rest = iter(argv[2:])
    for each in rest:
        name, equals, value = each.partition("=")
        if each in _FLAGS:
            flags.add(_FLAGS[each])
        elif name in _VALUES and equals and name.startswith("--"):
            values[_VALUES[name]] = value
        elif each in _VALUES:
            values[_VALUES[each]] = next(rest, "")
        elif each.startswith("-"):
            return None
        else:
            words.append(each)
    if len(words) != _WORDS[argv[1]] or (flags and argv[1] == "push"):
        return None
    return argv[1], values, flags, words


def _configuration(named: str | None) -> str:
    """The configuration that the command itself would read; "" for none."""
    for candidate in [named] if named else search_path(os.environ):
        if os.path.exists(candidate):
            return os.path.realpath(candidate)
    return ""
