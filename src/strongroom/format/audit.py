"""Names of the audit log's objects, and the checkpoint: a signed note that says how far it goes.

    audit/leaves/<tile>/<number>     one run; numbers from 0, twelve digits; tile = number // 256
    audit/tiles/<tile>               256 leaves, ten digits
    audit/checkpoints/<size>         a note, twelve digits
    audit/reports/<run>              the report of a drill, by the run of its leaf, sixteen hex

    note    origin · size · root in base64, then "time", "epoch", "writer", "signer", "certificate",
            "frontier", each a word, a space and its value; an empty line; lines of signatures

The note is that of C2SP signed-note and tlog-checkpoint, with an Ed25519 signature over the text, so that
other programs read it too. Whose key it is tells the certificate (chapter 3.1 of docs/format.md).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from strongroom.format import keyset as keysets
from strongroom.format.keyset import Keyset
from strongroom.format.merkle import HASH, root_of

PREFIX = "audit/"
LEAVES, TILES, CHECKPOINTS, REPORTS = (
    PREFIX + part for part in ("leaves/", "tiles/", "checkpoints/", "reports/")
)
TILE = 256
NOTE_LIMIT = 64 * 1024

_LEAF = re.compile(r"audit/leaves/([0-9]{10})/([0-9]{12})", re.ASCII)
_TILE = re.compile(r"audit/tiles/([0-9]{10})", re.ASCII)
_CHECKPOINT = re.compile(r"audit/checkpoints/([0-9]{12})", re.ASCII)
_REPORT = re.compile(r"audit/reports/([0-9a-f]{16})", re.ASCII)
_SIGNATURE = "\N{EM DASH} "
_ED25519 = b"\1"


def folder(tile: int) -> str:
    """Below what the leaves of a tile rest."""
    return f"{LEAVES}{tile:010}/"


def leaf_name(number: int) -> str:
    """The object of a leaf."""
    return f"{folder(number // TILE)}{number:012}"


def tile_name(tile: int) -> str:
    """The object of a tile."""
    return f"{TILES}{tile:010}"


def checkpoint_name(size: int) -> str:
    """The object of the checkpoint of so many leaves."""
    return f"{CHECKPOINTS}{size:012}"


def leaf_number(name: str) -> int | None:
    """Inverse of `leaf_name`; None for what is none."""
    found = _LEAF.fullmatch(name)
    number = int(found[2]) if found else -1
    return number if found and number // TILE == int(found[1]) else None


def tile_number(name: str) -> int | None:
    """Inverse of `tile_name`; None for what is none."""
    found = _TILE.fullmatch(name)
    return int(found[1]) if found else None


def checkpoint_size(name: str) -> int | None:
    """Inverse of `checkpoint_name`; None for what is none."""
    found = _CHECKPOINT.fullmatch(name)
    return int(found[1]) if found else None


def report_name(run: str) -> str:
    """The object of a drill's report."""
    return f"{REPORTS}{run}"


def report_run(name: str) -> str | None:
    """Inverse of `report_name`; None for what is none."""
    found = _REPORT.fullmatch(name)
    return found[1] if found else None


def is_ours(name: str) -> bool:
    """Whether something of the log has this name."""
    readers = (leaf_number, tile_number, checkpoint_size, report_run)
    return any(of(name) is not None for of in readers)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """So many leaves, and the root over them, as a writer signed it; `note` is the text."""

    repository: bytes
    size: int
    frontier: tuple[bytes, ...]
    time: datetime
    epoch: int
    writer: str
    note: str

    @property
    def root(self) -> bytes:
        """The root."""
        return root_of(self.frontier)


def sign_checkpoint(
    keyset: Keyset, size: int, frontier: Sequence[bytes], now: datetime
) -> Checkpoint:
    """Sign a checkpoint as this writer."""
    origin = _origin(keyset.repository)
    text = "".join(
        f"{line}\n"
        for line in (
            origin,
            size,
            _base64(root_of(frontier)),
            f"time {now.astimezone(UTC).isoformat()}",
            f"epoch {keyset.epoch}",
            f"writer {keyset.writer_name}",
            f"signer {_base64(keyset.signing_public)}",
            f"certificate {_base64(keyset.certificate)}",
            f"frontier {_base64(b''.join(frontier))}",
        )
    )
    signature = keysets.sign(keyset, text.encode())
    marked = _base64(_key_hash(origin, keyset.signing_public) + signature)
    return open_checkpoint(
        f"{text}\n{_SIGNATURE}{origin} {marked}\n", keyset.repository, keyset.admin_public
    )


def open_checkpoint(note: str, repository: bytes, admin_public: bytes) -> Checkpoint:
    """Read a note whose signature holds; ValueError when it does not, or is another repository's."""
    if len(note) > NOTE_LIMIT:
        raise ValueError("it is too long for a checkpoint")
    text, gap, signatures = note.rpartition("\n\n")
    lines = text.split("\n")
    if not gap or len(lines) < 3:
        raise ValueError("it is not a checkpoint")
    text += "\n"
    if lines[0] != _origin(repository):
        raise ValueError("it is the checkpoint of another log")
    said = dict(line.split(" ", 1) for line in lines[3:] if " " in line)
    try:
        size = _number(lines[1])
        root = _bytes(lines[2])
        signer, certificate = _bytes(said["signer"]), _bytes(said["certificate"])
        frontier, epoch = _hashes(_bytes(said["frontier"])), _number(said["epoch"])
        time, writer = datetime.fromisoformat(said["time"]), said["writer"]
    except KeyError as fault:
        raise ValueError(f"it is a checkpoint without {fault.args[0]}") from None
    if time.tzinfo is None:
        raise ValueError("its time has no zone")
    key = _key_hash(lines[0], signer)
    signature = _signature(signatures, lines[0], key)
    keysets.verify(
        admin_public,
        repository,
        epoch,
        writer_name=writer,
        signing_public=signer,
        certificate=certificate,
        signature=signature,
        message=text.encode(),
    )
    if len(frontier) != size.bit_count() or root_of(frontier) != root:
        raise ValueError("its frontier is not that of its root")
    return Checkpoint(repository, size, frontier, time, epoch, writer, note)


def _signature(lines: str, name: str, key: bytes) -> bytes:
    for line in lines.split("\n"):
        if not line.startswith(_SIGNATURE):
            continue
        whose, _, text = line[len(_SIGNATURE) :].partition(" ")
        if whose == name and (marked := _bytes(text))[:4] == key and len(marked) == 4 + 64:
            return marked[4:]
    raise ValueError("it has no signature of its signer")


def _origin(repository: bytes) -> str:
    return f"strongroom/audit/{repository.hex()}"


def _key_hash(name: str, public: bytes) -> bytes:
    """Which key signed, as C2SP signed-note tells it."""
    return sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or (text != "0" and text[0] == "0"):
        raise ValueError("a number in it is none")
    return int(text)


def _hashes(data: bytes) -> tuple[bytes, ...]:
    if len(data) % HASH:
        raise ValueError("its frontier is no list of hashes")
    return tuple(data[at : at + HASH] for at in range(0, len(data), HASH))
