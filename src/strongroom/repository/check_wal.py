"""What `check` does about the WAL: one run's look at everything below `wal/`.

L0   every record opens; every file is as long as its head, or a summary, says; a file that a
     summary tells of is there
L2   a file's bytes are those its signed record names (needs no reader's key)
L3   its frames open to the content whose digest the record holds
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from strongroom.errors import Damaged, ObjectMissing, StrongroomError
from strongroom.format import walfile
from strongroom.format.wal import WalKind, kind_of
from strongroom.repository.repository import Repository
from strongroom.repository.wal import WalStore
from strongroom.storage.base import Storage


class WalCheck:
    """Looks at the objects in `sizes` (bytes by name).

    `found(name, reason)` is told of damage, `missed(name, fault)` of what cannot be reached.
    """

    def __init__(
        self,
        repository: Repository,
        storage: Storage,
        sizes: Mapping[str, int],
        *,
        found: Callable[[str, str], None],
        missed: Callable[[str, StrongroomError], None],
    ) -> None:
        self._store = WalStore(repository, storage=storage)
        self._storage, self._sizes = storage, sizes
        self._found, self._missed = found, missed
        self.files: list[str] = []
        self.notes: list[str] = []

    def records(self) -> None:
        """L0: all but the contents; fills `files` and `notes`."""
        summaries, files = [], []
        for name in sorted(one for one in self._sizes if one.startswith(walfile.PREFIX)):
            try:
                sort = walfile.parse_object(name).sort
            except ValueError:
                self.notes.append(f"{name} is not an object of the repository")
                continue
            if sort in ("file", "parts"):
                files.append(name)
            elif sort == "summaries":
                summaries.append(name)
            elif self._try(name, self._store.open_record) and sort == "conflicts":
                self.notes.append(
                    f"{name}: other content was offered for this file and refused;"
                    " `strongroom wal status` tells more"
                )
        told: dict[str, int] = {}
        for name in summaries:
            self._try(name, lambda name: told.update(self._told(name)))
        for name in sorted({*files, *told}):
            self._length(name, told)
        self.files = files

    def verify(self, name: str, *, deep: bool) -> str | None:
        """L2, and with `deep` L3: why a file is damaged; raises why it cannot be read."""
        try:
            self._store.verify(name, self._storage.get(name), deep=deep)
        except (Damaged, ObjectMissing) as fault:
            if isinstance(fault, ObjectMissing) and walfile.parse_object(name).sort == "parts":
                return None  # its segment is whole by now
            return f"{fault.what.rstrip('.')}{consequence(name)}"
        return None

    def _told(self, summary: str) -> dict[str, int]:
        place = summary.split("summaries/", 1)[0]
        return {place + each.name: each.stored for each in self._store.read_summary(summary)}

    def _length(self, name: str, told: Mapping[str, int]) -> None:
        size, length = self._sizes.get(name), told.get(name)
        if size is None:
            reason = "the file is gone; a summary tells that it was here"
            self._found(name, reason + consequence(name))
        elif size != length:
            self._try(name, self._measure)

    def _measure(self, name: str) -> None:
        length, _ = self._store.read_head(name)
        if length != self._sizes[name]:
            raise Damaged(f"the file has {self._sizes[name]} bytes; it was put with {length}")

    def _try(self, name: str, look: Callable[[str], object]) -> bool:
        try:
            look(name)
        except Damaged as fault:
            file = walfile.parse_object(name).sort in ("file", "parts")
            self._found(name, fault.what.rstrip(".") + (consequence(name) if file else ""))
        except ObjectMissing:
            self.notes.append(f"{name} went away during the check")
        except StrongroomError as fault:
            self._missed(name, fault)
        else:
            return True
        return False


def consequence(name: str) -> str:
    """What it means that a file is lost."""
    place = walfile.parse_object(name)
    if place.sort == "parts":
        return ": if the server is lost now, the newest of its log is lost with it"
    kind = kind_of(place.name)
    if kind is WalKind.SEGMENT:
        return f": recovery on timeline {place.timeline} cannot go past the start of this segment"
    if kind is WalKind.HISTORY:
        return f": recovery does not find the way to timeline {place.timeline}"
    return ""
