"""strongroom.json: what a repository is. Plain, signed, written last at `init`.

It carries nothing secret. The signature is the admin's, whose public key a
holder of any role finds in its own keyset, so that a changed identity is
noticed by everyone who can open the repository at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from strongroom.errors import ConfigError, Damaged, NotFound, ObjectMissing
from strongroom.format.chunker import ContentChunker
from strongroom.format.record import canonical
from strongroom.storage.base import Capabilities, Storage

NAME = "strongroom.json"
FORMAT = 1
_DOMAIN = b"strongroom identity 1"


@dataclass(frozen=True, slots=True)
class Identity:
    """Format version, id (16 bytes), birth, chunk sizes in bytes, what the store can do."""

    id: bytes
    created: datetime
    smallest: int
    average: int
    largest: int
    capabilities: Capabilities
    admin_public: bytes

    def chunker(self, key: bytes) -> ContentChunker:
        """The content-defined chunker of this repository."""
        return ContentChunker(key, self.smallest, self.average, self.largest)

    def body(self) -> dict[str, Any]:
        """The identity as JSON values, without its signature."""
        return {
            "format": FORMAT,
            "id": self.id.hex(),
            "created": self.created.isoformat(),
            "chunker": [self.smallest, self.average, self.largest],
            "put_if_absent": self.capabilities.put_if_absent,
            "read_after_write": self.capabilities.read_after_write,
            "list_sorted": self.capabilities.list_sorted,
            "admin": self.admin_public.hex(),
        }


def encode(identity: Identity, admin_private: bytes) -> bytes:
    """Sign and encode."""
    body = identity.body()
    key = Ed25519PrivateKey.from_private_bytes(admin_private)
    return canonical({**body, "signature": key.sign(_DOMAIN + canonical(body)).hex()})


def decode(data: bytes) -> Identity:
    """Read an identity and check its own signature; Damaged when it does not hold."""
    try:
        document = json.loads(data)
        if canonical(document) != data:
            raise ValueError("it is not as it was written")
        return _from_document(document)
    except (ValueError, KeyError, TypeError, InvalidSignature) as fault:
        raise Damaged(
            f"The object {NAME} is damaged: {fault or 'its signature does not hold'}.",
            means="The data may be whole, but the repository cannot be identified with certainty.",
            do=f"Bring {NAME} back from a copy of the repository; it never changes after `init`.",
        ) from None


def _from_document(document: Mapping[str, Any]) -> Identity:
    if document["format"] != FORMAT:
        raise ConfigError(
            f"The repository has format {document['format']}; this program reads {FORMAT}.",
            do="Install a newer strongroom.",
        )
    body = dict(document)
    signature = bytes.fromhex(body["signature"])
    if body.pop("signature") != signature.hex():  # it signs all of it but how it is written itself
        raise ValueError("its signature is not as it was written")
    admin = bytes.fromhex(body["admin"])
    Ed25519PublicKey.from_public_bytes(admin).verify(signature, _DOMAIN + canonical(body))
    smallest, average, largest = body["chunker"]
    return Identity(
        bytes.fromhex(body["id"]),
        datetime.fromisoformat(body["created"]),
        smallest=smallest,
        average=average,
        largest=largest,
        capabilities=Capabilities(
            body["put_if_absent"], body["read_after_write"], body["list_sorted"]
        ),
        admin_public=admin,
    )


def load(storage: Storage) -> Identity:
    """Read the identity; NotFound when there is no repository here."""
    try:
        data = storage.get(NAME)
    except ObjectMissing:
        raise NotFound(
            f"There is no repository at {storage.url}.",
            do="Check the address, or create one with `strongroom init`.",
        ) from None
    return decode(data)
