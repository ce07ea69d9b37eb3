"""The same room over the real engine: what the double promises, the engine holds."""

from __future__ import annotations

import os
from pathlib import Path

from files.conftest import Vault
from files.test_round_trip import furnish
from rooms import new_room
from strongroom.files.compare import compare_trees
from strongroom.files.reading import SMALL_FILE
from strongroom.files.sink import FileSink
from strongroom.operations.back_up import Report, back_up
from strongroom.progress import Silent
from strongroom.repository.repository import Repository
from strongroom.storage.local import LocalStorage
from strongroom.storage.memory import MemoryStorage


def take(repository: Repository, vault: Vault) -> Report:
    return back_up(repository, vault.source(), progress=Silent())


def bring(repository: Repository, report: Report, target: Path, **options: object):
    sink = FileSink(os.fsencode(target), **options)  # type: ignore[arg-type]
    snapshot = repository.open_snapshot(report.snapshot)
    sink.preflight(snapshot)
    return sink.restore(snapshot, progress=Silent())


def stock(root: Path) -> None:
    furnish(root)
    for folder in range(20):
        (root / f"many{folder}").mkdir()
        for name in range(100):
            (root / f"many{folder}" / f"{name}.json").write_bytes(b'{"n": %d}' % name * folder)
    (root / "large").write_bytes(os.urandom(5 << 20) + bytes(3 << 20) + b"tail")
    (root / "edge").write_bytes(os.urandom(SMALL_FILE))
    (root / "past-edge").write_bytes(os.urandom(SMALL_FILE + 1))
    with open(root / "sparse", "wb") as file:
        file.truncate(1 << 34)
        file.seek(1 << 33)
        file.write(b"in the middle")


def test_round_trip_and_a_second_run_that_stores_nothing(vault: Vault, tmp_path: Path) -> None:
    stock(vault.root)
    repository = new_room(LocalStorage(tmp_path / "store"))
    first = take(repository, vault)
    assert first.problems == ()
    outcome = bring(repository, first, tmp_path / "one")
    assert outcome.problems == ()
    os.unlink(vault.root / "sparse")
    os.unlink(tmp_path / "one" / "sparse")
    os.utime(tmp_path / "one", ns=(0, os.stat(vault.root).st_mtime_ns))
    assert compare_trees(os.fsencode(vault.root), os.fsencode(tmp_path / "one")) == []
    second = take(repository, vault)
    assert second.snapshot.new_size < 100_000  # tree pages that changed, no content
    (vault.root / "many3" / "7.json").write_bytes(b"changed")
    third = take(repository, vault)
    outcome = bring(repository, third, tmp_path / "three", paths=[b"many3"])
    assert (outcome.files, outcome.problems) == (100, ())
    assert (tmp_path / "three" / "many3" / "7.json").read_bytes() == b"changed"


def test_a_sparse_file_keeps_its_holes(vault: Vault, tmp_path: Path) -> None:
    with open(vault.root / "sparse", "wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"in the middle")
    repository = new_room(MemoryStorage())
    report = take(repository, vault)
    assert (report.problems, report.snapshot.size) == ((), 1 << 40)
    assert bring(repository, report, tmp_path / "out").problems == ()
    facts = os.stat(tmp_path / "out" / "sparse")
    assert (facts.st_size, facts.st_blocks * 512 <= 65536) == (1 << 40, True)
    with open(tmp_path / "out" / "sparse", "rb") as file:
        file.seek(1 << 39)
        assert file.read(13) == b"in the middle"


def test_another_repository_has_its_own_memory_of_what_is_there(vault: Vault, tmp_path) -> None:
    """The cache of a repository that was lost must not make an empty backup of a new one."""
    (vault.root / "f").write_bytes(b"content")
    take(new_room(MemoryStorage(), "one"), vault)
    other = new_room(MemoryStorage(), "two")
    report = take(other, vault)
    assert bring(other, report, tmp_path / "out").problems == ()
    assert (tmp_path / "out" / "f").read_bytes() == b"content"


def test_a_lost_pack_costs_its_files_only(vault: Vault, tmp_path: Path) -> None:
    (vault.root / "first").write_bytes(os.urandom(200_000))
    repository = new_room(LocalStorage(tmp_path / "store"))
    take(repository, vault)
    packs = {path for path in (tmp_path / "store" / "packs").rglob("*") if path.is_file()}
    (vault.root / "second").write_bytes(os.urandom(200_000))
    report = take(repository, vault)
    for path in packs:
        os.chmod(path, 0o600)
        path.write_bytes(bytes(path.stat().st_size))
    outcome = bring(repository, report, tmp_path / "out")
    assert [problem.path for problem in outcome.problems] == [b"first"]
    assert outcome.facts["damaged"] == 1
    assert (tmp_path / "out" / "second").read_bytes() == (vault.root / "second").read_bytes()
    assert not (tmp_path / "out" / "first").exists()
