"""A data directory written out: what is refused, what a delta does, what an interruption leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from acceptance.conftest import tree_of
from postgres.physical.tools import Room, cluster
from postgres.recovery.story import Story
from strongroom.errors import Damaged, Refused
from strongroom.format.wal import MadeSpace
from strongroom.postgres.embedded import service_account
from strongroom.postgres.recovery.settings import Recovery
from strongroom.postgres.recovery.sink import MARKER, PhysicalSink, sorted_otherwise
from strongroom.progress import Silent
from strongroom.repository.ports import Outcome


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data"


def sink(story: Story, place: Path, **how: Any) -> PhysicalSink:
    spaces = {os.fsencode(story.space): os.fsencode(place) + b"-space"}
    return PhysicalSink(os.fsencode(place), **{"spaces": spaces} | how)


def restore(story: Story, place: Path, **how: Any) -> Outcome:
    made = sink(story, place, **how)
    return made.restore(story.room.reader(story.report), progress=Silent())


def present(place: Path) -> bool:
    """Could a server be started on it?"""
    return (place / "global/pg_control").exists()


def test_everything_is_as_it_was(story16: Story, place: Path) -> None:
    outcome = restore(story16, place)
    assert not outcome.problems
    reader = story16.room.reader(story16.report)
    for entry in reader.entries(b"data"):
        path = os.path.join(os.fsencode(place), entry.path[5:])
        assert os.path.exists(path), path
        if entry.size:
            with open(path, "rb") as file:
                content = file.read()
            ours = entry.path[5:] in (b"tablespace_map", b"backup_manifest", b"global/pg_control")
            assert ours or content == b"".join(map(bytes, reader.stream(entry))), path
    assert place.stat().st_mode & 0o777 == 0o700  # trap 54
    if os.geteuid() == 0:
        assert place.stat().st_uid == service_account().uid
    assert not (place / os.fsdecode(MARKER)).exists()


def test_trap_9_and_54_tablespaces_go_where_they_are_told(story16: Story, place: Path) -> None:
    """The original's place is on this machine: it is refused unless it is asked for."""
    plain = PhysicalSink(os.fsencode(place))
    with pytest.raises(Refused, match="the original may be using it"):
        plain.preflight(story16.room.reader(story16.report))
    same = {os.fsencode(story16.space): os.fsencode(story16.space)}
    with pytest.raises(Refused, match="is not empty"):
        PhysicalSink(os.fsencode(place), spaces=same).preflight(story16.room.reader(story16.report))
    assert not place.exists()
    restore(story16, place)
    (oid,) = [space.oid for space in story16.facts.tablespaces]
    link = place / "pg_tblspc" / oid
    assert os.readlink(link) == f"{place}-space"
    assert (place / "tablespace_map").read_text() == f"{oid} {place}-space\n"
    with pytest.raises(Refused, match="no tablespace"):
        sink(
            story16,
            place.parent / "other",
            spaces={b"/none": b"/x", os.fsencode(story16.space): b"/y"},
        ).preflight(story16.room.reader(story16.report))


def test_trap_9_what_recovery_makes_goes_over_nothing(story16: Story, place: Path) -> None:
    """A tablespace that the log makes goes where it was: PostgreSQL uses whatever it finds there."""
    late = place.parent / "late"
    made = [MadeSpace(99, 1, os.fsencode(late))]
    mapped = {os.fsencode(story16.space): os.fsencode(f"{place}-space")}

    def preflight(*more: tuple[bytes, Path]) -> None:
        spaces = mapped | {key: os.fsencode(path) for key, path in more}
        one = PhysicalSink(os.fsencode(place), spaces=spaces, made=made)
        one.preflight(story16.room.reader(story16.report))

    preflight()
    with pytest.raises(Refused, match="cannot go elsewhere"):
        preflight((b"99", place.parent / "other"))
    late.mkdir()
    with pytest.raises(Refused, match="the original may be using it"):
        preflight()
    preflight((os.fsencode(late), late))
    (late / "PG_16_202307071").mkdir()
    with pytest.raises(Refused, match="the original may be using it"):
        preflight((os.fsencode(late), late))
    shutil.rmtree(late)
    sink = PhysicalSink(os.fsencode(place), spaces=mapped, made=made)
    sink.restore(story16.room.reader(story16.report), progress=Silent())
    assert late.is_dir() and not os.listdir(late)
    assert late.stat().st_uid == place.stat().st_uid


@pytest.mark.parametrize(
    ("collations", "here", "told"),
    [
        ([["c", "2.31"]], "2.31", None),
        ([["c", "2.31"]], "2.36", "libc 2.31, and this machine has 2.36"),
        ([["c", "2.28"], ["c", "2.31"]], "2.31", "libc 2.28, 2.31, and this machine has 2.31"),
        ([["i", "153.14"]], "2.36", None),
        ([], "2.36", None),
        (None, "2.36", None),
    ],
)
def test_p38_p39_text_that_is_sorted_otherwise_here(
    collations: list[list[str]] | None, here: str, told: str | None
) -> None:
    server = {} if collations is None else {"collations": collations}
    found = sorted_otherwise(server, here)
    if told is None:
        assert found == {}
    else:
        assert told in found["collations"] and "REINDEX" in found["collations"]


def test_p38_versions_of_collations_are_recorded_and_compared(tmp_path: Path) -> None:
    with cluster(15) as server:
        with server.connect() as connection:
            connection.execute("UPDATE pg_database SET datcollversion = '2.1'")
        room = Room(server, tmp_path)
        report, facts = room.take()
        assert facts.server["collations"] == [["c", "2.1"]]
        plan = PhysicalSink(os.fsencode(tmp_path / "data")).preflight(room.reader(report))
        assert "libc 2.1" in plan["collations"]


def test_trap_53_what_is_not_ours_is_refused(story16: Story, place: Path) -> None:
    place.mkdir()
    (place / "somebody's").touch()
    with pytest.raises(Refused, match="is not empty"):
        restore(story16, place)
    with pytest.raises(Refused, match="no data directory"):
        restore(story16, place, delta=True)
    assert (place / "somebody's").exists()


def test_trap_53_another_cluster_and_a_running_one(
    story16: Story, story18: Story, place: Path
) -> None:
    restore(story16, place)
    with pytest.raises(Refused, match="another cluster"):
        PhysicalSink(
            os.fsencode(place), delta=True, spaces={os.fsencode(story18.space): b"/nowhere"}
        ).preflight(story18.room.reader(story18.report))
    running = subprocess.Popen(["sleep", "60"])
    try:
        (place / "postmaster.pid").write_text(f"{running.pid}\n{place}\n")
        with pytest.raises(Refused, match="A server runs"):
            restore(story16, place, delta=True)
    finally:
        running.kill()
        running.wait()
    assert present(place)
    restore(story16, place, delta=True)  # the file was left by one that was killed
    assert not (place / "postmaster.pid").exists()


def test_a_delta_writes_what_differs_and_removes_what_is_not_in_it(
    story16: Story, place: Path
) -> None:
    restore(story16, place)
    before, space = tree_of(place), tree_of(Path(f"{place}-space"))
    largest = max(
        (p for p in place.rglob("base/*/*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    stamp = largest.stat()
    with largest.open("r+b") as file:  # another page, the same size and time
        file.seek(8192 * 5)
        file.write(b"\xaa" * 100)
    os.utime(largest, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    cut = place / "pg_xact/0000"
    cut.write_bytes(cut.read_bytes()[:100])
    (place / "PG_VERSION").rename(place / "base/extra")
    (place / "PG_VERSION").write_text("16\n" + " " * 9)
    (place / "base/999").mkdir()
    (place / "base/999/1").touch()
    (place / "pg_notify/0000").write_bytes(b"x" * 8192)
    outside = place.parent / "outside"
    outside.write_bytes(b"mine")
    (place / "pg_ident.conf").unlink()
    (place / "pg_ident.conf").symlink_to(outside)
    segment = place / "pg_wal/000000010000000000000099"
    segment.write_bytes(b"not archived")
    outcome = restore(story16, place, delta=True)
    assert tree_of(place) == before
    assert tree_of(Path(f"{place}-space")) == space
    assert outside.read_bytes() == b"mine"
    assert outcome.facts["kept"] > 20 * outcome.facts["fetched"] > 0
    # Trap 44: what the old server had not archived is set aside.
    aside = Path(outcome.facts["old_wal"])
    assert (aside / segment.name).read_bytes() == b"not archived"


class Cut(Exception):
    """The restore is cut off here."""


class Stopping(Silent):
    """Cuts a restore off after some bytes."""

    def __init__(self, after: int) -> None:
        self._left = after

    def advance(self, *, size: int = 0, files: int = 0, stored: int = 0) -> None:
        self._left -= size
        if self._left < 0:
            raise Cut


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("after", [0, 18 << 20])
def test_trap_4_and_55_what_is_not_complete_does_not_start(
    story16: Story, place: Path, delta: bool, after: int
) -> None:
    reader = story16.room.reader(story16.report)
    if delta:
        restore(story16, place)
        for path in place.rglob("base/*/*"):
            if path.is_file() and path.stat().st_size:
                path.write_bytes(b"old" * path.stat().st_size)
    with pytest.raises(Cut):
        sink(story16, place, delta=delta).restore(reader, progress=Stopping(after))
    assert not present(place)
    with pytest.raises(Refused, match="did not come to its end"):
        restore(story16, place)
    restore(story16, place, delta=True)
    assert present(place)
    assert (place / "backup_label").read_bytes() == story16.facts.backup_label


def test_trap_55_pg_control_is_last(
    story16: Story, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When pg_control gets its name everything else is there, and was synced."""
    seen: list[str] = []
    rename = os.rename
    from strongroom.postgres.recovery import sink as module  # noqa: PLC0415

    whole = module.sync_file_system
    monkeypatch.setattr(module, "sync_file_system", lambda fd: (seen.append("sync"), whole(fd))[1])

    def renamed(old: Any, new: Any, **how: Any) -> None:
        if new == b"pg_control":
            seen.append("control")
            assert (place / "backup_label").read_bytes() == story16.facts.backup_label
            assert (place / os.fsdecode(MARKER)).exists()
        rename(old, new, **how)

    monkeypatch.setattr(os, "rename", renamed)
    restore(story16, place)
    assert seen == ["sync", "sync", "control"]


def test_damage_is_named_and_leaves_nothing_to_start(story16: Story, place: Path) -> None:
    class Lacking:
        """The reader, but of one chunk it says that it is gone."""

        def __init__(self, reader: Any) -> None:
            self._reader = reader

        def __getattr__(self, name: str) -> Any:
            return getattr(self._reader, name)

        def scatter(self, ids: Any, take: Any) -> Any:
            waiting = self._reader.scatter(ids, take)
            return lambda: {**waiting(), 0: Damaged("A frame is damaged.")}

    reader: Any = Lacking(story16.room.reader(story16.report))
    with pytest.raises(Damaged, match="cannot be restored: A frame is damaged"):
        sink(story16, place).restore(reader, progress=Silent())
    assert not present(place)


def test_a_path_that_leads_out_is_refused(story16: Story, place: Path) -> None:
    class Leading:
        def __init__(self, reader: Any) -> None:
            self._reader = reader

        def __getattr__(self, name: str) -> Any:
            return getattr(self._reader, name)

        def entries(self, under: bytes = b"") -> Iterator[Any]:
            for entry in self._reader.entries(under):
                out = entry.path == b"data/PG_VERSION"
                yield type(entry)(b"data/../PG_VERSION", entry.kind) if out else entry

    reader: Any = Leading(story16.room.reader(story16.report))
    with pytest.raises(Damaged, match="leads elsewhere"):
        sink(story16, place).restore(reader, progress=Silent())
    assert not (place.parent / "PG_VERSION").exists()


def test_trap_50_old_targets_are_commented_out(story16: Story, place: Path) -> None:
    restore(story16, place, recovery=Recovery("true", name="half-way"))
    auto = (place / "postgresql.auto.conf").read_text()
    assert "recovery_target_name = 'half-way'" in auto
    assert "archive_mode = 'off'" in auto  # trap 51
    assert (place / "recovery.signal").exists()
    restore(story16, place, delta=True, recovery=Recovery("true", standby=True))
    assert (place / "standby.signal").exists()
    assert not (place / "recovery.signal").exists()
