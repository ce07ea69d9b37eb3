"""Several custom-format archives of one moment made into one.

PURE. Source: WriteToc in PostgreSQL's pg_backup_archiver.c and _PrintTocData in
pg_backup_custom.c: after the table of contents come blocks of data, each for the entry whose number
it begins with. Entries of the data archives get new numbers behind those of the definitions; what
they depended on inside their archive goes with them, and the rows of a table are tied to the table.
Positions of data are left "not set", as in every archive that pg_dump wrote to a pipe: pg_restore
finds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from strongroom.postgres.logical import archive

_ALWAYS = frozenset(("ENCODING", "STDSTRINGS", "SEARCHPATH"))
_TABLE_DATA, _LARGE_OBJECTS = 1, 3
_POST_DATA = 4


class Joined:
    """The archive of `schema` (whole) and of data archives whose heads are `heads`."""

    def __init__(self, schema: bytes, heads: Sequence[tuple[bytes, archive.Contents]]) -> None:
        contents = archive.read_contents(schema)
        self._int = contents.int_size
        for _, other in heads:
            if (other.version, other.int_size) != (contents.version, contents.int_size):
                raise ValueError("archives of different versions cannot be one")
        top = max((entry.id for entry in contents.entries), default=0)
        known = {(e.namespace, e.tag): e.id for e in contents.entries if e.is_relation}
        self._numbers: list[dict[int, int]] = []
        data: list[bytes] = []
        for head, other in heads:
            kept = [entry for entry in other.entries if entry.kind not in _ALWAYS]
            numbers = {entry.id: top + place for place, entry in enumerate(kept, 1)}
            top += len(kept)
            self._numbers.append(numbers)
            for entry in kept:
                needs = [numbers[i] for i in entry.dependencies if i in numbers]
                owner = known.get((entry.namespace, entry.tag))
                if entry.kind in ("TABLE DATA", "SEQUENCE SET") and owner is not None:
                    needs.append(owner)
                data.append(self._entry(head, entry, numbers[entry.id], needs))
        # What has no section (comments, rights) belongs to the one that it stands in.
        entries = contents.entries
        behind = (n for n, entry in enumerate(entries) if entry.section == _POST_DATA)
        middle = next(behind, len(entries))
        records = [schema[e.begins : e.ends] for e in entries[:middle]]
        records += data
        records += [schema[e.begins : e.ends] for e in entries[middle:]]
        if not entries:
            raise ValueError("it has no table of contents")
        count_at = entries[0].begins - 1 - self._int
        self.head = b"".join((schema[:count_at], self._number(len(records)), *records))

    def _number(self, value: int) -> bytes:
        return b"\0" + value.to_bytes(self._int, "little")

    def _text(self, value: bytes) -> bytes:
        return self._number(len(value)) + value

    def _entry(
        self, head: bytes, entry: archive.TocEntry, number: int, needs: Sequence[int]
    ) -> bytes:
        rest = b"".join(self._text(b"%d" % need) for need in needs)
        return b"".join(
            (
                self._number(number),
                head[entry.begins + 1 + self._int : entry.needs_at],
                rest,
                head[entry.needs_end : entry.ends],
            )
        )

    def data(
        self, number: int, pieces: Iterable[memoryview | bytes]
    ) -> Iterator[memoryview | bytes]:
        """The blocks of data archive `number`, from its whole stream, under their new numbers."""
        walk = _Walk(self._int, self._numbers[number])
        for piece in archive.joined(_after_head(pieces)):
            yield from walk.feed(piece)
        if not walk.done:
            raise ValueError("it is cut short")


def _after_head(pieces: Iterable[memoryview | bytes]) -> Iterator[memoryview | bytes]:
    head, known = b"", False
    for piece in pieces:
        if known:
            yield piece
            continue
        head += bytes(piece)
        try:
            size = archive.read_contents(head).size
        except archive.CutShortError:
            continue
        known = True
        yield head[size:]
    if not known:
        raise archive.CutShortError("it ends before its table of contents")


class _Walk:
    """Goes along the blocks of one archive and changes the number that each begins with."""

    def __init__(self, int_size: int, numbers: dict[int, int]) -> None:
        self._int, self._numbers = int_size, numbers
        self._carry = b""
        self._rest = 0  # bytes of a block that are still to come
        self._kind = 0
        self._want = "entry"

    @property
    def done(self) -> bool:
        """Whether the archive may end here."""
        return not self._carry and not self._rest and self._want == "entry"

    def feed(self, piece: memoryview | bytes) -> Iterator[memoryview | bytes]:
        """Take a piece, yield it as it is to be written."""
        view = memoryview(self._carry + bytes(piece)) if self._carry else memoryview(piece)
        self._carry = b""
        size = 1 + self._int
        while view:
            if self._rest:
                part = view[: self._rest]
                self._rest -= len(part)
                view = view[len(part) :]
                yield part
                continue
            head = size + 1 if self._want == "entry" else size
            if len(view) < head:
                self._carry = bytes(view)
                return
            part = view[:head]
            view = view[head:]
            if self._want == "entry":
                self._kind = part[0]
                if self._kind not in (_TABLE_DATA, _LARGE_OBJECTS) or part[1]:
                    raise ValueError("a block of an unknown kind")
                number = self._numbers.get(int.from_bytes(part[2:], "little"))
                if number is None:
                    raise ValueError("data of an entry that is not in its table of contents")
                self._want = "block" if self._kind == _TABLE_DATA else "object"
                yield bytes(part[:2]) + number.to_bytes(self._int, "little")
                continue
            value = int.from_bytes(part[1:], "little")
            if part[0]:
                raise ValueError("a negative length")
            if self._want == "object":
                self._want = "block" if value else "entry"
            elif value:
                self._rest = value
            else:
                self._want = "entry" if self._kind == _TABLE_DATA else "object"
            yield part
