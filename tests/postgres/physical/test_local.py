"""A cluster backed up on its own host while it works, and started again from the snapshot."""

from __future__ import annotations

from typing import Any

import psycopg

from postgres.physical.tools import Restored, Room, content
from strongroom.postgres.embedded import EmbeddedServer


def check_indexes(connection: psycopg.Connection[Any]) -> None:
    """Every heap row in every index, where this installation has amcheck."""
    if not connection.execute(
        "SELECT FROM pg_available_extensions WHERE name = 'amcheck'"
    ).fetchone():
        return
    connection.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
    connection.execute(
        "SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = c.relam"
        " WHERE amname = 'btree' AND relkind = 'i' AND relpersistence = 'p'"
    )


def test_a_backup_recovers_and_postgresql_agrees(pg: EmbeddedServer, room: Room) -> None:
    with pg.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS rows")
        connection.execute(
            "CREATE TABLE rows AS SELECT n, md5(n::text) AS text FROM generate_series(1, 20000) n"
        )
        connection.execute("CREATE INDEX ON rows (text)")
    report, facts = room.take()
    assert not report.problems
    assert facts.via == "local"
    assert facts.checksums
    assert facts.start_lsn < facts.stop_lsn
    assert not facts.bad_pages
    reader = room.reader(report)
    assert content(reader, b"data/backup_label") == facts.backup_label
    with pg.connect() as connection:  # after the backup: not in it
        connection.execute("INSERT INTO rows VALUES (-1, 'later')")
    with Restored(pg, reader, room.archive) as restored:
        restored.wait_until_writable()
        with restored.connect() as connection:
            found = connection.execute("SELECT count(*), min(n) FROM rows").fetchone()
            check_indexes(connection)
        restored.check_pages()
    assert found == (20000, 1)
    with pg.connect() as connection:
        connection.execute("DROP TABLE rows")
