"""How long a restore takes, as it goes on, against what was promised."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from strongroom.rules.durations import Duration
from strongroom.rules.sizes import show_seconds


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
