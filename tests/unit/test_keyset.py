"""Keysets: what is derived, what round-trips, what is refused, and what a writer cannot do."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import KeyRefused
from strongroom.format import keyset as keysets
from strongroom.format.keyset import Keyset

REPOSITORY = bytes(range(16))
SESSION = b"s" * 16
SECRET = b"k" * 32
SECRET_PARTS = ("id_key", "catalogue_key", "data_private", "admin_private", "signing_private")


def seeded(seed: bytes) -> Callable[[int], bytes]:
    """A stream of bytes that depends on `seed` alone."""
    stream, at = blake3(seed), 0

    def random(size: int) -> bytes:
        nonlocal at
        at += size
        return stream.digest(size, seek=at - size)

    return random


READER = keysets.generate(REPOSITORY, 1, "origin", random=seeded(b"reader"))
WRITER = keysets.for_writer(READER, "host-a", random=seeded(b"writer"))
OTHER = keysets.generate(REPOSITORY, 1, "origin", random=seeded(b"other"))


@pytest.mark.parametrize("keyset", [READER, WRITER], ids=["reader", "writer"])
def test_keysets_come_back_as_they_were(keyset: Keyset) -> None:
    assert keysets.decode(keyset.encode()) == keyset


@given(
    seed=st.binary(max_size=8),
    repository=st.binary(min_size=16, max_size=16),
    epoch=st.integers(1, 2**32 - 1),
    name=st.text(min_size=1, max_size=40).filter(str.isprintable),
)
def test_any_keyset_comes_back(seed: bytes, repository: bytes, epoch: int, name: str) -> None:
    reader = keysets.generate(repository, epoch, name, random=seeded(seed))
    writer = keysets.for_writer(reader, name, random=seeded(seed + b"w"))
    assert keysets.decode(reader.encode()) == reader
    assert keysets.decode(writer.encode()) == writer
    sealed = keysets.seal_session_key(writer, SESSION, SECRET)
    assert keysets.open_session_key(reader, SESSION, sealed) == SECRET


def test_a_writer_shares_what_deduplicates_and_nothing_that_reads() -> None:
    assert (WRITER.id_key, WRITER.catalogue_key) == (READER.id_key, READER.catalogue_key)
    assert WRITER.data_public == READER.data_public
    assert WRITER.data_private is None
    assert WRITER.admin_private is None
    assert WRITER.signing_private != READER.signing_private
    assert (READER.reads, WRITER.reads) == (True, False)


def test_a_writers_encoding_contains_no_secret_that_reads() -> None:
    encoded = WRITER.encode()
    assert READER.data_private is not None and READER.admin_private is not None
    secrets = [
        READER.data_private[:64],
        READER.data_private[64:],
        READER.admin_private,
        READER.signing_private,
    ]
    for secret in secrets:
        for shift in range(3):
            inner = base64.b64encode(secret[shift:])[4:-4]
            assert inner not in encoded


@pytest.mark.parametrize("keyset", [READER, WRITER], ids=["reader", "writer"])
def test_no_secret_shows_in_a_repr(keyset: Keyset) -> None:
    shown = repr(keyset)
    for name in SECRET_PARTS:
        part = getattr(keyset, name)
        if part is not None:
            assert repr(part)[2:20] not in shown
            assert part.hex() not in shown


def test_every_secret_part_is_a_field() -> None:
    assert set(SECRET_PARTS) < {field.name for field in fields(Keyset)}


def test_a_writer_cannot_open_what_it_sealed() -> None:
    sealed = keysets.seal_session_key(WRITER, SESSION, SECRET)
    with pytest.raises(KeyRefused, match="cannot read"):
        keysets.open_session_key(WRITER, SESSION, sealed)
    assert keysets.open_session_key(READER, SESSION, sealed) == SECRET


def test_a_writer_that_invents_private_keys_is_no_reader() -> None:
    with pytest.raises(ValueError, match="not that of its private key"):
        replace(
            WRITER,
            role="reader",
            data_private=OTHER.data_private,
            admin_private=OTHER.admin_private,
        )


def test_a_writer_cannot_make_writers() -> None:
    with pytest.raises(KeyRefused, match="writer"):
        keysets.for_writer(WRITER, "host-b", random=seeded(b"x"))


def test_sealing_is_different_each_time_and_of_one_size() -> None:
    first, second = (keysets.seal_session_key(WRITER, SESSION, SECRET) for _ in range(2))
    assert first != second
    assert len(first) == len(second) == keysets.SEALED_SESSION_KEY_SIZE


def test_a_sealed_key_belongs_to_repository_epoch_and_session() -> None:
    sealed = keysets.seal_session_key(READER, SESSION, SECRET)
    elsewhere = keysets.generate(bytes(16), 1, "origin", random=seeded(b"reader"))
    later = keysets.generate(REPOSITORY, 2, "origin", random=seeded(b"reader"))
    assert elsewhere.data_private == later.data_private == READER.data_private
    for keyset, session in [
        (READER, b"t" * 16),
        (elsewhere, SESSION),
        (later, SESSION),
        (OTHER, SESSION),
    ]:
        with pytest.raises(ValueError, match="does not open"):
            keysets.open_session_key(keyset, session, sealed)


def test_every_damaged_sealed_key_is_refused() -> None:
    sealed = keysets.seal_session_key(READER, SESSION, SECRET)
    for at in range(len(sealed)):
        damaged = bytearray(sealed)
        damaged[at] ^= 1 << at % 8
        # The X25519 share's top bit is not part of the point, but HPKE binds the whole share.
        with pytest.raises(ValueError):
            keysets.open_session_key(READER, SESSION, bytes(damaged))
    for wrong in (b"", sealed[:-1], sealed + b"\0", bytes(len(sealed))):
        with pytest.raises(ValueError):
            keysets.open_session_key(READER, SESSION, wrong)


def test_a_session_key_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32"):
        keysets.seal_session_key(READER, SESSION, b"short")


def accepts(**changed: object) -> bool:
    """Verify a writer's signature on b"snapshot", with some of the parts changed."""
    parts: dict[str, object] = {
        "writer_name": WRITER.writer_name,
        "signing_public": WRITER.signing_public,
        "certificate": WRITER.certificate,
        "signature": keysets.sign(WRITER, b"snapshot"),
        "message": b"snapshot",
        "admin_public": READER.admin_public,
        "repository": REPOSITORY,
        "epoch": 1,
    } | changed
    try:
        keysets.verify(**parts)  # type: ignore[arg-type]
    except ValueError:
        return False
    return True


def test_a_certified_signature_is_accepted() -> None:
    assert accepts()
    assert accepts(
        writer_name=READER.writer_name,
        signing_public=READER.signing_public,
        certificate=READER.certificate,
        signature=keysets.sign(READER, b"snapshot"),
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"writer_name": "host-b"},
        {"writer_name": "\ud800"},
        {"signing_public": READER.signing_public},
        {"signing_public": b""},
        {"signing_public": WRITER.signing_public + b"h", "writer_name": "ost-a"},
        {"certificate": READER.certificate},
        {"certificate": b""},
        {"signature": keysets.sign(READER, b"snapshot")},
        {"signature": b""},
        {"message": b"another"},
        {"admin_public": OTHER.admin_public},
        {"repository": bytes(16)},
        {"epoch": 2},
        {"epoch": 0},
        {"epoch": 2**32},
        {"epoch": -1},
    ],
)
def test_a_signature_that_is_not_the_writers_is_refused(changed: dict[str, object]) -> None:
    assert not accepts(**changed)


def test_a_writer_cannot_certify_itself_under_another_name() -> None:
    with pytest.raises(ValueError, match="certificate"):
        replace(WRITER, writer_name="host-b")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("repository", b"short"),
        ("repository", REPOSITORY.hex()),
        ("epoch", 0),
        ("epoch", 2**32),
        ("epoch", True),
        ("role", "admin"),
        ("role", "writer"),
        ("writer_name", ""),
        ("writer_name", "line\nfeed"),
        ("writer_name", "n" * 201),
        ("writer_name", "\ud800"),
        ("id_key", bytes(31)),
        ("catalogue_key", None),
        ("data_public", OTHER.data_public),
        ("data_private", None),
        ("data_private", OTHER.data_private),
        ("admin_public", OTHER.admin_public),
        ("admin_private", None),
        ("admin_private", OTHER.admin_private),
        ("signing_private", OTHER.signing_private),
        ("signing_public", OTHER.signing_public),
        ("certificate", WRITER.certificate),
    ],
)
def test_an_incoherent_keyset_cannot_exist(field: str, value: object) -> None:
    with pytest.raises(ValueError):
        replace(READER, **{field: value})  # type: ignore[arg-type]


def tampered() -> list[bytes]:
    encoded = READER.encode()
    document = json.loads(encoded)

    def dump(changed: object) -> bytes:
        return json.dumps(changed, sort_keys=True, separators=(",", ":")).encode()

    return [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        encoded[:-1],
        encoded + b"\n",
        json.dumps(document).encode(),
        encoded.decode().encode("utf-16"),
        encoded.replace(b'"epoch":1', b'"epoch":1,"epoch":1'),
        encoded.replace(b'"epoch":1', b'"epoch":1.0'),
        encoded.replace(b'"epoch":1', b'"epoch":true'),
        encoded.replace(b'"epoch":1', b'"epoch":' + b"9" * 5000),
        encoded.replace(b'"version":1', b'"version":2'),
        encoded.replace(b'"version":1', b'"version":true'),
        dump(document | {"extra": 1}),
        dump({name: value for name, value in document.items() if name != "id_key"}),
        dump({name: value for name, value in document.items() if name != "version"}),
        dump(document | {"id_key": 5}),
        dump(document | {"id_key": document["id_key"] + "="}),
        dump(document | {"id_key": document["id_key"][:-1]}),
        dump(document | {"id_key": "*" * 44}),
        dump(document | {"data_private": None}),
        dump(document | {"writer_name": 7}),
        dump(document | {"role": "writer"}),
    ]


@pytest.mark.parametrize("data", tampered())
def test_anything_odd_is_no_keyset(data: bytes) -> None:
    with pytest.raises(ValueError):
        keysets.decode(data)


@given(st.integers(0, len(READER.encode()) - 1), st.integers(0, 7))
def test_a_flipped_bit_never_decodes_to_the_same_keys(at: int, bit: int) -> None:
    data = bytearray(READER.encode())
    data[at] ^= 1 << bit
    with suppress(ValueError):  # refused: the usual end
        assert keysets.decode(bytes(data)) != READER


def test_generation_is_a_function_of_its_randomness() -> None:
    again = keysets.generate(REPOSITORY, 1, "origin", random=seeded(b"reader"))
    assert again == READER
    assert again != OTHER


def test_subkeys_differ_by_purpose_and_from_chunk_keys() -> None:
    key = bytes(32)
    derived = {
        keysets.subkey(key, b"snap"),
        keysets.subkey(key, b"refs"),
        keysets.chunk_key(key, b"snap"),
        keysets.chunk_key(key, b"refs"),
        keysets.subkey(b"\1" * 32, b"snap"),
    }
    assert len(derived) == 5
    assert {len(part) for part in derived} == {32}
    assert keysets.subkey(key, b"snap") == blake3(b"strongroom catalogue 1 snap", key=key).digest()
    assert keysets.chunk_key(key, b"x") == blake3(b"strongroom chunk id 1 x", key=key).digest()
