"""When things go wrong: signals, full disks, unreadable files, hostile names, damage."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from acceptance.conftest import Desk, Done, fill, tree_of

MIB = 1 << 20


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_signal_ends_a_backup_that_resumes(
    desk: Desk, number: signal.Signals, status: int
) -> None:
    for at in range(6):
        (desk.vault / f"{at}.bin").write_bytes(os.urandom(48 * MIB))
    desk.run("init", "--quiet")
    process = desk.start("backup", "vault", "--json")
    packs = desk.repository / "packs"
    while process.poll() is None and not any(packs.rglob("?" * 64)):
        time.sleep(0.005)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    done = Done(process.returncode, stdout, stderr.decode())
    assert done.status == status, done.stderr
    assert done.code == "interrupted"
    assert "resumes" in done.error_lines[2]
    assert done.result["error"]["code"] == "interrupted"
    assert desk.run("list", "--json").document["snapshots"] == []
    left = sum(path.stat().st_size for path in packs.rglob("?" * 64))
    again = desk.run("backup", "vault", "--json").result["backups"][0]["snapshot"]
    assert again["stored"] <= 6 * 48 * MIB * 1.01 - left * 0.9, "what was uploaded was not used"
    desk.run("restore", "vault", "--to", "out")
    assert tree_of(desk.root / "out") == tree_of(desk.vault)
    assert "no damage" in desk.run("check").text


def test_a_signal_ends_a_restore_and_says_what_it_left(desk: Desk) -> None:
    for at in range(6):
        (desk.vault / f"{at}.bin").write_bytes(os.urandom(48 * MIB))
    desk.run("init", "--quiet")
    desk.run("backup", "vault")
    process = desk.start("restore", "vault", "--to", "out")
    while process.poll() is None and not (desk.root / "out").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    done = Done(process.returncode, stdout, stderr.decode())
    assert done.status == 143, done.stderr
    assert "target is not complete" in done.error_lines[1]
    desk.run("restore", "vault", "--to", "out", "--force")
    assert tree_of(desk.root / "out") == tree_of(desk.vault)


def test_kill_minus_nine_at_any_moment(desk: Desk) -> None:
    (desk.vault / "a.bin").write_bytes(os.urandom(96 * MIB))
    desk.run("init", "--quiet")
    for wait in (0.3, 0.6, 0.9, 1.1, 1.3):
        process = desk.start("backup", "vault")
        time.sleep(wait)
        process.kill()
        process.communicate()
    desk.run("backup", "vault")
    desk.run("restore", "vault", "--to", "out")
    assert tree_of(desk.root / "out") == tree_of(desk.vault)
    assert "no damage" in desk.run("check", "--read-data").text


def test_a_wrong_passphrase_is_one_clear_error(filled: Desk) -> None:
    for words in (["backup", "vault"], ["list"], ["restore", "vault", "--to", "x"]):
        done = filled.run(*words, status=8, env={"STRONGROOM_PASSPHRASE": "wrong"})
        assert len(done.stderr.splitlines()) == 4
        assert done.code == "key-refused"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_storage(desk: Desk, small_disk: Path) -> None:
    desk.repository = small_disk / "repository"
    desk.configure()
    (desk.vault / "a.bin").write_bytes(os.urandom(40 * MIB))
    desk.run("init", "--quiet")
    done = desk.run("backup", "vault", status=7)
    assert done.code == "storage-full"
    assert desk.run("list", "--json").document["snapshots"] == []
    subprocess.run(["mount", "-o", "remount,size=80m", str(small_disk)], check=True)
    desk.run("backup", "vault")
    desk.run("restore", "vault", "--to", "out")
    assert tree_of(desk.root / "out") == tree_of(desk.vault)


def test_a_full_target(desk: Desk, small_disk: Path) -> None:
    (desk.vault / "a.bin").write_bytes(os.urandom(40 * MIB))
    desk.run("init", "--quiet")
    desk.run("backup", "vault")
    done = desk.run("restore", "vault", "--to", str(small_disk / "out"), status=None)
    assert done.status in (4, 7)
    assert done.code in ("refused", "target-full")
    got = desk.run("get", "vault:a.bin", "-o", str(small_disk / "a.bin"), status=7)
    assert got.code in ("storage-full", "target-full")
    assert [path.name for path in small_disk.iterdir() if path.is_file()] == []


def test_unreadable_files_are_reported_and_the_rest_is_taken(
    filled: Desk, without_rights: Callable[..., Done]
) -> None:
    (filled.vault / "audits/03.json").chmod(0)
    (filled.vault / "ml_features").chmod(0)
    done = without_rights("backup", "vault", "--json", status=3)
    paths = {problem["path"] for problem in done.result["backups"][0]["problems"]}
    assert paths == {"audits/03.json", "ml_features"}
    assert done.result["error"]["code"] == "incomplete"
    assert {event["path"] for event in done.events if event["type"] == "problem"} == paths
    done = without_rights("backup", "vault", status=3)
    assert "skipped: audits/03.json: " in done.stderr
    assert done.code == "incomplete"
    assert "2 parts" in done.error_lines[0]
    without_rights("restore", "vault", "--to", "out")
    assert (filled.root / "out/audits/04.json").exists()
    assert "unreadable: 2" in without_rights("source", "test", "vault").text


HOSTILE = [
    b"-rf",
    b"--help",
    b"new\nline",
    b"\x1b[2J\x1b[31mred",
    b"\xff\xfe\x80",
    "\u202egnp.exe".encode(),
    b"back\\slash",
    b" leading and trailing ",
    b"quote'\"$(touch owned)`",
    b"*?[x]",
    b"x" * 255,
    bytes(range(1, 47)),
    bytes(range(48, 256)),
]


def test_hostile_names_come_back_and_cannot_act(filled: Desk) -> None:
    vault = os.fsencode(filled.vault)
    for at, name in enumerate(HOSTILE):
        with open(os.path.join(vault, name), "wb") as file:
            file.write(b"%d" % at)
    folder = os.path.join(vault, b"\xffdir\n")
    os.mkdir(folder)
    with open(os.path.join(folder, b"\xfe"), "wb") as file:
        file.write(b"inside")
    filled.run("backup", "vault")
    done = filled.run("ls", "vault", "--recursive")
    assert "\x1b" not in done.text
    assert all(line.isprintable() for line in done.text.splitlines())
    entries = filled.run("ls", "vault", "-R", "--json").document["entries"]
    assert len(done.text.splitlines()) == len(entries), "a name broke its line"
    for at, name in enumerate(HOSTILE):
        got = filled.run("get", b"vault:" + name, "-o", "-")
        assert got.stdout == b"%d" % at
    filled.run("restore", "vault", "--to", "out")
    assert tree_of(filled.root / "out") == tree_of(filled.vault)
    filled.run("restore", "vault", "--path", b"\xffdir\n", "--to", "part")
    assert tree_of(filled.root / "part") == {
        os.fsdecode(b"\xffdir\n"): tree_of(filled.vault)[os.fsdecode(b"\xffdir\n")],
        os.fsdecode(b"\xffdir\n/\xfe"): tree_of(filled.vault)[os.fsdecode(b"\xffdir\n/\xfe")],
    }
    assert not (filled.root / "owned").exists()


def test_damage_is_named_and_nothing_wrong_is_delivered(filled: Desk) -> None:
    filled.run("backup", "vault")
    snapshot = filled.run("list", "--json").document["snapshots"][0]["id"]
    (pack,) = (filled.repository / "packs").rglob("?" * 64)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    done = filled.run("check", "--read-data", "--json", status=9)
    assert done.result["damaged_snapshots"] == [snapshot]
    hurt = done.result["findings"][0]["files"][snapshot]
    assert {"path": "ml_features/deep/er/vector.bin"} in hurt
    text = filled.run("check", "--read-data", "-v", status=9)
    assert "vector.bin" in text.text
    assert text.code == "damaged"
    done = filled.run("restore", "vault", "--to", "out", status=9)
    good, restored = tree_of(filled.vault), tree_of(filled.root / "out")
    assert all(good[name] == restored[name] for name in restored), "a wrong byte was delivered"
    filled.run("get", "vault:ml_features/deep/er/vector.bin", "-o", "v", status=9)
    assert not (filled.root / "v").exists()


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_damaged_index_is_mended_by_the_next_backup(filled: Desk) -> None:
    filled.run("backup", "vault")
    (segment,) = (filled.repository / "index").rglob("*-*")
    spoil(segment)
    assert filled.run("check", "--json", status=9).result["damaged_snapshots"] == []
    done = filled.run("backup", "vault", "--quiet", "--json")
    (report,) = done.result["backups"]
    assert segment.name in report["warnings"][0]
    assert report["snapshot"]["new_size"] < 1000  # the facts tell of this run
    assert done.stderr.startswith("warning: ")
    checked = filled.run("check", "--read-data")
    assert "no damage found" in checked.text
    assert f"{segment.name} is damaged; another segment replaces it" in checked.text
    assert filled.run("backup", "vault").stderr.count("warning") == 0
    filled.run("restore", "vault", "--to", "out")
    assert tree_of(filled.root / "out") == tree_of(filled.vault)


def test_what_a_check_cannot_read_is_not_called_damaged(
    filled: Desk, without_rights: Callable[..., Done]
) -> None:
    filled.run("backup", "vault")
    (pack,) = (filled.repository / "packs").rglob("?" * 64)
    without_rights("check", "--read-data")
    pack.chmod(0)
    done = without_rights("check", "--read-data", "--json", status=8)
    assert done.result["findings"] == []
    assert pack.name in done.result["unreached"][0]["object"]
    assert done.code == "storage-denied"
    text = without_rights("check", "--read-data", status=8)
    assert "not checked: packs/" in text.text
    assert "no damage found" in text.text
    assert "could not be checked" in text.error_lines[0]
    (tree,) = (filled.repository / "trees").rglob("?" * 64)
    spoil(tree)
    tree.chmod(0o644)
    mixed = without_rights("check", "--read-data", "--json", status=9)
    assert [Path(one["object"]).name for one in mixed.result["findings"]] == [tree.name]
    assert any(pack.name in one["object"] for one in mixed.result["unreached"])


def test_a_backup_whose_record_vanished_is_named(filled: Desk) -> None:
    filled.run("backup", "vault")
    (record,) = (filled.repository / "snapshots/vault").iterdir()
    record.unlink()
    done = filled.run("check", "--json", status=9)
    (finding,) = done.result["findings"]
    assert finding["object"] == f"snapshots/vault/{record.name}"
    assert done.result["damaged_snapshots"] == [record.name.rsplit("-", 1)[-1]]
    assert "prunes spare them: bring the record back" in finding["reason"]


def test_two_backups_at_once(filled: Desk) -> None:
    more = f'[source.twin]\ntype = "files"\npath = "{filled.vault}"\n'
    filled.config.write_text(filled.config.read_text() + more)
    both = [filled.start("backup", name) for name in ("vault", "vault", "twin")]
    for process in both:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    assert len(filled.run("list", "--json").document["snapshots"]) == 3
    assert "no damage" in filled.run("check", "--read-data").text


def test_a_repository_that_cannot_be_written(
    filled: Desk, without_rights: Callable[..., Done]
) -> None:
    without_rights("backup", "vault")
    for folder, _, _ in os.walk(filled.repository):
        os.chmod(folder, 0o555)
    done = without_rights("backup", "vault", status=8)
    assert done.code == "storage-denied"
    for folder, _, _ in os.walk(filled.repository):
        os.chmod(folder, 0o755)


def test_an_empty_vault_and_a_big_one(desk: Desk) -> None:
    desk.run("init", "--quiet")
    desk.run("backup", "vault")
    desk.run("restore", "vault", "--to", "empty")
    assert tree_of(desk.root / "empty") == {}
    fill(desk.vault)
    for at in range(3000):
        (desk.vault / f"audits/n{at}").write_text(str(at))
    desk.run("backup", "vault")
    desk.run("restore", "vault", "--to", "big")
    assert tree_of(desk.root / "big") == tree_of(desk.vault)
