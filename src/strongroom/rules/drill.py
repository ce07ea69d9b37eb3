"""What a drill is worth: its steps, its verdict, which moment it restores, and its leaf. PURE.

A drill is green only when everything that was demanded of it was done and held. Amber is a step that
held as far as it could be looked at here, and says what could not be (another version of the
collations, a checker that is not installed): such a drill proves the backup and is said to have notes.
One that only took longer than promised proves the backup too, and is `missed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol, TypeVar, get_args

StepVerdict = Literal["green", "amber", "red", "skipped"]
Verdict = Literal["green", "amber", "missed", "incomplete", "red"]
Kind = Literal["logical", "physical", "files"]
Choice = Literal["random", "latest", "oldest", "given"]
PROMISE = "promise"  # the step that holds the time against what was promised

# What a command ends with, and what its leaf says, for each verdict.
EXIT: Mapping[Verdict, int] = {"green": 0, "amber": 0, "missed": 10, "incomplete": 3, "red": 9}
OUTCOME: Mapping[Verdict, str] = {
    "green": "done",
    "amber": "done",
    "missed": "missed",
    "incomplete": "incomplete",
    "red": "failed",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what was looked at, how it ended, in whole milliseconds. `demanded` matters for one
    that was skipped: nobody asked for it, or it could not be done although somebody did."""

    name: str
    verdict: StepVerdict
    ms: int = 0
    what: str = ""
    demanded: bool = True

    def as_json(self) -> dict[str, Any]:
        """The step as JSON values; inverse of `from_json`."""
        body = {"name": self.name, "verdict": self.verdict, "ms": self.ms, "what": self.what}
        return body if self.demanded else body | {"demanded": False}

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Step:
        """Read a step; a verdict that a later program wrote counts as skipped, so never as green."""
        known: tuple[StepVerdict, ...] = get_args(StepVerdict)
        return Step(
            str(body.get("name", "")),
            next((word for word in known if word == body.get("verdict")), "skipped"),
            _number(body.get("ms")) or 0,
            str(body.get("what", "")),
            body.get("demanded") is not False,
        )


def judge(steps: Sequence[Step]) -> Verdict:
    """The verdict over all steps; a drill without any is incomplete."""
    if any(step.verdict == "red" and step.name != PROMISE for step in steps):
        return "red"
    lacking = any(step.verdict == "skipped" and step.demanded for step in steps)
    if lacking or not any(step.verdict in ("green", "amber") for step in steps):
        return "incomplete"
    if any(step.verdict == "red" for step in steps):
        return "missed"
    return "amber" if any(step.verdict == "amber" for step in steps) else "green"


# -- the leaf ----------------------------------------------------------------------------------


class Recorded(Protocol):
    """A leaf of the audit log; `format.run.Run` is one."""

    @property
    def type(self) -> str: ...
    @property
    def run(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def started(self) -> datetime: ...
    @property
    def ended(self) -> datetime: ...
    @property
    def trigger(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def what(self) -> str: ...
    @property
    def snapshot(self) -> str: ...
    @property
    def detail(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Drilled:
    """One drill as its leaf tells of it; a drill that died has no steps.

    `at`: the moment that was restored; `restore_ms`: until the services could have been started again
    (restored, recovered, migrated or its index rebuilt); `target_seconds`: how long that may take, as
    it was promised then; `report`: SHA-256 of the report, hex, "" where there is none.
    """

    run: str
    source: str
    started: datetime
    ended: datetime
    trigger: str
    outcome: str
    what: str
    snapshot: str
    at: datetime | None = None
    kind: str = ""
    restore_ms: int | None = None
    total_ms: int | None = None
    target_seconds: int | None = None
    steps: tuple[Step, ...] = ()
    report: str = ""

    @staticmethod
    def from_run(run: Recorded) -> Drilled:
        """Read the leaf of a drill; ValueError for another kind of leaf. What its detail lacks, or
        has of another kind, is None or empty."""
        if run.type != "drill":
            raise ValueError(f"a leaf of type {run.type} is no drill")
        detail = run.detail
        steps = detail.get("steps")
        return Drilled(
            run.run,
            run.source,
            run.started,
            run.ended,
            run.trigger,
            run.outcome,
            run.what,
            run.snapshot,
            _time(detail.get("at")),
            str(detail.get("kind", "")),
            _number(detail.get("restore_ms")),
            _number(detail.get("total_ms")),
            _number(detail.get("target_seconds")),
            tuple(Step.from_json(step) for step in steps if isinstance(step, Mapping))
            if isinstance(steps, (list, tuple))
            else (),
            str(detail.get("report", "")),
        )

    @property
    def verdict(self) -> Verdict:
        """What the drill is worth: no better than its outcome and than its steps."""
        judged = judge(self.steps)
        if self.outcome in ("done", "missed"):
            return "missed" if self.outcome == "missed" and judged in ("green", "amber") else judged
        return "incomplete" if self.outcome in ("incomplete", "interrupted") else "red"

    @property
    def green(self) -> bool:
        """Everything demanded held, in the time that was promised; amber notes may stand beside."""
        return self.verdict in ("green", "amber")

    @property
    def verifies(self) -> bool:
        """Whether it proves that its backup can be restored, in whatever time."""
        return self.verdict in ("green", "amber", "missed")

    @property
    def notes(self) -> tuple[str, ...]:
        """What its amber steps say."""
        return tuple(f"{step.name}: {step.what}" for step in self.steps if step.verdict == "amber")


def detail_of(
    steps: Sequence[Step],
    *,
    at: datetime | None,
    kind: Kind,
    restore_ms: int | None,
    total_ms: int,
    target_seconds: int | None,
    report: str,
) -> dict[str, Any]:
    """The `detail` of a drill's leaf; `Drilled.from_run` reads it."""
    return {
        "at": None if at is None else at.astimezone(UTC).isoformat(),
        "kind": kind,
        "restore_ms": restore_ms,
        "total_ms": total_ms,
        "target_seconds": target_seconds,
        "steps": [step.as_json() for step in steps],
        "report": report,
    }


def _number(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _time(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment.astimezone(UTC) if moment.tzinfo is not None else None


# -- which moment ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time every moment of which can be restored; both ends included."""

    first: datetime
    last: datetime


_T = TypeVar("_T")
_TICK = timedelta(microseconds=1)


def draw_moment(spans: Sequence[Span], number: int) -> datetime:
    """One moment out of all that can be restored, each microsecond as likely as any other.

    `number`: drawn uniformly from far more than there are. ValueError when there is no moment.
    """
    sizes = [max(0, (span.last - span.first) // _TICK + 1) for span in spans]
    if not sum(sizes):
        raise ValueError("there is no moment to draw from")
    at = number % sum(sizes)
    for span, size in zip(spans, sizes, strict=True):
        if at < size:
            return span.first + at * _TICK
        at -= size
    raise AssertionError("unreachable")


def draw_one(choices: Sequence[_T], number: int) -> _T:
    """One of several, each as likely as any other; ValueError when there is none."""
    if not choices:
        raise ValueError("there is nothing to draw from")
    return choices[number % len(choices)]


__all__ = [
    "EXIT",
    "OUTCOME",
    "PROMISE",
    "Choice",
    "Drilled",
    "Kind",
    "Recorded",
    "Span",
    "Step",
    "StepVerdict",
    "Verdict",
    "detail_of",
    "draw_moment",
    "draw_one",
    "judge",
]
