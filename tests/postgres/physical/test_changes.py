"""What is taken as unchanged is unchanged: every rule of the change cache, and the whole of it."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

import rooms
from postgres.physical.tools import At, Room, content, run
from strongroom.kernel import KEY_SIZE
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.physical import changes, local
from strongroom.postgres.physical.changes import (
    Context,
    Kept,
    LastBackup,
    ThisBackup,
    clocks,
    doubt,
    file_system_of,
)
from strongroom.postgres.physical.layout import relation_at
from strongroom.postgres.physical.pages import OddPage

pytestmark = pytest.mark.xdist_group("physical")  # one worker: its clusters are started once

THEN = Context(7, 3, "a boot", 10**18, 10**18 + 5, 1000, 8192, 131072)


@pytest.mark.parametrize(
    ("now", "why"),
    [
        ({"wall": THEN.wall + 1}, ""),
        ({"boot": "another"}, "started anew"),  # a crash keeps bytes and loses times
        ({"boot": ""}, "started anew"),
        ({"wall": THEN.wall - 1}, "clock"),
        ({"ahead": THEN.ahead - 2_000_000_000}, "clock"),  # set back, and past the last run again
        ({"ahead": THEN.ahead + 2_000_000_000}, ""),
        ({"timeline": 4}, "timeline"),
        ({"system_id": 8}, "timeline"),
        ({"block_size": 4096}, "laid out"),
        ({"segment_blocks": 1}, "laid out"),
    ],
)
def test_trap_15_when_nothing_is_believed(now: dict[str, object], why: str) -> None:
    said = doubt(THEN, replace(THEN, **now), start_lsn=1000)  # type: ignore[arg-type]
    assert bool(said) == bool(why)
    assert why in said


def test_trap_15_a_server_with_less_log_has_another_history() -> None:
    assert "less log" in doubt(THEN, THEN, start_lsn=999)


def test_the_clocks_are_told() -> None:
    boot, ahead, wall = clocks()
    assert len(boot) == 36
    assert 0 < ahead < wall


MOUNTS = b"""22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:30 / /srv rw shared:1 - nfs4 host:/srv rw
31 22 0:31 / /srv/a\\040b rw - xfs /dev/sdb rw
32 22 0:32 / /srv/a\\040b rw - fuse.sshfs x rw
33 22 0:33 / /srvx rw master:2 - btrfs /dev/sdc rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (b"/var/lib", "ext4"),
        (b"/srv", "nfs4"),
        (b"/srv/pg", "nfs4"),
        (b"/srvx/pg", "btrfs"),
        (b"/srv/a b/pg", "fuse.sshfs"),  # what is mounted last lies on top
    ],
)
def test_only_file_systems_of_this_machine_are_believed(path: bytes, kind: str) -> None:
    assert file_system_of(path, MOUNTS) == kind


def kept(number: int = 1) -> Kept:
    key = bytes([number]) * KEY_SIZE
    return Kept(key, 77, b"content", b"i" * 64, (OddPage(3, 1, 2, 1 << 40),))


def test_a_cache_comes_home_and_belongs_to_one_source(tmp_path: Path) -> None:
    path, whose = os.fsencode(tmp_path / "a" / "cache"), b"w" * 32
    new = ThisBackup(path, whose)
    for number in range(300):
        new.add(b"base/5/%d" % number, kept(number % 256))
    new.finish(THEN)
    assert LastBackup(path, whose).context is None  # not in its place yet
    new.replace()
    last = LastBackup(path, whose)
    assert last.context == THEN
    assert last.find(b"base/5/299") == kept(43)
    assert last.key(b"base/5/0") == kept(0).key
    assert last.find(b"base/5/300") is None
    assert LastBackup(path, b"x" * 32).context is None
    os.chmod(path, 0o644)
    assert LastBackup(path, whose).context is None


def test_a_cache_that_is_damaged_is_none(tmp_path: Path) -> None:
    path, whose = os.fsencode(tmp_path / "cache"), b"w" * 32
    new = ThisBackup(path, whose)
    new.add(b"base/5/1", kept())
    new.finish(THEN)
    new.replace()
    data = Path(os.fsdecode(path)).read_bytes()
    for at in range(0, len(data), 3):
        Path(os.fsdecode(path)).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        last = LastBackup(path, whose)
        assert last.context is None or last.find(b"base/5/1") in (None, kept())
    for end in range(0, len(data), 7):
        Path(os.fsdecode(path)).write_bytes(data[:end])
        last = LastBackup(path, whose)
        assert last.context is None or last.find(b"base/5/1") is None


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    new = ThisBackup(os.fsencode(tmp_path / "file" / "cache"), b"w" * 32)
    new.add(b"base/5/1", kept())
    new.finish(THEN)
    new.replace()
    assert "change cache" in new.fault


def test_a_second_run_at_the_same_time_keeps_none(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "cache")
    first, second = ThisBackup(path, b"w" * 32), ThisBackup(path, b"w" * 32)
    assert not first.fault
    assert second.fault
    first.discard()
    assert os.listdir(tmp_path) == []


# -- of a real cluster -------------------------------------------------------------------------


def same_as_on_disk(server: EmbeddedServer, room: Room, report: object) -> int:
    """Every relation's file in the snapshot is the one on disk, byte for byte; how many."""
    count = 0
    for path, data in rooms.read(room.reader(report)).items():  # type: ignore[arg-type]
        below = path.removeprefix(b"data/")
        if relation_at(below) is not None:
            with open(os.path.join(server.data_directory, os.fsdecode(below)), "rb") as file:
                assert file.read() == data, below
            count += 1
    return count


def test_traps_14_16_what_has_changed_is_read(tables: EmbeddedServer, room: Room) -> None:
    time.sleep(2.2)
    run(tables, "CREATE TABLE quiet AS SELECT n FROM generate_series(1, 5000) n")
    run(tables, "VACUUM quiet", "CHECKPOINT")
    where = os.path.join(
        tables.data_directory, run(tables, "SELECT pg_relation_filepath('quiet')")[0]
    )
    # Trap 14: the table is written within a tick of the backup's beginning.
    _, facts = room.take(progress=At("waiting for a checkpoint", lambda: os.utime(where)))
    assert "unchanged" not in facts.notes
    (last,) = room.cache.iterdir()
    assert last.name.endswith(".physical")
    fork = LastBackup(os.fsencode(last), changes.identity("room", "db", source_root(tables)))
    assert fork.key(os.fsencode(os.path.relpath(where, tables.data_directory))) is None
    assert fork.key(b"global/1262") is not None
    # Trap 16: no other fork than the main one is ever in it.
    assert not [path for path in fork._rows if b"_" in path]
    fork.close()
    report, facts = room.take()
    assert facts.notes["unchanged"] > 200
    assert same_as_on_disk(tables, room, report) > 400

    time.sleep(2.2)
    room.take()
    _, facts = room.take()
    assert facts.notes["unchanged"] > 200
    unchanged = facts.notes["unchanged"]
    run(tables, "UPDATE quiet SET n = n + 1 WHERE n = 7", "CHECKPOINT")
    report, facts = room.take()
    assert unchanged - 30 < facts.notes["unchanged"] < unchanged
    assert same_as_on_disk(tables, room, report) > 400

    # A page changed in place, the time of change put back: what cannot be put back tells.
    facts_before = os.stat(where)
    with open(where, "r+b") as file:
        page = bytearray(file.read(8192))
        page[8000] ^= 1
        file.seek(0)
        file.write(page)
    os.utime(where, ns=(facts_before.st_atime_ns, facts_before.st_mtime_ns))
    report, facts = room.take()
    assert len(facts.bad_pages) == 1
    assert content(room.reader(report), facts.bad_pages[0].path)[8000] == page[8000]
    run(tables, "DROP TABLE quiet")


def source_root(server: EmbeddedServer) -> bytes:
    return os.path.realpath(os.fsencode(server.data_directory))


def test_trap_14_a_file_that_changes_while_it_is_read_is_read_again(
    tables: EmbeddedServer, room: Room
) -> None:
    run(tables, "CREATE TABLE busy AS SELECT n, 0 AS m FROM generate_series(1, 50) n", "CHECKPOINT")
    time.sleep(2.2)

    def change() -> None:
        run(tables, "UPDATE busy SET m = m + 1", "CHECKPOINT")

    report, _ = room.take(progress=At("reading pg_control", change))
    report, _ = room.take()
    assert same_as_on_disk(tables, room, report) > 400
    run(tables, "DROP TABLE busy")


def test_what_the_repository_lost_is_read_again(tables: EmbeddedServer, room: Room) -> None:
    time.sleep(2.2)
    room.take()
    other = Room(tables, room.cache.parent)  # the same cache, an empty repository
    report, facts = other.take()
    assert "unchanged" not in facts.notes
    assert same_as_on_disk(tables, other, report) > 400


def test_a_backup_that_is_not_committed_leaves_the_cache_as_it_was(
    tables: EmbeddedServer, room: Room
) -> None:
    time.sleep(2.2)
    room.take()
    (cache,) = room.cache.iterdir()
    before = cache.read_bytes()

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        room.take(progress=At("ending the backup", fail))
    assert list(room.cache.iterdir()) == [cache]
    assert cache.read_bytes() == before


def test_a_backup_that_was_interrupted_resumes(tables: EmbeddedServer, room: Room) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        room.take(progress=At("ending the backup", fail))
    report, facts = room.take()
    assert "unchanged" not in facts.notes
    assert report.snapshot.new_size < report.snapshot.size / 10


def test_trap_15_a_doubt_makes_the_whole_cluster_be_read(
    tables: EmbeddedServer, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    time.sleep(2.2)
    room.take()
    real = changes.clocks
    monkeypatch.setattr(local.changes, "clocks", lambda: ("another boot", *real()[1:]))
    report, facts = room.take()
    assert "unchanged" not in facts.notes
    assert "started anew" in facts.notes["all_read"]
    assert same_as_on_disk(tables, room, report) > 400


def test_trap_15_a_file_system_with_another_clock_is_not_believed(
    tables: EmbeddedServer, room: Room
) -> None:
    directory = source_root(tables)
    control = os.path.join(directory, b"global/pg_control")
    facts = os.stat(control)
    now = time.time_ns()
    for off in (-(10**10), 10**10):
        os.utime(control, ns=(now, now + off))
        assert "clock" in local._skew(directory, now, standby=False)
    os.utime(control, ns=(now, now))
    assert local._skew(directory, now, standby=False) == ""
    os.utime(control, ns=(now, now - 10**10))
    assert local._skew(directory, now, standby=True) == ""  # no checkpoint of its own
    os.utime(control, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_trap_15_a_clock_set_in_the_middle_keeps_nothing(
    tables: EmbeddedServer, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    time.sleep(2.2)
    real, calls = changes.clocks, itertools.count()

    def stepped() -> tuple[str, int, int]:
        boot, ahead, wall = real()
        return boot, ahead - 10**10 * next(calls), wall

    with monkeypatch.context() as patched:
        patched.setattr(local.changes, "clocks", stepped)
        _, facts = room.take()
    assert facts.notes["all_read"] == "the clock was set meanwhile"
    _, facts = room.take()
    assert "unchanged" not in facts.notes
