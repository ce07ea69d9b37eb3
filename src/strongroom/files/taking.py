"""One run of taking files: from runs of names to entries in the tree, in order.

Names come in slices. In each slice what is unchanged is recognised, small files are
read ahead in batches, large ones are streamed, everything else is looked at in place.
Entries wait until their contents have ids, and leave in path order.

A file is read between two looks at its facts. Where they differ it is read once more;
where they differ again, what was read last is taken and told of.
"""

from __future__ import annotations

import errno
import os
import stat as modes
import struct
from collections.abc import Sequence

from strongroom.files.ahead import Batch, ReadAhead
from strongroom.files.change_cache import Kept, LastRun, Span, ThisRun
from strongroom.files.reading import SMALL_FILE, NotRegularError, read_stream
from strongroom.files.walk import Run, open_below, reason
from strongroom.format.content import whole
from strongroom.format.tree import MAX_PATH, Entry, Kind, encode_plain_file
from strongroom.kernel import (
    EXTRA_SIZE,
    KEY,
    KEY_SIZE,
    NOT_REGULAR,
    STAT_SIZE,
    TOO_LARGE,
    FileRead,
    Pairs,
    pack_stat,
    pack_xattrs,
    read_files,
    unpack_xattrs,
)
from strongroom.progress import Progress
from strongroom.repository.ports import Problem, Session

BUFFER = 4 * 1024 * 1024
SLICE = 2048
WAITING = 8 * SLICE  # so many entries may wait behind files that are being read

_REGULAR = modes.S_IFREG >> 12
_SYMLINK = modes.S_IFLNK >> 12
_KINDS = {
    modes.S_IFREG >> 12: Kind.FILE,
    modes.S_IFDIR >> 12: Kind.DIRECTORY,
    modes.S_IFLNK >> 12: Kind.SYMLINK,
    modes.S_IFIFO >> 12: Kind.FIFO,
    modes.S_IFCHR >> 12: Kind.CHARACTER,
    modes.S_IFBLK >> 12: Kind.BLOCK,
    modes.S_IFSOCK >> 12: Kind.SOCKET,
}
_SIZES = struct.Struct("<32xQ16x")  # the size in a KEY
_DEVICES = (Kind.CHARACTER, Kind.BLOCK)
_ONE_LINK = b"\x01\x00\x00\x00"
_CHANGED = "it changed while it was read, twice; what was read last is kept"


class Pending:
    """A path that will be an entry once its content is stored; `gone` if it will not be."""

    __slots__ = (
        "content",
        "gone",
        "ids",
        "name",
        "packed",
        "path",
        "size",
        "steady",
        "streamed",
        "target",
        "xattrs",
    )

    def __init__(self, path: bytes, name: bytes, packed: bytes) -> None:
        self.path, self.name, self.packed = path, name, packed
        self.content = self.ids = self.target = self.xattrs = b""
        self.size = 0
        self.steady = True
        self.gone = self.streamed = False


class _Link:
    """Another name of the file that an earlier path stands for."""

    __slots__ = ("first", "packed", "path")

    def __init__(self, path: bytes, first: bytes, packed: bytes) -> None:
        self.path, self.first, self.packed = path, first, packed


class _Unchanged:
    """Neighbours that are as they were, how many of them are files, and their bytes."""

    __slots__ = ("files", "size", "span")

    def __init__(self, span: Span, kinds: bytes, keys: bytes) -> None:
        self.span = span
        self.files = kinds.count(_REGULAR)
        sizes = _SIZES.iter_unpack(keys)
        self.size: int
        if self.files == len(kinds):
            self.size = sum([size for (size,) in sizes])
        else:
            pairs = zip(sizes, kinds, strict=True)
            self.size = sum(size for (size,), kind in pairs if kind == _REGULAR)


_Item = _Unchanged | tuple[bytes, Kept, int] | Pending | _Link


def _linked_key(packed: bytes) -> bytes:
    """The key of a file with several names, which a plain comparison never equals.

    Which of its names comes first may change without any change of the file.
    """
    return packed[:3] + b"\x01" + packed[4:KEY_SIZE]


class Taking:
    """One run; `told`, `take_root`, `take` for each run of names, `finish`.

    `trusted_before` is the time, in nanoseconds, before which a file must have been left alone to
    be recognised next time.
    """

    def __init__(
        self,
        session: Session,
        progress: Progress,
        *,
        root: int,
        last: LastRun,
        new: ThisRun,
        trusted_before: int,
    ) -> None:
        self.files = self.size = self.entries = self.unchanged = 0
        self.same = False  # nothing at all has changed, and the tree is the last run's
        self.problems: list[Problem] = []
        self._session, self._progress, self._lane = session, progress, session.lane()
        self._root, self._last, self._new = root, last, new
        self._before = trusted_before
        self._still = last.entries > 0  # so far, everything is as the last run left it, in order
        self._items: list[_Item] = []
        self._waiting = 0  # entries in spans among the items
        self._links: dict[bytes, bytes] = {}
        self._moved: dict[bytes, bytes] = {}  # first name that could not be read → the next one
        self._lost: set[bytes] = set()
        self._emitted = 0
        self._ahead: ReadAhead[Pending] = ReadAhead(_read_small)
        self._batch: Batch[Pending] | None = None
        self._buffer = memoryview(bytearray(BUFFER))
        self._used = 0
        self._small: list[Pending] = []
        self._views: list[memoryview] = []

    def told(self, path: bytes, why: str) -> None:
        """Note a part that is not in the snapshot as it is in the source."""
        self.problems.append(Problem(path, why))
        self._progress.problem(path, why)

    def take_root(self, packed: bytes) -> None:
        """Take the root directory itself."""
        kept = self._last.find(b"")
        if kept is not None and kept[0] == packed[:KEY_SIZE]:
            self._items.append((b"", kept, self._last.position))
            return
        pending = Pending(b"", b"", packed)
        pending.xattrs = pack_xattrs(self._root)
        self._items.append(pending)

    def take(self, run: Run) -> None:
        """Take a run of names; their directory must be open until this returns."""
        for start in range(run.start, run.stop, SLICE):
            self._slice(run, start, min(run.stop, start + SLICE))
            if self._waiting + len(self._items) >= WAITING:
                self._land_all()
            if self._waiting + len(self._items) >= SLICE:
                self._emit()

    def finish(self) -> None:
        """Take what still waits."""
        self._land_all()
        self._emit()
        if self._still:
            self.same = self.entries == self._last.entries and self._adopt()
            if not self.same:
                self._replay()

    def close(self) -> None:
        """Let go of buffers, directories and the reading thread; always call it."""
        self._ahead.close()
        if self._batch is not None:
            self._batch.close()

    # -- recognising -----------------------------------------------------------------------

    def _slice(self, run: Run, start: int, stop: int) -> None:
        prefix, keys = run.prefix, run.keys
        paths = [prefix + name for name in run.names[start:stop]]
        start = self._spans(run, paths, start, stop)
        find, append = self._last.find, self._items.append
        small: list[Pending] = []
        for number in range(start, stop):
            path = paths[number - stop]
            kept = find(path)
            key = keys[number * KEY_SIZE : (number + 1) * KEY_SIZE]
            if kept is not None and kept[0] == key:
                append((path, kept, self._last.position))
            else:
                extra = run.extras[number * EXTRA_SIZE : (number + 1) * EXTRA_SIZE]
                self._look(run.fd, path, run.names[number], key + extra, small, kept)
        if small:
            self._read_later(run.fd, small)

    def _spans(self, run: Run, paths: list[bytes], start: int, stop: int) -> int:
        """Take neighbours that are all unchanged at one stroke; return where the rest begins."""
        while start < stop:
            keys = run.keys[start * KEY_SIZE : stop * KEY_SIZE]
            span = self._last.span(paths[start - stop :], keys)
            if span is None:
                break
            end = start + len(span)
            kinds = run.kinds[start:end]
            self._items.append(_Unchanged(span, kinds, keys[: len(span) * KEY_SIZE]))
            self._waiting += len(span)
            start = end
        return start

    def _look(
        self,
        fd: int,
        path: bytes,
        name: bytes,
        packed: bytes,
        small: list[Pending],
        kept: Kept | None,
    ) -> None:
        if len(path) > MAX_PATH:
            self.told(path, f"its path is longer than {MAX_PATH} bytes")
            return
        kind = packed[1] >> 4
        if kind == _REGULAR:
            if packed[4:8] != _ONE_LINK and self._linked(path, packed, kept):
                return
            pending = Pending(path, name, packed)
            self._items.append(pending)
            pending.size = int.from_bytes(packed[32:40], "little")
            if pending.size <= SMALL_FILE:
                small.append(pending)
            else:
                self._stream(fd, pending)
        elif kind in _KINDS:
            self._take_other(fd, Pending(path, name, packed), kind)
        else:
            self.told(path, f"it is of a kind that is not known here ({kind})")

    def _linked(self, path: bytes, packed: bytes, kept: Kept | None) -> bool:
        """Deal with a file of several names if this is not the first, or is kept."""
        inode = packed[24:32] + packed[56:64]
        first = self._links.setdefault(inode, path)
        if first is not path:
            self._items.append(_Link(path, first, packed))
            return True
        if kept is None or kept[0] != _linked_key(packed) or kept[1][0] != Kind.FILE:
            return False
        self._items.append((path, kept, self._last.position))
        return True

    def _take_other(self, fd: int, pending: Pending, kind: int) -> None:
        try:
            if kind == _SYMLINK:
                pending.target = os.readlink(pending.name, dir_fd=fd)
        except OSError as fault:
            self._lose(pending, fault.errno or errno.EIO)
            return
        pending.xattrs = pack_xattrs(b"/proc/self/fd/%d/%s" % (fd, pending.name))
        self._items.append(pending)

    # -- reading ---------------------------------------------------------------------------

    def _read_later(self, fd: int, small: Sequence[Pending]) -> None:
        """Put small files of a directory, the last of the items, on the way to be read."""
        earliest = self._emitted + len(self._items) - SLICE
        for pending in small:
            batch = self._batch
            if batch is not None and not batch.takes(pending.size):
                self._send()
                batch = None
            if batch is None:
                batch = self._batch = Batch(max(self._emitted, earliest))
            batch.add(fd, pending.name, pending, pending.size)
        if self._batch is not None:
            self._batch.leave()

    def _send(self) -> None:
        if self._batch is None:
            return
        if self._ahead.full:
            self._land()
        self._ahead.put(self._batch)
        self._batch = None

    def _land_all(self) -> None:
        self._send()
        while len(self._ahead):
            self._land()

    def _land(self) -> None:
        """Take what the earliest batch read, and read by ourselves what it could not."""
        batch = self._ahead.take()
        self._store()
        for group in batch.groups:
            again = []
            for pending, row in zip(group.items, group.rows, strict=False):
                if not self._took(group.fd, pending, row, batch.buffer[group.base :]):
                    again.append(pending)
            self._read(group.fd, group.items[len(group.rows) :])
            self._read(group.fd, again, last_time=True)
        self._store()
        self._ahead.done(batch)

    def _read(self, fd: int, todo: Sequence[Pending], *, last_time: bool = False) -> None:
        again: list[Pending] = []
        while todo:
            if BUFFER - self._used <= SMALL_FILE:
                self._store()
            view = self._buffer[self._used :]
            rows = _read_small(fd, [pending.name for pending in todo], view)
            for pending, row in zip(todo, rows, strict=False):
                if not self._took(fd, pending, row, view, last_time=last_time):
                    again.append(pending)
            if rows:
                self._used += rows[-1][1] + rows[-1][2]
            todo = todo[len(rows) :]
            if todo:
                self._store()
        if again:
            self._read(fd, again, last_time=True)

    def _took(
        self,
        fd: int,
        pending: Pending,
        row: FileRead,
        view: memoryview,
        *,
        last_time: bool = False,
    ) -> bool:
        """Note what was read of a small file; False if it should be read once more."""
        status, offset, length, packed, xattrs = row
        if status == 0:
            steady = packed[:KEY_SIZE] == pending.packed[:KEY_SIZE]
            pending.packed = packed
            if not steady and not last_time:
                return False
            pending.steady, pending.size, pending.xattrs = steady, length, xattrs
            if length:
                self._small.append(pending)
                self._views.append(view[offset : offset + length])
        elif status == TOO_LARGE:
            self._stream(fd, pending)
        elif status == errno.EIO and not last_time:
            return False
        else:
            self._lose(pending, status)
        return True

    def _stream(self, fd: int, pending: Pending) -> None:
        pending.streamed = True
        try:
            stored, packed, xattrs, steady = read_stream(
                self._lane, fd, pending.name, lambda size: self._progress.advance(size=size)
            )
        except NotRegularError:
            self._lose(pending, NOT_REGULAR)
        except OSError as fault:
            self._lose(pending, fault.errno or errno.EIO)
        else:
            pending.content, pending.ids, pending.size = stored.content, stored.ids, stored.size
            pending.packed, pending.xattrs, pending.steady = packed, xattrs, steady

    def _lose(self, pending: Pending, status: int) -> None:
        if status in (NOT_REGULAR, errno.ELOOP, errno.EINVAL):
            why = "it was replaced by something else before it could be read"
        elif status == errno.ENOENT:
            why = "it vanished before it could be read"
        else:
            why = f"it cannot be read: {reason(status)}"
        pending.gone = True
        self._lost.add(pending.path)
        self.told(pending.path, why)

    def _alone(self, path: bytes) -> Pending | None:
        """Read one file by its path, outside its slice; None if it cannot be had."""
        parent, _, name = path.rpartition(b"/")
        pending = Pending(path, name, bytes(STAT_SIZE))
        try:
            fd = open_below(self._root, parent)
        except OSError as fault:
            self._lose(pending, fault.errno or errno.EIO)
            return None
        try:
            pending.packed = pack_stat(os.stat(name, dir_fd=fd, follow_symlinks=False))
            self._stream(fd, pending)
        except OSError as fault:
            self._lose(pending, fault.errno or errno.EIO)
        finally:
            os.close(fd)
        return None if pending.gone else pending

    # -- into the session ------------------------------------------------------------------

    def _store(self) -> None:
        """Hand the contents in the buffer on; then the buffer is free."""
        if self._views:
            for pending, chunk_id in zip(
                self._small, self._lane.put_small(self._views), strict=True
            ):
                pending.ids, pending.content = chunk_id, whole(chunk_id)
            self._small, self._views = [], []
        self._used = 0

    def _missing(self, items: Sequence[_Item]) -> set[bytes]:
        """The unchanged paths of which the repository has not every chunk any more."""
        ids = []
        for item in items:
            if type(item) is _Unchanged:
                ids.append(item.span.ids)
            elif type(item) is tuple:
                ids.append(item[1][2])
        joined = b"".join(ids)
        if not joined or self._session.reuse([joined])[0]:
            return set()
        kept = []
        for item in items:
            if type(item) is _Unchanged:
                kept += item.span.singly()
            elif type(item) is tuple:
                kept.append(item[:2])
        answers = self._session.reuse([ids for _, (_, _, ids) in kept])
        return {path for (path, _), good in zip(kept, answers, strict=True) if not good}

    def _settled(self) -> int:
        """How many of the items stand before everything that is still to be read."""
        first = self._ahead.first
        if first is None and self._batch is not None:
            first = self._batch.first
        return len(self._items) if first is None else first - self._emitted

    def _emit(self) -> None:
        """Add what waits for nothing to the tree, in order."""
        self._store()
        count = self._settled()
        items, self._items = self._items[:count], self._items[count:]
        self._emitted += count
        if self._still:
            if self._pass_over(items):
                return
            self._replay()
        self._add(items)

    def _pass_over(self, items: Sequence[_Item]) -> bool:
        """Count items that are all as they were, and none gone before them; False if one is not."""
        entries = self.entries
        for item in items:
            if type(item) is _Unchanged and item.span.position == entries:
                entries += len(item.span)
            elif type(item) is tuple and item[2] == entries:
                entries += 1
            else:
                return False
        self._waiting -= sum(len(item.span) for item in items if type(item) is _Unchanged)
        self.entries = entries
        return True

    def _adopt(self) -> bool:
        """Rely on everything that the last run relied on, its tree included."""
        last = self._last.again()
        try:
            mark = last.tree()
            if not mark or not all(self._session.reuse([span.ids])[0] for span in last.spans()):
                return False
            if not self._session.tree.adopt(mark):
                return False
        finally:
            last.close()
        self.files, self.size, self.unchanged = last.files, last.size, self.entries
        self._progress.advance(size=self.size, files=self.files)
        return True

    def _replay(self) -> None:
        """Something differs after all: add what was passed over, from the last run's own cache."""
        left, self._still = self.entries, False
        self.entries = 0
        last = self._last.again()
        try:
            for whole_span in last.spans():
                if left <= 0:
                    break
                span = whole_span.front(left)
                left -= len(span)
                kinds = bytes(key >> 4 for key in span.keys[1::KEY_SIZE])
                self._waiting += len(span)
                self._add([_Unchanged(span, kinds, span.keys)])
        finally:
            last.close()

    def _add(self, items: Sequence[_Item]) -> None:
        missing = self._missing(items)
        files, moved = self.files, 0
        for item in items:
            if type(item) is Pending:
                moved += self._emit_pending(item)
            elif type(item) is _Unchanged:
                moved += self._emit_unchanged(item, missing)
                self._waiting -= len(item.span)
            elif type(item) is tuple:
                moved += self._emit_kept(item[0], item[1], missing)
            elif type(item) is _Link:
                self._emit_link(item)
        self._progress.advance(size=moved, files=self.files - files)

    def _emit_unchanged(self, item: _Unchanged, missing: set[bytes]) -> int:
        if missing:
            return sum(self._emit_kept(path, kept, missing) for path, kept in item.span.singly())
        add_record = self._session.tree.add_record
        for path, record in item.span.records():
            add_record(path, record)
        self._new.add_span(item.span)
        self.entries += len(item.span)
        self.unchanged += len(item.span)
        self.files += item.files
        self.size += item.size
        return item.size

    def _emit_kept(self, path: bytes, kept: Kept, missing: set[bytes]) -> int:
        if path in missing:
            self._emit_alone(path)
            return 0
        key, record, ids = kept
        self._session.tree.add_record(path, record)
        self._new.add(path, key, record, ids)
        self.entries += 1
        self.unchanged += 1
        if record[0] != Kind.FILE:
            return 0
        size = int.from_bytes(key[32:40], "little")
        self.files += 1
        self.size += size
        return size

    def _emit_alone(self, path: bytes) -> None:
        pending = self._alone(path)
        if pending is not None:
            self._emit_pending(pending)

    def _emit_pending(self, pending: Pending) -> int:
        """Add an entry, if it is not gone; return the bytes that progress has not heard of yet."""
        if pending.gone:
            return 0
        packed = pending.packed
        mode, links, uid, gid, rdev, _, _, mtime, ctime = KEY.unpack_from(packed)
        kind = _KINDS[mode >> 12]
        facts = (mode & 0o7777, uid, gid, mtime, pending.size, pending.content)
        complete = True
        if kind is Kind.FILE and not pending.xattrs:
            record = encode_plain_file(*facts)
            self._session.tree.add_record(pending.path, record)
        else:
            xattrs, complete = self._xattrs(pending)
            device = rdev if kind in _DEVICES else 0
            entry = Entry(pending.path, kind, *facts, pending.target, device, xattrs)
            record = self._session.tree.add(entry)
        self.entries += 1
        if not pending.steady:
            self.told(pending.path, _CHANGED)
        elif complete and mtime < self._before and ctime < self._before:
            several = kind is Kind.FILE and links > 1
            key = _linked_key(packed) if several else packed[:KEY_SIZE]
            self._new.add(pending.path, key, record, pending.ids)
        if kind is not Kind.FILE:
            return 0
        self.files += 1
        self.size += pending.size
        return 0 if pending.streamed else pending.size

    def _xattrs(self, pending: Pending) -> tuple[Pairs, bool]:
        pairs, failed = unpack_xattrs(pending.xattrs)
        for name, code in failed:
            which = f"its extended attribute {name!r}" if name else "its extended attributes"
            self.told(pending.path, f"{which} cannot be read: {reason(code)}")
        return pairs, not failed

    def _emit_link(self, link: _Link) -> None:
        """Add another name; where the first could not be read, this one takes its place."""
        first = self._moved.get(link.first, link.first)
        if first in self._lost:
            pending = self._alone(link.path)
            self._moved[link.first] = link.path
            if pending is not None:
                self._emit_pending(pending)
            return
        mode, _, uid, gid, _, _, _, mtime, _ = KEY.unpack_from(link.packed)
        self._session.tree.add(
            Entry(link.path, Kind.HARDLINK, mode & 0o7777, uid, gid, mtime, target=first)
        )
        self.entries += 1


def _read_small(fd: int, names: list[bytes], view: memoryview) -> list[FileRead]:
    return read_files(fd, names, view, SMALL_FILE)
