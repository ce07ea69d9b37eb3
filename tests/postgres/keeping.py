"""Where the tests keep what a source gives: the in-memory double, or the real engine in memory."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from postgres.double import DoubleSession
from strongroom.keys.keyfile import KeyFileHolder
from strongroom.operations.back_up import back_up
from strongroom.operations.initialise import initialise
from strongroom.operations.opening import open_repository
from strongroom.progress import Silent
from strongroom.repository.ports import Problem, SnapshotReader, Source
from strongroom.repository.repository import Repository, Seams
from strongroom.storage.memory import MemoryStorage


@dataclass
class Kept:
    """A finished backup."""

    snapshot: SnapshotReader
    problems: list[Problem]
    stored: int


class Keeper(Protocol):
    def keep(self, source: Source) -> Kept: ...


class DoubleKeeper:
    def keep(self, source: Source) -> Kept:
        session = DoubleSession()
        taken = source.back_up(session, progress=Silent())
        assert taken.files == len(session.tree.records)
        return Kept(session.opened(taken), list(taken.problems), taken.size)


@dataclass
class EngineKeeper:
    repository: Repository = field(init=False)

    def __post_init__(self) -> None:
        storage, holder = MemoryStorage(), KeyFileHolder(b"k" * 32)
        seams = Seams(lambda: datetime.now(UTC), time.monotonic, os.urandom)
        initialise(storage, holders={"key": holder}, recovery=(holder, "code"), seams=seams)
        self.repository = open_repository(storage, [holder], seams=seams)

    def keep(self, source: Source) -> Kept:
        report = back_up(self.repository, source, progress=Silent())
        reader = self.repository.open_snapshot(report.snapshot)
        return Kept(reader, list(report.problems), report.snapshot.stored)
