"""Writes a log as PostgreSQL does, byte by byte, for tests: any version, any sizes, any records."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import crc32c

MIB = 1 << 20
MAGICS = {13: 0xD106, 14: 0xD10D, 15: 0xD110, 16: 0xD113, 17: 0xD116, 18: 0xD118}
XLOG, XACT, TABLESPACE, HEAP = 0, 1, 5, 10
COMMIT, PREPARE, ABORT, COMMIT_PREPARED, ABORT_PREPARED, ASSIGNMENT = range(0, 0x60, 0x10)
SHUTDOWN, ONLINE, SWITCH, RESTORE_POINT, END_OF_RECOVERY, OVERWRITE = (
    0x00, 0x10, 0x40, 0x70, 0x90, 0xD0,
)  # fmt: skip


def main_data(main: bytes, *, origin: bool = False, top: bool = False) -> bytes:
    """The part of a record behind its head, when it has no blocks."""
    body = (b"\xfd\x01\x00" if origin else b"") + (b"\xfc\x09\x00\x00\x00" if top else b"")
    if not main:
        return body
    if len(main) > 255:
        return body + b"\xfe" + struct.pack("<I", len(main)) + main
    return body + b"\xff" + bytes([len(main)]) + main


def counted(items: list[bytes]) -> bytes:
    return struct.pack("<i", len(items)) + b"".join(items)


def transaction_end(
    time: int,
    *,
    version: int = 16,
    subs: tuple[int, ...] = (),
    prepared: int = 0,
    relations: int = 0,
    statistics: int = 0,
    invalidations: int = 0,
    database: bool = False,
    origin: bool = False,
) -> tuple[int, bytes]:
    """The info bit and the main data of a commit or abort."""
    width = 16 if version >= 18 else 12
    flags, rest = 0, b""
    for wanted, bit, part in (
        (database, 1, bytes(8)),
        (subs, 2, counted([struct.pack("<I", sub) for sub in subs])),
        (relations, 4, counted([bytes(12)] * relations)),
        (statistics, 256, counted([b"\xff" * width] * statistics)),
        (invalidations, 8, counted([b"\xee" * 16] * invalidations)),
        (prepared, 16, struct.pack("<I", prepared)),
        (prepared, 128, b"a name\0"),
        (origin, 32, bytes(16)),
    ):
        if wanted:
            flags |= bit
            rest += part
    head = struct.pack("<q", time)
    return (0x80, head + struct.pack("<I", flags) + rest) if flags else (0, head)


def restore_point(name: bytes, time: int) -> bytes:
    return struct.pack("<q64s", time, name)


def turn(new: int, old: int, extra: bytes = bytes(4)) -> bytes:
    return struct.pack("<qII", 0, new, old) + extra


@dataclass
class Log:
    """A log from `number` times `size` on; `at` is where the next byte goes."""

    version: int = 16
    size: int = MIB
    page: int = 8192
    timeline: int = 1
    number: int = 3
    system_id: int = 7_000_000_000_000_000_001
    data: bytearray = field(default_factory=bytearray)
    previous: int = 0
    records: list[tuple[int, int, int, int]] = field(default_factory=list)
    info: int = 0  # more flags for the next page's header

    @property
    def base(self) -> int:
        return self.number * self.size

    @property
    def at(self) -> int:
        return self.base + len(self.data)

    def _header(self, rest: int) -> None:
        first = self.at % self.size == 0
        info = (1 if rest else 0) | (2 if first else 0) | self.info
        self.info = 0
        self.data += struct.pack(
            "<HHIQIxxxx", MAGICS[self.version], info, self.timeline, self.at, rest
        )
        if first:
            self.data += struct.pack("<QII", self.system_id, self.size, self.page)

    def _put(self, part: bytes, *, continuing: bool) -> None:
        """Put bytes; only a record's own go on behind a page's end as a continuation."""
        while part:
            if self.at % self.page == 0:
                self._header(len(part) if continuing else 0)
            here = part[: self.page - self.at % self.page]
            self.data += here
            part = part[len(here) :]
            continuing = True

    def record(self, manager: int, info: int, xid: int, body: bytes) -> tuple[int, int]:
        """Write a record; return where it begins and ends."""
        if self.at % self.page == 0:
            self._header(0)
        start, total = self.at, 24 + len(body)
        head = struct.pack("<IIQBBxx", total, xid, self.previous, info, manager)
        crc = crc32c.crc32c(head, crc32c.crc32c(body))
        self._put(head + struct.pack("<I", crc) + body, continuing=False)
        self.data += bytes(-len(self.data) % 8)
        self.previous = start
        self.records.append((start, self.at, xid, total))
        return start, self.at

    def end(
        self, xid: int, time: int, kind: int = COMMIT, *, aside: bool = False, **parts: object
    ) -> tuple[int, int]:
        bit, main = transaction_end(time, version=self.version, **parts)  # type: ignore[arg-type]
        return self.record(XACT, kind | bit, xid, main_data(main, origin=aside))

    def switch(self) -> tuple[int, int]:
        where = self.record(XLOG, SWITCH, 0, b"")
        self.data += bytes(-len(self.data) % self.size)
        return where

    def segments(self) -> list[bytes]:
        """Whole segments; the last is filled up with zeros."""
        data = bytes(self.data) + bytes(-len(self.data) % self.size)
        return [data[i : i + self.size] for i in range(0, len(data), self.size)]
