"""Data files of PostgreSQL in the engine: runs of one file through several lanes."""

from __future__ import annotations

import threading

import pytest

from rooms import committed, new_room, noise, restore
from strongroom.format.tree import Entry, Kind
from strongroom.progress import Silent
from strongroom.repository.ports import Taken
from strongroom.repository.session import PAGE_CHUNK
from strongroom.storage.memory import MemoryStorage


@pytest.mark.parametrize("size", [0, 1, 8192, PAGE_CHUNK, PAGE_CHUNK + 8192, 40 * PAGE_CHUNK + 5])
def test_runs_of_lanes_make_one_file(size: int) -> None:
    room, data, step = new_room(MemoryStorage()), noise("pages", size), 7 * PAGE_CHUNK
    session = room.begin("db", progress=Silent())
    runs = [memoryview(data)[at : at + step] for at in range(0, size, step)]
    ids: list[bytes] = [b""] * len(runs)

    def work(number: int) -> None:
        ids[number] = session.lane().put_pages(runs[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = session.lane().pages_content(b"".join(ids), size)
    session.tree.add(Entry(b"f", Kind.FILE, size=size, content=stored.content))
    session.commit("db", "postgres", Taken(1, size), labels={})
    assert restore(room, committed(room)[0]) == {b"f": data}


def test_a_changed_page_costs_one_chunk_and_zeros_cost_one() -> None:
    room = new_room(MemoryStorage())
    data = bytearray(noise("pages", 100 * PAGE_CHUNK) + bytes(200 * PAGE_CHUNK))
    first = room.begin("db", progress=Silent())
    ids = first.lane().put_pages(memoryview(data))
    stored = first.lane().pages_content(ids, len(data))
    first.tree.add(Entry(b"f", Kind.FILE, size=len(data), content=stored.content))
    first.commit("db", "postgres", Taken(1, len(data)), labels={})
    assert first.new_size < 102 * PAGE_CHUNK + 20_000
    data[50 * PAGE_CHUNK + 9] ^= 1
    second = room.begin("db", progress=Silent())
    assert second.reuse([stored.ids]) == [True]
    again = second.lane().put_pages(memoryview(data))
    assert sum(ids[at : at + 32] != again[at : at + 32] for at in range(0, len(ids), 32)) == 1
    content = second.lane().pages_content(again, len(data)).content
    second.tree.add(Entry(b"f", Kind.FILE, size=len(data), content=content))
    second.commit("db", "postgres", Taken(1, len(data)), labels={})
    assert PAGE_CHUNK <= second.new_size < PAGE_CHUNK + 20_000


def test_ids_of_another_size_are_refused() -> None:
    lane = new_room(MemoryStorage()).begin("db", progress=Silent()).lane()
    ids = lane.put_pages(memoryview(bytes(PAGE_CHUNK + 1)))
    with pytest.raises(ValueError, match="ids"):
        lane.pages_content(ids, PAGE_CHUNK)
