"""The index in memory against a model made of dicts: duplicates, moves, condemnation, prefixes."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.format.segment import FRAME_ROW, Segment, SessionRow, decode, encode
from strongroom.repository.index import ABSENT, ChunkColumns, IdSet, Index, ranges, split

# Few prefixes and few tails, so that equal prefixes and equal ids both happen all the time.
PREFIXES = st.sampled_from([b"\0" * 8, b"a" * 8, b"\xff" * 8])
TAILS = st.sampled_from([bytes(24), b"t" * 24, bytes(23) + b"\1", b"\1" + bytes(23), b"\xff" * 24])
IDS = st.builds(lambda prefix, tail: prefix + tail, PREFIXES, TAILS)


@given(st.lists(IDS, max_size=40), st.lists(IDS, max_size=20))
def test_find_is_that_of_a_dict(held: list[bytes], wanted: list[bytes]) -> None:
    numbers = np.arange(len(held), dtype=np.uint32)
    columns = ChunkColumns(split(b"".join(held)), [numbers])
    rows = columns.find(b"".join(wanted)).tolist()
    for chunk_id, row in zip(wanted, rows, strict=True):
        assert (row == ABSENT) == (chunk_id not in held)
        if row != ABSENT:
            assert columns.id(row) == chunk_id
            assert held[columns.columns[0][row]] == chunk_id
        found = {int(columns.columns[0][copy]) for copy in columns.copies(chunk_id)}
        assert found == {number for number, one in enumerate(held) if one == chunk_id}


@dataclass
class Frame:
    session: int
    sequence: int
    pack: int
    offset: int
    length: int
    chunks: list[tuple[bytes, int]]


@st.composite
def frames(draw: st.DrawFn) -> list[Frame]:
    """Frames of two sessions in four packs; some again in another pack, without their chunks."""
    found = []
    for session, sequence in draw(
        st.lists(st.tuples(st.integers(0, 1), st.integers(0, 5)), unique=True, max_size=8)
    ):
        chunks = draw(st.lists(st.tuples(IDS, st.integers(1, 99)), min_size=1, max_size=4))
        place = draw(st.integers(0, 3)), draw(st.integers(10, 20)), draw(st.integers(1, 9))
        found.append(Frame(session, sequence, *place, chunks))
        if draw(st.booleans()):
            found.append(Frame(session, sequence, draw(st.integers(0, 3)), 77, 5, []))
    return found


SESSIONS = [b"0" * 16, b"1" * 16]
PACKS = [(number % 2 == 1, bytes([number]) * 32) for number in range(4)]


def as_segment(found: list[Frame], *, replaces: list[str] | None = None, name: str = "") -> Segment:
    """A segment as it comes back from the storage; sessions and packs in an order of its own."""
    sessions = sorted({frame.session for frame in found}, reverse=True)
    packs = sorted({frame.pack for frame in found}, reverse=True)
    rows = [
        (
            sessions.index(frame.session),
            frame.sequence,
            packs.index(frame.pack),
            frame.offset,
            frame.length,
            len(frame.chunks),
        )
        for frame in found
    ]
    chunks = [chunk for frame in found for chunk in frame.chunks]
    segment = Segment(
        [SessionRow(SESSIONS[number], 1, b"key") for number in sessions],
        [PACKS[number] for number in packs],
        np.array(rows, FRAME_ROW),
        b"".join(chunk_id for chunk_id, _ in chunks),
        np.array([length for _, length in chunks], np.uint32),
        replaces or [],
    )
    segment = decode(encode(segment))
    segment.name = name
    return segment


@settings(max_examples=200)
@given(frames(), st.integers(0, 8), st.sets(st.integers(0, 3)), st.lists(IDS, max_size=10))
def test_an_index_is_its_model(
    found: list[Frame], at: int, condemned: set[int], wanted: list[bytes]
) -> None:
    parts = [as_segment(found[:at]), as_segment(found[at:])]
    index = Index(parts, condemned=frozenset(PACKS[number][1] for number in condemned))
    usable, places, copies = model(found, condemned)
    assert index.frames == len(places)
    rows = index.find(b"".join(wanted))
    may = index.usable(rows).tolist()
    for chunk_id, row, allowed in zip(wanted, rows.tolist(), may, strict=True):
        assert allowed == any(usable[key] for key, _, _ in copies.get(chunk_id, []))
        assert (row == ABSENT) == (chunk_id not in copies)
        if row != ABSENT:
            assert described(index, row) in copies[chunk_id]
        assert sorted(described(index, copy) for copy in index.copies(chunk_id)) == sorted(
            copies.get(chunk_id, [])
        )
    for (session, sequence), allowed_places in places.items():
        place = index.place(index.frame_row(SESSIONS[session], sequence))
        assert (place.tree, place.pack, place.offset, place.length) in allowed_places
        assert (place.session, place.sequence) == (SESSIONS[session], sequence)
    assert index.frame_row(SESSIONS[0], 99) == ABSENT
    assert index.frame_row(b"?" * 16, 0) == ABSENT


Key = tuple[int, int]


def described(index: Index, row: int) -> tuple[Key, int, int]:
    frame = int(index.frame[row])
    place = index.place(frame)
    key = SESSIONS.index(place.session), place.sequence
    return key, int(index.offset[row]), int(index.length[row])


def model(
    found: list[Frame], condemned: set[int]
) -> tuple[dict[Key, bool], dict[Key, list[object]], dict[bytes, list[tuple[Key, int, int]]]]:
    usable: dict[Key, bool] = {}
    rests: dict[Key, list[Frame]] = {}
    copies: dict[bytes, list[tuple[Key, int, int]]] = {}
    for frame in found:
        key = frame.session, frame.sequence
        rests.setdefault(key, []).append(frame)
        offset = 0
        for chunk_id, length in frame.chunks:
            copies.setdefault(chunk_id, []).append((key, offset, length))
            offset += length
    places: dict[Key, list[object]] = {}
    for key, every in rests.items():
        good = [frame for frame in every if frame.pack not in condemned]
        usable[key] = bool(good)
        places[key] = [(*PACKS[f.pack], f.offset, f.length) for f in good or every]
    return usable, places, copies


@given(frames(), st.sets(st.integers(0, 20)))
def test_references_and_unknown_frames(found: list[Frame], marked: set[int]) -> None:
    index = Index([as_segment(found)])
    rows = np.zeros(index.frames, np.bool_)
    rows[[number for number in marked if number < index.frames]] = True
    held = {
        (place.session, place.sequence) for place in map(index.place, np.flatnonzero(rows).tolist())
    }
    references = index.references(rows)
    listed = {
        (session, number)
        for session, spans in references.items()
        for first, after in spans
        for number in range(first, after)
    }
    assert listed == held
    assert index.packs_of(rows) == {
        (index.place(row).tree, index.place(row).pack) for row in np.flatnonzero(rows).tolist()
    }
    assert index.unknown({session.hex(): spans for session, spans in references.items()}) == 0
    every = {(frame.session, frame.sequence) for frame in found}
    asked = {SESSIONS[0].hex(): [[0, 3], [4, 9]], "77" * 16: [[1, 3]]}
    missing = {(0, number) for number in (0, 1, 2, 4, 5, 6, 7, 8)} - every
    assert index.unknown(asked) == len(missing) + 2


def test_chunks_of_a_frame_and_extents_of_a_pack() -> None:
    found = [
        Frame(0, 0, 0, 10, 5, [(b"a" * 32, 3), (b"b" * 32, 4)]),
        Frame(0, 1, 0, 15, 6, [(b"b" * 32, 4), (b"a" * 32, 3)]),
        Frame(1, 0, 2, 0, 9, [(b"c" * 32, 8)]),
        Frame(0, 1, 2, 100, 6, []),
    ]
    index = Index([as_segment(found)])
    row = index.frame_row(SESSIONS[0], 1)
    assert sorted(index.chunks_in(row)) == [(b"a" * 32, 4, 3), (b"b" * 32, 0, 4)]
    assert index.extents() == {PACKS[0]: 21, PACKS[2]: 106}
    assert len(index) == 5


def test_a_replaced_segment_is_left_out_in_whatever_order_it_comes() -> None:
    old = as_segment([Frame(0, 0, 0, 10, 5, [(b"a" * 32, 3)])], name="index/g/1")
    new = as_segment(
        [Frame(0, 1, 1, 10, 5, [(b"b" * 32, 3)])], replaces=["index/g/1"], name="index/g/2"
    )
    for order in ([old, new], [new, old]):
        index = Index(order)
        assert index.find(b"a" * 32 + b"b" * 32).tolist() == [ABSENT, 0]
        assert index.frames == 1


def test_an_empty_index() -> None:
    index = Index([])
    assert (len(index), index.frames, index.packs) == (0, 0, [])
    assert index.find(b"a" * 32).tolist() == [ABSENT]
    assert index.copies(b"a" * 32) == []
    assert index.references(np.zeros(0, np.bool_)) == {}


@given(st.sets(st.integers(0, 60)))
def test_ranges(numbers: set[int]) -> None:
    spans = ranges(np.array(sorted(numbers), np.int64))
    assert {n for first, after in spans for n in range(first, after)} == numbers
    assert all(after < first for (_, after), (first, _) in itertools.pairwise(spans))


def test_an_id_is_claimed_once_by_one_thread_and_known_when_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(IdSet, "RECENT", 200)
    ids = [number.to_bytes(4, "little") * 8 for number in range(1500)]
    held, won = IdSet(), []

    def claim() -> None:
        for chunk_id in ids:
            if not held.known(chunk_id)[0] and held.claim(chunk_id, object()):
                won.append(chunk_id)
            held.settle()

    threads = [threading.Thread(target=claim) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(won) == set(ids)
    # A claim may be lost to a settle at the same moment: that stores a chunk twice, no more.
    assert len(won) < 1.2 * len(ids)
    settled = held.known(b"".join(ids))
    again = [held.claim(one, object()) for one, here in zip(ids, settled, strict=True) if not here]
    assert not any(again)
