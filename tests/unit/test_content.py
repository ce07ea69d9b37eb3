"""Content: extents come back as they were, and no bytes make the decoder do more than refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.format import content
from strongroom.format.content import Extent

IDS = st.binary(min_size=32, max_size=32)


@st.composite
def extent_lists(draw: st.DrawFn) -> list[Extent]:
    at, found = 0, []
    for _ in range(draw(st.integers(0, 20))):
        at += draw(st.integers(0, 1 << 40))
        length, repeats = draw(st.integers(1, 1 << 32 - 1)), draw(st.integers(1, 1 << 20))
        extent = Extent(
            at,
            min(length, 0xFFFFFFFF),
            draw(st.integers(0, 0xFFFFFFFF)),
            repeats,
            draw(IDS),
        )
        found.append(extent)
        at = extent.end
    return found


@given(extent_lists())
def test_rows_round_trip(extents: list[Extent]) -> None:
    rows = content.pack_rows(extents)
    assert len(rows) == content.ROW_SIZE * len(extents)
    assert list(content.unpack_rows(rows)) == extents
    size = extents[-1].end if extents else 0
    assert content.extents(content.inline(extents), size) == extents


@given(IDS, st.integers(1, 1 << 40))
def test_whole(chunk: bytes, size: int) -> None:
    assert content.extents(content.whole(chunk), size) == [Extent(0, size, 0, 1, chunk)]
    assert content.page_ids(content.whole(chunk)) == []


@given(st.lists(IDS, min_size=1, max_size=9))
def test_pages(ids: list[bytes]) -> None:
    assert content.page_ids(content.paged(ids)) == ids


def test_empty() -> None:
    assert content.extents(b"", 0) == []
    assert content.extents(b"", 100) == []  # all of it a hole
    assert content.page_ids(b"") == []


A, B = Extent(0, 10, 0, 2, b"a" * 32), Extent(20, 5, 3, 1, b"b" * 32)


@pytest.mark.parametrize(
    "broken",
    [
        content.inline([A, B])[:-1],
        content.inline([B, A]),
        content.inline([A, B._replace(start=19)]),
        content.inline([A._replace(length=0)]),
        content.inline([A._replace(repeats=0)]),
        content.inline([A, B._replace(length=6)]),  # past the end
        b"\x01short",
        b"\x04" + bytes(32),
        b"\x00",
    ],
)
def test_what_contradicts_itself_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError):
        content.extents(broken, 25)


@pytest.mark.parametrize("broken", [b"\x03", b"\x03" + bytes(31), b"\x03" + bytes(33)])
def test_page_lists_are_whole(broken: bytes) -> None:
    with pytest.raises(ValueError):
        content.page_ids(broken)


@given(st.binary(max_size=200), st.integers(0, 1 << 64))
def test_any_bytes_decode_or_raise_value_error(data: bytes, size: int) -> None:
    for decode in (lambda: content.extents(data, size), lambda: content.page_ids(data)):
        try:
            decode()
        except ValueError:
            continue
