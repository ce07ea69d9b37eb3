"""notify test, as a person runs it."""

from __future__ import annotations

from acceptance.conftest import CONFIG, Desk
from observe.servers import Web

SECRET = "canary-3c41"


def test_every_channel_says_what_it_answered(desk: Desk) -> None:
    good, bad = Web(), Web()
    bad.status = 500
    desk.configure(
        CONFIG
        + f"""
[notify.slack]
type = "slack"
url = "env:SLACK"

[notify.pager]
type = "pagerduty"
routing_key = "env:PAGER"
url = "{bad.url}/v2"

[notify.deadman]
type = "ping"
url = "env:DEADMAN"
""".replace("{", "{{").replace("}", "}}")
    )
    environ = {
        "SLACK": f"{good.url}/{SECRET}",
        "PAGER": SECRET,
        "DEADMAN": f"{good.url}/ping/{SECRET}",
    }
    done = desk.run("notify", "test", env=environ, status=7)
    assert done.text.splitlines()[::2] == ["ok    slack", "ok    deadman"]
    assert done.text.splitlines()[1].startswith("FAIL  pager: pager: PagerDuty answered 500")
    assert SECRET not in done.text + done.stderr
    assert [path for _, path, _ in good.asked] == [f"/{SECRET}", f"/ping/{SECRET}"]
    assert good.asked[0][2]["text"].startswith(":wave: *Test: ")
    bad.status = 202
    body = desk.run("notify", "test", "pager", "--json", env=environ).document
    assert body["channels"] == [{"channel": "pager", "taken": True, "fault": ""}]
    assert desk.run("notify", "test", "nobody", env=environ, status=5).code == "not-found"
