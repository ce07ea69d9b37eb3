"""The restore of a vault in a cloud, step by step: in place, for nothing there has a second name.

Rule of this file: what is at the remote is backed up whole, also what the source leaves out, before
the first byte of it is replaced; that backup is the way back, through these same steps.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from strongroom.config.model import FilesRunbook
from strongroom.errors import Damaged, StrongroomError
from strongroom.files.rclone.sink import RcloneSink, told_of
from strongroom.files.rclone.source import A_SYMLINK
from strongroom.operations.back_up import back_up
from strongroom.operations.restore import plan, restore
from strongroom.operations.runbook import (
    Action,
    Record,
    Work,
    go_on,
    run_all,
    stopped,
    untouched_advice,
)
from strongroom.operations.runbook_database import SAFETY_LABEL, Run, show_command
from strongroom.operations.runbook_vault import rebuild_index, refuse_unknown_commands
from strongroom.operations.verify_snapshot import verify_snapshot
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.ports import Source
from strongroom.repository.repository import Repository
from strongroom.rules.durations import Duration
from strongroom.rules.promises import measure
from strongroom.rules.runbook import Book, Condition, cloud_book
from strongroom.rules.sizes import show_size


@dataclass(frozen=True)
class CloudRunbook:
    """Everything at hand for the vault `remote`. `sink` makes one that replaces all that is there;
    `safety` is the source of all that is there, whatever the source's patterns are."""

    repository: Repository
    snapshot: Snapshot
    remote: str
    sink: Callable[[], RcloneSink]
    safety: Callable[[], Source]
    table: FilesRunbook
    run: Run
    rto: Duration | None
    now: Callable[[], datetime]

    def names(self, moment: datetime) -> dict[str, Any]:
        """What a new run works on."""
        del moment
        return {"name": self.remote, "in_place": True}

    def book(self, facts: Mapping[str, Any], *, safety: bool, drop_first: bool) -> Book:
        """The steps of a new run."""
        del safety, drop_first  # without the safety backup there would be no way back
        rebuild = self.table.rebuild_index
        return cloud_book(
            remote=facts["name"],
            stop=[shlex.join(argv) for argv in self.table.stop],
            start=[shlex.join(argv) for argv in self.table.start],
            rebuild_index=[] if rebuild is None else [show_command(rebuild, "path", facts["name"])],
        )

    def preflight(self, facts: Mapping[str, Any], *, drop_first: bool, ours: bool) -> None:
        """Refused when it can be known that the run would not come to its end."""
        del facts, drop_first, ours
        refuse_unknown_commands(self.table)
        plan(self.repository, self.snapshot, self.sink())

    def forget(self, record: Record) -> None:
        """An unfinished run made nothing beside."""

    def settle(self, record: Record) -> None:
        """Nothing a run made can be gone: the upload looks what is there."""

    def drop_kept(self, name: str) -> bool:
        """A run keeps nothing but its safety backup, which the repository keeps as any other."""
        del name
        return False

    # -- steps -----------------------------------------------------------------------------

    def actions(self) -> dict[str, Action]:
        """What each step does."""
        return {
            "verify": lambda work: verify_snapshot(
                self.repository.open_snapshot(self.snapshot), self.snapshot, work.progress
            ),
            "stop": lambda work: run_all(self.run, work, self.table.stop),
            "safety": self._safety,
            "upload": self._upload,
            "rebuild_index": lambda work: rebuild_index(
                self.table, self.run, work.record.facts["name"]
            ),
            "integrity": self._integrity,
            "start": lambda work: run_all(self.run, work, self.table.start),
            "measure": lambda work: measure(work.record.began, self.rto, now=self.now()).text,
        }

    def _safety(self, work: Work) -> str:
        facts = work.record.facts
        if facts.get("torn"):
            return f"what is there is half-restored; its safety backup is {facts['torn'][:12]}"
        if not plan(self.repository, self.snapshot, self.sink())["replaces"]:
            work.note(safety=None)
            return "nothing is there now: nothing to save"
        labels = {SAFETY_LABEL: "before-restore", "run": work.record.run}
        report = back_up(self.repository, self.safety(), progress=work.progress, labels=labels)
        lacking = [problem for problem in report.problems if problem.reason != A_SYMLINK]
        if lacking:
            raise StrongroomError(
                f"The safety backup {report.snapshot.id[:12]} lacks what would be replaced: "
                f"{told_of(lacking)}.",
                do="Mend or move away what is named.",
            )
        work.note(safety=report.snapshot.id)
        return (
            f"backup {report.snapshot.id[:12]}, {report.snapshot.files:,} files, "
            f"{show_size(report.snapshot.size)}"
        )

    def _upload(self, work: Work) -> str:
        outcome = restore(self.repository, self.snapshot, self.sink(), progress=work.progress)
        if outcome.facts["damaged"] or outcome.facts["lost"]:
            raise Damaged(f"Not all of the backup arrived: {told_of(outcome.problems)}.")
        work.note(
            problems=[f"{p.path.decode(errors='replace')}: {p.reason}" for p in outcome.problems]
        )
        deleted = outcome.facts["deleted"]
        if deleted and (safety := work.record.facts.get("safety")):
            work.warn(
                f"{deleted:,} file{'s' * (deleted != 1)} that the backup does not have "
                f"{'are' if deleted != 1 else 'is'} now in the safety backup {safety[:12]} only"
            )
        more = f", {len(outcome.problems)} problems" if outcome.problems else ""
        return (
            f"{outcome.files:,} files there, compared by {outcome.facts['verified_by']}; "
            f"{deleted:,} deleted{more}"
        )

    def _integrity(self, work: Work) -> str:
        work.progress.phase("comparing with the backup")
        reader = self.repository.open_snapshot(self.snapshot)
        count, strange = self.sink().compare(reader, progress=work.progress)
        more = f", {strange} more that the backup does not hold" if strange else ""
        return f"{count:,} files there and as backed up{more}"

    # -- what to say -----------------------------------------------------------------------

    def advice(self, record: Record, condition: Condition) -> tuple[str, str]:
        """What state things are in, and how to go on or back."""
        remote = record.facts["name"]
        if condition == "untouched":
            return untouched_advice(record, f"The vault in use, {remote},", self.table.start)
        on = f"{go_on(record)} {way_back(record)}"
        if condition == "between":
            return (
                f"{remote} may be neither the old nor the new.{stopped(record)} "
                "They must not be started.",
                on,
            )
        return f"{remote} is restored and verified; services may not be up.", on


def way_back(record: Record) -> str:
    """The command that undoes the run, services and all."""
    safety = record.facts.get("safety")
    if not safety:
        return "There was nothing before to go back to."
    if safety == record.snapshot:
        return f"This is the state before, of safety backup {safety[:12]}."
    return (
        f"Go back: `strongroom restore {record.source} --runbook --start-over "
        f"--backup {safety[:12]}`."
    )
