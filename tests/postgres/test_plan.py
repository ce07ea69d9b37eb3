"""Streams: balanced, complete, stable. PURE."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from strongroom.postgres.logical.plan import MIB, MOST_IN_GROUP, Stream, Table, plan_streams


def table(name: str, mib: float, **flags: bool) -> Table:
    return Table("public", name, int(mib * MIB), **flags)


def finishing_times(streams: list[Stream], jobs: int) -> list[int]:
    workers = [0] * jobs
    for stream in streams:
        workers[workers.index(min(workers))] += stream.weight
    return workers


def test_a_small_database_is_two_streams() -> None:
    streams = plan_streams([table("a", 3), table("b", 9)], jobs=4)
    assert [s.kind for s in streams] == ["schema", "main"]


def test_large_tables_stand_alone_largest_first() -> None:
    streams = plan_streams([table("s", 1), table("m", 400), table("l", 700)], jobs=2)
    assert [(s.kind, [t.name for t in s.tables]) for s in streams] == [
        ("schema", []),
        ("table", ["l"]),
        ("table", ["m"]),
        ("main", ["s"]),
    ]


def test_many_middling_tables_are_shared_out() -> None:
    streams = plan_streams([table(f"t{i:03}", 10) for i in range(100)], jobs=2)
    groups = [s for s in streams if s.kind == "group"]
    assert 6 <= len(groups) <= 12
    assert max(finishing_times(streams, 2)) <= 1.3 * sum(s.weight for s in streams) / 2


def test_what_may_not_stand_apart_stays_in_main() -> None:
    streams = plan_streams(
        [table("ext", 900, extension=True, apart=False), table("b", 900)], jobs=2
    )
    main = next(s for s in streams if s.kind == "main")
    assert [t.name for t in main.tables] == ["ext"]


def test_one_worker_needs_no_division() -> None:
    assert len(plan_streams([table("a", 900), table("b", 900)], jobs=1)) == 2


def test_large_objects_weigh_on_main() -> None:
    streams = plan_streams([table("a", 100)], jobs=2, large_objects=900 * MIB)
    assert [s.kind for s in streams] == ["schema", "main", "table"]


tables = st.lists(
    st.builds(
        table,
        st.text(min_size=1, max_size=5),
        st.floats(0, 2000),
        apart=st.booleans(),
    ),
    max_size=60,
    unique_by=lambda t: t.name,
)


@given(tables, st.integers(1, 6))
def test_every_table_is_in_exactly_one_stream_and_order_does_not_matter(
    given_tables: list[Table], jobs: int
) -> None:
    streams = plan_streams(given_tables, jobs=jobs)
    inside = [t for s in streams for t in s.tables]
    assert sorted(inside, key=lambda t: t.name) == sorted(given_tables, key=lambda t: t.name)
    assert [s.kind for s in streams].count("main") == 1
    assert streams[0].kind == "schema"
    weights = [s.weight for s in streams[1:]]
    assert weights == sorted(weights, reverse=True)
    assert all(len(s.tables) <= MOST_IN_GROUP for s in streams if s.kind == "group")
    again = plan_streams(given_tables[::-1], jobs=jobs)
    named = {frozenset(s.tables) for s in streams if s.kind != "main"}
    assert named == {frozenset(s.tables) for s in again if s.kind != "main"}


@given(tables, st.integers(2, 4))
def test_no_worker_is_left_alone_but_with_one_stream_larger_than_its_share(
    given_tables: list[Table], jobs: int
) -> None:
    streams = plan_streams(given_tables, jobs=jobs)
    last = max(finishing_times(streams, jobs))
    share = sum(s.weight for s in streams) / jobs
    largest = max(s.weight for s in streams)
    assert last <= share + largest
