"""What was told of what is wrong, as the audit log has it, and what is open after it. PURE.

A leaf of type `alert` is a step in the life of one alert. Its detail:

    key, kind, part, severity, condition, reasons, do    the condition
    word       raise, retry, escalate, remind, resolve, drop
    raised     when it was raised first, ISO 8601
    sent       channels that took the message
    faults     what the others answered, by channel

An alert counts as sent only when a channel took it, or when none wants to hear of such.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol, cast, get_args

from strongroom.rules.anomalies import Condition, Severity, Told, Word

WORDS: tuple[str, ...] = get_args(Word)


@dataclass(frozen=True, slots=True)
class Open:
    """An alert that was raised and is not over: its condition as it was told last, and who took it."""

    condition: Condition
    told: Told
    channels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what was told of one condition at `at`, who took it, and who did not and why."""

    word: Word
    condition: Condition
    raised: datetime
    at: datetime
    sent: tuple[str, ...] = ()
    faults: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """That of the condition."""
        return self.condition.key

    @property
    def taken(self) -> bool:
        """Whether it counts as sent."""
        return bool(self.sent) or not self.faults

    def detail(self) -> dict[str, Any]:
        """As JSON values, for a leaf; `step_of` is the inverse."""
        one = self.condition
        return {
            "key": one.key,
            "kind": one.kind,
            "part": one.part,
            "severity": one.severity,
            "condition": one.what,
            "reasons": list(one.reasons),
            "do": one.do,
            "word": self.word,
            "raised": self.raised.astimezone(UTC).isoformat(),
            "sent": list(self.sent),
            "faults": dict(self.faults),
        }


class Leaf(Protocol):
    """What is asked of a leaf; `format.run.Run` is one."""

    @property
    def source(self) -> str: ...
    @property
    def ended(self) -> datetime: ...
    @property
    def detail(self) -> Mapping[str, Any]: ...


def step_of(leaf: Leaf) -> Step | None:
    """The step that a leaf tells of; None where it tells of none that is known here."""
    body = leaf.detail
    try:
        severity = body["severity"]
        if body["word"] not in WORDS or severity not in get_args(Severity):
            return None
        condition = Condition(
            str(body["kind"]),
            leaf.source,
            severity,
            str(body["condition"]),
            tuple(map(str, body["reasons"])),
            str(body["do"]),
            str(body["part"]),
        )
        return Step(
            cast("Word", body["word"]),
            condition,
            datetime.fromisoformat(body["raised"]),
            leaf.ended,
            tuple(map(str, body["sent"])),
            {str(name): str(fault) for name, fault in dict(body["faults"]).items()},
        )
    except (KeyError, TypeError, ValueError):
        return None


def after(steps: Iterable[Step], before: Mapping[str, Open] | None = None) -> dict[str, Open]:
    """What is open when the steps were done, in their order, by key."""
    found = dict(before or {})
    for step in steps:
        one = found.get(step.key)
        if step.word == "drop" or (step.word == "resolve" and step.taken):
            found.pop(step.key, None)
        elif step.word == "resolve" and one is None:
            continue
        else:
            told = Told(step.key, step.raised) if one is None else one.told
            channels = frozenset() if one is None else one.channels
            told = (
                replace(told, sent=step.at, tried=0, last_try=None)
                if step.taken
                else replace(told, tried=told.tried + 1, last_try=step.at)
            )
            found[step.key] = Open(step.condition, told, channels | set(step.sent))
    return found


__all__ = ["Leaf", "Open", "Step", "after", "step_of"]
