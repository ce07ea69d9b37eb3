"""Where in a backup: SOURCE[@T][:PATH], on the command line of ls, get and diff.

    memory-vault                              the newest backup, everything
    memory-vault:audits/2026.json             one path in it
    memory-vault@latest:audits                latest, oldest or the first letters of an id
    memory-vault@02:13:audits                 a time, as `rules.times` reads it
    memory-vault@2026-11-23T02:13:05+01:00:a  its own colons belong to it
    memory-vault@20 minutes ago:a

The longest time wins: of `@02:13:05:a` the path is `a`. PATH is raw bytes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from strongroom.errors import UsageError

_TIME = re.compile(
    r"(?:\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?:[Zz]|[+-]\d{2}(?::?\d{2})?)?"
    r"|\d{1,2}:\d{2}(?::\d{2})?)(?=:|$)",
    re.ASCII,
)
_SOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """A source, which backup of it (an id, a word or a time; "" for the newest), and a path."""

    source: str
    point: str
    path: bytes


def parse_place(text: str) -> Place:
    """Read SOURCE[@T][:PATH]; UsageError when it is not of that form."""
    found = _SOURCE.match(text)
    rest = text[found.end() :] if found else ""
    if found is None or rest[:1] not in ("", "@", ":"):
        raise UsageError(
            f'"{text}" names no place in a backup.',
            do="Write SOURCE[@T]:PATH, like `memory-vault@02:13:audits/2026.json`.",
        )
    point = ""
    if rest.startswith("@"):
        time = _TIME.match(rest, 1)
        end = time.end() if time else (rest + ":").index(":", 1)
        point, rest = rest[1:end], rest[end:]
        if not point:
            raise UsageError(
                f'"{text}" has no time after its @.',
                do="Write SOURCE@T:PATH, or SOURCE:PATH for the newest backup.",
            )
    return Place(found[0], point, clean_path(rest[1:]))


def clean_path(text: str) -> bytes:
    """A path in a backup as its entries have it: no slash in front or at the end, no "."."""
    parts = os.fsencode(text).split(b"/")
    if b".." in parts:
        raise UsageError(f'"{text}" leads out of the backup.', do="Write the path without `..`.")
    return b"/".join(part for part in parts if part not in (b"", b"."))
