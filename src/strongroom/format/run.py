"""What one run was: a backup, a restore, a read, a change of keys. The body of a leaf of the log.

Rule: nothing secret is in a run. `what` is one line for people; `detail` are JSON values whose
numbers are whole, so that every implementation writes them the same way. Fields that a later
program wrote are passed over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

VERSION = 1
WHAT_LIMIT = 400  # characters

Type = Literal[
    "init", "backup", "restore", "check", "drill", "export", "import", "read", "keep", "expire",
    "undelete", "prune", "key", "config", "alert", "notify", "wal", "schedule",
]  # fmt: skip
Trigger = Literal["manual", "schedule", "drill", "catch-up"]
Outcome = Literal["done", "incomplete", "failed", "refused", "interrupted", "missed"]
TYPES: tuple[str, ...] = get_args(Type)
OUTCOMES: tuple[str, ...] = get_args(Outcome)
_TIMES = ("started", "ended")
_NUMBERS = ("exit", "size", "new_size", "stored", "files", "problems")


@dataclass(frozen=True, slots=True)
class Run:
    """One run. Times are aware, UTC; sizes in bytes; `run` is 16 hex, drawn at its beginning.

    `writer` is the name of the key that signed it; on a run that is not in the log yet it is empty.
    `type`, `trigger` and `outcome` may hold a word that a later program wrote.
    """

    type: str
    run: str
    started: datetime
    ended: datetime
    source: str = ""
    host: str = ""
    user: str = ""
    writer: str = ""
    trigger: str = "manual"
    outcome: str = "done"
    exit: int = 0
    code: str = ""
    what: str = ""
    snapshot: str = ""
    size: int = 0
    new_size: int = 0
    stored: int = 0
    files: int = 0
    problems: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The run as JSON values; inverse of `from_json`."""
        body = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}
        for name in _TIMES:
            body[name] = body[name].astimezone(UTC).isoformat()
        return {"version": VERSION, **whole(body)}

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Run:
        """Read a run; ValueError, KeyError, TypeError when it is none of a version known here."""
        if body["version"] != VERSION:
            raise ValueError(
                f"a run of version {body['version']}, which this program does not know"
            )
        known = {name: body[name] for name in _FIELDS if name in body}
        for name in _TIMES:
            known[name] = datetime.fromisoformat(body[name]).astimezone(UTC)
        for name in _NUMBERS:
            if type(known.get(name, 0)) is not int:
                raise ValueError(f"{name} is a whole number")
        for name in _TEXTS:
            if not isinstance(known.get(name, ""), str):
                raise ValueError(f"{name} is text")
        if not isinstance(known.get("detail", {}), Mapping):
            raise ValueError("detail is an object")
        return Run(**known)

    def same(self, other: Run) -> bool:
        """Whether both tell of the same, whoever signed it."""
        mine, others = self.as_json(), other.as_json()
        return {**mine, "writer": ""} == {**others, "writer": ""}


def one_line(text: str) -> str:
    """Text as `what` may hold it: one line, printable, not long."""
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return clean if len(clean) <= WHAT_LIMIT else clean[: WHAT_LIMIT - 1] + "…"


def whole(value: Any) -> Any:
    """JSON values whose numbers are whole: fractions become text, in their shortest form. Bytes that
    are no text, of a name or of the environment, are shown as they are: UTF-8 has none for them."""
    if isinstance(value, bool) or value is None or isinstance(value, int):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {whole(str(key)): whole(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [whole(each) for each in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return whole(str(value))


_FIELDS = tuple(part.name for part in dataclasses.fields(Run))
_TEXTS = tuple(name for name in _FIELDS if name not in (*_TIMES, *_NUMBERS, "detail"))
