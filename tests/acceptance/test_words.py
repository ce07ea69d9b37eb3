"""Exit codes, JSON shapes and wrong input, word by word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import strongroom
from acceptance.conftest import STRONGROOM, Desk, on_terminal
from strongroom.cli.app import VERBS

pytestmark = pytest.mark.xdist_group(
    "acceptance-words"
)  # one worker: what it sets up is used by all

HEAVY = ("numpy", "psycopg", "rich", "obstore", "boto3", "cryptography", "blake3", "hypothesis")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A repository with one backup that is only looked at."""
    desk = Desk(tmp_path_factory.mktemp("ready"))
    desk.configure()
    (desk.vault / "a.json").write_text("a")
    desk.run("init", "--quiet")
    desk.run("backup", "vault")
    text = desk.config.read_text() + 'schedule = "0 2 * * *"\n'
    (desk.root / "nightly.toml").write_text(text)
    return desk


# Command, environment beside it, exit status, code.
TABLE: list[tuple[list[str], dict[str, str], int, str]] = [
    (["bakup", "vault"], {}, 2, "usage"),
    (["backup"], {}, 2, "usage"),
    (["backup", "vault", "--all"], {}, 2, "usage"),
    (["backup", "vault", "--no-such-flag"], {}, 2, "usage"),
    (["backup", "vault", "--label", "x"], {}, 2, "usage"),
    (["backup", "vault", "--jobs", "many"], {}, 2, "usage"),
    (["backup", "vault", "--jobs", "0"], {}, 2, "config"),
    (["backup", "nosuch"], {}, 5, "not-found"),
    (["list", "--config", "nosuch.toml"], {}, 2, "config"),
    (["list"], {"STRONGROOM_REPOSITORY": "rclone:x"}, 2, "config"),
    (["list"], {"STRONGROOM_REPOSITORY": "s3://key:secret@bucket"}, 2, "config"),
    (["list"], {"STRONGROOM_REPOSITORY": "./nosuch"}, 5, "not-found"),
    (["list"], {"STRONGROOM_PASSPHRASE": "wrong"}, 8, "key-refused"),
    (["list", "--key-file", "nosuch.key"], {}, 2, "config"),
    (["list", "--passphrase-file", "nosuch"], {}, 2, "config"),
    (["list"], {"STRONGROOM_RECOVERY_CODE": "00000-00000"}, 8, "key-refused"),
    (["list"], {"STRONGROOM_TIMEZONE": "Mars/Olympus"}, 2, "config"),
    (["ls", "nosuch:a"], {}, 5, "not-found"),
    (["ls", "vault:nosuch"], {}, 5, "not-found"),
    (["ls", "vault@ffffffffffff:"], {}, 5, "not-found"),
    (["ls", "vault@2026-11-23T02:13:05:"], {}, 2, "usage"),
    (["ls", "vault@2001-01-01T00:00:00Z:"], {}, 5, "not-found"),
    (["ls", "vault@2101-01-01T00:00:00Z:"], {}, 2, "usage"),
    (["ls", "vault@99:99:"], {}, 2, "usage"),
    (["ls", "../vault:"], {}, 2, "usage"),
    (["get", "vault:a.json"], {}, 2, "usage"),
    (["get", "vault:a.json", "-o", "-", "--json"], {}, 2, "usage"),
    (["get", "vault:a.json", "-o", "strongroom.toml"], {}, 4, "already-exists"),
    (["get", "vault:a.json", "-o", "no/such/folder/x"], {}, 1, "failed"),
    (["get", "vault:nosuch", "-o", "x"], {}, 5, "not-found"),
    (["diff", "vault", "nosuch", "latest"], {}, 2, "usage"),
    (["restore", "vault"], {}, 2, "usage"),
    (["restore", "vault", "--to", "vault"], {}, 4, "refused"),
    (["restore", "vault", "--to", "x", "--at", "02:13", "--backup", "latest"], {}, 2, "usage"),
    (["restore", "vault", "--to", "x", "--backup", "not-an-id"], {}, 2, "usage"),
    (["restore", "vault", "--to", "x", "--path", "nosuch"], {}, 5, "not-found"),
    (["restore", "vault", "--to", "x", "--path", "../x"], {}, 2, "usage"),
    (["restore", "vault", "--to", "x", "--replace"], {}, 2, "usage"),
    (["restore", "vault", "--to", "x", "--in-place"], {}, 2, "usage"),
    (["restore", "nosuch", "--to", "x"], {}, 5, "not-found"),
    (["check", "--budget", "10m"], {}, 2, "usage"),
    (["check", "--read-data", "--budget", "soon"], {}, 2, "usage"),
    (["key", "add", "x"], {}, 2, "usage"),
    (["key", "add", "x", "--role", "king"], {}, 2, "usage"),
    (["key", "add", "passphrase", "--new-recovery-code"], {}, 4, "already-exists"),
    (["key", "remove", "nosuch"], {}, 5, "not-found"),
    (["source", "test", "nosuch"], {}, 5, "not-found"),
    (["explain", "nosuch"], {}, 5, "not-found"),
    (["completion", "tcsh"], {}, 2, "usage"),
    (["run-due"], {}, 2, "usage"),
    (["run-due", "nosuch", "-c", "nightly.toml"], {}, 5, "not-found"),
    (["serve"], {}, 2, "usage"),
    (["schedule", "cron"], {}, 2, "usage"),
    (["config", "check"], {"STRONGROOM_CONFIG": "/no/such"}, 2, "config"),
]


@pytest.mark.parametrize(
    ("words", "environ", "status", "code"), TABLE, ids=[" ".join(row[0]) for row in TABLE]
)
def test_exit_status(
    ready: Desk, words: list[str], environ: dict[str, str], status: int, code: str
) -> None:
    done = ready.run(*words, env=environ, status=status)
    assert done.code == code
    assert len(done.error_lines) == 4
    assert done.stdout == b"" or "--json" in words
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("word", ["copy"])
def test_a_word_that_does_not_exist_yet_is_no_word(ready: Desk, word: str) -> None:
    assert "Unknown command" in ready.run(word, status=2).error_lines[0]


@pytest.mark.parametrize(
    ("words", "kind", "fields"),
    [
        (["list"], "snapshots", {"snapshots", "damaged"}),
        (["list", "nosuch"], "snapshots", {"snapshots", "damaged"}),
        (["status"], "status", {"sources", "damaged"}),
        (["metrics"], "metrics", {"output", "samples"}),
        (["ls", "vault"], "entries", {"snapshot", "path", "entries"}),
        (["diff", "vault", "oldest"], "differences", {"before", "after", "differences"}),
        (["key", "list"], "keys", {"keys"}),
        (["repository", "stats"], "stats", {"repository", "snapshots", "sizes", "objects"}),
        (["source", "test", "vault"], "source", {"source", "kind", "report"}),
        (["config", "check"], "config-check", {"file", "sources", "faults"}),
        (["config", "show"], "config", {"file", "values"}),
        (["schedule", "cron", "-c", "nightly.toml"], "schedule", {"files"}),
        (["schedule", "systemd", "-c", "nightly.toml"], "schedule", {"files"}),
        (["schedule", "kubernetes", "-c", "nightly.toml"], "schedule", {"files"}),
        (["drill", "list"], "drills", {"drills"}),
        (["drill", "report", "--quarter", "2026Q3"], "quarter", {"drills", "text"}),
        (["explain"], "explain", {"codes"}),
        (["explain", "damaged"], "explain", {"codes"}),
        (["get", "vault:a.json", "-o", "got.json", "--force"], "file", {"entry", "output"}),
    ],
)
def test_json_document(ready: Desk, words: list[str], kind: str, fields: set[str]) -> None:
    body = ready.run(*words, "--json").document
    assert body["type"] == kind
    assert fields <= set(body)
    assert ready.run("--json", *words).document["type"] == kind, "the flag in front of the verb"


@pytest.mark.parametrize(
    ("words", "status"), [(["ls", "vault:nosuch"], 5), (["list", "-c", "x"], 2), (["liszt"], 2)]
)
def test_json_document_of_a_failure(ready: Desk, words: list[str], status: int) -> None:
    done = ready.run(*words, "--json", status=status)
    assert done.document["type"] == "error"
    assert done.document["exit"] == status
    assert done.document["code"] == done.code


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["backup", "vault"], 0),
        (["check"], 0),
        (["check", "--read-data"], 0),
        (["restore", "vault", "--to", "out-{}"], 0),
        (["restore", "vault", "--to", "x", "--dry-run"], 0),
        (["drill", "run", "vault", "--dry-run"], 0),
        (["drill", "run", "nosuch"], 5),
        (["drill", "run", "vault", "--sql", "SELECT 1"], 2),
        (["drill", "run", "vault", "--at", "sometime"], 2),
        (["drill", "run"], 2),
        (["backup", "nosuch"], 5),
        (["restore", "vault", "--to", "vault"], 4),
        (["check", "--budget", "1h"], 2),
    ],
)
def test_json_lines_of_a_long_verb(ready: Desk, words: list[str], status: int) -> None:
    words = [word.format(os.urandom(4).hex()) for word in words]
    result = ready.run(*words, "--json", status=status).result
    assert result["verb"] in (words[0], " ".join(words[:2]))
    assert ("error" in result) == bool(status)


def test_every_document_is_ascii(ready: Desk) -> None:
    (ready.vault / "ñ").write_text("x")
    ready.run("backup", "vault")
    done = ready.run("ls", "vault", "--json", env={"LC_ALL": "C", "PYTHONUTF8": "0"})
    assert done.stdout.isascii()
    assert "ñ" in {entry["path"] for entry in done.document["entries"]}


def test_promise_missed_is_exit_ten(ready: Desk) -> None:
    text = ready.config.read_text().replace('rpo = "24h"', 'rpo = "1s"')
    (ready.root / "strict.toml").write_text(text)
    time.sleep(1.1)  # the backup may be younger than a second
    done = ready.run("status", "--config", "strict.toml", "--json", status=10)
    (source,) = done.document["sources"]
    assert (source["verdict"], source["missed"]) == ("missed", True)
    assert "at most 1s is promised" in source["reasons"][0]
    assert done.document["exit"] == 10


def test_nothing_but_results_on_stdout(ready: Desk) -> None:
    for words in (["backup", "vault", "-q"], ["restore", "vault", "--to", "quiet", "-q"]):
        assert ready.run(*words).stderr == ""


def test_no_colour_and_no_bar_off_a_terminal(ready: Desk) -> None:
    for words in (["--help"], ["backup", "--help"], ["backup", "vault"], ["nosuch"]):
        done = ready.run(*words, status=None)
        assert "\x1b" not in done.text + done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(ready: Desk) -> None:
    for number in range(3000):
        (ready.vault / f"many-{number}").touch()
    ready.run("backup", "vault")
    process = ready.start("ls", "vault")
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


def test_help_of_every_verb(ready: Desk) -> None:
    """In one process: eighty of them would be twenty seconds of start-up."""
    assert "Everyday" in ready.run("--help").text
    code = (
        "import json, sys; from strongroom.cli.main import run\n"
        "for words in json.load(sys.stdin): print('\\0', run([*words, '--help']), sep='')"
    )
    words = [list(each) for each in VERBS]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ready.root, env=ready.environ, input=json.dumps(words), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    said = done.stdout.split("\0")
    for number, (verb, text) in enumerate(zip(VERBS, said, strict=False)):
        shown = text if number == 0 else text.partition("\n")[2]
        assert shown.startswith(f"Usage: strongroom {' '.join(verb)}"), verb
        assert said[number + 1].startswith("0\n")


def test_a_value_that_begins_with_a_dash(ready: Desk) -> None:
    done = ready.run("restore", "vault", "--to", "-d", status=2)
    assert "--flag=VALUE" in done.error_lines[2]
    ready.run("restore", "vault", "--to=-d")
    assert (ready.root / "-d" / "a.json").exists()


@pytest.mark.parametrize("status", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 130, 143])
def test_every_exit_status_is_explained(ready: Desk, status: int) -> None:
    assert ready.run("explain", str(status)).text.strip()


def test_version(ready: Desk) -> None:
    assert ready.run("--version").text.strip() == strongroom.__version__


def test_a_verb_pays_only_for_what_it_uses(ready: Desk) -> None:
    """Before `backup` opens the repository nothing heavy is imported."""
    code = (
        "import sys; from strongroom.cli.main import run; run(sys.argv[1:]); "
        "print(sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "backup", "nosuch"],
        cwd=ready.root,
        env=ready.environ,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(eval(done.stderr.splitlines()[-1]))
    assert "strongroom.cli.verbs.backup" in loaded
    assert not loaded & set(HEAVY)
    assert "strongroom.cli.verbs.restore" not in loaded


def test_config_check_names_every_fault(desk: Desk) -> None:
    desk.config.write_text(
        '[repository]\nurll = "x"\npassphrase = "hunter2"\n[source.a]\ntype = "files"\n'
    )
    done = desk.run("config", "check", status=2)
    assert len(done.text.splitlines()) == 3
    assert 'did you mean "url"?' in done.text
    assert "hunter2" not in done.text + done.stderr
    body = desk.run("config", "check", "--json", status=2).document
    assert len(body["faults"]) == 3
    # A broken configuration does not stand in the way of a restore.
    desk.run("list", "--config", "/dev/null", "--repository", "nosuch", status=5)


def test_config_show_has_references_and_origins(ready: Desk) -> None:
    values = {
        each["key"]: each for each in ready.run("config", "show", "--json").document["values"]
    }
    assert values["repository.passphrase"]["value"] == "env:STRONGROOM_PASSPHRASE"
    assert values["repository.passphrase"]["from"] == "$STRONGROOM_PASSPHRASE"
    assert values["source.vault.promise.rpo"]["from"].endswith("strongroom.toml:8")


def test_config_schema_is_a_schema(ready: Desk) -> None:
    schema = json.loads(ready.run("config", "schema").stdout)
    assert "FilesTable" in schema["$defs"]


def test_a_terminal_is_asked_and_shown_progress(desk: Desk) -> None:
    """On a terminal: the passphrase twice at init, once at backup; a bar while it runs."""
    (desk.vault / "a").write_bytes(os.urandom(64 << 20))
    desk.config.write_text(
        '[repository]\nurl = "repository"\n[source.vault]\ntype = "files"\npath = "vault"\n'
    )
    del desk.environ["STRONGROOM_PASSPHRASE"]
    secret = b"typed by hand\n"
    status, shown = on_terminal(desk, ["init", "--kit", "kit.txt"], [secret, secret])
    assert status == 0, shown
    assert b"New passphrase" in shown
    assert b"typed by hand" not in shown
    status, shown = on_terminal(desk, ["backup", "vault"], [secret])
    assert status == 0, shown
    assert b"\x1b" in shown, "no bar was drawn"
    assert b"vault: backup" in shown
    status, shown = on_terminal(desk, ["list"], [b"wrong\n"])
    assert status == 8, shown


def test_the_command_stands_beside_its_python() -> None:
    assert Path(STRONGROOM).is_file()
