"""backup_label and tablespace_map as servers write them, and what is neither."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.postgres.physical.facts import Tablespace
from strongroom.postgres.physical.label import Label, parse_map

PRIMARY = b"""START WAL LOCATION: 1/A000028 (file 0000000A000000010000000A)
CHECKPOINT LOCATION: 1/A000060
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-07-01 10:00:00 CEST
LABEL: strongroom backup
START TIMELINE: 10
"""


def test_trap_23_timelines_are_read_right_from_ten_on() -> None:
    assert Label.parse(PRIMARY) == Label(
        start=0x1_0A000028,
        checkpoint=0x1_0A000060,
        timeline=10,
        from_standby=False,
        method="streamed",
        start_time="2026-07-01 10:00:00 CEST",
        label="strongroom backup",
    )


def test_of_a_standby_and_incremental() -> None:
    text = (
        PRIMARY.replace(b"FROM: primary", b"FROM: standby") + b"INCREMENTAL FROM LSN: 0/2000028\n"
    )
    label = Label.parse(text)
    assert label.from_standby
    assert label.incremental


@pytest.mark.parametrize(
    "text",
    [
        b"",
        PRIMARY.replace(b"START TIMELINE: 10", b"START TIMELINE: 16"),
        PRIMARY.replace(b"START TIMELINE: 10\n", b""),
        PRIMARY.replace(b"1/A000028 ", b"1-A000028 "),
        PRIMARY.replace(b"CHECKPOINT", b"CHECK"),
        b"\0" * 200,
    ],
)
def test_what_is_no_label(text: bytes) -> None:
    with pytest.raises(ValueError, match="backup_label"):
        Label.parse(text)


@given(st.binary(max_size=300))
def test_noise_is_no_label(text: bytes) -> None:
    with pytest.raises(ValueError, match="backup_label"):
        Label.parse(text)


def test_maps() -> None:
    assert parse_map(b"") == ()
    assert parse_map(b"16384 /srv/a b\n16385 /srv/\xff\n") == (
        Tablespace("16384", b"/srv/a b"),
        Tablespace("16385", b"/srv/\xff"),
    )
    assert parse_map(b"16384 /srv/a\\\nb\\\\c\\\rd\n") == (Tablespace("16384", b"/srv/a\nb\\c\rd"),)
    for wrong in (b"x /srv\n", b"16384\n", b"16384 \n", b"../16384 /srv\n"):
        with pytest.raises(ValueError, match="tablespace_map"):
            parse_map(wrong)


LOCATIONS = st.binary(min_size=1, max_size=20).filter(lambda raw: b"\0" not in raw)


@given(st.lists(st.tuples(st.integers(1, 1 << 32), LOCATIONS)))
def test_any_location_comes_home(spaces: list[tuple[int, bytes]]) -> None:
    text = b""
    for oid, location in spaces:
        escaped = location.replace(b"\\", b"\\\\").replace(b"\n", b"\\\n").replace(b"\r", b"\\\r")
        text += b"%d %s\n" % (oid, escaped)
    assert parse_map(text) == tuple(Tablespace(str(oid), where) for oid, where in spaces)
