"""Opening by a passphrase: argon2id (RFC 9106), then AES-256-GCM.

Parameters: `salt` (32 bytes, base64), `t` passes, `m` memory in KiB, `p` lanes.
The default, 3 passes over 64 MiB in 4 lanes, is RFC 9106's second choice. A
slot is bytes from a store that may be hostile: what it asks for is bounded
before any of it is paid. The passphrase is taken exactly as given; a line end
is taken off where a file or variable is read, not here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from argon2.exceptions import HashingError
from argon2.low_level import Type, hash_secret_raw

from strongroom.errors import KeyRefused
from strongroom.keys.base import Stanza
from strongroom.keys.envelope import (
    SALT,
    Random,
    check_form,
    encode_salt,
    open_stanza,
    read_salt,
    seal,
)

KIND = "passphrase"
MAX_PASSES = 10
MAX_MEMORY = 1024 * 1024  # KiB: 1 GiB
MAX_LANES = 16
MAX_WORK = 2 * 1024 * 1024  # passes × KiB: eleven times the default, 1 to 5 seconds by lanes


@dataclass(frozen=True, slots=True)
class Cost:
    """What one guess costs: passes, memory in KiB, lanes. ValueError beyond the bounds."""

    passes: int = 3
    memory: int = 64 * 1024
    lanes: int = 4

    def __post_init__(self) -> None:
        if any(type(part) is not int for part in (self.passes, self.memory, self.lanes)):
            raise ValueError("work factors are whole numbers")
        if not (
            1 <= self.passes <= MAX_PASSES
            and 1 <= self.lanes <= MAX_LANES
            and 8 * self.lanes <= self.memory <= MAX_MEMORY
            and self.passes * self.memory <= MAX_WORK
        ):
            raise ValueError(f"{self.passes} passes, {self.memory} KiB, {self.lanes} lanes")


DEFAULT_COST = Cost()


class PassphraseHolder:
    """Whoever knows the passphrase. KeyRefused when it is empty."""

    kind = KIND

    def __init__(
        self, passphrase: bytes, *, random: Random = os.urandom, cost: Cost = DEFAULT_COST
    ) -> None:
        if not passphrase:
            raise KeyRefused(
                "The passphrase is empty.",
                do="Set a passphrase where the configuration takes it from, then run this again.",
            )
        self._passphrase = passphrase
        self._random = random
        self._cost = cost

    def __repr__(self) -> str:
        return "PassphraseHolder(…)"

    def wrap(self, material: bytes, *, context: bytes) -> Stanza:
        """Wrap `material` at this holder's cost under a fresh salt."""
        salt = self._random(SALT)
        cost = self._cost
        return seal(
            self._kek(salt, cost),
            material,
            kind=KIND,
            parameters={
                "salt": encode_salt(salt),
                "t": cost.passes,
                "m": cost.memory,
                "p": cost.lanes,
            },
            context=context,
            random=self._random,
        )

    def unwrap(self, stanza: Stanza, *, context: bytes) -> bytes:
        """Return the material; KeyRefused on a wrong passphrase or an unreasonable cost."""
        check_form(stanza, KIND, {"salt", "t", "m", "p"})
        salt = read_salt(stanza)
        kek = self._kek(salt, _asked(stanza))
        return open_stanza(
            kek, stanza, context=context, refusal="The passphrase does not open the key slot."
        )

    def _kek(self, salt: bytes, cost: Cost) -> bytes:
        try:
            return hash_secret_raw(
                self._passphrase, salt, cost.passes, cost.memory, cost.lanes, 32, Type.ID
            )
        except (HashingError, MemoryError) as error:
            raise KeyRefused(
                f"The passphrase cannot be tried here: argon2id failed ({error}).",
                do=f"Run this where {cost.memory // 1024 + 64} MiB of memory are free.",
            ) from error


def _asked(stanza: Stanza) -> Cost:
    t, m, p = (stanza.parameters[name] for name in ("t", "m", "p"))
    if not (isinstance(t, int) and isinstance(m, int) and isinstance(p, int)):
        raise KeyRefused("The key slot's work factors are not numbers.")
    try:
        return Cost(t, m, p)
    except ValueError as error:
        raise KeyRefused(
            f"The key slot asks for an unreasonable work factor ({error}); it was not tried.",
            do="Somebody may have planted it: `strongroom key list` shows it; remove it.",
        ) from error
