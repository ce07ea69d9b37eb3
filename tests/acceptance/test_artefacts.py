"""Artefacts opened with nothing but what everybody has, and refused when anything was changed."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from acceptance.conftest import Desk, tree_of

KEYS = ".local/share/strongroom/artefact-keys"


def made(desk: Desk, *words: str) -> Path:
    body = desk.run("export", "vault", "-o", "out", *words, "--json").result
    return desk.root / body["artefact"]["path"]


def test_the_seeds_lines(filled: Desk) -> None:
    """sha256sum, openssl enc, tar xzf, as the seed writes them; from one read of the source."""
    body = filled.run("backup", "vault", "--artefact", "out", "--json").result
    path = filled.root / body["artefacts"][0]["artefact"]["path"]
    name, out = path.name, path.parent
    plain = name.removesuffix(".enc")
    assert name.startswith("vault_") and name.endswith(".tar.gz.enc")
    subprocess.run(["sha256sum", "-c", f"{name}.sha256"], cwd=out, check=True)
    (public,) = out.glob("*.pub.pem")
    line = f"openssl pkeyutl -verify -pubin -inkey {public} -rawin -in {name}.manifest"
    subprocess.run([*line.split(), "-sigfile", f"{name}.manifest.sig"], cwd=out, check=True)
    key = filled.home / KEYS / f"{name}.key"
    line = f"openssl enc -aes-256-cbc -d -salt -pbkdf2 -in {name} -out {plain} -pass file:{key}"
    subprocess.run(line.split(), cwd=out, check=True)
    target = filled.root / "restored"
    target.mkdir()
    subprocess.run(["tar", "xzf", out / plain, "-C", target], check=True)
    assert tree_of(target) == tree_of(filled.vault)


def test_age(filled: Desk) -> None:
    if shutil.which("age") is None:
        pytest.skip("age is not installed (Debian: apt-get install age)")
    filled.run("backup", "vault")
    identity = filled.root / "identity"
    subprocess.run(["age-keygen", "-o", identity], check=True, capture_output=True)
    argv = ["age-keygen", "-y", identity]
    to = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    path = made(filled, "--format", "age", "--recipient", to)
    opened = subprocess.run(["age", "-d", "-i", identity, path], check=True, capture_output=True)
    target = filled.root / "restored"
    target.mkdir()
    subprocess.run(["tar", "xz", "-C", target], input=opened.stdout, check=True)
    assert tree_of(target) == tree_of(filled.vault)
    filled.run("import", str(path), "--to", "back", "--identity", str(identity))
    assert tree_of(filled.root / "back") == tree_of(filled.vault)


def test_into_the_repository_and_out_of_it(filled: Desk) -> None:
    filled.run("backup", "vault")
    path = made(filled)
    filled.run("import", str(path), "--source", "again")
    filled.run("restore", "again", "--to", "back")
    assert tree_of(filled.root / "back") == tree_of(filled.vault)
    filled.run("import", str(path), "--to", "straight")
    assert tree_of(filled.root / "straight") == tree_of(filled.vault)


def test_changed_ones_are_refused_before_anything_is_written(filled: Desk) -> None:
    filled.run("backup", "vault")
    path, chance = made(filled), random.Random(3)
    for side in ("", "", ".manifest", ".manifest.sig", ".sha256"):
        place = Path(f"{path}{side}")
        was = bytearray(place.read_bytes())
        changed = bytearray(was)
        changed[chance.randrange(len(was))] ^= 1 << chance.randrange(8)
        place.write_bytes(changed)
        done = filled.run("import", str(path), "--to", "target", status=None)
        assert done.status in (4, 8, 9), done.stderr
        assert not (filled.root / "target").exists()
        place.write_bytes(was)
    other = filled.root / "other.key"
    other.write_text("00" * 32 + "\n")
    other.chmod(0o600)
    done = filled.run("import", str(path), "--to", "target", "--artefact-key", str(other), status=8)
    assert "another artefact" in done.stderr
    assert not (filled.root / "target").exists()


Item = tuple[str, bytes, str]
HOSTILE: dict[str, list[Item]] = {
    "dot-dot": [("../out", tarfile.REGTYPE, "")],
    "dot-dot inside": [("a/../../out", tarfile.REGTYPE, "")],
    "absolute": [("/tmp/strongroom-hostile", tarfile.REGTYPE, "")],
    "through a symlink": [("a", tarfile.SYMTYPE, ".."), ("a/out", tarfile.REGTYPE, "")],
    "onto a symlink": [("a", tarfile.SYMTYPE, "../out"), ("a", tarfile.REGTYPE, "")],
    "symlink for a folder": [
        ("d", tarfile.DIRTYPE, ""),
        ("d", tarfile.SYMTYPE, ".."),
        ("d/out", tarfile.REGTYPE, ""),
    ],
    "hard link out": [("h", tarfile.LNKTYPE, "../secret")],
    "hard link through a symlink": [
        ("s", tarfile.SYMTYPE, ".."),
        ("h", tarfile.LNKTYPE, "s/secret"),
    ],
    "hard link to a symlink": [
        ("s", tarfile.SYMTYPE, "../secret"),
        ("h", tarfile.LNKTYPE, "s"),
    ],
    "twice": [("a", tarfile.REGTYPE, ""), ("a", tarfile.REGTYPE, "")],
    "below a file": [("a", tarfile.REGTYPE, ""), ("a/b", tarfile.REGTYPE, "")],
    "device": [("mem", tarfile.CHRTYPE, "")],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_archives_write_nothing_outside(filled: Desk, what: str) -> None:
    home = filled.root / "inner"
    home.mkdir()
    (home / "secret").write_text("secret")
    with tarfile.open(home / "x.tar.gz", "w:gz") as file:
        for name, kind, link in HOSTILE[what]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, 4 * (kind == tarfile.REGTYPE)
            file.addfile(info, io.BytesIO(b"evil"))
    before = {name: os.lstat(home / name).st_ino for name in os.listdir(home)}
    words = ["import", str(home / "x.tar.gz"), "--unsigned"]
    assert filled.run(*words, "--to", str(home / "target"), status=None).status in (3, 4)
    shutil.rmtree(home / "target", ignore_errors=True)
    assert {name: os.lstat(home / name).st_ino for name in os.listdir(home)} == before
    assert (home / "secret").read_text() == "secret"
    assert os.lstat(home / "secret").st_nlink == 1
    assert not os.path.lexists("/tmp/strongroom-hostile")
    if what != "device":  # a device is only data until it is restored
        filled.run(*words, "--source", "foreign", status=4)
        assert filled.run("list", "foreign", "--json").document["snapshots"] == []
