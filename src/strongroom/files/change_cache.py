"""What the last run saw, so that an unchanged file is not read again. Only ever a saving of time.

    file      header ‖ block … ‖ tree                entries ascending by raw path
    header    magic 8 ‖ identity 32 ‖ entries u64 ‖ files u64 ‖ size u64 ‖ digest 32
    block     count u32 ‖ payload length u32 ‖ digest 32 ‖ payload
    payload   path lengths u16 … ‖ record lengths u32 … ‖ ids lengths u32 … ‖ keys ‖ paths
              ‖ records ‖ ids                        keys are kernel.KEY, KEY_SIZE bytes each
    tree      block of no entries: the mark of the whole tree ‖ its length u32 ‖ magic 8

Digests are BLAKE3. `identity` is the hash of repository, source and root: another's
cache is no cache. Anything that does not fit ends the cache there; what is missing is read
again. Both sides stream: one block is in memory, whatever the number of files.

The same-second rule: a file whose mtime or ctime is not older than MARGIN before the scan began
is written down with a key that nothing equals. It could change again within one tick of the file
system's clock and look the same. MARGIN is the coarsest tick in use (FAT, 2 s).
"""

from __future__ import annotations

import contextlib
import os
import stat as modes
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import sub

from blake3 import blake3

from strongroom.beside import Beside
from strongroom.kernel import KEY_SIZE
from strongroom.repository.ports import Tree

MARGIN_NS = 2_000_000_000
BLOCK_ENTRIES = 1024
BLOCK_IDS = 4 * 1024 * 1024
MAX_BLOCK = 1 << 30

_MAGIC = b"SRFILES1"
_HEADER = struct.Struct("<8s32sQQQ32s")
_BLOCK = struct.Struct("<II32s")
_COLUMNS = 2 + 4 + 4 + KEY_SIZE
_TREE = struct.Struct("<I8s")
_TREE_MAGIC = b"SRTREE01"

Kept = tuple[bytes, bytes, bytes]  # key, record, ids


@dataclass(slots=True)
class _Block:
    """A block, opened: where each path, record and ids begins in `payload`, and the last ends."""

    paths: list[bytes]
    keys: bytes
    path_at: list[int]
    record_at: list[int]
    ids_at: list[int]
    payload: bytes

    def kept(self, at: int) -> Kept:
        payload, record_at, ids_at = self.payload, self.record_at, self.ids_at
        return (
            self.keys[at * KEY_SIZE : (at + 1) * KEY_SIZE],
            payload[record_at[at] : record_at[at + 1]],
            payload[ids_at[at] : ids_at[at + 1]],
        )


class Span:
    """Neighbours that are all as they were: entries [start, stop) of a block of the last run.

    `position` is the number of entries of the last run that stand before them.
    """

    __slots__ = ("_block", "_start", "_stop", "position")

    def __init__(self, block: _Block, start: int, stop: int, before: int) -> None:
        self._block, self._start, self._stop = block, start, stop
        self.position = before + start

    def __len__(self) -> int:
        return self._stop - self._start

    @property
    def ids(self) -> bytes:
        """The chunk ids of all of them."""
        block = self._block
        return block.payload[block.ids_at[self._start] : block.ids_at[self._stop]]

    @property
    def keys(self) -> bytes:
        """The keys of all of them."""
        return self._block.keys[self._start * KEY_SIZE : self._stop * KEY_SIZE]

    def front(self, count: int) -> Span:
        """The first `count` of them."""
        before = self.position - self._start
        return Span(self._block, self._start, min(self._stop, self._start + count), before)

    @property
    def paths(self) -> list[bytes]:
        """The paths of all of them, in order."""
        return self._block.paths[self._start : self._stop]

    def records(self) -> list[bytes]:
        """Return the record of each path."""
        payload, ends = self._block.payload, self._block.record_at[self._start : self._stop + 1]
        return [payload[at:end] for at, end in pairwise(ends)]

    def singly(self) -> list[tuple[bytes, Kept]]:
        """Return what `LastRun.find` would have found for each."""
        block = self._block
        return [(block.paths[at], block.kept(at)) for at in range(self._start, self._stop)]

    def columns(self) -> _Columns:
        """Return them as columns, to be written down again."""
        block, start, stop = self._block, self._start, self._stop
        lengths = [
            list(map(sub, ends[start + 1 : stop + 1], ends[start:stop]))
            for ends in (block.path_at, block.record_at, block.ids_at)
        ]
        blobs = [
            block.payload[ends[start] : ends[stop]]
            for ends in (block.path_at, block.record_at, block.ids_at)
        ]
        return lengths, block.keys[start * KEY_SIZE : stop * KEY_SIZE], blobs


_Columns = tuple[list[list[int]], bytes, list[bytes]]  # lengths, keys, blobs: paths, records, ids


def identity(repository: str, source: str, root: bytes) -> bytes:
    """Return what a cache is for."""
    parts = (repository.encode(), source.encode(), root)
    return blake3(b"".join(struct.pack("<I", len(part)) + part for part in parts)).digest()


def _digest_header(whose: bytes, entries: int, files: int, size: int) -> bytes:
    return blake3(_HEADER.pack(_MAGIC, whose, entries, files, size, bytes(32))).digest()


class LastRun:
    """The cache of the last run, asked for paths in ascending order.

    `entries`, `files` and `size` (bytes) are what the last run took; 0 without a cache.
    """

    def __init__(self, path: bytes | None, whose: bytes) -> None:
        self.entries = self.files = self.size = 0
        self._whose = whose
        self._fd = -1
        self._at = self._before = 0
        self._block = _Block([], b"", [0], [0], [0], b"")
        self._rest: Iterator[_Block] = iter(())
        if path is not None and self._open(path, whose):
            self._rest = self._blocks()

    def _open(self, path: bytes, whose: bytes) -> bool:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # no cache, or none that is ours to read: everything is read
            return False
        facts = os.fstat(self._fd)
        private = facts.st_uid == os.geteuid() and not facts.st_mode & 0o077
        header = os.read(self._fd, _HEADER.size) if private else b""
        if not modes.S_ISREG(facts.st_mode) or len(header) < _HEADER.size:
            return False
        magic, owner, entries, files, size, digest = _HEADER.unpack(header)
        good = digest == _digest_header(whose, entries, files, size)
        if magic != _MAGIC or owner != whose or not good:
            return False
        self.entries, self.files, self.size = entries, files, size
        return True

    @property
    def position(self) -> int:
        """The number of the entry that was found last, from 0."""
        return self._before + self._at - 1

    def again(self) -> LastRun:
        """The same cache from its beginning, even if the file's name means another by now."""
        other = LastRun(None, self._whose)
        if self._fd >= 0:
            other._fd = os.dup(self._fd)
            other.entries, other.files, other.size = self.entries, self.files, self.size
            other._rest = other._blocks()
        return other

    def spans(self) -> Iterator[Span]:
        """Yield all entries of a cache that was not asked for any, a block at a time."""
        before = 0
        for block in self._rest:
            if block.paths:
                yield Span(block, 0, len(block.paths), before)
                before += len(block.paths)

    def tree(self) -> bytes:
        """The mark of the whole tree of the last run; empty when there is none."""
        end = os.fstat(self._fd).st_size if self._fd >= 0 else 0
        if end < _HEADER.size + _TREE.size:
            return b""
        length, magic = _TREE.unpack(os.pread(self._fd, _TREE.size, end - _TREE.size))
        begin = end - _TREE.size - length - _BLOCK.size
        if magic != _TREE_MAGIC or begin < _HEADER.size:
            return b""
        count, size, digest = _BLOCK.unpack(os.pread(self._fd, _BLOCK.size, begin))
        mark = os.pread(self._fd, length, begin + _BLOCK.size)
        good = not count and size == length and blake3(mark).digest() == digest
        return mark if good else b""

    def find(self, path: bytes) -> Kept | None:
        """Return what was kept of `path`; each call with a greater path than the one before."""
        if not self._seek(path):
            return None
        self._at += 1
        return self._block.kept(self._at - 1)

    def knows_nothing_of(self, first: bytes, final: bytes) -> bool:
        """Is there no entry from `first` to `final`? Paths as for `find`."""
        if self._seek(first):
            return False
        paths = self._block.paths
        return self._at >= len(paths) or paths[self._at] > final

    def span(self, paths: list[bytes], keys: bytes) -> Span | None:
        """Return the longest front of `paths` that is as it was and lies in one block.

        None when the first block that concerns them differs anywhere: then ask for each. Paths
        ascend, after all that was asked before; `keys` are theirs, one KEY after the other.
        """
        if not self._seek(paths[0]):
            return None
        block, at = self._block, self._at
        stop = min(at + len(paths), len(block.paths))
        size = (stop - at) * KEY_SIZE
        if block.keys[at * KEY_SIZE : stop * KEY_SIZE] != keys[:size]:
            return None
        if block.paths[at:stop] != paths[: stop - at]:
            return None
        self._at = stop
        return Span(block, at, stop, self._before)

    def _seek(self, path: bytes) -> bool:
        """Go to the first entry that is not before `path`; True if it is it."""
        paths, at = self._block.paths, self._at
        while True:
            try:
                while paths[at] < path:
                    at += 1
                break
            except IndexError:
                block = next(self._rest, None)
                if block is None:
                    self._at = at
                    return False
                self._before += len(paths)
                self._block, paths, at = block, block.paths, 0
        self._at = at
        return paths[at] == path

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _blocks(self) -> Iterator[_Block]:
        at = _HEADER.size
        while len(head := os.pread(self._fd, _BLOCK.size, at)) == _BLOCK.size:
            count, length, digest = _BLOCK.unpack(head)
            if length > MAX_BLOCK or count * _COLUMNS > length:
                return
            payload = os.pread(self._fd, length, at + _BLOCK.size)
            if len(payload) < length or blake3(payload).digest() != digest:
                return
            at += _BLOCK.size + length
            yield _open_block(payload, count)


def _open_block(payload: bytes, count: int) -> _Block:
    lengths = struct.unpack_from(f"<{count}H", payload)
    at = 2 * count
    record_lengths = struct.unpack_from(f"<{count}I", payload, at)
    ids_lengths = struct.unpack_from(f"<{count}I", payload, at + 4 * count)
    at += 8 * count
    keys = payload[at : at + KEY_SIZE * count]
    path_at = list(accumulate(lengths, initial=at + KEY_SIZE * count))
    record_at = list(accumulate(record_lengths, initial=path_at[-1]))
    ids_at = list(accumulate(ids_lengths, initial=record_at[-1]))
    paths = [payload[path_at[i] : path_at[i + 1]] for i in range(count)]
    return _Block(paths, keys, path_at, record_at, ids_at, payload)


class ThisRun:
    """The cache that this run writes beside the old one; `replace` puts it in its place.

    Faults of the cache's own disk end the cache, never the backup; `fault` says what happened.
    """

    def __init__(self, path: bytes | None, whose: bytes) -> None:
        self.fault = ""
        self._whose = whose
        self._file: Beside | None = None
        self._lengths: tuple[list[int], list[int], list[int]] = ([], [], [])
        self._rows: list[tuple[bytes, bytes, bytes, bytes]] = []
        self._keys: list[bytes] = []
        self._blobs: tuple[list[bytes], list[bytes], list[bytes]] = ([], [], [])
        self._ids_size = self._entries = 0
        if path is not None:
            try:
                self._file = Beside(path)
                os.lseek(self._file.fd, _HEADER.size, os.SEEK_SET)
            except OSError as fault:
                self._fail(fault)

    def add(self, path: bytes, key: bytes, record: bytes, ids: bytes) -> None:
        """Keep an entry; paths ascend."""
        self._rows.append((path, key, record, ids))
        self._ids_size += len(ids)
        if len(self._rows) >= BLOCK_ENTRIES or self._ids_size >= BLOCK_IDS:
            self._flush()

    def add_span(self, span: Span) -> None:
        """Keep neighbours as they were kept before."""
        self._settle_rows()
        lengths, keys, blobs = span.columns()
        self._keys.append(keys)
        for number in range(3):
            self._lengths[number].extend(lengths[number])
            self._blobs[number].append(blobs[number])
        self._ids_size += len(blobs[2])
        if len(self._lengths[0]) >= BLOCK_ENTRIES or self._ids_size >= BLOCK_IDS:
            self._flush()

    def add_columns(
        self, paths: list[bytes], keys: bytes, records: list[bytes], ids: list[bytes]
    ) -> None:
        """Keep neighbours."""
        self._settle_rows()
        self._keys.append(keys)
        self._add_blobs((paths, records, ids))
        self._ids_size += sum(map(len, ids))
        if len(self._lengths[0]) >= BLOCK_ENTRIES or self._ids_size >= BLOCK_IDS:
            self._flush()

    def _add_blobs(self, columns: tuple[Sequence[bytes], ...]) -> None:
        for number, column in enumerate(columns):
            self._lengths[number].extend(map(len, column))
            self._blobs[number].extend(column)

    def _settle_rows(self) -> None:
        """Turn the rows that were added one by one into columns."""
        if not self._rows:
            return
        paths, keys, records, ids = zip(*self._rows, strict=True)
        self._rows = []
        self._keys += keys
        self._add_blobs((paths, records, ids))

    def finish(self, *, files: int, size: int) -> None:
        """Complete the new cache, beside the old one."""
        self._flush()
        if self._file is None:
            return
        digest = _digest_header(self._whose, self._entries, files, size)
        header = _HEADER.pack(_MAGIC, self._whose, self._entries, files, size, digest)
        try:
            os.pwrite(self._file.fd, header, 0)
        except OSError as fault:
            self._fail(fault)

    def replace(self, tree: bytes) -> None:
        """Put the new cache, and the mark of the tree, in the place of the old one."""
        if self._file is None:
            return
        try:
            self._file.write(_BLOCK.pack(0, len(tree), blake3(tree).digest()) + tree)
            self._file.write(_TREE.pack(len(tree), _TREE_MAGIC))
            self._file.replace()
        except OSError as fault:
            self._fail(fault)
        self._file = None

    def discard(self) -> None:
        """Throw the new cache away, if it has not replaced the old one."""
        if self._file is not None:
            self._file.discard()
            self._file = None

    def _flush(self) -> None:
        self._settle_rows()
        paths, records, ids = self._lengths
        count = len(paths)
        parts = [struct.pack(f"<{count}H", *paths)]
        parts += (struct.pack(f"<{count}I", *column) for column in (records, ids))
        parts += self._keys
        for blobs in self._blobs:
            parts += blobs
        self._lengths, self._blobs = ([], [], []), ([], [], [])
        self._keys, self._ids_size = [], 0
        if self._file is None or not count:
            return
        payload = b"".join(parts)
        self._entries += count
        try:
            self._file.write(_BLOCK.pack(count, len(payload), blake3(payload).digest()) + payload)
        except OSError as fault:
            self._fail(fault)

    def _fail(self, fault: OSError) -> None:
        self.fault = f"the change cache was not written: {fault.strerror}"
        self.discard()


class Memory:
    """One source's change cache over its runs, in `directory` (None: without one)."""

    def __init__(self, directory: bytes | None, name: bytes, whose: bytes) -> None:
        self._path = None if directory is None else os.path.join(directory, name)
        self._whose = whose
        self._new: ThisRun | None = None

    @contextlib.contextmanager
    def run(self, tree: Tree) -> Iterator[tuple[LastRun, ThisRun]]:
        """What the last run left and what this one writes, for the snapshot of `tree`; what it
        wrote is discarded where it fails."""
        self.drop()
        last = LastRun(self._path, self._whose)
        try:
            self._new, self._tree = ThisRun(self._path, self._whose), tree
            yield last, self._new
        except BaseException:
            self.drop()
            raise
        finally:
            last.close()

    def settle(self) -> None:
        """The snapshot is committed: what this run wrote replaces what the last one left."""
        if self._new is not None:
            self._new.replace(self._tree.mark())
            self._new = None

    def drop(self) -> None:
        """Discard what this run wrote."""
        if self._new is not None:
            self._new.discard()
            self._new = None
