"""The facts of a physical backup, out and home; what is not such facts is refused."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.postgres.physical.facts import BadPage, PhysicalFacts, Tablespace

U64 = st.integers(0, (1 << 64) - 1)
U32 = st.integers(0, (1 << 32) - 1)
MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


@st.composite
def facts(draw: st.DrawFn) -> PhysicalFacts:
    return PhysicalFacts(
        via=draw(st.sampled_from(["local", "stream"])),
        server={"version": "15.20", "settings": {"TimeZone": "UTC"}},
        system_id=draw(U64),
        timeline=draw(U32),
        start_lsn=draw(U64),
        stop_lsn=draw(U64),
        redo_lsn=draw(U64),
        checkpoint_lsn=draw(U64),
        start_time=draw(MOMENTS),
        stop_time=draw(MOMENTS),
        backup_label=draw(st.binary(max_size=50)),
        tablespace_map=draw(st.binary(max_size=50)),
        checksums=draw(st.booleans()),
        bad_pages=(BadPage(draw(st.binary(max_size=9)), draw(U32), 1, 2),),
        from_standby=draw(st.booleans()),
        tablespaces=(Tablespace(str(draw(U32)), draw(st.binary(max_size=9))),),
        external=(draw(st.binary(max_size=9)),),
        left_out={"unlogged": 3},
    )


@given(facts())
def test_out_and_home(given_facts: PhysicalFacts) -> None:
    assert PhysicalFacts.from_json(json.loads(json.dumps(given_facts.as_json()))) == given_facts


def example() -> PhysicalFacts:
    now = datetime(2026, 7, 1, tzinfo=timezone(timedelta(hours=2)))
    return PhysicalFacts("local", {}, 7, 1, 1, 2, 1, 1, now, now, b"label")


def test_times_are_written_in_utc() -> None:
    assert example().as_json()["start_time"] == "2026-06-30T22:00:00+00:00"


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "logical"},
        {"format": 2},
        {"via": "tape"},
        {"start_lsn": "x"},
        {"start_time": "2026-07-01T00:00:00"},
        {"tablespaces": [{"oid": "../x", "location": ""}]},
        {"tablespaces": None},
        {"backup_label": "?"},
    ],
)
def test_what_is_something_else_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        PhysicalFacts.from_json(example().as_json() | wrong)


def test_what_is_missing_is_said() -> None:
    body = example().as_json()
    del body["stop_lsn"]
    with pytest.raises(ValueError, match="stop_lsn"):
        PhysicalFacts.from_json(body)
