"""How every local holder wraps: a fresh key-encryption key, AES-256-GCM, everything public bound.

    kek       from the holder's secret and a fresh 32-byte salt
    body      nonce 12 ‖ AES-256-GCM(material)
    bound     canonical JSON of {kind, parameters} ‖ line feed ‖ context     (additional data)

Canonical JSON holds no line feed, so the two parts cannot run into each other.
The salt is fresh for each stanza, so a key-encryption key seals once; the
random nonce is a second guard. Holders of high entropy (key file, recovery
code) derive by HKDF-SHA256; a guess at them is hopeless at any price.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from strongroom.errors import KeyRefused
from strongroom.format.record import canonical
from strongroom.keys.base import Stanza

SALT = 32
_NONCE, _TAG = 12, 16

Parameters = Mapping[str, str | int]
Random = Callable[[int], bytes]


def seal(
    kek: bytes,
    material: bytes,
    *,
    kind: str,
    parameters: Parameters,
    context: bytes,
    random: Random,
) -> Stanza:
    """Wrap `material` with a key that was derived for this stanza alone."""
    nonce = random(_NONCE)
    sealed = AESGCM(kek).encrypt(nonce, material, _bound(kind, parameters, context))
    return Stanza(kind, dict(parameters), nonce + sealed)


def open_stanza(kek: bytes, stanza: Stanza, *, context: bytes, refusal: str) -> bytes:
    """Return the material; KeyRefused with `refusal` when key, stanza or context is another."""
    if len(stanza.body) < _NONCE + _TAG:
        raise KeyRefused("The wrapped key is cut short.")
    bound = _bound(stanza.kind, stanza.parameters, context)
    try:
        return AESGCM(kek).decrypt(stanza.body[:_NONCE], stanza.body[_NONCE:], bound)
    except InvalidTag as error:
        raise KeyRefused(refusal) from error


def check_form(stanza: Stanza, kind: str, parameters: set[str]) -> None:
    """Refuse a stanza of another kind, or with other parameters than `parameters`."""
    if stanza.kind != kind:
        raise KeyRefused(f"The key slot is for a {stanza.kind!r} holder, not a {kind!r} holder.")
    if set(stanza.parameters) != parameters:
        raise KeyRefused(f"The key slot does not carry the parameters of a {kind!r} holder.")


def encode_salt(salt: bytes) -> str:
    """Write a salt as a parameter."""
    return base64.b64encode(salt).decode()


def read_salt(stanza: Stanza) -> bytes:
    """Return the 32-byte salt of a stanza; KeyRefused when it is not one."""
    text = stanza.parameters.get("salt")
    try:
        salt = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError) as error:
        raise KeyRefused("The key slot's salt is not base64.") from error
    if len(salt) != SALT:
        raise KeyRefused(f"The key slot's salt is not {SALT} bytes in base64.")
    return salt


@dataclass(frozen=True, slots=True)
class SecretEnvelope:
    """Wrapping by a secret of high entropy: key-encryption key = HKDF-SHA256(secret, salt, label).

    `label` tells the kinds apart, `refusal` is what to say when the secret does not fit.
    """

    kind: str
    label: bytes
    refusal: str
    secret: bytes = field(repr=False)
    random: Random = field(repr=False)

    def wrap(self, material: bytes, context: bytes) -> Stanza:
        """Wrap `material` under a fresh salt."""
        salt = self.random(SALT)
        return seal(
            self._kek(salt),
            material,
            kind=self.kind,
            parameters={"salt": encode_salt(salt)},
            context=context,
            random=self.random,
        )

    def unwrap(self, stanza: Stanza, context: bytes) -> bytes:
        """Return the material, or refuse."""
        check_form(stanza, self.kind, {"salt"})
        kek = self._kek(read_salt(stanza))
        return open_stanza(kek, stanza, context=context, refusal=self.refusal)

    def _kek(self, salt: bytes) -> bytes:
        return HKDF(algorithm=SHA256(), length=32, salt=salt, info=self.label).derive(self.secret)


def _bound(kind: str, parameters: Parameters, context: bytes) -> bytes:
    return canonical({"kind": kind, "parameters": dict(parameters)}) + b"\n" + context
