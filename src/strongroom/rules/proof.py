"""Which backups are proved, by what the audit log tells of checks and drills. PURE.

    verified   a check read everything that the backup relies on and found it as it was written, or a
               drill restored it (for a moment behind it: the base) and everything held
    damaged    a check found something of it that is not as it was written

The newest word on a backup counts: what a later check finds damaged, or a drill of it that fails,
takes back what an earlier one said. Where nobody looked, a backup is neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from strongroom.rules.drill import Drilled, Recorded

WHOLE, HURT = "whole", "damaged_snapshots"
"""What a check's run says in its detail: ids of the backups it proved whole, and of those it found hurt."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Ids of the backups that are verified, and of those that are damaged."""

    verified: frozenset[str] = frozenset()
    damaged: frozenset[str] = frozenset()


NOTHING = Proof()


def proved(runs: Iterable[Recorded]) -> Proof:
    """What runs tell, in the order of the log."""
    verified: set[str] = set()
    damaged: set[str] = set()
    for run in runs:
        if run.type == "check":
            whole, hurt = checked(run)
            damaged = damaged - whole | hurt
            verified = (verified | whole) - hurt
        elif run.type == "drill" and run.snapshot:
            drilled = Drilled.from_run(run)
            if drilled.verifies:
                verified.add(run.snapshot)
            elif drilled.verdict == "red":
                verified.discard(run.snapshot)
    return Proof(frozenset(verified), frozenset(damaged))


def checked(run: Recorded) -> tuple[set[str], set[str]]:
    """Ids of the backups that a check proved whole, and of those that it found hurt."""
    return _ids(run.detail.get(WHOLE)), _ids(run.detail.get(HURT))


def _ids(value: Any) -> set[str]:
    return {each for each in value if isinstance(each, str)} if isinstance(value, list) else set()


__all__ = ["HURT", "NOTHING", "WHOLE", "Proof", "checked", "proved"]
