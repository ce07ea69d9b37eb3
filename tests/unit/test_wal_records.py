"""Records of made-up logs: every version and size, borders, forks, lies; kernel and twin alike."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import crc32c
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import wal_writer as made
from strongroom import kernel
from strongroom.format.wal import Fork, MadeSpace, SegmentFacts, SegmentName, moment
from strongroom.postgres.wal.records import Carry, Commit, commits, read_header, scan_segment
from wal_writer import HEAP, MIB, TABLESPACE, XACT, XLOG, Log, main_data

SCANS = [kernel.scan_wal, kernel.scan_wal_twin]
compiled_only = pytest.mark.skipif(
    not kernel.COMPILED, reason="no compiled kernel here: the twin is all there is"
)


def names(log: Log) -> list[SegmentName]:
    return [SegmentName(log.timeline, log.number + i, log.size) for i in range(len(log.segments()))]


def scanned(log: Log) -> list[SegmentFacts]:
    """All segments in order, each with what the one before carried over."""
    found, carry = [], None
    for name, data in zip(names(log), log.segments(), strict=True):
        facts, carry = scan_segment(data, name, carry)
        found.append(facts)
    return found


def alike(data: bytes, start: int, state: bytes = b"") -> kernel.WalScan:
    """What both say, which must be the same."""
    said = [scan(data, start, state, True) for scan in SCANS]
    assert said[0] == said[1]
    counts, notes, _, _, after = said[0]
    assert kernel.scan_wal(data, start, state) == (counts, notes, b"", b"", after)
    return said[0]


# -- one thing at a time ------------------------------------------------------------------


@pytest.mark.parametrize("version", made.MAGICS)
def test_commits_aborts_and_names_of_every_version(version) -> None:
    log = Log(version)
    first, _ = log.record(HEAP, 0, 700, bytes(500))
    log.end(700, 3_000_000, database=True, invalidations=2)
    log.end(701, 1_000_000, subs=(702, 703), relations=1, statistics=2)
    log.end(704, 9_000_000, made.ABORT, relations=3, statistics=1)
    log.end(0, 2_000_000, made.COMMIT_PREPARED, prepared=705, statistics=3, origin=True)
    log.end(0, 1_500_000, made.ABORT_PREPARED, prepared=706, relations=2)
    log.record(XACT, made.PREPARE, 708, main_data(bytes(90)))
    _, at = log.record(XLOG, made.RESTORE_POINT, 0, main_data(made.restore_point(b"n\xff", 7)))
    (facts,) = scanned(log)
    assert facts.first == first
    assert facts.last == at
    assert (facts.commits, facts.aborts) == (3, 2)
    assert facts.first_commit == moment(1_000_000)
    assert facts.last_commit == moment(3_000_000)
    assert facts.last_end == moment(9_000_000)
    assert facts.largest is not None
    assert facts.largest[0] == 700
    (point,) = facts.restore_points
    assert (point.name, point.lsn, point.time) == ("n\udcff", at, moment(7))
    assert not facts.whole  # zeros behind the last record
    assert not facts.switched
    ends = list(commits(zip(names(log), log.segments(), strict=True), aborts=True))
    assert [(one.xid, one.aborted) for one in ends] == [
        (700, False), (701, False), (704, True), (705, False), (706, True),
    ]  # fmt: skip
    assert [one.lsn_start for one in ends] == [start for start, *_ in log.records[1:6]]


@pytest.mark.parametrize("scan", SCANS)
def test_a_transaction_is_as_large_as_all_its_parts(scan) -> None:
    log = Log()
    for xid, size in ((10, 100), (11, 100), (12, 100), (20, 250), (30, 150), (31, 150)):
        log.record(HEAP, 0, xid, bytes(size))
    log.record(XACT, made.ASSIGNMENT, 30, main_data(struct.pack("<IiI", 30, 1, 31)))
    log.end(10, 5, subs=(11, 12))
    counts, _, _, writers, _ = scan(log.segments()[0], log.base, b"", True)
    size = {start: total for start, _, _, total in log.records}
    total = [size[start] for start, *_ in log.records]
    assert counts[9:] == (10, total[0] + total[1] + total[2] + total[7])
    assert {(xid, top) for xid, top, _ in kernel.wal_writers(writers)} == {
        (10, 0), (11, 10), (12, 10), (20, 0), (30, 0), (31, 30),
    }  # fmt: skip


@pytest.mark.parametrize(
    "fill", [0, MIB - 40 - 127 * 24 - 80]
)  # inside a segment, and across its end
def test_tablespaces_that_are_made(fill: int) -> None:
    log = Log(16)
    if fill:
        log.record(HEAP, 0, 9, bytes(fill))
    made_at = [
        log.record(TABLESPACE, 0, 9, main_data(struct.pack("<I", oid) + location + b"\0"))[1]
        for oid, location in ((16384, b"/disk/o\xffdd, place"), (16385, b""))
    ]
    log.record(TABLESPACE, 0x10, 9, main_data(struct.pack("<I", 16384)))  # dropped
    found = [space for facts in scanned(log) for space in facts.spaces]
    assert found == [
        MadeSpace(16384, made_at[0], b"/disk/o\xffdd, place"),
        MadeSpace(16385, made_at[1], b""),
    ]
    assert [
        one for facts in scanned(log) for one in SegmentFacts.from_json(facts.as_json()).spaces
    ] == found


def test_origins_and_top_level_transactions_stand_before_the_main_data() -> None:
    log = Log()
    log.end(10, 5, aside=True)
    bit, main = made.transaction_end(6, subs=(12,))
    log.record(XACT, bit, 11, main_data(main, origin=True, top=True))
    log.record(XACT, 0, 13, b"\x00" + main_data(main))  # has a block: not what it says it is
    (facts,) = scanned(log)
    assert (facts.commits, facts.last_commit) == (2, moment(6))
    assert facts.last == log.at


def test_a_switch_ends_the_segment() -> None:
    log = Log()
    log.end(10, 5)
    _, at = log.switch()
    log.end(11, 6)
    one, two = scanned(log)
    assert (one.switched, one.whole, one.last) == (True, True, at)
    assert two.first == log.base + MIB + 40


@pytest.mark.parametrize("page", [1024, 8192, 65536])
@pytest.mark.parametrize("size", [MIB, 4 * MIB])
def test_a_record_goes_through_several_segments(page, size) -> None:
    log = Log(page=page, size=size)
    log.end(9, 4)
    log.record(HEAP, 0, 10, random.Random(page).randbytes(2 * size + 300))
    log.end(10, 5)
    one, two, three = scanned(log)
    assert (one.first, one.whole) == (log.base + 40, True)
    assert one.last == log.records[0][1]
    assert (two.first, two.last, two.whole, two.commits) == (None, None, True, 0)
    assert three.first == log.records[2][0]
    assert three.last == log.at
    sizes = [facts.largest[1] for facts in (one, two, three) if facts.largest]
    assert sum(sizes) == log.records[1][3] + log.records[2][3]
    assert [facts.largest[0] for facts in (one, two, three) if facts.largest] == [10, 10, 10]
    (_, large) = commits(zip(names(log), log.segments(), strict=True))
    assert large == Commit(10, moment(5), *log.records[2][:2], sum(sizes))
    # Without what was carried over the positions are the same; only whose bytes it was is lost.
    alone = [
        scan_segment(data, name)[0] for name, data in zip(names(log), log.segments(), strict=True)
    ]
    assert [(f.first, f.last, f.whole) for f in alone] == [
        (f.first, f.last, f.whole) for f in (one, two, three)
    ]
    assert alone[1].largest is None


@pytest.mark.parametrize("left", range(8, 56, 8))
def test_a_commit_across_the_border_counts_where_it_ends(left) -> None:
    log = Log()
    log.record(HEAP, 0, 9, bytes(100))
    fill = MIB - log.at % MIB - left
    pages = -(-fill // 8192) - 1
    log.record(HEAP, 0, 9, bytes(fill - 24 * pages - 24))
    assert log.at % MIB == MIB - left
    log.end(10, 5, subs=(11, 12))
    log.end(13, 6)
    one, two = scanned(log)
    assert (one.commits, one.whole) == (0, True)
    assert two.commits == 2
    assert two.first_commit == moment(5)
    assert two.first == log.records[-1][0]
    lone = scan_segment(log.segments()[1], names(log)[1])[0]
    assert (lone.commits, lone.first, lone.last) == (1, two.first, two.last)


def test_a_record_that_ends_with_the_segment_carries_nothing() -> None:
    log = Log()
    log.record(HEAP, 0, 9, bytes(MIB - log.at % MIB - 40 - 127 * 24 - 24))
    assert log.at % MIB == 0
    facts, carry = scan_segment(log.segments()[0], names(log)[0])
    assert (facts.last, facts.whole, carry) == (log.at, True, None)
    log.end(10, 5)
    assert scanned(log)[1].commits == 1


def broken_off(log: Log, lost: int) -> None:
    """Lose the log from `lost` on, as a crash does, and go on as recovery does from version 14 on."""
    del log.data[lost - log.base :]
    log.previous = max((start for start, end, *_ in log.records if end <= lost), default=0)
    log.info = 8
    body = main_data(struct.pack("<Qq", log.records[-1][0], 0))
    log.record(XLOG, made.OVERWRITE, 0, body)


@pytest.mark.parametrize("segments", [0, 1])
def test_a_record_whose_end_was_lost_is_overwritten(segments) -> None:
    log = Log()
    log.end(9, 4)
    log.record(HEAP, 0, 10, bytes(2 * MIB))
    broken_off(log, log.base + segments * MIB + 8192 * (1 - segments))
    log.end(11, 5)
    log.switch()
    found = scanned(log)
    assert all(facts.whole for facts in found)
    assert sum(facts.commits for facts in found) == 2
    assert found[-1].switched
    assert [one.xid for one in commits(zip(names(log), log.segments(), strict=True))] == [9, 11]


def test_timelines_that_were_left_are_told_of() -> None:
    log = Log(timeline=2)
    log.end(10, 5)
    log.record(XLOG, made.SHUTDOWN, 0, main_data(made.turn(2, 2, bytes(72))))
    log.timeline = 3
    start, _ = log.record(XLOG, made.END_OF_RECOVERY, 0, main_data(made.turn(3, 2)))
    log.record(HEAP, 0, 11, bytes(9000))
    log.record(XLOG, made.ONLINE, 0, main_data(made.turn(3, 3, bytes(72))))
    (facts,) = scanned(log)
    assert facts.forks == (Fork(2, start, ""),)
    assert facts.last == log.at
    other = Log(timeline=9)
    start, _ = other.record(XLOG, made.SHUTDOWN, 0, main_data(made.turn(9, 4, bytes(72))))
    assert scanned(other)[0].forks == (Fork(4, start, ""),)


# -- lies ------------------------------------------------------------------------------------


def lie(at: int, new: bytes) -> Callable[[bytearray, Log], None]:
    def change(data: bytearray, log: Log) -> None:
        data[at : at + len(new)] = new

    return change


def stale_page(data: bytearray, log: Log) -> None:
    """A recycled segment: from here on pages of the past, whole and sound in themselves."""
    old = Log(number=log.number - 2)
    while len(old.data) < MIB:
        old.end(77, 1)
    data[2 * 8192 :] = old.data[2 * 8192 : MIB]


def stale_record(data: bytearray, log: Log) -> None:
    """A sound record of an older life at the right place: only its link says that it is stale."""
    start, end, *_ = log.records[600]
    other = Log(number=log.number)
    other.data = bytearray(data[: start - log.base])
    other.previous = start - 4096
    other.end(77, 99)
    data[start - log.base : end - log.base] = other.data[start - log.base :]


def wrong_sum(data: bytearray, log: Log) -> None:
    start, *_ = log.records[600]
    data[start - log.base + 30] ^= 1


@pytest.mark.parametrize(
    ("change", "reached"),
    [
        (lie(0, b"\0\0"), 0),
        (lie(8, b"\1"), 0),  # not the address of this segment
        (lie(32, struct.pack("<I", 2 * MIB)), 0),
        (lie(36, struct.pack("<I", 8191)), 0),
        (lie(16384, b"\x10"), 2),  # page 2: magic
        (lie(16386, b"\x10"), 2),  # flags
        (lie(16386, b"\x02"), 2),  # says it begins a segment
        (lie(16388, b"\0"), 2),  # a timeline before the one before
        (lie(16392, b"\xff"), 2),  # address
        (lie(16386, struct.pack("<HIQI", 1, 1, 3 * MIB + 16384, 99)), 2),  # goes on with nothing
        (stale_page, 2),
        (stale_record, 600),
        (wrong_sum, 600),
    ],
)
def test_the_walk_ends_where_the_log_does(change, reached) -> None:
    """P: stale bytes of a recycled segment are never taken for records."""
    log = Log()
    while len(log.data) < MIB - 200:
        log.end(1000 + len(log.records), len(log.records))
    data = bytearray(log.segments()[0])
    change(data, log)
    facts, carry = scan_segment(data, names(log)[0])
    alike(bytes(data), log.base)
    assert not facts.whole
    assert carry is None
    if not reached:
        assert (facts.first, facts.last, facts.commits) == (None, None, 0)
        return
    if reached < 10:
        last = [end for _, end, *_ in log.records if end - log.base <= 8192 * reached]
        assert facts.last == last[-1]
        assert facts.commits == len(last)
    else:
        assert facts.last == log.records[reached - 1][1]
        assert facts.commits == reached
        assert facts.last_commit == moment(reached - 1)


@pytest.mark.parametrize(
    "name",
    [SegmentName(1, 4, MIB), SegmentName(1, 3, 2 * MIB), SegmentName(1, 3, 16 * MIB)],
)
def test_a_segment_of_another_name_has_no_records(name) -> None:
    log = Log(timeline=1)
    log.end(10, 5)
    facts, carry = scan_segment(log.segments()[0], name)
    assert facts == SegmentFacts(name.timeline, name.start, name.size, whole=False)
    assert carry is None
    with pytest.raises(ValueError, match="not the WAL segment"):
        list(commits([(name, log.segments()[0])]))


def test_trap_31_the_header_says_whose_segment_it_is() -> None:
    log = Log(17, timeline=5)
    log.end(10, 5)
    header = read_header(log.segments()[0])
    assert (header.major, header.timeline, header.start) == (17, 5, 3 * MIB)
    assert (header.system_id, header.segment_size, header.page_size) == (log.system_id, MIB, 8192)
    younger = SegmentName(4, 3, MIB)
    assert scan_segment(log.segments()[0], younger)[0].first is None


@pytest.mark.parametrize("data", [b"", bytes(39), bytes(MIB), b"\xff" * MIB, b"\x13\xd1" * 500])
def test_what_is_no_segment_is_refused(data) -> None:
    with pytest.raises(ValueError):
        read_header(data)
    assert scan_segment(data, SegmentName(1, 0, MIB))[0].first is None
    alike(data, 0)


def test_what_was_carried_from_elsewhere_is_passed_over() -> None:
    log = Log()
    log.end(9, 4)
    log.record(HEAP, 0, 10, bytes(MIB))
    log.end(10, 5)
    data, name = log.segments()[1], names(log)[1]
    _, carry = scan_segment(log.segments()[0], names(log)[0])
    assert carry is not None
    want = scan_segment(data, name)[0]
    other = Carry(carry.position + MIB, carry.state)
    for wrong in (other, Carry(carry.position, b"x" * 60), Carry(carry.position, carry.state[:-1])):
        assert scan_segment(data, name, wrong)[0] == want
    assert scan_segment(data, name, carry)[0].largest != want.largest
    foreign = Carry(carry.position, carry.state[:20] + b"!!!!" + carry.state[24:])  # its sum
    assert not scan_segment(data, name, foreign)[0].whole


def test_times_beyond_the_calendar_are_no_crash() -> None:
    log = Log()
    log.end(9, 2**63 - 1)
    log.end(9, -(2**63))
    (facts,) = scanned(log)
    assert facts.last_commit == datetime.max.replace(tzinfo=UTC)
    assert facts.first_commit == datetime.min.replace(tzinfo=UTC)


# -- anything ------------------------------------------------------------------------------------

XIDS = st.integers(1, 40)
TIMES = st.integers(-(10**9), 10**15)
OPS = st.one_of(
    st.tuples(st.just("row"), st.integers(0, 40), st.integers(0, 300)),
    st.tuples(st.just("large"), XIDS, st.sampled_from([8000, 65536, 400_000, MIB, 2_500_000])),
    st.tuples(st.just("commit"), XIDS, TIMES, st.lists(XIDS, max_size=4)),
    st.tuples(st.just("abort"), XIDS, TIMES, st.lists(XIDS, max_size=4)),
    st.tuples(st.just("prepared"), XIDS, TIMES, st.integers(0, 3)),
    st.tuples(st.just("assigned"), XIDS, st.lists(XIDS, max_size=3)),
    st.tuples(st.just("point"), st.binary(min_size=1, max_size=63).filter(lambda b: 0 not in b)),
    st.tuples(st.just("switch")),
    st.tuples(st.just("fill"), st.integers(1, 12)),
    st.tuples(st.just("crash"), st.integers(1, 60)),
)


def play(log: Log, ops: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Write the log; return its ends of transactions and its restore points."""
    told: list[tuple[Any, ...]] = []
    for op, *rest in ops:
        if op in ("row", "large"):
            log.record(HEAP, 0, rest[0], b"\x2a" * rest[1])
        elif op in ("commit", "abort"):
            kind = made.COMMIT if op == "commit" else made.ABORT
            where = log.end(rest[0], rest[1], kind, subs=tuple(rest[2]), relations=len(rest[2]))
            told.append((*where, rest[1], rest[0], op == "abort"))
        elif op == "prepared":
            where = log.end(0, rest[1], made.COMMIT_PREPARED, prepared=rest[0], statistics=rest[2])
            told.append((*where, rest[1], rest[0], False))
        elif op == "assigned":
            main = struct.pack("<I", rest[0]) + made.counted(
                [struct.pack("<I", xid) for xid in rest[1]]
            )
            log.record(XACT, made.ASSIGNMENT, rest[0], main_data(main))
        elif op == "point":
            main = made.restore_point(rest[0], 5)
            told.append((log.record(XLOG, made.RESTORE_POINT, 0, main_data(main))[1], rest[0]))
        elif op == "switch":
            log.switch()
        elif op == "fill":  # up to `rest` steps before the end of a page
            room = (-log.at - 8 * rest[0]) % log.page
            log.record(HEAP, 0, 3, bytes(max(room - 24 - 24 * (room > log.page - 48), 0)))
        elif log.records:
            start, end, *_ = log.records[-1]
            lost = start - start % log.page + rest[0] * log.page
            if lost < end and log.at == end:
                broken_off(log, lost)
                log.records[-2:-1] = []
                # A transaction's end is told by its start and end, a restore point by its end.
                told = [one for one in told if one[0] != (start if len(one) == 5 else end)]
    return told


LOGS = st.tuples(
    st.sampled_from([*made.MAGICS]), st.sampled_from([1024, 8192]), st.lists(OPS, max_size=40)
)


@settings(max_examples=60, deadline=None)
@given(LOGS)
@example((16, 8192, [("fill", 2), ("large", 7, MIB), ("crash", 3), ("commit", 7, 5, [8])]))
def test_what_was_written_is_what_is_read(what) -> None:
    version, page, ops = what
    log = Log(version, page=page)
    told = play(log, ops)
    if not log.data:
        return
    state, ends, points, firsts, lasts, total = b"", [], [], [], [], 0
    for name, data in zip(names(log), log.segments(), strict=True):
        counts, notes, rows, writers, state = alike(data, name.start, state)
        ends += [(*row[:4], bool(row[4])) for row in kernel.wal_ends(rows)]
        points += [(end, main[8:].rstrip(b"\0")) for info, _, end, main in notes if info == 0x70]
        total += sum(size for _, _, size in kernel.wal_writers(writers))
        inside = [start for start, *_ in log.records if name.start <= start < name.end]
        firsts.append((counts[0], min(inside, default=0)))
        lasts.append(counts[1])
    assert ends == [one for one in told if len(one) == 5]
    assert points == [one for one in told if len(one) == 2]
    if not any(op[0] == "crash" for op in ops):
        assert all(one == other for one, other in firsts)
        assert max(lasts, default=0) == max((end for _, end, *_ in log.records), default=0)
        prepared = {(t[0], t[1]) for t in told if len(t) == 5}
        assert total == sum(
            size for start, end, xid, size in log.records if xid or (start, end) in prepared
        )


@compiled_only
@settings(max_examples=150, deadline=None)
@given(
    LOGS,
    st.lists(st.tuples(st.integers(0, 2**31), st.binary(min_size=1, max_size=9)), max_size=4),
    st.binary(max_size=90),
    st.none() | st.integers(0, MIB),
)
def test_both_agree_on_logs_with_lies_in_them(what, lies, forged, cut) -> None:
    version, page, ops = what
    log = Log(version, page=page)
    play(log, ops)
    for given_state in (b"", forged):
        state = given_state
        for name, whole in zip(names(log), log.segments(), strict=True):
            data = bytearray(whole)
            written = max(1, min(len(data), log.at - name.start))
            for where, new in lies:
                data[where % written : where % written + len(new)] = new
            *_, state = alike(bytes(data[:cut]), name.start, state)


@compiled_only
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_both_agree_on_forged_records_with_right_sums(data) -> None:
    """A sum is no proof of sense: counts and lengths in the record itself may be anything."""
    log = Log(data.draw(st.sampled_from([13, 16, 18])))
    for _ in range(data.draw(st.integers(1, 5))):
        length = data.draw(st.integers(0, 12))
        numbers = data.draw(
            st.lists(
                st.sampled_from([0, 1, 2, 4, 8, 16, 17, 0x1FF, 2**31, 2**32 - 1, 2**32 - 4]),
                min_size=length, max_size=length,
            )
        )  # fmt: skip
        main = b"".join(struct.pack("<I", number) for number in numbers)
        main = main[: data.draw(st.integers(0, len(main)))]
        body = data.draw(
            st.sampled_from([main_data(main), main_data(main, origin=True), main, b"\xff" + main])
        )
        manager = data.draw(st.sampled_from([XACT, XLOG, TABLESPACE]))
        info = data.draw(st.integers(0, 255))
        log.record(manager, info, data.draw(st.integers(0, 5)), body)
        if info & 0xF0 == 0x40 and manager == XLOG:
            break
    for name, segment in zip(names(log), log.segments(), strict=True):
        alike(segment, name.start)
        scan_segment(segment, name)


@compiled_only
@given(st.binary(max_size=70), st.integers(0, 2**32 - 1), st.integers(0, 7))
def test_both_ways_to_sum_are_the_librarys(data, before, skip) -> None:
    view = memoryview(data)[skip:]
    want = crc32c.crc32c(view, before)
    for portable in (False, True):
        assert kernel._compiled._crc32c(view, before, portable) == want


def test_the_scan_does_not_hold_the_buffer() -> None:
    log = Log()
    log.end(9, 4)
    for scan in SCANS:
        data = bytearray(log.segments()[0])
        scan(memoryview(data), log.base)
        data += b"x"  # BufferError while somebody holds it
    with pytest.raises(TypeError):
        kernel.scan_wal("text", 0)  # type: ignore[arg-type]
