"""Cuts: they cover the input, keep their limits, do not see the windows, and hide their key."""

from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.format.chunker import Chunker, ContentChunker, FixedChunker

KIB = 1024
SMALL = ContentChunker(bytes(32), smallest=2 * KIB, average=32 * KIB, largest=64 * KIB)


def noise(seed: str, size: int) -> bytes:
    return blake3(seed.encode()).digest(size)


def cut(chunker: Chunker, data: bytes, steps: list[int] | None = None) -> list[int]:
    """Cut as a session does: what lies behind the last end is offered again, with more behind it."""
    cutter, ends, start, have = chunker.begin(), [], 0, 0
    for step in [*(steps or []), len(data)]:
        have = min(len(data), have + step)
        found = cutter.cut(memoryview(data)[start:have], final=have == len(data))
        ends += [start + end for end in found]
        start = ends[-1] if ends else 0
        if have == len(data):
            return ends
    raise AssertionError("the last step reaches the end")


CHUNKERS = [SMALL, FixedChunker(8 * KIB), FixedChunker(1)]


@pytest.mark.parametrize("chunker", CHUNKERS[:2])
@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 300 * KIB),
    steps=st.lists(st.integers(1, 70 * KIB), max_size=30),
    seed=st.integers(0, 3),
)
def test_cuts_cover_the_input_within_limits_whatever_the_windows(
    chunker: Chunker, size: int, steps: list[int], seed: int
) -> None:
    data = noise(f"windows {seed}", size)
    ends = cut(chunker, data, steps)
    assert ends == cut(chunker, data)
    assert ends == sorted(set(ends))
    assert (ends[-1] if ends else 0) == size
    lengths = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    assert all(0 < length <= chunker.largest for length in lengths)
    if isinstance(chunker, ContentChunker):
        assert all(length > chunker.smallest for length in lengths[:-1])


@pytest.mark.parametrize("size", [0, 1, 2 * KIB, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 128 * KIB])
def test_sameness_is_cut_at_the_largest_size(size: int) -> None:
    # Zeros propose nothing or everything, and either way no key may decide differently.
    ends = cut(SMALL, bytes(size))
    assert (ends[-1] if ends else 0) == size
    lengths = {end - begin for begin, end in zip([0, *ends], ends[:-1], strict=False)}
    assert len(lengths) <= 1


def test_an_insertion_costs_a_few_chunks_only() -> None:
    data = noise("insertion", 2048 * KIB)
    for at in (0, 5, 300 * KIB, 1000 * KIB + 17):
        changed = data[:at] + b"inserted" + data[at:]
        before, after = chunks(SMALL, data), chunks(SMALL, changed)
        assert len(after - before) <= 4
        assert len(after & before) > 0.9 * len(before)


def chunks(chunker: Chunker, data: bytes) -> set[bytes]:
    ends = cut(chunker, data)
    return {data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)}


def test_the_average_is_about_what_was_asked_for() -> None:
    data = noise("average", 16 * 1024 * KIB)
    ends = cut(SMALL, data)
    # Cut off at `largest`, the mean of the geometric distribution is a little less than asked.
    assert 20 * KIB < len(data) / len(ends) < 36 * KIB


def test_another_key_cuts_elsewhere() -> None:
    data = noise("keys", 16 * 1024 * KIB)
    cuts = [
        set(cut(ContentChunker(bytes([key]) * 32, 2 * KIB, 258 * KIB, 1024 * KIB), data))
        for key in range(4)
    ]
    for one in range(4):
        for other in range(one):
            assert len(cuts[one] & cuts[other]) < len(cuts[one]) / 3


def test_the_default_sizes_are_those_of_the_format() -> None:
    chunker = ContentChunker(bytes(32))
    assert (chunker.smallest, chunker.average, chunker.largest) == (
        256 * KIB,
        1024 * KIB,
        4096 * KIB,
    )
    # A proposal about every 32 KiB, of which one in 24 is selected: 768 KiB behind the smallest.
    assert chunker.threshold == (1 << 32) // 24


def test_pages_are_cut_at_multiples() -> None:
    assert cut(FixedChunker(8), bytes(20)) == [8, 16, 20]
    assert cut(FixedChunker(8), bytes(16)) == [8, 16]
    assert cut(FixedChunker(8), b"") == []
    assert FixedChunker(8).cut(memoryview(bytes(20)), final=False) == [8, 16]
    assert FixedChunker().largest == 64 * KIB
