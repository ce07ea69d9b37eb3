"""`restore --runbook` as an operator meets it: the whole checklist, and each step going wrong.

Services are files: the configured commands move them, so that a test sees what is up, and when.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from acceptance.conftest import Desk, Done, damage_packs, fill, on_terminal, tree_of
from acceptance.test_postgres import password_of
from strongroom.errors import StrongroomError
from strongroom.postgres.embedded import EmbeddedServer
from strongroom.postgres.server import quoted

pytestmark = pytest.mark.xdist_group("acceptance-runbook")
ROWS = 300
# What a service manager, a migration and an index are to these tests. A file "break-WORD" makes
# that word fail, "hang-WORD" keeps it from ending.
TOOL = """\
import os, sys, time
root, word, *rest = sys.argv[1:]
with open(os.path.join(root, "log"), "a") as log:
    print(word, *rest, file=log, flush=True)
if os.path.exists(os.path.join(root, "hang-" + word)):
    while os.path.exists(os.path.join(root, "hang-" + word)):
        time.sleep(0.05)
    sys.exit()
if os.path.exists(os.path.join(root, "break-" + word)):
    sys.exit(f"{word} does not work today")
up = os.path.join(root, "up")
if word == "start":
    open(up, "w").close()
elif word == "stop" and os.path.exists(up):
    os.remove(up)
elif word == "migrate":
    import psycopg
    target = "" if rest[0] == "env" else f"dbname='{rest[0]}'"
    with psycopg.connect(target) as connection:
        connection.execute("ALTER TABLE campaigns ADD COLUMN IF NOT EXISTS migrated boolean")
"""
CONFIG = """\
[repository]
url = {repository}
passphrase = "env:STRONGROOM_PASSPHRASE"

[source.stakazo-db]
type = "postgres"
dsn = {dsn}
password = "env:DATABASE_PASSWORD"
promise = {{ rpo = "24h", rto = "{rto}", keep = "30d" }}

[source.stakazo-db.runbook]
stop = [[{python}, "tool.py", {root}, "stop"]]
start = [[{python}, "tool.py", {root}, "start"]]
migrate = {{ argv = [{python}, "tool.py", {root}, "migrate", "{migrate}"], cwd = "." }}
checks = ["SELECT count(*) FROM campaigns", "SELECT count(*) > 0 FROM clips"]

[source.{vault_name}]
type = "files"
path = {vault}
promise = {{ rpo = "31d", rto = "24h", keep = "12 months" }}

[source.{vault_name}.runbook]
stop = [[{python}, "tool.py", {root}, "stop"]]
start = [[{python}, "tool.py", {root}, "start"]]
rebuild_index = {{ argv = [{python}, "tool.py", {root}, "rebuild", "{{path}}"], cwd = "." }}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    try:
        server = EmbeddedServer(durable=False)
    except StrongroomError as missing:
        pytest.skip(f"no PostgreSQL server can be had: {missing.what}")
    with server:
        yield server


class Platform(Desk):
    """A machine with services, a database that is in use, and one backup of it."""

    server: EmbeddedServer
    name: str
    vault_name = "vault"

    def setup(self, server: EmbeddedServer, name: str) -> Platform:
        self.server, self.name = server, name
        self.environ["DATABASE_PASSWORD"] = password_of(server)
        (self.root / "tool.py").write_text(TOOL)
        self.write()
        for database in self.databases():
            if database not in ("postgres", "template0", "template1"):
                self.sql("postgres", f"DROP DATABASE {quoted(database)} WITH (FORCE)")
        self.sql("postgres", f"CREATE DATABASE {quoted(name)}")
        self.sql(name, "CREATE TABLE campaigns (id bigint PRIMARY KEY, note text)")
        self.sql(name, "CREATE TABLE clips AS SELECT n FROM generate_series(1, 50) n")
        self.sql(name, f"INSERT INTO campaigns SELECT n, 'c' FROM generate_series(1, {ROWS}) n")
        fill(self.vault)
        self.run("init", "--kit", "kit.txt", "--quiet")
        self.run("backup", "--all")
        (self.root / "up").touch()
        self.sql(name, "DELETE FROM campaigns WHERE id > 10")
        (self.vault / "audits/00.json").write_text("spoiled")
        (self.vault / "added").write_text("since")
        return self

    def write(self, *, rto: str = "4h", migrate: str = "env") -> None:
        server = self.server
        escaped = self.name.replace("\\", "\\\\").replace("'", "\\'")
        dsn = (
            f"host='{server.socket_directory}' port={server.port} user={server.user}"
            f" dbname='{escaped}' sslmode=disable"
        )
        words = {
            "repository": self.repository,
            "vault": self.vault,
            "root": self.root,
            "python": sys.executable,
            "dsn": dsn,
        }
        self.config.write_text(
            CONFIG.format(
                rto=rto,
                migrate=migrate,
                vault_name=self.vault_name,
                **{key: json.dumps(str(v)) for key, v in words.items()},
            )
        )

    def sql(self, database: str, statement: str) -> list[tuple[Any, ...]]:
        with self.server.connect(database) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def rows(self, database: str | None = None) -> int:
        return int(self.sql(database or self.name, "SELECT count(*) FROM campaigns")[0][0])

    def databases(self) -> set[str]:
        return {name for (name,) in self.sql("postgres", "SELECT datname FROM pg_database")}

    def kept(self) -> list[str]:
        return sorted(name for name in self.databases() if "__before_" in name)

    def book(self, *words: str, source: str = "stakazo-db", status: int = 0) -> Done:
        return self.run("restore", source, "--runbook", *words, status=status)

    @property
    def up(self) -> bool:
        return (self.root / "up").exists()

    def toggle(self, name: str, *, on: bool = True) -> None:
        if on:
            (self.root / name).touch()
        else:
            (self.root / name).unlink()

    def log(self) -> list[str]:
        path = self.root / "log"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def platform(tmp_path: Path, server: EmbeddedServer) -> Platform:
    return Platform(tmp_path).setup(server, "stakazo_prod")


def states(done: Done) -> dict[str, str]:
    return {step["key"]: step["state"] for step in done.result["steps"]}


def restored(platform: Platform) -> None:
    assert platform.rows() == ROWS
    assert platform.up
    names = platform.databases()
    assert not [name for name in names if "unfinished" in name or "__restoring" in name]


def test_a_database_comes_back_and_the_old_one_is_kept(platform: Platform) -> None:
    done = platform.book("--json")
    restored(platform)
    assert set(states(done).values()) == {"done"}
    assert list(states(done)) == [
        "stop", "verify", "safety", "create", "restore", "migrate", "integrity", "swap", "start",
        "measure",
    ]  # fmt: skip
    assert platform.log() == ["stop", "migrate", "start"]
    (old,) = platform.kept()
    assert done.result["kept"] == [old]
    assert platform.rows(old) == 10
    columns = platform.sql(old, "SELECT attname FROM pg_attribute WHERE attname = 'migrated'")
    assert columns == []
    told = {step["key"]: step["told"] for step in done.result["steps"]}
    assert f"SELECT count(*) FROM campaigns → {ROWS}" in told["integrity"]
    assert "promised 4h: kept" in told["measure"]
    safety = done.result["safety_backup"]
    listed = platform.run("list", "stakazo-db", "--json").document["snapshots"]
    labels = {each["id"]: each["labels"] for each in listed}
    assert labels[safety] == {"runbook": "before-restore", "run": done.result["run"]}


def test_the_newest_is_never_the_safety_backup(platform: Platform) -> None:
    first = platform.book("--json").result["snapshot"]["id"]
    again = platform.book("--json")
    assert again.result["snapshot"]["id"] == first
    assert "Passing over" in again.stderr
    assert platform.rows() == ROWS
    assert len(again.result["kept"]) == 2
    dropped = platform.book("--drop-old", "--json").result["dropped"]
    assert sorted(dropped) == sorted(again.result["kept"])
    assert platform.kept() == []
    assert platform.book("--drop-old").text == "nothing is kept of before\n"


def test_the_way_back_that_is_printed_leads_back(platform: Platform) -> None:
    text = platform.book().text
    (line,) = [line for line in text.splitlines() if line.startswith("Go back: ")]
    words = line.partition("`strongroom ")[2].rstrip("`.").split()
    platform.run(*words)
    assert platform.rows() == 10


def test_dry_run_changes_nothing(platform: Platform) -> None:
    before = platform.databases()
    platform.book("--dry-run")  # caches are there now
    files = set(platform.home.rglob("*"))
    done = platform.book("--dry-run")
    assert 'ALTER DATABASE "stakazo_prod__restoring" RENAME TO "stakazo_prod"' in done.text
    assert "tool.py" in done.text
    assert "migrate" in done.text
    body = platform.book("--dry-run", "--json").result
    assert set(states(platform.book("--dry-run", "--json")).values()) == {"pending"}
    assert body["rto_seconds"] == 4 * 3600
    assert platform.databases() == before
    assert platform.log() == []
    assert platform.rows() == 10
    assert platform.up
    assert set(platform.home.rglob("*")) == files
    assert len(platform.run("list", "stakazo-db", "--json").document["snapshots"]) == 1


def test_slower_than_promised_is_ten(platform: Platform) -> None:
    platform.write(rto="1s")
    (platform.root / "tool.py").write_text(TOOL + "\nif word == 'stop': time.sleep(1.2)\n")
    done = platform.book("--json", status=10)
    assert done.result["missed"] is True
    restored(platform)


def test_without_a_safety_backup_it_is_said(platform: Platform) -> None:
    done = platform.book("--no-safety-backup", "--json")
    steps = {step["key"]: step for step in done.result["steps"]}
    assert steps["safety"]["state"] == "skipped"
    assert "--no-safety-backup" in steps["safety"]["told"]
    restored(platform)


def test_a_database_that_is_gone_comes_back(platform: Platform) -> None:
    platform.sql("postgres", "DROP DATABASE stakazo_prod WITH (FORCE)")
    done = platform.book("--json")
    restored(platform)
    assert done.result["kept"] == []
    assert platform.kept() == []


@pytest.mark.parametrize("word", ["stop", "migrate", "start"])
def test_a_command_that_fails_stops_the_run_there(platform: Platform, word: str) -> None:
    platform.toggle(f"break-{word}")
    done = platform.book("--json", status=1)
    assert f"{word} does not work today" in done.error_lines[0]
    assert states(done)[word] == "failed"
    assert "--resume" in done.error_lines[2]
    if word == "start":
        assert "restored and verified" in done.error_lines[1]
        assert platform.rows() == ROWS
    else:
        assert "as it was" in done.error_lines[1]
        assert platform.rows() == 10
        assert "start" not in platform.log()
    platform.book(status=4)  # says what is there
    platform.toggle(f"break-{word}", on=False)
    platform.book("--resume", "--json")
    restored(platform)
    assert len(platform.kept()) == 1


def test_an_unfinished_run_is_told_and_can_be_given_up(platform: Platform) -> None:
    platform.toggle("break-migrate")
    platform.book(status=1)
    assert "stakazo_prod__restoring" in platform.databases()
    done = platform.book(status=4)
    assert "did not come to its end" in done.error_lines[0]
    assert "--start-over" in done.error_lines[2]
    platform.book("--dry-run", status=4)
    platform.toggle("break-migrate", on=False)
    platform.book("--start-over", "--json")
    restored(platform)
    platform.book("--resume", status=4)  # nothing to go on with


def test_the_backup_of_a_resumed_run_stays_the_one_it_is(platform: Platform) -> None:
    platform.toggle("break-migrate")
    platform.book(status=1)
    platform.toggle("break-migrate", on=False)
    platform.run("backup", "stakazo-db")
    platform.book("--resume", "--backup", "latest", status=2)
    platform.book("--resume")
    restored(platform)


def test_checks_that_fail_leave_the_old_database(platform: Platform) -> None:
    text = platform.config.read_text()
    platform.config.write_text(text.replace("count(*) > 0 FROM clips", "count(*) > 99 FROM clips"))
    done = platform.book("--json", status=9)
    assert "says false" in done.error_lines[0]
    assert states(done)["swap"] == "pending"
    assert platform.rows() == 10
    assert not platform.up
    platform.write()
    platform.book("--resume")
    restored(platform)


def test_a_migration_of_the_wrong_database_is_noticed(platform: Platform) -> None:
    platform.write(migrate="stakazo_prod")
    done = platform.book(status=1)
    assert "which is in use" in done.error_lines[0]
    assert "DATABASE_URL" in done.error_lines[2]
    platform.write(migrate="{database}")
    platform.book("--resume")
    restored(platform)


def test_a_damaged_backup_is_found_before_anything_is_touched(platform: Platform) -> None:
    damage_packs(platform.repository)
    done = platform.book("--json", status=9)
    assert states(done)["verify"] == "failed"
    assert platform.rows() == 10
    assert platform.kept() == []
    assert "as it was" in done.error_lines[1]


@pytest.mark.parametrize("word", ["stop", "migrate", "start"])
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.sweep),
        pytest.param(signal.SIGINT, marks=pytest.mark.sweep),
    ],
)
def test_a_run_that_is_stopped_can_go_on(platform: Platform, word: str, number: int) -> None:
    platform.toggle(f"hang-{word}")
    process = platform.start("restore", "stakazo-db", "--runbook")
    while word not in platform.log():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    expected = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
    assert process.returncode == expected[signal.Signals(number)]
    if number != signal.SIGKILL:
        assert b"--resume" in said
    platform.toggle(f"hang-{word}", on=False)
    assert platform.rows() == (ROWS if word == "start" else 10)
    assert platform.up is (word == "stop")
    platform.book("--resume")
    restored(platform)


@pytest.mark.parametrize(
    "after",
    [
        "restore",
        *(
            pytest.param(word, marks=pytest.mark.sweep)
            for word in ("verify", "safety", "integrity")
        ),
    ],
)
def test_killed_between_any_two_steps(platform: Platform, after: str) -> None:
    """The journal says "running": the step is carried out again."""
    process = platform.start("restore", "stakazo-db", "--runbook", "--json")
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["type"] == "step" and (event["key"], event["state"]) == (after, "running"):
            break
    process.kill()
    process.communicate()
    assert platform.rows() == 10
    assert not platform.up
    platform.book("--resume")
    restored(platform)
    assert len(platform.kept()) == 1


def test_a_second_run_beside_is_kept_out(platform: Platform) -> None:
    platform.toggle("hang-stop")
    process = platform.start("restore", "stakazo-db", "--runbook")
    while "stop" not in platform.log():
        time.sleep(0.05)
    assert platform.book(status=6).code == "busy"
    process.terminate()
    process.communicate(timeout=60)


def test_the_database_beside_that_is_gone_is_made_again(platform: Platform) -> None:
    platform.toggle("break-migrate")
    platform.book(status=1)
    platform.sql("postgres", "DROP DATABASE stakazo_prod__restoring WITH (FORCE)")
    platform.toggle("break-migrate", on=False)
    platform.book("--resume")
    restored(platform)


def test_a_foreign_database_of_that_name_is_left_alone(platform: Platform) -> None:
    platform.sql("postgres", "CREATE DATABASE stakazo_prod__restoring")
    done = platform.book(status=4)
    assert "stakazo_prod__restoring" in done.error_lines[0]
    assert platform.log() == []


def test_users_are_connected_until_the_names_change(platform: Platform) -> None:
    with platform.server.connect("stakazo_prod") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        platform.book()
        with pytest.raises(Exception, match=r"terminat|closed"):
            connection.execute("SELECT 1")
    restored(platform)


def test_drop_first_goes_without_room_for_two(platform: Platform) -> None:
    platform.book("--drop-first", status=4)  # nobody to ask
    platform.book("--drop-first", "--no-safety-backup", "--yes", status=2)
    assert platform.log() == []
    platform.toggle("break-migrate")
    done = platform.book("--drop-first", "--yes", "--json", status=1)
    assert "They must not be started" in done.error_lines[1]
    assert "--replace --yes" in done.error_lines[2]
    assert not platform.up
    platform.toggle("break-migrate", on=False)
    platform.book("--resume")
    restored(platform)
    assert platform.kept() == []


def test_the_way_back_after_the_drop_that_is_printed_leads_back(platform: Platform) -> None:
    platform.toggle("break-migrate")
    done = platform.book("--drop-first", "--yes", status=1)
    back, start = done.error_lines[2].split("`")[3:6:2]
    assert platform.rows() == ROWS
    platform.run(*shlex.split(back)[1:])
    assert platform.rows() == 10
    assert subprocess.run(shlex.split(start), cwd=platform.root, check=False).returncode == 0
    assert platform.up


def test_what_was_written_after_a_run_stopped_early_is_in_the_way_back(platform: Platform) -> None:
    """Dropped first, stopped before the drop, services up again: the safety backup is made anew."""
    process = platform.start(
        "restore", "stakazo-db", "--runbook", "--drop-first", "--yes", "--json"
    )
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["type"] == "step" and (event["key"], event["state"]) == ("safety", "running"):
            break
    process.kill()
    process.communicate()
    (journal,) = platform.home.rglob("runbook/*.json")
    body = json.loads(journal.read_text())
    next(step for step in body["book"]["steps"] if step["key"] == "safety")["state"] = "done"
    journal.write_text(json.dumps(body))
    platform.sql("stakazo_prod", "DELETE FROM campaigns WHERE id > 3")
    text = platform.book("--resume").text
    restored(platform)
    (line,) = [line for line in text.splitlines() if line.startswith("Go back: ")]
    platform.run(*shlex.split(line.split("`")[1])[1:])
    assert platform.rows() == 3


def test_drop_first_started_over_keeps_the_first_safety_backup(platform: Platform) -> None:
    platform.toggle("break-migrate")
    first = platform.book("--drop-first", "--yes", "--json", status=1).result["safety_backup"]
    platform.toggle("break-migrate", on=False)
    done = platform.book("--start-over", "--json")
    assert done.result["safety_backup"] == first
    restored(platform)


@pytest.mark.parametrize(
    "name",
    [
        "it's; DROP \\",
        *(pytest.param(name, marks=pytest.mark.sweep) for name in ('the "old" data', "ñandú" * 8)),
    ],
)
def test_names_that_need_quotes(tmp_path: Path, server: EmbeddedServer, name: str) -> None:
    platform = Platform(tmp_path).setup(server, name)
    platform.book()
    restored(platform)
    assert len(platform.kept()) == 1


def test_words_that_do_not_fit_are_refused(platform: Platform) -> None:
    for words in (
        ["--to", "x"],
        ["--replace"],
        ["--table", "public.clips"],
        ["--resume", "--start-over"],
        ["--path", "x"],
    ):
        platform.book(*words, status=2)
    platform.run("restore", "stakazo-db", "--to", "x", "--resume", status=2)
    platform.book("--drop-first", source="vault", status=2)
    assert platform.log() == []


# -- the vault -------------------------------------------------------------------------------


def test_a_vault_comes_back_and_the_old_tree_is_kept(platform: Platform) -> None:
    spoiled = tree_of(platform.vault)
    done = platform.book("--json", source="vault")
    assert set(states(done).values()) == {"done"}
    assert platform.log() == ["stop", "rebuild", "start"]
    assert json.loads((platform.vault / "audits/00.json").read_text()) == {"number": 0}
    assert not (platform.vault / "added").exists()
    (old,) = done.result["kept"]
    assert tree_of(Path(old)) == spoiled
    assert any("added" in text for text in done.result["warnings"])
    assert not Path(f"{platform.vault}.restoring").exists()
    platform.book("--drop-old", source="vault")
    assert not Path(old).exists()


@pytest.mark.parametrize("word", ["stop", "rebuild", "start"])
def test_a_vault_stops_where_a_command_fails(platform: Platform, word: str) -> None:
    platform.toggle(f"break-{word}")
    done = platform.book("--json", source="vault", status=1)
    assert "--resume" in done.error_lines[2]
    assert "start" not in platform.log() or word == "start"
    assert (platform.vault / "added").exists() is (word == "stop")
    platform.toggle(f"break-{word}", on=False)
    platform.book("--resume", source="vault")
    assert platform.up
    assert not (platform.vault / "added").exists()


@pytest.mark.parametrize("after", ["verify", "restore", "swap", "integrity"])
def test_a_vault_killed_in_a_step(platform: Platform, after: str) -> None:
    process = platform.start("restore", "vault", "--runbook", "--json")
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["type"] == "step" and (event["key"], event["state"]) == (after, "running"):
            break
    process.kill()
    process.communicate()
    platform.book("--resume", source="vault")
    assert platform.up
    assert json.loads((platform.vault / "audits/00.json").read_text()) == {"number": 0}
    (old,) = [p for p in platform.root.iterdir() if ".before_" in p.name]
    assert (old / "added").read_text() == "since"


def test_a_file_that_changes_after_the_exchange_is_noticed(platform: Platform) -> None:
    tool = TOOL + (
        "\nif word == 'rebuild' and not os.path.exists(up + '-mended'):"
        "\n    open(os.path.join(rest[0], 'audits/01.json'), 'w').write('{}')\n"
    )
    (platform.root / "tool.py").write_text(tool)
    done = platform.book(source="vault", status=9)
    assert "audits/01.json" in done.error_lines[0]
    assert not platform.up
    assert "must not be started" in done.error_lines[1]
    (back,) = [part for part in done.error_lines[2].split("`") if part.startswith("mv ")]
    assert os.system(back) == 0
    assert (platform.vault / "added").exists()


def test_the_journal_is_private(platform: Platform) -> None:
    platform.book(source="vault")
    (journal,) = platform.home.rglob("runbook/*.json")
    assert journal.stat().st_mode & 0o777 == 0o600


def test_on_a_terminal_the_checklist_is_shown(platform: Platform) -> None:
    status, shown = on_terminal(platform, ["restore", "vault", "--runbook"], [])
    assert status == 0, shown
    assert shown.count(b"[x]") == 8


# -- the ground goes away --------------------------------------------------------------------


def test_a_server_that_goes_down_in_the_middle(platform: Platform) -> None:
    platform.toggle("hang-migrate")
    process = platform.start("restore", "stakazo-db", "--runbook")
    while "migrate" not in platform.log():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    try:
        platform.server.stop(immediate=True)
        platform.toggle("hang-migrate", on=False)
        _, said = process.communicate(timeout=120)
    finally:
        platform.server.start()
    assert process.returncode == 7, said
    assert b"as it was" in said
    assert not platform.up
    assert platform.rows() == 10
    platform.book("--resume")
    restored(platform)


def test_a_vault_without_room_beside_is_refused(platform: Platform, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = shutil.which("mount")
    words = [str(mount), "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(small)]
    if mount is None or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        platform.vault = small / "vault"
        platform.write()
        done = platform.book(source="vault", status=4)
        assert "bytes free" in done.error_lines[0]
        assert platform.log() == []
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_mount_point_is_refused_with_the_other_way(platform: Platform) -> None:
    platform.vault = Path("/proc")
    platform.write()
    done = platform.book(source="vault", status=4)
    assert "mount point" in done.error_lines[0]
    assert "--in-place" in done.error_lines[2]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"tool.py", {root}, "stop"', '"x"'),
        ("{python}, ", '"no-such-program", '),
        ('cwd = "."', 'cwd = "nosuch"'),
    ],
)
def test_commands_that_cannot_run_are_refused_first(platform: Platform, old: str, new: str) -> None:
    words = {"root": json.dumps(str(platform.root)), "python": json.dumps(sys.executable)}
    text = platform.config.read_text().replace(old.format(**words), new)
    platform.config.write_text(text)
    done = platform.book(status=4 if new != '"x"' else 1)
    assert platform.rows() == 10
    assert new == '"x"' or "Nothing was changed" in done.error_lines[1]
    assert platform.log() == []


def test_a_journal_that_cannot_be_read_is_no_reason_to_guess(platform: Platform) -> None:
    platform.book(source="vault")
    (journal,) = platform.home.rglob("runbook/*.json")
    journal.write_text("{")
    assert "cannot be read" in platform.book(source="vault", status=4).error_lines[0]


def test_a_run_cut_off_in_the_exchange_loses_no_tree(platform: Platform) -> None:
    """Exchanged, and not yet given its name: what is beside is then the old tree."""
    platform.toggle("break-stop")
    platform.book(source="vault", status=1)
    platform.toggle("break-stop", on=False)
    beside = Path(f"{platform.vault}.restoring")
    (journal,) = platform.home.rglob("runbook/*.json")
    body = json.loads(journal.read_text())
    for step in body["book"]["steps"]:
        if step["key"] in ("stop", "swap"):
            step |= {"state": "done" if step["key"] == "stop" else "running", "attempts": 1}
    body["kept"] = [body["facts"]["old"]]
    journal.write_text(json.dumps(body))
    meanwhile = platform.root / "meanwhile"
    beside.rename(meanwhile)
    platform.vault.rename(beside)
    meanwhile.rename(platform.vault)
    platform.book("--start-over", source="vault")
    trees = [p for p in platform.root.iterdir() if ".before_" in p.name]
    assert any((tree / "added").exists() for tree in trees)
    assert json.loads((platform.vault / "audits/00.json").read_text()) == {"number": 0}
