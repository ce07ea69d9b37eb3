"""The promise that every storage keeps, and that one contract suite checks.

1. An object is whole or absent: no reader ever sees part of a put.
2. When `put` returns, the object is durable and visible to `get` and `list`.
3. Objects are never changed: a name is written once. `if_absent` makes the
   store refuse a second put of a name, atomically where the store can.
4. `delete` of an absent name is fine.
5. Errors are Strongroom's: ObjectMissing, AlreadyExists, StorageDenied,
   StorageFull, StorageUnreachable. Foreign errors never pass the adapter.

Names are ASCII, parts joined by "/", of the letters a-z 0-9 . _ - and A-Z;
no part is empty, "." or "..". Adapters may be called from many threads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

Buffer = bytes | bytearray | memoryview

_NAME = re.compile(r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+)*")


@dataclass(frozen=True, slots=True)
class Entry:
    """One object as a listing shows it: size in bytes; `modified` in seconds since 1970 by the
    store's own clock, None where the store does not tell."""

    name: str
    size: int
    modified: float | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What `init` found that the store can do; recorded in the repository's identity."""

    put_if_absent: bool
    read_after_write: bool
    list_sorted: bool


class Storage(Protocol):
    """Five verbs over named, immutable objects."""

    @property
    def url(self) -> str:
        """The address a person would configure; never with a secret in it."""

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        """Store `data` whole and durable under `name`; AlreadyExists if `if_absent` and taken."""

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the object, or `length` bytes from `offset` (fewer only at its end).

        ObjectMissing when there is no such object.
        """

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield every object whose name starts with `prefix` (any string), in any order."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete the named objects; absent ones are fine."""

    def free_space(self) -> int | None:
        """Bytes that can still be stored, or None where the store cannot tell."""

    def close(self) -> None:
        """Release connections; nothing is lost by not calling it."""


def check_name(name: str) -> str:
    """Return `name`, or raise ValueError if it is not a well-formed object name."""
    if not _NAME.fullmatch(name) or len(name) > 512:
        raise ValueError(f"not an object name: {name!r}")
    return name
