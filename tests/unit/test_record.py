"""Sealed records: each opens under its own name, kind and repository, and nowhere else."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import Damaged
from strongroom.format import record
from strongroom.format.keyset import subkey
from strongroom.format.record import RecordKey

REPOSITORY, CATALOGUE = b"r" * 16, b"c" * 32
KEY = RecordKey(REPOSITORY, CATALOGUE)
NONCE = b"n" * 12


@given(st.binary(max_size=2000), st.sampled_from([1, 256, 1024, 4096]))
def test_round_trip_and_padding(body: bytes, pad: int) -> None:
    sealed = KEY.seal(record.REFS, "refs/a/b", body, nonce=NONCE, pad=pad)
    assert KEY.open(sealed, "refs/a/b", record.REFS) == (record.REFS, body)
    assert KEY.open(memoryview(sealed), "refs/a/b", record.GC, record.REFS)[1] == body
    assert (len(sealed) - 20 - record.TAG) % pad == 0


SEALED = KEY.seal(record.SNAPSHOT, "snapshots/a/1", b"{}", nonce=NONCE, pad=32)


@pytest.mark.parametrize(
    ("key", "name", "kind"),
    [
        (KEY, "snapshots/a/2", record.SNAPSHOT),
        (KEY, "snapshots/a/1", record.TOMBSTONE),
        (RecordKey(b"q" * 16, CATALOGUE), "snapshots/a/1", record.SNAPSHOT),
        (RecordKey(REPOSITORY, b"d" * 32), "snapshots/a/1", record.SNAPSHOT),
    ],
)
def test_a_record_stands_in_for_no_other(key: RecordKey, name: str, kind: bytes) -> None:
    with pytest.raises(ValueError):
        key.open(SEALED, name, kind)


def test_a_kind_is_authenticated() -> None:
    as_tombstone = SEALED[:4] + record.TOMBSTONE + SEALED[8:]
    with pytest.raises(ValueError):
        KEY.open(as_tombstone, "snapshots/a/1", record.SNAPSHOT, record.TOMBSTONE)


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    for at in range(len(SEALED)):
        for bit in range(8):
            changed = bytearray(SEALED)
            changed[at] ^= 1 << bit
            with pytest.raises(ValueError):
                KEY.open(changed, "snapshots/a/1", record.SNAPSHOT)
        with pytest.raises(ValueError):
            KEY.open(SEALED[:at], "snapshots/a/1", record.SNAPSHOT)


@pytest.mark.parametrize("padded", [b"", b"\1", b"\1\0\0", b"\5\0\0\0abcd"])
def test_what_a_holder_of_the_key_seals_badly_is_refused(padded: bytes) -> None:
    cipher = AESGCM(subkey(CATALOGUE, record.GC))
    context = REPOSITORY + record.GC + b"gc/1.done"
    data = record.MAGIC + record.GC + NONCE + cipher.encrypt(NONCE, padded, context)
    with pytest.raises(ValueError):
        KEY.open(data, "gc/1.done", record.GC)


class Corrupting:
    """A cipher that spoils what it encrypts, as a bad memory chip would."""

    def __init__(self, key: bytes) -> None:
        self._inner = AESGCM(key)

    def encrypt(self, nonce: bytes, data: bytes, context: bytes) -> bytes:
        sealed = bytearray(self._inner.encrypt(nonce, data, context))
        sealed[len(sealed) // 2] ^= 4
        return bytes(sealed)

    def decrypt(self, nonce: bytes, data: bytes, context: bytes) -> bytes:
        return self._inner.decrypt(nonce, data, context)


def test_a_corrupting_cipher_seals_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "AESGCM", Corrupting)
    with pytest.raises(Damaged):
        RecordKey(REPOSITORY, CATALOGUE).seal(record.GC, "gc/1.done", b"{}", nonce=NONCE)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_value_error(data: bytes) -> None:
    for raw in (data, record.MAGIC + record.GC + data):
        with pytest.raises(ValueError):
            KEY.open(raw, "gc/1.done", record.GC)


def test_canonical_json_is_one_text() -> None:
    assert record.canonical({"b": 1, "a": ["ä", None]}) == '{"a":["ä",null],"b":1}'.encode()
