"""CRC-32C, as PostgreSQL sums pg_control and the files of a backup; and sums of parts, combined. PURE.

The sum of a long stretch is the library's, which uses the processor's instruction and lets go of the
GIL. A file whose runs are read by several threads gets its sum from theirs: crc(a ‖ b) is crc(a) moved
over len(b) bytes, xor crc(b) (zlib's crc32_combine, with Castagnoli's polynomial).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import crc32c as _library

_POLYNOMIAL = 0x82F63B78  # reflected
_ONE = 1 << 31  # x^0, reflected: the highest bit is the constant term


def crc32c(data: bytes | bytearray | memoryview, before: int = 0) -> int:
    """The sum of `data`, going on from the sum `before` of what stands in front of it."""
    return int(_library.crc32c(data, before))


def combine(first: int, second: int, length: int) -> int:
    """The sum of two stretches one after the other; the second is `length` bytes long."""
    return _times(_moved_by(length), first) ^ second


def combined(parts: Iterable[tuple[int, int]]) -> int:
    """The sum of stretches one after the other, each given as (sum, length)."""
    whole = 0
    for part, length in parts:
        whole = combine(whole, part, length)
    return whole


def _times(left: int, right: int) -> int:
    """The product of two polynomials modulo ours, all reflected."""
    product = 0
    while left:
        if left & _ONE:
            product ^= right
        left = (left << 1) & 0xFFFFFFFF
        right = right >> 1 ^ (_POLYNOMIAL if right & 1 else 0)
    return product


@lru_cache(maxsize=1024)
def _moved_by(length: int) -> int:
    """x^(8 · length): multiplying by it moves a sum over so many bytes."""
    power, square = _ONE, _ONE >> 8  # x^0 and x^8
    while length:
        if length & 1:
            power = _times(power, square)
        square = _times(square, square)
        length >>= 1
    return power
