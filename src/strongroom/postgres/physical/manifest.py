"""backup_manifest, as PostgreSQL writes it: every file of a backup with its size and sum. PURE.

Written in local mode so that `pg_verifybackup` can judge a restored directory, and read again to
judge one ourselves. Version 1 up to PostgreSQL 16, 2 (with the system identifier) from 17. Paths are
relative to the data directory, those of tablespaces begin with pg_tblspc/<oid>/. The sum at the end
is of every byte before its own line. Source: PostgreSQL backup_manifest.c, parse_manifest.c.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from strongroom.format.wal import lsn_text, parse_lsn

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_LINE = re.compile(rb'\n"Manifest-Checksum": "([0-9a-f]{64})"}\s*\Z')
_DIGEST_SIZES = {"CRC32C": 4, "SHA224": 28, "SHA256": 32, "SHA384": 48, "SHA512": 64, "NONE": 0}


@dataclass(frozen=True, slots=True)
class File:
    """A file of a backup. `modified` in seconds since 1970; `checksum` as PostgreSQL keeps it: a
    CRC32C's four bytes are little endian."""

    path: bytes
    size: int
    modified: int
    algorithm: str = "NONE"
    checksum: bytes = b""

    @classmethod
    def summed(cls, path: bytes, size: int, modified: int, crc: int) -> File:
        """A file whose CRC32C is known."""
        return cls(path, size, modified, "CRC32C", crc.to_bytes(4, "little"))

    @property
    def crc(self) -> int | None:
        """The CRC32C, if that is how it was summed."""
        return int.from_bytes(self.checksum, "little") if self.algorithm == "CRC32C" else None


@dataclass(frozen=True, slots=True)
class WalRange:
    """WAL that the backup needs."""

    timeline: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A whole manifest; `system_id` None is version 1."""

    files: Sequence[File]
    ranges: Sequence[WalRange]
    system_id: int | None = None

    def encode(self) -> bytes:
        """The bytes of backup_manifest."""
        version = 1 if self.system_id is None else 2
        parts = [f'{{ "PostgreSQL-Backup-Manifest-Version": {version},\n']
        if self.system_id is not None:
            parts.append(f'"System-Identifier": {self.system_id},\n')
        parts += ['"Files": [', *_lines(map(_file_line, self.files)), "\n],\n"]
        parts += ['"WAL-Ranges": [', *_lines(map(_range_line, self.ranges)), "\n],\n"]
        body = "".join(parts).encode()
        return body + b'"Manifest-Checksum": "%s"}\n' % hashlib.sha256(body).hexdigest().encode()

    @classmethod
    def parse(cls, text: bytes) -> Manifest:
        """Read backup_manifest; ValueError when it is not one, or its sum is wrong."""
        end = _LAST_LINE.search(text)
        if end is None:
            raise ValueError("a manifest ends with its sum")
        if hashlib.sha256(text[: end.start() + 1]).hexdigest().encode() != end[1]:
            raise ValueError("the sum of the manifest is wrong")
        try:
            body = json.loads(text)
            return _read(body)
        except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as fault:
            raise ValueError(f"not a manifest: {fault!r}") from None


def _lines(rows: Iterable[str]) -> Iterable[str]:
    for number, row in enumerate(rows):
        yield (",\n" if number else "\n") + row


def _file_line(file: File) -> str:
    try:
        path = f'"Path": {json.dumps(file.path.decode("utf-8"), ensure_ascii=False)}'
    except UnicodeDecodeError:
        path = f'"Encoded-Path": "{file.path.hex()}"'
    stamp = (_EPOCH + timedelta(seconds=file.modified)).strftime("%Y-%m-%d %H:%M:%S GMT")
    row = f'{{ {path}, "Size": {file.size}, "Last-Modified": "{stamp}"'
    if file.algorithm != "NONE":
        row += f', "Checksum-Algorithm": "{file.algorithm}", "Checksum": "{file.checksum.hex()}"'
    return row + " }"


def _range_line(one: WalRange) -> str:
    return (
        f'{{ "Timeline": {one.timeline}, "Start-LSN": "{lsn_text(one.start)}",'
        f' "End-LSN": "{lsn_text(one.end)}" }}'
    )


def _read(body: dict[str, Any]) -> Manifest:
    version = body["PostgreSQL-Backup-Manifest-Version"]
    if version not in (1, 2):
        raise ValueError(f"a manifest of version {version!r}")
    return Manifest(
        tuple(map(_read_file, body["Files"])),
        tuple(
            WalRange(int(one["Timeline"]), parse_lsn(one["Start-LSN"]), parse_lsn(one["End-LSN"]))
            for one in body["WAL-Ranges"]
        ),
        int(body["System-Identifier"]) if version == 2 else None,
    )


def _read_file(row: dict[str, Any]) -> File:
    encoded = row.get("Encoded-Path")
    path = bytes.fromhex(encoded) if encoded is not None else row["Path"].encode("utf-8")
    algorithm = row.get("Checksum-Algorithm", "NONE")
    checksum = bytes.fromhex(row.get("Checksum", ""))
    if _DIGEST_SIZES.get(algorithm) != len(checksum):
        raise ValueError(f"a sum of {len(checksum)} bytes for {algorithm!r}")
    size = int(row["Size"])
    if size < 0 or not path:
        raise ValueError("a file of a manifest has a path and a size")
    return File(path, size, _seconds(row.get("Last-Modified")), algorithm, checksum)


def _seconds(text: str | None) -> int:
    if text is None:
        return 0
    when = datetime.strptime(text, "%Y-%m-%d %H:%M:%S GMT").replace(tzinfo=UTC)
    return int((when - _EPOCH).total_seconds())


__all__ = ["File", "Manifest", "WalRange"]
