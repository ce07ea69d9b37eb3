"""What a server says of its own archiving: pg_stat_archiver, and how far it has written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from strongroom.format.wal import parse_lsn
from strongroom.postgres.server import Conninfo, connect, translated

_QUESTION = """
select archived_count, last_archived_wal, last_archived_time,
       failed_count, last_failed_wal, last_failed_time,
       case when pg_is_in_recovery() then coalesce(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            else pg_current_wal_lsn() end::text,
       (select setting::bigint from pg_settings where name = 'wal_segment_size'),
       current_setting('archive_mode')
  from pg_stat_archiver
"""


@dataclass(frozen=True, slots=True)
class Archiver:
    """Counts since the statistics were reset; `written` is a position, `segment_size` bytes."""

    archived: int
    last_archived: str | None
    last_archived_time: datetime | None
    failed: int
    last_failed: str | None
    last_failed_time: datetime | None
    written: int
    segment_size: int
    mode: str

    @property
    def failing(self) -> bool:
        """Whether the last thing that it tells of is a failure."""
        failed, archived = self.last_failed_time, self.last_archived_time
        return failed is not None and (archived is None or failed > archived)

    def body(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "archived": self.archived,
            "last_archived": self.last_archived,
            "last_archived_time": _text(self.last_archived_time),
            "failed": self.failed,
            "last_failed": self.last_failed,
            "last_failed_time": _text(self.last_failed_time),
            "failing": self.failing,
            "archive_mode": self.mode,
        }


def ask_archiver(dsn: str, password: str | None) -> Archiver:
    """Ask a server. Raises DatabaseUnreachable, KeyRefused or Refused."""
    conninfo = Conninfo.parse(dsn, password=password)
    with translated(conninfo), connect(conninfo, statement_timeout=30) as connection:
        row = connection.execute(_QUESTION).fetchone()
    assert row is not None
    archived, last, last_time, failed, last_failed, failed_time, written, size, mode = row
    return Archiver(
        archived, last, last_time, failed, last_failed, failed_time, parse_lsn(written), size, mode
    )


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat()
