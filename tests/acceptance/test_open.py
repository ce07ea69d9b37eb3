"""open, by commands alone: seconds to a running server of then, and nothing left of it afterwards.

Run as root it is mounted in a namespace of its own; as anybody in a user's; where neither can be, the
cluster is restored, which is the same to whoever asks. Tests that need the mount say so when skipped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from acceptance.test_recovery import Story, story, text
from postgres.wal.room import program, until

__all__ = ["story"]  # the fixture: the same cluster and the same worker
pytestmark = pytest.mark.xdist_group("recovery")
STRONGROOM = str(Path(sys.executable).parent / "strongroom")
QUESTION = "SELECT count(*) FROM orders"


class Opener:
    """Runs `strongroom open` as whoever runs the tests, or below another command."""

    def __init__(self, story: Story, *below: str, who: dict[str, Any] | None = None) -> None:
        self.story, self.below, self.who = story, below, who or {}
        self.scratch = story.room.root / "scratch"
        self.scratch.mkdir(exist_ok=True, mode=0o755)
        self.scratch.chmod(0o777)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        given = ["--config", str(self.story.room.config), "--scratch", str(self.scratch)]
        name = program() if self.who or self.below else STRONGROOM
        return subprocess.Popen(
            [*self.below, name, *words, *given],
            env={**self.story.room.environ, **self.story.environ, "PGHOST": "/nowhere"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.story.room.root,
            **self.who,
        )

    def run(self, *words: str, status: int = 0) -> tuple[str, str]:
        process = self.start(*words)
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == status, (stdout, stderr)
        assert os.listdir(self.scratch) == []
        return stdout.decode(), stderr.decode()

    def mounted(self, *words: str, status: int = 0) -> tuple[str, str]:
        """The same, where it must not have been restored."""
        stdout, stderr = self.run(*words, status=status)
        if "is restored instead" in stderr:
            pytest.skip(f"nothing can be mounted here: {stderr.splitlines()[0]}")
        return stdout, stderr

    def foreground(self, story: Story) -> tuple[subprocess.Popen[bytes], str]:
        """Open and leave open: the process, and libpq's words for the server."""
        process = self.start("open", f"db@{text(story.before)}", "--json")
        assert process.stdout is not None
        for line in process.stdout:
            body = json.loads(line)
            if body["type"] == "open":
                return process, body["dsn"]
        raise AssertionError(process.communicate())


def gone(opener: Opener, processes: list[psutil.Process]) -> None:
    until(lambda: not any(one.is_running() and one.status() != "zombie" for one in processes), 30)
    until(lambda: os.listdir(opener.scratch) == [], 30)
    assert "fuse.strongroom" not in Path("/proc/self/mounts").read_text()


@pytest.fixture
def opener(story: Story) -> Iterator[Opener]:
    yield Opener(story)


def test_sql_is_asked_of_the_moment(story: Story, opener: Opener) -> None:
    said, beside = opener.mounted("open", f"db@{text(story.before)}", "--sql", QUESTION)
    assert "1500" in said
    assert "open in" in beside
    said, _ = opener.run("open", "db", "--name", "too late", "--json", "--sql", QUESTION)
    result = json.loads(said.splitlines()[-1])
    assert result["type"] == "result"
    assert result["exit"] == 0
    assert result["output"].split()[2] == "0"
    assert 0 < result["seconds"] < 60
    assert list(result["phases"])[-1] == "recovering"


def test_it_is_written_to_and_the_next_one_knows_nothing_of_it(
    story: Story, opener: Opener
) -> None:
    change = "DELETE FROM orders; VACUUM FULL orders; CREATE TABLE later AS SELECT 1;"
    for _ in range(2):
        said, _ = opener.run("open", f"db@{text(story.before)}", "--sql", f"{change} {QUESTION}")
        assert said.split()[2] == "0"
    with story.server.connect("shop") as connection:
        assert connection.execute(QUESTION).fetchone() == (1,)


def test_a_command_finds_the_server_and_its_status_is_ours(story: Story, opener: Opener) -> None:
    at = f"db@{text(story.before)}"
    ask = "sh -c 'echo $PGHOST $PGPORT $PGUSER $PGDATABASE; exit 37'"
    said, _ = opener.run("open", at, "--exec", ask, status=37)
    host, port, user, database = said.split()
    assert host.startswith(str(opener.scratch))
    assert (port, user, database) == ("5432", "postgres", "shop")
    opener.run("open", at, "--exec", "sh -c 'kill -9 $$'", status=137)
    assert "cannot be run" in opener.run("open", at, "--exec", "/no/such", status=1)[1]
    assert "column" in opener.run("open", at, "--sql", "SELECT nothing", status=1)[1]


def test_opening_is_a_read_in_the_audit_log(story: Story, opener: Opener) -> None:
    opener.run("open", f"db@{text(story.before)}", "--exec", "sh -c 'exit 7'", status=7)
    words = [STRONGROOM, "audit", "export", "--config", str(story.room.config)]
    environ = {**story.room.environ, **story.environ}
    said = subprocess.run(words, env=environ, check=True, capture_output=True).stdout
    log = [json.loads(line) for line in said.splitlines()]
    read = [line["run"] for line in log if line["type"] == "leaf"][-1]
    assert (read["type"], read["source"], read["outcome"], read["exit"]) == (
        "read",
        "db",
        "done",
        0,
    )
    assert read["what"] == f"open db@{text(story.before)}"
    assert read["snapshot"]
    assert read["detail"]["exit"] == 7


def test_what_cannot_be_opened_is_said(story: Story, opener: Opener) -> None:
    opener.run("open", "db@2026-01-01T00:00:00Z", status=5)
    opener.run("open", "db", "--sql", "x", "--exec", "y", status=2)
    opener.run("open", "db", "--cache", "much", status=2)
    opener.run("open", "db", "--exec", "''", status=2)
    opener.run("open", "db:path", status=2)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.sweep), signal.SIGTERM]
)
def test_it_is_open_until_somebody_says_enough(
    story: Story, opener: Opener, number: signal.Signals
) -> None:
    process, dsn = opener.foreground(story)
    children = psutil.Process(process.pid).children(recursive=True)
    with psycopg.connect(dsn, autocommit=True) as connection:
        assert connection.execute(QUESTION).fetchone() == (1500,)
        connection.execute("INSERT INTO orders VALUES (2000)")
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(stdout.splitlines()[-1])["exit"] == 0
    gone(opener, children)


@pytest.mark.parametrize(
    "victim", ["us", *(pytest.param(one, marks=pytest.mark.sweep) for one in ("guard", "server"))]
)
def test_after_kill_9_nothing_is_left(story: Story, opener: Opener, victim: str) -> None:
    process, dsn = opener.foreground(story)
    ours = psutil.Process(process.pid)
    (guard,) = ours.children()
    (server,) = guard.children()
    family = ours.children(recursive=True)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO orders SELECT generate_series(1, 10000)")
        {"us": ours, "guard": guard, "server": server}[victim].kill()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (-9 if victim == "us" else 7), stderr
    gone(opener, family)


def test_the_guard_and_us_killed_together_leave_a_folder_that_the_next_run_removes(
    story: Story, opener: Opener
) -> None:
    process, _ = opener.foreground(story)
    ours = psutil.Process(process.pid)
    family = ours.children(recursive=True)
    ours.suspend()
    family[0].kill()
    ours.kill()
    process.communicate(timeout=60)
    until(lambda: not any(one.is_running() and one.status() != "zombie" for one in family), 30)
    (left,) = os.listdir(opener.scratch)
    if not left.startswith("strongroom-open-"):
        pytest.skip("nothing can be mounted here: needs /dev/fuse and the right to mount")
    opener.run("open", f"db@{text(story.before)}", "--sql", QUESTION)


def test_where_nothing_can_be_mounted_it_is_restored(story: Story) -> None:
    hide = 'mount --bind /dev/null /dev/fuse && exec "$@"'
    below = ["unshare", "--mount", "sh", "-c", hide, "sh"]
    if os.geteuid() != 0 or subprocess.run([*below, "true"], check=False).returncode:
        pytest.skip("needs root and mount namespaces, to hide /dev/fuse")
    opener = Opener(story, *below)
    said, beside = opener.run("open", f"db@{text(story.before)}", "--sql", QUESTION)
    assert "1500" in said
    assert "mount: Invalid argument: the whole cluster is restored instead" in beside
    said, beside = Opener(story).run("open", "db", "--restore", "--sql", QUESTION)
    assert "instead" not in beside
    assert said.split()[2] == "1"


def test_an_account_without_any_right_mounts_in_a_namespace_of_its_own(story: Story) -> None:
    node = story.room.root / "fuse"
    allow = (
        f"mknod {node} c 10 229; chmod 666 {node} && mount --bind {node} /dev/fuse && exec "
        'setpriv --reuid="$0" --regid="$1" --clear-groups "$@"'
    )
    account = story.room.account
    below = ["unshare", "--mount", "sh", "-c", f"shift; {allow}".replace('"$1"', str(account.gid))]
    below = [*below, str(account.uid), "-"]
    try_it = [*below, "unshare", "--user", "--mount", "true"]
    if os.geteuid() != 0 or subprocess.run(try_it, check=False, stderr=-3).returncode:
        pytest.skip("needs root, setpriv, and namespaces of users that are allowed")
    said, _ = Opener(story, *below).mounted(
        "open", f"db@{text(story.before)}", "--sql", f"SELECT current_user; {QUESTION}"
    )
    assert "1500" in said


def test_a_table_is_taken_without_room_for_the_cluster(story: Story, opener: Opener) -> None:
    target = story.room.root / "opened.sql"
    opener.mounted("table", f"db@{text(story.before)}", "public.orders", "-o", str(target))
    assert target.read_text().count("\n1500\n") == 1
