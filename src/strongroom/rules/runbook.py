"""A runbook as a value: steps in order, what state each is in, and what may come next.

PURE. Rule of this file: a step begins only when every step before it is done or skipped, and
services start only when what they run on is whole.

    pending ──begin──▶ running ──end──▶ done        skipped: said why, and never begun
       ▲                  │
       └────resumed───────┴──fail──▶ failed

`turn` is the step that first changes what is in use, `whole` the one after which it is whole again;
between the two it is neither the old nor the new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

State = Literal["pending", "running", "done", "skipped", "failed"]
Condition = Literal["untouched", "between", "whole"]
_STATES = frozenset(get_args(State))
STOP, START = "stop", "start"


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `commands` are what it runs, for people; `told` says what came of it, or why it
    was skipped or failed; `seconds` are those of its last attempt."""

    key: str
    title: str
    commands: tuple[str, ...] = ()
    state: State = "pending"
    attempts: int = 0
    seconds: float = 0.0
    told: str = ""

    @property
    def over(self) -> bool:
        """Done, or nothing to do."""
        return self.state in ("done", "skipped")

    def body(self) -> dict[str, Any]:
        """The step as JSON values."""
        return {
            "key": self.key,
            "title": self.title,
            "commands": list(self.commands),
            "state": self.state,
            "attempts": self.attempts,
            "seconds": round(self.seconds, 3),
            "told": self.told,
        }


@dataclass(frozen=True, slots=True)
class Book:
    """The steps of one run. Every change is a new value; ValueError for one that may not be."""

    steps: tuple[Step, ...]
    turn: str
    whole: str
    again: tuple[str, ...] = field(default=(STOP,))

    def __post_init__(self) -> None:
        keys = [step.key for step in self.steps]
        if len(set(keys)) != len(keys):
            raise ValueError("two steps have the same key")
        if keys.index(self.turn) > keys.index(self.whole):
            raise ValueError("it is whole before it is changed")
        if START in keys and keys.index(START) < keys.index(self.whole):
            raise ValueError("services would start onto something half-restored")

    def __getitem__(self, key: str) -> Step:
        for step in self.steps:
            if step.key == key:
                return step
        raise KeyError(key)

    @property
    def next(self) -> Step | None:
        """The first step that is not over; None when all are."""
        return next((step for step in self.steps if not step.over), None)

    @property
    def condition(self) -> Condition:
        """What state that is in use is in."""
        if self[self.whole].over:
            return "whole"
        return "between" if self[self.turn].attempts else "untouched"

    def begin(self, key: str) -> Book:
        """The step is at work from now on."""
        step = self.next
        if step is None or step.key != key or step.state == "running":
            raise ValueError(f"{key} does not come next")
        return self._with(replace(step, state="running", attempts=step.attempts + 1, told=""))

    def end(self, key: str, *, seconds: float, told: str = "") -> Book:
        """The step is done."""
        return self._with(replace(self._running(key), state="done", seconds=seconds, told=told))

    def fail(self, key: str, *, seconds: float, told: str) -> Book:
        """The step came to no good end."""
        return self._with(replace(self._running(key), state="failed", seconds=seconds, told=told))

    def skip(self, key: str, why: str) -> Book:
        """The step is not needed, for a reason that is shown."""
        step = self[key]
        if step.state != "pending" or step.attempts:
            raise ValueError(f"{key} has begun")
        return self._with(replace(step, state="skipped", told=why))

    def resumed(self) -> Book:
        """The book as a second run takes it up: what was under way or failed is to do again.

        While nothing in use was changed, services may have been started by hand since: they are
        stopped again, and what is replaced in place is saved again, as it is by then.
        """
        untouched = self.condition == "untouched"
        return replace(
            self,
            steps=tuple(
                replace(step, state="pending")
                if step.state in ("running", "failed")
                or (untouched and step.key in self.again and step.state == "done")
                else step
                for step in self.steps
            ),
        )

    def undone(self, first: str) -> Book:
        """The book with every step from `first` to before the turn to do again.

        ValueError once the turn was begun.
        """
        if self.condition != "untouched":
            raise ValueError("what is in use was changed")
        keys = [step.key for step in self.steps]
        redo = set(keys[keys.index(first) : keys.index(self.turn)])
        return replace(
            self,
            steps=tuple(
                replace(step, state="pending")
                if step.key in redo and step.state == "done"
                else step
                for step in self.steps
            ),
        )

    def body(self) -> dict[str, Any]:
        """The book as JSON values."""
        return {
            "turn": self.turn,
            "whole": self.whole,
            "again": list(self.again),
            "steps": [step.body() for step in self.steps],
        }

    @staticmethod
    def from_body(body: Mapping[str, Any]) -> Book:
        """The book out of JSON values; ValueError, KeyError, TypeError when it is none."""
        steps = tuple(
            Step(
                str(step["key"]),
                str(step["title"]),
                tuple(map(str, step["commands"])),
                _state(step["state"]),
                int(step["attempts"]),
                float(step["seconds"]),
                str(step["told"]),
            )
            for step in body["steps"]
        )
        return Book(steps, str(body["turn"]), str(body["whole"]), tuple(map(str, body["again"])))

    def _running(self, key: str) -> Step:
        step = self[key]
        if step.state != "running":
            raise ValueError(f"{key} is not at work")
        return step

    def _with(self, changed: Step) -> Book:
        return replace(
            self,
            steps=tuple(changed if step.key == changed.key else step for step in self.steps),
        )


def _state(word: Any) -> State:
    if word not in _STATES:
        raise ValueError(f"{word!r} is no state of a step")
    state: State = word
    return state


Commands = Sequence[str]


def database_book(
    *,
    name: str,
    beside: str,
    old: str,
    stop: Commands = (),
    start: Commands = (),
    migrate: Commands = (),
    checks: Commands = (),
    safety: bool = True,
    drop_first: bool = False,
) -> Book:
    """The seed's steps for a database.

    The new one is made beside, migrated and verified there, and the names change last; with
    `drop_first` the old one goes first, for want of room.
    """
    shown, new = _sql(name), _sql(beside)
    steps = [
        Step(STOP, "stop services", tuple(stop)),
        Step("verify", "verify the backup's data"),
        Step("safety", "safety backup of the present database"),
        Step(
            "create",
            "make place for the new database",
            (f"DROP DATABASE IF EXISTS {shown if drop_first else new}",),
        ),
        Step(
            "restore",
            f"restore into {name if drop_first else beside}, rows counted",
            (f"CREATE DATABASE {shown if drop_first else new}",),
        ),
        Step("migrate", "run migrations", tuple(migrate)),
        Step("integrity", "verify integrity", tuple(checks)),
        Step(
            "swap",
            "change names, the old database is kept",
            (
                f"ALTER DATABASE {shown} RENAME TO {_sql(old)}",
                f"ALTER DATABASE {new} RENAME TO {shown}",
            ),
        ),
        Step(START, "restart services", tuple(start)),
        Step("measure", "measure the time against the promise"),
    ]
    if drop_first:
        steps = [step for step in steps if step.key != "swap"]
        book = Book(tuple(steps), "create", "integrity", (STOP, "safety"))
    else:
        book = Book(tuple(steps), "swap", "swap")
    if not safety:
        book = book.skip("safety", "--no-safety-backup was given: nothing is backed up first")
    return _without_commands(book, stop=stop, start=start, migrate=migrate)


def vault_book(
    *,
    path: str,
    staging: str,
    old: str,
    stop: Commands = (),
    start: Commands = (),
    rebuild_index: Commands = (),
) -> Book:
    """The seed's steps for a vault: beside, then exchanged; the old tree is the safety copy."""
    steps = (
        Step("verify", "verify the backup's data"),
        Step("restore", f"decrypt and extract to {staging}"),
        Step(STOP, "stop services", tuple(stop)),
        Step("swap", "put it in place, the old tree is kept", (f"rename {path} to {old}",)),
        Step("rebuild_index", "rebuild the index", tuple(rebuild_index)),
        Step("integrity", "verify file counts and checksums"),
        Step(START, "restart services", tuple(start)),
        Step("measure", "measure the time against the promise"),
    )
    book = Book(steps, "swap", "integrity")
    return _without_commands(book, stop=stop, start=start, rebuild_index=rebuild_index)


def cloud_book(
    *,
    remote: str,
    stop: Commands = (),
    start: Commands = (),
    rebuild_index: Commands = (),
) -> Book:
    """The seed's steps for a vault in a cloud, which is brought back in place: nothing there can be
    exchanged by name, so that the safety backup is the way back."""
    steps = (
        Step("verify", "verify the backup's data"),
        Step(STOP, "stop services", tuple(stop)),
        Step("safety", "safety backup of the whole remote as it is"),
        Step(
            "upload",
            "upload, and delete what the backup lacks",
            (
                f"rclone copy STAGED {remote}",
                f"rclone check --one-way STAGED {remote}",
                f"rclone delete {remote}  (what the backup does not have)",
            ),
        ),
        Step("rebuild_index", "rebuild the index", tuple(rebuild_index)),
        Step(
            "integrity",
            "verify file counts and checksums",
            (f"rclone check --one-way STAGED {remote}",),
        ),
        Step(START, "restart services", tuple(start)),
        Step("measure", "measure the time against the promise"),
    )
    book = Book(steps, "upload", "integrity", (STOP, "safety"))
    return _without_commands(book, stop=stop, start=start, rebuild_index=rebuild_index)


def _without_commands(book: Book, **given: Commands) -> Book:
    for key, commands in given.items():
        if not commands:
            book = book.skip(key, f"no `{key}` is configured under [source.….runbook]")
    return book


def _sql(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def beside_name(name: str, suffix: str, *, limit: int = 63) -> str:
    """A name with a suffix, cut before it to what PostgreSQL allows (bytes, never half a letter)."""
    room = limit - len(suffix.encode())
    return name.encode()[:room].decode("utf-8", "ignore") + suffix
