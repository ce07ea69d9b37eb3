"""The tree of a physical backup as an overlay: what a server of its own finds when it starts.

Names, modes and sizes of all files are there, and nothing of what is in them.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from strongroom.format.tree import Kind
from strongroom.postgres.open.overlay import Node, Overlay
from strongroom.postgres.physical.facts import PhysicalFacts
from strongroom.postgres.physical.layout import relation
from strongroom.postgres.recovery.settings import RECOVERY_SIGNAL, STANDBY_SIGNAL
from strongroom.postgres.recovery.sink import check_path, space_map
from strongroom.repository.reader import SnapshotReader

DATA = b"data"
SPACES = b"tablespaces"
_WAL = b"pg_wal"
_FIRST_OF_USERS = 16384  # numbers below are the catalogues' (access/transam.h)


def plant(
    overlay: Overlay,
    snapshot: SnapshotReader,
    facts: PhysicalFacts,
    *,
    mount: bytes,
    wal: bytes,
    keep: Callable[[bytes, bytes], None],
) -> Node:
    """Fill an overlay that will be mounted at `mount`; the data directory's node.

    The log is kept beside, in the real directory `wal`, which pg_wal leads to: it is written often and
    read once. `keep` gets what of it is in the backup itself, by its path in there.
    """
    data = overlay.folder(DATA)
    overlay.folder(SPACES)
    above = DATA + b"/" + _WAL + b"/"
    folders: dict[bytes, Node] = {}
    for entry in snapshot.entries():
        path = entry.path
        if not path.startswith((DATA + b"/", SPACES + b"/")):
            continue
        check_path(path)
        if path.startswith(above):
            if entry.kind is Kind.FILE:
                keep(path[len(above) :], b"".join(bytes(one) for one in snapshot.stream(entry)))
            elif entry.kind is Kind.DIRECTORY:
                os.makedirs(os.path.join(wal, path[len(above) :]), mode=0o700, exist_ok=True)
        elif entry.kind is Kind.DIRECTORY:
            overlay.folder(path)
        elif entry.kind in (Kind.FILE, Kind.STREAM):
            folder, _, name = path.rpartition(b"/")
            node = folders.get(folder)
            if node is None:
                node = folders[folder] = overlay.folder(folder)
            overlay.place(node, name, entry)
    overlay.link_to(data, _WAL, wal)
    for signal in (RECOVERY_SIGNAL, STANDBY_SIGNAL, b"postmaster.pid"):
        overlay.remove(data, signal)
    spaces = {
        space.oid: mount + b"/" + SPACES + b"/" + space.oid.encode()
        for space in facts.tablespaces
        if space.location.startswith(b"/")
    }
    if spaces:
        links = overlay.folder(DATA + b"/pg_tblspc")
        for oid, place in spaces.items():
            overlay.folder(SPACES + b"/" + oid.encode())
            overlay.link_to(links, oid.encode(), place)
        if facts.tablespace_map:
            overlay.put(data, b"tablespace_map", space_map(spaces))
    return data


def asked_first(overlay: Overlay, limit: int) -> list[Node]:
    """The files that a server looks at before anybody asks it anything: the catalogues of the cluster
    and of each database, so many bytes of them."""
    found: list[Node] = []
    base = overlay.folder(DATA + b"/base")
    for folder in (overlay.folder(DATA + b"/global"), *(base.children or {}).values()):
        for name, node in (folder.children or {}).items():
            number = relation(name)
            if node.base_end and (number is None or number.number < _FIRST_OF_USERS):
                limit -= node.base_end
                if limit < 0:
                    return found
                found.append(node)
    return found


__all__ = ["DATA", "asked_first", "plant"]
