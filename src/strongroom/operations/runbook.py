"""Carry out a runbook step by step, with a journal that survives being killed in any of them.

The journal is written and synced before a step begins and after it has ended. A step is therefore
done when the journal says so, and perhaps done when it says "running": every step is written so
that it may be carried out again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from strongroom.errors import Busy, Interrupted, Refused, StrongroomError
from strongroom.progress import Progress
from strongroom.rules.runbook import Book, Condition, Step

VERSION = 1


@dataclass(slots=True)
class Record:
    """One run. `facts` are what its steps know of each other (names, ids); `kept` are things that
    it and earlier runs keep for a way back; `finished` is None until the last step is over."""

    run: str
    source: str
    kind: str
    snapshot: str
    began: datetime
    book: Book
    facts: dict[str, Any] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    finished: datetime | None = None

    def body(self) -> dict[str, Any]:
        """The run as JSON values."""
        return {
            "version": VERSION,
            "run": self.run,
            "source": self.source,
            "kind": self.kind,
            "snapshot": self.snapshot,
            "began": self.began.isoformat(),
            "finished": None if self.finished is None else self.finished.isoformat(),
            "facts": self.facts,
            "kept": self.kept,
            "book": self.book.body(),
        }

    @staticmethod
    def from_body(body: Mapping[str, Any]) -> Record:
        """The run out of JSON values; ValueError, KeyError, TypeError when it is none."""
        if body["version"] != VERSION:
            raise ValueError("of another version")
        finished = body["finished"]
        return Record(
            str(body["run"]),
            str(body["source"]),
            str(body["kind"]),
            str(body["snapshot"]),
            datetime.fromisoformat(body["began"]),
            Book.from_body(body["book"]),
            dict(body["facts"]),
            list(map(str, body["kept"])),
            None if finished is None else datetime.fromisoformat(finished),
        )


class Journal:
    """The file that remembers one source's run: mode 0600, replaced whole, synced with its folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other run of this source out; Busy when there is one."""
        folder = os.path.dirname(self.path)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            lock = os.open(self.path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as fault:
            raise Refused(
                f"The journal of the run cannot be kept in {folder}: {fault.strerror}.",
                do="Name another folder with --cache-dir or `cache_dir`.",
            ) from None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Busy(
                    "A runbook of this source is being carried out already.",
                    means="Nothing was changed by this command.",
                ) from None
            yield
        finally:
            os.close(lock)

    def load(self) -> Record | None:
        """The last run, finished or not; None when there was none."""
        try:
            with open(self.path, encoding="utf-8") as file:
                return Record.from_body(json.load(file))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
            raise Refused(
                f"The journal {self.path} cannot be read: {fault}",
                do="Look what the last run left behind, move the file away, and begin anew.",
            ) from None

    def save(self, record: Record) -> None:
        """Write the run; on return it survives a loss of power."""
        new = self.path + ".new"
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(record.body(), file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
            folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as fault:
            raise StrongroomError(
                f"The journal {self.path} cannot be written: {fault.strerror}.",
                means="The step under way is not remembered; the one before it is.",
                do="Make room there, then go on with --resume.",
            ) from None


@dataclass(frozen=True, slots=True)
class Work:
    """What a step's function has at hand."""

    record: Record
    journal: Journal
    progress: Progress
    warn: Callable[[str], None]

    def note(self, **facts: Any) -> None:
        """Remember facts at once, before what they tell of is done."""
        self.record.facts.update(facts)
        self.journal.save(self.record)


Action = Callable[[Work], str]
Advice = Callable[[Record, Condition], tuple[str, str]]


def run_all(
    run: Callable[[Sequence[str], str | None, Mapping[str, str]], None],
    work: Work,
    commands: Sequence[Sequence[str]],
) -> str:
    """Run configured commands in turn, the way a step stops or starts services."""
    for argv in commands:
        work.progress.phase(shlex.join(argv))
        run(argv, None, {})
    return f"{len(commands)} command{'s' * (len(commands) != 1)}"


def untouched_advice(record: Record, what: str, start: Sequence[Sequence[str]]) -> tuple[str, str]:
    """What is said where a run stopped before anything in use was changed."""
    services = stopped(record)
    leave = (
        f" Or leave it: start the services yourself ({show_commands(start)})."
        if services
        else " Or begin anew with --start-over."
    )
    return f"{what} is as it was.{services}", go_on(record) + leave


def go_on(record: Record) -> str:
    """The command that goes on with a run."""
    return f"Go on: `strongroom restore {record.source} --runbook --resume`."


def stopped(record: Record) -> str:
    """That services are down, where the run has stopped them."""
    step = record.book["stop"]
    return " Services are stopped." if step.attempts > 0 else ""


def show_commands(commands: Sequence[Sequence[str]]) -> str:
    """Configured commands as they would be typed."""
    return "; ".join(f"`{shlex.join(argv)}`" for argv in commands)


def carry_out(
    work: Work,
    actions: Mapping[str, Action],
    *,
    advice: Advice,
    tell: Callable[[Record, Step], None],
    now: Callable[[], datetime],
    steady: Callable[[], float],
) -> None:
    """Carry out every step that is not over; `tell` hears of each as it begins and ends.

    What stops a step is raised, with `means` and `do` of `advice`; the journal knows it then.
    """
    record, journal = work.record, work.journal
    while (step := record.book.next) is not None:
        record.book = record.book.begin(step.key)
        journal.save(record)
        tell(record, record.book[step.key])
        began = steady()
        try:
            told = actions[step.key](work)
        except BaseException as fault:
            seconds = steady() - began
            why = "stopped" if isinstance(fault, Interrupted | KeyboardInterrupt) else str(fault)
            record.book = record.book.fail(step.key, seconds=seconds, told=why)
            with contextlib.suppress(StrongroomError):  # the step's own fault comes first
                journal.save(record)
            tell(record, record.book[step.key])
            if isinstance(fault, StrongroomError):
                reason = fault.do if type(fault).do != fault.do else ""
                fault.means, fault.do = advice(record, record.book.condition)
                fault.do = f"{reason} {fault.do}".strip()
            raise
        record.book = record.book.end(step.key, seconds=steady() - began, told=told)
        if record.book.next is None:
            record.finished = now()
        journal.save(record)
        tell(record, record.book[step.key])
