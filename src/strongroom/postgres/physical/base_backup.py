"""BASE_BACKUP: what the server sends, as files. It is read once, as it comes; nothing is kept.

A tar for each tablespace and one for the data directory, which comes last (trap 5) and has
backup_label first and pg_control at its end; then backup_manifest. Up to 14 each of these is a copy
of its own; from 15 all of it is one copy, whose messages say what they are. The tar is the server's
own (ustar; sizes beyond 8 GiB in base 256; no extensions), so that only this is read, and anything
else is refused. Source: PostgreSQL basebackup.c, basebackup_copy.c, port/tar.c.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from strongroom.errors import Damaged, Refused, StrongroomError
from strongroom.format.wal import parse_lsn
from strongroom.postgres.physical.facts import Tablespace
from strongroom.postgres.replication import (
    DATA_CORRUPTED,
    Replication,
    ServerError,
    quoted,
    rows_of,
)

BLOCK = 512
_AHEAD = 64 * 1024  # as much is received at once where a header is looked for
_ZEROS = bytes(BLOCK)
_MANIFEST = -1
_LABEL = "strongroom"
_MIDDLE = "The server ended a tar in the middle."
Receive = Callable[[memoryview], tuple[int, memoryview] | None]
_IN_PLACE = "allow_in_place_tablespaces"
_PREREQUISITE, _NO_RIGHT = "55000", "42501"
_PATH = re.compile(r"[\"«„“][^\"»”]*/")  # a quoted path; the words around it may be in any language
_TOO_LONG = frozenset(("54000", "XX000"))
_TAR_LIMIT = "tar"  # "file name too long for tar format": a name of more than 99 bytes


@dataclass(frozen=True, slots=True)
class Member:
    """An entry of a tar: a file, a directory or a link. `mtime` in seconds since 1970."""

    name: bytes
    kind: bytes  # b"0" file, b"5" directory, b"2" symbolic link
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int


def parse_member(block: bytes) -> Member:
    """Read a tar header; Damaged when it is not one that the server writes."""
    if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
        raise Damaged("The server sent something that is no tar header.")
    kind, name = block[156:157], block[:100].split(b"\0", 1)[0]
    if kind not in (b"0", b"2", b"5") or not name:
        raise Damaged(f"The server sent an entry of an unknown kind: {kind!r} {name!r}.")
    name = name.removeprefix(b"./").rstrip(b"/")
    if name.startswith(b"/") or b".." in name.split(b"/"):
        raise Damaged(f"The server sent a name that leads out of the data directory: {name!r}.")
    return Member(
        name,
        kind,
        _number(block[100:108]) & 0o7777,
        _number(block[108:116]),
        _number(block[116:124]),
        _number(block[124:136]) if kind == b"0" else 0,
        _number(block[136:148]),
    )


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        raise Damaged(f"The server sent a tar header without a number: {field!r}.") from None


class Part:
    """One of the tars, read through once. `receive` lays what comes into a buffer and says how much,
    and what more there is of it; None at the end."""

    def __init__(self, receive: Receive, buffer: memoryview | None = None) -> None:
        self._receive = receive
        self._buffer = memoryview(bytearray(_AHEAD)) if buffer is None else buffer
        self._rest = self._later = memoryview(b"")
        self._ended = False

    def some(self, most: int) -> memoryview:
        """What has come, up to `most` bytes; empty at the end. Valid until the next call."""
        while not self._rest:
            if self._later:
                self._rest, self._later = self._later, self._rest
            elif self._ended or (come := self._receive(self._buffer)) is None:
                self._ended = True
                return memoryview(b"")
            else:
                self._rest, self._later = self._buffer[: come[0]], come[1]
        found, self._rest = self._rest[:most], self._rest[most:]
        return found

    def fill(self, view: memoryview) -> None:
        """Fill `view`; Damaged when the part ends before. What has not come yet is laid right there."""
        at, size = 0, len(view)
        while at < size:
            if self._rest or self._later:
                piece = self.some(size - at)
                view[at : at + len(piece)] = piece
                at += len(piece)
            elif size - at < len(self._buffer):  # and with it what comes behind
                piece = self.some(size - at)
                if not piece:
                    raise Damaged(_MIDDLE)
                view[at : at + len(piece)] = piece
                at += len(piece)
            else:
                come = None if self._ended else self._receive(view[at:])
                if come is None:
                    self._ended = True
                    raise Damaged(_MIDDLE)
                at, self._rest = at + come[0], come[1]

    def block(self) -> bytes | None:
        """The next 512 bytes; None at the end."""
        piece = self.some(BLOCK)
        if not piece:
            return None
        if len(piece) == BLOCK:
            return bytes(piece)
        whole = bytearray(piece)
        rest = bytearray(BLOCK - len(whole))
        self.fill(memoryview(rest))
        return bytes(whole + rest)

    def skip(self, size: int) -> None:
        """Pass over bytes."""
        while size:
            piece = self.some(size)
            if not piece:
                raise Damaged(_MIDDLE)
            size -= len(piece)

    def drain(self) -> None:
        """Pass over the rest, which must be zeros."""
        while piece := self.some(1 << 20):
            if any(piece):
                raise Damaged("The server sent something after the end of a tar.")

    def members(self) -> Iterator[Member]:
        """The entries. Whoever takes one takes its content too, with `fill` or `skip`, and no
        padding."""
        while (block := self.block()) is not None:
            if block == _ZEROS:
                self.drain()
                return
            member = parse_member(block)
            yield member
            self.skip(-member.size % BLOCK)


class BaseBackup:
    """One BASE_BACKUP. `run` yields its tars, `manifest` comes after them, then `stop` is known.

    `size` is the server's estimate. `damaged` says that the server found wrong checksums.
    """

    def __init__(self, replication: Replication) -> None:
        self._replication = replication
        self.start = self.stop = self.timeline = self.size = 0
        self.tablespaces: tuple[Tablespace, ...] = ()
        self.in_place: frozenset[str] = frozenset()
        self.manifest = b""
        self.damaged = False
        self._ended = False  # the copy
        self._next: int | None = None  # the part that has begun, by its number
        self._parts = 0
        self._oids: list[str | None] = []
        self._locations: list[bytes] = []
        self._buffer = memoryview(bytearray(_AHEAD))

    def begin(self) -> None:
        """Let the server begin; returns after its checkpoint."""
        replication = self._replication
        # Up to 15 the tar lacks tablespaces in place where the links of the others are left out for
        # the map; with links no location may be longer than a tar's 99 bytes.
        links = replication.version < 160000 and replication.show(_IN_PLACE) == "on"
        if replication.version >= 150000:
            options = (
                f"LABEL {quoted(_LABEL)}, PROGRESS, CHECKPOINT 'fast', WAIT 0,"
                f" TABLESPACE_MAP {str(not links).lower()}, TARGET 'client', MANIFEST 'yes',"
                " MANIFEST_CHECKSUMS 'CRC32C'"
            )
            command = f"BASE_BACKUP ({options})"
        else:
            command = (
                f"BASE_BACKUP LABEL {quoted(_LABEL)} PROGRESS FAST NOWAIT"
                f"{'' if links else ' TABLESPACE_MAP'} MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
            )
        try:
            replication.send(command)
            first = replication.result()
            second = replication.result()
        except ServerError as fault:
            raise _not_begun(fault) from None
        if first is None or second is None or not first.ntuples or not second.ntuples:
            raise StrongroomError("The server did not begin a backup.")
        position, timeline, *_ = rows_of(first)[0]
        self.start, self.timeline = parse_lsn((position or b"").decode()), int(timeline or 0)
        for oid, location, size in rows_of(second):
            self.size += int(size or 0) * 1024
            self._oids.append(oid.decode("ascii") if oid else None)
            self._locations.append(location or b"")
        self.tablespaces = tuple(
            Tablespace(oid, location)
            for oid, location in zip(self._oids, self._locations, strict=True)
            if oid is not None and location.startswith(b"/")
        )
        # allow_in_place_tablespaces: a directory in pg_tblspc; from 16 it has a tar of its own.
        self.in_place = frozenset(
            oid
            for oid, location in zip(self._oids, self._locations, strict=True)
            if oid is not None and not location.startswith(b"/")
        )

    def parts(self) -> Iterator[tuple[str | None, Part]]:
        """Each tar with the oid of its tablespace, None for the data directory, which is the last
        one; each to be read to its end before the next."""
        try:
            if self._replication.version >= 150000:
                yield from self._typed()
            else:
                yield from self._copies()
        except ServerError as fault:
            raise _broken_off(fault) from None

    def finish(self) -> None:
        """Take the end of the backup from the server."""
        ended = False
        try:
            while (result := self._replication.result()) is not None:
                if result.ntuples and not ended:
                    self.stop = parse_lsn((rows_of(result)[0][0] or b"").decode())
                    ended = True
        except ServerError as fault:
            # Wrong checksums are an error that comes when everything has been sent.
            if not ended or fault.state != DATA_CORRUPTED:
                raise _broken_off(fault) from None
            self.damaged = True
            self._replication.drain()
        if not self.stop or not self.manifest:
            raise StrongroomError("The server ended the backup without saying where it stops.")

    # -- from 15 ---------------------------------------------------------------------------

    def _typed(self) -> Iterator[tuple[str | None, Part]]:
        self._expect_copy()
        if self._data(self._buffer) is not None:
            raise StrongroomError("The server sent data that belongs to nothing.")
        number = 0
        while self._next is not None and self._next != _MANIFEST:
            if number >= len(self._oids):
                raise StrongroomError("The server sent more tablespaces than it told of.")
            oid, self._next = self._oids[number], None
            number += 1
            yield oid, (part := Part(self._data, self._buffer))
            part.drain()
        self._all(number)
        if self._next == _MANIFEST:
            self._next = None
            self.manifest = self._rest_of(Part(self._data, self._buffer))

    def _data(self, into: memoryview) -> tuple[int, memoryview] | None:
        """The next data of the part that is being read; None when another part begins."""
        while self._next is None and not self._ended:
            found = self._replication.receive(into, typed=True)
            self._ended = found.ended
            if found.other is not None:
                kind = found.other[0]
                if kind == 0x6E:  # n
                    self._next = 0
                elif kind == 0x6D:  # m
                    self._next = _MANIFEST
                elif kind != 0x70:  # p: how far the server is, which we know
                    shape = bytes(found.other[:1])
                    raise StrongroomError(f"The server sent an unknown message: {shape!r}.")
            if found.used:
                return found.used, found.rest
        return None

    # -- up to 14 --------------------------------------------------------------------------

    def _copies(self) -> Iterator[tuple[str | None, Part]]:
        for oid in self._oids:
            self._expect_copy()
            yield oid, (part := Part(self._untyped, self._buffer))
            part.drain()
        self._expect_copy()
        self.manifest = self._rest_of(Part(self._untyped, self._buffer))

    def _untyped(self, into: memoryview) -> tuple[int, memoryview] | None:
        while not self._ended:
            found = self._replication.receive(into, typed=False)
            self._ended = found.ended
            if found.used:
                return found.used, found.rest
        return None

    @staticmethod
    def _rest_of(part: Part) -> bytes:
        pieces = []
        while piece := part.some(_AHEAD):
            pieces.append(bytes(piece))
        return b"".join(pieces)

    def _expect_copy(self) -> None:
        from psycopg.pq import ExecStatus  # noqa: PLC0415

        result = self._replication.result()
        if result is None or result.status != ExecStatus.COPY_OUT:
            raise StrongroomError("The server does not send the files of the backup.")
        self._ended = False

    def _all(self, number: int) -> None:
        if number != len(self._oids):
            self._replication.drain()  # raises the reason, if the server has one
            raise StrongroomError("The server sent fewer tablespaces than it told of.")


def _not_begun(fault: ServerError) -> StrongroomError:
    if fault.state == _NO_RIGHT and _PATH.search(fault.text):
        return _unreadable(fault)
    if fault.state == _NO_RIGHT:
        return Refused(
            f"The role may not take a base backup: {fault.text}.",
            do="ALTER ROLE … REPLICATION, on the server; then run the same command again.",
        )
    if fault.state == _PREREQUISITE:
        return Refused(
            f"The server cannot be backed up as it is: {fault.text}.",
            do="A physical backup needs wal_level = replica, and on a standby full_page_writes = on"
            " at the primary.",
        )
    return StrongroomError(f"The server did not begin a backup: {fault.text} ({fault.state}).")


def _unreadable(fault: ServerError) -> Refused:
    """The server itself cannot read a file: the same state as a right that its role lacks."""
    return Refused(
        f"The server cannot read a file of its data directory: {fault.text}.",
        do="Give the file to the server's account or take it away; then run the same command again.",
    )


def _broken_off(fault: ServerError) -> StrongroomError:
    if fault.state == _NO_RIGHT:
        return _unreadable(fault)
    if fault.state in _TOO_LONG and _TAR_LIMIT in fault.text:
        return Refused(
            f"The server cannot send a file of its data directory: {fault.text}.",
            do='Take the file away, or back the cluster up on its own host, with via = "local".',
        )
    return StrongroomError(
        f"The server broke the backup off: {fault.text} ({fault.state}).",
        do="Run the same command again; what was uploaded is kept and used again.",
    )


__all__ = ["BaseBackup", "Member", "Part", "parse_member"]
