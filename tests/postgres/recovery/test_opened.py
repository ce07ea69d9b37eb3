"""Opened without being restored: the server holds what a restored one holds, and leaves nothing.

Needs /dev/fuse and the right to mount; where that is missing it is said.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from postgres.recovery.story import Story
from postgres.recovery.test_targets import upto
from postgres.wal.room import until
from strongroom.errors import Damaged, StrongroomError, TargetFull
from strongroom.postgres.embedded import service_account
from strongroom.postgres.open import server as opening
from strongroom.postgres.open.scratch import ScratchFiles
from strongroom.postgres.open.server import NoFuse, OpenedServer
from strongroom.postgres.recovery.settings import Recovery
from strongroom.postgres.sandbox import Sandbox
from strongroom.progress import Silent


@contextlib.contextmanager
def opened(story: Story, recovery: Recovery | None = None, **how: object) -> Iterator[OpenedServer]:
    try:
        server = OpenedServer(
            story.server.installation.version[0],
            story.fetch,
            story.room.reader(story.report),
            story.facts,
            **how,  # type: ignore[arg-type]
        )
    except NoFuse as fault:
        pytest.skip(f"{fault.reason}: needs /dev/fuse, and root or user namespaces")
    try:
        try:
            server.recover(recovery or Recovery(), progress=Silent())
        except NoFuse as fault:
            pytest.skip(f"{fault.reason}: needs /dev/fuse, and root or user namespaces")
        yield server
    finally:
        server.close()
    assert not os.path.exists(server.directory)


def program(server: Sandbox, name: str, *words: str) -> str:
    argv = [os.path.join(server.installation.bindir, name), "-h", server.socket_directory]
    argv += ["-p", str(server.port), "-U", server.user, *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def everything(server: Sandbox) -> str:
    """pg_dumpall, without what differs by nature: its nonce, and where tablespaces are."""
    said = program(server, "pg_dumpall")
    said = re.sub(r"(?m)^\\(un)?restrict .*$", "", said)
    return re.sub(r"LOCATION '.*'", "LOCATION", said)


STORM = (
    "CREATE TABLE more AS SELECT g AS n, md5(g::text) AS t, g % 97 AS k"
    " FROM generate_series(1, 30000) g",
    "CREATE INDEX ON more (k, t)",
    "UPDATE more SET t = t || t WHERE k < 50",
    "DELETE FROM more WHERE k = 3",
    "VACUUM more",
    "CHECKPOINT",
    "UPDATE far SET n = n + 1 WHERE n % 3 = 0",
    "VACUUM FULL more",
    "CREATE TABLE big (t text) TABLESPACE aside",
    "INSERT INTO big SELECT repeat(md5(g::text), 200) FROM generate_series(1, 500) g",
    "TRUNCATE ledger",
    "ALTER TABLE far SET TABLESPACE pg_default",
    "REINDEX TABLE more",
    "CREATE DATABASE by_log STRATEGY wal_log",
    "CREATE DATABASE by_copy STRATEGY file_copy",
    "CREATE DATABASE gone",
    "DROP DATABASE gone",
    "CREATE UNLOGGED TABLE loose AS SELECT generate_series(1, 1000) AS n",
    "DROP TABLE big",
    "VACUUM (FREEZE, ANALYZE)",
    "CHECKPOINT",
)


def storm(server: Sandbox) -> None:
    with server.connect() as connection:
        for statement in STORM:
            connection.execute(statement.encode())


def test_it_holds_what_a_restored_one_holds_whatever_is_done_to_it(story: Story) -> None:
    restored = story.sandbox()
    with opened(story) as server:
        try:
            restored.recover(Recovery(), progress=Silent())
            assert everything(server) == everything(restored)
            storm(server)
            storm(restored)
            assert everything(server) == everything(restored)
        finally:
            restored.close()
        with server.connect() as connection:
            there = connection.execute(
                "SELECT FROM pg_available_extensions WHERE name = 'amcheck'"
            ).fetchone()
        if there is not None:
            program(server, "pg_amcheck", "--all", "--install-missing", "--heapallindexed")
        assert server.damage is None
        with server.connect() as connection:
            for setting in ("archive_mode", "fsync"):
                assert connection.execute(f"SHOW {setting}".encode()).fetchone() == ("off",)


def test_the_ledger_is_exact_at_a_time(story: Story) -> None:
    chosen = random.Random(story.server.installation.version[0]).choice(story.commits[11:25])
    for exclusive in (False, True):
        with opened(story, Recovery(time=chosen.time, exclusive=exclusive)) as server:
            with server.connect() as connection:
                rows = connection.execute("SELECT n FROM ledger ORDER BY n").fetchall()
                assert connection.execute("SELECT count(*) FROM far").fetchone() == (5000,)
            assert [n for (n,) in rows] == upto(chosen.number - exclusive)


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that the account of the server may enter and write to."""
    path = Path(tempfile.mkdtemp(prefix="sr-opened-", dir="/tmp"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def test_nobody_else_sees_the_mount_and_the_machine_is_read_only_to_it(
    story15: Story, folder: Path
) -> None:
    with opened(story15) as server:
        assert os.listdir(os.path.join(server.directory, "mount")) == []
        assert "fuse.strongroom" not in Path("/proc/self/mounts").read_text()
        with server.connect() as connection:
            with pytest.raises(psycopg.Error, match="Read-only file system"):
                connection.execute(f"COPY (SELECT 1) TO '{folder}/out'")
            with pytest.raises(psycopg.Error, match="Read-only file system"):
                connection.execute(f"CREATE TABLESPACE elsewhere LOCATION '{folder}'")
            # What the log or the user names of the original cannot be written to either.
            assert connection.execute("SELECT count(*) FROM far").fetchone() == (5000,)


@pytest.mark.parametrize("there", [True, False])
def test_log_that_makes_a_tablespace_gets_a_place_of_its_own(folder: Path, there: bool) -> None:
    """Replay of CREATE TABLESPACE uses what is at its place, which on this machine is the original's;
    where nothing is any more, the server gets a place that nobody else sees."""
    late = folder / "late, and: odd" / "deep"
    late.mkdir(mode=0o755, parents=True)
    os.chown(late, service_account().uid, service_account().gid)
    story = Story(16)
    try:
        with story.server.connect() as connection:
            connection.execute(f"CREATE TABLESPACE late LOCATION '{late}'")
            connection.execute("CREATE TABLE there TABLESPACE late AS SELECT 7 AS n")
            row = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
            assert row is not None
        until((story.room.archive.folder / row[0]).exists)
        if not there:
            story.server.close()
            shutil.rmtree(late.parent)
        before = _state(folder)
        with opened(story, made=[os.fsencode(late)]) as server:
            with server.connect() as connection:
                assert connection.execute("SELECT n FROM there").fetchone() == (7,)
                connection.execute("INSERT INTO there SELECT generate_series(1, 10000)")
                connection.execute("CHECKPOINT")
                with pytest.raises(psycopg.Error, match="Read-only file system"):
                    connection.execute(f"COPY (SELECT 1) TO '{folder}/out'")
            assert "ledger" in everything(server)
        assert _state(folder) == before
        with pytest.raises(StrongroomError), opened(story):  # nobody told it of the place
            pass
        assert _state(folder) == before
    finally:
        story.close()


def test_a_place_just_below_the_root_is_refused_and_not_made(story16: Story) -> None:
    """Nothing can be laid over the root itself: making the place would make it for everybody."""
    with opened(story16):
        pass  # or the test is skipped
    place = f"/strongroom-test-{os.getpid()}"
    server = OpenedServer(
        16, story16.fetch, story16.room.reader(story16.report), story16.facts,
        made=[os.fsencode(place)],
    )  # fmt: skip
    try:
        with pytest.raises(NoFuse, match=f"a private {place}"):
            server.recover(Recovery(), progress=Silent())
    finally:
        server.close()
    assert not os.path.lexists(place)


def _state(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Everything below a folder, and when it was changed last."""
    facts = {path: path.stat() for path in (folder, *folder.rglob("*"))}
    return {
        path: (one.st_ino, one.st_mode, one.st_size, one.st_mtime_ns, one.st_ctime_ns)
        for path, one in facts.items()
    }


def test_a_small_cache_is_enough(story18: Story) -> None:
    with opened(story18, cache=200_000) as server:
        assert "ledger" in everything(server)
        assert server.chunks._size <= 200_000


class _Spoiled:
    """A reader some of whose chunks cannot be had."""

    def __init__(self, reader: object, path: bytes) -> None:
        self._reader, self._path = reader, path
        self.lost: set[bytes] = set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._reader, name)

    def spoil(self) -> None:
        entry = self._reader.find(self._path)  # type: ignore[attr-defined]
        assert entry is not None
        for part in self._reader.parts(entry):  # type: ignore[attr-defined]
            self.lost |= {extent.id for extent in part}

    def together(self, ids: list[bytes], near: list[bytes]) -> list[bytes]:
        del ids, near
        return []

    def bring(self, ids: list[bytes], take: object) -> dict[int, StrongroomError]:
        faults = {
            n: Damaged("its pack is damaged") for n, one in enumerate(ids) if one in self.lost
        }
        whole = [n for n in range(len(ids)) if n not in faults]

        def give(numbers: list[int], parts: list[memoryview]) -> None:
            take([whole[n] for n in numbers], parts)  # type: ignore[operator]

        more = self._reader.bring([ids[n] for n in whole], give)  # type: ignore[attr-defined]
        return faults | {whole[n]: fault for n, fault in more.items()}


def test_a_chunk_that_cannot_be_had_is_an_error_with_its_file_and_never_zeros(
    story15: Story,
) -> None:
    with story15.server.connect() as connection:
        row = connection.execute("SELECT pg_relation_filepath('far')").fetchone()
    assert row is not None
    oid, _, rest = row[0].removeprefix("pg_tblspc/").partition("/")
    path = f"tablespaces/{oid}/{rest}".encode()
    told: list[tuple[bytes, StrongroomError]] = []
    spoiled = _Spoiled(story15.room.reader(story15.report), path)
    spoiled.spoil()
    server = OpenedServer(
        15,
        story15.fetch,
        spoiled,  # type: ignore[arg-type]
        story15.facts,
        on_fault=lambda path, fault: told.append((path, fault)),
    )
    try:
        server.recover(Recovery(), progress=Silent())
        with server.connect() as connection:
            with pytest.raises(psycopg.Error, match=r"could not read block 0 .*Input/output error"):
                connection.execute("SELECT count(*) FROM far")
            assert connection.execute("SELECT count(*) FROM ledger").fetchone() == (31,)
    except NoFuse as fault:
        pytest.skip(f"{fault.reason}: needs /dev/fuse")
    finally:
        server.close()
    assert told[0][0] == path
    assert "its pack is damaged" in told[0][1].what
    assert len(told) == 1
    assert isinstance(server.damage, Damaged)


def test_a_full_disk_ends_the_server(story15: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has told PostgreSQL that the page is written: nobody may read on."""
    with opened(story15) as server:

        def full(self: ScratchFiles, node: int, offset: int, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "no room")

        monkeypatch.setattr(ScratchFiles, "write", full)
        with server.connect() as connection, pytest.raises(psycopg.Error):
            for _ in range(50):
                connection.execute(
                    "CREATE TABLE wide AS SELECT repeat('x', 1000) FROM generate_series(1, 9000)"
                )
                connection.execute("DROP TABLE wide")
                connection.execute("CHECKPOINT")
        assert isinstance(server.ended(), TargetFull)


def test_no_room_at_the_beginning_is_refused(
    story15: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_LEAST_ROOM", 1 << 60)
    with pytest.raises(TargetFull, match="has room for"), opened(story15):
        pass


def test_what_a_dead_run_left_is_removed_by_the_next(story15: Story, folder: Path) -> None:
    dead, living = folder / "strongroom-open-dead", folder / "strongroom-open-alive"
    for each in (dead, living):
        (each / "blocks").mkdir(parents=True)
        (each / "lock").touch()
    lock = opening._lock(str(living))
    try:
        with opened(story15, scratch=str(folder)) as server:
            assert os.path.dirname(server.directory) == str(folder)
            assert not dead.exists()
            assert living.exists()
    finally:
        os.close(lock)


def test_without_a_device_it_says_why(story15: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_DEVICE", "/dev/no-such-device")
    with pytest.raises(NoFuse, match="No such file"):
        OpenedServer(15, story15.fetch, story15.room.reader(story15.report), story15.facts)
