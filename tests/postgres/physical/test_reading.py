"""Runs of files on several threads, and pages that are looked at again."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rooms
from strongroom import kernel
from strongroom.format.tree import Entry
from strongroom.postgres.physical import pages as looking
from strongroom.postgres.physical import reading
from strongroom.postgres.physical.crc import crc32c
from strongroom.postgres.physical.pages import OddPage, judge, look, page_lsn
from strongroom.postgres.physical.reading import FileRead, Pages, Reading
from strongroom.postgres.physical.walk import FileFound, Listing, Walk
from strongroom.progress import Silent
from strongroom.repository.ports import Taken
from strongroom.storage.memory import MemoryStorage

PAGE = 8192


def page(seed: int, block: int, lsn: int = 0) -> bytes:
    """A page with a good checksum."""
    body = bytearray(rooms.noise(seed, PAGE))
    body[:8] = (lsn >> 32).to_bytes(4, "little") + (lsn & 0xFFFFFFFF).to_bytes(4, "little")
    (row,) = kernel.page_checksums(body, PAGE, block)
    body[8:10] = row[2].to_bytes(2, "little")
    return bytes(body)


# -- one page ----------------------------------------------------------------------------------


def once(answers: Sequence[bytes], wrong: bytes, block: int = 9) -> tuple[list[OddPage], bytes]:
    """Look at a page that was read as `wrong` and reads as each of the answers afterwards."""
    left = [*answers]
    run = bytearray(page(1, block - 1) + wrong)

    def reread(number: int) -> bytes:
        assert number == 1
        return left.pop(0) if len(left) > 1 else left[0]

    odd = look(memoryview(run), PAGE, block=block - 1, first=block - 1, reread=reread, pause=0)
    return odd, bytes(run[PAGE:])


def test_trap_13_a_torn_page_is_read_until_it_is_whole() -> None:
    old, new = page(2, 9), page(3, 9)
    torn = new[:4096] + old[4096:]
    assert once([new], torn) == ([], new)
    assert once([new[:6000] + old[6000:], new], torn) == ([], new)


def test_trap_13_a_page_that_stays_wrong_is_odd() -> None:
    good = page(2, 9, lsn=1 << 33)
    wrong = good[:5000] + bytes([good[5000] ^ 1]) + good[5001:]
    odd, kept = once([wrong], wrong)
    (row,) = kernel.page_checksums(wrong, PAGE, 9)
    assert odd == [OddPage(9, *row[1:], 1 << 33)]
    assert kept == wrong


def test_trap_13_a_page_that_changes_and_stays_wrong_is_odd_as_it_is_at_last() -> None:
    first, second = rooms.noise(1, PAGE), rooms.noise(2, PAGE)
    odd, kept = once([second], first)
    (row,) = kernel.page_checksums(second, PAGE, 9)
    assert odd == [OddPage(9, *row[1:], page_lsn(second))]
    assert kept == second


def test_trap_13_a_page_that_never_stays_is_left_to_recovery() -> None:
    answers = [rooms.noise(number, PAGE) for number in range(looking.LOOKS + 1)]
    odd, _ = once(answers, rooms.noise(99, PAGE))
    assert odd == []


def test_a_page_that_was_cut_off_is_no_matter() -> None:
    assert once([b""], rooms.noise(1, PAGE))[0] == []


def test_trap_13_only_pages_that_recovery_does_not_write_are_bad() -> None:
    odd = [(b"f", OddPage(number, 1, 2, lsn)) for number, lsn in enumerate((99, 100, 200, 201))]
    assert [found.block for _, found in judge(odd, start=100, stop=200)] == [0, 3]


# -- files -------------------------------------------------------------------------------------


def listing_of(root: Path) -> Listing:
    (root / "pg_tblspc").mkdir(exist_ok=True)
    told: list[object] = []
    found = Walk(
        os.fsencode(root), major=15, catalog_version=1, told=lambda *row: told.append(row)
    ).run()
    assert told == []
    return found


def read_all(
    root: Path, *, threads: int = 2, pages: Pages | None = None
) -> tuple[dict[bytes, FileRead], dict[bytes, bytes]]:
    """Read every file below `root` into a repository; what was said of each, and what rests."""
    repository = rooms.new_room(MemoryStorage())
    session = repository.begin("db", progress=Silent())
    listing = listing_of(root)
    done: dict[bytes, FileRead] = {}

    def took(one: FileRead) -> None:
        assert one.found.path not in done
        done[one.found.path] = one

    pages = pages or Pages(PAGE, 131072, checksums=True)
    work = Reading(listing.files, pages, progress=Silent(), done=took)
    workers = [threading.Thread(target=work.work, args=(session.lane(),)) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    listing.close()
    entries: list[Entry] = [
        one.found.entry(one.size, one.kept.content) for one in done.values() if one.kept
    ]
    for entry in sorted(entries, key=lambda entry: entry.path):
        session.tree.add(entry)
    snapshot = session.commit("db", "postgres", Taken(len(entries), 0), labels={})
    stored = rooms.restore(repository, snapshot)
    return done, {path.removeprefix(b"data/"): data for path, data in stored.items()}


def test_one_large_file_is_read_by_all_threads_and_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "RUN", 128 * 1024)
    folder = tmp_path / "base" / "5"
    folder.mkdir(parents=True)
    data = b"".join(page(number, number) for number in range(100)) + b"part of a page"
    (folder / "777").write_bytes(data)
    users: set[int] = set()
    real = Reading._read_run

    def noted(self: Reading, *given: object) -> None:
        users.add(threading.get_ident())
        real(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Reading, "_read_run", noted)
    for _ in range(20):
        done, stored = read_all(tmp_path, threads=3)
        assert stored == {b"base/5/777": data}
        kept = done[b"base/5/777"].kept
        assert kept is not None
        assert kept.crc == crc32c(data)
        assert kept.odd == ()
        if len(users) > 1:
            break
    assert len(users) > 1


def test_trap_12_blocks_count_through_the_gigabytes_of_a_relation(tmp_path: Path) -> None:
    folder = tmp_path / "base" / "5"
    folder.mkdir(parents=True)
    second = b"".join(page(number, 3 * 16 + number) for number in range(5))
    (folder / "777.3").write_bytes(second)  # with gigabytes of 16 blocks, the fourth
    done, stored = read_all(tmp_path, pages=Pages(PAGE, 16, checksums=True))
    kept = done[b"base/5/777.3"].kept
    assert stored[b"base/5/777.3"] == second
    assert kept is not None
    assert kept.odd == ()
    done, _ = read_all(tmp_path)
    kept = done[b"base/5/777.3"].kept
    assert kept is not None
    assert [odd.block for odd in kept.odd] == [0, 1, 2, 3, 4]


def test_without_checksums_nothing_is_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "base" / "5"
    folder.mkdir(parents=True)
    (folder / "777").write_bytes(rooms.noise(1, 5 * PAGE))
    done, _ = read_all(tmp_path, pages=Pages(PAGE, 131072, checksums=False))
    kept = done[b"base/5/777"].kept
    assert kept is not None
    assert kept.odd == ()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["base/5", "log", "pg_xact"]), st.integers(0, 400_000))))
def test_any_files_come_home_with_their_sums(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, int]]
) -> None:
    root = tmp_path_factory.mktemp("files")
    made = {}
    for number, (folder, size) in enumerate(files):
        path = root / folder / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        made[os.fsencode(f"{folder}/{number}")] = data = rooms.noise(number, size)
        path.write_bytes(data)
    done, stored = read_all(root, pages=Pages(PAGE, 131072, checksums=False))
    assert stored == made
    assert {path: one.kept and one.kept.crc for path, one in done.items()} == {
        path: crc32c(data) for path, data in made.items()
    }


def test_trap_11_what_a_log_grew_by_is_not_read_and_a_shorter_one_is_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "base" / "5").mkdir(parents=True)
    sizes = {"log/grows": 300_000, "log/shrinks": 300_000, "log/small": 500, "base/5/7": 3 * PAGE}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    real = Reading._opened

    def changed(self: Reading, one: FileRead) -> bool:
        with open(tmp_path / "log" / "grows", "ab") as file:
            file.write(b"y" * 1000)
        os.truncate(tmp_path / "log" / "shrinks", 270_000)
        os.truncate(tmp_path / "log" / "small", 100)
        os.truncate(tmp_path / "base" / "5" / "7", PAGE)
        return real(self, one)

    monkeypatch.setattr(Reading, "_opened", changed)
    done, stored = read_all(tmp_path, pages=Pages(PAGE, 131072, checksums=False))
    assert stored[b"log/grows"] == b"x" * 300_000
    assert stored[b"log/shrinks"] == b"x" * 270_000
    assert stored[b"log/small"] == b"x" * 100
    # A relation's file keeps its size, as PostgreSQL's own tools have it: recovery cuts it off.
    assert stored[b"base/5/7"] == b"x" * PAGE + bytes(2 * PAGE)
    assert done[b"base/5/7"].shrunk


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    root = tmp_path / "data"
    (root / "base" / "5").mkdir(parents=True)
    (root / "base" / "5" / "7").write_bytes(b"x")
    found: FileFound
    listing = listing_of(root)
    (found,) = listing.files
    (root / "base" / "5" / "7").unlink()
    (root / "base" / "5" / "7").symlink_to(secret)
    repository = rooms.new_room(MemoryStorage())
    session = repository.begin("db", progress=Silent())
    done: list[FileRead] = []
    pages = Pages(PAGE, 131072, checksums=False)
    Reading([found], pages, progress=Silent(), done=done.append).work(session.lane())
    session.abandon()
    listing.close()
    assert done[0].vanished
    assert done[0].kept is None
