"""Key slots over a storage: opening, adding, removing, and what a hostile store can try."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from blake3 import blake3

from strongroom.errors import AlreadyExists, Damaged, KeyRefused, NotFound, Refused
from strongroom.format import keyset as keysets
from strongroom.format.keyset import Keyset
from strongroom.format.record import canonical
from strongroom.keys.base import KeyHolder, Stanza
from strongroom.keys.keyfile import KeyFileHolder
from strongroom.keys.passphrase import Cost, PassphraseHolder
from strongroom.keys.recovery_code import RecoveryCodeHolder
from strongroom.repository import keyring as keyrings
from strongroom.repository.keyring import (
    Keyring,
    SlotInfo,
    add_slot,
    list_slots,
    open_keyring,
    remove_slot,
)
from strongroom.storage.base import Buffer
from strongroom.storage.local import LocalStorage
from strongroom.storage.memory import MemoryStorage

REPOSITORY, ELSEWHERE = b"r" * 16, b"e" * 16
NOW = datetime(2026, 7, 1, 10, 0, tzinfo=UTC)


def seeded(seed: bytes) -> Callable[[int], bytes]:
    counter = itertools.count()
    return lambda size: blake3(seed + next(counter).to_bytes(4, "big")).digest(size)


READER = keysets.generate(REPOSITORY, 1, "origin", random=seeded(b"reader"))
WRITER = keysets.for_writer(READER, "host-a", random=seeded(b"writer"))
LATER = keysets.generate(REPOSITORY, 2, "origin", random=seeded(b"later"))
FOREIGN = keysets.generate(ELSEWHERE, 1, "origin", random=seeded(b"foreign"))


def phrase(text: bytes) -> PassphraseHolder:
    return PassphraseHolder(text, cost=Cost(passes=1, memory=16, lanes=1))


def keyfile(number: int) -> KeyFileHolder:
    return KeyFileHolder(bytes([number]) * 32)


OWNER, HOST, CODE = phrase(b"owner"), keyfile(1), RecoveryCodeHolder(b"c" * 20)


class CountingHolder:
    """A passphrase holder that counts what it is asked to pay."""

    kind = "passphrase"

    def __init__(self, inner: KeyHolder) -> None:
        self.inner = inner
        self.unwraps = 0

    def wrap(self, material: bytes, *, context: bytes) -> Stanza:
        return self.inner.wrap(material, context=context)

    def unwrap(self, stanza: Stanza, *, context: bytes) -> bytes:
        self.unwraps += 1
        return self.inner.unwrap(stanza, context=context)


def ticking() -> MemoryStorage:
    """A storage whose clock goes on by a second at each put."""
    clock = itertools.count(1_000)
    return MemoryStorage(now=lambda: float(next(clock)))


@pytest.fixture
def storage() -> MemoryStorage:
    """What `init` leaves: passphrase and recovery code for the reader, a key file for a writer."""
    store = ticking()
    add_slot(store, READER, OWNER, "owner", NOW)
    add_slot(store, READER, CODE, "recovery kit", NOW)
    add_slot(store, WRITER, HOST, "host-a", NOW)
    return store


def slot_named(storage: MemoryStorage, label: str) -> SlotInfo:
    (info,) = [info for info in list_slots(storage) if info.label == label]
    return info


def plant(storage: MemoryStorage, data: bytes, epoch: int = 1) -> str:
    """Put an object under the name that its bytes earn it."""
    name = f"keys/{epoch}/{blake3(data).hexdigest()[:32]}.json"
    storage.put(name, data)
    return name


def rewritten(storage: MemoryStorage, whose: str, **changed: object) -> bytes:
    """Return a slot's object with some of its claims changed, otherwise well-formed."""
    name = slot_named(storage, whose).name
    return canonical(json.loads(storage.objects[name]) | changed)


def flood(storage: MemoryStorage) -> None:
    """Plant more well-formed slots than anybody would try."""
    document = json.loads(rewritten(storage, "owner"))
    for number in range(200):
        plant(storage, canonical(document | {"label": f"planted {number}"}))


# --- opening ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("holder", "keyset"), [(OWNER, READER), (CODE, READER), (HOST, WRITER)])
def test_each_holder_opens_its_own_keys(
    storage: MemoryStorage, holder: KeyHolder, keyset: Keyset
) -> None:
    keyring = open_keyring(storage, [holder], REPOSITORY)
    assert keyring.current == keyset
    assert keyring.role == keyset.role
    assert keyring.epoch(1) == keyset
    assert keyring.damaged == ()


def test_a_wrong_passphrase_is_one_clear_error(storage: MemoryStorage) -> None:
    with pytest.raises(KeyRefused) as refused:
        open_keyring(storage, [phrase(b"wrong")], REPOSITORY)
    assert refused.value.exit_status == 8
    assert refused.value.what == (
        "No key given opens the repository; 1 key slot was tried. "
        "The passphrase does not open the key slot."
    )
    assert "wrong" not in refused.value.what.lower().split()


def test_a_kind_that_no_slot_has_is_told_as_such(storage: MemoryStorage) -> None:
    remove_slot(storage, "host-a", open_keyring(storage, [OWNER], REPOSITORY))
    with pytest.raises(KeyRefused, match=r"given: keyfile; key slots: passphrase, recovery-code"):
        open_keyring(storage, [HOST], REPOSITORY)
    with pytest.raises(KeyRefused, match=r"given: none"):
        open_keyring(storage, [], REPOSITORY)


def test_several_holders_are_tried(storage: MemoryStorage) -> None:
    keyring = open_keyring(storage, [phrase(b"wrong"), keyfile(9), CODE], REPOSITORY)
    assert keyring.current == READER


def test_a_reader_is_preferred_to_a_writer_in_any_order(storage: MemoryStorage) -> None:
    assert open_keyring(storage, [HOST, OWNER], REPOSITORY).role == "reader"
    store = ticking()
    add_slot(store, WRITER, OWNER, "writer first", NOW)
    add_slot(store, READER, OWNER, "reader second", NOW)
    assert open_keyring(store, [OWNER], REPOSITORY).role == "reader"


def test_a_cheap_holder_that_is_given_first_spares_the_dear_one(storage: MemoryStorage) -> None:
    dear = CountingHolder(OWNER)
    assert open_keyring(storage, [CODE, dear], REPOSITORY).current == READER
    assert dear.unwraps == 0
    assert open_keyring(storage, [HOST, dear], REPOSITORY).current == READER
    assert dear.unwraps == 1


def test_slots_rest_in_a_directory_as_in_memory(storage: MemoryStorage, tmp_path: Path) -> None:
    local = LocalStorage(str(tmp_path))
    added = [
        add_slot(local, READER, OWNER, "owner", NOW),
        add_slot(local, READER, CODE, "recovery kit", NOW),
        add_slot(local, WRITER, HOST, "host-a", NOW),
    ]
    assert {info.name for info in list_slots(local)} == {info.name for info in added}
    assert open_keyring(local, [HOST], REPOSITORY).current == WRITER
    keyring = open_keyring(local, [OWNER], REPOSITORY)
    assert (keyring.current, keyring.damaged) == (READER, ())
    remove_slot(local, "host-a", keyring)
    with pytest.raises(KeyRefused):
        open_keyring(local, [HOST], REPOSITORY)


def test_every_epoch_is_opened_and_the_newest_is_current(storage: MemoryStorage) -> None:
    add_slot(storage, LATER, OWNER, "owner", NOW)
    keyring = open_keyring(storage, [OWNER], REPOSITORY)
    assert dict(keyring.keysets) == {1: READER, 2: LATER}
    assert keyring.current == LATER
    with pytest.raises(KeyRefused, match="epoch 3"):
        keyring.epoch(3)
    assert set(open_keyring(storage, [CODE], REPOSITORY).keysets) == {1}


def test_a_writers_keyring_opens_no_session_key(storage: MemoryStorage) -> None:
    writer = open_keyring(storage, [HOST], REPOSITORY).current
    reader = open_keyring(storage, [CODE], REPOSITORY).current
    sealed = keysets.seal_session_key(writer, b"s" * 16, b"k" * 32)
    with pytest.raises(KeyRefused):
        keysets.open_session_key(writer, b"s" * 16, sealed)
    assert keysets.open_session_key(reader, b"s" * 16, sealed) == b"k" * 32


def test_no_secret_is_stored_in_the_clear_or_shown(storage: MemoryStorage) -> None:
    keyring = open_keyring(storage, [OWNER], REPOSITORY)
    assert READER.data_private is not None
    everything = b"".join(storage.objects.values()) + repr(keyring).encode()
    for secret in (READER.id_key, READER.data_private[:30], READER.signing_private, b"owner-"):
        assert secret not in everything
    assert repr(READER.id_key)[2:20] not in repr(keyring)


def test_opening_an_empty_repository_says_that_no_slot_is_there() -> None:
    with pytest.raises(Damaged, match="no undamaged key slot"):
        open_keyring(MemoryStorage(), [OWNER], REPOSITORY)


# --- damage -----------------------------------------------------------------------------------


def test_a_damaged_slot_is_passed_over_and_named(storage: MemoryStorage) -> None:
    name = slot_named(storage, "owner").name
    storage.objects[name] = storage.objects[name][:-1] + b" "
    keyring = open_keyring(storage, [CODE], REPOSITORY)
    assert keyring.damaged == (name,)
    with pytest.raises(KeyRefused) as refused:
        open_keyring(storage, [phrase(b"owner")], REPOSITORY)
    assert name in refused.value.what
    assert [(info.name, info.damaged) for info in list_slots(storage) if info.damaged] == [
        (name, True)
    ]


def test_when_every_slot_is_damaged_that_is_the_error(storage: MemoryStorage) -> None:
    for name, data in storage.objects.items():
        storage.objects[name] = data[: len(data) // 2]
    with pytest.raises(Damaged, match=r"keys/1/.*json") as damaged:
        open_keyring(storage, [OWNER], REPOSITORY)
    assert damaged.value.exit_status == 9


def malformed(storage: MemoryStorage) -> Iterable[bytes]:
    good = rewritten(storage, "owner")
    document = json.loads(good)
    yield from (b"", b"{}", b"[]", b"null", b"1", b"\xff", b"[" * 16_000, b'{"a":' * 2_000)
    yield good + b"\n"
    yield good + b" " * keyrings.SLOT_SIZE_LIMIT
    yield json.dumps(document).encode()
    yield good.replace(b'"version":1', b'"version":2')
    yield good.replace(b'"version":1', b'"version":true')
    yield good.replace(b'"version":1', b'"version":1.0')
    yield good.replace(b'"epoch":1', b'"epoch":' + b"9" * 5000)
    yield good.replace(b'"label":"owner"', b'"label":"\\ud800"')
    odd: list[dict[str, object]] = [
        {"extra": 1},
        {"epoch": 2},
        {"epoch": "1"},
        {"role": "admin"},
        {"label": ""},
        {"label": "two\nlines"},
        {"label": "l" * 201},
        {"label": 5},
        {"kind": ""},
        {"kind": None},
        {"created": "yesterday"},
        {"created": "2026-07-01T10:00:00+02:00"},
        {"body": "***"},
        {"body": 5},
        {"parameters": []},
        {"parameters": {"salt": None}},
        {"parameters": {"salt": {"salt": 1}}},
        {"parameters": {"t": 1.5}},
        {"parameters": {"t": True}},
    ]
    for changed in odd:
        yield canonical(document | changed)
    yield canonical({name: value for name, value in document.items() if name != "body"})


def test_a_malformed_slot_is_damaged_and_stops_nobody(storage: MemoryStorage) -> None:
    odd = list(malformed(storage))
    names = {plant(storage, data) for data in odd}
    assert len(names) == len(odd)
    keyring = open_keyring(storage, [OWNER], REPOSITORY)
    assert keyring.current == READER
    assert set(keyring.damaged) == names
    assert {info.name for info in list_slots(storage) if info.damaged} == names


@pytest.mark.parametrize(
    "name", ["keys/stray", "keys/1/stray.json", "keys/0/" + "0" * 32 + ".json"]
)
def test_an_object_that_is_no_slot_is_listed_and_can_be_removed(
    storage: MemoryStorage, name: str
) -> None:
    storage.put(name, b"stray")
    keyring = open_keyring(storage, [OWNER], REPOSITORY)
    assert keyring.damaged == (name,)
    (info,) = [info for info in list_slots(storage) if info.damaged]
    remove_slot(storage, info.slot, keyring)
    assert name not in storage.objects


def test_a_huge_object_is_not_fetched(storage: MemoryStorage) -> None:
    name = plant(storage, bytes(keyrings.SLOT_SIZE_LIMIT + 1))
    fetched: list[str] = []

    class Watching(MemoryStorage):
        def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
            fetched.append(name)
            return super().get(name, offset=offset, length=length)

    assert open_keyring(Watching(storage.objects), [OWNER], REPOSITORY).damaged == (name,)
    assert len(fetched) == 3
    assert name not in fetched


def test_a_slot_removed_while_it_is_listed_is_no_damage(storage: MemoryStorage) -> None:
    gone = slot_named(storage, "host-a").name

    class Vanishing(MemoryStorage):
        def get(self, name: str, *, offset: int = 0, length: int | None = None) -> bytes:
            self.delete([gone])
            return super().get(name, offset=offset, length=length)

    keyring = open_keyring(Vanishing(storage.objects), [OWNER], REPOSITORY)
    assert (keyring.current, keyring.damaged) == (READER, ())


def test_keys_that_open_but_are_not_what_the_slot_says_are_damaged(
    storage: MemoryStorage,
) -> None:
    """A slot made by somebody who has the secret, around material that does not belong."""
    created = "2026-07-01T10:00:00Z"
    context = keyrings.slot_context(REPOSITORY, 1, "reader", "odd", created)
    names = set()
    for material in (b"no keyset", WRITER.encode(), FOREIGN.encode(), LATER.encode()):
        stanza = OWNER.wrap(material, context=context)
        names.add(plant(storage, keyrings._encode(1, "reader", "odd", created, stanza)))
    storage.delete([slot_named(storage, "owner").name])
    with pytest.raises(KeyRefused, match="4 key slots were tried") as refused:
        open_keyring(storage, [OWNER], REPOSITORY)
    assert "and 1 more" in refused.value.what
    assert set(open_keyring(storage, [OWNER, HOST], REPOSITORY).damaged) == names


# --- a hostile store --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"role": "writer"},
        {"label": "somebody else"},
        {"created": "2020-01-01T00:00:00Z"},
        {"kind": "keyfile"},
        {"body": "AAAA" * 20},
    ],
)
def test_a_slot_whose_claims_were_changed_opens_nothing(
    storage: MemoryStorage, changed: dict[str, object]
) -> None:
    forged = rewritten(storage, "owner", **changed)
    store = MemoryStorage()
    plant(store, forged)
    assert [info.damaged for info in list_slots(store)] == [False]
    with pytest.raises(KeyRefused):
        open_keyring(store, [OWNER], REPOSITORY)


def test_a_slot_moved_to_another_epoch_opens_nothing(storage: MemoryStorage) -> None:
    name = slot_named(storage, "owner").name
    data = storage.objects[name]
    moved = MemoryStorage({name.replace("keys/1/", "keys/2/"): data})
    with pytest.raises(Damaged):
        open_keyring(moved, [OWNER], REPOSITORY)
    renumbered = MemoryStorage()
    plant(renumbered, rewritten(storage, "owner", epoch=2), epoch=2)
    with pytest.raises(KeyRefused, match="does not open"):
        open_keyring(renumbered, [OWNER], REPOSITORY)


def test_a_renamed_slot_is_damaged(storage: MemoryStorage) -> None:
    one, two = slot_named(storage, "owner").name, slot_named(storage, "recovery kit").name
    objects = storage.objects
    objects[one], objects[two] = objects[two], objects[one]
    keyring = open_keyring(storage, [HOST], REPOSITORY)
    assert set(keyring.damaged) == {one, two}


def test_a_slot_of_another_repository_opens_nothing_though_the_secret_is_the_same() -> None:
    storage = MemoryStorage()
    add_slot(storage, FOREIGN, OWNER, "owner", NOW)
    assert open_keyring(storage, [OWNER], ELSEWHERE).current == FOREIGN
    with pytest.raises(KeyRefused, match="does not open"):
        open_keyring(storage, [OWNER], REPOSITORY)


def test_planted_slots_cost_a_bounded_number_of_tries(storage: MemoryStorage) -> None:
    flood(storage)
    wrong = CountingHolder(phrase(b"wrong"))
    with pytest.raises(KeyRefused, match="not tried"):
        open_keyring(storage, [wrong], REPOSITORY)
    assert wrong.unwraps == keyrings.MAX_TRIES


def test_slots_planted_later_do_not_crowd_out_the_first(storage: MemoryStorage) -> None:
    late = phrase(b"late")
    flood(storage)
    owner = CountingHolder(OWNER)
    assert open_keyring(storage, [owner], REPOSITORY).current == READER
    assert owner.unwraps == 1
    with pytest.raises(Refused, match="32 key slots of kind 'passphrase'"):
        add_slot(storage, READER, late, "late", NOW)


def test_an_unreasonable_work_factor_is_the_error_that_is_told(storage: MemoryStorage) -> None:
    name = slot_named(storage, "owner").name
    document = json.loads(storage.objects.pop(name))
    document["parameters"]["m"] = 2**22
    plant(storage, canonical(document))
    with pytest.raises(KeyRefused, match="unreasonable work factor") as refused:
        open_keyring(storage, [OWNER], REPOSITORY)
    assert "strongroom key list" in refused.value.do


# --- adding -----------------------------------------------------------------------------------


def test_a_new_slot_is_listed_as_it_was_added(storage: MemoryStorage) -> None:
    summer = NOW.astimezone(timezone(timedelta(hours=2)))
    info = add_slot(storage, READER, keyfile(7), "étagère 3", summer)
    assert info in list_slots(storage)
    assert (info.epoch, info.role, info.label, info.kind) == (1, "reader", "étagère 3", "keyfile")
    assert info.created == "2026-07-01T10:00:00Z"
    assert info.name == f"keys/1/{info.slot}.json"
    assert info.slot == blake3(storage.objects[info.name]).hexdigest()[:32]
    assert not info.damaged


def test_adding_is_one_put_that_never_overwrites(storage: MemoryStorage) -> None:
    puts: list[tuple[str, bool]] = []

    class Watching(MemoryStorage):
        def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
            puts.append((name, if_absent))
            super().put(name, data, if_absent=if_absent)

    watched = Watching(storage.objects)
    info = add_slot(watched, READER, keyfile(7), "new", NOW)
    assert puts == [(info.name, True)]


def test_a_put_that_was_repeated_after_a_lost_answer_is_fine(storage: MemoryStorage) -> None:
    class Repeating(MemoryStorage):
        def put(self, name: str, data: Buffer, *, if_absent: bool = False) -> None:
            super().put(name, data)
            super().put(name, data, if_absent=if_absent)

    repeating = Repeating(storage.objects)
    info = add_slot(repeating, READER, keyfile(7), "new", NOW)
    assert open_keyring(repeating, [keyfile(7)], REPOSITORY).slots == {1: info.name}


def test_a_label_is_taken_once_an_epoch(storage: MemoryStorage) -> None:
    with pytest.raises(AlreadyExists, match="'owner'"):
        add_slot(storage, READER, keyfile(7), "owner", NOW)
    add_slot(storage, LATER, keyfile(7), "owner", NOW)


@pytest.mark.parametrize("label", ["", "two\nlines", "l" * 201, "\ud800"])
def test_an_unprintable_label_is_refused(storage: MemoryStorage, label: str) -> None:
    before = dict(storage.objects)
    with pytest.raises(ValueError):
        add_slot(storage, READER, keyfile(7), label, NOW)
    with pytest.raises(ValueError, match="zone"):
        add_slot(storage, READER, keyfile(7), "fine", NOW.replace(tzinfo=None))
    assert storage.objects == before


def test_a_holder_that_corrupts_what_it_wraps_never_gets_a_slot(storage: MemoryStorage) -> None:
    class Corrupting(CountingHolder):
        def unwrap(self, stanza: Stanza, *, context: bytes) -> bytes:
            return super().unwrap(stanza, context=context)[:-1] + b"?"

    before = dict(storage.objects)
    with pytest.raises(Damaged, match="was not stored"):
        add_slot(storage, READER, Corrupting(phrase(b"new")), "new", NOW)
    assert storage.objects == before


# --- removing ---------------------------------------------------------------------------------


def test_a_slot_is_removed_by_label_or_unique_prefix(storage: MemoryStorage) -> None:
    keyring = open_keyring(storage, [OWNER], REPOSITORY)
    host = slot_named(storage, "host-a")
    assert remove_slot(storage, "host-a", keyring) == host
    with pytest.raises(KeyRefused):
        open_keyring(storage, [HOST], REPOSITORY)
    kit = slot_named(storage, "recovery kit")
    assert remove_slot(storage, kit.slot[:12], keyring) == kit
    assert [info.label for info in list_slots(storage)] == ["owner"]


@pytest.mark.parametrize("chosen", ["", "nobody", "zz", "own", "keys/1/"])
def test_what_names_no_slot_is_not_found(storage: MemoryStorage, chosen: str) -> None:
    keyring = open_keyring(storage, [OWNER], REPOSITORY)
    with pytest.raises(NotFound):
        remove_slot(storage, chosen, keyring)
    assert len(list_slots(storage)) == 3


def test_an_ambiguous_choice_removes_nothing(storage: MemoryStorage) -> None:
    keyring = open_keyring(storage, [OWNER], REPOSITORY)
    first = slot_named(storage, "host-a")
    add_slot(storage, READER, keyfile(7), first.slot[:4], NOW)
    with pytest.raises(Refused, match="names 2 key slots"):
        remove_slot(storage, first.slot[:4], keyring)
    assert len(list_slots(storage)) == 4


def test_the_last_slot_that_reads_is_never_removed(storage: MemoryStorage) -> None:
    remove_slot(storage, "recovery kit", open_keyring(storage, [OWNER], REPOSITORY))
    with pytest.raises(Refused, match="last key slot that reads") as refused:
        remove_slot(storage, "owner", open_keyring(storage, [OWNER], REPOSITORY))
    assert "key add" in refused.value.do
    assert open_keyring(storage, [OWNER], REPOSITORY).current == READER


def test_the_slot_that_opened_is_removed_only_by_way_of_another(storage: MemoryStorage) -> None:
    with pytest.raises(Refused, match="was opened with"):
        remove_slot(storage, "owner", open_keyring(storage, [OWNER], REPOSITORY))
    remove_slot(storage, "owner", open_keyring(storage, [CODE], REPOSITORY))
    assert open_keyring(storage, [CODE], REPOSITORY).current == READER


def test_a_planted_reader_slot_is_no_proof_of_a_way_in(storage: MemoryStorage) -> None:
    plant(storage, rewritten(storage, "owner", label="planted"))
    remove_slot(storage, "recovery kit", open_keyring(storage, [OWNER], REPOSITORY))
    keyring = open_keyring(storage, [OWNER], REPOSITORY)
    with pytest.raises(Refused):
        remove_slot(storage, "owner", keyring)
    remove_slot(storage, "planted", keyring)
    assert {info.label for info in list_slots(storage)} == {"host-a", "owner"}


def test_a_writer_removes_nobody(storage: MemoryStorage) -> None:
    keyring = open_keyring(storage, [HOST], REPOSITORY)
    for label in ("owner", "recovery kit", "host-a"):
        with pytest.raises(Refused, match="does not read epoch 1"):
            remove_slot(storage, label, keyring)
    assert len(list_slots(storage)) == 3


def test_a_slot_of_an_epoch_that_was_not_opened_stays(storage: MemoryStorage) -> None:
    add_slot(storage, LATER, CODE, "later", NOW)
    keyring = open_keyring(storage, [OWNER], REPOSITORY)
    with pytest.raises(Refused, match="epoch 2"):
        remove_slot(storage, "later", keyring)


def test_changing_a_passphrase_is_adding_then_removing(storage: MemoryStorage) -> None:
    new = phrase(b"new owner")
    add_slot(storage, open_keyring(storage, [OWNER], REPOSITORY).current, new, "owner 2", NOW)
    remove_slot(storage, "owner", open_keyring(storage, [new], REPOSITORY))
    with pytest.raises(KeyRefused):
        open_keyring(storage, [OWNER], REPOSITORY)
    assert open_keyring(storage, [new], REPOSITORY).current == READER


def test_a_fresh_keyring_needs_no_storage() -> None:
    keyring = Keyring({1: READER})
    assert (keyring.current, keyring.role, keyring.slots) == (READER, "reader", {})
