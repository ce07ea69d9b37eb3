"""The audit log as it was written once: it opens and verifies for ever, by the program and by the
page alone. None is ever written anew."""

from __future__ import annotations

import base64
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rooms import QUIET, seams
from strongroom.format.run import Run
from strongroom.keys.keyfile import KeyFileHolder, parse_keyfile
from strongroom.operations.opening import open_repository
from strongroom.repository.audit import AuditLog
from strongroom.repository.repository import Repository
from strongroom.storage.local import LocalStorage

HERE = Path(__file__).parent / "audit"
ALL = sorted(path.name for path in HERE.iterdir())


@pytest.fixture(params=ALL)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
    """What is kept, the store unpacked, and what is expected of it."""
    kept = HERE / request.param
    with tarfile.open(kept / "store.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return kept, tmp_path / "store", json.loads((kept / "expected.json").read_text("utf-8"))


def opened(kept: Path, store: Path) -> Repository:
    holder = KeyFileHolder(parse_keyfile((kept / "secret").read_bytes()))
    return open_repository(LocalStorage(store), [holder], seams=seams("today"), settings=QUIET)


def test_the_program_reads_it(golden: tuple[Path, Path, dict[str, Any]]) -> None:
    kept, store, expected = golden
    log = AuditLog(opened(kept, store))
    pin = log.read_pin((kept / "pin.txt").read_text("utf-8"))
    report = log.verify([pin])
    assert report.whole
    assert (report.size, report.roots[report.size].hex()) == (expected["size"], expected["root"])
    runs = dict(log.leaves())
    for number, body in expected["runs"].items():
        assert runs[int(number)].same(Run.from_json(body))
    assert {each.writer for each in runs.values()} == {"origin", "host-a"}
    assert log.append(runs[0]) == expected["size"]


def test_by_the_page_alone(golden: tuple[Path, Path, dict[str, Any]]) -> None:
    """Chapters 3, 9 and 17, with primitives."""
    kept, store, expected = golden
    keys = opened(kept, store).keys.current

    def unsealed(name: str, kind: bytes) -> bytes:
        data = (store / name).read_bytes()
        key = blake3(b"strongroom catalogue 1 " + kind, key=keys.catalogue_key).digest()
        assert data[:8] == b"SRM1" + kind
        padded = AESGCM(key).decrypt(data[8:20], data[20:], keys.repository + kind + name.encode())
        return padded[4 : 4 + int.from_bytes(padded[:4], "little")]

    def root(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaves[0]
        split = 1 << (len(leaves) - 1).bit_length() - 1
        return hashlib.sha256(b"\1" + root(leaves[:split]) + root(leaves[split:])).digest()

    documents = unsealed("audit/tiles/0000000000", b"audt").split(b"\n")
    for number in range(expected["size"]):
        name = f"audit/leaves/{number // 256:010}/{number:012}"
        document = unsealed(name, b"audl")
        if number < 256:
            assert document == documents[number]
        else:
            documents.append(document)
    leaves = [hashlib.sha256(b"\0" + document).digest() for document in documents]
    assert root(leaves).hex() == expected["root"]
    for number, document in enumerate(documents):
        signed = json.loads(document)
        body = signed["body"]
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        signer = bytes.fromhex(signed["signer"])
        Ed25519PublicKey.from_public_bytes(signer).verify(
            bytes.fromhex(signed["signature"]), b"strongroom audit leaf 1" + text.encode()
        )
        assert body["number"] == number
        at, parts = 0, []
        for bit in range(number.bit_length() - 1, -1, -1):
            if number >> bit & 1:
                parts.append(root(leaves[at : at + (1 << bit)]).hex())
                at += 1 << bit
        assert body["before"] == parts

    note = unsealed(f"audit/checkpoints/{expected['size']:012}", b"audc").decode()
    for text in (note, (kept / "pin.txt").read_text("utf-8")):
        said, _, marks = text.rpartition("\n\n")
        origin, size, told, *more = said.split("\n")
        assert origin == f"strongroom/audit/{keys.repository.hex()}"
        assert base64.b64decode(told) == root(leaves[: int(size)])
        signer = base64.b64decode(dict(line.split(" ", 1) for line in more)["signer"])
        dash, whose, mark = marks.strip().split(" ")
        assert (dash, whose) == ("\N{EM DASH}", origin)
        data = base64.b64decode(mark)
        assert data[:4] == hashlib.sha256(origin.encode() + b"\n\1" + signer).digest()[:4]
        message = f"{said}\n".encode()
        Ed25519PublicKey.from_public_bytes(signer).verify(data[4:], message)
