"""backup_label and tablespace_map: what a server must be told to recover from a copy. PURE.

Both are kept byte for byte as pg_backup_stop gave them; what is parsed here is only read. Without
backup_label recovery would begin at the checkpoint that pg_control happens to name, and the copy
would be corrupt in silence. Source: PostgreSQL xlogbackup.c, xlogrecovery.c (read_backup_label,
read_tablespace_map).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from strongroom.format.wal import parse_lsn
from strongroom.postgres.physical.facts import Tablespace

_START = re.compile(rb"START WAL LOCATION: ([0-9A-Fa-f]+/[0-9A-Fa-f]+) \(file ([0-9A-F]{24})\)")
_CHECKPOINT = re.compile(rb"CHECKPOINT LOCATION: ([0-9A-Fa-f]+/[0-9A-Fa-f]+)")
_TIMELINE = re.compile(rb"START TIMELINE: ([0-9]{1,10})")
_INCREMENTAL = b"INCREMENTAL FROM "


@dataclass(frozen=True, slots=True)
class Label:
    """What backup_label says. `start` is where recovery begins: the redo position."""

    start: int
    checkpoint: int
    timeline: int
    from_standby: bool
    method: str
    start_time: str  # in the server's log_timezone, its zone abbreviated: for eyes only
    label: str
    incremental: bool = False  # of pg_basebackup --incremental: no whole copy

    @classmethod
    def parse(cls, text: bytes) -> Label:
        """Read backup_label; ValueError when it is not one."""
        lines = text.split(b"\n")
        start, checkpoint = _line(lines, _START), _line(lines, _CHECKPOINT)
        # In the name of the segment too, which every version writes.
        named = int(start[2][:8], 16)
        timeline = int(_line(lines, _TIMELINE)[1])
        if timeline != named:
            raise ValueError("backup_label names two timelines")
        return cls(
            start=parse_lsn(start[1].decode("ascii")),
            checkpoint=parse_lsn(checkpoint[1].decode("ascii")),
            timeline=timeline,
            from_standby=_value(lines, b"BACKUP FROM: ") == "standby",
            method=_value(lines, b"BACKUP METHOD: "),
            start_time=_value(lines, b"START TIME: "),
            label=_value(lines, b"LABEL: "),
            incremental=any(line.startswith(_INCREMENTAL) for line in lines),
        )


def _line(lines: list[bytes], pattern: re.Pattern[bytes]) -> re.Match[bytes]:
    for line in lines:
        if match := pattern.fullmatch(line.rstrip(b"\r")):
            return match
    raise ValueError(f"backup_label has no line {pattern.pattern.split(b':')[0].decode()!r}")


def _value(lines: list[bytes], name: bytes) -> str:
    for line in lines:
        if line.startswith(name):
            return line[len(name) :].decode("utf-8", "backslashreplace").rstrip("\r")
    return ""


def parse_map(text: bytes) -> tuple[Tablespace, ...]:
    """Read tablespace_map; ValueError when it is not one.

    A line is an oid, a space and a location, in which a newline, a carriage return or a backslash
    has a backslash in front.
    """
    spaces: list[Tablespace] = []
    at = 0
    while at < len(text):
        raw = bytearray()
        while at < len(text) and text[at] not in b"\r\n":
            if text[at] == 0x5C:
                at += 1
            raw += text[at : at + 1]
            at += 1
        at += 1
        if not raw:
            continue
        oid, space, location = bytes(raw).partition(b" ")
        if not oid.isdigit() or not space or not location:
            raise ValueError(f"not a line of tablespace_map: {bytes(raw)!r}")
        spaces.append(Tablespace(oid.decode("ascii"), location))
    return tuple(spaces)


__all__ = ["Label", "parse_map"]
