"""The seed's vault restore, step by step: beside the vault, then in its place by name.

Rule of this file: the tree in use is never written into; it is exchanged whole, and kept.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from strongroom.config.model import FilesRunbook
from strongroom.errors import Damaged, Refused, StrongroomError
from strongroom.files import exchange
from strongroom.operations.commands import refuse_unknown
from strongroom.operations.restore import restore
from strongroom.operations.runbook import (
    Action,
    Record,
    Work,
    go_on,
    run_all,
    stopped,
    untouched_advice,
)
from strongroom.operations.runbook_database import Run, fill_in, show_command
from strongroom.operations.verify_snapshot import verify_snapshot
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.ports import Sink
from strongroom.repository.repository import Repository
from strongroom.rules.durations import Duration
from strongroom.rules.promises import measure
from strongroom.rules.runbook import Book, Condition, vault_book

_NAMED = 5


@dataclass(frozen=True)
class VaultRunbook:
    """Everything at hand for one vault at `path`; `sink` makes one for a folder."""

    repository: Repository
    snapshot: Snapshot
    path: str
    sink: Callable[[str], Sink]
    table: FilesRunbook
    run: Run
    rto: Duration | None
    now: Callable[[], datetime]

    def names(self, moment: datetime) -> dict[str, Any]:
        """The paths a new run uses."""
        path = os.path.realpath(self.path)
        stamp = moment.strftime("%Y%m%d_%H%M%S")
        return {"name": path, "beside": f"{path}.restoring", "old": f"{path}.before_{stamp}"}

    def book(self, facts: Mapping[str, Any], *, safety: bool, drop_first: bool) -> Book:
        """The steps of a new run."""
        del safety, drop_first  # the old tree is kept whole: there is nothing to leave out
        rebuild = self.table.rebuild_index
        return vault_book(
            path=facts["name"],
            staging=facts["beside"],
            old=facts["old"],
            stop=[shlex.join(argv) for argv in self.table.stop],
            start=[shlex.join(argv) for argv in self.table.start],
            rebuild_index=[] if rebuild is None else [show_command(rebuild, "path", facts["name"])],
        )

    def preflight(self, facts: Mapping[str, Any], *, drop_first: bool, ours: bool) -> None:
        """Refused when it can be known that the run would not come to its end."""
        del drop_first
        refuse_unknown_commands(self.table)
        exchange.refuse_unfit(os.fsencode(facts["name"]))
        for path in (facts["beside"], facts["old"]):
            if not ours and os.path.lexists(path):
                raise Refused(
                    f"There is {path!r} already, which no run of this machine made.",
                    do="Look what it is, and move it away.",
                )
        if not os.path.lexists(facts["beside"]):
            plan = self.sink(facts["beside"]).preflight(
                self.repository.open_snapshot(self.snapshot)
            )
            if plan["free"] < plan["size"]:
                raise Refused(
                    f"{os.path.dirname(facts['name'])!r} has {plan['free']} bytes free; "
                    f"the restore needs {plan['size']} beside the vault in use.",
                    do="Free space there.",
                )

    def forget(self, record: Record) -> None:
        """Remove what an unfinished run made beside; nothing that is or was in use."""
        facts = record.facts
        path, staging, old = (os.fsencode(facts[key]) for key in ("name", "beside", "old"))
        new = facts.get("staging")
        if record.book.condition != "untouched" and exchange.identity(staging) != new:
            # The old tree, in the instant before it had its name.
            exchange.put_in_place(staging, path, old, new=exchange.identity(path) or [])
            return
        _remove(staging)

    def settle(self, record: Record) -> None:
        """Restore again when the tree beside is gone or another one since."""
        book = record.book
        if book.condition != "untouched" or not book["restore"].over:
            return
        if exchange.identity(os.fsencode(record.facts["beside"])) != record.facts.get("staging"):
            record.book = book.undone("restore")

    def drop_kept(self, name: str) -> bool:
        """Remove a tree that a run kept for a way back."""
        if not os.path.lexists(name):
            return False
        _remove(os.fsencode(name))
        return True

    # -- steps -----------------------------------------------------------------------------

    def actions(self) -> dict[str, Action]:
        """What each step does."""
        return {
            "verify": lambda work: verify_snapshot(
                self.repository.open_snapshot(self.snapshot), self.snapshot, work.progress
            ),
            "restore": self._restore,
            "stop": lambda work: run_all(self.run, work, self.table.stop),
            "swap": self._swap,
            "rebuild_index": self._rebuild_index,
            "integrity": self._integrity,
            "start": lambda work: run_all(self.run, work, self.table.start),
            "measure": lambda work: measure(work.record.began, self.rto, now=self.now()).text,
        }

    def _restore(self, work: Work) -> str:
        staging = work.record.facts["beside"]
        _remove(os.fsencode(staging))
        outcome = restore(
            self.repository, self.snapshot, self.sink(staging), progress=work.progress
        )
        if outcome.facts.get("damaged"):
            raise Damaged(f"{outcome.facts['damaged']} files of the backup could not be had whole.")
        work.note(
            staging=exchange.identity(os.fsencode(staging)),
            problems=[f"{p.path.decode(errors='replace')}: {p.reason}" for p in outcome.problems],
        )
        more = f", {len(outcome.problems)} problems" if outcome.problems else ""
        return f"{outcome.files:,} files{more}"

    def _swap(self, work: Work) -> str:
        facts, record = work.record.facts, work.record
        path, staging, old = (os.fsencode(facts[key]) for key in ("name", "beside", "old"))
        if facts["old"] not in record.kept:
            record.kept.append(facts["old"])
        work.note(swapping=True)
        exchange.put_in_place(staging, path, old, new=facts["staging"])
        if not os.path.lexists(old):
            record.kept = [each for each in record.kept if each != facts["old"]]
            return "there was none before"
        try:
            lost = [os.fsdecode(name) for name in exchange.names_only_in(old, path)]
        except OSError as fault:
            lost = []
            work.warn(f"what is in {facts['old']} only cannot be told: {fault.strerror}")
        if lost:
            more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
            work.warn(
                f"the backup does not hold {', '.join(lost[:_NAMED])}{more}, "
                f"which {'are' if len(lost) > 1 else 'is'} now in {facts['old']} only"
            )
        return f"the tree before is kept as {facts['old']}"

    def _rebuild_index(self, work: Work) -> str:
        return rebuild_index(self.table, self.run, work.record.facts["name"])

    def _integrity(self, work: Work) -> str:
        work.progress.phase("comparing with the backup")
        count, strange = exchange.compare_with_backup(
            os.fsencode(work.record.facts["name"]),
            self.repository.open_snapshot(self.snapshot),
            progress=work.progress,
        )
        more = f", {strange} more that the backup does not hold" if strange else ""
        return f"{count:,} files read and as backed up{more}"

    # -- what to say -----------------------------------------------------------------------

    def advice(self, record: Record, condition: Condition) -> tuple[str, str]:
        """What state things are in, and how to go on or back."""
        path = record.facts["name"]
        on, services = go_on(record), stopped(record)
        if condition == "untouched":
            return untouched_advice(record, f"The vault in use, {path!r},", self.table.start)
        if condition == "between":
            return (
                f"{path!r} holds the restored files, not verified in place.{services} "
                "They must not be started.",
                f"{on} {way_back(record)}",
            )
        return (
            f"{path!r} is restored and verified; services may not be up.",
            f"{on} {way_back(record)}",
        )


def way_back(record: Record) -> str:
    """The command that undoes the run."""
    facts = record.facts
    if not os.path.lexists(facts["old"]):
        return "There was nothing before to go back to."
    path, old = shlex.quote(facts["name"]), shlex.quote(facts["old"])
    return f"Go back: `mv -T {path} {path}.undone && mv -T {old} {path}`."


def rebuild_index(table: FilesRunbook, run: Run, path: str) -> str:
    """Run the configured command that rebuilds the index of the vault at `path`."""
    command = table.rebuild_index
    assert command is not None  # the step is skipped otherwise
    argv, environ = fill_in(command, "path", path)
    run(argv, command.cwd, environ)
    return ""


def refuse_unknown_commands(table: FilesRunbook) -> None:
    """Refused when a command of a vault's runbook could not be started."""
    rebuild = table.rebuild_index
    refuse_unknown([(argv, None) for argv in (*table.stop, *table.start)])
    refuse_unknown([] if rebuild is None else [(rebuild.argv, rebuild.cwd)])


def _remove(path: bytes) -> None:
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
    except OSError as fault:
        raise StrongroomError(
            f"{os.fsdecode(path)!r} cannot be removed: {fault.strerror}.",
            do="Remove it yourself, as the owner of what is in it.",
        ) from None
