"""`restore --runbook` of a vault in a cloud: in place, with a safety backup as the way back.

Real rclone processes over a remote that rests on this disk (`plain`, and `sealed`, which has no
hashes), and over one that forgets everything when its process ends (`:memory:`).
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time

import pytest

from acceptance.conftest import Desk, Done, damage_packs
from acceptance.test_cloud import make, rclone, rclone_program
from acceptance.test_runbook import TOOL, states

pytestmark = pytest.mark.xdist_group("acceptance-runbook-cloud")
RUNBOOK = """
include = ["audits/", "ml_features/", "big/"]
promise = {{ rpo = "31d", rto = "24h", keep = "12 months" }}

[source.vault.runbook]
stop = [[{python}, {tool}, {root}, "stop"]]
start = [[{python}, {tool}, {root}, "start"]]
rebuild_index = {{ argv = [{python}, {tool}, {root}, "rebuild", "{{path}}"] }}
"""
# Stands for rclone: a file "hang-WORD" makes the operation wait after it was done, "break-WORD"
# fails it, "spoil-WORD" is a script that is run before it.
WRAPPER = """\
#!/bin/sh
root={root}
printf '%s\\n' "$*" >> $root/argv
if [ -f $root/spoil-$1 ]; then mv $root/spoil-$1 $root/spoilt; sh $root/spoilt; fi
if [ -f $root/break-$1 ]; then echo "CRITICAL: dial tcp: connection refused" >&2; exit 1; fi
{rclone} "$@"
status=$?
if [ -f $root/hang-$1 ]; then touch $root/hanging; while [ -f $root/hang-$1 ]; do sleep 0.05; done; fi
exit $status
"""


class Cloud:
    """A vault at a remote with services on it, one backup, and changes since."""

    def __init__(self, desk: Desk, remote: str) -> None:
        self.desk, self.remote = desk, remote
        self.seen = desk.root / "seen"
        make(desk, remote)
        (desk.root / "rclone").write_text(WRAPPER.format(root=desk.root, rclone=rclone_program()))
        tool = desk.root / "tool.py"
        tool.write_text(TOOL)
        words = {"python": sys.executable, "tool": tool, "root": desk.root}
        desk.config.write_text(
            desk.config.read_text()
            + RUNBOOK.format(**{key: json.dumps(str(value)) for key, value in words.items()})
        )
        self.shell("mkdir", f"{remote}/big" if "/" in remote else f"{remote}big")
        self.write("big/one", "x" * 300_000)
        desk.run("backup", "vault", "--quiet", status=0)
        self.good = {name: text for name, text in self.tree().items() if self.included(name)}
        (desk.root / "up").touch()
        self.write("audits/00.json", "spoiled")
        self.write("added", "since")
        self.write("audits/extra", "since too")
        self.changed = self.tree()

    @staticmethod
    def included(name: str) -> bool:
        return name.split("/", maxsplit=1)[0] in ("audits", "ml_features", "big")

    def at(self, name: str) -> str:
        return self.remote + ("" if self.remote.endswith(":") else "/") + name

    def shell(self, *words: str) -> str:
        return rclone(self.desk, rclone_program(), *words)

    def write(self, name: str, text: str) -> None:
        """Put a file there, of an old time, so that nothing is told by times."""
        here = self.desk.root / "here"
        here.write_text(text)
        os.utime(here, (1_700_000_000, 1_700_000_000))
        self.shell("copyto", "--ignore-times", str(here), self.at(name))

    def tree(self) -> dict[str, bytes]:
        """Every file at the remote, as rclone reads it."""
        self.shell("sync", self.remote, str(self.seen))
        return {
            str(path.relative_to(self.seen)): path.read_bytes()
            for path in sorted(self.seen.rglob("*"))
            if path.is_file()
        }

    def book(self, *words: str, status: int = 0) -> Done:
        return self.desk.run("restore", "vault", "--runbook", *words, status=status)

    def toggle(self, name: str, text: str | None = "") -> None:
        path = self.desk.root / name
        path.unlink() if text is None else path.write_text(text)

    @property
    def up(self) -> bool:
        return (self.desk.root / "up").exists()

    def argv(self) -> list[str]:
        return (self.desk.root / "argv").read_text().splitlines()

    def log(self) -> list[str]:
        path = self.desk.root / "log"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def back(self, done: Done) -> Done:
        """Run the command that was printed as the way back."""
        said = done.text + done.stderr
        (command,) = {part for part in said.split("`") if "--start-over --backup" in part}
        return self.desk.run(*shlex.split(command)[1:], "--json")

    def is_restored(self) -> None:
        assert self.tree() == self.good
        assert self.up


@pytest.fixture(params=["plain:", "sealed:box"])
def cloud(desk: Desk, request: pytest.FixtureRequest) -> Cloud:
    return Cloud(desk, request.param)


@pytest.fixture
def plain(desk: Desk) -> Cloud:
    return Cloud(desk, "plain:")


def test_a_vault_in_a_cloud_comes_back_and_goes_back(cloud: Cloud) -> None:
    done = cloud.book()
    cloud.is_restored()
    assert cloud.log() == ["stop", "rebuild", "start"]
    assert "safety backup" in done.stderr  # of what the backup does not have, outside `include` too
    assert "promised 1d: kept" in done.text
    back = cloud.back(done)
    assert cloud.tree() == cloud.changed
    assert cloud.up
    assert list(states(back)) == [
        "verify", "stop", "safety", "upload", "rebuild_index", "integrity", "start", "measure",
    ]  # fmt: skip
    assert set(states(back).values()) == {"done"}
    again = cloud.book("--json")  # the newest is none of the safety backups
    assert again.result["snapshot"]["id"] != back.result["snapshot"]["id"]
    cloud.is_restored()
    assert cloud.book("--drop-old").text == "nothing is kept of before\n"


def test_dry_run_changes_nothing(plain: Cloud) -> None:
    done = plain.book("--dry-run")
    assert "rclone check --one-way STAGED rclone:plain:" in done.text
    assert plain.tree() == plain.changed
    assert plain.log() == []
    assert len(plain.desk.run("list", "vault", "--json").document["snapshots"]) == 1


@pytest.mark.parametrize(
    "word",
    ["rebuild", *(pytest.param(word, marks=pytest.mark.sweep) for word in ("stop", "start"))],
)
def test_a_command_that_fails_stops_the_run_there(plain: Cloud, word: str) -> None:
    plain.toggle(f"break-{word}")
    done = plain.book(status=1)
    assert "--resume" in done.error_lines[2]
    assert ("as it was" in done.error_lines[1]) is (word == "stop")
    assert "start" not in plain.log() or word == "start"
    plain.book(status=4)
    plain.toggle(f"break-{word}", None)
    plain.book("--resume")
    plain.is_restored()


@pytest.mark.parametrize(
    ("word", "condition"), [("lsjson", "untouched"), ("copy", "between"), ("check", "between")]
)
def test_a_cloud_that_goes_away(plain: Cloud, word: str, condition: str) -> None:
    """In the stop step, so that the run has begun: before the safety backup and in the upload."""
    tool = plain.desk.root / "tool.py"
    breaks = f"\nif word == 'stop': open(os.path.join(root, 'break-{word}'), 'w').close()\n"
    if condition == "between":  # only from the upload on: the safety backup copies too
        plain.toggle("spoil-mkdir", f"touch {plain.desk.root}/break-{word}")
    else:
        tool.write_text(TOOL + breaks)
    done = plain.book("--json", status=7)
    assert done.result["condition"] == condition
    assert "start" not in plain.log()
    assert not plain.up
    tool.write_text(TOOL)
    plain.toggle(f"break-{word}", None)
    if condition == "between":
        assert "must not be started" in done.error_lines[1]
        plain.back(done)
        assert plain.tree() == plain.changed
        assert plain.up
    else:
        plain.book("--resume")
        plain.is_restored()


@pytest.mark.parametrize(
    "onward",
    [
        "--resume",
        *(pytest.param(word, marks=pytest.mark.sweep) for word in ("--start-over", "back")),
    ],
)
def test_killed_in_the_middle_of_the_upload(plain: Cloud, onward: str) -> None:
    plain.toggle("spoil-mkdir", f"touch {plain.desk.root}/hang-copy")
    process = plain.desk.start("restore", "vault", "--runbook")
    while not (plain.desk.root / "hanging").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    plain.toggle("hang-copy", None)
    process.communicate()
    assert not plain.up
    assert "added" in plain.tree()  # nothing was deleted yet
    refused = plain.book(status=4)
    assert "may be neither" in refused.error_lines[1]
    if onward == "back":
        plain.back(refused)
        assert plain.tree() == plain.changed
        assert plain.up
        return
    before = len(plain.desk.run("list", "vault", "--json").document["snapshots"])
    done = plain.book(onward, "--json")
    plain.is_restored()
    # What is half-restored is no state to go back to: the first safety backup stays the one.
    assert len(plain.desk.run("list", "vault", "--json").document["snapshots"]) == before
    assert done.result["safety_backup"]
    if onward == "--resume":
        assert states(done)["safety"] == "done"
    safety = done.result["safety_backup"]
    plain.book("--start-over", "--backup", safety)
    assert plain.tree() == plain.changed


def test_what_changed_after_a_run_that_stopped_early_is_saved_too(plain: Cloud) -> None:
    """Started again by hand after the safety backup, and stopped by --resume: saved as it is by then."""
    process = plain.desk.start("restore", "vault", "--runbook", "--json")
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["type"] == "step" and (event["key"], event["state"]) == ("safety", "running"):
            break
    process.kill()
    process.communicate()
    (journal,) = plain.desk.root.rglob("runbook/*.json")
    body = json.loads(journal.read_text())
    for step in body["book"]["steps"]:
        if step["key"] == "safety":
            step["state"] = "done"
    journal.write_text(json.dumps(body))
    plain.write("added", "by hand, after the stop")
    done = plain.book("--resume")
    plain.is_restored()
    plain.back(done)
    assert plain.tree()["added"] == b"by hand, after the stop"


def test_what_looks_the_same_and_is_not_is_sent_again(plain: Cloud) -> None:
    """Same size, same time, other bytes: only the comparison can tell."""
    plain.write("big/one", "y" * 300_000)
    plain.book()
    plain.is_restored()
    copies = [line for line in plain.argv() if line.startswith("copy ") and "STAGED" not in line]
    assert any("--ignore-times" in line for line in copies)


@pytest.mark.sweep
def test_what_is_there_already_is_not_sent_again(plain: Cloud) -> None:
    plain.book()
    inode = (plain.desk.vault / "big/one").stat().st_ino
    plain.book()
    assert (plain.desk.vault / "big/one").stat().st_ino == inode


def test_a_file_that_changes_after_the_upload_is_noticed(plain: Cloud) -> None:
    spoil = f"    open('{plain.desk.vault}/big/one', 'w').write('z')\n"
    (plain.desk.root / "tool.py").write_text(TOOL + "\nif word == 'rebuild':\n" + spoil)
    done = plain.book("--json", status=9)
    assert "big/one" in done.error_lines[0]
    assert "must not be started" in done.error_lines[1]
    assert not plain.up
    (plain.desk.root / "tool.py").write_text(TOOL)
    plain.book("--start-over")
    plain.is_restored()


def test_a_safety_backup_that_lacks_something_stops_the_run(plain: Cloud) -> None:
    if os.geteuid() == 0:
        (plain.desk.vault / os.fsdecode(b"odd\xff")).write_text("no rclone name")
    else:
        (plain.desk.vault / "added").chmod(0)
    done = plain.book("--json", status=1)
    assert "lacks what would be replaced" in done.error_lines[0]
    assert done.result["condition"] == "untouched"
    assert not plain.up


def test_a_remote_that_is_gone_comes_back(plain: Cloud) -> None:
    plain.shell("purge", "plain:")
    done = plain.book()
    plain.is_restored()
    assert "nothing before to go back to" in done.text


def test_a_remote_that_forgets_is_no_success(plain: Cloud) -> None:
    text = plain.desk.config.read_text().replace("rclone:plain:", "rclone::memory:vault")
    plain.desk.config.write_text(text)
    done = plain.book("--json", status=9)
    assert states(done)["upload"] == "failed"
    assert not plain.up


def test_words_that_do_not_fit_are_refused(plain: Cloud) -> None:
    for words in (["--no-safety-backup"], ["--drop-first"], ["--to", "x"], ["--path", "audits"]):
        plain.book(*words, status=2)
    assert plain.log() == []


def test_a_damaged_backup_is_found_before_anything_is_touched(plain: Cloud) -> None:
    damage_packs(plain.desk.repository)
    done = plain.book("--json", status=9)
    assert states(done)["verify"] == "failed"
    assert plain.log() == []
    assert plain.tree() == plain.changed
