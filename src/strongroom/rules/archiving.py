"""What a server archives, and why WAL was not archived: facts in, a verdict with cause and remedy. PURE.

Rule: what archives nothing, or hides that it failed, is worse than what fails: the log is gone unseen.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from strongroom.rules.preconditions import Finding, count, ok

READY_MANY = 16  # segments that wait to be archived


@dataclass(frozen=True, slots=True)
class ArchiveCommand:
    """An archive_command, taken apart. `words` are those of our own command, without a shell's signs,
    and its environment in `given`; `before` and `after` are the signs around it."""

    text: str
    words: tuple[str, ...] = ()
    given: Mapping[str, str] | None = None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    expands: bool = False  # $… or `…`, which only a shell understands

    @property
    def ours(self) -> bool:
        """Whether it is `strongroom wal push`, or `strongroom-wal push`."""
        return bool(self.words)

    @property
    def program(self) -> str:
        """What the server starts."""
        return self.words[0] if self.words else ""

    @property
    def source(self) -> str | None:
        """Whose log it says it is."""
        return self._flag("--source")

    @property
    def simple(self) -> bool:
        """Whether it is our command and nothing else."""
        return self.ours and not (self.before or self.after or self.expands)

    def _flag(self, flag: str) -> str | None:
        for at, word in enumerate(self.words):
            if word == flag and at + 1 < len(self.words):
                return self.words[at + 1]
            if word.startswith(flag + "="):
                return word.partition("=")[2]
        return None

    def on(self, path: str) -> list[str]:
        """The command on one file, as the server would start it."""
        return [
            word.replace("%%", "\0").replace("%p", path).replace("\0", "%") for word in self.words
        ]


_SIGNS = frozenset("();<>|&\n")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_NOTHING = re.compile(
    r"\s*(/usr)?(/bin/)?(true|:|exit 0|cd \.|echo.*|/bin/date|rem.*|\(disabled\))\s*;?\s*"
)


def read_archive_command(text: str) -> ArchiveCommand:
    """Take an archive_command apart; where a shell alone understands it, it has no words."""
    expands = bool(re.search(r"[`$]", text))
    lexer = shlex.shlex(text.replace("\n", " ; "), posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        tokens = list(lexer)
    except ValueError:  # a quote that does not end
        return ArchiveCommand(text, expands=True)
    parts: list[list[str]] = [[]]
    signs: list[str] = []
    for token in tokens:
        if token and set(token) <= _SIGNS:
            signs.append(token)
            parts.append([])
        else:
            parts[-1].append(token)
    for at, part in enumerate(parts):
        given = {}
        words = list(part)
        while words and _ASSIGNMENT.match(words[0]):
            name, _, value = words.pop(0).partition("=")
            given[name] = value
        if _is_ours(words):
            return ArchiveCommand(
                text, tuple(words), given, tuple(signs[:at]), tuple(signs[at:]), expands
            )
    return ArchiveCommand(text, expands=expands)


def _is_ours(words: Sequence[str]) -> bool:
    if not words:
        return False
    name = words[0].rpartition("/")[2]
    rest = list(words[1:])
    if name.startswith("python") and rest[:2] == ["-m", "strongroom"]:
        name, rest = "strongroom", rest[2:]
    if name == "strongroom-wal":
        return "push" in rest
    return name == "strongroom" and "wal" in rest and "push" in rest[rest.index("wal") :]


@dataclass(frozen=True, slots=True)
class Attempt:
    """archive_command, tried with --dry-run as the server's account: its exit status and four lines; `-1`
    where it could not be started."""

    status: int
    what: str = ""
    do: str = ""
    code: str = ""
    account: str = ""


@dataclass(frozen=True, slots=True)
class Archiving:
    """What is known of a server's archiving. `ready` counts what waits, None where nobody can look.

    `systems` are those that the repository has of the source, `stored` whether what failed last is there
    by now, `conflict` who offered other content under its name. `tried` is an attempt, or `not_tried`
    says why there was none.
    """

    source: str
    mode: str
    command: ArchiveCommand
    library: str = ""
    standby: bool = False
    physical: Sequence[str] = ()
    archived: int = 0
    last_archived: str | None = None
    last_archived_time: datetime | None = None
    failed: int = 0
    last_failed: str | None = None
    last_failed_time: datetime | None = None
    ready: int | None = None
    system: str | None = None
    systems: Sequence[str] = ()
    stored: bool | None = None
    conflict: str | None = None
    tried: Attempt | None = None
    not_tried: str = ""
    timeout: int | None = None  # archive_timeout, seconds
    receives: bool = False

    @property
    def failing(self) -> bool:
        """Whether the last thing that the server tells of its archiver is a failure."""
        failed, archived = self.last_failed_time, self.last_archived_time
        return failed is not None and (archived is None or failed > archived)


def archive_command(item: str, facts: Archiving) -> Finding:
    """Whether archiving is on, and what it runs is ours and tells the truth."""
    item, command = f"{item} archive_command", facts.command
    line = f"archive_command = 'strongroom-wal push --source {facts.source} %p'"
    if facts.mode == "off":
        if facts.receives:
            return ok(item, "archive_mode is off; its log is received as it is written")
        return Finding(
            item,
            "warning",
            "archive_mode is off and nobody receives its log: only the moments of backups come back",
            f"Set archive_mode = on and {line}, and restart the server; or `strongroom wal receive"
            f" {facts.source} --create-slot`.",
        )
    if facts.library:
        return Finding(
            item,
            "warning",
            f"archive_library = {facts.library!r} archives in the place of archive_command: not here",
            f"Set archive_library = '' and {line}.",
        )
    if not command.text.strip():
        return Finding(
            item,
            "failed",
            "archive_mode is on and archive_command is empty: the server keeps all log until its disk is"
            " full",
            f"Set {line} and reload the server.",
        )
    if _NOTHING.fullmatch(command.text):
        return Finding(
            item,
            "failed",
            f"archive_command = {command.text!r} archives nothing and says that it did: the log is gone",
            f"Set {line}, reload the server, then make a new backup.",
        )
    if not command.ours:
        return Finding(
            item,
            "warning",
            f"archive_command = {command.text!r} is not `strongroom wal push`: the log goes elsewhere",
            f"Set {line}, or call it from there and end with its status.",
        )
    return _our_command(item, facts, line)


def _our_command(item: str, facts: Archiving, line: str) -> Finding:
    command, words = facts.command, facts.command.words
    hides = [sign for sign in command.after if set(sign) <= set("|;&") and sign != "&&"]
    if hides:
        return Finding(
            item,
            "failed",
            f"archive_command = {command.text!r}: what follows {hides[0]!r} hides the status, so that log"
            " which was not archived is removed",
            f"Set {line}, with nothing behind it, and reload the server.",
        )
    if not any("%p" in word.replace("%%", "") for word in words):
        named = (
            "%f is the name alone" if any("%f" in word for word in words) else "no file is named"
        )
        return Finding(
            item,
            "failed",
            f"archive_command = {command.text!r} has no %p: {named}",
            f"Set {line} and reload the server.",
        )
    if "--accept-system" in words:
        return Finding(
            item,
            "warning",
            "archive_command has --accept-system: the log of any other server that runs it is taken too",
            "Take it out; it is for one run by hand.",
        )
    if command.source is None and len(facts.physical) > 1:
        named = ", ".join(facts.physical)
        return Finding(
            item,
            "failed",
            f"archive_command names no --source, and {len(facts.physical)} are backed up physically: {named}",
            f"Set {line} and reload the server.",
        )
    if command.source not in (None, facts.source):
        return Finding(
            item,
            "failed",
            f"archive_command archives as source {command.source}, not {facts.source}",
            f"Set {line} and reload the server; or name the right server in the dsn.",
        )
    if command.program.rpartition("/")[2] == "strongroom" and words[1:2] != ("wal",):
        return Finding(
            item,
            "warning",
            "flags stand in front of `wal push`: the daemon is never asked, and each segment takes half a"
            " second and more",
            "Write the flags behind `push`.",
        )
    if facts.timeout == 0 and not facts.receives:
        return Finding(
            item,
            "warning",
            "archive_timeout is 0: on a quiet server the last commits may wait for hours to be archived",
            "Set archive_timeout = 60s and reload the server.",
        )
    return ok(item, f"archive_mode is {facts.mode}; {command.text}")


def archiver(item: str, facts: Archiving) -> Finding | None:
    """Whether the log arrives; and where it does not, why. None where nothing of ours archives."""
    if facts.mode == "off" or facts.library or not facts.command.ours:
        return None
    item = f"{item} archiver"
    if facts.standby and facts.mode != "always":
        return ok(item, "a standby: its primary archives")
    cause, do = _cause(facts)
    if facts.failing:
        assert facts.last_failed_time is not None
        text = (
            f"WAL was not archived: {facts.last_failed} at {facts.last_failed_time:%Y-%m-%d %H:%M:%S} UTC,"
            f" {count(facts.failed, 'failure')}"
        )
        if facts.ready:
            text += f", waiting in pg_wal: {count(facts.ready, 'file')}"
        if facts.tried is not None and facts.tried.status == 0:
            return Finding(
                item,
                "warning",
                f"{text}. The same command works now as {facts.tried.account}: either it is mended, or the"
                " server's surroundings (its PATH, its environment, a sandbox of systemd) are others",
                "Wait a minute, in which the server tries again; then look into the server's log.",
            )
        return Finding(item, "failed", f"{text}. The reason: {cause}", do)
    if facts.tried is not None and facts.tried.status != 0:
        text = f"the next segment would not be archived: {cause}"
        return Finding(item, "failed", text, do)
    if facts.ready is not None and facts.ready > READY_MANY:
        return Finding(
            item,
            "warning",
            f"{facts.ready:,} files wait in pg_wal to be archived, and none failed: the archiver is too slow,"
            " or ends without a word (a status above 125, or a signal, is not counted by the server)",
            "Look into the server's log; start `strongroom wal daemon` beside it, which is faster.",
        )
    if facts.last_archived is None:
        text = "nothing was archived yet"
        return ok(item, text + ("" if facts.tried is None else "; the command works"))
    assert facts.last_archived_time is not None
    past = f"; {count(facts.failed, 'failure')} before" if facts.failed else ""
    text = (
        f"{facts.last_archived} was archived {facts.last_archived_time:%Y-%m-%d %H:%M:%S} UTC{past}"
    )
    return ok(item, text + ("" if facts.tried is None else "; the command works"))


def _cause(facts: Archiving) -> tuple[str, str]:
    """Why a file was not archived, as far as that can be known; and what to do."""
    tried = facts.tried
    if tried is not None and tried.status != 0:
        return _of_attempt(facts, tried)
    if facts.conflict is not None:
        return (
            f"other content rests under the name {facts.last_failed} in the repository (seen from"
            f" {facts.conflict}): two servers write the same timeline",
            f"Find the second server and stop it; `strongroom wal status {facts.source}`.",
        )
    if facts.system is not None and facts.systems and facts.system not in facts.systems:
        return (
            f"the server is system {facts.system}; the repository has the log of {facts.systems[-1]} as"
            f" {facts.source}: it was made anew or upgraded, or --source is the wrong one",
            f"If it was made anew or upgraded: `strongroom backup {facts.source} --accept-system`, once.",
        )
    if facts.stored:
        return (
            f"not known; {facts.last_failed} is in the repository by now",
            "Wait a minute, in which the server tries again.",
        )
    return (
        f"it cannot be known from here: {facts.not_tried or 'the command was not tried'}",
        "Run `strongroom doctor` on the server's host as its account (`sudo -u postgres strongroom"
        f" doctor {facts.source}`), or look for `archive command failed` in the server's log.",
    )


def _of_attempt(facts: Archiving, tried: Attempt) -> tuple[str, str]:
    program = facts.command.program
    if tried.status in (-1, 126, 127):
        missing = tried.status == 127 or "No such file" in tried.what
        found = (
            f"there is no {program}" if missing else f"{program} cannot be started: {tried.what}"
        )
        on_path = "" if "/" in program else " on the server's PATH"
        return (
            f"{found}{on_path} for {tried.account}",
            "Install strongroom where that account may start it, and write its whole path into"
            " archive_command.",
        )
    said = tried.what or "it said nothing"
    return f"{said} (status {tried.status}, as {tried.account})", tried.do or "Mend what it says."
