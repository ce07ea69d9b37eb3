"""The promise of a key holder, in two verbs (after age's Recipient and Identity).

A holder never sees data: it wraps the small key material of a role, and each
holder wraps independently of every other, so adding and removing one rewrites
one small object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Stanza:
    """Key material wrapped for one holder: `kind` names the holder type ("passphrase", "keyfile"),
    `parameters` are public JSON values (salt, cost …), `body` the wrapped bytes."""

    kind: str
    parameters: Mapping[str, str | int]
    body: bytes


@dataclass(frozen=True, slots=True)
class DataKey:
    """A new key of 32 bytes, made and wrapped by a key service under its key `by`."""

    secret: bytes = field(repr=False)
    wrapped: bytes
    by: str


class KeyService(Protocol):
    """Who makes keys and wraps them, and unwraps them again: the service of a KMS."""

    def generate_data_key(self, context: Mapping[str, str]) -> DataKey:
        """A new key. `context` is bound to it and must be given again; it is no secret."""

    def unwrap_data_key(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """The key; KeyRefused when `wrapped`, `context` or the service's key is another."""


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
