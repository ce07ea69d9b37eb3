"""Index segments: columns come back, and what contradicts itself is refused with ValueError."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.format import segment
from strongroom.format.segment import FRAME_ROW, Segment, SessionRow


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    sessions = [
        SessionRow(
            draw(st.binary(min_size=16, max_size=16)), draw(u32), draw(st.binary(max_size=9))
        )
        for _ in range(draw(st.integers(1, 3)))
    ]
    packs = [
        (draw(st.booleans()), draw(st.binary(min_size=32, max_size=32)))
        for _ in range(draw(st.integers(1, 3)))
    ]
    counts = draw(st.lists(st.integers(0, 5), max_size=6))
    rows = [
        (
            draw(st.integers(0, len(sessions) - 1)),
            draw(u32),
            draw(st.integers(0, len(packs) - 1)),
            draw(u32),
            draw(u32),
            count,
        )
        for count in counts
    ]
    chunks = sum(counts)
    return Segment(
        sessions,
        packs,
        np.array(rows, FRAME_ROW),
        draw(st.binary(min_size=32 * chunks, max_size=32 * chunks)),
        np.array(draw(st.lists(u32, min_size=chunks, max_size=chunks)), np.uint32),
        draw(st.lists(st.text(max_size=10), max_size=3)),
    )


u32 = st.integers(0, 0xFFFFFFFF)


def same(one: Segment, other: Segment) -> bool:
    return (
        one.sessions == other.sessions
        and one.packs == other.packs
        and bool((one.frames == other.frames).all())
        and bytes(one.ids) == bytes(other.ids)
        and bool((one.lengths == other.lengths).all())
        and one.replaces == other.replaces
    )


@given(segments())
def test_round_trip(rows: Segment) -> None:
    assert same(segment.decode(segment.encode(rows)), rows)


def test_an_empty_segment_that_only_replaces() -> None:
    empty = Segment(
        [], [], np.empty(0, FRAME_ROW), b"", np.empty(0, np.uint32), ["index/a/1", "index/a/2"]
    )
    assert same(segment.decode(segment.encode(empty)), empty)


SAMPLE = Segment(
    [SessionRow(b"s" * 16, 1, b"sealed")],
    [(True, b"p" * 32)],
    np.array([(0, 0, 0, 50, 60, 2)], FRAME_ROW),
    bytes(64),
    np.array([3, 4], np.uint32),
    ["index/g/x"],
)
ENCODED = segment.encode(SAMPLE)


def test_every_cut_and_every_appended_byte_is_refused() -> None:
    for length in range(len(ENCODED)):
        with pytest.raises(ValueError):
            segment.decode(ENCODED[:length])
    with pytest.raises(ValueError):
        segment.decode(ENCODED + b"\0")


@pytest.mark.parametrize("row", [(1, 0, 0, 50, 60, 2), (0, 0, 1, 50, 60, 2), (0, 0, 0, 50, 60, 3)])
def test_rows_point_inside(row: tuple[int, ...]) -> None:
    SAMPLE.frames, kept = np.array([row], FRAME_ROW), SAMPLE.frames
    try:
        with pytest.raises(ValueError):
            segment.decode(segment.encode(SAMPLE))
    finally:
        SAMPLE.frames = kept


@given(st.data())
def test_changed_segments_decode_or_raise_value_error(data: st.DataObject) -> None:
    changed = bytearray(ENCODED)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        segment.decode(bytes(changed))
    except ValueError:
        return


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_raise_value_error(data: bytes) -> None:
    for raw in (data, segment.MAGIC + b"\1\0" + data):
        try:
            segment.decode(raw)
        except ValueError:
            continue
