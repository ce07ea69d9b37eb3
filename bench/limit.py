"""The limit of this machine: the bare primitives over the same bytes, with none of our logic.

Every core takes the next MiB: read, keyed BLAKE3, zstd 1, AES-GCM, AES-GCM
back, zstd back, compare, write; at the end fsync. Buffers are kept, the
allocator is tuned as the program's is. With --pages also what a cluster's
files need: checksums of pages, CRC-32C, and BLAKE3 by 64 KiB; with --sampled
only every 32nd MiB is opened again.

    python -m bench.limit SOURCE TARGET [--pages] [--sampled]
"""

from __future__ import annotations

import itertools
import mmap
import os
import sys
import threading

from blake3 import blake3
from crc32c import crc32c
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from strongroom import kernel
from strongroom.format.frame import options

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1024 * 1024
STEP = 4 * MIB


def main(source: str, target: str, *, pages: bool = False, sampled: bool = False) -> None:
    """Run the primitives on all cores."""
    kernel.tune_allocator()
    os.makedirs(target, exist_ok=True)
    jobs = []
    for folder, _, names in os.walk(source):
        for name in sorted(names):
            file = os.open(f"{folder}/{name}", os.O_RDONLY)
            jobs += [(file, at) for at in range(0, os.fstat(file).st_size, MIB)]
            if not os.fstat(file).st_size:
                os.close(file)
    turn = itertools.count()
    workers = [
        threading.Thread(
            target=_work, args=(jobs, turn, f"{target}/{number}", pages, 32 if sampled else 1)
        )
        for number in range(os.cpu_count() or 2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _work(
    jobs: list[tuple[int, int]], turn: itertools.count[int], path: str, pages: bool, reopen: int
) -> None:
    cipher, key = AESGCM(bytes(32)), bytes(32)
    compressor = zstd.ZstdCompressor(options=options(1, tight=False))
    plain, opened = bytearray(MIB), bytearray(2 * MIB)
    out = _Out(path)
    for number in turn:
        if number >= len(jobs):
            break
        file, at = jobs[number]
        view = memoryview(plain)[: os.preadv(file, [plain], at)]
        if pages:
            kernel.page_checksums(view[: len(view) & -8192], 8192, 0)
            crc32c(view)
            for start in range(0, len(view), 64 * 1024):
                blake3(view[start : start + 64 * 1024], key=key).digest()
        else:
            blake3(view, key=key).digest()
        packed = compressor.compress(view, mode=compressor.FLUSH_FRAME)
        nonce = number.to_bytes(12, "little")
        into = out.room(len(packed) + 16)
        cipher.encrypt_into(nonce, packed, None, into)
        if number % reopen == 0:
            back = memoryview(opened)[: len(packed)]
            cipher.decrypt_into(nonce, into, None, back)
            if zstd.decompress(back) != (plain if len(view) == MIB else bytes(view)):
                raise SystemExit("the primitives do not agree")
        out.wrote(len(into))
    out.close()


class _Out:
    """Sealed bytes, written as the program writes its packs: in large steps past the page cache."""

    def __init__(self, path: str) -> None:
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
        try:
            self._file = os.open(path, flags | os.O_DIRECT)
        except OSError:  # tmpfs
            self._file = os.open(path, flags)
        self._view = memoryview(mmap.mmap(-1, 2 * STEP))
        self._used = 0

    def room(self, size: int) -> memoryview:
        return self._view[self._used : self._used + size]

    def wrote(self, size: int) -> None:
        self._used += size
        if self._used >= STEP:
            os.write(self._file, self._view[:STEP])
            self._used -= STEP
            self._view[: self._used] = self._view[STEP : STEP + self._used]

    def close(self) -> None:
        os.write(self._file, self._view[: -(-self._used // 4096) * 4096])
        os.fsync(self._file)


if __name__ == "__main__":
    main(
        sys.argv[1],
        sys.argv[2],
        pages="--pages" in sys.argv,
        sampled="--sampled" in sys.argv,
    )
