"""What an opened cluster reads: which chunks bytes are of, one fetch for all, ahead of who reads in order."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from strongroom.errors import Damaged, StrongroomError
from strongroom.format.content import Extent
from strongroom.format.tree import Entry, Kind
from strongroom.postgres.open import protocol
from strongroom.postgres.open.chunks import Chunks
from strongroom.postgres.open.extents import Extents
from strongroom.postgres.open.overlay import Overlay
from strongroom.postgres.open.planting import asked_first
from strongroom.postgres.open.scratch import ScratchFiles
from strongroom.postgres.open.serving import WINDOW, FuseServer

PAGES = 64 * 1024
FRAME = 16


class Snapshot:
    """Chunks of 64 KiB, sixteen in a frame; counts what is opened."""

    def __init__(self, count: int) -> None:
        self.content = {number.to_bytes(32, "big"): bytes([number % 251]) * PAGES
                        for number in range(count)}  # fmt: skip
        self.brought: list[bytes] = []
        self.lost: set[bytes] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.asked = 0

    def together(self, ids: Sequence[bytes], near: Sequence[bytes]) -> list[bytes]:
        frames = {int.from_bytes(one, "big") // FRAME for one in ids}
        return [one for one in near if int.from_bytes(one, "big") // FRAME in frames]

    def bring(self, ids: Sequence[bytes], take: Any) -> dict[int, StrongroomError]:
        self.asked += 1
        self.gate.wait(10)
        self.brought += ids
        faults = {n: Damaged("spoiled") for n, one in enumerate(ids) if one in self.lost}
        for number, one in enumerate(ids):
            if number not in faults:
                take([number], [memoryview(self.content[one])])
        return dict(faults)

    def parts(self, entry: Entry) -> list[list[Extent]]:
        return [[Extent(n * PAGES, PAGES, 0, 1, one) for n, one in enumerate(self.content)]]


def test_extents_are_found_by_place() -> None:
    dice = random.Random(4)
    for _ in range(50):
        rows, content, at = [], bytearray(), 0
        chunks = {}
        for number in range(dice.randrange(6)):
            at += dice.choice([0, 0, 7, 4096])
            data = dice.randbytes(dice.choice([1, 100, 4096]))
            repeats = dice.choice([1, 1, 3])
            chunk = number.to_bytes(32, "big")
            chunks[chunk] = b".." + data
            rows.append(Extent(at, len(data), 2, repeats, chunk))
            content += bytes(at - len(content)) + data * repeats
            at = len(content)
        content += bytes(50)
        extents = Extents(rows)
        for _ in range(30):
            begin = dice.randrange(len(content))
            end = dice.randrange(begin, len(content)) + 1
            found = b""
            for length, chunk_id, offset in extents.parts(begin, end):
                found += bytes(length) if chunk_id is None else chunks[chunk_id][offset:][:length]
            assert found == content[begin:end]
            used = {part.id for part in extents.parts(begin, end)} - {None}
            assert used <= set(extents.ids(begin, end)) or not used


def test_what_is_in_the_frame_comes_along_and_is_not_fetched_again() -> None:
    snapshot = Snapshot(64)
    ids = list(snapshot.content)
    chunks = Chunks(snapshot, 100 * PAGES)  # type: ignore[arg-type]
    assert chunks.fetch([ids[20]], ids[8:40])[ids[20]] == snapshot.content[ids[20]]
    assert sorted(snapshot.brought) == ids[16:32]
    assert chunks.get(ids[31]) == snapshot.content[ids[31]]
    assert chunks.get(ids[32]) is None
    chunks.fetch(ids[16:33])
    assert snapshot.brought.count(ids[20]) == 1


def test_readers_of_one_chunk_wait_for_one_fetch() -> None:
    snapshot = Snapshot(8)
    ids = list(snapshot.content)
    chunks = Chunks(snapshot, 100 * PAGES)  # type: ignore[arg-type]
    snapshot.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(chunks.fetch, ids) for _ in range(8)]
        while snapshot.asked == 0:
            pass
        snapshot.gate.set()
        assert all(job.result() == snapshot.content for job in jobs)
    assert sorted(snapshot.brought) == ids


def test_a_fault_is_everybodys_who_waits_and_nobodys_afterwards() -> None:
    snapshot = Snapshot(4)
    ids = list(snapshot.content)
    chunks = Chunks(snapshot, 100 * PAGES)  # type: ignore[arg-type]
    snapshot.lost = {ids[1]}
    found = chunks.fetch(ids)
    assert isinstance(found[ids[1]], Damaged)
    assert found[ids[2]] == snapshot.content[ids[2]]
    snapshot.lost = set()
    assert chunks.fetch([ids[1]])[ids[1]] == snapshot.content[ids[1]]


def test_the_cache_is_bounded_and_lets_go_of_what_was_not_used_longest() -> None:
    snapshot = Snapshot(20)
    ids = list(snapshot.content)
    chunks = Chunks(snapshot, 4 * PAGES)  # type: ignore[arg-type]
    for one in ids[:4]:
        chunks.fetch([one])
    chunks.get(ids[0])
    chunks.fetch([ids[4]])
    assert [chunks.get(one) is not None for one in ids[:5]] == [True, False, True, True, True]


@pytest.fixture
def served(tmp_path: Any) -> Any:
    snapshot = Snapshot(160)  # 10 MiB
    scratch = ScratchFiles(str(tmp_path))
    overlay = Overlay(scratch, owner=(0, 0), now=lambda: 1)
    size = 160 * PAGES
    node = overlay.place(overlay.root, b"f", Entry(b"f", Kind.FILE, size=size, content=b"\x01"))
    told: list[tuple[bytes, StrongroomError]] = []
    read, write = os.pipe()
    server = FuseServer(
        write,
        overlay,
        snapshot,  # type: ignore[arg-type]
        Chunks(snapshot, 64 << 20),  # type: ignore[arg-type]
        statvfs=lambda: os.statvfs(tmp_path),
        on_fault=lambda path, fault: told.append((path, fault)),
    )
    yield server, node, snapshot, told, read
    for pool in (server._pool, server._ahead):
        pool.shutdown()
    os.close(read)
    os.close(write)
    scratch.close()


def answers(fd: int, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += os.read(fd, size - len(found))
    return found


def ask(server: FuseServer, node: Any, offset: int, size: int) -> None:
    server._read(7, node.id, memoryview(protocol.READ_IN.pack(0, offset, size) + bytes(20)), 0, 0)


def test_reading_in_order_is_fetched_ahead_and_reading_about_is_not(served: Any) -> None:
    server, node, snapshot, _, pipe = served
    for at in range(0, 24 * PAGES, 8192):
        ask(server, node, at, 8192)
        answers(pipe, 16 + 8192)
    server._ahead.shutdown()
    assert len(snapshot.brought) >= 4 * WINDOW // PAGES
    brought = len(snapshot.brought)
    assert len(set(snapshot.brought)) == brought


def test_reading_about_brings_one_frame_a_read(served: Any) -> None:
    server, node, snapshot, _, pipe = served
    for at in (9, 3, 7, 1, 5):
        ask(server, node, at * WINDOW + 8192, 8192)
        answers(pipe, 16 + 8192)
    server._ahead.shutdown()
    assert len(snapshot.brought) == 5 * FRAME


def test_what_a_server_asks_first_is_fetched_at_once_and_only_that(served: Any) -> None:
    server, node, snapshot, _, _ = served
    overlay = server._overlay
    for path in (b"global/1260", b"global/pg_filenode.map", b"base/5/1259", b"base/5/1259_vm"):
        above, _, name = path.rpartition(b"/")
        overlay.place(overlay.folder(b"data/" + above), name, node.entry)
    for path in (b"base/5/16384", b"base/5/40000.3", b"pg_xact/0000"):
        above, _, name = path.rpartition(b"/")
        overlay.place(overlay.folder(b"data/" + above), name, node.entry)
    first = asked_first(overlay, 1 << 30)
    assert len(first) == 4
    assert len(asked_first(overlay, 2 * node.size)) == 2
    server.fetch_ahead(first)
    server._ahead.shutdown()
    server._pool.shutdown()
    assert sorted(snapshot.brought) == list(snapshot.content)  # the same chunks, once


def test_a_chunk_that_is_lost_is_an_error_to_the_reader_and_a_sentence(served: Any) -> None:
    server, node, snapshot, told, pipe = served
    snapshot.lost = {list(snapshot.content)[17]}
    ask(server, node, 17 * PAGES + 4096, 4096)
    assert protocol.OUT_HEADER.unpack(answers(pipe, 16)) == (16, -5, 7)
    assert told[0][0] == b"f"
    assert "spoiled" in told[0][1].what
    ask(server, node, 18 * PAGES, 4096)
    assert answers(pipe, 16 + 4096)[16:] == bytes([18]) * 4096


def test_structures_are_as_long_as_the_kernels() -> None:
    assert len(protocol.init_out(1, 2)) == 64
    assert len(protocol.attributes(1, 2, 3, 4, 5, 6, 7)) == 88
    assert len(protocol.NOTHING_THERE) == 128
    assert len(protocol.attr_out(bytes(88))) == 104
    assert protocol.IN_HEADER.size == 40
    assert protocol.SETATTR_IN.size == 88
    assert protocol.WRITE_IN.size == 40
    assert protocol.STATFS_OUT.size == 80
    assert protocol.FALLOCATE_IN.size == 32
    assert protocol.OPEN_OUT.size == protocol.RENAME2_IN.size == 16
    assert protocol.dirent(1, 2, 8, b"name")[24:] == b"name" + bytes(4)
    assert len(protocol.dirent(1, 2, 8, b"names")) == 32
