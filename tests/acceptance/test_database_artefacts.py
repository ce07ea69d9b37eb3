"""Artefacts of a database: out of a real server, back by `import` and by what everybody has."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from acceptance.conftest import Desk
from strongroom.errors import StrongroomError
from strongroom.postgres.compare import compare_databases
from strongroom.postgres.embedded import EmbeddedServer

pytestmark = pytest.mark.xdist_group("acceptance-artefacts")  # one worker: one server for all

CONFIG = """\
[repository]
url = "{repository}"
passphrase = "env:STRONGROOM_PASSPHRASE"

[source.zoo]
type = "postgres"
dsn = "host={host} port={port} user={user} dbname=zoo sslmode=disable"
password = "env:DATABASE_PASSWORD"
"""
ZOO = Path(__file__).parent.parent / "postgres/zoo.sql"
CANARY = Path(tempfile.gettempdir()) / f"strongroom-canary-import-{os.getpid()}"
_numbers = count(1)


class House:
    """A server with one database of every kind of object, and a repository with its backup."""

    def __init__(self, root: Path, server: EmbeddedServer) -> None:
        self.server, self.root = server, root
        with server.connect() as connection:
            self.password = str(connection.info.password)
        self.bin = server.installation.bindir
        self.desk(root).run("init", "--quiet")
        self.desk(root).run("backup", "zoo")

    def desk(self, root: Path) -> Desk:
        desk = Desk(root)
        desk.repository = self.root / "repository"
        desk.environ |= {"DATABASE_PASSWORD": self.password, "PGPASSWORD": self.password}
        server = self.server
        desk.config.write_text(
            CONFIG.format(
                repository=desk.repository,
                host=server.socket_directory,
                port=server.port,
                user=server.user,
            )
        )
        return desk

    def to(self, database: str, user: str | None = None) -> str:
        """The target of an import, as a person writes it."""
        server = self.server
        where = f"host={server.socket_directory} port={server.port} sslmode=disable"
        return f"{where} user={user or server.user} dbname={database}"

    def new(self) -> str:
        """A name that no database has."""
        return f"back_{next(_numbers)}"

    def make(self) -> str:
        name = self.new()
        with self.server.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return name

    def stock(self, program: str, *words: str, script: bytes | None = None) -> bytes:
        """A program of PostgreSQL, as everybody has it."""
        done = subprocess.run(
            [os.path.join(self.bin, program), *words],
            input=script,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def names(self) -> set[str]:
        with self.server.connect() as connection:
            return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}

    def unlike(self, other: str, one: str = "zoo") -> list[str]:
        """How two databases differ, but for what is the database's own and in no plain dump."""
        found = compare_databases(self.server.dsn_for(one), self.server.dsn_for(other))
        return [text for text in found if not text.startswith(("setting ", "database itself"))]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    try:
        server = EmbeddedServer(durable=False, settings={"max_prepared_transactions": "5"})
    except StrongroomError as missing:
        pytest.skip(f"no PostgreSQL server can be had: {missing.what}")
    with server:
        with server.connect() as connection:
            connection.execute("CREATE ROLE zoo_owner; CREATE ROLE zoo_reader")
            connection.execute("CREATE DATABASE zoo")
        with server.connect("zoo") as connection:
            connection.execute(ZOO.read_text("utf-8"))
            # Enough that an export lasts: what is pressed hard takes longer.
            connection.execute(
                "CREATE TABLE public.long AS SELECT n, md5(n::text) || md5((-n)::text) AS noise"
                " FROM generate_series(1, 250000) n"
            )
        yield House(tmp_path_factory.mktemp("artefacts"), server)


@pytest.fixture
def desk(tmp_path: Path, house: House) -> Iterator[Desk]:
    yield house.desk(tmp_path)
    assert not any(name.startswith("strongroom-") for name in house.names())
    assert not CANARY.exists(), "a dump ran a command on the server"


def made(desk: Desk, format: str) -> Path:
    body = desk.run("export", "zoo", "-o", "out", "--format", format, "--json").result
    return desk.root / str(body["artefact"]["path"])


@pytest.mark.parametrize("format", ["sql.gz", "custom"])
def test_there_and_back(desk: Desk, house: House, format: str) -> None:
    """export, import into a new database: every row and object; then the name is taken."""
    path, name = made(desk, format), house.new()
    desk.run("import", str(path), "--to", house.to(name), "--dry-run")
    assert name not in house.names()
    body = desk.run("import", str(path), "--to", house.to(name), "--json").result
    assert body["signed"] is True and body["facts"]["rows"] > 250_000
    assert house.unlike(name) == []
    with house.server.connect(name) as connection:
        connection.execute("DROP TABLE public.long")
    done = desk.run("import", str(path), "--to", house.to(name), status=4)
    assert "exists already" in done.stderr
    assert house.unlike(name) != []


def test_sql_by_gunzip_and_psql(desk: Desk, house: House) -> None:
    path, name = made(desk, "sql.gz"), house.make()
    subprocess.run(["sha256sum", "-c", f"{path.name}.sha256"], cwd=path.parent, check=True)
    subprocess.run(["gunzip", path], check=True)
    words = ("-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(path.with_suffix("")))
    house.stock("psql", *words, house.server.dsn_for(name))
    assert house.unlike(name) == []


def test_custom_by_pg_restore(desk: Desk, house: House) -> None:
    path, name = made(desk, "custom"), house.make()
    subprocess.run(["sha256sum", "-c", f"{path.name}.sha256"], cwd=path.parent, check=True)
    house.stock("pg_restore", "--exit-on-error", "-d", house.server.dsn_for(name), str(path))
    assert house.unlike(name) == []


@pytest.mark.parametrize(
    "more",
    [
        (),
        pytest.param(("--compress=0",), marks=pytest.mark.sweep),
        pytest.param(("--inserts",), marks=pytest.mark.sweep),
    ],
)
def test_a_stock_archive_of_somebody_elses(desk: Desk, house: House, more: tuple[str, ...]) -> None:
    """What stock pg_dump wrote into a file, with places of its own and pressed; nobody signed."""
    name, path = house.new(), desk.root / "stock.dump"
    if "--inserts" in more:
        more += ("--exclude-table-data=public.long",)
    words = ("-Fc", *more, "-f", str(path), house.server.dsn_for("zoo"))
    house.stock("pg_dump", *words)
    unsigned = ("import", str(path), "--to", house.to(name), "--unsigned")
    done = desk.run(*unsigned, status=4)
    assert "Nobody vouches" in done.stderr and "--trust-code" in done.error_lines[2]
    assert name not in house.names()
    desk.run(*unsigned, "--trust-code")
    different = [
        text for text in house.unlike(name) if not text.startswith('rows of "public"."long"')
    ]
    assert different == []
    assert "--inserts" in more or house.unlike(name) == []


@pytest.mark.parametrize("format", ["sql.gz", "custom"])
def test_what_was_changed_or_cut_makes_no_database(desk: Desk, house: House, format: str) -> None:
    path = made(desk, format)
    whole = path.read_bytes()
    before = house.names()
    for changed in (
        whole[: len(whole) // 2]
        + bytes([whole[len(whole) // 2] ^ 1])
        + whole[len(whole) // 2 + 1 :],
        whole[: len(whole) // 2],
    ):
        path.write_bytes(changed)
        words = ["import", str(path), "--to", house.to(house.new())]
        desk.run(*words, status=9)
        path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)
        path.with_name(f"{path.name}.manifest").rename(path.with_name("manifest"))
        if len(changed) < len(whole):
            desk.run(*words, "--unsigned", "--trust-code", status=9)
        path.with_name("manifest").rename(path.with_name(f"{path.name}.manifest"))
    assert house.names() == before


def test_an_archive_pressed_in_a_way_that_pg_restore_does_not_know(
    desk: Desk, house: House
) -> None:
    """The client tools here are without zstd; where they have it, the archive is a lie."""
    path = desk.root / "stock.dump"
    house.stock("pg_dump", "-Fc", "--compress=0", "-f", str(path), house.server.dsn_for("zoo"))
    whole = bytearray(path.read_bytes())
    assert whole[10] == 1 and whole[11] == 0
    whole[11] = 3
    path.write_bytes(whole)
    name = house.new()
    words = ["import", str(path), "--to", house.to(name), "--unsigned", "--trust-code"]
    done = desk.run(*words, status=None)
    assert done.status in (4, 9) and name not in house.names()
    assert done.status == 9 or "another build" in done.error_lines[2]


def test_no_archive_at_all(desk: Desk, house: House) -> None:
    for content in (b"", b"PGDMP", b"PGDMP\1\x0f\0\4\x08\1" + bytes(500), os.urandom(5000)):
        path = desk.root / "x.dump"
        path.write_bytes(content)
        words = ["import", str(path), "--to", house.to(house.new()), "--unsigned", "--trust-code"]
        desk.run(*words, status=9)


# -- killed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["sql.gz", "custom"])
def test_killed_in_the_middle_of_an_export(desk: Desk, house: House, format: str) -> None:
    out = desk.root / "out"
    process = desk.start("export", "zoo", "-o", "out", "--format", format)
    while not any(part.stat().st_size > 1 << 16 for part in out.glob(".zoo_*.part")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not list(out.glob("zoo_*"))
    path, name = made(desk, format), house.new()
    subprocess.run(["sha256sum", "-c", f"{path.name}.sha256"], cwd=path.parent, check=True)
    desk.run("import", str(path), "--to", house.to(name))
    assert house.unlike(name) == []


@pytest.mark.parametrize("format", ["sql.gz", "custom"])
def test_killed_in_the_middle_of_an_import(desk: Desk, house: House, format: str) -> None:
    """What it made has a name that says so, and never the one that was asked for."""
    path, name = made(desk, format), house.new()
    process = desk.start("import", str(path), "--to", house.to(name))
    while not any(found.startswith("strongroom-unfinished-") for found in house.names()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert name not in house.names()
    for left in house.names():
        if left.startswith("strongroom-unfinished-"):
            with house.server.connect() as connection:
                connection.execute(f'DROP DATABASE "{left}" WITH (FORCE)')
    desk.run("import", str(path), "--to", house.to(name))
    assert house.unlike(name) == []


# -- hostile -------------------------------------------------------------------------------------

HOSTILE = {
    "a function in C": "CREATE FUNCTION public.f() RETURNS int LANGUAGE c AS '/tmp/evil.so', 'f';",
    "internal": "CREATE FUNCTION public.f(oid, text) RETURNS int LANGUAGE internal AS 'be_lo_export';",
    "LOAD": "LOAD '/tmp/evil.so';",
    "ALTER SYSTEM": f"ALTER SYSTEM SET archive_command = 'touch {CANARY}';",
    "COPY FROM PROGRAM": f"CREATE TABLE public.t (a text); COPY public.t FROM PROGRAM 'touch {CANARY}';",
    "COPY TO a file": f"CREATE TABLE public.t (a text); COPY public.t TO '{CANARY}';",
    "a backslash": f"\\! touch {CANARY}\n",
    "a default": f"CREATE TABLE public.t (a int, b int DEFAULT lo_export(1, '{CANARY}'));",
    "a subscription": "CREATE SUBSCRIPTION s CONNECTION 'host=evil' PUBLICATION p;",
    "a role": "GRANT pg_execute_server_program TO PUBLIC;",
    "a block": f"DO $$ BEGIN EXECUTE 'COPY (SELECT 1) TO PROGRAM ''touch {CANARY}'''; END $$;",
    "a body": "CREATE FUNCTION public.f(a int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN EXECUTE "
    f"'COPY (SELECT 1) TO PROGRAM ''touch {CANARY}'''; RETURN true; END $$; "
    "CREATE TABLE public.t (a int CHECK (public.f(a)));\nCOPY public.t FROM stdin;\n1\n\\.\n",
}
NEVER = ("LOAD", "ALTER SYSTEM", "COPY FROM PROGRAM", "COPY TO a file", "a backslash", "a role")


@pytest.fixture(scope="module")
def importer(house: House) -> str:
    """A role that makes databases, and nothing else."""
    with house.server.connect() as connection:
        connection.execute("CREATE ROLE importer LOGIN CREATEDB PASSWORD 'importer'")
    return "importer"


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_dumps_run_nothing(desk: Desk, house: House, importer: str, what: str) -> None:
    path = desk.root / "x.sql.gz"
    path.write_bytes(gzip.compress(b"SET search_path = '';\n" + HOSTILE[what].encode()))
    before = house.names()
    words = ["import", str(path), "--unsigned", "--to"]
    done = desk.run(*words, house.to(house.new()), status=4)
    assert "Nobody vouches" in done.stderr
    as_importer = {"PGPASSWORD": "importer"}
    done = desk.run(*words, house.to(house.new(), importer), status=None, env=as_importer)
    assert done.status == (1 if what == "a body" else 4), done.stderr
    if what in NEVER or what == "a block":
        more = ["--trust-code"]
        desk.run(*words, house.to(house.new()), *more, status=4)
    assert house.names() == before


def test_a_dump_that_nobody_signed_by_a_role_that_may_do_little(
    desk: Desk, house: House, importer: str
) -> None:
    name, path = house.new(), desk.root / "stock.sql"
    with house.server.connect() as connection:
        connection.execute("CREATE DATABASE plain")
    with house.server.connect("plain") as connection:
        connection.execute(
            "CREATE TABLE t (a int PRIMARY KEY, b text); INSERT INTO t VALUES (1, 'x');"
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;"
            "CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();"
            "GRANT SELECT ON t TO zoo_reader"
        )
    house.stock("pg_dump", "-f", str(path), house.server.dsn_for("plain"))
    subprocess.run(["gzip", path], check=True)
    to = house.to(name, importer)
    words = ("import", f"{path}.gz", "--unsigned", "--to", to)
    desk.run(*words, "--no-owner", env={"PGPASSWORD": "importer"})
    with house.server.connect(name) as connection:
        assert connection.execute("SELECT * FROM t").fetchall() == [(1, "x")]
        (owner,) = connection.execute(
            "SELECT relowner::regrole::text FROM pg_class WHERE relname = 't'"
        ).fetchone() or ("",)
    assert owner == importer
