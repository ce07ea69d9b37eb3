"""Packs: immutable objects of frames, named by the BLAKE3 hash of their own bytes.

    pack      "SRPK" ‖ version u16 ‖ sessions u16 ‖ header length u32
              session …       id 16 ‖ epoch u32 ‖ length u16 ‖ session key, sealed to the data key pair
              frame …         back to back
              footer          a sealed record of kind "foot": a segment of this pack alone
              footer length u32 ‖ "SRPE"

The record name of a footer is "packs" or "trees". Frames carry no clear length;
only the footer and the index tell where they begin.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from strongroom.format.segment import SessionRow

MAGIC, END, VERSION = b"SRPK", b"SRPE", 1
_HEAD = struct.Struct("<4sHHI")
_SESSION = struct.Struct("<16sIH")
TRAILER = struct.Struct("<I4s")
FOOTER_PAD = 1024
ZERO_NAME = bytes(32)


def encode_header(sessions: Sequence[SessionRow], *, magic: bytes = MAGIC) -> bytes:
    """Encode the header of a pack, or of another object that begins like one."""
    rows = b"".join(
        _SESSION.pack(row.id, row.epoch, len(row.sealed_key)) + row.sealed_key for row in sessions
    )
    return _HEAD.pack(magic, VERSION, len(sessions), _HEAD.size + len(rows)) + rows


def decode_header(
    data: bytes | memoryview, *, magic: bytes = MAGIC
) -> tuple[list[SessionRow], int]:
    """Return the sessions of a pack and the header's length; ValueError when it is no pack."""
    try:
        found, version, count, length = _HEAD.unpack_from(data)
        if found != magic or version != VERSION:
            raise ValueError("not an object of a sort and version that is known")
        at, rows = _HEAD.size, []
        for _ in range(count):
            session, epoch, size = _SESSION.unpack_from(data, at)
            at += _SESSION.size
            rows.append(SessionRow(session, epoch, bytes(data[at : at + size])))
            at += size
    except struct.error as fault:
        raise ValueError(f"pack header is cut short: {fault}") from None
    if at != length or at > len(data):
        raise ValueError("pack header contradicts itself")
    return rows, length


def object_name(tree: bool, name: bytes) -> str:
    """Where a pack rests."""
    text = name.hex()
    return f"{'trees' if tree else 'packs'}/{text[:2]}/{text}"


def parse_name(name: str) -> tuple[bool, bytes]:
    """Inverse of `object_name`; ValueError when it is not a pack's."""
    folder, fan, text = name.split("/")
    raw = bytes.fromhex(text)
    if folder not in ("packs", "trees") or fan != text[:2] or len(raw) != 32 or text != raw.hex():
        raise ValueError(f"not a pack name: {name}")
    return folder == "trees", raw
