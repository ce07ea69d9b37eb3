"""Compare two directories byte for byte and fact for fact, as the demo and the tests do.

Both are walked in step, in path order. Told apart: kind, mode, owner, mtime in nanoseconds,
size and bytes of files, targets of symlinks, device numbers, extended attributes (ACLs
among them), and which names are the same file. Not compared: inode numbers, ctime, atime, and
where holes lie.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from strongroom.files.walk import Walk
from strongroom.format.tree import Kind
from strongroom.kernel import (
    EXTRA_SIZE,
    KEY,
    KEY_SIZE,
    open_to_read,
    pack_xattrs,
    unpack_xattrs,
)

_BLOCK = 1024 * 1024
_FILE, _LINK, _CHARACTER, _BLOCK_DEVICE = 8, 10, 2, 6


class Difference(NamedTuple):
    """A raw path and what is different there."""

    path: bytes
    what: str


class _Seen(NamedTuple):
    path: bytes
    fd: int
    name: bytes
    key: bytes
    inode: bytes


def compare_trees(a: bytes, b: bytes, *, owner: bool = True) -> list[Difference]:
    """Return what differs between the directories `a` and `b`, in path order; [] when nothing does.

    `owner` False leaves user and group out. OSError when a root cannot be opened.
    """
    found: list[Difference] = []
    left = os.open(a, os.O_RDONLY | os.O_DIRECTORY)
    try:
        right = os.open(b, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _compare(left, right, found, owner=owner)
        finally:
            os.close(right)
    finally:
        os.close(left)
    return found


def _compare(left: int, right: int, found: list[Difference], *, owner: bool) -> None:
    links: tuple[dict[bytes, bytes], dict[bytes, bytes]] = ({}, {})
    one, two = _entries(left, "left", found), _entries(right, "right", found)
    x, y = next(one, None), next(two, None)
    while x or y:
        if y is None or (x is not None and x.path < y.path):
            assert x is not None
            found.append(Difference(x.path, "only in the left one"))
            x = next(one, None)
        elif x is None or y.path < x.path:
            found.append(Difference(y.path, "only in the right one"))
            y = next(two, None)
        else:
            found += [Difference(x.path, what) for what in _differences(x, y, links, owner)]
            x, y = next(one, None), next(two, None)


def _entries(root: int, side: str, found: list[Difference]) -> Iterator[_Seen]:
    walk = Walk(root, lambda path, why: found.append(Difference(path, f"{side}: {why}")))
    runs = walk.runs()
    first = next(runs, None)
    yield _Seen(b"", root, b".", walk.root_stat[:KEY_SIZE], b"")
    run = first
    while run is not None:
        for number in range(run.start, run.stop):
            key = run.keys[number * KEY_SIZE : (number + 1) * KEY_SIZE]
            device = run.extras[number * EXTRA_SIZE : number * EXTRA_SIZE + 8]
            name = run.names[number]
            yield _Seen(run.prefix + name, run.fd, name, key, device + key[24:32])
        run = next(runs, None)


def _differences(
    x: _Seen, y: _Seen, links: tuple[dict[bytes, bytes], dict[bytes, bytes]], owner: bool
) -> Iterator[str]:
    mode_x, links_x, *owner_x, rdev_x, _, size_x, mtime_x, _ = KEY.unpack(x.key)
    mode_y, links_y, *owner_y, rdev_y, _, size_y, mtime_y, _ = KEY.unpack(y.key)
    kind = mode_x >> 12
    if kind != mode_y >> 12:
        yield f"kinds {_kind(kind)} and {_kind(mode_y >> 12)}"
        return
    if mode_x != mode_y:
        yield f"modes {mode_x & 0o7777:o} and {mode_y & 0o7777:o}"
    if owner and owner_x != owner_y:
        yield f"owners {owner_x} and {owner_y}"
    if mtime_x != mtime_y:
        yield f"times {mtime_x} and {mtime_y}"
    if kind in (_CHARACTER, _BLOCK_DEVICE) and rdev_x != rdev_y:
        yield "device numbers"
    if _xattrs(x) != _xattrs(y):
        yield "extended attributes"
    if kind == _LINK and os.readlink(x.name, dir_fd=x.fd) != os.readlink(y.name, dir_fd=y.fd):
        yield "symlink targets"
    if kind == _FILE:
        yield from _file_differences(x, y, (size_x, size_y), links)
        if links_x > 1 or links_y > 1:
            firsts = links[0].setdefault(x.inode, x.path), links[1].setdefault(y.inode, y.path)
            if firsts[0] != firsts[1]:
                yield "which names are the same file"


def _file_differences(
    x: _Seen,
    y: _Seen,
    sizes: tuple[int, int],
    links: tuple[dict[bytes, bytes], dict[bytes, bytes]],
) -> Iterator[str]:
    if sizes[0] != sizes[1]:
        yield f"sizes {sizes[0]} and {sizes[1]}"
    elif sizes[0] and x.inode not in links[0] and not _same_bytes(x, y):
        yield "content"


def _same_bytes(x: _Seen, y: _Seen) -> bool:
    left = open_to_read(x.fd, x.name)
    try:
        right = open_to_read(y.fd, y.name)
        try:
            while True:
                block = os.read(left, _BLOCK)
                if block != _read_exactly(right, len(block) or 1):
                    return False
                if not block:
                    return True
        finally:
            os.close(right)
    finally:
        os.close(left)


def _read_exactly(fd: int, size: int) -> bytes:
    parts = []
    while size and (part := os.read(fd, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _xattrs(seen: _Seen) -> object:
    return unpack_xattrs(pack_xattrs(b"/proc/self/fd/%d/%s" % (seen.fd, seen.name)))


_KINDS = {8: Kind.FILE, 4: Kind.DIRECTORY, 10: Kind.SYMLINK, 1: Kind.FIFO, 2: Kind.CHARACTER,
          6: Kind.BLOCK, 12: Kind.SOCKET}  # fmt: skip


def _kind(kind: int) -> str:
    return _KINDS[kind].name.lower() if kind in _KINDS else str(kind)
