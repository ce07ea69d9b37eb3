"""run-due and serve as processes: what is due runs once, on one host, whatever dies.

The passphrase comes from a script that waits while a file `hold` is there: so a job runs as long as a
test wants. Only the repository is not made by the command, since it must be older than the test.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from acceptance.conftest import PASSPHRASE, Desk
from strongroom import wiring
from strongroom.keys.passphrase import Cost, PassphraseHolder
from strongroom.operations.initialise import initialise
from strongroom.repository.seams import Seams
from strongroom.storage.local import LocalStorage

CONFIG = """\
timezone = "Europe/Madrid"
[repository]
url = "{repository}"
passphrase = "cmd:sh passphrase.sh"
[schedule]
grace = "{grace}"
lease = "{lease}"
{more}
[source.vault]
type = "files"
path = "{vault}"
schedule = "0 2 * * *"
"""
SCRIPT = """\
if [ -n "$STRONGROOM_JOB" ]; then
    echo "$STRONGROOM_JOB $STRONGROOM_TRIGGER $STRONGROOM_DUE" >> began
    while [ -e hold ]; do sleep 0.05; done
fi
echo "$STRONGROOM_TEST_SECRET"
"""


class Old(Desk):
    """A machine whose repository was made forty days ago, and was not used since."""

    def write(
        self, more: str = "", *, grace: str = "30s", lease: str = "20min", sources: str = ""
    ) -> None:
        text = CONFIG.format(
            repository=self.repository, vault=self.vault, more=more, grace=grace, lease=lease
        )
        self.config.write_text(text + sources)

    @property
    def hold(self) -> Path:
        return self.root / "hold"

    @property
    def began(self) -> list[str]:
        path = self.root / "began"
        return path.read_text().splitlines() if path.exists() else []

    def leases(self, job: str = "backup.vault") -> list[str]:
        folder = self.repository / "leases" / job
        return sorted(path.name for path in folder.glob("*/*")) if folder.exists() else []

    def backups(self) -> int:
        return len(self.run("list", "--json").document["snapshots"])

    def serve(self, *words: str) -> subprocess.Popen[bytes]:
        return self.start("serve", *words)


@pytest.fixture
def old(tmp_path: Path) -> Old:
    desk = Old(tmp_path)
    del desk.environ["STRONGROOM_PASSPHRASE"]
    desk.environ["STRONGROOM_TEST_SECRET"] = PASSPHRASE
    (desk.root / "passphrase.sh").write_text(SCRIPT)
    (desk.vault / "a.json").write_text("a")
    desk.write()
    steady = itertools.count()
    cheap = Cost(memory=8192, passes=1, lanes=1)
    initialise(
        LocalStorage(str(desk.repository)),
        holders={"passphrase": PassphraseHolder(PASSPHRASE.encode(), cost=cheap)},
        recovery=(PassphraseHolder(b"another", cost=cheap), "code"),
        seams=Seams(
            now=lambda: wiring.now() - timedelta(days=40),
            steady=lambda: float(next(steady)),
            random=os.urandom,
        ),
    )
    return desk


def until(what: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait for something that will come; a minute means that it will not."""
    for _ in range(600):
        if what():
            return
        if process is not None and process.poll() is not None:
            break
        time.sleep(0.1)
    said = b""
    if process is not None:
        process.kill()
        said = process.communicate()[1]
    raise AssertionError(f"it did not come: {said.decode()}")


def ended(process: subprocess.Popen[bytes], status: int = 0) -> str:
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == status, stderr.decode()
    return stderr.decode()


def test_what_was_missed_for_forty_days_is_made_up_for_once(old: Old) -> None:
    planned = old.run("run-due", "--dry-run").text
    assert planned.startswith("would run `strongroom backup vault`: ")
    assert "earlier times passed too" in planned
    (row,) = old.run("run-due", "--list", "--json").result["jobs"]
    assert row["state"] in ("due", "catch-up") and 38 <= row["missed"] <= 40
    assert old.leases() == []
    done = old.run("run-due", "--json")
    assert [event["type"] for event in done.events] == ["job", "job-end", "result"]
    (job,) = done.result["jobs"]
    assert (job["job"], job["outcome"], job["exit"]) == ("backup.vault", "done", 0)
    assert old.began[0].split()[:2] == ["backup.vault", job["trigger"]]
    assert old.leases() == ["000001", "000001.end"]
    assert old.run("run-due", "--json").result["jobs"] == []
    assert "nothing is due" in old.run("run-due").stderr
    assert old.backups() == 1
    (row,) = old.run("run-due", "--list", "--json").result["jobs"]
    assert (row["state"], row["missed"]) == ("waiting", 0)
    assert "backup.vault  0 2 * * *  waiting" in old.run("run-due", "--list").text
    assert "not an object of the repository" not in old.run("check").text


def test_of_several_hosts_one_runs_it(old: Old) -> None:
    hosts = [old.start("run-due") for _ in range(4)]
    for host in hosts:
        ended(host)
    assert len(old.began) == 1
    assert old.backups() == 1


def test_one_that_fails_stops_no_other_and_the_status_is_the_worst(old: Old) -> None:
    old.write(
        'check = "30 4 * * sun"\nexpire = "0 5 * * *"\n',
        sources='[source.lost]\ntype = "files"\npath = "nowhere"\nschedule = "0 1 * * *"\n',
    )
    done = old.run("run-due", "--json", status=None)
    ends = {job["job"]: job["exit"] for job in done.result["jobs"]}
    assert set(ends) == {"backup.vault", "backup.lost", "check", "expire"}
    bad = ends.pop("backup.lost")
    assert bad != 0 and set(ends.values()) == {0}
    assert done.status == bad
    # What failed for good is not tried again before its next time.
    assert old.run("run-due", "--json").result["jobs"] == []
    (row,) = (
        each
        for each in old.run("run-due", "--list", "--json").result["jobs"]
        if each["job"] == "backup.lost"
    )
    assert "failed" in row["reasons"][0]
    old.run("run-due", "nosuch", status=5)


def test_without_catch_up_what_was_missed_waits(old: Old) -> None:
    # A time that was more than an hour ago, whenever this runs.
    hour = (wiring.now() - timedelta(hours=3)).hour
    old.write('catch_up = "none"')
    text = old.config.read_text().replace("0 2 * * *", f"0 {hour} * * *")
    old.config.write_text(text.replace("Europe/Madrid", "UTC"))
    done = old.run("run-due")
    assert 'catch_up is "none"' in done.stderr
    assert old.leases() == [] and old.backups() == 0
    (row,) = old.run("run-due", "--list", "--json").result["jobs"]
    assert row["state"] == "missed"


def test_serve_runs_reads_again_and_stops(old: Old) -> None:
    server = old.serve("--json")
    until(lambda: "000001.end" in old.leases(), server)
    old.write(sources='[source.two]\ntype = "files"\npath = "two"\nschedule = "0 1 * * *"\n')
    (old.root / "two").mkdir()
    (old.root / "two" / "b").write_text("b")
    server.send_signal(signal.SIGHUP)
    until(lambda: "000001.end" in old.leases("backup.two"), server)
    old.config.write_text("[nonsense")
    server.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert server.poll() is None
    server.terminate()
    said = ended(server)
    assert "configuration read again: 2 jobs" in said and "the one before stays" in said
    old.write()
    assert old.backups() == 2


def test_serve_answers_what_was_computed_last(old: Old) -> None:
    old.write(sources='[metrics]\nlisten = "127.0.0.1:0"\n')
    process = old.serve("--log-format", "json")
    assert process.stderr is not None
    try:
        first = json.loads(process.stderr.readline())
        url = re.fullmatch(r"metrics at (http://127.0.0.1:\d+/metrics)", first["text"])
        assert url is not None
        until = time.monotonic() + 100
        told: dict[str, float] = {}
        while told.get('strongroom_backups{source="vault"}', 0) < 1:
            assert time.monotonic() < until
            time.sleep(0.1)
            with urllib.request.urlopen(url[1], timeout=10) as answer:
                lines = [line.split() for line in answer.read().decode().splitlines()]
            told = {line[0]: float(line[1]) for line in lines if line[0] != "#"}
        assert told['strongroom_standing{source="vault",verdict="unproved"}'] == 1
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    said = [json.loads(line) for line in rest.splitlines()]
    begun = {line["run"]: line for line in said if line["event"] == "begin"}
    ended = {line["run"]: line for line in said if line["event"] == "end"}
    assert begun.keys() <= ended.keys()
    (run,) = [name for name in begun if ended[name]["outcome"] == "done"][:1]
    begin, end = begun[run], ended[run]
    assert (begin["type"], begin["source"], begin["level"]) == ("backup", "vault", "info")
    assert (end["exit"], end["snapshot"] != "") == (0, True)


def test_serve_that_is_stopped_lets_the_job_finish(old: Old) -> None:
    old.hold.touch()
    server = old.serve()
    until(lambda: old.began, server)
    server.terminate()
    time.sleep(0.5)
    assert server.poll() is None
    old.hold.unlink()
    assert "backup.vault: done" in ended(server)
    assert old.leases() == ["000001", "000001.end"]
    assert old.backups() == 1


def test_after_the_grace_the_job_is_stopped_in_order_and_run_again(old: Old) -> None:
    old.write(grace="1s")
    old.hold.touch()
    server = old.serve()
    until(lambda: old.began, server)
    server.terminate()
    assert "backup.vault: interrupted" in ended(server)
    old.hold.unlink()
    (job,) = old.run("run-due", "--json").result["jobs"]
    assert (job["try"], job["outcome"]) == (2, "done")
    assert old.leases() == ["000001", "000001.end", "000002", "000002.end"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a job ends with its parent on Linux")
def test_a_host_that_died_is_noticed_and_its_job_taken_over(old: Old) -> None:
    old.write(lease="3s")
    old.hold.touch()
    server = old.serve()
    until(lambda: old.began, server)
    assert old.run("run-due", "--list", "--json").result["jobs"][0]["state"] == "running"
    assert old.run("run-due", "--json").result["jobs"] == []
    server.kill()
    server.wait()
    old.hold.unlink()
    until(lambda: old.run("run-due", "--json").result["jobs"])
    assert len(old.began) == 2
    assert old.backups() == 1, "the job of the host that was killed went on"
    assert {"000002", "000002.end"} <= set(old.leases())
    assert any(".look-" in name for name in old.leases())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[schedule]\ncheck = "30 25 * * *"\n', "hour"),
        ('[schedule.job.x]\ncron = "0 1 * * *"\nargv = ["fly"]\n', "may run by itself"),
        ('[schedule.job.x]\ncron = "0 1 * * *"\nargv = ["restore", "db"]\n', "may run by itself"),
        ('[schedule.job.x]\ncron = "0 1 * * *"\nargv = []\n', "list of texts"),
        ('[schedule.job.x]\nargv = ["check"]\n', "is missing"),
        ('[schedule.job."a b"]\ncron = "0 1 * * *"\nargv = ["check"]\n', "a job's name"),
        ("[schedule]\ncatch_up = true\n", '"once" or "none"'),
        ('[schedule]\ncatchup = "once"\n', "did you mean"),
        ('[schedule]\ngrace = "0s"\n', "no time at all"),
    ],
)
def test_a_schedule_that_is_wrong_is_refused_when_it_is_read(
    desk: Desk, text: str, says: str
) -> None:
    desk.config.write_text(text)
    assert says in desk.run("config", "check", status=2).text


def test_nothing_scheduled_is_said(desk: Desk) -> None:
    assert desk.run("run-due", status=2).code == "usage"
    assert desk.run("serve", status=2).code == "usage"
