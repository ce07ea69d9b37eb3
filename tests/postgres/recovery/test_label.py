"""What a restored directory does without its backup_label, and a backup that a standby gave."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from postgres.physical.test_standby import caught_up
from postgres.physical.tools import At, Restored, Room, cluster, run
from strongroom.errors import DatabaseUnreachable, NotFound
from strongroom.operations.back_up import Report
from strongroom.postgres.embedded import EmbeddedServer, find_server
from strongroom.postgres.physical.control import FILE_SIZE, ControlFile
from strongroom.postgres.recovery.settings import Recovery
from strongroom.postgres.recovery.sink import PhysicalSink
from strongroom.postgres.sandbox import Sandbox
from strongroom.progress import Silent

ROWS = "SELECT generate_series(1, 1000) AS a"


@contextmanager
def sandbox(room: Room, report: Report) -> Iterator[Sandbox]:
    """Restored, and looked at by pg_verifybackup; not started."""
    major = room.server.installation.version[0]

    def fetch(name: str) -> bytes | None:
        path = room.archive.folder / name
        return path.read_bytes() if path.exists() else None

    made = Sandbox(major, fetch)
    try:
        target = made.data_directory
        sink = PhysicalSink(os.fsencode(target), owner=made.owner)
        sink.restore(room.reader(report), progress=Silent())
        program = os.path.join(find_server(major).bindir, "pg_verifybackup")
        subprocess.run([program, "--no-parse-wal", target], check=True, capture_output=True)
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("major", [pytest.param(15, marks=pytest.mark.sweep), 18])
def test_trap_4_without_backup_label_recovery_begins_where_the_backup_did(
    major: int, folder: Path
) -> None:
    """Whoever removes it after a restore has what was backed up, or no server: never a cluster that
    lacks what a checkpoint in the middle of the backup made PostgreSQL believe to be in the files."""
    try:
        server = cluster(major)
    except NotFound:
        pytest.skip(f"no PostgreSQL {major} here")
    with server:
        run(server, f"CREATE TABLE t AS {ROWS}", "CHECKPOINT")
        room = Room(server, folder)
        later = At(
            "reading pg_control",
            lambda: run(server, f"INSERT INTO t {ROWS}", "CHECKPOINT"),
        )
        report, facts = room.take(progress=later)
    with sandbox(room, report) as made:
        data = Path(made.data_directory)
        with open(data / "global/pg_control", "rb") as file:
            assert ControlFile.parse(file.read(FILE_SIZE)).checkpoint == facts.checkpoint_lsn
        (data / "backup_label").unlink()
        made.recover(Recovery(), progress=Silent())
        assert run(made, "SELECT count(*) FROM t") == (2000,)
    with sandbox(room, report) as made:  # and nobody tells it to recover
        (data := Path(made.data_directory)).joinpath("backup_label").unlink()
        alone = EmbeddedServer(made.installation, durable=False)
        try:
            os.rename(data, alone.data_directory)
            alone._initialised = True
            alone._configure()
            with pytest.raises(DatabaseUnreachable, match="checkpoint record"):
                alone.start()
        finally:
            alone.close()


@pytest.mark.parametrize("label", [True, pytest.param(False, marks=pytest.mark.sweep)])
def test_a_backup_of_a_standby_is_recovered(folder: Path, label: bool) -> None:
    """It has a standby.signal, and a pg_control whose minimum recovery point is its end."""
    with cluster(16) as pg:
        run(pg, f"CREATE TABLE t AS {ROWS}", "CHECKPOINT")
        base = Room(pg, folder / "base")
        report, _ = base.take()
        with Restored(pg, base.reader(report), base.archive, standby=True) as standby:
            run(pg, f"INSERT INTO t {ROWS}", "CHECKPOINT")
            caught_up(pg, standby)
            room = Room(standby, folder / "standby")
            report, facts = room.take(room.source(patience=0.1))
            assert facts.from_standby
            run(pg, "SELECT pg_switch_wal()")
        archive = Path(pg.data_directory, "pg_wal")
        for path in archive.iterdir():
            if path.is_file():
                room.archive.folder.joinpath(path.name).write_bytes(path.read_bytes())
    with sandbox(room, report) as made:
        if not label:
            Path(made.data_directory, "backup_label").unlink()
        made.recover(Recovery(), progress=Silent())
        assert run(made, "SELECT count(*), pg_is_in_recovery() FROM t") == (2000, False)
