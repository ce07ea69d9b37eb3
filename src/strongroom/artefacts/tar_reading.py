"""Read a tar archive that anybody may have written, as entries and their content.

ustar, pax and GNU's long names are read. Everything else is refused with the archive: a name
that is absolute, has `..` in it or a zero byte, a second entry of one name, a hard link to what
is no earlier file, GNU's sparse and multi-volume forms, a header whose sum is wrong, an end that
is missing. `Limits` bound what is unpacked. Symlinks are entries like others: they may point
anywhere and nothing is ever written through them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from strongroom.errors import Damaged, Refused
from strongroom.format.tree import MAX_PATH, Entry, Kind

BLOCK = 512
_PIECE = 1024 * 1024
_MAX_EXTENDED = 1024 * 1024  # a pax header or a long name
_FILES = (b"0", b"\0", b"7")
_KINDS = {
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
_MEANS = "Nothing of the archive was taken as true."
_DO = "Look at it with `tar tvzf` on a machine that may be lost; do not extract it as root."

Read = Callable[[int], bytes]
Item = tuple[Entry, Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may unpack to: bytes of all it is, and entries."""

    size: int
    entries: int = 50_000_000


def hostile(what: str) -> Refused:
    """The refusal of an archive."""
    return Refused(f"The archive is refused: {what}.", means=_MEANS, do=_DO)


def read_tar(read: Read, limits: Limits) -> Iterator[Item]:
    """Yield each entry with its content, to be taken before the next; Damaged, Refused.

    A second entry of one name is not seen here: whoever keeps the names refuses it.
    """
    stream = _Stream(read, limits.size)
    count = 0
    common: dict[bytes, bytes] = {}
    while True:
        records, block, long_name, long_link = _next(stream, common)
        if block is None:
            stream.rest()
            return
        count += 1
        if count > limits.entries:
            raise hostile(f"it has more than {limits.entries:,} entries")
        entry = _entry(block, records, long_name, long_link)
        size = entry.size
        pieces = stream.content(size)
        yield entry, pieces
        for _ in pieces:
            pass
        stream.skip(-size % BLOCK)


def _next(
    stream: _Stream, common: dict[bytes, bytes]
) -> tuple[dict[bytes, bytes], bytes | None, bytes | None, bytes | None]:
    """The next true header with what stood in front of it; None at the end."""
    own: dict[bytes, bytes] = {}
    name = link = None
    while True:
        block = stream.exactly(BLOCK)
        if block == bytes(BLOCK):
            if own or name or link:
                raise Damaged("The archive ends after the header of an entry.")
            return {}, None, None, None
        if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
            raise Damaged("The archive is damaged: a header's sum is wrong.")
        kind = block[156:157]
        if kind not in (b"x", b"g", b"L", b"K"):
            return {**common, **own}, block, name, link
        size = _number(block[124:136])
        if not 0 <= size <= _MAX_EXTENDED:
            raise hostile("it has an extended header of more than 1 MiB")
        body = stream.exactly(size)
        stream.skip(-size % BLOCK)
        if kind == b"x":
            own.update(_records(body))
        elif kind == b"g":
            common.update(_records(body))
        elif kind == b"L":
            name = body.rstrip(b"\0")
        else:
            link = body.rstrip(b"\0")


def _entry(  # noqa: PLR0912 -- a header has as many kinds
    block: bytes, records: dict[bytes, bytes], long_name: bytes | None, long_link: bytes | None
) -> Entry:
    kind = block[156:157]
    if any(key.startswith(b"GNU.sparse") for key in records) or kind in (b"S", b"M", b"D", b"V"):
        raise Refused(
            "The archive is in GNU's sparse, incremental or multi-volume form, which is not read.",
            means=_MEANS,
            do="Make it again by tar without --sparse, --listed-incremental and --multi-volume.",
        )
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name
    name = records.get(b"path", name if long_name is None else long_name)
    link = block[157:257].split(b"\0", 1)[0]
    link = records.get(b"linkpath", link if long_link is None else long_link)
    folder = kind in _FILES and name.endswith(b"/")  # as tar wrote before 1988
    if kind in _FILES:
        what = Kind.DIRECTORY if folder else Kind.FILE
    elif kind in _KINDS:
        what = _KINDS[kind]
    else:
        raise hostile(f"it has an entry of the unknown type {kind!r}")
    size = _integer(records[b"size"]) if b"size" in records else _number(block[124:136])
    if size < 0:
        raise hostile("it has an entry of a size below nothing")
    if what is not Kind.FILE:
        size = 0 if what in (Kind.DIRECTORY, Kind.HARDLINK) else size
        if size:
            raise hostile("it has an entry with content that can have none")
    path = clean(name, root=what is Kind.DIRECTORY)
    target, rdev = b"", 0
    if what is Kind.HARDLINK:
        target = clean(link)
    elif what is Kind.SYMLINK:
        target = link
        if not target or b"\0" in target or len(target) > MAX_PATH:
            raise hostile("it has a symlink to nothing")
    elif what in (Kind.CHARACTER, Kind.BLOCK):
        rdev = os.makedev(_number(block[329:337]), _number(block[337:345]))
    uid = _integer(records[b"uid"]) if b"uid" in records else _number(block[108:116])
    gid = _integer(records[b"gid"]) if b"gid" in records else _number(block[116:124])
    if not (0 <= uid < 1 << 32 and 0 <= gid < 1 << 32):
        raise hostile("it has an owner that no system knows")
    mtime = (
        _nanoseconds(records[b"mtime"])
        if b"mtime" in records
        else (_number(block[136:148]) * 1_000_000_000)
    )
    if not -(1 << 63) <= mtime < 1 << 63:
        raise hostile("it has a time that no system knows")
    xattrs = tuple(
        (_unescaped(key[13:]), value)
        for key, value in sorted(records.items())
        if key.startswith(b"SCHILY.xattr.")
    )
    mode = _number(block[100:108]) & 0o7777
    return Entry(path, what, mode, uid, gid, mtime, size, b"", target, rdev, xattrs)


def clean(name: bytes, *, root: bool = False) -> bytes:
    """A name as a path of a tree; Refused when it leads anywhere else."""
    shown = name[:200].decode("utf-8", "backslashreplace")
    if name.startswith(b"/"):
        raise hostile(f"it has an absolute name, {shown!r}")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise hostile(f"it has a name with `..` in it, {shown!r}")
    if b"\0" in name or len(name) > MAX_PATH or not (parts or (root and name)):
        raise hostile(f"it has a name that is none, {shown!r}")
    return b"/".join(parts)


def _records(body: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 20)
        digits = body[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise Damaged("The archive is damaged: a pax record has no length.")
        end = at + int(digits)
        equals = body.find(b"=", space + 1, end)
        if end > len(body) or equals < 0 or body[end - 1 : end] != b"\n":
            raise Damaged("The archive is damaged: a pax record is cut.")
        found[body[space + 1 : equals]] = body[equals + 1 : end - 1]
        at = end
    return found


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256, for what octal does not hold
        value = int.from_bytes(field, "big", signed=False)
        bits = len(field) * 8
        value -= 0x80 << (bits - 8)
        return value - (1 << (bits - 1)) if field[0] & 0x40 else value
    text = field.strip(b" \0")
    if not text:
        return 0
    if not all(48 <= digit <= 55 for digit in text):
        raise Damaged("The archive is damaged: a number in a header is none.")
    return int(text, 8)


def _integer(value: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise Damaged("The archive is damaged: a number in a pax record is none.")
    return int(value)


def _nanoseconds(value: bytes) -> int:
    sign = -1 if value.startswith(b"-") else 1
    whole, _, part = value.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 20 or (part and not part.isdigit()):
        raise Damaged("The archive is damaged: a time in a pax record is none.")
    return sign * (int(whole) * 1_000_000_000 + int(part[:9].ljust(9, b"0") or b"0"))


def _unescaped(key: bytes) -> bytes:
    return key.replace(b"%3D", b"=").replace(b"%25", b"%")


class _Stream:
    """Bytes of the archive, counted against the limit."""

    def __init__(self, read: Read, limit: int) -> None:
        self._read, self._left, self._limit = read, limit, limit
        self._held = memoryview(b"")

    def exactly(self, size: int) -> bytes:
        if len(self._held) >= size:
            data, self._held = bytes(self._held[:size]), self._held[size:]
            return data
        return b"".join(self._pieces(size))

    def content(self, size: int) -> Iterator[bytes]:
        if 0 < size <= len(self._held):
            return iter((self.exactly(size),))
        return self._pieces(size)

    def skip(self, size: int) -> None:
        if size:
            self.exactly(size)

    def rest(self) -> None:
        """What stands behind the end: zeros that fill a record, as tar writes them."""
        while self._held or self._fill():
            if any(self._held):
                raise Damaged("There is something behind the end of the archive.")
            self._held = memoryview(b"")

    def _pieces(self, size: int) -> Iterator[bytes]:
        while size:
            if not self._held and not self._fill():
                raise Damaged("The archive is cut: its end is missing.")
            piece = bytes(self._held[:size])
            self._held = self._held[len(piece) :]
            size -= len(piece)
            yield piece

    def _fill(self) -> bool:
        data = self._read(_PIECE)
        self._left -= len(data)
        if self._left < 0:
            raise hostile(f"it unpacks to more than {self._limit:,} bytes; --max-size allows more")
        self._held = memoryview(data)
        return bool(data)
