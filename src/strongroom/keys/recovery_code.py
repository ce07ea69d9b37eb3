"""Opening by the recovery code of the kit: 160 random bits to be typed from paper.

    XXXXX-XXXXX-XXXXX-XXXXX-XXXXX-XXXXX-XXXXX-XXXXX

Letters are Crockford's base 32 (0-9 A-Z without I L O U). Each group is four
letters of the secret, 20 bits big endian, and a check letter

    check = 2·v1 + 3·v2 + 4·v3 + 5·v4 + 6·group      over GF(32), x⁵ + x² + 1, group from 0

whose unequal weights find every single wrong letter, every swap of two letters
of a group and every swap of two groups, and so name the group to read again.
Case and whatever is no letter or digit do not matter; I and L are read as 1, O as 0.
Key-encryption key: HKDF-SHA256; 160 bits need no slow hash.
"""

from __future__ import annotations

import os

from strongroom.errors import KeyRefused
from strongroom.keys.base import Stanza
from strongroom.keys.envelope import Random, SecretEnvelope

KIND = "recovery-code"
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)}
_READ_AS = str.maketrans("ILO", "110")
_SECRET, _GROUPS, _LETTERS = 20, 8, 4
_LABEL = b"strongroom recovery code 1"


class RecoveryCodeHolder:
    """Whoever holds the kit; `secret` is what `parse_recovery_code` returns."""

    kind = KIND

    def __init__(self, secret: bytes, *, random: Random = os.urandom) -> None:
        if len(secret) != _SECRET:
            raise ValueError(f"a recovery code's secret has {_SECRET} bytes")
        refusal = "The recovery code does not open the key slot."
        self._envelope = SecretEnvelope(KIND, _LABEL, refusal, secret, random)

    def __repr__(self) -> str:
        return "RecoveryCodeHolder(…)"

    def wrap(self, material: bytes, *, context: bytes) -> Stanza:
        """Wrap `material` under a fresh salt."""
        return self._envelope.wrap(material, context)

    def unwrap(self, stanza: Stanza, *, context: bytes) -> bytes:
        """Return the material; KeyRefused when it was wrapped for another code."""
        return self._envelope.unwrap(stanza, context)


def generate_recovery_code(random: Random = os.urandom) -> str:
    """Return a new recovery code as it is printed."""
    bits = int.from_bytes(random(_SECRET), "big")
    groups = []
    for group in range(_GROUPS):
        place = 20 * (_GROUPS - 1 - group)
        values = [bits >> (place + 15 - 5 * letter) & 31 for letter in range(_LETTERS)]
        groups.append("".join(_ALPHABET[v] for v in [*values, _check(values, group)]))
    return "-".join(groups)


def parse_recovery_code(text: str) -> bytes:
    """Return the 20-byte secret; KeyRefused names what to read again. The code is not repeated."""
    letters = "".join(filter(str.isalnum, text.upper())).translate(_READ_AS)
    size = _LETTERS + 1
    if len(letters) != _GROUPS * size:
        raise _mistyped(f"it has {len(letters)} letters instead of {_GROUPS * size}")
    wrong = []
    bits = 0
    for group in range(_GROUPS):
        values = [_VALUES.get(letter, -1) for letter in letters[group * size : (group + 1) * size]]
        if -1 in values or _check(values[:_LETTERS], group) != values[_LETTERS]:
            wrong.append(str(group + 1))
            continue
        for value in values[:_LETTERS]:
            bits = bits << 5 | value
    if wrong:
        raise _mistyped("read again group " + ", ".join(wrong))
    return bits.to_bytes(_SECRET, "big")


def _check(values: list[int], group: int) -> int:
    total = _times(6, group)
    for weight, value in zip((2, 3, 4, 5), values, strict=True):
        total ^= _times(weight, value)
    return total


def _times(a: int, b: int) -> int:
    product = 0
    for place in range(5):
        if b >> place & 1:
            product ^= a << place
    for place in range(8, 4, -1):
        if product >> place & 1:
            product ^= 0b100101 << (place - 5)
    return product


def _mistyped(why: str) -> KeyRefused:
    return KeyRefused(
        f"The recovery code is mistyped: {why}.",
        do="Compare it with the printed kit; case, spaces and dashes do not matter.",
    )
