"""The WAL as it was written once: it opens, lists and checks for ever, by the program and by the
page alone. None is ever written anew."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rooms import QUIET, seams
from strongroom.format import keyset as keysets
from strongroom.format.frame import zstd
from strongroom.format.wal import Fork, lsn_text
from strongroom.keys.keyfile import KeyFileHolder, parse_keyfile
from strongroom.operations.opening import open_repository
from strongroom.progress import Silent
from strongroom.repository.check import Checker
from strongroom.repository.repository import Repository
from strongroom.repository.wal import WalStore
from strongroom.storage.local import LocalStorage

HERE = Path(__file__).parent / "wal"
ALL = sorted(path.name for path in HERE.iterdir())
SYSTEM = 7_300_000_000_000_000_001


def opened(name: str) -> Repository:
    holder = KeyFileHolder(parse_keyfile((HERE / name / "secret").read_bytes()))
    storage = LocalStorage(HERE / name / "store")
    return open_repository(storage, [holder], seams=seams("today"), settings=QUIET)


def expected(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((HERE / name / "expected.json").read_text("utf-8"))
    return document


def test_there_is_one() -> None:
    assert ALL


@pytest.mark.parametrize("name", ALL)
def test_the_program_reads_it(name: str) -> None:
    store = WalStore(opened(name))
    for file, wanted in expected(name).items():
        data = store.get(SYSTEM, file)
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (wanted["sha256"], wanted["size"])
        head = store.head(SYSTEM, file)
        assert head is not None
        assert (head.facts.as_json() if head.facts else None) == wanted["facts"]
        assert head.writer == "host-a"


@pytest.mark.parametrize("name", ALL)
def test_a_listing_tells_all_of_it(name: str) -> None:
    store = WalStore(opened(name))
    assert store.systems() == store.systems("db") == [SYSTEM]
    listing = store.listing(SYSTEM)
    assert listing.unread == {}
    timeline = listing.timelines[10]
    files = [*timeline.segments, *timeline.partials, *timeline.labels]
    assert {each.name for each in files} == set(expected(name)) - {"0000000A.history"}
    assert timeline.history == [Fork(1, 0x1000000, "before 2000-01-01 00:00:00+00")]
    (gap,), (conflict,) = timeline.gaps, timeline.conflicts
    assert (lsn_text(gap.start), gap.reason) == ("0/4000000", "the disk was full")
    assert conflict.name == "0000000A0000000000000002"


@pytest.mark.parametrize("name", ALL)
def test_a_check_finds_nothing(name: str) -> None:
    report = Checker(opened(name), progress=Silent()).run(3)
    assert report.findings == []
    assert [note for note in report.notes if "conflicts" not in note] == [
        "no key slot of a recovery code is left: a printed kit opens nothing"
    ]


@pytest.mark.parametrize("name", ALL)
def test_a_file_by_the_page_alone(name: str) -> None:
    """Chapters 3, 7, 9 and 16, with primitives; the keys and HPKE are others' tests."""
    keys = opened(name).keys.current
    for file, wanted in expected(name).items():
        place = f"wal/{SYSTEM:016x}/{file[:8]}/{file}"
        data = (HERE / name / "store" / place).read_bytes()
        magic, version, sessions, length = struct.unpack_from("<4sHHI", data)
        assert (magic, version, sessions) == (b"SRWL", 1, 1)
        session, epoch, size = struct.unpack_from("<16sIH", data, 12)
        sealed_key = data[34 : 34 + size]
        assert length == 34 + size
        (count,) = struct.unpack_from("<I", data, length)
        record = data[length + 4 : length + 4 + count]
        key = blake3(b"strongroom catalogue 1 walf", key=keys.catalogue_key).digest()
        context = keys.repository + b"walf" + place.encode()
        assert record[:8] == b"SRM1walf"
        padded = AESGCM(key).decrypt(record[8:20], record[20:], context)
        assert len(padded) % 1024 == 0
        signed = json.loads(padded[4 : 4 + int.from_bytes(padded[:4], "little")])
        body = signed["body"]
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        message = b"strongroom wal file 1" + text.encode()
        signer = bytes.fromhex(signed["signer"])
        Ed25519PublicKey.from_public_bytes(signer).verify(
            bytes.fromhex(signed["signature"]), message
        )
        certified = b"strongroom writer 1" + keys.repository + epoch.to_bytes(4, "little")
        Ed25519PublicKey.from_public_bytes(keys.admin_public).verify(
            bytes.fromhex(signed["certificate"]), certified + signer + body["writer"].encode()
        )
        assert (body["name"], body["system_id"]) == (file, str(SYSTEM))
        frames_at = length + 4 + count
        assert frames_at + sum(body["frames"]) == len(data)
        assert blake3(data[:length] + data[frames_at:]).hexdigest() == body["hash"]
        cipher = AESGCM(keysets.open_session_key(keys, session, sealed_key))
        plain, at = b"", frames_at
        for number, each in enumerate(body["frames"]):
            aside = b"frame" + session + number.to_bytes(8, "little")
            packed = cipher.decrypt(number.to_bytes(12, "little"), data[at : at + each], aside)
            plain += zstd.decompress(packed)
            at += each
        assert hashlib.sha256(plain).hexdigest() == wanted["sha256"]
        digest_key = blake3(b"strongroom chunk id 1 wal", key=keys.id_key).digest()
        assert blake3(plain, key=digest_key).hexdigest() == body["digest"]
