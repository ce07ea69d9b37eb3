"""`wal receive` against real servers: what it confirms is durable, whatever is killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from postgres.wal.receiving import (
    FILL,
    MIB,
    SLOT,
    Copy,
    Place,
    crash,
    dsn_of,
    new_place,
    new_timeline,
    one,
    position,
    primary,
    receive,
    run,
    writing,
    written,
)
from postgres.wal.room import WalRoom, until
from rooms import new_room, open_room
from strongroom.errors import StorageUnreachable
from strongroom.format.wal import SegmentName, lsn_text, parse_lsn
from strongroom.operations.back_up import back_up
from strongroom.operations.can_restore import answer
from strongroom.operations.points import all_points, look
from strongroom.operations.recovering import Opening, opened
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.physical.stream import StreamSource
from strongroom.postgres.server import Conninfo
from strongroom.postgres.wal.copies import CopiedWal
from strongroom.postgres.wal.slots import ask_slot
from strongroom.progress import Silent
from strongroom.repository.wal import WalStore
from strongroom.rules.recovery import Target
from strongroom.storage.base import Buffer
from strongroom.storage.local import LocalStorage
from strongroom.storage.memory import MemoryStorage

CONFIRMS = ["spool", pytest.param("repository", marks=pytest.mark.sweep)]
OTHERS = [pytest.param(15, marks=pytest.mark.sweep), 16, pytest.param(18, marks=pytest.mark.sweep)]


@pytest.fixture
def place() -> Iterator[Place]:
    with new_place() as made:
        yield made
        if made.told.exists():
            print(made.told.read_text())  # shown where a test fails


# -- what is confirmed -------------------------------------------------------------------------


@pytest.mark.parametrize("confirm", CONFIRMS)
@pytest.mark.parametrize("major", OTHERS)
def test_trap_34_a_commit_that_was_confirmed_is_there(
    place: Place, major: int, confirm: str
) -> None:
    """Synchronous replication: server and receiver are killed, and the server's disk is lost."""
    drawn = random.Random(f"{major} {confirm}")
    with primary(major, synchronous_standby_names=SLOT) as server:
        receiver = place.start(server, confirm=confirm)
        with writing(server) as confirmed:
            for _ in range(2):
                before = len(confirmed)
                until(lambda before=before: len(confirmed) > before + 3)  # type: ignore[misc]
                time.sleep(drawn.uniform(0, 0.2))
                receiver.kill()
                receiver = place.start(server, confirm=confirm)
            before = len(confirmed)
            until(lambda: len(confirmed) > before + 3)
            time.sleep(drawn.uniform(0, 0.2))
            if drawn.random() < 0.5:
                crash(server)
                receiver.kill()
            else:
                receiver.kill()
                crash(server)
        if confirm == "repository":
            shutil.rmtree(place.spool)
        else:
            place.drain(server)
    assert set(confirmed) <= place.transactions()
    assert len(confirmed) > 8


def test_trap_34_what_nobody_applies_is_not_waited_for(place: Place) -> None:
    with primary(synchronous_standby_names=SLOT, synchronous_commit="remote_apply") as server:
        place.finish(server, stop_at=1, status=4)
        assert "remote_apply" in place.events("error")[0]["text"]
        run(
            server, "SET synchronous_commit = local", "ALTER SYSTEM RESET synchronous_standby_names"
        )


def test_trap_34_only_what_is_synced_is_called_durable(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the sync of the spool does not return, no commit does."""
    told, asked, go, done = list[str](), threading.Event(), threading.Event(), threading.Event()
    synced = os.fdatasync

    def slow(file: int) -> None:
        go.wait(60)
        synced(file)

    with primary(synchronous_standby_names=SLOT) as server:
        words = (
            place.store(),
            place.spool,
            dsn_of(server),
            {},
            lambda kind, *_, **__: told.append(kind),
        )
        thread = threading.Thread(target=receive, args=(*words, asked), daemon=True)
        monkeypatch.setattr(os, "fdatasync", slow)
        thread.start()
        until(lambda: "connected" in told)

        def commit() -> None:
            run(server, "INSERT INTO t VALUES (1)")
            done.set()

        threading.Thread(target=commit, daemon=True).start()
        assert not done.wait(1.5)
        go.set()
        assert done.wait(60)
        asked.set()
        thread.join(60)


@pytest.mark.parametrize("confirm", CONFIRMS)
def test_trap_35_a_server_that_shuts_down_does_not_wait(place: Place, confirm: str) -> None:
    """It waits until the shutdown's own record, in the middle of a segment, is confirmed."""
    with primary() as server:
        receiver = place.start(server, confirm=confirm, every=60.0)
        run(server, FILL)
        server.stop()
        said = Path(server.log_path).read_text()
        assert "database system is shut down" in said
        server.start()
        run(server, FILL, "SELECT pg_switch_wal()", FILL)
        until(lambda: len(place.events("connected")) == 2)
        assert receiver.stop() == 0
        place.finish(server)
        place.assert_is(server)


# -- no hole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("major", OTHERS)
def test_trap_36_killed_again_and_again_there_is_no_hole(place: Place, major: int) -> None:
    drawn = random.Random(major)
    with primary(major) as server:
        with writing(server, pause=0.01):
            for _ in range(6):
                receiver = place.start(server)
                time.sleep(drawn.uniform(0, 0.4))
                receiver.kill()
        run(server, "SELECT pg_switch_wal()", FILL)
        place.finish(server)
        assert place.assert_is(server) > 3
        (timeline,) = place.listing().timelines.values()
        numbers = [SegmentName.parse(each.name, MIB).number for each in timeline.segments]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        # Nothing that is whole is kept twice.
        assert {each.name for each in timeline.segments}.isdisjoint(
            each.name for each in timeline.begun
        )


def test_trap_36_other_log_in_the_same_place_is_refused(place: Place) -> None:
    """A copy that was started writes the same timeline; nothing of its log is taken."""
    with primary() as server:
        server.stop()
        with Copy(server) as other:
            server.start()
            run(server, "INSERT INTO t VALUES (1, 'mine')")
            place.finish(server)
            (partial,) = place.spool.rglob("*.partial")
            mine = partial.read_bytes()
            run(other, "INSERT INTO t VALUES (1, 'not mine')", FILL)
            place.finish(other, status=9)
            assert "differs at" in place.events("error")[0]["text"]
            assert partial.read_bytes() == mine
            assert place.segment(partial.stem) == mine


@pytest.mark.sweep
def test_trap_36_what_proves_nothing_is_received_again(place: Place) -> None:
    """A torn end of the spool, as a crash of the machine may leave it."""
    with primary() as server:
        run(server, FILL)
        place.finish(server)
        (partial,) = place.spool.rglob("*.partial")
        size = partial.stat().st_size
        with partial.open("r+b") as file:
            file.seek(size - 200)
            file.write(bytes(100))
            file.seek(size)
            file.write(b"behind the end" * 1000)
        run(server, FILL, "SELECT pg_switch_wal()", FILL)
        place.finish(server)
        place.assert_is(server)


def test_trap_36_log_that_is_lost_is_on_record(place: Place) -> None:
    """The slot was removed while nobody received: what the server removed then is a gap."""
    with primary(wal_keep_size="0", max_wal_size="2MB", min_wal_size="2MB") as server:
        run(server, FILL, "SELECT pg_switch_wal()", FILL)
        place.finish(server)
        end = position(server)
        run(server, f"SELECT pg_drop_replication_slot('{SLOT}')")
        for _ in range(4):
            run(server, FILL, "SELECT pg_switch_wal()")
        run(server, "CHECKPOINT")
        place.finish(server)
        (gap,) = place.listing().timelines[1].gaps
        assert gap.start <= end < gap.end
        assert "removed" in gap.reason
        assert place.events("gap")
        run(server, FILL, "SELECT pg_switch_wal()")
        place.finish(server)
        names = [each.name for each in place.listing().timelines[1].segments]
        assert SegmentName.holding(1, gap.end, MIB).__str__() in names
        assert len(place.events("gap")) == 1


def test_trap_37_a_new_slot_begins_with_its_segment(place: Place) -> None:
    """And what is between it and what the repository holds already is received first."""
    with primary() as server:
        run(server, "SELECT pg_switch_wal()", FILL, "CHECKPOINT", FILL)
        run(server, f"SELECT pg_create_physical_replication_slot('{SLOT}', true)")
        begun = parse_lsn(one(server, "SELECT restart_lsn::text FROM pg_replication_slots"))
        assert begun % MIB
        place.finish(server)
        assert place.events("connected")[0]["position"] == lsn_text(begun // MIB * MIB)
        shutil.rmtree(place.spool)
        run(server, "SELECT pg_switch_wal()", FILL, f"SELECT pg_drop_replication_slot('{SLOT}')")
        run(server, "SELECT pg_switch_wal()", FILL, "SELECT pg_switch_wal()", FILL)
        place.finish(server)
        place.assert_is(server)
        assert place.listing().timelines[1].gaps == []


# -- timelines ---------------------------------------------------------------------------------


def test_trap_38_every_history_is_fetched_and_timelines_are_followed(place: Place) -> None:
    """Two timelines pass while nobody receives; the log goes on through both."""
    with primary() as server:
        run(server, FILL, "SELECT pg_switch_wal()", FILL)
        place.finish(server)
        run(server, FILL)
        for _ in range(2):
            new_timeline(server)
            run(server, FILL, "SELECT pg_switch_wal()", FILL)
        place.finish(server)
        place.assert_is(server)
        timelines = place.listing().timelines
        assert sorted(timelines) == [1, 2, 3]
        assert [fork.timeline for fork in timelines[3].history or ()] == [1, 2]
        assert [fork.timeline for fork in timelines[2].history or ()] == [1]
        left = (timelines[3].history or ())[0].lsn
        (last,) = timelines[1].begun
        assert SegmentName.parse(last.name, MIB).start + last.end == left
        assert [each["timeline"] for each in place.events("timeline")] == [2, 3]


def standby_of(server: EmbeddedServer) -> Copy:
    """A standby that streams from a server, to be started."""
    server.stop()
    standby = Copy(server, "standby.signal", primary_conninfo=server.dsn)
    server.start()
    return standby


@pytest.mark.sweep
def test_a_standby_is_promoted_while_it_is_received_from(place: Place) -> None:
    """In the stream itself; then the old primary, which still streams, is refused (trap 39)."""
    with primary() as server:
        run(server, FILL)
        with standby_of(server) as standby:
            receiver = place.start(standby, server)
            run(server, FILL)
            end = position(server)
            until(lambda: parse_lsn(one(standby, "SELECT pg_last_wal_replay_lsn()::text")) >= end)
            # Of several hosts the one that takes writes was found: it stops, and the other follows.
            assert place.events("connected")[0]["timeline"] == 1
            server.stop()
            assert one(standby, "SELECT pg_promote(true, 30)")
            run(standby, FILL, "SELECT pg_switch_wal()", FILL)
            until(lambda: len(place.events("connected")) == 2)
            assert place.events("connected")[1]["timeline"] == 2
            assert receiver.stop() == 0
            place.finish(standby)
            place.assert_is(standby)
            assert 2 in place.listing().timelines


def test_a_standby_is_followed_through_its_promotion(place: Place) -> None:
    with primary() as server:
        run(server, FILL)
        with standby_of(server) as standby:
            receiver = place.start(standby)
            run(server, FILL)
            assert one(standby, "SELECT pg_promote(true, 30)")
            run(standby, FILL, "SELECT pg_switch_wal()", FILL)
            until(lambda: len(place.events("timeline")) == 1)
            assert len(place.events("connected")) == 1  # the same connection went on
            assert receiver.stop() == 0
            place.finish(standby)
            place.assert_is(standby)


def test_trap_39_an_old_primary_is_refused(place: Place) -> None:
    with primary() as server:
        run(server, FILL)
        server.stop()
        with Copy(server, "recovery.signal") as other:
            until(lambda: one(other, "SELECT NOT pg_is_in_recovery()"))
            run(other, FILL)
            place.finish(other)
        server.start()
        run(server, FILL)
        place.finish(server, status=4)
        assert "timeline 2, which went another way" in place.events("error")[0]["text"]
        place.finish(server, accept_timeline=True)
        until(lambda: 1 in place.listing().timelines)


def test_another_system_is_refused(place: Place) -> None:
    with primary() as server:
        place.finish(server)
    with primary() as other:
        place.finish(other, stop_at=1, status=4)
        assert "this server is system" in place.events("error")[0]["text"]


# -- slots -------------------------------------------------------------------------------------


def test_trap_40_a_slot_that_nobody_reads_is_told_of(place: Place) -> None:
    with primary(wal_keep_size="0", max_slot_wal_keep_size="24MB") as server:
        conninfo = Conninfo.parse(server.dsn)
        assert ask_slot(conninfo, SLOT) is None
        receiver = place.start(server)
        slot = ask_slot(conninfo, SLOT)
        assert slot is not None
        assert slot.active
        assert slot.trouble is None
        assert receiver.stop() == 0
        for _ in range(18):
            run(server, "SELECT pg_switch_wal()", "INSERT INTO t VALUES (1)")
        slot = ask_slot(conninfo, SLOT)
        assert slot is not None
        assert "nobody reads it" in str(slot.trouble)
        assert "24.0 MiB (max_slot_wal_keep_size)" in str(slot.trouble)
        for _ in range(18):
            run(server, "SELECT pg_switch_wal()", "INSERT INTO t VALUES (1)")
        run(server, "CHECKPOINT")
        slot = ask_slot(conninfo, SLOT)
        assert slot is not None
        assert slot.lost
        place.finish(server, status=4)
        (error,) = place.events("error")
        assert "is lost" in error["text"]
        assert "--drop-slot" in error["do"]


# -- the repository is away --------------------------------------------------------------------


class Away(MemoryStorage):
    """A storage that can be away."""

    away = False

    def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
        if self.away:
            raise StorageUnreachable("The storage is away.")
        super().put(name, data, if_absent=if_absent)


@pytest.mark.sweep
def test_a_repository_that_is_away_delays_no_commit_and_loses_nothing(tmp_path: Path) -> None:
    storage, told, asked = Away(), list[tuple[str, str]](), threading.Event()
    store = WalStore(new_room(storage))

    def tell(kind: str, text: str, **_: Any) -> None:
        told.append((kind, text))

    def kinds() -> list[str]:
        return [kind for kind, _ in told]

    with primary(synchronous_standby_names=SLOT) as server:
        wanted = {"limit": 4 * MIB, "every": 0.2}
        spool = tmp_path / "spool"
        words = (store, spool, dsn_of(server), wanted, tell, asked)
        thread = threading.Thread(target=receive, args=words, daemon=True)
        thread.start()
        until(lambda: "connected" in kinds())
        run(server, FILL)
        storage.away = True
        run(server, FILL, "SELECT pg_switch_wal()", FILL)  # each commit is confirmed by the spool
        until(lambda: "away" in kinds())
        with writing(server) as confirmed:
            until(lambda: "full" in kinds())
            count = len(confirmed)
            time.sleep(1.0)
            assert len(confirmed) <= count + 12  # what is not read is not confirmed
            storage.away = False
            until(lambda: len(confirmed) > count + 20)
        end = position(server)
        asked.set()
        thread.join(60)
        assert "back" in kinds()
        (system,) = store.systems("db")
        (timeline,) = store.listing(system).timelines.values()
        assert timeline.gaps == []
        assert timeline.begun[-1].facts is not None
        assert timeline.begun[-1].facts.start + timeline.begun[-1].end >= end
        for each in timeline.segments:
            if each.name in written(server):
                mine = Path(server.data_directory, "pg_wal", each.name).read_bytes()
                assert store.get(system, each.name) == mine
        # One whole segment stays, for what it leaves to the next, and the unfinished one.
        assert len(os.listdir(spool / f"{system:016x}")) == 2


# -- recovered from ----------------------------------------------------------------------------


def test_trap_43_a_segment_that_was_received_unfinished_is_delivered_full(place: Place) -> None:
    """A backup, commits that were confirmed, the loss of server and receiver: all of them are back."""
    storage = LocalStorage(str(place.root / "repository"))
    with primary(synchronous_standby_names=SLOT) as server:
        receiver = place.start(server)
        repository = open_room(storage, "backup")
        source = StreamSource("db", server.dsn, archive=CopiedWal(WalStore(repository), "db"))
        back_up(repository, source, progress=Silent())
        for _ in range(3):
            run(server, FILL)
        run(server, "INSERT INTO t VALUES (-7, 'the last')")
        receiver.kill()
        crash(server)
        place.drain(server)
    repository = open_room(storage, "restore")
    cluster = look(repository, "db")
    (window,) = all_points(cluster).windows
    found = answer(cluster, Target("latest"))
    assert found.verdict.unfinished
    # As far as the last commit, and to a time in the unfinished segment.
    last = window.last_target
    assert last is not None
    assert answer(cluster, Target("time", time=last)).verdict.unfinished
    assert not answer(cluster, Target("time", time=last + timedelta(seconds=1))).verdict.yes
    with (
        opened(
            repository,
            cluster,
            found.verdict,
            how=Opening(fuse=False),
            jobs=2,
            progress=Silent(),
        ) as sandbox,
        sandbox.connect() as connection,
    ):
        row = connection.execute("SELECT count(*), min(a) FROM t").fetchone()
    assert row == (1201, -7)


# -- the command -------------------------------------------------------------------------------


def test_the_command(room: WalRoom) -> None:
    with primary() as server:
        shutil.chown(server.socket_directory, room.account.uid, room.account.gid)
        room.point_at(server)
        process = room.receiver("--partial-every", "0.5")
        run(server, FILL, "SELECT pg_switch_wal()", FILL)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, room.said
        end = lsn_text(position(server))
        room.run(*room.receive_words("--stop-at", end))
        (name,) = written(server)[-1:]
        room.fetch(server.data_directory, name, "fetched")
        mine = Path(server.data_directory, "pg_wal", name).read_bytes()
        fetched = Path(server.data_directory, "fetched")
        assert fetched.read_bytes() == mine
        last = one(server, "SELECT pg_walfile_name(pg_current_wal_lsn())")
        room.fetch(server.data_directory, last, "fetched", status=1)
        room.fetch(server.data_directory, last, "fetched", "--partial")
        mine = Path(server.data_directory, "pg_wal", last).read_bytes()
        size = parse_lsn(end) % MIB
        assert fetched.read_bytes()[:size] == mine[:size]
        assert fetched.stat().st_size == MIB
        said = room.run("wal", "status", "db", "--config", str(room.config))[1].decode()
        assert f"received up to {end}" in said
        assert f"the replication slot {SLOT} is not read by anybody now" in said
        room.run(*room.receive_words("--drop-slot"))
        assert one(server, "SELECT count(*) FROM pg_replication_slots") == 0
        assert "no replication slot" in room.run(*room.receive_words(), status=4)[2]
    room.run("check", "--read-data", "--config", str(room.config))
