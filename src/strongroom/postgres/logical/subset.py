"""A part of a database, as people name it. PURE.

Rule of this file: names are exact, never patterns: a restore of more than was meant is a surprise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from strongroom.errors import Refused


@dataclass(frozen=True, slots=True)
class Subset:
    """The part to restore: whole schemas, and tables as (schema, name). Empty means everything."""

    schemas: tuple[str, ...] = ()
    tables: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.schemas or self.tables)

    @classmethod
    def parse(cls, schemas: Sequence[str] = (), tables: Sequence[str] = ()) -> Subset:
        """Make a subset from words as typed: `table`, `schema.table`, `"odd.schema"."odd table"`.

        A table without a schema is in `public`.
        """
        return cls(tuple(schemas), tuple(_parse_table(text) for text in tables))


_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


def _parse_table(text: str) -> tuple[str, str]:
    parts, at = [], 0
    while match := _PART.match(text, at):
        parts.append(match[2] or match[1].replace('""', '"'))
        at = match.end() + 1
        if match.end() == len(text):
            return _pair(["public", *parts] if len(parts) == 1 else parts, text)
        if text[match.end()] != ".":
            break
    raise _no_table(text)


def _pair(parts: Sequence[str], text: str) -> tuple[str, str]:
    if len(parts) != 2:
        raise _no_table(text)
    return parts[0], parts[1]


def _no_table(text: str) -> Refused:
    return Refused(
        f"{text!r} is no table.", do='Write table, schema.table or "odd schema"."odd table".'
    )
