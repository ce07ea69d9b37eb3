"""However a dump is cut into pieces, it is taken apart the same way."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.postgres.plain.lexer import Lexer, RefusedSQLError, Rows, Statement, tokens

WHOLE = (
    b"-- c\n\\restrict abc\n\nSELECT 'a;b', E'x\\';' \n ';\\'', \"q\"\";x\", $f$;$f$, a$b, $1,"
    b" /* ; /* ; */ */ 1;\nCOPY a.b (c) FROM stdin;\n1\t\\N\n\\\\.\n\n\\.x\n\\.\n\n"
    b"CREATE FUNCTION x() BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 1 END; END;\n"
    b"COPY t FROM stdin;\n\\.\nCREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2);\n"
    b"SET standard_conforming_strings = off;\nSELECT 'x\\';y';\n--x\n\\unrestrict abc\n\n"
)


def taken_apart(pieces: Iterable[bytes]) -> list[tuple[object, ...]]:
    lexer, found = Lexer(), list[tuple[object, ...]]()

    def add(event: object) -> None:
        if isinstance(event, Rows):
            last = found[-1]
            if last[0] == "rows":
                assert isinstance(last[1], bytes) and isinstance(last[2], int)
                found[-1] = ("rows", last[1] + bytes(event.data), last[2] + event.lines)
            else:
                found.append(("rows", bytes(event.data), event.lines))
        elif isinstance(event, Statement):
            found.append((event.text, event.line, event.copies))
        else:
            found.append(("end", event.line))  # type: ignore[attr-defined]

    for piece in pieces:
        for event in lexer.feed(piece):
            add(event)
    for event in lexer.finish():
        add(event)
    return found


def test_a_dump_is_taken_apart_as_psql_does() -> None:
    found = taken_apart([WHOLE])
    assert found[1] == (b"COPY a.b (c) FROM stdin;", 6, True)
    assert found[2] == ("rows", b"1\t\\N\n\\\\.\n\n\\.x\n", 4)
    assert [item[1] for item in found if item[0] != "rows"] == [4, 6, 11, 13, 14, 15, 16, 17, 18]
    assert found[-1] == (b"SELECT 'x\\';y';", 18, False)


def test_at_every_cut() -> None:
    whole = taken_apart([WHOLE])
    assert taken_apart(WHOLE[at : at + 1] for at in range(len(WHOLE))) == whole
    for at in range(len(WHOLE)):
        assert taken_apart([WHOLE[:at], WHOLE[at:]]) == whole


SCRAP = st.sampled_from(
    (
        *(b"'", b'"', b"E'", b"\\", b"$$", b"$a$", b"--", b"/*", b"*/", b"\n", b"\r", b";"),
        *(b"(", b")", b"COPY t FROM stdin;\n", b"\\.\n", b"a", b" ", b"begin", b"create function"),
        *(b"\\restrict a\n", b"\\unrestrict a\n", b"\0", b"$", b"-", b"/", b"\xc3\xa4", b"1"),
    )
)


def outcome(pieces: Iterable[bytes]) -> object:
    try:
        return taken_apart(pieces)
    except RefusedSQLError as fault:
        return fault.line, fault.why


@given(st.lists(SCRAP, max_size=40), st.lists(st.integers(1, 7), max_size=60))
def test_anything_is_taken_apart_the_same_however_it_is_cut(
    scraps: list[bytes], sizes: list[int]
) -> None:
    script = b"".join(scraps)
    pieces, at = [], 0
    for size in sizes:
        pieces.append(script[at : at + size])
        at += size
    pieces.append(script[at:])
    one, other = outcome([script]), outcome(pieces)
    if isinstance(one, list) or isinstance(other, list):
        assert one == other
    else:
        assert isinstance(one, tuple) and isinstance(other, tuple) and one[0] == other[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"COPY/**/t FROM--x\nPROGRAM'x';", (b"copy", b"t", b"from", b"program", b"'x'", b";")),
        (b'Copy "A""b" From Stdin;', (b"copy", b'"A""b"', b"from", b"stdin", b";")),
        (b"SELECT E'\\'', $a$;$a$;", (b"select", b"E'\\''", b",", b"$$", b";")),
    ],
)
def test_tokens(text: bytes, words: tuple[bytes, ...]) -> None:
    assert tuple(tokens(text)) == words
