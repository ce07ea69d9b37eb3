"""Restore one snapshot into a sink: preflight, then write and verify."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strongroom.progress import Progress
from strongroom.repository.catalogue import Snapshot
from strongroom.repository.ports import Outcome, Sink
from strongroom.repository.repository import Repository


def plan(repository: Repository, snapshot: Snapshot, sink: Sink) -> Mapping[str, Any]:
    """Check that the restore can be carried out and return its plan; nothing is changed."""
    return sink.preflight(repository.open_snapshot(snapshot))


def restore(
    repository: Repository, snapshot: Snapshot, sink: Sink, *, progress: Progress
) -> Outcome:
    """Restore; the sink has verified what it wrote when this returns."""
    reader = repository.open_snapshot(snapshot)
    progress.phase("checking the target")
    sink.preflight(reader)
    return sink.restore(reader, progress=progress)
