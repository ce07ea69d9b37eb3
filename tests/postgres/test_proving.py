"""What a restored server is asked: each question finds what it is asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from strongroom.errors import Damaged
from strongroom.postgres import proving
from strongroom.postgres.embedded import EmbeddedServer


def test_counts_against_what_was_recorded(server16: EmbeddedServer) -> None:
    with server16.connect() as connection:
        connection.execute("CREATE TABLE counted (n int PRIMARY KEY); CREATE TABLE bare (n int)")
        connection.execute("INSERT INTO counted SELECT generate_series(1, 7)")
    try:
        recorded = {("public", "counted"): 7, ("public", "bare"): 1, ("gone", "away"): 0}
        right, short, gone = proving.count_against(server16, "postgres", recorded)
        assert right.wrong == ""
        assert short.wrong == 'postgres: "public"."bare" has 0 rows, 1 were recorded'
        assert gone.rows == -1 and gone.wrong
        found = {one.name: one for one in proving.count_twice(server16, "postgres")}
        assert (found["counted"].rows, found["counted"].by_index) == (7, 7)
        assert (found["bare"].rows, found["bare"].by_index) == (0, None)
        # Read-only, whatever is asked; and the answer is the last statement's.
        assert proving.ask(server16, "postgres", "SELECT 1; SELECT max(n) FROM counted") == 7
        assert proving.ask(server16, "postgres", "SELECT n FROM bare") is None
        for wrong in ("DELETE FROM counted", "SELECT nothing", "SELEC", "SELECT 1/0"):
            with pytest.raises(Damaged, match="the restored server says"):
                proving.ask(server16, "postgres", wrong)
    finally:
        with server16.connect() as connection:
            connection.execute("DROP TABLE counted, bare")


def test_a_session_loads_nothing_that_the_restored_database_would_have_it_load(
    server16: EmbeddedServer,
) -> None:
    with server16.connect() as connection:
        connection.execute("CREATE DATABASE hostile")
        connection.execute("ALTER DATABASE hostile SET session_preload_libraries = 'no_such_thing'")
        connection.execute("ALTER DATABASE hostile SET statement_timeout = '1ms'")
    try:
        assert proving.ask(server16, "hostile", "SELECT pg_sleep(0.01)::text") == ""
    except Damaged:  # pragma: no cover - told below
        pytest.fail("the settings of the restored database counted")
    finally:
        with server16.connect() as connection:
            connection.execute("DROP DATABASE hostile WITH (FORCE)")


def test_collations_and_extensions_that_are_others_here(server16: EmbeddedServer) -> None:
    with server16.connect() as connection:
        connection.execute("CREATE DATABASE moved")
        connection.execute("UPDATE pg_database SET datcollversion = '1.0' WHERE datname = 'moved'")
    try:
        with server16.connect("moved") as connection:
            connection.execute("UPDATE pg_extension SET extname = 'not_here'")
        (changed,) = [
            one for one in proving.collations_changed(server16, ["moved"]) if " was 1.0" in one
        ]
        assert "in moved" in changed
        assert proving.extensions_lacking(server16, ["moved"]) == ["not_here in moved"]
        assert proving.extensions_lacking(server16, ["postgres"]) == []
    finally:
        with server16.connect() as connection:
            connection.execute("DROP DATABASE moved WITH (FORCE)")


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        (datetime(2026, 1, 2, 3, tzinfo=UTC), datetime(2026, 1, 2, 3, tzinfo=UTC)),
        (datetime(2026, 1, 2, 3), datetime(2026, 1, 2, 3, tzinfo=UTC)),
        (datetime(2026, 1, 2).date(), datetime(2026, 1, 2, tzinfo=UTC)),
        (Decimal(0), datetime(1970, 1, 1, tzinfo=UTC)),
        ("2026-01-02T03:00:00+00:00", datetime(2026, 1, 2, 3, tzinfo=UTC)),
        ("yesterday", None),
        (True, None),
        (None, None),
        (1e30, None),
    ],
)
def test_what_may_be_a_moment(value: Any, moment: datetime | None) -> None:
    assert proving.as_moment(value) == moment
