"""Documents that a writer signed: {body, signer, certificate, signature}, byte strings in hex.

`body` names the writer and its epoch; the certificate is the admin's for that signing key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from strongroom.format import keyset as keysets
from strongroom.format.keyset import Keyset
from strongroom.format.record import canonical


def sign_document(keyset: Keyset, domain: bytes, body: Mapping[str, Any]) -> bytes:
    """Sign `body` as this writer, with a label of its own type."""
    return canonical(
        {
            "body": body,
            "signer": keyset.signing_public.hex(),
            "certificate": keyset.certificate.hex(),
            "signature": keysets.sign(keyset, domain + canonical(body)).hex(),
        }
    )


def open_document(keyset: Keyset, domain: bytes, raw: bytes) -> dict[str, Any]:
    """Return the body whose signature holds; ValueError, KeyError, TypeError when it does not."""
    signed = json.loads(raw)
    body = signed["body"]
    keysets.verify(
        keyset.admin_public,
        keyset.repository,
        body["epoch"],
        writer_name=body["writer"],
        signing_public=bytes.fromhex(signed["signer"]),
        certificate=bytes.fromhex(signed["certificate"]),
        signature=bytes.fromhex(signed["signature"]),
        message=domain + canonical(body),
    )
    if not isinstance(body, dict):
        raise ValueError("it is not a document")
    return body
