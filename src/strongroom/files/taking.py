"""One run of taking files: from runs of names to entries in the tree, in order.

Names come in slices. In each slice what is unchanged is recognised, small files are
read ahead in batches (new ones as blocks), large ones are streamed, everything else is
looked at in place. Entries wait until their contents have ids, and leave in path order.

A file is read between two looks at its facts. Where they differ it is read once more;
where they differ again, what was read last is taken and told of.
"""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import Sequence

from strongroom.files import ahead
from strongroom.files.ahead import Batch, ReadAhead
from strongroom.files.change_cache import Kept, LastRun, Span, ThisRun
from strongroom.files.reading import SMALL_FILE, NotRegularError, read_stream
from strongroom.files.small import BLOCK_MIN, Block, Pending, Singles, read_small, sizes_of
from strongroom.files.walk import Run, open_below, reason
from strongroom.format.content import WHOLE, whole
from strongroom.format.tree import MAX_PATH, Entry, Kind, encode_plain_file, encode_xattrs
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
    plain_records,
    plain_run,
    unpack_xattrs,
)
from strongroom.progress import Progress
from strongroom.repository.ports import Problem, Session

BUFFER = 4 * 1024 * 1024
SLICE = 2048
WAITING = 8 * SLICE  # so many entries may wait behind files that are being read
SINGLY = 16  # so many blocks are not made after one that was odd for the most part
_LONGEST_NAME = 1024

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
_DEVICES = (Kind.CHARACTER, Kind.BLOCK)
_ONE_LINK = b"\x01\x00\x00\x00"
_CHANGED = "it changed while it was read, twice; what was read last is kept"


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
        sizes = sizes_of(keys)
        if self.files < len(kinds):
            pairs = zip(sizes, kinds, strict=True)
            sizes = [size for size, kind in pairs if kind == _REGULAR]
        self.size = sum(sizes)


_Item = _Unchanged | tuple[bytes, Kept, int] | Pending | Block | _Link
_Part = Singles | Block


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
        self._waiting = 0  # entries in spans and blocks among the items
        self._links: dict[bytes, bytes] = {}
        self._moved: dict[bytes, bytes] = {}  # first name that could not be read → the next one
        self._lost: set[bytes] = set()
        self._emitted = 0
        self._ahead: ReadAhead[_Part] = ReadAhead()
        self._batch: Batch[_Part] | None = None
        self._usual = b""  # the packed attributes that plain files seem to have
        self._singly = 0
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
        paths = [run.prefix + name for name in run.names[start:stop]]
        at = self._spans(run, paths, start, stop)
        paths = paths[at - start :]
        if not paths:
            return
        if self._last.knows_nothing_of(paths[0], paths[-1]):
            self._take_new(run, paths, at)
        else:
            self._take_singly(run, paths, at)

    def _take_new(self, run: Run, paths: list[bytes], start: int) -> None:
        """Take names that the last run did not have, from number `start`: in blocks if they can."""
        stop = start + len(paths)
        done = at = start
        while at < stop:
            most = min(stop, at + ahead.FILES)
            end, size, newest = plain_run(run.keys, at, most, SMALL_FILE, ahead.BUFFER - most + at)
            if end - at >= BLOCK_MIN and self._blocks_pay(run):
                self._take_singly(run, paths[done - start : at - start], done)
                keys = run.keys[at * KEY_SIZE : end * KEY_SIZE]
                inside = paths[at - start : end - start]
                block = Block(run.names[at:end], inside, keys, newest, self._usual)
                self._read_block(run.fd, block, size)
                done = end
            at = max(end, at + 1)
        self._take_singly(run, paths[done - start :], done)

    def _blocks_pay(self, run: Run) -> bool:
        self._singly = max(0, self._singly - 1)
        return not self._singly and len(run.prefix) + _LONGEST_NAME <= MAX_PATH

    def _take_singly(self, run: Run, paths: list[bytes], start: int) -> None:
        find, append = self._last.find, self._items.append
        small: list[Pending] = []
        for number, path in enumerate(paths, start):
            kept = find(path)
            key = run.keys[number * KEY_SIZE : (number + 1) * KEY_SIZE]
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
        """Put small files of a directory, among the last items, on the way to be read."""
        part: Singles | None = None
        for pending in small:
            batch = self._batch_for(1, pending.size)
            if part is None or batch.parts[-1:] != [part]:
                part = Singles()
                batch.add(fd, part)
            part.items.append(pending)
            batch.count(1, pending.size)

    def _read_block(self, fd: int, block: Block, size: int) -> None:
        """Make a block the last of the items, and put it on the way to be read."""
        self._items.append(block)
        self._waiting += len(block)
        batch = self._batch_for(len(block), size)
        batch.add(fd, block)
        batch.count(len(block), size)

    def _batch_for(self, files: int, size: int) -> Batch[_Part]:
        batch = self._batch
        if batch is not None and not batch.takes(files, size):
            self._send()
            batch = None
        if batch is None:
            earliest = self._emitted + len(self._items) - SLICE
            batch = self._batch = Batch(max(self._emitted, earliest))
        return batch

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
        for part in batch.parts:
            if type(part) is Block:
                self._land_block(part)
            elif type(part) is Singles:
                self._took_all(part.fd, part.items, part.rows, part.view)
        self._store()
        self._ahead.done(batch)

    def _took_all(
        self, fd: int, items: Sequence[Pending], rows: Sequence[FileRead], view: memoryview
    ) -> None:
        again = [
            pending
            for pending, row in zip(items, rows, strict=False)
            if not self._took(fd, pending, row, view)
        ]
        self._read(fd, items[len(rows) :])
        self._read(fd, again, last_time=True)

    def _land_block(self, block: Block) -> None:
        self._store()
        sizes = sizes_of(block.keys)
        for start, stop, begin in block.runs():
            lengths = sizes[start:stop]
            run = block.view[begin : begin + sum(lengths)]
            if 0 not in lengths:
                block.ids += self._lane.put_run(run, lengths) if lengths else []
            else:
                ids = iter(self._lane.put_run(run, [size for size in lengths if size]))
                block.ids += [next(ids) if size else b"" for size in lengths]
            if stop < len(block):
                block.ids.append(b"")  # of the odd one
        if block.odd:
            self._land_odd(block, sizes)

    def _land_odd(self, block: Block, sizes: Sequence[int]) -> None:
        """Take with care what fell out of a block, and learn what is usual here."""
        for number, begin, row in block.odd:
            pending = block.single(number)
            pending.size = sizes[number]
            block.pending.append(pending)
            rows = [] if row is None else [row]
            self._took_all(block.fd, [pending], rows, block.view[begin:])
            if pending.steady and not pending.gone and not unpack_xattrs(pending.xattrs)[1]:
                self._usual = pending.xattrs
        if 2 * len(block.odd) > len(block):
            self._singly = SINGLY

    def _read(self, fd: int, todo: Sequence[Pending], *, last_time: bool = False) -> None:
        again: list[Pending] = []
        while todo:
            if BUFFER - self._used <= SMALL_FILE:
                self._store()
            view = self._buffer[self._used :]
            rows = read_small(fd, [pending.name for pending in todo], view)
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
        if self._all_here(items):
            return set()
        kept = []
        for item in items:
            if type(item) is _Unchanged:
                kept += item.span.singly()
            elif type(item) is tuple:
                kept.append(item[:2])
        answers = self._session.reuse([ids for _, (_, _, ids) in kept])
        return {path for (path, _), good in zip(kept, answers, strict=True) if not good}

    def _all_here(self, items: Sequence[_Item]) -> bool:
        """Has the repository every chunk of what is unchanged? If so, they are relied on."""
        ids = []
        for item in items:
            if type(item) is _Unchanged:
                ids.append(item.span.ids)
            elif type(item) is tuple:
                ids.append(item[1][2])
        joined = b"".join(ids)
        return not joined or self._session.reuse([joined])[0]

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
        """Count items that are all as they were and here, none gone before them; False if not so."""
        entries = self.entries
        for item in items:
            if type(item) is _Unchanged and item.span.position == entries:
                entries += len(item.span)
            elif type(item) is tuple and item[2] == entries:
                entries += 1
            else:
                return False
        if not self._all_here(items):
            return False
        self._waiting -= sum(len(item.span) for item in items if type(item) is _Unchanged)
        self.entries = entries
        return True

    def _adopt(self) -> bool:
        """Take the tree of the last run, all of whose entries were passed over."""
        last = self._last
        mark = last.tree()
        if not mark or not self._session.tree.adopt(mark):
            return False
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
            elif type(item) is Block:
                moved += self._emit_block(item)
                self._waiting -= len(item)
            elif type(item) is _Link:
                self._emit_link(item)
        self._progress.advance(size=moved, files=self.files - files)

    def _emit_unchanged(self, item: _Unchanged, missing: set[bytes]) -> int:
        if missing:
            return sum(self._emit_kept(path, kept, missing) for path, kept in item.span.singly())
        self._session.tree.add_records(item.span.paths, item.span.records())
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

    def _emit_block(self, block: Block) -> int:
        tail = encode_xattrs(unpack_xattrs(block.xattrs)[0]) if block.xattrs else b""
        moved = 0
        for number, (start, stop, _) in enumerate(block.runs()):
            if stop > start:
                moved += self._emit_even(block, start, stop, tail)
            if stop < len(block):
                moved += self._emit_pending(block.pending[number])
        return moved

    def _emit_even(self, block: Block, start: int, stop: int, tail: bytes) -> int:
        """Add [start, stop) of a block, which are as they were scanned."""
        paths, keys, ids = block.paths[start:stop], block.key_of(start, stop), block.ids[start:stop]
        records = plain_records(keys, WHOLE, ids, tail)
        self._session.tree.add_records(paths, records)
        if block.newest < self._before:
            self._new.add_columns(paths, keys, records, ids)
        else:
            for number, (*_, mtime, ctime) in enumerate(KEY.iter_unpack(keys)):
                if mtime < self._before and ctime < self._before:
                    key = block.key_of(start + number, start + number + 1)
                    self._new.add(paths[number], key, records[number], ids[number])
        size = sum(sizes_of(keys))
        self.entries += len(paths)
        self.files += len(paths)
        self.size += size
        return size

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
