"""A drill: what was backed up is restored into something throw-away, looked at, and judged.

Rule of this file: every step of the plan ends in the report, in its order, whatever came before it:
one that nobody asked for says so, one that was not reached is never green. What the restore itself
cannot reach or may not open is no verdict on the backup: such a drill is incomplete, not red.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from strongroom.config.model import Command
from strongroom.errors import (
    Busy,
    Interrupted,
    KeyRefused,
    Refused,
    StorageFull,
    StorageUnreachable,
    StrongroomError,
)
from strongroom.operations.runbook_database import fill_in
from strongroom.progress import Progress
from strongroom.repository.catalogue import Snapshot
from strongroom.rules.drill import PROMISE, Choice, Kind, Step, StepVerdict, Verdict, judge
from strongroom.rules.drill_report import VERSION
from strongroom.rules.durations import Duration
from strongroom.rules.sizes import show_seconds

_NO_VERDICT = (Busy, KeyRefused, Refused, StorageFull, StorageUnreachable)
_NAMED = 5
# run(argv, cwd, environment beside the program's own, whether the network may be reached)
Run = Callable[[Sequence[str], str | None, Mapping[str, str], bool], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which moment is drilled, and where. `at` with the choice "given"; `queries` are asked besides the
    configured ones, by name."""

    choice: Choice
    at: datetime | None
    scratch: str
    queries: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Said:
    """How a step ended, where that is not green."""

    verdict: StepVerdict
    what: str


@dataclass(frozen=True, slots=True)
class Stage:
    """A step to be done. `act` None: nobody asked for it, and `why`. Nothing is done after one that is
    `essential` and did not hold; what is `awaited` belongs to the time of the restore."""

    name: str
    act: Callable[[], str | Said] | None
    why: str = ""
    essential: bool = False
    awaited: bool = False


class Course(Protocol):
    """The drill of one kind of source. `facts` go into the report as they are."""

    kind: Kind
    snapshot: Snapshot
    at: datetime
    chosen: str
    size: int
    facts: dict[str, Any]

    def stages(self) -> Sequence[Stage]:
        """What is to be done, in order; nothing was done yet."""

    def begin(self, room: str) -> None:
        """Everything that is made will be below this directory."""

    def close(self) -> None:
        """Stop what was started."""


@dataclass(slots=True)
class Drilled:
    """What came of a drill. Milliseconds; `restore_ms` None where it was not restored."""

    steps: list[Step]
    restore_ms: int | None
    total_ms: int

    @property
    def verdict(self) -> Verdict:
        """The verdict over all of it."""
        return judge(self.steps)


def carry_out(
    course: Course,
    room: str,
    *,
    rto: Duration | None,
    steady: Callable[[], float],
    progress: Progress,
    tell: Callable[[Step], None],
) -> Drilled:
    """Do every step; what is raised is a signal to us, never a fault of the backup."""
    began = steady()
    steps: list[Step] = []
    awaited: list[Step] = []
    broken = ""
    try:
        course.begin(room)
        for stage in course.stages():
            if stage.act is None:
                step = Step(stage.name, "skipped", 0, stage.why, demanded=False)
            elif broken:
                step = Step(stage.name, "skipped", 0, f"not reached: {broken} did not hold")
            else:
                progress.phase(f"drill: {stage.name}")
                step = _step(stage, steady)
                awaited += [step] if stage.awaited else []
                if stage.essential and step.verdict in ("red", "skipped"):
                    broken = stage.name
            steps.append(step)
            tell(step)
    finally:
        course.close()
    held = bool(awaited) and not broken and all(s.verdict in ("green", "amber") for s in awaited)
    restore_ms = sum(step.ms for step in awaited) if held else None
    steps.append(promised(restore_ms, rto))
    tell(steps[-1])
    return Drilled(steps, restore_ms, round((steady() - began) * 1000))


def report_of(
    course: Course, done: Drilled, *, rto: Duration | None, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The report, as JSON values; `about` says whose drill it was, when, and by which program."""
    return {
        "version": VERSION,
        "type": "drill",
        **about,
        "source": course.snapshot.source,
        "kind": course.kind,
        "snapshot": course.snapshot.id,
        "snapshot_time": course.snapshot.time.isoformat(),
        "size": course.snapshot.size,
        "at": course.at.astimezone(UTC).isoformat(),
        "chosen": course.chosen,
        "verdict": done.verdict,
        "restore_ms": done.restore_ms,
        "total_ms": done.total_ms,
        "target_seconds": None if rto is None else rto.approximate_seconds,
        "steps": [step.as_json() for step in done.steps],
        "facts": course.facts,
    }


def promised(restore_ms: int | None, rto: Duration | None) -> Step:
    """The time against the promise."""
    if rto is None:
        return Step(PROMISE, "skipped", 0, "nothing is promised", demanded=False)
    if restore_ms is None:
        return Step(PROMISE, "skipped", 0, "not reached: there is nothing to measure")
    taken = f"{show_seconds(restore_ms / 1000)}, promised {rto}"
    if restore_ms > 1000 * rto.approximate_seconds:
        return Step(PROMISE, "red", 0, f"{taken}: missed")
    return Step(PROMISE, "green", 0, f"{taken}: kept")


def _step(stage: Stage, steady: Callable[[], float]) -> Step:
    assert stage.act is not None
    began = steady()
    try:
        said = stage.act()
    except Interrupted:
        raise
    except StrongroomError as fault:
        said = Said("skipped" if isinstance(fault, _NO_VERDICT) else "red", fault.what)
    except Exception as fault:  # a step that nobody foresaw to fail is not green either
        said = Said("red", f"{type(fault).__name__}: {fault}")
    ms = round((steady() - began) * 1000)
    if isinstance(said, str):
        return Step(stage.name, "green", ms, said)
    return Step(stage.name, said.verdict, ms, said.what)


def commands_stage(
    name: str, commands: Sequence[Command], act: Callable[[], str | Said], *, awaited: bool = False
) -> Stage:
    """A stage of configured commands, if there are any."""
    if not commands:
        return Stage(name, None, "none is configured")
    return Stage(name, act, awaited=awaited)


def run_commands(
    run: Run, commands: Sequence[Command], word: str, value: str, environ: Mapping[str, str], *,
    network: bool,
) -> str:  # fmt: skip
    """Run configured commands, each to its end; the first that fails is raised."""
    for command in commands:
        argv, more = fill_in(command, word, value)
        run(argv, command.cwd, {**environ, **more}, network)
    return "; ".join(" ".join(command.argv)[:80] for command in commands)


def fresh(newest: datetime | None, at: datetime, within: Duration | None) -> str | Said:
    """Whether the newest that there is is new enough for the moment that was restored."""
    if newest is None:
        return Said("red", "there is nothing with a time in it")
    age = (at - newest).total_seconds()
    shown = f"the newest is of {show(newest)}"
    shown += f", {show_seconds(age)} before" if age >= 0 else f", {show_seconds(-age)} after"
    shown += " the moment restored"
    if within is None:
        return shown
    if newest < within.before(at):
        return Said("red", f"{shown}; at most {within} is right")
    return f"{shown}; {within} is right"


def some(names: Sequence[str]) -> str:
    """The first few of a list, for a line."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return "; ".join(names[:_NAMED]) + more


def show(moment: datetime) -> str:
    """A moment for people, to the microsecond where it has any."""
    text = moment.astimezone(UTC).isoformat()
    return text.replace("+00:00", "Z")


__all__ = [
    "Course",
    "Drilled",
    "Run",
    "Said",
    "Stage",
    "Wanted",
    "carry_out",
    "commands_stage",
    "fresh",
    "promised",
    "report_of",
    "run_commands",
    "show",
    "some",
]
