"""Open a repository with whatever holders are at hand."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from strongroom.keys.base import KeyHolder
from strongroom.repository import identity as identities
from strongroom.repository.keyring import open_keyring
from strongroom.storage.base import Storage

if TYPE_CHECKING:
    from strongroom.repository.repository import Repository, Seams, Settings

_ENGINE = "strongroom.repository.repository"


def open_repository(
    storage: Storage,
    holders: Sequence[KeyHolder],
    *,
    seams: Seams,
    settings: Settings | None = None,
) -> Repository:
    """Open; NotFound when there is none, KeyRefused when no holder opens it.

    A passphrase takes a tenth of a second and more that leaves the interpreter alone; the engine,
    with numpy behind it, is imported meanwhile.
    """
    meanwhile = threading.Thread(target=importlib.import_module, args=(_ENGINE,), daemon=True)
    meanwhile.start()
    try:
        identity = identities.load(storage)
        keys = open_keyring(storage, holders, identity.id)
    finally:
        meanwhile.join()
    from strongroom.repository.repository import Repository  # noqa: PLC0415 -- see above

    return Repository(storage, identity, keys, seams=seams, settings=settings)
