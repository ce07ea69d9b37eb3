"""Drills by commands: restored, looked at, judged, reported, and nothing left, whoever is killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from psycopg.conninfo import conninfo_to_dict

from acceptance.conftest import Desk
from strongroom.errors import StrongroomError
from strongroom.postgres.embedded import EmbeddedServer, find_server

pytestmark = pytest.mark.xdist_group("drill")  # one worker: what it sets up is used by all

CONFIG = """\
[repository]
url = "{repository}"
key_file = "{root}/key"

[source.dump]
type = "postgres"
dsn = "{dsn}"
password = "env:DATABASE_PASSWORD"
promise = {{ rto = "4h" }}

[source.dump.drill]
freshness = "SELECT max(at) FROM orders"
fresh_within = "26h"
sql = [{{ name = "orders", query = "SELECT count(*) FROM orders", expect = {rows} }}]
migrate = {{ argv = ["psql", "--no-psqlrc", "-c", "ALTER TABLE orders ADD extra int DEFAULT 7"] }}

[[source.dump.drill.smoke]]
argv = ["sh", "-c", 'test "$(psql -XAtc "SELECT sum(extra) FROM {{database}}.public.orders")" = {sum}']

[source.cluster]
type = "postgres"
dsn = "{dsn}"
password = "env:DATABASE_PASSWORD"
method = "physical"
promise = {{ rto = "4h" }}

[source.vault]
type = "files"
path = "{vault}"
promise = {{ rto = "1s" }}
"""
ROWS = 500


class Shop:
    """A server of one major, a vault, a repository with a backup of each, and a desk for them."""

    def __init__(self, root: Path, server: EmbeddedServer) -> None:
        self.server, self.desk = server, Desk(root)
        self.scratch = Path("/tmp") / f"sr-drills-{os.getpid()}-{root.name}"
        self.scratch.mkdir(mode=0o711)
        desk = self.desk
        parts = {key: str(value) for key, value in conninfo_to_dict(server.dsn).items()}
        desk.environ["DATABASE_PASSWORD"] = parts["password"]
        desk.environ["TMPDIR"] = str(self.scratch)
        psql = server.installation.bindir
        desk.environ["PATH"] = f"{psql}:{desk.environ['PATH']}"
        dsn = f"host={parts['host']} port={parts['port']} user={parts['user']} dbname=shop"
        self.text = CONFIG.format(
            repository=desk.repository, root=root, dsn=dsn, vault=desk.vault, rows=ROWS,
            sum=7 * ROWS,
        )  # fmt: skip
        desk.config.write_text(self.text)
        for number in range(20):
            (desk.vault / f"{number}.json").write_text(json.dumps({"number": number}))
        (desk.vault / "notes.txt").write_text("notes")
        with server.connect() as connection:
            connection.execute("CREATE DATABASE shop")
        with server.connect("shop") as connection:
            connection.execute(
                "CREATE TABLE orders (id int PRIMARY KEY, note text, at timestamptz)"
            )
            connection.execute(
                "INSERT INTO orders SELECT n, repeat('x', 200), now() FROM generate_series(1, %s) n",
                [ROWS],
            )
            connection.execute("VACUUM orders")
        # What would keep a restored server from starting, or lead it back to the original's places.
        self.space = self.scratch.with_name(f"{self.scratch.name}-space")
        self.space.mkdir(mode=0o700)
        os.chown(self.space, server._account.uid, server._account.gid)
        with server.connect() as connection:
            connection.execute(f"CREATE TABLESPACE elsewhere LOCATION '{self.space}'")
            connection.execute("ALTER SYSTEM SET shared_preload_libraries = 'no_such_library'")
            connection.execute("ALTER SYSTEM SET listen_addresses = '*'")
            connection.execute("ALTER SYSTEM SET archive_mode = 'always'")
        with server.connect("shop") as connection:
            connection.execute("CREATE TABLE far (n int) TABLESPACE elsewhere")
        desk.run("init", "--kit", "kit.txt")
        desk.run("backup", "--all")

    def configure(self, more: str) -> None:
        self.desk.config.write_text(self.text + more)

    def drill(self, *words: str, status: int = 0, **options: Any) -> dict[str, Any]:
        """The one drill of a run."""
        done = self.desk.run("drill", "run", *words, "--json", status=status, **options)
        assert self.left() == []
        (drill,) = done.result["drills"]
        steps = [event for event in done.events if event["type"] == "step"]
        assert [step["name"] for step in steps] == [step["name"] for step in drill["steps"]]
        found: dict[str, Any] = drill
        return found

    def left(self) -> list[str]:
        """What is still below the place of drills."""
        return os.listdir(self.scratch)

    def processes(self) -> list[psutil.Process]:
        """Whatever runs with that place in its words or as its folder."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = " ".join(process.cmdline())
                if process.status() != "zombie" and str(self.scratch) in words + process.cwd():
                    found.append(process)
        return found


def verdicts(drill: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["verdict"] for step in drill["steps"]}


def what(drill: dict[str, Any], name: str) -> str:
    (found,) = [step["what"] for step in drill["steps"] if step["name"] == name]
    return str(found)


def until(true: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def shop_of(root: Path, major: int) -> Iterator[Shop]:
    try:
        installation = find_server(major)
    except StrongroomError as missing:
        pytest.skip(f"no server of this major: {missing.what}")
    with EmbeddedServer(
        installation, durable=False, initdb=["--data-checksums"],
        settings={"shared_buffers": "16MB"},
    ) as server:  # fmt: skip
        shop = Shop(root, server)
        yield shop
        shutil.rmtree(shop.scratch)
        shutil.rmtree(shop.space)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    yield from shop_of(tmp_path_factory.mktemp("drill"), 18)


@pytest.fixture
def shop(lived: Shop) -> Shop:
    lived.configure("")
    return lived


def test_a_dump_is_drilled(shop: Shop) -> None:
    drill = shop.drill("dump", "--sql", "SELECT count(*) FROM orders")
    assert set(verdicts(drill).values()) == {"green"}
    assert drill["verdict"] == "green"
    assert what(drill, "rows").startswith(f"{ROWS} rows in 2 tables,")
    assert what(drill, "sql") == f"orders → {ROWS}; SELECT count(*) FROM orders → {ROWS}"
    assert drill["facts"]["isolation"]["listens"] == ""
    assert drill["restore_ms"] > 0
    assert drill["chosen"] == "drawn out of 1 backups"
    # Production was not touched, whatever the environment says of it.
    with shop.server.connect("shop") as connection:
        query = "SELECT count(*) FROM pg_attribute WHERE attname = 'extra'"
        assert connection.execute(query).fetchone() == (0,)


def test_a_cluster_is_drilled_and_its_report_can_be_proved(shop: Shop, tmp_path: Path) -> None:
    desk = shop.desk
    planned = desk.run("drill", "run", "cluster", "--dry-run", "--json").result["drills"][0]
    assert [step["name"] for step in planned["steps"] if not step["asked"]] == [
        "freshness", "migrate", "sql", "smoke",
    ]  # fmt: skip
    drill = shop.drill("cluster", env={"PGHOST": "/nowhere", "PGDATABASE": "nothing"})
    assert drill["verdict"] == "green"
    assert "1 of them counted by an index too" in what(drill, "rows")
    assert "1 tablespace beside it" in what(drill, "restore")
    isolation = drill["facts"]["isolation"]
    assert (isolation["listens"], isolation["archiving"]) == ("", "off")
    assert "drawn" in drill["chosen"]

    desk.run("drill", "report", drill["run"][:10], "-o", f"{tmp_path}/")
    pages = sorted(tmp_path.iterdir())
    assert [page.suffix for page in pages] == [".html", ".json", ".md"]
    for page in pages[:2]:
        proved = desk.run("drill", "report", "--verify", str(page), "--json").document
        assert (proved["run"], proved["verdict"]) == (drill["run"], "green")
    for page in pages[1:]:
        page.write_text(page.read_text().replace("cluster", "clusters"))
        assert desk.run("drill", "report", "--verify", str(page), status=9).code == "damaged"

    lines = map(json.loads, desk.run("audit", "export").text.splitlines())
    runs = [line["run"] for line in lines if line["type"] == "leaf"]
    (leaf,) = [one for one in runs if one["run"] == drill["run"]]
    assert (leaf["type"], leaf["outcome"], leaf["exit"]) == ("drill", "done", 0)
    assert leaf["snapshot"] == drill["snapshot"]
    assert leaf["detail"]["report"] == drill["report"]
    assert [step["name"] for step in leaf["detail"]["steps"]] == list(verdicts(drill))


def test_a_vault_is_drilled_and_is_late(shop: Shop) -> None:
    drill = shop.drill("vault")
    assert verdicts(drill) | {"freshness": "skipped"} == {
        "restore": "green", "files": "green", "sample": "green", "freshness": "skipped",
        "index": "skipped", "smoke": "skipped", "promise": "green",
    }  # fmt: skip
    assert drill["facts"]["sample"]["opened"] == 20
    assert drill["facts"]["files"]["restored"] == 21
    shop.configure(
        '\n[source.vault.drill]\nfresh_within = "1h"\n'
        'rebuild_index = { argv = ["sh", "-c", "sleep 1.1; ls {path} > {path}/index.txt"] }\n'
    )
    late = shop.drill("vault", status=10)
    assert late["verdict"] == "missed"
    assert verdicts(late)["promise"] == "red"
    assert verdicts(late)["index"] == "green"


def test_what_is_wrong_is_red_and_what_could_not_be_done_is_never_green(shop: Shop) -> None:
    text = shop.text.replace(f"expect = {ROWS}", "expect = 7").replace('"26h"', '"1s"')
    shop.desk.config.write_text(text.replace(f"= {7 * ROWS}'", "= 1'"))
    with shop.server.connect("shop") as connection:
        connection.execute("UPDATE orders SET at = at - interval '1 day'")
    shop.desk.run("backup", "dump", "--quiet")
    drill = shop.drill("dump", "--at", "latest", "--sql", "SELECT id FROM nowhere", status=9)
    assert drill["verdict"] == "red"
    found = verdicts(drill)
    assert [name for name, verdict in found.items() if verdict == "red"] == [
        "freshness", "sql", "smoke",
    ]  # fmt: skip
    assert "expected 7" in what(drill, "sql")
    assert "nowhere" in what(drill, "sql")
    page = shop.desk.run("drill", "report", "--quarter", f"{drill['started'][:4]}Q4").text
    assert "red smoke" in page or drill["started"][5:7] not in ("10", "11", "12")


_STEPS = {
    "dump": (
        "",
        "programs",
        "server",
        "restore",
        "isolation",
        "rows",
        "amcheck",
        "migrate",
        "smoke",
    ),
    "cluster": ("", "programs", "restore", "recover", "target", "rows", "amcheck"),
}
_SAMPLED = {("dump", "server"), ("cluster", "recover")}  # while it restores; while it is asked


def test_a_source_that_is_none_is_no_drill_that_failed(shop: Shop) -> None:
    before = shop.desk.run("drill", "list", "--json").document["drills"]
    assert shop.desk.run("drill", "run", "nosuch", status=5).code == "not-found"
    assert shop.desk.run("drill", "list", "--json").document["drills"] == before


@pytest.mark.parametrize(
    ("source", "at"),
    [
        pytest.param(source, at, marks=() if (source, at) in _SAMPLED else pytest.mark.sweep)
        for source, steps in _STEPS.items()
        for at in steps
    ],
)
def test_a_drill_that_is_killed_leaves_nothing(shop: Shop, source: str, at: str) -> None:
    """At each step: the next one has just begun when the drill is killed."""
    shop.configure("")
    process = shop.desk.start("drill", "run", source, "--json")
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["type"] == "step" and (event["name"] == at or not at):
            break
        assert event["type"] != "result"
    process.kill()
    process.communicate()
    until(lambda: shop.left() == [] and shop.processes() == [])
    drills = shop.desk.run("drill", "list", "--json").document["drills"]
    shop.desk.run("list")
    shop.desk.run(
        "get", "vault:notes.txt", "-o", f"{shop.desk.root}/{at}{source}"
    )  # a run: it tells
    after = shop.desk.run("drill", "list", "--json").document["drills"]
    (killed,) = after[len(drills) :]
    assert (killed["source"], killed["outcome"]) == (source, "interrupted")
    assert killed["verdict"] == "incomplete"


def test_a_drill_that_is_stopped_takes_its_command_with_it(shop: Shop) -> None:
    shop.configure('\n[[source.vault.drill.smoke]]\nargv = ["sleep", "101"]\n')
    process = shop.desk.start("drill", "run", "vault")
    until(lambda: any(one.cmdline() == ["sleep", "101"] for one in _below(process)))
    family = _below(process)
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == 143
    assert b"what it made is gone" in said
    until(lambda: not any(one.is_running() and one.status() != "zombie" for one in family))
    assert shop.left() == []


def test_what_a_drill_left_whose_sweeper_was_killed_too_the_next_one_removes(shop: Shop) -> None:
    shop.configure('\n[[source.vault.drill.smoke]]\nargv = ["sleep", "100"]\n')
    process = shop.desk.start("drill", "run", "vault", "--json")
    until(lambda: any(one.cmdline() == ["sleep", "100"] for one in _below(process)))
    sweeper = next(one for one in _below(process) if "sweep" in one.cmdline())
    sleeper = next(one for one in _below(process) if one.cmdline() == ["sleep", "100"])
    sweeper.kill()
    process.kill()
    process.communicate()
    until(lambda: not sleeper.is_running())
    (left,) = shop.left()
    shop.configure("")
    done = shop.desk.run("drill", "run", "vault")
    assert f"a drill that was killed left {shop.scratch}/{left}" in done.stderr
    assert shop.left() == []


def _below(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for one in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            one.cmdline()
            found.append(one)
    return found


def test_the_page_of_a_quarter_is_kept_filled(shop: Shop, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    drills = shop.desk.run("drill", "list", "--json").document["drills"]
    green = {drill["source"] for drill in drills if drill["verdict"] == "green"}
    for name in sorted({"dump", "cluster", "vault"} - green):  # where this test runs by itself
        shop.drill(name)
    (first, *_) = shop.desk.run("drill", "list", "--json").document["drills"]
    year, month = int(first["started"][:4]), int(first["started"][5:7])
    quarter = f"{year}Q{(month - 1) // 3 + 1}"
    page.write_text(
        f"# Ours\n\n### Q{quarter[-1]} {year} Test Results\n*To be completed*\n\n---\n\nThe end.\n"
    )
    for _ in range(2):
        shop.desk.run("drill", "report", "--quarter", quarter, "-o", str(page))
    text = page.read_text()
    assert text.startswith("# Ours\n\n<!-- strongroom drills")
    assert text.endswith("\n---\n\nThe end.\n")
    assert "To be completed" not in text
    assert text.count("Test Results") == 1
    assert "- [x] Restore PostgreSQL backup to staging\n" in text
    assert "- [x] Verify file counts and checksums\n" in text
    shop.desk.run("drill", "report", "--quarter", "2026", status=2)


def test_rows_that_are_gone_and_an_index_that_lies_are_red(shop: Shop) -> None:
    """Last: what is done to the cluster is for good."""
    with shop.server.connect("shop") as connection:
        connection.execute(
            "CREATE FUNCTION key(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1'"
        )
        connection.execute("CREATE TABLE lies AS SELECT n FROM generate_series(1, 1000) n")
        connection.execute("CREATE INDEX ON lies (key(n))")
        connection.execute(
            "CREATE OR REPLACE FUNCTION key(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT -$1'"
        )
        connection.execute("VACUUM FULL orders")
        connection.execute("VACUUM orders")
        connection.execute("ALTER SYSTEM RESET ALL")
        row = connection.execute("SELECT pg_relation_filepath('orders')").fetchone()
    assert row is not None
    shop.server.stop()
    with open(os.path.join(shop.server.data_directory, row[0]), "r+b") as file:
        file.seek(8192)
        file.write(bytes(8192))  # a page that was never written: right, as far as checksums go
    shop.server.start()
    shop.desk.run("backup", "cluster")
    drill = shop.drill("cluster", "--at", "latest", status=9)
    found = verdicts(drill)
    assert [name for name, verdict in found.items() if verdict == "red"] == ["rows", "amcheck"]
    assert f"{ROWS} in an index" in what(drill, "rows")
    assert "lies_key_idx" in what(drill, "amcheck")
    assert found["checksums"] == "green"


@pytest.mark.sweep
@pytest.mark.parametrize("major", [15, 16, 17])
def test_other_majors(tmp_path: Path, major: int) -> None:
    for shop in shop_of(tmp_path, major):
        for source in ("dump", "cluster"):
            drill = shop.drill(source)
            assert drill["verdict"] in ("green", "amber")
            lacking = {name for name, verdict in verdicts(drill).items() if verdict == "amber"}
            assert lacking <= {"amcheck"}
            assert drill["facts"]["server"].startswith(f"{major}.")
        shop.desk.config.write_text(
            shop.text.replace("[source.dump.drill]", '[source.dump.drill]\namcheck = "full"')
        )
        demanded = shop.drill("dump", status=3 if lacking else 0)
        assert demanded["verdict"] == ("incomplete" if lacking else "green")
