"""Pack headers and names: what is not a pack's is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.format import pack
from strongroom.format.segment import SessionRow

rows = st.builds(
    SessionRow,
    id=st.binary(min_size=16, max_size=16),
    epoch=st.integers(0, 0xFFFFFFFF),
    sealed_key=st.binary(max_size=1200),
)


@given(st.lists(rows, max_size=4), st.binary(max_size=50))
def test_headers_round_trip(sessions: list[SessionRow], behind: bytes) -> None:
    header = pack.encode_header(sessions)
    assert pack.decode_header(header) == (sessions, len(header))
    assert pack.decode_header(header + behind) == (sessions, len(header))


HEADER = pack.encode_header([SessionRow(b"s" * 16, 1, b"k" * 40), SessionRow(b"t" * 16, 2, b"")])


def test_every_cut_is_refused() -> None:
    for length in range(len(HEADER)):
        with pytest.raises(ValueError):
            pack.decode_header(HEADER[:length])


@given(st.data())
def test_changed_headers_decode_or_raise_value_error(data: st.DataObject) -> None:
    changed = bytearray(HEADER)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        pack.decode_header(bytes(changed))
    except ValueError:
        return


@given(st.booleans(), st.binary(min_size=32, max_size=32))
def test_names_round_trip(tree: bool, name: bytes) -> None:
    assert pack.parse_name(pack.object_name(tree, name)) == (tree, name)


TEXT = "ab" * 32


@pytest.mark.parametrize(
    "name",
    [
        "packs",
        f"packs/{TEXT}",
        f"packs/ab/{TEXT}/x",
        f"packs/cd/{TEXT}",
        f"packs/ab/{TEXT[:-2]}",
        f"packs/AB/{TEXT.upper()}",
        f"index/ab/{TEXT}",
        "packs/ab/" + "zz" * 32,
        f"packs/ab/ {TEXT}",
    ],
)
def test_other_names_are_no_packs(name: str) -> None:
    with pytest.raises(ValueError):
        pack.parse_name(name)
