"""A point of a cluster, recovered on a throw-away server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from strongroom.errors import ObjectMissing
from strongroom.operations.points import Cluster
from strongroom.operations.restore import restore
from strongroom.postgres.recovery.settings import Action, Recovery
from strongroom.postgres.recovery.sink import PhysicalSink
from strongroom.postgres.sandbox import Sandbox
from strongroom.progress import Progress
from strongroom.repository.repository import Repository
from strongroom.rules.recovery import Verdict


def recovery_of(
    verdict: Verdict,
    *,
    restore_command: str | None = None,
    standby: bool = False,
    action: Action = "promote",
) -> Recovery:
    """What a server is told so that it recovers as a verdict says."""
    target = verdict.target
    return Recovery(
        restore_command,
        time=target.time if target.kind == "time" else None,
        lsn=target.lsn if target.kind == "lsn" else None,
        xid=target.xid if target.kind == "xid" else None,
        name=target.name if target.kind == "name" else None,
        immediate=target.kind == "immediate" and not standby,
        timeline=verdict.timeline,
        exclusive=target.exclusive,
        action=action,
        standby=standby,
    )


@contextmanager
def sandbox_of(
    repository: Repository,
    cluster: Cluster,
    verdict: Verdict,
    *,
    jobs: int | None,
    progress: Progress,
) -> Iterator[Sandbox]:
    """A server that has recovered to the point of a verdict; gone when the block ends."""
    assert verdict.base is not None
    snapshot = cluster.snapshots[verdict.base.id]
    facts = cluster.facts[verdict.base.id]

    def fetch(name: str) -> bytes | None:
        try:
            return cluster.wal(name)
        except ObjectMissing:
            return None

    sandbox = Sandbox(cluster.major, fetch)
    try:
        folder = os.fsencode(sandbox.directory)
        spaces = {
            space.oid.encode(): os.path.join(folder, b"space-" + space.oid.encode())
            for space in facts.tablespaces
        }
        sink = PhysicalSink(
            os.fsencode(sandbox.data_directory), spaces=spaces, owner=sandbox.owner, jobs=jobs
        )
        restore(repository, snapshot, sink, progress=progress)
        sandbox.recover(recovery_of(verdict), progress=progress)
        yield sandbox
    finally:
        sandbox.close()


__all__ = ["recovery_of", "sandbox_of"]
