"""The journal: what the audit log tells, kept on this machine so that it need not be read again.

Rule: the log in the repository is the truth. What is here may be lost, cut or damaged, and is built
again from it; only what was seen of the log (its size and root) is kept as evidence: a log that turns
out shorter, or another one, was tampered with or brought back from an older copy, and that is said.

    journal.sqlite    leaves by number
    seen.json         how far the log went when this machine last looked; what contradicted it
    outbox/           runs that are not in the log yet
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

from strongroom.errors import Damaged, ObjectMissing, StrongroomError
from strongroom.format.merkle import leaf_hash
from strongroom.format.run import Run
from strongroom.observe.outbox import Outbox, Ticket
from strongroom.repository.audit import AuditLog, Head, Leaf, Report

_T = TypeVar("_T")
_VERSION = 1
_CONTRADICTIONS = 16
_SCHEMA = """
CREATE TABLE IF NOT EXISTS leaf (
    number INTEGER PRIMARY KEY, type TEXT, source TEXT, ended TEXT, document BLOB, hash BLOB);
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT);
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """A state of the log that this machine knows to have been: size, root, when it was seen."""

    size: int
    root: bytes
    time: str


class Journal:
    """The runs of a repository. `path` is a folder of this machine; it may not be writable.

    `warnings` are for people: contradictions, and what could not be refreshed.
    """

    def __init__(self, path: str, log: AuditLog) -> None:
        self._path, self._log = path, log
        self.outbox = Outbox(os.path.join(path, "outbox"))
        self.warnings: list[str] = []
        self._database: sqlite3.Connection | None = None
        self._seen = _Evidence(path, log.repository_id)

    @property
    def repository_id(self) -> str:
        """Whose journal it is, in hex."""
        return self._log.repository_id

    # -- reading ---------------------------------------------------------------------------

    def runs(
        self,
        source: str | None = None,
        type: str | Sequence[str] | None = None,
        since: datetime | None = None,
        *,
        refresh: bool = True,
    ) -> list[Run]:
        """Runs in the order of the log: of a source, of a type or several, that ended at `since` or
        later.

        Where the log cannot be reached, what is known of it, with a warning.
        """
        if refresh:
            try:
                self.refresh()
            except StrongroomError as fault:
                self.warnings.append(f"the newest runs are unknown: {fault.what}")
        types = [type] if isinstance(type, str) else [*(type or ())]
        terms = {
            "source = ?": source,
            "type IN (SELECT value FROM json_each(?))": json.dumps(types) if types else None,
            "ended >= ?": None if since is None else _text(since),
        }
        given = {term: value for term, value in terms.items() if value is not None}
        where = f" WHERE {' AND '.join(given)}" if given else ""
        query = f"SELECT document, hash FROM leaf{where} ORDER BY number"  # noqa: S608 -- our words

        def read(base: sqlite3.Connection) -> list[Run]:
            return [_run(*row) for row in base.execute(query, list(given.values()))]

        return self._whole(read)

    def pending(self) -> list[Run]:
        """Runs of this machine that ended and are not in the log yet."""
        found = []
        for ticket in self.outbox.left():
            if ticket.ended:
                found.append(ticket.run)
            ticket.leave()
        return found

    def refresh(self) -> int:
        """Read what the log has more; return how many leaves there are."""
        return self._whole(self._refresh)

    # -- telling ---------------------------------------------------------------------------

    def append(self, ticket: Ticket) -> int:
        """Put a run that has ended; its ticket is done then. What is raised leaves it."""
        ticket.trying()
        number = self._log.append(ticket.run)
        ticket.done()
        if self._agrees(self._log.before):
            self._seen.advance(self._log.head)
        self.warnings += self._log.warnings
        self._log.warnings.clear()
        return number

    def flush(self, now: datetime) -> int:
        """Put what earlier runs left; return how many that were. What is raised leaves the rest."""
        count = 0
        for ticket in self.outbox.left():
            try:
                if ticket.repository not in ("", self._log.repository_id):
                    continue  # of another repository that stood here
                run = ticket.found_at(now)
                if ticket.tried and self._has(run):
                    ticket.done()
                    continue
                ticket.end(run, self._log.repository_id)
                self.append(ticket)
                count += 1
            finally:
                ticket.leave()
        return count

    def verify(self, report: Report) -> list[str]:
        """What a verification of the log contradicts of what this machine has seen of it."""
        found = []
        for seen in self._seen.all():
            if seen.size > report.size:
                found.append(
                    f"on {seen.time} it had {seen.size} leaves, and it has {report.size} now"
                )
            elif report.roots.get(seen.size, seen.root) != seen.root:
                found.append(f"on {seen.time} its first {seen.size} leaves were others")
        return found

    def seen(self, head: Head) -> None:
        """Take over what was verified, where it contradicts nothing."""
        self._seen.advance(head)

    # -- within ----------------------------------------------------------------------------

    def _has(self, run: Run) -> bool:
        self.refresh()
        told = self.runs(type=run.type, refresh=False)
        return any(each.run == run.run and run.same(each) for each in told)

    def _agrees(self, head: Head) -> bool:
        """Whether the log, as an append met it, goes on from what this machine has seen of it."""
        last = self._seen.last
        if last is None or last.size == 0:
            return True
        if last.size > head.size:
            self._contradicted(last, f"it has {head.size} leaves")
            return True
        try:
            root = head.root if last.size == head.size else self._log.leaf(last.size).before_root
        except StrongroomError:
            return False  # nobody knows; verify names what is damaged
        if root != last.root:
            self._contradicted(last, "they are others")
        return True

    def _contradicted(self, last: Seen, how: str) -> None:
        self._seen.contradict(last)
        self.warnings.append(
            f"the audit log is not the one that this machine has seen: on {last.time} it had"
            f" {last.size} leaves, and now {how}. It was cut, or the repository is an older copy."
            f" If you brought it back yourself, delete {self._seen.path}"
        )

    def _refresh(self, base: sqlite3.Connection) -> int:
        known = _load_head(base)
        size = self._log.size()
        goes_on = not known.size or self._goes_on(base, known, size)
        head = known if goes_on else Head(0, ())
        leaves = []
        if size > head.size:
            leaves = list(self._log.entries(head.size, missed=self._missed))
            head = leaves[-1].after if leaves else head  # damaged ones behind it: again next time
        base.execute("BEGIN IMMEDIATE")
        try:
            if _load_head(base) == known:  # else another process was faster
                if not goes_on:
                    base.execute("DELETE FROM leaf")
                for leaf in leaves:
                    _store(base, leaf)
                _save_head(base, head)
        finally:
            base.execute("COMMIT")
        last = self._seen.last
        if last is None:
            self._seen.advance(head)
        elif last.size > size:
            self._contradicted(last, f"it has {size} leaves")
        elif last.size <= head.size and self._extends(base, last, head):
            self._seen.advance(head)
        return size

    def _extends(self, base: sqlite3.Connection, last: Seen, head: Head) -> bool:
        if last.size == head.size:
            same = last.root == head.root
        else:
            row = base.execute(
                "SELECT document FROM leaf WHERE number = ?", (last.size,)
            ).fetchone()
            if row is None:
                return False
            before = [bytes.fromhex(part) for part in json.loads(row[0])["body"]["before"]]
            same = Head(last.size, tuple(before)).root == last.root
        if not same:
            self._contradicted(last, "they are others")
        return same

    def _goes_on(self, base: sqlite3.Connection, known: Head, size: int) -> bool:
        """Whether the log goes on where the journal ends. If not, the journal is built anew."""
        if size < known.size:
            return False
        try:
            if size > known.size:
                return self._log.leaf(known.size).before == known.frontier
            row = base.execute("SELECT hash FROM leaf WHERE number = ?", (size - 1,)).fetchone()
            return row is not None and self._log.leaf(size - 1).hash == row[0]
        except (Damaged, ObjectMissing):
            return True  # verify names it; what is known stays

    def _missed(self, number: int, fault: StrongroomError) -> None:
        if not isinstance(fault, (Damaged, ObjectMissing)):
            raise fault
        self.warnings.append(f"a run is unknown: {fault.what}")

    def _whole(self, use: Callable[[sqlite3.Connection], _T]) -> _T:
        """Use the cache; one that is damaged, or cannot be used, is built anew."""
        try:
            return use(self._open())
        except sqlite3.OperationalError:  # held by somebody for long, or its disk is gone
            self.close()
            self._database = self._connect(":memory:")
        except (sqlite3.DatabaseError, _Spoiled):
            self.close()
            with contextlib.suppress(OSError):
                os.unlink(self._file)
        base = self._open()
        self._refresh(base)
        return use(base)

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            try:
                os.makedirs(self._path, mode=0o700, exist_ok=True)
                self._database = self._connect(self._file)
            except (OSError, sqlite3.OperationalError):  # a folder that cannot be written, a lock
                self._database = self._connect(":memory:")
        return self._database

    def _connect(self, place: str) -> sqlite3.Connection:
        base = sqlite3.connect(place, timeout=30.0, isolation_level=None)
        try:
            base.execute("PRAGMA synchronous = OFF")  # what is lost is built again
            if base.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("quick_check")
            base.executescript(_SCHEMA)
            mark = f"{_VERSION} {self._log.repository_id}"
            (told,) = base.execute("SELECT value FROM state WHERE name = 'of'").fetchone() or ("",)
            if told != mark:
                base.execute("DELETE FROM leaf")
                base.execute("DELETE FROM state")
                base.execute("INSERT INTO state VALUES ('of', ?)", (mark,))
        except BaseException:
            base.close()
            raise
        return base

    @property
    def _file(self) -> str:
        return os.path.join(self._path, "journal.sqlite")

    def close(self) -> None:
        """Close the cache."""
        if self._database is not None:
            self._database.close()
            self._database = None


class _Spoiled(Exception):
    """A row is not what was stored."""


class _Evidence:
    """seen.json: the last state of the log that was seen, and those that it later contradicted."""

    def __init__(self, folder: str, repository: str) -> None:
        self.path = os.path.join(folder, "seen.json")
        self._repository = repository
        self.last: Seen | None = None
        self._contradicted: list[Seen] = []
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(self.path) as file:
            body = json.load(file)
            if body["repository"] == repository:
                self.last = _seen(body["last"])
                self._contradicted = [_seen(each) for each in body["contradicted"]]

    def all(self) -> Iterator[Seen]:
        """Every state that was."""
        yield from self._contradicted
        if self.last is not None:
            yield self.last

    def contradict(self, seen: Seen) -> None:
        """What was seen is not so any more: keep it as evidence."""
        self._contradicted = [*self._contradicted, seen][-_CONTRADICTIONS:]
        self.last = None

    def advance(self, head: Head) -> None:
        """The log goes so far now."""
        if self.last is None or self.last.size < head.size:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            self.last = Seen(head.size, head.root, now)
            self._save()

    def _save(self) -> None:
        body = {
            "version": _VERSION,
            "repository": self._repository,
            "last": None if self.last is None else _body(self.last),
            "contradicted": [_body(each) for each in self._contradicted],
        }
        half = f"{self.path}.{os.getpid()}.part"
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            with open(half, "w", opener=_private) as file:
                json.dump(body, file)
            os.replace(half, self.path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _seen(body: Any) -> Seen:
    return Seen(int(body["size"]), bytes.fromhex(body["root"]), str(body["time"]))


def _body(seen: Seen) -> dict[str, Any]:
    return {"size": seen.size, "root": seen.root.hex(), "time": seen.time}


def _load_head(base: sqlite3.Connection) -> Head:
    row = base.execute("SELECT value FROM state WHERE name = 'head'").fetchone()
    if row is None:
        return Head(0, ())
    size, *frontier = row[0].split()
    return Head(int(size), tuple(bytes.fromhex(part) for part in frontier))


def _save_head(base: sqlite3.Connection, head: Head) -> None:
    text = " ".join([str(head.size), *(part.hex() for part in head.frontier)])
    base.execute("INSERT OR REPLACE INTO state VALUES ('head', ?)", (text,))


def _store(base: sqlite3.Connection, leaf: Leaf) -> None:
    row = (
        leaf.number,
        leaf.run.type,
        leaf.run.source,
        _text(leaf.run.ended),
        leaf.document,
        leaf.hash,
    )
    base.execute("INSERT OR REPLACE INTO leaf VALUES (?, ?, ?, ?, ?, ?)", row)


@lru_cache(8192)  # who asks again and again, as a scheduler does, reads each leaf once
def _run(document: bytes, hash: bytes) -> Run:
    if leaf_hash(document) != hash:
        raise _Spoiled
    try:
        return Run.from_json(json.loads(document)["body"])
    except (ValueError, KeyError, TypeError):
        raise _Spoiled from None


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


__all__ = ["Journal", "Seen"]
