"""Restored to a target and started: the ledger is exactly what was committed by then."""

from __future__ import annotations

import random

import pytest

from postgres.recovery.story import Story
from strongroom.errors import Damaged
from strongroom.postgres.recovery.settings import Recovery


def upto(number: int) -> list[int]:
    return list(range(1, number + 1))


def test_to_a_time_inclusive_and_exclusive(story: Story) -> None:
    chosen = random.Random(story.server.installation.version[0]).choice(story.commits[11:25])
    assert story.ledger_at(Recovery(time=chosen.time)) == upto(chosen.number)
    found = story.ledger_at(Recovery(time=chosen.time, exclusive=True))
    assert found == upto(chosen.number - 1)


def test_to_the_end_and_no_further_than_the_backup(story: Story) -> None:
    assert story.ledger_at(Recovery()) == upto(31)
    assert story.ledger_at(Recovery(immediate=True)) == upto(10)


def test_to_a_name_a_transaction_and_a_position(story16: Story) -> None:
    assert story16.ledger_at(Recovery(name="half-way")) == upto(20)
    chosen = story16.commits[14]
    assert story16.ledger_at(Recovery(xid=chosen.xid)) == upto(15)
    # The record that begins where the commit ends is the first one behind it.
    assert story16.ledger_at(Recovery(lsn=chosen.lsn, exclusive=True)) == upto(15)


def test_trap_47_beyond_the_last_commit_postgresql_does_not_open(story16: Story) -> None:
    with pytest.raises(Damaged, match="end of the log before the target"):
        story16.ledger_at(Recovery(time=story16.commits[-1].time))
