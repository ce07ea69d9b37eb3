"""pg_control: what a cluster is, in the 300 bytes that it is started by. PURE.

Source: PostgreSQL src/include/catalog/pg_control.h, ControlFileData and CheckPoint, as compiled on
64-bit machines of little endian. The layout is the same from 13 to 16 (version 1300); 17 (1700) has
the WAL level in a gap of the checkpoint, 18 (1800) one more flag before the nonce, which moves the
checksum.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum

from strongroom.postgres.physical.crc import crc32c

FILE_SIZE = 8192
"""The file is as long; what follows the checksum is zero."""

_FLOAT = 1234567.0
_CRC_AT = {1300: 288, 1700: 288, 1800: 292}
_U32 = struct.Struct("<I")

# system id, control version, catalogue version, state, time, checkpoint, then the copy of its
# record: redo, timeline, previous timeline, full page writes, (WAL level of 18), next xid, …
_HEAD = struct.Struct("<QIIi4xqQ")
_CHECKPOINT_AT = 40
_CHECKPOINT = struct.Struct("<QII?7xQIIIIIII4xq")
_RECOVERY_AT = 128  # unlogged LSN, minimum recovery point and its timeline, backup start and end
_RECOVERY = struct.Struct("<QQI4xQQ?3xi?3xiiiii?3x")
_SHAPE_AT = 204  # alignment, float, block, segment, WAL block and segment, names, …, checksums
_SHAPE = struct.Struct("<IdIIIIIIII?3xI")


class State(IntEnum):
    """What a cluster was doing when pg_control was written."""

    STARTUP = 0
    SHUTDOWNED = 1
    SHUTDOWNED_IN_RECOVERY = 2
    SHUTDOWNING = 3
    IN_CRASH_RECOVERY = 4
    IN_ARCHIVE_RECOVERY = 5
    IN_PRODUCTION = 6


@dataclass(frozen=True, slots=True)
class ControlFile:
    """What pg_control says. Positions are ints, sizes bytes, but for `segment_blocks`."""

    system_id: int
    version: int  # of the layout: 1300, 1700 or 1800
    catalog_version: int
    state: State
    time: datetime
    checkpoint: int
    redo: int
    timeline: int
    previous_timeline: int
    full_page_writes: bool
    next_xid: int
    checkpoint_time: datetime
    min_recovery_point: int
    min_recovery_timeline: int
    backup_start: int
    backup_end: int
    backup_end_required: bool
    wal_level: int
    wal_log_hints: bool
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int
    block_size: int
    segment_blocks: int  # blocks in a file of a relation: RELSEG_SIZE
    wal_block_size: int
    wal_segment_size: int
    checksum_version: int  # of data pages; 0 is none

    @classmethod
    def parse(cls, data: bytes | memoryview) -> ControlFile:
        """Read pg_control; ValueError when it is none of 13 to 18, or its checksum is wrong."""
        if len(data) < _U32.size + max(_CRC_AT.values()):
            raise ValueError(f"pg_control has {len(data)} bytes")
        system_id, version, catalog, state, time, checkpoint = _HEAD.unpack_from(data)
        crc_at = _CRC_AT.get(version)
        if crc_at is None:
            raise ValueError(f"pg_control of version {version} is of no PostgreSQL from 13 to 18")
        found, expected = _U32.unpack_from(data, crc_at)[0], crc32c(memoryview(data)[:crc_at])
        if found != expected:
            raise ValueError(f"the checksum of pg_control is {found:08x}, not {expected:08x}")
        redo, timeline, previous, pages, next_xid, *_, checkpoint_time = _CHECKPOINT.unpack_from(
            data, _CHECKPOINT_AT
        )
        recovery = _RECOVERY.unpack_from(data, _RECOVERY_AT)
        _, least, least_timeline, start, end, required, wal_level, hints = recovery[:8]
        connections, workers, senders, prepared, locks, _ = recovery[8:]
        _, number, block, blocks, wal_block, wal_segment, *_, checksums = _SHAPE.unpack_from(
            data, _SHAPE_AT
        )
        if number != _FLOAT:
            raise ValueError("pg_control was written by a machine of another kind")
        _check_sizes(block, blocks, wal_segment)
        return cls(
            system_id,
            version,
            catalog,
            State(state),
            _moment(time),
            checkpoint,
            redo,
            timeline,
            previous,
            pages,
            next_xid,
            _moment(checkpoint_time),
            least,
            least_timeline,
            start,
            end,
            required,
            wal_level,
            hints,
            connections,
            workers,
            senders,
            prepared,
            locks,
            block,
            blocks,
            wal_block,
            wal_segment,
            checksums,
        )

    @property
    def segment_size(self) -> int:
        """Bytes of a whole file of a relation: 1 GiB unless compiled otherwise."""
        return self.block_size * self.segment_blocks


_STARTS = struct.Struct("<QQII")  # checkpoint, its redo and its timelines
_STARTS_AT = 32
_BACKUP = struct.Struct("<QI4xQQ?")  # minimum recovery point and its timeline, start, end, required
_BACKUP_AT = 136


def as_labelled(data: bytes, start: int, checkpoint: int, timeline: int, *, standby: bool) -> bytes:
    """pg_control as PostgreSQL makes it of a backup_label, which it then does not need any more.

    Recovery begins where the backup did, and ends in an error before the end of the backup, whether
    backup_label is there or not. `standby`: the backup was taken from one, whose minimum recovery
    point is the end of the backup.
    """
    control = ControlFile.parse(data)
    made = bytearray(data)
    _STARTS.pack_into(made, _STARTS_AT, checkpoint, start, timeline, timeline)
    least, of, end = start, timeline, 0
    if standby:
        least, of = control.min_recovery_point, control.min_recovery_timeline
        end = least
    _BACKUP.pack_into(made, _BACKUP_AT, least, of, start, end, True)
    crc_at = _CRC_AT[control.version]
    _U32.pack_into(made, crc_at, crc32c(memoryview(made)[:crc_at]))
    return bytes(made)


def _check_sizes(block: int, blocks: int, wal_segment: int) -> None:
    """A checksum of 32 bits is no proof: what we divide by is looked at."""
    if block not in (1024, 2048, 4096, 8192, 16384, 32768) or not blocks:
        raise ValueError(f"pg_control names blocks of {block} bytes, {blocks} a file")
    if not 1 << 20 <= wal_segment <= 1 << 30 or wal_segment & (wal_segment - 1):
        raise ValueError(f"pg_control names WAL segments of {wal_segment} bytes")


def _moment(seconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        raise ValueError(f"pg_control names a time that is none: {seconds}") from None


__all__ = ["FILE_SIZE", "ControlFile", "State", "as_labelled"]
