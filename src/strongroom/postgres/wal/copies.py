"""The archive of WAL as a base backup fills it: what is missing, by the way of archive_command."""

from __future__ import annotations

import os

from strongroom.postgres.physical.control import ControlFile
from strongroom.postgres.wal.directory import DataDirectory
from strongroom.postgres.wal.push import Pusher
from strongroom.repository.wal import WalStore


class CopiedWal:
    """The WAL of one source in a repository; see `physical.wal_copy.WalArchive`."""

    def __init__(self, store: WalStore, source: str, *, accept_system: bool = False) -> None:
        self._store, self._source = store, source
        self._pusher = Pusher(store, accept_system=accept_system)

    def expect(self, system_id: int) -> None:
        """Refused when the source's WAL is another system's."""
        self._pusher.check_source(self._source, system_id)

    def has(self, system_id: int, name: str) -> bool:
        """Is a file there?"""
        return self._store.head(system_id, name) is not None

    def put(self, control: ControlFile, name: str, data: memoryview) -> None:
        """Archive a file that came by the replication protocol; durable when this returns."""
        self._pusher.put(control, name, data, self._source)

    def take(self, data_directory: bytes, name: str) -> None:
        """Archive a file of pg_wal; durable when this returns."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        directory = DataDirectory(os.open(data_directory, flags))
        try:
            self._pusher.push(directory, f"pg_wal/{name}", self._source)
        finally:
            directory.close()
