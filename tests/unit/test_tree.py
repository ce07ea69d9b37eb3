"""Tree pages: entries of every kind come back; damaged pages are refused, never half read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.format import tree
from strongroom.format.tree import Entry, Kind

NAMES = st.binary(min_size=1, max_size=12)
U32, U64 = st.integers(0, 0xFFFFFFFF), st.integers(0, (1 << 64) - 1)

entries = st.builds(
    Entry,
    path=st.lists(NAMES, max_size=4).map(b"/".join),
    kind=st.sampled_from(Kind),
    mode=st.integers(0, 0o7777),
    uid=U32,
    gid=U32,
    mtime_ns=st.integers(-(1 << 63), (1 << 63) - 1),
    size=U64,
    content=st.binary(max_size=80),
    target=st.binary(max_size=40),
    rdev=U64,
    xattrs=st.lists(st.tuples(NAMES, st.binary(max_size=30)), max_size=4).map(tuple),
)


def page_of(found: list[Entry]) -> bytes:
    return tree.encode_page(
        [entry.path for entry in found], [tree.encode_record(entry) for entry in found]
    )


@given(entries)
def test_records_round_trip(entry: Entry) -> None:
    assert tree.decode_record(entry.path, tree.encode_record(entry)) == entry


@given(st.lists(entries, max_size=20, unique_by=lambda entry: entry.path))
def test_pages_round_trip(found: list[Entry]) -> None:
    found.sort(key=lambda entry: entry.path)
    page = page_of(found)
    decoded = [tree.decode_record(path, record) for path, record in tree.decode_page(page)]
    assert decoded == found
    at_one_stroke = tree.decode_entries(page)
    assert at_one_stroke == found
    assert {type(entry) for entry in at_one_stroke} <= {Entry}


def test_the_folder_is_written_once() -> None:
    paths = [b"a/very/long/folder/" + bytes([name]) for name in range(65, 90)]
    page = tree.encode_page(paths, [b""] * len(paths))
    assert len(page) == 8 * 25 + len(paths[0]) + 24
    assert [path for path, _ in tree.decode_page(page)] == paths


@pytest.mark.parametrize("paths", [[b"b", b"a"], [b"a", b"a"], [b"a/b", b"a"]])
def test_order_is_part_of_the_format(paths: list[bytes]) -> None:
    page = tree.encode_page(paths, [b""] * len(paths))
    with pytest.raises(ValueError):
        list(tree.decode_page(page))


@given(st.lists(st.tuples(st.binary(min_size=32, max_size=32), U32, st.binary(max_size=300))))
def test_index_pages_round_trip(rows: list[tuple[bytes, int, bytes]]) -> None:
    assert tree.decode_index(tree.encode_index(rows)) == rows


PAGE = page_of(
    [
        Entry(b"", Kind.DIRECTORY, 0o755),
        Entry(b"a/file", Kind.FILE, size=3, content=b"\x01" + bytes(32)),
        Entry(b"a/link", Kind.SYMLINK, target=b"../x"),
        Entry(b"a/tty", Kind.CHARACTER, rdev=1025, xattrs=((b"user.a", b"1"), (b"user.b", b""))),
    ]
)


def decode_all(page: bytes) -> list[Entry]:
    return [tree.decode_record(path, record) for path, record in tree.decode_page(page)]


def test_a_page_that_is_cut_anywhere_gives_a_prefix_or_is_refused() -> None:
    whole = decode_all(PAGE)
    refused = 0
    for length in range(len(PAGE)):
        try:
            assert decode_all(PAGE[:length]) == whole[: len(decode_all(PAGE[:length]))]
        except ValueError:
            refused += 1
    assert refused == len(PAGE) - len(whole)  # a cut between two entries cannot be seen here


@given(st.data())
def test_changed_pages_decode_or_raise_value_error(data: st.DataObject) -> None:
    page = bytearray(PAGE)
    for _ in range(data.draw(st.integers(1, 4))):
        page[data.draw(st.integers(0, len(page) - 1))] = data.draw(st.integers(0, 255))
    try:
        expected = decode_all(bytes(page))
    except ValueError:
        with pytest.raises(ValueError):
            tree.decode_entries(bytes(page))
    else:
        assert tree.decode_entries(bytes(page)) == expected


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_raise_value_error(data: bytes) -> None:
    for decode in (decode_all, tree.decode_index, lambda raw: tree.decode_record(b"p", raw)):
        try:
            decode(data)
        except ValueError:
            continue
