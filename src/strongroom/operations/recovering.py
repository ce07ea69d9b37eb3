"""A point of a cluster, recovered on a throw-away server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from strongroom.errors import ObjectMissing, Refused, StrongroomError
from strongroom.operations.points import Cluster
from strongroom.operations.restore import restore
from strongroom.postgres.open.server import CACHE, NoFuse, OpenedServer
from strongroom.postgres.recovery.settings import Action, Recovery
from strongroom.postgres.recovery.sink import PhysicalSink
from strongroom.postgres.sandbox import Fetch, Sandbox
from strongroom.progress import Progress
from strongroom.repository.ports import Outcome
from strongroom.repository.repository import Repository
from strongroom.rules.recovery import Verdict


def recovery_of(
    verdict: Verdict,
    *,
    restore_command: str | None = None,
    standby: bool = False,
    primary: str = "",
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
        # A standby follows its primary to whatever timeline a failover begins, unless it is told one.
        timeline=target.timeline if standby else verdict.timeline,
        exclusive=target.exclusive,
        action=action,
        standby=standby,
        primary=primary,
    )


def wants_unfinished(verdict: Verdict) -> bool:
    """Whether what there is of an unfinished segment is to stand in for one that is not there."""
    return verdict.unfinished or verdict.target.kind == "latest"


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Opening:
    """How a point is opened: without restoring if that can be, with a cache of so many bytes, what is
    written below `scratch`; `on_fault` hears of what cannot be read, with its path in the backup."""

    fuse: bool = True
    cache: int = CACHE
    scratch: str | None = None
    on_fault: Callable[[bytes, StrongroomError], None] = _nothing
    note: Callable[[str], None] = _nothing


def fetcher(cluster: Cluster, verdict: Verdict) -> Fetch:
    """Where a server that recovers to the point of a verdict has its log from."""
    unfinished = wants_unfinished(verdict)

    def fetch(name: str) -> bytes | None:
        with suppress(ObjectMissing):
            return cluster.wal(name, unfinished=unfinished)
        return None

    return fetch


def sandbox_for(cluster: Cluster, verdict: Verdict, *, scratch: str | None) -> Sandbox:
    """A throw-away server without files yet; `fill` it, then let it recover. Refused where it would
    write to a place of the original's."""
    if verdict.spaces:
        name = os.fsdecode(verdict.spaces[0].location)
        raise Refused(
            f"A tablespace was made after the backup at {name!r}, and PostgreSQL makes it again"
            " at that very place, where the original may be using it.",
            means="Nothing was started. The backup and its log are whole.",
            do="Open it where a file system can be mounted (`strongroom doctor` says why not"
            " here); or choose a moment before it was made, or a backup taken after.",
        )
    return Sandbox(cluster.major, fetcher(cluster, verdict), parent=scratch)


def fill(
    sandbox: Sandbox,
    repository: Repository,
    cluster: Cluster,
    verdict: Verdict,
    *,
    jobs: int | None,
    progress: Progress,
) -> Outcome:
    """Restore the whole base of a verdict into a throw-away server, tablespaces beside it."""
    assert verdict.base is not None
    folder = os.fsencode(sandbox.directory)
    spaces = {
        space.oid.encode(): os.path.join(folder, b"space-" + space.oid.encode())
        for space in cluster.facts[verdict.base.id].tablespaces
    }
    sink = PhysicalSink(
        os.fsencode(sandbox.data_directory), spaces=spaces, owner=sandbox.owner, jobs=jobs
    )
    return restore(repository, cluster.snapshots[verdict.base.id], sink, progress=progress)


@contextmanager
def opened(
    repository: Repository,
    cluster: Cluster,
    verdict: Verdict,
    *,
    how: Opening,
    jobs: int | None,
    progress: Progress,
) -> Iterator[Sandbox]:
    """A server that has recovered to the point of a verdict; gone when the block ends.

    Its files stay in the repository until they are read. Where nothing can be mounted that is noted,
    and they are restored first.
    """
    assert verdict.base is not None
    snapshot = cluster.snapshots[verdict.base.id]
    facts = cluster.facts[verdict.base.id]

    with ExitStack() as stack:
        recovery = recovery_of(verdict)
        if how.fuse:
            progress.phase("opening")
            try:
                server = OpenedServer(
                    cluster.major,
                    fetcher(cluster, verdict),
                    repository.open_snapshot(snapshot),
                    facts,
                    made=[space.location for space in verdict.spaces],
                    cache=how.cache,
                    scratch=how.scratch,
                    on_fault=how.on_fault,
                )
                stack.callback(server.close)
                server.recover(recovery, progress=progress)
            except NoFuse as fault:
                stack.close()
                how.note(f"{fault.reason}: the whole cluster is restored instead.")
            else:
                yield server
                return
        sandbox = sandbox_for(cluster, verdict, scratch=how.scratch)
        stack.callback(sandbox.close)
        fill(sandbox, repository, cluster, verdict, jobs=jobs, progress=progress)
        sandbox.recover(recovery, progress=progress)
        yield sandbox


__all__ = [
    "Opening",
    "fetcher",
    "fill",
    "opened",
    "recovery_of",
    "sandbox_for",
    "wants_unfinished",
]
