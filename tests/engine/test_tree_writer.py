"""Neighbours added at a stroke make the pages that they make one by one."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rooms import new_room
from strongroom.progress import Silent
from strongroom.repository import session as sessions
from strongroom.repository.catalogue import Root
from strongroom.storage.memory import MemoryStorage


def root_of(rows: list[tuple[bytes, bytes]], cuts: list[int]) -> Root:
    tree = new_room(MemoryStorage()).begin("vault", progress=Silent()).tree
    ends = sorted({0, len(rows), *(cut % (len(rows) + 1) for cut in cuts)})
    for at, end in pairwise(ends):
        if cuts and at % 3:
            tree.add_records([path for path, _ in rows[at:end]], [r for _, r in rows[at:end]])
        else:
            for path, record in rows[at:end]:
                tree.add_record(path, record)
    return tree.finish()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(0, 5000), st.sampled_from([5, 50, 3000]),
    st.lists(st.integers(0, 5000), min_size=1, max_size=9),
)  # fmt: skip
def test_pages_do_not_depend_on_how_entries_came(seed, count, longest, cuts) -> None:
    chance = random.Random(seed)
    count = min(count, 2_000_000 // longest)
    paths = sorted({b"%08x" % chance.getrandbits(32) + b"p" * chance.randrange(longest)
                    for _ in range(count)})  # fmt: skip
    rows = [(path, chance.randbytes(chance.randrange(90))) for path in paths]
    assert root_of(rows, cuts) == root_of(rows, [])


def test_a_page_without_an_end_is_cut_at_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions.TreeWriter, "_ends_page", lambda self, path: False)
    rows = [(b"%06d" % number, b"r") for number in range(3000)]
    assert root_of(rows, [1, 2900, 7]) == root_of(rows, [])


def test_order_is_looked_at_within_what_is_added_at_a_stroke() -> None:
    for paths in ([b"b", b"a"], [b"a", b"a"]):
        tree = new_room(MemoryStorage()).begin("vault", progress=Silent()).tree
        with pytest.raises(ValueError, match="out of order"):
            tree.add_records(paths, [b"", b""])
    tree = new_room(MemoryStorage()).begin("vault", progress=Silent()).tree
    tree.add_record(b"m", b"")
    with pytest.raises(ValueError, match="out of order"):
        tree.add_records([b"l", b"n"], [b"", b""])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 400_000), max_size=30), st.integers(0, 5), st.integers(0, 99))
def test_a_run_makes_the_ids_and_frames_of_single_chunks(lengths, repeat, seed) -> None:
    chance = random.Random(seed)
    pieces = [chance.randbytes(length) for length in lengths]
    pieces += pieces[:repeat]
    frames = []
    for at_a_stroke in (True, False):
        session = new_room(MemoryStorage()).begin("vault", progress=Silent())
        made: list[tuple[bytes, bytes, list[int]]] = []
        lane = session.lane()
        session.submit = lambda tree, plain, ids, lengths, made=made: made.append(  # type: ignore[method-assign,misc]
            (plain, ids, list(lengths))
        )
        for _ in range(2):  # the second time everything is known
            if at_a_stroke:
                ids = lane.put_run(memoryview(b"".join(pieces)), [len(one) for one in pieces])
            else:
                ids = lane.put_small(pieces)
        lane.flush()
        frames.append((ids, made))
    assert frames[0] == frames[1]
