"""Objects as files below one directory.

Rule: a name appears only when its bytes are durable. Bytes are written to a
temporary on the same file system, fsynced, and then linked or renamed to
their name; the directory is fsynced before `put` returns. After a failed
fsync nothing is tried again: the kernel may have dropped the dirty pages and
would report success the second time (Rebello et al., ATC '20).

Large objects go past the page cache where the file system allows it: a backup
must not push a database's pages out of memory, and copying into fresh cache
pages was a fifth of a backup's CPU time (docs/reference/speed.md).

Files are 0600 and directories 0700, and what root makes belongs to whom the root directory belongs
to: a restore by root must not leave objects that the account of the backups cannot read. No
symbolic link below the root is ever followed: each directory is opened from its parent with
O_NOFOLLOW.
Temporaries live in `+tmp`, which no object name can spell, so that a listing
cannot show them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import mmap
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from strongroom.errors import (
    AlreadyExists,
    ObjectMissing,
    StorageDenied,
    StorageFull,
    StorageUnreachable,
    StrongroomError,
)
from strongroom.storage.base import Buffer, Entry, check_name, is_name

TEMPORARIES = "+tmp"
_LOCK = "lock"
_STALE_AFTER = 86_400.0

DIRECT_FROM = 1024 * 1024  # bytes; what is smaller is written through the page cache
_BLOCK = 4096  # what direct writes are aligned to: offset, length and address
_BOUNCE = 4 * 1024 * 1024

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a fifo must not hang us
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_RENAMEAT2 = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_RENAME_NOREPLACE = 1

Place = Callable[[int, str, int, str], None]
_Names = list[str]
_Pending = list["Entry | tuple[str, str]"]  # objects to yield; directories as (folder, start)
_Found = list[tuple[str, "Entry | tuple[str, str]"]]  # the same with their sort keys


class LocalStorage:
    """A storage in the directory `path`, which is created by the first put.

    `now` gives seconds since 1970; it only decides which temporaries are stale.
    """

    def __init__(
        self, path: str | bytes | os.PathLike[str], *, now: Callable[[], float] = time.time
    ) -> None:
        self._lock = threading.Lock()
        self._root = -1
        self._temporaries = -1
        self._path = os.path.abspath(os.fsencode(path))
        self._now = now
        self._serial = itertools.count()
        self._settled: set[str] = set()
        self._owner: tuple[int, int] | None = None  # who gets what we make, if not ourselves
        self._direct = hasattr(os, "O_DIRECT")
        self._bounces: list[mmap.mmap] = []  # aligned buffers, kept: one for each put under way
        self._places: tuple[Place, ...] = (_link, _rename_noreplace, _rename_under_lock)

    @property
    def url(self) -> str:
        """Return the absolute path."""
        return os.fsdecode(self._path)

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        """Store `data`; it is durable, with every directory above it, when this returns."""
        folder, leaf = _split(check_name(name))
        with self._translated("store", name):
            self._open_for_writing()
            directory = self._enter(folder, make=True)
            try:
                if if_absent and _is_taken(directory, leaf):  # spares writing 64 MiB in vain
                    raise FileExistsError(errno.EEXIST, "name is taken")
                temporary = self._write_temporary(memoryview(data).cast("B"))
                self._place(temporary, directory, leaf, if_absent)
                os.fsync(directory)
            finally:
                os.close(directory)

    def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Return the object or a range of it, read in one piece."""
        if offset < 0 or (length is not None and length < 0):
            raise ValueError("offset and length are not negative")
        folder, leaf = _split(check_name(name))
        with self._translated("read", name):
            directory = self._enter(folder)
            try:
                file = os.open(leaf, _READ, dir_fd=directory)
            finally:
                os.close(directory)
            try:
                return _read(file, offset, length)
            finally:
                os.close(file)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Yield the objects below `prefix` in order of names, reading only the directories needed.

        An object that is deleted meanwhile may be shown or not.
        """
        folder, slash, start = prefix.rpartition("/")
        if slash and not is_name(folder):
            return  # no object's name begins like that
        pending: _Pending = [(folder, start)]
        while pending:
            item = pending.pop()
            if isinstance(item, Entry):
                yield item
                continue
            with self._translated("list", item[0] or "."):
                found = self._scan(*item)
            found.sort(key=lambda pair: pair[0], reverse=True)
            pending.extend(item for _, item in found)

    def delete(self, names: Iterable[str]) -> None:
        """Delete the named objects and make that durable, directory by directory.

        Directories stay: removing an empty one would race with a put into it.
        """
        by_folder: dict[str, _Names] = {}
        for name in names:
            folder, leaf = _split(check_name(name))
            by_folder.setdefault(folder, []).append(leaf)
        for folder, leaves in by_folder.items():
            with self._translated("delete from", folder or "."):
                self._delete_in(folder, leaves)

    def free_space(self) -> int | None:
        """Return the bytes an ordinary user can still write."""
        room = self._room()
        return room.f_bavail * room.f_frsize

    def total_space(self) -> int | None:
        """Return the bytes of the file system that ordinary users can have."""
        room = self._room()
        return (room.f_blocks - room.f_bfree + room.f_bavail) * room.f_frsize

    def _room(self) -> os.statvfs_result:
        path = self._path
        with self._translated("measure", "."):
            while not os.path.exists(path):
                path = os.path.dirname(path)
            return os.statvfs(path)

    def close(self) -> None:
        """Close the two directories that are kept open."""
        with self._lock:
            for file in (self._root, self._temporaries):
                if file >= 0:
                    os.close(file)
            self._root = self._temporaries = -1

    def __del__(self) -> None:
        self.close()

    # -- directories ---------------------------------------------------------

    def _open_root(self) -> int:
        """Return the root, kept open so that a disk that is unmounted cannot turn into an empty
        directory under our feet."""
        if self._root < 0:
            with self._lock:
                if self._root < 0:
                    self._root = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._root

    def _open_for_writing(self) -> None:
        if self._temporaries >= 0:
            return
        try:
            root = self._open_root()
        except FileNotFoundError:
            _make_durable_directories(self._path)
            root = self._open_root()
        with self._lock:
            if self._temporaries >= 0:
                return
            if os.geteuid() == 0:
                facts = os.fstat(root)
                self._owner = (facts.st_uid, facts.st_gid) if facts.st_uid else None
            with contextlib.suppress(FileExistsError):
                _make(root, TEMPORARIES, self._owner)
            self._temporaries = os.open(TEMPORARIES, _DIRECTORY, dir_fd=root)
        self._drop_stale_temporaries()

    def _drop_stale_temporaries(self) -> None:
        """Remove what processes that died left behind; a day is longer than any put."""
        limit = self._now() - _STALE_AFTER
        with os.scandir(self._temporaries) as entries:
            for entry in entries:
                if entry.name == _LOCK:
                    continue
                with contextlib.suppress(FileNotFoundError):  # another process cleans as well
                    if entry.stat(follow_symlinks=False).st_mtime < limit:
                        os.unlink(entry.name, dir_fd=self._temporaries)

    def _enter(self, folder: str, *, make: bool = False) -> int:
        """Open `folder` part by part, never through a link; the caller closes what is returned."""
        root = self._open_root()
        if not folder:
            return os.open(".", _DIRECTORY, dir_fd=root)
        here, walked = root, ""
        try:
            for part in folder.split("/"):
                below = _open_below(here, part, make=make, owner=self._owner)
                above, here = here, below
                walked = f"{walked}/{part}"
                try:
                    # Whoever made it may not have come to its fsync yet, so the first put of
                    # this process into a directory makes that directory's own entry durable.
                    if make and walked not in self._settled:
                        os.fsync(above)
                        self._settled.add(walked)
                finally:
                    if above != root:
                        os.close(above)
        except BaseException:
            if here != root:
                os.close(here)
            raise
        return here

    def _scan(self, folder: str, start: str) -> _Found:
        """Return (sort key, object or subdirectory) of one directory, names that begin `start`."""
        try:
            directory = self._enter(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        found: _Found = []
        above = f"{folder}/" if folder else ""
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if not entry.name.startswith(start) or not is_name(entry.name):
                        continue
                    name = above + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        # As "a-b" sorts before "a/b", a directory is sorted with its slash.
                        found.append((entry.name + "/", (name, "")))
                        continue
                    try:
                        found.append((entry.name, _describe(name, entry)))
                    except FileNotFoundError:
                        continue  # deleted since
        finally:
            os.close(directory)
        return found

    def _delete_in(self, folder: str, leaves: _Names) -> None:
        try:
            directory = self._enter(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            for leaf in leaves:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(leaf, dir_fd=directory)
            os.fsync(directory)
        finally:
            os.close(directory)

    # -- writing -------------------------------------------------------------

    def _write_temporary(self, view: memoryview) -> str:
        """Write and fsync a temporary; return its name below `+tmp`. Nothing stays on failure."""
        temporary, file = self._create_temporary()
        try:
            try:
                if self._direct and len(view) >= DIRECT_FROM:
                    view = self._write_direct(file, view)
                while len(view):
                    view = view[os.write(file, view) :]
                os.fsync(file)
            finally:
                os.close(file)
        except BaseException:
            self._drop(temporary)
            raise
        return temporary

    def _write_direct(self, file: int, view: memoryview) -> memoryview:
        """Write whole blocks past the page cache; return what is left to be written through it."""
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        try:
            fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError:  # tmpfs and others do not know it
            self._direct = False
            return view
        bounce = self._bounces.pop() if self._bounces else mmap.mmap(-1, _BOUNCE)
        aligned = isinstance(view.obj, mmap.mmap)  # unless somebody shows us a part of one
        try:
            while whole := len(view) & -_BLOCK:
                try:
                    written = _write_whole(file, view[:whole], None if aligned else bounce)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    if aligned:
                        aligned = False
                        continue
                    self._direct = False  # blocks here are larger than ours
                    break
                view = view[written:]
                if written % _BLOCK:
                    break
        finally:
            self._bounces.append(bounce)
            fcntl.fcntl(file, fcntl.F_SETFL, flags)
        return view

    def _create_temporary(self) -> tuple[str, int]:
        while True:
            temporary = f"{os.getpid()}.{next(self._serial)}"
            # A process of another host, or a dead one with our number, may have left that name.
            with contextlib.suppress(FileExistsError):
                file = os.open(temporary, _CREATE, 0o600, dir_fd=self._temporaries)
                if self._owner is not None:
                    with contextlib.suppress(OSError):  # a file system that denies it to root, too
                        os.fchown(file, *self._owner)
                return temporary, file

    def _place(self, temporary: str, directory: int, leaf: str, if_absent: bool) -> None:
        try:
            if if_absent:
                self._place_if_absent(temporary, directory, leaf)
            else:
                os.rename(temporary, leaf, src_dir_fd=self._temporaries, dst_dir_fd=directory)
        except BaseException:
            self._drop(temporary)
            raise

    def _place_if_absent(self, temporary: str, directory: int, leaf: str) -> None:
        """Give the temporary its name in the best way that this file system knows."""
        for place in self._places:
            try:
                return place(self._temporaries, temporary, directory, leaf)
            except NotImplementedError:
                continue
        raise StorageUnreachable(f"{self.url} can neither link nor rename files")

    def _drop(self, temporary: str) -> None:
        # The error that brought us here is what matters; a leftover is removed after a day.
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=self._temporaries)

    # -- errors --------------------------------------------------------------

    @contextlib.contextmanager
    def _translated(self, doing: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _translate(error, doing, name, self.url) from error


def _write_whole(file: int, view: memoryview, bounce: mmap.mmap | None) -> int:
    """Write blocks from where they are, or some of them through an aligned buffer."""
    if bounce is None:
        return os.write(file, view)
    size = min(len(view), len(bounce))
    with memoryview(bounce) as aligned:
        aligned[:size] = view[:size]
        return os.write(file, aligned[:size])


def _split(name: str) -> tuple[str, str]:
    folder, _, leaf = name.rpartition("/")
    return folder, leaf


def _make_durable_directories(path: bytes) -> None:
    """Create `path` and what is missing above it; each new entry is fsynced in its parent."""
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        _make_durable_directories(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    above = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(above)
    finally:
        os.close(above)


def _make(here: int, part: str, owner: tuple[int, int] | None) -> None:
    os.mkdir(part, 0o700, dir_fd=here)
    if owner is not None:
        with contextlib.suppress(OSError):
            os.chown(part, *owner, dir_fd=here, follow_symlinks=False)


def _open_below(here: int, part: str, *, make: bool, owner: tuple[int, int] | None) -> int:
    try:
        return os.open(part, _DIRECTORY, dir_fd=here)
    except FileNotFoundError:
        if not make:
            raise
    except OSError as error:
        # O_DIRECTORY | O_NOFOLLOW answers ENOTDIR for links; a plain file means "no such object".
        if error.errno == errno.ENOTDIR and stat.S_ISLNK(os.lstat(part, dir_fd=here).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
        raise
    with contextlib.suppress(FileExistsError):
        _make(here, part, owner)
    return os.open(part, _DIRECTORY, dir_fd=here)


def _is_taken(directory: int, leaf: str) -> bool:
    try:
        os.lstat(leaf, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def _describe(name: str, entry: os.DirEntry[str]) -> Entry:
    """Return a file as a listing shows it; anything else under an object's name is refused."""
    facts = entry.stat(follow_symlinks=False)
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return Entry(name, facts.st_size, facts.st_mtime)


def _read(file: int, offset: int, length: int | None) -> bytes:
    facts = os.fstat(file)
    if not stat.S_ISREG(facts.st_mode):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    wanted = max(0, facts.st_size - offset)
    if length is not None:
        wanted = min(wanted, length)
    piece = os.pread(file, wanted, offset)
    if len(piece) == wanted:
        return piece
    pieces = [piece]  # Linux reads at most 2 GiB at once, and network file systems less
    while piece and len(piece) < wanted:
        offset, wanted = offset + len(piece), wanted - len(piece)
        piece = os.pread(file, wanted, offset)
        pieces.append(piece)
    return b"".join(pieces)


# -- three ways to give a file its name only if nobody has it ---------------------
# Each raises FileExistsError if the name is taken and NotImplementedError if the
# file system cannot do it. After each the temporary's name is gone.


def _link(temporaries: int, temporary: str, directory: int, leaf: str) -> None:
    try:
        os.link(
            temporary, leaf, src_dir_fd=temporaries, dst_dir_fd=directory, follow_symlinks=False
        )
    except FileExistsError:
        # NFS repeats a request whose answer was lost; two links mean that ours had won.
        if os.lstat(temporary, dir_fd=temporaries).st_nlink < 2:
            raise
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise NotImplementedError from error
        raise
    os.unlink(temporary, dir_fd=temporaries)


def _rename_noreplace(temporaries: int, temporary: str, directory: int, leaf: str) -> None:
    import ctypes  # noqa: PLC0415  only the rare file system without hard links pays for it

    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError as error:
        raise NotImplementedError from error
    if renameat2(temporaries, temporary.encode(), directory, leaf.encode(), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        if number in _NO_RENAMEAT2:
            raise NotImplementedError
        raise OSError(number, os.strerror(number))


def _rename_under_lock(temporaries: int, temporary: str, directory: int, leaf: str) -> None:
    """Check and rename while holding a lock that dies with its process.

    O_EXCL on the name itself would show an empty object for a moment, and for ever after a crash.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(_LOCK, flags, 0o600, dir_fd=temporaries)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_taken(directory, leaf):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.rename(temporary, leaf, src_dir_fd=temporaries, dst_dir_fd=directory)
    finally:
        os.close(lock)


# -- foreign errors, translated once --------------------------------------------


def _translate(error: OSError, doing: str, name: str, root: str) -> StrongroomError:
    """Return Strongroom's error for the operating system's. `doing` is a verb, "store"."""
    number = error.errno
    if isinstance(error, FileExistsError):
        return AlreadyExists(f"{name} exists already in {root}")
    if number in (errno.ENOENT, errno.ENOTDIR) and doing == "read":
        return ObjectMissing(f"{root} holds no object {name}")
    what = f"cannot {doing} {name} in {root}: {error.strerror}"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(what)
    if number in _DENIED:
        return StorageDenied(what, do=_DENIED[number].format(root=root))
    return StorageUnreachable(what, do=_UNREACHABLE.get(number or 0, _ANY_FAULT))


_DENIED = {
    errno.EACCES: "Give this user read, write and search rights: `ls -ld {root}`; files in it "
    "belong to the user that made them.",
    errno.EPERM: "Give this user rights on {root}, and look for an immutable flag: `lsattr -d`.",
    errno.EROFS: "The file system is mounted read-only; if nobody did that, the kernel did after "
    "a disk error: see `dmesg` and `findmnt -T {root}`.",
    errno.ELOOP: "A symbolic link or special file stands where an object belongs; Strongroom "
    "follows none. Find it with `find {root} ! -type f ! -type d` and remove it.",
}
_ANY_FAULT = "Check the disk and its mount (`dmesg`, `findmnt`), then run the same command again."
_UNREACHABLE = {
    errno.EXDEV: "Directories of one repository must lie on one file system; undo the mount "
    "inside it.",
    errno.EMFILE: "Raise the limit of open files: `ulimit -n`.",
    errno.ENFILE: "Raise the system's limit of open files: `sysctl fs.file-max`.",
}
