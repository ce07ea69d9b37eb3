"""status, metrics and the log, as commands: what they say of a source from its first day on."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
import urllib.request
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from acceptance.conftest import CONFIG, Desk, damage_packs

CANARIES = ("canary-of-the-environment", "canary-of-a-file", "canary-in-an-address")


def samples(text: str) -> dict[tuple[str, str], float]:
    """Value by name and the source or the last label."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name, "/".join(sample.labels.values())] = sample.value
    return found


def test_from_nothing_to_proved_to_damaged(filled: Desk) -> None:
    done = filled.run("status", status=10)
    assert done.text.startswith(
        "NONE      vault  nothing is recoverable; never proved; RPO unknown"
    )
    assert "- there is no backup" in done.text
    filled.run("backup", "vault")
    done = filled.run("status")
    assert done.text.startswith("UNPROVED  vault  recoverable from ")
    assert "RTO not measured of 4h promised" in done.text
    filled.run("restore", "vault", "--to", "part", "--path", "empty")
    assert "RTO not measured" in filled.run("status").text
    filled.run("restore", "vault", "--to", "all")
    filled.run("check", "--read-data")
    (source,) = filled.run("status", "vault", "--json").document["sources"]
    assert (source["verdict"], source["reasons"], source["missed"]) == ("ok", [], False)
    assert source["measured"]["rto_by"] == "restore"
    assert 0 < source["measured"]["rto_seconds"] < 100
    assert source["last_proved"]["by"] == "check"
    assert source["promise"] == {"rpo_seconds": 86400, "rto_seconds": 14400}
    damage_packs(filled.repository)
    filled.run("check", "--read-data", status=9)
    done = filled.run("status", "vault", status=10)
    assert done.text.startswith("NONE      vault  nothing is recoverable")
    assert "a check found it damaged" in done.text
    assert "code" in filled.run("status", "nosuch", "--json", status=5).document


def test_status_records_nothing_and_needs_no_state(filled: Desk) -> None:
    filled.run("backup", "vault")
    before = filled.run("audit", "verify", "--json").document["size"]
    env = {"STRONGROOM_STATE_DIR": "/proc/none"}
    assert filled.run("status", env=env).text.startswith("UNPROVED  vault")
    assert filled.run("audit", "verify", "--json").document["size"] == before


# -- metrics -----------------------------------------------------------------------------------


def test_the_verb(filled: Desk) -> None:
    filled.run("backup", "vault")
    told = samples(filled.run("metrics").text)
    assert told["strongroom_backups", "vault"] == 1
    assert told["strongroom_standing", "vault/unproved"] == 1
    assert told["strongroom_rpo_target_seconds", "vault"] == 86400
    assert told["strongroom_repository_size_bytes", ""] > 100_000
    filled.run("metrics", "-o", "out.prom")
    assert samples((filled.root / "out.prom").read_text()).keys() == told.keys()
    body = filled.run("metrics", "--json").document
    assert {one["name"] for one in body["samples"]} == {name for name, _ in told}
    assert "does not end in .prom" in filled.run("metrics", "-o", "x", status=2).stderr
    assert "cannot be written" in filled.run("metrics", "-o", "no/x.prom", status=1).stderr


def test_a_textfile_is_written_when_a_run_has_ended(filled: Desk) -> None:
    text = filled.config.read_text()
    filled.config.write_text(text + '[metrics]\ntextfile = "strongroom.prom"\n')
    path = filled.root / "strongroom.prom"
    filled.run("list")
    assert not path.exists()
    filled.run("backup", "vault")
    assert samples(path.read_text())["strongroom_backups", "vault"] == 1
    filled.run("backup", "vault")
    first = samples(path.read_text())
    assert first["strongroom_backups", "vault"] == 2
    filled.run("check", "--read-data")
    assert samples(path.read_text())["strongroom_standing", "vault/ok"] == 1
    path.unlink()
    path.mkdir()  # it cannot be written: the run warns, and is what it is
    done = filled.run("backup", "vault")
    assert "warning: the metrics are those of an earlier run: " in done.stderr
    filled.config.write_text(text + '[metrics]\ntextfile = "strongroom.txt"\n')
    assert "must end in .prom" in filled.run("list", status=2).stderr


def test_serve_answers_what_was_computed_last(filled: Desk) -> None:
    text = CONFIG.format(repository=filled.repository, vault=filled.vault)
    more = 'schedule = "* * * * *"\n[metrics]\nlisten = "127.0.0.1:0"\n'
    filled.config.write_text(text + more)
    process = filled.start("serve", "--log-format", "json")
    assert process.stderr is not None
    try:
        said = json.loads(process.stderr.readline())
        url = re.fullmatch(r"metrics at (http://127.0.0.1:\d+/metrics)", said["text"])
        assert url is not None
        until = time.monotonic() + 100
        told: dict[tuple[str, str], float] = {}
        while told.get(("strongroom_backups", "vault"), 0) < 1:
            assert time.monotonic() < until
            time.sleep(0.2)
            with urllib.request.urlopen(url[1], timeout=10) as answer:
                told = samples(answer.read().decode())
        assert told["strongroom_standing", "vault/unproved"] == 1
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = [json.loads(line) for line in rest.splitlines()]
    begun = {line["run"]: line for line in lines if line["event"] == "begin"}
    ended = {line["run"]: line for line in lines if line["event"] == "end"}
    assert begun.keys() == ended.keys()
    (run,) = [name for name, line in ended.items() if line["outcome"] == "done"][:1]
    begin, end = begun[run], ended[run]
    assert (begin["type"], begin["source"], begin["level"]) == ("backup", "vault", "info")
    assert (end["files"], end["exit"]) == (22, 0)


def test_a_port_that_is_taken_ends_serve(filled: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        text = CONFIG.format(repository=filled.repository, vault=filled.vault)
        listen = f'[metrics]\nlisten = "127.0.0.1:{port}"\n'
        filled.config.write_text(text + 'schedule = "0 2 * * *"\n' + listen)
        done = filled.run("serve", status=6)
    assert "Address already in use" in done.error_lines[0]
    filled.config.write_text(text + '[metrics]\nlisten = "nonsense"\n')
    assert "must be an address and a port" in filled.run("list", status=2).stderr


# -- the log -----------------------------------------------------------------------------------


def test_every_line_is_json_and_holds_no_secret(filled: Desk) -> None:
    """Errors, warnings and notes of several verbs, of jobs too, with secrets at every place from
    which one could come: nothing of them is in a line, and each line can be read by itself."""
    environment, in_file, in_address = CANARIES
    secret = filled.root / "secret"
    secret.write_text(f"http://127.0.0.1:1/{in_file}")
    secret.chmod(0o600)
    text = CONFIG.format(repository=filled.repository, vault=filled.vault)
    text += 'schedule = "0 2 * * *"\n'
    text += f'[source.odd]\ntype = "files"\npath = "/no/{environment}/x"\n'
    text += f'schedule = "* * * * *"\n[notify.chat]\ntype = "slack"\nurl = "file:{secret}"\n'
    text += '[log]\nformat = "json"\n[metrics]\ntextfile = "/no/such/x.prom"\n'
    filled.config.write_text(text)
    env = {"PGPASSWORD": environment}
    lines: list[dict[str, Any]] = []
    for words, status in (
        (["backup", "vault"], 0),
        (["backup", "odd"], 5),
        (["backup", "--all"], 5),
        (
            [
                "restore",
                "vault",
                "--to",
                f"https://user:{in_address}@host/x",
                "--at",
                "1 second ago",
            ],
            None,
        ),
        (["restore", "vault", "--backup", f"password={in_address}", "--to", "x"], 2),
        (["restore", f"password={in_address}", "--to", "x"], 5),
        (["notify", "test"], 7),
        (["run-due", "odd"], None),
        (["nosuch", "--log-format=json"], 2),
    ):
        done = run(filled, words, env)
        if status is not None:
            assert done.returncode == status, (words, done.stderr)
        for line in done.stderr.splitlines():
            for canary in CANARIES:
                assert canary.encode() not in line, words
            lines.append(json.loads(line))
    for line in lines:
        assert set(line) >= {"time", "level", "event", "text"}
        assert line["level"] in ("info", "warning", "error")
    assert {line["event"] for line in lines} >= {"begin", "end", "note", "warning", "error"}
    errors = [line["error"] for line in lines if line["event"] == "error"]
    assert all({"code", "what", "means", "do", "exit"} <= set(error) for error in errors)
    ends = [line for line in lines if line["event"] == "end"]
    assert {line["outcome"] for line in ends} >= {"done", "failed"}
    for end in ends:  # what the log calls a run is what the audit log calls it
        assert re.fullmatch("[0-9a-f]{16}", end["run"])
    filled.run("audit", "export", "-o", "audit.json", env=env)
    exported = (filled.root / "audit.json").read_text()
    assert all(end["run"] in exported for end in ends if end["outcome"] != "nothing")
    assert {end["run"] for end in ends} == {
        line["run"] for line in lines if line["event"] == "begin"
    }


def run(desk: Desk, words: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    process = desk.start(*words, env=env)
    stdout, stderr = process.communicate(timeout=120)
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


@pytest.mark.parametrize("how", ["flag", "in front", "environment"])
def test_ways_to_ask_for_it(filled: Desk, how: str) -> None:
    words, env = ["ls", "nosuch:x"], {}
    if how == "environment":
        env = {"STRONGROOM_LOG_FORMAT": "json"}
    else:
        flag = ["--log-format", "json"]
        words = words + flag if how == "flag" else flag + words
    done = run(filled, words, env)
    (line,) = done.stderr.splitlines()
    body = json.loads(line)
    assert (body["event"], body["error"]["exit"], done.returncode) == ("error", 5, 5)
