"""The promise that every storage keeps, and that one contract suite checks.

1. An object is whole or absent: no reader ever sees part of a put.
2. When `put` returns, the object is durable and visible to `get` and `list`.
3. Objects are never changed: a name is written once. `if_absent` makes the
   store refuse a second put of a name, atomically where the store can.
4. `delete` of an absent name is fine.
5. Errors are Strongroom's: ObjectMissing, AlreadyExists, StorageDenied,
   StorageFull, StorageUnreachable; and NotFound itself where the whole bucket
   is missing, which must never look like an empty one. Foreign errors never
   pass the adapter.

Names are ASCII, parts joined by "/", of the letters a-z 0-9 . _ - and A-Z;
no part is empty, "." or "..", or longer than 255. No name is another's
directory: who stores `a/b` never stores `a` (file systems cannot hold both).
Adapters may be called from many threads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

Buffer = bytes | bytearray | memoryview

_NAME = re.compile(r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+)*")

_NAME_LIMIT = 512
_PART_LIMIT = 255


@dataclass(frozen=True, slots=True)
class Entry:
    """One object as a listing shows it: size in bytes; `modified` in seconds since 1970 by the
    store's own clock, None where the store does not tell."""

    name: str
    size: int
    modified: float | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What `init` found that the store can do; recorded in the repository's identity.

    `put_if_absent`: of several puts of one name, at once or in turn, exactly one succeeds;
    `read_after_write`: get and list show a put, and list a delete, as soon as it returned;
    `list_sorted`: a listing comes in ascending order of names.
    """

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

    def total_space(self) -> int | None:
        """Bytes that it holds when it is full, ours and others', or None where it cannot tell."""

    def close(self) -> None:
        """Release connections; nothing is lost by not calling it."""


def is_name(name: str) -> bool:
    """Tell whether `name` is a well-formed object name; foreign files in a listing are not."""
    return (
        len(name) <= _NAME_LIMIT
        and _NAME.fullmatch(name) is not None
        and (len(name) <= _PART_LIMIT or max(map(len, name.split("/"))) <= _PART_LIMIT)
    )


def check_name(name: str) -> str:
    """Return `name`, or raise ValueError if it is not a well-formed object name."""
    if not is_name(name):
        raise ValueError(f"not an object name: {name!r}")
    return name
