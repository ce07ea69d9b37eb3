"""Repositories as they were written once: they open, check and restore for ever.

By the program of today and by recover.py, with each way in. None is ever written anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from make_repository import holders

from rooms import QUIET, committed, read, seams
from strongroom.operations.opening import open_repository
from strongroom.progress import Silent
from strongroom.repository.check import Checker
from strongroom.repository.repository import Repository
from strongroom.storage.local import LocalStorage

HERE = Path(__file__).parent / "repositories"
RECOVER = Path(__file__).parents[2] / "recover.py"
ALL = sorted(path.name for path in HERE.iterdir())


def test_there_is_one() -> None:
    assert ALL


def opened(name: str, way: str, tmp_path: Path) -> Repository:
    """Open a copy: opening takes no lock and leaves no trace, but a test must not rely on it."""
    secrets = json.loads((HERE / name / "secrets.json").read_text("utf-8"))
    shutil.copytree(HERE / name / "store", tmp_path / "store")
    storage = LocalStorage(tmp_path / "store")
    holder = holders(secrets)[way]
    return open_repository(storage, [holder], seams=seams("today"), settings=QUIET)


def expected(name: str) -> list[dict[str, Any]]:
    document: list[dict[str, Any]] = json.loads((HERE / name / "expected.json").read_text("utf-8"))
    return document


@pytest.mark.parametrize("way", ["passphrase", "key file", "recovery kit"])
@pytest.mark.parametrize("name", ALL)
def test_the_program_reads_it(name: str, way: str, tmp_path: Path) -> None:
    repository = opened(name, way, tmp_path)
    snapshots = committed(repository)
    assert [one.id for one in snapshots] == [one["id"] for one in expected(name)]
    for snapshot, wanted in zip(snapshots, expected(name), strict=True):
        assert (snapshot.source, snapshot.kind, snapshot.writer) == (
            wanted["source"],
            wanted["kind"],
            wanted["writer"],
        )
        reader = repository.open_snapshot(snapshot)
        contents = read(reader)
        assert {path.hex() for path in contents} == set(wanted["entries"])
        for entry in reader.entries():
            facts = wanted["entries"][entry.path.hex()]
            assert (entry.mode, entry.mtime_ns, entry.target.hex(), entry.size) == (
                facts["mode"],
                facts["mtime_ns"],
                facts["target"],
                facts["size"],
            )
            assert [entry.uid, entry.gid] == facts["owner"]
            assert [[k.decode(), v.hex()] for k, v in entry.xattrs] == facts["xattrs"]
            assert hashlib.sha256(contents[entry.path]).hexdigest() == facts["sha256"]


@pytest.mark.parametrize("name", ALL)
def test_a_check_finds_nothing(name: str, tmp_path: Path) -> None:
    report = Checker(opened(name, "key file", tmp_path), progress=Silent()).run(3)
    assert (report.findings, report.notes) == ([], [])


@pytest.mark.parametrize("way", ["passphrase", "key", "code"])
@pytest.mark.parametrize("name", ALL)
def test_recover_reads_it(name: str, way: str, tmp_path: Path) -> None:
    secrets = json.loads((HERE / name / "secrets.json").read_text("utf-8"))
    (tmp_path / "secret").write_text(secrets[way], "utf-8")
    command = [sys.executable, "-I", str(RECOVER), "--repository", str(HERE / name / "store")]
    command += [f"--{way}-file", str(tmp_path / "secret")]
    for number, wanted in enumerate(expected(name)):
        target = tmp_path / str(number)
        done = subprocess.run(
            [*command, "restore", wanted["id"], str(target)], check=False, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        for path, facts in wanted["entries"].items():
            compare(os.fsencode(target) + b"/" + bytes.fromhex(path), facts, target)


def compare(path: bytes, facts: dict[str, Any], target: Path) -> None:
    found = os.lstat(path)
    if facts["kind"] == "HARDLINK":
        first = os.fsencode(target) + b"/" + bytes.fromhex(facts["target"])
        assert os.path.samefile(path, first)
        return
    if facts["kind"] == "SYMLINK":
        assert os.readlink(path).hex() == facts["target"]
    else:
        assert stat.S_IMODE(found.st_mode) == facts["mode"]
    assert found.st_mtime_ns == facts["mtime_ns"]
    if os.geteuid() == 0:
        assert [found.st_uid, found.st_gid] == facts["owner"]
    if facts["kind"] == "CONTENT":
        with open(path, "rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"]
    elif facts["kind"] == "FIFO":
        assert stat.S_ISFIFO(found.st_mode)
    for attribute, value in facts["xattrs"]:
        assert os.getxattr(path, attribute).hex() == value


@pytest.mark.parametrize("seed", range(24))
def test_recover_never_writes_a_wrong_byte(seed: int, tmp_path: Path) -> None:
    """Flip, cut or remove one object, or swap two: what is there is right, what is not is named."""
    draw = random.Random(seed)
    name = ALL[seed % len(ALL)]
    secrets = json.loads((HERE / name / "secrets.json").read_text("utf-8"))
    (tmp_path / "secret").write_text(secrets["key"], "utf-8")
    shutil.copytree(HERE / name / "store", tmp_path / "store")
    objects = sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file())
    spoil(draw, draw.choice(objects), draw.choice(objects))
    wanted = draw.choice(expected(name))
    target = tmp_path / "out"
    command = [sys.executable, "-I", str(RECOVER), "--repository", str(tmp_path / "store")]
    command += ["--key-file", str(tmp_path / "secret"), "restore", wanted["id"], str(target)]
    done = subprocess.run(command, check=False, capture_output=True)
    assert done.returncode in (0, 2, 3, 5, 8), done.stderr
    assert b"Traceback" not in done.stderr
    missing = 0
    for path, facts in wanted["entries"].items():
        place = os.fsencode(target) + b"/" + bytes.fromhex(path)
        if facts["kind"] == "DIRECTORY" and done.returncode:
            continue  # made for what is in it, while its own entry may be lost
        if os.path.lexists(place):
            compare(place, facts, target)
        else:
            missing += 1
    assert bool(missing) == (done.returncode != 0), done.stderr


def spoil(draw: random.Random, path: Path, other: Path) -> None:
    data = path.read_bytes()
    match draw.choice(["flip", "cut", "remove", "swap"]):
        case "flip":
            at = draw.randrange(len(data))
            path.write_bytes(
                data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
            )
        case "cut":
            path.write_bytes(data[: draw.randrange(len(data))])
        case "remove":
            path.unlink()
        case "swap":
            path.write_bytes(other.read_bytes())
            other.write_bytes(data)
