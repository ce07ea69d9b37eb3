"""Frames: consecutive new chunks, compressed and sealed together.

    frame     AES-256-GCM(zstd frame of: chunk ‖ chunk …)

The key is the session's; the nonce is the frame's sequence number in the session
as 12 bytes little endian, so that it cannot repeat; the additional data is
"frame" ‖ session id ‖ sequence u64. Nothing names the pack: a frame can be moved
without a key. The zstd frame carries its content size, which bounds the opener.
"""

from __future__ import annotations

import sys
import threading

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FRAME_SIZE = 1024 * 1024
MAX_PLAIN = 16 * 1024 * 1024
TAG = 16

Buffer = bytes | bytearray | memoryview


def nonce(sequence: int) -> bytes:
    """The nonce of a frame."""
    return sequence.to_bytes(12, "little")


def context(session: bytes, sequence: int) -> bytes:
    """The additional data of a frame."""
    return b"frame" + session + sequence.to_bytes(8, "little")


def options(level: int, *, tight: bool) -> dict[int, int]:
    """A window that spans the frame; at level 1 also the size of the match table.

    8,192 places stay in the processor's nearest cache: against 65,536 places rows of a dump pack
    1.55 times as fast and 7 % larger to 7 % smaller, database pages a fifth faster and 0.3 %
    larger. `tight`, for frames of many small files, takes the larger table: JSON documents gain
    little speed from the smaller one (20 to 36 MB of each, in frames of 1 MiB).
    """
    parameters = zstd.CompressionParameter
    chosen: dict[int, int] = {parameters.compression_level: level, parameters.window_log: 20}
    if level == 1:
        chosen[parameters.hash_log] = 16 if tight else 13
    return chosen


class FrameSealer:
    """Seals the frames of one session. Safe for many threads: each keeps its own compressors."""

    def __init__(self, session: bytes, key: bytes, *, level: int) -> None:
        self._session = session
        self._cipher = AESGCM(key)
        self._level = level
        self._local = threading.local()

    def compress(self, plain: Buffer, *, tight: bool = False) -> bytes:
        """Return the zstd frame; `tight` suits frames of many small chunks."""
        name = "tight" if tight else "plain"
        compressor = getattr(self._local, name, None)
        if compressor is None:
            compressor = zstd.ZstdCompressor(options=options(self._level, tight=tight))
            setattr(self._local, name, compressor)
        packed: bytes = compressor.compress(plain, mode=zstd.ZstdCompressor.FLUSH_FRAME)
        return packed

    def seal_into(self, packed: bytes, sequence: int, into: memoryview) -> None:
        """Seal a zstd frame into `into`, which is TAG bytes longer than it."""
        self._cipher.encrypt_into(nonce(sequence), packed, context(self._session, sequence), into)

    def seal(self, plain: Buffer, sequence: int, *, tight: bool = False) -> bytes:
        """Compress and seal one frame."""
        packed = self.compress(plain, tight=tight)
        return self._cipher.encrypt(nonce(sequence), packed, context(self._session, sequence))


class FrameOpener:
    """Opens the frames of one session."""

    def __init__(self, session: bytes, key: bytes) -> None:
        self._session = session
        self._cipher = AESGCM(key)

    def open(self, sealed: Buffer, sequence: int) -> bytes:
        """Return the chunks of a frame, one after the other; ValueError when it is damaged."""
        try:
            packed = self._cipher.decrypt(nonce(sequence), sealed, context(self._session, sequence))
        except InvalidTag:
            raise ValueError("the frame does not authenticate") from None
        try:
            size = zstd.get_frame_info(packed).decompressed_size
            if size is None or size > MAX_PLAIN:
                raise ValueError("the frame claims an unreasonable size")
            # One zstd frame and no more: what follows it is not bounded by the size it claims.
            decompressor = zstd.ZstdDecompressor()
            plain: bytes = decompressor.decompress(packed, size + 1)
        except zstd.ZstdError as fault:
            raise ValueError(f"the frame does not decompress: {fault}") from None
        if len(plain) != size or not decompressor.eof or decompressor.unused_data:
            raise ValueError("the frame is not as long as it claims")
        return plain
