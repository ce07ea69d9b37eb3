"""What stands beside an artefact: its checksum, its manifest and the manifest's signature.

    NAME.sha256         "HEX  NAME\\n", for `sha256sum -c`
    NAME.manifest       canonical JSON (sorted keys, no white space, UTF-8), as `Manifest` has it
    NAME.manifest.sig   Ed25519 over the manifest's bytes, 64 bytes, by the repository's writer

The writer's key is the one that signs snapshots. What it signs there begins with a label
("strongroom …"), a manifest with `{"artefact":"strongroom artefact 1"`: neither passes for the
other. The manifest carries the admin's certificate of the writer, so that whoever has the
repository's identity trusts every writer of it; others pin the public key.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from strongroom.errors import ConfigError, Damaged, Refused
from strongroom.format import keyset as keysets
from strongroom.format.keyset import Keyset
from strongroom.format.record import canonical

MARK = "strongroom artefact 1"
MAX_SIZE = 1024 * 1024
_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FIELDS = frozenset(
    [
        "artefact",
        "created",
        "file",
        "format",
        "key",
        "name",
        "plain",
        "signer",
        "snapshot",
        "source",
        "tools",
    ]
)


@dataclass(frozen=True, slots=True)
class Counted:
    """Bytes that went by: how many, and their SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of an artefact. `plain` is the tar or the dump, `file` the file itself."""

    name: str
    format: str
    created: str
    plain: Counted
    file: Counted
    source: Mapping[str, Any]
    snapshot: Mapping[str, Any]
    key: Mapping[str, Any]
    tools: Mapping[str, str]
    signer: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The manifest as canonical JSON."""
        return canonical(
            {
                "artefact": MARK,
                "created": self.created,
                "file": {"sha256": self.file.sha256, "size": self.file.size},
                "format": self.format,
                "key": dict(self.key),
                "name": self.name,
                "plain": {"sha256": self.plain.sha256, "size": self.plain.size},
                "signer": dict(self.signer),
                "snapshot": dict(self.snapshot),
                "source": dict(self.source),
                "tools": dict(self.tools),
            }
        )


def decode(data: bytes) -> Manifest:
    """Read what `Manifest.encode` wrote; Damaged on anything else."""
    try:
        document = json.loads(data)
        if not isinstance(document, dict) or set(document) != _FIELDS:
            raise ValueError("its fields are others")
        if document.pop("artefact") != MARK:
            raise ValueError("it is of another version")
        counted = {name: _counted(document.pop(name)) for name in ("plain", "file")}
        if not all(isinstance(document[name], str) for name in ("name", "format", "created")):
            raise ValueError("its name is no text")
        groups = ("source", "snapshot", "key", "tools", "signer")
        if not all(isinstance(document[name], dict) for name in groups):
            raise ValueError("a group of it is none")
        manifest = Manifest(**document, plain=counted["plain"], file=counted["file"])
        if manifest.encode() != data:
            raise ValueError("it is not in canonical form")
    except (ValueError, TypeError, KeyError, RecursionError) as fault:
        raise Damaged(
            f"The manifest cannot be read: {fault}.",
            means="Nothing was written.",
            do="Fetch artefact and manifest again from where they were made.",
        ) from None
    return manifest


def _counted(value: Any) -> Counted:
    if not isinstance(value, dict) or set(value) != {"sha256", "size"}:
        raise ValueError("a size or checksum is missing")
    size, digest = value["size"], value["sha256"]
    if type(size) is not int or size < 0 or not isinstance(digest, str):
        raise ValueError("a size is no number")
    if not _HEX.fullmatch(digest):
        raise ValueError("a checksum is none")
    return Counted(size, digest)


# -- checksum ------------------------------------------------------------------------------------


def checksum_line(name: str, file: Counted) -> bytes:
    """What `sha256sum NAME` prints."""
    return f"{file.sha256}  {name}\n".encode()


# -- signature -----------------------------------------------------------------------------------


def signer(keyset: Keyset) -> dict[str, Any]:
    """Who signs, as a manifest says it."""
    return {
        "certificate": base64.b64encode(keyset.certificate).decode(),
        "epoch": keyset.epoch,
        "public": base64.b64encode(keyset.signing_public).decode(),
        "repository": keyset.repository.hex(),
        "writer": keyset.writer_name,
    }


def sign(keyset: Keyset, manifest: bytes) -> bytes:
    """Sign a manifest: 64 bytes."""
    if not manifest.startswith(b'{"artefact":"' + MARK.encode()):
        raise ValueError("not a manifest")
    return keysets.sign(keyset, manifest)


def public_pem(public: bytes) -> bytes:
    """A raw Ed25519 public key as openssl reads it."""
    key = Ed25519PublicKey.from_public_bytes(public)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def read_pem(data: bytes, path: str) -> bytes:
    """The raw Ed25519 key of a PEM file; ConfigError."""
    try:
        key = load_pem_public_key(data)
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"{path} is no Ed25519 public key in PEM.")
    return key.public_bytes_raw()


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose signature counts: pinned raw public keys, and the admins of repositories by id."""

    pinned: Sequence[bytes] = ()
    admins: Mapping[bytes, bytes] = field(default_factory=dict)

    def verify(self, manifest: bytes, signature: bytes, said: Mapping[str, Any]) -> None:
        """Refused when nobody trusted signed; Damaged when the signature is none."""
        for public in self.pinned:
            if _signed(public, signature, manifest):
                return
        try:
            public = base64.b64decode(said["public"], validate=True)
            certificate = base64.b64decode(said["certificate"], validate=True)
            repository = bytes.fromhex(said["repository"])
            epoch, writer = said["epoch"], said["writer"]
            own = _signed(public, signature, manifest)
        except (KeyError, ValueError, TypeError):
            own = False
        if not own:
            raise Damaged(
                "The manifest's signature is wrong: one of the two was changed.",
                means="Nothing was written.",
                do="Fetch artefact, manifest and signature again from where they were made.",
            )
        admin = self.admins.get(repository)
        if admin is not None:
            try:
                keysets.verify(
                    admin,
                    repository,
                    epoch,
                    writer_name=writer,
                    signing_public=public,
                    certificate=certificate,
                    signature=signature,
                    message=manifest,
                )
            except (ValueError, TypeError, AttributeError):
                pass
            else:
                return
        raise Refused(
            "The manifest is signed by somebody who is not trusted here.",
            means="Nothing was written. Anybody can sign; it matters who did.",
            do="Name the repository that it comes from with --repository, or give the writer's "
            "public key, from a place that you trust, with --public-key.",
        )


def _signed(public: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
