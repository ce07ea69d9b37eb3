"""The vault's storage: what it keeps, and every name that must not lead out of it."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BACKEND = Path(__file__).resolve().parents[2] / "examples" / "stakazo" / "backend"


@pytest.fixture(scope="module")
def module() -> Iterator[Any]:
    """The platform's module; its package is called `app` and stands on no path otherwise."""
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    sys.path.insert(0, str(BACKEND))
    try:
        yield importlib.import_module("app.memory_vault.storage")
    finally:
        sys.path.remove(str(BACKEND))


@pytest.fixture
def vault(module: Any, tmp_path: Path) -> Any:
    vault = module.Storage(str(tmp_path / "vault"))
    vault.create()
    return vault


def test_there_and_back(vault: Any) -> None:
    assert vault.list_files("ml_features") == []
    vault.write("ml_features/a/b/c.bin", b"one")
    vault.write("ml_features/a/b/c.bin", b"two")
    vault.write("audits/caf\udce9.log", b"")
    assert vault.read("ml_features/a/b/c.bin") == b"two"
    assert vault.list_files() == ["audits/caf\udce9.log", "ml_features/a/b/c.bin"]
    assert vault.list_files("ml_features", "a/") == ["ml_features/a/b/c.bin"]
    assert vault.list_files("ml_features", "b") == []
    assert vault.exists("audits/caf\udce9.log") and not vault.exists("audits/none")
    assert vault.stat("ml_features/a/b/c.bin").size == 3
    assert vault.checksum("ml_features/a/b/c.bin") == hashlib.sha256(b"two").hexdigest()
    counts = vault.counts()
    assert (counts["ml_features"].files, counts["ml_features"].size) == (1, 3)
    assert list(counts) == [
        "ml_features", "audits", "campaign_history", "clips_metadata", "orchestrator_runs",
    ]  # fmt: skip
    vault.delete("ml_features/a/b/c.bin")
    assert not vault.exists("ml_features/a/b/c.bin")


HOSTILE = [
    "", "/", ".", "..", "ml_features", "ml_features/", "ml_features//a", "/ml_features/a",
    "ml_features/../audits/a", "ml_features/..", "ml_features/./a", "../ml_features/a",
    "elsewhere/a", "ML_FEATURES/a", "ml_features/a\0b", "ml_features/" + "x" * 256,
    "ml_features/.writing-00", "ml_features/.writing-00/a", "ml_features\\..\\a", " ml_features/a",
    "/etc/passwd", "~/a", "ml_features/a/", "\udcff/a",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("verb", ["read", "write", "exists", "stat", "delete", "checksum"])
def test_names_that_are_refused(
    vault: Any, module: Any, tmp_path: Path, verb: str, name: str
) -> None:
    before = sorted(os.walk(tmp_path))
    words = (name, b"x") if verb == "write" else (name,)
    with pytest.raises(module.BadName):
        getattr(vault, verb)(*words)
    assert sorted(os.walk(tmp_path)) == before


@pytest.mark.parametrize("name", ["-rf", "a\nb", "a b", "'; --", '"', "…", "\udcfe", "x" * 255])
def test_odd_names_that_are_kept(vault: Any, name: str) -> None:
    vault.write(f"audits/{name}", b"x")
    assert vault.list_files("audits") == [f"audits/{name}"]
    assert vault.read(f"audits/{name}") == b"x"


def test_links_lead_nowhere(vault: Any, module: Any, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root = tmp_path / "vault"
    (root / "audits/file").symlink_to(outside / "secret")
    (root / "audits/folder").symlink_to(outside)
    (root / "clips_metadata").rmdir()
    (root / "clips_metadata").symlink_to(outside)
    assert vault.list_files() == []
    for name in ("audits/file", "audits/folder/secret", "clips_metadata/secret"):
        assert not vault.exists(name)
        for verb in ("read", "checksum", "delete"):
            with pytest.raises(module.NotThere):
                getattr(vault, verb)(name)
    for name in ("audits/folder/new", "clips_metadata/new"):
        with pytest.raises(module.NotThere):
            vault.write(name, b"x")
    vault.write("audits/file", b"mine")  # replaces the link, not what it points to
    assert (outside / "secret").read_bytes() == b"secret"
    assert vault.read("audits/file") == b"mine"
    assert sorted(os.listdir(outside)) == ["secret"]


def test_pipes_and_folders_are_no_files(vault: Any, module: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "vault/audits/pipe")
    (tmp_path / "vault/audits/folder").mkdir()
    assert vault.list_files() == []
    for name in ("audits/pipe", "audits/folder"):
        with pytest.raises(module.NotThere):
            vault.read(name)
        with pytest.raises(module.NotThere):
            vault.delete(name)
    with pytest.raises(module.BadName):
        vault.write("audits/folder", b"x")


def test_a_write_that_fails_leaves_the_old_file_alone(
    vault: Any, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault.write("audits/a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        vault.write("audits/a", b"new")
    assert vault.read("audits/a") == b"old"
    assert os.listdir(tmp_path / "vault/audits") == ["a"]


def test_a_killed_write_is_not_seen(vault: Any, tmp_path: Path) -> None:
    (tmp_path / "vault/audits/.writing-0123456789abcdef").write_bytes(b"half")
    assert vault.list_files() == []
    assert vault.counts()["audits"].files == 0


def test_where_the_vault_is(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STAKAZO_VAULT", raising=False)
    monkeypatch.delenv("VAULT_ROOT", raising=False)
    assert module.storage.root == "/tmp/stakazo_memory_vault"
    monkeypatch.setenv("VAULT_ROOT", str(tmp_path / "a:b"))
    assert module.storage.root == str(tmp_path / "a:b")
    monkeypatch.setenv("STAKAZO_VAULT", str(tmp_path))
    assert module.storage.root == str(tmp_path)
    monkeypatch.setenv("STAKAZO_VAULT", "gdrive:/stakazo/memory_vault/")
    with pytest.raises(module.VaultError, match="not on this machine"):
        module.storage.list_files()
    monkeypatch.setenv("STAKAZO_VAULT", str(tmp_path / "none"))
    with pytest.raises(module.VaultError, match="No such file"):
        module.storage.list_files()
