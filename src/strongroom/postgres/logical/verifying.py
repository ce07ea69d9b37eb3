"""Is what was restored what was backed up? Counts against those of the backup's own snapshot.

Rule of this file: a restore that was not looked at is no success. Rows of every table, sequences,
and the number of objects of every kind are compared; a difference is `Damaged`.
"""

from __future__ import annotations

import contextlib
import queue
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from strongroom.errors import Damaged
from strongroom.postgres.logical import catalogue
from strongroom.postgres.logical.loading import wait_for
from strongroom.postgres.logical.order import Run
from strongroom.postgres.server import connect, interrupt, quoted, translated

if TYPE_CHECKING:
    import psycopg


def verify(run: Run) -> None:
    """Compare with what was recorded; Damaged when rows or objects are missing."""
    _settle_rest(run)
    counts = run.counted
    wrong = [
        f"{quoted(t['schema'], t['name'])} has {counts.get((t['schema'], t['name']), 'no')} "
        f"rows instead of {t['rows']}"
        for t in run.tables
        if counts.get((t["schema"], t["name"])) != t["rows"]
    ]
    if wrong:
        raise Damaged(
            f"{len(wrong)} tables do not have the rows that the backup recorded: "
            + "; ".join(wrong[:5])
            + ".",
        )
    with connect(run.target.conninfo) as connection, translated(run.target.conninfo):
        _check_sequences(connection, run)
        if run.selection is None:
            _check_inventory(connection, run)


class Settler:
    """Analyses and counts tables on one connection, which is opened when there is a first one."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._open = contextlib.ExitStack()
        self._connection: psycopg.Connection[Any] | None = None

    def __enter__(self) -> Settler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def table(self, key: tuple[str, str]) -> None:
        """Collect planner statistics of a table and count its rows, which are then known."""
        conninfo = self._run.target.conninfo
        if self._connection is None:
            self._connection = self._open.enter_context(connect(conninfo))
            self._open.enter_context(
                self._run.family.watching(partial(interrupt, self._connection))
            )
        with translated(conninfo):
            if self._run.order.analyze:
                self._connection.execute(f"ANALYZE {quoted(*key)}".encode())
            self._run.counted[key] = catalogue.count_rows(self._connection, *key)


def _settle_rest(run: Run) -> None:
    """Analyse and count every table that is still to do, largest first, on `jobs` threads."""
    waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    for table in sorted(run.tables, key=lambda t: -int(t["size"])):
        if (table["schema"], table["name"]) not in run.counted:
            waiting.put((table["schema"], table["name"]))

    def some() -> None:
        with Settler(run) as settler:
            while True:
                try:
                    key = waiting.get_nowait()
                except queue.Empty:
                    return
                settler.table(key)

    with ThreadPoolExecutor(run.order.jobs, "pg-verify") as pool:
        wait_for([pool.submit(some) for _ in range(run.order.jobs)], run)


def _check_sequences(connection: psycopg.Connection[Any], run: Run) -> None:
    """A sequence may be ahead of the snapshot, which it ignores; behind it would repeat values."""
    here = {(s["schema"], s["name"]): s for s in catalogue.sequence_values(connection)}
    for recorded in run.facts["sequences"]:
        key = (recorded["schema"], recorded["name"])
        if run.selection is not None and key not in run.selection.relations:
            continue
        found = here.get(key)
        if found is None:
            raise Damaged(f"Sequence {quoted(*key)} is missing after the restore.")
        ahead = (found["value"] - recorded["value"]) * (1 if recorded["increment"] > 0 else -1)
        if ahead < 0 or (ahead == 0 and recorded["called"] and not found["called"]):
            run.problem(
                quoted(*key), f"sequence stands at {found['value']}, not {recorded['value']}"
            )


def _check_inventory(connection: psycopg.Connection[Any], run: Run) -> None:
    found = catalogue.inventory(connection)
    found["schemas"] -= run.target.marks
    found["large_objects"] = catalogue.large_objects(connection)[0]
    wanted = {**run.facts["inventory"], "large_objects": run.facts["large_objects"]}
    wrong = [
        f"{found.get(kind, 0)} {kind.replace('_', ' ')} instead of {count}"
        for kind, count in wanted.items()
        if found.get(kind, 0) != count
    ]
    if not wrong:
        return
    if not run.problems:
        raise Damaged(f"The restored database has {', '.join(wrong)}.")
    run.problem(run.target.name, "after the problems above it has " + ", ".join(wrong))
