"""Alerts as they go out by themselves: the command, a mail server, a web server, and nobody in between."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from email import message_from_bytes, policy
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from acceptance.conftest import Desk
from observe.servers import Web

SECRET = "canary-77d0"
CONFIG = """\
[repository]
url = "{repository}"
passphrase = "env:STRONGROOM_PASSPHRASE"

[source.vault]
type = "files"
path = "{vault}"
schedule = "0 2 * * *"
promise = {{ rpo = "36h" }}

[schedule.job.look]
cron = "* * * * *"
argv = ["repository", "stats"]

[notify.mail]
type = "smtp"
host = "127.0.0.1"
port = PORT
tls = "none"
sender = "backup@example.com"
to = ["ops@example.com"]

[notify.pager]
type = "pagerduty"
routing_key = "env:PAGER"
url = "WEB/v2"

[notify.deadman]
type = "ping"
url = "env:DEADMAN"
"""


class Post:
    """A mail server that keeps what it takes, or takes nothing."""

    def __init__(self) -> None:
        self.up = True
        self.mails: list[Any] = []
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.controller = Controller(self, hostname="127.0.0.1", port=self.port)
        self.controller.start()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if not self.up:
            return "451 later"
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 taken"

    @property
    def subjects(self) -> list[str]:
        return [str(mail["Subject"]).removeprefix("[strongroom] ") for mail in self.mails]


@pytest.fixture
def post() -> Iterator[Post]:
    post = Post()
    yield post
    post.controller.stop()


def test_what_is_wrong_goes_out_by_itself_once_and_its_end_once(desk: Desk, post: Post) -> None:
    web = Web()
    web.status = 202
    desk.configure(CONFIG.replace("PORT", str(post.port)).replace("WEB", web.url))
    desk.environ |= {"PAGER": SECRET, "DEADMAN": f"{web.url}/ping/{SECRET}"}
    (desk.vault / "a.json").write_text("a")
    desk.run("init", "--kit", "kit.txt", "--quiet")
    desk.run("backup", "vault")
    desk.run("run-due")
    asked = [(method, path) for method, path, _ in web.asked]
    assert asked and set(asked) == {("GET", f"/ping/{SECRET}")}, "all is well"
    assert post.mails == []

    # Somebody's backup fails: it is told by the next run-due, once. The pager does not answer.
    web.status = 500
    away = desk.vault.rename(desk.root / "away")
    desk.run("backup", "vault", status=None)
    beats = len(web.asked)
    done = desk.run("run-due", status=None)
    desk.run("run-due", status=None)
    desk.run("notify", "run", status=None)
    assert post.subjects == ["The backup of vault failed."]
    assert "not told by pager" in done.stderr
    events = [body for method, _, body in web.asked[beats:] if method == "POST"]
    assert [event["event_action"] for event in events] == ["trigger"]
    assert all(method == "POST" for method, _, _ in web.asked[beats:]), "silent while it is wrong"
    (alert,) = desk.run("notify", "list", "--json").document["alerts"]
    assert (
        alert["key"] == "backup-failed/vault" and alert["sent"] and alert["severity"] == "critical"
    )
    assert "backup-failed/vault" in desk.run("notify", "list").text

    # The journal is lost meanwhile: nothing is told twice. Then it is mended.
    for file in desk.home.rglob("journal.sqlite"):
        file.unlink()
    desk.run("run-due", status=None)
    assert len(post.mails) == 1
    web.status = 202
    away.rename(desk.vault)
    desk.run("backup", "vault")
    desk.run("run-due")
    assert post.subjects == ["The backup of vault failed.", "Fixed: The backup of vault failed."]
    assert web.asked[-1][:2] == ("GET", f"/ping/{SECRET}")
    posted = [body for method, _, body in web.asked if method == "POST"]
    assert [event["event_action"] for event in posted] == ["trigger", "resolve"]
    assert len({event["dedup_key"] for event in posted}) == 1
    leaves = desk.run("audit", "export", status=None).text
    told = [json.loads(line) for line in leaves.splitlines() if '"alert"' in line]
    assert SECRET not in leaves and len(told) in (0, 2)

    # The repository cannot be opened: told from this machine alone, once, and its end once.
    gone = desk.repository.rename(desk.root / "gone")
    for _ in range(2):
        desk.run("run-due", status=None)
    gone.rename(desk.repository)
    for _ in range(2):
        desk.run("run-due", status=None)
    assert ["cannot open the repository" in each for each in post.subjects[2:]] == [True, True]
    assert post.subjects[3].startswith("Fixed: ")


def test_nobody_takes_it_and_it_is_said_and_tried_again(desk: Desk, post: Post) -> None:
    web = Web()
    web.status = 500
    post.up = False
    desk.configure(CONFIG.replace("PORT", str(post.port)).replace("WEB", web.url))
    desk.environ |= {"PAGER": SECRET, "DEADMAN": f"{web.url}/ping/{SECRET}"}
    desk.run("init", "--kit", "kit.txt", "--quiet")
    desk.vault.rename(desk.root / "away")
    desk.run("backup", "vault", status=None)
    done = desk.run("notify", "run", "--json", status=7)
    assert {told["channel"] for told in done.result["told"]} == {"mail", "pager"}
    assert all(told["fault"] for told in done.result["told"])
    (alert,) = desk.run("notify", "list", "--json").document["alerts"]
    assert alert["sent"] is None and alert["tried"] == 1
    assert SECRET not in done.text + done.stderr
    # Not within the minute.
    assert desk.run("notify", "run", "--json", status=None).result["told"] == []
