"""What a path in a data directory is, and what a backup leaves out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.postgres.physical.layout import (
    EMPTIED,
    Fork,
    Reason,
    Relation,
    left_out,
    passed_over,
    relation,
    relation_at,
    version_directory,
)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (b"16384", Relation(16384)),
        (b"16384.1", Relation(16384, segment=1)),
        (b"16384.131", Relation(16384, segment=131)),
        (b"16384_fsm", Relation(16384, Fork.FSM)),
        (b"16384_vm.2", Relation(16384, Fork.VM, 2)),
        (b"16384_init", Relation(16384, Fork.INIT)),
        (b"t3_16384", Relation(16384, temporary=True)),
        (b"t3_16384_fsm.1", Relation(16384, Fork.FSM, 1, temporary=True)),
        (b"4294967295", Relation(4294967295)),
        (b"4294967296", None),
        (b"16384.0", None),
        (b"16384_main", None),
        (b"16384.", None),
        (b"16384\n", None),
        (b"t_16384", None),
        (b"pg_filenode.map", None),
        (b"PG_VERSION", None),
        (b"", None),
        ("١٢".encode(), None),
    ],
)
def test_names_of_relations(name: bytes, what: Relation | None) -> None:
    assert relation(name) == what


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        (b"base/5/16384", True),
        (b"base/5/pg_filenode.map", False),
        (b"base/pgsql_tmp/1", False),
        (b"global/1260", True),
        (b"global/pg_control", False),
        (b"pg_tblspc/16400/PG_15_202209061/5/16384.3", True),
        (b"pg_tblspc/16400/16384", False),
        (b"pg_xact/0000", False),
        (b"pg_multixact/offsets/0000", False),
        (b"16384", False),
        (b"extension/base/5/16384", False),
    ],
)
def test_where_relations_are(path: bytes, is_one: bool) -> None:
    assert (relation_at(path) is not None) == is_one


def test_trap_8_unlogged_and_temporary_relations_are_left_out() -> None:
    names = [
        b"1000", b"1000.1", b"1000_fsm", b"1000_init",  # unlogged
        b"2000", b"2000_vm",  # ordinary
        b"t5_3000", b"t5_3000_fsm",  # temporary
        b"PG_VERSION", b"pg_internal.init", b"pg_internal.init.77",
    ]  # fmt: skip
    assert left_out(b"base/5", names) == {
        b"1000": Reason.UNLOGGED,
        b"1000.1": Reason.UNLOGGED,
        b"1000_fsm": Reason.UNLOGGED,
        b"t5_3000": Reason.TEMPORARY,
        b"t5_3000_fsm": Reason.TEMPORARY,
        b"pg_internal.init": Reason.PASSED_OVER,
        b"pg_internal.init.77": Reason.PASSED_OVER,
    }
    # The same names elsewhere are somebody's files.
    assert set(left_out(b"log", names)) == {b"pg_internal.init", b"pg_internal.init.77"}


def test_trap_7_what_is_left_out_everywhere() -> None:
    for name in (
        b"postmaster.pid", b"postmaster.opts", b"backup_label", b"tablespace_map",
        b"backup_manifest", b"pgsql_tmp", b"pgsql_tmp77.0", b"postgresql.auto.conf.tmp",
        b"current_logfiles.tmp",
    ):  # fmt: skip
        assert passed_over(name), name
    for name in (b"postgresql.auto.conf", b"backup_label.old", b"current_logfiles", b"PG_VERSION"):
        assert not passed_over(name), name
    assert {b"pg_wal", b"pg_replslot", b"pg_dynshmem", b"pg_notify"} <= EMPTIED
    assert {b"pg_serial", b"pg_snapshots", b"pg_stat_tmp", b"pg_subtrans"} <= EMPTIED


def test_only_this_versions_directory_of_a_tablespace() -> None:
    assert version_directory(15, 202209061) == b"PG_15_202209061"


@given(st.binary(max_size=30))
def test_any_name_is_read(name: bytes) -> None:
    found = relation(name)
    assert found is None or name.removeprefix(b"t").split(b"_")[0].split(b".")[0].isdigit()
