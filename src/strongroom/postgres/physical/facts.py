"""What a physical backup says of itself: the facts of its snapshot. PURE.

The tree of such a snapshot:

    data/…               the data directory; backup_label, tablespace_map, backup_manifest and
                         global/pg_control among the rest
    tablespaces/<oid>/…  each tablespace, from below its location: PG_15_…
    config/…             configuration outside the data directory, by absolute path without its "/"

Links in pg_tblspc are no entries: they follow from `tablespaces`. Positions are ints here and
`X/X` in JSON, raw bytes are base64 there (paths of bad pages hexadecimal), times are UTC by the
server's clock.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from strongroom.format.wal import DEFAULT_SEGMENT_SIZE, lsn_text, parse_lsn

FORMAT = 1
METHOD = "physical"

DATA, TABLESPACES, CONFIG = b"data", b"tablespaces", b"config"
LABEL, MAP, MANIFEST = b"data/backup_label", b"data/tablespace_map", b"data/backup_manifest"
CONTROL = b"data/global/pg_control"

BLOCK_SIZE = 8192
SEGMENT_BLOCKS = 131072

Via = Literal["local", "stream"]


@dataclass(frozen=True, slots=True)
class BadPage:
    """A page whose checksum is wrong on the server: path in the tree, number in its file.

    `found` is the checksum on the page, `expected` what its bytes give.
    """

    path: bytes
    block: int
    found: int
    expected: int


@dataclass(frozen=True, slots=True)
class Tablespace:
    """A tablespace: its oid in decimal, and where it was on the server."""

    oid: str
    location: bytes


@dataclass(frozen=True, slots=True)
class PhysicalFacts:
    """The facts of a physical backup. `server` is `ServerFacts.as_json()`.

    Recovery begins at `redo_lsn` of `checkpoint_lsn`; `start_lsn` is what pg_backup_start gave (the
    same position as `redo_lsn`) and `stop_lsn` is where the copy is consistent: the backup is good
    only with every segment of WAL from the one that holds `start_lsn` to the one that holds the
    byte before `stop_lsn`, on `timeline`.
    """

    via: Via
    server: Mapping[str, Any]
    system_id: int
    timeline: int
    start_lsn: int
    stop_lsn: int
    redo_lsn: int
    checkpoint_lsn: int
    start_time: datetime
    stop_time: datetime
    backup_label: bytes
    tablespace_map: bytes = b""
    wal_segment_size: int = DEFAULT_SEGMENT_SIZE
    block_size: int = BLOCK_SIZE
    segment_blocks: int = SEGMENT_BLOCKS
    checksums: bool = False
    bad_pages: tuple[BadPage, ...] = ()
    from_standby: bool = False
    tablespaces: tuple[Tablespace, ...] = ()
    external: tuple[bytes, ...] = ()  # absolute paths
    left_out: Mapping[str, Any] = field(default_factory=dict)
    size_by_kind: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What is worth telling and nothing relies on: counts of files skipped as unchanged and such."""

    def log(self) -> dict[str, str]:
        """Which log the backup needs, for its commit record: a prune reads it without these facts."""
        return {
            "system_id": str(self.system_id),
            "start_lsn": lsn_text(self.start_lsn),
            "wal_segment_size": str(self.wal_segment_size),
        }

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "format": FORMAT,
            "method": METHOD,
            "via": self.via,
            "server": dict(self.server),
            "system_id": str(self.system_id),
            "timeline": self.timeline,
            "start_lsn": lsn_text(self.start_lsn),
            "stop_lsn": lsn_text(self.stop_lsn),
            "redo_lsn": lsn_text(self.redo_lsn),
            "checkpoint_lsn": lsn_text(self.checkpoint_lsn),
            "start_time": self.start_time.astimezone(UTC).isoformat(),
            "stop_time": self.stop_time.astimezone(UTC).isoformat(),
            "wal_segment_size": self.wal_segment_size,
            "block_size": self.block_size,
            "segment_blocks": self.segment_blocks,
            "checksums": self.checksums,
            "bad_pages": [
                {
                    "path": page.path.hex(),
                    "block": page.block,
                    "found": page.found,
                    "expected": page.expected,
                }
                for page in self.bad_pages
            ],
            "from_standby": self.from_standby,
            "backup_label": _text(self.backup_label),
            "tablespace_map": _text(self.tablespace_map),
            "tablespaces": [
                {"oid": one.oid, "location": _text(one.location)} for one in self.tablespaces
            ],
            "external": [_text(path) for path in self.external],
            "left_out": dict(self.left_out),
            "size_by_kind": dict(self.size_by_kind),
            "notes": dict(self.notes),
        }

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> PhysicalFacts:
        """Inverse of `as_json`; ValueError when it is something else, or newer than this program."""
        if not is_physical(body):
            raise ValueError("not the facts of a physical backup")
        if body.get("format") != FORMAT:
            raise ValueError(f"facts of format {body.get('format')!r}; this program reads {FORMAT}")
        try:
            return _read(body)
        except (KeyError, TypeError, AttributeError) as fault:
            raise ValueError(f"the facts of a physical backup are incomplete: {fault!r}") from None


def is_physical(body: Mapping[str, Any]) -> bool:
    """Are these the facts of a physical backup?"""
    return body.get("method") == METHOD


def _read(body: Mapping[str, Any]) -> PhysicalFacts:
    via: Via = "stream" if body["via"] == "stream" else "local"
    if body["via"] != via:
        raise ValueError(f"a physical backup is taken local or by stream, not {body['via']!r}")
    return PhysicalFacts(
        via=via,
        server=body["server"],
        system_id=int(body["system_id"]),
        timeline=int(body["timeline"]),
        start_lsn=parse_lsn(body["start_lsn"]),
        stop_lsn=parse_lsn(body["stop_lsn"]),
        redo_lsn=parse_lsn(body["redo_lsn"]),
        checkpoint_lsn=parse_lsn(body["checkpoint_lsn"]),
        start_time=_moment(body["start_time"]),
        stop_time=_moment(body["stop_time"]),
        backup_label=_bytes(body["backup_label"]),
        tablespace_map=_bytes(body["tablespace_map"]),
        wal_segment_size=int(body["wal_segment_size"]),
        block_size=int(body["block_size"]),
        segment_blocks=int(body["segment_blocks"]),
        checksums=bool(body["checksums"]),
        bad_pages=tuple(
            BadPage(
                bytes.fromhex(page["path"]),
                int(page["block"]),
                int(page["found"]),
                int(page["expected"]),
            )
            for page in body["bad_pages"]
        ),
        from_standby=bool(body["from_standby"]),
        tablespaces=tuple(
            Tablespace(_oid(one["oid"]), _bytes(one["location"])) for one in body["tablespaces"]
        ),
        external=tuple(_bytes(path) for path in body["external"]),
        left_out=dict(body.get("left_out", {})),
        size_by_kind=dict(body.get("size_by_kind", {})),
        notes=dict(body.get("notes", {})),
    )


def _oid(text: str) -> str:
    # It becomes a name in pg_tblspc and in the tree: nothing but digits may.
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"not the oid of a tablespace: {text!r}")
    return text


def _moment(text: str) -> datetime:
    when = datetime.fromisoformat(text)
    if when.tzinfo is None:
        raise ValueError(f"a time without its zone: {text!r}")
    return when.astimezone(UTC)


def _text(raw: bytes) -> str:
    return b64encode(raw).decode("ascii")


def _bytes(text: str) -> bytes:
    return b64decode(text, validate=True)


__all__ = [
    "CONFIG",
    "CONTROL",
    "DATA",
    "LABEL",
    "MANIFEST",
    "MAP",
    "TABLESPACES",
    "BadPage",
    "PhysicalFacts",
    "Tablespace",
    "is_physical",
]
