"""What a restored cluster is told: recovery.signal or standby.signal, and postgresql.auto.conf. PURE.

Whatever an earlier recovery or replication left in postgresql.auto.conf is commented out, and what
postgresql.conf may say of it is overridden: a second target would stop the server, an old
primary_conninfo would lead it to a primary that it must not follow, and a copy that archived would
write into the archive of the original (traps 48 to 51). PostgreSQL 13 to 18.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from strongroom.format.wal import lsn_text

AUTO_CONF = b"postgresql.auto.conf"
RECOVERY_SIGNAL, STANDBY_SIGNAL = b"recovery.signal", b"standby.signal"

Action = Literal["promote", "pause", "shutdown"]

_TARGETS = ("", "_lsn", "_name", "_time", "_xid")
_STALE = frozenset(
    (
        "archive_cleanup_command",
        "archive_command",
        "archive_library",
        "archive_mode",
        "primary_conninfo",
        "primary_slot_name",
        "promote_trigger_file",
        "recovery_end_command",
        "recovery_min_apply_delay",
        "restore_command",
        "synchronized_standby_slots",
        "trigger_file",
    )
)
_LINE = re.compile(rb"\s*([A-Za-z_][A-Za-z0-9_]*)")
_PLACES = frozenset(
    (
        "data_directory",
        "hba_file",
        "ident_file",
        "external_pid_file",
        "include",
        "include_dir",
        "include_if_exists",
    )
)


_INCLUDES = frozenset(("include", "include_dir", "include_if_exists"))
_DEEPEST = 10  # as in PostgreSQL
_VALUE = re.compile(rb"\s*[A-Za-z_]+\s*=?\s*([^\s'#]+|'((?:[^']|'')*)')")


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a restored cluster recovers.

    At most one of `time`, `lsn`, `xid`, `name`, `immediate`; with none of them to the end of the
    log. `timeline` None is the backup's own. A `standby` recovers for ever, on the newest timeline, and
    streams from the `primary` (a conninfo) if it has one.
    `restore_command` None leaves it without one: only what is in pg_wal.
    """

    restore_command: str | None = None
    time: datetime | None = None
    lsn: int | None = None
    xid: int | None = None
    name: str | None = None
    immediate: bool = False
    timeline: int | None = None
    exclusive: bool = False
    action: Action = "promote"
    standby: bool = False
    primary: str = ""

    @property
    def signal(self) -> bytes:
        """The file whose presence makes the server recover."""
        return STANDBY_SIGNAL if self.standby else RECOVERY_SIGNAL

    def settings(self) -> list[tuple[str, str]]:
        """Names and values, in the order in which the server must meet them: what unsets first."""
        chosen: dict[str, str] = {}
        if self.time is not None:
            chosen["_time"] = self.time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")
        if self.lsn is not None:
            chosen["_lsn"] = lsn_text(self.lsn)
        if self.xid is not None:
            chosen["_xid"] = str(self.xid)
        if self.name is not None:
            chosen["_name"] = self.name
        if self.immediate:
            chosen[""] = "immediate"
        if len(chosen) > 1 or (chosen and self.standby):
            raise ValueError("more than one target of recovery")
        timeline = "latest" if self.standby else "current"
        if self.timeline is not None and not self.immediate:
            timeline = str(self.timeline)
        rows = [(f"recovery_target{each}", "") for each in _TARGETS if each not in chosen]
        rows += [(f"recovery_target{each}", value) for each, value in chosen.items()]
        rows += [
            ("recovery_target_timeline", timeline),
            ("recovery_target_inclusive", "off" if self.exclusive else "on"),
            ("recovery_target_action", self.action),
            ("restore_command", self.restore_command or ""),
            ("archive_cleanup_command", ""),
            ("recovery_end_command", ""),
            ("recovery_min_apply_delay", "0"),
            ("primary_conninfo", self.primary if self.standby else ""),
            ("primary_slot_name", ""),
            ("archive_mode", "off"),
        ]
        if self.standby or self.action == "pause":  # to be looked at, whatever the original was
            rows.append(("hot_standby", "on"))
        return rows


def auto_conf(old: bytes, recovery: Recovery, note: str) -> bytes:
    """postgresql.auto.conf of a restored cluster; `note` says in a comment whose it is."""
    lines = []
    for line in old.splitlines():
        match = _LINE.match(line)
        name = match[1].decode("ascii").lower() if match else ""
        stale = name in _STALE or name.startswith("recovery_target")
        lines.append(b"# before the restore: " + line if stale else line)
    lines.append(f"# {note}".encode())
    lines += [f"{name} = {quoted(value)}".encode() for name, value in recovery.settings()]
    return b"\n".join(lines) + b"\n"


def own_conf(path: bytes, files: Mapping[bytes, Callable[[], bytes]], depth: int = 0) -> bytes:
    """A postgresql.conf that lay outside the data directory, as one inside it.

    `files` are what is kept of the configuration, by absolute path: what it includes is put where it
    is included. Every other place that it names is the original's.
    """
    lines = []
    for line in files[path]().splitlines():
        match = _LINE.match(line)
        name = match[1].decode("ascii").lower() if match else ""
        lines.append(b"# of the original: " + line if name in _PLACES else line)
        if name in _INCLUDES and depth < _DEEPEST:
            for one in _included(line, name, path, files):
                lines.append(b"# from " + one.replace(b"\n", b"?"))
                lines += own_conf(one, files, depth + 1).splitlines()
    return b"\n".join(lines) + b"\n"


def _included(line: bytes, name: str, path: bytes, files: Mapping[bytes, object]) -> list[bytes]:
    match = _VALUE.match(line)
    if match is None:
        return []
    value = match[2].replace(b"''", b"'") if match[2] is not None else match[1]
    place = os.path.normpath(os.path.join(os.path.dirname(path), value))
    if name != "include_dir":
        return [place] if place in files else []
    return sorted(
        one
        for one in files
        if os.path.dirname(one) == place
        and one.endswith(b".conf")
        and not os.path.basename(one).startswith(b".")
    )


def quoted(value: str) -> str:
    """A value as a file of settings holds it, on one line."""
    plain = value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n")
    return f"'{plain}'"


def command(words: Sequence[str]) -> str:
    """A command line for restore_command; the words "%f" and "%p" are PostgreSQL's to fill in.

    Any other % is doubled: PostgreSQL would take it for a place to fill in too.
    """
    return " ".join(
        word if word in {"%f", "%p"} else shlex.quote(word).replace("%", "%%") for word in words
    )


__all__ = [
    "AUTO_CONF",
    "RECOVERY_SIGNAL",
    "STANDBY_SIGNAL",
    "Action",
    "Recovery",
    "auto_conf",
    "command",
    "own_conf",
    "quoted",
]
