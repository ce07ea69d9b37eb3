"""Which tables get a dump stream of their own, which go together, and in which order.

PURE. Rule of this file: with N workers nothing runs alone at the end unless a single table is
larger than everything else together; small databases and small tables do not pay for a process
each; and the same tables give the same streams, so that the next dump finds its bytes again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MIB = 1 << 20
SMALLEST_ALONE = 16 * MIB
SMALLEST_GROUPED = 1 * MIB
# Patterns go on pg_dump's command line: this many of 63-byte names stay below half its limit.
MOST_NAMED = 3000
MOST_IN_GROUP = 400
PIECES_PER_JOB = 4

StreamKind = Literal["schema", "main", "table", "group"]


@dataclass(frozen=True, slots=True)
class Table:
    """A table with rows of its own. `size` is heap and TOAST in bytes; `apart` says that it may
    have a stream of its own (it can be named to pg_dump, and no extension decides on its rows)."""

    schema: str
    name: str
    size: int
    unlogged: bool = False
    extension: bool = False
    apart: bool = True


@dataclass(frozen=True, slots=True)
class Stream:
    """One pg_dump process: what it dumps, and how much that is about, in bytes."""

    kind: StreamKind
    tables: tuple[Table, ...]
    weight: int


def plan_streams(tables: Sequence[Table], *, jobs: int, large_objects: int = 0) -> list[Stream]:
    """Divide the tables; the definitions first, then largest first.

    The "main" stream is told what to leave out, not what to take: whatever this plan does not know
    (large objects, sequence values, configuration tables of extensions) is in it.
    """
    total = sum(table.size for table in tables) + large_objects
    unit = max(SMALLEST_ALONE, total // (PIECES_PER_JOB * jobs))
    known = sorted(
        (t for t in tables if t.apart and t.size >= SMALLEST_GROUPED),
        key=lambda t: (-t.size, t.schema, t.name),
    )[:MOST_NAMED]
    alone = [t for t in known if t.size >= unit] if jobs > 1 else []
    rest = [t for t in known if t not in set(alone)]
    left = total - sum(t.size for t in alone)
    groups = _groups(rest, unit) if jobs > 1 and left > unit else []
    streams = [Stream("table", (t,), t.size) for t in alone]
    streams += [
        Stream("group" if len(group) > 1 else "table", group, sum(t.size for t in group))
        for group in groups
    ]
    named = {t for stream in streams for t in stream.tables}
    main = tuple(t for t in tables if t not in named)
    streams.append(Stream("main", main, sum(t.size for t in main) + large_objects))
    streams.sort(key=lambda stream: -stream.weight)
    return [Stream("schema", (), 0), *streams]


def _groups(tables: Sequence[Table], unit: int) -> list[tuple[Table, ...]]:
    """Fill groups of about `unit` bytes by name, so that neighbours stay together."""
    groups: list[tuple[Table, ...]] = []
    current: list[Table] = []
    size = 0
    for table in sorted(tables, key=lambda t: (t.schema, t.name)):
        if current and (size + table.size > unit or len(current) == MOST_IN_GROUP):
            groups.append(tuple(current))
            current, size = [], 0
        current.append(table)
        size += table.size
    return [*groups, tuple(current)] if current else groups
