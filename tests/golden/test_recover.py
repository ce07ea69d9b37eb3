"""recover.py, run as a stranger would run it: from the written format alone, on what the engine made.

Rule: the subprocess never sees the package; what it wrote is compared with the source.
"""

from __future__ import annotations

import ast
import filecmp
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from rooms import QUIET, Clock, DictSource, Sparse, noise, prune, seams
from strongroom.files.compare import compare_trees
from strongroom.files.source import FileSource
from strongroom.format import keyset as keysets
from strongroom.format.record import SNAPSHOT, RecordKey, canonical
from strongroom.format.tree import Entry, Kind
from strongroom.keys.keyfile import KeyFileHolder, generate_keyfile, parse_keyfile
from strongroom.keys.passphrase import Cost, PassphraseHolder
from strongroom.keys.recovery_code import (
    RecoveryCodeHolder,
    generate_recovery_code,
    parse_recovery_code,
)
from strongroom.operations.back_up import back_up
from strongroom.operations.initialise import initialise
from strongroom.operations.keys import add_key
from strongroom.operations.opening import open_repository
from strongroom.progress import Silent
from strongroom.repository.keyring import open_keyring
from strongroom.repository.ports import Taken
from strongroom.repository.repository import Repository
from strongroom.storage.local import LocalStorage

RECOVER = Path(__file__).parents[2] / "recover.py"
PASSPHRASE = "pass wörd"
CHEAP = Cost(passes=1, memory=64, lanes=2)
CLOCK = Clock()
WAYS = ["passphrase", "key", "code"]

ALONE = """
import os, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    if any(name.split(".")[0] == "strongroom" for name in sys.modules):
        os._exit(99)
"""


@dataclass
class Run:
    status: int
    out: str
    err: str

    @property
    def lost(self) -> dict[str, str]:
        """Path → reason, as the program named them."""
        lines = [line[5:] for line in self.err.splitlines() if line.startswith("LOST ")]
        return dict(line.split(": ", 1) for line in lines)


@dataclass
class Room:
    """A repository on disk, its source, and the files with secrets beside it."""

    top: Path

    @property
    def store(self) -> Path:
        return self.top / "store"

    @property
    def vault(self) -> Path:
        return self.top / "vault"

    def run(self, *arguments: str | Path, way: str = "key") -> Run:
        options = ["--repository", str(self.store)]
        if way:
            options += [f"--{way}-file", str(self.top / f"{way}.txt")]
        command = [sys.executable, "-I", "-c", ALONE, str(RECOVER), *options, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=120)
        err = done.stderr.decode()
        assert "Traceback" not in err, err
        return Run(done.returncode, done.stdout.decode(), err)

    def open(self) -> Repository:
        holder = KeyFileHolder(parse_keyfile((self.top / "key.txt").read_bytes()))
        return open_repository(
            LocalStorage(self.store), [holder], seams=seams(os.urandom(8), CLOCK), settings=QUIET
        )

    def objects(self, folder: str) -> list[Path]:
        return sorted(path for path in (self.store / folder).rglob("*") if path.is_file())


def found(top: Path) -> Room:
    """Create a repository with a way in of each kind."""
    room = Room(top)
    room.vault.mkdir(parents=True)
    text, code = generate_keyfile(), generate_recovery_code()
    (top / "key.txt").write_text(text)
    (top / "code.txt").write_text(code.lower().replace("-", " ") + "\n")
    (top / "passphrase.txt").write_text(PASSPHRASE + "\r\n")
    holders = {
        "phrase": PassphraseHolder(PASSPHRASE.encode(), cost=CHEAP),
        "file": KeyFileHolder(parse_keyfile(text.encode())),
    }
    recovery = RecoveryCodeHolder(parse_recovery_code(code)), code
    storage = LocalStorage(room.store)
    initialise(storage, holders=holders, recovery=recovery, seams=seams(os.urandom(8), CLOCK))
    return room


def furnish(root: Path) -> None:
    """One of everything, and enough of it for several tree pages and a list of extents."""
    (root / "many" / "deep").mkdir(parents=True)
    for number in range(3000):
        (root / "many" / f"{number:05}").write_bytes(b'{"n": %d}' % number * (number % 40))
    (root / "many" / "deep" / "large").write_bytes(noise("large", 30 << 20))
    (root / "many-").write_bytes(b"after many, before many/")
    with open(root / "sparse", "wb") as file:
        file.seek(3 << 20)
        file.write(b"x" * 300_000)
        file.truncate(80 << 20)
    os.link(root / "many" / "deep" / "large", root / "other-name")
    below = os.open(root, os.O_RDONLY)  # deeper than one call to the system can name
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=below)
        above, below = below, os.open("d" * 250, os.O_RDONLY, dir_fd=below)
        os.close(above)
    os.close(os.open("first", os.O_CREAT, 0o600, dir_fd=below))
    os.link("first", "second", src_dir_fd=below, dst_dir_fd=below)
    os.close(below)
    os.symlink("many/deep", root / "link")
    os.symlink(b"/nowhere/\xff", os.fsencode(root) + b"/\xff\x01raw")
    os.mkfifo(root / "pipe", 0o640)
    os.setxattr(root / "many-", "user.note", b"\0value")
    os.utime(root / "many-", ns=(5, -86_400_000_000_001))
    os.utime(root / "link", ns=(5, 987_654_321), follow_symlinks=False)
    if os.geteuid() == 0:
        os.mknod(root / "null", 0o020666, os.makedev(1, 3))
        os.chown(root / "many-", 1234, 4321)
        os.chmod(root / "many-", 0o6751)
    os.chmod(root / "many" / "deep", 0o1555)
    os.utime(root / "many", ns=(0, 77))
    os.chmod(root, 0o751)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Room:
    """A repository with two snapshots of a vault and one of dump streams. Only read it."""
    room = found(tmp_path_factory.mktemp("recover") / "room")
    furnish(room.vault)
    repository = room.open()
    source = FileSource("vault", os.fsencode(room.vault))
    assert back_up(repository, source, progress=Silent()).problems == ()
    (room.vault / "many" / "00007").write_bytes(b"changed since")
    back_up(room.open(), source, progress=Silent())
    streams = {
        b"dump/globals.sql": b"create role x;",
        b"dump/table-1": Sparse(3 << 20, ((0, noise("dump", 2 << 20)),)),
        b"dump/table-2": b"",
    }
    back_up(room.open(), DictSource("db", streams, kind="postgres"), progress=Silent())
    return room


@pytest.fixture
def room(made: Room, tmp_path: Path) -> Iterator[Room]:
    """A copy of the made repository that `rewrite` may spoil; its vault is the made one."""
    copy = Room(tmp_path / "copy")
    shutil.copytree(made.store, copy.store, copy_function=os.link)
    for way in WAYS:
        shutil.copy(made.top / f"{way}.txt", copy.top)
    os.symlink(made.vault, copy.vault)
    yield copy


def same(vault: Path, target: Path) -> list[str]:
    return [
        str(one) for one in compare_trees(os.fsencode(os.path.realpath(vault)), os.fsencode(target))
    ]


def rewrite(path: Path, data: bytes) -> None:
    """Change an object here and not in the repository that it is shared with."""
    path.unlink()
    path.write_bytes(data)


def flip(path: Path, *places: int) -> None:
    data = bytearray(path.read_bytes())
    for at in places:
        data[at] ^= 1
    rewrite(path, bytes(data))


# -- the file itself -------------------------------------------------------------------------


def test_it_is_one_short_file_that_needs_three_libraries() -> None:
    text = RECOVER.read_text()
    assert len(text.splitlines()) <= 400
    assert max(map(len, text.splitlines())) <= 110
    imported: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module
            imported.add(node.module.split(".")[0])
    outside = imported - set(sys.stdlib_module_names)
    assert outside - {"compression"} == {"blake3", "cryptography", "backports"}


# -- everything is whole ---------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_restores_everything(made: Room, tmp_path: Path, way: str) -> None:
    listed = made.run("list", way=way)
    assert listed.status == 0
    rows = [line.split() for line in listed.out.splitlines()]
    assert [row[2] for row in rows] == ["vault", "vault", "db"]
    done = made.run("restore", rows[1][0], tmp_path / "out", way=way)
    assert (done.status, done.lost) == (0, {}), done.err
    assert same(made.vault, tmp_path / "out") == []
    links = [os.stat(tmp_path / "out" / name).st_ino for name in ("other-name", "many/deep/large")]
    assert links[0] == links[1]
    assert os.stat(tmp_path / "out" / "sparse").st_blocks * 512 < 8 << 20


def test_an_older_snapshot_and_a_prefix_of_its_id(made: Room, tmp_path: Path) -> None:
    first = made.run("list").out.split()[0]
    assert made.run("restore", first[:12], tmp_path / "out").status == 0
    assert (tmp_path / "out/many/00007").read_bytes() == b'{"n": 7}' * 7


def test_the_name_of_a_source_comes_before_the_beginning_of_an_id(tmp_path: Path) -> None:
    """`db` is hexadecimal too: three ids in a hundred begin so."""
    room = found(tmp_path / "room")
    first = back_up(room.open(), DictSource("vault", {b"a": b"1"}), progress=Silent())
    name = first.snapshot.id[:2]
    back_up(room.open(), DictSource(name, {b"b": b"2"}), progress=Silent())
    assert room.run("restore", name, tmp_path / "out").status == 0
    assert os.listdir(tmp_path / "out") == ["b"]


def test_streams_of_a_dump_become_files(made: Room, tmp_path: Path) -> None:
    assert made.run("restore", "db", tmp_path / "out").status == 0
    assert (tmp_path / "out/dump/globals.sql").read_bytes() == b"create role x;"
    expected = noise("dump", 2 << 20) + bytes(1 << 20)
    assert (tmp_path / "out/dump/table-1").read_bytes() == expected
    assert (tmp_path / "out/dump/table-2").read_bytes() == b""


def test_a_path_alone(made: Room, tmp_path: Path) -> None:
    done = made.run("restore", "vault", tmp_path / "out", "--path", "many/deep/")
    assert done.status == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["many"]
    assert os.listdir(tmp_path / "out/many") == ["deep"]
    assert same(made.vault / "many/deep", tmp_path / "out/many/deep") == []
    done = made.run("restore", "vault", tmp_path / "file", "--path", "many-")
    assert (done.status, os.listdir(tmp_path / "file")) == (0, ["many-"])


def test_another_name_of_a_file_outside_of_the_path(made: Room, tmp_path: Path) -> None:
    assert made.run("restore", "vault", tmp_path / "out", "--path", "other-name").status == 0
    assert os.listdir(tmp_path / "out") == ["other-name"]
    assert (tmp_path / "out/other-name").read_bytes() == noise("large", 30 << 20)


def test_nothing_at_a_path_is_no_success(made: Room, tmp_path: Path) -> None:
    assert made.run("restore", "vault", tmp_path / "out", "--path", "mány").status == 3


@pytest.mark.parametrize("index", ["whole", "gone"])
def test_after_a_prune_has_moved_frames(tmp_path: Path, index: str) -> None:
    room = found(tmp_path / "room")
    kept = {b"%03d" % number: noise(number, 700_000) for number in range(0, 12, 2)}
    gone = {b"%03d" % number: noise(number, 700_000) for number in range(1, 12, 2)}
    first = back_up(room.open(), DictSource("vault", {**kept, **gone}), progress=Silent())
    back_up(room.open(), DictSource("vault", kept), progress=Silent())
    storage = LocalStorage(room.store)
    storage.delete([first.snapshot.name, f"refs/vault/{first.snapshot.id}"])
    before = room.objects("packs")
    prune(room.open())
    assert set(room.objects("packs")) - set(before)
    if index == "gone":
        shutil.rmtree(room.store / "index")
    done = room.run("restore", "vault", tmp_path / "out")
    assert (done.status, done.lost) == (0, {}), done.err
    restored = {os.fsencode(path.name): path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert restored == kept


# -- refused ---------------------------------------------------------------------------------


def test_a_target_that_is_not_empty_is_left_alone(made: Room, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    assert made.run("restore", "vault", tmp_path).status == 4
    assert os.listdir(tmp_path) == ["mine"]


@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_secret_opens_nothing(room: Room, way: str) -> None:
    wrong = {
        "passphrase": "wrong",
        "key": generate_keyfile(),
        "code": generate_recovery_code(),
    }
    (room.top / f"{way}.txt").write_text(wrong[way])
    assert room.run("list", way=way).status == 8


def test_a_damaged_key_file_is_told_from_a_wrong_one(room: Room) -> None:
    text = (room.top / "key.txt").read_text()
    at = text.rindex(" ") + 5
    (room.top / "key.txt").write_text(
        text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
    )
    done = room.run("list")
    assert (done.status, "damaged" in done.err) == (8, True)


def test_no_snapshot_of_that_name(made: Room, tmp_path: Path) -> None:
    assert made.run("restore", "nobody", tmp_path / "out").status == 5
    assert made.run("restore", "vault").status == 2


def test_the_keys_of_a_writer_list_and_do_not_read(room: Room, tmp_path: Path) -> None:
    holder = KeyFileHolder(parse_keyfile((room.top / "key.txt").read_bytes()))
    storage = LocalStorage(room.store)
    keyring = open_keyring(storage, [holder], room.open().identity.id)
    text = generate_keyfile()
    (room.top / "key.txt").write_text(text)
    writer = KeyFileHolder(parse_keyfile(text.encode()))
    add_key(storage, keyring, writer, label="host-a", role="writer", seams=seams("writer"))
    assert len(room.run("list").out.splitlines()) == 3
    assert room.run("restore", "vault", tmp_path / "out").status == 8


def test_a_planted_slot_that_asks_for_too_much_is_not_paid_for(room: Room) -> None:
    slot = next(p for p in room.objects("keys") if b'"kind":"passphrase"' in p.read_bytes())
    rewrite(slot, slot.read_bytes().replace(b'"m":64,', b'"m":999999999,'))
    done = room.run("list", way="passphrase")
    assert (done.status, "999999999 KiB" in done.err) == (8, True)


# -- damage ----------------------------------------------------------------------------------


def check_the_rest(room: Room, target: Path, done: Run) -> set[str]:
    """What was not named is there and as it was; what was named is not there."""
    assert done.status == 3
    named = set(done.lost)
    assert named
    missing, wrong = set(), set()
    for folder, _, files in os.walk(os.path.realpath(room.vault)):
        for file in files:
            path = os.path.relpath(os.path.join(folder, file), os.path.realpath(room.vault))
            ours, theirs = room.vault / path, target / path
            if not os.path.lexists(theirs):
                missing.add(path)
            elif stat.S_ISREG(ours.lstat().st_mode) and not filecmp.cmp(ours, theirs, False):
                wrong.add(path)
    assert not wrong
    assert missing == named
    return named


def test_a_damaged_data_pack_costs_the_files_in_it_and_no_others(
    room: Room, tmp_path: Path
) -> None:
    pack = max(room.objects("packs"), key=lambda path: path.stat().st_size)
    flip(pack, *range(2000, pack.stat().st_size - 100_000, 300_000))
    done = room.run("restore", "vault", tmp_path / "out")
    lost = check_the_rest(room, tmp_path / "out", done)
    assert 0 < len(lost) < 2000
    assert all(pack.name in reason or "No such file" in reason for reason in done.lost.values())


def test_a_missing_data_pack_is_named(room: Room, tmp_path: Path) -> None:
    pack = max(room.objects("packs"), key=lambda path: path.stat().st_size)
    pack.unlink()
    done = room.run("restore", "vault", tmp_path / "out")
    check_the_rest(room, tmp_path / "out", done)


def test_a_damaged_tree_page_costs_what_stands_on_it(room: Room, tmp_path: Path) -> None:
    for pack in room.objects("trees"):
        flip(pack, 1300)
    done = room.run("restore", "vault", tmp_path / "out")
    assert done.status == 3
    assert any("entries" in reason for reason in done.lost.values())


@pytest.mark.parametrize("how", ["gone", "flipped", "cut", "one of them"])
def test_footers_stand_in_for_the_index(room: Room, tmp_path: Path, how: str) -> None:
    segments = room.objects("index")
    assert len(segments) > 1
    for segment in segments[:1] if how == "one of them" else segments:
        if how == "flipped":
            flip(segment, segment.stat().st_size // 2)
        elif how == "cut":
            rewrite(segment, segment.read_bytes()[:100])
        else:
            segment.unlink()
    done = room.run("restore", "vault", tmp_path / "out")
    assert (done.status, done.lost) == (0, {}), done.err
    assert same(room.vault, tmp_path / "out") == []


@pytest.mark.parametrize("at", [-1, -6, -40])
def test_the_index_stands_in_for_footers(room: Room, tmp_path: Path, at: int) -> None:
    for pack in room.objects("packs") + room.objects("trees"):
        flip(pack, at)
    done = room.run("restore", "vault", tmp_path / "out")
    assert (done.status, done.lost) == (0, {}), done.err
    assert same(room.vault, tmp_path / "out") == []


def test_a_damaged_snapshot_is_named_and_the_others_restore(room: Room, tmp_path: Path) -> None:
    snapshot = room.objects("snapshots/vault")[0]
    for at in (0, 4, 9, 40, snapshot.stat().st_size - 1):
        flip(snapshot, at)
        done = room.run("list")
        assert (done.status, len(done.out.splitlines())) == (3, 2)
        assert f"DAMAGED snapshots/vault/{snapshot.name}" in done.err
        flip(snapshot, at)
    flip(snapshot, 40)
    assert room.run("restore", "vault", tmp_path / "out").status == 0


def test_a_snapshot_moved_to_another_name_does_not_pass(room: Room) -> None:
    snapshot = room.objects("snapshots/vault")[0]
    snapshot.rename(snapshot.with_name("20990101T000000Z-" + snapshot.name.rsplit("-")[-1]))
    assert room.run("list").status == 3


@pytest.mark.parametrize("forgery", ["no certificate", "changed body", "another's name"])
def test_a_snapshot_forged_with_the_catalogue_key_does_not_pass(room: Room, forgery: str) -> None:
    """Whoever holds the catalogue key can seal; only a certified writer can sign."""
    repository = room.open()
    keyset, snapshot = repository.keys.current, next(iter(repository.catalogue.snapshots("vault")))
    body = {**snapshot.body(), "id": "f" * 16}  # type: ignore[union-attr]
    private = os.urandom(32)
    signer = (
        keysets._ed25519_public(private) if forgery == "no certificate" else keyset.signing_public
    )
    signing = replace_signing(private) if forgery == "no certificate" else keyset
    signed_body = {**body, "files": 0} if forgery == "changed body" else body
    if forgery == "another's name":
        body = signed_body = {**body, "writer": "somebody"}
    signature = keysets.sign(signing, b"strongroom snapshot 1" + canonical(signed_body))
    document = {
        "body": body,
        "signer": signer.hex(),
        "certificate": keyset.certificate.hex(),
        "signature": signature.hex(),
    }
    name = f"snapshots/vault/20990101T000000Z-{'f' * 16}"
    records = RecordKey(keyset.repository, keyset.catalogue_key)
    data = records.seal(SNAPSHOT, name, canonical(document), nonce=os.urandom(12))
    (room.store / name).write_bytes(data)
    done = room.run("list")
    assert (done.status, f"DAMAGED {name}" in done.err) == (3, True)


class replace_signing:
    """As much of a keyset as signing looks at."""

    def __init__(self, private: bytes) -> None:
        self.signing_private = private


def test_the_identity_is_verified_and_the_kit_replaces_it(room: Room, tmp_path: Path) -> None:
    identity = room.open().identity.id.hex()
    path = room.store / "strongroom.json"
    rewrite(path, path.read_bytes().replace(b'"list_sorted":true', b'"list_sorted":false'))
    assert room.run("list").status == 2
    path.unlink()
    assert room.run("list").status == 2
    assert room.run("--repository-id", identity, "list").status == 0
    assert room.run("--repository-id", "00" * 16, "list").status == 8


def test_an_identity_of_another_admin_does_not_pass(room: Room, tmp_path: Path) -> None:
    other = found(tmp_path / "other")
    theirs = (other.store / "strongroom.json").read_bytes()
    rewrite(room.store / "strongroom.json", theirs)
    assert room.run("list").status == 8


# -- hostile trees ---------------------------------------------------------------------------


def test_nothing_leaves_the_target(tmp_path: Path) -> None:
    """A writer that is not trusted may have signed any path."""
    room = found(tmp_path / "room")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    link = Entry(b"", Kind.SYMLINK, target=os.fsencode(outside))
    files = {
        b"../up": b"1",
        b"./dot": b"1",
        b"/" + os.fsencode(outside).lstrip(b"/") + b"/absolute": b"1",
        b"a/../../up": b"1",
        b"a//b": b"1",
        b"good": b"good",
        b"hard": Entry(b"", Kind.HARDLINK, target=b"link/kept"),
        b"hard2": Entry(b"", Kind.HARDLINK, target=b"../outside/kept"),
        b"link": link,
        b"link/through": b"1",
        b"nul\0": b"1",
        b"slash/": b"1",
    }
    back_up(room.open(), DictSource("vault", files), progress=Silent())
    target = tmp_path / "inner" / "out"
    done = room.run("restore", "vault", target)
    assert done.status == 3
    assert len(done.lost) == len(files) - 2, done.err
    assert sorted(p.name for p in outside.iterdir()) == ["kept"]
    assert (outside / "kept").stat().st_nlink == 1
    assert os.listdir(tmp_path / "inner") == ["out"]
    assert (target / "good").read_bytes() == b"good"
    assert not (tmp_path / "up").exists()


def test_names_are_shown_without_control_characters(tmp_path: Path) -> None:
    room = found(tmp_path / "room")
    files = {b"../\x1b[31m\n": b"1", b"good": b"good"}
    back_up(room.open(), DictSource("vault", files), progress=Silent())
    done = room.run("restore", "vault", tmp_path / "out")
    assert "\\x1b[31m\\x0a" in done.err
    assert "\x1b" not in done.err


def test_extents_that_contradict_themselves_are_lost(tmp_path: Path) -> None:
    room = found(tmp_path / "room")
    repository = room.open()
    session = repository.begin("vault", progress=Silent())
    (chunk,) = session.lane().put_small([b"x" * 100])
    row = chunk.join((b"\2" + (0).to_bytes(8, "little") + b"\x64\0\0\0\0\0\0\0\1\0\0\0", b""))
    entry = Entry(b"", Kind.FILE, mode=0o600)
    for path, size, content in (
        (b"a", 100, row),
        (b"b", 99, row),
        (b"c", 101, b"\1" + chunk),
        (b"d", 200, row + row[1:]),
        (b"e", 100, row[:-1]),
        (b"f", 100, b"\7" + chunk),
        (b"g", 100, b"\3" + chunk),
    ):
        session.tree.add(replace(entry, path=path, size=size, content=content))
    session.commit("vault", "files", Taken(7, 0), labels={})
    done = room.run("restore", "vault", tmp_path / "out")
    assert sorted(done.lost) == ["b", "c", "d", "e", "f", "g"]
    assert os.listdir(tmp_path / "out") == ["a"]
