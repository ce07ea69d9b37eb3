"""What the engine is given: the world, and how to work. Light to import."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Settings:
    """How a session works; none of it is written down.

    Sizes in bytes; `reopen_every` n opens every n-th frame again before it is put.
    """

    level: int = 1
    pack_size: int = 16 * 1024 * 1024
    sealers: int = 2
    putters: int = 2
    reopen_every: int = 1
    index_rows: int = 65_536
    index_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Seams:
    """The world, as seen from the engine: wall clock, steady clock in seconds, random bytes."""

    now: Callable[[], datetime]
    steady: Callable[[], float]
    random: Callable[[int], bytes]
