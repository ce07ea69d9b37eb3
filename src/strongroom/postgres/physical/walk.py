"""What there is to copy: a data directory and its tablespaces, listed once. Nothing is read.

Links are followed at pg_tblspc/<oid> only; pg_wal and the other directories whose contents are left
out may be links and become directories. The sizes found here are those that are copied: what a file
grows by afterwards is in the WAL.
"""

from __future__ import annotations

import errno
import os
import stat as modes
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from strongroom.errors import Refused, StrongroomError
from strongroom.format.tree import Entry, Kind
from strongroom.kernel import EXTRA, EXTRA_SIZE, KEY, KEY_SIZE, scan_dir
from strongroom.postgres.physical import layout
from strongroom.postgres.physical.facts import DATA, TABLESPACES, Tablespace
from strongroom.postgres.physical.layout import Relation

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK
_LINKS, _DIRECTORY, _FILE = modes.S_IFLNK >> 12, modes.S_IFDIR >> 12, modes.S_IFREG >> 12
_MOUNT_POINT = b"lost+found"  # of a file system that is mounted here: root's own
_SERVERS_OWN = (
    b"base", b"global", b"pg_commit_ts", b"pg_logical", b"pg_multixact", b"pg_tblspc",
    b"pg_twophase", b"pg_xact", b"PG_VERSION",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Root:
    """Where files are opened from: the data directory or a tablespace's location."""

    fd: int
    path: bytes  # absolute, no links in it
    tree: bytes  # its path in the tree
    manifest: bytes  # its path below the data directory; b"" for that itself
    device: int


@dataclass(frozen=True, slots=True)
class FileFound:
    """A file to copy. `name` is its path below its root, `key` what stays while it stays the same."""

    root: Root
    name: bytes
    key: bytes
    device: int
    relation: Relation | None

    @property
    def size(self) -> int:
        """Bytes, when it was listed."""
        return int.from_bytes(self.key[32:40], "little")

    @property
    def changed(self) -> int:
        """The later of mtime and ctime, in nanoseconds since 1970."""
        return int(max(KEY.unpack(self.key)[-2:]))

    @property
    def path(self) -> bytes:
        """Its path as PostgreSQL writes it."""
        return join(self.root.manifest, self.name)

    @property
    def tree(self) -> bytes:
        """Its path in the snapshot."""
        return join(self.root.tree, self.name)

    @property
    def essential(self) -> bool:
        """Is the copy worth nothing without it? Configuration, certificates and logs are not."""
        return bool(self.root.manifest) or self.name.split(b"/", 1)[0] in _SERVERS_OWN

    def entry(self, size: int, content: bytes) -> Entry:
        """Its entry in the snapshot."""
        mode, _, uid, gid, _, _, _, mtime, _ = KEY.unpack(self.key)
        return Entry(self.tree, Kind.FILE, mode & 0o7777, uid, gid, mtime, size, content)


def join(front: bytes, name: bytes) -> bytes:
    """The path of `name` below `front`, either of which may be empty."""
    return front + b"/" + name if front and name else front or name


@dataclass
class Listing:
    """What was found. `left_out` counts by reason; `links` are those that were not followed."""

    files: list[FileFound] = field(default_factory=list)
    directories: list[Entry] = field(default_factory=list)
    tablespaces: list[Tablespace] = field(default_factory=list)
    roots: list[Root] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def close(self) -> None:
        """Let go of the roots."""
        for root in self.roots:
            os.close(root.fd)
        self.roots = []


class Walk:
    """One listing. `told` hears of parts that are not taken: path below the data directory, reason."""

    def __init__(
        self,
        data_directory: bytes,
        *,
        major: int,
        catalog_version: int,
        told: Callable[[bytes, str], None],
        emptied: frozenset[bytes] = layout.EMPTIED,
    ) -> None:
        self._path = os.path.realpath(data_directory)
        self._version = layout.version_directory(major, catalog_version)
        self._wal = layout.WAL_DIRECTORIES_17 if major >= 17 else layout.WAL_DIRECTORIES
        self._told, self._emptied = told, emptied
        self._inside: set[bytes] = set()
        self.listing = Listing()

    def run(self) -> Listing:
        """List everything; the caller closes the listing."""
        listing = self.listing
        try:
            root = self._root(self._path, DATA, b"")
            self._tablespaces_first(root)
            self._directory(root, root.fd, b"")
            for space in listing.tablespaces:
                self._tablespace(space)
        except BaseException:
            listing.close()
            raise
        return listing

    def _root(self, path: bytes, tree: bytes, manifest: bytes) -> Root:
        try:
            fd = os.open(path, DIRECTORY_FLAGS)
        except FileNotFoundError:
            if manifest:
                raise
            raise _unreadable(path, OSError(errno.ENOENT, "there is no such directory")) from None
        except OSError as fault:
            raise _unreadable(path, fault) from None
        facts = os.fstat(fd)
        root = Root(fd, path, tree, manifest, facts.st_dev)
        self.listing.roots.append(root)
        self._add_directory(tree, facts)
        return root

    def _add_directory(self, tree: bytes, facts: os.stat_result) -> None:
        mode = facts.st_mode & 0o7777
        self.listing.directories.append(
            Entry(tree, Kind.DIRECTORY, mode, facts.st_uid, facts.st_gid, facts.st_mtime_ns)
        )

    def _tablespaces_first(self, root: Root) -> None:
        """Where tablespaces are: one inside the data directory is not to be copied twice."""
        links = os.path.join(root.path, layout.TABLESPACE_LINKS)
        for name in sorted(os.listdir(links)):
            path = os.path.join(links, name)
            if not name.isdigit() or not os.path.islink(path):
                continue
            location = os.readlink(path)
            real = os.path.realpath(os.path.join(links, location))
            if real.startswith(root.path + b"/"):
                self._inside.add(real[len(root.path) + 1 :])
            oid = name.decode("ascii")
            self.listing.tablespaces.append(Tablespace(oid, location))

    def _tablespace(self, space: Tablespace) -> None:
        oid = space.oid.encode("ascii")
        links = os.path.join(self._path, layout.TABLESPACE_LINKS)
        real = os.path.realpath(os.path.join(links, oid))
        try:
            root = self._root(real, join(TABLESPACES, oid), layout.tablespace_path(space.oid))
            fd = os.open(self._version, DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=root.fd)
        except FileNotFoundError as fault:
            if os.path.lexists(os.path.join(links, oid)):  # not dropped: its disk is not mounted?
                raise _unreadable(join(real, self._version), fault) from None
            return  # recovery knows
        try:
            self._add_directory(join(root.tree, self._version), os.fstat(fd))
            self._directory(root, fd, self._version)
        finally:
            os.close(fd)

    def _directory(self, root: Root, fd: int, path: bytes) -> None:
        """List what is in a directory; `path` is below the root."""
        names, kinds, keys, extras, failed = scan_dir(fd)
        full = join(root.manifest, path)
        for name, code in failed:
            if not name or code != errno.ENOENT:
                raise _unreadable(join(full, name), OSError(code, os.strerror(code)))
        left_out = layout.left_out(full, names)
        for number, name in enumerate(names):
            if name in left_out:
                self.listing.left_out[left_out[name].value] += 1
                continue
            key = keys[number * KEY_SIZE : (number + 1) * KEY_SIZE]
            below, kind = join(path, name), kinds[number]
            if join(root.manifest, below) in self._emptied and kind in (_DIRECTORY, _LINKS):
                self._empty(root, fd, below, name)
            elif kind == _FILE:
                (device, _) = EXTRA.unpack_from(extras, number * EXTRA_SIZE)
                one = layout.relation(name) if layout.holds_relations(full) else None
                self.listing.files.append(FileFound(root, below, key, device, one))
            elif kind == _DIRECTORY:
                self._below(root, fd, below, name)
            elif kind == _LINKS:
                self._link(full, name)
            else:
                self.listing.left_out["special file"] += 1

    def _below(self, root: Root, fd: int, below: bytes, name: bytes) -> None:
        if name == _MOUNT_POINT:
            self.listing.left_out["mount point's own"] += 1
            return
        try:
            child = os.open(name, DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=fd)
        except FileNotFoundError:  # a database or a tablespace was dropped
            return
        except OSError as fault:
            if below.split(b"/", 1)[0] in _SERVERS_OWN or root.manifest:
                raise _unreadable(join(root.manifest, below), fault) from None
            self._told(join(root.tree, below), f"it cannot be read: {fault.strerror}")
            return
        try:
            self._add_directory(join(root.tree, below), os.fstat(child))
            if not (root.manifest or below not in self._inside):
                self.listing.left_out["tablespace inside"] += 1
                return
            self._directory(root, child, below)
        finally:
            os.close(child)

    def _empty(self, root: Root, fd: int, below: bytes, name: bytes) -> None:
        """A directory of which only itself is taken, link or not."""
        try:
            facts = os.stat(name, dir_fd=fd)
        except FileNotFoundError:
            return
        tree = join(root.tree, below)
        self._add_directory(tree, facts)
        if below == b"pg_wal":
            for inner in self._wal:
                self._add_directory(join(root.tree, inner), facts)

    def _link(self, directory: bytes, name: bytes) -> None:
        if directory == layout.TABLESPACE_LINKS and name.isdigit():
            return
        self._told(
            join(DATA, join(directory, name)),
            "it is a symbolic link, which is followed in pg_tblspc only: what it leads to is not"
            " in the backup",
        )


def _unreadable(path: bytes, fault: OSError) -> StrongroomError:
    shape = path.decode("utf-8", "backslashreplace")
    return Refused(
        f"{shape} of the data directory cannot be read: {fault.strerror}.",
        means="No snapshot was written; earlier snapshots are untouched.",
        do="Run as the account of the server (often postgres), or as root.",
    )


def files_by_size(files: list[FileFound]) -> Iterator[FileFound]:
    """The largest first, so that no thread is left alone with one at the end."""
    yield from sorted(files, key=lambda found: (-found.size, found.tree))


__all__ = ["FileFound", "Listing", "Root", "Walk", "files_by_size", "join"]
