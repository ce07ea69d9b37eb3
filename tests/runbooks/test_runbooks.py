"""docs/runbooks: every command of every page, executed in the order of the page.

Rule: a page is run as it is written. Only places are substituted (`PLACES`), and a page begins where its
story does (`STORIES`). How pages are written is said in docs/runbooks/README.md.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from acceptance.conftest import STRONGROOM, tree_of
from acceptance.test_runbook import ROWS, Platform
from strongroom.errors import StrongroomError
from strongroom.postgres.clients import Clients
from strongroom.postgres.embedded import EmbeddedServer

pytestmark = pytest.mark.xdist_group("runbooks")
PAGES = Path(__file__).parents[2] / "docs" / "runbooks"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EXIT = re.compile(r"\s+# exit (\d+)$")
_CODE = re.compile(r"^\s+((?:[0-9A-Z]{5}-)+[0-9A-Z]{1,5})$", re.MULTILINE)


class Line(NamedTuple):
    """One command and the exit status that the page says."""

    command: str
    status: int


def commands(page: str) -> list[Line]:
    """The commands of a page."""
    found = []
    for kind, body in _BLOCK.findall((PAGES / page).read_text("utf-8")):
        assert kind == "console", f"{page}: a block of another kind is not executed: {kind!r}"
        for line in body.splitlines():
            if line.startswith("$ "):
                ends = _EXIT.search(line)
                text = _EXIT.sub("", line.removeprefix("$ "))
                found.append(Line(text, int(ends[1]) if ends else 0))
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    try:
        server = EmbeddedServer(durable=False)
    except StrongroomError as missing:
        pytest.skip(f"no PostgreSQL server can be had: {missing.what}")
    with server:
        yield server


@pytest.fixture
def platform(tmp_path: Path, server: EmbeddedServer) -> Platform:
    """The platform of the pages, spoiled as `Platform.setup` does."""
    platform = Platform(tmp_path)
    platform.vault = tmp_path / "stakazo" / "memory_vault"
    platform.vault.mkdir(parents=True)
    (tmp_path / "secure").mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "strongroom").symlink_to(STRONGROOM)
    psql = next(
        (p for i in Clients.found().installed if (p := Path(i.bindir) / "psql").exists()), None
    )
    if psql is None:
        pytest.skip("no psql is installed")
    (tmp_path / "bin" / "psql").symlink_to(psql)
    platform.vault_name = "memory-vault"
    platform.setup(server, "stakazo_prod")
    platform.environ |= {
        "PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{platform.environ['PATH']}",
        "STRONGROOM_CONFIG": str(platform.config),
        "PGHOST": str(server.socket_directory),
        "PGPORT": str(server.port),
        "PGUSER": str(server.user),
        "PGPASSWORD": platform.environ["DATABASE_PASSWORD"],
    }
    return platform


def places(platform: Platform) -> list[tuple[str, str]]:
    """What the pages say → what it is here, in this order."""
    root = platform.root
    return [
        ("/var/lib/strongroom", str(platform.repository)),
        ("/srv/stakazo", str(root / "stakazo")),
        ("/secure", str(root / "secure")),
    ]


def carry_out(platform: Platform, page: str) -> None:
    for written, status in commands(page):
        command = written
        for said, here in places(platform):
            command = command.replace(said, here)
        done = subprocess.run(
            ["bash", "-c", command],
            check=False,
            cwd=platform.root,
            env=platform.environ,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == status, f"{page}: {command}\n{done.stdout}\n{done.stderr}"


def copy_of(platform: Platform) -> Path:
    copy = Path(f"{platform.repository}-copy")
    shutil.copytree(platform.repository, copy, symlinks=True)
    return copy


# -- how a page's story begins, and what must be so at its end -------------------------------


def one_more_backup(platform: Platform) -> None:
    """A good state, backed up again, then one spoiled file."""
    (platform.vault / "audits/00.json").write_text('{"number": 0}')
    platform.run("backup", "memory-vault")
    (platform.vault / "audits/00.json").write_text("spoiled")


def lose_key(platform: Platform) -> None:
    halves = _CODE.findall((platform.root / "kit.txt").read_text())[:2]
    assert len(halves) == 2
    (platform.root / "secure" / "recovery-code.txt").write_text("-".join(halves) + "\n")


def lose_server(platform: Platform) -> None:
    copy_of(platform)
    shutil.rmtree(platform.repository)


def corrupt(platform: Platform) -> None:
    copy_of(platform)
    pack = max((p for p in (platform.repository / "packs").rglob("*") if p.is_file()), key=_size)
    pack.chmod(0o600)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)


def _size(path: Path) -> int:
    return path.stat().st_size


def database_is_back(platform: Platform) -> None:
    assert platform.rows() == ROWS
    assert platform.kept() == []
    assert platform.up


def vault_is_back(platform: Platform) -> None:
    assert (platform.vault / "audits/00.json").read_text() == '{"number": 0}'
    assert not (platform.vault / "added").exists()


def rows_are_back(platform: Platform) -> None:
    assert platform.rows() == ROWS


def file_is_back(platform: Platform) -> None:
    assert (platform.vault / "audits/00.json").read_text() == '{"number": 0}'
    assert (platform.vault / "added").exists()


def proof_is_whole(platform: Platform) -> None:
    assert (platform.root / "stakazo" / "proof" / "empty").exists()


def copy_restored(platform: Platform) -> None:
    assert "audits/00.json" in tree_of(platform.root / "stakazo" / "restored_vault")


def nothing(platform: Platform) -> None:
    del platform


Story = tuple[Callable[[Platform], None], Callable[[Platform], None]]
STORIES: dict[str, Story] = {
    "database-restore.md": (nothing, database_is_back),
    "vault-restore.md": (nothing, vault_is_back),
    "single-table.md": (nothing, rows_are_back),
    "single-file.md": (one_more_backup, file_is_back),
    "lost-key.md": (lose_key, nothing),
    "lost-backup-server.md": (lose_server, copy_restored),
    "corrupted-repository.md": (corrupt, proof_is_whole),
}


@pytest.mark.parametrize("page", sorted(STORIES))
def test_a_page_leads_to_its_end(platform: Platform, page: str) -> None:
    begin, over = STORIES[page]
    begin(platform)
    carry_out(platform, page)
    over(platform)


def test_every_page_is_in_the_index_and_executed() -> None:
    index = (PAGES / "README.md").read_text("utf-8")
    pages = {path.name for path in PAGES.glob("*.md")} - {"README.md"}
    assert pages == set(STORIES)
    for page in pages:
        assert f"]({page})" in index
        assert commands(page)
        assert "It is over when" in (PAGES / page).read_text("utf-8")
