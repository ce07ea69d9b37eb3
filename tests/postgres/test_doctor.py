"""doctor against real servers, each misconfigured in one way after another.

Rule: few servers are started, and reloaded often; what is asked is what `strongroom doctor` asks, without
the command around it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from postgres.tls import own_address, tls_server
from postgres.wal.room import WHERE, WalRoom, program, until
from strongroom import wiring
from strongroom.config.model import PostgresTable
from strongroom.config.secrets import parse_secret
from strongroom.errors import NotFound
from strongroom.operations.doctor import Opened
from strongroom.operations.doctor_database import Database, look_at_database
from strongroom.postgres.embedded import EmbeddedServer, find_server, service_account
from strongroom.repository.repository import Repository
from strongroom.rules.preconditions import Finding

SLOT = "strongroom_db"


class Patient:
    """A server that is looked at, as source `db` of a repository (or of none)."""

    def __init__(self, server: EmbeddedServer, repository: Repository | None, **table: Any) -> None:
        self.server, self.repository = server, repository
        parts = {key: str(value) for key, value in conninfo_to_dict(server.dsn).items()}
        os.environ["DOCTORS_PASSWORD"] = parts.pop("password")
        self.parts: dict[str, str] = parts
        self.table: dict[str, Any] = {"method": "physical", **table}
        self.clock: Callable[[], datetime] = wiring.now

    def look(self, **parts: str) -> dict[str, Finding]:
        """Look at it, by a dsn with these parts changed."""
        dsn = " ".join(f"{key}='{value}'" for key, value in {**self.parts, **parts}.items())
        table = PostgresTable(dsn=dsn, password=parse_secret("env:DOCTORS_PASSWORD"), **self.table)
        opened = Opened()
        opened.give(self.repository)
        conninfo, slot = wiring.wal_place("db", table, os.environ)
        database = Database(
            "db",
            table,
            conninfo,
            slot,
            ["db"],
            needs=lambda: wiring.rights_wanted("db", table, os.environ),
            probe=lambda: wiring.probe_source("db", table, environ=os.environ),
            now=self.clock,
            opened=opened,
        )
        return {
            one.item.removeprefix("source db").strip(): one for one in look_at_database(database)
        }

    def set(self, **settings: str | None) -> None:
        with self.server.connect() as connection:
            for name, value in settings.items():
                to = "RESET" if value is None else "SET"
                what = "" if value is None else " = '" + value.replace("'", "''") + "'"
                connection.execute(f"ALTER SYSTEM {to} {name}{what}".encode())
            connection.execute("SELECT pg_reload_conf()")
        until(lambda: all(self.shows(name, value) for name, value in settings.items()))

    def shows(self, name: str, value: str | None) -> bool:
        with self.server.connect() as connection:
            row = connection.execute("SELECT setting FROM pg_settings WHERE name = %s", [name])
            return value is None or row.fetchone() == (value,)

    def run(self, *sql: str) -> None:
        with self.server.connect() as connection:
            for one in sql:
                connection.execute(one.encode())

    def failed(self) -> str:
        """Wait until the server has failed to archive a segment; which one."""
        self.run("SELECT pg_stat_reset_shared('archiver')", "CREATE TABLE IF NOT EXISTS t (a int)")
        return self._written("last_failed_wal IS NOT NULL", "last_failed_wal")

    def archived(self) -> None:
        """Wait until it archives again."""
        self._written("last_archived_time > coalesce(last_failed_time, '-infinity')", "''")

    def _written(self, condition: str, what: str) -> str:
        """Write segments, each of which wakes the archiver, until its statistics say something."""
        found: list[str] = []

        def look() -> bool:
            self.run("INSERT INTO t VALUES (1)", "SELECT pg_switch_wal()")
            time.sleep(0.3)
            query = f"SELECT {what} FROM pg_stat_archiver WHERE {condition}"
            with self.server.connect() as connection:
                found.extend(row[0] for row in connection.execute(query.encode()))
            return bool(found)

        until(look)
        return found[0]


@pytest.fixture
def room() -> Iterator[WalRoom]:
    made = WalRoom()
    try:
        made.init()
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def open_as_a_reader(room: WalRoom) -> Iterator[Repository]:
    storage = wiring.open_storage(
        SimpleNamespace(repository=SimpleNamespace(url=str(room.repository), s3=None)),  # type: ignore[arg-type]
        {},
    )
    try:
        yield wiring.open_repository(storage, [wiring.key_file_holder(str(room.key))])
    finally:
        storage.close()


def test_why_wal_was_not_archived(room: WalRoom) -> None:
    """One server, whose archive_command is wrong in every way in turn; the reason is told each time."""
    if os.geteuid() not in (0, service_account().uid):
        pytest.skip("the server's files are another account's")
    good = room.archive_command()
    alone = f"{program()} wal push --config {room.config} --source db %p"
    with (
        room.server(16, wal_recycle="on", max_wal_size="64MB") as server,
        open_as_a_reader(room) as repository,
    ):
        patient = Patient(server, repository, via="local")
        found = patient.look()
        assert found["archive_command"].verdict == "warning"  # archive_timeout is 0
        assert found["archiver"].verdict == "ok" and "the command works" in found["archiver"].what
        assert found["wal_level"].verdict == found["TLS"].verdict == found["clock"].verdict == "ok"
        assert found["checksums" if "checksums" in found else "fsync"].verdict != "ok"
        assert found["rights"].verdict == "warning" and "superuser" in found["rights"].what
        assert "of log" in found["pg_wal"].what and not list(room.repository.rglob("*clock*"))

        def reason(command: str) -> Finding:
            patient.set(archive_command=command)
            one = patient.look()["archiver"]
            assert one.verdict == "failed", one
            return one

        patient.set(archive_timeout="60", archive_command="false")
        name = patient.failed()
        missing = reason("/nowhere/strongroom wal push --source db %p")
        assert f"WAL was not archived: {name}" in missing.what
        assert "there is no /nowhere/strongroom" in missing.what and "whole path" in missing.do
        unread = room.root / "other.toml"
        unread.write_text("[repository]\nurl = 7\n")
        unread.chmod(0o600)
        assert "other.toml" in reason(f"{program()} wal push --config {unread} %p").what
        config = room.config.read_text()
        broken = room.root / "broken.toml"
        broken.write_text(config.replace(str(room.key), "/nowhere/key"))
        broken.chmod(0o644)
        assert "/nowhere/key" in reason(alone.replace(str(room.config), str(broken))).what
        broken.write_text(config.replace(str(room.repository), "/nowhere/repository"))
        assert "/nowhere/repository" in reason(alone.replace(str(room.config), str(broken))).what
        assert "configured" in reason(alone.replace("--source db", "--source nobody")).what
        # What only a shell understands is not tried: so it is said.
        hidden = reason(f"test -e /nowhere && {alone}")
        assert "cannot be known from here" in hidden.what and "server's log" in hidden.do
        # From here on the server may archive what waits, when it tries again.
        folders = [room.repository, *(one for one in room.repository.rglob("*") if one.is_dir())]
        for mode in (0o500, 0o700):  # as when somebody else made it first
            for folder in folders:
                folder.chmod(mode)
            if mode == 0o500:
                denied = reason(alone)
                assert "may not write" in denied.what and "status 8" in denied.what, denied
                assert "chown" in denied.do
        # A server that is another one than the source was.
        store_of(repository).bind("other", 4711)
        for path in room.repository.rglob("*"):
            os.chown(path, room.account.uid, room.account.gid)
        foreign = reason(alone.replace("--source db", "--source other"))
        assert "system 4711" in foreign.what and "--accept-system" in foreign.do
        patient.set(archive_command=f"{alone} || true")
        assert "hides the status" in patient.look()["archive_command"].what
        # It is mended: what failed is told as past.
        patient.set(archive_command=good)
        patient.archived()
        found = patient.look()
        assert found["archiver"].verdict == "ok" and found["archive_command"].verdict == "ok"
        # Other content under a name: what is in the repository says so, also from far away.
        _conflict(room, patient, alone)


def _conflict(room: WalRoom, patient: Patient, alone: str) -> None:
    patient.set(archive_command="false")
    name = patient.failed()
    segment = Path(patient.server.data_directory, "pg_wal", name)
    before = segment.read_bytes()
    other = bytearray(before)
    other[-1] ^= 1
    segment.write_bytes(bytes(other))
    room.push(patient.server.data_directory, f"pg_wal/{name}")
    segment.write_bytes(before)
    patient.set(archive_command=alone)
    room.push(patient.server.data_directory, f"pg_wal/{name}", status=9)
    here = patient.look()["archiver"]
    assert here.verdict == "failed" and "other content" in here.what, here
    patient.table["data_directory"] = "/nowhere"  # as from another host
    far = patient.look()["archiver"]
    assert "two servers write the same timeline" in far.what, far


def store_of(repository: Repository) -> Any:
    from strongroom.repository.wal import WalStore  # noqa: PLC0415

    return WalStore(repository)


def _server(major: int, **settings: str) -> EmbeddedServer:
    try:
        installation = find_server(major)
    except NotFound:
        pytest.skip(f"no PostgreSQL {major} here: {WHERE[major]}")
    return EmbeddedServer(installation, tcp=True, settings=settings, initdb=["--wal-segsize=1"])


def test_slots_and_settings() -> None:
    """18, with slots that are read by nobody, about to be lost, and lost; clocks that differ."""
    settings = {
        "max_slot_wal_keep_size": "4MB",
        "max_wal_size": "1GB",  # no checkpoint that nobody asked for
        "min_wal_size": "2MB",
        "archive_mode": "on",
        "archive_command": "/bin/true",
        "fsync": "off",
        "full_page_writes": "off",
        "max_wal_senders": "2",
    }
    with _server(18, **settings) as server:
        patient = Patient(server, None, via="stream")
        found = patient.look()
        assert {"fsync", "full_page_writes"} <= {
            item for item, one in found.items() if one.verdict == "failed"
        }
        assert "archives nothing" in found["archive_command"].what and "archiver" not in found
        assert "slot" not in found and found["pg_wal"].verdict in ("ok", "warning")
        patient.table["slot"] = SLOT
        assert "is not there" in patient.look()["slot"].what
        patient.run(f"SELECT pg_create_physical_replication_slot('{SLOT}', true)")
        idle = patient.look()["slot"]
        assert idle.verdict == "warning" and "4.0 MiB" in idle.what, idle
        patient.run("CREATE TABLE t (a int)")
        for _ in range(8):
            patient.run("INSERT INTO t VALUES (1)", "SELECT pg_switch_wal()")
        unreserved = patient.look()["slot"]
        assert unreserved.verdict == "failed" and "next checkpoint" in unreserved.what, unreserved
        patient.run("CHECKPOINT")
        lost = patient.look()["slot"]
        assert lost.verdict == "failed" and "is lost" in lost.what and "--drop-slot" in lost.do
        patient.run(
            f"SELECT pg_drop_replication_slot('{SLOT}')",
            f"SELECT pg_create_physical_replication_slot('{SLOT}', true)",
        )
        patient.set(max_slot_wal_keep_size="-1", idle_replication_slot_timeout="60")
        assert "not read by anybody" in patient.look()["slot"].what
        # A clock that is not the server's, at the seam.
        for apart, verdict in ((30, "ok"), (-120, "warning"), (3600, "failed")):
            patient.clock = lambda apart=apart: datetime.now(UTC) + timedelta(seconds=apart)  # type: ignore[misc]
            assert patient.look()["clock"].verdict == verdict
        patient.clock = wiring.now
        # A role that is let in by the replication protocol alone.
        patient.run("CREATE ROLE stream LOGIN REPLICATION PASSWORD 'x'")
        hba = Path(server.data_directory, "pg_hba.conf")
        hba.write_text("local all postgres scram-sha-256\nlocal replication all scram-sha-256\n")
        patient.run("SELECT pg_reload_conf()")
        os.environ["DOCTORS_PASSWORD"] = "x"
        found = patient.look(user="stream")
        assert found["connection"].verdict == "warning"
        assert "replication protocol alone" in found["connection"].what
        assert found["wal_level"].verdict == "ok" and found["fsync"].verdict == "failed"


def test_a_server_that_cannot_be_backed_up_physically() -> None:
    """15 with wal_level = minimal; a disk that is full, as the kernel tells it; no connection at all."""
    settings = {
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "archive_mode": "off",
        "max_replication_slots": "0",
    }
    with _server(15, **settings) as server:
        patient = Patient(server, None, via="local")
        found = patient.look()
        assert "minimal" in found["wal_level"].what and found["wal_level"].verdict == "failed"
        assert (
            found["archive_command"].verdict == "warning"
            and "wal receive" in found["archive_command"].do
        )
        patient.table["via"] = "stream"
        found = patient.look()
        assert found["max_wal_senders"].verdict == "failed"
        assert found[""].verdict == "failed", "a replication connection is refused"
        full = SimpleNamespace(f_bavail=100, f_frsize=4096, f_blocks=1 << 20)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.statvfs", lambda path: full)
            room = patient.look()["pg_wal"]
            assert room.verdict == "failed" and "400 KiB free" in room.what
        patient.table = {"method": "logical"}
        found = patient.look()
        assert "wal_level" not in found and "archive_command" not in found
        assert found[""].verdict == found["tools"].verdict == found["collations"].verdict == "ok"
    found = patient.look()
    assert found["connection"].verdict == "failed" and found["tools"].verdict == "ok"
    assert set(found) == {"connection", "tools"}


def test_tls_as_negotiated() -> None:
    """TLS 1.2 forced, sslmode=require, no TLS; verified and 1.3: off the loopback, by our own address."""
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but the loopback")
    with tls_server(15, listen_addresses="*") as (server, certificate):
        patient = Patient(server, None, method="logical")
        hba = Path(server.data_directory, "pg_hba.conf")
        hba.write_text(hba.read_text() + "host all all all scram-sha-256\n")
        patient.set(ssl_max_protocol_version="TLSv1.3")
        far = {"host": address, "sslmode": "verify-full", "sslrootcert": str(certificate)}
        assert patient.look()["TLS"].verdict == "ok"  # by the socket
        verified = patient.look(**far)["TLS"]
        assert verified.verdict == "warning" and "nothing demands" in verified.what, verified
        demanded = patient.look(**far, ssl_min_protocol_version="TLSv1.3")
        assert demanded["TLS"].verdict == "ok" and "TLSv1.3" in demanded["TLS"].what
        assert demanded["connection"].verdict == demanded["clock"].verdict == "ok"
        required = patient.look(**{**far, "sslmode": "require"})["TLS"]
        assert required.verdict == "failed" and "sslmode is require" in required.what
        plain = patient.look(**{**far, "sslmode": "disable"})["TLS"]
        assert plain.verdict == "failed" and "not encrypted" in plain.what
        patient.set(ssl_max_protocol_version="TLSv1.2")
        older = patient.look(**far)["TLS"]
        assert older.verdict == "failed" and "negotiated TLSv1.2" in older.what
        refused = patient.look(**far, ssl_min_protocol_version="TLSv1.3")["connection"]
        assert refused.verdict == "failed" and "protocol version" in refused.what
