"""Files of PostgreSQL's write-ahead log at rest: one object each, which needs no index. PURE.

    file      "SRWL" ‖ version u16 ‖ sessions u16 = 1 ‖ header length u32
              id 16 ‖ epoch u32 ‖ length u16 ‖ session key, sealed to the data key pair
              record length u32 ‖ a sealed record of kind "walf"
              frame …          back to back, each 1 MiB of the file but the last; format/frame.py

The record's body tells what the file is; it is signed by the writer and names the BLAKE3 hash of
the header and of all frames, so that whoever holds the catalogue key can tell that an object is as
it was put, and only readers what is in it.

    wal/<system>/<timeline>/<file>                           a file
    wal/<system>/<timeline>/parts/<segment>-<from>-<to>      bytes of a segment that is not whole yet
    wal/<system>/<timeline>/gaps/<from>-<to>-<8 hex>         log that nobody has any more, and why
    wal/<system>/<timeline>/conflicts/<file>-<16 hex>        other content was offered for a file
    wal/<system>/<timeline>/summaries/<first>-<last>-<8 hex> what many files are: a cache
    wal/sources/<source>/<system>                            whose log it is

<system> is the system identifier in 16 lower-case hex digits, <timeline> the first eight characters
of the file's name, positions are 16 lower-case hex digits, the ends of parts 8: bytes from the
start of the segment.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from blake3 import blake3

from strongroom.format import pack
from strongroom.format.frame import FRAME_SIZE
from strongroom.format.segment import SessionRow
from strongroom.format.wal import SegmentFacts, WalKind, kind_of, lsn_text, parse_lsn

MAGIC = b"SRWL"
DOMAIN = b"strongroom wal file 1"
RECORD_PAD = 1024
PREFIX = "wal/"
SOURCES = "wal/sources/"
TEXT_LIMIT = 16 * 1024
"""A history or label file up to this size stands in the record too."""

_LENGTH = struct.Struct("<I")
_SYSTEM = re.compile(r"[0-9a-f]{16}")
_TIMELINE = re.compile(r"[0-9A-F]{8}")
_GAP = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})-[0-9a-f]{8}")
_PART = re.compile(r"([0-9A-F]{24})-([0-9a-f]{8})-([0-9a-f]{8})")
_CONFLICT = re.compile(r"([0-9A-Za-z.]+)-([0-9a-f]{16})")
_SUMMARY = re.compile(r"[0-9A-Za-z.]+-[0-9A-Za-z.]+-[0-9a-f]{8}")


def system_text(system_id: int) -> str:
    """A system identifier as it stands in object names."""
    if not 0 < system_id < 1 << 64:
        raise ValueError(f"not a system identifier: {system_id}")
    return f"{system_id:016x}"


def folder(system_id: int, timeline: int) -> str:
    """Where all of a timeline rests, with the slash at its end."""
    return f"{PREFIX}{system_text(system_id)}/{timeline:08X}/"


def object_name(system_id: int, name: str) -> str:
    """Where a file rests; ValueError when PostgreSQL archives no file of that name."""
    kind_of(name)
    return f"{PREFIX}{system_text(system_id)}/{name[:8]}/{name}"


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """Bytes [start, end) of a segment that is not whole yet."""

    segment: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.segment}-{self.start:08x}-{self.end:08x}"

    @staticmethod
    def parse(name: str) -> Part:
        """Inverse of `str`; ValueError."""
        match = _PART.fullmatch(name)
        if not match or match[2] >= match[3]:
            raise ValueError(f"not the name of a part of a segment: {name!r}")
        return Part(match[1], int(match[2], 16), int(match[3], 16))


def part_prefix(system_id: int, segment: str) -> str:
    """What the names of all parts of a segment begin with."""
    kind_of(segment)
    return f"{folder(system_id, int(segment[:8], 16))}parts/{segment}-"


@dataclass(frozen=True, slots=True)
class Place:
    """What an object below `wal/` is by its name.

    `sort` is "file", "parts", "gaps", "conflicts", "summaries" or "sources"; `name` the last part.
    """

    sort: str
    system_id: int
    timeline: int
    name: str
    source: str = ""


def parse_object(name: str) -> Place:
    """Read the name of an object below `wal/`; ValueError when it is none of these."""
    parts = name.split("/")
    if len(parts) == 4 and parts[:2] == ["wal", "sources"] and _SYSTEM.fullmatch(parts[3]):
        return Place("sources", int(parts[3], 16), 0, parts[3], parts[2])
    if (
        len(parts) in (4, 5)
        and parts[0] == "wal"
        and _SYSTEM.fullmatch(parts[1])
        and _TIMELINE.fullmatch(parts[2])
    ):
        system, timeline, last = int(parts[1], 16), int(parts[2], 16), parts[-1]
        if len(parts) == 4:
            kind_of(last)
            if last[:8] == parts[2]:
                return Place("file", system, timeline, last)
        elif (
            (shape := _BELOW.get(parts[3])) is not None
            and shape.fullmatch(last)
            and (parts[3] != "parts" or Part.parse(last).segment[:8] == parts[2])
        ):
            return Place(parts[3], system, timeline, last)
    raise ValueError(f"not the name of an object of the WAL: {name}")


_BELOW = {"parts": _PART, "gaps": _GAP, "conflicts": _CONFLICT, "summaries": _SUMMARY}


def place_of(sort: str, system_id: int, name: str) -> str:
    """Where a file, or a part of one, rests; ValueError when there is none of that name."""
    if sort == "parts":
        return f"{folder(system_id, int(Part.parse(name).segment[:8], 16))}parts/{name}"
    return object_name(system_id, name)


# -- a file ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WalHead:
    """What a file of the WAL is, as its record tells. Sizes in bytes, times UTC.

    `digest` is the keyed BLAKE3 hash of the content, the same for the same content in every epoch;
    `frames` are the lengths of the sealed frames; `hash` is BLAKE3(header ‖ frames), unkeyed;
    `text` is the content of a history or label file.
    """

    name: str
    system_id: int
    timeline: int
    size: int
    digest: bytes
    archived: datetime
    frames: Sequence[int]
    hash: bytes
    epoch: int
    writer: str
    facts: SegmentFacts | None = None
    text: bytes | None = None

    def body(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {
            "name": self.name,
            "system_id": str(self.system_id),
            "timeline": self.timeline,
            "size": self.size,
            "digest": self.digest.hex(),
            "archived": self.archived.isoformat(),
            "frames": list(self.frames),
            "hash": self.hash.hex(),
            "epoch": self.epoch,
            "writer": self.writer,
            "facts": None if self.facts is None else self.facts.as_json(),
            "text": None if self.text is None else base64.b64encode(self.text).decode(),
        }

    @staticmethod
    def from_body(body: Mapping[str, Any]) -> WalHead:
        """Inverse of `body`; KeyError, ValueError, TypeError when it is something else.

        Fields that a later program added are passed over.
        """
        head = WalHead(
            name=str(body["name"]),
            system_id=int(body["system_id"]),
            timeline=int(body["timeline"]),
            size=int(body["size"]),
            digest=bytes.fromhex(body["digest"]),
            archived=datetime.fromisoformat(body["archived"]),
            frames=tuple(int(length) for length in body["frames"]),
            hash=bytes.fromhex(body["hash"]),
            epoch=int(body["epoch"]),
            writer=str(body["writer"]),
            facts=None if body["facts"] is None else SegmentFacts.from_json(body["facts"]),
            text=None if body["text"] is None else base64.b64decode(body["text"], validate=True),
        )
        if len(head.frames) != -(-head.size // FRAME_SIZE) or len(head.digest) != 32:
            raise ValueError("the record of a WAL file contradicts itself")
        return head


@dataclass(frozen=True, slots=True)
class Opened:
    """An object taken apart: the session, the header, the sealed record, where frames begin."""

    session: SessionRow
    header: bytes
    record: bytes
    frames_at: int


def encode(header: bytes, record: bytes, frames: Sequence[bytes]) -> bytes:
    """Put an object together."""
    return b"".join((header, _LENGTH.pack(len(record)), record, *frames))


def encode_header(session: SessionRow) -> bytes:
    """The header of a file whose frames are sealed with this session's key."""
    return pack.encode_header([session], magic=MAGIC)


def needed(data: bytes | memoryview) -> int:
    """How many bytes from the start hold header and record; ValueError when it is no such object."""
    sessions, at = pack.decode_header(data, magic=MAGIC)
    if len(sessions) != 1 or len(data) < at + _LENGTH.size:
        raise ValueError("the header of a WAL file is cut short")
    return at + _LENGTH.size + int(_LENGTH.unpack_from(data, at)[0])


def decode(data: bytes | memoryview) -> Opened:
    """Take the beginning of an object apart; ValueError when it is cut short or something else."""
    end = needed(data)
    if len(data) < end:
        raise ValueError("the record of a WAL file is cut short")
    (session,), at = pack.decode_header(data, magic=MAGIC)
    return Opened(session, bytes(data[:at]), bytes(data[at + _LENGTH.size : end]), end)


def outer_hash(header: bytes, frames: Sequence[bytes | memoryview]) -> bytes:
    """The hash that a record names: over the header and all frames."""
    hasher = blake3(header)
    for frame in frames:
        hasher.update(frame)
    return hasher.digest()


def holds(opened: Opened, head: WalHead, data: bytes | memoryview) -> bool:
    """Is the whole object as its record says? Needs no key that opens data."""
    view = memoryview(data)
    whole = opened.frames_at + sum(head.frames) == len(view)
    return whole and outer_hash(opened.header, [view[opened.frames_at :]]) == head.hash


def length_of(head: WalHead, frames_at: int) -> int:
    """How long the whole object is."""
    return frames_at + sum(head.frames)


# -- beside the files --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gap:
    """Log of a timeline that nobody has any more: [start, end), and why. Kept for ever."""

    timeline: int
    start: int
    end: int
    reason: str
    recorded: datetime
    writer: str = ""

    def body(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {
            "timeline": self.timeline,
            "start": lsn_text(self.start),
            "end": lsn_text(self.end),
            "reason": self.reason,
            "recorded": self.recorded.isoformat(),
            "writer": self.writer,
        }

    @staticmethod
    def from_body(body: Mapping[str, Any]) -> Gap:
        """Inverse of `body`."""
        return Gap(
            int(body["timeline"]),
            parse_lsn(body["start"]),
            parse_lsn(body["end"]),
            str(body["reason"]),
            datetime.fromisoformat(body["recorded"]),
            str(body["writer"]),
        )

    def name_in(self, system_id: int, token: str) -> str:
        """The object that records it; `token` is 8 fresh hex digits."""
        place = folder(system_id, self.timeline)
        return f"{place}gaps/{self.start:016x}-{self.end:016x}-{token}"


@dataclass(frozen=True, slots=True)
class Conflict:
    """Other content was offered under the name of a file that rests here, and refused."""

    name: str
    digest: bytes
    size: int
    seen: datetime
    writer: str

    def body(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {
            "name": self.name,
            "digest": self.digest.hex(),
            "size": self.size,
            "seen": self.seen.isoformat(),
            "writer": self.writer,
        }

    @staticmethod
    def from_body(body: Mapping[str, Any]) -> Conflict:
        """Inverse of `body`."""
        return Conflict(
            str(body["name"]),
            bytes.fromhex(body["digest"]),
            int(body["size"]),
            datetime.fromisoformat(body["seen"]),
            str(body["writer"]),
        )

    def name_in(self, system_id: int) -> str:
        """The object that records it: one for one content, however often it is offered."""
        place = folder(system_id, int(self.name[:8], 16))
        return f"{place}conflicts/{self.name}-{self.digest[:8].hex()}"


@dataclass(frozen=True, slots=True)
class WalFile:
    """A file of the WAL in a listing: `stored` bytes at rest, `size` bytes of content."""

    name: str
    stored: int
    size: int
    archived: datetime
    facts: SegmentFacts | None = None
    text: bytes | None = None

    @property
    def kind(self) -> WalKind:
        """What it is by its name."""
        return kind_of(self.name)

    def row(self) -> list[Any]:
        """A row of a summary."""
        return [
            self.name,
            self.stored,
            self.size,
            self.archived.isoformat(),
            None if self.facts is None else self.facts.as_json(),
            None if self.text is None else base64.b64encode(self.text).decode(),
        ]

    @staticmethod
    def from_row(row: Sequence[Any]) -> WalFile:
        """Inverse of `row`; ValueError, TypeError, KeyError when it is something else."""
        name, stored, size, archived, facts, text = row[:6]
        return WalFile(
            str(name),
            int(stored),
            int(size),
            datetime.fromisoformat(archived),
            None if facts is None else SegmentFacts.from_json(facts),
            None if text is None else base64.b64decode(text, validate=True),
        )


__all__ = [
    "Conflict",
    "Gap",
    "Opened",
    "Part",
    "Place",
    "WalFile",
    "WalHead",
    "decode",
    "encode",
    "encode_header",
    "folder",
    "holds",
    "needed",
    "object_name",
    "parse_object",
    "part_prefix",
    "place_of",
]
