"""A plain dump put back by us is what psql makes of it; a snapshot written as SQL restores as well."""

from __future__ import annotations

import io
import subprocess
import threading

import pytest

from postgres.conftest import Databases
from postgres.keeping import DoubleKeeper, EngineKeeper
from postgres.plain.tools import dump, program, psql, put, same, unlike
from strongroom.errors import Damaged, NotFound, Refused, StrongroomError
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.logical.source import LogicalSource
from strongroom.postgres.plain.executor import restore_plain
from strongroom.postgres.plain.scripting import script_of
from strongroom.postgres.plain.writing import write_custom, write_plain


@pytest.mark.parametrize(("server_major", "by"), [(15, 15), (15, 18), (16, 16), (16, 18), (18, 18)])
def test_what_pg_dump_printed_comes_back_as_by_psql(
    request: pytest.FixtureRequest, databases: Databases, server_major: int, by: int
) -> None:
    server: EmbeddedServer = request.getfixturevalue(f"server{server_major}")
    zoo = databases.zoo(server)
    script = dump(server, zoo, by)
    ours, theirs = databases.make(server), databases.make(server)
    done = put(server, ours, script)
    if by == server_major:
        psql(server, theirs, script)
        assert same(server, ours, theirs)
    assert unlike(server, zoo, ours) == []
    assert done.rows > 75_000
    assert done.size == len(script)


@pytest.mark.parametrize(
    "option",
    [
        "--rows-per-insert=100",
        *(pytest.param(one, marks=pytest.mark.sweep) for one in ("--inserts", "--column-inserts")),
    ],
)
def test_dumps_as_inserts_come_back(
    server18: EmbeddedServer, databases: Databases, option: str
) -> None:
    zoo = databases.zoo(server18)
    ours = databases.make(server18)
    put(server18, ours, dump(server18, zoo, 18, option, "--clean", "--if-exists"))
    assert unlike(server18, zoo, ours) == []


def test_a_snapshot_is_written_as_plain_sql(
    server: EmbeddedServer, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strongroom.postgres.logical.plan.SMALLEST_ALONE", 200_000)
    monkeypatch.setattr("strongroom.postgres.logical.plan.SMALLEST_GROUPED", 20_000)
    zoo = databases.zoo(server)
    kept = DoubleKeeper().keep(LogicalSource("db", server.dsn_for(zoo), jobs=4))
    assert len(list(kept.snapshot.entries())) > 4
    pieces: list[bytes] = []
    size = write_plain(kept.snapshot, lambda piece: pieces.append(bytes(piece)))
    script = b"".join(pieces)
    assert size == len(script)
    lines = [line for line in script.splitlines() if line.startswith(b"\\")]
    marks = [line.split() for line in lines if b"restrict" in line]
    assert [mark[0] for mark in marks] == [b"\\restrict", b"\\unrestrict"]
    assert marks[0][1] == marks[1][1]
    ours, theirs = databases.make(server), databases.make(server)
    put(server, ours, script)
    psql(server, theirs, script)
    assert unlike(server, zoo, ours) == []
    assert unlike(server, zoo, theirs) == []
    assert same(server, ours, theirs)
    assert same(server, zoo, ours)


@pytest.mark.parametrize("jobs", ["-j1", "-j3"])
def test_a_snapshot_is_written_as_one_custom_archive(
    server: EmbeddedServer,
    databases: Databases,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    jobs: str,
) -> None:
    monkeypatch.setattr("strongroom.postgres.logical.plan.SMALLEST_ALONE", 200_000)
    monkeypatch.setattr("strongroom.postgres.logical.plan.SMALLEST_GROUPED", 20_000)
    zoo = databases.zoo(server)
    kept = EngineKeeper().keep(LogicalSource("db", server.dsn_for(zoo), jobs=4))
    path = tmp_path_factory.mktemp("custom") / "zoo.dump"
    with path.open("wb") as file:
        assert write_custom(kept.snapshot, file.write) == file.tell()
    target = databases.make(server)
    pg_restore = program("pg_restore", 18) or "pg_restore"
    argv = [pg_restore, jobs, "--exit-on-error", "-d", server.dsn_for(target), str(path)]
    if server.installation.version[0] < 17:  # SET transaction_timeout is an error there
        argv.remove("--exit-on-error")
    done = subprocess.run(argv, capture_output=True, check=False)
    assert done.stderr.count(b"error:") == done.stderr.count(b'parameter "transaction_timeout"')
    assert unlike(server, zoo, target) == []


@pytest.mark.parametrize(("server_major", "by"), [(15, 15), (15, 18), (16, 16), (18, 18)])
def test_custom_archives_come_back_through_our_own_executor(
    request: pytest.FixtureRequest, databases: Databases, server_major: int, by: int
) -> None:
    """Stock pg_dump's and ours; pg_restore writes to a pipe and connects to nothing."""
    server: EmbeddedServer = request.getfixturevalue(f"server{server_major}")
    zoo = databases.zoo(server)
    kept = EngineKeeper().keep(LogicalSource("db", server.dsn_for(zoo), jobs=4))
    own: list[bytes] = []
    write_custom(kept.snapshot, own.append)
    for content in (dump(server, zoo, by, "--format=custom"), b"".join(own)):
        target, asked = databases.name(server), io.BytesIO(content)
        with script_of(asked.read) as read:
            restore_plain(read, server.dsn, target)
        assert unlike(server, zoo, target) == []
        assert asked.tell() == len(content)


def test_what_stops_a_custom_archive_ends_pg_restore(
    server18: EmbeddedServer, databases: Databases
) -> None:
    zoo = databases.zoo(server18)
    content = dump(server18, zoo, 18, "--format=custom")

    def failing(most: int) -> bytes:
        if piece := whole.read(most):
            return piece
        raise Damaged("it was changed meanwhile")

    whole = io.BytesIO(content)
    name = databases.name(server18)
    with pytest.raises(Damaged, match="changed meanwhile"), script_of(failing) as read:
        restore_plain(read, server18.dsn, name)
    for cut in range(len(content) // 7, len(content), len(content) // 7):
        with (
            pytest.raises(StrongroomError),
            script_of(io.BytesIO(content[:cut]).read) as read,
        ):
            restore_plain(read, server18.dsn, name)
    with pytest.raises(RuntimeError), script_of(io.BytesIO(content).read) as read:
        read(100)
        raise RuntimeError
    assert not [thread for thread in threading.enumerate() if thread.name in ("feed", "pg_restore")]
    with server18.connect() as connection:
        left = connection.execute(
            "SELECT datname FROM pg_database WHERE datname LIKE 'strongroom-%%' OR datname = %s",
            [name],
        ).fetchall()
    assert left == []


def test_into_a_new_database_that_takes_its_name_at_the_end(
    server16: EmbeddedServer, databases: Databases
) -> None:
    zoo = databases.zoo(server16)
    script = dump(server16, zoo, 16)
    name = databases.name(server16)
    restore_plain(io.BytesIO(script).read, server16.dsn, name)
    assert unlike(server16, zoo, name) == []
    with pytest.raises(Refused, match="exists already"):
        restore_plain(io.BytesIO(script).read, server16.dsn, name)
    bad = script.replace(b"\\unrestrict", b"\\! touch x\n\\unrestrict")
    with pytest.raises(Refused, match="backslash command"):
        restore_plain(io.BytesIO(bad).read, server16.dsn, name, replace=True)
    assert unlike(server16, zoo, name) == []
    restore_plain(io.BytesIO(script).read, server16.dsn, name, replace=True)
    assert unlike(server16, zoo, name) == []


def test_owners_and_rights_can_be_left_out(server16: EmbeddedServer, databases: Databases) -> None:
    sql = (
        "CREATE TABLE t (a int); ALTER TABLE t OWNER TO zoo_owner; GRANT SELECT ON t TO zoo_reader"
    )
    script = dump(server16, databases.make(server16, sql=sql), 16)
    script = script.replace(b"zoo_owner", b"nobody_here").replace(b"zoo_reader", b"nobody_there")
    put(server16, databases.make(server16), script, owner=False, privileges=False)


def test_only_an_empty_database_is_filled(server16: EmbeddedServer, databases: Databases) -> None:
    taken = databases.make(server16, sql="CREATE TYPE t AS ENUM ('a')")
    with pytest.raises(Refused, match="is not empty"):
        put(server16, taken, b"SELECT 1;")


def test_a_snapshot_without_the_database_is_said(
    server16: EmbeddedServer, databases: Databases
) -> None:
    kept = DoubleKeeper().keep(LogicalSource("db", server16.dsn_for(databases.make(server16))))
    with pytest.raises(NotFound):
        write_plain(kept.snapshot, lambda _: None, database="other")
