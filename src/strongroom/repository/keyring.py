"""Key slots: a role's keys, wrapped for one holder each, and what opens them.

    keys/<epoch>/<slot>.json     canonical JSON of body (base64), created, epoch, kind, label,
                                 parameters, role, version
    slot                         first 32 hex of BLAKE3 of the object's own bytes
    context                      "strongroom key slot 1" ‖ line feed ‖ canonical JSON of created,
                                 epoch, label, repository (hex), role: bound by the holder

The name lets `check` find any flipped bit without a secret; the context keeps a
slot from passing for one of another repository, epoch, role or label. Adding is
one put, removing one delete: a crash leaves the slot there or not.

Slots come from a store that may be hostile. Size and number of what is read
and the tries of each holder are bounded, oldest slots first by the store's
clock, so that slots planted later cannot crowd out those of `init`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from blake3 import blake3

from strongroom.errors import (
    AlreadyExists,
    Damaged,
    KeyRefused,
    NotFound,
    ObjectMissing,
    Refused,
    StrongroomError,
)
from strongroom.format.keyset import READER, WRITER, Keyset, check_name
from strongroom.format.keyset import decode as decode_keyset
from strongroom.format.record import canonical
from strongroom.keys.base import KeyHolder, Stanza
from strongroom.storage.base import Entry, Storage

PREFIX = "keys/"
SLOT_SIZE_LIMIT = 16 * 1024
MAX_READ = 128  # slot objects that opening reads
MAX_TRIES = 32  # slots that one holder tries; no more of one kind are ever added

_VERSION = 1
_NAME = re.compile(r"keys/([1-9][0-9]{0,9})/([0-9a-f]{32})\.json")
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_FIELDS = {"body", "created", "epoch", "kind", "label", "parameters", "role", "version"}


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """One slot as a person sees it; what a damaged one says of itself is left empty.

    `name` is the object's name, `slot` the 32 hex of it, `created` ISO 8601 in UTC. Role, label,
    kind and created are claims until the slot has been opened.
    """

    name: str
    slot: str
    epoch: int
    role: str
    label: str
    kind: str
    created: str
    damaged: bool
    key: str = ""  # the public id of a key that rests elsewhere, as a KMS key


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keysets that were opened, by epoch; never empty.

    `slots` names the object that opened each epoch (empty for a keyring that was just made),
    `damaged` the slot objects that are not what was written.
    """

    keysets: Mapping[int, Keyset]
    slots: Mapping[int, str] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()

    @property
    def current(self) -> Keyset:
        """The keys of the newest epoch: what is written now is written with them."""
        return self.keysets[max(self.keysets)]

    @property
    def role(self) -> str:
        """The role of the current keys: reader or writer."""
        return self.current.role

    def epoch(self, number: int) -> Keyset:
        """Return the keys of an epoch; KeyRefused when no slot of it was opened."""
        try:
            return self.keysets[number]
        except KeyError:
            raise KeyRefused(f"The key given opens no key slot of epoch {number}.") from None


class _Slot(NamedTuple):
    info: SlotInfo
    stanza: Stanza


def open_keyring(storage: Storage, holders: Sequence[KeyHolder], repository_id: bytes) -> Keyring:
    """Open the best keyset of every epoch that a holder opens, readers' before writers'.

    Holders are tried in the order given, so put the cheap ones first.
    KeyRefused when nothing opens; Damaged when there is no undamaged slot at all.
    """
    slots, damaged = _read_all(storage, MAX_READ)
    opening = _Opening(repository_id, slots)
    for holder in holders:
        opening.try_holder(holder)
    damaged += opening.damaged
    if not opening.keysets:
        raise _nothing_opens(holders, damaged, opening)
    return Keyring(opening.keysets, opening.opened_by, tuple(damaged))


def add_slot(
    storage: Storage,
    keyset: Keyset,
    holder: KeyHolder,
    label: str,
    now: datetime,
    *,
    left: Collection[str] = (),
) -> SlotInfo:
    """Wrap `keyset` for one more holder and store it; one put.

    Objects named in `left` are what a crashed `init` left: they open nothing and do not count.
    AlreadyExists when the epoch has a slot of that label; Refused when there are as many slots of
    the kind as opening would try; ValueError for an unprintable label or a `now` without zone.
    """
    check_name(label)
    _check_room(storage, keyset.epoch, holder.kind, label, left)
    created = _iso(now)
    context = slot_context(keyset.repository, keyset.epoch, keyset.role, label, created)
    material = keyset.encode()
    stanza = holder.wrap(material, context=context)
    if holder.unwrap(stanza, context=context) != material:
        raise Damaged("The wrapped key does not open again; it was not stored.")
    data = _encode(keyset.epoch, keyset.role, label, created, stanza)
    name = _object_name(keyset.epoch, data)
    try:
        storage.put(name, data, if_absent=True)
    except StrongroomError as fault:
        _look_for(storage, name, data, fault)
    return _decode(name, data).info


def remove_slot(storage: Storage, chosen: str, opened_with: Keyring) -> SlotInfo:
    """Delete the slot whose label is `chosen` or whose name begins with it; one delete.

    `opened_with` proves that a way in remains: it must hold a reader's keys of that epoch, opened
    by another slot (what a slot says of itself is no proof: anybody may have planted it). Two
    persons who remove each other's slot in the same second are not held back.
    NotFound, or Refused with nothing changed.
    """
    slots = list_slots(storage)
    found = [info for info in slots if chosen and _is_chosen(info, chosen)]
    if not found:
        raise NotFound(f"No key slot is named {chosen!r}.", do="`strongroom key list` shows them.")
    if len(found) > 1:
        names = ", ".join(f"{info.slot[:12]} ({info.label})" for info in found)
        raise Refused(f"{chosen!r} names {len(found)} key slots: {names}.")
    (info,) = found
    _check_way_remains(info, slots, opened_with)
    try:
        storage.delete([info.name])
    except StrongroomError as fault:
        _look_gone(storage, info.name, fault)
    return info


def list_slots(storage: Storage) -> list[SlotInfo]:
    """Return every object below `keys/`, by epoch, then oldest first; needs no key."""
    slots, damaged = _read_all(storage, None)
    infos = [slot.info for slot in slots] + [_damaged_info(name) for name in damaged]
    return sorted(infos, key=lambda info: (info.epoch, info.created, info.slot))


def slot_context(repository_id: bytes, epoch: int, role: str, label: str, created: str) -> bytes:
    """Return what a holder binds to the wrapped keys of a slot."""
    bound = {
        "created": created,
        "epoch": epoch,
        "label": label,
        "repository": repository_id.hex(),
        "role": role,
    }
    return b"strongroom key slot 1\n" + canonical(bound)


def _look_for(storage: Storage, name: str, data: bytes, fault: StrongroomError) -> None:
    """A put failed, or its answer was lost: raise `fault` unless this very object is there.

    The name is the hash of the bytes, so what is there is ours.
    """
    try:
        found = storage.get(name)
    except ObjectMissing:
        raise fault from None
    except StrongroomError:
        fault.means = "Nobody knows whether the key slot was written; the other keys are untouched."
        fault.do = (
            "See `strongroom key list` when the storage answers; remove the slot if it is there, "
            "then run the same command again."
        )
        raise fault from None
    if found != data:
        raise fault


def _look_gone(storage: Storage, name: str, fault: StrongroomError) -> None:
    """A delete failed, or its answer was lost: raise `fault` unless the object is gone."""
    try:
        storage.get(name, length=1)
    except ObjectMissing:
        return
    except StrongroomError:
        fault.means = "Nobody knows whether the key slot was removed; it may still open."
        fault.do = "See `strongroom key list` when the storage answers; if it is there, try again."
        raise fault from None
    raise fault


class _Opening:
    """Holders against slots: what opened, what was refused and why, what proved damaged."""

    def __init__(self, repository_id: bytes, slots: list[_Slot]) -> None:
        self._repository = repository_id
        self.slots = slots
        self.keysets: dict[int, Keyset] = {}
        self.opened_by: dict[int, str] = {}
        self.tried: set[str] = set()
        self.untried = False
        self.refusals: dict[str, KeyRefused] = {}
        self.damaged: list[str] = []

    def try_holder(self, holder: KeyHolder) -> None:
        """Open what the holder opens and what is of use beside what is open already."""
        refused = 0
        for slot in self.slots:
            if holder.kind != slot.info.kind or not self._is_of_use(slot.info):
                continue
            if refused >= MAX_TRIES:
                self.untried = True
                return
            refused += not self._open(holder, slot)

    def _is_of_use(self, info: SlotInfo) -> bool:
        best = self.keysets.get(info.epoch)
        return info.name not in self.damaged and (
            best is None or (info.role == READER and not best.reads)
        )

    def _open(self, holder: KeyHolder, slot: _Slot) -> bool:
        info = slot.info
        context = slot_context(self._repository, info.epoch, info.role, info.label, info.created)
        self.tried.add(info.name)
        try:
            material = holder.unwrap(slot.stanza, context=context)
        except KeyRefused as refusal:
            self.refusals.setdefault(refusal.what, refusal)
            return False
        keyset = _decoded(material)
        claims = (self._repository, info.epoch, info.role)
        if keyset is None or (keyset.repository, keyset.epoch, keyset.role) != claims:
            self.damaged.append(info.name)
        else:
            self.keysets[info.epoch] = keyset
            self.opened_by[info.epoch] = info.name
        return True


def _decoded(material: bytes) -> Keyset | None:
    try:
        return decode_keyset(material)
    except ValueError:
        return None


def _nothing_opens(
    holders: Sequence[KeyHolder], damaged: list[str], opening: _Opening
) -> KeyRefused | Damaged:
    broken = f"Damaged key slots were passed over: {_some(damaged)}." if damaged else ""
    if not opening.slots:
        return Damaged(
            _sentences("The repository has no undamaged key slot.", broken),
            means="Nothing in the repository can be read until a key slot is brought back.",
            do=f"Bring the objects below {PREFIX} back from a copy or an older version.",
        )
    if not opening.tried:
        given = ", ".join(sorted({holder.kind for holder in holders})) or "none"
        kinds = ", ".join(sorted({slot.info.kind for slot in opening.slots}))
        what = "No key of a kind that opens the repository was given"
        return KeyRefused(_sentences(f"{what} (given: {given}; key slots: {kinds}).", broken))
    count = len(opening.tried)
    tried = "1 key slot was tried" if count == 1 else f"{count} key slots were tried"
    unread = "Further key slots were not tried." if opening.untried else ""
    advice = next(iter(opening.refusals.values())).do if len(opening.refusals) == 1 else None
    return KeyRefused(
        _sentences(
            f"No key given opens the repository; {tried}.", *opening.refusals, unread, broken
        ),
        do=advice,
    )


def _read_all(storage: Storage, limit: int | None) -> tuple[list[_Slot], list[str]]:
    """Return undamaged slots, oldest first, and the names of the others."""
    entries = sorted(storage.list(PREFIX), key=lambda e: (e.modified or 0, e.name))[:limit]
    slots: list[_Slot] = []
    damaged: list[str] = []
    for entry in entries:
        try:
            slots.append(_read(storage, entry))
        except ValueError:
            damaged.append(entry.name)
        except ObjectMissing:
            continue  # removed since it was listed
    return slots, damaged


def _read(storage: Storage, entry: Entry) -> _Slot:
    if not _NAME.fullmatch(entry.name) or entry.size > SLOT_SIZE_LIMIT:
        raise ValueError("not a key slot's name or size")
    return _decode(entry.name, storage.get(entry.name, length=SLOT_SIZE_LIMIT + 1))


def _encode(epoch: int, role: str, label: str, created: str, stanza: Stanza) -> bytes:
    return canonical(
        {
            "body": base64.b64encode(stanza.body).decode(),
            "created": created,
            "epoch": epoch,
            "kind": stanza.kind,
            "label": label,
            "parameters": dict(stanza.parameters),
            "role": role,
            "version": _VERSION,
        }
    )


def _decode(name: str, data: bytes) -> _Slot:
    """Read a slot object; ValueError when it is not what `_encode` wrote under that name."""
    match = _NAME.fullmatch(name)
    if match is None or match[2] != _slot_of(data):
        raise ValueError("the bytes are not those that the name promises")
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("not a key slot") from error
    if not _is_slot(document) or document["epoch"] != int(match[1]) or canonical(document) != data:
        raise ValueError("not a key slot in canonical form")
    stanza = Stanza(
        document["kind"],
        document["parameters"],
        base64.b64decode(document["body"], validate=True),
    )
    info = SlotInfo(
        name=name,
        slot=match[2],
        epoch=document["epoch"],
        role=document["role"],
        label=document["label"],
        kind=document["kind"],
        created=document["created"],
        damaged=False,
        key=str(document["parameters"].get("key", "")),
    )
    return _Slot(info, stanza)


def _is_slot(document: Any) -> bool:
    if not isinstance(document, dict) or set(document) != _FIELDS:
        return False
    texts = ("body", "created", "kind", "label", "role")
    parameters = document["parameters"]
    return (
        all(isinstance(document[part], str) for part in texts)
        and all(type(document[part]) is int for part in ("epoch", "version"))
        and document["version"] == _VERSION
        and document["role"] in (READER, WRITER)
        and _CREATED.fullmatch(document["created"]) is not None
        and bool(check_name(document["label"]) and check_name(document["kind"]))
        and isinstance(parameters, dict)
        and all(type(value) in (str, int) for value in parameters.values())
    )


def _object_name(epoch: int, data: bytes) -> str:
    return f"{PREFIX}{epoch}/{_slot_of(data)}.json"


def _slot_of(data: bytes) -> str:
    return blake3(data).hexdigest(16)


def _damaged_info(name: str) -> SlotInfo:
    match = _NAME.fullmatch(name)
    epoch, slot = (int(match[1]), match[2]) if match else (0, name.removeprefix(PREFIX))
    return SlotInfo(name, slot, epoch, role="", label="", kind="", created="", damaged=True)


def _is_chosen(info: SlotInfo, chosen: str) -> bool:
    return info.label == chosen or info.slot.startswith(chosen)


def _check_room(storage: Storage, epoch: int, kind: str, label: str, left: Collection[str]) -> None:
    slots = [info for info in list_slots(storage) if info.name not in left]
    if any(info.label == label and info.epoch == epoch for info in slots):
        raise AlreadyExists(
            f"A key slot is labelled {label!r} already.",
            do="Choose another label, or remove that slot first with `strongroom key remove`.",
        )
    if sum(info.kind == kind for info in slots) >= MAX_TRIES:
        raise Refused(
            f"There are {MAX_TRIES} key slots of kind {kind!r} already; opening tries no more.",
            do="Remove one that nobody uses: `strongroom key list`, `strongroom key remove`.",
        )


def _check_way_remains(info: SlotInfo, slots: list[SlotInfo], opened_with: Keyring) -> None:
    keyset = opened_with.keysets.get(info.epoch)
    if info.epoch and (keyset is None or not keyset.reads):
        raise Refused(
            "A key slot is removed only by one who can read what it opens; the key given does not "
            f"read epoch {info.epoch}.",
            do="Open the repository as a reader (its passphrase or the recovery code). A slot that "
            f"was planted is deleted with the storage's own tools: {info.name}.",
        )
    if opened_with.slots.get(info.epoch) != info.name:
        return
    others = [
        other
        for other in slots
        if other.role == READER and other.epoch == info.epoch and other.name != info.name
    ]
    if not others:
        raise Refused(
            f"{info.label!r} is the last key slot that reads; without it all backups are lost.",
            do="Add another one first: `strongroom key add`.",
        )
    raise Refused(
        f"{info.label!r} is the key slot that this command was opened with.",
        do="Open the repository with another key that reads, which proves that it works, "
        "and remove this one then.",
    )


def _iso(now: datetime) -> str:
    if now.tzinfo is None:
        raise ValueError("a time without a zone")
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _sentences(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
