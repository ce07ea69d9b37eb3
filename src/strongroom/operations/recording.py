"""Every run becomes a leaf of the audit log: this is the one place where that happens.

Rule: a recording never changes what comes of a run. What cannot be put stays on this machine (the
outbox of the journal) with a warning, and the next run puts it; a run that dies is found there too.
Nothing secret comes in: text goes through `clean`, and only whole numbers and text are kept.
"""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from strongroom.errors import Incomplete, Interrupted, Refused, StrongroomError, UsageError
from strongroom.format.run import Outcome, Run, Trigger, Type, one_line, whole
from strongroom.observe.changes import Change, Configured
from strongroom.observe.outbox import Outbox, Ticket

if TYPE_CHECKING:
    from strongroom.observe.journal import Journal
    from strongroom.repository.catalogue import Snapshot
    from strongroom.repository.repository import Repository


@dataclass(slots=True)
class Draft:
    """What a verb says of its run while it runs. `nothing` where there is nothing to record.

    `fault` is what it ended with, where that is not raised; `missed` that a promise was not kept.
    """

    source: str = ""
    what: str = ""
    snapshot: str = ""
    size: int = 0
    new_size: int = 0
    stored: int = 0
    files: int = 0
    problems: int = 0
    detail: dict[str, Any] = field(default_factory=dict)
    fault: StrongroomError | None = None
    exit: int | None = None
    missed: bool = False
    nothing: bool = False
    ticket: Ticket | None = field(default=None, repr=False)

    @property
    def id(self) -> str:
        """Of the run; empty where nothing is recorded."""
        return "" if self.ticket is None else self.ticket.run.run

    def dismiss(self) -> None:
        """Nothing is to be recorded of this, not even if the process dies here."""
        self.nothing = True
        if self.ticket is not None:
            self.ticket.done()

    def of(self, snapshot: Snapshot) -> None:
        """The run is about this backup: its id and its figures."""
        self.source, self.snapshot = snapshot.source, snapshot.id
        self.files, self.size = snapshot.files, snapshot.size
        self.detail.setdefault("snapshot_time", snapshot.time.isoformat())

    def made(self, snapshot: Snapshot) -> None:
        """The run made this backup."""
        self.of(snapshot)
        self.new_size, self.stored = snapshot.new_size, snapshot.stored
        self.detail |= {"kind": snapshot.kind, "labels": dict(snapshot.labels)}


@dataclass(frozen=True, slots=True)
class Who:
    """Whose run it is: host, user, and what set it off; `cause`: which job, and for which time."""

    host: str
    user: str
    trigger: Trigger = "manual"
    cause: Mapping[str, str] = field(default_factory=dict)


def whoever(environ: Mapping[str, str], trigger: Trigger = "manual") -> Who:
    """This host and this user; with sudo, the one behind it too. What runs a job says so in
    STRONGROOM_TRIGGER, STRONGROOM_JOB and STRONGROOM_DUE."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    behind = environ.get("SUDO_USER", "")
    cause = {}
    told = environ.get("STRONGROOM_TRIGGER", "")
    if told in ("schedule", "catch-up"):
        trigger = "schedule" if told == "schedule" else "catch-up"
        names = {"job": "STRONGROOM_JOB", "due": "STRONGROOM_DUE"}
        cause = {key: environ[name] for key, name in names.items() if environ.get(name)}
    return Who(socket.gethostname(), f"{user} ({behind})" if behind else user, trigger, cause)


class Recorder:
    """Records the runs of one process for one repository, below `folder` of this machine.

    `clean` takes secrets out of text; `warn` tells a person; `configured` is the configuration that
    counts, with hashes in place of its values; `ended` is called with each run when it has ended.
    """

    def __init__(
        self,
        folder: str,
        who: Who,
        *,
        now: Callable[[], datetime],
        random: Callable[[int], bytes],
        clean: Callable[[str], str] = lambda text: text,
        warn: Callable[[str], None] = lambda text: None,
        configured: Callable[[], Configured | None] = lambda: None,
        ended: Callable[[Run], None] = lambda run: None,
    ) -> None:
        self.folder, self._who = folder, who
        self._now, self._random = now, random
        self._clean, self._warn, self._configured = clean, warn, configured
        self._ended = ended
        self._outbox = Outbox(os.path.join(folder, "outbox"))
        self._journal: Journal | None = None
        self._running = 0

    def clean(self, text: str) -> str:
        """Text without secrets, in a line."""
        return self._line(text)

    @property
    def running(self) -> bool:
        """Whether a run is being recorded."""
        return self._running > 0

    def opened(self, repository: Repository) -> None:
        """The repository is open: what ends from here on can be put into its log."""
        from strongroom.observe.journal import Journal  # noqa: PLC0415 -- numpy behind it
        from strongroom.repository.audit import AuditLog  # noqa: PLC0415

        if self._journal is not None:
            self._journal.close()
        self._journal = Journal(self.folder, AuditLog(repository))

    @property
    def journal(self) -> Journal | None:
        """The journal of the repository, once that is open."""
        return self._journal

    @contextmanager
    def recorded(
        self, type: Type, *, source: str = "", what: str = "", trigger: Trigger | None = None
    ) -> Iterator[Draft]:
        """Record what happens within as one run; the draft says what came of it."""
        draft = Draft(source=source, what=what or f"{type} {source}".strip())
        begun = Run(
            type=type,
            run=self._random(8).hex(),
            started=self._now(),
            ended=self._now(),
            source=source,
            host=self._who.host,
            user=self._who.user,
            trigger=trigger or self._who.trigger,
            what=self._line(draft.what),
        )
        draft.ticket = ticket = self._outbox.begin(begun)
        self._running += 1
        try:
            yield draft
        except UsageError:  # nothing was started
            ticket.done()
            raise
        except BaseException as fault:
            self._end(ticket, draft, fault)
            raise
        else:
            self._end(ticket, draft, draft.fault)
        finally:
            self._running -= 1

    def notice(self) -> None:
        """Record that the configuration is another one, if it is, before anything is judged by it."""
        if self._journal is not None:
            try:
                self._notice_configuration(self._journal)
            except Interrupted:
                raise
            except Exception as error:
                self._warn(f"the configuration is not in the audit log yet: {error}")

    def tell(
        self, type: Type, *, what: str, source: str = "", detail: Mapping[str, Any] | None = None
    ) -> None:
        """Record something that happened in a moment."""
        with self.recorded(type, source=source, what=what) as draft:
            draft.detail.update(detail or {})

    def _end(self, ticket: Ticket, draft: Draft, fault: BaseException | None) -> None:
        if draft.nothing:
            ticket.done()
            return
        run = self._finished(ticket.run, draft, fault)
        self._ended(run)
        journal = self._journal
        ticket.end(run, "" if journal is None else journal.repository_id)
        if journal is None:
            ticket.leave()  # what kept it from opening was told
            return
        try:
            if run.type != "init":  # which is the first leaf
                journal.flush(self._now())
                self._notice_configuration(journal)
            journal.append(ticket)
        except Interrupted:
            ticket.leave()
            raise
        except Exception as error:  # whatever it is: the run itself is what it is
            kept = os.path.exists(ticket.path)
            self._warn(
                f"this {run.type} is not in the audit log yet: {error}"
                + (" It is kept here, and the next run puts it there." if kept else "")
            )
            ticket.leave()
        for text in journal.warnings:
            self._warn(text)
        journal.warnings.clear()

    def _finished(self, begun: Run, draft: Draft, fault: BaseException | None) -> Run:
        outcome, status, code = _outcome(draft, fault)
        what = draft.what
        if fault is not None and str(fault):
            what = f"{what}: {fault}"
        detail = whole({**draft.detail, **self._who.cause})
        return Run(
            type=begun.type,
            run=begun.run,
            started=begun.started,
            ended=self._now(),
            source=draft.source,
            host=begun.host,
            user=begun.user,
            trigger=begun.trigger,
            outcome=outcome,
            exit=status,
            code=code,
            what=self._line(what),
            snapshot=draft.snapshot,
            size=draft.size,
            new_size=draft.new_size,
            stored=draft.stored,
            files=draft.files,
            problems=draft.problems,
            detail=_cleaned(detail, self._clean),
        )

    def cleaned(self, body: Any) -> Any:
        """JSON values as a leaf holds them: whole numbers, and no secrets."""
        return _cleaned(whole(body), self._clean)

    def _line(self, text: str) -> str:
        return one_line(self._clean(text))

    def _notice_configuration(self, journal: Journal) -> None:
        """A configuration that is another one than at the last run is a leaf of its own."""
        configured = self._configured()
        change = None if configured is None else Change.since(self.folder, configured)
        if change is None:
            return
        now = self._now()
        run = Run(
            type="config",
            run=self._random(8).hex(),
            started=now,
            ended=now,
            host=self._who.host,
            user=self._who.user,
            trigger=self._who.trigger,
            what=self._line(change.what),
            detail=_cleaned(whole(change.detail), self._clean),
        )
        ticket = self._outbox.begin(run)
        ticket.end(run, journal.repository_id)
        try:
            journal.append(ticket)
        finally:
            ticket.leave()
        change.noted()


def _outcome(draft: Draft, fault: BaseException | None) -> tuple[Outcome, int, str]:
    """Outcome, exit status and code."""
    if fault is None:
        if draft.exit is not None:
            word: Outcome = "missed" if draft.missed else "done" if draft.exit == 0 else "failed"
            return word, draft.exit, ""
        return (
            ("incomplete", Incomplete.exit_status, Incomplete.code)
            if draft.problems
            else ("done", 0, "")
        )
    if isinstance(fault, (Interrupted, KeyboardInterrupt)):
        return (
            "interrupted",
            getattr(fault, "exit_status", Interrupted.exit_status),
            Interrupted.code,
        )
    if not isinstance(fault, StrongroomError):
        return "failed", StrongroomError.exit_status, StrongroomError.code
    kinds: dict[type[StrongroomError], Outcome] = {Incomplete: "incomplete", Refused: "refused"}
    word = next((word for kind, word in kinds.items() if isinstance(fault, kind)), "failed")
    return word, fault.exit_status, fault.code


def _cleaned(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {key: _cleaned(each, clean) for key, each in value.items()}
    return [_cleaned(each, clean) for each in value] if isinstance(value, list) else value


__all__ = ["Draft", "Recorder", "Who", "whoever"]
