"""Where a source stands: what of it can be recovered, what was proved, what was promised. PURE.

    ok          recoverable, proved not long ago, and every promise is kept
    unproved    recoverable and no promise is missed, but nobody proved it (lately)
    overdue     the same, but a backup was due and did not run
    missed      recoverable, and a promise is not kept
    none        nothing of it can be recovered

Rule: a promise that could not be measured is never counted as kept, and nothing is ok that was not
proved. What is proved is a green restore drill, or a check that read everything that is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Literal

from strongroom.rules.durations import Duration
from strongroom.rules.sizes import show_seconds

Word = Literal["ok", "unproved", "overdue", "missed", "none"]
By = Literal["drill", "check"]

PROOF_HOLDS = timedelta(days=100)  # a quarter and a few days: the seed tests every quarter


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time every moment of which can be recovered; both ends included."""

    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class Gap:
    """Time between two spans of which no moment can be recovered, and why."""

    first: datetime
    last: datetime
    why: str = ""

    @property
    def seconds(self) -> float:
        """How long."""
        return (self.last - self.first).total_seconds()


@dataclass(frozen=True, slots=True)
class Proof:
    """An attempt at a proof: `at` is the moment that was restored. A slow one proves as well as a
    green one, an incomplete one shows nothing, a red one that something does not restore."""

    ended: datetime
    by: By
    word: Literal["green", "slow", "incomplete", "red"] = "green"
    at: datetime | None = None
    what: str = ""

    @property
    def proves(self) -> bool:
        """Whether it shows that the backup restores, in whatever time."""
        return self.word in ("green", "slow")


@dataclass(frozen=True, slots=True)
class Took:
    """How long a restore took, in seconds."""

    seconds: float
    by: Literal["drill", "restore"]
    ended: datetime


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a source. `moments` are backups that can each be restored to their own moment,
    ascending; `spans` what can be recovered in between (physical backups). `unusable`: backups that
    do not restore, and why. `proofs` by their end; `since`: since when the source is ours; `due`:
    when the backup after the newest one is due; `missed`: times that came and nobody served."""

    name: str
    kind: str = ""
    backups: int = 0
    moments: Sequence[datetime] = ()
    spans: Sequence[Span] = ()
    gaps: Sequence[Gap] = ()
    unusable: Sequence[str] = ()
    proofs: Sequence[Proof] = ()
    took: Took | None = None
    rpo: Duration | None = None
    rto: Duration | None = None
    drill_every: Duration | None = None
    since: datetime | None = None
    due: datetime | None = None
    missed: Sequence[datetime] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """The verdict on a source, with its reasons. Seconds are None where nothing is known.

    `rpo_seconds`: what would be lost if the source were lost now; `rto_seconds`: how long the newest
    drill took to restore, or else the newest restore. `reasons` say why it is not ok.
    """

    name: str
    kind: str
    word: Word
    missed: bool
    reasons: tuple[str, ...]
    backups: int
    first: datetime | None = None
    until: datetime | None = None
    spans: tuple[Span, ...] = ()
    gaps: tuple[Gap, ...] = ()
    unusable: tuple[str, ...] = ()
    proved: Proof | None = None
    failed: Proof | None = None
    drilled: datetime | None = None
    drill_every: Duration | None = None
    rpo_seconds: float | None = None
    rpo: Duration | None = None
    took: Took | None = None
    rto: Duration | None = None
    due: datetime | None = None
    overdue: bool = False

    @property
    def gap_seconds(self) -> float:
        """Time between `first` and `until` of which no moment can be recovered."""
        return sum(gap.seconds for gap in self.gaps)

    @property
    def rto_seconds(self) -> float | None:
        """How long a restore took."""
        return None if self.took is None else self.took.seconds


def stand(known: Known, *, now: datetime) -> Standing:
    """Judge one source; times are aware."""
    ends = [*known.moments, *(span.last for span in known.spans)]
    begins = [*known.moments, *(span.first for span in known.spans)]
    until = max(ends, default=None)
    proved = next((one for one in reversed(known.proofs) if one.proves), None)
    newest = known.proofs[-1] if known.proofs else None
    failed = newest if newest is not None and not newest.proves else None
    missed = [*_lost(known, until, now), *_slow(known, failed), *_not_drilled(known, now)]
    late = [f"a backup was due {_day(max(known.missed))} and did not run"] if known.missed else []
    unproved = _unproved(proved, failed, now) if until is not None else []
    promised = any(one is not None for one in (known.rpo, known.rto, known.drill_every))
    if until is None:
        word: Word = "none"
        missed = [_nothing(known)]
    elif missed:
        word = "missed"
    else:
        word = "overdue" if late else "unproved" if unproved else "ok"
    return Standing(
        known.name,
        known.kind,
        word,
        word == "missed" or (word == "none" and promised),
        (*missed, *late, *unproved),
        known.backups,
        min(begins, default=None),
        until,
        tuple(known.spans),
        tuple(known.gaps),
        tuple(known.unusable),
        proved,
        failed,
        next((one.ended for one in reversed(known.proofs) if _green_drill(one)), None),
        known.drill_every,
        None if until is None else max(0.0, (now - until).total_seconds()),
        known.rpo,
        known.took,
        known.rto,
        known.due,
        bool(known.missed),
    )


def _nothing(known: Known) -> str:
    if known.unusable:
        return f"no backup can be restored: {known.unusable[-1]}"
    return "there is no backup"


def _lost(known: Known, until: datetime | None, now: datetime) -> list[str]:
    if known.rpo is None or until is None or until >= known.rpo.before(now):
        return []
    age = show_seconds((now - until).total_seconds())
    return [f"{age} would be lost now; at most {known.rpo} is promised"]


def _slow(known: Known, failed: Proof | None) -> list[str]:
    if known.rto is None:
        return []
    if failed is not None and (failed.by, failed.word) == ("drill", "red"):
        return [f"the newest drill, {_day(failed.ended)}, was red: {failed.what}"]
    took = known.took
    if took is None or took.seconds <= known.rto.approximate_seconds:
        return []
    return [f"a {took.by} took {show_seconds(took.seconds)}; {known.rto} is promised"]


def _not_drilled(known: Known, now: datetime) -> list[str]:
    """The promise that it is restored every so often, for the sake of proof."""
    if known.drill_every is None:
        return []
    green = [one.ended for one in known.proofs if _green_drill(one)]
    since = green[-1] if green else known.since
    if since is None or since >= known.drill_every.before(now):
        return []
    last = f"the last green drill was {_day(since)}" if green else "no drill was green yet"
    return [f"{last}; one every {known.drill_every} is promised"]


def _green_drill(proof: Proof) -> bool:
    return (proof.by, proof.word) == ("drill", "green")


def _unproved(proved: Proof | None, failed: Proof | None, now: datetime) -> list[str]:
    if failed is not None:
        return [f"the newest {failed.by} was {failed.word}: {failed.what}".rstrip(": ")]
    if proved is None:
        return ["nobody has proved that it restores: `strongroom drill run`"]
    if now - proved.ended > PROOF_HOLDS:
        return [f"last proved {_day(proved.ended)}, more than {PROOF_HOLDS.days} days ago"]
    return []


def joined(spans: Iterable[Span]) -> list[Span]:
    """Spans in order; those that meet or overlap are one."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.first, span.last)):
        if found and span.first <= found[-1].last:
            found[-1] = Span(found[-1].first, max(found[-1].last, span.last))
        else:
            found.append(span)
    return found


def gaps_between(spans: Sequence[Span], why: Sequence[tuple[datetime, str]] = ()) -> list[Gap]:
    """What lies between joined spans. `why` tells of windows, by the moment that each ends at."""
    reasons = dict(why)
    return [
        Gap(before.last, after.first, reasons.get(before.last, ""))
        for before, after in pairwise(spans)
    ]


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}Z"


__all__ = [
    "PROOF_HOLDS",
    "By",
    "Gap",
    "Known",
    "Proof",
    "Span",
    "Standing",
    "Took",
    "Word",
    "gaps_between",
    "joined",
    "stand",
]
