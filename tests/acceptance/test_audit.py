"""What was done is in the audit log, nothing secret is, and nobody changes it unseen."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pymerkle
import pytest

from .conftest import CONFIG, Desk, fill


def exported(desk: Desk, *words: str, **how: Any) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in desk.run("audit", "export", *words, **how).text.splitlines()
    ]


def runs(desk: Desk) -> list[dict[str, Any]]:
    return [line["run"] for line in exported(desk) if line["type"] == "leaf"]


def told(desk: Desk) -> list[tuple[str, str, int]]:
    """The runs, but for the notes that a configuration is another one."""
    every = [(each["type"], each["outcome"], each["exit"]) for each in runs(desk)]
    return [each for each in every if each[0] != "config"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a day behind it: five leaves, the configuration's among them."""
    desk = Desk(tmp_path_factory.mktemp("used"))
    desk.configure()
    fill(desk.vault)
    desk.run("init", "--kit", "kit.txt", "--quiet")
    desk.run("backup", "vault")
    desk.run("get", "vault:audits/00.json", "-o", "one.json")
    desk.run("check")
    return desk.root


@pytest.fixture
def used(template: Path, tmp_path: Path) -> Desk:
    """The same, on a machine of its own."""
    shutil.copytree(template, tmp_path / "m", symlinks=True)
    desk = Desk(tmp_path / "m")
    desk.configure()
    return desk


def test_every_verb_that_does_something_is_a_leaf(used: Desk) -> None:
    desk = used
    before = told(desk)
    assert before == [
        ("init", "done", 0), ("backup", "done", 0), ("read", "done", 0), ("check", "done", 0),
    ]  # fmt: skip
    desk.run("backup", "--all")
    desk.run("restore", "vault", "--to", "restored")
    desk.run("restore", "vault", "--to", "restored", status=4)
    desk.run("export", "vault", "-o", "out", "--format", "tar.gz")
    (artefact,) = Path(desk.root, "out").glob("*.tar.gz")
    desk.run("import", str(artefact), "--source", "again")
    desk.run("import", str(artefact), "--to", "unpacked")
    desk.run("keep", "vault", "latest", "--until", "30d", "--why", "audit")
    desk.run("key", "add", "host-b", "--role", "writer", "--new-key-file", "b.key")
    desk.run("key", "remove", "host-b")
    desk.run("prune")
    config = desk.config.read_text()
    desk.config.write_text(config + 'exclude = ["empty"]\n')
    desk.run("backup", "vault", "--artefact", "out2", "--artefact-format", "tar.gz")
    desk.run("backup", "vault", env={"STRONGROOM_PASSPHRASE": "wrong"}, status=8)
    desk.run("check")
    assert [each for each in told(desk)[len(before) :] if each[0] != "import"] == [
        ("backup", "done", 0), ("restore", "done", 0), ("restore", "refused", 4),
        ("export", "done", 0), ("keep", "done", 0), ("key", "done", 0), ("key", "done", 0),
        ("prune", "done", 0), ("backup", "done", 0), ("export", "done", 0),
        ("backup", "failed", 8), ("check", "done", 0),
    ]  # fmt: skip
    assert told(desk).count(("import", "done", 0)) == 2
    change = [each for each in runs(desk) if each["type"] == "config"][-1]
    assert change["detail"]["changed"] == ["source.vault.exclude"]
    restored = next(each for each in runs(desk) if each["type"] == "restore")
    assert restored["files"] > 20
    assert restored["snapshot"]
    assert restored["host"] == os.uname().nodename
    whole = desk.run("audit", "verify", "--json").document
    assert whole["whole"]
    assert whole["size"] == len(runs(desk))


def test_what_only_looks_leaves_no_trace(used: Desk) -> None:
    count = len(told(used))
    for words in (
        ("status",), ("ls", "vault", "-R"), ("doctor",), ("audit", "verify"),
        ("restore", "vault", "--to", "x", "--dry-run"), ("export", "vault", "-o", "x", "--dry-run"),
        ("prune", "--dry-run"), ("expire", "--dry-run"),
    ):  # fmt: skip
        used.run(*words, status=None)
    used.run("restore", "vault", status=2)
    assert len(told(used)) == count


def test_a_backup_that_was_killed_is_told_by_the_next_run(used: Desk) -> None:
    (used.vault / "big").write_bytes(os.urandom(30_000_000))
    process = used.start("backup", "vault")
    outbox = used.home / ".local/state/strongroom"
    deadline = time.monotonic() + 60
    while not list(outbox.rglob("*-backup.jsonl")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    killed = process.wait() == -signal.SIGKILL
    process.communicate()
    assert killed, "the backup was faster than the test"
    used.run("backup", "vault")
    last = [each for each in runs(used) if each["type"] == "backup"][-2:]
    assert [each["outcome"] for each in last] == ["interrupted", "done"]
    assert "its process died" in last[0]["what"]


# -- proof -----------------------------------------------------------------------------------


def test_an_auditor_needs_no_key_and_none_of_our_programs(used: Desk) -> None:
    """The page's procedure, with hashlib, base64 and pymerkle."""
    used.run("audit", "pin", "-o", "pin.txt")
    note = (used.root / "pin.txt").read_text()
    origin, size, root = note.split("\n")[:3]
    used.run("backup", "vault")
    head, *leaves = exported(used, "--pin", "pin.txt")
    _, now, root_now = head["note"].split("\n")[:3]
    assert origin == head["note"].split("\n")[0]
    assert (int(size), int(now)) == (5, len(leaves)) == (5, 7)
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for line in leaves:
        tree.append_entry(line["leaf"].encode())
        assert line["hash"] == hashlib.sha256(b"\0" + line["leaf"].encode()).hexdigest()
        body = json.loads(line["leaf"])["body"]
        assert {**line["run"]}.items() <= body.items()
        assert body["number"] == line["number"]
    assert tree.get_root() == base64.b64decode(root_now)
    assert tree.get_root(int(size)) == base64.b64decode(root)
    theirs = tree.prove_consistency(int(size), int(now)).serialize()["path"]
    ours = head["consistency"]["proof"]
    assert set(ours) <= set(theirs)
    since = leaves[-1]["run"]["ended"]
    _, *some = exported(used, "--since", since)
    assert len(some) == sum(line["run"]["ended"] >= since for line in leaves) < len(leaves)
    only = some[-1]
    assert only["number"] == 6
    assert [only["hash"], *only["proof"]] == tree.prove_inclusion(7, 7).serialize()["path"]


def test_a_table_to_look_at(used: Desk) -> None:
    used.run("keep", "vault", "latest", "--why", "=cmd|' /C calc'!A0")
    used.run("audit", "export", "-o", "log.csv", "--format", "csv")
    with (used.root / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = ["init", "config", "backup", "read", "check", "config", "keep"]
    assert [row["type"] for row in rows] == kinds
    assert json.loads(rows[6]["detail"])["why"].startswith("=cmd")
    assert (used.root / "log.csv").stat().st_mode & 0o777 == 0o600
    done = used.run("audit", "export", "-o", "log.csv", status=4)
    assert done.code == "already-exists"
    text = used.run("audit", "export", "--format", "csv", "--since", "2020-01-01T00:00Z").text
    assert len(list(csv.reader(io.StringIO(text)))) == 8


def leaves_of(desk: Desk) -> list[Path]:
    return sorted((desk.repository / "audit/leaves").rglob("[0-9]" * 12))


def test_tampering_is_exit_9_and_names_what(used: Desk) -> None:
    desk = used
    kept = desk.root / "kept"
    shutil.copytree(desk.repository, kept)

    def verdict() -> list[dict[str, str]]:
        """On a machine that has seen nothing."""
        env = {"STRONGROOM_STATE_DIR": str(desk.root / os.urandom(4).hex())}
        done = desk.run("audit", "verify", "--json", status=None, env=env)
        assert done.status == (9 if done.document["findings"] else 0)
        findings: list[dict[str, str]] = done.document["findings"]
        return findings

    def restored() -> list[Path]:
        shutil.rmtree(desk.repository)
        shutil.copytree(kept, desk.repository)
        return leaves_of(desk)

    assert verdict() == []
    leaf = leaves_of(desk)[2]
    leaf.chmod(0o600)
    leaf.write_bytes(leaf.read_bytes()[:-1] + b"x")
    (finding,) = verdict()
    assert finding["object"].endswith("/000000000002")
    done = desk.run("check", status=9)
    assert "audit log" in done.text
    restored()[1].unlink()
    assert "is gone" in verdict()[0]["reason"]
    first, second, *_ = restored()
    data = first.read_bytes(), second.read_bytes()
    for path, other in zip((first, second), reversed(data), strict=True):
        path.chmod(0o600)
        path.write_bytes(other)
    assert len(verdict()) == 2
    restored()[-1].unlink()
    assert "it was cut" in verdict()[0]["reason"]
    restored()
    assert verdict() == []


def test_an_older_state_of_all_of_it_needs_a_pin_or_this_machine(used: Desk) -> None:
    desk = used
    older = desk.root / "older"
    shutil.copytree(desk.repository, older)
    desk.run("backup", "vault")
    desk.run("audit", "pin", "-o", "pin.txt")
    assert desk.run("audit", "pin", "-o", "pin.txt", status=4).code == "already-exists"
    shutil.rmtree(desk.repository)
    older.rename(desk.repository)
    elsewhere = {"STRONGROOM_STATE_DIR": str(desk.root / "elsewhere")}
    done = desk.run("audit", "verify", env=elsewhere)
    assert "without a pin, an older state of all of it would look the same" in done.text
    done = desk.run("audit", "verify", "--pin", "pin.txt", env=elsewhere, status=9)
    assert "an older state of itself" in done.text
    done = desk.run("audit", "verify", status=9)
    assert "as this machine has seen it" in done.text
    done = desk.run("backup", "vault")  # a backup is a backup, and says what it saw
    assert "is not the one that this machine has seen" in done.stderr
    desk.run("audit", "verify", status=9)
    shutil.rmtree(desk.home / ".local/state/strongroom")
    desk.run("audit", "verify")


def test_a_pin_that_is_none(used: Desk) -> None:
    (used.root / "no.txt").write_text("strongroom\n")
    assert used.run("audit", "verify", "--pin", "no.txt", status=9).code == "damaged"
    assert used.run("audit", "verify", "--pin", "nowhere", status=2).code == "config"


# -- what must not be in it ------------------------------------------------------------------

CANARY = "canary-4b1d-bird"


def test_no_secret_is_in_the_log_or_on_this_machine(desk: Desk) -> None:
    """Every way in which one could be told: as a passphrase, in a message, a path, a connection."""
    fill(desk.vault)
    secret = desk.root / "pg.secret"
    secret.write_text(f"{CANARY}-file\n")
    secret.chmod(0o600)
    desk.configure(
        CONFIG
        + '\n[source.db]\ntype = "postgres"\ndsn = "postgresql://u@127.0.0.1:1/db"\n'
        + f'password = "file:{secret}"\n'
    )
    env = {
        "STRONGROOM_PASSPHRASE": f"{CANARY}-passphrase",
        "PGPASSWORD": f"{CANARY}-pg",
        "AWS_SECRET_ACCESS_KEY": f"{CANARY}-aws",
    }
    desk.run("init", "--kit", "kit.txt", env=env)
    code = re.search(r"(?:[0-9A-Z]{5}-){7}[0-9A-Z]{5}", (desk.root / "kit.txt").read_text())
    assert code is not None
    desk.run("backup", "vault", env=env)
    desk.run("backup", "--all", env=env, status=7)
    desk.run("get", f"vault:{CANARY}-file", "-o", "x", env=env, status=5)
    desk.run("restore", "vault", "--to", f"to-{CANARY}-pg", env=env)
    desk.run("restore", "vault", "--to", f"postgresql://u:{CANARY}-url@h/db", env=env, status=None)
    desk.run("keep", "vault", "latest", "--why", f"password={CANARY}-why", env=env)
    desk.run("export", "vault", "-o", "out", "--artefact-key", "a.key", env=env)
    desk.run("key", "add", "b", "--new-key-file", "b.key", env=env)
    desk.run("backup", "vault", env={**env, "STRONGROOM_PASSPHRASE": f"{CANARY}-wrong"}, status=8)
    desk.run("check", env=env)
    text = desk.run("audit", "export", env=env).text
    assert text.count("backup") > 5
    keys = [(desk.root / name).read_text().split()[-1] for name in ("a.key", "b.key")]
    for hidden in (CANARY, code[0], *keys):
        assert hidden not in text, hidden
        for path in (desk.home / ".local/state").rglob("*"):
            assert not path.is_file() or hidden.encode() not in path.read_bytes(), path
    for path in (desk.repository / "audit").rglob("*"):  # sealed: not even names of sources
        if path.is_file():
            assert b"vault" not in path.read_bytes()
            assert b"strongroom/audit" not in path.read_bytes()


def test_a_repository_that_cannot_be_written_is_read_all_the_same(used: Desk) -> None:
    """The restore of a bad day works; it is told when somebody can write again."""
    moved = used.repository / "audit"
    count = len(told(used))
    shutil.move(moved, used.root / "audit")
    moved.write_text("in the way")  # nothing can be put below it
    done = used.run("restore", "vault", "--to", "restored")
    assert "not in the audit log yet" in done.stderr
    moved.unlink()
    shutil.move(used.root / "audit", moved)
    used.run("check")
    assert [each[0] for each in told(used)[count:]] == ["restore", "check"]
