"""Names, positions and history files of the log, and the facts of a segment as JSON."""

from __future__ import annotations

import contextlib
import itertools
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.format import wal
from strongroom.format.wal import Fork, MadeSpace, RestorePoint, SegmentFacts, SegmentName, WalKind

MIB = wal.MIB
SIZES = st.sampled_from([MIB << i for i in range(11)])
LSNS = st.integers(0, 2**64 - 1)
TIMELINES = st.integers(1, 2**32 - 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("00000001000000000000000A", WalKind.SEGMENT),
        ("00000001000000000000000A.partial", WalKind.PARTIAL),
        ("0000000A.history", WalKind.HISTORY),
        ("00000001000000000000000A.00000028.backup", WalKind.LABEL),
    ],
)
def test_trap_30_every_name_that_is_archived_has_its_kind(name, kind) -> None:
    assert wal.kind_of(name) is kind
    assert len(name) <= 64


@pytest.mark.parametrize(
    "name",
    [
        "", "x", "00000001000000000000000a", "00000001000000000000000A ", "0000000A.histor",
        "00000001000000000000000A\n", "00000001000000000000000A.partia", "a/0000000A.history",
        "00000001000000000000000A.0000028.backup", "00000001000000000000000A0", "0000000A",
        "００００００01000000000000000A", "00000001000000000000000A.00000028.backup.gz",
    ],
)  # fmt: skip
def test_trap_30_no_other_name_is_taken(name) -> None:
    with pytest.raises(ValueError):
        wal.kind_of(name)


@given(LSNS)
def test_a_position_survives_its_text(lsn) -> None:
    assert wal.parse_lsn(wal.lsn_text(lsn)) == lsn
    assert wal.parse_lsn(wal.lsn_text(lsn).lower()) == lsn


def test_positions_read_as_postgresql_writes_them() -> None:
    assert wal.lsn_text(0x1_00000028) == "1/28"
    assert wal.parse_lsn(" 16/B374D848\n") == 0x16_B374D848
    assert wal.parse_lsn("0/00000028") == 0x28  # from PostgreSQL 19 on, low half with zeros


@pytest.mark.parametrize("text", ["", "1", "1/", "/1", "1/G", "123456789/1", "1/2/3", "-1/2", 5])
def test_what_is_no_position_is_refused(text) -> None:
    with pytest.raises(ValueError, match="not a position"):
        wal.parse_lsn(text)


@given(TIMELINES, LSNS, SIZES)
def test_trap_23_a_segment_survives_its_name_at_every_size(timeline, lsn, size) -> None:
    name = SegmentName.holding(timeline, lsn, size)
    assert name.start <= lsn < name.end
    assert SegmentName.parse(str(name), size) == name
    assert SegmentName.parse(f"{name}.partial", size) == name
    assert wal.kind_of(str(name)) is WalKind.SEGMENT


def test_trap_23_timelines_and_segments_are_hexadecimal() -> None:
    name = SegmentName.parse("0000000A00000001000000FF")
    assert (name.timeline, name.number) == (10, 0x1FF)
    assert str(name.next()) == "0000000A0000000200000000"
    assert wal.history_name(10) == "0000000A.history"


@pytest.mark.parametrize(
    ("size", "lsn", "expected"),
    [  # as pg_walfile_name of a server with such segments says
        (1 * MIB, 0x1_2345_6789, "000000010000000100000234"),
        (16 * MIB, 0x1_2345_6789, "000000010000000100000023"),
        (64 * MIB, 0x1_2345_6789, "000000010000000100000008"),
        (1024 * MIB, 0x1_F345_6789, "000000010000000100000003"),
    ],
)
def test_trap_23_names_depend_on_the_size(size, lsn, expected) -> None:
    assert str(SegmentName.holding(1, lsn, size)) == expected


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("000000010000000000000100", 16 * MIB),  # 256 segments to a log at 16 MiB: 00 to FF
        ("000000010000000000000040", 64 * MIB),
        ("00000001000000000000000G", 16 * MIB),
        ("00000001000000000000000Ajunk", 16 * MIB),
        ("0000000100000000000000", 16 * MIB),
        ("000000010000000000000001", 3 * MIB),
        ("000000010000000000000001", 0),
        ("000000010000000000000001", 1 << 33),
    ],
)
def test_what_names_no_segment_is_refused(name, size) -> None:
    with pytest.raises(ValueError):
        SegmentName.parse(name, size)


def test_the_segment_where_log_up_to_a_position_ends() -> None:
    assert SegmentName.before(1, 32 * MIB).number == 1
    assert SegmentName.before(1, 32 * MIB + 1).number == 2
    assert SegmentName.before(1, 0).number == 0


@given(TIMELINES, st.integers(0, 2**50), st.integers(0, 2**26), SIZES)
def test_segments_of_a_stretch_hold_every_byte_of_it_and_no_more(
    timeline, start, length, size
) -> None:
    found = list(wal.segments(timeline, start, start + length, size))
    assert found[0] == SegmentName.holding(timeline, start, size)
    assert found[-1] == (SegmentName.before(timeline, start + length, size) if length else found[0])
    assert all(one.next() == other for one, other in itertools.pairwise(found))


HISTORY = (
    b"1\t0/30001C8\tno recovery target specified\n"
    b"# a comment\n\n"
    b"10\t1A/0\tbefore 2026-11-25 02:13:00.123456+00\tand more\r\n"
    b"4294967295 FFFFFFFF/FFFFFFFF\n"
)


def test_a_history_is_read_with_decimal_timelines() -> None:
    assert wal.parse_history(HISTORY) == [
        Fork(1, 0x30001C8, "no recovery target specified"),
        Fork(10, 0x1A00000000, "before 2026-11-25 02:13:00.123456+00\tand more"),
        Fork(4294967295, 2**64 - 1, ""),
    ]
    assert wal.parse_history(b"") == []
    assert wal.parse_history(b"1\t0/1\t\xff\xfe\n")[0].timeline == 1


@pytest.mark.parametrize(
    "text",
    [b"1", b"x\t0/1\tr", b"1\t01\tr", b"0x1\t0/1\tr", b"2\t0/1\tr\n2\t0/2\tr", b"3\t0/1\n2\t0/2",
     "²\t0/1\tr".encode(), b"-1\t0/1\tr", b"\x00" * 40],
)  # fmt: skip
def test_what_is_no_history_is_refused(text) -> None:
    with pytest.raises(ValueError):
        wal.parse_history(text)


@given(st.binary(max_size=80))
def test_a_history_of_any_bytes_is_read_or_refused(text) -> None:
    try:
        forks = wal.parse_history(text)
    except ValueError:
        return
    assert [fork.timeline for fork in forks] == sorted({fork.timeline for fork in forks})


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_moment_survives(when) -> None:
    assert wal.moment(wal.microseconds(when)) == when


def test_moments_count_from_2000_whatever_the_zone() -> None:
    assert wal.moment(0) == datetime(2000, 1, 1, tzinfo=UTC)
    east = datetime(2000, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert wal.microseconds(east) == 0
    with pytest.raises(TypeError):
        wal.microseconds(datetime(2000, 1, 1))
    assert wal.moment(2**63 - 1) == datetime.max.replace(tzinfo=UTC)
    assert wal.moment(-(2**63)) == datetime.min.replace(tzinfo=UTC)


MOMENTS = st.datetimes(timezones=st.just(UTC))
NAMES = st.binary(max_size=63).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
FACTS = st.builds(
    SegmentFacts,
    TIMELINES, LSNS, SIZES, st.none() | LSNS, st.none() | LSNS,
    *[st.none() | MOMENTS] * 3,
    st.integers(0, 10**6), st.integers(0, 10**6),
    st.none() | st.tuples(st.integers(1, 2**32 - 1), st.integers(1, 2**30)),
    st.lists(st.builds(RestorePoint, NAMES, LSNS, MOMENTS), max_size=3).map(tuple),
    st.lists(st.builds(Fork, TIMELINES, LSNS, st.just("")), max_size=3).map(tuple),
    st.lists(
        st.builds(MadeSpace, st.integers(1, 2**32 - 1), LSNS, st.binary(max_size=9)), max_size=2
    ).map(tuple),
    st.booleans(), st.booleans(),
)  # fmt: skip


@given(FACTS)
def test_facts_survive_json_whatever_a_restore_point_is_called(facts) -> None:
    text = json.dumps(facts.as_json(), ensure_ascii=False).encode()
    assert SegmentFacts.from_json(json.loads(text)) == facts


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(FACTS, st.data())
def test_facts_that_are_none_are_refused_as_promised(facts, data) -> None:
    body = facts.as_json()
    key = data.draw(st.sampled_from(sorted(body)))
    body[key] = data.draw(JSON)
    if data.draw(st.booleans()):
        del body[data.draw(st.sampled_from(sorted(body)))]
    with contextlib.suppress(KeyError, ValueError, TypeError):
        SegmentFacts.from_json(body)
