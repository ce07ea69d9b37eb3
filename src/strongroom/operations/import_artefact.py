"""Take an artefact back: verify all of it, then into the repository, a folder or a database."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from strongroom.artefacts.feed_source import ArtefactSource
from strongroom.artefacts.manifest import Manifest, Trust
from strongroom.artefacts.opening import Artefact, Keys, verify
from strongroom.artefacts.sealing import new_key
from strongroom.artefacts.tar_reading import read_tar
from strongroom.errors import KeyRefused, Refused, UsageError
from strongroom.files.feeding import check_target, fill
from strongroom.format import keyset as keysets
from strongroom.operations.back_up import Report, back_up
from strongroom.operations.browse import list_snapshots
from strongroom.progress import Progress
from strongroom.repository.ports import Outcome
from strongroom.repository.repository import Repository

Read = Callable[[int], bytes]
Loader = Callable[[Read, Progress], Mapping[str, Any]]


def sealed_key(repository: Repository | None, manifest: Manifest) -> bytes | None:
    """An artefact's key from the repository that made it; None from another."""
    said = manifest.key
    if repository is None or said.get("repository") != repository.identity.id.hex():
        return None
    try:
        keyset = repository.keys.keysets[int(said["epoch"])]
        number, sealed = bytes.fromhex(said["number"]), base64.b64decode(said["sealed"])
        return new_key(keysets.open_session_key(keyset, number, sealed))
    except (KeyError, ValueError, TypeError, KeyRefused):
        return None


@contextmanager
def opened(
    path: str,
    *,
    trust: Trust,
    keys: Keys,
    unsigned: bool,
    max_size: int | None,
    progress: Progress,
) -> Iterator[Artefact]:
    """A verified artefact, closed when the block ends."""
    artefact = verify(
        path, trust=trust, keys=keys, unsigned=unsigned, max_size=max_size, progress=progress
    )
    try:
        yield artefact
    finally:
        artefact.close()


def refuse_mixture(repository: Repository, source: str, *, database: bool) -> None:
    """Refused when an artefact would stand among backups of another kind.

    What is imported is a tree of files, or a dump as a file in one: `restore` of a database must
    never find one of them as its newest backup.
    """
    kinds = {snapshot.kind for snapshot in list_snapshots(repository, source).snapshots}
    if database or kinds - {"files"}:
        raise Refused(
            f"The backups of {source} are those of a database; an artefact is imported as files.",
            do=f"Choose another name, such as `--source {source}-imported`; or restore straight "
            "from it with `--to`.",
        )


def into_repository(
    repository: Repository,
    artefact: Artefact,
    *,
    source: str,
    inner: str,
    labels: Mapping[str, str],
    progress: Progress,
) -> Report:
    """Take it in as a snapshot of `source`; committed only when all of it was what it should be."""
    mtime = int(repository.seams.now().timestamp()) * 1_000_000_000
    feed = ArtefactSource(source, artefact, inner=inner, mtime_ns=mtime)
    return back_up(repository, feed, progress=progress, labels=labels)


def into_folder(
    artefact: Artefact, target: bytes, *, owner: bool, devices: bool, progress: Progress
) -> Outcome:
    """Extract a tree of files into a new or empty folder."""
    if artefact.shape.content != "tar":
        raise UsageError(f"{artefact.name} is a dump of a database, not a tree of files.")
    check_target(target)
    progress.phase("extracting")
    content = artefact.unpack()
    try:
        feed = read_tar(content.read, artefact.limits)
        outcome = fill(target, feed, owner=owner, devices=devices, progress=progress)
        content.finish()
    finally:
        content.close()
    return outcome


def into_database(artefact: Artefact, load: Loader, *, progress: Progress) -> Mapping[str, Any]:
    """Restore a dump through `load`, which takes it piece by piece, all of it.

    The end is not told before all was what it should be: a database gets its name after the end.
    """
    if artefact.shape.content == "tar":
        raise UsageError(f"{artefact.name} is a tree of files, not a dump of a database.")
    content = artefact.unpack()

    def read(size: int) -> bytes:
        """The end is told only when all that came was what it should be."""
        data = content.read(size)
        if not data:
            content.finish()
        return data

    try:
        facts = load(read, progress)
        content.finish()
        return facts
    finally:
        content.close()


__all__ = ["into_database", "into_folder", "into_repository", "opened", "refuse_mixture"]
