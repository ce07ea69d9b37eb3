"""Out of a repository and back; and a thousand mutations, each refused before anything is written."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyrage
import pytest

import rooms
from artefacts.conftest import AGE, ENC, FILES, SQL, TAR, Desk
from strongroom.artefacts.making import AgeKey
from strongroom.artefacts.manifest import Trust, decode, read_pem
from strongroom.artefacts.opening import Keys
from strongroom.artefacts.sealing import new_key, recipients
from strongroom.errors import (
    AlreadyExists,
    ConfigError,
    Damaged,
    KeyRefused,
    Refused,
    StrongroomError,
    UsageError,
)
from strongroom.operations import import_artefact as importing
from strongroom.progress import Progress, Silent

NAME = "vault_202611.tar.gz.enc"


def test_a_snapshot_goes_out_and_comes_back_the_same(desk: Desk) -> None:
    made = desk.export().made
    artefact = desk.open(made.path)  # the key comes out of the repository
    report = importing.into_repository(
        desk.repository, artefact, source="vault", inner="x", labels={}, progress=Silent()
    )
    artefact.close()
    before = desk.repository.open_snapshot(desk.snapshot)
    after = desk.repository.open_snapshot(report.snapshot)
    assert rooms.read(after) == rooms.read(before)
    pairs = zip(before.entries(), after.entries(), strict=True)
    for old, new in pairs:
        assert (old.path, old.kind, old.mode, old.mtime_ns, old.target) == (
            new.path,
            new.kind,
            new.mode,
            new.mtime_ns,
            new.target,
        )
    assert after.facts["artefact_snapshot"]["id"] == desk.snapshot.id


def test_a_dump_comes_in_as_one_file(desk: Desk) -> None:
    text = b"SELECT 1;\n" * 300_000
    made = desk.export("db_1.sql.gz", SQL, fill=lambda reader, out: out(text)).made
    artefact = desk.open(made.path)
    report = importing.into_repository(
        desk.repository, artefact, source="db", inner="db_1.sql", labels={}, progress=Silent()
    )
    assert rooms.restore(desk.repository, report.snapshot)[b"db_1.sql"] == text
    taken: list[bytes] = []

    def load(read: Callable[[int], bytes], _: Progress) -> dict[str, int]:
        while data := read(1000):
            taken.append(data)
        return {}

    importing.into_database(artefact, load, progress=Silent())
    assert b"".join(taken) == text


def test_the_end_of_a_dump_is_told_only_when_all_of_it_was_true(desk: Desk) -> None:
    """Whoever loads it commits at the end: the refusal has to come before that."""
    made = desk.export("db_1.sql.gz", SQL, fill=lambda reader, out: out(b"SELECT 1;")).made
    artefact = desk.open(made.path)
    artefact.file = replace(artefact.file, sha256="0" * 64)
    committed = []

    def load(read: Callable[[int], bytes], _: Progress) -> dict[str, int]:
        while read(1000):
            pass
        committed.append(True)
        return {}

    with pytest.raises(Damaged, match="changed while"):
        importing.into_database(artefact, load, progress=Silent())
    assert not committed


@pytest.mark.parametrize("side", ["", ".sha256", ".manifest", ".manifest.sig"])
def test_an_artefact_that_cannot_be_replaced_keeps_what_belongs_to_it(
    desk: Desk, side: str
) -> None:
    made = desk.export("v_1.tar.gz", TAR).made
    place = Path(made.path + side)
    place.unlink()
    place.mkdir()
    before = {p.name: p.read_bytes() for p in desk.folder.rglob("v_1*") if p.is_file()}
    with pytest.raises(StrongroomError, match="cannot be written"):
        desk.export("v_1.tar.gz", TAR, force=True)
    assert {p.name: p.read_bytes() for p in desk.folder.rglob("v_1*") if p.is_file()} == before
    assert not list(desk.folder.rglob(".v_1*"))


def test_into_a_folder(desk: Desk) -> None:
    artefact = desk.open(desk.export().made.path)
    target = desk.folder / "target"
    outcome = importing.into_folder(
        artefact, os.fsencode(target), owner=False, devices=False, progress=Silent()
    )
    assert not outcome.problems
    for path, content in FILES.items():
        if not hasattr(content, "kind"):
            with open(os.fsencode(target) + b"/" + path, "rb") as file:
                assert file.read() == rooms.flat(content)
    assert os.path.samefile(target / "z-hard", target / "audits/1.json")
    with pytest.raises(Refused, match="not empty"):
        importing.into_folder(
            artefact, os.fsencode(target), owner=False, devices=False, progress=Silent()
        )


def test_what_is_written_beside_it(desk: Desk) -> None:
    made = desk.export()
    out = Path(made.made.path).parent
    assert (
        subprocess.run(["sha256sum", "-c", f"{NAME}.sha256"], check=False, cwd=out).returncode == 0
    )
    line = f"openssl pkeyutl -verify -pubin -inkey {made.public_key} -rawin -in".split()
    argv = [*line, f"{NAME}.manifest", "-sigfile", f"{NAME}.manifest.sig"]
    assert subprocess.run(argv, check=False, cwd=out).returncode == 0
    manifest = decode((out / f"{NAME}.manifest").read_bytes())
    assert manifest.file.sha256 == hashlib.sha256((out / NAME).read_bytes()).hexdigest()
    key = (desk.folder / "keys" / f"{NAME}.key").read_bytes()
    assert key.strip() not in (out / f"{NAME}.manifest").read_bytes()
    assert os.stat(desk.folder / "keys" / f"{NAME}.key").st_mode & 0o777 == 0o600


def test_a_failed_export_leaves_nothing(desk: Desk) -> None:
    def fail(reader: object, out: Callable[[bytes], object]) -> None:
        out(b"some" * 1_000_000)
        raise Damaged("a chunk is gone")

    with pytest.raises(Damaged):
        desk.export("db_1.sql.gz", SQL, fill=fail)
    assert os.listdir(desk.folder / "out") == []


def test_a_taken_name_is_refused(desk: Desk) -> None:
    first = desk.export().made.manifest
    with pytest.raises(AlreadyExists):
        desk.export()
    again = desk.export(force=True).made.manifest
    assert first.key["id"] != again.key["id"]  # a key of its own
    assert first.plain == again.plain
    desk.open(desk.folder / "out" / NAME).close()


def test_the_key_must_be_this_artefacts(desk: Desk) -> None:
    path = desk.export().made.path
    with pytest.raises(KeyRefused, match="another artefact"):
        desk.open(path, keys=Keys(new_key(bytes(32))))
    with pytest.raises(KeyRefused, match="not at hand"):
        desk.open(path, keys=Keys())
    text = (desk.folder / "keys" / f"{NAME}.key").read_bytes()
    desk.open(path, keys=Keys(text)).close()


def test_a_wrong_identity_of_age(desk: Desk) -> None:
    mine, other = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    to = str(mine.to_public())
    key = AgeKey([to], recipients([to]))
    path = desk.export("v.tar.gz.age", AGE, key=key).made.path
    desk.open(path, keys=Keys(identity_file=str(mine).encode())).close()
    with pytest.raises(KeyRefused):
        desk.open(path, keys=Keys(identity_file=str(other).encode()))


def test_whose_signature_counts(desk: Desk) -> None:
    done = desk.export()
    path = done.made.path
    pinned = read_pem(Path(done.public_key).read_bytes(), "x")
    desk.open(path, trust=Trust([pinned])).close()
    for trust in (Trust(), Trust([bytes(32)]), Trust((), {bytes(16): bytes(32)})):
        with pytest.raises(Refused, match="not trusted"):
            desk.open(path, trust=trust)
    admins = {desk.repository.identity.id: bytes(range(32))}  # certified by another admin
    with pytest.raises(Refused, match="not trusted"):
        desk.open(path, trust=Trust((), admins))
    with pytest.raises(ConfigError):
        read_pem(b"no key", "x")


def test_without_what_vouches_for_it(desk: Desk) -> None:
    path = desk.export("v.tar.gz", TAR).made.path
    os.unlink(path + ".sha256")
    artefact = desk.open(path)
    assert artefact.notes == ["v.tar.gz.sha256 is not there"]
    artefact.close()
    os.unlink(path + ".manifest.sig")
    with pytest.raises(Refused, match="nobody vouches"):
        desk.open(path)
    artefact = desk.open(path, unsigned=True)
    assert any("nobody vouches" in note for note in artefact.notes)
    artefact.close()


def test_a_file_that_changes_after_it_was_verified(desk: Desk) -> None:
    path = desk.export("v.tar.gz", TAR).made.path
    artefact = desk.open(path)
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(bytes([file.read(1)[0] ^ 1]))
    with pytest.raises(StrongroomError):
        importing.into_repository(
            desk.repository, artefact, source="vault", inner="x", labels={}, progress=Silent()
        )
    assert len(rooms.committed(desk.repository)) == 1


# -- mutations -----------------------------------------------------------------------------------

Mutation = Callable[[random.Random, bytes, bytes], bytes]


def flip(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def cut(chance: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: chance.randrange(len(data))]


def cut_front(chance: random.Random, data: bytes, other: bytes) -> bytes:
    return data[chance.randrange(1, len(data)) :]


def splice(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at = chance.randrange(min(len(data), len(other)))
    return data[:at] + other[at:]


def insert(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.randbytes(chance.randint(1, 32)) + data[at:]


def drop(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + data[at + chance.randint(1, 32) :]


def swap_blocks(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """What CBC lets through: two cipher blocks change places."""
    blocks = [data[at : at + 16] for at in range(0, len(data), 16)]
    first, second = chance.randrange(len(blocks)), chance.randrange(len(blocks))
    blocks[first], blocks[second] = blocks[second], blocks[first]
    return b"".join(blocks)


MUTATIONS: list[Mutation] = [flip, cut, cut_front, splice, insert, drop, swap_blocks]
SIDES = ["", "", ".manifest", ".manifest.sig", ".sha256"]


@pytest.mark.parametrize("shape", [ENC, TAR])
def test_a_thousand_mutations_are_refused(desk: Desk, shape: object) -> None:
    assert shape in (ENC, TAR)
    names = [f"{letter}{shape.suffix}" for letter in "ab"]  # type: ignore[attr-defined]
    paths = [desk.export(name, shape).made.path for name in names]  # type: ignore[arg-type]
    chance, refused = random.Random(20261125), 0
    while refused < 500:
        side = chance.choice(SIDES)
        path = Path(paths[0] + side)
        was = path.read_bytes()
        other = Path(paths[1] + side).read_bytes()
        data = chance.choice(MUTATIONS)(chance, was, other)
        if data == was:
            continue
        path.write_bytes(data)
        with pytest.raises((Damaged, Refused, KeyRefused)):
            desk.open(paths[0])
        refused += 1
        path.write_bytes(was)
    desk.open(paths[0]).close()


def test_swapped_sides_are_refused(desk: Desk) -> None:
    paths = [desk.export(f"{letter}.tar.gz.enc").made.path for letter in "ab"]
    sides = ["", ".sha256", ".manifest", ".manifest.sig"]
    for chosen in range(1, 15):
        for number, side in enumerate(sides):
            shutil.copy(paths[chosen >> number & 1] + side, desk.folder / f"a.tar.gz.enc{side}")
        with pytest.raises((Damaged, Refused, KeyRefused)):
            desk.open(desk.folder / "a.tar.gz.enc")
    for side in sides:  # all of b under a's name: an old artefact that passes for a new one
        shutil.copy(paths[1] + side, desk.folder / f"a.tar.gz.enc{side}")
    with pytest.raises(Damaged, match="manifest is that of"):
        desk.open(desk.folder / "a.tar.gz.enc")


def test_unsigned_and_changed_is_refused_or_the_same(desk: Desk) -> None:
    """gzip's own sum: what gets through says the same as before (its time stamp may differ)."""
    path = Path(desk.export("a.tar.gz", TAR).made.path)
    was = path.read_bytes()
    lone = desk.folder / "lone.tar.gz"
    chance = random.Random(7)
    for _ in range(150):
        lone.write_bytes(chance.choice(MUTATIONS[:3])(chance, was, was))
        try:
            artefact = desk.open(lone, unsigned=True)
        except (Damaged, Refused):
            continue
        plain = artefact.unpack().finish()
        artefact.close()
        assert plain == decode(Path(f"{path}.manifest").read_bytes()).plain


def test_what_is_no_artefact(desk: Desk) -> None:
    for name in ("a.zip", "tar.gz", ".tar.gz"):
        (desk.folder / name).write_bytes(b"x")
        with pytest.raises(UsageError):
            desk.open(desk.folder / name)
    os.mkfifo(desk.folder / "f.tar.gz")
    with pytest.raises((UsageError, Refused)):
        desk.open(desk.folder / "f.tar.gz", unsigned=True)


def test_kinds_do_not_mix(desk: Desk) -> None:
    rooms.take(desk.repository, "db", {b"globals.sql": b"x"}, kind="postgres")
    with pytest.raises(Refused, match="those of a database"):
        importing.refuse_mixture(desk.repository, "db", database=False)
    importing.refuse_mixture(desk.repository, "vault", database=False)
