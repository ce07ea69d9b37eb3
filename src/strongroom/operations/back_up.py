"""Back up one source: begin, let it push, commit; begin again if a prune overtook the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from strongroom.errors import Overtaken
from strongroom.progress import Progress
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.ports import Problem, Source
from strongroom.repository.repository import Repository

ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Report:
    """What a backup did. `attempts` is more than one where a prune overtook the first.

    `warnings` tell what the run found amiss in the repository, which this backup does not need;
    `facts` what the source said of itself.
    """

    snapshot: Snapshot
    problems: Sequence[Problem]
    seconds: float
    attempts: int
    warnings: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def back_up(
    repository: Repository,
    source: Source,
    *,
    progress: Progress,
    labels: Mapping[str, str] | None = None,
    group: str | None = None,
) -> Report:
    """Take a snapshot of `source`. Overtaken when prunes overtake it again and again.

    Problems with parts do not stop it; they are in the report and counted in the snapshot.
    """
    began = repository.seams.steady()
    warnings: list[str] = []
    for attempt in range(1, ATTEMPTS + 1):
        session = repository.begin(group or source.name, progress=progress)
        warnings += session.warnings
        try:
            taken = source.back_up(session, progress=progress)
            progress.phase("committing")
            snapshot = session.commit(source.name, source.kind, taken, labels=labels or {})
        except Overtaken:
            session.abandon()
            if attempt == ATTEMPTS:
                raise
            continue
        except BaseException:
            session.abandon()
            raise
        source.settled()
        seconds = repository.seams.steady() - began
        return Report(snapshot, taken.problems, seconds, attempt, tuple(warnings), taken.facts)
    raise AssertionError("unreachable: the last attempt returns or raises")
