"""Who may open a repository: list, add, remove. Data is never rewritten."""

from __future__ import annotations

from typing import Literal

from strongroom.format.keyset import for_writer
from strongroom.keys.base import KeyHolder
from strongroom.repository.keyring import (
    Keyring,
    SlotInfo,
    add_slot,
    list_slots,
    remove_slot,
)
from strongroom.repository.repository import Seams
from strongroom.storage.base import Storage


def list_keys(storage: Storage) -> list[SlotInfo]:
    """Every key slot; needs no key."""
    return list_slots(storage)


def add_key(
    storage: Storage,
    keyring: Keyring,
    holder: KeyHolder,
    *,
    label: str,
    role: Literal["reader", "writer"],
    seams: Seams,
) -> SlotInfo:
    """Give one more holder a role; needs a reader's keys.

    A writer gets a signing key of its own, certified by the admin, and nothing that opens data.
    """
    keyset = keyring.current
    if role == "writer":
        keyset = for_writer(keyset, label, random=seams.random)
    return add_slot(storage, keyset, holder, label, seams.now())


def remove_key(storage: Storage, keyring: Keyring, chosen: str) -> SlotInfo:
    """Take a holder's slot away. Refused for the last way in."""
    return remove_slot(storage, chosen, keyring)
