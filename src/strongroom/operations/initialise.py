"""Create a repository: probe the store, make the keys, wrap them, write the identity last.

Before the identity is written there is no repository; a crash leaves key
objects that open nothing, and the next `init` that succeeds clears them away:
only who has put the identity may, or two at once would take each other's keys.

The kit is shown only now. So a put whose answer is lost is followed by a look,
and nothing that comes after the identity may end in an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strongroom import __version__
from strongroom.errors import ObjectMissing, Refused, StrongroomError
from strongroom.format import keyset as keysets
from strongroom.keys.base import KeyHolder
from strongroom.keys.kit import recovery_kit
from strongroom.repository import identity as identities
from strongroom.repository.identity import Identity
from strongroom.repository.keyring import Keyring, add_slot
from strongroom.repository.repository import Seams
from strongroom.storage.base import Storage
from strongroom.storage.probe import probe

_KIB = 1024


@dataclass(frozen=True, slots=True)
class Initialised:
    """The new repository's identity, the page to print and keep, and its keys.

    `left` are key objects of an `init` that crashed, which could not be cleared away.
    """

    identity: Identity
    kit: str
    keys: Keyring
    left: Sequence[str] = ()


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
    data = identities.encode(identity, keyset.admin_private)
    _put_identity(storage, data, if_absent=capabilities.put_if_absent)
    try:
        storage.delete(left)
        left = []
    except StrongroomError:
        pass  # they open nothing, and the kit is worth more than their going
    kit = recovery_kit(
        repository_id=repository.hex(),
        url=storage.url,
        created=now.isoformat(timespec="seconds"),
        recovery_code=code,
        version=__version__,
        sources=sources,
        access=access,
    )
    return Initialised(identity, kit, Keyring({1: keyset}), left)


def _put_identity(storage: Storage, data: bytes, *, if_absent: bool) -> None:
    """Put strongroom.json; when the answer is lost, see whether it is there, and whose it is."""
    try:
        storage.put(identities.NAME, data, if_absent=if_absent)
        return
    except StrongroomError as error:
        fault = error
    try:
        found = storage.get(identities.NAME)
    except ObjectMissing:
        raise fault from None
    except StrongroomError:
        fault.means = "Nobody knows whether the repository was created; nothing rests in it yet."
        fault.do = (
            "Run `strongroom list` when the storage answers. If there is a repository, "
            "`strongroom key add LABEL --new-recovery-code` makes the kit that was not shown; if "
            "there is none, run the same command again."
        )
        raise fault from None
    if found != data:
        raise _occupied(storage.url) from None


def _refuse_occupied(storage: Storage) -> list[str]:
    """Return what a crashed `init` left: key objects without an identity. Refuse anything else."""
    left = []
    for entry in storage.list(""):
        if entry.name == identities.NAME:
            raise _occupied(storage.url)
        if not entry.name.startswith(("keys/", "probe/")):
            raise Refused(
                f"{storage.url} is not empty: it holds {entry.name}, and no repository's identity.",
                do="Choose an empty place for the repository. If there was one here, its "
                "strongroom.json is lost: recover.py --repository-id reads what is left.",
            )
        left.append(entry.name)
    return left


def _occupied(url: str) -> Refused:
    return Refused(
        f"There is a repository at {url} already.",
        do="Use it, or choose an empty place; nothing here overwrites a repository.",
    )
