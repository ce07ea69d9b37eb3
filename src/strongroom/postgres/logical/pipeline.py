"""Data, and what can be built on it at once: no worker waits for the largest table to be loaded.

Rule of this file: an index or constraint of one table alone is built as soon as the rows of that
table are in, while others are still being loaded; a table whose own are all built is analysed and
counted when there is nothing better to do. Whatever ties tables together (foreign keys, partitions
of indexes, triggers, materialized views) stays for the one pg_restore at the end, which knows the
order. Two jobs whose locks conflict never meet, so nobody waits for a lock.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from strongroom.format.tree import Entry
from strongroom.postgres.logical import archive, loading, plan, verifying
from strongroom.postgres.logical.order import Run

_POST_DATA = 4
_ALONE = frozenset(("INDEX", "CONSTRAINT"))
Key = tuple[str, str]


@dataclass
class _Board:
    """What is to be done, what is being done. Everything is touched under `changed`."""

    streams: deque[Entry]
    builds: Mapping[Key, Sequence[archive.TocEntry]]
    analysed_last: frozenset[Key]
    changed: threading.Condition = field(default_factory=threading.Condition)
    ready: list[tuple[Key, archive.TocEntry]] = field(default_factory=list)
    settling: deque[Key] = field(default_factory=deque)
    left: Counter[Key] = field(default_factory=Counter)
    shared: Counter[Key] = field(default_factory=Counter)
    alone: set[Key] = field(default_factory=set)
    running: int = 0
    failed: bool = False

    def loaded(self, keys: Sequence[Key]) -> None:
        """The rows of these tables are in: their builds may begin."""
        with self.changed:
            for key in keys:
                mine = self.builds.get(key, ())
                self.left[key] = len(mine)
                # Constraints lock everybody out: first, while others still have rows to load.
                ordered = sorted(mine, key=lambda entry: entry.kind != "CONSTRAINT")
                self.ready += [(key, entry) for entry in ordered]
                self._settle_if_built(key)

    def built(self, key: Key, entry: archive.TocEntry) -> None:
        """One index or constraint is there."""
        with self.changed:
            self.left[key] -= 1
            self._settle_if_built(key)
            if entry.kind == "INDEX":
                self.shared[key] -= 1
            else:
                self.alone.discard(key)

    def _settle_if_built(self, key: Key) -> None:
        if not self.left[key] and key not in self.analysed_last:
            self.settling.append(key)

    def pick(self) -> tuple[archive.TocEntry | Entry | None, Key | None]:
        """The next thing to do, under the lock; (None, None) when there is nothing now."""
        if self.streams:
            return self.streams.popleft(), None
        for number, (key, entry) in enumerate(self.ready):
            if key in self.alone or (entry.kind != "INDEX" and self.shared[key] > 0):
                continue
            del self.ready[number]
            if entry.kind == "INDEX":
                self.shared[key] += 1
            else:
                self.alone.add(key)
            return entry, key
        # Only to fill a gap: when nobody else works, the end is near and does it side by side.
        if self.settling and self.running:
            return None, self.settling.popleft()
        return None, None


def load_and_build(run: Run, entries: Sequence[Entry], definitions: int) -> list[int] | None:
    """Load all streams and build what can be; return the ids of the definitions that are left.

    None stands for all of them: nothing was built.
    """
    contents = loading.contents_of(definitions)
    wanted = None if run.selection is None else frozenset(run.selection.ids)
    builds = lone_builds(contents, wanted)
    # A pg_restore for each index is worth its start where building takes longer than that.
    large = {(t["schema"], t["name"]) for t in run.tables if t["size"] >= plan.SMALLEST_ALONE}
    builds = {key: made for key, made in builds.items() if key in large}
    board = _Board(deque(entries), builds, _analysed_last(contents, builds))
    done: list[int] = []
    with ThreadPoolExecutor(run.order.jobs, "pg-restore") as pool:
        worker = partial(_work, run, board, definitions, done)
        loading.wait_for([pool.submit(worker) for _ in range(run.order.jobs)], run)
    if not done:
        return None
    gone = frozenset(done)
    return [
        entry.id
        for entry in contents.entries
        if entry.id not in gone and (wanted is None or entry.id in wanted)
    ]


def _work(run: Run, board: _Board, definitions: int, done: list[int]) -> None:
    with verifying.Settler(run) as settle:
        while (job := _next(run, board, definitions, done, settle)) is not None:
            try:
                job()
            except BaseException:
                board.failed = True
                raise
            finally:
                with board.changed:
                    board.running -= 1
                    board.changed.notify_all()


def _next(
    run: Run, board: _Board, definitions: int, done: list[int], settle: verifying.Settler
) -> Callable[[], None] | None:
    """Wait for something to do; None when all is done or somebody failed."""
    with board.changed:
        while not board.failed:
            thing, key = board.pick()
            if thing is not None or key is not None:
                board.running += 1
                if isinstance(thing, Entry):
                    return partial(_load, run, board, thing)
                if thing is not None and key is not None:
                    return partial(_build, run, board, definitions, done, key, thing)
                assert key is not None
                return partial(settle.table, key)
            if not board.running:
                return None
            board.changed.wait()
    return None


def _load(run: Run, board: _Board, entry: Entry) -> None:
    board.loaded(loading.load(run, entry))


def _build(
    run: Run,
    board: _Board,
    definitions: int,
    done: list[int],
    key: Key,
    entry: archive.TocEntry,
) -> None:
    loading.run_definitions(run, definitions, "post-data", jobs=1, ids=[entry.id])
    done.append(entry.id)
    board.built(key, entry)


def lone_builds(
    contents: archive.Contents, wanted: frozenset[int] | None
) -> dict[Key, list[archive.TocEntry]]:
    """Indexes and constraints that need one table's rows and no other post-data entry, by table."""
    by_id = {entry.id: entry for entry in contents.entries}
    found: dict[Key, list[archive.TocEntry]] = {}
    for entry in contents.entries:
        if entry.kind not in _ALONE or entry.section != _POST_DATA:
            continue
        if wanted is not None and entry.id not in wanted:
            continue
        needs = [by_id[number] for number in entry.dependencies if number in by_id]
        relations = {(e.namespace, e.tag) for e in needs if e.is_relation}
        tables = {(e.namespace, e.tag) for e in needs if e.kind == "TABLE"}
        if len(relations) == len(tables) == 1 and all(e.section != _POST_DATA for e in needs):
            found.setdefault(tables.pop(), []).append(entry)
    return found


def _analysed_last(
    contents: archive.Contents, builds: Mapping[Key, Sequence[archive.TocEntry]]
) -> frozenset[Key]:
    """Tables that something with statistics of its own is still to come for at the end.

    Expressions in indexes and statistics objects would have none if ANALYZE came before them.
    """
    by_id = {entry.id: entry for entry in contents.entries}
    early = {entry.id for made in builds.values() for entry in made}
    return frozenset(
        (by_id[number].namespace, by_id[number].tag)
        for entry in contents.entries
        if entry.kind in ("STATISTICS", *_ALONE) and entry.id not in early
        for number in entry.dependencies
        if number in by_id
    )
