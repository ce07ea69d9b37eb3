"""Counts what passes: operations and bytes per verb, for `repository stats` and the bench.

Rule: counting never changes what passes. A verb that fails is counted as a
failure and moves no bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from strongroom.storage.base import Buffer, Entry, Storage

VERBS = ("put", "get", "list", "delete")


@dataclass(frozen=True, slots=True)
class Count:
    """What one verb did: `operations` that succeeded, `size` in bytes moved, `failures`.

    `list` counts calls as operations and entries as `entries`; `delete` counts names.
    """

    operations: int = 0
    size: int = 0
    entries: int = 0
    failures: int = 0

    def __sub__(self, other: Count) -> Count:
        """Return what was added since `other`."""
        return Count(
            self.operations - other.operations,
            self.size - other.size,
            self.entries - other.entries,
            self.failures - other.failures,
        )


class MeteredStorage:
    """A storage that counts what goes to and comes from `inner`. Safe for many threads."""

    def __init__(self, inner: Storage) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(VERBS, Count())

    @property
    def url(self) -> str:
        """Return the address of what is metered."""
        return self._inner.url

    def totals(self) -> dict[str, Count]:
        """Return the counts up to now, by verb."""
        with self._lock:
            return dict(self._counts)

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        """Store, and count the bytes."""
        try:
            self._inner.put(name, data, if_absent=if_absent)
        except BaseException:
            self._count("put", failures=1)
            raise
        self._count("put", operations=1, size=memoryview(data).nbytes)

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Read, and count the bytes."""
        try:
            found = self._inner.get(name, offset=offset, length=length)
        except BaseException:
            self._count("get", failures=1)
            raise
        self._count("get", operations=1, size=len(found))
        return found

    def list(self, prefix: str) -> Iterator[Entry]:
        """List, and count the entries that were taken."""
        taken = 0
        try:
            for entry in self._inner.list(prefix):
                taken += 1
                yield entry
        except GeneratorExit:
            self._count("list", operations=1, entries=taken)
            raise
        except BaseException:
            self._count("list", failures=1, entries=taken)
            raise
        self._count("list", operations=1, entries=taken)

    def delete(self, names: Iterable[str]) -> None:
        """Delete, and count the names."""
        gone = tuple(names)
        try:
            self._inner.delete(gone)
        except BaseException:
            self._count("delete", failures=len(gone))
            raise
        self._count("delete", operations=len(gone))

    def free_space(self) -> int | None:
        """Ask; not counted."""
        return self._inner.free_space()

    def total_space(self) -> int | None:
        """Ask; not counted."""
        return self._inner.total_space()

    def close(self) -> None:
        """Close what is metered; the counts stay."""
        self._inner.close()

    def _count(
        self, verb: str, *, operations: int = 0, size: int = 0, entries: int = 0, failures: int = 0
    ) -> None:
        with self._lock:
            old = self._counts[verb]
            self._counts[verb] = replace(
                old,
                operations=old.operations + operations,
                size=old.size + size,
                entries=old.entries + entries,
                failures=old.failures + failures,
            )
