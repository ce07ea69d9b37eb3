"""A cluster of ten thousand tables and a thousand partitions, backed up in every way (case P55)."""

from __future__ import annotations

import pytest
from test_regression import SETTINGS, logical_is_the_same, whole

from postgres.cluster_room import cluster_room

pytestmark = [pytest.mark.xdist_group("regression"), pytest.mark.sweep, pytest.mark.timeout(1800)]
TABLES, PARTITIONS = 10_000, 1_000


def test_ten_thousand_tables_and_a_thousand_partitions() -> None:
    locks = {"max_locks_per_transaction": "512"}  # as a server of so many tables has them
    for cluster in cluster_room(15, "--data-checksums", **SETTINGS, **locks):
        cluster.sql("CREATE DATABASE many")
        with cluster.server.connect("many") as connection:
            connection.execute(
                f"DO $$ BEGIN FOR i IN 1..{TABLES} LOOP EXECUTE format("
                "'CREATE TABLE t%s (id int PRIMARY KEY, what text)', i);"
                "EXECUTE format('INSERT INTO t%s VALUES (%s, %L)', i, i, i);"
                "IF i % 500 = 0 THEN COMMIT; END IF; END LOOP; END $$"
            )
            connection.execute("CREATE TABLE parted (id int, what text) PARTITION BY RANGE (id)")
            connection.execute(
                f"DO $$ BEGIN FOR i IN 0..{PARTITIONS - 1} LOOP EXECUTE format("
                "'CREATE TABLE p%s PARTITION OF parted FOR VALUES FROM (%s) TO (%s)',"
                " i, i * 10, i * 10 + 10); END LOOP; END $$"
            )
            connection.execute(
                f"INSERT INTO parted SELECT i, i::text FROM generate_series(0, {PARTITIONS}0 - 1) i"
            )
        whole(cluster, ("db", "far"))
        logical_is_the_same(cluster, "many")
