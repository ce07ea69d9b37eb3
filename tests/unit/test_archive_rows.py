"""What is done to a pg_dump archive on its way back: rows in large blocks, and as frozen ones."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from strongroom.postgres.logical import archive


def number(value: int) -> bytes:
    return struct.pack("<BI", value < 0, abs(value))


def rows(table: int, contents: list[bytes]) -> bytes:
    made = (number(len(content)) + content for content in contents if content)
    return b"\1" + number(table) + b"".join(made) + number(0)


def tables(data: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(data) and data[at] == 1:
        table, content, at = data[at + 2], b"", at + 6
        while length := int.from_bytes(data[at + 1 : at + 5], "little"):
            content += data[at + 5 : at + 5 + length]
            at += 5 + length
        at += 5
        found.append((table, content))
    return [*found, (0, data[at:])]


@given(
    st.lists(st.lists(st.binary(max_size=30), max_size=9), max_size=4),
    st.sampled_from((b"", b"\3large objects stay as they are")),
    st.lists(st.integers(1, 50), max_size=40),
)
def test_rows_stay_what_they_are_however_the_stream_is_cut(contents, tail, cuts) -> None:
    data = b"".join(rows(at + 1, table) for at, table in enumerate(contents)) + tail
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    out = b"".join(archive.joined([*pieces, memoryview(data)[at:]]))
    assert tables(out) == tables(data)
    assert len(out) <= len(data)


def test_rows_of_a_whole_piece_become_one_block() -> None:
    data = rows(1, [b"a\n", b"b\n"]) + rows(2, [b"c\n"])
    assert b"".join(archive.joined([data])) == rows(1, [b"a\nb\n"]) + rows(2, [b"c\n"])


def entry(tag: str, kind: str, copy: bytes) -> bytes:
    def text(value: bytes) -> bytes:
        return number(len(value)) + value

    before = (text(b"0"), text(b"0"), text(tag.encode()), text(kind.encode()), number(3))
    strings = (b"", b"", copy, b"s", b"", b"", b"owner", b"false")
    return (
        number(7)
        + number(1)
        + b"".join(before)
        + b"".join(text(value) for value in strings)
        + number(-1)
        + b"\2"
        + bytes(8)
    )


def head(*entries: bytes) -> bytes:
    start = b"PGDMP\1\x0e\0\4\x08\1" + number(0) + 7 * number(0) + 3 * number(0)
    return start + number(len(entries)) + b"".join(entries)


def test_only_what_is_named_is_emptied_and_frozen() -> None:
    plain = b'COPY "s"."a""b" ("x") FROM stdin;\n'
    frozen = b'TRUNCATE ONLY "s"."a""b"; COPY "s"."a""b" ("x") FROM stdin WITH (FREEZE);\n'
    other = entry("other", "TABLE DATA", b'COPY "s"."other" FROM stdin;\n')
    strange = entry("strange", "TABLE DATA", b"-- load via partition root\n")
    given_head = head(entry('a"b', "TABLE DATA", plain), other, strange)
    contents = archive.read_contents(given_head + b"the data")
    assert contents.size == len(given_head)
    assert archive.freezing(given_head, contents, frozenset()) == given_head
    named = frozenset((("s", 'a"b'), ("s", "strange")))
    made = archive.freezing(given_head, contents, named)
    assert made == head(entry('a"b', "TABLE DATA", frozen), other, strange)
    assert archive.read_contents(made).entries[1].tag == "other"
