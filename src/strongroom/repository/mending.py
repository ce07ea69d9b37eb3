"""An index that lost segments is mended by the next backup, with a writer's keys.

    1  rows for every pack of the group that no good segment tells of, from the packs' footers
    2  a segment that makes the lost ones void, but only once all is told that a snapshot relies on

Nothing is deleted and nothing overwritten, so an ordinary backup may do it. A crash between the
steps, two runs at once, or a run that still puts packs meanwhile only tell something twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from strongroom.errors import StrongroomError
from strongroom.format import segment
from strongroom.format.segment import Segment
from strongroom.repository.catalogue import Catalogue, Refs
from strongroom.repository.footers import footers
from strongroom.repository.index import Index


def mend(
    catalogue: Catalogue,
    group: str,
    index: Index,
    faults: Mapping[str, StrongroomError],
    *,
    now: datetime,
    rows: int,
) -> str:
    """Tell anew what the segments in `faults` told, `rows` chunks a segment; return what was done.

    `index` is what the others tell. Read the index again afterwards.
    """
    refs = list(catalogue.committed_refs(group))
    told = _tell(catalogue, group, index, refs, now=now, rows=rows)
    again, still = catalogue.read_index(group, condemned=frozenset())
    lost = sorted(set(still) & set(faults))
    whole = not again.hollow().any() and all(
        one is not None and not again.unknown(one.frames) for one in refs
    )
    if lost and whole:
        catalogue.put_index(group, segment.joined([], replaces=lost), now=now)
    what = "; ".join(fault.what.rstrip(".") for fault in faults.values())
    if whole:
        return f"{what}. The footers of {told} packs told the same; the index is mended."
    return (
        f"{what}. The footers of {told} packs told some of the same, not all that earlier backups "
        "rely on: `strongroom check` names them. This backup relies on none of what is lost."
    )


def _tell(
    catalogue: Catalogue,
    group: str,
    index: Index,
    refs: Sequence[Refs | None],
    *,
    now: datetime,
    rows: int,
) -> int:
    """Put segments of what the footers of untold packs say; return how many packs that were.

    A footer does not say its group; its sessions do. Condemned packs count: earlier snapshots may
    rely on them.
    """
    ours = set(catalogue.marks(group)) | {session.id.hex() for session in index.sessions}
    ours |= {session for one in refs if one is not None for session in one.frames}
    pending: list[Segment] = []
    told = chunks = 0
    for found in footers(catalogue, index.told_packs()):
        if not any(session.id.hex() in ours for session in found.sessions):
            continue
        pending.append(found)
        told, chunks = told + 1, chunks + len(found.lengths)
        if chunks >= rows:
            catalogue.put_index(group, segment.joined(pending), now=now)
            pending, chunks = [], 0
    if pending:
        catalogue.put_index(group, segment.joined(pending), now=now)
    return told
