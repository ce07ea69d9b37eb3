"""Open a repository with whatever holders are at hand."""

from __future__ import annotations

from collections.abc import Sequence

from strongroom.keys.base import KeyHolder
from strongroom.repository import identity as identities
from strongroom.repository.keyring import open_keyring
from strongroom.repository.repository import Repository, Seams, Settings
from strongroom.storage.base import Storage


def open_repository(
    storage: Storage,
    holders: Sequence[KeyHolder],
    *,
    seams: Seams,
    settings: Settings | None = None,
) -> Repository:
    """Open; NotFound when there is none, KeyRefused when no holder opens it."""
    identity = identities.load(storage)
    keys = open_keyring(storage, holders, identity.id)
    return Repository(storage, identity, keys, seams=seams, settings=settings)
