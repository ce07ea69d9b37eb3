"""Objects in a dictionary: the double that ships, kept honest by the same contract suite.

Rule: nothing is shared with the caller. Bytes are copied in and are immutable
from then on, so a test that damages an object has to do it through `objects`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from strongroom.errors import AlreadyExists, ObjectMissing
from strongroom.storage.base import Buffer, Entry, check_name


class MemoryStorage:
    """A storage that lives as long as the process.

    `objects` maps names to bytes and may be changed by tests to tamper with what is stored.
    """

    def __init__(
        self, objects: dict[str, bytes] | None = None, *, now: Callable[[], float] = time.time
    ) -> None:
        self.objects: dict[str, bytes] = {} if objects is None else dict(objects)
        self._now = now
        self._modified = dict.fromkeys(self.objects, now())
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Return `memory:`; two memories are never the same place."""
        return "memory:"

    def fork(self) -> MemoryStorage:
        """Return a second storage with the same objects; from here on they part ways."""
        with self._lock:
            other = MemoryStorage(self.objects, now=self._now)
            other._modified.update(self._modified)
        return other

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        """Store a copy of `data`; AlreadyExists if `if_absent` and the name is taken."""
        check_name(name)
        kept = bytes(data)
        with self._lock:
            if if_absent and name in self.objects:
                raise AlreadyExists(f"{name} exists already in {self.url}")
            self.objects[name] = kept
            self._modified[name] = self._now()

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the object or a range of it; ObjectMissing if it is not there."""
        check_name(name)
        if offset < 0 or (length is not None and length < 0):
            raise ValueError("offset and length are not negative")
        with self._lock:
            kept = self.objects.get(name)
        if kept is None:
            raise ObjectMissing(f"{self.url} holds no object {name}")
        return kept[offset : None if length is None else offset + length]

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield what was there when the listing began, sorted by name."""
        with self._lock:
            found = [
                Entry(name, len(kept), self._modified.get(name))
                for name, kept in self.objects.items()
                if name.startswith(prefix)
            ]
        found.sort(key=lambda entry: entry.name)
        yield from found

    def delete(self, names: Iterable[str]) -> None:
        """Forget the named objects."""
        for name in names:
            check_name(name)
            with self._lock:
                self.objects.pop(name, None)
                self._modified.pop(name, None)

    def free_space(self) -> int | None:
        """Return None: memory does not tell."""
        return None

    def total_space(self) -> int | None:
        """Return None: memory does not tell."""
        return None

    def close(self) -> None:
        """Keep everything: a closed memory can be opened again by its owner."""
