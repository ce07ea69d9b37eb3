"""Trees to back up, and the short way from a directory to a directory."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from files.double import MemoryReader, MemorySession
from strongroom.files.sink import FileSink
from strongroom.files.source import FileSource
from strongroom.progress import Silent
from strongroom.repository.ports import Outcome, Taken


@dataclass
class Vault:
    """A directory, its change cache, and a repository's chunks that outlive each run."""

    root: Path
    cache: Path
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    now: int = 1 << 62  # long after every file was touched: nothing is racy unless a test says so

    def source(self, **options: object) -> FileSource:
        options = {"cache_dir": os.fsencode(self.cache), "clock": lambda: self.now, **options}
        return FileSource("vault", os.fsencode(self.root), repository="r1", **options)  # type: ignore[arg-type]

    def back_up(self, *, settle: bool = True, **options: object) -> tuple[Taken, MemorySession]:
        session = MemorySession(self.chunks)
        source = self.source(**options)
        taken = source.back_up(session, progress=Silent())
        if settle:
            source.settled()
        return taken, session


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    root = tmp_path / "vault"
    root.mkdir()
    return Vault(root, tmp_path / "cache")


@pytest.fixture
def restore(tmp_path: Path) -> Callable[..., tuple[Path, Outcome]]:
    def run(reader: MemoryReader, target: Path | None = None, **options: object):
        target = target or tmp_path / "restored"
        sink = FileSink(os.fsencode(target), **options)  # type: ignore[arg-type]
        sink.preflight(reader)
        return target, sink.restore(reader, progress=Silent())

    return run


def unprivileged(body: Callable[[], None]) -> None:
    """Run `body` in a child that is nobody, for root may read everything; assert it did not fail."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            body()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
