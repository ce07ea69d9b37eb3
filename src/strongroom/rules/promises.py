"""Is a source as recoverable as was promised? A verdict with its reasons.

    none     there is no backup at all
    late     the newest backup is older than the promised recovery point (rpo)
    kept     every promise that can be measured is kept
    open     nothing was promised

How long a restore takes (rto) is measured by drills; until one has run it is
said to be not measured, and never counted as kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from strongroom.rules.durations import Duration
from strongroom.rules.sizes import show_seconds

Word = Literal["none", "late", "kept", "open"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One word, whether a promise was missed, and why, in sentences."""

    word: Word
    missed: bool
    reasons: tuple[str, ...]


def judge(
    newest: datetime | None, *, rpo: Duration | None, rto: Duration | None, now: datetime
) -> Verdict:
    """Compare the promises with the moment of the newest backup; times are aware."""
    promised = rpo is not None or rto is not None
    if newest is None:
        return Verdict("none", promised, ("there is no backup",))
    reasons = []
    late = False
    if rpo is not None:
        late = newest < rpo.before(now)
        reasons.append(f"at most {rpo} may be lost: {'missed' if late else 'kept'}")
    if rto is not None:
        reasons.append(f"a restore may take {rto}: not measured yet")
    if not promised:
        return Verdict("open", False, ("nothing is promised",))
    return Verdict("late" if late else "kept", late, tuple(reasons))


@dataclass(frozen=True, slots=True)
class Measured:
    """How long a restore took, in seconds, and whether that was longer than promised."""

    seconds: float
    missed: bool
    text: str


def measure(began: datetime, rto: Duration | None, *, now: datetime) -> Measured:
    """Compare the time since `began` with the promise; both times are aware."""
    seconds = max(0.0, (now - began).total_seconds())
    taken = f"{show_seconds(seconds)} since the first step"
    if rto is None:
        return Measured(seconds, False, f"{taken}; nothing is promised")
    missed = rto.before(now) > began
    return Measured(seconds, missed, f"{taken}, promised {rto}: {'missed' if missed else 'kept'}")
