"""gzip (RFC 1952) on every processor: blocks are deflated side by side and stand in one member.

Each block of 1 MiB begins with the last 32 KiB of the one before as its dictionary and ends at a
byte (a sync flush), so that the blocks one after another are one deflate stream that any gunzip
reads. ISA-L deflates a block where it comes near to what `gzip` would make of it, as with most rows
and with what does not compress; zlib-ng the others. The header is the same for the same time.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from isal import isal_zlib
from zlib_ng import zlib_ng

from strongroom.errors import Damaged

BLOCK = 1024 * 1024
WINDOW = 32 * 1024
# docs/reference/artefacts.md has the measurements. ISA-L is 4 times as fast as zlib-ng at level 4
# and loses 0 to 20 % of size, as the content wills: samples of each block say what here.
LEVEL = 4
_FAST, _GZIP = 2, 6  # ISA-L's level; and zlib-ng's whose sizes are those of `gzip`
_LOSS = 1.09
_SAMPLES, _SAMPLE = 2, 16 * 1024
_READ = 256 * 1024

Buffer = bytes | bytearray | memoryview
Out = Callable[[bytes | bytearray | memoryview], object]
Read = Callable[[int], bytes]


class GzipWriter:
    """Compress what is written and hand it to `out`, in order, on the thread that writes.

    `mtime` is seconds since 1970. Memory: two blocks a thread, and what is deflated of them.
    """

    def __init__(self, out: Out, *, mtime: int = 0, threads: int | None = None) -> None:
        self._out = out
        workers = threads or os.cpu_count() or 2
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="deflate")
        self._depth = workers * 2
        self._block, self._filled = bytearray(BLOCK), 0
        self._waiting: deque[Future[bytes]] = deque()
        self._tail = b""
        self._crc = zlib_ng.crc32(b"")
        self._size = 0
        stamp = mtime if 0 <= mtime < 1 << 32 else 0
        out(struct.pack("<4BIBB", 0x1F, 0x8B, 8, 0, stamp, 0, 255))

    def write(self, data: Buffer) -> None:
        """Take `data`; it may be reused on return."""
        with memoryview(data) as view:
            at = 0
            while at < len(view):
                some = view[at : at + BLOCK - self._filled]
                self._block[self._filled : self._filled + len(some)] = some
                self._filled += len(some)
                at += len(some)
                if self._filled == BLOCK:
                    self._submit()

    def finish(self) -> None:
        """Write what is left, and the trailer."""
        if self._filled:
            del self._block[self._filled :]
            self._submit()
        while self._waiting:
            self._out(self._waiting.popleft().result())
        last = zlib_ng.compressobj(LEVEL, zlib_ng.DEFLATED, -15)
        self._out(last.flush() + struct.pack("<II", self._crc, self._size & 0xFFFFFFFF))
        self.close()

    def close(self) -> None:
        """End the threads; nothing more is written."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self) -> None:
        block, self._block, self._filled = self._block, bytearray(BLOCK), 0
        self._waiting.append(self._pool.submit(_deflate, block, self._tail))
        self._crc = zlib_ng.crc32(block, self._crc)
        self._size += len(block)
        self._tail = bytes(block[-WINDOW:])
        while len(self._waiting) > self._depth:
            self._out(self._waiting.popleft().result())


def _deflate(block: bytearray, before: bytes) -> bytes:
    with memoryview(block) as view:
        quick = _quick_is_near(view)
        return (
            _deflated(isal_zlib, _FAST, view, before)
            if quick
            else _deflated(zlib_ng, LEVEL, view, before)
        )


def _quick_is_near(block: memoryview) -> bool:
    """Whether ISA-L comes near to `gzip` on samples, each after as much as it looks back into."""
    quick = gzip = 0
    step = max(len(block) // _SAMPLES, 2 * _SAMPLE)
    for at in range(0, len(block) - 2 * _SAMPLE + 1, step):
        sample, before = block[at + _SAMPLE : at + 2 * _SAMPLE], bytes(block[at : at + _SAMPLE])
        quick += len(_deflated(isal_zlib, _FAST, sample, before))
        gzip += len(_deflated(zlib_ng, _GZIP, sample, before))
    return 0 < quick <= gzip * _LOSS


def _deflated(library: Any, level: int, data: memoryview, before: bytes) -> bytes:
    how = (level, zlib_ng.DEFLATED, -15, 9, 0, *((before,) if before else ()))
    engine = library.compressobj(*how)
    done: bytes = engine.compress(data) + engine.flush(zlib_ng.Z_SYNC_FLUSH)
    return done


class GzipReader:
    """Decompress what `read` gives; Damaged when it is no gzip, is cut, or has more behind it.

    A file of several members is read as one, as gunzip does; zeros and rubbish behind are refused.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._pending = b""
        self._engine = zlib_ng.decompressobj(31)
        self._begun = self._ended = False

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, b"" at the end."""
        while not self._ended:
            if self._engine.eof:
                self._pending = self._engine.unused_data
                if not self._pending:
                    self._pending = self._read(_READ)
                if not self._pending:
                    self._ended = True
                    break
                self._engine = zlib_ng.decompressobj(31)
                self._begun = False
            data = self._pending or self._read(_READ)
            try:
                plain = self._engine.decompress(data, size)
            except zlib_ng.error as fault:  # type: ignore[misc]
                what = "is damaged" if self._begun else "does not begin as one"
                raise Damaged(f"The gzip stream {what}: {fault}.") from None
            self._begun = True
            self._pending = self._engine.unconsumed_tail
            if plain:
                return bytes(plain)
            if not data and not self._engine.eof:  # nothing more, within either
                raise Damaged("The gzip stream is cut: its end is missing.")
        return b""
