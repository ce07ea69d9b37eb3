"""docs/format.md is the format: what the code writes is in it, and what is in it is enough.

The second half opens things with nothing but primitives and the page, where recover.py leans on
a library: the HPKE suite, the check letters of a recovery code, the proposals of the chunker.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rooms import BIRTH, as_read, new_room, noise, restore, take
from strongroom import kernel
from strongroom.format import chunker, content, frame, pack, record, segment, tree, walfile
from strongroom.format import keyset as keysets
from strongroom.format.tree import Entry, Kind
from strongroom.format.wal import SegmentFacts
from strongroom.format.walfile import WalHead
from strongroom.keys import keyfile, passphrase
from strongroom.keys.recovery_code import generate_recovery_code
from strongroom.repository import catalogue, identity, keyring, session
from strongroom.repository.catalogue import Root, Snapshot
from strongroom.storage.memory import MemoryStorage

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "format.md").read_text("utf-8")
SOURCES = [
    path
    for room in ("format", "repository", "keys")
    for path in sorted((ROOT / "src/strongroom" / room).glob("*.py"))
] + [ROOT / "src/strongroom/kernel.py"]


def byte_strings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes):
            yield node.value.decode("ascii", "replace")


def mentioned(text: str) -> bool:
    return f'"{text}"' in TEXT or f"`{text}`" in TEXT


# -- nothing in the code is missing on the page ----------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_label_and_magic_number_is_on_the_page(path: Path) -> None:
    for text in byte_strings(path):
        if re.fullmatch(r"strongroom [a-z ]+ [0-9]+ ?\n?", text):
            assert mentioned(text.rstrip("\n")), text
        elif re.fullmatch(r"SR[A-Z0-9]{2}", text):
            assert f'"{text}"' in TEXT, text


def test_the_labels_are_found_at_all() -> None:
    found = {text for path in SOURCES for text in byte_strings(path) if "strongroom " in text}
    assert len(found) >= 9


def test_kinds() -> None:
    listed = ", ".join(f"`{kind.decode()}`" for kind in record._EVERY)
    assert f"Kinds: {listed}." in " ".join(TEXT.split())
    for kind in (*session.CHUNK_KINDS, b"chunker", b"tree page"):
        assert f"`{kind.decode()}`" in TEXT, kind
    for entry_kind in Kind:
        assert re.search(rf"\|[^|]*\b{entry_kind.value}\b[^|]*\|", TEXT), entry_kind


def test_numbers() -> None:
    """A constant that changes without its page changes the format in secret."""
    said = " ".join(TEXT.split())
    expected = {
        f"multiple of {record.PAD},": 1,
        f"padded to {catalogue.INDEX_PAD};": 2,
        f"padded to {pack.FOOTER_PAD}:": 1,
        f"at most {frame.MAX_PLAIN >> 20} MiB, and nothing after": 1,
        f"h & 0x{chunker.PROPOSAL_MASK:X} = 0": 1,
        f"2³²/{(1 << 32) // session._PAGE_THRESHOLD}, with at least {session._PAGE_MIN}": 1,
        f"at most {session._PAGE_MAX} or about {session._PAGE_BYTES >> 10} KiB": 1,
        f"tag 16 = {keysets.SEALED_SESSION_KEY_SIZE} bytes": 1,
        f"{keyring.SLOT_SIZE_LIMIT >> 10} KiB; {keyring.MAX_READ}; {keyring.MAX_TRIES} |": 1,
        f"| {passphrase.MAX_PASSES}; {passphrase.MAX_LANES}; 8·p to {passphrase.MAX_MEMORY:,} KiB; "
        f"{passphrase.MAX_WORK:,} KiB |": 1,
        f"`format` ({identity.FORMAT})": 1,
        f"`walf`, padded to {walfile.RECORD_PAD} frame": 1,
        f"history or label file of at most {walfile.TEXT_LIMIT >> 10} KiB": 1,
        f'"SRPK" ‖ version u16 = {pack.VERSION} ‖': 1,
        f'"SRIX" ‖ version u16 = {segment.VERSION} ‖': 1,
    }
    assert {words: said.count(words) for words in expected} == expected


WIDTHS = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "i64": 8, "16": 16, "32": 32, '"': 2}


@pytest.mark.parametrize(
    ("first", "last", "size"),
    [
        ("start u64", "id 32", content.ROW_SIZE),
        ("kind u8", "content length u32", tree._HEAD.size),
        ("shared u16", "record length u32", tree._STEP.size),
        ("page id 32", "path length u16", tree._INDEX_ROW.size),
        ('"SRPK"', "header length u32", pack._HEAD.size),
        ("session 16 ‖ epoch u32 ‖ length", "u16", pack._SESSION.size),
        ("footer length u32", '"SRPE"', pack.TRAILER.size),
        ('"SRWL"', "header length u32", pack._HEAD.size),
        ('"SRIX"', "replaces u32", segment._HEAD.size),
        ("tree u8", "name 32", segment.PACK_ROW.itemsize),
        ("session u32", "chunks u32", segment.FRAME_ROW.itemsize),
    ],
)
def test_layouts(first: str, last: str, size: int) -> None:
    """The widths that the page gives add up to what the code packs."""
    begin = TEXT.index(first)
    fields = TEXT[begin : TEXT.index(last, begin) + len(last)]
    fields = re.sub(r"= 1|\(1: under trees/\)", "", fields)
    assert sum(WIDTHS[width] for width in re.findall(r'\b(?:[ui]\d+|16|32)\b|"', fields)) == size


def test_the_fields_of_a_snapshot_of_a_keyset_and_of_a_wal_file_are_on_the_page() -> None:
    head = WalHead("", 1, 1, 0, b"", BIRTH, (), b"", 1, "")
    facts = SegmentFacts(1, 0, 0).as_json()
    for name in (*snapshot().body(), *json.loads(golden("reader")), *head.body(), *facts):
        assert f"`{name}`" in TEXT, name


# -- what is on the page is enough -----------------------------------------------------------


def golden(name: str) -> str:
    secrets = json.loads((ROOT / "tests/golden/keys/secrets.json").read_text("utf-8"))
    return str(secrets[name])


def test_a_session_key_opens_by_rfc_9180_and_the_page_alone() -> None:
    private = base64.b64decode(json.loads(golden("reader"))["data_private"])
    sealed = bytes.fromhex(golden("sealed_session_key"))
    info = b"strongroom session key 1" + bytes(range(16)) + (1).to_bytes(4, "little")
    info += bytes(range(0xF0, 0x100))
    ephemeral = sealed[1088:1120]
    curve = X25519PrivateKey.from_private_bytes(private[64:])
    lattice = MLKEM768PrivateKey.from_seed_bytes(private[:64]).decapsulate(sealed[:1088])
    shared = hashlib.sha3_256(
        lattice
        + curve.exchange(X25519PublicKey.from_public_bytes(ephemeral))
        + ephemeral
        + curve.public_key().public_bytes_raw()
        + bytes.fromhex("5c2e2f2f5e5c")
    ).digest()
    suite = b"HPKE-v1HPKE" + bytes.fromhex("647a00010002")

    def extract(salt: bytes, label: bytes, secret: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), suite + label + secret, "sha256")

    def expand(secret: bytes, label: bytes, context: bytes, size: int) -> bytes:
        text = size.to_bytes(2, "big") + suite + label + context
        return hmac.digest(secret, text + b"\1", "sha256")[:size]

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    key, nonce = expand(secret, b"key", context, 32), expand(secret, b"base_nonce", context, 12)
    assert AESGCM(key).decrypt(nonce, sealed[1120:], b"") == b"\xa5" * 32


def test_check_letters_of_a_recovery_code_by_the_page() -> None:
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

    def times(a: int, b: int) -> int:
        product = 0
        for place in range(5):
            product ^= (a << place) * (b >> place & 1)
        for place in range(9, 4, -1):
            product ^= (0b100101 << place - 5) * (product >> place & 1)
        return product

    for group, letters in enumerate(generate_recovery_code().split("-")):
        *values, check = (alphabet.index(letter) for letter in letters)
        total = 0
        for weight, value in zip((2, 3, 4, 5, 6), (*values, group), strict=True):
            total ^= times(weight, value)
        assert total == check


def test_a_key_file_by_the_page() -> None:
    (line,) = [line for line in keyfile.generate_keyfile().splitlines() if line[0] != "#"]
    mark, text = line.split(" ")
    data = base64.b64decode(text)
    assert mark == "STRONGROOM-KEY-1"
    assert data[32:] == blake3(b"strongroom key file 1" + data[:32]).digest(4)


def test_cuts_by_the_page() -> None:
    """One byte at a time, as the page says it, against the chunker in two windows."""
    key, smallest, average, largest = b"k" * 32, 2048, 24 * 1024, 65536
    data = noise("cuts", 400_000) + bytes(100_000) + noise("more", 100_000)
    gear = [
        int.from_bytes(blake3(b"strongroom gear 1" + bytes([b])).digest(4), "little")
        for b in range(256)
    ]
    cuts, last, value = [], 0, 0
    for end, byte in enumerate(data, 1):
        value = (value << 1) + gear[byte] & 0xFFFFFFFF  # what is older than 32 bytes has left it
        chosen = False
        if end - last > smallest and value & 0xFFFE0000 == 0:
            digest = blake3(data[end - 64 : end], key=key).digest(4)
            chosen = int.from_bytes(digest, "little") < 2**32 * 32768 // (average - smallest)
        if chosen or end - last == largest or end == len(data):
            cuts.append(end)
            last = end
    made = chunker.ContentChunker(key, smallest, average, largest).begin()
    first = made.cut(memoryview(data)[:300_000], final=False)
    rest = made.cut(memoryview(data)[first[-1] :], final=True)
    assert [*first, *(first[-1] + end for end in rest)] == cuts
    assert len(cuts) > 10
    assert kernel.WINDOW == 32


# -- promises about what is to come ----------------------------------------------------------


def snapshot() -> Snapshot:
    return Snapshot(
        id="0" * 16,
        source="vault",
        kind="files",
        group="vault",
        session="0" * 32,
        epoch=1,
        started=BIRTH,
        time=BIRTH,
        root=Root(bytes(32), 0, 0),
        facts=b"",
        facts_size=0,
        files=0,
        size=0,
        new_size=0,
        stored=0,
        problems=0,
        writer="origin",
    )


def test_fields_that_a_later_program_signed_are_passed_over() -> None:
    body = snapshot().body()
    assert Snapshot.from_body({**body, "proved": "later"}) == snapshot()


def test_long_paths_and_attributes_do_not_make_pages_longer_than_a_frame_may_be() -> None:
    """Anybody who may write in a vault may nest directories; that must not stop its backups."""
    files: dict[bytes, Entry | bytes] = {}
    path = b""
    for number in range(640):
        path += b"/" * bool(path) + b"%03d" % number + b"d" * 96
        files[path] = Entry(b"", Kind.DIRECTORY, mode=0o700)
    heavy = Entry(b"", Kind.DIRECTORY, xattrs=((b"user.x", bytes(65536)),) * 8)
    files |= {b"x%03d" % number: heavy for number in range(70)}
    repository = new_room(MemoryStorage())
    report = take(repository, "vault", files)
    assert restore(repository, report.snapshot) == as_read(files)
    entries = list(repository.open_snapshot(report.snapshot).entries())
    assert entries[-1] == replace(heavy, path=b"x069")
