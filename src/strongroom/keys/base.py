"""The promise of a key holder, in two verbs (after age's Recipient and Identity).

A holder never sees data: it wraps the small key material of a role, and each
holder wraps independently of every other, so adding and removing one rewrites
one small object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Stanza:
    """Key material wrapped for one holder: `kind` names the holder type ("passphrase", "keyfile"),
    `parameters` are public JSON values (salt, cost …), `body` the wrapped bytes."""

    kind: str
    parameters: Mapping[str, str | int]
    body: bytes


class KeyHolder(Protocol):
    """One way to open a repository."""

    @property
    def kind(self) -> str:
        """The stanza kind this holder can unwrap."""

    def wrap(self, material: bytes, *, context: bytes) -> Stanza:
        """Wrap `material`; `context` is authenticated with it but not stored."""

    def unwrap(self, stanza: Stanza, *, context: bytes) -> bytes:
        """Return the material; KeyRefused if this holder is not the one it was wrapped for.

        Parameters in the stanza are hostile until proved: cost is bounded before it is paid.
        """
