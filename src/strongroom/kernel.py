"""The few loops that Python is too slow for, compiled where a compiler was present at install.

`strongroom._kernel` and the Python twins in this file give the same results; the twins are the
specification. `COMPILED` says which are in use; STRONGROOM_NO_KERNEL=1 in the environment forces
the twins. Nothing here decides anything: descriptors and names come in, bytes and error numbers
go out. All of them release the GIL around system calls and long loops, and look at signals
between batches of 256 files.
"""

from __future__ import annotations

import errno
import importlib
import os
import stat as modes
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from numpy.typing import NDArray

Buffer = bytes | bytearray | memoryview

_compiled: Any = None
if not os.environ.get("STRONGROOM_NO_KERNEL"):
    try:
        _compiled = importlib.import_module("strongroom._kernel")
    except ImportError:  # built without a compiler: the twins give the same results, slower
        _compiled = None

COMPILED: bool = _compiled is not None

# A file's facts as bytes, so that "nothing changed" is one comparison of KEY_SIZE bytes.
# KEY is what stays while a file stays the same: mode (with type), nlink, uid, gid, rdev, ino,
# size, mtime ns, ctime ns. EXTRA is what may change by itself: dev (another number after a
# reboot or in a volume snapshot) and blocks of 512 bytes (delayed allocation). STAT is both.
KEY = struct.Struct("<IIIIQQQqq")
EXTRA = struct.Struct("<QQ")
STAT = struct.Struct("<IIIIQQQqqQQ")
KEY_SIZE, EXTRA_SIZE, STAT_SIZE = KEY.size, EXTRA.size, STAT.size

NOT_REGULAR, TOO_LARGE = -1, -2  # statuses of `read_files` that are no error numbers
DONE, OPEN, WRITE, OWNER, MODE, TIMES = range(6)  # steps of `write_files`

Listing = tuple[list[bytes], bytes, bytes, bytes, list[tuple[bytes, int]]]
FileRead = tuple[int, int, int, bytes, bytes]
FileSpec = tuple[int, bytes, int, int, int, int]
Pairs = tuple[tuple[bytes, bytes], ...]

# ------------------------------------------------------------------- chunker proposals

WINDOW = 32


def gear() -> NDArray[Any]:
    """Return the 256 u32 constants: first 4 bytes, LE, of BLAKE3(b"strongroom gear 1" ‖ byte)."""
    import numpy as np  # noqa: PLC0415 - only the twin needs it, and it is heavy
    from blake3 import blake3  # noqa: PLC0415 - as above

    digests = (blake3(b"strongroom gear 1" + bytes([byte])).digest()[:4] for byte in range(256))
    return np.frombuffer(b"".join(digests), dtype="<u4").astype(np.uint32)


def candidates(data: Buffer, mask: int) -> bytes:
    """Propose cuts: the u32 little-endian offsets, ascending, where the rolling hash fits `mask`.

    h(i) = sum over j in 0..31 of gear[data[i-j]] << j, modulo 2**32; offset i+1 is proposed when
    i >= 31 and h(i) & mask == 0. A proposal depends on the 32 bytes before it and on nothing
    else, so a stream may be cut anywhere if each part is given with the 31 bytes before it.
    The hash is public; it only proposes. ValueError above 4 GiB.
    """
    if _compiled is not None:
        offsets: bytes = _compiled.candidates(data, mask)
        return offsets
    return candidates_twin(data, mask)


_TWIN_RUN = 1 << 20  # the doubling makes several u32 arrays of what it is given


def candidates_twin(data: Buffer, mask: int) -> bytes:
    """Specify `candidates`, in numpy: the window doubles five times instead of rolling."""
    import numpy as np  # noqa: PLC0415 - see gear

    if len(data) > 0xFFFFFFFF or not 0 <= mask <= 0xFFFFFFFF:
        raise ValueError("data and mask are limited to 32 bits")
    table = gear()
    raw = np.frombuffer(data, dtype=np.uint8)
    found = []
    for start in range(0, len(raw) - WINDOW + 1, _TWIN_RUN):
        hashes = table[raw[start : start + _TWIN_RUN + WINDOW - 1]]
        for width in (1, 2, 4, 8, 16):
            hashes = hashes[width:] + (hashes[:-width] << np.uint32(width))
        hits = np.flatnonzero((hashes & np.uint32(mask)) == 0)
        found.append((hits + (start + WINDOW)).astype("<u4"))
    return b"".join(part.tobytes() for part in found)


# -------------------------------------------------------------------- archive blocks

BLOCK_HEAD = 5
_BLOCK = struct.Struct("<BI")


def join_blocks(data: Buffer, most: int) -> tuple[bytes, int, int, bool]:
    """Join the blocks of a pg_dump archive: fewer of them, the same content.

    A block is a sign (0), its length as u32 little endian, and so many bytes; one of length 0 ends
    a row of blocks. `data` begins with a block. Blocks that follow each other are made one as long
    as that has at most `most` bytes of content. Returns what came of it; how much of `data` that
    was (all, but for less than a block's head, or up to and with the end); how many bytes are
    still to come of a last block that is not all there, which is not joined; and whether the end
    was met. ValueError when a sign is not 0.
    """
    if _compiled is not None:
        result: tuple[bytes, int, int, bool] = _compiled.join_blocks(data, most)
        return result
    return join_blocks_twin(data, most)


def join_blocks_twin(data: Buffer, most: int) -> tuple[bytes, int, int, bool]:
    """Specify `join_blocks`."""
    view, at, rest, ended = memoryview(data), 0, 0, False
    out: list[Buffer] = []
    run: list[Buffer] = []
    filled = 0
    if not 0 <= most <= 0x7FFFFFFF:
        raise ValueError("a block has a positive length of 31 bits")
    while len(view) - at >= BLOCK_HEAD and not ended and not rest:
        sign, length = _BLOCK.unpack_from(view, at)
        if sign:
            raise ValueError("no block has a negative length")
        content = view[at + BLOCK_HEAD : at + BLOCK_HEAD + length]
        at += BLOCK_HEAD + len(content)
        rest, ended = length - len(content), not length
        alone = bool(rest) or ended
        if run and (alone or filled + length > most):
            out += (_BLOCK.pack(0, filled), *run)
            run, filled = [], 0
        if alone:
            out += (_BLOCK.pack(0, length), content)
        else:
            run.append(content)
            filled += length
    if run:
        out += (_BLOCK.pack(0, filled), *run)
    return b"".join(out), at, rest, ended


# ------------------------------------------------------------------- write-ahead log

_NOTED = frozenset({0x00, 0x10, 0x40, 0x70, 0x90, 0xD0})  # xl_info of what `scan_wal` notes
_SWITCH = 0x40
_XLOG, _XACT, _TABLESPACE = 0, 1, 5  # resource managers
_ABORTS, _COMMITS, _ASSIGNMENT = frozenset({0x20, 0x40}), frozenset({0x00, 0x30}), 0x50
_CONTINUES, _LONG, _OVERWRITES, _PAGE_INFO = 1, 2, 8, 15  # xlp_info
_SHORT_HEAD, _LONG_HEAD, _RECORD_HEAD = 24, 40, 24
_RECORD_MOST = 1 << 30
_WIDER_STATISTICS = 0xD117  # xlp_magic from which on a dropped statistic is named by 16 bytes
_PAGE = struct.Struct("<HHIQI")  # magic, info, timeline, address, bytes of a record still to come
_SIZES = struct.Struct("<32xII")  # of a segment, of a page
_UNFINISHED = struct.Struct(
    "<QQII24s"
)  # record before, start, so far, CRC of the body so far, head
_END = struct.Struct("<QQqII")
_WRITER = struct.Struct("<IIQ")

WalScan = tuple[tuple[int, ...], list[tuple[int, int, int, bytes]], bytes, bytes, bytes]


def scan_wal(data: Buffer, start: int, state: bytes = b"", detail: bool = False) -> WalScan:
    """Walk the records of one segment of PostgreSQL's log (13 and later, little endian).

    `data` begins at position `start`, with the long header of the segment's first page; `state` is
    what the scan of the segment before gave, or b"". A record counts when its pages' headers, its
    link to the record before it and its CRC are right. The walk ends at the first that does not, as
    PostgreSQL's recovery would, whatever the bytes are. Returns

    -   counts: where the first record that begins here begins and where the last whole one ends;
        1 when the log goes on up to the end of the segment or to a switch; 1 for a switch; commits;
        aborts; least and greatest time of a commit, greatest of either (PostgreSQL's microseconds);
        the transaction that wrote most, and its bytes: with its subtransactions as far as records
        of this segment tell of them, the least number of several. 0 stands for none;
    -   notes: (manager << 8 | info, start, end, main data) of records about the log itself, whose
        manager is 0: checkpoints, switch, restore points, ends of recovery, overwritten records;
        and of tablespaces that are made (0x500);
    -   with `detail`, commits and aborts as rows for `wal_ends`, and transactions, ascending, as
        rows for `wal_writers`; without it two times b"";
    -   the state for the next segment; b"" when no known record goes on there.

    A transaction's bytes are those of its records in `data`: of a record that comes from before or
    goes on beyond it the part that is here, without page headers and padding.
    """
    if _compiled is not None:
        found: WalScan = _compiled.scan_wal(data, start, state, detail)
        return found
    return scan_wal_twin(data, start, state, detail)


def scan_wal_twin(data: Buffer, start: int, state: bytes = b"", detail: bool = False) -> WalScan:
    """Specify `scan_wal`."""
    walk = _WalWalk(memoryview(data), start)
    walk.run(state)
    return walk.result(detail)


def wal_ends(packed: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield commits and aborts: start, end, time, transaction, 1 for an abort."""
    return _END.iter_unpack(packed)


def wal_writers(packed: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield transactions: its number, that of the one it is part of (0 for none), its bytes."""
    return _WRITER.iter_unpack(packed)


def wal_state_writer(state: bytes) -> int:
    """The transaction whose record goes on in the next segment; 0 for none."""
    head = _UNFINISHED.unpack_from(state)[4]
    return int.from_bytes(head[4:8], "little")


class _WalRecord:
    """A record as far as it has come. One without a `start` has no known head and is passed over."""

    def __init__(self, start: int, total: int) -> None:
        self.start, self.total = start, total
        self.got = self.here = self.crc = 0
        self.head = self.body = b""

    @staticmethod
    def from_state(state: bytes) -> tuple[_WalRecord, int] | None:
        """Return the record and where the one before it begins; None when it is no state."""
        if len(state) < _UNFINISHED.size:
            return None
        previous, start, got, crc, head = _UNFINISHED.unpack_from(state)
        record = _WalRecord(start, int.from_bytes(head[:4], "little"))
        record.got, record.crc, record.head = got, crc, head[:got]
        record.body = state[_UNFINISHED.size :]
        kept = got - _RECORD_HEAD if record.told and got > _RECORD_HEAD else 0
        fits = _RECORD_HEAD <= record.total <= _RECORD_MOST and 8 <= got < record.total
        return (record, previous) if start and fits and len(record.body) == kept else None

    def as_state(self, previous: int) -> bytes:
        return _UNFINISHED.pack(previous, self.start, self.got, self.crc, self.head) + self.body

    @property
    def told(self) -> bool:
        """Whether anything is told of it, so that its body is kept."""
        if len(self.head) < _RECORD_HEAD:
            return False
        info, manager = self.head[16], self.head[17]
        if manager == _TABLESPACE:
            return info & 0xF0 == 0  # made; 0x10 is for dropped
        return manager == _XACT or (manager == _XLOG and info & 0xF0 in _NOTED)

    def feed(self, part: memoryview) -> None:
        self.got += len(part)
        self.here += len(part)
        if self.start:
            lacking = _RECORD_HEAD - len(self.head)
            self.head += part[:lacking]
            self.crc = _crc32c(part[lacking:], self.crc)
            if self.told:
                self.body += part[lacking:]

    def linked(self, previous: int) -> bool:
        """Whether its head, where that is all there, names the record before it."""
        if len(self.head) < _RECORD_HEAD:
            return True
        before = int.from_bytes(self.head[8:16], "little")
        return before == previous if previous else before < self.start

    def sound(self) -> bool:
        return not self.start or _crc32c(self.head[:20], self.crc) == int.from_bytes(
            self.head[20:], "little"
        )


def _crc32c(data: Buffer, before: int) -> int:
    from crc32c import crc32c  # noqa: PLC0415 - only the twin needs it

    return int(crc32c(data, before))


class _WalWalk:
    def __init__(self, view: memoryview, start: int) -> None:
        self.view, self.base = view, start
        self.page = self.magic = self.timeline = 0
        self.previous = 0  # where the record before begins; 0 when that is not known
        self.open: _WalRecord | None = None
        self.first = self.last = self.commits = self.aborts = 0
        self.whole = self.switched = False
        self.times: list[int] = []
        self.abort_times: list[int] = []
        self.notes: list[tuple[int, int, int, bytes]] = []
        self.ends: list[bytes] = []
        self.bytes_of: dict[int, int] = {}
        self.part_of: dict[int, int] = {}

    def run(self, state: bytes) -> None:
        size = self._segment_size()
        if not size:
            return
        self.view = self.view[:size]
        for offset in range(0, len(self.view), self.page):
            if not self._walk_page(offset, state):
                self.whole = self.switched
                break
        else:
            self.whole = len(self.view) == size
        if not self.whole:
            self.open = None
        elif self.open and self.open.start:
            self._count(self.open)

    def result(self, detail: bool) -> WalScan:
        folded: dict[int, int] = {}
        for xid, count in self.bytes_of.items():
            top = self.part_of.get(xid, xid)
            folded[top] = folded.get(top, 0) + count
        most = max(folded.values(), default=0)
        largest = min((xid for xid, count in folded.items() if most and count == most), default=0)
        times = self.times, self.abort_times
        counts = (self.first, self.last, int(self.whole), int(self.switched), *map(len, times))
        counts += min(self.times, default=0), max(self.times, default=0)
        counts += max(self.times + self.abort_times, default=0), largest, most
        state = self.open.as_state(self.previous) if self.open and self.open.start else b""
        if not detail:
            return counts, self.notes, b"", b"", state
        rows = (
            _WRITER.pack(xid, self.part_of.get(xid, 0), count)
            for xid, count in sorted(self.bytes_of.items())
        )
        return counts, self.notes, b"".join(self.ends), b"".join(rows), state

    def _segment_size(self) -> int:
        """The size that the first page's long header gives; 0 when that is no such header."""
        if len(self.view) < _LONG_HEAD:
            return 0
        size, page = _SIZES.unpack_from(self.view)
        if size & (size - 1) or not 1 << 20 <= size <= 1 << 30 or self.base % size:
            return 0
        if page & (page - 1) or not 1 << 10 <= page <= 1 << 16:
            return 0
        self.page, self.magic = page, int.from_bytes(self.view[:2], "little")
        return int(size)

    def _walk_page(self, offset: int, state: bytes) -> bool:
        """Walk the records of one page; False when the log ends there."""
        head = _SHORT_HEAD if offset else _LONG_HEAD
        end = min(offset + self.page, len(self.view))
        if end - offset < head:
            return False
        magic, info, timeline, address, rest = _PAGE.unpack_from(self.view, offset)
        if magic != self.magic or address != self.base + offset or timeline < self.timeline:
            return False
        if info & ~_PAGE_INFO or bool(info & _LONG) == bool(offset):
            return False
        self.timeline = timeline
        rest = rest if info & _CONTINUES else 0
        if not offset:
            self._resume(state, rest)
        elif info & _OVERWRITES:
            self.open = None  # its end was lost in a crash, and recovery says so here
        if rest != (self.open.total - self.open.got if self.open else 0):
            return False
        return self._walk_records(offset + head, end)

    def _resume(self, state: bytes, rest: int) -> None:
        found = _WalRecord.from_state(state)
        if rest and found and found[0].total - found[0].got == rest:
            self.open, self.previous = found
        elif rest:
            self.open = _WalRecord(0, rest)

    def _walk_records(self, at: int, end: int) -> bool:
        while at < end:
            if self.open is None:
                total = int.from_bytes(self.view[at : at + 4], "little")
                if end - at < 8 or not _RECORD_HEAD <= total <= _RECORD_MOST:
                    return False
                self.open = _WalRecord(self.base + at, total)
            record = self.open
            part = self.view[at : min(at + record.total - record.got, end)]
            record.feed(part)
            at += len(part)
            if record.got == record.total:
                at = (at + 7) & ~7
                if not record.linked(self.previous) or not record.sound():
                    return False
                self._done(record, self.base + at)
                if self.switched:
                    return False
        return self.open is None or self.open.linked(self.previous)

    def _done(self, record: _WalRecord, end: int) -> None:
        self.open, self.last, self.previous = None, end, record.start
        if record.start:
            self._count(record, self._tell(record, end) if record.told else 0)

    def _count(self, record: _WalRecord, instead: int = 0) -> None:
        if not self.first and record.start >= self.base:
            self.first = record.start
        xid = int.from_bytes(record.head[4:8], "little") or instead
        if xid:
            self.bytes_of[xid] = self.bytes_of.get(xid, 0) + record.here

    def _tell(self, record: _WalRecord, end: int) -> int:
        """Note what a record says; return the prepared transaction that it ends, or 0."""
        info, manager = record.head[16], record.head[17]
        if manager == _XLOG:
            self.switched = info & 0xF0 == _SWITCH
        main = _main_data(record.body)
        if main is None:
            return 0
        if manager == _XACT:
            return self._tell_transaction(record, end, main)
        self.notes.append((manager << 8 | info & 0xF0, record.start, end, main))
        return 0

    def _tell_transaction(self, record: _WalRecord, end: int, main: bytes) -> int:
        info, xid = record.head[16], int.from_bytes(record.head[4:8], "little")
        if info & 0x70 == _ASSIGNMENT:
            self._tell_parts(int.from_bytes(main[:4], "little"), _counted(main, 4, 4)[0])
            return 0
        aborted = info & 0x70 in _ABORTS
        if len(main) < 8 or not (aborted or info & 0x70 in _COMMITS):
            return 0
        width = 16 if self.magic >= _WIDER_STATISTICS else 12
        parts, prepared = _parts(main, width) if info & 0x80 else (b"", 0)
        xid = prepared or xid
        time = int.from_bytes(main[:8], "little", signed=True)
        (self.abort_times if aborted else self.times).append(time)
        self.ends.append(_END.pack(record.start, end, time, xid, int(aborted)))
        self._tell_parts(xid, parts)
        return prepared

    def _tell_parts(self, top: int, parts: bytes) -> None:
        for (xid,) in struct.iter_unpack("<I", parts) if top else ():
            if xid not in {0, top}:
                self.part_of[xid] = top
                self.bytes_of.setdefault(xid, 0)
                self.bytes_of.setdefault(top, 0)


def _main_data(body: bytes) -> bytes | None:
    """The main data of a record without blocks; None when it has blocks, or is no such record."""
    at = 0
    while at < len(body):
        kind, rest = body[at], len(body) - at
        if kind == 255 and rest >= 2:
            return body[at + 2 :] if body[at + 1] == rest - 2 else None
        if kind == 254 and rest >= 5:
            length = int.from_bytes(body[at + 1 : at + 5], "little")
            return body[at + 5 :] if length == rest - 5 else None
        if kind not in {252, 253}:
            return None
        at += 5 if kind == 252 else 3  # top-level transaction; origin
    return b""


def _counted(main: bytes, at: int, width: int) -> tuple[bytes, int]:
    """The items behind a count, and where they end; (b"", -1) when they are not all there."""
    if len(main) - at < 4:
        return b"", -1
    end = at + 4 + int.from_bytes(main[at : at + 4], "little") * width
    return (main[at + 4 : end], end) if end <= len(main) else (b"", -1)


def _parts(main: bytes, width: int) -> tuple[bytes, int]:
    """The subtransactions, and the prepared transaction or 0, of a commit's or abort's main data."""
    flags, parts = int.from_bytes(main[8:12], "little"), b""
    at = 20 if flags & 1 else 12
    for bit, size in ((2, 4), (4, 12), (256, width), (8, 16)):
        if flags & bit:
            items, at = _counted(main, at, size)
            if at < 0:
                return parts, 0
            parts = items if bit == 2 else parts
    prepared = main[at : at + 4] if flags & 16 else b""
    return parts, int.from_bytes(prepared, "little") if len(prepared) == 4 else 0


# -------------------------------------------------------------------------- file facts


def pack_stat(facts: os.stat_result) -> bytes:
    """Pack what `os.stat` found as STAT; times beyond 64 bits of nanoseconds stay at the end."""
    return STAT.pack(
        facts.st_mode,
        min(facts.st_nlink, 0xFFFFFFFF),
        facts.st_uid,
        facts.st_gid,
        facts.st_rdev,
        facts.st_ino,
        facts.st_size,
        max(-(1 << 63), min(facts.st_mtime_ns, (1 << 63) - 1)),
        max(-(1 << 63), min(facts.st_ctime_ns, (1 << 63) - 1)),
        facts.st_dev,
        facts.st_blocks,
    )


def scan_dir(fd: int) -> Listing:
    """List and stat a directory without following anything: names, kinds, keys, extras, failed.

    `names` are sorted raw; `kinds[i]` is the file type (mode >> 12) of names[i], and `keys` and
    `extras` hold its KEY and EXTRA at i * KEY_SIZE and i * EXTRA_SIZE. `failed` holds (name, errno)
    of what could not be stat'ed; the name b"" stands for a listing that ended early. The
    descriptor stays open. OSError when it is no directory.
    """
    if _compiled is not None:
        listing: Listing = _compiled.scan_dir(fd)
        return listing
    return scan_dir_twin(fd)


def scan_dir_twin(fd: int) -> Listing:
    """Specify `scan_dir`."""
    names: list[bytes] = []
    stats: list[bytes] = []
    failed: list[tuple[bytes, int]] = []
    for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
        try:
            stats.append(pack_stat(os.stat(name, dir_fd=fd, follow_symlinks=False)))
            names.append(name)
        except OSError as fault:
            failed.append((name, fault.errno or errno.EIO))
    kinds = bytes(packed[1] >> 4 for packed in stats)
    keys = b"".join([packed[:KEY_SIZE] for packed in stats])
    return names, kinds, keys, b"".join([packed[KEY_SIZE:] for packed in stats]), failed


# -------------------------------------------------------------------- read small files


def read_files(
    dirfd: int, names: Sequence[bytes], buffer: bytearray | memoryview, limit: int
) -> list[FileRead]:
    """Read regular files of at most `limit` bytes, one after the other, into `buffer`.

    Returns (status, offset, length, STAT after reading, packed xattrs) for each name dealt with;
    fewer than asked when the next file did not fit what was left of the buffer. Status 0 is
    good, positive an errno, NOT_REGULAR and TOO_LARGE as named; for all but 0 the rest is empty.
    Never follows a symlink, never waits for a FIFO, spares access times where it may. The buffer
    must be longer than `limit` (ValueError), so that the first file always fits. `unpack_xattrs`
    opens the last field.
    """
    if _compiled is not None:
        rows: list[FileRead] = _compiled.read_files(dirfd, names, buffer, limit)
        return rows
    return read_files_twin(dirfd, names, buffer, limit)


def read_files_twin(
    dirfd: int, names: Sequence[bytes], buffer: bytearray | memoryview, limit: int
) -> list[FileRead]:
    """Specify `read_files`."""
    room = memoryview(buffer)
    if limit < 0 or len(room) <= limit:
        raise ValueError("the buffer must be larger than the limit")
    rows: list[FileRead] = []
    used = 0
    for name in names:
        try:
            row = _read_one(dirfd, name, room[used:], limit)
        except OSError as fault:
            row = (fault.errno or errno.EIO, 0, b"", b"")
        if row is None:
            break
        status, length, stat, xattrs = row
        rows.append((status, used, length, stat, xattrs))
        used += length
    return rows


_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def open_to_read(dirfd: int, name: bytes) -> int:
    """Open a file to read it: no symlink, no waiting, no access time where that is allowed."""
    try:
        return os.open(name, _READ_FLAGS | getattr(os, "O_NOATIME", 0), dir_fd=dirfd)
    except PermissionError as fault:
        if fault.errno != errno.EPERM:
            raise
        return os.open(name, _READ_FLAGS, dir_fd=dirfd)


def _read_one(
    dirfd: int, name: bytes, room: memoryview, limit: int
) -> tuple[int, int, bytes, bytes] | None:
    fd = open_to_read(dirfd, name)
    try:
        facts = os.fstat(fd)
        if not modes.S_ISREG(facts.st_mode):
            return NOT_REGULAR, 0, b"", b""
        if facts.st_size > limit:
            return TOO_LARGE, 0, b"", b""
        if facts.st_size + 1 > len(room):
            return None
        length = _fill(fd, room[: limit + 1])
        if length > limit:
            return TOO_LARGE, 0, b"", b""
        if length == len(room):
            return None
        facts = os.fstat(fd)
        return 0, length, pack_stat(facts), pack_xattrs(fd)
    finally:
        os.close(fd)


def _fill(fd: int, room: memoryview) -> int:
    total = 0
    while total < len(room) and (got := os.readv(fd, [room[total:]])):
        total += got
    return total


_NAME, _VALUE = struct.Struct("<H"), struct.Struct("<I")
_FAILED = 0xFFFFFFFF


def pack_xattrs(what: int | bytes) -> bytes:
    """Pack the extended attributes of a descriptor, or of a path that is not followed.

    name length u16 ‖ name ‖ value length u32 ‖ value, in the order of the kernel; an attribute that
    cannot be read has length 2**32 - 1 and its errno as u32; the name b"" stands for a list that
    cannot be read.
    """
    follow = isinstance(what, int)
    try:
        names = [os.fsencode(name) for name in os.listxattr(what, follow_symlinks=follow)]
    except OSError as fault:
        if fault.errno in (errno.ENOTSUP, errno.ENOSYS):
            return b""
        return _NAME.pack(0) + _VALUE.pack(_FAILED) + _VALUE.pack(fault.errno or errno.EIO)
    parts: list[bytes] = []
    for name in names:
        try:
            value = os.getxattr(what, name, follow_symlinks=follow)
            parts += (_NAME.pack(len(name)), name, _VALUE.pack(len(value)), value)
        except OSError as fault:
            if fault.errno != errno.ENODATA:
                code = _VALUE.pack(fault.errno or errno.EIO)
                parts += (_NAME.pack(len(name)), name, _VALUE.pack(_FAILED), code)
    return b"".join(parts)


def unpack_xattrs(packed: bytes) -> tuple[Pairs, list[tuple[bytes, int]]]:
    """Return the (name, value) pairs, sorted, and the (name, errno) of what could not be read."""
    pairs: list[tuple[bytes, bytes]] = []
    failed: list[tuple[bytes, int]] = []
    at = 0
    while at < len(packed):
        (length,) = _NAME.unpack_from(packed, at)
        name = packed[at + 2 : at + 2 + length]
        at += 2 + length
        (size,) = _VALUE.unpack_from(packed, at)
        at += 4
        if size == _FAILED:
            failed.append((name, _VALUE.unpack_from(packed, at)[0]))
            at += 4
        else:
            pairs.append((name, packed[at : at + size]))
            at += size
    return tuple(sorted(pairs)), failed


# --------------------------------------------- columns of new, small, plain files
#
# A run of files of one directory as columns: names, KEYs one after the other, ids (b"" for an empty
# file). Most files of a first backup are such, and pass without an object for each.

_LENGTH_AT = 32  # the size in a KEY
_RECORD = struct.Struct("<BBHIIqQI")  # format.tree: the head of a record
_STEP = struct.Struct("<HHI")  # format.tree: what stands before an entry of a page
_PLAIN_KIND, _WITH_XATTRS = 1, 4


def plain_run(keys: Buffer, start: int, stop: int, limit: int, room: int) -> tuple[int, int, int]:
    """Follow KEYs from number `start` while they are those of small plain files.

    Plain are regular files with one name, of at most `limit` bytes. Ends where one is not, where
    all together would exceed `room`, or at `stop`. Returns where it ended, the bytes of all, and
    the latest mtime or ctime (-2**63 for none).
    """
    if _compiled is not None:
        found: tuple[int, int, int] = _compiled.plain_run(keys, start, stop, limit, room)
        return found
    return plain_run_twin(keys, start, stop, limit, room)


def plain_run_twin(
    keys: Buffer, start: int, stop: int, limit: int, room: int
) -> tuple[int, int, int]:
    """Specify `plain_run`."""
    if start < 0 or stop > len(keys) // KEY_SIZE:
        raise ValueError("there are not so many keys")
    total, newest = 0, -(1 << 63)
    while start < stop:
        mode, links, *_, size, mtime, ctime = KEY.unpack_from(keys, start * KEY_SIZE)
        if not modes.S_ISREG(mode) or links != 1 or size > limit or total + size > room:
            break
        total += size
        newest = max(newest, mtime, ctime)
        start += 1
    return start, total, newest


def read_plain(
    dirfd: int,
    names: list[bytes],
    keys: Buffer,
    start: int,
    buffer: bytearray | memoryview,
    xattrs: bytes,
) -> tuple[int, int]:
    """Read files that are what their KEYs say, from number `start`, back to back into `buffer`.

    Stops at the first with which anything is out of the ordinary, and says nothing about why: it
    cannot be opened or read, is no regular file, is longer or shorter than its key says, has
    another key after reading, has packed extended attributes that are not `xattrs`, or does not
    fit. Returns where it stopped and the bytes of those before. What lies behind them in the buffer
    has no meaning. Opens as `read_files` does.
    """
    if _compiled is not None:
        done: tuple[int, int] = _compiled.read_plain(dirfd, names, keys, start, buffer, xattrs)
        return done
    return read_plain_twin(dirfd, names, keys, start, buffer, xattrs)


def read_plain_twin(
    dirfd: int,
    names: list[bytes],
    keys: Buffer,
    start: int,
    buffer: bytearray | memoryview,
    xattrs: bytes,
) -> tuple[int, int]:
    """Specify `read_plain`."""
    if start < 0 or len(keys) != len(names) * KEY_SIZE:
        raise ValueError("there is one key for each name")
    room, used = memoryview(buffer), 0
    while start < len(names):
        key = bytes(keys[start * KEY_SIZE : (start + 1) * KEY_SIZE])
        size = int.from_bytes(key[_LENGTH_AT : _LENGTH_AT + 8], "little")
        if size >= len(room) - used:
            break
        try:
            if not _read_as_scanned(dirfd, names[start], key, room[used : used + size + 1], xattrs):
                break
        except OSError:
            break
        used += size
        start += 1
    return start, used


def _read_as_scanned(dirfd: int, name: bytes, key: bytes, room: memoryview, xattrs: bytes) -> bool:
    fd = open_to_read(dirfd, name)
    try:
        if not modes.S_ISREG(os.fstat(fd).st_mode) or os.readv(fd, [room]) != len(room) - 1:
            return False
        return pack_xattrs(fd) == xattrs and pack_stat(os.fstat(fd))[:KEY_SIZE] == key
    finally:
        os.close(fd)


def plain_records(keys: Buffer, lead: bytes, ids: list[bytes], tail: bytes) -> list[bytes]:
    """Encode the records (format.tree) of plain files; content is `lead` ‖ id, or nothing.

    `tail` is their encoded extended attributes, b"" for none.
    """
    if _compiled is not None:
        records: list[bytes] = _compiled.plain_records(keys, lead, ids, tail)
        return records
    return plain_records_twin(keys, lead, ids, tail)


def plain_records_twin(keys: Buffer, lead: bytes, ids: list[bytes], tail: bytes) -> list[bytes]:
    """Specify `plain_records`."""
    if len(keys) != len(ids) * KEY_SIZE:
        raise ValueError("there is one key for each id")
    flags = _WITH_XATTRS if tail else 0
    records = []
    for chunk_id, key in zip(ids, KEY.iter_unpack(keys), strict=True):
        mode, _, uid, gid, _, _, size, mtime, _ = key
        content = lead + chunk_id if chunk_id else b""
        fields = (mode & 0o7777, uid, gid, mtime, size, len(content))
        records.append(_RECORD.pack(_PLAIN_KIND, flags, *fields) + content + tail)
    return records


def encode_page(paths: list[bytes], records: list[bytes]) -> bytes:
    """Encode a page (format.tree) of as many paths as records; ValueError for one too long."""
    if _compiled is not None:
        page: bytes = _compiled.encode_page(paths, records)
        return page
    return encode_page_twin(paths, records)


def encode_page_twin(paths: list[bytes], records: list[bytes]) -> bytes:
    """Specify `encode_page`."""
    parts: list[bytes] = []
    previous = b""
    for path, record in zip(paths, records, strict=True):
        if len(path) > 0xFFFF or len(record) > 0xFFFFFFFF:
            raise ValueError("a path or record is too long")
        shared = _shared(previous, path)
        rest = path[shared:]
        parts += (_STEP.pack(shared, len(rest), len(record)), rest, record)
        previous = path
    return b"".join(parts)


def _shared(previous: bytes, path: bytes) -> int:
    """Length of the folder that both stand in: cheap to find, and the compressor does the rest."""
    folder = path.rfind(b"/") + 1
    return folder if previous[:folder] == path[:folder] else 0


# ------------------------------------------------------------------- write small files

_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY


def write_files(specs: Sequence[FileSpec], contents: Sequence[Buffer]) -> list[tuple[int, int]]:
    """Create regular files from (dirfd, name, mode, uid, gid, mtime ns) and a content for each.

    Returns (step, errno) each. (DONE, 0) is good. OPEN or WRITE: the file is not there. OWNER,
    MODE, TIMES: it is there and whole, but that fact (the first that failed) could not be set.
    uid -1 leaves the owner alone; where the owner cannot be set, set-user-id and set-group-id
    are not set either. Nothing that exists is touched. Names are single components.
    """
    if _compiled is not None:
        results: list[tuple[int, int]] = _compiled.write_files(specs, contents)
        return results
    return write_files_twin(specs, contents)


def write_files_twin(
    specs: Sequence[FileSpec], contents: Sequence[Buffer]
) -> list[tuple[int, int]]:
    """Specify `write_files`."""
    if len(specs) != len(contents):
        raise ValueError("every file has one content")
    return [_write_one(spec, data) for spec, data in zip(specs, contents, strict=True)]


def _write_one(spec: FileSpec, data: Buffer) -> tuple[int, int]:
    dirfd, name, mode, uid, gid, mtime = spec
    born = mode & 0o777 if uid < 0 else 0o600  # nobody else's before it is theirs
    try:
        fd = os.open(name, _WRITE_FLAGS, born, dir_fd=dirfd)
    except OSError as fault:
        return OPEN, fault.errno or errno.EIO
    try:
        with memoryview(data) as view:
            rest = view.cast("B")
            while rest:
                rest = rest[os.write(fd, rest) :]
        return _set_facts(fd, mode, uid, gid, mtime)
    except OSError as fault:
        os.unlink(name, dir_fd=dirfd)
        return WRITE, fault.errno or errno.EIO
    finally:
        os.close(fd)


def _set_facts(fd: int, mode: int, uid: int, gid: int, mtime: int) -> tuple[int, int]:
    """Set what differs from what the file was born with, be it by a umask, an ACL or set-gid."""
    first = (DONE, 0)
    born = os.fstat(fd)
    if uid >= 0 and (born.st_uid, born.st_gid) != (uid, gid):
        try:
            os.fchown(fd, uid, gid)
        except OSError as fault:
            mode &= ~0o6000  # set-id for somebody else's sake only
            first = (OWNER, fault.errno or errno.EIO)
    if modes.S_IMODE(born.st_mode) != mode:
        try:
            os.fchmod(fd, mode)
        except OSError as fault:
            first = first if first[0] else (MODE, fault.errno or errno.EIO)
    try:
        os.utime(fd, ns=(mtime, mtime))
    except OSError as fault:
        first = first if first[0] else (TIMES, fault.errno or errno.EIO)
    return first


# ------------------------------------------------------------------ checksums of pages

_SUMS, _FNV_PRIME = 32, 16777619
_SUM_BASES = (
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
)  # fmt: skip
_TWIN_PAGES = 512


def page_checksums(pages: Buffer, size: int, first: int) -> list[tuple[int, int, int]]:
    """Find the pages of PostgreSQL whose checksum is not what their bytes give.

    `pages` is whole pages of `size` bytes, `first` the block number of the first of them in its
    relation (block in the file + number of the file * blocks a file). Returns (number in `pages`,
    checksum found, checksum expected) for each that differs; a page of zeros alone has none and is
    never among them. ValueError unless `size` is a multiple of 128 and all pages are whole. Source:
    PostgreSQL src/include/storage/checksum_impl.h.
    """
    if _compiled is not None:
        odd: list[tuple[int, int, int]] = _compiled.page_checksums(pages, size, first)
        return odd
    return page_checksums_twin(pages, size, first)


def page_checksums_twin(pages: Buffer, size: int, first: int) -> list[tuple[int, int, int]]:
    """Specify `page_checksums`, in numpy: 32 sums of every page at once."""
    import numpy as np  # noqa: PLC0415 - see gear

    if size <= 0 or size % (4 * _SUMS) or len(pages) % size or not 0 <= first <= 0xFFFFFFFF:
        raise ValueError("whole pages of a multiple of 128 bytes, numbered in 32 bits")
    found: list[tuple[int, int, int]] = []
    prime, shift = np.uint32(_FNV_PRIME), np.uint32(17)
    count = len(pages) // size
    for start in range(0, count, _TWIN_PAGES):
        some = min(_TWIN_PAGES, count - start)
        words = np.frombuffer(pages, "<u4", some * size // 4, start * size).reshape(some, -1)
        noted = (words[:, 2] & np.uint32(0xFFFF)).astype(np.int64)
        sums = np.tile(np.array(_SUM_BASES, np.uint32), (some, 1))
        for at in range(0, size // 4 + 2 * _SUMS, _SUMS):
            if at < size // 4:
                sums ^= words[:, at : at + _SUMS]
            if not at:  # the checksum itself counts as zero
                sums[:, 2] ^= words[:, 2] & np.uint32(0xFFFF)
            sums = sums * prime ^ (sums >> shift)
        numbers = (np.arange(some, dtype=np.uint64) + np.uint64(first + start)).astype(np.uint32)
        expected = (np.bitwise_xor.reduce(sums, axis=1) ^ numbers).astype(np.int64) % 65535 + 1
        for number in np.flatnonzero(expected != noted).tolist():
            if words[number].any():
                found.append((start + number, int(noted[number]), int(expected[number])))
    return found


# ----------------------------------------------------------------------- copies of libpq

COPY_MORE, COPY_NOTHING, COPY_ENDED, COPY_FAILED = range(4)

# copy_data(libpq, fd, into, typed, wait) -> (used, rest, other, state): take messages of a copy
# until `into` is full (`rest`: what did not fit of the last one), one comes that is no data
# (`other`; `typed` copies only, whose messages begin with a letter), or none for `wait`
# milliseconds. `libpq`: addresses of PQgetCopyData, PQconsumeInput, PQfreemem and the connection.
# Its twin is `Replication.receive` without it, for which psycopg calls the same functions.
copy_data: Any = getattr(_compiled, "copy_data", None)


# --------------------------------------------------------------------------- allocator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def tune_allocator() -> bool:
    """Let glibc keep freed buffers instead of giving them back page by page; False elsewhere.

    Doubles the speed of the compress and seal path (design notes: "the allocator is half of the
    cost"). Two arenas for all threads: each keeps what was freed into it, and export peaked at a
    fifth less memory for it, in the same CPU time. Harmless on musl and other systems, which have
    no such knobs.
    """
    if _compiled is not None:
        return bool(_compiled.tune_allocator())
    import ctypes  # noqa: PLC0415 - slow to import, and only needed without the compiled kernel

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # no glibc: nothing to tune
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, 256 << 20) or mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    kept = mallopt(_M_ARENA_MAX, 2) and kept
    return bool(mallopt(_M_TRIM_THRESHOLD, 1 << 30) and kept)


def start_writing(fd: int, start: int, size: int) -> None:
    """Let the disk begin with what was written to a range of a file: a hint, and no promise.

    The kernel alone would begin when a tenth of the memory waits to be written, which a restore of a
    few gigabytes never comes to: all of it would be left to the sync at its end.
    """
    call = _sync_file_range()
    if call is not None:
        call(fd, start, size, 2)  # SYNC_FILE_RANGE_WRITE


@cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    import ctypes  # noqa: PLC0415 - as above

    try:
        found = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):  # not Linux
        return None
    found.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return cast("Callable[[int, int, int, int], int]", found)


# --------------------------------------------------------------------------- syncfs


def sync_file_system(fd: int) -> None:
    """Make everything on the file system of `fd` durable. OSError."""
    import ctypes  # noqa: PLC0415 - as above

    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):  # a C library without it
        os.sync()
        return
    if syncfs(fd):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
