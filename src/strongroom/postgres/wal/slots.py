"""Replication slots as a server shows them, and whether a receiver is waited for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from strongroom.errors import StrongroomError
from strongroom.format.wal import lsn_text, parse_lsn
from strongroom.postgres.replication import Replication, ServerError
from strongroom.postgres.server import Conninfo, connect, translated
from strongroom.rules.sizes import show_size

READ_SINCE = 150000
LARGE = 16  # segments that an idle slot may hold back before somebody is told
_NAMES = re.compile(r'"(?:[^"]|"")*"|\*|[^\s,()"]+')
_UNSAFE = re.compile(r"[^a-z0-9_]")
_QUESTION = """
select active, restart_lsn::text, wal_status,
       pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
                            else pg_current_wal_lsn() end, restart_lsn)::bigint,
       (select setting::bigint from pg_settings where name = 'max_slot_wal_keep_size'),
       (select setting::bigint from pg_settings where name = 'wal_segment_size')
  from pg_replication_slots where slot_name = %s and slot_type = 'physical'
"""


@dataclass(frozen=True, slots=True)
class Slot:
    """A physical replication slot: `restart` is the oldest position that it keeps, None where it
    keeps nothing; `held` the bytes that it holds back; `limit` in bytes, None for no limit."""

    name: str
    active: bool
    restart: int | None
    status: str = ""  # reserved, extended, unreserved, lost; "" where that was not told
    held: int = 0
    limit: int | None = None
    segment_size: int = 16 << 20

    @property
    def lost(self) -> bool:
        """Whether log that it should keep is gone."""
        return self.status == "lost"

    @property
    def trouble(self) -> str | None:
        """What is amiss with it, and what it leads to."""
        if self.lost:
            return "it is lost: the server removed log that it was to keep"
        if self.status == "unreserved":
            return "it is about to be lost: the server removes its log at the next checkpoint"
        if self.restart is not None and not self.active and self.held > LARGE * self.segment_size:
            end = (
                "it fills the server's disk"
                if self.limit is None
                else f"it is lost at {show_size(self.limit)} (max_slot_wal_keep_size)"
            )
            return f"nobody reads it, and it holds back {show_size(self.held)} of log: {end}"
        return None

    def body(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.name,
            "active": self.active,
            "restart_lsn": None if self.restart is None else lsn_text(self.restart),
            "wal_status": self.status or None,
            "held": self.held,
            "limit": self.limit,
            "trouble": self.trouble,
        }


def slot_name(source: str) -> str:
    """The name of a source's slot, where none is configured."""
    return f"strongroom_{_UNSAFE.sub('_', source.lower())}"[:63]


def ask_slot(conninfo: Conninfo, name: str) -> Slot | None:
    """What a server says of a slot; None when there is none. Raises what `connect` does."""
    with translated(conninfo), connect(conninfo, statement_timeout=30) as connection:
        row = connection.execute(_QUESTION, [name]).fetchone()
    if row is None:
        return None
    active, restart, status, held, limit, size = row
    return Slot(
        name,
        active,
        None if restart is None else parse_lsn(restart),
        status or "",
        held or 0,
        None if limit is None or limit < 0 else limit << 20,
        size,
    )


def find_slot(replication: Replication, conninfo: Conninfo, name: str) -> Slot | None:
    """The same, also for a role that may do nothing but replicate, as far as the protocol tells."""
    try:
        return ask_slot(conninfo, name)
    except StrongroomError:
        if replication.version < READ_SINCE:
            raise
    try:
        kind, restart, *_ = replication.ask(f"READ_REPLICATION_SLOT {name}")[0]
    except ServerError as fault:
        raise StrongroomError(
            f"The server does not tell of its slot {name}: {fault.text}"
        ) from None
    if kind is None:
        return None
    return Slot(name, False, None if restart is None else parse_lsn(restart.decode()))


def awaited(names: str, receiver: str) -> bool:
    """Whether synchronous_standby_names may make a receiver one whose flush commits wait for."""
    words = [one.strip('"').replace('""', '"') for one in _NAMES.findall(names)]
    if "(" in names:
        words = words[1 + (words[0].lower() in ("first", "any")) :]
    return any(word == "*" or word.lower() == receiver.lower() for word in words)


__all__ = ["Slot", "ask_slot", "awaited", "find_slot", "slot_name"]
