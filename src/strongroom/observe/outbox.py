"""Runs of this machine that are not in the audit log yet: begun, or ended and not put.

    outbox/<run>-<type>.jsonl    a line when it begins, one when it ends, one before it is put

Rule: a file is locked (flock) by the process whose run it is, as long as that lives. One that is not
locked was left: by a run that ended and could not be put, or by one whose process died. Whoever finds
it puts it into the log. Before a put is tried, the file says so, and who finds it then looks first
whether it is there already.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from strongroom.format.run import Run, one_line

_LIMIT = 1 << 20


@dataclass(slots=True)
class Ticket:
    """A run's file, locked by us. `tried` once a put may have happened, in `repository` (hex)."""

    path: str
    run: Run
    ended: bool = False
    tried: bool = False
    repository: str = ""
    _file: int = -1

    def end(self, run: Run, repository: str = "") -> None:
        """The run has ended, and what came of it."""
        self.run, self.ended, self.repository = run, True, repository
        self._write({"state": "ended", "repository": repository, "run": run.as_json()})

    def trying(self) -> None:
        """From here on it may be in the log."""
        if not self.tried:
            self.tried = True
            self._write({"state": "putting"})

    def done(self) -> None:
        """It is in the log, or there is nothing to tell."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self.leave()

    def leave(self) -> None:
        """Leave it for the next run."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                if self.ended:
                    os.fsync(self._file)
                os.close(self._file)
            self._file = -1

    def _write(self, line: dict[str, Any]) -> None:
        if self._file >= 0:
            with contextlib.suppress(OSError):  # a full disk here must not fail the run
                os.write(self._file, json.dumps({"version": 1, **line}).encode() + b"\n")

    def found_at(self, now: datetime) -> Run:
        """The run as it goes into the log when somebody else finds it."""
        if self.ended:
            return self.run
        what = one_line(f"{self.run.what}: it did not come to its end; its process died")
        return replace(
            self.run, ended=now, outcome="interrupted", exit=130, code="interrupted", what=what
        )


class Outbox:
    """The files of one repository's runs. Without a folder that can be written, it keeps nothing."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def begin(self, run: Run) -> Ticket:
        """Note that a run begins. A ticket without a file where nothing can be kept."""
        path = os.path.join(self._folder, f"{run.run}-{run.type}.jsonl")
        ticket = Ticket(path, run)
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except OSError:
            return ticket
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # a file system without locks: who finds it could not tell that we live
            os.close(file)
            os.unlink(path)
            return ticket
        ticket._file = file
        ticket._write({"state": "begun", "run": run.as_json()})
        return ticket

    def left(self) -> Iterator[Ticket]:
        """What no living process holds, oldest first; each is locked until it is done or left."""
        for name in sorted(self._names(), key=self._age):
            ticket = self._take(os.path.join(self._folder, name))
            if ticket is not None:
                yield ticket

    def _names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._folder) if name.endswith(".jsonl")]
        except OSError:
            return []

    def _age(self, name: str) -> float:
        try:
            return os.stat(os.path.join(self._folder, name)).st_mtime
        except OSError:
            return 0.0

    def _take(self, path: str) -> Ticket | None:
        try:
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_nlink:  # else its owner has just put it
                ticket = _read(path, os.pread(file, _LIMIT, 0))
                if ticket is not None:
                    ticket._file = file
                    return ticket
                os.rename(path, f"{path}.bad")
        except OSError:
            pass
        os.close(file)
        return None


def _read(path: str, data: bytes) -> Ticket | None:
    """What the whole lines of a file tell; None when not even its beginning does."""
    ticket: Ticket | None = None
    for line in data.split(b"\n"):
        try:
            body = json.loads(line)
            state = body["state"]
            if state == "putting" and ticket is not None:
                ticket.tried = True
                continue
            run = Run.from_json(body["run"])
        except (ValueError, KeyError, TypeError):
            continue  # torn, or of a later program
        ticket = Ticket(path, run, ended=state == "ended", repository=body.get("repository", ""))
    return ticket


__all__ = ["Outbox", "Ticket"]
