"""Whether a file of the WAL could be archived, and why not: all that `wal push` does but the putting."""

from __future__ import annotations

import os

from strongroom.errors import StorageDenied
from strongroom.format.walfile import object_name
from strongroom.operations.clocks import clock_difference
from strongroom.postgres.wal.directory import DataDirectory
from strongroom.postgres.wal.push import Pusher, file_name
from strongroom.repository.repository import Repository
from strongroom.repository.wal import WalStore
from strongroom.storage.base import Storage


def try_push(
    repository: Repository, directory: DataDirectory, path: str, source: str, *, accept_system: bool
) -> None:
    """Raise what a push would. A tiny object is put elsewhere and deleted again."""
    Pusher(WalStore(repository), accept_system=accept_system).examine(directory, path, source)
    place = object_name(directory.control().system_id, file_name(path))
    _check_folder(repository.storage, place)
    clock_difference(repository.storage, repository.seams)


def _check_folder(storage: Storage, name: str) -> None:
    """In a folder each part of a name may have rights of its own: of whoever came first."""
    root = storage.url
    if not os.path.isdir(root):
        return
    there = os.path.dirname(os.path.join(root, name))
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageDenied(
            f"This account may not write in {there}.",
            do=f"Give the folder to the account that archives: `chown -R postgres {root}`, and run"
            " backups as that account too.",
        )


__all__ = ["try_push"]
