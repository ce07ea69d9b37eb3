"""A restored cluster is opened, goes on and archives: two histories, each recovered by its own way."""

from __future__ import annotations

import os
import time
from pathlib import Path

from postgres.recovery.story import Story
from strongroom.format.wal import SegmentName, parse_history
from strongroom.postgres.recovery.settings import Recovery
from strongroom.postgres.wal.records import Carry, scan_segment
from strongroom.progress import Silent
from strongroom.rules.recovery import Base, Held, Log, Target, can_restore


def test_trap_49_both_histories_are_reached(story16: Story) -> None:
    archive = story16.room.archive.folder
    sandbox = story16.sandbox()
    try:
        settings = {
            "archive_mode": "on",
            "archive_command": f'cp %p "{archive}/.%f" && mv "{archive}/.%f" "{archive}/%f"',
        }
        sandbox._settings = settings
        sandbox.recover(Recovery(name="half-way"), progress=Silent())
        with sandbox.connect() as connection:
            connection.execute("INSERT INTO ledger VALUES (1000)")
            row = connection.execute("SELECT clock_timestamp()").fetchone()
            assert row is not None
            connection.execute("INSERT INTO ledger VALUES (1001)")
            name = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
            assert name is not None
        wait_for(archive / name[0])
        wait_for(archive / "00000002.history")
    finally:
        sandbox.close()
    moment = row[0]
    log, base = read(story16, archive)
    verdict = can_restore([base], log, Target("time", time=moment))
    assert verdict.yes, verdict.reasons
    assert verdict.timeline == 2
    assert [run.timeline for run in verdict.runs] in ([1, 2], [2])
    found = story16.ledger_at(Recovery(time=moment, timeline=verdict.timeline))
    assert found == [*range(1, 21), 1000]
    # The first history goes on beside it.
    chosen = story16.commits[24]
    old = can_restore([base], log, Target("time", time=chosen.time, timeline=1))
    assert old.yes
    found = story16.ledger_at(Recovery(time=chosen.time, timeline=old.timeline))
    assert found == [*range(1, 26)]


def wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path.name} is not archived")


def read(story: Story, archive: Path) -> tuple[Log, Base]:
    """What is archived, as the rules see it."""
    held: dict[int, Held] = {}
    names = sorted(name for name in os.listdir(archive) if len(name) == 24)
    before: Carry | None = None
    for name in names:
        segment = SegmentName.parse(name)
        facts, before = scan_segment((archive / name).read_bytes(), segment, before)
        history = archive / f"{name[:8]}.history"
        forks = parse_history(history.read_bytes()) if history.exists() else None
        one = held.setdefault(segment.timeline, Held({}, forks))
        one.segments[segment.number] = facts  # type: ignore[index]
    told = story.facts
    base = Base("base", told.timeline, told.start_lsn, told.stop_lsn, told.stop_time)
    return Log(16 << 20, held), base
