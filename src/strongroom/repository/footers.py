"""What packs say of themselves: each ends in a sealed segment of that pack alone.

All of the index may be lost: footers say the same. They cost a read of every pack, so they are
asked only where a segment is lost, or where a run died before it put one.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator

from strongroom.errors import ObjectMissing, StorageDenied, StrongroomError, Unreachable
from strongroom.format import pack, record, segment
from strongroom.format.segment import Segment
from strongroom.repository.catalogue import Catalogue
from strongroom.storage.base import Storage

_TAIL = 64 * 1024


def footers(
    catalogue: Catalogue,
    known: Container[bytes],
    *,
    unreached: Callable[[str, StrongroomError], None] | None = None,
) -> Iterator[Segment]:
    """Yield the index rows of every pack that is not `known`, from its footer.

    A torn or foreign pack is passed over: it is no use, and check names it. One that cannot be
    reached is told to `unreached`; without that, it raises.
    """
    for folder in ("packs", "trees"):
        for entry in catalogue.storage.list(f"{folder}/"):
            try:
                tree, name = pack.parse_name(entry.name)
                if name in known:
                    continue
                rows = read_footer(catalogue.storage, catalogue, entry.name, entry.size)
            except (ValueError, ObjectMissing):
                continue
            except (Unreachable, StorageDenied) as fault:
                if unreached is None:
                    raise
                unreached(entry.name, fault)
                continue
            if len(rows.packs) == 1:
                rows.packs = [(tree, name)]
                yield rows


def read_footer(storage: Storage, catalogue: Catalogue, name: str, size: int) -> Segment:
    """Read the footer of a pack of `size` bytes; ValueError when it does not open."""
    tail = storage.get(name, offset=max(0, size - _TAIL), length=min(size, _TAIL))
    if len(tail) < pack.TRAILER.size:
        raise ValueError("the pack is cut short")
    length, end = pack.TRAILER.unpack(tail[-pack.TRAILER.size :])
    total = length + pack.TRAILER.size
    if end != pack.END or total > size:
        raise ValueError("the pack does not end as packs do")
    if total > len(tail):
        tail = storage.get(name, offset=size - total, length=total)
    return open_footer(catalogue, name, tail[-total : -pack.TRAILER.size])


def open_footer(catalogue: Catalogue, name: str, sealed: bytes | memoryview) -> Segment:
    """Open a pack's footer; ValueError when it is damaged."""
    _, body = catalogue.records.open(sealed, name.split("/", 1)[0], record.FOOTER)
    return segment.decode(body)
