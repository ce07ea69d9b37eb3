"""The keys of a role, for one epoch of one repository, and what they do.

    id key          chunk ids and the chunker; the same for the life of the repository
    catalogue key   index, refs and records; one per epoch
    data key pair   HPKE, ML-KEM-768 with X25519 (X-Wing, KEM 0x647a), HKDF-SHA256, AES-256-GCM;
                    public: ML-KEM 1184 ‖ X25519 32     private: ML-KEM seed 64 ‖ X25519 32
    admin key pair  Ed25519; certifies writers
    signing key     Ed25519, the writer's own; certificate = admin's signature over
                    "strongroom writer 1" ‖ repository 16 ‖ epoch u32 ‖ signing public 32 ‖ name

A writer holds no data private key and no admin private key: it cannot read
file data, its own included, and cannot make other writers.

At rest a keyset is canonical JSON (sorted keys, no white space, byte strings
in base64, absent keys null), wrapped by a key holder. Nothing here draws
randomness or reads a clock, but `seal_session_key`: HPKE takes its ephemeral
key from the library's own generator, so it seals the same key differently
each time. Integers in byte strings are little endian.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from strongroom.errors import KeyRefused

READER, WRITER = "reader", "writer"
SEALED_SESSION_KEY_SIZE = 1168  # encapsulation 1120 ‖ key 32 ‖ tag 16
NAME_LIMIT = 200

_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_MLKEM_PUBLIC, _MLKEM_SEED = 1184, 64
_VERSION = 1
_SIZES = {
    "repository": 16,
    "id_key": 32,
    "catalogue_key": 32,
    "data_public": _MLKEM_PUBLIC + 32,
    "data_private": _MLKEM_SEED + 32,
    "admin_public": 32,
    "admin_private": 32,
    "signing_private": 32,
    "signing_public": 32,
    "certificate": 64,
}
_READERS_ONLY = ("data_private", "admin_private")

Random = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Keyset:
    """The keys of one role in one epoch; one that exists is coherent.

    ValueError when a part is missing, has a wrong length, does not belong to its other half or
    does not belong to the role.
    """

    repository: bytes
    epoch: int
    role: str
    writer_name: str
    id_key: bytes = field(repr=False)
    catalogue_key: bytes = field(repr=False)
    data_public: bytes = field(repr=False)
    data_private: bytes | None = field(repr=False)
    admin_public: bytes = field(repr=False)
    admin_private: bytes | None = field(repr=False)
    signing_private: bytes = field(repr=False)
    signing_public: bytes = field(repr=False)
    certificate: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _check_shape(self)
        _check_halves(self)

    @property
    def reads(self) -> bool:
        """True when these keys open file data."""
        return self.role == READER

    def encode(self) -> bytes:
        """Return the keyset as canonical JSON. This is secret: hand it to a key holder only."""
        document: dict[str, Any] = {
            name: None if (part := getattr(self, name)) is None else base64.b64encode(part).decode()
            for name in _SIZES
        }
        document |= {
            "version": _VERSION,
            "epoch": self.epoch,
            "role": self.role,
            "writer_name": self.writer_name,
        }
        return _canonical(document)


def decode(data: bytes) -> Keyset:
    """Read what `Keyset.encode` wrote; ValueError on anything else, down to a space."""
    try:
        document = json.loads(data)
        if not isinstance(document, dict) or document.pop("version", None) != _VERSION:
            raise ValueError("not a keyset of version 1")
        for name in _SIZES:
            if document[name] is not None:
                document[name] = base64.b64decode(document[name], validate=True)
        keyset = Keyset(**document)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("not a keyset") from error
    if keyset.encode() != data:
        raise ValueError("not a keyset in canonical form")
    return keyset


def generate(repository: bytes, epoch: int, writer_name: str, *, random: Random) -> Keyset:
    """Make the reader's keyset of a new repository (16-byte id).

    `random(n)` returns n secret random bytes; it is called for the id key, the catalogue key, the
    ML-KEM seed, the X25519, the admin and the signing key, in this order.
    """
    id_key, catalogue_key = random(32), random(32)
    data_private = random(_MLKEM_SEED) + random(32)
    admin_private, signing_private = random(32), random(32)
    signing_public = _ed25519_public(signing_private)
    message = _certified(repository, epoch, writer_name, signing_public)
    return Keyset(
        repository=repository,
        epoch=epoch,
        role=READER,
        writer_name=writer_name,
        id_key=id_key,
        catalogue_key=catalogue_key,
        data_public=_data_public(data_private),
        data_private=data_private,
        admin_public=_ed25519_public(admin_private),
        admin_private=admin_private,
        signing_private=signing_private,
        signing_public=signing_public,
        certificate=Ed25519PrivateKey.from_private_bytes(admin_private).sign(message),
    )


def for_writer(keyset: Keyset, writer_name: str, *, random: Random) -> Keyset:
    """Derive the keys of a writer from a reader's: its own signing key, nothing that reads.

    KeyRefused when `keyset` is itself a writer's. `random` is called once, for 32 bytes.
    """
    if keyset.admin_private is None:
        raise KeyRefused(
            "These keys belong to a writer; they cannot make keys for another one.",
            do="Open the repository as a reader (its passphrase or the recovery code).",
        )
    signing_private = random(32)
    signing_public = _ed25519_public(signing_private)
    message = _certified(keyset.repository, keyset.epoch, writer_name, signing_public)
    return Keyset(
        repository=keyset.repository,
        epoch=keyset.epoch,
        role=WRITER,
        writer_name=writer_name,
        id_key=keyset.id_key,
        catalogue_key=keyset.catalogue_key,
        data_public=keyset.data_public,
        data_private=None,
        admin_public=keyset.admin_public,
        admin_private=None,
        signing_private=signing_private,
        signing_public=signing_public,
        certificate=Ed25519PrivateKey.from_private_bytes(keyset.admin_private).sign(message),
    )


def seal_session_key(keyset: Keyset, session: bytes, session_key: bytes) -> bytes:
    """Seal a 32-byte session key for the readers; 1168 bytes, different at each call.

    `session` is the 16-byte session id; it is bound, not stored.
    """
    if len(session_key) != 32:
        raise ValueError("a session key has 32 bytes")
    public = hpke.MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(keyset.data_public[:_MLKEM_PUBLIC]),
        X25519PublicKey.from_public_bytes(keyset.data_public[_MLKEM_PUBLIC:]),
    )
    return _SUITE.encrypt(session_key, public, info=_session_info(keyset, session))


def open_session_key(keyset: Keyset, session: bytes, sealed: bytes) -> bytes:
    """Return the 32-byte session key.

    KeyRefused when these keys cannot read; ValueError when `sealed` is damaged or was sealed for
    another repository, epoch or session.
    """
    if keyset.data_private is None:
        raise KeyRefused(
            "These keys belong to a writer; they cannot read what is in the repository.",
            means="The repository is untouched; a reader's key opens it.",
            do="Use a reader's passphrase, key file or recovery code.",
        )
    if len(sealed) != SEALED_SESSION_KEY_SIZE:
        raise ValueError(f"a sealed session key has {SEALED_SESSION_KEY_SIZE} bytes")
    private = _data_pair(keyset.data_private)
    try:
        opened = _SUITE.decrypt(sealed, private, info=_session_info(keyset, session))
    except InvalidTag as error:
        raise ValueError("the sealed session key does not open") from error
    if len(opened) != 32:
        raise ValueError("a session key has 32 bytes")
    return opened


def sign(keyset: Keyset, message: bytes) -> bytes:
    """Sign as this writer (Ed25519, 64 bytes). `message` begins with a label of its own type."""
    return Ed25519PrivateKey.from_private_bytes(keyset.signing_private).sign(message)


def verify(
    admin_public: bytes,
    repository: bytes,
    epoch: int,
    *,
    writer_name: str,
    signing_public: bytes,
    certificate: bytes,
    signature: bytes,
    message: bytes,
) -> None:
    """Check that a writer whom the admin certified signed `message`; ValueError when not."""
    _certify(admin_public, certificate, _certified(repository, epoch, writer_name, signing_public))
    _verify(signing_public, signature, message, "the signature is not the writer's")


def subkey(catalogue_key: bytes, purpose: bytes) -> bytes:
    """Derive the 32-byte key of one type of catalogue object."""
    return blake3(b"strongroom catalogue 1 " + purpose, key=catalogue_key).digest()


def chunk_key(id_key: bytes, kind: bytes) -> bytes:
    """Derive the 32-byte key for the ids of one kind of chunk, or for the chunker."""
    return blake3(b"strongroom chunk id 1 " + kind, key=id_key).digest()


def check_name(name: str) -> str:
    """Return a writer's or slot's name; ValueError when it is empty, long or not printable."""
    if not name or not name.isprintable() or len(name.encode()) > NAME_LIMIT:
        raise ValueError(f"a name is 1 to {NAME_LIMIT} bytes of printable text")
    return name


def _check_shape(keyset: Keyset) -> None:
    if type(keyset.epoch) is not int or not 1 <= keyset.epoch < 2**32:
        raise ValueError("an epoch is a number from 1")
    if keyset.role not in (READER, WRITER):
        raise ValueError("a role is reader or writer")
    if not isinstance(keyset.writer_name, str):
        raise ValueError("a writer's name is text")
    check_name(keyset.writer_name)
    for name, size in _SIZES.items():
        part = getattr(keyset, name)
        if name in _READERS_ONLY and keyset.role == WRITER:
            if part is not None:
                raise ValueError(f"a writer holds no {name}")
        elif not isinstance(part, bytes) or len(part) != size:
            raise ValueError(f"{name} has {size} bytes")


def _check_halves(keyset: Keyset) -> None:
    pairs = [(keyset.signing_public, _ed25519_public(keyset.signing_private))]
    if keyset.data_private is not None:
        pairs.append((keyset.data_public, _data_public(keyset.data_private)))
    if keyset.admin_private is not None:
        pairs.append((keyset.admin_public, _ed25519_public(keyset.admin_private)))
    if any(given != derived for given, derived in pairs):
        raise ValueError("a public key is not that of its private key")
    _certify(
        keyset.admin_public,
        keyset.certificate,
        _certified(keyset.repository, keyset.epoch, keyset.writer_name, keyset.signing_public),
    )


def _certified(repository: bytes, epoch: int, writer_name: str, signing_public: bytes) -> bytes:
    if not 1 <= epoch < 2**32:
        raise ValueError("an epoch is a number from 1")
    number = epoch.to_bytes(4, "little")
    return b"strongroom writer 1" + repository + number + signing_public + writer_name.encode()


@lru_cache(256)  # few writers sign many things
def _certify(admin_public: bytes, certificate: bytes, certified: bytes) -> None:
    otherwise = "the writer's certificate is not the repository's"
    _verify(admin_public, certificate, certified, otherwise)


def _verify(public: bytes, signature: bytes, message: bytes, otherwise: str) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except InvalidSignature as error:
        raise ValueError(otherwise) from error


def _ed25519_public(private: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def _data_pair(private: bytes) -> hpke.MLKEM768X25519PrivateKey:
    return hpke.MLKEM768X25519PrivateKey(
        MLKEM768PrivateKey.from_seed_bytes(private[:_MLKEM_SEED]),
        X25519PrivateKey.from_private_bytes(private[_MLKEM_SEED:]),
    )


def _data_public(private: bytes) -> bytes:
    lattice = MLKEM768PrivateKey.from_seed_bytes(private[:_MLKEM_SEED]).public_key()
    curve = X25519PrivateKey.from_private_bytes(private[_MLKEM_SEED:]).public_key()
    return lattice.public_bytes_raw() + curve.public_bytes_raw()


def _session_info(keyset: Keyset, session: bytes) -> bytes:
    number = keyset.epoch.to_bytes(4, "little")
    return b"strongroom session key 1" + keyset.repository + number + session


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
