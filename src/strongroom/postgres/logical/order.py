"""What was asked of one restore, and what the restore knows while it runs.

Rule of this file: an `Order` is given and never changes; a `Run` belongs to one call of `restore`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from strongroom.postgres.clients import Client, Clients
from strongroom.postgres.logical import archive
from strongroom.postgres.logical.inplace import InPlace
from strongroom.postgres.logical.subset import Subset
from strongroom.postgres.logical.target import Target
from strongroom.postgres.logical.tool import Family
from strongroom.postgres.server import Conninfo, ServerFacts
from strongroom.progress import Progress
from strongroom.repository.ports import Problem, SnapshotReader


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked; see `LogicalSink` for the meaning of each part."""

    conninfo: Conninfo
    target: str
    database: str | None
    replace: bool
    subset: Subset
    global_objects: bool
    owner: bool
    privileges: bool
    analyze: bool
    locale: str | None
    keep_failed: bool
    jobs: int
    clients: Clients | None


@dataclass
class Run:
    """What one restore knows: the backup, the target, and what has gone wrong so far."""

    order: Order
    snapshot: SnapshotReader
    progress: Progress
    database: str
    facts: Mapping[str, Any]
    client: Client
    server: ServerFacts
    target: Target | InPlace
    tablespaces: bool
    selection: archive.Selection | None = None
    freezable: frozenset[tuple[str, str]] = frozenset()
    family: Family = field(default_factory=Family)
    problems: list[Problem] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    counted: dict[tuple[str, str], int] = field(default_factory=dict)

    def problem(self, where: str, reason: str) -> None:
        """Remember a part that is not as it was."""
        path = where.encode("utf-8", "surrogateescape")
        self.problems.append(Problem(path, reason))
        self.progress.problem(path, reason)

    @property
    def tables(self) -> list[Mapping[str, Any]]:
        """The recorded tables that this restore brings back."""
        chosen = self.selection
        return [
            table
            for table in self.facts["tables"]
            if chosen is None or (table["schema"], table["name"]) in chosen.relations
        ]
