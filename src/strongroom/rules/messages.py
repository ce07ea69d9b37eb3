"""The words of a notification: a subject, lines of text, one key for as long as a thing is wrong. PURE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from strongroom.rules.anomalies import Condition, Severity
from strongroom.rules.times import show_time

Word = Literal["raise", "remind", "resolve", "test"]
_HEAD = {"raise": "", "remind": "Still: ", "resolve": "Fixed: ", "test": "Test: "}


@dataclass(frozen=True, slots=True)
class Message:
    """One thing to tell. `key` is the same from the first word of it to the last.

    `subject` is one line; `text` ends with a newline. `at` and `since` are UTC.
    """

    word: Word
    key: str
    severity: Severity
    source: str
    subject: str
    text: str
    at: datetime
    host: str


def compose(
    word: Word,
    condition: Condition,
    *,
    at: datetime,
    since: datetime,
    host: str,
    repository: str,
) -> Message:
    """Write the message of a condition; where it has gone, the one that it had when it was told."""
    what = _line(condition.what)
    subject = f"{_HEAD[word]}{what}"
    lines = [subject, ""]
    if word == "resolve":
        lines.append(f"It was wrong since {_show(since)} and is not any more.")
    else:
        lines += [f"  why:   {_line(reason)}" for reason in condition.reasons]
        if condition.do:
            lines.append(f"  to do: {_line(condition.do)}")
        if word == "remind":
            lines.append(f"  since: {_show(since)}")
    lines += [
        "",
        f"{condition.key}, {condition.severity}, {host}, {_line(repository)}, {_show(at)}",
    ]
    return Message(
        word,
        condition.key,
        condition.severity,
        condition.source,
        f"[strongroom] {subject}",
        "\n".join(lines) + "\n",
        at,
        host,
    )


def digest(messages: Sequence[Message], *, at: datetime, host: str) -> Message:
    """Several things told at once in one message, for channels that people read: no storm."""
    if len(messages) == 1:
        return messages[0]
    worst: Severity = (
        "critical" if any(one.severity == "critical" for one in messages) else "warning"
    )
    ended = sum(one.word == "resolve" for one in messages)
    counts = [f"{len(messages) - ended} wrong"] if len(messages) > ended else []
    counts += [f"{ended} fixed"] if ended else []
    text = "\n".join(one.text for one in messages)
    word: Word = "resolve" if ended == len(messages) else "raise"
    subject = f"[strongroom] {', '.join(counts)} on {host}"
    return Message(word, "digest", worst, "", subject, text, at, host)


def _line(text: str) -> str:
    """One line without control characters, whatever a server or a file's name put into it."""
    return "".join(char if char.isprintable() else " " for char in text)[:1000]


def _show(moment: datetime) -> str:
    return show_time(moment.replace(microsecond=0))


__all__ = ["Message", "Word", "compose", "digest"]
