"""What the tests of the stream need beside the others' tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from postgres.physical.tools import FolderArchive, Room
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.physical.control import ControlFile
from strongroom.postgres.physical.stream import StreamSource


class StreamedArchive(FolderArchive):
    """A folder of WAL that takes what comes by the protocol."""

    def put(self, control: ControlFile, name: str, data: memoryview) -> None:
        assert len(data) == control.wal_segment_size or name.endswith(".history")
        path = self.folder / name
        assert not path.exists()
        path.write_bytes(data)
        path.chmod(0o644)
        self.puts.append(name)


class StreamRoom(Room):
    """A repository in memory, and a cluster that is had by the protocol only."""

    def __init__(self, server: EmbeddedServer, folder: Path, **how: Any) -> None:
        super().__init__(server, folder, **how)
        self.archive: StreamedArchive = StreamedArchive(folder / "wal")

    def source(self, **how: Any) -> StreamSource:  # type: ignore[override]
        given: dict[str, Any] = {"jobs": 2, "archive": self.archive}
        dsn = how.pop("dsn", self.server.dsn_for("postgres", tcp=True))
        return StreamSource("db", dsn, **given | self.how | how)
