"""Create a repository: probe the store, make the keys, wrap them, write the identity last.

Before the identity is written there is no repository; a crash leaves key
objects that open nothing, and the next `init` that succeeds clears them away:
only who has put the identity may, or two at once would take each other's keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from strongroom import __version__
from strongroom.errors import AlreadyExists, Refused
from strongroom.format import keyset as keysets
from strongroom.keys.base import KeyHolder
from strongroom.keys.kit import recovery_kit
from strongroom.repository import identity as identities
from strongroom.repository.identity import Identity
from strongroom.repository.keyring import add_slot
from strongroom.repository.repository import Seams
from strongroom.storage.base import Storage
from strongroom.storage.probe import probe

_KIB = 1024


@dataclass(frozen=True, slots=True)
class Initialised:
    """The new repository's identity and the page to print and keep."""

    identity: Identity
    kit: str


def initialise(
    storage: Storage,
    *,
    holders: Mapping[str, KeyHolder],
    recovery: tuple[KeyHolder, str],
    seams: Seams,
    sources: Mapping[str, str] | None = None,
    access: Mapping[str, str] | None = None,
    writer_name: str = "admin",
) -> Initialised:
    """Create the repository. `holders` by slot label; `recovery` is the kit's holder and code.

    Refused when there is a repository already, or objects that may belong to one.
    """
    left = _refuse_occupied(storage)
    repository = seams.random(16)
    capabilities = probe(storage, token=seams.random(8).hex())
    keyset = keysets.generate(repository, 1, writer_name, random=seams.random)
    now = seams.now()
    recovery_holder, code = recovery
    for label, holder in {**holders, "recovery-kit": recovery_holder}.items():
        add_slot(storage, keyset, holder, label, now, left=left)
    identity = Identity(
        id=repository,
        created=now,
        smallest=256 * _KIB,
        average=1024 * _KIB,
        largest=4096 * _KIB,
        capabilities=capabilities,
        admin_public=keyset.admin_public,
    )
    assert keyset.admin_private is not None
    try:
        data = identities.encode(identity, keyset.admin_private)
        storage.put(identities.NAME, data, if_absent=capabilities.put_if_absent)
    except AlreadyExists:
        raise _occupied(storage.url) from None
    storage.delete(left)
    kit = recovery_kit(
        repository_id=repository.hex(),
        url=storage.url,
        created=now.isoformat(timespec="seconds"),
        recovery_code=code,
        version=__version__,
        sources=sources,
        access=access,
    )
    return Initialised(identity, kit)


def _refuse_occupied(storage: Storage) -> list[str]:
    """Return what a crashed `init` left: key objects without an identity. Refuse anything else."""
    left = []
    for entry in storage.list(""):
        if entry.name == identities.NAME:
            raise _occupied(storage.url)
        if not entry.name.startswith(("keys/", "probe/")):
            raise Refused(
                f"There are objects at {storage.url} that are no new repository: {entry.name}.",
                do="Choose an empty place for the repository.",
            )
        left.append(entry.name)
    return left


def _occupied(url: str) -> Refused:
    return Refused(
        f"There is a repository at {url} already.",
        do="Use it, or choose an empty place; nothing here overwrites a repository.",
    )
