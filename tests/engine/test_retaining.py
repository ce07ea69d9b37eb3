"""operations/retaining.py on real records: what the plan is told of backups and of their fates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from rooms import Clock, committed, new_room, open_room, take
from strongroom.operations.retaining import Judged, expire, hold
from strongroom.operations.retaining import judge as judge_source
from strongroom.repository.fates import Fates
from strongroom.repository.repository import Repository
from strongroom.rules.durations import parse_duration
from strongroom.rules.retention import Policy
from strongroom.storage.memory import MemoryStorage

BEGIN = datetime(2026, 10, 1, 2, tzinfo=UTC)
DAY = timedelta(days=1)
LOG = {"system_id": "7", "start_lsn": "0/2000028", "wal_segment_size": "16777216"}


class Untimed(MemoryStorage):
    """Tells no times: those of the records count."""

    def list(self, prefix: str):  # type: ignore[no-untyped-def]
        for entry in super().list(prefix):
            yield type(entry)(entry.name, entry.size)


def backed_up(storage: MemoryStorage, days: dict[int, bool | None]) -> Repository:
    """A source "db" that was backed up on these days: physical, or not, or a vault (None)."""
    room = new_room(storage, clock=Clock(BEGIN))
    for day, physical in days.items():
        on_day = open_room(storage, day, clock=Clock(BEGIN + DAY * day))
        kind = "files" if physical is None else "postgres"
        take(on_day, "db", {b"x": b"y"}, kind=kind, log=LOG if physical else {})
    return room


def judge(room: Repository, policy: Policy, day: float, *, physical: bool) -> Judged:
    now = BEGIN + DAY * day
    return judge_source(room, "db", policy, physical=physical, now=now, store_now=None)


def stays(judged: Judged) -> list[int]:
    rows = [row for row in judged.plan.rows if row.stays]
    return [round((row.backup.time - BEGIN) / DAY) for row in rows]


def test_a_dump_is_no_base_of_a_recovery_window_whatever_is_configured_now() -> None:
    """The source was physical, then logical for days, then physical again."""
    room = backed_up(Untimed(), {0: True, 1: True, 2: False, 3: False, 5: True, 8: True})
    policy = Policy(pitr=parse_duration("6d"))
    for physical in (True, False):
        judged = judge(room, policy, 9.5, physical=physical)
        assert stays(judged) == [1, 5, 8] and not judged.plan.frozen


def test_backups_of_before_their_records_told_are_bases() -> None:
    room = backed_up(Untimed(), {0: False, 1: False, 2: False, 4: False, 8: False})
    policy = Policy(pitr=parse_duration("7d"))
    assert stays(judge(room, policy, 8.2, physical=True)) == [1, 2, 4, 8]


def test_a_recovery_window_alone_takes_no_backup_of_a_source_without_bases() -> None:
    room = backed_up(Untimed(), {0: None, 1: None, 2: None})
    policy = Policy(pitr=parse_duration("1d"))
    assert stays(judge(room, policy, 2.5, physical=False)) == [0, 1, 2]


def test_a_fate_that_does_not_open_holds_for_good_and_stops_nobody() -> None:
    """It was held until a day that is over; what was decided since, nobody can read."""
    storage = Untimed()
    room = backed_up(storage, {0: None, 1: None, 2: None, 3: None})
    first, second, *_ = committed(room)
    until = BEGIN + DAY
    hold(room, first, until=until, why="", now=BEGIN)
    fates = Fates(room.catalogue)
    fates.decide(fates.of(first.name), "hold", now=BEGIN, until=None, why="for good")
    name = next(name for name in storage.objects if name.startswith("fates/") and name[-1] == "2")
    storage.objects[name] = storage.objects[name][:-1]
    judged = judge(room, Policy(last=2), 3.2, physical=False)
    assert stays(judged) == [0, 2, 3]
    assert expire(room, judged, now=BEGIN + DAY * 3) == [second]
