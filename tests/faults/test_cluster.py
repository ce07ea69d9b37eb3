"""A cluster by commands alone, and what happens to it: kills, lost log, full disks, failovers."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from postgres.cluster_room import SETTINGS, ClusterRoom, cluster_room
from postgres.wal.room import until
from strongroom.errors import DatabaseUnreachable
from strongroom.postgres.embedded import EmbeddedServer

pytestmark = pytest.mark.xdist_group("cluster")  # one worker: one cluster for all of it
sweep = pytest.mark.sweep


@dataclass
class Life:
    """Rows 1 to 9 of a table, each in a segment of its own, a backup before and one after the 6th."""

    cluster: ClusterRoom
    rows: list[dict[str, Any]] = field(default_factory=list)

    def step(self, number: int) -> None:
        with self.cluster.server.connect() as connection:
            row = connection.execute(
                "INSERT INTO t VALUES (%s) RETURNING pg_current_xact_id()::text", (number,)
            ).fetchone()
            end = connection.execute(
                "SELECT pg_current_wal_insert_lsn()::text, clock_timestamp()"
            ).fetchone()
        assert row
        assert end
        name = self.cluster.archived()
        self.rows.append({"xid": row[0], "lsn": end[0], "at": end[1].isoformat(), "segment": name})

    def restore(self, name: str, *words: str, status: int = 0) -> Path:
        target = self.cluster.folder(name)
        shutil.rmtree(target, ignore_errors=True)
        self.cluster.run("restore", "db", "--to", str(target), *words, status=status)
        return target

    def shown(self, target: Path) -> list[int]:
        with self.cluster.opened(target) as restored, restored.connect() as connection:
            return [n for (n,) in connection.execute("SELECT n FROM t ORDER BY n")]


@pytest.fixture(scope="module")
def life() -> Iterator[Life]:
    for cluster in cluster_room(16, "--wal-segsize=1"):
        cluster.sql(
            "CREATE TABLE t (n int)",
            "CREATE TABLE bulk AS SELECT sha512(n::text::bytea) || sha512((-n)::text::bytea) AS b"
            " FROM generate_series(1, 300000) n",
            "CHECKPOINT",
        )
        cluster.archived()
        _killed_at_first(cluster)
        life = Life(cluster)
        cluster.run("backup", "db")
        for number in range(1, 7):
            life.step(number)
        cluster.sql("SELECT pg_create_restore_point('a ''point'' 100%')")
        cluster.run("backup", "db")
        for number in range(7, 10):
            life.step(number)
        yield life


# -- our own process is killed -----------------------------------------------------------------


def _killed_at_first(cluster: ClusterRoom) -> None:
    """The very first backup is killed in the middle: local and streamed. Both were never there."""
    for source in ("far", "db"):
        process = cluster.room.start(
            "backup", source, "--config", str(cluster.room.config), env=cluster.environ
        )
        packs = cluster.room.repository / "packs"
        before = _count(packs)
        until(lambda packs=packs, before=before: _count(packs) > before)  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert cluster.snapshots() == []
        slots = "SELECT count(*) FROM pg_replication_slots"
        until(lambda slots=slots: cluster.sql(slots) == (0,))  # type: ignore[misc]


def _count(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def test_a_backup_after_a_kill_uses_what_was_put(life: Life) -> None:
    first, *_ = sorted(life.cluster.snapshots(), key=lambda one: one["time"])
    assert first["new_size"] < first["size"]
    assert "no damage found" in life.cluster.run("check")


def test_a_streamed_backup_by_command(life: Life) -> None:
    done = life.cluster.json("backup", "far")["backups"][0]
    assert done["problems"] == []
    assert done["snapshot"]["new_size"] < done["snapshot"]["size"]  # what the killed one put
    assert life.cluster.json("can-restore", "far", "--immediate")["yes"]
    target = life.cluster.folder("streamed")
    life.cluster.run("restore", "far", "--immediate", "--to", str(target))
    assert life.shown(target) == list(range(1, 10))


# -- every kind of point -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(one, marks=sweep)  # the ledger's are recovered in `make test`
        for one in ("lsn", "xid", "name", "immediate", "timeline", "at")
    ],
)
def test_every_kind_of_point_by_command(life: Life, kind: str) -> None:
    third = life.rows[2]
    words, shown = {
        "xid": (("--xid", third["xid"], "--exclusive"), 2),
        "lsn": (("--lsn", third["lsn"], "--exclusive"), 3),
        "at": (("--at", third["at"]), 3),
        "name": (("--name", "a 'point' 100%"), 6),
        "immediate": (("--immediate",), 6),
        "timeline": (("--timeline", "1"), 9),
    }[kind]
    assert life.cluster.json("can-restore", "db", *words)["yes"]
    assert life.shown(life.restore(kind, *words)) == list(range(1, shown + 1))


def test_to_be_looked_at_or_stopped_at_the_point(life: Life) -> None:
    xid = life.rows[3]["xid"]
    target = life.restore("paused", "--xid", xid, "--action", "pause")
    with life.cluster.opened(target, recovers=False) as server, server.connect() as connection:
        state = "SELECT pg_get_wal_replay_pause_state()"
        until(lambda: connection.execute(state).fetchone() == ("paused",))
        assert connection.execute("SELECT max(n) FROM t").fetchone() == (4,)
        connection.execute("SELECT pg_wal_replay_resume()")
        until(lambda: connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,))


@sweep
def test_stopped_at_the_point(life: Life) -> None:
    target = life.restore("stopped", "--xid", life.rows[3]["xid"], "--action", "shutdown")
    with (
        pytest.raises(DatabaseUnreachable, match="shutdown at recovery target"),
        life.cluster.opened(target),
    ):
        raise AssertionError("it is open")


# -- a standby ---------------------------------------------------------------------------------


def test_a_standby_streams_and_follows_a_failover(life: Life) -> None:
    cluster = life.cluster
    server = cluster.server
    primary = f"host={server.socket_directory} port={server.port} user=postgres"
    target = life.restore("standby", "--as", "standby", "--primary", primary)
    settings = (target / "postgresql.auto.conf").read_text()
    assert "recovery_target_timeline = 'latest'" in settings
    refused = cluster.run(
        "restore", "db", "--to", "/nowhere", "--as", "standby", "--primary",
        primary + " password=secret", status=2,
    )  # fmt: skip
    assert "secret" not in refused
    passfile = cluster.root / "pgpass"
    passfile.write_text(f"*:*:*:*:{cluster.server._password}\n")
    passfile.chmod(0o600)
    os.chown(passfile, cluster.room.account.uid, cluster.room.account.gid)
    more = {"primary_conninfo": f"{primary} passfile={passfile}"}
    with cluster.opened(target, recovers=False, **more) as standby:
        cluster.sql("INSERT INTO t VALUES (100)")  # in no segment that is archived
        with standby.connect() as connection:
            last = "SELECT max(n), pg_is_in_recovery() FROM t"
            until(lambda: connection.execute(last).fetchone() == (100, True))
            state = cluster.sql("SELECT state FROM pg_stat_replication")
            assert state == ("streaming",)
    cluster.sql("DELETE FROM t WHERE n = 100")


# -- log that is lost --------------------------------------------------------------------------

DAMAGES = {
    "lost": lambda data: None,
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "a bit": lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:],
    "another's": None,
}


@pytest.mark.parametrize(
    "damage",
    [
        "a bit",
        *(pytest.param(one, marks=sweep) for one in ("lost", "cut", "empty", "zeros", "another's")),
    ],
)
def test_p11_to_p16_a_segment_that_is_not_there_or_damaged(life: Life, damage: str) -> None:
    """What lies beyond it is NO, with the gap and what is nearest; nothing is written; before it and
    after the next backup everything can be recovered."""
    cluster, lost = life.cluster, life.rows[3]["segment"]
    path = cluster.object_of(lost)
    data = path.read_bytes()
    harm = DAMAGES[damage]
    made = cluster.object_of(life.rows[4]["segment"]).read_bytes() if harm is None else harm(data)
    path.chmod(0o600)
    try:
        path.unlink() if made is None else path.write_bytes(made)
        assert cluster.json("can-restore", "db", "--at", life.rows[7]["at"])["yes"]
        no = cluster.json("can-restore", "db", "--at", life.rows[4]["at"], status=5)
        assert no["gap"]["first"] == no["gap"]["last"] == lost
        assert ("nobody wrote down why" if made is None else "damaged") in no["gap"]["reason"]
        assert life.rows[1]["at"] < no["before"] < life.rows[3]["at"]
        assert life.rows[5]["at"] < no["after"] < life.rows[6]["at"]
        target = life.restore("none", "--at", life.rows[4]["at"], status=5)
        assert not target.exists()
        if damage != "a bit":  # which only reading the whole object shows
            windows = cluster.json("points", "db", "--gaps")
            assert [gap["first"] for gap in windows["gaps"]] == [lost]
            assert len(windows["windows"]) == 2
    finally:
        path.write_bytes(data)
        os.chown(path, cluster.room.account.uid, cluster.room.account.gid)


# -- full disks --------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(cluster: ClusterRoom, name: str, size: int) -> Iterator[Path]:
    """A tmpfs that belongs to the server's account."""
    path = cluster.folder(name)
    path.mkdir()
    if _mount(path, size):
        pytest.skip("no right to mount here")
    try:
        os.chown(path, cluster.room.account.uid, cluster.room.account.gid)
        yield path
    finally:
        _libc().umount2(os.fsencode(path), 2)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount(path: Path, size: int, flags: int = 0, *, inodes: int = 9999) -> int:
    options = f"size={size},nr_inodes={inodes},mode=700".encode()
    return int(_libc().mount(b"none", os.fsencode(path), b"tmpfs", flags, options))


_REMOUNT = 32


@sweep
def test_p57_a_target_that_is_full(life: Life) -> None:
    """Too small is refused before a byte is written; full in the middle does not start, and goes on
    where it was when there is room."""
    cluster = life.cluster
    snapshot = max(cluster.snapshots(), key=lambda one: one["time"])
    with small_disk(cluster, "small", 8 << 20) as disk:
        target = disk / "data"
        said = cluster.run("restore", "db", "--immediate", "--to", str(target), status=4)
        assert "there is room for" in said
        assert not target.exists()
        answer = cluster.json("can-restore", "db", "--immediate", "--to", str(target), status=5)
        assert not answer["yes"]
        assert answer["space"]["free"] < answer["space"]["needed"]
        assert "room" in " ".join(answer["reasons"])
        _mount(disk, 2 * snapshot["size"], _REMOUNT, inodes=300)
        said = cluster.run("restore", "db", "--immediate", "--to", str(target), status=7)
        assert "No space left" in said
        assert not (target / "global/pg_control").exists()
        _mount(disk, 2 * snapshot["size"], _REMOUNT, inodes=9999)
        words = ("restore", "db", "--immediate", "--to", str(target))
        cluster.run(*words, status=4)
        cluster.run(*words, "--delta")
        assert life.shown(target)


@sweep
def test_a_repository_that_is_full(life: Life) -> None:
    """The backup ends in a clear error, no snapshot is there, and the next one goes on."""
    cluster = life.cluster
    with small_disk(cluster, "full", 4 << 20) as disk:
        where = ("--repository", str(disk / "repository"))
        cluster.run("init", *where, "--kit", str(cluster.folder("kit of the full one")))
        said = cluster.run("backup", "db", *where, status=7)
        assert "storage-full" in said
        assert cluster.json("list", *where)["snapshots"] == []
        _mount(disk, 300 << 20, _REMOUNT)
        cluster.run("backup", "db", *where)
        assert len(cluster.json("list", *where)["snapshots"]) == 1
        assert cluster.json("can-restore", "db", "--immediate", *where)["yes"]


# -- another system under the same name --------------------------------------------------------


@sweep
def test_a_source_that_becomes_another_system(life: Life) -> None:
    """After pg_upgrade, or an initdb: refused until somebody says so; the old one stays in reach."""
    cluster = life.cluster
    mine = cluster.room.config.read_text()
    cluster.run("backup", "far")
    with EmbeddedServer(cluster.server.installation, durable=False, settings=SETTINGS) as other:
        other_config = mine.replace(cluster.server.socket_directory, other.socket_directory)
        with other.connect() as connection:
            connection.execute(f"ALTER ROLE postgres PASSWORD '{cluster.server._password}'")
        cluster.room.config.write_text(other_config)
        try:
            for source in ("db", "far"):
                assert f"strongroom backup {source} --accept-system" in cluster.run(
                    "backup", source, status=4
                )
            cluster.run("backup", "far", "--accept-system")
            cluster.run("backup", "far")
            points = cluster.json("points", "far")
            assert "was another system too" in points["notes"][0]
            assert cluster.json("can-restore", "far", "--immediate")["yes"]
        finally:
            cluster.room.config.write_text(mine)
    before = min(
        (one for one in cluster.snapshots() if one["source"] == "far"), key=lambda one: one["time"]
    )["id"]
    assert cluster.json("can-restore", "far", "--backup", before)["backup"] == before


@sweep
def test_p58_a_restore_that_is_killed_goes_on(life: Life) -> None:
    cluster, target = life.cluster, life.cluster.folder("killed")
    words = ("restore", "db", "--to", str(target), "--config", str(cluster.room.config))
    process = cluster.room.start(*words, env=cluster.environ)
    until((target / "strongroom.restoring").exists)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (target / "global/pg_control").exists()
    assert "did not come to its end" in cluster.run(*words[:4], status=4)
    cluster.run(*words[:4], "--delta")
    assert life.shown(target) == list(range(1, 10))
