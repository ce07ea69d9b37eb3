"""Sealed records: the small objects of the catalogue.

    record    "SRM1" ‖ kind 4 ‖ nonce 12 ‖ AES-256-GCM(padded)
    padded    length u32 ‖ body ‖ zeros up to a multiple of `pad`

The key is a subkey of the catalogue key for the kind; the additional data is
repository id ‖ kind ‖ object name, so that no record can stand in for another.
Bodies are canonical JSON, but for index segments, tiles and checkpoints.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from strongroom.errors import Damaged
from strongroom.format.keyset import subkey

MAGIC = b"SRM1"
_LENGTH = struct.Struct("<I")
_HEAD = 8 + 12
TAG = 16
PAD = 256

SNAPSHOT, TOMBSTONE, REFS, MARK, GC, INDEX, FOOTER, FATE, LEASE = KINDS = (
    b"snap",
    b"tomb",
    b"refs",
    b"mark",
    b"gcol",
    b"indx",
    b"foot",
    b"fate",
    b"leas",
)
# Of the WAL: a file, a gap, a conflict, whose it is, a summary.
WAL, WAL_GAP, WAL_CONFLICT, WAL_SOURCE, WAL_SUMMARY = WAL_KINDS = (
    b"walf",
    b"walg",
    b"walc",
    b"walo",
    b"wals",
)
# Of the audit log: a leaf, a tile of leaves, a checkpoint, the report of a drill.
AUDIT_LEAF, AUDIT_TILE, AUDIT_CHECKPOINT, AUDIT_REPORT = AUDIT_KINDS = (
    b"audl",
    b"audt",
    b"audc",
    b"audr",
)
_EVERY = KINDS + WAL_KINDS + AUDIT_KINDS


def canonical(document: Any) -> bytes:
    """JSON with sorted keys and no white space, in UTF-8: one text for one document."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


class RecordKey:
    """Seals and opens the records of one epoch of one repository."""

    def __init__(self, repository: bytes, catalogue_key: bytes) -> None:
        self._repository = repository
        self._ciphers = {kind: AESGCM(subkey(catalogue_key, kind)) for kind in _EVERY}

    def seal(self, kind: bytes, name: str, body: bytes, *, nonce: bytes, pad: int = PAD) -> bytes:
        """Seal `body` as the object `name`; `nonce` is 12 fresh random bytes.

        Damaged when what was sealed does not open to `body` again.
        """
        filled = _LENGTH.size + len(body)
        padded = _LENGTH.pack(len(body)) + body + bytes(-filled % pad)
        sealed = self._ciphers[kind].encrypt(nonce, padded, self._context(kind, name))
        data = MAGIC + kind + nonce + sealed
        try:
            same = self.open(data, name, kind) == (kind, body)
        except ValueError:
            same = False
        if not same:
            raise Damaged(
                f"What was sealed as {name} does not open to what it was.",
                means="It was not stored and no snapshot was written; earlier snapshots are"
                " untouched, but this machine's memory, CPU or libraries corrupt data.",
                do="Test the machine's memory; then run the same command again.",
            )
        return data

    def open(self, data: bytes | memoryview, name: str, *kinds: bytes) -> tuple[bytes, bytes]:
        """Return (kind, body) of a record that is one of `kinds`; ValueError when it is not."""
        kind = bytes(data[4:8])
        if bytes(data[:4]) != MAGIC or kind not in kinds or len(data) < _HEAD + TAG:
            raise ValueError("not a record of the kind that belongs here")
        try:
            padded = self._ciphers[kind].decrypt(
                bytes(data[8:_HEAD]), data[_HEAD:], self._context(kind, name)
            )
        except InvalidTag:
            raise ValueError("the record does not authenticate") from None
        length = int.from_bytes(padded[: _LENGTH.size], "little")
        if len(padded) < _LENGTH.size + length:
            raise ValueError("the record is shorter than it claims")
        return kind, padded[_LENGTH.size : _LENGTH.size + length]

    def _context(self, kind: bytes, name: str) -> bytes:
        return self._repository + kind + name.encode()
