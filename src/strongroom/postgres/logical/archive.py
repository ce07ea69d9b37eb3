"""The table of contents at the head of a pg_dump custom-format archive.

PURE. Source: ReadHead and ReadToc in PostgreSQL's src/bin/pg_dump/pg_backup_archiver.c, format
versions 1.12 (PostgreSQL 9.0) to 1.16 (17, 18). Needed to restore a part: the entries that a table
needs and those that need it are known from the archive's own dependencies, and `pg_restore -l`
prints names in a form that hostile ones make ambiguous.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from strongroom import kernel

MAGIC = b"PGDMP"
OLDEST, NEWEST = (1, 12), (1, 16)
_CUSTOM = 1
_RELATIONS = frozenset(
    ("TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE", "SEQUENCE", "PARTITIONED TABLE")
)
_SEQUENCE = "SEQUENCE"
_DATA = 1  # BLK_DATA: what follows are the rows of one table
_DATA_HEAD = 6
_BLOCK_SIZE = 128 * 1024
_COPY_END = b" FROM stdin;\n"


class CutShortError(ValueError):
    """The bytes end before the table of contents does: more are needed."""


@dataclass(frozen=True, slots=True)
class TocEntry:
    """One object in the archive. `drop` is the SQL that takes it away again, "" if none does;
    `copy_at` is where the length of its COPY statement stands in the archive; `begins`, `needs_at`,
    `needs_end` and `ends` are where the entry, and in it its dependencies, begin and end."""

    id: int
    tag: str
    kind: str
    namespace: str
    section: int
    dependencies: tuple[int, ...]
    drop: str = ""
    copy_at: int = 0
    begins: int = 0
    needs_at: int = 0
    needs_end: int = 0
    ends: int = 0

    @property
    def is_relation(self) -> bool:
        """True for tables, views and sequences: what a subset names, takes or leaves."""
        return self.kind in _RELATIONS


@dataclass(frozen=True, slots=True)
class Contents:
    """What an archive says of itself. `entries` are in the archive's order; `int_size` is the
    bytes of a number in it, without the byte for its sign; the data begins at `size`."""

    version: tuple[int, int]
    tool: str
    entries: tuple[TocEntry, ...]
    int_size: int = 4
    size: int = 0


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.int_size = data, 0, 4

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise CutShortError("archive head is cut short")
        self.at += 1
        return self.data[self.at - 1]

    def take(self, length: int) -> bytes:
        end = self.at + length
        if end > len(self.data):
            raise CutShortError("archive head is cut short")
        self.at = end
        return self.data[end - length : end]

    def int(self) -> int:
        sign = self.byte()
        value = int.from_bytes(self.take(self.int_size), "little")
        return -value if sign else value

    def text(self) -> str | None:
        length = self.int()
        return None if length < 0 else self.take(length).decode("utf-8", "surrogateescape")


def read_contents(data: bytes) -> Contents:
    """Read head and table of contents; CutShortError when `data` holds only a part of them.

    Raises ValueError when it is not a custom-format archive of a known version.
    """
    reader = _Reader(data)
    if reader.take(5) != MAGIC:
        raise ValueError("not a pg_dump archive")
    version = (reader.byte(), reader.byte())
    reader.byte()  # revision
    if not OLDEST <= version <= NEWEST:
        raise ValueError(f"pg_dump archive version {version[0]}.{version[1]} is not known")
    reader.int_size = reader.byte()
    offset_size = reader.byte()
    if reader.byte() != _CUSTOM:
        raise ValueError("not a custom-format archive")
    if version >= (1, 15):
        reader.byte()  # compression algorithm
    else:
        reader.int()  # compression level
    for _ in range(7):  # creation time
        reader.int()
    reader.text()  # database
    reader.text()  # server version
    tool = reader.text() or ""
    count = reader.int()
    entries = tuple(_read_entry(reader, version, offset_size) for _ in range(count))
    return Contents(version, tool, entries, reader.int_size, reader.at)


def _read_entry(reader: _Reader, version: tuple[int, int], offset_size: int) -> TocEntry:
    begins = reader.at
    number = reader.int()
    reader.int()  # has data
    reader.text(), reader.text()  # catalogue and object id
    tag, kind = reader.text() or "", reader.text() or ""
    section = reader.int()
    reader.text()  # definition
    drop = reader.text() or ""
    copy_at = reader.at
    reader.text()  # copy statement
    namespace = reader.text() or ""
    reader.text()  # tablespace
    if version >= (1, 14):
        reader.text()  # table access method
    if version >= (1, 16):
        reader.int()  # relation kind
    reader.text()  # owner
    reader.text()  # with oids
    dependencies = []
    needs_at = needs_end = reader.at
    while (dependency := reader.text()) is not None:
        dependencies.append(int(dependency))
        needs_end = reader.at
    reader.take(1 + offset_size)  # offset of the data, never set in a pipe
    return TocEntry(
        number,
        tag,
        kind,
        namespace,
        section,
        tuple(dependencies),
        drop,
        copy_at,
        begins,
        needs_at,
        needs_end,
        reader.at,
    )


def freezing(head: bytes, contents: Contents, tables: Collection[tuple[str, str]]) -> bytes:
    """The same head, with rows of these tables copied in as frozen ones.

    Frozen rows need no second writing of their pages when somebody looks at them first, nor the
    log of that. PostgreSQL takes them into a table that is made or emptied in the same
    transaction only, so the statement empties it first: two statements sent as one query are one
    transaction. The tables must be new and nobody else's.
    """
    parts: list[bytes] = []
    done = 0
    for entry in contents.entries:
        if entry.kind != "TABLE DATA" or (entry.namespace, entry.tag) not in tables:
            continue
        begin = entry.copy_at + 1 + contents.int_size
        length = int.from_bytes(head[entry.copy_at + 1 : begin], "little")
        copy = head[begin : begin + length]
        if head[entry.copy_at] or not copy.endswith(_COPY_END):
            continue
        name = b".".join(_quoted(part) for part in (entry.namespace, entry.tag))
        copy = b"TRUNCATE ONLY %b; %b WITH (FREEZE);\n" % (name, copy.removesuffix(b";\n"))
        size = len(copy).to_bytes(contents.int_size, "little")
        parts += (head[done : entry.copy_at], b"\0", size, copy)
        done = begin + length
    return b"".join((*parts, head[done:]))


def joined(pieces: Iterable[memoryview | bytes]) -> Iterator[memoryview | bytes]:
    """The data of an archive of tables, with rows in large blocks.

    pg_dump makes a block of every row, and so pg_restore, its connection and the server each take
    a step for every row. What is not the rows of a table, and all after it, stays as it is.
    """
    carry, rest, rows, known = b"", 0, False, True
    for piece in pieces:
        view = memoryview(b"".join((carry, piece)) if carry else piece)
        carry = b""
        while view:
            if rest or not known:
                part = view[: rest if known else None]
                rest -= len(part) if known else 0
            elif rows:
                block, used, rest, ended = kernel.join_blocks(view, _BLOCK_SIZE)
                if not used:
                    carry = bytes(view)
                    break
                yield block
                view, rows = view[used:], not ended
                continue
            elif len(view) < _DATA_HEAD:
                carry = bytes(view)
                break
            else:
                known = rows = view[0] == _DATA
                part = view[: _DATA_HEAD if known else None]
            yield part
            view = view[len(part) :]
    if carry:
        yield carry


def _quoted(name: str) -> bytes:
    return b'"%b"' % name.replace('"', '""').encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Selection:
    """A part of an archive: the entries to restore, and the (schema, name) relations in it."""

    ids: tuple[int, ...]
    relations: frozenset[tuple[str, str]]


def select(contents: Contents, wanted: Iterable[tuple[str, str]]) -> Selection:
    """Choose what defines the wanted (schema, name) relations, from an archive of definitions.

    Kept are the wanted relations, their partitions, the relations and sequences they need,
    everything attached to them alone (indexes, constraints, triggers, policies, comments,
    privileges), and every object that is no relation and needs none that is left out (schemas,
    types, functions, extensions).
    """
    chosen = set(wanted)
    by_id = {entry.id: entry for entry in contents.entries}
    relations = {e.id: e for e in contents.entries if e.kind in _RELATIONS}
    keep = {e.id for e in relations.values() if (e.namespace, e.tag) in chosen}
    before = -1
    while before != len(keep):
        before = len(keep)
        _add_partitions(keep, contents, relations)
        _add_needed(keep, by_id)
        _add_owned_sequences(keep, contents, relations)
    out = set(relations) - keep
    _spread(out, contents)
    return Selection(
        tuple(entry.id for entry in contents.entries if entry.id not in out),
        frozenset((e.namespace, e.tag) for e in relations.values() if e.id in keep),
    )


def _add_partitions(keep: set[int], contents: Contents, relations: dict[int, TocEntry]) -> None:
    """Add the partitions of kept tables; a kept partition does not bring its parent."""
    for entry in contents.entries:
        if entry.kind == "TABLE ATTACH":
            ends = [relations[i] for i in entry.dependencies if i in relations]
            child = {e.id for e in ends if (e.namespace, e.tag) == (entry.namespace, entry.tag)}
            if any(e.id in keep and e.id not in child for e in ends):
                keep |= child


def _add_needed(keep: set[int], by_id: dict[int, TocEntry]) -> None:
    """Add what kept relations depend on: parents, sequences of defaults, views under views."""
    todo = list(keep)
    while todo:
        for dependency in by_id[todo.pop()].dependencies:
            if dependency in by_id and dependency not in keep:
                keep.add(dependency)
                todo.append(dependency)


def _add_owned_sequences(
    keep: set[int], contents: Contents, relations: dict[int, TocEntry]
) -> None:
    """Add the sequences that a kept table owns or takes defaults from."""
    for entry in contents.entries:
        ends = [relations[i] for i in entry.dependencies if i in relations]
        if entry.kind in ("SEQUENCE OWNED BY", "DEFAULT"):
            if any(e.id in keep and e.kind != _SEQUENCE for e in ends):
                keep.update(e.id for e in ends if e.kind == _SEQUENCE)
        elif entry.kind == _SEQUENCE and any(e.id in keep for e in ends):
            keep.add(entry.id)  # an identity column's sequence depends on its table


def _spread(out: set[int], contents: Contents) -> None:
    """Add everything that depends on what is left out, directly or not."""
    grew = True
    while grew:
        grew = False
        for entry in contents.entries:
            if entry.id not in out and any(i in out for i in entry.dependencies):
                out.add(entry.id)
                grew = True


def data_for(contents: Contents, wanted: Iterable[tuple[str, str]]) -> list[int]:
    """Choose the data of the wanted relations and sequences: ids in archive order."""
    chosen = set(wanted)
    return [
        entry.id
        for entry in contents.entries
        if entry.kind in ("TABLE DATA", "SEQUENCE SET") and (entry.namespace, entry.tag) in chosen
    ]
