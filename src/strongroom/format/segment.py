"""Index segments: which frame holds a chunk, which pack holds a frame. Columns, little endian.

    segment   "SRIX" ‖ version u16 ‖ sessions u16 ‖ packs u32 ‖ frames u32 ‖ chunks u32 ‖ replaces u32
              sessions   id 16 ‖ epoch u32 ‖ length u16 ‖ session key, sealed to the data key pair
              packs      tree u8 ‖ name 32            tree: 1 under trees/, 0 under packs/
              frames     session u32 ‖ sequence u32 ‖ pack u32 ‖ offset u32 ‖ length u32 ‖ chunks u32
              chunk ids  32 each, in the order of the frames and of the chunks in them
              lengths    u32 each
              replaces   length u16 ‖ object name … of index segments that this one makes void

A chunk's place in its frame follows from the lengths before it. A frame row with
no chunks moves a frame: its chunk rows stand in another segment. The footer of
a pack is a segment of that pack alone, whose name in it is 32 zero bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

_HEAD = struct.Struct("<4sHHIIII")
_SESSION = struct.Struct("<16sIH")
_NAME = struct.Struct("<H")
MAGIC = b"SRIX"
VERSION = 1
ID = 32

FRAME_ROW = np.dtype(
    [
        ("session", "<u4"),
        ("sequence", "<u4"),
        ("pack", "<u4"),
        ("offset", "<u4"),
        ("length", "<u4"),
        ("chunks", "<u4"),
    ]
)
PACK_ROW = np.dtype([("tree", "u1"), ("name", "V32")])


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A session whose frames are listed: id 16 bytes, key epoch, sealed session key."""

    id: bytes
    epoch: int
    sealed_key: bytes


@dataclass(slots=True)
class Segment:
    """A decoded segment. `ids` is the concatenation of chunk ids; `lengths` u32 per chunk.

    `name` is the object that held it, and is not part of it.
    """

    sessions: list[SessionRow]
    packs: list[tuple[bool, bytes]]
    frames: npt.NDArray[np.void]
    ids: bytes | memoryview
    lengths: npt.NDArray[np.uint32]
    replaces: list[str] = field(default_factory=list)
    name: str = ""


def encode(segment: Segment) -> bytes:
    """Encode a segment."""
    head = _HEAD.pack(
        MAGIC,
        VERSION,
        len(segment.sessions),
        len(segment.packs),
        len(segment.frames),
        len(segment.lengths),
        len(segment.replaces),
    )
    sessions = [
        _SESSION.pack(row.id, row.epoch, len(row.sealed_key)) + row.sealed_key
        for row in segment.sessions
    ]
    packs = [bytes((tree,)) + name for tree, name in segment.packs]
    names = [name.encode() for name in segment.replaces]
    replaces = [_NAME.pack(len(name)) + name for name in names]
    lengths = segment.lengths.astype("<u4", copy=False).tobytes()
    parts: Sequence[bytes | memoryview] = (
        head,
        *sessions,
        *packs,
        segment.frames.tobytes(),
        segment.ids,
        lengths,
        *replaces,
    )
    return b"".join(parts)


def decode(data: bytes | memoryview) -> Segment:
    """Decode a segment; ValueError when it is cut short or contradicts itself."""
    view = memoryview(data)
    try:
        magic, version, sessions, packs, frames, chunks, replaces = _HEAD.unpack_from(view)
        if magic != MAGIC or version != VERSION:
            raise ValueError("not an index segment of a version that is known")
        at = _HEAD.size
        session_rows, at = _decode_sessions(view, at, sessions)
        pack_rows = np.frombuffer(view, PACK_ROW, packs, at)
        at += packs * PACK_ROW.itemsize
        frame_rows = np.frombuffer(view, FRAME_ROW, frames, at)
        at += frames * FRAME_ROW.itemsize
        ids = view[at : at + chunks * ID]
        at += chunks * ID
        lengths = np.frombuffer(view, "<u4", chunks, at)
        at += chunks * 4
        names, at = _decode_names(view, at, replaces)
    except (struct.error, UnicodeDecodeError) as fault:
        raise ValueError(f"index segment is cut short: {fault}") from None
    if at != len(view) or int(frame_rows["chunks"].sum(dtype=np.uint64)) != chunks:
        raise ValueError("index segment contradicts itself")
    if frames and (
        int(frame_rows["session"].max()) >= sessions or int(frame_rows["pack"].max()) >= packs
    ):
        raise ValueError("index segment points outside itself")
    listed = [(bool(row["tree"]), row["name"].tobytes()) for row in pack_rows]
    return Segment(session_rows, listed, frame_rows, ids, lengths, names)


def joined(segments: Sequence[Segment], *, replaces: Sequence[str] = ()) -> Segment:
    """One segment that tells what several tell, and makes those in `replaces` void."""
    sessions: dict[bytes, tuple[int, SessionRow]] = {}
    packs: dict[tuple[bool, bytes], int] = {}
    frames = []
    for one in segments:
        rows = one.frames.copy()
        here = [sessions.setdefault(row.id, (len(sessions), row))[0] for row in one.sessions]
        there = [packs.setdefault(pack, len(packs)) for pack in one.packs]
        if len(rows):
            rows["session"] = np.asarray(here, np.uint32)[rows["session"]]
            rows["pack"] = np.asarray(there, np.uint32)[rows["pack"]]
        frames.append(rows)
    return Segment(
        [row for _, row in sessions.values()],
        list(packs),
        np.concatenate([np.empty(0, FRAME_ROW), *frames]),
        b"".join(one.ids for one in segments),
        np.concatenate([np.empty(0, np.uint32), *(one.lengths for one in segments)]),
        list(replaces),
    )


def _decode_sessions(view: memoryview, at: int, count: int) -> tuple[list[SessionRow], int]:
    rows = []
    for _ in range(count):
        session, epoch, length = _SESSION.unpack_from(view, at)
        at += _SESSION.size
        rows.append(SessionRow(session, epoch, bytes(view[at : at + length])))
        at += length
    return rows, at


def _decode_names(view: memoryview, at: int, count: int) -> tuple[list[str], int]:
    names = []
    for _ in range(count):
        (length,) = _NAME.unpack_from(view, at)
        at += _NAME.size
        names.append(bytes(view[at : at + length]).decode())
        at += length
    return names, at
