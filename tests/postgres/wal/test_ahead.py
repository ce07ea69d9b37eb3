"""What is done before it is asked for, without a server: order, stamps, faults, limits."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from strongroom.errors import ObjectMissing, StorageUnreachable
from strongroom.format.wal import SegmentName
from strongroom.postgres.wal import client
from strongroom.postgres.wal.ahead import FetchAhead, PushAhead
from strongroom.postgres.wal.directory import DataDirectory
from strongroom.postgres.wal.push import Pushed
from strongroom.repository.wal import Put

FIRST = 0x10


def name(number: int, timeline: int = 1) -> str:
    return str(SegmentName(timeline, number))


class Server:
    """A pg_wal with files that are marked as ready."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "pg_wal/archive_status").mkdir(parents=True)
        self.directory = DataDirectory(os.open(root, os.O_RDONLY))

    def ready(self, *names: str) -> None:
        for each in names:
            (self.root / "pg_wal" / each).write_bytes(each.encode())
            (self.root / "pg_wal/archive_status" / f"{each}.ready").touch()

    def archived(self, one: str) -> None:
        (self.root / "pg_wal/archive_status" / f"{one}.ready").unlink()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.directory.close()


class Taking:
    """Stands for `Pusher.push`: notes what it was given; `fails` raise, `held` wait for `go`."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.fails: set[str] = set()
        self.held: set[str] = set()
        self.go, self.came = threading.Event(), threading.Semaphore(0)

    def push(self, directory: DataDirectory, path: str, source: str) -> Pushed:
        del directory, source
        each = path.rsplit("/", 1)[-1]
        self.taken.append(each)
        self.came.release()
        if each in self.held:
            assert self.go.wait(30)
        if each in self.fails:
            raise StorageUnreachable(f"away: {each}")
        return Pushed(each, Put.STORED)

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self.came.acquire(timeout=30)


def test_what_is_ready_is_taken_in_the_server_s_order(server: Server) -> None:
    taking = Taking()
    ahead = PushAhead(taking.push, workers=1, window=3)
    server.ready(name(3), name(2), name(1), name(4), name(5), "00000002.history")
    ahead.push(server.directory, f"pg_wal/{name(1)}", "db")
    taking.wait(4)  # the one that was asked for, and the window
    assert taking.taken == [name(1), "00000002.history", name(2), name(3)]
    for one, then in ((name(1), "00000002.history"), ("00000002.history", name(2))):
        server.archived(one)
        ahead.push(server.directory, f"pg_wal/{then}", "db")
    taking.wait(2)
    assert taking.taken[4:] == [name(4), name(5)]  # none of them twice
    ahead.close()


def test_trap_32_success_is_told_only_of_what_is_durable(server: Server) -> None:
    """Of a file that is still under way the answer waits; that others are done says nothing."""
    taking = Taking()
    taking.held = {name(2)}
    ahead = PushAhead(taking.push, workers=2, window=3)
    server.ready(name(1), name(2), name(3))
    ahead.push(server.directory, f"pg_wal/{name(1)}", "db")
    taking.wait(3)
    told: list[Pushed] = []
    asking = threading.Thread(
        target=lambda: told.append(ahead.push(server.directory, f"pg_wal/{name(2)}", "db"))
    )
    asking.start()
    asking.join(0.2)
    assert told == []
    taking.go.set()
    asking.join(30)
    assert [one.name for one in told] == [name(2)]
    assert taking.taken.count(name(2)) == 1
    ahead.close()


def test_trap_32_a_file_that_has_changed_is_taken_again(server: Server) -> None:
    """A data directory that was restored has other files under the same names."""
    taking = Taking()
    ahead = PushAhead(taking.push, workers=1, window=3)
    server.ready(name(1), name(2))
    ahead.push(server.directory, f"pg_wal/{name(1)}", "db")
    taking.wait(2)
    (server.root / "pg_wal" / name(2)).write_bytes(b"others")
    ahead.push(server.directory, f"pg_wal/{name(2)}", "db")
    assert taking.taken.count(name(2)) == 2
    ahead.close()


def test_trap_32_a_fault_ends_the_work_ahead_until_something_goes_through(server: Server) -> None:
    taking = Taking()
    taking.fails = {name(1), name(2)}
    ahead = PushAhead(taking.push, workers=1, window=8)
    server.ready(*(name(number) for number in range(1, 7)))
    with pytest.raises(StorageUnreachable):
        ahead.push(server.directory, f"pg_wal/{name(1)}", "db")
    before = len(taking.taken)
    assert before < 6
    with pytest.raises(StorageUnreachable):
        ahead.push(server.directory, f"pg_wal/{name(1)}", "db")
    assert len(taking.taken) == before + 1  # the one that was asked for, and nothing beside it
    taking.fails = set()
    ahead.push(server.directory, f"pg_wal/{name(1)}", "db")
    ahead.push(server.directory, f"pg_wal/{name(2)}", "db")
    ahead.push(server.directory, f"pg_wal/{name(3)}", "db")
    ahead.close()


def test_two_data_directories_are_kept_apart(server: Server, tmp_path: Path) -> None:
    other = Server(tmp_path / "other")
    taking = Taking()
    ahead = PushAhead(taking.push, workers=1, window=2)
    server.ready(name(1))
    other.ready(name(1))
    for one in (server, other):
        ahead.push(one.directory, f"pg_wal/{name(1)}", "db")
    assert taking.taken == [name(1), name(1)]
    ahead.close()


# -- the question --------------------------------------------------------------------------------


def test_an_answer_that_comes_at_once_is_taken(tmp_path: Path) -> None:
    """The daemon may have answered and gone before the client goes on from its one system call."""
    address = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()

        def answer() -> None:
            for _ in range(200):
                channel, _ = listener.accept()
                with channel:
                    channel.sendall(b"=\x03" + (2).to_bytes(4, "little") + b"no")
                    channel.recv(1024)

        thread = threading.Thread(target=answer)
        thread.start()
        told = [client.ask(address, ["push"]) for _ in range(200)]
        thread.join()
    assert told == [(3, b"no")] * 200


# -- fetch -------------------------------------------------------------------------------------


class Holding:
    """Stands for `WalStore.pieces`."""

    def __init__(self, *names: str, size: int = 1 << 20) -> None:
        self.names, self.size = set(names), size
        self.asked: list[str] = []
        self.came = threading.Semaphore(0)

    def get(self, system_id: int, each: str) -> list[bytes]:
        del system_id
        self.asked.append(each)
        self.came.release()
        if each not in self.names:
            raise ObjectMissing(f"no object {each}")
        return [each.encode(), b"." * (self.size - len(each))]

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self.came.acquire(timeout=30)


def small(number: int, timeline: int = 1) -> str:
    return str(SegmentName(timeline, number, 1 << 20))


def test_segments_that_follow_are_read_once() -> None:
    held = Holding(*(small(number) for number in range(10)))
    ahead = FetchAhead(held.get, workers=1, window=3, limit=1 << 30)
    for number in range(10):
        data = ahead.get(7, small(number))
        assert data[0] == small(number).encode()
    ahead.close()
    assert sorted(one for one in held.asked if one in held.names) == sorted(held.names)


def test_trap_42_absent_is_never_remembered() -> None:
    held = Holding(small(0))
    ahead = FetchAhead(held.get, workers=1, window=2, limit=1 << 30)
    ahead.get(7, small(0))
    held.wait(3)
    held.names.add(small(1))  # it was archived since
    assert ahead.get(7, small(1))
    with pytest.raises(ObjectMissing):
        ahead.get(7, small(2))
    ahead.close()


def test_trap_45_the_next_timeline_is_read_as_it_is_asked_for() -> None:
    held = Holding(*(small(number) for number in range(4)), small(2, 2), "00000002.history")
    ahead = FetchAhead(held.get, workers=1, window=3, limit=1 << 30)
    ahead.get(7, small(1))
    assert ahead.get(7, "00000002.history")[0] == b"00000002.history"
    assert ahead.get(7, small(2, 2))[0] == small(2, 2).encode()
    assert ahead.get(7, small(2))[0] == small(2).encode()
    ahead.close()


@pytest.mark.parametrize(("limit", "kept"), [(0, 0), (1 << 20, 1), (3 << 20, 3)])
def test_no_more_is_kept_than_was_said(limit: int, kept: int) -> None:
    held = Holding(*(small(number) for number in range(20)))
    ahead = FetchAhead(held.get, workers=1, window=16, limit=limit)
    ahead.get(7, small(0))
    held.wait(1 + kept)
    ahead.close()
    assert len(held.asked) == 1 + kept
