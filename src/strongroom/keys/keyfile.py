"""Opening by a key file: 32 random bytes in a small text file, HKDF-SHA256, AES-256-GCM.

    # comment line …
    STRONGROOM-KEY-1 <base64 of secret 32 ‖ check 4>

check = first 4 bytes of BLAKE3("strongroom key file 1" ‖ secret), so that a
damaged file is told apart from the wrong one. Blank lines and lines that begin
with "#" are passed over.
"""

from __future__ import annotations

import base64
import binascii
import os

from blake3 import blake3

from strongroom.errors import KeyRefused
from strongroom.keys.base import Stanza
from strongroom.keys.envelope import Random, SecretEnvelope

KIND = "keyfile"
SIZE_LIMIT = 4096
_SECRET, _CHECK = 32, 4
_MARK = b"STRONGROOM-KEY-1"
_LABEL = b"strongroom key file 1"


class KeyFileHolder:
    """Whoever holds the key file; `secret` is what `parse_keyfile` returns."""

    kind = KIND

    def __init__(self, secret: bytes, *, random: Random = os.urandom) -> None:
        if len(secret) != _SECRET:
            raise ValueError(f"a key file's secret has {_SECRET} bytes")
        refusal = "The key file does not open the key slot."
        self._envelope = SecretEnvelope(KIND, _LABEL, refusal, secret, random)

    def __repr__(self) -> str:
        return "KeyFileHolder(…)"

    def wrap(self, material: bytes, *, context: bytes) -> Stanza:
        """Wrap `material` under a fresh salt."""
        return self._envelope.wrap(material, context)

    def unwrap(self, stanza: Stanza, *, context: bytes) -> bytes:
        """Return the material; KeyRefused when it was wrapped for another key file."""
        return self._envelope.unwrap(stanza, context)


def generate_keyfile(random: Random = os.urandom) -> str:
    """Return the text of a new key file. It is secret: write it with mode 0600."""
    secret = random(_SECRET)
    text = base64.b64encode(secret + _check(secret)).decode()
    return f"# Strongroom key file. Who has it opens the repository.\n{_MARK.decode()} {text}\n"


def parse_keyfile(data: bytes) -> bytes:
    """Return the 32-byte secret of a key file; KeyRefused when it is not one or is damaged."""
    if len(data) > SIZE_LIMIT:
        raise _unfit("it is too long")
    lines = [line.strip() for line in data.splitlines()]
    keys = [line for line in lines if line and not line.startswith(b"#")]
    if len(keys) != 1 or not keys[0].startswith(_MARK + b" "):
        raise _unfit(f"it does not hold exactly one line that begins with {_MARK.decode()}")
    try:
        content = base64.b64decode(keys[0].removeprefix(_MARK).strip(), validate=True)
    except binascii.Error as error:
        raise _unfit("its key is not base64") from error
    secret, check = content[:_SECRET], content[_SECRET:]
    if len(content) != _SECRET + _CHECK or check != _check(secret):
        raise _unfit("its key is damaged or cut short")
    return secret


def _check(secret: bytes) -> bytes:
    return blake3(_LABEL + secret).digest(_CHECK)


def _unfit(why: str) -> KeyRefused:
    return KeyRefused(
        f"This is not a Strongroom key file: {why}.",
        do="Give the file that `strongroom key add` wrote, or take it from its safe copy.",
    )
