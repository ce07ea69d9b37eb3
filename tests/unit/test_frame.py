"""Frames: what was sealed opens to itself, in its place only, and to no more than it claims."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from strongroom.format import frame
from strongroom.format.frame import FrameOpener, FrameSealer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SESSION, KEY = b"s" * 16, b"k" * 32
SEALER, OPENER = FrameSealer(SESSION, KEY, level=1), FrameOpener(SESSION, KEY)


@given(st.binary(min_size=1, max_size=5000), st.integers(0, 2**32 - 1))
def test_round_trip(plain: bytes, sequence: int) -> None:
    sealed = SEALER.seal(plain, sequence)
    assert OPENER.open(sealed, sequence) == plain
    assert OPENER.open(memoryview(sealed), sequence) == plain


def test_a_frame_is_compressed() -> None:
    assert len(SEALER.seal(bytes(1 << 20), 0)) < 1000


@pytest.mark.parametrize(
    ("opener", "sequence"),
    [
        (OPENER, 8),
        (FrameOpener(b"t" * 16, KEY), 7),
        (FrameOpener(SESSION, b"l" * 32), 7),
    ],
)
def test_a_frame_opens_in_its_own_place_only(opener: FrameOpener, sequence: int) -> None:
    sealed = SEALER.seal(b"plain", 7)
    with pytest.raises(ValueError):
        opener.open(sealed, sequence)


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    sealed = SEALER.seal(b"a frame of some chunks " * 3, 7)
    for at in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[at] ^= 1 << bit
            with pytest.raises(ValueError):
                OPENER.open(changed, 7)
        with pytest.raises(ValueError):
            OPENER.open(sealed[:at], 7)
    with pytest.raises(ValueError):
        OPENER.open(sealed + b"\0", 7)


def seal_raw(packed: bytes) -> bytes:
    """What a hostile writer, who has a session key of its own, can put into a frame."""
    return AESGCM(KEY).encrypt(frame.nonce(7), packed, frame.context(SESSION, 7))


def unsized(plain: bytes) -> bytes:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.content_size_flag: 0})
    return compressor.compress(plain, mode=zstd.ZstdCompressor.FLUSH_FRAME)


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"not zstd",
        zstd.compress(b"x" * 100)[:-3],
        zstd.compress(b"x" * 100) + zstd.compress(bytes(frame.MAX_PLAIN)),  # a bomb behind
        zstd.compress(b"x" * 100) + b"behind",
        zstd.compress(bytes(frame.MAX_PLAIN + 1)),
        unsized(b"x" * 100),
    ],
)
def test_what_a_hostile_writer_seals_is_refused_within_bounds(packed: bytes) -> None:
    with pytest.raises(ValueError):
        OPENER.open(seal_raw(packed), 7)


def test_many_threads_share_a_sealer() -> None:
    def both(number: int) -> bool:
        plain = bytes([number % 251]) * (1000 + number)
        return OPENER.open(SEALER.seal(plain, number), number) == plain

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(both, range(400)))


def test_nonces_are_the_sequence_numbers() -> None:
    assert frame.nonce(1) == b"\1" + bytes(11)
    assert len({frame.nonce(number) for number in range(1000)}) == 1000
