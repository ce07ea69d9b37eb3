"""`wal status`: what is archived, what is missing, what was refused, how far the server is ahead."""

from __future__ import annotations

import json
from typing import Any

from postgres.wal.conftest import Still
from postgres.wal.room import WalRoom, done, ready, until
from rooms import BIRTH, new_room
from strongroom.format.wal import SegmentName
from strongroom.format.walfile import Gap
from strongroom.operations.wal_status import Hole, holes, wal_status
from strongroom.repository.wal import WalStore
from strongroom.storage.memory import MemoryStorage

MIB = 16 << 20


def status(room: WalRoom, code: int) -> dict[str, Any]:
    words = ["wal", "status", "db", "--json", "--config", str(room.config)]
    document: dict[str, Any] = json.loads(room.run(*words, status=code)[1])
    return document


def named(*numbers: int) -> list[SegmentName]:
    return [SegmentName(1, number) for number in numbers]


def test_holes_and_the_gaps_on_record() -> None:
    def gap(first: int, last: int, reason: str) -> Gap:
        return Gap(1, first * MIB, last * MIB, reason, BIRTH)

    assert holes([], []) == []
    assert holes(named(3, 4, 5), []) == []
    assert holes(named(3, 5, 9), []) == [Hole(4 * MIB, 5 * MIB), Hole(6 * MIB, 9 * MIB)]
    assert holes(named(3, 5), [gap(4, 5, "lost")]) == [Hole(4 * MIB, 5 * MIB, "lost")]
    # One that is on record stays, also where nothing was archived on either side of it.
    assert holes(named(3), [gap(8, 9, "lost")]) == [Hole(8 * MIB, 9 * MIB, "lost")]
    assert holes(named(3, 9), [gap(5, 6, "part")]) == [Hole(4 * MIB, 9 * MIB, "part")]


def test_of_a_source_that_was_two_systems() -> None:
    room = new_room(MemoryStorage())
    store = WalStore(room)
    for system in (7, 8):
        store.bind("db", system)
        store.put(system, f"{SegmentName(1, system)}", memoryview(bytes(MIB)))
    found = wal_status(room, "db")
    assert [one.system_id for one in found] == [7, 8]
    assert [one.timelines[0].end for one in found] == [8 * MIB, 9 * MIB]
    assert not any(one.amiss for one in found)


def test_what_is_amiss(room: WalRoom, still: Still) -> None:
    room.daemon("--ahead", "0")
    assert status(room, 10)["systems"] == []  # nothing archived is amiss
    first, second, third = still.segments[:3]
    for name in (first, third):
        room.push(still.data, f"pg_wal/{name}")
    body = status(room, 10)
    (timeline,) = body["systems"][0]["timelines"]
    assert timeline["segments"] == 2
    (hole,) = timeline["holes"]
    assert hole["start"] == "0/2000000"
    assert hole["end"] == "0/3000000"
    assert "No connection" in body["server_error"]
    room.push(still.data, f"pg_wal/{second}")
    assert status(room, 0)["systems"][0]["timelines"][0]["last_commit"] is not None
    place = room.root / first
    data = bytearray(still.read(f"pg_wal/{first}"))
    data[-1] ^= 1
    place.write_bytes(data)
    room.push(still.data, str(place), status=9)
    (conflict,) = status(room, 10)["systems"][0]["timelines"][0]["conflicts"]
    assert conflict["name"] == first
    said = room.run("wal", "status", "db", "--config", str(room.config), status=10)[1].decode()
    assert f"conflict: {first}" in said


def test_against_a_server(room: WalRoom) -> None:
    room.daemon()
    with room.server(16) as server:
        secret = room.root / "secret"
        parts = dict(one.split("=", 1) for one in server.dsn.split() if "=" in one)
        secret.write_text(parts["password"])
        secret.chmod(0o600)
        import os  # noqa: PLC0415

        os.chown(secret, room.account.uid, room.account.gid)
        dsn = f"host={parts['host']} port={parts['port']} user=postgres dbname=postgres"
        text = room.config.read_text().replace(
            'dsn = "postgresql://nobody@127.0.0.1/none"',
            f'dsn = "{dsn}"\npassword = "file:{secret}"',
            1,
        )
        room.config.write_text(text)
        with server.connect() as connection:
            connection.execute("CREATE TABLE t AS SELECT 1 AS a")
            connection.execute("SELECT pg_switch_wal()")
        until(lambda: done(server) != [] and ready(server) == [])
        body = status(room, 0)
        assert body["server"]["archived"] >= 1
        assert body["server"]["last_archived"] == done(server)[-1]
        assert body["lag"] < MIB
        with server.connect() as connection:
            connection.execute("ALTER SYSTEM SET archive_command = 'false'")
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("INSERT INTO t SELECT 2")
            connection.execute("SELECT pg_switch_wal()")
            connection.execute("INSERT INTO t SELECT 2")
            until(
                lambda: (
                    connection.execute("SELECT failed_count FROM pg_stat_archiver").fetchone()
                    != (0,)
                )
            )
        body = status(room, 10)
        assert body["server"]["failing"]
        assert body["lag"] > MIB - 4096
