"""A day with the command: from `init` to a restore with nothing but the kit."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from acceptance.conftest import Desk, tree_of


def test_a_vault_there_and_back(filled: Desk) -> None:
    desk = filled
    desk.run("backup", "vault", "--label", "reason=first")
    before = tree_of(desk.vault)

    (desk.vault / "audits/00.json").write_text("changed")
    (desk.vault / "audits/01.json").unlink()
    (desk.vault / "audits/new.json").write_text("new")
    (desk.vault / "audits/02.json").chmod(0o600)
    second = desk.run("backup", "vault", "--json").result["backups"][0]["snapshot"]
    assert second["stored"] < 20_000, "unchanged files were stored again"

    listed = desk.run("list", "vault", "--json").document["snapshots"]
    assert [each["labels"] for each in listed] == [{"reason": "first"}, {}]
    assert listed[1] == second
    assert listed[0]["id"][:8] in desk.run("list").text

    lines = desk.run("diff", "vault", "oldest", "latest").text.splitlines()
    changes = {line.split(" ", 1)[1]: line[0] for line in lines}
    assert changes["audits/00.json"] == "M"
    assert changes["audits/01.json"] == "-"
    assert changes["audits/new.json"] == "+"
    assert changes["audits/02.json"] == "m"

    names = {
        entry["path"] for entry in desk.run("ls", "vault:audits", "--json").document["entries"]
    }
    assert "audits/new.json" in names
    assert "audits/01.json" not in names
    assert desk.run("get", "vault@oldest:audits/01.json", "-o", "-").stdout == b'{"number": 1}'
    desk.run("get", f"vault@{listed[0]['id'][:6]}:audits/01.json", "-o", "one.json")
    assert (desk.root / "one.json").read_text() == '{"number": 1}'
    assert (desk.root / "one.json").stat().st_mode & 0o777 == 0o600

    desk.run("restore", "vault", "--to", "now")
    assert tree_of(desk.root / "now") == tree_of(desk.vault)
    desk.run("restore", "vault", "--at", listed[0]["time"], "--to", "then")
    assert tree_of(desk.root / "then") == before
    desk.run("restore", "vault", "--backup", "oldest", "--path", "audits/01.json", "--to", "part")
    assert [name for name, _ in tree_of(desk.root / "part").items()] == ["audits", "audits/01.json"]

    assert "no damage found" in desk.run("check").text
    assert "no damage found" in desk.run("check", "--read-data").text
    assert re.match(
        r"OK        vault  recoverable from 20\S+Z until 20\S+Z \(2 backups\); last proved 20\S+Z by "
        r"reading everything; RPO [0-9.]+ s of 1d promised; RTO [0-9.]+ s \(restore\) of 4h promised\n",
        desk.run("status").text,
    )
    assert "2 backups hold" in desk.run("repository", "stats").text


def test_dry_run_changes_nothing(filled: Desk) -> None:
    filled.run("backup", "vault")
    done = filled.run("restore", "vault", "--to", "out", "--dry-run", "--json")
    assert done.result["dry_run"] is True
    assert done.result["plan"]["files"] == 22
    assert not (filled.root / "out").exists()


def test_in_place_only_when_asked(filled: Desk) -> None:
    filled.run("backup", "vault")
    good = tree_of(filled.vault)
    (filled.vault / "audits/00.json").write_text("spoiled")
    (filled.vault / "mine").write_text("not in the backup")
    refused = filled.run("restore", "vault", "--to", str(filled.vault), status=4)
    assert "--in-place" in refused.error_lines[2]
    assert (filled.vault / "audits/00.json").read_text() == "spoiled"
    filled.run("restore", "vault", "--in-place")
    assert {**tree_of(filled.vault), "mine": None} == {**good, "mine": None}
    assert (filled.vault / "mine").exists(), "what the backup does not name was removed"


def test_keys_come_and_go(filled: Desk) -> None:
    desk = filled
    desk.run("backup", "vault")
    desk.run("key", "add", "carla", "--new-key-file", "carla.key")
    assert (desk.root / "carla.key").stat().st_mode & 0o777 == 0o600
    (desk.root / "host.pass").write_text("a writer's passphrase\n")
    (desk.root / "host.pass").chmod(0o600)
    desk.run("key", "add", "web-1", "--role", "writer", "--new-passphrase-file", "host.pass")
    labels = {each["label"]: each for each in desk.run("key", "list", "--json").document["keys"]}
    assert set(labels) == {"passphrase", "recovery-kit", "carla", "web-1"}
    assert labels["web-1"]["role"] == "writer"

    # The key file alone opens; the passphrase of the environment is not tried behind its back.
    wrong = {"STRONGROOM_PASSPHRASE": "wrong"}
    desk.run("ls", "vault", "--key-file", "carla.key", env=wrong)

    # A writer backs up and cannot read.
    writer = ("--passphrase-file", "host.pass")
    desk.run("backup", "vault", *writer)
    refused = desk.run("restore", "vault", "--to", "out", *writer, status=8)
    assert "cannot" in refused.error_lines[0] or "not read" in refused.error_lines[0]
    assert not (desk.root / "out").exists()

    shown = desk.run("key", "remove", "passphrase", "--dry-run", "--key-file", "carla.key")
    assert "Would remove" in shown.text
    desk.run("ls", "vault")
    desk.run("key", "remove", "passphrase", "--key-file", "carla.key")
    desk.run("list", status=8)
    desk.run("key", "remove", "carla", "--key-file", "carla.key", status=4)  # one's own way in
    desk.run("key", "remove", "nobody", "--key-file", "carla.key", status=5)


def test_a_new_recovery_code_is_a_way_in(filled: Desk) -> None:
    filled.run("backup", "vault")
    kit = filled.run("key", "add", "second-kit", "--new-recovery-code").text
    code = re.search(r"STRONGROOM_RECOVERY_CODE=(\S+)", kit)
    assert code
    filled.run(
        "restore", "vault", "--to", "out",
        env={"STRONGROOM_PASSPHRASE": "", "STRONGROOM_RECOVERY_CODE": code[1]},
    )  # fmt: skip
    assert tree_of(filled.root / "out") == tree_of(filled.vault)


def test_restore_from_the_kit_alone(filled: Desk, tmp_path: Path) -> None:
    """An empty home on another machine; only the repository and the printed page."""
    filled.run("backup", "vault")
    expected = tree_of(filled.vault)
    kit = (filled.root / "kit.txt").read_text()
    assert (filled.root / "kit.txt").stat().st_mode & 0o777 == 0o600
    elsewhere = tmp_path / "elsewhere"
    stranger = Desk(elsewhere)
    del stranger.environ["STRONGROOM_PASSPHRASE"]
    filled.config.unlink()

    commands = [line.strip() for line in kit.splitlines() if line.startswith("  ")]
    code = next(line for line in commands if line.startswith("export STRONGROOM_RECOVERY_CODE="))
    environ = dict([code.removeprefix("export ").split("=", 1)])
    ran = 0
    for line in commands:
        words = shlex.split(line)
        if words[0] == "strongroom":
            stranger.run(*words[1:], env=environ)
            ran += 1
    assert ran >= 2, "the kit names no commands"
    (restored,) = [folder for folder in elsewhere.iterdir() if folder.name.startswith("restored")]
    assert tree_of(restored) == expected


def test_init_is_not_done_twice(filled: Desk) -> None:
    before = tree_of(filled.repository)
    assert filled.run("init", status=4).code in ("refused", "already-exists")
    assert tree_of(filled.repository) == before


def test_init_makes_the_key_file_that_is_named(desk: Desk) -> None:
    environ = {"STRONGROOM_PASSPHRASE": ""}
    done = desk.run("init", "--key-file", "k", "--json", env=environ)
    assert done.document["keys"] == ["key-file", "recovery-kit"]
    assert "RECOVERY CODE" in done.document["kit"]
    (desk.vault / "a").write_text("a")
    desk.run("backup", "vault", "--key-file", "k", env=environ)
    assert desk.run("ls", "vault", "--key-file", "k", env=environ).text.split()[-1] == "a"


def test_init_without_any_key_starts_nothing(desk: Desk) -> None:
    assert desk.run("init", status=2, env={"STRONGROOM_PASSPHRASE": ""}).code == "config"
    desk.config.write_text('[repository]\nurl = "repository"\n')
    assert desk.run("init", status=2, env={"STRONGROOM_PASSPHRASE": ""}).code == "usage"
    assert not desk.repository.exists()


def test_no_configuration_is_needed_to_read(filled: Desk, tmp_path: Path) -> None:
    filled.run("backup", "vault")
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    where = ("--repository", str(filled.repository))
    filled.run(*where, "list", cwd=nowhere)
    filled.run("restore", "vault", "--to", "out", *where, cwd=nowhere)
    assert tree_of(nowhere / "out") == tree_of(filled.vault)


def test_backup_of_every_source_goes_on_after_a_failure(filled: Desk) -> None:
    more = '[source.gone]\ntype = "files"\npath = "/no/such/folder"\n'
    more += f'[source.other]\ntype = "files"\npath = "{filled.vault}"\ninclude = ["audits/"]\n'
    filled.config.write_text(filled.config.read_text() + more)
    done = filled.run("backup", "--all", "--json", status=5)
    assert [each["snapshot"]["source"] for each in done.result["backups"]] == ["vault", "other"]
    assert [each["source"] for each in done.result["failed"]] == ["gone"]
    assert filled.run("status", status=0).text.count("recoverable from") == 2


def test_times_of_today_are_echoed_in_utc(filled: Desk) -> None:
    filled.run("backup", "vault")
    done = filled.run("ls", "vault@1 second ago:audits", status=None)
    assert re.search(r"1 second ago is \d{4}-.*Z", done.stderr)
    done = filled.run(
        "restore", "vault", "--at", "00:00", "--to", "x", status=None, env={"TZ": "Asia/Tokyo"}
    )
    assert re.search(r"00:00 is \d{4}-\d\d-\d\dT15:00:00Z", done.stderr)


def test_source_test_names_what_cannot_be_read(filled: Desk) -> None:
    text = filled.run("source", "test", "vault").text
    assert "files: 22" in text
    report = filled.run("source", "test", "vault", "--json").document["report"]
    assert (report["files"], report["unreadable"]) == (22, 0)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script(desk: Desk, shell: str) -> None:
    script = desk.run("completion", shell).text
    assert "strongroom" in script
    assert "repository" in script


def test_secrets_are_nowhere(filled: Desk) -> None:
    """Neither in what is printed, nor in a cache or temporary file, nor in the repository."""
    shown = ""
    for words in (["config", "show"], ["backup", "vault"], ["-vv", "list"], ["status", "--json"]):
        done = filled.run(*words)
        shown += done.text + done.stderr
    shown += filled.run("list", "-vv", env={"STRONGROOM_PASSPHRASE": "hunter2!"}, status=8).stderr
    assert "correct horse" not in shown
    assert "hunter2!" not in shown
    for folder, _, files in os.walk(filled.root):
        for name in files:
            with open(os.path.join(folder, name), "rb") as file:
                assert b"correct horse" not in file.read(), os.path.join(folder, name)
