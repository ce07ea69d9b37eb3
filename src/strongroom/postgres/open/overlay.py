"""A tree of files that is the backup's until it is written to: names, attributes, which bytes are whose.

Rule: nothing here waits for the repository. A read is planned: which bytes are in scratch, which are
of which chunk, which are zeros; whoever asks fetches the chunks. A write marks its blocks as scratch's;
blocks are pages of the kernel (4 KiB), so that a page that it writes back needs nothing fetched.

The base of a file reaches to `base_end`: a truncation cuts it for good, so that what a file grows by
afterwards is zeros. Bytes in scratch outside of blocks marked as its own are zeros.
Faults are OSErrors, as the kernel understands them. Safe for threads.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from strongroom.format.tree import Entry
from strongroom.postgres.open.extents import Extents

BLOCK = 4096
_SHIFT = 12
ROOT = 1
NO_REPLACE, EXCHANGE = 1, 2
KEEP_SIZE = 1


class Scratch(Protocol):
    """Where written bytes are: one sparse file for each node."""

    def read(self, node: int, offset: int, size: int) -> bytes:
        """Bytes; shorter at the end of what was ever written."""

    def write(self, node: int, offset: int, data: bytes | memoryview) -> None:
        """Keep bytes."""

    def truncate(self, node: int, size: int) -> None:
        """What is behind is zeros from now on."""

    def drop(self, node: int) -> None:
        """Nobody will ask for a node again."""


class Node:
    """A file, directory or symbolic link. `mode` has its type; times in nanoseconds."""

    __slots__ = (
        "ahead",
        "base_end",
        "children",
        "dirty",
        "entry",
        "extents",
        "gid",
        "id",
        "known",
        "mode",
        "mtime_ns",
        "names",
        "next",
        "run",
        "size",
        "target",
        "uid",
    )

    def __init__(self, number: int, mode: int, uid: int, gid: int, mtime_ns: int) -> None:
        self.id, self.mode, self.uid, self.gid, self.mtime_ns = number, mode, uid, gid, mtime_ns
        self.size = 0
        self.names = 1  # how many lead to it
        self.known = 0  # references that the kernel holds
        self.children: dict[bytes, Node] | None = {} if stat.S_ISDIR(mode) else None
        self.target = b""
        self.entry: Entry | None = None  # whose content shows where scratch has nothing
        self.extents: Extents | None = None  # of the entry, once they were asked for
        self.base_end = 0
        self.dirty: bytearray | None = None  # blocks that are scratch's; None where all are or none
        # Where the next read is expected, how much was read in order, up to where was fetched ahead.
        self.next = self.run = self.ahead = 0


class Piece(NamedTuple):
    """A run of bytes of a read: of a chunk; of scratch at an offset; or zeros (id None, place -1)."""

    length: int
    id: bytes | None
    place: int  # in the chunk, or in the file


class Unloaded(Exception):
    """A read needs the extents of a node, and nobody has loaded them."""


class Overlay:
    """The tree. The caller has made sure that names are names (no slash, not "." or "..")."""

    def __init__(self, scratch: Scratch, *, owner: tuple[int, int], now: Callable[[], int]) -> None:
        self._scratch, self._now = scratch, now
        self.owner = owner
        self.nodes: dict[int, Node] = {}
        self._last = 0
        self._lock = threading.RLock()
        self.root = self._new(stat.S_IFDIR | 0o700, *owner)

    # -- making ----------------------------------------------------------------------------

    def _new(self, mode: int, uid: int, gid: int) -> Node:
        self._last += 1
        node = self.nodes[self._last] = Node(self._last, mode, uid, gid, self._now())
        return node

    def folder(self, path: bytes, mode: int = 0o700) -> Node:
        """The directory at a path, made with those above it where it is not there."""
        node = self.root
        for name in path.split(b"/") if path else ():
            assert node.children is not None
            child = node.children.get(name)
            if child is None:
                child = node.children[name] = self._new(stat.S_IFDIR | mode, *self.owner)
            node = child
        return node

    def place(self, folder: Node, name: bytes, entry: Entry) -> Node:
        """A file whose content is an entry's."""
        assert folder.children is not None
        node = self._new(stat.S_IFREG | (entry.mode & 0o777), *self.owner)
        folder.children[name] = node
        node.mtime_ns, node.size = entry.mtime_ns, entry.size
        if entry.size:
            node.entry, node.base_end = entry, entry.size
        return node

    def put(self, folder: Node, name: bytes, content: bytes) -> Node:
        """A file of our own, in place of what has its name."""
        self._forget_name(folder, name)
        node = self.create(folder, name, 0o600, *self.owner)
        if content:
            self.write(node, 0, content)
        return node

    def link_to(self, folder: Node, name: bytes, target: bytes) -> Node:
        """A symbolic link of our own, in place of what has its name."""
        self._forget_name(folder, name)
        return self.symlink(folder, name, target, *self.owner)

    def remove(self, folder: Node, name: bytes) -> None:
        """Be sure that a name is not there."""
        self._forget_name(folder, name)

    def _forget_name(self, folder: Node, name: bytes) -> None:
        assert folder.children is not None
        node = folder.children.pop(name, None)
        if node is not None:
            self._unname(node)

    # -- names -----------------------------------------------------------------------------

    def find(self, path: bytes) -> Node | None:
        """The node at a path from the root; links are not followed."""
        node = self.root
        for name in path.split(b"/") if path else ():
            child = (node.children or {}).get(name)
            if child is None:
                return None
            node = child
        return node

    def node(self, number: int) -> Node:
        """A node by its number; ESTALE when it is gone."""
        node = self.nodes.get(number)
        if node is None:
            raise OSError(errno.ESTALE, "gone")
        return node

    def child(self, folder: Node, name: bytes) -> Node | None:
        """What has a name in a directory."""
        return _children(folder).get(name)

    def create(self, folder: Node, name: bytes, mode: int, uid: int, gid: int) -> Node:
        """A new, empty file."""
        with self._lock:
            return self._add(folder, name, stat.S_IFREG | (mode & 0o7777), uid, gid)

    def mkdir(self, folder: Node, name: bytes, mode: int, uid: int, gid: int) -> Node:
        """A new directory."""
        with self._lock:
            return self._add(folder, name, stat.S_IFDIR | (mode & 0o7777), uid, gid)

    def symlink(self, folder: Node, name: bytes, target: bytes, uid: int, gid: int) -> Node:
        """A new symbolic link."""
        with self._lock:
            node = self._add(folder, name, stat.S_IFLNK | 0o777, uid, gid)
            node.target, node.size = target, len(target)
            return node

    def link(self, node: Node, folder: Node, name: bytes) -> Node:
        """One more name of a file."""
        with self._lock:
            if node.children is not None:
                raise OSError(errno.EPERM, "a directory")
            self._enter(folder, name, node)
            node.names += 1
            return node

    def unlink(self, folder: Node, name: bytes) -> None:
        """Take a name of a file away."""
        with self._lock:
            if _named(folder, name).children is not None:
                raise OSError(errno.EISDIR, "a directory")
            self._take_away(folder, name)

    def rmdir(self, folder: Node, name: bytes) -> None:
        """Take an empty directory away."""
        with self._lock:
            node = _named(folder, name)
            if node.children is None:
                raise OSError(errno.ENOTDIR, "no directory")
            if node.children:
                raise OSError(errno.ENOTEMPTY, "not empty")
            self._take_away(folder, name)

    def _take_away(self, folder: Node, name: bytes) -> None:
        node = _children(folder).pop(name)
        folder.mtime_ns = self._now()
        self._unname(node)

    def rename(self, old: Node, name: bytes, new: Node, to: bytes, flags: int = 0) -> None:
        """Give what has a name another one, in the place of what had it."""
        with self._lock:
            source, target = _children(old), _children(new)
            node, there = source.get(name), target.get(to)
            if node is None or (there is None and flags & EXCHANGE):
                raise OSError(errno.ENOENT, "no such name")
            if flags & EXCHANGE:
                assert there is not None
                source[name], target[to] = there, node
                return
            if there is not None:
                if flags & NO_REPLACE:
                    raise OSError(errno.EEXIST, "there is one")
                if there is node:
                    return
                if node.children is None and there.children is not None:
                    raise OSError(errno.EISDIR, "a directory")
                if node.children is not None and there.children is None:
                    raise OSError(errno.ENOTDIR, "no directory")
                if there.children:
                    raise OSError(errno.ENOTEMPTY, "not empty")
            del source[name]
            target[to] = node
            old.mtime_ns = new.mtime_ns = self._now()
            if there is not None:
                self._unname(there)

    def forget(self, number: int, count: int) -> None:
        """The kernel lets go of references."""
        with self._lock:
            node = self.nodes.get(number)
            if node is not None:
                node.known -= count
                self._reap(node)

    def _add(self, folder: Node, name: bytes, mode: int, uid: int, gid: int) -> Node:
        if name in _children(folder):
            raise OSError(errno.EEXIST, "there is one")
        node = self._new(mode, uid, gid)
        self._enter(folder, name, node)
        return node

    def _enter(self, folder: Node, name: bytes, node: Node) -> None:
        children = _children(folder)
        if name in children:
            raise OSError(errno.EEXIST, "there is one")
        if not folder.names:
            raise OSError(errno.ENOENT, "the directory is gone")
        children[name] = node
        folder.mtime_ns = self._now()

    def _unname(self, node: Node) -> None:
        node.names -= 1
        self._reap(node)

    def _reap(self, node: Node) -> None:
        if node.names <= 0 and node.known <= 0 and self.nodes.pop(node.id, None) is not None:
            self._scratch.drop(node.id)

    # -- content ---------------------------------------------------------------------------

    def plan(self, node: Node, offset: int, size: int) -> list[Piece]:
        """Whose the bytes are that a read asks for; Unloaded when the extents must be had first."""
        with self._lock:
            end = min(offset + size, node.size)
            if offset >= end:
                return []
            if node.entry is None:
                return [Piece(end - offset, None, offset)]
            if node.dirty is None:
                return self._of_base(node, offset, end)
            found: list[Piece] = []
            for ours, begin, stop in _runs(node.dirty, offset, end):
                if ours:
                    found.append(Piece(stop - begin, None, begin))
                else:
                    found += self._of_base(node, begin, stop)
            return found

    @staticmethod
    def _of_base(node: Node, begin: int, end: int) -> list[Piece]:
        stop = min(end, node.base_end)
        found = []
        if begin < stop:
            if node.extents is None:
                raise Unloaded
            found = [
                Piece(length, chunk, place if chunk is not None else -1)
                for length, chunk, place in node.extents.parts(begin, stop)
            ]
            begin = stop
        if begin < end:
            found.append(Piece(end - begin, None, -1))
        return found

    def scratch(self, node: Node, piece: Piece) -> bytes:
        """The bytes of a piece that is no chunk's."""
        if piece.place < 0:
            return bytes(piece.length)
        data = self._scratch.read(node.id, piece.place, piece.length)
        return data if len(data) == piece.length else data + bytes(piece.length - len(data))

    def lacking(self, node: Node, offset: int, size: int) -> list[tuple[int, int]]:
        """Ranges of the base that must be in scratch before a write: the rest of the blocks that it
        covers in part only."""
        with self._lock:
            if node.entry is None or not size:
                return []
            end, found = offset + size, []
            for low, high in (
                (offset & ~(BLOCK - 1), offset),
                (end, min((end + BLOCK - 1) & ~(BLOCK - 1), node.base_end)),
            ):
                block = low >> _SHIFT
                ours = node.dirty is not None and block < len(node.dirty) and node.dirty[block]
                if low < min(high, node.base_end) and not ours:
                    found.append((low, min(high, node.base_end)))
            return found

    def fill(self, node: Node, offset: int, data: bytes) -> None:
        """Put into scratch what the base has there; the write that needs it follows."""
        self._scratch.write(node.id, offset, data)

    def write(self, node: Node, offset: int, data: bytes | memoryview) -> None:
        """Write; what `lacking` named is in scratch."""
        size = len(data)
        if not size:
            return
        with self._lock:
            self._scratch.write(node.id, offset, data)
            end = offset + size
            if node.entry is not None:
                dirty = node.dirty
                if dirty is None:
                    dirty = node.dirty = bytearray(-(-max(node.size, end) >> _SHIFT))
                first, last = offset >> _SHIFT, (end + BLOCK - 1) >> _SHIFT
                if len(dirty) < last:
                    dirty.extend(bytes(last - len(dirty)))
                dirty[first:last] = b"\1" * (last - first)
            node.size = max(node.size, end)

    def truncate(self, node: Node, size: int) -> None:
        """Set the size; what a file grows by is zeros."""
        with self._lock:
            if node.children is not None:
                raise OSError(errno.EISDIR, "a directory")
            if size < node.size:
                node.base_end = min(node.base_end, size)
                if node.dirty is not None:
                    del node.dirty[(size + BLOCK - 1) >> _SHIFT :]
                if node.base_end == 0:
                    node.entry = node.extents = node.dirty = None
                self._scratch.truncate(node.id, size)
            node.size = size

    def allocate(self, node: Node, offset: int, length: int, mode: int) -> None:
        """Make room, which is to say nothing but the size."""
        if mode & ~KEEP_SIZE:
            raise OSError(errno.EOPNOTSUPP, "not here")
        with self._lock:
            if not mode & KEEP_SIZE:
                node.size = max(node.size, offset + length)


def _named(folder: Node, name: bytes) -> Node:
    """What has a name in a directory; ENOENT."""
    node = _children(folder).get(name)
    if node is None:
        raise OSError(errno.ENOENT, "no such name")
    return node


def _children(folder: Node) -> dict[bytes, Node]:
    if folder.children is None:
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return folder.children


def _runs(dirty: bytearray, begin: int, end: int) -> Iterator[tuple[bool, int, int]]:
    """Cut a range where blocks of scratch and of the base meet: (is it scratch's, begin, end)."""
    limit = (end + BLOCK - 1) >> _SHIFT
    while begin < end:
        block = begin >> _SHIFT
        ours = block < len(dirty) and dirty[block] == 1
        after = dirty.find(0 if ours else 1, block, limit)
        if after < 0:  # what is behind the marks is zeros on both sides
            after = limit
        stop = min(after << _SHIFT, end)
        yield ours, begin, stop
        begin = stop


__all__ = ["BLOCK", "ROOT", "Node", "Overlay", "Piece", "Scratch", "Unloaded"]
