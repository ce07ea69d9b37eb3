"""Which backup is meant by an id, a word or a time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from strongroom.cli.desk import Desk
from strongroom.errors import UsageError

if TYPE_CHECKING:
    from strongroom.repository.catalogue import Snapshot
    from strongroom.repository.repository import Repository

_ID = re.compile(r"latest|oldest|[0-9a-f]{1,64}", re.ASCII)


def is_id(point: str) -> bool:
    """Whether a point is the beginning of an id, `latest` or `oldest`, and no time."""
    return _ID.fullmatch(point) is not None


def find(desk: Desk, repository: Repository, source: str, point: str) -> Snapshot:
    """The backup at a point: "" or `latest`, `oldest`, the beginning of an id, or a time."""
    from strongroom.operations import browse  # noqa: PLC0415 -- numpy behind it

    if not point or is_id(point):
        return browse.find_snapshot(repository, source, backup=point or "latest")
    return browse.find_snapshot(repository, source, at=desk.moment(point))


def chosen(
    desk: Desk, repository: Repository, source: str, *, backup: str | None, at: str | None
) -> Snapshot:
    """The backup that --backup or --at names, else the newest."""
    from strongroom.operations import browse  # noqa: PLC0415

    if backup is not None and at is not None:
        raise UsageError("--backup and --at both choose a backup.", do="Give one of them.")
    if at is not None:
        return browse.find_snapshot(repository, source, at=desk.moment(at))
    if backup is not None and not is_id(backup):
        raise UsageError(
            f"{backup!r} is no id.",
            do="Give the beginning of an id from `strongroom list`, `latest` or `oldest`.",
        )
    return browse.find_snapshot(repository, source, backup=backup)
